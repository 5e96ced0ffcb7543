package validate

import (
	"fmt"
	"net/netip"
	"strings"
)

// AddressRange is a range of addresses, both ends included. The zero value is no range.
type AddressRange struct {
	First, Last netip.Addr
}

// ParseAddressRange parses "first-last", for example "10.20.0.100-10.20.0.199". Spaces around the dash do not
// matter.
func ParseAddressRange(s string) (AddressRange, error) {
	const want = `want "first-last", for example 10.20.0.100-10.20.0.199`
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		return AddressRange{}, fmt.Errorf("no dash; %s", want)
	}
	first, err := netip.ParseAddr(strings.TrimSpace(from))
	if err != nil {
		return AddressRange{}, fmt.Errorf("%q is not an IP address; %s", strings.TrimSpace(from), want)
	}
	last, err := netip.ParseAddr(strings.TrimSpace(to))
	if err != nil {
		return AddressRange{}, fmt.Errorf("%q is not an IP address; %s", strings.TrimSpace(to), want)
	}
	switch {
	case first.Zone() != "" || last.Zone() != "":
		return AddressRange{}, fmt.Errorf("the addresses must not name an interface")
	case first.Is4In6() || last.Is4In6():
		return AddressRange{}, fmt.Errorf("IPv4 addresses are written without the prefix ::ffff: here")
	case first.Is4() != last.Is4():
		return AddressRange{}, fmt.Errorf("one end is IPv4, the other IPv6")
	case last.Less(first):
		return AddressRange{}, fmt.Errorf("the last address %s comes before the first, %s", last, first)
	}
	return AddressRange{first, last}, nil
}

// String is the form that ParseAddressRange takes.
func (r AddressRange) String() string { return r.First.String() + "-" + r.Last.String() }

// IsZero tells whether there is no range.
func (r AddressRange) IsZero() bool { return r == AddressRange{} }

// Contains tells whether an address lies in the range.
func (r AddressRange) Contains(a netip.Addr) bool {
	return r.First.IsValid() && r.First.Is4() == a.Is4() && !a.Less(r.First) && !r.Last.Less(a)
}

// Overlaps tells whether two ranges share an address.
func (r AddressRange) Overlaps(o AddressRange) bool {
	return r.First.IsValid() && o.First.IsValid() && r.First.Is4() == o.First.Is4() && !r.Last.Less(o.First) && !o.Last.Less(r.First)
}

// Problem is what is wrong with one field of an IPPlan.
type Problem struct {
	// Field is named as in a Subnet: cidr, gateway, discovery, static, dns, ntp or relays. Index is the element of a
	// list, or -1.
	Field string
	Index int
	// Value that was found, and Message, which says what is wrong with it.
	Value, Message string
}

// IPPlan is which address of a segment is for what.
type IPPlan struct {
	CIDR    netip.Prefix
	Gateway netip.Addr // invalid: none
	// Discovery and Static may be zero.
	Discovery, Static AddressRange
	// An invalid address stands for a server that is known by name.
	DNS, NTP, Relays []netip.Addr
	// DHCP says that our DHCP server is to give addresses here.
	DHCP bool
}

// Bounds of an IPv4 network in which DHCP gives addresses.
const (
	minDHCPBits = 8
	maxDHCPBits = 30
)

// Problems are all that is wrong with the plan. If the network itself is wrong, nothing else is looked at.
func (p IPPlan) Problems() []Problem {
	if problem := p.network(); problem != "" {
		value := ""
		if p.CIDR.IsValid() {
			value = p.CIDR.String()
		}
		return []Problem{{"cidr", -1, value, problem}}
	}
	var found []Problem
	if p.Gateway.IsValid() {
		if problem := HostOf(p.CIDR, p.Gateway); problem != "" {
			found = append(found, Problem{"gateway", -1, p.Gateway.String(), problem})
		}
	}
	for _, list := range []struct {
		field     string
		addresses []netip.Addr
	}{{"dns", p.DNS}, {"ntp", p.NTP}, {"relays", p.Relays}} {
		for i, a := range list.addresses {
			if !a.IsValid() {
				continue
			}
			if err := HostAddress(a); err != nil {
				found = append(found, Problem{list.field, i, a.String(), err.Error()})
			} else if list.field == "relays" && a.Is4() != p.CIDR.Addr().Is4() {
				found = append(found, Problem{list.field, i, a.String(), fmt.Sprintf("is of another IP family than the network %s", p.CIDR)})
			}
		}
	}
	found = append(found, p.rangeProblems("discovery", p.Discovery)...)
	found = append(found, p.rangeProblems("static", p.Static)...)
	if p.Discovery.Overlaps(p.Static) {
		found = append(found, Problem{"static", -1, p.Static.String(), fmt.Sprintf(
			"overlaps with the discovery range %s: an installed node and a machine that boots could get the same address", p.Discovery)})
	}
	return found
}

func (p IPPlan) network() string {
	switch bits := p.CIDR.Bits(); {
	case !p.CIDR.IsValid():
		return "is not a network such as 10.20.0.0/24"
	case p.CIDR.Addr().Is4In6():
		return "is an IPv4 network; write it without ::ffff:"
	case p.CIDR != p.CIDR.Masked():
		return fmt.Sprintf("has bits set behind the prefix length; the network that this address is in is %s", p.CIDR.Masked())
	case p.DHCP && p.CIDR.Addr().Is4() && (bits < minDHCPBits || bits > maxDHCPBits):
		return fmt.Sprintf("is not between /%d and /%d, as DHCP needs it", minDHCPBits, maxDHCPBits)
	}
	return ""
}

func (p IPPlan) rangeProblems(field string, r AddressRange) []Problem {
	if r.IsZero() {
		return nil
	}
	var found []Problem
	add := func(format string, args ...any) {
		found = append(found, Problem{field, -1, r.String(), fmt.Sprintf(format, args...)})
	}
	for _, end := range []netip.Addr{r.First, r.Last} {
		if problem := HostOf(p.CIDR, end); problem != "" {
			add("has the end %s, which %s", end, problem)
		}
	}
	if len(found) == 0 && r.Last.Less(r.First) {
		add("ends before it begins")
	}
	if r.Contains(p.Gateway) {
		add("contains the gateway, %s; leave it out", p.Gateway)
	}
	if field != "discovery" {
		return found // what gives static addresses leaves out those that are taken
	}
	for _, list := range []struct {
		what      string
		addresses []netip.Addr
	}{{"DNS server", p.DNS}, {"time server", p.NTP}, {"relay", p.Relays}} {
		for _, a := range list.addresses {
			if r.Contains(a) {
				add("contains the %s %s: a machine that boots could get its address; leave it out", list.what, a)
			}
		}
	}
	return found
}

// Beside are the problems that the plan has only beside another one. name is how people call the other.
func (p IPPlan) Beside(other IPPlan, name string) []Problem {
	var found []Problem
	if p.CIDR.IsValid() && other.CIDR.IsValid() && p.CIDR.Overlaps(other.CIDR) {
		found = append(found, Problem{"cidr", -1, p.CIDR.String(), fmt.Sprintf("overlaps with %s of Subnet %s", other.CIDR, name)})
	}
	for i, relay := range p.Relays {
		for _, theirs := range other.Relays {
			if relay == theirs {
				found = append(found, Problem{"relays", i, relay.String(), fmt.Sprintf("is a relay of Subnet %s already", name)})
			}
		}
	}
	return found
}

// Machine is what keeps an address from being some machine's own in the network, or "".
func (p IPPlan) Machine(a netip.Addr) string {
	switch problem := HostOf(p.CIDR, a); {
	case problem != "":
		return problem
	case p.Discovery.Contains(a):
		return fmt.Sprintf("lies in the discovery range %s, whose addresses go to any machine that boots", p.Discovery)
	case p.Gateway == a:
		return "is the gateway"
	}
	return ""
}

// HostOf is what keeps an address from being a host's in a network, or "".
func HostOf(network netip.Prefix, a netip.Addr) string {
	if err := HostAddress(a); err != nil {
		return err.Error()
	}
	network = network.Masked()
	switch {
	case !network.Contains(a):
		return fmt.Sprintf("is not in the network %s", network)
	case !a.Is4() || network.Bits() >= 31: // RFC 3021 for /31
		return ""
	case a == network.Addr():
		return fmt.Sprintf("is the network address of %s", network)
	case !network.Contains(a.Next()):
		return fmt.Sprintf("is the broadcast address of %s", network)
	}
	return ""
}
