package validate

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Modes of a bond.
const (
	BondLACP         = "802.3ad"
	BondActiveBackup = "active-backup"
)

// DHCP of a link.
const (
	DHCPIPv4 = "ipv4"
	DHCPIPv6 = "ipv6"
	DHCPBoth = "both"
)

// Bounds of the numbers of Links.
const (
	MinMTU     = 576   // RFC 791: what every host takes
	MinMTUIPv6 = 1280  // RFC 8200, section 5
	MaxMTU     = 65535 // of Linux' Ethernet devices
	DefaultMTU = 1500
	MinVLAN    = 1
	MaxVLAN    = 4094 // IEEE 802.1Q: 0 and 4095 are reserved
)

// Links says which network links a node has, and which lies on which. A link is named by its own name where it is a bond, a VLAN or a
// bridge. A network interface is named by its MAC, or by the name that the machine's inventory has for it.
type Links struct {
	// Link carries the node's address. Empty: it is found when the interfaces are known.
	Link string `json:"link,omitempty"`
	// Gateway is the default router, on Link.
	Gateway    string        `json:"gateway,omitempty"`
	Interfaces []LinkNIC     `json:"interfaces,omitempty"`
	Bonds      []LinkBond    `json:"bonds,omitempty"`
	VLANs      []LinkVLAN    `json:"vlans,omitempty"`
	Bridges    []LinkBridge  `json:"bridges,omitempty"`
	Addresses  []LinkAddress `json:"addresses,omitempty"`
	Routes     []LinkRoute   `json:"routes,omitempty"`
}

// LinkNIC is a network interface that needs something of its own. Interfaces that others lie on need not be listed.
type LinkNIC struct {
	NIC  string `json:"nic"`
	MTU  int    `json:"mtu,omitempty"`
	DHCP string `json:"dhcp,omitempty"`
}

// LinkBond is several interfaces as one.
type LinkBond struct {
	Name    string   `json:"name"`
	Mode    string   `json:"mode"`
	Members []string `json:"members"`
	MTU     int      `json:"mtu,omitempty"`
	DHCP    string   `json:"dhcp,omitempty"`
	// LACPRate, HashPolicy and MinLinks are for 802.3ad, Primary is for active-backup. Empty: the defaults of nodeconfig.
	LACPRate   string `json:"lacpRate,omitempty"`
	HashPolicy string `json:"transmitHashPolicy,omitempty"`
	MinLinks   int    `json:"minLinks,omitempty"`
	Primary    string `json:"primary,omitempty"`
	// MAC of the bond: that of one of its members. Known when the interfaces are.
	MAC string `json:"mac,omitempty"`
}

// LinkVLAN is a tagged network on another link.
type LinkVLAN struct {
	Name   string `json:"name"`
	ID     int    `json:"id"`
	Parent string `json:"parent"`
	MTU    int    `json:"mtu,omitempty"`
	DHCP   string `json:"dhcp,omitempty"`
}

// LinkBridge is a switch in the node.
type LinkBridge struct {
	Name    string   `json:"name"`
	Members []string `json:"members"`
	STP     bool     `json:"stp,omitempty"`
	MTU     int      `json:"mtu,omitempty"`
	DHCP    string   `json:"dhcp,omitempty"`
	// MAC of the bridge: that of an interface below it. Known when the interfaces are.
	MAC string `json:"mac,omitempty"`
}

// LinkAddress is an address with prefix length on a link.
type LinkAddress struct {
	Link    string `json:"link"`
	Address string `json:"address"`
}

// LinkRoute is a static route.
type LinkRoute struct {
	To   string `json:"to"`
	Via  string `json:"via"`
	Link string `json:"link,omitempty"` // empty: the link with an address in Via's network
}

// LinkProblem is one fault of Links.
type LinkProblem struct {
	Field   string // such as "bonds[0].members[1]"
	Value   string
	Message string // what is wrong and what would be right
}

var (
	linkName = regexp.MustCompile(`^[a-z][a-z0-9._-]{0,14}$`)
	nicName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,14}$`)
	// hardwareName is what the kernel and systemd call interfaces of hardware.
	hardwareName = regexp.MustCompile(`^(eth|eno|ens|enp|enx|enP|end|wlan|wl[ospx]|ib|usb)[0-9a-f]`)
	// containerName is what container networks call theirs.
	containerName = regexp.MustCompile(`^(cni|cali|cilium|docker|flannel|kube|lxc|tunl|veth|vxlan)`)
	allDigits     = regexp.MustCompile(`^[0-9]+$`)
)

// LinkName is the rule for the name of a bond, a VLAN or a bridge.
func LinkName(s string) error {
	switch {
	case len(s) > 15:
		return fmt.Errorf("has %d characters; Linux allows 15 in the name of a link", len(s))
	case !linkName.MatchString(s):
		return errors.New("is not the name of a link: want a lower-case letter, then lower-case letters, digits, '.', '_' or '-'")
	case s == "lo" || s == "all" || s == "default" || s == "bonding_masters":
		return errors.New("means something else to Linux; choose a name such as bond0 or storage")
	case hardwareName.MatchString(s):
		return errors.New("is a name that Linux gives to network interfaces of hardware; choose one such as bond0 or storage")
	case containerName.MatchString(s):
		return errors.New("begins like the links of container networks; choose a name such as bond0 or storage")
	}
	return nil
}

// NICName is the rule for what names a network interface: its MAC, or its name in the machine's inventory.
func NICName(s string) error {
	if strings.Contains(s, ":") {
		return MAC(s)
	}
	if !nicName.MatchString(s) || allDigits.MatchString(s) {
		return errors.New("is neither a link of this layout nor a network interface: want a MAC such as 52:54:00:12:34:56, or a name of status.inventory.nics")
	}
	return nil
}

// IsMAC tells whether a network interface is named by its MAC.
func IsMAC(s string) bool { return strings.Contains(s, ":") && MAC(s) == nil }

// Empty tells whether nothing is laid out; then a node has one address on one interface.
func (l *Links) Empty() bool {
	return l.Link == "" && len(l.Interfaces)+len(l.Bonds)+len(l.VLANs)+len(l.Bridges)+len(l.Addresses)+len(l.Routes) == 0
}

// Made are the names of the links that are made, rather than found in the machine.
func (l *Links) Made() []string {
	var names []string
	for _, b := range l.Bonds {
		names = append(names, b.Name)
	}
	for _, v := range l.VLANs {
		names = append(names, v.Name)
	}
	for _, b := range l.Bridges {
		names = append(names, b.Name)
	}
	return names
}

// Master is the bond or bridge that a link is a member of, or "".
func (l *Links) Master(link string) string {
	for _, b := range l.Bonds {
		if slices.Contains(b.Members, link) {
			return b.Name
		}
	}
	for _, b := range l.Bridges {
		if slices.Contains(b.Members, link) {
			return b.Name
		}
	}
	return ""
}

// Top is the link that frames without a tag which arrive at an interface come out of.
func (l *Links) Top(link string) string {
	for range len(l.Bonds) + len(l.Bridges) + 1 { // a circle is a problem of its own
		master := l.Master(link)
		if master == "" {
			break
		}
		link = master
	}
	return link
}

// Below are the links that a link lies on directly.
func (l *Links) Below(link string) []string {
	for _, b := range l.Bonds {
		if b.Name == link {
			return b.Members
		}
	}
	for _, v := range l.VLANs {
		if v.Name == link {
			return []string{v.Parent}
		}
	}
	for _, b := range l.Bridges {
		if b.Name == link {
			return b.Members
		}
	}
	return nil
}

// References calls visit for each field that names a link or an interface, with its path and a pointer to it.
func (l *Links) References(visit func(field string, name *string)) {
	if l.Link != "" {
		visit("link", &l.Link)
	}
	for i := range l.Interfaces {
		visit(fmt.Sprintf("interfaces[%d].nic", i), &l.Interfaces[i].NIC)
	}
	for i := range l.Bonds {
		for j := range l.Bonds[i].Members {
			visit(fmt.Sprintf("bonds[%d].members[%d]", i, j), &l.Bonds[i].Members[j])
		}
		if l.Bonds[i].Primary != "" {
			visit(fmt.Sprintf("bonds[%d].primary", i), &l.Bonds[i].Primary)
		}
	}
	for i := range l.VLANs {
		visit(fmt.Sprintf("vlans[%d].parent", i), &l.VLANs[i].Parent)
	}
	for i := range l.Bridges {
		for j := range l.Bridges[i].Members {
			visit(fmt.Sprintf("bridges[%d].members[%d]", i, j), &l.Bridges[i].Members[j])
		}
	}
	for i := range l.Addresses {
		visit(fmt.Sprintf("addresses[%d].link", i), &l.Addresses[i].Link)
	}
	for i := range l.Routes {
		if l.Routes[i].Link != "" {
			visit(fmt.Sprintf("routes[%d].link", i), &l.Routes[i].Link)
		}
	}
}

// Problems are all faults that Links have by themselves, whatever the machine's interfaces are.
func (l *Links) Problems() []LinkProblem {
	c := linkCheck{Links: l, kinds: map[string]string{}, at: map[string]string{}}
	c.names()
	c.references()
	c.members()
	c.vlans()
	c.circles()
	c.bondSettings()
	c.addresses()
	c.dhcp()
	c.mtus()
	c.routes()
	return c.problems
}

type linkCheck struct {
	*Links
	kinds    map[string]string // of the links that are made, by name
	at       map[string]string // where a link is a member
	problems []LinkProblem
}

func (c *linkCheck) add(field, value, format string, args ...any) {
	c.problems = append(c.problems, LinkProblem{field, value, fmt.Sprintf(format, args...)})
}

func (c *linkCheck) names() {
	paths := map[string]string{}
	name := func(field, kind, s string) {
		if err := LinkName(s); err != nil {
			c.add(field, s, "%v", err)
		} else if paths[s] != "" {
			c.add(field, s, "is the name of %s too; every link needs one of its own", paths[s])
		}
		if paths[s] == "" {
			paths[s], c.kinds[s] = strings.TrimSuffix(field, ".name"), kind
		}
	}
	for i, b := range c.Bonds {
		name(fmt.Sprintf("bonds[%d].name", i), "bond", b.Name)
	}
	for i, v := range c.VLANs {
		name(fmt.Sprintf("vlans[%d].name", i), "VLAN", v.Name)
	}
	for i, b := range c.Bridges {
		name(fmt.Sprintf("bridges[%d].name", i), "bridge", b.Name)
	}
}

func (c *linkCheck) references() {
	nics := map[string]int{}
	for i, n := range c.Interfaces {
		field := fmt.Sprintf("interfaces[%d].nic", i)
		if kind := c.kinds[n.NIC]; kind != "" {
			c.add(field, n.NIC, "is a %s of this layout; set its MTU and DHCP there", kind)
		} else if first, twice := nics[n.NIC]; twice {
			c.add(field, n.NIC, "is that of interfaces[%d] too", first)
		}
		nics[n.NIC] = i
	}
	c.References(func(field string, name *string) {
		if c.kinds[*name] != "" {
			return
		}
		if *name == "" {
			c.add(field, "", "is empty; want the name of a link")
		} else if err := NICName(*name); err != nil {
			c.add(field, *name, "%v", err)
		}
	})
}

func (c *linkCheck) members() {
	member := func(field, link string) {
		if first := c.at[link]; first != "" {
			c.add(field, link, "is at %s already; a link is a member of one bond or bridge", first)
			return
		}
		c.at[link] = field
	}
	for i, b := range c.Bonds {
		if len(b.Members) == 0 {
			c.add(fmt.Sprintf("bonds[%d].members", i), "", "is empty; want at least one network interface")
		}
		for j, m := range b.Members {
			field := fmt.Sprintf("bonds[%d].members[%d]", i, j)
			if kind := c.kinds[m]; kind != "" {
				c.add(field, m, "is a %s; members of a bond are network interfaces", kind)
				continue
			}
			member(field, m)
		}
	}
	for i, b := range c.Bridges {
		if len(b.Members) == 0 {
			c.add(fmt.Sprintf("bridges[%d].members", i), "", "is empty; want at least one link")
		}
		for j, m := range b.Members {
			field := fmt.Sprintf("bridges[%d].members[%d]", i, j)
			if c.kinds[m] == "bridge" {
				c.add(field, m, "is a bridge; Linux puts no bridge into a bridge")
				continue
			}
			member(field, m)
		}
	}
}

// inBond is where a link is a member of a bond, or "".
func (c *linkCheck) inBond(link string) string {
	if at := c.at[link]; strings.HasPrefix(at, "bonds") {
		return at
	}
	return ""
}

func (c *linkCheck) vlans() {
	type tag struct {
		parent string
		id     int
	}
	seen := map[tag]int{}
	for i, v := range c.VLANs {
		at := fmt.Sprintf("vlans[%d]", i)
		if v.ID < MinVLAN || v.ID > MaxVLAN {
			c.add(at+".id", fmt.Sprint(v.ID), "is not between %d and %d", MinVLAN, MaxVLAN)
		}
		if c.kinds[v.Parent] == "VLAN" {
			c.add(at+".parent", v.Parent, "is a VLAN; want a network interface, a bond or a bridge")
		} else if bond := c.inBond(v.Parent); bond != "" {
			c.add(at+".parent", v.Parent, "is at %s; put the VLAN on the bond", bond)
		}
		t := tag{v.Parent, v.ID}
		if first, twice := seen[t]; twice {
			c.add(at+".id", fmt.Sprint(v.ID), "is on %s by vlans[%d] already", v.Parent, first)
		}
		seen[t] = i
	}
}

// circles refuses a link that lies on itself, such as a bridge of a VLAN of the same bridge.
func (c *linkCheck) circles() {
	const walking, done = 1, 2
	state := map[string]int{}
	var walk func(link string, way []string)
	walk = func(link string, way []string) {
		switch way = append(way, link); state[link] {
		case walking:
			way = way[slices.Index(way, link):]
			for i, b := range c.Bridges { // every circle has one: VLANs do not lie on VLANs, and bonds only on interfaces
				if slices.Contains(way, b.Name) {
					c.add(fmt.Sprintf("bridges[%d].members", i), b.Name, "lies on itself: %s; take a link out of this circle", strings.Join(way, " on "))
					return
				}
			}
		case done:
		default:
			state[link] = walking
			for _, below := range c.Below(link) {
				walk(below, slices.Clone(way))
			}
			state[link] = done
		}
	}
	for _, b := range c.Bridges {
		walk(b.Name, nil)
	}
}

func (c *linkCheck) bondSettings() {
	for i, b := range c.Bonds {
		at := fmt.Sprintf("bonds[%d]", i)
		lacp := b.Mode == BondLACP
		if !lacp && b.Mode != BondActiveBackup {
			c.add(at+".mode", b.Mode, "want %s or %s", BondLACP, BondActiveBackup)
			continue
		}
		only := func(field, value, mode string) { c.add(at+"."+field, value, "is for mode %s; remove it", mode) }
		if b.LACPRate != "" && !lacp {
			only("lacpRate", b.LACPRate, BondLACP)
		} else if b.LACPRate != "" && b.LACPRate != "slow" && b.LACPRate != "fast" {
			c.add(at+".lacpRate", b.LACPRate, "want slow or fast")
		}
		if b.HashPolicy != "" && !lacp {
			only("transmitHashPolicy", b.HashPolicy, BondLACP)
		} else if b.HashPolicy != "" && !slices.Contains([]string{"layer2", "layer2+3", "layer3+4"}, b.HashPolicy) {
			c.add(at+".transmitHashPolicy", b.HashPolicy, "want layer2, layer2+3 or layer3+4")
		}
		if b.MinLinks != 0 && !lacp {
			only("minLinks", fmt.Sprint(b.MinLinks), BondLACP)
		} else if b.MinLinks < 0 || b.MinLinks > len(b.Members) {
			c.add(at+".minLinks", fmt.Sprint(b.MinLinks), "the bond has %d members", len(b.Members))
		}
		if b.Primary != "" && lacp {
			only("primary", b.Primary, BondActiveBackup)
		} else if b.Primary != "" && !slices.Contains(b.Members, b.Primary) {
			c.add(at+".primary", b.Primary, "is not a member of the bond")
		}
		if b.MAC != "" && MAC(b.MAC) != nil {
			c.add(at+".mac", b.MAC, "%v", MAC(b.MAC))
		}
	}
	for i, b := range c.Bridges {
		if b.MAC != "" && MAC(b.MAC) != nil {
			c.add(fmt.Sprintf("bridges[%d].mac", i), b.MAC, "%v", MAC(b.MAC))
		}
	}
}

func (c *linkCheck) addresses() {
	if at := c.at[c.Link]; c.Link != "" && at != "" {
		c.add("link", c.Link, "is at %s, and a member has no address; want %s", at, c.Top(c.Link))
	}
	seen := map[netip.Addr]int{}
	for i, a := range c.Addresses {
		at := fmt.Sprintf("addresses[%d]", i)
		if member := c.at[a.Link]; member != "" {
			c.add(at+".link", a.Link, "is at %s, and a member has no address; want %s", member, c.Top(a.Link))
		}
		p, err := netip.ParsePrefix(a.Address)
		switch {
		case err != nil:
			c.add(at+".address", a.Address, "is not an address with prefix length, such as 10.30.0.7/24")
		case HostAddress(p.Addr()) != nil || p.Addr().IsLoopback() || p.Bits() == 0:
			c.add(at+".address", a.Address, "cannot be the address of a host")
		case HostOf(p, p.Addr()) != "":
			c.add(at+".address", a.Address, "%s", HostOf(p, p.Addr()))
		default:
			if first, twice := seen[p.Addr()]; twice {
				c.add(at+".address", a.Address, "is at addresses[%d] too", first)
			}
			seen[p.Addr()] = i
		}
	}
}

// eachSetting calls visit for every link with the settings that all kinds have.
func (c *linkCheck) eachSetting(visit func(at, link string, mtu int, dhcp string)) {
	for i, n := range c.Interfaces {
		visit(fmt.Sprintf("interfaces[%d]", i), n.NIC, n.MTU, n.DHCP)
	}
	for i, b := range c.Bonds {
		visit(fmt.Sprintf("bonds[%d]", i), b.Name, b.MTU, b.DHCP)
	}
	for i, v := range c.VLANs {
		visit(fmt.Sprintf("vlans[%d]", i), v.Name, v.MTU, v.DHCP)
	}
	for i, b := range c.Bridges {
		visit(fmt.Sprintf("bridges[%d]", i), b.Name, b.MTU, b.DHCP)
	}
}

func (c *linkCheck) dhcp() {
	c.eachSetting(func(at, link string, _ int, dhcp string) {
		switch {
		case dhcp == "":
		case dhcp != DHCPIPv4 && dhcp != DHCPIPv6 && dhcp != DHCPBoth:
			c.add(at+".dhcp", dhcp, "want %s, %s or %s", DHCPIPv4, DHCPIPv6, DHCPBoth)
		case c.at[link] != "":
			c.add(at+".dhcp", dhcp, "%s is at %s, and a member has no address; want it at %s", link, c.at[link], c.Top(link))
		case link == c.Link:
			c.add(at+".dhcp", dhcp, "%s carries the node's address, which is static; remove it", link)
		}
	})
}

func (c *linkCheck) routes() {
	seen := map[netip.Prefix]int{}
	for i, r := range c.Routes {
		at := fmt.Sprintf("routes[%d]", i)
		to, err := netip.ParsePrefix(r.To)
		switch {
		case err != nil:
			c.add(at+".to", r.To, "is not a network such as 10.40.0.0/16")
		case to != to.Masked():
			c.add(at+".to", r.To, "has bits set after the prefix; want %s", to.Masked())
		default:
			if first, twice := seen[to]; twice {
				c.add(at+".to", r.To, "is that of routes[%d] too", first)
			}
			seen[to] = i
		}
		via, viaErr := ParseHostAddress(r.Via)
		switch {
		case viaErr != nil:
			c.add(at+".via", r.Via, "%v", viaErr)
		case err == nil && via.Is4() != to.Addr().Is4():
			c.add(at+".via", r.Via, "and %s must be of one IP family", r.To)
		case via.IsLinkLocalUnicast() && r.Link == "":
			c.add(at+".link", "", "is needed: %s is at every link", r.Via)
		}
		if member := c.at[r.Link]; member != "" {
			c.add(at+".link", r.Link, "is at %s, and a member has no routes; want %s", member, c.Top(r.Link))
		}
	}
}

// LinkMTU is the size of packets on a link: its own, or what it has by the links above and below it. known is false
// where neither says so.
func (l *Links) LinkMTU(link string) (mtu int, known bool) { return l.mtu(link, 0) }

func (l *Links) mtu(link string, depth int) (int, bool) {
	if depth > len(l.Bonds)+len(l.VLANs)+len(l.Bridges) {
		return DefaultMTU, false // a circle
	}
	for _, b := range l.Bonds {
		if b.Name == link && b.MTU != 0 || b.MTU != 0 && slices.Contains(b.Members, link) {
			return b.MTU, true
		}
	}
	for _, n := range l.Interfaces {
		if n.NIC == link && n.MTU != 0 {
			return n.MTU, true
		}
	}
	for _, v := range l.VLANs {
		if v.Name == link {
			if v.MTU != 0 {
				return v.MTU, true
			}
			return l.mtu(v.Parent, depth+1)
		}
	}
	for _, b := range l.Bridges {
		if b.Name != link {
			continue
		}
		if b.MTU != 0 {
			return b.MTU, true
		}
		least, known := MaxMTU, false
		for _, m := range b.Members {
			mtu, said := l.mtu(m, depth+1)
			least, known = min(least, mtu), known || said
		}
		return least, known
	}
	return DefaultMTU, false
}

func (c *linkCheck) mtus() {
	six := map[string]bool{}
	for _, a := range c.Addresses {
		if p, err := netip.ParsePrefix(a.Address); err == nil && p.Addr().Is6() {
			six[a.Link] = true
		}
	}
	c.eachSetting(func(at, link string, mtu int, dhcp string) {
		low := MinMTU
		if six[link] || dhcp == DHCPIPv6 || dhcp == DHCPBoth {
			low = MinMTUIPv6
		}
		if mtu == 0 {
			return
		}
		if mtu < low || mtu > MaxMTU {
			c.add(at+".mtu", fmt.Sprint(mtu), "want %d to %d, or nothing for the default", low, MaxMTU)
			return
		}
		if bond := c.inBond(link); bond != "" {
			if theirs, _ := c.LinkMTU(c.Master(link)); theirs != mtu {
				c.add(at+".mtu", fmt.Sprint(mtu), "%s is at %s, and a bond sets the MTU of its members; set it there alone", link, bond)
			}
			return
		}
		for _, below := range c.Below(link) {
			if c.kinds[link] == "bond" {
				break // it sets that of its members
			}
			if theirs, _ := c.LinkMTU(below); theirs < mtu {
				c.add(at+".mtu", fmt.Sprint(mtu), "%s below it takes packets of %d only; give that an MTU of at least %d", below, theirs, mtu)
			}
		}
	})
}
