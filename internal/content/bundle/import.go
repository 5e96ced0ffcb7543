package bundle

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Import brings the bundle at path into the store and returns what is now visible. It may be
// interrupted at any point, by a crash or a full disk, and run again: blobs that arrived are kept, and nothing of
// the bundle can be seen before all of it is there and verified. A bundle that was built earlier than others
// does not take their place; the summary says so.
func Import(ctx context.Context, s *Store, path string, trusted []ed25519.PublicKey, progress func(Progress)) (Summary, error) {
	a, closeFile, err := openArchiveFile(path)
	if err != nil {
		return Summary{}, fmt.Errorf("import bundle %s: %w", path, err)
	}
	defer closeFile()
	c, err := a.importInto(ctx, s, trusted, progress)
	if err != nil {
		return Summary{}, fmt.Errorf("import bundle %s: %w", path, err)
	}
	summary := c.summary()
	summary.Behind = s.behind(c)
	return summary, nil
}

func (a *archive) importInto(ctx context.Context, s *Store, trusted []ed25519.PublicKey, progress func(Progress)) (*contents, error) {
	c, err := a.contents(true, trusted)
	if err != nil {
		return nil, err
	}
	// A removal must not take what this import has just found or brought.
	unlock, err := s.lock("lock", unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer unlock()
	p := &tracker{report: progress, at: Progress{Bundle: c.info.Name, Total: c.size()}}
	for _, b := range c.blobs {
		p.file(b)
		if s.intact(ctx, b.Descriptor) {
			p.at.Skipped += b.Size
			p.add(b.Size)
			continue
		}
		if err := a.importBlob(ctx, s, b, p); err != nil {
			if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
				return nil, fmt.Errorf("the disk of %s is full, %d bytes are still missing; make room and import again, which continues here: %w",
					s.dir, p.at.Total-p.at.Done, err)
			}
			return nil, err
		}
	}
	if err := s.Put(ctx, bytes.NewReader(c.index), c.info.Digest); err != nil {
		return nil, err
	}
	if c.info, err = s.publish(c, time.Now()); err != nil {
		return nil, err
	}
	for i := range c.artifacts {
		c.artifacts[i].Bundle = c.info
	}
	return c, nil
}

func (a *archive) importBlob(ctx context.Context, s *Store, b blobRef, p *tracker) error {
	r, err := a.blob(b.Descriptor)
	if err != nil {
		return fmt.Errorf("%s, file %q: %w", b.artifact, b.file, err)
	}
	err = s.Put(ctx, io.TeeReader(r, p), b.Digest)
	if m := (*mismatchError)(nil); errors.As(err, &m) {
		return b.mismatch(m.got)
	}
	if err != nil {
		return fmt.Errorf("%s, file %q: %w", b.artifact, b.file, err)
	}
	return nil
}

// intact says whether the store has a blob and it is still what it was: importing again repairs rot.
func (s *Store) intact(ctx context.Context, d Descriptor) bool {
	f, size, err := s.Open(d.Digest)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return size == d.Size && checkBlob(ctx, f, blobRef{Descriptor: d}, &tracker{}) == nil
}

// Export writes an imported bundle, by name or digest, to an archive that is byte for byte the one
// imported if that came from this version's Pack. Of several with the same name the newest is taken.
func Export(ctx context.Context, s *Store, nameOrDigest, path string, progress func(Progress)) (Summary, error) {
	im, err := s.readIndex()
	if err != nil {
		return Summary{}, fmt.Errorf("export bundle: %w", err)
	}
	bundles := s.Bundles()
	if i := slices.IndexFunc(bundles, func(b Info) bool { return b.Name == nameOrDigest }); i >= 0 {
		nameOrDigest = bundles[i].Digest
	}
	var names []string
	for _, d := range im.Manifests {
		name := d.Annotations[annotationName]
		if d.Digest.String() != nameOrDigest && name != nameOrDigest {
			names = append(names, name)
			continue
		}
		c, err := s.readBundle(d)
		if err != nil {
			return Summary{}, fmt.Errorf("export bundle %s: %w", name, err)
		}
		err = writeArchive(ctx, c, path, func(d Descriptor) (io.ReadCloser, error) {
			f, _, err := s.Open(d.Digest)
			return f, err
		}, progress)
		if err != nil {
			return Summary{}, fmt.Errorf("export bundle %s to %s: %w", name, path, err)
		}
		return c.summary(), nil
	}
	return Summary{}, fmt.Errorf("export bundle %q: %w; the store has %q", nameOrDigest, ErrNotFound, names)
}
