// Package diskfile reads whole-disk images as they are published: raw, compressed as one stream (gzip, bzip2, xz, zstd), or as
// qcow2. The format is recognized by content, never by a file's name. It is pure Go: whoever imports an image needs no other program.
package diskfile

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Format of a file.
type Format string

// The formats that are read.
const (
	Raw   Format = "raw"
	Gzip  Format = "gzip"
	Bzip2 Format = "bzip2"
	XZ    Format = "xz"
	Zstd  Format = "zstd"
	QCOW2 Format = "qcow2"
)

// File is an open image. Read gives the raw disk, from its first byte.
type File struct {
	Format Format
	// Size of the raw disk in bytes; -1 where only reading to the end tells.
	Size int64

	file  *os.File
	size  int64 // of the file
	count *counter
	raw   io.Reader
	done  func()
}

// counter counts the bytes of the file that were read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// probed is how much of a file is looked at: a tar archive says what it is at byte 257.
const probed = 512

// Open recognizes the format of the file at path.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("disk image: %w", err)
	}
	d := &File{file: f, Size: -1, done: func() {}}
	if err := d.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("disk image %s: %w", path, err), f.Close())
	}
	return d, nil
}

func (d *File) open() error {
	st, err := d.file.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("is not a regular file")
	}
	if d.size = st.Size(); d.size == 0 {
		return errors.New("is empty; copy it again")
	}
	d.count = &counter{r: d.file}
	head, err := bufio.NewReaderSize(io.NewSectionReader(d.file, 0, d.size), probed).Peek(int(min(probed, d.size)))
	if err != nil {
		return err
	}
	if d.Format, err = recognize(head); err != nil {
		return err
	}
	switch d.Format {
	case Raw:
		d.raw, d.Size = d.count, d.size
		return nil
	case QCOW2:
		q, err := openQCOW2(d.file, d.size)
		if err != nil {
			return err
		}
		d.Size = q.size
		d.raw = &qcow2Reader{q: q}
		return nil
	}
	if d.raw, d.done, err = unpack(d.Format, bufio.NewReaderSize(d.count, 1<<20)); err != nil {
		return fmt.Errorf("is damaged: %s: %w", d.Format, err)
	}
	return d.inside()
}

// inside looks at what a compressed file holds: images within images are refused, for a person can unpack them.
func (d *File) inside() error {
	b := bufio.NewReaderSize(d.raw, 1<<20)
	head, err := b.Peek(probed)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("is damaged: %s: %w", d.Format, err)
	}
	switch inner, err := recognize(head); {
	case err != nil:
		return fmt.Errorf("is %s, and inside it %w", d.Format, err)
	case inner != Raw:
		return fmt.Errorf("is %s, and inside it is another format, %s: unpack the outer one first", d.Format, inner)
	}
	d.raw = b
	return nil
}

func recognize(head []byte) (Format, error) {
	for _, known := range []struct {
		magic string
		is    Format
	}{
		{"\x1f\x8b\x08", Gzip}, {"BZh", Bzip2}, {"\xfd7zXZ\x00", XZ}, {"\x28\xb5\x2f\xfd", Zstd}, {"QFI\xfb", QCOW2},
	} {
		if bytes.HasPrefix(head, []byte(known.magic)) {
			return known.is, nil
		}
	}
	for _, foreign := range []struct {
		at          int
		magic, what string
	}{
		{0, "PK\x03\x04", "is a ZIP archive: unpack it, and give the image inside"},
		{257, "ustar", "is a tar archive: unpack it, and give the image inside"},
		{0, "KDMV", "is a VMDK: convert it with `qemu-img convert -O raw`"},
		{0, "vhdxfile", "is a VHDX: convert it with `qemu-img convert -O raw`"},
		{0, "conectix", "is a VHD: convert it with `qemu-img convert -O raw`"},
		{64, "\x7f\x10\xda\xbe", "is a VDI: convert it with `qemu-img convert -O raw`"},
	} {
		if len(head) >= foreign.at+len(foreign.magic) && string(head[foreign.at:foreign.at+len(foreign.magic)]) == foreign.magic {
			return "", errors.New(foreign.what)
		}
	}
	return Raw, nil
}

func unpack(f Format, r io.Reader) (io.Reader, func(), error) {
	nothing := func() {}
	switch f {
	case Gzip:
		z, err := gzip.NewReader(r)
		return z, nothing, err
	case Bzip2:
		return bzip2.NewReader(r), nothing, nil
	case XZ:
		// It takes as much memory as the file asks for; xz -9 asks for 64 MiB.
		z, err := xz.NewReader(r)
		return z, nothing, err
	case Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, nothing, err
		}
		return z, z.Close, nil
	}
	return nil, nothing, fmt.Errorf("%q cannot be unpacked", f)
}

// Read implements io.Reader.
func (d *File) Read(p []byte) (int, error) {
	n, err := d.raw.Read(p)
	switch {
	case err == nil || err == io.EOF: //nolint:errorlint // readers return it bare
		return n, err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return n, fmt.Errorf("the file ends too early; copy it again: %w", err)
	}
	return n, fmt.Errorf("read the %s file: %w", d.Format, err)
}

// Progress says how many bytes of how many were read; of the file where it is one stream, else of the raw disk.
func (d *File) Progress() (done, total int64) {
	if q, ok := d.raw.(*qcow2Reader); ok {
		return q.at, q.q.size
	}
	return d.count.n, d.size
}

// Close closes the file.
func (d *File) Close() error {
	d.done()
	return d.file.Close()
}
