package peopleapi

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/supply"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// Images are the container images that the server gives to nodes.
type Images interface {
	List() peoplewire.ImageList
	// Pin keeps an image of that name.
	Pin(name string, pinned bool) error
	// Prune removes the images of no bundle for which keep says no reason to stay; with dry none.
	Prune(keep func(peoplewire.Image) string, dry bool) ([]peoplewire.PrunedImage, int64, error)
	// Protocol is the OCI distribution protocol below /v2/, which takes images from people; who says who sends a request.
	Protocol(who func(*http.Request) (string, error)) http.Handler
}

// lookTimeout is how long clusters may take to say what they run.
const lookTimeout = time.Minute

// ImageHandlers answer below PathImages, by path. Who may only read does not come to what changes something.
func (a *ClusterAPI) ImageHandlers(images Images) map[string]http.Handler {
	list := a.answer(func(http.ResponseWriter, *http.Request, *Backend) (any, error) { return images.List(), nil }, http.MethodGet)
	protocol := http.StripPrefix(peoplewire.PathImages, images.Protocol(func(r *http.Request) (string, error) { return controlplane.PersonOf(r).Name, nil }))
	prune := a.post(func(_ http.ResponseWriter, r *http.Request, b *Backend) (any, error) { return b.pruneImages(r, images) })
	pin := a.post(func(_ http.ResponseWriter, r *http.Request, _ *Backend) (any, error) { return pinImage(r, images) })
	return map[string]http.Handler{
		peoplewire.PathImages:            Limit{AtOnce: 8, Each: 4}.Around(list),
		peoplewire.PathImages + "/prune": Limit{AtOnce: 1}.Around(prune),
		peoplewire.PathImages + "/pin":   Limit{AtOnce: 8, Each: 4}.Around(pin),
		peoplewire.PathImages + "/v2/":   Limit{AtOnce: 64, Each: 16}.Around(protocol),
	}
}

func pinImage(r *http.Request, images Images) (any, error) {
	var request peoplewire.ImagePin
	if err := readRequest(r, &request); err != nil {
		return nil, err
	}
	known := func(i peoplewire.Image) bool { return i.Name == request.Name }
	if request.Pinned && !slices.ContainsFunc(images.List().Images, known) {
		return nil, refuse(http.StatusNotFound, "there is no image %q; coldrack image list has their full names", request.Name)
	}
	controlplane.Remark(r, "coldrack.dev/image", request.Name)
	return request, images.Pin(request.Name, request.Pinned)
}

func (b *Backend) pruneImages(r *http.Request, images Images) (any, error) {
	var request peoplewire.ImagePrune
	if err := readRequest(r, &request); err != nil {
		return nil, err
	}
	if request.UnusedFor < 0 {
		return nil, refuse(http.StatusBadRequest, "unusedFor is %d seconds, want 0 or more", request.UnusedFor)
	}
	ctx, cancel := context.WithTimeout(r.Context(), lookTimeout)
	defer cancel()
	used, err := b.usedImages(ctx)
	if err != nil {
		return nil, refuse(http.StatusConflict, "what clusters run is not known, so no image was removed: %v", err)
	}
	young := time.Now().Add(-time.Duration(request.UnusedFor) * time.Second)
	pruned, freed, err := images.Prune(func(i peoplewire.Image) string {
		switch user := used.of(i); {
		case user != "":
			return user
		case i.LastUsed.After(young):
			return "used " + i.LastUsed.UTC().Format(time.RFC3339)
		}
		return ""
	}, !request.Yes)
	if err != nil {
		return nil, err
	}
	controlplane.Remark(r, "coldrack.dev/freed-bytes", fmt.Sprint(freed))
	return peoplewire.ImagesPruned{Images: pruned, Freed: freed, Removed: request.Yes}, nil
}

// usedImages says who needs an image, by its full name with a tag, or with @ and the digest.
type usedImages map[string]string

func (u usedImages) add(image, user string) {
	full, err := supply.FullImageName(image)
	if err != nil {
		return // no node can run it
	}
	if u[full] == "" {
		u[full] = user
	}
}

// of is who needs an image.
func (u usedImages) of(i peoplewire.Image) string {
	if user := u[i.Name]; user != "" {
		return user
	}
	for name, user := range u {
		if _, digest, ok := strings.Cut(name, "@"); ok && digest == i.Digest {
			return user
		}
	}
	return ""
}

// usedImages are those that clusters and add-ons need, and those that anything in a cluster runs. A cluster that has an API and does
// not answer is an error.
func (b *Backend) usedImages(ctx context.Context) (usedImages, error) {
	used := usedImages{}
	var clusters v1alpha1.ClusterList
	var addons v1alpha1.AddonList
	if err := b.Client.List(ctx, &clusters); err != nil {
		return nil, fmt.Errorf("list clusters: %w", err)
	}
	if err := b.Client.List(ctx, &addons); err != nil {
		return nil, fmt.Errorf("list add-ons: %w", err)
	}
	for i := range clusters.Items {
		cluster := &clusters.Items[i]
		user := "cluster " + cluster.Name
		required, err := kube.RequirementsOf(cluster)
		if err != nil && runs(cluster) {
			return nil, fmt.Errorf("cluster %s: %w", cluster.Name, err)
		}
		for _, image := range required.Images {
			used.add(image, user)
		}
		for j := range addons.Items {
			a := &addons.Items[j]
			if a.Spec.Cluster != cluster.Name {
				continue
			}
			objects, err := addon.ObjectsOf(a, addon.FactsOf(cluster))
			if err != nil {
				return nil, fmt.Errorf("add-on %s: %w", a.Name, err)
			}
			for _, image := range addon.Images(objects, kube.ImageReferences) {
				used.add(image, "add-on "+a.Name)
			}
		}
		running, err := b.running(ctx, cluster)
		if err != nil {
			return nil, err
		}
		for _, image := range running {
			used.add(image, user)
		}
	}
	return used, nil
}

// runs says whether a cluster was born, and is not being given up.
func runs(cluster *v1alpha1.Cluster) bool {
	born := cluster.Status.Version != "" || meta.IsStatusConditionTrue(cluster.Status.Conditions, v1alpha1.ConditionBroughtUp)
	return born && cluster.Status.Phase != v1alpha1.ClusterReleasing
}

// running are the images of everything in a cluster; nil for one that was never born.
func (b *Backend) running(ctx context.Context, cluster *v1alpha1.Cluster) ([]string, error) {
	if !runs(cluster) {
		return nil, nil
	}
	view, ok, _ := b.Clusters.View(cluster.Name)
	if !ok || view.Plan == nil {
		return nil, fmt.Errorf("cluster %s cannot be asked: %s", cluster.Name, orText(view.Problem, cluster.Status.Message))
	}
	connection, err := kubeapi.Connect(b.target(cluster.Name, view))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	return connection.WorkloadImages(ctx)
}
