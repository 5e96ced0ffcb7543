package controllers

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/machine/lifecycle"
)

// machines folds what the fleet observed into status.
type machines struct {
	Deps
	throttle *statusThrottle
}

func machineReconciler(d Deps) reconciler {
	r := &machines{Deps: d, throttle: newStatusThrottle()}
	return reconciler{
		name: "machine", workers: 4, do: r.reconcile,
		watches: []source.Source{each(d, &v1alpha1.Machine{}), observations(d.Fleet), rebootStates(d), nodeRebootStates(d)},
	}
}

// observations wake a reconciler with the names of machines that have something new to tell.
func observations(known *fleet.Fleet) source.Source {
	return source.Func(func(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		go func() { // ends with ctx, which the controller owns
			for {
				names, err := known.NextDirty(ctx)
				if err != nil {
					return
				}
				for _, request := range requests(names...) {
					queue.Add(request)
				}
			}
		}()
		return nil
	})
}

func (r *machines) reconcile(ctx context.Context, name string) (time.Duration, error) {
	defer r.Fleet.Write(name)()
	m, ok, err := r.current(ctx, name)
	if err != nil || !ok {
		r.throttle.forget(name)
		return 0, err
	}
	now := r.Now()
	next := m.DeepCopy()
	until := lifecycle.Fold(next, r.Fleet.Live(name), r.Fleet.Twins(name), now, lifecycle.LimitsFor(r.LostAfter, r.Fleet.ListeningSince()))
	if up := next.Status.Kubernetes; up != nil {
		if cluster, node, roles, ok := r.Clusters.Member(name); ok && cluster == up.Cluster {
			up.Node, up.Roles = node, roles
		}
	}
	r.foldLock(next)
	again := time.Duration(0)
	if !until.IsZero() {
		again = max(until.Sub(now), time.Second)
	}
	if equality.Semantic.DeepEqual(m.Status, next.Status) {
		return again, nil
	}
	if wait := r.throttle.wait(name, lifecycle.UrgencyOf(m.Status, next.Status), now); wait > 0 {
		return wait, nil
	}
	err = r.Client.Status().Patch(ctx, next, client.MergeFromWithOptions(m, client.MergeFromWithOptimisticLock{}))
	switch {
	case apierrors.IsNotFound(err):
		r.throttle.forget(name)
		return 0, nil
	case apierrors.IsConflict(err):
		// Somebody was faster, and the news of it is on its way to the fleet.
		return 100 * time.Millisecond, nil
	case err != nil:
		return 0, fmt.Errorf("write status of machine %s: %w", name, err)
	}
	if m.Status.Phase != next.Status.Phase {
		r.Log.Info("machine", "machine", name, "phase", next.Status.Phase, "was", m.Status.Phase, "reason", next.Status.Message)
	}
	r.Fleet.Put(next)
	return again, nil
}
