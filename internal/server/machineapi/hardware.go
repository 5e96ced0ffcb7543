package machineapi

import (
	"cmp"
	"context"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
)

// Limits of reported hardware, as the API's definition has them.
const (
	maxDevices      = 96
	maxModules      = 128
	maxPCIAddresses = 32
	// maxHardware is how many bytes all of it may have, as JSON. A server with 8 accelerators, 32 memory modules and 24 disks has some 16,000.
	maxHardware = 48 << 10
	// leastHardware is enough to say that nothing was kept.
	leastHardware = 256
)

// hardwareUnchangedFor is how long a node's hardware that stays the same is not written again.
const hardwareUnchangedFor = 24 * time.Hour

// hardware records what an installed node is built of.
func (a *API) hardware(ctx context.Context, c call, in wire.Hardware) (any, error) {
	m, err := a.node(ctx, c.peer)
	if err != nil {
		return nil, err
	}
	report := fittedHardware(hardwareOf(in, in.Disks), maxHardware)
	report.ReportedAt = metav1.NewTime(a.Now())
	if sameHardware(m.Status.Hardware, report, hardwareUnchangedFor) {
		return wire.Empty{}, nil
	}
	_, err = a.update(ctx, m.Name, func(m *v1alpha1.Machine) error {
		m.Status.Hardware = report
		return nil
	})
	return wire.Empty{}, err
}

// sameHardware says whether a report tells nothing new, and is not old enough to be dated anew. What changes all the time is no news.
func sameHardware(known, report *v1alpha1.Hardware, keep time.Duration) bool {
	if known == nil || report.ReportedAt.Sub(known.ReportedAt.Time) > keep {
		return false
	}
	steady := func(h *v1alpha1.Hardware) *v1alpha1.Hardware {
		h = h.DeepCopy()
		h.ReportedAt = metav1.Time{}
		for _, d := range h.Disks {
			if d.Health != nil {
				d.Health.TemperatureCelsius, d.Health.PowerOnHours, d.Health.WrittenBytes = 0, 0, 0
			}
		}
		return h
	}
	return apiequality.Semantic.DeepEqual(steady(known), steady(report))
}

// hardwareOf turns what a machine reported into what its status holds. disks are those of the report, or of the inventory that it is in.
func hardwareOf(in wire.Hardware, disks []wire.Disk) *v1alpha1.Hardware {
	out := &v1alpha1.Hardware{Firmware: v1alpha1.FirmwareVersions{
		BIOSVersion: text(in.Firmware.BIOSVersion), BIOSDate: text(in.Firmware.BIOSDate), BMC: text(in.Firmware.BMC), Microcode: text(in.Firmware.Microcode),
	}}
	for _, d := range in.PCI {
		out.Devices = addDevice(out.Devices, d)
	}
	if len(out.Devices) > maxDevices {
		slices.SortStableFunc(out.Devices, func(a, b v1alpha1.PCIDevice) int { return cmp.Compare(min(len(b.Kind), 1), min(len(a.Kind), 1)) })
		out.Devices, out.Incomplete = out.Devices[:maxDevices], "there are more devices than are kept"
	}
	for _, m := range in.MemorySlots {
		switch {
		case m.SizeBytes > 0 && len(out.MemoryModules) < maxModules:
			out.MemoryModules = append(out.MemoryModules, v1alpha1.MemoryModule{
				Slot: text(cmp.Or(m.Slot, m.Bank)), Size: quantity(m.SizeBytes), Type: text(m.Type), ECC: m.ECC, SpeedMTs: int32(m.SpeedMTs), MaxSpeedMTs: int32(m.MaxSpeedMTs),
				Manufacturer: text(m.Manufacturer), PartNumber: text(m.PartNumber), Serial: text(m.Serial),
			})
		case m.SizeBytes <= 0 && len(out.EmptyMemorySlots) < maxModules:
			out.EmptyMemorySlots = append(out.EmptyMemorySlots, text(cmp.Or(m.Slot, m.Bank, "unnamed")))
		}
	}
	for _, d := range disks {
		if builtIn(d) && len(out.Disks) < maxDisks {
			out.Disks = append(out.Disks, diskStateOf(d))
		}
	}
	return out
}

// builtIn says whether a disk belongs to the machine: no stick, no medium of a BMC, no volume of a storage network.
func builtIn(d wire.Disk) bool {
	return !d.Removable && !d.ReadOnly && !slices.Contains([]string{"", "usb", "iscsi", "fc"}, d.Transport)
}

func diskStateOf(d wire.Disk) v1alpha1.DiskState {
	out := v1alpha1.DiskState{
		Name: text(d.Name), Model: text(strings.TrimSpace(d.Vendor + " " + d.Model)), Serial: text(d.Serial), WWN: text(d.WWN), Size: quantity(d.SizeBytes),
		Firmware: text(d.Firmware), State: text(d.State),
	}
	if h := d.Health; h != nil {
		out.Health = &v1alpha1.DiskHealth{
			UsedPercent: int32(h.UsedPercent), SparePercent: int32(h.SparePercent), SpareThresholdPercent: int32(h.SpareThresholdPercent), TemperatureCelsius: int32(h.TemperatureCelsius),
			PowerOnHours: signed(h.PowerOnHours), UnsafeShutdowns: signed(h.UnsafeShutdowns), MediaErrors: signed(h.MediaErrors), WrittenBytes: signed(h.WrittenBytes),
			Warnings: texts(h.Warnings, 8),
		}
	}
	return out
}

func signed(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

// addDevice counts a device with those that are equal, and connected equally.
func addDevice(devices []v1alpha1.PCIDevice, d wire.PCIDevice) []v1alpha1.PCIDevice {
	next := v1alpha1.PCIDevice{
		ID: text(d.Vendor + ":" + d.Device), Class: text(d.Class), ClassName: text(d.ClassName), Kind: kindOf(d), Count: 1, Addresses: []string{text(d.Address)},
	}
	if d.SubVendor != "" {
		next.Subsystem = text(d.SubVendor + ":" + d.SubDevice)
	}
	if d.VendorName != "" {
		next.Name = text(brief(d.VendorName) + " " + cmp.Or(d.DeviceName, d.Device))
	}
	if d.NUMANode != nil {
		next.NUMANode = new(int32(*d.NUMANode))
	}
	if l := d.Link; l != nil {
		next.Link = &v1alpha1.PCILink{Width: int32(l.Width), SpeedMTs: int32(l.SpeedMTs), MaxWidth: int32(l.MaxWidth), MaxSpeedMTs: int32(l.MaxSpeedMTs)}
		if next.Kind == v1alpha1.AcceleratorGPU || next.Kind == v1alpha1.AcceleratorOther {
			next.Link.SpeedMTs = 0 // they lower it while they idle
		}
	}
	for i := range devices {
		known := devices[i]
		known.Count, known.Addresses = next.Count, next.Addresses
		if !apiequality.Semantic.DeepEqual(known, next) {
			continue
		}
		devices[i].Count++
		if len(devices[i].Addresses) < maxPCIAddresses {
			devices[i].Addresses = append(devices[i].Addresses, next.Addresses...)
		}
		return devices
	}
	return append(devices, next)
}

// brief is a vendor's name as people say it: what stands in brackets, or what comes before "Inc." and its like.
func brief(vendor string) string {
	if _, rest, ok := strings.Cut(vendor, "["); ok {
		name, _, _ := strings.Cut(rest, "]")
		name, _, _ = strings.Cut(name, "/")
		return cmp.Or(strings.TrimSpace(name), vendor)
	}
	words := strings.FieldsFunc(vendor, func(r rune) bool { return r == ' ' || r == ',' })
	for i, word := range words {
		form := strings.TrimSuffix(strings.ToLower(word), ".")
		if i > 0 && slices.Contains([]string{"corporation", "corp", "inc", "incorporated", "ltd", "limited", "co", "technologies", "technology", "systems", "llc", "gmbh", "ag"}, form) {
			return strings.Join(words[:i], " ")
		}
	}
	return vendor
}

// dataProcessors are network interfaces that are the face of a computer of their own, by vendor and device: BlueField 1 to 3, Pensando,
// Intel's IPU E2000.
var dataProcessors = []string{"15b3:a2d2", "15b3:a2d6", "15b3:a2d9", "15b3:a2dc", "1dd8:1002", "8086:1452"}

// kindOf says what kind of accelerator a device is, "" for none. Graphics that only draw a console are none: those of BMCs, of hypervisors, and
// what is part of an Intel processor, which is on the first bus.
func kindOf(d wire.PCIDevice) v1alpha1.AcceleratorKind {
	switch prefix := d.Class[:min(len(d.Class), 4)]; {
	case slices.Contains(dataProcessors, d.Vendor+":"+d.Device):
		return v1alpha1.AcceleratorDPU
	case prefix == "0302":
		return v1alpha1.AcceleratorGPU
	case prefix == "0300" || prefix == "0380":
		first := strings.HasPrefix(strings.TrimPrefix(d.Address, "0000:"), "00:")
		if slices.Contains([]string{"10de", "1002"}, d.Vendor) || d.Vendor == "8086" && !first {
			return v1alpha1.AcceleratorGPU
		}
	case prefix == "1200" || prefix == "0b40":
		return v1alpha1.AcceleratorOther
	case d.RDMA:
		return v1alpha1.AcceleratorRDMA
	}
	return ""
}

// fittedHardware cuts hardware to so many bytes: first disks, then memory modules and devices that are no accelerators, then all.
func fittedHardware(h *v1alpha1.Hardware, limit int) *v1alpha1.Hardware {
	for _, cut := range []struct {
		what string
		do   func()
	}{
		{"its disks", func() { h.Disks = nil }},
		{"its disks, memory modules, and devices but accelerators", func() {
			h.MemoryModules, h.EmptyMemorySlots = nil, nil
			h.Devices = slices.DeleteFunc(h.Devices, func(d v1alpha1.PCIDevice) bool { return d.Kind == "" })
		}},
		{"all of it", func() { *h = v1alpha1.Hardware{} }},
	} {
		if sizeOf(h) <= limit {
			break
		}
		cut.do()
		h.Incomplete = "the report is too large; left out: " + cut.what
	}
	return h
}

func sizeOf(v any) int {
	text, err := json.Marshal(v)
	if err != nil {
		return maxInventory // a struct of ours always has a JSON form
	}
	return len(text)
}
