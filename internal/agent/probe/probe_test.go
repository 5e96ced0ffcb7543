package probe

import (
	"bytes"
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

func TestEverySignatureIsFoundWhereItBelongs(t *testing.T) {
	for _, m := range magics {
		b := make([]byte, 4<<20)
		off := m.offset
		if off < 0 {
			off += int64(len(b))
		}
		copy(b[off:], m.bytes)
		if got := Signatures(bytes.NewReader(b), int64(len(b))); len(got) != 1 || got[0] != m.name {
			t.Errorf("%s at %d: found %q", m.name, m.offset, got)
		}
	}
}

func TestSignaturesAtTheEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		off   int
		bytes string
		want  string
	}{
		"RAID metadata 1.0":             {4<<20 - 8192, "\xFC\x4E\x2B\xA9", "Linux RAID member"},
		"RAID metadata 0.90":            {4<<20 - 65536, "\xFC\x4E\x2B\xA9", "Linux RAID member"},
		"a ZFS label at the end":        {4<<20 - 256<<10 + 128<<10 + 8192, "\x0C\xB1\xBA\x00\x00\x00\x00\x00", "ZFS member"},
		"a ZFS label of the other kind": {128<<10 + 4096, "\x00\x00\x00\x00\x00\xBA\xB1\x0C", "ZFS member"},
	} {
		t.Run(name, func(t *testing.T) {
			b := make([]byte, 4<<20)
			copy(b[tt.off:], tt.bytes)
			if got := Signatures(bytes.NewReader(b), int64(len(b))); len(got) != 1 || got[0] != tt.want {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
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
