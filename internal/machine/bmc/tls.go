package bmc

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Fingerprint names a certificate by its DER bytes, as `openssl x509 -fingerprint -sha256` does.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// errCertificate is wrapped by each refusal of a certificate.
var errCertificate = errors.New("certificate not trusted")

// tlsConfig accepts what the target says, and tells seen what the BMC showed.
func tlsConfig(t Target, host string, seen func(fingerprint string)) (*tls.Config, error) {
	var roots *x509.CertPool
	if t.Authority != "" {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(t.Authority)) {
			return nil, &Error{Kind: Misconfigured, Address: t.Address, What: "the authority is not a PEM certificate", Remedy: "correct spec.bmc.authority"}
		}
	}
	verify := func(state tls.ConnectionState) error {
		leaf := state.PeerCertificates[0]
		shown := Fingerprint(leaf)
		seen(shown)
		switch {
		case t.AnyCertificate:
			return nil
		case t.Certificate != "":
			if strings.EqualFold(shown, t.Certificate) {
				return nil
			}
			return fmt.Errorf("%w: it shows %s, and %s is recorded", errCertificate, shown, t.Certificate)
		}
		between := x509.NewCertPool()
		for _, cert := range state.PeerCertificates[1:] {
			between.AddCert(cert)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: host}); err != nil {
			return fmt.Errorf("%w: it shows %s: %w", errCertificate, shown, err)
		}
		return nil
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		CipherSuites: ciphers(),
		// The checks are all in verify, which every connection goes through.
		InsecureSkipVerify: true,
		VerifyConnection:   verify,
		ServerName:         host,
	}, nil
}

// ciphers are those that TLS 1.2 allows by default, and the ones with RSA key exchange: BMCs of ten years ago have no other.
func ciphers() []uint16 {
	var ids []uint16
	for _, suite := range tls.CipherSuites() {
		ids = append(ids, suite.ID)
	}
	return append(ids, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA)
}
