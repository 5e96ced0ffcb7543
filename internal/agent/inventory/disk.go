package inventory

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"coldrack.dev/internal/agent/probe"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/contract/wire"
)

// sectorSize of the kernel's own counting in sysfs, whatever the disk's.
const sectorSize = 512

// notDisks are devices with hardware behind them that nobody installs to: optical drives, floppies, and
// the boot and replay-protected areas of eMMC.
var notDisks = regexp.MustCompile(`^(sr\d+|fd\d+|mmcblk\d+(boot\d+|rpmb)|mtdblock\d+)$`)

// Disks lists whole disks: what has hardware (or a hypervisor) behind it, so neither loop devices nor
// RAID or LVM volumes.
func (c Collector) Disks() []wire.Disk {
	byID := c.byID()
	var out []wire.Disk
	for _, name := range c.names("sys/block") {
		dir := "sys/block/" + name + "/"
		if notDisks.MatchString(name) || !c.exists(dir+"device") || c.text(dir+"hidden") == "1" || c.number(dir+"size") == 0 {
			continue
		}
		out = append(out, c.disk(name, byID[name]))
	}
	return out
}

func (c Collector) disk(name string, links []string) wire.Disk {
	dir := "sys/block/" + name + "/"
	udev := c.udev("b" + c.text(dir+"dev"))
	d := wire.Disk{
		Name:       name,
		ByID:       links,
		Model:      first(strings.ReplaceAll(udev["ID_MODEL"], "_", " "), c.text(dir+"device/model")),
		Vendor:     first(udev["ID_VENDOR"], c.text(dir+"device/vendor")),
		Serial:     c.serial(dir, udev),
		WWN:        wwn(first(udev["ID_WWN_WITH_EXTENSION"], udev["ID_WWN"], c.text(dir+"device/wwid"), c.text(dir+"wwid"))),
		SizeBytes:  c.number(dir+"size") * sectorSize,
		Rotational: c.text(dir+"queue/rotational") == "1",
		Transport:  c.transport(name),
		ReadOnly:   c.text(dir+"ro") == "1",
		Removable:  c.text(dir+"removable") == "1",
	}
	if d.Vendor == "ATA" || strings.HasPrefix(d.Vendor, "0x") {
		d.Vendor = "" // the bus, or a PCI number: neither is who made the disk
	}
	if d.Transport == "virtio" {
		d.Rotational = false // virtio says 1 for whatever the host has
	}
	d.Firmware = first(c.text(dir+"device/firmware_rev"), udev["ID_REVISION"], c.text(dir+"device/rev"))
	if state := c.text(dir + "device/state"); state != "running" && state != "live" {
		d.State = state
	}
	if d.Transport == "nvme" && c.NVMeHealth != nil {
		if page, err := c.NVMeHealth(name); err == nil {
			d.Health = nvmeHealth(page)
		}
	}
	d.Contents, d.Marker = c.contents(d)
	return d
}

func (c Collector) contents(d wire.Disk) (lines []string, marker string) {
	if c.OpenDisk == nil {
		return nil, ""
	}
	r, done, err := c.OpenDisk(d.Name)
	if err != nil {
		return []string{"unreadable: " + err.Error()}, ""
	}
	defer done()
	logical := c.number("sys/block/" + d.Name + "/queue/logical_block_size")
	rep, err := probe.Disk(r, d.SizeBytes, max(logical, sectorSize))
	if err != nil {
		return []string{err.Error()}, ""
	}
	if rep.Table != nil && rep.Table.Installed() {
		marker = rep.Table.DiskGUID.String()
	}
	return rep.Lines(), marker
}

// byID maps kernel names to their links below /dev/disk/by-id, most stable first: a WWN stays with the
// disk in any slot of any controller, a name made of model and serial nearly so, the rest may change.
func (c Collector) byID() map[string][]string {
	out := map[string][]string{}
	for _, link := range c.names("dev/disk/by-id") {
		target, err := os.Readlink(c.path("dev/disk/by-id/" + link))
		if err == nil {
			name := filepath.Base(target)
			out[name] = append(out[name], link)
		}
	}
	for _, links := range out {
		slices.SortFunc(links, func(a, b string) int {
			if d := stability(a) - stability(b); d != 0 {
				return d
			}
			return strings.Compare(a, b)
		})
	}
	return out
}

func stability(link string) int {
	order := []string{"wwn-", "nvme-eui.", "nvme-", "ata-", "scsi-3", "scsi-S", "virtio-", "scsi-", "mmc-", "usb-"}
	for i, prefix := range order {
		if strings.HasPrefix(link, prefix) {
			return i
		}
	}
	return len(order)
}

// udev reads the properties that udev's rules found, which for ATA disks know the full model where
// SCSI emulation cuts it at 16 characters.
func (c Collector) udev(id string) map[string]string {
	out := map[string]string{}
	b, err := os.ReadFile(c.path("run/udev/data/" + id))
	if err != nil {
		return out
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if kv, ok := strings.CutPrefix(line, "E:"); ok {
			k, v, _ := strings.Cut(kv, "=")
			out[k] = termtext.Line(v, 0)
		}
	}
	return out
}

// serial is what the label on the disk says. For SCSI, udev's ID_SERIAL_SHORT is the world-wide name
// instead, so it comes last.
func (c Collector) serial(dir string, udev map[string]string) string {
	return first(udev["ID_SCSI_SERIAL"], c.text(dir+"device/serial"), c.text(dir+"serial"), c.unitSerial(dir), udev["ID_SERIAL_SHORT"])
}

// unitSerial reads SCSI's vital product data page 0x80: four bytes of header, then the serial.
func (c Collector) unitSerial(dir string) string {
	b, err := os.ReadFile(c.path(dir + "device/vpd_pg80"))
	if err != nil || len(b) < 4 {
		return ""
	}
	return termtext.Line(string(b[4:min(len(b), 4+int(b[3]))]), 0)
}

// wwn brings sysfs' "naa.5000…" and udev's "0x5000…" to one form. Names that are only made of model and
// serial ("t10.", "nvme.") are no world-wide names.
func wwn(s string) string {
	s = strings.ToLower(s)
	if n, ok := strings.CutPrefix(s, "naa."); ok {
		return "0x" + n
	}
	if strings.HasPrefix(s, "0x") || strings.HasPrefix(s, "eui.") {
		return s
	}
	return ""
}

// transport reads the bus from the place of a disk in the device tree. A USB bridge has SCSI and ATA
// below it, so the order matters.
func (c Collector) transport(name string) string {
	where, err := filepath.EvalSymlinks(c.path("sys/block/" + name))
	if err != nil {
		return ""
	}
	for _, t := range []struct{ part, transport string }{
		{"/usb", "usb"}, {"/nvme", "nvme"}, {"/session", "iscsi"}, {"/rport-", "fc"}, {"/mmc", "mmc"},
		{"/ata", "sata"}, {"/end_device-", "sas"}, {"/virtio", "virtio"}, {"/vbd-", "xen"}, {"/vmbus", "hyper-v"},
	} {
		if strings.Contains(where, t.part) {
			return t.transport
		}
	}
	if c.exists("sys/block/" + name + "/device/sas_address") {
		return "sas"
	}
	if strings.Contains(where, "/host") {
		return "scsi"
	}
	return ""
}

func first(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}
