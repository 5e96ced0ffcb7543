package rack

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/contract/wire"
)

// TestWorkersComeAndGo lowers and raises the number of workers. A budget that cannot be kept holds the drain and is named; a
// server that dies in the middle goes on where it was; the machine that left is wiped, and can come again.
func TestWorkersComeAndGo(t *testing.T) {
	t.Parallel()
	r := New(t, Options{})
	r.Cluster(Size{Etcd: 1, ControlPlanes: 1, Workers: 2}, swiftly)
	r.PowerOn()
	r.AwaitReady()
	r.Kubectl("create", "deployment", "web", "--image=example.org/web:1", "--replicas=4")
	r.Kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	r.Kubectl("create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=4")
	inside := r.ClientAtBalancer("worker-1")

	r.scale("workers", 1)
	r.AwaitCluster("held up by a budget", func(c *v1alpha1.Cluster) bool {
		return c.Status.Work != nil && strings.Contains(strings.Join(c.Status.Work.Blocks, "\n"), "PodDisruptionBudget default/web never allows to evict pod default/web-")
	})
	if nodes := r.Kubectl("get", "nodes", "-o", "name"); !strings.Contains(nodes, "worker-2") {
		t.Errorf("the budget holds, and the nodes are %s", nodes)
	}
	r.Kubectl("delete", "poddisruptionbudget", "web")
	r.Kubectl("create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=3")
	r.AwaitCluster("draining", func(c *v1alpha1.Cluster) bool { return hand(c, "worker-2") != nil || len(c.Status.Nodes) == 3 })
	r.Server().Restart()
	r.awaitGone("worker-2")
	r.Kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	if on := r.Kubectl("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}"); strings.Contains(on, "worker-2") {
		t.Errorf("pods run on %s", on)
	}
	r.awaitMachine("worker-2", "wiped and no longer approved", func(m *v1alpha1.Machine) bool {
		return !m.Spec.Approved && m.Status.Installed == nil && m.Status.Phase == v1alpha1.PhaseReleased
	})
	t.Logf("through the balancer: %s", inside.Stop())
	r.tellHistory()

	r.scale("workers", 2)
	r.update("worker-2", &v1alpha1.Machine{}, func(o client.Object) { o.(*v1alpha1.Machine).Spec.Approved = true })
	r.AwaitReady()
}

// swiftly has changed nodes count as healthy soon.
func swiftly(o *ClusterObjects) {
	for i := range o.Groups {
		o.Groups[i].Spec.Rollout.HealthyFor = new(seconds(2))
	}
}

// hand is what is done to a machine's node.
func hand(c *v1alpha1.Cluster, machine string) *v1alpha1.NodeHand {
	for i := range c.Status.Nodes {
		if c.Status.Nodes[i].Machine == machine {
			return c.Status.Nodes[i].Hand
		}
	}
	return nil
}

// scale changes how many machines a group of the cluster wants.
func (r *Rack) scale(group string, replicas int32) {
	r.t.Helper()
	r.update(r.cluster+"-"+group, &v1alpha1.MachineGroup{}, func(o client.Object) { o.(*v1alpha1.MachineGroup).Spec.Replicas = &replicas })
}

// awaitGone waits until a machine is no node any more, and the cluster is as it should be without it.
func (r *Rack) awaitGone(machine string) {
	r.t.Helper()
	r.AwaitCluster("without "+machine, func(c *v1alpha1.Cluster) bool {
		for _, n := range c.Status.Nodes {
			if n.Machine == machine {
				return false
			}
		}
		return c.Status.Phase == v1alpha1.ClusterReady && c.Status.Work == nil
	})
	r.Await("the API is without "+machine, func() (bool, string) {
		nodes := r.Kubectl("get", "nodes", "-o", "name") // its kubelet may have registered once more before the machine was wiped
		return !strings.Contains(nodes, machine), nodes
	})
}

func (r *Rack) awaitMachine(name, what string, is func(*v1alpha1.Machine) bool) {
	r.t.Helper()
	r.Await(name+" is "+what, func() (bool, string) {
		m := &v1alpha1.Machine{}
		if err := r.server.Get(name, m); err != nil {
			return false, err.Error()
		}
		return is(m), fmt.Sprintf("%s %s", m.Status.Phase, m.Status.Message)
	})
}

// tellHistory logs what was done to the cluster.
func (r *Rack) tellHistory() {
	r.t.Helper()
	c := &v1alpha1.Cluster{}
	if err := r.server.Get(r.cluster, c); err != nil {
		r.t.Fatal(err)
	}
	for _, step := range c.Status.History {
		r.t.Logf("%s %s %s: %s %s", step.FinishedAt.UTC().Format("15:04:05"), step.Node, step.Kind, step.Reason, step.Error)
	}
}

// TestMembersComeAndGo grows etcd from one member to three and shrinks it again, replaces a member whose machine is dead by a
// spare, and has one installed anew, while a client writes and reads all the time. The server is killed in the middle of each.
func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	r := New(t, Options{})
	r.Cluster(Size{Etcd: 1, ControlPlanes: 2, Workers: 1}, swiftly)
	r.PowerOn()
	r.AwaitReady()
	inside := r.ClientAtBalancer("worker-1")
	step := func(name string, do func(t *testing.T)) {
		t.Helper()
		if !t.Run(name, do) {
			t.FailNow()
		}
		t.Logf("%s: %s", name, inside.Loss())
	}

	step("from one to three", func(t *testing.T) {
		r.Add("etcd-2", "etcd")
		r.Add("etcd-3", "etcd")
		r.scale("etcd", 3)
		r.PowerOn("etcd-2", "etcd-3")
		r.AwaitCluster("adding a member", func(c *v1alpha1.Cluster) bool { return memberOf(c, "etcd-2") || memberOf(c, "etcd-3") })
		r.Server().Restart()
		r.awaitMembers("etcd-1", "etcd-2", "etcd-3")
		r.AwaitReady()
	})
	step("a dead member is replaced by a spare, by name", func(t *testing.T) {
		r.Machine("etcd-2").PowerCut()
		r.awaitNotReady("etcd-2")
		r.Add("etcd-4", "etcd")
		r.PowerOn("etcd-4")
		r.Server().Run("release", "etcd-2", "--yes")
		r.AwaitCluster("without etcd-2", func(c *v1alpha1.Cluster) bool { return !memberOf(c, "etcd-2") })
		r.Server().Restart()
		r.awaitMembers("etcd-1", "etcd-3", "etcd-4")
	})
	step("a member is installed anew and comes back under its name", func(t *testing.T) {
		r.Server().Run("reinstall", "etcd-3", "--yes")
		r.AwaitCluster("without the member of etcd-3", func(c *v1alpha1.Cluster) bool { return !memberOf(c, "etcd-3") })
		r.Server().Restart()
		r.awaitMembers("etcd-1", "etcd-3", "etcd-4")
		r.AwaitCluster("ready", func(c *v1alpha1.Cluster) bool { return c.Status.Phase == v1alpha1.ClusterReady && c.Status.Work == nil })
	})
	step("from three to one", func(t *testing.T) {
		if out, err := r.Server().Try("cluster", "scale", r.cluster, "etcd", "2"); err == nil || !strings.Contains(out, "tolerate no more failures") {
			t.Errorf("two members: %v %s", err, out)
		}
		r.Server().Run("cluster", "scale", r.cluster, "etcd", "1")
		r.AwaitCluster("a member less", func(c *v1alpha1.Cluster) bool {
			return !(memberOf(c, "etcd-1") && memberOf(c, "etcd-3") && memberOf(c, "etcd-4"))
		})
		r.Server().Restart()
		r.AwaitCluster("of one member", func(c *v1alpha1.Cluster) bool {
			members := 0
			for _, n := range c.Status.Nodes {
				if n.Etcd != nil {
					members++
				}
			}
			return members == 1 && len(c.Status.Nodes) == 4 && c.Status.Phase == v1alpha1.ClusterReady && c.Status.Work == nil
		})
	})
	loss := inside.Stop()
	t.Logf("through the balancer: %s", loss)
	if loss.Lost > 0 {
		t.Errorf("%d requests were lost", loss.Lost)
	}
	t.Log(r.Server().Run("cluster", "history", r.cluster))
}

// memberOf says whether a machine is recorded to hold a member of etcd.
func memberOf(c *v1alpha1.Cluster, machine string) bool {
	for _, n := range c.Status.Nodes {
		if n.Machine == machine {
			return n.Etcd != nil
		}
	}
	return false
}

// awaitMembers waits until etcd itself says that exactly the machines' members vote.
func (r *Rack) awaitMembers(names ...string) {
	r.t.Helper()
	var want []string
	for _, name := range names {
		want = append(want, name+" started false")
	}
	r.Await("etcd has the members "+strings.Join(names, ", "), func() (bool, string) {
		is := r.members()
		return strings.Join(is, "; ") == strings.Join(want, "; "), strings.Join(is, "; ")
	})
}

// members as etcd lists them: name, whether it has started, and whether it is a learner.
func (r *Rack) members() []string {
	for _, m := range r.Machines() {
		if m.pool != "etcd" {
			continue
		}
		pki := m.disk + "/etc/kubernetes/pki/"
		out, err := m.Run("curl", "--silent", "--fail", "--max-time", "5", "--cacert", pki+"etcd/ca.crt", "--cert", pki+"etcd/server.crt", "--key", pki+"etcd/server.key",
			"-d", "{}", "https://127.0.0.1:2379/v3/cluster/member/list")
		if err != nil {
			continue
		}
		var list struct {
			Members []struct {
				Name      string `json:"name"`
				IsLearner bool   `json:"isLearner"`
			} `json:"members"`
		}
		if json.Unmarshal([]byte(out), &list) != nil {
			continue
		}
		var is []string
		for _, m := range list.Members {
			state := "started"
			if m.Name == "" {
				state = "not started"
			}
			is = append(is, fmt.Sprintf("%s %s %t", m.Name, state, m.IsLearner))
		}
		slices.Sort(is)
		return is
	}
	return []string{"none answers"}
}

// TestAChangeRolls changes flags of the API servers and settings of the kubelets of a cluster under load: one server after the other,
// and workers after one that tries it. A change that the API server refuses stops at the first one, which goes back by itself.
func TestAChangeRolls(t *testing.T) {
	t.Parallel()
	r := New(t, Options{VirtualIP: true})
	r.Cluster(Size{Etcd: 3, ControlPlanes: 2, Workers: 2}, swiftly, func(o *ClusterObjects) {
		for i := range o.Groups {
			o.Groups[i].Spec.Rollout.RollBack, o.Groups[i].Spec.Rollout.ChangeTimeout = true, new(seconds(240))
		}
	})
	r.PowerOn()
	r.AwaitReady()
	inside, outside := r.ClientAtBalancer("worker-1"), r.ClientAtVirtualIP()
	began := r.processes()

	t.Run("an API server's flag", func(t *testing.T) {
		r.update(r.cluster, &v1alpha1.Cluster{}, func(o client.Object) {
			o.(*v1alpha1.Cluster).Spec.APIServer.ExtraArgs = map[string]string{"max-requests-inflight": "555"}
		})
		most := r.awaitRolled(func(machine string) bool {
			return !strings.HasPrefix(machine, "control-") || strings.Contains(r.commandOf(machine, "kube-apiserver"), "--max-requests-inflight=555")
		})
		if most > 1 {
			t.Errorf("%d nodes were in hand at once", most)
		}
		for machine, since := range r.processes() {
			if restarted := since != began[machine]; restarted != strings.HasPrefix(machine, "control-") {
				t.Errorf("what %s runs was restarted: %t", machine, restarted)
			}
		}
	})
	t.Run("a flag that the API server does not take", func(t *testing.T) {
		r.update(r.cluster+"-control", &v1alpha1.MachineGroup{}, func(o client.Object) {
			o.(*v1alpha1.MachineGroup).Spec.Rollout.ChangeTimeout = new(seconds(60))
		})
		r.update(r.cluster, &v1alpha1.Cluster{}, func(o client.Object) {
			o.(*v1alpha1.Cluster).Spec.APIServer.ExtraArgs["feature-gates"] = "NoSuchGate=true"
		})
		r.AwaitCluster("stopped by a failure, and the node back", func(c *v1alpha1.Cluster) bool {
			return c.Status.Failure != nil && hand(c, c.Status.Failure.Node) == nil
		})
		for _, machine := range []string{"control-1", "control-2"} {
			if command := r.commandOf(machine, "kube-apiserver"); strings.Contains(command, "NoSuchGate") {
				t.Errorf("%s runs %s", machine, command)
			}
		}
		r.update(r.cluster, &v1alpha1.Cluster{}, func(o client.Object) { delete(o.(*v1alpha1.Cluster).Spec.APIServer.ExtraArgs, "feature-gates") })
		r.awaitRolled(func(string) bool { return true })
	})
	r.nothingLost(inside, outside)
	r.tellHistory()
}

// nothingLost ends clients. Who goes through a balancer must not have noticed anything but a second try. The virtual IP moves at each
// control plane: a request that is on its way then may be cut off, and no more than that.
func (r *Rack) nothingLost(balancer, virtual *Client) {
	r.t.Helper()
	r.t.Logf("through the balancer: %s", balancer.Stop())
	r.t.Logf("through the virtual IP: %s", virtual.Stop())
	if lost := balancer.Loss().Lost; lost > 0 {
		r.t.Errorf("%d requests through the balancer were lost", lost)
	}
	if lost := virtual.Loss().Lost; lost > 4 {
		r.t.Errorf("%d requests through the virtual IP were lost", lost)
	}
}

// TestUpgrade takes a cluster under load from the release before to the newest: etcd, then the control planes, then the workers, a
// server at a time. A machine that cannot fetch stops it before anything has changed. From when all have fetched, the server gives no
// content any more; it is killed in the middle, and is away while a worker changes.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	versions := kube.KnownVersions()
	before, _ := kube.ParseVersion(versions[len(versions)-2])
	newest := versions[len(versions)-1]
	r := New(t, Options{VirtualIP: true, Kubernetes: fmt.Sprintf("1.%d", before.Minor)})
	r.Cluster(Size{Etcd: 3, ControlPlanes: 2, Workers: 2}, swiftly)
	r.PowerOn()
	r.AwaitReady()
	r.Kubectl("create", "deployment", "web", "--image=example.org/web:1", "--replicas=4")
	r.Kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	r.Kubectl("create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=2")
	inside, outside := r.ClientAtBalancer("worker-1"), r.ClientAtVirtualIP()
	began := time.Now()
	hosts := filepath.Join(r.Machine("etcd-2").disk, "etc/containerd/certs.d/registry.k8s.io/hosts.toml")
	if err := os.Rename(hosts, hosts+".away"); err != nil {
		t.Fatal(err)
	}
	r.update(r.cluster, &v1alpha1.Cluster{}, func(o client.Object) { o.(*v1alpha1.Cluster).Spec.Version = newest })
	r.AwaitCluster("stopped by a machine that cannot fetch, when all others have", func(c *v1alpha1.Cluster) bool {
		if on := inHand(c); on != "" {
			t.Fatalf("%s is changed before every machine has what it needs", on)
		}
		w := c.Status.Work
		return w != nil && strings.Contains(strings.Join(w.Blocks, "\n"), "etcd-2: cannot fetch what "+newest+" needs: image registry.k8s.io/") &&
			len(w.Steps) == 1 && strings.HasPrefix(w.Steps[0].Message, "6 of 7 nodes have everything")
	})
	t.Log(r.Server().Run("cluster", "history", r.cluster))
	r.Server().Restart() // what was fetched is not fetched again
	if err := os.Rename(hosts+".away", hosts); err != nil {
		t.Fatal(err)
	}
	r.AwaitCluster("upgrading etcd", func(c *v1alpha1.Cluster) bool { return strings.HasPrefix(inHand(c), "etcd-") })
	t.Logf("everything was fetched %s after the upgrade was written", time.Since(began).Round(time.Second))
	r.Server().ContentAway()
	r.Server().Restart()
	r.AwaitCluster("changing a worker", func(c *v1alpha1.Cluster) bool {
		on := inHand(c)
		return strings.HasPrefix(on, "worker-") && hand(c, on).Changed && r.planned(on) == newest
	})
	r.Server().Kill()
	r.Await("a kubelet of the new version while the server is away", func() (bool, string) {
		seen := ""
		for _, node := range r.must(r.nodes()) {
			if is := node.Status.NodeInfo.KubeletVersion; strings.HasPrefix(node.Name, "worker-") {
				seen += " " + node.Name + " " + is
			}
		}
		return strings.Contains(seen, newest), seen
	})
	r.Server().Start()
	most := r.awaitRolled(func(machine string) bool { return true })
	r.pulledBefore(before.String(), newest)
	t.Logf("upgraded from %s to %s in %s", before, newest, time.Since(began).Round(time.Second))
	if most > 1 {
		t.Errorf("%d servers were in hand at once", most)
	}
	for _, node := range r.must(r.nodes()) {
		if is := node.Status.NodeInfo.KubeletVersion; is != newest {
			t.Errorf("the kubelet of %s is %s", node.Name, is)
		}
	}
	r.nothingLost(inside, outside)
	r.tellHistory()
}

// planned is the version of Kubernetes in the plan that a machine carries out.
func (r *Rack) planned(machine string) string {
	var saved wire.NodeAssignment
	b, err := os.ReadFile(filepath.Join(r.Machine(machine).disk, "var/lib/coldrack/kubernetes/assignment.json"))
	if err != nil || json.Unmarshal(b, &saved) != nil || saved.Plan == nil {
		return ""
	}
	return saved.Plan.KubernetesVersion
}

// pulledBefore finds images that came with a newer version and were pulled when a pod needed them, and not before.
func (r *Rack) pulledBefore(was, version string) {
	r.t.Helper()
	former, err1 := imagesOf(was)
	images, err2 := imagesOf(version)
	if err := errors.Join(err1, err2); err != nil {
		r.t.Fatal(err)
	}
	for _, m := range r.machines {
		b, err := os.ReadFile(filepath.Join(m.disk, "var/log/rack/pulls.log"))
		if err != nil {
			r.t.Error(err)
		}
		before := 0
		for line := range strings.Lines(string(b)) {
			fields := strings.Fields(line)
			switch {
			case fields[0] == "ctr":
				before++
			case slices.Contains(images, fields[1]) && !slices.Contains(former, fields[1]):
				r.t.Errorf("%s pulled %s when it changed", m.name, fields[1])
			}
		}
		if before == 0 {
			r.t.Errorf("%s has pulled nothing before:\n%s", m.name, b)
		}
	}
}

func (r *Rack) must(nodes []corev1.Node, err error) []corev1.Node {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
	return nodes
}

// inHand is a machine that the cluster has in hand, or nothing.
func inHand(c *v1alpha1.Cluster) string {
	for _, n := range c.Status.Nodes {
		if n.Hand != nil {
			return n.Machine
		}
	}
	return ""
}

// awaitRolled waits until a change has gone through the cluster and every machine is as it is to be, and returns how many of its
// servers were in hand at the same time at most.
func (r *Rack) awaitRolled(done func(machine string) bool) (most int) {
	r.t.Helper()
	r.AwaitCluster("rolled", func(c *v1alpha1.Cluster) bool {
		now := 0
		for _, n := range c.Status.Nodes {
			if n.Hand != nil && !strings.HasPrefix(n.Machine, "worker-") {
				now++
			}
		}
		most = max(most, now)
		if c.Status.Phase != v1alpha1.ClusterReady || c.Status.Work != nil || c.Status.ObservedGeneration != c.Generation {
			return false
		}
		for _, m := range r.machines {
			if !done(m.name) {
				return false
			}
		}
		return true
	})
	return most
}

// commandOf a static pod as the machine runs it; empty when it does not.
func (r *Rack) commandOf(machine, program string) string {
	r.t.Helper()
	for _, p := range r.programsOf(machine) {
		if strings.Contains(p.command, "/"+program+" ") {
			return p.command
		}
	}
	return ""
}

// processes say by machine which static pods run there, as processes with the times of their starts.
func (r *Rack) processes() map[string]string {
	r.t.Helper()
	all := map[string]string{}
	for _, m := range r.machines {
		var texts []string
		for _, p := range r.programsOf(m.name) {
			texts = append(texts, p.id)
		}
		slices.Sort(texts)
		all[m.name] = strings.Join(texts, " ")
	}
	return all
}

// process of a static pod.
type process struct{ id, command string }

// programsOf a machine are the processes in its network that come from an image.
func (r *Rack) programsOf(machine string) []process {
	r.t.Helper()
	m := r.Machine(machine)
	m.mu.Lock()
	ns := m.ns
	m.mu.Unlock()
	if ns == nil {
		return nil
	}
	own, err := os.Stat(ns.Path())
	if err != nil {
		r.t.Fatal(err)
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		r.t.Fatal(err)
	}
	var found []process
	for _, dir := range processes {
		network, err := os.Stat(dir + "/ns/net")
		if err != nil || !os.SameFile(own, network) {
			continue
		}
		b, err := os.ReadFile(dir + "/cmdline")
		if command := strings.ReplaceAll(string(b), "\x00", " "); err == nil && strings.Contains(command, "/rack/images/") {
			found = append(found, process{dir, command})
		}
	}
	return found
}
