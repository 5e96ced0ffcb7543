// Package bundle packs, verifies, imports and serves the content a site needs without the internet.
//
// A bundle is one plain tar archive that holds an OCI image layout: an index, the manifests it lists,
// and blobs named by their digest. Each manifest is one artifact (an operating-system image, the
// discovery netboot, boot loaders, programs for nodes, a software bill of materials): a small JSON
// config and files whose names are in the annotation org.opencontainers.image.title. Container images
// are artifacts, too, in their own usual form. Beside the index lies its Ed25519
// signature; as everything else is reached through digests, the signature covers the whole archive.
//
// A Store is a directory in the same layout. What is imported becomes visible all at once, after
// everything has been verified; blobs that were verified before are not copied again.
package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/contract/nodeconfig"
)

// Kind says what an artifact is for.
type Kind string

// The kinds of artifacts.
const (
	KindImage       Kind = "image"       // an operating system; config ImageConfig
	KindNetboot     Kind = "netboot"     // the discovery and installation system; config NetbootConfig
	KindBootloaders Kind = "bootloaders" // network boot loaders, and those written to disks; config BootloadersConfig
	KindSBOM        Kind = "sbom"        // software bill of materials, SPDX JSON; config SBOMConfig
	KindPrograms    Kind = "programs"    // programs that nodes run outside containers; config ProgramsConfig
	KindContainer   Kind = "container"   // an OCI image, named by its full reference with tag; config as OCI defines it
)

// Titles of the files of each kind.
const (
	FileImageIndex  = "index.json" // image: a diskimage.Index
	FileImageChunks = "chunks"     // image: the blob of that index

	FileKernel = "vmlinuz"    // netboot
	FileInitrd = "initrd.img" // netboot

	FileUndionly = "undionly.kpxe" // bootloaders: iPXE for BIOS, by TFTP
	FileIPXE     = "ipxe.efi"      // bootloaders: iPXE for UEFI x64 with its own drivers
	FileSNPOnly  = "snponly.efi"   // bootloaders: iPXE for UEFI x64 on the firmware's driver
	FileLocal    = "local.efi"     // bootloaders: GRUB that starts an installed disk on UEFI, see internal/content/diskboot
	FileLocalPC  = "local.lkrn"    // bootloaders: the same for BIOS
	FileBootImg  = "boot.img"      // bootloaders: GRUB's first sector, see internal/content/diskboot
	FileCoreImg  = "core.img"      // bootloaders: GRUB for the BIOS boot partition, see internal/content/diskboot
	FileShim     = "shimx64.efi"   // bootloaders: signed shim, EFI/BOOT/BOOTX64.EFI on the disk
	FileGRUB     = "grubx64.efi"   // bootloaders: signed GRUB; reads /EFI/debian/grub.cfg on the same file system

	FileSBOM = "sbom.spdx.json" // sbom
)

// requiredFiles says which files an artifact of each kind must have; it may have more.
func requiredFiles(k Kind) ([]string, bool) {
	switch k {
	case KindImage:
		return []string{FileImageIndex, FileImageChunks}, true
	case KindNetboot:
		return []string{FileKernel, FileInitrd}, true
	case KindBootloaders:
		return []string{FileUndionly, FileIPXE, FileSNPOnly, FileLocal, FileLocalPC, FileBootImg, FileCoreImg, FileShim, FileGRUB}, true
	case KindSBOM:
		return []string{FileSBOM}, true
	case KindPrograms:
		return nil, true // those that its config names
	default:
		return nil, false
	}
}

// ImageConfig describes an artifact of KindImage.
type ImageConfig struct {
	Name          string   `json:"name"`          // for example "debian-12"
	Family        string   `json:"family"`        // "debian"; "cloud-init", "flatcar" and "fcos" of whole disks
	Version       string   `json:"version"`       // of the operating system, for example "12.11"
	Arch          string   `json:"arch"`          // "amd64"
	KernelVersion string   `json:"kernelVersion"` // as in uname -r
	RootFS        string   `json:"rootFS"`        // "ext4"; empty with Disk
	Size          int64    `json:"size"`          // raw bytes; the root partition, or the disk, must be at least as large
	KernelArgs    []string `json:"kernelArgs"`    // that this image wants on its kernel command line
	// Facts are what the settings of a machine can depend on; nil in bundles of older builders.
	Facts *nodeconfig.ImageFacts `json:"facts,omitempty"`
	// Disk is set for the image of a whole disk, with its own partitions and boot loader. Its kernel is not known.
	Disk *DiskConfig `json:"disk,omitempty"`
}

// DiskConfig is what the partition table of a whole-disk image says.
type DiskConfig struct {
	SectorSize int64    `json:"sectorSize"` // bytes; the disk's must be the same
	Partitions []string `json:"partitions"` // names, in the order of the table; empty ones included
	BIOS       bool     `json:"bios"`       // has code in its first sector
	UEFI       bool     `json:"uefi"`       // has an EFI system partition
}

// NetbootConfig describes an artifact of KindNetboot.
type NetbootConfig struct {
	Name          string `json:"name"`
	Arch          string `json:"arch"`
	KernelVersion string `json:"kernelVersion"`
	AgentVersion  string `json:"agentVersion"`
}

// BootloadersConfig describes an artifact of KindBootloaders.
type BootloadersConfig struct {
	Name     string            `json:"name"`
	Arch     string            `json:"arch"`
	Packages map[string]string `json:"packages"` // Debian package to version
}

// SBOMConfig describes an artifact of KindSBOM.
type SBOMConfig struct {
	Name   string `json:"name"`
	Format string `json:"format"` // "SPDX-2.3"
}

// ProgramsConfig describes an artifact of KindPrograms.
type ProgramsConfig struct {
	Name string `json:"name"`
	// Kubernetes is the version that these programs make a node of, for example "v1.37.2"; empty where they
	// go with any.
	Kubernetes string        `json:"kubernetes,omitempty"`
	Programs   []ProgramFile `json:"programs"`
}

// ProgramFile is an executable file of a node.
type ProgramFile struct {
	Name    string `json:"name"`              // for example "kubelet" or "cni-bridge"
	Path    string `json:"path"`              // on the node, absolute
	Version string `json:"version,omitempty"` // as the program says it, for example "v1.37.2"
	Digest  string `json:"digest"`            // of the file itself
	Size    int64  `json:"size"`              // of the file itself, in bytes
	File    string `json:"file"`              // title of the layer: the file as one zstd stream
}

// Artifact is one thing a bundle holds.
type Artifact struct {
	Kind   Kind                  `json:"kind"`
	Name   string                `json:"name"`
	Digest string                `json:"digest"` // of the manifest: the artifact's identity
	Config json.RawMessage       `json:"config"` // of the type that Kind names
	Files  map[string]Descriptor `json:"files"`  // by title; layers of a container are layer-0, layer-1, ...
	Bundle Info                  `json:"bundle"` // where it came from
	// Manifest is the blob that Digest names.
	Manifest Descriptor `json:"-"`
}

// Descriptor names a blob.
type Descriptor struct {
	Digest string `json:"digest"` // "sha256:<hex>"
	Size   int64  `json:"size"`   // bytes
	// MediaType of what belongs to a container image; empty otherwise.
	MediaType string `json:"mediaType,omitempty"`
}

// Info identifies a bundle.
type Info struct {
	Name     string    `json:"name"`
	Digest   string    `json:"digest"` // of index.json
	Created  time.Time `json:"created,omitzero"`
	Imported time.Time `json:"imported,omitzero"` // zero unless it comes from a Store
	KeyID    string    `json:"keyID"`             // of the key that signed it
}

// BlobError says that the bytes of a blob are not what the bundle's index promises.
type BlobError struct {
	Artifact string // for example `image "debian-12"`
	File     string // title, "manifest" or "config"
	Want     string // digest
	Got      string // digest, or what is wrong instead
}

func (e *BlobError) Error() string {
	return fmt.Sprintf("%s, file %q: content is %s, want %s; the bundle was damaged or changed after it was signed", e.Artifact, e.File, e.Got, e.Want)
}

// ErrNotFound says that a store has no such blob, artifact or bundle.
var ErrNotFound = errors.New("not found")

const (
	annotationTitle   = "org.opencontainers.image.title"
	annotationName    = "org.opencontainers.image.ref.name"
	annotationCreated = "org.opencontainers.image.created"

	artifactTypePrefix = "application/vnd.coldrack."
	artifactTypeSuffix = ".v1+json"
	fileMediaType      = "application/octet-stream"

	ociLayout = `{"imageLayoutVersion":"1.0.0"}`
)

// Bounds on what is read into memory before or while it is verified.
const (
	maxIndexSize    = 4 << 20
	maxManifestSize = 1 << 20
	maxConfigSize   = 1 << 20
	maxArtifacts    = 4096
	maxFiles        = 4096 // of one artifact
	maxNameLength   = 200
)

func artifactType(k Kind) string { return artifactTypePrefix + string(k) + artifactTypeSuffix }

func configMediaType(k Kind) string {
	return artifactTypePrefix + string(k) + ".config" + artifactTypeSuffix
}

func parseArtifactType(s string) (Kind, error) {
	name, ok := strings.CutPrefix(s, artifactTypePrefix)
	if ok {
		name, ok = strings.CutSuffix(name, artifactTypeSuffix)
	}
	if _, known := requiredFiles(Kind(name)); !ok || !known {
		return "", fmt.Errorf("artifact type %q is unknown; this version of coldrack knows image, netboot, bootloaders, programs and sbom of v1", s)
	}
	return Kind(name), nil
}

// blobRef is one blob that a bundle refers to, with the words to speak of it.
type blobRef struct {
	artifact string
	file     string
	Descriptor
}

func (b blobRef) mismatch(got string) error {
	return &BlobError{Artifact: b.artifact, File: b.file, Want: b.Digest, Got: got}
}

// contents is a bundle whose index, manifests, configs and image indexes were read and verified.
type contents struct {
	info      Info
	index     []byte
	signature Signature
	artifacts []Artifact
	blobs     []blobRef // each digest once, small ones first
}

// size is the sum of all blobs.
func (c *contents) size() int64 {
	var n int64
	for _, b := range c.blobs {
		n += b.Size
	}
	return n
}

// readContents verifies index's whole tree except for the bytes of files, through fetch, which
// returns at most limit bytes of a blob. complete asks for every file that this version requires of
// each kind; what a store holds was complete for the version that imported it.
func readContents(index []byte, complete bool, fetch func(d Descriptor, limit int64) ([]byte, error)) (*contents, error) {
	var im v1.IndexManifest
	if err := decodeJSON(index, &im); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	if im.MediaType != types.OCIImageIndex {
		return nil, fmt.Errorf("index.json: media type is %q, want %q", im.MediaType, types.OCIImageIndex)
	}
	if len(im.Manifests) == 0 || len(im.Manifests) > maxArtifacts {
		return nil, fmt.Errorf("index.json: lists %d artifacts, want 1 to %d", len(im.Manifests), maxArtifacts)
	}
	c := &contents{index: index, info: Info{Name: im.Annotations[annotationName], Digest: digest.Of(index).String()}}
	if err := validName(c.info.Name); err != nil {
		return nil, fmt.Errorf("index.json: annotation %s: %w", annotationName, err)
	}
	if s := im.Annotations[annotationCreated]; s != "" {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return nil, fmt.Errorf("index.json: annotation %s: %w", annotationCreated, err)
		}
		c.info.Created = t.UTC()
	}
	r := treeReader{fetch: fetch, complete: complete, seen: map[string]int64{}}
	names := map[string]bool{}
	for i, d := range im.Manifests {
		a, err := r.artifact(d)
		if err != nil {
			return nil, fmt.Errorf("index.json: manifests[%d]: %w", i, err)
		}
		if key := string(a.Kind) + "/" + a.Name; names[key] {
			return nil, fmt.Errorf("index.json: manifests[%d]: a second %s of the name %q", i, a.Kind, a.Name)
		} else {
			names[key] = true
		}
		a.Bundle = c.info
		c.artifacts = append(c.artifacts, a)
	}
	c.blobs = r.blobs
	slices.SortStableFunc(c.blobs, func(a, b blobRef) int {
		switch {
		case a.Size < b.Size:
			return -1
		case a.Size > b.Size:
			return 1
		}
		return strings.Compare(a.Digest, b.Digest)
	})
	return c, nil
}

type treeReader struct {
	fetch    func(Descriptor, int64) ([]byte, error)
	complete bool
	seen     map[string]int64 // digest to size
	blobs    []blobRef
}

func (r *treeReader) artifact(d v1.Descriptor) (Artifact, error) {
	if d.ArtifactType == "" {
		return r.container(d)
	}
	kind, err := parseArtifactType(d.ArtifactType)
	if err != nil {
		return Artifact{}, err
	}
	a := Artifact{Kind: kind, Name: d.Annotations[annotationName], Files: map[string]Descriptor{}}
	if err := validName(a.Name); err != nil {
		return a, fmt.Errorf("annotation %s: %w", annotationName, err)
	}
	words := fmt.Sprintf("%s %q", a.Kind, a.Name)
	if d.MediaType != types.OCIManifestSchema1 {
		return a, fmt.Errorf("%s: media type is %q, want %q", words, d.MediaType, types.OCIManifestSchema1)
	}
	ref, raw, err := r.small(words, "manifest", d, maxManifestSize)
	if err != nil {
		return a, err
	}
	a.Digest, a.Manifest = ref.Digest, ref.Descriptor
	var m v1.Manifest
	if err := decodeJSON(raw, &m); err != nil {
		return a, fmt.Errorf("%s: manifest: %w", words, err)
	}
	if m.ArtifactType != d.ArtifactType {
		return a, fmt.Errorf("%s: its manifest says artifact type %q, the index %q", words, m.ArtifactType, d.ArtifactType)
	}
	if m.Subject != nil || len(m.Layers) > maxFiles {
		return a, fmt.Errorf("%s: manifest: has a subject, or more than %d layers", words, maxFiles)
	}
	if _, a.Config, err = r.small(words, "config", m.Config, maxConfigSize); err != nil {
		return a, err
	}
	if err := checkConfig(a); err != nil {
		return a, fmt.Errorf("%s: config: %w", words, err)
	}
	for i, l := range m.Layers {
		title := l.Annotations[annotationTitle]
		if err := validName(title); err != nil {
			return a, fmt.Errorf("%s: layers[%d]: annotation %s: %w", words, i, annotationTitle, err)
		}
		if _, twice := a.Files[title]; twice {
			return a, fmt.Errorf("%s: layers[%d]: a second file %q", words, i, title)
		}
		ref, err := r.add(words, title, l)
		if err != nil {
			return a, err
		}
		a.Files[title] = ref.Descriptor
	}
	required, _ := requiredFiles(kind)
	for _, title := range required {
		if _, ok := a.Files[title]; !ok && r.complete {
			return a, fmt.Errorf("%s: has no file %q", words, title)
		}
	}
	if kind == KindImage && r.complete {
		if err := r.imageIndex(words, a); err != nil {
			return a, err
		}
	}
	if kind == KindPrograms {
		if err := checkPrograms(a); err != nil {
			return a, fmt.Errorf("%s: config: %w", words, err)
		}
	}
	return a, nil
}

// imageIndex checks that an image's index is sound and speaks of the blob beside it.
func (r *treeReader) imageIndex(words string, a Artifact) error {
	d := a.Files[FileImageIndex]
	raw, err := r.fetch(d, maxIndexSize)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", words, FileImageIndex, err)
	}
	if got := digest.Of(raw).String(); got != d.Digest {
		return &BlobError{Artifact: words, File: FileImageIndex, Want: d.Digest, Got: got}
	}
	var idx diskimage.Index
	if err := decodeJSON(raw, &idx); err != nil {
		return fmt.Errorf("%s: %s: %w", words, FileImageIndex, err)
	}
	if err := idx.Validate(); err != nil {
		return fmt.Errorf("%s: %s: %w", words, FileImageIndex, err)
	}
	if chunks := a.Files[FileImageChunks]; idx.Blob != chunks.Digest || idx.BlobSize != chunks.Size {
		return fmt.Errorf("%s: %s describes blob %s of %d bytes, but %s is %s of %d bytes",
			words, FileImageIndex, idx.Blob, idx.BlobSize, FileImageChunks, chunks.Digest, chunks.Size)
	}
	var cfg ImageConfig
	if err := json.Unmarshal(a.Config, &cfg); err != nil || cfg.Size != idx.Size {
		return fmt.Errorf("%s: config: size is %d, but %s says %d", words, cfg.Size, FileImageIndex, idx.Size)
	}
	return nil
}

func (r *treeReader) small(artifact, file string, d v1.Descriptor, limit int64) (blobRef, []byte, error) {
	ref, err := r.add(artifact, file, d)
	if err != nil {
		return ref, nil, err
	}
	raw, err := r.fetch(ref.Descriptor, limit)
	if err != nil {
		return ref, nil, fmt.Errorf("%s: %s: %w", artifact, file, err)
	}
	if got := digest.Of(raw).String(); got != ref.Digest {
		return ref, nil, ref.mismatch(got)
	}
	return ref, raw, nil
}

func (r *treeReader) add(artifact, file string, d v1.Descriptor) (blobRef, error) {
	ref := blobRef{artifact: artifact, file: file, Descriptor: Descriptor{Digest: d.Digest.String(), Size: d.Size}}
	if _, err := digest.Parse(ref.Digest); err != nil {
		return ref, fmt.Errorf("%s: %s: %w", artifact, file, err)
	}
	if d.Size < 0 {
		return ref, fmt.Errorf("%s: %s: size is %d bytes", artifact, file, d.Size)
	}
	if len(d.URLs) > 0 || len(d.Data) > 0 {
		return ref, fmt.Errorf("%s: %s: its content lies elsewhere (urls, data); a bundle must hold everything itself", artifact, file)
	}
	size, seen := r.seen[ref.Digest]
	if seen && size != d.Size {
		return ref, fmt.Errorf("%s: %s: size is %d bytes here and %d elsewhere for the same digest", artifact, file, d.Size, size)
	}
	if !seen {
		r.seen[ref.Digest] = d.Size
		r.blobs = append(r.blobs, ref)
	}
	return ref, nil
}

// checkConfig looks at the fields without which an artifact is of no use. Unknown fields are left
// alone, so that a newer builder's bundle can be read.
func checkConfig(a Artifact) error {
	var c struct {
		ImageConfig
		AgentVersion string `json:"agentVersion"`
		Format       string `json:"format"`
	}
	if err := decodeJSON(a.Config, &c); err != nil {
		return err
	}
	if c.Name != a.Name {
		return fmt.Errorf("name is %q, but the index says %q", c.Name, a.Name)
	}
	missing := func(field, value string) error {
		if value == "" {
			return fmt.Errorf("%s is empty", field)
		}
		return nil
	}
	switch a.Kind {
	case KindImage:
		if c.Disk != nil {
			return errors.Join(missing("family", c.Family), missing("version", c.Version), missing("arch", c.Arch))
		}
		return errors.Join(missing("family", c.Family), missing("version", c.Version), missing("arch", c.Arch),
			missing("kernelVersion", c.KernelVersion), missing("rootFS", c.RootFS))
	case KindNetboot:
		return errors.Join(missing("arch", c.Arch), missing("kernelVersion", c.KernelVersion), missing("agentVersion", c.AgentVersion))
	case KindBootloaders:
		return missing("arch", c.Arch)
	case KindSBOM:
		return missing("format", c.Format)
	}
	return nil
}

// decodeJSON refuses trailing data, so that what is signed is exactly what is read.
func decodeJSON(b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("is not the JSON expected: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("has data after its JSON")
	}
	return nil
}

// validName allows what is safe in paths, URLs and terminals.
func validName(s string) error {
	if s == "" || len(s) > maxNameLength {
		return fmt.Errorf("name %.40q has %d characters, want 1 to %d", s, len(s), maxNameLength)
	}
	for i, r := range s {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("._+-", r)) {
			return fmt.Errorf("name %q: want letters, digits, and after the first also . _ + -", s)
		}
	}
	return nil
}
