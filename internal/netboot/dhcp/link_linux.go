package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// iface is a link over a real interface.
//
// Messages come in, and go to relays, to clients that have an address and to everyone, by a UDP
// socket bound to the interface; the kernel does the rest. A packet socket is for what needs frames:
// clients that have no address yet, ARP, and the answers of other servers.
type iface struct {
	device string
	index  int
	udp    *net.UDPConn
	boot   *net.UDPConn // of BootPort; nil when another program has it
	frames *packet.Conn
	own    atomic.Pointer[[]netip.Addr]
	log    *slog.Logger
	count  *counters

	mu     sync.Mutex
	probes map[netip.Addr][]*probe
	closed bool
}

type probe struct {
	timers  []*time.Timer
	holders []net.HardwareAddr // who has answered so far
	done    func([]net.HardwareAddr)
}

// receiveBuffer holds the messages of a thousand machines powered on at once, bytes.
const receiveBuffer = 4 << 20

// probeTime is how long an ARP probe waits for an answer; the question is asked twice in it.
const probeTime = 200 * time.Millisecond

// mostHolders bounds how many answers to one probe are kept.
const mostHolders = 8

// openIface opens the sockets of an interface that has the addresses own. It must run in the interface's network namespace.
func openIface(ctx context.Context, device string, own []netip.Addr, log *slog.Logger, count *counters) (_ *iface, err error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", device, err)
	}
	l := &iface{device: device, index: ifi.Index, log: log, count: count, probes: map[netip.Addr][]*probe{}}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	l.own.Store(&own)
	conn, err := listen(ctx, device, ServerPort)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("another DHCP server runs on this machine for interface %s (port %d is taken); stop it: %w", device, ServerPort, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("no privilege to serve DHCP on interface %s; needs CAP_NET_BIND_SERVICE and CAP_NET_RAW: %w", device, err)
	case err != nil:
		return nil, fmt.Errorf("open the DHCP socket on interface %s: %w", device, err)
	}
	l.udp = conn
	// Most firmware is content with what it is told on port 67.
	if l.boot, err = listen(ctx, device, BootPort); err != nil {
		log.Warn("boot server discovery is off: firmware that asks on this port gets no answer", "interface", device, "port", BootPort, "err", err)
	}
	filter, err := frameFilter()
	if err != nil {
		return nil, err
	}
	l.frames, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on interface %s (needs CAP_NET_RAW): %w", device, err)
	}
	return l, l.ignoreOutgoing()
}

// listen opens a UDP socket of one interface for all its addresses.
func listen(ctx context.Context, device string, port int) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var option error
		err := raw.Control(func(fd uintptr) {
			option = errors.Join(
				unix.BindToDevice(int(fd), device),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1),
			)
			// Above the usual limit only with CAP_NET_ADMIN; less will do where there is none.
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
			}
		})
		return errors.Join(err, option)
	}}
	conn, err := config.ListenPacket(ctx, "udp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// ignoreOutgoing keeps the kernel from cloning for us each packet of every download we serve.
func (l *iface) ignoreOutgoing() error {
	raw, err := l.frames.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	})
}

// hardware gives the interface's present Ethernet address, nil when it has none. A bridge changes its
// own whenever ports come and go, so it is asked for each time; the packet socket knows it.
func (l *iface) hardware() net.HardwareAddr {
	raw, err := l.frames.SyscallConn()
	if err != nil {
		return nil
	}
	var mac net.HardwareAddr
	raw.Control(func(fd uintptr) {
		name, err := unix.Getsockname(int(fd))
		if link, ok := name.(*unix.SockaddrLinklayer); err == nil && ok && link.Hatype == unix.ARPHRD_ETHER && link.Halen == 6 {
			mac = link.Addr[:6]
		}
	})
	return mac
}

func (l *iface) name() string            { return l.device }
func (l *iface) addresses() []netip.Addr { return *l.own.Load() }

func (l *iface) close() {
	l.mu.Lock()
	l.closed = true
	for _, all := range l.probes {
		for _, p := range all {
			p.stop()
		}
	}
	l.probes = nil
	l.mu.Unlock()
	if l.udp != nil {
		l.udp.Close()
	}
	if l.boot != nil {
		l.boot.Close()
	}
	if l.frames != nil {
		l.frames.Close()
	}
}

// receive hands on messages of one of the UDP sockets until it fails or is closed.
func (l *iface) receive(socket *net.UDPConn, handle func(incoming)) error {
	const batch, longest = 64, 1500
	messages := make([]ipv4.Message, batch)
	for i := range messages {
		messages[i].Buffers = [][]byte{make([]byte, longest)}
		messages[i].OOB = make([]byte, 64)
	}
	conn := ipv4.NewPacketConn(socket)
	for {
		n, err := conn.ReadBatch(messages, 0)
		if err != nil {
			if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) {
				continue // reported once for an earlier reply, or the cable was pulled
			}
			return err
		}
		for i := range messages[:n] {
			m := &messages[i]
			in := incoming{link: l, boot: socket == l.boot, payload: m.Buffers[0][:m.N]}
			if from, ok := m.Addr.(*net.UDPAddr); ok {
				in.source, in.port = from.AddrPort().Addr().Unmap(), from.AddrPort().Port()
			}
			var control ipv4.ControlMessage
			if control.Parse(m.OOB[:m.NN]) == nil {
				in.destination = toNetip(control.Dst)
			}
			handle(in)
		}
	}
}

// watch hands ARP replies to the probes and the replies of DHCP servers to overheard.
func (l *iface) watch(overheard func(link, []byte)) error {
	frame := make([]byte, 2048)
	for {
		n, _, err := l.frames.ReadFrom(frame)
		if err != nil {
			if errors.Is(err, unix.ENETDOWN) {
				continue
			}
			return err
		}
		if address, holder, ok := parseARPReply(frame[:n]); ok {
			l.answered(address, holder)
		} else if payload := udpPayload(frame[:n]); payload != nil {
			overheard(l, payload)
		}
	}
}

func (l *iface) send(out outgoing) {
	var err error
	var mac net.HardwareAddr
	if out.hardware != nil {
		mac = l.hardware()
	}
	if mac != nil {
		frame := udpFrame(mac, out.hardware, netip.AddrPortFrom(out.from, ServerPort), out.to, out.payload)
		_, err = l.frames.WriteTo(frame, &packet.Addr{HardwareAddr: out.hardware})
	} else {
		to := out.to
		if out.hardware != nil { // no Ethernet: only a broadcast reaches the client
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), ClientPort)
		}
		control := ipv4.ControlMessage{Src: out.from.AsSlice()}
		socket := l.udp
		if out.boot {
			socket = l.boot
		}
		_, _, err = socket.WriteMsgUDPAddrPort(out.payload, control.Marshal(), to)
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		l.count.sendErrors.Add(1)
		l.log.Warn("cannot send a DHCP reply", "interface", l.device, "to", out.to, "err", err)
	}
}

func (l *iface) probe(address netip.Addr, done func([]net.HardwareAddr)) bool {
	if l.hardware() == nil {
		return false
	}
	ask := func() {
		if mac := l.hardware(); mac != nil {
			l.frames.WriteTo(arpProbe(mac, address), &packet.Addr{HardwareAddr: etherBroadcast})
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	p := &probe{done: done}
	l.probes[address] = append(l.probes[address], p)
	p.timers = []*time.Timer{
		time.AfterFunc(probeTime/2, ask),
		time.AfterFunc(probeTime, func() { l.finish(address, p) }),
	}
	ask()
	return true
}

func (p *probe) stop() {
	for _, t := range p.timers {
		t.Stop()
	}
}

// finish ends a probe when its time is up.
func (l *iface) finish(address netip.Addr, p *probe) {
	l.mu.Lock()
	i := slices.Index(l.probes[address], p)
	if i >= 0 {
		l.probes[address] = slices.Delete(l.probes[address], i, i+1)
	}
	if len(l.probes[address]) == 0 {
		delete(l.probes, address)
	}
	l.mu.Unlock()
	if i >= 0 {
		p.done(p.holders)
	}
}

// answered notes who has an address. A probe goes on: where a proxy answers for everybody, the real holder answers, too.
func (l *iface) answered(address netip.Addr, holder net.HardwareAddr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.probes[address] {
		if !slices.ContainsFunc(p.holders, func(h net.HardwareAddr) bool { return bytes.Equal(h, holder) }) && len(p.holders) < mostHolders {
			p.holders = append(p.holders, holder)
		}
	}
}
