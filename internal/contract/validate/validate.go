// Package validate has the rules for values that people write and that several parts work by. Each rule is here once:
// the API refuses by it at admission, and the DHCP server, the server's planner and the installer check what they are
// given by the same one, so that none of them can refuse later what the API accepted.
//
// A rule answers with an error that says what is wrong and what would be right. It repeats neither the value nor the
// field's name; those are the caller's to add. Rules are pure and hold for
// every image. What depends on one image is not known here: nodeconfig.ImageFacts checks it, before a disk is wiped.
package validate

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
)

var (
	label        = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	userName     = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	unitName     = regexp.MustCompile(`^[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]*)?\.(service|socket|target|timer|mount|path|slice|automount|swap)$`)
	zoneName     = regexp.MustCompile(`^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}$`)
	quotedString = regexp.MustCompile(`"[^"\n\r]*"`)
	// cryptHash has the methods of crypt(5) that Debian's libcrypt verifies, each with the length of its hash: a hash
	// that was cut short locks its user out.
	cryptHash = regexp.MustCompile(`^(` + strings.Join([]string{
		`\$y\$[./A-Za-z0-9]+\$[./A-Za-z0-9]{1,86}\$[./A-Za-z0-9]{43}`,  // yescrypt
		`\$gy\$[./A-Za-z0-9]+\$[./A-Za-z0-9]{1,86}\$[./A-Za-z0-9]{43}`, // gost-yescrypt
		`\$7\$[./A-Za-z0-9]{11,97}\$[./A-Za-z0-9]{43}`,                 // scrypt
		`\$2[abxy]\$[0-9]{2}\$[./A-Za-z0-9]{53}`,                       // bcrypt
		`\$6\$(rounds=[1-9][0-9]{2,8}\$)?[^$:\s]{1,16}\$[./A-Za-z0-9]{86}`,
		`\$5\$(rounds=[1-9][0-9]{2,8}\$)?[^$:\s]{1,16}\$[./A-Za-z0-9]{43}`,
		`\$1\$[^$:\s]{1,8}\$[./A-Za-z0-9]{22}`,
		`[!*]`, // no password opens it
	}, "|") + `)$`)
)

// DNSName is the rule for a name of one or more labels.
func DNSName(s string) error {
	ok := len(s) <= 253
	for l := range strings.SplitSeq(s, ".") {
		ok = ok && label.MatchString(l)
	}
	if !ok {
		return errors.New("is not a host name: want lower-case letters, digits and hyphens, in labels of at most 63 joined by dots")
	}
	return nil
}

// MaxHostname is the length of a host name that Linux allows.
const MaxHostname = 63

// Hostname is the rule for the name that a node calls itself by.
func Hostname(s string) error {
	if err := DNSName(s); err != nil {
		return err
	}
	if len(s) > MaxHostname {
		return fmt.Errorf("has %d characters; Linux allows %d", len(s), MaxHostname)
	}
	return nil
}

// maxDomain leaves room for the other options of a DHCP answer.
const maxDomain = 200

// Domain is the rule for a DNS search domain, which DHCP hands out.
func Domain(s string) error {
	if err := DNSName(s); err != nil {
		return errors.New("is not a domain name: want lower-case letters, digits and hyphens, in labels of at most 63 joined by dots")
	}
	if len(s) > maxDomain {
		return fmt.Errorf("has %d characters; a DHCP answer has room for %d", len(s), maxDomain)
	}
	return nil
}

// HostAddress is the rule for an address that some host can have.
func HostAddress(a netip.Addr) error {
	switch {
	case !a.IsValid():
		return errors.New("is not the IP address of a host")
	case a.Zone() != "":
		return errors.New("names an interface; want the address alone")
	case a.Is4In6():
		return errors.New("is an IPv4 address after ::ffff:, which must go")
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return errors.New("is not the IP address of a host")
	}
	return nil
}

// ParseHostAddress reads an address that some host can have.
func ParseHostAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, errors.New("is not the IP address of a host")
	}
	return a, HostAddress(a)
}

// TimeServer is the rule for an NTP server: an address, or a name that nodes resolve.
func TimeServer(s string) error {
	if a, err := netip.ParseAddr(s); err == nil {
		return HostAddress(a)
	}
	if DNSName(s) != nil {
		return errors.New("is neither an IP address nor a host name")
	}
	return nil
}

// Bounds of a lease. Clients renew at half of it, and a machine that boots takes minutes.
const (
	MinLeaseTime = time.Minute
	MaxLeaseTime = 365 * 24 * time.Hour
)

// LeaseTime is the rule for how long a DHCP lease holds.
func LeaseTime(d time.Duration) error {
	if d < MinLeaseTime || d > MaxLeaseTime {
		return fmt.Errorf("is not between %s and %s", MinLeaseTime, MaxLeaseTime)
	}
	return nil
}

// MAC is the rule for the address of a network interface.
func MAC(s string) error {
	hw, err := net.ParseMAC(s)
	switch {
	case err != nil || len(hw) != 6 || hw.String() != s:
		return errors.New("must be a MAC in lower case with colons, for example 52:54:00:12:34:56")
	case hw[0]&1 == 1:
		return errors.New("is a multicast address, which no network interface has")
	case s == "00:00:00:00:00:00":
		return errors.New("is no interface's address")
	}
	return nil
}

// Timezone is the rule for a name in the time zone database. Whether an image has the zone, nodeconfig.ImageFacts tells.
func Timezone(s string) error {
	if !zoneName.MatchString(s) {
		return errors.New("is not a time zone such as UTC or Europe/Berlin")
	}
	return nil
}

// KernelArg is the rule for one argument of a kernel command line, which is joined by spaces and written into a script
// of GRUB.
func KernelArg(s string) error {
	switch {
	case s == "" || strings.ContainsAny(quotedString.ReplaceAllString(s, ""), " \t\n\r\""):
		return errors.New("must be one argument: not empty, no space outside double quotes, no line break")
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || r == '\'' }):
		return errors.New("only printable ASCII without ' can be passed to the kernel")
	}
	return nil
}

// keyTypes that OpenSSH 9 accepts in authorized_keys.
var keyTypes = map[string]bool{
	"ssh-ed25519": true, "ssh-rsa": true, "ecdsa-sha2-nistp256": true, "ecdsa-sha2-nistp384": true, "ecdsa-sha2-nistp521": true,
	"sk-ssh-ed25519@openssh.com": true, "sk-ecdsa-sha2-nistp256@openssh.com": true,
}

// SSHKey is the rule for a line of authorized_keys: options, type, key, comment. The key's own first field repeats the
// type (RFC 4253, section 6.6), which catches a line that was cut or pasted together.
func SSHKey(line string) error {
	if strings.ContainsFunc(line, unicode.IsControl) {
		return errors.New("contains a line break or another control character; want one key")
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
			if uint64(n) < uint64(len(b)-4) && string(b[4:4+n]) == f {
				return nil
			}
		}
		return fmt.Errorf("the key after %q is damaged", f)
	}
	return errors.New(`is not a public SSH key (a line such as "ssh-ed25519 AAAA… name")`)
}

// systemNames are the accounts and groups that every Debian system has: those of base-passwd, which gives them fixed
// numbers, and those of systemd. What else an image has, nodeconfig.ImageFacts tells.
var systemNames = []string{
	"daemon", "bin", "sys", "sync", "games", "man", "lp", "mail", "news", "uucp", "proxy", "www-data", "backup", "list", "irc",
	"_apt", "nobody", "nogroup", "adm", "tty", "disk", "kmem", "dialout", "fax", "voice", "cdrom", "floppy", "tape", "sudo",
	"audio", "dip", "operator", "src", "shadow", "utmp", "video", "sasl", "plugdev", "staff", "users", "input", "kvm", "render",
	"systemd-journal", "systemd-network",
}

// UserName is the rule for a login that an installed node gets.
func UserName(s string) error {
	switch {
	case !userName.MatchString(s):
		return errors.New("is not a login name: want a lower-case letter, then letters, digits, - or _, at most 32")
	case s == "root":
		return errors.New("exists already; the keys in sshKeys of the profile are for it")
	case slices.Contains(systemNames, s):
		return errors.New("is an account or a group of every Debian system; choose another name")
	}
	return nil
}

// PasswordHash is the rule for what crypt(3) made of a password.
func PasswordHash(s string) error {
	if !cryptHash.MatchString(s) {
		return errors.New("is not a whole crypt(5) hash; make one with: openssl passwd -6")
	}
	return nil
}

// Path is the rule for the absolute path of a file, of characters that mean nothing to passwd(5), sudoers and systemd.
func Path(p string) error {
	ok := path.IsAbs(p) && path.Clean(p) == p && p != "/" && len(p) < 4096 &&
		!strings.ContainsFunc(p, func(r rune) bool {
			return r == ':' || r == '"' || r == '\\' || r == unicode.ReplacementChar || unicode.IsControl(r) || unicode.IsSpace(r)
		})
	if !ok {
		return errors.New(`must be the absolute path of a file, without "..", "//", white space, colons and quotes`)
	}
	return nil
}

// reservedPaths are written by Coldrack from other parts of the plan; a file there would silently lose. One that ends
// in a slash reserves all below it.
var reservedPaths = []string{
	"/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/fstab", "/etc/machine-id",
	"/etc/coldrack/", "/var/lib/coldrack/", "/boot/efi/", "/boot/grub/grub.cfg",
	"/usr/local/bin/coldrack-agent", "/etc/systemd/system/" + AgentUnit,
	"/proc/", "/sys/", "/dev/", "/run/", "/var/run/", "/var/lock/", // the last two are links into /run
}

// FilePath is the rule for where a person may put a file on a node.
func FilePath(p string) error {
	if err := Path(p); err != nil {
		return err
	}
	for _, r := range reservedPaths {
		if p == r || strings.HasSuffix(r, "/") && strings.HasPrefix(p+"/", r) {
			return errors.New("is Coldrack's own to write, or not on the disk at all")
		}
	}
	return nil
}

// FileMode is the rule for the permission bits of a file.
func FileMode(mode uint32) error {
	if mode > 0o7777 {
		return fmt.Errorf("is %#o; want at most 07777", mode)
	}
	return nil
}

// FilesBelow tells which of these paths lie below another one of them, which would have to be a file and a folder: by index, the
// path that is in the way.
func FilesBelow(paths []string) map[int]string {
	files, found := map[string]bool{}, map[int]string{}
	for _, p := range paths {
		files[p] = true
	}
	for i, p := range paths {
		for end := strings.LastIndexByte(p, '/'); end > 0; end = strings.LastIndexByte(p[:end], '/') {
			if files[p[:end]] {
				found[i] = p[:end]
			}
		}
	}
	return found
}

// FileOwner is the rule for user:group. Whether an image has them, nodeconfig.ImageFacts tells.
func FileOwner(s string) error {
	user, group, ok := strings.Cut(s, ":")
	if !ok || !userName.MatchString(user) || !userName.MatchString(group) {
		return errors.New("is not user:group")
	}
	return nil
}

// Units that Coldrack adds to a node.
const (
	AgentUnit    = "coldrack-agent.service"
	HostKeysUnit = "coldrack-ssh-hostkeys.service"
)

// IsUnitName tells whether s names a unit that systemctl can enable. systemd-networkd's files (.network, .netdev,
// .link) are no units: they are files below /etc/systemd/network.
func IsUnitName(s string) bool { return unitName.MatchString(s) && len(s) <= 255 }

// UnitName is the rule for a unit that a person gives a node.
func UnitName(s string) error {
	switch {
	case strings.HasSuffix(s, ".network") || strings.HasSuffix(s, ".netdev") || strings.HasSuffix(s, ".link"):
		return errors.New("is no unit but a file of systemd-networkd; put it below /etc/systemd/network with spec.files")
	case !IsUnitName(s):
		return errors.New("is not the name of a systemd unit, such as node-exporter.service")
	case s == AgentUnit || s == HostKeysUnit:
		return errors.New("is Coldrack's own")
	}
	return nil
}

// Unit is the rule for what is to become of a unit.
func Unit(content string, enabled, masked bool) error {
	switch {
	case masked && (enabled || content != ""):
		return errors.New("a masked unit can be neither enabled nor have content")
	case strings.ContainsRune(content, 0):
		return errors.New("the content has a zero byte")
	}
	return nil
}
