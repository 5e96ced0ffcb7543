package dhcp6

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

func status(code iana.StatusCode, message string) dhcpv6.Option {
	return &dhcpv6.OptStatusCode{StatusCode: code, StatusMessage: message}
}

// named are the addresses that an IA of the client names.
func named(ia *dhcpv6.OptIANA) []netip.Addr {
	var all []netip.Addr
	for _, o := range ia.Options.Addresses() {
		if a := toNetip(o.IPv6Addr); a.IsValid() && !a.IsUnspecified() && !slices.Contains(all, a) && len(all) < maxNamed {
			all = append(all, a)
		}
	}
	return all
}

// refusal answers an IA that gets no address for longer.
func refusal(ia *dhcpv6.OptIANA, options ...dhcpv6.Option) dhcpv6.Option {
	return &dhcpv6.OptIANA{IaId: ia.IaId, Options: dhcpv6.IdentityOptions{Options: options}}
}

// identity answers an IA, with when to renew what it holds.
func (x *exchange) identity(ia *dhcpv6.OptIANA, options ...dhcpv6.Option) dhcpv6.Option {
	t := x.subnet.leaseTime()
	return &dhcpv6.OptIANA{IaId: ia.IaId, T1: t / 2, T2: t * 4 / 5, Options: dhcpv6.IdentityOptions{Options: options}}
}

func (x *exchange) address(a netip.Addr) dhcpv6.Option {
	t := x.subnet.leaseTime()
	return &dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice(), PreferredLifetime: t, ValidLifetime: t}
}

func (x *exchange) given(ia *dhcpv6.OptIANA, a netip.Addr) dhcpv6.Option {
	return x.identity(ia, x.address(a))
}

// leastRefresh is IRT_MINIMUM of RFC 8415, section 7.6.
const leastRefresh = 10 * time.Minute

// settings are what a client asks for beside addresses.
func (x *exchange) settings() []dhcpv6.Option {
	asked := x.envelope.message.Options.RequestedOptions()
	wants := func(code dhcpv6.OptionCode) bool { return slices.Contains(asked, code) }
	var options []dhcpv6.Option
	dns, ntp := x.subnet.DNS, x.subnet.NTP
	if x.subnet.OwnDNS {
		dns = []netip.Addr{x.query.Server}
	}
	if x.subnet.OwnNTP {
		ntp = append([]netip.Addr{x.query.Server}, ntp...)
	}
	if wants(dhcpv6.OptionDNSRecursiveNameServer) && len(dns) > 0 {
		options = append(options, dhcpv6.OptDNS(netIPs(dns)...))
	}
	if wants(dhcpv6.OptionDomainSearchList) && x.subnet.Domain != "" {
		options = append(options, dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: []string{x.subnet.Domain}}))
	}
	if wants(dhcpv6.OptionSNTPServerList) && len(ntp) > 0 {
		options = append(options, dhcpv6.OptSNTP(netIPs(ntp)...))
	}
	if wants(dhcpv6.OptionNTPServer) && len(ntp) > 0 {
		servers := &dhcpv6.OptNTPServer{}
		for _, a := range ntp {
			server := dhcpv6.NTPSuboptionSrvAddr(a.AsSlice())
			servers.Suboptions = append(servers.Suboptions, &server)
		}
		options = append(options, servers)
	}
	if x.envelope.message.MessageType == dhcpv6.MessageTypeInformationRequest && wants(dhcpv6.OptionInformationRefreshTime) {
		options = append(options, dhcpv6.OptInformationRefreshTime(max(x.subnet.leaseTime(), leastRefresh)))
	}
	return append(options, x.boot(wants(dhcpv6.OptionBootfileURL))...)
}

// boot says what to boot, RFC 5970.
func (x *exchange) boot(asked bool) []dhcpv6.Option {
	if !asked && !x.query.PXE && !x.query.HTTP && !x.query.IPXE {
		return nil
	}
	file, ok := x.backend.BootFile(x.subnet.CIDR, x.query)
	if !ok {
		return nil
	}
	options := []dhcpv6.Option{dhcpv6.OptBootFileURL(x.url(file))}
	if x.query.HTTP {
		// UEFI, section 24.7.3: firmware takes an advertisement for one of HTTP boot by this class.
		options = append(options, &dhcpv6.OptVendorClass{EnterpriseNumber: intel, Data: [][]byte{[]byte("HTTPClient")}})
	}
	return options
}

func (x *exchange) url(file BootFile) string {
	if absolute(file.File) {
		return file.File
	}
	server := file.NextServer
	if !server.IsValid() {
		server = x.query.Server
	}
	return "tftp://[" + server.String() + "]/" + file.File
}

// absolute tells whether a boot file is a URL already.
func absolute(file string) bool {
	scheme, _, found := strings.Cut(file, "://")
	return found && scheme != ""
}

// build makes a reply, and says where it goes.
func (x *exchange) build(kind dhcpv6.MessageType, options []dhcpv6.Option) ([]byte, netip.AddrPort) {
	request := x.envelope.message
	m := &dhcpv6.Message{MessageType: kind, TransactionID: request.TransactionID}
	m.AddOption(dhcpv6.OptServerID(x.server))
	if id := request.Options.GetOne(dhcpv6.OptionClientID); id != nil {
		m.AddOption(id)
	}
	for _, o := range options {
		m.AddOption(o)
	}
	switch request.MessageType {
	case dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
	default:
		for _, o := range x.settings() {
			m.AddOption(o)
		}
	}
	to := netip.AddrPortFrom(x.in.source.Addr(), ClientPort)
	var whole dhcpv6.DHCPv6 = m
	for i, r := range slices.Backward(x.envelope.relays) {
		back := &dhcpv6.RelayMessage{MessageType: dhcpv6.MessageTypeRelayReply, HopCount: r.HopCount, LinkAddr: r.LinkAddr, PeerAddr: r.PeerAddr}
		for _, echoed := range []dhcpv6.OptionCode{dhcpv6.OptionInterfaceID, dhcpv6.OptionRelayPort} {
			if o := r.GetOneOption(echoed); o != nil {
				back.AddOption(o)
			}
		}
		back.AddOption(dhcpv6.OptRelayMessage(whole))
		whole = back
		if i == 0 {
			to = netip.AddrPortFrom(x.in.source.Addr(), ServerPort)
			if r.GetOneOption(dhcpv6.OptionRelayPort) != nil {
				to = x.in.source // RFC 8357, section 5.2
			}
		}
	}
	return whole.ToBytes(), to
}

func netIPs(addresses []netip.Addr) []net.IP {
	ips := make([]net.IP, len(addresses))
	for i, a := range addresses {
		ips[i] = a.AsSlice()
	}
	return ips
}
