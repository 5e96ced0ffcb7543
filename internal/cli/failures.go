package cli

import (
	"cmp"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
)

// Failure is one cause that keeps machines from getting on, with all machines that have it.
type Failure struct {
	// Cause is the step and its message, with an ellipsis for what each machine has of its own.
	Cause    string   `json:"cause"`
	Machines []string `json:"machines"`
	// Example is the whole message of the first.
	Example string `json:"example"`
}

// own is what a message has of one machine alone: MACs, UUIDs, addresses, fingerprints, and times and amounts with a unit.
var own = regexp.MustCompile(`(?i)\b([0-9a-f]{2}(:[0-9a-f]{2}){5}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]+|:[0-9]+)?|[0-9a-f]{32,}|[0-9]+(\.[0-9]+)?\s?(ms|s|m|h|%|bytes|[kmgt]i?b)([0-9]+[smh])*)\b`)

// Failures groups those machines that will not get on without a person by the cause, most frequent first.
func Failures(machines []v1alpha1.Machine, now time.Time) []Failure {
	groups := []Failure{}
	for i := range machines {
		m := &machines[i]
		text := Stuck(m, now)
		if text == "" {
			continue
		}
		if p, ok := ProgressOf(m); ok && p.State == v1alpha1.StepFailed && !strings.HasPrefix(text, p.Step) {
			text = p.Step + ": " + cmp.Or(p.Message, text)
		}
		cause := causeOf(m, text)
		at := slices.IndexFunc(groups, func(f Failure) bool { return f.Cause == cause })
		if at < 0 {
			groups = append(groups, Failure{Cause: cause, Example: text})
			at = len(groups) - 1
		}
		groups[at].Machines = append(groups[at].Machines, m.Name)
	}
	for i := range groups {
		slices.Sort(groups[i].Machines)
	}
	slices.SortStableFunc(groups, func(a, b Failure) int {
		return cmp.Or(cmp.Compare(len(b.Machines), len(a.Machines)), cmp.Compare(a.Cause, b.Cause))
	})
	return groups
}

// causeOf is a message without what is the machine's own.
func causeOf(m *v1alpha1.Machine, text string) string {
	names := []string{m.Name, m.Spec.Hostname, m.Spec.Identifiers.Serial}
	if m.Status.Inventory != nil {
		names = append(names, m.Status.Inventory.System.Serial)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, name := range names {
		if len(name) > 2 {
			text = regexp.MustCompile(`(^|[^\w-])`+regexp.QuoteMeta(name)+`($|[^\w-])`).ReplaceAllString(text, "${1}…${2}")
		}
	}
	return own.ReplaceAllString(text, "…")
}

// PrintFailures shows them to a person: how many machines, the cause, and their names.
func PrintFailures(w io.Writer, failures []Failure) error {
	for _, f := range failures {
		text := f.Cause
		if len(f.Machines) == 1 {
			text = f.Example
		}
		if _, err := fmt.Fprintf(w, "%s: %s\n  %s\n", plural(len(f.Machines), "machine"), oneLine(text), oneLine(strings.Join(f.Machines, " "))); err != nil {
			return err
		}
	}
	return nil
}
