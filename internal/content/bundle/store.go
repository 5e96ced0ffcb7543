package bundle

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/base/durable"
)

// Annotations of the store's own index, which lists one nested index for each imported bundle.
const (
	annotationImported  = "dev.coldrack.bundle.imported"
	annotationSignature = "dev.coldrack.bundle.signature"
)

// Store is a content-addressed directory in OCI image-layout form:
//
//	oci-layout  index.json  blobs/sha256/<hex>   as the specification says
//	tmp/        blobs on their way in
//	lock        held shared while a blob comes in, exclusively to clear tmp
//	index.copy.json  the same as index.json, from which it is made anew when it is damaged
//	index.lock  held while they are replaced
//
// Several processes may use one directory. A blob is in its place only when it is complete, verified
// and on stable storage; whatever a crash leaves lies in tmp and is removed later.
type Store struct {
	dir string

	mu      sync.Mutex
	stamp   fileStamp // of the index.json that catalog was read from
	catalog []Artifact
	bundles []Info
	broken  []error
	// repaired says what was wrong with the index when the store was opened.
	repaired error
}

// fileStamp tells whether a file that is only ever replaced by rename is still the same one.
type fileStamp struct {
	inode uint64
	size  int64
	mtime int64
}

// OpenStore opens a store, and makes it when dir does not exist or is empty.
func OpenStore(dir string) (*Store, error) {
	s := &Store{dir: dir}
	for _, d := range []string{s.path("blobs", "sha256"), s.path("tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("open content store: %w", err)
		}
	}
	if _, err := os.Stat(s.path("oci-layout")); errors.Is(err, fs.ErrNotExist) {
		if err := durable.WriteFile(s.path("oci-layout"), []byte(ociLayout), 0o644); err != nil {
			return nil, fmt.Errorf("open content store %s: %w", dir, err)
		}
	}
	s.clearTemporary()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.repairIndex(); err != nil {
		return nil, fmt.Errorf("open content store %s: %w", dir, err)
	}
	if err := s.refresh(); err != nil {
		return nil, fmt.Errorf("open content store %s: %w", dir, err)
	}
	return s, nil
}

// Dir is where the store lies.
func (s *Store) Dir() string { return s.dir }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// Open returns a blob and its size; the caller closes it. The error is ErrNotFound when the store
// does not have it.
func (s *Store) Open(name string) (*os.File, int64, error) {
	d, err := digest.Parse(name)
	if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	f, err := os.Open(s.path("blobs", "sha256", d.Hex()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("open blob %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, 0, fmt.Errorf("open blob %s: %w", name, err)
	}
	return f, st.Size(), nil
}

// Has says whether the store has the complete blob.
func (s *Store) Has(name string) bool {
	d, err := digest.Parse(name)
	if err != nil {
		return false
	}
	st, err := os.Stat(s.path("blobs", "sha256", d.Hex()))
	return err == nil && st.Mode().IsRegular()
}

// Put adds a blob. Either the store has it, complete and verified, when Put returns nil, or nothing
// changed. Concurrent Puts of one blob are fine.
func (s *Store) Put(ctx context.Context, r io.Reader, want string) error {
	d, err := digest.Parse(want)
	if err != nil {
		return fmt.Errorf("store blob: %w", err)
	}
	unlock, err := s.lock("lock", unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	tmp, err := os.CreateTemp(s.path("tmp"), d.Hex()[:12]+"-*")
	if err != nil {
		return fmt.Errorf("store blob %s: %w", want, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already when all went well
	defer func() { _ = tmp.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(tmp, sum), contextReader{ctx, r}); err != nil {
		return fmt.Errorf("store blob %s: %w", want, err)
	}
	if got := digest.Sum(sum).String(); got != want {
		return &mismatchError{want: want, got: got}
	}
	if err := errors.Join(tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("store blob %s: %w", want, err)
	}
	if err := durable.Rename(tmp.Name(), s.path("blobs", "sha256", d.Hex())); err != nil {
		return fmt.Errorf("store blob %s: %w", want, err)
	}
	return nil
}

type mismatchError struct{ want, got string }

func (e *mismatchError) Error() string {
	return fmt.Sprintf("store blob: content is %s, want %s", e.got, e.want)
}

// Artifacts lists what the store holds, those of the bundle built last first. It notices what
// another process imported. The result is the caller's.
func (s *Store) Artifacts() []Artifact {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.refresh() // on an error the last good catalog stands; OpenStore reports it
	return slices.Clone(s.catalog)
}

// Artifact returns the newest artifact of that kind and name; an empty name means any. The error is
// ErrNotFound when there is none, and says what there is.
func (s *Store) Artifact(kind Kind, name string) (Artifact, error) {
	var names []string
	for _, a := range s.Artifacts() {
		if a.Kind != kind {
			continue
		}
		if name == "" || a.Name == name {
			return a, nil
		}
		names = append(names, a.Name)
	}
	return Artifact{}, fmt.Errorf("%s %q: %w in the content store, which has %q of this kind; import a bundle that holds it", kind, name, ErrNotFound, names)
}

// Bundles lists what was imported, the one built last first.
func (s *Store) Bundles() []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.refresh()
	return slices.Clone(s.bundles)
}

// Problems says which imported bundles cannot be read and are therefore not in the catalog. Importing
// such a bundle again repairs it.
func (s *Store) Problems() []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.refresh()
	if s.repaired != nil {
		return append([]error{s.repaired}, s.broken...)
	}
	return slices.Clone(s.broken)
}

const (
	indexFile = "index.json"
	indexCopy = "index.copy.json"
)

// repairIndex sets a damaged index aside. Its copy takes its place; where that is damaged, too, no bundle is in the store until it
// is imported again, which copies only what is missing.
func (s *Store) repairIndex() error {
	_, err := readIndexFile(s.path(indexFile))
	if err == nil {
		return s.copyIndex()
	}
	if !errors.Is(err, errIndexDamaged) {
		return err
	}
	unlock, lockErr := s.lock("index.lock", unix.LOCK_EX)
	if lockErr != nil {
		return lockErr
	}
	defer unlock()
	kept := s.path(indexFile + ".damaged")
	if err := os.Rename(s.path(indexFile), kept); err != nil {
		return fmt.Errorf("set the damaged index aside: %w", err)
	}
	raw, copyErr := os.ReadFile(s.path(indexCopy))
	if copyErr == nil {
		_, copyErr = parseIndex(raw)
	}
	if copyErr != nil {
		s.repaired = fmt.Errorf("%w (kept as %s), and so was its copy: import the bundles again; what is in the store is not copied once more", err, kept)
		return nil
	}
	if err := durable.WriteFile(s.path(indexFile), raw, 0o644); err != nil {
		return fmt.Errorf("restore the index: %w", err)
	}
	s.repaired = fmt.Errorf("%w (kept as %s); it was restored from its copy", err, kept)
	return nil
}

// copyIndex makes the copy of a store that has none, as one of an earlier release.
func (s *Store) copyIndex() error {
	if _, err := os.Stat(s.path(indexCopy)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	raw, err := os.ReadFile(s.path(indexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = durable.WriteFile(s.path(indexCopy), raw, 0o644)
	}
	if err != nil {
		return fmt.Errorf("copy the store's %s: %w", indexFile, err)
	}
	return nil
}

// errIndexDamaged says that an index is none.
var errIndexDamaged = errors.New("the list of bundles in the store was damaged")

func parseIndex(raw []byte) (v1.IndexManifest, error) {
	im := v1.IndexManifest{}
	if err := decodeJSON(raw, &im); err != nil {
		return im, fmt.Errorf("%w: %s %w", errIndexDamaged, indexFile, err)
	}
	return im, nil
}

func readIndexFile(path string) (v1.IndexManifest, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}, nil
	}
	if err != nil {
		return v1.IndexManifest{}, fmt.Errorf("read the store's %s: %w", indexFile, err)
	}
	return parseIndex(raw)
}

// newestFirst orders bundles by when they were built, and those of one moment by when they were imported: an older bundle that is
// imported later must not take the place of what there is.
func newestFirst(a, b Info) int {
	return cmp.Or(b.Created.Compare(a.Created), b.Imported.Compare(a.Imported))
}

// behind are the bundles that are newer than c and hold something of the same kind and name.
func (s *Store) behind(c *contents) []Info {
	var list []Info
	for _, a := range s.Artifacts() {
		shared := slices.ContainsFunc(c.artifacts, func(own Artifact) bool {
			return own.Kind == a.Kind && own.Name == a.Name && own.Digest != a.Digest
		})
		known := slices.ContainsFunc(list, func(i Info) bool { return i.Digest == a.Bundle.Digest })
		if shared && !known && newestFirst(a.Bundle, c.info) < 0 {
			list = append(list, a.Bundle)
		}
	}
	return list
}

// refresh reads index.json if it is another one than before. s.mu is held.
func (s *Store) refresh() error {
	var st unix.Stat_t
	err := unix.Stat(s.path(indexFile), &st)
	if errors.Is(err, unix.ENOENT) {
		s.catalog, s.bundles, s.broken, s.stamp = nil, nil, nil, fileStamp{}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the store's index.json: %w", err)
	}
	stamp := fileStamp{st.Ino, st.Size, st.Mtim.Nano()}
	if stamp == s.stamp {
		return nil
	}
	im, err := s.readIndex()
	if err != nil {
		return err
	}
	var all []*contents
	var broken []error
	for _, d := range im.Manifests {
		// One damaged bundle must not take the others from the site.
		c, err := s.readBundle(d)
		if err != nil {
			broken = append(broken, err)
			continue
		}
		all = append(all, c)
	}
	slices.SortStableFunc(all, func(a, b *contents) int { return newestFirst(a.info, b.info) })
	var catalog []Artifact
	var bundles []Info
	for _, c := range all {
		catalog = append(catalog, c.artifacts...)
		bundles = append(bundles, c.info)
	}
	s.catalog, s.bundles, s.broken, s.stamp = catalog, bundles, broken, stamp
	return nil
}

func (s *Store) readIndex() (v1.IndexManifest, error) { return readIndexFile(s.path(indexFile)) }

// readBundle reads the tree of one imported bundle, by its descriptor in the store's index.
func (s *Store) readBundle(d v1.Descriptor) (*contents, error) {
	index, err := s.readBlob(Descriptor{Digest: d.Digest.String(), Size: d.Size}, maxIndexSize)
	if err != nil {
		return nil, fmt.Errorf("read imported bundle: %w", err)
	}
	c, err := readContents(index, false, s.readBlob)
	if err != nil {
		return nil, fmt.Errorf("read imported bundle %s: %w", d.Digest, err)
	}
	if err := json.Unmarshal([]byte(d.Annotations[annotationSignature]), &c.signature); err != nil {
		return nil, fmt.Errorf("read imported bundle %s: signature: %w", d.Digest, err)
	}
	c.info.KeyID = c.signature.KeyID
	if t, err := time.Parse(time.RFC3339Nano, d.Annotations[annotationImported]); err == nil {
		c.info.Imported = t
	}
	for i := range c.artifacts {
		c.artifacts[i].Bundle = c.info
	}
	return c, nil
}

// readBlob is readContents' view of the store.
func (s *Store) readBlob(d Descriptor, limit int64) ([]byte, error) {
	f, size, err := s.Open(d.Digest)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if size != d.Size || size > limit {
		return nil, fmt.Errorf("blob %s has %d bytes, want %d, at most %d", d.Digest, size, d.Size, limit)
	}
	return io.ReadAll(f)
}

// publish makes a bundle visible; all its blobs are in the store by now.
func (s *Store) publish(c *contents, now time.Time) (Info, error) {
	unlock, err := s.lock("index.lock", unix.LOCK_EX)
	if err != nil {
		return Info{}, err
	}
	defer unlock()
	im, err := s.readIndex()
	if err != nil {
		return Info{}, err
	}
	h, err := v1.NewHash(c.info.Digest)
	if err != nil {
		return Info{}, fmt.Errorf("publish bundle: %w", err)
	}
	signature, err := json.Marshal(c.signature)
	if err != nil {
		return Info{}, fmt.Errorf("publish bundle: %w", err)
	}
	info := c.info
	info.Imported, info.KeyID = now.UTC(), c.signature.KeyID
	im.Manifests = slices.DeleteFunc(im.Manifests, func(d v1.Descriptor) bool { return d.Digest == h })
	im.Manifests = slices.Insert(im.Manifests, 0, v1.Descriptor{
		MediaType: types.OCIImageIndex, Digest: h, Size: int64(len(c.index)),
		Annotations: map[string]string{
			annotationName:      info.Name,
			annotationImported:  info.Imported.Format(time.RFC3339Nano),
			annotationSignature: string(signature),
		},
	})
	raw, err := json.MarshalIndent(im, "", "  ")
	if err != nil {
		return Info{}, fmt.Errorf("publish bundle: %w", err)
	}
	for _, name := range []string{indexFile, indexCopy} {
		if err := durable.WriteFile(s.path(name), raw, 0o644); err != nil {
			return Info{}, fmt.Errorf("publish bundle: %w", err)
		}
	}
	return info, nil
}

// clearTemporary removes what crashed processes left, unless somebody is writing just now.
func (s *Store) clearTemporary() {
	unlock, err := s.lock("lock", unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return
	}
	defer unlock()
	entries, _ := os.ReadDir(s.path("tmp"))
	for _, e := range entries {
		_ = os.Remove(s.path("tmp", e.Name()))
	}
}

// lock takes an advisory lock that the kernel drops when the process dies.
func (s *Store) lock(name string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(s.path(name), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock content store: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock content store %s: %w", s.dir, err)
	}
	return func() { _ = f.Close() }, nil
}

// Check reads every blob of every imported bundle and compares it with its digest, so that rot is
// found before a machine meets it. It returns all that is wrong.
func (s *Store) Check(ctx context.Context, progress func(Progress)) error {
	im, err := s.readIndex()
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range im.Manifests {
		c, err := s.readBundle(d)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p := tracker{report: progress, at: Progress{Bundle: c.info.Name, Total: c.size()}}
		for _, b := range c.blobs {
			p.file(b)
			f, _, err := s.Open(b.Digest)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s, file %q: %w", b.artifact, b.file, err))
				continue
			}
			err = checkBlob(ctx, f, b, &p)
			_ = f.Close()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// contextReader ends a long copy when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
