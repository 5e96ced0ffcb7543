package radv

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/ipv6"

	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

func TestParseSolicitation(t *testing.T) {
	header := []byte{133, 0, 0, 0, 0, 0, 0, 0}
	address := []byte{1, 1, 0x52, 0x54, 0, 0xcb, 1, 0}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	tests := []struct {
		name   string
		packet []byte
		want   string
	}{
		{"as iPXE sends it", join(header, address), "52:54:00:cb:01:00"},
		{"with another option before the address", join(header, []byte{14, 1, 0, 0, 0, 0, 0, 0}, address), "52:54:00:cb:01:00"},
		{"without an address nobody can be recognised", header, "nobody"},
		{"an option of length zero would never end", join(header, []byte{1, 0, 0, 0, 0, 0, 0, 0}), ""},
		{"an option that is cut short", join(header, address[:5]), ""},
		{"an advertisement is none", join([]byte{134}, header[1:], address), ""},
		{"a code that is not zero", join([]byte{133, 1}, header[2:], address), ""},
		{"nothing", nil, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			mac, ok := parseSolicitation(test.packet)
			got := mac.String()
			if ok && mac == nil {
				got = "nobody"
			}
			if ok != (test.want != "") || got != test.want {
				t.Errorf("got %v, %v, want %q", mac, ok, test.want)
			}
		})
	}
}

func FuzzParseSolicitation(f *testing.F) {
	f.Add([]byte{133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0x52, 0x54, 0, 0xcb, 1, 0})
	f.Fuzz(func(t *testing.T, packet []byte) {
		if mac, ok := parseSolicitation(packet); ok && mac != nil && len(mac) != 6 {
			t.Errorf("a MAC of %d bytes", len(mac))
		}
	})
}

// TestServe lets a client that is not wanted ask first: the one answer that comes must be to the second.
func TestServe(t *testing.T) {
	require.Need(t, "netns")
	server, client := netns.New(t), netns.New(t)
	netns.Veth(server, "rack0", client, "nic0")
	server.Run("ip", "-6", "addr", "add", "fe80::1/64", "dev", "rack0", "nodad")
	client.Run("ip", "-6", "addr", "add", "fe80::2/64", "dev", "nic0", "nodad")

	const wanted, stranger = "52:54:00:00:00:01", "52:54:00:00:00:02"
	var refused atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, Options{Interface: "rack0", Inside: server.Do, Wanted: func(mac net.HardwareAddr) bool {
			if mac.String() == stranger {
				refused.Add(1)
			}
			return mac.String() == wanted
		}})
	}()

	var conn *ipv6.PacketConn
	link := client.Interface("nic0")
	if err := client.Do(func() error {
		raw, err := net.ListenPacket("ip6:ipv6-icmp", "fe80::2%nic0")
		if err != nil {
			raw, err = net.ListenPacket("ip6:ipv6-icmp", "::")
		}
		if err != nil {
			return err
		}
		conn = ipv6.NewPacketConn(raw)
		var filter ipv6.ICMPFilter
		filter.SetAll(true)
		filter.Accept(ipv6.ICMPTypeRouterAdvertisement)
		return conn.SetICMPFilter(&filter)
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(text string) {
		mac, err := net.ParseMAC(text)
		if err != nil {
			t.Fatal(err)
		}
		packet := append([]byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0, optionSourceLinkLayer, 1}, mac...)
		control := &ipv6.ControlMessage{HopLimit: hopLimit, IfIndex: link.Index}
		if _, err := conn.WriteTo(packet, control, &net.IPAddr{IP: allRouters}); err != nil {
			t.Fatal(err)
		}
	}
	// The server's socket may not be open yet: clients repeat themselves, as they do in the field.
	for deadline := time.Now().Add(2 * time.Minute); refused.Load() == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the solicitation did not arrive")
		}
		ask(stranger)
	}
	ask(wanted)
	answer := make([]byte, 1500)
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	n, _, from, err := conn.ReadFrom(answer)
	if err != nil {
		t.Fatalf("no advertisement came: %v", err)
	}
	if from.(*net.IPAddr).IP.String() != "fe80::1" || n != len(advertisement) || !bytes.Equal(answer[4:n], advertisement[4:]) {
		t.Errorf("from %s came %x, want an advertisement from fe80::1 that offers nothing", from, answer[:n])
	}
	if err := conn.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if n, _, _, err := conn.ReadFrom(answer); err == nil {
		t.Errorf("a second answer came: %x", answer[:n])
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The kernel of a host that asks learns which network is on the link, and makes neither an address nor a route of it.
func TestAHostWhereDHCPv6GivesTheAddresses(t *testing.T) {
	require.Need(t, "netns")
	server, client := netns.New(t), netns.New(t)
	client.Run("sh", "-c", "cd /proc/sys/net/ipv6/conf/default && echo 0 >accept_dad && echo 0 >router_solicitation_delay && echo 1 >router_solicitation_interval && echo -1 >router_solicitations")
	netns.Veth(server, "rack0", client, "nic0")
	server.Run("ip", "-6", "addr", "add", "fe80::1/64", "dev", "rack0", "nodad")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, Options{Interface: "rack0", Inside: server.Do, Wanted: func(net.HardwareAddr) bool { return false },
			Managed: func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("fd00:1::/64")} }})
	}()
	var routes string
	for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(routes, "fd00:1::/64 "); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the routes are %s", routes)
		}
		routes = client.Run("ip", "-6", "route", "show", "dev", "nic0")
	}
	if strings.Contains(routes, "default") {
		t.Errorf("there is a default route: %s", routes)
	}
	if addresses := client.Run("ip", "-6", "addr", "show", "dev", "nic0"); strings.Contains(addresses, "fd00:1:") {
		t.Errorf("there is an address: %s", addresses)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestManaged(t *testing.T) {
	want := []byte{134, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		3, 4, 64, 0x80, 0, 0x27, 0x8d, 0, 0, 0x27, 0x8d, 0, 0, 0, 0, 0, 0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if got := managed([]netip.Prefix{netip.MustParsePrefix("fd00:1::5/64")}); !bytes.Equal(got, want) {
		t.Errorf("% x", got)
	}
	if got := managed(make([]netip.Prefix, 100)[:0]); len(got) != 16 {
		t.Errorf("% x", got)
	}
	many := make([]netip.Prefix, 100)
	for i := range many {
		many[i] = netip.MustParsePrefix("fd00:1::/64")
	}
	if got := managed(many); len(got) > 1240 {
		t.Errorf("%d bytes", len(got))
	}
}
