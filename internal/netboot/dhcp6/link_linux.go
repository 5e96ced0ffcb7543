package dhcp6

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// iface is a link over a real interface: one UDP socket bound to it, in the groups of RFC 8415, section 7.1.
type iface struct {
	device string
	index  int
	udp    *net.UDPConn
	conn   *ipv6.PacketConn
	own    atomic.Pointer[[]netip.Addr]
	log    *slog.Logger
	count  *counters
	close  func()
}

// groups are all servers and relays on the link, and all servers of the site, which relays ask.
var groups = []net.IP{net.ParseIP("ff02::1:2"), net.ParseIP("ff05::1:3")}

// receiveBuffer holds the messages of a thousand machines powered on at once, bytes.
const receiveBuffer = 4 << 20

// longest is the longest message that is read, bytes; longer ones are cut, and so malformed. Eight relays add up to much less than 2 KiB.
const longest = 4096

// openIface opens the socket of an interface that has the addresses own. It must run in the interface's network namespace.
func openIface(ctx context.Context, device string, own []netip.Addr, log *slog.Logger, count *counters) (*iface, error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", device, err)
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var option error
		err := raw.Control(func(fd uintptr) {
			option = unix.BindToDevice(int(fd), device)
			// Above the usual limit only with CAP_NET_ADMIN; less will do where there is none.
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
			}
		})
		return errors.Join(err, option)
	}}
	socket, err := config.ListenPacket(ctx, "udp6", fmt.Sprintf("[::]:%d", ServerPort))
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("another DHCPv6 server runs on this machine for interface %s (port %d is taken); stop it: %w", device, ServerPort, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("no privilege to serve DHCPv6 on interface %s; needs CAP_NET_BIND_SERVICE and CAP_NET_RAW: %w", device, err)
	case err != nil:
		return nil, fmt.Errorf("open the DHCPv6 socket on interface %s: %w", device, err)
	}
	udp := socket.(*net.UDPConn)
	l := &iface{device: device, index: ifi.Index, udp: udp, conn: ipv6.NewPacketConn(udp), log: log, count: count, close: sync.OnceFunc(func() { udp.Close() })}
	l.own.Store(&own)
	err = l.conn.SetControlMessage(ipv6.FlagDst, true)
	for _, group := range groups {
		err = errors.Join(err, l.conn.JoinGroup(ifi, &net.UDPAddr{IP: group}))
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("listen for DHCPv6 clients on interface %s: %w", device, err)
	}
	return l, nil
}

func (l *iface) name() string            { return l.device }
func (l *iface) addresses() []netip.Addr { return *l.own.Load() }

// receive hands on messages until the socket fails or is closed.
func (l *iface) receive(handle func(incoming)) error {
	const batch = 64
	messages := make([]ipv6.Message, batch)
	for i := range messages {
		messages[i].Buffers = [][]byte{make([]byte, longest)}
		messages[i].OOB = make([]byte, 128)
	}
	for {
		n, err := l.conn.ReadBatch(messages, 0)
		if err != nil {
			if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) {
				continue // reported once for an earlier reply, or the cable was pulled
			}
			return err
		}
		for i := range messages[:n] {
			m := &messages[i]
			from, ok := m.Addr.(*net.UDPAddr)
			if !ok {
				continue
			}
			in := incoming{link: l, payload: m.Buffers[0][:m.N], source: netip.AddrPortFrom(from.AddrPort().Addr().WithZone(""), from.AddrPort().Port())}
			var control ipv6.ControlMessage
			if control.Parse(m.OOB[:m.NN]) == nil {
				in.multicast = control.Dst.IsMulticast()
			}
			handle(in)
		}
	}
}

// send sends a reply by the interface: the zone's name may belong to another network namespace, its index does not.
func (l *iface) send(payload []byte, to netip.AddrPort) {
	_, err := l.conn.WriteTo(payload, &ipv6.ControlMessage{IfIndex: l.index}, net.UDPAddrFromAddrPort(to))
	if err == nil || errors.Is(err, net.ErrClosed) {
		return
	}
	l.count.sendErrors.Add(1)
	l.log.Debug("cannot send a DHCPv6 reply", "interface", l.device, "to", to, "err", err)
}

var _ link = (*iface)(nil)
