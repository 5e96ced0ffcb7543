package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/base/durable"
)

// Removal is what Remove has done.
type Removal struct {
	Info
	// Freed is the size of the blobs that no other bundle has, bytes.
	Freed int64 `json:"freedBytes"`
	// Kept says why blobs were left behind, empty when none were. The next removal deletes them.
	Kept string `json:"kept,omitempty"`
}

// Remove takes an imported bundle from the catalog, by the digest of its index, and deletes the blobs that no other bundle has. The
// error is ErrNotFound when it is not in the store. A crash in between leaves blobs behind, which the next Remove deletes.
func (s *Store) Remove(ctx context.Context, name string) (Removal, error) {
	removed, err := s.withdraw(name)
	if err != nil {
		return Removal{}, err
	}
	removed.Freed, err = s.collect(ctx)
	if err != nil {
		// The bundle is gone all the same.
		removed.Kept = err.Error()
	}
	return removed, nil
}

// withdraw takes a bundle out of the index.
func (s *Store) withdraw(name string) (Removal, error) {
	unlock, err := s.lock("index.lock", unix.LOCK_EX)
	if err != nil {
		return Removal{}, err
	}
	defer unlock()
	im, err := s.readIndex()
	if err != nil {
		return Removal{}, err
	}
	at := slices.IndexFunc(im.Manifests, func(d v1.Descriptor) bool { return d.Digest.String() == name })
	if at < 0 {
		return Removal{}, fmt.Errorf("bundle %s: %w", name, ErrNotFound)
	}
	removed := Removal{Info: Info{Name: im.Manifests[at].Annotations[annotationName], Digest: name}}
	if c, err := s.readBundle(im.Manifests[at]); err == nil { // a damaged one is removed, too
		removed.Info = c.info
	}
	im.Manifests = slices.Delete(im.Manifests, at, at+1)
	raw, err := json.MarshalIndent(im, "", "  ")
	if err != nil {
		return Removal{}, fmt.Errorf("remove bundle: %w", err)
	}
	// The copy first: an index that is damaged in between is restored without the bundle.
	for _, file := range []string{indexCopy, indexFile} {
		if err := durable.WriteFile(s.path(file), raw, 0o644); err != nil {
			return Removal{}, fmt.Errorf("remove bundle: %w", err)
		}
	}
	return removed, nil
}

// collect deletes the blobs that no bundle has, unless a bundle is just coming in.
func (s *Store) collect(ctx context.Context) (freed int64, err error) {
	unlock, err := s.lock("lock", unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return 0, errors.New("another bundle is being imported; what it may need is kept")
	}
	if err != nil {
		return 0, err
	}
	defer unlock()
	im, err := s.readIndex()
	if err != nil {
		return 0, err
	}
	needed := map[string]bool{}
	for _, d := range im.Manifests {
		c, err := s.readBundle(d)
		if err != nil {
			return 0, fmt.Errorf("a damaged bundle does not say which files it has, so none was deleted; import it again: %w", err)
		}
		needed[d.Digest.Hex] = true
		for _, b := range c.blobs {
			needed[digest.Hex(b.Digest)] = true
		}
	}
	entries, err := os.ReadDir(s.path("blobs", "sha256"))
	if err != nil {
		return 0, fmt.Errorf("read the store: %w", err)
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return freed, ctx.Err()
		}
		if needed[e.Name()] {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.Remove(filepath.Join(s.path("blobs", "sha256"), e.Name()))
		}
		if err != nil {
			return freed, fmt.Errorf("delete a blob: %w", err)
		}
		freed += info.Size()
	}
	return freed, nil
}
