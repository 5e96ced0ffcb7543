package inventory

import (
	"os"
	"slices"
	"strings"

	"coldrack.dev/internal/agent/smbios"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/contract/wire"
)

// Hardware is what an installed node reports: what it is built of, with its disks, without what is on them.
func (c Collector) Hardware() wire.Hardware {
	c.OpenDisk = nil
	var bmc *wire.BMC
	if c.BMC != nil {
		bmc = c.BMC()
	}
	h := c.hardware(bmc)
	h.Disks = c.Disks()
	return h
}

func (c Collector) hardware(bmc *wire.BMC) wire.Hardware {
	h := wire.Hardware{
		Firmware:    wire.Firmware{BIOSVersion: c.dmi("bios_version"), BIOSDate: c.dmi("bios_date"), Microcode: c.microcode()},
		PCI:         c.PCI(),
		MemorySlots: c.memorySlots(),
	}
	if bmc != nil {
		h.Firmware.BMC = bmc.Firmware
	}
	return h
}

// microcode of all processors, which should have one.
func (c Collector) microcode() string {
	b, _ := os.ReadFile(c.path("proc/cpuinfo"))
	var found []string
	for line := range strings.SplitSeq(string(b), "\n") {
		name, value, _ := strings.Cut(line, ":")
		if value = termtext.Line(value, 0); strings.TrimSpace(name) == "microcode" && !slices.Contains(found, value) {
			found = append(found, value)
		}
	}
	return strings.Join(found, ", ")
}

func (c Collector) memorySlots() []wire.MemorySlot {
	var out []wire.MemorySlot
	for _, d := range smbios.MemoryDevices(c.smbios()) {
		out = append(out, wire.MemorySlot{
			Slot: d.Slot, Bank: d.Bank, SizeBytes: d.Size, Type: d.Type, ECC: d.ECC, SpeedMTs: d.Speed, MaxSpeedMTs: d.MaxSpeed,
			Manufacturer: d.Manufacturer, PartNumber: d.PartNumber, Serial: d.Serial,
		})
	}
	for i := range out {
		if out[i].SizeBytes == 0 {
			out[i] = wire.MemorySlot{Slot: out[i].Slot, Bank: out[i].Bank}
		}
	}
	return out
}

// smbios is the firmware's table. The kernel shows it whole, and entry by entry where the module dmi-sysfs is loaded.
func (c Collector) smbios() []smbios.Structure {
	if table, err := os.ReadFile(c.path("sys/firmware/dmi/tables/DMI")); err == nil {
		return smbios.Decode(table)
	}
	var out []smbios.Structure
	for _, name := range c.names("sys/firmware/dmi/entries") {
		if raw, err := os.ReadFile(c.path("sys/firmware/dmi/entries/" + name + "/raw")); err == nil {
			out = append(out, smbios.Decode(raw)...)
		}
	}
	return out
}
