package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// answer is what a reply says beside what follows from the request.
type answer struct {
	kind     dhcpv4.MessageType
	address  netip.Addr // yiaddr; the zero Addr in a NAK and in the answer to INFORM
	server   netip.Addr
	subnet   Subnet
	hostname string
	boot     *BootFile
	options  []Option // of people
	message  string   // of a NAK
	proxy    bool     // nothing but what to boot: the client's address and settings come from another server
	shape    Shape
}

const (
	// ipUDP is the length of the headers around a DHCP message. The maximum message size of
	// option 57 counts them in.
	ipUDP = 20 + 8
	// leastMessageSize is what every client takes, RFC 2131, section 2.
	leastMessageSize = 576
	// mostMessageSize keeps answers in one Ethernet frame.
	mostMessageSize = 1500
)

// expendable lists options that are left out, the first one first, of an answer that is too long.
var expendable = []dhcpv4.OptionCode{
	dhcpv4.OptionBroadcastAddress, dhcpv4.OptionNTPServers, dhcpv4.OptionHostName, dhcpv4.OptionDomainName,
	dhcpv4.OptionTFTPServerName, optIPXE, optClientUUID, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue,
	dhcpv4.OptionDomainNameServer, dhcpv4.OptionVendorSpecificInformation,
}

// encode builds the reply to a request.
func encode(request *dhcpv4.DHCPv4, q Query, a answer) []byte {
	reply := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        request.HWType,
		TransactionID: request.TransactionID,
		Flags:         request.Flags,
		GatewayIPAddr: request.GatewayIPAddr,
		ClientHWAddr:  request.ClientHWAddr,
		Options:       dhcpv4.Options{},
	}
	o := reply.Options
	o.Update(dhcpv4.OptMessageType(a.kind))
	identifier := a.server
	if override := serverOverride(request); override.IsValid() {
		identifier = override
	}
	o.Update(dhcpv4.OptServerIdentifier(identifier.AsSlice()))
	// RFC 6842: the client identifier comes back. RFC 3046: so does the relay's information, as it was.
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionClientIdentifier, dhcpv4.OptionRelayAgentInformation} {
		if value := request.Options.Get(code); len(value) > 0 {
			o.Update(dhcpv4.OptGeneric(code, value))
		}
	}
	if a.kind == dhcpv4.MessageTypeNak {
		if a.message != "" {
			o.Update(dhcpv4.OptMessage(a.message))
		}
		if q.Relay.IsValid() {
			reply.SetBroadcast() // RFC 2131, section 4.3.2: the client has no address to be reached at
		}
		return reply.ToBytes()
	}
	if a.shape.Broadcast {
		reply.SetBroadcast() // a relay goes by it
	}
	reply.ClientIPAddr = request.ClientIPAddr // RFC 2131, table 3; zero in most
	if a.kind == dhcpv4.MessageTypeOffer {
		reply.ClientIPAddr = nil
	}
	if a.address.IsValid() {
		reply.YourIPAddr = a.address.AsSlice()
		lease := a.subnet.leaseTime()
		o.Update(dhcpv4.OptIPAddressLeaseTime(lease))
		o.Update(dhcpv4.OptRenewTimeValue((lease / 2).Truncate(time.Second)))
		o.Update(dhcpv4.OptRebindingTimeValue((lease * 7 / 8).Truncate(time.Second)))
	}
	if a.proxy {
		reply.SetBroadcast() // a client without an address hears nothing else
	} else {
		addSettings(o, request, a)
		addOptions(o, request, q, a)
	}
	if a.boot != nil {
		addBoot(reply, request, q, a)
	}
	limit := leastMessageSize
	if size := request.Options.Get(dhcpv4.OptionMaximumDHCPMessageSize); len(size) == 2 && !a.shape.Small {
		limit = min(max(limit, int(binary.BigEndian.Uint16(size))), mostMessageSize)
	}
	packet := reply.ToBytes()
	droppable := slices.Clone(expendable)
	for _, further := range a.options {
		droppable = append(droppable, dhcpv4.GenericOptionCode(further.Code))
	}
	for _, code := range droppable {
		if len(packet) <= limit-ipUDP {
			break
		}
		if o.Has(code) {
			o.Del(code)
			packet = reply.ToBytes()
		}
	}
	return packet
}

// addSettings adds what a client needs on its network. The mask and the router always go out: some
// PXE firmware does not ask for them and then fails without. The others go to who asks for them, or does not
// say what it wants.
func addSettings(o dhcpv4.Options, request *dhcpv4.DHCPv4, a answer) {
	wanted := request.Options.Get(dhcpv4.OptionParameterRequestList)
	wants := func(code dhcpv4.OptionCode) bool {
		return len(wanted) == 0 || slices.Contains(wanted, code.Code())
	}
	s := a.subnet
	o.Update(dhcpv4.OptSubnetMask(net.CIDRMask(s.CIDR.Bits(), 32)))
	if s.Router.IsValid() {
		o.Update(dhcpv4.OptRouter(s.Router.AsSlice()))
	}
	if wants(dhcpv4.OptionBroadcastAddress) {
		o.Update(dhcpv4.OptBroadcastAddress(broadcast(s.CIDR).AsSlice()))
	}
	if names := a.nameServers(); len(names) > 0 && wants(dhcpv4.OptionDomainNameServer) {
		o.Update(dhcpv4.OptDNS(netIPs(names)...))
	}
	if clocks := a.timeServers(); len(clocks) > 0 && wants(dhcpv4.OptionNTPServers) {
		o.Update(dhcpv4.OptNTPServers(netIPs(clocks)...))
	}
	if s.Domain != "" && wants(dhcpv4.OptionDomainName) {
		o.Update(dhcpv4.OptDomainName(s.Domain))
	}
	if a.hostname != "" && wants(dhcpv4.OptionHostName) {
		o.Update(dhcpv4.OptHostName(a.hostname))
	}
}

// nameServers are this server alone where it answers: clients take several for servers that know the same, and others do not know the
// names of machines.
func (a answer) nameServers() []netip.Addr {
	if a.subnet.OwnDNS {
		return []netip.Addr{a.server}
	}
	return a.subnet.DNS
}

func (a answer) timeServers() []netip.Addr {
	if a.subnet.OwnNTP && !slices.Contains(a.subnet.NTP, a.server) {
		return slices.Insert(slices.Clone(a.subnet.NTP), 0, a.server)
	}
	return a.subnet.NTP
}

// addOptions adds the options of people. Vendor options are for installed systems: to firmware, option 43 is PXE's.
func addOptions(o dhcpv4.Options, request *dhcpv4.DHCPv4, q Query, a answer) {
	wanted := request.Options.Get(dhcpv4.OptionParameterRequestList)
	for _, further := range a.options {
		code := dhcpv4.GenericOptionCode(further.Code)
		vendor := further.Code == dhcpv4.OptionVendorSpecificInformation.Code()
		if vendor && q.boots() || len(wanted) > 0 && !slices.Contains(wanted, further.Code) {
			continue
		}
		value := further.Value
		if further.Code == optRoutes || further.Code == optRoutesBefore {
			value = withDefaultRoute(value, a.subnet.Router)
		}
		o.Update(dhcpv4.OptGeneric(code, value))
	}
}

// withDefaultRoute adds the router to static routes that have no default route: who takes those takes no router beside them (RFC 3442).
func withDefaultRoute(value []byte, router netip.Addr) []byte {
	if !router.IsValid() {
		return value
	}
	for rest := value; len(rest) > 0; {
		length := 1 + (int(rest[0])+7)/8 + 4
		if rest[0] == 0 || len(rest) < length {
			return value
		}
		rest = rest[length:]
	}
	return append(append(slices.Clone(value), 0), router.AsSlice()...)
}

// addBoot adds the boot file, in the form that the client's kind of firmware understands.
func addBoot(reply, request *dhcpv4.DHCPv4, q Query, a answer) {
	next := a.boot.NextServer
	if !next.IsValid() {
		next = a.server
	}
	reply.ServerIPAddr = next.AsSlice()
	o := reply.Options
	wanted := request.Options.Get(dhcpv4.OptionParameterRequestList)
	asks := func(code dhcpv4.OptionCode) bool { return slices.Contains(wanted, code.Code()) }

	// The field "file" is read by all firmware and holds 127 bytes and a zero. Option 67 is for
	// longer names, for who asks for it, and for UEFI HTTP boot.
	const fileField = 127
	file := a.boot.File
	if len(file) <= fileField {
		reply.BootFileName = file
	}
	if len(file) > fileField || q.HTTP || asks(dhcpv4.OptionBootfileName) {
		if q.PXE && !q.IPXE {
			// Some PXE ROMs take the option for a zero-ended string and run on into the next one.
			file += "\x00"
		}
		o.Update(dhcpv4.OptBootFileName(file))
	}
	if asks(dhcpv4.OptionTFTPServerName) && !strings.Contains(file, "://") {
		o.Update(dhcpv4.OptTFTPServerName(next.String()))
	}
	switch {
	case q.HTTP:
		// A UEFI HTTP client takes no offer without its own class in it.
		o.Update(dhcpv4.OptClassIdentifier("HTTPClient"))
	case q.PXE && !q.IPXE, a.proxy: // iPXE takes an offer with it for a proxyDHCP server's, and one without for no such
		o.Update(dhcpv4.OptClassIdentifier("PXEClient"))
		if id := request.Options.Get(optClientUUID); len(id) > 0 {
			o.Update(dhcpv4.OptGeneric(optClientUUID, id)) // PXE 2.1, table 2-2: as it came
		}
	}
	switch {
	case q.IPXE && !a.proxy:
		// Do not wait for a proxyDHCP server: there is none, and iPXE would lose seconds at each boot.
		o.Update(dhcpv4.OptGeneric(optIPXE, []byte{ipxeNoProxyDHCP.Code(), 1, 1}))
	case q.PXE:
		// Discovery control 8: just load the boot file. Without it some firmware goes looking for
		// a boot server on port 4011.
		vendor := []byte{pxeDiscoveryControl.Code(), 1, 8}
		if item := bootItem(request); item != nil {
			vendor = append([]byte{pxeBootItem.Code(), byte(len(item))}, item...)
		}
		o.Update(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, append(vendor, dhcpv4.OptionEnd.Code())))
	}
}

// bootItem is what a client that asks a boot server has chosen from a menu (PXE 2.1, section 2.2.4), nil when it has not. The server has to
// repeat it.
func bootItem(request *dhcpv4.DHCPv4) []byte {
	vendor := dhcpv4.Options{}
	if vendor.FromBytes(request.Options.Get(dhcpv4.OptionVendorSpecificInformation)) != nil {
		return nil
	}
	if item := vendor.Get(pxeBootItem); len(item) == 4 {
		return item
	}
	return nil
}

func netIPs(addresses []netip.Addr) []net.IP {
	ips := make([]net.IP, len(addresses))
	for i, a := range addresses {
		ips[i] = a.AsSlice()
	}
	return ips
}
