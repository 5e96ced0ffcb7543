package httpboot

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// limit bounds the connections that a listener hands out and guards each against a client that
// stops taking its answer.
func (s *Server) limit(listener net.Listener) net.Listener {
	return &limited{
		Listener: listener,
		server:   s,
		places:   make(chan struct{}, s.options.MaxConns),
		closed:   make(chan struct{}),
		clients:  map[netip.Addr]int{},
	}
}

type limited struct {
	net.Listener
	server *Server
	places chan struct{}
	closed chan struct{}
	close  sync.Once

	mu      sync.Mutex
	clients map[netip.Addr]int
}

func (l *limited) Close() error {
	l.close.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// Accept waits for a place before it takes a connection, so that too many wait in the kernel.
func (l *limited) Accept() (net.Conn, error) {
	for {
		select {
		case l.places <- struct{}{}:
		case <-l.closed:
			return nil, net.ErrClosed
		}
		conn, err := l.Listener.Accept()
		if err != nil {
			<-l.places
			return nil, err
		}
		client := clientOf(conn)
		if !l.enter(client) {
			conn.Close()
			<-l.places
			l.server.counters.tooMany.Add(1)
			continue
		}
		l.server.counters.conns.Add(1)
		c := &guarded{Conn: conn, stall: l.server.options.StallTimeout, pace: l.server.options.Pace, closed: l.closed}
		if taking := l.server.options.Taking; taking != nil {
			c.taking = func() { taking(client) }
		}
		c.leave = sync.OnceFunc(func() {
			l.leave(client)
			l.server.counters.conns.Add(-1)
			<-l.places
		})
		return c, nil
	}
}

func (l *limited) enter(client netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clients[client] >= l.server.options.MaxConnsPerClient {
		return false
	}
	l.clients[client]++
	return true
}

func (l *limited) leave(client netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clients[client]--; l.clients[client] <= 0 {
		delete(l.clients, client)
	}
}

func clientOf(conn net.Conn) netip.Addr {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// guarded is a connection that fails when its peer takes nothing for the stall time. net/http's own
// WriteTimeout bounds the whole answer, which is no use when that may be gigabytes.
type guarded struct {
	net.Conn
	stall time.Duration
	leave func()
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

// stretch is how much must be taken within one stall time, bytes: small enough for a slow link that
// a thousand machines share, large enough for sendfile(2) to pay off.
const stretch = 512 << 10

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

func (g *guarded) Close() error {
	defer g.leave()
	return g.Conn.Close()
}
