// Package connlimit bounds the connections that a listener hands out: in all, of one address, and of peers that have not proven
// who they are. A stranger that opens connections and sends nothing must not take the places of others, nor the process's file
// descriptors.
package connlimit

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
)

// Options of a Listener. Zero means without that limit.
type Options struct {
	// Max is how many connections may be open. More wait in the kernel's queue.
	Max int
	// PerClient is how many one address may have open. More are closed.
	PerClient int
	// Unproven is how many connections may be open whose peer has not proven who it is (see Conn.Prove). One more closes the
	// oldest of them: whoever is honest needs milliseconds for the proof.
	Unproven int
	// Wrap makes of a connection what Accept returns; nil: the connection itself. What it returns calls Conn.Close in the end.
	Wrap func(*Conn) net.Conn
}

// Stats of a Listener.
type Stats struct {
	Open, Unproven int
	// Refused were closed at once, because their address had PerClient open; Evicted later, to make room for others who have not
	// proven who they are.
	Refused, Evicted uint64
}

// Plus adds up the numbers of two listeners.
func (s Stats) Plus(o Stats) Stats {
	return Stats{s.Open + o.Open, s.Unproven + o.Unproven, s.Refused + o.Refused, s.Evicted + o.Evicted}
}

// Totals are the numbers that only grow: what is left of a listener that was closed.
func (s Stats) Totals() Stats { return Stats{Refused: s.Refused, Evicted: s.Evicted} }

// Listener is a net.Listener with limits.
type Listener struct {
	net.Listener
	options Options
	places  chan struct{}
	closed  chan struct{}
	close   sync.Once
	// closeErr is what the first Close returned.
	closeErr error

	mu       sync.Mutex
	clients  map[netip.Addr]int
	unproven *list.List // of *Conn, oldest first
	stats    Stats
}

// New limits what listener accepts.
func New(listener net.Listener, options Options) *Listener {
	l := &Listener{Listener: listener, options: options, closed: make(chan struct{}), clients: map[netip.Addr]int{}, unproven: list.New()}
	if options.Max > 0 {
		l.places = make(chan struct{}, options.Max)
	}
	return l
}

// Stats gives the present numbers.
func (l *Listener) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.stats
	now.Unproven = l.unproven.Len()
	return now
}

// Closed is closed by Close.
func (l *Listener) Closed() <-chan struct{} { return l.closed }

// Close ends Accept. Connections stay open. It may be called more than once.
func (l *Listener) Close() error {
	l.close.Do(func() {
		close(l.closed)
		l.closeErr = l.Listener.Close()
	})
	return l.closeErr
}

// Accept waits for a place before it takes a connection, so that too many wait in the kernel.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		if l.places != nil {
			select {
			case l.places <- struct{}{}:
			case <-l.closed:
				return nil, net.ErrClosed
			}
		}
		raw, err := l.Listener.Accept()
		if err != nil {
			l.release()
			return nil, err
		}
		c := &Conn{Conn: raw, Client: clientOf(raw), listener: l}
		fits, evicted := l.enter(c)
		if evicted != nil {
			evicted.Close()
		}
		if !fits {
			raw.Close()
			l.release()
			continue
		}
		if l.options.Wrap != nil {
			return l.options.Wrap(c), nil
		}
		return c, nil
	}
}

func (l *Listener) release() {
	if l.places != nil {
		<-l.places
	}
}

func (l *Listener) enter(c *Conn) (fits bool, evicted *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.options.PerClient > 0 && l.clients[c.Client] >= l.options.PerClient {
		l.stats.Refused++
		return false, nil
	}
	l.clients[c.Client]++
	l.stats.Open++
	if l.options.Unproven > 0 {
		if l.unproven.Len() >= l.options.Unproven {
			evicted = l.unproven.Remove(l.unproven.Front()).(*Conn)
			evicted.place = nil
			l.stats.Evicted++
		}
		c.place = l.unproven.PushBack(c)
	}
	return true, evicted
}

func (l *Listener) leave(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.prove(c)
	l.stats.Open--
	if l.clients[c.Client]--; l.clients[c.Client] <= 0 {
		delete(l.clients, c.Client)
	}
}

// prove needs mu.
func (l *Listener) prove(c *Conn) {
	if c.place != nil {
		l.unproven.Remove(c.place)
		c.place = nil
	}
}

func clientOf(conn net.Conn) netip.Addr {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// Conn is a connection that has a place of a Listener until it is closed.
type Conn struct {
	net.Conn
	// Client is the peer's address.
	Client   netip.Addr
	listener *Listener
	place    *list.Element // among the unproven; needs the listener's mu
	left     sync.Once
}

// Prove says that the peer has proven who it is, for example by a certificate.
func (c *Conn) Prove() {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	c.listener.prove(c)
}

// Close closes the connection and gives its place to another.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.left.Do(func() {
		c.listener.leave(c)
		c.listener.release()
	})
	return err
}
