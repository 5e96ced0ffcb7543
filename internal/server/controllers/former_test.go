package controllers

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/etcd"
	"coldrack.dev/internal/cluster/kubeapi"
)

// Which Node is of a former installation is decided in members.OwnerOf; here, of which Nodes it is asked.
func TestFormerNodes(t *testing.T) {
	end := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	released := func(name, hostname string) *v1alpha1.Machine {
		m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MachineSpec{Hostname: hostname}}
		m.Status.Intent = &v1alpha1.IntentStatus{ID: "1", Action: v1alpha1.ActionRelease, State: v1alpha1.IntentSucceeded, FinishedAt: &metav1.Time{Time: end}}
		return m
	}
	asked := func(name string) *v1alpha1.Machine {
		return &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MachineSpec{Intent: &v1alpha1.Intent{ID: "1", Action: v1alpha1.ActionReinstall}}}
	}
	machines := []*v1alpha1.Machine{released("a", ""), released("b", "node-b"), released("recorded", ""), released("without-node", ""), released("since", ""), asked("asked"), asked("foreign")}
	nodes := map[string]kubeapi.NodeState{"since": {Created: end}}
	for _, name := range []string{"a", "node-b", "b", "recorded", "of-no-machine", "asked", "foreign"} {
		nodes[name] = kubeapi.NodeState{Created: end.Add(-time.Hour)}
	}
	status := &v1alpha1.ClusterStatus{Nodes: []v1alpha1.ClusterNode{{Machine: "recorded", NodeName: "recorded"}}, ForeignNodes: []v1alpha1.ForeignNode{{Name: "foreign"}}}
	if got := formerNodes(status, nodes, machines); !slices.Equal(got, []string{"a", "node-b", "asked"}) {
		t.Errorf("of former installations are %v", got)
	}
}

func TestWhatTheAPISays(t *testing.T) {
	young, up := &v1alpha1.Cluster{}, &v1alpha1.Cluster{Status: v1alpha1.ClusterStatus{Conditions: []metav1.Condition{{Type: v1alpha1.ConditionBroughtUp, Status: metav1.ConditionTrue}}}}
	known := map[string]kubeapi.NodeState{"a": {BootID: "boot", Ready: true}}
	for name, c := range map[string]struct {
		cluster       *v1alpha1.Cluster
		state         *kubeapi.State
		nodes, unread bool
	}{
		"a cluster that is not up yet need not have an API": {young, nil, false, false},
		"one that was up has one":                           {up, nil, false, true},
		"what an API said that does not answer may be old":  {up, &kubeapi.State{Nodes: known}, false, true},
		"one that answers has not said its nodes yet":       {up, &kubeapi.State{Reachable: true}, false, true},
		"its nodes are known":                               {up, &kubeapi.State{Reachable: true, Nodes: known}, true, false},
	} {
		nodes, unread := registeredIn(c.cluster, c.state)
		if unread != c.unread || (nodes != nil) != c.nodes || c.nodes && (nodes["a"].BootID != "boot" || !nodes["a"].Ready) {
			t.Errorf("%s: %v, unread %t", name, nodes, unread)
		}
	}
}

func TestWhichMemberOfEtcdIsTakenForANodes(t *testing.T) {
	for name, c := range map[string]struct {
		member etcd.Member
		taken  bool
	}{
		"added, and the server died before it was recorded": {etcd.Member{}, true},
		"a learner that has started":                        {etcd.Member{Name: "a", Learner: true}, true},
		"a voter that works, of a restored server":          {etcd.Member{Name: "a", Answers: true}, true},
		"a silent voter, perhaps of a former installation":  {etcd.Member{Name: "a"}, false},
	} {
		if mayBeRecorded(c.member) != c.taken {
			t.Errorf("%s: %t", name, !c.taken)
		}
	}
}

// A write that somebody else was faster with takes nothing back of theirs, and loses nothing of ours.
func TestAForeignNodeThatWasRemovedStaysRemoved(t *testing.T) {
	was := v1alpha1.ClusterStatus{ForeignNodes: []v1alpha1.ForeignNode{{Name: "former"}, {Name: "guest"}}}
	is := v1alpha1.ClusterStatus{ForeignNodes: []v1alpha1.ForeignNode{{Name: "guest"}}}
	into := v1alpha1.ClusterStatus{ForeignNodes: []v1alpha1.ForeignNode{{Name: "former"}, {Name: "guest"}, {Name: "new"}}}
	ownInto(&into, &was, &is)
	if len(into.ForeignNodes) != 2 || into.ForeignNodes[0].Name != "guest" || into.ForeignNodes[1].Name != "new" {
		t.Errorf("foreign nodes are %v", into.ForeignNodes)
	}
}

// The add-on that became ready while a step ended is in the history, too; and what was not changed here stays as others have it.
func TestAWriteThatWasLateKeepsWhatOthersWrote(t *testing.T) {
	step := func(kind string) v1alpha1.ClusterWorkStep { return v1alpha1.ClusterWorkStep{Kind: kind} }
	node := func(version, etcd string) []v1alpha1.ClusterNode {
		return []v1alpha1.ClusterNode{{Machine: "m", Version: version, EtcdVersion: etcd}}
	}
	was := v1alpha1.ClusterStatus{History: []v1alpha1.ClusterWorkStep{step("take")}, Failure: &v1alpha1.ClusterFailure{Node: "m"}, Nodes: node("1", "1")}
	is := v1alpha1.ClusterStatus{History: []v1alpha1.ClusterWorkStep{step("take"), step("drain")}, Failure: &v1alpha1.ClusterFailure{Node: "m"}, Nodes: node("2", "1")}
	into := v1alpha1.ClusterStatus{History: []v1alpha1.ClusterWorkStep{step("take"), step("apply")}, Nodes: node("1", "2")}
	ownInto(&into, &was, &is)
	var kinds []string
	for _, s := range into.History {
		kinds = append(kinds, s.Kind)
	}
	if !slices.Equal(kinds, []string{"take", "apply", "drain"}) {
		t.Errorf("the history is %v", kinds)
	}
	if into.Failure != nil {
		t.Errorf("a failure that somebody took back is there again: %+v", into.Failure)
	}
	if n := into.Nodes[0]; n.Version != "2" || n.EtcdVersion != "2" {
		t.Errorf("the node is %+v", n)
	}
}
