package drift

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"

	"coldrack.dev/api/v1alpha1"
)

const gib = 1 << 30

func bytes(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.BinarySI) }

// server has two disks, two memory modules, four GPUs and a network card.
func server() *v1alpha1.Hardware {
	return &v1alpha1.Hardware{
		Disks: []v1alpha1.DiskState{
			{Name: "nvme0n1", Model: "P5500", Serial: "S1", Size: bytes(1024 * gib), Health: &v1alpha1.DiskHealth{UsedPercent: 3}},
			{Name: "nvme1n1", Model: "P5500", Serial: "S2", Size: bytes(1024 * gib), Health: &v1alpha1.DiskHealth{UsedPercent: 3}},
		},
		MemoryModules: []v1alpha1.MemoryModule{
			{Slot: "A1", Serial: "M1", Size: bytes(64 * gib), Type: "DDR5"},
			{Slot: "B1", Serial: "M2", Size: bytes(64 * gib), Type: "DDR5"},
		},
		Devices: []v1alpha1.PCIDevice{
			{ID: "10de:20b5", Name: "NVIDIA A100", Class: "030200", Kind: v1alpha1.AcceleratorGPU, Count: 2, Addresses: []string{"0000:17:00.0", "0000:31:00.0"}, NUMANode: new(int32(0)), Link: &v1alpha1.PCILink{Width: 16, MaxWidth: 16, MaxSpeedMTs: 16000}},
			{ID: "10de:20b5", Name: "NVIDIA A100", Class: "030200", Kind: v1alpha1.AcceleratorGPU, Count: 2, Addresses: []string{"0000:b1:00.0", "0000:ca:00.0"}, NUMANode: new(int32(1)), Link: &v1alpha1.PCILink{Width: 16, MaxWidth: 16, MaxSpeedMTs: 16000}},
			{ID: "15b3:1017", Class: "020000", Count: 1, Addresses: []string{"0000:81:00.0"}, Link: &v1alpha1.PCILink{Width: 16, SpeedMTs: 8000, MaxWidth: 16, MaxSpeedMTs: 8000}},
			{ID: "8086:0b60", Class: "010802", Count: 2, Addresses: []string{"0000:65:00.0", "0000:66:00.0"}, Link: &v1alpha1.PCILink{Width: 4, SpeedMTs: 16000, MaxWidth: 4, MaxSpeedMTs: 16000}},
		},
	}
}

func TestCompare(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*v1alpha1.Hardware)
		want   string
	}{
		"nothing": {func(*v1alpha1.Hardware) {}, ""},
		"a disk is gone": {func(h *v1alpha1.Hardware) {
			h.Disks = h.Disks[:1]
			h.Devices[3].Count = 1
		}, "Missing: missing: disk S2 (P5500, 1TiB)"},
		"a disk has another name": {func(h *v1alpha1.Hardware) { h.Disks[0].Name, h.Disks[1].Name = "nvme1n1", "nvme0n1" }, ""},
		"a disk was replaced":     {func(h *v1alpha1.Hardware) { h.Disks[1].Serial = "S3" }, "Missing: missing: disk S2 (P5500, 1TiB); new: disk S3 (P5500, 1TiB)"},
		"a disk was added": {func(h *v1alpha1.Hardware) {
			h.Disks = append(h.Disks, v1alpha1.DiskState{Name: "sda", Serial: "S9"})
		}, ""},
		"a memory module is not seen":        {func(h *v1alpha1.Hardware) { h.MemoryModules = h.MemoryModules[:1] }, "Missing: missing: memory module B1 M2 (64GiB DDR5)"},
		"a memory module is in another":      {func(h *v1alpha1.Hardware) { h.MemoryModules[1].Slot = "C1" }, "Missing: missing: memory module B1 M2 (64GiB DDR5); new: memory module C1 M2 (64GiB DDR5)"},
		"a GPU fell off its bus":             {func(h *v1alpha1.Hardware) { h.Devices[1].Count, h.Devices[1].Addresses = 1, h.Devices[1].Addresses[:1] }, "Missing: missing: 1 of 4 NVIDIA A100 (10de:20b5)"},
		"a card without a name":              {func(h *v1alpha1.Hardware) { h.Devices = append(h.Devices[:2:2], h.Devices[3]) }, "Missing: missing: 15b3:1017"},
		"a GPU has half of its lanes":        {func(h *v1alpha1.Hardware) { h.Devices[1].Link.Width = 8 }, "Degraded: degraded: 0000:b1:00.0 link x8 instead of x16 (NVIDIA A100), 0000:ca:00.0 link x8 instead of x16 (NVIDIA A100)"},
		"a card has slower lanes":            {func(h *v1alpha1.Hardware) { h.Devices[2].Link.SpeedMTs = 2500 }, "Degraded: degraded: 0000:81:00.0 2.5 instead of 8 GT/s (15b3:1017)"},
		"an NVMe disk has half of its lanes": {func(h *v1alpha1.Hardware) { h.Devices[3].Link.Width = 2 }, "Degraded: degraded: 0000:65:00.0 link x2 instead of x4 (8086:0b60), 0000:66:00.0 link x2 instead of x4 (8086:0b60)"},
		"a card moved to another bus": {func(h *v1alpha1.Hardware) {
			h.Devices[2].Addresses, h.Devices[2].NUMANode = []string{"0000:01:00.0"}, new(int32(1))
		}, ""},
		"another driver offers RDMA now": {func(h *v1alpha1.Hardware) { h.Devices[2].Kind = v1alpha1.AcceleratorRDMA }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			accepted, changed := Accept(nil, Parts(server()), "")
			if !changed {
				t.Fatal("nothing was accepted of a machine that was approved")
			}
			h := server()
			tt.change(h)
			got := ""
			if d := Compare(accepted.Parts, Parts(h)); !d.None() {
				got = d.Reason() + ": " + d.Message()
			}
			if got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestAccept(t *testing.T) {
	first, _ := Accept(nil, Parts(server()), "")
	lost := server()
	lost.Disks = lost.Disks[:1]
	lost.Devices[1].Link.Width = 8
	parts := Parts(lost)
	if _, changed := Accept(first, Parts(server()), ""); changed {
		t.Error("the same hardware is accepted again and again")
	}
	if is, changed := Accept(first, parts, ""); changed || is != first {
		t.Error("a disk that is gone was accepted though nobody did")
	}
	if _, changed := Accept(first, parts, Digest(Parts(server()))); changed {
		t.Error("what a person accepted is not what the machine reports now, and was accepted")
	}
	second, changed := Accept(first, parts, Digest(parts))
	if !changed || !Compare(second.Parts, parts).None() || second.Digest != Digest(parts) {
		t.Fatalf("what a person accepted was not: %+v", second)
	}
	if _, changed := Accept(second, parts, Digest(parts)); changed {
		t.Error("an acceptance is carried out twice")
	}
	// A slow link that was accepted is told of when it becomes slower.
	lost.Devices[1].Link.Width = 4
	if d := Compare(second.Parts, Parts(lost)); len(d.Degraded) != 2 {
		t.Errorf("%+v", d)
	}
	lost.Devices[1].Link.Width = 8
	// What is added is meant to be there from then on, and the accepted slow links stay so.
	lost.MemoryModules = append(lost.MemoryModules, v1alpha1.MemoryModule{Slot: "C1", Serial: "M3", Size: bytes(gib)})
	third, changed := Accept(second, Parts(lost), Digest(parts))
	if !changed || !Compare(third.Parts, Parts(lost)).None() {
		t.Errorf("an addition was not taken: %+v", Compare(third.Parts, Parts(lost)))
	}
	if d := Compare(third.Parts, parts); d.Message() != "missing: memory module C1 M3 (1GiB)" {
		t.Errorf("the addition is gone again: %q", d.Message())
	}
	// Another list of names changes no label.
	renamed := server()
	renamed.Devices[0].Name, renamed.Devices[1].Name, renamed.Devices[2].Name = "NVIDIA A100 PCIe", "NVIDIA A100 PCIe", "Mellanox ConnectX-5"
	is, changed := Accept(first, Parts(renamed), "")
	if gpu, _ := find(is.Parts, v1alpha1.HardwarePart{Kind: v1alpha1.PartDevice, ID: "10de:20b5"}); gpu.Name != "NVIDIA A100" {
		t.Errorf("a GPU was renamed: %+v", gpu)
	}
	if card, _ := find(is.Parts, v1alpha1.HardwarePart{Kind: v1alpha1.PartDevice, ID: "15b3:1017"}); !changed || card.Name != "Mellanox ConnectX-5" {
		t.Errorf("a name that was not known is not taken: %+v", card)
	}
	// A system without a list of names, or without the driver, takes nothing back.
	bare := server()
	for i := range bare.Devices {
		bare.Devices[i].Name, bare.Devices[i].Kind = "", ""
	}
	if is, changed := Accept(first, Parts(bare), ""); changed {
		t.Error(cmp.Diff(first.Parts, is.Parts))
	}
}

func TestALongListIsCut(t *testing.T) {
	h := &v1alpha1.Hardware{}
	for i := range 60 {
		h.Disks = append(h.Disks, v1alpha1.DiskState{Name: "sd", Serial: fmt.Sprintf("S%02d", i), State: "offline"})
	}
	d := Compare(Parts(h), nil)
	if got := d.Message(); len(d.Missing) != 60 || !strings.HasSuffix(got, "and 52 more") || len(got) > 400 {
		t.Error(got)
	}
	if got := Failing(h); !strings.HasSuffix(got, "; and 52 more") {
		t.Error(got)
	}
}

func TestFailing(t *testing.T) {
	h := server()
	if got := Failing(h); got != "" {
		t.Error(got)
	}
	h.Disks[0].Health = &v1alpha1.DiskHealth{Warnings: []string{"spare", "reliability"}, UsedPercent: 104}
	h.Disks[1].State = "dead"
	if got := Failing(h); got != "nvme0n1 S1: it warns of spare, reliability, 104% of its life is used; nvme1n1 S2: the kernel says dead" {
		t.Error(got)
	}
}
