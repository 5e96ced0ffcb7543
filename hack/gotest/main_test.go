package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// passing is what go test -json prints for a package with a test and a subtest that pass, and one that skips.
const passing = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}
{"Action":"output","Package":"p","Test":"TestA/sub","Output":"=== RUN   TestA/sub\n"}
{"Action":"pass","Package":"p","Test":"TestA/sub","Elapsed":1.4}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":1.5}
{"Action":"output","Package":"p","Test":"TestB","Output":"=== RUN   TestB\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:3: needs root\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestB","Elapsed":0}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t1.600s\n"}
{"Action":"pass","Package":"p","Elapsed":1.6}
`

const failing = `{"Action":"output","Package":"q","Test":"TestC","Output":"=== RUN   TestC\n"}
{"Action":"output","Package":"q","Test":"TestC/one","Output":"    c_test.go:7: one is wrong\n"}
{"Action":"fail","Package":"q","Test":"TestC/one","Elapsed":0.1}
{"Action":"output","Package":"q","Test":"TestC","Output":"--- FAIL: TestC (0.20s)\n"}
{"Action":"fail","Package":"q","Test":"TestC","Elapsed":0.2}
{"Action":"output","Package":"q","Test":"TestD","Output":"=== RUN   TestD\n"}
{"Action":"output","Package":"q","Test":"TestD","Output":"panic: no way on\n"}
{"Action":"output","Package":"q","Output":"FAIL\tq\t0.300s\n"}
{"Action":"fail","Package":"q","Elapsed":0.3}
`

// saying is what go test -json prints for lines of a test's log.
func saying(test string, lines ...string) string {
	var events strings.Builder
	for _, line := range lines {
		events.WriteString(`{"Action":"output","Package":"p","Test":"` + test + `","Output":"    ` + line + `\n"}` + "\n")
	}
	return events.String()
}

func TestReport(t *testing.T) {
	for name, tt := range map[string]struct {
		events  string
		verbose bool
		want    string
	}{
		"a package that passes": {events: passing, want: `PASS    1.50s p TestA
SKIP    0.00s p TestB: b_test.go:3: needs root

the 1 slowest of 1 tests:
     1.50s p TestA

ok  	p	1.600s
`},
		"everything is shown as it comes": {events: passing, verbose: true, want: `=== RUN   TestA
chatter
=== RUN   TestA/sub
=== RUN   TestB
    b_test.go:3: needs root
--- SKIP: TestB (0.00s)
PASS

the 1 slowest of 1 tests:
     1.50s p TestA

ok  	p	1.600s
`},
		"a failure, and a test that a panic cut off": {events: failing, want: `=== RUN   TestC
--- FAIL: TestC (0.20s)
    c_test.go:7: one is wrong
=== RUN   TestD
panic: no way on

what failed, and what it said last:
  q TestC/one
    c_test.go:7: one is wrong
  q TestC

the 1 slowest of 1 tests:
     0.20s q TestC

FAIL	q	0.300s
`},
		"a build that fails": {events: `{"Action":"build-output","ImportPath":"r","Output":"# r\n"}
{"Action":"build-output","ImportPath":"r","Output":"r.go:1:1: expected 'package'\n"}
{"Action":"build-fail","ImportPath":"r"}
{"Action":"output","Package":"r","Output":"FAIL\tr [build failed]\n"}
{"Action":"fail","Package":"r","Elapsed":0}
`, want: "# r\nr.go:1:1: expected 'package'\nFAIL\tr [build failed]\n"},
		"a package without tests": {events: `{"Action":"output","Package":"s","Output":"?   \ts\t[no test files]\n"}
{"Action":"skip","Package":"s","Elapsed":0}
`, want: "?   \ts\t[no test files]\n"},
		"a long story": {verbose: true, events: saying("TestE", "e_test.go:1: begins", "e_test.go:2: log, last lines:", "e_test.go:3: is wrong") + `{"Action":"fail","Package":"p","Test":"TestE","Elapsed":1}
`, want: `    e_test.go:1: begins
    e_test.go:2: log, last lines:
    e_test.go:3: is wrong

what failed, and what it said last:
  p TestE
    e_test.go:1: begins
    e_test.go:3: is wrong

the 1 slowest of 1 tests:
     1.00s p TestE

`},
		"what is not JSON": {events: "no Go files in /x\n", want: "no Go files in /x\n"},
		"cut off in the middle": {events: `{"Action":"output","Package":"q","Test":"TestD","Output":"half a story\n"}
`, want: "half a story\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			r, err := report(&out, strings.NewReader(tt.events), tt.verbose)
			if err != nil {
				t.Fatal(err)
			}
			r.end()
			if out.String() != tt.want {
				t.Errorf("got:\n%s\nwant:\n%s", out.String(), tt.want)
			}
		})
	}
}

func TestTheTenSlowestAreNamed(t *testing.T) {
	var events strings.Builder
	for _, n := range []string{"07", "03", "11", "01", "09", "05", "02", "12", "08", "04", "10", "06"} {
		events.WriteString(`{"Action":"pass","Package":"p","Test":"Test` + n + `","Elapsed":` + strings.TrimPrefix(n, "0") + "}\n")
	}
	var out strings.Builder
	r, err := report(&out, strings.NewReader(events.String()), false)
	if err != nil {
		t.Fatal(err)
	}
	r.end()
	_, list, _ := strings.Cut(out.String(), "the 10 slowest of 12 tests:\n")
	var names []string
	for line := range strings.Lines(strings.TrimSpace(list)) {
		names = append(names, strings.Fields(line)[2])
	}
	if got := strings.Join(names, " "); got != "Test12 Test11 Test10 Test09 Test08 Test07 Test06 Test05 Test04 Test03" {
		t.Error(got)
	}
}

// TestOnceMore runs packages whose tests fail in each way: what may be run once more is told by what go test really prints.
func TestOnceMore(t *testing.T) {
	gotest := filepath.Join(t.TempDir(), "gotest")
	if out, err := exec.Command("go", "build", "-o", gotest, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	const first = "if _, err := os.Stat(\"ran\"); err != nil { os.WriteFile(\"ran\", nil, 0o600); "
	for name, tt := range map[string]struct {
		body, again string
		args        []string
		passes      bool
		want        string
	}{
		"a test that passes the second time":  {body: first + "t.Error(1) }", again: "1", passes: true, want: "ok  \tonce\t(once more)\n"},
		"one in a subtest":                    {body: first + "t.Run(\"a\", func(t *testing.T) { t.Error(1) }) }", again: "1", passes: true, want: "  once TestIt\n"},
		"with flags":                          {body: first + "t.Error(1) }", again: "1", args: []string{"-v", "-timeout", "1m", "-parallel", "2", "-run", "It|Other"}, passes: true, want: "  once TestIt\n"},
		"a test that fails the second time":   {body: "t.Error(1)", again: "1", want: "FAIL\tonce"},
		"nobody asked for a second time":      {body: first + "t.Error(1) }", want: "FAIL\tonce"},
		"a panic is final":                    {body: first + "panic(1) }", again: "1", want: "FAIL\tonce"},
		"a program that ends itself is final": {body: first + "os.Exit(1) }", again: "1", want: "FAIL\tonce"},
		"a time-out is final":                 {body: first + "select {} }", again: "1", args: []string{"-timeout", "100ms"}, want: "FAIL\tonce"},
		"a build that fails is final":         {body: first + "undefined() }", again: "1", want: "FAIL\tonce"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range map[string]string{"go.mod": "module once\n", "it_test.go": "package once\nimport (\"os\"; \"testing\")\nvar _ = os.Stat\nfunc TestIt(t *testing.T) { " + tt.body + " }\nfunc TestOther(t *testing.T) {}\n"} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command(gotest, append(tt.args, ".")...)
			cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOTEST_AGAIN="+tt.again)
			out, err := cmd.CombinedOutput()
			if passed := err == nil; passed != tt.passes || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v, want %q:\n%s", err, tt.want, out)
			}
			if second := strings.Contains(string(out), "once more: once TestIt"); second != (tt.passes || name == "a test that fails the second time") {
				t.Errorf("ran once more: %t\n%s", second, out)
			}
		})
	}
}
