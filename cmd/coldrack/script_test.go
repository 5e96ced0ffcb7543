package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"coldrack.dev/internal/cli"
	"coldrack.dev/test/require"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"coldrack": main})
}

// TestScript runs testdata/script/*.txtar: whole commands as people type them, against a real server where
// they need one.
func TestScript(t *testing.T) { runScripts(t, "testdata/script") }

// TestScriptWithKubectl runs testdata/kubectl/*.txtar: what people do who use kubectl beside coldrack.
func TestScriptWithKubectl(t *testing.T) {
	require.Need(t, "kubectl")
	runScripts(t, "testdata/kubectl")
}

func runScripts(t *testing.T, dir string) {
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("COLDRACK_DATA_DIR", filepath.Join(e.WorkDir, "data"))
			e.Setenv("HOME", e.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ready":      waitReady,
			"exitcode":   exitCodeIs,
			"eventually": eventually,
			"packbundle": packBundle,
			"damage":     damage,
			"halfupload": halfUpload,

			"packkubernetes": packKubernetes,
			"startbmc":       startBMC,
			"packimage":      packImage,
			"packcontainer":  packContainer,
		},
	})
}

// within is how long a script waits for what a server does by itself.
const within = 60 * time.Second

// waitReady waits until the server that the script started in the background answers: ready
func waitReady(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: ready")
	}
	poll(ts, ".*", "get", "machines")
}

// eventually runs a verb until its output matches: eventually PATTERN VERB [ARG...]
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually PATTERN VERB [ARG...]")
	}
	poll(ts, args[0], args[1:]...)
}

func poll(ts *testscript.TestScript, pattern string, args ...string) {
	want, err := regexp.Compile("(?m)" + pattern)
	ts.Check(err)
	env := func(name string) (string, bool) { value := ts.Getenv(name); return value, value != "" }
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	var last error
	var out bytes.Buffer
	for ctx.Err() == nil {
		out.Reset()
		a := &app{in: strings.NewReader(""), out: &out, err: &bytes.Buffer{}, now: time.Now, env: env}
		root := a.rootCommand()
		root.SetArgs(args)
		if last = root.ExecuteContext(ctx); last == nil && want.MatchString(out.String()) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("%s: no match for %s: %v\n%s", strings.Join(args, " "), pattern, last, out.String())
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
	for _, c := range cli.AllCommands(a.rootCommand()) {
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
