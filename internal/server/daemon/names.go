package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/base/netns"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/netboot/dns"
	"coldrack.dev/internal/netboot/sntp"
	"coldrack.dev/internal/server/machineapi"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

const (
	// namesFresh is how often is looked whether names have changed, namesStale how often leases are, of which no object tells.
	namesFresh, namesStale = 500 * time.Millisecond, 5 * time.Second
	// dnsAgain is when sockets that could not be opened are tried again.
	dnsAgain = 30 * time.Second
	// serialsFile keeps the serial numbers of the zones, which must never become less.
	serialsFile = "dns-serials.json"
	resolvConf  = "/etc/resolv.conf"
)

// names are those of the inventory, as DNS answers them.
type names struct {
	cfg Config
	// machines, clusters and subnets are what there is now, own the addresses of this server.
	machines func() []fleet.Snapshot
	changes  func() uint64
	clusters func() []clusterNames
	subnets  func() []v1alpha1.Subnet
	own      func() []netip.Addr
	now      func() time.Time
	log      *slog.Logger

	zones atomic.Pointer[dns.Zones]

	mu      sync.Mutex // of who builds them
	built   time.Time
	took    time.Duration // the last time
	seen    uint64
	said    []dns.Collision
	serials map[string]zoneSerial

	plans struct {
		sync.Mutex
		of       []v1alpha1.Subnet
		networks []network
	}
	resolv struct {
		sync.Mutex
		read    time.Time
		servers []netip.AddrPort
	}
}

// clusterNames is what names tell of a cluster.
type clusterNames struct {
	name, host string
	port       int32
	virtual    netip.Addr
	apiServers []netip.Addr
}

type zoneSerial struct {
	Digest string `json:"digest"`
	Serial uint32 `json:"serial"`
}

func (s *server) newNames() (*names, error) {
	n := &names{
		cfg: s.cfg, machines: s.fleet.Snapshot, changes: s.fleet.Changes, clusters: s.clusterNames, own: s.reach.All, now: time.Now, log: s.log.With("part", "dns"),
		subnets: func() []v1alpha1.Subnet { return s.subnets.current() }, serials: map[string]zoneSerial{},
	}
	switch content, err := os.ReadFile(s.cfg.path(serialsFile)); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("serial numbers of DNS zones: %w", err)
	default:
		if err := json.Unmarshal(content, &n.serials); err != nil {
			return nil, fmt.Errorf("serial numbers of DNS zones: %s: %w; delete the file to have them begin anew by the clock", s.cfg.path(serialsFile), err)
		}
	}
	return n, nil
}

func (s *server) clusterNames() []clusterNames {
	all, _ := s.clusters.Names()
	var out []clusterNames
	for _, name := range all {
		view, ok, _ := s.clusters.View(name)
		if !ok || view.Cluster == nil {
			continue
		}
		endpoint := view.Cluster.Spec.Endpoint
		c := clusterNames{name: name, host: endpoint.Host, port: endpoint.Port}
		if endpoint.VirtualIP != nil {
			c.virtual, _ = netip.ParseAddr(endpoint.VirtualIP.Address)
		}
		for _, api := range view.APIServers {
			c.apiServers = append(c.apiServers, api.Addr())
		}
		out = append(out, c)
	}
	return out
}

// Zones are the names now: at most half a second old where an object has changed, and five where a lease has. Whoever asks waits
// neither for a large fleet nor for the disk.
func (n *names) Zones() *dns.Zones {
	if zones := n.zones.Load(); zones != nil {
		return zones
	}
	n.refresh()
	return n.zones.Load()
}

// run keeps the names as they are until ctx ends.
func (n *names) run(ctx context.Context) error {
	tick := time.NewTicker(namesFresh)
	defer tick.Stop()
	for {
		n.refresh()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// refresh builds the names anew if something may have changed.
func (n *names) refresh() {
	n.mu.Lock()
	defer n.mu.Unlock()
	now, changes := n.now(), n.changes()
	stale := namesStale
	if changes != n.seen {
		stale = 0
	}
	// Of a large fleet that changes all the time, names are a second old rather than more than a twentieth of a processor is spent on them.
	if age := now.Sub(n.built); n.zones.Load() != nil && age >= 0 && age < max(stale, 20*n.took) {
		return
	}
	zones := n.build()
	n.took, n.built, n.seen = n.now().Sub(now), now, changes
	n.zones.Store(zones)
}

func (n *names) build() *dns.Zones {
	before := maps.Clone(n.serials)
	zones := dns.Build(n.inventory(), func(zone, digest string) uint32 {
		was, known := n.serials[zone]
		if known && was.Digest == digest {
			return was.Serial
		}
		// The time of the change, in seconds, unless the clock was set back or two changes are closer.
		next := zoneSerial{digest, max(was.Serial+1, uint32(n.now().Unix()))}
		n.serials[zone] = next
		return next.Serial
	})
	if !maps.Equal(before, n.serials) {
		content, err := json.MarshalIndent(n.serials, "", "  ")
		if err == nil {
			err = durable.WriteFile(n.cfg.path(serialsFile), append(content, '\n'), 0o600)
		}
		if err != nil {
			n.log.Error("cannot keep the serial numbers of DNS zones; after a restart with a clock that was set back they may become less", "err", err)
		}
	}
	for _, c := range zones.Collisions {
		if !slices.Contains(n.said, c) {
			n.log.Warn("two want one DNS name; the other one is not answered by it", "name", c.Name, "holder", c.Holder, "loser", c.Loser)
		}
	}
	n.said = zones.Collisions
	return zones
}

// network is a Subnet as names need it.
type network struct {
	cidr     netip.Prefix
	domain   string
	serves   bool
	servers  []netip.Addr
	timeHere bool
}

// networks are those of the Subnets, read once for each change of them.
func (n *names) networks() []network {
	subnets := n.subnets()
	n.plans.Lock()
	defer n.plans.Unlock()
	if len(subnets) == len(n.plans.of) && (len(subnets) == 0 || &subnets[0] == &n.plans.of[0]) {
		return n.plans.networks
	}
	var all []network
	for _, subnet := range subnets {
		plan, errs := subnet.IPPlan()
		if len(errs) > 0 {
			continue // the Subnet's condition says so
		}
		all = append(all, network{plan.CIDR.Masked(), cmp.Or(subnet.Spec.Domain, n.cfg.DNSDomain), subnet.Spec.ServeDNS, plan.DNS, subnet.Spec.ServeNTP})
	}
	n.plans.of, n.plans.networks = subnets, all
	return all
}

func (n *names) inventory() dns.Inventory {
	networks := n.networks()
	of := func(a netip.Addr) (network, bool) {
		i := slices.IndexFunc(networks, func(n network) bool { return n.cidr.Contains(a) })
		if i < 0 {
			return network{domain: n.cfg.DNSDomain}, false
		}
		return networks[i], true
	}
	var in dns.Inventory
	for _, a := range n.own() {
		if _, ok := of(a); ok {
			in.Server = append(in.Server, a)
		}
	}
	for _, each := range networks {
		in.Networks = append(in.Networks, dns.Network{CIDR: each.cidr, Domain: each.domain})
		if name := "_ntp._udp." + each.domain; n.cfg.NTP && each.timeHere && each.domain != "" && !slices.ContainsFunc(in.Services, func(s dns.Service) bool { return s.Name == name }) {
			in.Services = append(in.Services, dns.Service{Name: name, Target: "coldrack." + each.domain, Port: sntp.Port, Source: "this server"})
		}
	}
	machines := byStanding(n.machines())
	var hostnames, controllers []dns.Claim
	for _, m := range machines {
		source := "Machine " + m.Machine.Name
		addresses := addressesOf(m, func(a netip.Addr) bool { _, ok := of(a); return ok })
		host := cmp.Or(m.Machine.Spec.Hostname, m.Machine.Name)
		var domain string
		if len(addresses) > 0 {
			at, _ := of(addresses[0])
			domain = at.domain
		}
		if domain != "" {
			name := dns.Claim{Name: m.Machine.Name + "." + domain, Addresses: addresses, Reverse: 2, Source: source}
			in.Claims = append(in.Claims, name)
			if host != m.Machine.Name {
				name.Name, name.Reverse = host+"."+domain, 3
				hostnames = append(hostnames, name)
			}
		}
		if bmc, ok := bmcAddress(m.Machine); ok {
			at, _ := of(bmc)
			if domain := cmp.Or(at.domain, domain); domain != "" {
				controllers = append(controllers, dns.Claim{Name: host + "-bmc." + domain, Addresses: []netip.Addr{bmc}, Reverse: 1, Source: "BMC of " + source})
			}
		}
	}
	in.Claims = append(in.Claims, hostnames...)
	for _, c := range n.clusters() {
		claims, services := c.names(func(a netip.Addr) string { at, _ := of(a); return at.domain })
		in.Claims, in.Services = append(in.Claims, claims...), append(in.Services, services...)
	}
	in.Claims = append(in.Claims, controllers...)
	return in
}

// names of a cluster: api.CLUSTER and the host of its endpoint, for the virtual address or, without one, those of its API servers.
func (c clusterNames) names(domainOf func(netip.Addr) string) (claims []dns.Claim, services []dns.Service) {
	addresses, reverse := c.apiServers, 0
	if c.virtual.IsValid() {
		addresses, reverse = []netip.Addr{c.virtual}, 1
	}
	if len(addresses) == 0 {
		return nil, nil
	}
	source := "Cluster " + c.name
	if domain := domainOf(addresses[0]); domain != "" {
		api := "api." + c.name + "." + domain
		claims = append(claims, dns.Claim{Name: api, Addresses: addresses, Reverse: reverse, Source: source})
		services = append(services, dns.Service{Name: "_kubernetes._tcp." + c.name + "." + domain, Target: api, Port: uint16(c.port), Source: source})
	}
	if _, err := netip.ParseAddr(c.host); err != nil && c.host != "" {
		claims = append(claims, dns.Claim{Name: strings.ToLower(strings.TrimSuffix(c.host, ".")), Addresses: addresses, Source: source})
	}
	return claims, services
}

func standing(m *v1alpha1.Machine) int {
	switch {
	case m.Status.Installed != nil:
		return 2
	case m.Spec.Approved:
		return 1
	}
	return 0
}

// addressesOf are the planned address of a machine or else the one that it boots with, and those of its node in Subnets.
func addressesOf(m fleet.Snapshot, inSubnet func(netip.Addr) bool) []netip.Addr {
	var all []netip.Addr
	add := func(text string) {
		if a, err := netip.ParseAddr(text); err == nil && inSubnet(a) && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	if n := m.Machine.Spec.Network; n != nil {
		add(n.Address)
	}
	if lease := m.Live.Lease; lease != nil && len(all) == 0 {
		add(lease.Address)
	}
	if node := m.Machine.Status.Node; node != nil {
		for _, text := range node.Addresses {
			if prefix, err := netip.ParsePrefix(text); err == nil && prefix.Addr().Is6() {
				add(prefix.Addr().String())
			}
		}
	}
	return all
}

// bmcAddress is what a person wrote, or else what a machine that somebody has approved reports.
func bmcAddress(m *v1alpha1.Machine) (netip.Addr, bool) {
	host := ""
	switch inventory := m.Status.Inventory; {
	case m.Spec.BMC != nil:
		host = m.Spec.BMC.Address
	case inventory != nil && inventory.BMC != nil && standing(m) > 0:
		host = inventory.BMC.Address
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return a, err == nil && !a.IsUnspecified()
}

// Upstreams says whether a client is answered, and who knows the names that are not ours: the servers of its Subnet, those of the
// setting, or those of this host. This server is never among them.
func (n *names) Upstreams(client netip.Addr) ([]netip.AddrPort, bool) {
	for _, each := range n.networks() {
		if !each.serves || !each.cidr.Contains(client) {
			continue
		}
		var servers []netip.AddrPort
		switch {
		case len(each.servers) > 0:
			for _, a := range each.servers {
				servers = append(servers, netip.AddrPortFrom(a, dns.Port))
			}
		case len(n.cfg.DNSUpstreams) > 0:
			for _, text := range n.cfg.DNSUpstreams {
				if at, err := parseUpstream(text); err == nil { // or it is "none"
					servers = append(servers, at)
				}
			}
		default:
			servers = n.hostServers()
		}
		own := n.own()
		return slices.DeleteFunc(slices.Clone(servers), func(s netip.AddrPort) bool { return s.Port() == dns.Port && slices.Contains(own, s.Addr()) }), true
	}
	return nil, false
}

// noUpstreams is the setting for which nothing is forwarded.
const noUpstreams = "none"

func parseUpstream(text string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(a, dns.Port), nil
	}
	return netip.ParseAddrPort(text)
}

// hostServers are the name servers of this host.
func (n *names) hostServers() []netip.AddrPort {
	n.resolv.Lock()
	defer n.resolv.Unlock()
	if now := n.now(); n.resolv.read.IsZero() || now.Sub(n.resolv.read).Abs() > namesStale {
		n.resolv.read, n.resolv.servers = now, nil
		content, err := os.ReadFile(resolvConf)
		if err != nil {
			return nil // there are none
		}
		for line := range strings.Lines(string(content)) {
			if fields := strings.Fields(line); len(fields) >= 2 && fields[0] == "nameserver" {
				if at, err := parseUpstream(fields[1]); err == nil {
					n.resolv.servers = append(n.resolv.servers, at)
				}
			}
		}
	}
	return n.resolv.servers
}

// dial reaches servers in a Subnet from where machines boot, and others as this host does.
func (n *names) dial(ctx context.Context, protocol string, to netip.AddrPort) (net.Conn, error) {
	namespace := ""
	if slices.ContainsFunc(n.networks(), func(each network) bool { return each.cidr.Contains(to.Addr()) }) {
		namespace = n.cfg.BootNetns
	}
	return netns.Dial(ctx, namespace, protocol, to.String())
}

// listenAt are the addresses to answer at: those in Subnets that are to be served, and the one that DHCP names everywhere.
func (n *names) listenAt(r *reach) map[netip.Addr]boundTo {
	at := map[netip.Addr]boundTo{}
	if !n.cfg.DNS {
		return at
	}
	own := n.own()
	for _, each := range n.networks() {
		if !each.serves {
			continue
		}
		found := false
		for _, a := range own {
			if each.cidr.Contains(a) {
				at[a], found = r.deviceOf(a), true
			}
		}
		if configured := r.configured; configured.IsValid() && slices.Contains(own, configured) {
			at[configured] = r.deviceOf(configured)
		} else if !found {
			if a, err := r.node(each.cidr.Addr().Next(), each.cidr); err == nil && slices.Contains(own, a) {
				at[a] = r.deviceOf(a)
			}
		}
	}
	return at
}

// serveDNS answers questions until ctx ends. Addresses are followed, and so are Subnets.
func (s *server) serveDNS(ctx context.Context, group *errgroup.Group, n *names) {
	group.Go(func() error { return n.run(ctx) })
	forwarder := &dns.Forwarder{Dial: n.dial}
	server := dns.New(dns.Options{Zones: n.Zones, Upstreams: n.Upstreams, Forwarder: forwarder, Log: n.log})
	s.metrics.watchDNS(server.Stats, forwarder.Asking)
	group.Go(func() error {
		served, failed := map[netip.Addr]*dnsAt{}, map[netip.Addr]string{}
		defer func() {
			for _, at := range served {
				at.stop()
			}
		}()
		tick := time.NewTicker(dnsAgain)
		defer tick.Stop()
		for {
			changed, given := s.reach.Changed(), s.subnets.Changed()
			wanted := n.listenAt(s.reach)
			for a, at := range served {
				if on, ok := wanted[a]; !ok || on != at.on || at.ended() {
					n.log.Info("DNS is not answered any more at an address", addressAttr("at", a))
					at.stop()
					delete(served, a)
				}
			}
			for a, on := range wanted {
				if served[a] != nil {
					continue
				}
				at, err := s.openDNS(ctx, server, a, on)
				if err != nil {
					if failed[a] != err.Error() {
						n.log.Error("cannot answer DNS at an address; trying again every half minute", addressAttr("at", a), "err", err)
					}
					failed[a] = err.Error()
					continue
				}
				delete(failed, a)
				n.log.Info("DNS is answered", addressAttr("at", a))
				served[a] = at
			}
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			case <-given:
			case <-tick.C:
			}
		}
	})
}

// dnsAt are the sockets of an address, which are being served.
type dnsAt struct {
	on     boundTo
	cancel context.CancelFunc
	done   chan struct{}
}

// stop ends it, and returns when the sockets are closed.
func (d *dnsAt) stop() {
	d.cancel()
	<-d.done
}

// ended says that it has, without being told to.
func (d *dnsAt) ended() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// openDNS opens both sockets of an address, or none, and serves them.
func (s *server) openDNS(ctx context.Context, server *dns.Server, at netip.Addr, on boundTo) (*dnsAt, error) {
	address := net.JoinHostPort(at.String(), strconv.Itoa(dns.Port))
	conn, err := netns.ListenPacketOn(ctx, s.cfg.BootNetns, on.device, "udp", address)
	if err != nil {
		return nil, explainListen(err, "DNS", "udp", dns.Port, "set --dns=false")
	}
	listener, err := netns.ListenOn(ctx, s.cfg.BootNetns, on.device, "tcp", address)
	if err != nil {
		conn.Close()
		return nil, explainListen(err, "DNS", "tcp", dns.Port, "set --dns=false")
	}
	ctx, cancel := context.WithCancel(ctx)
	served := &dnsAt{on: on, cancel: cancel, done: make(chan struct{})}
	go func() { // stop waits for it
		defer close(served.done)
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return server.ServeUDP(ctx, conn.(*net.UDPConn)) })
		group.Go(func() error { return server.ServeTCP(ctx, listener) })
		if err := group.Wait(); err != nil {
			s.log.Error("DNS has ended at an address; it is tried again", addressAttr("at", at), "err", err)
		}
	}()
	return served, nil
}

// ServeHTTP answers GET with all names (peoplewire.Names).
func (n *names) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "GET only", http.StatusMethodNotAllowed)
		return
	}
	n.refresh()
	zones := n.Zones()
	answer := peoplewire.Names{Zones: []peoplewire.Zone{}, Collisions: []peoplewire.NameCollision{}}
	for _, zone := range zones.List() {
		each := peoplewire.Zone{Name: zone.Name, Serial: zone.Serial, Partial: zone.Partial(), File: zone.File()}
		for _, record := range zone.Records() {
			each.Records = append(each.Records, peoplewire.NameRecord(record))
		}
		answer.Zones = append(answer.Zones, each)
	}
	for _, c := range zones.Collisions {
		answer.Collisions = append(answer.Collisions, peoplewire.NameCollision(c))
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

// servedPlans are machineapi.Plans in which Subnets name this server where they ask for it: before the other servers, so that a node goes
// on with those while this one is away.
type servedPlans struct {
	machineapi.Plans
	cfg Config
	own func(subnet netip.Prefix) (netip.Addr, error)
}

// Subnets implements machineapi.Plans.
func (p servedPlans) Subnets(ctx context.Context) ([]v1alpha1.Subnet, error) {
	subnets, err := p.Plans.Subnets(ctx)
	if err != nil {
		return nil, err
	}
	subnets = slices.Clone(subnets)
	for i := range subnets {
		spec := &subnets[i].Spec
		plan, errs := subnets[i].IPPlan()
		if len(errs) > 0 || !(p.cfg.DNS && spec.ServeDNS || p.cfg.NTP && spec.ServeNTP) {
			continue
		}
		own, err := p.own(plan.CIDR)
		if err != nil {
			return nil, fmt.Errorf("subnet %s has serveDNS or serveNTP: %w", subnets[i].Name, err)
		}
		first := func(others []string) []string {
			return append([]string{own.String()}, slices.DeleteFunc(slices.Clone(others), func(o string) bool { return o == own.String() })...)
		}
		if p.cfg.DNS && spec.ServeDNS {
			spec.DNS, spec.Domain = first(spec.DNS), cmp.Or(spec.Domain, p.cfg.DNSDomain)
		}
		if p.cfg.NTP && spec.ServeNTP {
			spec.NTP = first(spec.NTP)
		}
	}
	return subnets, nil
}
