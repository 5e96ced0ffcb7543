package rack

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
)

// TestAClusterAndItsPower takes seven machines with nothing on their disks to a cluster, and then takes power and cables
// from them. Through all of it the API answers wherever a majority of etcd is left, and keeps what it has acknowledged.
func TestAClusterAndItsPower(t *testing.T) {
	t.Parallel()
	r := New(t, Options{VirtualIP: true})
	r.Cluster(Size{Etcd: 3, ControlPlanes: 2, Workers: 2})
	began := time.Now()
	r.PowerOn()
	t.Logf("installed after %.1f s", time.Since(began).Seconds())
	r.AwaitReady()
	t.Logf("from nothing to Ready: %.1f s", time.Since(began).Seconds())
	r.isAsPlanned()

	step := func(name string, do func(t *testing.T)) {
		t.Helper()
		if !t.Run(name, func(t *testing.T) {
			began := time.Now()
			do(t)
			t.Logf("took %.1f s", time.Since(began).Seconds())
		}) {
			t.FailNow() // what follows would only fail, too
		}
	}
	step("a control plane loses its power", func(t *testing.T) {
		inside, outside := r.ClientAtBalancer("worker-1"), r.ClientAtVirtualIP()
		holder, before := r.virtualIPHolder(), r.boots()
		holder.PowerCut()
		inside.AwaitAnswers(100)
		outside.AwaitAnswers(100)
		holder.PowerOn()
		r.AwaitBack(before, holder.Name())
		t.Logf("through the balancer: %s", inside.Stop())
		t.Logf("through the virtual IP: %s", outside.Stop())
	})
	step("the leader of etcd loses its power", func(t *testing.T) {
		inside := r.ClientAtBalancer("worker-1")
		leader, before := r.etcdLeader(), r.boots()
		leader.PowerCut()
		inside.AwaitAnswers(50)
		leader.PowerOn()
		r.AwaitBack(before, leader.Name())
		t.Logf("through the balancer: %s", inside.Stop())
	})
	step("a control plane loses its cable", func(t *testing.T) {
		inside, outside := r.ClientAtBalancer("worker-1"), r.ClientAtVirtualIP()
		holder := r.virtualIPHolder()
		holder.LinkDown()
		inside.AwaitAnswers(100)
		outside.AwaitAnswers(100)
		holder.LinkUp()
		r.AwaitReady()
		r.virtualIPHolder() // and nobody else
		t.Logf("through the balancer: %s", inside.Stop())
		t.Logf("through the virtual IP: %s", outside.Stop())
	})
	step("a worker loses its power", func(t *testing.T) {
		before := r.boots()
		r.Machine("worker-2").PowerCut()
		r.AwaitCluster("degraded", func(c *v1alpha1.Cluster) bool {
			return c.Status.Phase == v1alpha1.ClusterDegraded && strings.Contains(c.Status.Message, "worker-2")
		})
		r.awaitNotReady("worker-2")
		r.Machine("worker-2").PowerOn()
		r.AwaitBack(before, "worker-2")
	})
	step("all lose their power at once", func(t *testing.T) {
		r.Kubectl("create", "configmap", "written-before", "--from-literal=is=there")
		before := r.boots()
		r.PowerCut()
		r.AwaitCluster("degraded", func(c *v1alpha1.Cluster) bool { return c.Status.Phase == v1alpha1.ClusterDegraded })
		light := time.Now()
		r.PowerOn()
		r.AwaitBack(before)
		t.Logf("Ready %.1f s after the light came back", time.Since(light).Seconds())
		if is := r.Kubectl("get", "configmap", "written-before", "-o", "jsonpath={.data.is}"); is != "there" {
			t.Errorf("the ConfigMap that was written before says %q", is)
		}
	})
}

// etcdLeader is the member that leads now.
func (r *Rack) etcdLeader() (leader *Machine) {
	r.t.Helper()
	r.Await("etcd has a leader", func() (bool, string) {
		for _, m := range r.Machines() {
			if out, err := m.Run("curl", "--silent", "http://127.0.0.1:2381/metrics"); err == nil && strings.Contains(out, "\netcd_server_is_leader 1\n") {
				leader = m
				return true, m.Name()
			}
		}
		return false, ""
	})
	return leader
}

func (r *Rack) boots() map[string]string {
	r.t.Helper()
	boots, err := r.Boots()
	if err != nil {
		r.t.Fatal(err)
	}
	return boots
}

// isAsPlanned compares the nodes and groups with what the server has decided.
func (r *Rack) isAsPlanned() {
	r.t.Helper()
	c := &v1alpha1.Cluster{}
	if err := r.server.Get(r.cluster, c); err != nil {
		r.t.Fatal(err)
	}
	want := fmt.Sprintf("%d/%[1]d", len(r.machines))
	if c.Status.NodesReady != want || c.Status.Message != "" || len(c.Status.Nodes) != len(r.machines) {
		r.t.Errorf("the ready cluster has %s of %d nodes, want %s, and says %q", c.Status.NodesReady, len(c.Status.Nodes), want, c.Status.Message)
	}
	out := r.Kubectl("get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.labels.coldrack\.dev/machine} {.spec.podCIDR}{"\n"}{end}`)
	for _, n := range c.Status.Nodes {
		if line := fmt.Sprintf("%s %s %s\n", n.NodeName, n.Machine, n.PodCIDRs[0]); !strings.Contains(out, line) {
			r.t.Errorf("the nodes are\n%swant among them %s", out, line)
		}
	}
	r.Await("groups", func() (bool, string) {
		var seen []string
		complete := true
		for _, name := range []string{"etcd", "control", "workers"} {
			g := &v1alpha1.MachineGroup{}
			if err := r.server.Get(r.cluster+"-"+name, g); err != nil {
				return false, err.Error()
			}
			seen = append(seen, fmt.Sprintf("%s %d of %d", name, g.Status.ReadyReplicas, g.WantedReplicas()))
			complete = complete && int(g.Status.ReadyReplicas) == g.WantedReplicas()
		}
		return complete, strings.Join(seen, ", ")
	})
}

// virtualIPHolder is the machine that has the API's virtual address, once exactly one has.
func (r *Rack) virtualIPHolder() (holder *Machine) {
	r.t.Helper()
	r.Await("one machine has the virtual IP", func() (bool, string) {
		var with []string
		for _, m := range r.Machines() {
			if m.CarriesVirtualIP() {
				with, holder = append(with, m.Name()), m
			}
		}
		return len(with) == 1, strings.Join(with, ", ")
	})
	return holder
}

// awaitNotReady waits until Kubernetes has noticed that a node is gone.
func (r *Rack) awaitNotReady(node string) {
	r.t.Helper()
	r.Await(node+" is missed", func() (bool, string) {
		ready, err := r.ReadyNodes()
		return err == nil && !slices.Contains(ready, node), fmt.Sprint(ready, err)
	})
}

// TestTheServerDiesDuringBringUp kills the server while machines are installed, while they are brought up, and when the
// API answers but is not yet as it should be.
func TestTheServerDiesDuringBringUp(t *testing.T) {
	t.Parallel()
	r := New(t, Options{})
	r.Cluster(Size{Etcd: 1, ControlPlanes: 1, Workers: 1})
	moments := map[string]func(c *v1alpha1.Cluster) bool{
		"a machine is being installed": func(*v1alpha1.Cluster) bool {
			m := &v1alpha1.Machine{}
			return r.server.Get("control-1", m) == nil && m.Status.Phase != v1alpha1.PhaseExpected
		},
		"bring-up has begun": func(c *v1alpha1.Cluster) bool { return c.Status.Phase == v1alpha1.ClusterBringUp },
		"the API answers": func(c *v1alpha1.Cluster) bool {
			return c.Status.Phase == v1alpha1.ClusterBringUp && c.Status.NodesReady != "" && !strings.HasPrefix(c.Status.NodesReady, "0/")
		},
	}
	var on sync.WaitGroup
	on.Go(func() { r.PowerOn() })
	for _, moment := range []string{"a machine is being installed", "bring-up has begun", "the API answers"} {
		r.AwaitCluster(moment, func(c *v1alpha1.Cluster) bool {
			return moments[moment](c) || c.Status.Phase == v1alpha1.ClusterReady
		})
		r.Server().Restart()
	}
	on.Wait()
	r.AwaitReady()

	// A server that starts beside a cluster which is well never says otherwise, not even before it has read everything.
	applied := func() int {
		b, _ := os.ReadFile(r.server.logFile)
		return strings.Count(string(b), `msg="cluster objects applied"`)
	}
	before := applied()
	r.Server().Restart()
	r.Await("the server has looked at the cluster", func() (bool, string) {
		done := applied() > before
		c := &v1alpha1.Cluster{}
		if err := r.server.Get(r.cluster, c); err != nil {
			t.Error(err)
		}
		if c.Status.Phase != v1alpha1.ClusterReady || c.Status.NodesReady != "3/3" {
			t.Errorf("after the server's start the cluster is %s, %s: %s", c.Status.Phase, c.Status.NodesReady, c.Status.Message)
			return true, ""
		}
		return done, ""
	})
}

// TestTheReleaseBefore brings up the release that clusters are upgraded from.
func TestTheReleaseBefore(t *testing.T) {
	t.Parallel()
	versions := kube.KnownVersions()
	before, _ := kube.ParseVersion(versions[len(versions)-2])
	r := New(t, Options{Kubernetes: fmt.Sprintf("1.%d", before.Minor)})
	r.Cluster(Size{Etcd: 1, ControlPlanes: 1, Workers: 1})
	r.PowerOn()
	r.AwaitReady()
	if out := r.Kubectl("get", "--raw", "/version"); !strings.Contains(out, before.String()) {
		t.Errorf("the API server says that it is %s, want %s", out, before)
	}
}
