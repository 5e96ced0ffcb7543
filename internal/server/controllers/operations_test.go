package controllers

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kubeapi"
)

// Only the node of a machine whose system was asked to go is removed, and only while nothing records it.
func TestStrayNodes(t *testing.T) {
	installed := &v1alpha1.InstalledStatus{}
	asked := func(action v1alpha1.IntentAction) v1alpha1.Machine {
		return v1alpha1.Machine{Spec: v1alpha1.MachineSpec{Intent: &v1alpha1.Intent{ID: "1", Action: action}}, Status: v1alpha1.MachineStatus{Installed: installed}}
	}
	done := func(action v1alpha1.IntentAction, installed *v1alpha1.InstalledStatus) v1alpha1.Machine {
		return v1alpha1.Machine{Status: v1alpha1.MachineStatus{Intent: &v1alpha1.IntentStatus{ID: "1", Action: action, State: v1alpha1.IntentSucceeded}, Installed: installed}}
	}
	ready, silent := kubeapi.NodeState{Ready: true}, kubeapi.NodeState{}
	end := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ended := done(v1alpha1.ActionRelease, nil)
	ended.Status.Intent.FinishedAt = &metav1.Time{Time: end}
	before, since := kubeapi.NodeState{Created: end.Add(-time.Second)}, kubeapi.NodeState{Created: end.Add(time.Second), Ready: true}
	for name, c := range map[string]struct {
		machine v1alpha1.Machine
		node    kubeapi.NodeState
		stray   bool
	}{
		"recorded":                      {asked(v1alpha1.ActionReinstall), silent, false},
		"foreign":                       {asked(v1alpha1.ActionRelease), silent, false},
		"foreign-and-wiped-since":       {ended, before, true},
		"foreign-since-the-wipe":        {ended, since, false},
		"of-no-cluster-since-the-wipe":  {ended, since, false},
		"registered-before-the-wipe":    {ended, before, true},
		"joined-before":                 {v1alpha1.Machine{}, silent, false},
		"to-be-installed":               {asked(v1alpha1.ActionInstall), silent, false},
		"to-be-released":                {asked(v1alpha1.ActionRelease), ready, true},
		"to-be-installed-anew":          {asked(v1alpha1.ActionReinstall), ready, true},
		"released-and-withdrawn":        {done(v1alpha1.ActionRelease, nil), ready, true},
		"installed-anew-and-back":       {done(v1alpha1.ActionReinstall, installed), ready, false},
		"installed-anew-and-not-a-node": {done(v1alpha1.ActionReinstall, installed), silent, true},
		"installed-once":                {done(v1alpha1.ActionInstall, installed), silent, false},
	} {
		status := &v1alpha1.ClusterStatus{Nodes: []v1alpha1.ClusterNode{{NodeName: "recorded"}}, ForeignNodes: []v1alpha1.ForeignNode{{Name: "foreign"}, {Name: "foreign-and-wiped-since"}, {Name: "foreign-since-the-wipe"}}}
		c.machine.Name, c.machine.Spec.Hostname = "m-"+name, name
		nodes := map[string]kubeapi.NodeState{name: c.node, "unknown": silent}
		got := strayNodes(status, nodes, []*v1alpha1.Machine{&c.machine, {ObjectMeta: metav1.ObjectMeta{Name: "without-node"}}})
		if want := map[bool][]string{true: {name}}[c.stray]; !slices.Equal(got, want) {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
