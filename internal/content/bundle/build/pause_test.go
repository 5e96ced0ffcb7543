package build

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"coldrack.dev/test/require"
)

// TestPauseReapsOrphansAndEndsWhenAsked runs the first process of every pod as the first of a process namespace.
func TestPauseReapsOrphansAndEndsWhenAsked(t *testing.T) {
	require.Need(t, "root", "nsenter")
	program := filepath.Join(t.TempDir(), "pause")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Dir = filepath.Join(recipes, "modules", "pause")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	pause := exec.CommandContext(ctx, program)
	pause.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if err := pause.Start(); err != nil {
		t.Fatal(err)
	}
	pid := pause.Process.Pid
	// The shell ends before its child does, so that the child is handed to pause.
	for range 3 {
		if out, err := exec.CommandContext(ctx, "nsenter", "-t", fmt.Sprint(pid), "-p", "sh", "-c", "read x </dev/null & exit 0").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for len(children(t, pid)) > 0 {
		select {
		case <-ctx.Done():
			t.Fatalf("pause still has children: %q", children(t, pid))
		case <-time.After(5 * time.Millisecond):
		}
	}
	if err := pause.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := pause.Wait(); err != nil {
		t.Errorf("pause ends with %v", err)
	}
}

// children lists the processes that pid is the parent of, dead ones too.
func children(t *testing.T, pid int) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue // it ended
		}
		// pid (name) state ppid: proc_pid_stat(5). A name may have spaces and parentheses.
		text := string(raw)
		if f := strings.Fields(text[strings.LastIndex(text, ")")+1:]); len(f) > 1 && f[1] == fmt.Sprint(pid) {
			found = append(found, text[:strings.LastIndex(text, ")")+1]+" "+f[0])
		}
	}
	return found
}
