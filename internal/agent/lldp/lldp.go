// Package lldp hears which switch port a network interface is plugged into (IEEE 802.1AB). It only
// listens: nothing is ever sent.
package lldp

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/contract/wire"
)

// TLV types (802.1AB-2016, table 8-1).
const (
	tlvEnd        = 0
	tlvChassisID  = 1
	tlvPortID     = 2
	tlvTTL        = 3
	tlvPortDesc   = 4
	tlvSystemName = 5
	tlvOrg        = 127
)

// Parse reads an LLDP data unit, the payload of an Ethernet frame of type 0x88CC. The chassis ID, port
// ID and TTL must come first and in this order; unknown TLVs are skipped.
func Parse(b []byte) (wire.LLDP, error) {
	var n wire.LLDP
	for i := 0; ; i++ {
		if len(b) < 2 {
			if i < 3 {
				return n, errors.New("LLDP: ends before its mandatory parts")
			}
			return n, nil // some switches leave the end mark out
		}
		head := binary.BigEndian.Uint16(b)
		kind, size := int(head>>9), int(head&0x1FF)
		if len(b) < 2+size {
			return n, fmt.Errorf("LLDP: part %d of type %d claims %d bytes, %d are left", i+1, kind, size, len(b)-2)
		}
		value := b[2 : 2+size]
		b = b[2+size:]
		if mandatory := [...]int{tlvChassisID, tlvPortID, tlvTTL}; i < 3 && kind != mandatory[i] {
			return n, fmt.Errorf("LLDP: part %d has type %d, want %d", i+1, kind, mandatory[i])
		}
		switch kind {
		case tlvEnd:
			return n, nil
		case tlvChassisID:
			n.ChassisID = id(value, 4, 5)
		case tlvPortID:
			n.PortID = id(value, 3, 4)
		case tlvPortDesc:
			n.PortDesc = termtext.Line(string(value), 0)
		case tlvSystemName:
			n.SystemName = termtext.Line(string(value), 0)
		case tlvOrg:
			// 802.1 organisation, subtype 1: the port's own VLAN.
			if len(value) >= 6 && value[0] == 0x00 && value[1] == 0x80 && value[2] == 0xC2 && value[3] == 1 {
				n.VLAN = int(binary.BigEndian.Uint16(value[4:]))
			}
		}
	}
}

// id reads a chassis or port ID: a subtype byte, then a MAC, an address or a text. The two tables of
// subtypes number MAC and network address differently.
func id(b []byte, mac, addr byte) string {
	if len(b) < 2 {
		return ""
	}
	value := b[1:]
	switch {
	case b[0] == mac && len(value) == 6:
		return net.HardwareAddr(value).String()
	case b[0] == addr && len(value) > 1:
		if a, ok := netip.AddrFromSlice(value[1:]); ok {
			return a.String()
		}
		return hex.EncodeToString(value)
	}
	return termtext.Line(string(value), 0)
}
