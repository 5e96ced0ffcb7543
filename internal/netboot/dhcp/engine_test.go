package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"coldrack.dev/internal/netboot/lease"
)

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func addrs(all ...string) []netip.Addr {
	var list []netip.Addr
	for _, s := range all {
		list = append(list, addr(s))
	}
	return list
}

func mac(n int) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, byte(n >> 8), byte(n)} }

// fakeBackend knows machines by MAC.
type fakeBackend struct {
	machines map[string]Reservation
	options  map[string][]Option
	seen     []Observation
}

func (b *fakeBackend) Reservation(subnet netip.Prefix, q Query) (Reservation, bool) {
	r, ok := b.machines[q.MAC]
	return r, ok && subnet.Contains(r.Address)
}

func (b *fakeBackend) Options(q Query) []Option { return b.options[q.MAC] }

func (b *fakeBackend) Reserved(a netip.Addr) bool {
	for _, r := range b.machines {
		if r.Address == a {
			return true
		}
	}
	return false
}

func (b *fakeBackend) BootFile(_ netip.Prefix, q Query) (BootFile, bool) {
	switch {
	case q.HTTP:
		return BootFile{File: fmt.Sprintf("http://%s:8080/snponly.efi", q.Server)}, true
	case q.IPXE:
		return BootFile{File: fmt.Sprintf("http://%s:8080/boot.ipxe", q.Server)}, true
	case q.PXE && q.Arch == 0:
		return BootFile{File: "undionly.kpxe"}, true
	case q.PXE && q.Arch == 7:
		return BootFile{File: "snponly.efi", NextServer: addr("192.0.2.77")}, true
	}
	return BootFile{}, false
}

func (b *fakeBackend) Observe(o Observation) { b.seen = append(b.seen, o) }

func (b *fakeBackend) events() string {
	var words []string
	for _, o := range b.seen {
		words = append(words, strings.TrimSpace(string(o.Event)+" "+strings.TrimPrefix(o.Address.String(), "invalid IP")))
	}
	b.seen = nil
	return strings.Join(words, ", ")
}

// fakeLink keeps what is sent and answers probes as told.
type fakeLink struct {
	own     []netip.Addr
	sent    []outgoing
	holders map[netip.Addr]net.HardwareAddr
	proxy   net.HardwareAddr // answers for every address
	probes  []netip.Addr
	// later, when set, collects the probes' results instead of giving them at once.
	later *[]func()
}

func (l *fakeLink) name() string            { return "eth0" }
func (l *fakeLink) addresses() []netip.Addr { return l.own }
func (l *fakeLink) send(out outgoing)       { l.sent = append(l.sent, out) }
func (l *fakeLink) probe(a netip.Addr, done func([]net.HardwareAddr)) bool {
	l.probes = append(l.probes, a)
	result := func() {
		var all []net.HardwareAddr
		for _, holder := range []net.HardwareAddr{l.proxy, l.holders[a]} {
			if holder != nil {
				all = append(all, holder)
			}
		}
		done(all)
	}
	if l.later != nil {
		*l.later = append(*l.later, result)
	} else {
		result()
	}
	return true
}

// stage is an engine with everything around it under the test's control.
type stage struct {
	t       testing.TB
	backend *fakeBackend
	link    *fakeLink
	engine  *engine
	now     time.Time
	stored  []lease.Record
	fail    error // what the store says
}

func rack() Subnet {
	return Subnet{Name: "rack", CIDR: netip.MustParsePrefix("192.0.2.0/24"), Pool: Range{From: addr("192.0.2.100"), To: addr("192.0.2.103")},
		Router: addr("192.0.2.254"), DNS: addrs("192.0.2.253", "198.51.100.1"), NTP: addrs("192.0.2.1"), Domain: "rack.example",
		Mode: ModeServer, LeaseTime: 10 * time.Minute}
}

func remote() Subnet {
	return Subnet{Name: "remote", CIDR: netip.MustParsePrefix("198.51.100.0/24"), Pool: Range{From: addr("198.51.100.10"), To: addr("198.51.100.20")},
		Mode: ModeServer, Relays: addrs("203.0.113.9")}
}

func newStage(t testing.TB, subnets ...Subnet) *stage {
	t.Helper()
	if len(subnets) == 0 {
		subnets = []Subnet{rack(), remote()}
	}
	s := &stage{t: t, now: time.Unix(1_800_000_000, 0),
		backend: &fakeBackend{machines: map[string]Reservation{}},
		link:    &fakeLink{own: addrs("192.0.2.1"), holders: map[netip.Addr]net.HardwareAddr{}}}
	config := Config{Interfaces: []string{"eth0"}, Subnets: subnets}
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	s.engine = newEngine(s.backend, slog.New(slog.DiscardHandler), func() time.Time { return s.now }, func(r lease.Record, done func(error)) {
		if s.fail == nil {
			s.stored = append(s.stored, r)
		}
		if done != nil {
			done(s.fail)
		}
	}, &counters{})
	s.engine.configure(config, nil)
	return s
}

// say gives the engine a message; the answer is nil when it is silent.
func (s *stage) say(m *dhcpv4.DHCPv4, destination string) (*dhcpv4.DHCPv4, outgoing) {
	s.t.Helper()
	s.link.sent = nil
	s.engine.handle(incoming{link: s.link, source: toNetip(m.ClientIPAddr), destination: addr(destination), payload: m.ToBytes()})
	return s.answer()
}

func (s *stage) answer() (*dhcpv4.DHCPv4, outgoing) {
	s.t.Helper()
	if len(s.link.sent) == 0 {
		return nil, outgoing{}
	}
	if len(s.link.sent) > 1 {
		s.t.Fatalf("%d answers", len(s.link.sent))
	}
	reply, err := dhcpv4.FromBytes(s.link.sent[0].payload)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply, s.link.sent[0]
}

type change1 = func(*dhcpv4.DHCPv4)

// message makes a client's message. It wants the answer as a broadcast unless told otherwise.
func message(kind dhcpv4.MessageType, client int, changes ...change1) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, ClientHWAddr: mac(client),
		TransactionID: dhcpv4.TransactionID{1, 2, 3, 4}, Options: dhcpv4.Options{}}
	m.SetBroadcast()
	m.UpdateOption(dhcpv4.OptMessageType(kind))
	for _, change := range changes {
		change(m)
	}
	return m
}

func asking(a string) change1 {
	return func(m *dhcpv4.DHCPv4) { m.UpdateOption(dhcpv4.OptRequestedIPAddress(addr(a).AsSlice())) }
}
func ofServer(a string) change1 {
	return func(m *dhcpv4.DHCPv4) { m.UpdateOption(dhcpv4.OptServerIdentifier(addr(a).AsSlice())) }
}
func having(a string) change1 {
	return func(m *dhcpv4.DHCPv4) { m.ClientIPAddr = addr(a).AsSlice() }
}
func via(relay string) change1 {
	return func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = addr(relay).AsSlice(); m.HopCount = 1 }
}
func option(code uint8, value ...byte) change1 {
	return func(m *dhcpv4.DHCPv4) {
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(code), value))
	}
}
func unicast(m *dhcpv4.DHCPv4) { m.SetUnicast() }

// got puts an answer into one line.
func got(m *dhcpv4.DHCPv4) string {
	if m == nil {
		return "silence"
	}
	s := strings.ToLower(m.MessageType().String())
	if !m.YourIPAddr.IsUnspecified() {
		s += " " + m.YourIPAddr.String()
	}
	if text := m.Message(); text != "" {
		s += ": " + text
	}
	return s
}

func (s *stage) expect(what, want, events string, m *dhcpv4.DHCPv4, destination ...string) *dhcpv4.DHCPv4 {
	s.t.Helper()
	s.backend.events()
	to := "255.255.255.255"
	if len(destination) > 0 {
		to = destination[0]
	}
	reply, _ := s.say(m, to)
	if got(reply) != want {
		s.t.Fatalf("%s: got %q, want %q", what, got(reply), want)
	}
	if seen := s.backend.events(); seen != events {
		s.t.Fatalf("%s: observed %q, want %q", what, seen, events)
	}
	return reply
}

const (
	discover = dhcpv4.MessageTypeDiscover
	request  = dhcpv4.MessageTypeRequest
	decline  = dhcpv4.MessageTypeDecline
	release  = dhcpv4.MessageTypeRelease
	inform   = dhcpv4.MessageTypeInform
)

// lease takes a client through DISCOVER and REQUEST.
func (s *stage) lease(client int, want string) {
	s.t.Helper()
	s.expect("discover", "offer "+want, "offered "+want, message(discover, client))
	s.expect("request", "ack "+want, "acknowledged "+want, message(request, client, asking(want), ofServer("192.0.2.1")))
}

func TestWhoseTurnItIsNotComesAgain(t *testing.T) {
	s := newStage(t)
	turn := false
	s.engine.admit = func(q Query) bool {
		if q.MAC != mac(1).String() {
			t.Errorf("asked about %s", q.MAC)
		}
		return turn
	}
	s.expect("not yet", "silence", "", message(discover, 1))
	if n := s.engine.count.deferred.Load(); n != 1 {
		t.Errorf("%d deferred", n)
	}
	turn = true
	s.expect("now", "offer 192.0.2.100", "offered 192.0.2.100", message(discover, 1))
	turn = false
	s.expect("what was offered is given whatever came in between", "ack 192.0.2.100", "acknowledged 192.0.2.100",
		message(request, 1, asking("192.0.2.100"), ofServer("192.0.2.1")))
}

func TestAnUnknownClientGetsALeaseFromThePool(t *testing.T) {
	s := newStage(t)
	s.lease(1, "192.0.2.100")
	if len(s.stored) != 1 || s.stored[0].Client != mac(1).String() || s.stored[0].Until.Before(s.now.Add(10*time.Minute)) {
		t.Errorf("stored %+v", s.stored)
	}
	s.lease(2, "192.0.2.101")
	s.expect("a client that comes again", "offer 192.0.2.100", "offered 192.0.2.100", message(discover, 1))
}

func TestAKnownMachineGetsItsAddressAndTouchesNoStore(t *testing.T) {
	s := newStage(t)
	s.backend.machines[mac(1).String()] = Reservation{Address: addr("192.0.2.10"), Hostname: "node-1"}
	s.lease(1, "192.0.2.10")
	s.expect("renewing", "ack 192.0.2.10", "acknowledged 192.0.2.10", message(request, 1, having("192.0.2.10")), "192.0.2.1")
	s.expect("after a reboot", "ack 192.0.2.10", "acknowledged 192.0.2.10", message(request, 1, asking("192.0.2.10")))
	if len(s.stored) != 0 || len(s.link.probes) != 1 {
		t.Errorf("stored %v, probed %v", s.stored, s.link.probes)
	}
}

func TestRequests(t *testing.T) {
	// Client 1 has the lease of 192.0.2.100, client 2 the reservation of 192.0.2.10.
	tests := map[string]struct {
		message      *dhcpv4.DHCPv4
		to           string
		want, events string
	}{
		"renewing by unicast":    {message(request, 1, having("192.0.2.100")), "192.0.2.1", "ack 192.0.2.100", "acknowledged 192.0.2.100"},
		"rebinding by broadcast": {message(request, 1, having("192.0.2.100")), "", "ack 192.0.2.100", "acknowledged 192.0.2.100"},
		"after a reboot":         {message(request, 1, asking("192.0.2.100")), "", "ack 192.0.2.100", "acknowledged 192.0.2.100"},
		"after a reboot on another network": {message(request, 1, asking("10.9.9.9")), "",
			"nak: 10.9.9.9 is not in this network, 192.0.2.0/24", "refused 10.9.9.9"},
		"after a reboot with another's address": {message(request, 3, asking("192.0.2.100")), "",
			"nak: 192.0.2.100 is not available", "refused 192.0.2.100"},
		"after a reboot, with a lease we have lost": {message(request, 3, asking("192.0.2.103")), "",
			"ack 192.0.2.103", "acknowledged 192.0.2.103"},
		"after a reboot, of an unknown client outside of the pool, who may be another server's": {
			message(request, 3, asking("192.0.2.50")), "", "silence", ""},
		"after a reboot, of a client we know to have another address": {message(request, 1, asking("192.0.2.50")), "",
			"nak: 192.0.2.50 was not given to this client", "refused 192.0.2.50"},
		"of a known machine with an address of the pool": {message(request, 2, asking("192.0.2.101")), "",
			"nak: this machine has the reserved address 192.0.2.10", "refused 192.0.2.101"},
		"for another machine's reserved address": {message(request, 3, asking("192.0.2.10")), "", "silence", ""},
		"selecting what was never offered": {message(request, 3, asking("192.0.2.50"), ofServer("192.0.2.1")), "",
			"nak: 192.0.2.50 was not given to this client", "refused 192.0.2.50"},
		"selecting another server's offer": {message(request, 3, asking("192.0.2.101"), ofServer("192.0.2.66")), "",
			"silence", "foreign-server 192.0.2.66"},
		"without any address":          {message(request, 3), "", "silence", ""},
		"a release":                    {message(release, 1, having("192.0.2.100"), ofServer("192.0.2.1")), "192.0.2.1", "silence", "released 192.0.2.100"},
		"a release of another's lease": {message(release, 3, having("192.0.2.100"), ofServer("192.0.2.1")), "192.0.2.1", "silence", ""},
		"declining":                    {message(decline, 1, asking("192.0.2.100"), ofServer("192.0.2.1")), "", "silence", "declined 192.0.2.100"},
		"declining another's lease":    {message(decline, 3, asking("192.0.2.100"), ofServer("192.0.2.1")), "", "silence", ""},
		"a known machine declining":    {message(decline, 2, asking("192.0.2.10"), ofServer("192.0.2.1")), "", "silence", "declined 192.0.2.10"},
		"asking for settings":          {message(inform, 3, having("192.0.2.50")), "", "ack", "informed 192.0.2.50"},
		"asking for settings in the name of a host elsewhere": {message(inform, 3, having("203.0.113.50")), "", "silence", ""},
		"asking for settings in the name of all":              {message(inform, 3, having("192.0.2.255")), "", "silence", ""},
		"a client behind an unknown relay":                    {message(discover, 3, via("10.0.0.1")), "192.0.2.1", "silence", "no-subnet"},
		"renewing past the relay":                             {message(request, 4, having("198.51.100.12")), "192.0.2.1", "ack 198.51.100.12", "acknowledged 198.51.100.12"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.backend.machines[mac(2).String()] = Reservation{Address: addr("192.0.2.10")}
			s.lease(1, "192.0.2.100")
			if test.to == "" {
				test.to = "255.255.255.255"
			}
			s.expect(name, test.want, test.events, test.message, test.to)
		})
	}
}

func TestAPoolThatIsExhaustedServesWhoHasALeaseAndTheNextWhenOneEnds(t *testing.T) {
	s := newStage(t)
	for i := range 4 {
		s.lease(i+1, fmt.Sprintf("192.0.2.%d", 100+i))
	}
	s.expect("the fifth", "silence", "pool-exhausted", message(discover, 5))
	s.now = s.now.Add(9 * time.Minute)
	s.expect("the second renews", "ack 192.0.2.101", "acknowledged 192.0.2.101", message(request, 2, having("192.0.2.101")), "192.0.2.1")
	s.expect("the third leaves", "silence", "released 192.0.2.102", message(release, 3, having("192.0.2.102"), ofServer("192.0.2.1")))
	s.lease(5, "192.0.2.102")
	s.now = s.now.Add(2 * time.Minute) // the first and the fourth have ended
	s.lease(6, "192.0.2.100")
	s.expect("the fourth comes back in time", "ack 192.0.2.103", "acknowledged 192.0.2.103", message(request, 4, asking("192.0.2.103")))
	s.expect("the first comes too late", "nak: 192.0.2.100 is not available", "refused 192.0.2.100", message(request, 1, having("192.0.2.100")))
}

func TestAnOfferThatIsNotTakenIsFreedAgain(t *testing.T) {
	s := newStage(t)
	for i := range 4 {
		s.expect("discover", fmt.Sprintf("offer 192.0.2.%d", 100+i), fmt.Sprintf("offered 192.0.2.%d", 100+i), message(discover, i+1))
	}
	s.expect("the fifth", "silence", "pool-exhausted", message(discover, 5))
	s.expect("the first takes another server's", "silence", "foreign-server 192.0.2.66", message(request, 1, asking("192.0.2.9"), ofServer("192.0.2.66")))
	s.lease(5, "192.0.2.100")
	s.now = s.now.Add(holdTime)
	s.lease(6, "192.0.2.101")
}

func TestAnAddressThatAnswersIsNotOffered(t *testing.T) {
	s := newStage(t)
	s.link.holders[addr("192.0.2.100")] = mac(99)
	s.link.holders[addr("192.0.2.101")] = mac(98)
	s.expect("discover", "offer 192.0.2.102", "conflict 192.0.2.100, conflict 192.0.2.101, offered 192.0.2.102", message(discover, 1))
	if fmt.Sprint(s.link.probes) != "[192.0.2.100 192.0.2.101 192.0.2.102]" {
		t.Errorf("probed %v", s.link.probes)
	}
	s.link.probes = nil
	s.expect("a second DISCOVER is not probed again", "offer 192.0.2.102", "offered 192.0.2.102", message(discover, 1))
	s.lease(2, "192.0.2.103")
	s.expect("no address is left", "silence", "pool-exhausted", message(discover, 3))
	if fmt.Sprint(s.link.probes) != "[192.0.2.103]" {
		t.Errorf("probed %v", s.link.probes)
	}
	s.now = s.now.Add(quarantineTime)
	clear(s.link.holders)
	s.lease(3, "192.0.2.102") // free for longer than those that rested
	s.lease(4, "192.0.2.100")
}

func TestAClientStillHoldingItsAddressIsNoConflict(t *testing.T) {
	s := newStage(t)
	s.link.holders[addr("192.0.2.100")] = mac(1)
	s.lease(1, "192.0.2.100")
}

func TestWhileOneClientIsProbedForOthersAreServed(t *testing.T) {
	s := newStage(t)
	var results []func()
	s.link.later = &results
	s.expect("discover", "silence", "", message(discover, 1))
	s.expect("the same once more", "silence", "", message(discover, 1, func(m *dhcpv4.DHCPv4) { m.TransactionID = dhcpv4.TransactionID{9} }))
	if len(results) != 1 {
		t.Fatalf("%d probes", len(results))
	}
	s.link.later = nil
	s.backend.machines[mac(2).String()] = Reservation{Address: addr("192.0.2.10")}
	s.lease(2, "192.0.2.10")
	s.link.sent = nil
	results[0]()
	reply, _ := s.answer()
	if got(reply) != "offer 192.0.2.100" || reply.TransactionID != (dhcpv4.TransactionID{9}) {
		t.Errorf("got %s for %v; the latest DISCOVER should be answered", got(reply), reply.TransactionID)
	}
}

func TestAMachineThatBecomesKnownKeepsItsLeaseUntilItAsksAnew(t *testing.T) {
	s := newStage(t)
	s.lease(1, "192.0.2.100")
	s.backend.machines[mac(1).String()] = Reservation{Address: addr("192.0.2.10")}
	s.expect("renewing", "ack 192.0.2.100", "acknowledged 192.0.2.100", message(request, 1, having("192.0.2.100")), "192.0.2.1")
	s.expect("after a reboot", "nak: this machine has the reserved address 192.0.2.10", "refused 192.0.2.100", message(request, 1, asking("192.0.2.100")))
	s.lease(1, "192.0.2.10")
}

func TestAnAddressLeasedToAnotherIsNotGivenByReservation(t *testing.T) {
	s := newStage(t)
	s.lease(1, "192.0.2.100")
	s.backend.machines[mac(2).String()] = Reservation{Address: addr("192.0.2.100")}
	s.expect("the machine it is reserved for", "offer 192.0.2.101", "conflict 192.0.2.100, offered 192.0.2.101", message(discover, 2))
	s.expect("its holder renews", "ack 192.0.2.100", "acknowledged 192.0.2.100", message(request, 1, having("192.0.2.100")), "192.0.2.1")
	s.now = s.now.Add(time.Hour)
	s.lease(2, "192.0.2.100")
	s.expect("the former holder asks for it", "offer 192.0.2.102", "offered 192.0.2.102", message(discover, 1, asking("192.0.2.100")))
}

func TestALeaseThatCannotBeStoredIsNotAcknowledged(t *testing.T) {
	s := newStage(t)
	s.expect("discover", "offer 192.0.2.100", "offered 192.0.2.100", message(discover, 1))
	s.fail = errors.New("disk full")
	s.expect("request", "silence", "acknowledged 192.0.2.100", message(request, 1, asking("192.0.2.100"), ofServer("192.0.2.1")))
	s.fail = nil
	s.expect("the same again", "ack 192.0.2.100", "acknowledged 192.0.2.100", message(request, 1, asking("192.0.2.100"), ofServer("192.0.2.1")))
}

func TestWhereAnswersGo(t *testing.T) {
	tests := map[string]struct {
		message *dhcpv4.DHCPv4
		to      string
		want    string
		frame   bool
	}{
		"to a client that can take unicast": {message(discover, 1, unicast), "", "192.0.2.100:68", true},
		"to a client that cannot":           {message(discover, 1), "", "255.255.255.255:68", false},
		"to a client with an address":       {message(request, 1, unicast, having("192.0.2.100")), "192.0.2.1", "192.0.2.100:68", false},
		"a NAK":                             {message(request, 1, unicast, having("10.0.0.1")), "", "255.255.255.255:68", false},
		"to a relay":                        {message(discover, 1, via("198.51.100.1")), "192.0.2.1", "198.51.100.1:67", false},
		"to a relay outside of the network": {message(discover, 1, via("203.0.113.9")), "192.0.2.1", "203.0.113.9:67", false},
		"a NAK through a relay":             {message(request, 1, unicast, via("198.51.100.1"), asking("10.0.0.1")), "192.0.2.1", "198.51.100.1:67", false},
		"to settings only":                  {message(inform, 1, unicast, having("192.0.2.50")), "", "192.0.2.50:68", false},
		"to a client without Ethernet": {message(discover, 1, unicast, option(61, 0xff, 1, 2), func(m *dhcpv4.DHCPv4) {
			m.HWType = iana.HWTypeInfiniband
			m.ClientHWAddr = nil
		}), "", "255.255.255.255:68", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			reply, out := s.say(test.message, map[bool]string{true: "255.255.255.255", false: test.to}[test.to == ""])
			if reply == nil {
				t.Fatal("silence")
			}
			if out.to.String() != test.want || (out.hardware != nil) != test.frame || out.from != addr("192.0.2.1") {
				t.Errorf("sent to %s, by frame %v, from %s", out.to, out.hardware, out.from)
			}
			if reply.MessageType() == dhcpv4.MessageTypeNak && reply.GatewayIPAddr.Equal(net.IPv4(198, 51, 100, 1)) && !reply.IsBroadcast() {
				t.Error("a relayed NAK must make the relay broadcast it")
			}
			if test.message.IsBroadcast() && !reply.IsBroadcast() {
				t.Error("the broadcast flag is not copied")
			}
		})
	}
}

func TestRelayedClients(t *testing.T) {
	s := newStage(t)
	relayInfo := []byte{1, 4, 'p', 'o', 'r', 't', 2, 2, 0xab, 0xcd}
	reply := s.expect("behind a relay", "offer 198.51.100.10", "offered 198.51.100.10",
		message(discover, 1, via("198.51.100.1"), option(82, relayInfo...)), "192.0.2.1")
	if string(reply.Options.Get(dhcpv4.OptionRelayAgentInformation)) != string(relayInfo) {
		t.Errorf("option 82 came back as %x", reply.Options.Get(dhcpv4.OptionRelayAgentInformation))
	}
	if packet := s.link.sent[0].payload; !strings.HasSuffix(strings.TrimRight(string(packet), "\x00"), string(relayInfo)+"\xff") {
		t.Error("option 82 must be the last one")
	}
	if !reply.GatewayIPAddr.Equal(net.IPv4(198, 51, 100, 1)) {
		t.Errorf("giaddr %s", reply.GatewayIPAddr)
	}
	if len(s.link.probes) != 0 {
		t.Error("an address behind a relay cannot be probed")
	}
	s.expect("selecting", "ack 198.51.100.10", "acknowledged 198.51.100.10",
		message(request, 1, via("198.51.100.1"), asking("198.51.100.10"), ofServer("192.0.2.1")), "192.0.2.1")
	s.expect("a relay that names another link", "offer 192.0.2.100", "offered 192.0.2.100",
		message(discover, 2, via("198.51.100.1"), option(82, 5, 4, 192, 0, 2, 0)), "192.0.2.1")
}

func TestQueryTellsWhatTheClientIs(t *testing.T) {
	m := message(discover, 1,
		option(97, append([]byte{0}, 0x4c, 0x4c, 0x45, 0x44, 0x00, 0x42, 0x35, 0x10, 0x80, 0x52, 0xb4, 0xc0, 0x4f, 0x4d, 0x4d, 0x32)...),
		option(93, 0, 7), option(60, []byte("PXEClient:Arch:00007:UNDI:003016\x00")...), option(77, []byte("iPXE")...), option(12, []byte("no\nde")...),
		option(82, 1, 1, 0x0f, 2, 1, 0xf0))
	got := queryOf(m)
	want := Query{MAC: "52:54:00:00:00:01", UUID: "44454c4c-4200-1035-8052-b4c04f4d4d32", Hostname: "no de",
		VendorClass: "PXEClient:Arch:00007:UNDI:003016", UserClass: "iPXE", Arch: 7, PXE: true, IPXE: true, CircuitID: "0f", RemoteID: "f0"}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for name, test := range map[string]struct {
		change change1
		holds  func(Query) bool
	}{
		"no architecture is not BIOS":           {option(93), func(q Query) bool { return q.Arch == ArchUnknown }},
		"a UUID that is too short is none":      {option(97, 0, 1, 2), func(q Query) bool { return q.UUID == "" }},
		"a UUID of another type is none":        {option(97, make([]byte, 17)...), func(q Query) bool { return q.UUID == "00000000-0000-0000-0000-000000000000" }},
		"a user class as RFC 3004 has it":       {option(77, append([]byte{4}, "iPXE"...)...), func(q Query) bool { return q.IPXE }},
		"iPXE known by its own option":          {option(175, 0xb1, 1, 1), func(q Query) bool { return q.IPXE }},
		"UEFI HTTP boot":                        {option(60, []byte("HTTPClient:Arch:00016:UNDI:003001")...), func(q Query) bool { return q.HTTP && !q.PXE }},
		"relay information that makes no sense": {option(82, 1, 99), func(q Query) bool { return q.CircuitID == "" }},
	} {
		t.Run(name, func(t *testing.T) {
			if q := queryOf(message(discover, 1, test.change)); !test.holds(q) {
				t.Errorf("%+v", q)
			}
		})
	}
}

func TestBootFiles(t *testing.T) {
	ask := option(55, 1, 3, 66, 67, 60, 43, 97)
	uuid := append([]byte{0}, make([]byte, 16)...)
	tests := map[string]struct {
		changes           []change1
		next, file, opt67 string
		class, opt43      string
		opt66, opt175     string
	}{
		"BIOS": {[]change1{ask, option(60, []byte("PXEClient:Arch:00000:UNDI:002001")...), option(93, 0, 0), option(97, uuid...)},
			"192.0.2.1", "undionly.kpxe", "undionly.kpxe\x00", "PXEClient", "\x06\x01\x08\xff", "192.0.2.1", ""},
		"BIOS that does not ask for the options": {[]change1{option(55, 1, 3), option(60, []byte("PXEClient")...), option(93, 0, 0)},
			"192.0.2.1", "undionly.kpxe", "", "PXEClient", "\x06\x01\x08\xff", "", ""},
		"UEFI from another server": {[]change1{ask, option(60, []byte("PXEClient:Arch:00007")...), option(93, 0, 7)},
			"192.0.2.77", "snponly.efi", "snponly.efi\x00", "PXEClient", "\x06\x01\x08\xff", "192.0.2.77", ""},
		"UEFI HTTP": {[]change1{option(55, 1, 3), option(60, []byte("HTTPClient:Arch:00016")...), option(93, 0, 16)},
			"192.0.2.1", "http://192.0.2.1:8080/snponly.efi", "http://192.0.2.1:8080/snponly.efi", "HTTPClient", "", "", ""},
		"iPXE": {[]change1{ask, option(60, []byte("PXEClient:Arch:00007")...), option(93, 0, 7), option(77, []byte("iPXE")...)},
			"192.0.2.1", "http://192.0.2.1:8080/boot.ipxe", "http://192.0.2.1:8080/boot.ipxe", "", "", "", "\xb0\x01\x01"},
		"an operating system": {[]change1{ask, option(60, []byte("udhcp 1.35.0")...)}, "0.0.0.0", "", "", "", "", "", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			m, _ := s.say(message(discover, 1, test.changes...), "255.255.255.255")
			if m == nil {
				t.Fatal("silence")
			}
			field := func(code uint8) string { return string(m.Options.Get(dhcpv4.GenericOptionCode(code))) }
			for what, pair := range map[string][2]string{
				"next server": {m.ServerIPAddr.String(), test.next}, "file": {m.BootFileName, test.file}, "option 67": {field(67), test.opt67},
				"option 60": {field(60), test.class}, "option 43": {field(43), test.opt43}, "option 66": {field(66), test.opt66},
				"option 175": {field(175), test.opt175},
			} {
				if pair[0] != pair[1] {
					t.Errorf("%s: %q, want %q", what, pair[0], pair[1])
				}
			}
			if sent := s.link.sent[0].payload; len(sent) > 576-28 {
				t.Errorf("the offer has %d bytes", len(sent))
			}
		})
	}
}

func TestSettings(t *testing.T) {
	s := newStage(t)
	s.backend.machines[mac(1).String()] = Reservation{Address: addr("192.0.2.10"), Hostname: "node-1"}
	m, _ := s.say(message(discover, 1, option(61, 1, 2, 3)), "255.255.255.255")
	for code, want := range map[uint8]string{
		1: "\xff\xff\xff\x00", 3: "\xc0\x00\x02\xfe", 6: "\xc0\x00\x02\xfd\xc6\x33\x64\x01", 12: "node-1", 15: "rack.example",
		28: "\xc0\x00\x02\xff", 42: "\xc0\x00\x02\x01", 51: "\x00\x00\x02\x58", 54: "\xc0\x00\x02\x01", 58: "\x00\x00\x01\x2c", 59: "\x00\x00\x02\x0d",
		61: "\x01\x02\x03",
	} {
		if got := string(m.Options.Get(dhcpv4.GenericOptionCode(code))); got != want {
			t.Errorf("option %d: %q, want %q", code, got, want)
		}
	}
	m, _ = s.say(message(discover, 1, option(55, 12)), "255.255.255.255")
	for code, present := range map[uint8]bool{1: true, 3: true, 6: false, 12: true, 15: false, 42: false} {
		if m.Options.Has(dhcpv4.GenericOptionCode(code)) != present {
			t.Errorf("option %d, when only the host name is asked for: present %v", code, !present)
		}
	}
	m, _ = s.say(message(inform, 1, having("192.0.2.50")), "255.255.255.255")
	for code, present := range map[uint8]bool{1: true, 6: true, 51: false, 58: false} {
		if m.Options.Has(dhcpv4.GenericOptionCode(code)) != present {
			t.Errorf("option %d in the answer to INFORM: present %v", code, !present)
		}
	}
}

// Where this server answers names, it alone is named: the others do not know those of machines.
func TestOwnServersAreNamed(t *testing.T) {
	own := rack()
	own.OwnDNS, own.OwnNTP, own.NTP = true, true, addrs("192.0.2.123")
	m, _ := newStage(t, own).say(message(discover, 1), "255.255.255.255")
	for code, want := range map[uint8]string{6: "\xc0\x00\x02\x01", 42: "\xc0\x00\x02\x01\xc0\x00\x02\x7b"} {
		if got := string(m.Options.Get(dhcpv4.GenericOptionCode(code))); got != want {
			t.Errorf("option %d: %q, want %q", code, got, want)
		}
	}
	own.NTP = addrs("192.0.2.123", "192.0.2.1")
	m, _ = newStage(t, own).say(message(discover, 1), "255.255.255.255")
	if got := string(m.Options.Get(dhcpv4.OptionNTPServers)); got != "\xc0\x00\x02\x7b\xc0\x00\x02\x01" {
		t.Errorf("the order that somebody wrote has become %q", got)
	}
}

func TestAnAnswerFitsIntoWhatTheClientTakes(t *testing.T) {
	big := rack()
	big.Domain = strings.Repeat("long.", 39) + "rack"
	for range 20 {
		big.DNS = append(big.DNS, addr("198.51.100.7"))
	}
	for size, want := range map[uint16]struct{ domain, dns bool }{0: {false, true}, 300: {false, true}, 1500: {true, true}, 65535: {true, true}} {
		s := newStage(t, big)
		var changes []change1
		if size > 0 {
			changes = append(changes, option(57, binary.BigEndian.AppendUint16(nil, size)...))
		}
		relayInfo := option(82, append([]byte{1, 100}, make([]byte, 100)...)...)
		m, out := s.say(message(discover, 1, append(changes, relayInfo)...), "255.255.255.255")
		if most := min(max(int(size), 576), 1500) - 28; len(out.payload) > most {
			t.Errorf("client that takes %d: answer of %d bytes", size, len(out.payload))
		}
		if m.Options.Has(dhcpv4.OptionDomainName) != want.domain || m.Options.Has(dhcpv4.OptionDomainNameServer) != want.dns ||
			!m.Options.Has(dhcpv4.OptionRelayAgentInformation) || !m.Options.Has(dhcpv4.OptionRouter) {
			t.Errorf("client that takes %d: left is\n%s", size, m.Options)
		}
	}
}

func TestReloading(t *testing.T) {
	s := newStage(t)
	s.lease(1, "192.0.2.100")
	s.lease(2, "192.0.2.101")

	moved := rack()
	moved.Pool = Range{From: addr("192.0.2.101"), To: addr("192.0.2.110")}
	s.engine.configure(Config{Subnets: []Subnet{moved}}, nil)
	s.expect("a lease that is still in the pool", "ack 192.0.2.101", "acknowledged 192.0.2.101", message(request, 2, having("192.0.2.101")), "192.0.2.1")
	s.expect("a lease that is not", "silence", "", message(request, 1, having("192.0.2.100")), "192.0.2.1")

	s.engine.configure(Config{}, nil)
	s.expect("no subnet", "silence", "no-subnet", message(discover, 2))
	s.engine.configure(Config{Subnets: []Subnet{rack()}}, nil)
	s.expect("leases come back with their subnet", "ack 192.0.2.100", "acknowledged 192.0.2.100", message(request, 1, having("192.0.2.100")), "192.0.2.1")

	off := rack()
	off.Mode = ModeOff
	s.engine.configure(Config{Subnets: []Subnet{off}}, nil)
	s.expect("a subnet that is off", "silence", "", message(discover, 2))
}

func TestReloadingInTheMiddleOfAnExchange(t *testing.T) {
	s := newStage(t)
	var results []func()
	s.link.later = &results
	s.expect("discover", "silence", "", message(discover, 1))
	same := s.engine.config
	s.engine.configure(same, nil)
	s.link.sent = nil
	results[0]()
	if reply, _ := s.answer(); got(reply) != "offer 192.0.2.100" {
		t.Errorf("a reload that does not touch the pool: got %s", got(reply))
	}
	s.expect("another", "silence", "", message(discover, 2))
	moved := rack()
	moved.Pool = Range{From: addr("192.0.2.110"), To: addr("192.0.2.112")}
	s.engine.configure(Config{Subnets: []Subnet{moved}}, nil)
	s.link.sent = nil
	results[1]()
	if reply, _ := s.answer(); reply != nil {
		t.Errorf("offered %s, which is not in the pool any more", got(reply))
	}
	s.link.later = nil
	s.lease(2, "192.0.2.110")
	if err := s.engine.pools[moved.CIDR].Check(); err != nil {
		t.Fatal(err)
	}
}

func TestTwoNetworksOnOneSegment(t *testing.T) {
	second := remote()
	s := newStage(t, rack(), second)
	s.link.own = addrs("192.0.2.1", "198.51.100.1")
	s.backend.machines[mac(1).String()] = Reservation{Address: addr("198.51.100.5")}
	s.expect("a machine of the second", "offer 198.51.100.5", "offered 198.51.100.5", message(discover, 1))
	s.expect("selecting it", "ack 198.51.100.5", "acknowledged 198.51.100.5", message(request, 1, asking("198.51.100.5"), ofServer("198.51.100.1")))
	s.expect("another", "offer 192.0.2.100", "offered 192.0.2.100", message(discover, 2))
	s.expect("after a reboot in the second", "ack 198.51.100.12", "acknowledged 198.51.100.12", message(request, 3, asking("198.51.100.12")))
}

func TestMalformedMessagesAreCountedAndDropped(t *testing.T) {
	whole := message(discover, 1).ToBytes()
	change := func(f func([]byte)) []byte {
		b := append([]byte(nil), whole...)
		f(b)
		return b
	}
	s := newStage(t)
	packets := map[string][]byte{
		"nothing":              nil,
		"a cut header":         whole[:100],
		"a cut option":         append(append([]byte(nil), whole[:240]...), 53, 9, 1),
		"another cookie":       change(func(b []byte) { b[236] = 0 }),
		"a reply":              change(func(b []byte) { b[0] = 2 }),
		"BOOTP":                append(append([]byte(nil), whole[:240]...), 255),
		"no hardware address":  change(func(b []byte) { b[2] = 0 }),
		"zeros for an address": change(func(b []byte) { copy(b[28:34], make([]byte, 6)) }),
		"a group address":      change(func(b []byte) { b[28] = 1 }),
	}
	for name, packet := range packets {
		s.link.sent = nil
		s.engine.handle(incoming{link: s.link, payload: packet})
		if len(s.link.sent) != 0 {
			t.Errorf("%s was answered", name)
		}
	}
	if n := s.engine.count.malformed.Load(); n != uint64(len(packets)) {
		t.Errorf("counted %d of %d", n, len(packets))
	}
	s.link.sent = nil
	s.engine.handle(incoming{link: s.link, payload: append(append([]byte(nil), whole[:240]...), 53, 1, 1)})
	if len(s.link.sent) != 1 {
		t.Error("a message without the End option deserves an answer")
	}
}

func TestOptionsMayGoOnInTheFileField(t *testing.T) {
	m := message(discover, 1, option(52, 1))
	b := m.ToBytes()
	copy(b[108:], []byte{93, 2, 0, 7, 255})
	parsed, err := parse(b)
	if err != nil || queryOf(parsed).Arch != 7 {
		t.Errorf("%v, %v", parsed, err)
	}
}

// Whatever comes, the engine stays up and keeps its promises.
func FuzzMessage(f *testing.F) {
	f.Add(message(discover, 1, option(60, []byte("PXEClient:Arch:00007")...), option(93, 0, 7), option(55, 1, 3, 6, 66, 67)).ToBytes())
	f.Add(message(request, 1, asking("192.0.2.100"), ofServer("192.0.2.1"), option(57, 5, 220)).ToBytes())
	f.Add(message(request, 2, having("192.0.2.100"), via("198.51.100.1"), option(82, 5, 4, 192, 0, 2, 0)).ToBytes())
	f.Add(message(decline, 1, asking("192.0.2.100"), option(52, 3)).ToBytes())
	f.Add(message(inform, 1, having("192.0.2.9"), option(61, 1, 2), option(97, 0, 1), option(77, 9)).ToBytes())
	f.Fuzz(func(t *testing.T, packet []byte) {
		s := newStage(t)
		s.backend.machines[mac(7).String()] = Reservation{Address: addr("192.0.2.10"), Hostname: "node-7"}
		s.lease(5, "192.0.2.100")
		for _, destination := range []string{"255.255.255.255", "192.0.2.1"} {
			s.link.sent = nil
			s.engine.handle(incoming{link: s.link, source: addr("192.0.2.50"), destination: addr(destination), payload: packet})
			for _, out := range s.link.sent {
				reply, err := dhcpv4.FromBytes(out.payload)
				if err != nil || reply.OpCode != dhcpv4.OpcodeBootReply {
					t.Fatalf("answer %x: %v", out.payload, err)
				}
				if !out.to.IsValid() || out.from != addr("192.0.2.1") {
					t.Fatalf("answer goes from %s to %s", out.from, out.to)
				}
				if a := toNetip(reply.YourIPAddr); !a.IsUnspecified() && !rack().Pool.Contains(a) && !remote().Pool.Contains(a) && a != addr("192.0.2.10") {
					t.Fatalf("gave %s", a)
				}
				if a := toNetip(reply.YourIPAddr); a == addr("192.0.2.100") && reply.ClientHWAddr.String() != mac(5).String() {
					t.Fatalf("gave %s to %s too", a, reply.ClientHWAddr)
				}
			}
		}
		s.engine.overheard(s.link, packet)
		s.engine.mu.Lock()
		defer s.engine.mu.Unlock()
		for _, p := range s.engine.pools {
			if err := p.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
