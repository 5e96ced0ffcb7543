package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"coldrack.dev/api/v1alpha1"
)

// Snapshot is what RenderWatch draws.
type Snapshot struct {
	Machines []v1alpha1.Machine
	// Boots says how many machines are booting from the network; empty for none.
	Boots string
	// Rehearsed says how the run stands to its rehearsal; empty without one.
	Rehearsed string
	// Stragglers by name, and why they count as such.
	Stragglers map[string]string
	// Server that the machines were read from.
	Server string
	// Trouble says why the picture may be old; empty while the connection stands.
	Trouble string
	// Goal is what the caller waits for, empty for nothing.
	Goal string
	// Color marks lines with ANSI colours.
	Color bool
}

const (
	colorRed    = "\x1b[31m"
	colorYellow = "\x1b[33m"
	colorGreen  = "\x1b[32m"
	colorBold   = "\x1b[1m"
	colorReset  = "\x1b[0m"
)

// line is one line of the picture and its colour.
type line struct{ text, color string }

// RenderWatch draws all machines for a terminal of the given size: counts by phase, then the stuck
// ones, then those at work with their progress, then as many of the others as fit. The result has at
// most height lines of at most width columns, without a newline at its end.
func RenderWatch(s Snapshot, width, height int, now time.Time) string {
	machines := append([]v1alpha1.Machine{}, s.Machines...)
	SortMachines(machines, true, now)
	// Those that need a person come first all the same.
	slices.SortStableFunc(machines, func(a, b v1alpha1.Machine) int {
		first := func(m *v1alpha1.Machine) int {
			switch {
			case Stuck(m, now) != "":
				return 0
			case s.Stragglers[m.Name] != "":
				return 1
			}
			return 2
		}
		return cmp.Compare(first(&a), first(&b))
	})
	lines := watchHead(s, machines, now)

	rows, colors := watchRows(machines, s.Stragglers, width, now)
	room := height - len(lines) - 1
	if len(machines) == 0 {
		lines = append(lines, line{"No machines yet. Power one on in a Subnet, or write one with `coldrack apply`.", ""})
	} else {
		lines = append(lines, line{rows[0], colorBold})
		rows = rows[1:]
		hidden := 0
		if len(rows) > room {
			room = max(0, room-1)
			hidden, rows = len(rows)-room, rows[:room]
		}
		for i, row := range rows {
			lines = append(lines, line{row, colors[i]})
		}
		if hidden > 0 {
			lines = append(lines, line{fmt.Sprintf("… and %d more: %s", hidden, countText(machines[len(machines)-hidden:], now)), ""})
		}
	}

	return paint(lines, width, height, s.Color)
}

func watchHead(s Snapshot, machines []v1alpha1.Machine, now time.Time) []line {
	noun := "machines"
	if len(machines) == 1 {
		noun = "machine"
	}
	title := fmt.Sprintf("coldrack %s   %s   %d %s", s.Server, now.UTC().Format("15:04:05 UTC"), len(machines), noun)
	if s.Goal != "" {
		title += "   waiting for " + s.Goal
	}
	lines := []line{{title, colorBold}}
	if counts := countText(machines, now); counts != "" {
		lines = append(lines, line{counts, ""})
	}
	if s.Boots != "" {
		lines = append(lines, line{s.Boots, ""})
	}
	if s.Rehearsed != "" {
		text := s.Rehearsed
		if n := len(s.Stragglers); n > 0 {
			text += fmt.Sprintf("; stragglers: %d", n)
		}
		lines = append(lines, line{text, ""})
	}
	if s.Trouble != "" {
		lines = append(lines, line{"! this view may be out of date: " + oneLine(s.Trouble), colorYellow})
	}
	return append(lines, line{})
}

// BootsText tells how far machines are that boot from the network.
func BootsText(asked, loading, waiting, lost int) string {
	text := fmt.Sprintf("network boots: %d asked, %d loading", asked, loading)
	if waiting > 0 {
		text += fmt.Sprintf(", %d waiting for their turn", waiting)
	}
	return text + fmt.Sprintf(", %d lost", lost)
}

// countText is "2 stuck, 1 Failed, 3 Installing, 12 Ready".
func countText(machines []v1alpha1.Machine, now time.Time) string {
	counts := map[v1alpha1.MachinePhase]int{}
	stuck := 0
	for i := range machines {
		counts[v1alpha1.MachinePhase(PhaseOf(&machines[i]))]++
		if Stuck(&machines[i], now) != "" {
			stuck++
		}
	}
	var parts []string
	if stuck > 0 {
		parts = append(parts, fmt.Sprintf("%d stuck", stuck))
	}
	for _, phase := range phases {
		if counts[phase] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[phase], phase))
		}
	}
	return strings.Join(parts, ", ")
}

// watchRows returns an aligned header and one row per machine, with the rows' colours.
func watchRows(machines []v1alpha1.Machine, stragglers map[string]string, width int, now time.Time) (rows, colors []string) {
	// A narrow terminal gets the columns that tell who is stuck and why.
	narrow := width > 0 && width < 100
	header := []string{"MACHINE", "PHASE", "SINCE", "PROGRESS", "ADDRESS", "RACK", "MESSAGE"}
	if narrow {
		header = []string{"MACHINE", "PHASE", "SINCE", "MESSAGE"}
	}
	cells := [][]string{header}
	for i := range machines {
		m := &machines[i]
		progress, text := stepCell(m), message(m, now)
		straggler := stragglers[m.Name]
		if Stuck(m, now) == "" {
			text = cmp.Or(straggler, text)
		}
		row := []string{m.Name, PhaseOf(m), since(m, now), progress, AddressOf(m), rack(m.Spec.Location), text}
		if narrow {
			if progress != "" && Stuck(m, now) == "" && straggler == "" {
				text = progress
			}
			row = []string{m.Name, PhaseOf(m), since(m, now), text}
		}
		cells = append(cells, row)
		color := ""
		switch {
		case Stuck(m, now) != "":
			color = colorRed
		case m.Status.Phase == v1alpha1.PhaseReady:
			color = colorGreen
		case m.Status.Phase == v1alpha1.PhaseWaiting, straggler != "":
			color = colorYellow
		}
		colors = append(colors, color)
	}
	return align(withoutEmptyColumns(cells)), colors
}

// withoutEmptyColumns drops columns that hold nothing but their header; there is room for the others.
func withoutEmptyColumns(rows [][]string) [][]string {
	used := make([]bool, len(rows[0]))
	for _, row := range rows[1:] {
		for i, cell := range row {
			used[i] = used[i] || cell != ""
		}
	}
	kept := make([][]string, len(rows))
	for r, row := range rows {
		for i, cell := range row {
			if used[i] {
				kept[r] = append(kept[r], cell)
			}
		}
	}
	return kept
}

// Transitions tells, in lines for a log, what changed between two states of a machine: its phase, the
// step it is at, each quarter of a step that moves data, the state of its intent. before is nil for a
// machine that was not there.
func Transitions(before, after *v1alpha1.Machine) []string {
	if before == nil {
		return []string{phaseLine(after)}
	}
	var lines []string
	if PhaseOf(before) != PhaseOf(after) {
		lines = append(lines, phaseLine(after))
	} else if before.Status.Message != after.Status.Message && after.Status.Message != "" && troubled(after) {
		lines = append(lines, phaseLine(after))
	}
	if text := stepChange(before, after); text != "" {
		lines = append(lines, text)
	}
	return lines
}

func troubled(m *v1alpha1.Machine) bool {
	return m.Status.Phase == v1alpha1.PhaseFailed || m.Status.Phase == v1alpha1.PhaseLost || m.Status.Phase == v1alpha1.PhaseWaiting
}

func phaseLine(m *v1alpha1.Machine) string {
	text := PhaseOf(m)
	if address := AddressOf(m); address != "" && m.Status.Phase == v1alpha1.PhaseReady {
		text += " at " + address
	}
	if m.Status.Message != "" {
		text += ": " + oneLine(m.Status.Message)
	}
	return text
}

func stepChange(before, after *v1alpha1.Machine) string {
	if !acting(after) {
		return ""
	}
	now, ok := ProgressOf(after)
	if !ok {
		return ""
	}
	then, had := ProgressOf(before)
	same := had && then.Step == now.Step && then.State == now.State && acting(before)
	if same && quarter(then) == quarter(now) {
		return ""
	}
	return fmt.Sprintf("  %s %s", Bar(Overall(after), 22), now)
}

func quarter(p Progress) int { return int(p.Fraction * 4) }

// LogLine is one line of a plain log of transitions: seconds since the start, machine, text.
func LogLine(elapsed time.Duration, machine, text string, nameWidth int) string {
	padding := max(0, nameWidth-utf8.RuneCountInString(machine))
	return fmt.Sprintf("%7.1fs  %s%s  %s", elapsed.Seconds(), machine, strings.Repeat(" ", padding), text)
}
