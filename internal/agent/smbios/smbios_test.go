package smbios

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"coldrack.dev/test/require"
)

// module is how firmware describes one slot.
type module struct {
	array         uint16
	size          uint16 // MiB, or as DSP0134 7.18.4 says
	extended      uint32 // MiB
	kind          byte
	speed, runs   uint16
	speedX, runsX uint32
	length        byte
	strings       [6]string // locator, bank, manufacturer, serial, asset tag, part number
}

func (m module) bytes(handle uint16) []byte {
	b := make([]byte, 0x5C)
	b[0], b[1] = typeMemoryDevice, m.length
	le := binary.LittleEndian
	le.PutUint16(b[2:], handle)
	le.PutUint16(b[4:], m.array)
	le.PutUint16(b[6:], 0xFFFE)
	le.PutUint16(b[8:], 72)
	le.PutUint16(b[0xA:], 64)
	le.PutUint16(b[0xC:], m.size)
	b[0xE] = 9 // DIMM
	b[0x12] = m.kind
	le.PutUint16(b[0x15:], m.speed)
	le.PutUint32(b[0x1C:], m.extended)
	le.PutUint16(b[0x20:], m.runs)
	le.PutUint32(b[0x54:], m.speedX)
	le.PutUint32(b[0x58:], m.runsX)
	n := byte(0)
	for i, offset := range []int{0x10, 0x11, 0x17, 0x18, 0x19, 0x1A} {
		if m.strings[i] != "" {
			n++
			b[offset] = n
		}
	}
	b = b[:m.length]
	for _, s := range m.strings {
		if s != "" {
			b = append(append(b, s...), 0)
		}
	}
	if n == 0 {
		b = append(b, 0)
	}
	return append(b, 0)
}

// array is a physical memory array, type 16.
func array(handle uint16, use, correction byte) []byte {
	b := make([]byte, 0x17)
	b[0], b[1], b[4], b[5], b[6] = typeMemoryArray, 0x17, 3, use, correction
	binary.LittleEndian.PutUint16(b[2:], handle)
	return append(b, 0, 0)
}

// server is the table of a machine with two modules, an empty slot, an old slot structure, and a flash chip that is no memory.
func server() []byte {
	var table []byte
	table = append(table, array(0x1000, 3, 6)...)
	table = append(table, array(0x1001, 5, 3)...)
	for i, m := range []module{
		{array: 0x1000, size: 0x7FFF, extended: 64 << 10, kind: 0x22, speed: 5600, runs: 4800, length: 0x5C, strings: [6]string{"DIMM_A1", "P0 CHANNEL A", "Samsung", "80CE012345", "tag", "M321R8GA0BB0-CQKZJ  "}},
		{array: 0x1000, size: 16 << 10, kind: 0x1A, speed: 0xFFFF, runs: 0xFFFF, speedX: 70000, runsX: 68000, length: 0x5C, strings: [6]string{"DIMM_A2", "P0 CHANNEL A", "Micron", "2F0B11AA", "", "36ASF4G72PZ"}},
		{array: 0x1000, size: 0, kind: 2, length: 0x5C, strings: [6]string{"DIMM_B1", "P0 CHANNEL B", "NO DIMM", "NO DIMM", "", "NO DIMM"}},
		{array: 0x1000, size: 0x8000 | 512, kind: 0x12, speed: 266, length: 0x1B, strings: [6]string{"J4", "", "", "00000000", "", ""}},
		{array: 0x1001, size: 16, kind: 9, length: 0x28, strings: [6]string{"SYSTEM ROM", "", "", "", "", ""}},
	} {
		table = append(table, m.bytes(0x1100+uint16(i))...)
	}
	return append(table, typeEndOfTable, 4, 0xFF, 0xFF, 0, 0)
}

func TestMemoryDevices(t *testing.T) {
	want := []MemoryDevice{
		{Slot: "DIMM_A1", Bank: "P0 CHANNEL A", Size: 64 << 30, Type: "DDR5", Speed: 4800, MaxSpeed: 5600, Manufacturer: "Samsung", Serial: "80CE012345", PartNumber: "M321R8GA0BB0-CQKZJ", ECC: true},
		{Slot: "DIMM_A2", Bank: "P0 CHANNEL A", Size: 16 << 30, Type: "DDR4", Speed: 68000, MaxSpeed: 70000, Manufacturer: "Micron", Serial: "2F0B11AA", PartNumber: "36ASF4G72PZ", ECC: true},
		{Slot: "DIMM_B1", Bank: "P0 CHANNEL B", ECC: true},
		{Slot: "J4", Size: 512 << 10, Type: "DDR", MaxSpeed: 266, ECC: true},
	}
	if diff := cmp.Diff(want, MemoryDevices(Decode(server()))); diff != "" {
		t.Error(diff)
	}
}

// TestDMIDecodeReadsTheSame: Debian's dmidecode says of the same table what we say.
func TestDMIDecodeReadsTheSame(t *testing.T) {
	require.Need(t, "dmidecode")
	table := server()
	// A dump is the entry point, and the table at an offset of 32.
	entry := make([]byte, 32)
	copy(entry, "_SM3_")
	entry[6], entry[7], entry[8], entry[10] = 0x18, 3, 6, 1
	binary.LittleEndian.PutUint32(entry[12:], uint32(len(table)))
	binary.LittleEndian.PutUint64(entry[16:], 32)
	sum := byte(0)
	for _, b := range entry {
		sum += b
	}
	entry[5] = -sum
	dump := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(dump, append(entry, table...), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("dmidecode", "--from-dump", dump, "--type", "17").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var theirs []map[string]string
	for block := range strings.SplitSeq(string(out), "\n\n") {
		if !strings.Contains(block, "Memory Device\n") {
			continue
		}
		fields := map[string]string{}
		for line := range strings.SplitSeq(block, "\n") {
			k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
			fields[k] = strings.TrimSpace(v)
		}
		theirs = append(theirs, fields)
	}
	ours := MemoryDevices(Decode(table))
	if len(theirs) == 0 {
		t.Fatalf("dmidecode finds no slot:\n%s", out)
	}
	if len(theirs) != len(ours)+1 || theirs[len(ours)]["Locator"] != "SYSTEM ROM" {
		t.Fatalf("dmidecode finds %d slots, the last %q, and we %d without the flash chip:\n%s", len(theirs), theirs[len(theirs)-1]["Locator"], len(ours), out)
	}
	for i, d := range ours {
		for field, mine := range map[string]string{
			"Locator": d.Slot, "Bank Locator": d.Bank, "Size": size(d.Size), "Type": d.Type, "Speed": speed(d.MaxSpeed), "Configured Memory Speed": speed(d.Speed),
			"Manufacturer": d.Manufacturer, "Serial Number": d.Serial, "Part Number": d.PartNumber,
		} {
			// What we leave out is a placeholder there, or not there at all.
			if mine != theirs[i][field] && (mine != "" || filled(theirs[i][field]) != "") {
				t.Errorf("slot %d: dmidecode says %s %q, and we %q", i, field, theirs[i][field], mine)
			}
		}
	}
}

func size(bytes int64) string {
	switch {
	case bytes == 0:
		return "No Module Installed"
	case bytes >= 1<<30:
		return fmt.Sprintf("%d GB", bytes>>30)
	}
	return fmt.Sprintf("%d kB", bytes>>10)
}

func speed(mts int) string {
	if mts == 0 {
		return ""
	}
	return fmt.Sprintf("%d MT/s", mts)
}

func TestDecodeEndsWhereTheTableIsNotWhole(t *testing.T) {
	whole := server()
	all := len(Decode(whole))
	for name, tt := range map[string]struct {
		table []byte
		want  int
	}{
		"nothing":                           {nil, 0},
		"what comes after the end of table": {append(bytes.Clone(whole), whole...), all},
		"without an end of table":           {whole[:len(whole)-6], all - 1},
		"a length that cannot be":           {[]byte{17, 3, 0, 0, 0, 0}, 0},
		"a length beyond the table":         {[]byte{17, 0x22, 0, 0, 0, 0}, 0},
		"strings that do not end":           {[]byte{17, 4, 0, 0, 'a', 0, 'b'}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := len(Decode(tt.table)); got != tt.want {
				t.Errorf("%d structures, want %d", got, tt.want)
			}
		})
	}
}

func TestMemorySize(t *testing.T) {
	for name, tt := range map[string]struct {
		m    module
		want int64
	}{
		"an empty slot":               {module{length: 0x28}, 0},
		"an unknown size":             {module{size: 0xFFFF, length: 0x28}, 0},
		"16 GiB in MiB":               {module{size: 16 << 10, length: 0x28}, 16 << 30},
		"512 KiB in KiB":              {module{size: 0x8000 | 512, length: 0x28}, 512 << 10},
		"64 GiB in the extended size": {module{size: 0x7FFF, extended: 64 << 10, length: 0x28}, 64 << 30},
		"an extended size cut off":    {module{size: 0x7FFF, extended: 64 << 10, length: 0x1C}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := MemoryDevices(Decode(tt.m.bytes(1)))
			if len(got) != 1 || got[0].Size != tt.want {
				t.Errorf("got %+v, want one of %d bytes", got, tt.want)
			}
		})
	}
}

// FuzzDecode: whatever firmware writes, decoding ends, stays within the table, and gives texts that a terminal can show.
func FuzzDecode(f *testing.F) {
	f.Add(server())
	f.Add(server()[:200])
	f.Add([]byte{17, 0x22, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, table []byte) {
		total := 0
		decoded := Decode(table)
		for _, s := range decoded {
			total += len(s.Data)
		}
		if total > len(table) {
			t.Errorf("%d bytes of structures in a table of %d", total, len(table))
		}
		for _, d := range MemoryDevices(decoded) {
			if d.Size < 0 || d.Speed < 0 || strings.ContainsAny(d.Slot+d.Serial+d.PartNumber+d.Manufacturer, "\n\x1b\x00") {
				t.Errorf("%+v", d)
			}
		}
	})
}
