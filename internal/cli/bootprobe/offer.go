package bootprobe

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"coldrack.dev/internal/base/termtext"
)

// Offer is what a server offers a client.
type Offer struct {
	Server netip.Addr `json:"server"`
	// Address is not valid in the offer of a proxy.
	Address netip.Addr `json:"address,omitzero"`
	// File is the boot file as it is named, Next the server that has it, where File is no URL.
	File string     `json:"file,omitempty"`
	Next netip.Addr `json:"next,omitzero"`
	// Class is option 60.
	Class string `json:"class,omitempty"`
	// Bytes are those of the message, with the headers of IP and UDP.
	Bytes        int     `json:"bytes"`
	Milliseconds float64 `json:"milliseconds"`

	bits     int // of the network mask
	router   netip.Addr
	names    []netip.Addr     // DNS servers
	hardware net.HardwareAddr // who sent it
	// discovery is true when the client has to ask on port 4011 for its boot file.
	discovery bool
	// vendor is true when there is an option 43.
	vendor bool
}

const headers = 20 + 8

// text makes a string from the network fit for a terminal.
func text(b []byte) string { return termtext.Mark(strings.TrimRight(string(b), "\x00"), 255) }

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// offerOf reads an OFFER, or an ACK from port 4011; false: it is neither, or another client's.
func offerOf(payload []byte, mac net.HardwareAddr, xid dhcpv4.TransactionID, after time.Duration) (*dhcpv4.DHCPv4, Offer, bool) {
	m, err := dhcpv4.FromBytes(append(payload[:len(payload):len(payload)], dhcpv4.OptionEnd.Code()))
	if err != nil || m.OpCode != dhcpv4.OpcodeBootReply || m.TransactionID != xid || !bytes.Equal(m.ClientHWAddr, mac) {
		return nil, Offer{}, false
	}
	o := Offer{Server: addr(m.ServerIdentifier()), Address: addr(m.YourIPAddr), Class: text(m.Options.Get(dhcpv4.OptionClassIdentifier)),
		Bytes: len(payload) + headers, Milliseconds: milliseconds(after)}
	// RFC 2132, section 9.3: the fields may hold options instead of names.
	overload := byte(0)
	if b := m.Options.Get(dhcpv4.GenericOptionCode(52)); len(b) == 1 {
		overload = b[0]
	}
	if overload&1 == 0 {
		o.File = text([]byte(m.BootFileName))
	}
	if option := text(m.Options.Get(dhcpv4.OptionBootfileName)); option != "" {
		o.File = option
	}
	if o.Next = addr(m.ServerIPAddr); !o.Next.IsValid() {
		if o.Next, _ = netip.ParseAddr(text(m.Options.Get(dhcpv4.OptionTFTPServerName))); !o.Next.IsValid() {
			o.Next = o.Server
		}
	}
	if o.File == "" || strings.Contains(o.File, "://") {
		o.Next = netip.Addr{}
	}
	if mask := m.SubnetMask(); len(mask) == 4 {
		o.bits, _ = mask.Size()
	}
	if routers := m.Router(); len(routers) > 0 {
		o.router = addr(routers[0])
	}
	for _, name := range m.DNS() {
		if a := addr(name); a.IsValid() {
			o.names = append(o.names, a)
		}
	}
	o.discovery = o.File == "" && strings.HasPrefix(o.Class, "PXEClient")
	o.vendor = m.Options.Has(dhcpv4.OptionVendorSpecificInformation)
	return m, o, true
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Microseconds()) / 1000
}

// url is where the boot file is; empty without one.
func (o Offer) url() string {
	switch {
	case o.File == "":
		return ""
	case strings.Contains(o.File, "://"):
		return o.File
	case !o.Next.IsValid():
		return ""
	}
	// Firmware takes a name as it is: not as a part of a URL. It is shown so, and read back by fileOf.
	return (&url.URL{Scheme: "tftp", Host: o.Next.String(), Path: "/" + strings.TrimLeft(strings.ReplaceAll(o.File, `\`, "/"), "/")}).String()
}

// String is for a person.
func (o Offer) String() string {
	gives := "gives no address"
	if o.Address.IsValid() {
		gives = "gives " + o.Address.String()
	}
	boots := "names no boot file"
	if u := o.url(); u != "" {
		boots = "names " + u
	}
	if o.Class != "" {
		boots += ", class " + o.Class
	}
	return fmt.Sprintf("%s %s, %s", o.Server, gives, boots)
}

// takes says whether a kind of client takes the offer for one that says what to boot.
func (f Firmware) takes(o Offer) bool {
	switch {
	case f.http: // UEFI 2.10, section 24.7.3.2
		return strings.HasPrefix(o.Class, "HTTPClient") && strings.Contains(o.File, "://")
	case o.Address.IsValid():
		return o.File != "" || o.discovery
	}
	return strings.HasPrefix(o.Class, "PXEClient") && (o.File != "" || o.discovery)
}

// choose splits the offers into those that give an address, and picks the one that the client boots by: a server's that gives both, before a
// proxy's; of several the first.
func (f Firmware) choose(offers []Offer) (givers []Offer, boots *Offer) {
	for i := range offers {
		o := &offers[i]
		if o.Address.IsValid() {
			givers = append(givers, *o)
		}
		if f.takes(*o) && (boots == nil || o.Address.IsValid() && !boots.Address.IsValid()) {
			boots = o
		}
	}
	return givers, boots
}

// serversOf lists who answered, by address.
func serversOf(asked []asked) []Server {
	var all []Server
	for _, a := range asked {
		for _, o := range a.offers {
			i := slices.IndexFunc(all, func(s Server) bool { return s.Address == o.Server })
			if i < 0 {
				i = len(all)
				all = append(all, Server{Address: o.Server, Answers: []string{}, Boots: []string{}})
			}
			s := &all[i]
			add(&s.Answers, a.firmware.Name)
			if o.File != "" {
				add(&s.Boots, a.firmware.Name)
			}
			if o.Address.IsValid() {
				add(&s.Gives, o.Address)
			}
		}
	}
	slices.SortFunc(all, func(a, b Server) int { return a.Address.Compare(b.Address) })
	return all
}

func add[T comparable](list *[]T, value T) {
	if !slices.Contains(*list, value) {
		*list = append(*list, value)
	}
}

// asked is an exchange of one kind of client.
type asked struct {
	firmware Firmware
	offers   []Offer // in the order in which they came
}
