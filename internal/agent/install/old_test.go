package install

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/agent/gpt"
	"coldrack.dev/internal/agent/probe"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/require"
)

// old is something that a disk had before, made by the program that people make it with. Tools for which this machine's kernel would have
// to assemble something are not run here: what they left on disks of a virtual machine is in testdata, see seed.
type old struct {
	name string
	tool string
	make func(t *testing.T, dev string)
	want string   // as package probe names it
	show []string // a program that finds it, DEV being the device; blkid and wipefs are asked in any case
	size int64    // of the disk, 0: any
}

func command(args ...string) func(*testing.T, string) {
	return func(t *testing.T, dev string) {
		t.Helper()
		cmd := exec.Command(require.Program(args[0]))
		for _, a := range args[1:] {
			cmd.Args = append(cmd.Args, strings.ReplaceAll(a, "DEV", dev))
		}
		cmd.Stdin = strings.NewReader("yes\nyes\nyes\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
}

// seedSize is how large the disks were that the seeds are from.
const seedSize = 64 << 20

// seed writes what mdadm 4.2 left, on Debian 12 in a virtual machine with disks of 64 MiB, by
//
//	mdadm --create /dev/md10 --run --assume-clean --metadata=1.2 --level=1 --raid-devices=2 /dev/vda /dev/vdb
//
// or, for imsm and ddf with IMSM_NO_PLATFORM=1 and IMSM_DEVNAME_AS_SERIAL=1, by
//
//	mdadm --create /dev/md14 --run --metadata=imsm --raid-devices=2 /dev/vdi /dev/vdj
//	mdadm --create /dev/md/vol0 --run --level=1 --raid-devices=2 /dev/md14
//
// A line is a sector that was not empty: its offset, and its bytes but for zeros at the end, "ff*512" being 512 times ff.
func seed(name string) func(*testing.T, string) {
	return func(t *testing.T, dev string) {
		t.Helper()
		in, err := os.Open(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		out, err := os.OpenFile(dev, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(in)
		for lines.Scan() {
			at, text, _ := strings.Cut(lines.Text(), " ")
			off, err := strconv.ParseInt(at, 16, 64)
			if one, n, ok := strings.Cut(text, "*"); ok {
				count, atoi := strconv.Atoi(n)
				text, err = strings.Repeat(one, count), errors.Join(err, atoi)
			}
			b, wrong := hex.DecodeString(text)
			if err := errors.Join(err, wrong); err != nil {
				t.Fatal(err)
			}
			if _, err := out.WriteAt(b, off); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(lines.Err(), out.Sync(), out.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// bytesAt writes formats whose own programs cannot be had here, as their documents describe them. A negative place counts from the end.
func bytesAt(text string, places ...int64) func(*testing.T, string) {
	return func(t *testing.T, dev string) {
		t.Helper()
		f, err := os.OpenFile(dev, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		size, err := f.Seek(0, 2)
		for _, at := range places {
			if at < 0 {
				at += size
			}
			_, wrong := f.WriteAt([]byte(text), at)
			err = errors.Join(err, wrong)
		}
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// lvm is a configuration that sees loop devices only, and needs neither udev nor this machine's own settings.
const lvm = `devices{use_devicesfile=0 scan=["/dev"] filter=["a|^/dev/loop|","r|.*|"] obtain_device_list_from_udev=0} activation{udev_sync=0 udev_rules=0} backup{backup=0 archive=0}`

func olds() []old {
	mdadm := []string{"mdadm", "--examine", "DEV"}
	luks := []string{"cryptsetup", "isLuks", "DEV"}
	format := []string{"cryptsetup", "luksFormat", "--batch-mode", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "DEV"}
	// The uberblocks of four labels, of a pool on a disk whose size is a multiple of 256 KiB.
	uberblocks := []int64{128 << 10, 384 << 10, -384 << 10, -128 << 10}
	return []old{
		{name: "ext4", tool: "mkfs.ext4", make: command("mkfs.ext4", "-qF", "DEV"), want: "ext2/3/4", show: []string{"tune2fs", "-l", "DEV"}},
		{name: "XFS", tool: "mkfs.xfs", make: command("mkfs.xfs", "-qf", "DEV"), want: "XFS", show: []string{"xfs_db", "-r", "-c", "version", "DEV"}, size: 512 << 20},
		{name: "Btrfs with all of its mirrors", tool: "mkfs.btrfs", make: command("mkfs.btrfs", "-qf", "DEV"), want: "btrfs", show: []string{"btrfs", "filesystem", "show", "DEV"}, size: 300 << 30},
		{name: "swap", tool: "mkswap", make: command("mkswap", "DEV"), want: "swap", show: []string{"swaplabel", "DEV"}},
		{name: "LUKS1", tool: "cryptsetup", make: command(append(format, "--type=luks1")...), want: "LUKS", show: luks},
		{name: "LUKS2 with its second header at 4 MiB", tool: "cryptsetup",
			make: command(append(format, "--type=luks2", "--luks2-metadata-size=4m", "--luks2-keyslots-size=16m")...), want: "LUKS", show: luks},
		{name: "LVM", tool: "pvcreate", make: command("pvcreate", "--config", lvm, "-ff", "-y", "DEV"), want: "LVM2 physical volume", show: []string{"pvck", "--config", lvm, "DEV"}},
		{name: "bcache", tool: "make-bcache", make: command("make-bcache", "--wipe-bcache", "-B", "DEV"), want: "bcache", show: []string{"bcache-super-show", "DEV"}},
		{name: "DRBD 8", tool: "drbdmeta", make: command("drbdmeta", "--force", "0", "v08", "DEV", "internal", "create-md"), want: "DRBD"},
		{name: "DRBD 9", tool: "drbdmeta", make: command("drbdmeta", "--force", "0", "v09", "DEV", "internal", "create-md", "1"), want: "DRBD"},
		{name: "RAID 0.90", tool: "mdadm", make: seed("md-0.90"), want: "Linux RAID member", show: mdadm, size: seedSize},
		{name: "RAID 1.0", tool: "mdadm", make: seed("md-1.0"), want: "Linux RAID member", show: mdadm, size: seedSize},
		{name: "RAID 1.1", tool: "mdadm", make: seed("md-1.1"), want: "Linux RAID member", show: mdadm, size: seedSize},
		{name: "RAID 1.2", tool: "mdadm", make: seed("md-1.2"), want: "Linux RAID member", show: mdadm, size: seedSize},
		{name: "Intel's RAID", tool: "mdadm", make: seed("imsm"), want: "Intel RAID member", size: seedSize},
		{name: "a DDF RAID", tool: "mdadm", make: seed("ddf"), want: "DDF RAID member", show: mdadm, size: seedSize},
		{name: "ZFS", make: bytesAt("\x0C\xB1\xBA\x00\x00\x00\x00\x00", uberblocks...), want: "ZFS member"},
		{name: "VMFS", make: bytesAt("\x0D\xD0\x01\xC0", 1<<20), want: "VMFS"},
		{name: "Ceph's BlueStore with its copies", make: bytesAt("bluestore block device\n", 0, 1<<30, 10<<30), want: "Ceph BlueStore", size: 11 << 30},
	}
}

// finders ask programs of others what a device is, and return what they say, "" for nothing.
func finders(t *testing.T, dev string, show []string) string {
	t.Helper()
	shell(t, "blockdev", "--flushbufs", dev)
	// A partition's own entry in its table is not asked for.
	var found []string
	if out, err := exec.Command("blkid", "-p", "-s", "TYPE", "-s", "PTTYPE", dev).Output(); err == nil && strings.Contains(string(out), "TYPE=") {
		found = append(found, "blkid: "+string(out))
	}
	found = append(found, shell(t, "wipefs", "--no-act", "--noheadings", dev))
	if len(show) > 0 {
		args := strings.Split(strings.ReplaceAll(strings.Join(show, "\x00"), "DEV", dev), "\x00")
		cmd := exec.Command(require.Program(args[0]), args[1:]...)
		if out, err := cmd.CombinedOutput(); err == nil {
			found = append(found, cmd.String()+": finds it: "+string(out))
		}
	}
	return strings.Join(found, "")
}

// keepDiscarded makes a disk of those that cannot discard, so that only what is written over is gone.
func keepDiscarded(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile("/sys/block/"+name+"/queue/discard_max_bytes", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
}

func opened(t *testing.T, name string) *device {
	t.Helper()
	d, err := openDevice(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func wiper(t *testing.T) *operation {
	t.Helper()
	i := &Installer{Log: slog.New(slog.DiscardHandler), Now: time.Now}
	return i.operation("intent-2", nil, nil, wire.ReleaseSteps())
}

func erased(t *testing.T, d *device, found probe.Report, next []probe.Range) {
	t.Helper()
	if how, err := wiper(t).erase(context.Background(), d, found, next, false); err != nil {
		t.Fatal(err)
	} else if !strings.HasPrefix(how, "signatures overwritten; read back: ") {
		t.Errorf("was done: %s", how)
	}
}

func TestNothingOldIsFoundOnADiskThatWasWiped(t *testing.T) {
	for _, tt := range olds() {
		t.Run(tt.name, func(t *testing.T) {
			name := disklike(t, tt, 0)
			dev := "/dev/" + name
			tt.make(t, dev)
			if found := finders(t, dev, tt.show); !strings.Contains(found, "finds it") && len(tt.show) > 0 {
				t.Fatalf("%q does not find it before the wipe: %s", tt.show, found)
			}
			d := opened(t, name)
			found, err := inspect(t.Context(), d)
			if err != nil || len(found.Signatures) == 0 || found.Signatures[0] != tt.want {
				t.Fatalf("found %q, want %q (%v)", found.lines(), tt.want, err)
			}
			erased(t, d, found.Report, nil)
			if left := finders(t, dev, tt.show); left != "" {
				t.Errorf("still there after the wipe: %s", left)
			}
			if again, err := inspect(t.Context(), d); err != nil || !again.blank() {
				t.Errorf("found %q after the wipe (%v)", again.lines(), err)
			}
		})
	}
}

// disklike is a disk for something old, with margin bytes more.
func disklike(t *testing.T, tt old, margin int64) string {
	t.Helper()
	require.Need(t, "root", "losetup", "blkid", "wipefs")
	if tt.tool != "" {
		require.Need(t, tt.tool)
	}
	size := tt.size
	if size == 0 {
		size = 96 << 20
	}
	name, _ := loopDisk(t, size+margin)
	keepDiscarded(t, name)
	return name
}

// A new partition at the place of an old one shows what the old one held, if only the edges of the disk were wiped.
func TestNothingOldComesBackInANewPartition(t *testing.T) {
	for _, tt := range olds() {
		if tt.want == "Intel RAID member" || tt.want == "DDF RAID member" {
			continue // of whole disks only
		}
		t.Run(tt.name, func(t *testing.T) {
			const margin = 16 << 20
			name := disklike(t, tt, margin)
			d := opened(t, name)
			table, err := gpt.New(gpt.Marker("old"), d.size, d.sector, []gpt.Want{
				{Name: "before", Type: gpt.TypeLinux, Bytes: 8 << 20}, {Name: "old", Type: gpt.TypeLinux, Bytes: d.size - margin}})
			if err != nil {
				t.Fatal(err)
			}
			part := func() string {
				t.Helper()
				if err := errors.Join(table.Write(d), d.flush(), d.tellKernel(table)); err != nil {
					t.Fatal(err)
				}
				dev, err := d.partition(t.Context(), 2)
				if err != nil {
					t.Fatal(err)
				}
				return dev
			}
			forget := func() {
				t.Helper()
				if err := errors.Join(d.forgetPartitions(), d.zero(0, 1<<20), d.zero(d.size-1<<20, 1<<20), d.flush()); err != nil {
					t.Fatal(err)
				}
			}
			tt.make(t, part())
			forget() // the table is lost, and with it where the partition was
			if found := finders(t, part(), tt.show); !strings.Contains(found, "finds it") && len(tt.show) > 0 {
				t.Fatalf("%q does not find it before the wipe: %s", tt.show, found)
			}
			forget()
			p := table.Partitions[1]
			found, err := inspect(t.Context(), d)
			if err != nil || len(found.Parts) > 0 {
				t.Fatalf("found %q, %v", found.lines(), err)
			}
			erased(t, d, found.Report, []probe.Range{{Start: table.Start(p), Size: table.Size(p)}})
			dev := part()
			if left := finders(t, dev, tt.show); left != "" {
				t.Errorf("came back: %s", left)
			}
			forget()
		})
	}
}

// Also what a table names goes, although no new partition will be there.
func TestWhatOldPartitionsHeldIsGone(t *testing.T) {
	require.Need(t, "root", "pvcreate", "sfdisk", "mkfs.btrfs")
	name, _ := loopDisk(t, 512<<20)
	keepDiscarded(t, name)
	d := opened(t, name)
	tables := map[string]string{"GPT": "label: gpt\n,200M\n,200M\n", "MBR with logical partitions": "label: dos\n,64M\n,,E\n,200M\n,200M\n"}
	for kind, script := range tables {
		t.Run(kind, func(t *testing.T) {
			write := func() []probe.Part {
				t.Helper()
				cmd := exec.Command("sfdisk", "-q", "--force", "--no-reread", "--no-tell-kernel", "--wipe=never", "--wipe-partitions=never", d.Name())
				cmd.Stdin = strings.NewReader(script)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				if err := d.flush(); err != nil {
					t.Fatal(err)
				}
				rep, err := probe.Disk(d, d.size, d.sector)
				if err != nil {
					t.Fatal(err)
				}
				return rep.Parts
			}
			parts := write()
			p := parts[len(parts)-1]
			out := shell(t, "losetup", "--show", "--find", "--offset", fmt.Sprint(p.Start), "--sizelimit", fmt.Sprint(p.Size), d.Name())
			inner := strings.TrimSpace(out)
			command("mkfs.btrfs", "-qf", "DEV")(t, inner)
			shell(t, "losetup", "--detach", inner)
			if err := d.flush(); err != nil {
				t.Fatal(err)
			}
			found, err := inspect(t.Context(), d)
			if err != nil || !strings.Contains(strings.Join(found.lines(), "; "), "200 MiB: btrfs") {
				t.Fatalf("found %q (%v)", found.lines(), err)
			}
			erased(t, d, found.Report, nil)
			for _, p := range write() {
				if len(p.Signatures) > 0 {
					t.Errorf("came back in partition %d: %q", p.Number, p.Signatures)
				}
			}
			erased(t, d, probe.Report{}, nil)
		})
	}
}

func TestSecureErasesEveryByteAndNeverNone(t *testing.T) {
	name, file := loopDisk(t, 64<<20)
	keepDiscarded(t, name)
	plan := wire.ReleasePlan{IntentID: "intent-3", OwnIntentIDs: []string{"intent-2"}}
	table, err := gpt.New(gpt.Marker("intent-2"), 64<<20, 512, []gpt.Want{{Name: "x", Type: gpt.TypeLinux}})
	if err != nil {
		t.Fatal(err)
	}
	d := opened(t, name)
	for off := int64(0); off < d.size; off += 1 << 20 {
		if _, err := d.WriteAt([]byte(strings.Repeat("secret!\n", 1<<17)), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(d.zero(0, 1<<20), d.zero(d.size-1<<20, 1<<20), table.Write(d), d.flush(), d.Close()); err != nil {
		t.Fatal(err)
	}
	full := hash(t, name, file)
	for _, tt := range []struct{ policy, says string }{
		{wire.WipeNever, "the profile says wipe: Never"},
		{"Shred", "does not know the wipe policy"},
		{wire.WipeSecure, "overwritten with zeros, not erased by the disk itself (it has no secure discard): replaced sectors and spare flash were not reached; " +
			"signatures overwritten; read back: zeros at all of 1024 sampled places"},
	} {
		l := &lab{t: t}
		plan.Wipe = tt.policy
		done, err := l.installer(name).Release(t.Context(), plan)
		if err != nil || !strings.Contains(fmt.Sprint(done), tt.says) {
			t.Errorf("%s: %+v, %v", tt.policy, done, err)
		}
		left := hash(t, name, file)
		if tt.policy != wire.WipeSecure && left != full {
			t.Errorf("%s: the disk was changed", tt.policy)
		}
		if nothing := digest(nil); tt.policy == wire.WipeSecure && "sha256:"+left != nothing {
			t.Error("the erased disk holds something")
		}
	}
}
