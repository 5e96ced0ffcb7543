// Package gate decides whose turn it is when more machines boot at once than can be served at once.
//
// Firmware gives up. A machine that is not answered asks again a few times, ever less often, and then starts something
// else: late is lost. Answering everybody at once does not help either, since all of them then load slowly together until the
// first of them give up. So the first answer, DHCP's offer to a firmware, is what is given out: to as many machines as may
// load at once, to those first that have asked for longest, and to everybody in time before it gives up.
//
// The package knows machines by name only, and keeps no clock: whoever calls says what happened when.
package gate

import (
	"container/list"
	"sync"
	"time"
)

// Limits of a Gate.
type Limits struct {
	// Loading is how many machines load at once before further ones wait.
	Loading int
	// Defer is how long a machine waits at most from its first question. Firmware asks after 0, 4, 12 and 28 seconds and
	// gives up after 60 (PXE 2.1, section 2.2.6), so after 15 it is answered at its fourth question, with 32 to spare.
	Defer time.Duration
	// Quiet is after how long without a sign of life a machine that was admitted does not load any more, and one that
	// waits has given up.
	Quiet time.Duration
}

// Usual are limits for a server with a link of its own. How many load at once is a round number, not a measured one: a
// thousand machines were rehearsed with it, and none was lost.
func Usual() Limits {
	return Limits{Loading: 500, Defer: 15 * time.Second, Quiet: 90 * time.Second}
}

// Counts are how many machines are where.
type Counts struct {
	// Asked since the last time when none was under way.
	Asked int `json:"asked"`
	// Waiting were asked to come again.
	Waiting int `json:"waiting"`
	// Loading have been answered and are not through.
	Loading int `json:"loading"`
	// Through have loaded what they boot, or were told to start from their disk.
	Through int `json:"through"`
	// Lost asked, and were not heard of again before they were through.
	Lost int `json:"lost"`
	// Deferred is how often a machine was asked to come again.
	Deferred int `json:"deferred"`
}

type stage int

const (
	waiting stage = iota
	loading
	through
	lost
)

type client struct {
	stage stage
	first time.Time     // of its first question
	last  time.Time     // sign of life
	place *list.Element // in the queue, while it waits
}

// most bounds how many machines are remembered; whoever comes on top is admitted at once.
const most = 1 << 16

// Gate admits machines. Its methods may be called from several goroutines.
type Gate struct {
	limits Limits

	mu       sync.Mutex
	clients  map[string]*client
	queue    *list.List // of *client, those that wait, in the order of their first questions
	loading  int
	swept    time.Time
	deferred int
}

// New makes a Gate.
func New(limits Limits) *Gate {
	return &Gate{limits: limits, clients: map[string]*client{}, queue: list.New()}
}

// move puts a client into a stage. The caller holds mu.
func (g *Gate) move(c *client, to stage) {
	if c.place != nil {
		g.queue.Remove(c.place)
		c.place = nil
	}
	if c.stage == loading {
		g.loading--
	}
	switch c.stage = to; to {
	case waiting:
		c.place = g.queue.PushBack(c)
	case loading:
		g.loading++
	}
}

// begin returns the client of that name, in a new start if the last one is over; nil when too many are known. The
// caller holds mu.
func (g *Gate) begin(name string, now time.Time) *client {
	c := g.clients[name]
	if c == nil {
		if len(g.clients) >= most {
			return nil
		}
		c = &client{stage: through}
		g.clients[name] = c
	}
	if c.stage == through || c.stage == lost {
		c.first = now
		g.move(c, waiting)
	}
	c.last = now
	return c
}

// Ask is a firmware's question for an address. If it is not admitted it is not answered, and comes again by itself.
func (g *Gate) Ask(name string, now time.Time) (admitted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sweep(now)
	c := g.begin(name, now)
	switch {
	case c == nil, c.stage == loading: // our answer was lost, or it was another's
		return true
	case now.Sub(c.first) < g.limits.Defer && !g.hasTurn(c):
		g.deferred++
		return false
	}
	g.move(c, loading)
	return true
}

// hasTurn says whether there is room for c and for all that have waited longer. The caller holds mu.
func (g *Gate) hasTurn(c *client) bool {
	room := g.limits.Loading - g.loading
	if g.queue.Len() <= room {
		return true
	}
	for place := g.queue.Front(); place != nil && room > 0; place = place.Next() {
		if place == c.place {
			return true
		}
		room--
	}
	return false
}

// Seen is a sign that a machine loads: whoever is that far was admitted, or did not need to be.
func (g *Gate) Seen(name string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.begin(name, now); c != nil && c.stage != loading {
		g.move(c, loading)
	}
}

// Taking is a sign of life of a machine that is being sent something. It changes nothing for one that is through: nodes
// fetch content, too.
func (g *Gate) Taking(name string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.clients[name]; c != nil && c.stage == loading {
		c.last = now
	}
}

// Through takes a machine off the list of those that load. One that the Gate does not know stays unknown.
func (g *Gate) Through(name string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.clients[name]; c != nil {
		g.move(c, through)
		c.last = now
	}
}

// Room is how many machines more may be switched on now without having to wait.
func (g *Gate) Room(now time.Time) int {
	c := g.Counts(now)
	return max(g.limits.Loading-c.Loading-c.Waiting, 0)
}

// Counts tells how many machines are where.
func (g *Gate) Counts(now time.Time) Counts {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.swept = time.Time{}
	g.sweep(now)
	counts := Counts{Asked: len(g.clients), Deferred: g.deferred}
	for _, c := range g.clients {
		switch c.stage {
		case waiting:
			counts.Waiting++
		case loading:
			counts.Loading++
		case through:
			counts.Through++
		case lost:
			counts.Lost++
		}
	}
	return counts
}

const (
	// sweepEvery is how often silence is looked for.
	sweepEvery = time.Second
	// remembered is for how long a storm that is over is told of.
	remembered = 10 * time.Minute
)

// sweep notes who has fallen silent, and forgets everything once nobody has been under way for a while. The caller holds
// mu.
func (g *Gate) sweep(now time.Time) {
	if now.Sub(g.swept) < sweepEvery {
		return
	}
	g.swept = now
	var last time.Time
	for _, c := range g.clients {
		if (c.stage == waiting || c.stage == loading) && now.Sub(c.last) > g.limits.Quiet {
			g.move(c, lost)
		}
		if c.last.After(last) {
			last = c.last
		}
	}
	if now.Sub(last) > remembered {
		clear(g.clients)
		g.queue.Init()
		g.loading, g.deferred = 0, 0
	}
}
