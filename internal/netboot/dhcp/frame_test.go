package dhcp

import (
	"net"
	"net/netip"
	"testing"
)

// FuzzFrame reads what a packet socket may give.
func FuzzFrame(f *testing.F) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	server, client := netip.MustParseAddrPort("192.0.2.1:67"), netip.MustParseAddrPort("192.0.2.2:68")
	datagram := udpFrame(mac, etherBroadcast, server, client, []byte("payload"))
	probe := arpProbe(mac, client.Addr())
	reply := append([]byte(nil), probe...)
	reply[etherLen+7] = 2
	for _, seed := range [][]byte{datagram, datagram[:30], probe, reply, {}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if payload := udpPayload(frame); len(payload) > len(frame) {
			t.Errorf("%d bytes of payload in a frame of %d", len(payload), len(frame))
		}
		if address, holder, ok := parseARPReply(frame); ok && (!address.Is4() || len(holder) != 6) {
			t.Errorf("%s has %s", holder, address)
		}
	})
}
