package segment

import (
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/mdlayher/packet"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// link answers on one interface.
type link struct {
	name     string
	index    int
	hardware net.HardwareAddr
	log      *slog.Logger
	arp      *packet.Conn
	// ndp is nil where IPv6 is off.
	ndp    *ipv6.PacketConn
	failed atomic.Bool
	closed atomic.Bool
	// lost is called when the link cannot go on.
	lost func()
	wg   sync.WaitGroup

	mu        sync.Mutex
	addresses map[netip.Addr]bool
	groups    map[netip.Addr]int // solicited-node groups, and how many of the addresses each has
}

// open listens on the interface, in the network namespace of the calling thread.
func open(i net.Interface, log *slog.Logger, lost func()) (*link, error) {
	l := &link{name: i.Name, index: i.Index, hardware: i.HardwareAddr, log: log, lost: lost, addresses: map[netip.Addr]bool{}, groups: map[netip.Addr]int{}}
	var err error
	if l.arp, err = packet.Listen(&i, packet.Datagram, unix.ETH_P_ARP, nil); err != nil {
		return nil, err
	}
	l.wg.Go(l.serveARP)
	if err := l.listenNDP(); err != nil {
		log.Info("no IPv6 on an interface; IPv6 addresses are not announced there", "interface", l.name, "err", err)
		return l, nil
	}
	l.wg.Go(l.serveNDP)
	return l, nil
}

func (l *link) listenNDP() error {
	raw, err := net.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return err
	}
	conn := ipv6.NewPacketConn(raw)
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeNeighborSolicitation)
	if err := errors.Join(conn.SetICMPFilter(&filter), conn.SetControlMessage(ipv6.FlagInterface|ipv6.FlagHopLimit, true)); err != nil {
		conn.Close()
		return err
	}
	l.ndp = conn
	return nil
}

func (l *link) close() {
	l.closed.Store(true)
	l.arp.Close()
	if l.ndp != nil {
		l.ndp.Close()
	}
	l.wg.Wait()
}

func (l *link) broken() bool { return l.failed.Load() }

func (l *link) fail(err error) {
	if l.closed.Load() {
		return
	}
	l.log.Warn("lost an interface; looking for it again", "interface", l.name, "err", err)
	l.failed.Store(true)
	l.lost()
}

// set makes the link answer for exactly these, and returns those that are new.
func (l *link) set(addresses map[netip.Addr]bool) (fresh []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	groups := map[netip.Addr]int{}
	for address := range addresses {
		if !l.addresses[address] {
			fresh = append(fresh, address)
		}
		if address.Is6() {
			groups[solicitedNode(address)]++
		}
	}
	l.addresses = maps.Clone(addresses)
	if l.ndp == nil {
		return fresh
	}
	// Without membership a switch or the network card keeps questions away.
	on := &net.Interface{Index: l.index, Name: l.name}
	for group := range groups {
		if l.groups[group] == 0 {
			if err := l.ndp.JoinGroup(on, &net.IPAddr{IP: group.AsSlice()}); err != nil {
				l.log.Warn("cannot join a multicast group; neighbour solicitations may not arrive", "interface", l.name, "group", group, "err", err)
			}
		}
	}
	for group := range l.groups {
		if groups[group] == 0 {
			_ = l.ndp.LeaveGroup(on, &net.IPAddr{IP: group.AsSlice()}) // the interface may have gone, and the membership with it
		}
	}
	l.groups = groups
	return fresh
}

func (l *link) answersFor(address netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addresses[address]
}

func (l *link) announce(address netip.Addr) error {
	if address.Is4() {
		for _, b := range gratuitous(address, l.hardware) {
			if _, err := l.arp.WriteTo(b, &packet.Addr{HardwareAddr: broadcast}); err != nil {
				return err
			}
		}
		return nil
	}
	return l.advertise(address, net.IP(allNodes.AsSlice()), false)
}

func (l *link) advertise(address netip.Addr, to net.IP, solicited bool) error {
	if l.ndp == nil {
		return errors.New("IPv6 is off on this interface")
	}
	_, err := l.ndp.WriteTo(advertisement(address, l.hardware, solicited), &ipv6.ControlMessage{HopLimit: hopLimit, IfIndex: l.index}, &net.IPAddr{IP: to})
	return err
}

func (l *link) serveARP() {
	b := make([]byte, 1500)
	for {
		n, from, err := l.arp.ReadFrom(b)
		if err != nil {
			l.fail(err)
			return
		}
		// A host's question for itself is news, and no question.
		asked, ok := parseARP(b[:n])
		if !ok || asked.operation != arpRequest || asked.sender == asked.target || !l.answersFor(asked.target) {
			continue
		}
		source, ok := from.(*packet.Addr)
		if !ok {
			continue
		}
		answer := arp{arpReply, l.hardware, asked.target, asked.senderHardware, asked.sender}
		if _, err := l.arp.WriteTo(answer.encode(), &packet.Addr{HardwareAddr: source.HardwareAddr}); err != nil {
			l.log.Warn("cannot answer ARP", "interface", l.name, "address", asked.target, "err", err)
		}
	}
}

func (l *link) serveNDP() {
	b := make([]byte, 1500)
	for {
		n, control, from, err := l.ndp.ReadFrom(b)
		if err != nil {
			l.fail(err)
			return
		}
		if control == nil || control.IfIndex != l.index || control.HopLimit != hopLimit {
			continue
		}
		target, ok := parseSolicitation(b[:n])
		if !ok || !l.answersFor(target) {
			continue
		}
		source, ok := from.(*net.IPAddr)
		if !ok {
			continue
		}
		// A host that looks whether the address is free has none yet; everybody is told (RFC 4861, section 7.2.4).
		to, solicited := source.IP, true
		if to.IsUnspecified() {
			to, solicited = net.IP(allNodes.AsSlice()), false
		}
		if err := l.advertise(target, to, solicited); err != nil {
			l.log.Warn("cannot answer a neighbour solicitation", "interface", l.name, "address", target, "err", err)
		}
	}
}
