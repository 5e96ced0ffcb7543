package dhcp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"coldrack.dev/internal/base/termtext"
)

// Options that the library has no name for.
const (
	optClientNDI        = dhcpv4.GenericOptionCode(94)
	optClientUUID       = dhcpv4.GenericOptionCode(97)
	optIPXE             = dhcpv4.GenericOptionCode(175)
	optOverload         = dhcpv4.GenericOptionCode(52)
	relayCircuitID      = dhcpv4.GenericOptionCode(1)
	relayRemoteID       = dhcpv4.GenericOptionCode(2)
	relayServerOverride = dhcpv4.GenericOptionCode(11) // RFC 5107
	relayLinkSelection  = dhcpv4.GenericOptionCode(5)  // RFC 3527
	pxeDiscoveryControl = dhcpv4.GenericOptionCode(6)  // within option 43
	pxeBootItem         = dhcpv4.GenericOptionCode(71) // within option 43
	ipxeNoProxyDHCP     = dhcpv4.GenericOptionCode(176)

	optRoutes       = 121 // RFC 3442
	optRoutesBefore = 249 // the same, as Windows asked for it first
)

var errMalformed = errors.New("malformed message")

// parse decodes a message of a client and checks what everything else relies on.
func parse(packet []byte) (*dhcpv4.DHCPv4, error) {
	// Some firmware forgets the End option; a second one does no harm.
	m, err := dhcpv4.FromBytes(append(packet[:len(packet):len(packet)], dhcpv4.OptionEnd.Code()))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	if m.OpCode != dhcpv4.OpcodeBootRequest {
		return nil, fmt.Errorf("%w: not a request", errMalformed)
	}
	// RFC 2132, section 9.3: options may go on in the fields "file" (1) and "sname" (2).
	if overload := m.Options.Get(optOverload); len(overload) == 1 {
		const sname, file, end = 44, 108, 236
		if overload[0]&1 != 0 {
			err = errors.Join(err, m.Options.FromBytes(packet[file:end]))
		}
		if overload[0]&2 != 0 {
			err = errors.Join(err, m.Options.FromBytes(packet[sname:file]))
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errMalformed, err)
		}
	}
	if m.MessageType() == dhcpv4.MessageTypeNone {
		return nil, fmt.Errorf("%w: BOOTP without DHCP's message type", errMalformed)
	}
	if mac := m.ClientHWAddr; len(mac) > 0 {
		if bytes.Equal(mac, make([]byte, len(mac))) {
			return nil, fmt.Errorf("%w: hardware address is zero", errMalformed)
		}
		if m.HWType == iana.HWTypeEthernet && mac[0]&1 != 0 {
			return nil, fmt.Errorf("%w: hardware address %s is a group's", errMalformed, mac)
		}
	} else if len(m.Options.Get(dhcpv4.OptionClientIdentifier)) == 0 {
		return nil, fmt.Errorf("%w: neither hardware address nor client identifier", errMalformed)
	}
	return m, nil
}

// clientKey names a client within a subnet: by its hardware address, and only without one by its
// client identifier. On its way from power-on to a running system a machine speaks DHCP as firmware, as iPXE
// and as an operating system, each with another client identifier; by RFC 2131, section 4.2, it would
// take three addresses of the pool.
func clientKey(m *dhcpv4.DHCPv4) string {
	if len(m.ClientHWAddr) > 0 {
		if m.HWType == iana.HWTypeEthernet {
			return m.ClientHWAddr.String()
		}
		return fmt.Sprintf("hw%d:%s", m.HWType, m.ClientHWAddr)
	}
	return "id:" + hex.EncodeToString(m.Options.Get(dhcpv4.OptionClientIdentifier))
}

func queryOf(m *dhcpv4.DHCPv4) Query {
	q := Query{
		MAC:         m.ClientHWAddr.String(),
		UUID:        clientUUID(m.Options.Get(optClientUUID)),
		Hostname:    text(m.Options.Get(dhcpv4.OptionHostName)),
		VendorClass: text(m.Options.Get(dhcpv4.OptionClassIdentifier)),
		UserClass:   userClass(m.Options.Get(dhcpv4.OptionUserClassInformation)),
		Arch:        ArchUnknown,
		Relay:       toNetip(m.GatewayIPAddr),
	}
	if arch := m.Options.Get(dhcpv4.OptionClientSystemArchitectureType); len(arch) >= 2 {
		q.Arch = binary.BigEndian.Uint16(arch)
	} else if _, named, ok := strings.Cut(q.VendorClass, "Client:Arch:"); ok {
		// Some firmware sends no option 93, or a cut one, and names its architecture here only (PXE 2.1, table 2-1).
		digits, _, _ := strings.Cut(named, ":")
		if n, err := strconv.ParseUint(digits, 10, 16); err == nil {
			q.Arch = uint16(n)
		}
	}
	q.PXE = strings.HasPrefix(q.VendorClass, "PXEClient")
	q.HTTP = strings.HasPrefix(q.VendorClass, "HTTPClient")
	own := m.Options.Get(optIPXE)
	q.IPXE, q.Told = q.UserClass == "iPXE" || len(own) > 0, parseIPXE(own)
	if q.Relay.IsUnspecified() {
		q.Relay = netip.Addr{}
	}
	if relay := relayOptions(m); relay != nil {
		q.CircuitID = hex.EncodeToString(relay.Get(relayCircuitID))
		q.RemoteID = hex.EncodeToString(relay.Get(relayRemoteID))
	}
	return q
}

// clientUUID reads option 97: a type byte, 0, and the 16 bytes as SMBIOS has them.
func clientUUID(b []byte) string {
	if len(b) != 17 || b[0] != 0 {
		return ""
	}
	id := uuid.UUID(b[1:])
	slices.Reverse(id[0:4])
	slices.Reverse(id[4:6])
	slices.Reverse(id[6:8])
	return id.String()
}

// userClass reads option 77. RFC 3004 wants lengths before its strings; iPXE and others send just a string.
func userClass(b []byte) string {
	var classes dhcpv4.Strings
	if len(b) > 0 && classes.FromBytes(b) == nil {
		return text([]byte(strings.Join(classes, ",")))
	}
	return text(b)
}

// relayOptions gives the sub-options of option 82, nil when there are none or they make no sense.
func relayOptions(m *dhcpv4.DHCPv4) dhcpv4.Options {
	raw := m.Options.Get(dhcpv4.OptionRelayAgentInformation)
	if len(raw) == 0 {
		return nil
	}
	sub := dhcpv4.Options{}
	if sub.FromBytes(raw) != nil {
		return nil
	}
	return sub
}

// serverOverride is the address under which a relay wants its clients to know the server, so that they renew through it (RFC 5107). It is the zero
// Addr when it wants nothing of the kind.
func serverOverride(m *dhcpv4.DHCPv4) netip.Addr {
	if a := toNetip(m.GatewayIPAddr); !a.IsValid() || a.IsUnspecified() {
		return netip.Addr{}
	}
	if b := relayOptions(m).Get(relayServerOverride); len(b) == 4 {
		return netip.AddrFrom4([4]byte(b))
	}
	return netip.Addr{}
}

// text makes a string from the network fit for names and logs.
func text(b []byte) string { return termtext.Mark(strings.TrimRight(string(b), "\x00"), 255) }

// toNetip gives the zero Addr for what is not an IPv4 address.
func toNetip(ip net.IP) netip.Addr {
	if ip4 := ip.To4(); ip4 != nil {
		return netip.AddrFrom4([4]byte(ip4))
	}
	return netip.Addr{}
}

// optionAddr reads an option that is one address.
func optionAddr(m *dhcpv4.DHCPv4, code dhcpv4.OptionCode) netip.Addr {
	if b := m.Options.Get(code); len(b) == 4 {
		if a := netip.AddrFrom4([4]byte(b)); !a.IsUnspecified() {
			return a
		}
	}
	return netip.Addr{}
}
