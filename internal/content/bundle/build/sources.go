package build

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// source is one repository that apt knows: one URI and one suite.
type source struct {
	uri        string
	suite      string
	components []string
	signedBy   string // path of a keyring; empty: the keys that apt trusts for everything
}

// line is the source in the one-line format of sources.list.
func (s source) line() string {
	options := "arch=amd64"
	if s.signedBy != "" {
		options += " signed-by=" + s.signedBy
	}
	return fmt.Sprintf("deb [%s] %s %s %s\n", options, s.uri, s.suite, strings.Join(s.components, " "))
}

// parseSources reads a file of apt's, in the one-line format (sources.list(5), *.list) or in deb822
// form (*.sources). What cannot be a source of binary packages is passed over: apt itself judges
// the syntax, this only picks.
func parseSources(name, content string) []source {
	if path.Ext(name) == ".sources" {
		return parseDeb822(content)
	}
	var found []source
	for line := range strings.Lines(content) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || strings.HasPrefix(rest, "-src") {
			continue
		}
		var options string
		if rest = strings.TrimSpace(rest); strings.HasPrefix(rest, "[") {
			if options, rest, ok = strings.Cut(rest[1:], "]"); !ok {
				continue
			}
		}
		f := strings.Fields(rest)
		if len(f) < 3 {
			continue
		}
		s := source{uri: f[0], suite: f[1], components: f[2:]}
		for _, o := range strings.Fields(options) {
			if key, ok := strings.CutPrefix(o, "signed-by="); ok && path.IsAbs(key) {
				s.signedBy = key
			}
		}
		found = append(found, s)
	}
	return found
}

func parseDeb822(content string) []source {
	var found []source
	for stanza := range strings.SplitSeq(content, "\n\n") {
		fields := map[string]string{}
		last := ""
		for line := range strings.Lines(stanza) {
			switch key, value, ok := strings.Cut(line, ":"); {
			case strings.HasPrefix(line, "#"):
			case strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"):
				fields[last] += " " + strings.TrimSpace(line)
			case ok:
				last = strings.ToLower(strings.TrimSpace(key))
				fields[last] = strings.TrimSpace(value)
			}
		}
		if !slices.Contains(strings.Fields(fields["types"]), "deb") || strings.EqualFold(fields["enabled"], "no") {
			continue
		}
		signedBy := fields["signed-by"]
		if !path.IsAbs(signedBy) || strings.ContainsAny(signedBy, " \t") {
			signedBy = "" // a key within the file; the machine's trusted keys have to do
		}
		for _, uri := range strings.Fields(fields["uris"]) {
			for _, suite := range strings.Fields(fields["suites"]) {
				found = append(found, source{uri, suite, strings.Fields(fields["components"]), signedBy})
			}
		}
	}
	return found
}

// selectSources keeps what belongs to the recipe's suite and components. Other distributors use
// the same suite names, but not these components.
func selectSources(all []source, recipe AptRecipe) string {
	var lines []string
	for _, s := range all {
		s.components = slices.DeleteFunc(slices.Clone(s.components), func(c string) bool { return !slices.Contains(recipe.Components, c) })
		if base(s.suite) != recipe.Suite || len(s.components) == 0 {
			continue
		}
		if l := s.line(); !slices.Contains(lines, l) {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "")
}

// debianSuites are those that a mirror of Debian carries side by side.
func debianSuites() []string {
	return []string{"bookworm", "trixie", "forky", "oldstable", "stable", "testing"}
}

// translate makes sources of a suite of Debian out of those that a machine has of other suites: a mirror carries all
// that are supported. A source with a key of somebody else is left out.
func translate(all []source, suite string) []source {
	if !slices.Contains(debianSuites(), suite) {
		return nil
	}
	var found []source
	for _, s := range all {
		from := base(s.suite)
		if !slices.Contains(debianSuites(), from) || s.signedBy != "" && !strings.HasPrefix(path.Base(s.signedBy), "debian-archive-") {
			continue
		}
		s.suite = suite + strings.TrimPrefix(s.suite, from)
		found = append(found, s)
	}
	return found
}

// base is the suite that a security or updates suite belongs to. Backports are left out: their
// packages are chosen one by one, not for a whole system.
func base(suite string) string {
	for _, suffix := range []string{"-security", "-updates", "/updates"} {
		suite = strings.TrimSuffix(suite, suffix)
	}
	return suite
}
