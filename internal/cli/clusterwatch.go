package cli

import (
	"fmt"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
)

// ClusterSnapshot is what RenderCluster draws.
type ClusterSnapshot struct {
	View ClusterView
	// Server, Trouble, Goal and Color are as in Snapshot.
	Server, Trouble, Goal string
	Color                 bool
}

// RenderCluster draws a cluster for a terminal of the given size: how it stands, its steps, then its nodes, those
// that need a person first. The result has at most height lines of at most width columns.
func RenderCluster(s ClusterSnapshot, width, height int, now time.Time) string {
	c := s.View.Cluster
	title := fmt.Sprintf("coldrack %s   %s   cluster %s   %s", s.Server, now.UTC().Format("15:04:05 UTC"), c.Name, c.Spec.Version)
	if s.Goal != "" {
		title += "   waiting for " + s.Goal
	}
	lines := []line{{title, colorBold}, clusterLine(c)}
	if s.Trouble != "" {
		lines = append(lines, line{"! this view may be out of date: " + oneLine(s.Trouble), colorYellow})
	}
	if len(c.Status.Steps) > 0 {
		lines = append(lines, line{})
		rows := align(withoutEmptyColumns(append([][]string{{"STEP", "STATE", "TOOK", "MESSAGE"}}, stepTable(c.Status.Steps, now).Rows...)))
		for i, row := range rows {
			color := colorBold
			if i > 0 {
				color = stepColor(c.Status.Steps[i-1].State)
			}
			lines = append(lines, line{row, color})
		}
	}
	lines = append(lines, line{})
	nodes := s.View.Nodes(now, true)
	if len(nodes) == 0 {
		lines = append(lines, line{"No machine belongs to it yet: its groups take approved machines that match their selectors.", ""})
	} else {
		lines = append(lines, nodeLines(nodes, height-len(lines), width, now)...)
	}
	return paint(lines, width, height, s.Color)
}

func clusterLine(c *v1alpha1.Cluster) line {
	text, color := ClusterPhaseOf(c), ""
	if c.Status.NodesReady != "" {
		text += ", " + c.Status.NodesReady + " nodes ready"
	}
	if c.Status.Message != "" {
		text += ": " + c.Status.Message
	}
	switch c.Status.Phase {
	case v1alpha1.ClusterInvalid, v1alpha1.ClusterDegraded:
		color = colorRed
	case v1alpha1.ClusterReady:
		color = colorGreen
	}
	if c.Spec.Paused {
		color = colorYellow
	}
	return line{oneLine(text), color}
}

func stepColor(state v1alpha1.StepState) string {
	switch state {
	case v1alpha1.StepFailed:
		return colorRed
	case v1alpha1.StepSucceeded:
		return colorGreen
	}
	return ""
}

func nodeLines(nodes []NodeView, room, width int, now time.Time) []line {
	narrow := width > 0 && width < 100
	cells := [][]string{{"NODE", "ROLES", "PHASE", "SINCE", "PROGRESS", "ADDRESS", "MESSAGE"}}
	if narrow {
		cells = [][]string{{"NODE", "PHASE", "SINCE", "MESSAGE"}}
	}
	var colors []string
	for _, n := range nodes {
		since, text := "", orElse(n.Stuck, n.Message)
		if !n.Since.IsZero() {
			since = Age(now.Sub(n.Since))
		}
		if narrow {
			if n.Progress != "" && n.Stuck == "" {
				text = n.Progress
			}
			cells = append(cells, []string{orElse(n.Node, n.Machine), n.Phase, since, text})
		} else {
			cells = append(cells, []string{orElse(n.Node, n.Machine), roleText(n.Roles), n.Phase, since, n.Progress, n.Address, text})
		}
		switch {
		case n.Stuck != "":
			colors = append(colors, colorRed)
		case n.State == NodeReady:
			colors = append(colors, colorGreen)
		default:
			colors = append(colors, "")
		}
	}
	rows := align(withoutEmptyColumns(cells))
	lines := []line{{rows[0], colorBold}}
	rows = rows[1:]
	hidden := 0
	if room--; len(rows) > room {
		room = max(0, room-1)
		hidden, rows = len(rows)-room, rows[:room]
	}
	for i, row := range rows {
		lines = append(lines, line{row, colors[i]})
	}
	if hidden > 0 {
		lines = append(lines, line{fmt.Sprintf("… and %d more", hidden), ""})
	}
	return lines
}

// paint cuts lines to a terminal's size and colours them.
func paint(lines []line, width, height int, color bool) string {
	lines = lines[:min(len(lines), max(height, 1))]
	var b strings.Builder
	for i, l := range lines {
		if i > 0 {
			b.WriteByte('\n')
		}
		text := fit(l.text, width)
		if color && l.color != "" {
			text = l.color + text + colorReset
		}
		b.WriteString(text)
	}
	return b.String()
}

// ClusterTransitions tells, in lines for a log, what changed in a cluster itself. before is nil at first.
func ClusterTransitions(before, after *v1alpha1.Cluster) []string {
	var lines []string
	say := func() {
		text := ClusterPhaseOf(after)
		if after.Status.NodesReady != "" {
			text += " " + after.Status.NodesReady
		}
		if after.Status.Message != "" {
			text += ": " + oneLine(after.Status.Message)
		}
		lines = append(lines, text)
	}
	if before == nil {
		say()
		before = &v1alpha1.Cluster{}
	} else if ClusterPhaseOf(before) != ClusterPhaseOf(after) || before.Status.NodesReady != after.Status.NodesReady ||
		before.Status.Message != after.Status.Message && (after.Status.Phase == v1alpha1.ClusterInvalid || after.Status.Phase == v1alpha1.ClusterPending) {
		say()
	}
	if is := nextWindow(after); is != "" && is != nextWindow(before) {
		lines = append(lines, "changes wait for the maintenance window that opens "+is)
	}
	return append(lines, stepTransitions(before.Status.Steps, after.Status.Steps)...)
}

// nextWindow is when the maintenance window opens that changes of a cluster wait for; empty when none does.
func nextWindow(c *v1alpha1.Cluster) string {
	if c.Status.Work == nil || c.Status.Work.NextWindow == nil {
		return ""
	}
	return c.Status.Work.NextWindow.UTC().Format(time.RFC3339)
}

// NodeTransitions tells what changed in a machine on its way to be a node. The machine's own way there, before
// it is Ready, is told as Transitions does. ready tells what the cluster's API says of it, before and now.
func NodeTransitions(before, after *v1alpha1.Machine, wasReady, isReady bool) []string {
	lines := Transitions(before, after)
	var was, is []v1alpha1.Step
	if before != nil && before.Status.Kubernetes != nil {
		was = before.Status.Kubernetes.Phases
	}
	if after.Status.Kubernetes != nil {
		is = after.Status.Kubernetes.Phases
	}
	lines = append(lines, stepTransitions(was, is)...)
	switch was, is := prefetchOf(before), prefetchOf(after); {
	case is.Done && !was.Done:
		lines = append(lines, "  has everything for another version")
	case is.Failing && (!was.Failing || was.Message != is.Message):
		lines = append(lines, "  cannot fetch what another version needs: "+oneLine(is.Message))
	}
	switch {
	case isReady && !wasReady:
		lines = append(lines, "node Ready")
	case wasReady && !isReady:
		lines = append(lines, "node not Ready any more")
	}
	return lines
}

// stepTransitions tells which steps began, ended or failed.
func stepTransitions(before, after []v1alpha1.Step) []string {
	was := map[string]v1alpha1.Step{}
	for _, s := range before {
		was[s.Name] = s
	}
	var lines []string
	for _, s := range after {
		if was[s.Name].State == s.State && (s.State != v1alpha1.StepFailed || was[s.Name].Message == s.Message) {
			continue
		}
		switch s.State {
		case v1alpha1.StepRunning:
			text := "  " + s.Name + " …"
			if s.Message != "" {
				text += " " + oneLine(s.Message)
			}
			lines = append(lines, text)
		case v1alpha1.StepSucceeded:
			lines = append(lines, strings.TrimRight(fmt.Sprintf("  %s done %s", s.Name, took(s, time.Time{})), " "))
		case v1alpha1.StepFailed:
			lines = append(lines, fmt.Sprintf("  %s failed: %s", s.Name, oneLine(s.Message)))
		}
	}
	return lines
}

// prefetchOf is what a machine says of what it fetches beside what it runs; empty when it fetches nothing.
func prefetchOf(m *v1alpha1.Machine) v1alpha1.NodePrefetch {
	if m == nil || m.Status.Kubernetes == nil || m.Status.Kubernetes.Prefetch == nil {
		return v1alpha1.NodePrefetch{}
	}
	return *m.Status.Kubernetes.Prefetch
}
