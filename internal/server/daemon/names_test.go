package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/netboot/dns"
	"coldrack.dev/internal/server/machineapi"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// A whole server answers by the names of Machines as they come, are renamed and go, where Subnets ask for it, and nowhere else.
func TestNamesOfMachines(t *testing.T) {
	require.Need(t, "netns", "dig")
	t.Run("on all interfaces", func(t *testing.T) { testNamesOfMachines(t, nil) })
	t.Run("on chosen ones", func(t *testing.T) { testNamesOfMachines(t, []string{"rack0"}) })
}

func testNamesOfMachines(t *testing.T, interfaces []string) {
	ns, rack, other := netns.New(t), netns.New(t), netns.New(t)
	netns.Veth(ns, "rack0", rack, "eth0")
	ns.Address("rack0", "10.20.0.1/24")
	rack.Address("eth0", "10.20.0.9/24")
	netns.Veth(ns, "other0", other, "eth0")
	ns.Address("other0", "10.30.0.1/24")
	other.Address("eth0", "10.30.0.9/24")
	other.Run("ip", "route", "add", "10.20.0.0/24", "via", "10.30.0.1")
	ns.Run("sysctl", "-qw", "net.ipv4.ip_forward=1")

	cfg := testConfig(t)
	cfg.NoBoot, cfg.BootNetns, cfg.DNSUpstreams = false, ns.Path(), []string{"none"}
	cfg.Interfaces = interfaces
	cfg.Manifests = []string{writeManifest(t, `
apiVersion: coldrack.dev/v1alpha1
kind: Subnet
metadata: {name: rack}
spec: {cidr: 10.20.0.0/24, discovery: 10.20.0.100-10.20.0.200, domain: rack.example.org, serveDNS: true, serveNTP: true}
---
apiVersion: coldrack.dev/v1alpha1
kind: Subnet
metadata: {name: other}
spec: {cidr: 10.30.0.0/24, discovery: 10.30.0.100-10.30.0.200, domain: other.example.org}
---
apiVersion: coldrack.dev/v1alpha1
kind: Machine
metadata: {name: m-1}
spec: {hostname: db, identifiers: {macs: ["52:54:00:00:00:01"]}, network: {subnet: rack, address: 10.20.0.11}, bmc: {address: 10.20.0.201}}
`)}
	server := run(t, cfg)
	api := kinds(t, server.rest)
	dig := func(from *netns.NS, args ...string) string {
		out, err := from.Try(t.Context(), append([]string{"dig", "@10.20.0.1", "+tries=1", "+time=2"}, args...)...)
		if err != nil {
			return fmt.Sprintf("%v: %s", err, out)
		}
		return strings.Join(strings.Fields(out), " ")
	}
	become := func(want string, args ...string) {
		t.Helper()
		eventually(t, func() error {
			if got := dig(rack, args...); !strings.Contains(got+" ", want+" ") {
				return fmt.Errorf("%v: %s, want %s", args, got, want)
			}
			return nil
		})
	}
	become("10.20.0.11", "+short", "db.rack.example.org")
	become("10.20.0.11", "+short", "m-1.rack.example.org")
	become("db.rack.example.org.", "+short", "-x", "10.20.0.11")
	become("10.20.0.201", "+short", "db-bmc.rack.example.org")
	become("10.20.0.1", "+short", "coldrack.rack.example.org")
	become("0 0 123 coldrack.rack.example.org.", "+short", "_ntp._udp.rack.example.org", "SRV")
	become("REFUSED,", "www.example.com")
	become("NXDOMAIN,", "m-2.rack.example.org")

	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "m-2"}, Spec: v1alpha1.MachineSpec{Identifiers: v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:02"}},
		Network: &v1alpha1.MachineNetwork{Subnet: "rack", Address: "10.20.0.12"}}}
	check(t, api.Create(context.Background(), m))
	become("10.20.0.12", "+short", "m-2.rack.example.org")
	m.Spec.Hostname = "web"
	eventually(t, func() error {
		if err := api.Get(context.Background(), metaKey("m-2"), m); err != nil {
			return err
		}
		m.Spec.Hostname = "web"
		return api.Update(context.Background(), m)
	})
	become("web.rack.example.org.", "+short", "-x", "10.20.0.12")
	check(t, api.Delete(context.Background(), m))
	become("NXDOMAIN,", "web.rack.example.org")

	// Addresses are followed.
	ns.Address("rack0", "10.20.0.3/24")
	become("10.20.0.11", "@10.20.0.3", "+short", "db.rack.example.org")
	become("10.20.0.11", "@10.20.0.3", "+tcp", "+short", "db.rack.example.org")

	ns.Run("ip", "link", "del", "rack0") // and so are interfaces
	netns.Veth(ns, "rack0", rack, "eth0")
	ns.Address("rack0", "10.20.0.1/24")
	rack.Address("eth0", "10.20.0.9/24")
	become("10.20.0.11", "+short", "db.rack.example.org")

	// The neighbour's Subnet did not ask for it: neither at its address nor at the rack's.
	for _, at := range []string{"10.20.0.1", "10.30.0.1"} {
		if got := dig(other, "@"+at, "db.rack.example.org"); strings.Contains(got, "status:") {
			t.Errorf("%s answers a client of a Subnet without serveDNS: %s", at, got)
		}
	}
	subnet := &v1alpha1.Subnet{}
	check(t, api.Get(context.Background(), metaKey("rack"), subnet))
	subnet.Spec.ServeDNS = false
	check(t, api.Update(context.Background(), subnet))
	eventually(t, func() error {
		if got := dig(rack, "db.rack.example.org"); strings.Contains(got, "status:") {
			return fmt.Errorf("still answered: %s", got)
		}
		return nil
	})
}

// testNames are names of a rack without a server.
func testNames(t *testing.T) (*names, *[]fleet.Snapshot, *time.Time) {
	t.Helper()
	machines, now, changes := &[]fleet.Snapshot{}, new(time.Time), uint64(0)
	*now = time.Unix(1_800_000_000, 0)
	cfg := testConfig(t)
	check(t, os.MkdirAll(cfg.DataDir, 0o700))
	return &names{
		cfg: cfg, machines: func() []fleet.Snapshot { return slices.Clone(*machines) }, changes: func() uint64 { changes++; return changes },
		clusters: func() []clusterNames {
			return []clusterNames{{name: "prod", host: "k8s.rack.example.org", port: 6443, virtual: netip.MustParseAddr("10.20.0.5"), apiServers: []netip.Addr{netip.MustParseAddr("10.20.0.11")}}}
		},
		subnets: func() []v1alpha1.Subnet {
			return []v1alpha1.Subnet{
				{ObjectMeta: metav1.ObjectMeta{Name: "rack"}, Spec: v1alpha1.SubnetSpec{CIDR: "10.20.0.0/24", Domain: "rack.example.org", ServeDNS: true, DNS: []string{"10.0.0.53", "10.20.0.1"}}},
				{ObjectMeta: metav1.ObjectMeta{Name: "six"}, Spec: v1alpha1.SubnetSpec{CIDR: "fd00:20::/64", Domain: "rack.example.org", ServeDNS: true}},
				{ObjectMeta: metav1.ObjectMeta{Name: "silent"}, Spec: v1alpha1.SubnetSpec{CIDR: "10.30.0.0/24"}},
			}
		},
		own: func() []netip.Addr {
			return []netip.Addr{netip.MustParseAddr("10.20.0.1"), netip.MustParseAddr("192.0.2.1")}
		},
		now: func() time.Time { return *now }, log: discard(), serials: map[string]zoneSerial{},
	}, machines, now
}

func machineNamed(name, host, address string, created int64) fleet.Snapshot {
	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(created, 0)}}
	m.Spec.Hostname, m.Spec.Network = host, &v1alpha1.MachineNetwork{Address: address}
	return fleet.Snapshot{Machine: m}
}

func values(z *dns.Zones, name, kind string) string {
	var all []string
	for _, zone := range z.List() {
		for _, r := range zone.Records() {
			if r.Name == name && r.Type == kind {
				all = append(all, r.Value)
			}
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestWhoHasAName(t *testing.T) {
	n, machines, _ := testNames(t)
	first, second := machineNamed("m-2", "db", "10.20.0.12", 1), machineNamed("m-1", "db", "10.20.0.11", 2)
	installed := machineNamed("m-3", "db", "10.20.0.13", 3)
	*machines = []fleet.Snapshot{second, first, machineNamed("web", "", "10.20.0.20", 9), machineNamed("m-4", "web", "10.20.0.14", 1)}
	for _, step := range []struct {
		what   string
		change func()
		db     string
	}{
		{"the older one", func() {}, "10.20.0.12"},
		{"whoever is approved", func() { second.Machine.Spec.Approved = true }, "10.20.0.11"},
		{"whoever is installed", func() {
			installed.Machine.Status.Installed = &v1alpha1.InstalledStatus{}
			*machines = append(*machines, installed)
		}, "10.20.0.13"},
	} {
		step.change()
		zones := n.build()
		if got := values(zones, "db.rack.example.org.", "A"); got != step.db {
			t.Errorf("%s has the name: %s, want %s; %+v", step.what, got, step.db, zones.Collisions)
		}
		if got := values(zones, "web.rack.example.org.", "A"); got != "10.20.0.20" {
			t.Errorf("the Machine web lost its name to a host name: %s", got)
		}
		if got := values(zones, "12.0.20.10.in-addr.arpa.", "PTR"); step.db != "10.20.0.12" && got != "m-2.rack.example.org." {
			t.Errorf("who lost the host name is called %s", got)
		}
	}
	zones := n.build()
	for name, want := range map[string]string{"api.prod.rack.example.org.": "10.20.0.5", "k8s.rack.example.org.": "10.20.0.5", "coldrack.rack.example.org.": "10.20.0.1"} {
		if got := values(zones, name, "A"); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	node := machineNamed("m-6", "", "10.20.0.16", 1)
	node.Machine.Status.Node = &v1alpha1.NodeStatus{Addresses: []string{"10.20.0.16/24", "10.20.0.5/32", "fe80::1/64", "fd00:20::16/64", "2001:db8::1/64"}}
	booting := machineNamed("m-7", "", "", 1)
	booting.Live.Lease = &v1alpha1.LeaseStatus{Address: "10.20.0.100"}
	*machines = []fleet.Snapshot{node, booting, machineNamed("m-8", "", "10.30.0.8", 1)}
	zones = n.build()
	if a, aaaa := values(zones, "m-6.rack.example.org.", "A"), values(zones, "m-6.rack.example.org.", "AAAA"); a != "10.20.0.16" || aaaa != "fd00:20::16" {
		t.Errorf("a node's addresses are %s, %s", a, aaaa)
	}
	if a := values(zones, "m-7.rack.example.org.", "A"); a != "10.20.0.100" {
		t.Errorf("a machine that boots has %s", a)
	}
	stranger, approved := machineNamed("m-9", "", "10.20.0.19", 1), machineNamed("m-10", "", "10.20.0.10", 1)
	for _, m := range []*v1alpha1.Machine{stranger.Machine, approved.Machine} {
		m.Status.Inventory = &v1alpha1.Inventory{BMC: &v1alpha1.BMCInfo{Address: "10.20.0.210"}}
	}
	approved.Machine.Spec.Approved = true
	*machines = append(*machines, stranger, approved)
	zones = n.build()
	if a, b := values(zones, "m-9-bmc.rack.example.org.", "A"), values(zones, "m-10-bmc.rack.example.org.", "A"); a != "" || b != "10.20.0.210" {
		t.Errorf("BMCs that machines report: of a stranger %q, of an approved one %q", a, b)
	}
	n.cfg.DNSDomain = "site.example.org"
	if a := values(n.build(), "m-8.site.example.org.", "A"); a != "10.30.0.8" {
		t.Errorf("a machine in a Subnet without a domain has %s", a)
	}
}

func TestUpstreamsOfAClient(t *testing.T) {
	n, _, _ := testNames(t)
	n.cfg.DNSUpstreams = []string{"192.0.2.53:5353", "192.0.2.1"}
	for client, want := range map[string]string{"10.20.0.9": "[10.0.0.53:53]", "fd00:20::9": "[192.0.2.53:5353]", "10.30.0.9": "no answer", "192.0.2.1": "no answer", "127.0.0.1": "no answer"} {
		servers, ok := n.Upstreams(netip.MustParseAddr(client))
		got := fmt.Sprint(servers)
		if !ok {
			got = "no answer"
		}
		if got != want {
			t.Errorf("%s: %s, want %s", client, got, want)
		}
	}
	n.cfg.DNSUpstreams = []string{"none"}
	if servers, ok := n.Upstreams(netip.MustParseAddr("fd00:20::9")); len(servers) != 0 || !ok {
		t.Errorf("%v, %v", servers, ok)
	}
}

// A serial number grows with each change of a zone, also when the clock was set back, and over a restart.
func TestSerialsGrow(t *testing.T) {
	n, machines, now := testNames(t)
	serial := func() uint32 {
		*now = now.Add(time.Minute)
		n.refresh()
		for _, zone := range n.Zones().List() {
			if zone.Name == "rack.example.org." {
				return zone.Serial
			}
		}
		t.Fatal("no such zone")
		return 0
	}
	last := serial()
	if again := serial(); again != last {
		t.Errorf("%d became %d without a change", last, again)
	}
	for i, step := range []time.Duration{0, -24 * time.Hour, 48 * time.Hour, -100 * time.Hour} {
		*now = now.Add(step)
		*machines = append(*machines, machineNamed(fmt.Sprint("m-", i), "", fmt.Sprint("10.20.0.", 20+i), 1))
		next := serial()
		if next <= last {
			t.Errorf("%d became %d", last, next)
		}
		last = next
		s := &server{cfg: n.cfg, log: discard(), reach: testReach(t, "")}
		restarted, err := s.newNames()
		check(t, err)
		n.serials = restarted.serials
		if again := serial(); again != last {
			t.Errorf("%d became %d over a restart", last, again)
		}
	}
}

func BenchmarkNames(b *testing.B) {
	n := &names{cfg: Config{DataDir: b.TempDir()}, clusters: func() []clusterNames { return nil }, own: func() []netip.Addr { return nil }, now: time.Now, log: discard(), serials: map[string]zoneSerial{}}
	plan := []v1alpha1.Subnet{{Spec: v1alpha1.SubnetSpec{CIDR: "10.0.0.0/16", Domain: "rack.example.org", ServeDNS: true}}}
	n.subnets = func() []v1alpha1.Subnet { return plan }
	var machines []fleet.Snapshot
	for i := range 10000 {
		machines = append(machines, machineNamed(fmt.Sprint("m-", i), fmt.Sprint("node-", i), fmt.Sprintf("10.0.%d.%d", i/200, i%200+1), 1))
	}
	n.machines = func() []fleet.Snapshot { return slices.Clone(machines) }
	for b.Loop() {
		n.build()
	}
}

type planned struct{ machineapi.Plans }

func (planned) Subnets(context.Context) ([]v1alpha1.Subnet, error) {
	return []v1alpha1.Subnet{
		{Spec: v1alpha1.SubnetSpec{CIDR: "10.20.0.0/24", ServeDNS: true, ServeNTP: true, DNS: []string{"10.0.0.53", "10.20.0.1"}}},
		{Spec: v1alpha1.SubnetSpec{CIDR: "10.30.0.0/24", DNS: []string{"10.0.0.53"}, NTP: []string{"ntp.example.org"}}},
	}, nil
}

func TestInstalledNodesNameThisServerFirst(t *testing.T) {
	plans := servedPlans{Plans: planned{}, cfg: DefaultConfig(), own: func(subnet netip.Prefix) (netip.Addr, error) { return subnet.Addr().Next(), nil }}
	show := func() (all []string) {
		subnets, err := plans.Subnets(t.Context())
		check(t, err)
		for _, s := range subnets {
			all = append(all, fmt.Sprintf("%v %v %s", s.Spec.DNS, s.Spec.NTP, s.Spec.Domain))
		}
		return all
	}
	plans.cfg.DNSDomain = "site.example.org"
	if got, want := show(), []string{"[10.20.0.1 10.0.0.53] [10.20.0.1] site.example.org", "[10.0.0.53] [ntp.example.org] "}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	plans.cfg.DNS, plans.cfg.NTP = false, false
	if got, want := show(), []string{"[10.0.0.53 10.20.0.1] [] ", "[10.0.0.53] [ntp.example.org] "}; !slices.Equal(got, want) {
		t.Errorf("when both are off: %q, want %q", got, want)
	}
	plans.cfg.NTP, plans.own = true, func(netip.Prefix) (netip.Addr, error) { return netip.Addr{}, errors.New("no address") }
	if _, err := plans.Subnets(t.Context()); err == nil {
		t.Error("a node is installed without the time server that its Subnet asks for")
	}
}
