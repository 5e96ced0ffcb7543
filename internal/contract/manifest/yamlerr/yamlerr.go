// Package yamlerr puts errors of the YAML parser into words for a person, with the right line.
package yamlerr

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// parserLine matches errors of the parser only, not of its scanner.
var parserLine = regexp.MustCompile(`^line (\d+): (did not find expected (?:<document start>|node content|'-' indicator|key|',' or).*)$`)

// Text is a syntax error of package yaml with the right line. The package counts lines from 0 in errors of
// its parser and from 1 in those of its scanner.
func Text(err error) string {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	match := parserLine.FindStringSubmatch(text)
	if match == nil {
		return text
	}
	line, convErr := strconv.Atoi(match[1])
	if convErr != nil {
		return text
	}
	return fmt.Sprintf("line %d: %s", line+1, match[2])
}
