package rehearse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// Lease is what a machine learns by DHCP.
type Lease struct {
	Address  netip.Addr
	Bits     int // of the subnet mask
	Server   netip.Addr
	Next     netip.Addr // where the boot file is, when it is no URL
	BootFile string
	Duration time.Duration
}

// errGivenUp ends an exchange whose schedule has run out.
var errGivenUp = errors.New("no answer")

// exchange is one client's DISCOVER, OFFER, REQUEST, ACK. It is pure: its caller sends, receives and waits.
type exchange struct {
	client  dhcpClient
	mac     net.HardwareAddr
	uuid    string
	xid     dhcpv4.TransactionID
	began   time.Time
	offer   *dhcpv4.DHCPv4
	attempt int
	naks    int
	// why the last offers were not taken.
	why string
}

// start gives the first message and how long to wait for an answer.
func (e *exchange) start(now time.Time) (*dhcpv4.DHCPv4, time.Duration) {
	e.began, e.attempt, e.offer = now, 0, nil
	wait, _ := e.client.discover.wait(0)
	return e.discover(now), wait
}

// expire gives what to send when the wait is over.
func (e *exchange) expire(now time.Time) (*dhcpv4.DHCPv4, time.Duration, error) {
	e.attempt++
	if e.offer != nil {
		if wait, ok := e.client.request.wait(e.attempt); ok {
			return e.request(now), wait, nil
		}
		// The offered address was not confirmed: start over with what time is left.
		e.offer, e.attempt = nil, len(e.client.discover)-1
		wait, _ := e.client.discover.wait(e.attempt)
		return e.discover(now), wait, nil
	}
	if wait, ok := e.client.discover.wait(e.attempt); ok {
		return e.discover(now), wait, nil
	}
	reason := "no DHCP server answered"
	if e.why != "" {
		reason = e.why
	}
	return nil, 0, fmt.Errorf("%s (%s): %w", e.client.fails, reason, errGivenUp)
}

// receive takes a message that came to the machine. send is nil when nothing is to be done but to wait on.
func (e *exchange) receive(m *dhcpv4.DHCPv4, now time.Time) (send *dhcpv4.DHCPv4, wait time.Duration, lease *Lease) {
	if m.TransactionID != e.xid || m.OpCode != dhcpv4.OpcodeBootReply {
		return nil, 0, nil
	}
	switch m.MessageType() {
	case dhcpv4.MessageTypeOffer:
		if e.offer != nil {
			return nil, 0, nil
		}
		if e.client.pxe && bootFile(m) == "" {
			e.why = "the offer named no boot file"
			return nil, 0, nil
		}
		e.offer, e.attempt = m, 0
		wait, _ := e.client.request.wait(0)
		return e.request(now), wait, nil
	case dhcpv4.MessageTypeNak:
		if e.offer == nil {
			return nil, 0, nil
		}
		e.naks++
		e.why = "the server took its offer back"
		e.offer = nil
		e.attempt = min(e.naks, len(e.client.discover)-1)
		wait, _ := e.client.discover.wait(e.attempt)
		return e.discover(now), wait, nil
	case dhcpv4.MessageTypeAck:
		if e.offer == nil {
			return nil, 0, nil
		}
		return nil, 0, leaseOf(m)
	}
	return nil, 0, nil
}

func leaseOf(m *dhcpv4.DHCPv4) *Lease {
	l := &Lease{BootFile: bootFile(m), Duration: m.IPAddressLeaseTime(time.Hour)}
	l.Address, _ = netip.AddrFromSlice(m.YourIPAddr.To4())
	l.Server, _ = netip.AddrFromSlice(m.ServerIdentifier().To4())
	l.Next, _ = netip.AddrFromSlice(m.ServerIPAddr.To4())
	if name := m.TFTPServerName(); !l.Next.IsValid() || l.Next.IsUnspecified() {
		if l.Next, _ = netip.ParseAddr(name); !l.Next.IsValid() {
			l.Next = l.Server
		}
	}
	l.Bits, _ = m.SubnetMask().Size()
	return l
}

func bootFile(m *dhcpv4.DHCPv4) string {
	if name := m.BootFileNameOption(); name != "" {
		return strings.TrimRight(name, "\x00")
	}
	return strings.TrimRight(m.BootFileName, "\x00")
}

func (e *exchange) discover(now time.Time) *dhcpv4.DHCPv4 {
	return e.message(now, dhcpv4.MessageTypeDiscover)
}

func (e *exchange) request(now time.Time) *dhcpv4.DHCPv4 {
	m := e.message(now, dhcpv4.MessageTypeRequest)
	m.UpdateOption(dhcpv4.OptRequestedIPAddress(e.offer.YourIPAddr))
	m.UpdateOption(dhcpv4.OptServerIdentifier(e.offer.ServerIdentifier()))
	return m
}

func (e *exchange) message(now time.Time, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, ClientHWAddr: e.mac,
		TransactionID: e.xid, NumSeconds: uint16(min(now.Sub(e.began)/time.Second, 0xffff)),
		ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero, GatewayIPAddr: net.IPv4zero,
		Options: dhcpv4.Options{},
	}
	m.SetBroadcast()
	m.UpdateOption(dhcpv4.OptMessageType(kind))
	m.UpdateOption(dhcpv4.OptClassIdentifier(e.client.vendor))
	m.UpdateOption(dhcpv4.OptMaxMessageSize(1472))
	m.UpdateOption(dhcpv4.OptParameterRequestList(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
		dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName, dhcpv4.OptionVendorSpecificInformation))
	if e.client.pxe {
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, binary.BigEndian.AppendUint16(nil, e.client.arch)))
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(94), []byte{1, 3, 16}))
		if id, ok := optionUUID(e.uuid); ok {
			m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(97), id))
		}
	}
	if e.client.user != "" {
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionUserClassInformation, []byte(e.client.user)))
	}
	if e.client.ipxe {
		// Feature list as iPXE sends it: HTTP (0x13), bzImage (0x18), EFI (0x24).
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(175), []byte{0x13, 1, 1, 0x18, 1, 1, 0x24, 1, 1}))
	}
	return m
}

// optionUUID is option 97: a zero byte and the UUID as SMBIOS has it, its first three fields little-endian.
func optionUUID(text string) ([]byte, bool) {
	id, err := uuid.Parse(text)
	if err != nil {
		return nil, false
	}
	slices.Reverse(id[0:4])
	slices.Reverse(id[4:6])
	slices.Reverse(id[6:8])
	return append([]byte{0}, id[:]...), true
}

// frame puts a client's message into the Ethernet broadcast in which it travels.
func frame(mac net.HardwareAddr, payload []byte) []byte {
	const ether, ip, udp = 14, 20, 8
	b := make([]byte, ether+ip+udp, ether+ip+udp+len(payload))
	copy(b, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	copy(b[6:], mac)
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	header := b[ether:]
	header[0], header[8], header[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(header[2:], uint16(ip+udp+len(payload)))
	copy(header[16:20], []byte{255, 255, 255, 255})
	binary.BigEndian.PutUint16(header[10:], onesComplement(header[:ip]))
	binary.BigEndian.PutUint16(b[ether+ip:], 68)
	binary.BigEndian.PutUint16(b[ether+ip+2:], 67)
	binary.BigEndian.PutUint16(b[ether+ip+4:], uint16(udp+len(payload))) // checksum 0: none, RFC 768
	return append(b, payload...)
}

// onesComplement is the Internet checksum of RFC 1071 over an even number of bytes.
func onesComplement(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// payloadOf gives the UDP payload of an IPv4 frame to port 68, nil when it is none.
func payloadOf(b []byte) []byte {
	if len(b) < 14+20+8 || binary.BigEndian.Uint16(b[12:]) != 0x0800 {
		return nil
	}
	ip := b[14:]
	header, total := int(ip[0]&0x0f)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if ip[9] != 17 || header < 20 || total > len(ip) || total < header+8 || binary.BigEndian.Uint16(ip[header+2:]) != 68 {
		return nil
	}
	return ip[header+8 : total]
}
