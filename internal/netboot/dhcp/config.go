package dhcp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/netboot/lease"
)

// Mode says what the server does in a subnet.
type Mode string

const (
	// ModeServer gives addresses and boot files.
	ModeServer Mode = "server"
	// ModeOff stays silent.
	ModeOff Mode = "off"
	// ModeProxy tells machines that boot from the network what to load; the site's own DHCP server gives them their addresses.
	ModeProxy Mode = "proxy"
)

// Config is what the server works by. It can be replaced while the server runs.
type Config struct {
	// Interfaces are the names of the interfaces to serve, also of those that do not exist yet. None: every Ethernet interface that
	// is up and has an IPv4 address.
	Interfaces []string
	// ServerIP is the address clients know the server by, where an interface has several or where
	// clients are behind a relay. The zero Addr means the interface's own.
	ServerIP netip.Addr
	Subnets  []Subnet
}

// Subnet is one L2 segment.
type Subnet struct {
	Name string // for messages; unique
	CIDR netip.Prefix
	// Pool is for clients without a reservation. The zero Range gives them nothing.
	Pool   Range
	Router netip.Addr
	DNS    []netip.Addr
	NTP    []netip.Addr
	// OwnDNS names the server's own address instead of DNS, OwnNTP before NTP.
	OwnDNS, OwnNTP bool
	Domain         string
	// LeaseTime is an hour by default.
	LeaseTime time.Duration
	Mode      Mode
	// Relays are addresses of relay agents of this segment that are not in CIDR.
	Relays []netip.Addr
	// Options are further ones for clients that ask for them.
	Options []Option
}

// Option is an option of DHCP, as it goes over the wire.
type Option struct {
	Code  uint8
	Value []byte
}

// Range is a range of addresses, both ends included.
type Range = lease.Range

const defaultLeaseTime = time.Hour

// FieldError says what is wrong with one field.
type FieldError = validate.FieldError

// Validate reports everything that is wrong, each as a FieldError within the joined error.
func (c Config) Validate() error {
	v := &validate.Fields{}
	v.Interfaces(c.Interfaces)
	if c.ServerIP.IsValid() && !isHost(c.ServerIP) {
		v.Add("serverIP", "%s is not the IPv4 address of a host", c.ServerIP)
	}
	names := map[string]bool{}
	for i, s := range c.Subnets {
		label := s.Name
		if label == "" {
			label = fmt.Sprint(i)
		}
		path := "subnets[" + label + "]"
		switch {
		case s.Name == "":
			v.Add(path+".name", "is empty")
		case names[s.Name]:
			v.Add(path+".name", "another subnet has this name too")
		}
		names[s.Name] = true
		for _, other := range c.Subnets[:i] {
			v.AddAll(path, s.plan().Beside(other.plan(), other.Name))
		}
		s.validate(v, path, c.ServerIP)
	}
	return v.Err()
}

// plan is the subnet in the form that its rules take.
func (s Subnet) plan() validate.IPPlan {
	return validate.IPPlan{
		CIDR: s.CIDR, Gateway: s.Router, Discovery: validate.AddressRange{First: s.Pool.From, Last: s.Pool.To},
		DNS: s.DNS, NTP: s.NTP, Relays: s.Relays, DHCP: s.Mode == ModeServer,
	}
}

// validate applies the rules of all IP plans, and those that only this server has.
func (s Subnet) validate(v *validate.Fields, path string, serverIP netip.Addr) {
	switch s.Mode {
	case ModeServer, ModeOff:
	case ModeProxy:
		if !s.Pool.IsZero() {
			v.Add(path+".discovery", "%s-%s is set, but in mode proxy the site's own server gives the addresses; remove it", s.Pool.From, s.Pool.To)
		}
	default:
		v.Add(path+".mode", "%q is not a mode; use server, proxy or off", s.Mode)
	}
	if s.CIDR.IsValid() && !s.CIDR.Addr().Is4() {
		v.Add(path+".cidr", "%s is not an IPv4 network", s.CIDR)
		return
	}
	v.AddAll(path, s.plan().Problems())
	for field, servers := range map[string][]netip.Addr{"dns": s.DNS, "ntp": s.NTP} {
		for i, server := range servers {
			if server.Is6() {
				v.Add(fmt.Sprintf("%s.%s[%d]", path, field, i), "%s is IPv6, and DHCPv4 has room for IPv4 addresses only", server)
			}
		}
	}
	v.Leases(path, s.Domain, s.LeaseTime)
	if s.Pool.Contains(serverIP) {
		v.Add(path+".discovery", "%s-%s contains the server's own address %s; leave it out", s.Pool.From, s.Pool.To, serverIP)
	}
}

func (s Subnet) leaseTime() time.Duration {
	if s.LeaseTime == 0 {
		return defaultLeaseTime
	}
	return s.LeaseTime
}

func (s Subnet) hasRelay(a netip.Addr) bool {
	return s.CIDR.Contains(a) || slices.Contains(s.Relays, a)
}

func isHost(a netip.Addr) bool {
	return a.Is4() && !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// broadcast gives the last address of an IPv4 network.
func broadcast(p netip.Prefix) netip.Addr {
	return toAddr(toUint32(p.Addr()) | (1<<(32-p.Bits()) - 1))
}

func toUint32(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func toAddr(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}
