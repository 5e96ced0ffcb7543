package machineapi

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/rebootlock"
	"coldrack.dev/internal/contract/wire"
)

// A person's word is enough for a machine of no cluster; a node of one is told when its turn has come; each only in the boot that is to end.
func TestWhoIsToldToReboot(t *testing.T) {
	s := newServer(t)
	set := members.New(members.Options{Programs: noPrograms{}})
	s.api.Clusters = set
	_, alone := s.installed(wire.Identifiers{MACs: []string{"52:54:00:00:00:01"}, UUID: "00000000-0000-4000-8000-000000000001"}, "i1")
	_, control := s.installed(wire.Identifiers{MACs: []string{"52:54:00:00:00:02"}, UUID: "00000000-0000-4000-8000-000000000002"}, "i2")
	_, worker := s.installed(wire.Identifiers{MACs: []string{"52:54:00:00:00:03"}, UUID: "00000000-0000-4000-8000-000000000003"}, "i3")
	r := clusterOf(t, "rack", control.name, worker.name)
	hand := func(h *v1alpha1.NodeHand) {
		r.Cluster = r.Cluster.DeepCopy()
		for i := range r.Cluster.Status.Nodes {
			if n := &r.Cluster.Status.Nodes[i]; n.Machine == worker.name {
				n.Hand = h
			}
		}
		set.Put(r)
	}
	ask := func(a *agent) {
		m, err := s.store.Get(t.Context(), a.name)
		check(t, err)
		m = m.DeepCopy()
		m.Annotations = map[string]string{v1alpha1.AnnotationReboot: "firmware"}
		m.Status.Node = &v1alpha1.NodeStatus{BootID: "boot-1", RebootRequired: "libc6"}
		m.Status.Reboot = &v1alpha1.RebootStatus{Request: "firmware", BootID: "boot-1"}
		s.api.Fleet.Put(s.store.put(m))
	}
	told := func(what string, a *agent, boot, want string) {
		t.Helper()
		answer, err := a.heartbeatOf(boot)
		check(t, err)
		if answer.Reboot != (want != "") || answer.RebootReason != want {
			t.Errorf("%s: reboot %t, %q", what, answer.Reboot, answer.RebootReason)
		}
	}
	hand(nil)
	told("a machine that nobody wants rebooted", alone, "boot-1", "")
	ask(alone)
	ask(worker)
	told("a machine of no cluster", alone, "boot-1", "asked for firmware")
	told("a machine of no cluster in its next boot", alone, "boot-2", "")
	told("a node before its turn", worker, "boot-1", "")
	now := metav1.Now()
	hand(&v1alpha1.NodeHand{Operation: "reboot", Since: now, Step: "drain"})
	told("a node that is drained", worker, "boot-1", "")
	hand(&v1alpha1.NodeHand{Operation: "reboot", Since: now, Step: "change", BootID: "boot-1", Reason: "its turn has come"})
	told("a node whose turn has come", worker, "boot-1", "its turn has come")
	told("a node in its next boot", worker, "boot-2", "")

	locks := &rebootlock.Set{}
	s.api.Reboots = locks
	told("a machine of no cluster, before the server knows the locks", alone, "boot-1", "")
	locks.Known()
	told("one that is bound to no lock", alone, "boot-1", "asked for firmware")
	group := &v1alpha1.RebootGroup{ObjectMeta: metav1.ObjectMeta{Name: "all"}}
	locks.Put(group)
	told("one whose lock another has", alone, "boot-1", "")
	group = group.DeepCopy()
	group.Status.Holders = []v1alpha1.RebootHolder{{Name: alone.name, BootID: "boot-1"}, {Name: worker.name, BootID: "boot-2"}}
	locks.Put(group)
	told("one that has the lock", alone, "boot-1", "asked for firmware")
	told("one that has the lock, in its next boot", alone, "boot-2", "")
	told("a node of a cluster, whatever locks say", worker, "boot-2", "")
	m, err := s.store.Get(t.Context(), alone.name)
	check(t, err)
	m = m.DeepCopy()
	m.Annotations, m.Status.Reboot, m.Status.Node.RebootRequired = nil, nil, ""
	s.api.Fleet.Put(s.store.put(m))
	told("one that has the lock, and whose reboot nobody wants any more", alone, "boot-1", "")
}
