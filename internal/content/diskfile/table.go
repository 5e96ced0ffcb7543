package diskfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"unicode/utf16"
)

// Table is what the partition table of a disk image says.
type Table struct {
	SectorSize int64
	Partitions []Partition
}

// Partition is one entry; First and Last are sectors, both inclusive.
type Partition struct {
	Number      int
	Name        string
	Type        string // GUID, lower case
	First, Last uint64
}

// Types of partitions that matter here.
const (
	TypeESP      = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	TypeBIOSBoot = "21686148-6449-6e6f-744e-656564454649"
)

// HeadSize is how much of a disk's beginning ReadTable needs: a table of 128 entries for sectors of 4096 bytes, with room.
const HeadSize = 64 << 10

// ReadTable reads the GUID partition table of a disk of size bytes, of which head is the beginning.
func ReadTable(head []byte, size int64) (*Table, error) {
	for _, sector := range []int64{512, 4096} {
		if int64(len(head)) < 2*sector || string(head[sector:sector+8]) != "EFI PART" {
			continue
		}
		t, err := readGPT(head, size, sector)
		if err != nil {
			return nil, fmt.Errorf("its GUID partition table is damaged: %w", err)
		}
		return t, nil
	}
	if len(head) >= 512 && head[510] == 0x55 && head[511] == 0xaa {
		for i := range 4 {
			if head[446+16*i+4] != 0 {
				return nil, errors.New("it has an MBR partition table; only images with a GUID partition table (GPT) can be installed")
			}
		}
	}
	return nil, errors.New("it has no partition table: a whole-disk image with a GUID partition table (GPT) is needed, not that of a file system, an installer or a container")
}

func readGPT(head []byte, size, sector int64) (*Table, error) {
	le := binary.LittleEndian
	h := bytes.Clone(head[sector : 2*sector])
	n := le.Uint32(h[12:])
	if n < 92 || int64(n) > sector {
		return nil, fmt.Errorf("a header of %d bytes", n)
	}
	sum := le.Uint32(h[16:])
	clear(h[16:20])
	if crc32.ChecksumIEEE(h[:n]) != sum {
		return nil, errors.New("the checksum of the header is wrong")
	}
	start, count, each := le.Uint64(h[72:]), le.Uint32(h[80:]), le.Uint32(h[84:])
	if each != 128 || count == 0 || count > 128 || start < 2 || int64(start) > (int64(len(head))-int64(count)*128)/sector {
		return nil, fmt.Errorf("%d entries of %d bytes at sector %d; at most 128 of 128 bytes, behind the header, can be installed", count, each, start)
	}
	entries := head[int64(start)*sector:][:int64(count)*128]
	if crc32.ChecksumIEEE(entries) != le.Uint32(h[88:]) {
		return nil, errors.New("the checksum of the entries is wrong")
	}
	t := &Table{SectorSize: sector}
	// Where the installer puts its own table.
	reserved := uint64(2 + (128*128+sector-1)/sector)
	for i := range int(count) {
		e := entries[i*128:][:128]
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		p := Partition{Number: i + 1, Type: guid(e), Name: name(e[56:128]), First: le.Uint64(e[32:]), Last: le.Uint64(e[40:])}
		if p.First < reserved || p.First > p.Last || p.Last >= uint64(size/sector) {
			return nil, fmt.Errorf("partition %d is from sector %d to %d of a disk of %d sectors; is the file cut short?", p.Number, p.First, p.Last, size/sector)
		}
		t.Partitions = append(t.Partitions, p)
	}
	if len(t.Partitions) == 0 {
		return nil, errors.New("it has no partitions")
	}
	if len(t.Partitions) == 128 || t.Partitions[len(t.Partitions)-1].Number == 128 {
		return nil, errors.New("it has no place for one more partition, which the installer adds")
	}
	return t, nil
}

func guid(e []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(e), le.Uint16(e[4:]), le.Uint16(e[6:]), e[8:10], e[10:16])
}

func name(b []byte) string {
	var u []uint16
	for ; len(b) > 1; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return strings.ToValidUTF8(string(utf16.Decode(u)), "")
}

// Named tells whether a partition has the name.
func (t *Table) Named(name string) bool {
	for _, p := range t.Partitions {
		if p.Name == name {
			return true
		}
	}
	return false
}

// Starts tells by which firmware the disk can start. BIOS needs code in the first sector, too.
func (t *Table) Starts(head []byte) (bios, uefi bool) {
	for _, p := range t.Partitions {
		uefi = uefi || p.Type == TypeESP
	}
	return len(head) >= 440 && !bytes.Equal(head[:440], make([]byte, 440)), uefi
}
