package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/agent/console"
	"coldrack.dev/internal/contract/wire"
)

// Patience is how long the network is waited for.
type Patience struct {
	NIC     time.Duration // for the interface that booted to appear: its driver may load firmware
	Carrier time.Duration // for a link: negotiation and spanning tree take seconds
	Answer  time.Duration // for one answer of a DHCP server; asked four times
	Again   time.Duration // before it all starts over
}

// UsualPatience suits real hardware.
func UsualPatience() Patience {
	return Patience{NIC: 20 * time.Second, Carrier: 15 * time.Second, Answer: 4 * time.Second, Again: 5 * time.Second}
}

const (
	dhcpTries  = 4
	leastRenew = 10 * time.Second
)

// Network brings one interface up and keeps its lease.
type Network struct {
	Log     *slog.Logger
	Console *console.Console
	BootMAC string
	Patience
	// Interfaces lists those that may be used; Hardware on a machine.
	Interfaces func() []netlink.Link

	iface string
	mu    sync.Mutex
	held  *nclient4.Lease
}

func (n *Network) lease() *nclient4.Lease {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.held
}

func (n *Network) hold(l *nclient4.Lease) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held = l
}

// Up returns when an interface has an address. It tries for ever; what is wrong, the console says.
func (n *Network) Up(ctx context.Context) error {
	if lo, err := netlink.LinkByName("lo"); err == nil {
		_ = netlink.LinkSetUp(lo)
	}
	for ctx.Err() == nil {
		links := n.waitForLinks(ctx)
		for _, l := range links {
			if !hasCarrier(l) {
				continue
			}
			if err := n.try(ctx, l); err != nil {
				n.Console.Fail("no address by DHCP on %s: %v. Check that the DHCP server runs, that this port is in the right VLAN, and that relays forward to it", nicText(l), err)
				continue
			}
			return nil
		}
		if len(links) == 0 {
			n.Console.Fail("this machine shows no network interface: its driver or firmware may be missing from the discovery system")
		} else if !slices.ContainsFunc(links, hasCarrier) {
			n.Console.Fail("no link on any interface: %s. Check the cables, and that the switch ports are enabled", nicTexts(links))
		}
		pause(ctx, n.Again)
	}
	return context.Cause(ctx)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// waitForLinks sets all hardware interfaces up and returns them, the one that booted first. It gives that one
// time to appear and get a link.
func (n *Network) waitForLinks(ctx context.Context) []netlink.Link {
	began := time.Now()
	for {
		links := n.Interfaces()
		for _, l := range links {
			if l.Attrs().Flags&net.FlagUp == 0 {
				if err := netlink.LinkSetUp(l); err != nil {
					n.Log.Warn("cannot set interface up", "interface", l.Attrs().Name, "err", err)
				}
			}
		}
		slices.SortStableFunc(links, func(a, b netlink.Link) int { return n.rank(a) - n.rank(b) })
		waited := time.Since(began)
		booted := len(links) > 0 && n.rank(links[0]) == 0
		switch {
		case booted && hasCarrier(links[0]),
			waited > n.NIC+n.Carrier,
			waited > n.NIC && !booted && slices.ContainsFunc(links, hasCarrier),
			waited > n.Carrier && booted && slices.ContainsFunc(links, hasCarrier),
			n.BootMAC == "" && slices.ContainsFunc(links, hasCarrier) && waited > n.Carrier/8,
			ctx.Err() != nil:
			return links
		}
		pause(ctx, 200*time.Millisecond)
	}
}

func (n *Network) rank(l netlink.Link) int {
	a := l.Attrs()
	if n.BootMAC != "" && (strings.EqualFold(a.HardwareAddr.String(), n.BootMAC) || strings.EqualFold(a.PermHWAddr.String(), n.BootMAC)) {
		return 0
	}
	return 1
}

// Hardware lists Ethernet interfaces with a device behind them.
func Hardware() []netlink.Link {
	all, err := netlink.LinkList()
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(all, func(l netlink.Link) bool {
		_, err := os.Stat("/sys/class/net/" + l.Attrs().Name + "/device")
		return err != nil || l.Attrs().EncapType != "ether"
	})
}

func hasCarrier(l netlink.Link) bool { return l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 }

func nicText(l netlink.Link) string {
	return fmt.Sprintf("%s (%s)", l.Attrs().Name, l.Attrs().HardwareAddr)
}

func nicTexts(links []netlink.Link) string {
	var out []string
	for _, l := range links {
		out = append(out, nicText(l))
	}
	return strings.Join(out, ", ")
}

// modifiers go with every message. The vendor class tells the server that this is neither firmware nor iPXE:
// it needs an address and no boot file.
func modifiers() []dhcpv4.Modifier {
	return []dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier(wire.DHCPClass)),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionInterfaceMTU, dhcpv4.OptionClasslessStaticRoute,
			dhcpv4.OptionRenewTimeValue),
	}
}

func (n *Network) try(ctx context.Context, l netlink.Link) error {
	n.Console.Say("asking for an address on %s", nicText(l))
	c, err := nclient4.New(l.Attrs().Name, nclient4.WithTimeout(n.Answer), nclient4.WithRetry(dhcpTries))
	if err != nil {
		return err
	}
	defer c.Close()
	lease, err := c.Request(ctx, modifiers()...)
	if err != nil {
		return err
	}
	n.iface = l.Attrs().Name
	if err := n.apply(l, lease); err != nil {
		return err
	}
	n.Console.Say("address %s on %s, from DHCP server %s", lease.ACK.YourIPAddr, nicText(l), lease.ACK.ServerIdentifier())
	return nil
}

// Address is the one in use, without prefix length.
func (n *Network) Address() string {
	lease := n.lease()
	if lease == nil {
		return ""
	}
	return lease.ACK.YourIPAddr.String()
}

// apply sets address, MTU and routes of a lease; what an earlier lease gave and this one does not is
// removed.
func (n *Network) apply(l netlink.Link, lease *nclient4.Lease) error {
	ack := lease.ACK
	mask := ack.SubnetMask()
	if mask == nil {
		mask = ack.YourIPAddr.DefaultMask()
	}
	addr := &net.IPNet{IP: ack.YourIPAddr, Mask: mask}
	old, err := netlink.AddrList(l, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("read addresses of %s: %w", l.Attrs().Name, err)
	}
	for _, a := range old {
		if a.IPNet.String() != addr.String() {
			_ = netlink.AddrDel(l, &a)
		}
	}
	if err := netlink.AddrReplace(l, &netlink.Addr{IPNet: addr}); err != nil {
		return fmt.Errorf("set address %s on %s: %w", addr, l.Attrs().Name, err)
	}
	if b := ack.Options.Get(dhcpv4.OptionInterfaceMTU); len(b) == 2 {
		if mtu := int(b[0])<<8 | int(b[1]); mtu >= 576 {
			if err := netlink.LinkSetMTU(l, mtu); err != nil {
				n.Log.Warn("cannot set the MTU that DHCP asks for", "mtu", mtu, "err", err)
			}
		}
	}
	n.hold(lease)
	var errs []error
	routes := ack.ClasslessStaticRoute()
	if len(routes) == 0 { // RFC 3442: where there are classless routes, the router option does not count
		for _, r := range ack.Router() {
			routes = append(routes, &dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Router: r})
			break
		}
	}
	for _, r := range routes {
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: r.Dest, Gw: r.Router}
		if r.Router.IsUnspecified() {
			route.Gw, route.Scope = nil, netlink.SCOPE_LINK
		} else if !addr.Contains(r.Router) {
			route.Flags = int(netlink.FLAG_ONLINK)
		}
		if err := netlink.RouteReplace(route); err != nil {
			errs = append(errs, fmt.Errorf("route to %s by %s: %w", r.Dest, r.Router, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		n.Log.Warn("cannot set some routes of the DHCP lease", "err", err)
	}
	return nil
}

// Keep renews the lease until ctx ends. A server that does not answer leaves the address in place: an
// address that works is better than none.
func (n *Network) Keep(ctx context.Context) error {
	for {
		lease := n.lease()
		renew := max(lease.ACK.IPAddressRenewalTime(lease.ACK.IPAddressLeaseTime(time.Hour)/2), leastRenew)
		wait := time.Until(lease.CreationTime.Add(renew))
		for pause(ctx, max(wait, 0)); ctx.Err() == nil; pause(ctx, leastRenew) {
			err := n.renew(ctx)
			if err == nil {
				break
			}
			n.Log.Warn("DHCP lease renewal failed", "interface", n.iface, "address", n.Address(), "err", err)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (n *Network) renew(ctx context.Context) error {
	l, err := netlink.LinkByName(n.iface)
	if err != nil {
		return err
	}
	c, err := nclient4.New(n.iface, nclient4.WithTimeout(n.Answer), nclient4.WithRetry(2))
	if err != nil {
		return err
	}
	defer c.Close()
	held := n.lease()
	lease, err := c.Renew(ctx, held, modifiers()...)
	if err == nil && lease.ACK.YourIPAddr.Equal(held.ACK.YourIPAddr) {
		n.hold(lease)
		return nil
	}
	nak := (*nclient4.ErrNak)(nil)
	expired := time.Since(held.CreationTime) > held.ACK.IPAddressLeaseTime(time.Hour)*7/8
	if !errors.As(err, &nak) && !expired && err != nil {
		return err
	}
	if lease, err = c.Request(ctx, modifiers()...); err != nil {
		return err
	}
	n.Log.Info("new lease", "address", lease.ACK.YourIPAddr.String())
	return n.apply(l, lease)
}
