package dhcp

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"coldrack.dev/internal/netboot/lease"
)

// probing is what ARP probes have told of a subnet's segment.
type probing struct {
	// silent is when nobody answered at a reserved address for the last time.
	silent map[netip.Addr]time.Time
	// taken are reserved addresses at which somebody else answers.
	taken map[netip.Addr]Taken
	// holders by hardware address.
	holders map[string]*holder
}

// Taken is a reserved address that somebody else uses.
type Taken struct {
	Address netip.Addr
	Holder  string // hardware address of who answers there
	Client  string // for whom it is reserved
	until   time.Time
}

// holder is somebody who has answered at addresses that were given to no one, or to others.
type holder struct {
	addresses map[netip.Addr]time.Time
	proxy     bool
	last      time.Time
}

const (
	// proxyHolds is at how many addresses one hardware address must answer within quarantineTime to count as an ARP proxy: a router
	// or a switch that answers for all others. It is reached by the probes for one client.
	proxyHolds = maxProbes
	// proxyTime is how long a proxy counts as one after its last answer.
	proxyTime = time.Hour
	// mostKept bounds each table of probing; whoever fills it by inventing hardware addresses only makes it forget.
	mostKept = 4096
)

func (x *exchange) probing() *probing {
	p := x.probes[x.subnet.CIDR]
	if p == nil {
		p = &probing{silent: map[netip.Addr]time.Time{}, taken: map[netip.Addr]Taken{}, holders: map[string]*holder{}}
		x.probes[x.subnet.CIDR] = p
	}
	return p
}

// free notes that a reserved address is in use by nobody else, and tells whether that is news.
func (p *probing) free(address netip.Addr, now time.Time) bool {
	if len(p.silent) >= mostKept {
		clear(p.silent)
	}
	p.silent[address] = now
	_, was := p.taken[address]
	delete(p.taken, address)
	return was
}

func (p *probing) takenNow(address netip.Addr, now time.Time) (Taken, bool) {
	t, ok := p.taken[address]
	return t, ok && now.Before(t.until)
}

// foreignHolder gives the hardware address of who has an address, empty when only the client itself, by its own or one of its further hardware
// addresses, and ARP proxies answer.
func (x *exchange) foreignHolder(address netip.Addr, holders []net.HardwareAddr, own []string) string {
	foreign := ""
	for _, h := range holders {
		mac := h.String()
		if mac == x.query.MAC || slices.Contains(own, mac) {
			continue
		}
		if !x.answersForOthers(mac, address) && foreign == "" {
			foreign = mac
		}
	}
	return foreign
}

// answersForOthers notes that somebody answers at an address, and says whether he is an ARP proxy. Of one that is recognized only now, what
// he took out of use goes back into it.
func (x *exchange) answersForOthers(mac string, address netip.Addr) bool {
	p := x.probing()
	h := p.holders[mac]
	if h == nil {
		if len(p.holders) >= mostKept {
			clear(p.holders)
		}
		h = &holder{addresses: map[netip.Addr]time.Time{}}
		p.holders[mac] = h
	}
	if h.proxy && x.now.Sub(h.last) >= proxyTime {
		h.proxy = false
	}
	h.last = x.now
	if h.proxy {
		return true
	}
	for a, at := range h.addresses {
		if x.now.Sub(at) >= quarantineTime {
			delete(h.addresses, a)
		}
	}
	h.addresses[address] = x.now
	if len(h.addresses) < proxyHolds {
		return false
	}
	for a := range h.addresses {
		delete(p.taken, a)
		if x.pool == nil {
			continue
		}
		if s := x.pool.Peek(a); s != nil && s.State == lease.Quarantined {
			x.pool.Move(s, lease.Free, "", time.Time{})
			x.store(lease.Record{State: lease.Free, Address: a, Until: x.now}, nil)
		}
	}
	h.proxy, h.addresses = true, map[netip.Addr]time.Time{}
	x.log.Warn("an ARP proxy answers for addresses that it does not have: its answers no longer count, and addresses in use are found only where their holder answers, too; "+
		"switch proxy ARP off for this network, on the router or switch", "holder", mac, "subnet", x.subnet.Name, "interface", x.query.Interface, "addresses", proxyHolds)
	x.observe(ARPProxy, address, "%s answers ARP for at least %d addresses of the network", mac, proxyHolds)
	x.after = append(x.after, x.changed)
	return true
}

// trouble is what probes have found in a subnet: addresses that are taken, in their order, and who answers for all.
func (e *engine) trouble(subnet netip.Prefix) (taken []Taken, proxy string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.probes[subnet]
	if p == nil {
		return nil, ""
	}
	now := e.now()
	for address := range p.taken {
		if t, ok := p.takenNow(address, now); ok {
			taken = append(taken, t)
		}
	}
	slices.SortFunc(taken, func(a, b Taken) int { return a.Address.Compare(b.Address) })
	var proxies []string
	for mac, h := range p.holders {
		if h.proxy && now.Sub(h.last) < proxyTime {
			proxies = append(proxies, mac)
		}
	}
	slices.Sort(proxies)
	if len(proxies) > 1 {
		return taken, fmt.Sprintf("%s and %d more", proxies[0], len(proxies)-1)
	}
	if len(proxies) == 1 {
		proxy = proxies[0]
	}
	return taken, proxy
}
