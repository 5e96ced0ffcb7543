// Package smbios decodes the table that firmware describes a machine with (DMTF DSP0134), as the kernel shows it in
// /sys/firmware/dmi/tables/DMI. Firmware writes nonsense: what cannot be decoded is left out, and never more than the table is read.
package smbios

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"coldrack.dev/internal/base/termtext"
)

// Types of structures.
const (
	typeMemoryArray  = 16
	typeMemoryDevice = 17
	typeEndOfTable   = 127
)

// header is the least length of a structure: type, length, handle.
const header = 4

// Structure is one entry of the table.
type Structure struct {
	Type   byte
	Handle uint16
	// Data is the formatted part, with the header of four bytes: the offsets of DSP0134 hold for it.
	Data []byte
	// Strings are numbered from 1 in Data.
	Strings []string
}

// Decode parts a table into its structures. It ends at the end-of-table structure, or before the first that is not whole.
func Decode(table []byte) []Structure {
	var out []Structure
	for len(table) >= header {
		length := int(table[1])
		if length < header || length > len(table) {
			break
		}
		s := Structure{Type: table[0], Handle: binary.LittleEndian.Uint16(table[2:]), Data: table[:length]}
		// The strings end with two zero bytes, also where there are none.
		end := bytes.Index(table[length:], []byte{0, 0})
		if end < 0 {
			break
		}
		if end > 0 {
			for _, text := range bytes.Split(table[length:length+end], []byte{0}) {
				s.Strings = append(s.Strings, termtext.Line(string(text), 0))
			}
		}
		out = append(out, s)
		table = table[length+end+2:]
		if s.Type == typeEndOfTable {
			break
		}
	}
	return out
}

func (s Structure) byteAt(offset int) byte {
	if offset >= len(s.Data) {
		return 0
	}
	return s.Data[offset]
}

func (s Structure) word(offset int) uint16 {
	if offset+2 > len(s.Data) {
		return 0
	}
	return binary.LittleEndian.Uint16(s.Data[offset:])
}

func (s Structure) double(offset int) uint32 {
	if offset+4 > len(s.Data) {
		return 0
	}
	return binary.LittleEndian.Uint32(s.Data[offset:])
}

// text is the string whose number stands at the offset, "" where there is none.
func (s Structure) text(offset int) string {
	n := int(s.byteAt(offset))
	if n == 0 || n > len(s.Strings) {
		return ""
	}
	return s.Strings[n-1]
}

// MemoryDevice is a slot for a memory module, type 17 (DSP0134 7.18).
type MemoryDevice struct {
	Slot, Bank string
	// Size in bytes; 0 is an empty slot, or a size that the firmware does not know.
	Size int64
	// Type such as DDR5, "" where it is unknown.
	Type string
	// Speed that the module runs at, and MaxSpeed that it can, in MT/s; 0 is unknown.
	Speed, MaxSpeed                  int
	Manufacturer, Serial, PartNumber string
	// ECC says whether the array that it is in corrects errors.
	ECC bool
}

// memoryTypes of DSP0134 table 77.
var memoryTypes = map[byte]string{
	0x07: "RAM", 0x0F: "SDRAM", 0x11: "RDRAM", 0x12: "DDR", 0x13: "DDR2", 0x14: "DDR2 FB-DIMM", 0x18: "DDR3", 0x19: "FBD2", 0x1A: "DDR4",
	0x1B: "LPDDR", 0x1C: "LPDDR2", 0x1D: "LPDDR3", 0x1E: "LPDDR4", 0x1F: "Logical non-volatile device", 0x20: "HBM", 0x21: "HBM2",
	0x22: "DDR5", 0x23: "LPDDR5", 0x24: "HBM3",
}

// MemoryDevices are the slots for system memory, in the table's order. Slots of an array for another use, such as flash memory for
// the firmware, are left out.
func MemoryDevices(table []Structure) []MemoryDevice {
	const systemMemory = 3
	type array struct{ use, correction byte }
	arrays := map[uint16]array{}
	for _, s := range table {
		if s.Type == typeMemoryArray {
			arrays[s.Handle] = array{use: s.byteAt(5), correction: s.byteAt(6)}
		}
	}
	var out []MemoryDevice
	for _, s := range table {
		in, known := arrays[s.word(4)]
		if s.Type != typeMemoryDevice || len(s.Data) < 0x0E || known && in.use != systemMemory {
			continue
		}
		out = append(out, MemoryDevice{
			Slot: filled(s.text(0x10)), Bank: filled(s.text(0x11)), Size: s.memorySize(), Type: memoryTypes[s.byteAt(0x12)],
			Speed: s.speed(0x20, 0x58), MaxSpeed: s.speed(0x15, 0x54),
			Manufacturer: filled(s.text(0x17)), Serial: filled(s.text(0x18)), PartNumber: filled(s.text(0x1A)),
			ECC: in.correction == 5 || in.correction == 6, // single-bit, multi-bit
		})
	}
	return out
}

// memorySize is a word in MiB, or in KiB with bit 15 set; 0x7FFF refers to the extended size, 0xFFFF is unknown.
func (s Structure) memorySize() int64 {
	switch n := int64(s.word(0x0C)); {
	case n == 0xFFFF:
		return 0
	case n == 0x7FFF:
		return int64(s.double(0x1C)&0x7FFFFFFF) << 20
	case n&0x8000 != 0:
		return n & 0x7FFF << 10
	default:
		return n << 20
	}
}

// speed is a word, or a double word elsewhere when the word is 0xFFFF.
func (s Structure) speed(word, extended int) int {
	if n := s.word(word); n != 0xFFFF {
		return int(n)
	}
	return int(s.double(extended) & 0x7FFFFFFF)
}

// placeholders are what firmware writes for what it does not know, in lower case.
var placeholders = []string{
	"not specified", "unknown", "none", "no dimm", "not available", "n/a", "undefined", "empty", "to be filled by o.e.m.", "default string",
	"manufacturer", "serialnum", "partnum", "module manufacturer", "module serial number", "module part number", "[empty]", "no module installed",
}

// filled is the text without surrounding spaces, "" for a placeholder or a number of zeros.
func filled(text string) string {
	text = strings.TrimSpace(text)
	if strings.Trim(text, "0") == "" || slices.Contains(placeholders, strings.ToLower(text)) {
		return ""
	}
	return text
}
