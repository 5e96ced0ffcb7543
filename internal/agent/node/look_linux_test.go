package node

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestRebootRequired(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("reboot-required.pkgs", "libc6\nlinux-image-6.1.0-31-amd64\nlibc6\n")
	if r := rebootRequired(dir); r != nil {
		t.Errorf("packages alone ask for a reboot: %+v", r)
	}
	put("reboot-required", "*** System restart required ***\n")
	if r := rebootRequired(dir); r == nil || !slices.Equal(r.Packages, []string{"libc6", "linux-image-6.1.0-31-amd64"}) {
		t.Errorf("got %+v", r)
	}
	if err := os.Remove(filepath.Join(dir, "reboot-required.pkgs")); err != nil {
		t.Fatal(err)
	}
	if r := rebootRequired(dir); r == nil || len(r.Packages) > 0 {
		t.Errorf("without packages: %+v", r)
	}
}
