package controllers

import (
	"context"
	"fmt"
	"maps"
	"strings"
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
	"coldrack.dev/internal/cluster/members"
)

// clusterFeed carries what is recorded of clusters into the Set that nodes are answered from. It runs in every
// server.
func clusterFeed(d Deps) reconciler {
	watches := append(clusterWatches(d), subnetsOfClusters(d))
	if d.Own != nil {
		watches = append(watches, addressesOfClusters(d))
	}
	return reconciler{
		name: "cluster-plans", do: func(ctx context.Context, name string) (time.Duration, error) { return 0, feedCluster(ctx, d, name) },
		watches: append(watches, source.Kind(d.Cache, &v1alpha1.Machine{},
			handler.TypedEnqueueRequestsFromMapFunc(func(_ context.Context, m *v1alpha1.Machine) []reconcile.Request {
				d.Fleet.Put(m)
				if name, _, _, ok := d.Clusters.Member(m.Name); ok {
					return requests(name)
				}
				return nil
			}), predicate.TypedFuncs[*v1alpha1.Machine]{
				UpdateFunc: func(e event.TypedUpdateEvent[*v1alpha1.Machine]) bool {
					was, is := e.ObjectOld, e.ObjectNew
					return was.Generation != is.Generation || interfaceOf(was) != interfaceOf(is) ||
						!maps.Equal(was.AcceleratorLabels(), is.AcceleratorLabels()) ||
						(was.Status.Inventory == nil) != (is.Status.Inventory == nil) ||
						is.Status.Inventory != nil && !was.Status.Inventory.ReportedAt.Equal(&is.Status.Inventory.ReportedAt)
				},
			})),
	}
}

// addressesOfClusters wake a reconciler with every cluster: files on nodes name this server's address.
func addressesOfClusters(d Deps) source.Source {
	return source.Func(func(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		go func() { // ends with ctx, which the controller owns
			for {
				changed := d.Own.Changed()
				for _, request := range everyCluster(ctx, d) {
					queue.Add(request)
				}
				select {
				case <-changed:
				case <-ctx.Done():
					return
				}
			}
		}()
		return nil
	})
}

// subnetsOfClusters wake a reconciler with every cluster: a subnet's nameservers are its nodes'.
func subnetsOfClusters(d Deps) source.Source {
	return source.Kind(d.Cache, &v1alpha1.Subnet{}, handler.TypedEnqueueRequestsFromMapFunc(func(ctx context.Context, _ *v1alpha1.Subnet) []reconcile.Request {
		return everyCluster(ctx, d)
	}), predicate.TypedGenerationChangedPredicate[*v1alpha1.Subnet]{})
}

func interfaceOf(m *v1alpha1.Machine) string {
	if m.Status.Node == nil {
		return ""
	}
	return m.Status.Node.Interface
}

// FeedClusters carries all clusters that there are into the Set, once. Before that, a node would be told that it
// belongs to none.
func FeedClusters(ctx context.Context, d Deps) error {
	list := &v1alpha1.ClusterList{}
	if err := d.Cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list clusters: %w", err)
	}
	for i := range list.Items {
		if err := feedCluster(ctx, d, list.Items[i].Name); err != nil {
			return err
		}
	}
	return nil
}

// clusterWatches wake a reconciler with the name of a cluster of which anything but a machine has changed.
func clusterWatches(d Deps) []source.Source {
	return []source.Source{
		each(d, &v1alpha1.Cluster{}),
		source.Kind(d.Cache, &v1alpha1.MachineGroup{}, handler.TypedEnqueueRequestsFromMapFunc(func(_ context.Context, g *v1alpha1.MachineGroup) []reconcile.Request {
			return requests(g.Spec.Cluster)
		})),
		source.Kind(d.Cache, &v1alpha1.Secret{}, handler.TypedEnqueueRequestsFromMapFunc(func(_ context.Context, s *v1alpha1.Secret) []reconcile.Request {
			if name, ok := strings.CutPrefix(s.Name, members.SecretName("")); ok {
				return requests(name)
			}
			return nil
		})),
	}
}

// everyCluster are requests for all clusters.
func everyCluster(ctx context.Context, d Deps) []reconcile.Request {
	list := &v1alpha1.ClusterList{}
	if err := d.Cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return nil // only when the server stops
	}
	var names []string
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	return requests(names...)
}

func feedCluster(ctx context.Context, d Deps, name string) error {
	record := members.Record{Cluster: &v1alpha1.Cluster{}}
	switch err := d.Cache.Get(ctx, client.ObjectKey{Name: name}, record.Cluster); {
	case apierrors.IsNotFound(err):
		d.Clusters.Remove(name)
		return nil
	case err != nil:
		return fmt.Errorf("read cluster %s: %w", name, err)
	}
	groups := &v1alpha1.MachineGroupList{}
	if err := d.Cache.List(ctx, groups); err != nil {
		return fmt.Errorf("list machine groups: %w", err)
	}
	for _, g := range groups.Items {
		if g.Spec.Cluster == name {
			record.Groups = append(record.Groups, g)
		}
	}
	subnets := &v1alpha1.SubnetList{}
	if err := d.Cache.List(ctx, subnets); err != nil {
		return fmt.Errorf("list subnets: %w", err)
	}
	record.Subnets = subnets.Items
	for _, n := range record.Cluster.Status.Nodes {
		if m, ok := d.Fleet.Get(n.Machine); ok {
			record.Machines = append(record.Machines, *m)
		}
	}
	secret := &v1alpha1.Secret{}
	switch err := d.Cache.Get(ctx, client.ObjectKey{Name: members.SecretName(name)}, secret); {
	case err == nil:
		record.Secret = secret
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("read keys of cluster %s: %w", name, err)
	}
	d.Clusters.Put(record)
	return nil
}

// machinesThatMatter wake a reconciler with every cluster when a machine has changed so that one of them might
// take it, lose it, or say something else of it.
func machinesThatMatter(d Deps) source.Source {
	// Hundreds of machines report at once; a look at all of them is worth a moment's wait for more news.
	const gather = 100 * time.Millisecond
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	wake := func(ctx context.Context, q queue) {
		for _, request := range everyCluster(ctx, d) {
			q.AddAfter(request, gather)
		}
	}
	return source.Kind(d.Cache, &v1alpha1.Machine{}, handler.TypedFuncs[*v1alpha1.Machine, reconcile.Request]{
		CreateFunc: func(ctx context.Context, e event.TypedCreateEvent[*v1alpha1.Machine], q queue) {
			d.Fleet.Put(e.Object)
			wake(ctx, q)
		},
		UpdateFunc: func(ctx context.Context, e event.TypedUpdateEvent[*v1alpha1.Machine], q queue) {
			d.Fleet.Put(e.ObjectNew)
			wake(ctx, q)
		},
		DeleteFunc: func(ctx context.Context, e event.TypedDeleteEvent[*v1alpha1.Machine], q queue) {
			d.Fleet.Remove(e.Object.Name, string(e.Object.UID))
			wake(ctx, q)
		},
	}, predicate.TypedFuncs[*v1alpha1.Machine]{
		UpdateFunc: func(e event.TypedUpdateEvent[*v1alpha1.Machine]) bool {
			was, is := e.ObjectOld, e.ObjectNew
			return was.Generation != is.Generation || !maps.Equal(was.SelectorLabels(), is.SelectorLabels()) || was.DeletionTimestamp != is.DeletionTimestamp ||
				was.Status.Phase != is.Status.Phase || was.Status.Message != is.Status.Message || (was.Status.Installed == nil) != (is.Status.Installed == nil) ||
				(was.Status.Inventory == nil) != (is.Status.Inventory == nil) || !equality.Semantic.DeepEqual(was.Status.Kubernetes, is.Status.Kubernetes)
		},
	})
}
