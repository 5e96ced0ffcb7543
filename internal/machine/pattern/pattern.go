// Package pattern matches what people write of hardware: vendors, products, serials, disks. It is no pattern of files: there
// are no separators, since products are called X9SCL/X9SCM, and case does not matter, since tools and vendors do not agree on it.
package pattern

import (
	"slices"
	"strings"
)

// Match says whether all of s is what the pattern describes. In it, * is any text, ? any character, [a-f] and [^a-f] one
// character of a class, and a backslash takes the next character as it is. A pattern that breaks off matches nothing.
func Match(pattern, s string) bool {
	p, text := []rune(strings.ToLower(pattern)), []rune(strings.ToLower(s))
	// After a failure only the last star can take more: what an earlier one would take, that one can as well.
	var star, from []rune
	starred := false
	for {
		switch {
		case len(p) > 0 && p[0] == '*':
			p = p[1:]
			star, from, starred = p, text, true
			continue
		case len(p) == 0 && len(text) == 0:
			return true
		case len(text) > 0:
			if fits, rest := one(p, text[0]); fits {
				p, text = rest, text[1:]
				continue
			}
		}
		if !starred || len(from) == 0 {
			return false
		}
		from = from[1:]
		p, text = star, from
	}
}

// one says whether the first element of the pattern, which is no star, fits r, and returns what is behind it.
func one(p []rune, r rune) (fits bool, rest []rune) {
	switch {
	case len(p) == 0:
		return false, nil
	case p[0] == '?':
		return true, p[1:]
	case p[0] == '\\' && len(p) > 1:
		return p[1] == r, p[2:]
	case p[0] == '\\':
		return false, nil
	case p[0] == '[':
		return class(p[1:], r)
	}
	return p[0] == r, p[1:]
}

// class is one for what follows a bracket.
func class(p []rune, r rune) (fits bool, rest []rune) {
	negated := len(p) > 0 && p[0] == '^'
	if negated {
		p = p[1:]
	}
	literal := func() (rune, bool) {
		if len(p) > 0 && p[0] == '\\' {
			p = p[1:]
		}
		if len(p) == 0 {
			return 0, false
		}
		c := p[0]
		p = p[1:]
		return c, true
	}
	for first := true; first || (len(p) > 0 && p[0] != ']'); first = false {
		low, ok := literal()
		high := low
		if ok && len(p) > 1 && p[0] == '-' && p[1] != ']' {
			p = p[1:]
			high, ok = literal()
		}
		if !ok || !slices.Contains(p, ']') {
			return false, nil
		}
		fits = fits || (low <= r && r <= high)
	}
	return fits != negated, p[1:]
}
