package client

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"coldrack.dev/internal/base/digest"
)

// Pin is the SHA-256 of the SubjectPublicKeyInfo of the one CA that may vouch for the server, written
// "sha256:" and 64 hexadecimal digits. It reaches the machine with its kernel command line, so it is as
// trustworthy as the network it booted from, and never less from then on.
type Pin digest.Digest

// ParsePin reads the form that the kernel command line carries.
func ParsePin(s string) (Pin, error) {
	d, err := digest.Parse(s)
	if err != nil {
		return Pin{}, fmt.Errorf("CA pin: %w", err)
	}
	return Pin(d), nil
}

// PinOf is the pin of a CA certificate.
func PinOf(ca *x509.Certificate) Pin { return Pin(digest.Of(ca.RawSubjectPublicKeyInfo)) }

func (p Pin) String() string { return digest.Digest(p).String() }

// ErrPin says that whoever answered is not the server that this machine was told to trust.
var ErrPin error = pinError{}

type pinError struct{}

func (pinError) Error() string { return "the server's certificate does not come from the pinned CA" }

// Final keeps retry.Do from asking an impostor, or a server with a new CA, for ever: another boot brings the pin of
// the server that answers it.
func (pinError) Final() bool { return true }

// verify accepts a chain only if a CA certificate in it has the pinned key and, taken as the only root,
// vouches for the leaf under the name host. The server therefore sends its CA along with its leaf.
// Certificates in extra (a CA learned earlier) need not be sent.
func (p Pin) verify(cs tls.ConnectionState, host string, extra []*x509.Certificate, now time.Time) error {
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("%w: it sent none", ErrPin)
	}
	opts := x509.VerifyOptions{
		DNSName:       host, // an IP address is compared with the IP SANs
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	found := false
	for _, c := range append(append([]*x509.Certificate(nil), cs.PeerCertificates[1:]...), extra...) {
		if c.IsCA && PinOf(c) == p {
			opts.Roots.AddCert(c)
			found = true
			continue
		}
		opts.Intermediates.AddCert(c)
	}
	if !found {
		return fmt.Errorf("%w: no CA certificate with key %s among the %d certificates of %s (leaf %q issued by %q)",
			ErrPin, p, len(cs.PeerCertificates), host, cs.PeerCertificates[0].Subject, cs.PeerCertificates[0].Issuer)
	}
	if _, err := cs.PeerCertificates[0].Verify(opts); err != nil {
		return fmt.Errorf("the server's certificate for %s is not valid (this machine's clock says %s): %w", host, now.UTC().Format(time.RFC3339), err)
	}
	return nil
}
