// Package radv spares booting machines a wait: it answers the IPv6 router solicitations of chosen clients
// with an advertisement that offers nothing.
//
// iPXE configures IPv4 and IPv6 together and, where no router advertises itself, waits about twenty
// seconds for one after DHCP has long succeeded. An advertisement with a router lifetime of zero and no
// prefix (RFC 4861, section 4.2) says that there is nothing to wait for: nobody gets a default route or an
// address from it. It is sent to the asking client alone, never to all nodes, so that no other host on
// the segment hears of it.
package radv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"

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
	Log    *slog.Logger
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
		mac, ok := parseSolicitation(packet[:n])
		if !ok || !host.IP.IsLinkLocalUnicast() || !o.Wanted(mac) {
			continue
		}
		// The interface goes by its number: the zone's name may belong to another network namespace.
		_, err = conn.WriteTo(advertisement[:], &ipv6.ControlMessage{HopLimit: hopLimit, IfIndex: index}, &net.IPAddr{IP: host.IP})
		if err != nil {
			o.Log.Warn("cannot answer a router solicitation; the machine waits until its timeout", "interface", o.Interface, "mac", mac.String(), "err", err)
		}
	}
}

// parseSolicitation returns the sender's link-layer address, if the message is a valid router solicitation
// that carries one (RFC 4861, sections 4.1 and 6.1.1).
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
	return mac, mac != nil
}
