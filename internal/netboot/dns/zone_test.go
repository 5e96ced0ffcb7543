package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"
)

func addresses(texts ...string) (all []netip.Addr) {
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

// rack has two segments with a domain, a part of a third network, and one IPv6 network.
func rack() Inventory {
	return Inventory{
		Networks: []Network{
			{netip.MustParsePrefix("10.20.0.0/24"), "rack.example.org"},
			{netip.MustParsePrefix("192.0.2.64/26"), "rack.example.org"},
			{netip.MustParsePrefix("10.32.0.0/15"), ""},
			{netip.MustParsePrefix("fd00:20::/64"), "rack.example.org"},
		},
		Server: addresses("10.20.0.1", "fd00:20::1"),
		Claims: []Claim{
			{"m-1.rack.example.org", addresses("10.20.0.11", "fd00:20::11"), 2, "Machine m-1"},
			{"m-2.rack.example.org", addresses("192.0.2.70"), 2, "Machine m-2"},
			{"m-3.rack.example.org", addresses("10.20.0.13"), 2, "Machine m-3"},
			{"db.rack.example.org", addresses("10.20.0.11", "fd00:20::11"), 3, "Machine m-1"},
			{"db.rack.example.org", addresses("10.20.0.13"), 3, "Machine m-3"},
			{"coldrack.rack.example.org", addresses("10.20.0.66"), 3, "Machine thief"},
			{"api.prod.rack.example.org", addresses("10.20.0.5"), 1, "Cluster prod"},
			{"elsewhere.example.net", addresses("10.20.0.99"), 1, "Machine m-9"},
		},
		Services: []Service{{"_kubernetes._tcp.prod.rack.example.org", "api.prod.rack.example.org", 6443, "Cluster prod"}},
	}
}

func fixed(string, string) uint32 { return 7 }

func question(name string, kind uint16) mdns.Question {
	return mdns.Question{Name: name, Qtype: kind, Qclass: mdns.ClassINET}
}

func TestAnswers(t *testing.T) {
	zones := Build(rack(), fixed)
	for _, test := range []struct {
		what, name string
		kind       uint16
		want       string // the values, or NXDOMAIN, NODATA with the zone, or ELSEWHERE
	}{
		{"a machine's address", "m-1.rack.example.org.", mdns.TypeA, "10.20.0.11"},
		{"and its other one", "m-1.rack.example.org.", mdns.TypeAAAA, "fd00:20::11"},
		{"whatever the case", "M-1.Rack.example.ORG.", mdns.TypeA, "10.20.0.11"},
		{"its host name", "db.rack.example.org.", mdns.TypeA, "10.20.0.11"},
		{"a machine without IPv6", "m-2.rack.example.org.", mdns.TypeAAAA, "NODATA rack.example.org."},
		{"a name that nobody has", "m-4.rack.example.org.", mdns.TypeA, "NXDOMAIN rack.example.org."},
		{"a name below a machine's", "www.m-1.rack.example.org.", mdns.TypeA, "NXDOMAIN rack.example.org."},
		{"a name that only has others below it", "prod.rack.example.org.", mdns.TypeA, "NODATA rack.example.org."},
		{"a cluster's API", "api.prod.rack.example.org.", mdns.TypeA, "10.20.0.5"},
		{"and how to find it", "_kubernetes._tcp.prod.rack.example.org.", mdns.TypeSRV, "0 0 6443 api.prod.rack.example.org."},
		{"the server, whose name nobody takes", "coldrack.rack.example.org.", mdns.TypeA, "10.20.0.1"},
		{"the zone's own record", "rack.example.org.", mdns.TypeSOA, "coldrack.rack.example.org. hostmaster.rack.example.org. 7 600 120 604800 15"},
		{"its name server", "rack.example.org.", mdns.TypeNS, "coldrack.rack.example.org."},
		{"everything", "m-1.rack.example.org.", mdns.TypeANY, "10.20.0.11"},
		{"a mail server", "m-1.rack.example.org.", mdns.TypeMX, "NODATA rack.example.org."},
		{"an address's best name", "11.0.20.10.in-addr.arpa.", mdns.TypePTR, "db.rack.example.org."},
		{"the name that is left", "13.0.20.10.in-addr.arpa.", mdns.TypePTR, "m-3.rack.example.org."},
		{"an IPv6 address's", "1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.0.d.f.ip6.arpa.", mdns.TypePTR, "db.rack.example.org."},
		{"half of an IPv6 address", "0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.0.d.f.ip6.arpa.", mdns.TypePTR, "NODATA 0.0.0.0.0.0.0.0.0.2.0.0.0.0.d.f.ip6.arpa."},
		{"an address that nobody has", "12.0.20.10.in-addr.arpa.", mdns.TypePTR, "NXDOMAIN 0.20.10.in-addr.arpa."},
		{"our part of a network", "70.2.0.192.in-addr.arpa.", mdns.TypePTR, "m-2.rack.example.org."},
		{"an address of it that nobody has", "71.2.0.192.in-addr.arpa.", mdns.TypePTR, "NXDOMAIN 2.0.192.in-addr.arpa."},
		{"the others' part", "7.2.0.192.in-addr.arpa.", mdns.TypePTR, "ELSEWHERE"},
		{"what it says of itself", "2.0.192.in-addr.arpa.", mdns.TypeSOA, "ELSEWHERE"},
		{"the second half of a wide network", "9.9.33.10.in-addr.arpa.", mdns.TypePTR, "NXDOMAIN 33.10.in-addr.arpa."},
		{"its neighbour", "9.9.34.10.in-addr.arpa.", mdns.TypePTR, "ELSEWHERE"},
		{"another domain", "elsewhere.example.net.", mdns.TypeA, "ELSEWHERE"},
		{"a domain that ends alike", "brack.example.org.", mdns.TypeA, "ELSEWHERE"},
		{"the root", ".", mdns.TypeNS, "ELSEWHERE"},
	} {
		got, ok := zones.Answer(question(test.name, test.kind))
		var values []string
		for _, rr := range got.Answer {
			if rr.Header().Name != test.name {
				t.Errorf("%s: the answer is for %q", test.what, rr.Header().Name)
			}
			values = append(values, strings.TrimPrefix(rr.String(), rr.Header().String()))
		}
		is := strings.Join(values, ", ")
		switch {
		case !ok:
			is = "ELSEWHERE"
		case len(got.Answer) == 0:
			is = map[int]string{mdns.RcodeSuccess: "NODATA ", mdns.RcodeNameError: "NXDOMAIN "}[got.Rcode] + got.Authority[0].Header().Name
			if got.Authority[0].Header().Ttl != negativeTTL {
				t.Errorf("%s: is remembered for %d s", test.what, got.Authority[0].Header().Ttl)
			}
		}
		if is != test.want {
			t.Errorf("%s (%s): %s, want %s", test.what, test.name, is, test.want)
		}
	}
	want := []Collision{{"db.rack.example.org", "Machine m-1", "Machine m-3"}, {"coldrack.rack.example.org", "this server", "Machine thief"}}
	if !slices.Equal(zones.Collisions, want) {
		t.Errorf("collisions: %+v", zones.Collisions)
	}
}

func TestReverseZones(t *testing.T) {
	for cidr, want := range map[string]string{
		"10.0.0.0/8":         "10.in-addr.arpa.",
		"10.32.0.0/15":       "32.10.in-addr.arpa. 33.10.in-addr.arpa.",
		"10.20.4.0/22":       "4.20.10.in-addr.arpa. 5.20.10.in-addr.arpa. 6.20.10.in-addr.arpa. 7.20.10.in-addr.arpa.",
		"10.20.0.0/24":       "0.20.10.in-addr.arpa.",
		"10.20.0.128/25":     "0.20.10.in-addr.arpa. part",
		"10.20.0.1/32":       "0.20.10.in-addr.arpa. part",
		"fd00:20::/64":       "0.0.0.0.0.0.0.0.0.2.0.0.0.0.d.f.ip6.arpa.",
		"fd00:20:0:4::/63":   "4.0.0.0.0.0.0.0.0.2.0.0.0.0.d.f.ip6.arpa. 5.0.0.0.0.0.0.0.0.2.0.0.0.0.d.f.ip6.arpa.",
		"2001:db8:0:10::/60": "1.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.",
		"2001:db8:0:40::/58": "4.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 5.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 6.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 7.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.",
		"2001:db8::dead/127": "d.a.e.d.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.",
	} {
		names, part := reverseZones(netip.MustParsePrefix(cidr))
		is := strings.Join(names, " ")
		if part {
			is += " part"
		}
		if cidr == "2001:db8::dead/127" {
			want = strings.TrimPrefix(want, "d.") + " part"
		}
		if is != want {
			t.Errorf("%s: %s, want %s", cidr, is, want)
		}
	}
}

// A serial number belongs to what a zone says, and to nothing else.
func TestADigestTellsWhatHasChanged(t *testing.T) {
	digests := func(in Inventory) map[string]string {
		all := map[string]string{}
		Build(in, func(zone, digest string) uint32 { all[zone] = digest; return 1 })
		return all
	}
	before, in := digests(rack()), rack()
	slices.Reverse(in.Networks)
	if again := digests(in); fmt.Sprint(again) != fmt.Sprint(before) {
		t.Errorf("another order of networks is a change: %v, %v", before, again)
	}
	in = rack()
	in.Claims[1].Addresses = addresses("192.0.2.71")
	after := digests(in)
	for zone, digest := range before {
		if changed := zone == "rack.example.org." || zone == "2.0.192.in-addr.arpa."; (after[zone] != digest) != changed {
			t.Errorf("zone %s: changed %v", zone, !changed)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	zones := Build(rack(), fixed)
	f.Add("m-1.rack.example.org.", mdns.TypeA)
	f.Add("1.1.ip6.arpa.", mdns.TypePTR)
	f.Fuzz(func(t *testing.T, name string, kind uint16) {
		if _, ok := mdns.IsDomainName(name); !ok {
			return
		}
		got, ok := zones.Answer(question(mdns.Fqdn(name), kind))
		if ok && got.Rcode == mdns.RcodeSuccess && len(got.Answer)+len(got.Authority) == 0 {
			t.Errorf("%q %d: neither an answer nor why there is none", name, kind)
		}
	})
}
