// Package controllers holds the reconcilers of the coldrack.dev kinds, one file each, and the small
// adapters by which the rest of the server reaches the API that holds them.
//
// Some parts run in every server (Feed, Serve): they carry objects into memory and observations out of
// it. The reconcilers run in one server at a time (Lead). Each section of a status has one writer:
//
//	Machine  phase, message, steps, boots, lease, node, conditions,  machine.go
//	         kubernetes
//	         acceptedHardware
//	         inventory, hardware, identity, installed, outcome of     the machine API, through Store
//	         an intent
//	         acknowledgement of an intent                             intent.go and the machine API
//	         spec.approved, hostname, network, intent                 enrollment.go, for machines that ask for it
//	         the annotation of what was chosen at the console         menu.go
//	Subnet   conditions                                               subnet.go
//	Image, Bundle                                                     catalog.go
//	EnrollmentPolicy status                                           enrollment.go
//	Machine  power                                                    package power
//	Machine  spec.profile, where it is empty and a group has one      cluster.go
//	Cluster  status but the next four; MachineGroup status             cluster.go
//	Cluster  status.work, history, failure, backupWanted; of its       operations.go
//	         nodes hand, the versions, the etcd member, and their end
//	Cluster  status.backup, conditions BackedUp and BackupCopied       backup.go
//	Cluster  status.restore                                            restore.go
//	Cluster  status.foreignNodes                                      clusterapi.go
//	Addon    status                                                   addons.go
//	RebootGroup status                                                reboots.go
//	Unit     status                                                   units.go
//
// status.history has a second writer: cluster.go adds what became of add-ons. Both write only what they have read last.
//
// Nothing here assumes that the API is in this process.
package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/liblog"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/rebootlock"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/machine/units"
)

// SubnetSink serves DHCP.
type SubnetSink interface {
	// SetSubnets gives it the IP plans that are valid, all of them, whenever one changes.
	SetSubnets(subnets []v1alpha1.Subnet)
	// Subnet says what DHCP does with a Subnet; false: it was not given one of this name.
	Subnet(name string) (SubnetReport, bool)
	// Changed is closed when an answer of Subnet may have become another.
	Changed() <-chan struct{}
}

// SubnetReport is what DHCP does with a Subnet.
type SubnetReport struct {
	// Generation of the Subnet that the report is about.
	Generation int64
	// Served: machines in the subnet are answered. A Subnet for which DHCP is off is neither served nor refused.
	Served bool
	// Refused is why machines in the subnet get no answer although they should, for a person.
	Refused string
	// Conflicts are reserved addresses that somebody else uses, for a person. Empty: none is known.
	Conflicts string
	// ARPProxy is who answers for addresses of others, for a person. Empty: nobody is known to.
	ARPProxy string
	// OtherServers are DHCP servers beside ours, where ours gives the addresses, for a person. Empty: none was heard lately.
	OtherServers string
	// ProxyIgnored is whose firmware does not do as our proxy tells it, for a person. Empty: nobody's is known to.
	ProxyIgnored string
}

// OwnAddresses are this server's addresses where machines boot.
type OwnAddresses interface {
	// All of them, now.
	All() []netip.Addr
	// Changed is closed when All may be another, or what nodes are told of them.
	Changed() <-chan struct{}
}

// Catalog is what the imported bundles contain.
type Catalog interface {
	// Images and Bundles as objects: name and spec are used.
	Images() []v1alpha1.Image
	Bundles() []v1alpha1.Bundle
	// Missing says what of an image's content is not in the store, or "".
	Missing(image *v1alpha1.Image) string
	// KubernetesVersions that nodes can be given.
	KubernetesVersions() []string
	// MissingImages are those that no bundle has, and that no registry of the cluster may have.
	MissingImages(cluster *v1alpha1.Cluster, images []string) []string
	// Changed is closed when any answer may have become another.
	Changed() <-chan struct{}
}

// Power switches machines by their BMCs.
type Power interface {
	// Run reads the power of all machines into their status, slowly, until ctx ends.
	Run(ctx context.Context) error
	// PowerCycle cuts a machine's power and gives it back, and returns when the machine is on, or with an error that says whether
	// it may have happened. It waits while another visitor talks to the BMC.
	PowerCycle(ctx context.Context, machine string) error
}

// Deps are what the parts of this package need.
type Deps struct {
	// Client reads from the API itself and writes to it.
	Client client.Client
	// Cache has been started by the caller.
	Cache   cache.Cache
	Fleet   *fleet.Fleet
	Log     *slog.Logger
	Catalog Catalog
	// Subnets may be nil where no DHCP is served.
	Subnets SubnetSink
	// Menus may be nil where no boots are answered.
	Menus MenuSink
	// Clusters holds what nodes are handed out. nil: an own one, which nobody is answered from.
	Clusters *members.Set
	// Reboots holds the locks of RebootGroups. nil: an own one, which nobody is answered from.
	Reboots *rebootlock.Set
	// DialNode connects to a node; nil is an ordinary net.Dialer.
	DialNode func(ctx context.Context, network, address string) (net.Conn, error)
	// Power may be nil where no BMC is reached.
	Power Power
	// Backups may be nil where none are taken.
	Backups BackupsAndRestores
	// Units is where machines ask for their units; nil: an own one, which nobody asks.
	Units *units.Desk
	// Own are this server's addresses, which no machine may get. nil: none.
	Own OwnAddresses
	// LostAfter is how long a node may be silent before it counts as lost. Default 90 s, three heartbeats.
	LostAfter time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// reserved are addresses that no machine may get.
func (d Deps) reserved() []netip.Addr {
	if d.Own == nil {
		return nil
	}
	return d.Own.All()
}

func (d Deps) withDefaults() Deps {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.LostAfter == 0 {
		d.LostAfter = 90 * time.Second
	}
	if d.Clusters == nil {
		d.Clusters = members.New(members.Options{Log: d.Log, Now: d.Now})
	}
	if d.Reboots == nil {
		d.Reboots = &rebootlock.Set{}
	}
	if d.Units == nil {
		d.Units = units.NewDesk()
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return d
}

// Serve runs what every server does: it records machines that nobody knows, and tells DHCP the IP plans.
// It returns when ctx ends or a part fails for good.
func Serve(ctx context.Context, d Deps) error {
	d = d.withDefaults()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return recordNewcomers(ctx, d) })
	if d.Subnets != nil {
		group.Go(func() error { return run(ctx, d, subnetPlans(d)) })
	}
	if d.Menus != nil {
		group.Go(func() error { return run(ctx, d, menuPlans(d)) })
		group.Go(func() error { return recordChoices(ctx, d) })
	}
	group.Go(func() error { return run(ctx, d, clusterFeed(d)) })
	group.Go(func() error { return run(ctx, d, rebootFeed(d)) })
	group.Go(func() error { return run(ctx, d, unitFeed(d)) })
	return ended(ctx, group.Wait())
}

// Lead runs the reconcilers until ctx ends. Only one server leads at a time.
func Lead(ctx context.Context, d Deps) error {
	d = d.withDefaults()
	group, ctx := errgroup.WithContext(ctx)
	apis := newClusterAPIs(d)
	group.Go(func() error { return apis.run(ctx) })
	if d.Power != nil {
		group.Go(func() error { return d.Power.Run(ctx) })
	}
	parts := []reconciler{
		machineReconciler(d), intentReconciler(d), enrollmentReconciler(d), subnetReconciler(d), catalogReconciler(d), clusterReconciler(d, apis), operationReconciler(d, apis), addonReconciler(d, apis), rebootReconciler(d), unitReconciler(d),
	}
	if d.Backups != nil {
		parts = append(parts, backupReconciler(d), restoreReconciler(d, apis))
	}
	for _, part := range parts {
		group.Go(func() error { return run(ctx, d, part) })
	}
	return ended(ctx, group.Wait())
}

// ended drops the error by which a part says that it was told to stop.
func ended(ctx context.Context, err error) error {
	if errors.Is(err, context.Canceled) && context.Cause(ctx) != nil {
		return nil
	}
	return err
}

// current returns the newest version of a Machine that this server knows: what the cache delivered, or what
// it has written itself since. The informer tells this package and the fleet in no particular order, so the
// fleet alone may be behind what woke a reconciler.
func (d Deps) current(ctx context.Context, name string) (*v1alpha1.Machine, bool, error) {
	cached := &v1alpha1.Machine{}
	switch err := d.Cache.Get(ctx, client.ObjectKey{Name: name}, cached); {
	case err == nil:
		d.Fleet.Put(cached)
	case !apierrors.IsNotFound(err):
		return nil, false, fmt.Errorf("read machine %s: %w", name, err)
	}
	m, ok := d.Fleet.Get(name)
	return m, ok, nil
}

// reconciler is one controller: what wakes it and what it does. Keys are names of objects, or "" where it
// looks at everything at once.
type reconciler struct {
	name    string
	workers int
	watches []source.Source
	do      func(ctx context.Context, name string) (time.Duration, error)
}

// run builds a controller and runs it. It is not managed by a controller-runtime Manager, because a
// reconciler must be able to start again when this server leads again.
func run(ctx context.Context, d Deps, r reconciler) error {
	skip := true
	c, err := controller.NewUnmanaged(r.name, controller.Options{
		SkipNameValidation:      &skip,
		MaxConcurrentReconciles: max(r.workers, 1),
		CacheSyncTimeout:        time.Minute,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](50*time.Millisecond, 30*time.Second),
		Logger:                  liblog.Kubernetes(d.Log),
		Reconciler: reconcile.Func(func(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
			again, err := r.do(ctx, request.Name)
			return reconcile.Result{RequeueAfter: again}, err
		}),
	})
	if err != nil {
		return fmt.Errorf("controller %s: %w", r.name, err)
	}
	for _, watch := range r.watches {
		if err := c.Watch(watch); err != nil {
			return fmt.Errorf("controller %s: %w", r.name, err)
		}
	}
	if err := c.Start(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("controller %s: %w", r.name, err)
	}
	return ctx.Err()
}

// each wakes a reconciler with the name of the object that changed.
func each[T client.Object](d Deps, kind T) source.Source {
	return source.Kind(d.Cache, kind, handler.TypedEnqueueRequestsFromMapFunc(func(_ context.Context, object T) []reconcile.Request {
		return requests(object.GetName())
	}))
}

// whole wakes a reconciler that looks at everything at once.
func whole[T client.Object](d Deps, kind T) source.Source {
	return source.Kind(d.Cache, kind, handler.TypedEnqueueRequestsFromMapFunc(func(context.Context, T) []reconcile.Request {
		return requests(everything)
	}))
}

// whenever wakes a reconciler that looks at everything at once each time the channel of changed is closed, and once
// at the start.
func whenever(changed func() <-chan struct{}) source.Source {
	return source.Func(func(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		go func() { // ends with ctx, which the controller owns
			for {
				next := changed()
				queue.Add(requests(everything)[0])
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

// everything is the key of reconcilers that look at all objects at once. No object can have it as its name.
const everything = "*"

func requests(names ...string) []reconcile.Request {
	list := make([]reconcile.Request, len(names))
	for i, name := range names {
		list[i] = reconcile.Request{NamespacedName: types.NamespacedName{Name: name}}
	}
	return list
}
