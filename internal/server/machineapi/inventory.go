package machineapi

import (
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/identify"
	"coldrack.dev/internal/termtext"
	"coldrack.dev/internal/wire"
)

// Limits of a reported inventory: large enough for any server, small enough for an object.
const (
	maxDisks    = 256
	maxNICs     = 64
	maxContents = 64
	maxText     = 128
)

func text(s string) string { return termtext.Line(s, maxText) }

func quantity(bytes int64) resource.Quantity {
	return *resource.NewQuantity(max(bytes, 0), resource.BinarySI)
}

// inventoryOf turns what a machine reported into what its status holds, cut to size.
func inventoryOf(in wire.Inventory) *v1alpha1.Inventory {
	out := &v1alpha1.Inventory{
		System: v1alpha1.SystemInfo{
			Vendor: text(in.System.Vendor), Product: text(in.System.Product),
			Serial: text(in.System.Serial), UUID: text(in.System.UUID),
			AssetTag: text(in.System.AssetTag), ChassisSerial: text(in.System.ChassisSerial), BIOSVersion: text(in.System.BIOSVersion),
		},
		CPU: v1alpha1.CPUInfo{
			Model: text(in.CPU.Model), Sockets: int32(in.CPU.Sockets), Cores: int32(in.CPU.Cores), Threads: int32(in.CPU.Threads),
		},
		Memory:   quantity(in.MemoryBytes),
		Firmware: text(in.Firmware), SecureBoot: in.SecureBoot, TPM: text(in.TPM),
	}
	for _, d := range in.Disks[:min(len(in.Disks), maxDisks)] {
		out.Disks = append(out.Disks, diskOf(d))
	}
	for _, n := range in.NICs[:min(len(in.NICs), maxNICs)] {
		out.NICs = append(out.NICs, nicOf(n))
	}
	if in.BMC != nil {
		out.BMC = &v1alpha1.BMCInfo{Address: text(in.BMC.Address), MAC: text(in.BMC.MAC)}
	}
	// What the machine calls itself elsewhere counts too: a NIC without a driver is in no list of NICs.
	for _, mac := range in.Identifiers.MACs {
		mac = identify.MAC(mac)
		known := mac == "" || slices.ContainsFunc(out.NICs, func(n v1alpha1.NIC) bool { return n.MAC == mac })
		if !known && len(out.NICs) < maxNICs {
			out.NICs = append(out.NICs, v1alpha1.NIC{MAC: mac})
		}
	}
	if out.System.UUID == "" {
		out.System.UUID = text(in.Identifiers.UUID)
	}
	if out.System.Serial == "" {
		out.System.Serial = text(in.Identifiers.Serial)
	}
	return out
}

func diskOf(d wire.Disk) v1alpha1.Disk {
	out := v1alpha1.Disk{
		Name: text(d.Name), Model: text(d.Model), Vendor: text(d.Vendor), Serial: text(d.Serial), WWN: text(d.WWN),
		Size: quantity(d.SizeBytes), Rotational: d.Rotational, Transport: text(d.Transport), ReadOnly: d.ReadOnly, Removable: d.Removable,
	}
	if len(d.ByID) > 0 {
		out.ByID = termtext.Line(d.ByID[0], 2*maxText)
	}
	for _, line := range d.Contents[:min(len(d.Contents), maxContents)] {
		out.Contents = append(out.Contents, text(line))
	}
	return out
}

func nicOf(n wire.NIC) v1alpha1.NIC {
	out := v1alpha1.NIC{
		Name: text(n.Name), MAC: text(n.MAC), Driver: text(n.Driver), Link: n.Link, SpeedMbps: int32(n.SpeedMbps), Boot: n.Boot, Bus: text(n.Bus),
	}
	if mac := identify.MAC(n.MAC); mac != "" {
		out.MAC = mac
	}
	if l := n.LLDP; l != nil {
		out.LLDP = &v1alpha1.LLDPNeighbour{
			ChassisID: text(l.ChassisID), SystemName: text(l.SystemName), PortID: text(l.PortID), PortDesc: text(l.PortDesc), VLAN: int32(l.VLAN),
		}
	}
	return out
}
