package dhcp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/netns"
	"coldrack.dev/internal/netboot/lease"
	netnstest "coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// lockedBackend is fakeBackend for several goroutines.
type lockedBackend struct {
	mu    sync.Mutex
	inner fakeBackend
	wake  chan struct{}
}

func newLockedBackend() *lockedBackend {
	return &lockedBackend{inner: fakeBackend{machines: map[string]Reservation{}}, wake: make(chan struct{}, 1)}
}

func (b *lockedBackend) Reservation(subnet netip.Prefix, q Query) (Reservation, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.inner.Reservation(subnet, q)
}

func (b *lockedBackend) Options(q Query) []Option {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.inner.Options(q)
}

func (b *lockedBackend) Reserved(a netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.inner.Reserved(a)
}

func (b *lockedBackend) BootFile(subnet netip.Prefix, q Query) (BootFile, bool) {
	return b.inner.BootFile(subnet, q)
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
	for deadline := time.After(2 * time.Minute); ; {
		b.mu.Lock()
		for _, o := range b.inner.seen {
			if o.Event == event && (address == "" || o.Address == addr(address)) {
				b.mu.Unlock()
				return o
			}
		}
		seen := fmt.Sprint(b.inner.seen)
		b.mu.Unlock()
		select {
		case <-b.wake:
		case <-deadline:
			t.Fatalf("%s %s was not observed, but %s", event, address, seen)
		}
	}
}

// network is a switch with a server at 192.0.2.1 on it.
type network struct {
	t       testing.TB
	server  *netnstest.NS
	backend *lockedBackend
	dhcp    *Server
	stop    func()
	dir     string
	plugged int
	changed chan struct{}
	beside  func(context.Context, string)
}

// service waits until a subnet is served as a test wants it.
func (n *network) service(what, subnet string, want func(SubnetService) bool) SubnetService {
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
			n.t.Fatalf("%s: %+v", what, services)
		}
	}
}

// by tells whether a subnet is served by just these interfaces.
func by(interfaces ...string) func(SubnetService) bool {
	return func(s SubnetService) bool { return s.Problem == "" && slices.Equal(s.Interfaces, interfaces) }
}

// unserved tells whether nobody in a subnet is served, for a reason that has all these parts.
func unserved(parts ...string) func(SubnetService) bool {
	return func(s SubnetService) bool {
		return s.Problem != "" && !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(s.Problem, part) })
	}
}

func newNetwork(t testing.TB) *network {
	t.Helper()
	n := &network{t: t, server: netnstest.New(t), backend: newLockedBackend(), dir: t.TempDir()}
	n.server.Bridge("br0")
	n.server.Address("br0", "192.0.2.1/24")
	return n
}

func (n *network) config() Config {
	return Config{Interfaces: []string{"br0"}, Subnets: []Subnet{rack(), remote()}}
}

func (n *network) serve(config Config) {
	n.t.Helper()
	n.changed = make(chan struct{}, 1)
	server, err := New(Options{Backend: n.backend, Dir: n.dir, Log: testLog(n.t),
		Inside: func(fn func() error) error { return netns.Do(n.server.Path(), fn) },
		Beside: n.beside,
		Changed: func() {
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
	select {
	case <-server.Ready():
	case err := <-done:
		cancel()
		n.t.Fatal(err)
	}
	n.dhcp = server
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("Serve: %v", err)
		}
	})
	n.t.Cleanup(n.stop)
}

func testLog(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// machine plugs a machine with a MAC of mac(number) into the switch.
func (n *network) machine(number int) *netnstest.NS {
	n.t.Helper()
	ns := netnstest.New(n.t)
	n.plugged++
	n.server.Plug("br0", fmt.Sprintf("port%d", n.plugged), ns, "eth0")
	ns.Run("ip", "link", "set", "eth0", "address", mac(number).String())
	return ns
}

// udhcpc runs BusyBox's client until it has a lease, and returns what it learnt.
func udhcpc(t testing.TB, ns *netnstest.NS, args ...string) (map[string]string, error) {
	t.Helper()
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" = bound ] && env > "+dir+"/env\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := ns.Try(ctx, append([]string{"env", "-i", "PATH=" + os.Getenv("PATH"), "udhcpc", "-f", "-n", "-q", "-t", "4", "-T", "1", "-i", "eth0", "-s", script}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	values := map[string]string{}
	for line := range strings.Lines(string(env)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = value
	}
	return values, err
}

func TestRealClients(t *testing.T) {
	require.Need(t, "netns", "udhcpc", "dhclient")
	n := newNetwork(t)
	n.backend.inner.machines[mac(7).String()] = Reservation{Address: addr("192.0.2.7"), Hostname: "node-7"}
	n.serve(n.config())

	t.Run("udhcpc, unknown", func(t *testing.T) {
		got, err := udhcpc(t, n.machine(1))
		if err != nil {
			t.Fatal(err)
		}
		for key, want := range map[string]string{"ip": "192.0.2.100", "mask": "24", "router": "192.0.2.254", "dns": "192.0.2.253 198.51.100.1",
			"domain": "rack.example", "lease": "600", "serverid": "192.0.2.1"} {
			if got[key] != want {
				t.Errorf("%s: %q, want %q", key, got[key], want)
			}
		}
	})
	t.Run("udhcpc, known, wanting a broadcast", func(t *testing.T) {
		got, err := udhcpc(t, n.machine(7), "-B")
		if err != nil || got["ip"] != "192.0.2.7" || got["hostname"] != "node-7" {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("udhcpc as a UEFI client", func(t *testing.T) {
		got, err := udhcpc(t, n.machine(2), "-V", "PXEClient:Arch:00007:UNDI:003016", "-x", "0x5d:0007", "-O", "bootfile", "-O", "tftp")
		if err != nil || got["ip"] != "192.0.2.101" || got["siaddr"] != "192.0.2.77" || got["boot_file"] != "snponly.efi" || got["tftp"] != "192.0.2.77" {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("dhclient", func(t *testing.T) {
		ns := n.machine(3)
		dir := t.TempDir()
		conf := filepath.Join(dir, "conf")
		if err := os.WriteFile(conf, []byte("timeout 20;\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		lease := filepath.Join(dir, "lease")
		cmd := exec.Command("dhclient", "-1", "-d", "-v", "-sf", "/bin/true", "-cf", conf, "-lf", lease, "--no-pid", "eth0")
		if err := ns.Start(cmd); err != nil {
			t.Fatal(err)
		}
		n.backend.await(t, Acknowledged, "192.0.2.102")
		// The client writes its lease down after it has the ACK.
		text := waitForFile(t, lease, "fixed-address 192.0.2.102;")
		cmd.Process.Kill()
		cmd.Wait()
		for _, want := range []string{"option routers 192.0.2.254;", "option subnet-mask 255.255.255.0;", "option dhcp-lease-time 600;", `option domain-name "rack.example";`} {
			if !strings.Contains(text, want) {
				t.Errorf("no %s in %s", want, text)
			}
		}
	})
	t.Run("two more at once, for one address", func(t *testing.T) {
		machines := []*netnstest.NS{n.machine(4), n.machine(5)}
		results := make(chan string, 2)
		for _, ns := range machines {
			go func() {
				got, err := udhcpc(t, ns)
				if err != nil {
					results <- "nothing"
					return
				}
				results <- got["ip"]
			}()
		}
		if a, b := <-results, <-results; a+" "+b != "192.0.2.103 nothing" && a+" "+b != "nothing 192.0.2.103" {
			t.Errorf("got %s and %s", a, b)
		}
		n.backend.await(t, PoolExhausted, "")
	})
	if stats := n.dhcp.Stats(); stats.Subnets[0].Leased != 4 || stats.Exhausted == 0 || stats.SendErrors != 0 || stats.Malformed != 0 {
		t.Errorf("stats %+v", stats)
	}
}

func waitForFile(t testing.TB, path, want string) string {
	t.Helper()
	for range 2400 {
		if data, _ := os.ReadFile(path); strings.Contains(string(data), want) {
			return string(data)
		}
		time.Sleep(50 * time.Millisecond)
	}
	data, _ := os.ReadFile(path)
	t.Fatalf("no %q in %s: %s", want, path, data)
	return ""
}

func TestRenewAndRelease(t *testing.T) {
	require.Need(t, "netns", "udhcpc")
	n := newNetwork(t)
	n.serve(n.config())
	ns := n.machine(1)
	script := filepath.Join(t.TempDir(), "script")
	// The address has to be there for unicast to work.
	text := "#!/bin/sh\necho $1 $ip >> " + script + ".log\n[ \"$1\" = bound ] && ip addr add $ip/$mask dev $interface\nexit 0\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("udhcpc", "-f", "-R", "-i", "eth0", "-s", script)
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	waitForFile(t, script+".log", "bound 192.0.2.100")
	cmd.Process.Signal(syscall.SIGUSR1)
	waitForFile(t, script+".log", "renew 192.0.2.100")
	cmd.Process.Signal(syscall.SIGTERM) // with -R: release
	n.backend.await(t, Released, "192.0.2.100")
}

func TestAnAddressInUseIsFoundByARP(t *testing.T) {
	require.Need(t, "netns", "udhcpc")
	n := newNetwork(t)
	n.serve(n.config())
	squatter := n.machine(50)
	squatter.Address("eth0", "192.0.2.100/24")
	got, err := udhcpc(t, n.machine(1))
	if err != nil || got["ip"] != "192.0.2.101" {
		t.Errorf("%v, %v", got, err)
	}
	if o := n.backend.await(t, Conflict, "192.0.2.100"); !strings.Contains(o.Detail, mac(50).String()) {
		t.Errorf("%+v", o)
	}
}

func TestAReservedAddressInUseIsFoundByARP(t *testing.T) {
	require.Need(t, "netns", "udhcpc")
	n := newNetwork(t)
	n.backend.inner.machines[mac(7).String()] = Reservation{Address: addr("192.0.2.7"), Hostname: "node-7"}
	n.serve(n.config())
	squatter := n.machine(50)
	squatter.Address("eth0", "192.0.2.7/24")
	known := n.machine(7)
	got, err := udhcpc(t, known)
	if err != nil || got["ip"] != "192.0.2.100" {
		t.Errorf("%v, %v", got, err)
	}
	n.backend.await(t, Conflict, "192.0.2.7")
	taken := func(s SubnetService) bool {
		return len(s.Taken) == 1 && s.Taken[0].Holder == mac(50).String() && s.Taken[0].Client == mac(7).String()
	}
	n.service("a reserved address that is taken", "rack", taken)
	squatter.Run("ip", "addr", "flush", "dev", "eth0")
	if got, err := udhcpc(t, known); err != nil || got["ip"] != "192.0.2.7" {
		t.Errorf("once it is free: %v, %v", got, err)
	}
	n.service("none is taken", "rack", func(s SubnetService) bool { return len(s.Taken) == 0 })
}

func TestANetworkWithAnARPProxy(t *testing.T) {
	require.Need(t, "netns", "udhcpc")
	n := newNetwork(t)
	config := n.config()
	config.Subnets[0].Pool = Range{From: addr("192.0.2.100"), To: addr("192.0.2.123")}
	n.serve(config)
	answerEveryARP(t, n.machine(50), mac(50))
	for number := range 6 {
		if got, err := udhcpc(t, n.machine(number+1)); err != nil || !config.Subnets[0].Pool.Contains(addr(got["ip"])) {
			t.Errorf("machine %d: %v, %v", number, got, err)
		}
	}
	if o := n.backend.await(t, ARPProxy, ""); !strings.Contains(o.Detail, mac(50).String()) {
		t.Errorf("%+v", o)
	}
	n.service("the proxy is named", "rack", func(s SubnetService) bool { return s.Problem == "" && s.Proxy == mac(50).String() })
	if stats := n.dhcp.Stats().Subnets[0]; stats.Quarantined != 0 || stats.Leased != 6 {
		t.Errorf("%+v", stats)
	}
}

// answerEveryARP makes a machine answer every question of ARP, as a switch does that answers for all, also those that name no sender,
// which Linux' own proxy_arp leaves alone.
func answerEveryARP(t *testing.T, machine *netnstest.NS, own net.HardwareAddr) {
	t.Helper()
	var conn *packet.Conn
	err := machine.Do(func() (err error) {
		conn, err = packet.Listen(machine.Interface("eth0"), packet.Raw, unix.ETH_P_ARP, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var answering sync.WaitGroup
	answering.Go(func() {
		frame := make([]byte, 2048)
		for {
			length, _, err := conn.ReadFrom(frame)
			if err != nil {
				return
			}
			if length < etherLen+arpLen || frame[etherLen+7] != 1 {
				continue
			}
			asked := frame[etherLen:]
			reply := append(append(append([]byte{}, asked[8:14]...), own...), 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2)
			reply = append(append(append(append(reply, own...), asked[24:28]...), asked[8:14]...), asked[14:18]...)
			_, _ = conn.WriteTo(reply, &packet.Addr{HardwareAddr: net.HardwareAddr(reply[:6])})
		}
	})
	t.Cleanup(func() {
		conn.Close()
		answering.Wait()
	})
}

func TestAnotherServerIsHeard(t *testing.T) {
	n := newNetwork(t)
	n.serve(n.config())
	rogue := n.machine(50)
	rogue.Address("eth0", "192.0.2.66/24")
	conn := rogue.ListenUDP("192.0.2.66:67")
	offer := message(dhcpv4.MessageTypeOffer, 1, ofServer("192.0.2.66"))
	offer.OpCode = dhcpv4.OpcodeBootReply
	if _, err := conn.WriteToUDP(offer.ToBytes(), &net.UDPAddr{IP: net.IPv4(192, 0, 2, 255), Port: ClientPort}); err != nil {
		t.Fatal(err)
	}
	if o := n.backend.await(t, ForeignServer, "192.0.2.66"); o.Subnet != rack().CIDR || !strings.Contains(o.Detail, "OFFER") {
		t.Errorf("%+v", o)
	}
}

func TestARelay(t *testing.T) {
	n := newNetwork(t)
	n.serve(n.config())
	// The relay agent's upper side; its lower side's address, giaddr, is on another network.
	relay := n.machine(60)
	relay.Address("eth0", "192.0.2.60/24")
	relay.Address("lo", "198.51.100.1/24")
	n.server.Run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.60")
	conn := relay.ListenUDP("198.51.100.1:67")
	conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
	server := &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: ServerPort}
	info := option(82, 1, 4, 'p', 'o', 'r', 't')
	exchange := func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		t.Helper()
		if _, err := conn.WriteToUDP(m.ToBytes(), server); err != nil {
			t.Fatal(err)
		}
		packet := make([]byte, 1500)
		length, from, err := conn.ReadFromUDP(packet)
		if err != nil {
			t.Fatal(err)
		}
		if from.String() != "192.0.2.1:67" {
			t.Errorf("answer from %s", from)
		}
		reply, err := dhcpv4.FromBytes(packet[:length])
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	offer := exchange(message(discover, 1, via("198.51.100.1"), info, unicast))
	if got(offer) != "offer 198.51.100.10" || !offer.Options.Has(dhcpv4.OptionRelayAgentInformation) {
		t.Errorf("got %s", offer.Summary())
	}
	ack := exchange(message(request, 1, via("198.51.100.1"), info, unicast, asking("198.51.100.10"), ofServer("192.0.2.1")))
	if got(ack) != "ack 198.51.100.10" {
		t.Errorf("got %s", ack.Summary())
	}
	nak := exchange(message(request, 2, via("198.51.100.1"), asking("192.0.2.5")))
	if got(nak) != "nak: 192.0.2.5 is not in this network, 198.51.100.0/24" {
		t.Errorf("got %s", nak.Summary())
	}
}

func TestLeasesSurviveARestart(t *testing.T) {
	require.Need(t, "netns", "udhcpc")
	n := newNetwork(t)
	n.serve(n.config())
	first := n.machine(1)
	if got, err := udhcpc(t, first); err != nil || got["ip"] != "192.0.2.100" {
		t.Fatalf("%v, %v", got, err)
	}
	n.stop()
	n.serve(n.config())
	if got, err := udhcpc(t, n.machine(2)); err != nil || got["ip"] != "192.0.2.101" {
		t.Errorf("the second: %v, %v", got, err)
	}
	if got, err := udhcpc(t, first); err != nil || got["ip"] != "192.0.2.100" {
		t.Errorf("the first: %v, %v", got, err)
	}
}

// TestMain lets this binary be a server process that a test can kill.
func TestMain(m *testing.M) {
	if dir := os.Getenv("DHCP_TEST_SERVER_DIR"); dir != "" {
		server, err := New(Options{Backend: newLockedBackend(), Dir: dir}, Config{Interfaces: []string{"br0"}, Subnets: []Subnet{rack()}})
		if err == nil {
			go func() { <-server.Ready(); fmt.Println("ready") }()
			err = server.Serve(context.Background())
		}
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestLeasesSurviveAKill(t *testing.T) {
	require.Need(t, "netns", "udhcpc")
	n := newNetwork(t)
	machines := []*netnstest.NS{n.machine(1), n.machine(2), n.machine(3)}
	for round, ns := range machines {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "DHCP_TEST_SERVER_DIR="+n.dir)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := n.server.Start(cmd); err != nil {
			t.Fatal(err)
		}
		word := make([]byte, 200)
		length, _ := stdout.Read(word)
		if string(word[:length]) != "ready\n" {
			t.Fatalf("server says %q", word[:length])
		}
		got, err := udhcpc(t, ns)
		// Not a moment between the ACK and the end.
		cmd.Process.Kill()
		cmd.Wait()
		if want := fmt.Sprintf("192.0.2.%d", 100+round); err != nil || got["ip"] != want {
			t.Errorf("round %d: %v, %v, want %s", round, got, err, want)
		}
	}
	_, records, err := lease.Open(filepath.Join(n.dir, JournalName), slog.New(slog.DiscardHandler))
	if err != nil || len(lease.Latest(records)) != 3 {
		t.Errorf("%v, %v", records, err)
	}
}

func TestReloadingInterfaces(t *testing.T) {
	require.Need(t, "netns", "udhcpc")
	n := newNetwork(t)
	n.server.Run("ip", "link", "add", "br1", "type", "bridge")
	n.server.Run("ip", "link", "set", "br1", "up")
	n.server.Address("br1", "198.51.100.1/24")
	n.serve(n.config())
	ns := netnstest.New(t)
	n.server.Plug("br1", "other", ns, "eth0")

	bad := n.config()
	bad.Subnets[1].CIDR = bad.Subnets[0].CIDR
	if err := n.dhcp.SetConfig(bad); err == nil || !strings.Contains(err.Error(), "overlaps") {
		t.Errorf("overlapping subnets: %v", err)
	}
	good := n.config()
	good.Interfaces = []string{"br0", "br1", "br7"}
	if err := n.dhcp.SetConfig(good); err != nil {
		t.Fatal(err)
	}
	if got, err := udhcpc(t, ns); err != nil || got["ip"] != "198.51.100.10" || got["serverid"] != "198.51.100.1" {
		t.Errorf("on the new interface: %v, %v", got, err)
	}
	good.Interfaces = []string{"br1"}
	if err := n.dhcp.SetConfig(good); err != nil {
		t.Fatal(err)
	}
	if got, err := udhcpc(t, n.machine(1)); err == nil {
		t.Errorf("on the interface that was removed: %v", got)
	}
}

func TestWhatKeepsTheServerFromStarting(t *testing.T) {
	n := newNetwork(t)
	n.server.ListenUDP("0.0.0.0:67")
	server, err := New(Options{Backend: n.backend, Dir: t.TempDir(), Inside: n.server.Do}, n.config())
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Serve(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "another DHCP server runs on this machine for interface br0") {
		t.Errorf("the port is taken: got %v", err)
	}
}

func TestManyClientsAtOnce(t *testing.T) {
	n := newNetwork(t)
	config := n.config()
	config.Subnets[1].Pool = Range{From: addr("198.51.100.10"), To: addr("198.51.100.250")}
	n.serve(config)
	relay := n.machine(60)
	relay.Address("eth0", "192.0.2.60/24")
	relay.Address("lo", "198.51.100.1/24")
	n.server.Run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.60")
	conn := relay.ListenUDP("198.51.100.1:67")
	server := &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: ServerPort}
	const clients = 200
	given := map[string]string{}
	for deadline := time.Now().Add(2 * time.Minute); len(given) < clients && time.Now().Before(deadline); {
		for i := range clients {
			if given[mac(i).String()] == "" {
				conn.WriteToUDP(message(discover, i, via("198.51.100.1")).ToBytes(), server)
			}
		}
		for {
			conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			packet := make([]byte, 1500)
			length, _, err := conn.ReadFromUDP(packet)
			if err != nil {
				break
			}
			m, err := dhcpv4.FromBytes(packet[:length])
			if err != nil {
				t.Fatal(err)
			}
			switch m.MessageType() {
			case dhcpv4.MessageTypeOffer:
				client := int(m.ClientHWAddr[4])<<8 | int(m.ClientHWAddr[5])
				conn.WriteToUDP(message(request, client, via("198.51.100.1"), asking(m.YourIPAddr.String()), ofServer("192.0.2.1")).ToBytes(), server)
			case dhcpv4.MessageTypeAck:
				given[m.ClientHWAddr.String()] = m.YourIPAddr.String()
			}
		}
	}
	seen := map[string]bool{}
	for _, a := range given {
		seen[a] = true
	}
	stats := n.dhcp.Stats()
	if len(given) != clients || len(seen) != clients {
		t.Errorf("%d clients have %d addresses; %+v", len(given), len(seen), stats)
	}
	t.Logf("%d leases in %d commits", stats.StoreRecords, stats.StoreCommits)
}
