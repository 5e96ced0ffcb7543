package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

// halfway is a cluster in the middle of its bring-up: one node is up, one at work, one failed, one is installing.
func halfway() ClusterView {
	c := &v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: "rack", CreationTimestamp: metav1.NewTime(noon.Add(-20 * time.Minute))}}
	c.Spec.Version, c.Spec.Topology = "v1.37.2", v1alpha1.TopologyDevelopment
	c.Spec.Network.PodCIDRs, c.Spec.Network.ServiceCIDRs = []string{"10.244.0.0/16"}, []string{"10.96.0.0/16"}
	c.Status = v1alpha1.ClusterStatus{
		Phase: v1alpha1.ClusterBringUp, NodesReady: "1/4", Endpoint: "https://10.20.0.11:6443", Message: "node-3 needs a person",
		Nodes: []v1alpha1.ClusterNode{
			{Machine: "m1", Group: "rack-control", NodeName: "node-1", Addresses: []string{"10.20.0.11"}, Version: "v1.37.2", Ready: true, ReadyChangedAt: &metav1.Time{Time: noon.Add(-2 * time.Minute)}},
			{Machine: "m2", Group: "rack-workers", NodeName: "node-2", Addresses: []string{"10.20.0.12"}, Version: "v1.37.2"},
			{Machine: "m3", Group: "rack-workers", NodeName: "node-3", Addresses: []string{"10.20.0.13"}, Version: "v1.37.2"},
		},
		Steps: []v1alpha1.Step{
			phase("authorities", v1alpha1.StepSucceeded, 10*time.Minute, time.Second, ""),
			phase("nodes", v1alpha1.StepRunning, 9*time.Minute, 0, "1 of 4"),
			{Name: "addons", State: v1alpha1.StepPending},
		},
	}
	groups := []v1alpha1.MachineGroup{
		{ObjectMeta: metav1.ObjectMeta{Name: "rack-workers"}, Spec: v1alpha1.MachineGroupSpec{Cluster: "rack", Replicas: new(int32(3)), Roles: []v1alpha1.Role{v1alpha1.RoleWorker}},
			Status: v1alpha1.MachineGroupStatus{Replicas: 3, Machines: []string{"m2", "m3", "m10"}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Spec: v1alpha1.MachineGroupSpec{Cluster: "other"}, Status: v1alpha1.MachineGroupStatus{Machines: []string{"m4"}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "rack-control"}, Spec: v1alpha1.MachineGroupSpec{Cluster: "rack", Roles: []v1alpha1.Role{v1alpha1.RoleEtcd, v1alpha1.RoleControlPlane}},
			Status: v1alpha1.MachineGroupStatus{Replicas: 1, ReadyReplicas: 1, Machines: []string{"m1"}}},
	}
	machines := []v1alpha1.Machine{
		machine("m10", v1alpha1.PhaseInstalling, time.Minute, at("10.20.0.14", "r1", 4), steps("image", 1<<29, v1alpha1.StepRunning)),
		machine("m3", v1alpha1.PhaseReady, time.Hour, at("10.20.0.13", "r1", 3), node("rack", "node-3", false,
			phase("content", v1alpha1.StepSucceeded, 5*time.Minute, 3*time.Second, ""), phase("runtime", v1alpha1.StepFailed, 4*time.Minute, time.Second, "containerd.service: exit code 1"))),
		machine("m2", v1alpha1.PhaseReady, time.Hour, at("10.20.0.12", "r1", 2), node("rack", "node-2", false,
			phase("content", v1alpha1.StepSucceeded, 5*time.Minute, 12*time.Second, ""), phase("runtime", v1alpha1.StepRunning, 4*time.Minute, 0, ""),
			phase("certificates", v1alpha1.StepRunning, 3*time.Minute, 0, ""), v1alpha1.Step{Name: "kubelet", State: v1alpha1.StepPending})),
		machine("m1", v1alpha1.PhaseReady, time.Hour, at("10.20.0.11", "r1", 1), node("rack", "node-1", true,
			phase("content", v1alpha1.StepSucceeded, 5*time.Minute, 12*time.Second, ""), phase("kubelet", v1alpha1.StepSucceeded, 4*time.Minute, 20*time.Second, ""))),
		machine("m4", v1alpha1.PhaseReady, time.Hour, node("other", "node-4", true)),
	}
	return NewClusterView(c, groups, machines)
}

func phase(name string, state v1alpha1.StepState, ago, lasted time.Duration, message string) v1alpha1.Step {
	begun := metav1.NewMicroTime(noon.Add(-ago))
	s := v1alpha1.Step{Name: name, State: state, StartedAt: &begun, Message: message}
	if lasted > 0 {
		ended := metav1.NewMicroTime(begun.Add(lasted))
		s.FinishedAt = &ended
	}
	return s
}

func node(cluster, name string, done bool, phases ...v1alpha1.Step) func(*v1alpha1.Machine) {
	return func(m *v1alpha1.Machine) {
		m.Status.Kubernetes = &v1alpha1.KubernetesStatus{Cluster: cluster, Node: name, Roles: []v1alpha1.Role{v1alpha1.RoleWorker}, Version: "v1.37.2", Phases: phases, Done: done}
	}
}

func TestClusterPictures(t *testing.T) {
	v := halfway()
	table := &strings.Builder{}
	if err := ClusterTable([]v1alpha1.Cluster{*v.Cluster}, noon).Print(table, true); err != nil {
		t.Fatal(err)
	}
	machines := &strings.Builder{}
	if err := MachineTable(v.Machines, noon, false).Print(machines, true); err != nil {
		t.Fatal(err)
	}
	fresh := ClusterView{Cluster: &v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: "new"}, Spec: v1alpha1.ClusterSpec{Version: "v1.37.2", Paused: true}}}
	snapshot := ClusterSnapshot{View: v, Server: "https://10.20.0.1:7443", Goal: "Ready"}
	golden(t, "cluster", &txtar.Archive{Files: []txtar.File{
		{Name: "table", Data: []byte(table.String())},
		{Name: "machines", Data: []byte(machines.String())},
		{Name: "describe", Data: []byte(DescribeCluster(v, noon))},
		{Name: "watch", Data: []byte(RenderCluster(snapshot, 160, 40, noon) + "\n")},
		{Name: "watch narrow", Data: []byte(RenderCluster(snapshot, 70, 40, noon) + "\n")},
		{Name: "watch short", Data: []byte(RenderCluster(snapshot, 160, 11, noon) + "\n")},
		{Name: "watch a new one", Data: []byte(RenderCluster(ClusterSnapshot{View: fresh, Server: "https://10.20.0.1:7443", Trouble: "EOF"}, 120, 20, noon) + "\n")},
		{Name: "machine", Data: []byte(Describe(&v.Machines[1], noon))},
	}})
}

func TestClusterTransitions(t *testing.T) {
	before, after := halfway(), halfway()
	after.Cluster.Status.Phase, after.Cluster.Status.NodesReady, after.Cluster.Status.Message = v1alpha1.ClusterReady, "4/4", ""
	after.Cluster.Status.Steps[1] = phase("nodes", v1alpha1.StepSucceeded, 9*time.Minute, 8*time.Minute, "")
	after.Cluster.Status.Steps[2] = phase("addons", v1alpha1.StepFailed, time.Minute, time.Second, "the API does\nnot answer")
	if diff := cmp.Diff([]string{"Ready 4/4", "  nodes done 8m00s", "  addons failed: the API does not answer"}, ClusterTransitions(before.Cluster, after.Cluster)); diff != "" {
		t.Error(diff)
	}
	if lines := ClusterTransitions(before.Cluster, before.Cluster); len(lines) > 0 {
		t.Errorf("nothing changed, but %q", lines)
	}
	if diff := cmp.Diff([]string{"BringUp 1/4: node-3 needs a person", "  authorities done 1.0s", "  nodes … 1 of 4"}, ClusterTransitions(nil, before.Cluster)); diff != "" {
		t.Error(diff)
	}
	m := before.Machines[1]
	next := m.DeepCopy()
	next.Status.Kubernetes.Phases[1] = phase("runtime", v1alpha1.StepSucceeded, 4*time.Minute, 90*time.Second, "")
	next.Status.Kubernetes.Phases[3] = phase("kubelet", v1alpha1.StepRunning, time.Second, 0, "")
	if diff := cmp.Diff([]string{"  runtime done 1m30s", "  kubelet …", "node Ready"}, NodeTransitions(&m, next, false, true)); diff != "" {
		t.Error(diff)
	}
}

// Of nodes that fetch what an upgrade needs, the one that cannot comes first, and says why.
func TestNodesThatFetchAreShown(t *testing.T) {
	v := halfway()
	for i := range v.Machines {
		node(v.Cluster.Name, v.Machines[i].Name, true, phase("kubelet", v1alpha1.StepSucceeded, time.Hour, time.Second, ""))(&v.Machines[i])
		v.Machines[i].Status.Phase = v1alpha1.PhaseReady
	}
	says := []*v1alpha1.NodePrefetch{nil, {ID: "a", Done: true}, {ID: "a", Message: "fetches kubelet v1.37.2", BytesDone: 25 << 20, BytesTotal: 100 << 20}, {ID: "a", Failing: true, Message: "connection refused"}}
	v.Cluster.Status.Nodes = nil
	for i := range says {
		v.Machines[i].Status.Kubernetes.Prefetch = says[i]
		v.Cluster.Status.Nodes = append(v.Cluster.Status.Nodes, v1alpha1.ClusterNode{Machine: v.Machines[i].Name, Ready: true, Prefetch: &v1alpha1.WantedPrefetch{Version: "v1.37.2"}})
	}
	var got []string
	for _, n := range v.Nodes(noon, true) {
		got = append(got, strings.Join(strings.Fields(n.Machine+" "+n.Progress+" "+n.Message), " "))
	}
	name := func(i int) string { return v.Machines[i].Name }
	want := []string{name(3) + " cannot fetch what v1.37.2 needs: connection refused", name(0), name(1) + " has everything for v1.37.2",
		name(2) + " " + Bar(0.25, 12) + " for v1.37.2 fetches kubelet v1.37.2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	before, after := v.Machines[2].DeepCopy(), v.Machines[2].DeepCopy()
	after.Status.Kubernetes.Prefetch = &v1alpha1.NodePrefetch{ID: "a", Done: true}
	if diff := cmp.Diff([]string{"  has everything for another version"}, NodeTransitions(before, after, true, true)); diff != "" {
		t.Error(diff)
	}
}
