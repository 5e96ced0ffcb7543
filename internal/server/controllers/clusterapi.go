package controllers

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/members"
)

// clusterAPIs has a runner for the API of every cluster that has a plan and is not paused.
type clusterAPIs struct {
	Deps

	mu     sync.Mutex
	states map[string]kubeapi.State
	// runners of the clusters, and what people want of add-ons in each; clusters of which nobody has said that yet are not in addons.
	runners map[string]*kubeapi.Runner
	addons  map[string][]addon.Addon
	queues  []workqueue.TypedRateLimitingInterface[reconcile.Request]
}

func newClusterAPIs(d Deps) *clusterAPIs {
	return &clusterAPIs{Deps: d, states: map[string]kubeapi.State{}, runners: map[string]*kubeapi.Runner{}, addons: map[string][]addon.Addon{}}
}

// state of a cluster's API, nil while nothing is known of it.
func (a *clusterAPIs) state(cluster string) *kubeapi.State {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s, ok := a.states[cluster]; ok {
		return &s
	}
	return nil
}

// source wakes a reconciler with the name of a cluster whose API has changed, or whose plan has.
func (a *clusterAPIs) source() source.Source {
	return source.Func(func(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.queues = append(a.queues, queue)
		return nil
	})
}

func (a *clusterAPIs) wake(cluster string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, queue := range a.queues {
		queue.Add(requests(cluster)[0])
	}
}

func (a *clusterAPIs) report(s kubeapi.State) {
	a.mu.Lock()
	a.states[s.Cluster] = s
	a.mu.Unlock()
	a.wake(s.Cluster)
}

func (a *clusterAPIs) forget(cluster string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.states, cluster)
	delete(a.runners, cluster)
}

// setAddons says which add-ons people want in a cluster, all of them.
func (a *clusterAPIs) setAddons(cluster string, addons []addon.Addon) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if was, known := a.addons[cluster]; known && slices.EqualFunc(was, addons, addon.Addon.Same) {
		return
	}
	a.addons[cluster] = addons
	if runner := a.runners[cluster]; runner != nil {
		runner.SetAddons(addons)
	}
}

// employ remembers a cluster's runner, and tells it of the add-ons.
func (a *clusterAPIs) employ(cluster string, runner *kubeapi.Runner) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.runners[cluster] = runner
	if addons, known := a.addons[cluster]; known {
		runner.SetAddons(addons)
	}
}

// attended is a cluster whose API has a runner.
type attended struct {
	plan   *kube.Plan
	runner *kubeapi.Runner
	stop   context.CancelFunc
	done   chan struct{}
}

// run keeps a runner for each cluster until ctx ends, and returns when all of them have ended.
func (a *clusterAPIs) run(ctx context.Context) error {
	running := map[string]*attended{}
	problems := map[string]string{}
	end := func(name string) {
		running[name].stop()
		<-running[name].done
		delete(running, name)
		a.forget(name)
	}
	defer func() {
		for name := range running {
			end(name)
		}
	}()
	for {
		names, changed := a.Clusters.Names()
		wanted := map[string]bool{}
		for _, name := range names {
			view, ok, _ := a.Clusters.View(name)
			if problems[name] != view.Problem {
				problems[name] = view.Problem
				a.wake(name)
			}
			if !ok || view.Plan == nil || view.Paused {
				continue
			}
			wanted[name] = true
			if is := running[name]; is != nil && is.plan == view.Plan {
				continue
			}
			if err := a.attend(ctx, running, name, view); err != nil {
				a.Log.Error("cannot manage a cluster's API", "cluster", name, "err", err)
			}
		}
		for name := range running {
			if !wanted[name] {
				end(name)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// attend starts a runner, or tells the one that there is of a new plan.
func (a *clusterAPIs) attend(ctx context.Context, running map[string]*attended, name string, view members.View) error {
	options, err := a.options(ctx, name, view)
	if err != nil {
		return err
	}
	if is := running[name]; is != nil {
		if err := is.runner.Update(options); err != nil {
			return err
		}
		is.plan = view.Plan
		return nil
	}
	runner, err := kubeapi.NewRunner(options)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	is := &attended{plan: view.Plan, runner: runner, stop: stop, done: make(chan struct{})}
	running[name] = is
	a.employ(name, runner)
	go func() { // ends with ctx or by stop; run waits for it
		defer close(is.done)
		for ctx.Err() == nil {
			if err := runner.Run(ctx); err != nil && ctx.Err() == nil {
				a.Log.Error("management of a cluster's API ended; restarting it", "cluster", name, "err", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(30 * time.Second):
			}
		}
	}()
	return nil
}

// serverTTL is how long the server's own certificate for a cluster lasts: no longer than it takes to get another.
const serverTTL = time.Hour

func (a *clusterAPIs) options(ctx context.Context, name string, view members.View) (kubeapi.Options, error) {
	wanted, err := kubeapi.WantedBy(view.Cluster, view.Plan, view.Machines)
	if err != nil {
		return kubeapi.Options{}, err
	}
	own := map[string]bool{}
	for _, n := range view.Plan.Nodes {
		own[n.NodeName] = true
	}
	for _, m := range a.Fleet.List() {
		if host := cmp.Or(m.Spec.Hostname, m.Name); !own[host] {
			wanted.Reserved = append(wanted.Reserved, host)
		}
	}
	return kubeapi.Options{
		Target: kubeapi.Target{
			Cluster: name, Servers: view.APIServers, CA: view.Authority, Dial: a.DialNode,
			Certificate: func() (*tls.Certificate, error) { return ServerCertificate(a.Clusters, name) },
		},
		Wanted:   wanted,
		PodCIDRs: func(node string) ([]netip.Prefix, error) { return a.foreignNetworks(ctx, name, node) },
		Sign: func(template *x509.Certificate, public crypto.PublicKey) ([]byte, error) {
			return a.Clusters.SignTemplate(name, template, public)
		},
		Report: a.report,
		Log:    a.Log.With("cluster", name),
	}, nil
}

// ServerCertificate is the certificate by which this server is known to a cluster's API. It is of the group
// system:masters, which the API server lets do everything without asking anybody: the binding that makes
// kubeadm:cluster-admins administrators is among the first objects that this server itself has to make.
func ServerCertificate(set *members.Set, cluster string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key for cluster %s: %w", cluster, err)
	}
	_, leaf, err := set.ClientCertificate(cluster, "coldrack-server", []string{"system:masters"}, serverTTL, key.Public())
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// foreignNetworks gives a node that is none of our machines networks for its pods, and records them.
func (a *clusterAPIs) foreignNetworks(ctx context.Context, name, node string) ([]netip.Prefix, error) {
	for pause := 20 * time.Millisecond; ; pause *= 2 {
		cluster := &v1alpha1.Cluster{}
		if err := a.Client.Get(ctx, client.ObjectKey{Name: name}, cluster); err != nil {
			return nil, fmt.Errorf("read cluster %s: %w", name, err)
		}
		if !passesForForeign(&cluster.Status, node) && a.isLeaving(node) {
			return nil, fmt.Errorf("its machine left cluster %s and is about to be wiped", name)
		}
		decided, err := members.DecideForeign(cluster, node)
		if err != nil {
			return nil, err
		}
		if !passesForForeign(&cluster.Status, node) {
			next := cluster.DeepCopy()
			next.Status.ForeignNodes = append(next.Status.ForeignNodes, decided)
			err = a.Client.Status().Patch(ctx, next, client.MergeFromWithOptions(cluster, client.MergeFromWithOptimisticLock{}))
		}
		if err == nil {
			var prefixes []netip.Prefix
			for _, text := range decided.PodCIDRs {
				prefix, err := netip.ParsePrefix(text)
				if err != nil {
					return nil, fmt.Errorf("cluster %s: status.foreignNodes[%s]: %w", name, node, err)
				}
				prefixes = append(prefixes, prefix)
			}
			return prefixes, nil
		}
		if !apierrors.IsConflict(err) || pause > time.Second {
			return nil, fmt.Errorf("record networks of node %s of cluster %s: %w", node, name, err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// isLeaving says whether a Node that registers now is of a system that is about to be wiped. It is removed, and must not pass for a foreign
// one before.
func (a *clusterAPIs) isLeaving(node string) bool {
	return slices.ContainsFunc(a.Fleet.List(), func(m *v1alpha1.Machine) bool {
		if cmp.Or(m.Spec.Hostname, m.Name) != node {
			return false
		}
		owner, _ := members.OwnerOf(m, members.Registered{Created: a.Now()}, false)
		return owner == members.OwnerFormer
	})
}

// allClustersOn wakes a reconciler with the names of all clusters when a subnet has changed or a bundle was
// imported.
func allClustersOn(d Deps, catalog Catalog) []source.Source {
	return []source.Source{
		source.Kind(d.Cache, &v1alpha1.Subnet{}, handler.TypedEnqueueRequestsFromMapFunc(func(ctx context.Context, _ *v1alpha1.Subnet) []reconcile.Request {
			return everyCluster(ctx, d)
		})),
		everyClusterWhen(d, catalog.Changed),
	}
}

// everyClusterWhen wakes a reconciler with the names of all clusters each time the channel of changed is closed, and once at the start.
func everyClusterWhen(d Deps, changed func() <-chan struct{}) source.Source {
	return source.Func(func(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		go func() { // ends with ctx, which the controller owns
			for {
				next := changed()
				for _, request := range everyCluster(ctx, d) {
					queue.Add(request)
				}
				select {
				case <-next:
				case <-ctx.Done():
					return
				}
			}
		}()
		return nil
	})
}
