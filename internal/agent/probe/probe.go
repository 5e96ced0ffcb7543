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
	// Firmware names the RAID of a BIOS or UEFI that the disk is a member of, or "".
	Firmware string
}

// unknownData is reported of a disk that holds something at its edges, and nothing that has a name.
const unknownData = "unknown data, in no format that is known"

// Part is one partition.
type Part struct {
	Number      int // 0 for the extended partition around logical ones
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
		if p.Number == 0 {
			continue // the frame of what follows
		}
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
	if size < 512 {
		return rep, fmt.Errorf("a disk of %d bytes is too small to look at", size)
	}
	v := volume{r: r, size: size}
	written := v.written()
	if v.err != nil {
		return rep, v.err
	}
	rep.Signatures, rep.Firmware = search(r, size, true)
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
	if written && rep.Blank() {
		rep.Signatures = []string{unknownData}
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
		e := entry(b, i)
		start, n := int64(e.start)*sectorSize, int64(e.sectors)*sectorSize
		if e.kind == 0 && n == 0 {
			continue
		}
		if e.flags&0x7F != 0 || n == 0 || start == 0 || start >= size {
			return
		}
		n = min(n, size-start)
		if e.extended() {
			parts = append(parts, logical(r, start, n, sectorSize)...)
			continue
		}
		parts = append(parts, partOf(r, i+1, start, n))
	}
	if len(parts) == 0 {
		if len(rep.Signatures) == 0 && !bytes.Equal(b[:446], make([]byte, 446)) {
			rep.Signatures = append(rep.Signatures, "boot sector")
		}
		return
	}
	rep.TableKind, rep.Parts = "dos", parts
}

// dosEntry of an MBR, or of the record before a logical partition.
type dosEntry struct {
	flags, kind    byte
	start, sectors uint32
}

func entry(b []byte, i int) dosEntry {
	e := b[446+16*i:][:16]
	return dosEntry{e[0], e[4], binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])}
}

// extended partitions hold logical ones: by CHS, by LBA, and Linux' own.
func (e dosEntry) extended() bool { return e.kind == 0x05 || e.kind == 0x0F || e.kind == 0x85 }

// logical follows the chain of records in an extended partition of size bytes: each names a partition, counted from the record, and the
// next record, counted from the extended partition. The extended partition itself is the first in the list, without a number, so that its
// edges count as well.
func logical(r io.ReaderAt, start, size, sectorSize int64) []Part {
	out := []Part{{Name: "extended", Start: start, Size: size}}
	b := make([]byte, 512)
	for number, at := 5, int64(0); number < 5+128 && at < size; number++ {
		if _, err := r.ReadAt(b, start+at); err != nil || b[510] != 0x55 || b[511] != 0xAA {
			break
		}
		e, next := entry(b, 0), entry(b, 1)
		from, n := at+int64(e.start)*sectorSize, int64(e.sectors)*sectorSize
		if e.start > 0 && n > 0 && from < size {
			out = append(out, partOf(r, number, start+from, min(n, size-from)))
		}
		if !next.extended() || int64(next.start)*sectorSize <= at {
			break
		}
		at = int64(next.start) * sectorSize
	}
	return out
}

func partOf(r io.ReaderAt, number int, start, size int64) Part {
	return Part{Number: number, Start: start, Size: size, Signatures: Signatures(io.NewSectionReader(r, start, size), size)}
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
