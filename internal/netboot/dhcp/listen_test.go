package dhcp

import (
	"context"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenOn takes the port of DHCP servers on one interface.
func listenOn(device string) (net.PacketConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var option error
		if err := raw.Control(func(fd uintptr) { option = unix.BindToDevice(int(fd), device) }); err != nil {
			return err
		}
		return option
	}}
	return config.ListenPacket(context.Background(), "udp4", fmt.Sprintf("0.0.0.0:%d", ServerPort))
}
