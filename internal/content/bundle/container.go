package bundle

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"coldrack.dev/internal/base/digest"
)

// isImageManifest says whether a manifest of this type can be a container image: OCI's, or Docker's, which
// images built elsewhere still have and which cannot be rewritten without changing their digest.
func isImageManifest(t types.MediaType) bool {
	return t == types.OCIManifestSchema1 || t == types.DockerManifestSchema2
}

// CheckReference allows what can name a container image: registry, repository and tag, registry.k8s.io/pause:3.10.2.
func CheckReference(s string) error {
	if len(s) > maxNameLength {
		return fmt.Errorf("name %.40q has %d characters, want at most %d", s, len(s), maxNameLength)
	}
	tag, err := name.NewTag(s, name.StrictValidation)
	// The parser lets dots pass where only words belong, and gives docker.io a name that is in no manifest.
	if err != nil || strings.Replace(tag.Name(), name.DefaultRegistry+"/", "docker.io/", 1) != s || strings.Contains(s, "..") {
		return fmt.Errorf("name %q: want registry, repository and tag of a container image, such as registry.k8s.io/pause:3.10.2", s)
	}
	return nil
}

// container reads the tree of a container image.
func (r *treeReader) container(d v1.Descriptor) (Artifact, error) {
	a := Artifact{Kind: KindContainer, Name: d.Annotations[annotationName], Files: map[string]Descriptor{}}
	if err := CheckReference(a.Name); err != nil {
		return a, fmt.Errorf("annotation %s: %w", annotationName, err)
	}
	words := fmt.Sprintf("%s %q", a.Kind, a.Name)
	if !isImageManifest(d.MediaType) {
		return a, fmt.Errorf("%s: media type is %q, want %q", words, d.MediaType, types.OCIManifestSchema1)
	}
	ref, raw, err := r.small(words, "manifest", d, maxManifestSize)
	if err != nil {
		return a, err
	}
	a.Digest, a.Manifest = ref.Digest, ref.Descriptor
	a.Manifest.MediaType = string(d.MediaType)
	var m v1.Manifest
	if err := decodeJSON(raw, &m); err != nil {
		return a, fmt.Errorf("%s: manifest: %w", words, err)
	}
	if m.MediaType != d.MediaType && m.MediaType != "" {
		return a, fmt.Errorf("%s: its manifest says media type %q, the index %q", words, m.MediaType, d.MediaType)
	}
	if m.ArtifactType != "" || m.Subject != nil || len(m.Layers) == 0 || len(m.Layers) > maxFiles {
		return a, fmt.Errorf("%s: manifest: has an artifact type, a subject, no layers or more than %d", words, maxFiles)
	}
	if _, a.Config, err = r.small(words, "config", m.Config, maxConfigSize); err != nil {
		return a, err
	}
	var config v1.ConfigFile
	if err := decodeJSON(a.Config, &config); err != nil {
		return a, fmt.Errorf("%s: config: %w", words, err)
	}
	if config.OS == "" || config.Architecture == "" || len(config.RootFS.DiffIDs) != len(m.Layers) {
		return a, fmt.Errorf("%s: config: is for %q on %q with %d layers, but the manifest has %d; want os, architecture and each layer",
			words, config.OS, config.Architecture, len(config.RootFS.DiffIDs), len(m.Layers))
	}
	for i, l := range m.Layers {
		title := fmt.Sprintf("layer-%d", i)
		ref, err := r.add(words, title, l)
		if err != nil {
			return a, err
		}
		ref.Descriptor.MediaType = string(l.MediaType)
		a.Files[title] = ref.Descriptor
	}
	return a, nil
}

func (p *packer) container(a ArtifactSpec) (v1.Descriptor, error) {
	if a.Image == nil {
		return v1.Descriptor{}, errors.New("has no image")
	}
	raw, err1 := a.Image.RawManifest()
	config, err2 := a.Image.RawConfigFile()
	layers, err3 := a.Image.Layers()
	mediaType, err4 := a.Image.MediaType()
	file, err5 := a.Image.ConfigFile()
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return v1.Descriptor{}, err
	}
	p.content[digest.Of(config).String()] = source{bytes: config}
	for _, l := range layers {
		h, err := l.Digest()
		if err != nil {
			return v1.Descriptor{}, err
		}
		p.content[h.String()] = source{layer: l}
	}
	h, err := v1.NewHash(digest.Of(raw).String())
	if err != nil {
		return v1.Descriptor{}, err
	}
	p.content[h.String()] = source{bytes: raw}
	return v1.Descriptor{
		MediaType: mediaType, Digest: h, Size: int64(len(raw)),
		Platform:    &v1.Platform{OS: file.OS, Architecture: file.Architecture, Variant: file.Variant},
		Annotations: map[string]string{annotationName: a.Name},
	}, nil
}

// checkPrograms looks at what a ProgramsConfig says. An agent writes to these paths as root.
func checkPrograms(a Artifact) error {
	var c ProgramsConfig
	if err := json.Unmarshal(a.Config, &c); err != nil {
		return err
	}
	if len(c.Programs) == 0 {
		return errors.New("programs is empty")
	}
	names, paths := map[string]bool{}, map[string]bool{}
	for i, p := range c.Programs {
		field := fmt.Sprintf("programs[%d]", i)
		if err := validName(p.Name); err != nil {
			return fmt.Errorf("%s.name: %w", field, err)
		}
		if names[p.Name] || paths[p.Path] {
			return fmt.Errorf("%s: a second %s or a second program at %s", field, p.Name, p.Path)
		}
		names[p.Name], paths[p.Path] = true, true
		if !path.IsAbs(p.Path) || path.Clean(p.Path) != p.Path || p.Path == "/" {
			return fmt.Errorf("%s.path: is %q, want an absolute path", field, p.Path)
		}
		if _, err := digest.Parse(p.Digest); err != nil {
			return fmt.Errorf("%s.digest: %w", field, err)
		}
		if p.Size <= 0 {
			return fmt.Errorf("%s.size: is %d bytes", field, p.Size)
		}
		if _, ok := a.Files[p.File]; !ok {
			return fmt.Errorf("%s.file: is %q, which the artifact does not have", field, p.File)
		}
	}
	return nil
}

// verifyPrograms reads every program as a node does: what is behind the compression must be what the config says.
func (a *archive) verifyPrograms(ctx context.Context, art Artifact) error {
	c, ok := art.programs()
	if !ok {
		return errors.New("config is not readable")
	}
	for _, p := range c.Programs {
		stored, err := a.blob(art.Files[p.File])
		if err != nil {
			return err
		}
		if err := p.check(contextReader{ctx, stored}); err != nil {
			return fmt.Errorf("program %s: %w", p.Name, err)
		}
	}
	return nil
}

// check reads the compressed form of a program.
func (p ProgramFile) check(stored io.Reader) error {
	r, err := zstd.NewReader(stored, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		return err
	}
	defer r.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(r, p.Size+1))
	if err != nil {
		return err
	}
	if got := digest.Sum(sum).String(); n != p.Size || got != p.Digest {
		return fmt.Errorf("its file is %s of %d bytes or more, want %s of %d bytes", got, n, p.Digest, p.Size)
	}
	return nil
}

// StoredProgram is a program that a store has.
type StoredProgram struct {
	ProgramFile
	// Content is the blob to fetch: the file as one zstd stream.
	Content Descriptor
}

// Programs returns what a node of that version of Kubernetes runs outside containers, sorted by name, newest
// bundle first where several bring a program of one name; programs that go with any version are among them.
// The error is ErrNotFound when there is nothing for the version, and says which versions there are.
func (s *Store) Programs(kubernetes string) ([]StoredProgram, error) {
	var found []StoredProgram
	known := false
	for _, want := range []string{kubernetes, ""} { // those made for this version go before those for any
		for _, a := range s.Artifacts() {
			c, ok := a.programs()
			if !ok || c.Kubernetes != want {
				continue
			}
			known = known || c.Kubernetes == kubernetes
			for _, p := range c.Programs {
				if !slices.ContainsFunc(found, func(q StoredProgram) bool { return q.Name == p.Name || q.Path == p.Path }) {
					found = append(found, StoredProgram{ProgramFile: p, Content: a.Files[p.File]})
				}
			}
		}
	}
	if !known {
		return nil, fmt.Errorf("programs for Kubernetes %s: %w in the content store, which has them for %q; import a bundle that holds them",
			kubernetes, ErrNotFound, s.KubernetesVersions())
	}
	slices.SortFunc(found, func(a, b StoredProgram) int { return cmp.Compare(a.Name, b.Name) })
	return found, nil
}

func (a *Artifact) programs() (ProgramsConfig, bool) {
	var c ProgramsConfig
	return c, a.Kind == KindPrograms && json.Unmarshal(a.Config, &c) == nil
}

// KubernetesVersions lists the versions that programs are there for, oldest first.
func (s *Store) KubernetesVersions() []string {
	var versions []string
	for _, a := range s.Artifacts() {
		if c, ok := a.programs(); ok && c.Kubernetes != "" && !slices.Contains(versions, c.Kubernetes) {
			versions = append(versions, c.Kubernetes)
		}
	}
	slices.SortFunc(versions, compareVersions)
	return versions
}

// compareVersions orders by the numbers in versions, so that v1.9.0 is before v1.10.0.
func compareVersions(a, b string) int {
	number := func(s string) int {
		n := 0
		for _, r := range s {
			if r < '0' || r > '9' {
				break
			}
			n = n*10 + int(r-'0')
		}
		return n
	}
	x, y := strings.Split(strings.TrimPrefix(a, "v"), "."), strings.Split(strings.TrimPrefix(b, "v"), ".")
	for i := range min(len(x), len(y)) {
		if c := cmp.Compare(number(x[i]), number(y[i])); c != 0 {
			return c
		}
	}
	return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(a, b))
}

// Container returns the manifest of a container image by its full name with tag, that of the newest bundle
// that has it. Its bytes, its config's and its layers' are blobs of the store.
func (s *Store) Container(reference string) (Descriptor, bool) {
	for _, a := range s.Artifacts() {
		if a.Kind == KindContainer && a.Name == reference {
			return a.Manifest, true
		}
	}
	return Descriptor{}, false
}

// Containers lists the full names with tag of all container images, sorted.
func (s *Store) Containers() []string {
	var names []string
	for _, a := range s.Artifacts() {
		if a.Kind == KindContainer {
			names = append(names, a.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
