// Package balancer is a node's own way to all API servers of its cluster: a TCP load balancer on the loopback
// interface that knows which of them are ready.
//
// It passes bytes on and sees nothing of what is inside TLS, so clients verify the API server, and are verified by
// it, as if there was nothing between. It needs nothing of the cluster itself: it works before the API does.
package balancer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/contract/wire"
)

// health of a backend, from worst to best. Connections go to the best there is.
type health int

const (
	dead    health = iota // does not speak, or is not who it should be
	unknown               // not asked yet
	speaks                // answers, but is neither ready nor alive by its own word
	live                  // /livez is well
	ready                 // /readyz is well
)

func (h health) String() string {
	return [...]string{"dead", "unknown", "not ready", "live but not ready", "ready"}[h]
}

// Pace is how health is checked.
type Pace struct {
	Every time.Duration // between two checks of one backend; one that did not answer in time is checked again at once
	Limit time.Duration // for one answer
	// Fresh is how long checks of a backend that answers go over one connection. A new one sees what a new client
	// sees, and costs a TLS handshake at both ends, for each node and API server of the cluster.
	Fresh time.Duration
	// Misses in a row until a backend that does not answer counts as dead, and its connections are closed. A
	// backend whose machine is there but refuses connections is dead at once.
	// While no other backend is better, its connections stay: an API server may only be slow, and clients that
	// all come again make it slower.
	Misses int
	Dial   time.Duration // for one connection
	// Unready is how long a backend that answers, but is not ready, keeps its connections while another one is ready; 0 is for ever. One
	// that ends well says so itself within that time. One that cannot reach etcd would have its clients wait for as long as that lasts.
	Unready time.Duration
}

// UsualPace finds a machine without power in about a quarter of a minute, and bears with one that is slow.
func UsualPace() Pace {
	return Pace{Every: 3 * time.Second, Limit: 5 * time.Second, Fresh: 30 * time.Second, Misses: 3, Dial: 3 * time.Second, Unready: 10 * time.Second}
}

// Balancer is one listener and what is behind it.
type Balancer struct {
	log  *slog.Logger
	pace Pace

	ctx    context.Context // of all connections and checks
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener
	address  string
	backends []*backend
	pool     *x509.CertPool
	pem      string
}

// backend is one API server.
type backend struct {
	address string
	stop    context.CancelFunc
	check   chan struct{} // of capacity one: check now

	// What checks are made with, by watch alone.
	client *http.Client
	pool   *x509.CertPool // that client knows
	opened time.Time      // when client was to open a new connection last

	// Guarded by Balancer.mu.
	state health
	why   string
	conns map[net.Conn]struct{} // client's side of what goes there
	gone  bool
}

// New returns a balancer that does nothing before Set.
func New(log *slog.Logger, pace Pace) *Balancer {
	ctx, cancel := context.WithCancel(context.Background())
	return &Balancer{log: log, pace: pace, ctx: ctx, cancel: cancel}
}

// Run ends everything when ctx does, and waits for it.
func (b *Balancer) Run(ctx context.Context) error {
	<-ctx.Done()
	b.Close()
	return nil
}

// Close ends all connections.
func (b *Balancer) Close() {
	b.cancel()
	b.mu.Lock()
	b.listen("")
	for _, x := range b.backends {
		b.drop(x)
	}
	b.backends = nil
	b.mu.Unlock()
	b.wg.Wait()
}

// Set makes c what the balancer does. Connections to backends that stay are not touched; those to others are
// closed. An empty c closes everything.
func (b *Balancer) Set(c wire.LoadBalancer) error {
	pool := x509.NewCertPool()
	if c.Listen != "" && !pool.AppendCertsFromPEM([]byte(c.Authority)) {
		return errors.New("load balancer: the authority of the API servers is not a PEM certificate")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return errors.New("load balancer: it was closed")
	}
	if err := b.listen(c.Listen); err != nil {
		return err
	}
	changed := b.pem != c.Authority
	b.pool, b.pem = pool, c.Authority
	b.backends = slices.DeleteFunc(b.backends, func(x *backend) bool {
		if slices.Contains(c.Backends, x.address) {
			return false
		}
		b.log.Info("API server removed from the load balancer", "backend", x.address, "connections", len(x.conns))
		b.drop(x)
		return true
	})
	for _, address := range c.Backends {
		i := slices.IndexFunc(b.backends, func(x *backend) bool { return x.address == address })
		if i < 0 {
			b.add(address)
		} else if changed {
			b.backends[i].now()
		}
	}
	return nil
}

// listen moves the listener; "" closes it. The caller holds mu.
func (b *Balancer) listen(address string) error {
	if address == b.address && (address == "") == (b.listener == nil) {
		return nil
	}
	var l net.Listener
	if address != "" {
		var err error
		if l, err = net.Listen("tcp", address); err != nil {
			hint := ""
			if errors.Is(err, unix.EADDRINUSE) {
				hint = "; another program has this port: end it (ss -ltnp shows it), or set spec.endpoint.localPort of the cluster"
			}
			return fmt.Errorf("load balancer: listen on %s: %w%s", address, err, hint)
		}
	}
	if b.listener != nil {
		b.listener.Close()
	}
	b.listener, b.address = l, address
	if l != nil {
		b.log.Info("load balancer listens", "address", address)
		b.wg.Go(func() { b.accept(l) })
	}
	return nil
}

// Health says whether any backend is ready, and what is wrong with each of the others.
func (b *Balancer) Health() (anyReady bool, why []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range b.backends {
		switch {
		case x.state == ready:
			anyReady = true
		case x.why != "":
			why = append(why, x.address+": "+x.why)
		default:
			why = append(why, x.address+": "+x.state.String())
		}
	}
	return anyReady, why
}

// Address is where it listens, nil if it does not.
func (b *Balancer) Address() net.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.listener == nil {
		return nil
	}
	return b.listener.Addr()
}

func (b *Balancer) add(address string) {
	ctx, stop := context.WithCancel(b.ctx)
	x := &backend{address: address, stop: stop, check: make(chan struct{}, 1), state: unknown, conns: map[net.Conn]struct{}{}}
	b.backends = append(b.backends, x)
	b.wg.Go(func() { b.watch(ctx, x) })
}

// drop ends a backend and its connections. The caller holds mu.
func (b *Balancer) drop(x *backend) {
	x.gone = true
	x.stop()
	x.cut()
}

// hangUp has the next check open a connection of its own.
func (x *backend) hangUp() {
	if x.client != nil {
		x.client.CloseIdleConnections()
	}
}

// cut closes all connections that go to a backend, so that clients come back and are sent elsewhere.
func (x *backend) cut() {
	for c := range x.conns {
		c.Close()
	}
}

// now asks for a check.
func (x *backend) now() {
	select {
	case x.check <- struct{}{}:
	default:
	}
}

// accept serves a listener until it is closed.
func (b *Balancer) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Too many open files, mostly: it passes.
			b.log.Warn("load balancer cannot accept a connection", "err", err)
			select {
			case <-b.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		b.wg.Go(func() { b.serve(c) })
	}
}

// serve passes one connection on.
func (b *Balancer) serve(client net.Conn) {
	defer client.Close()
	for _, x := range b.candidates() {
		dialer := net.Dialer{Timeout: b.pace.Dial, KeepAlive: 15 * time.Second}
		server, err := dialer.DialContext(b.ctx, "tcp", x.address)
		if err != nil {
			x.now()
			continue
		}
		// What was sent and not acknowledged for so long went to a machine that has no power any more.
		limit(server, 30*time.Second)
		limit(client, 30*time.Second)
		if b.enter(x, client) {
			pump(client, server)
			b.leave(x, client)
		}
		server.Close()
		return
	}
}

// candidates are all backends, in the order in which they are tried: the healthiest first, and of those the one
// with the fewest connections. When none is known to be healthy, all are tried: a check may be wrong.
func (b *Balancer) candidates() []*backend {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := slices.Clone(b.backends)
	slices.SortStableFunc(list, func(x, y *backend) int {
		if x.state != y.state {
			return int(y.state) - int(x.state)
		}
		return len(x.conns) - len(y.conns)
	})
	return list
}

// enter notes a connection; false if the backend was removed meanwhile.
func (b *Balancer) enter(x *backend, client net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if x.gone {
		return false
	}
	x.conns[client] = struct{}{}
	return true
}

func (b *Balancer) leave(x *backend, client net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(x.conns, client)
}

// pump copies in both directions. When one side has said all, the other is told, and may go on; when either breaks,
// both end.
func pump(client, server net.Conn) {
	var wg sync.WaitGroup
	oneWay := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		half, ok := to.(*net.TCPConn)
		if err != nil || !ok || half.CloseWrite() != nil {
			to.Close()
			from.Close()
		}
	}
	wg.Go(func() { oneWay(server, client) })
	oneWay(client, server)
	wg.Wait()
}

// limit sets how long sent data may stay unacknowledged (TCP_USER_TIMEOUT, RFC 5482).
func limit(c net.Conn, d time.Duration) {
	if t, ok := c.(*net.TCPConn); ok {
		if raw, err := t.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
			})
		}
	}
}

// watch checks one backend until it is removed.
func (b *Balancer) watch(ctx context.Context, x *backend) {
	defer x.hangUp()
	misses := 0
	var wasReady time.Time
	for ctx.Err() == nil {
		began := time.Now()
		state, why, definite := b.ask(ctx, x)
		if ctx.Err() != nil {
			return
		}
		if state == ready {
			wasReady = time.Now()
		}
		rest := b.pace.Every
		if state == dead && !definite {
			misses++
			if misses < b.pace.Misses && time.Since(began) >= b.pace.Limit {
				rest = 0 // it was waited for long enough; clients wait, too
			}
		} else {
			misses = 0
		}
		if state != dead || definite || misses >= b.pace.Misses {
			b.learn(x, state, why, definite)
		}
		if (state == speaks || state == live) && b.pace.Unready > 0 && time.Since(wasReady) >= b.pace.Unready {
			b.moveAway(x)
		}
		select {
		case <-ctx.Done():
		case <-x.check:
			// Not as fast as clients come.
			select {
			case <-ctx.Done():
			case <-time.After(b.pace.Every / 4):
			}
		case <-time.After(rest):
		}
	}
}

// learn notes a backend's health. One that is surely dead loses its connections, and one that does not answer if
// there is a better one to come back to.
func (b *Balancer) learn(x *backend, state health, why string, definite bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if x.gone {
		return
	}
	if x.state != state || x.why != why && state < live {
		b.log.Info("API server health changed", "backend", x.address, "is", state.String(), "was", x.state.String(), "because", why, "connections", len(x.conns))
	}
	x.state, x.why = state, why
	if state == dead && (definite || b.better()) {
		x.cut()
	}
	// Those that stayed with a silent backend for want of a better one can leave it now.
	if state >= live {
		for _, y := range b.backends {
			if y.state == dead {
				y.cut()
			}
		}
	}
}

// moveAway closes the connections of a backend that is not ready, if another one is.
func (b *Balancer) moveAway(x *backend) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(x.conns) == 0 || !slices.ContainsFunc(b.backends, func(y *backend) bool { return y.state == ready }) {
		return
	}
	b.log.Info("API server is not ready for too long; its connections are closed, so that clients go to one that is", "backend", x.address, "connections", len(x.conns), "because", x.why)
	x.cut()
}

// better says whether any backend is known to be well. The caller holds mu.
func (b *Balancer) better() bool {
	return slices.ContainsFunc(b.backends, func(x *backend) bool { return x.state >= live })
}

// ask checks a backend. definite says that a dead one is surely so.
func (b *Balancer) ask(ctx context.Context, x *backend) (state health, why string, definite bool) {
	ctx, cancel := context.WithTimeout(ctx, b.pace.Limit)
	defer cancel()
	b.mu.Lock()
	pool := b.pool
	b.mu.Unlock()
	if x.client == nil || x.pool != pool {
		x.hangUp()
		x.pool, x.client = pool, &http.Client{
			Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	if now := time.Now(); now.Sub(x.opened) >= b.pace.Fresh {
		x.hangUp()
		x.opened = now
	}
	defer func() {
		if state == dead {
			x.hangUp()
			x.opened = time.Time{}
		}
	}()
	get := func(path string) (int, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+x.address+path, nil)
		if err != nil {
			return 0, err
		}
		resp, err := x.client.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		// To its end, or the connection cannot be used again.
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		return resp.StatusCode, err
	}
	status, err := get("/readyz")
	if err != nil {
		var verify *tls.CertificateVerificationError
		if errors.As(err, &verify) {
			return dead, "it is not an API server of this cluster: " + verify.Err.Error(), true
		}
		return dead, cause(err), errors.Is(err, unix.ECONNREFUSED)
	}
	if status == http.StatusOK {
		return ready, "", false
	}
	why = fmt.Sprintf("/readyz answers %d", status)
	if status, err := get("/livez"); err == nil && status == http.StatusOK {
		return live, why, false
	}
	return speaks, why, false
}

// cause is the innermost part of a network error: the rest has port numbers that differ each time.
func cause(err error) string {
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "no answer in time"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return err.Error()
}
