// Package fat makes a FAT32 file system with a handful of files in it, in one go and without the
// kernel's help: an EFI system partition needs no more, and so the installer needs neither mkfs nor
// the vfat and codepage modules.
//
// Layout after Microsoft's "FAT: General Overview of On-Disk Format" 1.03, which the UEFI specification
// refers to (13.3). Names are of the 8.3 kind; case does not matter in them.
package fat

import (
	"encoding/binary"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

const (
	reserved    = 32 // sectors before the first FAT, as every formatter has it
	fats        = 2
	rootCluster = 2
	entrySize   = 32
	minClusters = 65525 // below it, by definition, a file system is not FAT32
	endOfChain  = 0x0FFFFFFF
	attrVolume  = 0x08
	attrDir     = 0x10
	attrArchive = 0x20
	fatDate     = (2020-1980)<<9 | 1<<5 | 1 // every file has the same date: the content decides, nothing else
)

// Volume says what to make.
type Volume struct {
	Size       int64 // of the partition, in bytes
	SectorSize int64 // of the disk
	Start      int64 // of the partition on the disk, in bytes; some firmware reads it
	ID         uint32
	Label      string            // at most 11 capital letters and digits
	Files      map[string][]byte // by path, with slashes
}

// UUID is the name of the volume below /dev/disk/by-uuid and in fstab.
func (v Volume) UUID() string { return fmt.Sprintf("%04X-%04X", v.ID>>16, v.ID&0xFFFF) }

type geometry struct {
	sector, cluster int64 // bytes
	fatSectors      int64
	clusters        int64
	data            int64 // where cluster 2 begins, in bytes
}

func (v Volume) geometry() (geometry, error) {
	if v.SectorSize < 512 || v.SectorSize > 4096 || v.SectorSize&(v.SectorSize-1) != 0 {
		return geometry{}, fmt.Errorf("FAT32: sectors of %d bytes", v.SectorSize)
	}
	sectors := v.Size / v.SectorSize
	if sectors > 1<<32-1 {
		return geometry{}, fmt.Errorf("FAT32: %d bytes are too many", v.Size)
	}
	g := geometry{sector: v.SectorSize}
	for per := int64(8); per >= 1; per /= 2 {
		g.cluster = per * v.SectorSize
		// One FAT entry of 4 bytes for each cluster, two entries in front. The FATs shrink what they describe;
		// a little too large is fine.
		g.fatSectors = ((sectors/per+2)*4 + v.SectorSize - 1) / v.SectorSize
		g.data = (reserved + fats*g.fatSectors) * v.SectorSize
		g.clusters = (sectors*v.SectorSize - g.data) / g.cluster
		if g.clusters >= minClusters {
			return g, nil
		}
	}
	return g, fmt.Errorf("FAT32: a volume of %d bytes is too small for sectors of %d", v.Size, v.SectorSize)
}

// dir is a folder while the tree is laid out.
type dir struct {
	name    string
	parent  *dir
	dirs    map[string]*dir
	files   map[string][]byte
	cluster int64
	bytes   []byte
}

// Format writes the volume onto w, which begins where the partition does. Only what a reader looks at is
// written: the space of no file keeps what it had.
func Format(w io.WriterAt, v Volume) error {
	g, err := v.geometry()
	if err != nil {
		return err
	}
	root, err := v.tree()
	if err != nil {
		return err
	}
	f := &formatter{w: w, g: g, fat: make([]byte, g.fatSectors*g.sector)}
	f.set(0, 0x0FFFFFF8)
	f.set(1, endOfChain)
	f.next = rootCluster
	if err := f.dir(root, v.Label); err != nil {
		return err
	}
	for i := range int64(fats) {
		if err := f.write(f.fat, (reserved+i*g.fatSectors)*g.sector); err != nil {
			return err
		}
	}
	boot, info := v.bootSector(g), f.infoSector()
	// Sectors 6 and 7 are the backup; the first sector comes last, for without it there is no volume.
	for _, s := range []struct {
		at int64
		b  []byte
	}{{6, boot}, {7, info}, {1, info}, {0, boot}} {
		if err := f.write(s.b, s.at*g.sector); err != nil {
			return err
		}
	}
	return nil
}

func (v Volume) tree() (*dir, error) {
	root := &dir{dirs: map[string]*dir{}, files: map[string][]byte{}}
	for name, content := range v.Files {
		d := root
		parts := strings.Split(path.Clean(name), "/")
		for _, part := range parts[:len(parts)-1] {
			if _, err := shortName(part); err != nil {
				return nil, err
			}
			part = strings.ToUpper(part)
			if d.dirs[part] == nil {
				d.dirs[part] = &dir{name: part, parent: d, dirs: map[string]*dir{}, files: map[string][]byte{}}
			}
			d = d.dirs[part]
		}
		last := parts[len(parts)-1]
		if _, err := shortName(last); err != nil {
			return nil, err
		}
		d.files[strings.ToUpper(last)] = content
	}
	return root, nil
}

type formatter struct {
	w    io.WriterAt
	g    geometry
	fat  []byte
	next int64 // first cluster that is free
}

func (f *formatter) write(b []byte, at int64) error {
	if _, err := f.w.WriteAt(b, at); err != nil {
		return fmt.Errorf("FAT32: write %d bytes at byte %d: %w", len(b), at, err)
	}
	return nil
}

func (f *formatter) set(cluster, value int64) {
	binary.LittleEndian.PutUint32(f.fat[4*cluster:], uint32(value))
}

// take reserves a chain of consecutive clusters for n bytes; an empty file has none.
func (f *formatter) take(n int64) (int64, error) {
	count := (n + f.g.cluster - 1) / f.g.cluster
	if count == 0 {
		return 0, nil
	}
	if f.next+count > f.g.clusters+2 {
		return 0, fmt.Errorf("FAT32: the files do not fit into %d clusters of %d bytes", f.g.clusters, f.g.cluster)
	}
	first := f.next
	for c := first; c < first+count; c++ {
		f.set(c, c+1)
	}
	f.set(first+count-1, endOfChain)
	f.next += count
	return first, nil
}

func (f *formatter) place(b []byte, cluster int64) error {
	if len(b) == 0 {
		return nil
	}
	// Whole clusters, so that nothing of what was on the disk shows behind a folder's last entry.
	padded := make([]byte, (int64(len(b))+f.g.cluster-1)/f.g.cluster*f.g.cluster)
	copy(padded, b)
	return f.write(padded, f.g.data+(cluster-2)*f.g.cluster)
}

// dir lays a folder and all below it out. The folder's own clusters come first, so that the root gets
// cluster 2.
func (f *formatter) dir(d *dir, label string) error {
	entries := len(d.dirs) + len(d.files) + 2
	var err error
	if d.cluster, err = f.take(int64(entries) * entrySize); err != nil {
		return err
	}
	if d.parent == nil {
		if label != "" {
			name := [11]byte([]byte(fmt.Sprintf("%-11.11s", strings.ToUpper(label))))
			d.bytes = append(d.bytes, entry(name, attrVolume, 0, 0)...)
		}
	} else {
		up := d.parent.cluster
		if d.parent.parent == nil {
			up = 0 // the root is named so in "..", whatever its cluster
		}
		d.bytes = append(d.bytes, entry([11]byte([]byte(".          ")), attrDir, d.cluster, 0)...)
		d.bytes = append(d.bytes, entry([11]byte([]byte("..         ")), attrDir, up, 0)...)
	}
	for _, name := range sorted(d.dirs) {
		sub := d.dirs[name]
		if err := f.dir(sub, ""); err != nil {
			return err
		}
		short, _ := shortName(name) // tree saw it
		d.bytes = append(d.bytes, entry(short, attrDir, sub.cluster, 0)...)
	}
	for _, name := range sorted(d.files) {
		content := d.files[name]
		cluster, err := f.take(int64(len(content)))
		if err != nil {
			return err
		}
		if err := f.place(content, cluster); err != nil {
			return err
		}
		short, _ := shortName(name)
		d.bytes = append(d.bytes, entry(short, attrArchive, cluster, len(content))...)
	}
	if len(d.bytes) == 0 {
		d.bytes = make([]byte, entrySize)
	}
	return f.place(d.bytes, d.cluster)
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func entry(name [11]byte, attr byte, cluster int64, size int) []byte {
	b := make([]byte, entrySize)
	copy(b, name[:])
	le := binary.LittleEndian
	b[11] = attr
	le.PutUint16(b[16:], fatDate)
	le.PutUint16(b[18:], fatDate)
	le.PutUint16(b[20:], uint16(cluster>>16))
	le.PutUint16(b[24:], fatDate)
	le.PutUint16(b[26:], uint16(cluster))
	le.PutUint32(b[28:], uint32(size))
	return b
}

// shortName is the directory's form of an 8.3 name.
func shortName(s string) ([11]byte, error) {
	base, ext, _ := strings.Cut(strings.ToUpper(s), ".")
	ok := len(base) >= 1 && len(base) <= 8 && len(ext) <= 3
	for _, r := range base + ext {
		ok = ok && (r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-')
	}
	if !ok {
		return [11]byte{}, fmt.Errorf("FAT32: %q is not a name of the 8.3 kind", s)
	}
	return [11]byte([]byte(fmt.Sprintf("%-8s%-3s", base, ext))), nil
}

func (v Volume) bootSector(g geometry) []byte {
	b := make([]byte, g.sector)
	le := binary.LittleEndian
	copy(b, []byte{0xEB, 0x58, 0x90})
	copy(b[3:], "COLDRACK")
	le.PutUint16(b[11:], uint16(g.sector))
	b[13] = byte(g.cluster / g.sector)
	le.PutUint16(b[14:], reserved)
	b[16] = fats
	b[21] = 0xF8 // a fixed disk
	le.PutUint16(b[24:], 63)
	le.PutUint16(b[26:], 255)
	le.PutUint32(b[28:], uint32(v.Start/v.SectorSize))
	le.PutUint32(b[32:], uint32(v.Size/v.SectorSize))
	le.PutUint32(b[36:], uint32(g.fatSectors))
	le.PutUint32(b[44:], rootCluster)
	le.PutUint16(b[48:], 1) // information sector
	le.PutUint16(b[50:], 6) // backup boot sector
	b[64] = 0x80
	b[66] = 0x29
	le.PutUint32(b[67:], v.ID)
	copy(b[71:82], fmt.Sprintf("%-11.11s", strings.ToUpper(v.Label)))
	copy(b[82:90], "FAT32   ")
	b[510], b[511] = 0x55, 0xAA
	return b
}

func (f *formatter) infoSector() []byte {
	b := make([]byte, f.g.sector)
	le := binary.LittleEndian
	le.PutUint32(b, 0x41615252)
	le.PutUint32(b[484:], 0x61417272)
	le.PutUint32(b[488:], uint32(f.g.clusters-(f.next-2)))
	le.PutUint32(b[492:], uint32(f.next))
	le.PutUint32(b[508:], 0xAA550000)
	return b
}
