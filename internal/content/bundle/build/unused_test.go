package build

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestWhatNoBuildUsesLeavesTheCache(t *testing.T) {
	cache := t.TempDir()
	put := func(path string) string {
		t.Helper()
		path = filepath.Join(cache, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		// The mirror's time of a package is old from the first day on.
		old := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
		if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		return path
	}
	there := func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	}
	goes := []string{put("downloads/0123"), put("apt/cache/archives/ipxe_1.deb"), put("steps/image-root/abc/root.tar")}
	stays := []string{put("bundle.key"), put("bundle.pub"), put("apt/state/lists/x"), put("lock")}

	made := time.Now()
	if err := dropUnused(cache, made.Add(unusedLimit/2)); err != nil {
		t.Fatal(err)
	}
	for _, path := range append(goes, stays...) {
		if !there(path) {
			t.Errorf("%s is gone too early", path)
		}
	}
	if err := dropUnused(cache, made.Add(unusedLimit+time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, path := range goes {
		if there(path) {
			t.Errorf("%s is still there", path)
		}
	}
	for _, path := range stays {
		if !there(path) {
			t.Errorf("%s is gone", path)
		}
	}
}
