package dhcp6

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
	// Problem says why none of its clients is served, for a person. It is empty when they are served, and in ModeOff.
	Problem string
}

// own are the interface's addresses that clients behind a router could reach.
func own(i netif.Interface) []netip.Addr {
	var all []netip.Addr
	for _, a := range i.Addresses {
		if global(a.Addr()) {
			all = append(all, a.Addr())
		}
	}
	return all
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
	case len(own(i)) == 0:
		return "has no IPv6 address beside its link-local one"
	}
	return ""
}

// mostNamed bounds how many interfaces a message names.
const mostNamed = 8

// explain says of each interface why it does not serve a subnet. Loopback and interfaces that were not asked for are left out.
func explain(subnet netip.Prefix, wanted []string, present []netif.Interface, failed map[string]error) string {
	var reasons []string
	for _, name := range wanted {
		if !slices.ContainsFunc(present, func(i netif.Interface) bool { return i.Name == name }) {
			reasons = append(reasons, name+" does not exist")
		}
	}
	for _, i := range present {
		within := slices.ContainsFunc(own(i), subnet.Contains)
		if !within && (i.Loopback || len(wanted) > 0 && !slices.Contains(wanted, i.Name)) {
			continue
		}
		why := unfit(i, wanted)
		switch err := failed[i.Name]; {
		case why == "" && err != nil:
			why = fmt.Sprintf("cannot be served: %v", err)
		case why == "":
			why = fmt.Sprintf("has %s", join(own(i)))
		}
		reasons = append(reasons, i.Name+" "+why)
	}
	if len(reasons) == 0 {
		return "there is no network interface but loopback"
	}
	if more := len(reasons) - mostNamed; more > 0 {
		reasons = append(reasons[:mostNamed], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(reasons, "; ")
}

func join(addresses []netip.Addr) string {
	var all []string
	for _, a := range addresses {
		all = append(all, a.String())
	}
	return strings.Join(all, ", ")
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
	case len(now.Interfaces) > 0, now.Relayed && len(served) > 0:
	case now.Relayed:
		now.Problem = "no interface is served by which a relay could reach this server: " + explain(s.CIDR, wanted, present, failed)
	default:
		now.Problem = fmt.Sprintf("no interface that is served has an address in %s, and no relay has asked for a client in it: %s", s.CIDR, explain(s.CIDR, wanted, present, failed))
	}
	return now
}
