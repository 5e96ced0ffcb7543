package v1alpha1

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// running is a cluster of three machines with everything and two workers, brought up and ready.
func running() (*Cluster, []MachineGroup) {
	c := &Cluster{ObjectMeta: metav1.ObjectMeta{Name: "rack"}, Spec: ClusterSpec{Version: "v1.36.3"}}
	for _, name := range []string{"a", "b", "c"} {
		c.Status.Nodes = append(c.Status.Nodes, ClusterNode{Machine: name, Group: "all", Version: "v1.36.3", Ready: true, Etcd: &EtcdMember{}})
	}
	for _, name := range []string{"x", "y"} {
		c.Status.Nodes = append(c.Status.Nodes, ClusterNode{Machine: name, Group: "workers", Version: "v1.36.3", Ready: true})
	}
	c.Status.Conditions = []metav1.Condition{{Type: ConditionBroughtUp, Status: metav1.ConditionTrue}}
	return c, []MachineGroup{group("all", 3, RoleEtcd, RoleControlPlane), group("workers", 2, RoleWorker)}
}

func TestVersionsOfNodesDecideWhereAClusterMayGo(t *testing.T) {
	for _, test := range []struct {
		to     string
		change func(c *Cluster)
		want   string
	}{
		{"v1.37.2", func(*Cluster) {}, ""},
		{"v1.36.4", func(*Cluster) {}, ""},
		{"v1.36.1", func(*Cluster) {}, ""},
		{"v1.35.9", func(*Cluster) {}, "downgrade across minor releases"},
		{"v1.38.0", func(*Cluster) {}, "skips a minor release"},
		{"v1.38.0", func(c *Cluster) { c.Status.Nodes[0].Version, c.Spec.Version = "v1.37.2", "v1.37.2" }, "wait until every machine runs it"},
		{"v1.36.3", func(c *Cluster) { c.Status.Nodes[0].Version, c.Spec.Version = "v1.37.2", "v1.37.2" }, "downgrade across minor releases"},
		{"v1.36.3", func(c *Cluster) { c.Spec.Version = "v1.37.2" }, ""}, // nothing has changed yet: a change of mind
		{"v1.99.0", func(c *Cluster) { c.Status.Nodes = nil }, ""},
		{"v1.99.0", func(c *Cluster) { c.Spec.Version = "v1.99.0" }, ""}, // was written by a server that did not look
	} {
		was, _ := running()
		test.change(was)
		is := was.DeepCopy()
		is.Spec.Version = test.to
		blames(t, test.to, ValidateClusterChange(is, was), "spec.version", test.want)
	}
}

func blames(t *testing.T, name string, errs field.ErrorList, at, want string) {
	t.Helper()
	text := ""
	if err := errs.ToAggregate(); err != nil {
		text = err.Error()
	}
	if want == "" && text != "" || want != "" && (!strings.Contains(text, want) || !strings.HasPrefix(strings.TrimPrefix(text, "["), at+": ")) {
		t.Errorf("%s: refused with %q, want %s: %q", name, text, at, want)
	}
}

func TestServersOfARunningClusterStay(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(c *Cluster, groups []MachineGroup) []MachineGroup
		want   string
	}{
		{"as they are", func(_ *Cluster, g []MachineGroup) []MachineGroup { return g }, ""},
		{"five", func(_ *Cluster, g []MachineGroup) []MachineGroup { *g[0].Spec.Replicas = 5; return g }, ""},
		{"four", func(_ *Cluster, g []MachineGroup) []MachineGroup { *g[0].Spec.Replicas = 4; return g }, "want 3 or 5, or set spec.etcd.allowEvenMembers"},
		{"four on purpose", func(c *Cluster, g []MachineGroup) []MachineGroup {
			*g[0].Spec.Replicas, c.Spec.Etcd.AllowEvenMembers = 4, true
			return g
		}, ""},
		{"none", func(_ *Cluster, g []MachineGroup) []MachineGroup { return g[1:] }, "would hold etcd"},
		{"no control plane", func(_ *Cluster, g []MachineGroup) []MachineGroup { g[0].Spec.Roles = []Role{RoleEtcd}; return g }, "no control plane, and so no API"},
		{"none, but the cluster is deleted", func(c *Cluster, g []MachineGroup) []MachineGroup {
			c.DeletionTimestamp = &metav1.Time{}
			return g[1:]
		}, ""},
		{"none yet", func(c *Cluster, g []MachineGroup) []MachineGroup { c.Status.Nodes = nil; return g[1:] }, ""},
	} {
		c, groups := running()
		groups = test.change(c, groups)
		blames(t, test.name, ValidateServers(field.NewPath("spec", "replicas"), c, groups), "spec.replicas", test.want)
	}
}

func TestMachinesThatARunningClusterRestsOnStay(t *testing.T) {
	for _, test := range []struct {
		name    string
		machine string
		change  func(c *Cluster, groups []MachineGroup)
		want    string
	}{
		{"a worker", "x", func(*Cluster, []MachineGroup) {}, ""},
		{"one of three", "a", func(*Cluster, []MachineGroup) {}, ""},
		{"another cluster's", "z", func(*Cluster, []MachineGroup) {}, ""},
		{"a dead one", "b", func(c *Cluster, _ []MachineGroup) { c.Status.Nodes[1].Ready = false }, ""},
		{"one of three when another is dead", "a", func(c *Cluster, _ []MachineGroup) { c.Status.Nodes[1].Ready = false },
			"one of 3 members of etcd of Cluster rack, and 1 of the others are ready"},
		{"the last control plane", "x", func(c *Cluster, g []MachineGroup) {
			g[0].Spec.Roles, g[1].Spec.Roles = []Role{RoleEtcd}, []Role{RoleControlPlane}
			c.Status.Nodes[4].Ready = false
		}, "the last control plane of Cluster rack that works"},
		{"the only one of a cluster that never came up", "a", func(c *Cluster, _ []MachineGroup) {
			c.Status.Nodes, c.Status.Conditions = c.Status.Nodes[:1], nil
		}, ""},
		{"the only one", "a", func(c *Cluster, _ []MachineGroup) { c.Status.Nodes = c.Status.Nodes[:1] }, "delete Cluster rack first"},
		{"the only one of a deleted cluster", "a", func(c *Cluster, _ []MachineGroup) {
			c.Status.Nodes, c.DeletionTimestamp = c.Status.Nodes[:1], &metav1.Time{}
		}, ""},
		{"the only one of a cluster to be forgotten", "a", func(c *Cluster, _ []MachineGroup) {
			c.Status.Nodes, c.Annotations = c.Status.Nodes[:1], map[string]string{AnnotationAbandon: "true"}
		}, ""},
	} {
		c, groups := running()
		test.change(c, groups)
		m := &Machine{ObjectMeta: metav1.ObjectMeta{Name: test.machine}}
		blames(t, test.name, ValidateDeparture(field.NewPath("spec", "intent"), m, []Cluster{*c}, groups), "spec.intent", test.want)
	}
}
