package dhcp6

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"coldrack.dev/internal/base/termtext"
)

// Bounds of what a message may hold.
const (
	// maxRelays is HOP_COUNT_LIMIT of RFC 8415, section 7.6.
	maxRelays = 8
	// maxDUID is the longest DUID, with its type (RFC 8415, section 11.1).
	maxDUID = 2 + 128
	minDUID = 2 + 1
	// maxIAs bounds how many addresses one message can ask for.
	maxIAs = 4
	// maxNamed bounds how many addresses of one IA are looked at.
	maxNamed = 8
)

// Enterprise number of Intel, whose PXE the vendor class is (option 16).
const intel = 343

var errMalformed = errors.New("malformed message")

// envelope is a client's message and the relays that it came by, the one that sent it to us first.
type envelope struct {
	relays  []*dhcpv6.RelayMessage
	message *dhcpv6.Message
	duid    []byte // empty in an Information-request without one
}

// parse decodes a message of a client or a relay and checks what everything else relies on.
func parse(packet []byte) (*envelope, error) {
	if err := checkRelays(packet); err != nil {
		return nil, err
	}
	decoded, err := dhcpv6.FromBytes(packet)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	e := &envelope{}
	for decoded != nil && decoded.IsRelay() {
		r := decoded.(*dhcpv6.RelayMessage)
		e.relays = append(e.relays, r)
		decoded = r.Options.RelayMessage()
	}
	var ok bool
	if e.message, ok = decoded.(*dhcpv6.Message); !ok {
		return nil, fmt.Errorf("%w: nothing within the relays' messages", errMalformed)
	}
	options := e.message.Options
	if len(options.Get(dhcpv6.OptionClientID)) > 1 || len(options.Get(dhcpv6.OptionServerID)) > 1 {
		return nil, fmt.Errorf("%w: several identifiers of the client or the server", errMalformed)
	}
	if id := options.ClientID(); id != nil {
		e.duid = id.ToBytes()
		if len(e.duid) < minDUID || len(e.duid) > maxDUID {
			return nil, fmt.Errorf("%w: a DUID of %d bytes", errMalformed, len(e.duid))
		}
	}
	return e, e.fits()
}

// fits is sections 16.2 to 16.12 of RFC 8415: which message must have which identifiers.
func (e *envelope) fits() error {
	client, server := len(e.duid) > 0, e.message.Options.ServerID() != nil
	problem := ""
	switch kind := e.message.MessageType; kind {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		if !client || server {
			problem = "needs a client identifier, and no server identifier"
		}
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		if !client || !server {
			problem = "needs a client identifier and a server identifier"
		}
	case dhcpv6.MessageTypeInformationRequest:
		if len(e.message.Options.IANA())+len(e.message.Options.IATA())+len(e.message.Options.IAPD()) > 0 {
			problem = "must not ask for addresses"
		}
	default:
		problem = "is not for servers"
	}
	if problem != "" {
		return fmt.Errorf("%w: %s %s", errMalformed, e.message.MessageType, problem)
	}
	return nil
}

// checkRelays follows the messages within relays' messages, before anything is decoded: there are maxRelays at most, each with one message.
func checkRelays(packet []byte) error {
	for hops := 0; len(packet) > 0 && packet[0] == byte(dhcpv6.MessageTypeRelayForward); hops++ {
		if hops == maxRelays {
			return fmt.Errorf("%w: more than %d relays", errMalformed, maxRelays)
		}
		if len(packet) < dhcpv6.RelayHeaderSize {
			return fmt.Errorf("%w: a relay's message of %d bytes", errMalformed, len(packet))
		}
		var inner []byte
		for rest := packet[dhcpv6.RelayHeaderSize:]; len(rest) > 0; {
			if len(rest) < 4 {
				return fmt.Errorf("%w: a relay's option is cut", errMalformed)
			}
			code, size := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
			if rest = rest[4:]; size > len(rest) {
				return fmt.Errorf("%w: a relay's option is cut", errMalformed)
			}
			if code == uint16(dhcpv6.OptionRelayMsg) {
				if inner != nil || size == 0 {
					return fmt.Errorf("%w: a relay sends not just one message", errMalformed)
				}
				inner = rest[:size]
			}
			rest = rest[size:]
		}
		packet = inner
	}
	if len(packet) == 0 {
		return fmt.Errorf("%w: no message", errMalformed)
	}
	return nil
}

// nearest is the relay on the client's segment, nil without relays.
func (e *envelope) nearest() *dhcpv6.RelayMessage {
	if len(e.relays) == 0 {
		return nil
	}
	return e.relays[len(e.relays)-1]
}

// link is the address that the relays give the client's segment, the zero Addr when none does: a relay that bridges (RFC 6221) leaves that to
// the next one.
func (e *envelope) link() netip.Addr {
	for _, r := range slices.Backward(e.relays) {
		if a := toNetip(r.LinkAddr); global(a) {
			return a
		}
	}
	return netip.Addr{}
}

func queryOf(e *envelope, source netip.Addr) Query {
	options := e.message.Options
	q := Query{DUID: hex.EncodeToString(e.duid), Arch: ArchUnknown}
	for _, class := range options.VendorClasses() {
		if q.VendorClass == "" && len(class.Data) > 0 {
			q.VendorClass = text(class.Data[0])
		}
	}
	var classes []string
	for _, class := range options.UserClasses() {
		classes = append(classes, text(class))
	}
	q.UserClass = strings.Join(classes, ",")
	if archs := options.ArchTypes(); len(archs) > 0 {
		q.Arch = uint16(archs[0])
	} else if _, named, ok := strings.Cut(q.VendorClass, "Client:Arch:"); ok {
		digits, _, _ := strings.Cut(named, ":")
		if n, err := strconv.ParseUint(digits, 10, 16); err == nil {
			q.Arch = uint16(n)
		}
	}
	q.PXE = strings.HasPrefix(q.VendorClass, "PXEClient")
	q.HTTP = strings.HasPrefix(q.VendorClass, "HTTPClient")
	q.IPXE = q.UserClass == "iPXE"
	peer := source
	if r := e.nearest(); r != nil {
		q.Relay = source
		peer = toNetip(r.PeerAddr)
		q.InterfaceID = hex.EncodeToString(r.Options.InterfaceID())
		if id := r.Options.RemoteID(); id != nil {
			q.RemoteID = hex.EncodeToString(id.RemoteID)
		}
		if kind, mac := r.Options.ClientLinkLayerAddress(); kind == iana.HWTypeEthernet {
			q.MAC, q.MACFrom = hardware(mac), FromRelay
		}
	}
	if q.MAC == "" {
		q.MAC, q.MACFrom = macOf(peer), FromAddress
	}
	switch id := options.ClientID().(type) {
	case *dhcpv6.DUIDLLT:
		q.hint(id.HWType, id.LinkLayerAddr)
	case *dhcpv6.DUIDLL:
		q.hint(id.HWType, id.LinkLayerAddr)
	case *dhcpv6.DUIDUUID:
		written := uuid.UUID(id.UUID)
		table := written
		slices.Reverse(table[0:4])
		slices.Reverse(table[4:6])
		slices.Reverse(table[6:8])
		q.UUIDs = []string{table.String(), written.String()}
	}
	if q.MAC == "" {
		q.MACFrom = ""
	}
	return q
}

// hint takes the hardware address of a DUID where nothing better is known.
func (q *Query) hint(kind iana.HWType, mac net.HardwareAddr) {
	if q.MAC == "" && kind == iana.HWTypeEthernet {
		q.MAC, q.MACFrom = hardware(mac), FromDUID
	}
}

// hardware is an Ethernet address of one host, or "".
func hardware(mac net.HardwareAddr) string {
	if len(mac) != 6 || mac[0]&1 != 0 || slices.Max(mac) == 0 {
		return ""
	}
	return mac.String()
}

// macOf is the hardware address that a link-local address was made of, or "".
func macOf(a netip.Addr) string {
	if !a.Is6() || !a.IsLinkLocalUnicast() {
		return ""
	}
	b := a.As16()
	if b[11] != 0xff || b[12] != 0xfe {
		return ""
	}
	return hardware(net.HardwareAddr{b[8] ^ 2, b[9], b[10], b[13], b[14], b[15]})
}

// text makes a string from the network fit for names and logs.
func text(b []byte) string { return termtext.Mark(strings.TrimRight(string(b), "\x00"), 255) }

// toNetip gives the zero Addr for what is not an IPv6 address.
func toNetip(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || !a.Is6() || a.Is4In6() {
		return netip.Addr{}
	}
	return a
}
