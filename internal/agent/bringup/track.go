package bringup

import (
	"crypto/x509"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"coldrack.dev/internal/contract/wire"
)

// track is how far the phases are. It tells whenever that changes.
type track struct {
	now func() time.Time

	mu           sync.Mutex
	report       wire.PhaseReport
	certificates map[string]time.Time
	renewals     map[string]time.Time // see wire.PhaseReport.RenewAt
	changed      chan struct{}        // of capacity one
}

func newTrack(now func() time.Time) *track {
	return &track{now: now, report: wire.PhaseReport{Prefetch: &wire.PrefetchReport{}}, certificates: map[string]time.Time{}, renewals: map[string]time.Time{}, changed: make(chan struct{}, 1)}
}

func (t *track) tell() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

func (t *track) retell() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tell()
}

// follow starts over when the version is another one than before.
func (t *track) follow(s *state) {
	t.mu.Lock()
	defer t.mu.Unlock()
	version, plan := s.Version, s.Plan
	if t.report.Version == version && t.report.Cluster == plan.Cluster {
		return
	}
	t.digests(s)
	t.report.Drift = nil
	t.report.Version, t.report.Cluster, t.report.Done, t.report.Phases = version, plan.Cluster, false, nil
	for _, ph := range plan.Phases {
		t.report.Phases = append(t.report.Phases, wire.Step{Name: ph.Name, State: wire.StatePending, Reason: ph.Reason})
	}
	wanted := map[string]bool{}
	for _, c := range plan.Certificates {
		wanted[c.Name] = true
		for _, file := range c.Remade {
			wanted[remadeName(file)] = true
		}
	}
	for _, times := range []map[string]time.Time{t.certificates, t.renewals} {
		maps.DeleteFunc(times, func(name string, _ time.Time) bool { return !wanted[name] })
	}
	t.tell()
}

// rename takes what was done for the version before as done for another one.
func (t *track) rename(s *state) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.report.Version != "" && t.report.Version != s.Version {
		t.report.Version = s.Version
		t.digests(s)
		t.tell()
	}
}

// digests needs t.mu.
func (t *track) digests(s *state) {
	t.report.Config, t.report.FormerConfig = s.Plan.Digests, nil
	if s.Former != nil {
		t.report.FormerConfig = &s.Former.Digests
	}
}

// note says what the server asked for and cannot be done; "" for nothing.
func (t *track) note(message string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.report.Message != message {
		t.report.Message = message
		t.tell()
	}
}

// restore says how far a restore of etcd is; nil: there is none.
func (t *track) restore(r *wire.RestoreReport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !reflect.DeepEqual(t.report.Restore, r) {
		t.report.Restore = r
		t.tell()
	}
}

// prefetch says how far it is with what is fetched beside what runs; an empty report: nothing is.
func (t *track) prefetch(r *wire.PrefetchReport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r = new(*r)
	if !reflect.DeepEqual(t.report.Prefetch, r) {
		t.report.Prefetch = r
		t.tell()
	}
}

// prefetching is prefetch for every piece that arrives; it tells of every twentieth part only.
func (t *track) prefetching(r wire.PrefetchReport) {
	t.mu.Lock()
	was := t.report.Prefetch
	t.mu.Unlock()
	if was.ID != r.ID || was.Failing || was.Message != r.Message || (r.BytesDone-was.BytesDone)*20 >= r.BytesTotal {
		t.prefetch(&r)
	}
}

// stalled says that what is fetched beside what runs does not come, and why that may be.
func (t *track) stalled(why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.report.Prefetch; r.ID != "" && !r.Done && !r.Failing {
		next := *r
		next.Failing, next.Message = true, r.Message+": "+why
		t.report.Prefetch = &next
		t.tell()
	}
}

// update changes one phase by f.
func (t *track) update(name string, f func(*wire.Step)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.report.Phases, func(s wire.Step) bool { return s.Name == name })
	if i < 0 {
		return
	}
	was := t.report.Phases[i]
	f(&t.report.Phases[i])
	done := !slices.ContainsFunc(t.report.Phases, func(s wire.Step) bool { return s.State != wire.StateSucceeded })
	if was != t.report.Phases[i] || done != t.report.Done {
		t.report.Done = done
		t.tell()
	}
}

func run(s *wire.Step, now time.Time) {
	if s.State != wire.StateRunning {
		s.State, s.StartedAt, s.FinishedAt = wire.StateRunning, &now, nil
		s.Attempts++
	}
}

// begin notes that a phase runs. One that has succeeded before is looked at again in silence: it runs only when
// there is something to do (working, say).
func (t *track) begin(name string) {
	t.update(name, func(s *wire.Step) {
		if s.State != wire.StateSucceeded {
			run(s, t.now())
		}
	})
}

// working notes that a phase changes something.
func (t *track) working(name string) { t.update(name, func(s *wire.Step) { run(s, t.now()) }) }

// reopen notes that a phase changes something, and that those which follow from it are to be looked at again: until they were, the node
// is not done.
func (t *track) reopen(name string, following []string) {
	t.working(name)
	for _, next := range following {
		t.update(next, func(s *wire.Step) {
			if s.State == wire.StateSucceeded {
				s.State, s.StartedAt, s.FinishedAt = wire.StatePending, nil, nil
			}
		})
	}
}

// say sets what a running phase does or waits for.
func (t *track) say(name, message string) {
	t.update(name, func(s *wire.Step) {
		run(s, t.now())
		s.Message = message
	})
}

// bytes sets how much of a phase's content has arrived; it tells of every twentieth only.
func (t *track) bytes(name string, done, total int64) {
	t.update(name, func(s *wire.Step) {
		if s.BytesTotal != total || done == total || (done-s.BytesDone)*20 >= total || done < s.BytesDone {
			run(s, t.now())
			s.BytesDone, s.BytesTotal = done, total
		}
	})
}

// hold notes why a phase does not begin, or not again.
func (t *track) hold(name, message string) {
	t.update(name, func(s *wire.Step) {
		if s.State == wire.StatePending || s.State == wire.StateFailed {
			s.Message = message
		}
	})
}

func (t *track) fail(name, message string) {
	t.update(name, func(s *wire.Step) {
		run(s, t.now()) // one that had succeeded before
		now := t.now()
		s.State, s.FinishedAt, s.Message = wire.StateFailed, &now, message
	})
}

func (t *track) succeed(name string) {
	t.update(name, func(s *wire.Step) {
		if s.State != wire.StateSucceeded {
			now := t.now()
			s.State, s.FinishedAt, s.Message = wire.StateSucceeded, &now, ""
		}
	})
}

// expiry notes the end of a certificate, and when it is due; zero where nothing has to wait for its renewal.
func (t *track) expiry(name string, leaf *x509.Certificate, renewAt time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if leaf == nil || t.certificates[name].Equal(leaf.NotAfter) && t.renewals[name].Equal(renewAt) {
		return
	}
	t.certificates[name] = leaf.NotAfter.UTC()
	if delete(t.renewals, name); !renewAt.IsZero() {
		t.renewals[name] = renewAt
	}
	t.tell()
}

// gone notes that a certificate is not there.
func (t *track) gone(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, was := t.certificates[name]; was {
		delete(t.certificates, name)
		t.tell()
	}
}

func (t *track) kubelet(version string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.report.KubernetesVersion != version {
		t.report.KubernetesVersion = version
		t.tell()
	}
}

// succeeded says whether a phase has succeeded.
func (t *track) succeeded(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.report.Phases, func(s wire.Step) bool { return s.Name == name && s.State == wire.StateSucceeded })
}

// maxDrift is how many files are named that somebody else has changed.
const maxDrift = 32

func (t *track) drift(path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.Contains(t.report.Drift, path) && len(t.report.Drift) < maxDrift {
		t.report.Drift = slices.Sorted(slices.Values(append(t.report.Drift, path)))
		t.tell()
	}
}

// found replaces what is told of files that somebody else has changed.
func (t *track) found(paths []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.Equal(t.report.Drift, paths) {
		t.report.Drift = paths
		t.tell()
	}
}

// snapshot is the report as it is now.
func (t *track) snapshot() wire.PhaseReport {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.report
	r.Phases = slices.Clone(r.Phases)
	r.Certificates = maps.Clone(t.certificates)
	for _, at := range t.renewals {
		if r.RenewAt == nil || at.Before(*r.RenewAt) {
			r.RenewAt = &at
		}
	}
	return r
}
