package lldp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/contract/wire"
)

const etherType = 0x88CC

// groups are the destinations a neighbour may send to (802.1AB, table 7-1); a NIC drops them unless asked.
var groups = [...][6]byte{
	{0x01, 0x80, 0xC2, 0, 0, 0x0E}, {0x01, 0x80, 0xC2, 0, 0, 0x03}, {0x01, 0x80, 0xC2, 0, 0, 0x00},
}

// Listen calls heard for every data unit that arrives on the interface, until ctx ends. Damaged ones are
// dropped: a switch's fault must not disturb an install.
func Listen(ctx context.Context, iface string, heard func(wire.LLDP)) error {
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		return fmt.Errorf("listen for LLDP on %s: %w", iface, err)
	}
	conn, err := packet.Listen(ifi, packet.Datagram, etherType, nil)
	if err != nil {
		return fmt.Errorf("listen for LLDP on %s: %w", iface, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("listen for LLDP on %s: %w", iface, err)
	}
	for _, g := range groups {
		req := unix.PacketMreq{Ifindex: int32(ifi.Index), Type: unix.PACKET_MR_MULTICAST, Alen: 6}
		copy(req.Address[:], g[:])
		var join error
		if err := raw.Control(func(fd uintptr) {
			join = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &req)
		}); err != nil || join != nil {
			return fmt.Errorf("listen for LLDP on %s: join %x: %w", iface, g, errors.Join(err, join))
		}
	}
	buf := make([]byte, 9216)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
				return ctx.Err()
			}
			return fmt.Errorf("listen for LLDP on %s: %w", iface, err)
		}
		if neighbour, err := Parse(buf[:n]); err == nil {
			heard(neighbour)
		}
	}
}
