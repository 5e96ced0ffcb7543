package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/netboot/boot"
	"coldrack.dev/internal/netboot/dhcp"
	"coldrack.dev/internal/netboot/dhcp6"
	"coldrack.dev/internal/netboot/quirk"
	"coldrack.dev/internal/netboot/radv"
	"coldrack.dev/internal/server/controllers"
)

// dhcpBackend tells the DHCP server what it needs of the product, from memory.
type dhcpBackend struct {
	*booter
	log   *slog.Logger
	ipxes *recentClients
	// replaced are clients whose firmware's iPXE was just given our own.
	replaced *replacedIPXEs
	bootGate *bootGate
}

// recentClients are the clients that were seen not long ago; it forgets the rest.
type recentClients struct {
	now  func() time.Time
	mu   sync.Mutex
	seen map[string]time.Time
}

const (
	recently = 2 * time.Minute
	// manyClients is when it is worth looking for those to forget.
	manyClients = 1024
)

func (r *recentClients) add(mac string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = map[string]time.Time{}
	}
	now := r.now()
	if len(r.seen) >= manyClients {
		maps.DeleteFunc(r.seen, func(_ string, at time.Time) bool { return now.Sub(at) > recently })
	}
	if len(r.seen) < 16*manyClients {
		r.seen[mac] = now
	}
}

func (r *recentClients) has(mac net.HardwareAddr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.seen[mac.String()]
	return ok && r.now().Sub(at) <= recently
}

// Reservation gives a known machine the address of its plan.
func (b dhcpBackend) Reservation(subnet netip.Prefix, client dhcp.Query) (dhcp.Reservation, bool) {
	known, ok := b.fleet.ByMAC(client.MAC)
	if !ok || !subnet.Contains(known.Address) {
		return dhcp.Reservation{}, false
	}
	return dhcp.Reservation{Address: known.Address, Hostname: known.Hostname, Hardware: known.MACs}, true
}

// Options are a known machine's own.
func (b dhcpBackend) Options(client dhcp.Query) []dhcp.Option {
	known, ok := b.fleet.ByMAC(client.MAC)
	if !ok {
		return nil
	}
	return dhcpOptions(known.DHCPOptions)
}

// dhcpOptions encodes options; what an API let through that does not know our rules is left out.
func dhcpOptions(options []v1alpha1.DHCPOption) []dhcp.Option {
	var encoded []dhcp.Option
	for _, o := range options {
		if value, err := validate.DHCPOption(int(o.Code), o.Value, o.Hex); err == nil {
			encoded = append(encoded, dhcp.Option{Code: uint8(o.Code), Value: value})
		}
	}
	return encoded
}

// Reserved keeps planned addresses out of the pools.
func (b dhcpBackend) Reserved(address netip.Addr) bool {
	return len(b.fleet.AddressOwners(address.String())) > 0
}

// BootFile is the first stage for a firmware.
func (b dhcpBackend) BootFile(_ netip.Prefix, client dhcp.Query) (dhcp.BootFile, bool) {
	if b.quirks.For(quirkClient(client)).NoBootFile {
		return dhcp.BootFile{}, false
	}
	stage := b.firstStage(client)
	switch {
	case stage.File == "":
		if client.PXE || client.HTTP {
			b.log.Warn("no boot file for a machine", "mac", client.MAC, "reason", stage.Reason)
		}
		return dhcp.BootFile{}, false
	case stage.URL:
		return dhcp.BootFile{File: b.bootURL(client.Server) + "/" + stage.File}, true
	}
	return dhcp.BootFile{NextServer: client.Server, File: stage.File}, true
}

func (b dhcpBackend) firstStage(client dhcp.Query) boot.FirstStage {
	remedies := b.quirks.For(quirkClient(client))
	request := boot.FirstStageRequest{Arch: client.Arch, HTTP: client.HTTP, IPXE: client.IPXE, OwnDrivers: remedies.OwnDrivers}
	if remedies.Architecture != nil {
		request.Arch = uint16(*remedies.Architecture)
	}
	if client.IPXE && remedies.OwnIPXE {
		request.Replace, request.Given = remedies.Because, b.replaced.comesBack(client)
	}
	return boot.ChooseFirstStage(request)
}

// quirkClient is a client in the words of the table of quirks.
func quirkClient(client dhcp.Query) quirk.Client {
	c := quirk.Client{MAC: client.MAC, VendorClass: client.VendorClass, UserClass: client.UserClass, Architecture: int(client.Arch), IPXE: client.IPXE}
	if client.Told.Features {
		c.Features = map[quirk.Feature]bool{quirk.HTTP: client.Told.HTTP, quirk.BzImage: client.Told.BzImage, quirk.EFI: client.Told.EFI}
	}
	return c
}

// shape is how DHCP must answer a client with quirks.
func (b *booter) shape(client dhcp.Query) dhcp.Shape {
	remedies := b.quirks.For(quirkClient(client))
	return dhcp.Shape{Small: remedies.SmallReply, Broadcast: remedies.Broadcast}
}

// Observe notes the addresses that known machines boot with, and says aloud what a person must know.
func (b dhcpBackend) Observe(seen dhcp.Observation) {
	if wire.IsProbe(seen.Client.MAC) && ofOneClient(seen.Event) {
		return
	}
	b.bootGate.observe(seen)
	if seen.Client.IPXE {
		b.ipxes.add(seen.Client.MAC)
	}
	switch seen.Event {
	case dhcp.Acknowledged, dhcp.Addressed:
		if stage := b.firstStage(seen.Client); stage.Replaces {
			b.log.Info("the firmware's iPXE is replaced by our own", "mac", seen.Client.MAC, "version", seen.Client.Told.Version, "file", stage.File, "reason", stage.Reason)
			b.replaced.add(seen.Client)
		}
		b.fleet.Leased(seen.Client.MAC, seen.Address.String(), seen.Subnet.String())
	case dhcp.Ignored:
		b.log.Warn("a firmware does not do as proxy DHCP tells it; put what it boots into the site's DHCP server (coldrack doctor --foreign-dhcp)",
			"mac", seen.Client.MAC, "interface", seen.Client.Interface, "detail", seen.Detail)
		b.fleet.ProxyIgnored(seen.Client.MAC, seen.Detail)
	case dhcp.Heeded:
		b.fleet.ProxyIgnored(seen.Client.MAC, "")
	case dhcp.ForeignServer:
		b.metrics.foreign.note(seen.Address, seen.Client.Interface, time.Now())
		b.log.Error("another DHCP server answers on this segment; machines may use its offer instead of ours: switch it off or exclude our machines there",
			"interface", seen.Client.Interface, addressAttr("server", seen.Address), "detail", seen.Detail)
	case dhcp.Conflict, dhcp.ARPProxy, dhcp.DuplicateMAC, dhcp.Declined, dhcp.PoolExhausted, dhcp.NoSubnet:
		b.log.Warn("DHCP: "+string(seen.Event), "mac", seen.Client.MAC, "interface", seen.Client.Interface,
			addressAttr("address", seen.Address), "detail", seen.Detail)
	}
}

// ofOneClient says whether an event tells of a client and its boot, and not of the segment.
func ofOneClient(event dhcp.Event) bool {
	switch event {
	case dhcp.ForeignServer, dhcp.Conflict, dhcp.ARPProxy, dhcp.PoolExhausted, dhcp.NoSubnet:
		return false
	}
	return true
}

// addressAttr is a log attribute of an address. Without an address it is the empty Attr, which handlers leave out.
func addressAttr(key string, a netip.Addr) slog.Attr {
	if !a.IsValid() {
		return slog.Attr{}
	}
	return slog.String(key, a.String())
}

// admitDHCP says whether a DISCOVER is answered now. Before the machines have been read, only machines are that have an address in the
// copy: any other may have got one since that was written, and would be given a second one.
func (s *server) admitDHCP(client dhcp.Query) bool {
	if !s.fleet.IsSynced() && !client.Proxied {
		if known, _ := s.fleet.ByMAC(client.MAC); !known.Address.IsValid() {
			return false
		}
	}
	return s.bootGate.admit(client)
}

// dhcpSubnets passes valid IP plans on to the DHCP servers; it implements controllers.SubnetSink.
type dhcpSubnets struct {
	cfg    Config
	server *dhcp.Server
	six    *dhcp6.Server
	reach  *reach
	base   dhcp.Config
	base6  dhcp6.Config
	log    *slog.Logger

	mu      sync.Mutex
	given   []v1alpha1.Subnet
	reports map[string]controllers.SubnetReport
	change  chan struct{}
}

// current are the plans that it was given last.
func (d *dhcpSubnets) current() []v1alpha1.Subnet {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.given
}

func newDHCPSubnets(cfg Config, server *dhcp.Server, six *dhcp6.Server, base dhcp.Config, base6 dhcp6.Config, reach *reach, log *slog.Logger) *dhcpSubnets {
	return &dhcpSubnets{cfg: cfg, server: server, six: six, base: base, base6: base6, reach: reach, log: log, change: make(chan struct{})}
}

// SetSubnets implements controllers.SubnetSink.
func (d *dhcpSubnets) SetSubnets(subnets []v1alpha1.Subnet) {
	config, config6, reports := d.base, d.base6, map[string]controllers.SubnetReport{}
	var segments []netip.Prefix
	for _, subnet := range subnets {
		report := controllers.SubnetReport{Generation: subnet.Generation}
		plan, err := d.cfg.dhcpSubnet(subnet)
		if err == nil {
			segments = append(segments, plan.CIDR)
		}
		switch {
		case err == nil && plan.CIDR.Addr().Is6():
			var plan6 dhcp6.Subnet
			if plan6, err = dhcp6Subnet(subnet, plan); err == nil {
				candidate := config6
				candidate.Subnets = append(slices.Clone(config6.Subnets), plan6)
				if err = candidate.Validate(); err == nil {
					config6, report.Served = candidate, plan6.Mode != dhcp6.ModeOff
				}
			}
		case err == nil:
			// Together with those that are good already, since two of them may contradict each other; a bad
			// one must not keep the others from their machines.
			candidate := config
			candidate.Subnets = append(slices.Clone(config.Subnets), plan)
			if err = candidate.Validate(); err == nil {
				config, report.Served = candidate, plan.Mode != dhcp.ModeOff
			}
		}
		if err != nil {
			report.Refused = fmt.Sprintf("DHCP does not serve it, machines in it get no answer: %v", err)
			d.log.Error("DHCP cannot serve a subnet; machines in it get no answer", "subnet", subnet.Name, "err", err)
		}
		reports[subnet.Name] = report
	}
	d.reach.setSubnets(segments)
	if err := errors.Join(d.server.SetConfig(config), d.six.SetConfig(config6)); err != nil {
		d.log.Error("DHCP keeps its previous subnets", "err", err)
		for name, report := range reports {
			report.Served, report.Refused = false, fmt.Sprintf("DHCP keeps its previous subnets: %v", err)
			reports[name] = report
		}
	}
	d.mu.Lock()
	d.given, d.reports = subnets, reports
	d.mu.Unlock()
	d.wake()
}

// wake tells that an answer of Subnet may have become another.
func (d *dhcpSubnets) wake() {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.change)
	d.change = make(chan struct{})
}

// Subnet implements controllers.SubnetSink.
func (d *dhcpSubnets) Subnet(name string) (controllers.SubnetReport, bool) {
	d.mu.Lock()
	report, known := d.reports[name]
	d.mu.Unlock()
	if !report.Served {
		return report, known
	}
	for _, service := range d.server.Services() {
		if service.Name == name {
			report = reportService(report, service)
		}
	}
	for _, service := range d.six.Services() {
		if service.Name == name {
			report = reportService(report, dhcp.SubnetService{Problem: service.Problem})
		}
	}
	return report, known
}

// reportService adds to a report how the subnet is reached, and what was found on its segment.
func reportService(report controllers.SubnetReport, now dhcp.SubnetService) controllers.SubnetReport {
	if now.Problem != "" {
		report.Served = false
		report.Refused = now.Problem + ". Give one of them an address in it, or name the segment's DHCP relay in spec.relays"
	}
	var taken []string
	for _, t := range now.Taken {
		taken = append(taken, fmt.Sprintf("%s, which is reserved for the machine with MAC %s, is in use by %s", t.Address, t.Client, t.Holder))
	}
	report.Conflicts = strings.Join(taken, "; ")
	if len(now.Unheeded) > 0 {
		report.ProxyIgnored = dhcp.Tell(now.Unheeded) + ". " + v1alpha1.ProxyIgnoredRemedy
	}
	if now.Mode == dhcp.ModeServer && len(now.Servers) > 0 {
		var names []string
		for _, s := range now.Servers {
			names = append(names, s.String())
		}
		report.OtherServers = "answered as well within the last hour: " + strings.Join(names, ", ") +
			". Two servers race for every machine: switch the other off here, or set spec.dhcp to proxy"
	}
	if now.Proxy != "" {
		report.ARPProxy = now.Proxy + " answers ARP for addresses of others, so that addresses in use cannot be told; switch proxy ARP off for this network"
	}
	return report
}

// Changed implements controllers.SubnetSink.
func (d *dhcpSubnets) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.change
}

// dhcpSubnet turns an IP plan into what the DHCP server works by.
func (c Config) dhcpSubnet(subnet v1alpha1.Subnet) (dhcp.Subnet, error) {
	plan, errs := subnet.IPPlan()
	if len(errs) > 0 {
		return dhcp.Subnet{}, errs.ToAggregate()
	}
	// Installed nodes are told of names and IPv6 addresses, too; DHCPv4 has room for IPv4 addresses only.
	ipv4 := func(addresses []netip.Addr) []netip.Addr {
		return slices.DeleteFunc(addresses, func(a netip.Addr) bool { return !a.Is4() })
	}
	made := dhcp.Subnet{
		Name: subnet.Name, Mode: dhcp.Mode(subnet.Spec.DHCP), Domain: subnet.Spec.Domain,
		CIDR: plan.CIDR, Router: plan.Gateway, Pool: dhcp.Range{From: plan.Discovery.First, To: plan.Discovery.Last},
		DNS: ipv4(plan.DNS), NTP: ipv4(plan.NTP), Relays: plan.Relays,
		OwnDNS: c.DNS && subnet.Spec.ServeDNS, OwnNTP: c.NTP && subnet.Spec.ServeNTP,
		Options: dhcpOptions(subnet.Spec.DHCPOptions),
	}
	if made.OwnDNS && made.Domain == "" {
		made.Domain = c.DNSDomain // in which the machines have names
	}
	if subnet.Spec.LeaseTime != nil {
		made.LeaseTime = subnet.Spec.LeaseTime.Duration
	}
	return made, nil
}

func (s *server) serveDHCP(ctx context.Context, group *errgroup.Group, answers *booter) (*dhcpSubnets, error) {
	log := s.log.With("part", "dhcp")
	base := dhcp.Config{Interfaces: s.cfg.Interfaces}
	base6 := dhcp6.Config{Interfaces: s.cfg.Interfaces}
	if s.cfg.BootAddress != "" {
		switch a := netip.MustParseAddr(s.cfg.BootAddress); {
		case a.Is4():
			base.ServerIP = a
		default:
			base6.ServerIP = a
		}
	}
	ipxes := &recentClients{now: time.Now}
	backend := dhcpBackend{booter: answers, log: log, ipxes: ipxes, replaced: &replacedIPXEs{now: time.Now}, bootGate: s.bootGate}
	var sink *dhcpSubnets
	var six *dhcp6.Server
	changed := func() { sink.wake() }
	// Without advertisements machines boot too, only later. Where DHCPv6 is served they say so to everybody, elsewhere they spare iPXE a wait.
	advertise := func(ctx context.Context, device string, wanted func(net.HardwareAddr) bool, managed func() []netip.Prefix) {
		if err := radv.Serve(ctx, radv.Options{Interface: device, Inside: s.inside, Wanted: wanted, Managed: managed, Log: log}); err != nil {
			log.Warn("IPv6 router advertisements are off; iPXE waits about 20 seconds at each boot", "interface", device, "err", err)
		}
	}
	six, err := s.newDHCP6(backend, base6, changed, func(ctx context.Context, device string) {
		advertise(ctx, device, func(net.HardwareAddr) bool { return false }, func() []netip.Prefix { return managed(six, device) })
	})
	if err != nil {
		return nil, err
	}
	server, err := dhcp.New(dhcp.Options{
		Changed: changed, Backend: backend, Admit: s.admitDHCP, Passing: func(c dhcp.Query) bool { return wire.IsProbe(c.MAC) }, Shape: answers.shape, Dir: s.cfg.path("leases"), Log: log, Inside: s.inside,
		Beside: func(ctx context.Context, device string) {
			advertise(ctx, device, func(mac net.HardwareAddr) bool { return ipxes.has(mac) && len(managed(six, device)) == 0 }, nil)
		},
	}, base)
	if err != nil {
		return nil, err
	}
	s.metrics.watchDHCP(server.Stats)
	sink = newDHCPSubnets(s.cfg, server, six, base, base6, s.reach, log)
	group.Go(func() error { return server.Serve(ctx) })
	group.Go(func() error { return six.Serve(ctx) })
	return sink, nil
}
