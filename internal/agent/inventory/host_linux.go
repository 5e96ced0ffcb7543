package inventory

import (
	"fmt"
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

	netFnApplication = 0x06
	cmdGetDeviceID   = 0x01

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
		if id, ok := ask(f, netFnApplication, cmdGetDeviceID, nil); ok {
			bmc.Firmware = bmcFirmware(id)
		}
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
	// The parameter's revision stands before its data.
	answer, ok := ask(f, netFnTransport, cmdGetLAN, []byte{channel, parameter, 0, 0})
	if !ok || len(answer) < 1 {
		return nil, false
	}
	return answer[1:], true
}

// bmcFirmware reads the version from the answer to Get Device ID (IPMI 2.0, 20.1): the major number is binary, the minor decimal.
func bmcFirmware(id []byte) string {
	if len(id) < 4 {
		return ""
	}
	return fmt.Sprintf("%d.%02x", id[2]&0x7F, id[3])
}

// ask sends one request and returns the answer's data, without the completion code.
func ask(f *os.File, netFn, cmd byte, data []byte) ([]byte, bool) {
	addr := ipmiSystemInterface{addrType: ipmiSystemInterfaceType, channel: ipmiBMCChannel}
	id := int64(netFn)<<16 | int64(cmd)<<8
	if len(data) > 1 {
		id |= int64(data[0])<<32 | int64(data[1])
	}
	req := ipmiRequest{
		addr: unsafe.Pointer(&addr), addrLen: uint32(unsafe.Sizeof(addr)), msgID: id,
		msg: ipmiMessage{netFn: netFn, cmd: cmd, dataLen: uint16(len(data)), data: unsafe.Pointer(unsafe.SliceData(data))},
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(ipmiSend), uintptr(unsafe.Pointer(&req))); e != 0 {
		return nil, false
	}
	runtime.KeepAlive(data)
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
	n := int(recv.msg.dataLen)
	if recv.msgID != req.msgID || n < 1 || n > len(answer) || answer[0] != 0 {
		return nil, false
	}
	return append([]byte(nil), answer[1:n]...), true
}
