package segment

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"coldrack.dev/test/netns"
)

var own = net.HardwareAddr{2, 0, 0, 0, 0, 1}

func TestARPComesBackAsItWas(t *testing.T) {
	p := arp{arpReply, own, netip.MustParseAddr("10.9.0.200"), broadcast, netip.MustParseAddr("10.9.0.9")}
	got, ok := parseARP(append(p.encode(), make([]byte, 18)...)) // Ethernet pads to 46 bytes
	if !ok || got.operation != p.operation || got.sender != p.sender || got.target != p.target || !bytes.Equal(got.senderHardware, own) || !bytes.Equal(got.targetHardware, broadcast) {
		t.Errorf("got %+v, %v", got, ok)
	}
	for name, b := range map[string][]byte{
		"cut off": p.encode()[:27], "nothing": nil,
		"of IPv6 over Ethernet": append([]byte{0, 1, 0x86, 0xdd, 6, 16}, p.encode()[6:]...),
	} {
		if _, ok := parseARP(b); ok {
			t.Errorf("%s: taken for ARP", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(gratuitous(netip.MustParseAddr("10.9.0.200"), own)[0])
	f.Add(append([]byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr("fd09::200").AsSlice()...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parseARP(b); ok && !bytes.Equal(p.encode(), b[:arpLen]) {
			t.Errorf("%x becomes %x", b, p.encode())
		}
		if a, ok := parseSolicitation(b); ok && (!a.Is6() || a.IsMulticast()) {
			t.Errorf("%x asks for %s", b, a)
		}
	})
}

func TestNeighbourDiscovery(t *testing.T) {
	a := netip.MustParseAddr("fd09::12:3456")
	if got := solicitedNode(a).String(); got != "ff02::1:ff12:3456" {
		t.Errorf("it is asked for in %s", got)
	}
	want := append(append([]byte{136, 0, 0, 0, 0x60, 0, 0, 0}, a.AsSlice()...), 2, 1, 2, 0, 0, 0, 0, 1)
	if got := advertisement(a, own, true); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

// What a host of the segment sees: an answer for what was set, none for what was not or is no more, and of another host's
// address news without asking.
func TestAHostOnTheSegmentFindsTheAddress(t *testing.T) {
	node, client := netns.New(t), netns.New(t)
	netns.Veth(node, "eth0", client, "eth0")
	for _, a := range []string{"10.9.0.1/24", "fd09::1/64"} {
		node.Run("ip", "addr", "add", a, "dev", "eth0", "nodad")
	}
	for _, a := range []string{"10.9.0.9/24", "fd09::9/64"} {
		client.Run("ip", "addr", "add", a, "dev", "eth0", "nodad")
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		// A question that nobody answers ends soon.
		client.Run("sh", "-c", "cd /proc/sys/net/"+family+"/neigh/eth0 && echo 50 >retrans_time_ms && echo 1 >mcast_solicit")
	}
	hardware := node.Interface("eth0").HardwareAddr.String()
	a := New(slog.New(slog.DiscardHandler), nil, Pace{Look: time.Hour})
	set := func(addresses ...string) {
		t.Helper()
		var list []netip.Addr
		for _, text := range addresses {
			list = append(list, netip.MustParseAddr(text))
		}
		// Links are opened by Set, in the namespace of its thread.
		if err := node.Do(func() error { a.Set(list); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, l := range a.links {
			l.close()
		}
	})
	neighbour := func(address string) string {
		return client.Run("ip", "neigh", "show", address)
	}
	await := func(address, want string) {
		t.Helper()
		ctx, cancel := netns.Patience(t)
		defer cancel()
		got := ""
		for ctx.Err() == nil {
			_ = client.Do(func() error {
				conn, err := net.Dial("udp", net.JoinHostPort(address, "9"))
				if err != nil {
					return err
				}
				defer conn.Close()
				_, err = conn.Write([]byte("x"))
				return err
			})
			time.Sleep(100 * time.Millisecond) // longer than a question is open
			if got = neighbour(address); bytes.Contains([]byte(got), []byte(want)) {
				return
			}
		}
		t.Fatalf("neighbour %s is %q, want %q", address, got, want)
	}
	set("10.9.0.200", "fd09::200")
	await("10.9.0.200", hardware)
	await("fd09::200", hardware)
	await("10.9.0.201", "FAILED")
	await("fd09::201", "FAILED")

	// Another host had them until now.
	for _, address := range []string{"10.9.0.201", "fd09::201"} {
		client.Run("ip", "neigh", "replace", address, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "stale")
	}
	set("10.9.0.201", "fd09::201")
	for _, address := range []string{"10.9.0.201", "fd09::201"} {
		ctx, cancel := netns.Patience(t)
		for ctx.Err() == nil && !bytes.Contains([]byte(neighbour(address)), []byte(hardware)) {
			time.Sleep(20 * time.Millisecond)
		}
		cancel()
		if got := neighbour(address); !bytes.Contains([]byte(got), []byte(hardware)) {
			t.Errorf("the client was not told that %s is here: %s", address, got)
		}
	}
	client.Run("ip", "neigh", "flush", "all")
	await("10.9.0.200", "FAILED")
	await("fd09::200", "FAILED")
}
