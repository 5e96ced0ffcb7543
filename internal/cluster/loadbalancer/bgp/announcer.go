package bgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// Port of BGP, by TCP.
const Port = 179

const (
	// retryAfter is the time between two attempts at a session. Its first second is not waited for an answer.
	retryAfter = 5 * time.Second
	// stopWithin is how long a router may take to be told goodbye.
	stopWithin = 2 * time.Second
)

// Peer is a router.
type Peer struct {
	// Name by which people know it.
	Name string
	// Address and port that it listens on.
	Address netip.AddrPort
	// ASN is the router's autonomous system.
	ASN uint32
	// HoldTime is the silence, in whole seconds, after which either side takes the other for gone. The router may want less.
	HoldTime time.Duration
	// Hops away; 0 and 1: on a segment of the node. Only between different autonomous systems.
	Hops uint8
	// Password of TCP's MD5 signature (RFC 2385), at most 80 bytes; empty: none.
	Password string
}

// Config is whom to tell, and as who.
type Config struct {
	// ASN is the nodes' autonomous system.
	ASN   uint32
	Peers []Peer
	// Communities of an address's route: "ASN:VALUE", "ASN:VALUE:VALUE" or no-export, no-advertise. nil: none.
	Communities func(netip.Addr) []string
}

// Options of New.
type Options struct {
	Log *slog.Logger
	// Node is this node's name, Home its addresses. Sessions come from the first of the peer's family.
	Node string
	Home []netip.Addr
	// Tell is called when a session has come up, has ended, or does not come up for another reason than before; nil: nobody is told.
	// It is called by one goroutine.
	Tell func(Session)
}

// Announcer keeps sessions with routers and tells them of addresses.
type Announcer struct {
	Options
	sessions *sessions

	// wanted are the addresses to be told. They have a lock of their own, so that Set never waits for a router.
	wants  sync.Mutex
	wanted []netip.Addr
	closed bool
	poke   chan struct{} // of capacity one: they are others
	done   chan struct{}

	mu     sync.Mutex
	server *server.BgpServer // nil: no peers
	config Config
	// peers that have been set up, by address; told are the addresses that the server has, with their communities.
	peers map[netip.Addr]Peer
	told  map[netip.Addr]string
}

// New returns an Announcer without sessions.
func New(o Options) *Announcer {
	if o.Tell == nil {
		o.Tell = func(Session) {}
	}
	a := &Announcer{Options: o, sessions: newSessions(o.Log, o.Tell), poke: make(chan struct{}, 1), done: make(chan struct{}), peers: map[netip.Addr]Peer{}, told: map[netip.Addr]string{}}
	go a.run()
	return a
}

func (a *Announcer) run() {
	defer close(a.done)
	for range a.poke {
		a.mu.Lock()
		if err := a.sync(); err != nil {
			a.Log.Error("routers are not told of an address", "err", err)
		}
		a.mu.Unlock()
	}
}

// Configure keeps sessions with exactly these peers. Those that are as before go on undisturbed. The first error is returned, and
// the rest is done.
func (a *Announcer) Configure(c Config) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server != nil && (len(c.Peers) == 0 || c.ASN != a.config.ASN) {
		a.stop()
	}
	a.config = c
	if len(c.Peers) == 0 {
		return nil
	}
	if err := a.start(); err != nil {
		return err
	}
	var errs []error
	want := map[netip.Addr]Peer{}
	for _, p := range c.Peers {
		want[p.Address.Addr()] = p
	}
	for address, p := range a.peers {
		if want[address] != p {
			errs = append(errs, a.server.DeletePeer(context.Background(), &api.DeletePeerRequest{Address: address.String()}))
			delete(a.peers, address)
			a.sessions.forget(address)
		}
	}
	for _, p := range c.Peers {
		if _, ok := a.peers[p.Address.Addr()]; ok {
			continue
		}
		if err := a.add(p); err != nil {
			errs = append(errs, fmt.Errorf("router %s: %w", p.Name, err))
		}
	}
	errs = append(errs, a.sync())
	return errors.Join(errs...)
}

// Set tells the routers of exactly these addresses. It does not wait until they know.
func (a *Announcer) Set(addresses []netip.Addr) {
	a.wants.Lock()
	defer a.wants.Unlock()
	if a.closed {
		return
	}
	a.wanted = slices.Clone(addresses)
	select {
	case a.poke <- struct{}{}:
	default:
	}
}

// Close ends all sessions. Routers are told, and have no route to this node from then on.
func (a *Announcer) Close() {
	a.wants.Lock()
	if !a.closed {
		a.closed, a.wanted = true, nil
		close(a.poke)
	}
	a.wants.Unlock()
	<-a.done
	a.mu.Lock()
	a.stop()
	a.mu.Unlock()
	a.sessions.close()
}

// start is called under mu.
func (a *Announcer) start() error {
	if a.server != nil {
		return nil
	}
	own := &api.Policy{Name: "own", Statements: []*api.Statement{{Name: "own",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL}, Actions: &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT}}}}
	level := new(slog.LevelVar)
	level.Set(slog.LevelDebug)
	s := server.NewBgpServer(server.LoggerOption(slog.New(a.sessions.listener()), level))
	go s.Serve()
	if err := s.StartBgp(context.Background(), &api.StartBgpRequest{Global: &api.Global{Asn: a.config.ASN, RouterId: a.routerID().String(), ListenPort: -1}}); err != nil {
		return fmt.Errorf("start BGP: %w", err)
	}
	err := errors.Join(
		// Default policies are of the node's own routes, too. So these are let in, and no others.
		s.AddPolicy(context.Background(), &api.AddPolicyRequest{Policy: own}),
		s.SetPolicyAssignment(context.Background(), &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{Name: "global",
			Direction: api.PolicyDirection_POLICY_DIRECTION_IMPORT, Policies: []*api.Policy{own}, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT}}),
		s.WatchEvent(context.Background(), server.WatchEventMessageCallbacks{OnPeerUpdate: a.sessions.changed}, server.WatchPeer()))
	if err != nil {
		s.Stop()
		return fmt.Errorf("start BGP: %w", err)
	}
	a.server = s
	return nil
}

// stop is called under mu.
func (a *Announcer) stop() {
	if a.server == nil {
		return
	}
	for address := range a.peers {
		a.sessions.forget(address)
	}
	done := make(chan struct{})
	go func(s *server.BgpServer) { defer close(done); s.Stop() }(a.server)
	select {
	case <-done:
	case <-time.After(stopWithin):
		a.Log.Warn("a router does not take the end of its session; it notices when the hold time is over")
	}
	a.server = nil
	clear(a.peers)
	clear(a.told)
}

// routerID is unique among the nodes: the IPv4 address, or what follows from the name.
func (a *Announcer) routerID() netip.Addr {
	for _, home := range a.Home {
		if home.Is4() {
			return home
		}
	}
	h := fnv.New32a()
	h.Write([]byte(a.Node))
	n := h.Sum32() | 1 // never zero
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// add is called under mu.
func (a *Announcer) add(p Peer) error {
	address := p.Address.Addr()
	i := slices.IndexFunc(a.Home, func(home netip.Addr) bool { return home.Is4() == address.Is4() })
	if i < 0 {
		err := fmt.Errorf("this node has no address of the family of %s", address)
		a.sessions.follow(p, err.Error())
		return err
	}
	family := &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
	if address.Is6() {
		family.Afi = api.Family_AFI_IP6
	}
	peer := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: address.String(), PeerAsn: p.ASN, AuthPassword: p.Password},
		Timers: &api.Timers{Config: &api.TimersConfig{HoldTime: uint64(p.HoldTime / time.Second), KeepaliveInterval: uint64(p.HoldTime / time.Second / 3),
			ConnectRetry: uint64(retryAfter / time.Second), IdleHoldTimeAfterReset: 1}},
		Transport: &api.Transport{LocalAddress: a.Home[i].String(), RemotePort: uint32(cmp.Or(p.Address.Port(), Port))},
		AfiSafis:  []*api.AfiSafi{{Config: &api.AfiSafiConfig{Family: family, Enabled: true}}},
	}
	if p.Hops > 1 && p.ASN != a.config.ASN {
		peer.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(p.Hops)}
	}
	a.sessions.follow(p, "")
	if err := a.server.AddPeer(context.Background(), &api.AddPeerRequest{Peer: peer}); err != nil {
		return err
	}
	a.peers[address] = p
	return nil
}

// sync makes the server have what is wanted. It is called under mu.
func (a *Announcer) sync() error {
	if a.server == nil {
		return nil
	}
	var errs []error
	a.wants.Lock()
	wanted := a.wanted
	a.wants.Unlock()
	want := map[netip.Addr]string{}
	for _, address := range wanted {
		communities := ""
		if a.config.Communities != nil {
			communities = strings.Join(a.config.Communities(address), " ")
		}
		want[address] = communities
	}
	for address := range a.told {
		if _, ok := want[address]; ok {
			continue
		}
		path, err := route(address, "")
		if err == nil {
			err = a.server.DeletePath(apiutil.DeletePathRequest{Paths: []*apiutil.Path{path}})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("withdraw %s: %w", address, err))
			continue
		}
		a.Log.Info("address withdrawn from routers", "address", address)
		delete(a.told, address)
	}
	for address, communities := range want {
		if told, ok := a.told[address]; ok && told == communities {
			continue
		}
		path, err := route(address, communities)
		if err == nil {
			_, err = a.server.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{path}})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("announce %s: %w", address, err))
			continue
		}
		a.Log.Info("routers are told of address", "address", address)
		a.told[address] = communities
	}
	return errors.Join(errs...)
}

// route of an address, with this node as next hop: each session has its own address there.
func route(address netip.Addr, communities string) (*apiutil.Path, error) {
	prefix, err := bgp.NewIPAddrPrefix(netip.PrefixFrom(address, address.BitLen()))
	if err != nil {
		return nil, err
	}
	family, self := bgp.RF_IPv4_UC, netip.IPv4Unspecified()
	if address.Is6() {
		family, self = bgp.RF_IPv6_UC, netip.IPv6Unspecified()
	}
	path := &apiutil.Path{Family: family, Nlri: prefix, Attrs: []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP)}}
	if address.Is4() {
		hop, err := bgp.NewPathAttributeNextHop(self)
		if err != nil {
			return nil, err
		}
		path.Attrs = append(path.Attrs, hop)
	} else {
		reach, err := bgp.NewPathAttributeMpReachNLRI(family, []bgp.PathNLRI{{NLRI: prefix}}, self)
		if err != nil {
			return nil, err
		}
		path.Attrs = append(path.Attrs, reach)
	}
	standard, large, err := parseCommunities(strings.Fields(communities))
	if err != nil {
		return nil, err
	}
	if len(standard) > 0 {
		path.Attrs = append(path.Attrs, bgp.NewPathAttributeCommunities(standard))
	}
	if len(large) > 0 {
		path.Attrs = append(path.Attrs, bgp.NewPathAttributeLargeCommunities(large))
	}
	return path, nil
}

func parseCommunities(texts []string) (standard []uint32, large []*bgp.LargeCommunity, err error) {
	for _, text := range texts {
		switch text {
		case "no-export":
			standard = append(standard, uint32(bgp.COMMUNITY_NO_EXPORT))
			continue
		case "no-advertise":
			standard = append(standard, uint32(bgp.COMMUNITY_NO_ADVERTISE))
			continue
		}
		parts := strings.Split(text, ":")
		bits := 32
		if len(parts) == 2 {
			bits = 16
		}
		var n []uint32
		for _, part := range parts {
			v, err := strconv.ParseUint(part, 10, bits)
			if err != nil {
				return nil, nil, fmt.Errorf("community %q: %w", text, err)
			}
			n = append(n, uint32(v))
		}
		switch len(n) {
		case 2:
			standard = append(standard, n[0]<<16|n[1])
		case 3:
			large = append(large, bgp.NewLargeCommunity(n[0], n[1], n[2]))
		default:
			return nil, nil, fmt.Errorf("community %q: want two or three numbers", text)
		}
	}
	return standard, large, nil
}
