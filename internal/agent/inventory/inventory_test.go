package inventory

import (
	"encoding/base64"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"coldrack.dev/internal/contract/wire"
)

var update = flag.Bool("update", false, "rewrite the golden parts of testdata")

// tree lays a captured tree out. A name ending in @ is a symbolic link to its content, one ending in
// .base64 a binary file, and one ending in / an empty folder.
func tree(t *testing.T, a *txtar.Archive) string {
	t.Helper()
	root := t.TempDir()
	for _, f := range a.Files {
		if f.Name == "inventory.json" {
			continue
		}
		p := filepath.Join(root, strings.TrimRight(f.Name, "@"))
		content := f.Data
		var err error
		if b64, ok := strings.CutSuffix(p, ".base64"); ok {
			p = b64
			if content, err = base64.StdEncoding.DecodeString(strings.TrimSpace(string(f.Data))); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.HasSuffix(f.Name, "/"):
			err = os.MkdirAll(p, 0o755)
		case strings.HasSuffix(f.Name, "@"):
			err = os.Symlink(strings.TrimSpace(string(f.Data)), p)
		default:
			err = os.WriteFile(p, content, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCollect(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no machines in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c := Collector{Root: tree(t, a), BMC: func() *wire.BMC {
				return &wire.BMC{Address: "10.1.2.3", MAC: "d0:94:66:00:00:01", Firmware: "7.10"}
			}, NVMeHealth: func(string) ([]byte, error) { return healthPage(0, 311, 100, 10, 3), nil }}
			b, err := json.MarshalIndent(c.Collect("d0:94:66:10:20:30"), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got := string(b) + "\n"
			for i := range a.Files {
				if a.Files[i].Name != "inventory.json" {
					continue
				}
				if *update {
					a.Files[i].Data = []byte(got)
					if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if want := string(a.Files[i].Data); got != want {
					t.Errorf("got:\n%s\nwant:\n%s", got, want)
				}
				return
			}
			t.Fatal("the archive has no inventory.json")
		})
	}
}

// TestMemoryByEntries: where the kernel shows no whole table, it may show the structures one by one.
func TestMemoryByEntries(t *testing.T) {
	raw := make([]byte, 0x28, 0x2A)
	raw[0], raw[1], raw[0x0D] = 17, 0x28, 0x40 // 16 GiB
	root := tree(t, &txtar.Archive{Files: []txtar.File{
		{Name: "sys/firmware/dmi/entries/17-0/raw", Data: append(raw, 0, 0)},
		{Name: "sys/firmware/dmi/entries/17-1/raw", Data: append(raw, 0, 0)},
	}})
	if got := (Collector{Root: root}).memory(); got != 32<<30 {
		t.Errorf("%d bytes, want 32 GiB", got)
	}
}

func TestTheHostItselfCanBeRead(t *testing.T) {
	inv := Host().Collect("")
	if inv.MemoryBytes == 0 || inv.CPU.Threads == 0 {
		t.Errorf("no memory or no processor found: %+v", inv)
	}
}
