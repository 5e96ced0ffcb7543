package validate

import (
	"strings"
	"testing"
)

func TestLinksProblems(t *testing.T) {
	bond := func(members ...string) LinkBond {
		return LinkBond{Name: "bond0", Mode: BondActiveBackup, Members: members}
	}
	const a, b = "52:54:00:00:00:01", "52:54:00:00:00:02"
	for name, test := range map[string]struct {
		links Links
		want  []string // field and the beginning of its message
	}{
		"nothing": {Links{}, nil},
		"two ports, a VLAN for storage, a bridge": {Links{Link: "br0", Bonds: []LinkBond{{Name: "bond0", Mode: BondLACP, Members: []string{"ens1f0", "ens1f1"}, MTU: 9000, MinLinks: 1, LACPRate: "fast", HashPolicy: "layer3+4"}},
			VLANs: []LinkVLAN{{Name: "storage", ID: 4094, Parent: "bond0", MTU: 9000}}, Bridges: []LinkBridge{{Name: "br0", Members: []string{"bond0"}}},
			Addresses: []LinkAddress{{"storage", "10.30.0.11/24"}}, Routes: []LinkRoute{{To: "10.40.0.0/16", Via: "10.30.0.254"}}}, nil},
		"names": {Links{VLANs: []LinkVLAN{{Name: "storage-network1", ID: 1, Parent: a}, {Name: "eth0", ID: 2, Parent: a}, {Name: "cni7", ID: 3, Parent: a}, {Name: "a/b", ID: 4, Parent: a}, {Name: "lo", ID: 5, Parent: a}, {Name: "bond0", ID: 6, Parent: a}}, Bonds: []LinkBond{bond(b)}},
			[]string{"vlans[0].name: has 16 characters", "vlans[1].name: is a name that Linux gives", "vlans[2].name: begins like", "vlans[3].name: is not the name", "vlans[4].name: means something else", "vlans[5].name: is the name of bonds[0] too"}},
		"a member twice": {Links{Bonds: []LinkBond{bond(a, b), {Name: "bond1", Mode: BondActiveBackup, Members: []string{b}}}},
			[]string{"bonds[1].members[0]: is at bonds[0].members[1] already"}},
		"a bond of a bond, and of nothing": {Links{Bonds: []LinkBond{bond(a), {Name: "bond1", Mode: BondActiveBackup, Members: []string{"bond0"}}, {Name: "bond2", Mode: BondActiveBackup}}},
			[]string{"bonds[1].members[0]: is a bond; members of a bond", "bonds[2].members: is empty"}},
		"a bridge of a bridge": {Links{Bridges: []LinkBridge{{Name: "br0", Members: []string{a}}, {Name: "br1", Members: []string{"br0"}}}}, []string{"bridges[1].members[0]: is a bridge"}},
		"a bridge of its own VLAN": {Links{Bridges: []LinkBridge{{Name: "br0", Members: []string{a, "tagged"}}}, VLANs: []LinkVLAN{{Name: "tagged", ID: 5, Parent: "br0"}}},
			[]string{"bridges[0].members: lies on itself: br0 on tagged on br0"}},
		"two bridges of each other's VLANs": {Links{Bridges: []LinkBridge{{Name: "br0", Members: []string{"one"}}, {Name: "br1", Members: []string{"two"}}}, VLANs: []LinkVLAN{{Name: "one", ID: 5, Parent: "br1"}, {Name: "two", ID: 5, Parent: "br0"}}},
			[]string{"bridges[0].members: lies on itself: br0 on one on br1 on two on br0"}},
		"tags": {Links{VLANs: []LinkVLAN{{Name: "v0", Parent: a}, {Name: "v4095", ID: 4095, Parent: a}, {Name: "x", ID: 7, Parent: a}, {Name: "y", ID: 7, Parent: a}, {Name: "z", ID: 7, Parent: "x"}, {Name: "w", ID: 7, Parent: ""}}},
			[]string{"vlans[5].parent: is empty", "vlans[0].id: is not between 1 and 4094", "vlans[1].id: is not between", "vlans[3].id: is on " + a + " by vlans[2] already", "vlans[4].parent: is a VLAN"}},
		"a VLAN on a member": {Links{Bonds: []LinkBond{bond(a)}, VLANs: []LinkVLAN{{Name: "x", ID: 7, Parent: a}}}, []string{"vlans[0].parent: is at bonds[0].members[0]; put the VLAN on the bond"}},
		"what is no interface": {Links{Link: "bond 1", Bonds: []LinkBond{bond("52:54:00:00:00:0G", "much-too-long-a-name")}},
			[]string{"link: is neither a link of this layout", "bonds[0].members[0]: must be a MAC", "bonds[0].members[1]: is neither"}},
		"settings of another mode": {Links{Bonds: []LinkBond{{Name: "bond0", Mode: BondActiveBackup, Members: []string{a}, LACPRate: "fast", HashPolicy: "layer2", MinLinks: 1, Primary: b}, {Name: "bond1", Mode: BondLACP, Members: []string{b}, MinLinks: 2, Primary: b}, {Name: "bond2", Mode: "802.3ae", Members: []string{"x"}}}},
			[]string{"bonds[0].lacpRate: is for mode 802.3ad", "bonds[0].transmitHashPolicy: is for", "bonds[0].minLinks: is for", "bonds[0].primary: is not a member", "bonds[1].minLinks: the bond has 1 members", "bonds[1].primary: is for mode active-backup", "bonds[2].mode: want 802.3ad or active-backup"}},
		"addresses": {Links{Link: a, Bonds: []LinkBond{bond(a)}, Addresses: []LinkAddress{{a, "10.0.0.1/24"}, {"bond0", "10.0.0.2"}, {"bond0", "10.0.0.0/24"}, {"bond0", "224.0.0.1/24"}, {"bond0", "10.0.0.7/24"}, {"x", "10.0.0.7/25"}}},
			[]string{"link: is at bonds[0].members[0], and a member has no address; want bond0", "addresses[0].link: is at bonds[0].members[0]", "addresses[1].address: is not an address with prefix", "addresses[2].address: is the network address", "addresses[3].address: cannot be", "addresses[5].address: is at addresses[4] too"}},
		"DHCP": {Links{Link: "bond0", Bonds: []LinkBond{{Name: "bond0", Mode: BondLACP, Members: []string{a}, DHCP: DHCPIPv4}}, Interfaces: []LinkNIC{{NIC: a, DHCP: DHCPBoth}, {NIC: b, DHCP: "yes"}, {NIC: b}, {NIC: "bond0"}}},
			[]string{"interfaces[2].nic: is that of interfaces[1] too", "interfaces[3].nic: is a bond of this layout", "interfaces[0].dhcp: " + a + " is at bonds[0]", "interfaces[1].dhcp: want ipv4, ipv6 or both", "bonds[0].dhcp: bond0 carries the node's address"}},
		"sizes": {Links{Bonds: []LinkBond{{Name: "bond0", Mode: BondLACP, Members: []string{a}, MTU: 1600}}, Interfaces: []LinkNIC{{NIC: a, MTU: 9000}, {NIC: b, MTU: 500}}, Bridges: []LinkBridge{{Name: "br0", Members: []string{"v"}, MTU: 1601}},
			VLANs: []LinkVLAN{{Name: "v", ID: 1, Parent: "bond0"}, {Name: "w", ID: 2, Parent: "bond0", MTU: 9000}, {Name: "six", ID: 3, Parent: "bond0", MTU: 1000}, {Name: "x", ID: 4, Parent: "ens5", MTU: 1501}}, Addresses: []LinkAddress{{"six", "fd00::1/64"}}},
			[]string{"interfaces[0].mtu: " + a + " is at bonds[0].members[0], and a bond sets", "interfaces[1].mtu: want 576 to 65535", "vlans[1].mtu: bond0 below it takes packets of 1600 only", "vlans[2].mtu: want 1280 to", "vlans[3].mtu: ens5 below it takes packets of 1500 only", "bridges[0].mtu: v below it takes packets of 1600 only"}},
		"routes": {Links{Bonds: []LinkBond{bond(a)}, Routes: []LinkRoute{{To: "10.1.0.0", Via: "10.0.0.1"}, {To: "10.1.0.1/16", Via: "10.0.0.1"}, {To: "10.2.0.0/16", Via: "fd00::1"}, {To: "10.3.0.0/16", Via: "gw"}, {To: "10.3.0.0/16", Via: "10.0.0.1"}, {To: "fd00::/48", Via: "fe80::1"}, {To: "10.5.0.0/16", Via: "10.0.0.1", Link: a}}},
			[]string{"routes[0].to: is not a network", "routes[1].to: has bits set after the prefix; want 10.1.0.0/16", "routes[2].via: and 10.2.0.0/16 must be", "routes[3].via: is not the IP", "routes[4].to: is that of routes[3] too", "routes[5].link: is needed", "routes[6].link: is at bonds[0]"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := test.links.Problems()
			for i, p := range got {
				if i >= len(test.want) || !strings.HasPrefix(p.Field+": "+p.Message, test.want[i]) {
					t.Errorf("problem %d: %s: %q %s", i, p.Field, p.Value, p.Message)
				}
			}
			if len(got) < len(test.want) {
				t.Errorf("missing: %q", test.want[len(got):])
			}
		})
	}
}

// A VLAN that is made before its parent has its size would keep the default.
func TestLinkMTU(t *testing.T) {
	l := Links{Bonds: []LinkBond{{Name: "bond0", Members: []string{"a", "b"}, MTU: 9000}}, VLANs: []LinkVLAN{{Name: "v", Parent: "bond0"}, {Name: "w", Parent: "c"}}, Bridges: []LinkBridge{{Name: "br0", Members: []string{"v", "w"}}}}
	for link, want := range map[string]int{"a": 9000, "bond0": 9000, "v": 9000, "br0": 1500, "c": 1500} {
		if got, known := l.LinkMTU(link); got != want || known != (link != "c") {
			t.Errorf("%s: %d, %v", link, got, known)
		}
	}
}
