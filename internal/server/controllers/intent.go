package controllers

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/lifecycle"
)

// intents acknowledges what people and policies want done, and takes back the approval of machines that
// were released. What becomes of an intent in between is recorded by the machine API, on the word of the
// machine itself.
type intents struct {
	Deps
	store *Store
}

func intentReconciler(d Deps) reconciler {
	r := &intents{Deps: d, store: NewStore(d.Client, d.Fleet)}
	return reconciler{name: "intent", workers: 2, do: r.reconcile, watches: []source.Source{each(d, &v1alpha1.Machine{})}}
}

func (r *intents) reconcile(ctx context.Context, name string) (time.Duration, error) {
	m, ok, err := r.current(ctx, name)
	if err != nil || !ok {
		return 0, err
	}
	switch {
	case lifecycle.Acknowledge(m.DeepCopy(), r.Now()):
		_, err = r.store.UpdateStatus(ctx, name, func(m *v1alpha1.Machine) error {
			lifecycle.Acknowledge(m, r.Now())
			return nil
		})
	case lifecycle.WasReleased(m):
		err = r.withdraw(ctx, m)
	default:
		return 0, nil
	}
	switch {
	case apierrors.IsNotFound(err):
		return 0, nil
	case apierrors.IsConflict(err):
		return 100 * time.Millisecond, nil
	case err != nil:
		return 0, fmt.Errorf("intent of machine %s: %w", name, err)
	}
	return 0, nil
}

// withdraw takes the approval of a released machine back, so that it is not installed again, and clears the
// wish, so that a later approval is a new one.
func (r *intents) withdraw(ctx context.Context, m *v1alpha1.Machine) error {
	defer r.Fleet.Write(m.Name)()
	next := m.DeepCopy()
	next.Spec.Approved, next.Spec.Intent = false, nil
	if err := r.Client.Patch(ctx, next, client.MergeFromWithOptions(m, client.MergeFromWithOptimisticLock{})); err != nil {
		return err
	}
	r.Log.Info("released machine is no longer approved", "machine", m.Name)
	r.Fleet.Put(next)
	return nil
}
