package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"coldrack.dev/internal/base/objectstore"
)

// fileSealedManifest is the manifest of a copy.
const fileSealedManifest = "manifest.sealed"

// Elsewhere keeps copies of backups in an object store, as UID/ID/FILE. The manifest is written last and removed first: without it, nothing
// there is a backup. It is sealed, so that who can write to the store cannot pass off anything else as a backup: the manifest has the digests
// of the other files.
type Elsewhere struct {
	objectstore.Store
	Keys Keys
	// Known are manifests that were read before.
	Known *Known
}

// Keys seal what must be encrypted at rest. It is a pki.MasterKey.
type Keys interface {
	Seal(use string, content []byte) ([]byte, error)
	Open(use string, sealed []byte) ([]byte, error)
}

// manifestUse is the use of the master key for the manifest of a copy.
func manifestUse(uid, id string) string { return "manifest of backup " + uid + " " + id }

// Known remembers manifests that were read from an object store.
type Known struct {
	mu  sync.Mutex
	all map[objectstore.Object]Manifest
}

// keep forgets manifests of these clusters that are not among objects.
func (k *Known) keep(objects []objectstore.Object, uids []string) {
	there := map[objectstore.Object]bool{}
	for _, o := range objects {
		there[o] = true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.all, func(o objectstore.Object, m Manifest) bool { return slices.Contains(uids, m.UID) && !there[o] })
}

// Copies are what is elsewhere of one cluster.
type Copies struct {
	// Backups that are whole, the newest first.
	Backups []Manifest
	// Partial are the IDs of what is none, with when the last part was written: an upload that is under way, or was interrupted.
	Partial map[string]time.Time
	// Problems are manifests that cannot be read. They are left alone.
	Problems []error
}

// List what there is of some clusters, by UID.
func (e Elsewhere) List(ctx context.Context, uids ...string) (map[string]Copies, error) {
	prefix := ""
	switch len(uids) {
	case 0:
		return nil, nil
	case 1:
		prefix = uids[0] + "/"
	}
	objects, err := e.Store.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	type parts map[string]objectstore.Object
	all := map[string]map[string]parts{}
	for _, o := range objects {
		uid, rest, _ := strings.Cut(o.Name, "/")
		id, file, ok := strings.Cut(rest, "/")
		if !ok || !slices.Contains(uids, uid) || !idPattern.MatchString(id) || !slices.Contains(copied(), file) {
			continue // somebody else's
		}
		if all[uid] == nil {
			all[uid] = map[string]parts{}
		}
		if all[uid][id] == nil {
			all[uid][id] = parts{}
		}
		all[uid][id][file] = o
	}
	found := map[string]Copies{}
	for uid, ids := range all {
		copies := Copies{Partial: map[string]time.Time{}}
		for id, parts := range ids {
			manifest, there := parts[fileSealedManifest]
			if there {
				m, err := e.manifest(ctx, manifest, uid, id)
				if err != nil {
					if ctx.Err() != nil {
						return nil, context.Cause(ctx)
					}
					copies.Problems = append(copies.Problems, err)
					continue
				}
				if _, keys := parts[fileKeys]; keys && parts[fileSnapshot].Size == m.Size {
					copies.Backups = append(copies.Backups, m)
					continue
				}
			}
			for _, o := range parts {
				if o.Modified.After(copies.Partial[id]) {
					copies.Partial[id] = o.Modified
				}
			}
		}
		slices.SortFunc(copies.Backups, func(a, b Manifest) int { return b.TakenAt.Compare(a.TakenAt) })
		found[uid] = copies
	}
	e.Known.keep(objects, uids)
	return found, nil
}

// UIDs that begin with a prefix and of which there is anything.
func (e Elsewhere) UIDs(ctx context.Context, prefix string) ([]string, error) {
	objects, err := e.Store.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	var uids []string
	for _, o := range objects {
		if uid, _, ok := strings.Cut(o.Name, "/"); ok {
			uids = append(uids, uid)
		}
	}
	slices.Sort(uids)
	return slices.Compact(uids), nil
}

func (e Elsewhere) manifest(ctx context.Context, o objectstore.Object, uid, id string) (m Manifest, err error) {
	e.Known.mu.Lock()
	m, known := e.Known.all[o]
	e.Known.mu.Unlock()
	if !known {
		sealed, err := e.small(ctx, o.Name, maxSmall)
		if err != nil {
			return m, err
		}
		text, err := e.Keys.Open(manifestUse(uid, id), sealed)
		if err != nil {
			return m, fmt.Errorf("%s: %s: %w", e.Store, o.Name, err)
		}
		if err := json.Unmarshal(text, &m); err != nil {
			return m, fmt.Errorf("%s: %s: %w", e.Store, o.Name, err)
		}
		e.Known.mu.Lock()
		if e.Known.all == nil {
			e.Known.all = map[objectstore.Object]Manifest{}
		}
		e.Known.all[o] = m
		e.Known.mu.Unlock()
	}
	return m, m.check(id, uid)
}

func (e Elsewhere) small(ctx context.Context, name string, most int64) ([]byte, error) {
	r, err := e.Store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s: %s is larger than %d bytes, and so none of ours", e.Store, name, most)
	}
	return text, err
}

// copied are the files of a copy, in the order in which they are removed.
func copied() []string { return []string{fileSealedManifest, fileKeys, fileSnapshot} }

func objectName(uid, id, file string) string { return uid + "/" + id + "/" + file }

// ErrDamaged is the error for a backup that is not what its digests say.
var ErrDamaged = errors.New("it is damaged")

// Put copies a backup of a folder. One that is damaged is not copied.
func (e Elsewhere) Put(ctx context.Context, f Folder, m Manifest) error {
	keys, err := f.SealedKeys(m)
	if err != nil {
		return err
	}
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	manifest, err := e.Keys.Seal(manifestUse(f.UID, m.ID), text)
	if err != nil {
		return err
	}
	file, err := os.Open(f.Snapshot(m.ID))
	if err != nil {
		return err
	}
	defer file.Close()
	for _, part := range []struct {
		name    string
		size    int64
		content io.Reader
	}{
		{fileSnapshot, m.Size, &checkedReader{from: file, sum: sha256.New(), left: m.Size, digest: m.Digest, what: "backup " + m.ID + ": " + fileSnapshot}},
		{fileKeys, int64(len(keys)), bytes.NewReader(keys)},
		{fileSealedManifest, int64(len(manifest)), bytes.NewReader(manifest)},
	} {
		if err := e.Store.Put(ctx, objectName(f.UID, m.ID, part.name), part.size, part.content); err != nil {
			return err
		}
	}
	return nil
}

// checkedReader reads so many bytes, and fails before it has given the last of them when the digest is another one.
type checkedReader struct {
	from   io.Reader
	sum    hash.Hash
	left   int64
	digest string
	what   string
}

// Read implements io.Reader.
func (c *checkedReader) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n, err := c.from.Read(b[:min(int64(len(b)), c.left)])
	c.sum.Write(b[:n])
	c.left -= int64(n)
	switch {
	case c.left == 0 && fmt.Sprintf("sha256:%x", c.sum.Sum(nil)) != c.digest, c.left > 0 && errors.Is(err, io.EOF):
		return 0, fmt.Errorf("%s is not what its digest says: %w", c.what, ErrDamaged)
	case errors.Is(err, io.EOF):
		err = nil
	}
	return n, err
}

// Remove what there is of a backup. It stops being one before the first of its other files goes.
func (e Elsewhere) Remove(ctx context.Context, uid, id string) error {
	for _, file := range copied() {
		if err := e.Store.Remove(ctx, objectName(uid, id, file)); err != nil {
			return err
		}
	}
	return nil
}

// Fetch begins a draft in a folder with what is elsewhere of a backup, under its ID, checked against its digests. The caller tries it
// and finishes it with the keys.
func (e Elsewhere) Fetch(ctx context.Context, f Folder, m Manifest) (d *Draft, sealedKeys []byte, err error) {
	if sealedKeys, err = e.small(ctx, objectName(f.UID, m.ID, fileKeys), maxSealed); err != nil {
		return nil, nil, err
	}
	if digestOf(sealedKeys) != m.KeysDigest {
		return nil, nil, fmt.Errorf("backup %s at %s: %s is not what its digest says: %w", m.ID, e.Store, fileKeys, ErrDamaged)
	}
	from, err := e.Store.Get(ctx, objectName(f.UID, m.ID, fileSnapshot))
	if err != nil {
		return nil, nil, err
	}
	defer from.Close()
	if d, err = f.beginAs(m.ID); err != nil {
		return nil, nil, err
	}
	what := fmt.Sprintf("backup %s at %s: %s", m.ID, e.Store, fileSnapshot)
	if _, err := io.Copy(d.Snapshot, &checkedReader{from: from, sum: sha256.New(), left: m.Size, digest: m.Digest, what: what}); err != nil {
		return nil, nil, errors.Join(err, d.Abandon())
	}
	return d, sealedKeys, nil
}
