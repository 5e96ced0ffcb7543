package probe

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coldrack.dev/internal/agent/gpt"
	"coldrack.dev/test/require"
)

const size = 64 << 20

func disk(t *testing.T, file string) Report {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rep, err := Disk(f, size, 512)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func blank(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestRealToolsLeaveSignaturesThatAreFound(t *testing.T) {
	for name, tt := range map[string]struct {
		command string
		want    string
	}{
		"an ext4 file system":     {"mkfs.ext4 -qF", "ext2/3/4"},
		"a FAT32 file system":     {"mkfs.vfat -F 32", "FAT32"},
		"a small FAT file system": {"mkfs.vfat -F 16", "FAT"},
		"swap space":              {"mkswap", "swap"},
		"an MBR of two":           {"sfdisk -q --wipe=never", "dos partition table|partition 1, 8 MiB|partition 2, 55 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			args := strings.Fields(tt.command)
			require.Need(t, args[0])
			file := blank(t)
			cmd := exec.Command(args[0], append(args[1:], file)...)
			cmd.Stdin = strings.NewReader("label: dos\n,8M\n,\n")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			rep := disk(t, file)
			if got := strings.Join(rep.Lines(), "|"); got != tt.want || rep.Blank() {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
	}
}

func TestABlankDiskIsBlank(t *testing.T) {
	if rep := disk(t, blank(t)); !rep.Blank() || len(rep.Lines()) != 0 {
		t.Errorf("found %q", rep.Lines())
	}
}

func TestAnUnreadableDiskIsNotBlank(t *testing.T) {
	if _, err := Disk(bytes.NewReader(make([]byte, 4096)), size, 512); err == nil {
		t.Error("a disk that ends early was taken for a blank one")
	}
}

func TestPartitionsAndWhatIsInThem(t *testing.T) {
	file := blank(t)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := gpt.New(gpt.Marker("i"), size, 512, []gpt.Want{{Name: "data", Type: gpt.TypeLinux}})
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Write(f); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("XFSB"), table.Start(table.Partitions[0])); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(disk(t, file).Lines(), "|")
	want := fmt.Sprintf("gpt partition table %s|partition 1, 62 MiB, \"data\": XFS", gpt.Marker("i"))
	if got != want {
		t.Errorf("found %q, want %q", got, want)
	}
}

// sparse is a disk of zeros but for one place.
type sparse struct {
	off  int64
	text string
	bad  int64 // reads that reach it fail, unless it is 0
}

func (s sparse) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	if s.bad > 0 && off <= s.bad && s.bad < off+int64(len(b)) {
		return int(s.bad - off), errors.New("medium error")
	}
	for i := range len(s.text) {
		if at := s.off + int64(i) - off; at >= 0 && at < int64(len(b)) {
			b[at] = s.text[i]
		}
	}
	return len(b), nil
}

// sizes of disks and partitions: none, one and all of what lies far from the edges; one ends between all blocks.
var sizes = []int64{4 * mib, 64 * mib, 2*gib + 37*512, 300 * gib, 1200 * gib}

// everyPlace calls f for each signature at each of its places in a volume of each size.
func everyPlace(f func(size, off int64, s signature)) {
	for _, size := range sizes {
		for _, s := range signatures {
			for _, p := range s.where {
				if off := p.in(size); off+int64(len(s.bytes)) <= size {
					f(size, off, s)
				}
			}
		}
		end := size / (256 * kib) * 256 * kib
		for _, label := range []int64{0, 256 * kib, end - 512*kib, end - 256*kib} {
			f(size, label+128*kib, signature{name: zfsMember, bytes: "\x0C\xB1\xBA\x00\x00\x00\x00\x00"})
			f(size, label+252*kib, signature{name: zfsMember, bytes: "\x00\x00\x00\x00\x00\xBA\xB1\x0C"})
			f(size, label+129*kib, signature{name: zfsMember, bytes: "\x0C\xB1\xBA\x00\x00\x00\x00\x00"})
		}
	}
}

func TestEverySignatureIsFoundWhereItBelongs(t *testing.T) {
	count := 0
	everyPlace(func(size, off int64, s signature) {
		count++
		found, firmware := search(sparse{off: off, text: s.bytes}, size, true)
		if len(found) != 1 || found[0] != s.name || (firmware == s.name) != s.firmware {
			t.Errorf("%s at byte %d of %d: found %q, firmware %q", s.name, off, size, found, firmware)
		}
		found = Signatures(sparse{off: off, text: s.bytes}, size)
		if s.firmware == (len(found) > 0) {
			t.Errorf("%s at byte %d of a partition of %d: found %q", s.name, off, size, found)
		}
	})
	if count < 5*100 {
		t.Errorf("looked at %d places", count)
	}
}

func TestNoSignatureLiesOutsideOfThePlacesThatAreWiped(t *testing.T) {
	everyPlace(func(size, off int64, s signature) {
		for _, r := range Places(size) {
			if r.Start < 0 || r.Size <= 0 || r.Start+r.Size > size {
				t.Fatalf("range %+v is not in a volume of %d bytes", r, size)
			}
			if r.Start <= off && off+int64(len(s.bytes)) <= r.Start+r.Size {
				return
			}
		}
		t.Errorf("%s at byte %d of %d is in none of %+v", s.name, off, size, Places(size))
	})
	for _, size := range sizes {
		places := Places(size)
		if last := places[len(places)-1]; last.Start+last.Size != size {
			t.Errorf("the end of %d bytes is not the last place: %+v", size, places)
		}
	}
}

func TestWhatCannotBeReadIsNotBlank(t *testing.T) {
	for name, off := range map[string]int64{"where a mirror of btrfs would be": 64*mib + 0x42, "in the first label of ZFS": 200 * kib} {
		rep, err := Disk(sparse{bad: off}, 2*gib, 512)
		if err == nil && (rep.Blank() || !strings.Contains(rep.Lines()[0], "unreadable at byte")) {
			t.Errorf("%s: %q", name, rep.Lines())
		}
	}
}

func TestDataWithoutANameIsNotBlank(t *testing.T) {
	for name, tt := range map[string]struct {
		at   int64
		text string
		want string
	}{
		"at the start":                 {100 * kib, "x", unknownData},
		"at the end":                   {2*gib - 5, "x", unknownData},
		"in the middle":                {gib, "x", ""}, // what a release leaves
		"erased flash":                 {0, strings.Repeat("\xFF", 1<<20), ""},
		"a format that has a name":     {0x438, "\x53\xEF", "ext2/3/4"},
		"a device-mapper crypt volume": {0, "\x93\x01\x17", unknownData},
	} {
		t.Run(name, func(t *testing.T) {
			rep, err := Disk(sparse{off: tt.at, text: tt.text}, 2*gib, 512)
			if got := strings.Join(rep.Lines(), "|"); err != nil || got != tt.want || rep.Blank() != (tt.want == "") {
				t.Errorf("found %q, want %q (%v)", got, tt.want, err)
			}
		})
	}
}

func TestLogicalPartitions(t *testing.T) {
	require.Need(t, "sfdisk", "mkfs.ext4")
	file := blank(t)
	cmd := exec.Command("sfdisk", "-q", file)
	cmd.Stdin = strings.NewReader("label: dos\n,8M\n,,E\n,16M\n,16M\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	before := disk(t, file)
	if len(before.Parts) != 4 {
		t.Fatalf("partitions are %+v", before.Parts)
	}
	last := before.Parts[3]
	if out, err := exec.Command("mkfs.ext4", "-qF", "-E", fmt.Sprintf("offset=%d", last.Start), file, "16M").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := "dos partition table|partition 1, 8 MiB|partition 5, 16 MiB|partition 6, 16 MiB: ext2/3/4"
	if got := strings.Join(disk(t, file).Lines(), "|"); got != want {
		t.Errorf("found %q, want %q", got, want)
	}
}

func FuzzDisk(f *testing.F) {
	mbr := make([]byte, 512)
	mbr[510], mbr[511], mbr[450], mbr[454], mbr[458] = 0x55, 0xAA, 0x83, 1, 1
	f.Add(mbr, []byte("x"))
	f.Fuzz(func(t *testing.T, head, tail []byte) {
		b := make([]byte, 1<<20)
		copy(b, head)
		if len(tail) < len(b) {
			copy(b[len(b)-len(tail):], tail)
		}
		rep, err := Disk(bytes.NewReader(b), int64(len(b)), 512)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range rep.Parts {
			if p.Start < 0 || p.Size <= 0 || p.Start+p.Size > int64(len(b)) {
				t.Errorf("partition %+v reaches beyond the disk", p)
			}
		}
	})
}
