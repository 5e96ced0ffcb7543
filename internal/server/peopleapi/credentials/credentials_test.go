package credentials

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"coldrack.dev/internal/base/pki"
	"coldrack.dev/test/require"
)

// TestAFullDiskKeepsTheAdministratorsKubeconfig starts a server whose address changed on a disk that has no room
// left: the administrator keeps the kubeconfig that worked until now.
func TestAFullDiskKeepsTheAdministratorsKubeconfig(t *testing.T) {
	require.Need(t, "root")
	keys := t.TempDir()
	master, err := pki.OpenMasterKey(keys)
	check(t, err)
	people, err := pki.OpenAuthority(keys, Authority, master)
	check(t, err)
	dir := t.TempDir()
	path := filepath.Join(dir, "admin.kubeconfig")
	check(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	_, err = WriteAdmin(path, people, "https://192.0.2.1:6443", time.Now())
	check(t, err)
	good, err := os.ReadFile(path)
	check(t, err)

	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	check(t, err)
	for err == nil {
		_, err = ballast.Write(make([]byte, 4<<10))
	}
	written, err := WriteAdmin(path, people, "https://192.0.2.2:6443", time.Now())
	if written || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("wrote %v, %v; want no space left", written, err)
	}
	left, err := os.ReadFile(path)
	check(t, err)
	if string(left) != string(good) || !adminServes(left, people, "https://192.0.2.1:6443", time.Now()) {
		t.Errorf("%d bytes are left of %d", len(left), len(good))
	}

	check(t, errors.Join(ballast.Close(), os.Remove(ballast.Name())))
	_, err = WriteAdmin(path, people, "https://192.0.2.2:6443", time.Now())
	check(t, err)
	left, err = os.ReadFile(path)
	check(t, err)
	if !adminServes(left, people, "https://192.0.2.2:6443", time.Now()) {
		t.Error("the new address is not in the kubeconfig once there is room")
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
