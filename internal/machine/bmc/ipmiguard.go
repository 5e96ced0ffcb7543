package bmc

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"net"

	"github.com/bougou/go-ipmi/pkg/types"
)

// guard is the socket of an IPMI session. It passes on only packets that the library can read without harm: go-ipmi 0.9.1
// does not check who made a packet, takes algorithms that it did not ask for, and panics on what makes no sense, in goroutines of
// its own. Numbers of sections are those of the IPMI 2.0 specification.
type guard struct {
	net.Conn
	password string

	// Known from the session's beginning as it passes by: what was asked for, the random numbers, and the keys.
	algorithms [3]byte // authentication, integrity, confidentiality
	rakp1      []byte
	keys       *sessionKeys
}

// guardDialer makes the library use guards.
type guardDialer struct{ password string }

// Dial implements proxy.Dialer.
func (d guardDialer) Dial(network, address string) (net.Conn, error) {
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	return &guard{Conn: conn, password: d.password}, nil
}

// Offsets and types of RMCP+ packets (section 13.6).
const (
	rmcpPlus        = 6
	headerLength    = 16
	typeOpenRequest = 0x10
	typeOpenAnswer  = 0x11
	typeRAKP1       = 0x12
	typeRAKP2       = 0x13
	typeRAKP4       = 0x15
	bitEncrypted    = 0x80
	bitAuthentic    = 0x40
	algorithmSHA1   = 1
	algorithmSHA256 = 3
	integritySHA1   = 1
	integritySHA256 = 4
	encryptionAES   = 1
)

func (g *guard) Write(packet []byte) (int, error) {
	if kind, payload, ok := session20(packet); ok {
		switch {
		case kind == typeOpenRequest && len(payload) >= 32:
			g.algorithms, g.keys = [3]byte{payload[12], payload[20], payload[28]}, nil
		case kind == typeRAKP1:
			g.rakp1 = append([]byte{}, payload...)
		}
	}
	return g.Conn.Write(packet)
}

func (g *guard) Read(b []byte) (int, error) {
	for {
		n, err := g.Conn.Read(b)
		if err != nil || g.passes(b[:n]) {
			return n, err
		}
	}
}

// session20 splits a packet of RMCP+; ok is false for every other.
func session20(packet []byte) (kind byte, payload []byte, ok bool) {
	if len(packet) < headerLength || packet[0] != 6 || packet[3] != 7 || packet[4] != rmcpPlus {
		return 0, nil, false
	}
	end := headerLength + int(binary.LittleEndian.Uint16(packet[14:16]))
	if end > len(packet) {
		return 0, nil, false
	}
	return packet[5], packet[headerLength:end], true
}

// passes says whether the library may see a packet.
func (g *guard) passes(packet []byte) (pass bool) {
	defer func() {
		if recover() != nil {
			pass = false // the library's own reader gave up
		}
	}()
	if len(packet) < 5 {
		return false
	}
	var parsed types.Rmcp
	if parsed.Unpack(packet) != nil {
		return false
	}
	if packet[4] != rmcpPlus {
		// The answer to the one question of IPMI 1.5, before there is a session.
		return g.keys == nil && parsed.Session15 != nil && new(types.IPMIResponse).Unpack(parsed.Session15.Payload) == nil
	}
	kind, payload, ok := session20(packet)
	switch {
	case !ok:
		return false
	case kind == typeOpenAnswer, kind == typeRAKP2, kind == typeRAKP4:
		return len(payload) >= 2 && (payload[1] != 0 || g.begins(kind, payload)) // a refusal may be no longer than its status
	case kind == bitEncrypted|bitAuthentic:
		return g.keys != nil && g.keys.made(packet, len(payload)) && g.keys.readable(payload)
	}
	return false
}

// begins says whether a packet leads to the session that was asked for, with these algorithms and no others.
func (g *guard) begins(kind byte, payload []byte) bool {
	switch kind {
	case typeOpenAnswer:
		return len(payload) >= 36 && g.algorithms == [3]byte{payload[16], payload[24], payload[32]}
	case typeRAKP2:
		if len(payload) < 40 {
			return false
		}
		g.keys = newSessionKeys(g.algorithms, g.password, g.rakp1, payload)
		return g.keys != nil
	}
	return len(payload) >= 8
}

// sessionKeys are made of the password and both sides' random numbers (sections 13.31 and 13.32).
type sessionKeys struct {
	hash      func() hash.Hash
	integrity []byte
	code      int // bytes of the code of a packet
	cipher    cipher.Block
}

func newSessionKeys(algorithms [3]byte, password string, rakp1, rakp2 []byte) *sessionKeys {
	k := &sessionKeys{}
	switch algorithms {
	case [3]byte{algorithmSHA1, integritySHA1, encryptionAES}:
		k.hash, k.code = sha1.New, 12
	case [3]byte{algorithmSHA256, integritySHA256, encryptionAES}:
		k.hash, k.code = sha256.New, 16
	default:
		return nil
	}
	if len(rakp1) < 28 || len(rakp1) < 28+int(rakp1[27]) {
		return nil
	}
	sum := func(key []byte, parts ...[]byte) []byte {
		h := hmac.New(k.hash, key)
		for _, part := range parts {
			h.Write(part)
		}
		return h.Sum(nil)
	}
	// The console's random number, the BMC's, the role, and the name with its length.
	session := sum([]byte(password), rakp1[8:24], rakp2[8:24], rakp1[24:25], rakp1[27:28+int(rakp1[27])])
	constant := func(b byte) []byte {
		text := make([]byte, 20)
		for i := range text {
			text[i] = b
		}
		return text
	}
	k.integrity = sum(session, constant(1))
	block, err := aes.NewCipher(sum(session, constant(2))[:16])
	if err != nil {
		return nil
	}
	k.cipher = block
	return k
}

// made says whether the BMC made this packet: its code is over all from the type of authentication to the code itself (section 13.28.4).
func (k *sessionKeys) made(packet []byte, payload int) bool {
	start := len(packet) - k.code
	if start < headerLength+payload+2 {
		return false
	}
	h := hmac.New(k.hash, k.integrity)
	h.Write(packet[4:start])
	return hmac.Equal(h.Sum(nil)[:k.code], packet[start:])
}

// shortestAnswer is a response with its completion code and checksums (section 13.8).
const shortestAnswer = 7

// readable says whether what is encrypted has a length that its padding does not contradict (section 13.29).
func (k *sessionKeys) readable(payload []byte) bool {
	if len(payload) < 2*aes.BlockSize || len(payload)%aes.BlockSize != 0 {
		return false
	}
	text := make([]byte, len(payload)-aes.BlockSize)
	cipher.NewCBCDecrypter(k.cipher, payload[:aes.BlockSize]).CryptBlocks(text, payload[aes.BlockSize:])
	return len(text)-1-int(text[len(text)-1]) >= shortestAnswer
}

// rescue makes an error of a panic of the library in the goroutine of its caller.
func (d *ipmi) rescue(what string, err *error) {
	if p := recover(); p != nil {
		*err = &Error{Kind: Failed, Address: d.target.Address, What: what, Cause: fmt.Errorf("it sent what cannot be read (%v)", p)}
		d.drop()
	}
}
