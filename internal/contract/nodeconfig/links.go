package nodeconfig

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"coldrack.dev/internal/contract/validate"
)

// Links are the network links of a node, of which each interface is named by its MAC.
type Links = validate.Links

// What a bond has where nothing is said.
const (
	DefaultLACPRate   = "slow"     // what the kernel and most switches begin with
	DefaultHashPolicy = "layer2+3" // the kernel's layer2 sends all that goes through one router over one cable
)

// miiMonitor is how often the kernel looks whether a member of a bond has a carrier. Its default is never.
const miiMonitor = "100ms"

// linkFiles are the files of systemd-networkd that make l, by name. Interfaces are matched by the MAC that they were made with: in a bond
// they have the bond's.
func linkFiles(l *Links) []Op {
	var d direct
	folder := "/etc/systemd/network/10-coldrack-"
	for _, nic := range nicsOf(l) {
		match := fmt.Sprintf("PermanentMACAddress=%s\nType=ether\nKind=!*\n", nic)
		d.text(folder+strings.ReplaceAll(nic, ":", "")+".network", networkFile(l, nic, match))
	}
	made := func(name, netdev string) {
		d.text(folder+name+".netdev", netdev)
		d.text(folder+name+".network", networkFile(l, name, "Name="+name+"\n"))
	}
	for _, b := range l.Bonds {
		made(b.Name, netdev(l, b.Name, "bond", b.MAC)+bondSection(b))
	}
	for _, v := range l.VLANs {
		made(v.Name, netdev(l, v.Name, "vlan", "")+fmt.Sprintf("\n[VLAN]\nId=%d\n", v.ID))
	}
	for _, b := range l.Bridges {
		made(b.Name, netdev(l, b.Name, "bridge", b.MAC)+fmt.Sprintf("\n[Bridge]\nSTP=%s\n", yes(b.STP)))
	}
	return d.ops
}

// nicsOf are the MACs of all interfaces that l names, in the order in which it names them.
func nicsOf(l *Links) []string {
	var nics []string
	l.References(func(_ string, name *string) {
		if validate.IsMAC(*name) && !slices.Contains(nics, *name) {
			nics = append(nics, *name)
		}
	})
	return nics
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func netdev(l *Links, name, kind, mac string) string {
	text := fmt.Sprintf("[NetDev]\nName=%s\nKind=%s\n", name, kind)
	if mac != "" { // systemd would make one up of the machine's ID, which no switch and no DHCP server has seen
		text += "MACAddress=" + mac + "\n"
	}
	if mtu, known := l.LinkMTU(name); known {
		text += fmt.Sprintf("MTUBytes=%d\n", mtu)
	}
	return text
}

func bondSection(b validate.LinkBond) string {
	text := fmt.Sprintf("\n[Bond]\nMode=%s\nMIIMonitorSec=%s\n", b.Mode, miiMonitor)
	if b.Mode == validate.BondLACP {
		text += fmt.Sprintf("LACPTransmitRate=%s\nTransmitHashPolicy=%s\n", cmp.Or(b.LACPRate, DefaultLACPRate), cmp.Or(b.HashPolicy, DefaultHashPolicy))
		if b.MinLinks != 0 {
			text += fmt.Sprintf("MinLinks=%d\n", b.MinLinks)
		}
	}
	return text
}

// networkFile says what a link has and what lies on it.
func networkFile(l *Links, link, match string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	b.WriteString("[Match]\n" + match + "\n[Link]\n")
	// In a .netdev file it counts only when the link is made.
	if mtu, known := l.LinkMTU(link); known {
		line("MTUBytes=%d", mtu)
	}
	// The link with the node's address is the one that the node is known by; no other must hold up the boot.
	line("RequiredForOnline=%s", yes(link == l.Link))
	line("\n[Network]")
	dhcp, addressed := dhcpOf(l, link), link == l.Link
	for _, a := range l.Addresses {
		addressed = addressed || a.Link == link
	}
	line("DHCP=%s", map[string]string{"": "no", validate.DHCPIPv4: "ipv4", validate.DHCPIPv6: "ipv6", validate.DHCPBoth: "yes"}[dhcp])
	line("IPv6AcceptRA=%s", yes(dhcp == validate.DHCPIPv6 || dhcp == validate.DHCPBoth))
	if !addressed && dhcp == "" { // it carries others
		line("LinkLocalAddressing=no")
	}
	if validate.IsMAC(link) {
		line("LLDP=yes")
	}
	master(l, link, line)
	for _, v := range l.VLANs {
		if v.Parent == link {
			line("VLAN=%s", v.Name)
		}
	}
	for _, a := range l.Addresses {
		if a.Link == link {
			line("Address=%s", a.Address)
		}
	}
	if link == l.Link && l.Gateway != "" {
		line("Gateway=%s", l.Gateway)
	}
	for _, r := range l.Routes {
		if routeLink(l, r) == link {
			line("\n[Route]\nDestination=%s\nGateway=%s", r.To, r.Via)
		}
	}
	if dhcp != "" {
		dhcpSections(dhcp, l.Gateway != "", line)
	}
	return b.String()
}

func master(l *Links, link string, line func(string, ...any)) {
	for _, b := range l.Bonds {
		if slices.Contains(b.Members, link) {
			line("Bond=%s", b.Name)
			if b.Primary == link {
				line("PrimarySlave=yes")
			}
		}
	}
	for _, b := range l.Bridges {
		if slices.Contains(b.Members, link) {
			line("Bridge=%s", b.Name)
		}
	}
}

// dhcpSections keep what the site's DHCP server says to the link: names, time and, where the node has one, the default route are Coldrack's.
func dhcpSections(dhcp string, gateway bool, line func(string, ...any)) {
	if dhcp != validate.DHCPIPv6 {
		line("\n[DHCPv4]\nClientIdentifier=mac\nUseHostname=no\nUseDNS=no\nUseNTP=no\nUseDomains=no")
		if gateway {
			line("UseGateway=no")
		}
	}
	if dhcp != validate.DHCPIPv4 {
		line("\n[DHCPv6]\nUseHostname=no\nUseDNS=no\nUseNTP=no\nUseDomains=no")
		line("\n[IPv6AcceptRA]\nUseDNS=no\nUseDomains=no")
		if gateway {
			line("UseGateway=no")
		}
	}
}

func dhcpOf(l *Links, link string) string {
	for _, n := range l.Interfaces {
		if n.NIC == link {
			return n.DHCP
		}
	}
	for _, b := range l.Bonds {
		if b.Name == link {
			return b.DHCP
		}
	}
	for _, v := range l.VLANs {
		if v.Name == link {
			return v.DHCP
		}
	}
	for _, b := range l.Bridges {
		if b.Name == link {
			return b.DHCP
		}
	}
	return ""
}

// routeLink is the link of a route: the one it names, or the one with an address in its router's network.
func routeLink(l *Links, r validate.LinkRoute) string {
	if r.Link != "" {
		return r.Link
	}
	via, _ := netip.ParseAddr(r.Via)
	for _, a := range l.Addresses {
		if p, err := netip.ParsePrefix(a.Address); err == nil && p.Contains(via) {
			return a.Link
		}
	}
	return ""
}

// selfOf is the node's own address.
func selfOf(l *Links) (netip.Addr, bool) {
	for _, a := range l.Addresses {
		if p, err := netip.ParsePrefix(a.Address); err == nil && a.Link == l.Link {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// links checks what only a whole configuration can have wrong.
func (r *report) links(c Config) {
	l := c.Links
	for _, p := range l.Problems() {
		r.add("links."+p.Field, "%s", strings.TrimSpace(fmt.Sprintf("%s %s", shorten(p.Value), p.Message)))
	}
	if len(c.Interfaces) != 1 || len(c.Interfaces[0].Addresses) != 0 {
		r.add("interfaces", "want one without addresses beside links, which agents that know no links refuse")
	}
	made := l.Made()
	known := func(link string) bool { return validate.IsMAC(link) || slices.Contains(made, link) }
	l.References(func(field string, name *string) {
		if !known(*name) {
			r.add("links."+field, "%q is neither the MAC of an interface nor a link of links", shorten(*name))
		}
	})
	if l.Link == "" {
		r.add("links.link", "is empty; want the link that carries the node's address")
	} else if _, ok := selfOf(l); !ok {
		r.add("links.addresses", "none is on %s, which carries the node's address", l.Link)
	}
	if l.Gateway != "" {
		var prefixes []netip.Prefix
		for _, a := range l.Addresses {
			if p, err := netip.ParsePrefix(a.Address); err == nil && a.Link == l.Link {
				prefixes = append(prefixes, p)
			}
		}
		r.gateway("links.gateway", l.Gateway, prefixes, map[bool]string{})
	}
	r.linkRoutes(l)
}

func (r *report) linkRoutes(l *Links) {
	gateway, _ := netip.ParseAddr(l.Gateway)
	for i, route := range l.Routes {
		at := fmt.Sprintf("links.routes[%d]", i)
		via, err := netip.ParseAddr(route.Via)
		to, toErr := netip.ParsePrefix(route.To)
		if err != nil || toErr != nil {
			continue // reported
		}
		if to.Bits() == 0 && gateway.IsValid() && gateway.Is4() == to.Addr().Is4() {
			r.add(at+".to", "%s is a second default route; the Subnet's gateway %s has the first", route.To, gateway)
		}
		switch link := routeLink(l, route); {
		case link == "":
			r.add(at+".via", "%s is in none of the networks that the node has an address in; name the link that it is at", via)
		case via.IsLinkLocalUnicast() || dhcpOf(l, link) != "":
		case !slices.ContainsFunc(l.Addresses, func(a validate.LinkAddress) bool {
			p, err := netip.ParsePrefix(a.Address)
			return err == nil && a.Link == link && p.Contains(via)
		}):
			r.add(at+".via", "%s is in no network of %s", via, link)
		}
	}
}
