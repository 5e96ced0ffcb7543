package controllers

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/rebootlock"
)

// FeedRebootGroups carries all RebootGroups that there are into the Set, once. Before that, no machine of no cluster is told to reboot.
func FeedRebootGroups(ctx context.Context, d Deps) error {
	list := &v1alpha1.RebootGroupList{}
	if err := d.Cache.List(ctx, list); err != nil {
		return fmt.Errorf("list reboot groups: %w", err)
	}
	for i := range list.Items {
		d.Reboots.Put(&list.Items[i])
	}
	d.Reboots.Known()
	return nil
}

// rebootFeed carries RebootGroups into the Set that agents are answered from. It runs in every server.
func rebootFeed(d Deps) reconciler {
	return reconciler{name: "reboot-locks", watches: []source.Source{each(d, &v1alpha1.RebootGroup{})}, do: func(ctx context.Context, name string) (time.Duration, error) {
		g := &v1alpha1.RebootGroup{}
		switch err := d.Cache.Get(ctx, client.ObjectKey{Name: name}, g); {
		case apierrors.IsNotFound(err):
			d.Reboots.Remove(name)
		case err != nil:
			return 0, fmt.Errorf("read reboot group %s: %w", name, err)
		default:
			d.Reboots.Put(g)
		}
		return 0, nil
	}}
}

// rebootStates wake a reconciler with the machines of which a group says something else than before.
func rebootStates(d Deps) source.Source {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	says := func(g *v1alpha1.RebootGroup) map[string]string {
		texts := map[string]string{}
		for _, w := range g.Status.Waiting {
			texts[w.Name] = w.Message
		}
		for _, h := range g.Status.Holders {
			texts[h.Name] = h.Until.String()
		}
		return texts
	}
	wake := func(q queue, was, is map[string]string) {
		for name, text := range is {
			if old, ok := was[name]; !ok || old != text {
				q.Add(requests(name)[0])
			}
		}
		for name := range was {
			if _, ok := is[name]; !ok {
				q.Add(requests(name)[0])
			}
		}
	}
	return source.Kind(d.Cache, &v1alpha1.RebootGroup{}, handler.TypedFuncs[*v1alpha1.RebootGroup, reconcile.Request]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[*v1alpha1.RebootGroup], q queue) {
			d.Reboots.Put(e.Object)
			wake(q, nil, says(e.Object))
		},
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[*v1alpha1.RebootGroup], q queue) {
			d.Reboots.Put(e.ObjectNew)
			wake(q, says(e.ObjectOld), says(e.ObjectNew))
		},
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[*v1alpha1.RebootGroup], q queue) {
			d.Reboots.Remove(e.Object.Name)
			wake(q, says(e.Object), nil)
		},
	})
}

// nodeRebootStates wake a reconciler with the machines of which a cluster says something else than before.
func nodeRebootStates(d Deps) source.Source {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	put := func(q queue, name string, nodes []v1alpha1.ClusterNode) {
		for _, request := range requests(d.Reboots.PutCluster(name, nodes)...) {
			q.Add(request)
		}
	}
	return source.Kind(d.Cache, &v1alpha1.Cluster{}, handler.TypedFuncs[*v1alpha1.Cluster, reconcile.Request]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[*v1alpha1.Cluster], q queue) {
			put(q, e.Object.Name, e.Object.Status.Nodes)
		},
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[*v1alpha1.Cluster], q queue) {
			put(q, e.ObjectNew.Name, e.ObjectNew.Status.Nodes)
		},
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[*v1alpha1.Cluster], q queue) {
			put(q, e.Object.Name, nil)
		},
	})
}

// foldLock records how far the reboot of a machine is.
func (r *machines) foldLock(m *v1alpha1.Machine) {
	s := &m.Status
	if s.Installed == nil {
		s.RebootState, s.Rebooted = "", nil
		return
	}
	cluster, _, _, _ := r.Clusters.Member(m.Name)
	text, held := r.Reboots.State(m.Name, cluster)
	if boot := bootOf(m); held != nil && boot != "" && boot != held.BootID {
		// Recorded with the new boot, and so before the lock is given back.
		s.Rebooted = &v1alpha1.NodeReboot{At: held.Since, Reason: held.Reason}
	}
	s.RebootState = text
}

// reboots decides who has the locks of RebootGroups.
type reboots struct{ Deps }

func rebootReconciler(d Deps) reconciler {
	r := &reboots{d}
	return reconciler{name: "reboots", do: r.reconcile, watches: []source.Source{whole(d, &v1alpha1.RebootGroup{}), machinesThatReboot(d)}}
}

// machinesThatReboot wake a reconciler that looks at everything when a machine has changed so that a lock might be granted or given back.
func machinesThatReboot(d Deps) source.Source {
	// Hundreds of machines report at once; a look at all of them is worth a moment's wait for more news.
	const gather = 100 * time.Millisecond
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	wake := func(q queue) { q.AddAfter(requests(everything)[0], gather) }
	return source.Kind(d.Cache, &v1alpha1.Machine{}, handler.TypedFuncs[*v1alpha1.Machine, reconcile.Request]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[*v1alpha1.Machine], q queue) { wake(q) },
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[*v1alpha1.Machine], q queue) { wake(q) },
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[*v1alpha1.Machine], q queue) { wake(q) },
	}, predicate.TypedFuncs[*v1alpha1.Machine]{
		UpdateFunc: func(e event.TypedUpdateEvent[*v1alpha1.Machine]) bool {
			was, is := e.ObjectOld, e.ObjectNew
			before, _ := was.WantsReboot()
			now, _ := is.WantsReboot()
			return before != now || was.Status.Phase != is.Status.Phase || bootOf(was) != bootOf(is) || (was.Status.Installed == nil) != (is.Status.Installed == nil) ||
				(was.WantedIntent() == nil) != (is.WantedIntent() == nil) || !equality.Semantic.DeepEqual(was.SelectorLabels(), is.SelectorLabels())
		},
	})
}

func (r *reboots) reconcile(ctx context.Context, _ string) (time.Duration, error) {
	groups, list := &v1alpha1.RebootGroupList{}, &v1alpha1.MachineList{}
	// From the API itself: a lock that was granted a moment ago must not be granted again.
	if err := r.Client.List(ctx, groups); err != nil {
		return 0, fmt.Errorf("list reboot groups: %w", err)
	}
	if len(groups.Items) == 0 {
		return 0, nil
	}
	if err := r.Cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return 0, fmt.Errorf("list machines: %w", err)
	}
	facts := rebootlock.Facts{Groups: groups.Items, Now: r.Now(), ClusterOf: func(machine string) string {
		cluster, _, _, _ := r.Clusters.Member(machine)
		return cluster
	}}
	for i := range list.Items {
		facts.Machines = append(facts.Machines, &list.Items[i])
	}
	statuses, again := rebootlock.Decide(facts)
	for i := range groups.Items {
		was := &groups.Items[i]
		next := was.DeepCopy()
		next.Status = statuses[was.Name]
		if equality.Semantic.DeepEqual(was.Status, next.Status) {
			continue
		}
		switch err := r.Client.Status().Patch(ctx, next, client.MergeFromWithOptions(was, client.MergeFromWithOptimisticLock{})); {
		case apierrors.IsConflict(err):
			return 100 * time.Millisecond, nil
		case err != nil && !apierrors.IsNotFound(err):
			return 0, fmt.Errorf("write status of reboot group %s: %w", was.Name, err)
		}
		r.tell(was, next)
	}
	if again.IsZero() {
		return operateIdle, nil
	}
	return min(max(again.Sub(r.Now()), 100*time.Millisecond), operateIdle), nil // a cluster may have taken a machine, or let it go
}

// tell logs who got a lock, who gave it back and who is overdue.
func (r *reboots) tell(was, is *v1alpha1.RebootGroup) {
	for _, h := range is.Status.Holders {
		old := was.Status.Holder(h.Name)
		if old == nil {
			r.Log.Info("machine may reboot", "group", is.Name, "machine", h.Name, "reason", h.Reason, "until", h.Until.UTC().Format(time.RFC3339))
		} else if h.Overdue && !old.Overdue {
			r.Log.Warn("machine is not back from its reboot", "group", is.Name, "machine", h.Name, "until", h.Until.UTC().Format(time.RFC3339), "state", h.Message)
		}
	}
	for _, record := range is.Status.History {
		if h := was.Status.Holder(record.Name); h != nil && is.Status.Holder(record.Name) == nil && h.Since.Equal(&record.Since) {
			r.Log.Info("machine's reboot has ended", "group", is.Name, "machine", record.Name, "outcome", record.Outcome)
		}
	}
}
