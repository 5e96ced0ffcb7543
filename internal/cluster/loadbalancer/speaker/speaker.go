package speaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"coldrack.dev/internal/cluster/loadbalancer"
)

// Port that speakers listen on, by UDP.
const Port = 7447

// Pace of heartbeats.
type Pace struct {
	// Every is the time between two.
	Every time.Duration
	// Lost is the silence after which a node is gone.
	Lost time.Duration
}

// UsualPace takes addresses over between 1.5 and 1.75 seconds after a node has fallen silent. Six heartbeats are missed by then:
// fewer would be lost on a busy machine.
func UsualPace() Pace { return Pace{Every: 250 * time.Millisecond, Lost: 1500 * time.Millisecond} }

// Answerer answers on the segment; segment.Answerer does.
type Answerer interface {
	// Set makes it answer for exactly these.
	Set([]netip.Addr)
	// Tell tells the segment again of all that it answers for.
	Tell()
	// Networks that the node is in.
	Networks() []netip.Prefix
}

// Router tells routers; bgp.Announcer does.
type Router interface {
	// Set tells them of exactly these.
	Set([]netip.Addr)
}

// Options of New.
type Options struct {
	Log *slog.Logger
	// Node is this node's name, Listen its own address and port.
	Node   string
	Listen netip.AddrPort
	// Key of the cluster's speakers.
	Key      []byte
	Pace     Pace
	Answerer Answerer
	// Router is told of addresses that are Routed; nil: nobody answers for these.
	Router Router
}

// Speaker takes part in announcing a cluster's addresses.
type Speaker struct {
	Options
	socket *net.UDPConn
	number uint64
	poke   chan struct{} // of capacity one: something has changed

	mu        sync.Mutex
	standing  loadbalancer.Standing
	peers     map[string]netip.AddrPort
	heard     map[string]peer
	addresses []loadbalancer.Address
	// listening says that others had the time to be heard.
	listening bool
	// holding are addresses that this node answers for on the segment, telling those that routers are told of.
	holding, telling map[netip.Addr]bool
	// What the last election was based on, in words, and when it was.
	members, networks string
	stale             bool // the addresses are others
	elected           time.Time
}

type peer struct {
	heartbeat
	at time.Time
}

// New listens for other speakers. This node's standing is Absent until SetStanding.
func New(o Options) (*Speaker, error) {
	if len(o.Key) < 16 {
		return nil, errors.New("the speakers' key has less than 16 bytes")
	}
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(o.Listen))
	if err != nil {
		return nil, fmt.Errorf("listen for other speakers: %w", err)
	}
	return &Speaker{Options: o, socket: socket, number: uint64(time.Now().UnixNano()), poke: make(chan struct{}, 1), heard: map[string]peer{},
		holding: map[netip.Addr]bool{}, telling: map[netip.Addr]bool{}}, nil
}

// SetPeers says which nodes of the cluster may announce, and at which address each is heard. It may contain this node itself.
func (s *Speaker) SetPeers(peers map[string]netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peers = maps.Clone(peers)
	delete(s.peers, s.Node)
	for name := range s.heard {
		if _, known := s.peers[name]; !known {
			delete(s.heard, name)
		}
	}
	s.changed()
}

// SetAddresses says what the cluster's speakers are to answer for.
func (s *Speaker) SetAddresses(addresses []loadbalancer.Address) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addresses, s.stale = slices.Clone(addresses), true
	s.changed()
}

// SetStanding says what this node may do. Others learn of it at once.
func (s *Speaker) SetStanding(standing loadbalancer.Standing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.standing != standing {
		s.Log.Info("this node's standing changed", "standing", standing)
		s.standing = standing
		s.send()
		s.changed()
	}
}

// Holding are the addresses that this node answers for on the segment.
func (s *Speaker) Holding() []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Keys(s.holding), netip.Addr.Compare)
}

func (s *Speaker) changed() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// Run takes part until ctx ends. Then this node withdraws: it tells the others, who take over at once.
func (s *Speaker) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() { defer close(done); s.receive() }()
	// Whoever starts knows nobody yet and would take everything.
	listened := time.NewTimer(s.Pace.Lost)
	defer listened.Stop()
	ticker := time.NewTicker(s.Pace.Every)
	defer ticker.Stop()
	defer func() { s.withdraw(); s.socket.Close(); <-done }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-listened.C:
			s.mu.Lock()
			s.listening = true
			s.send()
			s.mu.Unlock()
		case <-ticker.C:
			s.mu.Lock()
			s.send()
			s.mu.Unlock()
		case <-s.poke:
		}
		s.elect(time.Now())
	}
}

// withdraw says goodbye more than once: a datagram may be lost.
func (s *Speaker) withdraw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standing = loadbalancer.Absent
	for range 3 {
		s.send()
	}
	clear(s.holding)
	clear(s.telling)
	if s.Router != nil {
		s.Router.Set(nil)
	}
	s.Answerer.Set(nil)
}

// own is this node's standing as others see it. It is called under mu.
func (s *Speaker) own() loadbalancer.Standing {
	if !s.listening {
		return loadbalancer.Absent
	}
	return s.standing
}

// send tells all peers. It is called under mu. A peer that cannot be reached is one that the others do not hear either, or soon
// do; nothing follows from an error here.
func (s *Speaker) send() {
	s.number = max(s.number+1, uint64(time.Now().UnixNano()))
	b := heartbeat{s.number, s.own(), s.Node, s.Answerer.Networks()}.encode(s.Key)
	for _, to := range s.peers {
		_, _ = s.socket.WriteToUDPAddrPort(b, to)
	}
}

func (s *Speaker) receive() {
	b := make([]byte, 2048)
	for {
		n, _, err := s.socket.ReadFromUDPAddrPort(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			continue // a peer's host says that nobody listens there
		}
		if h, err := decode(b[:n], s.Key); err == nil {
			s.hear(h, time.Now())
		}
	}
}

func (s *Speaker) hear(h heartbeat, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.peers[h.node]; !known {
		return
	}
	was, before := s.heard[h.node]
	if before && h.number <= was.number {
		return
	}
	s.heard[h.node] = peer{h, now}
	if !before || was.standing != h.standing || now.Sub(was.at) > s.Pace.Lost || !slices.Equal(was.networks, h.networks) {
		s.changed()
	}
}

// elect makes the Answerer answer for what is this node's part.
func (s *Speaker) elect(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	members := s.present(now)
	var seen, networks []string
	for _, m := range members {
		seen = append(seen, m.Name+" "+m.Standing.String())
		networks = append(networks, fmt.Sprint(m.Networks))
	}
	who, where := strings.Join(seen, ", "), strings.Join(networks, ", ")
	if who == s.members && where == s.networks && !s.stale {
		return
	}
	others := who != s.members && s.members != ""
	if who != s.members {
		s.Log.Info("nodes that announce", "nodes", who)
	}
	s.members, s.networks, s.stale = who, where, false
	holding, telling := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, address := range s.addresses {
		switch {
		case address.Routed && loadbalancer.Tells(s.Node, address, members):
			telling[address.Addr] = true
		case !address.Routed && loadbalancer.Holder(address, members) == s.Node:
			holding[address.Addr] = true
		}
	}
	if s.Router != nil && !maps.Equal(telling, s.telling) {
		s.telling = telling
		s.Router.Set(slices.SortedFunc(maps.Keys(telling), netip.Addr.Compare))
	}
	if !maps.Equal(holding, s.holding) {
		s.holding = holding
		s.Answerer.Set(slices.SortedFunc(maps.Keys(holding), netip.Addr.Compare))
	}
	// Whoever comes or goes may have answered for an address that is ours: it may not have heard us for a while.
	if others {
		s.Answerer.Tell()
	}
}

// present are this node and those that are heard. It is called under mu.
func (s *Speaker) present(now time.Time) []loadbalancer.Member {
	// A program that was itself held up has not listened, and silence says nothing.
	if held := now.Sub(s.elected); !s.elected.IsZero() && held > 2*s.Pace.Every {
		for name, p := range s.heard {
			p.at = p.at.Add(held - s.Pace.Every)
			s.heard[name] = p
		}
	}
	s.elected = now
	members := []loadbalancer.Member{{Name: s.Node, Standing: s.own(), Networks: s.Answerer.Networks()}}
	for name, p := range s.heard {
		// What was heard stays known, so that it cannot be sent again; but it does not count.
		if now.Sub(p.at) <= s.Pace.Lost {
			members = append(members, loadbalancer.Member{Name: name, Standing: p.standing, Networks: p.networks})
		}
	}
	slices.SortFunc(members, func(a, b loadbalancer.Member) int { return strings.Compare(a.Name, b.Name) })
	return members
}
