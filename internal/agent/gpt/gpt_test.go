package gpt

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"coldrack.dev/test/require"
)

// memory is a disk.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, fmt.Errorf("%d bytes at %d of %d", len(p), off, len(m))
	}
	return copy(m[off:], p), nil
}

func layout(t testing.TB, size, sector int64) *Table {
	t.Helper()
	table, err := New(Marker("intent-1"), size, sector, []Want{
		{Name: "coldrack-bios", Type: TypeBIOSBoot, GUID: Derive("intent-1", "bios"), Bytes: 1 << 20},
		{Name: "coldrack-esp", Type: TypeESP, GUID: Derive("intent-1", "esp"), Bytes: 16 << 20},
		{Name: "coldrack-root", Type: TypeLinuxRoot, GUID: Derive("intent-1", "root")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestWriteThenRead(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		t.Run(fmt.Sprintf("%d-byte sectors", sector), func(t *testing.T) {
			disk := make(memory, 64<<20+sector)
			copy(disk, "boot code")
			want := layout(t, int64(len(disk)), sector)
			if err := want.Write(disk); err != nil {
				t.Fatal(err)
			}
			for name, damage := range map[string]func(memory){
				"as written":                 func(memory) {},
				"primary header overwritten": func(d memory) { clear(d[sector : 2*sector]) },
				"a bit of an entry flipped":  func(d memory) { d[2*sector+60] ^= 1 },
				"the first MiB zeroed":       func(d memory) { clear(d[:1<<20]) },
			} {
				d := bytes.Clone(disk)
				damage(memory(d))
				got, err := Read(memory(d), int64(len(d)), sector)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s: %s", name, diff)
				}
			}
			if !strings.HasPrefix(string(disk), "boot code") || disk[510] != 0x55 || disk[450] != 0xEE {
				t.Error("the protective MBR is missing or the boot code was lost")
			}
		})
	}
}

func TestBlankAndDamagedDisks(t *testing.T) {
	disk := make(memory, 32<<20)
	if _, err := Read(disk, int64(len(disk)), 512); err != ErrNone {
		t.Errorf("a blank disk: %v", err)
	}
	if _, err := Read(disk, 100, 512); err != ErrNone {
		t.Errorf("a disk of 100 bytes: %v", err)
	}
	if err := layout(t, int64(len(disk)), 512).Write(disk); err != nil {
		t.Fatal(err)
	}
	disk[512+60] ^= 1
	clear(disk[len(disk)-512:])
	if _, err := Read(disk, int64(len(disk)), 512); err == nil || err == ErrNone {
		t.Errorf("both headers lost: %v, want a damaged table", err)
	}
}

func TestNewRefusesWhatDoesNotFit(t *testing.T) {
	_, err := New(GUID{}, 8<<20, 512, []Want{{Name: "root", Type: TypeLinux, Bytes: 9 << 20}})
	if err == nil || !strings.Contains(err.Error(), `"root"`) {
		t.Error(err)
	}
}

func TestMarkersNeverChange(t *testing.T) {
	// Disks in the field carry these.
	if got := Marker("intent-1").String(); got != "a654ca54-deac-509d-8d6e-3839ae8b664c" {
		t.Errorf("the marker of intent-1 is %s", got)
	}
}

func TestSgdiskAgrees(t *testing.T) {
	require.Need(t, "sgdisk")
	file := filepath.Join(t.TempDir(), "disk")
	disk := make(memory, 64<<20)
	want := layout(t, int64(len(disk)), 512)
	if err := want.Write(disk); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, disk, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sgdisk", "--verify", "--print", file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No problems found") || !strings.Contains(string(out), strings.ToUpper(want.DiskGUID.String())) {
		t.Fatalf("%v\n%s", err, out)
	}
	// And what sgdisk writes, Read understands.
	if out, err := exec.Command("sgdisk", "--zap-all", "-n1:2048:+8M", "-c1:other", "-t1:8300", "-n5:0:0", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(memory(b), int64(len(b)), 512)
	if err != nil || len(got.Partitions) != 2 || got.Partitions[0].Name != "other" || got.Partitions[1].Number != 5 {
		t.Fatalf("%+v, %v", got, err)
	}
}

// A table moves to a larger disk: partitions stay, one is added behind them, and the backup is at the new end.
func TestGrown(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		small, err := New(Marker("maker"), 32<<20, sector, []Want{{Name: "a", Type: TypeESP, Bytes: 8 << 20}, {Name: "b", Type: TypeLinux}})
		if err != nil {
			t.Fatal(err)
		}
		small.Partitions[1].Number, small.Partitions[1].Attributes = 9, 5<<48
		disk := make(memory, 64<<20)
		grown, err := small.Grown(Marker("ours"), int64(len(disk)), Want{Name: NameDisk, Type: TypeLinux, Bytes: 8 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if err := grown.Write(disk); err != nil {
			t.Fatal(err)
		}
		got, err := Read(disk, int64(len(disk)), sector)
		if err != nil {
			t.Fatal(err)
		}
		added := got.Partitions[2]
		if got.DiskGUID != Marker("ours") || got.Partitions[0] != small.Partitions[0] || got.Partitions[1] != small.Partitions[1] ||
			added.Number != 10 || got.Size(added) != 8<<20 || got.Start(added) < 32<<20 || !got.Installed() || small.Installed() {
			t.Errorf("sectors of %d: %+v", sector, got)
		}
		clear(disk[:1<<20])
		if backup, err := Read(disk, int64(len(disk)), sector); err != nil || len(backup.Partitions) != 3 {
			t.Errorf("sectors of %d: the backup: %+v, %v", sector, backup, err)
		}
		if _, err := small.Grown(Marker("ours"), 36<<20, Want{Name: NameDisk, Type: TypeLinux, Bytes: 8 << 20}); err == nil {
			t.Error("a partition fits where there is no room")
		}
		small.Partitions[0].First = 3
		if _, err := small.Grown(Marker("ours"), 64<<20, Want{Name: NameDisk, Type: TypeLinux, Bytes: 8 << 20}); err == nil {
			t.Error("a partition lies where the table is")
		}
	}
}

func FuzzRead(f *testing.F) {
	disk := make(memory, 2<<20)
	table, err := New(Marker("x"), int64(len(disk)), 512, []Want{{Name: "a", Type: TypeLinux, Bytes: 0}})
	if err == nil {
		_ = table.Write(disk)
	}
	f.Add([]byte(disk[512:1024]), []byte(disk[1024:1024+256]))
	f.Fuzz(func(t *testing.T, header, entries []byte) {
		disk := make(memory, 64<<10)
		copy(disk[512:1024], header)
		copy(disk[1024:], entries)
		table, err := Read(disk, int64(len(disk)), 512)
		if err != nil {
			return
		}
		for _, p := range table.Partitions {
			if end := table.Start(p) + table.Size(p); table.Start(p) < 0 || end > int64(len(disk)) {
				t.Errorf("partition %+v reaches beyond the disk", p)
			}
		}
	})
}
