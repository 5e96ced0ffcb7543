// Package netif follows the network interfaces of a network namespace: which there are, whether they are up and have a
// link, and which addresses they have, now and whenever that changes.
//
// The kernel tells of changes by netlink (RTNETLINK's groups for links and addresses). Only that there was one is taken from it; the
// state itself is read anew, so that a lost notification does no harm.
package netif

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"

	"golang.org/x/sys/unix"
)

// Interface is one network interface.
type Interface struct {
	Name  string
	Index int
	// Up: it was switched on. Link: it has a carrier, too, so that frames can pass.
	Up, Link bool
	Loopback bool
	// Ethernet: it has a hardware address of six bytes, as machines that boot from a network need.
	Ethernet bool
	// Addresses with the lengths of their networks, IPv4 and IPv6, in the kernel's order.
	Addresses []netip.Prefix
}

// IPv4 are the interface's IPv4 addresses.
func (i Interface) IPv4() []netip.Addr {
	var all []netip.Addr
	for _, a := range i.Addresses {
		if a.Addr().Is4() {
			all = append(all, a.Addr())
		}
	}
	return all
}

// List reads the interfaces of the network namespace that the calling thread is in, in the order of their indexes.
func List() ([]Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list the network interfaces: %w", err)
	}
	list := make([]Interface, 0, len(all))
	for _, i := range all {
		addresses, err := i.Addrs()
		if err != nil {
			continue // it has gone in the meantime
		}
		found := Interface{
			Name: i.Name, Index: i.Index, Up: i.Flags&net.FlagUp != 0, Link: i.Flags&net.FlagRunning != 0,
			Loopback: i.Flags&net.FlagLoopback != 0, Ethernet: i.Flags&net.FlagLoopback == 0 && len(i.HardwareAddr) == 6,
		}
		for _, a := range addresses {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				found.Addresses = append(found.Addresses, netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()))
			}
		}
		list = append(list, found)
	}
	return list, nil
}

// Follow calls changed with the interfaces as they are, and again with all of them whenever something about them has changed, until
// ctx ends. inside runs a function in the network namespace of the interfaces. changed is never called twice at once.
func Follow(ctx context.Context, inside func(func() error) error, changed func([]Interface)) error {
	socket, err := subscribe(inside)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	defer func() {
		stop()
		socket.Close()
	}()
	// Room for one: what comes while the state is read asks for it to be read once more, however much it is.
	again, failed := make(chan struct{}, 1), make(chan error, 1)
	go func() { failed <- notifications(socket, again) }() // ends when the socket is closed
	var before []Interface
	for first := true; ; first = false {
		var now []Interface
		if err := inside(func() (err error) { now, err = List(); return err }); err != nil {
			return err
		}
		if first || !reflect.DeepEqual(before, now) {
			before = now
			changed(now)
		}
		select {
		case <-again:
		case <-ctx.Done():
			<-failed
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("follow the network interfaces: %w", err)
		}
	}
}

// subscribe opens a socket that can be read whenever a link or an address has changed.
func subscribe(inside func(func() error) error) (*os.File, error) {
	var socket *os.File
	err := inside(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR)
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
			unix.Close(fd)
			return err
		}
		socket = os.NewFile(uintptr(fd), "netlink")
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes of the network interfaces: %w", err)
	}
	return socket, nil
}

// notifications passes on that there was one, until the socket fails.
func notifications(socket *os.File, again chan<- struct{}) error {
	message := make([]byte, 1<<16)
	for {
		// ENOBUFS: the kernel had more to say than there was room for.
		if _, err := socket.Read(message); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		select {
		case again <- struct{}{}:
		default:
		}
	}
}
