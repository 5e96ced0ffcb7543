package dhcp

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"coldrack.dev/internal/netboot/lease"
	"coldrack.dev/internal/netboot/ratelimit"
)

// incoming is a message as it came in.
type incoming struct {
	link        link
	source      netip.Addr
	port        uint16     // the client's
	destination netip.Addr // in the IP header
	boot        bool       // it came to BootPort
	payload     []byte
}

// link is an interface as the engine sees it.
type link interface {
	name() string
	// addresses are the interface's own IPv4 addresses.
	addresses() []netip.Addr
	// send sends a reply. It may be called from several goroutines.
	send(outgoing)
	// probe asks by ARP whether somebody has the address, and calls back from another goroutine:
	// holders are the hardware addresses of all who answered in time. It is false when
	// probing is not possible at the moment; then there is no call.
	probe(address netip.Addr, done func(holders []net.HardwareAddr)) bool
}

// outgoing is a reply and where it goes.
type outgoing struct {
	payload []byte
	from    netip.Addr
	boot    bool // it goes out from BootPort
	to      netip.AddrPort
	// hardware, when set, is put on the frame as it is: the client cannot answer ARP for an address
	// that it does not have yet.
	hardware net.HardwareAddr
}

// Timing.
const (
	// holdTime is how long an offered address waits for its client's request. Firmware takes up to
	// half a minute.
	holdTime = time.Minute
	// quarantineTime is how long an address rests at which somebody answered.
	quarantineTime = 10 * time.Minute
	// probeValid is how long it is believed that nobody answers at an address.
	probeValid = 5 * time.Minute
	// leastQuarantine is how long such an address rests even when there is no other.
	leastQuarantine = time.Minute
	// maxProbes bounds how many addresses are probed for one client's request before it has to ask again.
	maxProbes = 4
	// maxPending bounds how many clients wait for a probe. The next ones get an address unprobed:
	// a conflict is unlikely, a machine that gets no answer is lost.
	maxPending = 4096
)

// engine decides. All it knows is in memory; the network and the disk are behind link and journal.
type engine struct {
	backend Backend
	log     *slog.Logger
	now     func() time.Time
	store   func(r lease.Record, done func(error)) // journal.add
	count   *counters
	admit   func(Query) bool  // nil: everybody
	passing func(Query) bool  // nil: nobody
	shapeOf func(Query) Shape // nil: nobody has any

	mu      sync.Mutex
	config  Config
	pools   map[netip.Prefix]*lease.Pool
	orphans []lease.Record      // leases that fit no present pool, kept for when their pool comes back
	pending map[string]*pending // by subnet and client
	notices ratelimit.Notices
	relays  map[netip.Prefix]bool // subnets for which a relay has asked
	probes  map[netip.Prefix]*probing
	// unheeded are clients in ModeProxy since their last sign of doing as they were told; servers are others', by subnet.
	unheeded map[netip.Prefix]map[string]*Unheeded
	servers  map[netip.Prefix]servers
	// uuids are what the clients of each subnet said last when their firmware asked.
	uuids   map[string]lastUUID
	changed func() // Options.Changed
}

// pending is a DISCOVER that waits for a probe.
type pending struct {
	client  string
	subnet  Subnet
	in      incoming // the latest of the client's repetitions
	message *dhcpv4.DHCPv4
	query   Query
	slot    *lease.Slot // nil: the client's reserved address is probed
	// reservation that is probed.
	reservation Reservation
	probes      int
}

// exchange is the work on one message.
type exchange struct {
	*engine
	in      incoming
	message *dhcpv4.DHCPv4
	query   Query
	client  string
	subnet  Subnet
	pool    *lease.Pool // nil: the subnet has none
	now     time.Time
	// seen is told to the Backend after the lock is released.
	seen []Observation
	// after is done after the lock is released, in order.
	after []func()
}

func newEngine(backend Backend, log *slog.Logger, now func() time.Time, store func(lease.Record, func(error)), count *counters) *engine {
	return &engine{backend: backend, log: log, now: now, store: store, count: count,
		pools: map[netip.Prefix]*lease.Pool{}, pending: map[string]*pending{},
		relays: map[netip.Prefix]bool{}, probes: map[netip.Prefix]*probing{},
		unheeded: map[netip.Prefix]map[string]*Unheeded{}, servers: map[netip.Prefix]servers{}, uuids: map[string]lastUUID{}, changed: func() {}}
}

// lastUUID is the SMBIOS UUID that a client said.
type lastUUID struct {
	uuid string
	at   time.Time
}

// twinTime is within what time one hardware address must say two UUIDs to be two machines': a board is not swapped, nor its UUID written, and booted
// again so soon.
const twinTime = 2 * time.Minute

// twins recognizes two machines of one segment with one hardware address, by their UUIDs. They cannot be told apart by what follows in DHCP, and
// get one address, so all that can be done is to say so.
func (x *exchange) twins() {
	if x.query.UUID == "" {
		return
	}
	key := x.pendingKey()
	before := x.uuids[key]
	if len(x.uuids) >= mostKept {
		clear(x.uuids)
	}
	x.uuids[key] = lastUUID{x.query.UUID, x.now}
	if before.uuid == "" || before.uuid == x.query.UUID || x.now.Sub(before.at) >= twinTime {
		return
	}
	x.complain("twin "+key, "two machines have one hardware address; they get one address, and disturb each other", "uuid", x.query.UUID, "other", before.uuid)
	x.observe(DuplicateMAC, netip.Addr{}, "machines with the UUIDs %s and %s have this hardware address; change one of them, or take it off this network", before.uuid, x.query.UUID)
}

// relayed tells whether a relay has asked for a client in a subnet.
func (e *engine) relayed(subnet netip.Prefix) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.relays[subnet]
}

// configure replaces the configuration. Pools that stay as they are keep offers under way; the leases of
// the others move into the new pools as far as they fit.
func (e *engine) configure(config Config, restored []lease.Record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for subnet := range e.unheeded {
		if !slices.ContainsFunc(config.Subnets, func(s Subnet) bool { return s.CIDR == subnet && s.Mode == ModeProxy }) {
			delete(e.unheeded, subnet)
		}
	}
	for subnet := range e.servers {
		if !slices.ContainsFunc(config.Subnets, func(s Subnet) bool { return s.CIDR == subnet }) {
			delete(e.servers, subnet)
		}
	}
	before := e.pools
	e.config, e.pools = config, map[netip.Prefix]*lease.Pool{}
	for _, s := range config.Subnets {
		if s.Mode != ModeServer || s.Pool.IsZero() {
			continue
		}
		if same := before[s.CIDR]; same != nil && same.Range() == s.Pool {
			e.pools[s.CIDR] = same
			delete(before, s.CIDR)
		} else {
			e.pools[s.CIDR] = lease.NewPool(s.Pool)
		}
	}
	records := e.orphans
	for _, p := range before {
		records = append(records, p.Records()...)
	}
	e.orphans = nil
	now := e.now()
	for _, r := range lease.Latest(append(records, restored...)) {
		if !e.restoreLocked(r) && r.State != lease.Free && r.Until.After(now) {
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
			return true
		}
	}
	return false
}

// records lists all that has to survive a restart.
func (e *engine) records() []lease.Record {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.recordsLocked()
}

func (e *engine) recordsLocked() []lease.Record {
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
	m, err := parse(in.payload)
	if err != nil {
		e.count.malformed.Add(1)
		e.log.Debug("DHCP message dropped", "interface", in.link.name(), "source", in.source, "err", err)
		return
	}
	e.count.received(m.MessageType())
	x := &exchange{engine: e, in: in, message: m, query: queryOf(m), client: clientKey(m), now: e.now()}
	x.query.Interface = in.link.name()

	e.mu.Lock()
	for _, p := range e.pools {
		p.Expire(x.now)
	}
	located := x.locate()
	if located && m.MessageType() == dhcpv4.MessageTypeDiscover && !x.passes() {
		x.twins()
	}
	switch {
	case !located:
	case in.boot:
		x.bootServer()
	case x.subnet.Mode == ModeProxy:
		x.besideTheirs()
	default:
		switch m.MessageType() {
		case dhcpv4.MessageTypeDiscover:
			x.discover()
		case dhcpv4.MessageTypeRequest:
			x.request()
		case dhcpv4.MessageTypeDecline:
			x.decline()
		case dhcpv4.MessageTypeRelease:
			x.release()
		case dhcpv4.MessageTypeInform:
			x.inform()
		}
	}
	e.mu.Unlock()
	x.finish()
}

// Shape is how a client must be answered, past what it says of itself.
type Shape struct {
	// Small: with 576 bytes at most, whatever size it says that it takes.
	Small bool
	// Broadcast: to everybody, although it says that it hears what goes to its address.
	Broadcast bool
}

func (x *exchange) shape() Shape {
	if x.shapeOf == nil {
		return Shape{}
	}
	return x.shapeOf(x.query)
}

// passes says whether the client only looks what it would be told.
func (x *exchange) passes() bool { return x.passing != nil && x.passing(x.query) }

// finish does what must not happen under the lock.
func (x *exchange) finish() {
	for _, o := range x.seen {
		x.backend.Observe(o)
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
	x.log.Warn(message, append([]any{"mac", x.client, "interface", x.query.Interface}, args...)...)
}

// locate finds the subnet the client is in. It reports false when there is nothing to say there.
func (x *exchange) locate() bool {
	candidates := x.candidates()
	x.query.Server = x.serverAddress(Subnet{})
	if len(candidates) == 0 {
		x.count.noSubnet.Add(1)
		where := "on interface " + x.query.Interface
		if x.query.Relay.IsValid() {
			where = "behind relay " + x.query.Relay.String()
		}
		x.observe(NoSubnet, netip.Addr{}, "no subnet is configured %s", where)
		x.complain("subnet "+where, "DHCP client ignored: no subnet is configured "+where)
		return false
	}
	candidates = slices.DeleteFunc(candidates, func(s Subnet) bool { return s.Mode == ModeOff })
	if len(candidates) == 0 {
		return false
	}
	chosen := x.choose(candidates)
	x.subnet = chosen
	x.pool = x.pools[chosen.CIDR]
	if x.query.Relay.IsValid() && !x.relays[chosen.CIDR] {
		x.relays[chosen.CIDR] = true
		x.after = append(x.after, x.changed)
	}
	x.query.Server = x.serverAddress(chosen)
	x.query.Proxied = chosen.Mode == ModeProxy
	return x.query.Server.IsValid()
}

// choose picks among several networks on one segment: the one the client is in already, or that
// knows it, or that has a pool.
func (x *exchange) choose(candidates []Subnet) Subnet {
	asked := optionAddr(x.message, dhcpv4.OptionRequestedIPAddress)
	if ciaddr := toNetip(x.message.ClientIPAddr); !asked.IsValid() && !ciaddr.IsUnspecified() {
		asked = ciaddr
	}
	for _, fits := range []func(Subnet) bool{
		func(s Subnet) bool {
			return x.message.MessageType() != dhcpv4.MessageTypeDiscover && s.CIDR.Contains(asked)
		},
		func(s Subnet) bool { _, ok := x.backend.Reservation(s.CIDR, x.query); return ok },
		func(s Subnet) bool { return x.pools[s.CIDR] != nil },
	} {
		if i := slices.IndexFunc(candidates, fits); i >= 0 {
			return candidates[i]
		}
	}
	return candidates[0]
}

func (x *exchange) candidates() []Subnet {
	var in func(Subnet) bool
	ciaddr := toNetip(x.message.ClientIPAddr)
	switch relay := x.query.Relay; {
	case x.in.boot:
		at := x.clientAddress()
		in = func(s Subnet) bool { return s.CIDR.Contains(at) }
	case relay.IsValid():
		at := relay
		// RFC 3527: the relay may name the client's network apart from its own address.
		if selected := relayOptions(x.message).Get(relayLinkSelection); len(selected) == 4 {
			at = netip.AddrFrom4([4]byte(selected))
		}
		in = func(s Subnet) bool { return s.hasRelay(at) }
	case ciaddr.IsValid() && !ciaddr.IsUnspecified() && slices.Contains(x.in.link.addresses(), x.in.destination):
		// A client renews by unicast, past the relay: only its address tells where it is.
		in = func(s Subnet) bool { return s.CIDR.Contains(ciaddr) }
	default:
		own := x.in.link.addresses()
		in = func(s Subnet) bool { return slices.ContainsFunc(own, s.CIDR.Contains) }
	}
	var all []Subnet
	for _, s := range x.config.Subnets {
		if in(s) {
			all = append(all, s)
		}
	}
	return all
}

// serverAddress chooses the address that the client is told for this server.
func (x *exchange) serverAddress(s Subnet) netip.Addr {
	own := x.in.link.addresses()
	local := slices.IndexFunc(own, func(a netip.Addr) bool { return s.CIDR.IsValid() && s.CIDR.Contains(a) })
	configured := x.config.ServerIP
	switch {
	case configured.IsValid() && (local < 0 || s.CIDR.Contains(configured)):
		return configured
	case local >= 0:
		return own[local]
	case slices.Contains(own, x.in.destination):
		return x.in.destination
	case len(own) > 0:
		return own[0]
	}
	return netip.Addr{}
}

// isOurs tells whether a server identifier means this server.
func (x *exchange) isOurs(server netip.Addr) bool {
	return server == x.query.Server || server == x.config.ServerIP || server == serverOverride(x.message) || slices.Contains(x.in.link.addresses(), server)
}

// usable tells whether an address may be given from a pool.
func (x *exchange) usable(a netip.Addr) bool {
	return !x.backend.Reserved(a) && !x.isOurs(a)
}

func (x *exchange) discover() {
	if x.admit != nil && !x.admit(x.query) {
		x.count.deferred.Add(1)
		return
	}
	if p := x.pending[x.pendingKey()]; p != nil {
		p.in, p.message, p.query = x.in, x.message, x.query // answer the latest one when the probe is through
		return
	}
	if reservation, ok := x.backend.Reservation(x.subnet.CIDR, x.query); ok {
		holder := x.otherHolder(reservation.Address)
		if holder == "" {
			x.offerReserved(reservation)
			return
		}
		// Offering it all the same would give one address to two machines.
		x.complain("reservation "+reservation.Address.String(), "reserved address is still leased to another client",
			"address", reservation.Address, "holder", holder)
		x.observe(Conflict, reservation.Address, "reserved for this machine, but still leased to %s; it gets another one until that ends", holder)
	}
	x.discoverInPool(0)
}

// offerReserved offers a client's reserved address, after a probe if one is due.
func (x *exchange) offerReserved(reservation Reservation) {
	// An address behind a relay cannot be reached by ARP.
	due := !x.query.Relay.IsValid() && x.now.Sub(x.probing().silent[reservation.Address]) >= probeValid
	if due && len(x.pending) < maxPending {
		x.probeFor(&pending{reservation: reservation}, reservation.Address)
		return
	}
	x.reply(dhcpv4.MessageTypeOffer, reservation.Address, reservation.Hostname)
	x.observe(Offered, reservation.Address, "reserved for this machine")
}

// probeFor lets the DISCOVER wait until an address was probed.
func (x *exchange) probeFor(p *pending, address netip.Addr) {
	p.client, p.subnet, p.in, p.message, p.query = x.client, x.subnet, x.in, x.message, x.query
	key := x.pendingKey()
	x.pending[key] = p
	e, l := x.engine, x.in.link
	x.after = append(x.after, func() {
		if !l.probe(address, func(holders []net.HardwareAddr) { e.probed(key, p, holders) }) {
			e.probed(key, p, nil)
		}
	})
}

// discoverInPool offers an address of the pool; probes have been made for the DISCOVER before.
func (x *exchange) discoverInPool(probes int) {
	if x.pool == nil {
		x.complain("pool "+x.subnet.Name, "DHCP client ignored: it has no reservation and its subnet has no pool", "subnet", x.subnet.Name)
		x.observe(PoolExhausted, netip.Addr{}, "subnet %s has no pool for machines without a reservation", x.subnet.Name)
		return
	}
	s := x.chooseFromPool(optionAddr(x.message, dhcpv4.OptionRequestedIPAddress))
	if s == nil {
		x.exhausted()
		return
	}
	x.offerFromPool(s, probes)
}

// chooseFromPool finds an address that may be offered. When none is free, those come into question that have been found in use some time
// ago: they are probed again.
func (x *exchange) chooseFromPool(wanted netip.Addr) *lease.Slot {
	if s := x.pool.Choose(x.client, wanted, x.usable); s != nil {
		return s
	}
	if x.query.Relay.IsValid() {
		return nil
	}
	s := x.pool.LongestQuarantined()
	if s == nil || s.Until.Sub(x.now) > quarantineTime-leastQuarantine || !x.usable(s.Address) {
		return nil
	}
	s.Probed = time.Time{}
	return s
}

func (x *exchange) exhausted() {
	x.count.exhausted.Add(1)
	x.complain("pool "+x.subnet.Name, "DHCP pool is exhausted", "subnet", x.subnet.Name,
		"pool", x.subnet.Pool.From.String()+"-"+x.subnet.Pool.To.String(), "leased", x.pool.Count(lease.Bound))
	x.observe(PoolExhausted, netip.Addr{}, "all addresses of %s-%s are in use", x.subnet.Pool.From, x.subnet.Pool.To)
}

func (x *exchange) pendingKey() string { return x.subnet.CIDR.String() + " " + x.client }

// offerFromPool offers a slot that is free or the client's own, after a probe if one is due.
func (x *exchange) offerFromPool(s *lease.Slot, probes int) {
	if s.State != lease.Bound {
		x.pool.Move(s, lease.Held, x.client, x.now.Add(holdTime))
		// An address behind a relay cannot be reached by ARP.
		due := !x.query.Relay.IsValid() && x.now.Sub(s.Probed) >= probeValid
		if due && len(x.pending) < maxPending {
			x.probeFor(&pending{slot: s, probes: probes + 1}, s.Address)
			return
		}
	}
	x.reply(dhcpv4.MessageTypeOffer, s.Address, "")
	x.observe(Offered, s.Address, "from the pool")
}

// probed takes the result of a probe and goes on with the DISCOVER that waits for it.
func (e *engine) probed(key string, p *pending, holders []net.HardwareAddr) {
	e.mu.Lock()
	if e.pending[key] != p {
		e.mu.Unlock()
		return // the client has taken another server's offer
	}
	delete(e.pending, key)
	x := &exchange{engine: e, in: p.in, message: p.message, query: p.query, client: p.client, subnet: p.subnet,
		pool: e.pools[p.subnet.CIDR], now: e.now()}
	if p.slot == nil {
		x.probedReservation(p.reservation, holders)
	} else {
		x.probedSlot(p.slot, p.probes, holders)
	}
	e.mu.Unlock()
	x.finish()
}

func (x *exchange) probedReservation(reservation Reservation, holders []net.HardwareAddr) {
	address := reservation.Address
	holder := x.foreignHolder(address, holders, reservation.Hardware)
	if holder == "" {
		if x.probing().free(address, x.now) {
			x.after = append(x.after, x.changed)
		}
		x.reply(dhcpv4.MessageTypeOffer, address, reservation.Hostname)
		x.observe(Offered, address, "reserved for this machine")
		return
	}
	x.count.conflicts.Add(1)
	x.probing().taken[address] = Taken{Address: address, Holder: holder, Client: x.client, until: x.now.Add(quarantineTime)}
	x.after = append(x.after, x.changed)
	x.complain("conflict "+address.String(), "reserved address is in use by another; it is not given out until that one is gone",
		"address", address, "holder", holder)
	x.observe(Conflict, address, "reserved for this machine, but %s answers at it; the machine gets another address until that one is gone", holder)
	x.discoverInPool(0)
}

func (x *exchange) probedSlot(s *lease.Slot, probes int, holders []net.HardwareAddr) {
	switch {
	case x.pool == nil || x.pool.Peek(s.Address) != s:
		return // the configuration has changed under it
	case s.Client != x.client || s.State != lease.Held:
		return // the client has since taken something else
	}
	holder := x.foreignHolder(s.Address, holders, nil)
	if holder == "" {
		s.Probed = x.now
		x.offerFromPool(s, probes)
		return
	}
	x.count.conflicts.Add(1)
	x.pool.Move(s, lease.Quarantined, "", x.now.Add(quarantineTime))
	x.store(lease.Record{State: lease.Quarantined, Address: s.Address, Until: s.Until}, nil)
	x.complain("conflict "+s.Address.String(), "address of the pool is in use by someone it was not given to",
		"address", s.Address, "holder", holder)
	x.observe(Conflict, s.Address, "%s answers at this address of the pool", holder)
	if probes >= maxProbes {
		return
	}
	if next := x.chooseFromPool(netip.Addr{}); next != nil {
		x.offerFromPool(next, probes)
	} else {
		x.exhausted()
	}
}

// otherHolder names the client that has a lease on an address, empty when it is this client or none.
func (x *exchange) otherHolder(a netip.Addr) string {
	if x.pool == nil {
		return ""
	}
	if s := x.pool.Peek(a); s != nil && s.State == lease.Bound && s.Client != x.client {
		return s.Client
	}
	return ""
}

// request decides on a REQUEST; RFC 2131, section 4.3.2 tells the client's states apart by what it
// fills in.
func (x *exchange) request() {
	server := optionAddr(x.message, dhcpv4.OptionServerIdentifier)
	address := optionAddr(x.message, dhcpv4.OptionRequestedIPAddress)
	ciaddr := toNetip(x.message.ClientIPAddr)
	prolong := !server.IsValid() && !address.IsValid() // RENEWING or REBINDING
	if !address.IsValid() && !ciaddr.IsUnspecified() {
		address = ciaddr
	}
	if server.IsValid() && !x.isOurs(server) {
		x.chosenOther(server)
		return
	}
	if !address.IsValid() {
		x.count.malformed.Add(1)
		return
	}
	if !x.subnet.CIDR.Contains(address) {
		x.nak(address, "%s is not in this network, %s", address, x.subnet.CIDR)
		return
	}
	var mine *lease.Slot
	if x.pool != nil {
		if s := x.pool.Of(x.client); s != nil && s.State != lease.Free {
			mine = s
		}
	}
	if reservation, ok := x.backend.Reservation(x.subnet.CIDR, x.query); ok {
		holder := x.otherHolder(reservation.Address)
		taken, isTaken := x.probing().takenNow(reservation.Address, x.now)
		switch {
		case reservation.Address == address && holder != "":
			x.nak(address, "%s is leased to another client", address)
			return
		case reservation.Address == address && isTaken && !prolong:
			x.nak(address, "%s is in use by %s", address, taken.Holder)
			return
		case reservation.Address == address:
			if mine != nil && mine.State == lease.Held {
				x.pool.Move(mine, lease.Free, x.client, time.Time{})
			}
			x.reply(dhcpv4.MessageTypeAck, address, reservation.Hostname)
			x.observe(Acknowledged, address, "reserved for this machine")
			return
		case prolong && mine != nil && mine.Address == address && mine.State == lease.Bound:
			// An address in use is not pulled away: the machine may be in the middle of its
			// installation. It gets its own when it asks anew.
		case mine != nil && mine.Address == address && (holder != "" || isTaken):
			// It was offered instead of the reserved one.
		default:
			x.nak(address, "this machine has the reserved address %s", reservation.Address)
			return
		}
	}
	if x.pool == nil || !x.pool.Range().Contains(address) {
		if server.IsValid() || mine != nil {
			x.nak(address, "%s was not given to this client", address)
		}
		// Else it may be another server's client; RFC 2131 has us say nothing then.
		return
	}
	s := x.pool.At(address)
	switch {
	case s == mine:
	case s.State == lease.Free && x.usable(address):
		// The client still believes in a lease that has ended, or that we have lost. As nobody else
		// has the address, it may go on.
	default:
		x.nak(address, "%s is not available", address)
		return
	}
	if !x.usable(address) && s.State != lease.Bound {
		x.nak(address, "%s has become reserved", address)
		return
	}
	x.bind(s)
}

// bind leases a slot. The ACK goes out when the lease is on disk.
func (x *exchange) bind(s *lease.Slot) {
	// Whole seconds, as the journal has them; rounded up, so that it is never shorter than told.
	until := x.now.Add(x.subnet.leaseTime()).Truncate(time.Second).Add(time.Second)
	x.pool.Move(s, lease.Bound, x.client, until)
	payload, out := x.build(dhcpv4.MessageTypeAck, s.Address, "", "")
	l, count, address := x.in.link, x.count, s.Address
	out.payload = payload
	r := lease.Record{State: lease.Bound, Address: address, Client: x.client, Until: until}
	x.store(r, func(err error) {
		if err != nil {
			count.unstored.Add(1)
			return
		}
		count.sent(dhcpv4.MessageTypeAck)
		l.send(out)
	})
	x.log.Debug("address leased", "mac", x.client, "address", address, "subnet", x.subnet.Name, "until", until)
	x.observe(Acknowledged, address, "from the pool")
}

// chosenOther notes that the client has taken another server's offer.
func (x *exchange) chosenOther(server netip.Addr) {
	x.forgetOffer()
	x.foreign(server, "%s took the offer of the DHCP server %s", x.client, server)
}

func (x *exchange) forgetOffer() {
	delete(x.pending, x.pendingKey())
	if x.pool == nil {
		return
	}
	if s := x.pool.Of(x.client); s != nil && s.State == lease.Held {
		x.pool.Move(s, lease.Free, "", time.Time{})
	}
}

func (x *exchange) foreign(server netip.Addr, format string, args ...any) {
	x.count.foreign.Add(1)
	if x.subnet.CIDR.IsValid() {
		x.heard(server)
	}
	x.complain("server "+server.String(), "another DHCP server is active on this network", "server", server, "subnet", x.subnet.Name)
	x.observe(ForeignServer, server, format, args...)
}

// overheard takes note of a reply of some server that was seen on the wire.
func (e *engine) overheard(l link, payload []byte) {
	m, err := dhcpv4.FromBytes(payload)
	if err != nil || m.OpCode != dhcpv4.OpcodeBootReply {
		return
	}
	server := optionAddr(m, dhcpv4.OptionServerIdentifier)
	if !server.IsValid() {
		return
	}
	x := &exchange{engine: e, in: incoming{link: l}, message: m, query: queryOf(m), client: clientKey(m), now: e.now()}
	x.query.Interface = l.name()
	e.mu.Lock()
	if !x.isOurs(server) {
		if candidates := x.candidates(); len(candidates) > 0 {
			x.subnet = candidates[0]
		}
		if x.subnet.Mode == ModeProxy { // it is the site's own
			x.heard(server)
		} else {
			x.foreign(server, "%s sent a DHCP %s", server, m.MessageType())
		}
	}
	e.mu.Unlock()
	x.finish()
}

func (x *exchange) decline() {
	address := optionAddr(x.message, dhcpv4.OptionRequestedIPAddress)
	server := optionAddr(x.message, dhcpv4.OptionServerIdentifier)
	if !address.IsValid() || server.IsValid() && !x.isOurs(server) {
		return
	}
	// Only who has an address may spoil it.
	if x.pool != nil {
		if s := x.pool.Of(x.client); s != nil && s.Address == address && (s.State == lease.Held || s.State == lease.Bound) {
			x.pool.Move(s, lease.Quarantined, "", x.now.Add(quarantineTime))
			x.store(lease.Record{State: lease.Quarantined, Address: address, Until: s.Until}, nil)
			x.count.conflicts.Add(1)
			x.complain("declined "+address.String(), "client found its address in use by another", "address", address)
			x.observe(Declined, address, "the client found the address in use; it rests for %s", quarantineTime)
			return
		}
	}
	if reservation, ok := x.backend.Reservation(x.subnet.CIDR, x.query); ok && reservation.Address == address {
		x.count.conflicts.Add(1)
		x.complain("declined "+address.String(), "client found its reserved address in use by another; find the other one", "address", address)
		x.observe(Declined, address, "the machine's reserved address is in use by another; find that one, or change the reservation")
	}
}

func (x *exchange) release() {
	address := toNetip(x.message.ClientIPAddr)
	server := optionAddr(x.message, dhcpv4.OptionServerIdentifier)
	if server.IsValid() && !x.isOurs(server) {
		return
	}
	if x.pool != nil {
		s := x.pool.Of(x.client)
		switch {
		case s == nil || s.Address != address:
		case s.State == lease.Bound:
			x.pool.Move(s, lease.Free, x.client, time.Time{})
			x.store(lease.Record{State: lease.Free, Address: address, Until: x.now}, nil)
			x.observe(Released, address, "")
		case s.State == lease.Held: // it will not take what it was offered
			x.pool.Move(s, lease.Free, x.client, time.Time{})
		}
	}
}

// inform answers a client that has an address and wants settings only.
func (x *exchange) inform() {
	ciaddr := toNetip(x.message.ClientIPAddr)
	if ciaddr.IsUnspecified() {
		ciaddr = x.in.source // some clients leave it to the IP header
	}
	// The answer goes there: it must not be somebody else's network, nor all of this one.
	if cidr := x.subnet.CIDR; !cidr.Contains(ciaddr) || ciaddr == broadcast(cidr) || ciaddr == cidr.Masked().Addr() {
		x.count.malformed.Add(1)
		return
	}
	x.message.ClientIPAddr = ciaddr.AsSlice()
	x.reply(dhcpv4.MessageTypeAck, netip.Addr{}, "")
	x.observe(Informed, ciaddr, "")
}

func (x *exchange) nak(address netip.Addr, format string, args ...any) {
	reason := fmt.Sprintf(format, args...)
	payload, out := x.build(dhcpv4.MessageTypeNak, netip.Addr{}, "", reason)
	out.payload = payload
	x.transmit(dhcpv4.MessageTypeNak, out)
	x.log.Info("DHCP request refused", "mac", x.client, "address", address, "subnet", x.subnet.Name, "reason", reason)
	x.observe(Refused, address, "%s", reason)
}

func (x *exchange) reply(kind dhcpv4.MessageType, address netip.Addr, hostname string) {
	payload, out := x.build(kind, address, hostname, "")
	out.payload = payload
	x.transmit(kind, out)
}

func (x *exchange) transmit(kind dhcpv4.MessageType, out outgoing) {
	l, count := x.in.link, x.count
	x.after = append(x.after, func() {
		count.sent(kind)
		l.send(out)
	})
}

// furtherOptions are those of the client, and those of its subnet that it has none of its own for.
func (x *exchange) furtherOptions() []Option {
	all := slices.Clone(x.backend.Options(x.query))
	for _, o := range x.subnet.Options {
		if !slices.ContainsFunc(all, func(own Option) bool { return own.Code == o.Code }) {
			all = append(all, o)
		}
	}
	return all
}

// build makes a reply and chooses its way, RFC 2131, section 4.1.
func (x *exchange) build(kind dhcpv4.MessageType, address netip.Addr, hostname, message string) ([]byte, outgoing) {
	a := answer{kind: kind, address: address, server: x.query.Server, subnet: x.subnet, hostname: hostname, message: message, shape: x.shape()}
	if kind != dhcpv4.MessageTypeNak {
		a.options = x.furtherOptions()
		if file, ok := x.backend.BootFile(x.subnet.CIDR, x.query); ok {
			a.boot = &file
		}
	}
	payload := encode(x.message, x.query, a)
	out := outgoing{from: x.query.Server}
	everyone := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	ciaddr := toNetip(x.message.ClientIPAddr)
	switch {
	case x.query.Relay.IsValid():
		out.to = netip.AddrPortFrom(x.query.Relay, ServerPort)
	case kind == dhcpv4.MessageTypeNak:
		out.to = netip.AddrPortFrom(everyone, ClientPort)
	case ciaddr.IsValid() && !ciaddr.IsUnspecified() && kind == dhcpv4.MessageTypeAck:
		out.to = netip.AddrPortFrom(ciaddr, ClientPort)
	case x.message.IsBroadcast() || a.shape.Broadcast || x.message.HWType != iana.HWTypeEthernet || len(x.message.ClientHWAddr) != 6:
		out.to = netip.AddrPortFrom(everyone, ClientPort)
	default:
		out.to = netip.AddrPortFrom(address, ClientPort)
		out.hardware = x.message.ClientHWAddr
	}
	return payload, out
}
