package racksheet

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"slices"
	"strings"

	"github.com/xuri/excelize/v2"
	"go.yaml.in/yaml/v3"

	"coldrack.dev/api/v1alpha1"
)

// Table is the sheet of these Machines, as their specs have them: a header and a line each, in the order of their places. Columns that
// would be empty are left out. Read and Parse give the same Machines back.
func Table(machines []v1alpha1.Machine) [][]string {
	sorted := make([]*v1alpha1.Machine, len(machines))
	for i := range machines {
		sorted[i] = &machines[i]
	}
	slices.SortFunc(sorted, byPlace)
	table := [][]string{nil}
	used := map[int]bool{}
	for _, m := range sorted {
		line := []string{}
		for i, f := range fieldsOf(m) {
			used[i] = used[i] || f.value != ""
			line = append(line, f.value)
		}
		table = append(table, line)
	}
	for _, f := range fieldsOf(&v1alpha1.Machine{}) {
		table[0] = append(table[0], string(f.column))
	}
	for n, line := range table {
		var kept []string
		for i, text := range line {
			if used[i] || i < 2 {
				kept = append(kept, text)
			}
		}
		table[n] = kept
	}
	return table
}

// CSV is a table as comma-separated values. A text that a spreadsheet would take for a formula gets an apostrophe, which Read removes.
func CSV(table [][]string) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	for _, line := range table {
		cells := slices.Clone(line)
		for i, text := range cells {
			if text != "" && strings.ContainsRune(formulaStarts, rune(text[0])) {
				cells[i] = "'" + text
			}
		}
		if err := w.Write(cells); err != nil {
			return nil, err
		}
	}
	w.Flush()
	return b.Bytes(), w.Error()
}

// Workbook is a table as an Excel workbook, all of it text, so that no spreadsheet makes numbers of serials.
func Workbook(table [][]string) ([]byte, error) {
	f := excelize.NewFile()
	defer f.Close()
	const sheet = "Machines"
	if err := f.SetSheetName("Sheet1", sheet); err != nil {
		return nil, err
	}
	bold, err := f.NewStyle(&excelize.Style{Font: &excelize.Font{Bold: true}, NumFmt: 49})
	if err != nil {
		return nil, err
	}
	text, err := f.NewStyle(&excelize.Style{NumFmt: 49})
	if err != nil {
		return nil, err
	}
	for n, line := range table {
		for i, value := range line {
			at, err := excelize.CoordinatesToCellName(i+1, n+1)
			if err != nil {
				return nil, err
			}
			if err := f.SetCellStr(sheet, at, value); err != nil {
				return nil, fmt.Errorf("%s: %w", at, err)
			}
		}
	}
	last := letter(max(len(table[0]), 1) - 1)
	for _, err := range []error{
		f.SetColStyle(sheet, "A:"+last, text), f.SetRowStyle(sheet, 1, 1, bold), f.SetColWidth(sheet, "A", last, 18),
		f.SetPanes(sheet, &excelize.Panes{Freeze: true, YSplit: 1, TopLeftCell: "A2", ActivePane: "bottomLeft"}),
	} {
		if err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	if err := f.Write(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// YAML is a table as a list of machines, without the cells that are empty.
func YAML(table [][]string) ([]byte, error) {
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for _, line := range table[1:] {
		item := &yaml.Node{Kind: yaml.MappingNode}
		for i, text := range line {
			if text != "" {
				item.Content = append(item.Content, scalar(table[0][i]), scalar(text))
			}
		}
		list.Content = append(list.Content, item)
	}
	return yaml.Marshal(&yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{scalar("machines"), list}})
}

func scalar(text string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(text)
	return n
}
