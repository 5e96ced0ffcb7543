// Command gotest runs "go test" and shows how long each test took. A test that passes is one line, a test that fails is
// shown with all its output. What failed, the slowest tests, and go test's own line for each package come last.
//
// All arguments are passed to "go test". With -v the output of every test is shown while it runs.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	verbose := slices.Contains(args, "-v")
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := report(os.Stdout, events, verbose)
	// What is not read would keep go test from ending.
	_, _ = io.Copy(io.Discard, events)
	return errors.Join(cmd.Wait(), readErr)
}

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

// report reads events until they end and writes what a person wants to know of them.
func report(out io.Writer, events io.Reader, verbose bool) error {
	r := &reporter{out: out, verbose: verbose, pending: map[key]*strings.Builder{}, said: map[key][]string{}}
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
			return fmt.Errorf("read the output of go test: %w", err)
		}
	}
	r.end()
	return nil
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
	for _, line := range r.summary {
		fmt.Fprint(r.out, line)
	}
}
