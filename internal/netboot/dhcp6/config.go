package dhcp6

import (
	"fmt"
	"net/netip"
	"time"

	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/netboot/lease"
)

// Mode says what the server does in a subnet.
type Mode string

const (
	// ModeServer gives addresses, settings and boot files.
	ModeServer Mode = "server"
	// ModeOff stays silent.
	ModeOff Mode = "off"
)

// Config is what the server works by. It can be replaced while the server runs.
type Config struct {
	// Interfaces are the names of the interfaces to serve, also of those that do not exist yet. None: every Ethernet interface that
	// is up and has an IPv6 address beside its link-local one.
	Interfaces []string
	// ServerIP is the address clients are told for boot files, names and time, where an interface has several or where clients are behind
	// a relay. The zero Addr means the interface's own.
	ServerIP netip.Addr
	Subnets  []Subnet
}

// Subnet is one L2 segment.
type Subnet struct {
	Name string // for messages; unique
	CIDR netip.Prefix
	// Pool is for clients without a fixed address. Of a longer range its first MostLeases addresses are given.
	Pool Range
	// Router is never given to a client. Clients learn of it by router advertisements only.
	Router netip.Addr
	DNS    []netip.Addr
	NTP    []netip.Addr
	// OwnDNS names the server's own address instead of DNS, OwnNTP before NTP.
	OwnDNS, OwnNTP bool
	Domain         string
	// LeaseTime is an hour by default.
	LeaseTime time.Duration
	Mode      Mode
	// Relays are addresses of relay agents that are not in CIDR: those they name as the client's link, and those they send from.
	Relays []netip.Addr
}

// Range is a range of addresses, both ends included.
type Range = lease.Range

// MostLeases bounds what a subnet remembers, and so what strangers can make it remember.
const MostLeases = 1 << 16

const defaultLeaseTime = time.Hour

// FieldError says what is wrong with one field.
type FieldError = validate.FieldError

// Validate reports everything that is wrong, each as a FieldError within the joined error.
func (c Config) Validate() error {
	v := &validate.Fields{}
	v.Interfaces(c.Interfaces)
	if c.ServerIP.IsValid() && !global(c.ServerIP) {
		v.Add("serverIP", "%s is not the IPv6 address of a host that clients behind a router could reach", c.ServerIP)
	}
	for i, s := range c.Subnets {
		path := "subnets[" + s.Name + "]"
		if s.Name == "" {
			path = fmt.Sprintf("subnets[%d]", i)
			v.Add(path+".name", "is empty")
		}
		for _, other := range c.Subnets[:i] {
			if s.Name != "" && other.Name == s.Name {
				v.Add(path+".name", "another subnet has this name too")
			}
			v.AddAll(path, s.plan().Beside(other.plan(), other.Name))
		}
		if s.Mode != ModeServer && s.Mode != ModeOff {
			v.Add(path+".mode", "%q is not a mode of DHCPv6; use server or off", s.Mode)
		}
		if s.CIDR.IsValid() && (!s.CIDR.Addr().Is6() || s.CIDR.Addr().Is4In6()) {
			v.Add(path+".cidr", "%s is not an IPv6 network", s.CIDR)
			continue
		}
		v.AddAll(path, s.plan().Problems())
		for field, servers := range map[string][]netip.Addr{"dns": s.DNS, "ntp": s.NTP} {
			for n, server := range servers {
				if !server.Is6() || server.Is4In6() {
					v.Add(fmt.Sprintf("%s.%s[%d]", path, field, n), "%s is not IPv6, and DHCPv6 has room for IPv6 addresses only", server)
				}
			}
		}
		v.Leases(path, s.Domain, s.LeaseTime)
		if s.Pool.Contains(c.ServerIP) {
			v.Add(path+".discovery", "%s-%s contains the server's own address %s; leave it out", s.Pool.From, s.Pool.To, c.ServerIP)
		}
	}
	return v.Err()
}

// plan is the subnet in the form that its rules take.
func (s Subnet) plan() validate.IPPlan {
	return validate.IPPlan{CIDR: s.CIDR, Gateway: s.Router, Discovery: validate.AddressRange{First: s.Pool.From, Last: s.Pool.To},
		DNS: s.DNS, NTP: s.NTP, Relays: s.Relays, DHCP: s.Mode == ModeServer}
}

func (s Subnet) leaseTime() time.Duration {
	if s.LeaseTime == 0 {
		return defaultLeaseTime
	}
	return s.LeaseTime
}

// bounded is a range without what is beyond its first MostLeases addresses.
func bounded(r Range) Range {
	last := r.From.As16()
	for carry, i := MostLeases-1, 15; i >= 0 && carry > 0; i-- {
		carry += int(last[i])
		last[i] = byte(carry)
		carry >>= 8
	}
	if end := netip.AddrFrom16(last); r.From.Less(end) && end.Less(r.To) {
		r.To = end
	}
	return r
}

// global tells whether an address can be reached from another segment.
func global(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.IsGlobalUnicast()
}
