package machineapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/units"
)

// Units knows what units machines shall run.
type Units interface {
	// Wanted is that of a machine, from memory, and a channel that is closed when it may be another; false while it is not known.
	Wanted(machine string) (wire.UnitAssignment, <-chan struct{}, bool)
	// Stored is the same by what the store says now.
	Stored(ctx context.Context, machine string) ([]wire.UnitFile, error)
	// Report takes in what a machine has.
	Report(machine string, r wire.UnitReport, at time.Time)
}

// maxUnits bounds how many units of a machine are recorded.
const maxUnits = 1024

// units takes in what units a node has, and answers as soon as it shall have others, or when the wait is over. A unit is named as no longer the
// node's only by what the store says at that moment, and not while the store counts as restored from a backup.
func (a *API) units(ctx context.Context, c call, in wire.UnitReport) (any, error) {
	known, wait, err := longPoll(c.request)
	if err != nil {
		return nil, err
	}
	if a.Units == nil {
		return nil, refuse(http.StatusNotFound, wire.CodeNotFound, "this server places no units")
	}
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	for first := true; ; first = false {
		machineChanged, _ := a.Fleet.Changed(c.peer.machine)
		m, err := a.node(ctx, c.peer)
		if err != nil {
			return nil, err
		}
		if first {
			in.Unknown = in.Unknown || len(in.Units) > maxUnits // what is cut off would count as gone
			in.Units = in.Units[:min(len(in.Units), maxUnits)]
			for i := range in.Units {
				u := &in.Units[i]
				u.Name, u.Digest, u.Active, u.Sub, u.Message = text(u.Name), text(u.Digest), text(u.Active), text(u.Sub), text(u.Message)
			}
			if !in.Unknown {
				a.Units.Report(m.Name, in, a.Now())
			}
		}
		answer, changed, ready := a.Units.Wanted(m.Name)
		if !ready || !a.Fleet.IsSynced() {
			return nil, refuse(http.StatusServiceUnavailable, wire.CodeInternal, "the server has not read its units yet; ask again")
		}
		restoredAt, _ := a.Fleet.RestoredAt()
		if candidates := units.Dropped(in, answer.Run, nil); len(candidates) > 0 && restoredAt.IsZero() {
			stored, err := a.Units.Stored(ctx, m.Name)
			if err != nil {
				return nil, fmt.Errorf("read units of machine %s: %w", m.Name, err)
			}
			answer.Drop = units.Dropped(in, answer.Run, stored)
			for _, d := range answer.Drop {
				a.Fleet.Log(m.Name, "told to stop unit "+d.Name+": "+d.Reason)
			}
		}
		if answer.Version != known || len(answer.Drop) > 0 {
			return answer, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-deadline.C:
			return answer, nil
		case <-machineChanged:
		case <-changed:
		}
	}
}
