package daemon

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

const pkiManifest = `
apiVersion: coldrack.dev/v1alpha1
kind: Subnet
metadata: {name: rack}
spec: {cidr: 10.20.0.0/24, discovery: 10.20.0.100-10.20.0.200, domain: rack.example, dhcp: "off"}
---
apiVersion: coldrack.dev/v1alpha1
kind: Machine
metadata: {name: m-1}
spec: {approved: true, hostname: db, identifiers: {macs: ["52:54:00:00:00:01"]}, network: {subnet: rack, address: 10.20.0.3}}
---
apiVersion: coldrack.dev/v1alpha1
kind: Machine
metadata: {name: stranger}
spec: {identifiers: {macs: ["52:54:00:00:00:02"]}, network: {subnet: rack, address: 10.20.0.4}}
`

func csrFor(t testing.TB, cn string, names ...string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}, DNSNames: names}, key)
	check(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// callPKI sends a person's request, and reads an answer that is a success.
func callPKI(t testing.TB, as *rest.Config, method, path string, body, into any) (int, string) {
	t.Helper()
	client, err := rest.HTTPClientFor(as)
	check(t, err)
	text, err := json.Marshal(body)
	check(t, err)
	request, err := http.NewRequest(method, as.Host+peoplewire.PathPKI+path, bytes.NewReader(text))
	check(t, err)
	response, err := client.Do(request)
	check(t, err)
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	check(t, err)
	if response.StatusCode == http.StatusOK && into != nil {
		check(t, json.Unmarshal(said, into))
	}
	return response.StatusCode, string(said)
}

// TestPKI makes the authority, and has certificates issued and taken back by people of each role, while a machine of the rack asks with
// OpenSSL and curl, before and after a restart of the server.
func TestPKI(t *testing.T) {
	require.Need(t, "netns", "openssl", "curl")
	ns, rack := netns.New(t), netns.New(t)
	netns.Veth(ns, "rack0", rack, "eth0")
	ns.Address("rack0", "10.20.0.2/24")
	rack.Address("eth0", "10.20.0.3/24")
	cfg := testConfig(t)
	cfg.NoBoot, cfg.BootNetns, cfg.BootPort, cfg.Manifests = false, ns.Path(), 7080, []string{writeManifest(t, pkiManifest)}
	s := run(t, cfg)
	tokens := controlplane.OpenTokens(controlplane.TokensPath(cfg.DataDir))
	as := func(group string) *rest.Config {
		secret, err := tokens.Create(strings.TrimPrefix(group, "coldrack:")+"-1", []string{group}, 0)
		check(t, err)
		config := rest.AnonymousClientConfig(s.rest)
		config.BearerToken = secret
		return config
	}
	admin, operator, viewer := s.rest, as(controlplane.GroupOperator), as(controlplane.GroupViewer)
	want := func(status int, has string, as *rest.Config, method, path string, body, into any) {
		t.Helper()
		if is, said := callPKI(t, as, method, path, body, into); is != status || !strings.Contains(said, has) {
			t.Errorf("%s %s: %d %s, want %d %q", method, path, is, said, status, has)
		}
	}
	curl := func(args ...string) string {
		out, err := rack.Try(t.Context(), append([]string{"curl", "-sS", "--max-time", "60"}, args...)...)
		return fmt.Sprint(out, err)
	}

	want(404, "coldrack pki init", viewer, "GET", "", nil, nil)
	want(404, "coldrack pki init", operator, "POST", "/certificates", peoplewire.PKIRequest{CSR: csrFor(t, "", "db.rack.example")}, nil)
	want(403, "role admin", operator, "POST", "/init", peoplewire.PKIInit{}, nil)
	want(400, "domain", admin, "POST", "/init", peoplewire.PKIInit{Domains: []string{"a b"}}, nil)
	want(400, "cannot be read", admin, "POST", "/init", map[string]string{"domian": "x"}, nil)
	if said := curl("-o", "/dev/null", "-w", "%{http_code}", "http://10.20.0.2:7080/pki/ca.crl"); !strings.Contains(said, "404") {
		t.Errorf("a list without an authority: %s", said)
	}
	var about peoplewire.PKI
	want(200, "", admin, "POST", "/init", peoplewire.PKIInit{}, &about)
	if about.URL != "http://10.20.0.2:7080" {
		t.Errorf("url: %q", about.URL)
	}
	want(409, "already", admin, "POST", "/init", peoplewire.PKIInit{}, nil)

	var one peoplewire.PKICertificate
	eventually(t, func() error { // the names follow the objects
		if is, said := callPKI(t, operator, "POST", "/certificates", peoplewire.PKIRequest{CSR: csrFor(t, "", "db.rack.example", "m-1"), Profile: "peer"}, &one); is != http.StatusOK {
			return fmt.Errorf("%d %s", is, said)
		}
		return nil
	})
	want(403, "approved machine", operator, "POST", "/certificates", peoplewire.PKIRequest{CSR: csrFor(t, "", "stranger.rack.example")}, nil)
	want(403, "", viewer, "POST", "/certificates", peoplewire.PKIRequest{CSR: csrFor(t, "", "db.rack.example")}, nil)
	want(400, "ttl", admin, "POST", "/certificates", peoplewire.PKIRequest{CSR: csrFor(t, "", "x.example"), TTL: 1 << 62}, nil)
	want(400, "ttl", admin, "POST", "/certificates", peoplewire.PKIRequest{CSR: csrFor(t, "", "x.example"), TTL: -1 << 62}, nil)
	want(200, "", admin, "POST", "/certificates", peoplewire.PKIRequest{CSR: csrFor(t, "", "x.example")}, nil)
	var all []peoplewire.PKICertificate
	want(200, "", viewer, "GET", "/certificates", nil, &all)
	if len(all) != 2 || all[0].Certificate != "" {
		t.Errorf("listed: %+v", all)
	}

	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "ca.pem"), []byte(about.Certificate), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "cert.pem"), []byte(one.Certificate), 0o600))
	ocsp := func() string {
		out, err := rack.Try(t.Context(), "openssl", "ocsp", "-issuer", filepath.Join(dir, "ca.pem"), "-CAfile", filepath.Join(dir, "ca.pem"),
			"-cert", filepath.Join(dir, "cert.pem"), "-url", "http://10.20.0.2:7080/pki/ocsp", "-no_nonce")
		return fmt.Sprint(out, err)
	}
	if said := ocsp(); !strings.Contains(said, "cert.pem: good") {
		t.Errorf("issued: %s", said)
	}
	want(403, "", viewer, "POST", "/certificates/"+one.Serial+"/revoke", peoplewire.PKIRevoke{}, nil)
	want(403, "role admin", operator, "POST", "/certificates/"+all[0].Serial+"/revoke", peoplewire.PKIRevoke{}, nil)
	want(404, "no such", operator, "POST", "/certificates/abc/revoke", peoplewire.PKIRevoke{}, nil)
	want(200, "keyCompromise", operator, "POST", "/certificates/"+one.Serial+"/revoke", peoplewire.PKIRevoke{Reason: "keyCompromise"}, nil)
	want(409, "revoked already", operator, "POST", "/certificates/"+one.Serial+"/revoke", peoplewire.PKIRevoke{}, nil)
	if said := ocsp(); !strings.Contains(said, "cert.pem: revoked") {
		t.Errorf("revoked: %s", said)
	}
	records, err := filepath.Glob(filepath.Join(cfg.DataDir, "audit", "*"))
	check(t, err)
	recorded := ""
	for _, path := range records {
		if text, err := os.ReadFile(path); err == nil {
			recorded += string(text)
		}
	}
	wantAll(t, recorded, `"pki.coldrack.dev/serial":"`+one.Serial+`"`, `"pki.coldrack.dev/revoked":"keyCompromise"`)

	s.stop()
	s = run(t, cfg)
	if said := ocsp(); !strings.Contains(said, "cert.pem: revoked") {
		t.Errorf("after a restart: %s", said)
	}
	list := filepath.Join(dir, "list.der")
	curl("-o", list, "http://10.20.0.2:7080/pki/ca.crl")
	if out, err := rack.Try(t.Context(), "openssl", "crl", "-inform", "DER", "-in", list, "-noout", "-text", "-CAfile", filepath.Join(dir, "ca.pem")); err != nil || !strings.Contains(out, "Key Compromise") || !strings.Contains(out, "verify OK") {
		t.Errorf("the list: %v %s", err, out)
	}
	var expiry []peoplewire.Expiry
	client, err := rest.HTTPClientFor(s.rest)
	check(t, err)
	answer, err := client.Get(s.rest.Host + peoplewire.PathExpiry)
	check(t, err)
	defer answer.Body.Close()
	check(t, json.NewDecoder(answer.Body).Decode(&expiry))
	found := false
	for _, e := range expiry {
		found = found || e.Certificate == "service-ca" && time.Until(e.Until) > 9*365*24*time.Hour
	}
	if !found {
		t.Errorf("the authority's end is not told: %+v", expiry)
	}
}

// TestACME has an approved machine get a certificate from a whole server by Debian's lego, and refuses one that nobody has approved.
func TestACME(t *testing.T) {
	require.Need(t, "netns", "lego")
	ns, rack, stranger := netns.New(t), netns.New(t), netns.New(t)
	ns.Bridge("rack0")
	ns.Plug("rack0", "p1", rack, "eth0")
	ns.Plug("rack0", "p2", stranger, "eth0")
	ns.Address("rack0", "10.20.0.2/24")
	rack.Address("eth0", "10.20.0.3/24")
	stranger.Address("eth0", "10.20.0.4/24")
	cfg := testConfig(t)
	cfg.NoBoot, cfg.ACME, cfg.BootNetns, cfg.MachinePort, cfg.Manifests = false, true, ns.Path(), 7444, []string{writeManifest(t, pkiManifest)}
	s := run(t, cfg)
	var about peoplewire.PKI
	if code, said := callPKI(t, s.rest, "POST", "/init", peoplewire.PKIInit{}, &about); code != http.StatusOK {
		t.Fatalf("init: %d %s", code, said)
	}
	dir := t.TempDir()
	trust := filepath.Join(dir, "trust.pem")
	check(t, os.WriteFile(trust, []byte(about.Server), 0o600))
	lego := func(from *netns.NS, domain string) (string, error) {
		return from.Try(t.Context(), "env", "LEGO_CA_CERTIFICATES="+trust, "lego", "--server", "https://10.20.0.2:7444/acme/directory", "--path", filepath.Join(dir, domain),
			"--email", "ops@rack.example", "--accept-tos", "--http", "--domains", domain, "run")
	}
	eventually(t, func() error { // the names follow the objects
		out, err := lego(rack, "db.rack.example")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	var all []peoplewire.PKICertificate
	callPKI(t, s.rest, "GET", "/certificates", nil, &all)
	if len(all) != 1 || all[0].By != "acme/m-1" || strings.Join(all[0].Names, " ") != "db.rack.example" {
		t.Errorf("issued: %+v", all)
	}
	if out, err := lego(stranger, "stranger.rack.example"); err == nil || !strings.Contains(out+err.Error(), "no approved machine") {
		t.Errorf("a machine that nobody has approved: %v %s", err, out)
	}
}
