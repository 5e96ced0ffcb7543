package daemon

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/netboot/tftp"
)

// content answers from the store of imported bundles what the boot services, the machine API and the
// controllers each ask of it.
type content struct {
	store *bundle.Store
	// facts are those of images that were asked for, by the digest of the artifact.
	facts *sync.Map
}

func newContent(store *bundle.Store) content { return content{store, &sync.Map{}} }

// newest returns the artifact of a kind that was built last.
func (c content) newest(kind bundle.Kind) (bundle.Artifact, bool) {
	for _, artifact := range c.store.Artifacts() {
		if artifact.Kind == kind {
			return artifact, true
		}
	}
	return bundle.Artifact{}, false
}

// netboot returns the kernel and initramfs of discovery, and their kernel's version.
func (c content) netboot() (kernel, initrd bundle.Descriptor, ok bool) {
	artifact, ok := c.newest(bundle.KindNetboot)
	if !ok {
		return kernel, initrd, false
	}
	return artifact.Files[bundle.FileKernel], artifact.Files[bundle.FileInitrd], true
}

// firstStages are the files that firmware and iPXE may load by name.
var firstStages = []string{bundle.FileUndionly, bundle.FileSNPOnly, bundle.FileIPXE, bundle.FileLocal, bundle.FileLocalPC}

// hasFirstStages says whether there is anything for firmware to load.
func (c content) hasFirstStages() bool {
	_, ok := c.newest(bundle.KindBootloaders)
	return ok
}

// Open returns a first stage by its name, for TFTP.
func (c content) Open(_ context.Context, name string, _ netip.AddrPort) (tftp.File, error) {
	return c.openFirstStage(name)
}

func (c content) openFirstStage(name string) (*os.File, error) {
	if !slices.Contains(firstStages, name) {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	artifact, ok := c.newest(bundle.KindBootloaders)
	if !ok {
		return nil, fmt.Errorf("%s: no bundle with boot loaders has been imported: %w", name, fs.ErrNotExist)
	}
	loader, ok := artifact.Files[name]
	if !ok {
		return nil, fmt.Errorf("%s: bundle %s is of an older version and has none; build and import a new one: %w", name, artifact.Bundle.Name, fs.ErrNotExist)
	}
	file, _, err := c.store.Open(loader.Digest)
	return file, err
}

// ImageFiles implements machineapi.Content. The boot loaders are those of the image's own bundle, since
// they were built together, and the newest ones where that bundle has none.
func (c content) ImageFiles(image *v1alpha1.Image) (index wire.Content, boot wire.BootFiles, err error) {
	var loaders bundle.Artifact
	for _, artifact := range c.store.Artifacts() {
		if artifact.Kind == bundle.KindImage && artifact.Files[bundle.FileImageIndex].Digest == image.Spec.Index {
			index = contentOf(artifact.Files[bundle.FileImageIndex])
			loaders = c.loadersOf(artifact.Bundle.Digest)
		}
	}
	if index.Digest == "" {
		return index, boot, fmt.Errorf("image %s (index %s) is not in any imported bundle; import the bundle that holds it: coldrack bundle import FILE", image.Name, image.Spec.Index)
	}
	if loaders.Digest == "" {
		var ok bool
		if loaders, ok = c.newest(bundle.KindBootloaders); !ok {
			return index, boot, errors.New("no imported bundle holds boot loaders; import a complete bundle: coldrack bundle import FILE")
		}
	}
	return index, wire.BootFiles{
		BIOSBoot: contentOf(loaders.Files[bundle.FileBootImg]),
		BIOSCore: contentOf(loaders.Files[bundle.FileCoreImg]),
		Shim:     contentOf(loaders.Files[bundle.FileShim]),
		GRUB:     contentOf(loaders.Files[bundle.FileGRUB]),
	}, nil
}

// ImageFacts implements machineapi.Content. A thousand machines may ask at once, so what was read is kept.
func (c content) ImageFacts(image *v1alpha1.Image) *nodeconfig.ImageFacts {
	for _, artifact := range c.store.Artifacts() {
		if artifact.Kind != bundle.KindImage || artifact.Files[bundle.FileImageIndex].Digest != image.Spec.Index {
			continue
		}
		if known, ok := c.facts.Load(artifact.Digest); ok {
			return known.(*nodeconfig.ImageFacts)
		}
		var config bundle.ImageConfig
		if err := json.Unmarshal(artifact.Config, &config); err != nil {
			continue // the store has read it before
		}
		c.facts.Store(artifact.Digest, config.Facts)
		return config.Facts
	}
	return nil
}

func contentOf(d bundle.Descriptor) wire.Content { return wire.Content{Digest: d.Digest, Size: d.Size} }

func (c content) loadersOf(bundleDigest string) bundle.Artifact {
	for _, artifact := range c.store.Artifacts() {
		if artifact.Kind == bundle.KindBootloaders && artifact.Bundle.Digest == bundleDigest {
			return artifact
		}
	}
	return bundle.Artifact{}
}

// trustedKeys reads the keys whose signatures on bundles are accepted: those that the configuration names
// and every *.pub in the data folder's trusted-keys.
func trustedKeys(cfg Config) ([]ed25519.PublicKey, error) {
	found, err := filepath.Glob(cfg.path("trusted-keys", "*.pub"))
	if err != nil {
		return nil, err
	}
	return bundle.LoadPublicKeys(slices.Concat(cfg.TrustedKeys, found)...)
}
