package rehearse

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"coldrack.dev/internal/contract/wire"
)

// Machine is one simulated machine.
type Machine struct {
	Index     int            `json:"index"` // from 0
	Firmware  string         `json:"firmware"`
	PowerOn   time.Duration  `json:"powerOn"`        // after the rehearsal's start
	Rate      int64          `json:"rate,omitempty"` // of its link, bytes a second; 0: as fast as it goes
	Slow      bool           `json:"slow,omitempty"`
	Inventory wire.Inventory `json:"inventory"`
}

func (m Machine) firmware() Firmware {
	if m.Firmware == bios.Name {
		return bios
	}
	return uefi
}

func (m Machine) mac() net.HardwareAddr {
	mac, _ := net.ParseMAC(m.Inventory.NICs[0].MAC) // Fleet made it
	return mac
}

// Known is a machine that the operator's plan names already.
type Known struct {
	MACs   []string
	UUID   string
	Serial string
}

// FleetOptions say which machines there shall be.
type FleetOptions struct {
	Machines int
	Seed     uint64
	Ramp     time.Duration
	// SlowShare of the machines, 0 to 1, has links of SlowRate bytes a second, the others of Rate.
	SlowShare float64
	SlowRate  int64
	Rate      int64
	// Known machines come first.
	Known []Known
}

// model is a kind of server that vendors sell.
type model struct {
	vendor, product, cpu string
	sockets, cores       int
	memory               int64 // GiB
	oui                  [3]byte
	nics                 int
	driver               string
	speed                int
	disks                []wire.Disk
	firmware             string
	weight               int
}

const gib = 1 << 30

var models = []model{
	{"Dell Inc.", "PowerEdge R650", "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz", 2, 32, 512, [3]byte{0xb0, 0x7b, 0x25}, 4, "i40e", 25000,
		[]wire.Disk{{Name: "nvme0n1", Model: "Dell Ent NVMe P5500 RI U.2 1.92TB", Transport: "nvme", SizeBytes: 1788 * gib},
			{Name: "nvme1n1", Model: "Dell Ent NVMe P5500 RI U.2 1.92TB", Transport: "nvme", SizeBytes: 1788 * gib}}, "UEFI", 4},
	{"HPE", "ProLiant DL360 Gen10", "Intel(R) Xeon(R) Silver 4214 CPU @ 2.20GHz", 2, 12, 256, [3]byte{0x5c, 0xed, 0x8c}, 4, "tg3", 1000,
		[]wire.Disk{{Name: "sda", Model: "LOGICAL VOLUME", Vendor: "HPE", Transport: "sas", SizeBytes: 447 * gib}}, "UEFI", 3},
	{"Supermicro", "SYS-1029P-WTR", "Intel(R) Xeon(R) Gold 5218 CPU @ 2.30GHz", 2, 16, 384, [3]byte{0xac, 0x1f, 0x6b}, 2, "ixgbe", 10000,
		[]wire.Disk{{Name: "sda", Model: "SAMSUNG MZ7LH480", Vendor: "ATA", Transport: "sata", SizeBytes: 447 * gib},
			{Name: "sdb", Model: "ST8000NM000A", Vendor: "ATA", Transport: "sata", SizeBytes: 7452 * gib, Rotational: true}}, "UEFI", 2},
	{"Lenovo", "ThinkSystem SR630", "Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz", 2, 20, 192, [3]byte{0x7c, 0xd3, 0x0a}, 4, "i40e", 10000,
		[]wire.Disk{{Name: "sda", Model: "RAID 930-8i", Vendor: "Lenovo", Transport: "sas", SizeBytes: 893 * gib}}, "BIOS", 1},
	{"Dell Inc.", "PowerEdge R720", "Intel(R) Xeon(R) CPU E5-2670 0 @ 2.60GHz", 2, 8, 64, [3]byte{0xd4, 0xae, 0x52}, 4, "igb", 1000,
		[]wire.Disk{{Name: "sda", Model: "PERC H710", Vendor: "DELL", Transport: "sas", SizeBytes: 278 * gib, Rotational: true}}, "BIOS", 1},
	{"ASRockRack", "B650D4U", "AMD Ryzen 9 7900 12-Core Processor", 1, 12, 128, [3]byte{0xa8, 0xa1, 0x59}, 2, "igb", 1000,
		[]wire.Disk{{Name: "nvme0n1", Model: "Samsung SSD 980 PRO 1TB", Transport: "nvme", SizeBytes: 931 * gib}}, "UEFI", 1},
}

// duplicateUUID is one that boards leave the factory with by the thousand.
const duplicateUUID = "03000200-0400-0500-0006-000700080009"

// Fleet makes machines as different as a rack's. It is pure: the same options give the same machines.
func Fleet(o FleetOptions) []Machine {
	dice := rand.New(rand.NewPCG(o.Seed, 0x5eed))
	weights := 0
	for _, m := range models {
		weights += m.weight
	}
	machines := make([]Machine, 0, o.Machines)
	for i := range o.Machines {
		pick, chosen := dice.IntN(weights), models[0]
		for _, m := range models {
			if pick -= m.weight; pick < 0 {
				chosen = m
				break
			}
		}
		machine := Machine{Index: i, Firmware: chosen.firmware, Rate: o.Rate, Inventory: inventory(chosen, i, dice)}
		if o.Ramp > 0 {
			machine.PowerOn = time.Duration(dice.Int64N(int64(o.Ramp)))
		}
		if dice.Float64() < o.SlowShare {
			machine.Rate, machine.Slow = o.SlowRate, true
		}
		if i < len(o.Known) {
			machine.become(o.Known[i])
		}
		machines = append(machines, machine)
	}
	return machines
}

func inventory(m model, index int, dice *rand.Rand) wire.Inventory {
	serial := fmt.Sprintf("RH%s%05d", string("ABCDEFGHJK"[dice.IntN(10)]), index)
	var id [16]byte
	binary.BigEndian.PutUint64(id[:], dice.Uint64())
	binary.BigEndian.PutUint64(id[8:], dice.Uint64())
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	uuid := fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	if m.vendor == "ASRockRack" {
		// White boxes: the same UUID and no serial number in all of them.
		uuid, serial = duplicateUUID, "To Be Filled By O.E.M."
	}
	inv := wire.Inventory{
		System:      wire.System{Vendor: m.vendor, Product: m.product, Serial: serial, UUID: uuid, BIOSVersion: "2.8.4"},
		CPU:         wire.CPU{Model: m.cpu, Sockets: m.sockets, Cores: m.sockets * m.cores, Threads: 2 * m.sockets * m.cores},
		MemoryBytes: m.memory * gib, Firmware: m.firmware,
	}
	if m.firmware == "UEFI" {
		inv.TPM = "2.0"
	}
	for i := range m.nics {
		// Eight addresses to a machine; the last bit of the first byte stays clear.
		mac := net.HardwareAddr{m.oui[0] | 0x02, m.oui[1], m.oui[2], 0, 0, 0}
		number := uint32(index)*8 + uint32(i)
		mac[3], mac[4], mac[5] = byte(number>>16), byte(number>>8), byte(number)
		nic := wire.NIC{Name: fmt.Sprintf("eno%d", i+1), MAC: mac.String(), Driver: m.driver, SpeedMbps: m.speed, Link: i < 2, Boot: i == 0}
		if nic.Link {
			nic.LLDP = &wire.LLDP{SystemName: fmt.Sprintf("leaf-%02d", index/40+1), PortID: fmt.Sprintf("Ethernet%d", index%40+1)}
		}
		inv.NICs = append(inv.NICs, nic)
		inv.Identifiers.MACs = append(inv.Identifiers.MACs, nic.MAC)
	}
	for i, disk := range m.disks {
		disk.Serial = fmt.Sprintf("S%05d%d", index, i)
		disk.ByID = []string{fmt.Sprintf("%s-%s", disk.Transport, disk.Serial)}
		inv.Disks = append(inv.Disks, disk)
	}
	inv.Identifiers.UUID, inv.Identifiers.Serial = uuid, serial
	return inv
}

// become gives the machine the identity of one that the plan expects.
func (m *Machine) become(k Known) {
	inv := &m.Inventory
	for i, mac := range k.MACs {
		if i >= len(inv.NICs) {
			inv.NICs = append(inv.NICs, wire.NIC{Name: fmt.Sprintf("eno%d", i+1)})
		}
		inv.NICs[i].MAC = mac
	}
	inv.Identifiers.MACs = nil
	for _, nic := range inv.NICs {
		inv.Identifiers.MACs = append(inv.Identifiers.MACs, nic.MAC)
	}
	if k.UUID != "" {
		inv.Identifiers.UUID, inv.System.UUID = k.UUID, k.UUID
	}
	if k.Serial != "" {
		inv.Identifiers.Serial, inv.System.Serial = k.Serial, k.Serial
	}
}
