// Package ca is a certificate authority for tests.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// CA signs what a test needs. It is safe for concurrent use.
type CA struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey

	t testing.TB
}

// New makes an authority with this common name.
func New(t testing.TB, name string) *CA {
	t.Helper()
	return From(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature})
}

// From makes an authority of a template, which a test may make one that must not sign.
func From(t testing.TB, template *x509.Certificate) *CA {
	t.Helper()
	a := &CA{Key: NewKey(t), t: t}
	cert, err := sign(template, nil, a.Key.Public(), a.Key)
	if err != nil {
		t.Fatal(err)
	}
	a.Cert = cert
	return a
}

// NewKey makes a key of the usual kind.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// PEM is the authority's certificate.
func (a *CA) PEM() []byte { return EncodeCert(a.Cert) }

// Pool has only this authority.
func (a *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Cert)
	return pool
}

// Sign signs a certificate of a template, which is left as it is. Without a lifetime of its own, a certificate is valid
// from an hour ago until in an hour. Servers of a test may call it from their own goroutines.
func (a *CA) Sign(template *x509.Certificate, public crypto.PublicKey) (*x509.Certificate, error) {
	return sign(template, a.Cert, public, a.Key)
}

// Issue makes a key and a certificate for it.
func (a *CA) Issue(template *x509.Certificate) *tls.Certificate {
	a.t.Helper()
	key := NewKey(a.t)
	cert, err := a.Sign(template, key.Public())
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// IssuePEM makes a key and a certificate for it, both as PEM.
func (a *CA) IssuePEM(template *x509.Certificate) (cert, key []byte) {
	a.t.Helper()
	pair := a.Issue(template)
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	return EncodeCert(pair.Leaf), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// EncodeCert writes a certificate as PEM.
func EncodeCert(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// Server is the template of a TLS server's certificate.
func Server(addresses ...string) *x509.Certificate {
	template := &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, address := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(address))
	}
	return template
}

// Client is the template of a client's certificate.
func Client(name string, organizations ...string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: name, Organization: organizations}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
}

// sign signs with key; without a parent, a certificate signs itself.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	own := *template
	var err error
	if own.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return nil, err
	}
	if own.NotBefore.IsZero() {
		own.NotBefore = time.Now().Add(-time.Hour)
	}
	if own.NotAfter.IsZero() {
		own.NotAfter = time.Now().Add(time.Hour)
	}
	if parent == nil {
		parent = &own
	}
	der, err := x509.CreateCertificate(rand.Reader, &own, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
