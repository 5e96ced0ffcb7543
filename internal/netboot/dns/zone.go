// Package dns answers questions for the names of an inventory, forward and reverse, and forwards all others. It knows addresses and
// names, but not what machines are.
//
// The core is pure: Build makes Zones of an Inventory, and Zones.Answer answers a question. Server is the edge, with UDP, TCP and the
// bounds for strangers; Forwarder asks other servers.
package dns

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	mdns "github.com/miekg/dns"
)

// Port is DNS's well-known port, UDP and TCP.
const Port = 53

const (
	// ttl of each record in seconds: an address moves with its machine, and a question costs a packet.
	ttl = 60
	// negativeTTL is how long a name that does not exist may be remembered (RFC 2308): machines appear while others look for them.
	negativeTTL = 15
	// serverLabel is the server's own name in each domain, and the name server of each zone.
	serverLabel = "coldrack"
)

// Inventory is what there is to be known by name.
type Inventory struct {
	// Networks whose addresses have names. Their domains are zones, too.
	Networks []Network
	// Server are the addresses of this server.
	Server []netip.Addr
	// Claims in the order of their right to a name: where two want one, the first has it.
	Claims []Claim
	// Services are found by SRV records.
	Services []Service
}

// Network is a segment.
type Network struct {
	CIDR netip.Prefix
	// Domain of its machines; empty: none.
	Domain string
}

// Claim is a name that somebody wants for addresses.
type Claim struct {
	// Name with its domain, in lower case, without a dot at its end. One that is in no domain of a Network is left out.
	Name      string
	Addresses []netip.Addr
	// Reverse says how good the name is for its addresses: the highest is what they are called. 0: never.
	Reverse int
	// Source is who wants it, for people, for example "Machine r1-03".
	Source string
}

// Service is found under Name, for example "_ntp._udp.rack.example.org", at Target.
type Service struct {
	Name, Target string
	Port         uint16
	Source       string
}

// Collision is a name that several want.
type Collision struct {
	Name string `json:"name"`
	// Holder has it, Loser does not.
	Holder string `json:"holder"`
	Loser  string `json:"loser"`
}

// Zones are all that this server knows. They do not change.
type Zones struct {
	byName map[string]*Zone
	// networks are those that have names of their own for addresses.
	networks   []netip.Prefix
	Collisions []Collision
}

// Zone is one zone.
type Zone struct {
	// Name with a dot at its end.
	Name   string
	Serial uint32
	// Digest of the records, the SOA apart.
	Digest string
	// part says that only some addresses of a reverse zone are ours: those of networks.
	part bool
	// nodes are the names that exist, also those that only have others below them.
	nodes map[string]*node
}

// node is a name with its records.
type node struct {
	records []mdns.RR
	source  string
}

// Serials gives a zone whose records have that digest its serial number.
type Serials func(zone, digest string) uint32

// Build makes zones of an inventory.
func Build(in Inventory, serials Serials) *Zones {
	z := &Zones{byName: map[string]*Zone{}}
	var domains []string
	for _, n := range in.Networks {
		if n.Domain != "" && !slices.Contains(domains, n.Domain) {
			domains = append(domains, n.Domain)
		}
	}
	slices.Sort(domains)
	for _, domain := range domains {
		z.add(mdns.Fqdn(domain), false)
	}
	for _, n := range in.Networks {
		z.networks = append(z.networks, n.CIDR.Masked())
		names, part := reverseZones(n.CIDR)
		for _, name := range names {
			z.add(name, part)
		}
	}
	claims := make([]Claim, 0, len(domains)+len(in.Claims))
	for _, domain := range domains {
		claims = append(claims, Claim{Name: serverLabel + "." + domain, Addresses: in.Server, Reverse: 1, Source: "this server"})
	}
	held := z.grant(append(claims, in.Claims...))
	z.reverse(held)
	for _, s := range in.Services {
		name := mdns.Fqdn(s.Name)
		if zone := z.zoneOf(name); zone != nil {
			zone.put(name, s.Source, &mdns.SRV{Hdr: header(name, mdns.TypeSRV), Port: s.Port, Target: mdns.Fqdn(s.Target)})
		}
	}
	// Without a domain there is no name for the server; its address has one all the same.
	host := serverLabel + ".invalid."
	if len(domains) > 0 {
		host = mdns.Fqdn(serverLabel + "." + domains[0])
	}
	for name, zone := range z.byName {
		zone.finish(name, host, serials)
	}
	return z
}

func (z *Zones) add(name string, part bool) {
	if before := z.byName[name]; before != nil {
		before.part = before.part && part
		return
	}
	z.byName[name] = &Zone{Name: name, part: part, nodes: map[string]*node{}}
}

// grant gives each name to the first who claims it, and returns the claims that were granted.
func (z *Zones) grant(claims []Claim) []Claim {
	var held []Claim
	for _, c := range claims {
		name := mdns.Fqdn(c.Name)
		zone := z.zoneOf(name)
		if _, ok := mdns.IsDomainName(name); !ok || zone == nil || zone.Name == name || isReverse(zone.Name) || len(c.Addresses) == 0 {
			continue
		}
		if before := zone.nodes[name]; before != nil && len(before.records) > 0 {
			if before.source != c.Source {
				z.Collisions = append(z.Collisions, Collision{Name: c.Name, Holder: before.source, Loser: c.Source})
			}
			continue
		}
		for _, a := range c.Addresses {
			zone.put(name, c.Source, addressRecord(name, a))
		}
		held = append(held, c)
	}
	return held
}

// reverse gives each address the best of its names.
func (z *Zones) reverse(held []Claim) {
	best := map[netip.Addr]Claim{}
	for _, c := range held {
		for _, a := range c.Addresses {
			if c.Reverse > best[a].Reverse {
				best[a] = c
			}
		}
	}
	for a, c := range best {
		name, err := mdns.ReverseAddr(a.String())
		if err != nil || !z.holds(a) {
			continue
		}
		if zone := z.zoneOf(name); zone != nil {
			zone.put(name, c.Source, &mdns.PTR{Hdr: header(name, mdns.TypePTR), Ptr: mdns.Fqdn(c.Name)})
		}
	}
}

// holds says whether an address lies in one of the networks.
func (z *Zones) holds(a netip.Addr) bool {
	return slices.ContainsFunc(z.networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// zoneOf is the closest zone above a name in lower case, or nil.
func (z *Zones) zoneOf(name string) *Zone {
	for at, end := 0, false; !end; at, end = mdns.NextLabel(name, at) {
		if zone := z.byName[name[at:]]; zone != nil {
			return zone
		}
	}
	return nil
}

func (z *Zone) put(name, source string, rr mdns.RR) {
	at := z.nodes[name]
	if at == nil {
		at = &node{}
		z.nodes[name] = at
	}
	at.source = cmp.Or(at.source, source)
	at.records = append(at.records, rr)
}

// finish adds the zone's own records, and the names that only have others below them.
func (z *Zone) finish(name, host string, serials Serials) {
	mailbox := "hostmaster." + strings.TrimPrefix(host, serverLabel+".")
	if !isReverse(name) {
		host, mailbox = serverLabel+"."+name, "hostmaster."+name
	}
	z.put(name, "this server", &mdns.NS{Hdr: header(name, mdns.TypeNS), Ns: host})
	for owner := range z.nodes {
		for owner != name {
			next, _ := mdns.NextLabel(owner, 0)
			owner = owner[next:]
			if z.nodes[owner] == nil {
				z.nodes[owner] = &node{}
			}
		}
	}
	var sum digest
	for _, at := range z.nodes {
		for _, rr := range at.records {
			sum.add(rr)
		}
	}
	z.Digest = sum.String()
	z.Serial = serials(name, z.Digest)
	soa := &mdns.SOA{Hdr: header(name, mdns.TypeSOA), Ns: host, Mbox: mailbox, Serial: z.Serial, Refresh: 600, Retry: 120, Expire: 7 * 86400, Minttl: negativeTTL}
	z.nodes[name].records = append([]mdns.RR{soa}, z.nodes[name].records...)
}

// digest is one of a set of records, in no order. It takes a fraction of the time that sorting and writing them would.
type digest [4]uint64

func (d *digest) add(rr mdns.RR) {
	h := rr.Header()
	text := append([]byte(h.Name), byte(h.Rrtype>>8), byte(h.Rrtype))
	switch rr := rr.(type) {
	case *mdns.A:
		text = append(text, rr.A...)
	case *mdns.AAAA:
		text = append(text, rr.AAAA...)
	case *mdns.PTR:
		text = append(text, rr.Ptr...)
	default:
		text = append(text, rr.String()...)
	}
	sum := sha256.Sum256(text)
	for i := range d {
		d[i] += binary.BigEndian.Uint64(sum[8*i:])
	}
}

func (d *digest) String() string { return fmt.Sprintf("%016x%016x%016x%016x", d[0], d[1], d[2], d[3]) }

// owners are the names of a zone in DNSSEC's canonical order (RFC 4034, section 6.1), the zone's own first.
func (z *Zone) owners() []string {
	type owner struct {
		name   string
		labels []string // from the root
	}
	all := make([]owner, 0, len(z.nodes))
	for name := range z.nodes {
		labels := mdns.SplitDomainName(name)
		slices.Reverse(labels)
		if isReverse(z.Name) {
			for i, l := range labels { // by number rather than by letter
				if n, err := strconv.Atoi(l); err == nil {
					labels[i] = fmt.Sprintf("%03d", n)
				}
			}
		}
		all = append(all, owner{name, labels})
	}
	slices.SortFunc(all, func(a, b owner) int { return slices.Compare(a.labels, b.labels) })
	names := make([]string, len(all))
	for i, o := range all {
		names[i] = o.name
	}
	return names
}

// reverseZones are the zones for the addresses of a network: those that begin at a dot of their names and lie within it; of a network
// smaller than any such, the one that it is a part of.
func reverseZones(cidr netip.Prefix) (names []string, part bool) {
	step := 4
	if cidr.Addr().Is4() {
		step = 8
	}
	cidr = cidr.Masked()
	end := (cidr.Bits() + step - 1) / step * step // where the labels of the zones end
	if last := cidr.Addr().BitLen() - step; end > last {
		return []string{reverseZone(cidr.Addr(), last, step)}, cidr.Bits() > last
	}
	first := cidr.Addr().AsSlice()
	at := (end - 1) / 8 // the byte that numbers the zones
	for i := range 1 << (end - cidr.Bits()) {
		each := slices.Clone(first)
		if end > 0 {
			each[at] += byte(i << ((8 - end%8) % 8))
		}
		address, _ := netip.AddrFromSlice(each)
		names = append(names, reverseZone(address, end, step))
	}
	return names, false
}

// reverseZone is the name of the zone for the first bits of an address.
func reverseZone(a netip.Addr, bits, step int) string {
	name, err := mdns.ReverseAddr(a.String())
	if err != nil {
		return "."
	}
	labels := mdns.SplitDomainName(name)
	return strings.Join(labels[(a.BitLen()-bits)/step:], ".") + "."
}

func isReverse(zone string) bool {
	return strings.HasSuffix(zone, ".in-addr.arpa.") || strings.HasSuffix(zone, ".ip6.arpa.")
}

// reverseAddress reads the address that the name of a PTR record means; false for any other name.
func reverseAddress(name string) (netip.Addr, bool) {
	labels := mdns.SplitDomainName(name)
	switch {
	case strings.HasSuffix(name, ".in-addr.arpa.") && len(labels) == 6:
		a, err := netip.ParseAddr(strings.Join([]string{labels[3], labels[2], labels[1], labels[0]}, "."))
		return a, err == nil
	case strings.HasSuffix(name, ".ip6.arpa.") && len(labels) == 34:
		var text strings.Builder
		for i := 31; i >= 0; i-- {
			text.WriteString(labels[i])
		}
		raw, err := hex.DecodeString(text.String())
		if err != nil || len(raw) != 16 {
			return netip.Addr{}, false
		}
		return netip.AddrFrom16([16]byte(raw)), true
	}
	return netip.Addr{}, false
}

func header(name string, kind uint16) mdns.RR_Header {
	return mdns.RR_Header{Name: name, Rrtype: kind, Class: mdns.ClassINET, Ttl: ttl}
}

func addressRecord(name string, a netip.Addr) mdns.RR {
	if a.Is4() {
		return &mdns.A{Hdr: header(name, mdns.TypeA), A: a.AsSlice()}
	}
	return &mdns.AAAA{Hdr: header(name, mdns.TypeAAAA), AAAA: a.AsSlice()}
}

// List are all zones, those of domains first.
func (z *Zones) List() []*Zone {
	all := make([]*Zone, 0, len(z.byName))
	for _, zone := range z.byName {
		all = append(all, zone)
	}
	slices.SortFunc(all, func(a, b *Zone) int {
		if x, y := isReverse(a.Name), isReverse(b.Name); x != y {
			if x {
				return 1
			}
			return -1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all
}

// Record is a record for people.
type Record struct {
	Zone   string `json:"zone"`
	Name   string `json:"name"`
	Type   string `json:"type"`
	TTL    uint32 `json:"ttl"`
	Value  string `json:"value"`
	Source string `json:"source,omitempty"`
}

// Partial says that the zone has other addresses, too, which somebody else knows.
func (z *Zone) Partial() bool { return z.part }

// Records are those of a zone, the SOA first.
func (z *Zone) Records() []Record {
	var all []Record
	for _, owner := range z.owners() {
		at := z.nodes[owner]
		for _, rr := range at.records {
			h := rr.Header()
			all = append(all, Record{Zone: z.Name, Name: h.Name, Type: mdns.TypeToString[h.Rrtype], TTL: h.Ttl, Value: strings.TrimPrefix(rr.String(), h.String()), Source: at.source})
		}
	}
	return all
}

// File is the zone as a master file (RFC 1035, section 5).
func (z *Zone) File() string {
	var b strings.Builder
	fmt.Fprintf(&b, "; Names of machines, made by Coldrack. Changes here are lost.\n$ORIGIN %s\n$TTL %d\n", z.Name, ttl)
	if z.part {
		b.WriteString("; Only some addresses of this zone are Coldrack's: merge these lines into the zone that you have.\n")
	}
	for _, owner := range z.owners() {
		for _, rr := range z.nodes[owner].records {
			b.WriteString(rr.String() + "\n")
		}
	}
	return b.String()
}
