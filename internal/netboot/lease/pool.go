package lease

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Range is a range of addresses, both ends included.
type Range struct{ From, To netip.Addr }

// IsZero tells whether the range is not set.
func (r Range) IsZero() bool { return r == Range{} }

// Contains tells whether an address is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.From.IsValid() && r.From.Compare(a) <= 0 && a.Compare(r.To) <= 0
}

// State is what an address of a pool is in.
type State uint8

const (
	Free        State = iota // given to no one; client is who had it last
	Held                     // offered to client, or being probed for it
	Bound                    // leased to client
	Quarantined              // somebody answers at it
)

// Slot is an address of a pool that was ever touched.
type Slot struct {
	Address netip.Addr
	State   State
	Client  string    // as the server names it, without white space; empty: nobody's
	Until   time.Time // end of what State says; Free: unused
	// Probed is when nobody answered at the address for the last time.
	Probed     time.Time
	prev, next *Slot
}

// queue is a list of slots of one state, ordered by until, the earliest first; of free slots, by when
// they became free. As every state has its one duration, a slot nearly always goes to the end.
type queue struct {
	first, last *Slot
	size        int
}

func (q *queue) insert(s *Slot, ordered bool) {
	after := q.last
	for ordered && after != nil && after.Until.After(s.Until) {
		after = after.prev
	}
	s.prev = after
	if after == nil {
		s.next, q.first = q.first, s
	} else {
		s.next, after.next = after.next, s
	}
	if s.next == nil {
		q.last = s
	} else {
		s.next.prev = s
	}
	q.size++
}

func (q *queue) remove(s *Slot) {
	if s.prev == nil {
		q.first = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		q.last = s.prev
	} else {
		s.next.prev = s.prev
	}
	s.prev, s.next = nil, nil
	q.size--
}

// Pool gives the addresses of a range. Each operation takes the same time in a pool of ten addresses
// and of a million; memory goes with the addresses in use.
type Pool struct {
	within  Range
	slots   map[netip.Addr]*Slot
	clients map[string]*Slot // by client; a client has one slot at most
	untried netip.Addr       // next address that may have no slot; past the end, or invalid: none is left
	queues  [4]queue         // by state
}

// NewPool makes a pool of which nothing is given.
func NewPool(within Range) *Pool {
	return &Pool{within: within, slots: map[netip.Addr]*Slot{}, clients: map[string]*Slot{}, untried: within.From}
}

// Move gives a slot a new state. A client is remembered with a free slot, so that it gets the same
// address when it comes back, as long as nobody else needed it.
func (p *Pool) Move(s *Slot, to State, client string, until time.Time) {
	p.queues[s.State].remove(s)
	if s.Client != client {
		if p.clients[s.Client] == s {
			delete(p.clients, s.Client)
		}
		if before := p.clients[client]; before != nil && client != "" {
			p.queues[before.State].remove(before)
			before.State, before.Client = Free, ""
			p.queues[Free].insert(before, false)
		}
		s.Client = client
		if client != "" {
			p.clients[client] = s
		}
	}
	s.State, s.Until = to, until
	p.queues[to].insert(s, to != Free)
}

// Expire frees what has ended by now.
func (p *Pool) Expire(now time.Time) {
	for _, from := range []State{Held, Bound, Quarantined} {
		for s := p.queues[from].first; s != nil && !s.Until.After(now); s = p.queues[from].first {
			p.Move(s, Free, s.Client, time.Time{})
		}
	}
}

// At gives an address's slot, nil when the pool does not have the address.
func (p *Pool) At(a netip.Addr) *Slot {
	if !p.within.Contains(a) {
		return nil
	}
	s := p.slots[a]
	if s == nil {
		s = &Slot{Address: a}
		p.slots[a] = s
		p.queues[Free].insert(s, false)
	}
	return s
}

// Peek gives an address's slot, nil when it was never touched.
func (p *Pool) Peek(a netip.Addr) *Slot { return p.slots[a] }

// Range is what the pool gives addresses of.
func (p *Pool) Range() Range { return p.within }

// Of gives a client's slot, which may be free by now; nil when it has none.
func (p *Pool) Of(client string) *Slot { return p.clients[client] }

// search bounds how many unusable free addresses one allocation looks at.
const search = 4096

// Choose finds a free address for a client: the one it had, the one it wants, one that was never
// used, the one that has been free for longest. It is nil when there is none. usable says which addresses may
// be given at all.
func (p *Pool) Choose(client string, wanted netip.Addr, usable func(netip.Addr) bool) *Slot {
	if s := p.clients[client]; s != nil && s.State != Quarantined && usable(s.Address) {
		return s
	}
	if p.within.Contains(wanted) && usable(wanted) {
		if s := p.At(wanted); s.State == Free {
			return s
		}
	}
	tried := 0
	for ; p.within.Contains(p.untried) && tried < search; tried++ {
		a := p.untried
		p.untried = a.Next() // invalid after the last of all addresses
		if p.slots[a] == nil {
			if s := p.At(a); usable(a) {
				return s
			}
		}
	}
	for range min(p.queues[Free].size, search) {
		s := p.queues[Free].first
		if usable(s.Address) {
			return s
		}
		p.Move(s, Free, s.Client, time.Time{}) // to the end of the queue
	}
	return nil
}

// LongestQuarantined is the address that has rested for longest, nil when none rests.
func (p *Pool) LongestQuarantined() *Slot { return p.queues[Quarantined].first }

// Restore puts a lease back that was read from the store or kept over a change of configuration.
func (p *Pool) Restore(r Record) bool {
	s := p.At(r.Address)
	if s == nil {
		return false
	}
	p.Move(s, r.State, r.Client, r.Until)
	return true
}

// Records lists what has to survive a restart, in the order of addresses.
func (p *Pool) Records() []Record {
	var all []Record
	for _, kept := range []State{Bound, Quarantined} {
		for s := p.queues[kept].first; s != nil; s = s.next {
			all = append(all, Record{s.State, s.Address, s.Client, s.Until})
		}
	}
	slices.SortFunc(all, func(a, b Record) int { return a.Address.Compare(b.Address) })
	return all
}

// Count is how many addresses are in a state. Free ones count that were given before.
func (p *Pool) Count(of State) int { return p.queues[of].size }

// Latest keeps of each address the last record, in the records' order: where a client has changed its
// address, the later one must win.
func Latest(records []Record) []Record {
	last := map[netip.Addr]int{}
	for i, r := range records {
		last[r.Address] = i
	}
	var kept []Record
	for i, r := range records {
		if last[r.Address] == i {
			kept = append(kept, r)
		}
	}
	return kept
}

// Check says in what the pool's indexes contradict each other; it is for tests.
func (p *Pool) Check() error {
	seen := 0
	for state := range p.queues {
		q := &p.queues[state]
		size := 0
		var before *Slot
		for s := q.first; s != nil; s = s.next {
			switch {
			case int(s.State) != state || s.prev != before || p.slots[s.Address] != s || !p.within.Contains(s.Address):
				return fmt.Errorf("slot %+v is in queue %d", s, state)
			case s.Client != "" && p.clients[s.Client] != s:
				return fmt.Errorf("slot %+v is not its client's", s)
			case before != nil && s.State != Free && before.Until.After(s.Until):
				return fmt.Errorf("queue %d is out of order", state)
			}
			before = s
			size++
		}
		if q.last != before || q.size != size {
			return fmt.Errorf("queue %d: size %d, counted %d", state, q.size, size)
		}
		seen += size
	}
	if seen != len(p.slots) {
		return fmt.Errorf("%d slots in queues, %d in all", seen, len(p.slots))
	}
	for client, s := range p.clients {
		if s.Client != client {
			return fmt.Errorf("client %s has slot %+v", client, s)
		}
	}
	return nil
}
