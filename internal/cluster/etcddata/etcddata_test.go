package etcddata

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain is the process that Do starts, when it is started with Verb.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == Verb {
		if err := Serve(os.Stdin, os.Stdout); err != nil {
			_, _ = os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestWhatIsNoSnapshot has the process read what is none. Real snapshots are read by the tests of package backups.
func TestWhatIsNoSnapshot(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": "", "short": "x", "text": strings.Repeat("no store\n", 1000), "zeros": strings.Repeat("\x00", 8192)} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := Do(t.Context(), program, Request{Snapshot: file, Folder: file + ".trial"}); err == nil || !strings.Contains(err.Error(), "snapshot cannot be re") {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	ended, end := context.WithCancelCause(t.Context())
	end(errors.New("the server stops"))
	if _, err := Do(ended, program, Request{}); err == nil || err.Error() != "the server stops" {
		t.Errorf("ended before it began: %v", err)
	}
}
