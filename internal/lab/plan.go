package lab

import (
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// Firmware is what a machine starts with.
type Firmware string

const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
	// Mixed alternates: odd machines have a BIOS, even ones UEFI. No single machine is Mixed.
	Mixed Firmware = "mixed"
)

// of gives the firmware of one machine.
func (f Firmware) of(index int) Firmware {
	switch {
	case f != Mixed:
		return f
	case index%2 == 1:
		return BIOS
	}
	return UEFI
}

// Bus is how disks are attached.
type Bus string

const (
	SCSI   Bus = "scsi"   // virtio-scsi: sda, with serial number and WWN
	Virtio Bus = "virtio" // virtio-blk: vda
	NVMe   Bus = "nvme"   // nvme0n1
	SATA   Bus = "sata"   // AHCI: sda
)

// Manufacturer and Product are what the SMBIOS of every lab machine says.
const (
	Manufacturer = "Coldrack Lab"
	Product      = "Virtual Machine"
)

const (
	// MaxMachines is what the last byte of an address in a /24 allows.
	MaxMachines = 250
	maxNICs     = 8
	maxDisks    = 8
)

// Size is a number of bytes that reads and writes as 2GiB. It is a flag value.
type Size int64

const (
	MiB Size = 1 << 20
	GiB Size = 1 << 30
)

// ParseSize reads a whole number with a unit: KiB, MiB, GiB or TiB; the B, or iB, may be left out. Units are binary.
func ParseSize(text string) (Size, error) {
	number := strings.TrimRight(text, "kKMGTiB")
	unit := strings.TrimSuffix(strings.TrimSuffix(text[len(number):], "B"), "i")
	value, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
	shift, known := map[string]int{"k": 10, "K": 10, "M": 20, "G": 30, "T": 40}[unit]
	if err != nil || !known || value <= 0 || value > 1<<62>>shift {
		return 0, fmt.Errorf("%q is not a size: write a whole number and its unit, for example 512MiB or 8GiB", text)
	}
	return Size(value << shift), nil
}

func (s Size) String() string {
	for _, unit := range []struct {
		shift int
		name  string
	}{{40, "TiB"}, {30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if s != 0 && s&(1<<unit.shift-1) == 0 {
			return fmt.Sprintf("%d%s", s>>unit.shift, unit.name)
		}
	}
	return fmt.Sprintf("%dB", int64(s))
}

// Set is the flag's setter.
func (s *Size) Set(text string) (err error) {
	*s, err = ParseSize(text)
	return err
}

// Type names the flag's value in help texts.
func (s *Size) Type() string { return "size" }

// Disk is one blank disk as the machine sees it.
type Disk struct {
	Size   Size   `json:"size"`
	Serial string `json:"serial"`
	// WWN is a 64-bit NAA 5 name as sixteen hexadecimal digits. Only SCSI shows it.
	WWN string `json:"wwn"`
}

// Spec is what one machine is made of. It follows from the lab's name and the machine's index alone, so a
// lab that is taken down and made again has the same machines.
type Spec struct {
	Name     string   `json:"name"`
	Index    int      `json:"index"` // from 1
	Firmware Firmware `json:"firmware"`
	CPUs     int      `json:"cpus"`
	Nice     int      `json:"nice"`
	OwnTime  bool     `json:"ownTime,omitempty"`
	Memory   Size     `json:"memory"`
	Bus      Bus      `json:"bus"`
	Disks    []Disk   `json:"disks"`
	// MACs has one address for each NIC; the first NIC boots.
	MACs   []string `json:"macs"`
	UUID   string   `json:"uuid"`
	Serial string   `json:"serial"`
}

// labHash tells labs apart in MAC addresses, serial numbers and WWNs.
func labHash(name string) uint16 {
	h := fnv.New32a()
	h.Write([]byte(name))
	sum := h.Sum32()
	return uint16(sum>>16) ^ uint16(sum)
}

// macOf is the address of a NIC: QEMU's prefix, a byte for the lab, the machine's index, the NIC's.
// Index 0 is the bridge.
func macOf(lab string, index, nic int) net.HardwareAddr {
	return net.HardwareAddr{0x52, 0x54, 0x00, byte(labHash(lab)), byte(index), byte(nic)}
}

// tapOf names the host's end of a NIC, inside the lab's namespace.
func tapOf(index, nic int) string { return fmt.Sprintf("m%dn%d", index, nic) }

// machineName is how people call a machine.
func machineName(lab string, index int) string { return fmt.Sprintf("%s-%d", lab, index) }

// uuidSpace is the namespace, as RFC 9562 has it, of the UUIDs of lab machines.
var uuidSpace = uuid.MustParse("8f1d2c1e-6f2b-5a64-9c0d-3a0e6f7c10ab")

func specOf(o Options, index int) Spec {
	hash := labHash(o.Name)
	s := Spec{
		Name:     machineName(o.Name, index),
		Index:    index,
		Firmware: o.Firmware.of(index),
		CPUs:     o.CPUs,
		Nice:     o.Nice,
		OwnTime:  o.OwnTime,
		Memory:   o.Memory,
		Bus:      o.Bus,
		UUID:     uuid.NewSHA1(uuidSpace, []byte(machineName(o.Name, index))).String(),
		Serial:   fmt.Sprintf("LAB%04X-%03d", hash, index),
	}
	for i, size := range o.Disks {
		s.Disks = append(s.Disks, Disk{
			Size: size,
			// virtio-blk cuts serial numbers after 20 characters.
			Serial: fmt.Sprintf("LAB%04X-%03d-D%d", hash, index, i),
			WWN:    fmt.Sprintf("55254000%04x%02x%02x", hash, index, i),
		})
	}
	for nic := range o.NICs {
		s.MACs = append(s.MACs, macOf(o.Name, index, nic).String())
	}
	return s
}

// serverAddress is the bridge's address: the first of the subnet.
func serverAddress(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(subnet.Masked().Addr().Next(), subnet.Bits())
}
