package v1alpha1

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // the same zones on every server

	"k8s.io/apimachinery/pkg/api/equality"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coldrack.dev/internal/contract/validate"
)

// AddressRange is a range of addresses, both ends included.
//
// +kubebuilder:object:generate=false
type AddressRange = validate.AddressRange

// ParseAddressRange parses "first-last", for example "10.20.0.100-10.20.0.199".
func ParseAddressRange(s string) (AddressRange, error) { return validate.ParseAddressRange(s) }

// IPPlan returns the addresses of a Subnet in the form that its rules take. What cannot be read is left out of the
// plan and reported.
func (s *Subnet) IPPlan() (validate.IPPlan, field.ErrorList) {
	spec := field.NewPath("spec")
	var errs field.ErrorList
	var plan validate.IPPlan
	var err error
	plan.DHCP = s.Spec.DHCP == DHCPServer
	if plan.CIDR, err = netip.ParsePrefix(s.Spec.CIDR); err != nil {
		errs = append(errs, field.Invalid(spec.Child("cidr"), s.Spec.CIDR, "must be a network such as 10.20.0.0/24"))
	}
	address := func(at *field.Path, text string) (netip.Addr, bool) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			errs = append(errs, field.Invalid(at, text, "must be an IP address"))
		}
		return a, err == nil
	}
	if s.Spec.Gateway != "" {
		plan.Gateway, _ = address(spec.Child("gateway"), s.Spec.Gateway)
	}
	for _, r := range []struct {
		name, text string
		into       *AddressRange
	}{{"discovery", s.Spec.Discovery, &plan.Discovery}, {"static", s.Spec.Static, &plan.Static}} {
		if r.text == "" {
			continue
		}
		if *r.into, err = ParseAddressRange(r.text); err != nil {
			errs = append(errs, field.Invalid(spec.Child(r.name), r.text, err.Error()))
		}
	}
	for i, text := range s.Spec.DNS {
		a, _ := address(spec.Child("dns").Index(i), text)
		plan.DNS = append(plan.DNS, a)
	}
	for i, text := range s.Spec.Relays {
		a, _ := address(spec.Child("relays").Index(i), text)
		plan.Relays = append(plan.Relays, a)
	}
	for i, text := range s.Spec.NTP {
		if err := validate.TimeServer(text); err != nil {
			errs = append(errs, field.Invalid(spec.Child("ntp").Index(i), text, err.Error()))
		}
		a, _ := netip.ParseAddr(text) // a name has none
		plan.NTP = append(plan.NTP, a)
	}
	return plan, errs
}

// ValidateSubnet checks a subnet by itself and against the others that exist. A subnet of the same name among
// the others is the one that s replaces.
func ValidateSubnet(s *Subnet, others []Subnet) field.ErrorList {
	spec := field.NewPath("spec")
	plan, errs := s.IPPlan()
	if !plan.CIDR.IsValid() {
		return errs
	}
	problems := plan.Problems()
	for i := range others {
		if others[i].Name != s.Name {
			theirs, _ := others[i].IPPlan()
			problems = append(problems, plan.Beside(theirs, others[i].Name)...)
		}
	}
	for _, p := range problems {
		at := spec.Child(p.Field)
		if p.Index >= 0 {
			at = at.Index(p.Index)
		}
		errs = append(errs, field.Invalid(at, p.Value, p.Message))
	}
	if s.Spec.DHCP == DHCPProxy {
		errs = append(errs, validateProxy(spec, s, plan)...)
	}
	if len(s.Spec.DHCPOptions) > 0 && plan.CIDR.Addr().Is6() {
		errs = append(errs, field.Forbidden(spec.Child("dhcpOptions"), "are options of DHCPv4, and this is an IPv6 network; remove them"))
	}
	errs = append(errs, validateDHCPOptions(spec.Child("dhcpOptions"), s.Spec.DHCPOptions)...)
	if s.Spec.DHCP == DHCPServer && s.Spec.Discovery == "" {
		errs = append(errs, field.Required(spec.Child("discovery"), "in DHCP mode server: the range for machines that are not known yet"))
	}
	errs = append(errs, rule(spec.Child("domain"), s.Spec.Domain, validate.Domain)...)
	errs = append(errs, validateBootMenu(spec.Child("bootMenu"), s.Spec.BootMenu)...)
	if lease := s.Spec.LeaseTime; lease != nil {
		if err := validate.LeaseTime(lease.Duration); err != nil {
			errs = append(errs, field.Invalid(spec.Child("leaseTime"), lease.Duration.String(), err.Error()))
		}
	}
	return errs
}

// validateProxy refuses what a proxy cannot do: the site's own DHCP server gives the addresses.
func validateProxy(spec *field.Path, s *Subnet, plan validate.IPPlan) field.ErrorList {
	var errs field.ErrorList
	if !plan.CIDR.Addr().Is4() {
		errs = append(errs, field.Invalid(spec.Child("dhcp"), s.Spec.DHCP, "is for IPv4 networks; use off"))
	}
	const why = "in DHCP mode proxy: the site's own DHCP server gives the addresses; remove it"
	if s.Spec.Discovery != "" {
		errs = append(errs, field.Forbidden(spec.Child("discovery"), why))
	}
	if len(s.Spec.DHCPOptions) > 0 {
		errs = append(errs, field.Forbidden(spec.Child("dhcpOptions"), why))
	}
	if s.Spec.LeaseTime != nil {
		errs = append(errs, field.Forbidden(spec.Child("leaseTime"), why))
	}
	return errs
}

// validateDHCPOptions checks options of DHCP, each and together.
func validateDHCPOptions(at *field.Path, options []DHCPOption) field.ErrorList {
	var errs field.ErrorList
	size, seen := 0, map[int32]bool{}
	for i, o := range options {
		encoded, err := validate.DHCPOption(int(o.Code), o.Value, o.Hex)
		switch {
		case err != nil:
			errs = append(errs, field.Invalid(at.Index(i), o.Code, err.Error()))
		case seen[o.Code]:
			errs = append(errs, field.Duplicate(at.Index(i), o.Code))
		}
		seen[o.Code] = true
		size += len(encoded) + 2
	}
	if size > validate.MostDHCPOptions {
		errs = append(errs, field.TooLong(at, "", validate.MostDHCPOptions))
		errs[len(errs)-1].Detail = fmt.Sprintf("have %d bytes together, and an answer that every firmware takes has room for %d", size, validate.MostDHCPOptions)
	}
	return errs
}

// rule applies a rule to a value; an empty one is a field that is not set.
func rule(at *field.Path, value string, rule func(string) error) field.ErrorList {
	if value == "" {
		return nil
	}
	if err := rule(value); err != nil {
		return field.ErrorList{field.Invalid(at, shorten(value), err.Error())}
	}
	return nil
}

func rules(at *field.Path, values []string, check func(string) error) field.ErrorList {
	var errs field.ErrorList
	for i, value := range values {
		if err := check(value); err != nil {
			errs = append(errs, field.Invalid(at.Index(i), shorten(value), err.Error()))
		}
	}
	return errs
}

// ValidateMachine checks a machine by itself, and against what it was before; old is nil for a new one.
func ValidateMachine(m, old *Machine) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	errs = append(errs, rules(spec.Child("identifiers", "macs"), m.Spec.Identifiers.MACs, validate.MAC)...)
	errs = append(errs, rule(spec.Child("identifiers", "bmcMAC"), m.Spec.Identifiers.BMCMAC, validate.MAC)...)
	if old == nil || !equality.Semantic.DeepEqual(m.Spec.BMC, old.Spec.BMC) { // earlier versions took any text
		errs = append(errs, validateBMC(spec.Child("bmc"), m.Spec.BMC)...)
	}
	errs = append(errs, rule(spec.Child("hostname"), m.Spec.Hostname, validate.Hostname)...)
	errs = append(errs, validateDHCPOptions(spec.Child("dhcpOptions"), m.Spec.DHCPOptions)...)
	if n := m.Spec.Network; n != nil {
		errs = append(errs, rule(spec.Child("network", "mac"), n.MAC, validate.MAC)...)
		if n.Address != "" {
			if _, err := validate.ParseHostAddress(n.Address); err != nil {
				errs = append(errs, field.Invalid(spec.Child("network", "address"), n.Address, err.Error()+"; want one without prefix length"))
			}
		}
		errs = append(errs, validateLinks(spec.Child("network"), m.Links(nil))...)
	}
	if m.Spec.Hostname == "" && m.Name != "" && old == nil {
		if err := validate.Hostname(m.Name); err != nil {
			errs = append(errs, field.Invalid(spec.Child("hostname"), "", fmt.Sprintf("the node's host name would be %q, which %v; set it", m.Name, err)))
		}
	}
	if m.Spec.RootDisk != nil {
		errs = append(errs, validateDiskHints(spec.Child("rootDisk"), m.Spec.RootDisk)...)
	}
	if r := m.Spec.Rescue; r != nil {
		errs = append(errs, rules(spec.Child("rescue", "sshKeys"), r.SSHKeys, validate.SSHKey)...)
		if len(r.SSHKeys) == 0 && !r.Autologin {
			errs = append(errs, field.Required(spec.Child("rescue", "sshKeys"), "without a key, and without autologin, nobody could log in"))
		}
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
		for i, further := range n.Addresses {
			if p, err := netip.ParsePrefix(further.Address); err == nil {
				claim("address", p.Addr().String(), spec.Child("network", "addresses").Index(i).Child("address"))
			}
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
	plan, _ := subnet.IPPlan()
	if err != nil || !plan.CIDR.IsValid() {
		return nil // reported where they are written
	}
	if problem := plan.Machine(a); problem != "" {
		return field.ErrorList{field.Invalid(at, a.String(), fmt.Sprintf("%s (Subnet %s)", problem, subnet.Name))}
	}
	return nil
}

// ValidateProfile checks a profile by itself.
func ValidateProfile(p *Profile) field.ErrorList {
	spec := field.NewPath("spec")
	errs := validateDiskHints(spec.Child("rootDisk"), &p.Spec.RootDisk)
	errs = append(errs, rules(spec.Child("kernelArgs"), p.Spec.KernelArgs, validate.KernelArg)...)
	errs = append(errs, rules(spec.Child("console"), p.Spec.Console, validate.KernelArg)...)
	errs = append(errs, rules(spec.Child("sshKeys"), p.Spec.SSHKeys, validate.SSHKey)...)
	errs = append(errs, rule(spec.Child("timezone"), p.Spec.Timezone, knownTimezone)...)
	errs = append(errs, validateLinks(spec.Child("network"), p.Spec.Network.Links())...)
	for i, user := range p.Spec.Users {
		at := spec.Child("users").Index(i)
		errs = append(errs, rule(at.Child("name"), user.Name, validate.UserName)...)
		errs = append(errs, rules(at.Child("sshKeys"), user.SSHKeys, validate.SSHKey)...)
		errs = append(errs, rule(at.Child("shell"), user.Shell, validate.Path)...)
		if user.PasswordHash != "" {
			if err := validate.PasswordHash(user.PasswordHash); err != nil {
				errs = append(errs, field.Invalid(at.Child("passwordHash"), "(not shown)", err.Error()))
			}
		}
	}
	paths := make([]string, len(p.Spec.Files))
	for i, file := range p.Spec.Files {
		paths[i] = file.Path
	}
	below := validate.FilesBelow(paths)
	for i, file := range p.Spec.Files {
		at := spec.Child("files").Index(i)
		if below[i] != "" {
			errs = append(errs, field.Invalid(at.Child("path"), file.Path, below[i]+" cannot be a file and a folder"))
		}
		if err := validate.FilePath(file.Path); err != nil {
			errs = append(errs, field.Invalid(at.Child("path"), file.Path, err.Error()))
		}
		if _, err := file.FileMode(); err != nil {
			errs = append(errs, field.Invalid(at.Child("mode"), file.Mode, err.Error()))
		}
		errs = append(errs, rule(at.Child("owner"), file.Owner, validate.FileOwner)...)
	}
	for i, unit := range p.Spec.Units {
		at := spec.Child("units").Index(i)
		if err := validate.UnitName(unit.Name); err != nil {
			errs = append(errs, field.Invalid(at.Child("name"), unit.Name, err.Error()))
		}
		if err := validate.Unit(unit.Content, unit.Enabled, unit.Masked); err != nil {
			errs = append(errs, field.Invalid(at, unit.Name, err.Error()))
		}
	}
	return errs
}

// knownTimezone also looks whether there is such a zone, in this system's database or Go's. Whether the image has
// it, is checked when an install is planned.
func knownTimezone(name string) error {
	if err := validate.Timezone(name); err != nil {
		return err
	}
	if _, err := time.LoadLocation(name); err != nil || name == "Local" {
		return errors.New("is in no time zone database; want a name such as UTC or Europe/Berlin")
	}
	return nil
}

// FileMode returns the permission bits of a file.
func (f *File) FileMode() (uint32, error) {
	if f.Mode == "" {
		return 0o644, nil
	}
	mode, err := strconv.ParseUint(f.Mode, 8, 32)
	if err != nil {
		return 0, errors.New("is not an octal mode such as 0644")
	}
	return uint32(mode), validate.FileMode(uint32(mode))
}

func validateDiskHints(at *field.Path, h *DiskHints) field.ErrorList {
	errs := rule(at.Child("byID"), h.ByID, validate.DiskID)
	errs = append(errs, rule(at.Child("model"), h.Model, validate.PatternSyntax)...)
	if h.MinSize != nil && h.MaxSize != nil && h.MinSize.Cmp(*h.MaxSize) > 0 {
		errs = append(errs, field.Invalid(at.Child("maxSize"), h.MaxSize.String(), fmt.Sprintf("is below minSize, %s", h.MinSize)))
	}
	return errs
}

func shorten(s string) string {
	if len(s) > 40 {
		return s[:40] + "..."
	}
	return s
}

var (
	macPrefix = regexp.MustCompile(`^[0-9a-f]{2}(:[0-9a-f]{2}){0,5}$`)
)

// ValidateEnrollmentPolicy checks a policy by itself.
func ValidateEnrollmentPolicy(p *EnrollmentPolicy) field.ErrorList {
	spec := field.NewPath("spec")
	match := spec.Child("match")
	errs := rule(match.Child("vendor"), p.Spec.Match.Vendor, validate.PatternSyntax)
	errs = append(errs, rule(match.Child("product"), p.Spec.Match.Product, validate.PatternSyntax)...)
	errs = append(errs, rule(match.Child("serial"), p.Spec.Match.Serial, validate.PatternSyntax)...)
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
	if p.Spec.Hostname != "" {
		if _, err := validate.ParseHostnamePattern(p.Spec.Hostname); err != nil {
			errs = append(errs, field.Invalid(spec.Child("hostname"), p.Spec.Hostname, err.Error()))
		}
	}
	return errs
}

// HostnameIsConstant tells whether a policy gives every machine the same host name.
func HostnameIsConstant(p *EnrollmentPolicy) bool {
	pattern, err := validate.ParseHostnamePattern(p.Spec.Hostname)
	return err == nil && pattern.Constant() && p.Spec.Limit != 1
}
