package dhcp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"coldrack.dev/internal/netboot/netif"
)

// SubnetService is how the clients of a subnet are reached at present.
type SubnetService struct {
	Name string
	CIDR netip.Prefix
	Mode Mode
	// Interfaces by which it is served directly.
	Interfaces []string
	// Relayed: its clients are behind a relay agent, which is configured or has asked for some.
	Relayed bool
	// Problem says why none of its clients is served, for a person: which interfaces there are and why none fits. It is empty when
	// they are served, and in ModeOff.
	Problem string
	// Taken are reserved addresses that somebody else uses.
	Taken []Taken
	// Proxy is the hardware address of who answers ARP for others in it, empty when nobody does.
	Proxy string
	// Servers are other DHCP servers that were heard on its segment within the last hour; in ModeProxy, the site's own are among them.
	Servers []netip.Addr
	// Unheeded are firmwares that ignore what ModeProxy tells them.
	Unheeded []Unheeded
}

// unfit says why an interface is not served, empty when it is to be. wanted are the names of Config.Interfaces.
func unfit(i netif.Interface, wanted []string) string {
	switch {
	case len(wanted) > 0 && !slices.Contains(wanted, i.Name):
		return "is not one of the interfaces to serve (" + strings.Join(wanted, ", ") + ")"
	case len(wanted) == 0 && !i.Ethernet:
		return "is no Ethernet interface"
	case !i.Up:
		return "is down"
	case len(i.IPv4()) == 0:
		return "has no IPv4 address"
	}
	return ""
}

// mostNamed bounds how many interfaces a message names.
const mostNamed = 8

// explainUnserved says of each interface why it does not serve a subnet; failed are the errors of those that could not be opened. Those with
// an address in the subnet come first, then those with other addresses. Loopback and interfaces that were not asked for are left out
// where they have nothing to do with it.
func explainUnserved(subnet netip.Prefix, wanted []string, present []netif.Interface, failed map[string]error) string {
	type reason struct {
		rank int
		text string
	}
	var reasons []reason
	for _, name := range wanted {
		if !slices.ContainsFunc(present, func(i netif.Interface) bool { return i.Name == name }) {
			reasons = append(reasons, reason{1, name + " does not exist"})
		}
	}
	for _, i := range present {
		own := i.IPv4()
		within := slices.IndexFunc(own, subnet.Contains)
		why := unfit(i, wanted)
		switch err := failed[i.Name]; {
		case within >= 0 && why == "" && err != nil:
			why = fmt.Sprintf("cannot be served: %v", err)
		case within >= 0:
		case i.Loopback, len(wanted) > 0 && !slices.Contains(wanted, i.Name):
			continue
		case why == "":
			var has []string
			for _, a := range own {
				has = append(has, a.String())
			}
			why = "has " + strings.Join(has, ", ")
		}
		switch {
		case within >= 0:
			reasons = append(reasons, reason{0, fmt.Sprintf("%s with %s %s", i.Name, own[within], why)})
		case len(own) > 0:
			reasons = append(reasons, reason{2, i.Name + " " + why})
		default:
			reasons = append(reasons, reason{3, i.Name + " " + why})
		}
	}
	if len(reasons) == 0 {
		return "there is no network interface but loopback"
	}
	slices.SortStableFunc(reasons, func(a, b reason) int { return a.rank - b.rank })
	var texts []string
	for n, r := range reasons {
		if n == mostNamed {
			texts = append(texts, fmt.Sprintf("and %d more", len(reasons)-n))
			break
		}
		texts = append(texts, r.text)
	}
	return strings.Join(texts, "; ")
}

// service tells how a subnet is served. served are the addresses of each interface that is.
func service(s Subnet, relaySeen bool, served map[string][]netip.Addr, wanted []string, present []netif.Interface, failed map[string]error) SubnetService {
	now := SubnetService{Name: s.Name, CIDR: s.CIDR, Mode: s.Mode}
	if s.Mode == ModeOff {
		return now
	}
	for name, own := range served {
		if slices.ContainsFunc(own, s.CIDR.Contains) {
			now.Interfaces = append(now.Interfaces, name)
		}
	}
	slices.Sort(now.Interfaces)
	now.Relayed = len(s.Relays) > 0 || relaySeen
	switch {
	case len(now.Interfaces) > 0:
	case now.Relayed && len(served) > 0:
	case now.Relayed:
		now.Problem = "no interface is served by which a relay could reach this server: " + explainUnserved(s.CIDR, wanted, present, failed)
	default:
		now.Problem = fmt.Sprintf("no interface that is served has an address in %s, and no relay has asked for a client in it: %s",
			s.CIDR, explainUnserved(s.CIDR, wanted, present, failed))
	}
	return now
}
