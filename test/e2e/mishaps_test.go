package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/lab"
)

// mishapsYAML takes the serials of the three disks: too small, one with foreign data, another with foreign data.
const mishapsYAML = `
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
metadata: {name: no-such-image}
spec: {image: debian-99}
---
apiVersion: coldrack.dev/v1alpha1
kind: Profile
metadata: {name: too-small}
spec: {image: debian-13, rootDisk: {serial: %[1]q}}
---
apiVersion: coldrack.dev/v1alpha1
kind: Profile
metadata: {name: any-disk}
spec: {image: debian-13}
---
apiVersion: coldrack.dev/v1alpha1
kind: Profile
metadata: {name: careful}
spec: {image: debian-13, rootDisk: {serial: %[2]q}}
---
apiVersion: coldrack.dev/v1alpha1
kind: Profile
metadata: {name: wipes}
spec: {image: debian-13, rootDisk: {serial: %[2]q}, wipe: Always}
`

// TestMishaps goes through what goes wrong in a rack on one machine, most of it within one boot: an install that
// failed leaves the machine in discovery, and the next one begins there.
func TestMishaps(t *testing.T) {
	needFailures(t)
	t.Parallel()
	r := newRack(t, "", lab.Options{Machines: 1, Firmware: lab.BIOS, Disks: []lab.Size{256 * lab.MiB, 2 * lab.GiB, 2 * lab.GiB}})
	vm, name := r.lab.Machine(1), r.name(1)
	disks := vm.Spec().Disks
	r.apply(fmt.Sprintf(mishapsYAML, disks[0].Serial, disks[1].Serial))
	for _, disk := range []int{1, 2} {
		foreignDisk(t, vm.DiskPath(disk))
	}
	contents := func() (sums []string) {
		for i := range disks {
			sums = append(sums, sum(t, vm.DiskPath(i)))
		}
		return sums
	}
	before := contents()

	// The battery is empty, and nobody has plugged the cable in.
	if err := vm.PowerOn(t.Context(), lab.WithClock(time.Date(2009, 2, 3, 4, 5, 6, 0, time.UTC))); err != nil {
		t.Fatal(err)
	}
	r.awaitConsoleWithin(vm, 0, "looking for hardware", 3*time.Minute)
	r.cutNetwork(vm, func() { r.awaitConsoleWithin(vm, 0, "no link on any interface", 2*time.Minute) })
	r.await(name, "Waiting, its cable plugged in", 3*time.Minute, phase(v1alpha1.PhaseWaiting))
	r.awaitConsole(vm, 0, "days behind and is set to the server's")

	// A server that goes away is waited for.
	mark := vm.ConsoleMark()
	r.kill()
	r.awaitConsole(vm, mark, "the server is unreachable (ask what to do:")
	r.serve()
	r.awaitConsole(vm, mark, "server is reachable again")

	// Each refusal is read in status and on the console, and leaves all disks alone.
	mark = vm.ConsoleMark()
	r.run("approve", name, "--profile", "no-such-image")
	unknown := "image debian-99 is not in any imported bundle"
	r.await(name, "told that the image is unknown", 3*time.Minute, func(m *v1alpha1.Machine) bool {
		return m.Status.Phase == v1alpha1.PhaseApproved && strings.Contains(m.Status.Message, unknown)
	})
	r.awaitConsole(vm, mark, unknown)

	for _, refusal := range []struct {
		profile string
		texts   []string
	}{
		{"too-small", []string{"select-disk: no disk matches", disks[0].Serial, "is too small: the image needs"}},
		{"any-disk", []string{"2 disks match", disks[1].Serial, disks[2].Serial, "set spec.rootDisk"}},
		{"careful", []string{"wipe: disk", disks[1].Serial, "holds data that Coldrack did not write", "ext2/3/4", "wipe: Always"}},
	} {
		mark := vm.ConsoleMark()
		r.again(name, refusal.profile)
		m := r.await(name, "refused", 3*time.Minute, ended(v1alpha1.IntentFailed))
		for _, text := range append(refusal.texts, "To try again: coldrack install "+name) {
			if !strings.Contains(m.Status.Message, text) {
				t.Errorf("profile %s: the message lacks %q: %s", refusal.profile, text, m.Status.Message)
			}
		}
		for _, text := range refusal.texts {
			r.awaitConsole(vm, mark, text)
		}
		for i, now := range contents() {
			if now != before[i] {
				t.Fatalf("profile %s was refused, and disk %d has changed", refusal.profile, i)
			}
		}
	}

	// The image has rotted on the server's disk: found at the chunk, and repaired by another import.
	mark = vm.ConsoleMark()
	r.rot()
	r.again(name, "wipes")
	m := r.await(name, "refused for its digest", 3*time.Minute, ended(v1alpha1.IntentFailed))
	for _, text := range []string{"image debian-13 at byte", "arrived damaged twice: digest is sha256:", "coldrack bundle import --again"} {
		if !strings.Contains(m.Status.Message, text) {
			t.Errorf("the message lacks %q: %s", text, m.Status.Message)
		}
	}
	r.awaitConsole(vm, mark, "arrived damaged twice: digest is sha256:")

	// What the broken install left is released; other disks are not Coldrack's.
	r.run("release", name, "--yes")
	m = r.await(name, "released", 3*time.Minute, func(m *v1alpha1.Machine) bool {
		// It was Failed before, and is until the release is looked at.
		return phase(v1alpha1.PhaseReleased)(m) || m.Status.Intent.Action == v1alpha1.ActionRelease && ended(v1alpha1.IntentFailed)(m)
	})
	if m.Status.Phase != v1alpha1.PhaseReleased || m.Spec.Approved {
		t.Fatalf("after the release: %s (%s), approved %v", m.Status.Phase, m.Status.Message, m.Spec.Approved)
	}
	if out, err := exec.Command("blkid", "-p", vm.DiskPath(1)).CombinedOutput(); err == nil {
		t.Errorf("the released disk still shows %s", out)
	}
	if sum(t, vm.DiskPath(2)) != before[2] {
		t.Error("the release changed a disk that Coldrack never wrote")
	}

	// Approved again. The cable and the server fail while the image is written, which costs only time.
	if out := r.run("bundle", "import", "--again", r.bundle); !strings.Contains(out, "is imported") {
		t.Errorf("bundle import --again: %s", out)
	}
	r.run("approve", name, "--profile", "careful")
	r.await(name, "writing the image", 5*time.Minute, during("image", 1))
	mark = vm.ConsoleMark()
	r.cutNetwork(vm, func() { r.awaitConsoleWithin(vm, mark, "cannot fetch image debian-13 at byte", 3*time.Minute) })
	r.await(name, "getting on", 3*time.Minute, moved(r.get(name)))
	mark = vm.ConsoleMark()
	r.kill()
	r.awaitConsole(vm, mark, "cannot fetch image debian-13 at byte")
	r.serve()
	m = r.await(name, "installed", 5*time.Minute, ended(v1alpha1.IntentSucceeded))
	if m.Status.Intent.Attempts != 1 || m.Status.Installed == nil {
		t.Errorf("attempts %d, installed %+v; want one attempt", m.Status.Intent.Attempts, m.Status.Installed)
	}
	t.Logf("installed through a pulled cable and a killed server; steps:%s", times(m))
	if sum(t, vm.DiskPath(2)) != before[2] {
		t.Error("the install changed another disk")
	}
	// The system is not on the first disk of the BIOS.
	r.await(name, "Ready", 4*time.Minute, phase(v1alpha1.PhaseReady))
	if blank(t, vm.DiskPath(1)) || !blank(t, vm.DiskPath(0)) {
		t.Error("the system is not on the disk that the profile names")
	}
}

func (r *rack) apply(objects string) {
	r.t.Helper()
	path := filepath.Join(r.dir, "more.yaml")
	if err := os.WriteFile(path, []byte(objects), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.run("apply", "-f", path)
}

// again asks for another install, of a profile, by whichever verb the machine's state calls for.
func (r *rack) again(name, profile string) {
	r.t.Helper()
	r.run("approve", name, "--profile", profile)
	if m := r.get(name); m != nil && m.OpenIntent() == nil {
		r.run("install", name)
	}
}

// ended holds when the machine's latest wish has ended so.
func ended(state v1alpha1.IntentState) func(*v1alpha1.Machine) bool {
	return func(m *v1alpha1.Machine) bool {
		if m.OpenIntent() != nil || m.Status.Intent == nil || m.Spec.Intent == nil || m.Status.Intent.ID != m.Spec.Intent.ID || m.Status.Intent.State != state {
			return false
		}
		// The phase follows a moment later.
		return state != v1alpha1.IntentFailed || m.Status.Phase == v1alpha1.PhaseFailed
	}
}

// moved holds when the image has got further than it was.
func moved(before *v1alpha1.Machine) func(*v1alpha1.Machine) bool {
	done := func(m *v1alpha1.Machine) (n int64) {
		for _, s := range m.Status.Steps {
			n += s.BytesDone
		}
		return n
	}
	return func(m *v1alpha1.Machine) bool { return before == nil || done(m) > done(before) }
}

func (r *rack) cutNetwork(vm *lab.Machine, meanwhile func()) {
	r.t.Helper()
	if err := vm.CutNetwork(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	meanwhile()
	if err := vm.RestoreNetwork(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// foreignDisk gives a disk an MBR with one partition, and in it a file system.
func foreignDisk(t *testing.T, path string) {
	t.Helper()
	const start, sectors = 2048, 1 << 20
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-L", "precious", "-E", fmt.Sprintf("offset=%d", start*512), path, "512m").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	disk, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	entry := []byte{0, 0, 0, 0, 0x83, 0, 0, 0, start & 0xff, start >> 8, 0, 0, 0, 0, sectors >> 16, 0}
	if _, err := disk.WriteAt(append(append(entry, make([]byte, 48)...), 0x55, 0xaa), 446); err != nil {
		t.Fatal(err)
	}
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}
}

// rot flips a bit in the middle of the image's stored chunks, behind the server's back.
func (r *rack) rot() {
	r.t.Helper()
	store, err := bundle.OpenStore(filepath.Join(r.dir, "data", "content"))
	if err != nil {
		r.t.Fatal(err)
	}
	var c v1alpha1.Image
	out := r.run("get", "images", "debian-13", "-o", "json")
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		r.t.Fatal(err)
	}
	index, _, err := store.Open(c.Spec.Index)
	if err != nil {
		r.t.Fatal(err)
	}
	defer index.Close()
	var chunks diskimage.Index
	if err := json.NewDecoder(index).Decode(&chunks); err != nil {
		r.t.Fatal(err)
	}
	blob, size, err := store.Open(chunks.Blob)
	if err != nil {
		r.t.Fatal(err)
	}
	defer blob.Close()
	file, err := os.OpenFile(blob.Name(), os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer file.Close()
	one := make([]byte, 1)
	if _, err := file.ReadAt(one, size/4); err != nil {
		r.t.Fatal(err)
	}
	one[0] ^= 1
	if _, err := file.WriteAt(one, size/4); err != nil {
		r.t.Fatal(err)
	}
}
