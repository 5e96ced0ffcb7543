package peopleapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/supply"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// diffTimeout is how long the dry runs of one add-on may take.
const diffTimeout = time.Minute

// addonDiff answers POST CLUSTER/addons/diff: what would become of the cluster if an Addon were written.
func (a *ClusterAPI) addonDiff(_ http.ResponseWriter, r *http.Request, b *Backend) (any, error) {
	name, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, peoplewire.PathClusters), "/addons/")
	if rest != "diff" {
		return nil, refuse(http.StatusNotFound, "there is no %s", r.URL.Path)
	}
	// A dry run shows what is in the cluster, of every kind, and calls its admission.
	if controlplane.PersonOf(r).Role != controlplane.GroupAdmin {
		return nil, refuse(http.StatusForbidden, "comparing add-ons needs role admin: it is done with all rights in the cluster")
	}
	var request peoplewire.AddonDiffRequest
	if err := readRequest(r, &request); err != nil {
		return nil, err
	}
	proposed := &v1alpha1.Addon{}
	if err := json.Unmarshal(request.Addon, proposed); err != nil {
		return nil, refuse(http.StatusBadRequest, "the Addon cannot be read: %v", err)
	}
	if proposed.Name == "" || proposed.Spec.Cluster != name {
		return nil, refuse(http.StatusBadRequest, "the Addon has no name, or spec.cluster is not %s", name)
	}
	cluster, err := b.getCluster(r.Context(), name)
	if err != nil {
		return nil, err
	}
	is := addon.Of(proposed)
	is.Removed = request.Remove
	answer := peoplewire.AddonDiffResponse{Changes: []kube.ObjectChange{}}
	if !is.Removed {
		if is.Objects, err = addon.ObjectsOf(proposed, addon.FactsOf(cluster)); err != nil {
			return nil, refuse(http.StatusConflict, "%v", err)
		}
		answer.MissingImages = supply.MissingImages(b.Content.Artifacts(), b.Loaded, cluster, addon.Images(is.Objects, kube.ImageReferences))
	}
	ctx, cancel := context.WithTimeout(r.Context(), diffTimeout)
	defer cancel()
	changes, err := b.diffAddon(ctx, cluster, is)
	if err != nil {
		var down *kubeapi.UnreachableError
		if errors.As(err, &down) {
			return nil, refuse(http.StatusServiceUnavailable, "%v", err)
		}
		return nil, refuse(http.StatusConflict, "%v", err)
	}
	answer.Changes = append(answer.Changes, changes...)
	return answer, nil
}

func (b *Backend) diffAddon(ctx context.Context, cluster *v1alpha1.Cluster, is addon.Addon) ([]kube.ObjectChange, error) {
	view, ok, _ := b.Clusters.View(cluster.Name)
	if !ok || view.Plan == nil {
		return nil, &kubeapi.UnreachableError{Cluster: cluster.Name, Problems: []string{orText(view.Problem, cluster.Status.Message)}}
	}
	others := &v1alpha1.AddonList{}
	if err := b.Client.List(ctx, others); err != nil {
		return nil, fmt.Errorf("list add-ons: %w", err)
	}
	beside := []addon.Addon{}
	for i := range others.Items {
		o := &others.Items[i]
		if o.Spec.Cluster != cluster.Name || o.Name == is.Name || o.DeletionTimestamp != nil {
			continue
		}
		other := addon.Of(o)
		var err error
		if other.Objects, err = addon.ObjectsOf(o, addon.FactsOf(cluster)); err == nil {
			beside = append(beside, other)
		}
	}
	connection, err := kubeapi.Connect(b.target(cluster.Name, view))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	return connection.DiffAddon(ctx, is, view.Plan.Objects, beside)
}
