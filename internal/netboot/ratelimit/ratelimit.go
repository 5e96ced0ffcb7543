// Package ratelimit bounds how often one address is answered, and one complaint logged. It remembers a bounded number of either.
package ratelimit

import (
	"maps"
	"net/netip"
	"sync"
	"time"
)

// Limiter lets each client have Burst answers at once and then PerSecond. The zero values let nobody have any.
type Limiter struct {
	interval, burst time.Duration
	max             int

	mu sync.Mutex
	// due is when a client would have had its share of all that it got (the generic cell rate algorithm of ATM).
	due     map[netip.Addr]time.Time
	refused uint64
}

// New makes a Limiter that remembers up to max clients. Beyond, those that it has no room for share one place.
func New(perSecond, burst, max int) *Limiter {
	interval := time.Second / time.Duration(perSecond)
	return &Limiter{interval: interval, burst: interval * time.Duration(burst), max: max, due: map[netip.Addr]time.Time{}}
}

// Allow says whether a client is answered now. A client is an IPv4 address, or an IPv6 network of 64 bits, of which one host may have all.
func (l *Limiter) Allow(client netip.Addr, now time.Time) bool {
	client = client.Unmap().WithZone("")
	if client.Is6() {
		prefix, _ := client.Prefix(64)
		client = prefix.Addr()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	due, known := l.due[client]
	if !known && len(l.due) >= l.max {
		maps.DeleteFunc(l.due, func(_ netip.Addr, due time.Time) bool { return !due.After(now) })
		if len(l.due) >= l.max {
			client = netip.Addr{}
			due = l.due[client]
		}
	}
	if due.Before(now) {
		due = now
	}
	if due.Sub(now)+l.interval > l.burst {
		l.refused++
		return false
	}
	l.due[client] = due.Add(l.interval)
	return true
}

// Refused is how often somebody was not answered.
func (l *Limiter) Refused() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused
}
