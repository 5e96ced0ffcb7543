package rack

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
)

// TestNodesAreMended: a window that is closed holds reboots that nodes ask for; in an open one each gets its turn alone. A worker that dies is
// switched off and on by its BMC; two at once are left alone, and that is said; one without a BMC is replaced by a spare.
func TestNodesAreMended(t *testing.T) {
	t.Parallel()
	r := New(t, Options{})
	// A machine that has lost its power is Lost to the server before it is broken to the cluster, as with the defaults.
	r.Cluster(Size{Etcd: 1, ControlPlanes: 1, Workers: 3}, swiftly, func(o *ClusterObjects) {
		for i := range o.Groups {
			o.Groups[i].Spec.Remediation = v1alpha1.RemediationSpec{Enabled: true, NotReadyFor: new(seconds(8)), Pause: new(seconds(1)),
				MaxUnhealthy: new(intstr.FromInt32(1)), Replace: true}
		}
	})
	r.PowerOn()
	r.GiveBMC("worker-1", "worker-2")
	r.AwaitReady()
	step := func(name string, do func(t *testing.T)) {
		t.Helper()
		if !t.Run(name, do) {
			t.FailNow()
		}
	}
	step("reboots wait for a window, and go one after another", r.rebootsThatNodesAskFor)
	step("a worker that dies is switched off and on", func(t *testing.T) {
		before, err := r.Boots()
		if err != nil {
			t.Fatal(err)
		}
		r.Machine("worker-1").PowerCut()
		r.AwaitBack(before, "worker-1")
		r.awaitHistory("power-cycle", "worker-1")
	})
	step("two that die at once are left alone", func(t *testing.T) {
		r.remediation(false) // until the cluster has missed both
		r.PowerCut("worker-1", "worker-2")
		r.AwaitCluster("missing both", func(c *v1alpha1.Cluster) bool {
			missed := 0
			for _, n := range c.Status.Nodes {
				if !n.Ready {
					missed++
				}
			}
			return missed == 2
		})
		r.remediation(true)
		r.AwaitCluster("left alone", func(c *v1alpha1.Cluster) bool {
			return c.Status.Work != nil && strings.Contains(strings.Join(c.Status.Work.Blocks, "\n"), "2 nodes of group rack-workers are not ready, more than 1")
		})
		if out := r.Server().Run("cluster", "history", r.cluster); !strings.Contains(out, "refuse") || !strings.Contains(out, "that is rather the network") {
			t.Errorf("the history does not say so:\n%s", out)
		}
		r.PowerOn("worker-1", "worker-2")
		r.AwaitReady()
	})
	step("one without a BMC is replaced by a spare", func(t *testing.T) {
		r.Add("worker-4", "worker")
		r.PowerOn("worker-4")
		r.awaitMachine("worker-4", "ready", func(m *v1alpha1.Machine) bool { return m.Status.Phase == v1alpha1.PhaseReady })
		r.Machine("worker-3").PowerCut()
		r.awaitHistory("replace", "worker-3")
		r.awaitGone("worker-3")
		ready, err := r.ReadyNodes()
		if err != nil || !slices.Contains(ready, "worker-4") {
			t.Errorf("ready are %v, %v", ready, err)
		}
	})
	t.Log(r.Server().Run("cluster", "history", r.cluster))
}

// remediation of workers is switched on or off.
func (r *Rack) remediation(on bool) {
	r.t.Helper()
	r.update(r.cluster+"-workers", &v1alpha1.MachineGroup{}, func(o client.Object) { o.(*v1alpha1.MachineGroup).Spec.Remediation.Enabled = on })
}

// rebootsThatNodesAskFor has two operating systems and a person ask for reboots.
func (r *Rack) rebootsThatNodesAskFor(t *testing.T) {
	before, err := r.Boots()
	if err != nil {
		t.Fatal(err)
	}
	window := func(windows ...v1alpha1.MaintenanceWindow) {
		r.update(r.cluster, &v1alpha1.Cluster{}, func(o client.Object) { o.(*v1alpha1.Cluster).Spec.MaintenanceWindows = windows })
	}
	window(v1alpha1.MaintenanceWindow{From: time.Now().UTC().Add(2 * time.Hour).Format("15:04"), Duration: new(seconds(3600))})
	for _, name := range []string{"worker-1", "worker-2"} {
		r.Machine(name).write("run/reboot-required.pkgs", "libc6\n")
		r.Machine(name).write("run/reboot-required", "")
	}
	r.Server().Run("reboot", "worker-3", "--reason", "new firmware")
	r.AwaitCluster("waiting for its window", func(c *v1alpha1.Cluster) bool {
		w := c.Status.Work
		return w != nil && w.NextWindow != nil && len(w.Steps) == 0 && len(w.Waits) == 3 &&
			strings.Contains(c.Status.Message, "changes wait for the maintenance window that opens")
	})
	r.awaitMachine("worker-1", "said to be due for a reboot", func(m *v1alpha1.Machine) bool {
		return strings.Contains(m.Status.Message, "a reboot is due: required by libc6")
	})
	if now, err := r.Boots(); err != nil || fmt.Sprint(now) != fmt.Sprint(before) {
		t.Errorf("something has rebooted: %v, %v, %v", before, now, err)
	}
	window()
	most := 0
	r.AwaitCluster("done with its reboots", func(c *v1alpha1.Cluster) bool {
		inHand, rebooted := 0, 0
		for _, n := range c.Status.Nodes {
			if n.Hand != nil {
				inHand++
			}
			if n.Rebooted != nil {
				rebooted++
			}
		}
		most = max(most, inHand)
		return rebooted == 3 && c.Status.Work == nil && c.Status.Phase == v1alpha1.ClusterReady
	})
	if most != 1 {
		t.Errorf("%d nodes were in hand at once", most)
	}
	r.AwaitBack(before, "worker-1", "worker-2", "worker-3")
	for _, node := range r.must(r.nodes()) {
		if node.Spec.Unschedulable {
			t.Errorf("%s is still cordoned", node.Name)
		}
	}
	r.awaitHistory("drain", "worker-3")
}

// awaitHistory waits until a step of a machine has ended.
func (r *Rack) awaitHistory(kind, machine string) {
	r.t.Helper()
	r.AwaitCluster("said to have seen the "+kind+" of "+machine, func(c *v1alpha1.Cluster) bool {
		return slices.ContainsFunc(c.Status.History, func(s v1alpha1.ClusterWorkStep) bool { return s.Kind == kind && s.Node == machine && s.Error == "" })
	})
}

// write makes a file in the machine as its programs see it.
func (m *Machine) write(path, text string) {
	m.r.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process == nil {
		m.r.t.Fatalf("%s does not run", m.name)
	}
	if err := os.WriteFile(filepath.Join("/proc", fmt.Sprint(m.process.Process.Pid), "root", path), []byte(text), 0o644); err != nil {
		m.r.t.Fatal(err)
	}
}
