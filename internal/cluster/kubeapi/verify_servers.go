package kubeapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	kubeletPort     = 10250
	clusterInfoPath = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
)

// apiServers looks at each API server by itself: its health, its certificate, and what it tells strangers.
func (v *verification) apiServers(ctx context.Context) {
	each(ctx, v.o.Target.Servers, func(ctx context.Context, server netip.AddrPort) {
		target := server.String()
		v.do(ctx, "API server", target, func(ctx context.Context) (string, error) {
			i := slices.Index(v.o.Target.Servers, server)
			status, body, err := v.connection.ask(ctx, i, "/readyz?verbose")
			switch {
			case err != nil:
				return "", reason(err)
			case status != http.StatusOK:
				return "", fmt.Errorf("not ready: %d %s", status, failedChecks(body))
			}
			return fmt.Sprintf("ready, %d checks passed", strings.Count(string(body), "[+]")), nil
		})
		v.do(ctx, "API server certificate", target, func(ctx context.Context) (string, error) { return v.servingCertificate(ctx, server) })
		v.do(ctx, "anonymous access", target, func(ctx context.Context) (string, error) { return v.anonymous(ctx, server) })
	})
}

// servingCertificate looks at the certificate that a server of the cluster's authority shows for its address.
func (v *verification) servingCertificate(ctx context.Context, server netip.AddrPort) (string, error) {
	raw, err := v.connection.target.Dial(ctx, "tcp", server.String())
	if err != nil {
		return "", reason(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: v.connection.roots, ServerName: server.Addr().String()})
	if err := conn.HandshakeContext(ctx); err != nil {
		return "", err
	}
	leaf := conn.ConnectionState().PeerCertificates[0]
	left, whole := time.Until(leaf.NotAfter), leaf.NotAfter.Sub(leaf.NotBefore)
	detail := "good for " + remaining(left)
	if left < whole/5 {
		return "", fmt.Errorf("%s of %s; it should have been renewed when a third was left", detail, remaining(whole))
	}
	return detail, nil
}

// remaining rounds to what matters.
func remaining(d time.Duration) string {
	switch {
	case d < 0:
		return "no more: expired " + (-d).Round(time.Minute).String() + " ago"
	case d > 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
	return d.Round(time.Minute).String()
}

// anonymous asks without any credentials.
func (v *verification) anonymous(ctx context.Context, server netip.AddrPort) (string, error) {
	transport := &http.Transport{DialContext: v.connection.target.Dial, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: v.connection.roots}}
	defer transport.CloseIdleConnections()
	status := func(path string) (int, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+server.String()+path, nil)
		if err != nil {
			return 0, err
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			return 0, reason(err)
		}
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10))
		return response.StatusCode, err
	}
	closed := []string{"/api", "/apis", "/version", "/metrics", "/openapi/v2", "/api/v1/namespaces/kube-system/secrets"}
	if !v.o.TokenDiscovery {
		closed = append(closed, clusterInfoPath)
	}
	for _, path := range closed {
		code, err := status(path)
		if err != nil {
			return "", err
		}
		if code != http.StatusUnauthorized && code != http.StatusForbidden {
			return "", fmt.Errorf("%s answers strangers with %d; see --authentication-config of the API server", path, code)
		}
	}
	for _, path := range []string{"/livez", "/readyz", "/healthz"} {
		code, err := status(path)
		if err != nil {
			return "", err
		}
		if code == http.StatusUnauthorized || code == http.StatusForbidden {
			return "", fmt.Errorf("%s answers strangers with %d, but load balancers must be able to ask", path, code)
		}
	}
	return "health endpoints only", nil
}

// etcd asks each member whether it is healthy, which it is only with a leader and without alarms.
func (v *verification) etcd(ctx context.Context) {
	if len(v.o.EtcdMembers) == 0 || v.o.EtcdCertificate == nil {
		return
	}
	config, err := v.etcdTLS()
	each(ctx, v.o.EtcdMembers, func(ctx context.Context, member netip.AddrPort) {
		v.do(ctx, "etcd", member.String(), func(ctx context.Context) (string, error) {
			if err != nil {
				return "", err
			}
			transport := &http.Transport{DialContext: v.connection.target.Dial, DisableKeepAlives: true, TLSClientConfig: config.Clone()}
			defer transport.CloseIdleConnections()
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+member.String()+"/health", nil)
			if err != nil {
				return "", err
			}
			response, err := transport.RoundTrip(request)
			if err != nil {
				return "", reason(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
			if err != nil {
				return "", err
			}
			if response.StatusCode != http.StatusOK || !strings.Contains(string(body), `"health":"true"`) {
				return "", fmt.Errorf("not healthy: %d %s", response.StatusCode, strings.TrimSpace(string(body)))
			}
			return "healthy", nil
		})
	})
}

func (v *verification) etcdTLS() (*tls.Config, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(v.o.EtcdCA) {
		return nil, errors.New("the certificate of etcd's authority is not PEM")
	}
	certificate, err := v.o.EtcdCertificate()
	if err != nil {
		return nil, fmt.Errorf("client certificate for etcd: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{*certificate}}, nil
}

// kubeletCertificate looks at what a kubelet shows to API servers: a certificate that was approved and signed.
func (v *verification) kubeletCertificate(ctx context.Context, node Node) (string, error) {
	if len(node.Addresses) == 0 {
		return "", errors.New("the node has no address")
	}
	detail, err := v.servingCertificate(ctx, netip.AddrPortFrom(node.Addresses[0], kubeletPort))
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return "", fmt.Errorf("%w; its certificate request was perhaps not signed: kubectl get csr", err)
	}
	return detail, err
}
