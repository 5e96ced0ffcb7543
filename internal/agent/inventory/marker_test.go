package inventory

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"coldrack.dev/internal/agent/gpt"
	"coldrack.dev/internal/contract/wire"
)

// TestADiskTellsWhichInstallWroteIt: only one of ours did, and not everybody whose table is like it.
func TestADiskTellsWhichInstallWroteIt(t *testing.T) {
	const size = 64 << 20
	random := gpt.GUID{0x1f, 0x2e, 0, 0, 0, 0, 0x40, 0, 0x80}
	for _, test := range []struct {
		name  string
		disk  gpt.GUID
		parts []gpt.Want
		spoil bool
		want  string
	}{
		{"an installation", gpt.Marker("one"), []gpt.Want{{Name: gpt.NameESP, Type: gpt.TypeESP, Bytes: 8 << 20}, {Name: gpt.NameRoot, Type: gpt.TypeLinuxRoot}}, false, gpt.Marker("one").String()},
		{"an installation whose beginning is overwritten", gpt.Marker("one"), []gpt.Want{{Name: gpt.NameRoot, Type: gpt.TypeLinuxRoot}}, true, gpt.Marker("one").String()},
		{"the disk of somebody else", random, []gpt.Want{{Name: "root", Type: gpt.TypeLinuxRoot}}, false, ""},
		{"somebody else's of the same names", random, []gpt.Want{{Name: gpt.NameRoot, Type: gpt.TypeLinuxRoot}}, false, ""},
		{"a blank disk", gpt.GUID{}, nil, false, ""},
	} {
		file, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if err := file.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if test.parts != nil {
			table, err := gpt.New(test.disk, size, 512, test.parts)
			if err != nil {
				t.Fatal(err)
			}
			if err := table.Write(file); err != nil {
				t.Fatal(err)
			}
		}
		if test.spoil {
			if _, err := file.WriteAt(make([]byte, 1<<20), 0); err != nil {
				t.Fatal(err)
			}
		}
		c := Collector{Root: t.TempDir(), OpenDisk: func(string) (io.ReaderAt, func(), error) { return file, func() {}, nil }}
		if _, got := c.contents(wire.Disk{Name: "sda", SizeBytes: size}); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}
