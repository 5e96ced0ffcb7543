package dhcp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/netns"
	"coldrack.dev/test/foreigndhcp"
	netnstest "coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// beside is the rack with a DHCP server of the site's, 192.0.2.2.
func beside() Subnet {
	s := rack()
	s.Mode, s.Pool, s.LeaseTime = ModeProxy, Range{}, 0
	return s
}

// ovmf makes a message as OVMF sends it, but for what differs from one to the next.
func ovmf(kind dhcpv4.MessageType, client int, changes ...change1) *dhcpv4.DHCPv4 {
	uuid := append([]byte{0}, bytes.Repeat([]byte{byte(client)}, 16)...)
	all := append([]change1{option(57, 0x05, 0xc0), option(93, 0, 7), option(94, 1, 3, 16), option(97, uuid...),
		option(60, []byte("PXEClient:Arch:00007:UNDI:003016")...),
		option(55, 1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97, 128, 129, 130, 131, 132, 133, 134, 135)}, changes...)
	return message(kind, client, all...)
}

func http64(client int) *dhcpv4.DHCPv4 {
	return message(discover, client, option(60, []byte("HTTPClient:Arch:00016:UNDI:003000")...), option(93, 0, 16), option(94, 1, 3, 0), option(57, 0x05, 0xc0))
}

func seabios(client int) *dhcpv4.DHCPv4 {
	return message(discover, client, option(60, []byte("PXEClient:Arch:00000:UNDI:002001")...), option(93, 0, 0), option(94, 1, 2, 1),
		option(77, []byte("iPXE")...), option(175, 0x13, 1, 1), option(61, append([]byte{1}, mac(client)...)...))
}

func TestAProxyOffersWhatToBootAndNoAddress(t *testing.T) {
	s := newStage(t, beside(), remote())
	tests := map[string]struct {
		from              *dhcpv4.DHCPv4
		file, next, class string
		vendor            []byte
	}{
		"OVMF by PXE":  {ovmf(discover, 1), "snponly.efi", "192.0.2.77", "PXEClient", []byte{6, 1, 8, 255}},
		"OVMF by HTTP": {http64(2), "http://192.0.2.1:8080/snponly.efi", "192.0.2.1", "HTTPClient", nil},
		"iPXE, which takes no proxy for one without the class": {seabios(3), "http://192.0.2.1:8080/boot.ipxe", "192.0.2.1", "PXEClient", []byte{6, 1, 8, 255}},
		"a BIOS ROM": {message(discover, 4, option(60, []byte("PXEClient:Arch:00000:UNDI:002001")...), option(93, 0, 0)), "undionly.kpxe", "192.0.2.1", "PXEClient", []byte{6, 1, 8, 255}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s.t = t
			offer := s.expect("discover", "offer", "directed", test.from)
			_, out := s.answer()
			if offer.BootFileName != test.file || offer.ServerIPAddr.String() != test.next || offer.ClassIdentifier() != test.class {
				t.Errorf("%s", offer.Summary())
			}
			if got := offer.Options.Get(dhcpv4.OptionVendorSpecificInformation); !bytes.Equal(got, test.vendor) {
				t.Errorf("option 43 is % x, want % x", got, test.vendor)
			}
			if got := offer.Options.Get(optClientUUID); !bytes.Equal(got, test.from.Options.Get(optClientUUID)) {
				t.Errorf("option 97 is % x", got)
			}
			if out.to.String() != "255.255.255.255:68" || out.boot || !offer.IsBroadcast() {
				t.Errorf("sent to %s", out.to)
			}
			// What is the other server's to say.
			for _, code := range []uint8{1, 3, 6, 12, 15, 28, 42, 51, 58, 59} {
				if offer.Options.Has(dhcpv4.GenericOptionCode(code)) {
					t.Errorf("option %d is in it", code)
				}
			}
			if iPXEs := offer.Options.Get(optIPXE); iPXEs != nil {
				t.Errorf("iPXE is told not to wait for a proxy: % x", iPXEs)
			}
		})
	}
}

func TestAProxyKeepsOutOfWhatIsNotItsOwn(t *testing.T) {
	s := newStage(t, beside(), remote())
	s.backend.machines[mac(7).String()] = Reservation{Address: addr("192.0.2.7"), Hostname: "node-7"}
	for what, m := range map[string]*dhcpv4.DHCPv4{
		"a laptop asks":                           message(discover, 1, option(60, []byte("MSFT 5.0")...)),
		"a machine that is known asks":            message(discover, 7),
		"an installed system starts again":        message(request, 7, asking("192.0.2.7")),
		"it asks for another network's":           message(request, 1, asking("198.51.100.7")),
		"a lease that was ours is renewed":        message(request, 1, having("192.0.2.100")),
		"somebody declines":                       message(decline, 1, asking("192.0.2.100"), ofServer("192.0.2.2")),
		"somebody releases":                       message(release, 1, having("192.0.2.100"), ofServer("192.0.2.2")),
		"somebody wants settings":                 message(inform, 1, having("192.0.2.50")),
		"firmware for which there is no file":     ovmf(discover, 1, option(93, 0, 6)),
		"firmware takes an address of elsewhere":  ovmf(request, 1, asking("198.51.100.7"), ofServer("192.0.2.2")),
		"firmware wants an address of us, though": ovmf(request, 1, asking("192.0.2.7"), ofServer("192.0.2.1")),
	} {
		s.expect(what, "silence", "", m)
	}
	s.expect("firmware takes the site's address", "silence", "addressed 192.0.2.150", ovmf(request, 1, asking("192.0.2.150"), ofServer("192.0.2.2")))
	s.engine.admit = func(q Query) bool { return !q.Proxied }
	s.expect("nothing to boot yet", "silence", "", ovmf(discover, 1))
	if len(s.stored) != 0 || len(s.link.probes) != 0 {
		t.Errorf("stored %v, probed %v", s.stored, s.link.probes)
	}
}

func TestFirmwareThatIgnoresAProxyIsRecognized(t *testing.T) {
	s := newStage(t, beside())
	changes := 0
	s.engine.changed = func() { changes++ }
	ignoring := func() string { return Tell(s.engine.ignoring(beside().CIDR)) }
	boot := func(client int, events string) {
		t.Helper()
		s.expect("discover", "offer", events, ovmf(discover, client))
		s.expect("takes the site's address", "silence", "addressed 192.0.2.150", ovmf(request, client, asking("192.0.2.150"), ofServer("192.0.2.2")))
		s.now = s.now.Add(5 * time.Minute)
	}
	boot(1, "directed")
	changes = 0 // the site's server was heard
	boot(1, "directed")
	if got := ignoring(); got != "" || changes != 0 {
		t.Errorf("after two boots: %q, %d changes", got, changes)
	}
	boot(1, "directed, ignored 192.0.2.150")
	want := "52:54:00:00:00:01 asked 3 times, was told each time what to boot, took 192.0.2.150 from the DHCP server 192.0.2.2, and never came for its boot file"
	if got := ignoring(); got != want || changes != 1 {
		t.Errorf("after three boots: %q, %d changes", got, changes)
	}
	boot(1, "directed, ignored 192.0.2.150")
	if changes != 1 {
		t.Errorf("%d changes", changes)
	}
	// What gets no address at all is the site's server's fault.
	for _, events := range []string{"directed", "directed", "directed, ignored"} {
		s.expect("discover", "offer", events, ovmf(discover, 2))
	}
	if got := ignoring(); !strings.Contains(got, "52:54:00:00:00:02 asked 3 times, was told each time what to boot, and took no address from anybody") {
		t.Errorf("without an address: %q", got)
	}
	// Machines that come for their file, or for the script, were not counted.
	for range 4 {
		boot(3, "directed")
		s.expect("iPXE", "offer", "directed", seabios(3))
		boot(4, "directed")
		s.ask(ovmf(request, 4, having("192.0.2.150"), unicast), "192.0.2.150:4011")
	}
	changes = 0
	s.expect("iPXE", "offer", "directed, heeded 192.0.2.150", seabios(1))
	s.ask(ovmf(request, 2, having("192.0.2.150"), unicast), "192.0.2.150:4011")
	if seen := s.backend.events(); seen != "boot-asked 192.0.2.150, heeded" || ignoring() != "" || changes != 2 {
		t.Errorf("once they do: %q, %q, %d changes", seen, ignoring(), changes)
	}
	// A machine that is away for long begins anew.
	boot(5, "directed")
	boot(5, "directed")
	s.now = s.now.Add(unheededFor + time.Hour)
	boot(5, "directed")
	if got := ignoring(); got != "" {
		t.Errorf("after a day: %q", got)
	}
}

func TestOtherServersAreListedWhileTheyAreHeard(t *testing.T) {
	s := newStage(t, rack())
	s.expect("takes another's offer", "silence", "foreign-server 192.0.2.66", message(request, 1, asking("192.0.2.150"), ofServer("192.0.2.66")))
	offer := message(dhcpv4.MessageTypeOffer, 1, ofServer("192.0.2.9"))
	offer.OpCode = dhcpv4.OpcodeBootReply
	s.engine.overheard(s.link, offer.ToBytes())
	if got := s.engine.others(rack().CIDR); fmt.Sprint(got) != "[192.0.2.9 192.0.2.66]" {
		t.Errorf("heard %v", got)
	}
	s.now = s.now.Add(serverTime + time.Second)
	if got := s.engine.others(rack().CIDR); len(got) != 0 {
		t.Errorf("an hour later: %v", got)
	}
}

func TestAProxyBehindARelay(t *testing.T) {
	theirs := remote()
	theirs.Mode, theirs.Pool = ModeProxy, Range{}
	s := newStage(t, rack(), theirs)
	info := option(82, 1, 4, 'p', 'o', 'r', 't')
	offer := s.expect("discover", "offer", "directed", ovmf(discover, 1, via("203.0.113.9"), info), "192.0.2.1")
	_, out := s.answer()
	if out.to.String() != "203.0.113.9:67" || out.hardware != nil || !offer.Options.Has(dhcpv4.OptionRelayAgentInformation) || offer.GatewayIPAddr.String() != "203.0.113.9" {
		t.Errorf("to %s: %s", out.to, offer.Summary())
	}
	if s.engine.relayed(theirs.CIDR) != true {
		t.Error("the relay was not noticed")
	}
}

// ask sends a message to BootPort.
func (s *stage) ask(m *dhcpv4.DHCPv4, source string) (*dhcpv4.DHCPv4, outgoing) {
	s.t.Helper()
	s.link.sent = nil
	from := netip.MustParseAddrPort(source)
	s.engine.handle(incoming{link: s.link, source: from.Addr(), port: from.Port(), destination: addr("192.0.2.1"), boot: true, payload: m.ToBytes()})
	return s.answer()
}

func TestBootServerDiscovery(t *testing.T) {
	for _, mode := range []Subnet{beside(), rack()} {
		t.Run(string(mode.Mode), func(t *testing.T) {
			s := newStage(t, mode)
			// As OVMF asks: from port 4011, without a server identifier.
			ack, out := s.ask(ovmf(request, 1, having("192.0.2.150"), unicast), "192.0.2.150:4011")
			if got(ack) != "ack" || ack.BootFileName != "snponly.efi" || ack.ClassIdentifier() != "PXEClient" || ack.ServerIPAddr.String() != "192.0.2.77" {
				t.Fatalf("OVMF: %s", got(ack))
			}
			if out.to.String() != "192.0.2.150:4011" || !out.boot || out.from != addr("192.0.2.1") {
				t.Errorf("OVMF: to %s", out.to)
			}
			if seen := s.backend.events(); seen != "boot-asked 192.0.2.150" {
				t.Errorf("OVMF: %s", seen)
			}
			// As iPXE does: from port 68, of us, with what was chosen from a menu.
			ack, out = s.ask(message(request, 2, having("192.0.2.151"), unicast, ofServer("192.0.2.1"), option(60, []byte("PXEClient")...), option(93, 0, 0),
				option(43, 71, 4, 0, 7, 0, 0, 255)), "192.0.2.151:68")
			if got(ack) != "ack" || ack.BootFileName != "undionly.kpxe" || out.to.String() != "192.0.2.151:68" {
				t.Errorf("iPXE: %s to %s", got(ack), out.to)
			}
			if vendor := ack.Options.Get(dhcpv4.OptionVendorSpecificInformation); !bytes.Equal(vendor, []byte{71, 4, 0, 7, 0, 0, 255}) {
				t.Errorf("iPXE: option 43 is % x", vendor)
			}
			// A ROM that leaves its address to the IP header.
			if ack, out = s.ask(ovmf(request, 3, unicast), "192.0.2.152:68"); got(ack) != "ack" || out.to.String() != "192.0.2.152:68" {
				t.Errorf("without ciaddr: %s to %s", got(ack), out.to)
			}
			s.backend.events()
			for what, m := range map[string]*dhcpv4.DHCPv4{
				"a laptop":                     message(request, 1, having("192.0.2.150")),
				"of another boot server":       ovmf(request, 1, having("192.0.2.150"), ofServer("192.0.2.66")),
				"to answer to all of the rack": ovmf(request, 1, having("192.0.2.255")),
				"to answer to its first":       ovmf(request, 1, having("192.0.2.0")),
				"to answer somewhere else":     ovmf(request, 1, having("203.0.113.5")),
				"an offer is no such question": ovmf(discover, 1, having("192.0.2.150")),
			} {
				if ack, out := s.ask(m, "192.0.2.150:4011"); ack != nil {
					t.Errorf("%s: answered to %s", what, out.to)
				}
			}
		})
	}
}

// firmware is a client of DHCP in a namespace of its own, by the bytes that firmware sends.
type firmware struct {
	t    *testing.T
	ns   *netnstest.NS
	conn *net.UDPConn // of port 68
}

func newFirmware(n *network, number int) *firmware {
	f := &firmware{t: n.t.(*testing.T), ns: n.machine(number)}
	f.conn = f.listen(ClientPort)
	return f
}

func (f *firmware) listen(port int) *net.UDPConn {
	f.t.Helper()
	conn, err := netns.ListenPacket(f.t.Context(), f.ns.Path(), "udp4", fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1), unix.BindToDevice(int(fd), "eth0"))
		})
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return conn.(*net.UDPConn)
}

// until sends a message again and again until the answers are what the test waits for.
func (f *firmware) until(conn *net.UDPConn, m *dhcpv4.DHCPv4, to string, enough func(*dhcpv4.DHCPv4) bool) {
	f.t.Helper()
	patience, stop := netnstest.Patience(f.t)
	defer stop()
	target := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
	packet := make([]byte, 2048)
	for patience.Err() == nil {
		if _, err := conn.WriteToUDP(m.ToBytes(), target); err != nil {
			f.t.Fatal(err)
		}
		for conn.SetReadDeadline(time.Now().Add(time.Second)); ; {
			length, _, err := conn.ReadFromUDP(packet)
			if err != nil {
				break
			}
			if reply, err := dhcpv4.FromBytes(packet[:length]); err == nil && reply.TransactionID == m.TransactionID && enough(reply) {
				return
			}
		}
	}
	f.t.Fatalf("not the answers to %s that it waits for", m.Summary())
}

const everyone = "255.255.255.255:67"

// offers asks until both servers have answered.
func (f *firmware) offers(m *dhcpv4.DHCPv4) (address, boot *dhcpv4.DHCPv4) {
	f.t.Helper()
	f.until(f.conn, m, everyone, func(reply *dhcpv4.DHCPv4) bool {
		if reply.MessageType() == dhcpv4.MessageTypeOffer {
			if reply.YourIPAddr.IsUnspecified() {
				boot = reply
			} else {
				address = reply
			}
		}
		return address != nil && boot != nil
	})
	return address, boot
}

// take takes the site's offer.
func (f *firmware) take(m, offer *dhcpv4.DHCPv4) {
	f.t.Helper()
	m.UpdateOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr))
	m.UpdateOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier()))
	f.until(f.conn, m, everyone, func(reply *dhcpv4.DHCPv4) bool { return reply.MessageType() == dhcpv4.MessageTypeAck })
	f.ns.Address("eth0", offer.YourIPAddr.String()+"/24")
}

func TestBesideRealServers(t *testing.T) {
	for _, theirs := range foreigndhcp.All() {
		t.Run(theirs.Program, func(t *testing.T) {
			require.Need(t, "netns", "udhcpc", theirs.Program)
			n := newNetwork(t)
			config := n.config()
			config.Subnets[0] = beside()
			n.serve(config)
			site := n.machine(60)
			site.Address("eth0", "192.0.2.2/24")
			theirs.Start(t, site, "")

			f := newFirmware(n, 1)
			address, boot := f.offers(ovmf(discover, 1))
			if from := address.ServerIdentifier().String(); from != "192.0.2.2" || address.BootFileName != "" {
				t.Errorf("the address is from %s: %s", from, address.Summary())
			}
			if boot.ServerIdentifier().String() != "192.0.2.1" || boot.BootFileName != "snponly.efi" || boot.ClassIdentifier() != "PXEClient" {
				t.Errorf("the boot file: %s", boot.Summary())
			}
			f.take(ovmf(request, 1), address)
			taken := n.backend.await(t, Addressed, address.YourIPAddr.String())
			if taken.Client.MAC != mac(1).String() || !strings.Contains(taken.Detail, "192.0.2.2") {
				t.Errorf("%+v", taken)
			}
			// Firmware that is not content with the offer asks on 4011, from there.
			discovery := f.listen(BootPort)
			f.until(discovery, ovmf(request, 1, having(address.YourIPAddr.String()), unicast), "192.0.2.1:4011", func(reply *dhcpv4.DHCPv4) bool {
				return reply.MessageType() == dhcpv4.MessageTypeAck && reply.BootFileName == "snponly.efi"
			})
			n.backend.await(t, BootAsked, address.YourIPAddr.String())
			discovery.Close()
			f.conn.Close()

			// What has been loaded asks anew, at the same address.
			f.ns.Run("ip", "addr", "flush", "dev", "eth0")
			f.conn = f.listen(ClientPort)
			again, script := f.offers(seabios(1))
			if script.BootFileName != "http://192.0.2.1:8080/boot.ipxe" {
				t.Errorf("the script: %s", script.Summary())
			}
			if !again.YourIPAddr.Equal(address.YourIPAddr) {
				t.Logf("%s gives iPXE %s after %s for its firmware", theirs.Program, again.YourIPAddr, address.YourIPAddr)
			}
			// And what boots from its own disk gets nothing from us.
			lease, err := udhcpc(t, n.machine(2))
			if err != nil || lease["serverid"] != "192.0.2.2" || lease["router"] != "192.0.2.254" {
				t.Errorf("udhcpc: %v, %v", lease, err)
			}
			for _, o := range n.observations() {
				if o.Client.MAC == mac(2).String() && o.Event != Addressed || o.Event == ForeignServer {
					t.Errorf("observed %+v", o)
				}
			}
		})
	}
}

// observations are all so far.
func (n *network) observations() []Observation {
	n.backend.mu.Lock()
	defer n.backend.mu.Unlock()
	return append([]Observation(nil), n.backend.inner.seen...)
}

// Another program may have port 4011; that does not keep DHCP from being served.
func TestBootPortIsTaken(t *testing.T) {
	n := newNetwork(t)
	n.server.ListenUDP("0.0.0.0:4011")
	config := n.config()
	config.Subnets[0] = beside()
	n.serve(config)
	f := newFirmware(n, 1)
	f.until(f.conn, ovmf(discover, 1), everyone, func(reply *dhcpv4.DHCPv4) bool { return reply.BootFileName == "snponly.efi" })
}
