package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	etherLen = 14
	arpLen   = 28
)

var etherBroadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// udpFrame builds an Ethernet frame with a UDP datagram.
func udpFrame(from net.HardwareAddr, to net.HardwareAddr, source, destination netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 0, etherLen+ipUDP+len(payload))
	b = append(b, to...)
	b = append(b, from...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)

	ip := len(b)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(ipUDP+len(payload)))
	b = append(b, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
	b = append(b, source.Addr().AsSlice()...)
	b = append(b, destination.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(b[ip+10:], ^checksum(0, b[ip:ip+20]))

	udp := len(b)
	length := uint16(8 + len(payload))
	b = binary.BigEndian.AppendUint16(b, source.Port())
	b = binary.BigEndian.AppendUint16(b, destination.Port())
	b = binary.BigEndian.AppendUint16(b, length)
	b = append(b, 0, 0)
	b = append(b, payload...)
	// The pseudo header: both addresses, the protocol and the length.
	sum := checksum(uint32(unix.IPPROTO_UDP)+uint32(length), b[ip+12:ip+20])
	sum = ^checksum(uint32(sum), b[udp:])
	if sum == 0 {
		sum = 0xffff // zero would mean "no checksum"
	}
	binary.BigEndian.PutUint16(b[udp+6:], sum)
	return b
}

// checksum adds up 16-bit words in one's complement, RFC 1071.
func checksum(sum uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// udpPayload gives the payload of a frame that the filter has let through, nil when it is cut.
func udpPayload(frame []byte) []byte {
	if len(frame) < etherLen+20 {
		return nil
	}
	ip := frame[etherLen:]
	header := int(ip[0]&0x0f) * 4
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if header < 20 || total > len(ip) || total < header+8 {
		return nil
	}
	return ip[header+8 : total]
}

// arpProbe builds the question of RFC 5227, section 2.1.1: who has the address? It names no sender
// address, and so changes nobody's ARP cache.
func arpProbe(from net.HardwareAddr, address netip.Addr) []byte {
	b := make([]byte, 0, etherLen+arpLen)
	b = append(b, etherBroadcast...)
	b = append(b, from...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_ARP)
	b = append(b, 0, 1, 0x08, 0, 6, 4, 0, 1) // Ethernet, IPv4, request
	b = append(b, from...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, address.AsSlice()...)
}

// parseARPReply gives who says to have which address.
func parseARPReply(frame []byte) (address netip.Addr, holder net.HardwareAddr, ok bool) {
	if len(frame) < etherLen+arpLen || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_ARP {
		return netip.Addr{}, nil, false
	}
	arp := frame[etherLen:]
	if [8]byte(arp) != [8]byte{0, 1, 0x08, 0, 6, 4, 0, 2} {
		return netip.Addr{}, nil, false
	}
	return netip.AddrFrom4([4]byte(arp[14:18])), net.HardwareAddr(append([]byte(nil), arp[8:14]...)), true
}

// frameFilter lets ARP replies and the replies of DHCP servers through.
func frameFilter() ([]bpf.RawInstruction, error) {
	return bpf.Assemble([]bpf.Instruction{
		// An interface sees the frames of VLANs on it, too, with their tags beside them; they are for the VLANs' own interfaces.
		bpf.LoadExtension{Num: bpf.ExtVLANTag},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x0fff},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		/*  0 */ bpf.LoadAbsolute{Off: 12, Size: 2},
		/*  1 */ bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_ARP, SkipTrue: 2},
		/*  2 */ bpf.LoadAbsolute{Off: etherLen + 6, Size: 2},
		/*  3 */ bpf.JumpIf{Cond: bpf.JumpEqual, Val: 2, SkipTrue: 8, SkipFalse: 9},
		/*  4 */ bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: 8},
		/*  5 */ bpf.LoadAbsolute{Off: etherLen + 9, Size: 1},
		/*  6 */ bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 6},
		/*  7 */ bpf.LoadAbsolute{Off: etherLen + 6, Size: 2},
		/*  8 */ bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 4}, // a later fragment
		/*  9 */ bpf.LoadMemShift{Off: etherLen},
		/* 10 */ bpf.LoadIndirect{Off: etherLen, Size: 4},
		/* 11 */ bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: ServerPort<<16 | ClientPort, SkipTrue: 1},
		/* 12 */ bpf.RetConstant{Val: 2048},
		/* 13 */ bpf.RetConstant{Val: 0},
	})
}
