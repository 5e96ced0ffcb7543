package balancer

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/ca"
)

// apiServer is a TLS server that says its name at /name, at /stream every moment, and how it is at /readyz and
// /livez, without asking for a client certificate.
type apiServer struct {
	t       *testing.T
	name    string
	address string
	cert    tls.Certificate
	server  *http.Server
	closed  chan struct{} // when the listener is
	readyz  atomic.Int32
	livez   atomic.Int32
	// silent swallows new connections; those that are there go on.
	silent atomic.Bool
	// How often /readyz was asked for, and how many connections there were.
	asked, accepted atomic.Int32
}

// start starts a server that this authority vouches for.
func start(t *testing.T, authority *ca.CA, name string) *apiServer {
	s := &apiServer{t: t, name: name, cert: *authority.Issue(ca.Server("127.0.0.1")), address: "127.0.0.1:0"}
	s.readyz.Store(200)
	s.livez.Store(200)
	s.up()
	t.Cleanup(s.down)
	return s
}

func (s *apiServer) up() {
	s.t.Helper()
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.address = l.Addr().String()
	mux := http.NewServeMux()
	mux.HandleFunc("/name", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, s.name) })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		s.asked.Add(1)
		w.WriteHeader(int(s.readyz.Load()))
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(s.livez.Load())) })
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			fmt.Fprintln(w, s.name)
			_ = http.NewResponseController(w).Flush()
			time.Sleep(5 * time.Millisecond)
		}
	})
	s.server = &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{s.cert}}}
	server, closed := s.server, make(chan struct{})
	s.closed = closed
	go func() {
		_ = server.ServeTLS(&mute{l, s}, "", "")
		close(closed)
	}()
}

// down returns when connections are refused: closing a server that has not begun to serve does not close its listener.
func (s *apiServer) down() {
	_ = s.server.Close()
	<-s.closed
}

// mute accepts connections and, when silent, never says anything on them.
type mute struct {
	net.Listener
	server *apiServer
}

func (m *mute) Accept() (net.Conn, error) {
	for {
		c, err := m.Listener.Accept()
		if err != nil || !m.server.silent.Load() {
			m.server.accepted.Add(1)
			return c, err
		}
	}
}

// quick checks often, but leaves a healthy server of a busy host much time for its answer: a test must not take it for a
// dead one.
var quick = Pace{Every: 20 * time.Millisecond, Limit: time.Minute, Misses: 2, Dial: time.Minute}

// impatient is for servers that fall silent: they count as dead after some four seconds.
var impatient = Pace{Every: 20 * time.Millisecond, Limit: 2 * time.Second, Misses: 2, Dial: 2 * time.Second}

// bench is a balancer before API servers, and a client that only knows the balancer.
type bench struct {
	t         *testing.T
	authority *ca.CA
	*Balancer
	url string
}

func newBench(t *testing.T, pace Pace) *bench {
	b := &bench{t: t, authority: ca.New(t, "kubernetes"), Balancer: New(slog.New(slog.DiscardHandler), pace)}
	t.Cleanup(b.Close)
	return b
}

func (b *bench) set(servers ...*apiServer) {
	b.t.Helper()
	c := wire.LoadBalancer{Listen: "127.0.0.1:0", Authority: b.pem()}
	for _, s := range servers {
		c.Backends = append(c.Backends, s.address)
	}
	if err := b.Set(c); err != nil {
		b.t.Fatal(err)
	}
	b.url = "https://" + b.Address().String()
}

func (b *bench) pem() string { return string(b.authority.PEM()) }

func (b *bench) start(name string) *apiServer { return start(b.t, b.authority, name) }

// client makes a new connection for each request.
func (b *bench) client() *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: b.authority.Pool()}, TLSHandshakeTimeout: time.Minute, ResponseHeaderTimeout: time.Minute}}
}

func (b *bench) who() string {
	resp, err := b.client().Get(b.url + "/name")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	name, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(name)
}

// until waits until a backend's health is as wanted.
func (b *bench) until(s *apiServer, want health) {
	b.t.Helper()
	var is health
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		b.mu.Lock()
		for _, x := range b.backends {
			if x.address == s.address {
				is = x.state
			}
		}
		b.mu.Unlock()
		if is == want {
			return
		}
	}
	b.t.Fatalf("%s is %s, want %s", s.name, is, want)
}

// stream opens a connection that lasts; the channel gets a name for each line and is closed when it breaks.
func (b *bench) stream() <-chan string {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+"/stream", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	client := b.client()
	client.Timeout = 0
	resp, err := client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	names := make(chan string)
	go func() {
		defer close(names)
		defer resp.Body.Close()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			select {
			case names <- lines.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	return names
}

func broken(t *testing.T, stream <-chan string) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		select {
		case _, ok := <-stream:
			if !ok {
				return
			}
		case <-deadline:
			t.Fatal("the connection is still open")
		}
	}
}

func TestConnectionsAreSpreadOverReadyServers(t *testing.T) {
	b := newBench(t, quick)
	one, two := b.start("one"), b.start("two")
	b.set(one, two)
	b.until(one, ready)
	b.until(two, ready)
	seen := map[string]int{}
	for range 6 {
		seen[<-b.stream()]++
	}
	if seen["one"] != 3 || seen["two"] != 3 {
		t.Errorf("%v, want three each", seen)
	}
}

func TestOneThatDiesLosesItsConnectionsAndOthersKeepTheirs(t *testing.T) {
	b := newBench(t, impatient)
	one, two := b.start("one"), b.start("two")
	b.set(one, two)
	b.until(one, ready)
	b.until(two, ready)
	first, second := b.stream(), b.stream()
	if <-first == <-second {
		t.Fatal("both went to one server")
	}
	byName := map[string]<-chan string{<-first: first, <-second: second}
	one.silent.Store(true) // no more answers: not even a refusal
	b.until(one, dead)
	broken(t, byName["one"])
	for range 5 {
		if name := <-byName["two"]; name != "two" {
			t.Fatalf("the other connection says %q", name)
		}
		if name := b.who(); name != "two" {
			t.Fatalf("a new connection reached %q", name)
		}
	}
}

// Clients of a machine without power wait for as long as its checks do: no pause comes on top.
func TestOneThatDoesNotAnswerIsAskedAgainAtOnce(t *testing.T) {
	b := newBench(t, Pace{Every: time.Hour, Limit: 50 * time.Millisecond, Misses: 3, Dial: time.Minute})
	one := b.start("one")
	one.silent.Store(true)
	b.set(one)
	b.until(one, dead)
}

// While a backend is ready, checks share a connection; but not for ever, or one that takes no new clients would pass.
func TestChecksShareAConnectionForAWhile(t *testing.T) {
	pace := impatient
	pace.Fresh = 400 * time.Millisecond
	b := newBench(t, pace)
	one := b.start("one")
	b.set(one)
	b.until(one, ready)
	asked, accepted := one.asked.Load(), one.accepted.Load()
	for one.asked.Load() < asked+40 { // 800 ms at least
		time.Sleep(5 * time.Millisecond)
	}
	if n := one.accepted.Load() - accepted; n < 1 || n > 20 {
		t.Errorf("40 checks opened %d connections", n)
	}
	one.silent.Store(true)
	b.until(one, dead)
	one.silent.Store(false)
	b.until(one, ready)
}

func TestTheOnlyOneKeepsItsConnectionsHoweverSlowItIs(t *testing.T) {
	b := newBench(t, impatient)
	one, two := b.start("one"), b.start("two")
	two.readyz.Store(500)
	two.livez.Store(500)
	b.set(one, two)
	b.until(one, ready)
	b.until(two, speaks)
	if ok, why := b.Health(); !ok || len(why) != 1 || !strings.Contains(why[0], two.address+": /readyz answers 500") {
		t.Errorf("health is %v %q", ok, why)
	}
	stream := b.stream()
	if name := <-stream; name != "one" {
		t.Fatalf("reached %q", name)
	}
	one.silent.Store(true)
	b.until(one, dead)
	for range 5 {
		if name := <-stream; name != "one" {
			t.Fatalf("the connection says %q", name)
		}
	}
	// Now there is somewhere to go.
	two.readyz.Store(200)
	b.until(two, ready)
	broken(t, stream)
}

func TestOneThatRefusesIsLeftAtOnceAndTakenBack(t *testing.T) {
	b := newBench(t, quick)
	one, two := b.start("one"), b.start("two")
	b.set(one, two)
	b.until(one, ready)
	one.down()
	for range 5 {
		if name := b.who(); name != "two" {
			t.Fatalf("reached %q", name)
		}
	}
	b.until(one, dead)
	two.down()
	b.until(two, dead)
	one.up()
	b.until(one, ready)
	if name := b.who(); name != "one" {
		t.Errorf("reached %q", name)
	}
}

func TestReadyBeforeLiveBeforeTheRest(t *testing.T) {
	b := newBench(t, quick)
	one, two := b.start("one"), b.start("two")
	one.readyz.Store(500)
	one.livez.Store(500)
	two.readyz.Store(500)
	b.set(one, two)
	b.until(one, speaks)
	b.until(two, live)
	for range 3 {
		if name := b.who(); name != "two" {
			t.Fatalf("reached %q, want the one that lives", name)
		}
	}
	stream := b.stream()
	one.readyz.Store(200)
	b.until(one, ready)
	if name := b.who(); name != "one" {
		t.Errorf("reached %q, want the one that is ready", name)
	}
	if name := <-stream; name != "two" {
		t.Errorf("a connection to one that only lives was cut: %q", name)
	}
}

// An API server that lost etcd answers, and has everybody wait. Its clients stay while there is no better one.
func TestOneThatIsNotReadyForLongLosesItsConnections(t *testing.T) {
	pace := quick
	pace.Unready = 50 * time.Millisecond
	b := newBench(t, pace)
	one, two := b.start("one"), b.start("two")
	two.readyz.Store(500)
	b.set(one, two)
	b.until(one, ready)
	b.until(two, live)
	stream := b.stream()
	one.readyz.Store(500)
	b.until(one, live)
	for seen := one.asked.Load(); one.asked.Load() < seen+5; {
		if name := <-stream; name != "one" {
			t.Fatalf("the connection says %q", name)
		}
	}
	two.readyz.Store(200)
	broken(t, stream)
	if name := b.who(); name != "two" {
		t.Errorf("reached %q, want the one that is ready", name)
	}
}

func TestWithoutAnyHealthyOneAllAreTried(t *testing.T) {
	b := newBench(t, quick)
	one, two := b.start("one"), b.start("two")
	b.pace.Every, b.pace.Limit = time.Hour, 20*time.Second // one check each, that says nothing new from here on
	one.down()
	two.readyz.Store(500)
	two.livez.Store(500)
	b.set(one, two)
	b.until(one, dead)
	b.until(two, speaks)
	if name := b.who(); name != "two" {
		t.Errorf("reached %q", name)
	}
	two.down()
	one.up() // the check does not know it yet
	if name := b.who(); name != "one" {
		t.Errorf("reached %q", name)
	}
}

func TestAStrangerIsNotAnAPIServer(t *testing.T) {
	b := newBench(t, quick)
	stranger, one := start(t, ca.New(t, "kubernetes"), "stranger"), b.start("one")
	b.set(stranger, one)
	b.until(stranger, dead)
	b.until(one, ready)
	if name := b.who(); name != "one" {
		t.Errorf("reached %q", name)
	}
	b.mu.Lock()
	why := b.backends[0].why
	b.mu.Unlock()
	if !strings.Contains(why, "not an API server of this cluster") {
		t.Errorf("it says %q", why)
	}
}

func TestBackendsChangeUnderLiveConnections(t *testing.T) {
	b := newBench(t, quick)
	one, two, three := b.start("one"), b.start("two"), b.start("three")
	b.set(one, two)
	b.until(one, ready)
	b.until(two, ready)
	first, second := b.stream(), b.stream()
	byName := map[string]<-chan string{<-first: first, <-second: second}
	url := b.url
	b.set(two, three)
	if b.url != url {
		t.Error("the listener moved")
	}
	broken(t, byName["one"])
	b.until(three, ready)
	if name := <-byName["two"]; name != "two" {
		t.Errorf("the connection to one that stayed says %q", name)
	}
	if name := b.who(); name != "three" {
		t.Errorf("reached %q, want the one with fewer connections", name)
	}
}

func TestAHalfClosedConnectionStillAnswers(t *testing.T) {
	b := newBench(t, quick)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if said, err := io.ReadAll(c); err == nil { // to its end
					fmt.Fprintf(c, "heard %s", said)
				}
			}()
		}
	}()
	b.pace.Every = time.Hour // checks find no TLS there
	if err := b.Set(wire.LoadBalancer{Listen: "127.0.0.1:0", Backends: []string{l.Addr().String()}, Authority: b.pem()}); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", b.Address().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "all of it")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(c); string(answer) != "heard all of it" {
		t.Errorf("%q, %v", answer, err)
	}
}

func TestATakenPortIsNamed(t *testing.T) {
	b := newBench(t, quick)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = b.Set(wire.LoadBalancer{Listen: l.Addr().String(), Authority: b.pem()})
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()) || !strings.Contains(err.Error(), "localPort") {
		t.Errorf("got %v", err)
	}
}

func TestAnEmptyOneClosesTheListenerAndConnections(t *testing.T) {
	b := newBench(t, quick)
	one := b.start("one")
	b.set(one)
	stream := b.stream()
	if err := b.Set(wire.LoadBalancer{}); err != nil {
		t.Fatal(err)
	}
	broken(t, stream)
	if b.Address() != nil {
		t.Error("it still listens")
	}
}

func TestRunEndsWithEverything(t *testing.T) {
	b := newBench(t, quick)
	one := b.start("one")
	b.set(one)
	stream := b.stream()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	broken(t, stream)
	if err := b.Set(wire.LoadBalancer{Listen: "127.0.0.1:0", Authority: b.pem()}); err == nil {
		t.Error("a closed balancer listens again")
	}
}
