package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

const digestPrefix = "sha256:"

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return digestPrefix + hex.EncodeToString(sum[:])
}

func digestSum(h hash.Hash) string { return digestPrefix + hex.EncodeToString(h.Sum(nil)) }

func validDigest(s string) error {
	_, err := digestHex(s)
	return err
}

// digestHex returns the hexadecimal part of a digest. Nothing that passes can leave a directory.
func digestHex(s string) (string, error) {
	digits, ok := strings.CutPrefix(s, digestPrefix)
	if !ok || len(digits) != hex.EncodedLen(sha256.Size) || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", fmt.Errorf("digest %.80q is not \"sha256:\" and 64 lower-case hexadecimal digits", s)
	}
	return digits, nil
}
