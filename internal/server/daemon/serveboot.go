package daemon

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/base/netns"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/netboot/httpboot"
	"coldrack.dev/internal/netboot/sntp"
	"coldrack.dev/internal/netboot/tftp"
	"coldrack.dev/internal/server/certs"
	"coldrack.dev/internal/server/etcddiscovery"
	"coldrack.dev/internal/server/machineapi"
)

func (s *server) newBooter(nonces *machineapi.Nonces) *booter {
	if s.menus == nil {
		s.menus = newMenus()
	}
	return &booter{
		menus: s.menus, fleet: s.fleet, nonces: nonces, content: s.content, cfg: s.cfg, reach: s.reach,
		caPin: s.keys.machines.Fingerprint(), discoveryArgs: s.cfg.DiscoveryArgs, log: s.log.With("part", "boot"), metrics: s.metrics, bootGate: s.bootGate,
		quirks: s.quirks,
	}
}

// serveBoot serves everything that machines talk to, as tasks of the group.
func (s *server) serveBoot(ctx context.Context, group *errgroup.Group, nonces *machineapi.Nonces,
	store machineapi.Store, plans machineapi.Plans) (*dhcpSubnets, error) {
	answers := s.newBooter(nonces)
	places, err := descriptorBudget(s.log)
	if err != nil {
		return nil, err
	}
	web := httpboot.New(httpboot.Options{
		Files: s.content, Content: answers, Scripts: answers, Log: s.log.With("part", "http"),
		MaxConns: places.bootHTTP, Pace: int64(s.cfg.BootPaceMbit) * 1_000_000 / 8, Taking: s.bootGate.taking, Ready: s.readyForAll,
		Beside: s.certs.Handler(), BesidePrefix: certs.PathPrefix,
	})
	s.metrics.watchHTTP(web.Stats)

	files := tftp.New(tftp.Options{
		FS: s.content, Log: s.log.With("part", "tftp"), MaxTransfers: places.transfers,
		Dial: func(local netip.Addr, remote netip.AddrPort) (conn *net.UDPConn, err error) {
			err = netns.Do(s.cfg.BootNetns, func() (err error) {
				conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)), net.UDPAddrFromAddrPort(remote))
				return err
			})
			return conn, err
		},
	})
	s.metrics.watchTFTP(files.Stats)

	var tracker *swarm.Tracker
	if s.cfg.SwarmFrom > 0 {
		tracker = swarm.NewTracker(swarm.TrackerOptions{Few: s.cfg.SwarmFrom - 1})
	}
	api := machineapi.New(machineapi.Options{
		Fleet: s.fleet, Store: store, Plans: plans, Content: s.content, Signer: s.keys.machines,
		Swarm: tracker, Clusters: s.clusters, Reboots: &s.reboots, Kits: &kits{store: s.content.store, clusters: s.clusters}, Restores: s.backups, Units: placedUnits{s.units, s}, BootURL: answers.bootURLFor, Nonces: nonces, Log: s.log.With("part", "machineapi"), HeartbeatInterval: s.cfg.HeartbeatInterval,
	})
	certificates := &machineCertificates{authority: s.keys.machines, now: time.Now}
	config := provenBy(machineapi.TLSConfig(certificates.get, s.keys.machines.Pool()))
	machines := api.Server(config)
	machines.Handler = s.withACME(withRegistry(s.onMachinePort(), api))
	group.Go(func() error {
		<-ctx.Done()
		// A long poll that is cut off is asked again; there is nothing to wait for.
		return machines.Close()
	})
	clock := sntp.New(s.log.With("part", "time"))
	s.metrics.watchTime(clock.Stats)
	sets := max(1, len(s.cfg.Interfaces))
	services := &bootServices{clock: clock, web: web, files: files, machines: machines, places: places.machine / sets, discoveryPlaces: places.discovery / sets, log: s.log}
	if s.updates != nil {
		services.updates = s.updates
		s.metrics.watchUpdates(s.updates)
		group.Go(func() error { return s.updates.Run(ctx) })
	}
	if s.discovery != nil {
		services.discovery = etcddiscovery.New(etcddiscovery.Options{Registry: s.discovery, Open: s.cfg.EtcdDiscoveryOpen, Log: s.log.With("part", "etcddiscovery")})
		s.metrics.watchDiscovery(services.discovery.Stats)
		group.Go(func() error {
			<-ctx.Done()
			return services.discovery.Close()
		})
	}
	s.metrics.watchMachineAPI(services.connections)
	group.Go(func() error { return s.serveSockets(ctx, services) })
	return s.serveDHCP(ctx, group, answers)
}

// servedPlans are what machines are installed by.
func (s *server) servedPlans() machineapi.Plans {
	return servedPlans{Plans: &s.late, cfg: s.cfg, own: func(subnet netip.Prefix) (netip.Addr, error) { return s.reach.node(subnet.Addr().Next(), subnet) }}
}

// namesHandler shows the names, where there are any.
func (s *server) namesHandler() http.Handler {
	if s.names != nil {
		return s.names
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "this server has no boot services (--no-boot), and so no names of machines; ask the one that has", http.StatusNotFound)
	})
}

// serveNames answers DNS, after serveBoot.
func (s *server) serveNames(ctx context.Context, group *errgroup.Group) error {
	names, err := s.newNames()
	if err != nil {
		return err
	}
	s.names = names
	s.serveDNS(ctx, group, names)
	return nil
}

// readyForAll says why not every machine is answered; the boot listener's /healthz shows it.
func (s *server) readyForAll() error {
	switch {
	case s.fleet.IsSynced():
		return nil
	case s.fleet.HasCopy():
		return errNoStore
	}
	return errStarting
}

// inside runs a function in the network namespace that machines boot from.
func (s *server) inside(fn func() error) error { return netns.Do(s.cfg.BootNetns, fn) }

// ownAddresses are the addresses of this host's interfaces, in a network namespace.
func ownAddresses(namespace string) (addresses []netip.Addr, err error) {
	err = netns.Do(namespace, func() error {
		all, err := net.InterfaceAddrs()
		if err != nil {
			return err
		}
		for _, a := range all {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && !prefix.Addr().IsLoopback() {
				addresses = append(addresses, prefix.Addr().Unmap())
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("addresses of this host: %w", err)
	}
	return addresses, nil
}
