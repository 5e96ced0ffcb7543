// Package units runs the systemd units that the server places on this machine.
//
// What the server has said is recorded on the disk first, a file for each unit, and carried out from there: whoever goes on after a power
// cut, or without a server, finds all of it. systemd itself starts the units at boot. A unit is stopped only when the server has named it as
// no longer this machine's; an error, an empty answer or one that leaves it out stops nothing.
package units

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/agent/systemd"
	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/contract/wire"
)

const (
	// StateDir has a record for each unit.
	StateDir = "/var/lib/coldrack/units"
	// Target has the units that are started at boot.
	Target = "coldrack-units.target"

	targetText = "# Written by coldrack-agent.\n[Unit]\nDescription=Units that Coldrack has placed on this machine\nDocumentation=man:systemd.target(5)\n"

	// How long the server may think: with nothing to report, with units whose state may change, and while something is under way.
	idleWait, usualWait, busyWait = 30 * time.Second, 15 * time.Second, 2 * time.Second
	firstRetry, lastRetry         = time.Second, 30 * time.Second
	// unheard is how often a server that knows nothing of units is asked.
	unheard = 5 * time.Minute
	// maxMessage is how much of an error is reported.
	maxMessage = 400
)

// systemFolders have the units of the system and its packages, which ours must not hide.
var systemFolders = []string{"/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// Server is the machine API as this package uses it.
type Server interface {
	Units(ctx context.Context, version string, wait time.Duration, r wire.UnitReport) (wire.UnitAssignment, error)
}

// Manager is the system's service manager.
type Manager interface {
	Do(ctx context.Context, verb string, units ...string) error
	Queue(ctx context.Context, verb, unit string) error
	State(ctx context.Context, unit string) (systemd.UnitState, error)
	// States is the same of several; those of which nothing is known are not in it.
	States(ctx context.Context, units ...string) (map[string]systemd.UnitState, error)
	Log(ctx context.Context, unit string, lines int) []string
}

// Keeper keeps a machine's units as the server has said last.
type Keeper struct {
	Log     *slog.Logger
	Server  Server
	Systemd Manager
	Machine string
	// Root is "/" on a node, and UnitDir systemd.UnitDir.
	Root, UnitDir string
	Sleep         func(context.Context, time.Duration)

	problems map[string]string // by unit: why it is not as it should be
}

// record is what the server has said of a unit, and how far that was carried out.
type record struct {
	Name   string `json:"name"`
	Text   string `json:"text"`
	Launch bool   `json:"launch,omitempty"`
	// Written is set before the unit's file is written for the first time: the file is ours.
	Written bool `json:"written,omitempty"`
	// Started is the digest of the text by which it was last started; empty: it was not.
	Started string `json:"started,omitempty"`
	// Drop is why it is to be stopped and removed; empty: it is not.
	Drop string `json:"drop,omitempty"`
}

func (k *Keeper) disk() nodefile.Disk         { return nodefile.Disk{Root: k.Root} }
func (k *Keeper) recordOf(name string) string { return path.Join(StateDir, name+".json") }
func (k *Keeper) fileOf(name string) string   { return path.Join(k.UnitDir, name) }
func (k *Keeper) linkOf(name string) string   { return path.Join(k.UnitDir, Target+".wants", name) }

// Run asks and carries out until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	version, failures := "", 0
	for ctx.Err() == nil {
		report, wait := k.Pass(ctx)
		answer, err := k.Server.Units(ctx, version, wait, report)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			if failures > 0 {
				k.Log.Info("server is reachable again; units follow it")
			}
			failures, version = 0, answer.Version
			if err := k.Take(answer); err != nil {
				k.Log.Error("cannot record what this machine shall run", "err", err)
				version = "" // it is to be said again
			}
			k.Sleep(ctx, 100*time.Millisecond)
			continue
		}
		failures++
		pause := min(firstRetry<<min(failures-1, 10), lastRetry)
		if e := (*client.Error)(nil); errors.As(err, &e) && e.Status == http.StatusNotFound {
			pause = unheard
		} else if !retry.Transient(err) {
			pause = lastRetry
		}
		if failures&(failures-1) == 0 {
			k.Log.Warn("cannot ask the server for this machine's units; those that are here stay as they are", "err", err, "failures", failures, "again", pause)
		}
		k.Sleep(ctx, pause+rand.N(pause/10))
	}
	return nil
}

// Take records what the server has said. Nothing is stopped that it does not name.
func (k *Keeper) Take(a wire.UnitAssignment) error {
	if a.Machine != k.Machine {
		return fmt.Errorf("the server's answer is for machine %q, and this is %s", a.Machine, k.Machine)
	}
	records, _, err := k.records()
	if err != nil {
		return err
	}
	var errs []error
	running := map[string]bool{}
	for _, u := range a.Run {
		running[u.Name] = true
		if err := validate.PlacedUnitName(u.Name); err != nil {
			errs = append(errs, fmt.Errorf("unit %q %w", u.Name, err))
			continue
		}
		is := records[u.Name]
		was := is
		is.Name, is.Text, is.Launch, is.Drop = u.Name, u.Text, u.Launch, ""
		if is == was {
			continue
		}
		if is.Text != was.Text || was.Name == "" {
			k.Log.Info("unit placed on this machine", "unit", u.Name, "digest", u.Digest)
		}
		errs = append(errs, k.save(is))
	}
	for _, d := range a.Drop {
		is, ok := records[d.Name]
		if !ok || running[d.Name] || is.Drop != "" {
			continue
		}
		is.Drop = cmp.Or(d.Reason, "the server says so")
		k.Log.Info("unit is no longer this machine's; stopping it", "unit", d.Name, "reason", is.Drop)
		errs = append(errs, k.save(is))
	}
	return errors.Join(errs...)
}

func (k *Keeper) save(r record) error { return nodefile.WriteJSON(k.disk(), k.recordOf(r.Name), r) }

// records are all that there are. Of those that cannot be read only the names are known: their units go on as they are.
func (k *Keeper) records() (all map[string]record, damaged []string, err error) {
	entries, err := os.ReadDir(k.disk().At(StateDir))
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]record{}, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	all = map[string]record{}
	for _, e := range entries {
		name, is := strings.CutSuffix(e.Name(), ".json")
		if !is || validate.PlacedUnitName(name) != nil {
			continue
		}
		var r record
		if err := nodefile.ReadJSON(k.disk(), path.Join(StateDir, e.Name()), &r); err != nil || r.Name != name {
			k.Log.Error("the record of a unit cannot be read; the unit goes on as it is", "unit", name, "err", err)
			damaged = append(damaged, name)
			continue
		}
		all[name] = r
	}
	return all, damaged, nil
}

// Pass makes the machine as recorded, as far as that goes at once. It returns how the units are, and how long there is nothing to do.
func (k *Keeper) Pass(ctx context.Context) (report wire.UnitReport, wait time.Duration) {
	k.problems = map[string]string{}
	records, damaged, err := k.records()
	if err != nil {
		k.Log.Error("cannot read which units this machine has", "err", err)
		return wire.UnitReport{Unknown: true}, usualWait
	}
	// They are named: what a machine does not name counts as gone, and is started elsewhere.
	for _, name := range damaged {
		report.Units = append(report.Units, wire.UnitState{Name: name, Unknown: true,
			Message: "the machine's record of it cannot be read, and it goes on as it is; on the machine, stop it and delete " + k.recordOf(name)})
	}
	names := slices.Sorted(maps.Keys(records))
	if len(names) == 0 {
		return report, idleWait
	}
	reload := k.keepTarget()
	for _, name := range names {
		changed, err := k.files(records[name])
		reload = reload || changed
		k.problem(name, err)
	}
	states, err := k.Systemd.States(ctx, names...)
	for _, state := range states {
		reload = reload || state.NeedReload // it was written, and then the agent was killed
	}
	if reload {
		if err := k.Systemd.Do(ctx, "daemon-reload"); err != nil {
			k.Log.Error("systemd did not read its units again", "err", err)
		}
	}
	stale, gone := reload || err != nil, map[string]bool{}
	for _, name := range names {
		acted, removed, err := k.carryOut(ctx, records[name])
		k.problem(name, err)
		stale, gone[name] = stale || acted, removed && err == nil
	}
	names = slices.DeleteFunc(names, func(name string) bool { return gone[name] })
	if stale && len(names) > 0 {
		if states, err = k.Systemd.States(ctx, names...); err != nil {
			k.Log.Warn("systemd does not say how the units are", "err", err)
		}
	}
	wait = idleWait
	for _, name := range names {
		is, known := states[name]
		if !known {
			k.problem(name, cmp.Or(err, errUnsaid))
		}
		state := k.state(ctx, records[name], is)
		report.Units = append(report.Units, state)
		wait = min(wait, usualWait)
		if known && (state.Leaving || state.Active == "activating" || state.Active == "deactivating") {
			wait = busyWait
		}
	}
	return report, wait
}

var errUnsaid = errors.New("systemd does not say how the unit is")

func (k *Keeper) problem(name string, err error) {
	if err == nil || k.problems[name] != "" {
		return
	}
	k.problems[name] = systemd.Cut(err.Error(), maxMessage)
}

// keepTarget has systemd start at boot what is linked to the target.
func (k *Keeper) keepTarget() (changed bool) {
	for _, what := range []struct {
		path string
		make func(string) error
		is   func(string) bool
	}{
		{path.Join(k.UnitDir, Target), func(p string) error { return k.disk().Write(p, []byte(targetText), 0o644) }, func(p string) bool { return k.has(p, targetText) }},
		{path.Join(k.UnitDir, "multi-user.target.wants", Target), func(p string) error { return k.disk().Link(p, "../"+Target) }, k.isLink},
	} {
		if what.is(what.path) {
			continue
		}
		if err := what.make(what.path); err != nil {
			k.Log.Error("units will not be started at boot", "err", err)
			continue
		}
		changed = true
	}
	return changed
}

func (k *Keeper) has(p, text string) bool {
	if b, err := os.ReadFile(k.disk().At(p)); err != nil || string(b) != text {
		return false
	}
	is, err := os.Lstat(k.disk().At(p))
	return err == nil && is.Mode().IsRegular()
}

func (k *Keeper) isLink(p string) bool {
	to, err := os.Readlink(k.disk().At(p))
	return err == nil && to == "../"+path.Base(p)
}

// files writes the unit's file and link, or removes the link of what is not to be started. changed: systemd has to read them again.
func (k *Keeper) files(r record) (changed bool, err error) {
	file, link := k.fileOf(r.Name), k.linkOf(r.Name)
	if r.Drop == "" && !k.has(file, r.Text) {
		if !r.Written {
			if err := k.foreign(r); err != nil {
				return false, err
			}
			r.Written = true
			if err := k.save(r); err != nil {
				return false, err
			}
		}
		if err := k.disk().Write(file, []byte(r.Text), 0o644); err != nil {
			return false, err
		}
		changed = true
	}
	switch launch := r.Launch && r.Drop == ""; {
	case launch && !k.isLink(link):
		return true, k.disk().Link(link, "../"+r.Name)
	case !launch && (r.Written || r.Drop != ""):
		switch err := os.Remove(k.disk().At(link)); {
		case err == nil:
			return true, nil
		case !errors.Is(err, fs.ErrNotExist):
			return changed, err
		}
	}
	return changed, nil
}

// foreign says whose unit of that name is on the machine, if it is not ours.
func (k *Keeper) foreign(r record) error {
	names := []string{r.Name}
	if prefix, instance, kind, _ := validate.SplitUnitName(r.Name); instance != "" {
		names = append(names, prefix+"@."+kind)
	}
	for _, dir := range append([]string{k.UnitDir}, systemFolders...) {
		for _, name := range names {
			at := path.Join(dir, name)
			if dir == k.UnitDir && name != r.Name {
				continue // a template that a person wrote is only the default of an instance
			}
			if _, err := os.Lstat(k.disk().At(at)); err == nil {
				return fmt.Errorf("the machine has a unit of its own, %s; submit this one by another name", at)
			}
		}
	}
	return nil
}

// carryOut starts, restarts or stops a unit. gone: nothing of it is left.
func (k *Keeper) carryOut(ctx context.Context, r record) (acted, gone bool, err error) {
	if r.Drop != "" {
		gone, err = k.remove(ctx, r)
		return true, gone, err
	}
	now := digest.Of([]byte(r.Text)).String()
	switch {
	case k.problems[r.Name] != "":
		return false, false, nil // its file could not be written
	case r.Launch && r.Started != now:
		verb := "start"
		if r.Started != "" {
			verb = "restart"
		}
		if err := k.Systemd.Queue(ctx, verb, r.Name); err != nil {
			return true, false, err
		}
		r.Written, r.Started = true, now
		k.Log.Info("unit "+verb+"ed", "unit", r.Name)
		return true, false, k.save(r)
	case !r.Launch && r.Started != "":
		if err := k.Systemd.Queue(ctx, "stop", r.Name); err != nil {
			return true, false, err
		}
		r.Written, r.Started = true, ""
		return true, false, k.save(r)
	}
	return false, false, nil
}

// remove stops a unit and takes it off the machine. A file that is not ours stays.
func (k *Keeper) remove(ctx context.Context, r record) (gone bool, err error) {
	if r.Written {
		state, err := k.Systemd.State(ctx, r.Name)
		if err != nil {
			return false, err
		}
		switch state.Active {
		case "inactive", "failed", "":
		case "deactivating":
			return false, nil
		default:
			return false, k.Systemd.Queue(ctx, "stop", r.Name)
		}
		if err := os.Remove(k.disk().At(k.fileOf(r.Name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if err := k.Systemd.Do(ctx, "daemon-reload"); err != nil {
			return false, err
		}
		if state.Active == "failed" {
			_ = k.Systemd.Do(ctx, "reset-failed", r.Name) // systemd may have forgotten it already
		}
	}
	if err := os.Remove(k.disk().At(k.recordOf(r.Name))); err != nil {
		return false, err
	}
	k.Log.Info("unit removed", "unit", r.Name, "reason", r.Drop)
	return true, nil
}

// state is what is reported of a unit that systemd says is so.
func (k *Keeper) state(ctx context.Context, r record, is systemd.UnitState) wire.UnitState {
	s := wire.UnitState{Name: r.Name, Leaving: r.Drop != "", Digest: digest.Of([]byte(r.Text)).String(), Active: is.Active, Sub: is.Sub, Message: k.problems[r.Name]}
	if s.Message == "" && (is.Active == "failed" || is.Sub == "auto-restart") {
		s.Message = is.String()
		if lines := k.Systemd.Log(ctx, r.Name, 3); len(lines) > 0 {
			s.Message = systemd.Cut(s.Message+": "+strings.Join(lines, " | "), maxMessage)
		}
	}
	return s
}
