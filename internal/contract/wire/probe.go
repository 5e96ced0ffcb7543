package wire

import (
	"crypto/sha256"
	"net"
	"strings"
)

// probePrefix begins the hardware addresses of `coldrack doctor --segment`, which acts as a machine that boots. They are locally
// administered. A server answers them as it would a machine that it does not know, and keeps nothing of them: no lease, no Machine, no place
// among those that boot.
const probePrefix = "02:c0:1d:"

// ProbeMAC is the hardware address with which a segment is probed by an interface with the address own: always the same, so that
// servers that keep a record of each client keep one.
func ProbeMAC(own net.HardwareAddr) net.HardwareAddr {
	sum := sha256.Sum256(own)
	return net.HardwareAddr{0x02, 0xc0, 0x1d, sum[0], sum[1], sum[2]}
}

// IsProbe says whether a MAC, in lower case with colons, is one of ProbeMAC.
func IsProbe(mac string) bool { return strings.HasPrefix(mac, probePrefix) }
