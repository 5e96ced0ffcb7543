package fleet

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// signal wakes everybody who waits on its channel, once.
type signal chan struct{}

func newSignal() signal { return make(signal) }

// Changed returns two channels: one is closed when the named machine changes, the other when something
// changes on which plans of many machines depend. Take them before looking, so that no change is missed.
func (f *Fleet) Changed(name string) (machine, any <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.changed[name]
	if !ok {
		s = newSignal()
		f.changed[name] = s
	}
	return s, f.any
}

// Touch says that a Profile, Image or Subnet changed.
func (f *Fleet) Touch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.any)
	f.any = newSignal()
}

// SetRestored says when the store was restored from a backup; zero: it was not, or a person has confirmed it.
func (f *Fleet) SetRestored(at time.Time) {
	f.mu.Lock()
	f.restoredAt, f.unknownNodes = at, map[string]UnknownNode{}
	close(f.restoredChanged)
	f.restoredChanged = newSignal()
	f.mu.Unlock()
	f.Touch()
}

// RestoredAt is when the store was restored from a backup, as long as no person has confirmed it; zero: nothing is withheld. changed is closed
// when that becomes another.
func (f *Fleet) RestoredAt() (at time.Time, changed <-chan struct{}) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.restoredAt, f.restoredChanged
}

// UnknownNode is a node with an identity of ours, of whose machine nothing is known.
type UnknownNode struct {
	Machine, Address string
	SeenAt           time.Time
	// IssuedAt is when its certificate was issued.
	IssuedAt time.Time
}

// maxUnknownNodes is how many are remembered. Each has had a certificate of ours.
const maxUnknownNodes = 10_000

// UnknownNode records one, while the store counts as restored.
func (f *Fleet) UnknownNode(name, address string, issued time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, has := f.unknownNodes[name]; f.restoredAt.IsZero() || !has && len(f.unknownNodes) >= maxUnknownNodes {
		return
	}
	f.unknownNodes[name] = UnknownNode{Machine: name, Address: address, SeenAt: f.now(), IssuedAt: issued}
}

// UnknownNodes are those whose machine is still not known, in no order.
func (f *Fleet) UnknownNodes() (all []UnknownNode) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for name, n := range f.unknownNodes {
		if _, known := f.machines[name]; !known {
			all = append(all, n)
		}
	}
	return all
}

// wake needs f.mu.
func (f *Fleet) wake(name string) {
	if s, ok := f.changed[name]; ok {
		close(s)
		delete(f.changed, name)
	}
}

// machineLocks let one part of the server at a time write a machine. The store would refuse what is based on an old version
// anyway, but only after all the work of a write.
type machineLocks struct {
	mu     sync.Mutex
	byName map[string]*machineLock
}

type machineLock struct {
	mu    sync.Mutex
	users int // that hold the lock or wait for it
}

// Write locks a machine for a caller who reads it, writes it, and Puts the answer. done unlocks it.
func (f *Fleet) Write(name string) (done func()) {
	f.locks.mu.Lock()
	l := f.locks.byName[name]
	if l == nil {
		l = &machineLock{}
		f.locks.byName[name] = l
	}
	l.users++
	f.locks.mu.Unlock()
	l.mu.Lock()
	return func() {
		l.mu.Unlock()
		f.locks.mu.Lock()
		defer f.locks.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(f.locks.byName, name)
		}
	}
}

// dirtySet collects names that a controller shall look at. It holds each name once, so it is bounded by
// the number of machines however fast they report.
type dirtySet struct {
	mu    sync.Mutex
	names map[string]bool
	ready chan struct{} // capacity 1
}

func newDirtySet() *dirtySet {
	return &dirtySet{names: map[string]bool{}, ready: make(chan struct{}, 1)}
}

// add marks a name as dirty; an empty one only wakes the caller of NextDirty.
func (d *dirtySet) add(name string) {
	if name != "" {
		d.mu.Lock()
		d.names[name] = true
		d.mu.Unlock()
	}
	select {
	case d.ready <- struct{}{}:
	default:
	}
}

// NextDirty waits until machines have something new to tell and returns their names, sorted. It has one
// caller at a time: what it returned, it forgets.
func (f *Fleet) NextDirty(ctx context.Context) ([]string, error) {
	d := f.dirty
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-d.ready:
		}
		if ctx.Err() != nil { // both were ready: the news is the next caller's
			d.add("")
			return nil, ctx.Err()
		}
		d.mu.Lock()
		dirty := d.names
		// A new one: to walk through a map takes as long as it was ever large.
		d.names = map[string]bool{}
		d.mu.Unlock()
		if len(dirty) > 0 {
			return slices.Sorted(maps.Keys(dirty)), nil
		}
	}
}
