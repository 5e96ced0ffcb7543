package capture

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gopacket/gopacket/layers"

	"coldrack.dev/internal/base/termtext"
)

// explainer follows the clients of a capture.
type explainer struct {
	tell   func(Event)
	report Report
	first  time.Time
	now    float64 // seconds since the first packet

	clients map[string]*client
	order   []*client
	names   map[netip.Addr]string // hardware addresses of clients by their addresses
	holders map[netip.Addr]string // who was seen with an address by ARP
	files   map[netip.AddrPort]*transfer
	conns   map[connKey]*conn
	alike   map[string]int
}

func newExplainer(tell func(Event)) *explainer {
	return &explainer{tell: tell, clients: map[string]*client{}, names: map[netip.Addr]string{}, holders: map[netip.Addr]string{},
		files: map[netip.AddrPort]*transfer{}, conns: map[connKey]*conn{}, alike: map[string]int{}}
}

// client is what was seen of a machine.
type client struct {
	mac       string
	addresses []string

	firmware           string // the last that asked: "UEFI x64, PXE"
	ipxe, pxe, http    bool   // kinds that asked at any time; pxe and http without iPXE
	lastIPXE           bool   // the last DISCOVER was iPXE's
	discovers          int
	requests           int
	offers             []*offer
	taken              *offer // that it has asked for last
	acked, naked       int
	nak                string
	asked4011, told    int // questions on port 4011, and answers
	files              []*transfer
	conns              []*conn
	notes              []string
	declined, informed int
}

// offer is what a server offers a client.
type offer struct {
	server  netip.Addr
	address netip.Addr // none: a proxy
	file    string
	class   string
	direct  bool // option 43 says to load the file at once
	times   int
	large   int // bytes of the largest, when above what every client takes
}

func (x *explainer) packet(data []byte, at time.Time, link layers.LinkType) {
	x.report.Packets++
	if x.first.IsZero() {
		x.first = at
	}
	x.now = at.Sub(x.first).Seconds()
	f, ok := parse(data, link)
	switch {
	case !ok:
	case f.arp != nil:
		x.arp(f.arp)
		return
	case f.udp != nil:
		if x.datagram(f) {
			return
		}
	case f.tcp != nil:
		if x.segment(f) {
			return
		}
	}
	x.report.Unread++
}

// datagram is false for those of other protocols.
func (x *explainer) datagram(f frame) bool {
	u := f.udp
	const server, client, boot = 67, 68, 4011
	isDHCP := func(port uint16) bool { return port == server || port == client || port == boot }
	if isDHCP(u.from.Port()) || isDHCP(u.to.Port()) {
		return x.dhcp(f)
	}
	return x.tftp(f)
}

// event tells of the packet at hand, unless the same was told of this client often enough.
func (x *explainer) event(c *client, protocol, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	mac := ""
	if c != nil {
		mac = c.mac
	}
	key := mac + protocol + text
	if len(x.alike) >= mostTexts {
		clear(x.alike)
	}
	if x.alike[key]++; x.alike[key] > mostAlike {
		x.report.Repeated++
		return
	}
	x.tell(Event{Packet: x.report.Packets, Seconds: x.now, Client: mac, Protocol: protocol, Text: text})
}

// client of a hardware address; nil when too many are known.
func (x *explainer) client(mac string) *client {
	c := x.clients[mac]
	if c == nil && len(x.clients) < mostClients {
		c = &client{mac: mac}
		x.clients[mac] = c
		x.order = append(x.order, c)
	}
	return c
}

// named notes that a client has an address.
func (x *explainer) named(c *client, a netip.Addr) {
	if c == nil || !a.IsValid() || a.IsUnspecified() {
		return
	}
	if len(x.names) >= mostNames {
		clear(x.names)
	}
	x.names[a] = c.mac
	if text := a.String(); !slices.Contains(c.addresses, text) && len(c.addresses) < mostPerThing {
		c.addresses = append(c.addresses, text)
	}
}

// at is the client with an address: by what DHCP said, else by the frame's sender.
func (x *explainer) at(a netip.Addr, sender net.HardwareAddr) *client {
	if mac, ok := x.names[a]; ok {
		return x.clients[mac]
	}
	if sender == nil {
		return nil
	}
	c := x.client(sender.String())
	x.named(c, a)
	return c
}

func (c *client) note(format string, args ...any) {
	if c == nil {
		return
	}
	text := fmt.Sprintf(format, args...)
	if !slices.Contains(c.notes, text) && len(c.notes) < mostPerThing {
		c.notes = append(c.notes, text)
	}
}

func (x *explainer) arp(a *arp) {
	who := a.senderMAC.String()
	// Only clients that boot are told of; the others are the site's own matter.
	c := x.clients[who]
	if before, ok := x.holders[a.sender]; ok && !a.probe && before != who {
		x.event(c, "ARP", "two machines say that they are %s: %s and %s", a.sender, before, who)
		for _, mac := range []string{before, who} {
			x.clients[mac].note("%s is claimed by %s and by %s: two machines have one address", a.sender, before, who)
		}
	}
	if !a.probe {
		if len(x.holders) >= mostNames {
			clear(x.holders)
		}
		x.holders[a.sender] = who
	}
	switch {
	case a.reply:
		x.event(c, "ARP", "%s is at %s", a.sender, who)
	case a.probe:
		x.event(c, "ARP", "does anybody have %s?", a.asks)
	case a.announces:
		x.event(c, "ARP", "%s announces that it has %s", who, a.sender)
	default:
		x.event(c, "ARP", "%s asks who has %s", a.sender, a.asks)
	}
}

// text is a string from the network, fit to be shown.
func text(b string) string { return termtext.Mark(strings.TrimRight(b, "\x00"), 200) }

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
