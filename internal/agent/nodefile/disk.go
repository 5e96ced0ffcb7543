// Package nodefile keeps files on an installed node: each is whole or not there, whatever cuts the agent off, and a ledger
// remembers which of them are Coldrack's and which units have yet to be restarted for them.
package nodefile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/contract/wire"
)

// Disk is the file system below Root, "/" on a node. Paths are absolute within it.
type Disk struct{ Root string }

// At is where p is for this process.
func (d Disk) At(p string) string { return filepath.Join(d.Root, p) }

// PartOf is where a file is until it is complete. Whoever reads a folder as a whole (kubelet, containerd, systemd,
// CNI) passes over it: it begins with a dot and ends like nothing they know.
func PartOf(p string) string { return path.Join(path.Dir(p), "."+path.Base(p)+".coldrack-part") }

// Write replaces a file, or does nothing: a power cut leaves the old or the new one.
func (d Disk) Write(p string, content []byte, mode fs.FileMode) error {
	return d.Stream(p, mode, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// Stream is write for content that fill produces.
func (d Disk) Stream(p string, mode fs.FileMode, fill func(io.Writer) error) (err error) {
	if err := d.parents(p); err != nil {
		return err
	}
	part := d.At(PartOf(p))
	_ = os.Remove(part)
	defer func() {
		if err != nil {
			_ = os.Remove(part)
			err = d.Explain(p, err)
		}
	}()
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	err = fill(f)
	// The mode that a file is opened with is subject to the umask.
	if err = errors.Join(err, f.Chmod(mode)); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(part, d.At(p)); err != nil {
		return err
	}
	return d.Sync(path.Dir(p))
}

// Link replaces whatever is at p by a symbolic link.
func (d Disk) Link(p, target string) (err error) {
	if err := d.parents(p); err != nil {
		return err
	}
	part := d.At(PartOf(p))
	_ = os.Remove(part)
	if err := os.Symlink(target, part); err != nil {
		return d.Explain(p, err)
	}
	if err := os.Rename(part, d.At(p)); err != nil {
		_ = os.Remove(part)
		return d.Explain(p, err)
	}
	return d.Sync(path.Dir(p))
}

// Share replaces whatever is at p by another name of the file at from, on the same file system.
func (d Disk) Share(p, from string) error {
	if err := d.parents(p); err != nil {
		return err
	}
	part := d.At(PartOf(p))
	_ = os.Remove(part)
	if err := os.Link(d.At(from), part); err != nil {
		return d.Explain(p, err)
	}
	err := os.Rename(part, d.At(p))
	_ = os.Remove(part) // rename(2) leaves it when both are names of the same file already
	if err != nil {
		return d.Explain(p, err)
	}
	return d.Sync(path.Dir(p))
}

// Read reads a file, through links that lead to another place of this disk.
func (d Disk) Read(p string) ([]byte, error) {
	for range 8 {
		target, err := os.Readlink(d.At(p))
		if err != nil {
			break
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(p), target)
		}
		p = target
	}
	return os.ReadFile(d.At(p))
}

// MakeDir makes a folder, or corrects the mode and owner of one that is there.
func (d Disk) MakeDir(p string, mode fs.FileMode) error {
	if err := d.parents(p); err != nil {
		return err
	}
	if err := os.Mkdir(d.At(p), mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return d.Explain(p, err)
	}
	if err := os.Chmod(d.At(p), mode); err != nil {
		return d.Explain(p, err)
	}
	if err := os.Lchown(d.At(p), os.Geteuid(), os.Getegid()); err != nil {
		return d.Explain(p, err)
	}
	return d.Sync(path.Dir(p))
}

func (d Disk) parents(p string) error {
	if err := os.MkdirAll(d.At(path.Dir(p)), 0o755); err != nil {
		return d.Explain(p, err)
	}
	return nil
}

// MissingParents are the folders above p that are not there.
func (d Disk) MissingParents(p string) []string {
	var missing []string
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		if _, err := os.Lstat(d.At(dir)); err == nil {
			break
		}
		missing = append(missing, dir)
	}
	return missing
}

// Sync makes a folder's entries durable.
func (d Disk) Sync(dir string) error {
	f, err := os.Open(d.At(dir))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Explain says what a person needs to know when p cannot be written.
func (d Disk) Explain(p string, err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		free, total := d.Space(path.Dir(p))
		return fmt.Errorf("write %s: the disk is full (%s free of %s on its file system): remove what is not needed there: %w", p, Size(free), Size(total), err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("write %s: its file system is read-only; after errors of a disk the kernel makes it so (see dmesg): %w", p, err)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EEXIST) && d.isDir(p):
		return fmt.Errorf("write %s: there is a file where a folder belongs, or the reverse; it is not Coldrack's, so a person has to remove it: %w", p, err)
	}
	return fmt.Errorf("write %s: %w", p, err)
}

func (d Disk) isDir(p string) bool {
	info, err := os.Lstat(d.At(p))
	return err == nil && info.IsDir()
}

// Space returns the bytes of the file system that holds dir, or the folder above it that exists.
func (d Disk) Space(dir string) (free, total int64) {
	for {
		var s unix.Statfs_t
		if unix.Statfs(d.At(dir), &s) == nil {
			return int64(s.Bavail) * s.Bsize, int64(s.Blocks) * s.Bsize
		}
		if dir == "/" {
			return 0, 0
		}
		dir = path.Dir(dir)
	}
}

// Size is a number of bytes in the words of messages.
func Size(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// Holds says that f is on the disk as it should be, with content for a regular file.
func (d Disk) Holds(f wire.NodeFile, content []byte) bool {
	info, err := os.Lstat(d.At(f.Path))
	if err != nil {
		return false
	}
	if f.Once && !f.Dir {
		return true
	}
	if f.Link != "" {
		target, err := os.Readlink(d.At(f.Path))
		return err == nil && target == f.Link
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); !ok || int(owner.Uid) != os.Geteuid() || int(owner.Gid) != os.Getegid() {
		return false
	}
	if info.Mode()&^fs.ModeDir != fs.FileMode(f.Mode).Perm() || info.IsDir() != f.Dir {
		return false
	}
	if f.Dir {
		return true
	}
	if info.Size() != int64(len(content)) {
		return false
	}
	b, err := os.ReadFile(d.At(f.Path))
	return err == nil && bytes.Equal(b, content)
}

// Put makes the disk hold f.
func (d Disk) Put(f wire.NodeFile, content []byte) error {
	switch {
	case f.Dir:
		return d.MakeDir(f.Path, fs.FileMode(f.Mode).Perm())
	case f.Link != "":
		return d.Link(f.Path, f.Link)
	}
	return d.Write(f.Path, content, fs.FileMode(f.Mode).Perm())
}
