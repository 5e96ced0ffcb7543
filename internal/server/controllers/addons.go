package controllers

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
)

// addonLeader tells the runner of each cluster which add-ons people want in it, and writes how they are into their status. Its keys are
// clusters.
type addonLeader struct {
	Deps
	apis *clusterAPIs
	// parsed are the objects of files, which are large and seldom change.
	mu     sync.Mutex
	parsed map[string]parsedAddon // by name of the Addon
}

type parsedAddon struct {
	of      string // stands for the files and the values in them
	objects []addon.Object
	problem string
}

func addonReconciler(d Deps, apis *clusterAPIs) reconciler {
	r := &addonLeader{Deps: d, apis: apis, parsed: map[string]parsedAddon{}}
	return reconciler{
		name: "addon", do: func(ctx context.Context, cluster string) (time.Duration, error) { return r.reconcile(ctx, cluster) },
		watches: []source.Source{
			source.Kind(d.Cache, &v1alpha1.Addon{}, handler.TypedEnqueueRequestsFromMapFunc(func(_ context.Context, a *v1alpha1.Addon) []reconcile.Request {
				return requests(a.Spec.Cluster)
			})),
			each(d, &v1alpha1.Cluster{}), apis.source(), everyClusterWhen(d, d.Catalog.Changed),
		},
	}
}

func (r *addonLeader) reconcile(ctx context.Context, name string) (time.Duration, error) {
	all := &v1alpha1.AddonList{}
	if err := r.Cache.List(ctx, all); err != nil {
		return 0, fmt.Errorf("list add-ons: %w", err)
	}
	cluster := &v1alpha1.Cluster{}
	switch err := r.Cache.Get(ctx, client.ObjectKey{Name: name}, cluster); {
	case apierrors.IsNotFound(err):
		cluster = nil
	case err != nil:
		return 0, fmt.Errorf("read cluster %s: %w", name, err)
	}
	var own []v1alpha1.Addon
	wanted := []addon.Addon{}
	for _, a := range all.Items {
		if a.Spec.Cluster != name {
			continue
		}
		own = append(own, a)
		if cluster == nil {
			continue
		}
		if a.DeletionTimestamp == nil && !controllerutil.ContainsFinalizer(&a, v1alpha1.AddonFinalizer) {
			next := a.DeepCopy()
			controllerutil.AddFinalizer(next, v1alpha1.AddonFinalizer)
			if err := r.Client.Patch(ctx, next, client.MergeFromWithOptions(&a, client.MergeFromWithOptimisticLock{})); err != nil {
				return r.settle(err)
			}
			continue // the news of it wakes this reconciler
		}
		if a.DeletionTimestamp != nil && a.Annotations[v1alpha1.AnnotationLeaveObjects] == "true" {
			continue
		}
		wanted = append(wanted, r.wanted(&a, cluster))
	}
	if cluster != nil && cluster.DeletionTimestamp == nil {
		r.apis.setAddons(name, wanted)
	}
	state := r.apis.state(name)
	for i := range own {
		a := &own[i]
		var s *addon.State
		if state != nil {
			// One of the name that was removed before says nothing of this one.
			if of, ok := state.UserAddons[a.Name]; ok && (of.Phase != addon.Gone || a.DeletionTimestamp != nil) {
				s = &of
			}
		}
		if a.DeletionTimestamp != nil && (cluster == nil || cluster.DeletionTimestamp != nil || a.Annotations[v1alpha1.AnnotationLeaveObjects] == "true" || s != nil && s.Phase == addon.Gone) {
			if err := r.letGo(ctx, a); err != nil {
				return r.settle(err)
			}
			continue
		}
		if err := r.writeStatus(ctx, a, cluster, s); err != nil {
			return r.settle(err)
		}
	}
	return 0, nil
}

// settle turns the errors of a write that somebody was faster with into another try.
func (r *addonLeader) settle(err error) (time.Duration, error) {
	switch {
	case apierrors.IsConflict(err):
		return 100 * time.Millisecond, nil
	case apierrors.IsNotFound(err):
		return 0, nil
	}
	return 0, err
}

// wanted is an Addon as the runner of its cluster takes it.
func (r *addonLeader) wanted(a *v1alpha1.Addon, cluster *v1alpha1.Cluster) addon.Addon {
	is := addon.Of(a)
	if is.Removed {
		return is
	}
	facts := addon.FactsOf(cluster)
	of := fmt.Sprintf("%s %d %v", a.UID, a.Generation, facts)
	r.mu.Lock()
	defer r.mu.Unlock()
	parsed, ok := r.parsed[a.Name]
	if !ok || parsed.of != of {
		parsed = parsedAddon{of: of}
		objects, err := addon.ObjectsOf(a, facts)
		if err != nil {
			parsed.problem = err.Error()
		} else {
			parsed.objects = objects
		}
		r.parsed[a.Name] = parsed
	}
	is.Objects, is.Problem = parsed.objects, parsed.problem
	return is
}

// letGo ends a deleted Addon.
func (r *addonLeader) letGo(ctx context.Context, a *v1alpha1.Addon) error {
	r.mu.Lock()
	delete(r.parsed, a.Name)
	r.mu.Unlock()
	if !controllerutil.ContainsFinalizer(a, v1alpha1.AddonFinalizer) {
		return nil
	}
	next := a.DeepCopy()
	controllerutil.RemoveFinalizer(next, v1alpha1.AddonFinalizer)
	r.Log.Info("add-on removed", "cluster", a.Spec.Cluster, "addon", a.Name, "objectsLeft", a.Annotations[v1alpha1.AnnotationLeaveObjects] == "true")
	return r.Client.Patch(ctx, next, client.MergeFromWithOptions(a, client.MergeFromWithOptimisticLock{}))
}

func (r *addonLeader) writeStatus(ctx context.Context, a *v1alpha1.Addon, cluster *v1alpha1.Cluster, s *addon.State) error {
	next := a.DeepCopy()
	foldAddon(next, cluster, s, r.missing(a, cluster), r.Now())
	if equality.Semantic.DeepEqual(a.Status, next.Status) {
		return nil
	}
	if a.Status.Phase != next.Status.Phase {
		r.Log.Info("add-on", "cluster", a.Spec.Cluster, "addon", a.Name, "phase", next.Status.Phase, "was", a.Status.Phase, "reason", next.Status.Message)
	}
	if err := r.Client.Status().Patch(ctx, next, client.MergeFromWithOptions(a, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("write status of add-on %s: %w", a.Name, err)
	}
	return nil
}

// missing are the images of an add-on that nodes get from nowhere.
func (r *addonLeader) missing(a *v1alpha1.Addon, cluster *v1alpha1.Cluster) []string {
	if cluster == nil {
		return nil
	}
	r.mu.Lock()
	objects := r.parsed[a.Name].objects
	r.mu.Unlock()
	return r.Catalog.MissingImages(cluster, addon.Images(objects, kube.ImageReferences))
}

// foldAddon writes into a's status how it is. s is nil while nothing is known of it in its cluster.
func foldAddon(a *v1alpha1.Addon, cluster *v1alpha1.Cluster, s *addon.State, missing []string, now time.Time) {
	status := &a.Status
	if s != nil && cluster != nil && s.Generation != a.Generation {
		return // what is known is of what was written before
	}
	status.MissingImages = missing
	waits := "waits for the cluster's API"
	if cluster != nil && cluster.Spec.Paused {
		waits = "waits until the cluster is resumed"
	}
	var hints []string
	if len(missing) > 0 {
		hints = append(hints, "no bundle has image "+strings.Join(missing, ", "))
	}
	switch {
	case cluster == nil:
		status.Phase, hints = string(addon.Waiting), []string{fmt.Sprintf("there is no Cluster %q", a.Spec.Cluster)}
	case s == nil && a.DeletionTimestamp != nil:
		status.Phase = string(addon.Removing)
		hints = append([]string{waits}, hints...)
	case s == nil && status.Phase == "":
		status.Phase = string(addon.Waiting)
		hints = append([]string{waits}, hints...)
	case s == nil:
		return // what was known last stands
	default:
		status.Phase, status.Left = string(s.Phase), s.Left
		if s.Message != "" {
			hints = append([]string{s.Message}, hints...)
		}
		status.Healthy = fmt.Sprintf("%d/%d", s.Healthy, s.Objects)
		if s.Digest != "" && s.Digest != status.Applied {
			status.Applied, status.AppliedAt = s.Digest, new(metav1.NewTime(s.AppliedAt.Truncate(time.Second)))
		}
	}
	status.ObservedGeneration, status.Message = a.Generation, strings.Join(hints, "; ")
	ready := metav1.Condition{Type: "Ready", Status: metav1.ConditionFalse, Reason: status.Phase, Message: status.Message, ObservedGeneration: a.Generation, LastTransitionTime: metav1.NewTime(now)}
	if status.Phase == string(addon.Ready) {
		ready.Status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&status.Conditions, ready)
}
