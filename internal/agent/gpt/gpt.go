// Package gpt reads and writes GUID partition tables (UEFI specification 2.10, chapter 5) on disks of any
// logical sector size. It is pure: it sees bytes through io.ReaderAt and io.WriterAt only.
//
// The disk GUID is where Coldrack leaves its marker: Marker derives it from the intent under which a
// disk was written, so that a later act can tell its own disk from a stranger's.
package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"unicode/utf16"

	"github.com/google/uuid"
)

// GUID in its textual byte order; on disk the first three fields are little endian.
type GUID = uuid.UUID

// Type GUIDs that Coldrack writes.
const (
	TypeBIOSBoot  = "21686148-6449-6e6f-744e-656564454649"
	TypeESP       = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	TypeLinux     = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	TypeLinuxRoot = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" // Discoverable Partitions: x86-64 root
)

// markerSpace is the namespace of all GUIDs derived from intents. It must never change: disks carry them.
const markerSpace = "6d1f1f0e-0b0c-5c8e-9f8a-636f6c647261"

// Marker is the disk GUID of a disk written under an intent.
func Marker(intentID string) GUID { return Derive(intentID, "disk") }

// Derive makes a stable GUID for one part of what an intent writes.
func Derive(intentID, part string) GUID {
	return uuid.NewSHA1(uuid.MustParse(markerSpace), []byte(part+"\x00"+intentID))
}

const (
	entrySize    = 128
	minEntries   = 128
	maxEntries   = 1024
	headerSize   = 92
	signature    = "EFI PART"
	revision     = 0x00010000
	bootCodeSize = 440 // in sector 0, before the disk signature and the table
	align        = 1 << 20
)

// Partition is one entry of the table. First and Last are in sectors, both inclusive.
type Partition struct {
	Number      int // from 1
	Type, GUID  GUID
	First, Last uint64
	Name        string
	Attributes  uint64
}

// Table is a whole partition table.
type Table struct {
	DiskGUID   GUID
	SectorSize int64
	Sectors    uint64 // of the whole disk
	Partitions []Partition
}

// Names of the partitions of an installation. They must never change: disks carry them.
const (
	NameBIOSBoot = "coldrack-bios"
	NameESP      = "coldrack-esp"
	NameRoot     = "coldrack-root"
	NameDisk     = "coldrack-boot" // what the installer adds to a whole-disk image
)

// Installed says whether an install of ours wrote the table, whichever server ordered it. Its DiskGUID is then a Marker.
func (t *Table) Installed() bool {
	return t.DiskGUID.Version() == 5 && slices.ContainsFunc(t.Partitions, func(p Partition) bool { return p.Name == NameRoot || p.Name == NameDisk })
}

// Start is where p begins, in bytes.
func (t *Table) Start(p Partition) int64 { return int64(p.First) * t.SectorSize }

// Size of p in bytes.
func (t *Table) Size(p Partition) int64 { return int64(p.Last-p.First+1) * t.SectorSize }

// ErrNone says that a disk has no GUID partition table, not even a damaged one's backup.
var ErrNone = errors.New("no GUID partition table")

// Read finds the table of a disk of size bytes. The backup at the disk's end serves when the primary is
// damaged or was overwritten.
func Read(r io.ReaderAt, size, sectorSize int64) (*Table, error) {
	if sectorSize < 512 || sectorSize > 1<<16 || size < 8*sectorSize {
		return nil, ErrNone
	}
	sectors := uint64(size / sectorSize)
	t, err := readAt(r, 1, sectors, sectorSize)
	if err != nil {
		if t, backup := readAt(r, sectors-1, sectors, sectorSize); backup == nil {
			return t, nil
		}
	}
	return t, err
}

func readAt(r io.ReaderAt, lba, sectors uint64, sectorSize int64) (*Table, error) {
	h := make([]byte, sectorSize)
	if _, err := r.ReadAt(h, int64(lba)*sectorSize); err != nil {
		return nil, fmt.Errorf("read partition table at sector %d: %w", lba, err)
	}
	le := binary.LittleEndian
	if string(h[:8]) != signature {
		return nil, ErrNone
	}
	n := le.Uint32(h[12:])
	if n < headerSize || int64(n) > sectorSize {
		return nil, fmt.Errorf("partition table at sector %d: header of %d bytes", lba, n)
	}
	sum := le.Uint32(h[16:])
	clear(h[16:20])
	if crc32.ChecksumIEEE(h[:n]) != sum {
		return nil, fmt.Errorf("partition table at sector %d: header checksum is wrong", lba)
	}
	if le.Uint64(h[24:]) != lba {
		return nil, fmt.Errorf("partition table at sector %d says it is at %d", lba, le.Uint64(h[24:]))
	}
	start, count, each := le.Uint64(h[72:]), le.Uint32(h[80:]), le.Uint32(h[84:])
	if each != entrySize || count == 0 || count > maxEntries || start >= sectors {
		return nil, fmt.Errorf("partition table at sector %d: %d entries of %d bytes at sector %d", lba, count, each, start)
	}
	entries := make([]byte, int64(count)*entrySize)
	if _, err := r.ReadAt(entries, int64(start)*sectorSize); err != nil {
		return nil, fmt.Errorf("read partition entries at sector %d: %w", start, err)
	}
	if crc32.ChecksumIEEE(entries) != le.Uint32(h[88:]) {
		return nil, fmt.Errorf("partition table at sector %d: checksum of the entries is wrong", lba)
	}
	t := &Table{DiskGUID: guid(h[56:72]), SectorSize: sectorSize, Sectors: sectors}
	for i := range int(count) {
		e := entries[i*entrySize:][:entrySize]
		if guid(e[:16]) == uuid.Nil {
			continue
		}
		p := Partition{
			Number: i + 1, Type: guid(e[:16]), GUID: guid(e[16:32]),
			First: le.Uint64(e[32:]), Last: le.Uint64(e[40:]), Attributes: le.Uint64(e[48:]), Name: name(e[56:128]),
		}
		if p.First > p.Last || p.Last >= sectors {
			return nil, fmt.Errorf("partition %d reaches from sector %d to %d of a disk of %d", p.Number, p.First, p.Last, sectors)
		}
		t.Partitions = append(t.Partitions, p)
	}
	return t, nil
}

// Want asks New for a partition.
type Want struct {
	Name  string
	Type  string
	GUID  GUID
	Bytes int64 // 0: all that is left; only the last may ask so
}

// New lays partitions out one after the other, each on a mebibyte boundary.
func New(disk GUID, size, sectorSize int64, want []Want) (*Table, error) {
	t := &Table{DiskGUID: disk, SectorSize: sectorSize, Sectors: uint64(size / sectorSize)}
	next := int64(align)
	end := (int64(t.Sectors) - 1 - t.entrySectors()) * sectorSize / align * align
	for i, w := range want {
		bytes := w.Bytes
		if bytes == 0 {
			bytes = end - next
		}
		if bytes <= 0 || next+bytes > end {
			return nil, fmt.Errorf("partition %q of %d bytes does not fit: the disk has %d bytes and %d are taken", w.Name, w.Bytes, size, next)
		}
		t.Partitions = append(t.Partitions, Partition{
			Number: i + 1, Type: uuid.MustParse(w.Type), GUID: w.GUID, Name: w.Name,
			First: uint64(next / sectorSize), Last: uint64((next+bytes)/sectorSize) - 1,
		})
		next += (bytes + align - 1) / align * align
	}
	return t, nil
}

// Grown is the table on another, larger disk of so many bytes, under another GUID, with one more partition at the disk's end, whose
// number is the next after the last. Partitions stay where they are.
func (t *Table) Grown(disk GUID, size int64, last Want) (*Table, error) {
	out := &Table{DiskGUID: disk, SectorSize: t.SectorSize, Sectors: uint64(size / t.SectorSize), Partitions: slices.Clone(t.Partitions)}
	end := (int64(out.Sectors) - 1 - out.entrySectors()) * t.SectorSize / align * align
	start := (end - last.Bytes) / align * align
	number, used := 0, int64(0)
	for _, p := range t.Partitions {
		number, used = max(number, p.Number), max(used, int64(p.Last+1)*t.SectorSize)
		if p.First < uint64(out.Reserved()/t.SectorSize) {
			return nil, fmt.Errorf("partition %d begins at sector %d, where the partition table is", p.Number, p.First)
		}
	}
	if start < used || start <= 0 {
		return nil, fmt.Errorf("the disk has %d bytes; partitions end at %d, and %d more are needed", size, used, last.Bytes)
	}
	out.Partitions = append(out.Partitions, Partition{
		Number: number + 1, Type: uuid.MustParse(last.Type), GUID: last.GUID, Name: last.Name,
		First: uint64(start / t.SectorSize), Last: uint64(end/t.SectorSize) - 1,
	})
	return out, nil
}

// Reserved is how many bytes at a disk's beginning hold the MBR and the table.
func (t *Table) Reserved() int64 { return (2 + t.entrySectors()) * t.SectorSize }

func (t *Table) entrySectors() int64 {
	return (minEntries*entrySize + t.SectorSize - 1) / t.SectorSize
}

// Write puts the table and its backup onto the disk, and a protective MBR around whatever boot code
// sector 0 has. The backup goes first: after a power cut between the writes either the old state or a
// table that Read accepts is there.
func (t *Table) Write(d interface {
	io.ReaderAt
	io.WriterAt
}) error {
	le := binary.LittleEndian
	entries := make([]byte, t.entrySectors()*t.SectorSize)
	for _, p := range t.Partitions {
		if p.Number < 1 || p.Number > minEntries {
			return fmt.Errorf("partition number %d is not 1 to %d", p.Number, minEntries)
		}
		e := entries[(p.Number-1)*entrySize:][:entrySize]
		putGUID(e[:16], p.Type)
		putGUID(e[16:32], p.GUID)
		le.PutUint64(e[32:], p.First)
		le.PutUint64(e[40:], p.Last)
		le.PutUint64(e[48:], p.Attributes)
		for i, u := range utf16.Encode([]rune(p.Name)) {
			if i == 36 {
				return fmt.Errorf("partition name %q is longer than 36 characters", p.Name)
			}
			le.PutUint16(e[56+2*i:], u)
		}
	}
	last := t.Sectors - 1
	first := uint64(2 + t.entrySectors())
	header := func(self, other, at uint64) []byte {
		h := make([]byte, t.SectorSize)
		copy(h, signature)
		le.PutUint32(h[8:], revision)
		le.PutUint32(h[12:], headerSize)
		le.PutUint64(h[24:], self)
		le.PutUint64(h[32:], other)
		le.PutUint64(h[40:], first)
		le.PutUint64(h[48:], last-1-uint64(t.entrySectors()))
		putGUID(h[56:72], t.DiskGUID)
		le.PutUint64(h[72:], at)
		le.PutUint32(h[80:], minEntries)
		le.PutUint32(h[84:], entrySize)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(entries[:minEntries*entrySize]))
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:headerSize]))
		return h
	}
	mbr := make([]byte, t.SectorSize)
	if _, err := d.ReadAt(mbr, 0); err != nil {
		return fmt.Errorf("read sector 0: %w", err)
	}
	protect(mbr, t.Sectors)
	backupEntries := last - uint64(t.entrySectors())
	for _, w := range []struct {
		lba uint64
		b   []byte
	}{
		{backupEntries, entries}, {last, header(last, 1, backupEntries)},
		{2, entries}, {1, header(1, last, 2)}, {0, mbr},
	} {
		if _, err := d.WriteAt(w.b, int64(w.lba)*t.SectorSize); err != nil {
			return fmt.Errorf("write partition table at sector %d: %w", w.lba, err)
		}
	}
	return nil
}

// protect writes the protective MBR (UEFI 5.2.3) behind the boot code of sector 0. The entry is marked
// active: some BIOSes skip a disk without an active partition, and UEFI ignores the mark.
func protect(mbr []byte, sectors uint64) {
	clear(mbr[bootCodeSize:512])
	e := mbr[446:]
	e[0] = 0x80
	copy(e[1:], []byte{0x00, 0x02, 0x00, 0xEE, 0xFF, 0xFF, 0xFF})
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[12:], uint32(min(sectors-1, 0xFFFFFFFF)))
	mbr[510], mbr[511] = 0x55, 0xAA
}

func guid(b []byte) GUID {
	var g GUID
	copy(g[:], b)
	swap(g[:])
	return g
}

func putGUID(b []byte, g GUID) {
	copy(b, g[:])
	swap(b)
}

// swap turns the on-disk order of a GUID into the textual one, or back.
func swap(b []byte) {
	b[0], b[1], b[2], b[3] = b[3], b[2], b[1], b[0]
	b[4], b[5] = b[5], b[4]
	b[6], b[7] = b[7], b[6]
}

func name(b []byte) string {
	u := make([]uint16, 0, 36)
	for i := 0; i+1 < len(b); i += 2 {
		c := binary.LittleEndian.Uint16(b[i:])
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(bytes.ToValidUTF8([]byte(string(utf16.Decode(u))), nil))
}
