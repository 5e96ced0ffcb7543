package capture

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"coldrack.dev/internal/netboot/boot"
)

// leastSize is what every client takes of a DHCP message, RFC 2131, section 2, without the headers of IP and UDP.
const leastSize = 576 - 28

var (
	optUUID = dhcpv4.GenericOptionCode(97)
	optIPXE = dhcpv4.GenericOptionCode(175)
)

func (x *explainer) dhcp(f frame) bool {
	m, err := dhcpv4.FromBytes(append(f.udp.payload[:len(f.udp.payload):len(f.udp.payload)], dhcpv4.OptionEnd.Code()))
	if err != nil {
		c := (*client)(nil)
		if f.source != nil {
			c = x.clients[f.source.String()]
		}
		x.event(c, "DHCP", "a message from %s that makes no sense: %s", f.udp.from, text(err.Error()))
		c.note("it sent a DHCP message that makes no sense")
		return true
	}
	if len(m.ClientHWAddr) == 0 {
		x.event(nil, "DHCP", "%s without a hardware address", m.MessageType())
		return true
	}
	c := x.client(m.ClientHWAddr.String())
	if c == nil {
		return true
	}
	if m.OpCode == dhcpv4.OpcodeBootRequest {
		x.asks(c, f, m)
	} else {
		x.answers(c, f, m)
	}
	return true
}

// firmware says what kind of client asks.
func firmware(m *dhcpv4.DHCPv4) (name string, ipxe, pxe, http bool) {
	class := text(string(m.Options.Get(dhcpv4.OptionClassIdentifier)))
	user := text(string(m.Options.Get(dhcpv4.OptionUserClassInformation)))
	pxe, http = strings.HasPrefix(class, "PXEClient"), strings.HasPrefix(class, "HTTPClient")
	ipxe = strings.Contains(user, "iPXE") || strings.Contains(user, "gPXE") || len(m.Options.Get(optIPXE)) > 0
	arch, told := uint16(0), false
	if b := m.Options.Get(dhcpv4.OptionClientSystemArchitectureType); len(b) >= 2 {
		arch, told = binary.BigEndian.Uint16(b), true
	} else if _, rest, ok := strings.Cut(class, "Client:Arch:"); ok {
		digits, _, _ := strings.Cut(rest, ":")
		if n, err := strconv.ParseUint(digits, 10, 16); err == nil {
			arch, told = uint16(n), true
		}
	}
	var parts []string
	if ipxe {
		parts = append(parts, "iPXE")
	}
	switch {
	case told:
		parts = append(parts, archName(arch))
	case pxe:
		parts = append(parts, "BIOS (no architecture told)")
	}
	switch {
	case http:
		parts = append(parts, "HTTP boot")
	case pxe && !ipxe:
		parts = append(parts, "PXE")
	case class != "" && !pxe:
		parts = append(parts, "class "+class)
	}
	if len(parts) == 0 {
		return "no network boot", ipxe, pxe, http
	}
	return strings.Join(parts, ", "), ipxe, pxe, http
}

func (x *explainer) asks(c *client, f frame, m *dhcpv4.DHCPv4) {
	name, ipxe, pxe, http := firmware(m)
	relayed := ""
	if relay := addr(m.GatewayIPAddr); relay.IsValid() && !relay.IsUnspecified() {
		relayed = fmt.Sprintf(", by the relay %s", relay)
	}
	if f.udp.to.Port() == 4011 {
		c.asked4011++
		x.named(c, addr(m.ClientIPAddr))
		x.event(c, "DHCP", "%s on port 4011: asks the boot server %s what to boot", m.MessageType(), f.udp.to.Addr())
		return
	}
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		c.discovers++
		c.firmware, c.lastIPXE = name, ipxe
		c.ipxe, c.pxe, c.http = c.ipxe || ipxe, c.pxe || pxe && !ipxe, c.http || http && !ipxe
		if id := m.Options.Get(optUUID); len(id) > 0 && (len(id) != 17 || id[0] != 0) {
			c.note("its option 97 (UUID) is malformed: %d bytes instead of 17", len(id))
		}
		size := ""
		if b := m.Options.Get(dhcpv4.OptionMaximumDHCPMessageSize); len(b) == 2 {
			size = fmt.Sprintf(", takes %d bytes", binary.BigEndian.Uint16(b))
		}
		x.event(c, "DHCP", "DISCOVER: %s, %d s after it began%s%s", name, m.NumSeconds, size, relayed)
	case dhcpv4.MessageTypeRequest:
		c.requests++
		server, address := addr(m.ServerIdentifier()), addr(m.RequestedIPAddress())
		if !address.IsValid() {
			address = addr(m.ClientIPAddr)
		}
		if !server.IsValid() || server.IsUnspecified() {
			x.event(c, "DHCP", "REQUEST: wants to keep %s%s", address, relayed)
			return
		}
		c.taken = nil
		for _, o := range c.offers {
			if o.server == server && o.address.IsValid() {
				c.taken = o
			}
		}
		if c.taken == nil {
			c.taken = c.offer(server, address)
		}
		x.event(c, "DHCP", "REQUEST: takes %s of the server %s%s", address, server, relayed)
	case dhcpv4.MessageTypeDecline:
		c.declined++
		a := addr(m.RequestedIPAddress())
		c.note("it declined %s: somebody else has that address", a)
		x.event(c, "DHCP", "DECLINE: %s is used by somebody else", a)
	case dhcpv4.MessageTypeRelease:
		x.event(c, "DHCP", "RELEASE: gives %s back", addr(m.ClientIPAddr))
	case dhcpv4.MessageTypeInform:
		c.informed++
		x.named(c, addr(m.ClientIPAddr))
		x.event(c, "DHCP", "INFORM: has %s, asks for settings", addr(m.ClientIPAddr))
	default:
		x.event(c, "DHCP", "%s", m.MessageType())
	}
}

// offer is what a server offers the client so far. A server may offer an address and, as a proxy, what to boot.
func (c *client) offer(server, address netip.Addr) *offer {
	for _, o := range c.offers {
		if o.server == server && o.address.IsValid() == address.IsValid() {
			o.address = address
			return o
		}
	}
	o := &offer{server: server, address: address}
	if len(c.offers) < mostPerThing {
		c.offers = append(c.offers, o)
	}
	return o
}

func bootFile(m *dhcpv4.DHCPv4) string {
	if option := m.BootFileNameOption(); option != "" {
		return text(option)
	}
	return text(m.BootFileName)
}

func (x *explainer) answers(c *client, f frame, m *dhcpv4.DHCPv4) {
	server := addr(m.ServerIdentifier())
	if !server.IsValid() {
		server = f.udp.from.Addr()
	}
	address := addr(m.YourIPAddr)
	if address.IsUnspecified() {
		address = netip.Addr{}
	}
	file := bootFile(m)
	what := "no boot file"
	if file != "" {
		what = "boot file " + file
		if next := addr(m.ServerIPAddr); next.IsValid() && !next.IsUnspecified() && !strings.Contains(file, "://") {
			what += " on " + next.String()
		}
	}
	class := text(string(m.Options.Get(dhcpv4.OptionClassIdentifier)))
	if class != "" {
		what += ", class " + class
	}
	size := len(f.udp.payload)
	if size > leastSize {
		what += fmt.Sprintf(", %d bytes", size)
	}
	switch kind := m.MessageType(); kind {
	case dhcpv4.MessageTypeOffer:
		o := c.offer(server, address)
		o.file, o.class, o.times = file, class, o.times+1
		o.direct = directs(m)
		o.large = max(o.large, size)
		if address.IsValid() {
			x.event(c, "DHCP", "OFFER of %s: the address %s, %s", server, address, what)
		} else {
			x.event(c, "DHCP", "OFFER of %s: no address (proxy), %s", server, what)
		}
	case dhcpv4.MessageTypeAck:
		if f.udp.from.Port() == 4011 || !address.IsValid() && c.asked4011 > c.told && c.informed == 0 {
			c.told++
			o := c.offer(server, netip.Addr{})
			o.file, o.class = file, class
			x.event(c, "DHCP", "ACK of the boot server %s: %s", server, what)
			return
		}
		c.acked++
		x.named(c, address)
		if c.taken != nil && c.taken.server == server && file != "" {
			c.taken.file = file
		}
		x.event(c, "DHCP", "ACK of %s: %s, %s", server, address, what)
	case dhcpv4.MessageTypeNak:
		c.naked++
		c.nak = fmt.Sprintf("%s refused", server)
		if why := text(string(m.Options.Get(dhcpv4.OptionMessage))); why != "" {
			c.nak += ": " + why
		}
		x.event(c, "DHCP", "NAK of %s", c.nak)
	default:
		x.event(c, "DHCP", "%s of %s: %s", kind, server, what)
	}
}

// directs says whether option 43 has the client load its file without asking port 4011 (PXE 2.1, table 2-1: discovery control, bit 3).
func directs(m *dhcpv4.DHCPv4) bool {
	vendor := dhcpv4.Options{}
	if vendor.FromBytes(m.Options.Get(dhcpv4.OptionVendorSpecificInformation)) != nil {
		return false
	}
	control := vendor.Get(dhcpv4.GenericOptionCode(6))
	return len(control) == 1 && control[0]&8 != 0
}

func addr(ip net.IP) netip.Addr {
	if four := ip.To4(); four != nil {
		return netip.AddrFrom4([4]byte(four))
	}
	return netip.Addr{}
}

// addressServers are those that offer the client an address.
func (c *client) addressServers() (all []*offer) {
	return slices.DeleteFunc(slices.Clone(c.offers), func(o *offer) bool { return !o.address.IsValid() })
}

// proxies tell what to boot, and give no address.
func (c *client) proxies() (all []*offer) {
	return slices.DeleteFunc(slices.Clone(c.offers), func(o *offer) bool { return o.address.IsValid() })
}

// archName is a client architecture (RFC 4578, section 2.1, and IANA's list) for a person.
func archName(arch uint16) string {
	names := map[uint16]string{boot.ArchBIOS: "BIOS", boot.ArchUEFI32: "32-bit UEFI", boot.ArchUEFI64: "UEFI x64", boot.ArchUEFI64Old: "UEFI x64",
		boot.ArchUEFIARM64: "UEFI arm64", boot.ArchHTTPUEFIBC: "UEFI x64", boot.ArchHTTPUEFI64: "UEFI x64", boot.ArchHTTPARM64: "UEFI arm64"}
	if name, ok := names[arch]; ok {
		return fmt.Sprintf("%s (%d)", name, arch)
	}
	return fmt.Sprintf("architecture %d", arch)
}
