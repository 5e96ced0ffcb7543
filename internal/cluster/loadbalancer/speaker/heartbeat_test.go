package speaker

import (
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/cluster/loadbalancer"
)

var testKey = []byte("0123456789abcdef0123456789abcdef")

func TestHeartbeatsComeBackAsTheyWere(t *testing.T) {
	for _, h := range []heartbeat{
		{1, loadbalancer.Ready, "node-1", []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("fd09::/64")}},
		{1 << 63, loadbalancer.Absent, strings.Repeat("n", 253), nil},
	} {
		got, err := decode(h.encode(testKey), testKey)
		if err != nil || !reflect.DeepEqual(got, h) {
			t.Errorf("got %+v, %v, want %+v", got, err, h)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(heartbeat{1, loadbalancer.Ready, "node-1", []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}}.encode(testKey))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := decode(append(b, sign(b, testKey)...), testKey); err == nil {
			if again, err := decode(h.encode(testKey), testKey); err != nil || !reflect.DeepEqual(again, h) {
				t.Errorf("%+v becomes %+v, %v", h, again, err)
			}
		}
	})
}

func TestHeartbeatsOfStrangersAreNoHeartbeats(t *testing.T) {
	good := heartbeat{1, loadbalancer.Ready, "node-1", nil}.encode(testKey)
	for name, b := range map[string][]byte{
		"another key": heartbeat{1, loadbalancer.Ready, "node-1", nil}.encode([]byte("another key of 32 bytes, as long")),
		"changed":     append(append([]byte{}, good[:12]...), append([]byte{0}, good[13:]...)...),
		"cut off":     good[:20], "nothing": nil,
	} {
		if _, err := decode(b, testKey); err == nil {
			t.Errorf("%s: taken for a heartbeat", name)
		}
	}
}

type noAnswerer struct{ set []netip.Addr }

func (a *noAnswerer) Set(addresses []netip.Addr) { a.set = addresses }
func (a *noAnswerer) Tell()                      {}
func (a *noAnswerer) Networks() []netip.Prefix   { return nil }

func testSpeaker() (*Speaker, *noAnswerer) {
	a := &noAnswerer{}
	s := &Speaker{Options: Options{Log: slog.New(slog.DiscardHandler), Node: "node-1", Key: testKey, Pace: UsualPace(), Answerer: a},
		standing: loadbalancer.Ready, listening: true, poke: make(chan struct{}, 1), heard: map[string]peer{}, holding: map[netip.Addr]bool{}}
	s.SetPeers(map[string]netip.AddrPort{"node-1": {}, "node-2": {}})
	s.SetAddresses([]loadbalancer.Address{{Addr: netip.MustParseAddr("10.9.0.200"), Nodes: []string{"node-2"}}, {Addr: netip.MustParseAddr("10.9.0.201")}})
	s.peers = map[string]netip.AddrPort{"node-2": {}}
	return s, a
}

// A heartbeat that somebody has recorded, and sends again after its node has died, must not keep the node alive.
func TestARecordedHeartbeatCountsOnce(t *testing.T) {
	s, _ := testSpeaker()
	start := time.Now()
	h := heartbeat{number: 5, standing: loadbalancer.Ready, node: "node-2"}
	s.hear(h, start)
	if got := len(s.present(start)); got != 2 {
		t.Fatalf("%d nodes, want 2", got)
	}
	late := start
	for late.Sub(start) <= s.Pace.Lost {
		late = late.Add(s.Pace.Every)
		s.hear(h, late)
		s.present(late)
	}
	if got := len(s.present(late)); got != 1 {
		t.Errorf("%d nodes, want 1", got)
	}
	s.hear(heartbeat{number: 6, standing: loadbalancer.Ready, node: "node-3"}, late)
	if got := len(s.present(late)); got != 1 {
		t.Errorf("a node that is not of the cluster counts")
	}
}

// A node that was itself held up, by a busy machine or a hypervisor, has not listened.
func TestWhoWasHeldUpTakesNothing(t *testing.T) {
	s, a := testSpeaker()
	s.addresses = []loadbalancer.Address{{Addr: netip.MustParseAddr("10.9.0.200")}, {Addr: netip.MustParseAddr("10.9.0.201")}, {Addr: netip.MustParseAddr("10.9.0.202")}, {Addr: netip.MustParseAddr("10.9.0.203")}}
	now := time.Now()
	s.hear(heartbeat{number: 5, standing: loadbalancer.Ready, node: "node-2"}, now)
	s.elect(now)
	part := len(a.set)
	if part == len(s.addresses) {
		t.Fatal("one of two has all addresses; the test needs others")
	}
	now = now.Add(time.Minute)
	s.elect(now)
	if len(a.set) != part {
		t.Errorf("it answers for %d addresses, want still %d", len(a.set), part)
	}
	for range 7 {
		now = now.Add(s.Pace.Every)
		s.elect(now)
	}
	if len(a.set) != len(s.addresses) {
		t.Errorf("the other is silent; it answers for %d addresses, want all %d", len(a.set), len(s.addresses))
	}
}
