package probe

import (
	"fmt"
	"io"
	"slices"
)

// Range of bytes on a disk.
type Range struct{ Start, Size int64 }

// place is where in a volume a signature lies: so many bytes from its start, or from its end where back is set. The end is
// rounded down to a multiple of align first, where a format does that.
type place struct {
	offset int64
	back   bool
	align  int64
}

func (p place) in(size int64) int64 {
	if !p.back {
		return p.offset
	}
	if p.align > 0 {
		size -= size % p.align
	}
	return size - p.offset
}

func at(offsets ...int64) (out []place) {
	for _, o := range offsets {
		out = append(out, place{offset: o})
	}
	return out
}

// fromEnd is back bytes before the end, and plus bytes into what begins there.
func fromEnd(align, plus int64, back ...int64) (out []place) {
	for _, b := range back {
		out = append(out, place{offset: b - plus, back: true, align: align})
	}
	return out
}

func both(a, b []place) []place { return slices.Concat(a, b) }

// signature is what tells that a format is there. It is enough that a kernel, a tool of Linux or firmware would look closer.
type signature struct {
	name  string
	bytes string
	where []place
	// firmware marks members of arrays that a BIOS or UEFI assembles. They are looked for on whole disks only.
	firmware bool
}

const (
	kib = int64(1) << 10
	mib = kib << 10
	gib = mib << 10

	// Edge is how much of the start and the end of a volume holds all signatures but a few. The others are in Places.
	Edge = 4 * mib
)

// signatures of what Linux or firmware would assemble, mount or open. Order matters only for the report.
//
// Sources: the on-disk formats as the kernel documents and defines them (Documentation/filesystems, fs/*/, drivers/md/md_p.h, bcache's
// and DRBD's headers), the manuals and headers of LVM2, mdadm (super-intel.c, super-ddf.c; SNIA DDF 2.0 chapter 4) and
// cryptsetup (LUKS2 On-Disk Format 1.1, chapter 2), OpenZFS' vdev labels, Ceph's bluestore_types and BlueStore.h (label positions),
// and where util-linux' libblkid looks.
var signatures = []signature{
	{name: "ext2/3/4", bytes: "\x53\xEF", where: at(0x438)},
	{name: "XFS", bytes: "XFSB", where: at(0)},
	{name: "btrfs", bytes: "_BHRfS_M", where: at(64*kib+0x40, 64*mib+0x40, 256*gib+0x40)}, // and its two mirrors
	{name: "bcachefs", bytes: "\xC6\x85\x73\xF6\x66\xCE\x90\xA9\xD9\x6A\x60\xCF\x80\x3D\xF7\xEF", where: at(0x1018)},
	{name: "NTFS", bytes: "NTFS    ", where: at(3)},
	{name: "exFAT", bytes: "EXFAT   ", where: at(3)},
	{name: "FAT", bytes: "FAT1", where: at(0x36)},
	{name: "FAT32", bytes: "FAT32", where: at(0x52)},
	{name: "ReFS", bytes: "ReFS", where: at(3)},
	{name: "BitLocker", bytes: "-FVE-FS-", where: at(3)},
	{name: "ISO 9660", bytes: "CD001", where: at(0x8001)},
	{name: "UDF", bytes: "BEA01", where: at(0x8001)},
	{name: "squashfs", bytes: "hsqs", where: at(0)},
	{name: "EROFS", bytes: "\xE2\xE1\xF5\xE0", where: at(0x400)},
	{name: "F2FS", bytes: "\x10\x20\xF5\xF2", where: at(0x400, 0x1400)},
	{name: "NILFS2", bytes: "\x34\x34", where: both(at(0x406), fromEnd(512, 6, 4*kib))},
	{name: "JFS", bytes: "JFS1", where: at(0x8000)},
	{name: "ReiserFS", bytes: "ReIsEr", where: at(0x10034, 0x2034)},
	{name: "GFS2", bytes: "\x01\x16\x19\x70", where: at(0x10000)},
	{name: "OCFS2", bytes: "OCFSV2", where: at(0x400, 0x800, 0x1000, 0x2000)},
	{name: "VxFS", bytes: "\xF5\xFC\x01\xA5", where: at(0x400)},
	{name: "APFS", bytes: "NXSB", where: at(0x20)},
	{name: "swap", bytes: "SWAPSPACE2", where: at(4*kib-10, 8*kib-10, 16*kib-10, 64*kib-10)}, // the last bytes of a page of any size
	{name: "swap", bytes: "SWAP-SPACE", where: at(4*kib-10, 8*kib-10, 16*kib-10, 64*kib-10)},
	{name: "LUKS", bytes: "LUKS\xBA\xBE", where: at(0)},
	{name: "LUKS", bytes: "SKUL\xBA\xBE", where: at(16*kib, 32*kib, 64*kib, 128*kib, 256*kib, 512*kib, mib, 2*mib, 4*mib)}, // LUKS2's second header
	{name: "LVM2 physical volume", bytes: "LABELONE", where: at(0, 0x200, 0x400, 0x600)},
	{name: "Linux RAID member", bytes: "\xFC\x4E\x2B\xA9", where: slices.Concat(
		at(0, 4*kib),                 // metadata 1.1, 1.2
		fromEnd(4*kib, 0, 8*kib),     // 1.0
		fromEnd(64*kib, 0, 64*kib))}, // 0.90
	{name: "Linux RAID member", bytes: "\xA9\x2B\x4E\xFC", where: fromEnd(64*kib, 0, 64*kib)}, // 0.90 of a big-endian machine
	{name: "bcache", bytes: "\xC6\x85\x73\xF6\x4E\x1A\x45\xCA\x82\x65\xF5\x7F\x48\xBA\x6D\x81", where: at(0x1018)},
	{name: "VDO", bytes: "dmvdo001", where: at(0)},
	{name: "Stratis", bytes: "!Stra0tis\x86\xFF\x02^\x41rh", where: at(0x204, 0x1204)},
	{name: "Ceph BlueStore", bytes: "bluestore block device", where: at(0, gib, 10*gib, 100*gib, 1000*gib)},
	{name: "VMFS", bytes: "\x0D\xD0\x01\xC0", where: at(mib)},
	{name: "VMFS", bytes: "\x5E\xF1\xAB\x2F", where: at(2 * mib)},
	{name: "Oracle ASM", bytes: "ORCLDISK", where: at(0x20)},
	{name: "DRBD", bytes: "\x83\x74\x02\x6A", where: both(fromEnd(4*kib, 0x3C, 4*kib), fromEnd(0, 0x3C, 4*kib))}, // 0.7
	{name: "DRBD", bytes: "\x83\x74\x02\x6B", where: both(fromEnd(4*kib, 0x3C, 4*kib), fromEnd(0, 0x3C, 4*kib))}, // 8
	{name: "DRBD", bytes: "\x83\x74\x02\x6C", where: both(fromEnd(4*kib, 0x3C, 4*kib), fromEnd(0, 0x3C, 4*kib))}, // 8.4, not shut down cleanly
	{name: "DRBD", bytes: "\x83\x74\x02\x6D", where: both(fromEnd(4*kib, 0x3C, 4*kib), fromEnd(0, 0x3C, 4*kib))}, // 9

	{name: "Intel RAID member", bytes: "Intel Raid ISM Cfg Sig. ", where: fromEnd(512, 0, 1024, 8192), firmware: true}, // sectors of 512 and 4096 bytes
	{name: "DDF RAID member", bytes: "\xDE\x11\xDE\x11", where: fromEnd(512, 0, 512, 257*512), firmware: true},
	{name: "DDF RAID member", bytes: "\x11\xDE\x11\xDE", where: fromEnd(512, 0, 512, 257*512), firmware: true},
	{name: "LSI MegaRAID member", bytes: "$XIDE$", where: fromEnd(512, 0, 512), firmware: true},
	{name: "NVIDIA RAID member", bytes: "NVIDIA", where: fromEnd(512, 0, 1024), firmware: true},
	{name: "Adaptec RAID member", bytes: "\x37\xFC\x4D\x1E", where: fromEnd(512, 0, 512), firmware: true},
	{name: "HighPoint RAID member", bytes: "\xF0\x16\x78\x5A", where: at(0x1220), firmware: true},
	{name: "HighPoint RAID member", bytes: "\xFD\x16\x78\x5A", where: at(0x1220), firmware: true},
	{name: "HighPoint RAID member", bytes: "\xF3\x16\x78\x5A", where: fromEnd(512, 0, 11*512), firmware: true},
	{name: "HighPoint RAID member", bytes: "\xFD\x16\x78\x5A", where: fromEnd(512, 0, 11*512), firmware: true},
	{name: "Promise RAID member", bytes: "Promise Technology, Inc.", firmware: true, where: fromEnd(512, 0,
		16*512, 63*512, 255*512, 256*512, 399*512, 591*512, 675*512, 735*512, 911*512, 951*512, 974*512, 991*512, 3087*512)},
}

// zfsMember is the one format whose signature moves: see zfs.
const zfsMember = "ZFS member"

// Places are the ranges of a volume of size bytes in which signatures can lie: its start, its end, and the few places between, in this
// order but for the end, which comes last. Where they are zeros, nothing is found.
func Places(size int64) []Range {
	out := []Range{{0, min(Edge, size)}}
	const block = 4 * kib
	for _, s := range signatures {
		for _, p := range s.where {
			off := p.in(size)
			if p.back || off+int64(len(s.bytes)) <= Edge || off+block > size-Edge {
				continue
			}
			out = append(out, Range{off / block * block, block})
		}
	}
	if size > Edge {
		tail := min(Edge, size-Edge)
		out = append(out, Range{size - tail, tail})
	}
	return out
}

// Signatures that a volume of size bytes carries. What cannot be read counts as one: who cannot look does not know that nothing is there.
func Signatures(r io.ReaderAt, size int64) []string {
	out, _ := search(r, size, false)
	return out
}

// search also returns the name of a firmware's RAID, which only a whole disk is a member of.
func search(r io.ReaderAt, size int64, whole bool) (found []string, firmware string) {
	v := volume{r: r, size: size}
	add := func(name string) {
		if !slices.Contains(found, name) {
			found = append(found, name)
		}
	}
	for _, s := range signatures {
		if s.firmware && !whole {
			continue
		}
		for _, p := range s.where {
			if v.has(p.in(size), s.bytes) {
				add(s.name)
				if s.firmware {
					firmware = s.name
				}
			}
		}
	}
	if v.zfs() {
		add(zfsMember)
	}
	if v.err != nil {
		add(v.err.Error())
	}
	return found, firmware
}

// volume is read in small pieces until that fails: each further attempt costs minutes on a disk that dies.
type volume struct {
	r    io.ReaderAt
	size int64
	err  error
}

// read fills b. What lies outside the volume is not there.
func (v *volume) read(b []byte, off int64) bool {
	if v.err != nil || off < 0 || off+int64(len(b)) > v.size {
		return false
	}
	if n, err := v.r.ReadAt(b, off); n < len(b) {
		v.err = fmt.Errorf("unreadable at byte %d: %w", off, err)
		return false
	}
	return true
}

func (v *volume) has(off int64, want string) bool {
	b := make([]byte, len(want))
	return v.read(b, off) && string(b) == want
}

// zfs looks for an uberblock in the first and the last two labels. A label is 256 KiB with its
// uberblocks in the upper half.
func (v *volume) zfs() bool {
	const label = 256 * kib
	end := v.size / label * label
	ring := make([]byte, label/2)
	for _, start := range []int64{0, label, end - 2*label, end - label} {
		if !v.read(ring, start+label/2) {
			continue
		}
		for b := range slices.Chunk(ring, 1024) { // the least that an uberblock takes
			if head := string(b[:8]); head == "\x0C\xB1\xBA\x00\x00\x00\x00\x00" || head == "\x00\x00\x00\x00\x00\xBA\xB1\x0C" {
				return true
			}
		}
	}
	return false
}

// written says whether start or end of a volume hold anything. Factories and erased flash leave zeros or ones.
func (v *volume) written() bool {
	n := min(mib, v.size)
	b := make([]byte, n)
	for _, off := range []int64{0, v.size - n} {
		if v.read(b, off) && !uniform(b, 0) && !uniform(b, 0xFF) {
			return true
		}
	}
	return false
}

func uniform(b []byte, value byte) bool {
	for _, c := range b {
		if c != value {
			return false
		}
	}
	return true
}
