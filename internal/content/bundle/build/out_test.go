package build

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A build takes minutes: whether its result can be written must be known before, and a folder that is missing is made.
func TestThePlaceOfTheResultIsLookedAtFirst(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	options := Options{RecipeDirs: []string{filepath.Join(recipes, "kubernetes-1.37")}, CacheDir: t.TempDir(), Out: filepath.Join(file, "x.bundle.tar")}
	if _, err := Build(t.Context(), options); err == nil || !strings.Contains(err.Error(), "--out "+options.Out) {
		t.Errorf("a folder that is a file: %v", err)
	}
	if left, err := os.ReadDir(options.CacheDir); err != nil || len(left) != 0 {
		t.Errorf("the build began before: %v %v", left, err)
	}

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	options.Out = filepath.Join(t.TempDir(), "new", "x.bundle.tar")
	if _, err := Build(cancelled, options); err == nil {
		t.Error("a cancelled build ends well")
	}
	if _, err := os.Stat(filepath.Dir(options.Out)); err != nil {
		t.Errorf("the folder was not made: %v", err)
	}
}
