package registry

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/imagestore"
)

// Cached is an image that came from an upstream.
type Cached struct {
	// Name is the full name with its tag; empty for content that was asked for by its digest alone.
	Name   string
	Digest string
	// Size of what is here of it, bytes; images may share some of it.
	Size int64
	// LastUsed is when somebody fetched its manifest last, Asked when the upstream was asked what the tag stands for.
	LastUsed, Asked time.Time
}

// Cached lists the images of the cache that have a name, by it, and how many bytes the cache has and may have.
func (r *Registry) Cached() (images []Cached, used, limit int64) {
	if r.upstream == nil {
		return nil, 0, 0
	}
	c := r.upstream.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.images(), c.used, c.limit
}

// PrunedCache is what PruneCache did with an image.
type PrunedCache struct {
	Cached
	// Kept says why it stays; empty: it is removed.
	Kept string
}

// PruneCache removes images from the cache for which keep says no reason to stay, and all that belongs to none that stays. With dry
// nothing is removed. freed is what it makes free, bytes.
func (r *Registry) PruneCache(keep func(Cached) string, dry bool) (images []PrunedCache, freed int64, err error) {
	if r.upstream == nil {
		return nil, 0, nil
	}
	c := r.upstream.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.prune(keep, dry)
}

// images are the tags whose manifest is here. c.mu is held.
func (c *cache) images() []Cached {
	files, err := os.ReadDir(filepath.Join(c.dir, "tags"))
	if err != nil {
		return nil
	}
	var images []Cached
	for _, file := range files {
		raw, err := os.ReadFile(filepath.Join(c.dir, "tags", file.Name()))
		var t tag
		if err != nil || json.Unmarshal(raw, &t) != nil || !digest.Valid(t.Digest) {
			continue
		}
		e, ok := c.entries[t.Digest]
		if !ok {
			continue
		}
		i := Cached{Name: t.Reference, Digest: t.Digest, LastUsed: e.used, Asked: t.Asked}
		for name := range c.closure(t.Digest) {
			i.Size += c.entries[name].size
		}
		images = append(images, i)
	}
	slices.SortFunc(images, func(a, b Cached) int { return strings.Compare(a.Name, b.Name) })
	return images
}

// closure is what is here of a manifest and what it names. c.mu is held.
func (c *cache) closure(root string) map[string]bool {
	found := map[string]bool{}
	for todo := []string{root}; len(todo) > 0; {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		e, ok := c.entries[name]
		if !ok || found[name] {
			continue
		}
		found[name] = true
		m, ok := c.manifestAt(name, e.size)
		if !ok {
			continue
		}
		for _, d := range slices.Concat(m.Blobs, m.Manifests) {
			todo = append(todo, d.Digest)
		}
	}
	return found
}

// manifestAt reads an entry that may be a manifest, without noting a use.
func (c *cache) manifestAt(name string, size int64) (manifest, bool) {
	if size > maxManifest {
		return manifest{}, false
	}
	raw, err := os.ReadFile(c.blobPath(name))
	if err != nil {
		return manifest{}, false
	}
	m, err := imagestore.ParseManifest(name, raw)
	return m, err == nil
}

// pinnedContent is what the cache has of images that are pinned. c.mu is held.
func (c *cache) pinnedContent() map[string]bool {
	stays := map[string]bool{}
	if c.pinned == nil {
		return stays
	}
	for _, name := range c.pinned() {
		if t, ok := c.tag(name); ok {
			for digest := range c.closure(t.Digest) {
				stays[digest] = true
			}
		}
	}
	return stays
}

func (c *cache) prune(keep func(Cached) string, dry bool) (images []PrunedCache, freed int64, err error) {
	stays := map[string]bool{}
	for _, i := range c.images() {
		p := PrunedCache{i, keep(i)}
		images = append(images, p)
		if p.Kept == "" {
			continue
		}
		for digest := range c.closure(i.Digest) {
			stays[digest] = true
		}
	}
	// What is kept for its digest alone.
	for digest, e := range c.entries {
		if stays[digest] || keep(Cached{Digest: digest, Size: e.size, LastUsed: e.used}) == "" {
			continue
		}
		for digest := range c.closure(digest) {
			stays[digest] = true
		}
	}
	for digest, e := range c.entries {
		if stays[digest] {
			continue
		}
		freed += e.size
		if dry {
			continue
		}
		if err := c.evict(digest); err != nil {
			return images, freed, err
		}
	}
	if dry {
		return images, freed, nil
	}
	for _, p := range images {
		if p.Kept == "" {
			if err := os.Remove(c.tagPath(p.Name)); err != nil {
				return images, freed, fmt.Errorf("cache of container images: %w", err)
			}
		}
	}
	return images, freed, nil
}
