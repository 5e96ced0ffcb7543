// Package expect compares what a rack sheet says of machines with what they report: hardware that is missing, cables that end at
// another port, machines that never came and machines that nobody wrote down. It is pure.
package expect

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"coldrack.dev/api/v1alpha1"
)

// Kind is what does not fit.
type Kind string

const (
	// Missing: the machine was written down and has never been seen.
	Missing Kind = "missing"
	// Unexpected: the machine was discovered, and no sheet has it.
	Unexpected Kind = "unexpected"
	Memory     Kind = "memory"
	Cores      Kind = "cores"
	Disks      Kind = "disks"
	// Cable: a cable ends at another switch port, or at none.
	Cable Kind = "cable"
)

// Finding is one thing that is not as it was written down.
type Finding struct {
	Machine string `json:"machine"`
	Kind    Kind   `json:"kind"`
	Want    string `json:"want,omitempty"`
	Found   string `json:"found,omitempty"`
	// Other is the machine that has what this one should have, where there is one.
	Other string `json:"other,omitempty"`
	// Message for a person, without the machine's name.
	Message string `json:"message"`
}

// Of is what a machine's own report says against spec.expected.
func Of(m *v1alpha1.Machine) []Finding {
	want, have := m.Spec.Expected, m.Status.Inventory
	if want == nil || have == nil {
		return nil
	}
	var findings []Finding
	add := func(kind Kind, want, found, message string) {
		findings = append(findings, Finding{Machine: m.Name, Kind: kind, Want: want, Found: found, Message: message})
	}
	if want.Memory != nil && !fits(want.Memory.Value(), have.Memory.Value()) {
		w, f := amount(want.Memory.Value()), amount(have.Memory.Value())
		add(Memory, w, f, fmt.Sprintf("has %s of memory, not %s", f, w))
	}
	if want.Cores > 0 && want.Cores != have.CPU.Cores {
		add(Cores, fmt.Sprint(want.Cores), fmt.Sprint(have.CPU.Cores), fmt.Sprintf("has %d cores, not %d", have.CPU.Cores, want.Cores))
	}
	if n := builtIn(have.Disks); want.Disks > 0 && want.Disks != n {
		add(Disks, fmt.Sprint(want.Disks), fmt.Sprint(n), fmt.Sprintf("has %d disks, not %d", n, want.Disks))
	}
	return append(findings, cables(m)...)
}

// fits compares memory. Memory modules are whole GiB; anything else is what a kernel counted, which lacks what firmware keeps.
func fits(want, have int64) bool {
	const gib = 1 << 30
	return want == have || have%gib != 0 && have < want && have > want-want/25
}

func amount(bytes int64) string { return resource.NewQuantity(bytes, resource.BinarySI).String() + "B" }

func builtIn(disks []v1alpha1.Disk) (n int32) {
	for _, d := range disks {
		if !d.Removable && !d.ReadOnly && d.Transport != "usb" && d.Transport != "iscsi" {
			n++
		}
	}
	return n
}

// cables compares switch ports, if any switch has said by LLDP what it is. Where none has, nothing is known.
func cables(m *v1alpha1.Machine) []Finding {
	seen := portsOf(m)
	if len(seen) == 0 {
		return nil
	}
	var findings []Finding
	for _, want := range m.Spec.Expected.SwitchPorts {
		if slices.ContainsFunc(seen, func(p port) bool { return p.is(want) && (want.MAC == "" || want.MAC == p.mac) }) {
			continue
		}
		f := Finding{Machine: m.Name, Kind: Cable, Want: text(want), Message: fmt.Sprintf("no cable to %s", text(want))}
		for _, p := range seen {
			if f.Found == "" || p.mac == want.MAC {
				f.Found = p.String()
			}
		}
		if others := missed(seen, m.Spec.Expected.SwitchPorts); want.MAC == "" && len(others) > 0 {
			f.Found = others[0].String()
		}
		f.Message += "; the cable ends at " + f.Found
		findings = append(findings, f)
	}
	return findings
}

// missed are ports at which a cable ends that nobody expects there.
func missed(seen []port, want []v1alpha1.SwitchPort) []port {
	return slices.DeleteFunc(slices.Clone(seen), func(p port) bool {
		return slices.ContainsFunc(want, func(w v1alpha1.SwitchPort) bool { return p.is(w) })
	})
}

// port is a switch port as a machine sees it.
type port struct {
	mac string
	v1alpha1.LLDPNeighbour
}

func (p port) String() string {
	return cmp.Or(p.SystemName, p.ChassisID) + ":" + cmp.Or(p.PortID, p.PortDesc)
}

func text(p v1alpha1.SwitchPort) string { return strings.TrimSuffix(p.Switch+":"+p.Port, ":") }

func portsOf(m *v1alpha1.Machine) (ports []port) {
	if m.Status.Inventory == nil {
		return nil
	}
	for _, nic := range m.Status.Inventory.NICs {
		if nic.LLDP != nil {
			ports = append(ports, port{nic.MAC, *nic.LLDP})
		}
	}
	return ports
}

// is says whether this is the port that a sheet means. People leave out domains, and shorten Ethernet1/1 to Eth1/1.
func (p port) is(want v1alpha1.SwitchPort) bool {
	short, _, _ := strings.Cut(p.SystemName, ".")
	if !strings.EqualFold(want.Switch, p.SystemName) && !strings.EqualFold(want.Switch, short) && !strings.EqualFold(want.Switch, p.ChassisID) {
		return false
	}
	return want.Port == "" || samePort(want.Port, p.PortID) || samePort(want.Port, p.PortDesc)
}

func samePort(a, b string) bool {
	kindA, numberA := cutNumber(a)
	kindB, numberB := cutNumber(b)
	return numberA == numberB && (kindA == kindB || numberA != "" && (strings.HasPrefix(kindA, kindB) || strings.HasPrefix(kindB, kindA)))
}

// cutNumber parts Ethernet1/1 into ethernet and 1/1.
func cutNumber(text string) (kind, number string) {
	text = strings.ToLower(strings.TrimSpace(text))
	at := strings.IndexAny(text, "0123456789")
	if at < 0 {
		return text, ""
	}
	return strings.TrimSpace(text[:at]), text[at:]
}

// Audit is Of for all machines, with what only all of them together show: those that never came, those that nobody wrote down, and
// whose cable it is that ends where another one's should.
func Audit(machines []v1alpha1.Machine) []Finding {
	findings := []Finding{}
	for i := range machines {
		m := &machines[i]
		discovered := m.Annotations[v1alpha1.AnnotationDiscoveredBy] != ""
		_, imported := m.Annotations[v1alpha1.AnnotationImport]
		switch {
		case m.Status.Phase == v1alpha1.PhaseExpected && !discovered:
			findings = append(findings, Finding{Machine: m.Name, Kind: Missing, Message: "is expected" + place(m.Spec.Location) + ", and has never been seen"})
		case discovered && !imported && m.Spec.Location == (v1alpha1.Location{}):
			findings = append(findings, Finding{Machine: m.Name, Kind: Unexpected, Found: serialOf(m), Message: "was discovered, and nobody has written down where it stands"})
		}
		for _, f := range Of(m) {
			if f.Kind == Cable {
				f = withOwner(f, m, machines)
			}
			findings = append(findings, f)
		}
	}
	slices.SortStableFunc(findings, func(a, b Finding) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Machine, b.Machine)) })
	return findings
}

// withOwner says which machine is at the port that this one should be at, and whether the two have changed places.
func withOwner(f Finding, m *v1alpha1.Machine, machines []v1alpha1.Machine) Finding {
	for i := range machines {
		other := &machines[i]
		if other.Name == m.Name {
			continue
		}
		for _, p := range portsOf(other) {
			for _, want := range m.Spec.Expected.SwitchPorts {
				if text(want) != f.Want || !p.is(want) {
					continue
				}
				f.Other = other.Name
				f.Message += fmt.Sprintf("; %s is at that port", other.Name)
				if other.Spec.Expected != nil && slices.ContainsFunc(portsOf(m), func(p port) bool {
					return slices.ContainsFunc(other.Spec.Expected.SwitchPorts, p.is)
				}) {
					f.Message += ", and this one at a port of it: their cables are swapped, or the servers are in each other's place"
				}
				return f
			}
		}
	}
	return f
}

func place(l v1alpha1.Location) string {
	switch {
	case l.Rack != "" && l.Unit > 0:
		return fmt.Sprintf(" in rack %s, unit %d", l.Rack, l.Unit)
	case l.Rack != "":
		return " in rack " + l.Rack
	}
	return ""
}

func serialOf(m *v1alpha1.Machine) string {
	if m.Status.Inventory != nil {
		return cmp.Or(m.Status.Inventory.System.Serial, m.Spec.Identifiers.Serial)
	}
	return m.Spec.Identifiers.Serial
}
