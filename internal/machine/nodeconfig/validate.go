package nodeconfig

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"strings"
	"unicode"
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

var (
	userName  = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	owner     = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}:[a-z_][a-z0-9_-]{0,31}$`)
	label     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	unitName  = regexp.MustCompile(`^[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]*)?\.(service|socket|target|timer|mount|path|slice|automount|swap)$`)
	zone      = regexp.MustCompile(`^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}$`)
	cryptHash = regexp.MustCompile(`^(\$[A-Za-z0-9./$=,_-]+|[!*])$`)
)

// reserved paths are written by Coldrack from other parts of the plan; a file there would silently lose.
// One that ends in a slash reserves all below it.
var reserved = []string{
	"/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/fstab", "/etc/machine-id",
	"/etc/coldrack/", "/var/lib/coldrack/", "/boot/efi/", "/boot/grub/grub.cfg",
	"/proc/", "/sys/", "/dev/", "/run/",
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
		r.sshKey(fmt.Sprintf("sshKeys[%d]", i), key)
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
			r.name(fmt.Sprintf("%s.names[%d]", at, j), n)
		}
	}
	if len(r.problems) == 0 {
		return nil
	}
	return r.problems
}

func (r *report) hostname(c Config) {
	if c.Hostname == "" {
		r.add("hostname", "is empty; want the machine's name")
	} else if r.name("hostname", c.Hostname) && len(c.Hostname) > 63 {
		r.add("hostname", "%q has %d characters; Linux allows 63", c.Hostname, len(c.Hostname))
	}
	if c.Domain != "" {
		r.name("domain", c.Domain)
	}
	if c.Timezone != "" && !zone.MatchString(c.Timezone) {
		r.add("timezone", "%q is not a name such as UTC or Europe/Berlin", c.Timezone)
	}
}

func (r *report) name(at, s string) bool {
	ok := len(s) <= 253
	for l := range strings.SplitSeq(s, ".") {
		ok = ok && label.MatchString(l)
	}
	if !ok {
		r.add(at, "%q is not a host name: want lower-case letters, digits and hyphens, in labels of at most 63 joined by dots", s)
	}
	return ok
}

func (r *report) address(at, s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
		r.add(at, "%q is not the IP address of a host", s)
		return a, false
	}
	return a, true
}

func (r *report) network(c Config) {
	macs, addrs, gateways := map[string]string{}, map[netip.Addr]string{}, map[bool]string{}
	for i, f := range c.Interfaces {
		at := fmt.Sprintf("interfaces[%d]", i)
		mac, err := net.ParseMAC(f.MAC)
		switch {
		case err != nil || len(mac) != 6 || mac[0]&1 != 0:
			r.add(at+".mac", "%q is not the MAC address of an interface", f.MAC)
		case macs[mac.String()] != "":
			r.add(at+".mac", "%s is that of %s too", mac, macs[mac.String()])
		default:
			macs[mac.String()] = at
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
	for i, s := range c.DNS {
		r.address(fmt.Sprintf("dns[%d]", i), s)
	}
	for i, s := range c.NTP {
		if _, err := netip.ParseAddr(s); err != nil {
			r.name(fmt.Sprintf("ntp[%d]", i), s)
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
		case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || p.Bits() == 0:
			r.add(here, "%s cannot be the address of a host", s)
		case a.Is4() && p.Bits() < 31 && a == p.Masked().Addr():
			r.add(here, "%s is the address of the whole network; give a host's", s)
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

// keyTypes that OpenSSH 9 accepts in authorized_keys.
var keyTypes = map[string]bool{
	"ssh-ed25519": true, "ssh-rsa": true, "ecdsa-sha2-nistp256": true, "ecdsa-sha2-nistp384": true, "ecdsa-sha2-nistp521": true,
	"sk-ssh-ed25519@openssh.com": true, "sk-ecdsa-sha2-nistp256@openssh.com": true,
}

// sshKey checks a line of authorized_keys: options, type, key, comment. The key's own first field
// repeats the type (RFC 4253, section 6.6), which catches a line that was cut or pasted together.
func (r *report) sshKey(at, line string) {
	if strings.ContainsFunc(line, unicode.IsControl) {
		r.add(at, "contains a line break or another control character; want one key")
		return
	}
	fields := strings.Fields(line)
	for i, f := range fields {
		if !keyTypes[f] {
			continue
		}
		if i+1 == len(fields) {
			break
		}
		b, err := base64.StdEncoding.DecodeString(fields[i+1])
		if err == nil && len(b) > 4 {
			n := binary.BigEndian.Uint32(b)
			if uint64(n) <= uint64(len(b)-4) && string(b[4:4+n]) == f {
				return
			}
		}
		r.add(at, "the key after %q is damaged", f)
		return
	}
	r.add(at, "%q is not a public SSH key (a line such as \"ssh-ed25519 AAAA… name\")", shorten(line))
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
		switch {
		case !userName.MatchString(u.Name):
			r.add(at+".name", "%q is not a login name: want a lower-case letter, then letters, digits, - or _", u.Name)
		case u.Name == "root":
			r.add(at+".name", "root exists already; its keys are sshKeys of the configuration itself")
		case seen[u.Name]:
			r.add(at+".name", "%q is there twice", u.Name)
		}
		seen[u.Name] = true
		for j, key := range u.SSHKeys {
			r.sshKey(fmt.Sprintf("%s.sshKeys[%d]", at, j), key)
		}
		if u.PasswordHash != "" && !cryptHash.MatchString(u.PasswordHash) {
			r.add(at+".passwordHash", "is not a crypt(5) hash; make one with: openssl passwd -6")
		}
		if u.Shell != "" && !plainPath(u.Shell) {
			r.add(at+".shell", "%q is not an absolute path", u.Shell)
		}
	}
}

// plainPath says that p is absolute, clean, and of characters that mean nothing to passwd(5), sudoers and systemd.
func plainPath(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && p != "/" && len(p) < 4096 &&
		!strings.ContainsFunc(p, func(r rune) bool {
			return r == ':' || r == '"' || r == '\\' || r == unicode.ReplacementChar || unicode.IsControl(r) || unicode.IsSpace(r)
		})
}

func (r *report) files(files []File) {
	seen := map[string]bool{}
	for i, f := range files {
		at := fmt.Sprintf("files[%d]", i)
		switch {
		case !plainPath(f.Path):
			r.add(at+".path", "%q is not an absolute path without \"..\", \"//\" and white space", f.Path)
		case seen[f.Path]:
			r.add(at+".path", "%s is there twice", f.Path)
		}
		seen[f.Path] = true
		for _, p := range reserved {
			if f.Path == p || strings.HasSuffix(p, "/") && strings.HasPrefix(f.Path+"/", p) {
				r.add(at+".path", "%s is Coldrack's own to write, or not on the disk at all", f.Path)
			}
		}
		if f.Mode > 0o7777 {
			r.add(at+".mode", "is %#o (%d); want at most 07777 (in JSON and YAML a mode is decimal: 0644 is 420)", f.Mode, f.Mode)
		}
		if f.Owner != "" && !owner.MatchString(f.Owner) {
			r.add(at+".owner", "%q is not user:group", f.Owner)
		}
	}
}

func (r *report) units(units []Unit) {
	seen := map[string]bool{}
	for i, u := range units {
		at := fmt.Sprintf("units[%d]", i)
		switch {
		case !unitName.MatchString(u.Name) || len(u.Name) > 255:
			r.add(at+".name", "%q is not the name of a systemd unit, such as node-exporter.service", u.Name)
		case seen[u.Name]:
			r.add(at+".name", "%q is there twice", u.Name)
		case u.Name == agentUnit || u.Name == hostKeysUnit:
			r.add(at+".name", "%s is Coldrack's own", u.Name)
		}
		seen[u.Name] = true
		if u.Masked && (u.Enabled || u.Content != "") {
			r.add(at+".masked", "a masked unit can be neither enabled nor have content")
		}
		if bytes.ContainsRune([]byte(u.Content), 0) {
			r.add(at+".content", "contains a zero byte")
		}
	}
}
