package cli

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"coldrack.dev/internal/base/termtext"
)

// Table is rows of cells under a header.
type Table struct {
	Header []string
	Rows   [][]string
}

// Add appends a row.
func (t *Table) Add(cells ...string) { t.Rows = append(t.Rows, cells) }

// Print writes the table with columns as wide as their widest cell. The last column is not padded.
func (t *Table) Print(w io.Writer, withHeader bool) error {
	rows := t.Rows
	if withHeader {
		rows = append([][]string{t.Header}, rows...)
	}
	for _, line := range align(rows) {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

// align pads cells so that columns line up, three spaces apart.
func align(rows [][]string) []string {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(oneLine(cell)))
		}
	}
	lines := make([]string, 0, len(rows))
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			cell = oneLine(cell)
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+3))
			}
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}

// oneLine replaces what would break a table or a terminal.
func oneLine(text string) string { return termtext.Line(text, 0) }

// fit cuts a line to at most width columns.
func fit(line string, width int) string {
	if width <= 0 || utf8.RuneCountInString(line) <= width {
		return line
	}
	runes := []rune(line)
	if width == 1 {
		return string(runes[:1])
	}
	return string(runes[:width-1]) + "…"
}
