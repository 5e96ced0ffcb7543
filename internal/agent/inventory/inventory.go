// Package inventory finds out what a machine consists of: from sysfs, procfs, udev's database and, for
// the contents of disks, from their first and last bytes. It never writes.
//
// Everything is read below an injectable root, so that trees captured from real hardware can be tests.
// A fact that cannot be had is left out; only the whole inventory being unreadable is an error.
package inventory

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"coldrack.dev/internal/agent/smbios"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/contract/wire"
)

// Collector reads the inventory below a root folder.
type Collector struct {
	// Root is "/" on a machine.
	Root string
	// OpenDisk opens a whole disk for reading; nil leaves contents out.
	OpenDisk func(name string) (io.ReaderAt, func(), error)
	// BMC asks the management controller; nil leaves it out.
	BMC func() *wire.BMC
	// PermanentMAC asks a driver for the address that is burnt in; nil or "" takes the current one.
	PermanentMAC func(nic string) string
	// NVMeHealth reads the log page SMART / Health Information of a disk; nil leaves it out.
	NVMeHealth func(name string) ([]byte, error)
}

// Host is the Collector of the running machine.
func Host() Collector {
	return Collector{Root: "/", OpenDisk: openDisk, BMC: askBMC, PermanentMAC: permanentMAC, NVMeHealth: readNVMeHealth}
}

func openDisk(name string) (io.ReaderAt, func(), error) {
	f, err := os.Open("/dev/" + name)
	if err != nil {
		return nil, nil, err
	}
	return f, func() { _ = f.Close() }, nil
}

// Collect reads everything. bootMAC marks the NIC that booted, "" if unknown.
func (c Collector) Collect(bootMAC string) wire.Inventory {
	inv := wire.Inventory{
		System:      c.system(),
		CPU:         c.cpu(),
		MemoryBytes: c.memory(),
		Disks:       c.Disks(),
		NICs:        c.NICs(bootMAC),
		Firmware:    "BIOS",
		TPM:         c.tpm(),
	}
	if c.exists("sys/firmware/efi") {
		inv.Firmware = "UEFI"
		inv.SecureBoot = c.secureBoot()
	}
	if c.BMC != nil {
		inv.BMC = c.BMC()
	}
	hardware := c.hardware(inv.BMC)
	inv.Hardware = &hardware
	inv.Identifiers = wire.Identifiers{UUID: inv.System.UUID, Serial: inv.System.Serial}
	for _, n := range inv.NICs {
		inv.Identifiers.MACs = append(inv.Identifiers.MACs, n.MAC)
		if n.Bus == "usb" {
			inv.Identifiers.USBMACs = append(inv.Identifiers.USBMACs, n.MAC)
		}
	}
	if inv.BMC != nil {
		inv.Identifiers.BMCMAC = inv.BMC.MAC
	}
	return inv
}

func (c Collector) path(p string) string { return filepath.Join(c.Root, p) }

func (c Collector) exists(p string) bool {
	_, err := os.Stat(c.path(p))
	return err == nil
}

// text is a file's content without surrounding white space and control characters, "" if unreadable.
func (c Collector) text(p string) string {
	b, err := os.ReadFile(c.path(p))
	if err != nil {
		return ""
	}
	return termtext.Line(string(b), 0)
}

func (c Collector) number(p string) int64 {
	n, _ := strconv.ParseInt(c.text(p), 10, 64)
	return n
}

func (c Collector) names(dir string) []string {
	entries, err := os.ReadDir(c.path(dir))
	if err != nil {
		return nil
	}
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// placeholders are what vendors ship when they did not fill a field in.
var placeholders = []string{
	"to be filled by o.e.m.", "default string", "not specified", "none", "system serial number", "chassis serial number",
	"not applicable", "0123456789", "0", "unknown", "no asset tag", "asset-1234567890", "n/a", "not available", "no asset information",
}

func (c Collector) dmi(name string) string {
	s := c.text("sys/class/dmi/id/" + name)
	if slices.Contains(placeholders, strings.ToLower(s)) {
		return ""
	}
	return s
}

func (c Collector) system() wire.System {
	return wire.System{
		Vendor:        c.dmi("sys_vendor"),
		Product:       c.dmi("product_name"),
		Serial:        c.dmi("product_serial"),
		UUID:          strings.ToLower(c.dmi("product_uuid")),
		AssetTag:      c.dmi("chassis_asset_tag"),
		ChassisSerial: c.dmi("chassis_serial"),
		BIOSVersion:   c.dmi("bios_version"),
	}
}

func (c Collector) cpu() wire.CPU {
	b, _ := os.ReadFile(c.path("proc/cpuinfo"))
	var cpu wire.CPU
	sockets, cores := map[string]bool{}, map[string]bool{}
	for block := range strings.SplitSeq(string(b), "\n\n") {
		f := map[string]string{}
		for line := range strings.SplitSeq(block, "\n") {
			k, v, ok := strings.Cut(line, ":")
			if ok {
				f[strings.TrimSpace(k)] = termtext.Line(v, 0)
			}
		}
		id, ok := f["processor"]
		if !ok {
			continue
		}
		cpu.Threads++
		if cpu.Model == "" {
			cpu.Model = strings.Join(strings.Fields(f["model name"]), " ")
		}
		core, ok := f["core id"]
		if !ok {
			core = id // a processor that does not tell counts as a core of its own
		}
		sockets[f["physical id"]] = true
		cores[f["physical id"]+"/"+core] = true
	}
	cpu.Sockets, cpu.Cores = len(sockets), len(cores)
	return cpu
}

// memory is what is plugged in. SMBIOS type 17 knows it to the byte; the kernel's MemTotal lacks what
// firmware and kernel keep for themselves, so a 64 GiB machine would look like 62.
func (c Collector) memory() int64 {
	var sum int64
	for _, d := range smbios.MemoryDevices(c.smbios()) {
		sum += d.Size
	}
	if sum > 0 {
		return sum
	}
	b, _ := os.ReadFile(c.path("proc/meminfo"))
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			return kib << 10
		}
	}
	return 0
}

func (c Collector) secureBoot() bool {
	b, err := os.ReadFile(c.path("sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"))
	return err == nil && len(b) == 5 && b[4] == 1 // four bytes of attributes come first
}

func (c Collector) tpm() string {
	switch c.text("sys/class/tpm/tpm0/tpm_version_major") {
	case "2":
		return "2.0"
	case "1":
		return "1.2"
	}
	return ""
}
