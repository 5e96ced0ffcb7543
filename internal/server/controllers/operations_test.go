package controllers

import (
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kubeapi"
)

// Only the node of a machine that was asked to leave goes, and only while nothing records it.
func TestStrayNodes(t *testing.T) {
	machine := func(name string, intent v1alpha1.IntentAction) *v1alpha1.Machine {
		m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "m-" + name}, Spec: v1alpha1.MachineSpec{Hostname: name}}
		if intent != "" {
			m.Spec.Intent = &v1alpha1.Intent{Action: intent}
		}
		return m
	}
	status := &v1alpha1.ClusterStatus{Nodes: []v1alpha1.ClusterNode{{NodeName: "stays"}}, ForeignNodes: []v1alpha1.ForeignNode{{Name: "foreign"}}}
	nodes := map[string]kubeapi.NodeState{"stays": {}, "foreign": {}, "joined-before": {}, "left": {}, "reinstalled": {}, "unknown": {}}
	machines := []*v1alpha1.Machine{
		machine("stays", v1alpha1.ActionReinstall), machine("foreign", v1alpha1.ActionRelease), machine("joined-before", ""),
		machine("left", v1alpha1.ActionRelease), machine("reinstalled", v1alpha1.ActionReinstall), machine("gone", v1alpha1.ActionRelease),
	}
	if got := strayNodes(status, nodes, machines); !slices.Equal(got, []string{"left", "reinstalled"}) {
		t.Errorf("got %v", got)
	}
}
