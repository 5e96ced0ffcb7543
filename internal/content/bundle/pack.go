package bundle

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"coldrack.dev/internal/base/digest"
)

// Spec says what a bundle is to contain.
type Spec struct {
	Name      string
	Created   time.Time // goes into the signed index; zero leaves it out
	Artifacts []ArtifactSpec
}

// ArtifactSpec says what an artifact is to contain.
type ArtifactSpec struct {
	Kind   Kind
	Name   string
	Config any // the kind's config type
	Files  []FileSpec
	// Image is the whole of a KindContainer; it has neither Config nor Files.
	Image v1.Image
}

// FileSpec is a file of an artifact; its content is at Path.
type FileSpec struct {
	Title string
	Path  string
}

// Pack writes the signed archive of spec to out. The same spec, files and key give the same bytes.
// What it writes passes Verify.
func Pack(ctx context.Context, spec Spec, key ed25519.PrivateKey, out string, progress func(Progress)) (Summary, error) {
	p := &packer{content: map[string]source{}}
	index, err := p.index(ctx, spec)
	if err != nil {
		return Summary{}, fmt.Errorf("pack bundle %s: %w", spec.Name, err)
	}
	c, err := readContents(index, true, func(d Descriptor, limit int64) ([]byte, error) {
		r, err := p.open(d)
		if err != nil {
			return nil, err
		}
		defer func() { _ = r.Close() }()
		return io.ReadAll(io.LimitReader(r, limit))
	})
	if err != nil {
		return Summary{}, fmt.Errorf("pack bundle %s: %w", spec.Name, err)
	}
	c.signature = sign(key, index)
	c.info.KeyID = c.signature.KeyID
	if err := writeArchive(ctx, c, out, p.open, progress); err != nil {
		return Summary{}, fmt.Errorf("pack bundle %s: %w", spec.Name, err)
	}
	return c.summary(), nil
}

// source is the content of a blob: bytes made here, a file, or a layer of a container image.
type source struct {
	bytes []byte
	path  string
	layer v1.Layer
}

type packer struct {
	content map[string]source // by digest
}

func (p *packer) open(d Descriptor) (io.ReadCloser, error) {
	s, ok := p.content[d.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, ErrNotFound)
	}
	if s.layer != nil {
		return s.layer.Compressed()
	}
	if s.path == "" {
		return io.NopCloser(bytes.NewReader(s.bytes)), nil
	}
	return os.Open(s.path)
}

func (p *packer) index(ctx context.Context, spec Spec) ([]byte, error) {
	im := v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex,
		Annotations: map[string]string{annotationName: spec.Name},
	}
	if !spec.Created.IsZero() {
		im.Annotations[annotationCreated] = spec.Created.UTC().Format(time.RFC3339)
	}
	for _, a := range spec.Artifacts {
		d, err := p.artifact(ctx, a)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", a.Kind, a.Name, err)
		}
		im.Manifests = append(im.Manifests, d)
	}
	return marshalLine(im)
}

func (p *packer) artifact(ctx context.Context, a ArtifactSpec) (v1.Descriptor, error) {
	if a.Kind == KindContainer {
		return p.container(a)
	}
	config, err := p.json(a.Config, types.MediaType(configMediaType(a.Kind)))
	if err != nil {
		return v1.Descriptor{}, err
	}
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: artifactType(a.Kind),
		Config: config, Layers: []v1.Descriptor{},
	}
	for _, f := range a.Files {
		d, err := p.file(ctx, f)
		if err != nil {
			return v1.Descriptor{}, fmt.Errorf("%s: %w", f.Title, err)
		}
		m.Layers = append(m.Layers, d)
	}
	d, err := p.json(m, types.OCIManifestSchema1)
	if err != nil {
		return d, err
	}
	d.ArtifactType = m.ArtifactType
	d.Annotations = map[string]string{annotationName: a.Name}
	return d, nil
}

func (p *packer) json(v any, mediaType types.MediaType) (v1.Descriptor, error) {
	raw, err := marshalLine(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	h, err := v1.NewHash(digest.Of(raw).String())
	if err != nil {
		return v1.Descriptor{}, err
	}
	p.content[h.String()] = source{bytes: raw}
	return v1.Descriptor{MediaType: mediaType, Digest: h, Size: int64(len(raw))}, nil
}

func (p *packer) file(ctx context.Context, f FileSpec) (v1.Descriptor, error) {
	r, err := os.Open(f.Path)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer func() { _ = r.Close() }()
	sum := sha256.New()
	n, err := io.Copy(sum, contextReader{ctx, r})
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("read %s: %w", f.Path, err)
	}
	h, err := v1.NewHash(digest.Sum(sum).String())
	if err != nil {
		return v1.Descriptor{}, err
	}
	p.content[h.String()] = source{path: f.Path}
	return v1.Descriptor{
		MediaType: fileMediaType, Digest: h, Size: n,
		Annotations: map[string]string{annotationTitle: f.Title},
	}, nil
}

func marshalLine(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return append(raw, '\n'), nil
}
