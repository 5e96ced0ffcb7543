package dhcp

import (
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// besideTheirs works on a message to port 67 in ModeProxy. Only who boots from the network is answered, and only with what to boot. All else is
// between the client and the site's own server, also what it says to us: a lease that we gave before the mode was changed ends in silence,
// and the client asks everybody.
func (x *exchange) besideTheirs() {
	switch x.message.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		if !x.query.boots() || x.admit != nil && !x.admit(x.query) {
			return
		}
		if x.direct(dhcpv4.MessageTypeOffer, netip.AddrPort{}) {
			x.observe(Directed, netip.Addr{}, "told what to boot; the address is another server's to give")
			x.firmwareAsked()
		}
	case dhcpv4.MessageTypeRequest:
		server := optionAddr(x.message, dhcpv4.OptionServerIdentifier)
		address := optionAddr(x.message, dhcpv4.OptionRequestedIPAddress)
		if address.IsValid() && server.IsValid() && !x.isOurs(server) && x.subnet.CIDR.Contains(address) {
			x.heard(server)
			x.firmwareTook(address, server)
			x.observe(Addressed, address, "takes %s from the DHCP server %s", address, server)
		}
	}
}

// boots tells whether a client boots from the network.
func (q Query) boots() bool { return q.PXE || q.HTTP || q.IPXE }

// clientAddress is the address that a client of BootPort has. Some firmware leaves it to the IP header.
func (x *exchange) clientAddress() netip.Addr {
	if ciaddr := toNetip(x.message.ClientIPAddr); ciaddr.IsValid() && !ciaddr.IsUnspecified() {
		return ciaddr
	}
	return x.in.source
}

// bootServer works on a message to BootPort: a client that has its address asks what to boot, in ModeProxy, or in ModeServer although it
// was told already. Firmware says REQUEST, other programs INFORM.
func (x *exchange) bootServer() {
	kind := x.message.MessageType()
	if kind != dhcpv4.MessageTypeRequest && kind != dhcpv4.MessageTypeInform || !x.query.boots() {
		return
	}
	if server := optionAddr(x.message, dhcpv4.OptionServerIdentifier); server.IsValid() && !x.isOurs(server) {
		return
	}
	// The answer goes there: it must not be all of this network. locate has seen that it is in it.
	address := x.clientAddress()
	if cidr := x.subnet.CIDR; address == broadcast(cidr) || address == cidr.Masked().Addr() {
		x.count.malformed.Add(1)
		return
	}
	port := x.in.port
	if port == 0 {
		port = ClientPort
	}
	if x.direct(dhcpv4.MessageTypeAck, netip.AddrPortFrom(address, port)) {
		x.observe(BootAsked, address, "asked for its boot file on port %d", BootPort)
		x.heeded("asked on port 4011")
	}
}

// direct tells a client what to boot and nothing else; false: there is nothing for it. Without an address to answer to, the answer goes to the
// relay or to everyone on the segment.
func (x *exchange) direct(kind dhcpv4.MessageType, to netip.AddrPort) bool {
	file, ok := x.backend.BootFile(x.subnet.CIDR, x.query)
	if !ok {
		return false
	}
	a := answer{kind: kind, server: x.query.Server, subnet: x.subnet, boot: &file, proxy: true, shape: x.shape()}
	out := outgoing{payload: encode(x.message, x.query, a), from: x.query.Server, to: to, boot: to.IsValid()}
	switch {
	case to.IsValid():
	case x.query.Relay.IsValid():
		out.to = netip.AddrPortFrom(x.query.Relay, ServerPort)
	default:
		out.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), ClientPort)
	}
	x.transmit(kind, out)
	return true
}
