package bmc

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"coldrack.dev/internal/base/termtext"
)

// Bounds of what is read from a BMC.
const (
	maxBody      = 4 << 20
	maxRedirects = 3
	maxMembers   = 64
	maxText      = 300
)

// rest asks a Redfish service (DSP0266), which it trusts no further than its own host.
type rest struct {
	target  Target
	options Options
	base    url.URL
	client  *http.Client
	quirks  Quirks

	// token of a session, which ends at session; basic says that there is none, and each request brings name and password.
	token, session string
	basic          bool
	// certificate is what the BMC showed.
	certificate string
}

func newREST(t Target, o Options) (*rest, error) {
	host := t.Address
	if h, port, err := net.SplitHostPort(t.Address); err == nil {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return nil, &Error{Kind: Misconfigured, Address: t.Address, What: fmt.Sprintf("%q is not a port", port)}
		}
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "" || strings.ContainsAny(host, "/@? #") {
		return nil, &Error{Kind: Misconfigured, Address: t.Address, What: "is not a host or host:port"}
	}
	r := &rest{target: t, options: o, base: url.URL{Scheme: "https", Host: t.Address}}
	if strings.Contains(t.Address, ":") && host == t.Address {
		r.base.Host = "[" + host + "]"
	}
	config, err := tlsConfig(t, host, func(fingerprint string) { r.certificate = fingerprint })
	if err != nil {
		return nil, err
	}
	r.client = &http.Client{
		// BMCs are in a network of their own: no proxy leads there. Long-lived connections confuse some: it ends with the visit.
		Transport: &http.Transport{
			TLSClientConfig: config, TLSHandshakeTimeout: o.Request, MaxConnsPerHost: 1,
			DialContext: (&net.Dialer{Timeout: min(o.Request, 10*time.Second)}).DialContext, DisableCompression: true,
		},
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			switch {
			case len(via) > maxRedirects:
				return fmt.Errorf("more than %d redirects", maxRedirects)
			case next.URL.Scheme != r.base.Scheme || next.URL.Host != r.base.Host:
				// The credentials are for this host alone.
				return fmt.Errorf("redirect to another host, %s", termtext.Mark(next.URL.Host, maxText))
			}
			return nil
		},
	}
	return r, nil
}

// answer is what the service said.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// errStatus is an answer that is no success.
type errStatus struct {
	answer
}

func (e *errStatus) Error() string {
	text := http.StatusText(e.status)
	if said := e.said(); said != "" {
		text = said
	}
	return fmt.Sprintf("HTTP %d: %s", e.status, text)
}

// said is the message in a Redfish error (DSP0266, "Error responses").
func (e *errStatus) said() string {
	var body struct {
		Error struct {
			Message string `json:"message"`
			Info    []struct {
				Message   string
				MessageID string `json:"MessageId"`
			} `json:"@Message.ExtendedInfo"`
		} `json:"error"`
	}
	if json.Unmarshal(e.body, &body) != nil {
		return ""
	}
	text := body.Error.Message
	for _, info := range body.Error.Info {
		if m := cmp.Or(info.Message, info.MessageID); m != "" {
			text = m
			break
		}
	}
	return termtext.Mark(text, maxText)
}

// errSent wraps the failure of a request that may have been carried out.
var errSent = errors.New("the connection broke after the request was sent")

// statusOf is the status of an answer that is no success; 0 for every other error.
func statusOf(err error) int {
	var e *errStatus
	if errors.As(err, &e) {
		return e.status
	}
	return 0
}

// resolve makes a URL of a path or URL that the service names. Other hosts are refused.
func (r *rest) resolve(reference string) (*url.URL, error) {
	u, err := r.base.Parse(reference)
	if err != nil || u.Scheme != r.base.Scheme || u.Host != r.base.Host {
		return nil, fmt.Errorf("it names %q, which is not on this BMC", termtext.Mark(reference, maxText))
	}
	u.Fragment = ""
	return u, nil
}

// once sends one request, without logging in.
func (r *rest) once(ctx context.Context, method, path string, body any, header http.Header) (answer, error) {
	u, err := r.resolve(path)
	if err != nil {
		return answer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.options.Request)
	defer cancel()
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return answer{}, err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, u.String(), content)
	if err != nil {
		return answer{}, err
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("OData-Version", "4.0")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	for key, values := range header {
		request.Header[key] = values
	}
	switch {
	case r.token != "":
		request.Header.Set("X-Auth-Token", r.token)
	case r.basic:
		request.SetBasicAuth(r.target.Username, r.target.Password.reveal())
	}
	response, err := r.client.Do(request)
	if err != nil {
		return answer{}, fmt.Errorf("%s %s: %w", method, u.Path, withoutURL(err))
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxBody+1))
	switch {
	case len(text) > maxBody:
		return answer{}, fmt.Errorf("%s %s: its answer is larger than %d MiB", method, u.Path, maxBody>>20)
	case err != nil && response.StatusCode < 300 && method != http.MethodGet:
		// It was accepted; what the answer says more is lost.
		text = nil
	case err != nil:
		return answer{}, fmt.Errorf("%s %s: %w", method, u.Path, withoutURL(err))
	}
	a := answer{response.StatusCode, response.Header, text}
	if a.status >= 300 {
		return a, fmt.Errorf("%s %s: %w", method, u.Path, &errStatus{a})
	}
	return a, nil
}

// withoutURL drops what http.Client prefixes: the URL, which is said already.
func withoutURL(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// login begins a session where the service has sessions, and falls back to a name and password with each request. BMCs allow few
// sessions, so close ends it.
func (r *rest) login(ctx context.Context, sessions string) error {
	if r.token != "" || r.basic || r.target.Username == "" {
		return nil
	}
	if r.quirks.Auth == authBasic {
		r.basic = true
		return nil
	}
	a, err := r.once(ctx, http.MethodPost, sessions, map[string]string{"UserName": r.target.Username, "Password": r.target.Password.reveal()}, nil)
	switch statusOf(err) {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented, http.StatusServiceUnavailable:
		r.basic = true // no sessions, or none left
		return nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return r.refused(err)
	}
	if err != nil {
		return r.failed("log in", err)
	}
	r.token = a.header.Get("X-Auth-Token")
	if r.token == "" {
		r.basic = true
		return nil
	}
	var body struct {
		ID string `json:"@odata.id"`
	}
	_ = json.Unmarshal(a.body, &body)
	r.session = cmp.Or(a.header.Get("Location"), body.ID)
	return nil
}

func (r *rest) close() {
	if r.token != "" && r.session != "" {
		ctx, cancel := context.WithTimeout(context.Background(), min(r.options.Request, 5*time.Second))
		defer cancel()
		_, _ = r.once(ctx, http.MethodDelete, r.session, nil, nil) // one that stays ends by itself
	}
	r.token, r.session = "", ""
	r.client.CloseIdleConnections()
}

// get reads a resource.
func (r *rest) get(ctx context.Context, path string, into any) (answer, error) {
	a, err := r.once(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(a.body, into); err != nil {
		return a, fmt.Errorf("GET %s: its answer is not what Redfish says: %w", path, err)
	}
	return a, nil
}

// refused says that the credentials are wrong.
func (r *rest) refused(cause error) *Error {
	return &Error{Kind: Refused, Address: r.target.Address, What: fmt.Sprintf("does not accept user %q with this password", r.target.Username), Cause: cause,
		Remedy: "set the right one: coldrack bmc set-password"}
}

// failed makes an error of this package of any other.
func (r *rest) failed(what string, err error) *Error {
	e := &Error{Kind: Failed, Address: r.target.Address, What: what, Cause: err}
	var known *Error
	var network net.Error
	var operation *net.OpError
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, errCertificate):
		e.Kind = Untrusted
		e.Remedy = "compare it with what the BMC's own page shows, then record it: coldrack bmc trust"
	case statusOf(err) == http.StatusUnauthorized, statusOf(err) == http.StatusForbidden:
		return r.refused(err)
	case errors.Is(err, errSent):
		e.Kind = Uncertain
	case errors.As(err, &network) && network.Timeout(), errors.Is(err, context.DeadlineExceeded):
		e.Kind = Unreachable
		e.Remedy = "is the BMC's network reachable from the server, and does the BMC work? A BMC that hangs may need to be restarted"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Kind, e.Remedy = Unreachable, "nothing listens there: is spec.bmc.address the BMC's, and is Redfish switched on in it?"
	case errors.As(err, &operation), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.Canceled):
		e.Kind = Unreachable
	}
	return e
}
