package cli

import (
	"fmt"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/termtext"
)

// History is what was done to a cluster, is done now, and holds it up.
type History struct {
	Cluster string                     `json:"cluster"`
	Work    *v1alpha1.ClusterWork      `json:"work,omitempty"`
	Failure *v1alpha1.ClusterFailure   `json:"failure,omitempty"`
	Steps   []v1alpha1.ClusterWorkStep `json:"steps"`
}

// HistoryOf a cluster, for programs.
func HistoryOf(c *v1alpha1.Cluster) History {
	h := History{Cluster: c.Name, Work: c.Status.Work, Failure: c.Status.Failure, Steps: c.Status.History}
	if h.Steps == nil {
		h.Steps = []v1alpha1.ClusterWorkStep{}
	}
	return h
}

// HistoryText is the same for people.
func HistoryText(c *v1alpha1.Cluster) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintln(&b, termtext.Line(fmt.Sprintf(format, args...), 500)) }
	for _, s := range c.Status.History {
		at, took := "", ""
		if s.FinishedAt != nil {
			at = s.FinishedAt.UTC().Format(time.DateTime)
			if s.StartedAt != nil {
				took = s.FinishedAt.Sub(s.StartedAt.Time).Round(time.Second).String()
			}
		}
		line("%-19s  %6s  %-12s  %-14s  %s", at, took, s.Operation, s.Kind, strings.TrimPrefix(s.Node+after(": ", s.Reason), ": "))
		if s.Error != "" {
			line("%-19s          failed: %s", "", s.Error)
		}
	}
	if len(c.Status.History) == 0 {
		line("nothing was done to cluster %s since its first bring-up", c.Name)
	}
	if w := c.Status.Work; w != nil {
		for _, s := range w.Steps {
			line("now: %s%s: %s%s", s.Operation, after(" of ", s.Node), s.Kind, after(": ", s.Message))
		}
		for _, text := range w.Waits {
			line("waits: %s", text)
		}
		if w.NextWindow != nil {
			line("the next maintenance window opens %s", w.NextWindow.UTC().Format(time.DateTime))
		}
		for _, text := range w.Blocks {
			line("blocked: %s", text)
		}
	}
	if f := c.Status.Failure; f != nil {
		line("stopped at %s because machine %s failed: %s", f.At.UTC().Format(time.DateTime), f.Node, f.Reason)
		line("mend the cause, then: coldrack cluster resume %s; or bring it back with: coldrack cluster abort %s", c.Name, c.Name)
	}
	return b.String()
}

// after is a text with what goes before it, or nothing.
func after(before, text string) string {
	if text == "" {
		return ""
	}
	return before + text
}
