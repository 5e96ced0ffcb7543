package dhcp

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// ClientPlace is a client's place on a segment: it speaks with a hardware address of its own before it has an address, as firmware does,
// and hears every answer to a DHCP client, whoever it is for.
type ClientPlace struct {
	device *net.Interface
	frames *packet.Conn
	// local is set where a server of this host listens: it hears no frames that the host itself sends.
	local *net.UDPConn
	frame [2048]byte
}

// Answer is a message to DHCP clients as it was heard.
type Answer struct {
	Hardware net.HardwareAddr // who sent the frame: the server, or the router before it
	From     netip.Addr
	Payload  []byte // good until the next one is heard
}

// OpenClientPlace opens the sockets on an interface that is up; it needs CAP_NET_RAW. It must be called in the interface's network namespace.
func OpenClientPlace(device string) (_ *ClientPlace, err error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", device, err)
	}
	if len(ifi.HardwareAddr) != 6 {
		return nil, fmt.Errorf("interface %s is no Ethernet: machines do not boot by it", device)
	}
	if ifi.Flags&net.FlagRunning == 0 {
		return nil, fmt.Errorf("interface %s is down or has no link: ip link set %s up, and look at the cable", device, device)
	}
	c := &ClientPlace{device: ifi}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	filter, err := clientFilter()
	if err != nil {
		return nil, err
	}
	// Frames of this host, too: what a server of its own answers.
	c.frames, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on interface %s (needs root or CAP_NET_RAW): %w", device, err)
	}
	// Some servers send to the hardware address although they are asked to broadcast.
	_ = c.frames.SetPromiscuous(true)
	if serverHere() {
		c.local, err = broadcaster(device)
	}
	return c, err
}

// Device is the interface.
func (c *ClientPlace) Device() *net.Interface { return c.device }

// Close closes the sockets.
func (c *ClientPlace) Close() {
	if c.frames != nil {
		c.frames.Close()
	}
	if c.local != nil {
		c.local.Close()
	}
}

// Broadcast sends a message of a client without an address to everyone on the segment.
func (c *ClientPlace) Broadcast(hardware net.HardwareAddr, payload []byte) error {
	everyone := netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), ServerPort)
	if c.local != nil {
		_, err := c.local.WriteToUDPAddrPort(payload, everyone)
		return err
	}
	return c.send(hardware, etherBroadcast, netip.AddrPortFrom(netip.IPv4Unspecified(), ClientPort), everyone, payload)
}

// Tell sends a message of a client with an address to a server, by the hardware address that its answer came from.
func (c *ClientPlace) Tell(hardware, to net.HardwareAddr, from, server netip.Addr, payload []byte) error {
	if c.local != nil {
		return c.Broadcast(hardware, payload)
	}
	return c.send(hardware, to, netip.AddrPortFrom(from, ClientPort), netip.AddrPortFrom(server, ServerPort), payload)
}

func (c *ClientPlace) send(hardware, to net.HardwareAddr, source, destination netip.AddrPort, payload []byte) error {
	_, err := c.frames.WriteTo(udpFrame(hardware, to, source, destination, payload), &packet.Addr{HardwareAddr: to})
	return err
}

// Hear waits for the next answer to a client; os.ErrDeadlineExceeded when none comes in time.
func (c *ClientPlace) Hear(until time.Time) (Answer, error) {
	if err := c.frames.SetReadDeadline(until); err != nil {
		return Answer{}, err
	}
	for {
		n, _, err := c.frames.ReadFrom(c.frame[:])
		if err != nil {
			return Answer{}, err
		}
		frame := c.frame[:n]
		if payload := udpPayload(frame); payload != nil {
			source := netip.AddrFrom4([4]byte(frame[etherLen+12 : etherLen+16]))
			return Answer{Hardware: net.HardwareAddr(append([]byte(nil), frame[6:12]...)), From: source, Payload: payload}, nil
		}
	}
}

// serverHere says whether a program of this host listens on the port of DHCP servers.
func serverHere() bool {
	text, err := os.ReadFile("/proc/thread-self/net/udp")
	if err != nil {
		return false
	}
	want := fmt.Sprintf(":%04X", ServerPort)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasSuffix(fields[1], want) {
			return true
		}
	}
	return false
}

// broadcaster is a socket whose broadcasts reach the segment, and programs of this host that listen on the interface.
func broadcaster(device string) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = setBroadcast(raw, device)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open a socket on interface %s: %w", device, err)
	}
	return conn, nil
}

func setBroadcast(raw syscall.RawConn, device string) error {
	var option error
	err := raw.Control(func(fd uintptr) {
		if option = unix.BindToDevice(int(fd), device); option == nil {
			option = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
		}
	})
	if err != nil {
		return err
	}
	return option
}

// clientFilter lets through what goes to the port of DHCP clients, untagged.
func clientFilter() ([]bpf.RawInstruction, error) {
	return bpf.Assemble([]bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtVLANTag},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x0fff},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 8},
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: 6},
		bpf.LoadAbsolute{Off: etherLen + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 4},
		bpf.LoadMemShift{Off: etherLen},
		bpf.LoadIndirect{Off: etherLen + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: ClientPort, SkipTrue: 1},
		bpf.RetConstant{Val: 2048},
		bpf.RetConstant{Val: 0},
	})
}
