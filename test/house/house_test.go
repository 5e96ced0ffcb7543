// Package house tests the structure of the repository itself: which packages there are, which of them may import
// which, and that every package says what it is. The table is in table_test.go.
package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

const (
	module  = "coldrack.dev/"
	product = "product"
)

type goPackage struct {
	ImportPath string
	Doc        string
	GoFiles    []string
	Name       string
	Imports    []string
	Deps       []string
}

// name is how the table calls a package of the product; it is empty for tests and generators.
func (p goPackage) name() string { return nameOf(p.ImportPath) }

func nameOf(importPath string) string {
	p, ours := strings.CutPrefix(importPath, module)
	if !ours || strings.HasPrefix(p, "test/") || strings.HasPrefix(p, "hack/") {
		return ""
	}
	return strings.TrimPrefix(p, "internal/")
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	all, err := list()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}

// list asks the go command once for all tests.
var list = sync.OnceValues(func() ([]goPackage, error) {
	command := exec.Command("go", "list", "-deps=false", "-json=ImportPath,Doc,GoFiles,Name,Imports,Deps", module+"...")
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, stderr.String())
	}
	var all []goPackage
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
})

func byName() map[string]room {
	m := map[string]room{}
	for _, r := range rooms {
		m[r.name] = r
	}
	return m
}

func TestImports(t *testing.T) {
	table, seen := byName(), map[string]bool{}
	arrows := 0
	for _, p := range packages(t) {
		name := p.name()
		for _, dep := range p.Imports {
			if d := strings.TrimPrefix(dep, module); strings.HasPrefix(p.ImportPath, module+"internal/") && strings.HasPrefix(dep, module) && strings.HasPrefix(d, "test/") {
				t.Errorf("%s imports %s: the product does not import its tests", p.ImportPath, dep)
			}
		}
		if name == "" {
			continue
		}
		r, listed := table[name]
		if !listed {
			t.Errorf("%s is not in the table: give it a wing, a floor and what it may import", name)
			continue
		}
		seen[name] = true
		var unused []string
		unused = append(unused, r.may...)
		for _, dep := range p.Imports {
			d := nameOf(dep)
			if d == "" || slices.Contains(open, d) {
				continue
			}
			arrows++
			if !slices.Contains(r.may, d) {
				t.Errorf("%s imports %s, which the table does not allow", name, d)
			}
			unused = slices.DeleteFunc(unused, func(s string) bool { return s == d })
		}
		if len(unused) > 0 {
			t.Errorf("%s may import %q, and does not: remove them from the table", name, unused)
		}
	}
	for name := range table {
		if !seen[name] {
			t.Errorf("%s is in the table, and there is no such package", name)
		}
	}
	t.Logf("%d rooms, %d arrows beside those to open packages", len(rooms), arrows)
}

// mostArrows is how many pairs of wings there are of which one imports the other, commands included. A new pair is a decision:
// raise it with a reason in the commit.
const mostArrows = 48

func TestFewArrowsBetweenWings(t *testing.T) {
	table, pairs := byName(), map[string]bool{}
	for _, p := range packages(t) {
		for _, dep := range p.Imports {
			if from, to := table[p.name()].wing, table[nameOf(dep)].wing; from != "" && to != "" && from != to {
				pairs[from+" -> "+to] = true
			}
		}
	}
	if len(pairs) > mostArrows {
		t.Errorf("%d arrows between wings, at most %d are wanted:\n%s", len(pairs), mostArrows, strings.Join(slices.Sorted(maps.Keys(pairs)), "\n"))
	}
}

// TestNoArrowGoesUp looks at the table alone.
func TestNoArrowGoesUp(t *testing.T) {
	table := byName()
	if len(table) != len(rooms) {
		t.Errorf("a package is listed twice")
	}
	for _, name := range open {
		if table[name].floor != ground || table[name].may != nil {
			t.Errorf("%s is open to all, so it stands on the ground and imports none of ours", name)
		}
	}
	wings := map[string]map[string]bool{}
	for _, r := range rooms {
		for _, d := range r.may {
			to, listed := table[d]
			switch {
			case !listed:
				t.Errorf("%s may import %s, which is not in the table", r.name, d)
			case slices.Contains(open, d):
				t.Errorf("%s lists %s, which is open to all", r.name, d)
			case to.floor > r.floor:
				t.Errorf("%s (%s) may import %s (%s): an arrow upwards", r.name, floorNames[r.floor], d, floorNames[to.floor])
			case strings.HasPrefix(d, "cmd/"):
				t.Errorf("%s may import %s: nothing imports a command", r.name, d)
			case to.floor == r.floor && to.wing != r.wing:
				if wings[r.wing] == nil {
					wings[r.wing] = map[string]bool{}
				}
				wings[r.wing][to.wing] = true
			}
		}
	}
	// Wings of one floor may lean on each other in one direction.
	for from := range wings {
		if circle := reaches(wings, from, from, map[string]bool{}); circle {
			t.Errorf("wing %s imports a wing of its floor that imports it", from)
		}
	}
}

func reaches(graph map[string]map[string]bool, from, to string, visited map[string]bool) bool {
	for next := range graph[from] {
		if next == to {
			return true
		}
		if !visited[next] {
			visited[next] = true
			if reaches(graph, next, to, visited) {
				return true
			}
		}
	}
	return false
}

func TestBans(t *testing.T) {
	matched := make([]bool, len(bans))
	for _, p := range packages(t) {
		for i, b := range bans {
			if !matches(b.from, p.ImportPath) {
				continue
			}
			matched[i] = true
			reached := p.Deps
			if b.direct {
				reached = p.Imports
			}
			for _, dep := range reached {
				hit := matches(b.to, dep)
				switch {
				case b.to == product:
					hit = strings.HasPrefix(dep, module)
				case b.to == "net":
					hit = dep == "net"
				}
				if hit && dep != shared && !matches(b.from, dep) {
					t.Errorf("%s reaches %s: %s", p.ImportPath, dep, b.why)
				}
			}
		}
	}
	for i, b := range bans {
		if !matched[i] {
			t.Errorf("the ban of %s protects nothing: no such package", b.from)
		}
	}
}

// matches compares a prefix of the table, or with "$" at its end a whole path, with an import path.
func matches(prefix, importPath string) bool {
	p, ours := strings.CutPrefix(importPath, module)
	if strings.HasPrefix(prefix, "internal/") && !ours { // the standard library has such packages, too
		return false
	}
	if whole, ok := strings.CutSuffix(prefix, "$"); ok {
		return p == whole
	}
	return strings.HasPrefix(p, prefix)
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
		for _, banned := range []string{"util", "utils", "common", "helpers", "misc"} {
			if p.Name == banned {
				t.Errorf("%s: a package named %s says nothing about what belongs in it", p.ImportPath, banned)
			}
		}
	}
}

var (
	section = regexp.MustCompile(`(?s)\n## The packages\n(.*?)\n## `)
	quoted  = regexp.MustCompile("`([^`]+)`")
)

// TestTheDocumentedPackages compares the table in docs/architecture.md, whose first column is the floor, with ours.
// A row for "internal/x/…" stands for all packages below it.
func TestTheDocumentedPackages(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := section.FindSubmatch(b)
	if found == nil {
		t.Fatal("docs/architecture.md has no section about the packages")
	}
	missing, at := byName(), ""
	for line := range strings.Lines(string(found[1])) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || strings.Contains(line, "---") || strings.Contains(cells[1], "floor") {
			continue
		}
		if f := strings.TrimSpace(cells[1]); f != "" {
			at = f
		}
		for _, q := range quoted.FindAllStringSubmatch(cells[2], -1) {
			name := strings.TrimPrefix(q[1], "internal/")
			matched := false
			for _, r := range rooms {
				below, many := strings.CutSuffix(name, "…")
				if r.name != name && !(many && strings.HasPrefix(r.name, below)) {
					continue
				}
				matched = true
				delete(missing, r.name)
				if floorNames[r.floor] != at {
					t.Errorf("docs/architecture.md has %s on floor %q, the table on %q", r.name, at, floorNames[r.floor])
				}
			}
			if !matched {
				t.Errorf("docs/architecture.md names %s, which is not in the table", q[1])
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		t.Errorf("docs/architecture.md does not name %s", name)
	}
}
