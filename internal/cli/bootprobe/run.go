package bootprobe

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/netboot/dhcp"
)

// Options are what a probe needs.
type Options struct {
	// Interface is the one at the segment.
	Interface string
	// Inside runs a function in the network namespace of the interface; nil: this one.
	Inside func(func() error) error
	// Patience is how long to wait when nobody answers, 4 s by default. Quiet is how long to wait for further servers after one has answered, 2 s
	// by default.
	Patience, Quiet time.Duration
}

// Run probes a segment. What it was given there it gives back, also when it fails.
func Run(ctx context.Context, o Options) (report Report, err error) {
	if o.Inside == nil {
		o.Inside = func(fn func() error) error { return fn() }
	}
	p := &probe{Options: o}
	p.Patience, p.Quiet = cmp.Or(o.Patience, 4*time.Second), cmp.Or(o.Quiet, 2*time.Second)
	err = o.Inside(func() (err error) {
		if p.place, err = dhcp.OpenClientPlace(o.Interface); err == nil {
			p.own, p.here, err = addressesOf(p.place.Device())
		}
		return err
	})
	if p.place != nil {
		defer p.place.Close()
	}
	if err != nil {
		return Report{}, err
	}
	p.mac = wire.ProbeMAC(p.place.Device().HardwareAddr)
	defer func() { err = errors.Join(err, p.giveBack()) }()
	return p.run(ctx)
}

// probe is a probe under way.
type probe struct {
	Options
	place *dhcp.ClientPlace
	mac   net.HardwareAddr
	own   []netip.Addr   // of this host
	here  []netip.Prefix // of the interface

	asked   []asked
	offered []Offer // what was offered and not yet given back
	lease   *Offer  // what was leased
	remove  func() error
	network network
	// unreached is why files cannot be fetched.
	unreached string
}

func (p *probe) run(ctx context.Context) (Report, error) {
	anyone, err := p.ask(ctx, anyClient)
	if err != nil {
		return Report{}, err
	}
	for _, f := range Firmwares() {
		if _, err := p.ask(ctx, f); err != nil {
			return Report{}, err
		}
	}
	if err := p.settle(ctx, anyone); err != nil {
		return Report{}, err
	}
	var trips []trip
	s := segment{anyone: anyone}
	for _, f := range Firmwares() {
		t, err := p.travel(ctx, f)
		if err != nil {
			return Report{}, err
		}
		trips = append(trips, t)
		s.boots = s.boots || t.boots != nil
		if t.coldrack {
			add(&s.coldracks, t.boots.Server)
		}
	}
	report := Report{Interface: p.Interface, MAC: p.mac.String(), Address: p.network.from, Leased: p.lease != nil, Servers: serversOf(p.asked), Clients: []Client{}}
	if report.Servers == nil {
		report.Servers = []Server{}
	}
	for _, t := range trips {
		v := judge(t, s)
		report.Clients = append(report.Clients, Client{Kind: t.firmware.Name, State: v.state, Verdict: v.text, Do: v.do, Notes: notesOf(t),
			Offers: append([]Offer{}, t.offers...), Stages: append([]Stage{}, t.stages...)})
	}
	return report, nil
}

// again are the seconds after which a question is repeated.
var again = []time.Duration{time.Second, 3 * time.Second}

// ask asks as a kind of client and gives all offers; none of them is taken. It waits longer for servers that were heard before than for others.
func (p *probe) ask(ctx context.Context, f Firmware) ([]Offer, error) {
	if i := slices.IndexFunc(p.asked, func(a asked) bool { return a.firmware.Name == f.Name }); i >= 0 {
		return p.asked[i].offers, nil
	}
	expected := p.expected(f)
	xid := newXID()
	began := time.Now()
	end := began.Add(p.Patience)
	repeat := slices.Clone(again)
	offers := []Offer{}
	send := func() error {
		m := f.message(dhcpv4.MessageTypeDiscover, p.mac, xid, int(time.Since(began)/time.Second))
		if err := p.place.Broadcast(p.mac, m.ToBytes()); err != nil {
			return fmt.Errorf("ask on interface %s: %w", p.Interface, err)
		}
		return nil
	}
	if err := send(); err != nil {
		return nil, err
	}
	for {
		until := end
		if len(repeat) > 0 && began.Add(repeat[0]).Before(end) {
			until = began.Add(repeat[0])
		}
		answer, err := p.place.Hear(until)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded) && until.Equal(end):
			p.asked = append(p.asked, asked{f, offers})
			return offers, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			repeat = repeat[1:]
			if len(offers) == 0 {
				if err := send(); err != nil {
					return nil, err
				}
			}
			continue
		case err != nil:
			return nil, fmt.Errorf("listen on interface %s: %w", p.Interface, err)
		}
		m, offer, ok := offerOf(answer.Payload, p.mac, xid, time.Since(began))
		known := slices.ContainsFunc(offers, func(o Offer) bool {
			return o.Server == offer.Server && o.Address.IsValid() == offer.Address.IsValid()
		})
		if !ok || m.MessageType() != dhcpv4.MessageTypeOffer || !offer.Server.IsValid() || known || len(offers) >= 16 {
			continue
		}
		offer.hardware = answer.Hardware
		offers = append(offers, offer)
		if offer.Address.IsValid() {
			p.offered = append(slices.DeleteFunc(p.offered, func(o Offer) bool { return o.Server == offer.Server }), offer)
		}
		expected = slices.DeleteFunc(expected, func(a netip.Addr) bool { return a == offer.Server })
		wait := p.Quiet
		if len(p.asked) > 1 && len(expected) == 0 {
			wait = p.Quiet / 8 // all that were heard before have answered
		}
		end = time.Now().Add(wait)
	}
}

// expected are the servers that have answered other kinds of clients that boot.
func (p *probe) expected(f Firmware) []netip.Addr {
	var all []netip.Addr
	for _, a := range p.asked {
		for _, o := range a.offers {
			if !f.any {
				add(&all, o.Server)
			}
		}
	}
	return all
}

func newXID() (xid dhcpv4.TransactionID) {
	_, _ = rand.Read(xid[:]) // never fails
	return xid
}

// settle finds an address to fetch files with: one that the interface has in the network of an offer, else one that is leased.
func (p *probe) settle(ctx context.Context, anyone []Offer) error {
	p.network = network{inside: p.Inside, device: p.Interface, own: p.own}
	var all []Offer
	all = append(all, anyone...)
	for _, a := range p.asked {
		all = append(all, a.offers...)
	}
	for _, o := range all {
		p.network.names = append(p.network.names, o.names...)
	}
	for _, o := range all {
		for _, prefix := range p.here {
			if o.Address.IsValid() && prefix.Contains(o.Address) {
				p.network.from = prefix.Addr()
				return nil
			}
		}
	}
	for _, o := range all {
		if !o.Address.IsValid() {
			continue
		}
		leased, why, err := p.take(ctx, o)
		if err != nil {
			return err
		}
		if leased == nil {
			p.unreached = why
			continue
		}
		p.lease, p.unreached = leased, ""
		if p.remove, err = p.give(*leased); err != nil {
			p.unreached = err.Error()
			return nil
		}
		p.network.from = leased.Address
		return nil
	}
	if len(p.here) > 0 {
		p.network.from = p.here[0].Addr() // there is a proxy at most
	} else if p.unreached == "" {
		p.unreached = "this interface has no address, and nobody gives one"
	}
	return nil
}

// take asks for an offered address.
func (p *probe) take(ctx context.Context, o Offer) (leased *Offer, why string, err error) {
	xid := newXID()
	m := anyClient.message(dhcpv4.MessageTypeRequest, p.mac, xid, 0)
	m.UpdateOption(dhcpv4.OptRequestedIPAddress(o.Address.AsSlice()))
	m.UpdateOption(dhcpv4.OptServerIdentifier(o.Server.AsSlice()))
	began := time.Now()
	for range 3 {
		if err := p.place.Broadcast(p.mac, m.ToBytes()); err != nil {
			return nil, "", fmt.Errorf("ask on interface %s: %w", p.Interface, err)
		}
		for until := time.Now().Add(p.Patience / 2); ; {
			answer, err := p.place.Hear(until)
			if ctx.Err() != nil {
				return nil, "", ctx.Err()
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, "", fmt.Errorf("listen on interface %s: %w", p.Interface, err)
			}
			reply, got, ok := offerOf(answer.Payload, p.mac, xid, time.Since(began))
			switch {
			case !ok || got.Server != o.Server:
			case reply.MessageType() == dhcpv4.MessageTypeNak:
				return nil, fmt.Sprintf("%s takes its offer of %s back", o.Server, o.Address), nil
			case reply.MessageType() == dhcpv4.MessageTypeAck && got.Address.IsValid():
				got.hardware = answer.Hardware
				return &got, "", nil
			}
		}
	}
	return nil, fmt.Sprintf("%s does not acknowledge its offer of %s", o.Server, o.Address), nil
}

// giveBack takes the leased address off the interface, and gives back all that servers hold for this probe.
func (p *probe) giveBack() error {
	var errs []error
	if p.remove != nil {
		errs = append(errs, p.remove())
	}
	if p.lease != nil {
		p.offered = append(slices.DeleteFunc(p.offered, func(o Offer) bool { return o.Server == p.lease.Server }), *p.lease)
	}
	for _, o := range p.offered {
		m := anyClient.message(dhcpv4.MessageTypeRelease, p.mac, newXID(), 0)
		m.ClientIPAddr = o.Address.AsSlice()
		m.Flags = 0
		m.UpdateOption(dhcpv4.OptServerIdentifier(o.Server.AsSlice()))
		if err := p.place.Tell(p.mac, o.hardware, o.Address, o.Server, m.ToBytes()); err != nil {
			errs = append(errs, fmt.Errorf("give %s back to %s: %w; it ends by itself", o.Address, o.Server, err))
		}
	}
	p.offered = nil
	return errors.Join(errs...)
}

// travel loads what a kind of client would, one after the other.
func (p *probe) travel(ctx context.Context, f Firmware) (trip, error) {
	offers, err := p.ask(ctx, f)
	if err != nil {
		return trip{}, err
	}
	t := trip{firmware: f, offers: offers}
	_, t.boots = f.choose(offers)
	if t.boots == nil {
		return t, nil
	}
	if t.unreached = p.unreached; t.unreached != "" {
		return t, nil
	}
	boots := *t.boots
	if boots.discovery {
		stage, told := p.bootServer(ctx, f, boots)
		t.stages = append(t.stages, stage)
		if stage.Error != "" {
			return t, ctx.Err()
		}
		boots.File, boots.Next = told.File, told.Next
		t.boots = &boots
	}
	address := boots.url()
	if f.ipxe {
		p.follow(ctx, &t, f, address, 0)
		return t, ctx.Err()
	}
	stage, got := p.load(ctx, "loader", f, address, func(ctx context.Context) (fetched, error) {
		if strings.Contains(boots.File, "://") {
			return p.network.fetch(ctx, f, address, true)
		}
		return p.network.tftp(ctx, netip.AddrPortFrom(boots.Next, 69), boots.File, true) // the name as it is
	})
	stage.check(f, got)
	t.stages = append(t.stages, stage)
	if stage.Error != "" {
		return t, ctx.Err()
	}
	if !isIPXE(address) {
		t.end = endLoader
		return t, ctx.Err()
	}
	next, err := p.travel(ctx, f.loaded())
	if err != nil {
		return t, err
	}
	t.join(next)
	return t, ctx.Err()
}

// join goes on with what the loader does.
func (t *trip) join(next trip) {
	switch {
	case len(next.offers) == 0:
		t.stages = append(t.stages, Stage{Name: "address", As: next.firmware.Name, Size: -1, Error: "nobody answers it when it asks again as iPXE", blame: silent})
	case next.boots == nil:
		t.stages = append(t.stages, Stage{Name: "script", As: next.firmware.Name, Size: -1, Error: "when it asks again as iPXE, it is not told what to load: it loads itself again, or stops", blame: wrong})
	case next.boots.url() == t.boots.url():
		t.stages = append(t.stages, Stage{Name: "script", URL: next.boots.url(), As: next.firmware.Name, Size: -1,
			Error: "when it asks again as iPXE, it is told to load itself, for ever", blame: wrong})
	default:
		t.stages = append(t.stages, next.stages...)
		t.end, t.says, t.coldrack = next.end, next.says, next.coldrack
	}
}

// isIPXE says whether a loader is one by its name.
func isIPXE(address string) bool {
	name := strings.ToLower(address[strings.LastIndexByte(address, '/')+1:])
	return slices.ContainsFunc([]string{"ipxe", "undionly", "snponly"}, func(part string) bool { return strings.Contains(name, part) })
}

// mostScripts is how many scripts may lead to each other.
const mostScripts = 6

// follow loads as iPXE what it is told, and does what scripts say.
func (p *probe) follow(ctx context.Context, t *trip, f Firmware, address string, depth int) {
	name := "script"
	if depth > 0 && !strings.Contains(address, "?") && !strings.HasSuffix(address, ".ipxe") {
		name = "local"
	}
	stage, got := p.load(ctx, name, f, address, func(ctx context.Context) (fetched, error) { return p.network.fetch(ctx, f, address, true) })
	if stage.Format == Script {
		stage.Name = "script"
	}
	stage.check(f, got)
	if stage.Format != Script || stage.Error != "" {
		t.stages = append(t.stages, stage)
		if stage.Error == "" {
			t.end = endImage
		}
		return
	}
	base, _ := url.Parse(cmp.Or(got.final, address))
	did, err := runScript(string(got.head), base, p.settings(f, t.boots))
	stage.Says = did.says
	if t.coldrack = t.coldrack || fromColdrack(did.says); len(did.says) > 0 {
		t.says = did.says
	}
	if err == nil && depth == mostScripts {
		err = errors.New("script follows script without an end")
	}
	if err != nil {
		stage.Error, stage.blame = err.Error(), broken
	}
	t.stages = append(t.stages, stage)
	if err != nil {
		return
	}
	t.end = did.end
	if did.chain != "" {
		t.end = endNone
		p.follow(ctx, t, f, did.chain, depth+1)
		return
	}
	if did.end != endKernel {
		return
	}
	for i, file := range append([]string{did.kernel}, did.initrds...) {
		name := "kernel"
		if i > 0 {
			name = "initrd"
		}
		stage, got := p.load(ctx, name, f, file, func(ctx context.Context) (fetched, error) { return p.network.fetch(ctx, f, file, false) })
		if i == 0 {
			stage.check(f, got)
			if stage.Error == "" && stage.Format == "" {
				stage.Error, stage.blame = "it is no Linux kernel", wrong
			}
		}
		t.stages = append(t.stages, stage)
	}
}

// settings are what iPXE's scripts may ask for. The machine tells nothing of itself but its hardware address.
func (p *probe) settings(f Firmware, o *Offer) map[string]string {
	return map[string]string{"mac": p.mac.String(), "ip": p.network.from.String(), "buildarch": f.build, "platform": f.platform,
		"next-server": o.Next.String(), "dhcp-server": o.Server.String(), "filename": o.File, "manufacturer": "Coldrack", "product": "doctor"}
}

// load loads a file and takes the time.
func (p *probe) load(ctx context.Context, name string, f Firmware, address string, get func(context.Context) (fetched, error)) (Stage, fetched) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	began := time.Now()
	got, err := get(ctx)
	stage := Stage{Name: name, URL: text([]byte(address)), As: f.Name, Size: got.size, Read: got.read, Milliseconds: milliseconds(time.Since(began)), Format: formatOf(got.head)}
	if err != nil {
		stage.Error = text([]byte(err.Error()))
		var why trouble
		if errors.As(err, &why) {
			stage.blame = why.blame
		}
	}
	return stage, got
}

// check says what a machine cannot do with a file that was loaded.
func (s *Stage) check(f Firmware, got fetched) {
	switch {
	case s.Error != "":
	case got.read == 0:
		s.Error, s.blame = "it is empty", missing
	default:
		if why := f.refuses(s.Format); why != "" {
			s.Error, s.blame = "this machine cannot start it: "+why, wrong
		}
	}
}

// bootServer asks on port 4011 what to boot.
func (p *probe) bootServer(ctx context.Context, f Firmware, o Offer) (stage Stage, told Offer) {
	began := time.Now()
	stage = Stage{Name: "boot server", As: f.Name, Size: -1}
	defer func() { stage.Milliseconds = milliseconds(time.Since(began)) }()
	conn, err := p.network.udp(ctx, o.Server)
	if err != nil {
		stage.Error, stage.blame = err.Error(), unread
		return stage, told
	}
	defer conn.Close()
	xid := newXID()
	m := f.message(dhcpv4.MessageTypeRequest, p.mac, xid, 0)
	m.ClientIPAddr = p.network.from.AsSlice()
	packet := make([]byte, 2048)
	for range 4 {
		if _, err := conn.WriteToUDPAddrPort(m.ToBytes(), netip.AddrPortFrom(o.Server, dhcp.BootPort)); err != nil {
			stage.Error, stage.blame = err.Error(), silent
			return stage, told
		}
		length, _, err := p.network.hear(ctx, conn, packet)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			stage.Error, stage.blame = err.Error(), silent
			return stage, told
		}
		if _, answer, ok := offerOf(packet[:length], p.mac, xid, time.Since(began)); ok {
			if answer.File == "" {
				stage.Error, stage.blame = fmt.Sprintf("the boot server %s names no boot file", o.Server), broken
			}
			return stage, answer
		}
	}
	stage.Error, stage.blame = fmt.Sprintf("%s does not answer on port %d", o.Server, dhcp.BootPort), silent
	return stage, told
}

// prefixOf is the network of a lease, one address without a mask.
func prefixOf(o Offer) netip.Prefix {
	bits := o.bits
	if bits == 0 {
		bits = 32
	}
	return netip.PrefixFrom(o.Address, bits)
}
