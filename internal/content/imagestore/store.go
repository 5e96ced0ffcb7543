// Package imagestore keeps container images that people bring beside bundles: blobs by their digest, and in each
// repository manifests and tags. Its room is bounded. A repository has its full name, with the registry:
// registry.k8s.io/pause.
//
//	blobs/sha256/<hex>      verified and complete
//	repositories/<hex>.json manifests and tags of one repository; <hex> is the SHA-256 of its name
//	pins.json               names of images that stay
//	uploads/                blobs on their way in
//
// A blob is in its place before a manifest names it, and a manifest is in its repository's file before it is visible. What a
// crash leaves behind is in uploads, or a blob that no manifest names; both go at the next start. One process uses the folder.
package imagestore

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/base/durable"
)

// Errors of requests that name what is not there, or what may not be.
var (
	ErrNotFound = errors.New("not found")
	ErrFull     = errors.New("the room for loaded images is full")
	ErrInUse    = errors.New("in use")
	ErrLacking  = errors.New("names content that has not come")
	ErrDigest   = errors.New("the content has another digest")
	ErrInvalid  = errors.New("is no manifest")
	ErrOffset   = errors.New("the part does not begin where the last one ended")
	ErrTooMany  = errors.New("too many uploads run")
)

const (
	// grace is for how long content stays that no manifest names, and an upload that nothing comes for.
	grace = time.Hour
	// maxUploads run at once.
	maxUploads = 128
	// maxManifests of one repository, and maxRepositories.
	maxManifests, maxRepositories = 10_000, 10_000
	// useStep is how exactly the time of the last use is kept.
	useStep = time.Minute
)

// Options are what a Store needs. Dir and Limit must be set.
type Options struct {
	Dir string
	// Limit is how many bytes blobs and uploads may have together.
	Limit int64
	// Room says why the disk has no room for more; nil: it always has.
	Room func() error
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Store is an open store. It may be used by several goroutines.
type Store struct {
	opts Options

	mu    sync.Mutex
	blobs map[string]blob        // by digest
	used  int64                  // bytes of blobs and uploads
	repos map[string]*repository // by full name
	pins  map[string]bool        // full names with tag
	// links are blobs that came into a repository, by its name and the digest, and when. They are forgotten at the end of
	// the process, and then the blobs go that no manifest names.
	links    map[string]map[string]time.Time
	uploads  map[string]*Upload
	parsed   map[string]Manifest // of all repositories, by digest
	swept    time.Time
	problems []error
}

type blob struct {
	size int64
	used time.Time
}

// repository is what its file has.
type repository struct {
	Name      string            `json:"name"`
	Tags      map[string]string `json:"tags,omitempty"`
	Manifests map[string]entry  `json:"manifests,omitempty"` // by digest
}

type entry struct {
	Added time.Time `json:"added"`
	By    string    `json:"by,omitempty"`
}

func (r *repository) clone() *repository {
	c := &repository{Name: r.Name, Tags: maps.Clone(r.Tags), Manifests: maps.Clone(r.Manifests)}
	if c.Tags == nil {
		c.Tags = map[string]string{}
	}
	if c.Manifests == nil {
		c.Manifests = map[string]entry{}
	}
	return c
}

// Open opens a store, and makes it where there is none.
func Open(opts Options) (*Store, error) {
	s := &Store{
		opts: opts, blobs: map[string]blob{}, repos: map[string]*repository{}, pins: map[string]bool{},
		links: map[string]map[string]time.Time{}, uploads: map[string]*Upload{}, parsed: map[string]Manifest{},
	}
	if s.opts.Now == nil {
		s.opts.Now = time.Now
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("store of loaded images: %w", err)
	}
	return s, nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.opts.Dir}, elem...)...)
}

func (s *Store) blobPath(name string) string { return s.path("blobs", "sha256", digest.Hex(name)) }

func (s *Store) load() error {
	if err := os.RemoveAll(s.path("uploads")); err != nil {
		return err
	}
	for _, dir := range []string{s.path("blobs", "sha256"), s.path("repositories"), s.path("uploads")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := s.loadBlobs(); err != nil {
		return err
	}
	files, err := os.ReadDir(s.path("repositories"))
	if err != nil {
		return err
	}
	for _, file := range files {
		path := s.path("repositories", file.Name())
		if durable.IsTemporary(path) {
			_ = os.Remove(path)
			continue
		}
		s.loadRepository(path)
	}
	raw, err := os.ReadFile(s.path("pins.json"))
	if err == nil {
		err = json.Unmarshal(raw, &s.pins)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.problems = append(s.problems, fmt.Errorf("pins of images cannot be read; pin them again: %w", err))
		s.pins = map[string]bool{}
	}
	_, err = s.sweep(0)
	return err
}

func (s *Store) loadBlobs() error {
	files, err := os.ReadDir(s.path("blobs", "sha256"))
	if err != nil {
		return err
	}
	for _, file := range files {
		info, err := file.Info()
		if name := "sha256:" + file.Name(); err == nil && digest.Valid(name) && info.Mode().IsRegular() {
			s.blobs[name] = blob{info.Size(), info.ModTime()}
			s.used += info.Size()
		}
	}
	return nil
}

// loadRepository leaves out what cannot be read: one damaged file must not take the other images from the site.
func (s *Store) loadRepository(path string) {
	r := &repository{}
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, r)
	}
	if err != nil || filepath.Base(path) != repositoryFile(r.Name) {
		s.problems = append(s.problems, fmt.Errorf("%s is damaged; remove it, and load its images again: %w", path, cmp.Or(err, errors.New("it is of another repository"))))
		return
	}
	r = r.clone()
	for name := range r.Manifests {
		m, err := s.readManifest(name)
		if err != nil {
			s.problems = append(s.problems, fmt.Errorf("image %s@%s is damaged; load it again: %w", r.Name, name, err))
			delete(r.Manifests, name)
			continue
		}
		s.parsed[name] = m
	}
	maps.DeleteFunc(r.Tags, func(_, name string) bool { _, ok := r.Manifests[name]; return !ok })
	if len(r.Manifests) > 0 {
		s.repos[r.Name] = r
	}
}

func (s *Store) readManifest(name string) (Manifest, error) {
	raw, err := os.ReadFile(s.blobPath(name))
	if err != nil {
		return Manifest{}, err
	}
	if got := digest.Of(raw).String(); got != name {
		return Manifest{}, fmt.Errorf("the manifest's bytes are those of %s", got)
	}
	return ParseManifest(name, raw)
}

// Problems are what could not be read when the store was opened.
func (s *Store) Problems() []error { return s.problems }

func repositoryFile(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:]) + ".json"
}

// write keeps a repository, and shows it from then on. s.mu is held.
func (s *Store) write(r *repository) error {
	path := s.path("repositories", repositoryFile(r.Name))
	if len(r.Manifests) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget repository %s: %w", r.Name, err)
		}
		delete(s.repos, r.Name)
		return durable.SyncDir(filepath.Dir(path))
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = durable.WriteFile(path, raw, 0o644)
	}
	if err != nil {
		return fmt.Errorf("keep repository %s: %w", r.Name, err)
	}
	s.repos[r.Name] = r
	return nil
}

// Repositories calls yield with each repository's full name, its tags, and the digests of all its manifests.
func (s *Store) Repositories(yield func(name string, tags map[string]string, manifests []string)) {
	s.mu.Lock()
	repos := slices.Collect(maps.Values(s.repos)) // they are replaced, not changed
	s.mu.Unlock()
	for _, r := range repos {
		yield(r.Name, r.Tags, slices.Sorted(maps.Keys(r.Manifests)))
	}
}

// Open returns a blob and its size, and notes its use. The caller closes it.
func (s *Store) Open(name string) (*os.File, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.blobs[name]
	if !ok {
		return nil, 0, fmt.Errorf("loaded content %s: %w", name, ErrNotFound)
	}
	file, err := os.Open(s.blobPath(name))
	if err != nil {
		return nil, 0, fmt.Errorf("loaded content: %w", err)
	}
	if now := s.opts.Now(); now.Sub(b.used) > useStep {
		b.used = now
		s.blobs[name] = b
		_ = os.Chtimes(file.Name(), now, now) // when it was used last is all that suffers
	}
	return file, b.size, nil
}

// Linked says whether a blob came into a repository lately, whether or not a manifest names it.
func (s *Store) Linked(repo, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.linked(repo, name)
}

func (s *Store) linked(repo, name string) bool {
	if _, ok := s.blobs[name]; !ok {
		return false
	}
	if _, ok := s.links[repo][name]; ok {
		return true
	}
	r := s.repos[repo]
	return r != nil && s.named(r, name) != ""
}

// named is the digest of a manifest of the repository that names a blob; or empty.
func (s *Store) named(r *repository, blob string) string {
	for name := range r.Manifests {
		if s.parsed[name].Has(blob) {
			return name
		}
	}
	return ""
}

func (s *Store) link(repo, name string) {
	if s.links[repo] == nil {
		s.links[repo] = map[string]time.Time{}
	}
	s.links[repo][name] = s.opts.Now()
}

// Mount lets a repository have a blob of another one; of any, where from is empty. false: there is none.
func (s *Store) Mount(repo, from, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.blobs[name]; !ok || from != "" && !s.linked(from, name) {
		return false
	}
	s.link(repo, name)
	return true
}

// PutManifest keeps a manifest in a repository, under a tag unless that is empty. Everything that it names must have come into the
// repository before, but for the platforms of an index, of which one suffices. It returns what the manifest says.
func (s *Store) PutManifest(repo, tag, mediaType string, raw []byte, by string) (Manifest, error) {
	name := digest.Of(raw).String()
	m, err := ParseManifest(name, raw)
	if err == nil {
		err = m.check()
	}
	if err != nil {
		return m, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if mediaType != "" && mediaType != m.MediaType {
		return m, fmt.Errorf("%w: it was sent as %q, and says of itself %q", ErrInvalid, mediaType, m.MediaType)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repos[repo]
	if r == nil {
		r = &repository{Name: repo}
	}
	if err := s.complete(r, m); err != nil {
		return m, err
	}
	r = r.clone()
	if _, ok := r.Manifests[name]; !ok && (len(r.Manifests) >= maxManifests || len(r.Manifests) == 0 && len(s.repos) >= maxRepositories) {
		return m, fmt.Errorf("%w: it has as many manifests or repositories as there may be", ErrFull)
	}
	if err := s.putBytes(name, raw); err != nil {
		return m, err
	}
	if old, ok := r.Manifests[name]; !ok || old.By == "" {
		r.Manifests[name] = entry{Added: s.opts.Now().UTC().Truncate(time.Second), By: by}
	}
	if tag != "" {
		r.Tags[tag] = name
	}
	s.parsed[name] = m
	return m, s.write(r)
}

// complete says what of a manifest the repository lacks.
func (s *Store) complete(r *repository, m Manifest) error {
	for _, d := range m.Blobs {
		if d.Elsewhere() {
			continue
		}
		if !s.linked(r.Name, d.Digest) {
			return fmt.Errorf("%w: repository %s has no %s, which manifest %s needs", ErrLacking, r.Name, d.Digest, m.Digest)
		}
		if have := s.blobs[d.Digest].size; have != d.Size {
			return fmt.Errorf("%w: manifest %s says that %s has %d bytes, and it has %d", ErrInvalid, m.Digest, d.Digest, d.Size, have)
		}
	}
	known := func(d Descriptor) bool { _, ok := r.Manifests[d.Digest]; return ok }
	if len(m.Manifests) > 0 && !slices.ContainsFunc(m.Manifests, known) {
		return fmt.Errorf("%w: repository %s has no manifest that index %s names", ErrLacking, r.Name, m.Digest)
	}
	return nil
}

// putBytes keeps a small blob. s.mu is held.
func (s *Store) putBytes(name string, raw []byte) error {
	if b, ok := s.blobs[name]; ok {
		b.used = s.opts.Now()
		s.blobs[name] = b
		return nil
	}
	if err := s.reserve(int64(len(raw))); err != nil {
		return err
	}
	if err := durable.WriteFile(s.blobPath(name), raw, 0o644); err != nil {
		s.used -= int64(len(raw))
		return fmt.Errorf("keep a manifest: %w", err)
	}
	s.blobs[name] = blob{int64(len(raw)), s.opts.Now()}
	return nil
}

// DeleteTag removes a tag. Its manifest stays until a prune.
func (s *Store) DeleteTag(repo, tag string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repos[repo]
	if r == nil || r.Tags[tag] == "" {
		return fmt.Errorf("image %s:%s: %w among those that were loaded", repo, tag, ErrNotFound)
	}
	if s.pins[repo+":"+tag] {
		return fmt.Errorf("image %s:%s is pinned: %w", repo, tag, ErrInUse)
	}
	r = r.clone()
	delete(r.Tags, tag)
	return s.write(r)
}

// DeleteManifest removes a manifest and the tags that stand for it. Its blobs stay until a prune.
func (s *Store) DeleteManifest(repo, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repos[repo]
	if r == nil {
		return fmt.Errorf("repository %s: %w among those that were loaded", repo, ErrNotFound)
	}
	if _, ok := r.Manifests[name]; !ok {
		return fmt.Errorf("image %s@%s: %w among those that were loaded", repo, name, ErrNotFound)
	}
	for tag, of := range r.Tags {
		if s.pins[repo+":"+tag] && s.closure(r, of)[name] {
			return fmt.Errorf("image %s:%s is pinned, and needs %s: %w", repo, tag, name, ErrInUse)
		}
	}
	r = r.clone()
	delete(r.Manifests, name)
	maps.DeleteFunc(r.Tags, func(_, of string) bool { return of == name })
	// What it named is still the repository's, as if it had just come.
	for _, d := range s.parsed[name].Blobs {
		s.link(repo, d.Digest)
	}
	return s.write(r)
}

// DeleteBlob takes a blob from a repository, unless one of its manifests names it.
func (s *Store) DeleteBlob(repo, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.linked(repo, name) {
		return fmt.Errorf("content %s of repository %s: %w among those that were loaded", name, repo, ErrNotFound)
	}
	if r := s.repos[repo]; r != nil {
		if by := s.named(r, name); by != "" {
			return fmt.Errorf("content %s of repository %s is needed by manifest %s: %w", name, repo, by, ErrInUse)
		}
	}
	delete(s.links[repo], name)
	return nil
}

// Referrers are the manifests of a repository whose subject is that digest, by digest.
func (s *Store) Referrers(repo, subject string) []Descriptor {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := []Descriptor{}
	r := s.repos[repo]
	if r == nil {
		return found
	}
	for _, name := range slices.Sorted(maps.Keys(r.Manifests)) {
		if m := s.parsed[name]; m.Subject == subject {
			found = append(found, Descriptor{MediaType: m.MediaType, Digest: name, Size: s.blobs[name].size, ArtifactType: m.ArtifactType, Annotations: m.Annotations})
		}
	}
	return found
}

// Size is how many bytes blobs and uploads have, and how many they may have.
func (s *Store) Size() (used, limit int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used, s.opts.Limit
}

// Has says whether an image of that name is there: with a tag after a colon, or a digest after an @.
func (s *Store) Has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if repo, hash, ok := strings.Cut(name, "@"); ok {
		r := s.repos[repo]
		if r == nil {
			return false
		}
		_, ok := r.Manifests[hash]
		return ok
	}
	at := strings.LastIndexByte(name, ':')
	return at > 0 && s.repos[name[:at]] != nil && s.repos[name[:at]].Tags[name[at+1:]] != ""
}

// reserve makes room for more bytes, or says that there is none. s.mu is held.
func (s *Store) reserve(size int64) error {
	if s.used+size > s.opts.Limit {
		if _, err := s.sweep(grace); err != nil {
			return err
		}
	}
	if s.used+size > s.opts.Limit {
		return fmt.Errorf("%w: %d MiB of %d MiB are used", ErrFull, s.used>>20, s.opts.Limit>>20)
	}
	s.used += size
	return nil
}

// reachable are the blobs that manifests name, and the manifests.
func (s *Store) reachable() map[string]bool {
	needed := map[string]bool{}
	for _, r := range s.repos {
		for name := range r.Manifests {
			needed[name] = true
			for _, d := range s.parsed[name].Blobs {
				needed[d.Digest] = true
			}
		}
	}
	return needed
}

// sweep removes uploads that nothing came for and blobs that no manifest names, both for that long. s.mu is held.
func (s *Store) sweep(age time.Duration) (freed int64, err error) {
	s.swept = s.opts.Now()
	old := s.swept.Add(-age)
	for id, u := range s.uploads {
		if u.touched.Before(old) {
			freed += u.reserved
			s.drop(id)
		}
	}
	needed := s.reachable()
	for repo, blobs := range s.links {
		maps.DeleteFunc(blobs, func(name string, at time.Time) bool {
			needed[name] = needed[name] || at.After(old)
			return !at.After(old)
		})
		if len(blobs) == 0 {
			delete(s.links, repo)
		}
	}
	for name, b := range s.blobs {
		// After a damaged file nothing is deleted: it may have named what now seems to be of no use.
		if needed[name] || len(s.problems) > 0 {
			continue
		}
		if err := os.Remove(s.blobPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, fmt.Errorf("remove loaded content: %w", err)
		}
		delete(s.blobs, name)
		delete(s.parsed, name)
		s.used -= b.size
		freed += b.size
	}
	return freed, nil
}

// closure are a manifest and those that it names, as far as the repository has them.
func (s *Store) closure(r *repository, root string) map[string]bool {
	found := map[string]bool{}
	for todo := []string{root}; len(todo) > 0; {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if _, ok := r.Manifests[name]; !ok || found[name] {
			continue
		}
		found[name] = true
		for _, d := range s.parsed[name].Manifests {
			todo = append(todo, d.Digest)
		}
	}
	return found
}

// readSmall reads the beginning of a blob, such as a config.
func (s *Store) readSmall(name string, limit int64) []byte {
	file, err := os.Open(s.blobPath(name))
	if err != nil {
		return nil
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, limit))
	if err != nil {
		return nil
	}
	return raw
}
