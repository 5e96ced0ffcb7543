package soak

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"coldrack.dev/internal/lab/rehearse"
)

// known is a machine of the rack, as the soak knows it.
type known struct {
	rehearse.Machine
	name string
	// installed is true from the end of its install on; ready after its node has reported.
	installed, ready bool
	told             bool       // to strangers
	address          netip.Addr // since it was installed
	failing          string     // why its last boot failed
	heard            time.Duration
	silent           bool
	boots            int
}

// machines are the known machines.
type machines struct {
	now      func() time.Duration
	patience time.Duration // that a machine may be silent while the server runs
	// installed is told once of each machine that was installed and has an address.
	installed func(victim)

	mu         sync.Mutex
	all        []*known
	heartbeats int
	failures   []failure
}

// failure is a boot or a report that came to nothing. It is forgiven if the server was down at some time of it; from is negative where
// that is no excuse.
type failure struct {
	from, to time.Duration
	text     string
}

func newMachines(fleet []rehearse.Machine, now func() time.Duration, patience time.Duration) *machines {
	m := &machines{now: now, patience: patience, installed: func(victim) {}}
	for _, each := range fleet {
		m.all = append(m.all, &known{Machine: each, name: nameOf(each)})
	}
	return m
}

// nameOf is what the operator calls a machine.
func nameOf(m rehearse.Machine) string { return fmt.Sprintf("known-%05d", m.Index) }

// take takes an event of the rack's in.
func (m *machines) take(e rehearse.Event) {
	if e.Machine < 0 || e.Machine >= len(m.all) || e.Bytes > 0 {
		return
	}
	now := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.all[e.Machine]
	k.heard, k.silent = now, false
	if e.What == "heartbeat" {
		m.heartbeats++
	}
	switch {
	case e.Address.IsValid() && k.installed:
		k.boots++
		if !k.address.IsValid() {
			k.address = e.Address
		} else if k.address != e.Address {
			// Not forgiven while the server is down: nobody answers then.
			m.failures = append(m.failures, failure{-1, -1, fmt.Sprintf("%s had address %s and was given %s", k.name, k.address, e.Address)})
			k.address = e.Address
		}
	case e.Phase == rehearse.Restarting:
		k.installed = true
	case e.Phase == rehearse.Ready:
		k.ready, k.failing = true, ""
	case e.Phase == rehearse.Lost || e.Phase == rehearse.Refused:
		k.ready, k.failing = false, e.Reason
		m.failures = append(m.failures, failure{now - e.Took, now, fmt.Sprintf("%s is %s: %s", k.name, e.Phase, e.Reason)})
	}
	if k.installed && k.address.IsValid() && k.ready && !k.told {
		k.told = true
		m.installed(victim{Machine: k.name, Identifiers: k.Inventory.Identifiers, Address: k.address})
	}
}

// takeFailures gives the failures since the last call, and machines that have fallen silent since: for longer than patience while the
// server was up.
func (m *machines) takeFailures(up func(from, to time.Duration) time.Duration) []failure {
	now := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.all {
		if k.installed && !k.silent && up(k.heard, now) > m.patience {
			k.silent = true
			m.failures = append(m.failures, failure{-1, now, fmt.Sprintf("%s has neither booted nor reported for %s", k.name, (now - k.heard).Round(time.Second))})
		}
	}
	taken := m.failures
	m.failures = nil
	return taken
}

// state of the machines.
type state struct{ all, installed, ready, boots, heartbeats int }

func (m *machines) state() state {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := state{all: len(m.all), heartbeats: m.heartbeats}
	for _, k := range m.all {
		s.boots += k.boots
		if k.installed {
			s.installed++
		}
		if k.ready {
			s.ready++
		}
	}
	return s
}

func (m *machines) allReady() bool {
	s := m.state()
	return s.ready == s.all
}

// addresses of the machines that are installed, by name.
func (m *machines) addresses() map[string]netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]netip.Addr{}
	for _, k := range m.all {
		if k.installed && k.address.IsValid() {
			out[k.name] = k.address
		}
	}
	return out
}

// unfinished says why machines are not ready, the most frequent reason first.
func (m *machines) unfinished() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	reasons := map[string]int{}
	for _, k := range m.all {
		switch {
		case k.ready:
		case k.failing != "":
			reasons[k.failing]++
		case k.installed:
			reasons["installed, has not reported"]++
		default:
			reasons["not installed yet"]++
		}
	}
	sorted := slices.SortedFunc(maps.Keys(reasons), func(a, b string) int { return reasons[b] - reasons[a] })
	for i, reason := range sorted {
		sorted[i] = fmt.Sprintf("%d: %s", reasons[reason], reason)
	}
	return sorted
}
