package inventory

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"coldrack.dev/internal/contract/wire"
)

// NICs lists interfaces with hardware behind them.
func (c Collector) NICs(bootMAC string) []wire.NIC {
	var out []wire.NIC
	for _, name := range c.names("sys/class/net") {
		dir := "sys/class/net/" + name + "/"
		// Type 1 is Ethernet; InfiniBand and others have addresses of other lengths.
		if !c.exists(dir+"device") || c.text(dir+"type") != "1" {
			continue
		}
		n := wire.NIC{
			Name: name,
			MAC:  strings.ToLower(c.text(dir + "address")),
			Link: c.text(dir+"carrier") == "1",
		}
		if c.PermanentMAC != nil {
			n.MAC = first(strings.ToLower(c.PermanentMAC(name)), n.MAC)
		}
		if speed := c.number(dir + "speed"); n.Link && speed > 0 {
			n.SpeedMbps = int(speed)
		}
		if driver, err := os.Readlink(c.path(dir + "device/driver")); err == nil {
			n.Driver = filepath.Base(driver)
		}
		n.Bus = c.bus("sys/class/net/" + name + "/device")
		n.Boot = bootMAC != "" && strings.EqualFold(n.MAC, bootMAC)
		out = append(out, n)
	}
	return out
}

// bus is what a device is attached by. An interface behind a USB bus may be a function of another kind of device, so any USB
// device on the way to it counts.
func (c Collector) bus(device string) string {
	if path, err := filepath.EvalSymlinks(c.path(device)); err == nil {
		for _, part := range strings.Split(path, "/") {
			if usbBus.MatchString(part) {
				return "usb"
			}
		}
	}
	subsystem, err := os.Readlink(c.path(device + "/subsystem"))
	if err != nil {
		return ""
	}
	return filepath.Base(subsystem)
}

// usbBus is the folder of a USB root hub in sysfs.
var usbBus = regexp.MustCompile(`^usb[0-9]+$`)
