package quirk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"coldrack.dev/internal/contract/manifest/yamlerr"
	"coldrack.dev/internal/contract/validate"
)

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Parse reads a table. Its errors name file, line and field, and are all there are.
func Parse(file string, text []byte) (*Table, error) {
	p := &parser{file: file}
	table := p.table(text)
	if len(p.errs) > 0 {
		return nil, errors.Join(p.errs...)
	}
	return table, nil
}

type parser struct {
	file string
	errs []error
}

// wrong notes an error at a place.
func (p *parser) wrong(line int, field, format string, args ...any) {
	where := fmt.Sprintf("%s: line %d: ", p.file, line)
	if field != "" {
		where += field + ": "
	}
	p.errs = append(p.errs, fmt.Errorf(where+format, args...))
}

func (p *parser) table(text []byte) *Table {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document, further yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return &Table{}
	} else if err != nil {
		p.errs = append(p.errs, fmt.Errorf("%s: %s", p.file, yamlerr.Text(err)))
		return nil
	}
	if err := decoder.Decode(&further); !errors.Is(err, io.EOF) {
		p.errs = append(p.errs, fmt.Errorf("%s: one document is wanted, with the key quirks", p.file))
		return nil
	}
	table := &Table{}
	p.mapping(document.Content[0], "", map[string]func(*yaml.Node, string){
		"quirks": func(list *yaml.Node, field string) {
			if list.Kind != yaml.SequenceNode {
				p.wrong(list.Line, field, "a list is wanted")
				return
			}
			lines := map[string]int{}
			for i, item := range list.Content {
				at := fmt.Sprintf("%s[%d]", field, i)
				q := p.quirk(item, at)
				if first, twice := lines[q.Name]; twice && q.Name != "" {
					p.wrong(item.Line, at+".name", "%s is there already, on line %d", q.Name, first)
				}
				lines[q.Name] = item.Line
				table.quirks = append(table.quirks, q)
			}
		},
	})
	return table
}

// mapping hands each key's value to its reader.
func (p *parser) mapping(node *yaml.Node, field string, readers map[string]func(*yaml.Node, string)) {
	if node.Kind != yaml.MappingNode {
		p.wrong(node.Line, field, "keys with values are wanted: %s", keys(readers))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		at := strings.TrimPrefix(field+"."+key.Value, ".")
		read, known := readers[key.Value]
		switch {
		case !known:
			p.wrong(key.Line, at, "there is no such key; there are %s", keys(readers))
		case seen[key.Value]:
			p.wrong(key.Line, at, "given twice")
		case value.Kind == yaml.AliasNode:
			p.wrong(value.Line, at, "aliases are not supported: write it out")
		default:
			read(value, at)
		}
		seen[key.Value] = true
	}
}

func keys(readers map[string]func(*yaml.Node, string)) string {
	var names []string
	for name := range readers {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func (p *parser) quirk(node *yaml.Node, field string) Quirk {
	var q Quirk
	matchLine, remedyLine := node.Line, node.Line
	p.mapping(node, field, map[string]func(*yaml.Node, string){
		"name":   p.text(&q.Name),
		"seen":   p.text(&q.Seen),
		"source": p.text(&q.Source),
		"off":    p.flag(&q.Off),
		"match": func(n *yaml.Node, at string) {
			matchLine = n.Line
			p.mapping(n, at, map[string]func(*yaml.Node, string){
				"vendorClass": p.patterns(&q.Match.VendorClass), "userClass": p.patterns(&q.Match.UserClass), "mac": p.patterns(&q.Match.MAC),
				"manufacturer": p.patterns(&q.Match.Manufacturer), "product": p.patterns(&q.Match.Product),
				"architecture": func(n *yaml.Node, at string) {
					p.each(n, at, func(n *yaml.Node, at string) {
						if a, ok := p.architecture(n, at, true); ok {
							q.Match.Architecture = append(q.Match.Architecture, a)
						}
					})
				},
				"lacks": func(n *yaml.Node, at string) {
					p.each(n, at, func(n *yaml.Node, at string) {
						f := Feature(n.Value)
						if f != HTTP && f != BzImage && f != EFI {
							p.wrong(n.Line, at, "%q is none of %s, %s, %s", n.Value, HTTP, BzImage, EFI)
						}
						q.Match.Lacks = append(q.Match.Lacks, f)
					})
				},
			})
		},
		"remedy": func(n *yaml.Node, at string) {
			remedyLine = n.Line
			p.mapping(n, at, map[string]func(*yaml.Node, string){
				"ownIPXE": p.flag(&q.Remedy.OwnIPXE), "ownDrivers": p.flag(&q.Remedy.OwnDrivers), "noBootFile": p.flag(&q.Remedy.NoBootFile),
				"smallReply": p.flag(&q.Remedy.SmallReply), "broadcast": p.flag(&q.Remedy.Broadcast),
				"architecture": func(n *yaml.Node, at string) {
					if a, ok := p.architecture(n, at, false); ok {
						q.Remedy.Architecture = &a
					}
				},
				"kernelArgs": func(n *yaml.Node, at string) {
					p.each(n, at, func(n *yaml.Node, at string) {
						if n.Value == "" || strings.HasPrefix(n.Value, "coldrack.") || strings.ContainsFunc(n.Value, func(r rune) bool { return r <= ' ' || r > '~' || r == '$' }) {
							p.wrong(n.Line, at, "%q: one kernel argument is wanted, without white space, control characters and $, and none of Coldrack's own", n.Value)
						}
						q.Remedy.KernelArgs = append(q.Remedy.KernelArgs, n.Value)
					})
				},
			})
		},
	})
	if node.Kind == yaml.MappingNode {
		p.sense(q, node.Line, matchLine, remedyLine, field)
	}
	return q
}

// sense finds what is well written and means nothing.
func (p *parser) sense(q Quirk, line, matchLine, remedyLine int, field string) {
	if !nameForm.MatchString(q.Name) {
		p.wrong(line, field+".name", "%q: a name of lower-case letters, digits and hyphens is wanted, 63 at most", q.Name)
	}
	m, r := q.Match, q.Remedy
	smbios := len(m.Manufacturer)+len(m.Product) > 0
	byDHCP := len(m.VendorClass)+len(m.UserClass)+len(m.Architecture)+len(m.Lacks) > 0
	dhcp := r.Architecture != nil || r.OwnIPXE || r.OwnDrivers || r.NoBootFile || r.SmallReply || r.Broadcast
	switch {
	case q.Off:
		return
	case q.Seen == "":
		p.wrong(line, field+".seen", "say what the firmware does: it is logged, and others will ask")
	case !smbios && !byDHCP && len(m.MAC) == 0:
		p.wrong(matchLine, field+".match", "it would fit every machine: give at least one of vendorClass, userClass, architecture, mac, lacks, manufacturer, product")
	case !dhcp && len(r.KernelArgs) == 0:
		p.wrong(remedyLine, field+".remedy", "nothing would be done: give at least one of architecture, ownIPXE, ownDrivers, noBootFile, smallReply, broadcast, kernelArgs")
	case smbios && dhcp:
		p.wrong(matchLine, field+".match", "manufacturer and product are not told by DHCP, only when iPXE asks for its script: with them goes kernelArgs alone")
	case byDHCP && len(r.KernelArgs) > 0:
		p.wrong(remedyLine, field+".remedy.kernelArgs", "when iPXE asks for its script, only mac, manufacturer and product are known")
	case r.Architecture != nil && (r.OwnIPXE || r.OwnDrivers || r.NoBootFile || r.SmallReply || r.Broadcast):
		p.wrong(remedyLine, field+".remedy.architecture", "it stands alone: other quirks see the architecture that it sets")
	case r.OwnIPXE && r.NoBootFile:
		p.wrong(remedyLine, field+".remedy", "ownIPXE and noBootFile contradict each other")
	}
}

func (p *parser) text(target *string) func(*yaml.Node, string) {
	return func(n *yaml.Node, at string) {
		if n.Kind != yaml.ScalarNode || strings.ContainsAny(n.Value, "\n\r\x00|") || len(n.Value) > 300 {
			p.wrong(n.Line, at, "one line of text is wanted, without |, 300 bytes at most")
			return
		}
		*target = n.Value
	}
}

func (p *parser) flag(target *bool) func(*yaml.Node, string) {
	return func(n *yaml.Node, at string) {
		if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
			p.wrong(n.Line, at, "true or false is wanted, not %q", n.Value)
			return
		}
		*target = n.Value == "true"
	}
}

// each reads a list, or one value as a list of one.
func (p *parser) each(n *yaml.Node, at string, read func(*yaml.Node, string)) {
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	if len(items) == 0 {
		p.wrong(n.Line, at, "the list is empty")
	}
	for i, item := range items {
		where := at
		if n.Kind == yaml.SequenceNode {
			where = fmt.Sprintf("%s[%d]", at, i)
		}
		if item.Kind != yaml.ScalarNode {
			p.wrong(item.Line, where, "a text or a number is wanted")
			continue
		}
		read(item, where)
	}
}

func (p *parser) patterns(target *[]string) func(*yaml.Node, string) {
	return func(n *yaml.Node, at string) {
		p.each(n, at, func(n *yaml.Node, at string) {
			if _, err := validate.ParsePattern(n.Value); err != nil || n.Value == "" {
				p.wrong(n.Line, at, "%q is no pattern: %v", n.Value, err)
			}
			*target = append(*target, n.Value)
		})
	}
}

// architecture reads a value of option 93.
func (p *parser) architecture(n *yaml.Node, at string, none bool) (int, bool) {
	if none && n.Value == "none" {
		return NoArchitecture, true
	}
	value, err := strconv.ParseUint(n.Value, 10, 16)
	if n.Kind != yaml.ScalarNode || err != nil || value == NoArchitecture {
		p.wrong(n.Line, at, "%q is no value of option 93, such as 0 (BIOS) or 7 (UEFI x64)", n.Value)
		return 0, false
	}
	return int(value), true
}
