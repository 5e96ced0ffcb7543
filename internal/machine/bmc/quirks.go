package bmc

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"coldrack.dev/internal/contract/pattern"
)

// Values of a Quirk.
const (
	authBasic   = "basic"
	modeAlways  = "always"
	etagStrong  = "strong"
	etagAny     = "any"
	etagOmitted = "omitted"
)

// Quirk is where the Redfish services of one maker differ from the standard. It is data: it cannot run code.
type Quirk struct {
	// Name for people, Match patterns of which one must fit what the service or the system calls its maker or model.
	Name  string   `yaml:"name"`
	Match []string `yaml:"match"`
	// Source is where it is described, and Seen on what.
	Source string `yaml:"source"`
	Seen   string `yaml:"seen"`

	// Auth basic: sessions do not work.
	Auth string `yaml:"auth,omitempty"`
	// BootMode always: the mode must be sent with each choice of what is booted, or it is changed.
	BootMode string `yaml:"bootMode,omitempty"`
	// ETag strong: without the mark of a weak one. any: "*" instead. omitted: no If-Match at all.
	ETag string `yaml:"etag,omitempty"`
	// NotOffered are reset types that are listed, and do not work.
	NotOffered []string `yaml:"notOffered,omitempty"`
}

// Quirks are all that apply to one service; where several say something, the last counts.
type Quirks struct {
	Names      []string
	Auth       string
	BootMode   string
	ETag       string
	NotOffered []string
}

//go:embed quirks.yaml
var quirksFile []byte

// known are the quirks of quirks.yaml.
var known = sync.OnceValue(func() []Quirk {
	quirks, err := parseQuirks(quirksFile)
	if err != nil {
		panic(err) // a test reads the file
	}
	return quirks
})

func parseQuirks(text []byte) ([]Quirk, error) {
	var quirks []Quirk
	decoder := yaml.NewDecoder(strings.NewReader(string(text)))
	decoder.KnownFields(true)
	if err := decoder.Decode(&quirks); err != nil {
		return nil, fmt.Errorf("quirks: %w", err)
	}
	for i, q := range quirks {
		one := func(value string, allowed ...string) bool { return value == "" || slices.Contains(allowed, value) }
		switch {
		case q.Name == "" || len(q.Match) == 0 || q.Seen == "" || !strings.HasPrefix(q.Source, "https://"):
			return nil, fmt.Errorf("quirks[%d]: needs name, match, seen and a source", i)
		case !one(q.Auth, authBasic) || !one(q.BootMode, modeAlways) || !one(q.ETag, etagStrong, etagAny, etagOmitted):
			return nil, fmt.Errorf("quirk %q: a value that nothing knows", q.Name)
		}
	}
	return quirks, nil
}

// quirksFor are the quirks of what calls itself by these names.
func quirksFor(names ...string) Quirks { return combine(known(), names) }

func combine(all []Quirk, names []string) (q Quirks) {
	for _, next := range all {
		fits := slices.ContainsFunc(next.Match, func(p string) bool {
			return slices.ContainsFunc(names, func(name string) bool { return pattern.Match(p, name) })
		})
		if !fits {
			continue
		}
		q.Names = append(q.Names, next.Name)
		for _, set := range []struct {
			field *string
			value string
		}{{&q.Auth, next.Auth}, {&q.BootMode, next.BootMode}, {&q.ETag, next.ETag}} {
			if set.value != "" {
				*set.field = set.value
			}
		}
		q.NotOffered = append(q.NotOffered, next.NotOffered...)
	}
	return q
}

// resets leaves out what does not work.
func (q Quirks) resets(offered []string) []string {
	return slices.DeleteFunc(slices.Clone(offered), func(r string) bool { return slices.Contains(q.NotOffered, r) })
}

// etag is what If-Match says at an attempt, counted from 0. The standard's way comes first where no quirk is known: the tag
// as it was given, then the same as a strong one, then any.
func (q Quirks) etag(tag string, attempt int) string {
	if q.ETag == etagOmitted && attempt == 0 {
		return ""
	}
	ways := []string{"", etagStrong, etagAny}
	if q.ETag != "" && q.ETag != etagOmitted {
		ways = []string{q.ETag, "", etagAny}
	}
	switch ways[attempt] {
	case etagStrong:
		return strings.TrimPrefix(tag, "W/")
	case etagAny:
		return "*"
	}
	return tag
}
