package inventory

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nvmeAdminCommand is the kernel's struct nvme_passthru_cmd (include/uapi/linux/nvme_ioctl.h), which nvme_admin_cmd is another name for.
type nvmeAdminCommand struct {
	opcode, flags   byte
	_               uint16
	namespace       uint32
	_, _            uint32 // command dwords 2 and 3
	metadata        uint64
	data            unsafe.Pointer
	metadataLength  uint32
	dataLength      uint32
	dword10         uint32
	_, _, _, _, _   uint32 // dwords 11 to 15
	timeoutMillisec uint32
	result          uint32
}

const (
	nvmeAdminIoctl  = 0xC0000000 | unsafe.Sizeof(nvmeAdminCommand{})<<16 | 'N'<<8 | 0x41 // _IOWR('N', 0x41, struct nvme_admin_cmd)
	nvmeGetLogPage  = 0x02
	nvmeHealthLog   = 0x02
	nvmeOfAll       = 0xFFFFFFFF // the controller as a whole
	nvmeTimeout     = 2000
	nvmeDwordsShift = 16
)

// readNVMeHealth asks the disk for its log page SMART / Health Information. That reads, and changes nothing.
func readNVMeHealth(name string) ([]byte, error) {
	f, err := os.Open("/dev/" + name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var page [nvmeHealthSize]byte
	cmd := nvmeAdminCommand{
		opcode: nvmeGetLogPage, namespace: nvmeOfAll, data: unsafe.Pointer(&page[0]), dataLength: nvmeHealthSize,
		// The number of dwords less one stands above the page's number.
		dword10: (nvmeHealthSize/4-1)<<nvmeDwordsShift | nvmeHealthLog, timeoutMillisec: nvmeTimeout,
	}
	status, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(nvmeAdminIoctl), uintptr(unsafe.Pointer(&cmd)))
	runtime.KeepAlive(&page)
	if e != 0 {
		return nil, fmt.Errorf("get the health log of %s: %w", name, e)
	}
	if status != 0 {
		return nil, fmt.Errorf("get the health log of %s: the disk answers with status %#x", name, status)
	}
	return page[:], nil
}
