package validate

import (
	"errors"
	"strings"
)

// Pattern is a parsed pattern: what people write to describe vendors, products, serials and disks. It is no pattern of
// files: there are no separators, since products are called X9SCL/X9SCM, and case does not matter, since tools and
// vendors do not agree on it. Package pattern matches by it.
type Pattern []PatternElement

// PatternElement is one element of a Pattern: any text, or one character.
type PatternElement struct {
	Star bool
	// Ranges of characters in lower case, both ends included. One that is Negated stands for all others.
	Ranges  [][2]rune
	Negated bool
}

// Fits tells whether an element that is no star stands for a character, in lower case.
func (e PatternElement) Fits(r rune) bool {
	for _, in := range e.Ranges {
		if in[0] <= r && r <= in[1] {
			return !e.Negated
		}
	}
	return e.Negated
}

// errPattern is all that can be wrong with a pattern.
var errPattern = errors.New("is not a pattern: a bracket is not closed, or a backslash ends it; a backslash before a bracket or a star takes it as it is")

// ParsePattern reads a pattern. In it, * is any text, ? any character, [a-f] and [^a-f] one character of a class, and a
// backslash takes the next character as it is.
func ParsePattern(s string) (Pattern, error) {
	p := patternParser{rest: []rune(strings.ToLower(s))}
	var all Pattern
	for len(p.rest) > 0 {
		c := p.rest[0]
		if c == '*' || c == '?' || c == '[' {
			p.rest = p.rest[1:]
		}
		var e PatternElement
		switch c {
		case '*':
			e.Star = true
		case '?':
			e.Negated = true
		case '[':
			e = p.class()
		default:
			r := p.literal()
			e.Ranges = [][2]rune{{r, r}}
		}
		if p.broken {
			return nil, errPattern
		}
		all = append(all, e)
	}
	return all, nil
}

type patternParser struct {
	rest   []rune
	broken bool // the pattern ended too early
}

// literal takes one character, after a backslash as it is.
func (p *patternParser) literal() rune {
	if len(p.rest) > 0 && p.rest[0] == '\\' {
		p.rest = p.rest[1:]
	}
	if len(p.rest) == 0 {
		p.broken = true
		return 0
	}
	r := p.rest[0]
	p.rest = p.rest[1:]
	return r
}

// class takes what follows a bracket, with the one that closes it. Right after the first bracket another one is a character.
func (p *patternParser) class() (e PatternElement) {
	if len(p.rest) > 0 && p.rest[0] == '^' {
		e.Negated, p.rest = true, p.rest[1:]
	}
	for !p.broken {
		low := p.literal()
		high := low
		if len(p.rest) > 1 && p.rest[0] == '-' && p.rest[1] != ']' {
			p.rest = p.rest[1:]
			high = p.literal()
		}
		e.Ranges = append(e.Ranges, [2]rune{low, high})
		if len(p.rest) > 0 && p.rest[0] == ']' {
			p.rest = p.rest[1:]
			return e
		}
	}
	return e
}

// PatternSyntax is the rule for a pattern.
func PatternSyntax(s string) error {
	_, err := ParsePattern(s)
	return err
}

// DiskID is the rule for a pattern of names below /dev/disk/by-id.
func DiskID(s string) error {
	if strings.Contains(s, "/") {
		return errors.New("is compared with names below /dev/disk/by-id, in which there is no slash; leave the folder out")
	}
	return PatternSyntax(s)
}
