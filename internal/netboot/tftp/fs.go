package tftp

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
)

// File is an open file. *os.File is one; so are the files of testing/fstest.MapFS and embed.FS.
type File = interface {
	io.ReaderAt
	io.Closer
	Stat() (fs.FileInfo, error)
}

// FS gives the files that clients may read.
type FS interface {
	// Open opens a file for a client. The name comes from Clean: relative, with slashes, and never
	// leading upwards. Errors that are fs.ErrNotExist or fs.ErrPermission reach the client as such.
	Open(ctx context.Context, name string, remote netip.AddrPort) (File, error)
}

// Dir is an FS of the regular files below a directory. Symbolic links that lead out of it are not
// followed. The caller closes the root after the server has stopped.
func Dir(root *os.Root) FS { return dir{root} }

type dir struct{ root *os.Root }

func (d dir) Open(_ context.Context, name string, _ netip.AddrPort) (File, error) {
	info, err := d.root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: %w", name, fs.ErrNotExist)
	}
	return d.root.Open(name)
}
