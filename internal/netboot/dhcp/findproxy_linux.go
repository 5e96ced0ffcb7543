package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// Proxy is a hardware address that answers ARP for so many addresses that it is an ARP proxy.
type Proxy struct {
	Holder   string
	Answered int // addresses
}

// maxAsked is for how many addresses FindProxies asks.
const maxAsked = 16

// FindProxies asks by ARP, on an interface, for some addresses of its network, and returns the ARP proxies among those that
// answer, by the rule of the server. asked is for how many addresses it asked; for fewer than the rule needs, it does not.
// It changes nobody's ARP cache, and must run in the interface's network namespace.
func FindProxies(ctx context.Context, device string, network netip.Prefix) (asked int, proxies []Proxy, err error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return 0, nil, fmt.Errorf("interface %s: %w", device, err)
	}
	addresses := spread(network, maxAsked)
	if len(addresses) < proxyHolds {
		return 0, nil, nil
	}
	conn, err := packet.Listen(ifi, packet.Raw, unix.ETH_P_ARP, nil)
	if err != nil {
		return 0, nil, fmt.Errorf("open a packet socket on interface %s (needs CAP_NET_RAW): %w", device, err)
	}
	defer conn.Close()
	answers := map[string]map[netip.Addr]bool{}
	for range 2 { // a frame may be lost
		if err := ctx.Err(); err != nil {
			return 0, nil, err
		}
		for _, a := range addresses {
			if _, err := conn.WriteTo(arpProbe(ifi.HardwareAddr, a), &packet.Addr{HardwareAddr: etherBroadcast}); err != nil {
				return 0, nil, fmt.Errorf("ask by ARP on interface %s: %w", device, err)
			}
		}
		if err := collect(conn, ifi.HardwareAddr, addresses, answers); err != nil {
			return 0, nil, fmt.Errorf("read the answers on interface %s: %w", device, err)
		}
	}
	return len(addresses), proxiesOf(answers), nil
}

// collect reads answers for as long as a probe takes.
func collect(conn *packet.Conn, own net.HardwareAddr, asked []netip.Addr, answers map[string]map[netip.Addr]bool) error {
	if err := conn.SetReadDeadline(time.Now().Add(probeTime)); err != nil {
		return err
	}
	frame := make([]byte, 2048)
	for {
		n, _, err := conn.ReadFrom(frame)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		address, holder, ok := parseARPReply(frame[:n])
		if !ok || holder.String() == own.String() || !slices.Contains(asked, address) {
			continue
		}
		if answers[holder.String()] == nil {
			answers[holder.String()] = map[netip.Addr]bool{}
		}
		answers[holder.String()][address] = true
	}
}

func proxiesOf(answers map[string]map[netip.Addr]bool) []Proxy {
	var all []Proxy
	for holder, addresses := range answers {
		if len(addresses) >= proxyHolds {
			all = append(all, Proxy{holder, len(addresses)})
		}
	}
	slices.SortFunc(all, func(a, b Proxy) int { return strings.Compare(a.Holder, b.Holder) })
	return all
}

// spread gives at most n host addresses of an IPv4 network, evenly spread, except the one that the prefix names.
func spread(network netip.Prefix, n int) []netip.Addr {
	own := network.Addr()
	network = network.Masked()
	if !own.Is4() || network.Bits() > maxHostBits {
		return nil
	}
	base := network.Addr().As4()
	first := binary.BigEndian.Uint32(base[:]) + 1
	hosts := uint32(uint64(1)<<(32-network.Bits()) - 2)
	step := max(hosts/uint32(n), 1)
	var all []netip.Addr
	for offset := uint32(0); offset < hosts && len(all) < n; offset += step {
		a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, first+offset)))
		if a != own {
			all = append(all, a)
		}
	}
	return all
}

// maxHostBits is the longest prefix of a network that has a network and a broadcast address.
const maxHostBits = 30
