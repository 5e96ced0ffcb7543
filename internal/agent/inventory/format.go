package inventory

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"coldrack.dev/internal/contract/wire"
)

// Formats that Write knows.
var Formats = []string{"json", "yaml", "table"}

// Write shows an inventory: as the server gets it, or for a person.
func Write(w io.Writer, format string, inv wire.Inventory) error {
	switch format {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(inv)
	case "yaml":
		return writeYAML(w, inv)
	case "table":
		return writeTable(w, inv)
	}
	return fmt.Errorf("output %q: must be one of %s", format, strings.Join(Formats, ", "))
}

// writeYAML has the names and the order of the JSON, which is YAML in another style.
func writeYAML(w io.Writer, inv wire.Inventory) error {
	text, err := json.Marshal(inv)
	if err != nil {
		return err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return err
	}
	plain(&document)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&document); err != nil {
		return err
	}
	return enc.Close()
}

func plain(n *yaml.Node) {
	n.Style = 0
	for _, child := range n.Content {
		plain(child)
	}
}

func writeTable(w io.Writer, inv wire.Inventory) error {
	var out strings.Builder
	field := func(name, format string, args ...any) {
		if text := strings.TrimSpace(fmt.Sprintf(format, args...)); text != "" {
			fmt.Fprintf(&out, "%-11s %s\n", name+":", text)
		}
	}
	hardware := inv.Hardware
	if hardware == nil {
		hardware = &wire.Hardware{}
	}
	field("Model", "%s %s", inv.System.Vendor, inv.System.Product)
	field("Serial", "%s", inv.System.Serial)
	field("UUID", "%s", inv.System.UUID)
	field("CPU", "%d x %s, %d cores, %d threads", inv.CPU.Sockets, inv.CPU.Model, inv.CPU.Cores, inv.CPU.Threads)
	field("Microcode", "%s", hardware.Firmware.Microcode)
	field("Memory", "%s", size(inv.MemoryBytes))
	firmware := inv.Firmware
	if inv.SecureBoot {
		firmware += ", Secure Boot"
	}
	if inv.TPM != "" {
		firmware += ", TPM " + inv.TPM
	}
	field("Firmware", "%s", strings.Trim(firmware+", "+hardware.Firmware.BIOSVersion+" "+hardware.Firmware.BIOSDate, ", "))
	if inv.BMC != nil {
		field("BMC", "%s %s, firmware %s", inv.BMC.Address, inv.BMC.MAC, cmp.Or(inv.BMC.Firmware, "unknown"))
	}
	for _, t := range [][][]string{
		append([][]string{{"MEMORY SLOT", "SIZE", "TYPE", "SPEED", "MANUFACTURER", "PART", "SERIAL"}}, memoryRows(hardware.MemorySlots)...),
		append([][]string{{"PCI", "CLASS", "DEVICE", "IDS", "NUMA", "LINK", "DRIVER"}}, pciRows(hardware.PCI)...),
		append([][]string{{"DISK", "SIZE", "TRANSPORT", "MODEL", "SERIAL", "FIRMWARE", "HEALTH"}}, diskRows(inv.Disks)...),
		append([][]string{{"NIC", "MAC", "DRIVER", "LINK"}}, nicRows(inv.NICs)...),
	} {
		if len(t) > 1 {
			out.WriteString("\n")
			align(&out, t)
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// align writes rows in columns that are two spaces apart.
func align(out *strings.Builder, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		line := ""
		for i, cell := range row {
			line += cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
		}
		out.WriteString(strings.TrimRight(line, " ") + "\n")
	}
}

func memoryRows(slots []wire.MemorySlot) (rows [][]string) {
	for _, m := range slots {
		if m.SizeBytes == 0 {
			rows = append(rows, []string{cmp.Or(m.Slot, m.Bank), "empty"})
			continue
		}
		kind := m.Type
		if m.ECC {
			kind += " ECC"
		}
		rows = append(rows, []string{cmp.Or(m.Slot, m.Bank), size(m.SizeBytes), kind, speed(m), m.Manufacturer, m.PartNumber, m.Serial})
	}
	return rows
}

func speed(m wire.MemorySlot) string {
	switch {
	case m.SpeedMTs == 0 && m.MaxSpeedMTs == 0:
		return ""
	case m.SpeedMTs == 0 || m.SpeedMTs == m.MaxSpeedMTs || m.MaxSpeedMTs == 0:
		return fmt.Sprintf("%d MT/s", max(m.SpeedMTs, m.MaxSpeedMTs))
	}
	return fmt.Sprintf("%d of %d MT/s", m.SpeedMTs, m.MaxSpeedMTs)
}

func pciRows(devices []wire.PCIDevice) (rows [][]string) {
	for _, d := range devices {
		node := ""
		if d.NUMANode != nil {
			node = strconv.Itoa(*d.NUMANode)
		}
		driver := d.Driver
		if d.RDMA {
			driver = strings.TrimSpace(driver + " (RDMA)")
		}
		rows = append(rows, []string{d.Address, cmp.Or(d.ClassName, "class "+d.Class), strings.TrimSpace(d.VendorName + " " + d.DeviceName), d.Vendor + ":" + d.Device, node, link(d.Link), driver})
	}
	return rows
}

// link is "x8 of x16, 16 GT/s": what it could be is told where it is more.
func link(l *wire.PCILink) string {
	if l == nil {
		return ""
	}
	width, speed := fmt.Sprintf("x%d", l.Width), transfers(l.SpeedMTs)
	if l.Width < l.MaxWidth {
		width += fmt.Sprintf(" of x%d", l.MaxWidth)
	}
	if l.SpeedMTs < l.MaxSpeedMTs {
		speed += " of " + transfers(l.MaxSpeedMTs)
	}
	return width + ", " + speed + " GT/s"
}

func transfers(mts int) string { return strconv.FormatFloat(float64(mts)/1000, 'f', -1, 64) }

func diskRows(disks []wire.Disk) (rows [][]string) {
	for _, d := range disks {
		health := d.State
		if h := d.Health; h != nil {
			health = fmt.Sprintf("%d%% used, spare %d%%, %d °C, %d media errors", h.UsedPercent, h.SparePercent, h.TemperatureCelsius, h.MediaErrors)
			if len(h.Warnings) > 0 {
				health = "WARNS OF " + strings.Join(h.Warnings, ", ") + "; " + health
			}
		}
		rows = append(rows, []string{d.Name, size(d.SizeBytes), d.Transport, strings.TrimSpace(d.Vendor + " " + d.Model), d.Serial, d.Firmware, health})
	}
	return rows
}

func nicRows(nics []wire.NIC) (rows [][]string) {
	for _, n := range nics {
		link := "down"
		if n.Link {
			link = "up"
			if n.SpeedMbps > 0 {
				link = fmt.Sprintf("%d Mbit/s", n.SpeedMbps)
			}
		}
		rows = append(rows, []string{n.Name, n.MAC, n.Driver, link})
	}
	return rows
}

// size is in the largest binary unit, with one digit where it is not whole.
func size(bytes int64) string {
	unit, n := 0, float64(bytes)
	for ; n >= 1024 && unit < 5; unit++ {
		n /= 1024
	}
	return strings.TrimSuffix(strconv.FormatFloat(n, 'f', 1, 64), ".0") + " " + []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}[unit]
}
