package v1alpha1

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// AddressRange is a range of addresses, both ends included.
//
// +kubebuilder:object:generate=false
type AddressRange struct {
	First, Last netip.Addr
}

// ParseAddressRange parses "first-last", for example "10.20.0.100-10.20.0.199". Spaces around the dash do not
// matter.
func ParseAddressRange(s string) (AddressRange, error) {
	const want = `want "first-last", for example 10.20.0.100-10.20.0.199`
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		return AddressRange{}, fmt.Errorf("no dash; %s", want)
	}
	first, err := netip.ParseAddr(strings.TrimSpace(from))
	if err != nil {
		return AddressRange{}, fmt.Errorf("%q is not an IP address; %s", strings.TrimSpace(from), want)
	}
	last, err := netip.ParseAddr(strings.TrimSpace(to))
	if err != nil {
		return AddressRange{}, fmt.Errorf("%q is not an IP address; %s", strings.TrimSpace(to), want)
	}
	switch {
	case first.Zone() != "" || last.Zone() != "":
		return AddressRange{}, fmt.Errorf("the addresses must not name an interface")
	case first.Is4In6() || last.Is4In6():
		return AddressRange{}, fmt.Errorf("IPv4 addresses are written without the prefix ::ffff: here")
	case first.Is4() != last.Is4():
		return AddressRange{}, fmt.Errorf("one end is IPv4, the other IPv6")
	case last.Less(first):
		return AddressRange{}, fmt.Errorf("the last address %s comes before the first, %s", last, first)
	}
	return AddressRange{first, last}, nil
}

// String is the form that ParseAddressRange takes.
func (r AddressRange) String() string { return r.First.String() + "-" + r.Last.String() }

// Contains tells whether an address lies in the range.
func (r AddressRange) Contains(a netip.Addr) bool {
	return r.First.Is4() == a.Is4() && !a.Less(r.First) && !r.Last.Less(a)
}

// Overlaps tells whether two ranges share an address.
func (r AddressRange) Overlaps(o AddressRange) bool {
	return r.First.Is4() == o.First.Is4() && !r.Last.Less(o.First) && !o.Last.Less(r.First)
}

// ValidateSubnet checks a subnet by itself and against the others that exist. A subnet of the same name among
// the others is the one that s replaces.
func ValidateSubnet(s *Subnet, others []Subnet) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	prefix, err := netip.ParsePrefix(s.Spec.CIDR)
	switch {
	case err != nil:
		return append(errs, field.Invalid(spec.Child("cidr"), s.Spec.CIDR, "must be a network such as 10.20.0.0/24"))
	case prefix.Addr().Is4In6():
		return append(errs, field.Invalid(spec.Child("cidr"), s.Spec.CIDR, "write IPv4 networks without ::ffff:"))
	case prefix != prefix.Masked():
		return append(errs, field.Invalid(spec.Child("cidr"), s.Spec.CIDR,
			fmt.Sprintf("has bits set behind the prefix length; the network that this address is in is %s", prefix.Masked())))
	}
	for _, other := range others {
		theirs, err := netip.ParsePrefix(other.Spec.CIDR)
		if err == nil && other.Name != s.Name && prefix.Overlaps(theirs) {
			errs = append(errs, field.Invalid(spec.Child("cidr"), s.Spec.CIDR,
				fmt.Sprintf("overlaps with %s of Subnet %s", other.Spec.CIDR, other.Name)))
		}
	}

	var gateway netip.Addr
	if s.Spec.Gateway != "" {
		gateway, err = netip.ParseAddr(s.Spec.Gateway)
		if err != nil {
			errs = append(errs, field.Invalid(spec.Child("gateway"), s.Spec.Gateway, "must be an IP address"))
		} else if !prefix.Contains(gateway) {
			errs = append(errs, field.Invalid(spec.Child("gateway"), s.Spec.Gateway, "must lie within spec.cidr, "+s.Spec.CIDR))
		}
	}
	discovery, more := validateRange(spec.Child("discovery"), s.Spec.Discovery, prefix, gateway)
	errs = append(errs, more...)
	static, more := validateRange(spec.Child("static"), s.Spec.Static, prefix, gateway)
	errs = append(errs, more...)
	if discovery.First.IsValid() && static.First.IsValid() && discovery.Overlaps(static) {
		errs = append(errs, field.Invalid(spec.Child("static"), s.Spec.Static,
			fmt.Sprintf("overlaps with spec.discovery, %s: an installed node and a machine that boots could get the same address", discovery)))
	}
	if s.Spec.DHCP == DHCPProxy {
		errs = append(errs, field.Invalid(spec.Child("dhcp"), s.Spec.DHCP, "is not supported yet: use server, or off where another DHCP server hands out our boot files"))
	}
	if s.Spec.DHCP == DHCPServer && s.Spec.Discovery == "" {
		errs = append(errs, field.Required(spec.Child("discovery"), "in DHCP mode server: the range for machines that are not known yet"))
	}
	errs = append(errs, validateAddresses(spec.Child("dns"), s.Spec.DNS)...)
	errs = append(errs, validateAddresses(spec.Child("relays"), s.Spec.Relays)...)
	for i, server := range s.Spec.NTP {
		if _, err := netip.ParseAddr(server); err != nil && len(validation.IsDNS1123Subdomain(server)) > 0 {
			errs = append(errs, field.Invalid(spec.Child("ntp").Index(i), server, "must be an IP address or a host name"))
		}
	}
	if s.Spec.Domain != "" {
		for _, problem := range validation.IsDNS1123Subdomain(s.Spec.Domain) {
			errs = append(errs, field.Invalid(spec.Child("domain"), s.Spec.Domain, problem))
		}
	}
	if lease := s.Spec.LeaseTime; lease != nil && lease.Duration < minLeaseTime {
		errs = append(errs, field.Invalid(spec.Child("leaseTime"), lease.Duration.String(), fmt.Sprintf("must be at least %s", minLeaseTime)))
	}
	return errs
}

const minLeaseTime = 10 * time.Second

func validateRange(at *field.Path, value string, within netip.Prefix, gateway netip.Addr) (AddressRange, field.ErrorList) {
	if value == "" {
		return AddressRange{}, nil
	}
	r, err := ParseAddressRange(value)
	if err != nil {
		return AddressRange{}, field.ErrorList{field.Invalid(at, value, err.Error())}
	}
	var errs field.ErrorList
	switch {
	case !within.Contains(r.First) || !within.Contains(r.Last):
		errs = append(errs, field.Invalid(at, value, fmt.Sprintf("must lie within spec.cidr, %s", within)))
	case r.First.Is4() && within.Bits() < 31 && r.Contains(within.Addr()):
		errs = append(errs, field.Invalid(at, value, fmt.Sprintf("contains the network's own address, %s", within.Addr())))
	case r.First.Is4() && within.Bits() < 31 && !within.Contains(r.Last.Next()):
		errs = append(errs, field.Invalid(at, value, fmt.Sprintf("contains the broadcast address, %s", r.Last)))
	}
	if gateway.IsValid() && r.Contains(gateway) {
		errs = append(errs, field.Invalid(at, value, fmt.Sprintf("contains spec.gateway, %s", gateway)))
	}
	return r, errs
}

func validateAddresses(at *field.Path, values []string) field.ErrorList {
	var errs field.ErrorList
	for i, value := range values {
		if _, err := netip.ParseAddr(value); err != nil {
			errs = append(errs, field.Invalid(at.Index(i), value, "must be an IP address"))
		}
	}
	return errs
}

// ValidateMachine checks a machine by itself, and against what it was before; old is nil for a new one.
func ValidateMachine(m, old *Machine) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	for i, mac := range m.Spec.Identifiers.MACs {
		errs = append(errs, validateMAC(spec.Child("identifiers", "macs").Index(i), mac)...)
	}
	if mac := m.Spec.Identifiers.BMCMAC; mac != "" {
		errs = append(errs, validateMAC(spec.Child("identifiers", "bmcMAC"), mac)...)
	}
	if n := m.Spec.Network; n != nil && n.Address != "" {
		if a, err := netip.ParseAddr(n.Address); err != nil || a.Zone() != "" {
			errs = append(errs, field.Invalid(spec.Child("network", "address"), n.Address, "must be an IP address, without prefix length"))
		}
	}
	if m.Spec.RootDisk != nil {
		errs = append(errs, validateDiskHints(spec.Child("rootDisk"), m.Spec.RootDisk)...)
	}
	if old != nil {
		errs = append(errs, validateIntentChange(spec.Child("intent"), m.Spec.Intent, old)...)
	}
	return errs
}

// validateIntentChange keeps an act that a machine is carrying out from being swapped for another under its
// hands, and an id from meaning two things.
func validateIntentChange(at *field.Path, wanted *Intent, old *Machine) field.ErrorList {
	if wanted == nil {
		return nil
	}
	was, status := old.Spec.Intent, old.Status.Intent
	if status != nil && status.State == IntentRunning && wanted.ID != status.ID && (was == nil || was.ID != wanted.ID) {
		return field.ErrorList{field.Forbidden(at.Child("id"), fmt.Sprintf(
			"the machine is carrying out intent %s (%s); wait until status.intent.state is Succeeded or Failed", status.ID, status.Action))}
	}
	conflict := func(id string, action IntentAction) field.ErrorList {
		if id != wanted.ID || action == wanted.Action {
			return nil
		}
		return field.ErrorList{field.Invalid(at.Child("action"), string(wanted.Action), fmt.Sprintf(
			"intent %s is %s already; another act needs another id", id, action))}
	}
	if status != nil {
		if errs := conflict(status.ID, status.Action); errs != nil {
			return errs
		}
	}
	if was != nil {
		return conflict(was.ID, was.Action)
	}
	return nil
}

func validateMAC(at *field.Path, mac string) field.ErrorList {
	hw, err := net.ParseMAC(mac)
	switch {
	case err != nil || len(hw) != 6 || hw.String() != mac:
		return field.ErrorList{field.Invalid(at, mac, "must be a MAC in lower case with colons, for example 52:54:00:12:34:56")}
	case hw[0]&1 == 1:
		return field.ErrorList{field.Invalid(at, mac, "is a multicast address, which no network interface has")}
	case mac == "00:00:00:00:00:00":
		return field.ErrorList{field.Invalid(at, mac, "is no interface's address")}
	}
	return nil
}

// MachineClaim is something that at most one Machine may have.
//
// +kubebuilder:object:generate=false
type MachineClaim struct {
	// Kind is mac, bmcMAC, uuid, serial or address.
	Kind, Value string
	// Path of the field that makes the claim.
	Path *field.Path
}

// Key is equal for equal claims.
func (c MachineClaim) Key() string { return c.Kind + "=" + c.Value }

// MachineClaims returns what the spec of a machine claims for itself alone. A management controller that shares
// a port with a NIC has a MAC of its own, so MACs of both kinds are one set.
func MachineClaims(m *Machine) []MachineClaim {
	spec := field.NewPath("spec")
	ids := spec.Child("identifiers")
	var claims []MachineClaim
	claim := func(kind, value string, at *field.Path) {
		if value = strings.ToLower(strings.TrimSpace(value)); value != "" {
			claims = append(claims, MachineClaim{kind, value, at})
		}
	}
	for i, mac := range m.Spec.Identifiers.MACs {
		claim("mac", mac, ids.Child("macs").Index(i))
	}
	claim("mac", m.Spec.Identifiers.BMCMAC, ids.Child("bmcMAC"))
	claim("uuid", m.Spec.Identifiers.UUID, ids.Child("uuid"))
	claim("serial", m.Spec.Identifiers.Serial, ids.Child("serial"))
	if n := m.Spec.Network; n != nil {
		if a, err := netip.ParseAddr(n.Address); err == nil {
			claim("address", a.String(), spec.Child("network", "address"))
		}
	}
	return claims
}

// ValidateMachineClaims checks that nobody else claims what m claims. owners tells the names of all machines
// with a claim; m itself may be among them.
func ValidateMachineClaims(m *Machine, owners func(MachineClaim) []string) field.ErrorList {
	var errs field.ErrorList
	seen := map[string]*field.Path{}
	for _, claim := range MachineClaims(m) {
		if first := seen[claim.Key()]; first != nil {
			errs = append(errs, field.Invalid(claim.Path, claim.Value, fmt.Sprintf("is also %s", first)))
			continue
		}
		seen[claim.Key()] = claim.Path
		for _, owner := range owners(claim) {
			if owner != m.Name {
				errs = append(errs, field.Invalid(claim.Path, claim.Value, fmt.Sprintf("belongs to Machine %s already", owner)))
				break
			}
		}
	}
	return errs
}

// ValidateMachineAddress checks that the machine's address lies in the subnet that it names.
func ValidateMachineAddress(m *Machine, subnet *Subnet) field.ErrorList {
	if m.Spec.Network == nil || m.Spec.Network.Address == "" {
		return nil
	}
	at := field.NewPath("spec", "network", "address")
	a, err := netip.ParseAddr(m.Spec.Network.Address)
	prefix, prefixErr := netip.ParsePrefix(subnet.Spec.CIDR)
	if err != nil || prefixErr != nil {
		return nil // reported where they are written
	}
	if !prefix.Contains(a) {
		return field.ErrorList{field.Invalid(at, a.String(), fmt.Sprintf("must lie within %s of Subnet %s", prefix, subnet.Name))}
	}
	if r, err := ParseAddressRange(subnet.Spec.Discovery); err == nil && r.Contains(a) {
		return field.ErrorList{field.Invalid(at, a.String(),
			fmt.Sprintf("lies in the discovery range %s of Subnet %s, whose addresses go to any machine that boots", r, subnet.Name))}
	}
	if subnet.Spec.Gateway == a.String() {
		return field.ErrorList{field.Invalid(at, a.String(), fmt.Sprintf("is the gateway of Subnet %s", subnet.Name))}
	}
	return nil
}

// ValidateProfile checks a profile by itself.
func ValidateProfile(p *Profile) field.ErrorList {
	spec := field.NewPath("spec")
	errs := validateDiskHints(spec.Child("rootDisk"), &p.Spec.RootDisk)
	errs = append(errs, validateKernelArgs(spec.Child("kernelArgs"), p.Spec.KernelArgs)...)
	errs = append(errs, validateKernelArgs(spec.Child("console"), p.Spec.Console)...)
	errs = append(errs, validateSSHKeys(spec.Child("sshKeys"), p.Spec.SSHKeys)...)
	for i, user := range p.Spec.Users {
		errs = append(errs, validateSSHKeys(spec.Child("users").Index(i).Child("sshKeys"), user.SSHKeys)...)
	}
	for i, file := range p.Spec.Files {
		if clean := path.Clean(file.Path); clean != file.Path || clean == "/" {
			errs = append(errs, field.Invalid(spec.Child("files").Index(i).Child("path"), file.Path,
				"must be the absolute path of a file, without . or .. or a slash at the end"))
		}
	}
	return errs
}

func validateDiskHints(at *field.Path, h *DiskHints) field.ErrorList {
	errs := validatePattern(at.Child("byID"), h.ByID)
	errs = append(errs, validatePattern(at.Child("model"), h.Model)...)
	if strings.HasPrefix(h.ByID, "/dev/") {
		errs = append(errs, field.Invalid(at.Child("byID"), h.ByID, "is compared with names below /dev/disk/by-id; leave the folder out"))
	}
	if h.MinSize != nil && h.MaxSize != nil && h.MinSize.Cmp(*h.MaxSize) > 0 {
		errs = append(errs, field.Invalid(at.Child("maxSize"), h.MaxSize.String(), fmt.Sprintf("is below minSize, %s", h.MinSize)))
	}
	return errs
}

// validateKernelArgs refuses what would become two arguments on a command line that is joined by spaces.
func validateKernelArgs(at *field.Path, args []string) field.ErrorList {
	var errs field.ErrorList
	for i, arg := range args {
		unquoted := regexp.MustCompile(`"[^"\n\r]*"`).ReplaceAllString(arg, "")
		if arg == "" || strings.ContainsAny(unquoted, " \t\n\r\"") {
			errs = append(errs, field.Invalid(at.Index(i), arg, "must be one argument: not empty, no space outside double quotes, no line break"))
		}
	}
	return errs
}

func validateSSHKeys(at *field.Path, keys []string) field.ErrorList {
	var errs field.ErrorList
	for i, key := range keys {
		parts := strings.Fields(key)
		ok := len(parts) >= 2 && !strings.ContainsAny(strings.TrimSpace(key), "\n\r")
		if ok {
			blob, err := base64.StdEncoding.DecodeString(parts[1])
			// The key's type is written twice: in front, and inside with its length (RFC 4253, section 6.6).
			ok = err == nil && len(blob) > 4+len(parts[0]) && string(blob[4:4+len(parts[0])]) == parts[0]
		}
		if !ok {
			errs = append(errs, field.Invalid(at.Index(i), shorten(key), "must be an OpenSSH public key on one line, as in ~/.ssh/id_ed25519.pub, without options"))
		}
	}
	return errs
}

func shorten(s string) string {
	if len(s) > 40 {
		return s[:40] + "..."
	}
	return s
}

// validatePattern checks a shell pattern, of which an unclosed bracket is about all that can be wrong.
func validatePattern(at *field.Path, pattern string) field.ErrorList {
	if _, err := path.Match(pattern, ""); err != nil {
		return field.ErrorList{field.Invalid(at, pattern, "is not a shell pattern: a bracket is not closed, or a backslash ends it")}
	}
	return nil
}

var (
	macPrefix           = regexp.MustCompile(`^[0-9a-f]{2}(:[0-9a-f]{2}){0,5}$`)
	hostnamePlaceholder = regexp.MustCompile(`\{[^{}]*\}`)
	knownPlaceholder    = regexp.MustCompile(`^\{(serial|uuid|mac|index|index:0?[1-9])\}$`)
)

// ValidateEnrollmentPolicy checks a policy by itself.
func ValidateEnrollmentPolicy(p *EnrollmentPolicy) field.ErrorList {
	spec := field.NewPath("spec")
	match := spec.Child("match")
	errs := validatePattern(match.Child("vendor"), p.Spec.Match.Vendor)
	errs = append(errs, validatePattern(match.Child("product"), p.Spec.Match.Product)...)
	errs = append(errs, validatePattern(match.Child("serial"), p.Spec.Match.Serial)...)
	for i, prefix := range p.Spec.Match.MACPrefixes {
		if !macPrefix.MatchString(prefix) {
			errs = append(errs, field.Invalid(match.Child("macPrefixes").Index(i), prefix,
				"must be the first bytes of a MAC in lower case with colons, for example 52:54:00"))
		}
	}
	if p.Spec.Match.Selector != nil {
		errs = append(errs, metav1validation.ValidateLabelSelector(p.Spec.Match.Selector,
			metav1validation.LabelSelectorValidationOptions{}, match.Child("selector"))...)
	}
	errs = append(errs, metav1validation.ValidateLabels(p.Spec.Labels, spec.Child("labels"))...)
	return append(errs, validateHostnamePattern(spec.Child("hostname"), p.Spec.Hostname)...)
}

func validateHostnamePattern(at *field.Path, pattern string) field.ErrorList {
	if pattern == "" {
		return nil
	}
	for _, placeholder := range hostnamePlaceholder.FindAllString(pattern, -1) {
		if !knownPlaceholder.MatchString(placeholder) {
			return field.ErrorList{field.Invalid(at, pattern,
				fmt.Sprintf("%s is unknown; there are {serial}, {uuid}, {mac}, {index} and {index:03}", placeholder))}
		}
	}
	// With something harmless for every placeholder, what remains must be a host name.
	sample := hostnamePlaceholder.ReplaceAllString(pattern, "x")
	if problems := validation.IsDNS1123Label(sample); len(problems) > 0 {
		return field.ErrorList{field.Invalid(at, pattern, "would not give a host name: "+strings.Join(problems, "; "))}
	}
	return nil
}

// HostnameIsConstant tells whether a policy gives every machine the same host name.
func HostnameIsConstant(p *EnrollmentPolicy) bool {
	return p.Spec.Hostname != "" && p.Spec.Limit != 1 && !slices.ContainsFunc(
		hostnamePlaceholder.FindAllString(p.Spec.Hostname, -1), knownPlaceholder.MatchString)
}
