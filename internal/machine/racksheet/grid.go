// Package racksheet reads the sheets in which operators plan their racks, and makes Machines of them: CSV in any spelling that
// spreadsheets write, Excel workbooks, and YAML. It is pure: the caller brings the bytes and what the server has, and writes the answer.
//
// A file becomes grids of cells (Read), a grid becomes rows whose values have been checked (Parse), rows become Machines (Machines),
// and those are compared with the server's (Compare). Each step tells all that is wrong with its sheet, line and column.
package racksheet

import (
	"bytes"
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"coldrack.dev/internal/base/termtext"
)

// Bounds of a file. A row of servers has a few hundred lines.
const (
	MaxBytes   = 32 << 20
	maxLines   = 50_000
	maxColumns = 512
	maxCell    = 8 << 10
)

// Grid is one table of cells: a file, or a sheet of a workbook.
type Grid struct {
	// Sheet is the name of the sheet; empty where a file has only one.
	Sheet string
	Lines []Line
	// settings are lines that say something for all others, in YAML.
	settings []setting
	// lettered says that people know the columns by letters.
	lettered bool
}

// Line is one line of a Grid.
type Line struct {
	// Number of the line in the file, or of the row in its sheet, from 1.
	Number int
	Cells  []string
	// wide are the cells where those that are merged across columns are repeated in each of them, as headers are read; nil: as Cells.
	wide []string
}

func (l Line) cell(i int) string {
	if i >= len(l.Cells) {
		return ""
	}
	return clean(l.Cells[i])
}

func (l Line) empty() bool {
	return !slices.ContainsFunc(l.Cells, func(c string) bool { return clean(c) != "" })
}

func (l Line) header() []string {
	if l.wide != nil {
		return l.wide
	}
	return l.Cells
}

// Problem is what is wrong with, or to be known of, one place of a sheet.
type Problem struct {
	Sheet string `json:"sheet,omitempty"`
	// Line is 0 where the whole sheet is meant.
	Line int `json:"line,omitempty"`
	// Column is its header, with its letter where it has one; empty where the whole line is meant.
	Column  string `json:"column,omitempty"`
	Message string `json:"message"`
}

func (p Problem) String() string {
	var at []string
	if p.Sheet != "" {
		at = append(at, fmt.Sprintf("sheet %q", p.Sheet))
	}
	if p.Line > 0 {
		at = append(at, fmt.Sprintf("line %d", p.Line))
	}
	if p.Column != "" {
		at = append(at, "column "+p.Column)
	}
	if len(at) == 0 {
		return p.Message
	}
	return strings.Join(at, ", ") + ": " + p.Message
}

// Problems are all that is wrong with a sheet, in its order.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].String()
	}
	return strings.Join(lines, "\n")
}

// sorted brings problems into the order of the file, each once.
func (p Problems) sorted(sheets []string) Problems {
	slices.SortStableFunc(p, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(slices.Index(sheets, a.Sheet), slices.Index(sheets, b.Sheet)), cmp.Compare(a.Line, b.Line))
	})
	return slices.Compact(p)
}

// Read takes a file apart. The form is told by the content; the name decides only between CSV and YAML.
func Read(name string, data []byte) ([]Grid, error) {
	switch {
	case len(data) > MaxBytes:
		return nil, fmt.Errorf("%s has more than %d MiB; a sheet of ten thousand machines has 2", name, MaxBytes>>20)
	case bytes.HasPrefix(data, []byte("PK\x03\x04")):
		return readWorkbook(data)
	case bytes.HasPrefix(data, []byte{0xd0, 0xcf, 0x11, 0xe0}):
		return nil, fmt.Errorf("%s is an Excel file of before 2007, or is protected by a password: save it as .xlsx without one, or as CSV", name)
	}
	switch strings.ToLower(filepath.Ext(name)) {
	case ".yaml", ".yml", ".json":
		return readYAML(data)
	case ".xlsx", ".xlsm":
		return nil, fmt.Errorf("%s is called a workbook, but is none; if it is CSV, call it .csv", name)
	}
	return readDelimited(data)
}

// clean is the text of a cell as a person sees it: without spaces around it, without what cannot be seen, and empty where a person
// wrote that there is nothing.
func clean(text string) string {
	text = spaces.Replace(text)
	text = strings.TrimSpace(termtext.Lines(text))
	if len(text) > 1 && text[0] == '\'' && strings.ContainsRune(formulaStarts, rune(text[1])) {
		text = text[1:] // how a spreadsheet is told that this is no formula
	}
	if slices.Contains(nothing, strings.ToLower(text)) {
		return ""
	}
	return text
}

// spaces are what looks like a space, or ends a line.
var spaces = strings.NewReplacer("\u00a0", " ", "\u3000", " ", "\u202f", " ", "\r", "\n")

// formulaStarts begin what spreadsheets take for a formula.
const formulaStarts = "=+-@"

// nothing is what people write into a cell that has nothing to say.
var nothing = []string{"-", "--", "---", "–", "—", "/", "?", "n/a", "n.a.", "#n/a", "#nv", "tbd", "t.b.d.", "k.a.", "unbekannt", "unknown", "none", "null", "leer", "无", "未知", "待定"}
