package pkcs10

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
)

func request(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:a"}, DNSNames: []string{"a"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func ecdsaKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestParse(t *testing.T) {
	rsaKey := func(bits int) crypto.Signer {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := request(t, ecdsaKey(t))
	block, _ := pem.Decode(good)
	forged := slices.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	for _, test := range []struct {
		name    string
		content []byte
		problem string
	}{
		{"an elliptic key is taken", good, ""},
		{"an RSA key of usual size is taken", request(t, rsaKey(2048)), ""},
		{"an Ed25519 key is taken", request(t, ed), ""},
		{"white space at the end is harmless", append(slices.Clone(good), '\n', ' '), ""},
		{"a short RSA key", request(t, rsaKey(1024)), "the RSA key has 1024 bits"},
		{"a request that was altered", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: forged}), "signature is wrong"},
		{"two requests in one", append(slices.Clone(good), good...), "is not one PEM block"},
		{"a certificate", bytes.ReplaceAll(good, []byte("CERTIFICATE REQUEST"), []byte("CERTIFICATE")), "is not one PEM block"},
		{"what is not PEM", []byte("hello"), "is not one PEM block"},
		{"what is PEM but no request", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte("x")}), "cannot be read"},
		{"too much", bytes.Repeat([]byte("x"), maxSize+1), "more than 65536"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Parse(test.content)
			if test.problem == "" {
				if err != nil || got.Subject.CommonName != "system:node:a" {
					t.Errorf("%+v, %v", got, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), test.problem) {
				t.Errorf("error is %v, want %q", err, test.problem)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(request(f, ecdsaKey(f)))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if got, err := Parse(content); err == nil && (got.PublicKey == nil || got.CheckSignature() != nil) {
			t.Error("a request without a good signature is taken")
		}
	})
}
