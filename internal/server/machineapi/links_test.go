package machineapi

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/validate"
)

// bonded is a machine that booted from the second of its ports, with a profile that makes a bond of two of them.
func bonded() ingredients {
	in := approved()
	in.machine.Status.Inventory = &v1alpha1.Inventory{NICs: []v1alpha1.NIC{
		{Name: "eno1", MAC: "52:54:00:00:00:0a"}, {Name: "ens1f0", MAC: "52:54:00:00:00:0b"}, {Name: "ens1f1", MAC: "52:54:00:00:00:0c", Boot: true}}}
	in.profile = in.profile.DeepCopy()
	in.profile.Spec.Network = &v1alpha1.NetworkLayout{
		Bonds: []v1alpha1.NetworkBond{{Name: "bond0", Mode: "802.3ad", Members: []string{"ens1f0", "ens1f1"}, MTU: 9000}},
		VLANs: []v1alpha1.NetworkVLAN{{Name: "storage", ID: 100, Parent: "bond0"}},
	}
	in.machine.Spec.Network.Addresses = []v1alpha1.NodeAddress{{Link: "storage", Address: "10.30.0.9/24"}}
	return in
}

func TestNodeLinks(t *testing.T) {
	bond := validate.LinkBond{Name: "bond0", Mode: "802.3ad", Members: []string{"52:54:00:00:00:0b", "52:54:00:00:00:0c"}, MTU: 9000, MAC: "52:54:00:00:00:0c"}
	vlan := validate.LinkVLAN{Name: "storage", ID: 100, Parent: "bond0"}
	storage := validate.LinkAddress{Link: "storage", Address: "10.30.0.9/24"}
	own := func(link string) []validate.LinkAddress {
		return []validate.LinkAddress{{Link: link, Address: "10.0.0.9/24"}, storage}
	}
	for name, test := range map[string]struct {
		change func(*ingredients)
		want   *nodeconfig.Links
		fails  string
	}{
		"the address is on the bond of the port that it booted from": {func(*ingredients) {},
			&nodeconfig.Links{Link: "bond0", Bonds: []validate.LinkBond{bond}, VLANs: []validate.LinkVLAN{vlan}, Addresses: own("bond0")}, ""},
		"on another link": {func(in *ingredients) { in.machine.Spec.Network.Link = "eno1" },
			&nodeconfig.Links{Link: "52:54:00:00:00:0a", Bonds: []validate.LinkBond{bond}, VLANs: []validate.LinkVLAN{vlan}, Addresses: own("52:54:00:00:00:0a")}, ""},
		"the interface of the address is written down": {func(in *ingredients) {
			in.machine.Spec.Network.MAC = "52:54:00:00:00:0a"
		}, &nodeconfig.Links{Link: "52:54:00:00:00:0a", Bonds: []validate.LinkBond{{Name: "bond0", Mode: "802.3ad", Members: bond.Members, MTU: 9000, MAC: "52:54:00:00:00:0b"}}, VLANs: []validate.LinkVLAN{vlan}, Addresses: own("52:54:00:00:00:0a")}, ""},
		"the machine's own layout": {func(in *ingredients) {
			in.machine.Spec.Network.Bridges = []v1alpha1.NetworkBridge{{Name: "br0", Members: []string{"52:54:00:00:00:0C"}}}
			in.machine.Spec.Network.Addresses = nil
		}, &nodeconfig.Links{Link: "br0", Bridges: []validate.LinkBridge{{Name: "br0", Members: []string{"52:54:00:00:00:0c"}, MAC: "52:54:00:00:00:0c"}}, Addresses: own("br0")[:1]}, ""},
		"an address alone": {func(in *ingredients) {
			in.profile.Spec.Network, in.machine.Spec.Network.Addresses[0].Link = nil, "eno1"
		}, &nodeconfig.Links{Link: "52:54:00:00:00:0c", Addresses: []validate.LinkAddress{{Link: "52:54:00:00:00:0c", Address: "10.0.0.9/24"}, {Link: "52:54:00:00:00:0a", Address: "10.30.0.9/24"}}}, ""},
		"no layout": {func(in *ingredients) { in.profile.Spec.Network, in.machine.Spec.Network.Addresses = nil, nil }, nil, ""},
		"interfaces that the machine does not have": {func(in *ingredients) {
			in.profile.Spec.Network.Bonds[0].Members = []string{"ens1f0", "52:54:00:00:00:0d"}
			in.machine.Spec.Network.Addresses[0].Link = "storge"
		}, nil, `profile default: spec.network: bonds[0].members[1] is "52:54:00:00:00:0d", addresses[0].link is "storge", which is neither a link of the layout nor an interface of machine a; it has eno1 (52:54:00:00:00:0a), ens1f0`},
		"one interface by two names": {func(in *ingredients) {
			in.profile.Spec.Network.Bonds[0].Members = []string{"ens1f0", "52:54:00:00:00:0b"}
		}, nil, "links.bonds[0].members[1]: 52:54:00:00:00:0b is at bonds[0].members[0] already"},
		"a link with the name of an interface": {func(in *ingredients) {
			in.machine.Status.Inventory.NICs[0].Name = "storage"
		}, nil, "storage is the name of an interface of machine a"},
		"no word of the interfaces yet": {func(in *ingredients) { in.machine.Status.Inventory = nil }, nil, "has not reported its network interfaces yet"},
		"the DHCP of a profile on the link of the address": {func(in *ingredients) {
			in.profile.Spec.Network.Bonds[0].DHCP = "ipv4"
		}, nil, "links.bonds[0].dhcp: ipv4 bond0 carries the node's address, which is static; remove it"},
	} {
		t.Run(name, func(t *testing.T) {
			in := bonded()
			test.change(&in)
			config, err := nodeConfig(in)
			if err != nil {
				if test.fails == "" || !strings.Contains(err.Error(), test.fails) {
					t.Fatalf("got %v, want %q", err, test.fails)
				}
				if answer, blocked := assign(in); answer.Plan != nil || blocked.Reason != v1alpha1.ReasonPlanIncomplete || !strings.Contains(blocked.Message, test.fails) {
					t.Errorf("the machine is told to %s, and is blocked by %+v", answer.Action, blocked)
				}
				return
			}
			if test.fails != "" {
				t.Fatalf("want %q", test.fails)
			}
			gateway := in.subnets[0].Spec.Gateway
			if test.want != nil {
				test.want.Gateway = gateway
			}
			if diff := cmp.Diff(test.want, config.Links); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// An agent that knows no links must not install a node without a network: what is left for it is no valid configuration.
func TestOlderAgentsRefuseLinks(t *testing.T) {
	config, err := nodeConfig(bonded())
	if err != nil {
		t.Fatal(err)
	}
	text, _ := json.Marshal(config)
	var older nodeconfig.Config
	if err := json.Unmarshal(text, &older); err != nil {
		t.Fatal(err)
	}
	older.Links = nil // as it reads it
	if _, err := nodeconfig.Direct(older); err == nil || !strings.Contains(err.Error(), "interfaces[0].addresses") {
		t.Errorf("got %v", err)
	}
}
