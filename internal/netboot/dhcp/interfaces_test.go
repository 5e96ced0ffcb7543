package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"coldrack.dev/internal/netboot/netif"
	netnstest "coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

func TestHowASubnetIsServed(t *testing.T) {
	ethernet := func(name string, up bool, addresses ...string) netif.Interface {
		i := netif.Interface{Name: name, Up: up, Ethernet: true}
		for _, a := range addresses {
			i.Addresses = append(i.Addresses, netip.MustParsePrefix(a))
		}
		return i
	}
	lo := netif.Interface{Name: "lo", Up: true, Loopback: true, Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}}
	tunnel := netif.Interface{Name: "wg0", Up: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")}}
	management := ethernet("eth0", true, "203.0.113.5/24", "fd00::5/64")
	served := map[string][]netip.Addr{"eth0": addrs("203.0.113.5")}
	off := rack()
	off.Mode = ModeOff
	const nobody = "no interface that is served has an address in 192.0.2.0/24, and no relay has asked for a client in it: "
	many := []netif.Interface{lo, management}
	for i := range 20 {
		many = append(many, ethernet(fmt.Sprint("veth", i), true))
	}
	for name, test := range map[string]struct {
		subnet    Subnet
		served    map[string][]netip.Addr
		relaySeen bool
		wanted    []string
		present   []netif.Interface
		failed    map[string]error
		want      string // interfaces, or the problem
	}{
		"by the interface with an address in it": {rack(), map[string][]netip.Addr{"eth0": addrs("203.0.113.5"), "eth1": addrs("192.0.2.1")}, false, nil, nil, nil, "[eth1]"},
		"by two interfaces":                      {rack(), map[string][]netip.Addr{"b": addrs("192.0.2.2"), "a": addrs("192.0.2.1")}, false, nil, nil, nil, "[a b]"},
		"switched off":                           {off, nil, false, nil, nil, nil, "[]"},
		"by a relay that is configured":          {remote(), served, false, nil, nil, nil, "[]"},
		"by a relay that has asked":              {rack(), served, true, nil, nil, nil, "[]"},
		"by a relay that cannot reach us": {remote(), nil, false, nil, []netif.Interface{lo, ethernet("eth0", true)}, nil,
			"no interface is served by which a relay could reach this server: eth0 has no IPv4 address"},
		"only the management network": {rack(), served, false, nil, []netif.Interface{lo, management, ethernet("eth1", false), ethernet("eth2", true), tunnel}, nil,
			nobody + "eth0 has 203.0.113.5; wg0 is no Ethernet interface; eth1 is down; eth2 has no IPv4 address"},
		"the address is there, the interface is down": {rack(), served, false, nil, []netif.Interface{lo, management, ethernet("eth1", false, "192.0.2.1/24")}, nil,
			nobody + "eth1 with 192.0.2.1 is down; eth0 has 203.0.113.5"},
		"the address is on an interface that was not asked for": {rack(), served, false, []string{"eth0", "eth9"}, []netif.Interface{lo, management, ethernet("eth1", true, "192.0.2.1/24"), ethernet("eth2", true)}, nil,
			nobody + "eth1 with 192.0.2.1 is not one of the interfaces to serve (eth0, eth9); eth9 does not exist; eth0 has 203.0.113.5"},
		"another program has the port": {rack(), nil, false, nil, []netif.Interface{ethernet("eth1", true, "192.0.2.1/24")}, map[string]error{"eth1": errors.New("port 67 is taken")},
			nobody + "eth1 with 192.0.2.1 cannot be served: port 67 is taken"},
		"many interfaces": {rack(), served, false, nil, many, nil,
			nobody + "eth0 has 203.0.113.5; veth0 has no IPv4 address; veth1 has no IPv4 address; veth2 has no IPv4 address; veth3 has no IPv4 address; veth4 has no IPv4 address; veth5 has no IPv4 address; veth6 has no IPv4 address; and 13 more"},
		"no interface at all": {rack(), nil, false, nil, []netif.Interface{lo}, nil, nobody + "there is no network interface but loopback"},
	} {
		t.Run(name, func(t *testing.T) {
			now := service(test.subnet, test.relaySeen, test.served, test.wanted, test.present, test.failed)
			got := now.Problem
			if got == "" {
				got = fmt.Sprint(now.Interfaces)
			}
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// TestInterfacesThatComeLater: a server that begins with no interface it could serve.
func TestInterfacesThatComeLater(t *testing.T) {
	require.Need(t, "netns", "udhcpc")
	n := &network{t: t, server: netnstest.New(t), backend: newLockedBackend(), dir: t.TempDir()}
	beside := make(chan string, 100)
	n.beside = func(ctx context.Context, device string) {
		beside <- "+" + device
		<-ctx.Done()
		beside <- "-" + device
	}
	rack, other := rack(), remote()
	other.Relays = nil
	n.serve(Config{Subnets: []Subnet{rack, other}}) // whichever interface fits
	n.service("no interface", "rack", unserved("there is no network interface but loopback"))

	// Interfaces come with the server running: first the management network's, then one without an address.
	n.server.Bridge("mgmt0")
	n.server.Address("mgmt0", "203.0.113.5/24")
	n.service("the management network", "rack", unserved("mgmt0 has 203.0.113.5"))
	n.server.Run("ip", "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0")
	n.service("an interface that is down", "rack", unserved("br0 is down"))
	n.server.Address("br0", "192.0.2.1/24")
	n.service("the address before the link", "rack", unserved("br0 with 192.0.2.1 is down"))
	n.server.Run("ip", "link", "set", "br0", "up")
	n.service("the link", "rack", by("br0"))
	machine := n.machine(1)
	if got, err := udhcpc(t, machine); err != nil || got["ip"] != "192.0.2.100" || got["serverid"] != "192.0.2.1" {
		t.Errorf("after the link has come: %v, %v", got, err)
	}

	// A second interface for the second subnet, its link first.
	n.server.Bridge("br1")
	n.service("a link without an address", "remote", unserved("br1 has no IPv4 address"))
	second := netnstest.New(t)
	n.server.Plug("br1", "other", second, "eth0")
	n.server.Address("br1", "198.51.100.1/24")
	n.service("the address", "remote", by("br1"))
	if got, err := udhcpc(t, second); err != nil || got["ip"] != "198.51.100.10" || got["serverid"] != "198.51.100.1" {
		t.Errorf("after the address has come: %v, %v", got, err)
	}
	if got, err := udhcpc(t, machine); err != nil || got["serverid"] != "192.0.2.1" {
		t.Errorf("the first subnet beside the second: %v, %v", got, err)
	}

	// The address changes, within the subnet.
	n.server.Run("ip", "addr", "del", "192.0.2.1/24", "dev", "br0")
	n.service("the address has gone", "rack", unserved("br0 has no IPv4 address"))
	n.server.Address("br0", "192.0.2.2/24")
	n.service("another address", "rack", by("br0"))
	if got, err := udhcpc(t, machine); err != nil || got["ip"] != "192.0.2.100" || got["serverid"] != "192.0.2.2" {
		t.Errorf("after the address has changed: %v, %v", got, err)
	}
	// And without a moment in which there is none: the kernel would take a second address of the network away with the first.
	n.server.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/br0/promote_secondaries")
	n.server.Address("br0", "192.0.2.3/24")
	n.server.Run("ip", "addr", "del", "192.0.2.2/24", "dev", "br0")
	eventually(t, "the new address is told", func() error {
		got, err := udhcpc(t, machine)
		if err == nil && got["serverid"] != "192.0.2.3" {
			err = fmt.Errorf("server %s", got["serverid"])
		}
		return err
	})

	// The interface is deleted and made anew.
	n.server.Run("ip", "link", "del", "br0")
	n.service("the interface has gone", "rack", unserved("br1 has 198.51.100.1"))
	n.server.Bridge("br0")
	n.server.Address("br0", "192.0.2.1/24")
	n.server.Run("ip", "link", "set", "port1", "master", "br0")
	n.service("the interface is back", "rack", by("br0"))
	eventually(t, "a lease on the interface that was made anew", func() error {
		got, err := udhcpc(t, machine)
		if err == nil && got["serverid"] != "192.0.2.1" {
			err = fmt.Errorf("server %s", got["serverid"])
		}
		return err
	})

	n.stop()
	close(beside)
	runs := map[string]int{}
	for what := range beside {
		runs[what]++
	}
	for _, device := range []string{"br0", "br1", "mgmt0"} {
		if started, ended := runs["+"+device], runs["-"+device]; started == 0 || started != ended {
			t.Errorf("beside %s: started %d times, ended %d times", device, started, ended)
		}
	}
	if runs["+br0"] < 3 {
		t.Errorf("br0 was served %d times, want one more after its address had gone and after it was deleted", runs["+br0"])
	}
}

// eventually waits until what returns nil. It bounds what never comes; what itself takes time.
func eventually(t testing.TB, name string, what func() error) {
	t.Helper()
	patience, stop := netnstest.Patience(t)
	defer stop()
	for {
		err := what()
		if err == nil {
			return
		}
		if patience.Err() != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

// TestAnInterfaceWhosePortIsTakenIsServedOnceItIsFree: found by itself, it must not keep the others from being served.
func TestAnInterfaceWhosePortIsTakenIsServedOnceItIsFree(t *testing.T) {
	n := newNetwork(t)
	var blocker interface{ Close() error }
	err := n.server.Do(func() (err error) {
		blocker, err = listenOn("br0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	config := n.config()
	config.Interfaces = nil
	n.serve(config)
	n.service("the port is taken", "rack", unserved("br0 with 192.0.2.1 cannot be served: another DHCP server runs on this machine"))
	blocker.Close()
	n.service("the port is free", "rack", by("br0"))
}

func TestARelaySaysThatItsSubnetIsServed(t *testing.T) {
	s := newStage(t, rack(), Subnet{Name: "far", CIDR: netip.MustParsePrefix("10.7.0.0/24"), Pool: Range{From: addr("10.7.0.10"), To: addr("10.7.0.20")}, Mode: ModeServer})
	far := netip.MustParsePrefix("10.7.0.0/24")
	var changes sync.Map
	s.engine.changed = func() { changes.Store(s.engine.relayed(far), true) }
	s.lease(1, "192.0.2.100")
	if s.engine.relayed(far) {
		t.Error("relayed before a relay has asked")
	}
	s.expect("a relay", "offer 10.7.0.10", "offered 10.7.0.10", message(discover, 2, via("10.7.0.1")), "192.0.2.1")
	if _, told := changes.Load(true); !told || !s.engine.relayed(far) || s.engine.relayed(rack().CIDR) {
		t.Errorf("told %v, far %v, rack %v", told, s.engine.relayed(far), s.engine.relayed(rack().CIDR))
	}
}

func TestTheReasonNamesWhatToDoSomethingAbout(t *testing.T) {
	text := explainUnserved(netip.MustParsePrefix("192.0.2.0/24"), []string{"eth5"}, nil, nil)
	if !strings.Contains(text, "eth5 does not exist") {
		t.Error(text)
	}
}
