package v1alpha1

import (
	"maps"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AnnotationAcceptHardware on a Machine accepts the hardware that it reports, in place of what was accepted before: the digest that
// "coldrack machines accept-hardware" computes of it. It does nothing when the machine reports something else by then.
const AnnotationAcceptHardware = "coldrack.dev/accept-hardware"

// LabelAccelerator begins the labels that count accelerators, by vendor and device and by name: "coldrack.dev/accelerator.10de-20b5: 8" and
// "coldrack.dev/accelerator.nvidia-a100-pcie-80gb: 8". Nodes of clusters get them, and the selectors of MachineGroups and
// EnrollmentPolicies can ask for them.
const LabelAccelerator = "coldrack.dev/accelerator."

// Hardware is what a machine is built of, as it reported last: in discovery, and when its node started or twelve hours have passed.
type Hardware struct {
	ReportedAt metav1.Time `json:"reportedAt"`
	// +optional
	Firmware FirmwareVersions `json:"firmware,omitempty"`
	// Devices on PCI buses, equal ones together. Bridges and what belongs to the chipset are left out.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=96
	Devices []PCIDevice `json:"devices,omitempty"`
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=128
	MemoryModules []MemoryModule `json:"memoryModules,omitempty"`
	// EmptyMemorySlots as the board names them.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=128
	EmptyMemorySlots []string `json:"emptyMemorySlots,omitempty"`
	// Disks that are built in, and how they are.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Disks []DiskState `json:"disks,omitempty"`
	// Incomplete says what was left out because the report is too large; such hardware is not compared.
	// +optional
	Incomplete string `json:"incomplete,omitempty"`
}

// FirmwareVersions of what runs below the operating system.
type FirmwareVersions struct {
	BIOSVersion string `json:"biosVersion,omitempty"`
	// BIOSDate as the vendor writes it.
	BIOSDate string `json:"biosDate,omitempty"`
	BMC      string `json:"bmc,omitempty"`
	// Microcode of the processors.
	Microcode string `json:"microcode,omitempty"`
}

// AcceleratorKind says what a device is for. Empty is any other device.
// +kubebuilder:validation:Enum="";GPU;Accelerator;DPU;RDMA
type AcceleratorKind string

const (
	AcceleratorGPU AcceleratorKind = "GPU"
	// AcceleratorOther is a processing accelerator or a coprocessor.
	AcceleratorOther AcceleratorKind = "Accelerator"
	// AcceleratorDPU is a network interface with an operating system of its own.
	AcceleratorDPU AcceleratorKind = "DPU"
	// AcceleratorRDMA is a network interface with which the running system offers RDMA.
	AcceleratorRDMA AcceleratorKind = "RDMA"
)

// PCIDevice is one device, or several that are equal.
type PCIDevice struct {
	// ID is vendor and device, "10de:20b5".
	ID string `json:"id"`
	// Subsystem is its vendor and device, "10de:1533".
	Subsystem string `json:"subsystem,omitempty"`
	// Name of vendor and device, where the machine has a list of names.
	Name string `json:"name,omitempty"`
	// Class is six hex digits.
	Class string `json:"class"`
	// ClassName such as "3D controller", where the machine has a list of names.
	ClassName string `json:"className,omitempty"`
	// +optional
	Kind  AcceleratorKind `json:"kind,omitempty"`
	Count int32           `json:"count"`
	// Addresses of the first of them.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Addresses []string `json:"addresses,omitempty"`
	// NUMANode that they are attached to.
	// +optional
	NUMANode *int32 `json:"numaNode,omitempty"`
	// +optional
	Link *PCILink `json:"link,omitempty"`
}

// PCILink is how a device is connected. Speeds are of one lane, in MT/s.
type PCILink struct {
	Width int32 `json:"width"`
	// SpeedMTs is 0 for GPUs and accelerators, which lower it while they idle.
	SpeedMTs int32 `json:"speedMTs"`
	// MaxWidth and MaxSpeedMTs are what the device and the port above it can do both.
	MaxWidth    int32 `json:"maxWidth"`
	MaxSpeedMTs int32 `json:"maxSpeedMTs"`
}

// MemoryModule is a memory module in its slot.
type MemoryModule struct {
	// Slot as the board names it.
	Slot string            `json:"slot,omitempty"`
	Size resource.Quantity `json:"size"`
	Type string            `json:"type,omitempty"`
	ECC  bool              `json:"ecc,omitempty"`
	// SpeedMTs that it runs at, and MaxSpeedMTs that it can; 0 is unknown.
	SpeedMTs     int32  `json:"speedMTs,omitempty"`
	MaxSpeedMTs  int32  `json:"maxSpeedMTs,omitempty"`
	Manufacturer string `json:"manufacturer,omitempty"`
	PartNumber   string `json:"partNumber,omitempty"`
	Serial       string `json:"serial,omitempty"`
}

// DiskState is how a disk is.
type DiskState struct {
	// Name is the kernel's name of this boot.
	Name     string            `json:"name"`
	Model    string            `json:"model,omitempty"`
	Serial   string            `json:"serial,omitempty"`
	WWN      string            `json:"wwn,omitempty"`
	Size     resource.Quantity `json:"size"`
	Firmware string            `json:"firmware,omitempty"`
	// State of a disk that the kernel does not use as usual, such as offline.
	// +optional
	State string `json:"state,omitempty"`
	// Health is what an NVMe disk says of itself.
	// +optional
	Health *DiskHealth `json:"health,omitempty"`
}

// DiskHealth is the SMART / Health Information of an NVMe disk.
type DiskHealth struct {
	// Warnings that the disk itself raises: spare, temperature, reliability, read-only, backup, persistent-memory.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	Warnings []string `json:"warnings,omitempty"`
	// UsedPercent of the life that its vendor promises; it may pass 100.
	UsedPercent           int32 `json:"usedPercent"`
	SparePercent          int32 `json:"sparePercent"`
	SpareThresholdPercent int32 `json:"spareThresholdPercent"`
	TemperatureCelsius    int32 `json:"temperatureCelsius"`
	// These count since the disk was made.
	PowerOnHours    int64 `json:"powerOnHours"`
	UnsafeShutdowns int64 `json:"unsafeShutdowns"`
	MediaErrors     int64 `json:"mediaErrors"`
	WrittenBytes    int64 `json:"writtenBytes"`
}

// AcceptedHardware is what a machine is meant to be built of: what it reported when it was approved, what was added since, and what a
// person accepted.
type AcceptedHardware struct {
	At metav1.Time `json:"at"`
	// Digest that a person accepted, if one did.
	// +optional
	Digest string `json:"digest,omitempty"`
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=512
	Parts []HardwarePart `json:"parts,omitempty"`
}

// PartKind is what a HardwarePart is.
// +kubebuilder:validation:Enum=Disk;MemoryModule;Device;SlowLink
type PartKind string

const (
	PartDisk         PartKind = "Disk"
	PartMemoryModule PartKind = "MemoryModule"
	PartDevice       PartKind = "Device"
	// PartSlowLink is a link that is slower than it could be.
	PartSlowLink PartKind = "SlowLink"
)

// HardwarePart is something that a machine has.
type HardwarePart struct {
	Kind PartKind `json:"kind"`
	// ID tells it from others of its kind: a serial number, slot and serial number, vendor and device, or an address.
	ID string `json:"id"`
	// Name for people.
	Name string `json:"name,omitempty"`
	// Accelerator says of a device whether it counts as one.
	// +optional
	Accelerator AcceleratorKind `json:"accelerator,omitempty"`
	Count       int32           `json:"count"`
	// Width and SpeedMTs of a link.
	// +optional
	Width int32 `json:"width,omitempty"`
	// +optional
	SpeedMTs int32 `json:"speedMTs,omitempty"`
}

// SelectorLabels are what selectors see of a machine: its labels, and those that count its accelerators.
func (m *Machine) SelectorLabels() map[string]string {
	labels := m.AcceleratorLabels()
	maps.Copy(labels, m.Labels)
	return labels
}

// AcceleratorLabels count the machine's accelerators: those that were accepted, so that a device that fails does not take a node out of
// its group; before anything was accepted, those that the machine reports.
func (m *Machine) AcceleratorLabels() map[string]string {
	counts := map[string]int32{}
	add := func(kind AcceleratorKind, name, id string, count int32) {
		if kind == "" || count <= 0 {
			return
		}
		byID, byName := acceleratorName(id), acceleratorName(name)
		if byID != "" {
			counts[LabelAccelerator+byID] += count
		}
		if byName != "" && byName != byID {
			counts[LabelAccelerator+byName] += count
		}
	}
	switch {
	case m.Status.AcceptedHardware != nil:
		for _, p := range m.Status.AcceptedHardware.Parts {
			if p.Kind == PartDevice {
				add(p.Accelerator, p.Name, p.ID, p.Count)
			}
		}
	case m.Status.Hardware != nil:
		for _, d := range m.Status.Hardware.Devices {
			add(d.Kind, d.Name, d.ID, d.Count)
		}
	}
	labels := map[string]string{}
	for key, n := range counts {
		labels[key] = strconv.Itoa(int(n))
	}
	return labels
}

// acceleratorName makes a part of a label's key of a device's name: "nvidia-a100-pcie-80gb" of "NVIDIA GA100 [A100 PCIe 80GB]". What people
// know it by stands in brackets. It is empty where nothing of the name can be in a key.
func acceleratorName(name string) string {
	const longest = 63 - len("accelerator.")
	if vendor, rest, ok := strings.Cut(name, " "); ok {
		if open, end := strings.LastIndex(rest, "["), strings.LastIndex(rest, "]"); open >= 0 && end > open {
			rest = rest[open+1 : end]
		}
		name = vendor + " " + rest
	}
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
	name = strings.Join(words, "-")
	return strings.Trim(name[:min(len(name), longest)], "-")
}
