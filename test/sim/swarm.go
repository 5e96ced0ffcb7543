// Package sim runs thousands of machines in simulated time with the code that decides on real ones.
//
// The network is a fluid: in each small step every transfer gets its equal share of each link on its way and
// moves on by the smallest of them; most of what it leaves goes to the others. Switches inside a rack do not block.
package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"coldrack.dev/internal/content/swarm"
)

// Gigabit is a link of 1 Gbit/s in bytes per second.
const Gigabit = 125e6

// Swarm describes a run. The zero value of a field means the default in its comment.
type Swarm struct {
	Machines int
	PerRack  int     // 40
	Link     float64 // of a machine, bytes per second each way; 1 Gbit/s
	Uplink   float64 // of a rack; 10 Gbit/s
	Origin   float64 // of the server; 10 Gbit/s
	Chunks   int     // 256
	// ChunkBytes is the mean; chunks have half to one and a half of it. 1.6 MB, as in an image of Debian.
	ChunkBytes float64
	// Stagger is the time within which the machines begin, one after the other.
	Stagger time.Duration
	// Linger is how long a machine serves after it has everything: the rest of its install. 10 s.
	Linger time.Duration
	// Kill is the share of machines that die when a machine alone would be half through.
	Kill float64
	// Slots of uploads at once of a machine. swarm.UsualSlots.
	Slots   int
	Limits  swarm.Limits
	Tracker swarm.TrackerOptions
	// Write is the raw rate of a machine's disk and Unpacked how much larger a chunk is there; for when the image
	// could be on the disk if it is written in order. 300 MB/s, 3.
	Write, Unpacked float64
	Seed            uint64
}

// Result of a run. Times count from a machine's own begin.
type Result struct {
	Alone               time.Duration // what one machine takes at the speed of the slower link
	First, Median, Last time.Duration
	Written             time.Duration // when the last machine has written everything
	Images              float64       // how many images the origin sent
	IntoRack            float64       // images that entered a rack, on average, the origin's included
	Twice               float64       // share of bytes that were fetched in vain
	Refused             float64       // requests that were answered "busy", for each chunk that arrived
	Finished, Killed    int
	Steps               int
	// Progress is the share of all bytes that are where they belong, in hundredths of the last machine's time.
	Progress []float64
}

func (s Swarm) usual() Swarm {
	or := func(v *float64, usual float64) {
		if *v == 0 {
			*v = usual
		}
	}
	or(&s.Link, Gigabit)
	or(&s.Uplink, 10*Gigabit)
	or(&s.Origin, 10*Gigabit)
	or(&s.ChunkBytes, 1.6e6)
	or(&s.Write, 300e6)
	or(&s.Unpacked, 3)
	if s.PerRack == 0 {
		s.PerRack = 40
	}
	if s.Chunks == 0 {
		s.Chunks = 256
	}
	if s.Linger == 0 {
		s.Linger = 10 * time.Second
	}
	if s.Slots == 0 {
		s.Slots = swarm.UsualSlots
	}
	if s.Limits == (swarm.Limits{}) {
		s.Limits = swarm.UsualLimits()
	}
	return s
}

type machine struct {
	id     int
	name   string
	rack   int
	picker *swarm.Picker
	begins time.Time
	ended  time.Time // has everything
	state  int
	known  uint32
	peers  []*machine

	announce, ask, poll time.Time
	next                int // peer to poll
	returned            []int
	uploads             int
	up, down            link
	arrived             []time.Duration
}

const (
	waiting = iota
	active
	gone
)

type transfer struct {
	from *machine // nil is the origin
	to   *machine
	pick swarm.Pick
	left float64
	way  []*link
	// crosses the border of the receiver's rack.
	crosses bool
	open    bool // in this step
	dead    bool
}

type run struct {
	Swarm
	dice             *rand.Rand
	tracker          *swarm.Tracker
	now              time.Time
	sizes            []float64
	machines         []*machine
	byName           map[string]*machine
	transfers        []*transfer
	originLink       link
	rackUp, rackDown []link
	into             float64
	origin           float64
	useful           float64
	wasted           float64
	busy             int
	chunks           int
}

const latency = time.Millisecond

// Run simulates until every machine that lives has everything.
func (s Swarm) Run() (Result, error) {
	s = s.usual()
	r := &run{Swarm: s, dice: rand.New(rand.NewPCG(s.Seed, 1)), byName: map[string]*machine{}, now: time.Unix(0, 0)}
	s.Tracker.Dice = rand.New(rand.NewPCG(s.Seed, 2))
	r.tracker = swarm.NewTracker(s.Tracker)
	var image float64
	for range s.Chunks {
		b := s.ChunkBytes * (0.5 + r.dice.Float64())
		r.sizes = append(r.sizes, b)
		image += b
	}
	began := r.now
	racks := (s.Machines + s.PerRack - 1) / s.PerRack
	r.rackUp, r.rackDown = make([]link, racks), make([]link, racks)
	for i := range s.Machines {
		m := &machine{
			id: i, name: fmt.Sprint("m", i), rack: i / s.PerRack, arrived: make([]time.Duration, s.Chunks),
			begins: began.Add(time.Duration(r.dice.Float64() * float64(s.Stagger))),
			picker: swarm.NewPicker(swarm.NewSet(s.Chunks), s.Limits, rand.New(rand.NewPCG(s.Seed, uint64(i)+10))),
		}
		r.machines = append(r.machines, m)
		r.byName[m.name] = m
	}
	alone := seconds(image / min(s.Link, s.Origin))
	step := max(seconds(s.ChunkBytes/s.Link/3), latency)
	kill := began.Add(alone / 2)
	result := Result{Alone: alone}
	for {
		if s.Kill > 0 && result.Killed == 0 && !r.now.Before(kill) {
			for _, i := range r.dice.Perm(s.Machines)[:int(s.Kill*float64(s.Machines))] {
				r.end(r.machines[i], false)
				result.Killed++
			}
		}
		unfinished := 0
		for _, m := range r.machines {
			r.act(m)
			if m.state != gone && m.ended.IsZero() {
				unfinished++
			}
		}
		if unfinished == 0 {
			break
		}
		r.move(step)
		r.now = r.now.Add(step)
		if result.Steps++; r.now.Sub(began) > 200*alone+s.Stagger+time.Minute {
			return result, fmt.Errorf("%d of %d machines are not done after %s; one alone takes %s", unfinished, s.Machines, r.now.Sub(began), alone)
		}
	}
	r.sum(&result, image)
	return result, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func (r *run) sum(out *Result, image float64) {
	var times []time.Duration
	var all []time.Duration
	for _, m := range r.machines {
		if m.ended.IsZero() {
			continue
		}
		times = append(times, m.ended.Sub(m.begins))
		var written time.Duration
		for i, at := range m.arrived {
			written = max(written, at) + seconds(r.sizes[i]*r.Unpacked/r.Write)
		}
		out.Written = max(out.Written, written)
		all = append(all, m.arrived...)
	}
	slices.Sort(times)
	slices.Sort(all)
	out.Finished = len(times)
	if len(times) > 0 {
		out.First, out.Median, out.Last = times[0], times[len(times)/2], times[len(times)-1]
		for k := range 101 {
			at, _ := slices.BinarySearch(all, out.Last*time.Duration(k)/100+1)
			out.Progress = append(out.Progress, float64(at)/float64(len(all)))
		}
	}
	out.Images = r.origin / image
	out.IntoRack = r.into / image / float64(len(r.rackDown))
	out.Twice = r.wasted / (r.useful + r.wasted)
	out.Refused = float64(r.busy) / float64(max(r.chunks, 1))
}

// act does what a machine's agent would do at this moment.
func (r *run) act(m *machine) {
	switch {
	case m.state == gone:
		return
	case m.state == waiting:
		if r.now.Before(m.begins) {
			return
		}
		m.state = active
	case !m.ended.IsZero() && r.now.Sub(m.ended) >= r.Linger:
		r.end(m, true)
		return
	}
	if m.ended.IsZero() {
		r.listen(m)
		for {
			pick, ok := m.picker.Next(r.now)
			if !ok {
				break
			}
			r.begin(m, pick)
		}
	}
	wants, idle := m.picker.Wants()
	if !r.now.Before(m.announce) || wants && !r.now.Before(m.ask) {
		r.speak(m, wants, idle)
	}
}

// listen learns what some of the peers have: all within a second, and much faster when there is nothing to do.
func (r *run) listen(m *machine) {
	if len(m.peers) == 0 || r.now.Before(m.poll) {
		return
	}
	every := time.Second
	if m.picker.Starving() {
		every = 100 * time.Millisecond
	}
	pause := every / time.Duration(len(m.peers))
	if m.poll.IsZero() {
		m.poll = r.now
	}
	for !r.now.Before(m.poll) {
		p := m.peers[m.next%len(m.peers)]
		m.next++
		m.poll = m.poll.Add(pause)
		if p.state == active {
			m.picker.Tell(p.name, p.picker.Have(), p.uploads)
		}
	}
}

func (r *run) speak(m *machine, wants, idle bool) {
	answer := r.tracker.Announce(r.now, "image", swarm.Member{ID: m.name, Rack: fmt.Sprint("r", m.rack), Address: "x"}, swarm.Announcement{
		Have: m.picker.Have(), Wants: wants, Idle: idle, Returned: m.returned, Lost: m.picker.Lost(), Known: m.known,
	})
	m.returned = nil
	m.announce = r.now.Add(answer.Again)
	m.ask = r.now.Add(max(answer.Ask, latency))
	if answer.PeersVersion != m.known {
		m.known, m.peers = answer.PeersVersion, m.peers[:0]
		var list []swarm.Peer
		for _, c := range answer.Peers {
			list = append(list, swarm.Peer{ID: c.ID, Near: c.Near})
			p := r.byName[c.ID]
			m.peers = append(m.peers, p)
		}
		m.picker.SetPeers(list)
		for _, p := range m.peers {
			if p.state == active {
				m.picker.Tell(p.name, p.picker.Have(), p.uploads)
			}
		}
	}
	for _, i := range answer.Grants {
		if !m.picker.Reserve(r.now, i) {
			m.returned = append(m.returned, i)
			continue
		}
		r.add(&transfer{to: m, pick: swarm.Pick{Chunk: i}})
	}
}

func (r *run) begin(m *machine, pick swarm.Pick) {
	p := r.byName[pick.Peer]
	switch {
	case p.state != active:
		m.picker.Failed(r.now, pick, swarm.Broken)
	case !swarm.Admit(p.uploads, r.Slots, p.picker.Have().Count(), m.picker.Have().Count()):
		r.busy++
		m.picker.Tell(p.name, p.picker.Have(), p.uploads)
		m.picker.Failed(r.now, pick, swarm.Busy)
	default:
		r.add(&transfer{from: p, to: m, pick: pick})
	}
}

func (r *run) add(t *transfer) {
	t.left = r.sizes[t.pick.Chunk]
	t.way = append(t.way, &t.to.down)
	if t.from == nil {
		t.crosses = true
		t.way = append(t.way, &r.originLink, &r.rackDown[t.to.rack])
	} else {
		t.from.uploads++
		t.way = append(t.way, &t.from.up)
		if t.from.rack != t.to.rack {
			t.crosses = true
			t.way = append(t.way, &r.rackUp[t.from.rack], &r.rackDown[t.to.rack])
		}
	}
	r.transfers = append(r.transfers, t)
}

// remove ends a transfer.
func (r *run) remove(t *transfer) {
	t.dead = true
	if t.from != nil {
		t.from.uploads--
	}
}

// link is one direction of a cable: what is left of it in this step, and who wants a share.
type link struct {
	rest  float64
	users int
	share float64
}

// move lets every transfer go on for a step. Links are shared out in three rounds: what somebody cannot use of his
// share in one is there for the others in the next.
func (r *run) move(step time.Duration) {
	s := step.Seconds()
	r.originLink = link{rest: r.Origin * s}
	for _, m := range r.machines {
		m.up, m.down = link{rest: r.Link * s}, link{rest: r.Link * s}
	}
	for i := range r.rackUp {
		r.rackUp[i], r.rackDown[i] = link{rest: r.Uplink * s}, link{rest: r.Uplink * s}
	}
	for round := range 3 {
		for _, t := range r.transfers {
			t.open = t.left > 0 && (round == 0 || t.open)
			if t.open {
				for _, l := range t.way {
					l.users++
				}
			}
		}
		for _, t := range r.transfers {
			if !t.open {
				continue
			}
			for _, l := range t.way {
				if l.users > 0 {
					l.share, l.users = l.rest/float64(l.users), 0
				}
			}
		}
		for _, t := range r.transfers {
			if !t.open {
				continue
			}
			n := t.left
			for _, l := range t.way {
				n = min(n, l.share)
			}
			for _, l := range t.way {
				l.rest = max(0, l.rest-n)
			}
			t.left -= n
			if t.left < 1 {
				t.left = 0
			}
			if t.from == nil {
				r.origin += n
			}
			if t.crosses {
				r.into += n
			}
		}
	}
	for _, t := range r.transfers {
		if t.left == 0 && !t.dead {
			r.arrive(t)
		}
	}
	r.transfers = slices.DeleteFunc(r.transfers, func(t *transfer) bool { return t.dead })
}

func (r *run) drop(t *transfer) {
	r.remove(t)
	r.wasted += r.sizes[t.pick.Chunk] - t.left
}

func (r *run) arrive(t *transfer) {
	m, now := t.to, r.now
	for _, other := range m.picker.Arrived(now, t.pick.Chunk, t.pick.Peer) {
		if other.Peer == "" {
			m.returned = append(m.returned, other.Chunk)
		}
		for _, o := range r.transfers {
			if o.to == m && o.pick == other && !o.dead {
				r.drop(o)
			}
		}
	}
	r.remove(t)
	r.useful += r.sizes[t.pick.Chunk]
	r.chunks++
	m.arrived[t.pick.Chunk] = now.Sub(m.begins)
	if t.from == nil {
		m.announce = now // gives the origin's slot back
	} else if t.from.state == active {
		m.picker.Tell(t.from.name, t.from.picker.Have(), t.from.uploads)
	}
	if m.picker.Have().Full() {
		m.ended, m.announce = now, now
	}
}

// end takes a machine away; one that leaves says so, one that dies does not.
func (r *run) end(m *machine, leaves bool) {
	m.state = gone
	if leaves {
		r.tracker.Leave(m.name)
	}
	for _, t := range r.transfers {
		if t.dead || t.from != m && t.to != m {
			continue
		}
		r.drop(t)
		if t.from == m {
			t.to.picker.Failed(r.now, t.pick, swarm.Broken)
		}
	}
}
func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

// String is one line for people.
func (r Result) String() string {
	return fmt.Sprintf("alone %.1fs, first %.2f×, median %.2f×, last %.2f×, written %.2f×; origin %.2f images, %.2f into each rack; %.1f%% twice, %.2f refusals a chunk; %d finished, %d died",
		r.Alone.Seconds(), ratio(r.First, r.Alone), ratio(r.Median, r.Alone), ratio(r.Last, r.Alone), ratio(r.Written, r.Alone),
		r.Images, r.IntoRack, 100*r.Twice, r.Refused, r.Finished, r.Killed)
}
