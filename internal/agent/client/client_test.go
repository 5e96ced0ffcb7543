package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/ca"
)

// leaf issues a server certificate; with chain the CA is sent along.
func leaf(authority *ca.CA, ip string, until time.Time, chain ...*x509.Certificate) tls.Certificate {
	template := ca.Server(ip)
	template.NotBefore, template.NotAfter = until.Add(-48*time.Hour), until
	out := authority.Issue(template)
	for _, c := range chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return *out
}

func serve(t *testing.T, cert tls.Certificate, h http.Handler) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

func newClient(t *testing.T, server string, pin Pin, known ...*x509.Certificate) *Client {
	t.Helper()
	c, err := New(Options{Server: server, Pin: pin, CAs: known, Agent: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOnlyThePinnedCAVouchesForTheServer(t *testing.T) {
	ours, stranger := ca.New(t, "machines"), ca.New(t, "machines")
	noCA := ca.From(t, &x509.Certificate{Subject: pkix.Name{CommonName: "machines"}, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature})
	soon := time.Now().Add(time.Hour)
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"now":"2026-01-02T03:04:05Z"}`)) })
	for name, tt := range map[string]struct {
		cert   tls.Certificate
		pin    Pin
		known  []*x509.Certificate
		pinned bool // the failure is ErrPin
		text   string
	}{
		"the pinned CA, sent along":                     {cert: leaf(ours, "127.0.0.1", soon, ours.Cert), pin: PinOf(ours.Cert)},
		"the pinned CA, known already":                  {cert: leaf(ours, "127.0.0.1", soon), pin: PinOf(ours.Cert), known: []*x509.Certificate{ours.Cert}},
		"the pinned CA neither sent nor known":          {cert: leaf(ours, "127.0.0.1", soon), pin: PinOf(ours.Cert), pinned: true, text: "no CA certificate with key " + PinOf(ours.Cert).String()},
		"another CA":                                    {cert: leaf(stranger, "127.0.0.1", soon, stranger.Cert), pin: PinOf(ours.Cert), pinned: true, text: "pinned CA"},
		"another CA that sends the pinned one along":    {cert: leaf(stranger, "127.0.0.1", soon, stranger.Cert, ours.Cert), pin: PinOf(ours.Cert), text: "not valid"},
		"another CA although one is known":              {cert: leaf(stranger, "127.0.0.1", soon, stranger.Cert), pin: PinOf(ours.Cert), known: []*x509.Certificate{stranger.Cert}, pinned: true, text: "pinned CA"},
		"a pinned key in a certificate that is no CA's": {cert: leaf(noCA, "127.0.0.1", soon, noCA.Cert), pin: PinOf(noCA.Cert), pinned: true, text: "pinned CA"},
		"a leaf whose own key is pinned":                {cert: leaf(ours, "127.0.0.1", soon, ours.Cert), pin: Pin{}, pinned: true, text: "pinned CA"},
		"a server of ours with another address":         {cert: leaf(ours, "10.0.0.1", soon, ours.Cert), pin: PinOf(ours.Cert), text: "127.0.0.1"},
		"a certificate that expired":                    {cert: leaf(ours, "127.0.0.1", time.Now().Add(-time.Minute), ours.Cert), pin: PinOf(ours.Cert), text: "this machine's clock says"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newClient(t, serve(t, tt.cert, h), tt.pin, tt.known...).Time(context.Background())
			if (err == nil) != (tt.text == "") || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error is %v, want %q", err, tt.text)
			}
			if errors.Is(err, ErrPin) != tt.pinned || tt.pinned && retry.Transient(err) {
				t.Errorf("%v: of the pin: %v, transient: %v", err, errors.Is(err, ErrPin), retry.Transient(err))
			}
		})
	}
}

func TestTheCertificateInUseIsShown(t *testing.T) {
	machines := ca.New(t, "machines")
	var shown []string
	url := serve(t, leaf(machines, "127.0.0.1", time.Now().Add(time.Hour), machines.Cert), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := "nobody"
		if len(r.TLS.PeerCertificates) > 0 {
			name = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		shown = append(shown, name+" "+r.Proto)
		_, _ = w.Write([]byte(`{}`))
	}))
	c := newClient(t, url, PinOf(machines.Cert))
	call := func() {
		if _, err := c.Heartbeat(context.Background(), wire.Heartbeat{}); err != nil {
			t.Fatal(err)
		}
	}
	call()
	for _, name := range []string{"one", "two"} {
		key := ca.NewKey(t)
		cert, err := machines.Sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}}, key.Public())
		if err != nil {
			t.Fatal(err)
		}
		pair, err := KeyPair(string(ca.EncodeCert(cert)), key)
		if err != nil {
			t.Fatal(err)
		}
		c.Use(pair)
		call()
	}
	if got := strings.Join(shown, ", "); got != "nobody HTTP/2.0, one HTTP/2.0, two HTTP/2.0" {
		t.Errorf("the server saw %s", got)
	}
}

func TestRefusalsAndTrouble(t *testing.T) {
	machines := ca.New(t, "machines")
	for name, tt := range map[string]struct {
		status    int
		body      string
		code      string
		transient bool
		text      string
	}{
		"a refusal":                   {403, `{"code":"unknown_nonce","message":"boot again"}`, "unknown_nonce", false, "the server answered /v1/time: boot again (unknown_nonce)"},
		"a server that is starting":   {503, `{"code":"internal","message":"starting"}`, "internal", true, "starting"},
		"a proxy's error page":        {502, `<html>`, "", true, "status 502"},
		"an answer of something else": {200, `<html>`, "", true, "not what was expected"},
		"somewhere else":              {302, ``, "", false, "status 302"},
	} {
		t.Run(name, func(t *testing.T) {
			url := serve(t, leaf(machines, "127.0.0.1", time.Now().Add(time.Hour), machines.Cert), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tt.status)
				_, _ = w.Write([]byte(tt.body))
			}))
			_, err := newClient(t, url, PinOf(machines.Cert)).Time(context.Background())
			if err == nil || !strings.Contains(err.Error(), tt.text) || Code(err) != tt.code || retry.Transient(err) != tt.transient {
				t.Errorf("%v: code %q, transient %v", err, Code(err), retry.Transient(err))
			}
		})
	}
}

func TestRetryEndsWithItsContextAndWithARefusal(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("enough")
	err := retry.Do(ctx, func(error, time.Duration) { cancel(why) }, func(context.Context) error { return errors.New("no route") })
	if !errors.Is(err, why) {
		t.Errorf("ended with %v", err)
	}
	calls := 0
	err = retry.Do(context.Background(), nil, func(context.Context) error {
		calls++
		return &Error{Status: 403}
	})
	if err == nil || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

func TestParsePin(t *testing.T) {
	good := "sha256:" + strings.Repeat("0f", 32)
	if p, err := ParsePin(good); err != nil || p.String() != good {
		t.Errorf("%v, %v", p, err)
	}
	for _, bad := range []string{"", "sha256:", strings.Repeat("0f", 32), "md5:" + strings.Repeat("0f", 32), good + "00", "sha256:" + strings.Repeat("zz", 32)} {
		if _, err := ParsePin(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
