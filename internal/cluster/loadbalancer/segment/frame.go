package segment

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
)

// An ARP packet for Ethernet and IPv4 (RFC 826).
const (
	arpLen     = 28
	arpRequest = 1
	arpReply   = 2
)

var arpHeader = []byte{0, 1, 8, 0, 6, 4} // Ethernet, IPv4, and the lengths of their addresses

// broadcast is every host of a segment.
var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

type arp struct {
	operation      uint16
	senderHardware net.HardwareAddr
	sender         netip.Addr
	targetHardware net.HardwareAddr
	target         netip.Addr
}

func (p arp) encode() []byte {
	b := append(make([]byte, 0, arpLen), arpHeader...)
	b = binary.BigEndian.AppendUint16(b, p.operation)
	b = append(b, p.senderHardware...)
	b = append(b, p.sender.AsSlice()...)
	b = append(b, p.targetHardware...)
	return append(b, p.target.AsSlice()...)
}

// parseARP takes what an Ethernet frame carried, padding included.
func parseARP(b []byte) (arp, bool) {
	if len(b) < arpLen || !bytes.Equal(b[:6], arpHeader) {
		return arp{}, false
	}
	return arp{
		operation:      binary.BigEndian.Uint16(b[6:]),
		senderHardware: net.HardwareAddr(bytes.Clone(b[8:14])), sender: netip.AddrFrom4([4]byte(b[14:18])),
		targetHardware: net.HardwareAddr(bytes.Clone(b[18:24])), target: netip.AddrFrom4([4]byte(b[24:28])),
	}, true
}

// gratuitous are the two forms in which hosts accept news of an address: a request for itself, and a reply that nobody asked
// for (RFC 5227, section 3). Some take only one of them.
func gratuitous(address netip.Addr, own net.HardwareAddr) [][]byte {
	return [][]byte{
		arp{arpRequest, own, address, make(net.HardwareAddr, 6), address}.encode(),
		arp{arpReply, own, address, broadcast, address}.encode(),
	}
}

// Neighbour discovery (RFC 4861, section 4).
const (
	typeSolicitation  = 135
	typeAdvertisement = 136
	optionTarget      = 2
	flagSolicited     = 1 << 6
	flagOverride      = 1 << 5
	solicitationLen   = 24
	// hopLimit shows that a message was not forwarded.
	hopLimit = 255
)

// allNodes is every host of a segment.
var allNodes = netip.MustParseAddr("ff02::1")

// solicitedNode is the group in which an address is asked for (RFC 4291, section 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	address := a.As16()
	copy(group[13:], address[13:])
	return netip.AddrFrom16(group)
}

// advertisement without its checksum, which the kernel fills in.
func advertisement(address netip.Addr, own net.HardwareAddr, solicited bool) []byte {
	b := make([]byte, solicitationLen, solicitationLen+8)
	b[0], b[4] = typeAdvertisement, flagOverride
	if solicited {
		b[4] |= flagSolicited
	}
	copy(b[8:], address.AsSlice())
	return append(append(b, optionTarget, 1), own...)
}

// parseSolicitation returns the address that is asked for.
func parseSolicitation(b []byte) (netip.Addr, bool) {
	if len(b) < solicitationLen || b[0] != typeSolicitation || b[1] != 0 {
		return netip.Addr{}, false
	}
	target := netip.AddrFrom16([16]byte(b[8:24]))
	return target, !target.IsMulticast() && !target.Is4In6()
}
