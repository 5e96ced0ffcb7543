// Package digest names content by its SHA-256, written "sha256:" and 64 lower-case hexadecimal digits, as OCI does.
package digest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

const prefix = "sha256:"

// Digest is the SHA-256 of some content.
type Digest [sha256.Size]byte

// Of is the digest of b.
func Of(b []byte) Digest { return sha256.Sum256(b) }

// Sum is the digest of what was written to h, which must be a SHA-256.
func Sum(h interface{ Sum([]byte) []byte }) Digest { return Digest(h.Sum(nil)) }

// Parse reads the written form. What it accepts is safe as part of a file name (see Hex).
func Parse(s string) (Digest, error) {
	var d Digest
	digits, ok := strings.CutPrefix(s, prefix)
	if !ok || len(digits) != hex.EncodedLen(len(d)) || strings.Trim(digits, "0123456789abcdef") != "" {
		return d, fmt.Errorf("digest %.80q is not \"sha256:\" and 64 lower-case hexadecimal digits", s)
	}
	_, err := hex.Decode(d[:], []byte(digits))
	return d, err
}

// Valid says whether s is the written form of a digest.
func Valid(s string) bool {
	_, err := Parse(s)
	return err == nil
}

func (d Digest) String() string { return prefix + d.Hex() }

// Hex is the digest without the name of its algorithm: the name of a blob's file, and the end of its URL.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// Hex is Digest.Hex of a written form that is known to be valid. It is empty for any other text.
func Hex(s string) string {
	d, err := Parse(s)
	if err != nil {
		return ""
	}
	return d.Hex()
}
