package bringup

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

	"coldrack.dev/internal/wire"
)

// disk is the file system below a folder, "/" on a node. Paths are absolute within it.
type disk struct{ root string }

func (d disk) at(p string) string { return filepath.Join(d.root, p) }

// partOf is where a file is until it is complete. Whoever reads a folder as a whole (kubelet, containerd, systemd,
// CNI) passes over it: it begins with a dot and ends like nothing they know.
func partOf(p string) string { return path.Join(path.Dir(p), "."+path.Base(p)+".coldrack-part") }

// write replaces a file, or does nothing: a power cut leaves the old or the new one.
func (d disk) write(p string, content []byte, mode fs.FileMode) error {
	return d.stream(p, mode, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// stream is write for content that fill produces.
func (d disk) stream(p string, mode fs.FileMode, fill func(io.Writer) error) (err error) {
	if err := d.parents(p); err != nil {
		return err
	}
	part := d.at(partOf(p))
	_ = os.Remove(part)
	defer func() {
		if err != nil {
			_ = os.Remove(part)
			err = d.explain(p, err)
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
	if err := os.Rename(part, d.at(p)); err != nil {
		return err
	}
	return d.sync(path.Dir(p))
}

// link replaces whatever is at p by a symbolic link.
func (d disk) link(p, target string) (err error) {
	if err := d.parents(p); err != nil {
		return err
	}
	part := d.at(partOf(p))
	_ = os.Remove(part)
	if err := os.Symlink(target, part); err != nil {
		return d.explain(p, err)
	}
	if err := os.Rename(part, d.at(p)); err != nil {
		_ = os.Remove(part)
		return d.explain(p, err)
	}
	return d.sync(path.Dir(p))
}

// read reads a file, through links that lead to another place of this disk.
func (d disk) read(p string) ([]byte, error) {
	for range 8 {
		target, err := os.Readlink(d.at(p))
		if err != nil {
			break
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(p), target)
		}
		p = target
	}
	return os.ReadFile(d.at(p))
}

// dir makes a folder, or corrects the mode and owner of one that is there.
func (d disk) dir(p string, mode fs.FileMode) error {
	if err := d.parents(p); err != nil {
		return err
	}
	if err := os.Mkdir(d.at(p), mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return d.explain(p, err)
	}
	if err := os.Chmod(d.at(p), mode); err != nil {
		return d.explain(p, err)
	}
	if err := os.Lchown(d.at(p), os.Geteuid(), os.Getegid()); err != nil {
		return d.explain(p, err)
	}
	return d.sync(path.Dir(p))
}

func (d disk) parents(p string) error {
	if err := os.MkdirAll(d.at(path.Dir(p)), 0o755); err != nil {
		return d.explain(p, err)
	}
	return nil
}

// missingParents are the folders above p that are not there.
func (d disk) missingParents(p string) []string {
	var missing []string
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		if _, err := os.Lstat(d.at(dir)); err == nil {
			break
		}
		missing = append(missing, dir)
	}
	return missing
}

func (d disk) sync(dir string) error {
	f, err := os.Open(d.at(dir))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// explain says what a person needs to know when p cannot be written.
func (d disk) explain(p string, err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		free, total := d.space(path.Dir(p))
		return fmt.Errorf("write %s: the disk is full (%s free of %s on its file system): remove what is not needed there: %w", p, size(free), size(total), err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("write %s: its file system is read-only; after errors of a disk the kernel makes it so (see dmesg): %w", p, err)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EEXIST) && d.isDir(p):
		return fmt.Errorf("write %s: there is a file where a folder belongs, or the reverse; it is not Coldrack's, so a person has to remove it: %w", p, err)
	}
	return fmt.Errorf("write %s: %w", p, err)
}

func (d disk) isDir(p string) bool {
	info, err := os.Lstat(d.at(p))
	return err == nil && info.IsDir()
}

// space in bytes of the file system that holds dir, or the folder above it that exists.
func (d disk) space(dir string) (free, total int64) {
	for {
		var s unix.Statfs_t
		if unix.Statfs(d.at(dir), &s) == nil {
			return int64(s.Bavail) * s.Bsize, int64(s.Blocks) * s.Bsize
		}
		if dir == "/" {
			return 0, 0
		}
		dir = path.Dir(dir)
	}
}

func size(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// holds says that f is on the disk as it should be, with content for a regular file.
func (d disk) holds(f wire.NodeFile, content []byte) bool {
	info, err := os.Lstat(d.at(f.Path))
	if err != nil {
		return false
	}
	if f.Once && !f.Dir {
		return true
	}
	if f.Link != "" {
		target, err := os.Readlink(d.at(f.Path))
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
	b, err := os.ReadFile(d.at(f.Path))
	return err == nil && bytes.Equal(b, content)
}

// put makes the disk hold f.
func (d disk) put(f wire.NodeFile, content []byte) error {
	switch {
	case f.Dir:
		return d.dir(f.Path, fs.FileMode(f.Mode).Perm())
	case f.Link != "":
		return d.link(f.Path, f.Link)
	}
	return d.write(f.Path, content, fs.FileMode(f.Mode).Perm())
}
