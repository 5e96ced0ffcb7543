package httpboot

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"coldrack.dev/internal/netboot/connlimit"
)

// limit bounds the connections that a listener hands out and guards each against a client that
// stops taking its answer.
func (s *Server) limit(listener net.Listener) *connlimit.Listener {
	var limited *connlimit.Listener
	limited = connlimit.New(listener, connlimit.Options{
		Max: s.options.MaxConns, PerClient: s.options.MaxConnsPerClient,
		Wrap: func(c *connlimit.Conn) net.Conn {
			g := &guarded{Conn: c.Conn, place: c, stall: s.options.StallTimeout, pace: s.options.Pace, closed: limited.Closed()}
			if taking := s.options.Taking; taking != nil {
				g.taking = func() { taking(c.Client) }
			}
			return g
		},
	})
	s.mu.Lock()
	s.listeners = append(s.listeners, limited)
	s.mu.Unlock()
	return limited
}

// unlist keeps the totals of a listener that was closed.
func (s *Server) unlist(limited *connlimit.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.past = s.past.Plus(limited.Stats().Totals())
	s.listeners = slices.DeleteFunc(s.listeners, func(l *connlimit.Listener) bool { return l == limited })
}

// guarded is a connection that fails when its peer takes nothing for the stall time. net/http's own
// WriteTimeout bounds the whole answer, which is no use when that may be gigabytes.
type guarded struct {
	net.Conn // the socket itself, so that sendfile(2) works
	place    *connlimit.Conn
	stall    time.Duration
	// pace in bytes a second, 0 for none; closed ends a pause for it.
	pace   int64
	closed <-chan struct{}
	taking func() // nil: nobody wants to know
}

// part sends up to n bytes within one stall time, and no faster than the pace.
func (g *guarded) part(n int64, send func(n int64) (int64, error)) (int64, error) {
	if g.pace > 0 {
		// Twenty parts a second, so that what is paced flows rather than comes in bursts.
		n = min(n, max(g.pace/20, 4096))
	}
	began := time.Now()
	g.Conn.SetWriteDeadline(began.Add(g.stall))
	sent, err := send(n)
	if g.taking != nil && sent >= heavy {
		g.taking()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && sent >= slowest {
		return sent, nil // slow, but it takes
	}
	if g.pace > 0 && err == nil {
		pause := time.NewTimer(time.Until(began.Add(time.Duration(sent) * time.Second / time.Duration(g.pace))))
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-g.closed:
			return sent, net.ErrClosed
		}
	}
	return sent, err
}

// stretch is how much is sent at once, bytes: large enough for sendfile(2) to pay off.
const stretch = 512 << 10

// slowest is how much must be taken within one stall time, bytes. GRUB's own TCP has a window of 8 KiB and packets of 536 bytes: on a
// busy emulator, or far away, it takes some kilobytes a second.
const slowest = 16 << 10

// heavy is a part of an answer that tells that its client loads something large.
const heavy = 4096

func (g *guarded) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := g.part(int64(min(len(b)-done, stretch)), func(n int64) (int64, error) {
			sent, err := g.Conn.Write(b[done : done+int(n)])
			return int64(sent), err
		})
		done += int(n)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (g *guarded) ReadFrom(source io.Reader) (int64, error) {
	sink, ok := g.Conn.(io.ReaderFrom)
	limited, bounded := source.(*io.LimitedReader)
	if !ok || !bounded {
		return io.Copy(struct{ io.Writer }{g}, source)
	}
	var done int64
	for limited.N > 0 {
		n, err := g.part(min(limited.N, stretch), func(n int64) (int64, error) {
			return sink.ReadFrom(&io.LimitedReader{R: limited.R, N: n})
		})
		done += n
		limited.N -= n
		if err != nil || n == 0 {
			return done, err
		}
	}
	return done, nil
}

func (g *guarded) Close() error { return g.place.Close() }
