package main

import (
	"bytes"
	"cmp"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// linked is a Go module that is part of a program: the folders of its packages that are, and their files.
type linked struct {
	path, version string // "go" and its version for the standard library
	root          string // folder of the module
	packages      map[string][]string
}

func (l linked) name() string { return l.path + "@" + l.version }

// goPackage is what "go list" tells of a package.
type goPackage struct {
	ImportPath, Dir string
	Standard        bool
	GoFiles         []string
	Module          *struct {
		Path, Version, Dir string
		Main               bool
		Replace            *struct{ Path, Version, Dir string }
	}
}

// modules returns the modules that are linked into a program, without our own, ordered by path. Which packages of them are is
// asked of the go command; that it speaks of the same versions is checked against what the linker recorded in the program.
func modules(repository, program, command string) ([]linked, error) {
	recorded, err := buildinfo.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("read which modules %s consists of: %w", program, err)
	}
	want := map[string]bool{}
	for _, dep := range recorded.Deps {
		if dep.Replace != nil {
			dep = dep.Replace
		}
		want[dep.Path+"@"+dep.Version] = true
	}
	list := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,Standard,GoFiles,Module", command)
	list.Dir = repository
	list.Env = os.Environ()
	for _, setting := range recorded.Settings {
		if setting.Key == "GOOS" || setting.Key == "GOARCH" || setting.Key == "CGO_ENABLED" {
			list.Env = append(list.Env, setting.Key+"="+setting.Value)
		}
	}
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w\n%s", command, err, stderr.String())
	}
	found := map[string]*linked{}
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		var l linked
		switch m := p.Module; {
		case p.Standard:
			continue
		case m == nil || m.Main:
			continue
		case m.Replace != nil:
			l = linked{path: m.Replace.Path, version: m.Replace.Version, root: m.Replace.Dir}
		default:
			l = linked{path: m.Path, version: m.Version, root: m.Dir}
		}
		if l.root == "" {
			return nil, fmt.Errorf("module %s is not in the module cache; run: go mod download", l.name())
		}
		if found[l.name()] == nil {
			l.packages = map[string][]string{}
			found[l.name()] = &l
		}
		found[l.name()].packages[p.Dir] = p.GoFiles
	}
	for name := range found {
		if !want[name] {
			return nil, fmt.Errorf("%s would be built with %s, and %s was not; build it anew", command, name, program)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		return nil, fmt.Errorf("%s was built with %q, and %s would not be; build it anew", program, slices.Sorted(maps.Keys(want)), command)
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	all := []linked{{path: "go", version: strings.TrimPrefix(recorded.GoVersion, "go"), root: strings.TrimSpace(string(root))}}
	for _, l := range found {
		all = append(all, *l)
	}
	slices.SortFunc(all, func(a, b linked) int { return cmp.Compare(a.name(), b.name()) })
	return all, nil
}

var (
	licenceFile = regexp.MustCompile(`(?i)^(un)?(licen[cs]es?|copying|copyright)([-_.].*)?$`)
	noticeFile  = regexp.MustCompile(`(?i)^(notices?|patents)([-_.].*)?$`)
	holder      = regexp.MustCompile(`^(Copyright\b|COPYRIGHT\b|\([cC]\) *(19|20)\d\d|©)`)
	dated       = regexp.MustCompile(`(?i)\b(19|20)\d\d\b|\(c\)|©|\bthe [\w.+ -]+ (authors|contributors)\b`)
	template    = regexp.MustCompile(`[\[{<](yyyy|year|name)`)
	comment     = regexp.MustCompile(`^[\s/*#;]+|[\s*/]+$`)
	// How to apply it: not every copy of Apache's licence has that.
	appendix = regexp.MustCompile(`( END OF TERMS AND CONDITIONS)?( APPENDIX: How to apply .{0,800})?( Licensed under the Apache License, Version 2\.0 .{0,600}limitations under the License\.?)?$`)
	spaces   = regexp.MustCompile(`\s+`)
)

// grant is one licence text in one folder of a module: what it covers, whose it is, and the text.
type grant struct {
	covers  string // pattern of files: MODULE@VERSION/FOLDER/*
	holders []string
	text    string
	notices string // what must be passed on with it
}

// grants returns the licences of the linked packages of a module: those of its root, and those of folders below that lead to
// a linked package.
func (l linked) grants() ([]grant, error) {
	folders := map[string]bool{l.root: true}
	for dir := range l.packages {
		for ; len(dir) > len(l.root); dir = filepath.Dir(dir) {
			folders[dir] = true
		}
	}
	var all []grant
	for _, folder := range slices.Sorted(maps.Keys(folders)) {
		files, err := os.ReadDir(folder)
		if err != nil {
			return nil, err
		}
		var g grant
		for _, file := range files {
			licence, notice := licenceFile.MatchString(file.Name()), noticeFile.MatchString(file.Name())
			if !licence && !notice || !file.Type().IsRegular() || strings.HasSuffix(file.Name(), ".go") {
				continue
			}
			data, err := os.ReadFile(filepath.Join(folder, file.Name()))
			if err != nil {
				return nil, err
			}
			text := plain(data)
			g.holders = append(g.holders, holders(text)...)
			if licence {
				g.text = join(g.text, text)
			} else {
				g.notices = join(g.notices, text)
			}
		}
		if g.text == "" && (folder != l.root || g.notices != "") {
			if folder == l.root {
				return nil, fmt.Errorf("module %s has a notice and no licence", l.name())
			}
			continue
		}
		if g.text == "" {
			continue
		}
		rel, err := filepath.Rel(l.root, folder)
		if err != nil {
			return nil, err
		}
		g.covers = path.Join(l.name(), filepath.ToSlash(rel), "*")
		if len(g.holders) == 0 {
			if g.holders, err = l.sourceHolders(folder); err != nil {
				return nil, err
			}
		}
		if len(g.holders) == 0 {
			g.holders = []string{"the authors of " + l.path + ", who state no notice"}
		}
		g.holders = unique(g.holders)
		all = append(all, g)
	}
	if len(all) == 0 || all[0].covers != l.name()+"/*" {
		return nil, fmt.Errorf("module %s has no file with a licence in %s: it cannot be distributed; ask its authors, or do without it", l.name(), l.root)
	}
	return all, nil
}

// sourceHolders are those that the heads of linked files below folder name, where the licence names none.
func (l linked) sourceHolders(folder string) ([]string, error) {
	found := map[string]bool{}
	for dir, files := range l.packages {
		if dir != folder && !strings.HasPrefix(dir, folder+string(filepath.Separator)) {
			continue
		}
		for _, file := range files {
			data, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				return nil, err
			}
			head, _, _ := bytes.Cut(append([]byte("\n"), data...), []byte("\npackage "))
			for _, h := range holders(plain(head)) {
				found[h] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// holders are the lines of a text that say whose it is.
func holders(text string) []string {
	var found []string
	for line := range strings.Lines(text) {
		if !mayName(line) {
			continue
		}
		line = comment.ReplaceAllString(strings.TrimSpace(line), "")
		if holder.MatchString(line) && dated.MatchString(line) && !template.MatchString(line) && len(line) < 200 {
			found = append(found, spaces.ReplaceAllString(line, " "))
		}
	}
	return found
}

// mayName tells quickly that a line does not say whose a text is.
func mayName(line string) bool {
	return strings.Contains(line, "opyright") || strings.Contains(line, "OPYRIGHT") || strings.Contains(line, "(c)") || strings.Contains(line, "(C)") || strings.Contains(line, "©")
}

// plain is a text as a control file can hold it: UTF-8, without tabs, carriage returns, form feeds and empty ends.
func plain(data []byte) string {
	text := strings.ToValidUTF8(string(data), "?")
	text = strings.NewReplacer("\r\n", "\n", "\r", "\n", "\f", "\n", "\t", "    ", "\ufeff", "").Replace(text)
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return strings.Trim(b.String(), "\n") + "\n"
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "\n" + b
}

func unique(list []string) []string {
	var once []string
	for _, s := range list {
		if !slices.Contains(once, s) {
			once = append(once, s)
		}
	}
	return once
}

// essence is what two texts of one licence have in common: words without their layout, without whose work it is, and without how
// to apply it.
func essence(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		bare := strings.TrimSpace(line)
		if mayName(line) {
			bare = comment.ReplaceAllString(bare, "")
		}
		if holder.MatchString(bare) && (dated.MatchString(bare) || template.MatchString(bare)) || strings.EqualFold(bare, "all rights reserved.") {
			continue
		}
		b.WriteString(line)
	}
	words := strings.TrimSpace(spaces.ReplaceAllString(b.String(), " "))
	if strings.HasPrefix(words, "Apache License Version 2.0,") {
		words = appendix.ReplaceAllString(strings.ReplaceAll(words, "https://www.apache.org", "http://www.apache.org"), "")
	}
	return words
}

// kinds are words that only one licence has, and Debian's name of it.
func kinds() [][2]string {
	return [][2]string{
		{"Apache-2.0", "Apache License"},
		{"MPL-2.0", "Mozilla Public License"},
		{"Expat", "Permission is hereby granted, free of charge"},
		{"ISC", "Permission to use, copy, modify, and"},
		{"BSD-3-clause", "contributors may be used to endorse or promote products"},
		{"BSD-2-clause", "Redistributions in binary form must reproduce the above copyright"},
		{"CC0-1.0", "CC0 1.0 Universal"},
		{"Unlicense", "This is free and unencumbered software"},
		{"CC-BY-4.0", "Creative Commons Attribution 4.0"},
	}
}

const (
	several = "several" // a text that holds more than one
	other   = "other"   // one that kinds does not know
)

// kind is Debian's name of a licence, or one of the above.
func kind(text string) string {
	found, words := "", essence(text)
	for _, k := range kinds() {
		if !strings.Contains(words, k[1]) || k[0] == "BSD-2-clause" && found == "BSD-3-clause" {
			continue
		}
		if found != "" {
			return several
		}
		found = k[0]
	}
	return cmp.Or(found, other)
}

// copyright is the file that says whose the program and what is linked into it are (Debian's machine-readable format 1.0).
// ourLicence is our own, which is Apache's, word by word.
func copyright(ourLicence string, modules []linked) ([]byte, error) {
	const apache = "Apache-2.0"
	names := map[string]string{essence(ourLicence): apache} // of a licence, by its essence
	count := map[string]int{}
	var texts [][2]string
	var b strings.Builder
	b.WriteString(`Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Coldrack
Source: https://coldrack.dev
Comment: The program is linked statically. The first paragraph is about Coldrack itself, each of
 the others about a Go module in it: MODULE@VERSION, as in Go's module cache. Written when the package
 was built, from the files of these modules.

Files: *
Copyright: The Coldrack authors
License: Apache-2.0
`)
	for _, m := range modules {
		grants, err := m.grants()
		if err != nil {
			return nil, err
		}
		for _, g := range grants {
			name, known := names[essence(g.text)]
			if !known {
				k := kind(g.text)
				count[k]++
				name = k
				if count[k] > 1 || k == apache {
					name = fmt.Sprintf("%s~%d", k, count[k])
				}
				names[essence(g.text)] = name
				text := g.text
				// Of a text about several works, whose each one is has to stand where it does.
				if k != several && k != other {
					text = withoutHolders(text)
				}
				texts = append(texts, [2]string{name, text})
			}
			fmt.Fprintf(&b, "\nFiles: %s\nCopyright: %s\nLicense: %s\n", g.covers, strings.Join(g.holders, "\n "), name)
			if g.notices != "" {
				fmt.Fprintf(&b, "Comment: Its authors say:\n%s", folded(g.notices))
			}
		}
	}
	fmt.Fprintf(&b, "\nLicense: %s\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n", apache)
	for _, t := range texts {
		fmt.Fprintf(&b, "\nLicense: %s\n%s", t[0], folded(t[1]))
	}
	return []byte(b.String()), nil
}

// withoutHolders leaves out the lines that stand in the field Copyright.
func withoutHolders(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if len(holders(line)) == 0 {
			b.WriteString(line)
		}
	}
	return strings.Trim(b.String(), "\n") + "\n"
}

// folded is a text as a field of several lines.
func folded(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			b.WriteString(" .\n")
			continue
		}
		b.WriteString(" " + line)
	}
	return b.String()
}
