package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/lab"
)

// rackYAML has a policy for the second machine only: the first one is approved by a person.
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
  image: debian-12
  console: ["ttyS0,115200"]
  sshKeys: [%[2]q]
  timezone: Europe/Berlin
  files:
  - {path: /etc/motd, content: "installed by coldrack\n"}
---
apiVersion: coldrack.dev/v1alpha1
kind: Profile
metadata: {name: ambiguous}
spec:
  image: debian-12
  rootDisk: {transport: no-such-bus}
---
apiVersion: coldrack.dev/v1alpha1
kind: EnrollmentPolicy
metadata: {name: hands-off}
spec:
  match: {serial: %[1]q}
  approve: true
  hostname: "node-{index:02}"
  profile: default
  subnet: rack
`

// TestFromPowerOnToReady is two stories on one server, one after the other: the second one kills the server.
func TestFromPowerOnToReady(t *testing.T) {
	// The second machine's serial is known only once the lab exists; it follows from its name alone.
	key, public := sshKey(t)
	r := newRack(t, fmt.Sprintf(rackYAML, "later", public), lab.Options{Machines: 2, Firmware: lab.Mixed})
	r.sshKey = key
	policy := filepath.Join(r.dir, "policy.yaml")
	if err := os.WriteFile(policy, fmt.Appendf(nil, rackYAML, r.lab.Machine(2).Spec().Serial, public), 0o600); err != nil {
		t.Fatal(err)
	}
	r.run("apply", "-f", policy)

	handsOff := t.Run("a UEFI machine is installed without a person, and nobody can pass for it", r.uefi)
	byHand := t.Run("a BIOS machine is installed by hand, through every mishap", r.bios)
	if handsOff && byHand {
		now, peak := r.memory()
		t.Logf("server memory %d MiB, peak %d MiB; starts took %v", now, peak, r.ready)
	}
}

func (r *rack) uefi(t *testing.T) {
	r.t = t
	vm, name := r.lab.Machine(2), r.name(2)
	powerOn := time.Now()
	if err := vm.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := r.await(name, "Ready", 10*time.Minute, phase(v1alpha1.PhaseReady, v1alpha1.PhaseFailed))
	if m.Status.Phase != v1alpha1.PhaseReady {
		t.Fatalf("the install failed: %s", m.Status.Message)
	}
	t.Logf("power-on to Ready: %.0f s; steps:%s", time.Since(powerOn).Seconds(), times(m))
	if usage, err := vm.Usage(); err == nil {
		t.Logf("machine: %s of memory at its peak, %.0f s of processor time", usage.Peak, usage.CPU.Seconds())
	}
	inventory := m.Status.Inventory
	switch {
	case inventory == nil:
		t.Fatal("no inventory")
	case inventory.Firmware != "UEFI":
		t.Errorf("firmware is %q", inventory.Firmware)
	case inventory.System.Serial != vm.Spec().Serial || inventory.System.UUID != vm.Spec().UUID || inventory.System.Vendor != lab.Manufacturer:
		t.Errorf("SMBIOS: %+v, want serial %s, UUID %s", inventory.System, vm.Spec().Serial, vm.Spec().UUID)
	case len(inventory.Disks) != 1 || inventory.Disks[0].Serial != vm.Spec().Disks[0].Serial || inventory.Disks[0].Size.Value() != int64(vm.Spec().Disks[0].Size):
		t.Errorf("disks: %+v, want one with serial %s", inventory.Disks, vm.Spec().Disks[0].Serial)
	case len(inventory.NICs) == 0 || inventory.NICs[0].MAC != vm.MAC().String():
		t.Errorf("NICs: %+v, want MAC %s", inventory.NICs, vm.MAC())
	}
	if m.Spec.Hostname != "node-01" || m.Spec.Network == nil || m.Spec.Network.Address != "10.77.0.10" {
		t.Errorf("the policy gave host name %q and network %+v, want node-01 and the first static address", m.Spec.Hostname, m.Spec.Network)
	}
	if m.Status.Node == nil || !slices.Contains(m.Status.Node.Addresses, "10.77.0.10/24") || len(m.Status.Node.FailedUnits) > 0 {
		t.Errorf("the node reports %+v, want address 10.77.0.10/24 and no failed units", m.Status.Node)
	}

	// A person looks around on the node.
	for command, want := range map[string]string{
		"hostname":                         "node-01",
		"cat /etc/motd":                    "installed by coldrack",
		"date +%Z":                         "CE",
		"ip -o -4 addr show to 10.77.0.10": "valid_lft forever", // static, not leased
		"stat -c %a /var/lib/coldrack/agent/node.pem": "600",
		"findmnt -rno FSTYPE,OPTIONS /":               "ext4 rw",
	} {
		if out := r.ssh("10.77.0.10", command); !strings.Contains(out, want) {
			t.Errorf("%s on the node says %q, want %q", command, out, want)
		}
	}

	// The next boot goes to the disk.
	before, reset := m.Status.Node.BootID, time.Now()
	if err := vm.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	m = r.await(name, "Ready again from its disk", 5*time.Minute, func(m *v1alpha1.Machine) bool {
		return m.Status.Phase == v1alpha1.PhaseReady && m.Status.Node.BootID != before
	})
	if newest(m).Action != v1alpha1.BootLocalDisk || !after(m, reset) {
		t.Errorf("the last boot was %+v, want LocalDisk after the reset", newest(m))
	}
	if out := r.run("explain-boot", name); !strings.Contains(out, "LocalDisk") {
		t.Errorf("explain-boot does not speak of the local disk:\n%s", out)
	}

	// Somebody on the segment claims to be this machine: no kernel, no nonce, no secret.
	spec := vm.Spec()
	script := r.curl("/boot/ipxe?mac=" + vm.MAC().String() + "&uuid=" + spec.UUID + "&serial=" + spec.Serial + "&arch=x86_64&platform=efi")
	if !strings.Contains(script, "local.efi") || strings.Contains(script, "nonce") || strings.Contains(script, "kernel") {
		t.Errorf("a spoofed MAC got:\n%s", script)
	}
	identity := m.Status.Identity.KeyFingerprint
	if err := vm.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	thief := r.lab.Machine(1)
	began := time.Now()
	if err := thief.PowerOn(t.Context(), lab.Impersonate(vm)); err != nil {
		t.Fatal(err)
	}
	m = r.await(name, "asked for by the thief", 3*time.Minute, func(m *v1alpha1.Machine) bool { return after(m, began) })
	if newest(m).Action != v1alpha1.BootLocalDisk || m.Status.Identity == nil || m.Status.Identity.KeyFingerprint != identity {
		t.Errorf("the thief was told %+v, and the identity is %+v, was %s", newest(m), m.Status.Identity, identity)
	}
	if err := thief.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !blank(t, thief.DiskPath(0)) {
		t.Error("something was written to the thief's disk")
	}
}

func (r *rack) bios(t *testing.T) {
	r.t = t
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

	// A profile that matches no disk is refused with a reason, on the console too, and nothing is written.
	mark := vm.ConsoleMark()
	r.run("approve", name, "--profile", "ambiguous")
	m := r.await(name, "refused", 3*time.Minute, phase(v1alpha1.PhaseFailed))
	if !strings.Contains(m.Status.Message, "no-such-bus") {
		t.Errorf("the failure does not name the hint: %s", m.Status.Message)
	}
	r.awaitConsole(vm, mark, "no-such-bus")
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
}

// awaitConsole waits for a text on the machine's own console.
func (r *rack) awaitConsole(vm *lab.Machine, mark int64, text string) {
	r.t.Helper()
	r.awaitConsoleWithin(vm, mark, text, 30*time.Second)
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
