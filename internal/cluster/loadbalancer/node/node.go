package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	discoveryclient "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"coldrack.dev/internal/cluster/loadbalancer/segment"
	"coldrack.dev/internal/cluster/loadbalancer/speaker"
)

// The objects that Coldrack puts into the cluster for this (internal/cluster/kube): a ConfigMap with the pools as JSON below
// PoolsKey and RoutersKey, a Secret that is empty until a node puts the speakers' key into it, and a Lease. All have this name.
const (
	Name = "coldrack-loadbalancer"
	// PoolsKey has the pools that are answered for on the segment, RoutersKey those that routers are told of, with the routers.
	PoolsKey   = "pools.json"
	RoutersKey = "bgp.json"
	secretKey  = "key"
	// PasswordsName is the Secret with routers' passwords, which people make.
	PasswordsName = Name + "-bgp"
)

// Class is the loadBalancerClass of Services that are ours. Those without a class are, too.
const Class = "coldrack.dev/loadbalancer"

const (
	// LabelExclude keeps a node from announcing, as everywhere in Kubernetes.
	LabelExclude      = corev1.LabelNodeExcludeBalancers
	labelControlPlane = "node-role.kubernetes.io/control-plane"
)

const (
	// steady is how long nothing may be wrong with a node before it is Ready: its proxy learns of Services meanwhile.
	steady = 10 * time.Second
	// maxLeft bounds what a node that does not allocate remembers.
	maxLeft = 1000
	// again is when something is tried again that the API refused.
	again = 2 * time.Second
)

// Options of Run.
type Options struct {
	Log  *slog.Logger
	API  *rest.Config
	Node string
	// Namespace of our objects.
	Namespace string
	// Nodes selects by labels those that announce.
	Nodes string
	// Healthy says whether the node's service proxy works; nil: always.
	Healthy func(context.Context) error
	// Port of the speakers; 0 is the usual one.
	Port uint16
	// Steady overrides how long nothing may be wrong before a node is Ready; 0 is the usual time.
	Steady time.Duration
}

// agent is a node at work.
type agent struct {
	Options
	core         *coreclient.CoreV1Client
	discovery    *discoveryclient.DiscoveryV1Client
	coordination *coordinationclient.CoordinationV1Client
	services     cache.SharedIndexInformer
	nodes        cache.SharedIndexInformer
	slices       cache.SharedIndexInformer
	config       cache.SharedIndexInformer
	speaker      *speaker.Speaker
	routers      *routers
	// changed and wanting are of capacity one: something is different for the speaker; for the allocation.
	changed, wanting chan struct{}
	// left are Services that are no longer of type LoadBalancer, or gone.
	mu   sync.Mutex
	left map[string]bool
}

// Run takes part until ctx ends.
func Run(ctx context.Context, o Options) error {
	a := &agent{Options: o, changed: make(chan struct{}, 1), wanting: make(chan struct{}, 1), left: map[string]bool{}}
	if a.Port == 0 {
		a.Port = speaker.Port
	}
	if a.Steady == 0 {
		a.Steady = steady
	}
	var errs [3]error
	a.core, errs[0] = coreclient.NewForConfig(o.API)
	a.discovery, errs[1] = discoveryclient.NewForConfig(o.API)
	a.coordination, errs[2] = coordinationclient.NewForConfig(o.API)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	var key []byte
	var home []netip.Addr
	if err := a.until(ctx, "read the speakers' key", func() (err error) { key, err = a.key(ctx); return err }); err != nil {
		return nil
	}
	if err := a.until(ctx, "read this node", func() (err error) { home, err = a.home(ctx); return err }); err != nil {
		return nil
	}
	answerer := segment.New(o.Log, home, segment.UsualPace())
	a.routers = newRouters(a, home)
	defer a.routers.close()
	var err error
	a.speaker, err = speaker.New(speaker.Options{Log: o.Log, Node: o.Node, Listen: netip.AddrPortFrom(home[0], a.Port), Key: key,
		Pace: speaker.UsualPace(), Answerer: answerer, Router: a.routers.announcer})
	if err != nil {
		return err
	}
	a.watch()

	// The answerer ends after the speaker, who hands its addresses over.
	answering, silence := context.WithCancel(context.WithoutCancel(ctx))
	defer silence()
	var all, last sync.WaitGroup
	last.Go(func() { _ = answerer.Run(answering) })
	for _, informer := range []cache.SharedIndexInformer{a.services, a.nodes, a.slices, a.config} {
		all.Go(func() { informer.RunWithContext(ctx) })
	}
	all.Go(func() { _ = a.speaker.Run(ctx) })
	if cache.WaitForCacheSync(ctx.Done(), a.services.HasSynced, a.nodes.HasSynced, a.slices.HasSynced, a.config.HasSynced) {
		a.Log.Info("cluster known", "services", len(a.services.GetStore().ListKeys()), "nodes", len(a.nodes.GetStore().ListKeys()))
		all.Go(func() { a.follow(ctx) })
		all.Go(func() { a.allocate(ctx) })
	}
	all.Wait()
	silence()
	last.Wait()
	return nil
}

// until tries until it succeeds. It fails only when ctx ends.
func (a *agent) until(ctx context.Context, what string, try func() error) error {
	for failures := 0; ; failures++ {
		err := try()
		if err == nil {
			return nil
		}
		if failures&(failures-1) == 0 && ctx.Err() == nil { // the first, and then ever fewer
			a.Log.Warn("cannot "+what+"; trying again", "err", err, "again", again)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(again):
		}
	}
}

// key is what speakers know each other by. Who comes first makes it.
func (a *agent) key(ctx context.Context) ([]byte, error) {
	secret, err := a.core.Secrets(a.Namespace).Get(ctx, Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if len(secret.Data[secretKey]) == 0 {
		key := make([]byte, 32)
		rand.Read(key)
		secret.Data = map[string][]byte{secretKey: key}
		if secret, err = a.core.Secrets(a.Namespace).Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
			return nil, err // another one was faster, for example
		}
	}
	return secret.Data[secretKey], nil
}

// home are the node's own addresses, the primary one first.
func (a *agent) home(ctx context.Context) ([]netip.Addr, error) {
	n, err := a.core.Nodes().Get(ctx, a.Node, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if addresses := addressesOf(n); len(addresses) > 0 {
		return addresses, nil
	}
	return nil, fmt.Errorf("node %s has no InternalIP yet", a.Node)
}

func addressesOf(n *corev1.Node) (addresses []netip.Addr) {
	for _, address := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(address.Address); err == nil && address.Type == corev1.NodeInternalIP {
			addresses = append(addresses, ip)
		}
	}
	return addresses
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// informer follows objects, and pokes when one changes.
func (a *agent) informer(client cache.Getter, resource, namespace string, example runtime.Object, slim cache.TransformFunc, options func(*metav1.ListOptions), wake ...chan struct{}) cache.SharedIndexInformer {
	i := cache.NewSharedIndexInformer(cache.NewFilteredListWatchFromClient(client, resource, namespace, options), example, 0, cache.Indexers{})
	_ = i.SetTransform(slim) // fails only after the start
	all := func(any) {
		for _, c := range wake {
			poke(c)
		}
	}
	_, _ = i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: all, UpdateFunc: func(_, o any) { all(o) }, DeleteFunc: all})
	return i
}

func only(field, value string) func(*metav1.ListOptions) {
	return func(o *metav1.ListOptions) { o.FieldSelector = fields.OneTermEqualSelector(field, value).String() }
}

// watch prepares what is followed. Little of each object is kept: every node of a large cluster has all of it.
func (a *agent) watch() {
	core := a.core.RESTClient()
	a.services = a.informer(core, "services", metav1.NamespaceAll, &corev1.Service{}, slimService, only("spec.type", string(corev1.ServiceTypeLoadBalancer)), a.changed, a.wanting)
	_, _ = a.services.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(o any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o); err == nil {
			a.mu.Lock()
			if len(a.left) < maxLeft {
				a.left[key] = true
			}
			a.mu.Unlock()
			poke(a.wanting)
		}
	}})
	a.nodes = a.informer(core, "nodes", metav1.NamespaceAll, &corev1.Node{}, slimNode, func(o *metav1.ListOptions) { o.LabelSelector = a.Nodes }, a.changed)
	a.config = a.informer(core, "configmaps", a.Namespace, &corev1.ConfigMap{}, nothingSlim, only("metadata.name", Name), a.changed, a.wanting)
	a.slices = a.informer(a.discovery.RESTClient(), "endpointslices", metav1.NamespaceAll, &discoveryv1.EndpointSlice{}, slimSlice, func(*metav1.ListOptions) {}, a.changed)
}

func nothingSlim(o any) (any, error) { return o, nil }

func slimService(o any) (any, error) {
	if s, ok := o.(*corev1.Service); ok {
		s.ManagedFields = nil
	}
	return o, nil
}

func slimNode(o any) (any, error) {
	if n, ok := o.(*corev1.Node); ok {
		return &corev1.Node{
			TypeMeta: n.TypeMeta, ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: n.Labels, DeletionTimestamp: n.DeletionTimestamp},
			Spec: corev1.NodeSpec{Unschedulable: n.Spec.Unschedulable}, Status: corev1.NodeStatus{Addresses: n.Status.Addresses},
		}, nil
	}
	return o, nil
}

func slimSlice(o any) (any, error) {
	s, ok := o.(*discoveryv1.EndpointSlice)
	if !ok {
		return o, nil
	}
	slim := &discoveryv1.EndpointSlice{TypeMeta: s.TypeMeta, ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion,
		Labels: map[string]string{discoveryv1.LabelServiceName: s.Labels[discoveryv1.LabelServiceName]}}, AddressType: s.AddressType}
	for _, e := range s.Endpoints {
		if e.NodeName != nil && (e.Conditions.Ready == nil || *e.Conditions.Ready) &&
			!slices.ContainsFunc(slim.Endpoints, func(other discoveryv1.Endpoint) bool { return *other.NodeName == *e.NodeName }) {
			slim.Endpoints = append(slim.Endpoints, discoveryv1.Endpoint{NodeName: e.NodeName})
		}
	}
	return slim, nil
}

func listed[T any](i cache.SharedIndexInformer) []T {
	var all []T
	for _, o := range i.GetStore().List() {
		if t, ok := o.(T); ok {
			all = append(all, t)
		}
	}
	return all
}
