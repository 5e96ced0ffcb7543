package enroll

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

func rack(changes ...func(*v1alpha1.SubnetSpec)) v1alpha1.Subnet {
	s := v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "rack"}, Spec: v1alpha1.SubnetSpec{
		CIDR: "10.0.0.0/24", Gateway: "10.0.0.1", DHCP: v1alpha1.DHCPServer, Discovery: "10.0.0.100-10.0.0.200", Static: "10.0.0.10-10.0.0.12",
	}}
	for _, change := range changes {
		change(&s.Spec)
	}
	return s
}

func policy(name string, changes ...func(*v1alpha1.EnrollmentPolicySpec)) v1alpha1.EnrollmentPolicy {
	p := v1alpha1.EnrollmentPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.EnrollmentPolicySpec{
		Approve: true, Hostname: "node-{index:03}", Profile: "default", Subnet: "rack", Labels: map[string]string{"rack": "r1"},
	}}
	for _, change := range changes {
		change(&p.Spec)
	}
	return p
}

const (
	install, reinstall, release = v1alpha1.ActionInstall, v1alpha1.ActionReinstall, v1alpha1.ActionRelease
	succeeded, failed           = v1alpha1.IntentSucceeded, v1alpha1.IntentFailed
)

// waiting is a machine that has reported its inventory.
func waiting(name string, changes ...func(*v1alpha1.Machine)) *v1alpha1.Machine {
	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}}
	m.Status.Inventory = &v1alpha1.Inventory{NICs: []v1alpha1.NIC{{Name: "eth0", MAC: "52:54:00:00:00:0a", Boot: true}},
		System: v1alpha1.SystemInfo{Vendor: "QEMU", Product: "PC", Serial: "SN-A", UUID: "a0a0a0a0-1111-4111-8111-0123456789ab"}}
	for _, change := range changes {
		change(m)
	}
	return m
}

func approved(m *v1alpha1.Machine) { m.Spec.Approved = true }

func wants(id string, action v1alpha1.IntentAction) func(*v1alpha1.Machine) {
	return func(m *v1alpha1.Machine) { m.Spec.Intent = &v1alpha1.Intent{ID: id, Action: action} }
}

func ended(id string, action v1alpha1.IntentAction, state v1alpha1.IntentState) func(*v1alpha1.Machine) {
	return func(m *v1alpha1.Machine) {
		m.Status.Intent = &v1alpha1.IntentStatus{ID: id, Action: action, State: state}
	}
}

// enrolled is a machine that the policy took.
func enrolled(name, by, host, address string) *v1alpha1.Machine {
	m := waiting(name, approved)
	m.Annotations = map[string]string{v1alpha1.AnnotationEnrolledBy: by}
	m.Spec.Hostname, m.Spec.Network = host, &v1alpha1.MachineNetwork{Subnet: "rack", Address: address}
	return m
}

func TestEnroll(t *testing.T) {
	type want struct {
		host, address, held string
		approved, intent    bool
		by                  string
	}
	nothing := want{}
	standard := []v1alpha1.EnrollmentPolicy{policy("all")}
	first := want{host: "node-001", address: "10.0.0.10", approved: true, intent: true, by: "policy/all"}
	tests := []struct {
		name     string
		m        *v1alpha1.Machine
		others   []*v1alpha1.Machine
		policies []v1alpha1.EnrollmentPolicy
		subnets  []v1alpha1.Subnet
		want     want
	}{
		{"no policy leaves a machine waiting", waiting("a"), nil, nil, []v1alpha1.Subnet{rack()}, nothing},
		{"a policy approves, names and addresses it", waiting("a"), nil, standard, []v1alpha1.Subnet{rack()}, first},
		{"the next one gets the next name and address", waiting("b"), []*v1alpha1.Machine{enrolled("a", "all", "node-001", "10.0.0.10")}, standard, []v1alpha1.Subnet{rack()},
			want{host: "node-002", address: "10.0.0.11", approved: true, intent: true, by: "policy/all"}},
		{"a gap is filled first", waiting("c"), []*v1alpha1.Machine{enrolled("b", "all", "node-002", "10.0.0.11")}, standard, []v1alpha1.Subnet{rack()}, first},
		{"the gateway, the name servers and our own address are nobody's", waiting("a"), nil, standard,
			[]v1alpha1.Subnet{rack(func(s *v1alpha1.SubnetSpec) { s.Static, s.DNS = "10.0.0.1-10.0.0.9", []string{"10.0.0.3"} })},
			want{host: "node-001", address: "10.0.0.4", approved: true, intent: true, by: "policy/all"}},
		{"an address that a machine boots with is left alone", waiting("b"), []*v1alpha1.Machine{waiting("a", func(m *v1alpha1.Machine) { m.Status.Lease = &v1alpha1.LeaseStatus{Address: "10.0.0.10"} })}, standard, []v1alpha1.Subnet{rack()},
			want{host: "node-001", address: "10.0.0.11", approved: true, intent: true, by: "policy/all"}},
		{"no address is left", waiting("d"), []*v1alpha1.Machine{enrolled("a", "x", "h1", "10.0.0.10"), enrolled("b", "x", "h2", "10.0.0.11"), enrolled("c", "x", "h3", "10.0.0.12")}, standard, []v1alpha1.Subnet{rack()},
			want{held: "no free address in spec.static (10.0.0.10-10.0.0.12) of subnet rack"}},
		{"a subnet that does not exist", waiting("a"), nil, standard, nil, want{held: "subnet rack does not exist"}},
		{"a name that is taken", waiting("b"), []*v1alpha1.Machine{enrolled("a", "all", "node", "10.0.0.10")},
			[]v1alpha1.EnrollmentPolicy{policy("all", func(s *v1alpha1.EnrollmentPolicySpec) { s.Hostname = "node" })}, []v1alpha1.Subnet{rack()}, want{held: "use {index}"}},
		{"a policy that only names", waiting("a"), nil, []v1alpha1.EnrollmentPolicy{policy("all", func(s *v1alpha1.EnrollmentPolicySpec) { s.Approve = false })}, []v1alpha1.Subnet{rack()},
			want{host: "node-001", address: "10.0.0.10"}},
		{"the higher priority wins", waiting("a"), nil, []v1alpha1.EnrollmentPolicy{policy("a-low"), policy("z-high", func(s *v1alpha1.EnrollmentPolicySpec) { s.Priority, s.Hostname = 5, "high-{index}" })}, []v1alpha1.Subnet{rack()},
			want{host: "high-1", address: "10.0.0.10", approved: true, intent: true, by: "policy/z-high"}},
		{"of equals the first name wins", waiting("a"), nil, []v1alpha1.EnrollmentPolicy{policy("b", func(s *v1alpha1.EnrollmentPolicySpec) { s.Hostname = "b" }), policy("a", func(s *v1alpha1.EnrollmentPolicySpec) { s.Hostname = "a" })}, []v1alpha1.Subnet{rack()},
			want{host: "a", address: "10.0.0.10", approved: true, intent: true, by: "policy/a"}},
		{"an exhausted policy leaves machines to the next", waiting("c"), []*v1alpha1.Machine{enrolled("a", "few", "x", "10.0.0.10")},
			[]v1alpha1.EnrollmentPolicy{policy("few", func(s *v1alpha1.EnrollmentPolicySpec) { s.Limit, s.Priority = 1, 9 }), policy("rest", func(s *v1alpha1.EnrollmentPolicySpec) { s.Hostname = "rest" })}, []v1alpha1.Subnet{rack()},
			want{host: "rest", address: "10.0.0.11", approved: true, intent: true, by: "policy/rest"}},
		{"what a person wrote stays", waiting("a", func(m *v1alpha1.Machine) {
			m.Spec.Hostname, m.Spec.Network = "mine", &v1alpha1.MachineNetwork{Address: "10.0.0.77"}
		}), nil, standard, []v1alpha1.Subnet{rack()}, want{host: "mine", address: "10.0.0.77", approved: true, intent: true, by: "policy/all"}},
		{"a released machine is for a person", waiting("a", ended("9", release, succeeded)), nil, standard, []v1alpha1.Subnet{rack()}, nothing},
		{"a machine whose approval was taken back is for a person", func() *v1alpha1.Machine {
			m := enrolled("a", "all", "x", "10.0.0.10")
			m.Spec.Approved = false
			return m
		}(), nil, standard, []v1alpha1.Subnet{rack()}, nothing},
		{"a machine that cannot be told from another is for a person", waiting("a", func(m *v1alpha1.Machine) {
			m.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionIdentityConflict, Status: "True", Reason: "NotRecognised"}}
		}), nil, standard, []v1alpha1.Subnet{rack()}, nothing},

		{"approved by hand, it gets an address of the only plan and is installed", waiting("a", approved), nil, nil, []v1alpha1.Subnet{rack()},
			want{address: "10.0.0.10", approved: true, intent: true, by: "approval"}},
		{"approved by hand where it booted", waiting("a", approved, func(m *v1alpha1.Machine) { m.Status.Address = "10.0.0.150" }), nil, nil,
			[]v1alpha1.Subnet{rack(), {ObjectMeta: metav1.ObjectMeta{Name: "other"}, Spec: v1alpha1.SubnetSpec{CIDR: "10.1.0.0/24", Static: "10.1.0.5-10.1.0.9"}}},
			want{address: "10.0.0.10", approved: true, intent: true, by: "approval"}},
		{"approved by hand, with a lease of a segment", waiting("a", approved, func(m *v1alpha1.Machine) {
			m.Status.Lease = &v1alpha1.LeaseStatus{Address: "10.0.0.150", Subnet: "10.0.0.0/24"}
		}), nil, nil,
			[]v1alpha1.Subnet{{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Spec: v1alpha1.SubnetSpec{CIDR: "10.1.0.0/24", Static: "10.1.0.5-10.1.0.9"}}, rack()},
			want{address: "10.0.0.10", approved: true, intent: true, by: "approval"}},
		{"approved by hand without any plan of addresses", waiting("a", approved), nil, nil, nil, want{held: "set spec.network of machine a", approved: true}},
		{"approved by hand again after a release", waiting("a", approved, ended("9", release, succeeded)), nil, nil, []v1alpha1.Subnet{rack()},
			want{address: "10.0.0.10", approved: true, intent: true, by: "approval"}},
		{"an intent that a person wrote stays the only one", waiting("a", approved, wants("mine", reinstall)), nil, nil, []v1alpha1.Subnet{rack()},
			want{address: "10.0.0.10", approved: true}},
		{"an install that failed is not asked for again", waiting("a", approved, ended("1", install, failed), func(m *v1alpha1.Machine) { m.Spec.Network = &v1alpha1.MachineNetwork{Address: "10.0.0.10"} }), nil, nil, []v1alpha1.Subnet{rack()}, nothing},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := World{Machines: append(test.others, test.m), Policies: test.policies, Subnets: test.subnets,
				Reserved: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, NewID: func() string { return "new" }, Now: time.Unix(1e9, 0)}
			next, held := Decide(test.m, w)
			if !strings.Contains(held, test.want.held) || (held != "") != (test.want.held != "") {
				t.Fatalf("held: %q, want %q", held, test.want.held)
			}
			if next == nil {
				if test.want.host+test.want.address+test.want.by != "" {
					t.Fatalf("nothing was given, want %+v", test.want)
				}
				return
			}
			got := want{host: next.Spec.Hostname, approved: next.Spec.Approved, held: test.want.held}
			if next.Spec.Network != nil {
				got.address = next.Spec.Network.Address
			}
			if intent := next.Spec.Intent; intent != nil && intent.ID == "new" && intent.Action == install {
				got.intent, got.by = true, intent.RequestedBy
			}
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			w.Machines = append(test.others, next)
			if again, _ := Decide(next, w); again != nil {
				t.Errorf("given again: %+v", again.Spec)
			}
		})
	}
}

func TestManyMachinesShareNothing(t *testing.T) {
	const n = 60
	subnet := rack(func(s *v1alpha1.SubnetSpec) { s.Static = "10.0.0.10-10.0.0.80" })
	w := World{Policies: []v1alpha1.EnrollmentPolicy{policy("all", func(s *v1alpha1.EnrollmentPolicySpec) { s.Limit = n })}, Subnets: []v1alpha1.Subnet{subnet}, NewID: func() string { return "x" }}
	for i := range n + 5 {
		w.Machines = append(w.Machines, waiting(fmt.Sprintf("m-%02d", i)))
	}
	names, addresses := map[string]bool{}, map[string]bool{}
	for i, m := range w.Machines {
		next, held := Decide(m, w)
		if i >= n {
			if next != nil || !strings.Contains(held, "the nearest is all: its limit of 60 machines is reached") {
				t.Errorf("machine %d was enrolled although the limit is %d (%s)", i, n, held)
			}
			continue
		}
		if next == nil {
			t.Fatalf("machine %d: %s", i, held)
		}
		w.Machines[i] = next
		names[next.Spec.Hostname], addresses[next.Spec.Network.Address] = true, true
	}
	if len(names) != n || len(addresses) != n {
		t.Errorf("%d names and %d addresses for %d machines", len(names), len(addresses), n)
	}
}

func TestHostname(t *testing.T) {
	m := waiting("a")
	others := []*v1alpha1.Machine{m, enrolled("b", "p", "r1-n1", "")}
	for pattern, want := range map[string]string{
		"node-{index}":                         "node-1",
		"r1-n{index}":                          "r1-n2",
		"n{index:03}-{mac}":                    "n001-52540000000a",
		"n{index:2}":                           "n01",
		"srv-{serial}":                         "srv-sn-a",
		"{uuid}":                               "a0a0a0a0-1111-4111-8111-0123456789ab",
		"Rack 1_{serial}":                      "error: would not give a host name",
		"node-{rack}":                          "error: {rack} is unknown",
		"r1-n1":                                "error: machine b",
		"...":                                  "error: would not give a host name",
		strings.Repeat("x", 70):                "error: would not give a host name",
		"x{serial}-" + strings.Repeat("y", 50): "xsn-a-" + strings.Repeat("y", 50),
	} {
		got, err := hostname(pattern, m, others)
		if wantErr, isErr := strings.CutPrefix(want, "error: "); isErr {
			if err == nil || !strings.Contains(err.Error(), wantErr) {
				t.Errorf("%s: got %q, %v, want an error with %q", pattern, got, err, wantErr)
			}
		} else if err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", pattern, got, err, want)
		}
	}
	m.Status.Inventory.System.Serial = "To be filled by O.E.M."
	if got, err := hostname("{serial}", m, others); err == nil {
		t.Errorf("an empty serial made the name %q", got)
	}
}

func TestMatches(t *testing.T) {
	m := waiting("a")
	m.Labels = map[string]string{"pool": "x"}
	m.Status.Inventory.System.Product = "PC/AT"
	m.Status.Inventory.Memory = resource.MustParse("8Gi")
	m.Status.Inventory.Disks = []v1alpha1.Disk{{}, {}}
	m.Status.Lease = &v1alpha1.LeaseStatus{Address: "10.0.0.150"}
	gib := func(s string) *resource.Quantity { return new(resource.MustParse(s)) }
	tests := []struct {
		name  string
		match v1alpha1.MachineMatch
		want  bool
	}{
		{"nothing asked", v1alpha1.MachineMatch{}, true},
		{"the vendor by pattern", v1alpha1.MachineMatch{Vendor: "QE*"}, true},
		{"the vendor in lower case", v1alpha1.MachineMatch{Vendor: "qemu"}, true},
		{"a product with a slash", v1alpha1.MachineMatch{Product: "PC*"}, true},
		{"another vendor", v1alpha1.MachineMatch{Vendor: "Dell*"}, false},
		{"a broken pattern matches nothing", v1alpha1.MachineMatch{Product: "["}, false},
		{"the product and another serial", v1alpha1.MachineMatch{Product: "PC*", Serial: "X*"}, false},
		{"a MAC prefix, as people write it", v1alpha1.MachineMatch{MACPrefixes: []string{"aa", "52-54-00"}}, true},
		{"another MAC prefix", v1alpha1.MachineMatch{MACPrefixes: []string{"aa"}}, false},
		{"enough memory", v1alpha1.MachineMatch{MinMemory: gib("8Gi")}, true},
		{"too little memory", v1alpha1.MachineMatch{MinMemory: gib("9Gi")}, false},
		{"enough disks", v1alpha1.MachineMatch{MinDisks: 2}, true},
		{"too few disks", v1alpha1.MachineMatch{MinDisks: 3}, false},
		{"the subnet that it booted in", v1alpha1.MachineMatch{Subnet: "rack"}, true},
		{"another subnet", v1alpha1.MachineMatch{Subnet: "other"}, false},
		{"its label", v1alpha1.MachineMatch{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"pool": "x"}}}, true},
		{"another label", v1alpha1.MachineMatch{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"pool": "y"}}}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if missed := mismatches(test.match, m, []v1alpha1.Subnet{rack()}); (len(missed) == 0) != test.want {
				t.Errorf("got %v", missed)
			}
		})
	}
}

func TestTheNearestPolicyIsNamed(t *testing.T) {
	match := func(name string, match v1alpha1.MachineMatch) v1alpha1.EnrollmentPolicy {
		return policy(name, func(s *v1alpha1.EnrollmentPolicySpec) { s.Match = match })
	}
	w := World{Subnets: []v1alpha1.Subnet{rack()}, Policies: []v1alpha1.EnrollmentPolicy{
		match("a-far", v1alpha1.MachineMatch{Vendor: "Dell*", Product: "R*"}),
		match("near", v1alpha1.MachineMatch{Vendor: "qemu", Product: "PC", MinDisks: 1}),
	}}
	next, held := Decide(waiting("m"), w)
	if want := "no policy takes this machine; the nearest is near: it has 0 disks, not 1. To approve it by hand: coldrack approve m"; next != nil || held != want {
		t.Errorf("got %v, %q, want %q", next, held, want)
	}
	for pattern, want := range map[string]string{
		"":      "",
		"Dell*": `vendor "QEMU" is not "Dell*"`,
	} {
		missed := strings.Join(mismatches(v1alpha1.MachineMatch{Vendor: pattern}, waiting("m"), nil), ", ")
		if missed != want {
			t.Errorf("%q: %q, want %q", pattern, missed, want)
		}
	}
}
