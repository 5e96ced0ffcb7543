package swarm

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"
)

func set(size int, chunks ...int) *Set {
	s := NewSet(size)
	for _, i := range chunks {
		s.Add(i)
	}
	return s
}

func all(size int) *Set {
	s := NewSet(size)
	for i := range size {
		s.Add(i)
	}
	return s
}

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func dice() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

func TestSetsOfTheNetworkAreChecked(t *testing.T) {
	for name, tt := range map[string]struct {
		bytes []byte
		size  int
		ok    bool
	}{
		"one chunk":                    {[]byte{1}, 1, true},
		"nothing of nine chunks":       {[]byte{0, 0}, 9, true},
		"too short":                    {[]byte{1}, 9, false},
		"too long":                     {[]byte{1, 0}, 8, false},
		"a chunk beyond the last":      {[]byte{0, 2}, 9, false},
		"a blob without chunks":        {nil, 0, false},
		"a blob of absurd size":        {nil, MaxChunks + 1, false},
		"a negative number of chunks":  {nil, -1, false},
		"sixty-four chunks, all there": {bytes.Repeat([]byte{255}, 8), 64, true},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := ParseSet(tt.bytes, tt.size)
			if (err == nil) != tt.ok {
				t.Fatalf("error %v", err)
			}
			if tt.ok && !bytes.Equal(s.Bytes(), tt.bytes) {
				t.Errorf("comes back as %x", s.Bytes())
			}
		})
	}
}

func FuzzParseSet(f *testing.F) {
	f.Add([]byte{3, 1}, 9)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		s, err := ParseSet(b, size)
		if err != nil {
			return
		}
		n := 0
		for i := range size {
			if s.Has(i) {
				n++
			}
		}
		if n != s.Count() || !bytes.Equal(b, s.Bytes()) || s.Full() != (n == size) {
			t.Fatalf("%x of %d chunks: count %d, want %d", b, size, s.Count(), n)
		}
	})
}

func TestABucketLetsItsRateThrough(t *testing.T) {
	b := Bucket{Rate: 1000, Burst: 500}
	now, used := noon, 0
	for now.Sub(noon) < 10*time.Second {
		now = now.Add(b.Take(now, 300))
		used += 300
	}
	if used < 10_000 || used > 11_000 {
		t.Errorf("%d bytes in ten seconds, want 10,000 and the burst", used)
	}
	if (&Bucket{}).Take(noon, 1<<30) != 0 {
		t.Error("a bucket without a rate limits")
	}
}

// peers whose names begin with n are near.
func peers(names ...string) []Peer {
	var out []Peer
	for _, n := range names {
		out = append(out, Peer{ID: n, Near: n[0] == 'n'})
	}
	return out
}

func TestWhatIsPickedNext(t *testing.T) {
	limits := Limits{InFlight: 4, PerPeer: 1, Far: 1, Window: 64}
	type has map[string]*Set
	for name, tt := range map[string]struct {
		have *Set
		has  has
		want []Pick // in this order; with several peers the order of the first decides
	}{
		"the rarest of what a peer has":                  {NewSet(3), has{"n1": set(3, 0, 1, 2), "f1": set(3, 0, 1)}, []Pick{{2, "n1"}, {-1, ""}}},
		"from a near peer rather than from a far one":    {NewSet(1), has{"n1": all(1), "f1": all(1), "f2": all(1)}, []Pick{{0, "n1"}}},
		"what the rack lacks before what it has":         {NewSet(2), has{"n1": set(2, 0), "f1": all(2)}, []Pick{{1, "f1"}, {0, "n1"}}},
		"one far chunk at a time while there is a rack":  {NewSet(4), has{"n1": NewSet(4), "f1": set(4, 1), "f2": set(4, 2)}, []Pick{{-1, ""}}},
		"many far chunks when there is no rack":          {set(3, 0), has{"f1": set(3, 1), "f2": set(3, 2)}, []Pick{{-1, ""}, {-1, ""}}},
		"nothing of what is here":                        {set(2, 0, 1), has{"n1": all(2)}, nil},
		"nothing beyond the window":                      {NewSet(256), has{"n1": set(256, 64)}, nil},
		"what is within the window, which begins later":  {func() *Set { s := NewSet(256); s.Copy(all(256)); s.Remove(70); s.Remove(100); return s }(), has{"n1": set(256, 100)}, []Pick{{100, "n1"}}},
		"nothing from nobody":                            {NewSet(2), has{}, nil},
		"a chunk of each peer and no second one of each": {NewSet(9), has{"n1": all(9), "n2": all(9), "n3": all(9), "n4": all(9)}, []Pick{{-1, ""}, {-1, ""}, {-1, ""}, {-1, ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			p := NewPicker(tt.have, limits, dice())
			var names []string
			for n := range tt.has {
				names = append(names, n)
			}
			slices.Sort(names)
			p.SetPeers(peers(names...))
			for n, s := range tt.has {
				p.Tell(n, s, 0)
			}
			var got []Pick
			for {
				pick, ok := p.Next(noon)
				if !ok {
					break
				}
				if slices.ContainsFunc(got, func(g Pick) bool { return g.Chunk == pick.Chunk }) {
					t.Errorf("chunk %d is picked twice", pick.Chunk)
				}
				got = append(got, pick)
			}
			if len(got) != len(tt.want) {
				t.Fatalf("picked %v, want %v", got, tt.want)
			}
			for i, w := range tt.want {
				if w.Chunk >= 0 && got[i] != w {
					t.Errorf("picked %v, want %v", got, tt.want)
				}
			}
		})
	}
}

func TestWhatFailuresLeadTo(t *testing.T) {
	for name, tt := range map[string]struct {
		why   Failure
		times int
		after time.Duration
		again bool
		lost  bool
	}{
		"a busy peer is asked again soon":                  {why: Busy, times: 1, after: 200 * time.Millisecond, again: true},
		"a busy peer is not asked again at once":           {why: Busy, times: 1, after: 0},
		"a chunk that is not there is not asked for again": {why: Missing, times: 1, after: time.Hour},
		"a broken peer is tried again later":               {why: Broken, times: 1, after: 10 * time.Second, again: true},
		"a broken peer is not tried again at once":         {why: Broken, times: 1, after: 100 * time.Millisecond},
		"a peer that stays broken is reported":             {why: Broken, times: 2, after: time.Minute, again: true, lost: true},
		"a liar is never asked again":                      {why: Bad, times: 1, after: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			p := NewPicker(NewSet(1), UsualLimits(), dice())
			p.SetPeers(peers("n1"))
			p.Tell("n1", all(1), 0)
			now := noon
			for range tt.times {
				pick, ok := p.Next(now)
				if !ok {
					t.Fatal("nothing is picked")
				}
				p.Failed(now, pick, tt.why)
				if p.InFlight() != 0 {
					t.Error("something is still in flight")
				}
				if tt.times > 1 {
					now = now.Add(time.Minute)
				}
			}
			if _, ok := p.Next(now.Add(tt.after)); ok != tt.again {
				t.Errorf("asked again: %v, want %v", ok, tt.again)
			}
			if lost := len(p.Lost()) > 0; lost != tt.lost {
				t.Errorf("reported as lost: %v, want %v", lost, tt.lost)
			}
		})
	}
	t.Run("a liar stays one when it is told of anew", func(t *testing.T) {
		p := NewPicker(NewSet(2), UsualLimits(), dice())
		p.SetPeers(peers("n1"))
		p.Tell("n1", all(2), 0)
		pick, _ := p.Next(noon)
		p.Failed(noon, pick, Bad)
		p.SetPeers(nil)
		p.SetPeers(peers("n1"))
		p.Tell("n1", all(2), 0)
		if pick, ok := p.Next(noon.Add(time.Hour)); ok {
			t.Errorf("picked %v", pick)
		}
	})
}

func TestTheEndGameAsksASecondPeer(t *testing.T) {
	p := NewPicker(NewSet(1), UsualLimits(), dice())
	p.SetPeers(peers("n1", "n2"))
	p.Tell("n1", all(1), 0)
	p.Tell("n2", all(1), 0)
	first, _ := p.Next(noon)
	if pick, ok := p.Next(noon.Add(100 * time.Millisecond)); ok {
		t.Fatalf("%v although the first has had no time", pick)
	}
	second, ok := p.Next(noon.Add(2 * time.Second))
	if !ok || second.Peer == first.Peer {
		t.Fatalf("second pick is %v, %v", second, ok)
	}
	others := p.Arrived(noon.Add(3*time.Second), 0, second.Peer)
	if !slices.Equal(others, []Pick{first}) || !p.Have().Full() || p.InFlight() != 0 {
		t.Errorf("others %v, in flight %d", others, p.InFlight())
	}
	p.Failed(noon, first, Broken) // of a fetch that was cancelled: no matter
}

func TestTheOriginIsAskedForWhatNobodyHas(t *testing.T) {
	p := NewPicker(NewSet(2), UsualLimits(), dice())
	if wants, idle := p.Wants(); !wants || !idle {
		t.Errorf("without peers: wants %v, idle %v", wants, idle)
	}
	if !p.Reserve(noon, 0) || p.Reserve(noon, 0) {
		t.Error("a chunk is reserved twice or never")
	}
	p.SetPeers(peers("n1"))
	p.Tell("n1", set(2, 0), 0)
	if pick, ok := p.Next(noon); ok {
		t.Errorf("%v is fetched from a peer as well", pick)
	}
	p.Release(0)
	if _, ok := p.Next(noon); !ok {
		t.Error("a chunk that did not come from the origin is not fetched from the peer that has it")
	}
	if wants, idle := p.Wants(); !wants || idle {
		t.Errorf("with one chunk on its way: wants %v, idle %v", wants, idle)
	}
}

func TestWhoIsGivenTo(t *testing.T) {
	for name, tt := range map[string]struct {
		active, slots, mine, theirs int
		want                        bool
	}{
		"anybody while there is room":                   {0, 5, 1, 9, true},
		"nobody when there is none":                     {5, 5, 9, 1, false},
		"one who is behind in a place that is kept":     {3, 5, 9, 1, true},
		"one who is ahead not in a place that is kept":  {3, 5, 1, 9, false},
		"one who is ahead where there is only one slot": {0, 1, 1, 9, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Admit(tt.active, tt.slots, tt.mine, tt.theirs); got != tt.want {
				t.Error(got)
			}
		})
	}
}

// site is a Tracker with machines in racks of two.
type site struct {
	*Tracker
	now time.Time
}

func newSite(o TrackerOptions) *site {
	o.Dice = dice()
	return &site{NewTracker(o), noon}
}

func (s *site) say(i int, a Announcement) Answer {
	name := strconv.Itoa(i)
	return s.Announce(s.now, "blob", Member{ID: name, Rack: strconv.Itoa(i / 2), Address: "10.0.0." + name + ":1", Key: "key" + name}, a)
}

func TestFewMachinesAreNotBroughtTogether(t *testing.T) {
	s := newSite(TrackerOptions{Few: 2})
	wants := func() Announcement { return Announcement{Have: NewSet(4), Wants: true} }
	for i := range 2 {
		if a := s.say(i, wants()); !a.Alone || len(a.Peers) > 0 || len(a.Grants) > 0 {
			t.Errorf("machine %d of two: %+v, want it to be told to take all from the origin", i, a)
		}
	}
	if a := s.say(2, wants()); a.Alone || len(a.Peers) == 0 {
		t.Errorf("the third machine is told %+v, want peers", a)
	}
	if a := s.say(0, wants()); a.Alone || len(a.Peers) == 0 {
		t.Errorf("with the third, the first is told %+v, want peers", a)
	}
	s.Leave("2")
	if a := s.say(0, wants()); !a.Alone {
		t.Errorf("two are left, and one is told %+v", a)
	}
}

func TestThoseWhoOnlyGiveSpeakSeldom(t *testing.T) {
	s := newSite(TrackerOptions{})
	for i := range 3 {
		s.say(i, Announcement{Have: set(4, 0, 1, 2, 3)})
	}
	if a := s.say(0, Announcement{Have: set(4, 0, 1, 2, 3)}); a.Again < 20*time.Second {
		t.Errorf("all have all, and the first shall speak again after %s", a.Again)
	}
	if a := s.say(3, Announcement{Have: set(4, 1)}); a.Again > 2*time.Second || len(a.Peers) != 3 {
		t.Errorf("one who comes later is told %+v", a)
	}
	if a := s.say(0, Announcement{Have: set(4, 0, 1, 2, 3)}); a.Again > 2*time.Second {
		t.Errorf("one lacks something, and the first shall speak again after %s", a.Again)
	}
	s.now = s.now.Add(time.Minute) // within four of the long intervals; the one who was told a short one is gone
	if a := s.say(1, Announcement{Have: set(4, 0, 1, 2, 3)}); a.Again < 20*time.Second {
		t.Errorf("all that are left have all, and the second shall speak again after %s", a.Again)
	}
}

func TestTheOriginSendsEachChunkOnce(t *testing.T) {
	s := newSite(TrackerOptions{Slots: 4, PerMember: 2, Extra: 0.001})
	var granted []int
	for i := range 4 {
		granted = append(granted, s.say(i, Announcement{Have: NewSet(4), Wants: true}).Grants...)
	}
	if !slices.Equal(granted, []int{0, 1, 2, 3}) {
		t.Fatalf("granted %v", granted)
	}
	a := s.say(4, Announcement{Have: NewSet(4), Wants: true})
	if len(a.Grants) > 0 || a.Ask <= 0 {
		t.Errorf("granted %v although the origin is busy; ask again in %s", a.Grants, a.Ask)
	}
	s.say(0, Announcement{Have: set(4, 0, 1)})
	if a := s.say(4, Announcement{Have: NewSet(4), Wants: true}); len(a.Grants) > 0 {
		t.Errorf("granted %v, which a machine has", a.Grants)
	}
	s.now = s.now.Add(time.Minute) // nobody has said anything: all are gone, with the only copies
	if a := s.say(5, Announcement{Have: NewSet(4), Wants: true}); !slices.Equal(a.Grants, []int{0, 1}) {
		t.Errorf("granted %v after the machines with the only copies were lost", a.Grants)
	}
}

func TestAnIdleMachineIsHelpedWithinABudget(t *testing.T) {
	s := newSite(TrackerOptions{Extra: 1})
	for i := range 4 {
		s.say(i, Announcement{Have: all(8)})
	}
	have, n := NewSet(8), 0
	for range 20 {
		for _, i := range s.say(4, Announcement{Have: have, Wants: true, Idle: true}).Grants {
			have.Add(i)
			n++
		}
	}
	if n != 8 {
		t.Errorf("%d chunks to the first, want all", n)
	}
	if a := s.say(5, Announcement{Have: NewSet(8), Wants: true, Idle: true}); len(a.Grants) > 0 {
		t.Errorf("granted %v beyond the budget", a.Grants)
	}
	c := s.Crowds(s.now)
	if len(c) != 1 || c[0].Members != 6 || c[0].Complete != 5 || c[0].Granted != 8 || c[0].Extra != 8 {
		t.Errorf("%+v", c)
	}
}

func TestPeersAreOfTheOwnRackAndOfManyOthers(t *testing.T) {
	s := newSite(TrackerOptions{Near: 4, Far: 5})
	for i := range 40 {
		s.say(i, Announcement{Have: NewSet(1)})
	}
	a := s.say(7, Announcement{Have: NewSet(1)})
	near, racks := 0, map[string]bool{}
	for _, p := range a.Peers {
		if p.ID == "7" {
			t.Error("a machine is its own peer")
		}
		if p.Near {
			near++
		}
		racks[p.Rack] = true
	}
	if near != 1 || len(a.Peers) != 6 || len(racks) < 4 {
		t.Errorf("%d near, %d racks: %+v", near, len(racks), a.Peers)
	}
	if b := s.say(7, Announcement{Have: NewSet(1), Known: a.PeersVersion}); b.Peers != nil || b.PeersVersion != a.PeersVersion {
		t.Error("the same list is sent again")
	}
}

func TestWhoIsDroppedFromTheCrowd(t *testing.T) {
	told := func(a Answer, name string) bool {
		return slices.ContainsFunc(a.Peers, func(p Contact) bool { return p.ID == name })
	}
	begin := func() *site {
		s := newSite(TrackerOptions{})
		for i := range 5 {
			s.say(i, Announcement{Have: NewSet(1)})
		}
		for i := range 5 { // now everybody knows everybody
			s.say(i, Announcement{Have: NewSet(1)})
		}
		return s
	}
	t.Run("one that leaves", func(t *testing.T) {
		s := begin()
		s.say(3, Announcement{Have: NewSet(1), Leaving: true})
		if told(s.say(0, Announcement{Have: NewSet(1)}), "3") {
			t.Error("is still told of")
		}
	})
	t.Run("one that is silent", func(t *testing.T) {
		s := begin()
		for range 20 {
			s.now = s.now.Add(time.Second)
			for i := range 3 {
				s.say(i, Announcement{Have: NewSet(1)})
			}
		}
		if got := s.Members("blob"); !slices.Equal(got, []string{"0", "1", "2"}) {
			t.Errorf("members %v", got)
		}
	})
	t.Run("one that two machines cannot reach and that says nothing", func(t *testing.T) {
		s := begin()
		s.now = s.now.Add(4 * time.Second)
		s.say(0, Announcement{Have: NewSet(1), Lost: []string{"3"}})
		s.say(1, Announcement{Have: NewSet(1), Lost: []string{"3"}})
		s.now = s.now.Add(time.Second)
		s.say(0, Announcement{Have: NewSet(1)})
		if slices.Contains(s.Members("blob"), "3") {
			t.Error("is still a member")
		}
	})
	t.Run("what one has that nobody can reach is nowhere", func(t *testing.T) {
		s := begin()
		s.say(3, Announcement{Have: all(1)})
		for _, i := range []int{0, 1, 2} {
			s.say(i, Announcement{Have: NewSet(1), Lost: []string{"3"}})
		}
		s.now = s.now.Add(time.Second)
		s.say(3, Announcement{Have: all(1)})
		if a := s.say(0, Announcement{Have: NewSet(1), Wants: true}); !slices.Equal(a.Grants, []int{0}) {
			t.Errorf("granted %v", a.Grants)
		}
	})
	t.Run("one that lied to two machines, and not for one accuser", func(t *testing.T) {
		s := begin()
		if a := s.say(0, Announcement{Have: NewSet(1), Bad: []string{"3", "0", "nobody"}}); len(a.Expelled) > 0 || told(a, "3") {
			t.Errorf("expelled %v on the word of one; told of: %v", a.Expelled, told(a, "3"))
		}
		if !told(s.say(2, Announcement{Have: NewSet(1)}), "3") {
			t.Error("one accuser hid a machine from all others")
		}
		if a := s.say(1, Announcement{Have: NewSet(1), Bad: []string{"3"}}); !slices.Equal(a.Expelled, []string{"3"}) {
			t.Errorf("expelled %v", a.Expelled)
		}
		if told(s.say(2, Announcement{Have: NewSet(1)}), "3") {
			t.Error("is still told of")
		}
	})
	t.Run("one that began anew, with what it was granted", func(t *testing.T) {
		s := begin()
		s.say(3, Announcement{Have: NewSet(1), Wants: true})
		m := Member{ID: "3", Rack: "1", Address: "10.0.0.3:2", Key: "another"}
		if a := s.Announce(s.now, "blob", m, Announcement{Have: NewSet(1), Wants: true}); !slices.Equal(a.Grants, []int{0}) {
			t.Errorf("granted %v", a.Grants)
		}
		a := s.say(0, Announcement{Have: NewSet(1)})
		if !slices.ContainsFunc(a.Peers, func(p Contact) bool { return p.Member == m }) {
			t.Errorf("told of %+v", a.Peers)
		}
	})
}

func TestATrackerIsBounded(t *testing.T) {
	s := newSite(TrackerOptions{})
	for i := range 3 * maxCrowds {
		s.Announce(s.now, "blob"+strconv.Itoa(i), Member{ID: "m"}, Announcement{Have: NewSet(1)})
	}
	if n := len(s.Crowds(s.now)); n != maxCrowds {
		t.Errorf("%d crowds", n)
	}
	s.now = s.now.Add(time.Hour)
	s.say(1, Announcement{Have: NewSet(1)})
	if n := len(s.Crowds(s.now)); n != 1 {
		t.Errorf("%d crowds after all but one were forgotten", n)
	}
}

func BenchmarkNext(b *testing.B) {
	const chunks, known = 512, 24
	p := NewPicker(NewSet(chunks), UsualLimits(), dice())
	var list []Peer
	for i := range known {
		list = append(list, Peer{ID: strconv.Itoa(i), Near: i < 16})
	}
	p.SetPeers(list)
	for i := range known {
		s := NewSet(chunks)
		for c := range chunks {
			if p.dice.IntN(2) == 0 {
				s.Add(c)
			}
		}
		p.Tell(strconv.Itoa(i), s, 0)
	}
	now := noon
	for b.Loop() {
		now = now.Add(time.Hour)
		pick, _ := p.Next(now)
		p.Failed(now, pick, Busy)
	}
}

func BenchmarkAnnounce(b *testing.B) {
	s := NewTracker(TrackerOptions{Dice: dice()})
	const machines, chunks = 3000, 512
	var members []Member
	for i := range machines {
		members = append(members, Member{ID: strconv.Itoa(i), Rack: strconv.Itoa(i / 40), Address: "x"})
	}
	have := NewSet(chunks)
	i := 0
	for b.Loop() {
		s.Announce(noon.Add(time.Duration(i)*time.Millisecond/2), "blob", members[i%machines], Announcement{Have: have, Wants: true})
		i++
	}
}
