package racksheet

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/xuri/excelize/v2"
)

// readWorkbook reads all sheets of an Excel workbook that are not hidden.
func readWorkbook(data []byte) ([]Grid, error) {
	f, err := excelize.OpenReader(bytes.NewReader(data), excelize.Options{UnzipSizeLimit: 8 * MaxBytes, UnzipXMLSizeLimit: 8 * MaxBytes})
	if err != nil {
		return nil, fmt.Errorf("the workbook cannot be read: %w", err)
	}
	defer f.Close()
	var grids []Grid
	for _, name := range f.GetSheetList() {
		if visible, err := f.GetSheetVisible(name); err == nil && !visible {
			continue
		}
		grid, err := readWorksheet(f, name)
		if err != nil {
			return nil, fmt.Errorf("sheet %q of the workbook cannot be read: %w", name, err)
		}
		grids = append(grids, grid)
	}
	return grids, nil
}

func readWorksheet(f *excelize.File, name string) (Grid, error) {
	grid := Grid{Sheet: name, lettered: true}
	rows, err := f.GetRows(name)
	switch {
	case err != nil:
		return grid, err
	case len(rows) > maxLines:
		return grid, fmt.Errorf("it has more than %d lines", maxLines)
	}
	for i, cells := range rows {
		cells = cells[:min(len(cells), maxColumns)]
		for c := range cells {
			if strings.Contains(cells[c], "E+") { // a long number as Excel shows it: the digits are there
				at, _ := excelize.CoordinatesToCellName(c+1, i+1)
				if raw, err := f.GetCellValue(name, at, excelize.Options{RawCellValue: true}); err == nil {
					cells[c] = raw
				}
			}
		}
		grid.Lines = append(grid.Lines, Line{Number: i + 1, Cells: cells})
	}
	merges, err := f.GetMergeCells(name)
	if err != nil {
		return grid, err
	}
	for _, m := range merges {
		grid.merge(m.GetStartAxis(), m.GetEndAxis())
	}
	return grid, nil
}

// merge repeats a merged cell in every line that it covers, and for headers in every column.
func (g *Grid) merge(first, last string) {
	left, top, err := excelize.CellNameToCoordinates(first)
	right, bottom, err2 := excelize.CellNameToCoordinates(last)
	if err != nil || err2 != nil || top > len(g.Lines) || left > len(g.Lines[top-1].Cells) {
		return
	}
	text := g.Lines[top-1].Cells[left-1]
	for i := top - 1; i < min(bottom, len(g.Lines)); i++ {
		line := &g.Lines[i]
		line.Cells = put(line.Cells, left-1, text)
		if line.wide == nil {
			line.wide = slices.Clone(line.Cells)
		}
		for c := left - 1; c < min(right, maxColumns); c++ {
			line.wide = put(line.wide, c, text)
		}
	}
}

// put sets a cell of a line that may be too short.
func put(cells []string, i int, text string) []string {
	for len(cells) <= i {
		cells = append(cells, "")
	}
	cells[i] = text
	return cells
}

// letter is how spreadsheets call a column, counted from 0.
func letter(column int) string {
	name, _ := excelize.ColumnNumberToName(column + 1)
	return name
}
