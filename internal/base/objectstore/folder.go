package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"coldrack.dev/internal/base/durable"
)

// Marker is a file that a person makes once in a folder of their own. Where it is missing, what should be mounted there is not.
const Marker = ".coldrack-backups"

// CheckMarker says that what belongs at a folder is not mounted.
func CheckMarker(folder string) error {
	marker := filepath.Join(folder, Marker)
	if _, err := os.Stat(marker); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no %s on this server: what belongs at %s is not mounted; if it is, say so once with: touch %s", marker, folder, marker)
	} else if err != nil {
		return err
	}
	return nil
}

// Folder is a Store in a folder that holds the Marker.
type Folder struct{ path string }

// OpenFolder returns a Store in a folder.
func OpenFolder(path string) Folder { return Folder{path} }

// String implements Store.
func (f Folder) String() string { return f.path }

// at is the path of an object, while the folder is there.
func (f Folder) at(name string) (string, error) {
	if !filepath.IsLocal(name) {
		return "", fmt.Errorf("%q is no name of an object", name)
	}
	return filepath.Join(f.path, filepath.FromSlash(name)), CheckMarker(f.path)
}

// Put implements Store.
func (f Folder) Put(ctx context.Context, name string, size int64, content io.Reader) error {
	path, err := f.at(name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return durable.Write(path, 0o600, func(w io.Writer) error {
		n, err := io.Copy(w, untilDone{ctx, content})
		if err == nil && n != size {
			err = fmt.Errorf("%s has %d bytes, and %d were announced", name, n, size)
		}
		return err
	})
}

// untilDone reads until a context ends.
type untilDone struct {
	ctx  context.Context
	from io.Reader
}

// Read implements io.Reader.
func (u untilDone) Read(b []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.from.Read(b)
}

// Get implements Store.
func (f Folder) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	path, err := f.at(name)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNone, path)
	} else if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{untilDone{ctx, file}, file}, nil
}

// List implements Store.
func (f Folder) List(ctx context.Context, prefix string) (all []Object, err error) {
	err = f.walk(ctx, prefix, func(path, name string, info fs.FileInfo) error {
		if !durable.IsTemporary(path) {
			all = append(all, Object{name, info.Size(), info.ModTime()})
		}
		return nil
	})
	return all, err
}

// walk visits the files whose names begin with a prefix.
func (f Folder) walk(ctx context.Context, prefix string, visit func(path, name string, info fs.FileInfo) error) error {
	if err := CheckMarker(f.path); err != nil {
		return err
	}
	root := filepath.Join(f.path, filepath.FromSlash(prefix[:strings.LastIndexByte(prefix, '/')+1]))
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // it was removed meanwhile, or nothing was put there yet
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !entry.Type().IsRegular():
			return nil
		}
		name, err := filepath.Rel(f.path, path)
		if err != nil {
			return err
		}
		if name = filepath.ToSlash(name); !strings.HasPrefix(name, prefix) || name == Marker {
			return nil
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		return visit(path, name, info)
	})
}

// Remove implements Store. Folders that become empty go, too.
func (f Folder) Remove(_ context.Context, name string) error {
	path, err := f.at(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for dir := filepath.Dir(path); dir != f.path && os.Remove(dir) == nil; {
		dir = filepath.Dir(dir)
	}
	return nil
}

// Clear implements Store.
func (f Folder) Clear(ctx context.Context, prefix string, before time.Time) error {
	return f.walk(ctx, prefix, func(path, _ string, info fs.FileInfo) error {
		if durable.IsTemporary(path) && info.ModTime().Before(before) {
			return os.Remove(path)
		}
		return nil
	})
}
