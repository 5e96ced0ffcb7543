package inventory

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/contract/wire"
)

func permanentMAC(nic string) string {
	link, err := netlink.LinkByName(nic)
	if err != nil {
		return ""
	}
	mac := link.Attrs().PermHWAddr
	for _, b := range mac {
		if b != 0 {
			return mac.String()
		}
	}
	return ""
}

// The kernel's IPMI character device (include/uapi/linux/ipmi.h).
type (
	ipmiSystemInterface struct {
		addrType int32
		channel  int16
		lun      byte
	}
	ipmiMessage struct {
		netFn, cmd byte
		dataLen    uint16
		data       unsafe.Pointer
	}
	ipmiRequest struct {
		addr    unsafe.Pointer
		addrLen uint32
		msgID   int64
		msg     ipmiMessage
	}
	ipmiReceive struct {
		recvType int32
		addr     unsafe.Pointer
		addrLen  uint32
		msgID    int64
		msg      ipmiMessage
	}
)

const (
	ipmiSystemInterfaceType = 0x0C
	ipmiBMCChannel          = 0x0F
	ipmiSend                = 0x80000000 | unsafe.Sizeof(ipmiRequest{})<<16 | 'i'<<8 | 13 // _IOR('i', 13, struct ipmi_req)
	ipmiReceiveTrunc        = 0xC0000000 | unsafe.Sizeof(ipmiReceive{})<<16 | 'i'<<8 | 11 // _IOWR('i', 11, struct ipmi_recv)

	netFnTransport = 0x0C
	cmdGetLAN      = 0x02
	lanAddress     = 3
	lanMAC         = 5
)

// askBMC reads the LAN settings of the management controller through the local interface (IPMI 2.0,
// 23.2). Which channel is the LAN differs by vendor; the first with a MAC is taken.
func askBMC() *wire.BMC {
	f, err := os.OpenFile("/dev/ipmi0", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	for channel := byte(1); channel <= 8; channel++ {
		mac, ok := getLAN(f, channel, lanMAC)
		if !ok || len(mac) != 6 || [6]byte(mac) == [6]byte{} {
			continue
		}
		bmc := &wire.BMC{MAC: net.HardwareAddr(mac).String()}
		if b, ok := getLAN(f, channel, lanAddress); ok && len(b) == 4 {
			if a := netip.AddrFrom4([4]byte(b)); !a.IsUnspecified() {
				bmc.Address = a.String()
			}
		}
		return bmc
	}
	return nil
}

// getLAN sends Get LAN Configuration Parameters and returns the parameter's data.
func getLAN(f *os.File, channel, parameter byte) ([]byte, bool) {
	addr := ipmiSystemInterface{addrType: ipmiSystemInterfaceType, channel: ipmiBMCChannel}
	data := [4]byte{channel, parameter, 0, 0}
	req := ipmiRequest{
		addr: unsafe.Pointer(&addr), addrLen: uint32(unsafe.Sizeof(addr)), msgID: int64(channel)<<8 | int64(parameter),
		msg: ipmiMessage{netFn: netFnTransport, cmd: cmdGetLAN, dataLen: uint16(len(data)), data: unsafe.Pointer(&data[0])},
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(ipmiSend), uintptr(unsafe.Pointer(&req))); e != 0 {
		return nil, false
	}
	runtime.KeepAlive(&data)
	poll := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
	for end := time.Now().Add(3 * time.Second); ; {
		n, err := unix.Poll(poll, max(0, int(time.Until(end).Milliseconds())))
		if err == unix.EINTR {
			continue
		}
		if n < 1 || err != nil {
			return nil, false
		}
		break
	}
	var from [64]byte
	var answer [64]byte
	recv := ipmiReceive{
		addr: unsafe.Pointer(&from[0]), addrLen: uint32(len(from)),
		msg: ipmiMessage{dataLen: uint16(len(answer)), data: unsafe.Pointer(&answer[0])},
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(ipmiReceiveTrunc), uintptr(unsafe.Pointer(&recv))); e != 0 {
		return nil, false
	}
	runtime.KeepAlive(&answer)
	// Completion code, parameter revision, then the data.
	n := int(recv.msg.dataLen)
	if recv.msgID != req.msgID || n < 3 || n > len(answer) || answer[0] != 0 {
		return nil, false
	}
	return append([]byte(nil), answer[2:n]...), true
}
