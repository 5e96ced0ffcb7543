package machineapi

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
)

// TestARestoredServerKeepsWhatItDoesNotKnow: the store is from before machines were installed. Their nodes go on, one is told of, and after a person's
// word they are as before.
func TestARestoredServerKeepsWhatItDoesNotKnow(t *testing.T) {
	s := newServer(t)
	early := s.discovered(idsA)
	s.approve(early.name, "i1", v1alpha1.ActionInstall)
	s.spec(early.name, func(spec *v1alpha1.MachineSpec) {
		spec.Intent.RequestedAt = new(metav1.NewTime(s.clock.Now().Truncate(time.Second)))
	})
	backup, err := s.store.Get(t.Context(), early.name)
	check(t, err)
	node := s.install(early, "i1")
	_, late := s.installed(idsB, "i2")
	_, err = node.heartbeat()
	check(t, err)
	_, err = late.heartbeat()
	check(t, err)

	s.clock.add(time.Hour)
	s.store.put(backup)
	delete(s.store.machines, late.name)
	s.start()
	s.fleet.SetRestored(s.clock.Now())
	key := fingerprintOf(t, node)

	// The node that the backup knows as one that is to be installed.
	if _, err := node.heartbeat(); code(err) != wire.CodeForbidden {
		t.Fatalf("a key that the backup does not know: %v", err)
	}
	booted := s.discovered(idsA)
	answer, err := booted.assignment()
	check(t, err)
	if answer.Action != wire.ActionWait || !strings.Contains(answer.Message, "before the server's store was restored") {
		t.Errorf("the install that the backup holds: %+v", answer)
	}
	s.fold(node.name)
	if got := s.status(node.name); got.KeyRefused == nil || got.KeyRefused.KeyFingerprint != key {
		t.Fatalf("the refused key: %+v", got.KeyRefused)
	}
	if live := s.fleet.Live(node.name); live.Blocked.Reason != v1alpha1.ReasonStoreRestored {
		t.Errorf("blocked: %+v", live.Blocked)
	}
	annotate := func(name, key string) {
		m, err := s.store.Get(t.Context(), name)
		check(t, err)
		m.Annotations = map[string]string{v1alpha1.AnnotationReadmit: m.ReadmitValue(key)}
		s.fleet.Put(s.store.put(m))
	}
	annotate(node.name, key)
	_, err = node.heartbeat()
	check(t, err)
	if got := s.status(node.name); got.Identity.KeyFingerprint != key || got.Installed == nil || got.Installed.IntentID != "i1" || got.Intent.State != v1alpha1.IntentSucceeded {
		t.Errorf("readmitted: %+v %+v %+v", got.Identity, got.Installed, got.Intent)
	}

	// The node that the backup does not know at all.
	if _, err := late.heartbeat(); code(err) != wire.CodeNotFound {
		t.Fatalf("a node without a machine: %v", err)
	}
	if nodes := s.fleet.UnknownNodes(); len(nodes) != 1 || nodes[0].Machine != late.name || nodes[0].Address != "127.0.0.1" {
		t.Errorf("unknown nodes: %+v", nodes)
	}
	// It boots from the network, and shows its disk. A person has that kept, and accepts its key.
	inventory := inventoryWith(idsB)
	inventory.Disks[0].Marker = "2b1f7a6e-0000-5000-8000-0000000000c1"
	again := s.discovered(idsB)
	_, err = send[wire.Empty](again, "POST", wire.PathInventory, inventory)
	check(t, err)
	m, err := s.store.Get(t.Context(), late.name)
	check(t, err)
	if m.UnknownInstallation() == nil {
		t.Fatalf("the disk's marker is not kept: %+v", m.Status.Inventory.Disks)
	}
	m.Status.Installed = &v1alpha1.InstalledStatus{Image: v1alpha1.AdoptedImage, Disk: "virtio-1", Marker: inventory.Disks[0].Marker, At: metav1.NewTime(s.clock.Now())}
	s.fleet.Put(s.store.put(m))
	if answer, err := again.assignment(); err != nil || answer.Action != wire.ActionReboot {
		t.Errorf("in discovery, adopted: %+v, %v", answer, err)
	}
	s.fleet.SetRestored(time.Time{}) // a machine that was adopted is told of later, too
	if _, err := late.heartbeat(); code(err) != wire.CodeForbidden {
		t.Fatalf("a key that nobody has accepted: %v", err)
	}
	s.fold(late.name)
	if got := s.status(late.name); got.KeyRefused == nil {
		t.Fatal("nothing says which key was refused")
	}
	annotate(late.name, fingerprintOf(t, late))
	_, err = late.heartbeat()
	check(t, err)
	s.spec(late.name, func(spec *v1alpha1.MachineSpec) {
		spec.Intent = &v1alpha1.Intent{ID: "r1", Action: v1alpha1.ActionRelease}
	})
	session := s.discovered(idsB)
	release, err := session.assignment()
	check(t, err)
	if plan := release.Release; plan == nil || len(plan.OwnMarkers) != 1 || plan.OwnMarkers[0] != inventory.Disks[0].Marker {
		t.Errorf("its release: %+v", release)
	}
	_, err = session.progress("r1")
	check(t, err)
	check(t, session.complete("r1", wire.StateSucceeded, ""))
	if _, err := late.heartbeat(); code(err) != wire.CodeForbidden {
		t.Errorf("the key of a machine that was released since: %v", err)
	}
}
