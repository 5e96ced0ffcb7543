package dhcp6

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"coldrack.dev/internal/netboot/lease"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// backend knows one machine, and what boots.
type backend struct {
	fixed map[string]netip.Addr // by MAC or UUID
	seen  []Observation
}

func (b *backend) Reservation(subnet netip.Prefix, client Query) (netip.Addr, bool) {
	for _, name := range append([]string{client.MAC}, client.UUIDs...) {
		if a, ok := b.fixed[name]; ok && subnet.Contains(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (b *backend) Reserved(a netip.Addr) bool {
	for _, fixed := range b.fixed {
		if fixed == a {
			return true
		}
	}
	return false
}

func (b *backend) BootFile(_ netip.Prefix, client Query) (BootFile, bool) {
	switch {
	case client.IPXE:
		return BootFile{File: "http://[" + client.Server.String() + "]:7080/boot.ipxe"}, true
	case client.HTTP:
		return BootFile{File: "http://[" + client.Server.String() + "]:7080/snponly.efi"}, true
	case client.Arch == 7:
		return BootFile{File: "snponly.efi"}, true
	}
	return BootFile{}, false
}

func (b *backend) Observe(o Observation) { b.seen = append(b.seen, o) }

type fakeLink struct {
	own  []netip.Addr
	sent []sent
}

type sent struct {
	payload []byte
	to      netip.AddrPort
}

func (*fakeLink) name() string              { return "eth0" }
func (l *fakeLink) addresses() []netip.Addr { return l.own }
func (l *fakeLink) send(payload []byte, to netip.AddrPort) {
	l.sent = append(l.sent, sent{payload, to})
}

func rack() Subnet {
	return Subnet{Name: "rack", CIDR: netip.MustParsePrefix("fd00:1::/64"), Mode: ModeServer, Pool: Range{From: addr("fd00:1::100"), To: addr("fd00:1::103")},
		DNS: []netip.Addr{addr("fd00:1::53")}, NTP: []netip.Addr{addr("fd00:1::123")}, Domain: "rack.example"}
}

func far() Subnet {
	return Subnet{Name: "far", CIDR: netip.MustParsePrefix("fd00:2::/64"), Mode: ModeServer, Pool: Range{From: addr("fd00:2::100"), To: addr("fd00:2::103")},
		Relays: []netip.Addr{addr("fd00:99::1")}}
}

var ourDUID = &dhcpv6.DUIDUUID{UUID: uuid.MustParse("6f1f3f5e-0000-4000-8000-000000000001")}

// stage is an engine without network and disk.
type stage struct {
	t       testing.TB
	engine  *engine
	backend *backend
	link    *fakeLink
	now     time.Time
	stored  []lease.Record
	full    bool // the disk
}

func newStage(t testing.TB, subnets ...Subnet) *stage {
	if len(subnets) == 0 {
		subnets = []Subnet{rack(), far()}
	}
	s := &stage{t: t, backend: &backend{fixed: map[string]netip.Addr{}}, link: &fakeLink{own: []netip.Addr{addr("fd00:1::1")}}, now: time.Unix(1_800_000_000, 0)}
	s.engine = newEngine(s.backend, slog.New(slog.DiscardHandler), func() time.Time { return s.now }, func(r lease.Record, done func(error)) {
		var err error
		if s.full {
			err = errors.New("full")
		} else {
			s.stored = append(s.stored, r)
		}
		if done != nil {
			done(err)
		}
	}, &counters{}, ourDUID)
	config := Config{Subnets: subnets}
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	s.engine.configure(config, nil)
	return s
}

func mac(n byte) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 0, n} }

// linkLocal is the address that the machine makes of its hardware address.
func linkLocal(n byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0, 0xff, 0xfe, 0, 0, n})
}

func duid(n byte) dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: mac(n)}
}

type change func(*dhcpv6.Message)

// message is one of machine n.
func message(kind dhcpv6.MessageType, n byte, changes ...change) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: kind, TransactionID: dhcpv6.TransactionID{1, 2, n}}
	m.AddOption(dhcpv6.OptClientID(duid(n)))
	m.AddOption(dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList))
	switch kind {
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		m.AddOption(dhcpv6.OptServerID(ourDUID))
	}
	for _, c := range changes {
		c(m)
	}
	return m
}

// ia asks for an address, or names those it has.
func ia(id byte, named ...string) change {
	return func(m *dhcpv6.Message) {
		o := &dhcpv6.OptIANA{IaId: [4]byte{0, 0, 0, id}}
		for _, a := range named {
			o.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: addr(a).AsSlice()})
		}
		m.AddOption(o)
	}
}

func with(o dhcpv6.Option) change { return func(m *dhcpv6.Message) { m.UpdateOption(o) } }

func asks(codes ...dhcpv6.OptionCode) change { return with(dhcpv6.OptRequestedOption(codes...)) }

var rapid = with(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})

// hear gives the engine a packet and returns what it sent.
func (s *stage) hear(payload []byte, source string, multicast bool) []sent {
	s.t.Helper()
	s.link.sent, s.backend.seen = nil, nil
	s.engine.handle(incoming{link: s.link, source: netip.AddrPortFrom(addr(source), ClientPort), multicast: multicast, payload: payload})
	for _, p := range s.engine.pools {
		if err := p.Check(); err != nil {
			s.t.Fatal(err)
		}
	}
	return s.link.sent
}

func (s *stage) events() string {
	var all []string
	for _, o := range s.backend.seen {
		text := string(o.Event)
		if o.Address.IsValid() {
			text += " " + o.Address.String()
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

// told is a message for people: its kind, what its IAs hold, and its status.
func told(m *dhcpv6.Message) string {
	all := []string{strings.ToLower(m.MessageType.String())}
	for _, o := range m.Options.IANA() {
		for _, a := range o.Options.Addresses() {
			text := a.IPv6Addr.String()
			if a.ValidLifetime == 0 {
				text = "not " + text
			}
			all = append(all, text)
		}
		if st := o.Options.Status(); st != nil {
			all = append(all, st.StatusCode.String())
		}
	}
	if st := m.Options.Status(); st != nil {
		all = append(all, st.StatusCode.String())
	}
	return strings.Join(all, " ")
}

// expect says a message on the segment and compares the answer and what was observed.
func (s *stage) expect(what, want, events string, m *dhcpv6.Message) *dhcpv6.Message {
	s.t.Helper()
	out := s.hear(m.ToBytes(), linkLocal(m.TransactionID[2]).String(), true)
	got := "silence"
	var reply *dhcpv6.Message
	if len(out) == 1 {
		var err error
		if reply, err = dhcpv6.MessageFromBytes(out[0].payload); err != nil {
			s.t.Fatalf("%s: %v", what, err)
		}
		got = told(reply)
		if to := netip.AddrPortFrom(linkLocal(m.TransactionID[2]), ClientPort); out[0].to != to {
			s.t.Errorf("%s: sent to %s, want %s", what, out[0].to, to)
		}
		if reply.TransactionID != m.TransactionID || !reply.Options.ServerID().Equal(ourDUID) {
			s.t.Errorf("%s: %s", what, reply.Summary())
		}
	}
	if got != want || s.events() != events {
		s.t.Errorf("%s: got %q (%s), want %q (%s)", what, got, s.events(), want, events)
	}
	return reply
}

func TestFromSolicitToRelease(t *testing.T) {
	s := newStage(t)
	s.expect("solicit", "advertise fd00:1::100", "offered fd00:1::100", message(dhcpv6.MessageTypeSolicit, 1, ia(1)))
	if len(s.stored) != 0 {
		t.Errorf("stored for an advertisement: %v", s.stored)
	}
	reply := s.expect("request", "reply fd00:1::100", "acknowledged fd00:1::100", message(dhcpv6.MessageTypeRequest, 1, ia(1, "fd00:1::100")))
	o := reply.Options.OneIANA()
	if a := o.Options.OneAddress(); o.T1 != 30*time.Minute || o.T2 != 48*time.Minute || a.PreferredLifetime != time.Hour || a.ValidLifetime != time.Hour {
		t.Errorf("times: %s", reply.Summary())
	}
	if dns := reply.Options.DNS(); len(dns) != 1 || dns[0].String() != "fd00:1::53" || reply.Options.DomainSearchList().Labels[0] != "rack.example" {
		t.Errorf("settings: %s", reply.Summary())
	}
	if want := []lease.Record{{State: lease.Bound, Address: addr("fd00:1::100"), Client: "00030001525400000001/00000001", Until: s.now.Add(time.Hour + time.Second)}}; !slices.Equal(s.stored, want) {
		t.Errorf("stored %v, want %v", s.stored, want)
	}
	s.expect("another machine", "advertise fd00:1::101", "offered fd00:1::101", message(dhcpv6.MessageTypeSolicit, 2, ia(1)))
	s.now = s.now.Add(30 * time.Minute)
	s.expect("renew", "reply fd00:1::100", "acknowledged fd00:1::100", message(dhcpv6.MessageTypeRenew, 1, ia(1, "fd00:1::100")))
	s.expect("rebind", "reply fd00:1::100", "acknowledged fd00:1::100", message(dhcpv6.MessageTypeRebind, 1, ia(1, "fd00:1::100")))
	s.expect("confirm", "reply Success", "", message(dhcpv6.MessageTypeConfirm, 1, ia(1, "fd00:1::100")))
	s.expect("another's address", "reply not fd00:1::100", "refused fd00:1::100", message(dhcpv6.MessageTypeRenew, 2, ia(1, "fd00:1::100")))
	s.expect("another releases it", "reply NoBinding Success", "", message(dhcpv6.MessageTypeRelease, 2, ia(1, "fd00:1::100")))
	s.expect("release", "reply Success", "released fd00:1::100", message(dhcpv6.MessageTypeRelease, 1, ia(1, "fd00:1::100")))
	if last := s.stored[len(s.stored)-1]; last.State != lease.Free {
		t.Errorf("stored last: %v", last)
	}
	s.expect("who released comes back", "advertise fd00:1::100", "offered fd00:1::100", message(dhcpv6.MessageTypeSolicit, 1, ia(1)))
}

func TestWhatAClientMayKeep(t *testing.T) {
	s := newStage(t)
	s.expect("renewing what we have lost", "reply fd00:1::102", "acknowledged fd00:1::102", message(dhcpv6.MessageTypeRenew, 1, ia(1, "fd00:1::102")))
	s.expect("renewing nothing", "reply NoBinding", "", message(dhcpv6.MessageTypeRenew, 1, ia(2)))
	s.expect("renewing another network's", "reply not fd00:2::100", "refused fd00:2::100", message(dhcpv6.MessageTypeRenew, 1, ia(2, "fd00:2::100")))
	s.expect("rebinding another network's", "reply not fd00:2::100", "refused fd00:2::100", message(dhcpv6.MessageTypeRebind, 1, ia(2, "fd00:2::100")))
	s.expect("rebinding what another server may have given", "silence", "", message(dhcpv6.MessageTypeRebind, 1, ia(2, "fd00:1::5")))
	s.expect("rebinding another's", "reply not fd00:1::102", "refused fd00:1::102", message(dhcpv6.MessageTypeRebind, 2, ia(1, "fd00:1::102")))
	s.expect("confirming elsewhere", "reply NotOnLink", "refused fd00:2::100", message(dhcpv6.MessageTypeConfirm, 1, ia(1, "fd00:2::100")))
	s.expect("confirming nothing", "silence", "", message(dhcpv6.MessageTypeConfirm, 1, ia(1)))
	s.expect("requesting elsewhere", "reply NotOnLink", "refused fd00:2::100", message(dhcpv6.MessageTypeRequest, 1, ia(1, "fd00:2::100")))
	s.expect("a solicit with a wish", "advertise fd00:1::103", "offered fd00:1::103", message(dhcpv6.MessageTypeSolicit, 3, ia(1, "fd00:1::103")))
	s.expect("two interfaces of one machine", "advertise fd00:1::100 fd00:1::101", "offered fd00:1::100, offered fd00:1::101", message(dhcpv6.MessageTypeSolicit, 4, ia(1), ia(2)))
}

func TestDeclinedAddressesRest(t *testing.T) {
	s := newStage(t)
	s.expect("rapid commit", "reply fd00:1::100", "acknowledged fd00:1::100", message(dhcpv6.MessageTypeSolicit, 1, ia(1), rapid))
	s.expect("a stranger cannot spoil it", "reply NoBinding Success", "", message(dhcpv6.MessageTypeDecline, 2, ia(1, "fd00:1::100")))
	s.expect("decline", "reply Success", "declined fd00:1::100", message(dhcpv6.MessageTypeDecline, 1, ia(1, "fd00:1::100")))
	if last := s.stored[len(s.stored)-1]; last.State != lease.Quarantined || !last.Until.Equal(s.now.Add(quarantineTime)) {
		t.Errorf("stored last: %v", last)
	}
	s.expect("another one", "advertise fd00:1::101", "offered fd00:1::101", message(dhcpv6.MessageTypeSolicit, 1, ia(1, "fd00:1::100")))
	s.engine.configure(Config{Subnets: []Subnet{rack()}}, nil)
	for n := byte(1); n < 4; n++ {
		s.hear(message(dhcpv6.MessageTypeSolicit, n, ia(1), rapid).ToBytes(), linkLocal(n).String(), true)
	}
	s.expect("all others are in use", "advertise NoAddrsAvail", "pool-exhausted", message(dhcpv6.MessageTypeSolicit, 4, ia(1)))
	s.now = s.now.Add(quarantineTime)
	s.expect("it has rested", "advertise fd00:1::100", "offered fd00:1::100", message(dhcpv6.MessageTypeSolicit, 4, ia(1)))
}

func TestKnownMachinesGetTheirAddress(t *testing.T) {
	s := newStage(t)
	s.backend.fixed[mac(7).String()] = addr("fd00:1::7")
	s.full = true // and no store is needed
	s.expect("solicit", "advertise fd00:1::7", "offered fd00:1::7", message(dhcpv6.MessageTypeSolicit, 7, ia(1)))
	s.expect("request", "reply fd00:1::7", "acknowledged fd00:1::7", message(dhcpv6.MessageTypeRequest, 7, ia(1, "fd00:1::7")))
	s.expect("its boot loader, by another IAID", "advertise fd00:1::7", "offered fd00:1::7", message(dhcpv6.MessageTypeSolicit, 7, ia(9)))
	s.expect("renew", "reply fd00:1::7", "acknowledged fd00:1::7", message(dhcpv6.MessageTypeRenew, 7, ia(1, "fd00:1::7")))
	s.expect("release", "reply Success", "", message(dhcpv6.MessageTypeRelease, 7, ia(1, "fd00:1::7")))
	s.expect("in use by another", "reply Success", "declined fd00:1::7", message(dhcpv6.MessageTypeDecline, 7, ia(1, "fd00:1::7")))
	s.expect("a second interface is a pool's", "advertise fd00:1::7 fd00:1::100", "offered fd00:1::7, offered fd00:1::100", message(dhcpv6.MessageTypeSolicit, 7, ia(1), ia(2)))
	s.expect("a stranger asks for it", "advertise fd00:1::101", "offered fd00:1::101", message(dhcpv6.MessageTypeSolicit, 8, ia(1, "fd00:1::7")))
	s.expect("a stranger renews it", "reply not fd00:1::7", "refused fd00:1::7", message(dhcpv6.MessageTypeRenew, 8, ia(1, "fd00:1::7")))
	s.expect("the disk is full", "silence", "acknowledged fd00:1::101", message(dhcpv6.MessageTypeRequest, 8, ia(1, "fd00:1::101")))
	if n := s.engine.count.unstored.Load(); n != 1 {
		t.Errorf("%d unstored", n)
	}

	s = newStage(t)
	s.expect("unknown yet", "reply fd00:1::100", "acknowledged fd00:1::100", message(dhcpv6.MessageTypeSolicit, 7, ia(1), rapid))
	s.backend.fixed[mac(7).String()] = addr("fd00:1::7")
	s.expect("it keeps what it uses", "reply fd00:1::100", "acknowledged fd00:1::100", message(dhcpv6.MessageTypeRenew, 7, ia(1, "fd00:1::100")))
	s.expect("and moves when it asks anew", "advertise fd00:1::7", "offered fd00:1::7", message(dhcpv6.MessageTypeSolicit, 7, ia(1)))
	s.expect("a stranger takes one", "reply fd00:1::101", "acknowledged fd00:1::101", message(dhcpv6.MessageTypeSolicit, 8, ia(1), rapid))
	s.backend.fixed[mac(9).String()] = addr("fd00:1::101")
	s.expect("which becomes another's", "advertise fd00:1::102", "conflict fd00:1::101, offered fd00:1::102", message(dhcpv6.MessageTypeSolicit, 9, ia(1)))
}

// Firmware makes a new IAID at each boot.
func TestOneDUIDDoesNotEmptyThePool(t *testing.T) {
	wide := rack()
	wide.Pool.To, wide.NTP = addr("fd00:1::1ff"), nil
	s := newStage(t, wide)
	for n := range byte(maxPerDUID) {
		s.expect("boot", fmt.Sprintf("reply fd00:1::%x", 0x100+int(n)), fmt.Sprintf("acknowledged fd00:1::%x", 0x100+int(n)), message(dhcpv6.MessageTypeSolicit, 1, ia(n+1), rapid))
		s.now = s.now.Add(time.Second)
	}
	s.expect("once more: the oldest of its own", "reply fd00:1::100", "acknowledged fd00:1::100", message(dhcpv6.MessageTypeSolicit, 1, ia(100), rapid))
	s.expect("what was taken from it", "reply not fd00:1::100", "refused fd00:1::100", message(dhcpv6.MessageTypeRenew, 1, ia(1, "fd00:1::100")))
	s.expect("renewing makes no room", "reply not fd00:1::180", "refused fd00:1::180", message(dhcpv6.MessageTypeRenew, 1, ia(101, "fd00:1::180")))
	s.engine.configure(Config{Subnets: []Subnet{wide}}, nil)
	s.expect("nor does a new configuration", "reply not fd00:1::180", "refused fd00:1::180", message(dhcpv6.MessageTypeRenew, 1, ia(101, "fd00:1::180")))
	if n := s.engine.pools[wide.CIDR].Count(lease.Bound); n != maxPerDUID {
		t.Errorf("%d leases", n)
	}
	s.expect("four at a time", "advertise fd00:1::108 fd00:1::109 fd00:1::10a fd00:1::10b", "offered fd00:1::108, offered fd00:1::109, offered fd00:1::10a, offered fd00:1::10b",
		message(dhcpv6.MessageTypeSolicit, 2, ia(1), ia(2), ia(3), ia(4), ia(5), ia(6)))
}

// What strangers can make the server remember is bounded, and known machines boot meanwhile.
func TestMoreStrangersThanAPoolRemembers(t *testing.T) {
	huge := rack()
	huge.Pool = Range{From: addr("fd00:1::1:0"), To: addr("fd00:1::ffff:ffff:ffff")}
	s := newStage(t, huge)
	s.backend.fixed[mac(7).String()] = addr("fd00:1::7")
	p := s.engine.pools[huge.CIDR]
	if got := p.Range(); got.To != addr("fd00:1::1:ffff") {
		t.Fatalf("the pool is %v", got)
	}
	// All but the last have come already.
	var before []lease.Record
	for n, a := 0, p.Range().From; n < MostLeases-100; n, a = n+1, a.Next() {
		before = append(before, lease.Record{State: lease.Bound, Address: a, Client: fmt.Sprintf("0002%08x/00000001", n), Until: s.now.Add(time.Hour)})
	}
	s.engine.configure(Config{Subnets: []Subnet{huge}}, before)
	p = s.engine.pools[huge.CIDR]
	m := message(dhcpv6.MessageTypeSolicit, 1, ia(1), rapid)
	for n := range 3000 {
		m.UpdateOption(dhcpv6.OptClientID(&dhcpv6.DUIDEN{EnterpriseNumber: 9, EnterpriseIdentifier: fmt.Appendf(nil, "%08d", n)}))
		s.link.sent, s.backend.seen, s.stored = nil, nil, nil
		s.engine.handle(incoming{link: s.link, source: netip.AddrPortFrom(addr("fe80::1"), ClientPort), multicast: true, payload: m.ToBytes()})
	}
	if n := p.Count(lease.Bound); n != MostLeases || len(p.ias) > 3*MostLeases+1001 {
		t.Errorf("%d leases, %d DUIDs", n, len(p.ias))
	}
	s.expect("a stranger", "advertise NoAddrsAvail", "pool-exhausted", message(dhcpv6.MessageTypeSolicit, 1, ia(1)))
	s.expect("a known machine", "reply fd00:1::7", "acknowledged fd00:1::7", message(dhcpv6.MessageTypeSolicit, 7, ia(1), rapid))
	s.now = s.now.Add(2 * time.Hour)
	s.expect("when they have gone", "advertise fd00:1::1:0", "offered fd00:1::1:0", message(dhcpv6.MessageTypeSolicit, 1, ia(1)))
	if len(p.ias) > 1001 {
		t.Errorf("%d DUIDs are remembered", len(p.ias))
	}
}

func TestStateless(t *testing.T) {
	s := newStage(t)
	all := asks(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList, dhcpv6.OptionSNTPServerList, dhcpv6.OptionNTPServer, dhcpv6.OptionInformationRefreshTime)
	reply := s.expect("information request", "reply", "informed "+linkLocal(1).String(), message(dhcpv6.MessageTypeInformationRequest, 1, all))
	if o := reply.Options; len(o.DNS()) != 1 || len(o.SNTP()) != 1 || len(o.NTPServers()) != 1 || o.NTPServers()[0].String() != "fd00:1::123" ||
		o.InformationRefreshTime(0) != time.Hour || o.BootFileURL() != "" {
		t.Errorf("%s", reply.Summary())
	}
	own := rack()
	own.OwnDNS, own.OwnNTP = true, true
	s = newStage(t, own)
	nameless := message(dhcpv6.MessageTypeInformationRequest, 1, all, func(m *dhcpv6.Message) { m.Options.Del(dhcpv6.OptionClientID) })
	reply = s.expect("without a DUID", "reply", "informed "+linkLocal(1).String(), nameless)
	if o := reply.Options; o.DNS()[0].String() != "fd00:1::1" || len(o.NTPServers()) != 2 || o.NTPServers()[0].String() != "fd00:1::1" || o.ClientID() != nil {
		t.Errorf("%s", reply.Summary())
	}
}

// ovmf is what UEFI firmware says (EDK II 2022.11).
func ovmf(kind dhcpv6.MessageType, class string, arch iana.Arch, changes ...change) *dhcpv6.Message {
	id := uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff")
	return message(kind, 1, append([]change{with(dhcpv6.OptClientID(&dhcpv6.DUIDUUID{UUID: id})), ia(0x5a),
		asks(dhcpv6.OptionBootfileURL, dhcpv6.OptionBootfileParam, dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionVendorClass),
		with(dhcpv6.OptClientArchType(arch)), with(&dhcpv6.OptNetworkInterfaceID{Typ: 1, Major: 3, Minor: 16}),
		with(&dhcpv6.OptVendorClass{EnterpriseNumber: intel, Data: [][]byte{[]byte(class)}})}, changes...)...)
}

func TestWhatIsBooted(t *testing.T) {
	s := newStage(t)
	s.backend.fixed["33221100-5544-7766-8899-aabbccddeeff"] = addr("fd00:1::9")
	advertise := s.expect("PXE", "advertise fd00:1::9", "offered fd00:1::9", ovmf(dhcpv6.MessageTypeSolicit, "PXEClient:Arch:00007:UNDI:003016", 7))
	if got := advertise.Options.BootFileURL(); got != "tftp://[fd00:1::1]/snponly.efi" || len(advertise.Options.VendorClasses()) != 0 {
		t.Errorf("PXE boots %q: %s", got, advertise.Summary())
	}
	advertise = s.expect("HTTP", "advertise fd00:1::9", "offered fd00:1::9", ovmf(dhcpv6.MessageTypeSolicit, "HTTPClient:Arch:00016:UNDI:003016", 16))
	if got := advertise.Options.BootFileURL(); got != "http://[fd00:1::1]:7080/snponly.efi" || string(advertise.Options.VendorClass(intel)[0]) != "HTTPClient" {
		t.Errorf("HTTP boots %q: %s", got, advertise.Summary())
	}
	reply := s.expect("iPXE", "reply fd00:1::9", "acknowledged fd00:1::9", ovmf(dhcpv6.MessageTypeSolicit, "PXEClient:Arch:00007:UNDI:003016", 7, rapid,
		with(&dhcpv6.OptUserClass{UserClasses: [][]byte{[]byte("iPXE")}})))
	if got := reply.Options.BootFileURL(); got != "http://[fd00:1::1]:7080/boot.ipxe" {
		t.Errorf("iPXE boots %q", got)
	}
	reply = s.expect("an operating system", "reply fd00:1::100", "acknowledged fd00:1::100", message(dhcpv6.MessageTypeSolicit, 2, ia(1), rapid, asks(dhcpv6.OptionBootfileURL)))
	if got := reply.Options.BootFileURL(); got != "" {
		t.Errorf("an operating system boots %q", got)
	}
}

func TestWhatAClientTellsOfItself(t *testing.T) {
	nic := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	random := addr("fe80::1234:5678:9abc:def0")
	for name, c := range map[string]struct {
		id     dhcpv6.DUID
		source netip.Addr
		relay  net.HardwareAddr
		want   string
	}{
		"its address":        {duid(2), linkLocal(1), nil, "52:54:00:00:00:01 address"},
		"DUID-LL":            {duid(2), random, nil, "52:54:00:00:00:02 duid"},
		"DUID-LLT":           {&dhcpv6.DUIDLLT{HWType: iana.HWTypeEthernet, Time: 1, LinkLayerAddr: mac(3)}, random, nil, "52:54:00:00:00:03 duid"},
		"InfiniBand":         {&dhcpv6.DUIDLL{HWType: iana.HWTypeInfiniband, LinkLayerAddr: mac(3)}, random, nil, " "},
		"a group's":          {&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{1, 0, 0, 0, 0, 1}}, random, nil, " "},
		"DUID-EN":            {&dhcpv6.DUIDEN{EnterpriseNumber: 43793, EnterpriseIdentifier: []byte("systemd!")}, random, nil, " "},
		"a relay knows best": {duid(2), linkLocal(1), nic, "02:00:00:00:00:09 relay"},
	} {
		m := message(dhcpv6.MessageTypeSolicit, 1, with(dhcpv6.OptClientID(c.id)))
		payload, source := m.ToBytes(), c.source
		if c.relay != nil {
			r := &dhcpv6.RelayMessage{MessageType: dhcpv6.MessageTypeRelayForward, LinkAddr: net.ParseIP("fd00:2::1"), PeerAddr: c.source.AsSlice()}
			r.AddOption(dhcpv6.OptClientLinkLayerAddress(iana.HWTypeEthernet, c.relay))
			r.AddOption(dhcpv6.OptRelayMessage(m))
			payload, source = r.ToBytes(), addr("fd00:2::1")
		}
		e, err := parse(payload)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if q := queryOf(e, source); q.MAC+" "+string(q.MACFrom) != c.want {
			t.Errorf("%s: %q %q, want %q", name, q.MAC, q.MACFrom, c.want)
		}
	}
}

func TestRelays(t *testing.T) {
	s := newStage(t)
	relay := func(m dhcpv6.DHCPv6, hops uint8, linkAddr, peer string, options ...dhcpv6.Option) *dhcpv6.RelayMessage {
		r := &dhcpv6.RelayMessage{MessageType: dhcpv6.MessageTypeRelayForward, HopCount: hops, LinkAddr: net.ParseIP(linkAddr), PeerAddr: net.ParseIP(peer)}
		for _, o := range append(options, dhcpv6.OptRelayMessage(m)) {
			r.AddOption(o)
		}
		return r
	}
	// A switch that bridges, and a router.
	near := relay(message(dhcpv6.MessageTypeSolicit, 5, ia(1)), 0, "::", linkLocal(5).String(), dhcpv6.OptInterfaceID([]byte("port 7")),
		&dhcpv6.OptRemoteID{EnterpriseNumber: 9, RemoteID: []byte("switch")}, dhcpv6.OptClientLinkLayerAddress(iana.HWTypeEthernet, mac(6)))
	outer := relay(near, 1, "fd00:2::1", "fe80::5", dhcpv6.OptInterfaceID([]byte{1}))
	out := s.hear(outer.ToBytes(), "fd00:99::1", false)
	if len(out) != 1 || out[0].to != netip.MustParseAddrPort("[fd00:99::1]:547") || s.events() != "offered fd00:2::100" {
		t.Fatalf("sent %v (%s)", out, s.events())
	}
	if q := s.backend.seen[0].Client; q.InterfaceID != "706f72742037" || q.RemoteID != "737769746368" || q.MAC != mac(6).String() || q.Relay != addr("fd00:99::1") {
		t.Errorf("the client is %+v", q)
	}
	decoded, err := dhcpv6.FromBytes(out[0].payload)
	if err != nil {
		t.Fatal(err)
	}
	first := decoded.(*dhcpv6.RelayMessage)
	second := first.Options.RelayMessage().(*dhcpv6.RelayMessage)
	if first.MessageType != dhcpv6.MessageTypeRelayReply || first.HopCount != 1 || first.LinkAddr.String() != "fd00:2::1" || first.PeerAddr.String() != "fe80::5" ||
		!bytes.Equal(first.Options.InterfaceID(), []byte{1}) || second.HopCount != 0 || string(second.Options.InterfaceID()) != "port 7" || second.PeerAddr.String() != linkLocal(5).String() {
		t.Errorf("%s", decoded.Summary())
	}
	inner, err := decoded.GetInnerMessage()
	if err != nil || told(inner) != "advertise fd00:2::100" {
		t.Errorf("%v: %s", err, told(inner))
	}

	solicit := message(dhcpv6.MessageTypeSolicit, 5, ia(1))
	out = s.hear(relay(solicit, 0, "fd00:2::1", linkLocal(5).String(), dhcpv6.OptRelayPort(0)).ToBytes(), "fd00:2::1", false)
	if len(out) != 1 || out[0].to != netip.MustParseAddrPort("[fd00:2::1]:546") {
		t.Errorf("to a relay with a port of its own: %v", out)
	}
	if out = s.hear(relay(solicit, 0, "fd00:2::1", linkLocal(5).String()).ToBytes(), "2001:db8::1", false); len(out) != 0 || s.events() != "strange-relay 2001:db8::1" {
		t.Errorf("a forged relay got %v (%s)", out, s.events())
	}
	if out = s.hear(relay(solicit, 0, "fd00:7::1", linkLocal(5).String()).ToBytes(), "fd00:2::1", false); len(out) != 0 || s.events() != "no-subnet" {
		t.Errorf("for a strange network: %v (%s)", out, s.events())
	}
	deep := dhcpv6.DHCPv6(solicit)
	for range maxRelays {
		deep = relay(deep, 0, "fd00:2::1", "fe80::5")
	}
	if out = s.hear(deep.ToBytes(), "fd00:2::1", false); len(out) != 1 {
		t.Errorf("%d relays: %v", maxRelays, out)
	}
	if out = s.hear(relay(deep, 0, "fd00:2::1", "fe80::5").ToBytes(), "fd00:2::1", false); len(out) != 0 || s.engine.count.malformed.Load() != 1 {
		t.Errorf("one more: %v", out)
	}
}

func TestWhatIsNotForUs(t *testing.T) {
	s := newStage(t)
	other := with(dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: mac(99)}))
	s.expect("an offer", "advertise fd00:1::100", "offered fd00:1::100", message(dhcpv6.MessageTypeSolicit, 1, ia(1)))
	s.expect("another server's is taken", "silence", "foreign-server", message(dhcpv6.MessageTypeRequest, 1, ia(1, "fd00:1::55"), other))
	if n := s.engine.pools[rack().CIDR].Count(lease.Held); n != 0 {
		t.Errorf("%d addresses are held", n)
	}
	s.expect("another server's renewal", "silence", "", message(dhcpv6.MessageTypeRenew, 1, ia(1, "fd00:1::55"), other))
	for what, m := range map[string]*dhcpv6.Message{
		"an advertisement":             message(dhcpv6.MessageTypeAdvertise, 1),
		"a solicit for one server":     message(dhcpv6.MessageTypeSolicit, 1, ia(1), with(dhcpv6.OptServerID(ourDUID))),
		"a request for none":           message(dhcpv6.MessageTypeRequest, 1, ia(1), func(m *dhcpv6.Message) { m.Options.Del(dhcpv6.OptionServerID) }),
		"a nameless solicit":           message(dhcpv6.MessageTypeSolicit, 1, ia(1), func(m *dhcpv6.Message) { m.Options.Del(dhcpv6.OptionClientID) }),
		"information and an address":   message(dhcpv6.MessageTypeInformationRequest, 1, ia(1)),
		"a DUID that is too long":      message(dhcpv6.MessageTypeSolicit, 1, ia(1), with(dhcpv6.OptClientID(&dhcpv6.DUIDOpaque{Type: 9, Data: make([]byte, 129)}))),
		"a DUID that is only its type": message(dhcpv6.MessageTypeSolicit, 1, ia(1), with(dhcpv6.OptClientID(&dhcpv6.DUIDOpaque{Type: 9}))),
	} {
		before := s.engine.count.malformed.Load()
		s.expect(what, "silence", "", m)
		if s.engine.count.malformed.Load() != before+1 {
			t.Errorf("%s is not counted", what)
		}
	}
	out := s.hear(message(dhcpv6.MessageTypeSolicit, 1, ia(1)).ToBytes(), "fd00:1::42", true)
	if len(out) != 0 {
		t.Errorf("a solicit from a global address got %v", out)
	}
	out = s.hear(message(dhcpv6.MessageTypeSolicit, 1, ia(1)).ToBytes(), linkLocal(1).String(), false)
	if len(out) != 0 {
		t.Errorf("a solicit to this server alone got %v", out)
	}
	out = s.hear(message(dhcpv6.MessageTypeRenew, 1, ia(1, "fd00:1::100")).ToBytes(), linkLocal(1).String(), false)
	if len(out) != 1 {
		t.Fatalf("a renewal by unicast got %v", out)
	}
	if m, err := dhcpv6.MessageFromBytes(out[0].payload); err != nil || told(m) != "reply UseMulticast" {
		t.Errorf("a renewal by unicast got %s, %v", told(m), err)
	}
	if out = s.hear(message(dhcpv6.MessageTypeRenew, 1, ia(1, "fd00:1::100")).ToBytes(), "2001:db8::1", false); len(out) != 0 {
		t.Errorf("a renewal with a forged source got %v", out)
	}
	reply := s.expect("prefixes", "advertise", "", message(dhcpv6.MessageTypeSolicit, 1, with(&dhcpv6.OptIAPD{IaId: [4]byte{1}})))
	if pd := reply.Options.OneIAPD(); pd == nil || pd.Options.Status() == nil || pd.Options.Status().StatusCode != iana.StatusNoPrefixAvail {
		t.Errorf("%s", reply.Summary())
	}
	off := rack()
	off.Mode = ModeOff
	s = newStage(t, off)
	s.expect("off", "silence", "", message(dhcpv6.MessageTypeSolicit, 1, ia(1)))
	s = newStage(t, far())
	s.expect("no subnet here", "silence", "no-subnet", message(dhcpv6.MessageTypeSolicit, 1, ia(1)))
	s = newStage(t)
	s.engine.admit = func(q Query) bool { return q.MAC != mac(1).String() }
	s.expect("whose turn it is not", "silence", "", message(dhcpv6.MessageTypeSolicit, 1, ia(1)))
	s.expect("whose turn it is", "advertise fd00:1::100", "offered fd00:1::100", message(dhcpv6.MessageTypeSolicit, 2, ia(1)))
}

func TestLeasesOutliveRestartsAndPlans(t *testing.T) {
	s := newStage(t)
	s.expect("lease", "reply fd00:1::100", "acknowledged fd00:1::100", message(dhcpv6.MessageTypeSolicit, 1, ia(1), rapid))
	kept := s.engine.records()
	s = newStage(t, far())
	s.engine.configure(Config{Subnets: []Subnet{far()}}, kept) // its plan is missing for a while
	if got := s.engine.records(); !slices.Equal(got, kept) {
		t.Errorf("kept %v, want %v", got, kept)
	}
	s.engine.configure(Config{Subnets: []Subnet{rack(), far()}}, nil)
	s.expect("another", "advertise fd00:1::101", "offered fd00:1::101", message(dhcpv6.MessageTypeSolicit, 2, ia(1)))
	s.expect("it goes on", "reply fd00:1::100", "acknowledged fd00:1::100", message(dhcpv6.MessageTypeRenew, 1, ia(1, "fd00:1::100")))
}

func TestConfigsThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"IPv4":                {func(c *Config) { c.Subnets[0].CIDR = netip.MustParsePrefix("10.0.0.0/24") }, "subnets[rack].cidr: 10.0.0.0/24 is not an IPv6 network"},
		"a pool elsewhere":    {func(c *Config) { c.Subnets[0].Pool.To = addr("fd00:9::1") }, "subnets[rack].discovery"},
		"a proxy":             {func(c *Config) { c.Subnets[0].Mode = "proxy" }, `"proxy" is not a mode of DHCPv6`},
		"the name twice":      {func(c *Config) { c.Subnets[1].Name = "rack" }, "another subnet has this name too"},
		"overlap":             {func(c *Config) { c.Subnets[1].CIDR = netip.MustParsePrefix("fd00:1::/48") }, "overlaps with fd00:1::/64"},
		"an IPv4 name server": {func(c *Config) { c.Subnets[0].DNS = []netip.Addr{addr("10.0.0.1")} }, "subnets[rack].dns[0]: 10.0.0.1 is not IPv6"},
		"a link-local server": {func(c *Config) { c.ServerIP = addr("fe80::1") }, "serverIP"},
		"itself in the pool":  {func(c *Config) { c.ServerIP = addr("fd00:1::101") }, "contains the server's own address"},
		"an interface twice":  {func(c *Config) { c.Interfaces = []string{"a", "a"} }, "listed twice"},
		"too short a lease":   {func(c *Config) { c.Subnets[0].LeaseTime = time.Second }, "subnets[rack].leaseTime"},
	} {
		config := Config{Subnets: []Subnet{rack(), far()}}
		c.change(&config)
		if err := config.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// Whatever comes in, the server stands, its pools agree, and what it sends can be read.
func FuzzHandle(f *testing.F) {
	relayed := &dhcpv6.RelayMessage{MessageType: dhcpv6.MessageTypeRelayForward, LinkAddr: net.ParseIP("fd00:2::1"), PeerAddr: net.ParseIP("fe80::5")}
	relayed.AddOption(dhcpv6.OptInterfaceID([]byte("port 7")))
	relayed.AddOption(dhcpv6.OptClientLinkLayerAddress(iana.HWTypeEthernet, mac(6)))
	relayed.AddOption(dhcpv6.OptRelayMessage(message(dhcpv6.MessageTypeSolicit, 1, ia(1), rapid)))
	for _, m := range []dhcpv6.DHCPv6{ovmf(dhcpv6.MessageTypeSolicit, "PXEClient:Arch:00007:UNDI:003016", 7), relayed,
		message(dhcpv6.MessageTypeRequest, 1, ia(1, "fd00:1::100")), message(dhcpv6.MessageTypeRenew, 1, ia(1, "fd00:1::100"), ia(2, "fd00:2::1")),
		message(dhcpv6.MessageTypeRebind, 1, ia(1, "fd00:1::7")), message(dhcpv6.MessageTypeConfirm, 1, ia(1, "fd00:1::100")),
		message(dhcpv6.MessageTypeRelease, 1, ia(1, "fd00:1::100")), message(dhcpv6.MessageTypeDecline, 1, ia(1, "fd00:1::100")),
		message(dhcpv6.MessageTypeInformationRequest, 1, asks(dhcpv6.OptionNTPServer, dhcpv6.OptionSNTPServerList))} {
		f.Add(m.ToBytes())
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		s := newStage(t)
		s.backend.fixed[mac(7).String()] = addr("fd00:1::7")
		s.hear(message(dhcpv6.MessageTypeSolicit, 1, ia(1), rapid).ToBytes(), linkLocal(1).String(), true)
		for _, source := range []string{linkLocal(1).String(), "fd00:2::1"} {
			for _, multicast := range []bool{true, false} {
				for _, out := range s.hear(packet, source, multicast) {
					if _, err := dhcpv6.FromBytes(out.payload); err != nil {
						t.Errorf("sent what cannot be read: %v", err)
					}
				}
			}
		}
		for _, r := range s.stored {
			if strings.ContainsAny(r.Client, " \n") {
				t.Errorf("stored %q", r.Client)
			}
		}
	})
}
