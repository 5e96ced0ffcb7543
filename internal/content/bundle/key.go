package bundle

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// KeyID is a short name of a public key: the first 16 bytes of the SHA-256 of its PKIX form, in
// hexadecimal.
func KeyID(pub ed25519.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "" // cannot happen for an Ed25519 key
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:16])
}

// Signature is the content of index.json.sig.
type Signature struct {
	KeyID     string `json:"keyID"`
	Algorithm string `json:"algorithm"` // "ed25519"
	Signature []byte `json:"signature"` // over the bytes of index.json
}

const algorithmEd25519 = "ed25519"

func sign(key ed25519.PrivateKey, index []byte) Signature {
	pub, _ := key.Public().(ed25519.PublicKey)
	return Signature{KeyID: KeyID(pub), Algorithm: algorithmEd25519, Signature: ed25519.Sign(key, index)}
}

// UntrustedError says that a bundle's signature is by none of the trusted keys, or is wrong.
type UntrustedError struct {
	KeyID   string   // that the signature names
	Trusted []string // key IDs
	Reason  string
	// Unknown: the key is none of the trusted. A person may trust it; how, depends on who was asked.
	Unknown bool
}

func (e *UntrustedError) Error() string {
	trusted := "no key is trusted"
	if len(e.Trusted) > 0 {
		trusted = "trusted are " + strings.Join(e.Trusted, ", ")
	}
	return fmt.Sprintf("bundle is signed with key %s: %s; %s", e.KeyID, e.Reason, trusted)
}

// verify says whether s is a signature over index by one of the trusted keys.
func (s Signature) verify(index []byte, trusted []ed25519.PublicKey) error {
	e := &UntrustedError{KeyID: s.KeyID}
	if s.Algorithm != algorithmEd25519 {
		e.Reason = fmt.Sprintf("its algorithm is %q, want %q", s.Algorithm, algorithmEd25519)
		return e
	}
	for _, k := range trusted {
		if len(k) != ed25519.PublicKeySize {
			return fmt.Errorf("trusted key has %d bytes, want %d", len(k), ed25519.PublicKeySize)
		}
		id := KeyID(k)
		if id == s.KeyID {
			if ed25519.Verify(k, index, s.Signature) {
				return nil
			}
			e.Reason = "its signature does not match index.json, which was changed after signing"
			return e
		}
		e.Trusted = append(e.Trusted, id)
	}
	e.Reason, e.Unknown = "this key is not trusted", true
	return e
}

// Advise adds to an error about an unknown key how a person who knows the key makes it trusted.
func Advise(err error, how string) error {
	var untrusted *UntrustedError
	if errors.As(err, &untrusted) && untrusted.Unknown {
		return fmt.Errorf("%w; if you know the key, %s", err, how)
	}
	return err
}

const (
	pemPrivate = "PRIVATE KEY"
	pemPublic  = "PUBLIC KEY"
)

// LoadOrCreateKey reads the signing key at path (PKCS #8 in PEM), and makes one, readable by its
// owner only, when there is none. The public key is kept beside it under the same name with ".pub" for ".key".
func LoadOrCreateKey(path string) (key ed25519.PrivateKey, created bool, err error) {
	raw, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if key, err = createKey(path); err != nil {
			return nil, false, fmt.Errorf("make bundle key: %w", err)
		}
		created = true
	case err != nil:
		return nil, false, fmt.Errorf("read bundle key: %w", err)
	default:
		if key, err = parsePrivateKey(raw); err != nil {
			return nil, false, fmt.Errorf("read bundle key %s: %w", path, err)
		}
	}
	pub, _ := key.Public().(ed25519.PublicKey)
	pubPath := PublicKeyPath(path)
	if _, err := os.Stat(pubPath); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(pubPath, MarshalPublicKey(pub), 0o644); err != nil {
			return nil, false, fmt.Errorf("write public bundle key: %w", err)
		}
	}
	return key, created, nil
}

// PublicKeyPath is where LoadOrCreateKey puts the public half of the key at path.
func PublicKeyPath(path string) string { return strings.TrimSuffix(path, ".key") + ".pub" }

func createKey(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// A temporary file and link(2): a key is never half written, and never replaces another.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".bundle-key-*")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(pem.EncodeToMemory(&pem.Block{Type: pemPrivate, Bytes: der}))
	if err := errors.Join(err, tmp.Chmod(0o600), tmp.Sync(), tmp.Close()); err != nil {
		return nil, err
	}
	return key, os.Link(tmp.Name(), path)
}

func parsePrivateKey(raw []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != pemPrivate {
		return nil, fmt.Errorf("want a PEM block %q", pemPrivate)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("is a %T, want an Ed25519 key", k)
	}
	return key, nil
}

// MarshalPublicKey encodes a public key as PEM.
func MarshalPublicKey(pub ed25519.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil // cannot happen for an Ed25519 key
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemPublic, Bytes: der})
}

// ParsePublicKeys reads one or more PEM public keys.
func ParsePublicKeys(raw []byte) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for rest := raw; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != pemPublic {
			return nil, fmt.Errorf("PEM block is %q, want %q", block.Type, pemPublic)
		}
		k, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		pub, ok := k.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("key is a %T, want an Ed25519 public key", k)
		}
		keys = append(keys, pub)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("found no PEM block %q", pemPublic)
	}
	return keys, nil
}

// LoadPublicKeys reads the keys of several files.
func LoadPublicKeys(paths ...string) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for _, p := range paths {
		raw, err := os.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("read trusted key: %w", err)
		}
		k, err := ParsePublicKeys(raw)
		if err != nil {
			return nil, fmt.Errorf("read trusted key %s: %w", p, err)
		}
		keys = append(keys, k...)
	}
	return keys, nil
}
