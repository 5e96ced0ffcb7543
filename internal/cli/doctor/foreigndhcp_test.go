package doctor

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
	"github.com/insomniacslk/dhcp/iana"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/test/foreigndhcp"
	netnstest "coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// firmwares are DISCOVERs as firmware sends them, and what it is to boot.
var firmwares = map[string]struct {
	options     map[uint8][]byte
	file, class string
	next        string
}{
	"BIOS": {map[uint8][]byte{60: []byte("PXEClient:Arch:00000:UNDI:002001"), 93: {0, 0}, 94: {1, 2, 1}, 55: {1, 3, 6, 43, 54, 60, 66, 67}},
		"undionly.kpxe", "", "192.0.2.1"},
	"UEFI": {map[uint8][]byte{60: []byte("PXEClient:Arch:00007:UNDI:003016"), 93: {0, 7}, 94: {1, 3, 16}, 55: {1, 3, 6, 43, 54, 60, 66, 67}},
		"snponly.efi", "", "192.0.2.1"},
	"UEFI by HTTP": {map[uint8][]byte{60: []byte("HTTPClient:Arch:00016:UNDI:003000"), 93: {0, 16}, 94: {1, 3, 0}, 55: {1, 3, 6, 43, 54, 60, 66, 67}},
		"http://192.0.2.1:7080/snponly.efi", "HTTPClient", ""},
	"iPXE": {map[uint8][]byte{60: []byte("PXEClient:Arch:00000:UNDI:002001"), 93: {0, 0}, 94: {1, 2, 1}, 77: []byte("iPXE"), 175: {0x13, 1, 1}, 55: {1, 3, 6, 43, 60, 67, 175}},
		"http://192.0.2.1:7080/boot.ipxe", "", ""},
	"iPXE by UEFI": {map[uint8][]byte{60: []byte("PXEClient"), 93: {0, 7}, 94: {1, 3, 16}, 77: []byte("iPXE"), 175: {0x13, 1, 1}, 55: {1, 3, 6, 43, 60, 67, 175}},
		"http://192.0.2.1:7080/boot.ipxe", "", ""},
	"a laptop": {map[uint8][]byte{60: []byte("MSFT 5.0"), 55: {1, 3, 6}}, "", "", ""},
}

// The real servers take the lines, and then tell each firmware what our own would.
func TestTheLinesForRealServers(t *testing.T) {
	for kind, server := range map[string]foreigndhcp.Server{"isc": foreigndhcp.ISC, "kea": foreigndhcp.Kea, "dnsmasq": foreigndhcp.Dnsmasq} {
		t.Run(kind, func(t *testing.T) {
			require.Need(t, "netns", server.Program)
			lines, err := ForeignDHCP(kind, netip.MustParseAddr("192.0.2.1"), 7080)
			if err != nil {
				t.Fatal(err)
			}
			site, machine := netnstest.New(t), netnstest.New(t)
			netnstest.Veth(site, "eth0", machine, "eth0")
			site.Address("eth0", "192.0.2.2/24")
			server.Start(t, site, lines)
			number := byte(0)
			for name, firmware := range firmwares {
				number++
				offer := offerTo(t, machine, number, firmware.options)
				file := strings.TrimRight(offer.BootFileName, "\x00")
				if option := offer.BootFileNameOption(); option != "" {
					file = strings.TrimRight(option, "\x00")
				}
				next := offer.ServerIPAddr.String()
				if offer.ServerIPAddr.IsUnspecified() || firmware.next == "" {
					next = ""
				}
				if file != firmware.file || next != firmware.next || firmware.class != "" && offer.ClassIdentifier() != firmware.class {
					t.Errorf("%s is told %q from %s with class %q, want %q from %s with %q", name, file, next, offer.ClassIdentifier(), firmware.file, firmware.next, firmware.class)
				}
			}
		})
	}
}

// offerTo asks until the server, which may just be starting, offers.
func offerTo(t *testing.T, machine *netnstest.NS, number byte, options map[uint8][]byte) *dhcpv4.DHCPv4 {
	t.Helper()
	conn := machine.ListenUDP("0.0.0.0:68")
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1), unix.BindToDevice(int(fd), "eth0"))
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	m := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, ClientHWAddr: net.HardwareAddr{0x52, 0x54, 0, 0, 1, number},
		TransactionID: dhcpv4.TransactionID{9, 9, 9, number}, Options: dhcpv4.Options{}}
	m.SetBroadcast()
	m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeDiscover))
	for code, value := range options {
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(code), value))
	}
	patience, stop := netnstest.Patience(t)
	defer stop()
	packet := make([]byte, 2048)
	for patience.Err() == nil {
		if _, err := conn.WriteToUDP(m.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 67}); err != nil {
			t.Fatal(err)
		}
		for conn.SetReadDeadline(time.Now().Add(time.Second)); ; {
			length, _, err := conn.ReadFromUDP(packet)
			if err != nil {
				break
			}
			if reply, err := dhcpv4.FromBytes(packet[:length]); err == nil && reply.TransactionID == m.TransactionID {
				return reply
			}
		}
	}
	t.Fatal("no offer")
	return nil
}

func TestForeignDHCPLines(t *testing.T) {
	server := netip.MustParseAddr("192.0.2.1")
	for _, kind := range ForeignServers() {
		lines, err := ForeignDHCP(kind, server, 7080)
		if err != nil || !strings.Contains(lines, "192.0.2.1") || strings.Contains(lines, "%!") {
			t.Errorf("%s: %v\n%s", kind, err, lines)
		}
	}
	if _, err := ForeignDHCP("novell", server, 7080); err == nil || !strings.Contains(err.Error(), "isc, kea, dnsmasq, windows, cisco") {
		t.Errorf("an unknown server: %v", err)
	}
	if _, err := ForeignDHCP("isc", netip.MustParseAddr("fd00::1"), 7080); err == nil {
		t.Error("an IPv6 address was taken")
	}
	// As tables 2-1 and 2-2 of PXE 2.1 have it.
	want := append([]byte{6, 1, 7, 8, 7, 0x80, 0, 1, 192, 0, 2, 1, 9, 11, 0x80, 0, 8}, "Coldrack"...)
	want = append(append(want, 10, 9, 0), append([]byte("Coldrack"), 255)...)
	if got := ciscoVendor(server); !bytes.Equal(got, want) {
		t.Errorf("option 43 is % x, want % x", got, want)
	}
	if lines, _ := ForeignDHCP("cisco", server, 7080); !strings.Contains(lines, " option 43 hex 0601.0708.0780.0001.c000.0201.090b.") {
		t.Errorf("%s", lines)
	}
	for _, text := range []string{fmt.Sprintf("http://%s:7080/boot.ipxe", server), "PXEClient:Arch:00007", "undionly.kpxe"} {
		if lines, _ := ForeignDHCP("windows", server, 7080); !strings.Contains(lines, text) {
			t.Errorf("no %s in\n%s", text, lines)
		}
	}
}

func TestFindingsOfTheRunningServer(t *testing.T) {
	subnet := func(name string, conditions ...metav1.Condition) v1alpha1.Subnet {
		return v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.SubnetSpec{DHCP: v1alpha1.DHCPProxy}, Status: v1alpha1.SubnetStatus{Conditions: conditions}}
	}
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}
	results := segments([]v1alpha1.Subnet{
		subnet("good", ready, metav1.Condition{Type: v1alpha1.ConditionARPProxy, Status: metav1.ConditionFalse}),
		subnet("ignored", ready, metav1.Condition{Type: v1alpha1.ConditionProxyIgnored, Status: metav1.ConditionTrue, Message: "x asked 3 times"}),
		subnet("unserved", metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Message: "no interface"}),
		subnet("shared", ready, metav1.Condition{Type: v1alpha1.ConditionOtherDHCPServer, Status: metav1.ConditionTrue, Message: "10.5.0.66"}),
	}, nil)
	var got []string
	for _, r := range results {
		got = append(got, fmt.Sprintf("%s %s: %s", r.State, r.Check, r.Found))
	}
	want := "ok subnet good: dhcp: proxy; nothing amiss\nwarn subnet ignored: x asked 3 times\nfail subnet unserved: no interface\nwarn subnet shared: OtherDHCPServer: 10.5.0.66"
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	if !strings.Contains(results[1].Do, "--foreign-dhcp") {
		t.Errorf("%+v", results[1])
	}
	if r := segments(nil, errors.New("no answer")); len(r) != 1 || r[0].State != Warn {
		t.Errorf("%+v", r)
	}
}
