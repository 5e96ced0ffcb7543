package dhcp

import (
	"testing"
)

// One iteration is a machine's four messages, without the network and the disk.
func BenchmarkExchange(b *testing.B) {
	big := rack()
	big.CIDR, big.Pool = mustPrefix("10.0.0.0/8"), Range{From: addr("10.1.0.0"), To: addr("10.100.0.0")}
	big.Router, big.DNS, big.NTP = addr("10.0.0.254"), addrs("10.0.0.253"), nil
	s := newStage(b, big)
	s.link.own = addrs("10.0.0.1")
	pxe := option(60, []byte("PXEClient:Arch:00007:UNDI:003016")...)
	ask := option(55, 1, 3, 6, 12, 15, 42, 66, 67)
	m := message(discover, 1, pxe, ask, option(93, 0, 7))
	r := message(request, 1, pxe, ask, option(93, 0, 7), ofServer("10.0.0.1"))
	b.ReportAllocs()
	n := uint32(0)
	for b.Loop() {
		n++
		mac := []byte{0x52, 0x54, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
		m.ClientHWAddr, r.ClientHWAddr = mac, mac
		s.link.sent, s.link.probes, s.stored, s.backend.seen = s.link.sent[:0], s.link.probes[:0], s.stored[:0], s.backend.seen[:0]
		s.engine.handle(incoming{link: s.link, payload: m.ToBytes(), destination: addr("255.255.255.255")})
		offer := s.link.sent[0].payload
		r.Options[50] = offer[16:20]
		s.engine.handle(incoming{link: s.link, payload: r.ToBytes(), destination: addr("255.255.255.255")})
		if len(s.link.sent) != 2 {
			b.Fatal(len(s.link.sent))
		}
	}
}
