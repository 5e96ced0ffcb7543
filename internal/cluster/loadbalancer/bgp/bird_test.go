package bgp

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
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
	"coldrack.dev/test/router"
)

// asNode makes this program a node: a test runs it in the node's network. gobgp has variables that are the process's.
const asNode = "COLDRACK_TEST_BGP"

func TestMain(m *testing.M) {
	if text := os.Getenv(asNode); text != "" {
		if err := runNode(text, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type nodeConfig struct {
	Name  string
	Home  []netip.Addr
	ASN   uint32
	Peers []Peer
	Tags  []string
}

const servicePort = 8080

// runNode has what answers behind the addresses, and tells routers of them. Lines of input are what it does; lines of output are
// sessions, and answers.
func runNode(text string, in io.Reader, out io.Writer) error {
	var c nodeConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
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
	var mu sync.Mutex
	say := func(v any) {
		mu.Lock()
		defer mu.Unlock()
		b, _ := json.Marshal(v)
		fmt.Fprintf(out, "%s\n", b)
	}
	a := New(Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", c.Name), Node: c.Name, Home: c.Home, Tell: func(s Session) { say(s) }})
	config := Config{ASN: c.ASN, Peers: c.Peers, Communities: func(netip.Addr) []string { return c.Tags }}
	if err := a.Configure(config); err != nil {
		return err
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "tell":
			var addresses []netip.Addr
			for f := range strings.FieldsSeq(rest) {
				addresses = append(addresses, netip.MustParseAddr(f))
			}
			a.Set(addresses)
		case "as":
			config.Communities = func(netip.Addr) []string { return strings.Fields(rest) }
			if err := a.Configure(config); err != nil {
				return err
			}
		case "hold":
			d, err := time.ParseDuration(rest)
			if err != nil {
				return err
			}
			config.Peers = slices.Clone(config.Peers)
			for i := range config.Peers {
				config.Peers[i].HoldTime = d
			}
			if err := a.Configure(config); err != nil {
				return err
			}
		case "close":
			a.Close()
			a.Close() // twice is once
			return nil
		case "table":
			var known []string
			for _, f := range []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC} {
				_ = a.server.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: f}, func(prefix bgp.NLRI, _ []*apiutil.Path) { known = append(known, prefix.String()) })
			}
			slices.Sort(known)
			say(Session{Message: "table " + strings.Join(known, " ")})
		}
	}
	return nil
}

type node struct {
	t     *testing.T
	name  string
	ns    *netns.NS
	home  []netip.Addr
	cmd   *exec.Cmd
	input io.WriteCloser

	mu   sync.Mutex
	said []Session
}

func (n *node) start(c nodeConfig) {
	n.t.Helper()
	c.Name, c.Home = n.name, n.home
	text, err := json.Marshal(c)
	if err != nil {
		n.t.Fatal(err)
	}
	n.cmd = exec.Command(os.Args[0])
	n.cmd.Env = append(os.Environ(), asNode+"="+string(text))
	n.cmd.Stderr = testLog{n.t}
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if n.input, err = n.cmd.StdinPipe(); err != nil {
		n.t.Fatal(err)
	}
	read, write := io.Pipe()
	n.cmd.Stdout = write
	if err := n.ns.Start(n.cmd); err != nil {
		n.t.Fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(read); lines.Scan(); {
			var s Session
			if json.Unmarshal(lines.Bytes(), &s) == nil {
				n.mu.Lock()
				n.said = append(n.said, s)
				n.mu.Unlock()
			}
		}
	}()
	n.t.Cleanup(func() { _ = n.cmd.Process.Kill(); _ = n.cmd.Wait(); _ = write.Close() })
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (n *node) do(line string) {
	n.t.Helper()
	if _, err := fmt.Fprintln(n.input, line); err != nil {
		n.t.Fatal(err)
	}
}

// await waits until the node has said something that contains the text.
func (n *node) await(text string) Session {
	n.t.Helper()
	ctx, cancel := netns.Patience(n.t)
	defer cancel()
	for ctx.Err() == nil {
		n.mu.Lock()
		i := slices.IndexFunc(n.said, func(s Session) bool { return strings.Contains(s.Message, text) })
		var found Session
		if i >= 0 {
			found = n.said[i]
		}
		n.mu.Unlock()
		if i >= 0 {
			return found
		}
		time.Sleep(20 * time.Millisecond)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.t.Fatalf("%s never said %q, but %+v", n.name, text, n.said)
	return Session{}
}

// ups is how often a session has come up.
func (n *node) ups() (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.said {
		if s.Up {
			count++
		}
	}
	return count
}

func (n *node) awaitUps(want int) {
	n.t.Helper()
	ctx, cancel := netns.Patience(n.t)
	defer cancel()
	for ctx.Err() == nil && n.ups() < want {
		time.Sleep(20 * time.Millisecond)
	}
	if n.ups() < want {
		n.t.Fatalf("%s has no session again", n.name)
	}
}

// site is a router with a client behind it, and nodes on one of its segments.
type site struct {
	t      *testing.T
	router *netns.NS
	client *netns.NS
	nodes  []*node
	bird   *router.Router
}

const (
	routerASN = 64513
	nodesASN  = 64512
)

// neighbours is BIRD's part of the session: any node of the segment, as the documents have it.
func neighbours(options string) string {
	return router.Kernel + fmt.Sprintf(`
router id 10.9.0.1;
protocol static { ipv4; route 203.0.113.0/24 blackhole; }
template bgp node { local as %[1]d; direct; %[2]s }
protocol bgp four from node { local 10.9.0.1 as %[1]d; neighbor range 10.9.0.0/24 as %[3]d; dynamic name "four"; ipv4 { import all; export all; }; }
protocol bgp six from node { local fd09::1 as %[1]d; neighbor range fd09::/64 as %[3]d; dynamic name "six"; ipv6 { import all; export all; }; }
`, routerASN, options, nodesASN)
}

func newSite(t *testing.T, nodes int, config string) *site {
	require.Need(t, "netns", "ip", "bird", "birdc", "nft")
	s := &site{t: t, router: netns.New(t), client: netns.New(t)}
	s.router.Bridge("br0")
	s.router.Run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; echo 1 >/proc/sys/net/ipv4/fib_multipath_hash_policy; echo 1 >/proc/sys/net/ipv6/fib_multipath_hash_policy")
	s.router.Address("br0", "10.9.0.1/24")
	s.router.Run("ip", "addr", "add", "fd09::1/64", "dev", "br0", "nodad")
	netns.Veth(s.router, "out", s.client, "eth0")
	s.router.Address("out", "192.0.2.1/24")
	s.client.Address("eth0", "192.0.2.9/24")
	s.client.Run("ip", "route", "add", "default", "via", "192.0.2.1")
	for i := range nodes {
		n := &node{t: t, name: fmt.Sprintf("node-%d", i+1), ns: netns.New(t), home: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, 0, byte(11 + i)}), netip.MustParseAddr(fmt.Sprintf("fd09::%d", 11+i))}}
		s.router.Plug("br0", n.name, n.ns, "eth0")
		n.ns.Address("eth0", n.home[0].String()+"/24")
		n.ns.Run("ip", "addr", "add", n.home[1].String()+"/64", "dev", "eth0", "nodad")
		n.ns.Run("ip", "route", "add", "default", "via", "10.9.0.1")
		// As kube-proxy does it.
		n.ns.Run("nft", fmt.Sprintf("add table ip proxy; add chain ip proxy prerouting { type nat hook prerouting priority dstnat; }; "+
			"add rule ip proxy prerouting ip daddr 198.51.100.0/24 udp dport 80 dnat to %s:%d", n.home[0], servicePort))
		s.nodes = append(s.nodes, n)
	}
	s.bird = router.Start(t, s.router, config)
	return s
}

func peers(change func(*Peer)) []Peer {
	var all []Peer
	for _, router := range []struct{ name, address string }{{"tor-four", "10.9.0.1"}, {"tor-six", "fd09::1"}} {
		p := Peer{Name: router.name, Address: netip.AddrPortFrom(netip.MustParseAddr(router.address), 0), ASN: routerASN, HoldTime: 3 * time.Second}
		if change != nil {
			change(&p)
		}
		all = append(all, p)
	}
	return all
}

func (s *site) awaitHops(address string, want ...string) {
	s.t.Helper()
	ctx, cancel := netns.Patience(s.t)
	defer cancel()
	var got []string
	for ctx.Err() == nil {
		got = s.bird.Hops(address)
		if slices.Equal(got, want) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatalf("the router's kernel has next hops %q for %s, want %q", got, address, want)
}

// probe asks an address every 10 ms from a port of its own, and notes those questions that nobody answered.
type probe struct {
	stop context.CancelFunc
	done chan struct{}

	mu   sync.Mutex
	lost []time.Time
	good int
}

func (s *site) probe(address string) *probe {
	ctx, stop := context.WithCancel(s.t.Context())
	p := &probe{stop: stop, done: make(chan struct{})}
	ask := func() {
		began := time.Now()
		var conn net.Conn
		err := s.client.Do(func() (err error) { conn, err = net.Dial("udp", net.JoinHostPort(address, "80")); return err })
		if err != nil {
			return
		}
		defer conn.Close()
		b := make([]byte, 100)
		_ = conn.SetDeadline(began.Add(time.Second))
		_, err = conn.Write([]byte("who?"))
		if err == nil {
			_, err = conn.Read(b)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if err != nil {
			p.lost = append(p.lost, began)
		} else {
			p.good++
		}
	}
	go func() {
		defer close(p.done)
		var wg sync.WaitGroup
		ticker := time.NewTicker(10 * time.Millisecond)
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
	s.t.Cleanup(func() { stop(); <-p.done })
	return p
}

// answers waits until so many more questions were answered.
func (p *probe) answers(t *testing.T, more int) {
	t.Helper()
	ctx, cancel := netns.Patience(t)
	defer cancel()
	now := func() int { p.mu.Lock(); defer p.mu.Unlock(); return p.good }
	for want := now() + more; now() < want; time.Sleep(10 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatal("nobody answers")
		}
	}
}

// end stops it and returns how many questions were answered and lost, and the time from a moment to the last loss.
func (p *probe) end(since time.Time) (good, lost int, last time.Duration) {
	p.stop()
	<-p.done
	for _, at := range p.lost {
		last = max(last, at.Sub(since))
	}
	return p.good, len(p.lost), last
}

// TestARouterSpreadsConnectionsAndLosesNodes: what BIRD and its host's kernel have while nodes come and go, and what a client sees.
func TestARouterSpreadsConnectionsAndLosesNodes(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3, neighbours(`password "correct horse";`))
	const four, six = "198.51.100.1", "fd99::1"
	for _, n := range s.nodes {
		n.start(nodeConfig{ASN: nodesASN, Tags: []string{"64512:100", "64512:7:4000000000", "no-export"}, Peers: peers(func(p *Peer) { p.Password = "correct horse" })})
		n.do("tell " + four + " " + six)
	}
	s.awaitHops(four, "10.9.0.11", "10.9.0.12", "10.9.0.13")
	s.awaitHops(six, "fd09::11", "fd09::12", "fd09::13")
	shown := s.bird.Ask("show route all for " + four + "/32")
	for _, want := range []string{"BGP.as_path: 64512", "(64512,100)", "(65535,65281)", "(64512, 7, 4000000000)", "BGP.origin: IGP"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the router's table lacks %s:\n%s", want, shown)
		}
	}
	// The router exports what it knows. Nodes take none of it, or each would pass it on and carry the router's whole table.
	s.nodes[0].await("tor-four (10.9.0.1, AS 64513) is up")
	s.bird.Await("show protocols all", func(out string) bool { return strings.Count(out, "exported") > 0 })
	s.nodes[0].do("table")
	if got := s.nodes[0].await("table").Message; got != "table 198.51.100.1/32 fd99::1/128" {
		t.Errorf("a node's routes: %s", got)
	}

	s.nodes[2].do("as 64512:200")
	s.bird.Await("show route all for "+four+"/32", func(out string) bool {
		return strings.Count(out, "(64512,200)") == 1 && strings.Count(out, "(64512,100)") == 2
	})

	p := s.probe(four)
	p.answers(t, 30)
	since := time.Now()
	s.nodes[0].do("tell")
	s.awaitHops(four, "10.9.0.12", "10.9.0.13")
	withdrawn := time.Since(since)
	p.answers(t, 30)
	good, lost, last := p.end(since)
	t.Logf("drained: the router has no route to the node after %s; %d questions answered, %d lost", withdrawn.Round(time.Millisecond), good, lost)
	if lost > 0 {
		t.Errorf("drained: %d questions lost, the last after %s, although the node went on working", lost, last)
	}
	s.awaitHops(six, "fd09::12", "fd09::13")
	s.nodes[0].do("tell " + four)
	s.awaitHops(four, "10.9.0.11", "10.9.0.12", "10.9.0.13")

	p = s.probe(four)
	p.answers(t, 30)
	since = time.Now()
	s.router.Run("ip", "link", "set", "node-2", "down") // first, so that nobody hears a goodbye
	_ = s.nodes[1].cmd.Process.Kill()
	s.awaitHops(four, "10.9.0.11", "10.9.0.13")
	gone := time.Since(since)
	p.answers(t, 30)
	good, lost, last = p.end(since)
	t.Logf("power cut: the router has no route to the node after %s; %d questions answered, %d lost, the last after %s", gone.Round(time.Millisecond), good, lost, last.Round(time.Millisecond))

	since = time.Now()
	s.nodes[2].do("close")
	s.awaitHops(four, "10.9.0.11")
	t.Logf("ended: no route to the node after %s", time.Since(since).Round(time.Millisecond))
	if err := s.nodes[2].cmd.Wait(); err != nil {
		t.Errorf("ended: %v", err)
	}
}

// TestANodeSaysWhyThereIsNoSession: the mistakes that people make in two configurations that must match, each by a node of its own
// at one router.
func TestANodeSaysWhyThereIsNoSession(t *testing.T) {
	t.Parallel()
	const up = "session with router tor (10.9.0.1, AS %d) is up"
	tests := []struct {
		name   string
		bird   string // the router's protocol for this node
		change func(*Peer)
		want   string
	}{
		{"the router has another ASN", "local as 64999; neighbor %s as 64512;", nil, "no session with router tor (10.9.0.1, AS 64513): its ASN is not 64513"},
		{"the router expects another ASN", "local as 64513; neighbor %s as 64600;", nil, "no session with router tor (10.9.0.1, AS 64513): it refuses this node; is it one of its neighbours, with the Cluster's localASN"},
		{"another password", `local as 64513; neighbor %s as 64512; password "one";`, func(p *Peer) { p.Password = "other" }, "tor (10.9.0.1, AS 64513): it does not answer; it is away, a filter is between, or the password is another one"},
		{"only the router has a password", `local as 64513; neighbor %s as 64512; password "one";`, nil, "it does not answer"},
		{"no BGP there", "", func(p *Peer) { p.Address = netip.AddrPortFrom(p.Address.Addr(), 1179) }, "it refuses the connection; does it run BGP"},
		{"not a neighbour", "", nil, "it refuses this node; is it one of its neighbours"},
		{"the same ASN on both sides", "local as 64512; neighbor %s as 64512;", func(p *Peer) { p.ASN = 64512 }, fmt.Sprintf(up, 64512)},
		{"shut down by the router's administrator", "local as 64513; neighbor %s as 64512;", nil, fmt.Sprintf(up, 64513)},
	}
	config := router.Kernel + "router id 10.9.0.1;\n"
	for i, test := range tests {
		if test.bird != "" {
			config += fmt.Sprintf("protocol bgp n%d { direct; "+test.bird+" ipv4 { import all; export none; }; }\n", i, fmt.Sprintf("10.9.0.%d", 11+i))
		}
	}
	s := newSite(t, len(tests), config)
	for i, test := range tests {
		s.nodes[i].start(nodeConfig{ASN: nodesASN, Peers: peers(func(p *Peer) {
			p.Name = "tor"
			if test.change != nil {
				test.change(p)
			}
		})[:1]})
	}
	for i, test := range tests {
		if got := s.nodes[i].await(test.want); got.Up != strings.HasSuffix(test.want, "is up") || got.Peer.Name != "tor" {
			t.Errorf("%s: %+v", test.name, got)
		}
	}
	internal, last := s.nodes[len(tests)-2], s.nodes[len(tests)-1]
	internal.do("tell 198.51.100.1")
	s.awaitHops("198.51.100.1", internal.home[0].String())
	last.do("tell 198.51.100.2")
	s.awaitHops("198.51.100.2", last.home[0].String())
	s.bird.Ask(fmt.Sprintf(`disable n%d "row 7 moves"`, len(tests)-1))
	last.await(`an administrator shut it down there, and says "row 7 moves"`)
	s.awaitHops("198.51.100.2")
	before := last.ups()
	s.bird.Ask(fmt.Sprintf("enable n%d", len(tests)-1))
	s.awaitHops("198.51.100.2", last.home[0].String())
	last.awaitUps(before + 1)

	// Another configuration of a peer is another session; the routes are told again.
	last.do("hold 60s")
	last.awaitUps(before + 2)
	s.bird.Await(fmt.Sprintf("show protocols all n%d", len(tests)-1), func(out string) bool { return regexp.MustCompile(`Hold timer: +[0-9.]+/60`).MatchString(out) })
	s.awaitHops("198.51.100.2", last.home[0].String())
}
