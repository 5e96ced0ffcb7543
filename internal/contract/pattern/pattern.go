// Package pattern matches what people write of hardware: vendors, products, serials, disks. What a pattern is, package
// validate says.
package pattern

import (
	"strings"

	"coldrack.dev/internal/contract/validate"
)

// Match says whether all of s is what the pattern describes, by validate.ParsePattern. One that cannot be parsed matches
// nothing.
func Match(pattern, s string) bool {
	p, err := validate.ParsePattern(pattern)
	if err != nil {
		return false
	}
	text := []rune(strings.ToLower(s))
	// After a failure only the last star can take more: what an earlier one would take, that one can as well.
	var star validate.Pattern
	var from []rune
	starred := false
	for {
		switch {
		case len(p) > 0 && p[0].Star:
			p = p[1:]
			star, from, starred = p, text, true
			continue
		case len(p) == 0 && len(text) == 0:
			return true
		case len(p) > 0 && len(text) > 0 && p[0].Fits(text[0]):
			p, text = p[1:], text[1:]
			continue
		}
		if !starred || len(from) == 0 {
			return false
		}
		from = from[1:]
		p, text = star, from
	}
}
