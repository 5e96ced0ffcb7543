package dhcp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	tests := map[string]struct {
		change func(*Config)
		want   []string
	}{
		"a good configuration":    {func(*Config) {}, nil},
		"a subnet without a pool": {func(c *Config) { c.Subnets[0].Pool = Range{} }, nil},
		"subnets that overlap": {func(c *Config) {
			c.Subnets[1].CIDR = netip.MustParsePrefix("192.0.0.0/16")
			c.Subnets[1].Pool = Range{}
		},
			[]string{"subnets[remote].cidr: 192.0.0.0/16 overlaps with 192.0.2.0/24 of subnet \"rack\""}},
		"two subnets of one name": {func(c *Config) { c.Subnets[1].Name = "rack" },
			[]string{"subnets[rack].name: another subnet has this name too"}},
		"a subnet without a name": {func(c *Config) { c.Subnets[1].Name = "" }, []string{"subnets[1].name: is empty"}},
		"host bits in the network": {func(c *Config) { c.Subnets[0].CIDR = netip.MustParsePrefix("192.0.2.7/24") },
			[]string{"subnets[rack].cidr: 192.0.2.7/24 has host bits set; the network is 192.0.2.0/24"}},
		"an IPv6 network": {func(c *Config) { c.Subnets[0].CIDR = netip.MustParsePrefix("2001:db8::/64") },
			[]string{"subnets[rack].cidr: is not an IPv4 network, such as 192.0.2.0/24"}},
		"no network": {func(c *Config) { c.Subnets[0].CIDR = netip.Prefix{} },
			[]string{"subnets[rack].cidr: is not an IPv4 network, such as 192.0.2.0/24"}},
		"a network too small for anything": {func(c *Config) { c.Subnets[0].CIDR = netip.MustParsePrefix("192.0.2.0/31") },
			[]string{"subnets[rack].cidr: 192.0.2.0/31 is not between /8 and /30"}},
		"a pool outside of the network": {func(c *Config) { c.Subnets[0].Pool = Range{addr("192.0.3.1"), addr("192.0.3.9")} },
			[]string{"subnets[rack].pool.from: 192.0.3.1 is not in 192.0.2.0/24", "subnets[rack].pool.to: 192.0.3.9 is not in 192.0.2.0/24"}},
		"a pool with the network's own addresses": {func(c *Config) { c.Subnets[0].Pool = Range{addr("192.0.2.0"), addr("192.0.2.255")} },
			[]string{"subnets[rack].pool.from: 192.0.2.0 is the network address of 192.0.2.0/24", "subnets[rack].pool.to: 192.0.2.255 is the broadcast address of 192.0.2.0/24"}},
		"half a pool": {func(c *Config) { c.Subnets[0].Pool.To = netip.Addr{} },
			[]string{"subnets[rack].pool.to: is missing; a pool has both ends"}},
		"a pool backwards": {func(c *Config) { c.Subnets[0].Pool = Range{addr("192.0.2.9"), addr("192.0.2.8")} },
			[]string{"subnets[rack].pool: ends at 192.0.2.8, before it begins at 192.0.2.9"}},
		"a pool over everything that is taken": {func(c *Config) {
			c.ServerIP = addr("192.0.2.2")
			c.Subnets[0].Pool = Range{addr("192.0.2.1"), addr("192.0.2.254")}
			c.Subnets[0].Fixed = addrs("192.0.2.10", "198.51.100.200")
		}, []string{
			"subnets[rack].pool: 192.0.2.1-192.0.2.254 contains the server's own address 192.0.2.2; leave it out",
			"subnets[rack].pool: 192.0.2.1-192.0.2.254 contains the router 192.0.2.254; leave it out",
			"subnets[rack].pool: 192.0.2.1-192.0.2.254 contains the DNS server 192.0.2.253; leave it out",
			"subnets[rack].pool: 192.0.2.1-192.0.2.254 contains the NTP server 192.0.2.1; leave it out",
			"subnets[rack].pool: 192.0.2.1-192.0.2.254 contains the fixed address 192.0.2.10; leave it out",
		}},
		"a router elsewhere":    {func(c *Config) { c.Subnets[0].Router = addr("10.0.0.1") }, []string{"subnets[rack].router: 10.0.0.1 is not in 192.0.2.0/24"}},
		"an IPv6 DNS server":    {func(c *Config) { c.Subnets[0].DNS = addrs("2001:db8::1") }, []string{"subnets[rack].dns[0]: 2001:db8::1 is not the IPv4 address of a host"}},
		"a lease of a second":   {func(c *Config) { c.Subnets[0].LeaseTime = time.Second }, []string{"subnets[rack].leaseTime: 1s is not between 1m0s and 8760h0m0s"}},
		"proxy mode":            {func(c *Config) { c.Subnets[0].Mode = ModeProxy }, []string{"subnets[rack].mode: proxy is not supported yet; use server or off"}},
		"no mode":               {func(c *Config) { c.Subnets[0].Mode = "" }, []string{`subnets[rack].mode: "" is not a mode; use server or off`}},
		"a domain of two words": {func(c *Config) { c.Subnets[0].Domain = "a b" }, []string{`subnets[rack].domain: "a b" is not a domain name`}},
		"one relay of two subnets": {func(c *Config) { c.Subnets[0].Relays = addrs("203.0.113.9") },
			[]string{`subnets[remote].relays: 203.0.113.9 is a relay of subnet "rack" already`}},
		"interfaces that cannot be": {func(c *Config) { c.Interfaces = []string{"eth0", "eth0", "a/b"} },
			[]string{`interfaces[1]: "eth0" is listed twice`, `interfaces[2]: "a/b" cannot be an interface's name`}},
		"a server address of no host": {func(c *Config) { c.ServerIP = addr("255.255.255.255") }, []string{"serverIP: 255.255.255.255 is not the IPv4 address of a host"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := Config{Interfaces: []string{"eth0"}, Subnets: []Subnet{rack(), remote()}}
			test.change(&c)
			err := c.Validate()
			var got string
			if err != nil {
				got = err.Error()
				var field FieldError
				if !errors.As(err, &field) {
					t.Error("not a FieldError")
				}
			}
			if want := strings.Join(test.want, "\n"); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestCheckReservation(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.10":  "",
		"192.0.2.100": `192.0.2.100 is in the pool 192.0.2.100-192.0.2.103 of subnet "rack", which is for unknown machines`,
		"192.0.2.254": `192.0.2.254 is the router of subnet "rack"`,
		"192.0.2.1":   "192.0.2.1 is the server's own address",
		"192.0.2.255": "192.0.2.255 is the broadcast address of 192.0.2.0/24",
		"10.0.0.1":    "10.0.0.1 is not in 192.0.2.0/24",
	} {
		err := rack().CheckReservation(addr(address), addr("192.0.2.1"))
		if got := errors.Join(err); (got == nil) != (want == "") || got != nil && got.Error() != want {
			t.Errorf("%s: got %v, want %q", address, got, want)
		}
	}
}
