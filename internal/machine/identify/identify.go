// Package identify tells which machine it is that speaks, by what it says of itself. It is pure: it holds what is known of
// all machines, and neither reads a clock nor talks to anybody.
package identify

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/termtext"
)

// Query is what a machine says of itself.
type Query struct {
	v1alpha1.Identifiers
	// Complete is true when MACs holds every NIC of the machine, as an agent reports them; a boot loader
	// knows only the one that it booted from.
	Complete bool
	// Boot is the MAC that the machine booted from, if that is known. The only MAC of an incomplete Query is it anyway.
	Boot string
	// USB are the MACs of interfaces that are attached by USB.
	USB []string
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

// DiscoveredByBoot and DiscoveredByEnrolment are the values of AnnotationDiscoveredBy. The first MAC of such a Machine is the
// one that it booted from; an enrolment brings all MACs.
const (
	DiscoveredByBoot      = "boot"
	DiscoveredByEnrolment = "enrolment"
)

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
	// boots are those of macs from which the machine booted, as far as is known.
	boots []string
	// usb are the MACs of interfaces that are attached by USB, among macs or not.
	usb []string
	// complete is true when the machine itself reported all its NICs.
	complete bool
	standing standing
}

// standing says how much weight the evidence for a machine has. What an unapproved machine claims takes nothing away from one
// that is installed, or that a person wrote down or approved.
type standing int

const (
	claimed   standing = iota // only the machine itself says so
	confirmed                 // a person wrote it down, or approved it
	installed                 // it has an identity of ours, or an installed disk
)

func standingOf(m *v1alpha1.Machine) standing {
	switch {
	case m.Status.Identity != nil || m.Status.Installed != nil:
		return installed
	case m.Spec.Approved || m.Annotations[v1alpha1.AnnotationDiscoveredBy] == "":
		return confirmed
	}
	return claimed
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
		uuids:   appendValid(nil, normalUUID(ids.UUID)),
		serials: appendValid(nil, normalSerial(ids.Serial)),
		bmcs:    appendValid(nil, ownMAC(ids.BMCMAC)),
		// An enrolment brings all NICs; the first is the one that booted, as with a boot script.
		complete: m.Annotations[v1alpha1.AnnotationDiscoveredBy] == DiscoveredByEnrolment,
		standing: standingOf(m),
	}
	macs, boot := ids.MACs, ""
	if m.Annotations[v1alpha1.AnnotationDiscoveredBy] != "" && len(macs) > 0 {
		e.boots = appendValid(e.boots, ownMAC(macs[0]))
	}
	inventory := m.Status.Inventory
	if inventory == nil {
		e.macs = ownMACs(macs, nil, "")
		return e
	}
	for _, nic := range inventory.NICs {
		macs = append(slices.Clip(macs), nic.MAC)
		if nic.Bus == v1alpha1.NICBusUSB {
			e.usb = appendValid(e.usb, MAC(nic.MAC))
		}
		if nic.Boot {
			boot = nic.MAC
			e.boots = appendValid(e.boots, ownMAC(nic.MAC))
		}
	}
	e.macs = ownMACs(macs, e.usb, boot)
	e.uuids = appendValid(e.uuids, normalUUID(inventory.System.UUID))
	e.serials = appendValid(e.serials, normalSerial(inventory.System.Serial))
	if inventory.BMC != nil {
		e.bmcs = appendValid(e.bmcs, ownMAC(inventory.BMC.MAC))
	}
	e.complete = e.complete || len(inventory.NICs) > 0
	return e
}

func (q Query) entry() entry {
	e := entry{
		macs:     ownMACs(q.MACs, q.USB, q.Boot),
		uuids:    appendValid(nil, normalUUID(q.UUID)),
		serials:  appendValid(nil, normalSerial(q.Serial)),
		bmcs:     appendValid(nil, ownMAC(q.BMCMAC)),
		boots:    appendValid(nil, ownMAC(q.Boot)),
		complete: q.Complete,
	}
	for _, mac := range q.USB {
		e.usb = appendValid(e.usb, MAC(mac))
	}
	if !q.Complete && len(q.MACs) == 1 {
		e.boots = e.macs
	}
	return e
}

// Match finds the machine that q belongs to.
//
// A MAC, of a NIC or of the BMC, is worth most: vendors do give out the same UUID twice, and a serial
// may be shared by all nodes of a chassis. But MACs are given out twice, too, and NICs are moved. So a MAC decides only
// where nothing else speaks against it (see verdictOf). Without such a MAC, a UUID decides when nothing contradicts it, then a
// serial. In doubt it is nobody: a machine that is taken for another one may be wiped. Where several machines have the
// identifiers, those with the higher standing count (see standing).
func (x *Index) Match(q Query) Match {
	e := q.entry()
	candidates := x.macs.of(e.macs)
	for _, name := range x.bmcs.of(e.bmcs) {
		if !slices.Contains(candidates, name) {
			candidates = append(candidates, name)
		}
	}
	others := map[string]string{} // machines that share a MAC and are not this one, and why
	var fits []string             // machines that it is by a MAC, or may be
	doubts := map[string]string{} // those of fits that it only may be, and why
	for _, name := range candidates {
		switch v, why := x.verdictOf(name, e); v {
		case different:
			others[name] = why
		case doubtful:
			doubts[name] = why
			fits = append(fits, name)
		default:
			fits = append(fits, name)
		}
	}
	all := x.strongest(fits)
	if len(all) == 0 {
		return x.matchWithoutMAC(e, others)
	}
	other, claims := x.claimant(e, all[0], others)
	switch {
	case len(all) > 1:
		slices.Sort(all)
		return conflict(all, fmt.Sprintf("the MACs %s belong to several machines: %s. If a NIC was moved from one to another, delete the machine that no longer exists. If all exist, NICs of theirs have one MAC: boot from another NIC, or give this one a MAC of its own",
			strings.Join(append(e.macs, e.bmcs...), ", "), strings.Join(all, ", ")))
	case other != "":
		return conflict([]string{all[0], other}, fmt.Sprintf("it has a MAC of machine %s and the %s of machine %s; was a NIC moved, or are two lines of a rack sheet mixed up? Correct the one that is wrong, or delete the machine that no longer exists", all[0], claims, other))
	case doubts[all[0]] != "":
		slices.Sort(fits)
		return conflict(fits, doubts[all[0]])
	case len(fits) > 1:
		return Match{Machine: all[0], Reason: fmt.Sprintf("recognised by its MAC; %s claims it, too, but less speaks for it", strings.Join(without(fits, all), ", "))}
	default:
		return Match{Machine: all[0], Reason: "recognised by its MAC"}
	}
}

// strongest are those of the named machines that have the highest standing among them.
func (x *Index) strongest(names []string) []string {
	top := claimed
	for _, name := range names {
		top = max(top, x.entries[name].standing)
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return x.entries[name].standing < top })
}

// claimant is a machine other than the named one that has the UUID or the serial and could be the one that e describes, or "", and
// what it has. Where the named machine has the identifier too, or another one has a NIC that e lacks, it is no such machine: nodes of
// one chassis may have one serial.
func (x *Index) claimant(e entry, name string, others map[string]string) (machine, what string) {
	known := x.entries[name]
	for _, by := range []struct {
		what         string
		has, present []string
		all          owners
	}{{"UUID", known.uuids, e.uuids, x.uuids}, {"serial number", known.serials, e.serials, x.serials}} {
		if share(by.has, by.present) {
			continue
		}
		for _, other := range by.all.of(by.present) {
			weaker := x.entries[other].standing < known.standing
			if other != name && others[other] == "" && !weaker && x.contradiction(other, e) == "" {
				return other, by.what + " " + by.present[0]
			}
		}
	}
	return "", ""
}

// verdict says whether a known machine and one that has a MAC of it are the same.
type verdict int

const (
	same verdict = iota
	different
	doubtful // only a person can tell
)

// verdictOf compares the machine of that name with e, which has a MAC in common with it, and says why they are not the same, or
// may not be.
func (x *Index) verdictOf(name string, e entry) (verdict, string) {
	known := x.entries[name]
	common := append(intersect(known.macs, e.macs), intersect(known.bmcs, e.bmcs)...)
	macs := strings.Join(common, ", ")
	// Whoever carries a USB adapter from one machine to the next brings its MAC along.
	portable := !slices.ContainsFunc(common, func(mac string) bool { return !slices.Contains(known.usb, mac) && !slices.Contains(e.usb, mac) })
	uuidAgrees, serialAgrees := share(known.uuids, e.uuids), share(known.serials, e.serials)
	uuidDiffers, serialDiffers := differ(known.uuids, e.uuids), differ(known.serials, e.serials)
	switch {
	case uuidAgrees && serialAgrees:
		return same, ""
	case bootedElsewhere(known, e):
		return different, fmt.Sprintf("%s has the MAC %s too, but booted from another NIC", name, macs)
	case portable && (uuidDiffers || serialDiffers):
		return different, fmt.Sprintf("%s has the USB interface %s too, but %s", name, macs, differences(known, e))
	case uuidDiffers && serialDiffers:
	case uuidAgrees || serialAgrees:
		return same, ""
	case uuidDiffers || serialDiffers:
		if known.complete && e.complete && len(common) > 1 && contains(known.macs, e.macs) && contains(e.macs, known.macs) {
			return same, "" // it has all its NICs: the mainboard's setup was reset
		}
	case !known.complete || !e.complete || contains(known.macs, e.macs) || contains(e.macs, known.macs):
		return same, ""
	case portable:
		return different, fmt.Sprintf("%s has the USB interface %s too, but other NICs", name, macs)
	default:
		return doubtful, fmt.Sprintf("it has the MAC %[1]s of machine %[2]s, but each of them has NICs that the other has not, and no UUID or serial tells whether they are one machine. "+
			"If this is %[2]s with another NIC, add its MAC (%[3]s) to spec.identifiers.macs of %[2]s. If this is another machine, two NICs have one MAC: give this one a MAC of its own, or boot from another NIC",
			macs, name, strings.Join(without(e.macs, known.macs), ", "))
	}
	return doubtful, fmt.Sprintf("it has the MAC %[1]s of machine %[2]s, but %[3]s. If this is %[2]s with another mainboard, set uuid and serial in spec.identifiers of %[2]s to the new ones. "+
		"If the NIC was moved here from %[2]s, delete %[2]s, or boot from another NIC. If both machines are complete, two NICs have one MAC: give this one a MAC of its own, or boot from another NIC",
		macs, name, differences(known, e))
}

// bootedElsewhere says whether e booted from a NIC that the known machine has not, and the known one from a NIC that e has not.
// Then a MAC that both have is not the one NIC of one machine: a BMC's USB interface, or a controller whose maker wrote no
// address.
func bootedElsewhere(known, e entry) bool {
	switch {
	case !e.complete || len(e.boots) == 0 || share(e.boots, known.macs):
		return false
	case len(known.boots) > 0:
		return !share(known.boots, e.macs)
	}
	return known.complete && !contains(e.macs, known.macs)
}

// differences says in what the two differ, of UUID and serial.
func differences(known, e entry) string {
	var list []string
	if differ(known.uuids, e.uuids) {
		list = append(list, fmt.Sprintf("another UUID (%s, not %s)", e.uuids[0], known.uuids[0]))
	}
	if differ(known.serials, e.serials) {
		list = append(list, fmt.Sprintf("another serial (%s, not %s)", e.serials[0], known.serials[0]))
	}
	return strings.Join(list, " and ")
}

func (x *Index) matchWithoutMAC(e entry, others map[string]string) Match {
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
			if text := cmp.Or(others[name], x.contradiction(name, e)); text != "" {
				why = append(why, text)
			} else {
				fits = append(fits, name)
			}
		}
		switch fits = x.strongest(fits); {
		case len(fits) == 1:
			return Match{Machine: fits[0], Reason: fmt.Sprintf("recognised by its %s %s", by.what, by.value[0])}
		case len(fits) > 1:
			return conflict(fits, fmt.Sprintf("several machines have the %s %s: %s", by.what, by.value[0], strings.Join(fits, ", ")))
		case len(why) > 0 && by.what == "UUID":
			return Match{Reason: fmt.Sprintf("a new machine, although it shares its UUID %s: %s", by.value[0], strings.Join(why, "; "))}
		}
	}
	if len(others) > 0 {
		return Match{Reason: "a new machine, although it shares a MAC: " + strings.Join(slices.Sorted(maps.Values(others)), "; ")}
	}
	return Match{Reason: "no machine is known by its MAC, UUID or serial number"}
}

// contradiction says why the machine of that name cannot be the one that e describes although they share
// a UUID or a serial, or returns "". They have no MAC in common, or none that counts.
func (x *Index) contradiction(name string, e entry) string {
	known := x.entries[name]
	switch {
	case differ(known.serials, e.serials):
		return fmt.Sprintf("%s has serial %s, this one %s", name, known.serials[0], e.serials[0])
	case differ(known.uuids, e.uuids):
		return fmt.Sprintf("%s has UUID %s, this one %s", name, known.uuids[0], e.uuids[0])
	case len(e.macs) == 0 || len(known.macs) == 0:
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

func intersect(a, b []string) []string {
	var both []string
	for _, s := range a {
		if slices.Contains(b, s) {
			both = append(both, s)
		}
	}
	return both
}

// without is what is in a and not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

// contains says whether all of b is in a.
func contains(a, b []string) bool { return len(without(b, a)) == 0 }

func differ(a, b []string) bool { return len(a) > 0 && len(b) > 0 && !share(a, b) }

func appendValid(list []string, value string) []string {
	if value == "" || slices.Contains(list, value) {
		return list
	}
	return append(list, value)
}

// NameFor is the name of a machine that nobody has named: after its first MAC, else after its UUID. A USB adapter names a
// machine only that has nothing else. Empty when it has nothing that tells it from others.
func NameFor(q Query) string {
	macs := ownMACs(q.MACs, q.USB, q.Boot)
	fixed := slices.DeleteFunc(slices.Clone(macs), func(mac string) bool {
		return slices.ContainsFunc(q.USB, func(u string) bool { return MAC(u) == mac })
	})
	switch {
	case len(fixed) > 0:
		return "m-" + strings.ReplaceAll(fixed[0], ":", "")
	case normalUUID(q.UUID) != "":
		return "m-" + strings.ToLower(strings.TrimSpace(q.UUID))
	case len(macs) > 0:
		return "m-" + strings.ReplaceAll(macs[0], ":", "")
	}
	return ""
}

// Useless says of each identifier why it tells the machine from no other.
func Useless(q Query) string {
	var why []string
	for _, raw := range q.MACs {
		switch mac := MAC(raw); {
		case mac == "":
			why = appendValid(why, fmt.Sprintf("MAC %s is no NIC's address", termtext.Line(raw, 64)))
		case DuplicateMAC(mac) != "":
			why = appendValid(why, fmt.Sprintf("MAC %s is the same on %s", mac, DuplicateMAC(mac)))
		case len(ownMACs([]string{mac}, q.USB, q.Boot)) == 0:
			why = appendValid(why, fmt.Sprintf("MAC %s is a USB interface's", mac))
		}
	}
	if len(q.MACs) == 0 {
		why = append(why, "it reports no MAC")
	}
	if q.UUID == "" {
		return strings.Join(append(why, "it reports no UUID"), "; ")
	}
	return strings.Join(append(why, fmt.Sprintf("the UUID %s is on many machines, or is none", termtext.Line(q.UUID, 64))), "; ")
}

// Unclaimed are those of q's identifiers, in the form in which a Machine's spec has them, that no known machine has: what a new
// machine is recorded with. The store refuses a Machine with identifiers of another one.
func (x *Index) Unclaimed(q Query) v1alpha1.Identifiers {
	ids := q.Identifiers
	ids.MACs = nil
	for _, mac := range ownMACs(q.MACs, q.USB, q.Boot) {
		if len(x.macs[mac]) == 0 && len(x.bmcs[mac]) == 0 {
			ids.MACs = append(ids.MACs, mac)
		}
	}
	if mac := ownMAC(ids.BMCMAC); len(x.bmcs[mac]) > 0 || len(x.macs[mac]) > 0 || slices.Contains(ids.MACs, mac) {
		ids.BMCMAC = ""
	}
	if len(x.uuids[normalUUID(ids.UUID)]) > 0 {
		ids.UUID = ""
	}
	if len(x.serials[normalSerial(ids.Serial)]) > 0 {
		ids.Serial = ""
	}
	return Normal(ids)
}

// Normal returns the identifiers in the form in which a Machine's spec has them: lower case, without
// those that are no identifiers at all.
func Normal(ids v1alpha1.Identifiers) v1alpha1.Identifiers {
	n := v1alpha1.Identifiers{MACs: ownMACs(ids.MACs, nil, ""), BMCMAC: ownMAC(ids.BMCMAC)}
	if normalUUID(ids.UUID) != "" {
		n.UUID = strings.ToLower(strings.TrimSpace(ids.UUID))
	}
	if normalSerial(ids.Serial) != "" {
		n.Serial = termtext.Line(ids.Serial, 64)
	}
	return n
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
	serial = strings.Join(strings.Fields(strings.ToUpper(termtext.Line(serial, 64))), " ")
	if serial == "" || allEqual(serial, "-. ") || slices.Contains(emptySerials, serial) || strings.Contains(serial, "O.E.M") {
		return ""
	}
	return serial
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
