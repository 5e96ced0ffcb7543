package dhcp6

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	netnstest "coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// lockedBackend is a backend for a server that runs.
type lockedBackend struct {
	mu    sync.Mutex
	inner backend
	wake  chan struct{}
}

func (b *lockedBackend) Reservation(subnet netip.Prefix, client Query) (netip.Addr, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.inner.Reservation(subnet, client)
}

func (b *lockedBackend) Reserved(a netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.inner.Reserved(a)
}

func (b *lockedBackend) BootFile(subnet netip.Prefix, client Query) (BootFile, bool) {
	return b.inner.BootFile(subnet, client)
}

func (b *lockedBackend) Observe(o Observation) {
	b.mu.Lock()
	b.inner.Observe(o)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// await waits until something was observed.
func (b *lockedBackend) await(t testing.TB, event Event, address string) Observation {
	t.Helper()
	patience, stop := netnstest.Patience(t)
	defer stop()
	for {
		b.mu.Lock()
		i := slices.IndexFunc(b.inner.seen, func(o Observation) bool { return o.Event == event && (address == "" || o.Address == addr(address)) })
		seen := slices.Clone(b.inner.seen)
		b.mu.Unlock()
		if i >= 0 {
			return seen[i]
		}
		select {
		case <-b.wake:
		case <-patience.Done():
			t.Fatalf("%s %s was not observed, but %v", event, address, seen)
		}
	}
}

// network is a switch with a server at fd00:1::1 on it.
type network struct {
	t       testing.TB
	server  *netnstest.NS
	backend *lockedBackend
	dhcp    *Server
	stop    func()
	dir     string
	plugged int
	changed chan struct{}
}

// namespace has addresses that can be used at once, as on a segment where nobody else is.
func namespace(t testing.TB) *netnstest.NS {
	ns := netnstest.New(t)
	ns.Run("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad && echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")
	return ns
}

func newNetwork(t testing.TB) *network {
	t.Helper()
	n := &network{t: t, server: namespace(t), backend: &lockedBackend{wake: make(chan struct{}, 1)}, dir: t.TempDir()}
	n.server.Bridge("br0")
	n.server.Address("br0", "fd00:1::1/64")
	return n
}

func (n *network) serve(config Config) {
	n.t.Helper()
	n.changed = make(chan struct{}, 1)
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	server, err := New(Options{Backend: n.backend, Dir: n.dir, Log: log, Inside: n.server.Do, Changed: func() {
		select {
		case n.changed <- struct{}{}:
		default:
		}
	}}, config)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	<-server.Ready()
	n.dhcp = server
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("Serve: %v", err)
		}
	})
	n.t.Cleanup(n.stop)
}

// service waits until a subnet is served as a test wants it.
func (n *network) service(subnet string, want func(SubnetService) bool) SubnetService {
	n.t.Helper()
	patience, stop := netnstest.Patience(n.t)
	defer stop()
	for {
		services := n.dhcp.Services()
		for _, s := range services {
			if s.Name == subnet && want(s) {
				return s
			}
		}
		select {
		case <-n.changed:
		case <-patience.Done():
			n.t.Fatalf("%+v", services)
		}
	}
}

// machine plugs a machine with a MAC of mac(number) into the switch.
func (n *network) machine(number byte) *isc {
	n.t.Helper()
	ns := namespace(n.t)
	n.plugged++
	n.server.Plug("br0", fmt.Sprintf("port%d", n.plugged), ns, "eth0")
	return newISC(n.t, ns, number)
}

// isc is ISC's client on one machine.
type isc struct {
	t   testing.TB
	ns  *netnstest.NS
	dir string
}

func newISC(t testing.TB, ns *netnstest.NS, number byte) *isc {
	// A link-local address is made of the hardware address when the link comes up.
	ns.Run("ip", "link", "set", "eth0", "down")
	ns.Run("ip", "link", "set", "eth0", "address", mac(number).String())
	ns.Run("ip", "link", "set", "eth0", "up")
	c := &isc{t: t, ns: ns, dir: t.TempDir()}
	t.Cleanup(c.kill)
	c.write("conf", "timeout 40; also request dhcp6.name-servers, dhcp6.domain-search, dhcp6.sntp-servers, dhcp6.bootfile-url;\n")
	// The client says in its environment what it has learnt; 3 means that another has the address.
	c.write("script", "#!/bin/sh\nenv >"+c.dir+"/$reason\ncase $reason:$new_ip6_address in BOUND6:$(cat "+c.dir+"/taken)) exit 3 ;; esac\n")
	c.write("taken", "none\n")
	return c
}

func (c *isc) write(name, content string) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(content), 0o755); err != nil {
		c.t.Fatal(err)
	}
}

// run runs the client once, and returns what it was told for a reason, nothing after a failure. Several machines may do so at once.
func (c *isc) run(reason string, args ...string) map[string]string {
	c.t.Helper()
	patience, stop := netnstest.Patience(c.t)
	defer stop()
	_ = os.Remove(filepath.Join(c.dir, reason))
	said, err := c.ns.Try(patience, append([]string{"dhclient", "-6", "-1", "-v", "-sf", c.dir + "/script", "-cf", c.dir + "/conf", "-lf", c.dir + "/leases", "-pf", c.dir + "/pid"}, append(args, "eth0")...)...)
	if err != nil {
		c.t.Errorf("dhclient %v: %v: %s", args, err, said)
		return nil
	}
	told, err := os.ReadFile(filepath.Join(c.dir, reason))
	if err != nil {
		c.t.Errorf("dhclient %v says nothing of %s: %s", args, reason, said)
		return nil
	}
	all := map[string]string{}
	for line := range strings.Lines(string(told)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		all[name] = value
	}
	return all
}

// kill ends the client that went into the background as a power cut does, without a word to the server.
func (c *isc) kill() {
	c.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		c.t.Error(err)
	}
	for _, file := range all { // its file of the process number may not be written yet
		if line, err := os.ReadFile(file); err != nil || !strings.Contains(string(line), c.dir+"/") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			c.t.Error(err)
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			c.t.Error(err)
		}
		for errors.Is(poll(fd), unix.EINTR) {
		}
		unix.Close(fd)
	}
}

// poll waits until a process has ended.
func poll(process int) error {
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, -1)
	return err
}

func TestARealClient(t *testing.T) {
	require.Need(t, "netns", "dhclient")
	t.Parallel()
	n := newNetwork(t)
	config := Config{Interfaces: []string{"br0"}, Subnets: []Subnet{rack(), far()}}
	n.serve(config)
	machine, another, third := n.machine(1), n.machine(2), n.machine(3)
	var got, stateless map[string]string
	together(func() { got = machine.run("BOUND6") }, func() { stateless = third.run("RENEW6", "-S") })
	for name, want := range map[string]string{"new_ip6_address": "fd00:1::100", "new_dhcp6_name_servers": "fd00:1::53", "new_dhcp6_domain_search": "rack.example.",
		"new_dhcp6_sntp_servers": "fd00:1::123", "new_max_life": "3600"} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if seen := n.backend.await(t, Acknowledged, "fd00:1::100").Client; seen.MAC != mac(1).String() || seen.MACFrom != FromAddress || seen.Interface != "br0" || seen.Server != addr("fd00:1::1") {
		t.Errorf("the client is %+v", seen)
	}
	if stateless["new_dhcp6_name_servers"] != "fd00:1::53" || stateless["new_ip6_address"] != "" {
		t.Errorf("stateless: %v", stateless)
	}
	machine.kill()

	// The server's end and begin change nothing.
	n.stop()
	n.serve(config)
	var back, other map[string]string
	together(func() { back = machine.run("BOUND6") }, func() { other = another.run("BOUND6") })
	if other["new_ip6_address"] != "fd00:1::101" {
		t.Errorf("another machine got %q", other["new_ip6_address"])
	}
	if back["new_ip6_address"] != "fd00:1::100" {
		t.Errorf("it comes back with %q", back["new_ip6_address"])
	}
	if stats := n.dhcp.Stats(); stats.Received["confirm"] == 0 {
		t.Errorf("it did not confirm: %+v", stats)
	}
	machine.run("RELEASE6", "-r")
	n.backend.await(t, Released, "fd00:1::100")
	if stats := n.dhcp.Stats(); stats.Sent["reply"] < 3 || stats.Malformed != 0 || stats.SendErrors != 0 {
		t.Errorf("%+v", stats)
	}
}

// together runs all at once, because clients mostly wait.
func together(all ...func()) {
	var group sync.WaitGroup
	for _, f := range all {
		group.Go(f)
	}
	group.Wait()
}

func TestARealClientDeclines(t *testing.T) {
	require.Need(t, "netns", "dhclient")
	t.Parallel()
	n := newNetwork(t)
	n.serve(Config{Subnets: []Subnet{rack()}})
	machine := n.machine(1)
	machine.write("taken", "fd00:1::100\n")
	machine.run("BOUND6")
	n.backend.await(t, Declined, "fd00:1::100")
	n.backend.await(t, Acknowledged, "fd00:1::101")
}

func TestRealRelays(t *testing.T) {
	require.Need(t, "netns", "dhclient", "dhcrelay", "dnsmasq")
	t.Parallel()
	for name, c := range map[string]struct {
		program string
		args    []string
		want    string // hardware address, where it was learnt, and whether the relay names the interface
	}{
		"dhcrelay": {require.Program("dhcrelay"), []string{"-6", "-d", "--no-pid", "-I", "-l", "lower", "-u", "fd00:1::1%upper"}, "52:54:00:00:00:05 address true"},
		"dnsmasq": {"dnsmasq", []string{"--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file", "--log-facility=-", "--dhcp-relay=fd00:2::1,fd00:1::1"},
			"52:54:00:00:00:05 relay false"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			relay, machine := namespace(t), namespace(t)
			n.server.Plug("br0", "port", relay, "upper")
			netnstest.Veth(relay, "lower", machine, "eth0")
			relay.Address("upper", "fd00:1::2/64")
			relay.Address("lower", "fd00:2::1/64")
			n.server.Run("ip", "route", "add", "fd00:2::/64", "via", "fd00:1::2")
			n.serve(Config{Subnets: []Subnet{rack(), far()}})
			client := newISC(t, machine, 5)
			relay.Address("lower", "fd00:2::9/64") // the link was down a moment; an address more makes sure that it is usable
			ctx, stop := context.WithCancel(context.Background())
			cmd := exec.CommandContext(ctx, c.program, c.args...)
			var said strings.Builder
			cmd.Stdout, cmd.Stderr = &said, &said
			if err := relay.Start(cmd); err != nil {
				t.Fatal(err)
			}
			defer func() {
				stop()
				_ = cmd.Wait()
				t.Log(said.String())
			}()
			if got := client.run("BOUND6")["new_ip6_address"]; got != "fd00:2::100" {
				t.Errorf("got %q", got)
			}
			seen := n.backend.await(t, Acknowledged, "fd00:2::100").Client
			if got := fmt.Sprint(seen.MAC, " ", seen.MACFrom, " ", seen.InterfaceID != ""); got != c.want || !seen.Relay.IsValid() {
				t.Errorf("the client is %s behind %s, want %s", got, seen.Relay, c.want)
			}
			client.run("RELEASE6", "-r")
			n.backend.await(t, Released, "fd00:2::100")
			n.service("far", func(s SubnetService) bool { return s.Relayed && s.Problem == "" })
		})
	}
}

func TestInterfacesAreFollowed(t *testing.T) {
	require.Need(t, "netns", "dhclient")
	t.Parallel()
	n := &network{t: t, server: namespace(t), backend: &lockedBackend{wake: make(chan struct{}, 1)}, dir: t.TempDir()}
	n.serve(Config{Interfaces: []string{"br0"}, Subnets: []Subnet{rack()}})
	n.service("rack", func(s SubnetService) bool { return strings.Contains(s.Problem, "br0 does not exist") })
	n.server.Bridge("br0")
	n.service("rack", func(s SubnetService) bool {
		return strings.Contains(s.Problem, "br0 has no IPv6 address beside its link-local one")
	})
	n.server.Address("br0", "fd00:1::1/64")
	n.service("rack", func(s SubnetService) bool { return s.Problem == "" && slices.Equal(s.Interfaces, []string{"br0"}) })
	if got := n.machine(1).run("BOUND6")["new_ip6_address"]; got != "fd00:1::100" {
		t.Errorf("got %q", got)
	}
	n.server.Run("ip", "addr", "del", "fd00:1::1/64", "dev", "br0")
	n.service("rack", func(s SubnetService) bool { return s.Problem != "" })
	n.server.Run("ip", "link", "del", "br0")
	n.service("rack", func(s SubnetService) bool { return strings.Contains(s.Problem, "br0 does not exist") })
	// What is switched off has no socket.
	n.server.Bridge("br0")
	n.server.Address("br0", "fd00:1::1/64")
	n.service("rack", func(s SubnetService) bool { return s.Problem == "" })
	off := rack()
	off.Mode = ModeOff
	if err := n.dhcp.SetConfig(Config{Interfaces: []string{"br0"}, Subnets: []Subnet{off}}); err != nil {
		t.Fatal(err)
	}
	if err := n.server.Do(func() error {
		l, err := openIface(t.Context(), "br0", nil, slog.Default(), &counters{})
		l.close()
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestThePortIsTaken(t *testing.T) {
	n := newNetwork(t)
	if err := n.server.Do(func() error {
		l, err := openIface(t.Context(), "br0", nil, slog.Default(), &counters{})
		if err == nil {
			t.Cleanup(l.close)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	n.serve(Config{Subnets: []Subnet{rack()}})
	n.service("rack", func(s SubnetService) bool {
		return strings.Contains(s.Problem, "another DHCPv6 server runs on this machine for interface br0 (port 547 is taken)")
	})
}

func TestTheServerIsKnownAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), uuidName)
	first, err := identify(file)
	again, err2 := identify(file)
	if err != nil || err2 != nil || first != again {
		t.Errorf("%v, %v, %v, %v", first, again, err, err2)
	}
	if err := os.WriteFile(file, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := identify(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("nonsense: %v", err)
	}
}
