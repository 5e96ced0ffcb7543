package wire

// Hardware is what a machine is built of: a part of the inventory in discovery, and a report of its own of an installed node.
// What the agent cannot find out is left out.
type Hardware struct {
	Firmware Firmware    `json:"firmware"`
	PCI      []PCIDevice `json:"pci,omitempty"`
	// MemorySlots are all slots for memory modules that the firmware tells of, also the empty ones.
	MemorySlots []MemorySlot `json:"memorySlots,omitempty"`
	// Disks are without contents.
	Disks []Disk `json:"disks,omitempty"`
}

// Firmware is the versions of what runs below the operating system.
type Firmware struct {
	BIOSVersion string `json:"biosVersion,omitempty"`
	BIOSDate    string `json:"biosDate,omitempty"` // as the vendor writes it, mostly MM/DD/YYYY
	// BMC is the version of the management controller's firmware, "2.14".
	BMC string `json:"bmc,omitempty"`
	// Microcode of the processors, "0xd0003e7"; several with a comma where they differ.
	Microcode string `json:"microcode,omitempty"`
}

// PCIDevice is one function of a PCI device. Bridges, what belongs to the chipset, and virtual functions are left out.
type PCIDevice struct {
	Address   string `json:"address"`             // "0000:65:00.0"
	Class     string `json:"class"`               // six hex digits: base class, subclass, programming interface
	Vendor    string `json:"vendor"`              // four hex digits, as the following
	Device    string `json:"device"`              //
	SubVendor string `json:"subVendor,omitempty"` //
	SubDevice string `json:"subDevice,omitempty"` //
	// Names by the list pci.ids, where the system has one.
	ClassName  string `json:"className,omitempty"`
	VendorName string `json:"vendorName,omitempty"`
	DeviceName string `json:"deviceName,omitempty"`
	Driver     string `json:"driver,omitempty"`
	// NUMANode that it is attached to; nil where there is only one, or it is unknown.
	NUMANode *int     `json:"numaNode,omitempty"`
	Link     *PCILink `json:"link,omitempty"` // nil for what has none
	// RDMA is true while a driver offers remote direct memory access with it.
	RDMA bool `json:"rdma,omitempty"`
}

// PCILink is how a device is connected. Speeds are of one lane, in MT/s: 2500, 5000, 8000, 16000, 32000 or 64000.
type PCILink struct {
	Width    int `json:"width"`
	SpeedMTs int `json:"speedMTs"`
	// MaxWidth and MaxSpeedMTs are what the device and the port above it can do both.
	MaxWidth    int `json:"maxWidth"`
	MaxSpeedMTs int `json:"maxSpeedMTs"`
}

// MemorySlot is a slot for a memory module.
type MemorySlot struct {
	Slot string `json:"slot,omitempty"` // as the board names it: "DIMM_A1"
	Bank string `json:"bank,omitempty"`
	// SizeBytes is 0 for an empty slot.
	SizeBytes int64  `json:"sizeBytes,omitempty"`
	Type      string `json:"type,omitempty"` // "DDR5"
	ECC       bool   `json:"ecc,omitempty"`
	// SpeedMTs that the module runs at, and MaxSpeedMTs that it can.
	SpeedMTs     int    `json:"speedMTs,omitempty"`
	MaxSpeedMTs  int    `json:"maxSpeedMTs,omitempty"`
	Manufacturer string `json:"manufacturer,omitempty"`
	PartNumber   string `json:"partNumber,omitempty"`
	Serial       string `json:"serial,omitempty"`
}

// DiskHealth is the SMART / Health Information of an NVMe disk.
type DiskHealth struct {
	// Warnings that the disk itself raises: spare, temperature, reliability, read-only, backup, persistent-memory.
	Warnings []string `json:"warnings,omitempty"`
	// UsedPercent of the life that the vendor promises; it may pass 100.
	UsedPercent           int `json:"usedPercent"`
	SparePercent          int `json:"sparePercent"`
	SpareThresholdPercent int `json:"spareThresholdPercent"`
	TemperatureCelsius    int `json:"temperatureCelsius"`
	// The following count since the disk was made.
	PowerOnHours    uint64 `json:"powerOnHours"`
	UnsafeShutdowns uint64 `json:"unsafeShutdowns"`
	MediaErrors     uint64 `json:"mediaErrors"`
	WrittenBytes    uint64 `json:"writtenBytes"`
}
