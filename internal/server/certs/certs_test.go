package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"coldrack.dev/internal/base/pki"
	"coldrack.dev/test/require"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// clock is one that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) move(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(by)
}

func open(t testing.TB, dir string, now func() time.Time) *Service {
	t.Helper()
	master, err := pki.OpenMasterKey(dir)
	check(t, err)
	s, err := Open(Options{Dir: dir, Master: master, Now: now})
	check(t, err)
	return s
}

func csr(t testing.TB, template x509.CertificateRequest) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	check(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

var (
	admin    = Asker{Name: "root", Admin: true}
	operator = Asker{Name: "ops", Owns: func(host string) bool { return host == "n1.rack.example" || host == "10.0.0.5" }}
)

func named(cn string, names ...string) x509.CertificateRequest {
	r := x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			r.IPAddresses = append(r.IPAddresses, ip)
		} else {
			r.DNSNames = append(r.DNSNames, n)
		}
	}
	return r
}

// TestWhoMayHaveWhat is the table of what is admitted.
func TestWhoMayHaveWhat(t *testing.T) {
	bound := Settings{Domains: []string{"svc.example"}, Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	organized := named("ops")
	organized.Subject.Organization = []string{"system:masters"}
	mail := named("", "n1.rack.example")
	mail.EmailAddresses = []string{"a@rack.example"}
	for _, c := range []struct {
		what     string
		settings Settings
		by       Asker
		ask      x509.CertificateRequest
		request  Request
		err      error
	}{
		{"an operator for a machine", Settings{}, operator, named("n1.rack.example", "n1.rack.example", "10.0.0.5"), Request{}, nil},
		{"a name in capitals is the same", Settings{}, operator, named("", "N1.Rack.Example"), Request{Profile: "peer"}, nil},
		{"an operator for what is no machine", Settings{}, operator, named("", "bank.example"), Request{}, ErrForbidden},
		{"an address of no machine", Settings{}, operator, named("", "n1.rack.example", "10.0.0.6"), Request{}, ErrForbidden},
		{"a wildcard of no domain", Settings{}, operator, named("", "*.rack.example"), Request{}, ErrForbidden},
		{"hosts that replace those of the request", Settings{}, operator, named("", "n1.rack.example"), Request{Hosts: []string{"bank.example"}}, ErrForbidden},
		{"another common name", Settings{}, operator, named("root", "n1.rack.example"), Request{}, ErrForbidden},
		{"one's own name as a server", Settings{}, operator, named("ops", "n1.rack.example"), Request{}, ErrForbidden},
		{"one's own name as a client", Settings{}, operator, named("ops"), Request{Profile: "client"}, nil},
		{"another's name as a client", Settings{}, operator, named("root"), Request{Profile: "client"}, ErrForbidden},
		{"a common name that replaces it", Settings{}, operator, named("ops"), Request{Profile: "client", CommonName: "root"}, ErrForbidden},
		{"an organization as a client", Settings{}, operator, organized, Request{Profile: "client"}, ErrForbidden},
		{"a mail address", Settings{}, operator, mail, Request{}, ErrForbidden},
		{"longer than operators may", Settings{}, operator, named("", "n1.rack.example"), Request{TTL: 91 * 24 * time.Hour}, ErrForbidden},
		{"in a domain of the authority", bound, operator, named("", "*.svc.example", "10.1.2.3"), Request{}, nil},
		{"a machine outside of the domains", bound, operator, named("", "n1.rack.example"), Request{}, ErrBad},
		{"a name that only ends alike", bound, operator, named("", "evilsvc.example"), Request{}, ErrBad},

		{"an administrator for anything", Settings{}, admin, named("x", "bank.example"), Request{TTL: 365 * 24 * time.Hour}, nil},
		{"an administrator with an organization", Settings{}, admin, organized, Request{Profile: "client"}, nil},
		{"an administrator with a mail address", Settings{}, admin, mail, Request{}, nil},
		{"an administrator outside of the domains", bound, admin, named("", "bank.example"), Request{}, ErrBad},
		{"an administrator outside of the networks", bound, admin, named("", "10.2.0.1"), Request{}, ErrBad},
		{"longer than anybody may", Settings{}, admin, named("", "a.example"), Request{TTL: 399 * 24 * time.Hour}, ErrBad},
		{"too short", Settings{}, admin, named("", "a.example"), Request{TTL: time.Second}, ErrBad},
		{"less than nothing", Settings{}, admin, named("", "a.example"), Request{TTL: -time.Hour}, ErrBad},
		{"a server without names", Settings{}, admin, named("a.example"), Request{}, ErrBad},
		{"a client without anything", Settings{}, admin, named(""), Request{Profile: "client"}, ErrBad},
		{"no such profile", Settings{}, admin, named("", "a.example"), Request{Profile: "ca"}, ErrBad},
		{"no name of DNS", Settings{}, admin, named("", "a b"), Request{}, ErrBad},
		{"an address as a name", Settings{}, admin, x509.CertificateRequest{DNSNames: []string{"10.0.0.1"}}, Request{}, ErrBad},
		{"a wildcard of a wildcard", Settings{}, admin, named("", "*.*.example"), Request{}, ErrBad},
		{"an address of nobody", Settings{}, admin, named("", "0.0.0.0"), Request{}, ErrBad},
		{"a long common name", Settings{}, admin, named(strings.Repeat("x", 65), "a.example"), Request{}, ErrBad},
		{"a common name with a line break", Settings{}, admin, named("a\nb", "a.example"), Request{}, ErrBad},
		{"too many names", Settings{}, admin, named("", strings.Split(strings.TrimSuffix(strings.Repeat("a.example,", 101), ","), ",")...), Request{}, ErrBad},
	} {
		c.request.CSR = csr(t, c.ask)
		w, err := read(c.request)
		if err == nil {
			err = w.admit(c.by, c.settings)
		}
		if !errors.Is(err, c.err) || c.err == nil && err != nil {
			t.Errorf("%s: %v, want %v", c.what, err, c.err)
		}
	}
}

func TestRequestsThatAreNone(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	check(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"a.example"}}, weak)
	check(t, err)
	good := csr(t, named("", "a.example"))
	block, _ := pem.Decode(good)
	foreign := bytes.Clone(block.Bytes)
	foreign[len(foreign)-3] ^= 1 // of the signature
	for what, text := range map[string][]byte{
		"nothing": nil, "text": []byte("x"), "a key of 1024 bits": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
		"another's key": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: foreign}),
		"a certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes}),
		"too large":     append(bytes.Repeat([]byte("\n"), maxRequest), good...),
	} {
		if _, err := read(Request{CSR: text}); !errors.Is(err, ErrBad) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestWhatIsKept shows that certificates and revocations are there after a restart, that numbers of lists only grow, and that damage is
// told rather than forgotten.
func TestWhatIsKept(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	if _, err := s.Issue(Request{CSR: csr(t, named("", "a.example"))}, admin); !errors.Is(err, ErrNone) {
		t.Fatalf("without an authority: %v", err)
	}
	check(t, s.Init(Settings{URL: "http://10.0.0.2:7080/"}))
	if err := s.Init(Settings{}); !errors.Is(err, ErrExists) {
		t.Fatalf("a second authority: %v", err)
	}
	one, err := s.Issue(Request{CSR: csr(t, named("", "a.example"))}, admin)
	check(t, err)
	two, err := s.Issue(Request{CSR: csr(t, named("ops")), Profile: "client"}, operator)
	check(t, err)
	if _, err := s.Revoke(one.Serial, "", operator); !errors.Is(err, ErrForbidden) {
		t.Errorf("an operator revokes another's: %v", err)
	}
	if _, err := s.Revoke(two.Serial, "certificateHold", admin); !errors.Is(err, ErrBad) {
		t.Errorf("a hold: %v", err)
	}
	colons := strings.ToUpper(two.Serial[:2] + ":" + two.Serial[2:])
	if _, err := s.Revoke(colons, "keyCompromise", operator); err != nil {
		t.Errorf("an operator revokes his own: %v", err)
	}
	if _, err := s.Revoke(two.Serial, "", admin); !errors.Is(err, ErrRevoked) {
		t.Errorf("twice: %v", err)
	}
	before, _, err := s.CRL()
	check(t, err)

	s = open(t, dir, nil)
	if got, err := s.Get(two.Serial); err != nil || ReasonName(got.Reason) != "keyCompromise" || got.RevokedBy != "ops" || !bytes.Equal(got.DER, two.DER) {
		t.Errorf("after a restart: %+v %v", got, err)
	}
	if all := s.List(); len(all) != 2 || all[0].Serial != two.Serial {
		t.Errorf("after a restart, the newest first: %d", len(all))
	}
	after, _, err := s.CRL()
	check(t, err)
	was, err := x509.ParseRevocationList(before)
	check(t, err)
	is, err := x509.ParseRevocationList(after)
	check(t, err)
	if is.Number.Cmp(was.Number) <= 0 || len(is.RevokedCertificateEntries) != 1 || is.RevokedCertificateEntries[0].ReasonCode != 1 {
		t.Errorf("list %s with %d after %s", is.Number, len(is.RevokedCertificateEntries), was.Number)
	}
	path := filepath.Join(dir, folder, issuedFolder, two.Serial+issuedSuffix)
	text, err := os.ReadFile(path)
	check(t, err)
	master, err := pki.OpenMasterKey(dir)
	check(t, err)
	for what, content := range map[string][]byte{"cut": text[:len(text)/2], "another's": bytes.ReplaceAll(text, []byte(two.Serial), []byte(one.Serial))} {
		check(t, os.WriteFile(path, content, 0o600))
		if _, err := Open(Options{Dir: dir, Master: master}); err == nil || !strings.Contains(err.Error(), "restore the file") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestWhatCannotBeKept shows that nothing is handed out, and nothing counts as revoked, that is not on the disk.
func TestWhatCannotBeKept(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, nil)
	check(t, s.Init(Settings{}))
	one, err := s.Issue(Request{CSR: csr(t, named("", "a.example"))}, admin)
	check(t, err)
	issued := filepath.Join(dir, folder, issuedFolder)
	check(t, os.Rename(issued, issued+".away"))
	check(t, os.WriteFile(issued, nil, 0o600)) // also root cannot make files in it
	if _, err := s.Issue(Request{CSR: csr(t, named("", "b.example"))}, admin); err == nil || len(s.List()) != 1 {
		t.Errorf("issued: %v", err)
	}
	if _, err := s.Revoke(one.Serial, "", admin); err == nil {
		t.Error("revoked without a record")
	}
	if got, _ := s.Get(one.Serial); !got.RevokedAt.IsZero() {
		t.Error("it counts as revoked until the next restart alone")
	}
	check(t, os.Remove(issued))
	check(t, os.Rename(issued+".away", issued))

	// The list alone cannot be written: the certificate is revoked, and the next request makes the list.
	path := filepath.Join(dir, folder, listFile)
	check(t, os.Remove(path))
	check(t, os.MkdirAll(filepath.Join(path, "x"), 0o700))
	if _, err := s.Revoke(one.Serial, "", admin); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.CRL(); err == nil {
		t.Error("a list without the certificate was given")
	}
	check(t, os.RemoveAll(path))
	der, _, err := s.CRL()
	check(t, err)
	if is, err := x509.ParseRevocationList(der); err != nil || len(is.RevokedCertificateEntries) != 1 {
		t.Errorf("the list afterwards: %v", err)
	}
}

// TestEndedCertificatesMakeRoom fills the register.
func TestEndedCertificatesMakeRoom(t *testing.T) {
	c := &clock{now: time.Now()}
	s := open(t, t.TempDir(), c.Now)
	check(t, s.Init(Settings{}))
	ended, err := s.Issue(Request{CSR: csr(t, named("", "a.example")), TTL: time.Hour}, admin)
	check(t, err)
	_, err = s.Issue(Request{CSR: csr(t, named("", "b.example"))}, admin)
	check(t, err)
	s.bytes = maxBytes - 2*maxRequest + 1 // as if there were many more
	if _, err := s.Issue(Request{CSR: csr(t, named("", "c.example"))}, admin); !errors.Is(err, ErrFull) {
		t.Fatalf("full: %v", err)
	}
	c.move(2 * time.Hour)
	if _, err := s.Issue(Request{CSR: csr(t, named("", "c.example")), TTL: time.Hour}, admin); err != nil {
		t.Fatalf("one has ended: %v", err)
	}
	if _, err := s.Get(ended.Serial); !errors.Is(err, ErrUnknown) {
		t.Errorf("the ended one: %v", err)
	}
}

// TestListsAndAnswersAreRenewed moves the clock.
func TestListsAndAnswersAreRenewed(t *testing.T) {
	c := &clock{now: time.Now()}
	s := open(t, t.TempDir(), c.Now)
	check(t, s.Init(Settings{}))
	one, err := s.Issue(Request{CSR: csr(t, named("", "a.example"))}, admin)
	check(t, err)
	number := func() *big.Int {
		der, until, err := s.CRL()
		check(t, err)
		l, err := x509.ParseRevocationList(der)
		check(t, err)
		if !l.NextUpdate.After(c.Now()) || l.ThisUpdate.After(c.Now()) || !until.Before(l.NextUpdate) {
			t.Errorf("list from %s to %s, kept until %s, at %s", l.ThisUpdate, l.NextUpdate, until, c.Now())
		}
		return l.Number
	}
	question := question(t, s, one)
	first := number()
	a, _ := s.OCSP(question)
	c.move(time.Hour)
	if b, _ := s.OCSP(question); !bytes.Equal(a, b) || number().Cmp(first) != 0 {
		t.Error("signed anew within the hour")
	}
	c.move(25 * time.Hour)
	if b, _ := s.OCSP(question); bytes.Equal(a, b) || number().Cmp(first) <= 0 {
		t.Error("not renewed after a day")
	}
	a, _ = s.OCSP(question)
	c.move(-72 * time.Hour) // it was wrong before
	if b, _ := s.OCSP(question); bytes.Equal(a, b) {
		t.Error("an answer of the future is given")
	}
	number()
}

// TestTogether issues and revokes from several sides.
func TestTogether(t *testing.T) {
	s := open(t, t.TempDir(), nil)
	check(t, s.Init(Settings{}))
	one, err := s.Issue(Request{CSR: csr(t, named("", "a.example"))}, admin)
	check(t, err)
	var requests [8][]byte
	for i := range requests {
		requests[i] = csr(t, named("", fmt.Sprintf("a%d.example", i)))
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	revoked := 0
	for _, r := range requests {
		group.Go(func() {
			if _, err := s.Issue(Request{CSR: r}, admin); err != nil {
				t.Error(err)
			}
			if _, err := s.Revoke(one.Serial, "", admin); err == nil {
				mu.Lock()
				revoked++
				mu.Unlock()
			}
			_, _, _ = s.CRL()
		})
	}
	group.Wait()
	if len(s.List()) != 9 || revoked != 1 {
		t.Errorf("%d certificates, revoked %d times", len(s.List()), revoked)
	}
}

// tool runs a program in a folder, and returns what it says and whether it succeeded.
func tool(t testing.TB, dir string, command ...string) (string, bool) {
	t.Helper()
	c := exec.Command(command[0], command[1:]...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	return string(out), err == nil
}

// question is one that openssl asks about a certificate.
func question(t testing.TB, s *Service, i Issued) []byte {
	t.Helper()
	require.Need(t, "openssl")
	dir := t.TempDir()
	write(t, dir, s, i)
	if said, ok := tool(t, dir, "openssl", "ocsp", "-issuer", "ca.pem", "-cert", "cert.pem", "-reqout", "question"); !ok {
		t.Fatal(said)
	}
	text, err := os.ReadFile(filepath.Join(dir, "question"))
	check(t, err)
	return text
}

// write writes the authority and a certificate as files.
func write(t testing.TB, dir string, s *Service, i Issued) {
	t.Helper()
	ca, _, err := s.Describe()
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "ca.pem"), pki.EncodeCertificate(ca), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "cert.pem"), i.PEM(), 0o600))
}

// TestForeignProgramsVerify has OpenSSL, GnuTLS and cfssl look at certificates, the list of revoked ones and the responder.
func TestForeignProgramsVerify(t *testing.T) {
	require.Need(t, "openssl", "certtool", "ocsptool", "cfssl")
	s := open(t, t.TempDir(), nil)
	web := httptest.NewServer(s.Handler())
	defer web.Close()
	check(t, s.Init(Settings{URL: web.URL, CommonName: "Rack services", Domains: []string{"rack.example"}}))
	dir := t.TempDir()
	expect := func(good bool, has string, command ...string) string {
		t.Helper()
		said, ok := tool(t, dir, command...)
		if ok != good || !strings.Contains(said, has) {
			t.Errorf("%s: success %v, want %v and %q:\n%s", strings.Join(command, " "), ok, good, has, said)
		}
		return said
	}
	crl := func() {
		t.Helper()
		der, _, err := s.CRL()
		check(t, err)
		check(t, os.WriteFile(filepath.Join(dir, "list.pem"), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), 0o600))
	}

	// cfssl makes the key and the request.
	check(t, os.WriteFile(filepath.Join(dir, "csr.json"), []byte(`{"CN": "db.rack.example", "hosts": ["db.rack.example"], "key": {"algo": "rsa", "size": 2048}, "names": [{"C": "DE", "O": "Example"}]}`), 0o600))
	expect(true, "", "sh", "-c", "cfssl genkey csr.json | cfssljson -bare db")
	request, err := os.ReadFile(filepath.Join(dir, "db.csr"))
	check(t, err)
	one, err := s.Issue(Request{CSR: request, Profile: "peer"}, admin)
	check(t, err)
	write(t, dir, s, one)
	crl()
	expect(true, "cert.pem: OK", "openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", "ca.pem", "-CRLfile", "list.pem", "-purpose", "sslserver", "-verify_hostname", "db.rack.example", "cert.pem")
	expect(true, "cert.pem: OK", "openssl", "verify", "-x509_strict", "-CAfile", "ca.pem", "-purpose", "sslclient", "cert.pem")
	expect(true, "Chain verification output: Verified", "certtool", "--verify", "--load-ca-certificate", "ca.pem", "--infile", "cert.pem", "--verify-hostname", "db.rack.example")
	expect(true, "No revoked certificates", "certtool", "--crl-info", "--infile", "list.pem")
	if said := expect(true, `"db.rack.example"`, "cfssl", "certinfo", "-cert", "cert.pem"); !strings.Contains(said, "Rack services") {
		t.Errorf("cfssl: %s", said)
	}
	expect(true, "cert.pem: good", "openssl", "ocsp", "-issuer", "ca.pem", "-cert", "cert.pem", "-url", web.URL+PathOCSP, "-CAfile", "ca.pem", "-no_nonce")
	expect(true, "cert.pem: good", "openssl", "ocsp", "-sha256", "-issuer", "ca.pem", "-cert", "cert.pem", "-url", web.URL+PathOCSP, "-CAfile", "ca.pem", "-no_nonce")
	expect(true, "Certificate Status: good", "ocsptool", "--ask="+web.URL+PathOCSP, "--load-cert", "cert.pem", "--load-issuer", "ca.pem", "--load-trust", "ca.pem", "--no-nonce")
	expect(true, web.URL+PathOCSP, "openssl", "x509", "-in", "cert.pem", "-noout", "-ocsp_uri")
	expect(true, web.URL+PathCRL, "openssl", "x509", "-in", "cert.pem", "-noout", "-text")

	_, err = s.Revoke(one.Serial, "superseded", admin)
	check(t, err)
	crl()
	expect(false, "certificate revoked", "openssl", "verify", "-crl_check", "-CAfile", "ca.pem", "-CRLfile", "list.pem", "cert.pem")
	expect(true, "cert.pem: revoked", "openssl", "ocsp", "-issuer", "ca.pem", "-cert", "cert.pem", "-url", web.URL+PathOCSP, "-CAfile", "ca.pem", "-no_nonce")
	if said := expect(true, "Superseded", "openssl", "crl", "-in", "list.pem", "-noout", "-text", "-CAfile", "ca.pem"); !strings.Contains(said, "verify OK") {
		t.Errorf("the list: %s", said)
	}
	expect(true, "Verification output: Verified", "certtool", "--verify-crl", "--load-ca-certificate", "ca.pem", "--infile", "list.pem")

	// What the authority may not sign for, nobody accepts, even if it did.
	stolen, err := s.authority.Sign(one.cert.PublicKey, &x509.Certificate{Subject: pkix.Name{CommonName: "x"}, DNSNames: []string{"bank.example"}, NotAfter: time.Now().Add(time.Hour)})
	check(t, err)
	write(t, dir, s, Issued{DER: stolen.Raw})
	expect(false, "permitted subtree violation", "openssl", "verify", "-CAfile", "ca.pem", "cert.pem")
	expect(false, "Responder Error: unauthorized", "openssl", "ocsp", "-issuer", "ca.pem", "-cert", "cert.pem", "-url", web.URL+PathOCSP, "-CAfile", "ca.pem", "-no_nonce")
	stolen, err = s.authority.Sign(one.cert.PublicKey, &x509.Certificate{Subject: pkix.Name{CommonName: "x"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}, NotAfter: time.Now().Add(time.Hour)})
	check(t, err)
	write(t, dir, s, Issued{DER: stolen.Raw})
	expect(false, "excluded subtree violation", "openssl", "verify", "-CAfile", "ca.pem", "cert.pem")
}
