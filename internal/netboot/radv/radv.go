// Package radv spares booting machines a wait: it answers the IPv6 router solicitations of chosen clients
// with an advertisement that offers nothing.
//
// iPXE configures IPv4 and IPv6 together and, where no router advertises itself, waits about twenty
// seconds for one after DHCP has long succeeded. An advertisement with a router lifetime of zero and no
// prefix (RFC 4861, section 4.2) says that there is nothing to wait for: nobody gets a default route or an
// address from it. It is sent to the asking client alone, never to all nodes, so that no other host on
// the segment hears of it.
//
// Where DHCPv6 gives the addresses every solicitation is answered, and the advertisement says that (flags M and O), and which networks are on the
// link; DHCPv6 itself has no field for that. It still offers no route and no address of its own making.
package radv

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/ipv6"
)

// Options of Serve. All but Log are needed.
type Options struct {
	// Interface to answer on.
	Interface string
	// Inside runs a function in the interface's network namespace.
	Inside func(func() error) error
	// Wanted tells whether a client is to be answered. It must not block.
	Wanted func(mac net.HardwareAddr) bool
	// Managed are the networks on the link in which DHCPv6 gives the addresses. While there are some, everybody is answered. It must not block.
	// nil: there are none.
	Managed func() []netip.Prefix
	Log     *slog.Logger
}

const (
	typeSolicitation  = 133
	typeAdvertisement = 134
	// hopLimit shows that a message was not forwarded (RFC 4861, section 6.1.1).
	hopLimit = 255

	optionSourceLinkLayer = 1
)

// advertisement has current hop limit, flags, router lifetime, reachable time and retransmission timer all
// unspecified. The kernel fills in the checksum.
var advertisement = [16]byte{typeAdvertisement}

const (
	flagManaged, flagOther = 0x80, 0x40
	optionPrefix           = 3
	flagOnLink             = 0x80
	// prefixLifetime is AdvValidLifetime's default (RFC 4861, section 6.2.1), seconds.
	prefixLifetime = 2592000
	// mostPrefixes keeps the advertisement within 1280 bytes.
	mostPrefixes = 32
	// betweenMulticasts is MIN_DELAY_BETWEEN_RAS (RFC 4861, section 10).
	betweenMulticasts = 3 * time.Second
)

// managed is an advertisement of networks in which DHCPv6 gives the addresses: they are on the link, and nobody makes an address of them.
func managed(networks []netip.Prefix) []byte {
	b := advertisement
	b[5] = flagManaged | flagOther
	packet := b[:]
	for _, p := range networks[:min(len(networks), mostPrefixes)] {
		packet = append(packet, optionPrefix, 4, byte(p.Bits()), flagOnLink)
		packet = binary.BigEndian.AppendUint32(packet, prefixLifetime)
		packet = binary.BigEndian.AppendUint32(packet, prefixLifetime)
		packet = append(packet, 0, 0, 0, 0)
		packet = append(packet, p.Masked().Addr().AsSlice()...)
	}
	return packet
}

// allNodes is where hosts without an address hear an answer.
var allNodes = net.ParseIP("ff02::1")

// allRouters is where hosts send solicitations (RFC 4291, section 2.7.1).
var allRouters = net.ParseIP("ff02::2")

// Serve answers until ctx ends. An interface without IPv6 is an error.
func Serve(ctx context.Context, o Options) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	var conn *ipv6.PacketConn
	var index int
	err := o.Inside(func() error {
		link, err := net.InterfaceByName(o.Interface)
		if err != nil {
			return err
		}
		index = link.Index
		raw, err := net.ListenPacket("ip6:ipv6-icmp", "::")
		if err != nil {
			return err
		}
		conn = ipv6.NewPacketConn(raw)
		var filter ipv6.ICMPFilter
		filter.SetAll(true)
		filter.Accept(ipv6.ICMPTypeRouterSolicitation)
		if err := errors.Join(
			conn.SetICMPFilter(&filter),
			conn.SetControlMessage(ipv6.FlagInterface|ipv6.FlagHopLimit, true),
			conn.JoinGroup(link, &net.IPAddr{IP: allRouters}),
		); err != nil {
			conn.Close()
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("answer router solicitations on %s: %w", o.Interface, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	packet := make([]byte, 1500)
	var multicast time.Time // the last answer to all
	for {
		n, control, source, err := conn.ReadFrom(packet)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("router solicitations on %s: %w", o.Interface, err)
		}
		host, ok := source.(*net.IPAddr)
		if !ok || control == nil || control.IfIndex != index || control.HopLimit != hopLimit {
			continue
		}
		mac, valid := parseSolicitation(packet[:n])
		if !valid {
			continue
		}
		var networks []netip.Prefix
		if o.Managed != nil {
			networks = o.Managed()
		}
		answer, to := advertisement[:], host.IP
		switch {
		case len(networks) > 0 && host.IP.IsLinkLocalUnicast():
			answer = managed(networks)
		case len(networks) > 0 && host.IP.IsUnspecified():
			now := time.Now()
			if now.Sub(multicast) < betweenMulticasts {
				continue // it hears the last one's, or asks again
			}
			answer, to, multicast = managed(networks), allNodes, now
		case mac == nil || !host.IP.IsLinkLocalUnicast() || !o.Wanted(mac):
			continue
		}
		// The interface goes by its number: the zone's name may belong to another network namespace.
		_, err = conn.WriteTo(answer, &ipv6.ControlMessage{HopLimit: hopLimit, IfIndex: index}, &net.IPAddr{IP: to})
		if err != nil {
			o.Log.Warn("cannot answer a router solicitation; the machine waits until its timeout", "interface", o.Interface, "mac", mac.String(), "err", err)
		}
	}
}

// parseSolicitation says whether the message is a valid router solicitation (RFC 4861, sections 4.1 and 6.1.1), and returns the sender's
// link-layer address, nil if it carries none.
func parseSolicitation(packet []byte) (net.HardwareAddr, bool) {
	const header = 8
	if len(packet) < header || packet[0] != typeSolicitation || packet[1] != 0 {
		return nil, false
	}
	var mac net.HardwareAddr
	for options := packet[header:]; len(options) > 0; {
		if len(options) < 2 || options[1] == 0 || len(options) < 8*int(options[1]) {
			return nil, false
		}
		if options[0] == optionSourceLinkLayer && options[1] == 1 {
			mac = bytes.Clone(options[2:8])
		}
		options = options[8*int(options[1]):]
	}
	return mac, true
}
