package nodecert

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/ca"
)

// issue makes a certificate that fits want, after change, and its key.
func issue(t *testing.T, a *ca.CA, want wire.NodeCertificate, life time.Duration, age time.Duration, change func(*x509.Certificate)) (certificate, key []byte) {
	t.Helper()
	make, err := KeyMaker(want.KeyAlgorithm)
	if err != nil {
		t.Fatal(err)
	}
	private, key, err := make()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: want.CommonName, Organization: want.Organizations}, DNSNames: want.DNSNames,
		NotBefore: time.Now().Add(-age), NotAfter: time.Now().Add(life - age)}
	if change != nil {
		change(template)
	}
	leaf, err := a.Sign(template, private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return ca.EncodeCert(leaf), key
}

func TestWhenACertificateIsReplaced(t *testing.T) {
	ours, other := ca.New(t, "kubernetes"), ca.New(t, "kubernetes")
	want := wire.NodeCertificate{Name: "x", KeyAlgorithm: "ECDSA-P256", CommonName: "cn", Organizations: []string{"a", "b"}, DNSNames: []string{"node", "localhost"}, Authority: string(ours.PEM())}
	for name, tt := range map[string]struct {
		ca      *ca.CA
		age     time.Duration // of three hours
		change  func(*x509.Certificate)
		want    func(*wire.NodeCertificate)
		why     string
		usable  bool
		rotated bool
	}{
		"one that fits is kept": {usable: true},
		"the order of names does not matter": {want: func(c *wire.NodeCertificate) {
			c.DNSNames, c.Organizations = []string{"localhost", "node"}, []string{"b", "a"}
		}, usable: true},
		"a third of its life is left":                {age: 2*time.Hour + time.Minute, why: WhyDue, usable: true},
		"more than a tenth more than that is left":   {age: 100 * time.Minute, usable: true},
		"one that its user rotates is left to him":   {age: 2*time.Hour + time.Minute, rotated: true, usable: true},
		"one that its user rotates but that expired": {age: 4 * time.Hour, rotated: true, why: "expired"},
		"one that expired":                           {age: 4 * time.Hour, why: "expired"},
		"another issuer of the same name":            {ca: other, why: "another authority"},
		"another common name":                        {want: func(c *wire.NodeCertificate) { c.CommonName = "dn" }, why: `"cn", want "dn"`},
		"one organization less":                      {want: func(c *wire.NodeCertificate) { c.Organizations = nil }, why: "organizations are [a b], want []"},
		"a name more":                                {want: func(c *wire.NodeCertificate) { c.DNSNames = append(slices.Clone(c.DNSNames), "vip") }, why: "want [localhost node vip]"},
		"an address more":                            {want: func(c *wire.NodeCertificate) { c.IPAddresses = []string{"10.0.0.1"} }, why: "want [10.0.0.1]"},
		"another kind of key":                        {want: func(c *wire.NodeCertificate) { c.KeyAlgorithm = "ECDSA-P384" }, why: "its key is ECDSA-P256"},
		"a new authority beside the old one":         {want: func(c *wire.NodeCertificate) { c.Authority = string(other.PEM()) + string(ours.PEM()) }, usable: true},
	} {
		ca := ours
		if tt.ca != nil {
			ca = tt.ca
		}
		certificate, key := issue(t, ca, want, 3*time.Hour, tt.age, tt.change)
		asked := want
		asked.Rotated = tt.rotated
		if tt.want != nil {
			tt.want(&asked)
		}
		got := Inspect("node-01", asked, certificate, key, time.Now())
		if got.Usable != tt.usable || (got.Why == "") != (tt.why == "") || !strings.Contains(got.Why, tt.why) {
			t.Errorf("%s: usable %v, because %q", name, got.Usable, got.Why)
		}
	}
	certificate, _ := issue(t, ours, want, time.Hour, 0, nil)
	_, key := issue(t, ours, want, time.Hour, 0, nil)
	for name, tt := range map[string]struct{ certificate, key []byte }{
		"the key of another": {certificate, key}, "no certificate": {nil, key}, "no key": {certificate, nil}, "rubbish": {[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), key},
	} {
		if got := Inspect("node-01", want, tt.certificate, tt.key, time.Now()); got.Usable || got.Why == "" {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzInspect(f *testing.F) {
	authority := string(ca.New(f, "kubernetes").PEM())
	f.Add([]byte(authority), []byte("-----BEGIN EC PRIVATE KEY-----\n-----END EC PRIVATE KEY-----\n"))
	want := wire.NodeCertificate{KeyAlgorithm: "ECDSA-P256", CommonName: "x", Authority: authority}
	f.Fuzz(func(t *testing.T, certificate, key []byte) {
		if Inspect("node-01", want, certificate, key, time.Now()).Usable {
			t.Error("nobody signed that")
		}
	})
}

func TestKeysOfEveryKind(t *testing.T) {
	for _, algorithm := range []string{"ECDSA-P256", "ECDSA-P384", "RSA-2048", "RSA-3072"} {
		make, err := KeyMaker(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		key, encoded, err := make()
		if block, _ := pem.Decode(encoded); err != nil || block == nil || AlgorithmOf(key.Public()) != algorithm {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
}

// 500 nodes that were installed in the same hour renew over weeks, each within the tenth of the life before its last third.
func TestNodesRenewAtDifferentTimes(t *testing.T) {
	const nodes, day = 500, 24 * time.Hour
	from := time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)
	leaf := &x509.Certificate{NotBefore: from, NotAfter: from.Add(365 * day)}
	earliest, latest := leaf.NotAfter.Add(-leaf.NotAfter.Sub(from)*13/30), leaf.NotAfter.Add(-leaf.NotAfter.Sub(from)/3)
	perDay := map[int]int{}
	for i := range nodes {
		at := RenewAt(fmt.Sprintf("worker-%03d", i), leaf)
		if at.Before(earliest) || at.After(latest) {
			t.Errorf("node %d renews at %s, want between %s and %s", i, at, earliest, latest)
		}
		perDay[int(at.Sub(from)/day)]++
	}
	for on, count := range perDay {
		if count > nodes/10 {
			t.Errorf("%d of %d nodes renew on day %d", count, nodes, on)
		}
	}
	if Late(leaf, latest) || Late(leaf, leaf.NotAfter.Add(-37*day)) || !Late(leaf, leaf.NotAfter.Add(-36*day)) {
		t.Error("late is the last tenth")
	}
}
