package machine

import (
	"context"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/machine/racksheet"
)

// PlanSwap says what changes when two Machines exchange what they are recognised by, and their BMCs. Names, places and addresses stay,
// so each machine becomes the other.
func PlanSwap(ctx context.Context, c client.Client, nameA, nameB string) (*Import, error) {
	if nameA == nameB {
		return nil, exit.Usagef("name two machines")
	}
	a, err := Get(ctx, c, nameA)
	if err != nil {
		return nil, err
	}
	b, err := Get(ctx, c, nameB)
	if err != nil {
		return nil, err
	}
	for _, m := range []*v1alpha1.Machine{a, b} {
		switch {
		case m.Status.Installed != nil || m.Status.Identity != nil || m.WantedIntent() != nil:
			return nil, exit.Refusedf("%s is installed, or about to be: its disk and its identity would become another machine's. `coldrack release %s` first", m.Name, m.Name)
		case m.Status.Inventory != nil:
			return nil, exit.Refusedf("%s has reported its hardware, by which it is recognised: delete both machines (`coldrack delete machine %s %s`) and import their sheet with the lines corrected", m.Name, nameA, nameB)
		}
	}
	swap := &Import{Notes: []racksheet.Problem{}}
	for _, pair := range [][2]*v1alpha1.Machine{{a, b}, {b, a}} {
		before, other := pair[0], pair[1]
		after := before.DeepCopy()
		after.Spec.Identifiers = *other.Spec.Identifiers.DeepCopy()
		after.Spec.BMC = other.Spec.BMC.DeepCopy()
		exchangeMACs(after, before.Spec.Identifiers.MACs, other.Spec.Identifiers.MACs)
		change := racksheet.Change{Action: racksheet.Update, Machine: before.Name, Before: before, After: after, Fields: racksheet.Differences(before, after)}
		if len(change.Fields) == 0 {
			change.Action = racksheet.Unchanged
		}
		swap.Changes = append(swap.Changes, change)
	}
	return swap, nil
}

// exchangeMACs has what a Machine's place says of an interface speak of the new one: the first for the first, and so on. Of one that
// has no counterpart nothing is said any more.
func exchangeMACs(m *v1alpha1.Machine, old, now []string) {
	counterpart := func(mac string) string {
		at := slices.Index(old, mac)
		switch {
		case at < 0:
			return mac
		case at >= len(now):
			return ""
		}
		return now[at]
	}
	if m.Spec.Network != nil {
		m.Spec.Network.MAC = counterpart(m.Spec.Network.MAC)
	}
	if m.Spec.Expected != nil {
		for i := range m.Spec.Expected.SwitchPorts {
			p := &m.Spec.Expected.SwitchPorts[i]
			p.MAC = counterpart(p.MAC)
		}
	}
}
