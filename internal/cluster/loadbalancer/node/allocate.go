package node

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"

	"coldrack.dev/internal/cluster/loadbalancer"
)

// What a Service asks for, as annotations.
const (
	// AnnotationAddresses are one address, or two of different families, separated by a comma.
	AnnotationAddresses = "coldrack.dev/loadbalancer-addresses"
	// AnnotationPool is the pool that its addresses shall be of.
	AnnotationPool = "coldrack.dev/loadbalancer-pool"
)

// allocate gives Services addresses whenever this node is the one to do it, until ctx ends.
func (a *agent) allocate(ctx context.Context) {
	lock := &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Namespace: a.Namespace, Name: Name}, Client: a.coordination,
		LockConfig: resourcelock.ResourceLockConfig{Identity: a.Node}}
	for ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second, ReleaseOnCancel: true, Name: Name,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) { a.lead(ctx) },
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			a.Log.Error("this node cannot allocate addresses", "err", err)
			return
		}
		elector.Run(ctx)
	}
}

// allocator is the work of the node that allocates.
type allocator struct {
	*agent
	events record.EventRecorder
	// written is what was written and is not read back yet.
	written map[string]written
	// told is the problem of each Service that its owner was told of.
	told map[string]loadbalancer.Problem
}

type written struct {
	before    string // resource version
	addresses []netip.Addr
}

func (a *agent) lead(ctx context.Context) {
	a.Log.Info("this node allocates the addresses of Services")
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&coreclient.EventSinkImpl{Interface: a.core.Events("")})
	w := &allocator{agent: a, events: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: Name}), written: map[string]written{}, told: map[string]loadbalancer.Problem{}}
	for {
		if err := w.pass(ctx); err != nil && ctx.Err() == nil {
			a.Log.Warn("cannot give all Services their addresses; trying again", "err", err, "again", again)
			time.AfterFunc(again, func() { poke(a.wanting) })
		}
		select {
		case <-ctx.Done():
			return
		case <-a.wanting:
		}
	}
}

// pass makes all Services have what they are to have. It returns the first error, and has done the rest.
func (w *allocator) pass(ctx context.Context) error {
	pools, _, err := w.pools()
	if err != nil {
		return err
	}
	var wanting []loadbalancer.Service
	byKey := map[string]*corev1.Service{}
	for _, s := range listed[*corev1.Service](w.services) {
		if !ours(s) || s.DeletionTimestamp != nil {
			continue
		}
		request := requestOf(s)
		if last, ok := w.written[request.Key]; ok && last.before == s.ResourceVersion {
			request.Current = last.addresses
		} else {
			delete(w.written, request.Key)
		}
		byKey[request.Key] = s
		wanting = append(wanting, request)
	}
	maps.DeleteFunc(w.told, func(key string, _ loadbalancer.Problem) bool { return byKey[key] == nil })
	grants := loadbalancer.Allocate(pools, wanting)
	var first error
	for _, request := range wanting {
		if err := w.give(ctx, byKey[request.Key], request, grants[request.Key]); err != nil && first == nil {
			first = fmt.Errorf("service %s: %w", request.Key, err)
		}
	}
	if err := w.clear(ctx); err != nil && first == nil {
		first = err
	}
	return first
}

// give writes a Service's addresses into its status, and tells its owner.
func (w *allocator) give(ctx context.Context, s *corev1.Service, request loadbalancer.Service, grant loadbalancer.Grant) error {
	if p := grant.Problem; p == nil {
		delete(w.told, request.Key)
	} else if w.told[request.Key] != *p {
		w.told[request.Key] = *p
		w.Log.Warn("a Service does not get the address that it wants", "service", request.Key, "reason", p.Reason, "message", p.Message)
		w.events.Event(s, corev1.EventTypeWarning, string(p.Reason), p.Message)
	}
	if slices.Equal(grant.Addresses, request.Current) {
		return nil
	}
	if err := w.write(ctx, s, grant.Addresses); err != nil {
		return err
	}
	w.written[request.Key] = written{s.ResourceVersion, grant.Addresses}
	if len(grant.Addresses) > 0 {
		w.events.Eventf(s, corev1.EventTypeNormal, "AddressAssigned", "its address is %s", join(grant.Addresses))
	} else {
		w.events.Event(s, corev1.EventTypeNormal, "AddressWithdrawn", "it has no address any more")
	}
	w.Log.Info("addresses of a Service changed", "service", request.Key, "addresses", join(grant.Addresses))
	return nil
}

func join(addresses []netip.Addr) string {
	var texts []string
	for _, a := range addresses {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ", ")
}

// write replaces the addresses in a Service's status, unless the Service has changed since it was read.
func (w *allocator) write(ctx context.Context, s *corev1.Service, addresses []netip.Addr) error {
	var status corev1.LoadBalancerStatus
	mode := corev1.LoadBalancerIPModeVIP
	for _, address := range addresses {
		status.Ingress = append(status.Ingress, corev1.LoadBalancerIngress{IP: address.String(), IPMode: &mode})
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": s.ResourceVersion},
		"status":   map[string]any{"loadBalancer": map[string]any{"ingress": status.Ingress}},
	})
	if err != nil {
		return err
	}
	_, err = w.core.Services(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: Name}, "status")
	return err
}

// clear takes the addresses off Services that are of another type by now.
func (w *allocator) clear(ctx context.Context) error {
	w.mu.Lock()
	left := slices.Collect(maps.Keys(w.left))
	w.mu.Unlock()
	for _, key := range left {
		namespace, name, err := cache.SplitMetaNamespaceKey(key)
		if err != nil {
			continue
		}
		s, err := w.core.Services(namespace).Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return fmt.Errorf("service %s: %w", key, err)
		case s.Spec.Type != corev1.ServiceTypeLoadBalancer && len(s.Status.LoadBalancer.Ingress) > 0:
			if err := w.write(ctx, s, nil); err != nil {
				return fmt.Errorf("service %s: %w", key, err)
			}
		}
		w.mu.Lock()
		delete(w.left, key)
		w.mu.Unlock()
	}
	return nil
}

// requestOf reads what a Service wants.
func requestOf(s *corev1.Service) loadbalancer.Service {
	r := loadbalancer.Service{
		Key: s.Namespace + "/" + s.Name, Created: s.CreationTimestamp.Time, Current: addressesOfService(s), Pool: s.Annotations[AnnotationPool],
		Either: s.Spec.IPFamilyPolicy != nil && *s.Spec.IPFamilyPolicy == corev1.IPFamilyPolicyPreferDualStack,
	}
	for _, family := range s.Spec.IPFamilies {
		r.Families = append(r.Families, loadbalancer.Family(family))
	}
	source, text := "annotation "+AnnotationAddresses, s.Annotations[AnnotationAddresses]
	if text == "" {
		source, text = "spec.loadBalancerIP", s.Spec.LoadBalancerIP //nolint:staticcheck // deprecated, and still how many ask
	}
	if text == "" {
		return r
	}
	for part := range strings.SplitSeq(text, ",") {
		address, err := netip.ParseAddr(strings.TrimSpace(part))
		switch {
		case err != nil:
			r.Problem = fmt.Sprintf("%s: %q is no IP address", source, strings.TrimSpace(part))
			return r
		case slices.ContainsFunc(r.Requested, func(other netip.Addr) bool { return other.Is4() == address.Is4() }):
			r.Problem = fmt.Sprintf("%s: %s is the second address of its family", source, address)
			return r
		}
		r.Requested = append(r.Requested, address)
	}
	// One address of two families: the other family has any.
	return r
}
