package soak

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk is a file system of its own, in memory, that is mounted nowhere: it is reached by this process' descriptor and vanishes with it.
type disk struct {
	fd   int
	path string
}

func newDisk(bytes int64) (*disk, error) {
	context, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("tmpfs: %w", err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigSetString(context, "size", fmt.Sprint(bytes)); err != nil {
		return nil, fmt.Errorf("size of the tmpfs: %w", err)
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, fmt.Errorf("create the tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount the tmpfs: %w", err)
	}
	return &disk{fd, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)}, nil
}

func (d *disk) close() { unix.Close(d.fd) }

func (d *disk) filler() string { return filepath.Join(d.path, "filler") }

// fill takes all that is free, at once: a server that then gives up what it holds back has that for itself.
func (d *disk) fill() error {
	file, err := os.OpenFile(d.filler(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		if errors.Is(err, unix.ENOSPC) {
			return nil
		}
		return err
	}
	defer file.Close()
	for left := 16 << 10; ; {
		var st unix.Statfs_t
		if err := unix.Fstatfs(d.fd, &st); err != nil {
			return err
		}
		free := int64(st.Bavail)*st.Bsize - int64(left)
		if free <= 0 {
			return nil
		}
		// Others may have taken some since.
		if err := unix.Fallocate(int(file.Fd()), 0, 0, free); errors.Is(err, unix.ENOSPC) {
			left *= 2
		} else {
			return err
		}
	}
}

func (d *disk) empty() error {
	if err := os.Remove(d.filler()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// used is what the server's folder takes, without the space that it holds back.
func used(dir string) (bytes int64) {
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() == "reserve" {
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			bytes += st.Blocks * 512
		}
		return nil
	})
	return bytes
}
