package bmc

import (
	"bytes"
	"testing"
)

// FuzzGuard: whatever comes, before a session and in one, is passed on or dropped, and nothing panics. A packet that the BMC did
// not make is never passed on in a session.
func FuzzGuard(f *testing.F) {
	f.Add([]byte{6, 0, 0xff, 7, 6, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 4})
	f.Add([]byte{6, 0, 0xff, 7, 6, 0xc0, 0xa3, 0xa2, 0xa1, 0xa0, 1, 0, 0, 0, 32, 0})
	f.Add([]byte{6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0x81, 0x1c, 0x63, 0x20, 0x04, 0x38, 0, 1, 0x97, 4, 3, 0, 0, 0, 0, 0})
	rakp1 := append(make([]byte, 28), "operator"...)
	rakp1[27] = 8
	f.Fuzz(func(t *testing.T, packet []byte) {
		for _, algorithms := range [][3]byte{{algorithmSHA1, integritySHA1, encryptionAES}, {algorithmSHA256, integritySHA256, encryptionAES}} {
			before := &guard{password: "s3cret", algorithms: algorithms, rakp1: rakp1}
			before.passes(bytes.Clone(packet))
			in := &guard{password: "s3cret", algorithms: algorithms, rakp1: rakp1, keys: newSessionKeys(algorithms, "s3cret", rakp1, make([]byte, 40))}
			if in.passes(bytes.Clone(packet)) && len(packet) > 5 && packet[5]&0x3f == 0 {
				t.Errorf("a forged packet passes: %x", packet)
			}
		}
	})
}
