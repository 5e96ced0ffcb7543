package controllers

import (
	"sync"
	"time"

	"coldrack.dev/internal/machine/lifecycle"
)

const (
	// bytesEvery is how often the store hears of a machine's bytes at most.
	bytesEvery = 2 * time.Second
	// turnEvery is how often it hears of any machine's progress at most, and soonEvery of their phases on the way. A write takes
	// about 10 ms of a processor, with all who are told of it; so a thousand machines that install at once take a third of one
	// and not several.
	turnEvery = 100 * time.Millisecond
	soonEvery = 50 * time.Millisecond
	// soonAtOnce is how many phases need not wait when there was none for a while.
	soonAtOnce = 50
)

// lane gives out times, so many in a row and then one at a time.
type lane struct {
	every time.Duration
	row   int
	next  time.Time
}

func (l *lane) take(now time.Time) time.Time {
	if earliest := now.Add(-time.Duration(l.row-1) * l.every); l.next.Before(earliest) {
		l.next = earliest
	}
	due := l.next
	l.next = due.Add(l.every)
	return due
}

// statusThrottle gives each machine that has something to be written a time for it, in the order in which they come. A few machines
// need not wait; of a thousand each has its turn for progress every 100 seconds, and one for its phase within 50.
type statusThrottle struct {
	mu      sync.Mutex
	lanes   map[lifecycle.Urgency]*lane
	written map[string]time.Time // when a machine's status was last written
	due     map[string]turn      // what was given out and not used
}

type turn struct {
	at time.Time
	u  lifecycle.Urgency
}

func newStatusThrottle() *statusThrottle {
	progress := &lane{every: turnEvery, row: 1}
	return &statusThrottle{
		lanes:   map[lifecycle.Urgency]*lane{lifecycle.Soon: {every: soonEvery, row: soonAtOnce}, lifecycle.Progress: progress, lifecycle.Bytes: progress},
		written: map[string]time.Time{}, due: map[string]turn{},
	}
}

// wait says how long a machine's change has to wait; when that is not at all, the caller writes it now.
func (t *statusThrottle) wait(name string, u lifecycle.Urgency, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u != lifecycle.Immediate {
		given, ok := t.due[name]
		if !ok || u < given.u {
			if at := t.lanes[u].take(now); !ok || at.Before(given.at) {
				given.at = at
			}
			given.u = u
			t.due[name] = given
		}
		due := given.at
		if u == lifecycle.Bytes && due.Before(t.written[name].Add(bytesEvery)) {
			due = t.written[name].Add(bytesEvery)
		}
		if wait := due.Sub(now); wait > 0 {
			return wait
		}
	}
	delete(t.due, name)
	t.written[name] = now
	return 0
}

func (t *statusThrottle) forget(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.written, name)
	delete(t.due, name)
}
