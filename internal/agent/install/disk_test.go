package install

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coldrack.dev/internal/agent/gpt"
	"coldrack.dev/internal/agent/identity"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/require"
)

// part is one partition of a disk image of a test.
type part struct {
	number     int
	name, code string
	megabytes  int
	format     []string          // IMAGE, TREE and the like are replaced
	files      map[string]string // by path, for format
	espLoader  string            // what EFI/BOOT/BOOTX64.EFI holds
}

// cloudParts are a disk as Debian's cloud images have it: the root file system is the first partition and the last on the disk.
func cloudParts() []part {
	return []part{
		{number: 14, name: "", code: "ef02", megabytes: 3},
		{number: 15, name: "", code: "ef00", megabytes: 34, espLoader: "loader"},
		{number: 1, name: "", code: "8303", megabytes: 48, format: []string{"mkfs.ext4", "-q", "-d"}, files: map[string]string{
			"etc/os-release": "ID=debian\n", "etc/cloud/cloud.cfg": "datasource_list: [Azure]\n", "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
			"etc/passwd": "root:x:0:0:root:/root:/bin/bash\n", "etc/group": "root:x:0:\n",
			"usr/lib/systemd/system/multi-user.target": "[Unit]\n", "var/lib/dbus/x": "", "opt/noise": strings.Repeat("noise", 500_000),
		}},
	}
}

// diskImageOf makes a whole disk with real tools.
func diskImageOf(t *testing.T, parts []part) []byte {
	t.Helper()
	require.Need(t, "sgdisk", "mkfs.ext4", "mkfs.vfat", "mcopy")
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	total := 2
	for _, p := range parts {
		total += p.megabytes
	}
	raw := make([]byte, total<<20)
	copy(raw, bytes.Repeat([]byte{0xEB, 0x63}, 200)) // code of the first sector
	if err := os.WriteFile(disk, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--disk-guid=00000000-0000-0000-0000-000000000001"}
	for _, p := range parts {
		n := fmt.Sprint(p.number)
		args = append(args, "--new="+n+":0:+"+fmt.Sprint(p.megabytes)+"M", "--typecode="+n+":"+p.code, "--change-name="+n+":"+p.name)
	}
	args[len(args)-3] = strings.Replace(args[len(args)-3], fmt.Sprintf("+%dM", parts[len(parts)-1].megabytes), "0", 1)
	shell(t, "sgdisk", append(args, disk)...)
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := gpt.Read(f, int64(len(raw)), 512)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		for _, e := range table.Partitions {
			if e.Number == p.number {
				if b := p.content(t, dir, table.Size(e)); b != nil {
					if _, err := f.WriteAt(b, table.Start(e)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	b, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p part) content(t *testing.T, dir string, size int64) []byte {
	t.Helper()
	file := filepath.Join(dir, fmt.Sprintf("part%d", p.number))
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)); err != nil {
		t.Fatal(err)
	}
	switch {
	case p.espLoader != "":
		loader := filepath.Join(dir, "loader")
		if err := os.WriteFile(loader, []byte(p.espLoader), 0o600); err != nil {
			t.Fatal(err)
		}
		shell(t, "mkfs.vfat", "-F", "32", file)
		shell(t, "mmd", "-i", file, "::/EFI", "::/EFI/BOOT")
		shell(t, "mcopy", "-i", file, loader, "::/EFI/BOOT/BOOTX64.EFI")
	case p.format != nil:
		tree := filepath.Join(dir, fmt.Sprintf("tree%d", p.number))
		if err := os.MkdirAll(tree, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, body := range p.files {
			path := filepath.Join(tree, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(body), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		require.Need(t, p.format[0])
		shell(t, p.format[0], append(p.format[1:], tree, file)...)
	default:
		return nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// cloudLab gives out a whole-disk image for cloud-init.
func cloudLab(t *testing.T, image []byte) *lab {
	t.Helper()
	l := newLab(t, image)
	l.plan.Image.Family, l.plan.Image.Name = familyCloudInit, "cloud"
	l.plan.FirstBoot = &wire.FirstBoot{NoCloud: &wire.NoCloud{
		UserData: []byte("#cloud-config\nhostname: n1\n"), MetaData: []byte("instance-id: i\n"), NetworkConfig: []byte("version: 2\n"),
	}}
	return l
}

const wholeDiskSize = 256 << 20

// bootable says whether firmware could find anything to start on a disk: code in its first sector, or a partition.
func bootable(t *testing.T, name string) (yes bool, table *gpt.Table) {
	t.Helper()
	shell(t, "blockdev", "--flushbufs", "/dev/"+name)
	f, err := os.Open("/dev/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	first := make([]byte, 440)
	if _, err := f.ReadAt(first, 0); err != nil {
		t.Fatal(err)
	}
	size, err := f.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	table, err = gpt.Read(f, size, 512)
	if err != nil {
		return !bytes.Equal(first, make([]byte, 440)), nil
	}
	return len(table.Partitions) > 0 || !bytes.Equal(first, make([]byte, 440)), table
}

func TestAWholeDiskBecomesAMachine(t *testing.T) {
	image := diskImageOf(t, cloudParts())
	before, err := gpt.Read(bytes.NewReader(image), int64(len(image)), 512)
	if err != nil {
		t.Fatal(err)
	}
	name, file := loopDisk(t, wholeDiskSize)
	l := cloudLab(t, image)
	done := l.install(name)
	succeeded(t, done)
	if done.ImageDigest != digest(image) || len(done.Steps) != len(wire.InstallSteps()) {
		t.Errorf("reported %s in %d steps", done.ImageDigest, len(done.Steps))
	}
	out := shell(t, "sgdisk", "--verify", "--print", file)
	for _, want := range []string{"No problems found", strings.ToUpper(gpt.Marker("intent-2").String()), gpt.NameDisk} {
		if !strings.Contains(out, want) {
			t.Errorf("sgdisk does not show %q:\n%s", want, out)
		}
	}
	ok, after := bootable(t, name)
	if !ok || after == nil || len(after.Partitions) != len(before.Partitions)+1 {
		t.Fatalf("the table is %+v", after)
	}
	// Every byte of every partition but the root file system, and the code of the first sector, are the image's.
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range before.Partitions {
		if after.Partitions[i] != p {
			t.Errorf("partition %d became %+v, was %+v", p.Number, after.Partitions[i], p)
		}
		if at, n := before.Start(p), before.Size(p); p.Number != 1 && !bytes.Equal(b[at:at+n], image[at:at+n]) {
			t.Errorf("partition %d has other bytes than the image", p.Number)
		}
	}
	if !bytes.Equal(b[:440], image[:440]) || b[450] != 0xEE {
		t.Error("the first sector is not the image's with a protective table")
	}
	if old := b[len(image)-512:]; string(old[:8]) == "EFI PART" {
		t.Error("the image's backup table is still in the middle of the disk")
	}
	added := after.Partitions[len(after.Partitions)-1]
	volume := fmt.Sprintf("%s@@%d", file, after.Start(added))
	if got := shell(t, "mtype", "-i", volume, "::/EFI/BOOT/BOOTX64.EFI") + shell(t, "mtype", "-i", volume, "::/EFI/debian/grub.cfg"); !strings.HasPrefix(got, "shim") || !strings.Contains(got, "chainloader (${disk},gpt15)/EFI/BOOT/BOOTX64.EFI") {
		t.Errorf("the added partition has %q", got)
	}
	if got := shell(t, "blkid", "-p", "-s", "LABEL", "-o", "value", "-O", fmt.Sprint(after.Start(added)), "-S", fmt.Sprint(after.Size(added)), file); got != "COLDRACK\n" {
		t.Errorf("its label is %q", got)
	}
	dir := t.TempDir()
	shell(t, "mount", "-o", "ro", "/dev/"+name+"p1", dir)
	lookAtCloud(t, dir)
	shell(t, "umount", dir)
	// A release knows the disk by its mark.
	if done, err = l.installer(name).Release(t.Context(), wire.ReleasePlan{IntentID: "intent-3", Machine: "n1", OwnIntentIDs: []string{"intent-2"}}); err != nil {
		t.Fatal(err)
	}
	succeeded(t, done)
	if yes, table := bootable(t, name); yes || table != nil {
		t.Errorf("after a release the disk has %+v", table)
	}
}

func lookAtCloud(t *testing.T, dir string) {
	t.Helper()
	for file, want := range map[string]string{
		"var/lib/cloud/seed/nocloud/user-data":      "hostname: n1",
		"var/lib/cloud/seed/nocloud/meta-data":      "instance-id: i",
		"var/lib/cloud/seed/nocloud/network-config": "version: 2",
		"etc/cloud/cloud.cfg.d/95_coldrack.cfg":     "datasource_list: [NoCloud, None]",
		"etc/coldrack/agent.json":                   `"machine": "n1"`,
		"etc/machine-id":                            "",
		"etc/systemd/system/coldrack-agent.service": "ExecStart=/usr/local/bin/coldrack-agent node",
	} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || !strings.Contains(string(b), want) || want == "" && len(b) > 0 {
			t.Errorf("%s: %v: %q", file, err, b)
		}
	}
	if to, err := os.Readlink(filepath.Join(dir, "etc/systemd/system/multi-user.target.wants/coldrack-agent.service")); err != nil || to != "/etc/systemd/system/coldrack-agent.service" {
		t.Errorf("the agent is not enabled: %q, %v", to, err)
	}
	if _, err := identity.Load(dir, identity.NodeFile); err != nil {
		t.Error(err)
	}
	for _, secret := range []string{"var/lib/cloud/seed/nocloud/user-data", "var/lib/coldrack/agent/node.pem"} {
		if info, err := os.Stat(filepath.Join(dir, secret)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", secret, info, err)
		}
	}
}

// Wherever an install ends, the disk starts nothing, is known as ours, and the next install goes through.
func TestHalfAnImageNeverStarts(t *testing.T) {
	require.Swift(t)
	image := diskImageOf(t, cloudParts())
	for _, at := range []string{wire.StepPartition, wire.StepImage, wire.StepBootloader, wire.StepNodeConfig, wire.StepIdentity} {
		t.Run(at, func(t *testing.T) {
			name, _ := loopDisk(t, wholeDiskSize)
			l := cloudLab(t, image)
			l.cancel = func(p wire.Progress) bool {
				for _, s := range p.Steps {
					if s.Name == at && s.State != wire.StatePending {
						return true
					}
				}
				return false
			}
			install := l.installer(name)
			// The step waits until the server has withdrawn the install.
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			install.Watch = func(s wire.Step) {
				if s.Name == at && s.State == wire.StateRunning {
					stop()
				}
			}
			if _, err := install.Install(ctx, l.plan); err == nil {
				t.Fatal("the install went through")
			}
			yes, table := bootable(t, name)
			if yes {
				t.Errorf("the disk could start: %+v", table)
			}
			if at != wire.StepPartition && (table == nil || table.DiskGUID != gpt.Marker("intent-2")) {
				t.Errorf("the disk is not known as ours: %+v", table)
			}
			l.cancel = nil
			succeeded(t, l.install(name))
		})
	}
	t.Run("a missing chunk", func(t *testing.T) {
		name, _ := loopDisk(t, wholeDiskSize)
		l := cloudLab(t, image)
		looks := 0
		l.spoil = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") == "" {
				return false
			}
			if looks++; looks == 1 { // preflight reads the first chunk
				return false
			}
			http.Error(w, "gone", http.StatusNotFound)
			return true
		}
		if done := l.install(name); done.State != wire.StateFailed {
			t.Fatalf("%+v", done)
		}
		if yes, table := bootable(t, name); yes {
			t.Errorf("the disk could start: %+v", table)
		}
	})
}

func TestAWholeDiskIsRefused(t *testing.T) {
	require.Swift(t)
	image := diskImageOf(t, cloudParts())
	tests := map[string]struct {
		size    int64
		sector  string
		format  bool
		change  func(*lab, *Installer)
		refused string
	}{
		"by a disk that is smaller":          {size: 96 << 20, refused: "is too small: the image needs"},
		"by somebody else's data":            {format: true, refused: "holds data that Coldrack did not write"},
		"by a disk with other sectors":       {sector: "4096", refused: "has sectors of 4096 bytes, and image cloud is made for sectors of 512"},
		"where nothing says what it is told": {change: func(l *lab, _ *Installer) { l.plan.FirstBoot = nil }, refused: "does not say what it is to be told"},
		"of a family that is not known":      {change: func(l *lab, _ *Installer) { l.plan.Image.Family = "plan9" }, refused: `is of family "plan9"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.size == 0 {
				tt.size = wholeDiskSize
			}
			disk, file := loopDisk(t, tt.size)
			if tt.sector != "" {
				shell(t, "losetup", "--sector-size", tt.sector, "/dev/"+disk)
			}
			if tt.format {
				shell(t, "mkfs.ext4", "-qF", "/dev/"+disk)
			}
			before := hash(t, disk, file)
			l := cloudLab(t, image)
			i := l.installer(disk)
			if tt.change != nil {
				tt.change(l, i)
			}
			done, err := i.Install(context.Background(), l.plan)
			if err != nil || done.State != wire.StateFailed || !strings.Contains(done.Message, tt.refused) {
				t.Fatalf("%v, %q, want %q", err, done.Message, tt.refused)
			}
			if hash(t, disk, file) != before {
				t.Error("the disk was changed")
			}
		})
	}
	t.Run("without the firmware's way to start it", func(t *testing.T) {
		uefiless := bytes.Clone(image)
		table, err := gpt.Read(bytes.NewReader(image), int64(len(image)), 512)
		if err != nil {
			t.Fatal(err)
		}
		for i := range table.Partitions {
			table.Partitions[i].Type = table.Partitions[0].GUID // of no type that is known
		}
		disk := memoryDisk(uefiless)
		if err := table.Write(disk); err != nil {
			t.Fatal(err)
		}
		name, _ := loopDisk(t, wholeDiskSize)
		l := cloudLab(t, uefiless)
		i := l.installer(name)
		inventory := i.Inventory
		i.Inventory = func() wire.Inventory { inv := inventory(); inv.Firmware = "UEFI"; return inv }
		done, err := i.Install(context.Background(), l.plan)
		if err != nil || !strings.Contains(done.Message, "has no EFI system partition, and this machine starts by UEFI") {
			t.Errorf("%v, %q", err, done.Message)
		}
		clear(uefiless[:440])
		l = cloudLab(t, uefiless)
		if done := l.install(name); !strings.Contains(done.Message, "has no code in its first sector, and this machine starts by BIOS") {
			t.Errorf("%q", done.Message)
		}
	})
	t.Run("with a table that was changed", func(t *testing.T) {
		bad := bytes.Clone(image)
		binary.LittleEndian.PutUint64(bad[512+40:], 7)
		name, _ := loopDisk(t, wholeDiskSize)
		if done := cloudLab(t, bad).install(name); !strings.Contains(done.Message, "header checksum is wrong") {
			t.Errorf("%q", done.Message)
		}
	})
}

type memoryDisk []byte

func (m memoryDisk) ReadAt(p []byte, at int64) (int, error)  { return copy(p, m[at:]), nil }
func (m memoryDisk) WriteAt(p []byte, at int64) (int, error) { return copy(m[at:], p), nil }

// Flatcar has its config on the OEM partition, which is btrfs; Fedora CoreOS on the boot partition.
func TestIgnitionIsOnThePartitionThatTheFamilyReads(t *testing.T) {
	require.Swift(t)
	esp := part{number: 1, name: "EFI-SYSTEM", code: "ef00", megabytes: 34, espLoader: "loader"}
	for family, tt := range map[string]struct {
		parts  []part
		ign    wire.Ignition
		device string
	}{
		"flatcar": {[]part{esp,
			{number: 3, name: "USR-A", code: "8300", megabytes: 2},
			{number: 6, name: "OEM", code: "8300", megabytes: 128, format: []string{"mkfs.btrfs", "-q", "-L", "OEM", "-r"}, files: map[string]string{"grub.cfg": "set oem_id=x\n"}},
			{number: 9, name: "ROOT", code: "8300", megabytes: 4}},
			wire.Ignition{Config: []byte(`{"ignition": {"version": "3.3.0"}}`), Partition: "OEM", Path: "/config.ign", Agent: "/coldrack"}, "p6"},
		"fcos": {[]part{esp,
			{number: 3, name: "boot", code: "8300", megabytes: 64, format: []string{"mkfs.ext4", "-q", "-L", "boot", "-d"}, files: map[string]string{"ignition.firstboot": ""}},
			{number: 4, name: "root", code: "8300", megabytes: 4}},
			wire.Ignition{Config: []byte(`{"ignition": {"version": "3.3.0"}}`), Partition: "boot", Path: "/ignition/config.ign", Agent: "/coldrack"}, "p3"},
	} {
		t.Run(family, func(t *testing.T) {
			image := diskImageOf(t, tt.parts)
			name, _ := loopDisk(t, 384<<20)
			l := newLab(t, image)
			l.plan.Image.Family, l.plan.FirstBoot = family, &wire.FirstBoot{Ignition: &tt.ign}
			succeeded(t, l.install(name))
			dir := t.TempDir()
			shell(t, "mount", "-o", "ro", "/dev/"+name+tt.device, dir)
			lookAtIgnition(t, dir, tt.ign)
			shell(t, "umount", dir)
			// An image without that partition is another one.
			l.plan.FirstBoot.Ignition.Partition = "nowhere"
			if done := l.install(name); !strings.Contains(done.Message, "has no partition of the name nowhere") {
				t.Errorf("%q", done.Message)
			}
		})
	}
}

func lookAtIgnition(t *testing.T, dir string, ign wire.Ignition) {
	t.Helper()
	for file, mode := range map[string]os.FileMode{ign.Path: 0o600, "coldrack/coldrack-agent": 0o755, "coldrack/agent.json": 0o644, "coldrack/node.pem": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != mode || info.Size() == 0 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, ign.Path)); err != nil || !bytes.Equal(b, ign.Config) {
		t.Errorf("%v: %s", err, b)
	}
}
