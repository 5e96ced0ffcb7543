// Package tftp serves files to network-booting machines: RFC 1350 with the options of RFC 2347
// (negotiation), 2348 (blksize), 2349 (tsize, timeout) and 7440 (windowsize).
//
// It only reads. Firmware is the typical client: it repeats requests impatiently, comes back from the
// same port, stops half-way, and gives up after about a minute; the server is built around that.
package tftp

import (
	"container/list"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/netboot/pktinfo"
)

// Port is TFTP's well-known UDP port.
const Port = 69

// Options configure a server. Only FS is required.
type Options struct {
	FS  FS
	Log *slog.Logger
	// OnTransfer is called at the end of every transfer, from the transfer's goroutine.
	OnTransfer func(Transfer)
	// MaxTransfers is how many transfers run at once, 1000 by default. A request on top is not answered: an ERROR would make
	// firmware give up, silence makes it ask again after some seconds. Then it comes before new ones, and after 12 s it
	// gets its transfer all the same, up to three times as many. Transfers of which nothing was acknowledged do not count, because
	// their senders may be forged: there may be as many of them as make four times MaxTransfers together, and one more ends the
	// oldest.
	MaxTransfers int
	// MaxPerAddress is how many transfers one address may have at once, 64 by default. A request on top is not answered.
	MaxPerAddress int
	// MaxBlockSize bounds the negotiated block size, bytes; 65464 by default.
	MaxBlockSize int
	// MaxWindowSize bounds the negotiated window, blocks; 64 by default.
	MaxWindowSize int
	// GiveUp is how long a client may stay silent before its transfer ends; 30 s by default.
	GiveUp time.Duration
	// Drain is how long running transfers may go on after Serve was told to stop; 5 s by default.
	Drain time.Duration
	// Dial opens a transfer's socket; net.DialUDP by default. Whoever serves another network
	// namespace replaces it.
	Dial func(local netip.Addr, remote netip.AddrPort) (*net.UDPConn, error)
}

// Stats are totals since the server was made, but for Active.
type Stats struct {
	Requests    uint64 // read requests taken up
	Repeated    uint64 // read requests that began no transfer because theirs had already begun
	Malformed   uint64 // packets that were no request
	Refused     uint64 // requests turned away: writes, or no socket
	Deferred    uint64 // requests left unanswered because too many transfers ran, in all or of that address
	Completed   uint64
	Aborted     uint64 // ended by the client
	Failed      uint64
	Absent      uint64 // requests for files that boot loaders go on without (filename.Optional), and that are not there
	Bytes       uint64 // acknowledged
	Retransmits uint64 // blocks
	Active      int
}

// Server answers TFTP requests.
type Server struct {
	options Options
	mu      sync.Mutex
	active  map[netip.AddrPort]*transfer
	perHost map[netip.Addr]int // of active
	// unanswered are those of active whose clients have acknowledged nothing, oldest first.
	unanswered *list.List // of *transfer
	waiting    map[netip.AddrPort]wait
	counters   struct {
		requests, deferred, repeated, malformed, refused, completed, aborted, failed, absent, bytes, retransmits atomic.Uint64
	}
}

// wait is a client that has asked in vain.
type wait struct{ first, last time.Time }

const (
	// maxWait is how long a client has to ask in vain at most: firmware gives up after 24 s.
	maxWait = 12 * time.Second
	// silence is after how long a client that does not ask again has given up: firmware asks every four seconds.
	silence = 10 * time.Second
	// maxWaiting bounds how many are remembered.
	maxWaiting = 1 << 14
)

// admit says whether a client may have a transfer now. The caller holds mu.
func (s *Server) admit(remote netip.AddrPort, now time.Time) bool {
	if s.perHost[remote.Addr()] >= s.options.MaxPerAddress {
		return false
	}
	taking := len(s.active) - s.unanswered.Len()
	room := s.options.MaxTransfers - taking
	if room > 0 && len(s.waiting) == 0 {
		return true
	}
	w, again := s.waiting[remote]
	if !again {
		w.first = now
	}
	w.last = now
	for other, is := range s.waiting {
		if now.Sub(is.last) > silence {
			delete(s.waiting, other)
		} else if other != remote && is.first.Before(w.first) {
			room--
		}
	}
	if room > 0 || now.Sub(w.first) >= maxWait && taking < 3*s.options.MaxTransfers {
		delete(s.waiting, remote)
		return true
	}
	if again || len(s.waiting) < maxWaiting {
		s.waiting[remote] = w
	}
	return false
}

// enter makes a transfer one of which nothing was acknowledged yet. When there are too many, the oldest one ends: whoever is there
// needs a round trip for its acknowledgement, and asks once more if that was too slow. The caller holds mu.
func (s *Server) enter(t *transfer) {
	if s.unanswered.Len() > 0 && len(s.active) >= 4*s.options.MaxTransfers {
		oldest := s.unanswered.Front().Value.(*transfer)
		s.answered(oldest)
		delete(s.active, oldest.report.Remote)
		oldest.cancel(errUnanswered)
	}
	s.active[t.report.Remote] = t
	s.perHost[t.report.Remote.Addr()]++
	t.place = s.unanswered.PushBack(t)
}

// answered takes a transfer off the list of those of which nothing was acknowledged. The caller holds mu.
func (s *Server) answered(t *transfer) {
	if t.place != nil {
		s.unanswered.Remove(t.place)
		t.place = nil
	}
}

// windowMemory bounds the buffer of one transfer, bytes.
const windowMemory = 128 << 10

// errSuperseded ends a transfer whose client has started over from the same port.
var errSuperseded = errors.New("client sent a new request from the same port")

// errUnanswered ends a transfer whose client has not acknowledged anything while many others ask.
var errUnanswered = errors.New("client acknowledged nothing, and many others asked")

var errStopping = errors.New("server is stopping")

// New makes a server.
func New(options Options) *Server {
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	setDefault(&options.MaxTransfers, 1000)
	setDefault(&options.MaxPerAddress, 64)
	setDefault(&options.MaxBlockSize, maxBlockSize)
	setDefault(&options.MaxWindowSize, 64)
	setDefault(&options.GiveUp, 30*time.Second)
	setDefault(&options.Drain, 5*time.Second)
	if options.Dial == nil {
		options.Dial = func(local netip.Addr, remote netip.AddrPort) (*net.UDPConn, error) {
			var from *net.UDPAddr
			if local.IsValid() {
				from = net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
			}
			return net.DialUDP("udp", from, net.UDPAddrFromAddrPort(remote))
		}
	}
	return &Server{options: options, active: map[netip.AddrPort]*transfer{}, perHost: map[netip.Addr]int{}, unanswered: list.New(), waiting: map[netip.AddrPort]wait{}}
}

func setDefault[T int | time.Duration](value *T, otherwise T) {
	if *value <= 0 {
		*value = otherwise
	}
}

func (s *Server) limits() limits {
	return limits{
		blockSize:    min(max(s.options.MaxBlockSize, minBlockSize), maxBlockSize),
		windowSize:   min(s.options.MaxWindowSize, 1024),
		windowMemory: windowMemory,
	}
}

// Stats gives the present totals.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	active := len(s.active)
	s.mu.Unlock()
	c := &s.counters
	return Stats{
		Requests:    c.requests.Load(),
		Repeated:    c.repeated.Load(),
		Malformed:   c.malformed.Load(),
		Refused:     c.refused.Load(),
		Deferred:    c.deferred.Load(),
		Completed:   c.completed.Load(),
		Aborted:     c.aborted.Load(),
		Failed:      c.failed.Load(),
		Absent:      c.absent.Load(),
		Bytes:       c.bytes.Load(),
		Retransmits: c.retransmits.Load(),
		Active:      active,
	}
}

// Serve answers the requests that come to conn until ctx ends, then lets the running transfers
// finish for the drain time. It closes conn. Several Serve calls on different sockets may run at once.
func (s *Server) Serve(ctx context.Context, conn *net.UDPConn) error {
	if err := pktinfo.Ask(conn); err != nil {
		conn.Close()
		return fmt.Errorf("prepare TFTP socket %s: %w", conn.LocalAddr(), err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()

	transfers, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(errStopping)
	loops, err := newLoops()
	if err != nil {
		return fmt.Errorf("serve TFTP: %w", err)
	}
	defer loops.close()
	var running sync.WaitGroup
	err = s.receive(ctx, conn, func(t *transfer) {
		transferCtx, cancelOne := context.WithCancelCause(transfers)
		t.cancel, t.loop = cancelOne, loops.next()
		running.Go(func() {
			defer cancelOne(nil)
			s.serveOne(transferCtx, t)
		})
	})
	overtime := time.AfterFunc(s.options.Drain, func() { cancel(errStopping) })
	defer overtime.Stop()
	running.Wait()
	return err
}

// receive reads requests and hands a transfer for each to start.
func (s *Server) receive(ctx context.Context, conn *net.UDPConn, start func(*transfer)) error {
	var (
		packet  [2048]byte
		control [256]byte
	)
	for {
		n, controlLen, _, remote, err := conn.ReadMsgUDPAddrPort(packet[:], control[:])
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("receive TFTP requests: %w", err)
			}
			// An ICMP error for an earlier answer, or a shortage of memory: the next read tells.
			s.options.Log.Warn("cannot receive a TFTP request", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
		local, unicast := destination(control[:controlLen])
		if !unicast {
			// RFC 1123 section 4.2.3.4: requests to a broadcast address are silently ignored.
			s.counters.malformed.Add(1)
			continue
		}
		s.take(conn, packet[:n], local, remote, start)
	}
}

// take decides what becomes of one packet that came to the server's port.
func (s *Server) take(conn *net.UDPConn, packet []byte, local netip.Addr, remote netip.AddrPort, start func(*transfer)) {
	refuse := func(code ErrorCode, text string) {
		s.counters.refused.Add(1)
		conn.WriteToUDPAddrPort(encodeError(code, text), remote)
	}
	req, err := parseRequest(packet)
	if err != nil {
		s.counters.malformed.Add(1)
		// An ERROR answered by an ERROR could go round for ever.
		if len(packet) >= 2 && binary.BigEndian.Uint16(packet) != opError {
			conn.WriteToUDPAddrPort(encodeError(codeIllegal, "not a TFTP request"), remote)
		}
		return
	}
	if req.op == opWrite {
		refuse(codeAccess, "this server only reads")
		return
	}
	t := &transfer{server: s, request: req, raw: string(packet), began: time.Now()}
	t.report = Transfer{Remote: remote, Name: termtext.Mark(req.name, 0)}

	s.mu.Lock()
	defer s.mu.Unlock()
	if before := s.active[remote]; before != nil {
		if before.isRepeated(t.raw, time.Now()) {
			s.counters.repeated.Add(1)
			if before.heard.Load() == 0 {
				before.loop.again(before) // the answer may be lost
			}
			return
		}
		s.answered(before)
		before.cancel(errSuperseded)
	} else if !s.admit(remote, time.Now()) {
		s.counters.deferred.Add(1)
		return
	}
	t.conn, err = s.options.Dial(local, remote)
	if err != nil {
		refuse(codeUndefined, "server cannot open a socket, try again")
		s.options.Log.Error("cannot open a socket for a TFTP transfer", "remote", remote, "err", err)
		return
	}
	if address, ok := t.conn.LocalAddr().(*net.UDPAddr); ok {
		t.report.Local = address.AddrPort()
	}
	s.counters.requests.Add(1)
	start(t)
	s.enter(t)
}

func (s *Server) serveOne(ctx context.Context, t *transfer) {
	began := time.Now()
	t.run(ctx)
	t.close()
	t.report.Duration = time.Since(began)

	s.mu.Lock()
	s.answered(t)
	if s.active[t.report.Remote] == t {
		delete(s.active, t.report.Remote)
	}
	host := t.report.Remote.Addr()
	if s.perHost[host]--; s.perHost[host] == 0 {
		delete(s.perHost, host)
	}
	s.mu.Unlock()

	c, log := &s.counters, s.options.Log
	c.bytes.Add(uint64(t.report.Bytes))
	c.retransmits.Add(uint64(t.report.Retransmits))
	attrs := []any{"remote", t.report.Remote, "file", t.report.Name, "bytes", t.report.Bytes,
		"duration", t.report.Duration, "retransmits", t.report.Retransmits}
	switch err := t.report.Err; {
	case err == nil:
		c.completed.Add(1)
		log.Info("TFTP transfer complete", attrs...)
	case errors.Is(err, ErrAborted), errors.Is(err, errSuperseded):
		c.aborted.Add(1)
		log.Debug("TFTP transfer ended by the client", append(attrs, "err", err)...)
	case errors.Is(err, fs.ErrNotExist) && t.optional():
		c.absent.Add(1)
		log.Debug("TFTP client looked for a file that it goes on without", attrs...)
	case errors.Is(err, errUnanswered):
		c.failed.Add(1)
		log.Debug("TFTP transfer ended for others", append(attrs, "err", err)...)
	default:
		c.failed.Add(1)
		log.Warn("TFTP transfer failed", append(attrs, "err", err)...)
	}
	if s.options.OnTransfer != nil {
		s.options.OnTransfer(t.report)
	}
}
