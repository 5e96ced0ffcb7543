package segment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// Pace of an Answerer.
type Pace struct {
	// Look is how often the interfaces are looked at.
	Look time.Duration
	// Repeat are the times after a take-over at which the segment is told again: a single frame may be lost.
	Repeat []time.Duration
}

// UsualPace suits real segments.
func UsualPace() Pace {
	return Pace{Look: time.Second, Repeat: []time.Duration{100 * time.Millisecond, 500 * time.Millisecond, 2 * time.Second}}
}

// Answerer answers for a set of addresses.
type Answerer struct {
	log  *slog.Logger
	pace Pace
	// home is the address whose interface answers for addresses that are in no interface's network.
	home []netip.Addr

	mu        sync.Mutex
	addresses map[netip.Addr]bool
	links     map[int]*link
	// networks of all interfaces, as they were looked at last.
	networks []netip.Prefix
	failing  string
	poke     chan struct{}
}

// New returns an Answerer for no address yet. home are the node's own addresses.
func New(log *slog.Logger, home []netip.Addr, pace Pace) *Answerer {
	return &Answerer{log: log, pace: pace, home: home, addresses: map[netip.Addr]bool{}, links: map[int]*link{}, poke: make(chan struct{}, 1)}
}

// Networks of the node's interfaces, for whoever decides what it answers for.
func (a *Answerer) Networks() []netip.Prefix {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.networks)
}

// Set makes it answer for exactly these addresses. Of those that are new the segment is told at once.
func (a *Answerer) Set(addresses []netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	wanted := map[netip.Addr]bool{}
	var taken []netip.Addr
	for _, address := range addresses {
		wanted[address] = true
		if !a.addresses[address] {
			taken = append(taken, address)
		}
	}
	for address := range a.addresses {
		if !wanted[address] {
			a.log.Info("address withdrawn", "address", address)
		}
	}
	a.addresses = wanted
	a.sync()
	for _, address := range taken {
		a.log.Info("answering for address", "address", address)
	}
	a.tell(taken)
}

// Tell tells the segment of all addresses again. It is for when another node may have answered for them meanwhile.
func (a *Answerer) Tell() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tell(slices.Collect(maps.Keys(a.addresses)))
}

// tell is called under mu.
func (a *Answerer) tell(addresses []netip.Addr) {
	if len(addresses) == 0 {
		return
	}
	a.announce(addresses)
	for _, after := range a.pace.Repeat {
		time.AfterFunc(after, func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.announce(addresses)
		})
	}
}

// announce is called under mu. What is not ours any more is left out.
func (a *Answerer) announce(addresses []netip.Addr) {
	for _, l := range a.links {
		for _, address := range addresses {
			if !a.addresses[address] || !l.answersFor(address) {
				continue
			}
			if err := l.announce(address); err != nil {
				a.log.Warn("cannot tell the segment of an address; hosts may send to the node that had it", "address", address, "interface", l.name, "err", err)
			}
		}
	}
}

// Run follows the interfaces until ctx ends. Then nothing is answered any more.
func (a *Answerer) Run(ctx context.Context) error {
	ticker := time.NewTicker(a.pace.Look)
	defer ticker.Stop()
	for {
		a.mu.Lock()
		a.sync()
		a.mu.Unlock()
		select {
		case <-ctx.Done():
			a.mu.Lock()
			defer a.mu.Unlock()
			clear(a.addresses)
			for index, l := range a.links {
				l.close()
				delete(a.links, index)
			}
			return nil
		case <-ticker.C:
		case <-a.poke:
		}
	}
}

// netInterface is an interface that is up.
type netInterface struct {
	net.Interface
	networks []netip.Prefix
}

// interfaces of the calling thread's network namespace. It takes two questions to the kernel, however many pods have one.
func interfaces() ([]netInterface, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var up []netInterface
	for _, l := range links {
		i := l.Attrs()
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || len(i.HardwareAddr) != 6 {
			continue
		}
		found := netInterface{Interface: net.Interface{Index: i.Index, Name: i.Name, MTU: i.MTU, HardwareAddr: i.HardwareAddr, Flags: i.Flags}}
		for _, address := range addresses {
			if address.LinkIndex != i.Index || address.IPNet == nil {
				continue
			}
			ip, _ := netip.AddrFromSlice(address.IP)
			ones, _ := address.Mask.Size()
			if ip = ip.Unmap(); ip.IsValid() && !ip.IsLinkLocalUnicast() {
				found.networks = append(found.networks, netip.PrefixFrom(ip, ones))
			}
		}
		up = append(up, found)
	}
	return up, nil
}

// sync listens where addresses are to be answered for. It is called under mu.
func (a *Answerer) sync() {
	all, err := interfaces()
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return // something changes just now; the next look sees it
	}
	if err != nil {
		a.fail(fmt.Errorf("read this node's interfaces: %w", err))
		return
	}
	wanted := map[int]map[netip.Addr]bool{}
	a.networks = nil
	for _, i := range all {
		for _, network := range i.networks {
			if network.Bits() < network.Addr().BitLen() {
				a.networks = append(a.networks, network.Masked())
			}
		}
	}
	var errs []error
	byIndex := map[int]netInterface{}
	for address := range a.addresses {
		i, ok := a.interfaceFor(address, all)
		if !ok {
			errs = append(errs, fmt.Errorf("no interface is up that %s could be announced on", address))
			continue
		}
		byIndex[i.Index] = i
		if wanted[i.Index] == nil {
			wanted[i.Index] = map[netip.Addr]bool{}
		}
		wanted[i.Index][address] = true
	}
	for index, l := range a.links {
		if i, ok := byIndex[index]; !ok || l.broken() || l.name != i.Name || l.hardware.String() != i.HardwareAddr.String() {
			l.close()
			delete(a.links, index)
		}
	}
	for _, index := range slices.Sorted(maps.Keys(wanted)) {
		l, there := a.links[index]
		if !there {
			var err error
			if l, err = open(byIndex[index].Interface, a.log, a.ask); err != nil {
				errs = append(errs, fmt.Errorf("listen on %s: %w", byIndex[index].Name, err))
				continue
			}
			a.links[index] = l
		}
		fresh := l.set(wanted[index])
		if !there {
			a.announce(fresh) // the interface was down, or is another one now
		}
	}
	a.fail(errors.Join(errs...))
}

// fail logs what goes wrong once.
func (a *Answerer) fail(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != a.failing {
		if err != nil {
			a.log.Error("addresses are not announced", "err", err)
		} else {
			a.log.Info("all addresses are announced again")
		}
	}
	a.failing = text
}

// interfaceFor is the one with the longest network that has the address, or else the one with the node's own address.
func (a *Answerer) interfaceFor(address netip.Addr, all []netInterface) (best netInterface, found bool) {
	bits := -1
	for _, i := range all {
		for _, network := range i.networks {
			switch {
			case network.Contains(address) && network.Bits() > bits:
				best, bits, found = i, network.Bits(), true
			case bits < 0 && slices.Contains(a.home, network.Addr()) && (!found || network.Addr().Is4() == address.Is4()):
				best, found = i, true
			}
		}
	}
	return best, found
}

// ask asks for another look at the interfaces, since a link has failed.
func (a *Answerer) ask() {
	select {
	case a.poke <- struct{}{}:
	default:
	}
}
