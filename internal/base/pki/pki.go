// Package pki holds the certificate authorities of a Coldrack server: one that identifies machines and
// one that identifies people, kept apart so that neither can pass for the other.
//
// Private keys of authorities rest on disk only sealed (AES-256-GCM) under the server's master key, so
// that a copy of the data folder without that key gives nobody an identity. Leaf keys of machines are
// made on the machines and never seen here: only public keys are signed.
package pki

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/base/durable"
)

const (
	authorityTTL = 10 * 365 * 24 * time.Hour
	// backdate tolerates clocks that differ: a machine's that runs behind the server's, and the server's own that was ahead when it
	// signed, and was set since.
	backdate = 24 * time.Hour
)

// Authority signs certificates. It is safe for concurrent use.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// OpenAuthority loads the authority NAME from dir, or makes it on first use: NAME.crt (PEM) and
// NAME.key.sealed. A certificate without its key, or a key that the master key does not open, is an
// error and never replaced: every identity ever signed would be lost.
func OpenAuthority(dir, name string, master MasterKey) (*Authority, error) {
	certPath, keyPath := filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key.sealed")
	certPEM, certErr := os.ReadFile(certPath)
	sealed, keyErr := os.ReadFile(keyPath)
	switch {
	case errors.Is(certErr, fs.ErrNotExist) && (errors.Is(keyErr, fs.ErrNotExist) || keyErr == nil):
		// The key is written first: a key without a certificate is a creation that was cut short.
		return createAuthority(certPath, keyPath, name, master, Bounds{})
	case certErr != nil:
		return nil, fmt.Errorf("read certificate of authority %s: %w", name, certErr)
	case keyErr != nil:
		return nil, fmt.Errorf("authority %s has a certificate but its key cannot be read: %w; restore %s from a backup", name, keyErr, keyPath)
	}
	der, err := master.Open(name, sealed)
	if err != nil {
		return nil, fmt.Errorf("open key of authority %s (%s): %w", name, keyPath, err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("parse key of authority %s: %w", name, err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key of authority %s is a %T, which cannot sign", name, parsed)
	}
	cert, err := ParseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("authority %s (%s): %w", name, certPath, err)
	}
	if public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return nil, fmt.Errorf("certificate and key of authority %s in %s do not belong together; restore both from one backup", name, dir)
	}
	return &Authority{cert: cert, key: key}, nil
}

// Bounds are what an authority may sign for. Whoever verifies a certificate of it holds against them, too (name constraints, RFC 5280,
// 4.2.1.10). Empty fields set no bound.
type Bounds struct {
	// CommonName of the authority; empty: "coldrack " and its name.
	CommonName string
	// Domains with all names below them, and Networks. Domains without Networks exclude all addresses.
	Domains  []string
	Networks []netip.Prefix
}

// CreateAuthority makes the authority NAME in dir, with bounds. One that is there already is an error that wraps fs.ErrExist.
func CreateAuthority(dir, name string, master MasterKey, bounds Bounds) (*Authority, error) {
	certPath, keyPath := filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key.sealed")
	if _, err := os.Stat(certPath); err == nil {
		return nil, fmt.Errorf("authority %s in %s: %w", name, dir, fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read certificate of authority %s: %w", name, err)
	}
	return createAuthority(certPath, keyPath, name, master, bounds)
}

// HasAuthority says whether OpenAuthority would find the authority NAME, and make none.
func HasAuthority(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name+".crt"))
	return !errors.Is(err, fs.ErrNotExist)
}

func createAuthority(certPath, keyPath, name string, master MasterKey, bounds Bounds) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of authority %s: %w", name, err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: cmp.Or(bounds.CommonName, "coldrack "+name), Organization: []string{"coldrack"}},
		NotBefore:             time.Now().Add(-backdate),
		NotAfter:              time.Now().Add(authorityTTL),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	template.PermittedDNSDomains = bounds.Domains
	for _, n := range bounds.Networks {
		n = n.Masked()
		template.PermittedIPRanges = append(template.PermittedIPRanges, &net.IPNet{IP: n.Addr().AsSlice(), Mask: net.CIDRMask(n.Bits(), n.Addr().BitLen())})
	}
	if len(bounds.Domains) > 0 && len(bounds.Networks) == 0 { // or addresses would be free
		template.ExcludedIPRanges = []*net.IPNet{{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}}
	}
	template.PermittedDNSDomainsCritical = len(bounds.Domains)+len(bounds.Networks) > 0
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign authority %s: %w", name, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key of authority %s: %w", name, err)
	}
	sealed, err := master.Seal(name, der)
	if err != nil {
		return nil, fmt.Errorf("seal key of authority %s: %w", name, err)
	}
	if err := replaceFile(keyPath, sealed, 0o600); err != nil {
		return nil, err
	}
	if err := replaceFile(certPath, EncodeCertificate(cert), 0o644); err != nil {
		return nil, err
	}
	return &Authority{cert: cert, key: key}, nil
}

// CertPEM returns the authority's certificate.
func (a *Authority) CertPEM() []byte { return EncodeCertificate(a.cert) }

// Certificate returns the authority's certificate, parsed.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Pool returns a pool with only this authority.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Fingerprint is that of the authority's public key; agents pin it.
func (a *Authority) Fingerprint() string { return fingerprintSPKI(a.cert.RawSubjectPublicKeyInfo) }

// SignClient signs a client certificate over a public key whose private half stays with its owner.
func (a *Authority) SignClient(public crypto.PublicKey, commonName string, organizations []string, ttl time.Duration) ([]byte, *x509.Certificate, error) {
	return a.signLeaf(public, &x509.Certificate{
		Subject:     pkix.Name{CommonName: commonName, Organization: organizations},
		NotAfter:    time.Now().Add(ttl),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// SignServer signs a server certificate for the given names and addresses.
func (a *Authority) SignServer(public crypto.PublicKey, commonName string, names []string, addresses []net.IP, ttl time.Duration) ([]byte, *x509.Certificate, error) {
	return a.signLeaf(public, &x509.Certificate{
		Subject:     pkix.Name{CommonName: commonName},
		NotAfter:    time.Now().Add(ttl),
		DNSNames:    names,
		IPAddresses: addresses,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// Sign signs a certificate over a public key whose private half stays with its owner. The template says all but its serial number, its
// beginning, and an end after the authority's own.
func (a *Authority) Sign(public crypto.PublicKey, template *x509.Certificate) (*x509.Certificate, error) {
	_, cert, err := a.signLeaf(public, template)
	return cert, err
}

// Signer signs with the authority's key what is no certificate: lists of revoked ones, and answers about one (RFC 6960).
func (a *Authority) Signer() crypto.Signer { return a.key }

// NewServerKeyPair makes a key and a server certificate for it. The chain includes the authority, so
// that a client which pins the authority's key finds it.
func (a *Authority) NewServerKeyPair(commonName string, names []string, addresses []net.IP, ttl time.Duration) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make key of server %s: %w", commonName, err)
	}
	_, cert, err := a.SignServer(key.Public(), commonName, names, addresses, ttl)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw, a.cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// NewServerPEM makes a key and a server certificate for it, both PEM, the chain with the authority.
func (a *Authority) NewServerPEM(commonName string, names []string, addresses []net.IP, ttl time.Duration) (certPEM, keyPEM []byte, err error) {
	pair, err := a.NewServerKeyPair(commonName, names, addresses, ttl)
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(pair.PrivateKey)
	return append(EncodeCertificate(pair.Leaf), a.CertPEM()...), keyPEM, err
}

// NewClientKeyPair makes a key and a client certificate for it, both PEM, for people.
func (a *Authority) NewClientKeyPair(commonName string, organizations []string, ttl time.Duration) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key of %s: %w", commonName, err)
	}
	certPEM, _, err = a.SignClient(key.Public(), commonName, organizations, ttl)
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err = encodeKey(key)
	return certPEM, keyPEM, err
}

func encodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// IssuedAt is when an authority of ours signed a certificate, by the clock of then.
func IssuedAt(cert *x509.Certificate) time.Time { return cert.NotBefore.Add(backdate) }

func (a *Authority) signLeaf(public crypto.PublicKey, template *x509.Certificate) ([]byte, *x509.Certificate, error) {
	template.NotBefore = time.Now().Add(-backdate)
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	cert, err := sign(template, a.cert, public, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate of %s: %w", template.Subject.CommonName, err)
	}
	return EncodeCertificate(cert), cert, nil
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// ParseCSR reads a PEM certificate request, checks that its sender holds the private key, and returns
// the public key. Nothing else of a request is ever used: names and rights come from the server.
func ParseCSR(requestPEM []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(requestPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("not a PEM certificate request")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate request: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request is not signed by its own key: %w", err)
	}
	return request.PublicKey, nil
}

// Fingerprint is "sha256:" and the hex SHA-256 of a public key's SubjectPublicKeyInfo (RFC 5280, 4.1).
func Fingerprint(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("encode public key: %w", err)
	}
	return fingerprintSPKI(der), nil
}

func fingerprintSPKI(der []byte) string {
	return digest.Of(der).String()
}

// EncodeCertificate returns a certificate as PEM.
func EncodeCertificate(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// FingerprintOf is that of a certificate's public key.
func FingerprintOf(certPEM []byte) (string, error) {
	cert, err := ParseCertificate(certPEM)
	if err != nil {
		return "", err
	}
	return fingerprintSPKI(cert.RawSubjectPublicKeyInfo), nil
}

// ParseCertificate reads the first certificate of a PEM file.
func ParseCertificate(certPEM []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("not a PEM certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate: %w", err)
	}
	return cert, nil
}

// replaceFile writes a file into a folder that is made if it is missing.
func replaceFile(path string, content []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make folder for %s: %w", path, err)
	}
	if err := durable.WriteFile(path, content, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
