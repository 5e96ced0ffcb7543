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
		c := &guarded{Conn: conn, stall: l.server.options.StallTimeout}
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
}

// stretch is how much must be taken within one stall time, bytes: small enough for a slow link that
// a thousand machines share, large enough for sendfile(2) to pay off.
const stretch = 512 << 10

func (g *guarded) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		g.Conn.SetWriteDeadline(time.Now().Add(g.stall))
		n, err := g.Conn.Write(b[done:min(len(b), done+stretch)])
		done += n
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
		g.Conn.SetWriteDeadline(time.Now().Add(g.stall))
		part := &io.LimitedReader{R: limited.R, N: min(limited.N, stretch)}
		n, err := sink.ReadFrom(part)
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
