package power

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

func machine(name, rack string, unit int32) v1alpha1.Machine {
	m := v1alpha1.Machine{Spec: v1alpha1.MachineSpec{Location: v1alpha1.Location{Rack: rack, Unit: unit}}}
	m.Name = name
	return m
}

func TestOrder(t *testing.T) {
	list := []v1alpha1.Machine{machine("d", "r2", 1), machine("c", "r1", 10), machine("b", "r1", 2), machine("a", "r1", 2)}
	Order(list)
	var names []string
	for _, m := range list {
		names = append(names, m.Name)
	}
	if got := strings.Join(names, " "); got != "a b c d" {
		t.Error(got)
	}
}

// Each machine alone may go; both together cost the cluster its majority.
func TestLossesAddUp(t *testing.T) {
	cluster := v1alpha1.Cluster{}
	cluster.Name = "prod"
	cluster.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionBroughtUp, Status: metav1.ConditionTrue}}
	group := v1alpha1.MachineGroup{Spec: v1alpha1.MachineGroupSpec{Roles: []v1alpha1.Role{v1alpha1.RoleControlPlane, v1alpha1.RoleEtcd}}}
	group.Name = "control"
	var machines []v1alpha1.Machine
	for _, name := range []string{"m1", "m2", "m3"} {
		cluster.Status.Nodes = append(cluster.Status.Nodes, v1alpha1.ClusterNode{Machine: name, Group: "control", Ready: true, Etcd: &v1alpha1.EtcdMember{}})
		m := machine(name, "", 0)
		m.Status.Phase = v1alpha1.PhaseReady
		m.Status.Kubernetes = &v1alpha1.KubernetesStatus{Cluster: "prod", Node: name, Roles: group.Spec.Roles}
		machines = append(machines, m)
	}
	installing := machine("m4", "", 0)
	installing.Status.Phase, installing.Status.CurrentStep = v1alpha1.PhaseInstalling, "image 43%"
	idle := machine("m5", "", 0)
	losses := Losses(append(machines[:2], installing, idle), []v1alpha1.Cluster{cluster}, []v1alpha1.MachineGroup{group})
	for i, want := range []struct {
		text string
		asks bool
	}{
		{"node m1 of cluster prod (control-plane, etcd)", true}, {"there is no majority", true}, {"installing, image 43%", true}, {"", false},
	} {
		if l := losses[i]; !strings.Contains(l.What, want.text) || l.Asks != want.asks || want.text == "" && l.What != "" {
			t.Errorf("%s: %+v, want %q", l.Machine, l, want.text)
		}
	}
	if strings.Contains(losses[0].What, "majority") {
		t.Errorf("one of three may go: %s", losses[0].What)
	}
	if !cluster.Status.Nodes[0].Ready {
		t.Error("the caller's cluster was changed")
	}
}

func TestRunIsStaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := []v1alpha1.Machine{machine("a", "", 0), machine("b", "", 0), machine("c", "", 0), machine("d", "", 0)}
		ctx, cancel := context.WithCancel(t.Context())
		begun := time.Now()
		var told []string
		outcomes := Run(ctx, list, 2, func(_ context.Context, m *v1alpha1.Machine) Outcome {
			time.Sleep(10 * time.Second)
			if m.Name == "b" {
				cancel()
				return Outcome{Machine: m.Name, Problem: "no"}
			}
			return Outcome{Machine: m.Name, Was: "Off", State: "On"}
		}, func(o Outcome) { told = append(told, o.Line()) })
		if time.Since(begun) > 20*time.Second || Failed(outcomes) < 2 {
			t.Errorf("took %s: %+v", time.Since(begun), outcomes)
		}
		if outcomes[0].Line() != "a: On (was Off)" || outcomes[1].Line() != "b: FAILED: no" || !strings.Contains(outcomes[3].Problem, "not begun") || len(told) != 4 {
			t.Errorf("%+v %q", outcomes, told)
		}
	})
}
