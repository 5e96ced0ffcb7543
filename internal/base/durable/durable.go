// Package durable replaces files as a whole: a reader, and a machine after a power cut, finds the old or the new
// content, and a write that fails (a full disk, a canceled download) leaves the old file as it was.
//
// New content goes to a temporary file in the same directory. It is flushed, gets its mode and owner, and is renamed
// only if all of that succeeded; then the directory is flushed. A temporary file that a crashed process left behind
// is removed by the next write of the same file, or by Clear.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// suffix ends the names of temporary files. They begin with a dot, and no program that reads a directory as a whole
// (kubelet, containerd, systemd, CNI) knows the suffix.
const suffix = ".coldrack-part"

// WriteFile replaces the file at path, or makes it. A symbolic link at path is replaced, not followed. The file
// belongs to this process's user and has exactly this mode, whatever the umask.
func WriteFile(path string, content []byte, mode fs.FileMode) error {
	return Write(path, mode, bytesWriter(content))
}

// Write is WriteFile for content that fill produces. An error of fill is returned as it is.
func Write(path string, mode fs.FileMode, fill func(io.Writer) error) error {
	return replace(path, fill, func(f *os.File) error { return f.Chmod(mode) })
}

// Update is WriteFile for a file that belongs to a person: its owner stays, a symbolic link is followed, and a pipe
// or device is written to.
func Update(path string, content []byte, mode fs.FileMode) error {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	old, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return WriteFile(path, content, mode)
	} else if err != nil {
		return err
	}
	if !old.Mode().IsRegular() {
		return os.WriteFile(path, content, mode)
	}
	return replace(path, bytesWriter(content), func(f *os.File) error {
		// Chown first: it clears the set-user-ID bit that the mode may have.
		return errors.Join(keepOwner(f, old), f.Chmod(mode))
	})
}

func bytesWriter(content []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	}
}

func keepOwner(f *os.File, old fs.FileInfo) error {
	made, err := f.Stat()
	if err != nil {
		return err
	}
	want, ok := old.Sys().(*syscall.Stat_t)
	have, ok2 := made.Sys().(*syscall.Stat_t)
	if !ok || !ok2 || want.Uid == have.Uid && want.Gid == have.Gid {
		return nil
	}
	return f.Chown(int(want.Uid), int(want.Gid))
}

func replace(path string, fill func(io.Writer) error, finish func(*os.File) error) error {
	Clear(path)
	f, err := temporary(path)
	if err != nil {
		return err
	}
	// Closing releases the lock; until then no other process takes the file for a remainder.
	defer f.Close()
	if err := fill(f); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := errors.Join(finish(f), f.Sync()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := Rename(f.Name(), path); err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return nil
}

// temporary makes and locks a temporary file, mode 0600, beside path.
func temporary(path string) (*os.File, error) {
	for {
		f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*"+suffix)
		if err != nil {
			return nil, err
		}
		// A file system without locks (some network ones) has no remainders cleared; see clearAbandoned.
		_ = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if sameFile(f) {
			return f, nil
		}
		// Another process's Clear removed it between its creation and its lock.
		_ = f.Close()
	}
}

// IsTemporary says whether path is that of a temporary file of this package.
func IsTemporary(path string) bool {
	name := filepath.Base(path)
	return strings.HasPrefix(name, ".") && strings.HasSuffix(name, suffix)
}

// Clear removes the temporary files of path whose writers are gone.
func Clear(path string) {
	dir, prefix := filepath.Dir(path), "."+filepath.Base(path)+"."
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if name := e.Name(); e.Type().IsRegular() && strings.HasPrefix(name, prefix) && strings.HasSuffix(name, suffix) {
			clearAbandoned(filepath.Join(dir, name))
		}
	}
}

func clearAbandoned(path string) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil && sameFile(f) {
		_ = os.Remove(path)
	}
}

func sameFile(f *os.File) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(f.Name())
	return err == nil && os.SameFile(opened, named)
}

// Rename moves a file whose content the caller has flushed, and flushes the directory that it comes to.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(to))
}

// SyncDir flushes a directory: which files are in it, not their content.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("flush directory %s: %w", dir, err)
	}
	return nil
}
