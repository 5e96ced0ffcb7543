package bootprobe

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// addressesOf are the IPv4 addresses of this host, and those of an interface with their networks.
func addressesOf(device *net.Interface) (host []netip.Addr, own []netip.Prefix, err error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, nil, fmt.Errorf("addresses of this host: %w", err)
	}
	for _, a := range all {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Is4() {
			host = append(host, prefix.Addr())
		}
	}
	mine, err := device.Addrs()
	if err != nil {
		return nil, nil, fmt.Errorf("addresses of interface %s: %w", device.Name, err)
	}
	for _, a := range mine {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Is4() {
			own = append(own, prefix)
		}
	}
	return host, own, nil
}

// leftBehind is for how many seconds the kernel keeps the address when this program is killed.
const leftBehind = 120

// give puts a leased address on the interface, for a while, until remove takes it off.
func (p *probe) give(lease Offer) (remove func() error, err error) {
	prefix := prefixOf(lease)
	address := &netlink.Addr{IPNet: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), 32)}, ValidLft: leftBehind, PreferedLft: leftBehind}
	change := func(what string, how func(*netlink.Handle, netlink.Link) error) error {
		err := p.Inside(func() error {
			handle, err := netlink.NewHandle()
			if err != nil {
				return err
			}
			defer handle.Close()
			link, err := handle.LinkByName(p.Interface)
			if err != nil {
				return err
			}
			return how(handle, link)
		})
		if err != nil {
			return fmt.Errorf("%s %s on interface %s: %w", what, prefix, p.Interface, err)
		}
		return nil
	}
	err = change("put the address", func(h *netlink.Handle, l netlink.Link) error { return h.AddrAdd(l, address) })
	if err != nil {
		return nil, err
	}
	return func() error {
		return change("remove the address", func(h *netlink.Handle, l netlink.Link) error { return h.AddrDel(l, address) })
	}, nil
}
