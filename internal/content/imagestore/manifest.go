package imagestore

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/base/termtext"
)

// Media types of manifests: OCI's, and Docker's, which cannot be rewritten without changing their digest.
const (
	MediaTypeManifest       = "application/vnd.oci.image.manifest.v1+json"
	MediaTypeIndex          = "application/vnd.oci.image.index.v1+json"
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// MaxManifest is what the distribution specification asks registries to accept at least, bytes.
const MaxManifest = 4 << 20

// Descriptor names content, as in a manifest.
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Platform     *Platform         `json:"platform,omitempty"`
	URLs         []string          `json:"urls,omitempty"`
}

// Platform is what an image of an index runs on.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

func (p Platform) String() string {
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

// Elsewhere says that a layer may not be distributed: it is fetched from its URLs, and no registry needs to have it.
func (d Descriptor) Elsewhere() bool {
	return len(d.URLs) > 0 || strings.Contains(d.MediaType, ".nondistributable.") || strings.Contains(d.MediaType, ".foreign.")
}

// Manifest is what serving and keeping images need to know of one.
type Manifest struct {
	Digest    string
	MediaType string
	// Blobs are the config and the layers; none of an index.
	Blobs []Descriptor
	// Config is the first of them for an image.
	Config Descriptor
	// Manifests are those that an index names.
	Manifests []Descriptor
	// Subject is the digest of the manifest that this one says something about, such as a signature; or empty.
	Subject      string
	ArtifactType string
	Annotations  map[string]string
}

// IsIndex says whether it names manifests instead of layers.
func (m Manifest) IsIndex() bool {
	return m.MediaType == MediaTypeIndex || m.MediaType == MediaTypeDockerList
}

// Has says whether the manifest names a blob.
func (m Manifest) Has(blob string) bool {
	return slices.ContainsFunc(m.Blobs, func(d Descriptor) bool { return d.Digest == blob })
}

// ParseManifest reads the manifest or index whose bytes have that digest.
func ParseManifest(name string, raw []byte) (Manifest, error) {
	var m struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		ArtifactType  string            `json:"artifactType"`
		Config        *Descriptor       `json:"config"`
		Layers        []Descriptor      `json:"layers"`
		Manifests     []Descriptor      `json:"manifests"`
		Subject       *Descriptor       `json:"subject"`
		Annotations   map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return Manifest{}, fmt.Errorf("manifest %s: %w", name, err)
	}
	if m.MediaType == "" {
		// OCI leaves it open; what there is then says which of the two it is.
		switch {
		case m.Config != nil && m.Manifests == nil:
			m.MediaType = MediaTypeManifest
		case m.Manifests != nil && m.Config == nil:
			m.MediaType = MediaTypeIndex
		}
	}
	out := Manifest{Digest: name, MediaType: m.MediaType, ArtifactType: m.ArtifactType, Annotations: m.Annotations}
	switch m.MediaType {
	case MediaTypeManifest, MediaTypeDockerManifest:
		if m.Config == nil {
			return Manifest{}, fmt.Errorf("manifest %s: has no config", name)
		}
		out.Config, out.Blobs = *m.Config, append([]Descriptor{*m.Config}, m.Layers...)
		if out.ArtifactType == "" {
			out.ArtifactType = m.Config.MediaType
		}
	case MediaTypeIndex, MediaTypeDockerList:
		out.Manifests = m.Manifests
	default:
		return Manifest{}, fmt.Errorf("manifest %s: media type %q is none of a container image", name, termtext.Mark(m.MediaType, 200))
	}
	if m.SchemaVersion != 2 {
		return Manifest{}, fmt.Errorf("manifest %s: schema version is %d, want 2", name, m.SchemaVersion)
	}
	if m.Subject != nil {
		out.Subject = m.Subject.Digest
	}
	return out, nil
}

// check says whether everything that the manifest names has a digest that can be kept.
func (m Manifest) check() error {
	var errs []error
	for _, d := range slices.Concat(m.Blobs, m.Manifests) {
		if !digest.Valid(d.Digest) || d.Size < 0 {
			errs = append(errs, fmt.Errorf("manifest %s: names %s with %d bytes, want sha256:<64 hexadecimal digits>", m.Digest, termtext.Mark(d.Digest, 100), d.Size))
		}
	}
	if m.Subject != "" && !digest.Valid(m.Subject) {
		errs = append(errs, fmt.Errorf("manifest %s: its subject is %s, want sha256:<64 hexadecimal digits>", m.Digest, termtext.Mark(m.Subject, 100)))
	}
	return errors.Join(errs...)
}
