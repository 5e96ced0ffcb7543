package nodeconfig

import (
	"fmt"
	"net/netip"
	"strings"

	"coldrack.dev/internal/contract/validate"
)

// Problem is one fault of a Config.
type Problem struct {
	Path    string // of the field, as "interfaces[1].gateway"
	Message string // what was found and what would be right
}

// Problems are all faults of a Config, in the order of its fields.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.Path + ": " + one.Message
	}
	return "node configuration: " + strings.Join(lines, "; ")
}

type report struct{ problems Problems }

func (r *report) add(path, format string, args ...any) {
	r.problems = append(r.problems, Problem{path, fmt.Sprintf(format, args...)})
}

// Validate reports everything that is wrong with c, as Problems, or nil. A Config that passes can be
// carried out: no value can leave its line or its folder.
func Validate(c Config) error {
	r := &report{}
	r.hostname(c)
	r.network(c)
	for i, key := range c.SSHKeys {
		r.rule(fmt.Sprintf("sshKeys[%d]", i), key, validate.SSHKey(key))
	}
	r.users(c.Users)
	r.files(c.Files)
	r.units(c.Units)
	for i, h := range c.Hosts {
		at := fmt.Sprintf("hosts[%d]", i)
		r.address(at+".address", h.Address)
		if len(h.Names) == 0 {
			r.add(at+".names", "is empty; want at least one host name")
		}
		for j, n := range h.Names {
			r.rule(fmt.Sprintf("%s.names[%d]", at, j), n, validate.DNSName(n))
		}
	}
	if len(r.problems) == 0 {
		return nil
	}
	return r.problems
}

// rule adds what a rule says about a value.
func (r *report) rule(path, value string, err error) bool {
	if err != nil {
		r.add(path, "%q %v", shorten(value), err)
	}
	return err == nil
}

func (r *report) hostname(c Config) {
	if c.Hostname == "" {
		r.add("hostname", "is empty; want the machine's name")
	} else {
		r.rule("hostname", c.Hostname, validate.Hostname(c.Hostname))
	}
	if c.Domain != "" {
		r.rule("domain", c.Domain, validate.Domain(c.Domain))
	}
	if c.Timezone != "" {
		r.rule("timezone", c.Timezone, validate.Timezone(c.Timezone))
	}
}

func (r *report) address(at, s string) (netip.Addr, bool) {
	a, err := validate.ParseHostAddress(s)
	return a, r.rule(at, s, err)
}

func (r *report) network(c Config) {
	if c.Links != nil {
		r.links(c)
	} else {
		r.interfaces(c)
	}
	for i, s := range c.DNS {
		r.address(fmt.Sprintf("dns[%d]", i), s)
	}
	for i, s := range c.NTP {
		r.rule(fmt.Sprintf("ntp[%d]", i), s, validate.TimeServer(s))
	}
}

func (r *report) interfaces(c Config) {
	macs, addrs, gateways := map[string]string{}, map[netip.Addr]string{}, map[bool]string{}
	for i, f := range c.Interfaces {
		at := fmt.Sprintf("interfaces[%d]", i)
		switch {
		case !r.rule(at+".mac", f.MAC, validate.MAC(f.MAC)):
		case macs[f.MAC] != "":
			r.add(at+".mac", "%s is that of %s too", f.MAC, macs[f.MAC])
		default:
			macs[f.MAC] = at
		}
		prefixes := r.addresses(at, f, addrs)
		if f.Gateway != "" {
			r.gateway(at+".gateway", f.Gateway, prefixes, gateways)
		}
		low := 576
		for _, p := range prefixes {
			if p.Addr().Is6() {
				low = 1280 // RFC 8200, section 5
			}
		}
		if f.MTU != 0 && (f.MTU < low || f.MTU > 65535) {
			r.add(at+".mtu", "is %d; want 0 for the default, or %d to 65535", f.MTU, low)
		}
	}
}

func (r *report) addresses(at string, f Interface, seen map[netip.Addr]string) []netip.Prefix {
	var prefixes []netip.Prefix
	if len(f.Addresses) == 0 {
		r.add(at+".addresses", "is empty; want at least one address with prefix length")
	}
	for j, s := range f.Addresses {
		here := fmt.Sprintf("%s.addresses[%d]", at, j)
		p, err := netip.ParsePrefix(s)
		switch a := p.Addr(); {
		case err != nil:
			r.add(here, "%q is not an address with prefix length, such as 10.0.0.7/24", s)
		case a.IsLoopback() || p.Bits() == 0:
			r.add(here, "%s cannot be the address of a host", s)
		case validate.HostOf(p, a) != "":
			r.add(here, "%s %s", s, validate.HostOf(p, a))
		case seen[a] != "":
			r.add(here, "%s is at %s too", a, seen[a])
		default:
			seen[a] = here
			prefixes = append(prefixes, p)
		}
	}
	return prefixes
}

func (r *report) gateway(at, s string, prefixes []netip.Prefix, seen map[bool]string) {
	a, ok := r.address(at, s)
	if !ok {
		return
	}
	reachable := a.IsLinkLocalUnicast()
	for _, p := range prefixes {
		if p.Addr() == a {
			r.add(at, "%s is the interface's own address", a)
			return
		}
		reachable = reachable || p.Contains(a)
	}
	switch {
	case !reachable:
		r.add(at, "%s is in none of the interface's networks", a)
	case seen[a.Is4()] != "":
		r.add(at, "%s is a second default gateway; %s has the first", a, seen[a.Is4()])
	default:
		seen[a.Is4()] = at
	}
}

func shorten(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

func (r *report) users(users []User) {
	seen := map[string]bool{}
	for i, u := range users {
		at := fmt.Sprintf("users[%d]", i)
		if r.rule(at+".name", u.Name, validate.UserName(u.Name)) && seen[u.Name] {
			r.add(at+".name", "%q is there twice", u.Name)
		}
		seen[u.Name] = true
		for j, key := range u.SSHKeys {
			r.rule(fmt.Sprintf("%s.sshKeys[%d]", at, j), key, validate.SSHKey(key))
		}
		if u.PasswordHash != "" {
			if err := validate.PasswordHash(u.PasswordHash); err != nil {
				r.add(at+".passwordHash", "%v", err) // the hash itself is nobody's to read
			}
		}
		if u.Shell != "" {
			r.rule(at+".shell", u.Shell, validate.Path(u.Shell))
		}
	}
}

func (r *report) files(files []File) {
	seen, paths := map[string]bool{}, make([]string, len(files))
	for i, f := range files {
		paths[i] = f.Path
	}
	below := validate.FilesBelow(paths)
	for i, f := range files {
		at := fmt.Sprintf("files[%d]", i)
		if below[i] != "" {
			r.add(at+".path", "%q: %s cannot be a file and a folder", shorten(f.Path), below[i])
		}
		if r.rule(at+".path", f.Path, validate.FilePath(f.Path)) && seen[f.Path] {
			r.add(at+".path", "%s is there twice", f.Path)
		}
		seen[f.Path] = true
		if err := validate.FileMode(f.Mode); err != nil {
			r.add(at+".mode", "%v (in JSON a mode is decimal: 0644 is 420)", err)
		}
		if f.Owner != "" {
			r.rule(at+".owner", f.Owner, validate.FileOwner(f.Owner))
		}
	}
}

func (r *report) units(units []Unit) {
	seen := map[string]bool{}
	for i, u := range units {
		at := fmt.Sprintf("units[%d]", i)
		if r.rule(at+".name", u.Name, validate.UnitName(u.Name)) && seen[u.Name] {
			r.add(at+".name", "%q is there twice", u.Name)
		}
		seen[u.Name] = true
		if err := validate.Unit(u.Content, u.Enabled, u.Masked); err != nil {
			r.add(at, "%v", err)
		}
	}
}
