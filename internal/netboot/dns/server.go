package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"

	"coldrack.dev/internal/netboot/connlimit"
	"coldrack.dev/internal/netboot/ratelimit"
)

// Bounds for clients.
const (
	// perSecond and burst are one client's questions. The DNS servers of a cluster ask for all of its pods.
	perSecond, burst = 500, 2000
	maxClients       = 1 << 14
	// udpSize is the largest answer in a datagram: it is not fragmented on any Ethernet, tunnels included (DNS flag day 2020).
	udpSize = 1232
	// maxConns over TCP, and of one client.
	maxConns, connsPerClient = 256, 16
	// idle is how long a connection may be silent (RFC 7766, section 6.2.3), and how long an answer may take to be sent.
	idle = 10 * time.Second
)

// Options of a Server.
type Options struct {
	// Zones gives the names as they are now.
	Zones func() *Zones
	// Upstreams says whether a client is answered at all, and which servers its other questions go to; none: they are refused.
	Upstreams func(client netip.Addr) (upstreams []netip.AddrPort, ok bool)
	Forwarder *Forwarder
	Log       *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Stats of a Server; all but the last field only grow.
type Stats struct {
	UDP, TCP uint64 // questions of clients that are answered
	// Own, Forwarded, Failed and Refused are how they ended: from the zones, by an upstream, by none of them, or not at all.
	Own, NoSuchName, Forwarded, Failed, Refused uint64
	// Malformed were no questions, Strangers came from elsewhere, Limited from clients that asked too often.
	Malformed, Strangers, Limited uint64
	// Truncated answers were too large for their datagram.
	Truncated uint64
	Conns     int
}

// Server answers on any number of sockets.
type Server struct {
	options Options
	limiter *ratelimit.Limiter

	udp, tcp, own, noSuchName, forwarded, failed, refused, malformed, strangers, truncated atomic.Uint64
	conns                                                                                  atomic.Int64
}

// New makes a Server that is not serving yet.
func New(options Options) *Server {
	if options.Now == nil {
		options.Now = time.Now
	}
	return &Server{options: options, limiter: ratelimit.New(perSecond, burst, maxClients)}
}

// Stats gives the present numbers.
func (s *Server) Stats() Stats {
	return Stats{
		UDP: s.udp.Load(), TCP: s.tcp.Load(), Own: s.own.Load(), NoSuchName: s.noSuchName.Load(), Forwarded: s.forwarded.Load(), Failed: s.failed.Load(), Refused: s.refused.Load(),
		Malformed: s.malformed.Load(), Strangers: s.strangers.Load(), Limited: s.limiter.Refused(), Truncated: s.truncated.Load(), Conns: int(s.conns.Load()),
	}
}

// ServeUDP answers on conn until ctx ends. It closes conn.
func (s *Server) ServeUDP(ctx context.Context, conn *net.UDPConn) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	var forwards sync.WaitGroup
	defer forwards.Wait()
	defer cancel()
	defer stop()
	defer conn.Close()
	send := func(answer []byte, to netip.AddrPort) {
		if len(answer) == 0 {
			return
		}
		if _, err := conn.WriteToUDPAddrPort(answer, to); err != nil && ctx.Err() == nil {
			s.options.Log.Debug("cannot answer a question", "to", to, "err", err)
		}
	}
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			continue // an ICMP error of an earlier answer
		}
		upstreams, admitted := s.admit(from.Addr())
		if !admitted {
			continue
		}
		s.udp.Add(1)
		answer, ask := s.answer(buf[:n], from.Addr().Unmap(), upstreams, false)
		if ask == nil {
			send(answer, from)
			continue
		}
		forwards.Go(func() { send(ask(ctx), from) })
	}
}

// admit says whether a client is answered, and by which upstreams.
func (s *Server) admit(client netip.Addr) ([]netip.AddrPort, bool) {
	client = client.Unmap().WithZone("")
	upstreams, ok := s.options.Upstreams(client)
	if !ok {
		s.strangers.Add(1)
		return nil, false
	}
	return upstreams, s.limiter.Allow(client, s.options.Now())
}

// ServeTCP answers on listener until ctx ends. It closes listener.
func (s *Server) ServeTCP(ctx context.Context, listener net.Listener) error {
	limited := connlimit.New(listener, connlimit.Options{Max: maxConns, PerClient: connsPerClient})
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { limited.Close() })
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	defer stop()
	defer limited.Close()
	for pause := time.Duration(0); ; {
		conn, err := limited.Accept()
		switch {
		case err == nil:
			pause = 0
			conns.Go(func() { s.serveConn(ctx, conn) })
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second) // no descriptor is free
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// serveConn answers the questions of a connection, one after the other.
func (s *Server) serveConn(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	s.conns.Add(1)
	defer s.conns.Add(-1)
	remote, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return
	}
	client := remote.AddrPort().Addr()
	for {
		// A connection that cannot be timed is closed; the reads and writes say so.
		_ = conn.SetDeadline(time.Now().Add(idle))
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		upstreams, admitted := s.admit(client)
		if !admitted {
			return
		}
		question := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, question); err != nil {
			return
		}
		s.tcp.Add(1)
		answer, ask := s.answer(question, client.Unmap(), upstreams, true)
		if ask != nil {
			answer = ask(ctx)
		}
		if len(answer) == 0 {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(idle))
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// answer gives the answer to a packet, empty for what gets none, or the function that asks others for it.
func (s *Server) answer(packet []byte, client netip.Addr, upstreams []netip.AddrPort, tcp bool) (answer []byte, ask func(context.Context) []byte) {
	var question mdns.Msg
	if err := question.Unpack(packet); err != nil {
		s.malformed.Add(1)
		if len(packet) < 12 || packet[2]&0x80 != 0 { // no header, or an answer
			return nil, nil
		}
		// Nothing but the header can be relied on.
		wrong := mdns.Msg{MsgHdr: mdns.MsgHdr{Id: binary.BigEndian.Uint16(packet), Opcode: int(packet[2] >> 3 & 15), Response: true, Rcode: mdns.RcodeFormatError}}
		answer, err := wrong.Pack()
		if err != nil {
			return nil, nil
		}
		return answer, nil
	}
	if question.Response {
		s.malformed.Add(1)
		return nil, nil // or two servers could talk to each other for ever
	}
	reply := s.begin(&question, len(upstreams) > 0)
	refuse := func(rcode int) ([]byte, func(context.Context) []byte) {
		reply.Rcode = rcode
		return s.pack(&question, reply, tcp), nil
	}
	switch opt := question.IsEdns0(); {
	case question.Opcode != mdns.OpcodeQuery:
		s.malformed.Add(1)
		return refuse(mdns.RcodeNotImplemented)
	case len(question.Question) != 1 || len(question.Answer)+len(question.Ns) > 0:
		s.malformed.Add(1)
		return refuse(mdns.RcodeFormatError)
	case opt != nil && opt.Version() != 0:
		return refuse(mdns.RcodeBadVers)
	}
	q := question.Question[0]
	if kind := q.Qtype; q.Qclass != mdns.ClassINET || kind == mdns.TypeAXFR || kind == mdns.TypeIXFR || kind == mdns.TypeMAILA || kind == mdns.TypeMAILB {
		s.refused.Add(1)
		return refuse(mdns.RcodeRefused)
	}
	if own, ok := s.options.Zones().Answer(q); ok {
		reply.Authoritative = true
		reply.Rcode, reply.Answer, reply.Ns = own.Rcode, own.Answer, own.Authority
		reply.Extra = append(reply.Extra, own.Beside...)
		s.own.Add(1)
		if own.Rcode == mdns.RcodeNameError {
			s.noSuchName.Add(1)
		}
		return s.pack(&question, reply, tcp), nil
	}
	if !question.RecursionDesired || len(upstreams) == 0 || isUpstream(client, upstreams) {
		s.refused.Add(1)
		return refuse(mdns.RcodeRefused)
	}
	release, ok := s.options.Forwarder.Reserve(client)
	if !ok {
		s.failed.Add(1)
		return refuse(mdns.RcodeServerFailure)
	}
	return nil, func(ctx context.Context) []byte {
		defer release()
		got, err := s.options.Forwarder.Ask(ctx, &question, upstreams, tcp)
		if err != nil {
			s.failed.Add(1)
			s.options.Log.Debug("no server answers a forwarded question", "name", q.Name, "client", client, "err", err)
			reply.Rcode = mdns.RcodeServerFailure
			return s.pack(&question, reply, tcp)
		}
		s.forwarded.Add(1)
		reply.Rcode, reply.Truncated, reply.AuthenticatedData = got.Rcode, got.Truncated, got.AuthenticatedData
		reply.Answer, reply.Ns = got.Answer, got.Ns
		for _, rr := range got.Extra {
			if rr.Header().Rrtype != mdns.TypeOPT && rr.Header().Rrtype != mdns.TypeTSIG {
				reply.Extra = append(reply.Extra, rr)
			}
		}
		return s.pack(&question, reply, tcp)
	}
}

// isUpstream says whether a client is one of the servers that questions are forwarded to: what it does not know itself would come back
// to it for ever.
func isUpstream(client netip.Addr, upstreams []netip.AddrPort) bool {
	for _, u := range upstreams {
		if u.Addr().Unmap() == client {
			return true
		}
	}
	return false
}

// begin makes a reply without records, its EDNS record apart.
func (s *Server) begin(question *mdns.Msg, recursive bool) *mdns.Msg {
	reply := &mdns.Msg{MsgHdr: mdns.MsgHdr{
		Id: question.Id, Response: true, Opcode: question.Opcode, RecursionDesired: question.RecursionDesired, RecursionAvailable: recursive, CheckingDisabled: question.CheckingDisabled,
	}, Question: question.Question}
	if opt := question.IsEdns0(); opt != nil {
		reply.SetEdns0(udpSize, opt.Do())
	}
	return reply
}

// pack encodes a reply within the size that its client takes.
func (s *Server) pack(question, reply *mdns.Msg, tcp bool) []byte {
	size := mdns.MaxMsgSize - 1
	if !tcp {
		size = mdns.MinMsgSize
		if opt := question.IsEdns0(); opt != nil {
			size = min(max(size, int(opt.UDPSize())), udpSize)
		}
	}
	was := reply.Truncated
	reply.Compress = true
	reply.Truncate(size)
	if reply.Truncated {
		s.truncated.Add(1)
	}
	reply.Truncated = reply.Truncated || was
	packed, err := reply.Pack()
	if err != nil {
		s.options.Log.Debug("an answer cannot be encoded", "name", nameOf(question), "err", err)
		failed := s.begin(question, reply.RecursionAvailable)
		failed.Rcode = mdns.RcodeServerFailure
		packed, _ = failed.Pack() // or nothing is said
	}
	return packed
}

func nameOf(m *mdns.Msg) string {
	var names []string
	for _, q := range m.Question {
		names = append(names, q.Name)
	}
	return strings.Join(names, " ")
}
