package racksheet

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/machine/identify"
)

// LabelGroup is the label that a sheet's column "group" sets. A MachineGroup chooses its machines by it.
const LabelGroup = "group"

// Row is one machine of a sheet. What is empty, the sheet does not say.
type Row struct {
	Sheet string
	Line  int

	Name     string
	Hostname string
	Location v1alpha1.Location
	IDs      v1alpha1.Identifiers
	BMC      v1alpha1.BMC
	Address  string
	Subnet   string
	Labels   map[string]string
	Profile  string
	Approved bool
	Expected v1alpha1.Expected

	// templates that hold for the line.
	nameTemplate, addressTemplate setting
	// switches and ports are as their columns stand, and macsOf the MACs of each MAC column.
	switches, ports []string
	macsOf          [][]string
	// wrong says that a value could not be read, so that nothing is concluded from what is missing.
	wrong bool
	// columns say how people call the column that a value came from.
	columns map[column]string
}

// at is where a value of the row stands.
func (r *Row) at(c column, format string, args ...any) Problem {
	return Problem{Sheet: r.Sheet, Line: r.Line, Column: r.columns[c], Message: fmt.Sprintf(format, args...)}
}

// Sheet is what Parse has read.
type Sheet struct {
	Rows []Row
	// Notes are what was not read, and why.
	Notes []Problem
	// sheets are the names of all grids, in order.
	sheets []string
}

// setting is something that holds for all lines below it: a template, or the value of a column that is empty or missing.
type setting struct {
	key, value string
	line       int
	isDefault  bool
}

// Settings of the caller hold where the sheet has neither a cell nor a setting of its own.
type Settings struct {
	NameTemplate, AddressTemplate string
	Subnet, Profile               string
}

// Plan is Parse, Machines and Compare, with all that is wrong at once, as Problems.
func Plan(grids []Grid, s Settings, w World) (changes []Change, notes []Problem, err error) {
	sheet, unread := Parse(grids, s)
	wanted, colliding := sheet.Machines()
	changes, unchecked, contradicting := sheet.Compare(wanted, w)
	notes = append(sheet.Notes, unchecked...)
	var all Problems
	for _, err := range []error{unread, colliding, contradicting} {
		var problems Problems
		if errors.As(err, &problems) {
			all = append(all, problems...)
		}
	}
	if len(all) > 0 {
		return nil, notes, all.sorted(sheet.sheets)
	}
	return changes, notes, nil
}

// Parse reads the machines of all grids. Its error is a list of Problems; the sheet has what could be read.
func Parse(grids []Grid, s Settings) (*Sheet, error) {
	sheet := &Sheet{}
	var problems Problems
	var headless []Problem
	for i := range grids {
		g := &grids[i]
		sheet.sheets = append(sheet.sheets, g.Sheet)
		at := findHeader(g.Lines)
		if at < 0 {
			headless = append(headless, Problem{Sheet: g.Sheet, Message: "no line has two headers that are known, such as rack, unit, serial, mac, bmc address, name, address; the sheet is not read"})
			continue
		}
		p := parser{grid: g, sheet: sheet, defaults: map[column]setting{}}
		p.set(setting{key: "name", value: s.NameTemplate})
		p.set(setting{key: "address", value: s.AddressTemplate})
		p.set(setting{key: "subnet", value: s.Subnet})
		p.set(setting{key: "profile", value: s.Profile})
		p.read(at)
		problems = append(problems, p.problems...)
	}
	switch {
	case len(headless) == len(grids):
		problems = append(problems, headless...)
	case len(problems) == 0 && len(sheet.Rows) == 0:
		problems = append(problems, Problem{Message: "the sheet has no machine"})
	}
	sheet.Notes = append(sheet.Notes, headless...)
	sheet.Notes = Problems(sheet.Notes).sorted(sheet.sheets)
	if len(problems) > 0 {
		return sheet, problems.sorted(sheet.sheets)
	}
	return sheet, nil
}

// parser reads one grid.
type parser struct {
	grid     *Grid
	sheet    *Sheet
	problems Problems

	headings      []heading
	name, address setting
	defaults      map[column]setting
}

func (p *parser) note(line int, message string) {
	p.sheet.Notes = append(p.sheet.Notes, Problem{Sheet: p.grid.Sheet, Line: line, Message: message})
}

func (p *parser) read(header int) {
	for _, s := range p.grid.settings {
		if !p.set(s) {
			p.problems = append(p.problems, Problem{Sheet: p.grid.Sheet, Line: s.line, Column: s.key, Message: "is no value that can hold for all machines; those are name, address, " + strings.Join(defaultable(), ", ")})
		}
	}
	for _, line := range p.grid.Lines[:header] {
		if s, ok := settingIn(line, false); line.empty() || ok && p.set(s) {
			continue
		}
		p.note(line.Number, fmt.Sprintf("%s stands above the header, and is not read", quoteOf(strings.Join(strings.Fields(strings.Join(line.Cells, " ")), " "))))
	}
	p.head(p.grid.Lines[header])
	for _, line := range p.grid.Lines[header+1:] {
		switch s, isSetting := settingIn(line, true); {
		case line.empty() || isComment(line):
		case p.isHeader(line):
			p.head(line)
		case isSetting && p.set(s):
		default:
			p.row(line)
		}
	}
}

func (p *parser) head(line Line) {
	headings, notes := p.grid.headings(line)
	p.headings = headings
	p.sheet.Notes = append(p.sheet.Notes, notes...)
	seen := map[column]string{}
	for _, h := range headings {
		switch h.column {
		case "", columnMAC, columnSwitch, columnPort, columnLabels, columnNotes, columnUnused:
			continue
		}
		if first := seen[h.column]; first != "" {
			p.problems = append(p.problems, Problem{Sheet: p.grid.Sheet, Line: line.Number, Column: h.shown, Message: fmt.Sprintf("means %q, as column %s does; rename one of them", h.column, first)})
		}
		seen[h.column] = h.shown
	}
}

// isHeader says whether a line is the header once more, as printed sheets have it above each rack.
func (p *parser) isHeader(line Line) bool {
	filled := 0
	for i := range line.Cells {
		text := line.cell(i)
		if text == "" {
			continue
		}
		if i >= len(p.headings) || p.headings[i].column == "" || p.headings[i].word != squeeze(text) {
			return false
		}
		filled++
	}
	return filled >= 2
}

func isComment(line Line) bool {
	for i := range line.Cells {
		if text := line.cell(i); text != "" {
			return strings.HasPrefix(text, "#") || strings.HasPrefix(text, "//")
		}
	}
	return false
}

// settingIn reads a line such as "Rack: A1", in one cell or in two. Below a header the colon is needed.
func settingIn(line Line, below bool) (setting, bool) {
	var cells []string
	for i := range line.Cells {
		if text := line.cell(i); text != "" && !slices.Contains(cells, text) {
			cells = append(cells, text)
		}
	}
	if len(cells) == 0 || len(cells) > 2 {
		return setting{}, false
	}
	first := strings.TrimSpace(strings.TrimLeft(cells[0], "#/ "))
	key, value, colon := strings.Cut(first, ":")
	if !colon {
		key, value, colon = strings.Cut(first, "=")
	}
	value = strings.TrimSpace(value)
	if len(cells) == 2 {
		if value != "" || below && !colon {
			return setting{}, false
		}
		key, value = strings.TrimRight(first, ":= "), cells[1]
	}
	key = strings.TrimSpace(strings.TrimSuffix(strings.ToLower(strings.TrimSpace(key)), "template"))
	s := setting{key: key, value: value, line: line.Number}
	return s, value != "" && columnNamed(key).column != ""
}

func defaultable() []string {
	return []string{string(columnSite), string(columnRoom), string(columnRack), string(columnChassis), string(columnSubnet), string(columnGroup), string(columnLabels), string(columnProfile),
		string(columnApproved), string(columnBMCProtocol), string(columnBMCSecret), string(columnMemory), string(columnCores), string(columnDisks)}
}

// set takes a setting, and says whether it is one.
func (p *parser) set(s setting) bool {
	switch word := strings.TrimSuffix(squeeze(s.key), "template"); {
	case s.value == "":
		return true
	case columnNamed(word).column == columnName && !s.isDefault:
		p.name = s
		return true
	case columnNamed(word).column == columnAddress && !s.isDefault:
		p.address = s
		return true
	}
	c := columnNamed(s.key).column
	if !slices.Contains(defaultable(), string(c)) {
		return false
	}
	p.defaults[c] = s
	return true
}

// row reads one line as a machine.
func (p *parser) row(line Line) {
	r := Row{Sheet: p.grid.Sheet, Line: line.Number, Labels: map[string]string{}, columns: map[column]string{}, nameTemplate: p.name, addressTemplate: p.address}
	before := len(p.problems)
	cell := func(h heading, text string) {
		r.columns[h.column] = h.shown
		if len(text) > maxCell {
			p.problems = append(p.problems, r.at(h.column, "has more than %d characters", maxCell))
		} else if err := r.take(h, text); err != nil {
			p.problems = append(p.problems, r.at(h.column, "%s", err))
		}
	}
	for i, h := range p.headings {
		if h.column == columnSwitch || h.column == columnPort || h.column == columnMAC {
			r.countColumn(h.column)
		}
		if text := line.cell(i); text != "" && h.column != "" {
			cell(h, text)
		}
	}
	for i := range line.Cells {
		if text := line.cell(i); text != "" && i >= len(p.headings) || text != "" && p.headings[i].shown == `""` {
			p.note(line.Number, fmt.Sprintf("%s has no header above it, and is not read", quoteOf(text)))
		}
	}
	filled := 0
	for i := range line.Cells {
		if line.cell(i) != "" {
			filled++
		}
	}
	if !r.hasIdentity() && (filled == 1 || !r.isMachine() && len(p.problems) == before) {
		p.problems = p.problems[:before] // "Total", or whatever else stands alone
		p.note(line.Number, "has nothing that identifies a machine, and is not read")
		return
	}
	for _, c := range slices.Sorted(maps.Keys(p.defaults)) {
		if _, given := r.columns[c]; !given {
			s := p.defaults[c]
			cell(heading{column: c, shown: fmt.Sprintf("%q (set in line %d)", s.key, s.line)}, s.value)
		}
	}
	p.problems = append(p.problems, r.finish()...)
	if r.IDs.Serial == "" && r.IDs.UUID == "" && r.IDs.BMCMAC == "" && len(r.IDs.MACs) == 0 && r.BMC.Address != "" {
		p.note(line.Number, "has only the address of a BMC: the machine is not recognised when it boots. `coldrack bmc scan -o csv` tells serials and MACs")
	}
	r.wrong = len(p.problems) > before
	p.sheet.Rows = append(p.sheet.Rows, r)
}

func (r *Row) isMachine() bool {
	return r.hasIdentity() || r.Name != "" || r.Hostname != "" || r.Location.Unit > 0 || r.Location.Slot > 0
}

func (r *Row) hasIdentity() bool {
	return len(r.IDs.MACs) > 0 || r.IDs.Serial != "" || r.IDs.UUID != "" || r.IDs.BMCMAC != "" || r.BMC.Address != ""
}

// countColumn notes that there is one more column of this kind, so that the columns of one cable stay together where cells are empty.
func (r *Row) countColumn(c column) {
	switch c {
	case columnSwitch:
		r.switches = append(r.switches, "")
	case columnPort:
		r.ports = append(r.ports, "")
	case columnMAC:
		r.macsOf = append(r.macsOf, nil)
	}
}

// take reads one cell.
func (r *Row) take(h heading, text string) (err error) {
	oneLine := strings.Join(strings.Fields(text), " ")
	switch h.column {
	case columnName:
		r.Name = strings.ToLower(oneLine)
	case columnHostname:
		r.Hostname, _, _ = strings.Cut(strings.ToLower(oneLine), ".")
	case columnSite:
		r.Location.Site = oneLine
	case columnRoom:
		r.Location.Room = oneLine
	case columnRack:
		r.Location.Rack = oneLine
	case columnUnit:
		r.Location.Unit, err = parseUnit(oneLine)
	case columnChassis:
		r.Location.Chassis = oneLine
	case columnSlot:
		r.Location.Slot, err = parseSlot(oneLine)
	case columnSerial:
		r.IDs.Serial, err = parseSerial(oneLine)
	case columnUUID:
		r.IDs.UUID = identify.Normal(v1alpha1.Identifiers{UUID: oneLine}).UUID
		if r.IDs.UUID == "" {
			err = fmt.Errorf("%q is no UUID, or one that is on many machines", oneLine)
		}
	case columnMAC:
		var macs []string
		macs, err = parseMACs(text)
		r.macsOf[len(r.macsOf)-1] = macs
		r.IDs.MACs = append(r.IDs.MACs, macs...)
	case columnBMCMAC:
		var macs []string
		if macs, err = parseMACs(text); err == nil && len(macs) > 1 {
			err = fmt.Errorf("has %d MACs; a BMC has one", len(macs))
		} else if err == nil {
			r.IDs.BMCMAC = macs[0]
		}
	default:
		return r.takeConfig(h, text, oneLine)
	}
	return err
}

// takeConfig reads a cell that says how the machine is reached, named or installed, or what it is made of.
func (r *Row) takeConfig(h heading, text, oneLine string) (err error) {
	switch h.column {
	case columnBMCAddress:
		r.BMC.Address = parseBMCAddress(oneLine)
	case columnBMCProtocol:
		if r.BMC.Protocol = strings.ToLower(oneLine); r.BMC.Protocol != "redfish" && r.BMC.Protocol != "ipmi" {
			err = fmt.Errorf("%q is neither redfish nor ipmi", oneLine)
		}
	case columnBMCSystem:
		r.BMC.System = oneLine
	case columnBMCSecret:
		r.BMC.CredentialsSecret = oneLine
	case columnAddress:
		r.Address, err = parseAddress(oneLine)
	case columnSubnet:
		r.Subnet = oneLine
	case columnGroup:
		err = r.label(LabelGroup, oneLine)
	case columnLabels:
		err = r.takeLabels(h, text)
	case columnProfile:
		r.Profile = oneLine
	case columnApproved:
		r.Approved, err = parseBool(oneLine)
	case columnSwitchPorts:
		r.Expected.SwitchPorts, err = parseSwitchPorts(text)
	case columnSwitch:
		r.switches[len(r.switches)-1] = oneLine
	case columnPort:
		r.ports[len(r.ports)-1] = oneLine
	case columnMemory:
		r.Expected.Memory, err = parseMemory(oneLine, h.bytes)
	case columnCores:
		r.Expected.Cores, err = parseCount(oneLine)
	case columnDisks:
		r.Expected.Disks, err = parseCount(oneLine)
	}
	return err
}

func (r *Row) takeLabels(h heading, text string) error {
	if h.label != "" {
		return r.label(h.label, text)
	}
	for _, part := range strings.FieldsFunc(text, func(c rune) bool { return c == ' ' || c == ',' || c == ';' || c == '\n' }) {
		key, value, ok := strings.Cut(part, "=")
		if !ok {
			return fmt.Errorf("%q is no label; want KEY=VALUE, several parted by commas", part)
		}
		if err := r.label(key, value); err != nil {
			return err
		}
	}
	return nil
}

func (r *Row) label(key, value string) error {
	if errs := metav1validation.ValidateLabels(map[string]string{key: value}, field.NewPath("label")); len(errs) > 0 {
		return fmt.Errorf("%s=%s is no label: %s", key, value, errs[0].Detail)
	}
	r.Labels[key] = value
	return nil
}

func parseSerial(text string) (string, error) {
	if strings.Contains(strings.ToUpper(text), "E+") && strings.Trim(text, "0123456789.,eE+") == "" {
		return "", fmt.Errorf("%q is what a spreadsheet made of a serial that it took for a number: format the column as text and write the serial again", text)
	}
	serial := identify.Normal(v1alpha1.Identifiers{Serial: text}).Serial
	if serial == "" {
		return "", fmt.Errorf("%q is on many machines, so it tells this one from no other", text)
	}
	return serial, nil
}

// finish checks what several cells say together.
func (r *Row) finish() Problems {
	var problems Problems
	if !r.hasIdentity() {
		problems = append(problems, r.at("", "has no serial, MAC, UUID, BMC MAC or BMC address: nothing would tell which machine it is. Fill one in, or begin the line with # to leave it out"))
	}
	if r.BMC.Address == "" && r.BMC.System != "" {
		problems = append(problems, r.at(columnBMCSystem, "names a system of a BMC, but the line has no BMC address"))
	}
	for _, check := range []struct {
		column
		value string
	}{{columnName, r.Name}, {columnHostname, r.Hostname}} {
		if check.value != "" {
			if err := validate.Hostname(check.value); err != nil {
				problems = append(problems, r.at(check.column, "%q %s", check.value, err))
			}
		}
	}
	if unique := slices.Compact(slices.Sorted(slices.Values(r.IDs.MACs))); len(unique) < len(r.IDs.MACs) {
		problems = append(problems, r.at(columnMAC, "the line has a MAC twice"))
	}
	if r.IDs.BMCMAC != "" && slices.Contains(r.IDs.MACs, r.IDs.BMCMAC) {
		problems = append(problems, r.at(columnBMCMAC, "%s is also the MAC of a network interface in this line", r.IDs.BMCMAC))
	}
	r.joinCables()
	return problems
}

// joinCables makes switch ports of the columns for switches and ports. Where there is a MAC column for each, the cable is that
// interface's.
func (r *Row) joinCables() {
	for i := range max(len(r.switches), len(r.ports)) {
		var p v1alpha1.SwitchPort
		switch {
		case i < len(r.switches):
			p.Switch = r.switches[i]
		case len(r.switches) == 1: // one switch, several ports
			p.Switch = r.switches[0]
		}
		if i < len(r.ports) {
			p.Port = r.ports[i]
		}
		if p.Switch == "" {
			p.Switch, p.Port, _ = strings.Cut(p.Port, ":")
		}
		if p.Switch == "" {
			continue
		}
		if len(r.macsOf) == max(len(r.switches), len(r.ports)) && len(r.macsOf) > 1 && len(r.macsOf[i]) == 1 {
			p.MAC = r.macsOf[i][0]
		}
		r.Expected.SwitchPorts = append(r.Expected.SwitchPorts, p)
	}
}
