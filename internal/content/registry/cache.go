package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/base/durable"
)

// cache is a folder of blobs from upstreams, bounded by evicting what was used longest ago:
//
//	blobs/<hex>   verified and complete
//	tags/<hex>    what a tag stood for when its upstream was asked last
//	tmp/          on their way in
//
// One process uses it. The time of the last use is the file's modification time, so that it outlives a restart.
type cache struct {
	dir   string
	limit int64
	now   func() time.Time
	// pinned are names of images that are not evicted; nil: there are none.
	pinned func() []string

	mu      sync.Mutex
	entries map[string]entry // by digest
	used    int64            // bytes of entries and of what is on its way in
}

type entry struct {
	size int64
	used time.Time
}

func openCache(dir string, limit int64, now func() time.Time, pinned func() []string) (*cache, error) {
	c := &cache{dir: dir, limit: limit, now: now, pinned: pinned, entries: map[string]entry{}}
	if err := os.RemoveAll(filepath.Join(dir, "tmp")); err != nil {
		return nil, fmt.Errorf("cache of container images: %w", err)
	}
	for _, name := range []string{"blobs", "tags", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return nil, fmt.Errorf("cache of container images: %w", err)
		}
	}
	files, err := os.ReadDir(filepath.Join(dir, "blobs"))
	if err != nil {
		return nil, fmt.Errorf("cache of container images: %w", err)
	}
	for _, file := range files {
		info, err := file.Info()
		if name := "sha256:" + file.Name(); err == nil && digest.Valid(name) && info.Mode().IsRegular() {
			c.entries[name] = entry{info.Size(), info.ModTime()}
			c.used += info.Size()
		}
	}
	// The limit may be lower than last time.
	if err := c.reserve(0); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *cache) size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

func (c *cache) blobPath(blob string) string {
	return filepath.Join(c.dir, "blobs", digest.Hex(blob))
}

// open returns a blob that is there, and notes its use.
func (c *cache) open(digest string) (*os.File, int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[digest]
	if !ok {
		return nil, 0, false
	}
	file, err := os.Open(c.blobPath(digest))
	if err != nil {
		// Somebody has removed it by hand.
		delete(c.entries, digest)
		c.used -= e.size
		return nil, 0, false
	}
	e.used = c.now()
	c.entries[digest] = e
	_ = os.Chtimes(file.Name(), e.used, e.used) // the order of eviction after a restart is all that suffers
	return file, e.size, true
}

// reserve makes room for size bytes that come in. They are released, or turned into an entry by keep. Files that
// somebody still reads stay readable when they are evicted.
func (c *cache) reserve(size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var stays map[string]bool
	for c.used+size > c.limit {
		if stays == nil {
			stays = c.pinnedContent()
		}
		oldest := ""
		for digest, e := range c.entries {
			if stays[digest] {
				continue
			}
			if oldest == "" || e.used.Before(c.entries[oldest].used) {
				oldest = digest
			}
		}
		if oldest == "" {
			return fmt.Errorf("%d bytes do not fit into the cache of %d bytes, of which %d are on their way in or pinned; raise --registry-cache-gib", size, c.limit, c.used)
		}
		if err := c.evict(oldest); err != nil {
			return err
		}
	}
	c.used += size
	return nil
}

// evict removes an entry. c.mu is held.
func (c *cache) evict(digest string) error {
	if err := os.Remove(c.blobPath(digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("evict from the cache of container images: %w", err)
	}
	c.used -= c.entries[digest].size
	delete(c.entries, digest)
	return nil
}

func (c *cache) release(size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used -= size
}

// temporary makes a file for a blob on its way in.
func (c *cache) temporary(blob string) (*os.File, error) {
	return os.CreateTemp(filepath.Join(c.dir, "tmp"), digest.Hex(blob)[:12]+"-*")
}

// keep puts a verified file in its place. Its size has been reserved.
func (c *cache) keep(digest, temporary string, size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := os.Rename(temporary, c.blobPath(digest)); err != nil {
		return fmt.Errorf("cache of container images: %w", err)
	}
	if old, twice := c.entries[digest]; twice {
		c.used -= old.size
	}
	c.entries[digest] = entry{size, c.now()}
	return nil
}

// tag is what an upstream said a tag stands for.
type tag struct {
	Reference string    `json:"reference"`
	Digest    string    `json:"digest"`
	Asked     time.Time `json:"asked"`
}

func (c *cache) tagPath(reference string) string {
	sum := sha256.Sum256([]byte(reference))
	return filepath.Join(c.dir, "tags", hex.EncodeToString(sum[:]))
}

func (c *cache) tag(reference string) (tag, bool) {
	raw, err := os.ReadFile(c.tagPath(reference))
	var t tag
	if err != nil || json.Unmarshal(raw, &t) != nil || t.Reference != reference || !digest.Valid(t.Digest) {
		return tag{}, false
	}
	return t, true
}

func (c *cache) putTag(t tag) error {
	raw, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return durable.WriteFile(c.tagPath(t.Reference), raw, 0o600)
}
