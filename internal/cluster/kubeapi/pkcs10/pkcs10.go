// Package pkcs10 reads certificate requests (RFC 2986) that anybody may have written. It stands apart so that it
// can be fuzzed without building the whole of client-go for that.
package pkcs10

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

const (
	minRSABits = 2048
	maxRSABits = 8192
	maxSize    = 64 << 10
)

// Parse reads a request, one PEM block and nothing else, and checks that its sender has the key and that the key is
// strong enough.
func Parse(content []byte) (*x509.CertificateRequest, error) {
	if len(content) > maxSize {
		return nil, fmt.Errorf("the request has %d bytes, more than %d", len(content), maxSize)
	}
	block, rest := pem.Decode(content)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("the request is not one PEM block of type CERTIFICATE REQUEST")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the request cannot be read: %w", err)
	}
	// Before the signature is checked: a huge key makes that slow.
	switch key := request.PublicKey.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return nil, fmt.Errorf("the RSA key has %d bits, want %d to %d", bits, minRSABits, maxRSABits)
		}
	default:
		return nil, fmt.Errorf("keys of type %T are not signed", key)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the request's signature is wrong: %w", err)
	}
	return request, nil
}
