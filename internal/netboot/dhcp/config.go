package dhcp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Mode says what the server does in a subnet.
type Mode string

const (
	// ModeServer gives addresses and boot files.
	ModeServer Mode = "server"
	// ModeOff stays silent.
	ModeOff Mode = "off"
	// ModeProxy would give boot files beside the site's own DHCP server. It is not supported yet.
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
	Domain string
	// LeaseTime is an hour by default.
	LeaseTime time.Duration
	Mode      Mode
	// Relays are addresses of relay agents of this segment that are not in CIDR.
	Relays []netip.Addr
	// Fixed are addresses known to be used otherwise. They serve Validate only: reservations are
	// asked of the Backend.
	Fixed []netip.Addr
}

// Range is a range of addresses, both ends included.
type Range struct{ From, To netip.Addr }

// IsZero tells whether the range is not set.
func (r Range) IsZero() bool { return r == Range{} }

// Contains tells whether an address is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.From.IsValid() && r.From.Compare(a) <= 0 && a.Compare(r.To) <= 0
}

const (
	defaultLeaseTime = time.Hour
	leastLeaseTime   = time.Minute
	mostLeaseTime    = 365 * 24 * time.Hour
)

// FieldError says what is wrong with one field.
type FieldError struct {
	Path    string // such as "subnets[rack-1].pool.from"
	Problem string // what was found and what would be right
}

func (e FieldError) Error() string { return e.Path + ": " + e.Problem }

// Validate reports everything that is wrong, each as a FieldError within the joined error.
func (c Config) Validate() error {
	v := &validation{}
	seen := map[string]bool{}
	for i, name := range c.Interfaces {
		path := fmt.Sprintf("interfaces[%d]", i)
		switch {
		case name == "" || len(name) > 15 || strings.ContainsAny(name, "/ \t\n"):
			v.add(path, "%q cannot be an interface's name", name)
		case seen[name]:
			v.add(path, "%q is listed twice", name)
		}
		seen[name] = true
	}
	if c.ServerIP.IsValid() && !isHost(c.ServerIP) {
		v.add("serverIP", "%s is not the IPv4 address of a host", c.ServerIP)
	}
	names, relays := map[string]bool{}, map[netip.Addr]string{}
	for i, s := range c.Subnets {
		label := s.Name
		if label == "" {
			label = fmt.Sprint(i)
		}
		path := "subnets[" + label + "]"
		switch {
		case s.Name == "":
			v.add(path+".name", "is empty")
		case names[s.Name]:
			v.add(path+".name", "another subnet has this name too")
		}
		names[s.Name] = true
		for _, relay := range s.Relays {
			if other, taken := relays[relay]; taken {
				v.add(path+".relays", "%s is a relay of subnet %q already", relay, other)
			}
			relays[relay] = s.Name
		}
		for _, other := range c.Subnets[:i] {
			if s.CIDR.IsValid() && other.CIDR.IsValid() && s.CIDR.Overlaps(other.CIDR) {
				v.add(path+".cidr", "%s overlaps with %s of subnet %q", s.CIDR, other.CIDR, other.Name)
			}
		}
		s.validate(v, path, c.ServerIP)
	}
	return errors.Join(v.errs...)
}

type validation struct{ errs []error }

func (v *validation) add(path, format string, args ...any) {
	v.errs = append(v.errs, FieldError{path, fmt.Sprintf(format, args...)})
}

func (s Subnet) validate(v *validation, path string, serverIP netip.Addr) {
	switch s.Mode {
	case ModeServer, ModeOff:
	case ModeProxy:
		v.add(path+".mode", "proxy is not supported yet; use server or off")
	default:
		v.add(path+".mode", "%q is not a mode; use server or off", s.Mode)
	}
	switch {
	case !s.CIDR.IsValid() || !s.CIDR.Addr().Is4():
		v.add(path+".cidr", "is not an IPv4 network, such as 192.0.2.0/24")
		return
	case s.CIDR != s.CIDR.Masked():
		v.add(path+".cidr", "%s has host bits set; the network is %s", s.CIDR, s.CIDR.Masked())
		return
	case s.CIDR.Bits() > 30 || s.CIDR.Bits() < 8:
		v.add(path+".cidr", "%s is not between /8 and /30", s.CIDR)
		return
	}
	if s.Router.IsValid() {
		if problem := s.hostProblem(s.Router); problem != "" {
			v.add(path+".router", "%s %s", s.Router, problem)
		}
	}
	for field, servers := range map[string][]netip.Addr{"dns": s.DNS, "ntp": s.NTP, "relays": s.Relays} {
		for i, server := range servers {
			if !isHost(server) {
				v.add(fmt.Sprintf("%s.%s[%d]", path, field, i), "%s is not the IPv4 address of a host", server)
			}
		}
	}
	if len(s.Domain) > 200 || strings.ContainsFunc(s.Domain, func(r rune) bool { return r <= ' ' || r > '~' }) {
		v.add(path+".domain", "%q is not a domain name", s.Domain)
	}
	if s.LeaseTime != 0 && (s.LeaseTime < leastLeaseTime || s.LeaseTime > mostLeaseTime) {
		v.add(path+".leaseTime", "%s is not between %s and %s", s.LeaseTime, leastLeaseTime, mostLeaseTime)
	}
	if !s.Pool.IsZero() {
		s.validatePool(v, path+".pool", serverIP)
	}
}

func (s Subnet) validatePool(v *validation, path string, serverIP netip.Addr) {
	before := len(v.errs)
	for _, end := range []struct {
		name string
		addr netip.Addr
	}{{"from", s.Pool.From}, {"to", s.Pool.To}} {
		if !end.addr.IsValid() {
			v.add(path+"."+end.name, "is missing; a pool has both ends")
		} else if problem := s.hostProblem(end.addr); problem != "" {
			v.add(path+"."+end.name, "%s %s", end.addr, problem)
		}
	}
	if len(v.errs) > before {
		return
	}
	if s.Pool.To.Less(s.Pool.From) {
		v.add(path, "ends at %s, before it begins at %s", s.Pool.To, s.Pool.From)
		return
	}
	forbidden := func(what string, addresses ...netip.Addr) {
		for _, a := range addresses {
			if s.Pool.Contains(a) {
				v.add(path, "%s-%s contains %s %s; leave it out", s.Pool.From, s.Pool.To, what, a)
			}
		}
	}
	forbidden("the server's own address", serverIP)
	forbidden("the router", s.Router)
	forbidden("the DNS server", s.DNS...)
	forbidden("the NTP server", s.NTP...)
	forbidden("the relay", s.Relays...)
	forbidden("the fixed address", s.Fixed...)
}

// CheckReservation tells what keeps an address from being some machine's fixed one in the subnet.
func (s Subnet) CheckReservation(address, serverIP netip.Addr) error {
	switch problem := s.hostProblem(address); {
	case problem != "":
		return fmt.Errorf("%s %s", address, problem)
	case s.Pool.Contains(address):
		return fmt.Errorf("%s is in the pool %s-%s of subnet %q, which is for unknown machines", address, s.Pool.From, s.Pool.To, s.Name)
	case address == serverIP:
		return fmt.Errorf("%s is the server's own address", address)
	case address == s.Router:
		return fmt.Errorf("%s is the router of subnet %q", address, s.Name)
	case slices.Contains(s.Relays, address):
		return fmt.Errorf("%s is a relay of subnet %q", address, s.Name)
	}
	return nil
}

// hostProblem tells what keeps an address from being a host's in the subnet.
func (s Subnet) hostProblem(a netip.Addr) string {
	switch {
	case !a.Is4() || !s.CIDR.Contains(a):
		return fmt.Sprintf("is not in %s", s.CIDR)
	case a == s.CIDR.Addr():
		return fmt.Sprintf("is the network address of %s", s.CIDR)
	case a == broadcast(s.CIDR):
		return fmt.Sprintf("is the broadcast address of %s", s.CIDR)
	}
	return ""
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
