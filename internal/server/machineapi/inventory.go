package machineapi

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/machine/identify"
)

// Limits of a reported inventory: large enough for any server, small enough for an object.
const (
	maxDisks    = 256
	maxNICs     = 64
	maxContents = 16
	maxText     = 128
	// maxInventory is how many bytes all of it may have, as JSON, with the hardware. A server with 60 disks has some 30,000.
	maxInventory = 64 << 10
)

// What machines that nobody approved may write into the store by their inventories, bytes: the store keeps what was written for a
// quarter of an hour. A rack of a thousand machines that is powered on writes some 6 MB.
const (
	strangersBytesPerSecond = 1 << 20
	strangersBytesAtOnce    = 64 << 20
)

// strangersInventories is what the inventories of machines that nobody approved share, bytes: each may have its part of it by their
// number, or leastInventory. The full cap is for the first thousand. All that they can fill is then some 210 MiB, with 10,000 of them.
const (
	strangersInventories = 64 << 20
	leastInventory       = 4 << 10
)

// inventoryLimit of one of so many strangers.
func inventoryLimit(strangers int) int {
	return min(maxInventory, max(leastInventory, strangersInventories/max(strangers, 1)))
}

// unchangedFor is how long an inventory that stays the same is not written again.
const unchangedFor = time.Hour

// inventory records what the machine consists of.
func (a *API) inventory(ctx context.Context, c call, in wire.Inventory) (any, error) {
	m, known := a.Fleet.Get(c.peer.machine)
	limit := maxInventory
	if known && fleet.IsStranger(m) {
		limit = inventoryLimit(a.Fleet.Strangers())
	}
	report, cut := fitted(inventoryOf(in), limit-leastHardware)
	report.ReportedAt = metav1.NewTime(a.Now())
	var built *v1alpha1.Hardware
	if in.Hardware != nil {
		// It has its share of what is left.
		built = fittedHardware(hardwareOf(*in.Hardware, in.Disks), min(maxHardware, limit-size(report)))
		built.ReportedAt = report.ReportedAt
	}
	if known && sameInventory(m.Status.Inventory, report) && (built == nil || sameHardware(m.Status.Hardware, built, unchangedFor)) {
		a.Fleet.Contacted(m.Name, address(c.request))
		return wire.Empty{}, nil
	}
	if known && fleet.IsStranger(m) && !a.strangers.AllowN(a.Now(), size(report)+sizeOf(built)) {
		return nil, refuse(http.StatusTooManyRequests, wire.CodeConflict, "machines that nobody approved report more than %d bytes of inventory a second; ask again", strangersBytesPerSecond)
	}
	m, err := a.update(ctx, c.peer.machine, func(m *v1alpha1.Machine) error {
		m.Status.Inventory = report
		if built != nil { // an older discovery system tells nothing of it
			m.Status.Hardware = built
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.Fleet.Contacted(m.Name, address(c.request))
	a.Fleet.Log(m.Name, fmt.Sprintf("inventory: %s %s, %d disks, %d NICs", report.System.Vendor, report.System.Product, len(report.Disks), len(report.NICs)))
	if cut != "" {
		a.Fleet.Log(m.Name, "inventory: "+cut)
	}
	return wire.Empty{}, nil
}

// sameInventory says whether a report tells nothing new, and is not old enough to be dated anew.
func sameInventory(known, report *v1alpha1.Inventory) bool {
	if known == nil || report.ReportedAt.Sub(known.ReportedAt.Time) > unchangedFor {
		return false
	}
	dated := known.DeepCopy()
	dated.ReportedAt = report.ReportedAt
	return apiequality.Semantic.DeepEqual(dated, report)
}

func size(report *v1alpha1.Inventory) int { return sizeOf(report) }

// fitted cuts an inventory to so many bytes: first what is on the disks, then disks, then interfaces, the last ones first. cut says what
// is missing.
func fitted(report *v1alpha1.Inventory, limit int) (_ *v1alpha1.Inventory, cut string) {
	if size(report) <= limit {
		return report, ""
	}
	for i := range report.Disks {
		report.Disks[i].Contents = nil
	}
	// A disk that bears an installation keeps the machine from being installed by itself.
	slices.SortStableFunc(report.Disks, func(a, b v1alpha1.Disk) int { return cmp.Compare(min(len(b.Marker), 1), min(len(a.Marker), 1)) })
	all := len(report.Disks)
	for size(report) > limit && len(report.Disks) > 0 {
		report.Disks = report.Disks[:len(report.Disks)*3/4]
	}
	interfaces := len(report.NICs)
	for size(report) > limit && len(report.NICs) > 0 {
		report.NICs = report.NICs[:len(report.NICs)*3/4]
	}
	return report, fmt.Sprintf("it is larger than %d bytes; left out: what is on the disks, %d of %d disks, %d of %d interfaces",
		limit, all-len(report.Disks), all, interfaces-len(report.NICs), interfaces)
}

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
	out.Marker = text(d.Marker)
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
