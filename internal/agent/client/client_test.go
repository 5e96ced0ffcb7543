package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/retry"
	"coldrack.dev/internal/wire"
)

// authority is a CA of the test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCA(t *testing.T, key *ecdsa.PrivateKey, isCA bool) *authority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "machines"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: isCA, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, cert, key}
}

// leaf issues a server certificate; with chain the CA is sent along.
func (a *authority) leaf(ip string, until time.Time, chain ...*x509.Certificate) tls.Certificate {
	key := newKey(a.t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: until.Add(-48 * time.Hour), NotAfter: until,
		IPAddresses: []net.IP{net.ParseIP(ip)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	out := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for _, c := range chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out
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
	ours, stranger := newCA(t, newKey(t), true), newCA(t, newKey(t), true)
	noCA := newCA(t, newKey(t), false)
	soon := time.Now().Add(time.Hour)
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"now":"2026-01-02T03:04:05Z"}`)) })
	for name, tt := range map[string]struct {
		cert   tls.Certificate
		pin    Pin
		known  []*x509.Certificate
		pinned bool // the failure is ErrPin
		text   string
	}{
		"the pinned CA, sent along":                     {cert: ours.leaf("127.0.0.1", soon, ours.cert), pin: PinOf(ours.cert)},
		"the pinned CA, known already":                  {cert: ours.leaf("127.0.0.1", soon), pin: PinOf(ours.cert), known: []*x509.Certificate{ours.cert}},
		"the pinned CA neither sent nor known":          {cert: ours.leaf("127.0.0.1", soon), pin: PinOf(ours.cert), pinned: true, text: "no CA certificate with key " + PinOf(ours.cert).String()},
		"another CA":                                    {cert: stranger.leaf("127.0.0.1", soon, stranger.cert), pin: PinOf(ours.cert), pinned: true, text: "pinned CA"},
		"another CA that sends the pinned one along":    {cert: stranger.leaf("127.0.0.1", soon, stranger.cert, ours.cert), pin: PinOf(ours.cert), text: "not valid"},
		"another CA although one is known":              {cert: stranger.leaf("127.0.0.1", soon, stranger.cert), pin: PinOf(ours.cert), known: []*x509.Certificate{stranger.cert}, pinned: true, text: "pinned CA"},
		"a pinned key in a certificate that is no CA's": {cert: noCA.leaf("127.0.0.1", soon, noCA.cert), pin: PinOf(noCA.cert), pinned: true, text: "pinned CA"},
		"a leaf whose own key is pinned":                {cert: ours.leaf("127.0.0.1", soon, ours.cert), pin: Pin{}, pinned: true, text: "pinned CA"},
		"a server of ours with another address":         {cert: ours.leaf("10.0.0.1", soon, ours.cert), pin: PinOf(ours.cert), text: "127.0.0.1"},
		"a certificate that expired":                    {cert: ours.leaf("127.0.0.1", time.Now().Add(-time.Minute), ours.cert), pin: PinOf(ours.cert), text: "this machine's clock says"},
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
	ca := newCA(t, newKey(t), true)
	var shown []string
	url := serve(t, ca.leaf("127.0.0.1", time.Now().Add(time.Hour), ca.cert), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := "nobody"
		if len(r.TLS.PeerCertificates) > 0 {
			name = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		shown = append(shown, name+" "+r.Proto)
		_, _ = w.Write([]byte(`{}`))
	}))
	c := newClient(t, url, PinOf(ca.cert))
	call := func() {
		if _, err := c.Heartbeat(context.Background(), wire.Heartbeat{}); err != nil {
			t.Fatal(err)
		}
	}
	call()
	for _, name := range []string{"one", "two"} {
		key := newKey(t)
		template := &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := KeyPair(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), key)
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
	ca := newCA(t, newKey(t), true)
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
			url := serve(t, ca.leaf("127.0.0.1", time.Now().Add(time.Hour), ca.cert), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tt.status)
				_, _ = w.Write([]byte(tt.body))
			}))
			_, err := newClient(t, url, PinOf(ca.cert)).Time(context.Background())
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
