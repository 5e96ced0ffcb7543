package imagefile

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
)

// tree is the files of an archive or folder, by their paths in it.
type tree interface {
	// open returns a file and its size; the error is fs.ErrNotExist where there is none.
	open(path string) (io.ReadCloser, int64, error)
	close() error
}

func openTree(path string) (tree, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		root, err := os.OpenRoot(path)
		return folder{root}, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	a := &archive{file: file, entries: map[string]*io.SectionReader{}}
	if err := a.index(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), file.Close())
	}
	return a, nil
}

// folder is one on disk. Links that lead out of it are not followed.
type folder struct{ root *os.Root }

func (f folder) close() error { return f.root.Close() }

func (f folder) open(path string) (io.ReadCloser, int64, error) {
	file, err := f.root.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file", path)
	}
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, info.Size(), nil
}

// archive is a tar file. Where each file lies in it is noted once, so that gigabytes are not unpacked.
type archive struct {
	file    *os.File
	entries map[string]*io.SectionReader
}

func (a *archive) close() error { return a.file.Close() }

func (a *archive) open(path string) (io.ReadCloser, int64, error) {
	section, ok := a.entries[path]
	if !ok {
		return nil, 0, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	}
	_, offset, size := section.Outer()
	return io.NopCloser(io.NewSectionReader(a.file, offset, size)), size, nil
}

// maxEntries of an archive.
const maxEntries = 100_000

// compressions are the first bytes of what is no tar file yet.
var compressions = map[string]string{"\x1f\x8b": "gunzip", "\x28\xb5\x2f\xfd": "unzstd", "BZh": "bunzip2", "\xfd7zXZ\x00": "unxz"}

func (a *archive) index() error {
	head := make([]byte, 6)
	n, _ := io.ReadFull(a.file, head)
	for magic, program := range compressions {
		if bytes.HasPrefix(head[:n], []byte(magic)) {
			return fmt.Errorf("is compressed; unpack it with %s first", program)
		}
	}
	if _, err := a.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for reader := tar.NewReader(a.file); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("is no tar file, or damaged: %w", err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		// The reader has read up to the first byte of the content, and not beyond.
		at, err := a.file.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if len(a.entries) >= maxEntries {
			return fmt.Errorf("has more than %d files", maxEntries)
		}
		a.entries[path.Clean(header.Name)] = io.NewSectionReader(a.file, at, header.Size)
	}
}
