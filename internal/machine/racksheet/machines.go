package racksheet

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/machine/identify"
)

// Wanted is a Machine as a line of the sheet says it shall be. What the line does not say is not set.
type Wanted struct {
	Row     *Row
	Machine *v1alpha1.Machine
}

// Machines names and addresses the rows, and refuses what two of them have in common and only one machine can have. Its error is a
// list of Problems. Lines that could not be read are left out.
func (s *Sheet) Machines() ([]Wanted, error) {
	var problems Problems
	var wanted []Wanted
	inRack := map[string]int{}
	for i := range s.Rows {
		r := &s.Rows[i]
		inRack[r.Location.Rack]++
		v := values{row: r, sequence: i + 1, rackwise: inRack[r.Location.Rack]}
		wrong := r.fillIn(v)
		if r.wrong {
			continue
		}
		problems = append(problems, wrong...)
		if r.wrong = len(wrong) > 0; !r.wrong {
			wanted = append(wanted, Wanted{Row: r, Machine: r.machine()})
		}
	}
	problems = append(problems, collisions(s.Rows)...)
	if len(problems) > 0 {
		return wanted, problems.sorted(s.sheets)
	}
	return wanted, nil
}

// fillIn gives the row the name and the address that its templates say, where it has none of its own.
func (r *Row) fillIn(v values) (problems Problems) {
	column := func(s setting) string {
		if s.line > 0 {
			return fmt.Sprintf("%q (set in line %d)", s.key, s.line)
		}
		return ""
	}
	r.Name = cmp.Or(r.Name, r.Hostname)
	if r.Name == r.Hostname {
		r.Hostname = "" // a node is called as its Machine
	}
	if r.Name == "" {
		name, err := r.templateOrPlace(v)
		r.columns[columnName] = column(r.nameTemplate)
		r.Name = slug(name)
		switch wrong := validate.Hostname(r.Name); {
		case err != nil:
			problems = append(problems, r.at(columnName, "has no name, and %s", err))
		case wrong != nil:
			problems = append(problems, r.at(columnName, "its name would be %q, which %s", r.Name, wrong))
		}
	}
	if r.Address == "" && r.addressTemplate.value != "" {
		text, err := fill(r.addressTemplate.value, v)
		if err == nil {
			r.Address, err = parseAddress(text)
		}
		r.columns[columnAddress] = column(r.addressTemplate)
		if err != nil {
			problems = append(problems, r.at(columnAddress, "has no address, and %s", err))
		}
	}
	return problems
}

// templateOrPlace is the name of a machine that the sheet does not name: by a template, else by its place, else by its MAC.
func (r *Row) templateOrPlace(v values) (string, error) {
	if r.nameTemplate.value != "" {
		return fill(r.nameTemplate.value, v)
	}
	l := r.Location
	var parts []string
	for _, part := range []string{l.Rack, l.Chassis} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	if l.Unit > 0 {
		parts = append(parts, fmt.Sprintf("u%d", l.Unit))
	}
	if l.Slot > 0 {
		parts = append(parts, fmt.Sprintf("s%d", l.Slot))
	}
	if (l.Rack != "" || l.Chassis != "") && (l.Unit > 0 || l.Slot > 0) {
		return strings.Join(parts, "-"), nil
	}
	if name := identify.NameFor(identify.Query{Identifiers: r.IDs}); name != "" {
		return name, nil
	}
	return "", fmt.Errorf("neither rack and unit nor a MAC to make one of; give a template, such as --name 'node-{{.Sequence}}'")
}

func (r *Row) machine() *v1alpha1.Machine {
	m := &v1alpha1.Machine{TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Machine"}}
	m.Name, m.Labels = r.Name, r.Labels
	m.Spec.Identifiers, m.Spec.Location, m.Spec.Profile, m.Spec.Approved = r.IDs, r.Location, r.Profile, r.Approved
	if r.Hostname != r.Name {
		m.Spec.Hostname = r.Hostname
	}
	if r.BMC.Address != "" {
		m.Spec.BMC = new(r.BMC)
	}
	if r.Address != "" || r.Subnet != "" {
		m.Spec.Network = &v1alpha1.MachineNetwork{Address: r.Address, Subnet: r.Subnet}
	}
	if e := r.Expected; e.Memory != nil || e.Cores > 0 || e.Disks > 0 || len(e.SwitchPorts) > 0 {
		m.Spec.Expected = new(e)
	}
	return m
}

// claim is something that only one machine can have.
type claim struct {
	column column
	value  string
}

// claims are compared as identify compares them, so that nothing passes here that makes two machines one there.
func (r *Row) claims() []claim {
	ids := identify.Normalize(r.IDs)
	claims := []claim{{columnName, r.Name}, {columnHostname, cmp.Or(r.Hostname, r.Name)}, {columnSerial, ids.Serial}, {columnUUID, ids.UUID}, {columnAddress, r.Address}, {columnMAC, ids.BMCMAC}}
	for _, mac := range ids.MACs {
		claims = append(claims, claim{columnMAC, mac})
	}
	if r.BMC.Address != "" {
		claims = append(claims, claim{columnBMCAddress, strings.ToLower(strings.TrimSpace(r.BMC.Address + " " + r.BMC.System))})
	}
	for _, p := range r.Expected.SwitchPorts {
		if p.Port != "" {
			claims = append(claims, claim{columnSwitchPorts, strings.ToLower(p.Switch + ":" + p.Port)})
		}
	}
	if place := placeOf(r.Location); place != "" {
		claims = append(claims, claim{columnUnit, place})
	}
	return slices.DeleteFunc(claims, func(c claim) bool { return c.value == "" })
}

// placeOf is where a machine stands, if only one machine can stand there.
func placeOf(l v1alpha1.Location) string {
	if l.Rack == "" && l.Chassis == "" || l.Unit == 0 && l.Slot == 0 {
		return ""
	}
	var parts []string
	for _, p := range [][2]string{{"site", l.Site}, {"room", l.Room}, {"rack", l.Rack}, {"chassis", l.Chassis}} {
		if p[1] != "" {
			parts = append(parts, p[0]+" "+p[1])
		}
	}
	if l.Unit > 0 {
		parts = append(parts, fmt.Sprintf("unit %d", l.Unit))
	}
	if l.Slot > 0 {
		parts = append(parts, fmt.Sprintf("slot %d", l.Slot))
	}
	return strings.ToLower(strings.Join(parts, ", "))
}

func collisions(rows []Row) (problems Problems) {
	first := map[claim]*Row{}
	for i := range rows {
		r := &rows[i]
		for _, c := range r.claims() {
			other := first[c]
			switch {
			case other == nil:
				first[c] = r
			case other != r && (c.column != columnHostname || r.Name != other.Name):
				where := fmt.Sprintf("line %d", other.Line)
				if other.Sheet != r.Sheet {
					where = fmt.Sprintf("sheet %q, line %d", other.Sheet, other.Line)
				}
				problems = append(problems, r.at(c.column, "%s %s is in %s already", c.column.called(), c.value, where))
			}
		}
	}
	return problems
}

// called is how a message calls what two lines have in common.
func (c column) called() string {
	switch c {
	case columnUnit:
		return "the place"
	case columnMAC:
		return "MAC"
	case columnSwitchPorts:
		return "the switch port"
	case columnUUID:
		return "UUID"
	case columnBMCAddress:
		return "the BMC at"
	}
	return string(c)
}
