package dhcp

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	netnstest "coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// settings are a rack's with options of people.
func settings() Subnet {
	s := rack()
	s.Options = []Option{
		{26, []byte{0x23, 0x28}}, // 9000
		{119, []byte("\x04rack\x07example\x00")},
		{121, []byte{8, 10, 192, 0, 2, 253}}, // 10.0.0.0/8
		{43, []byte{1, 2, 3, 4}},
		{224, []byte("ours")},
	}
	return s
}

func TestOptionsOfPeople(t *testing.T) {
	s := newStage(t, settings())
	s.backend.options = map[string][]Option{mac(7).String(): {{26, []byte{5, 220}}, {100, []byte("UTC")}}}
	wants := option(55, 1, 3, 26, 43, 100, 119, 121, 224)
	offer := s.expect("who asks", "offer 192.0.2.100", "offered 192.0.2.100", message(discover, 1, wants))
	for code, want := range map[uint8][]byte{26: {0x23, 0x28}, 43: {1, 2, 3, 4}, 119: []byte("\x04rack\x07example\x00"), 224: []byte("ours"),
		121: {8, 10, 192, 0, 2, 253, 0, 192, 0, 2, 254}} { // and the router, which counts no longer beside it
		if got := offer.Options.Get(dhcpv4.GenericOptionCode(code)); !bytes.Equal(got, want) {
			t.Errorf("option %d is % x, want % x", code, got, want)
		}
	}
	offer = s.expect("who asks for less", "offer 192.0.2.101", "offered 192.0.2.101", message(discover, 2, option(55, 1, 3, 26)))
	if offer.Options.Has(dhcpv4.GenericOptionCode(121)) || !offer.Options.Has(dhcpv4.GenericOptionCode(26)) {
		t.Errorf("%s", offer.Summary())
	}
	offer = s.expect("a machine with options of its own", "offer 192.0.2.102", "offered 192.0.2.102", message(discover, 7, wants))
	if !bytes.Equal(offer.Options.Get(dhcpv4.GenericOptionCode(26)), []byte{5, 220}) || string(offer.Options.Get(dhcpv4.GenericOptionCode(100))) != "UTC" ||
		string(offer.Options.Get(dhcpv4.GenericOptionCode(224))) != "ours" {
		t.Errorf("%s", offer.Summary())
	}
	offer = s.expect("firmware, whose option 43 is PXE's", "offer 192.0.2.103", "offered 192.0.2.103", ovmf(discover, 3, wants))
	if got := offer.Options.Get(dhcpv4.OptionVendorSpecificInformation); !bytes.Equal(got, []byte{6, 1, 8, 255}) {
		t.Errorf("option 43 is % x", got)
	}
	// Together they make no answer too long for anyone.
	big := settings()
	big.Options = append(big.Options, Option{225, bytes.Repeat([]byte("x"), 120)}, Option{226, bytes.Repeat([]byte("y"), 120)})
	s = newStage(t, big)
	s.say(ovmf(discover, 1, option(55), option(57, 2, 64)), "255.255.255.255")
	if size := len(s.link.sent[0].payload); size > leastMessageSize-ipUDP {
		t.Errorf("%d bytes", size)
	}
	whole := big.Options[2].Value
	if got := withDefaultRoute([]byte{0, 192, 0, 2, 253}, addr("192.0.2.254")); len(got) != 5 {
		t.Errorf("a default route of its own: % x", got)
	}
	if got := withDefaultRoute(whole, addr("")); !bytes.Equal(got, whole) {
		t.Errorf("without a router: % x", got)
	}
	if got := withDefaultRoute([]byte{33}, addr("192.0.2.254")); !bytes.Equal(got, []byte{33}) {
		t.Errorf("what is no route: % x", got)
	}
}

func TestTheArchitectureOfFirmwareWithoutOption93(t *testing.T) {
	for class, want := range map[string]uint16{"PXEClient:Arch:00007:UNDI:003016": 7, "HTTPClient:Arch:00016:UNDI:003000": 16, "PXEClient:Arch:00000": 0,
		"PXEClient": ArchUnknown, "PXEClient:Arch:x": ArchUnknown, "PXEClient:Arch:99999999": ArchUnknown, "Other:Arch:00007": ArchUnknown} {
		for name, change := range map[string]change1{"none": func(*dhcpv4.DHCPv4) {}, "a cut one": option(93, 7)} {
			if got := queryOf(message(discover, 1, option(60, []byte(class)...), change)).Arch; got != want {
				t.Errorf("%s with %s of 93: %d, want %d", class, name, got, want)
			}
		}
	}
	if got := queryOf(message(discover, 1, option(60, []byte("PXEClient:Arch:00007")...), option(93, 0, 9))).Arch; got != 9 {
		t.Errorf("option 93 counts first: %d", got)
	}
	for what, value := range map[string][]byte{"cut": {0, 1, 2}, "of another type": append([]byte{1}, make([]byte, 16)...), "empty": {}} {
		if got := queryOf(message(discover, 1, option(97, value...))).UUID; got != "" {
			t.Errorf("option 97 that is %s: %q", what, got)
		}
	}
}

func TestTwoMachinesWithOneMAC(t *testing.T) {
	s := newStage(t)
	uuid := func(n byte) change1 { return option(97, append([]byte{0}, bytes.Repeat([]byte{n}, 16)...)...) }
	s.expect("one", "offer 192.0.2.100", "offered 192.0.2.100", message(discover, 1, uuid(1)))
	s.expect("its iPXE, which tells none", "offer 192.0.2.100", "offered 192.0.2.100", message(discover, 1))
	s.expect("the other", "offer 192.0.2.100", "duplicate-mac, offered 192.0.2.100", message(discover, 1, uuid(2)))
	s.now = s.now.Add(time.Hour)
	s.expect("a new board, an hour later", "offer 192.0.2.100", "offered 192.0.2.100", message(discover, 1, uuid(3)))
	s.expect("the same MAC elsewhere", "offer 198.51.100.10", "offered 198.51.100.10", message(discover, 1, uuid(4), via("203.0.113.9")), "192.0.2.1")
}

// RFC 5107: clients know the server by the relay's address, and renew through it.
func TestARelayThatStandsForTheServer(t *testing.T) {
	s := newStage(t)
	info := option(82, 11, 4, 203, 0, 113, 9)
	offer := s.expect("discover", "offer 198.51.100.10", "offered 198.51.100.10", message(discover, 1, via("203.0.113.9"), info), "192.0.2.1")
	if got := offer.ServerIdentifier().String(); got != "203.0.113.9" {
		t.Errorf("the server is %s", got)
	}
	s.expect("request", "ack 198.51.100.10", "acknowledged 198.51.100.10", message(request, 1, via("203.0.113.9"), info, asking("198.51.100.10"), ofServer("203.0.113.9")), "192.0.2.1")
	s.expect("renew", "ack 198.51.100.10", "acknowledged 198.51.100.10", message(request, 1, via("203.0.113.9"), info, having("198.51.100.10")), "192.0.2.1")
	s.expect("release", "silence", "released 198.51.100.10", message(release, 1, via("203.0.113.9"), info, having("198.51.100.10"), ofServer("203.0.113.9")), "192.0.2.1")
	s.expect("on the segment itself it means nothing", "silence", "foreign-server 203.0.113.9", message(request, 2, info, asking("192.0.2.100"), ofServer("203.0.113.9")))
}

// dhclient runs ISC's client with a lease file until it has a lease, and returns what it said.
func dhclient(t *testing.T, ns *netnstest.NS, lease string) string {
	t.Helper()
	conf := filepath.Join(filepath.Dir(lease), "conf")
	if err := os.WriteFile(conf, []byte("option rfc3442-classless-static-routes code 121 = array of unsigned integer 8;\n"+
		"timeout 30; request subnet-mask, routers, interface-mtu, domain-search, rfc3442-classless-static-routes;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, stop := netnstest.Patience(t)
	defer stop()
	said, err := ns.Try(ctx, "dhclient", "-1", "-v", "-sf", "/bin/true", "-cf", conf, "-lf", lease, "-pf", filepath.Join(filepath.Dir(lease), "pid"), "eth0")
	if err != nil {
		t.Fatalf("dhclient: %v: %s", err, said)
	}
	ns.Run("dhclient", "-x", "-sf", "/bin/true", "-cf", conf, "-lf", lease, "-pf", filepath.Join(filepath.Dir(lease), "pid"), "eth0")
	return said
}

// A machine speaks DHCP with another identifier each time, and starts again with what it remembers.
func TestOneMachineByItsClients(t *testing.T) {
	require.Need(t, "netns", "udhcpc", "dhclient")
	n := newNetwork(t)
	config := n.config()
	config.Subnets[0] = settings()
	n.serve(config)
	ns := n.machine(1)
	lease := filepath.Join(t.TempDir(), "lease")
	for _, id := range []string{"0x3d:ff0000000100020000ab11", "0x3d:01525400000001", "0x3d:00112233"} {
		got, err := udhcpc(t, ns, "-C", "-x", id, "-O", "mtu", "-O", "search", "-O", "staticroutes")
		if err != nil || got["ip"] != "192.0.2.100" || got["mtu"] != "9000" || got["search"] != "rack.example" || got["staticroutes"] != "10.0.0.0/8 192.0.2.253 0.0.0.0/0 192.0.2.254" {
			t.Errorf("identifier %s: %v, %v", id, got, err)
		}
	}
	if said := dhclient(t, ns, lease); !strings.Contains(said, "DHCPDISCOVER") || !strings.Contains(said, "DHCPACK of 192.0.2.100") {
		t.Errorf("dhclient: %s", said)
	}
	text, err := os.ReadFile(lease)
	for _, want := range []string{"interface-mtu 9000", `domain-search "rack.example."`, "rfc3442-classless-static-routes 8,10,192,0,2,253,0,192,0,2,254"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in %s, %v", want, text, err)
		}
	}
	// INIT-REBOOT: a REQUEST of what it had, without DISCOVER.
	if said := dhclient(t, ns, lease); strings.Contains(said, "DHCPDISCOVER") || !strings.Contains(said, "DHCPACK of 192.0.2.100") {
		t.Errorf("dhclient with a lease: %s", said)
	}
	// What it had lies in another network: it is told so, and asks anew.
	moved := n.config()
	moved.Subnets[0].CIDR, moved.Subnets[0].Router = mustPrefix("192.0.3.0/24"), addr("192.0.3.254")
	moved.Subnets[0].Pool = Range{From: addr("192.0.3.100"), To: addr("192.0.3.103")}
	n.server.Run("ip", "addr", "add", "192.0.3.1/24", "dev", "br0")
	n.server.Run("ip", "addr", "del", "192.0.2.1/24", "dev", "br0")
	if err := n.dhcp.SetConfig(moved); err != nil {
		t.Fatal(err)
	}
	n.service("served at its new address", "rack", by("br0"))
	if said := dhclient(t, ns, lease); !strings.Contains(said, "DHCPNAK") || !strings.Contains(said, "DHCPACK of 192.0.3.100") {
		t.Errorf("dhclient that was moved: %s", said)
	}
	if stats := n.dhcp.Stats(); stats.Subnets[0].Leased != 1 {
		t.Errorf("%+v", stats)
	}
}

// Debian's relay agents, with and without option 82, in front of a server and of a proxy.
func TestRealRelays(t *testing.T) {
	relays := map[string]struct{ program, args string }{
		"dhcrelay":                {"dhcrelay", "-4 -d --no-pid -id lower -iu upper 192.0.2.1"},
		"dhcrelay with option 82": {"dhcrelay", "-4 -d --no-pid -a -id lower -iu upper 192.0.2.1"},
		"dnsmasq":                 {"dnsmasq", "--keep-in-foreground --conf-file=/dev/null --port=0 --user=root --pid-file= --dhcp-relay=198.51.100.1,192.0.2.1"},
	}
	for name, relay := range relays {
		t.Run(name, func(t *testing.T) {
			require.Need(t, "netns", "udhcpc", relay.program)
			n := newNetwork(t)
			n.serve(n.config())
			router, machine := netnstest.New(t), netnstest.New(t)
			n.server.Plug("br0", "router", router, "upper")
			netnstest.Veth(router, "lower", machine, "eth0")
			router.Address("upper", "192.0.2.60/24")
			router.Address("lower", "198.51.100.1/24")
			router.Run("sysctl", "-qw", "net.ipv4.ip_forward=1")
			n.server.Run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.60")
			machine.Run("ip", "link", "set", "eth0", "address", mac(1).String())
			// Nothing of it may be broadcast into the server's own segment.
			bystander := newFirmware(n, 2)

			var said bytes.Buffer
			cmd := exec.Command(require.Program(relay.program), strings.Fields(relay.args)...)
			cmd.Stdout, cmd.Stderr = &said, &said
			if err := router.Start(cmd); err != nil {
				t.Fatal(err)
			}
			defer func() {
				cmd.Process.Kill()
				cmd.Wait()
				if t.Failed() {
					t.Logf("%s said: %s", relay.program, said.String())
				}
			}()
			var lease map[string]string
			var err error
			for range 10 { // the relay may just be starting
				if lease, err = udhcpc(t, machine); err == nil {
					break
				}
			}
			if err != nil || lease["ip"] != "198.51.100.10" {
				t.Fatalf("%v, %v", lease, err)
			}
			observed := n.backend.await(t, Acknowledged, "198.51.100.10")
			if observed.Client.Relay != addr("198.51.100.1") || strings.Contains(name, "82") != (observed.Client.CircuitID != "") {
				t.Errorf("observed %+v", observed.Client)
			}

			theirs := n.config()
			theirs.Subnets[1].Mode, theirs.Subnets[1].Pool = ModeProxy, Range{}
			if err := n.dhcp.SetConfig(theirs); err != nil {
				t.Fatal(err)
			}
			f := &firmware{t: t, ns: machine}
			f.conn = f.listen(ClientPort)
			f.until(f.conn, ovmf(discover, 1), everyone, func(reply *dhcpv4.DHCPv4) bool {
				return reply.YourIPAddr.IsUnspecified() && reply.BootFileName == "snponly.efi" && reply.ClassIdentifier() == "PXEClient"
			})

			// The first thing that it hears is this.
			const mark = "a broadcast on the server's own segment"
			other := newFirmware(n, 3)
			if _, err := other.conn.WriteToUDP([]byte(mark), &net.UDPAddr{IP: net.IPv4bcast, Port: ClientPort}); err != nil {
				t.Fatal(err)
			}
			bystander.conn.SetReadDeadline(time.Now().Add(time.Minute))
			heard := make([]byte, 2048)
			if length, from, err := bystander.conn.ReadFromUDP(heard); err != nil || string(heard[:length]) != mark {
				t.Errorf("%d bytes from %s reached the server's own segment, %v", length, from, err)
			}
		})
	}
}

// The frames of a VLAN also pass the interface that the VLAN is on. They are not that one's.
func TestFramesOfAVLANBelongToTheVLAN(t *testing.T) {
	n := newNetwork(t)
	n.server.Run("ip", "link", "delete", "br0")
	machine := netnstest.New(t)
	netnstest.Veth(n.server, "trunk", machine, "eth0")
	n.server.Address("trunk", "192.0.2.1/24")
	config := n.config()
	config.Interfaces = []string{"trunk"}
	n.serve(config)
	var conn *packet.Conn
	err := machine.Do(func() (err error) {
		conn, err = packet.Listen(machine.Interface("eth0"), packet.Raw, unix.ETH_P_ALL, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	say := func(server string, tag ...byte) {
		t.Helper()
		offer := message(dhcpv4.MessageTypeOffer, 1, ofServer(server))
		offer.OpCode = dhcpv4.OpcodeBootReply
		frame := udpFrame(mac(50), etherBroadcast, netip.AddrPortFrom(addr(server), ServerPort), netip.MustParseAddrPort("255.255.255.255:68"), offer.ToBytes())
		frame = slices.Insert(frame, 12, tag...)
		if _, err := conn.WriteTo(frame, &packet.Addr{HardwareAddr: etherBroadcast}); err != nil {
			t.Fatal(err)
		}
	}
	say("10.0.10.66", 0x81, 0, 0, 10)   // VLAN 10
	say("192.0.2.67", 0x81, 0, 0x60, 0) // a priority, and no VLAN
	say("192.0.2.66")
	n.backend.await(t, ForeignServer, "192.0.2.66")
	n.backend.await(t, ForeignServer, "192.0.2.67")
	for _, o := range n.observations() {
		if o.Address == addr("10.0.10.66") {
			t.Errorf("observed %+v", o)
		}
	}
}

// Several VLANs come in by one cable. What happens in one is nothing to the others.
func TestVLANs(t *testing.T) {
	require.Need(t, "netns", "udhcpc")
	server, machine := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(server, "trunk", machine, "eth0")
	if said, err := server.Try(t.Context(), "ip", "link", "add", "link", "trunk", "name", "probe", "type", "vlan", "id", "99"); err != nil {
		t.Skipf("this kernel has no VLAN interfaces: %s", said)
	}
	n := &network{t: t, server: server, backend: newLockedBackend(), dir: t.TempDir()}
	config := Config{}
	server.Address("trunk", "192.0.2.1/24")
	config.Subnets = append(config.Subnets, rack())
	for _, vlan := range []int{10, 20} {
		name := fmt.Sprintf("trunk.%d", vlan)
		server.Run("ip", "link", "add", "link", "trunk", "name", name, "type", "vlan", "id", fmt.Sprint(vlan))
		server.Run("ip", "link", "set", name, "up")
		server.Address(name, fmt.Sprintf("10.0.%d.1/24", vlan))
		machine.Run("ip", "link", "add", "link", "eth0", "name", fmt.Sprintf("eth0.%d", vlan), "type", "vlan", "id", fmt.Sprint(vlan))
		machine.Run("ip", "link", "set", fmt.Sprintf("eth0.%d", vlan), "up")
		config.Subnets = append(config.Subnets, Subnet{Name: fmt.Sprintf("vlan-%d", vlan), CIDR: mustPrefix(fmt.Sprintf("10.0.%d.0/24", vlan)), Mode: ModeServer,
			Pool: Range{From: addr(fmt.Sprintf("10.0.%d.100", vlan)), To: addr(fmt.Sprintf("10.0.%d.109", vlan))}})
	}
	n.serve(config)
	for _, name := range []string{"rack", "vlan-10", "vlan-20"} {
		n.service("is served", name, func(s SubnetService) bool { return s.Problem == "" && len(s.Interfaces) == 1 })
	}
	for device, want := range map[string]string{"eth0": "192.0.2.100", "eth0.10": "10.0.10.100", "eth0.20": "10.0.20.100"} {
		if got, err := udhcpc(t, machine, "-i", device); err != nil || got["ip"] != want {
			t.Errorf("on %s: %v, %v, want %s", device, got, err, want)
		}
	}
	// Another DHCP server in a VLAN is one of that VLAN's alone, though the cable's own interface sees its frames.
	machine.Run("ip", "addr", "add", "10.0.10.66/24", "dev", "eth0.10")
	conn := machine.ListenUDP("10.0.10.66:67")
	offer := message(dhcpv4.MessageTypeOffer, 1, ofServer("10.0.10.66"))
	offer.OpCode = dhcpv4.OpcodeBootReply
	if _, err := conn.WriteToUDP(offer.ToBytes(), &net.UDPAddr{IP: net.IPv4(10, 0, 10, 255), Port: ClientPort}); err != nil {
		t.Fatal(err)
	}
	if seen := n.backend.await(t, ForeignServer, "10.0.10.66"); seen.Subnet != mustPrefix("10.0.10.0/24") {
		t.Errorf("observed %+v", seen)
	}
	n.service("the other server is named", "vlan-10", func(s SubnetService) bool { return fmt.Sprint(s.Servers) == "[10.0.10.66]" })
	for _, s := range n.dhcp.Services() {
		if s.Name != "vlan-10" && len(s.Servers) > 0 {
			t.Errorf("%s has the servers %v", s.Name, s.Servers)
		}
	}
}
