package rootfs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coldrack.dev/internal/base/rootfs"
)

// system is a root file system; a value that begins with "->" is a link.
func system(t *testing.T, files map[string]string) (dir string, root *os.Root) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "root")
	for name, content := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, link := strings.CutPrefix(content, "->"); link {
			err = os.Symlink(to, at)
		} else {
			err = os.WriteFile(at, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return dir, root
}

func TestLinksLeadWhereTheyWouldAfterChroot(t *testing.T) {
	// A file of the machine that the test runs on, under a path that the tree has too.
	outside := filepath.Join(t.TempDir(), "loader")
	if err := os.WriteFile(outside, []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, root := system(t, map[string]string{
		outside:             "of the tree",
		"boot/ipxe.efi":     "ipxe",
		"usr/lib/absolute":  "->/boot/ipxe.efi",
		"usr/lib/relative":  "->../../boot/ipxe.efi",
		"usr/lib/escaping":  "->../../../../../../../.." + outside,
		"usr/lib/host":      "->" + outside,
		"usr/lib/chain":     "->absolute",
		"usr/lib/folder":    "->/boot",
		"lib":               "->usr/lib",
		"usr/lib/dangling":  "->/boot/gone.efi",
		"usr/lib/loop":      "->loop",
		"usr/lib/root":      "->/",
		"usr/lib/upwards":   "->..",
		"usr/lib/file/x":    "x",
		"usr/lib/into/file": "->../file/x/y",
	})
	for _, tt := range []struct {
		name, content string
		links         []string
	}{
		{"boot/ipxe.efi", "ipxe", nil},
		{"/boot/./../boot/ipxe.efi", "ipxe", nil},
		{"../../boot/ipxe.efi", "ipxe", nil},
		{"usr/lib/absolute", "ipxe", []string{"usr/lib/absolute"}},
		{"usr/lib/relative", "ipxe", []string{"usr/lib/relative"}},
		{"usr/lib/chain", "ipxe", []string{"usr/lib/chain", "usr/lib/absolute"}},
		{"usr/lib/folder/ipxe.efi", "ipxe", []string{"usr/lib/folder"}},
		{"lib/absolute", "ipxe", []string{"lib", "usr/lib/absolute"}},
		{"usr/lib/upwards/lib/absolute", "ipxe", []string{"usr/lib/upwards", "usr/lib/absolute"}},
		{"usr/lib/root/boot/ipxe.efi", "ipxe", []string{"usr/lib/root"}},
		{"usr/lib/host", "of the tree", []string{"usr/lib/host"}},
		{"usr/lib/escaping", "of the tree", []string{"usr/lib/escaping"}},
	} {
		content, err := rootfs.ReadFile(root, tt.name)
		if err != nil || string(content) != tt.content {
			t.Errorf("%s: read %q, %v; want %q", tt.name, content, err, tt.content)
		}
		if _, links, _ := rootfs.Resolve(root, tt.name); !slices.Equal(links, tt.links) {
			t.Errorf("%s: links %q, want %q", tt.name, links, tt.links)
		}
	}
	for name, want := range map[string]string{
		"usr/lib/dangling":  "usr/lib/dangling is a symbolic link to /boot/gone.efi, and the tree has no boot/gone.efi",
		"usr/lib/loop":      "too many levels of symbolic links",
		"usr/lib/gone":      "no such file",
		"usr/lib/into/file": "not a directory",
	} {
		if f, err := rootfs.Open(root, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: opened %v, error %v, want %q", name, f, err, want)
		}
	}
	if _, err := rootfs.Open(root, "usr/lib/dangling"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a dangling link: %v is not fs.ErrNotExist", err)
	}
}

func TestFoldersAreMadeInsideTheTree(t *testing.T) {
	outside := t.TempDir()
	dir, root := system(t, map[string]string{
		"run/x":   "x",
		"var/run": "->/run",
		"out":     "->" + outside,
		"file":    "x",
	})
	if made, err := rootfs.MkdirAll(root, "var/run/a/b", 0o755); err != nil || made != "run/a/b" {
		t.Errorf("below an absolute link: made %q, %v", made, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "run/a/b")); err != nil {
		t.Error(err)
	}
	if place, err := rootfs.Place(root, "/var/run/a/new"); err != nil || place != "run/a/new" {
		t.Errorf("the place of a new file is %q, %v", place, err)
	}
	for _, name := range []string{"out", "out/a", "file", "file/a"} {
		if made, err := rootfs.MkdirAll(root, name, 0o755); err == nil {
			t.Errorf("%s: made %q", name, made)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Error("a folder was made outside of the tree")
	}
}
