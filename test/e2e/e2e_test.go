package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/lab"
)

// rackYAML has no policy: a person approves the machine.
const rackYAML = `
apiVersion: coldrack.dev/v1alpha1
kind: Subnet
metadata: {name: rack}
spec:
  cidr: 10.77.0.0/24
  discovery: 10.77.0.100-10.77.0.199
  static: 10.77.0.10-10.77.0.99
---
apiVersion: coldrack.dev/v1alpha1
kind: Profile
metadata: {name: default}
spec:
  image: debian-13
  console: ["ttyS0,115200"]
  rootDisk: {smallest: true}
---
apiVersion: coldrack.dev/v1alpha1
kind: Profile
metadata: {name: ambiguous}
spec:
  image: debian-13
`

// TestFromPowerOnToReady has a BIOS machine installed by hand, through every mishap. Machines that are installed without a
// person are those of the clusters. It runs beside other tests of one machine: each takes one processor.
func TestFromPowerOnToReady(t *testing.T) {
	needFailures(t)
	t.Parallel()
	r := newRack(t, rackYAML, lab.Options{Machines: 1, Firmware: lab.BIOS, Disks: []lab.Size{8 * lab.GiB, 9 * lab.GiB}})
	vm, name := r.lab.Machine(1), r.name(1)

	// Somebody else's data is on the disk; nobody has approved anything.
	foreign := bytes.Repeat([]byte("precious data "), 1<<16)
	disk, err := os.OpenFile(vm.DiskPath(0), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := disk.WriteAt(foreign, 3<<20); err != nil {
		t.Fatal(err)
	}
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}
	untouched := sum(t, vm.DiskPath(0))
	if err := vm.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.await(name, "Waiting for approval", 5*time.Minute, phase(v1alpha1.PhaseWaiting))
	r.kill()
	r.serve()
	r.await(name, "Waiting after the server was killed", 2*time.Minute, func(m *v1alpha1.Machine) bool {
		return m.Status.Phase == v1alpha1.PhaseWaiting && m.Status.Inventory != nil && m.Status.Inventory.Firmware == "BIOS"
	})
	if sum(t, vm.DiskPath(0)) != untouched {
		t.Fatal("discovery changed the disk of a machine that nobody approved")
	}

	// A profile that matches two disks is refused with a reason, on the console too, and nothing is written.
	mark := vm.ConsoleMark()
	r.run("approve", name, "--profile", "ambiguous")
	m := r.await(name, "refused", 3*time.Minute, phase(v1alpha1.PhaseFailed))
	if !strings.Contains(m.Status.Message, "2 disks match") {
		t.Errorf("the failure does not say that two disks match: %s", m.Status.Message)
	}
	r.awaitConsole(vm, mark, "2 disks match")
	if sum(t, vm.DiskPath(0)) != untouched {
		t.Fatal("a refused install changed the disk")
	}

	// Now for good; the power goes in the middle of the image.
	r.run("approve", name, "--profile", "default")
	r.run("install", name)
	r.await(name, "writing the image", 5*time.Minute, during("image", 1))
	if err := vm.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := vm.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The server goes too, in the middle of the second attempt.
	r.await(name, "writing the image again", 6*time.Minute, during("image", 2))
	r.kill()
	r.serve()
	m = r.await(name, "Ready", 10*time.Minute, phase(v1alpha1.PhaseReady, v1alpha1.PhaseFailed))
	if m.Status.Phase != v1alpha1.PhaseReady || m.Status.Intent.Attempts != 2 {
		t.Fatalf("phase %s after %d attempts: %s", m.Status.Phase, m.Status.Intent.Attempts, m.Status.Message)
	}
	t.Logf("installed through a power cut and a killed server; steps:%s", times(m))

	// The next boot goes to the disk, and nothing is installed again.
	before, installedAt := m.Status.Node.BootID, m.Status.Installed.At
	if err := vm.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	m = r.await(name, "Ready again from its disk", 5*time.Minute, func(m *v1alpha1.Machine) bool {
		return m.Status.Phase == v1alpha1.PhaseReady && m.Status.Node.BootID != before
	})
	if newest(m).Action != v1alpha1.BootLocalDisk || !m.Status.Installed.At.Equal(&installedAt) {
		t.Errorf("the last boot was %+v, installed at %s, was %s", newest(m), m.Status.Installed.At, installedAt)
	}

	// Reinstall: asked for on the running node, which goes and does it.
	identity := m.Status.Identity.KeyFingerprint
	r.run("reinstall", name, "--yes")
	m = r.await(name, "reinstalled", 10*time.Minute, func(m *v1alpha1.Machine) bool {
		return m.Status.Phase == v1alpha1.PhaseFailed ||
			m.Status.Phase == v1alpha1.PhaseReady && m.Status.Intent.Action == v1alpha1.ActionReinstall && m.Status.Intent.State == v1alpha1.IntentSucceeded
	})
	if m.Status.Phase != v1alpha1.PhaseReady || m.Status.Identity.KeyFingerprint == identity {
		t.Fatalf("phase %s (%s), identity %s, was %s", m.Status.Phase, m.Status.Message, m.Status.Identity.KeyFingerprint, identity)
	}

	// Release: the disk no longer starts, and the machine waits to be approved again.
	r.run("release", name, "--yes")
	m = r.await(name, "released", 6*time.Minute, phase(v1alpha1.PhaseReleased, v1alpha1.PhaseFailed))
	if m.Status.Phase != v1alpha1.PhaseReleased || m.Status.Identity != nil || m.Status.Installed != nil || m.Spec.Approved {
		t.Fatalf("after the release: phase %s (%s), identity %v, installed %v, approved %v", m.Status.Phase, m.Status.Message, m.Status.Identity, m.Status.Installed, m.Spec.Approved)
	}
	head := make([]byte, 1<<20)
	released, err := os.Open(vm.DiskPath(0))
	if err != nil {
		t.Fatal(err)
	}
	defer released.Close()
	if _, err := io.ReadFull(released, head); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(head, make([]byte, len(head))) {
		t.Error("the released disk still begins with something")
	}
	if err := vm.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	now, peak := r.memory()
	t.Logf("server memory %d MiB, peak %d MiB; starts took %v", now, peak, r.ready)
}

// awaitConsole waits for a text on the machine's own console.
func (r *rack) awaitConsole(vm *lab.Machine, mark int64, text string) {
	r.t.Helper()
	r.awaitConsoleWithin(vm, mark, text, 2*time.Minute)
}

func (r *rack) awaitConsoleWithin(vm *lab.Machine, mark int64, text string, within time.Duration) {
	r.t.Helper()
	for began := time.Now(); ; time.Sleep(300 * time.Millisecond) {
		content, err := os.ReadFile(vm.ConsoleLog())
		if err != nil {
			r.t.Fatal(err)
		}
		if strings.Contains(lab.Printable(content[mark:]), text) {
			return
		}
		if time.Since(began) > within {
			r.t.Errorf("the console of %s does not say %q", vm.Name(), text)
			return
		}
	}
}

// sum is a digest of what a disk holds, whatever of it is stored as holes.
func sum(t *testing.T, path string) string {
	t.Helper()
	hash := sha256.New()
	extents(t, path, func(offset int64, content []byte) bool {
		fmt.Fprintf(hash, "%d ", offset)
		_, _ = hash.Write(content)
		return true
	})
	return hex.EncodeToString(hash.Sum(nil))
}
