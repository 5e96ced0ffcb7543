package swarm

import (
	"maps"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Bounds of what a Tracker keeps, so that no machine can make it grow.
const (
	maxCrowds  = 64
	maxMembers = 20000
)

// TrackerOptions tune a Tracker; the zero value of each field means the default.
type TrackerOptions struct {
	// Few machines, or fewer, are not brought together: the origin reaches so many as fast, and it costs them less.
	// Default 0.
	Few int
	// Near and Far are how many peers a machine is told of in its own rack and elsewhere. Default 16 and 8; a
	// machine without neighbours in its rack gets as many from elsewhere.
	Near, Far int
	// Slots is how many chunks the origin sends at once. Default 12: fewer leave a fast origin idle, more make
	// the first chunks late.
	Slots int
	// PerMember is how many of these go to one machine. Default 3.
	PerMember int
	// Extra is how many further images the origin sends where machines are idle. Default 2. Chunks that nobody
	// has are always sent.
	Extra float64
	// Lease is how long a granted chunk may take before it is granted to another. Default 30 s.
	Lease time.Duration
	// Silence after which a machine counts as gone, as it does after two silent intervals when others cannot reach
	// it, either. Default 6 s, and never less than four of the intervals that it was told. One that was only slow
	// is back with its next announcement.
	Silence time.Duration
	// Dice are the source of chance; nil seeds one.
	Dice *rand.Rand
}

// Member is a machine that takes part.
type Member struct {
	ID string
	// Rack groups machines behind one switch; machines with none are near each other.
	Rack string
	// Address is HOST:PORT where it serves; empty when it does not.
	Address string
	// Key is the fingerprint of its certificate's public key.
	Key string
}

// Announcement is what a machine says of itself.
type Announcement struct {
	Have *Set
	// Wants and Idle as the Picker says.
	Wants, Idle bool
	// Returned are chunks that were granted and did not come.
	Returned []int
	// Lost peers could not be reached, Bad ones sent something else than the digest promises.
	Lost, Bad []string
	// Known is Answer.PeersVersion of the list that the machine has, 0 for none.
	Known uint32
	// Leaving ends its membership.
	Leaving bool
}

// Contact is a peer as another machine is told of it.
type Contact struct {
	Member
	Near bool
}

// Answer tells a machine what to do until it announces itself again.
type Answer struct {
	// Peers to know from now on; unchanged, and left out, while PeersVersion is the one that the machine knows.
	Peers        []Contact
	PeersVersion uint32
	// Alone says to fetch from the origin whatever is missing, without being granted it: there are few others.
	Alone bool
	// Grants are chunks to fetch from the origin now.
	Grants []int
	// Again is when to announce at the latest; Ask is when to ask again for what was not granted.
	Again, Ask time.Duration
	// Expelled are peers that this announcement made the Tracker drop for good.
	Expelled []string
}

// Tracker brings the machines of each blob together. It is safe for concurrent use.
type Tracker struct {
	opts TrackerOptions

	mu     sync.Mutex
	dice   *rand.Rand
	crowds map[crowdKey]*crowd
}

// A liar about the number of chunks is in a crowd of its own.
type crowdKey struct {
	blob string
	size int
}

// NewTracker returns a Tracker.
func NewTracker(o TrackerOptions) *Tracker {
	or := func(v *int, usual int) {
		if *v == 0 {
			*v = usual
		}
	}
	or(&o.Near, 16)
	or(&o.Far, 8)
	or(&o.Slots, 12)
	or(&o.PerMember, 3)
	if o.Extra == 0 {
		o.Extra = 2
	}
	if o.Lease == 0 {
		o.Lease = 30 * time.Second
	}
	if o.Silence == 0 {
		o.Silence = 6 * time.Second
	}
	t := &Tracker{opts: o, dice: o.Dice, crowds: map[crowdKey]*crowd{}}
	if t.dice == nil {
		t.dice = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	return t
}

// crowd are the machines of one blob.
type crowd struct {
	size    int
	members map[string]*member
	racks   map[string][]*member
	order   []string             // of racks
	all     []*member            // for drawing lots
	copies  []int32              // of each chunk among the members
	nowhere *Set                 // chunks that no member has and that are not granted
	leases  map[int]lease        // by chunk
	usual   time.Duration        // that a granted chunk takes
	granted int                  // chunks, since the crowd came together
	extra   int                  // of these, chunks that were somewhere already
	bad     map[string]reporters // by culprit
	full    int                  // members that have everything
	swept   time.Time
	hungry  int // machines that asked for more than was granted since waiting was last counted
	waiting int
	counted time.Time
}

type lease struct {
	to    *member
	since time.Time
}

type reporters map[string]bool

type member struct {
	Member
	have     *Set
	heard    time.Time
	silence  time.Duration
	known    []*member // whom it was told of
	version  uint32
	avoid    map[*member]bool
	lostBy   reporters
	leases   int
	expelled bool
	gone     bool
}

// Announce takes in what m says about a blob and answers it.
func (t *Tracker) Announce(now time.Time, blob string, m Member, a Announcement) Answer {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := crowdKey{blob, a.Have.Size()}
	c := t.crowds[key]
	if a.Leaving {
		if c != nil && c.members[m.ID] != nil {
			c.remove(c.members[m.ID])
			t.forget(key, c)
		}
		return Answer{}
	}
	if c == nil {
		if len(t.crowds) >= maxCrowds {
			t.sweepAll(now)
		}
		if len(t.crowds) >= maxCrowds {
			return Answer{Again: time.Minute, Ask: time.Minute}
		}
		c = newCrowd(a.Have.Size())
		t.crowds[key] = c
	}
	c.sweep(now, t.opts.Silence, t.opts.Lease)
	me := c.join(m, now, t.dice)
	if me == nil {
		return Answer{Again: time.Minute, Ask: time.Minute}
	}
	c.has(me, a.Have, now)
	for _, i := range a.Returned {
		c.release(i, me)
	}
	answer := Answer{Again: c.again()}
	me.heard, me.silence = now, max(t.opts.Silence, 4*answer.Again)
	answer.Expelled = c.complaints(me, a)
	if len(c.members) <= t.opts.Few {
		answer.Alone, answer.Ask = true, answer.Again
		return answer
	}
	t.introduce(c, me)
	if answer.PeersVersion = me.version; a.Known != me.version {
		for _, k := range me.known {
			answer.Peers = append(answer.Peers, Contact{k.Member, k.Rack == me.Rack})
		}
	}
	if a.Wants {
		answer.Grants = t.grant(c, me, now, a.Idle)
		answer.Ask = c.ask(now, len(answer.Grants) == 0)
	}
	return answer
}

// Leave removes a machine from all crowds.
func (t *Tracker) Leave(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, c := range t.crowds {
		if m := c.members[id]; m != nil {
			c.remove(m)
			t.forget(key, c)
		}
	}
}

func (t *Tracker) sweepAll(now time.Time) {
	for key, c := range t.crowds {
		c.swept = time.Time{}
		c.sweep(now, t.opts.Silence, t.opts.Lease)
		t.forget(key, c)
	}
}

func (t *Tracker) forget(key crowdKey, c *crowd) {
	if len(c.members) == 0 {
		delete(t.crowds, key)
	}
}

// Crowd sums up the machines of one blob, for people.
type Crowd struct {
	Blob     string
	Chunks   int
	Members  int
	Complete int // members that have everything
	// Granted chunks are what the origin was asked to send, and Extra those of them that were a member's already.
	Granted, Extra int
}

// Crowds returns what is going on, in no order.
func (t *Tracker) Crowds(now time.Time) []Crowd {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweepAll(now)
	var out []Crowd
	for key, c := range t.crowds {
		s := Crowd{Blob: key.blob, Chunks: key.size, Members: len(c.members), Granted: c.granted, Extra: c.extra}
		for _, m := range c.members {
			if m.have.Full() {
				s.Complete++
			}
		}
		out = append(out, s)
	}
	return out
}

func newCrowd(size int) *crowd {
	c := &crowd{
		size: size, members: map[string]*member{}, racks: map[string][]*member{}, copies: make([]int32, size),
		nowhere: NewSet(size), leases: map[int]lease{}, bad: map[string]reporters{},
	}
	for i := range size {
		c.nowhere.Add(i)
	}
	return c
}

// idleInterval of those who only give.
const idleInterval = 30 * time.Second

// interval keeps the announcements of a crowd below some 500 a second.
func (c *crowd) interval() time.Duration {
	return max(time.Second, time.Duration(len(c.members))*2*time.Millisecond)
}

// again is when a member shall speak next. Where all have everything they are there for who comes, and that he cannot
// reach one that is gone he finds out himself.
func (c *crowd) again() time.Duration {
	if c.full == len(c.members) {
		return max(idleInterval, c.interval())
	}
	return c.interval()
}

func (c *crowd) join(m Member, now time.Time, dice *rand.Rand) *member {
	me := c.members[m.ID]
	if me != nil && me.Member == m {
		return me
	}
	if me != nil {
		c.remove(me) // it booted or began again, or was carried elsewhere
	}
	if len(c.members) >= maxMembers {
		return nil
	}
	me = &member{Member: m, have: NewSet(c.size), heard: now, avoid: map[*member]bool{}, lostBy: reporters{}, version: dice.Uint32()}
	me.expelled = len(c.bad[m.ID]) >= expelBy
	c.members[m.ID] = me
	c.all = append(c.all, me)
	if c.racks[m.Rack] == nil {
		c.order = append(c.order, m.Rack)
	}
	c.racks[m.Rack] = append(c.racks[m.Rack], me)
	return me
}

func (c *crowd) remove(m *member) {
	c.has(m, NewSet(c.size), time.Time{})
	for i, l := range c.leases {
		if l.to == m {
			c.release(i, m)
		}
	}
	m.gone = true
	delete(c.members, m.ID)
	same := func(other *member) bool { return other == m }
	c.all = slices.DeleteFunc(c.all, same)
	if c.racks[m.Rack] = slices.DeleteFunc(c.racks[m.Rack], same); len(c.racks[m.Rack]) == 0 {
		delete(c.racks, m.Rack)
		c.order = slices.DeleteFunc(c.order, func(name string) bool { return name == m.Rack })
	}
}

// sweep removes the silent, and takes back what they were granted.
func (c *crowd) sweep(now time.Time, silence, longest time.Duration) {
	if now.Sub(c.swept) < time.Second {
		return
	}
	c.swept = now
	for _, m := range slices.Clone(c.all) {
		switch quiet := now.Sub(m.heard); {
		case quiet > max(silence, m.silence), len(m.lostBy) >= lostBy && quiet > 2*c.interval():
			c.remove(m)
		case len(m.lostBy) > lostBy && !m.expelled:
			// It is there and cannot be reached: what it has is of no use to others.
			c.expel(m)
		}
	}
	for i, l := range c.leases {
		if now.Sub(l.since) > longest {
			c.release(i, l.to)
		}
	}
}

func (c *crowd) has(m *member, have *Set, now time.Time) {
	for i, more := range changed(m.have, have) {
		if more {
			if l, ok := c.leases[i]; ok && l.to == m {
				c.usual += (now.Sub(l.since) - c.usual) / 8
				c.release(i, m)
			}
		}
		c.count(i, m, more)
	}
	if m.have.Full() {
		c.full--
	}
	m.have.Copy(have)
	if m.have.Full() {
		c.full++
	}
}

// count changes how many members have chunk i. What one has that nobody shall ask counts for nobody.
func (c *crowd) count(i int, m *member, more bool) {
	switch {
	case m.expelled:
	case more:
		c.copies[i]++
		c.nowhere.Remove(i)
	default:
		c.copies[i]--
		c.rare(i)
	}
}

// expel makes the others forget a member.
func (c *crowd) expel(m *member) {
	for i := range changed(NewSet(c.size), m.have) {
		c.count(i, m, false)
	}
	m.expelled = true
}

// rare records that no member has chunk i any more.
func (c *crowd) rare(i int) {
	if _, granted := c.leases[i]; !granted && c.copies[i] == 0 {
		c.nowhere.Add(i)
	}
}

func (c *crowd) release(i int, m *member) {
	if l, ok := c.leases[i]; ok && l.to == m {
		delete(c.leases, i)
		m.leases--
		c.rare(i)
	}
}

// expelBy is how many machines must have got something bad from one before nobody hears of it any more: one
// alone could be the liar.
const expelBy = 2

// lostBy is how many must have failed to reach one that is silent, too, before it counts as gone.
const lostBy = 2

// complaints takes in whom me could not use, and returns who is out because of that.
func (c *crowd) complaints(me *member, a Announcement) (expelled []string) {
	for _, id := range a.Bad {
		culprit := c.members[id]
		if id == me.ID || culprit == nil || !slices.Contains(me.known, culprit) {
			continue
		}
		me.avoid[culprit] = true
		if c.bad[id] == nil {
			c.bad[id] = reporters{}
		}
		if c.bad[id][me.ID] = true; len(c.bad[id]) >= expelBy && !culprit.expelled {
			c.expel(culprit)
			expelled = append(expelled, id)
		}
	}
	for _, id := range a.Lost {
		other := c.members[id]
		if id == me.ID || other == nil || !slices.Contains(me.known, other) {
			continue
		}
		me.avoid[other] = true
		other.lostBy[me.ID] = true
	}
	return expelled
}

// introduce keeps the list of whom me knows full: machines of its own rack, and some from as many other racks
// as possible.
func (t *Tracker) introduce(c *crowd, me *member) {
	before := len(me.known)
	me.known = slices.DeleteFunc(me.known, func(k *member) bool { return k.gone || k.expelled || me.avoid[k] })
	fresh := len(me.known) != before
	near := 0
	for _, k := range me.known {
		if k.Rack == me.Rack {
			near++
		}
	}
	add := func(k *member) bool {
		if k == me || k.expelled || k.Address == "" || me.avoid[k] || slices.Contains(me.known, k) {
			return false
		}
		me.known = append(me.known, k)
		fresh = true
		return true
	}
	own := c.racks[me.Rack]
	for tries := 0; near < min(t.opts.Near, len(own)-1) && tries < 4*t.opts.Near; tries++ {
		if add(own[t.dice.IntN(len(own))]) {
			near++
		}
	}
	far := len(me.known) - near
	want := t.opts.Far
	if len(own) == 1 {
		want = t.opts.Near
	}
	for tries := 0; far < min(want, len(c.all)-len(own)) && tries < 4*want; tries++ {
		rack := c.racks[c.order[t.dice.IntN(len(c.order))]]
		if rack[0].Rack != me.Rack && add(rack[t.dice.IntN(len(rack))]) {
			far++
		}
	}
	if fresh {
		me.version++
	}
	if me.version == 0 { // which says that a machine knows nobody
		me.version = 1
	}
}

// grant says what me may fetch from the origin: chunks that are nowhere yet in the order of the image, so that
// all machines can write from its beginning on; beyond these, what is rarest, as long as there is budget.
func (t *Tracker) grant(c *crowd, me *member, now time.Time, idle bool) (grants []int) {
	for me.leases < t.opts.PerMember && len(c.leases) < t.opts.Slots {
		i, extra := c.first(me), false
		if i < 0 && idle && len(grants) == 0 && t.mayExtra(c) {
			i, extra = c.rarest(me, now), true
		}
		if i < 0 {
			break
		}
		if l, other := c.leases[i]; other {
			c.release(i, l.to)
		}
		c.leases[i] = lease{me, now}
		c.nowhere.Remove(i)
		me.leases++
		c.granted++
		if extra {
			c.extra++
		}
		grants = append(grants, i)
	}
	return grants
}

func (t *Tracker) mayExtra(c *crowd) bool {
	return len(c.members) <= 2 || float64(c.extra) < t.opts.Extra*float64(c.size)
}

// first chunk that is nowhere, -1 if there is none; what is nowhere is not with me.
func (c *crowd) first(me *member) int {
	for w, bitmap := range c.nowhere.words {
		if missing := bitmap &^ me.have.words[w]; missing != 0 {
			return w*64 + bits.TrailingZeros64(missing)
		}
	}
	return -1
}

// rarest of the next chunks that me misses: one that others have, but it does not get, or that one was granted who
// takes far longer than usual and may be dead.
func (c *crowd) rarest(me *member, now time.Time) int {
	best, seen := -1, 0
	for i, n := range c.copies {
		if me.have.Has(i) {
			continue
		}
		if seen++; seen > extraWindow {
			break
		}
		l, granted := c.leases[i]
		if granted && (l.to == me || now.Sub(l.since) < 2*time.Second+3*c.usual) {
			continue
		}
		if best < 0 || n < c.copies[best] {
			best = i
		}
	}
	return best
}

// extraWindow is how far ahead of what a machine waits for the origin helps it.
const extraWindow = 64

// ask spreads those who wait for the origin so that some 500 ask in a second.
func (c *crowd) ask(now time.Time, denied bool) time.Duration {
	if now.Sub(c.counted) > time.Second {
		c.waiting, c.hungry, c.counted = c.hungry, 0, now
	}
	if denied {
		c.hungry++
	}
	// hungry counts asks: at 500 a second the delay stays as it is.
	return min(max(20*time.Millisecond, time.Duration(min(max(c.waiting, c.hungry), len(c.members)))*2*time.Millisecond), 5*time.Second)
}

// Members returns the names of the machines of a blob, for tests and people.
func (t *Tracker) Members(blob string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for key, c := range t.crowds {
		if key.blob == blob {
			names = append(names, slices.Collect(maps.Keys(c.members))...)
		}
	}
	slices.Sort(names)
	return names
}
