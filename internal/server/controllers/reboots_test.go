package controllers

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
)

// rebootsOfAGroup has two operating systems and a person ask for reboots: never are two machines let go, each comes back, and who is let go
// stays so when the server is another one.
func rebootsOfAGroup(t *testing.T, w *liveWorld) {
	beat := func(name, boot string, packages ...string) {
		in := wire.Heartbeat{BootID: boot}
		if len(packages) > 0 {
			in.RebootRequired = &wire.RebootRequired{Packages: packages}
		}
		w.fleet.Beat(name, in, "10.0.0.10")
	}
	names := []string{"a", "b", "c"}
	for i, name := range names {
		w.create(&v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"rack": "r1"}},
			Spec: v1alpha1.MachineSpec{Identifiers: v1alpha1.Identifiers{MACs: []string{mac(i)}}, Approved: true}})
		w.until(func() bool { _, ok := w.fleet.Get(name); return ok }, func() string { return name + " is not known" })
		w.act(name, func(s *v1alpha1.MachineStatus) { s.Installed = &v1alpha1.InstalledStatus{At: metav1.Now()} })
		beat(name, "boot-1")
		w.phase(name, v1alpha1.PhaseReady)
	}
	g := &v1alpha1.RebootGroup{ObjectMeta: metav1.ObjectMeta{Name: "rack"}}
	g.Spec.Selector.MatchLabels, g.Spec.Automatic = map[string]string{"rack": "r1"}, true
	w.create(g)
	status := func(what string, is func(*v1alpha1.RebootGroupStatus) bool) {
		t.Helper()
		w.until(func() bool {
			check(t, w.client.Get(t.Context(), client.ObjectKey{Name: "rack"}, g))
			if len(g.Status.Holders) > 1 {
				t.Fatalf("more than one may go: %+v", g.Status)
			}
			return is(&g.Status)
		}, func() string { return fmt.Sprintf("the group is not %s: %+v", what, g.Status) })
	}
	turn := func(name string) string {
		m, ok := w.fleet.Get(name)
		if !ok {
			return ""
		}
		boot, _, _ := w.deps.Reboots.Turn(m)
		return boot
	}
	holds := func(name string) {
		t.Helper()
		status("held by "+name, func(s *v1alpha1.RebootGroupStatus) bool { return s.Holder(name) != nil })
		w.until(func() bool { return turn(name) == "boot-1" }, func() string { return name + " is not told" })
	}
	status("known", func(s *v1alpha1.RebootGroupStatus) bool { return s.Machines == 3 && s.Away == 0 })
	beat("a", "boot-1", "libc6")
	holds("a")
	beat("b", "boot-1", "libc6")
	w.wait("b", "waiting", func(m *v1alpha1.Machine) bool {
		return m.Status.RebootState == "waits for a: 1 of 1 away" && strings.Contains(m.Status.Message, "a reboot is due: required by libc6")
	})

	w.restart()
	holds("a")
	if boot := turn("b"); boot != "" {
		t.Errorf("b is let go, too")
	}
	m, err := w.store.Get(t.Context(), "c")
	check(t, err)
	before := m.DeepCopy()
	m.Annotations = map[string]string{v1alpha1.AnnotationReboot: "firmware"}
	check(t, w.client.Patch(t.Context(), m, client.MergeFrom(before)))
	status("with two that wait", func(s *v1alpha1.RebootGroupStatus) bool { return s.WaitingCount == 2 })

	beat("a", "boot-2", "libc6") // as if the update had not helped
	holds("c")                   // whom a person asked for
	w.wait("a", "not rebooted twice for the same", func(m *v1alpha1.Machine) bool {
		return strings.Contains(m.Status.RebootState, "was rebooted for the same reason") && m.Status.Rebooted != nil && m.Status.Rebooted.Reason == "required by libc6"
	})
	beat("c", "boot-2")
	holds("b")
	beat("b", "boot-2")
	status("done", func(s *v1alpha1.RebootGroupStatus) bool { return len(s.Holders) == 0 && len(s.History) == 3 })
	var past []string
	for _, r := range g.Status.History {
		past = append(past, r.Name+" "+r.Reason)
	}
	if got := strings.Join(past, "; "); got != "a required by libc6; c asked for firmware; b required by libc6" {
		t.Errorf("the history is %s", got)
	}
}
