package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
)

const (
	mediaTypeManifest       = "application/vnd.oci.image.manifest.v1+json"
	mediaTypeIndex          = "application/vnd.oci.image.index.v1+json"
	mediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	mediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	mediaTypeBlob           = "application/octet-stream"
)

// maxManifest is what the specification asks registries to accept at least.
const maxManifest = 4 << 20

// manifest is what serving needs to know of one.
type manifest struct {
	digest    string
	mediaType string
	blobs     []string // digests of config and layers; none of an index
}

func parseManifest(digest string, raw []byte) (manifest, error) {
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
	}
	var m struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        *descriptor  `json:"config"`
		Layers        []descriptor `json:"layers"`
		Manifests     []descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return manifest{}, fmt.Errorf("manifest %s: %w", digest, err)
	}
	if m.MediaType == "" {
		// OCI leaves it open; what there is then says which of the two it is.
		switch {
		case m.Config != nil && m.Manifests == nil:
			m.MediaType = mediaTypeManifest
		case m.Manifests != nil && m.Config == nil:
			m.MediaType = mediaTypeIndex
		}
	}
	out := manifest{digest: digest, mediaType: m.MediaType}
	switch m.MediaType {
	case mediaTypeManifest, mediaTypeDockerManifest:
		if m.Config == nil {
			return manifest{}, fmt.Errorf("manifest %s: has no config", digest)
		}
		for _, d := range append(m.Layers, *m.Config) {
			out.blobs = append(out.blobs, d.Digest)
		}
	case mediaTypeIndex, mediaTypeDockerList:
	default:
		return manifest{}, fmt.Errorf("manifest %s: media type %q is none of a container image", digest, clip(m.MediaType))
	}
	if m.SchemaVersion != 2 {
		return manifest{}, fmt.Errorf("manifest %s: schema version is %d, want 2", digest, m.SchemaVersion)
	}
	return out, nil
}

// images looks things up among those of the content.
type images struct {
	content Content

	mu sync.Mutex
	// parsed manifests by digest; what a digest names never changes.
	parsed map[string]manifest
}

func newImages(content Content) *images {
	return &images{content: content, parsed: map[string]manifest{}}
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
	all := i.content.Images()
	if ns != "" {
		if r := collect(all, func(host, path string) bool { return host == ns && path == name }); len(r) > 0 {
			return r[0], nil
		}
		return repository{}, refuse(http.StatusNotFound, codeNameUnknown, "no imported bundle has an image %s/%s; coldrack bundle import brings one in", ns, name)
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
		return repository{}, refuse(http.StatusNotFound, codeNameUnknown, "no imported bundle has an image %s; coldrack bundle import brings one in", name)
	}
	var names []string
	for _, r := range found {
		names = append(names, r.name)
	}
	return repository{}, refuse(http.StatusNotFound, codeNameUnknown, "%s may be %s; name the registry, in front or as the query parameter ns", name, strings.Join(names, " or "))
}

// collect returns the repositories that match, by name. Which images there are changes with every import, and they
// are tens, so nothing is kept.
func collect(all []Image, match func(host, path string) bool) []repository {
	var found []repository
	for _, image := range all {
		host, path, tag, ok := splitImage(image.Name)
		if !ok || !match(host, path) {
			continue
		}
		full := host + "/" + path
		at := slices.IndexFunc(found, func(r repository) bool { return r.name == full })
		if at < 0 {
			found, at = append(found, repository{name: full, tags: map[string]string{}}), len(found)
		}
		if _, newer := found[at].tags[tag]; !newer {
			found[at].tags[tag] = image.Digest
		}
		found[at].digests = append(found[at].digests, image.Digest)
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
		if slices.Contains(m.blobs, digest) {
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
	file, size, err := i.content.Open(digest)
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
	return parseManifest(digest, raw)
}
