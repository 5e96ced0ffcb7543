package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/netboot/boot"
	"coldrack.dev/internal/netboot/dhcp6"
	"coldrack.dev/internal/server/machineapi"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// TestAnIPv6SubnetIsServed is a rack with IPv6 alone: a machine hears by router advertisements that DHCPv6 gives the addresses, gets the one of its
// plan and an URL, and that URL is served.
func TestAnIPv6SubnetIsServed(t *testing.T) {
	require.Need(t, "netns")
	ns, machine := netns.New(t), netns.New(t)
	ns.Run("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")
	machine.Run("sh", "-c", "cd /proc/sys/net/ipv6/conf/default && echo 0 >accept_dad && echo 0 >router_solicitation_delay && echo 1 >router_solicitation_interval && echo -1 >router_solicitations")
	netns.Veth(ns, "rack0", machine, "eth0")
	ns.Address("rack0", "fd00:20::2/64")

	cfg := testConfig(t)
	cfg.NoBoot, cfg.BootNetns, cfg.Interfaces = false, ns.Path(), []string{"rack0"}
	path, keyPath := sampleBundle(t)
	cfg.TrustedKeys = []string{keyPath}
	s := newBootServer(t, cfg, discard(), path)
	var mac net.HardwareAddr
	check(t, machine.Do(func() error {
		link, err := net.InterfaceByName("eth0")
		if err == nil {
			mac = link.HardwareAddr
		}
		return err
	}))
	known := &v1alpha1.Machine{}
	known.Name, known.UID = "node-1", "1"
	known.Spec.Identifiers.MACs = []string{mac.String()}
	known.Spec.Network = &v1alpha1.MachineNetwork{Subnet: "six", Address: "fd00:20::11"}
	s.fleet.Put(known)
	s.fleet.MarkSynced()
	sink := s.startBoot(t, machineapi.NewNonces(nil)).(*dhcpSubnets)
	six := v1alpha1.Subnet{Spec: v1alpha1.SubnetSpec{CIDR: "fd00:20::/64", DHCP: v1alpha1.DHCPServer, Discovery: "fd00:20::1000-fd00:20::1fff", DNS: []string{"fd00:20::53"}}}
	six.Name = "six"
	sink.SetSubnets([]v1alpha1.Subnet{six})
	eventually(t, func() error {
		if report, _ := sink.Subnet("six"); !report.Served {
			return fmt.Errorf("%+v", report)
		}
		return nil
	})
	eventually(t, func() error {
		if routes := machine.Run("ip", "-6", "route", "show", "dev", "eth0"); !strings.Contains(routes, "fd00:20::/64 ") || strings.Contains(routes, "default") {
			return fmt.Errorf("the routes are %s", routes)
		}
		return nil
	})

	reply := solicit(t, machine, mac)
	address := reply.Options.OneIANA().Options.OneAddress()
	if address == nil || address.IPv6Addr.String() != "fd00:20::11" {
		t.Fatalf("it got %s", reply.Summary())
	}
	if dns := reply.Options.DNS(); len(dns) != 1 || dns[0].String() != "fd00:20::53" {
		t.Errorf("name servers %v", dns)
	}
	want := fmt.Sprintf("http://[fd00:20::2]:%d/snponly.efi", cfg.BootPort)
	if url := reply.Options.BootFileURL(); url != want {
		t.Fatalf("it is to boot %q, want %q", url, want)
	}
	machine.Address("eth0", "fd00:20::11/64")
	web := &http.Client{Timeout: within, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
		err = machine.Do(func() error { conn, err = net.Dial(network, address); return err })
		return conn, err
	}}}
	response, err := web.Get(want)
	check(t, err)
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK || len(body) == 0 {
		t.Errorf("%s: %s, %d bytes, %v", want, response.Status, len(body), err)
	}
	eventually(t, func() error {
		if lease := s.fleet.Live("node-1").Lease; lease == nil || lease.Address != "fd00:20::11" {
			return fmt.Errorf("the lease is not noted: %+v", lease)
		}
		return nil
	})

	six.Spec.DHCP = v1alpha1.DHCPOff
	sink.SetSubnets([]v1alpha1.Subnet{six})
	if report, _ := sink.Subnet("six"); report.Served || report.Refused != "" {
		t.Errorf("switched off: %+v", report)
	}
	check(t, ns.Do(func() error {
		conn, err := net.ListenPacket("udp6", "[::]:"+strconv.Itoa(dhcp6.ServerPort))
		if err == nil {
			conn.Close()
		}
		return err
	}))
}

// solicit asks for an address and something to boot, as firmware does that boots by HTTP, until there is a reply.
func solicit(t *testing.T, from *netns.NS, mac net.HardwareAddr) *dhcpv6.Message {
	t.Helper()
	var conn net.PacketConn
	check(t, from.Do(func() (err error) { conn, err = net.ListenPacket("udp6", "[::]:546"); return err }))
	defer conn.Close()
	index := 0
	check(t, from.Do(func() error {
		link, err := net.InterfaceByName("eth0")
		if err == nil {
			index = link.Index
		}
		return err
	}))
	m, err := dhcpv6.NewMessage()
	check(t, err)
	m.MessageType = dhcpv6.MessageTypeSolicit
	m.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: mac}))
	m.AddOption(&dhcpv6.OptIANA{IaId: [4]byte{1}})
	m.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
	m.AddOption(dhcpv6.OptRequestedOption(dhcpv6.OptionBootfileURL, dhcpv6.OptionDNSRecursiveNameServer))
	m.AddOption(dhcpv6.OptClientArchType(iana.Arch(boot.ArchHTTPUEFI64)))
	m.AddOption(&dhcpv6.OptVendorClass{EnterpriseNumber: 343, Data: [][]byte{[]byte("HTTPClient:Arch:00016:UNDI:003016")}})
	answer := make([]byte, 2048)
	for end := time.Now().Add(within); time.Now().Before(end); {
		_, err := conn.WriteTo(m.ToBytes(), &net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: dhcp6.ServerPort, Zone: strconv.Itoa(index)})
		check(t, err)
		check(t, conn.SetReadDeadline(time.Now().Add(time.Second)))
		n, _, err := conn.ReadFrom(answer)
		if err != nil {
			continue
		}
		reply, err := dhcpv6.MessageFromBytes(answer[:n])
		check(t, err)
		if reply.TransactionID == m.TransactionID && reply.MessageType == dhcpv6.MessageTypeReply {
			return reply
		}
	}
	t.Fatal("DHCPv6 does not answer")
	return nil
}

func TestWhichMachineAClientOfDHCPv6Is(t *testing.T) {
	machines := fleet.New(fleet.Options{Log: discard()})
	const one, two, uuid, swapped = "52:54:00:00:00:01", "52:54:00:00:00:02", "0a1b2c3d-1111-4222-8333-444444444444", "3d2c1b0a-1111-2242-8333-444444444444"
	put := func(name, address, uuid string, macs ...string) {
		m := &v1alpha1.Machine{}
		m.Name, m.UID = name, "1"
		m.Spec.Identifiers = v1alpha1.Identifiers{MACs: macs, UUID: uuid}
		m.Spec.Network = &v1alpha1.MachineNetwork{Address: address, MAC: macs[len(macs)-1]}
		machines.Put(m)
	}
	put("node-1", "fd00:20::11", uuid, "52:54:00:00:00:09", one)
	put("node-2", "fd00:20::12", "1a1b2c3d-1111-4222-8333-444444444444", two)
	put("node-4", "10.20.0.14", "", "52:54:00:00:00:04")
	put("node-5", "fd00:20::15", "2a1b2c3d-1111-4222-8333-444444444444", "52:54:00:00:00:05")
	b := dhcp6Backend{dhcpBackend{booter: &booter{fleet: machines}}}
	for name, c := range map[string]struct {
		client dhcp6.Query
		want   string // its address
		as     string // its name for the gate
	}{
		"by its hardware address":                     {dhcp6.Query{MAC: one}, "fd00:20::11", one},
		"firmware by its UUID, the MAC being another": {dhcp6.Query{MAC: "52:54:00:00:00:aa", PXE: true, UUIDs: []string{swapped, uuid}}, "fd00:20::11", one},
		"not an operating system by its UUID":         {dhcp6.Query{MAC: "52:54:00:00:00:aa", UUIDs: []string{uuid}}, "", "52:54:00:00:00:aa"},
		"not by UUIDs of two machines":                {dhcp6.Query{IPXE: true, UUIDs: []string{uuid, "1a1b2c3d-1111-4222-8333-444444444444"}, DUID: "0004"}, "", "duid 0004"},
		"a machine with an IPv4 plan":                 {dhcp6.Query{MAC: "52:54:00:00:00:04"}, "", "52:54:00:00:00:04"},
		"a stranger":                                  {dhcp6.Query{MAC: "52:54:00:00:00:aa", DUID: "0004"}, "", "52:54:00:00:00:aa"},
		"a stranger without a hardware address":       {dhcp6.Query{DUID: "0004"}, "", "duid 0004"},
	} {
		got, ok := b.Reservation(netip.MustParsePrefix("fd00:20::/64"), c.client)
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("%s: %s, %v, want %q", name, got, ok, c.want)
		}
		if as := b.asV4(c.client).MAC; as != c.as {
			t.Errorf("%s: it is %q, want %q", name, as, c.as)
		}
	}
}
