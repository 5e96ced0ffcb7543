package acme

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // for signatures
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"mime"
	"net/http"
	"sync"
	"time"
)

// maxBody bounds a request, bytes.
const maxBody = 32 << 10

// jwk is a public key (RFC 7517).
type jwk struct {
	Kty string `json:"kty"`
	Crv string `json:"crv,omitempty"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
	N   string `json:"n,omitempty"`
	E   string `json:"e,omitempty"`
}

var b64 = base64.RawURLEncoding

// key is the public key, and of what kind its signatures are.
func (k jwk) key() (crypto.PublicKey, error) {
	number := func(text string) (*big.Int, error) {
		b, err := b64.DecodeString(text)
		if err != nil || len(b) == 0 || len(b) > 1024 {
			return nil, errors.New("a number of the key cannot be read")
		}
		return new(big.Int).SetBytes(b), nil
	}
	switch k.Kty {
	case "RSA":
		n, err := number(k.N)
		if err != nil {
			return nil, err
		}
		e, err := number(k.E)
		if err != nil {
			return nil, err
		}
		if bits := n.BitLen(); bits < 2048 || bits > 4096 || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 || e.Int64()%2 == 0 {
			return nil, errors.New("an RSA key must have 2048 to 4096 bits and a usual exponent")
		}
		return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
	case "EC":
		curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}[k.Crv]
		if curve == nil {
			return nil, fmt.Errorf("curve %.20q: must be P-256, P-384 or P-521", k.Crv)
		}
		x, errX := b64.DecodeString(k.X)
		y, errY := b64.DecodeString(k.Y)
		if size := (curve.Params().BitSize + 7) / 8; errX != nil || errY != nil || len(x) != size || len(y) != size {
			return nil, errors.New("the point of the key cannot be read")
		}
		return ecdsa.ParseUncompressedPublicKey(curve, append(append([]byte{4}, x...), y...))
	case "OKP":
		x, err := b64.DecodeString(k.X)
		if k.Crv != "Ed25519" || err != nil || len(x) != ed25519.PublicKeySize {
			return nil, errors.New("a key of type OKP must be of curve Ed25519")
		}
		return ed25519.PublicKey(x), nil
	}
	return nil, fmt.Errorf("key type %.20q: must be RSA, EC or OKP", k.Kty)
}

// thumbprint names a key (RFC 7638).
func (k jwk) thumbprint() string {
	var text string
	switch k.Kty {
	case "RSA":
		text = fmt.Sprintf(`{"e":%q,"kty":"RSA","n":%q}`, k.E, k.N)
	case "EC":
		text = fmt.Sprintf(`{"crv":%q,"kty":"EC","x":%q,"y":%q}`, k.Crv, k.X, k.Y)
	default:
		text = fmt.Sprintf(`{"crv":%q,"kty":"OKP","x":%q}`, k.Crv, k.X)
	}
	sum := sha256.Sum256([]byte(text))
	return b64.EncodeToString(sum[:])
}

// verify checks a signature by an algorithm of RFC 7518, section 3, or of RFC 8037.
func verify(key crypto.PublicKey, alg string, signed, signature []byte) error {
	bad := fmt.Errorf("signature algorithm %.20q does not fit the key; use RS256, ES256, ES384, ES512 or EdDSA", alg)
	wrong := errors.New("the signature is wrong")
	switch k := key.(type) {
	case *rsa.PublicKey:
		if alg != "RS256" {
			return bad
		}
		sum := sha256.Sum256(signed)
		if rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], signature) != nil {
			return wrong
		}
	case *ecdsa.PublicKey:
		fits := map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()}
		hash := map[string]crypto.Hash{"ES256": crypto.SHA256, "ES384": crypto.SHA384, "ES512": crypto.SHA512}[alg]
		if fits[alg] != k.Curve {
			return bad
		}
		h := hash.New()
		h.Write(signed)
		if size := (k.Curve.Params().BitSize + 7) / 8; len(signature) != 2*size ||
			!ecdsa.Verify(k, h.Sum(nil), new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])) {
			return wrong
		}
	case ed25519.PublicKey:
		if alg != "EdDSA" {
			return bad
		}
		if !ed25519.Verify(k, signed, signature) {
			return wrong
		}
	default:
		return bad
	}
	return nil
}

// message is a request that was signed (RFC 8555, 6.2).
type message struct {
	// kid is the URL of the account, or key the key itself: one of both is set.
	kid string
	key *jwk

	alg       string
	nonce     string
	url       string
	payload   []byte
	signed    []byte
	signature []byte
}

// read reads the body of a request. Its signature is not checked yet.
func readMessage(w http.ResponseWriter, r *http.Request) (m message, p *problem) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/jose+json" {
		return m, fail(http.StatusUnsupportedMediaType, "malformed", "a request is of type application/jose+json")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return m, fail(http.StatusRequestEntityTooLarge, "malformed", "a request has at most %d bytes", maxBody)
	}
	return parse(body)
}

func parse(body []byte) (m message, p *problem) {
	malformed := func(what string) (message, *problem) {
		return message{}, fail(http.StatusBadRequest, "malformed", "the request is no flattened JWS of RFC 8555, section 6.2: %s", what)
	}
	var outer struct {
		Protected, Payload, Signature string
		Header                        json.RawMessage
		Signatures                    json.RawMessage
	}
	if err := json.Unmarshal(body, &outer); err != nil || outer.Header != nil || outer.Signatures != nil {
		return malformed("protected, payload and signature, and nothing else")
	}
	protected, err := b64.DecodeString(outer.Protected)
	if err != nil {
		return malformed("protected is not base64url")
	}
	var header struct {
		Alg, Nonce, URL, Kid string
		JWK                  *jwk
		Crit                 json.RawMessage
	}
	if err := json.Unmarshal(protected, &header); err != nil || header.Crit != nil {
		return malformed("protected has alg, nonce, url and one of jwk and kid")
	}
	if (header.JWK == nil) == (header.Kid == "") {
		return malformed("exactly one of jwk and kid")
	}
	if m.payload, err = b64.DecodeString(outer.Payload); err != nil {
		return malformed("payload is not base64url")
	}
	if m.signature, err = b64.DecodeString(outer.Signature); err != nil {
		return malformed("signature is not base64url")
	}
	m.kid, m.key, m.alg, m.nonce, m.url = header.Kid, header.JWK, header.Alg, header.Nonce, header.URL
	m.signed = []byte(outer.Protected + "." + outer.Payload)
	return m, nil
}

// check checks the signature by a key.
func (m message) check(k jwk) *problem {
	key, err := k.key()
	if err != nil {
		return fail(http.StatusBadRequest, "badPublicKey", "%v", err)
	}
	if err := verify(key, m.alg, m.signed, m.signature); err != nil {
		kind := "malformed"
		if err.Error() != "the signature is wrong" {
			kind = "badSignatureAlgorithm"
		}
		return fail(http.StatusBadRequest, kind, "%v", err)
	}
	return nil
}

const (
	nonceLife = 10 * time.Minute
	maxNonces = 50_000
)

// nonces are good once, for a while, and until a restart. Those that nobody has used cost nothing.
type nonces struct {
	mu     sync.Mutex
	secret [32]byte
	used   map[string]time.Time // and when it would have ended
}

func (n *nonces) reset() {
	_, _ = rand.Read(n.secret[:]) // it never fails
	n.used = map[string]time.Time{}
}

func (n *nonces) make(now time.Time) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.used == nil {
		n.reset()
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(now.Unix()))
	random := make([]byte, 12)
	_, _ = rand.Read(random)
	b = append(b, random...)
	return b64.EncodeToString(append(b, n.mac(b)...))
}

func (n *nonces) mac(b []byte) []byte {
	h := hmac.New(sha256.New, n.secret[:])
	h.Write(b)
	return h.Sum(nil)[:16]
}

// use says whether a nonce is good, and makes it bad.
func (n *nonces) use(nonce string, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	b, err := b64.DecodeString(nonce)
	if err != nil || len(b) != 36 || n.used == nil || !hmac.Equal(b[20:], n.mac(b[:20])) {
		return false
	}
	end := time.Unix(int64(binary.BigEndian.Uint64(b)), 0).Add(nonceLife)
	if _, used := n.used[nonce]; used || now.After(end) || end.Sub(now) > 2*nonceLife {
		return false
	}
	if len(n.used) >= maxNonces {
		for used, end := range n.used {
			if now.After(end) {
				delete(n.used, used)
			}
		}
		if len(n.used) >= maxNonces {
			n.reset() // all that are out are bad from now on; clients ask for another (RFC 8555, 6.5)
			return false
		}
	}
	n.used[nonce] = end
	return true
}
