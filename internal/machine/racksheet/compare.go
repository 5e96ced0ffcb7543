package racksheet

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/identify"
)

// Action is what an import does with a Machine.
type Action string

const (
	Create    Action = "create"
	Update    Action = "change"
	Unchanged Action = "unchanged"
	// Missing is a Machine of the server that stands in a rack of the sheet, and is in no line of it. It stays as it is.
	Missing Action = "missing"
)

// Change is what an import does with one Machine.
type Change struct {
	Action  Action `json:"action"`
	Machine string `json:"machine"`
	// Sheet and Line say where it stands; Line is 0 for what is missing.
	Sheet  string        `json:"sheet,omitempty"`
	Line   int           `json:"line,omitempty"`
	Fields []FieldChange `json:"fields,omitempty"`

	// Before is the Machine as the server has it, nil for a new one; After as the import writes it.
	Before *v1alpha1.Machine `json:"-"`
	After  *v1alpha1.Machine `json:"-"`

	row *Row
}

// FieldChange is one field that gets another value.
type FieldChange struct {
	Field string `json:"field"`
	From  string `json:"from,omitempty"`
	To    string `json:"to"`
}

// World is what the server has.
type World struct {
	Machines []v1alpha1.Machine
	Subnets  []v1alpha1.Subnet
}

// Compare says what an import changes, in the order of the sheet. Its error is a list of Problems: what of the sheet contradicts what
// the server has.
func (s *Sheet) Compare(wanted []Wanted, w World) (changes []Change, notes []Problem, err error) {
	var problems Problems
	index := indexOf(w.Machines)
	taken := map[string]*Row{}
	unchecked := false
	for i := range wanted {
		r := wanted[i].Row
		problems = append(problems, r.chooseSubnet(wanted[i].Machine, w.Subnets)...)
		unchecked = unchecked || wanted[i].Machine.Spec.Network != nil && len(w.Subnets) == 0
		known, found := index.find(wanted[i])
		problems = append(problems, found...)
		if len(found) > 0 {
			continue
		}
		if known != nil {
			if other := taken[known.Name]; other != nil {
				problems = append(problems, r.at("", "is machine %s of the server, as line %d is", known.Name, other.Line))
				continue
			}
			taken[known.Name] = r
		}
		changes = append(changes, changeOf(wanted[i], known))
	}
	if unchecked {
		notes = append(notes, Problem{Message: "the server has no Subnet yet, so it was not checked in which network the addresses lie"})
	}
	problems = append(problems, index.conflicts(changes)...)
	changes = append(changes, missing(changes, w.Machines)...)
	if len(problems) > 0 {
		return nil, notes, problems.sorted(s.sheets)
	}
	return changes, notes, nil
}

// index finds the server's Machines by what a line can say of them.
type index struct {
	byName   map[string]*v1alpha1.Machine
	byClaim  map[claim][]*v1alpha1.Machine
	machines []v1alpha1.Machine
}

func indexOf(machines []v1alpha1.Machine) *index {
	x := &index{byName: map[string]*v1alpha1.Machine{}, byClaim: map[claim][]*v1alpha1.Machine{}, machines: machines}
	for i := range machines {
		m := &machines[i]
		x.byName[m.Name] = m
		for _, c := range identifiersOf(m) {
			if !slices.Contains(x.byClaim[c], m) {
				x.byClaim[c] = append(x.byClaim[c], m)
			}
		}
	}
	return x
}

// identifiersOf are a Machine's, as a person wrote them and as it has reported.
func identifiersOf(m *v1alpha1.Machine) []claim {
	list := identifierClaims(m.Spec.Identifiers)
	if inventory := m.Status.Inventory; inventory != nil {
		seen := v1alpha1.Identifiers{UUID: inventory.System.UUID, Serial: inventory.System.Serial}
		for _, nic := range inventory.NICs {
			if nic.Bus != v1alpha1.NICBusUSB {
				seen.MACs = append(seen.MACs, nic.MAC)
			}
		}
		if inventory.BMC != nil {
			seen.BMCMAC = inventory.BMC.MAC
		}
		list = append(list, identifierClaims(seen)...)
	}
	return list
}

func identifierClaims(ids v1alpha1.Identifiers) []claim {
	ids = identify.Normalize(ids)
	claims := []claim{{columnSerial, ids.Serial}, {columnUUID, ids.UUID}, {columnMAC, ids.BMCMAC}}
	for _, mac := range ids.MACs {
		claims = append(claims, claim{columnMAC, mac})
	}
	return slices.DeleteFunc(claims, func(c claim) bool { return c.value == "" })
}

// find is the server's Machine that a line means: by its identifiers, else by its name. A line whose identifiers belong to several, or
// to another one than its name does, is refused.
func (x *index) find(w Wanted) (*v1alpha1.Machine, Problems) {
	var fits []*v1alpha1.Machine
	var by []string
	for _, c := range identifierClaims(w.Machine.Spec.Identifiers) {
		for _, m := range x.byClaim[c] {
			if !slices.Contains(fits, m) {
				fits = append(fits, m)
				by = append(by, fmt.Sprintf("%s by its %s %s", m.Name, c.column.called(), c.value))
			}
		}
	}
	named := x.byName[w.Machine.Name]
	switch {
	case len(fits) > 1:
		return nil, Problems{w.Row.at("", "can be several machines of the server: %s. Correct the line, or delete the machine that no longer exists", strings.Join(by, ", "))}
	case len(fits) == 0:
		return named, nil
	case named != nil && named != fits[0]:
		return nil, Problems{w.Row.at(columnName, "is called as machine %s of the server, but is %s. Correct the line, or delete the machine that no longer exists", named.Name, by[0])}
	}
	return fits[0], nil
}

// chooseSubnet checks the line's address with the server's Subnets, and names the one that it lies in.
func (r *Row) chooseSubnet(m *v1alpha1.Machine, subnets []v1alpha1.Subnet) (problems Problems) {
	n := m.Spec.Network
	if n == nil {
		return nil
	}
	a, _ := netip.ParseAddr(n.Address)
	var holding *v1alpha1.Subnet
	var names []string
	for i := range subnets {
		plan, errs := subnets[i].IPPlan()
		names = append(names, fmt.Sprintf("%s (%s)", subnets[i].Name, subnets[i].Spec.CIDR))
		if subnets[i].Name == n.Subnet || n.Subnet == "" && len(errs) == 0 && plan.CIDR.Contains(a) {
			holding = &subnets[i]
		}
	}
	switch {
	case holding != nil:
		n.Subnet = holding.Name
		for _, e := range v1alpha1.ValidateMachineAddress(m, holding) {
			problems = append(problems, r.at(columnAddress, "%s %s", n.Address, e.Detail))
		}
	case len(subnets) == 0:
	case n.Subnet != "":
		problems = append(problems, r.at(columnSubnet, "there is no Subnet %q; there are %s", n.Subnet, strings.Join(names, ", ")))
	default:
		problems = append(problems, r.at(columnAddress, "%s is in no Subnet of the server; there are %s", n.Address, strings.Join(names, ", ")))
	}
	return problems
}

// changeOf puts what the line says into the Machine. What the line does not say stays.
func changeOf(w Wanted, known *v1alpha1.Machine) Change {
	c := Change{Action: Create, Machine: w.Machine.Name, Sheet: w.Row.Sheet, Line: w.Row.Line, After: w.Machine, row: w.Row}
	if known == nil {
		c.Fields = Differences(&v1alpha1.Machine{}, w.Machine)
		return c
	}
	next := known.DeepCopy()
	overlay(next, w.Machine)
	c.Action, c.Machine, c.Before, c.After = Update, known.Name, known, next
	if c.Fields = Differences(known, next); len(c.Fields) == 0 {
		c.Action = Unchanged
	}
	return c
}

func overlay(next, wanted *v1alpha1.Machine) {
	// Objects keep their names: a machine that was discovered before it was in a sheet gets the sheet's name as its host name.
	hostname := wanted.Spec.Hostname
	if wanted.Name != next.Name {
		hostname = cmp.Or(hostname, wanted.Name)
	}
	set(&next.Spec.Hostname, hostname)
	ids, want := &next.Spec.Identifiers, wanted.Spec.Identifiers
	set(&ids.Serial, want.Serial)
	set(&ids.UUID, want.UUID)
	set(&ids.BMCMAC, want.BMCMAC)
	if slices.ContainsFunc(want.MACs, func(mac string) bool { return !slices.Contains(ids.MACs, mac) }) {
		ids.MACs = want.MACs
	}
	at, to := &next.Spec.Location, wanted.Spec.Location
	set(&at.Site, to.Site)
	set(&at.Room, to.Room)
	set(&at.Rack, to.Rack)
	set(&at.Unit, to.Unit)
	set(&at.Chassis, to.Chassis)
	set(&at.Slot, to.Slot)
	set(&next.Spec.Profile, wanted.Spec.Profile)
	set(&next.Spec.Approved, wanted.Spec.Approved)
	if b := wanted.Spec.BMC; b != nil {
		if next.Spec.BMC == nil {
			next.Spec.BMC = &v1alpha1.BMC{}
		}
		set(&next.Spec.BMC.Address, b.Address)
		set(&next.Spec.BMC.Protocol, b.Protocol)
		set(&next.Spec.BMC.System, b.System)
		set(&next.Spec.BMC.CredentialsSecret, b.CredentialsSecret)
	}
	if n := wanted.Spec.Network; n != nil {
		if next.Spec.Network == nil {
			next.Spec.Network = &v1alpha1.MachineNetwork{}
		}
		set(&next.Spec.Network.Address, n.Address)
		set(&next.Spec.Network.Subnet, n.Subnet)
	}
	if e := wanted.Spec.Expected; e != nil {
		if next.Spec.Expected == nil {
			next.Spec.Expected = &v1alpha1.Expected{}
		}
		if e.Memory != nil && (next.Spec.Expected.Memory == nil || next.Spec.Expected.Memory.Cmp(*e.Memory) != 0) {
			next.Spec.Expected.Memory = e.Memory
		}
		set(&next.Spec.Expected.Cores, e.Cores)
		set(&next.Spec.Expected.Disks, e.Disks)
		if len(e.SwitchPorts) > 0 {
			next.Spec.Expected.SwitchPorts = e.SwitchPorts
		}
	}
	if len(wanted.Labels) > 0 {
		if next.Labels == nil {
			next.Labels = map[string]string{}
		}
		maps.Copy(next.Labels, wanted.Labels)
	}
}

func set[T comparable](field *T, value T) {
	var zero T
	if value != zero {
		*field = value
	}
}

// Differences are the fields of a sheet in which two Machines differ.
func Differences(before, after *v1alpha1.Machine) []FieldChange {
	was, now := fieldsOf(before), fieldsOf(after)
	var changes []FieldChange
	for i, f := range now {
		if f.value != was[i].value {
			changes = append(changes, FieldChange{Field: string(f.column), From: was[i].value, To: f.value})
		}
	}
	if len(changes) == 0 && !(equality.Semantic.DeepEqual(before.Spec, after.Spec) && equality.Semantic.DeepEqual(before.Labels, after.Labels)) {
		changes = append(changes, FieldChange{Field: "spelling", To: "as in the sheet"})
	}
	return changes
}

// conflicts are what a line claims and a Machine of the server has that the import does not change, or that keeps it.
func (x *index) conflicts(changes []Change) (problems Problems) {
	inSheet := map[string]bool{}
	for _, c := range changes {
		inSheet[c.Machine] = true
	}
	owners := map[claim]string{}
	for i := range x.machines {
		m := &x.machines[i]
		if inSheet[m.Name] {
			continue
		}
		for _, c := range exclusive(m) {
			owners[c] = m.Name
		}
		if lease := m.Status.Lease; lease != nil {
			owners[claim{columnAddress, lease.Address}] = m.Name
		}
	}
	for _, c := range changes {
		for _, own := range exclusive(c.After) {
			if owner := owners[own]; owner != "" {
				problems = append(problems, c.row.at(own.column, "%s %s belongs to machine %s of the server, which no line of the sheet is", own.column.called(), own.value, owner))
			}
		}
	}
	return problems
}

// exclusive is what only one Machine can have, beside its identifiers.
func exclusive(m *v1alpha1.Machine) []claim {
	claims := []claim{{columnHostname, cmp.Or(m.Spec.Hostname, m.Name)}}
	if n := m.Spec.Network; n != nil && n.Address != "" {
		claims = append(claims, claim{columnAddress, n.Address})
	}
	if place := placeOf(m.Spec.Location); place != "" {
		claims = append(claims, claim{columnUnit, place})
	}
	if b := m.Spec.BMC; b != nil {
		claims = append(claims, claim{columnBMCAddress, strings.ToLower(strings.TrimSpace(b.Address + " " + b.System))})
	}
	return claims
}

// missing are the server's Machines that stand in a rack of the sheet and are in no line.
func missing(changes []Change, machines []v1alpha1.Machine) []Change {
	type rack struct{ site, room, rack string }
	racks, present := map[rack]bool{}, map[string]bool{}
	for _, c := range changes {
		present[c.Machine] = true
		if l := c.After.Spec.Location; l.Rack != "" {
			racks[rack{l.Site, l.Room, l.Rack}] = true
		}
	}
	var absent []Change
	for i := range machines {
		m := &machines[i]
		if l := m.Spec.Location; racks[rack{l.Site, l.Room, l.Rack}] && !present[m.Name] {
			absent = append(absent, Change{Action: Missing, Machine: m.Name, Before: m})
		}
	}
	slices.SortFunc(absent, func(a, b Change) int { return cmp.Compare(a.Machine, b.Machine) })
	return absent
}
