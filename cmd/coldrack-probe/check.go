package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	defaultTimeout = 5 * time.Second
	maxTimeout     = 30 * time.Second
	// maxBody bytes of an answer are reported.
	maxBody = 4 << 10
	// clusterCA is where Kubernetes puts the cluster's CA into pods that have a service account token.
	clusterCA = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
)

// Result is what a check found.
type Result struct {
	Target  string  `json:"target"`
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"`
	// Error says why it is not OK.
	Error string `json:"error,omitempty"`
	// Status of an HTTP answer, and the first 4 KiB of its body.
	Status int    `json:"status,omitempty"`
	Body   string `json:"body,omitempty"`
	// Addresses that a name has, or the one that was connected to.
	Addresses []string `json:"addresses,omitempty"`
	// From is the pod that checked.
	From Identity `json:"from,omitzero"`
}

type checkRequest struct {
	target   string
	timeout  time.Duration
	insecure bool
	body     string
}

// parseCheck reads the query of /check. The target is set in any case.
func parseCheck(query url.Values) (checkRequest, error) {
	r := checkRequest{target: query.Get("target"), timeout: defaultTimeout, body: query.Get("body")}
	if r.target == "" {
		return r, errors.New("target is missing: want http://…, https://…, dns:NAME or tcp://HOST:PORT")
	}
	if _, err := parseTarget(r.target); err != nil {
		return r, err
	}
	var err error
	if text := query.Get("timeout"); text != "" {
		if r.timeout, err = parseTimeout(text); err != nil {
			return r, err
		}
	}
	if text := query.Get("insecure"); text != "" {
		if r.insecure, err = strconv.ParseBool(text); err != nil {
			return r, fmt.Errorf("insecure is %q, want true or false", text)
		}
	}
	return r, nil
}

func parseTimeout(text string) (time.Duration, error) {
	timeout, err := time.ParseDuration(text)
	if err != nil || timeout <= 0 || timeout > maxTimeout {
		return 0, fmt.Errorf("timeout is %q, want for example 2s, at most %s", text, maxTimeout)
	}
	return timeout, nil
}

func parseWithin(text string) (time.Duration, error) {
	within, err := time.ParseDuration(text)
	if err != nil || within < 0 || within > maxWithin {
		return 0, fmt.Errorf("the time to try is %q, want for example 15s, at most %s", text, maxWithin)
	}
	return within, nil
}

// parseTarget returns the target as a URL; a name to look up is its Opaque part.
func parseTarget(target string) (*url.URL, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("target %.200q: %w", target, err)
	}
	switch u.Scheme {
	case "http", "https":
		if u.Hostname() == "" {
			return nil, fmt.Errorf("target %.200q names no host", target)
		}
	case "tcp":
		if _, err := strconv.ParseUint(u.Port(), 10, 16); err != nil || u.Hostname() == "" {
			return nil, fmt.Errorf("target %.200q: want tcp://HOST:PORT", target)
		}
	case "dns":
		if u.Opaque == "" {
			return nil, fmt.Errorf("target %.200q: want dns:NAME", target)
		}
	default:
		return nil, fmt.Errorf("target %.200q: want http://…, https://…, dns:NAME or tcp://HOST:PORT", target)
	}
	return u, nil
}

// check does what is asked; the time is that of the whole check.
func check(ctx context.Context, r checkRequest) Result {
	result := Result{Target: r.target}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	began := time.Now()
	u, err := parseTarget(r.target)
	if err == nil {
		switch u.Scheme {
		case "dns":
			result.Addresses, err = (&net.Resolver{PreferGo: true}).LookupHost(ctx, u.Opaque)
			slices.Sort(result.Addresses)
		case "tcp":
			err = connect(ctx, u.Host, &result)
		default:
			err = fetch(ctx, r, &result)
		}
	}
	result.Seconds = time.Since(began).Seconds()
	result.OK = err == nil
	if err != nil {
		result.Error = err.Error()
		if ctx.Err() != nil {
			result.Error = fmt.Sprintf("no answer within %s: %v", r.timeout, err)
		}
	}
	return result
}

func connect(ctx context.Context, address string, result *Result) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	result.Addresses = []string{conn.RemoteAddr().String()}
	return conn.Close()
}

// fetch makes a connection of its own, so that every check through a service is a new choice of pod.
func fetch(ctx context.Context, r checkRequest, result *Result) error {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		result.Addresses = []string{info.Conn.RemoteAddr().String()}
	}})
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.target, nil)
	if err != nil {
		return err
	}
	// No proxy from the environment: the pod's own network is what is looked at.
	transport := &http.Transport{
		DisableKeepAlives:   true,
		TLSClientConfig:     &tls.Config{RootCAs: roots(), InsecureSkipVerify: r.insecure}, // only where the request says so
		TLSHandshakeTimeout: r.timeout,
	}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	result.Status = response.StatusCode
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody))
	result.Body = strings.ToValidUTF8(string(body), "\uFFFD")
	switch {
	case err != nil:
		return fmt.Errorf("read the answer: %w", err)
	case response.StatusCode < 200 || response.StatusCode > 299:
		return fmt.Errorf("answer is %s", response.Status)
	case !strings.Contains(result.Body, r.body):
		return fmt.Errorf("answer does not contain %q in its first %d bytes", r.body, maxBody)
	}
	return nil
}

// roots are the system's, with the cluster's CA where the pod has it. The image has none of the former.
func roots() *x509.CertPool {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if pem, err := os.ReadFile(clusterCA); err == nil {
		pool.AppendCertsFromPEM(pem)
	}
	return pool
}
