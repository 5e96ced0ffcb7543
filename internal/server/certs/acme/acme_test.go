package acme

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/server/certs"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rack is an inventory: names and addresses of machines.
type rack map[string][]netip.Addr

func (r rack) MachineAt(a netip.Addr) string {
	for name, addresses := range r {
		if slices.Contains(addresses, a) {
			return name
		}
	}
	return ""
}

func (r rack) AddressesOf(host string) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		host = r.MachineAt(a)
	}
	return r[host]
}

func newCerts(t testing.TB, dir string) *certs.Service {
	t.Helper()
	master, err := pki.OpenMasterKey(dir)
	check(t, err)
	c, err := certs.Open(certs.Options{Dir: dir, Master: master})
	check(t, err)
	if _, _, err := c.Describe(); err != nil {
		check(t, c.Init(certs.Settings{}))
	}
	return c
}

// TestLego has a machine in a network namespace get, renew and take back a certificate by Debian's lego, and shows what it is refused.
func TestLego(t *testing.T) {
	require.Need(t, "netns", "lego", "openssl")
	ns, machine := netns.New(t), netns.New(t)
	netns.Veth(ns, "rack0", machine, "eth0")
	ns.Address("rack0", "10.20.0.2/24")
	ns.Address("rack0", "10.20.0.9/24") // of a machine where nothing listens
	machine.Address("eth0", "10.20.0.3/24")
	dir := t.TempDir()
	issuer := newCerts(t, dir)
	addresses := []netip.Addr{netip.MustParseAddr("10.20.0.3")}
	inventory := rack{"db.rack.example": addresses, "other.rack.example": {netip.MustParseAddr("10.20.0.9")}}
	ctx, cancel := context.WithCancel(context.Background())
	s, err := Open(ctx, Options{Certs: issuer, File: filepath.Join(dir, "acme.json"), Inventory: inventory, Dial: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = ns.Do(func() error { conn, err = net.DialTimeout(network, address, 10*time.Second); return err })
		return conn, err
	}})
	check(t, err)
	defer s.Wait()
	defer cancel()
	authority, err := pki.OpenAuthority(dir, "machine-ca", masterOf(t, dir))
	check(t, err)
	pair, err := authority.NewServerKeyPair("machine API", nil, []net.IP{net.IPv4(10, 20, 0, 2)}, time.Hour)
	check(t, err)
	var listener net.Listener
	check(t, ns.Do(func() error { listener, err = net.Listen("tcp", "10.20.0.2:7444"); return err }))
	server := &http.Server{Handler: s, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}}, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	go server.ServeTLS(listener, "", "")
	defer server.Close()
	trust := filepath.Join(dir, "trust.pem")
	check(t, os.WriteFile(trust, authority.CertPEM(), 0o600))
	lego := func(args ...string) (string, error) {
		return machine.Try(t.Context(), append([]string{"env", "LEGO_CA_CERTIFICATES=" + trust, "lego", "--server", "https://10.20.0.2:7444" + PathDirectory, "--path", filepath.Join(dir, "lego"),
			"--email", "ops@rack.example", "--accept-tos", "--http"}, args...)...)
	}
	out, err := lego("--domains", "db.rack.example", "run")
	if err != nil {
		t.Fatalf("run: %v\n%s", err, out)
	}
	files := filepath.Join(dir, "lego", "certificates")
	leaf, err := pki.ParseCertificate(read(t, filepath.Join(files, "db.rack.example.crt")))
	check(t, err)
	bundle, _, err := issuer.Describe()
	check(t, err)
	ca := filepath.Join(dir, "services.pem")
	check(t, os.WriteFile(ca, pki.EncodeCertificate(bundle), 0o600))
	if said, err := machine.Try(t.Context(), "openssl", "verify", "-x509_strict", "-CAfile", ca, "-verify_hostname", "db.rack.example", filepath.Join(files, "db.rack.example.crt")); err != nil {
		t.Errorf("openssl: %v %s", err, said)
	}
	if all := issuer.List(); len(all) != 1 || all[0].By != "acme/db.rack.example" || all[0].Serial != leaf.SerialNumber.Text(16) {
		t.Errorf("issued: %+v", all)
	}
	if out, err := lego("--domains", "db.rack.example", "renew", "--days", "400", "--no-random-sleep"); err != nil {
		t.Errorf("renew: %v\n%s", err, out)
	}
	if out, err := lego("--domains", "db.rack.example", "revoke"); err != nil {
		t.Errorf("revoke: %v\n%s", err, out)
	}
	revoked := 0
	for _, i := range issuer.List() {
		if !i.RevokedAt.IsZero() {
			revoked++
		}
	}
	if revoked != 1 || len(issuer.List()) != 2 {
		t.Errorf("%d of %d revoked", revoked, len(issuer.List()))
	}
	for domain, want := range map[string]string{"bank.example": "belongs to no approved machine", "other.rack.example": "cannot be asked on port 80", "*.rack.example": "wildcard"} {
		if out, err := lego("--domains", domain, "run"); err == nil || !strings.Contains(out+err.Error(), want) {
			t.Errorf("%s: %v %s, want %q", domain, err, out, want)
		}
	}
	if n := len(issuer.List()); n != 2 {
		t.Errorf("%d certificates", n)
	}
}

func masterOf(t testing.TB, dir string) pki.MasterKey {
	t.Helper()
	m, err := pki.OpenMasterKey(dir)
	check(t, err)
	return m
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	check(t, err)
	return text
}

// client is one of ACME that can do wrong.
type client struct {
	t     testing.TB
	s     *Server
	key   *ecdsa.PrivateKey
	from  string
	kid   string
	nonce string // of the next request; empty: a fresh one
	other string // path that it is signed for; empty: its own
}

func newClient(t testing.TB, s *Server, from string) *client {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return &client{t: t, s: s, key: key, from: from}
}

func (c *client) jwk() jwk {
	point, err := c.key.PublicKey.Bytes()
	check(c.t, err)
	return jwk{Kty: "EC", Crv: "P-256", X: b64.EncodeToString(point[1:33]), Y: b64.EncodeToString(point[33:])}
}

// post sends a request, and returns its answer, decoded, and its Location.
func (c *client) post(path string, payload any) (int, map[string]any, string) {
	c.t.Helper()
	nonce := c.nonce
	if nonce == "" {
		nonce = c.s.nonces.make(time.Now())
	}
	header := map[string]any{"alg": "ES256", "nonce": nonce, "url": "https://server" + cmp.Or(c.other, path)}
	if c.kid != "" {
		header["kid"] = c.kid
	} else {
		header["jwk"] = c.jwk()
	}
	protected, err := json.Marshal(header)
	check(c.t, err)
	var text []byte
	if payload != nil {
		text, err = json.Marshal(payload)
		check(c.t, err)
	}
	signed := b64.EncodeToString(protected) + "." + b64.EncodeToString(text)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, c.key, sum[:])
	check(c.t, err)
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	body, err := json.Marshal(map[string]string{"protected": b64.EncodeToString(protected), "payload": b64.EncodeToString(text), "signature": b64.EncodeToString(signature)})
	check(c.t, err)
	return c.send(path, body)
}

func (c *client) send(path string, body []byte) (int, map[string]any, string) {
	c.t.Helper()
	request := httptest.NewRequest(http.MethodPost, "https://server"+path, bytes.NewReader(body))
	request.RemoteAddr = c.from + ":1"
	request.Header.Set("Content-Type", "application/jose+json")
	recorder := httptest.NewRecorder()
	c.s.ServeHTTP(recorder, request)
	var said map[string]any
	text, _ := io.ReadAll(recorder.Body)
	if json.Unmarshal(text, &said) != nil {
		said = map[string]any{"text": string(text)}
	}
	return recorder.Code, said, recorder.Header().Get("Location")
}

func (c *client) register() {
	c.t.Helper()
	code, said, at := c.post("/acme/new-account", map[string]any{})
	if code != http.StatusCreated {
		c.t.Fatalf("account: %d %v", code, said)
	}
	c.kid = at
}

func (c *client) order(host string) (path string) {
	c.t.Helper()
	code, said, at := c.post("/acme/new-order", map[string]any{"identifiers": []identifier{{"dns", host}}})
	if code != http.StatusCreated {
		c.t.Fatalf("order: %d %v", code, said)
	}
	return strings.TrimPrefix(at, "https://server")
}

// site is a machine that shows what it is told to, on whatever port.
func site(t testing.TB, show func(path string) (int, string)) func(context.Context, string, string) (net.Conn, error) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, text := show(r.URL.Path)
		if code == http.StatusFound {
			w.Header().Set("Location", text)
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, text)
	}))
	t.Cleanup(web.Close)
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, web.Listener.Addr().String())
	}
}

var oneMachine = rack{"db.rack.example": {netip.MustParseAddr("10.20.0.3")}, "web.rack.example": {netip.MustParseAddr("10.20.0.5")}}

// TestARestartInTheMiddleOfAnOrder ends the server while a machine is asked; the next one asks again, and the order goes on.
func TestARestartInTheMiddleOfAnOrder(t *testing.T) {
	dir := t.TempDir()
	issuer := newCerts(t, dir)
	asked := make(chan struct{}, 1)
	options := Options{Certs: issuer, File: filepath.Join(dir, "acme.json"), Inventory: oneMachine, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		asked <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	ctx, cancel := context.WithCancel(context.Background())
	s, err := Open(ctx, options)
	check(t, err)
	c := newClient(t, s, "10.20.0.3")
	c.register()
	order := c.order("db.rack.example")
	challenge := strings.Replace(order, "/order/", "/challenge/", 1) + "/0"
	_, said, _ := c.post(challenge, nil)
	token := said["token"].(string)
	c.post(challenge, map[string]any{})
	<-asked
	cancel()
	s.Wait()

	options.Dial = site(t, func(path string) (int, string) {
		if path != "/.well-known/acme-challenge/"+token {
			return http.StatusNotFound, ""
		}
		return http.StatusOK, token + "." + c.jwk().thumbprint() + "\n"
	})
	s, err = Open(t.Context(), options)
	check(t, err)
	c.s = s
	s.Wait()
	if _, said, _ := c.post(order, nil); said["status"] != ready {
		t.Fatalf("after the restart: %v", said)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	request := func(key *ecdsa.PrivateKey, names ...string) map[string]any {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key)
		check(t, err)
		return map[string]any{"csr": b64.EncodeToString(der)}
	}
	for what, payload := range map[string]any{
		"another name": request(key, "web.rack.example"), "one more name": request(key, "db.rack.example", "web.rack.example"), "no name": request(key),
		"the account's key": request(c.key, "db.rack.example"), "nothing": map[string]any{}, "text": map[string]any{"csr": "!"},
	} {
		if code, said, _ := c.post(order+"/finalize", payload); code != http.StatusBadRequest || !strings.HasSuffix(fmt.Sprint(said["type"]), ":badCSR") {
			t.Errorf("%s: %d %v", what, code, said)
		}
	}
	code, said, _ := c.post(order+"/finalize", request(key, "db.rack.example"))
	if code != http.StatusOK || said["status"] != valid {
		t.Fatalf("finalize: %d %v", code, said)
	}
	path := strings.TrimPrefix(said["certificate"].(string), "https://server")
	if _, said, _ := c.post(path, nil); strings.Count(fmt.Sprint(said["text"]), "BEGIN CERTIFICATE") != 2 {
		t.Errorf("chain: %v", said)
	}
	eve := newClient(t, s, "10.20.0.5")
	eve.register()
	block, _ := pem.Decode(issuer.List()[0].PEM())
	for what, call := range map[string][2]any{
		"another's certificate": {path, nil}, "another's order": {order, nil},
		"revoking another's": {"/acme/revoke-cert", map[string]any{"certificate": b64.EncodeToString(block.Bytes)}},
	} {
		if code, said, _ := eve.post(call[0].(string), call[1]); code != http.StatusNotFound && code != http.StatusForbidden {
			t.Errorf("%s: %d %v", what, code, said)
		}
	}
}

// TestWhatAMachineShows tells of what does not count as the challenge.
func TestWhatAMachineShows(t *testing.T) {
	for what, c := range map[string]struct {
		code int
		text string
		want string
	}{
		"something else":    {200, "hello", "and not the key authorization"},
		"nothing":           {404, "", "404"},
		"a redirect":        {302, "http://10.0.0.1/", "redirects are not followed"},
		"more than it must": {200, strings.Repeat("x", 1<<20), "and not the key authorization"},
	} {
		dir := t.TempDir()
		s, err := Open(t.Context(), Options{Certs: newCerts(t, dir), File: filepath.Join(dir, "acme.json"), Inventory: oneMachine, Dial: site(t, func(string) (int, string) { return c.code, c.text })})
		check(t, err)
		client := newClient(t, s, "10.20.0.3")
		client.register()
		order := client.order("db.rack.example")
		client.post(strings.Replace(order, "/order/", "/challenge/", 1)+"/0", map[string]any{})
		s.Wait()
		if _, said, _ := client.post(order, nil); said["status"] != invalid || !strings.Contains(fmt.Sprint(said["error"]), c.want) {
			t.Errorf("%s: %v", what, said)
		}
	}
}

// TestStrangersAndLiars sends what must not be believed.
func TestStrangersAndLiars(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(t.Context(), Options{Certs: newCerts(t, dir), File: filepath.Join(dir, "acme.json"), Inventory: oneMachine})
	check(t, err)
	kind := func(said map[string]any) string {
		return strings.TrimPrefix(fmt.Sprint(said["type"]), "urn:ietf:params:acme:error:")
	}
	if code, said, _ := newClient(t, s, "10.20.0.77").post("/acme/new-account", map[string]any{}); code != http.StatusForbidden || kind(said) != "unauthorized" {
		t.Errorf("a stranger: %d %v", code, said)
	}
	if _, err := os.Stat(filepath.Join(dir, "acme.json")); err == nil {
		t.Error("a stranger is kept")
	}
	c := newClient(t, s, "10.20.0.3")
	c.register()
	c.nonce = s.nonces.make(time.Now())
	if code, said, _ := c.post(strings.TrimPrefix(c.kid, "https://server"), nil); code != http.StatusOK {
		t.Errorf("the account: %d %v", code, said)
	}
	if _, said, _ := c.post(strings.TrimPrefix(c.kid, "https://server"), nil); kind(said) != "badNonce" {
		t.Errorf("a nonce twice: %v", said)
	}
	c.nonce = s.nonces.make(time.Now().Add(-nonceLife - time.Second))
	if _, said, _ := c.post("/acme/new-order", map[string]any{}); kind(said) != "badNonce" {
		t.Errorf("an old nonce: %v", said)
	}
	c.nonce = ""
	c.other = "/acme/new-account"
	if code, said, _ := c.post("/acme/new-order", map[string]any{}); code != http.StatusUnauthorized || kind(said) != "unauthorized" {
		t.Errorf("a request that was signed for another place: %d %v", code, said)
	}
	c.other = ""
	moved := *c
	moved.from = "10.20.0.5"
	if _, said, _ := moved.post("/acme/new-order", map[string]any{}); kind(said) != "unauthorized" {
		t.Errorf("an account from another machine: %v", said)
	}
	forged := newClient(t, s, "10.20.0.3")
	forged.kid = c.kid
	if code, said, _ := forged.post("/acme/new-order", map[string]any{}); code != http.StatusBadRequest || !strings.Contains(fmt.Sprint(said), "signature is wrong") {
		t.Errorf("another key for an account: %d %v", code, said)
	}
	for what, body := range map[string]string{"nothing": "", "text": "x", "no header": `{"payload":"","signature":"","protected":""}`, "large": strings.Repeat(" ", maxBody+1), "both keys": `{"payload":"","signature":"","protected":"` + b64.EncodeToString([]byte(`{"kid":"a","jwk":{}}`)) + `"}`} {
		if code, said, _ := c.send("/acme/new-order", []byte(body)); code < 400 || code >= 500 || kind(said) != "malformed" {
			t.Errorf("%s: %d %v", what, code, said)
		}
	}
	for what, ids := range map[string][]identifier{
		"none": {}, "too many": slices.Repeat([]identifier{{"dns", "db.rack.example"}}, maxHosts+1), "another kind": {{"mail", "x"}}, "an address as a name": {{"dns", "10.20.0.3"}},
		"no address": {{"ip", "db"}}, "no name": {{"dns", "a b"}}, "nobody's": {{"dns", "x.example"}}, "nobody's address": {{"ip", "10.20.0.99"}}, "a wildcard": {{"dns", "*.rack.example"}},
	} {
		if code, said, _ := c.post("/acme/new-order", map[string]any{"identifiers": ids}); code < 400 || code >= 500 {
			t.Errorf("%s: %d %v", what, code, said)
		}
	}
	// Accounts and orders of one machine are few, whatever it asks for; and those of another stay.
	other := newClient(t, s, "10.20.0.5")
	other.register()
	kept := other.order("web.rack.example")
	for range 3 * perMachine {
		c.order("db.rack.example")
	}
	for range 3 * perMachine {
		newClient(t, s, "10.20.0.3").register()
	}
	if len(s.accounts) != perMachine+1 || len(s.orders) != perMachine+1 {
		t.Errorf("%d accounts and %d orders", len(s.accounts), len(s.orders))
	}
	if code, said, _ := other.post(kept, nil); code != http.StatusOK {
		t.Errorf("another machine's order: %d %v", code, said)
	}
	if code, said, _ := c.post("/acme/new-order", map[string]any{}); kind(said) != "accountDoesNotExist" {
		t.Errorf("an account that made room: %d %v", code, said)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"protected":"e30","payload":"","signature":""}`))
	f.Add([]byte(`{"protected":"` + b64.EncodeToString([]byte(`{"alg":"ES256","jwk":{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}}`)) + `","payload":"e30","signature":"AAAA"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if m, p := parse(body); p == nil && m.key != nil && m.check(*m.key) == nil {
			t.Skip() // it has found a signature
		}
	})
}
