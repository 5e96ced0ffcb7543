package build

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestPackagesOnAnotherFileSystem has the cache of packages on one file system and the builder's work on another.
func TestPackagesOnAnotherFileSystem(t *testing.T) {
	cache, err := os.MkdirTemp("/dev/shm", "coldrack-test-")
	if err != nil {
		t.Skip("there is no /dev/shm here: ", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(cache) })
	want := bytes.Repeat([]byte("deb"), 1<<16)
	deb := filepath.Join(cache, "a_1_all.deb")
	if err := os.WriteFile(deb, want, 0o644); err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	if err := os.Link(deb, filepath.Join(work, "linked")); !errors.Is(err, syscall.EXDEV) {
		t.Skip("the folder for temporary files is on the file system of /dev/shm: ", err)
	}
	for _, dir := range []string{cache, work} {
		to := filepath.Join(dir, "b_1_all.deb")
		if err := linkOrCopy(deb, to); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want the %d of the package", to, len(got), err, len(want))
		}
	}
}
