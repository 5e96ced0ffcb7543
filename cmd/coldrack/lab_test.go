package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/labs"
	"coldrack.dev/test/require"
)

func TestLabCommandLine(t *testing.T) {
	require.Need(t, "netns", "qemu")
	stateDir, name := filepath.Join(t.TempDir(), "labs"), fmt.Sprintf("t%d-cli", os.Getpid())
	coldrack := func(ctx context.Context, args ...string) (code int, out, errOut string) {
		var stdout, stderr bytes.Buffer
		args = append([]string{"lab", "--name", name, "--state-dir", stateDir}, args...)
		code = run(ctx, args, strings.NewReader(""), &stdout, &stderr)
		return code, stdout.String(), stderr.String()
	}
	t.Cleanup(func() { coldrack(context.Background(), "down") })

	for _, step := range []struct {
		args string
		code int
		want string // in what is printed
	}{
		{"ps", exit.NotFound, "`coldrack lab up` makes one"},
		{"up --firmware coreboot", exit.Usage, "must be bios, uefi or mixed"},
		{"up --disk 8", exit.Usage, "8GiB"},
		{"up --subnet ten", exit.Usage, "--subnet"},
		{"up -n 0", exit.OK, "no machines"},
		{"up -n 1 --off --firmware bios --memory 128MiB --cpus 1 --accelerator tcg", exit.OK, "coldrack serve --boot-netns coldrack-" + name},
		{"ps", exit.OK, name + "-1   off"},
		{"power 1 reset", exit.Refused, "the machine is off"},
		{"power 1 fly", exit.Usage, `no action "fly"`},
		{"power 2 on", exit.NotFound, "has " + name + "-1"},
		{"power 1 off --disk-only", exit.Usage, "go with on and cycle"},
		{"console 1", exit.OK, ""},
		{"power all on --disk-only", exit.OK, ""},
		{"power 1 cut-network", exit.OK, ""},
		{"ps -o wide", exit.OK, "cut"},
	} {
		code, out, errOut := coldrack(t.Context(), strings.Fields(step.args)...)
		if code != step.code || !strings.Contains(out+errOut, step.want) {
			t.Fatalf("lab %s: exit code %d, want %d and %q:\n%s%s", step.args, code, step.code, step.want, out, errOut)
		}
	}

	_, out, _ := coldrack(t.Context(), "ps", "-o", "json")
	var view labs.View
	if err := json.Unmarshal([]byte(out), &view); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if m := view.Machines[0]; m.Power != "on" || !m.NetworkCut || m.PID == 0 || m.MemoryPeak == 0 {
		t.Errorf("the machine is shown as %+v", m)
	}
	for range 2 {
		if code, out, errOut := coldrack(t.Context(), "down"); code != exit.OK {
			t.Errorf("down: exit code %d\n%s%s", code, out, errOut)
		}
	}
	// The number may live on for a moment, without a command line, until the process is waited for.
	if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", view.Machines[0].PID)); strings.Contains(string(line), stateDir) {
		t.Error("the machine goes on after its lab went down")
	}
}
