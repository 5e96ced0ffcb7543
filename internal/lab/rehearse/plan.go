package rehearse

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/manifest"
)

// plan is what the rehearsal must know of the operator's manifests.
type plan struct {
	server netip.Prefix // an address of the subnet that nobody has
	subnet string
	images []string
	known  []Known
	// warnings are what can be told before anything runs.
	warnings []string
}

// defaultManifest installs whatever is plugged in, with room for a number of machines.
func defaultManifest(machines int) string {
	// 10.64.0.0/14: server at the beginning, discovery in the second /16, nodes in the third.
	last := func(base string, n int) netip.Addr { return skip(netip.MustParseAddr(base), n-1) }
	room := machines + machines/4 + 16
	return fmt.Sprintf(`apiVersion: coldrack.dev/v1alpha1
kind: Subnet
metadata: {name: rehearsal}
spec:
  cidr: 10.64.0.0/14
  dhcp: server
  discovery: 10.65.0.0-%s
  static: 10.66.0.0-%s
---
apiVersion: coldrack.dev/v1alpha1
kind: Profile
metadata: {name: rehearsal}
spec: {image: debian-12, wipe: RefuseForeign}
---
apiVersion: coldrack.dev/v1alpha1
kind: EnrollmentPolicy
metadata: {name: everything}
spec: {approve: true, hostname: "node-{index}", profile: rehearsal, subnet: rehearsal}
`, last("10.65.0.0", room), last("10.66.0.0", room))
}

// skip gives the n-th address behind a.
func skip(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// readPlan looks through the manifests.
func readPlan(documents []*manifest.Document, machines int) (plan, error) {
	p := plan{}
	var subnets []v1alpha1.Subnet
	reserved := map[netip.Addr]bool{}
	approves := false
	for _, d := range documents {
		var err error
		convert := func(into any) {
			err = runtime.DefaultUnstructuredConverter.FromUnstructured(d.Object.Object, into)
		}
		switch d.Object.GetKind() {
		case "Subnet":
			var s v1alpha1.Subnet
			convert(&s)
			subnets = append(subnets, s)
		case "Profile":
			var profile v1alpha1.Profile
			convert(&profile)
			p.addImage(profile.Spec.Image)
		case "EnrollmentPolicy":
			var policy v1alpha1.EnrollmentPolicy
			convert(&policy)
			approves = approves || policy.Spec.Approve
		case "Machine":
			var m v1alpha1.Machine
			convert(&m)
			p.addImage(m.Spec.Image)
			approves = approves || m.Spec.Approved
			if m.Spec.Network != nil {
				if a, err := netip.ParseAddr(m.Spec.Network.Address); err == nil {
					reserved[a] = true
				}
			}
			if len(m.Spec.Identifiers.MACs) > 0 {
				p.known = append(p.known, Known{m.Spec.Identifiers.MACs, m.Spec.Identifiers.UUID, m.Spec.Identifiers.Serial})
			}
		}
		if err != nil {
			return p, fmt.Errorf("%s: %w", d.Place(), err)
		}
	}
	if !approves {
		p.warnings = append(p.warnings, "no EnrollmentPolicy and no Machine of the plan approves anything: machines will wait in discovery")
	}
	return p, p.place(subnets, reserved, machines)
}

func (p *plan) addImage(name string) {
	if name != "" && !slices.Contains(p.images, name) {
		p.images = append(p.images, name)
	}
}

// place chooses the subnet in which the machines are, and the server's address there.
func (p *plan) place(subnets []v1alpha1.Subnet, reserved map[netip.Addr]bool, machines int) error {
	type span struct{ from, to netip.Addr }
	within := func(text string) (span, bool) {
		from, to, ok := strings.Cut(text, "-")
		a, errA := netip.ParseAddr(strings.TrimSpace(from))
		b, errB := netip.ParseAddr(strings.TrimSpace(to))
		return span{a, b}, ok && errA == nil && errB == nil
	}
	for _, s := range subnets {
		cidr, err := netip.ParsePrefix(s.Spec.CIDR)
		if err != nil || !cidr.Addr().Is4() || (s.Spec.DHCP != "" && s.Spec.DHCP != v1alpha1.DHCPServer) {
			continue
		}
		var spans []span
		for _, text := range []string{s.Spec.Discovery, s.Spec.Static} {
			if r, ok := within(text); ok {
				spans = append(spans, r)
			}
		}
		taken := func(a netip.Addr) bool {
			return a.String() == s.Spec.Gateway || reserved[a] ||
				slices.ContainsFunc(spans, func(r span) bool { return !a.Less(r.from) && !r.to.Less(a) })
		}
		address := cidr.Masked().Addr().Next()
		for taken(address) && cidr.Contains(address.Next()) {
			address = address.Next()
		}
		if !cidr.Contains(address.Next()) {
			continue
		}
		p.subnet, p.server = s.Name, netip.PrefixFrom(address, cidr.Bits())
		for what, text := range map[string]string{"discovery": s.Spec.Discovery, "static": s.Spec.Static} {
			if r, ok := within(text); ok {
				if room := count(r.from, r.to); room < machines {
					p.warnings = append(p.warnings, fmt.Sprintf("the %s range of subnet %s has %d addresses for %d machines", what, s.Name, room, machines))
				}
			}
		}
		slices.Sort(p.warnings)
		if len(subnets) > 1 {
			p.warnings = append(p.warnings, fmt.Sprintf("all machines are in subnet %s; relays to the other %d subnets are not rehearsed", s.Name, len(subnets)-1))
		}
		return nil
	}
	return errors.New("the plan has no IPv4 Subnet with dhcp: server and an address to spare for the server, so no machine can boot")
}

func count(from, to netip.Addr) int {
	a, b := from.As4(), to.As4()
	n := 0
	for i := range a {
		n = n<<8 + int(b[i]) - int(a[i])
	}
	return n + 1
}
