package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/planner"
	"coldrack.dev/internal/machine/lifecycle"
)

// intents acknowledges what people and policies want done, and takes back the approval of machines that
// were released. What becomes of an intent in between is recorded by the machine API, on the word of the
// machine itself. An intent that would take a node away from a running cluster is not acknowledged, and so not begun, before
// the cluster has let the node go.
type intents struct {
	Deps
	store *Store
}

func intentReconciler(d Deps) reconciler {
	r := &intents{Deps: d, store: NewStore(d.Client, d.Fleet)}
	return reconciler{name: "intent", workers: 2, do: r.reconcile, watches: []source.Source{each(d, &v1alpha1.Machine{}), intentsOfNodes(d)}}
}

// intentsOfNodes wake a reconciler with the machines of a cluster that has changed and for which something is wanted.
func intentsOfNodes(d Deps) source.Source {
	return source.Kind(d.Cache, &v1alpha1.Cluster{}, handler.TypedEnqueueRequestsFromMapFunc(func(_ context.Context, c *v1alpha1.Cluster) []reconcile.Request {
		var names []string
		for _, n := range c.Status.Nodes {
			if m, ok := d.Fleet.Get(n.Machine); ok && m.WantedIntent() != nil && m.OpenIntent() == nil {
				names = append(names, n.Machine)
			}
		}
		return requests(names...)
	}))
}

func (r *intents) reconcile(ctx context.Context, name string) (time.Duration, error) {
	m, ok, err := r.current(ctx, name)
	if err != nil || !ok {
		return 0, err
	}
	held, err := r.heldBy(ctx, m)
	if err != nil {
		return 0, err
	}
	switch {
	case lifecycle.Hold(m.DeepCopy(), held, r.Now()):
		_, err = r.store.UpdateStatus(ctx, name, func(m *v1alpha1.Machine) error {
			lifecycle.Hold(m, held, r.Now())
			return nil
		})
	case held != "":
	case lifecycle.Acknowledge(m.DeepCopy(), r.Now()):
		_, err = r.store.UpdateStatus(ctx, name, func(m *v1alpha1.Machine) error {
			lifecycle.Acknowledge(m, r.Now())
			return nil
		})
	case lifecycle.Adopt(m.DeepCopy(), r.Now()):
		_, err = r.store.UpdateStatus(ctx, name, func(m *v1alpha1.Machine) error {
			lifecycle.Adopt(m, r.Now())
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

// heldBy says what keeps the machine's intent from being begun: the cluster that it is a node of. Empty: nothing does.
func (r *intents) heldBy(ctx context.Context, m *v1alpha1.Machine) (string, error) {
	intent := m.WantedIntent()
	if intent == nil || m.OpenIntent() != nil || m.Annotations[v1alpha1.AnnotationAbandon] == "true" {
		return "", nil
	}
	clusters := &v1alpha1.ClusterList{}
	if err := r.Cache.List(ctx, clusters, client.UnsafeDisableDeepCopy); err != nil {
		return "", fmt.Errorf("list clusters: %w", err)
	}
	for i := range clusters.Items {
		c := &clusters.Items[i]
		at := slices.IndexFunc(c.Status.Nodes, func(n v1alpha1.ClusterNode) bool { return n.Machine == m.Name })
		if at < 0 || c.DeletionTimestamp != nil || c.Annotations[v1alpha1.AnnotationAbandon] == "true" || !members.BroughtUp(c) {
			continue
		}
		n := &c.Status.Nodes[at]
		if intent.Action == v1alpha1.ActionReinstall && n.Hand != nil && installsAnew(n.Hand) && n.Hand.Changed {
			continue // it is its turn
		}
		if intent.Action == v1alpha1.ActionReinstall && c.Status.Restore.Running() && (n.Etcd != nil || m.Status.Phase == v1alpha1.PhaseLost) {
			continue // its member of etcd gets its data from a backup, and nothing can be drained
		}
		if intent.Action == v1alpha1.ActionReinstall && n.Hand != nil && n.Hand.Step == string(planner.StepReinstall) {
			continue // it is broken, and installed anew for that
		}
		text := fmt.Sprintf("cluster %s lets node %s go first", c.Name, n.NodeName)
		if why := workOf(c, m.Name); why != "" {
			text += ": " + why
		}
		return text, nil
	}
	return "", nil
}

// workOf is what a cluster does with a machine now, or what hinders it.
func workOf(c *v1alpha1.Cluster, machine string) string {
	if c.Spec.Paused {
		return "the cluster is paused"
	}
	w := c.Status.Work
	if w == nil {
		return ""
	}
	for _, list := range [][]string{w.Blocks, w.Waits} {
		for _, text := range list {
			if strings.HasPrefix(text, machine+": ") {
				return strings.TrimPrefix(text, machine+": ")
			}
		}
	}
	for _, step := range w.Steps {
		if step.Node == machine {
			return strings.TrimSpace(step.Kind + " " + step.Message)
		}
	}
	return ""
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
