package loadbalancer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
)

func members(text string) []Member {
	var all []Member
	for name := range strings.FieldsSeq(text) {
		m := Member{Name: name, Standing: Ready, Networks: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}}
		name, option, _ := strings.Cut(name, ":")
		m.Name = name
		switch option {
		case "reserve":
			m.Standing = Reserve
		case "absent":
			m.Standing = Absent
		case "elsewhere":
			m.Networks = []netip.Prefix{netip.MustParsePrefix("10.8.0.0/24")}
		}
		all = append(all, m)
	}
	return all
}

func TestHolder(t *testing.T) {
	address := netip.MustParseAddr("10.9.0.200")
	for name, test := range map[string]struct {
		members string
		nodes   []string
		want    string
	}{
		"nobody":                                           {"", nil, ""},
		"the only one":                                     {"a", nil, "a"},
		"a ready one before one in reserve":                {"a:reserve b:reserve c", nil, "c"},
		"one in reserve before none":                       {"a:absent b:reserve", nil, "b"},
		"nobody who is absent":                             {"a:absent", nil, ""},
		"one on the segment before a ready one":            {"a:elsewhere b:reserve", nil, "b"},
		"anyone if the pool is on no node's segment":       {"a:elsewhere", nil, "a"},
		"one on the segment that is absent does not count": {"a:elsewhere b:absent", nil, "a"},
		"only where the endpoints are":                     {"a b c", []string{"b"}, "b"},
		"no endpoint":                                      {"a b c", []string{}, ""},
		"an endpoint where nobody announces":               {"a b", []string{"z"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Holder(Address{Addr: address, Nodes: test.nodes}, members(test.members)); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// Routers are told by all nodes of the best standing, wherever they are.
func TestTells(t *testing.T) {
	for name, test := range map[string]struct {
		members string
		nodes   []string
		want    string
	}{
		"nobody":                               {"", nil, ""},
		"all that are ready":                   {"a b:reserve c d:absent", nil, "a c"},
		"segments make no difference":          {"a b:elsewhere", nil, "a b"},
		"all in reserve, if nobody is ready":   {"a:reserve b:reserve c:absent", nil, "a b"},
		"only where the endpoints are":         {"a b c", []string{"b", "c"}, "b c"},
		"the last one with endpoints goes on":  {"a b:reserve c", []string{"b"}, "b"},
		"the endpoints are on a node in vain":  {"a b:absent", []string{"b"}, ""},
		"no endpoint":                          {"a b", []string{}, ""},
		"one drained, the other has endpoints": {"a:reserve b", []string{"a", "b"}, "b"},
	} {
		t.Run(name, func(t *testing.T) {
			all := members(test.members)
			var got []string
			for _, m := range all {
				if Tells(m.Name, Address{Addr: netip.MustParseAddr("198.51.100.1"), Nodes: test.nodes, Routed: true}, all) {
					got = append(got, m.Name)
				}
			}
			if text := strings.Join(got, " "); text != test.want {
				t.Errorf("got %q, want %q", text, test.want)
			}
		})
	}
	if Tells("z", Address{}, members("a b")) {
		t.Error("a node that is no member tells")
	}
}

// Each node gets its share, and when one goes, no address moves that was not its own.
func TestHoldersAreEvenAndSteady(t *testing.T) {
	all := members("node-1 node-2 node-3 node-4")
	count := map[string]int{}
	for i := range 1000 {
		address := Address{Addr: netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})}
		was := Holder(address, all)
		count[was]++
		backwards := slices.Clone(all)
		slices.Reverse(backwards)
		if got := Holder(address, backwards); got != was {
			t.Fatalf("%s: %s or %s, by the order of members", address.Addr, was, got)
		}
		without := slices.DeleteFunc(slices.Clone(all), func(m Member) bool { return m.Name == "node-2" })
		if is := Holder(address, without); was != "node-2" && is != was {
			t.Fatalf("%s moved from %s to %s although node-2 went", address.Addr, was, is)
		}
	}
	for name, n := range count {
		if n < 200 || n > 300 {
			t.Errorf("%s has %d of 1000 addresses", name, n)
		}
	}
}

func pools(t *testing.T, texts ...string) []Pool {
	t.Helper()
	var spec []v1alpha1.LoadBalancerPool
	for _, text := range texts {
		fields := strings.Fields(text)
		p := v1alpha1.LoadBalancerPool{Name: fields[0]}
		for _, f := range fields[1:] {
			if f == "onRequest" {
				p.OnRequest = true
			} else {
				p.Addresses = append(p.Addresses, f)
			}
		}
		spec = append(spec, p)
	}
	pools, err := Pools(spec)
	if err != nil {
		t.Fatal(err)
	}
	return pools
}

func addresses(text string) (list []netip.Addr) {
	for f := range strings.FieldsSeq(text) {
		list = append(list, netip.MustParseAddr(f))
	}
	return list
}

func TestAllocate(t *testing.T) {
	one, six, dual := []Family{IPv4}, []Family{IPv6}, []Family{IPv4, IPv6}
	usual := []string{"default 10.9.0.200-10.9.0.201 fd09::200/127", "special 10.9.0.250 onRequest"}
	for name, test := range map[string]struct {
		pools    []string
		services []Service // in the order of their creation
		want     string
	}{
		"the first that is free":               {usual, []Service{{Key: "a", Families: one}, {Key: "b", Families: one}}, "a 10.9.0.200, b 10.9.0.201"},
		"IPv6":                                 {usual, []Service{{Key: "a", Families: six}}, "a fd09::200"},
		"both families in the Service's order": {usual, []Service{{Key: "a", Families: []Family{IPv6, IPv4}}}, "a fd09::200 10.9.0.200"},
		"what is there stays":                  {usual, []Service{{Key: "a", Families: one}, {Key: "b", Families: one, Current: addresses("10.9.0.200")}}, "a 10.9.0.201, b 10.9.0.200"},
		"of two with one address the older keeps it": {usual,
			[]Service{{Key: "a", Families: one, Current: addresses("10.9.0.201")}, {Key: "b", Families: one, Current: addresses("10.9.0.201")}}, "a 10.9.0.201, b 10.9.0.200"},
		"the pool is empty": {usual, []Service{{Key: "a", Families: one}, {Key: "b", Families: one}, {Key: "c", Families: one}},
			"a 10.9.0.200, b 10.9.0.201, c: PoolExhausted all IPv4 addresses of the pools are in use; add some to spec.network.loadBalancer.pools of the Cluster"},
		"requests go before the rest": {usual, []Service{{Key: "a", Families: one}, {Key: "b", Families: one, Requested: addresses("10.9.0.200")}}, "a 10.9.0.201, b 10.9.0.200"},
		"a request for what is taken": {usual, []Service{{Key: "a", Families: one, Current: addresses("10.9.0.200")}, {Key: "b", Families: one, Requested: addresses("10.9.0.200")}},
			"a 10.9.0.200, b: AddressTaken 10.9.0.200 is the address of Service a"},
		"a request that cannot be granted leaves what is there": {usual, []Service{{Key: "a", Families: one, Current: addresses("10.9.0.200")},
			{Key: "b", Families: one, Current: addresses("10.9.0.201"), Requested: addresses("10.9.0.200")}}, "a 10.9.0.200, b 10.9.0.201: AddressTaken 10.9.0.200 is the address of Service a"},
		"a request for another address moves": {usual, []Service{{Key: "a", Families: one, Current: addresses("10.9.0.200"), Requested: addresses("10.9.0.201")}}, "a 10.9.0.201"},
		"a request outside of all pools": {usual, []Service{{Key: "a", Families: one, Requested: addresses("10.9.0.1")}},
			"a: AddressNotInPool 10.9.0.1 is in no pool; the cluster has default (10.9.0.200-10.9.0.201, fd09::200-fd09::201), special (10.9.0.250-10.9.0.250)"},
		"a pool by name":             {usual, []Service{{Key: "a", Families: one, Pool: "special"}}, "a 10.9.0.250"},
		"a pool by an address":       {usual, []Service{{Key: "a", Families: one, Requested: addresses("10.9.0.250")}}, "a 10.9.0.250"},
		"no such pool":               {usual, []Service{{Key: "a", Families: one, Pool: "lost"}}, "a: NoSuchPool there is no pool lost; the cluster has default (10.9.0.200-10.9.0.201, fd09::200-fd09::201), special (10.9.0.250-10.9.0.250)"},
		"an address of another pool": {usual, []Service{{Key: "a", Families: one, Pool: "special", Requested: addresses("10.9.0.200")}}, "a: AddressNotInPool 10.9.0.200 is not in pool special"},
		"both families, one is exhausted": {[]string{"default 10.9.0.200"}, []Service{{Key: "a", Families: dual}},
			"a: PoolExhausted no pool that is not onRequest has IPv6 addresses; add some to spec.network.loadBalancer.pools of the Cluster"},
		"what it could not have is free for others": {[]string{"default 10.9.0.200"}, []Service{{Key: "a", Families: dual}, {Key: "b", Families: one}},
			"a: PoolExhausted no pool that is not onRequest has IPv6 addresses; add some to spec.network.loadBalancer.pools of the Cluster, b 10.9.0.200"},
		"either family is enough":               {[]string{"default 10.9.0.200"}, []Service{{Key: "a", Families: dual, Either: true}}, "a 10.9.0.200"},
		"the second family comes with its pool": {usual, []Service{{Key: "a", Families: dual, Either: true, Current: addresses("10.9.0.201")}}, "a 10.9.0.201 fd09::200"},
		"a pool that has become smaller":        {[]string{"default 10.9.0.201"}, []Service{{Key: "a", Families: one, Current: addresses("10.9.0.200")}}, "a 10.9.0.201"},
		"a family that it wants no more":        {usual, []Service{{Key: "a", Families: one, Current: addresses("10.9.0.200 fd09::200")}}, "a 10.9.0.200"},
		"a request that cannot be read":         {usual, []Service{{Key: "a", Families: one, Current: addresses("10.9.0.200"), Problem: "bad"}}, "a 10.9.0.200: BadRequest bad"},
		"a request of the other family":         {usual, []Service{{Key: "a", Families: one, Requested: addresses("fd09::200")}}, "a: BadRequest it requests no IPv4 address, and the Service wants one"},
		"no pools":                              {nil, []Service{{Key: "a", Families: one, Requested: addresses("10.9.0.1")}}, "a: AddressNotInPool 10.9.0.1 is in no pool; the cluster has none"},
	} {
		t.Run(name, func(t *testing.T) {
			for i := range test.services {
				test.services[i].Created = time.Unix(int64(i), 0)
			}
			grants := Allocate(pools(t, test.pools...), test.services)
			var got []string
			used := map[netip.Addr]string{}
			for _, s := range test.services {
				g := grants[s.Key]
				text := s.Key
				for _, a := range g.Addresses {
					text += " " + a.String()
					if other := used[a]; other != "" {
						t.Errorf("%s is given to %s and %s", a, other, s.Key)
					}
					used[a] = s.Key
				}
				if g.Problem != nil {
					text += fmt.Sprintf(": %s %s", g.Problem.Reason, g.Problem.Message)
				}
				got = append(got, text)
			}
			if text := strings.Join(got, ", "); text != test.want {
				t.Errorf("got  %s\nwant %s", text, test.want)
			}
		})
	}
}
