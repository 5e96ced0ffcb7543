// Package probe tells what a disk holds, from its bytes alone and without ever writing: partition tables,
// file systems, and the signatures of RAID, LVM, encryption and storage clusters.
package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"coldrack.dev/internal/agent/gpt"
)

// magic is a signature at a fixed place. A negative offset counts from the end.
type magic struct {
	name   string
	offset int64
	bytes  string
}

// magics of what is found on disks of servers. Order matters only for the report.
var magics = []magic{
	{"ext2/3/4", 0x438, "\x53\xEF"},
	{"XFS", 0, "XFSB"},
	{"btrfs", 0x10040, "_BHRfS_M"},
	{"NTFS", 3, "NTFS    "},
	{"exFAT", 3, "EXFAT   "},
	{"FAT", 0x36, "FAT1"},
	{"FAT32", 0x52, "FAT32"},
	{"ISO 9660", 0x8001, "CD001"},
	{"squashfs", 0, "hsqs"},
	{"F2FS", 0x400, "\x10\x20\xF5\xF2"},
	{"swap", 0xFF6, "SWAPSPACE2"},
	{"swap", 0xFF6, "SWAP-SPACE"},
	{"LUKS", 0, "LUKS\xBA\xBE"},
	{"LVM2 physical volume", 0x200, "LABELONE"},
	{"LVM2 physical volume", 0, "LABELONE"},
	{"Linux RAID member", 0x1000, "\xFC\x4E\x2B\xA9"},
	{"Linux RAID member", 0, "\xFC\x4E\x2B\xA9"},
	{"bcache", 0x1018, "\xC6\x85\x73\xF6\x4E\x1A\x45\xCA\x82\x65\xF5\x7F\x48\xBA\x6D\x81"},
	{"Ceph BlueStore", 0, "bluestore block device"},
	{"VMFS", 0x200000, "\x5E\xF1\xAB\x2F"},
	{"VMFS", 0x100000, "\x0D\xD0\x01\xC0"},
	{"Oracle ASM", 0x20, "ORCLDISK"},
	{"DRBD", -4096 + 0x3C, "\x83\x74\x02\x6B"},
	{"Intel RAID member", -1024, "Intel Raid ISM Cfg Sig. "},
	{"DDF RAID member", -512, "\xDE\x11\xDE\x11"},
	{"REFS", 3, "ReFS"},
}

// Report is what was found.
type Report struct {
	// Table is the GUID partition table, if there is one.
	Table *gpt.Table
	// TableKind is "gpt", "dos", "gpt (damaged)" or empty.
	TableKind string
	// Parts are the partitions in the order of the table.
	Parts []Part
	// Signatures on the whole disk, outside partitions.
	Signatures []string
}

// Part is one partition.
type Part struct {
	Number      int
	Name        string
	Start, Size int64 // bytes
	Signatures  []string
}

// Blank says that nothing was found.
func (r Report) Blank() bool { return r.TableKind == "" && len(r.Signatures) == 0 }

// Lines describe the report for a person, one line a thing.
func (r Report) Lines() []string {
	var out []string
	out = append(out, r.Signatures...)
	if r.TableKind != "" {
		s := r.TableKind + " partition table"
		if r.Table != nil {
			s += " " + r.Table.DiskGUID.String()
		}
		out = append(out, s)
	}
	for _, p := range r.Parts {
		s := fmt.Sprintf("partition %d, %s", p.Number, Size(p.Size))
		if p.Name != "" {
			s += fmt.Sprintf(", %q", p.Name)
		}
		if len(p.Signatures) > 0 {
			s += ": " + strings.Join(p.Signatures, ", ")
		}
		out = append(out, s)
	}
	return out
}

// Disk looks at a whole disk of size bytes.
func Disk(r io.ReaderAt, size, sectorSize int64) (Report, error) {
	var rep Report
	if err := readable(r, size); err != nil {
		return rep, err
	}
	rep.Signatures = Signatures(r, size)
	t, err := gpt.Read(r, size, sectorSize)
	switch {
	case err == nil:
		rep.Table, rep.TableKind = t, "gpt"
		for _, p := range t.Partitions {
			start, n := t.Start(p), t.Size(p)
			rep.Parts = append(rep.Parts, Part{p.Number, p.Name, start, n, Signatures(io.NewSectionReader(r, start, n), n)})
		}
	case errors.Is(err, gpt.ErrNone):
		rep.dos(r, size, sectorSize)
	default:
		rep.TableKind = "gpt (damaged)"
	}
	return rep, nil
}

// dos reads an MBR. A FAT or NTFS volume without partitions has the same end mark, and a boot sector's
// code where the entries would be, so entries count only if they all make sense.
func (rep *Report) dos(r io.ReaderAt, size, sectorSize int64) {
	b := make([]byte, 512)
	if _, err := r.ReadAt(b, 0); err != nil || b[510] != 0x55 || b[511] != 0xAA {
		return
	}
	var parts []Part
	for i := range 4 {
		e := b[446+16*i:][:16]
		start := int64(binary.LittleEndian.Uint32(e[8:])) * sectorSize
		n := int64(binary.LittleEndian.Uint32(e[12:])) * sectorSize
		if e[4] == 0 && n == 0 {
			continue
		}
		if e[0]&0x7F != 0 || n == 0 || start == 0 || start >= size {
			return
		}
		n = min(n, size-start)
		parts = append(parts, Part{Number: i + 1, Start: start, Size: n, Signatures: Signatures(io.NewSectionReader(r, start, n), n)})
	}
	if len(parts) == 0 {
		if len(rep.Signatures) == 0 && !bytes.Equal(b[:446], make([]byte, 446)) {
			rep.Signatures = append(rep.Signatures, "boot sector")
		}
		return
	}
	rep.TableKind, rep.Parts = "dos", parts
}

// Signatures that a volume of size bytes carries.
func Signatures(r io.ReaderAt, size int64) []string {
	var out []string
	add := func(name string) {
		for _, have := range out {
			if have == name {
				return
			}
		}
		out = append(out, name)
	}
	for _, m := range magics {
		off := m.offset
		if off < 0 {
			off += size
		}
		if has(r, size, off, m.bytes) {
			add(m.name)
		}
	}
	// Linux RAID metadata 1.0 sits 8 KiB before the end, 0.90 in the last 64 KiB aligned block before the last.
	if has(r, size, size&^4095-8192, "\xFC\x4E\x2B\xA9") || has(r, size, size&^65535-65536, "\xFC\x4E\x2B\xA9") {
		add("Linux RAID member")
	}
	if zfs(r, size) {
		add("ZFS member")
	}
	return out
}

// zfs looks for an uberblock in the first and the last two labels. A label is 256 KiB with its
// uberblocks in the upper half.
func zfs(r io.ReaderAt, size int64) bool {
	const label = 256 << 10
	end := size / label * label
	for _, at := range []int64{0, label, end - 2*label, end - label} {
		for off := at + label/2; off >= 0 && off < at+label; off += 4096 {
			if has(r, size, off, "\x0C\xB1\xBA\x00\x00\x00\x00\x00") || has(r, size, off, "\x00\x00\x00\x00\x00\xBA\xB1\x0C") {
				return true
			}
		}
	}
	return false
}

func has(r io.ReaderAt, size, off int64, want string) bool {
	if off < 0 || off+int64(len(want)) > size {
		return false
	}
	b := make([]byte, len(want))
	_, err := r.ReadAt(b, off)
	return (err == nil || errors.Is(err, io.EOF)) && string(b) == want
}

// readable tells a blank disk from one that cannot be read: only the first must ever count as blank.
func readable(r io.ReaderAt, size int64) error {
	b := make([]byte, 512)
	for _, off := range []int64{0, size - 512} {
		if off < 0 {
			return fmt.Errorf("a disk of %d bytes is too small to look at", size)
		}
		if n, err := r.ReadAt(b, off); n < len(b) {
			return fmt.Errorf("read at byte %d: %w", off, err)
		}
	}
	return nil
}

// Size is a number of bytes for a person.
func Size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, names := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	i := 0
	for v >= unit && i < len(names)-1 {
		v /= unit
		i++
	}
	if v >= 100 || v == float64(int64(v)) {
		return fmt.Sprintf("%.0f %s", v, names[i])
	}
	return fmt.Sprintf("%.1f %s", v, names[i])
}
