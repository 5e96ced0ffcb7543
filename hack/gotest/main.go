// Command gotest runs "go test" and shows how long each test took. A test that passes is one line, a test that fails is
// shown with all its output. What failed, the slowest tests, and go test's own line for each package come last.
//
// All arguments are passed to "go test". With -v the output of every test is shown while it runs. Vet is off: "make lint" runs it with all its
// checks, and with the race detector go test would let it look at every library once more.
//
// With GOTEST_AGAIN=1 tests that failed are run once more, one after another, when all have ended. Those that pass then are named: they
// depend on load or luck, and are to be mended. Continuous integration runs so, since a whole run costs the better part of an hour. A panic, a
// data race, a time-out and a build that failed are final.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	r, err := goTest(os.Stdout, args)
	if r == nil {
		return err
	}
	again := map[string][]string{}
	if err != nil && os.Getenv("GOTEST_AGAIN") == "1" {
		again = r.again()
	}
	r.end()
	var passed []string
	for _, pkg := range slices.Sorted(maps.Keys(again)) {
		fmt.Printf("\nonce more: %s %s\n", pkg, strings.Join(again[pkg], " "))
		second, err := goTest(os.Stdout, argsAgain(args, pkg, again[pkg]))
		if second == nil {
			return err
		}
		second.end()
		if err != nil {
			return err
		}
		for _, test := range again[pkg] {
			passed = append(passed, pkg+" "+test)
		}
	}
	if len(passed) == 0 {
		return err
	}
	fmt.Println("\nfailed at first, and passed when they ran once more; mend them:")
	for _, test := range passed {
		fmt.Println("  " + test)
	}
	r.summarize(again)
	return nil
}

// goTest runs "go test" to its end. Without a reporter it did not start.
func goTest(out io.Writer, args []string) (*reporter, error) {
	cmd := exec.Command("go", append([]string{"test", "-json", "-vet=off"}, args...)...)
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r, readErr := report(out, events, slices.Contains(args, "-v"))
	// What is not read would keep go test from ending.
	_, _ = io.Copy(io.Discard, events)
	return r, errors.Join(cmd.Wait(), readErr)
}

// argsAgain are those of a run of some tests of a package alone, with the flags of a former run.
func argsAgain(args []string, pkg string, tests []string) []string {
	var kept []string
	for i := 0; i < len(args); i++ {
		name, _, joined := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if !strings.HasPrefix(args[i], "-") {
			continue // a package
		}
		n := 1
		if !joined && !slices.Contains(switches, name) {
			n = 2
		}
		if !slices.Contains([]string{"run", "count", "parallel"}, name) {
			kept = append(kept, args[i:min(i+n, len(args))]...)
		}
		i += n - 1
	}
	return append(kept, "-count=1", "-parallel=1", "-run=^("+strings.Join(tests, "|")+")$", pkg)
}

// switches are the flags of "go test" that have no value of their own.
var switches = []string{"v", "race", "short", "failfast", "cover", "benchmem", "msan", "asan", "trimpath", "x", "n", "a", "work"}

// event is a line of "go test -json"; see "go doc test2json" and "go help buildjson".
type event struct {
	Action     string
	Package    string
	ImportPath string // of a build's output
	Test       string
	Elapsed    float64 // seconds
	Output     string
}

// slowest is how many tests are named at the end.
const slowest = 10

type key struct{ pkg, test string }

type result struct {
	key
	seconds float64
}

// reporter turns events into text for a person.
type reporter struct {
	out     io.Writer
	verbose bool
	// pending is the output of tests and packages that have not ended. What belongs to a package has no test.
	pending map[key]*strings.Builder
	tests   []result
	// said are the last lines by which a test said where it is, in its own words.
	said map[key][]string
	// failed are the tests that failed.
	failed []key
	// ordinary are packages that ended with a test that failed, and not by a panic or a time-out.
	ordinary map[string]bool
	// broken is set when a package failed otherwise, or by a data race.
	broken bool
	// summary holds go test's last line for each package.
	summary []string
}

const (
	// mostSaid is how many lines of a test that failed are repeated at the end, and mostLine how much of each.
	mostSaid = 8
	mostLine = 600
)

// place begins what a test says by Log, Error or Fatal.
var place = regexp.MustCompile(`^\s+\w+_test\.go:\d+: `)

// report reads events until they end and writes what a person wants to know of them, but for the end.
func report(out io.Writer, events io.Reader, verbose bool) (*reporter, error) {
	r := &reporter{out: out, verbose: verbose, pending: map[key]*strings.Builder{}, said: map[key][]string{}, ordinary: map[string]bool{}}
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				r.take(e)
			} else {
				_, _ = out.Write(line) // go test itself complains
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return r, fmt.Errorf("read the output of go test: %w", err)
		}
	}
	return r, nil
}

// again are the tests that may be run once more, by package: none when anything failed that is not the failure of a test.
func (r *reporter) again() map[string][]string {
	tests := map[string][]string{}
	for _, k := range r.failed {
		if !r.ordinary[k.pkg] {
			return nil
		}
		if top, _, _ := strings.Cut(k.test, "/"); !slices.Contains(tests[k.pkg], top) {
			tests[k.pkg] = append(tests[k.pkg], top)
		}
	}
	if r.broken {
		return nil
	}
	return tests
}

func (r *reporter) take(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		r.output(k, e.Output)
	case "pass", "skip", "fail":
		if e.Test == "" {
			r.packageEnded(k, e.Action)
		} else {
			r.testEnded(k, e)
		}
	}
}

func (r *reporter) output(k key, text string) {
	r.broken = r.broken || strings.Contains(text, "race detected during execution of test")
	if k.test == "" && text == "FAIL\n" { // the test program's own last word; a panic and an exit have none
		r.ordinary[k.pkg] = true
	}
	if k.test == "" && isSummary(text) {
		r.summary = append(r.summary, text)
		return
	}
	// A line that ends with a colon announces more than fits here: logs, for a person who reads everything.
	if line := strings.TrimRight(text, "\n"); k.test != "" && place.MatchString(line) && !strings.HasSuffix(line, ":") {
		said := append(r.said[k], strings.TrimSpace(line)[:min(mostLine, len(strings.TrimSpace(line)))])
		r.said[k] = said[max(0, len(said)-mostSaid):]
	}
	if r.verbose {
		fmt.Fprint(r.out, text)
		return
	}
	if r.pending[k] == nil {
		r.pending[k] = &strings.Builder{}
	}
	r.pending[k].WriteString(text)
}

// isSummary tells go test's line about a whole package from what its tests print.
func isSummary(text string) bool {
	for _, start := range []string{"ok  \t", "FAIL\t", "---\t", "?   \t"} {
		if strings.HasPrefix(text, start) {
			return true
		}
	}
	return strings.HasPrefix(text, "\t") && strings.Contains(text, "coverage:")
}

func (r *reporter) testEnded(k key, e event) {
	top := !strings.Contains(e.Test, "/")
	if top && e.Action != "skip" {
		r.tests = append(r.tests, result{k, e.Elapsed})
	}
	if e.Action == "fail" {
		r.failed = append(r.failed, k)
	} else {
		delete(r.said, k)
	}
	if r.verbose {
		return
	}
	switch {
	case e.Action == "fail":
		if !top {
			return // shown with its parent, which fails, too
		}
		r.flush(k)
	case top && e.Action == "skip":
		fmt.Fprintf(r.out, "SKIP %7.2fs %s %s%s\n", e.Elapsed, k.pkg, k.test, r.reason(k))
		r.drop(k)
	case top:
		fmt.Fprintf(r.out, "PASS %7.2fs %s %s\n", e.Elapsed, k.pkg, k.test)
		r.drop(k)
	}
}

// reason is what a skipped test said.
func (r *reporter) reason(k key) string {
	if r.pending[k] == nil {
		return ""
	}
	for line := range strings.Lines(r.pending[k].String()) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			return ": " + line
		}
	}
	return ""
}

// packageEnded shows, of a package that failed, what no finished test has shown: panics, and tests that were cut off.
func (r *reporter) packageEnded(k key, action string) {
	if action != "fail" {
		r.drop(k)
		return
	}
	tested := func(t key) bool { return t.pkg == k.pkg }
	r.broken = r.broken || !r.ordinary[k.pkg] || !slices.ContainsFunc(r.failed, tested)
	var left []string
	for other := range r.pending {
		if other.pkg == k.pkg && other.test != "" && !strings.Contains(other.test, "/") {
			left = append(left, other.test)
		}
	}
	slices.Sort(left)
	for _, test := range left {
		r.flush(key{k.pkg, test})
	}
	r.flush(k)
}

// family are a test and its subtests, in the order of their names.
func (r *reporter) family(k key) []key {
	var all []key
	for other := range r.pending {
		if other == k || k.test != "" && other.pkg == k.pkg && strings.HasPrefix(other.test, k.test+"/") {
			all = append(all, other)
		}
	}
	slices.SortFunc(all, func(a, b key) int { return cmp.Compare(a.test, b.test) })
	return all
}

func (r *reporter) flush(k key) {
	for _, member := range r.family(k) {
		fmt.Fprint(r.out, r.pending[member])
		delete(r.pending, member)
	}
}

func (r *reporter) drop(k key) {
	for _, member := range r.family(k) {
		delete(r.pending, member)
	}
}

func (r *reporter) end() {
	// A build that failed, or go test that was killed.
	for k := range r.pending {
		r.flush(k)
	}
	if len(r.failed) > 0 {
		fmt.Fprintln(r.out, "\nwhat failed, and what it said last:")
		for _, k := range r.failed {
			fmt.Fprintf(r.out, "  %s %s\n", k.pkg, k.test)
			for _, line := range r.said[k] {
				fmt.Fprintf(r.out, "    %s\n", line)
			}
		}
	}
	if len(r.tests) > 0 {
		slices.SortStableFunc(r.tests, func(a, b result) int { return cmp.Compare(b.seconds, a.seconds) })
		list := r.tests[:min(slowest, len(r.tests))]
		fmt.Fprintf(r.out, "\nthe %d slowest of %d tests:\n", len(list), len(r.tests))
		for _, t := range list {
			fmt.Fprintf(r.out, "%9.2fs %s %s\n", t.seconds, t.pkg, t.test)
		}
		fmt.Fprintln(r.out)
	}
	r.summarize(nil)
}

// summarize repeats go test's own lines, but for the failure of packages that are well now.
func (r *reporter) summarize(mended map[string][]string) {
	for _, line := range r.summary {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "FAIL" && mended[fields[1]] != nil {
			line = "ok  \t" + fields[1] + "\t(once more)\n"
		}
		fmt.Fprint(r.out, line)
	}
}
