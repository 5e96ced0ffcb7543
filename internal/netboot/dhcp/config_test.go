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
			[]string{"subnets[remote].cidr: 192.0.0.0/16 overlaps with 192.0.2.0/24 of Subnet rack"}},
		"two subnets of one name": {func(c *Config) { c.Subnets[1].Name = "rack" },
			[]string{"subnets[rack].name: another subnet has this name too"}},
		"a subnet without a name": {func(c *Config) { c.Subnets[1].Name = "" }, []string{"subnets[1].name: is empty"}},
		"host bits in the network": {func(c *Config) { c.Subnets[0].CIDR = netip.MustParsePrefix("192.0.2.7/24") },
			[]string{"subnets[rack].cidr: 192.0.2.7/24 has bits set behind the prefix length; the network that this address is in is 192.0.2.0/24"}},
		"an IPv6 network": {func(c *Config) { c.Subnets[0].CIDR = netip.MustParsePrefix("2001:db8::/64") },
			[]string{"subnets[rack].cidr: 2001:db8::/64 is not an IPv4 network"}},
		"no network": {func(c *Config) { c.Subnets[0].CIDR = netip.Prefix{} },
			[]string{"subnets[rack].cidr: is not a network such as 10.20.0.0/24"}},
		"a network too small for anything": {func(c *Config) { c.Subnets[0].CIDR = netip.MustParsePrefix("192.0.2.0/31") },
			[]string{"subnets[rack].cidr: 192.0.2.0/31 is not between /8 and /30, as DHCP needs it"}},
		"a pool outside of the network": {func(c *Config) { c.Subnets[0].Pool = Range{From: addr("192.0.3.1"), To: addr("192.0.3.9")} },
			[]string{"subnets[rack].discovery: 192.0.3.1-192.0.3.9 has the end 192.0.3.1, which is not in the network 192.0.2.0/24", "subnets[rack].discovery: 192.0.3.1-192.0.3.9 has the end 192.0.3.9, which is not in the network 192.0.2.0/24"}},
		"a pool with the network's own addresses": {func(c *Config) { c.Subnets[0].Pool = Range{From: addr("192.0.2.0"), To: addr("192.0.2.255")} },
			[]string{
				"subnets[rack].discovery: 192.0.2.0-192.0.2.255 has the end 192.0.2.0, which is the network address of 192.0.2.0/24",
				"subnets[rack].discovery: 192.0.2.0-192.0.2.255 has the end 192.0.2.255, which is the broadcast address of 192.0.2.0/24",
				"subnets[rack].discovery: 192.0.2.0-192.0.2.255 contains the gateway, 192.0.2.254; leave it out",
				"subnets[rack].discovery: 192.0.2.0-192.0.2.255 contains the DNS server 192.0.2.253: a machine that boots could get its address; leave it out",
				"subnets[rack].discovery: 192.0.2.0-192.0.2.255 contains the time server 192.0.2.1: a machine that boots could get its address; leave it out",
			}},
		"half a pool": {func(c *Config) { c.Subnets[0].Pool.To = netip.Addr{} },
			[]string{"subnets[rack].discovery: 192.0.2.100-invalid IP has the end invalid IP, which is not the IP address of a host"}},
		"a pool backwards": {func(c *Config) { c.Subnets[0].Pool = Range{From: addr("192.0.2.9"), To: addr("192.0.2.8")} },
			[]string{"subnets[rack].discovery: 192.0.2.9-192.0.2.8 ends before it begins"}},
		"a pool over everything that is taken": {func(c *Config) {
			c.ServerIP = addr("192.0.2.2")
			c.Subnets[0].Pool = Range{From: addr("192.0.2.1"), To: addr("192.0.2.254")}
		}, []string{
			"subnets[rack].discovery: 192.0.2.1-192.0.2.254 contains the gateway, 192.0.2.254; leave it out",
			"subnets[rack].discovery: 192.0.2.1-192.0.2.254 contains the DNS server 192.0.2.253: a machine that boots could get its address; leave it out",
			"subnets[rack].discovery: 192.0.2.1-192.0.2.254 contains the time server 192.0.2.1: a machine that boots could get its address; leave it out",
			"subnets[rack].discovery: 192.0.2.1-192.0.2.254 contains the server's own address 192.0.2.2; leave it out",
		}},
		"a router elsewhere":    {func(c *Config) { c.Subnets[0].Router = addr("10.0.0.1") }, []string{"subnets[rack].gateway: 10.0.0.1 is not in the network 192.0.2.0/24"}},
		"an IPv6 DNS server":    {func(c *Config) { c.Subnets[0].DNS = addrs("2001:db8::1") }, []string{"subnets[rack].dns[0]: 2001:db8::1 is IPv6, and DHCPv4 has room for IPv4 addresses only"}},
		"a lease of a second":   {func(c *Config) { c.Subnets[0].LeaseTime = time.Second }, []string{"subnets[rack].leaseTime: 1s is not between 1m0s and 8760h0m0s"}},
		"a proxy with a pool":   {func(c *Config) { c.Subnets[0].Mode = ModeProxy }, []string{"subnets[rack].discovery: 192.0.2.100-192.0.2.103 is set, but in mode proxy the site's own server gives the addresses; remove it"}},
		"no mode":               {func(c *Config) { c.Subnets[0].Mode = "" }, []string{`subnets[rack].mode: "" is not a mode; use server, proxy or off`}},
		"a domain of two words": {func(c *Config) { c.Subnets[0].Domain = "a b" }, []string{`subnets[rack].domain: "a b" is not a domain name: want lower-case letters, digits and hyphens, in labels of at most 63 joined by dots`}},
		"one relay of two subnets": {func(c *Config) { c.Subnets[0].Relays = addrs("203.0.113.9") },
			[]string{"subnets[remote].relays[0]: 203.0.113.9 is a relay of Subnet rack already"}},
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
