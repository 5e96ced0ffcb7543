package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Accelerator is how QEMU runs the guest's instructions.
type Accelerator string

const (
	KVM Accelerator = "kvm"
	TCG Accelerator = "tcg"
)

const (
	emulator = "qemu-system-x86_64"
	// usualNice leaves the processor to the server that the machines talk to.
	usualNice = 5

	consoleLog    = "console.log"
	consoleSocket = "console.sock"
	qmpSocket     = "qmp.sock"
	pidFile       = "qemu.pid"
	varsFile      = "vars.fd"
)

// uefiImages are the places where distributions keep OVMF without Secure Boot: code, then a template
// of its variables.
var uefiImages = [][2]string{
	{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
	{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
	{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
	{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
}

func findUEFI() (code, vars string, err error) {
	for _, pair := range uefiImages {
		if fileExists(pair[0]) && fileExists(pair[1]) {
			return pair[0], pair[1], nil
		}
	}
	return "", "", fmt.Errorf("no UEFI firmware found (looked for %s and others): install the Debian package ovmf", uefiImages[0][0])
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// invocation is one start of a machine.
type invocation struct {
	spec        Spec
	dir         string // the machine's folder
	accelerator Accelerator
	uefiCode    string // with UEFI firmware only
	start       startOptions
}

// acceleratorArgs are those of a machine with so much memory.
//
// Measured on TCG with a Debian 6.1 kernel (power-on to init, SHA-256 of 64 MB): `max` 5.4 s, 0.92 s;
// `qemu64` and `Nehalem` 6.0 s, 1.6 s, because they lack the vector and SHA instructions that TCG maps
// well. Leaving out la57, pku or smap, and the machine type changed nothing measurable. Carry-less multiplication is done
// bit by bit: without it Go's TLS chooses ChaCha20-Poly1305, which takes a third of AES-GCM's time (86 MB/s for 25). It
// goes together with AES, because Linux believes that no processor has only one of them, and panics.
//
// The cache of translated code is the size of the programs that run, not of the memory: Debian boots in 160 MB of it,
// and a Kubernetes control plane that had 256 MiB threw all of it away, and translated it again, every ten seconds.
func acceleratorArgs(a Accelerator, memory Size) []string {
	if a == KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", min(max(memory/3, 256*MiB), GiB)/MiB), "-cpu", "max,-aes,-pclmulqdq"}
}

// ownTime replaces the accelerator's way of keeping time. An instruction takes two nanoseconds of the machine's time: twice as
// fast as a host processor emulates, so that a machine's clock never overtakes the host's while it works. While the machine
// waits, its clock goes with the host's.
func ownTime(args []string) []string {
	for i := range args {
		args[i] = strings.Replace(args[i], "thread=multi", "thread=single", 1)
	}
	return append(args, "-icount", "shift=1,sleep=on")
}

// args is QEMU's command line. Sockets and logs are named relative to the machine's folder, where QEMU is
// started, because the name of a Unix socket may have 107 bytes only; everything that QEMU may open again
// after it has become a daemon is absolute.
func (in invocation) args() []string {
	s := in.spec
	args := []string{
		"-name", s.Name,
		"-nodefaults", "-no-user-config",
		"-display", "none",
		"-daemonize",
		"-pidfile", filepath.Join(in.dir, pidFile),
		// Without graphics SeaBIOS shows itself, boot ROMs and boot loaders on the serial console.
		"-machine", "q35,graphics=off",
		"-smp", strconv.Itoa(s.CPUs),
		"-m", fmt.Sprintf("%dM", s.Memory/MiB),
		// Machines in the field try again for ever when nothing boots.
		"-boot", "strict=on,reboot-timeout=5000",
		"-rtc", "base=" + in.start.rtc(),
		"-chardev", "socket,id=console,path=" + consoleSocket + ",server=on,wait=off,logfile=" + consoleLog + ",logappend=on",
		"-serial", "chardev:console",
		"-qmp", "unix:" + qmpSocket + ",server=on,wait=off",
		"-smbios", fmt.Sprintf("type=1,manufacturer=%s,product=%s,version=1,serial=%s,uuid=%s,family=Lab", Manufacturer, Product, in.start.serial(s), in.start.uuid(s)),
		"-smbios", fmt.Sprintf("type=2,manufacturer=%s,product=Virtual Board,serial=%s", Manufacturer, in.start.serial(s)),
		"-smbios", fmt.Sprintf("type=3,manufacturer=%s,serial=%s,asset=%s", Manufacturer, in.start.serial(s), escape(s.Name)),
		"-device", "virtio-rng-pci",
	}
	accelerator := acceleratorArgs(in.accelerator, s.Memory)
	if s.OwnTime && in.accelerator == TCG {
		accelerator = ownTime(accelerator)
	}
	args = append(args, accelerator...)
	if s.Firmware == UEFI {
		args = append(args,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+escape(in.uefiCode),
			"-drive", "if=pflash,unit=1,format=raw,file="+escape(filepath.Join(in.dir, varsFile)),
			// Discovery is by IPv4; a minute of waiting for DHCPv6 would come before every disk boot.
			"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
	}

	bootIndex := 1
	for nic := range s.MACs {
		device := fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=%s", nic, in.start.mac(s, nic))
		switch {
		case s.Firmware == UEFI:
			// OVMF drives the card itself; the card's iPXE ROM would take the place of the firmware's own PXE.
			device += ",romfile="
		case in.start.diskOnly:
			device += ",romfile="
		}
		if !in.start.diskOnly {
			device += fmt.Sprintf(",bootindex=%d", bootIndex)
			bootIndex++
		}
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,ifname=%s,script=no,downscript=no", nic, tapOf(s.Index, nic)),
			"-device", device)
	}

	if s.Bus == SCSI && len(s.Disks) > 0 {
		args = append(args, "-device", "virtio-scsi-pci,id=scsi0")
	}
	for i, disk := range s.Disks {
		args = append(args,
			// The page cache of the host survives a pulled plug of the guest, so flushing it is not needed
			// for a raw file; QEMU without it is several times faster on slow disks.
			"-drive", fmt.Sprintf("if=none,id=disk%d,format=raw,cache=unsafe,discard=unmap,detect-zeroes=unmap,file=%s", i, escape(diskPath(in.dir, i))),
			"-device", fmt.Sprintf("%s,bootindex=%d", diskDevice(s.Bus, disk, i), bootIndex))
		bootIndex++
	}
	return args
}

func diskDevice(bus Bus, disk Disk, i int) string {
	switch bus {
	case Virtio:
		return fmt.Sprintf("virtio-blk-pci,drive=disk%d,serial=%s", i, disk.Serial)
	case NVMe:
		return fmt.Sprintf("nvme,drive=disk%d,serial=%s", i, disk.Serial)
	case SATA:
		return fmt.Sprintf("ide-hd,bus=ide.%d,drive=disk%d,serial=%s,wwn=0x%s", i, i, disk.Serial, disk.WWN)
	}
	return fmt.Sprintf("scsi-hd,bus=scsi0.0,scsi-id=%d,lun=0,drive=disk%d,vendor=COLDRACK,product=LAB DISK,serial=%s,wwn=0x%s", i, i, disk.Serial, disk.WWN)
}

// escape protects a comma in a value of a comma-separated option.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

func diskPath(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("disk%d.raw", i)) }
