package nodeconfig

import (
	"path"
	"strings"

	"coldrack.dev/internal/contract/validate"
)

// UnitFile is the name of the file that defines a unit: that of an instance is its template's.
func UnitFile(name string) string {
	if prefix, rest, ok := strings.Cut(name, "@"); ok {
		return prefix + "@" + path.Ext(rest)
	}
	return name
}

// Enable says what enabling a unit means, given its file's place and content: the links that
// systemctl enable would make, and the units to enable along with it (systemd.unit(5), [Install]).
func Enable(name, file string, content []byte) (links []Op, also []string) {
	section := ""
	values := map[string][]string{}
	for line := range strings.SplitSeq(strings.ReplaceAll(string(content), "\\\n", " "), "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			section = line
		case section == "[Install]":
			k, v, _ := strings.Cut(line, "=")
			k = strings.TrimSpace(k)
			if strings.TrimSpace(v) == "" {
				values[k] = nil // an empty assignment forgets the earlier ones
			}
			values[k] = append(values[k], strings.Fields(v)...)
		}
	}
	if prefix, ext, ok := strings.Cut(name, "@."); ok {
		instance := values["DefaultInstance"]
		if len(instance) == 0 {
			return nil, nil
		}
		name = prefix + "@" + instance[0] + "." + ext
	}
	link := func(at string) {
		links = append(links, Op{Kind: MakeLink, Path: "/etc/systemd/system/" + at, Target: file})
	}
	for _, kind := range []struct{ key, dir string }{{"WantedBy", ".wants/"}, {"RequiredBy", ".requires/"}, {"UpheldBy", ".upholds/"}} {
		for _, by := range values[kind.key] {
			if validate.IsUnitName(by) {
				link(by + kind.dir + name)
			}
		}
	}
	for _, alias := range values["Alias"] {
		if validate.IsUnitName(alias) && alias != name {
			link(alias)
		}
	}
	for _, other := range values["Also"] {
		if validate.IsUnitName(other) {
			also = append(also, other)
		}
	}
	return links, also
}
