package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"coldrack.dev/internal/content/imagestore"
)

const (
	mediaTypeManifest       = imagestore.MediaTypeManifest
	mediaTypeIndex          = imagestore.MediaTypeIndex
	mediaTypeDockerManifest = imagestore.MediaTypeDockerManifest
	mediaTypeBlob           = "application/octet-stream"
)

const maxManifest = imagestore.MaxManifest

type manifest = imagestore.Manifest

// images looks things up among those of the content, and those that were loaded.
type images struct {
	content Content
	local   *imagestore.Store // nil: none can be loaded

	mu sync.Mutex
	// parsed manifests by digest; what a digest names never changes.
	parsed map[string]manifest
}

func newImages(content Content, local *imagestore.Store) *images {
	return &images{content: content, local: local, parsed: map[string]manifest{}}
}

// open returns a blob of the content, or of what was loaded.
func (i *images) open(digest string) (*os.File, int64, error) {
	file, size, err := i.content.Open(digest)
	if err != nil && i.local != nil {
		if file, size, err := i.local.Open(digest); err == nil {
			return file, size, nil
		}
	}
	return file, size, err
}

// candidate is an image with its name in parts.
type candidate struct {
	host, path string
	tag        string // empty: no tag stands for it
	digest     string
}

// ofContent lists the images of the content.
func (i *images) ofContent() []candidate {
	var all []candidate
	for _, image := range i.content.Images() {
		if host, path, tag, ok := splitImage(image.Name); ok {
			all = append(all, candidate{host, path, tag, image.Digest})
		}
	}
	return all
}

// all lists those of the content, and then those that were loaded: what is signed counts where both have a tag.
func (i *images) all() []candidate {
	all := i.ofContent()
	if i.local == nil {
		return all
	}
	i.local.Repositories(func(name string, tags map[string]string, manifests []string) {
		host, path, _ := strings.Cut(name, "/")
		for tag, digest := range tags {
			all = append(all, candidate{host, path, tag, digest})
		}
		for _, digest := range manifests {
			all = append(all, candidate{host, path, "", digest})
		}
	})
	return all
}

// bundled is the digest of an image of the content; empty: it has none of that name.
func (i *images) bundled(repository, tag string) string {
	for _, c := range i.ofContent() {
		if c.host+"/"+c.path == repository && c.tag == tag {
			return c.digest
		}
	}
	return ""
}

// repository is all images of one full name without tag.
type repository struct {
	name string // with the registry
	tags map[string]string
	// digests of all manifests, also of those whose tag now stands for another.
	digests []string
}

func (r repository) find(reference string) (digest string, ok bool) {
	if slices.Contains(r.digests, reference) {
		return reference, true
	}
	digest, ok = r.tags[reference]
	return digest, ok
}

func (r repository) tagList() []string {
	tags := make([]string, 0, len(r.tags))
	for tag := range r.tags {
		tags = append(tags, tag)
	}
	slices.Sort(tags)
	return tags
}

// repository finds one by its name and, where the client says so, its registry. The error is a refusal.
func (i *images) repository(ns, name string) (repository, error) {
	all := i.all()
	if ns != "" {
		if r := collect(all, func(host, path string) bool { return host == ns && path == name }); len(r) > 0 {
			return r[0], nil
		}
		return repository{}, refuse(http.StatusNotFound, codeNameUnknown, "nothing that was imported or loaded has an image %s/%s; coldrack bundle import or coldrack image load brings one in", ns, name)
	}
	if first, path, ok := strings.Cut(name, "/"); ok && isHost(first) {
		if r := collect(all, func(host, p string) bool { return host == canonicalHost(first) && p == path }); len(r) > 0 {
			return r[0], nil
		}
	}
	found := collect(all, func(_, path string) bool { return path == name })
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return repository{}, refuse(http.StatusNotFound, codeNameUnknown, "nothing that was imported or loaded has an image %s; coldrack bundle import or coldrack image load brings one in", name)
	}
	var names []string
	for _, r := range found {
		names = append(names, r.name)
	}
	return repository{}, refuse(http.StatusNotFound, codeNameUnknown, "%s may be %s; name the registry, in front or as the query parameter ns", name, strings.Join(names, " or "))
}

// collect returns the repositories that match, by name. Which images there are changes with every import, and they
// are tens, so nothing is kept.
func collect(all []candidate, match func(host, path string) bool) []repository {
	var found []repository
	for _, image := range all {
		if !match(image.host, image.path) {
			continue
		}
		full := image.host + "/" + image.path
		at := slices.IndexFunc(found, func(r repository) bool { return r.name == full })
		if at < 0 {
			found, at = append(found, repository{name: full, tags: map[string]string{}}), len(found)
		}
		if _, newer := found[at].tags[image.tag]; !newer && image.tag != "" {
			found[at].tags[image.tag] = image.digest
		}
		found[at].digests = append(found[at].digests, image.digest)
	}
	slices.SortFunc(found, func(a, b repository) int { return strings.Compare(a.name, b.name) })
	return found
}

// hasBlob tells whether an image of the repository refers to a blob.
func (i *images) hasBlob(r repository, digest string) (bool, error) {
	var errs []error
	for _, d := range r.digests {
		m, err := i.manifest(d)
		if err != nil {
			errs = append(errs, fmt.Errorf("image %s: %w", r.name, err))
			continue
		}
		if m.Has(digest) {
			return true, nil
		}
	}
	return false, errors.Join(errs...)
}

// maxParsed bounds what is kept of bundles that are gone.
const maxParsed = 4096

func (i *images) manifest(digest string) (manifest, error) {
	i.mu.Lock()
	m, ok := i.parsed[digest]
	i.mu.Unlock()
	if ok {
		return m, nil
	}
	file, size, err := i.open(digest)
	if err != nil {
		return manifest{}, fmt.Errorf("manifest: %w", err)
	}
	if m, err = readManifest(file, size, digest); err != nil {
		return manifest{}, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.parsed) >= maxParsed {
		clear(i.parsed)
	}
	i.parsed[digest] = m
	return m, nil
}

// readManifest closes the file.
func readManifest(file *os.File, size int64, digest string) (manifest, error) {
	defer file.Close()
	if size > maxManifest {
		return manifest{}, fmt.Errorf("manifest %s has %d bytes, want at most %d", digest, size, maxManifest)
	}
	raw, err := io.ReadAll(io.LimitReader(file, maxManifest))
	if err != nil {
		return manifest{}, fmt.Errorf("manifest %s: %w", digest, err)
	}
	return imagestore.ParseManifest(digest, raw)
}
