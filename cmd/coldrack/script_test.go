package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"coldrack": main})
}

// TestScript runs testdata/script/*.txtar: whole commands as people type them, against a real server where
// they need one.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("COLDRACK_DATA_DIR", filepath.Join(e.WorkDir, "data"))
			e.Setenv("HOME", e.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ready":    waitReady,
			"exitcode": exitCodeIs,
		},
	})
}

// waitReady waits until the server that the script started in the background answers: ready
func waitReady(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: ready")
	}
	env := func(name string) (string, bool) { value := ts.Getenv(name); return value, value != "" }
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var last error
	for ctx.Err() == nil {
		a := &app{in: strings.NewReader(""), out: &bytes.Buffer{}, err: &bytes.Buffer{}, now: time.Now, env: env}
		root := a.rootCommand()
		root.SetArgs([]string{"get", "machines"})
		if last = root.ExecuteContext(ctx); last == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("the server does not answer: %v", last)
}

// exitCodeIs runs a command that must end with a certain code: exitcode 3 coldrack get machine nobody
func exitCodeIs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exitcode CODE PROGRAM [ARG...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		code = string(rune('0' + exit.ExitCode()))
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if code != args[0] {
		ts.Fatalf("%s: exit code %s, want %s", strings.Join(args[1:], " "), code, args[0])
	}
}

// TestCommandsAreWellFormed holds for every command, those of later versions too.
func TestCommandsAreWellFormed(t *testing.T) {
	a := &app{in: os.Stdin, out: &bytes.Buffer{}, err: &bytes.Buffer{}, now: time.Now, env: os.LookupEnv}
	for _, c := range allCommands(a.rootCommand()) {
		switch {
		case c.Short == "":
			t.Errorf("%s says not what it does", c.CommandPath())
		case strings.HasSuffix(c.Short, "."):
			t.Errorf("%s: the short description ends in a full stop", c.CommandPath())
		case c.HasParent() && !c.Runnable():
			t.Errorf("%s does nothing when called; use group", c.CommandPath())
		case c.RunE == nil && c.Run != nil && c.Name() != "help" && c.Parent().Name() != "completion":
			t.Errorf("%s cannot fail; use RunE", c.CommandPath())
		}
	}
}

func TestReferenceOfCommandsIsCurrent(t *testing.T) {
	a := &app{in: os.Stdin, out: &bytes.Buffer{}, err: &bytes.Buffer{}, now: time.Now, env: os.LookupEnv}
	want, err := os.ReadFile("../../docs/reference/cli.md")
	if err != nil {
		t.Fatalf("%v; run: make generate", err)
	}
	if diff := cmp.Diff(string(want), cliReference(a.rootCommand())); diff != "" {
		t.Errorf("docs/reference/cli.md is not what the program says; run: make generate\n%s", diff)
	}
}
