package units

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/contract/wire"
)

// Desk is where machines ask for their units and report them: in memory, and safe for concurrent use.
type Desk struct {
	mu       sync.Mutex
	ready    bool
	wanted   map[string]wire.UnitAssignment // by machine, without Drop
	changed  chan struct{}
	reports  map[string]report // the last of each machine
	reported chan struct{}
}

// NewDesk returns a Desk that answers nobody until Put.
func NewDesk() *Desk {
	return &Desk{wanted: map[string]wire.UnitAssignment{}, reports: map[string]report{}, changed: make(chan struct{}), reported: make(chan struct{})}
}

// Put says what all machines shall run.
func (d *Desk) Put(wanted map[string][]wire.UnitFile) {
	next := map[string]wire.UnitAssignment{}
	for machine, files := range wanted {
		slices.SortFunc(files, func(a, b wire.UnitFile) int { return strings.Compare(a.Name, b.Name) })
		next[machine] = wire.UnitAssignment{Version: versionOf(files), Machine: machine, Run: files}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ready && maps.EqualFunc(d.wanted, next, func(a, b wire.UnitAssignment) bool { return a.Version == b.Version }) {
		return
	}
	d.wanted, d.ready = next, true
	close(d.changed)
	d.changed = make(chan struct{})
}

func versionOf(files []wire.UnitFile) string {
	type short struct {
		Name, Digest string
		Launch       bool
	}
	var all []short
	for _, f := range files {
		all = append(all, short{f.Name, f.Digest, f.Launch})
	}
	text, _ := json.Marshal(all) // strings and booleans
	return digest.Of(text).Hex()[:16]
}

// Wanted is what a machine shall run, and a channel that is closed when that may be another. ready is false while it is not known.
func (d *Desk) Wanted(machine string) (a wire.UnitAssignment, changed <-chan struct{}, ready bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a, ok := d.wanted[machine]
	if !ok {
		a = wire.UnitAssignment{Version: versionOf(nil), Machine: machine}
	}
	return a, d.changed, d.ready
}

// report is what a machine has said, and when.
type report struct {
	wire.UnitReport
	at time.Time
}

// Report takes in what a machine has.
func (d *Desk) Report(machine string, r wire.UnitReport, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	was, heard := d.reports[machine]
	d.reports[machine] = report{r, at}
	if heard && slices.Equal(was.Units, r.Units) {
		return
	}
	close(d.reported)
	d.reported = make(chan struct{})
}

// Reported is what a machine has said last that it has, and when; zero: it has said nothing to this server.
func (d *Desk) Reported(machine string) (wire.UnitReport, time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.reports[machine]
	return r.UnitReport, r.at
}

// Changed is closed when a machine has reported something else than before.
func (d *Desk) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reported
}

// Dropped are the units that a machine has and is not to have. confirmed are those that it is to have by what the store says now: what is in
// memory may be older than what another server has told the machine.
func Dropped(r wire.UnitReport, wanted, confirmed []wire.UnitFile) (drop []wire.UnitDrop) {
	has := func(files []wire.UnitFile, name string) bool {
		return slices.ContainsFunc(files, func(f wire.UnitFile) bool { return f.Name == name })
	}
	for _, u := range r.Units {
		if !has(wanted, u.Name) && !has(confirmed, u.Name) && !u.Leaving && !u.Unknown {
			drop = append(drop, wire.UnitDrop{Name: u.Name, Reason: "it was stopped, destroyed, or placed elsewhere"})
		}
	}
	return drop
}
