package identify

import (
	"slices"
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	macA, macA2, macB, macNew = "52:54:00:00:00:0a", "52:54:00:00:0a:02", "52:54:00:00:00:0b", "52:54:00:00:00:99"
	uuidA                     = "a0a0a0a0-1111-4111-8111-0123456789ab"
	uuidB                     = "b0b0b0b0-2222-4222-8222-0123456789ab"
	amiUUID                   = "03000200-0400-0500-0006-000700080009"
)

// expected is a machine from a rack sheet, or one that a boot script made.
func expected(name string, ids v1alpha1.Identifiers) *v1alpha1.Machine {
	return &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MachineSpec{Identifiers: ids}}
}

// reported is a machine that has reported its inventory.
func reported(name, uuid, serial string, macs ...string) *v1alpha1.Machine {
	m := expected(name, v1alpha1.Identifiers{})
	m.Status.Inventory = &v1alpha1.Inventory{System: v1alpha1.SystemInfo{UUID: uuid, Serial: serial}}
	for _, mac := range macs {
		m.Status.Inventory.NICs = append(m.Status.Inventory.NICs, v1alpha1.NIC{MAC: mac})
	}
	return m
}

func TestMatch(t *testing.T) {
	boot := func(mac, uuid, serial string) Query {
		return Query{Identifiers: v1alpha1.Identifiers{MACs: []string{mac}, UUID: uuid, Serial: serial}}
	}
	agent := func(uuid, serial string, macs ...string) Query {
		return Query{Identifiers: v1alpha1.Identifiers{MACs: macs, UUID: uuid, Serial: serial}, Complete: true}
	}
	a := reported("a", uuidA, "SN-A", macA, macA2)
	b := reported("b", uuidB, "SN-B", macB)
	tests := []struct {
		name     string
		machines []*v1alpha1.Machine
		query    Query
		want     string // machine, "" for a new one, "conflict"
		reason   string
	}{
		{"nothing is known", nil, boot(macA, uuidA, "SN-A"), "", "no machine is known"},
		{"the NIC that it reported with", []*v1alpha1.Machine{a, b}, boot(macA, uuidA, "SN-A"), "a", "MAC"},
		{"another NIC of a known machine is the same machine", []*v1alpha1.Machine{a, b}, boot(macA2, "", ""), "a", "MAC"},
		{"a MAC in upper case with dashes", []*v1alpha1.Machine{a}, boot("52-54-00-00-00-0A", "", ""), "a", "MAC"},
		{"a NIC that was added since, recognised by UUID and serial together", []*v1alpha1.Machine{a, b}, boot(macNew, uuidA, "SN-A"), "a", "UUID"},
		{"a UUID alone does not outweigh a MAC that the machine never had", []*v1alpha1.Machine{a}, boot(macNew, uuidA, ""), "", "none of them"},
		{"a UUID that two machines share does not merge them: serials differ", []*v1alpha1.Machine{a}, boot(macNew, uuidA, "SN-X"), "", "serial"},
		{"a UUID and serial that two machines share do not merge them: their NICs are known and differ", []*v1alpha1.Machine{a}, agent(uuidA, "SN-A", macNew), "", "has a NIC"},
		{"a new NIC card beside a known one", []*v1alpha1.Machine{a}, agent(uuidA, "SN-A", macNew, macA), "a", "MAC"},
		{"a machine known by one NIC only boots from its other", []*v1alpha1.Machine{expected("a", v1alpha1.Identifiers{MACs: []string{macA}, UUID: uuidA})}, boot(macA2, uuidA, ""), "a", "UUID"},
		{"a machine known by one NIC only turns out not to have it", []*v1alpha1.Machine{expected("a", v1alpha1.Identifiers{MACs: []string{macA}, UUID: uuidA})}, agent(uuidA, "", macB), "", "has a NIC"},
		{"firmware that swaps the bytes of the UUID", []*v1alpha1.Machine{expected("a", v1alpha1.Identifiers{UUID: "00112233-4455-6677-8899-aabbccddeeff"})}, boot(macA, "33221100-5544-7766-8899-aabbccddeeff", ""), "a", "UUID"},
		{"a vendor's default UUID says nothing", []*v1alpha1.Machine{expected("a", v1alpha1.Identifiers{UUID: amiUUID})}, boot(macA, amiUUID, ""), "", "no machine is known"},
		{"a UUID of zeros says nothing", []*v1alpha1.Machine{expected("a", v1alpha1.Identifiers{UUID: "00000000-0000-0000-0000-000000000000"})}, boot(macA, "00000000-0000-0000-0000-000000000000", ""), "", "no machine is known"},
		{"a UUID of ones says nothing", []*v1alpha1.Machine{expected("a", v1alpha1.Identifiers{UUID: "ffffffff-ffff-ffff-ffff-ffffffffffff"})}, boot(macA, "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", ""), "", "no machine is known"},
		{"a default serial says nothing", []*v1alpha1.Machine{expected("a", v1alpha1.Identifiers{Serial: "Default string"})}, boot(macA, "", "default string"), "", "no machine is known"},
		{"a serial to be filled in says nothing", []*v1alpha1.Machine{expected("a", v1alpha1.Identifiers{Serial: "To Be Filled By O.E.M."})}, boot(macA, "", "To Be Filled By O.E.M."), "", "no machine is known"},
		{"a rack sheet that lists serials", []*v1alpha1.Machine{expected("a", v1alpha1.Identifiers{Serial: "SN-A"}), expected("b", v1alpha1.Identifiers{Serial: "SN-B"})}, boot(macA, uuidA, "sn-a"), "a", "serial"},
		{"nodes of one chassis share its serial, their UUIDs tell them apart", []*v1alpha1.Machine{reported("a", uuidA, "CHASSIS", macA)}, agent(uuidB, "CHASSIS", macB), "", ""},
		{"two entries of a rack sheet with one serial", []*v1alpha1.Machine{expected("a", v1alpha1.Identifiers{Serial: "SN-A"}), expected("b", v1alpha1.Identifiers{Serial: "SN-A"})}, boot(macA, uuidA, "SN-A"), "conflict", "several"},
		{"a MAC beats a UUID that nobody else has: the mainboard's setup was reset", []*v1alpha1.Machine{a}, boot(macA, uuidB, "SN-A"), "a", "MAC"},
		{"a MAC of one machine and the UUID of another, and nothing else", []*v1alpha1.Machine{a, b}, boot(macA, uuidB, ""), "conflict", "another UUID"},
		{"a MAC of one machine, UUID and serial of another: the NIC was moved", []*v1alpha1.Machine{a, b}, boot(macA, uuidB, "SN-B"), "conflict", "NIC"},
		{"a MAC of one machine, the UUID of another that is known by nothing else", []*v1alpha1.Machine{a, expected("b", v1alpha1.Identifiers{UUID: uuidB})}, boot(macA, uuidB, ""), "conflict", "machine b"},
		{"a NIC that was moved into a machine that nobody knows", []*v1alpha1.Machine{a}, boot(macA, uuidB, "SN-B"), "conflict", "moved"},
		{"NICs of two machines in one", []*v1alpha1.Machine{a, b}, agent(uuidA, "SN-A", macA, macB), "conflict", "several machines"},
		{"a machine whose UUID another one shares keeps its MAC's name", []*v1alpha1.Machine{expected("a", v1alpha1.Identifiers{MACs: []string{macA}}), reported("b", uuidB, "SN-B", macB)}, agent(uuidB, "SN-A", macA), "a", "MAC"},
		{"the BMC's MAC of a rack sheet", []*v1alpha1.Machine{expected("a", v1alpha1.Identifiers{BMCMAC: macB})}, Query{Identifiers: v1alpha1.Identifiers{MACs: []string{macA}, BMCMAC: macB}, Complete: true}, "a", "MAC"},
		{"a broadcast MAC is nobody's", []*v1alpha1.Machine{expected("a", v1alpha1.Identifiers{MACs: []string{"ff:ff:ff:ff:ff:ff"}})}, boot("ff:ff:ff:ff:ff:ff", "", ""), "", "no machine is known"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			x := NewIndex()
			for _, m := range test.machines {
				x.Put(m)
			}
			got := x.Match(test.query)
			name := got.Machine
			if got.Conflict {
				name = "conflict"
			}
			if name != test.want || !strings.Contains(got.Reason, test.reason) {
				t.Errorf("got %q (%s), want %q for a reason with %q", name, got.Reason, test.want, test.reason)
			}
			if got.Conflict && len(got.Involved) == 0 {
				t.Error("a conflict that involves nobody")
			}
		})
	}
}

// What an unapproved machine says of itself takes nothing away from others.
func TestAStrangersClaims(t *testing.T) {
	const macOwn, uuidOwn = "52:54:00:00:00:66", "c0c0c0c0-3333-4333-8333-0123456789ab"
	node := reported("node", uuidA, "SN-A", macA, macA2)
	node.Status.Installed = &v1alpha1.InstalledStatus{}
	approved := reported("approved", uuidB, "SN-B", macB)
	approved.Spec.Approved = true
	sheet := expected("sheet", v1alpha1.Identifiers{MACs: []string{macNew}})
	known := []*v1alpha1.Machine{node, approved, sheet}
	stranger := func(uuid, serial string, macs ...string) *v1alpha1.Machine {
		m := reported("stranger", uuid, serial, macs...)
		m.Annotations = map[string]string{v1alpha1.AnnotationDiscoveredBy: DiscoveredByEnrolment}
		return m
	}
	all := stranger(uuidOwn, "SN-X", macOwn, macA, macA2, macB, macNew)
	boot := func(mac, uuid, serial string) Query {
		return Query{Identifiers: v1alpha1.Identifiers{MACs: []string{mac}, UUID: uuid, Serial: serial}}
	}
	tests := []struct {
		name     string
		stranger *v1alpha1.Machine
		query    Query
		want     string // machine, or those that a conflict involves
	}{
		{"an installed machine's boot", all, boot(macA, uuidA, "SN-A"), "node"},
		{"its DHCP, which tells the MAC only", all, boot(macA, "", ""), "node"},
		{"an approved machine's boot", all, boot(macB, uuidB, "SN-B"), "approved"},
		{"the first boot of a machine of the rack sheet", all, boot(macNew, "d0d0d0d0-4444-4444-8444-0123456789ab", "SN-N"), "sheet"},
		{"all identifiers of the node, and one of its own", stranger(uuidA, "SN-A", macOwn, macA, macA2), boot(macA, uuidA, "SN-A"), "node"},
		{"the UUID that a machine of the rack sheet turns out to have", stranger(uuidOwn, "SN-X", macOwn), boot(macNew, uuidOwn, "SN-X"), "sheet"},
		{"the node boots by a new NIC, and the stranger has its UUID and serial", stranger(uuidA, "SN-A", macOwn), boot("52:54:00:00:00:77", uuidA, "SN-A"), "node"},
		{"the stranger itself by a MAC of its own", all, boot(macOwn, uuidOwn, "SN-X"), "stranger"},
		{"the stranger itself by the node's MAC", all, boot(macA, uuidOwn, "SN-X"), "node stranger"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			x := NewIndex()
			for _, m := range append(known, test.stranger) {
				x.Put(m)
			}
			got := x.Match(test.query)
			if name := got.Machine + strings.Join(got.Involved, " "); name != test.want {
				t.Errorf("got %q (%s), want %q", name, got.Reason, test.want)
			}
		})
	}
}

// Two servers that have an identifier in common which tells nobody apart. The second must be a machine of its own, or be
// refused with the right advice; it must never be taken for the first.
func TestASecondMachineIsNotTakenForTheFirst(t *testing.T) {
	const usb, bad = "02:be:ef:00:00:01", "00:a0:c9:00:00:00"
	agent := func(uuid, serial string, usb []string, macs ...string) Query {
		return Query{Identifiers: v1alpha1.Identifiers{MACs: macs, UUID: uuid, Serial: serial}, Complete: true, Boot: macs[0], USB: usb}
	}
	tests := []struct {
		name          string
		first, second Query
		want          string // "own", or what the refusal says
	}{
		{"a BMC's USB interface, no UUID and no serial", agent("", "", []string{usb}, macA, usb), agent("", "", []string{usb}, macB, usb), "own"},
		{"a BMC's USB interface, UUIDs and serials differ", agent(uuidA, "SN-A", []string{usb}, macA, usb), agent(uuidB, "SN-B", []string{usb}, macB, usb), "own"},
		{"an agent that does not tell what is attached by USB", agent("", "", nil, macA, usb), agent("", "", nil, macB, usb), "own"},
		{"the same with UUIDs and serials that differ", agent(uuidA, "SN-A", nil, macA, usb), agent(uuidB, "SN-B", nil, macB, usb), "own"},
		{"the same with a serial of the chassis", agent(uuidA, "CH", nil, macA, usb), agent(uuidB, "CH", nil, macB, usb), "own"},
		{"the same with one UUID on all boards", agent(uuidA, "", nil, macA, usb), agent(uuidA, "", nil, macB, usb), "own"},
		{"a placeholder beside the NIC that booted", agent("", "", nil, macA, bad), agent("", "", nil, macB, bad), "own"},
		{"a placeholder on the NIC that booted, UUIDs differ", agent(uuidA, "", nil, bad), agent(uuidB, "", nil, bad), "own"},
		{"a placeholder on the NIC that booted, other NICs differ", agent("", "", nil, bad, macA), agent("", "", nil, bad, macB), "own"},
		{"a MAC of many machines that nobody knows of yet, UUIDs differ", agent(uuidA, "", nil, usb), agent(uuidB, "", nil, usb), "another UUID"},
		{"such a MAC, serials differ", agent("", "SN-A", nil, usb), agent("", "SN-B", nil, usb), "another serial"},
		{"such a MAC, other NICs differ", agent("", "", nil, usb, macA), agent("", "", nil, usb, macB), "NICs that the other has not"},
		{"a USB adapter that is carried along, UUIDs differ", agent(uuidA, "", []string{usb}, usb), agent(uuidB, "", []string{usb}, usb), "own"},
		{"a USB adapter that is carried along, other NICs differ", agent("", "", []string{usb}, usb, macA), agent("", "", []string{usb}, usb, macB), "own"},
		{"a BMC's MAC that all have", withBMC(agent("", "", nil, macA), usb), withBMC(agent("", "", nil, macB), usb), "own"},
	}
	for _, test := range tests {
		for how, first := range map[string]*v1alpha1.Machine{"enrolled": recorded(test.first), "reported": reportedBy(test.first)} {
			t.Run(test.name+"/"+how, func(t *testing.T) {
				x := NewIndex()
				x.Put(first)
				got := x.Match(test.second)
				if got.Machine != "" {
					t.Fatalf("taken for the first: %s", got.Reason)
				}
				if test.want != "own" {
					if !got.Conflict || !strings.Contains(got.Reason, test.want) {
						t.Errorf("got %+v, want a refusal with %q", got, test.want)
					}
					return
				}
				if got.Conflict {
					t.Fatalf("refused: %s", got.Reason)
				}
				if name := NameFor(test.second); name == "" || name == first.Name {
					t.Errorf("the second would be named %q, the first is %q", name, first.Name)
				}
				second := recorded(test.second)
				second.Spec.Identifiers = x.Unclaimed(test.second)
				x.Put(second)
				for _, q := range []Query{test.first, test.second} {
					if again := x.Match(q); again.Machine != NameFor(q) {
						t.Errorf("%s comes back and is %q: %s", NameFor(q), again.Machine, again.Reason)
					}
				}
			})
		}
	}
}

// What is normal must stay recognised.
func TestAMachineStaysItself(t *testing.T) {
	agent := func(uuid, serial string, macs ...string) Query {
		return Query{Identifiers: v1alpha1.Identifiers{MACs: macs, UUID: uuid, Serial: serial}, Complete: true, Boot: macs[0]}
	}
	for name, test := range map[string]struct{ first, again Query }{
		"it boots from its other NIC":                  {agent("", "", macA, macA2), agent("", "", macA2, macA)},
		"a NIC was added, and it boots from that":      {agent("", "", macA), agent("", "", macNew, macA)},
		"the NIC that it booted from was replaced":     {agent(uuidA, "SN-A", macA, macA2), agent(uuidA, "SN-A", macNew, macA2)},
		"its other NIC was replaced":                   {agent(uuidA, "", macA, macA2), agent(uuidA, "", macA, macNew)},
		"its setup was reset, with all its NICs there": {agent(uuidA, "", macA, macA2), agent(uuidB, "", macA, macA2)},
		"its setup was reset, and its serial stayed":   {agent(uuidA, "SN-A", macA), agent(uuidB, "SN-A", macA)},
		"it has no UUID and no serial":                 {agent("", "", macA), agent("", "", macA)},
		"it reported no UUID at first":                 {agent("", "", macA), agent(uuidA, "SN-A", macA)},
	} {
		t.Run(name, func(t *testing.T) {
			x := NewIndex()
			x.Put(reportedBy(test.first))
			if got := x.Match(test.again); got.Machine != NameFor(test.first) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func withBMC(q Query, mac string) Query {
	q.BMCMAC = mac
	return q
}

// recorded is the Machine that an enrolment makes.
func recorded(q Query) *v1alpha1.Machine {
	m := expected(NameFor(q), NewIndex().Unclaimed(q))
	m.Annotations = map[string]string{v1alpha1.AnnotationDiscoveredBy: DiscoveredByEnrolment}
	return m
}

// reportedBy is a Machine that was recorded at its boot and then reported what it is.
func reportedBy(q Query) *v1alpha1.Machine {
	m := expected(NameFor(q), Normal(v1alpha1.Identifiers{MACs: q.MACs[:1], UUID: q.UUID}))
	m.Annotations = map[string]string{v1alpha1.AnnotationDiscoveredBy: DiscoveredByBoot}
	m.Status.Inventory = &v1alpha1.Inventory{System: v1alpha1.SystemInfo{UUID: q.UUID, Serial: q.Serial}}
	if q.BMCMAC != "" {
		m.Status.Inventory.BMC = &v1alpha1.BMCInfo{MAC: q.BMCMAC}
	}
	for _, mac := range q.MACs {
		nic := v1alpha1.NIC{MAC: mac, Boot: mac == q.Boot}
		if slices.Contains(q.USB, mac) {
			nic.Bus = v1alpha1.NICBusUSB
		}
		m.Status.Inventory.NICs = append(m.Status.Inventory.NICs, nic)
	}
	return m
}

// The store refuses a Machine with identifiers of another one, so a new one is recorded without them.
func TestUnclaimed(t *testing.T) {
	x := NewIndex()
	x.Put(reported("a", uuidA, "CHASSIS", macA))
	got := x.Unclaimed(Query{Identifiers: v1alpha1.Identifiers{MACs: []string{macB, macA, "00:a0:c9:00:00:00"}, UUID: uuidA, Serial: "chassis"}, Complete: true, Boot: macB})
	if len(got.MACs) != 1 || got.MACs[0] != macB || got.UUID != "" || got.Serial != "" {
		t.Errorf("got %+v, want nothing but the MAC %s", got, macB)
	}
}

func TestIndexForgets(t *testing.T) {
	x := NewIndex()
	x.Put(reported("a", uuidA, "SN-A", macA, macA2))
	x.Put(reported("a", uuidA, "SN-A", macA))
	if got := x.Match(Query{Identifiers: v1alpha1.Identifiers{MACs: []string{macA2}}}); got.Machine != "" {
		t.Errorf("a MAC that the machine no longer has still finds %s", got.Machine)
	}
	x.Remove("a")
	x.Remove("a")
	if len(x.macs)+len(x.uuids)+len(x.serials)+len(x.bmcs)+len(x.entries) != 0 {
		t.Errorf("something is left of a removed machine: %+v", x)
	}
}

func TestTwins(t *testing.T) {
	x := NewIndex()
	x.Put(reported("a", uuidA, "SN-A", macA))
	x.Put(reported("b", uuidA, "SN-B", macB))
	x.Put(reported("c", uuidB, "SN-A", macNew))
	if got := x.Twins("a"); len(got) != 1 || got[0].Name != "b" || !strings.Contains(got[0].What, "UUID") {
		t.Errorf("twins of a: %v, want b by its UUID and not c, whose chassis serial is the same", got)
	}
}

func TestNameFor(t *testing.T) {
	for want, ids := range map[string]v1alpha1.Identifiers{
		"m-52540000000a": {MACs: []string{"00:00:00:00:00:00", "52:54:00:00:00:0A"}, UUID: uuidA},
		"m-" + uuidA:     {UUID: strings.ToUpper(uuidA)},
		"":               {Serial: "SN-A"},
	} {
		if got := NameFor(Query{Identifiers: ids}); got != want {
			t.Errorf("%+v: got %q, want %q", ids, got, want)
		}
	}
}

func FuzzMatch(f *testing.F) {
	f.Add(macA, uuidA, "SN-A")
	f.Add("ff-ff", "0", "\x00\xff")
	x := NewIndex()
	x.Put(reported("a", uuidA, "SN-A", macA, macA2))
	x.Put(reported("b", uuidA, "SN-B", macB))
	f.Fuzz(func(t *testing.T, mac, uuid, serial string) {
		ids := v1alpha1.Identifiers{MACs: []string{mac}, UUID: uuid, Serial: serial}
		got := x.Match(Query{Identifiers: ids})
		if again := x.Match(Query{Identifiers: Normal(ids)}); again.Machine != got.Machine || again.Conflict != got.Conflict {
			t.Errorf("raw identifiers give %+v, normal ones %+v", got, again)
		}
		if got.Conflict == (got.Machine != "") && got.Conflict {
			t.Errorf("both a conflict and a machine: %+v", got)
		}
	})
}

// Two Machines that a sheet wrote down and of which one report has a part each: nobody guesses which line is wrong.
func TestLinesOfASheetThatAreMixedUp(t *testing.T) {
	for _, test := range []struct {
		name string
		a, b v1alpha1.Identifiers
		says Query
		want []string
	}{
		{"a MAC of one and the serial of another", v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:01"}}, v1alpha1.Identifiers{Serial: "S2"},
			Query{Identifiers: v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:01"}, Serial: "S2"}, Complete: true}, []string{"a", "b"}},
		{"the BMC of one and the serial of another", v1alpha1.Identifiers{BMCMAC: "52:54:00:00:00:b1"}, v1alpha1.Identifiers{Serial: "S2"},
			Query{Identifiers: v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:09"}, BMCMAC: "52:54:00:00:00:b1", Serial: "S2"}, Complete: true}, []string{"a", "b"}},
		{"all of one", v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:01"}, Serial: "S1"}, v1alpha1.Identifiers{Serial: "S2"},
			Query{Identifiers: v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:01"}, Serial: "S1"}, Complete: true}, nil},
		{"nodes of one chassis, which share a serial", v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:01"}}, v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:02"}, Serial: "CHASSIS7"},
			Query{Identifiers: v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:01"}, Serial: "CHASSIS7"}, Complete: true}, nil},
	} {
		x := NewIndex()
		for name, ids := range map[string]v1alpha1.Identifiers{"a": test.a, "b": test.b} {
			m := &v1alpha1.Machine{}
			m.Name, m.Spec.Identifiers = name, ids
			x.Put(m)
		}
		got := x.Match(test.says)
		if got.Conflict != (test.want != nil) || !slices.Equal(got.Involved, test.want) || !got.Conflict && got.Machine != "a" {
			t.Errorf("%s: %+v", test.name, got)
		}
	}
}
