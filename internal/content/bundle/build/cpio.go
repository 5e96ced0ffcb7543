package build

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"time"
)

// File types and bits of a cpio mode, as in stat(2).
const (
	cpioDir     = 0o040000
	cpioFile    = 0o100000
	cpioLink    = 0o120000
	cpioCharDev = 0o020000
)

// cpioWriter writes an archive in the "newc" format, which the kernel unpacks as initramfs
// (Documentation/driver-api/early-userspace/buffer-format). All files belong to root.
type cpioWriter struct {
	w    io.Writer
	time time.Time
	n    int64 // bytes written
	ino  int
	dirs map[string]bool
}

func newCPIO(w io.Writer, t time.Time) *cpioWriter {
	return &cpioWriter{w: w, time: t, dirs: map[string]bool{".": true, "/": true}}
}

// dir adds a folder and those above it, unless they are there.
func (c *cpioWriter) dir(name string) error {
	var missing []string
	for ; !c.dirs[name]; name = path.Dir(name) {
		missing = append(missing, name)
		c.dirs[name] = true
	}
	slices.Reverse(missing)
	for _, m := range missing {
		if err := c.entry(m, cpioDir|0o755, 0, 0, 0, nil); err != nil {
			return err
		}
	}
	return nil
}

func (c *cpioWriter) file(name string, perm fs.FileMode, size int64, r io.Reader) error {
	if err := c.dir(path.Dir(name)); err != nil {
		return err
	}
	return c.entry(name, cpioFile|uint32(perm.Perm()), size, 0, 0, r)
}

func (c *cpioWriter) symlink(name, target string) error {
	if err := c.dir(path.Dir(name)); err != nil {
		return err
	}
	return c.entry(name, cpioLink|0o777, int64(len(target)), 0, 0, stringReader(target))
}

func (c *cpioWriter) device(name string, perm fs.FileMode, major, minor int) error {
	if err := c.dir(path.Dir(name)); err != nil {
		return err
	}
	return c.entry(name, cpioCharDev|uint32(perm.Perm()), 0, major, minor, nil)
}

// close writes the end mark. The length becomes a multiple of 4, so that another archive can follow.
func (c *cpioWriter) close() error {
	c.time = time.Unix(0, 0)
	return c.entry("TRAILER!!!", 0, 0, 0, 0, nil)
}

func (c *cpioWriter) entry(name string, mode uint32, size int64, major, minor int, r io.Reader) error {
	if size > 1<<32-1 {
		return fmt.Errorf("cpio: %s has %d bytes, more than the format can say", name, size)
	}
	c.ino++
	nlink := 1
	if mode&cpioDir == cpioDir && mode&cpioFile != cpioFile {
		nlink = 2
	}
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.ino, mode, 0, 0, nlink, c.time.Unix(), size, 0, 0, major, minor, len(name)+1, 0, name)
	if err := c.write(header); err != nil {
		return err
	}
	if err := c.pad(); err != nil {
		return err
	}
	if r != nil {
		n, err := io.Copy(c.w, r)
		c.n += n
		if err == nil && n != size {
			err = fmt.Errorf("has %d bytes, want %d", n, size)
		}
		if err != nil {
			return fmt.Errorf("cpio: %s: %w", name, err)
		}
	}
	return c.pad()
}

func (c *cpioWriter) write(s string) error {
	n, err := io.WriteString(c.w, s)
	c.n += int64(n)
	return err
}

func (c *cpioWriter) pad() error { return c.write("\x00\x00\x00"[:(4-c.n%4)%4]) }
