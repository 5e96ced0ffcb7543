package power

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/bmc"
)

func machine(name, address string) *v1alpha1.Machine {
	m := &v1alpha1.Machine{}
	m.Name, m.Generation = name, 1
	if address != "" {
		m.Spec.BMC = &v1alpha1.BMC{Address: address}
	}
	return m
}

func TestDue(t *testing.T) {
	now := time.Unix(1e9, 0)
	changed := machine("changed", "10.0.0.3")
	changed.Generation = 2
	all := []*v1alpha1.Machine{machine("bare", ""), machine("fresh", "10.0.0.1"), machine("old", "10.0.0.2"), changed, machine("new", "10.0.0.4")}
	seen := map[string]visited{"fresh": {now.Add(-time.Minute), 1}, "old": {now.Add(-6 * time.Minute), 1}, "changed": {now.Add(-time.Second), 1}}
	var names []string
	for _, m := range due(all, seen, now, 5*time.Minute) {
		names = append(names, m.Name)
	}
	if got := strings.Join(names, " "); got != "new old changed" {
		t.Error(got)
	}
}

// statuses keeps what is written.
type statuses struct {
	mu     sync.Mutex
	m      *v1alpha1.Machine
	writes int
}

func (s *statuses) UpdateStatus(_ context.Context, _ string, change func(*v1alpha1.Machine) error) (*v1alpha1.Machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.m.DeepCopy()
	if err := change(next); err != nil {
		return nil, err
	}
	s.m = next
	s.writes++
	return next, nil
}

// A fleet of ten thousand must not be written with each look, and what is known must not look older than it is.
func TestOnlyNewsIsRecorded(t *testing.T) {
	kept := &statuses{m: machine("a", "10.0.0.1")}
	now := time.Unix(1e9, 0)
	s := New(Options{Statuses: kept, Now: func() time.Time { return now }})
	target := bmc.Target{Address: "10.0.0.1"}
	dead := &bmc.Error{Kind: bmc.Unreachable, Address: "10.0.0.1", What: "no answer"}
	for i, step := range []struct {
		after  time.Duration
		state  bmc.State
		err    error
		writes int
		want   v1alpha1.PowerStatus
	}{
		{0, bmc.On, nil, 1, v1alpha1.PowerStatus{State: "On"}},
		{5 * time.Minute, bmc.On, nil, 1, v1alpha1.PowerStatus{State: "On"}},
		{5 * time.Minute, bmc.Off, nil, 2, v1alpha1.PowerStatus{State: "Off"}},
		{5 * time.Minute, "", dead, 3, v1alpha1.PowerStatus{State: "Off", Reason: "Unreachable", Problem: dead.Error()}},
		{5 * time.Minute, "", dead, 3, v1alpha1.PowerStatus{State: "Off", Reason: "Unreachable", Problem: dead.Error()}},
		{time.Minute, "", &bmc.Error{Kind: bmc.Waiting}, 3, v1alpha1.PowerStatus{State: "Off", Reason: "Unreachable", Problem: dead.Error()}},
		{time.Minute, bmc.Off, nil, 4, v1alpha1.PowerStatus{State: "Off"}},
		{31 * time.Minute, bmc.Off, nil, 5, v1alpha1.PowerStatus{State: "Off"}},
		// The BMC answers, and cannot do what was asked: that is no problem of the BMC.
		{time.Minute, bmc.On, &bmc.Error{Kind: bmc.Unsupported}, 6, v1alpha1.PowerStatus{State: "On"}},
	} {
		now = now.Add(step.after)
		s.record(t.Context(), kept.m, target, step.state, step.err)
		got := *kept.m.Status.Power
		got.SeenAt = nil
		if kept.writes != step.writes || got != step.want {
			t.Errorf("step %d: %d writes, %+v; want %d, %+v", i, kept.writes, got, step.writes, step.want)
		}
	}
	if at := kept.m.Status.Power.SeenAt; !at.Equal(&metav1.Time{Time: now}) {
		t.Errorf("seen at %s, now %s", at, now)
	}
	kept.m.Spec.BMC.Address = "10.0.0.2"
	s.record(t.Context(), kept.m, target, bmc.Off, nil)
	if kept.m.Status.Power.State != "On" {
		t.Error("what the BMC of before said is recorded for the one of now")
	}
}

type machines []*v1alpha1.Machine

func (m machines) List() []*v1alpha1.Machine { return m }

// The refresh is paced, and ends when it is told to.
func TestRefreshIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all machines
		for i := range 100 {
			all = append(all, machine(strings.Repeat("m", i+1), "10.0.0.1"))
		}
		kept := &statuses{m: machine("x", "10.0.0.1")}
		s := New(Options{Statuses: kept, Machines: all, Pool: bmc.NewPool(bmc.PoolOptions{}), PerSecond: 10})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		time.Sleep(4950 * time.Millisecond)
		synctest.Wait()
		kept.mu.Lock()
		writes := kept.writes
		kept.mu.Unlock()
		if writes < 45 || writes > 52 {
			t.Errorf("%d machines were looked at in 5 s, with 10 a second", writes)
		}
		cancel()
		if err := <-ended; err == nil {
			t.Error("it does not say that it was told to stop")
		}
	})
}
