package diskfile

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// qcow2 of version 2 and 3 (QEMU, docs/interop/qcow2.txt), as far as one file is one disk. What makes the disk depend on
// something else (a backing file, an external data file, a key) is refused: an image must be the same wherever it is read.
type qcow2 struct {
	r           io.ReaderAt
	file        int64 // bytes of the file
	size        int64 // bytes of the disk
	clusterBits uint
	l1          []uint64
	zstd        bool

	l2at int64 // of the table in l2, 0 for none
	l2   []uint64
	// The last compressed cluster, unpacked.
	packedAt uint64
	packed   []byte
	dec      *zstd.Decoder
}

const (
	qcowMaxSize = 1 << 46
	qcowMaxL1   = 32 << 20 // bytes; QEMU's own bound

	qcowDirty       = 1 << 0
	qcowCorrupt     = 1 << 1
	qcowData        = 1 << 2
	qcowCompression = 1 << 3
	qcowExtended    = 1 << 4

	qcowOffset     = 0x00fffffffffffe00
	qcowCompressed = 1 << 62
	qcowZero       = 1 << 0
)

func openQCOW2(r io.ReaderAt, file int64) (*qcow2, error) {
	be := binary.BigEndian
	h := make([]byte, 112)
	if n, err := r.ReadAt(h, 0); n < 72 {
		return nil, fmt.Errorf("qcow2: the header is cut short: %w", err)
	}
	version := be.Uint32(h[4:])
	q := &qcow2{r: r, file: file, clusterBits: uint(be.Uint32(h[20:])), size: int64(be.Uint64(h[24:]))}
	var features uint64
	headerLength := uint32(72)
	if version >= 3 {
		features, headerLength = be.Uint64(h[72:]), be.Uint32(h[100:])
	}
	l1Entries := int64(be.Uint32(h[36:]))
	l1At := int64(be.Uint64(h[40:]))
	switch {
	case version != 2 && version != 3:
		return nil, fmt.Errorf("qcow2: version %d; 2 and 3 are read", version)
	case be.Uint64(h[8:]) != 0:
		return nil, errors.New("qcow2: it has a backing file, without which it is no whole disk: make one file of both with `qemu-img convert -O qcow2`")
	case be.Uint32(h[32:]) != 0:
		return nil, errors.New("qcow2: it is encrypted: give the decrypted image")
	case features&qcowData != 0:
		return nil, errors.New("qcow2: its data is in another file: make one file of both with `qemu-img convert -O qcow2`")
	case features&qcowCorrupt != 0:
		return nil, errors.New("qcow2: it is marked as corrupt: repair it with `qemu-img check -r all`, or copy it again")
	case features&qcowExtended != 0:
		return nil, errors.New("qcow2: it has extended L2 entries: convert it with `qemu-img convert -O qcow2`")
	case features&^(qcowDirty|qcowCompression) != 0:
		return nil, fmt.Errorf("qcow2: features %#x are not known: convert it with `qemu-img convert -O raw`", features)
	case q.clusterBits < 9 || q.clusterBits > 21:
		return nil, fmt.Errorf("qcow2: clusters of 2^%d bytes; 2^9 to 2^21 are read", q.clusterBits)
	case q.size <= 0 || q.size > qcowMaxSize:
		return nil, fmt.Errorf("qcow2: a disk of %d bytes", q.size)
	}
	if features&qcowCompression != 0 && headerLength > 104 {
		switch h[104] {
		case 0:
		case 1:
			q.zstd = true
		default:
			return nil, fmt.Errorf("qcow2: compression of type %d; zlib and zstd are read", h[104])
		}
	}
	// One L2 table is a cluster of entries of eight bytes.
	covered := int64(1) << (2*q.clusterBits - 3)
	if need := (q.size + covered - 1) / covered; l1Entries < need || l1Entries*8 > qcowMaxL1 {
		return nil, fmt.Errorf("qcow2: a first-level table of %d entries for a disk of %d bytes", l1Entries, q.size)
	}
	var err error
	if q.l1, err = q.table(l1At, l1Entries); err != nil {
		return nil, fmt.Errorf("qcow2: first-level table: %w", err)
	}
	return q, nil
}

func (q *qcow2) table(at, entries int64) ([]uint64, error) {
	if at <= 0 || at > q.file-entries*8 {
		return nil, fmt.Errorf("%d entries at byte %d of a file of %d bytes; it is cut short or damaged", entries, at, q.file)
	}
	b := make([]byte, entries*8)
	if _, err := q.r.ReadAt(b, at); err != nil {
		return nil, err
	}
	out := make([]uint64, entries)
	for i := range out {
		out[i] = binary.BigEndian.Uint64(b[i*8:])
	}
	return out, nil
}

// cluster fills p, which is one cluster, with the one of that number.
func (q *qcow2) cluster(number int64, p []byte) error {
	perTable := int64(1) << (q.clusterBits - 3)
	at := int64(q.l1[number/perTable] & qcowOffset)
	if at == 0 {
		clear(p)
		return nil
	}
	if at != q.l2at {
		l2, err := q.table(at, perTable)
		if err != nil {
			return fmt.Errorf("second-level table: %w", err)
		}
		q.l2, q.l2at = l2, at
	}
	entry := q.l2[number%perTable]
	switch {
	case entry&qcowCompressed != 0:
		return q.compressed(entry, p)
	case entry&qcowZero != 0 || entry&qcowOffset == 0:
		clear(p)
		return nil
	}
	from := int64(entry & qcowOffset)
	n, err := q.r.ReadAt(p, from)
	// The last cluster of a file may be shorter, if the disk ends in it.
	if n < len(p) && (!errors.Is(err, io.EOF) || number != (q.size-1)>>q.clusterBits) {
		return fmt.Errorf("data at byte %d of a file of %d bytes; it is cut short or damaged", from, q.file)
	}
	clear(p[n:])
	return nil
}

func (q *qcow2) compressed(entry uint64, p []byte) error {
	if q.packed != nil && q.packedAt == entry {
		copy(p, q.packed)
		return nil
	}
	bits := 62 - (q.clusterBits - 8)
	from := int64(entry & (1<<bits - 1))
	sectors := int64(entry>>bits&(1<<(q.clusterBits-8)-1)) + 1
	n := min(sectors*512-from%512, q.file-from)
	if n <= 0 {
		return fmt.Errorf("compressed data at byte %d of a file of %d bytes; it is cut short or damaged", from, q.file)
	}
	b := make([]byte, n)
	if _, err := q.r.ReadAt(b, from); err != nil {
		return fmt.Errorf("compressed data at byte %d: %w", from, err)
	}
	if q.packed == nil {
		q.packed = make([]byte, len(p))
	}
	q.packedAt = 0
	// What follows the cluster's data in its last sector is no part of it.
	if err := q.unpack(b); err != nil {
		return fmt.Errorf("compressed data at byte %d: %w", from, err)
	}
	q.packedAt = entry
	copy(p, q.packed)
	return nil
}

func (q *qcow2) unpack(b []byte) error {
	if !q.zstd {
		_, err := io.ReadFull(flate.NewReader(bytes.NewReader(b)), q.packed)
		return err
	}
	if q.dec == nil {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return err
		}
		q.dec = dec
	}
	if err := q.dec.Reset(bytes.NewReader(b)); err != nil {
		return err
	}
	_, err := io.ReadFull(q.dec, q.packed)
	return err
}

// qcow2Reader reads the disk from its beginning.
type qcow2Reader struct {
	q   *qcow2
	at  int64
	buf []byte
}

func (r *qcow2Reader) Read(p []byte) (int, error) {
	if r.at >= r.q.size {
		return 0, io.EOF
	}
	size := int64(1) << r.q.clusterBits
	if r.buf == nil {
		r.buf = make([]byte, size)
	}
	in := r.at % size
	if in == 0 {
		if err := r.q.cluster(r.at/size, r.buf); err != nil {
			return 0, fmt.Errorf("byte %d of the disk: %w", r.at, err)
		}
	}
	n := copy(p, r.buf[in:min(size, in+r.q.size-r.at)])
	r.at += int64(n)
	return n, nil
}
