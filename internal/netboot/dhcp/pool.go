package dhcp

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

func toUint32(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func toAddr(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

// state is what an address of a pool is in.
type state uint8

const (
	free        state = iota // given to no one; client is who had it last
	held                     // offered to client, or being probed for it
	bound                    // leased to client
	quarantined              // somebody answers at it
)

// slot is an address of a pool that was ever touched.
type slot struct {
	address netip.Addr
	state   state
	client  string    // see clientKey; empty: nobody's
	until   time.Time // end of what state says; free: unused
	// probed is when nobody answered at the address for the last time.
	probed     time.Time
	prev, next *slot
}

// queue is a list of slots of one state, ordered by until, the earliest first; of free slots, by when
// they became free. As every state has its one duration, a slot nearly always goes to the end.
type queue struct {
	first, last *slot
	size        int
}

func (q *queue) insert(s *slot, ordered bool) {
	after := q.last
	for ordered && after != nil && after.until.After(s.until) {
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

func (q *queue) remove(s *slot) {
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

// pool gives the addresses of a range. Each operation takes the same time in a pool of ten addresses
// and of a million; memory goes with the addresses in use.
type pool struct {
	within  Range
	slots   map[netip.Addr]*slot
	clients map[string]*slot // by client; a client has one slot at most
	untried uint32           // next address that may have no slot; past the end: none is left
	queues  [4]queue         // by state
}

func newPool(within Range) *pool {
	return &pool{within: within, slots: map[netip.Addr]*slot{}, clients: map[string]*slot{}, untried: toUint32(within.From)}
}

// move gives a slot a new state. A client is remembered with a free slot, so that it gets the same
// address when it comes back, as long as nobody else needed it.
func (p *pool) move(s *slot, to state, client string, until time.Time) {
	p.queues[s.state].remove(s)
	if s.client != client {
		if p.clients[s.client] == s {
			delete(p.clients, s.client)
		}
		if before := p.clients[client]; before != nil && client != "" {
			p.queues[before.state].remove(before)
			before.state, before.client = free, ""
			p.queues[free].insert(before, false)
		}
		s.client = client
		if client != "" {
			p.clients[client] = s
		}
	}
	s.state, s.until = to, until
	p.queues[to].insert(s, to != free)
}

// expire frees what has ended by now.
func (p *pool) expire(now time.Time) {
	for _, from := range []state{held, bound, quarantined} {
		for s := p.queues[from].first; s != nil && !s.until.After(now); s = p.queues[from].first {
			p.move(s, free, s.client, time.Time{})
		}
	}
}

// at gives an address's slot, nil when the pool does not have the address.
func (p *pool) at(a netip.Addr) *slot {
	if !p.within.Contains(a) {
		return nil
	}
	s := p.slots[a]
	if s == nil {
		s = &slot{address: a}
		p.slots[a] = s
		p.queues[free].insert(s, false)
	}
	return s
}

// of gives a client's slot, which may be free by now; nil when it has none.
func (p *pool) of(client string) *slot { return p.clients[client] }

// search bounds how many unusable free addresses one allocation looks at.
const search = 4096

// choose finds a free address for a client: the one it had, the one it wants, one that was never
// used, the one that has been free for longest. It is nil when there is none. usable says which addresses may
// be given at all.
func (p *pool) choose(client string, wanted netip.Addr, usable func(netip.Addr) bool) *slot {
	if s := p.clients[client]; s != nil && s.state != quarantined && usable(s.address) {
		return s
	}
	if p.within.Contains(wanted) && usable(wanted) {
		if s := p.at(wanted); s.state == free {
			return s
		}
	}
	tried := 0
	for end := toUint32(p.within.To); p.untried >= toUint32(p.within.From) && p.untried <= end && tried < search; tried++ {
		a := toAddr(p.untried)
		p.untried++
		if p.slots[a] == nil {
			if s := p.at(a); usable(a) {
				return s
			}
		}
	}
	for range min(p.queues[free].size, search) {
		s := p.queues[free].first
		if usable(s.address) {
			return s
		}
		p.move(s, free, s.client, time.Time{}) // to the end of the queue
	}
	return nil
}

// longestQuarantined is the address that has rested for longest, nil when none rests.
func (p *pool) longestQuarantined() *slot { return p.queues[quarantined].first }

// restore puts a lease back that was read from the store or kept over a change of configuration.
func (p *pool) restore(r record) bool {
	s := p.at(r.address)
	if s == nil {
		return false
	}
	p.move(s, r.state, r.client, r.until)
	return true
}

// records lists what has to survive a restart, in the order of addresses.
func (p *pool) records() []record {
	var all []record
	for _, kept := range []state{bound, quarantined} {
		for s := p.queues[kept].first; s != nil; s = s.next {
			all = append(all, record{s.state, s.address, s.client, s.until})
		}
	}
	slices.SortFunc(all, func(a, b record) int { return a.address.Compare(b.address) })
	return all
}
