package install

import (
	"context"
	"fmt"
	"sync"
	"time"

	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/contract/wire"
)

// ErrCancelled says that the server no longer wants the operation that was running.
var ErrCancelled error = cancelled{}

type cancelled struct{}

func (cancelled) Error() string {
	return "the server no longer wants this: its intent was replaced or withdrawn"
}

// Final keeps retry.Do from asking again.
func (cancelled) Final() bool { return true }

const (
	// reportEvery is the least time between two reports of progress within a step.
	reportEvery = time.Second
	// reportAgain is how long a step may be at work without a report, although nothing changes: a machine that says nothing
	// counts as lost.
	reportAgain = 10 * time.Second
)

// tracker holds the steps of a running operation and reports them. A report that fails is made again with
// the next; the operation goes on meanwhile, because a server's restart must not stop a disk being written.
type tracker struct {
	intentID string
	server   Server
	now      func() time.Time
	watch    func(wire.Step) // the console

	mu      sync.Mutex
	steps   []wire.Step
	log     []string
	changed bool
	wake    chan struct{} // a transition: report without waiting
}

func newTracker(intentID string, names []string, server Server, now func() time.Time, watch func(wire.Step)) *tracker {
	t := &tracker{intentID: intentID, server: server, now: now, watch: watch, wake: make(chan struct{}, 1)}
	for _, n := range names {
		t.steps = append(t.steps, wire.Step{Name: n, State: wire.StatePending})
	}
	return t
}

// update changes a step; a transition is reported at once.
func (t *tracker) update(name string, transition bool, change func(*wire.Step)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.steps {
		if t.steps[i].Name != name {
			continue
		}
		change(&t.steps[i])
		t.changed = true
		t.watch(t.steps[i])
	}
	if transition {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

func (t *tracker) start(name string) {
	t.update(name, true, func(s *wire.Step) {
		at := t.now().UTC()
		s.State, s.StartedAt, s.FinishedAt, s.Message = wire.StateRunning, &at, nil, ""
	})
}

func (t *tracker) finish(name string, state wire.State, message string) {
	t.update(name, true, func(s *wire.Step) {
		at := t.now().UTC()
		s.State, s.FinishedAt, s.Message = state, &at, message
	})
}

func (t *tracker) bytes(name string, done, total int64) {
	t.update(name, false, func(s *wire.Step) { s.BytesDone, s.BytesTotal = done, total })
}

func (t *tracker) message(name, format string, args ...any) {
	t.update(name, false, func(s *wire.Step) { s.Message = fmt.Sprintf(format, args...) })
}

// note adds a line to the log that goes with the next report.
func (t *tracker) note(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const most = 200
	t.log = append(t.log, line)
	if len(t.log) > most {
		t.log = t.log[len(t.log)-most:]
	}
	t.changed = true
}

func (t *tracker) snapshot() []wire.Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]wire.Step(nil), t.steps...)
}

// report sends the present state.
func (t *tracker) report(ctx context.Context) error {
	t.mu.Lock()
	p := wire.Progress{IntentID: t.intentID, Steps: append([]wire.Step(nil), t.steps...), Log: append([]string(nil), t.log...)}
	t.changed, t.log = false, nil
	t.mu.Unlock()
	answer, err := t.server.Progress(ctx, p)
	if err != nil {
		t.mu.Lock()
		t.log, t.changed = append(p.Log, t.log...), true
		t.mu.Unlock()
		return err
	}
	if answer.Cancel {
		return ErrCancelled
	}
	return nil
}

// run reports until ctx ends: at every transition, once a second while something changes, and now and then while nothing
// does. It returns what must end the operation: ErrCancelled, or a refusal.
func (t *tracker) run(ctx context.Context) error {
	delay, reported := reportEvery, time.Now()
	for {
		wait := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil
		case <-t.wake:
			wait.Stop()
		case <-wait.C:
		}
		t.mu.Lock()
		changed := t.changed
		t.mu.Unlock()
		if !changed && time.Since(reported) < reportAgain {
			continue
		}
		reported = time.Now()
		err := t.report(ctx)
		switch {
		case err == nil:
			delay = reportEvery
		case ctx.Err() != nil:
			return nil
		case !retry.Transient(err):
			return err
		default:
			delay = min(2*delay, 15*time.Second)
		}
	}
}
