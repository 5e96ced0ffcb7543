package daemon

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"syscall"
	"testing"

	"coldrack.dev/test/require"
)

// The disk fills up. The store gets the reserve, uploads get none of it, and it is taken back when there is room.
func TestTheStoreHasAReserveOnAFullDisk(t *testing.T) {
	require.Need(t, "root")
	cfg := Config{DataDir: t.TempDir()}
	check(t, syscall.Mount("tmpfs", cfg.DataDir, "tmpfs", 0, "size=64m"))
	t.Cleanup(func() { _ = syscall.Unmount(cfg.DataDir, syscall.MNT_DETACH) })
	imports := newImporter(cfg, nil, discard())
	r := imports.reserve
	check(t, r.look())
	if s := r.space(); s.Total != 64<<20 || s.Held != s.wanted() || r.checkRoom() != nil {
		t.Fatalf("an empty disk: %+v", s)
	}

	ballast, err := os.Create(cfg.path("ballast"))
	check(t, err)
	for err == nil {
		_, err = ballast.Write(make([]byte, 64<<10))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	code, err := imports.spool(httptest.NewRequest(http.MethodPut, "/?name=big&offset=0", bytes.NewReader(nil)), cfg.path("uploads", "big"))
	if err == nil || code == http.StatusOK {
		t.Errorf("an upload to a full disk: %d, %v", code, err)
	}
	if err := r.checkRoom(); !errors.Is(err, errDiskFull) {
		t.Errorf("room on a full disk: %v", err)
	}
	check(t, r.look())
	if s := r.space(); s.Held != 0 || s.Free < s.wanted()/2 {
		t.Errorf("after the reserve was given up: %+v", s)
	}
	check(t, os.WriteFile(cfg.path("store"), make([]byte, 1<<20), 0o600))
	if err := r.checkRoom(); !errors.Is(err, errDiskFull) {
		t.Errorf("an upload may take what the reserve left: %v", err)
	}

	check(t, errors.Join(ballast.Close(), os.Remove(ballast.Name())))
	check(t, r.look())
	if s := r.space(); s.Held != s.wanted() || r.checkRoom() != nil {
		t.Errorf("after there was room: %+v", s)
	}
}
