// Package pktinfo has the kernel tell to which local address a packet was sent (IP_PKTINFO in ip(7), IPV6_RECVPKTINFO in ipv6(7)). A
// server on a wildcard address needs it: a client takes an answer only from the address that it spoke to.
package pktinfo

import (
	"net"

	"golang.org/x/sys/unix"
)

// Ask makes the kernel tell, with every packet, which local address it was sent to.
func Ask(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var option error
	err = raw.Control(func(fd uintptr) {
		domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			option = err
			return
		}
		// On a dual-stack IPv6 socket this also makes IPv4 packets come with IP_PKTINFO.
		option = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		if domain == unix.AF_INET6 {
			option = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	})
	if err != nil {
		return err
	}
	return option
}
