package kubeapi

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

const (
	// fresh is how long an API server that was found ready is used without being asked again.
	fresh = 10 * time.Second
	// probeTimeout is how long an API server may take to say whether it is ready.
	probeTimeout = 5 * time.Second
	// userAgent names us in audit logs.
	userAgent = "coldrack"
)

// Target is the API of one cluster.
type Target struct {
	Cluster string
	// Servers are the addresses of the API servers of all control-plane machines.
	Servers []netip.AddrPort
	// CA is the PEM certificate that the API servers' certificates are verified with. They must be valid for
	// the address that is connected to.
	CA []byte
	// Dial connects to a node; nil is an ordinary net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Certificate returns a client certificate of group system:masters. It is asked again for each new
	// connection, and before two thirds of the lifetime of the last one have passed.
	Certificate func() (*tls.Certificate, error)
}

// Connection sends every request to an API server that is ready, and to another one when it no longer is.
// It is safe for concurrent use.
type Connection struct {
	target Target
	roots  *x509.CertPool
	config *rest.Config
	client *kubernetes.Clientset
	// dynamic and mapper serve objects of any kind.
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper

	mu        sync.Mutex
	transport *http.Transport
	renewAt   time.Time
	// current is the API server in use, chosen says since when that was found good.
	current  int
	chosenAt time.Time
	// running cancels requests that run at each of the servers.
	running []map[*inFlight]struct{}
}

type inFlight struct{ cancel context.CancelCauseFunc }

// Connect prepares a connection; nothing is sent yet.
func Connect(target Target) (*Connection, error) {
	if len(target.Servers) == 0 {
		return nil, fmt.Errorf("cluster %s has no API server to connect to", target.Cluster)
	}
	c := &Connection{target: target, roots: x509.NewCertPool(), running: make([]map[*inFlight]struct{}, len(target.Servers))}
	if !c.roots.AppendCertsFromPEM(target.CA) {
		return nil, fmt.Errorf("cluster %s: the certificate of its authority is not PEM", target.Cluster)
	}
	if c.target.Dial == nil {
		c.target.Dial = (&net.Dialer{Timeout: probeTimeout}).DialContext
	}
	for i := range c.running {
		c.running[i] = map[*inFlight]struct{}{}
	}
	c.config = &rest.Config{
		Host: "https://" + target.Servers[0].String(), Transport: c, UserAgent: userAgent,
		// Applying a cluster's objects for the first time takes some seventy requests.
		QPS: 100, Burst: 200,
		// The API server repeats what it warns of each time that the same object is applied.
		WarningHandler: rest.NoWarnings{},
	}
	var err error
	if c.client, err = kubernetes.NewForConfig(c.config); err != nil {
		return nil, fmt.Errorf("cluster %s: %w", target.Cluster, err)
	}
	if c.dynamic, err = dynamic.NewForConfig(c.config); err != nil {
		return nil, fmt.Errorf("cluster %s: %w", target.Cluster, err)
	}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discovery.NewDiscoveryClient(c.client.RESTClient())))
	return c, nil
}

// Config is for clients of one's own. Its requests fail over as those of this package do.
func (c *Connection) Config() *rest.Config { return rest.CopyConfig(c.config) }

// Client is a client of the built-in kinds.
func (c *Connection) Client() kubernetes.Interface { return c.client }

// Close ends idle connections and running requests.
func (c *Connection) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.running {
		c.cancelAll(i, errors.New("the connection was closed"))
	}
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
}

// Check asks the API server in use whether it is ready, changes to another one if it is not, and returns the
// one in use. The error says of every API server what is the matter with it.
func (c *Connection) Check(ctx context.Context) (netip.AddrPort, error) {
	i, err := c.choose(ctx, 0)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return c.target.Servers[i], nil
}

// Servers asks all API servers whether they are ready, and says of those that are not why.
func (c *Connection) Servers(ctx context.Context) map[netip.AddrPort]error {
	problems := make([]error, len(c.target.Servers))
	var asking sync.WaitGroup
	for i := range c.target.Servers {
		asking.Go(func() { problems[i] = c.ready(ctx, i) })
	}
	asking.Wait()
	down := map[netip.AddrPort]error{}
	for i, problem := range problems {
		if problem != nil {
			down[c.target.Servers[i]] = problem
		}
	}
	return down
}

// choose returns an API server that was found ready no longer ago than age.
func (c *Connection) choose(ctx context.Context, age time.Duration) (int, error) {
	c.mu.Lock()
	current, at := c.current, c.chosenAt
	c.mu.Unlock()
	if time.Since(at) < age {
		return current, nil
	}
	// The one in use first: a change breaks its watches.
	problems := make([]error, len(c.target.Servers))
	problems[current] = c.ready(ctx, current)
	found := -1
	if problems[current] == nil {
		found = current
	} else {
		type answer struct {
			server int
			err    error
		}
		answers := make(chan answer, len(c.target.Servers))
		for i := range c.target.Servers {
			if i != current {
				go func() { answers <- answer{i, c.ready(ctx, i)} }()
			}
		}
		for range len(c.target.Servers) - 1 {
			a := <-answers
			problems[a.server] = a.err
			if a.err == nil {
				found = a.server
				break
			}
		}
	}
	if err := ctx.Err(); err != nil && found < 0 {
		return 0, context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if found != current {
		c.cancelAll(current, fmt.Errorf("%s: %w", c.target.Servers[current], problems[current]))
	}
	if found < 0 {
		c.chosenAt = time.Time{}
		return 0, c.unreachable(problems)
	}
	c.current, c.chosenAt = found, time.Now()
	return found, nil
}

// unreachable says of each API server why it cannot be used.
func (c *Connection) unreachable(problems []error) error {
	var words []string
	for i, problem := range problems {
		words = append(words, fmt.Sprintf("%s: %v", c.target.Servers[i], problem))
	}
	return &UnreachableError{Cluster: c.target.Cluster, Problems: words}
}

// UnreachableError is what requests fail with while no API server is ready.
type UnreachableError struct {
	Cluster string
	// Problems are one text for each API server.
	Problems []string
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("no API server of cluster %s is ready: %s", e.Cluster, strings.Join(e.Problems, "; "))
}

// ready asks one API server; nil is a yes.
func (c *Connection) ready(ctx context.Context, server int) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	status, body, err := c.ask(ctx, server, "/readyz")
	switch {
	case err != nil:
		return reason(err)
	case status != http.StatusOK:
		return fmt.Errorf("not ready: %d %s", status, failedChecks(body))
	}
	return nil
}

// ask gets a path from one API server.
func (c *Connection) ask(ctx context.Context, server int, path string) (status int, body []byte, err error) {
	transport, err := c.currentTransport()
	if err != nil {
		return 0, nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.target.Servers[server].String()+path, nil)
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("User-Agent", userAgent)
	response, err := transport.RoundTrip(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, 64<<10))
	return response.StatusCode, body, err
}

// failedChecks are the lines of a health report that begin with "[-]", in one line.
func failedChecks(body []byte) string {
	var failed []string
	for line := range strings.Lines(string(body)) {
		if name, ok := strings.CutPrefix(line, "[-]"); ok {
			name, _, _ = strings.Cut(name, " ")
			failed = append(failed, strings.TrimSpace(name))
		}
	}
	if len(failed) == 0 {
		return strings.TrimSpace(string(body[:min(len(body), 200)]))
	}
	return "failed: " + strings.Join(failed, ", ")
}

// reason leaves out what net/http says twice.
func reason(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %s", probeTimeout)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}

// currentTransport is a new one when the client certificate of the last is about to expire. Requests that run
// on the old one go on: the API server looks at certificates when a request begins.
func (c *Connection) currentTransport() (*http.Transport, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.transport != nil && time.Now().Before(c.renewAt) {
		return c.transport, nil
	}
	certificate, err := c.target.Certificate()
	if err != nil {
		return nil, fmt.Errorf("client certificate for cluster %s: %w", c.target.Cluster, err)
	}
	leaf := certificate.Leaf
	if leaf == nil {
		if leaf, err = x509.ParseCertificate(certificate.Certificate[0]); err != nil {
			return nil, fmt.Errorf("client certificate for cluster %s: %w", c.target.Cluster, err)
		}
	}
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
	now := time.Now()
	c.renewAt = now.Add(leaf.NotAfter.Sub(now) * 2 / 3)
	c.transport = &http.Transport{
		DialContext: c.target.Dial,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.roots,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }},
		TLSHandshakeTimeout: probeTimeout, IdleConnTimeout: 90 * time.Second,
		ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 8,
		// A machine that lost its power answers nothing, and TCP notices only after minutes.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
	}
	return c.transport, nil
}

// cancelAll ends the requests that run at a server, so that watches begin again elsewhere. The caller holds mu.
func (c *Connection) cancelAll(server int, why error) {
	for f := range c.running[server] {
		f.cancel(why)
	}
	clear(c.running[server])
}

// RoundTrip sends a request to the API server in use, whatever host it names.
func (c *Connection) RoundTrip(request *http.Request) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		server, err := c.choose(request.Context(), fresh)
		if err != nil {
			return nil, err
		}
		response, err := c.send(request, server)
		if err == nil {
			return response, nil
		}
		// Not ready for all that we know; the next choice asks it first.
		c.mu.Lock()
		if c.current == server {
			c.chosenAt = time.Time{}
		}
		c.mu.Unlock()
		if attempt > len(c.target.Servers) || request.Context().Err() != nil || !repeatable(request, err) {
			return nil, err
		}
	}
}

// repeatable is a request that changes nothing, or that cannot have arrived.
func repeatable(request *http.Request, err error) bool {
	var op *net.OpError
	dialing := errors.As(err, &op) && op.Op == "dial"
	return request.Body == nil && (request.Method == http.MethodGet || request.Method == http.MethodHead) ||
		dialing && (request.Body == nil || request.GetBody != nil)
}

func (c *Connection) send(original *http.Request, server int) (*http.Response, error) {
	transport, err := c.currentTransport()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(original.Context())
	flight := &inFlight{cancel}
	c.mu.Lock()
	c.running[server][flight] = struct{}{}
	c.mu.Unlock()
	done := func() {
		cancel(nil)
		c.mu.Lock()
		delete(c.running[server], flight)
		c.mu.Unlock()
	}
	request := original.Clone(ctx)
	request.URL.Host, request.Host = c.target.Servers[server].String(), ""
	if original.Body != nil && original.GetBody != nil {
		// Each attempt reads its own copy.
		defer original.Body.Close()
		if request.Body, err = original.GetBody(); err != nil {
			done()
			return nil, err
		}
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && original.Context().Err() == nil {
			err = cause
		}
		done()
		return nil, err
	}
	response.Body = &body{response.Body, done}
	return response, nil
}

// body tells when a response has been read.
type body struct {
	io.ReadCloser
	done func()
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.done()
	return err
}

// same is true when both are the same API by the same way; functions are not compared.
func (t *Target) same(other *Target) bool {
	byText := func(a, b netip.AddrPort) int { return cmp.Compare(a.String(), b.String()) }
	return t.Cluster == other.Cluster && slices.Equal(t.CA, other.CA) &&
		slices.Equal(slices.SortedFunc(slices.Values(t.Servers), byText), slices.SortedFunc(slices.Values(other.Servers), byText))
}
