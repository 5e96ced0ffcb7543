package daemon

import (
	"log/slog"
	"net/http"
	"os"
	"strings"

	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/registry"
)

// imageContent is the container images of the imported bundles; it implements registry.Content.
type imageContent struct{ store *bundle.Store }

// Images lists those of the bundle built last first, as Artifacts does.
func (c imageContent) Images() []registry.Image {
	var images []registry.Image
	for _, artifact := range c.store.Artifacts() {
		if artifact.Kind == bundle.KindContainer {
			images = append(images, registry.Image{Name: artifact.Name, Digest: artifact.Digest})
		}
	}
	return images
}

// digestOf an image by its name with tag; "" for one that no bundle has.
func (c imageContent) digestOf(name string) string {
	for _, image := range c.Images() {
		if image.Name == name {
			return image.Digest
		}
	}
	return ""
}

func (c imageContent) Open(digest string) (*os.File, int64, error) { return c.store.Open(digest) }

func newRegistry(cfg Config, store *bundle.Store, log *slog.Logger) (*registry.Registry, error) {
	return registry.New(registry.Options{
		Content: imageContent{store}, Log: log.With("part", "registry"),
		Upstreams: cfg.RegistryUpstreams, CacheDir: cfg.path("registry-cache"), CacheBytes: int64(cfg.RegistryCacheGiB) << 30,
	})
}

// withRegistry serves container images beside the machine API. They are no secret, and containerd has no
// certificate of its own to show, so they need none.
func withRegistry(images, machines http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2" || strings.HasPrefix(r.URL.Path, "/v2/") {
			images.ServeHTTP(w, r)
			return
		}
		machines.ServeHTTP(w, r)
	})
}
