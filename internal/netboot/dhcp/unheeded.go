package dhcp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Unheeded is a firmware that was told what to boot by ModeProxy, again and again, and never came for it: some looks at one offer only.
type Unheeded struct {
	Client string // hardware address
	Asked  int    // DISCOVERs that were answered
	// Server gave it Took. Both are the zero Addr when it has taken no address either.
	Server, Took netip.Addr
	last         time.Time
}

// String is for a person.
func (u Unheeded) String() string {
	if !u.Took.IsValid() {
		return fmt.Sprintf("%s asked %d times, was told each time what to boot, and took no address from anybody: does the site's DHCP server answer it?", u.Client, u.Asked)
	}
	return fmt.Sprintf("%s asked %d times, was told each time what to boot, took %s from the DHCP server %s, and never came for its boot file", u.Client, u.Asked, u.Took, u.Server)
}

const (
	// unheededAfter is how many DISCOVERs without a sign tell that a firmware does not heed us. One that boots needs one; one whose answers
	// come late, two.
	unheededAfter = 3
	// unheededFor is how long a firmware is remembered that has fallen silent.
	unheededFor = 24 * time.Hour
	// mostUnheeded bounds the table; whoever fills it by inventing hardware addresses only makes it forget.
	mostUnheeded = 4096
	// mostTold bounds how many a message names.
	mostTold = 5
)

// firmwareAsked counts a DISCOVER that was answered. A boot loader that asks was loaded, from us or by the site's own doing.
func (x *exchange) firmwareAsked() {
	if x.passes() {
		return
	}
	if x.query.IPXE {
		x.heeded("asks as iPXE")
		return
	}
	all := x.unheeded[x.subnet.CIDR]
	u := all[x.client]
	if u == nil {
		if all == nil || len(all) >= mostUnheeded {
			all = map[string]*Unheeded{}
			x.unheeded[x.subnet.CIDR] = all
		}
		u = &Unheeded{Client: x.client}
		all[x.client] = u
	}
	if x.now.Sub(u.last) > unheededFor {
		u.Asked = 0
	}
	u.Asked, u.last = u.Asked+1, x.now
	if u.Asked == unheededAfter {
		x.after = append(x.after, x.changed)
	}
	if u.Asked >= unheededAfter {
		x.observe(Ignored, u.Took, "%s", u)
	}
}

// firmwareTook notes which address a firmware has taken, and of whom.
func (x *exchange) firmwareTook(address, server netip.Addr) {
	if u := x.unheeded[x.subnet.CIDR][x.client]; u != nil && !x.query.IPXE {
		u.Took, u.Server = address, server
	}
}

// heeded notes that a client does as it was told.
func (x *exchange) heeded(how string) {
	u := x.unheeded[x.subnet.CIDR][x.client]
	if u == nil {
		return
	}
	delete(x.unheeded[x.subnet.CIDR], x.client)
	if u.Asked >= unheededAfter {
		x.observe(Heeded, u.Took, "%s", how)
		x.after = append(x.after, x.changed)
	}
}

// ignoring lists who does not heed us in a subnet, by hardware address.
func (e *engine) ignoring(subnet netip.Prefix) []Unheeded {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	var all []Unheeded
	for _, u := range e.unheeded[subnet] {
		if u.Asked >= unheededAfter && now.Sub(u.last) <= unheededFor {
			all = append(all, *u)
		}
	}
	slices.SortFunc(all, func(a, b Unheeded) int { return strings.Compare(a.Client, b.Client) })
	return all
}

// Tell puts them into one text.
func Tell(all []Unheeded) string {
	var texts []string
	for n, u := range all {
		if n == mostTold {
			texts = append(texts, fmt.Sprintf("and %d more", len(all)-n))
			break
		}
		texts = append(texts, u.String())
	}
	return strings.Join(texts, "; ")
}

// servers are other DHCP servers of a subnet, by when they were last heard.
type servers map[netip.Addr]time.Time

// serverTime is how long a server counts as there after it was last heard.
const serverTime = time.Hour

// heard notes another DHCP server on the client's segment.
func (x *exchange) heard(server netip.Addr) {
	all := x.servers[x.subnet.CIDR]
	if all == nil || len(all) >= mostKept {
		all = servers{}
		x.servers[x.subnet.CIDR] = all
	}
	if x.now.Sub(all[server]) > serverTime {
		x.after = append(x.after, x.changed)
	}
	all[server] = x.now
}

// others lists the other DHCP servers of a subnet that were heard not long ago.
func (e *engine) others(subnet netip.Prefix) []netip.Addr {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	var all []netip.Addr
	for a, last := range e.servers[subnet] {
		if now.Sub(last) <= serverTime {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}
