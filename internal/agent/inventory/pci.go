package inventory

import (
	"bufio"
	"cmp"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/contract/wire"
)

// PCI lists what is plugged into the buses, or might be: no bridges, nothing of the chipset that every machine of a model has, and no
// virtual functions, which come and go with a driver's settings.
func (c Collector) PCI() []wire.PCIDevice {
	rdma := c.rdma()
	var out []wire.PCIDevice
	for _, address := range c.names("sys/bus/pci/devices") {
		dir := "sys/bus/pci/devices/" + address + "/"
		d := wire.PCIDevice{
			Address: address,
			Class:   c.hex(dir+"class", 6), Vendor: c.hex(dir+"vendor", 4), Device: c.hex(dir+"device", 4),
			SubVendor: c.hex(dir+"subsystem_vendor", 4), SubDevice: c.hex(dir+"subsystem_device", 4),
			Link: c.link(dir), RDMA: rdma[address],
		}
		if d.Class == "" || d.Vendor == "" || d.Device == "" || ofTheChipset(d.Class) || c.exists(dir+"physfn") {
			continue
		}
		if d.SubVendor == "0000" && d.SubDevice == "0000" {
			d.SubVendor, d.SubDevice = "", ""
		}
		if node, err := strconv.Atoi(c.text(dir + "numa_node")); err == nil && node >= 0 {
			d.NUMANode = &node
		}
		if driver, err := os.Readlink(c.path(dir + "driver")); err == nil {
			d.Driver = filepath.Base(driver)
		}
		out = append(out, d)
	}
	c.name(out)
	return out
}

// ofTheChipset says of a class whether its devices are soldered in, many, and of no interest: memory controllers but CXL's, bridges, system
// peripherals, SMBus, and signal processing, which are the counters of processors.
func ofTheChipset(class string) bool {
	switch base, sub := class[:2], class[2:4]; base {
	case "05":
		return sub != "02"
	case "06", "08", "11":
		return true
	case "0c":
		return sub == "05"
	}
	return false
}

// hex is a number of so many digits that sysfs shows as 0x8086, "" where it is none.
func (c Collector) hex(file string, digits int) string {
	n, err := strconv.ParseUint(c.text(file), 0, 32)
	text := strconv.FormatUint(n, 16)
	if err != nil || len(text) > digits {
		return ""
	}
	return strings.Repeat("0", digits-len(text)) + text
}

// link is that of the device, and what it and the port above it can do both. A port on the board may have fewer lanes than the card.
func (c Collector) link(dir string) *wire.PCILink {
	width, speed := c.linkOf(dir, "current")
	maxWidth, maxSpeed := c.linkOf(dir, "max")
	if width == 0 || speed == 0 || maxWidth == 0 || maxSpeed == 0 {
		return nil
	}
	if real, err := filepath.EvalSymlinks(c.path(dir)); err == nil {
		if above, err := filepath.Rel(c.Root, filepath.Dir(real)); err == nil {
			portWidth, portSpeed := c.linkOf(above+"/", "max")
			maxWidth, maxSpeed = least(maxWidth, portWidth), least(maxSpeed, portSpeed)
		}
	}
	return &wire.PCILink{Width: width, SpeedMTs: speed, MaxWidth: max(maxWidth, width), MaxSpeedMTs: max(maxSpeed, speed)}
}

// least of two of which the second is 0 where it is unknown.
func least(a, b int) int { return min(a, cmp.Or(b, a)) }

// linkOf reads current_link_width and such, 0 where they are unknown. The kernel says 255 for a width that it does not know, and "16.0 GT/s
// PCIe" for speeds.
func (c Collector) linkOf(dir, which string) (width, speed int) {
	if n := c.number(dir + which + "_link_width"); n > 0 && n <= 32 {
		width = int(n)
	}
	number, _, _ := strings.Cut(c.text(dir+which+"_link_speed"), " ")
	if gt, err := strconv.ParseFloat(number, 64); err == nil && gt > 0 && gt < 1000 {
		speed = int(gt * 1000)
	}
	return width, speed
}

// rdma are the addresses of devices with which drivers offer RDMA now.
func (c Collector) rdma() map[string]bool {
	out := map[string]bool{}
	for _, name := range c.names("sys/class/infiniband") {
		// Software on top of an Ethernet interface (rxe, siw) has no device.
		if device, err := filepath.EvalSymlinks(c.path("sys/class/infiniband/" + name + "/device")); err == nil {
			out[filepath.Base(device)] = true
		}
	}
	return out
}

// pciIDs is where distributions have the list of names.
var pciIDs = []string{"usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids", "usr/share/pci.ids"}

// name puts in the names by the system's list. Only the lines that are needed are kept: the list has 40,000.
func (c Collector) name(devices []wire.PCIDevice) {
	var file *os.File
	for _, path := range pciIDs {
		if f, err := os.Open(c.path(path)); err == nil {
			file = f
			break
		}
	}
	if file == nil {
		return
	}
	defer file.Close()
	wanted := map[string]string{}
	for _, d := range devices {
		wanted[d.Vendor], wanted[d.Vendor+d.Device], wanted["C"+d.Class[:2]], wanted["C"+d.Class[:4]] = "", "", "", ""
	}
	list := bufio.NewScanner(file)
	for in := ""; list.Scan(); {
		key, name, ok := entry(list.Text(), &in)
		if _, want := wanted[key]; ok && want {
			wanted[key] = termtext.Line(name, 0)
		}
	}
	for i := range devices {
		d := &devices[i]
		d.ClassName = cmp.Or(wanted["C"+d.Class[:4]], wanted["C"+d.Class[:2]])
		d.VendorName, d.DeviceName = wanted[d.Vendor], wanted[d.Vendor+d.Device]
	}
}

// entry reads one line of pci.ids: "VVVV  Vendor", "C CC  Class", and below them, after a tab, "DDDD  Device" and "SS  Subclass". in is the
// vendor or class that the following lines belong to.
func entry(line string, in *string) (key, name string, ok bool) {
	if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "\t\t") {
		return "", "", false
	}
	number, name, ok := strings.Cut(line, "  ")
	if !ok {
		return "", "", false
	}
	if number, below := strings.CutPrefix(number, "\t"); below {
		return *in + number, name, *in != ""
	}
	*in = strings.Replace(number, "C ", "C", 1)
	return *in, name, true
}
