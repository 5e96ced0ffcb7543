package controllers

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
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
	"coldrack.dev/internal/machine/enroll"
)

// enrollment gives discovered machines what they need to be installed: approval and a name, where a policy
// says so, an address from their subnet's static range, and the intent to install.
//
// It looks at machines through the fleet, which holds its own last writes, and counts what is being written as given; so no
// address, name or number is given out twice.
type enrollment struct {
	Deps

	mu       sync.Mutex                   // one decision at a time
	underway map[string]*v1alpha1.Machine // what is being written, by name
}

func enrollmentReconciler(d Deps) reconciler {
	r := &enrollment{Deps: d, underway: map[string]*v1alpha1.Machine{}}
	return reconciler{
		name: "enrollment", workers: 4, do: r.reconcile,
		watches: []source.Source{
			each(d, &v1alpha1.Machine{}), r.all(&v1alpha1.EnrollmentPolicy{}), r.all(&v1alpha1.Subnet{}), r.all(&v1alpha1.MachineGroup{}),
			source.Kind(d.Cache, &v1alpha1.Machine{}, recount, standingChanged()), r.restored(),
		},
	}
}

// all wakes the reconciler for every machine, and for the policies' own status, when a rule changes. A status is no
// rule: each machine that is enrolled changes its policy's, and would have all others looked at again.
func (r *enrollment) all(kind client.Object) source.Source {
	return source.Kind(r.Cache, kind, handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return requests(append(r.uninstalled(), everything)...)
	}), predicate.GenerationChangedPredicate{})
}

// uninstalled are the names of all machines that enrolment may concern.
func (r *enrollment) uninstalled() (names []string) {
	for _, m := range r.Fleet.List() {
		if m.Status.Installed == nil {
			names = append(names, m.Name)
		}
	}
	return names
}

// restored wakes the reconciler for every machine when a person has confirmed that the store was restored.
func (r *enrollment) restored() source.Source {
	return source.Func(func(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		go func() { // ends with ctx, which the controller owns
			for {
				_, changed := r.Fleet.RestoredAt()
				select {
				case <-changed:
				case <-ctx.Done():
					return
				}
				for _, request := range requests(r.uninstalled()...) {
					queue.Add(request)
				}
			}
		}()
		return nil
	})
}

// countPause gathers what happens to many machines at once into one count, which looks at all of them.
const countPause = time.Second

// recount wakes the reconciler for the policies' own status, soon.
var recount = handler.TypedFuncs[*v1alpha1.Machine, reconcile.Request]{
	CreateFunc: func(_ context.Context, _ event.TypedCreateEvent[*v1alpha1.Machine], queue countQueue) {
		recountSoon(queue)
	},
	DeleteFunc: func(_ context.Context, _ event.TypedDeleteEvent[*v1alpha1.Machine], queue countQueue) {
		recountSoon(queue)
	},
	UpdateFunc: func(_ context.Context, _ event.TypedUpdateEvent[*v1alpha1.Machine], queue countQueue) {
		recountSoon(queue)
	},
}

type countQueue = workqueue.TypedRateLimitingInterface[reconcile.Request]

func recountSoon(queue countQueue) { queue.AddAfter(requests(everything)[0], countPause) }

// standingChanged lets only those changes pass that alter how policies fare.
func standingChanged() predicate.TypedPredicate[*v1alpha1.Machine] {
	return predicate.TypedFuncs[*v1alpha1.Machine]{
		CreateFunc: func(e event.TypedCreateEvent[*v1alpha1.Machine]) bool { return enroll.Counts(e.Object) },
		DeleteFunc: func(e event.TypedDeleteEvent[*v1alpha1.Machine]) bool { return enroll.Counts(e.Object) },
		UpdateFunc: func(e event.TypedUpdateEvent[*v1alpha1.Machine]) bool {
			return enroll.StandingChanged(e.ObjectOld, e.ObjectNew)
		},
	}
}

func (r *enrollment) reconcile(ctx context.Context, name string) (time.Duration, error) {
	policies := &v1alpha1.EnrollmentPolicyList{}
	if err := r.Cache.List(ctx, policies); err != nil {
		return 0, fmt.Errorf("list enrollment policies: %w", err)
	}
	subnets, err := NewPlans(r.Cache).Subnets(ctx)
	if err != nil {
		return 0, err
	}
	subnets = validSubnets(subnets)
	groups := &v1alpha1.MachineGroupList{}
	if err := r.Cache.List(ctx, groups); err != nil {
		return 0, fmt.Errorf("list machine groups: %w", err)
	}
	if name == everything {
		return 0, r.count(ctx, policies.Items, subnets)
	}
	defer r.Fleet.Write(name)()
	defer r.settled(name)
	m, ok, err := r.current(ctx, name)
	for range maxAttempts {
		if err != nil || !ok || !enroll.Concerns(m) {
			return 0, err
		}
		next, held := r.decide(m, policies.Items, subnets, groups.Items)
		if next == nil {
			r.Fleet.Held(name, held)
			return 0, nil
		}
		err = r.Client.Patch(ctx, next, client.MergeFromWithOptions(m, client.MergeFromWithOptimisticLock{}))
		switch {
		case apierrors.IsNotFound(err):
			return 0, nil
		case apierrors.IsConflict(err):
			// A machine that is being discovered has news of itself all the time. Whatever it was to be given is admitted, and
			// until it has it nobody else gets it; so the decision is made again at once, from what is in the store now.
			m, ok, err = r.stored(ctx, name)
			continue
		case apierrors.IsInvalid(err) || apierrors.IsForbidden(err):
			r.Fleet.Held(name, fmt.Sprintf("cannot be enrolled: %v", err))
			return 5 * time.Second, nil
		case err != nil:
			return 0, fmt.Errorf("enrol machine %s: %w", name, err)
		}
		r.Fleet.Held(name, held)
		r.Fleet.Put(next)
		var network v1alpha1.MachineNetwork
		if next.Spec.Network != nil {
			network = *next.Spec.Network
		}
		r.Log.Info("enrolled", "machine", name, "policy", next.Annotations[v1alpha1.AnnotationEnrolledBy],
			"approved", next.Spec.Approved, "hostname", next.Spec.Hostname, "subnet", network.Subnet, "address", network.Address, "intent", next.Spec.Intent != nil)
		return 0, nil
	}
	return 100 * time.Millisecond, nil
}

// decide is enroll.Decide in the world as it will be once all that was decided is written. What is decided counts until settled.
func (r *enrollment) decide(m *v1alpha1.Machine, policies []v1alpha1.EnrollmentPolicy, subnets []v1alpha1.Subnet, groups []v1alpha1.MachineGroup) (next *v1alpha1.Machine, held string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	machines := r.Fleet.List()
	for i := range machines {
		if given := r.underway[machines[i].Name]; given != nil {
			machines[i] = given
		}
	}
	restoredAt, _ := r.Fleet.RestoredAt()
	next, held = enroll.Decide(m, enroll.World{Machines: machines, Policies: policies, Subnets: subnets, Groups: groups, Reserved: r.reserved(), NewID: uuid.NewString, Now: r.Now(), RestoredAt: restoredAt})
	if next != nil {
		r.underway[m.Name] = next.DeepCopy() // the client reads its answer into next
	}
	return next, held
}

// settled says that what was decided for a machine is in the fleet, or will not be.
func (r *enrollment) settled(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.underway, name)
}

// stored is the machine as it is in the store, whether or not the news of it has come.
func (r *enrollment) stored(ctx context.Context, name string) (*v1alpha1.Machine, bool, error) {
	m := &v1alpha1.Machine{}
	err := r.Client.Get(ctx, client.ObjectKey{Name: name}, m)
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read machine %s: %w", name, err)
	}
	r.Fleet.Put(m)
	return m, true, nil
}

// count writes into each policy's status how it fares.
func (r *enrollment) count(ctx context.Context, policies []v1alpha1.EnrollmentPolicy, subnets []v1alpha1.Subnet) error {
	standings := enroll.Standings(enroll.World{Machines: r.Fleet.List(), Policies: policies, Subnets: subnets})
	for i := range policies {
		next := policies[i].DeepCopy()
		standings[next.Name].Into(next, r.Now())
		if equality.Semantic.DeepEqual(policies[i].Status, next.Status) {
			continue
		}
		if err := r.Client.Status().Patch(ctx, next, client.MergeFrom(&policies[i])); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("write status of enrollment policy %s: %w", next.Name, err)
		}
	}
	return nil
}
