// Package routes keeps this host's routes to other nodes' pods and to the cluster's service networks.
//
// They carry a protocol number of their own, by which they are told from all other routes: every route with that
// number is Coldrack's, to be replaced and removed, and no other is ever removed.
package routes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/contract/wire"
)

// Protocol is the number of our routes (see /etc/iproute2/rt_protos; `ip route show proto 67`). None of the routing
// daemons has it.
const Protocol netlink.RouteProtocol = 67

const (
	// serviceMetric is worse than the default of IPv6 (1024) and of every routing daemon: a route to the same network that
	// somebody else sets is neither replaced nor hidden by ours. There is one of ours to each network, so it decides nothing else.
	serviceMetric = 2048
	// settle is how long changes of the network are collected before routes are compared again.
	settle = 200 * time.Millisecond
	// poll finds what no message told of: the kernel drops messages when too many come at once.
	poll = 30 * time.Second
)

// Keeper keeps the routes of one network namespace.
type Keeper struct {
	log    *slog.Logger
	handle *netlink.Handle
	events chan struct{} // of capacity one
	stop   chan struct{}
	wg     sync.WaitGroup

	mu sync.Mutex
	// wanted is nil until Set: until then nothing is touched.
	wanted []netlink.Route
	// services are wanted, too. Their interface is looked up whenever routes are compared: it may come later, and change.
	services []service
	// failing is what went wrong last, so that it is logged once.
	failing string
}

// New returns a keeper for the network namespace of the calling thread.
func New(log *slog.Logger) (*Keeper, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	k := &Keeper{log: log, handle: handle, events: make(chan struct{}, 1), stop: make(chan struct{})}
	if err := k.subscribe(); err != nil {
		k.Close()
		return nil, fmt.Errorf("watch the kernel's routes: %w", err)
	}
	return k, nil
}

// Close leaves the routes as they are.
func (k *Keeper) Close() {
	close(k.stop)
	k.handle.Close()
	k.wg.Wait()
}

// subscribe watches what may take a route away, or makes one possible that was not: routes, addresses, links.
func (k *Keeper) subscribe() error {
	trouble := func(err error) {
		select {
		case <-k.stop:
		default:
			k.log.Warn("lost kernel route notifications; checking routes every 30 s", "err", err)
		}
	}
	routes, addresses, links := make(chan netlink.RouteUpdate), make(chan netlink.AddrUpdate), make(chan netlink.LinkUpdate)
	if err := netlink.RouteSubscribeWithOptions(routes, k.stop, netlink.RouteSubscribeOptions{ErrorCallback: trouble}); err != nil {
		return err
	}
	follow(k, routes, func(u netlink.RouteUpdate) bool { return u.Protocol == Protocol || u.Type == unix.RTM_DELROUTE })
	if err := netlink.AddrSubscribeWithOptions(addresses, k.stop, netlink.AddrSubscribeOptions{ErrorCallback: trouble}); err != nil {
		return err
	}
	follow(k, addresses, func(netlink.AddrUpdate) bool { return true })
	if err := netlink.LinkSubscribeWithOptions(links, k.stop, netlink.LinkSubscribeOptions{ErrorCallback: trouble}); err != nil {
		return err
	}
	follow(k, links, func(netlink.LinkUpdate) bool { return true })
	return nil
}

// follow empties a subscription until it is closed.
func follow[T any](k *Keeper, updates <-chan T, matters func(T) bool) {
	k.wg.Go(func() {
		for u := range updates {
			if matters(u) {
				select {
				case k.events <- struct{}{}:
				default:
				}
			}
		}
	})
}

// service is a service network and the address of this node that packets to it get as their source.
type service struct {
	to     netip.Prefix
	source netip.Addr
}

// Set makes exactly these the routes of our protocol number, and Run keeps them. A route that cannot be set does not
// keep the others from being set; the error names all that could not.
func (k *Keeper) Set(routes []wire.NodeRoute, services []wire.ServiceRoute) error {
	wanted := make([]netlink.Route, 0, len(routes))
	for _, r := range routes {
		to, err := netip.ParsePrefix(r.To)
		if err != nil {
			return fmt.Errorf("route to %q: %w", r.To, err)
		}
		via, err := netip.ParseAddr(r.Via)
		if err != nil {
			return fmt.Errorf("route to %s via %q: %w", to, r.Via, err)
		}
		if to.Addr().Is4() != via.Is4() {
			return fmt.Errorf("route to %s via %s: both must be of one IP family", to, via)
		}
		wanted = append(wanted, netlink.Route{
			Dst: prefix(to), Gw: net.IP(via.AsSlice()), Protocol: Protocol, Table: unix.RT_TABLE_MAIN,
		})
	}
	serviceNetworks := make([]service, 0, len(services))
	for _, r := range services {
		to, err := netip.ParsePrefix(r.To)
		if err != nil {
			return fmt.Errorf("route to service network %q: %w", r.To, err)
		}
		source, err := netip.ParseAddr(r.Source)
		if err != nil {
			return fmt.Errorf("route to service network %s from %q: %w", to, r.Source, err)
		}
		if to.Addr().Is4() != source.Is4() {
			return fmt.Errorf("route to service network %s from %s: both must be of one IP family", to, source)
		}
		serviceNetworks = append(serviceNetworks, service{to.Masked(), source})
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wanted, k.services = wanted, serviceNetworks
	err := k.sync()
	k.failing = text(err)
	return err
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func prefix(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Run keeps the routes until ctx ends. They stay when it does: pods go on without the agent.
func (k *Keeper) Run(ctx context.Context) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-k.events:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(settle):
			}
		}
		k.mu.Lock()
		if k.wanted != nil {
			err := k.sync()
			if err != nil && text(err) != k.failing {
				k.log.Warn("routes are missing", "err", err)
			} else if err == nil && k.failing != "" {
				k.log.Info("all routes are there again")
			}
			k.failing = text(err)
		}
		k.mu.Unlock()
	}
}

// sync compares with the kernel and makes up the difference.
func (k *Keeper) sync() error {
	var present []netlink.Route
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := k.handle.RouteListFiltered(family, &netlink.Route{Protocol: Protocol, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("read the kernel's routes: %w", err)
		}
		present = append(present, list...)
	}
	services, errs := k.serviceRoutes()
	wanted := slices.Concat(k.wanted, services)
	// What leads the wrong way goes first: for IPv6 the kernel would add a second way beside it.
	for _, r := range present {
		if slices.ContainsFunc(wanted, func(w netlink.Route) bool { return alike(w, r) }) {
			continue
		}
		if err := k.handle.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove the route to %s: %w", describe(r), err))
			continue
		}
		k.log.Info("route removed", "to", describe(r))
	}
	for _, w := range wanted {
		if slices.ContainsFunc(present, func(r netlink.Route) bool { return alike(w, r) }) {
			continue
		}
		if err := k.handle.RouteReplace(&w); err != nil {
			errs = append(errs, explain(w, err))
			continue
		}
		k.log.Info("route set", "to", describe(w))
	}
	return errors.Join(errs...)
}

// serviceRoutes are the routes to service networks that can be set now, and why others cannot.
func (k *Keeper) serviceRoutes() (routes []netlink.Route, errs []error) {
	if len(k.services) == 0 {
		return nil, nil
	}
	addresses, err := k.handle.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return nil, []error{fmt.Errorf("read this node's addresses: %w", err)}
	}
	for _, s := range k.services {
		i := slices.IndexFunc(addresses, func(a netlink.Addr) bool { return a.IP.Equal(net.IP(s.source.AsSlice())) })
		if i < 0 {
			errs = append(errs, fmt.Errorf("set the route to service network %s: no interface of this node has its address %s; host-network pods and API servers here reach no service until one has", s.to, s.source))
			continue
		}
		routes = append(routes, netlink.Route{
			Dst: prefix(s.to), LinkIndex: addresses[i].LinkIndex, Src: net.IP(s.source.AsSlice()), Scope: netlink.SCOPE_LINK,
			Priority: serviceMetric, Protocol: Protocol, Table: unix.RT_TABLE_MAIN,
		})
	}
	return routes, errs
}

// alike compares what we set of a route; the rest is the kernel's choice: the interface of a route by a gateway, and its
// metric.
func alike(a, b netlink.Route) bool {
	if b.Dst == nil || a.Dst.String() != b.Dst.String() || len(b.MultiPath) > 0 || !a.Gw.Equal(b.Gw) {
		return false
	}
	return a.Gw != nil || a.LinkIndex == b.LinkIndex && a.Src.Equal(b.Src) && a.Priority == b.Priority
}

func describe(r netlink.Route) string {
	if r.Gw == nil {
		return fmt.Sprintf("%s from %s by interface %d", r.Dst, r.Src, r.LinkIndex)
	}
	return fmt.Sprintf("%s via %s", r.Dst, r.Gw)
}

func explain(r netlink.Route, err error) error {
	switch {
	case r.Gw != nil && (errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EINVAL)):
		return fmt.Errorf("set the route to %s: %w: this node has no interface in the network of %s; with network plugin \"routed\" all nodes must be in one layer-2 network, otherwise use \"flannel\"", describe(r), err, r.Gw)
	case r.Gw == nil && errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("set the route to service network %s: %w: the interface is down", describe(r), err)
	}
	return fmt.Errorf("set the route to %s: %w", describe(r), err)
}
