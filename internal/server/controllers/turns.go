package controllers

import (
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"

	"coldrack.dev/api/v1alpha1"
)

// urgency is how long the store may do without a change of a status. What a machine reports is in memory at once; the store
// holds it for people and for the next start of the server.
type urgency int

const (
	// atOnce is what others act upon: intents, conditions, that a machine is ready, failed or lost.
	atOnce urgency = iota
	// soon are the phases on the way, which people look at.
	soon
	// inTurn is how a machine gets on: steps, boots, leases.
	inTurn
	// nowAndThen is how many bytes a step has moved.
	nowAndThen
)

// urgencyOf tells how urgent the change from one status to the next is.
func urgencyOf(was, next v1alpha1.MachineStatus) urgency {
	same := equality.Semantic.DeepEqual
	switch {
	case same(withoutBytes(was), withoutBytes(next)):
		return nowAndThen
	case same(withoutSteps(was), withoutSteps(next)):
		return inTurn
	case was.Phase == "" && (next.Phase == v1alpha1.PhaseExpected || onTheWay(next.Phase)): // new, perhaps with thousands of others
		return soon
	case onTheWay(next.Phase) && same(withoutPhase(was), withoutPhase(next)):
		return soon
	}
	return atOnce
}

// onTheWay says that a phase waits for nobody.
func onTheWay(phase v1alpha1.MachinePhase) bool {
	switch phase {
	case v1alpha1.PhaseDiscovering, v1alpha1.PhaseWaiting, v1alpha1.PhaseApproved, v1alpha1.PhaseInstalling, v1alpha1.PhaseRebooting:
		return true
	}
	return false
}

func withoutPhase(s v1alpha1.MachineStatus) v1alpha1.MachineStatus {
	s = withoutSteps(s)
	s.Phase, s.PhaseSince, s.Message = "", nil, ""
	s.Conditions = slices.Clone(s.Conditions)
	for i := range s.Conditions {
		if c := &s.Conditions[i]; c.Type == v1alpha1.ConditionReady { // says again which phase it is
			c.Reason, c.Message = "", ""
		}
	}
	return s
}

func withoutBytes(s v1alpha1.MachineStatus) v1alpha1.MachineStatus {
	s.CurrentStep, _, _ = strings.Cut(s.CurrentStep, " ")
	if s.Kubernetes != nil {
		// What a phase waits for may change with every look.
		s.Kubernetes = s.Kubernetes.DeepCopy()
		for i := range s.Kubernetes.Phases {
			p := &s.Kubernetes.Phases[i]
			p.BytesDone, p.BytesTotal = 0, 0
			if p.State == v1alpha1.StepRunning {
				p.Message = ""
			}
		}
		s.CurrentStep, s.Kubernetes.Message = "", ""
	}
	s.Steps = slices.Clone(s.Steps)
	for i := range s.Steps {
		s.Steps[i].BytesDone, s.Steps[i].BytesTotal = 0, 0
	}
	return s
}

func withoutSteps(s v1alpha1.MachineStatus) v1alpha1.MachineStatus {
	s = withoutBytes(s)
	s.CurrentStep, s.Steps, s.Boots, s.Lease, s.Address = "", nil, nil, nil, ""
	return s
}

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

// turns gives each machine that has something to be written a time for it, in the order in which they come. A few machines
// need not wait; of a thousand each has its turn for progress every 100 seconds, and one for its phase within 50.
type turns struct {
	mu      sync.Mutex
	lanes   map[urgency]*lane
	written map[string]time.Time // when a machine's status was last written
	due     map[string]turn      // what was given out and not used
}

type turn struct {
	at time.Time
	u  urgency
}

func newTurns() *turns {
	progress := &lane{every: turnEvery, row: 1}
	return &turns{
		lanes:   map[urgency]*lane{soon: {every: soonEvery, row: soonAtOnce}, inTurn: progress, nowAndThen: progress},
		written: map[string]time.Time{}, due: map[string]turn{},
	}
}

// wait says how long a machine's change has to wait; when that is not at all, the caller writes it now.
func (t *turns) wait(name string, u urgency, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u != atOnce {
		given, ok := t.due[name]
		if !ok || u < given.u {
			if at := t.lanes[u].take(now); !ok || at.Before(given.at) {
				given.at = at
			}
			given.u = u
			t.due[name] = given
		}
		due := given.at
		if u == nowAndThen && due.Before(t.written[name].Add(bytesEvery)) {
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

func (t *turns) forget(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.written, name)
	delete(t.due, name)
}
