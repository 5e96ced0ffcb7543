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

// unlimited is more connections than a process can have.
const unlimited = 1 << 30

// Options of a Listener. Zero means without that limit.
type Options struct {
	// Max is how many connections may be open. One more closes the oldest of the address that has most, among those that have not
	// proven who they are; where no address has two, it waits, and others in the kernel's queue.
	Max int
	// PerClient is how many one address may have open. More are closed.
	PerClient int
	// Unproven is how many connections may be open whose peer has not proven who it is (see Conn.Prove). One more closes the
	// oldest of them of the address that has most: whoever is honest needs milliseconds for the proof.
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
	places  chan struct{} // one element for each connection that was handed out
	closed  chan struct{}
	close   sync.Once
	// closeErr is what the first Close returned.
	closeErr error

	mu       sync.Mutex
	clients  map[netip.Addr]*client
	unproven int
	accepted uint64
	stats    Stats
}

// client is an address that has connections.
type client struct {
	open     int
	unproven *list.List // of *Conn, oldest first
}

// New limits what listener accepts.
func New(listener net.Listener, options Options) *Listener {
	l := &Listener{Listener: listener, options: options, closed: make(chan struct{}), clients: map[netip.Addr]*client{}}
	if options.Max <= 0 {
		options.Max = unlimited
	}
	l.places = make(chan struct{}, options.Max) // of no size in memory
	return l
}

// Stats gives the present numbers.
func (l *Listener) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.stats
	now.Open = len(l.places)
	now.Unproven = l.unproven
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

// Accept takes a connection, and gives it a place before it hands it out.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &Conn{Conn: raw, Client: clientOf(raw), listener: l}
		if !l.enter(c) {
			raw.Close()
			continue
		}
		if !l.place(c) {
			l.forget(c)
			raw.Close()
			return nil, net.ErrClosed
		}
		if l.options.Wrap != nil {
			return l.options.Wrap(c), nil
		}
		return c, nil
	}
}

// place waits for one of the places, after it has made room if somebody has more than its share. It is false when the listener was
// closed before.
func (l *Listener) place(c *Conn) bool {
	select {
	case l.places <- struct{}{}:
		return true
	default:
	}
	l.mu.Lock()
	victim := l.heaviest(2)
	l.mu.Unlock()
	if victim != nil {
		victim.Close()
	}
	select {
	case l.places <- struct{}{}:
		return true
	case <-l.closed:
		return false
	}
}

// heaviest takes the oldest unproven connection of the address that has most of them, if that has at least so many connections;
// nil if there is none. The caller holds mu.
func (l *Listener) heaviest(atLeast int) *Conn {
	var most *client
	for _, each := range l.clients {
		if each.open >= atLeast && each.unproven.Len() > 0 && (most == nil || each.outweighs(most)) {
			most = each
		}
	}
	if most == nil {
		return nil
	}
	victim := most.unproven.Front().Value.(*Conn)
	l.prove(victim)
	l.stats.Evicted++
	return victim
}

// outweighs says whether a client has more unproven connections than another, or as many and the oldest.
func (c *client) outweighs(o *client) bool {
	if c.unproven.Len() != o.unproven.Len() {
		return c.unproven.Len() > o.unproven.Len()
	}
	return c.unproven.Front().Value.(*Conn).number < o.unproven.Front().Value.(*Conn).number
}

func (l *Listener) release() { <-l.places }

// enter counts a connection in, unless its address has too many.
func (l *Listener) enter(c *Conn) bool {
	l.mu.Lock()
	of := l.clients[c.Client]
	if of == nil {
		of = &client{unproven: list.New()}
		l.clients[c.Client] = of
	}
	if l.options.PerClient > 0 && of.open >= l.options.PerClient {
		l.stats.Refused++
		l.mu.Unlock()
		return false
	}
	var victim *Conn
	if l.options.Unproven > 0 && l.unproven >= l.options.Unproven {
		victim = l.heaviest(1)
	}
	of.open++
	l.accepted++
	c.number = l.accepted
	c.element = of.unproven.PushBack(c)
	l.unproven++
	l.mu.Unlock()
	if victim != nil {
		victim.Close()
	}
	return true
}

// forget undoes enter.
func (l *Listener) forget(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.prove(c)
	of := l.clients[c.Client]
	if of.open--; of.open <= 0 {
		delete(l.clients, c.Client)
	}
}

// prove needs mu.
func (l *Listener) prove(c *Conn) {
	if c.element != nil {
		l.clients[c.Client].unproven.Remove(c.element)
		c.element = nil
		l.unproven--
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
	number   uint64        // in the order of acceptance
	element  *list.Element // among its address's unproven ones; needs the listener's mu
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
		c.listener.forget(c)
		c.listener.release()
	})
	return err
}
