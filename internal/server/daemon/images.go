package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/imagestore"
	"coldrack.dev/internal/content/registry"
	"coldrack.dev/internal/server/audit"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
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

// imageKeeper is all container images that this server gives to nodes; it implements peopleapi.Images.
type imageKeeper struct {
	bundles  *bundle.Store
	local    *imagestore.Store
	registry *registry.Registry
}

func (s *server) newImages(reserve *diskReserve) (*imageKeeper, error) {
	local, err := imagestore.Open(imagestore.Options{
		Dir: s.cfg.path("images"), Limit: int64(s.cfg.RegistryImagesGiB) << 30, Room: reserve.checkRoom,
	})
	if err != nil {
		return nil, err
	}
	for _, problem := range local.Problems() {
		s.log.Error("store of loaded images has a problem", "err", problem)
	}
	options := registry.Options{
		Content: imageContent{s.content.store}, Local: local, Log: s.log.With("part", "registry"), Pinned: local.Pinned, Changed: s.importer.tell,
	}
	if !s.cfg.NoBoot {
		options.Credentials = s.cfg.RegistryCredentials
		options.Upstreams, options.CacheDir, options.CacheBytes = s.cfg.RegistryUpstreams, s.cfg.path("registry-cache"), int64(s.cfg.RegistryCacheGiB)<<30
	}
	images, err := registry.New(options)
	return &imageKeeper{bundles: s.content.store, local: local, registry: images}, err
}

// List implements peopleapi.Images.
func (k *imageKeeper) List() peoplewire.ImageList {
	list := peoplewire.ImageList{Images: []peoplewire.Image{}}
	list.LoadedBytes, list.LoadedLimit = k.local.Size()
	pinned := k.local.Pinned()
	for _, a := range k.bundles.Artifacts() {
		if a.Kind != bundle.KindContainer {
			continue
		}
		size := a.Manifest.Size + int64(len(a.Config))
		for _, layer := range a.Files {
			size += layer.Size
		}
		i := peoplewire.Image{
			Name: a.Name, Digest: a.Digest, Size: size, Source: peoplewire.SourceBundle, Bundle: a.Bundle.Name, Added: a.Bundle.Imported,
			Pinned: slices.Contains(pinned, a.Name),
		}
		var platform imagestore.Platform
		if json.Unmarshal(a.Config, &platform) == nil && platform.OS != "" {
			i.Platforms = []string{platform.String()}
		}
		list.Images = append(list.Images, i)
	}
	for _, image := range k.local.Images() {
		list.Images = append(list.Images, loadedImage(image))
	}
	cached, used, limit := k.registry.Cached()
	list.CacheBytes, list.CacheLimit = used, limit
	for _, image := range cached {
		list.Images = append(list.Images, cachedImage(image, pinned))
	}
	slices.SortStableFunc(list.Images, func(a, b peoplewire.Image) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func loadedImage(i imagestore.Image) peoplewire.Image {
	return peoplewire.Image{
		Name: i.Name, Digest: i.Digest, Size: i.Size, Platforms: i.Platforms, Source: peoplewire.SourceLoaded,
		Pinned: i.Pinned, Added: i.Added, By: i.By, LastUsed: i.LastUsed.UTC(),
	}
}

func cachedImage(i registry.Cached, pinned []string) peoplewire.Image {
	return peoplewire.Image{
		Name: i.Name, Digest: i.Digest, Size: i.Size, Source: peoplewire.SourceCache,
		Pinned: slices.Contains(pinned, i.Name), Added: i.Asked.UTC(), LastUsed: i.LastUsed.UTC(),
	}
}

// Pin implements peopleapi.Images.
func (k *imageKeeper) Pin(name string, pinned bool) error { return k.local.Pin(name, pinned) }

// Prune implements peopleapi.Images.
func (k *imageKeeper) Prune(keep func(peoplewire.Image) string, dry bool) ([]peoplewire.PrunedImage, int64, error) {
	all := []peoplewire.PrunedImage{}
	loaded, freed, err := k.local.Prune(func(i imagestore.Image) string { return keep(loadedImage(i)) }, dry)
	for _, p := range loaded {
		all = append(all, peoplewire.PrunedImage{Image: loadedImage(p.Image), Kept: p.Kept})
	}
	if err != nil {
		return all, freed, err
	}
	pinned := k.local.Pinned()
	cached, more, err := k.registry.PruneCache(func(c registry.Cached) string {
		i := cachedImage(c, pinned)
		if i.Pinned {
			return "pinned"
		}
		return keep(i)
	}, dry)
	for _, p := range cached {
		all = append(all, peoplewire.PrunedImage{Image: cachedImage(p.Cached, pinned), Kept: p.Kept})
	}
	return all, freed + more, err
}

// Protocol implements peopleapi.Images.
func (k *imageKeeper) Protocol(who func(*http.Request) (string, error)) http.Handler {
	return k.registry.Writable(registry.Access{By: who})
}

// onMachinePort is the protocol beside the machine API: to be read, and to be written where the configuration says so.
func (s *server) onMachinePort() http.Handler {
	if !s.cfg.RegistryPush {
		return s.images.registry
	}
	tokens := controlplane.OpenTokens(controlplane.TokensPath(s.cfg.DataDir))
	return s.images.registry.Writable(registry.Access{Challenge: true, Record: s.recordPush, By: func(r *http.Request) (string, error) {
		_, secret, ok := r.BasicAuth()
		if !ok || secret == "" {
			return "", errors.New("to push images here, log in with a token of coldrack token create as password; any name goes")
		}
		person, err := tokens.Holder(r.Context(), secret)
		if err != nil {
			return "", err
		}
		if person.Role != controlplane.GroupAdmin && person.Role != controlplane.GroupOperator {
			return "", fmt.Errorf("pushing images needs role operator, and token %s is not of it", person.Name)
		}
		return person.Name, nil
	}})
}

// recordPush keeps the audit record of a change on the machines' port.
func (s *server) recordPush(who, verb, image string) error {
	if s.audit == nil {
		return nil
	}
	if verb == "put" {
		verb = "create"
	}
	err := s.audit.Keep(audit.Issued{What: "containerimages", Name: image, Verb: verb, By: who}.Event(time.Now()))
	if err != nil && s.cfg.AuditFailure == AuditContinue {
		s.log.Error("a pushed image has no audit record", "image", image, "by", who, "err", err)
		return nil
	}
	return err
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
