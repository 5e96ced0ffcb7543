package machineapi

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
)

// gpuServer has eight equal GPUs on two processors, one of them on half of its lanes.
func gpuServer() wire.Hardware {
	h := wire.Hardware{
		Firmware: wire.Firmware{BIOSVersion: "1.12.1", Microcode: "0xd0003e7"},
		MemorySlots: []wire.MemorySlot{
			{Slot: "A1", SizeBytes: 64 << 30, Type: "DDR5", ECC: true, SpeedMTs: 4800, MaxSpeedMTs: 5600, Serial: "M1"},
			{Bank: "P0 B1"},
		},
		Disks: []wire.Disk{
			{Name: "nvme0n1", Serial: "S1", Vendor: "V", Model: "M", SizeBytes: 1 << 40, Transport: "nvme", Health: &wire.DiskHealth{UsedPercent: 3, TemperatureCelsius: 38, WrittenBytes: 1 << 63}},
			{Name: "sdb", Transport: "usb", Serial: "a stick"},
			{Name: "sdc", Transport: "iscsi", Serial: "a volume"},
			{Name: "sdd", Transport: "sata", Removable: true, Serial: "a card"},
		},
	}
	for i := range 8 {
		width := 16
		if i == 7 {
			width = 8
		}
		h.PCI = append(h.PCI, wire.PCIDevice{
			Address: fmt.Sprintf("0000:%02x:00.0", 0x10+i), Class: "030200", Vendor: "10de", Device: "20b5", SubVendor: "10de", SubDevice: "1533", ClassName: "3D controller",
			VendorName: "NVIDIA Corporation", DeviceName: "GA100 [A100 PCIe 80GB]", NUMANode: new(i / 4), Link: &wire.PCILink{Width: width, SpeedMTs: 2500 + i, MaxWidth: 16, MaxSpeedMTs: 16000},
		})
	}
	return h
}

func TestHardwareIsKept(t *testing.T) {
	s := newServer(t)
	a := s.discovered(idsA)
	inventory := inventoryWith(idsA)
	hardware := gpuServer()
	inventory.Disks, hardware.Disks, inventory.Hardware = hardware.Disks, nil, &hardware
	_, err := send[wire.Empty](a, http.MethodPost, wire.PathInventory, inventory)
	check(t, err)
	got := s.status(a.name).Hardware
	if got == nil || got.Incomplete != "" || got.Firmware.Microcode != "0xd0003e7" {
		t.Fatalf("%+v", got)
	}
	var devices []string
	for _, d := range got.Devices {
		devices = append(devices, fmt.Sprintf("%d x %s %s (%s) on %d: x%d of x%d, %d MT/s, %s", d.Count, d.Name, d.ID, d.Kind, *d.NUMANode, d.Link.Width, d.Link.MaxWidth, d.Link.SpeedMTs, strings.Join(d.Addresses, " ")))
	}
	want := `4 x NVIDIA GA100 [A100 PCIe 80GB] 10de:20b5 (GPU) on 0: x16 of x16, 0 MT/s, 0000:10:00.0 0000:11:00.0 0000:12:00.0 0000:13:00.0
3 x NVIDIA GA100 [A100 PCIe 80GB] 10de:20b5 (GPU) on 1: x16 of x16, 0 MT/s, 0000:14:00.0 0000:15:00.0 0000:16:00.0
1 x NVIDIA GA100 [A100 PCIe 80GB] 10de:20b5 (GPU) on 1: x8 of x16, 0 MT/s, 0000:17:00.0`
	if got := strings.Join(devices, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if len(got.MemoryModules) != 1 || got.MemoryModules[0].Size.Value() != 64<<30 || len(got.EmptyMemorySlots) != 1 || got.EmptyMemorySlots[0] != "P0 B1" {
		t.Errorf("memory: %+v, empty %q", got.MemoryModules, got.EmptyMemorySlots)
	}
	if len(got.Disks) != 1 || got.Disks[0].Serial != "S1" || got.Disks[0].Health.UsedPercent != 3 || got.Disks[0].Health.WrittenBytes < 0 {
		t.Errorf("disks: %+v", got.Disks)
	}
	// An older discovery system says nothing of hardware, and takes nothing away.
	inventory.Hardware, inventory.TPM = nil, "2.0"
	_, err = send[wire.Empty](a, http.MethodPost, wire.PathInventory, inventory)
	check(t, err)
	if is := s.status(a.name); is.Hardware == nil || is.Inventory.TPM != "2.0" {
		t.Errorf("%+v, TPM %q", is.Hardware, is.Inventory.TPM)
	}
}

func TestANodeReportsItsHardware(t *testing.T) {
	s := newServer(t)
	session, node := s.installed(idsA, "i1")
	report := func(a *agent, h wire.Hardware) error {
		_, err := send[wire.Empty](a, http.MethodPost, wire.PathHardware, h)
		return err
	}
	version := func() string {
		m, err := s.store.Get(t.Context(), node.name)
		check(t, err)
		return m.ResourceVersion
	}
	if err := report(session, gpuServer()); err == nil {
		t.Error("a session reports a node's hardware")
	}
	before := s.status(node.name).Inventory
	check(t, report(node, gpuServer()))
	is := s.status(node.name)
	if is.Hardware == nil || len(is.Hardware.Devices) != 3 || len(is.Inventory.Disks) != len(before.Disks) || is.Inventory.Disks[0].Name != before.Disks[0].Name {
		t.Fatalf("%+v, %+v", is.Hardware, is.Inventory)
	}
	// What changes all the time is no news.
	last, warmer := version(), gpuServer()
	warmer.Disks[0].Health.TemperatureCelsius, warmer.Disks[0].Health.PowerOnHours = 51, 12
	for i := range warmer.PCI {
		warmer.PCI[i].Link.SpeedMTs = 16000
	}
	check(t, report(node, warmer))
	if version() != last {
		t.Error("a warmer disk and busy GPUs were written")
	}
	s.clock.add(25 * time.Hour)
	check(t, report(node, warmer))
	if version() == last || s.status(node.name).Hardware.Disks[0].Health.TemperatureCelsius != 51 {
		t.Error("an old report is never dated anew")
	}
	last, warmer.Disks[0].Health.Warnings = version(), []string{"spare"}
	check(t, report(node, warmer))
	if version() == last {
		t.Error("a warning was not written")
	}
}

// TestHardwareFitsItsLimit: whatever a machine reports, so many bytes are kept, accelerators last, and it is said.
func TestHardwareFitsItsLimit(t *testing.T) {
	in := gpuServer()
	for i := range 300 {
		in.PCI = append(in.PCI, wire.PCIDevice{Address: fmt.Sprint(i), Class: "020000", Vendor: "8086", Device: fmt.Sprintf("%04x", i), VendorName: strings.Repeat("v", 200), DeviceName: "d"})
		in.MemorySlots = append(in.MemorySlots, wire.MemorySlot{Slot: fmt.Sprint(i), SizeBytes: 1 << 30, Serial: strings.Repeat("s", 200)}, wire.MemorySlot{Slot: "empty"})
		in.Disks = append(in.Disks, wire.Disk{Name: fmt.Sprint(i), Transport: "sas", Serial: strings.Repeat("s", 200)})
	}
	for _, limit := range []int{maxHardware, 4 << 10, 1 << 10, leastHardware, -5} {
		h := hardwareOf(in, in.Disks)
		if len(h.Devices) > maxDevices || len(h.MemoryModules) > maxModules || len(h.EmptyMemorySlots) > maxModules || len(h.Disks) > maxDisks || h.Devices[0].Kind != v1alpha1.AcceleratorGPU {
			t.Fatalf("more than the API allows: %d devices, %d modules, %d empty slots, %d disks", len(h.Devices), len(h.MemoryModules), len(h.EmptyMemorySlots), len(h.Disks))
		}
		h = fittedHardware(h, limit)
		if n := sizeOf(h); n > max(limit, leastHardware) || h.Incomplete == "" {
			t.Errorf("limit %d: %d bytes, %q", limit, n, h.Incomplete)
		}
		if limit >= 4<<10 && (len(h.Devices) == 0 || h.Devices[0].Kind != v1alpha1.AcceleratorGPU) {
			t.Errorf("limit %d: the accelerators are gone", limit)
		}
	}
	if h := fittedHardware(hardwareOf(gpuServer(), nil), maxHardware); h.Incomplete != "" {
		t.Errorf("a usual server does not fit: %s", h.Incomplete)
	}
}

func TestKinds(t *testing.T) {
	for _, tt := range []struct {
		name, id, class, address string
		rdma                     bool
		want                     v1alpha1.AcceleratorKind
	}{
		{"A100", "10de:20b5", "030200", "0000:17:00.0", false, v1alpha1.AcceleratorGPU},
		{"a card that draws, too", "10de:1eb8", "030000", "0000:17:00.0", false, v1alpha1.AcceleratorGPU},
		{"MI210", "1002:740f", "038000", "0000:17:00.0", false, v1alpha1.AcceleratorGPU},
		{"Ponte Vecchio", "8086:0bd5", "038000", "0000:29:00.0", false, v1alpha1.AcceleratorGPU},
		{"graphics of an Intel processor", "8086:a780", "030000", "0000:00:02.0", false, ""},
		{"a BMC's graphics", "1a03:2000", "030000", "0000:03:00.0", false, ""},
		{"a hypervisor's graphics", "1234:1111", "030000", "0000:01:01.0", false, ""},
		{"Gaudi2", "1da3:1020", "120000", "0000:19:00.0", false, v1alpha1.AcceleratorOther},
		{"QAT", "8086:4940", "0b4000", "0000:6b:00.0", false, v1alpha1.AcceleratorOther},
		{"BlueField-2", "15b3:a2d6", "020000", "0000:82:00.0", true, v1alpha1.AcceleratorDPU},
		{"ConnectX with a driver for RDMA", "15b3:1017", "020000", "0000:81:00.0", true, v1alpha1.AcceleratorRDMA},
		{"ConnectX without", "15b3:1017", "020000", "0000:81:00.0", false, ""},
		{"nonsense", "x:y", "", "", false, ""},
	} {
		vendor, device, _ := strings.Cut(tt.id, ":")
		if got := kindOf(wire.PCIDevice{Vendor: vendor, Device: device, Class: tt.class, Address: tt.address, RDMA: tt.rdma}); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestVendorsAsPeopleSayThem(t *testing.T) {
	for vendor, want := range map[string]string{
		"NVIDIA Corporation": "NVIDIA", "Advanced Micro Devices, Inc. [AMD/ATI]": "AMD", "Broadcom Inc. and subsidiaries": "Broadcom", "Habana Labs Ltd.": "Habana Labs",
		"Mellanox Technologies": "Mellanox", "Samsung Electronics Co Ltd": "Samsung Electronics", "AMD Pensando Systems": "AMD Pensando", "Systems": "Systems", "[]": "[]", "": "",
	} {
		if got := brief(vendor); got != want {
			t.Errorf("%q: %q, want %q", vendor, got, want)
		}
	}
}
