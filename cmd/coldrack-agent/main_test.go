package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	for name, tt := range map[string]struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		"its version":                       {args: []string{"version"}, stdout: "coldrack-agent coldrack "},
		"what the machine is":               {args: []string{"inventory"}, stdout: `"memoryBytes": `},
		"what the machine is, as YAML":      {args: []string{"inventory", "-o", "yaml"}, stdout: "\nmemoryBytes: "},
		"what the machine is, for a person": {args: []string{"inventory", "-o", "table"}, stdout: "\nMemory: "},
		"a format that does not exist":      {args: []string{"inventory", "-o", "xml"}, code: exitUsage, stderr: "is a machine's side"},
		"help":                              {args: []string{"help"}, stdout: "is a machine's side"},
		"no verb":                           {code: exitUsage, stderr: "is a machine's side"},
		"a verb that does not exist":        {args: []string{"wipe"}, code: exitUsage, stderr: "is a machine's side"},
		"too many words":                    {args: []string{"version", "please"}, code: exitUsage, stderr: "is a machine's side"},
		"init on a system that runs":        {args: []string{"init"}, code: exitFailed, stderr: "init is for PID 1"},
		"node on a machine that is no node": {args: []string{"node"}, code: exitFailed, stderr: "is this machine installed by Coldrack?"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(append([]string{"coldrack-agent"}, tt.args...), &stdout, &stderr)
			if code != tt.code || !strings.Contains(stdout.String(), tt.stdout) || !strings.Contains(stderr.String(), tt.stderr) {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout.String(), stderr.String())
			}
		})
	}
}

// Every machine loads the agent over the network, many of them at once.
func TestTheAgentStaysSmallAndStatic(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if limit := int64(15_000_000); info.Size() >= limit {
		t.Errorf("the agent has %d bytes, want less than %d", info.Size(), limit)
	}
	// A static program has no interpreter; ldd would need to run it.
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b[:4096], []byte("/ld-linux")) {
		t.Error("the agent is linked dynamically")
	}
}
