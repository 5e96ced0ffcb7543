package tftp

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// destination reads the local address from a packet's control messages. It is the zero Addr when
// there is none. unicast is false for a packet that was sent to a broadcast or multicast address.
func destination(control []byte) (local netip.Addr, unicast bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.Addr{}, true
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 12:
			// struct in_pktinfo: interface index, our address, the header's destination.
			ours := netip.AddrFrom4([4]byte(m.Data[4:8]))
			header := netip.AddrFrom4([4]byte(m.Data[8:12]))
			if ours.IsUnspecified() {
				return netip.Addr{}, true // Queued before askDestination; the kernel did not keep it.
			}
			return ours, ours == header
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 20:
			address := netip.AddrFrom16([16]byte(m.Data[:16])).Unmap()
			if address.IsLinkLocalUnicast() {
				index := int(binary.NativeEndian.Uint32(m.Data[16:20]))
				if ifi, err := net.InterfaceByIndex(index); err == nil {
					address = address.WithZone(ifi.Name)
				}
			}
			return address, !address.IsMulticast()
		}
	}
	return netip.Addr{}, true
}
