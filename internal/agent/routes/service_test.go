package routes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

func services(h *host) string {
	var list []string
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(h.ip("-o " + family + " route show proto 67")) {
			f := strings.Fields(line)
			show := f[0]
			for i := 1; i+1 < len(f); i++ {
				if f[i] == "dev" || f[i] == "src" || f[i] == "via" {
					show += " " + f[i] + " " + f[i+1]
				}
			}
			list = append(list, show)
		}
	}
	return strings.Join(list, ", ")
}

func (h *host) wantServices(want string) {
	h.t.Helper()
	if got := services(h); got != want {
		h.t.Fatalf("routes are %q, want %q", got, want)
	}
}

func both() []wire.ServiceRoute {
	return []wire.ServiceRoute{{To: "10.96.0.0/16", Source: "10.9.0.1"}, {To: "fd96::/112", Source: "fd09::1"}}
}

const bothSet = "10.96.0.0/16 dev eth0 src 10.9.0.1, fd96::/112 dev eth0 src fd09::1"

func TestServiceRoutesAreSetReplacedAndPurged(t *testing.T) {
	h := newHost(t)
	h.ip("addr add 10.9.0.200/24 dev eth0") // as a virtual IP
	if err := h.Set([]wire.NodeRoute{to("10.244.1.0/24", "10.9.0.2")}, both()); err != nil {
		t.Fatal(err)
	}
	h.wantServices("10.96.0.0/16 dev eth0 src 10.9.0.1, 10.244.1.0/24 via 10.9.0.2 dev eth0, fd96::/112 dev eth0 src fd09::1")
	seen := &count{}
	h.log = slog.New(seen)
	if err := h.Set([]wire.NodeRoute{to("10.244.1.0/24", "10.9.0.2")}, both()); err != nil || seen.n != 0 {
		t.Errorf("the same again: %v, %d changes were logged", err, seen.n)
	}
	if err := h.Set(nil, []wire.ServiceRoute{{To: "10.97.0.0/16", Source: "10.9.0.200"}}); err != nil {
		t.Fatal(err)
	}
	h.wantServices("10.97.0.0/16 dev eth0 src 10.9.0.200")
	if err := h.Set(nil, nil); err != nil {
		t.Fatal(err)
	}
	h.wantServices("")
}

// A route to the same network that an administrator or another network plugin has set stays, and goes first.
func TestServiceRoutesDisplaceNoOtherRoute(t *testing.T) {
	h := newHost(t)
	h.ip("route add 10.96.0.0/16 via 10.9.0.77")
	h.ip("-6 route add fd96::/112 via fd09::77")
	if err := h.Set(nil, both()); err != nil {
		t.Fatal(err)
	}
	h.wantServices(bothSet)
	for address, via := range map[string]string{"10.96.0.1": "10.9.0.77", "fd96::1": "fd09::77"} {
		if got := h.ip("route get " + address); !strings.Contains(got, "via "+via) {
			t.Errorf("%s is led by ours: %s", address, got)
		}
	}
}

func TestWhatTakesAServiceRouteAwayIsMended(t *testing.T) {
	for name, harm := range map[string][]string{
		"somebody deletes it":              {"route del 10.96.0.0/16", "-6 route del fd96::/112"},
		"the link goes down and comes up":  {"link set eth0 down", "link set eth0 up", "addr replace fd09::1/64 dev eth0 nodad"},
		"the addresses go and come back":   {"addr flush dev eth0", "addr add 10.9.0.1/24 dev eth0", "addr add fd09::1/64 dev eth0 nodad"},
		"the IPv6 address is on trial yet": {"addr del fd09::1/64 dev eth0", "addr add fd09::1/64 dev eth0"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			if err := h.Set(nil, both()); err != nil {
				t.Fatal(err)
			}
			h.running(func() {
				for _, args := range harm {
					h.ip(args)
				}
				h.eventuallyServices(bothSet)
			})
			h.wantServices(bothSet) // they outlive the keeper
		})
	}
}

// The address moves, for example into a bond or a bridge that is made later.
func TestServiceRoutesFollowTheAddress(t *testing.T) {
	h := newHost(t)
	h.ip("link add bond0 type bridge")
	h.ip("link set bond0 up")
	if err := h.Set(nil, both()); err != nil {
		t.Fatal(err)
	}
	h.running(func() {
		h.ip("addr flush dev eth0")
		h.ip("addr add 10.9.0.1/24 dev bond0")
		h.ip("addr add fd09::1/64 dev bond0 nodad")
		h.eventuallyServices(strings.ReplaceAll(bothSet, "eth0", "bond0"))
	})
}

func TestAServiceRouteWithoutItsAddressIsToldAndComesLater(t *testing.T) {
	h := newHost(t)
	err := h.Set([]wire.NodeRoute{to("10.244.1.0/24", "10.9.0.2")}, []wire.ServiceRoute{{To: "10.96.0.0/16", Source: "10.9.0.5"}})
	if err == nil || !strings.Contains(err.Error(), "no interface of this node has its address 10.9.0.5") {
		t.Errorf("the error does not help: %v", err)
	}
	h.wantServices("10.244.1.0/24 via 10.9.0.2 dev eth0")
	h.running(func() {
		h.ip("addr add 10.9.0.5/24 dev eth0")
		h.eventuallyServices("10.96.0.0/16 dev eth0 src 10.9.0.5, 10.244.1.0/24 via 10.9.0.2 dev eth0")
	})
	for name, r := range map[string]wire.ServiceRoute{
		"a prefix that is none":   {To: "10.96.0.0", Source: "10.9.0.1"},
		"a source that is none":   {To: "10.96.0.0/16", Source: "node-1"},
		"families that are mixed": {To: "10.96.0.0/16", Source: "fd09::1"},
	} {
		if err := h.Set(nil, []wire.ServiceRoute{r}); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// running runs the keeper while f does something.
func (h *host) running(f func()) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			h.t.Error(err)
		}
	}()
	f()
}

func (h *host) eventuallyServices(want string) {
	h.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if services(h) == want {
			return
		}
	}
	h.wantServices(want)
}

// proxyRules are what kube-proxy in mode nftables has for one service with one endpoint: destination NAT where packets of
// this node leave it, and masquerading of what does not come from a pod.
const proxyRules = `
table FAMILY kube-proxy {
	map service-ips {
		type ADDRESS . inet_proto . inet_service : verdict
		elements = { SERVICE . tcp . 443 : goto service-api, SERVICE . udp . 53 : goto service-dns }
	}
	chain service-api {
		FAMILY daddr SERVICE tcp dport 443 FAMILY saddr != PODS jump mark-for-masquerade
		meta l4proto tcp dnat to API
	}
	chain service-dns {
		FAMILY daddr SERVICE udp dport 53 FAMILY saddr != PODS jump mark-for-masquerade
		meta l4proto udp dnat to DNS
	}
	chain services {
		FAMILY daddr . meta l4proto . th dport vmap @service-ips
	}
	chain mark-for-masquerade {
		mark set mark or 0x4000
	}
	chain masquerading {
		mark and 0x4000 == 0 return
		mark set mark xor 0x4000
		masquerade fully-random
	}
	chain nat-prerouting {
		type nat hook prerouting priority -100;
		jump services
	}
	chain nat-output {
		type nat hook output priority -100;
		jump services
	}
	chain nat-postrouting {
		type nat hook postrouting priority 100;
		jump masquerading
	}
}
`

// network is one of the two IP families of the test's network.
type network struct {
	family, node, master, router, world, service, unserved, services, pod, pods, ping string
	bits                                                                              int
}

func networks() map[string]network {
	return map[string]network{
		"IPv4": {"ip", "10.9.0.1", "10.9.0.2", "10.9.0.254", "203.0.113.9", "10.96.0.1", "10.96.7.7", "10.96.0.0/16", "10.244.1.10", "10.244.0.0/16", "-4", 24},
		"IPv6": {"ip6", "fd09::1", "fd09::2", "fd09::ffff", "2001:db8::9", "fd96::1", "fd96::77", "fd96::/112", "fd44:1::10", "fd44::/32", "-6", 64},
	}
}

// TestTheNodesOwnNetworkReachesServices has a node whose own processes ask a service's address: by TCP an API server on
// another node, by UDP a pod there. It is so with and without a default route, in both IP families, with strict filtering of
// sources, and what was reachable beyond the router stays so.
func TestTheNodesOwnNetworkReachesServices(t *testing.T) {
	require.Need(t, "netns", "ip", "nft")
	for family, n := range networks() {
		for _, gateway := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, default route %v", family, gateway), func(t *testing.T) { testServiceTraffic(t, n, gateway) })
		}
	}
}

func testServiceTraffic(t *testing.T, n network, gateway bool) {
	lan, node, master := netns.New(t), netns.New(t), netns.New(t)
	lan.Bridge("br0")
	lan.Plug("br0", "port1", node, "eth0")
	lan.Plug("br0", "port2", master, "eth0")
	address := func(ns *netns.NS, link, a string, bits int) {
		args := []string{"ip", "addr", "add", fmt.Sprintf("%s/%d", a, bits), "dev", link}
		if n.family == "ip6" {
			args = append(args, "nodad")
		}
		ns.Run(args...)
	}
	address(node, "eth0", n.node, n.bits)
	address(master, "eth0", n.master, n.bits)
	address(master, "lo", n.pod, netip.MustParseAddr(n.pod).BitLen())
	address(lan, "br0", n.router, n.bits)
	address(lan, "lo", n.world, netip.MustParseAddr(n.world).BitLen())
	// An interface that comes first, as a management network's: its address is not the node's.
	node.Run("ip", "link", "add", "aaa0", "type", "bridge")
	node.Run("ip", "link", "set", "aaa0", "up")
	address(node, "aaa0", map[string]string{"ip": "192.0.2.1", "ip6": "2001:db8:1::1"}[n.family], n.bits)
	for _, filter := range []string{"all", "default", "eth0"} {
		check(t, node.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/"+filter+"/rp_filter", []byte("1"), 0) }))
	}
	if gateway {
		node.Run("ip", n.ping, "route", "add", "default", "via", n.router)
	}
	rules := strings.NewReplacer("FAMILY", n.family, "ADDRESS", map[string]string{"ip": "ipv4_addr", "ip6": "ipv6_addr"}[n.family],
		"SERVICE", n.service, "PODS", n.pods, "API", netip.AddrPortFrom(netip.MustParseAddr(n.master), 6443).String(),
		"DNS", netip.AddrPortFrom(netip.MustParseAddr(n.pod), 5353).String()).Replace(proxyRules)
	file := filepath.Join(t.TempDir(), "kube-proxy.nft")
	check(t, os.WriteFile(file, []byte(rules), 0o600))
	node.Run("nft", "-f", file)

	seen := echoTCP(t, master, netip.AddrPortFrom(netip.MustParseAddr(n.master), 6443))
	echoTCP(t, lan, netip.AddrPortFrom(netip.MustParseAddr(n.world), 80))
	echoUDP(t, master, netip.AddrPortFrom(netip.MustParseAddr(n.pod), 5353))
	api := netip.AddrPortFrom(netip.MustParseAddr(n.service), 443)

	// Before: without a default route there is no way at all, so no rule of the proxy ever sees the packet.
	if _, err := ask(node, "tcp", api); !gateway && !errors.Is(err, unix.ENETUNREACH) {
		t.Fatalf("without any route: %v, want network is unreachable", err)
	}
	keeper := keeperIn(t, node)
	check(t, keeper.Set([]wire.NodeRoute{to(podNetwork(n), n.master)}, []wire.ServiceRoute{{To: n.services, Source: n.node}}))
	if gateway { // what answered before is not of interest
		drain(seen)
	}
	if answer, err := ask(node, "tcp", api); err != nil || answer != "tcp" {
		t.Errorf("TCP to the service: %q, %v", answer, err)
	} else if from := <-seen; from != n.node {
		t.Errorf("the API server sees %s, want the node's address %s", from, n.node)
	}
	if answer, err := ask(node, "udp", netip.AddrPortFrom(netip.MustParseAddr(n.service), 53)); err != nil || answer != "udp" {
		t.Errorf("UDP to the service: %q, %v", answer, err)
	}
	// What is no service ends with an error instead of going to the router.
	if _, err := ask(node, "tcp", netip.AddrPortFrom(netip.MustParseAddr(n.unserved), 443)); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("an address that no service has: %v, want no route to host", err)
	}
	answer, err := ask(node, "tcp", netip.AddrPortFrom(netip.MustParseAddr(n.world), 80))
	switch {
	case gateway && (err != nil || answer != "tcp"):
		t.Errorf("the world beyond the router: %q, %v", answer, err)
	case !gateway && !errors.Is(err, unix.ENETUNREACH):
		t.Errorf("the world without a router: %v, want network is unreachable", err)
	}
	if gateway {
		if got := node.Run("ip", n.ping, "route", "show", "default"); !strings.Contains(got, n.router) {
			t.Errorf("the default route is %q", got)
		}
	}
}

func podNetwork(n network) string {
	return netip.PrefixFrom(netip.MustParseAddr(n.pod), map[string]int{"ip": 24, "ip6": 64}[n.family]).Masked().String()
}

func keeperIn(t *testing.T, ns *netns.NS) *Keeper {
	t.Helper()
	var keeper *Keeper
	check(t, ns.Do(func() (err error) {
		keeper, err = New(slog.New(slog.DiscardHandler))
		return err
	}))
	t.Cleanup(keeper.Close)
	return keeper
}

// ask sends a word and returns the answer.
func ask(ns *netns.NS, protocol string, to netip.AddrPort) (string, error) {
	var conn net.Conn
	err := ns.Do(func() (err error) {
		conn, err = net.DialTimeout(protocol, to.String(), 20*time.Second)
		return err
	})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, protocol); err != nil {
		return "", err
	}
	answer := make([]byte, 16)
	n, err := conn.Read(answer)
	return string(answer[:n]), err
}

// echoTCP answers with what it is told, and says from where each connection comes.
func echoTCP(t *testing.T, ns *netns.NS, at netip.AddrPort) <-chan string {
	t.Helper()
	var listener net.Listener
	check(t, ns.Do(func() (err error) {
		listener, err = net.Listen("tcp", at.String())
		return err
	}))
	t.Cleanup(func() { listener.Close() })
	seen := make(chan string, 16)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			seen <- conn.RemoteAddr().(*net.TCPAddr).IP.String()
			_, _ = io.CopyN(conn, conn, int64(len("tcp")))
			conn.Close()
		}
	}()
	return seen
}

func echoUDP(t *testing.T, ns *netns.NS, at netip.AddrPort) {
	t.Helper()
	var conn net.PacketConn
	check(t, ns.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", at.String())
		return err
	}))
	t.Cleanup(func() { conn.Close() })
	go func() {
		packet := make([]byte, 64)
		for {
			n, from, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(packet[:n], from)
		}
	}()
}

func drain(seen <-chan string) {
	for {
		select {
		case <-seen:
		default:
			return
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
