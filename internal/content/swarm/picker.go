package swarm

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"time"
)

// Peer is a machine from which chunks may be had.
type Peer struct {
	ID string
	// Near peers are behind the same switch: bytes from them cost the network's core nothing.
	Near bool
}

// Limits of what one machine asks for at once.
type Limits struct {
	InFlight int // chunks from all peers together
	PerPeer  int // chunks from one peer
	Far      int // chunks from far peers, as long as there is a near one
	// Window is how many chunks from the first missing one on are chosen from, 0 for all. The image is written in
	// order while it arrives, and what is far ahead would have to wait. Rounded up to 64.
	Window int
}

// UsualLimits were found by simulation: more in flight makes each chunk late, fewer leaves links idle. They bound
// what is in memory, too: each chunk in flight is held until it has been compared with its digest.
func UsualLimits() Limits { return Limits{InFlight: 4, PerPeer: 1, Far: 2, Window: 192} }

// UsualSlots is how many chunks a machine gives at once, and reserved how many of these places are for takers that
// have no more than itself.
const (
	UsualSlots = 5
	reserved   = 2
)

// Admit says whether a machine that gives active chunks already, of at most slots, gives another to a taker. Takers
// that are behind are preferred, because an install is over when the last machine has everything.
func Admit(active, slots, mine, theirs int) bool {
	if theirs > mine {
		slots = max(slots-reserved, 1)
	}
	return active < slots
}

// Failure is why a chunk did not come from a peer.
type Failure int

// What may go wrong with a peer.
const (
	Busy    Failure = iota // it has no room for another taker now
	Missing                // it does not have the chunk
	Broken                 // it cannot be reached, or stopped in the middle
	Bad                    // what it sent has another digest: never asked again
)

// lostAfter failures in a row a peer counts as gone.
const lostAfter = 2

// Pick is one chunk to fetch from one peer.
type Pick struct {
	Chunk int
	Peer  string
}

// Picker chooses for one machine and one blob. It is not safe for concurrent use.
//
// Order of preference: the rarest chunk, by what the peers have told, that a near peer gives; with some room kept
// for chunks that no near machine has yet, so that each chunk enters a rack about once; and a far copy of what is
// near only when nothing else is to be had. Ties are broken by lot, so that machines in the same position differ.
// The origin is not the Picker's to ask: a chunk comes from there when the Tracker grants it.
type Picker struct {
	limits Limits
	dice   *rand.Rand

	have   *Set
	flying *Set // chunks in flight, from wherever
	flight map[int][]flight
	total  int // in flight from peers
	far    int // of these, from far peers
	peers  []*remote
	byID   map[string]*remote
	avail  []uint16      // how many peers have the chunk
	usual  time.Duration // that a chunk takes

	nearAny []uint64 // scratch space of Next: chunks that any near peer has
}

type flight struct {
	from  *remote // nil is the origin
	far   bool
	since time.Time
}

type remote struct {
	Peer
	has      *Set
	inFlight int
	load     int // as it told
	busy     int // refusals in a row
	failures int // in a row
	notUntil time.Time
	banned   bool
	listed   bool
}

// NewPicker returns a Picker for a machine that has the chunks in have, which from now on is the Picker's.
func NewPicker(have *Set, limits Limits, dice *rand.Rand) *Picker {
	return &Picker{
		limits: limits, dice: dice, have: have, flying: NewSet(have.size), flight: map[int][]flight{},
		byID: map[string]*remote{}, avail: make([]uint16, have.size),
		nearAny: make([]uint64, len(have.words)),
	}
}

// Have is what the machine has. It must not be changed.
func (p *Picker) Have() *Set { return p.have }

// InFlight is how many chunks are being fetched from peers.
func (p *Picker) InFlight() int { return p.total }

// SetPeers makes list the machines to choose from. What is known of those that stay is kept, bans for ever.
func (p *Picker) SetPeers(list []Peer) {
	for _, r := range p.peers {
		r.listed = false
	}
	for _, l := range list {
		r := p.byID[l.ID]
		if r == nil {
			r = &remote{Peer: l, has: NewSet(p.have.size)}
			p.byID[l.ID] = r
			p.peers = append(p.peers, r)
		}
		r.Near, r.listed = l.Near, true
	}
	p.peers = slices.DeleteFunc(p.peers, func(r *remote) bool {
		if r.listed {
			return false
		}
		p.setHas(r, NewSet(p.have.size))
		if !r.banned && r.inFlight == 0 {
			delete(p.byID, r.ID)
		}
		return true
	})
}

// Tell records what a peer has and how many it serves at the moment.
func (p *Picker) Tell(id string, has *Set, load int) {
	if r := p.byID[id]; r != nil && r.listed && !r.banned {
		r.load, r.failures = load, 0
		p.setHas(r, has)
	}
}

func (p *Picker) setHas(r *remote, has *Set) {
	for i, now := range changed(r.has, has) {
		if now {
			p.avail[i]++
		} else {
			p.avail[i]--
		}
	}
	r.has.Copy(has)
}

// Next chooses what to fetch now; the caller begins it, and ends it by Arrived or Failed.
func (p *Picker) Next(now time.Time) (Pick, bool) {
	if p.have.Full() {
		return Pick{}, false
	}
	if p.total >= p.limits.InFlight {
		// What comes from a machine that has died must not keep all places.
		if p.total >= p.limits.InFlight+p.limits.InFlight/2 {
			return Pick{}, false
		}
		return p.again(now)
	}
	lonely := p.look()
	farLimit := p.limits.Far
	if lonely {
		farLimit = p.limits.InFlight
	}
	mayFar := p.far < farLimit
	// One far chunk that the rack lacks is always under way.
	if mayFar && p.far == 0 {
		if pick, ok := p.from(now, false, p.nearAny); ok {
			return pick, true
		}
	}
	if pick, ok := p.from(now, true, nil); ok {
		return pick, true
	}
	if mayFar {
		if pick, ok := p.from(now, false, p.nearAny); ok {
			return pick, true
		}
		if p.total == 0 {
			if pick, ok := p.from(now, false, nil); ok {
				return pick, true
			}
		}
	}
	return p.again(now)
}

// look finds what near peers have and says whether there is no near peer.
func (p *Picker) look() (lonely bool) {
	clear(p.nearAny)
	lonely = true
	for _, r := range p.peers {
		if r.Near && !r.banned && r.failures < lostAfter {
			lonely = false
			for i, w := range r.has.words {
				p.nearAny[i] |= w
			}
		}
	}
	return lonely
}

// from takes the rarest chunk that the least busy peer has of those near or far, except some. To choose the peer
// first keeps all from asking the one machine that has the rarest chunk of all.
func (p *Picker) from(now time.Time, near bool, except []uint64) (Pick, bool) {
	var best *remote
	ties := 0
	for _, r := range p.peers {
		if r.Near != near || !p.ready(r, now) || !p.offers(r, except) {
			continue
		}
		switch {
		case best == nil || r.burden() < best.burden():
			best, ties = r, 1
		case r.burden() == best.burden():
			if ties++; p.dice.IntN(ties) == 0 {
				best = r
			}
		}
	}
	if best == nil {
		return Pick{}, false
	}
	i := p.rarest(best.has.words, except)
	p.fly(i, best, now)
	return Pick{i, best.ID}, true
}

func (r *remote) burden() int { return r.inFlight*8 + r.load }

func (p *Picker) ready(r *remote, now time.Time) bool {
	most := p.limits.PerPeer
	if len(p.peers) < p.limits.InFlight {
		most *= 2 // so that a pair of machines does not wait between chunks
	}
	return !r.banned && r.inFlight < most && !now.Before(r.notUntil)
}

func (p *Picker) offers(r *remote, except []uint64) bool {
	for w, offered := range r.has.words[:p.horizon()] {
		wanted := offered &^ p.have.words[w] &^ p.flying.words[w]
		if except != nil {
			wanted &^= except[w]
		}
		if wanted != 0 {
			return true
		}
	}
	return false
}

// rarest of the offered chunks that are neither here nor in flight nor in except; -1 if there is none.
func (p *Picker) rarest(offered, except []uint64) int {
	best, least, ties := -1, uint16(0), 0
	for w := range offered[:p.horizon()] {
		wanted := offered[w] &^ p.have.words[w] &^ p.flying.words[w]
		if except != nil {
			wanted &^= except[w]
		}
		for ; wanted != 0; wanted &= wanted - 1 {
			i := w*64 + bits.TrailingZeros64(wanted)
			switch n := p.avail[i]; {
			case best < 0 || n < least:
				best, least, ties = i, n, 1
			case n == least:
				if ties++; p.dice.IntN(ties) == 0 {
					best = i
				}
			}
		}
	}
	return best
}

func (p *Picker) fly(i int, r *remote, now time.Time) {
	far := r != nil && !r.Near
	p.flight[i] = append(p.flight[i], flight{r, far, now})
	p.flying.Add(i)
	if r == nil {
		return
	}
	r.inFlight++
	p.total++
	if far {
		p.far++
	}
}

// again is the end game: when there is nothing else to fetch, what takes far longer than usual is fetched from a
// second peer as well.
func (p *Picker) again(now time.Time) (Pick, bool) {
	patience := max(time.Second, 3*p.usual)
	chunk, oldest := -1, now.Add(-patience)
	for i, f := range p.flight {
		if len(f) == 1 && (f[0].since.Before(oldest) || f[0].since.Equal(oldest) && i < chunk) {
			chunk, oldest = i, f[0].since
		}
	}
	if chunk < 0 {
		return Pick{}, false
	}
	first, second := p.flight[chunk][0].from, (*remote)(nil)
	for _, r := range p.peers {
		if r != first && p.ready(r, now) && r.has.Has(chunk) && (second == nil || r.Near && !second.Near || r.Near == second.Near && r.burden() < second.burden()) {
			second = r
		}
	}
	if second == nil {
		return Pick{}, false
	}
	p.fly(chunk, second, now)
	return Pick{chunk, second.ID}, true
}

// Reserve begins to fetch a chunk from the origin. It is false when that makes no sense any more.
func (p *Picker) Reserve(now time.Time, chunk int) bool {
	if p.have.Has(chunk) || slices.ContainsFunc(p.flight[chunk], func(f flight) bool { return f.from == nil }) {
		return false
	}
	p.fly(chunk, nil, now)
	return true
}

// Release ends a fetch from the origin that failed.
func (p *Picker) Release(chunk int) { p.land(chunk, nil) }

// Wants says whether this machine could use the origin: it misses chunks that nobody whom it knows has, or has room
// for more than its peers give. Idle is true when they give it nothing at all.
func (p *Picker) Wants() (wants, idle bool) {
	if p.have.count+len(p.flight) >= p.have.size {
		return false, false
	}
	if p.total < p.limits.InFlight {
		return true, !slices.ContainsFunc(p.peers, func(r *remote) bool { return r.inFlight > 0 && r.failures == 0 })
	}
	for i, n := range p.avail {
		if n == 0 && !p.have.Has(i) && !p.flying.Has(i) {
			return true, false
		}
	}
	return false, false
}

// Arrived records a chunk that was verified and kept, and returns the other fetches of it, which the caller
// cancels and need not end.
func (p *Picker) Arrived(now time.Time, chunk int, from string) (others []Pick) {
	for _, f := range p.flight[chunk] {
		switch {
		case f.from == nil && from == "" || f.from != nil && f.from.ID == from:
			took := now.Sub(f.since)
			if p.usual == 0 {
				p.usual = took
			}
			p.usual += (took - p.usual) / 8
		case f.from == nil:
			others = append(others, Pick{chunk, ""})
		default:
			others = append(others, Pick{chunk, f.from.ID})
		}
	}
	for len(p.flight[chunk]) > 0 {
		p.land(chunk, p.flight[chunk][0].from)
	}
	if r := p.byID[from]; r != nil {
		r.busy, r.failures = 0, 0
	}
	p.have.Add(chunk)
	return others
}

// Failed ends a fetch without its chunk.
func (p *Picker) Failed(now time.Time, pick Pick, why Failure) {
	r := p.byID[pick.Peer]
	if r == nil || !p.land(pick.Chunk, r) {
		return
	}
	switch why {
	case Busy:
		// It is busy for about as long as somebody else's chunk takes.
		r.busy++
		wait := max(p.usual, 10*time.Millisecond) / 4 << min(r.busy, 4)
		r.notUntil = now.Add(p.jitter(min(wait, 2*time.Second)))
	case Missing:
		without := r.has.Clone()
		without.Remove(pick.Chunk)
		p.setHas(r, without)
	case Broken:
		p.broken(now, r)
	case Bad:
		r.banned = true
		p.setHas(r, NewSet(p.have.size))
	}
}

func (p *Picker) jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(p.dice.Int64N(int64(d)))
}

// land removes one fetch and says whether there was one.
func (p *Picker) land(chunk int, r *remote) bool {
	list := p.flight[chunk]
	at := slices.IndexFunc(list, func(f flight) bool { return f.from == r })
	if at < 0 {
		return false
	}
	far := list[at].far
	if list = slices.Delete(list, at, at+1); len(list) == 0 {
		delete(p.flight, chunk)
		p.flying.Remove(chunk)
	} else {
		p.flight[chunk] = list
	}
	if r == nil {
		return true
	}
	r.inFlight--
	p.total--
	if far {
		p.far--
	}
	if !r.listed && !r.banned && r.inFlight == 0 {
		delete(p.byID, r.ID)
	}
	return true
}

// Forget takes a chunk from what the machine has: its copy was damaged.
func (p *Picker) Forget(chunk int) { p.have.Remove(chunk) }

// Flying says whether chunk i is on its way here.
func (p *Picker) Flying(i int) bool { return p.flying.Has(i) }

// Unreachable records that a peer did not answer when it was asked what it has.
func (p *Picker) Unreachable(now time.Time, id string) {
	if r := p.byID[id]; r != nil {
		p.broken(now, r)
	}
}

// broken keeps a peer from being tried again for seconds: it may be dead, and then each try takes as long.
func (p *Picker) broken(now time.Time, r *remote) {
	r.failures++
	r.notUntil = now.Add(p.jitter(2 * time.Second << min(r.failures, 4)))
}

// Lost returns the peers that cannot be reached, for the Tracker.
func (p *Picker) Lost() []string {
	var lost []string
	for _, r := range p.peers {
		if r.failures >= lostAfter {
			lost = append(lost, r.ID)
		}
	}
	return lost
}

// Starving says that this machine has room and nothing to fill it with, so that it should ask its peers for news
// at once.
func (p *Picker) Starving() bool {
	return !p.have.Full() && p.total < p.limits.InFlight/2
}

// horizon is how many words of the sets are looked at: those of the window, which begins at the first chunk that
// is missing.
func (p *Picker) horizon() int {
	n := len(p.have.words)
	if p.limits.Window == 0 {
		return n
	}
	for w, have := range p.have.words {
		if ^have != 0 {
			return min(n, w+(p.limits.Window+63)/64)
		}
	}
	return n
}
