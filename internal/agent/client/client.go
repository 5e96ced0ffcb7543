// Package client speaks the machine API from the machine's side: it pins the server, carries the
// machine's certificate, and knows which failures are worth another try.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"coldrack.dev/internal/content/swarm/kit"
	"coldrack.dev/internal/contract/wire"
)

// maxAnswer bounds an answer's body; a plan with its files is the largest.
const maxAnswer = 32 << 20

// Client calls one server. It is safe for concurrent use.
type Client struct {
	base string
	opts Options
	host string
	http atomic.Pointer[http.Client]
}

// Options of a Client.
type Options struct {
	Server string              // https://HOST:PORT
	Pin    Pin                 // the only CA to accept
	CAs    []*x509.Certificate // CA certificates known already; may be nil
	Agent  string              // User-Agent
	Now    func() time.Time    // the clock certificates are judged by; nil is time.Now
	// Dial opens connections; nil is net.Dialer's. The rehearsal gives each simulated machine its own address.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// New returns a client without a certificate of its own.
func New(o Options) (*Client, error) {
	u, err := url.Parse(o.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("server address %q: want https://HOST:PORT", o.Server)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	c := &Client{base: strings.TrimSuffix(u.String(), "/"), opts: o, host: u.Hostname()}
	c.http.Store(c.transport(nil))
	return c, nil
}

// transport shows cert, which may be nil, on all its connections.
func (c *Client) transport(cert *tls.Certificate) *http.Client {
	o := c.opts
	tr := &http.Transport{
		DialContext:         o.Dial,
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     90 * time.Second,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 2,
		// A server that lost its power answers nothing at all: only the ping finds out.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			// The system's roots have no say; VerifyConnection does the whole verification.
			InsecureSkipVerify: true,
			VerifyConnection: func(cs tls.ConnectionState) error {
				return o.Pin.verify(cs, c.host, o.CAs, o.Now())
			},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if cert != nil {
					return cert, nil
				}
				return &tls.Certificate{}, nil
			},
		},
	}
	return &http.Client{Transport: withAgent{tr, o.Agent}, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // the machine API does not redirect
	}}
}

type withAgent struct {
	http.RoundTripper
	agent string
}

func (w withAgent) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("User-Agent", w.agent)
	return w.RoundTripper.RoundTrip(r)
}

func (w withAgent) CloseIdleConnections() {
	if c, ok := w.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// Use makes cert the client certificate of every call that begins after it returns. Connections that were
// opened with another are not used again, even if a call is still under way on them.
func (c *Client) Use(cert tls.Certificate) {
	c.http.Swap(c.transport(&cert)).CloseIdleConnections()
}

// Close closes connections that no call uses.
func (c *Client) Close() { c.http.Load().CloseIdleConnections() }

// Error is the server's refusal.
type Error struct {
	Path    string
	Status  int
	Code    string // stable, see wire
	Message string // for a person
}

func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("the server answered %s with status %d", e.Path, e.Status)
	}
	return fmt.Sprintf("the server answered %s: %s (%s)", e.Path, e.Message, e.Code)
}

// Final says that the same call cannot succeed later (see package retry): a refusal, but not a server in trouble.
func (e *Error) Final() bool {
	return e.Status < 500 && e.Status != http.StatusTooManyRequests && e.Status != http.StatusRequestTimeout
}

// Code is the stable code of a server's refusal, or "".
func Code(err error) string {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.Code
	}
	return ""
}

const (
	// callLimit is how long a call may take; the long poll adds the time it asks to wait.
	callLimit = 30 * time.Second
	// kitLimit is that of a kit, which the server may have to make first.
	kitLimit = 2 * time.Minute
)

func call[T any](ctx context.Context, c *Client, method, path string, limit time.Duration, in any) (T, error) {
	var out T
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return out, fmt.Errorf("encode %s: %w", path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return out, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Load().Do(req)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return out, fmt.Errorf("read the answer of %s: %w", path, err)
	}
	if len(b) > maxAnswer {
		return out, fmt.Errorf("the answer of %s is longer than %d bytes", path, maxAnswer)
	}
	path, _, _ = strings.Cut(path, "?")
	if resp.StatusCode >= 300 {
		var refusal wire.Error
		_ = json.Unmarshal(b, &refusal) // a proxy's error page leaves it empty
		return out, &Error{Path: path, Status: resp.StatusCode, Code: refusal.Code, Message: refusal.Message}
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return out, fmt.Errorf("the answer of %s is not what was expected: %w", path, err)
	}
	return out, nil
}

// Time asks for the server's clock.
func (c *Client) Time(ctx context.Context) (wire.Time, error) {
	return call[wire.Time](ctx, c, http.MethodGet, wire.PathTime, callLimit, nil)
}

// Enroll asks for a session certificate.
func (c *Client) Enroll(ctx context.Context, r wire.EnrollRequest) (wire.EnrollResponse, error) {
	return call[wire.EnrollResponse](ctx, c, http.MethodPost, wire.PathEnroll, callLimit, r)
}

// Live asks who may log in to the live system.
func (c *Client) Live(ctx context.Context, r wire.LiveRequest) (wire.LiveResponse, error) {
	return call[wire.LiveResponse](ctx, c, http.MethodPost, wire.PathLive, callLimit, r)
}

// Inventory reports what the machine consists of.
func (c *Client) Inventory(ctx context.Context, inv wire.Inventory) error {
	_, err := call[wire.Empty](ctx, c, http.MethodPost, wire.PathInventory, callLimit, inv)
	return err
}

// Assignment waits up to wait for an assignment other than the one known by version.
func (c *Client) Assignment(ctx context.Context, version string, wait time.Duration) (wire.Assignment, error) {
	q := url.Values{"version": {version}, "wait": {strconv.Itoa(int(wait.Seconds()))}}
	return call[wire.Assignment](ctx, c, http.MethodGet, wire.PathAssignment+"?"+q.Encode(), wait+callLimit, nil)
}

// Progress reports how far the running act is.
func (c *Client) Progress(ctx context.Context, p wire.Progress) (wire.ProgressResponse, error) {
	return call[wire.ProgressResponse](ctx, c, http.MethodPost, wire.PathProgress, callLimit, p)
}

// Identity asks for the node's certificate.
func (c *Client) Identity(ctx context.Context, r wire.IdentityRequest) (wire.IdentityResponse, error) {
	return call[wire.IdentityResponse](ctx, c, http.MethodPost, wire.PathIdentity, callLimit, r)
}

// Complete acknowledges an intent.
func (c *Client) Complete(ctx context.Context, r wire.Complete) error {
	_, err := call[wire.Empty](ctx, c, http.MethodPost, wire.PathComplete, callLimit, r)
	return err
}

// Heartbeat reports an installed node.
func (c *Client) Heartbeat(ctx context.Context, h wire.Heartbeat) (wire.HeartbeatResponse, error) {
	return call[wire.HeartbeatResponse](ctx, c, http.MethodPost, wire.PathHeartbeat, callLimit, h)
}

// Hardware reports what an installed node is built of.
func (c *Client) Hardware(ctx context.Context, h wire.Hardware) error {
	_, err := call[wire.Empty](ctx, c, http.MethodPost, wire.PathHardware, callLimit, h)
	return err
}

// Renew asks for the next certificate of an installed node.
func (c *Client) Renew(ctx context.Context, r wire.RenewRequest) (wire.IdentityResponse, error) {
	return call[wire.IdentityResponse](ctx, c, http.MethodPost, wire.PathRenew, callLimit, r)
}

// Node waits up to wait for what the node must have for its cluster to be another than the version known.
func (c *Client) Node(ctx context.Context, version string, wait time.Duration) (wire.NodeAssignment, error) {
	q := url.Values{"version": {version}, "wait": {strconv.Itoa(int(wait.Seconds()))}}
	return call[wire.NodeAssignment](ctx, c, http.MethodGet, wire.PathNode+"?"+q.Encode(), wait+callLimit, nil)
}

// Units reports the units that this machine has of the server, and waits up to wait for what it shall have to be another than the version known.
func (c *Client) Units(ctx context.Context, version string, wait time.Duration, r wire.UnitReport) (wire.UnitAssignment, error) {
	q := url.Values{"version": {version}, "wait": {strconv.Itoa(int(wait.Seconds()))}}
	return call[wire.UnitAssignment](ctx, c, http.MethodPost, wire.PathUnits+"?"+q.Encode(), wait+callLimit, r)
}

// Kit asks for what the nodes of this machine's cluster have in common. The server may have to read it first.
func (c *Client) Kit(ctx context.Context) (kit.Kit, error) {
	return call[kit.Kit](ctx, c, http.MethodGet, wire.PathKit, kitLimit, nil)
}

// Certificate asks for one of the certificates of the node's plan.
func (c *Client) Certificate(ctx context.Context, r wire.CertificateRequest) (wire.CertificateResponse, error) {
	return call[wire.CertificateResponse](ctx, c, http.MethodPost, wire.PathCertificate, callLimit, r)
}

// EtcdData writes the archive of the data that this machine's member of etcd begins with after a restore to w.
func (c *Client) EtcdData(ctx context.Context, restore string, w io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+wire.PathEtcdData+"?"+url.Values{"restore": {restore}}.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Load().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var refusal wire.Error
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		_ = json.Unmarshal(b, &refusal) // a proxy's error page leaves it empty
		return &Error{Path: wire.PathEtcdData, Status: resp.StatusCode, Code: refusal.Code, Message: refusal.Message}
	}
	_, err = io.Copy(w, resp.Body)
	return err
}

// Phases reports how far the node is.
func (c *Client) Phases(ctx context.Context, r wire.PhaseReport) error {
	_, err := call[wire.Empty](ctx, c, http.MethodPost, wire.PathPhases, callLimit, r)
	return err
}
