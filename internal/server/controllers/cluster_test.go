package controllers

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/contract/wire"
)

var errNoNode = errors.New("there is no node behind this test")

type noPrograms struct{}

func (noPrograms) Programs(string) ([]wire.Program, error) { return nil, nil }

// rackCluster is one control-plane machine and two workers.
func rackCluster(t *testing.T, w *liveWorld) *v1alpha1.Cluster {
	t.Helper()
	w.catalog.set(func(c *fakeCatalog) { c.kubernetes = kube.KnownVersions() })
	subnet := rack()
	w.create(&subnet)
	cluster, groups, err := kube.Preset(v1alpha1.TopologyDevelopment, kube.PresetOptions{Name: "rack", Workers: 2, Profile: "default"})
	check(t, err)
	w.create(cluster)
	for i := range groups {
		w.create(&groups[i])
	}
	return cluster
}

// ready makes a machine that is approved, and with an address of the rack where there is one.
func (w *liveWorld) ready(name, address string) {
	w.t.Helper()
	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MachineSpec{Approved: true, Identifiers: v1alpha1.Identifiers{Serial: name}}}
	if address != "" {
		m.Spec.Network = &v1alpha1.MachineNetwork{Subnet: "rack", Address: address}
	}
	w.create(m)
	w.act(name, func(s *v1alpha1.MachineStatus) {
		s.Inventory = &v1alpha1.Inventory{ReportedAt: metav1.Now(), Memory: resource.MustParse("2Gi"), System: v1alpha1.SystemInfo{Serial: name}}
	})
}

// installed is what the machine API writes at the end of an install.
func (w *liveWorld) installed(name string) {
	w.t.Helper()
	id := w.wait(name, "due", func(m *v1alpha1.Machine) bool { return m.Spec.Intent != nil }).Spec.Intent.ID
	w.act(name, func(s *v1alpha1.MachineStatus) {
		s.Installed = &v1alpha1.InstalledStatus{IntentID: id, Image: "debian-12", Disk: "d", At: metav1.NewTime(time.Now().Add(-time.Minute))}
		s.Intent = &v1alpha1.IntentStatus{ID: id, Action: v1alpha1.ActionInstall, State: v1alpha1.IntentSucceeded, FinishedAt: new(metav1.Now())}
	})
	w.fleet.Beat(name, wire.Heartbeat{BootID: "b"}, "10.0.0.10")
}

func (w *liveWorld) cluster(what string, until func(*v1alpha1.Cluster) bool) *v1alpha1.Cluster {
	w.t.Helper()
	c := &v1alpha1.Cluster{}
	w.until(func() bool {
		c = &v1alpha1.Cluster{}
		return w.client.Get(w.t.Context(), client.ObjectKey{Name: "rack"}, c) == nil && until(c)
	}, func() string {
		return fmt.Sprintf("cluster is not %s: %s: %s\n%+v", what, c.Status.Phase, c.Status.Message, c.Status)
	})
	return c
}

func (w *liveWorld) secret() *v1alpha1.Secret {
	w.t.Helper()
	s := &v1alpha1.Secret{}
	check(w.t, w.client.Get(w.t.Context(), client.ObjectKey{Name: "cluster-rack"}, s))
	return s
}

// plan waits until the Set has one for a machine.
func (w *liveWorld) plan(machine string) wire.NodeAssignment {
	w.t.Helper()
	var a wire.NodeAssignment
	w.until(func() bool {
		a, _ = w.clusters.Node(machine)
		return a.Plan != nil
	}, func() string { return fmt.Sprintf("machine %s has no plan: %s", machine, a.Message) })
	return a
}

func recorded(c *v1alpha1.Cluster) string {
	var names []string
	for _, n := range c.Status.Nodes {
		names = append(names, n.Machine+"="+strings.Join(n.PodCIDRs, ","))
	}
	return strings.Join(names, " ")
}

func clusterIsRecorded(t *testing.T, w *liveWorld) {
	rackCluster(t, w)
	c := w.cluster("pending", func(c *v1alpha1.Cluster) bool {
		return c.Status.Phase == v1alpha1.ClusterPending && strings.Contains(c.Status.Message, "0 of 1 machines that are to hold etcd")
	})
	if len(c.Status.Nodes) != 0 || len(c.Finalizers) != 1 {
		t.Fatalf("without machines: %+v", c)
	}
	w.ready("a", "10.0.0.20")
	w.ready("b", "10.0.0.21")
	// What is recorded comes first: whenever a plan can be had, the store knows the machine.
	handedOut := w.plan("b")
	c = w.cluster("recorded", func(c *v1alpha1.Cluster) bool { return len(c.Status.Nodes) == 2 })
	if recorded(c) != "a=10.244.0.0/24 b=10.244.1.0/24" || c.Status.Nodes[0].Etcd == nil || c.Status.Nodes[0].Version != c.Spec.Version || c.Status.Nodes[1].Addresses[0] != "10.0.0.21" {
		t.Errorf("recorded %+v", c.Status.Nodes)
	}
	w.wait("b", "given its group's profile and an install", func(m *v1alpha1.Machine) bool { return m.Spec.Profile == "default" && m.Spec.Intent != nil })
	keys := w.secret().Data
	w.restart()
	if again := w.plan("b"); again.Version != handedOut.Version {
		t.Error("after a restart another plan is handed out")
	}

	// The last one comes later, and gets an address first.
	w.ready("c", "")
	c = w.cluster("complete", func(c *v1alpha1.Cluster) bool { return len(c.Status.Nodes) == 3 })
	if recorded(c) != "a=10.244.0.0/24 b=10.244.1.0/24 c=10.244.2.0/24" {
		t.Errorf("recorded %s", recorded(c))
	}
	w.cluster("waiting for machines to be installed", func(c *v1alpha1.Cluster) bool {
		return c.Status.Phase == v1alpha1.ClusterPending && strings.Contains(c.Status.Message, "0 of 3 machines are installed")
	})
	for _, name := range []string{"a", "b", "c"} {
		w.installed(name)
		w.phase(name, v1alpha1.PhaseReady)
	}
	w.fleet.BroughtUp("a", wire.PhaseReport{Cluster: "rack", KubernetesVersion: c.Spec.Version, Certificates: map[string]time.Time{"x": time.Unix(1e9, 0)},
		Phases: []wire.Step{{Name: "content", State: wire.StateSucceeded}, {Name: "kubelet", State: wire.StateRunning, Message: "waits for containerd"}}})
	m := w.wait("a", "being brought up", func(m *v1alpha1.Machine) bool { return m.Status.CurrentStep == "kubelet: waits for containerd" })
	if up := m.Status.Kubernetes; up.Node != "a" || up.CertificatesExpireAt.Unix() != 1e9 || len(up.Phases) != 2 || up.Done {
		t.Errorf("reported %+v", up)
	}
	c = w.cluster("being brought up", func(c *v1alpha1.Cluster) bool {
		return c.Status.Phase == v1alpha1.ClusterBringUp && strings.Contains(c.Status.Message, "machine a: kubelet: waits for containerd")
	})
	if c.Status.NodesReady != "0/3" || c.Status.Endpoint != "https://10.0.0.20:6443" || len(c.Status.Steps) != 6 || c.Status.Steps[0].State != v1alpha1.StepSucceeded {
		t.Errorf("status %+v", c.Status)
	}
	w.fleet.BroughtUp("a", wire.PhaseReport{Cluster: "rack", KubernetesVersion: c.Spec.Version, Done: true,
		Phases: []wire.Step{{Name: "etcd", State: wire.StateSucceeded}, {Name: "api-server", State: wire.StateSucceeded}}})
	c = w.cluster("further", func(c *v1alpha1.Cluster) bool { return c.Status.Steps[1].State == v1alpha1.StepSucceeded })
	if c.Status.Version != c.Spec.Version || c.Status.Steps[2].State != v1alpha1.StepSucceeded || c.Status.Steps[3].State != v1alpha1.StepRunning {
		t.Errorf("steps %+v", c.Status.Steps)
	}
	w.restart()
	w.phase("a", v1alpha1.PhaseReady)
	if m := w.wait("a", "known to be done after a restart", func(m *v1alpha1.Machine) bool { return m.Status.Kubernetes != nil }); !m.Status.Kubernetes.Done {
		t.Errorf("after a restart %+v", m.Status.Kubernetes)
	}
	if !maps.EqualFunc(keys, w.secret().Data, bytes.Equal) {
		t.Error("the keys were made again")
	}
	g := &v1alpha1.MachineGroup{}
	check(t, w.client.Get(t.Context(), client.ObjectKey{Name: "rack-workers"}, g))
	if !slices.Equal(g.Status.Machines, []string{"b", "c"}) || g.Status.Replicas != 2 {
		t.Errorf("group %+v", g.Status)
	}

	// A worker that is released is no node any more.
	w.act("c", func(s *v1alpha1.MachineStatus) {
		s.Installed, s.Identity = nil, nil
		s.Intent = &v1alpha1.IntentStatus{ID: "r", Action: v1alpha1.ActionRelease, State: v1alpha1.IntentSucceeded}
	})
	w.edit("c", func(s *v1alpha1.MachineSpec) { s.Approved, s.Intent = false, nil })
	w.cluster("smaller", func(c *v1alpha1.Cluster) bool { return len(c.Status.Nodes) == 2 })
	w.until(func() bool { a, _ := w.clusters.Node("c"); return a.Plan == nil }, func() string { return "a released machine has a plan" })
	w.wait("c", "no node", func(m *v1alpha1.Machine) bool { return m.Status.Kubernetes == nil })
}

func keysAreMadeOnce(t *testing.T, w *liveWorld) {
	cluster := rackCluster(t, w)
	w.cluster("seen", func(c *v1alpha1.Cluster) bool { return c.Status.Phase == v1alpha1.ClusterPending })
	w.stop()
	w.stop = func() {}
	check(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(cluster), cluster))
	check(t, w.client.Delete(t.Context(), w.secret()))

	// Many leaders at once, each of which believes that there are no keys.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			leader := &clusterLeader{Deps: w.deps.withDefaults()}
			if problem, err := leader.keys(t.Context(), cluster); problem != "" || err != nil && !errors.Is(err, errBehind) {
				t.Errorf("%q, %v", problem, err)
			}
		})
	}
	wg.Wait()
	first := w.secret()
	if _, err := members.ParseMaterial(first, nil); err != nil {
		t.Fatal(err)
	}
	leader := &clusterLeader{Deps: w.deps.withDefaults()}
	if problem, err := leader.keys(t.Context(), cluster); problem != "" || err != nil {
		t.Errorf("%q, %v", problem, err)
	}
	if again := w.secret(); again.UID != first.UID || again.ResourceVersion != first.ResourceVersion {
		t.Error("the keys were written again")
	}

	// Keys that are lost while there are nodes are not made anew.
	check(t, w.client.Delete(t.Context(), first))
	cluster.Status.Nodes = []v1alpha1.ClusterNode{{Machine: "a"}}
	if problem, err := leader.keys(t.Context(), cluster); err != nil || !strings.Contains(problem, "restore it from a backup") {
		t.Errorf("%q, %v", problem, err)
	}
	if err := w.client.Get(t.Context(), client.ObjectKey{Name: "cluster-rack"}, first); err == nil {
		t.Error("lost keys were made anew")
	}

	// Those of an earlier cluster are not taken.
	cluster.Status.Nodes = nil
	if problem, err := leader.keys(t.Context(), cluster); problem != "" || err != nil {
		t.Errorf("%q, %v", problem, err)
	}
	cluster.UID = "another"
	if problem, err := leader.keys(t.Context(), cluster); err != nil || !strings.Contains(problem, "earlier cluster") {
		t.Errorf("%q, %v", problem, err)
	}
}

func invalidClusterSaysWhy(t *testing.T, w *liveWorld) {
	rackCluster(t, w)
	w.ready("a", "10.0.0.20")
	z := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "z"}, Spec: v1alpha1.MachineSpec{Network: &v1alpha1.MachineNetwork{Address: "10.0.0.9"}}}
	w.create(z)
	good := w.plan("a")
	c := w.cluster("recorded", func(c *v1alpha1.Cluster) bool { return len(c.Status.Nodes) == 1 })
	change := func(change func(*v1alpha1.ClusterSpec)) {
		t.Helper()
		check(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(c), c))
		before := c.DeepCopy()
		change(&c.Spec)
		check(t, w.client.Patch(t.Context(), c, client.MergeFrom(before)))
	}
	for _, test := range []struct {
		name   string
		change func(*v1alpha1.ClusterSpec)
		want   string
	}{
		{"a version that no bundle has", func(s *v1alpha1.ClusterSpec) { s.Version = "v1.37.99" }, "spec.version"},
		{"a machine's address for the virtual IP", func(s *v1alpha1.ClusterSpec) { s.Endpoint.VirtualIP = &v1alpha1.VirtualIP{Address: "10.0.0.9"} }, "is the address of machine z"},
		{"a machine's address in a pool", func(s *v1alpha1.ClusterSpec) {
			s.Network.LoadBalancer = &v1alpha1.ClusterLoadBalancer{Pools: []v1alpha1.LoadBalancerPool{{Name: "p", Addresses: []string{"10.0.0.8/31"}}}}
		}, "contains the address of machine z"},
		{"a kubelet's field that is Coldrack's own", func(s *v1alpha1.ClusterSpec) {
			s.Kubelet.Config = &runtime.RawExtension{Raw: []byte(`{"staticPodPath": "/tmp"}`)}
		}, "staticPodPath is decided by Coldrack"},
	} {
		spec := *c.Spec.DeepCopy()
		change(test.change)
		w.cluster(test.name, func(c *v1alpha1.Cluster) bool {
			return c.Status.Phase == v1alpha1.ClusterInvalid && strings.Contains(c.Status.Message, test.want) && c.Status.ObservedGeneration == c.Generation
		})
		if a, _ := w.clusters.Node("a"); a.Version != good.Version {
			t.Errorf("%s: the node is handed out something else", test.name)
		}
		change(func(s *v1alpha1.ClusterSpec) { *s = spec })
		w.cluster("valid again", func(c *v1alpha1.Cluster) bool {
			return c.Status.Phase == v1alpha1.ClusterPending && meta.IsStatusConditionTrue(c.Status.Conditions, v1alpha1.ConditionValid)
		})
	}
	orphan := &v1alpha1.MachineGroup{ObjectMeta: metav1.ObjectMeta{Name: "orphan"}, Spec: v1alpha1.MachineGroupSpec{Cluster: "nowhere", Roles: []v1alpha1.Role{v1alpha1.RoleWorker}}}
	w.create(orphan)
	w.until(func() bool {
		check(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(orphan), orphan))
		return strings.Contains(orphan.Status.Message, `no Cluster "nowhere"`)
	}, func() string { return fmt.Sprintf("group %+v", orphan.Status) })
}

func deletedClusterWaits(t *testing.T, w *liveWorld) {
	cluster := rackCluster(t, w)
	w.ready("a", "10.0.0.20")
	w.installed("a")
	w.plan("a")
	keys := w.secret()
	check(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(cluster), cluster))
	check(t, w.client.Delete(t.Context(), cluster))
	w.cluster("releasing", func(c *v1alpha1.Cluster) bool {
		return c.Status.Phase == v1alpha1.ClusterReleasing && strings.Contains(c.Status.Message, "coldrack release a")
	})
	if a, _ := w.clusters.Node("a"); a.Plan == nil {
		t.Error("the node of a deleted cluster is told nothing more, though it runs")
	}
	w.restart()
	w.cluster("there after a restart", func(c *v1alpha1.Cluster) bool { return c.Status.Phase == v1alpha1.ClusterReleasing })
	w.act("a", func(s *v1alpha1.MachineStatus) { s.Installed, s.Identity = nil, nil })
	w.edit("a", func(s *v1alpha1.MachineSpec) { s.Approved, s.Intent = false, nil })
	w.until(func() bool {
		return client.IgnoreNotFound(w.client.Get(t.Context(), client.ObjectKeyFromObject(cluster), &v1alpha1.Cluster{})) == nil &&
			w.client.Get(t.Context(), client.ObjectKeyFromObject(cluster), &v1alpha1.Cluster{}) != nil
	}, func() string { return "the cluster stays" })
	kept := &v1alpha1.Secret{}
	check(t, w.client.Get(t.Context(), client.ObjectKey{Name: members.ArchiveName(cluster)}, kept))
	if !maps.EqualFunc(kept.Data, keys.Data, bytes.Equal) || w.client.Get(t.Context(), client.ObjectKeyFromObject(keys), keys) == nil {
		t.Error("its keys were not put aside")
	}
	w.until(func() bool { a, _ := w.clusters.Node("a"); return a.Plan == nil }, func() string { return "a released machine has a plan" })
}

// factsOf is a cluster of one control-plane machine and two workers, all ready.
func factsOf(t *testing.T) (*v1alpha1.Cluster, *clusterFacts) {
	t.Helper()
	cluster, groups, err := kube.Preset(v1alpha1.TopologyDevelopment, kube.PresetOptions{Name: "rack", Workers: 2})
	check(t, err)
	s := members.Situation{Cluster: cluster, Groups: groups}
	f := &clusterFacts{now: time.Unix(1000, 0), groups: groups, machines: map[string]*v1alpha1.Machine{},
		view: members.View{Plan: &kube.Plan{Endpoint: "https://x", Objects: []kube.Object{{Name: "o"}}}}}
	f.api = &kubeapi.State{Reachable: true, Nodes: map[string]kubeapi.NodeState{}, Objects: kubeapi.ObjectsState{Digest: kubeapi.Digest(f.view.Plan.Objects), Count: 1},
		Addons: []kubeapi.AddonState{{Kind: "deployment", Namespace: "kube-system", Name: "coredns", Ready: true, Message: "2 of 2 ready"}}}
	for i, name := range []string{"a", "b", "c"} {
		m := v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MachineSpec{Approved: true, Network: &v1alpha1.MachineNetwork{Address: fmt.Sprintf("10.0.0.%d", i+1)}}}
		m.Status.Phase, m.Status.Installed = v1alpha1.PhaseReady, &v1alpha1.InstalledStatus{}
		m.Status.Kubernetes = &v1alpha1.KubernetesStatus{Cluster: "rack", Version: "v1.37.2", Done: true}
		s.Machines = append(s.Machines, m)
		f.machines[name] = &m
		f.api.Nodes[name] = kubeapi.NodeState{Name: name, Ready: true, Since: time.Unix(900, 0)}
	}
	f.decision, err = members.Decide(s)
	check(t, err)
	f.nodes = f.decision.Nodes
	return cluster, f
}

func TestClusterStatus(t *testing.T) {
	notReady := func(f *clusterFacts, name string) {
		f.api.Nodes[name] = kubeapi.NodeState{Name: name, Since: time.Unix(950, 0), Reason: "NodeStatusUnknown", Message: "Kubelet stopped posting node status."}
	}
	for _, test := range []struct {
		name string
		// before says whether the cluster was all ready before.
		before bool
		change func(c *v1alpha1.Cluster, f *clusterFacts)
		phase  v1alpha1.ClusterPhase
		nodes  string
		want   string
	}{
		{"everything is ready", false, func(*v1alpha1.Cluster, *clusterFacts) {}, v1alpha1.ClusterReady, "3/3", ""},
		{"a machine is not installed", false, func(_ *v1alpha1.Cluster, f *clusterFacts) {
			delete(f.api.Nodes, "c")
			f.machines["c"].Status = v1alpha1.MachineStatus{Phase: v1alpha1.PhaseInstalling, CurrentStep: "image 43%"}
		}, v1alpha1.ClusterBringUp, "2/3", "machine c is Installing image 43%"},
		{"the control plane is not installed", false, func(_ *v1alpha1.Cluster, f *clusterFacts) {
			f.api = nil
			f.machines["a"].Status = v1alpha1.MachineStatus{Phase: v1alpha1.PhaseInstalling}
		}, v1alpha1.ClusterPending, "0/3", "2 of 3 machines are installed"},
		{"a phase fails", false, func(_ *v1alpha1.Cluster, f *clusterFacts) {
			delete(f.api.Nodes, "b")
			f.machines["b"].Status.Kubernetes = &v1alpha1.KubernetesStatus{Phases: []v1alpha1.Step{{Name: "content", State: v1alpha1.StepFailed, Message: "disk full"}}}
		}, v1alpha1.ClusterBringUp, "2/3", "machine b: content failed: disk full"},
		{"the objects are not applied yet", false, func(_ *v1alpha1.Cluster, f *clusterFacts) {
			f.api.Objects = kubeapi.ObjectsState{Errors: []string{"Deployment coredns: forbidden"}}
		}, v1alpha1.ClusterBringUp, "3/3", "cannot apply Deployment coredns: forbidden"},
		{"nobody has looked at the addons yet", false, func(_ *v1alpha1.Cluster, f *clusterFacts) { f.api.Addons = nil }, v1alpha1.ClusterBringUp, "3/3", ""},
		{"an addon is not ready yet", false, func(_ *v1alpha1.Cluster, f *clusterFacts) {
			f.api.Addons[0].Ready, f.api.Addons[0].Message = false, "1 of 2 ready"
		}, v1alpha1.ClusterBringUp, "3/3", "coredns: 1 of 2 ready"},
		{"an addon is not ready any more", true, func(_ *v1alpha1.Cluster, f *clusterFacts) {
			f.api.Addons[0].Ready, f.api.Addons[0].Message = false, "1 of 2 ready"
		}, v1alpha1.ClusterReady, "3/3", "coredns: 1 of 2 ready"},
		{"a node is up but not ready", false, func(_ *v1alpha1.Cluster, f *clusterFacts) { notReady(f, "b") }, v1alpha1.ClusterBringUp, "2/3", "node b is up and not ready yet: Kubelet stopped"},
		{"a node that was ready is not", true, func(_ *v1alpha1.Cluster, f *clusterFacts) { notReady(f, "b") }, v1alpha1.ClusterDegraded, "2/3",
			"node b is not ready since 1970-01-01T00:15:50Z: Kubelet stopped posting node status."},
		{"a machine is lost", true, func(_ *v1alpha1.Cluster, f *clusterFacts) {
			f.machines["a"].Status.Phase, f.machines["a"].Status.Message = v1alpha1.PhaseLost, "no heartbeat"
		}, v1alpha1.ClusterDegraded, "3/3", "machine a is Lost: no heartbeat"},
		{"the API does not answer", true, func(_ *v1alpha1.Cluster, f *clusterFacts) {
			f.api = &kubeapi.State{Since: time.Unix(950, 0)}
		}, v1alpha1.ClusterDegraded, "3/3", "the cluster's API does not answer since 1970-01-01T00:15:50Z"},
		{"nothing is known since the server started", true, func(_ *v1alpha1.Cluster, f *clusterFacts) { f.api = nil }, v1alpha1.ClusterReady, "3/3", ""},
		{"the API answers, and nobody has read its nodes since the server started", true, func(_ *v1alpha1.Cluster, f *clusterFacts) {
			f.api = &kubeapi.State{Reachable: true, Since: time.Unix(950, 0)}
		}, v1alpha1.ClusterReady, "3/3", ""},
		{"a machine joins", true, func(_ *v1alpha1.Cluster, f *clusterFacts) {
			f.groups[1].Spec.Replicas = new(int32(3))
			m := f.machines["c"].DeepCopy()
			m.Name, m.Spec.Network.Address, m.Status.Kubernetes = "d", "10.0.0.4", nil
			f.machines["d"] = m
			f.nodes = append(slices.Clone(f.nodes), v1alpha1.ClusterNode{Machine: "d", Group: "rack-workers", NodeName: "d", Addresses: []string{"10.0.0.4"}})
		}, v1alpha1.ClusterReady, "3/4", "machine d has not begun"},
		{"it is paused", true, func(c *v1alpha1.Cluster, _ *clusterFacts) { c.Spec.Paused = true }, v1alpha1.ClusterReady, "3/3", "paused"},
		{"it is paused, and kubeadm changes a node", true, func(c *v1alpha1.Cluster, f *clusterFacts) {
			c.Spec.Paused = true
			f.machines["b"].Status.Kubernetes = &v1alpha1.KubernetesStatus{Cluster: c.Name, Done: true, Drift: []string{"/etc/kubernetes/manifests/kube-apiserver.yaml"}}
		}, v1alpha1.ClusterReady, "3/3", "leaves them so while it is paused: b: /etc/kubernetes/manifests/kube-apiserver.yaml"},
		{"somebody changes a node, which puts it back", true, func(c *v1alpha1.Cluster, f *clusterFacts) {
			f.machines["b"].Status.Kubernetes = &v1alpha1.KubernetesStatus{Cluster: c.Name, Done: true, Drift: []string{"/etc/a"}}
		}, v1alpha1.ClusterReady, "3/3", "they were put back: b: /etc/a"},
		{"an address was edited", true, func(_ *v1alpha1.Cluster, f *clusterFacts) { f.machines["b"].Spec.Network.Address = "10.0.0.9" }, v1alpha1.ClusterReady, "3/3",
			"spec.network.address is 10.0.0.9, and the cluster knows it by 10.0.0.2"},
		{"the writing is invalid", true, func(_ *v1alpha1.Cluster, f *clusterFacts) { f.invalid = "spec.version: no" }, v1alpha1.ClusterInvalid, "3/3", "spec.version: no"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, f := factsOf(t)
			if test.before {
				foldCluster(c, *f)
				f.nodes = slices.Clone(c.Status.Nodes)
			}
			test.change(c, f)
			foldCluster(c, *f)
			s := c.Status
			if s.Phase != test.phase || s.NodesReady != test.nodes || !strings.Contains(s.Message, test.want) || test.want == "" && s.Message != "" {
				t.Errorf("%s %s: %q, want %s %s: %q", s.Phase, s.NodesReady, s.Message, test.phase, test.nodes, test.want)
			}
			again := c.DeepCopy()
			f.nodes, f.now = again.Status.Nodes, f.now.Add(time.Hour)
			foldCluster(again, *f)
			if fmt.Sprintf("%+v", again.Status.Steps) != fmt.Sprintf("%+v", s.Steps) || again.Status.Message != s.Message {
				t.Errorf("without news, another status: %+v, was %+v", again.Status, s)
			}
		})
	}
}
