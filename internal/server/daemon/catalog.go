package daemon

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/supply"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/diskimage"
)

// catalog shows the imported bundles as objects; it implements controllers.Catalog.
type catalog struct {
	store *bundle.Store
	// loaded says whether an image of that name is here beside bundles.
	loaded func(name string) bool
	log    *slog.Logger

	mu     sync.Mutex
	change chan struct{}
}

func newCatalog(store *bundle.Store, loaded func(string) bool, log *slog.Logger) *catalog {
	return &catalog{store: store, loaded: loaded, log: log, change: make(chan struct{})}
}

func (c *catalog) changed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.change)
	c.change = make(chan struct{})
}

// Changed is closed after the next import.
func (c *catalog) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.change
}

// Images returns the newest image of each name. The store lists the newest first.
func (c *catalog) Images() []v1alpha1.Image {
	newest := map[string]bundle.Artifact{}
	for _, artifact := range c.store.Artifacts() {
		if _, ok := newest[artifact.Name]; artifact.Kind == bundle.KindImage && !ok {
			newest[artifact.Name] = artifact
		}
	}
	var images []v1alpha1.Image
	for name, artifact := range newest {
		image, err := c.image(name, artifact)
		if err != nil {
			c.log.Error("image of a bundle is unusable", "image", name, "bundle", artifact.Bundle.Name, "err", err)
			continue
		}
		images = append(images, image)
	}
	slices.SortFunc(images, func(a, b v1alpha1.Image) int { return strings.Compare(a.Name, b.Name) })
	return images
}

func (c *catalog) image(name string, artifact bundle.Artifact) (v1alpha1.Image, error) {
	var config bundle.ImageConfig
	if err := json.Unmarshal(artifact.Config, &config); err != nil {
		return v1alpha1.Image{}, fmt.Errorf("config: %w", err)
	}
	descriptor := artifact.Files[bundle.FileImageIndex]
	file, _, err := c.store.Open(descriptor.Digest)
	if err != nil {
		return v1alpha1.Image{}, err
	}
	defer file.Close()
	var index diskimage.Index
	if err := json.NewDecoder(file).Decode(&index); err != nil {
		return v1alpha1.Image{}, fmt.Errorf("chunk index: %w", err)
	}
	return v1alpha1.Image{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.ImageSpec{
			Family: v1alpha1.ImageFamily(config.Family), Arch: config.Arch, Version: config.Version,
			KernelVersion: config.KernelVersion, Size: *resource.NewQuantity(index.Size, resource.BinarySI),
			Index: descriptor.Digest, Digest: index.Digest, KernelArgs: config.KernelArgs, Bundle: artifact.Bundle.Name,
		},
	}, nil
}

// Bundles returns the newest bundle of each name.
func (c *catalog) Bundles() []v1alpha1.Bundle {
	byDigest := map[string]*v1alpha1.Bundle{}
	newest := map[string]bundle.Info{}
	for _, info := range c.store.Bundles() {
		if _, ok := newest[info.Name]; !ok {
			newest[info.Name] = info
		}
	}
	for name, info := range newest {
		byDigest[info.Digest] = &v1alpha1.Bundle{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       v1alpha1.BundleSpec{Digest: info.Digest, KeyID: info.KeyID},
		}
		if !info.Created.IsZero() {
			byDigest[info.Digest].Spec.Version = info.Created.UTC().Format("20060102T150405Z")
		}
	}
	for _, artifact := range c.store.Artifacts() {
		b := byDigest[artifact.Bundle.Digest]
		if b == nil {
			continue
		}
		var size int64
		for _, file := range artifact.Files {
			size += file.Size
		}
		b.Spec.Size.Add(*resource.NewQuantity(size, resource.BinarySI))
		b.Spec.Contents = append(b.Spec.Contents, v1alpha1.BundleContent{
			Kind: string(artifact.Kind), Name: artifact.Name, Digest: artifact.Digest,
			Size: *resource.NewQuantity(size, resource.BinarySI),
		})
	}
	var bundles []v1alpha1.Bundle
	for _, b := range byDigest {
		bundles = append(bundles, *b)
	}
	slices.SortFunc(bundles, func(a, b v1alpha1.Bundle) int { return strings.Compare(a.Name, b.Name) })
	return bundles
}

// KubernetesVersions that nodes can be given.
func (c *catalog) KubernetesVersions() []string { return c.store.KubernetesVersions() }

// MissingImages are those that no bundle has, that were not loaded, and that no registry of the cluster may have.
func (c *catalog) MissingImages(cluster *v1alpha1.Cluster, images []string) []string {
	return supply.MissingImages(c.store.Artifacts(), c.loaded, cluster, images)
}

// Missing says what of an image is not in the store.
func (c *catalog) Missing(image *v1alpha1.Image) string {
	if _, _, err := newContent(c.store).ImageFiles(image); err != nil {
		return err.Error()
	}
	return ""
}
