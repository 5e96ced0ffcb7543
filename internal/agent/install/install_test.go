package install

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/agent/gpt"
	"coldrack.dev/internal/agent/identity"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/content/fetch"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/ca"
	"coldrack.dev/test/require"
)

// loopDisk is a disk of this test's own: a sparse file behind a loop device.
func loopDisk(t *testing.T, size int64) (name, file string) {
	t.Helper()
	require.Need(t, "root", "losetup")
	file = filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--partscan", "--show", "--find", file).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", dev, err, out)
		}
	})
	return strings.TrimPrefix(dev, "/dev/"), file
}

// shell runs a command that must succeed.
func shell(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// hash of all that is not zero in a sparse file, past the loop device's page cache.
func hash(t *testing.T, name, file string) string {
	t.Helper()
	shell(t, "blockdev", "--flushbufs", "/dev/"+name)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	buf, zero := make([]byte, 4096), make([]byte, 4096)
	for at := int64(0); ; {
		if at, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA); err != nil {
			return hex.EncodeToString(h.Sum(nil)) // ENXIO: no more data
		}
		end, err := unix.Seek(int(f.Fd()), at, unix.SEEK_HOLE)
		if err != nil {
			t.Fatal(err)
		}
		for ; at < end; at += int64(len(buf)) {
			n, err := f.ReadAt(buf, at)
			if err != nil && err != io.EOF {
				t.Fatal(err)
			}
			if !bytes.Equal(buf[:n], zero[:n]) {
				fmt.Fprintf(h, "%d %x\n", at, buf[:n])
			}
		}
	}
}

// rootImage makes a small ext4 image of something like a Debian system.
func rootImage(t *testing.T) []byte {
	t.Helper()
	require.Need(t, "mkfs.ext4", "e2fsck", "resize2fs", "tune2fs")
	tree, file := t.TempDir(), filepath.Join(t.TempDir(), "root.ext4")
	noise := make([]byte, 9<<20)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/bash\n", "etc/shadow": "root:*:1::::::\n", "etc/group": "root:x:0:\n",
		"etc/ssh/ssh_host_rsa_key": "everybody's", "bin/bash": "x",
		"boot/vmlinuz-6.1.0-9-amd64": "k9", "boot/initrd.img-6.1.0-9-amd64": "i9",
		"boot/vmlinuz-6.1.0-10-amd64": "k10", "boot/initrd.img-6.1.0-10-amd64": "i10",
		"lib/systemd/system/systemd-networkd.service": "[Install]\nWantedBy=multi-user.target\n",
		"opt/noise": string(noise),
	} {
		p := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(body), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	shell(t, "mkfs.ext4", "-q", "-d", tree, file, "48M")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// lab is a server as the agent sees it, and the plan it gives out.
type lab struct {
	t     *testing.T
	plan  wire.InstallPlan
	image []byte
	url   string

	mu       sync.Mutex
	blobs    map[string][]byte
	requests map[string]int                                // by digest and range
	spoil    func(http.ResponseWriter, *http.Request) bool // answers instead
	reports  []wire.Progress
	cancel   func(wire.Progress) bool
	skew     time.Duration
	ca       *ca.CA
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (l *lab) add(b []byte) wire.Content {
	c := wire.Content{Digest: digest(b), Size: int64(len(b))}
	l.blobs[c.Digest] = b
	return c
}

func newLab(t *testing.T, image []byte) *lab {
	t.Helper()
	l := &lab{t: t, image: image, blobs: map[string][]byte{}, requests: map[string]int{}}
	var blob bytes.Buffer
	index, err := diskimage.Encode(context.Background(), bytes.NewReader(image), int64(len(image)), &blob)
	if err != nil {
		t.Fatal(err)
	}
	l.add(blob.Bytes())
	b, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	// As much of GRUB's images as package diskboot looks at.
	boot := make([]byte, 512)
	copy(boot[0x180:], "GRUB ")
	boot[0x64], boot[510], boot[511] = 0xff, 0x55, 0xaa
	core := bytes.Repeat([]byte{0xC0}, 40_000)
	core[510], core[511] = 0x20, 0x08
	l.plan = wire.InstallPlan{
		IntentID: "intent-2", Machine: "n1", OwnIntentIDs: []string{"intent-1", "intent-2"}, Wipe: "RefuseForeign",
		Image:   wire.Image{Name: "debian-12", Family: "debian", Index: l.add(b), Digest: index.Digest, Size: index.Size},
		Boot:    wire.BootFiles{BIOSBoot: l.add(boot), BIOSCore: l.add(core), Shim: l.add([]byte("shim")), GRUB: l.add([]byte("grub"))},
		Console: []string{"tty0", "ttyS0,115200n8"}, KernelArgs: []string{"quiet"},
		Config: nodeconfig.Config{Hostname: "n1", Interfaces: []nodeconfig.Interface{{MAC: "52:54:00:00:00:01", Addresses: []string{"10.0.0.5/24"}}}},
	}
	server := httptest.NewServer(l)
	t.Cleanup(server.Close)
	l.url = server.URL
	l.ca = ca.New(t, "machines")
	return l
}

func (l *lab) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	name := strings.Replace(strings.TrimPrefix(r.URL.Path, "/content/"), "/", ":", 1)
	l.requests[name+" "+r.Header.Get("Range")]++
	b, ok := l.blobs[name]
	spoil := l.spoil
	l.mu.Unlock()
	if spoil != nil && spoil(w, r) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (l *lab) Progress(_ context.Context, p wire.Progress) (wire.ProgressResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reports = append(l.reports, p)
	return wire.ProgressResponse{Cancel: l.cancel != nil && l.cancel(p)}, nil
}

func (l *lab) Time(context.Context) (wire.Time, error) {
	return wire.Time{Now: time.Now().Add(l.skew)}, nil
}

func (l *lab) Identity(_ context.Context, r wire.IdentityRequest) (wire.IdentityResponse, error) {
	block, _ := pem.Decode([]byte(r.CSR))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return wire.IdentityResponse{}, err
	}
	cert, err := l.ca.Sign(ca.Client("node:n1"), csr.PublicKey)
	if err != nil {
		return wire.IdentityResponse{}, err
	}
	return wire.IdentityResponse{Certificate: string(ca.EncodeCert(cert))}, nil
}

// installer on a machine with these disks.
func (l *lab) installer(names ...string) *Installer {
	var disks []wire.Disk
	for _, name := range names {
		size := shell(l.t, "blockdev", "--getsize64", "/dev/"+name)
		var n int64
		if _, err := fmt.Sscan(size, &n); err != nil {
			l.t.Fatal(err)
		}
		disks = append(disks, wire.Disk{Name: name, SizeBytes: n, Serial: "serial-of-" + name})
	}
	return &Installer{
		Log: slog.New(slog.DiscardHandler), Server: l, Content: fetch.New(l.url, "test", nil),
		Inventory: func() wire.Inventory { return wire.Inventory{MemoryBytes: 4 << 30, Firmware: "BIOS", Disks: disks} },
		InUse:     InUse, Settings: identity.Settings{Server: "https://10.0.0.1:9443", Pin: "sha256:00", CA: "PEM"},
		Agent: "/proc/self/exe", WorkDir: l.t.TempDir(), Now: time.Now,
	}
}

func (l *lab) install(disk string) wire.Complete {
	l.t.Helper()
	done, err := l.installer(disk).Install(context.Background(), l.plan)
	if err != nil {
		l.t.Fatal(err)
	}
	return done
}

func succeeded(t *testing.T, done wire.Complete) {
	t.Helper()
	if done.State != wire.StateSucceeded {
		t.Fatalf("the install failed: %s", done.Message)
	}
}

const diskSize = 2 << 30

func TestABlankDiskBecomesANode(t *testing.T) {
	name, file := loopDisk(t, diskSize)
	l := newLab(t, rootImage(t))
	done := l.install(name)
	succeeded(t, done)
	for i, want := range wire.InstallSteps() {
		s := done.Steps[i]
		if want == wire.StepReboot {
			if s.State != wire.StateRunning {
				t.Errorf("reboot is %s; the caller reboots", s.State)
			}
			continue
		}
		if s.Name != want || s.State != wire.StateSucceeded || s.StartedAt == nil || s.FinishedAt == nil {
			t.Errorf("step %d is %+v", i, s)
		}
	}
	if s := done.Steps[5]; s.BytesDone != int64(len(l.image)) || s.BytesTotal != s.BytesDone {
		t.Errorf("the image step reports %d of %d bytes", s.BytesDone, s.BytesTotal)
	}
	if done.Disk != "/dev/"+name || done.ImageDigest != digest(l.image) {
		t.Errorf("reported %s on %s", done.ImageDigest, done.Disk)
	}
	if len(l.reports) < len(wire.InstallSteps()) || l.reports[0].Steps[0].State != wire.StatePending {
		t.Errorf("%d reports, the first %+v", len(l.reports), l.reports[0].Steps)
	}
	lookAtDisk(t, file)
	lookAtNode(t, l, name)
}

// lookAtDisk reads the layout with foreign tools.
func lookAtDisk(t *testing.T, file string) {
	t.Helper()
	require.Need(t, "sgdisk", "mtype", "fsck.vfat")
	out := shell(t, "sgdisk", "--verify", "--print", file)
	for _, want := range []string{"No problems found", strings.ToUpper(gpt.Marker("intent-2").String()), "coldrack-bios", "coldrack-esp", "coldrack-root"} {
		if !strings.Contains(out, want) {
			t.Errorf("sgdisk does not show %q:\n%s", want, out)
		}
	}
	esp := file + "@@2M"
	if got := shell(t, "mtype", "-i", esp, "::/EFI/BOOT/BOOTX64.EFI") + shell(t, "mtype", "-i", esp, "::/EFI/BOOT/grubx64.efi"); got != "shimgrub" {
		t.Errorf("the ESP has %q", got)
	}
	if got := shell(t, "mtype", "-i", esp, "::/EFI/debian/grub.cfg"); !strings.Contains(got, "--fs-uuid --set=root "+gpt.Derive("intent-2", "root file system").String()) {
		t.Errorf("the ESP's grub.cfg is %q", got)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1<<20+4)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if string(b[0x180:0x185]) != "GRUB " || b[450] != 0xEE || b[1<<20] != 0xC0 {
		t.Error("boot.img, the protective MBR or core.img is not where it should be")
	}
}

// lookAtNode mounts the new system.
func lookAtNode(t *testing.T, l *lab, name string) {
	t.Helper()
	for number, want := range map[string]int64{"1": biosBytes, "2": espBytes, "3": 1400 << 20} {
		var size int64
		if _, err := fmt.Sscan(shell(t, "blockdev", "--getsize64", "/dev/"+name+"p"+number), &size); err != nil || size < want {
			t.Errorf("partition %s has %d bytes, want %d (%v)", number, size, want, err)
		}
	}
	root := gpt.Derive("intent-2", "root file system").String()
	dir := t.TempDir()
	shell(t, "mount", "-o", "ro", "/dev/"+name+"p3", dir)
	defer shell(t, "umount", dir)
	if out := shell(t, "tune2fs", "-l", "/dev/"+name+"p3"); !strings.Contains(out, root) {
		t.Errorf("the root file system's UUID is not %s:\n%s", root, out)
	}
	if out := shell(t, "df", "--output=size", "-BM", dir); !strings.Contains(out, "1") || strings.Contains(out, " 4") {
		t.Errorf("the file system did not grow: %s", out)
	}
	for file, want := range map[string]string{
		"etc/hostname":            "n1\n",
		"etc/fstab":               "UUID=" + root + " / ext4",
		"boot/grub/grub.cfg":      "linux /boot/vmlinuz-6.1.0-10-amd64 root=UUID=" + root + " ro quiet console=tty0 console=ttyS0,115200n8",
		"etc/coldrack/agent.json": `"machine": "n1"`,
		"etc/systemd/network/10-coldrack-525400000001.network": "Address=10.0.0.5/24",
	} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %v: %q", file, err, b)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "etc/ssh/ssh_host_rsa_key")); err == nil {
		t.Error("the image's SSH host key is still there")
	}
	if _, err := identity.Load(dir, identity.NodeFile); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(filepath.Join(dir, identity.Dir, identity.NodeFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Join(dir, "usr/local/bin/coldrack-agent")); err != nil || info.Mode().Perm() != 0o755 || info.Size() < 1<<20 {
		t.Errorf("the agent: %v, %v", info, err)
	}
	for _, r := range l.reports {
		if b, err := json.Marshal(r); err != nil || strings.Contains(string(b), "PRIVATE KEY") {
			t.Error("the key went over the network")
		}
	}
}

func TestWhatIsOnTheDiskDecidesAboutTheWipe(t *testing.T) {
	image := rootImage(t)
	mark := func(intent string) func(*testing.T, string) {
		return func(t *testing.T, name string) {
			table, err := gpt.New(gpt.Marker(intent), diskSize, 512, []gpt.Want{{Name: "x", Type: gpt.TypeLinux}})
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(table.Write(f), f.Sync(), f.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	format := func(t *testing.T, name string) { shell(t, "mkfs.ext4", "-qF", "/dev/"+name) }
	for name, tt := range map[string]struct {
		before  func(*testing.T, string)
		wipe    string
		refused string
	}{
		"a file system of somebody else":         {before: format, wipe: "RefuseForeign", refused: "holds data that Coldrack did not write: ext2/3/4. Nothing was changed. If it may go: set wipe: Always in the profile"},
		"a file system that may go":              {before: format, wipe: "Always"},
		"another machine's disk of Coldrack":     {before: mark("intent-9"), wipe: "RefuseForeign", refused: "gpt partition table " + gpt.Marker("intent-9").String()},
		"our own earlier install":                {before: mark("intent-1"), wipe: "RefuseForeign"},
		"our own, cut off in the middle":         {before: mark("intent-2"), wipe: "RefuseForeign"},
		"a policy that this agent does not know": {before: format, wipe: "IfBored", refused: "does not know the wipe policy \"IfBored\""},
		"our own with the beginning wiped already": {before: func(t *testing.T, name string) {
			mark("intent-1")(t, name)
			shell(t, "dd", "if=/dev/zero", "of=/dev/"+name, "bs=1M", "count=4", "status=none")
		}, wipe: "RefuseForeign"},
	} {
		t.Run(name, func(t *testing.T) {
			disk, file := loopDisk(t, diskSize)
			tt.before(t, disk)
			l := newLab(t, image)
			l.plan.Wipe = tt.wipe
			before := ""
			if tt.refused != "" {
				before = hash(t, disk, file)
			}
			done := l.install(disk)
			if tt.refused == "" {
				succeeded(t, done)
				lookAtDisk(t, file)
				return
			}
			if done.State != wire.StateFailed || !strings.Contains(done.Message, tt.refused) {
				t.Errorf("%s: %s", done.State, done.Message)
			}
			if hash(t, disk, file) != before {
				t.Error("the disk was changed")
			}
		})
	}
}

// A disk that blkid cannot look at is not blank.
func TestAFailureOfBlkidCountsAsForeignData(t *testing.T) {
	image := rootImage(t)
	for name, script := range map[string]string{
		"it reports an error":  "#!/bin/sh\necho 'blkid: cannot map memory' >&2\nexit 4\n",
		"it cannot be started": "no program",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "blkid"), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			disk, file := loopDisk(t, diskSize)
			l := newLab(t, image)
			l.plan.Wipe = "RefuseForeign"
			before := hash(t, disk, file)
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			done := l.install(disk)
			if done.State != wire.StateFailed || !strings.Contains(done.Message, "unknown content, because blkid failed") {
				t.Errorf("%s: %s", done.State, done.Message)
			}
			if hash(t, disk, file) != before {
				t.Error("the disk was changed")
			}
		})
	}
}

func TestFailuresThatLeaveTheDiskAlone(t *testing.T) {
	image := rootImage(t)
	for name, tt := range map[string]struct {
		change func(*lab)
		text   string
	}{
		"an image that the server does not have":   {func(l *lab) { delete(l.blobs, l.plan.Image.Index.Digest) }, "preflight: the server does not have the chunk index of image debian-12"},
		"a boot loader that arrives damaged":       {func(l *lab) { l.blobs[l.plan.Boot.Shim.Digest] = []byte("SHIM") }, "shim arrived damaged twice"},
		"an index of another image":                {func(l *lab) { l.plan.Image.Size++ }, "the chunk index is of another image"},
		"an image for a family from the future":    {func(l *lab) { l.plan.Image.Family = "plan9" }, `family "plan9"`},
		"a configuration with a wrong address":     {func(l *lab) { l.plan.Config.Interfaces[0].Addresses[0] = "10.0.0.5" }, "interfaces[0].addresses[0]"},
		"too little memory":                        {func(l *lab) { l.plan.MinMemoryBytes = 64 << 30 }, "out of memory: this machine has 4 GiB, the profile asks for 64 GiB"},
		"a clock that is an hour off":              {func(l *lab) { l.skew = time.Hour }, "clock: this machine's is -1h0m"},
		"a hint that no disk matches":              {func(l *lab) { l.plan.RootDisk.Serial = "other" }, "select-disk: no disk matches (rootDisk: serial=other)"},
		"a disk that is too small":                 {func(l *lab) { l.plan.RootDisk.MinSizeBytes = 1 << 40 }, "is smaller than minSize"},
		"a kernel argument that breaks the script": {func(l *lab) { l.plan.KernelArgs = []string{"a'b\n"} }, "kernelArgs[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			disk, file := loopDisk(t, 700<<20)
			l := newLab(t, image)
			tt.change(l)
			before := hash(t, disk, file)
			done := l.install(disk)
			if done.State != wire.StateFailed || !strings.Contains(done.Message, tt.text) {
				t.Errorf("%s: %s", done.State, done.Message)
			}
			if hash(t, disk, file) != before {
				t.Error("the disk was changed")
			}
		})
	}
}

// A controller may take minutes for its disks. Neither an install nor a release looks before they are there.
func TestDisksThatComeLate(t *testing.T) {
	disk, file := loopDisk(t, diskSize)
	l := newLab(t, rootImage(t))
	late := func(settled bool, patience time.Duration, looks int) *Installer {
		i := l.installer(disk)
		all := i.Inventory
		i.DiskPatience = patience
		i.Settle = func(context.Context) error { settled = true; return nil }
		i.Inventory = func() wire.Inventory {
			inv := all()
			if looks--; looks >= 0 || !settled {
				inv.Disks = nil
			}
			return inv
		}
		return i
	}
	done, err := late(true, 0, 1).Install(t.Context(), l.plan)
	if err != nil || done.State != wire.StateFailed || !strings.Contains(done.Message, "shows no disk at all") {
		t.Errorf("without patience: %s: %s, %v", done.State, done.Message, err)
	}
	done, err = late(false, time.Hour, 2).Install(t.Context(), l.plan)
	if err != nil {
		t.Fatal(err)
	}
	succeeded(t, done)
	lookAtDisk(t, file)
	done, err = late(false, 0, 0).Release(t.Context(), wire.ReleasePlan{IntentID: "release", OwnMarkers: []string{gpt.Marker(l.plan.IntentID).String()}})
	if err != nil || done.State != wire.StateSucceeded {
		t.Fatalf("%s: %s, %v", done.State, done.Message, err)
	}
	if out, err := exec.Command("blkid", "-p", "/dev/"+disk).CombinedOutput(); err == nil {
		t.Errorf("the release left something on a disk that came late: %s", out)
	}
}

func TestAMountedDiskIsNotTouched(t *testing.T) {
	disk, _ := loopDisk(t, diskSize)
	shell(t, "mkfs.ext4", "-qF", "/dev/"+disk)
	dir := t.TempDir()
	shell(t, "mount", "/dev/"+disk, dir)
	defer shell(t, "umount", dir)
	l := newLab(t, rootImage(t))
	l.plan.Wipe = "Always"
	done := l.install(disk)
	if done.State != wire.StateFailed || !strings.Contains(done.Message, "in use by the running system: mounted at "+dir) {
		t.Errorf("%s: %s", done.State, done.Message)
	}
	i := l.installer(disk)
	i.InUse = func() map[string]string { return nil } // even if that were overlooked
	done, err := i.Install(context.Background(), l.plan)
	if err != nil || done.State != wire.StateFailed || !strings.Contains(done.Message, "is in use: mounted") {
		t.Errorf("%s: %s, %v", done.State, done.Message, err)
	}
}

func TestAPowerCutWhileTheImageIsWritten(t *testing.T) {
	disk, file := loopDisk(t, diskSize)
	l := newLab(t, rootImage(t))
	ctx, cut := context.WithCancel(context.Background())
	i := l.installer(disk)
	i.Watch = func(s wire.Step) {
		if s.Name == wire.StepImage && s.BytesDone > 0 {
			cut()
		}
	}
	if _, err := i.Install(ctx, l.plan); !errors.Is(err, context.Canceled) {
		t.Fatalf("error is %v", err)
	}
	succeeded(t, l.install(disk))
	lookAtDisk(t, file)
}

func TestANetworkThatFailsCostsOnlyTime(t *testing.T) {
	disk, file := loopDisk(t, diskSize)
	l := newLab(t, rootImage(t))
	var mu sync.Mutex
	failed := map[string]bool{}
	l.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		key := r.URL.Path + r.Header.Get("Range")
		if failed[key] || len(failed) > 5 {
			return false
		}
		failed[key] = true
		switch len(failed) % 3 {
		case 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 1: // a connection that breaks in the middle of the body
			w.Header().Set("Content-Range", "bytes "+strings.TrimPrefix(r.Header.Get("Range"), "bytes=")+"/*")
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write([]byte("half"))
		case 2:
			panic(http.ErrAbortHandler)
		}
		return true
	}
	succeeded(t, l.install(disk))
	lookAtDisk(t, file)
	for what, n := range l.requests {
		if limit := 2; n > limit {
			t.Errorf("%s was fetched %d times", what, n)
		}
	}
}

func TestWrongBytesFailTheImageStepByName(t *testing.T) {
	disk, _ := loopDisk(t, diskSize)
	l := newLab(t, rootImage(t))
	for d, b := range l.blobs {
		if len(b) > 1<<20 {
			spoilt := bytes.Clone(b)
			spoilt[len(b)/2] ^= 1
			l.blobs[d] = spoilt
		}
	}
	done := l.install(disk)
	if done.State != wire.StateFailed || !strings.Contains(done.Message, "image: write image: chunk") || !strings.Contains(done.Message, "arrived damaged twice: digest is sha256:") {
		t.Errorf("%s: %s", done.State, done.Message)
	}
	if s := done.Steps[5]; s.State != wire.StateFailed || s.Message == "" || done.Steps[6].State != wire.StatePending {
		t.Errorf("steps: %+v", done.Steps)
	}
}

func TestAnIntentThatIsWithdrawnStopsTheAct(t *testing.T) {
	disk, file := loopDisk(t, diskSize)
	l := newLab(t, rootImage(t))
	l.cancel = func(wire.Progress) bool { return true }
	before := hash(t, disk, file)
	if _, err := l.installer(disk).Install(context.Background(), l.plan); !errors.Is(err, ErrCancelled) {
		t.Errorf("before it begins: %v", err)
	}
	if hash(t, disk, file) != before {
		t.Error("the disk was changed")
	}
	blocked := make(chan struct{})
	l.cancel = func(p wire.Progress) bool { return p.Steps[5].State == wire.StateRunning }
	l.spoil = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
			return false
		}
		select { // chunks never arrive
		case <-blocked:
		case <-r.Context().Done():
		}
		return true
	}
	defer close(blocked)
	if _, err := l.installer(disk).Install(context.Background(), l.plan); !errors.Is(err, ErrCancelled) {
		t.Errorf("in the middle: %v", err)
	}
}

func TestReleaseWipesWhatIsOursAndNothingElse(t *testing.T) {
	ours, file := loopDisk(t, diskSize)
	foreign, foreignFile := loopDisk(t, 64<<20)
	shell(t, "mkfs.ext4", "-qF", "/dev/"+foreign)
	l := newLab(t, rootImage(t))
	succeeded(t, l.install(ours))
	before := hash(t, foreign, foreignFile)
	plan := wire.ReleasePlan{IntentID: "intent-3", Machine: "n1", OwnIntentIDs: []string{"intent-2", "intent-3"}}
	for range 2 { // the second time as after a power cut before the acknowledgement
		done, err := l.installer(ours, foreign).Release(context.Background(), plan)
		if err != nil {
			t.Fatal(err)
		}
		succeeded(t, done)
		if out, err := exec.Command("blkid", "-p", "/dev/"+ours).CombinedOutput(); err == nil {
			t.Errorf("still there: %s", out)
		}
		if parts, err := filepath.Glob("/dev/" + ours + "p*"); err != nil || len(parts) > 0 {
			t.Errorf("partitions are left: %v, %v", parts, err)
		}
		if hash(t, foreign, foreignFile) != before {
			t.Error("the foreign disk was changed")
		}
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, diskSize - 8<<20} {
		b := make([]byte, 8<<20)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("GRUB")) || bytes.Contains(b, []byte("EFI PART")) {
			t.Error("boot loader or partition table are left")
		}
	}
}

func TestTwoDisksAreRefusedWithoutAHint(t *testing.T) {
	one, _ := loopDisk(t, diskSize)
	two, _ := loopDisk(t, diskSize)
	l := newLab(t, rootImage(t))
	done, err := l.installer(one, two).Install(context.Background(), l.plan)
	if err != nil || done.State != wire.StateFailed || !strings.Contains(done.Message, "2 disks match") {
		t.Errorf("%s: %s, %v", done.State, done.Message, err)
	}
}
