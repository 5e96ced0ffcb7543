package v1alpha1

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// wantErrors fails unless there is exactly one error for each wanted text, in order.
func wantErrors(t *testing.T, errs field.ErrorList, want []string) {
	t.Helper()
	if len(errs) != len(want) {
		t.Fatalf("got %d errors, want %d: %v", len(errs), len(want), errs)
	}
	for i, err := range errs {
		if !strings.Contains(err.Error(), want[i]) {
			t.Errorf("error %q lacks %q", err, want[i])
		}
	}
}

func TestParseAddressRange(t *testing.T) {
	for s, want := range map[string]string{
		"10.0.0.1-10.0.0.9":      "10.0.0.1-10.0.0.9",
		" 10.0.0.1 - 10.0.0.9 ":  "10.0.0.1-10.0.0.9",
		"10.0.0.1-10.0.0.1":      "10.0.0.1-10.0.0.1",
		"fd00::10-fd00::ff":      "fd00::10-fd00::ff",
		"10.0.0.1":               "no dash",
		"":                       "no dash",
		"-":                      `"" is not an IP address`,
		"10.0.0.1-":              `"" is not an IP address`,
		"10.0.0.1-9":             `"9" is not an IP address`,
		"10.0.0.1-10.0.0.2-3":    `"10.0.0.2-3" is not an IP address`,
		"10.0.0.9-10.0.0.1":      "the last address 10.0.0.1 comes before the first, 10.0.0.9",
		"10.0.0.1-fd00::1":       "one end is IPv4, the other IPv6",
		"fe80::1%eth0-fe80::2":   "must not name an interface",
		"::ffff:1.2.3.4-1.2.3.9": "without the prefix ::ffff:",
	} {
		r, err := ParseAddressRange(s)
		got := r.String()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("ParseAddressRange(%q) = %q, want %q", s, got, want)
		}
	}
}

func FuzzParseAddressRange(f *testing.F) {
	for _, s := range []string{"10.0.0.1-10.0.0.9", "fd00::10 - fd00::ff", "10.0.0.9-10.0.0.1", "-", "1.2.3.4-::1", "fe80::1%a-b-fe80::2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseAddressRange(s)
		if err != nil {
			return
		}
		if !r.Contains(r.First) || !r.Contains(r.Last) || !r.Overlaps(r) {
			t.Fatalf("%q: %v lacks its own ends", s, r)
		}
		again, err := ParseAddressRange(r.String())
		if err != nil || again != r {
			t.Fatalf("%q: %v is read back as %v, %v", s, r, again, err)
		}
	})
}

func TestAddressRange(t *testing.T) {
	parse := func(s string) AddressRange {
		r, err := ParseAddressRange(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	pool := parse("10.0.0.10-10.0.0.19")
	for other, want := range map[string]bool{
		"10.0.0.1-10.0.0.9": false, "10.0.0.20-10.0.0.29": false, "10.0.0.1-10.0.0.10": true,
		"10.0.0.19-10.0.0.30": true, "10.0.0.12-10.0.0.13": true, "10.0.0.1-10.0.0.99": true, "::1-::2": false,
	} {
		if got := pool.Overlaps(parse(other)); got != want {
			t.Errorf("%s overlaps %s: %v", pool, other, got)
		}
		if got := parse(other).Overlaps(pool); got != want {
			t.Errorf("%s overlaps %s: %v", other, pool, got)
		}
	}
	if pool.Contains(netip.MustParseAddr("10.0.0.9")) || !pool.Contains(netip.MustParseAddr("10.0.0.15")) || pool.Contains(netip.MustParseAddr("::1")) {
		t.Error("Contains is wrong")
	}
}

func TestValidateSubnet(t *testing.T) {
	others := []Subnet{
		{ObjectMeta: metav1.ObjectMeta{Name: "office"}, Spec: SubnetSpec{CIDR: "192.168.0.0/16", Relays: []string{"192.168.255.1"}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "rack-1"}, Spec: SubnetSpec{CIDR: "10.20.0.0/24"}},
		{ObjectMeta: metav1.ObjectMeta{Name: "broken"}, Spec: SubnetSpec{CIDR: "?"}},
	}
	for name, test := range map[string]struct {
		spec SubnetSpec
		want []string
	}{
		"a plan that fits": {SubnetSpec{CIDR: "10.20.0.0/24", Gateway: "10.20.0.1", DHCP: DHCPServer,
			Discovery: "10.20.0.200-10.20.0.254", Static: "10.20.0.10-10.20.0.199", DNS: []string{"10.0.0.53", "fd00::53"},
			NTP: []string{"10.0.0.1", "ntp.example.net"}, Domain: "dc1.example.net",
			LeaseTime: &metav1.Duration{Duration: time.Hour}, Relays: []string{"10.20.0.2"}}, nil},
		"IPv6":                                  {SubnetSpec{CIDR: "fd00:1::/64", Gateway: "fd00:1::1", Discovery: "fd00:1::1000-fd00:1::1fff"}, nil},
		"a network that is none":                {SubnetSpec{CIDR: "10.20.0.0"}, []string{"spec.cidr: Invalid value: \"10.20.0.0\": must be a network"}},
		"an address instead of a network":       {SubnetSpec{CIDR: "10.20.0.7/24"}, []string{"the network that this address is in is 10.20.0.0/24"}},
		"the same network under another name":   {SubnetSpec{CIDR: "192.168.0.0/16"}, []string{"overlaps with 192.168.0.0/16 of Subnet office"}},
		"a network within another":              {SubnetSpec{CIDR: "192.168.7.0/24"}, []string{"overlaps with 192.168.0.0/16 of Subnet office"}},
		"a network around another":              {SubnetSpec{CIDR: "192.0.0.0/8"}, []string{"Subnet office"}},
		"a gateway outside":                     {SubnetSpec{CIDR: "10.20.0.0/24", Gateway: "10.21.0.1"}, []string{"spec.gateway: Invalid value: \"10.21.0.1\": is not in the network 10.20.0.0/24"}},
		"a gateway that is none":                {SubnetSpec{CIDR: "10.20.0.0/24", Gateway: "router"}, []string{"spec.gateway"}},
		"a pool outside":                        {SubnetSpec{CIDR: "10.20.0.0/24", Discovery: "10.20.1.1-10.20.1.9"}, []string{"has the end 10.20.1.1, which is not in the network", "has the end 10.20.1.9, which"}},
		"a pool that runs out of the network":   {SubnetSpec{CIDR: "10.20.0.0/24", Static: "10.20.0.9-10.20.1.9"}, []string{"spec.static"}},
		"a pool that is none":                   {SubnetSpec{CIDR: "10.20.0.0/24", Discovery: "10.20.0.9"}, []string{"spec.discovery: Invalid value: \"10.20.0.9\": no dash"}},
		"a pool with the gateway in it":         {SubnetSpec{CIDR: "10.20.0.0/24", Gateway: "10.20.0.1", Discovery: "10.20.0.1-10.20.0.9"}, []string{"contains the gateway, 10.20.0.1"}},
		"a pool with the network's address":     {SubnetSpec{CIDR: "10.20.0.0/24", Discovery: "10.20.0.0-10.20.0.9"}, []string{"has the end 10.20.0.0, which is the network address"}},
		"a pool with the broadcast address":     {SubnetSpec{CIDR: "10.20.0.0/24", Discovery: "10.20.0.9-10.20.0.255"}, []string{"has the end 10.20.0.255, which is the broadcast address"}},
		"a pool up to the end of all addresses": {SubnetSpec{CIDR: "255.255.255.0/24", Discovery: "255.255.255.9-255.255.255.255"}, []string{"255.255.255.255, which is not the IP address of a host"}},
		"pools that overlap":                    {SubnetSpec{CIDR: "10.20.0.0/24", Discovery: "10.20.0.9-10.20.0.20", Static: "10.20.0.20-10.20.0.30"}, []string{"spec.static: Invalid value: \"10.20.0.20-10.20.0.30\": overlaps with the discovery range 10.20.0.9-10.20.0.20"}},
		"DHCP beside the site's own server":     {SubnetSpec{CIDR: "10.20.0.0/24", DHCP: DHCPProxy, Static: "10.20.0.50-10.20.0.60"}, nil},
		"a proxy that is to give addresses": {SubnetSpec{CIDR: "10.20.0.0/24", DHCP: DHCPProxy, Discovery: "10.20.0.9-10.20.0.20", LeaseTime: &metav1.Duration{Duration: time.Hour}},
			[]string{"spec.discovery: Forbidden: in DHCP mode proxy: the site's own DHCP server gives the addresses", "spec.leaseTime: Forbidden"}},
		"options that fit": {SubnetSpec{CIDR: "10.20.0.0/24", DHCPOptions: []DHCPOption{{Code: 26, Value: "9000"}, {Code: 119, Value: "rack.example, example.net"},
			{Code: 121, Value: "10.0.0.0/8 via 10.20.0.1"}, {Code: 43, Hex: "01:04:0a:14:00:01"}, {Code: 224, Value: "ours"}}}, nil},
		"options that do not": {SubnetSpec{CIDR: "10.20.0.0/24", DHCPOptions: []DHCPOption{{Code: 26, Value: "9k"}, {Code: 3, Value: "10.20.0.1"}, {Code: 53, Hex: "01"}, {Code: 224, Value: "a"}, {Code: 224, Value: "b"}}},
			[]string{`spec.dhcpOptions[0]: Invalid value: 26: has the value "9k": want a number from 68 to 65535`, "spec.dhcpOptions[1]: Invalid value: 3: cannot be set here: it is spec.gateway",
				"spec.dhcpOptions[2]: Invalid value: 53: cannot be set: it belongs to the exchange itself", "spec.dhcpOptions[4]: Duplicate value: 224"}},
		"options too long together": {SubnetSpec{CIDR: "10.20.0.0/24", DHCPOptions: []DHCPOption{{Code: 224, Value: strings.Repeat("x", 100)}, {Code: 225, Value: strings.Repeat("x", 100)}}},
			[]string{"spec.dhcpOptions: Too long: have 204 bytes together, and an answer that every firmware takes has room for 150"}},
		"options of a proxy":                     {SubnetSpec{CIDR: "10.20.0.0/24", DHCP: DHCPProxy, DHCPOptions: []DHCPOption{{Code: 26, Value: "9000"}}}, []string{"spec.dhcpOptions: Forbidden"}},
		"options of DHCPv4 by IPv6":              {SubnetSpec{CIDR: "fd00:1::/64", DHCPOptions: []DHCPOption{{Code: 26, Value: "9000"}}}, []string{"spec.dhcpOptions: Forbidden: are options of DHCPv4"}},
		"a proxy by IPv6":                        {SubnetSpec{CIDR: "fd00:1::/64", DHCP: DHCPProxy}, []string{`spec.dhcp: Invalid value: "proxy": is for IPv4 networks`}},
		"a DHCP server without a pool":           {SubnetSpec{CIDR: "10.20.0.0/24", DHCP: DHCPServer}, []string{"spec.discovery: Required value"}},
		"a DNS server by name":                   {SubnetSpec{CIDR: "10.20.0.0/24", DNS: []string{"10.0.0.1", "dns.example.net"}}, []string{"spec.dns[1]"}},
		"a time server that is nothing":          {SubnetSpec{CIDR: "10.20.0.0/24", NTP: []string{"not a host"}}, []string{"spec.ntp[0]"}},
		"a domain with a dot in front":           {SubnetSpec{CIDR: "10.20.0.0/24", Domain: ".example.net"}, []string{"spec.domain"}},
		"a lease that ends before it is renewed": {SubnetSpec{CIDR: "10.20.0.0/24", LeaseTime: &metav1.Duration{Duration: time.Second}}, []string{"spec.leaseTime"}},
		"several mistakes at once":               {SubnetSpec{CIDR: "10.20.0.0/24", Gateway: "10.21.0.1", Relays: []string{"x"}}, []string{"spec.relays[0]", "spec.gateway"}},
		"a lease shorter than machines boot":     {SubnetSpec{CIDR: "10.20.0.0/24", LeaseTime: &metav1.Duration{Duration: 30 * time.Second}}, []string{`spec.leaseTime: Invalid value: "30s": is not between 1m0s and`}},
		"a lease for ever":                       {SubnetSpec{CIDR: "10.20.0.0/24", LeaseTime: &metav1.Duration{Duration: 10000 * time.Hour}}, []string{"spec.leaseTime"}},
		"servers in the pool":                    {SubnetSpec{CIDR: "10.20.0.0/24", Discovery: "10.20.0.9-10.20.0.20", DNS: []string{"10.20.0.10"}, NTP: []string{"ntp.example.net", "10.20.0.11"}, Relays: []string{"10.20.0.12"}}, []string{"contains the DNS server 10.20.0.10", "contains the time server 10.20.0.11", "contains the relay 10.20.0.12"}},
		"servers among the static addresses":     {SubnetSpec{CIDR: "10.20.0.0/24", Static: "10.20.0.9-10.20.0.20", DNS: []string{"10.20.0.10"}}, nil},
		"the network's address as gateway":       {SubnetSpec{CIDR: "10.20.0.0/24", Gateway: "10.20.0.0"}, []string{"spec.gateway: Invalid value: \"10.20.0.0\": is the network address of 10.20.0.0/24"}},
		"the broadcast address as gateway":       {SubnetSpec{CIDR: "10.20.0.0/24", Gateway: "10.20.0.255"}, []string{"spec.gateway: Invalid value: \"10.20.0.255\": is the broadcast address of 10.20.0.0/24"}},
		"a domain too long for DHCP":             {SubnetSpec{CIDR: "10.20.0.0/24", Domain: strings.Repeat("abcdefghi.", 20) + "net"}, []string{"has 203 characters; a DHCP answer has room for 200"}},
		"a domain with a long label":             {SubnetSpec{CIDR: "10.20.0.0/24", Domain: strings.Repeat("a", 64) + ".net"}, []string{"spec.domain"}},
		"a network too small for DHCP":           {SubnetSpec{CIDR: "10.20.0.0/31", DHCP: DHCPServer, Discovery: "10.20.0.0-10.20.0.1"}, []string{"spec.cidr: Invalid value: \"10.20.0.0/31\": is not between /8 and /30"}},
		"a network that small without DHCP":      {SubnetSpec{CIDR: "10.20.0.0/31", DHCP: DHCPOff, Static: "10.20.0.0-10.20.0.1"}, nil},
		"a DNS server that is no host":           {SubnetSpec{CIDR: "10.20.0.0/24", DNS: []string{"0.0.0.0", "224.0.0.1", "fe80::1%eth0"}}, []string{"spec.dns[0]", "spec.dns[1]", "spec.dns[2]"}},
		"a relay of another subnet":              {SubnetSpec{CIDR: "10.20.0.0/24", Relays: []string{"192.168.255.1"}}, []string{"spec.relays[0]: Invalid value: \"192.168.255.1\": is a relay of Subnet office already"}},
		"an IPv6 relay of an IPv4 subnet":        {SubnetSpec{CIDR: "10.20.0.0/24", Relays: []string{"fd00::1"}}, []string{"is of another IP family"}},
	} {
		t.Run(name, func(t *testing.T) {
			wantErrors(t, ValidateSubnet(&Subnet{ObjectMeta: metav1.ObjectMeta{Name: "rack-1"}, Spec: test.spec}, others), test.want)
		})
	}
}

func TestValidateMachine(t *testing.T) {
	intent := func(id string, action IntentAction) *Intent { return &Intent{ID: id, Action: action} }
	status := func(id string, action IntentAction, state IntentState) MachineStatus {
		return MachineStatus{Intent: &IntentStatus{ID: id, Action: action, State: state}}
	}
	two, one := resource.MustParse("2G"), resource.MustParse("1G")
	for name, test := range map[string]struct {
		spec MachineSpec
		old  *Machine
		want []string
	}{
		"an empty machine": {MachineSpec{}, nil, nil},
		"a machine as in a rack sheet": {MachineSpec{Identifiers: Identifiers{MACs: []string{"52:54:00:00:00:01"}, BMCMAC: "52:54:00:00:00:02"},
			Network: &MachineNetwork{Address: "10.0.0.7"}, RootDisk: &DiskHints{Model: "SAMSUNG*"}}, nil, nil},
		"a MAC in upper case":           {MachineSpec{Identifiers: Identifiers{MACs: []string{"52:54:00:00:00:01", "52:54:00:00:00:AA"}}}, nil, []string{"spec.identifiers.macs[1]"}},
		"a multicast MAC":               {MachineSpec{Identifiers: Identifiers{BMCMAC: "01:00:5e:00:00:01"}}, nil, []string{"spec.identifiers.bmcMAC: Invalid value: \"01:00:5e:00:00:01\": is a multicast address"}},
		"no MAC at all":                 {MachineSpec{Identifiers: Identifiers{MACs: []string{"00:00:00:00:00:00"}}}, nil, []string{"no interface's"}},
		"an address that no host has":   {MachineSpec{Network: &MachineNetwork{Address: "224.0.0.1", MAC: "01:00:5e:00:00:01"}}, nil, []string{"spec.network.mac", "spec.network.address"}},
		"an address with prefix length": {MachineSpec{Network: &MachineNetwork{Address: "10.0.0.7/24"}}, nil, []string{"without prefix length"}},
		"a layout of links": {MachineSpec{Network: &MachineNetwork{Address: "10.0.0.7", NetworkLayout: NetworkLayout{Bonds: []NetworkBond{{Name: "bond0", Mode: "802.3ad", Members: []string{"ens1f0", "ens1f1"}, MTU: 9000}},
			VLANs: []NetworkVLAN{{Name: "storage", ID: 100, Parent: "bond0"}}}, Addresses: []NodeAddress{{Link: "storage", Address: "10.30.0.7/24"}}}}, nil, nil},
		"a layout that contradicts itself": {MachineSpec{Network: &MachineNetwork{NetworkLayout: NetworkLayout{Link: "ens1f0", Bonds: []NetworkBond{{Name: "bond0", Mode: "802.3ad", Members: []string{"ens1f0", "ens1f0"}}},
			VLANs: []NetworkVLAN{{Name: "storage", ID: 4095, Parent: "bond0"}}}, Addresses: []NodeAddress{{Link: "storage", Address: "10.30.0.7"}}}}, nil,
			[]string{"spec.network.bonds[0].members[1]", "spec.network.vlans[0].id", "spec.network.link: Invalid value: \"ens1f0\": is at bonds[0].members[0]", "spec.network.addresses[0].address"}},
		"an address on a link of the profile": {MachineSpec{Network: &MachineNetwork{Addresses: []NodeAddress{{Link: "storage", Address: "10.30.0.7/24"}}}}, nil, nil},
		"a disk pattern that is broken":       {MachineSpec{RootDisk: &DiskHints{ByID: "nvme-[x"}}, nil, []string{"spec.rootDisk.byID"}},
		"a disk by its path":                  {MachineSpec{RootDisk: &DiskHints{ByID: "/dev/disk/by-id/nvme-x"}}, nil, []string{"leave the folder out"}},
		"a disk of no size":                   {MachineSpec{RootDisk: &DiskHints{MinSize: &two, MaxSize: &one}}, nil, []string{"spec.rootDisk.maxSize"}},
		"the first intent":                    {MachineSpec{Intent: intent("1", ActionInstall)}, &Machine{}, nil},
		"a new intent after the last one is done": {MachineSpec{Intent: intent("2", ActionReinstall)},
			&Machine{Spec: MachineSpec{Intent: intent("1", ActionInstall)}, Status: status("1", ActionInstall, IntentSucceeded)}, nil},
		"a new intent while one runs": {MachineSpec{Intent: intent("2", ActionRelease)},
			&Machine{Spec: MachineSpec{Intent: intent("1", ActionInstall)}, Status: status("1", ActionInstall, IntentRunning)},
			[]string{"spec.intent.id: Forbidden: the machine is carrying out intent 1 (Install)"}},
		"something else changes while an intent runs": {MachineSpec{Hostname: "x", Intent: intent("1", ActionInstall)},
			&Machine{Spec: MachineSpec{Intent: intent("1", ActionInstall)}, Status: status("1", ActionInstall, IntentRunning)}, nil},
		"an intent that was already wanted while another runs": {MachineSpec{Hostname: "x", Intent: intent("2", ActionInstall)},
			&Machine{Spec: MachineSpec{Intent: intent("2", ActionInstall)}, Status: status("1", ActionInstall, IntentRunning)}, nil},
		"an intent is withdrawn": {MachineSpec{},
			&Machine{Spec: MachineSpec{Intent: intent("1", ActionInstall)}, Status: status("1", ActionInstall, IntentRunning)}, nil},
		"an intent changes its meaning": {MachineSpec{Intent: intent("1", ActionRelease)},
			&Machine{Spec: MachineSpec{Intent: intent("1", ActionInstall)}}, []string{"spec.intent.action: Invalid value: \"Release\": intent 1 is Install already"}},
		"an acknowledged intent comes back with another meaning": {MachineSpec{Intent: intent("1", ActionRelease)},
			&Machine{Status: status("1", ActionInstall, IntentSucceeded)}, []string{"spec.intent.action"}},
	} {
		t.Run(name, func(t *testing.T) {
			wantErrors(t, ValidateMachine(&Machine{Spec: test.spec}, test.old), test.want)
		})
	}
}

func TestValidateMachineClaims(t *testing.T) {
	owners := func(c MachineClaim) []string {
		return map[string][]string{
			"mac=52:54:00:00:00:01": {"a"}, "uuid=4c4c4544-0032-3510-8052-c2c04f4d3532": {"b", "c"}, "serial=ab123": {"a", "d"}, "address=10.0.0.7": {"d"},
		}[c.Key()]
	}
	for name, test := range map[string]struct {
		spec MachineSpec
		want []string
	}{
		"nothing is claimed":           {MachineSpec{}, nil},
		"what the machine has already": {MachineSpec{Identifiers: Identifiers{MACs: []string{"52:54:00:00:00:01"}}}, nil},
		"a UUID of two others":         {MachineSpec{Identifiers: Identifiers{UUID: "4c4c4544-0032-3510-8052-c2c04f4d3532"}}, []string{"spec.identifiers.uuid: Invalid value: \"4c4c4544-0032-3510-8052-c2c04f4d3532\": belongs to Machine b already"}},
		"a serial in another case":     {MachineSpec{Identifiers: Identifiers{Serial: "AB123"}}, []string{"spec.identifiers.serial: Invalid value: \"ab123\": belongs to Machine d already"}},
		"another machine's address among further ones": {MachineSpec{Network: &MachineNetwork{Address: "10.0.0.8", Addresses: []NodeAddress{{Link: "x", Address: "10.0.0.8/24"}, {Link: "x", Address: "10.0.0.7/24"}}}},
			[]string{"spec.network.addresses[0].address: Invalid value: \"10.0.0.8\": is also spec.network.address", "spec.network.addresses[1].address"}},
		"another machine's address":     {MachineSpec{Network: &MachineNetwork{Address: "10.0.0.7"}}, []string{"spec.network.address"}},
		"a BMC with the MAC of its NIC": {MachineSpec{Identifiers: Identifiers{MACs: []string{"52:54:00:00:00:09"}, BMCMAC: "52:54:00:00:00:09"}}, []string{"spec.identifiers.bmcMAC: Invalid value: \"52:54:00:00:00:09\": is also spec.identifiers.macs[0]"}},
	} {
		t.Run(name, func(t *testing.T) {
			wantErrors(t, ValidateMachineClaims(&Machine{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: test.spec}, owners), test.want)
		})
	}
}

func TestValidateMachineAddress(t *testing.T) {
	subnet := &Subnet{ObjectMeta: metav1.ObjectMeta{Name: "rack-1"}, Spec: SubnetSpec{
		CIDR: "10.20.0.0/24", Gateway: "10.20.0.1", Discovery: "10.20.0.200-10.20.0.254"}}
	for address, want := range map[string][]string{
		"":            nil,
		"10.20.0.9":   nil,
		"10.20.1.9":   {"is not in the network 10.20.0.0/24 (Subnet rack-1)"},
		"10.20.0.200": {"discovery range 10.20.0.200-10.20.0.254"},
		"10.20.0.1":   {"is the gateway (Subnet rack-1)"},
		"10.20.0.0":   {"is the network address"},
		"10.20.0.255": {"is the broadcast address"},
	} {
		t.Run(address, func(t *testing.T) {
			wantErrors(t, ValidateMachineAddress(&Machine{Spec: MachineSpec{Network: &MachineNetwork{Address: address}}}, subnet), want)
		})
	}
}

func TestValidateProfile(t *testing.T) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFEBxI3wzQb9z0X7gqTnhYJqBHZCIw3K0P9r3D7b3fQZ me@laptop"
	for name, test := range map[string]struct {
		spec ProfileSpec
		want []string
	}{
		"a layout of links":                {ProfileSpec{Network: &NetworkLayout{VLANs: []NetworkVLAN{{Name: "storage", ID: 100, Parent: "ens1f0"}}}}, nil},
		"a layout that contradicts itself": {ProfileSpec{Network: &NetworkLayout{VLANs: []NetworkVLAN{{Name: "storage", ID: 100, Parent: "storage"}}}}, []string{"spec.network.vlans[0].parent: Invalid value: \"storage\": is a VLAN"}},
		"a profile that works": {ProfileSpec{SSHKeys: []string{key}, KernelArgs: []string{"quiet", `dyndbg="file drivers/x.c +p"`},
			Console: []string{"tty0", "ttyS0,115200"}, Files: []File{{Path: "/etc/motd"}}, RootDisk: DiskHints{ByID: "nvme-*"}}, nil},
		"two arguments in one":                 {ProfileSpec{KernelArgs: []string{"quiet splash"}}, []string{"spec.kernelArgs[0]"}},
		"an argument with a break":             {ProfileSpec{KernelArgs: []string{"ok", "x\ny"}}, []string{"spec.kernelArgs[1]"}},
		"a quote that is open":                 {ProfileSpec{Console: []string{`tty"0`}}, []string{"spec.console[0]"}},
		"a private key":                        {ProfileSpec{SSHKeys: []string{"-----BEGIN OPENSSH PRIVATE KEY-----"}}, []string{"spec.sshKeys[0]"}},
		"a key cut short":                      {ProfileSpec{SSHKeys: []string{"ssh-ed25519 AAAA"}}, []string{"spec.sshKeys[0]"}},
		"a user's key of two lines":            {ProfileSpec{Users: []User{{Name: "a", SSHKeys: []string{key + "\n" + key}}}}, []string{"spec.users[0].sshKeys[0]"}},
		"a file that climbs":                   {ProfileSpec{Files: []File{{Path: "/etc/../shadow"}}}, []string{"spec.files[0].path"}},
		"a file of systemd-networkd as a unit": {ProfileSpec{Units: []SystemdUnit{{Name: "10-br0.netdev"}}}, []string{"spec.units[0].name: Invalid value: \"10-br0.netdev\": is no unit but a file of systemd-networkd"}},
		"Coldrack's own unit":                  {ProfileSpec{Units: []SystemdUnit{{Name: "coldrack-agent.service", Masked: true}}}, []string{"spec.units[0].name"}},
		"a unit enabled and masked":            {ProfileSpec{Units: []SystemdUnit{{Name: "a.service", Masked: true, Enabled: true}}}, []string{"spec.units[0]"}},
		"units of every kind":                  {ProfileSpec{Units: []SystemdUnit{{Name: "a.automount"}, {Name: "b.swap"}, {Name: "getty@tty7.service"}}}, nil},
		"users that every system has":          {ProfileSpec{Users: []User{{Name: "root"}, {Name: "operator"}, {Name: "ops"}}}, []string{"spec.users[0].name: Invalid value: \"root\": exists already", "spec.users[1].name: Invalid value: \"operator\": is an account or a group of every Debian system"}},
		"a hash that was cut short":            {ProfileSpec{Users: []User{{Name: "ops", PasswordHash: "$6$salt$abc"}}}, []string{"spec.users[0].passwordHash: Invalid value: \"(not shown)\": is not a whole crypt(5) hash"}},
		"a password instead of its hash":       {ProfileSpec{Users: []User{{Name: "ops", PasswordHash: "secret"}}}, []string{"(not shown)"}},
		"a shell that is no path":              {ProfileSpec{Users: []User{{Name: "ops", Shell: "bash"}}}, []string{"spec.users[0].shell"}},
		"Coldrack's own files":                 {ProfileSpec{Files: []File{{Path: "/etc/fstab"}, {Path: "/etc/coldrack/x"}, {Path: "/run/x"}}}, []string{"spec.files[0].path: Invalid value: \"/etc/fstab\": is Coldrack's own to write", "spec.files[1]", "spec.files[2]"}},
		"a file that is a folder, too":         {ProfileSpec{Files: []File{{Path: "/srv/a"}, {Path: "/srv/a/b"}, {Path: "/srv/ab"}}}, []string{"spec.files[1].path: Invalid value: \"/srv/a/b\": /srv/a cannot be a file and a folder"}},
		"a file's mode and owner":              {ProfileSpec{Files: []File{{Path: "/x", Mode: "99999"}, {Path: "/y", Mode: "17777"}, {Path: "/z", Owner: "root"}}}, []string{"spec.files[0].mode", "spec.files[1].mode", "spec.files[2].owner"}},
		"a time zone that climbs":              {ProfileSpec{Timezone: "../../etc/shadow"}, []string{"spec.timezone: Invalid value: \"../../etc/shadow\": is not a time zone"}},
		"a time zone that there is not":        {ProfileSpec{Timezone: "Europe/Nowhere"}, []string{"spec.timezone: Invalid value: \"Europe/Nowhere\": is in no time zone database"}},
		"a time zone":                          {ProfileSpec{Timezone: "Europe/Berlin"}, nil},
		"the zone of whoever asks":             {ProfileSpec{Timezone: "Local"}, []string{"spec.timezone"}},
		"an argument that GRUB cannot quote":   {ProfileSpec{KernelArgs: []string{"a='b'"}}, []string{"spec.kernelArgs[0]"}},
		"a disk pattern":                       {ProfileSpec{RootDisk: DiskHints{Model: "[a"}}, []string{"spec.rootDisk.model"}},
	} {
		t.Run(name, func(t *testing.T) { wantErrors(t, ValidateProfile(&Profile{Spec: test.spec}), test.want) })
	}
}

func TestValidateEnrollmentPolicy(t *testing.T) {
	for name, test := range map[string]struct {
		spec EnrollmentPolicySpec
		want []string
	}{
		"a policy that works": {EnrollmentPolicySpec{Hostname: "node-{index:03}", Match: MachineMatch{Vendor: "Dell*", MACPrefixes: []string{"52:54:00", "aa"},
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"rack": "r1"}}}, Labels: map[string]string{"coldrack.dev/pool": "a"}}, nil},
		"a pattern with an open bracket":  {EnrollmentPolicySpec{Match: MachineMatch{Product: "R[67"}}, []string{"spec.match.product: Invalid value: \"R[67\": is not a pattern: a bracket is not closed"}},
		"a vendor pattern, likewise":      {EnrollmentPolicySpec{Match: MachineMatch{Vendor: `x\`, Serial: "["}}, []string{"spec.match.vendor", "spec.match.serial"}},
		"a MAC prefix that is none":       {EnrollmentPolicySpec{Match: MachineMatch{MACPrefixes: []string{"52:54:0"}}}, []string{"spec.match.macPrefixes[0]"}},
		"a selector that is none":         {EnrollmentPolicySpec{Match: MachineMatch{Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}}}, []string{"spec.match.selector.matchExpressions[0].operator"}},
		"a label that is none":            {EnrollmentPolicySpec{Labels: map[string]string{"a b": "c"}}, []string{"spec.labels"}},
		"an unknown placeholder":          {EnrollmentPolicySpec{Hostname: "n-{rack}"}, []string{"spec.hostname: Invalid value: \"n-{rack}\": {rack} is unknown"}},
		"a host name with a dot":          {EnrollmentPolicySpec{Hostname: "n{index}.example"}, []string{"would not give a host name"}},
		"a placeholder that never closes": {EnrollmentPolicySpec{Hostname: "n{index"}, []string{"would not give a host name"}},
	} {
		t.Run(name, func(t *testing.T) {
			wantErrors(t, ValidateEnrollmentPolicy(&EnrollmentPolicy{Spec: test.spec}), test.want)
		})
	}
}

func TestHostnameIsConstant(t *testing.T) {
	for want, specs := range map[bool][]EnrollmentPolicySpec{
		true:  {{Hostname: "node"}},
		false: {{}, {Hostname: "node", Limit: 1}, {Hostname: "n{index}"}, {Hostname: "{serial}"}},
	} {
		for _, spec := range specs {
			if got := HostnameIsConstant(&EnrollmentPolicy{Spec: spec}); got != want {
				t.Errorf("%q, limit %d: %v", spec.Hostname, spec.Limit, got)
			}
		}
	}
}
