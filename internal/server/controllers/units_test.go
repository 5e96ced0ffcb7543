package controllers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
)

// unitsArePlaced follows a unit from its submission to the machine that takes it over.
func unitsArePlaced(t *testing.T, w *liveWorld) {
	for i, name := range []string{"m1", "m2"} {
		w.create(&v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MachineSpec{Approved: true, Identifiers: v1alpha1.Identifiers{MACs: []string{mac(40 + i)}}}})
		w.act(name, func(s *v1alpha1.MachineStatus) {
			s.Identity = &v1alpha1.IdentityStatus{KeyFingerprint: "sha256:" + name, IssuedAt: metav1.Now(), ExpiresAt: metav1.Now()}
			s.Installed = &v1alpha1.InstalledStatus{IntentID: "1", Image: "debian-12", Disk: "virtio-1", At: metav1.NewTime(time.Now().Add(-time.Minute))}
		})
		w.fleet.Beat(name, wire.Heartbeat{BootID: "b-" + name}, "10.0.0.1")
		w.phase(name, v1alpha1.PhaseReady)
	}
	const file = "[Service]\nExecStart=/bin/sleep 1000\n[X-Fleet]\nConflicts=db*\n"
	w.create(&v1alpha1.Unit{ObjectMeta: metav1.ObjectMeta{Name: "web.service"}, Spec: v1alpha1.UnitSpec{File: file}})
	is := &v1alpha1.Unit{}
	status := func(what string, until func(v1alpha1.UnitStatus) bool) {
		t.Helper()
		w.until(func() bool {
			check(t, w.client.Get(t.Context(), client.ObjectKey{Name: "web.service"}, is))
			return until(is.Status)
		}, func() string { return fmt.Sprintf("unit is not %s: %+v", what, is.Status) })
	}
	on := func(s v1alpha1.UnitStatus, machine string) bool {
		return len(s.Placements) == 1 && s.Placements[0].Machine == machine && !s.Placements[0].Leaving
	}
	told := func(machine string, names ...string) {
		t.Helper()
		var a wire.UnitAssignment
		w.until(func() bool {
			a, _, _ = w.deps.Units.Wanted(machine)
			if len(a.Run) != len(names) {
				return false
			}
			for i, name := range names {
				if a.Run[i].Name != name || strings.Contains(a.Run[i].Text, "X-Fleet") || !a.Run[i].Launch {
					return false
				}
			}
			return true
		}, func() string { return fmt.Sprintf("machine %s is told %+v, not %v", machine, a, names) })
	}
	status("placed on m1", func(s v1alpha1.UnitStatus) bool { return on(s, "m1") && s.Phase == "Starting" })
	told("m1", "web.service")
	told("m2")
	w.deps.Units.Report("m1", wire.UnitReport{Units: []wire.UnitState{{Name: "web.service", Active: "active"}}}, time.Now())
	status("active", func(s v1alpha1.UnitStatus) bool { return s.Phase == "Active" && s.Active == "1/1" })
	stored, err := StoredUnits(t.Context(), w.client, "m1")
	if check(t, err); len(stored) != 1 {
		t.Errorf("the store says %+v", stored)
	}

	// What fails is said.
	w.deps.Units.Report("m1", wire.UnitReport{Units: []wire.UnitState{{Name: "web.service", Active: "failed", Message: "result exit-code"}}}, time.Now())
	status("failed", func(s v1alpha1.UnitStatus) bool {
		return s.Phase == "Failed" && strings.Contains(s.Message, "result exit-code")
	})

	// A unit that conflicts goes elsewhere.
	w.create(&v1alpha1.Unit{ObjectMeta: metav1.ObjectMeta{Name: "db.service"}, Spec: v1alpha1.UnitSpec{File: "[Service]\nExecStart=/bin/sleep 1\n"}})
	told("m2", "db.service")
	check(t, w.client.Delete(t.Context(), &v1alpha1.Unit{ObjectMeta: metav1.ObjectMeta{Name: "db.service"}}))
	told("m2")

	// After a restart of the server everything is as it was.
	w.restart()
	told("m1", "web.service")
	w.fleet.Beat("m2", wire.Heartbeat{BootID: "b-m2"}, "10.0.0.1")

	// A machine that is deleted is left without waiting.
	check(t, w.client.Delete(t.Context(), &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "m1"}}))
	status("moved to m2", func(s v1alpha1.UnitStatus) bool { return on(s, "m2") })
	told("m2", "web.service")

	// A unit that is stopped leaves when its machine has said so.
	check(t, w.client.Get(t.Context(), client.ObjectKey{Name: "web.service"}, is))
	is.Spec.DesiredState = v1alpha1.UnitInactive
	check(t, w.client.Update(t.Context(), is))
	status("leaving", func(s v1alpha1.UnitStatus) bool { return len(s.Placements) == 1 && s.Placements[0].Leaving })
	told("m2")
	w.deps.Units.Report("m2", wire.UnitReport{}, time.Now().Add(time.Minute))
	status("inactive", func(s v1alpha1.UnitStatus) bool { return s.Phase == "Inactive" && len(s.Placements) == 0 })

	// What is wrong is refused at once.
	if err := w.client.Create(t.Context(), &v1alpha1.Unit{ObjectMeta: metav1.ObjectMeta{Name: "bad.service"}, Spec: v1alpha1.UnitSpec{File: "[Service]\n"}}); err == nil || !strings.Contains(err.Error(), "no ExecStart=") {
		t.Errorf("a unit with nothing to run: %v", err)
	}
}
