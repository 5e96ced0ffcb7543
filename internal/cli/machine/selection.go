// Package machine is what people do with machines beside looking at them: choose them, approve them, ask for an install,
// and have their boots explained.
package machine

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
)

// Selection names machines: by name, by label, by phase. The zero value is all of them.
type Selection struct {
	Names    []string
	Selector string // labels
	Phases   []string
}

// Check reports what cannot be meant, before the server is asked.
func (s *Selection) Check() error {
	if _, err := labels.Parse(s.Selector); err != nil {
		return exit.Usagef("--selector: %w", err)
	}
	for i, phase := range s.Phases {
		known := slices.IndexFunc(cli.Phases(), func(p v1alpha1.MachinePhase) bool { return strings.EqualFold(string(p), phase) })
		if known < 0 {
			return exit.Usagef("--phase: there is no phase %q; there are %s", phase, joinPhases())
		}
		s.Phases[i] = string(cli.Phases()[known])
	}
	return nil
}

func joinPhases() string {
	var names []string
	for _, phase := range cli.Phases() {
		names = append(names, string(phase))
	}
	return strings.Join(names, ", ")
}

// Matches tells whether a machine is selected.
func (s *Selection) Matches(m *v1alpha1.Machine) bool {
	selector, err := labels.Parse(s.Selector)
	if err != nil || !selector.Matches(labels.Set(m.Labels)) {
		return false
	}
	if len(s.Names) > 0 && !slices.Contains(s.Names, m.Name) {
		return false
	}
	return len(s.Phases) == 0 || slices.Contains(s.Phases, cli.PhaseOf(m))
}

// List returns the selected machines. A name that does not exist is an error.
func (s *Selection) List(ctx context.Context, c client.Client) ([]v1alpha1.Machine, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	var machines []v1alpha1.Machine
	if len(s.Names) == 0 {
		var list v1alpha1.MachineList
		if err := c.List(ctx, &list); err != nil {
			return nil, fmt.Errorf("list machines: %w", err)
		}
		machines = list.Items
	}
	for _, name := range s.Names {
		m, err := Get(ctx, c, name)
		if err != nil {
			return nil, err
		}
		machines = append(machines, *m)
	}
	return slices.DeleteFunc(machines, func(m v1alpha1.Machine) bool { return !s.Matches(&m) }), nil
}

// few machines are read from the store, where what was written a moment ago is sure to be. Of ten thousand that would take
// seconds: they are seen as the server's memory has them, which follows within moments.
const few = 500

// ListForTable is List for an output that shows no details. known asks for the machines in the server's memory; it is false
// where another API holds them, and whenever anything is in the way.
func (s *Selection) ListForTable(ctx context.Context, c client.Client, known func(context.Context) ([]v1alpha1.Machine, bool)) ([]v1alpha1.Machine, error) {
	if len(s.Names) > 0 {
		return s.List(ctx, c)
	}
	var list v1alpha1.MachineList
	if err := c.List(ctx, &list, client.Limit(few)); err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	machines := list.Items
	if list.Continue != "" {
		inMemory, ok := known(ctx)
		if !ok {
			return s.List(ctx, c)
		}
		machines = inMemory
	}
	return slices.DeleteFunc(machines, func(m v1alpha1.Machine) bool { return !s.Matches(&m) }), nil
}

// Get reads a machine; one that is not there is an error that says how to list them.
func Get(ctx context.Context, c client.Client, name string) (*v1alpha1.Machine, error) {
	m := &v1alpha1.Machine{}
	err := c.Get(ctx, client.ObjectKey{Name: name}, m)
	if apierrors.IsNotFound(err) {
		return nil, exit.NotFoundf("there is no machine %q; `coldrack machines` lists them", name)
	}
	if err != nil {
		return nil, fmt.Errorf("get machine %s: %w", name, err)
	}
	return m, nil
}
