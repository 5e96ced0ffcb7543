// Package sntp tells machines the time: the server's side of NTPv4's client mode (RFC 5905; SNTP is the same on the wire). A rack
// without the internet has no other clock to agree on, and certificates are worth nothing to a machine whose clock is off.
//
// It passes the host's clock on as it is, with what the kernel knows of its error. A clock that nothing disciplines is still the one that
// all machines of the rack agree on: it is told at a stratum that every other time server is better than, as chrony's "local" does.
//
// Questions for the time are all that is answered, each by one packet that is not larger: neither control messages (mode 6) nor private
// ones (mode 7), by which other servers tell much to whoever asks.
package sntp

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/netboot/ratelimit"

	"coldrack.dev/internal/netboot/pktinfo"
)

// Port is NTP's well-known UDP port.
const Port = 123

const (
	packetSize = 48
	modeClient = 3
	modeServer = 4
	// stratumSynced is told while the host's clock is disciplined: by whom, and how far that is from a real clock, the kernel does not
	// know. stratumAlone is told while it is not: up to 15 counts as a time.
	stratumSynced, stratumAlone = 4, 10
	// epoch is the Unix time of NTP's zero, 1900-01-01.
	epoch = -2208988800
	// perSecond and burst are one client's questions. Clients ask once in 16 s at most, and a few times at their start; a router may
	// stand for a whole rack of them.
	perSecond, burst = 64, 512
	maxClients       = 1 << 14
)

// referenceAlone and referenceSynced are the reference identifiers. Above stratum 1 that is the address of the source, by which clients
// notice that they are asked for what they told: these are of nobody in a rack. The first is what NTP calls an undisciplined local clock.
var referenceAlone, referenceSynced = [4]byte{127, 127, 1, 1}, [4]byte{127, 0, 0, 1}

// Stats of a Server; they only grow.
type Stats struct {
	Answered uint64
	// Ignored were no questions for the time, Limited from clients that asked too often.
	Ignored, Limited uint64
}

// Server answers on any number of sockets.
type Server struct {
	log               *slog.Logger
	limiter           *ratelimit.Limiter
	precision         int8
	clock             func() clockState
	answered, ignored atomic.Uint64
	unsynced          sync.Once
}

// New makes a Server that is not serving yet.
func New(log *slog.Logger) *Server {
	return &Server{log: log, limiter: ratelimit.New(perSecond, burst, maxClients), precision: precisionOf(readingTime()), clock: kernelClock}
}

// Stats gives the present numbers.
func (s *Server) Stats() Stats {
	return Stats{s.answered.Load(), s.ignored.Load(), s.limiter.Refused()}
}

// Serve answers on conn until ctx ends. It closes conn.
func (s *Server) Serve(ctx context.Context, conn *net.UDPConn) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	if err := pktinfo.Ask(conn); err != nil {
		s.log.Warn("a machine that asks one of several addresses of this server for the time may be answered from another", "err", err)
	}
	buf, control := make([]byte, 512), make([]byte, 256)
	for {
		n, m, _, from, err := conn.ReadMsgUDPAddrPort(buf, control)
		received := time.Now()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			continue // an ICMP error of an earlier answer
		}
		if !isQuestion(buf[:n]) {
			s.ignored.Add(1)
			continue
		}
		if !s.limiter.Allow(from.Addr(), received) {
			continue
		}
		state := s.clock()
		if !state.synced {
			s.unsynced.Do(func() {
				s.log.Warn("machines are told the time of a clock that nothing synchronises: they agree with each other, and may all be wrong; run chrony or systemd-timesyncd on this host")
			})
		}
		if _, _, err := conn.WriteMsgUDPAddrPort(answer(buf[:n], received, time.Now(), state, s.precision), replyFrom(control[:m]), from); err != nil {
			s.log.Debug("cannot answer a time request", "to", from, "err", err)
			continue
		}
		s.answered.Add(1)
	}
}

// isQuestion says whether a packet asks for the time. An answer does not, so that two servers cannot talk to each other for ever.
func isQuestion(packet []byte) bool {
	if len(packet) < packetSize || packet[0]&7 != modeClient {
		return false
	}
	version := packet[0] >> 3 & 7
	return version >= 1 && version <= 4
}

// answer is what a question gets.
func answer(request []byte, received, now time.Time, state clockState, precision int8) []byte {
	reply := make([]byte, packetSize)
	reply[0] = state.leap<<6 | request[0]&0x38 | modeServer
	reply[1] = stratumAlone
	reference := referenceAlone
	if state.synced {
		reply[1], reference = stratumSynced, referenceSynced
	}
	reply[2] = request[2] // poll interval
	reply[3] = byte(precision)
	// The root delay, at 4, is within the kernel's greatest error, which is told as the dispersion.
	binary.BigEndian.PutUint32(reply[8:], shortFormat(state.maxError))
	copy(reply[12:], reference[:])
	putTime(reply[16:], received.Truncate(time.Minute)) // when the clock was set: the kernel does not tell; nobody relies on it
	copy(reply[24:32], request[40:48])                  // originate: the client's transmit timestamp
	putTime(reply[32:], received)
	putTime(reply[40:], now)
	return reply
}

// putTime writes an NTP timestamp. The era that begins in 2036 is told by the receiver (RFC 4330, section 3).
func putTime(b []byte, t time.Time) {
	binary.BigEndian.PutUint32(b, uint32(t.Unix()-epoch))
	binary.BigEndian.PutUint32(b[4:], uint32(uint64(t.Nanosecond())<<32/uint64(time.Second)))
}

// shortFormat is a span of time in 16.16 fixed point, at most the longest that there is.
func shortFormat(d time.Duration) uint32 {
	return uint32(min(max(d, 0).Seconds()*(1<<16), math.MaxUint32))
}

// clockState is what the kernel knows of the host's clock.
type clockState struct {
	synced bool
	// leap is NTP's indicator: 1 and 2 where the last minute of the day has a second more or less.
	leap byte
	// maxError is how far the clock may be off.
	maxError time.Duration
}

// aloneError is told of a clock that is the rack's reference: it cannot be off but for the reading.
const aloneError = 10 * time.Millisecond

// kernelClock asks adjtimex(2).
func kernelClock() clockState {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return judge(state, t, err)
}

func judge(state int, t unix.Timex, err error) clockState {
	if err != nil || state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0 {
		return clockState{maxError: aloneError}
	}
	clock := clockState{synced: true, maxError: max(time.Duration(t.Maxerror)*time.Microsecond, time.Millisecond)}
	switch state {
	case unix.TIME_INS:
		clock.leap = 1
	case unix.TIME_DEL:
		clock.leap = 2
	}
	return clock
}

// readingTime is how long it takes to read the clock, the shortest of some times.
func readingTime() time.Duration {
	least := time.Second
	for range 100 {
		before := time.Now()
		after := time.Now()
		for after.Equal(before) {
			after = time.Now()
		}
		least = min(least, after.Sub(before))
	}
	return least
}

// precisionOf is the logarithm, base 2, of a span in seconds.
func precisionOf(d time.Duration) int8 {
	return int8(math.Ceil(math.Log2(max(d, 1).Seconds())))
}
