package daemon

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/swarm/kit"
	"coldrack.dev/internal/contract/wire"
)

// kits makes what nodes exchange of what the bundles hold; it implements machineapi.Kits.
type kits struct {
	store    *bundle.Store
	clusters interface {
		// Kit is what the nodes of a machine's cluster have in common.
		Kit(machine string) (programs []wire.Program, images []string, ok bool, err error)
	}

	mu   sync.Mutex
	made []madeKit // newest first
}

type madeKit struct {
	parts []kit.Part
	kit   kit.Kit
}

// keptKits are those of the versions that clusters have at a time.
const keptKits = 8

// Kit of a machine's cluster. To make one, all of it is read; everybody waits for the first who asks.
func (k *kits) Kit(ctx context.Context, machine string) (kit.Kit, bool, error) {
	programs, images, ok, err := k.clusters.Kit(machine)
	if err != nil || !ok {
		return kit.Kit{}, false, err
	}
	var parts []kit.Part
	for _, p := range programs {
		parts = append(parts, kit.Part{Digest: p.Content.Digest, Size: p.Content.Size})
	}
	artifacts := k.store.Artifacts()
	for _, name := range images {
		i := slices.IndexFunc(artifacts, func(a bundle.Artifact) bool { return a.Kind == bundle.KindContainer && a.Name == name })
		if i < 0 {
			continue // no bundle has it, so the nodes fetch it from elsewhere
		}
		own, err := k.image(artifacts[i].Digest)
		if err != nil {
			return kit.Kit{}, false, fmt.Errorf("image %s: %w", name, err)
		}
		parts = append(parts, own...)
	}
	if len(parts) == 0 {
		return kit.Kit{}, false, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.made {
		if slices.Equal(m.parts, parts) {
			return m.kit, true, nil
		}
	}
	// Not with the request's context: whoever is next would begin again.
	made, err := kit.Make(context.WithoutCancel(ctx), parts, func(digest string) (io.ReadCloser, error) {
		f, _, err := k.store.Open(digest)
		return f, err
	})
	if err != nil {
		return kit.Kit{}, false, err
	}
	k.made = slices.Insert(k.made, 0, madeKit{parts, made})
	k.made = k.made[:min(len(k.made), keptKits)]
	return made, true, nil
}

// image is the manifest of an image and what it refers to.
func (k *kits) image(digest string) ([]kit.Part, error) {
	f, size, err := k.store.Open(digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := v1.ParseManifest(f)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", digest, err)
	}
	parts := []kit.Part{{Digest: digest, Size: size, MediaType: cmp.Or(string(m.MediaType), string(types.OCIManifestSchema1))}}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		parts = append(parts, kit.Part{Digest: d.Digest.String(), Size: d.Size, MediaType: string(d.MediaType)})
	}
	return parts, nil
}
