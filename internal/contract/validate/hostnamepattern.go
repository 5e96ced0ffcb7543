package validate

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

var (
	anyPlaceholder = regexp.MustCompile(`\{[^{}]*\}`)
	placeholder    = regexp.MustCompile(`^\{(?:(serial|uuid|mac)|index(?::0?([1-9]))?)\}$`)
)

// HostnamePattern is a host name with placeholders: {serial}, {uuid}, {mac}, and {index} or {index:03} for a number.
type HostnamePattern struct {
	text string
	// Values are the names of the placeholders of a machine's own values: serial, uuid, mac.
	Values []string
	// Indexed is true when there is a number in it.
	Indexed bool
}

// ParseHostnamePattern reads a pattern. What it gives with any values is a host name after characters that no host name has
// were replaced.
func ParseHostnamePattern(s string) (HostnamePattern, error) {
	p := HostnamePattern{text: s}
	for _, found := range anyPlaceholder.FindAllString(s, -1) {
		match := placeholder.FindStringSubmatch(found)
		switch {
		case match == nil:
			return p, fmt.Errorf("%s is unknown; there are {serial}, {uuid}, {mac}, {index} and {index:03}", found)
		case match[1] != "":
			p.Values = append(p.Values, match[1])
		default:
			p.Indexed = true
		}
	}
	sample := anyPlaceholder.ReplaceAllString(s, "x")
	if strings.Contains(sample, ".") {
		return p, errors.New("would not give a host name: the domain comes from the Subnet")
	}
	if err := Hostname(sample); err != nil {
		return p, fmt.Errorf("would not give a host name: it %w", err)
	}
	return p, nil
}

// Constant is true when every machine gets the same name.
func (p HostnamePattern) Constant() bool { return len(p.Values) == 0 && !p.Indexed }

// Fill puts values and a number in.
func (p HostnamePattern) Fill(values map[string]string, index int) string {
	return anyPlaceholder.ReplaceAllStringFunc(p.text, func(found string) string {
		match := placeholder.FindStringSubmatch(found)
		if match[1] != "" {
			return values[match[1]]
		}
		width, _ := strconv.Atoi(match[2])
		return fmt.Sprintf("%0*d", width, index)
	})
}
