package rehearse

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/netns"
)

// cable is the one interface that all simulated machines share. DHCP goes over a packet socket under each
// machine's own MAC; for TFTP and TCP a machine's leased address becomes a local one of this namespace, so that
// the server sees as many addresses as there are machines.
type cable struct {
	link   netlink.Link
	mac    net.HardwareAddr
	packet *packet.Conn
	// server is a handle of the server's namespace: its neighbour table is filled in by hand, because the
	// kernel's limit of 1024 learned neighbours (gc_thresh3) is this host's and not the rehearsal's to change.
	server *netlink.Handle
	port   int // index of the server's interface
	filter []unix.SockFilter
	loss   float64

	mu      sync.Mutex
	waiting map[[6]byte]chan<- *dhcpv4.DHCPv4
	users   map[netip.Addr]int

	sent     sync.Mutex // one frame at a time
	received atomic.Int64
	done     sync.WaitGroup
}

// openCable works in the present namespace; port is the interface of the server's namespace at the other end.
func openCable(link string, serverNS, port string, loss float64) (*cable, error) {
	w := &cable{loss: loss, waiting: map[[6]byte]chan<- *dhcpv4.DHCPv4{}, users: map[netip.Addr]int{}}
	var err error
	if w.link, err = netlink.LinkByName(link); err != nil {
		return nil, fmt.Errorf("interface %s: %w", link, err)
	}
	w.mac = w.link.Attrs().HardwareAddr
	err = netns.Do(serverNS, func() error {
		handle, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		w.server = handle
		other, err := handle.LinkByName(port)
		if err != nil {
			return err
		}
		w.port = other.Attrs().Index
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("server's end of the wire: %w", err)
	}
	ours, err := net.InterfaceByName(link)
	if err != nil {
		return nil, err
	}
	filter, err := dhcpFilter(loss)
	if err != nil {
		return nil, err
	}
	if w.packet, err = packet.Listen(ours, packet.Raw, unix.ETH_P_IP, &packet.Config{Filter: filter}); err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w", link, err)
	}
	// What is dropped here would look like the server's loss.
	if raw, err := w.packet.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20) })
	}
	if loss > 0 {
		lossy, err := bpf.Assemble(lose(loss, 0xffffffff))
		if err != nil {
			return nil, err
		}
		for _, i := range lossy {
			w.filter = append(w.filter, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K})
		}
	}
	w.done.Go(w.receive)
	return w, nil
}

// lose is a filter that drops packets at random and otherwise lets keep bytes of them through. It works on
// every kernel; the queueing discipline netem is a module that many lack.
func lose(loss float64, keep uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtRand},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(loss * float64(1<<32-1)), SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: keep},
	}
}

// dhcpFilter lets datagrams to port 68 through, those apart that are lost.
func dhcpFilter(loss float64) ([]bpf.RawInstruction, error) {
	return bpf.Assemble(append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 14 + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 3},
		bpf.LoadMemShift{Off: 14},
		bpf.LoadIndirect{Off: 14 + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 68, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}, lose(loss, 65535)...))
}

func (w *cable) close() {
	w.packet.Close()
	w.done.Wait()
	w.server.Close()
}

// receive hands the DHCP messages to the machines they are for.
func (w *cable) receive() {
	buffer := make([]byte, 2048)
	for {
		n, _, err := w.packet.ReadFrom(buffer)
		if err != nil {
			return
		}
		payload := payloadOf(buffer[:n])
		if len(payload) < 240 {
			continue
		}
		w.mu.Lock()
		box := w.waiting[[6]byte(payload[28:34])]
		w.mu.Unlock()
		if box == nil {
			continue
		}
		m, err := dhcpv4.FromBytes(append([]byte(nil), payload...))
		if err != nil {
			continue
		}
		select {
		case box <- m:
		default: // a machine that is behind loses what real hardware would
		}
	}
}

func (w *cable) expect(mac net.HardwareAddr) (box <-chan *dhcpv4.DHCPv4, leave func()) {
	c := make(chan *dhcpv4.DHCPv4, 4)
	key := [6]byte(mac)
	w.mu.Lock()
	w.waiting[key] = c
	w.mu.Unlock()
	return c, func() {
		w.mu.Lock()
		delete(w.waiting, key)
		w.mu.Unlock()
	}
}

func (w *cable) dropped() bool { return w.loss > 0 && rand.Float64() < w.loss }

func (w *cable) send(mac net.HardwareAddr, m *dhcpv4.DHCPv4) error {
	if w.dropped() {
		return nil
	}
	w.sent.Lock()
	defer w.sent.Unlock()
	_, err := w.packet.WriteTo(frame(mac, m.ToBytes()), &packet.Addr{HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}})
	return err
}

// take makes a leased address one of this namespace; release undoes it.
func (w *cable) take(a netip.Addr) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.users[a]++; w.users[a] > 1 {
		return nil
	}
	if err := netlink.RouteReplace(w.route(a)); err != nil {
		return fmt.Errorf("take address %s: %w", a, err)
	}
	err := w.server.NeighSet(&netlink.Neigh{LinkIndex: w.port, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: a.AsSlice(), HardwareAddr: w.mac})
	if err != nil {
		return fmt.Errorf("make %s a neighbour of the server: %w", a, err)
	}
	return nil
}

func (w *cable) release(a netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.users[a]--; w.users[a] > 0 {
		return
	}
	delete(w.users, a)
	_ = netlink.RouteDel(w.route(a)) // the namespace goes with all that is in it
}

func (w *cable) route(a netip.Addr) *netlink.Route {
	const tableLocal = 255
	lo, _ := netlink.LinkByName("lo")
	index := 1
	if lo != nil {
		index = lo.Attrs().Index
	}
	return &netlink.Route{LinkIndex: index, Table: tableLocal, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
		Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}}
}

// control prepares a machine's sockets.
func (w *cable) control(small bool) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			if small {
				// As much as iPXE offers at most; more would be memory of the kernel for nothing.
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 256<<10)
			}
			if len(w.filter) > 0 {
				failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
					&unix.SockFprog{Len: uint16(len(w.filter)), Filter: &w.filter[0]})
			}
		})
		return errors.Join(err, failed)
	}
}

func (w *cable) udp(ctx context.Context, from netip.Addr) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: w.control(false)}
	conn, err := config.ListenPacket(ctx, "udp4", netip.AddrPortFrom(from, 0).String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

func (w *cable) tcp(ctx context.Context, from netip.Addr, to string, small bool) (net.Conn, error) {
	dialer := net.Dialer{Timeout: httpStall, KeepAlive: -1, LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Control: w.control(small)}
	return dialer.DialContext(ctx, "tcp4", to)
}

// pace keeps to a rate.
type pace struct {
	rate  int64 // bytes a second; 0: none
	until time.Time
}

// portion is how much may be taken at once.
func (p *pace) portion() int {
	const most = 1 << 20
	if p.rate == 0 {
		return most
	}
	return int(min(max(p.rate/20, 1500), most))
}

func (p *pace) took(ctx context.Context, n int) {
	if p.rate == 0 {
		return
	}
	now := time.Now()
	if p.until.Before(now) {
		p.until = now
	}
	p.until = p.until.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	if wait := p.until.Sub(now); wait > time.Millisecond {
		sleep(ctx, wait)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// fetcher gets files from one HTTP server over one connection at a time.
type fetcher struct {
	cable  *cable
	from   netip.Addr
	pace   pace
	verify bool // compare what comes with the digest in its URL

	host string
	conn net.Conn
	r    *bufio.Reader
}

func (f *fetcher) close() {
	if f.conn != nil {
		f.conn.Close()
		f.conn = nil
	}
}

// statusError is an answer that is no success.
type statusError struct {
	url    string
	status int
}

func (e *statusError) Error() string { return fmt.Sprintf("the server answered %d", e.status) }

// get gets a file, or length bytes of it from offset on when length is not 0. Up to keep bytes are returned, the
// rest is dropped. A connection that the server has closed meanwhile is opened once more.
func (f *fetcher) get(ctx context.Context, address string, offset, length int64, keep int64) ([]byte, error) {
	fresh := f.conn == nil
	body, err := f.try(ctx, address, offset, length, keep)
	if err != nil && !fresh && ctx.Err() == nil && !errors.As(err, new(*statusError)) {
		f.close()
		body, err = f.try(ctx, address, offset, length, keep)
	}
	if err != nil {
		f.close()
	}
	return body, err
}

func (f *fetcher) try(ctx context.Context, address string, offset, length, keep int64) ([]byte, error) {
	target, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if f.conn == nil || f.host != target.Host {
		f.close()
		host := target.Host
		if target.Port() == "" {
			host += ":80"
		}
		if f.conn, err = f.cable.tcp(ctx, f.from, host, true); err != nil {
			return nil, err
		}
		f.host = target.Host
		if f.r == nil {
			f.r = bufio.NewReaderSize(f.conn, 1024)
		} else {
			f.r.Reset(f.conn)
		}
	}
	conn := f.conn // which may be closed and forgotten by the time that ctx ends
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var b strings.Builder
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: coldrack-rehearsal\r\n", target.RequestURI(), target.Host)
	if length > 0 {
		fmt.Fprintf(&b, "Range: bytes=%d-%d\r\n", offset, offset+length-1)
	}
	b.WriteString("\r\n")
	f.deadline(ctx)
	if _, err := io.WriteString(f.conn, b.String()); err != nil {
		return nil, err
	}
	answer, err := http.ReadResponse(f.r, nil)
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusPartialContent {
		_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 1<<20))
		if answer.Close {
			f.close()
		}
		return nil, &statusError{address, answer.StatusCode}
	}
	if answer.ContentLength < 0 {
		kept, err := io.ReadAll(io.LimitReader(answer.Body, max(keep, 1<<20)))
		return kept, err
	}
	if length > 0 && answer.ContentLength != length {
		return nil, fmt.Errorf("asked for %d bytes and got %d", length, answer.ContentLength)
	}
	size := answer.ContentLength
	kept, err := f.body(ctx, size, keep, digestIn(target.Path), length > 0)
	if err == nil && answer.Close {
		f.close()
	}
	return kept, err
}

// digestIn is the digest that a content URL names, or "".
func digestIn(path string) string {
	digest, ok := strings.CutPrefix(path, "/content/sha256/")
	if !ok {
		return ""
	}
	return digest
}

func (f *fetcher) body(ctx context.Context, size, keep int64, digest string, part bool) ([]byte, error) {
	if size <= keep || (f.verify && digest != "" && !part) {
		h := sha256.New()
		var kept []byte
		buffer := make([]byte, min(size, 64<<10))
		for got := int64(0); got < size; {
			f.deadline(ctx)
			n, err := f.r.Read(buffer[:min(int64(len(buffer)), size-got)])
			h.Write(buffer[:n])
			if size <= keep {
				kept = append(kept, buffer[:n]...)
			}
			got += int64(n)
			f.took(ctx, n)
			if err != nil {
				return nil, fmt.Errorf("stopped at byte %d of %d: %w", got, size, err)
			}
		}
		if sum := hex.EncodeToString(h.Sum(nil)); digest != "" && !part && sum != digest {
			return nil, fmt.Errorf("digest is %s", sum)
		}
		return kept, nil
	}
	got, err := f.r.Discard(f.r.Buffered())
	if err != nil {
		return nil, err
	}
	f.took(ctx, got)
	raw, err := f.conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	for left := size - int64(got); left > 0; {
		f.deadline(ctx)
		n, err := drop(raw, int(min(left, int64(f.pace.portion()))))
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, fmt.Errorf("stopped at byte %d of %d: %w", size-left, size, err)
		}
		left -= int64(n)
		f.took(ctx, n)
	}
	return nil, nil
}

func (f *fetcher) deadline(ctx context.Context) {
	f.conn.SetDeadline(time.Now().Add(httpStall))
	if ctx.Err() != nil {
		f.conn.SetDeadline(time.Unix(1, 0)) // the one just set may have hidden AfterFunc's
	}
}

func (f *fetcher) took(ctx context.Context, n int) {
	f.cable.received.Add(int64(n))
	f.pace.took(ctx, n)
}

// drop takes up to n bytes off a TCP connection without copying them (MSG_TRUNC, tcp(7)).
func drop(raw syscall.RawConn, n int) (taken int, err error) {
	readErr := raw.Read(func(fd uintptr) bool {
		for {
			r, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, 0, uintptr(n), unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
			switch errno {
			case 0:
				taken = int(r)
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				return false
			default:
				err = errno
			}
			return true
		}
	})
	return taken, errors.Join(err, readErr)
}
