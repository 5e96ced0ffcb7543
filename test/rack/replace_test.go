package rack

import (
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
)

// TestWorkersAreReplaced rolls workers by replacement: nothing is done without a spare; with one, it joins before the first node leaves,
// and what left is the next one's spare. The server is killed in the middle.
func TestWorkersAreReplaced(t *testing.T) {
	t.Parallel()
	r := New(t, Options{})
	r.Cluster(Size{Etcd: 1, ControlPlanes: 1, Workers: 2}, swiftly, func(o *ClusterObjects) {
		for i := range o.Groups {
			if g := &o.Groups[i]; g.HasRole(v1alpha1.RoleWorker) {
				g.Spec.Rollout.MaxSurge = new(intstr.FromInt32(1))
				g.Spec.WhenRemoved = v1alpha1.RemovedToSpare
			}
		}
	})
	r.PowerOn()
	r.AwaitReady()
	r.update(r.cluster+"-workers", &v1alpha1.MachineGroup{}, func(o client.Object) {
		o.(*v1alpha1.MachineGroup).Spec.Kubelet.Config = &runtime.RawExtension{Raw: []byte(`{"maxPods": 99}`)}
	})
	r.AwaitCluster("not changed without a spare", func(c *v1alpha1.Cluster) bool {
		return c.Status.Work != nil && strings.Contains(strings.Join(c.Status.Work.Blocks, "\n"), "is rolled by replacement (rollout.maxSurge), and no spare fits it: 2 nodes wait")
	})
	r.Add("worker-3", "worker")
	r.PowerOn("worker-3")
	r.AwaitCluster("letting a spare join", func(c *v1alpha1.Cluster) bool { return len(c.Status.Nodes) == 5 })
	r.Server().Restart()
	most := 0
	r.AwaitCluster("of replaced workers", func(c *v1alpha1.Cluster) bool {
		working, old := 0, false
		for _, n := range c.Status.Nodes {
			if strings.HasPrefix(n.Machine, "worker-") && n.Ready && (n.Hand == nil || n.Hand.Operation != "leave") {
				working++
			}
			old = old || n.Machine == "worker-2"
		}
		if working < 2 {
			t.Errorf("only %d workers work", working)
		}
		most = max(most, len(c.Status.Nodes))
		return !old && c.Status.Phase == v1alpha1.ClusterReady && c.Status.Work == nil && c.Status.ObservedGeneration == c.Generation
	})
	if most > 5 {
		t.Errorf("%d nodes at once, one more than wanted is allowed", most)
	}
	const want = "control-1 ;etcd-1 ;worker-1 ;worker-3 ;"
	r.Await("the API has the nodes "+want, func() (bool, string) {
		nodes := r.Kubectl("get", "nodes", "-o", "jsonpath={range .items[*]}{.metadata.name} {.spec.unschedulable};{end}")
		return nodes == want, nodes // worker-2's kubelet may have registered once more before the machine was wiped
	})
	// worker-1 left and came back under its name.
	networks := ""
	c := &v1alpha1.Cluster{}
	if err := r.server.Get(r.cluster, c); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Status.Nodes {
		networks += n.NodeName + " " + strings.Join(n.PodCIDRs, ",") + ";"
	}
	if is := r.Kubectl("get", "nodes", "-o", "jsonpath={range .items[*]}{.metadata.name} {.spec.podCIDR};{end}"); is != networks {
		t.Errorf("the nodes have pod networks %s, recorded are %s", is, networks)
	}
	r.tellHistory()
}

// TestAnImageRolls changes the operating system of all machines under load: they are installed anew one after another, members of etcd
// leave and come back. An image that no bundle has changes nothing.
func TestAnImageRolls(t *testing.T) {
	if os.Getenv("COLDRACK_RACK_IMAGE") == "" {
		t.Skip("runs with: make rack-image")
	}
	t.Parallel()
	r := New(t, Options{VirtualIP: true})
	r.Cluster(Size{Etcd: 3, ControlPlanes: 2, Workers: 1}, swiftly)
	r.PowerOn()
	r.AwaitReady()
	outside := r.ClientAtVirtualIP()
	image := func(name string) {
		r.update("default", &v1alpha1.Profile{}, func(o client.Object) { o.(*v1alpha1.Profile).Spec.Image = name })
	}
	image("debian-99")
	r.AwaitCluster("blocked by an image that there is not", func(c *v1alpha1.Cluster) bool {
		return inHand(c) == "" && c.Status.Work != nil && strings.Contains(strings.Join(c.Status.Work.Blocks, "\n"), "image debian-99 (profile default), which no imported bundle has")
	})
	image(nextSystem)
	r.AwaitCluster("installing a member anew", func(c *v1alpha1.Cluster) bool {
		return strings.HasPrefix(inHand(c), "etcd-") && !memberOf(c, inHand(c))
	})
	r.Server().Restart()
	most := r.awaitRolled(func(machine string) bool {
		m := &v1alpha1.Machine{}
		return r.server.Get(machine, m) == nil && m.Status.Installed != nil && m.Status.Installed.Image == nextSystem
	})
	if most > 1 {
		t.Errorf("%d servers were in hand at once", most)
	}
	r.awaitMembers("etcd-1", "etcd-2", "etcd-3")
	r.AwaitReady()
	loss := outside.Stop()
	t.Logf("through the virtual IP: %s", loss)
	if loss.Lost > 4 {
		t.Errorf("%d requests were lost", loss.Lost)
	}
	r.tellHistory()
}
