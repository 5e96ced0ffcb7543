package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	base "coldrack.dev/internal/base/netns"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// within is how long tests wait for what happens by itself.
const within = time.Minute

// segment is a rack's network: the server at 10.20.0.1, a machine at 10.20.0.11 and a site's name server, named, at 10.20.0.53, on one
// switch. The machine has a second address, in no Subnet.
type segment struct {
	t                     *testing.T
	server, machine, site *netns.NS
	responder             *Server
	prepare               map[string]string // files for named
	forwarder             *Forwarder

	mu        sync.Mutex
	zones     *Zones
	upstreams []netip.AddrPort
}

func newSegment(t *testing.T) *segment {
	t.Helper()
	s := &segment{t: t, server: netns.New(t), machine: netns.New(t), site: netns.New(t), zones: Build(rack(), fixed)}
	s.server.Bridge("rack")
	s.server.Plug("rack", "to-machine", s.machine, "eth0")
	s.server.Plug("rack", "to-site", s.site, "eth0")
	s.server.Address("rack", "10.20.0.1/24")
	s.server.Address("rack", "198.51.100.1/24")
	s.machine.Address("eth0", "10.20.0.11/24")
	s.machine.Address("eth0", "198.51.100.11/24")
	s.site.Address("eth0", "10.20.0.53/24")
	s.forwarder = &Forwarder{Dial: func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
		return base.Dial(ctx, s.server.Path(), network, to.String())
	}}
	s.upstreams = []netip.AddrPort{netip.MustParseAddrPort("10.20.0.53:53")}
	s.responder = New(Options{
		Zones:     func() *Zones { s.mu.Lock(); defer s.mu.Unlock(); return s.zones },
		Forwarder: s.forwarder, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Upstreams: func(client netip.Addr) ([]netip.AddrPort, bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.upstreams, netip.MustParsePrefix("10.20.0.0/24").Contains(client)
		},
	})
	conn, err := base.ListenPacket(t.Context(), s.server.Path(), "udp", ":53")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := base.Listen(t.Context(), s.server.Path(), "tcp", ":53")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		if err := s.responder.ServeUDP(ctx, conn.(*net.UDPConn)); err != nil {
			t.Error(err)
		}
	})
	ended.Go(func() {
		if err := s.responder.ServeTCP(ctx, listener); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); ended.Wait() })
	return s
}

func (s *segment) set(zones *Zones, upstreams ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zones, s.upstreams = zones, nil
	for _, u := range upstreams {
		s.upstreams = append(s.upstreams, netip.MustParseAddrPort(u))
	}
}

// dig asks the server from the machine; its lines, joined by a space.
func (s *segment) dig(args ...string) string {
	out, err := s.machine.Try(s.t.Context(), append([]string{"dig", "@10.20.0.1", "+tries=1", "+time=8"}, args...)...)
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return strings.Join(strings.Fields(out), " ")
}

// named runs BIND in the site's namespace, which knows the zone example.net, and the site's copies of ours where secondaries are given.
func (s *segment) named(options, zones string) (dir string) {
	t := s.t
	t.Helper()
	dir = t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range s.prepare {
		write(name, content)
	}
	var big strings.Builder
	for i := range 60 {
		fmt.Fprintf(&big, "big TXT \"%02d %s\"\n", i, strings.Repeat("x", 40))
	}
	write("example.net", "$TTL 60\n@ SOA ns hostmaster 1 60 60 60 60\n@ NS ns\nns A 10.20.0.53\nwww A 203.0.113.80\nwww AAAA 2001:db8::80\nalias CNAME www\n"+big.String())
	write("named.conf", fmt.Sprintf(`%s
options { directory %q; pid-file none; session-keyfile none; listen-on { any; }; listen-on-v6 { none; }; recursion no; allow-query { any; }; dnssec-validation no; %s };
controls {};
zone "example.net" { type primary; file "example.net"; allow-transfer { none; }; };
%s`, keyClause, dir, options, zones))
	command := exec.Command(require.Program("named"), "-g", "-c", filepath.Join(dir, "named.conf"), "-n", "1")
	log := &strings.Builder{}
	command.Stdout, command.Stderr = log, log
	if err := s.site.Start(command); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		if t.Failed() {
			t.Logf("named:\n%s", log)
		}
	})
	s.eventually("named answers", func() bool {
		out, err := s.site.Try(t.Context(), "dig", "@10.20.0.53", "+tries=1", "+time=1", "+short", "www.example.net")
		return err == nil && strings.TrimSpace(out) == "203.0.113.80"
	})
	return dir
}

const keyClause = `key "coldrack" { algorithm hmac-sha256; secret "c2VjcmV0LW9mLXRoZS1yYWNrLWZvci10ZXN0cyE="; };`

func (s *segment) eventually(what string, is func() bool) {
	s.t.Helper()
	for end := time.Now().Add(within); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not within %s: %s", within, what)
		}
	}
}

func TestForeignClients(t *testing.T) {
	require.Need(t, "netns", "dig", "host", "nslookup", "named")
	s := newSegment(t)
	s.named("", "")
	for _, test := range []struct {
		what string
		args []string
		want []string // parts of the answer
	}{
		{"an address", []string{"db.rack.example.org"}, []string{"status: NOERROR", "flags: qr aa rd ra;", "db.rack.example.org. 60 IN A 10.20.0.11", "udp: 1232"}},
		{"in the case that was asked", []string{"DB.Rack.Example.Org", "AAAA"}, []string{"DB.Rack.Example.Org. 60 IN AAAA fd00:20::11"}},
		{"over TCP", []string{"+tcp", "db.rack.example.org"}, []string{"db.rack.example.org. 60 IN A 10.20.0.11", "(TCP)"}},
		{"without EDNS", []string{"+noedns", "db.rack.example.org"}, []string{"IN A 10.20.0.11", "ADDITIONAL: 0"}},
		{"without recursion", []string{"+norecurse", "db.rack.example.org"}, []string{"flags: qr aa ra;", "IN A 10.20.0.11"}},
		{"the other way round", []string{"-x", "10.20.0.11"}, []string{"11.0.20.10.in-addr.arpa. 60 IN PTR db.rack.example.org."}},
		{"the other way round, IPv6", []string{"-x", "fd00:20::11"}, []string{"IN PTR db.rack.example.org."}},
		{"a service, with its address", []string{"_kubernetes._tcp.prod.rack.example.org", "SRV"}, []string{"SRV 0 0 6443 api.prod.rack.example.org.", "ADDITIONAL SECTION: api.prod.rack.example.org. 60 IN A 10.20.0.5"}},
		{"a name that nobody has", []string{"m-4.rack.example.org"}, []string{"status: NXDOMAIN", "rack.example.org. 15 IN SOA"}},
		{"a type that a name has not", []string{"db.rack.example.org", "MX"}, []string{"status: NOERROR", "ANSWER: 0", "rack.example.org. 15 IN SOA"}},
		{"a later EDNS", []string{"+edns=1", "+noednsnegotiation", "db.rack.example.org"}, []string{"status: BADVERS"}},
		{"another class", []string{"-c", "CH", "version.bind", "TXT"}, []string{"status: REFUSED"}},
		{"all of a zone", []string{"rack.example.org", "AXFR"}, []string{"Transfer failed"}},
		{"an update", []string{"+opcode=update", "rack.example.org", "SOA"}, []string{"status: NOTIMP"}},
		{"another's name", []string{"www.example.net"}, []string{"status: NOERROR", "flags: qr rd ra;", "www.example.net. 60 IN A 203.0.113.80"}},
		{"through an alias", []string{"alias.example.net", "AAAA"}, []string{"IN CNAME www.example.net.", "IN AAAA 2001:db8::80"}},
		{"one that the other does not have", []string{"nobody.example.net"}, []string{"status: NXDOMAIN", "example.net. 60 IN SOA"}},
		{"more than a datagram has room for", []string{"+ignore", "big.example.net", "TXT"}, []string{"flags: qr tc rd ra;"}},
		{"and then over TCP", []string{"big.example.net", "TXT"}, []string{"Truncated, retrying in TCP mode", "ANSWER: 60"}},
		{"another's name without recursion", []string{"+norecurse", "www.example.net"}, []string{"status: REFUSED"}},
	} {
		got := s.dig(test.args...)
		for _, part := range test.want {
			if !strings.Contains(got, part) {
				t.Errorf("%s: %q is not in\n%s", test.what, part, got)
			}
		}
	}
	if out := s.machine.Run("host", "db.rack.example.org", "10.20.0.1"); !strings.Contains(out, "db.rack.example.org has address 10.20.0.11") || !strings.Contains(out, "db.rack.example.org has IPv6 address fd00:20::11") {
		t.Errorf("host: %s", out)
	}
	if out := s.machine.Run("nslookup", "10.20.0.11", "10.20.0.1"); !strings.Contains(out, "name = db.rack.example.org.") {
		t.Errorf("nslookup: %s", out)
	}

	// A name that comes and goes is known without a restart.
	in := rack()
	in.Claims = append(in.Claims, Claim{"m-4.rack.example.org", addresses("10.20.0.14"), 2, "Machine m-4"})
	s.set(Build(in, fixed), "10.20.0.53:53")
	if got := s.dig("+short", "m-4.rack.example.org"); got != "10.20.0.14" {
		t.Errorf("a new machine: %s", got)
	}
	stats := s.responder.Stats()
	if stats.Own == 0 || stats.NoSuchName == 0 || stats.Forwarded == 0 || stats.Truncated == 0 || stats.TCP < 2 || stats.Failed != 0 || stats.Strangers != 0 {
		t.Errorf("counted: %+v", stats)
	}
}

// Who is in no Subnet hears nothing, not even that he is refused.
func TestStrangersHearNothing(t *testing.T) {
	require.Need(t, "netns", "dig")
	s := newSegment(t)
	for _, args := range [][]string{{}, {"+tcp"}} {
		got := s.dig(append(args, "-b", "198.51.100.11", "+time=1", "db.rack.example.org")...)
		if strings.Contains(got, "status:") {
			t.Errorf("a stranger %v is answered: %s", args, got)
		}
	}
	if n := s.responder.Stats().Strangers; n < 2 {
		t.Errorf("%d strangers were counted", n)
	}
}

func TestUpstreamsThatFail(t *testing.T) {
	require.Need(t, "netns", "dig", "named")
	s := newSegment(t)
	s.named("", "")
	zones := Build(rack(), fixed)
	s.set(zones)
	if got := s.dig("www.example.net"); !strings.Contains(got, "status: REFUSED") || strings.Contains(got, " ra") {
		t.Errorf("without upstreams: %s", got)
	}
	s.set(zones, "10.20.0.99:53", "10.20.0.53:53")
	if got := s.dig("+short", "www.example.net"); got != "203.0.113.80" {
		t.Errorf("the second upstream did not help: %s", got)
	}
	s.set(zones, "10.20.0.99:53")
	if got := s.dig("www.example.net"); !strings.Contains(got, "status: SERVFAIL") {
		t.Errorf("without an upstream that answers: %s", got)
	}
	s.set(zones, "10.20.0.53:53")
	if got := s.dig("www.example.com"); !strings.Contains(got, "status: REFUSED") {
		t.Errorf("what the upstream refuses: %s", got)
	}
}

// The site's server forwards to us what we ask it: the question comes to an end.
func TestLoopsEnd(t *testing.T) {
	require.Need(t, "netns", "dig", "named")
	s := newSegment(t)
	s.named("", `zone "loop.test" { type forward; forward only; forwarders { 10.20.0.1; }; };`)
	before := s.responder.Stats().UDP
	got := s.dig("a.loop.test")
	if !strings.Contains(got, "status: REFUSED") && !strings.Contains(got, "status: SERVFAIL") {
		t.Errorf("a loop: %s", got)
	}
	s.eventually("nothing is being asked", func() bool { return s.forwarder.Asking() == 0 })
	if asked := s.responder.Stats().UDP - before; asked > 10 {
		t.Errorf("a question that goes round in a circle became %d", asked)
	}
}

func TestJunk(t *testing.T) {
	s := New(Options{Zones: func() *Zones { return Build(rack(), fixed) }, Forwarder: &Forwarder{}, Log: slog.New(slog.DiscardHandler)})
	client := netip.MustParseAddr("10.20.0.11")
	ask := new(mdns.Msg).SetQuestion("db.rack.example.org.", mdns.TypeA)
	edit := func(change func(m *mdns.Msg)) []byte {
		m := ask.Copy()
		change(m)
		packet, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return packet
	}
	good := edit(func(*mdns.Msg) {})
	for what, test := range map[string]struct {
		packet []byte
		rcode  int // -1: no answer
	}{
		"a question":           {good, mdns.RcodeSuccess},
		"nothing":              {nil, -1},
		"half a header":        {good[:11], -1},
		"half a question":      {good[:20], mdns.RcodeFormatError},
		"an answer":            {edit(func(m *mdns.Msg) { m.Response = true }), -1},
		"half an answer":       {edit(func(m *mdns.Msg) { m.Response = true })[:20], -1},
		"no question":          {edit(func(m *mdns.Msg) { m.Question = nil }), mdns.RcodeFormatError},
		"two questions":        {edit(func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) }), mdns.RcodeFormatError},
		"a notification":       {edit(func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify }), mdns.RcodeNotImplemented},
		"a name out of itself": {append(binary.BigEndian.AppendUint16(nil, 9), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1), mdns.RcodeFormatError},
	} {
		answer, forward := s.answer(test.packet, client, nil, false)
		if forward != nil {
			t.Errorf("%s is forwarded", what)
			continue
		}
		if test.rcode < 0 {
			if answer != nil {
				t.Errorf("%s is answered: % x", what, answer)
			}
			continue
		}
		var got mdns.Msg
		if err := got.Unpack(answer); err != nil || got.Rcode != test.rcode || got.Id != binary.BigEndian.Uint16(test.packet) || !got.Response {
			t.Errorf("%s: %v, %v", what, &got, err)
		}
	}
}

// An answer is never much larger than the datagrams that a client says it takes, and than 1232 bytes.
func FuzzPackets(f *testing.F) {
	s := New(Options{Zones: func() *Zones { return Build(rack(), fixed) }, Forwarder: &Forwarder{}, Log: slog.New(slog.DiscardHandler)})
	packet, _ := new(mdns.Msg).SetQuestion("db.rack.example.org.", mdns.TypeANY).Pack()
	f.Add(packet)
	f.Fuzz(func(t *testing.T, packet []byte) {
		answer, _ := s.answer(packet, netip.MustParseAddr("10.20.0.11"), nil, false)
		if len(answer) == 0 {
			return
		}
		var got mdns.Msg
		if err := got.Unpack(answer); err != nil || len(answer) > udpSize || !got.Response {
			t.Errorf("% x gets % x: %v", packet, answer, err)
		}
		if again, _ := s.answer(answer, netip.MustParseAddr("10.20.0.11"), nil, false); again != nil {
			t.Errorf("the answer % x is answered", answer)
		}
	})
}

// A liar that answers faster must know the number and the question.
func TestAnswersOfOthersAreNotBelieved(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var q mdns.Msg
			if q.Unpack(buf[:n]) != nil {
				continue
			}
			reply := func(address string, change func(m *mdns.Msg)) {
				m := new(mdns.Msg).SetReply(&q)
				m.Answer = []mdns.RR{addressRecord(q.Question[0].Name, netip.MustParseAddr(address))}
				change(m)
				packet, _ := m.Pack()
				_, _ = conn.WriteTo(packet, from)
			}
			_, _ = conn.WriteTo([]byte("junk"), from)
			reply("192.0.2.1", func(m *mdns.Msg) { m.Id++ })
			reply("192.0.2.2", func(m *mdns.Msg) { m.Question[0].Name = "other.test." })
			reply("192.0.2.3", func(m *mdns.Msg) { m.Response = false })
			reply("203.0.113.1", func(*mdns.Msg) {})
		}
	}()
	f := &Forwarder{Dial: func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, to.String())
	}}
	at := []netip.AddrPort{conn.LocalAddr().(*net.UDPAddr).AddrPort()}
	got, err := f.Ask(t.Context(), new(mdns.Msg).SetQuestion("www.test.", mdns.TypeA), at, false)
	if err != nil || len(got.Answer) != 1 || !strings.HasSuffix(got.Answer[0].String(), "203.0.113.1") {
		t.Errorf("believed: %v, %v", got, err)
	}
}

func TestPlacesAreBounded(t *testing.T) {
	f := &Forwarder{}
	var releases []func()
	take := func(client string) bool {
		release, ok := f.Reserve(netip.MustParseAddr(client))
		if ok {
			releases = append(releases, release)
		}
		return ok
	}
	for i := range perAsker {
		if !take("10.20.0.11") {
			t.Fatalf("a client has only %d places", i)
		}
	}
	if take("10.20.0.11") {
		t.Error("a client has more places than its share")
	}
	for i := 0; take(fmt.Sprintf("10.20.1.%d", i%200)); i++ {
	}
	if f.Asking() != maxAsking {
		t.Errorf("%d places", f.Asking())
	}
	for _, release := range releases {
		release()
	}
	if f.Asking() != 0 || len(f.asking) != 0 || !take("10.20.0.11") {
		t.Errorf("places are lost: %d, %v", f.Asking(), f.asking)
	}
}

// A connection that says nothing, or half of something, keeps nobody from his answer.
func TestSilentConnections(t *testing.T) {
	require.Need(t, "netns", "dig")
	s := newSegment(t)
	for i := range connsPerClient - 1 {
		conn, err := base.Dial(t.Context(), s.machine.Path(), "tcp", "10.20.0.1:53")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write([]byte{0, 40, byte(i)})
	}
	if got := s.dig("+tcp", "+short", "db.rack.example.org"); got != "10.20.0.11" {
		t.Errorf("beside silent connections: %s", got)
	}
	// Two questions at once come back in order.
	conn, err := base.Dial(t.Context(), s.machine.Path(), "tcp", "10.20.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(within))
	var both []byte
	for id := range uint16(2) {
		m := new(mdns.Msg).SetQuestion("db.rack.example.org.", mdns.TypeA)
		m.Id = id
		packet, _ := m.Pack()
		both = append(binary.BigEndian.AppendUint16(both, uint16(len(packet))), packet...)
	}
	_, _ = conn.Write(both)
	for id := range uint16(2) {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			t.Fatal(err)
		}
		raw := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, raw); err != nil {
			t.Fatal(err)
		}
		if got := binary.BigEndian.Uint16(raw); got != id {
			t.Errorf("answer %d comes as number %d", got, id)
		}
	}
}
