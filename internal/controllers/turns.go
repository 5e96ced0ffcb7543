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
	// atOnce is what others act upon: phases, intents, conditions.
	atOnce urgency = iota
	// inTurn is how a machine gets on: steps, boots, leases.
	inTurn
	// nowAndThen is how many bytes a step has moved.
	nowAndThen
)

// urgencyOf tells how urgent the change from one status to the next is.
func urgencyOf(was, next v1alpha1.MachineStatus) urgency {
	if equality.Semantic.DeepEqual(withoutBytes(was), withoutBytes(next)) {
		return nowAndThen
	}
	if equality.Semantic.DeepEqual(withoutSteps(was), withoutSteps(next)) {
		return inTurn
	}
	return atOnce
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
	// turnEvery is how often it hears of any machine's progress at most. A write takes about 10 ms of a processor, with all who
	// are told of it; so a thousand machines that install at once take a tenth of one and not several.
	turnEvery = 100 * time.Millisecond
)

// turns gives each machine that has progress to be written a time for it, in the order in which they come. A few machines
// need not wait; of a thousand each has its turn every 100 seconds.
type turns struct {
	mu      sync.Mutex
	next    time.Time            // the first time that is not given out
	written map[string]time.Time // when a machine's status was last written
	due     map[string]time.Time // what was given out and not used
}

// wait says how long a machine's change has to wait; when that is not at all, the caller writes it now.
func (t *turns) wait(name string, u urgency, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.written == nil {
		t.written, t.due = map[string]time.Time{}, map[string]time.Time{}
	}
	if u != atOnce {
		due, given := t.due[name]
		if !given {
			due = now
			if t.next.After(due) {
				due = t.next
			}
			t.next, t.due[name] = due.Add(turnEvery), due
		}
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
