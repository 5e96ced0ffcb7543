package daemon

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"coldrack.dev/internal/pki"
	"coldrack.dev/test/require"
)

// TestAFullDiskKeepsTheAdministratorsKubeconfig starts a server whose address changed on a disk that has no room
// left: the administrator keeps the kubeconfig that worked until now.
func TestAFullDiskKeepsTheAdministratorsKubeconfig(t *testing.T) {
	require.Need(t, "root")
	keys := t.TempDir()
	master, err := pki.OpenMasterKey(keys)
	check(t, err)
	people, err := pki.OpenAuthority(keys, peopleAuthority, master)
	check(t, err)
	cfg := Config{DataDir: t.TempDir()}
	check(t, syscall.Mount("tmpfs", cfg.DataDir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { _ = syscall.Unmount(cfg.DataDir, syscall.MNT_DETACH) })
	_, err = writeAdminKubeconfig(cfg, people, "https://192.0.2.1:6443")
	check(t, err)
	good, err := os.ReadFile(cfg.AdminKubeconfig())
	check(t, err)

	ballast, err := os.Create(cfg.path("ballast"))
	check(t, err)
	for err == nil {
		_, err = ballast.Write(make([]byte, 4<<10))
	}
	written, err := writeAdminKubeconfig(cfg, people, "https://192.0.2.2:6443")
	if written || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("wrote %v, %v; want no space left", written, err)
	}
	left, err := os.ReadFile(cfg.AdminKubeconfig())
	check(t, err)
	if string(left) != string(good) || !adminKubeconfigServes(left, people, "https://192.0.2.1:6443") {
		t.Errorf("%d bytes are left of %d", len(left), len(good))
	}

	check(t, errors.Join(ballast.Close(), os.Remove(ballast.Name())))
	_, err = writeAdminKubeconfig(cfg, people, "https://192.0.2.2:6443")
	check(t, err)
	left, err = os.ReadFile(cfg.AdminKubeconfig())
	check(t, err)
	if !adminKubeconfigServes(left, people, "https://192.0.2.2:6443") {
		t.Error("the new address is not in the kubeconfig once there is room")
	}
}
