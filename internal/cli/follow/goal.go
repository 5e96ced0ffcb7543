package follow

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
)

// Goal is what is waited for.
type Goal interface {
	// Reached tells whether the wait is over, and with what outcome.
	Reached(machines map[string]*v1alpha1.Machine) (bool, error)
	// Missing is the outcome of a wait that ended in vain.
	Missing(machines map[string]*v1alpha1.Machine) error
	// Timeout of the wait; 0: none.
	Timeout() time.Duration
	// String names the goal; empty when nothing is waited for.
	String() string
}

// PhaseGoal waits until a number of machines are in a phase; without a phase it waits for nothing.
type PhaseGoal struct {
	Phase         string
	Count         int
	Limit         time.Duration
	StopOnFailure bool // give up as soon as a machine has failed
}

func (g *PhaseGoal) String() string {
	if g.Phase == "" {
		return ""
	}
	return fmt.Sprintf("%d %s", g.Count, g.Phase)
}

func (g *PhaseGoal) Timeout() time.Duration { return g.Limit }

func (g *PhaseGoal) Reached(machines map[string]*v1alpha1.Machine) (bool, error) {
	if g.Phase == "" {
		return false, nil
	}
	there := 0
	for _, name := range slices.Sorted(maps.Keys(machines)) {
		m := machines[name]
		if cli.PhaseOf(m) == g.Phase {
			there++
		} else if g.StopOnFailure && m.Status.Phase == v1alpha1.PhaseFailed {
			return true, fmt.Errorf("%s failed: %s", m.Name, m.Status.Message)
		}
	}
	return there >= g.Count, nil
}

func (g *PhaseGoal) Missing(machines map[string]*v1alpha1.Machine) error {
	there := 0
	var others []string
	for _, name := range slices.Sorted(maps.Keys(machines)) {
		m := machines[name]
		if cli.PhaseOf(m) == g.Phase {
			there++
			continue
		}
		text := fmt.Sprintf("  %s is %s", name, cli.PhaseOf(m))
		if m.Status.Message != "" {
			text += ": " + m.Status.Message
		}
		others = append(others, text)
	}
	if len(others) == 0 {
		others = []string{"  no other machine is known; `coldrack doctor` and the server's log may say why"}
	}
	return exit.Timeoutf("%d of %d machines %s within %s\n%s", there, g.Count, g.Phase, g.Limit, strings.Join(others, "\n"))
}

// IntentGoal waits until every intent was acknowledged as ended.
type IntentGoal struct {
	IDs   map[string]string // machine to intent
	Limit time.Duration
}

func (g *IntentGoal) String() string         { return fmt.Sprintf("%d intents", len(g.IDs)) }
func (g *IntentGoal) Timeout() time.Duration { return g.Limit }

func (g *IntentGoal) Reached(machines map[string]*v1alpha1.Machine) (bool, error) {
	var errs []error
	for name, id := range g.IDs {
		m := machines[name]
		switch {
		case m == nil:
			errs = append(errs, exit.NotFoundf("%s was removed during the wait", name))
		case m.Status.Intent == nil || m.Status.Intent.ID != id:
			return false, nil
		case m.Status.Intent.State == v1alpha1.IntentFailed:
			errs = append(errs, fmt.Errorf("%s: %s failed: %s", name, strings.ToLower(string(m.Status.Intent.Action)), m.Status.Intent.Message))
		case m.Status.Intent.State != v1alpha1.IntentSucceeded:
			return false, nil
		}
	}
	return true, errors.Join(errs...)
}

func (g *IntentGoal) Missing(machines map[string]*v1alpha1.Machine) error {
	var lines []string
	for name, id := range g.IDs {
		m := machines[name]
		if m == nil || m.Status.Intent == nil || m.Status.Intent.ID != id || m.Status.Intent.FinishedAt == nil {
			phase := "gone"
			if m != nil {
				phase = cli.PhaseOf(m) + " " + m.Status.Message
			}
			lines = append(lines, fmt.Sprintf("  %s is %s", name, phase))
		}
	}
	return exit.Timeoutf("not ended within %s; the intents stay and will be carried out\n%s", g.Limit, strings.Join(lines, "\n"))
}
