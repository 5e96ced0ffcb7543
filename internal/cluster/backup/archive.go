package backup

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// Bounds of the small files of an archive that somebody sends.
const maxSmall, maxSealed = 1 << 20, 64 << 20

// Export writes a backup as one file: a tar archive of the manifest, the sealed keys and the snapshot, in that order.
func (f Folder) Export(m Manifest, w io.Writer) error {
	keys, err := f.SealedKeys(m)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.Open(f.Snapshot(m.ID))
	if err != nil {
		return err
	}
	defer file.Close()
	archive := tar.NewWriter(w)
	for _, part := range []struct {
		name string
		size int64
		from io.Reader
	}{{fileManifest, int64(len(text)), bytes.NewReader(text)}, {fileKeys, int64(len(keys)), bytes.NewReader(keys)}, {fileSnapshot, m.Size, file}} {
		if err := archive.WriteHeader(&tar.Header{Name: part.name, Mode: 0o600, Size: part.size, ModTime: m.TakenAt, Format: tar.FormatPAX}); err != nil {
			return err
		}
		if _, err := io.Copy(archive, part.from); err != nil {
			return fmt.Errorf("export backup %s: %s: %w", m.ID, part.name, err)
		}
	}
	return archive.Close()
}

// Incoming is an archive of which the manifest and the keys were read.
type Incoming struct {
	Manifest   Manifest
	SealedKeys []byte
	archive    *tar.Reader
}

// ErrArchive is the error of a file that is no archive of a backup.
var ErrArchive = errors.New("this is no file that \"coldrack cluster backup export\" wrote")

// ReadArchive reads the beginning of an archive.
func ReadArchive(r io.Reader) (*Incoming, error) {
	in := &Incoming{archive: tar.NewReader(r)}
	text, err := in.small(fileManifest, maxSmall)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &in.Manifest); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrArchive, err)
	}
	if in.SealedKeys, err = in.small(fileKeys, maxSealed); err != nil {
		return nil, err
	}
	if m := in.Manifest; m.Format != format || !idPattern.MatchString(m.ID) || m.Size <= 0 || digestOf(in.SealedKeys) != m.KeysDigest {
		return nil, fmt.Errorf("%w, of this version, or it is damaged", ErrArchive)
	}
	return in, nil
}

func (in *Incoming) small(name string, most int64) ([]byte, error) {
	header, err := in.archive.Next()
	if err != nil || header.Name != name || header.Size > most {
		return nil, errors.Join(ErrArchive, err)
	}
	return io.ReadAll(in.archive)
}

// Import begins a draft with the snapshot of an archive, under the ID that it had. The caller tries it and finishes it.
func (f Folder) Import(in *Incoming) (*Draft, error) {
	if err := in.Manifest.check(in.Manifest.ID, f.UID); err != nil {
		return nil, err
	}
	if _, err := f.Get(in.Manifest.ID); !errors.Is(err, ErrNone) {
		return nil, fmt.Errorf("backup %s is here already", in.Manifest.ID)
	}
	header, err := in.archive.Next()
	if err != nil || header.Name != fileSnapshot || header.Size != in.Manifest.Size {
		return nil, errors.Join(ErrArchive, err)
	}
	d, err := f.beginAs(in.Manifest.ID)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(d.Snapshot, in.archive); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: it ends before the snapshot does: %w", ErrArchive, err), d.Abandon())
	}
	if err := (Folder{Path: f.Path, UID: f.UID}).verifyAt(d, in.Manifest); err != nil {
		return nil, errors.Join(err, d.Abandon())
	}
	return d, nil
}

func (f Folder) verifyAt(d *Draft, m Manifest) error {
	m.ID = d.id + partSuffix
	return f.Verify(m)
}
