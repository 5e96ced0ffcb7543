package capture

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket/layers"
)

// frame is what is understood of a packet. One of the pointers is set.
type frame struct {
	source net.HardwareAddr // nil where the capture does not have it
	arp    *arp
	udp    *datagram
	tcp    *segment
}

type arp struct {
	reply            bool
	senderMAC        net.HardwareAddr
	sender, asks     netip.Addr
	probe, announces bool // RFC 5227: nobody's address asks; one tells of its own
}

type datagram struct {
	from, to netip.AddrPort
	payload  []byte
}

type segment struct {
	from, to           netip.AddrPort
	seq                uint32
	syn, ack, fin, rst bool
	payload            []byte
	length             int // of the payload on the wire; the capture may hold less
}

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherVLAN = 0x8100
	etherQinQ = 0x88a8
)

// parse takes a packet apart. It is false for what has nothing to do with a boot by IPv4, or is too short.
func parse(data []byte, link layers.LinkType) (f frame, ok bool) {
	var kind uint16
	switch link {
	case layers.LinkTypeEthernet:
		if len(data) < 14 {
			return f, false
		}
		f.source, kind, data = net.HardwareAddr(data[6:12]), binary.BigEndian.Uint16(data[12:]), data[14:]
	case layers.LinkTypeLinuxSLL: // tcpdump -i any
		if len(data) < 16 {
			return f, false
		}
		if binary.BigEndian.Uint16(data[4:]) == 6 {
			f.source = net.HardwareAddr(data[6:12])
		}
		kind, data = binary.BigEndian.Uint16(data[14:]), data[16:]
	case layers.LinkTypeLinuxSLL2:
		if len(data) < 20 {
			return f, false
		}
		if data[11] == 6 {
			f.source = net.HardwareAddr(data[12:18])
		}
		kind, data = binary.BigEndian.Uint16(data), data[20:]
	case layers.LinkTypeRaw, layers.LinkTypeIPv4, linkRawBSD:
		kind = etherIPv4
	default:
		return f, false
	}
	for range 2 { // a VLAN's tag, or two
		if kind != etherVLAN && kind != etherQinQ {
			break
		}
		if len(data) < 4 {
			return f, false
		}
		kind, data = binary.BigEndian.Uint16(data[2:]), data[4:]
	}
	switch kind {
	case etherARP:
		f.arp = parseARP(data)
		return f, f.arp != nil
	case etherIPv4:
		return f, f.ipv4(data)
	}
	return f, false
}

// linkRawBSD is how older captures mark bare IP packets.
const linkRawBSD = layers.LinkType(12)

func parseARP(b []byte) *arp {
	if len(b) < 28 || binary.BigEndian.Uint16(b[2:]) != etherIPv4 || b[4] != 6 || b[5] != 4 {
		return nil
	}
	a := &arp{senderMAC: net.HardwareAddr(b[8:14]), sender: netip.AddrFrom4([4]byte(b[14:18])), asks: netip.AddrFrom4([4]byte(b[24:28]))}
	switch binary.BigEndian.Uint16(b[6:]) {
	case 1:
		a.probe, a.announces = a.sender.IsUnspecified(), a.sender == a.asks
	case 2:
		a.reply = true
	default:
		return nil
	}
	return a
}

func (f *frame) ipv4(b []byte) bool {
	if len(b) < 20 || b[0]>>4 != 4 {
		return false
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || total < header || len(b) < header {
		return false
	}
	if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return false // a later fragment has no ports
	}
	from, to := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	protocol, onWire := b[9], total-header
	b = b[header:min(len(b), total)] // short frames are padded
	switch protocol {
	case 17:
		if len(b) < 8 {
			return false
		}
		length := min(max(int(binary.BigEndian.Uint16(b[4:])), 8), len(b))
		f.udp = &datagram{netip.AddrPortFrom(from, binary.BigEndian.Uint16(b)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[2:])), b[8:length]}
		return true
	case 6:
		if len(b) < 20 {
			return false
		}
		offset := int(b[12]>>4) * 4
		if offset < 20 || offset > len(b) {
			return false
		}
		flags := b[13]
		f.tcp = &segment{from: netip.AddrPortFrom(from, binary.BigEndian.Uint16(b)), to: netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[2:])),
			seq: binary.BigEndian.Uint32(b[4:]), fin: flags&1 != 0, syn: flags&2 != 0, rst: flags&4 != 0, ack: flags&16 != 0,
			payload: b[offset:], length: max(onWire-offset, 0)}
		return true
	}
	return false
}
