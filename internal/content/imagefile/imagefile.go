// Package imagefile reads container images from what other tools write: archives of "docker save" and of skopeo (docker-archive,
// oci-archive), and folders in OCI image layout. Manifests of OCI layouts are kept byte by byte, so that their digests stay.
package imagefile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/imagestore"
)

// Image is one image of a file, for one platform or several.
type Image struct {
	// Name is the full name with its tag, such as docker.io/library/web:1; empty where the file does not say it.
	Name string
	// Digest of its manifest or index.
	Digest string
	// Manifests, those first that another one names; the last one has Digest.
	Manifests []Manifest
	// Blobs that they need, each once.
	Blobs []Blob
	// Absent are platforms of its index that the file does not have.
	Absent []string
}

// Size of its blobs, bytes.
func (i Image) Size() int64 {
	var size int64
	for _, b := range i.Blobs {
		size += b.Size
	}
	return size
}

// Manifest is a manifest or an index.
type Manifest struct {
	Digest, MediaType string
	Raw               []byte
}

// Blob is a config or layer.
type Blob struct {
	Digest string
	Size   int64
	Open   func() (io.ReadCloser, error)
}

// File is an open archive or folder.
type File struct {
	Images []Image
	path   string
	tree   tree
}

// Close ends the use of its images.
func (f *File) Close() error { return f.tree.close() }

// Read opens an archive or folder and finds its images.
func Read(path string) (*File, error) {
	t, err := openTree(path)
	if err != nil {
		return nil, err
	}
	f := &File{path: path, tree: t}
	if err := f.find(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), t.close())
	}
	return f, nil
}

func (f *File) find() error {
	raw, err := f.small("index.json")
	if err == nil {
		return f.layout(raw)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := f.small("manifest.json"); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return errors.New("is neither an archive of docker save nor an OCI image layout: it has no index.json and no manifest.json")
		}
		return err
	}
	return f.docker()
}

// small reads a file that describes others.
func (f *File) small(path string) ([]byte, error) {
	content, size, err := f.tree.open(path)
	if err != nil {
		return nil, err
	}
	defer content.Close()
	if size > imagestore.MaxManifest {
		return nil, fmt.Errorf("%s has %d bytes, want at most %d", path, size, imagestore.MaxManifest)
	}
	return io.ReadAll(io.LimitReader(content, imagestore.MaxManifest))
}

// Annotations of an OCI layout's index that name an image.
const (
	annotationRef        = "org.opencontainers.image.ref.name"
	annotationContainerd = "io.containerd.image.name"
)

func (f *File) layout(raw []byte) error {
	var index struct {
		Manifests []imagestore.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &index); err != nil {
		return fmt.Errorf("index.json: %w", err)
	}
	for _, d := range index.Manifests {
		i := Image{Digest: d.Digest}
		for _, text := range []string{d.Annotations[annotationContainerd], d.Annotations[annotationRef]} {
			if i.Name == "" {
				i.Name = fullName(text)
			}
		}
		seen := map[string]bool{}
		if err := f.collect(&i, d, seen, 0); err != nil {
			return err
		}
		f.Images = append(f.Images, i)
	}
	if len(f.Images) == 0 {
		return errors.New("index.json names no image")
	}
	return nil
}

// fullName is a name with registry and tag; empty where the text is none.
func fullName(text string) string {
	tag, err := name.NewTag(text, name.StrictValidation)
	if err != nil {
		return ""
	}
	return strings.Replace(tag.Name(), name.DefaultRegistry+"/", "docker.io/", 1)
}

func blobPath(name string) (string, error) {
	if !digest.Valid(name) {
		return "", fmt.Errorf("names content %.80q, want sha256:<64 hexadecimal digits>", name)
	}
	return "blobs/sha256/" + digest.Hex(name), nil
}

// maxNested is how deep indexes may name indexes.
const maxNested = 4

// absent says that a file does not have a platform of an index.
type absent struct{ what string }

func (a *absent) Error() string { return a.what + " is not in the file" }

// collect adds a manifest with what it needs to an image.
func (f *File) collect(i *Image, d imagestore.Descriptor, seen map[string]bool, depth int) error {
	if seen[d.Digest] {
		return nil
	}
	if depth > maxNested {
		return fmt.Errorf("index %s: indexes name indexes more than %d times", d.Digest, maxNested)
	}
	path, err := blobPath(d.Digest)
	if err != nil {
		return err
	}
	raw, err := f.small(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &absent{"manifest " + d.Digest}
	}
	if err != nil {
		return err
	}
	if got := digest.Of(raw).String(); got != d.Digest {
		return fmt.Errorf("manifest %s is damaged: its bytes are those of %s", d.Digest, got)
	}
	m, err := imagestore.ParseManifest(d.Digest, raw)
	if err != nil {
		return err
	}
	if err := f.blobs(i, m); err != nil {
		return err
	}
	if err := f.platforms(i, m, seen, depth); err != nil {
		return err
	}
	seen[d.Digest] = true
	i.Manifests = append(i.Manifests, Manifest{d.Digest, m.MediaType, raw})
	return nil
}

// blobs adds the config and layers of a manifest, if all are there.
func (f *File) blobs(i *Image, m imagestore.Manifest) error {
	var found []Blob
	for _, b := range m.Blobs {
		if b.Elsewhere() {
			continue
		}
		path, err := blobPath(b.Digest)
		if err != nil {
			return fmt.Errorf("manifest %s: %w", m.Digest, err)
		}
		content, size, err := f.tree.open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return &absent{"content " + b.Digest}
		}
		if err != nil {
			return err
		}
		_ = content.Close() // nothing was written
		if size != b.Size {
			return fmt.Errorf("content %s is damaged: it has %d bytes, want %d", b.Digest, size, b.Size)
		}
		found = append(found, Blob{b.Digest, size, func() (io.ReadCloser, error) {
			content, _, err := f.tree.open(path)
			return content, err
		}})
	}
	for _, b := range found {
		if !slices.ContainsFunc(i.Blobs, func(have Blob) bool { return have.Digest == b.Digest }) {
			i.Blobs = append(i.Blobs, b)
		}
	}
	return nil
}

// platforms adds what an index names, of which some may be absent, but not all.
func (f *File) platforms(i *Image, m imagestore.Manifest, seen map[string]bool, depth int) error {
	var last *absent
	for _, d := range m.Manifests {
		err := f.collect(i, d, seen, depth+1)
		if errors.As(err, &last) {
			what := d.Digest
			if d.Platform != nil {
				what = d.Platform.String()
			}
			i.Absent = append(i.Absent, what)
			continue
		}
		if err != nil {
			return err
		}
	}
	if last != nil && len(i.Absent) == len(m.Manifests) {
		return fmt.Errorf("index %s: none of its images is in the file: %w", m.Digest, last)
	}
	return nil
}

// docker finds the images of an archive of docker save. Its layers are not compressed; they are on their way, always alike.
func (f *File) docker() error {
	opener := func() (io.ReadCloser, error) { return os.Open(f.path) }
	entries, err := tarball.LoadManifest(opener)
	if err != nil {
		return fmt.Errorf("manifest.json: %w", err)
	}
	for n, entry := range entries {
		if len(entry.RepoTags) == 0 && len(entries) > 1 {
			return fmt.Errorf("image %d of %d has no name; save each of them with its name, or into a file of its own", n+1, len(entries))
		}
		tags := entry.RepoTags
		if len(tags) == 0 {
			tags = []string{""}
		}
		for _, text := range tags {
			i, err := dockerImage(opener, text)
			if err != nil {
				return err
			}
			f.Images = append(f.Images, i)
		}
	}
	if len(f.Images) == 0 {
		return errors.New("manifest.json names no image")
	}
	return nil
}

func dockerImage(opener tarball.Opener, text string) (Image, error) {
	var tag *name.Tag
	full := ""
	if text != "" {
		parsed, err := name.NewTag(text)
		if err != nil {
			return Image{}, fmt.Errorf("manifest.json: %w", err)
		}
		tag, full = &parsed, strings.Replace(parsed.Name(), name.DefaultRegistry+"/", "docker.io/", 1)
	}
	image, err := tarball.Image(opener, tag)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", text, err)
	}
	raw, err1 := image.RawManifest()
	mediaType, err2 := image.MediaType()
	config, err3 := image.RawConfigFile()
	layers, err4 := image.Layers()
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return Image{}, fmt.Errorf("image %s: %w", text, err)
	}
	root := digest.Of(raw).String()
	i := Image{Name: full, Digest: root, Manifests: []Manifest{{root, string(mediaType), raw}}}
	i.Blobs = append(i.Blobs, Blob{digest.Of(config).String(), int64(len(config)), func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(string(config))), nil
	}})
	for _, layer := range layers {
		hash, err1 := layer.Digest()
		size, err2 := layer.Size()
		if err := errors.Join(err1, err2); err != nil {
			return Image{}, fmt.Errorf("image %s: %w", text, err)
		}
		if !slices.ContainsFunc(i.Blobs, func(b Blob) bool { return b.Digest == hash.String() }) {
			i.Blobs = append(i.Blobs, Blob{hash.String(), size, layer.Compressed})
		}
	}
	return i, nil
}
