// Package csrfile reads what asks for a certificate: PKCS #10 in PEM, and the JSON files that cfssl reads and writes. It makes the keys
// that such a file asks for.
package csrfile

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
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"strings"
)

// File is one that asks for a certificate.
type File struct {
	// CSR is a PKCS #10 request, PEM; empty where a key must be made first.
	CSR []byte
	// Hosts that the certificate shall have in the place of the request's.
	Hosts []string
	// CommonName and Profile that it shall have; empty: those of the request, and the default.
	CommonName, Profile string
	// Key and Subject are what is to be made where CSR is empty.
	Key     Key
	Subject pkix.Name
}

// Key is a kind of key, as cfssl writes it.
type Key struct {
	// Algo is ecdsa, rsa or ed25519, Size its bits.
	Algo string `json:"algo"`
	Size int    `json:"size"`
}

// defaultKey is that of cfssl.
var defaultKey = Key{Algo: "ecdsa", Size: 256}

// Keys are the kinds that New makes.
func Keys() []string {
	return []string{"ecdsa-256", "ecdsa-384", "ecdsa-521", "rsa-2048", "rsa-3072", "rsa-4096", "ed25519"}
}

// ParseKey reads one of Keys.
func ParseKey(text string) (Key, error) {
	var k Key
	if text == "ed25519" {
		return Key{Algo: text}, nil
	}
	algo, size, ok := strings.Cut(text, "-")
	if _, err := fmt.Sscanf(size, "%d", &k.Size); !ok || err != nil || algo == "ed25519" {
		return k, fmt.Errorf("key %q: must be one of %s", text, strings.Join(Keys(), ", "))
	}
	k.Algo = algo
	return k, k.check()
}

func (k Key) String() string {
	if k.Algo == "ed25519" {
		return k.Algo
	}
	return fmt.Sprintf("%s-%d", k.Algo, k.Size)
}

func (k Key) check() error {
	for _, known := range Keys() {
		if k.String() == known {
			return nil
		}
	}
	return fmt.Errorf("key %s of %d bits: must be one of %s", k.Algo, k.Size, strings.Join(Keys(), ", "))
}

// document has the fields of all JSON files of cfssl that ask for a certificate.
type document struct {
	// What cfssl genkey and cfssl gencert read.
	CN    string   `json:"CN"`
	Hosts []string `json:"hosts"`
	Key   any      `json:"key"`
	Names []name   `json:"names"`
	CA    any      `json:"ca"`
	// What cfssl genkey writes has csr and, as text, key.
	CSR string `json:"csr"`
	// What cfssl's API takes and gives.
	CertificateRequest string    `json:"certificate_request"`
	Profile            string    `json:"profile"`
	Subject            *subject  `json:"subject"`
	Result             *document `json:"result"`
}

type subject struct {
	CN    string `json:"CN"`
	Names []name `json:"names"`
}

type name struct{ C, ST, L, O, OU, SerialNumber string }

// Parse reads a file.
func Parse(content []byte) (f File, err error) {
	content = bytes.TrimSpace(content)
	if block, _ := pem.Decode(content); block != nil {
		if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
			return f, fmt.Errorf("the file has a PEM block of type %s, and must have one of type CERTIFICATE REQUEST", block.Type)
		}
		return File{CSR: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: block.Bytes})}, nil
	}
	if !bytes.HasPrefix(content, []byte("{")) {
		return f, errors.New("the file is neither a certificate request in PEM nor JSON as of cfssl")
	}
	var d document
	if err := json.Unmarshal(content, &d); err != nil {
		return f, fmt.Errorf("the JSON cannot be read: %w", err)
	}
	if d.Result != nil {
		d = *d.Result
	}
	if d.CA != nil {
		return f, errors.New(`"ca" asks for an authority; the server's authority signs for those who connect and serve, and not for other authorities`)
	}
	if text := d.CSR + d.CertificateRequest; text != "" {
		f, err := Parse([]byte(text))
		if err != nil {
			return f, err
		}
		f.Hosts, f.Profile = d.Hosts, d.Profile
		if d.Subject != nil {
			if len(d.Subject.Names) > 0 {
				return f, errors.New(`"subject" with "names" is not taken: make the request with them`)
			}
			f.CommonName = d.Subject.CN
		}
		return f, nil
	}
	if d.CN == "" && len(d.Hosts) == 0 && len(d.Names) == 0 {
		return f, errors.New(`the JSON has neither "CN", "hosts" nor "names", as cfssl genkey reads them, and neither "csr" nor "certificate_request"`)
	}
	f = File{Hosts: d.Hosts, Profile: d.Profile, Key: defaultKey, Subject: pkix.Name{CommonName: d.CN}}
	if d.Key != nil {
		text, err := json.Marshal(d.Key)
		if err == nil {
			err = json.Unmarshal(text, &f.Key)
		}
		if err != nil {
			return f, fmt.Errorf(`"key": must be such as {"algo": "ecdsa", "size": 256}: %w`, err)
		}
	}
	for _, n := range d.Names {
		for _, part := range []struct {
			value string
			to    *[]string
		}{{n.C, &f.Subject.Country}, {n.ST, &f.Subject.Province}, {n.L, &f.Subject.Locality}, {n.O, &f.Subject.Organization}, {n.OU, &f.Subject.OrganizationalUnit}} {
			if part.value != "" {
				*part.to = append(*part.to, part.value)
			}
		}
		if n.SerialNumber != "" {
			return f, errors.New(`"names": SerialNumber is not taken into certificates`)
		}
	}
	return f, f.Key.check()
}

// New makes the key that a file asks for, and the request. Both are PEM.
func (f File) New() (keyPEM, csrPEM []byte, err error) {
	var key crypto.Signer
	switch f.Key.Algo {
	case "ecdsa":
		curve := map[int]elliptic.Curve{256: elliptic.P256(), 384: elliptic.P384(), 521: elliptic.P521()}[f.Key.Size]
		if curve == nil {
			return nil, nil, f.Key.check()
		}
		key, err = ecdsa.GenerateKey(curve, rand.Reader)
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, f.Key.Size)
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = f.Key.check()
	}
	if err != nil {
		return nil, nil, err
	}
	template := &x509.CertificateRequest{Subject: f.Subject}
	for _, h := range f.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if u, err := url.Parse(h); err == nil && u.Scheme != "" && u.Host != "" {
			template.URIs = append(template.URIs, u)
		} else if a, err := mail.ParseAddress(h); err == nil && a.Address == h {
			template.EmailAddresses = append(template.EmailAddresses, h)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make the request: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}
