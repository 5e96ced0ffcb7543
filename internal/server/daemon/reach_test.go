package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/netboot/netif"
	"coldrack.dev/internal/server/machineapi"
	"coldrack.dev/test/netns"
)

// testReach has no interfaces and no routes.
func testReach(t testing.TB, configured string) *reach {
	t.Helper()
	cfg := testConfig(t)
	check(t, os.MkdirAll(cfg.DataDir, 0o700))
	cfg.BootAddress = configured
	r, err := newReach(cfg, func(fn func() error) error { return fn() }, discard())
	check(t, err)
	r.present = nil
	r.route = func(netip.Addr) (netip.Addr, error) { return netip.Addr{}, errors.New("no route") }
	return r
}

func withAddresses(name string, addresses ...string) netif.Interface {
	i := netif.Interface{Name: name, Up: true, Ethernet: true}
	for _, a := range addresses {
		i.Addresses = append(i.Addresses, netip.MustParsePrefix(a))
	}
	return i
}

func TestTheAddressOfASubnet(t *testing.T) {
	rack := netip.MustParsePrefix("10.20.0.0/24")
	management, first, second := withAddresses("eth0", "192.0.2.5/24"), withAddresses("eth1", "10.20.0.2/24", "10.20.0.3/24"), withAddresses("eth2", "10.20.0.4/24")
	for name, test := range map[string]struct {
		known      string
		interfaces []string
		present    []netif.Interface
		want       string
	}{
		"not the management network's, though that comes first": {"", nil, []netif.Interface{management, first}, "10.20.0.2"},
		"none":                                      {"", nil, []netif.Interface{management}, "invalid IP"},
		"the known one, as long as it is there":     {"10.20.0.3", nil, []netif.Interface{first, second}, "10.20.0.3"},
		"another one when it has gone":              {"10.20.0.9", nil, []netif.Interface{first, second}, "10.20.0.2"},
		"that of the interface that is named first": {"", []string{"eth2", "eth1"}, []netif.Interface{first, second}, "10.20.0.4"},
		"none of an interface that is not named":    {"", []string{"eth0"}, []netif.Interface{management, first}, "invalid IP"},
		"not a known one on such an interface":      {"10.20.0.3", []string{"eth2"}, []netif.Interface{first, second}, "10.20.0.4"},
	} {
		t.Run(name, func(t *testing.T) {
			var known netip.Addr
			if test.known != "" {
				known = netip.MustParseAddr(test.known)
			}
			if got := ownAddress(rack, known, test.interfaces, test.present); got.String() != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestWhatAMachineIsToldByTheWayItCame(t *testing.T) {
	a := netip.MustParseAddr
	for name, test := range map[string]struct{ configured, local, remote, want string }{
		"the address it came to":                                     {"", "10.20.0.2", "10.20.0.9", "10.20.0.2"},
		"the configured one, from the same subnet":                   {"10.20.0.254", "10.20.0.2", "10.20.0.9", "10.20.0.254"},
		"not the configured one of another subnet":                   {"10.20.0.254", "10.30.0.2", "10.30.0.9", "10.30.0.2"},
		"the configured one, from behind a router":                   {"10.20.0.254", "10.20.0.2", "172.16.0.9", "10.20.0.254"},
		"the configured one, as the address it came to is no Subnet": {"10.20.0.254", "192.0.2.5", "10.30.0.9", "10.20.0.254"},
	} {
		t.Run(name, func(t *testing.T) {
			r := testReach(t, test.configured)
			r.setSubnets([]netip.Prefix{netip.MustParsePrefix("10.20.0.0/24"), netip.MustParsePrefix("10.30.0.0/24")})
			if got := r.connection(a(test.local), a(test.remote)); got != a(test.want) {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// TestFilesOnNodesNameTheAddressInTheirSubnet follows one server over a restart during which an interface is missing.
func TestFilesOnNodesNameTheAddressInTheirSubnet(t *testing.T) {
	rack, other, far := netip.MustParsePrefix("10.20.0.0/24"), netip.MustParsePrefix("10.30.0.0/24"), netip.MustParsePrefix("10.40.0.0/24")
	r := testReach(t, "")
	want := func(what, node string, subnet netip.Prefix, want string) {
		t.Helper()
		got, err := r.node(netip.MustParseAddr(node), subnet)
		if text := got.String(); err != nil && want != "error" || err == nil && text != want {
			t.Errorf("%s: got %s, %v, want %s", what, got, err, want)
		}
	}
	want("before anything is known", "10.20.0.9", rack, "error")
	r.setSubnets([]netip.Prefix{rack, other})
	r.present = []netif.Interface{withAddresses("eth0", "192.0.2.5/24"), withAddresses("eth1", "10.20.0.2/24"), withAddresses("eth2", "10.30.0.2/24")}
	want("rack", "10.20.0.9", rack, "10.20.0.2")
	want("the other subnet", "10.30.0.9", other, "10.30.0.2")
	r.route = func(netip.Addr) (netip.Addr, error) { return netip.MustParseAddr("192.0.2.5"), nil }
	want("behind a relay: as the kernel goes there", "10.40.0.9", far, "192.0.2.5")

	again := &reach{file: r.file, log: discard(), route: r.route, known: map[netip.Prefix]netip.Addr{}, changed: make(chan struct{})}
	content, err := os.ReadFile(r.file)
	check(t, err)
	check(t, json.Unmarshal(content, &again.known))
	r = again
	r.present = []netif.Interface{withAddresses("eth0", "192.0.2.5/24")}
	want("after a restart without the link", "10.20.0.9", rack, "10.20.0.2")
	r.present = append(r.present, withAddresses("eth1", "10.20.0.7/24"))
	want("the address has changed", "10.20.0.9", rack, "10.20.0.7")

	broken := testConfig(t)
	check(t, os.MkdirAll(broken.DataDir, 0o700))
	check(t, os.WriteFile(filepath.Join(broken.DataDir, "addresses.json"), []byte("{"), 0o600))
	if _, err := newReach(broken, func(fn func() error) error { return fn() }, discard()); err == nil || !strings.Contains(err.Error(), "addresses.json") {
		t.Errorf("a broken file: %v", err)
	}
}

// leaseScript is for udhcpc: it prints next server and boot file.
func leaseScript(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "script")
	check(t, os.WriteFile(path, []byte("#!/bin/sh\n[ \"$1\" = bound ] && echo LEASE $siaddr $boot_file\nexit 0\n"), 0o755))
	return path
}

// TestTwoSubnetsOnTwoInterfaces runs the boot services beside a management network that comes first, with a second rack whose
// interface comes while they run: each machine is told the address in its own Subnet, in everything.
func TestTwoSubnetsOnTwoInterfaces(t *testing.T) {
	ns, first, second := netns.New(t), netns.New(t), netns.New(t)
	ns.Run("ip", "link", "add", "mgmt0", "type", "bridge")
	ns.Run("ip", "link", "set", "mgmt0", "up")
	ns.Address("mgmt0", "192.0.2.5/24")
	netns.Veth(ns, "rack0", first, "eth0")
	ns.Address("rack0", "10.20.0.2/24")
	first.Address("eth0", "10.20.0.9/24")

	cfg := testConfig(t)
	cfg.NoBoot, cfg.BootNetns = false, ns.Path()
	path, keyPath := sampleBundle(t)
	cfg.TrustedKeys = []string{keyPath}
	log := &logText{}
	s := newBootServer(t, cfg, slog.New(slog.NewTextHandler(log, nil)), path)
	s.fleet.MarkSynced()
	sink := s.startBoot(t, machineapi.NewNonces(nil))
	subnet := func(name, cidr, pool string) v1alpha1.Subnet {
		return v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.SubnetSpec{CIDR: cidr, Discovery: pool, DHCP: v1alpha1.DHCPServer}}
	}
	sink.SetSubnets([]v1alpha1.Subnet{subnet("one", "10.20.0.0/24", "10.20.0.100-10.20.0.110"), subnet("two", "10.30.0.0/24", "10.30.0.100-10.30.0.110")})

	script := func(machine *netns.NS, at string) (string, error) {
		client := http.Client{Timeout: within, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
			err = machine.Do(func() error { conn, err = net.Dial(network, address); return err })
			return conn, err
		}}}
		response, err := client.Get("http://" + at + ":7080/boot/ipxe?mac=52-54-00-00-00-01&buildarch=x86_64&platform=efi")
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		return string(text), err
	}
	lease := func(machine *netns.NS) (server, file string, err error) {
		out, err := machine.Try(t.Context(), "udhcpc", "-f", "-n", "-q", "-t", "5", "-T", "1", "-i", "eth0", "-V", "PXEClient:Arch:00007:UNDI:003016", "-x", "0x5d:0007", "-O", "bootfile", "-s", leaseScript(t))
		if err != nil {
			return "", "", fmt.Errorf("%w: %s", err, out)
		}
		for line := range strings.Lines(out) {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "LEASE "); ok {
				fmt.Sscan(rest, &server, &file)
			}
		}
		return server, file, nil
	}
	told := func(machine *netns.NS, own string) {
		t.Helper()
		eventually(t, func() error {
			server, file, err := lease(machine)
			if err == nil && (server != own || file != "snponly.efi") {
				err = fmt.Errorf("next server %s, file %s", server, file)
			}
			return err
		})
		text, err := script(machine, own)
		check(t, err)
		for _, foreign := range []string{"192.0.2.5", "10.20.0.2", "10.30.0.2"} {
			if strings.Contains(text, foreign) != (foreign == own) {
				t.Errorf("the script for a machine that reaches %s, and %s in it:\n%s", own, foreign, text)
			}
		}
	}
	told(first, "10.20.0.2")
	if report, _ := sink.Subnet("one"); !report.Served || report.Refused != "" {
		t.Errorf("the first subnet: %+v", report)
	}
	if report, _ := sink.Subnet("two"); report.Served || !strings.Contains(report.Refused, "mgmt0 has 192.0.2.5; rack0 has 10.20.0.2") || !strings.Contains(report.Refused, "spec.relays") {
		t.Errorf("the second subnet before its interface has come: %+v", report)
	}
	news := sink.Changed()
	if all := fmt.Sprint(s.reach.All()); strings.Contains(all, "10.30.0.2") || !strings.Contains(all, "10.20.0.2") {
		t.Errorf("own addresses %s", all)
	}

	changed := s.reach.Changed()
	netns.Veth(ns, "rack1", second, "eth0")
	ns.Address("rack1", "10.30.0.2/24")
	second.Address("eth0", "10.30.0.9/24")
	select {
	case <-changed:
	case <-time.After(within):
		t.Fatal("no word of another address")
	}
	eventually(t, func() error {
		if own, err := s.reach.node(netip.MustParseAddr("10.30.0.50"), netip.MustParsePrefix("10.30.0.0/24")); err != nil || own.String() != "10.30.0.2" {
			return fmt.Errorf("nodes of the second rack are told %s, %v", own, err)
		}
		return nil
	})
	select {
	case <-news:
	case <-time.After(within):
		t.Fatal("no word of another subnet that is served")
	}
	told(second, "10.30.0.2")
	if report, _ := sink.Subnet("two"); !report.Served || report.Refused != "" {
		t.Errorf("the second subnet: %+v", report)
	}
	told(first, "10.20.0.2")
}
