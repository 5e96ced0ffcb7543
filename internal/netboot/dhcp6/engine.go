package dhcp6

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"coldrack.dev/internal/netboot/lease"
	"coldrack.dev/internal/netboot/ratelimit"
)

// incoming is a message as it came in.
type incoming struct {
	link link
	// source has no zone: it is on link, or beyond a router.
	source netip.AddrPort
	// multicast: it was sent to all servers.
	multicast bool
	payload   []byte
}

// link is an interface as the engine sees it.
type link interface {
	name() string
	// addresses are the interface's own IPv6 addresses, without link-local ones.
	addresses() []netip.Addr
	// send sends a reply by this interface. It may be called from several goroutines.
	send(payload []byte, to netip.AddrPort)
}

// Timing.
const (
	// holdTime is how long an advertised address waits for its client's Request. Firmware takes up to half a minute.
	holdTime = time.Minute
	// quarantineTime is how long an address rests of which a client has found that another uses it.
	quarantineTime = 10 * time.Minute
	// maxPerDUID bounds how many addresses of a pool one DUID has. Some firmware makes a new IAID at each boot, and would take a new
	// address each time.
	maxPerDUID = 8
)

// engine decides. All it knows is in memory; the network and the disk are behind link and the store.
type engine struct {
	backend Backend
	log     *slog.Logger
	now     func() time.Time
	store   func(r lease.Record, done func(error)) // Journal.Add
	count   *counters
	admit   func(Query) bool // nil: everybody
	changed func()           // Options.Changed
	server  dhcpv6.DUID

	mu      sync.Mutex
	config  Config
	pools   map[netip.Prefix]*pool
	orphans []lease.Record // leases that fit no present pool, kept for when their pool comes back
	notices ratelimit.Notices
	relays  map[netip.Prefix]bool // subnets for which a relay has asked
}

// pool knows, too, which addresses are one client's. A client of the lease.Pool is a DUID with an IAID.
type pool struct {
	*lease.Pool
	ias map[string][]string // clients by DUID
}

func newPool(r Range) *pool { return &pool{lease.NewPool(r), map[string][]string{}} }

// exchange is the work on one message.
type exchange struct {
	*engine
	in         incoming
	envelope   *envelope
	query      Query
	candidates []Subnet
	subnet     Subnet
	pool       *pool // nil: the subnet has none
	now        time.Time
	// reserved is the client's fixed address, which one IA of a message gets.
	reserved netip.Addr
	// records are to be on disk before the reply goes out.
	records []lease.Record
	// seen is told to the Backend after the lock is released.
	seen []Observation
	// after is done after the lock is released, in order.
	after []func()
}

func newEngine(backend Backend, log *slog.Logger, now func() time.Time, store func(lease.Record, func(error)), count *counters, server dhcpv6.DUID) *engine {
	return &engine{backend: backend, log: log, now: now, store: store, count: count, server: server, changed: func() {},
		pools: map[netip.Prefix]*pool{}, relays: map[netip.Prefix]bool{}}
}

// configure replaces the configuration. Leases stay where their addresses are still in a pool.
func (e *engine) configure(config Config, restored []lease.Record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before, records := e.pools, slices.Clone(e.orphans)
	for _, p := range before {
		records = append(records, p.Records()...)
	}
	e.config, e.pools, e.orphans = config, map[netip.Prefix]*pool{}, nil
	for _, s := range config.Subnets {
		if s.Mode == ModeServer && !s.Pool.IsZero() {
			e.pools[s.CIDR] = newPool(bounded(s.Pool))
		}
	}
	now := e.now()
	for _, r := range lease.Latest(append(records, restored...)) {
		if !e.restoreLocked(r) && r.State != lease.Free && r.Until.After(now) && len(e.orphans) < MostLeases {
			e.orphans = append(e.orphans, r)
		}
	}
	for _, p := range e.pools {
		p.Expire(now)
	}
}

func (e *engine) restoreLocked(r lease.Record) bool {
	for _, p := range e.pools {
		if p.Restore(r) {
			if duid, _, ok := strings.Cut(r.Client, "/"); ok && !slices.Contains(p.ias[duid], r.Client) {
				p.ias[duid] = append(p.ias[duid], r.Client)
			}
			return true
		}
	}
	return false
}

// records lists all that has to survive a restart.
func (e *engine) records() []lease.Record {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	var all []lease.Record
	for _, r := range e.orphans {
		if r.Until.After(now) {
			all = append(all, r)
		}
	}
	for _, p := range e.pools {
		all = append(all, p.Records()...)
	}
	return all
}

// handle works on one message. It never blocks.
func (e *engine) handle(in incoming) {
	envelope, err := parse(in.payload)
	if err != nil {
		e.count.malformed.Add(1)
		e.log.Debug("DHCPv6 message dropped", "interface", in.link.name(), "source", in.source, "err", err)
		return
	}
	kind := envelope.message.MessageType
	e.count.received(kind)
	x := &exchange{engine: e, in: in, envelope: envelope, query: queryOf(envelope, in.source.Addr()), now: e.now()}
	x.query.Interface = in.link.name()
	e.mu.Lock()
	for _, p := range e.pools {
		p.Expire(x.now)
	}
	if x.locate() {
		x.answer()
	}
	e.mu.Unlock()
	for _, o := range x.seen {
		e.backend.Observe(o)
	}
	for _, f := range x.after {
		f()
	}
}

func (x *exchange) observe(event Event, address netip.Addr, format string, args ...any) {
	x.seen = append(x.seen, Observation{Time: x.now, Event: event, Client: x.query, Subnet: x.subnet.CIDR,
		Address: address, Detail: fmt.Sprintf(format, args...)})
}

// complain logs a warning once a minute for each subject.
func (x *exchange) complain(subject, message string, args ...any) {
	if !x.notices.Due(subject, x.now) {
		return
	}
	x.log.Warn(message, append([]any{"duid", x.query.DUID, "mac", x.query.MAC, "interface", x.query.Interface}, args...)...)
}

// locate finds the subnet the client is in. It reports false when there is nothing to say there.
func (x *exchange) locate() bool {
	source := x.in.source.Addr()
	relayed := len(x.envelope.relays) > 0
	switch {
	case relayed && !x.trusted(source):
		// The answer would go there: a forged source must not turn it against somebody else.
		x.count.strangeRelays.Add(1)
		x.observe(StrangeRelay, source, "a relay at %s is in no subnet; add it to spec.relays of the subnet that it relays for", source)
		x.complain("relay", "DHCPv6 relay ignored: its address is in no subnet; add it to spec.relays of the subnet that it relays for", "relay", source)
		return false
	case !relayed && !source.IsLinkLocalUnicast() && x.in.multicast:
		x.count.malformed.Add(1) // RFC 8415, section 14: clients use their link-local address
		return false
	}
	in := func(s Subnet) bool { return slices.ContainsFunc(x.in.link.addresses(), s.CIDR.Contains) }
	where := "on interface " + x.query.Interface
	if at := x.envelope.link(); at.IsValid() {
		in = func(s Subnet) bool { return s.CIDR.Contains(at) || slices.Contains(s.Relays, at) }
		where = "behind relay " + at.String()
	}
	for _, s := range x.config.Subnets {
		if in(s) {
			x.candidates = append(x.candidates, s)
		}
	}
	if len(x.candidates) == 0 {
		x.count.noSubnet.Add(1)
		x.observe(NoSubnet, netip.Addr{}, "no subnet is configured %s", where)
		x.complain("subnet "+x.query.Interface, "DHCPv6 client ignored: no subnet is configured "+where)
		return false
	}
	x.candidates = slices.DeleteFunc(x.candidates, func(s Subnet) bool { return s.Mode == ModeOff })
	if len(x.candidates) == 0 {
		return false
	}
	x.choose()
	x.pool = x.pools[x.subnet.CIDR]
	if relayed && !x.relays[x.subnet.CIDR] {
		x.relays[x.subnet.CIDR] = true
		x.after = append(x.after, x.changed)
	}
	x.query.Server = x.serverAddress()
	return x.query.Server.IsValid()
}

// trusted tells whether a relay may have this address.
func (x *exchange) trusted(source netip.Addr) bool {
	return source.IsLinkLocalUnicast() || slices.ContainsFunc(x.config.Subnets, func(s Subnet) bool {
		return s.CIDR.Contains(source) || slices.Contains(s.Relays, source)
	})
}

// choose picks among several networks on one segment: the one in which the client has a fixed address, or which has a pool.
func (x *exchange) choose() {
	x.subnet = x.candidates[0]
	for _, s := range x.candidates {
		x.query.Server = netip.Addr{}
		if a, ok := x.backend.Reservation(s.CIDR, x.query); ok && s.CIDR.Contains(a) {
			x.subnet, x.reserved = s, a
			return
		}
	}
	if i := slices.IndexFunc(x.candidates, func(s Subnet) bool { return x.pools[s.CIDR] != nil }); i >= 0 {
		x.subnet = x.candidates[i]
	}
}

// serverAddress chooses the address that the client is told for this server.
func (x *exchange) serverAddress() netip.Addr {
	own := x.in.link.addresses()
	local := slices.IndexFunc(own, x.subnet.CIDR.Contains)
	configured := x.config.ServerIP
	switch {
	case configured.IsValid() && (local < 0 || x.subnet.CIDR.Contains(configured)):
		return configured
	case local >= 0:
		return own[local]
	case len(own) > 0:
		return own[0]
	}
	return netip.Addr{}
}

// isOurs tells whether a message of the client is for this server, as far as it names one.
func (x *exchange) isOurs() bool {
	id := x.envelope.message.Options.ServerID()
	return id == nil || id.Equal(x.server)
}

// usable tells whether an address may be given from a pool.
func (x *exchange) usable(a netip.Addr) bool {
	return !x.backend.Reserved(a) && a != x.query.Server && !slices.Contains(x.in.link.addresses(), a)
}

// answer is RFC 8415, section 18.3.
func (x *exchange) answer() {
	kind := x.envelope.message.MessageType
	if !x.isOurs() {
		if kind == dhcpv6.MessageTypeRequest {
			x.chosenOther()
		}
		return
	}
	if len(x.envelope.relays) == 0 && !x.in.multicast {
		switch kind {
		case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
			// Section 18.4: we let nobody send us messages directly. The answer must be able to go back only to the segment.
			if x.in.source.Addr().IsLinkLocalUnicast() {
				x.reply(dhcpv6.MessageTypeReply, status(iana.StatusUseMulticast, "send it to all servers, ff02::1:2"))
			}
		}
		return
	}
	switch kind {
	case dhcpv6.MessageTypeSolicit:
		x.solicit()
	case dhcpv6.MessageTypeRequest:
		x.request()
	case dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		x.extend(kind)
	case dhcpv6.MessageTypeConfirm:
		x.confirm()
	case dhcpv6.MessageTypeRelease:
		x.release()
	case dhcpv6.MessageTypeDecline:
		x.decline()
	case dhcpv6.MessageTypeInformationRequest:
		x.observe(Informed, x.in.source.Addr(), "")
		x.reply(dhcpv6.MessageTypeReply)
	}
}

// client names an IA of the client within a pool.
func (x *exchange) client(ia *dhcpv6.OptIANA) string {
	return x.query.DUID + "/" + hex.EncodeToString(ia.IaId[:])
}

// ias are the IAs of the message that are answered.
func (x *exchange) ias() []*dhcpv6.OptIANA {
	all := x.envelope.message.Options.IANA()
	return all[:min(len(all), maxIAs)]
}

func (x *exchange) solicit() {
	if x.admit != nil && !x.admit(x.query) {
		x.count.deferred.Add(1)
		return
	}
	rapid := x.envelope.message.Options.GetOne(dhcpv6.OptionRapidCommit) != nil
	options := x.prefixes()
	for _, ia := range x.ias() {
		options = append(options, x.assign(ia, rapid))
	}
	if rapid {
		x.commit(append(options, &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})...)
		return
	}
	x.reply(dhcpv6.MessageTypeAdvertise, options...)
}

func (x *exchange) request() {
	options := x.prefixes()
	for _, ia := range x.ias() {
		if wanted := named(ia); slices.ContainsFunc(wanted, func(a netip.Addr) bool { return !x.onLink(a) }) {
			x.observe(Refused, wanted[0], "%s is of another network", wanted[0])
			options = append(options, refusal(ia, status(iana.StatusNotOnLink, "the address is of another network")))
			continue
		}
		options = append(options, x.assign(ia, true))
	}
	x.commit(options...)
}

// prefixes says to who asks for prefixes that there are none (RFC 8415, section 18.3.2).
func (x *exchange) prefixes() []dhcpv6.Option {
	var options []dhcpv6.Option
	for i, ia := range x.envelope.message.Options.IAPD() {
		if i == maxIAs {
			break
		}
		options = append(options, &dhcpv6.OptIAPD{IaId: ia.IaId, Options: dhcpv6.PDOptions{Options: dhcpv6.Options{
			status(iana.StatusNoPrefixAvail, "this server delegates no prefixes")}}})
	}
	return options
}

// assign chooses an address for an IA; bind leases it.
func (x *exchange) assign(ia *dhcpv6.OptIANA, bind bool) dhcpv6.Option {
	event := Offered
	if bind {
		event = Acknowledged
	}
	if a := x.takeReserved(); a.IsValid() {
		x.observe(event, a, "reserved for this machine")
		return x.given(ia, a)
	}
	if x.pool == nil {
		return x.exhausted(ia, "subnet %s has no pool for machines without a fixed address", x.subnet.Name)
	}
	s := x.fromPool(ia)
	if s == nil {
		return x.exhausted(ia, "all addresses of %s-%s are in use", x.pool.Range().From, x.pool.Range().To)
	}
	if bind {
		x.bind(s, x.client(ia))
	} else {
		if s.State != lease.Bound || s.Client != x.client(ia) {
			x.pool.Move(s, lease.Held, x.client(ia), x.now.Add(holdTime))
		}
		x.observe(Offered, s.Address, "from the pool")
	}
	return x.given(ia, s.Address)
}

// takeReserved gives the client's fixed address once, unless somebody else still has it.
func (x *exchange) takeReserved() netip.Addr {
	a := x.reserved
	x.reserved = netip.Addr{}
	if !a.IsValid() || x.pool == nil {
		return a
	}
	s := x.pool.Peek(a)
	switch {
	case s == nil || s.State == lease.Free:
	case s.State == lease.Quarantined:
		// It has become reserved since. Its machine will say so if it is still in use.
	case !strings.HasPrefix(s.Client, x.query.DUID+"/"):
		x.complain("reservation "+a.String(), "fixed address is still leased to another client", "address", a, "holder", s.Client)
		x.observe(Conflict, a, "reserved for this machine, but still leased to %s; it gets another one until that ends", s.Client)
		return netip.Addr{}
	case s.State == lease.Held:
		x.pool.Move(s, lease.Free, s.Client, time.Time{})
	}
	return a
}

// fromPool finds an address for an IA: its own, the one that it wants, a free one, or the one that the client has had for longest, when it has
// too many. It is nil when there is none.
func (x *exchange) fromPool(ia *dhcpv6.OptIANA) *lease.Slot {
	client, duid := x.client(ia), x.query.DUID
	if s := x.pool.Of(client); s != nil && (s.State == lease.Held || s.State == lease.Bound) && x.usable(s.Address) {
		return s
	}
	live := x.pool.ias[duid][:0:0]
	for _, other := range x.pool.ias[duid] {
		if s := x.pool.Of(other); s != nil && s.State != lease.Free && other != client {
			live = append(live, other)
		}
	}
	var found *lease.Slot
	if len(live) >= maxPerDUID {
		oldest := slices.MinFunc(live, func(a, b string) int { return x.pool.Of(a).Until.Compare(x.pool.Of(b).Until) })
		live = slices.DeleteFunc(live, func(c string) bool { return c == oldest })
		if found = x.pool.Of(oldest); !x.usable(found.Address) {
			found = nil
		}
	}
	if found == nil {
		var wanted netip.Addr
		if all := named(ia); len(all) > 0 {
			wanted = all[0]
		}
		found = x.pool.Choose(client, wanted, x.usable)
	}
	if found != nil {
		live = append(live, client)
	}
	x.pool.remember(duid, live)
	return found
}

// remember notes which clients are one DUID's. Those whose leases have ended are forgotten before they are more than the pool's.
func (p *pool) remember(duid string, clients []string) {
	if len(clients) == 0 {
		delete(p.ias, duid)
		return
	}
	p.ias[duid] = clients
	if len(p.ias) <= 1000+2*(p.Count(lease.Bound)+p.Count(lease.Held)) {
		return
	}
	for d, all := range p.ias {
		if d != duid && !slices.ContainsFunc(all, func(c string) bool { s := p.Of(c); return s != nil && s.State != lease.Free }) {
			delete(p.ias, d)
		}
	}
}

// bind leases a slot. The reply goes out when the lease is on disk.
func (x *exchange) bind(s *lease.Slot, client string) {
	// Whole seconds, as the journal has them; rounded up, so that it is never shorter than told.
	until := x.now.Add(x.subnet.leaseTime()).Truncate(time.Second).Add(time.Second)
	x.pool.Move(s, lease.Bound, client, until)
	x.records = append(x.records, lease.Record{State: lease.Bound, Address: s.Address, Client: client, Until: until})
	x.observe(Acknowledged, s.Address, "from the pool")
}

func (x *exchange) exhausted(ia *dhcpv6.OptIANA, format string, args ...any) dhcpv6.Option {
	why := fmt.Sprintf(format, args...)
	x.count.exhausted.Add(1)
	x.complain("pool "+x.subnet.Name, "DHCPv6 client gets no address", "subnet", x.subnet.Name, "reason", why)
	x.observe(PoolExhausted, netip.Addr{}, "%s", why)
	return refusal(ia, status(iana.StatusNoAddrsAvail, "no address is left"))
}

// extend prolongs leases. What the client has lost, it may have again while nobody else has it.
func (x *exchange) extend(kind dhcpv6.MessageType) {
	var options []dhcpv6.Option
	for _, ia := range x.ias() {
		var inner []dhcpv6.Option
		kept := false
		for _, a := range named(ia) {
			switch {
			case x.goesOn(ia, a):
				kept = true
				inner = append(inner, x.address(a))
			case kind == dhcpv6.MessageTypeRenew || !x.onLink(a) || x.taken(ia, a):
				x.observe(Refused, a, "%s is not this client's", a)
				inner = append(inner, &dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice()}) // lifetimes of zero
			}
		}
		switch {
		case kept:
			options = append(options, x.identity(ia, inner...))
		case kind == dhcpv6.MessageTypeRenew && len(inner) == 0:
			options = append(options, refusal(ia, status(iana.StatusNoBinding, "no lease of this client is known")))
		case len(inner) > 0:
			options = append(options, refusal(ia, inner...))
		}
	}
	if kind == dhcpv6.MessageTypeRebind && len(options) == 0 {
		return // it may be another server's
	}
	x.commit(options...)
}

// goesOn prolongs one address of an IA, if the client may keep it.
func (x *exchange) goesOn(ia *dhcpv6.OptIANA, a netip.Addr) bool {
	client := x.client(ia)
	var s *lease.Slot
	if x.pool != nil {
		s = x.pool.At(a)
	}
	switch {
	case s != nil && s.State == lease.Bound && s.Client == client:
		// An address in use is not pulled away, also when the machine has another fixed one by now.
	case a == x.reserved:
		if a = x.takeReserved(); a.IsValid() {
			x.observe(Acknowledged, a, "reserved for this machine")
		}
		return a.IsValid()
	case s == nil || !x.usable(a):
		return false
	case s.State == lease.Held && s.Client == client:
	case s.State == lease.Free && x.room(client):
	default:
		return false
	}
	x.bind(s, client)
	if duid := x.query.DUID; !slices.Contains(x.pool.ias[duid], client) {
		x.pool.remember(duid, append(x.pool.ias[duid], client))
	}
	return true
}

// room tells whether the client may have one more address of the pool.
func (x *exchange) room(client string) bool {
	n := 0
	for _, c := range x.pool.ias[x.query.DUID] {
		if s := x.pool.Of(c); c != client && s != nil && s.State != lease.Free {
			n++
		}
	}
	return n < maxPerDUID
}

// taken tells whether an address is known to be another client's.
func (x *exchange) taken(ia *dhcpv6.OptIANA, a netip.Addr) bool {
	if x.pool != nil {
		if s := x.pool.Peek(a); s != nil && s.State == lease.Bound && s.Client != x.client(ia) {
			return true
		}
	}
	return x.backend.Reserved(a)
}

func (x *exchange) onLink(a netip.Addr) bool {
	return slices.ContainsFunc(x.candidates, func(s Subnet) bool { return s.CIDR.Contains(a) })
}

// confirm tells a client whether its addresses fit the segment that it is on.
func (x *exchange) confirm() {
	var all []netip.Addr
	for _, ia := range x.ias() {
		all = append(all, named(ia)...)
	}
	switch {
	case len(all) == 0: // RFC 8415, section 18.3.3
	case slices.ContainsFunc(all, func(a netip.Addr) bool { return !x.onLink(a) }):
		x.observe(Refused, all[0], "not all of its addresses are of this network")
		x.reply(dhcpv6.MessageTypeReply, status(iana.StatusNotOnLink, "not all addresses are of this network"))
	default:
		x.reply(dhcpv6.MessageTypeReply, status(iana.StatusSuccess, "all addresses are of this network"))
	}
}

// held calls with each lease that the message names and the client has. It returns what is said of IAs without any.
func (x *exchange) held(with func(*lease.Slot)) []dhcpv6.Option {
	var options []dhcpv6.Option
	for _, ia := range x.ias() {
		known := false
		for _, a := range named(ia) {
			if a == x.reserved {
				known = true
				continue
			}
			if x.pool == nil {
				continue
			}
			if s := x.pool.Peek(a); s != nil && s.Client == x.client(ia) && (s.State == lease.Bound || s.State == lease.Held) {
				known = true
				with(s)
			}
		}
		if !known {
			options = append(options, refusal(ia, status(iana.StatusNoBinding, "no such lease of this client is known")))
		}
	}
	return options
}

// release frees leases. The addresses are the last to be given again: firmware releases its lease and uses the address further while its boot
// loader loads.
func (x *exchange) release() {
	options := x.held(func(s *lease.Slot) {
		x.observe(Released, s.Address, "")
		x.pool.Move(s, lease.Free, s.Client, time.Time{})
		x.store(lease.Record{State: lease.Free, Address: s.Address, Until: x.now}, nil)
	})
	x.reply(dhcpv6.MessageTypeReply, append(options, status(iana.StatusSuccess, "released"))...)
}

// decline lets addresses rest of which the client has found that others use them.
func (x *exchange) decline() {
	options := x.held(func(s *lease.Slot) {
		x.count.conflicts.Add(1)
		x.complain("declined "+s.Address.String(), "client found its address in use by another", "address", s.Address)
		x.observe(Declined, s.Address, "the client found the address in use; it rests for %s", quarantineTime)
		x.pool.Move(s, lease.Quarantined, "", x.now.Add(quarantineTime))
		x.store(lease.Record{State: lease.Quarantined, Address: s.Address, Until: s.Until}, nil)
	})
	for _, ia := range x.ias() {
		if a := x.reserved; a.IsValid() && slices.Contains(named(ia), a) {
			x.count.conflicts.Add(1)
			x.complain("declined "+a.String(), "client found its fixed address in use by another; find the other one", "address", a)
			x.observe(Declined, a, "the machine's fixed address is in use by another; find that one, or change the plan")
		}
	}
	x.reply(dhcpv6.MessageTypeReply, append(options, status(iana.StatusSuccess, "noted"))...)
}

// chosenOther frees what was advertised to a client that has taken another server's advertisement.
func (x *exchange) chosenOther() {
	x.count.foreign.Add(1)
	x.observe(ForeignServer, netip.Addr{}, "a client took the advertisement of the DHCPv6 server with DUID %x", x.envelope.message.Options.ServerID().ToBytes())
	x.complain("server", "another DHCPv6 server is active on this network", "subnet", x.subnet.Name)
	if x.pool == nil {
		return
	}
	for _, ia := range x.ias() {
		if s := x.pool.Of(x.client(ia)); s != nil && s.State == lease.Held {
			x.pool.Move(s, lease.Free, s.Client, time.Time{})
		}
	}
}

// commit sends a Reply once everything that it promises is on disk.
func (x *exchange) commit(options ...dhcpv6.Option) {
	payload, to := x.build(dhcpv6.MessageTypeReply, options)
	l, count, left := x.in.link, x.count, new(atomic.Int64)
	if len(x.records) == 0 {
		x.send(dhcpv6.MessageTypeReply, payload, to)
		return
	}
	left.Store(int64(len(x.records)))
	for _, r := range x.records {
		x.store(r, func(err error) {
			switch {
			case err != nil:
				count.unstored.Add(1) // left never becomes 0: no Reply
			case left.Add(-1) == 0:
				count.sent(dhcpv6.MessageTypeReply)
				l.send(payload, to)
			}
		})
	}
}

func (x *exchange) reply(kind dhcpv6.MessageType, options ...dhcpv6.Option) {
	payload, to := x.build(kind, options)
	x.send(kind, payload, to)
}

func (x *exchange) send(kind dhcpv6.MessageType, payload []byte, to netip.AddrPort) {
	l, count := x.in.link, x.count
	x.after = append(x.after, func() {
		count.sent(kind)
		l.send(payload, to)
	})
}
