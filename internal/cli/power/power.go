// Package power is what people see of a power action: the order in which machines get it, what it interrupts, and what became
// of each.
package power

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
)

// Order puts machines in the order in which they are switched: by place, from the bottom of each rack, then by name.
func Order(machines []v1alpha1.Machine) {
	slices.SortStableFunc(machines, func(a, b v1alpha1.Machine) int {
		l, r := a.Spec.Location, b.Spec.Location
		return cmp.Or(cmp.Compare(l.Site, r.Site), cmp.Compare(l.Room, r.Room), cmp.Compare(l.Rack, r.Rack), cmp.Compare(l.Unit, r.Unit), cmp.Compare(a.Name, b.Name))
	})
}

// Loss is what one machine loses by an action.
type Loss struct {
	Machine string
	// What runs there, for a person; empty: nothing that is known.
	What string
	// Asks says that it takes a typed confirmation: a node of a running cluster, or a disk that is being written.
	Asks bool
}

// Losses are what machines lose when their power goes, in their order. Each is looked at as if those before it were gone already.
func Losses(machines []v1alpha1.Machine, clusters []v1alpha1.Cluster, groups []v1alpha1.MachineGroup) []Loss {
	gone := make([]v1alpha1.Cluster, len(clusters))
	for i := range clusters {
		gone[i] = *clusters[i].DeepCopy()
	}
	var losses []Loss
	for i := range machines {
		m := &machines[i]
		loss := Loss{Machine: m.Name}
		switch m.Status.Phase {
		case v1alpha1.PhaseInstalling, v1alpha1.PhaseReleasing:
			loss.What, loss.Asks = strings.ToLower(string(m.Status.Phase))+", "+cmp.Or(m.Status.CurrentStep, "its disk is being written"), true
		}
		if k := m.Status.Kubernetes; k != nil && k.Cluster != "" {
			loss.What, loss.Asks = fmt.Sprintf("node %s of cluster %s (%s)", cmp.Or(k.Node, m.Name), k.Cluster, roles(k.Roles)), true
		}
		for _, problem := range v1alpha1.ValidateDeparture(field.NewPath("spec"), m, gone, groups) {
			loss.What += "; " + problem.Detail
		}
		for c := range gone {
			for n := range gone[c].Status.Nodes {
				if gone[c].Status.Nodes[n].Machine == m.Name {
					gone[c].Status.Nodes[n].Ready = false
				}
			}
		}
		losses = append(losses, loss)
	}
	return losses
}

func roles(list []v1alpha1.Role) string {
	var names []string
	for _, r := range list {
		names = append(names, string(r))
	}
	return cmp.Or(strings.Join(names, ", "), "role not known")
}

// Outcome is what became of one machine.
type Outcome struct {
	Machine string `json:"machine"`
	// Action that was asked for, in the words of peoplewire.PowerRequest; empty: only a look.
	Action string `json:"action,omitempty"`
	// Was and State are of the power, before and now.
	Was     string `json:"was,omitempty"`
	State   string `json:"state,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// Run carries an action out, on at most so many machines at a time, each beginning in the order of the list, and tells each
// outcome as it comes in. It returns all outcomes in the order of the list.
func Run(ctx context.Context, machines []v1alpha1.Machine, atATime int, do func(context.Context, *v1alpha1.Machine) Outcome, tell func(Outcome)) []Outcome {
	outcomes := make([]Outcome, len(machines))
	places := make(chan struct{}, max(atATime, 1))
	var mu sync.Mutex
	var group sync.WaitGroup
	for i := range machines {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			outcomes[i] = Outcome{Machine: machines[i].Name, Problem: "not begun: " + context.Cause(ctx).Error()}
			mu.Lock()
			tell(outcomes[i])
			mu.Unlock()
			continue
		}
		group.Go(func() {
			defer func() { <-places }()
			outcomes[i] = do(ctx, &machines[i])
			mu.Lock()
			defer mu.Unlock()
			tell(outcomes[i])
		})
	}
	group.Wait()
	return outcomes
}

// Failed counts those that did not do it.
func Failed(outcomes []Outcome) int {
	failed := 0
	for _, o := range outcomes {
		if o.Problem != "" {
			failed++
		}
	}
	return failed
}

// Line is one outcome for a person.
func (o Outcome) Line() string {
	what := o.State
	switch {
	case o.Problem != "":
		return fmt.Sprintf("%s: FAILED: %s", o.Machine, o.Problem)
	case o.Was != o.State:
		what += " (was " + o.Was + ")"
	case o.Action == "cycle":
		what += ", after a power cycle"
	case o.Action == "reset":
		what += ", after a reset"
	case o.Action != "":
		what += " already"
	}
	return o.Machine + ": " + what
}

// Table shows what is recorded of machines' power.
func Table(machines []v1alpha1.Machine, seen func(*v1alpha1.Machine) string) *cli.Table {
	t := &cli.Table{Header: []string{"MACHINE", "POWER", "SEEN", "BMC", "PROBLEM"}}
	for i := range machines {
		m := &machines[i]
		state, problem, address := "-", "", "-"
		if b := m.Spec.BMC; b != nil {
			address = b.Address
			state = "not asked yet"
		}
		if p := m.Status.Power; p != nil {
			state, problem = string(p.State), p.Problem
		}
		t.Add(m.Name, state, seen(m), address, problem)
	}
	return t
}
