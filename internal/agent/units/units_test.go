package units

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/agent/systemd"
	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/contract/wire"
)

// manager stands in for systemd, which needs control groups: what this machine does with it is the same with the real one (make e2e-units).
type manager struct {
	dir    string
	loaded map[string]string // text of units' files, as read last
	runs   map[string]int    // by unit: the number of its start
	starts int
	shows  int // calls of States
	err    error
}

func (m *manager) files() map[string]string {
	all := map[string]string{}
	entries, _ := os.ReadDir(m.dir)
	for _, e := range entries {
		if b, err := os.ReadFile(filepath.Join(m.dir, e.Name())); err == nil {
			all[e.Name()] = string(b)
		}
	}
	return all
}

// load reads the file of a unit that is not known yet, as systemd does; a newer one of a known unit takes daemon-reload.
func (m *manager) load(unit string) bool {
	text, is := m.files()[unit]
	if _, loaded := m.loaded[unit]; !loaded && is {
		m.loaded[unit] = text
	}
	_, loaded := m.loaded[unit]
	return loaded
}

func (m *manager) Do(_ context.Context, verb string, _ ...string) error {
	if verb == "daemon-reload" {
		m.loaded = m.files()
	}
	return m.err
}

func (m *manager) Queue(_ context.Context, verb, unit string) error {
	loaded := m.load(unit)
	_, runs := m.runs[unit]
	switch {
	case m.err != nil:
		return m.err
	case verb == "stop":
		delete(m.runs, unit)
	case !loaded:
		return fmt.Errorf("systemctl %s %s: Unit %s not found", verb, unit, unit)
	case verb == "restart" || !runs:
		m.starts++
		m.runs[unit] = m.starts
	}
	return nil
}

func (m *manager) State(ctx context.Context, unit string) (systemd.UnitState, error) {
	all, err := m.States(ctx, unit)
	m.shows--
	return all[unit], err
}

func (m *manager) States(_ context.Context, units ...string) (map[string]systemd.UnitState, error) {
	m.shows++
	if m.err != nil {
		return nil, m.err
	}
	files, all := m.files(), map[string]systemd.UnitState{}
	for _, unit := range units {
		s := systemd.UnitState{Load: "not-found", Active: "inactive", Sub: "dead"}
		if m.load(unit) {
			s.Load, s.NeedReload = "loaded", files[unit] != m.loaded[unit]
		}
		if m.runs[unit] > 0 {
			s.Active, s.Sub = "active", "running"
		}
		all[unit] = s
	}
	return all, nil
}

func (m *manager) Log(context.Context, string, int) []string { return nil }

// world is a machine's disk and its service manager, which both outlive the agent.
type world struct {
	t       *testing.T
	root    string
	systemd *manager
}

func newWorld(t *testing.T) *world {
	root := t.TempDir()
	dir := filepath.Join(root, systemd.UnitDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &world{t: t, root: root, systemd: &manager{dir: dir, loaded: map[string]string{}, runs: map[string]int{}}}
}

// agent is one that has just begun.
func (w *world) agent() *Keeper {
	return &Keeper{Log: slog.New(slog.DiscardHandler), Systemd: w.systemd, Machine: "m1", Root: w.root, UnitDir: systemd.UnitDir}
}

func (w *world) is(what string, runs ...string) {
	w.t.Helper()
	want := map[string]bool{}
	for _, name := range runs {
		want[name] = true
	}
	have := map[string]bool{}
	for name := range w.systemd.runs {
		have[name] = true
	}
	if !maps.Equal(want, have) {
		w.t.Errorf("%s: there run %v, and should %v", what, have, runs)
	}
}

// settle passes as often as it takes for a unit to be stopped and then removed.
func (w *world) settle() (report wire.UnitReport) {
	for range 3 {
		report, _ = w.agent().Pass(w.t.Context())
	}
	return report
}

func unit(name, text string, launch bool) wire.UnitFile {
	return wire.UnitFile{Name: name, Text: text, Digest: digest.Of([]byte(text)).String(), Launch: launch}
}

func assignment(run ...wire.UnitFile) wire.UnitAssignment {
	return wire.UnitAssignment{Version: "1", Machine: "m1", Run: run}
}

func take(t *testing.T, k *Keeper, a wire.UnitAssignment) {
	t.Helper()
	if err := k.Take(a); err != nil {
		t.Fatal(err)
	}
}

func sleeper(seconds int) string {
	return fmt.Sprintf("[Unit]\nDescription=sleeps\n[Service]\nExecStart=/bin/sleep %d\n", seconds)
}

func drop(names ...string) (a wire.UnitAssignment) {
	a.Machine = "m1"
	for _, name := range names {
		a.Drop = append(a.Drop, wire.UnitDrop{Name: name, Reason: "moved"})
	}
	return a
}

// TestOnlyWhatIsNamedIsStopped: whatever comes that does not name a unit as gone leaves it alone.
func TestOnlyWhatIsNamedIsStopped(t *testing.T) {
	w := newWorld(t)
	web, job := unit("web.service", sleeper(1), true), unit("job@7.service", sleeper(2), true)
	later := unit("later.service", sleeper(3), false)
	take(t, w.agent(), assignment(web, job, later))
	w.settle()
	w.is("placed", web.Name, job.Name)
	started := w.systemd.starts
	for _, a := range []wire.UnitAssignment{assignment(), {Version: "2", Machine: "m1"}, assignment(later), {Machine: "m1", Run: []wire.UnitFile{web}, Drop: []wire.UnitDrop{{Name: web.Name}}}} {
		take(t, w.agent(), a)
		w.settle()
		w.is(fmt.Sprintf("after %+v", a), web.Name, job.Name)
	}
	for _, a := range []wire.UnitAssignment{{}, {Machine: "m2", Drop: []wire.UnitDrop{{Name: web.Name}}}} {
		if err := w.agent().Take(a); err == nil {
			t.Errorf("took %+v", a)
		}
		w.settle()
		w.is("an answer for another machine", web.Name, job.Name)
	}
	// A name that is none does not keep the others from being recorded, and is never a path.
	err := w.agent().Take(assignment(unit("../../evil.service", sleeper(1), true), unit("new.service", sleeper(4), true)))
	if err == nil || !strings.Contains(err.Error(), "evil") {
		t.Errorf("took a path: %v", err)
	}
	w.settle()
	w.is("one more", web.Name, job.Name, "new.service")
	if w.systemd.starts != started+1 {
		t.Errorf("%d starts, and there should be one more than %d", w.systemd.starts, started)
	}
	// A record that cannot be read stops nothing either.
	k := w.agent()
	if err := os.WriteFile(filepath.Join(w.root, k.recordOf(job.Name)), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.is("a damaged record", web.Name, job.Name, "new.service")
	report, _ := w.agent().Pass(t.Context())
	if i := slices.IndexFunc(report.Units, func(u wire.UnitState) bool { return u.Name == job.Name }); i < 0 || !report.Units[i].Unknown || report.Units[i].Message == "" {
		t.Errorf("a unit whose record is damaged is reported as %+v", report)
	}

	take(t, w.agent(), drop(web.Name, "unknown.service"))
	w.settle()
	w.is("dropped", job.Name, "new.service")
	for _, path := range []string{k.fileOf(web.Name), k.linkOf(web.Name), k.recordOf(web.Name)} {
		if _, err := os.Lstat(filepath.Join(w.root, path)); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
}

// TestSystemdIsAskedOnce for the states of all units, however many there are.
func TestSystemdIsAskedOnce(t *testing.T) {
	w := newWorld(t)
	var all []wire.UnitFile
	for i := range 40 {
		all = append(all, unit(fmt.Sprintf("u%d.service", i), sleeper(i), true))
	}
	take(t, w.agent(), assignment(all...))
	if report := w.settle(); len(report.Units) != len(all) || report.Units[39].Active != "active" {
		t.Errorf("report: %+v", report)
	}
	before := w.systemd.shows
	w.agent().Pass(t.Context())
	if n := w.systemd.shows - before; n != 1 {
		t.Errorf("systemd was asked %d times", n)
	}
	// systemd that does not answer: nothing is lost, and every unit says why nothing is known of it.
	w.systemd.err = errors.New("bus is away")
	report, _ := w.agent().Pass(t.Context())
	if len(report.Units) != len(all) || report.Units[0].Active != "" || !strings.Contains(report.Units[0].Message, "bus is away") {
		t.Errorf("report: %+v", report)
	}
}

// TestAMachinesOwnUnitStays: it is neither replaced nor removed.
func TestAMachinesOwnUnitStays(t *testing.T) {
	w := newWorld(t)
	own := filepath.Join(w.systemd.dir, "site.service")
	if err := os.WriteFile(own, []byte(sleeper(5)), 0o644); err != nil {
		t.Fatal(err)
	}
	take(t, w.agent(), assignment(unit("site.service", sleeper(6), true)))
	if report := w.settle(); !strings.Contains(fmt.Sprint(report), "a unit of its own, /etc/systemd/system/site.service") {
		t.Errorf("report: %+v", report)
	}
	take(t, w.agent(), drop("site.service"))
	w.settle()
	if b, err := os.ReadFile(own); err != nil || string(b) != sleeper(5) {
		t.Errorf("the machine's own unit: %q %v", b, err)
	}
	w.is("the machine's own")
}

// killed ends a pass where a call to systemd would be the nth, as a kill does.
type killed struct {
	Manager
	left *int
}

type kill struct{}

func (k killed) call() {
	if *k.left--; *k.left < 0 {
		panic(kill{})
	}
}

func (k killed) Do(ctx context.Context, verb string, units ...string) error {
	k.call()
	defer k.call()
	return k.Manager.Do(ctx, verb, units...)
}

func (k killed) Queue(ctx context.Context, verb, unit string) error {
	k.call()
	defer k.call()
	return k.Manager.Queue(ctx, verb, unit)
}

func (k killed) State(ctx context.Context, unit string) (systemd.UnitState, error) {
	k.call()
	return k.Manager.State(ctx, unit)
}

func (k killed) States(ctx context.Context, units ...string) (map[string]systemd.UnitState, error) {
	k.call()
	return k.Manager.States(ctx, units...)
}

// killedPass is a pass that is killed at its nth call to systemd; ended: it came to its end.
func killedPass(t *testing.T, k *Keeper, n *int) (ended bool) {
	t.Helper()
	defer func() {
		if r := recover(); r != nil {
			if _, is := r.(kill); !is {
				panic(r)
			}
		}
	}()
	k.Systemd = killed{k.Systemd, n}
	k.Pass(t.Context())
	return true
}

// TestUnitsKilled: wherever the agent is killed, the next one brings it to an end, from what is on the disk alone.
func TestUnitsKilled(t *testing.T) {
	for n, ended := 0, 0; ended < 3; n++ {
		w := newWorld(t)
		ended = 0
		step := func(what string, a wire.UnitAssignment, runs ...string) {
			take(t, w.agent(), a)
			left := n
			if killedPass(t, w.agent(), &left) {
				ended++
			}
			w.settle()
			w.is(fmt.Sprintf("%s, killed at call %d", what, n), runs...)
		}
		step("placed", assignment(unit("web.service", sleeper(1), true)), "web.service")
		first := w.systemd.starts
		step("changed", assignment(unit("web.service", sleeper(2), true)), "web.service")
		if text := w.systemd.loaded["web.service"]; first != 1 || w.systemd.starts == first || text != sleeper(2) {
			t.Errorf("killed at call %d: %d starts, then %d, of %q", n, first, w.systemd.starts, text)
		}
		step("dropped", drop("web.service"))
		if _, err := os.Stat(filepath.Join(w.systemd.dir, "web.service")); err == nil {
			t.Errorf("killed at call %d: its file is still there", n)
		}
	}
}

// away is a server that answers with an error, or with nothing.
type away struct {
	err   error
	asked int
	stop  context.CancelFunc
}

func (s *away) Units(context.Context, string, time.Duration, wire.UnitReport) (wire.UnitAssignment, error) {
	if s.asked++; s.asked == 5 {
		s.stop()
	}
	return wire.UnitAssignment{}, s.err
}

// TestUnitsWithoutServer: a server that is away, or answers nonsense, stops nothing; units recorded before are carried out without it.
func TestUnitsWithoutServer(t *testing.T) {
	w := newWorld(t)
	take(t, w.agent(), assignment(unit("web.service", sleeper(1000), true)))
	for _, err := range []error{errors.New("connection refused"), nil} {
		ctx, cancel := context.WithCancel(t.Context())
		server := &away{err: err, stop: cancel}
		k := w.agent()
		k.Server, k.Sleep = server, func(context.Context, time.Duration) {}
		if err := k.Run(ctx); err != nil || server.asked != 5 {
			t.Errorf("asked %d times: %v", server.asked, err)
		}
		w.is("without a server", "web.service")
	}
	if w.systemd.starts != 1 {
		t.Errorf("%d starts", w.systemd.starts)
	}
}
