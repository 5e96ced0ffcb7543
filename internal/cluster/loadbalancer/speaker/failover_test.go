package speaker_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"coldrack.dev/internal/cluster/loadbalancer"
	"coldrack.dev/internal/cluster/loadbalancer/segment"
	"coldrack.dev/internal/cluster/loadbalancer/speaker"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// asNode makes this program a node's speaker, with what answers behind the addresses: a test runs it in the node's network.
const asNode = "COLDRACK_TEST_SPEAKER"

func TestMain(m *testing.M) {
	if text := os.Getenv(asNode); text != "" {
		if err := runNode(text, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// nodeConfig is what a node's process is told.
type nodeConfig struct {
	Name      string
	Home      []netip.Addr
	Peers     map[string]netip.AddrPort
	Addresses []netip.Addr
}

const servicePort = 8080

// runNode answers for addresses until SIGTERM. Lines of input are standings.
func runNode(text string, in io.Reader) error {
	var c nodeConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	for _, home := range c.Home {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(home, servicePort)))
		if err != nil {
			return err
		}
		go func() {
			b := make([]byte, 100)
			for {
				_, from, err := conn.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				_, _ = conn.WriteToUDPAddrPort([]byte(c.Name), from)
			}
		}()
	}
	log := slog.New(slog.NewTextHandler(os.Stdout, nil)).With("node", c.Name)
	answerer := segment.New(log, c.Home, segment.UsualPace())
	s, err := speaker.New(speaker.Options{Log: log, Node: c.Name, Listen: c.Peers[c.Name], Key: []byte("0123456789abcdef0123456789abcdef"),
		Pace: speaker.UsualPace(), Answerer: answerer})
	if err != nil {
		return err
	}
	s.SetPeers(c.Peers)
	var addresses []loadbalancer.Address
	for _, a := range c.Addresses {
		addresses = append(addresses, loadbalancer.Address{Addr: a})
	}
	s.SetAddresses(addresses)
	s.SetStanding(loadbalancer.Ready)
	go func() {
		for lines := bufio.NewScanner(in); lines.Scan(); {
			switch lines.Text() {
			case "reserve":
				s.SetStanding(loadbalancer.Reserve)
			case "ready":
				s.SetStanding(loadbalancer.Ready)
			}
		}
	}()
	var wg sync.WaitGroup
	// The answerer ends last: by then others have the addresses.
	background, end := context.WithCancel(context.Background())
	wg.Go(func() { _ = answerer.Run(background) })
	err = s.Run(ctx)
	end()
	wg.Wait()
	return err
}

// rack is a switch with nodes and a client on it.
type rack struct {
	t         *testing.T
	wire      *netns.NS
	client    *netns.NS
	nodes     map[string]*testNode
	peers     map[string]netip.AddrPort
	addresses []netip.Addr
}

type testNode struct {
	name  string
	ns    *netns.NS
	home  []netip.Addr
	cmd   *exec.Cmd
	input io.WriteCloser
}

func newRack(t *testing.T, addresses ...string) *rack {
	require.Need(t, "netns", "ip", "nft")
	r := &rack{t: t, wire: netns.New(t), client: netns.New(t), nodes: map[string]*testNode{}, peers: map[string]netip.AddrPort{}}
	for _, a := range addresses {
		r.addresses = append(r.addresses, netip.MustParseAddr(a))
	}
	r.wire.Bridge("br0")
	r.wire.Plug("br0", "client", r.client, "eth0")
	r.client.Run("ip", "addr", "add", "10.9.0.9/24", "dev", "eth0")
	r.client.Run("ip", "addr", "add", "fd09::9/64", "dev", "eth0", "nodad")
	for i := range 3 {
		n := &testNode{name: fmt.Sprintf("node-%d", i+1), ns: netns.New(t),
			home: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, 0, byte(11 + i)}), netip.MustParseAddr(fmt.Sprintf("fd09::%d", 11+i))}}
		r.nodes[n.name] = n
		r.peers[n.name] = netip.AddrPortFrom(n.home[0], speaker.Port)
		r.wire.Plug("br0", n.name, n.ns, "eth0")
		n.ns.Run("ip", "addr", "add", n.home[0].String()+"/24", "dev", "eth0")
		n.ns.Run("ip", "addr", "add", n.home[1].String()+"/64", "dev", "eth0", "nodad")
		// As kube-proxy does it: another destination before the kernel looks whose the packet is.
		n.ns.Run("nft", "add table inet proxy; add chain inet proxy prerouting { type nat hook prerouting priority dstnat; }")
		for _, a := range r.addresses {
			family, home := "ip", n.home[0].String()
			if a.Is6() {
				family, home = "ip6", "["+n.home[1].String()+"]"
			}
			n.ns.Run("nft", fmt.Sprintf("add rule inet proxy prerouting %s daddr %s udp dport 80 dnat %s to %s:%d", family, a, family, home, servicePort))
		}
	}
	for name := range r.nodes {
		r.start(name)
	}
	return r
}

// start runs a node's speaker.
func (r *rack) start(name string) {
	r.t.Helper()
	n := r.nodes[name]
	config, err := json.Marshal(nodeConfig{Name: n.name, Home: n.home, Peers: r.peers, Addresses: r.addresses})
	if err != nil {
		r.t.Fatal(err)
	}
	n.cmd = exec.Command(os.Args[0])
	n.cmd.Env = append(os.Environ(), asNode+"="+string(config))
	n.cmd.Stdout, n.cmd.Stderr = testLog{r.t}, testLog{r.t}
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if n.input, err = n.cmd.StdinPipe(); err != nil {
		r.t.Fatal(err)
	}
	if err := n.ns.Start(n.cmd); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = n.cmd.Process.Kill(); _ = n.cmd.Wait() })
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (n *testNode) say(t *testing.T, standing string) {
	if _, err := fmt.Fprintln(n.input, standing); err != nil {
		t.Fatal(err)
	}
}

// powerCut takes the link first, so that nobody hears a goodbye.
func (r *rack) powerCut(name string) {
	n := r.nodes[name]
	r.wire.Run("ip", "link", "set", name, "down")
	_ = n.cmd.Process.Kill()
}

// probe asks an address every 20 ms, each time anew, and notes who answered and when.
type probe struct {
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	answers []answer
}

type answer struct {
	at   time.Time
	from string
}

const probeEvery = 20 * time.Millisecond

func (r *rack) probe(address netip.Addr) *probe {
	ctx, stop := context.WithCancel(r.t.Context())
	p := &probe{stop: stop, done: make(chan struct{})}
	ask := func() {
		var conn net.Conn
		err := r.client.Do(func() (err error) {
			conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 80)))
			return err
		})
		if err != nil {
			return
		}
		defer conn.Close()
		b := make([]byte, 100)
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Write([]byte("who?")); err != nil {
			return
		}
		if n, err := conn.Read(b); err == nil {
			p.mu.Lock()
			p.answers = append(p.answers, answer{time.Now(), string(b[:n])})
			p.mu.Unlock()
		}
	}
	go func() {
		defer close(p.done)
		var wg sync.WaitGroup
		ticker := time.NewTicker(probeEvery)
		defer ticker.Stop()
		for ctx.Err() == nil {
			wg.Go(ask)
			select {
			case <-ctx.Done():
			case <-ticker.C:
			}
		}
		wg.Wait()
	}()
	r.t.Cleanup(func() { stop(); <-p.done })
	return p
}

// await waits until somebody answers who is (or is not) one of the nodes, n times in a row, and returns who.
func (p *probe) await(t *testing.T, fits func(node string) bool) string {
	t.Helper()
	const inARow = 10
	ctx, cancel := netns.Patience(t)
	defer cancel()
	for ctx.Err() == nil {
		p.mu.Lock()
		last := p.answers[max(0, len(p.answers)-inARow):]
		ok := len(last) == inARow && !slices.ContainsFunc(last, func(a answer) bool { return a.from != last[0].from || !fits(a.from) })
		p.mu.Unlock()
		if ok {
			return last[0].from
		}
		time.Sleep(probeEvery)
	}
	t.Fatal("nobody answers who should")
	return ""
}

func not(node string) func(string) bool { return func(n string) bool { return n != node } }

func is(node string) func(string) bool { return func(n string) bool { return n == node } }

// gap is the longest time between two answers since a moment.
func (p *probe) gap(since time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	times := []time.Time{since}
	for _, a := range p.answers {
		if a.at.After(since) {
			times = append(times, a.at)
		}
	}
	slices.SortFunc(times, time.Time.Compare)
	var longest time.Duration
	for i := range times[1:] {
		longest = max(longest, times[i+1].Sub(times[i]))
	}
	return longest
}

// TestAnAddressOutlivesItsNode measures with a client that knows nothing: its host has an ARP cache, or a neighbour cache, as
// any. The bound is for a machine that is busy with other things; what was measured on an idle one is in the log and in docs/performance.md.
func TestAnAddressOutlivesItsNode(t *testing.T) {
	for _, address := range []string{"10.9.0.200", "fd09::200"} {
		t.Run(address, func(t *testing.T) {
			const bound = 30 * time.Second
			r := newRack(t, address)
			p := r.probe(r.addresses[0])
			holder := p.await(t, is(loadbalancer.Holder(loadbalancer.Address{Addr: r.addresses[0]}, []loadbalancer.Member{
				{Name: "node-1", Standing: loadbalancer.Ready}, {Name: "node-2", Standing: loadbalancer.Ready}, {Name: "node-3", Standing: loadbalancer.Ready}})))

			since := time.Now()
			r.nodes[holder].say(t, "reserve")
			second := p.await(t, not(holder))
			t.Logf("drained: %s to %s, longest gap %s", holder, second, p.gap(since).Round(time.Millisecond))

			since = time.Now()
			r.powerCut(second)
			third := p.await(t, not(second))
			t.Logf("power cut: %s to %s, longest gap %s", second, third, p.gap(since).Round(time.Millisecond))
			if gap := p.gap(since); gap > bound {
				t.Errorf("nobody answered for %s after a power cut", gap)
			}
			if third == holder {
				t.Errorf("%s announces although it is in reserve and another is ready", holder)
			}

			since = time.Now()
			if err := r.nodes[third].cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			p.await(t, is(holder)) // in reserve, but the last
			t.Logf("stopped: %s to %s, longest gap %s", third, holder, p.gap(since).Round(time.Millisecond))

			// Everybody comes back: the address is where it was at first.
			since = time.Now()
			r.wire.Run("ip", "link", "set", second, "up")
			r.start(second)
			_ = r.nodes[third].cmd.Wait()
			r.start(third)
			r.nodes[holder].say(t, "ready")
			p.await(t, is(holder))
			t.Logf("back: longest gap %s", p.gap(since).Round(time.Millisecond))

			// A link that is down for a while: two answer, each for itself, until they hear each other.
			since = time.Now()
			r.wire.Run("ip", "link", "set", holder, "down")
			other := p.await(t, not(holder))
			t.Logf("cable pulled: %s to %s, longest gap %s", holder, other, p.gap(since).Round(time.Millisecond))
			since = time.Now()
			r.wire.Run("ip", "link", "set", holder, "up")
			p.await(t, is(holder))
			t.Logf("cable plugged: longest gap %s", p.gap(since).Round(time.Millisecond))
		})
	}
}
