package fat

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coldrack.dev/test/require"
)

func volume(t *testing.T, v Volume) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "esp")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// What was on the disk before must not show through.
	old := bytes.Repeat([]byte{0xA5}, 1<<20)
	for off := int64(0); off < min(v.Size, 24<<20); off += int64(len(old)) {
		if _, err := f.WriteAt(old, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(v.Size); err != nil {
		t.Fatal(err)
	}
	if err := Format(f, v); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestForeignToolsReadTheVolume(t *testing.T) {
	require.Need(t, "fsck.vfat", "mtype", "blkid")
	big := bytes.Repeat([]byte("0123456789abcdef"), 300_000)
	files := map[string][]byte{
		"EFI/BOOT/BOOTX64.EFI": big,
		"EFI/BOOT/grubx64.efi": []byte("grub"),
		"EFI/debian/grub.cfg":  []byte("configfile\n"),
		"EFI/debian/empty.txt": nil,
	}
	for i := range 200 { // a folder of several clusters
		files[fmt.Sprintf("many/f%d", i)] = fmt.Appendf(nil, "content %d", i)
	}
	for _, tt := range []struct{ size, sector int64 }{{512 << 20, 512}, {64 << 20, 512}, {512 << 20, 4096}} {
		t.Run(fmt.Sprintf("%d MiB of %d-byte sectors", tt.size>>20, tt.sector), func(t *testing.T) {
			v := Volume{Size: tt.size, SectorSize: tt.sector, Start: 2 << 20, ID: 0xC01D7ACC, Label: "coldrack", Files: files}
			file := volume(t, v)
			if out, err := exec.Command("fsck.vfat", "-n", file).CombinedOutput(); err != nil {
				t.Fatalf("fsck.vfat: %v\n%s", err, out)
			}
			out, err := exec.Command("blkid", "-p", "-o", "export", file).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "UUID="+v.UUID()) || !strings.Contains(string(out), "VERSION=FAT32") {
				t.Fatalf("blkid: %v\n%s", err, out)
			}
			if tt.sector != 512 {
				return // mtools knows no others
			}
			for name, want := range files {
				got, err := exec.Command("mtype", "-i", file, "::/"+name).Output()
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%s: %v, %d bytes, want %d", name, err, len(got), len(want))
				}
			}
		})
	}
}

func TestFormatRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		v    Volume
		text string
	}{
		"a partition that is too small for FAT32": {Volume{Size: 8 << 20, SectorSize: 512}, "too small"},
		"files that do not fit":                   {Volume{Size: 40 << 20, SectorSize: 512, Files: map[string][]byte{"A": make([]byte, 41<<20)}}, "do not fit"},
		"a long name":                             {Volume{Size: 40 << 20, SectorSize: 512, Files: map[string][]byte{"longer-than-8.efi": nil}}, "8.3"},
		"a name that climbs":                      {Volume{Size: 40 << 20, SectorSize: 512, Files: map[string][]byte{"../x": nil}}, "8.3"},
		"sectors of no size":                      {Volume{Size: 40 << 20}, "sectors of 0"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Format(discard{}, tt.v)
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error is %v, want %q in it", err, tt.text)
			}
		})
	}
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
