package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/netboot/netif"
)

// reach knows by which of its addresses this server is reached by a machine: the one that lies in the machine's Subnet. It follows the
// interfaces while they change.
type reach struct {
	// configured is --boot-address, the zero Addr when there is none. It is for Subnets in which this server has no address, and
	// for the one that it lies in.
	configured netip.Addr
	// interfaces are those to serve; none: all.
	interfaces []string
	inside     func(func() error) error
	// route tells which of its addresses this host uses towards another one.
	route func(to netip.Addr) (netip.Addr, error)
	// file keeps which address each Subnet had, so that an interface that has no link during a restart does not change the
	// files of every node.
	file string
	log  *slog.Logger

	mu      sync.Mutex
	present []netif.Interface
	subnets []netip.Prefix
	known   map[netip.Prefix]netip.Addr
	changed chan struct{}
}

// newReach reads what the interfaces are now.
func newReach(cfg Config, inside func(func() error) error, log *slog.Logger) (*reach, error) {
	r := &reach{interfaces: cfg.Interfaces, inside: inside, file: cfg.path("addresses.json"), log: log, known: map[netip.Prefix]netip.Addr{}, changed: make(chan struct{})}
	r.route = func(to netip.Addr) (netip.Addr, error) { return sourceAddress(inside, to) }
	if cfg.BootAddress != "" {
		r.configured = netip.MustParseAddr(cfg.BootAddress) // Config.Validate has seen it
	}
	switch content, err := os.ReadFile(r.file); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("addresses that nodes know this server by: %w", err)
	default:
		if err := json.Unmarshal(content, &r.known); err != nil {
			return nil, fmt.Errorf("addresses that nodes know this server by: %s: %w; delete the file to have them found anew", r.file, err)
		}
	}
	err := inside(func() (err error) { r.present, err = netif.List(); return err })
	return r, err
}

// sourceAddress asks the kernel's routes. Nothing is sent.
func sourceAddress(inside func(func() error) error, to netip.Addr) (own netip.Addr, err error) {
	err = inside(func() error {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
		if err != nil {
			return err
		}
		defer conn.Close()
		own = conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		return nil
	})
	return own, err
}

// run follows the interfaces until ctx ends.
func (r *reach) run(ctx context.Context) error {
	return netif.Follow(ctx, r.inside, func(present []netif.Interface) {
		r.mu.Lock()
		defer r.mu.Unlock()
		before := r.allLocked()
		r.present = present
		if learnt := r.learnLocked(); learnt || !slices.Equal(before, r.allLocked()) {
			r.wakeLocked()
		}
	})
}

// setSubnets tells it the segments that there are.
func (r *reach) setSubnets(subnets []netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.subnets = subnets
	if r.learnLocked() {
		r.wakeLocked()
	}
}

// learnLocked notes this server's address in each Subnet, and says whether one has become another.
func (r *reach) learnLocked() bool {
	next := maps.Clone(r.known)
	for _, subnet := range r.subnets {
		if own := r.inLocked(subnet); own.IsValid() {
			next[subnet] = own
		}
	}
	if maps.Equal(next, r.known) {
		return false
	}
	r.keepLocked(next)
	return true
}

func (r *reach) keepLocked(next map[netip.Prefix]netip.Addr) {
	for subnet, own := range next {
		if before := r.known[subnet]; before.IsValid() && before != own {
			r.log.Warn("this server's address in a subnet has changed: the nodes in it are told the new one", "subnet", subnet, "before", before, "address", own)
		}
	}
	r.known = next
	content, err := json.MarshalIndent(next, "", "  ")
	if err == nil {
		err = durable.WriteFile(r.file, append(content, '\n'), 0o600)
	}
	if err != nil {
		r.log.Error("cannot keep the addresses that nodes know this server by; after a restart they may be told others", "err", err)
	}
}

func (r *reach) wakeLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// All implements controllers.OwnAddresses.
func (r *reach) All() []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.allLocked()
}

func (r *reach) allLocked() []netip.Addr {
	var all []netip.Addr
	for _, i := range r.present {
		for _, a := range i.Addresses {
			if !a.Addr().IsLoopback() {
				all = append(all, a.Addr())
			}
		}
	}
	return all
}

// deviceOf is the interface that sockets for one of this server's addresses are bound to: its own where interfaces were chosen, or none.
// Sockets are bound to its index: another of the same name needs others.
func (r *reach) deviceOf(own netip.Addr) boundTo {
	if len(r.interfaces) == 0 {
		return boundTo{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.present {
		if slices.ContainsFunc(i.Addresses, func(a netip.Prefix) bool { return a.Addr() == own }) {
			return boundTo{i.Name, i.Index}
		}
	}
	return boundTo{}
}

// boundTo is an interface that sockets are bound to; the zero value: to none.
type boundTo struct {
	device string
	index  int
}

// Changed implements controllers.OwnAddresses.
func (r *reach) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// connection returns the address to name to a machine that has come from remote to this server's address local.
func (r *reach) connection(local, remote netip.Addr) netip.Addr {
	if !r.configured.IsValid() || local == r.configured {
		return local
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, subnet := range r.subnets {
		if subnet.Contains(remote.WithZone("")) && subnet.Contains(local) && !subnet.Contains(r.configured) {
			return local // they are on one segment, and the configured address is on another
		}
	}
	return r.configured
}

// node returns the address that files on a node name; subnet is the node's, the zero Prefix when it is in none. It is the same after a
// restart, also while the interface has no link.
func (r *reach) node(address netip.Addr, subnet netip.Prefix) (netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.known[subnet]
	if own := r.inLocked(subnet); own.IsValid() {
		if own != known {
			next := maps.Clone(r.known)
			next[subnet] = own
			r.keepLocked(next)
		}
		return own, nil
	}
	switch {
	case r.configured.IsValid():
		return r.configured, nil
	case known.IsValid():
		return known, nil
	}
	// Behind a router, as clients of a relay are.
	own, err := r.route(address)
	if err != nil || own.IsLoopback() {
		return netip.Addr{}, fmt.Errorf("no address of this server is known by which node %s could reach it (%v); set --boot-address", address, err)
	}
	if subnet.IsValid() {
		next := maps.Clone(r.known)
		next[subnet] = own
		r.keepLocked(next)
	}
	return own, nil
}

// inLocked is this server's address in a subnet, the zero Addr when it has none at present.
func (r *reach) inLocked(subnet netip.Prefix) netip.Addr {
	if !subnet.IsValid() {
		return netip.Addr{}
	}
	if r.configured.IsValid() && subnet.Contains(r.configured) {
		return r.configured
	}
	return ownAddress(subnet, r.known[subnet], r.interfaces, r.present)
}

// ownAddress is the address that a server has in a subnet: the known one as long as it has that, else the first. Interfaces to serve
// come in the order in which they were named, others not at all.
func ownAddress(subnet netip.Prefix, known netip.Addr, interfaces []string, present []netif.Interface) netip.Addr {
	best, found := len(interfaces)+1, netip.Addr{}
	for _, i := range present {
		rank := slices.Index(interfaces, i.Name)
		if rank < 0 && len(interfaces) > 0 || i.Loopback {
			continue
		}
		for _, a := range i.Addresses {
			switch own := a.Addr(); {
			case !subnet.Contains(own) || own.IsLinkLocalUnicast():
			case own == known:
				return known
			case max(rank, 0) < best:
				best, found = max(rank, 0), own
			}
		}
	}
	return found
}
