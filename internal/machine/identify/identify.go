// Package identify tells which machine it is that speaks, by what it says of itself. It is pure: it holds what is known of
// all machines, and neither reads a clock nor talks to anybody.
package identify

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"unicode"

	"coldrack.dev/api/v1alpha1"
)

// Query is what a machine says of itself.
type Query struct {
	v1alpha1.Identifiers
	// Complete is true when MACs holds every NIC of the machine, as an agent reports them; a boot loader
	// knows only the one that it booted from.
	Complete bool
}

// Match is the answer to "which machine is this?".
type Match struct {
	// Machine is the name of the machine, or empty when it is unknown or Conflict is set.
	Machine string
	// Conflict is true when the identifiers belong to several machines, so that none can be chosen.
	Conflict bool
	// Involved are the machines that contradict, sorted; only with Conflict.
	Involved []string
	// Reason for a person: by what it was recognised, or why not.
	Reason string
}

// Index finds machines by what they say of themselves. It is not safe for concurrent use.
type Index struct {
	entries map[string]entry
	macs    owners
	uuids   owners
	serials owners
	bmcs    owners
}

// owners maps an identifier to the names of all machines that have it.
type owners map[string]map[string]bool

func (o owners) add(keys []string, name string) {
	for _, key := range keys {
		if o[key] == nil {
			o[key] = map[string]bool{}
		}
		o[key][name] = true
	}
}

func (o owners) remove(keys []string, name string) {
	for _, key := range keys {
		if delete(o[key], name); len(o[key]) == 0 {
			delete(o, key)
		}
	}
}

func (o owners) of(keys []string) []string {
	var names []string
	for _, key := range keys {
		for name := range o[key] {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// entry is what is known of one machine, normalised. A machine can have two UUIDs or serials when the
// rack sheet says another than the machine itself.
type entry struct {
	macs, uuids, serials, bmcs []string
	// complete is true when the machine itself reported all its NICs.
	complete bool
}

// NewIndex returns an empty Index.
func NewIndex() *Index {
	return &Index{entries: map[string]entry{}, macs: owners{}, uuids: owners{}, serials: owners{}, bmcs: owners{}}
}

// Put adds a machine or replaces what was known of it.
func (x *Index) Put(m *v1alpha1.Machine) {
	x.Remove(m.Name)
	e := entryOf(m)
	x.entries[m.Name] = e
	x.macs.add(e.macs, m.Name)
	x.uuids.add(e.uuids, m.Name)
	x.serials.add(e.serials, m.Name)
	x.bmcs.add(e.bmcs, m.Name)
}

// Remove forgets a machine.
func (x *Index) Remove(name string) {
	e, ok := x.entries[name]
	if !ok {
		return
	}
	x.macs.remove(e.macs, name)
	x.uuids.remove(e.uuids, name)
	x.serials.remove(e.serials, name)
	x.bmcs.remove(e.bmcs, name)
	delete(x.entries, name)
}

func entryOf(m *v1alpha1.Machine) entry {
	ids := m.Spec.Identifiers
	e := entry{
		macs:    validMACs(ids.MACs),
		uuids:   appendValid(nil, normalUUID(ids.UUID)),
		serials: appendValid(nil, normalSerial(ids.Serial)),
		bmcs:    appendValid(nil, MAC(ids.BMCMAC)),
	}
	inventory := m.Status.Inventory
	if inventory == nil {
		return e
	}
	for _, nic := range inventory.NICs {
		e.macs = appendValid(e.macs, MAC(nic.MAC))
	}
	e.uuids = appendValid(e.uuids, normalUUID(inventory.System.UUID))
	e.serials = appendValid(e.serials, normalSerial(inventory.System.Serial))
	if inventory.BMC != nil {
		e.bmcs = appendValid(e.bmcs, MAC(inventory.BMC.MAC))
	}
	e.complete = len(inventory.NICs) > 0
	return e
}

func (q Query) entry() entry {
	return entry{
		macs:     validMACs(q.MACs),
		uuids:    appendValid(nil, normalUUID(q.UUID)),
		serials:  appendValid(nil, normalSerial(q.Serial)),
		bmcs:     appendValid(nil, MAC(q.BMCMAC)),
		complete: q.Complete,
	}
}

// Match finds the machine that q belongs to.
//
// A MAC, of a NIC or of the BMC, is worth most: vendors do give out the same UUID twice, and a serial
// may be shared by all nodes of a chassis. So a MAC decides, unless the machine behind it is clearly
// another one (UUID and serial both differ: the NIC was moved) or another machine has the better claim
// to the UUID. Without a MAC in common, a UUID decides when nothing contradicts it, then a serial.
func (x *Index) Match(q Query) Match {
	e := q.entry()
	byMAC := x.macs.of(e.macs)
	for _, name := range x.bmcs.of(e.bmcs) {
		if !slices.Contains(byMAC, name) {
			byMAC = append(byMAC, name)
		}
	}
	switch len(byMAC) {
	case 0:
		return x.matchWithoutMAC(e)
	case 1:
		return x.matchByMAC(byMAC[0], e)
	}
	return conflict(byMAC, fmt.Sprintf("the MACs %s belong to several machines: %s; was a NIC moved from one to another? Delete the machine that no longer exists",
		strings.Join(append(e.macs, e.bmcs...), ", "), strings.Join(byMAC, ", ")))
}

func (x *Index) matchByMAC(name string, e entry) Match {
	known := x.entries[name]
	if differ(known.uuids, e.uuids) && differ(known.serials, e.serials) {
		return conflict([]string{name}, fmt.Sprintf("it has a MAC of machine %s but another UUID (%s, not %s) and another serial (%s, not %s); was the NIC moved to another machine, or the mainboard replaced? Correct spec.identifiers of %s or delete it",
			name, e.uuids[0], known.uuids[0], e.serials[0], known.serials[0], name))
	}
	for _, other := range x.uuids.of(e.uuids) {
		if other == name || share(known.uuids, e.uuids) {
			continue
		}
		if x.contradiction(other, e) == "" {
			return conflict([]string{name, other}, fmt.Sprintf("it has a MAC of machine %s and the UUID %s of machine %s; was a NIC moved? Delete the machine that no longer exists", name, e.uuids[0], other))
		}
	}
	return Match{Machine: name, Reason: "recognised by its MAC"}
}

func (x *Index) matchWithoutMAC(e entry) Match {
	for _, by := range []struct {
		what  string
		names []string
		value []string
	}{
		{"UUID", x.uuids.of(e.uuids), e.uuids},
		{"serial number", x.serials.of(e.serials), e.serials},
	} {
		var fits, why []string
		for _, name := range by.names {
			if text := x.contradiction(name, e); text != "" {
				why = append(why, text)
			} else {
				fits = append(fits, name)
			}
		}
		switch {
		case len(fits) == 1:
			return Match{Machine: fits[0], Reason: fmt.Sprintf("recognised by its %s %s", by.what, by.value[0])}
		case len(fits) > 1:
			return conflict(fits, fmt.Sprintf("several machines have the %s %s: %s", by.what, by.value[0], strings.Join(fits, ", ")))
		case len(why) > 0 && by.what == "UUID":
			return Match{Reason: fmt.Sprintf("a new machine, although it shares its UUID %s: %s", by.value[0], strings.Join(why, "; "))}
		}
	}
	return Match{Reason: "no machine is known by its MAC, UUID or serial number"}
}

// contradiction says why the machine of that name cannot be the one that e describes although they share
// a UUID or a serial, or returns "". They have no MAC in common when it is called.
func (x *Index) contradiction(name string, e entry) string {
	known := x.entries[name]
	switch {
	case differ(known.serials, e.serials):
		return fmt.Sprintf("%s has serial %s, this one %s", name, known.serials[0], e.serials[0])
	case differ(known.uuids, e.uuids):
		return fmt.Sprintf("%s has UUID %s, this one %s", name, known.uuids[0], e.uuids[0])
	case len(e.macs) == 0 || len(known.macs) == 0:
		return ""
	case share(known.macs, e.macs):
		return ""
	case e.complete:
		return fmt.Sprintf("%s has a NIC with MAC %s, this one has not", name, known.macs[0])
	case known.complete && !(share(known.uuids, e.uuids) && share(known.serials, e.serials)):
		// UUID and serial together outweigh a NIC that was added since; one of them alone does not.
		return fmt.Sprintf("%s has reported all its NICs, and %s is none of them", name, e.macs[0])
	}
	return ""
}

func conflict(names []string, reason string) Match {
	return Match{Conflict: true, Involved: names, Reason: reason}
}

// Twin is another machine that shares an identifier.
type Twin struct {
	Name string
	What string // for example "UUID 4c4c4544-…"
}

// Twins are the machines, other than the named one, that have an identifier of its.
func (x *Index) Twins(name string) []Twin {
	e, ok := x.entries[name]
	if !ok {
		return nil
	}
	var twins []Twin
	add := func(what string, keys []string, o owners) {
		for _, key := range keys {
			for _, other := range o.of([]string{key}) {
				if other != name {
					twins = append(twins, Twin{Name: other, What: what + " " + key})
				}
			}
		}
	}
	add("MAC", e.macs, x.macs)
	add("BMC MAC", e.bmcs, x.bmcs)
	add("UUID", e.uuids, x.uuids)
	return twins // a shared serial is normal: nodes of one chassis
}

func share(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

func differ(a, b []string) bool { return len(a) > 0 && len(b) > 0 && !share(a, b) }

func appendValid(list []string, value string) []string {
	if value == "" || slices.Contains(list, value) {
		return list
	}
	return append(list, value)
}

func validMACs(macs []string) []string {
	var list []string
	for _, mac := range macs {
		list = appendValid(list, MAC(mac))
	}
	return list
}

// NameFor is the name of a machine that nobody has named: after its first MAC, else after its UUID or
// serial. Empty when it has nothing that tells it from others.
func NameFor(ids v1alpha1.Identifiers) string {
	if macs := validMACs(ids.MACs); len(macs) > 0 {
		return "m-" + strings.ReplaceAll(macs[0], ":", "")
	}
	if normalUUID(ids.UUID) != "" {
		return "m-" + strings.ToLower(strings.TrimSpace(ids.UUID))
	}
	return ""
}

// Normal returns the identifiers in the form in which a Machine's spec has them: lower case, without
// those that are no identifiers at all.
func Normal(ids v1alpha1.Identifiers) v1alpha1.Identifiers {
	n := v1alpha1.Identifiers{MACs: validMACs(ids.MACs), BMCMAC: MAC(ids.BMCMAC)}
	if normalUUID(ids.UUID) != "" {
		n.UUID = strings.ToLower(strings.TrimSpace(ids.UUID))
	}
	if normalSerial(ids.Serial) != "" {
		n.Serial = printable(ids.Serial)
	}
	return n
}

// MAC returns a MAC in lower case with colons, or "" for what is not the address of one NIC: zeros,
// broadcast, multicast, InfiniBand's 20 bytes.
func MAC(mac string) string {
	hw, err := net.ParseMAC(strings.TrimSpace(mac))
	if err != nil || len(hw) != 6 || hw[0]&1 == 1 || allEqual(hw.String(), ":") {
		return ""
	}
	return hw.String()
}

// normalUUID returns the canonical form of an SMBIOS UUID, or "" for one that vendors put on many
// machines. SMBIOS before 2.6 left the byte order of the first three fields open, and firmware, boot
// loaders and kernels disagree about it to this day, so both orders have the same canonical form.
func normalUUID(uuid string) string {
	uuid = strings.ToLower(strings.TrimSpace(uuid))
	if !isUUID(uuid) {
		return ""
	}
	swapped := swap(uuid[0:8]) + "-" + swap(uuid[9:13]) + "-" + swap(uuid[14:18]) + uuid[18:]
	for _, u := range []string{uuid, swapped} {
		if allEqual(u, "-") || slices.Contains(duplicateUUIDs, u) {
			return ""
		}
	}
	return min(uuid, swapped)
}

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range s {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return false
			}
		} else if !strings.ContainsRune("0123456789abcdef", c) {
			return false
		}
	}
	return true
}

// swap reverses the order of bytes in hex.
func swap(hex string) string {
	var b strings.Builder
	for i := len(hex) - 2; i >= 0; i -= 2 {
		b.WriteString(hex[i : i+2])
	}
	return b.String()
}

// normalSerial returns the serial in upper case, or "" for what vendors write when they mean none.
func normalSerial(serial string) string {
	serial = strings.Join(strings.Fields(strings.ToUpper(printable(serial))), " ")
	if serial == "" || allEqual(serial, "-. ") || slices.Contains(emptySerials, serial) || strings.Contains(serial, "O.E.M") {
		return ""
	}
	return serial
}

// printable is a serial without what no terminal should be sent, cut to the length that a Machine holds.
func printable(serial string) string {
	serial = strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n':
			return ' '
		case r == unicode.ReplacementChar || !unicode.IsPrint(r):
			return -1
		}
		return r
	}, serial)
	const limit = 64
	if len(serial) > limit {
		serial = strings.ToValidUTF8(serial[:limit], "")
	}
	return strings.TrimSpace(serial)
}

// allEqual says whether s consists of one character repeated, apart from separators.
func allEqual(s, separators string) bool {
	s = strings.Map(func(r rune) rune {
		if strings.ContainsRune(separators, r) {
			return -1
		}
		return r
	}, s)
	return s == "" || strings.Trim(s, s[:1]) == ""
}

// UUIDs and serials that are known from many machines at once.
var (
	duplicateUUIDs = []string{
		"03000200-0400-0500-0006-000700080009", // AMI's default
		"12345678-1234-5678-90ab-cddeefaabbcc", // Gigabyte and others
		"12345678-1234-5678-1234-567812345678",
		"01234567-89ab-cdef-0123-456789abcdef",
		"01020304-0506-0708-090a-0b0c0d0e0f10",
		"00010203-0405-0607-0809-0a0b0c0d0e0f",
		"11111111-2222-3333-4444-555555555555",
		"4c4c4544-0000-2010-8020-80c04f202020", // Dell without a service tag
		"fefefefe-fefe-fefe-fefe-fefefefefefe",
	}
	emptySerials = []string{
		"DEFAULT STRING", "SYSTEM SERIAL NUMBER", "CHASSIS SERIAL NUMBER", "BASE BOARD SERIAL NUMBER",
		"SERIAL NUMBER", "SERIAL", "NONE", "N/A", "NA", "NULL", "NIL", "EMPTY", "UNKNOWN", "INVALID", "UNDEFINED",
		"NOT SPECIFIED", "NOT APPLICABLE", "NOT AVAILABLE", "NOT SET", "NO SERIAL", "NO SERIAL NUMBER",
		"OEM", "TBD", "0123456789", "01234567890", "123456789", "1234567890", "012345678", "12345678", "123456", "FILLED BY OEM",
		"TO BE FILLED BY OEM", "SSN12345678901234567", "SSSSSSSSSSSS", "0123456789ABCDEF",
	}
)
