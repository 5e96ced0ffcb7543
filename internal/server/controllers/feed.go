package controllers

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/machine/identify"
)

// Feed carries every change of the objects that machines' plans depend on into the fleet. The returned
// function waits until all that exists has been read, says so to the fleet, and ends.
func Feed(ctx context.Context, informers cache.Informers, known *fleet.Fleet) (func(context.Context) error, error) {
	machines, err := informers.GetInformer(ctx, &v1alpha1.Machine{}, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watch machines: %w", err)
	}
	registration, err := machines.AddEventHandler(machineHandler(known))
	if err != nil {
		return nil, fmt.Errorf("watch machines: %w", err)
	}
	synced := []toolscache.InformerSynced{registration.HasSynced}
	for _, kind := range []client.Object{&v1alpha1.Profile{}, &v1alpha1.Image{}, &v1alpha1.Subnet{}} {
		informer, err := informers.GetInformer(ctx, kind, cache.BlockUntilSynced(false))
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", kind, err)
		}
		registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { known.Touch() },
			UpdateFunc: func(any, any) { known.Touch() },
			DeleteFunc: func(any) { known.Touch() },
		})
		if err != nil {
			return nil, fmt.Errorf("watch %T: %w", kind, err)
		}
		synced = append(synced, registration.HasSynced)
	}
	return func(ctx context.Context) error {
		if !toolscache.WaitForCacheSync(ctx.Done(), synced...) {
			return nil // told to stop
		}
		known.MarkSynced()
		return nil
	}, nil
}

func machineHandler(known *fleet.Fleet) toolscache.ResourceEventHandler {
	put := func(object any) {
		if m, ok := object.(*v1alpha1.Machine); ok {
			known.Put(m)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    put,
		UpdateFunc: func(_, object any) { put(object) },
		DeleteFunc: func(object any) {
			if tombstone, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
				object = tombstone.Obj
			}
			if m, ok := object.(*v1alpha1.Machine); ok {
				known.Remove(m.Name, string(m.UID))
			}
		},
	}
}

// Bounds for machines that appear by themselves. Anybody on a boot segment can invent MACs, so both the rate and the number of
// machines that nobody has approved are limited.
const (
	newcomersPerSecond = 100
	// silentFor is how long a stranger was not heard of before it gives way. One that waits for its approval asks every minute.
	silentFor = 10 * time.Minute
	// atOnce is how many give way at once, so that not every newcomer looks through all machines.
	atOnce = 500
)

// recordNewcomers creates a Machine for each unknown one that asked for a boot.
func recordNewcomers(ctx context.Context, d Deps) error {
	select {
	case <-d.Fleet.Synced():
	case <-ctx.Done():
		return ctx.Err()
	}
	tick := time.NewTicker(time.Second / newcomersPerSecond)
	defer tick.Stop()
	var complained time.Time
	for {
		list, arrived := d.Fleet.Newcomers()
		places := 0
		if len(list) > 0 {
			places = makePlaces(ctx, d, len(list))
		}
		failed := false
		for _, n := range list {
			if places <= 0 {
				if d.Now().Sub(complained) > time.Minute {
					complained = d.Now()
					d.Log.Warn("too many machines that nobody approved; new ones are not recorded until some are approved, deleted, or silent for a while",
						"silence", silentFor, "mac", n.Identifiers.MACs)
				}
				d.Fleet.ForgetNewcomer(n.Name)
				continue
			}
			if err := record(ctx, d, n); err != nil {
				d.Log.Error("cannot record a new machine", "machine", n.Name, "err", err)
				failed = true
				break
			}
			places--
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		var retry <-chan time.Time
		if failed {
			retry = time.After(2 * time.Second)
			arrived = nil
		}
		select {
		case <-arrived:
		case <-retry:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func record(ctx context.Context, d Deps, n fleet.Newcomer) error {
	m := &v1alpha1.Machine{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Annotations: map[string]string{v1alpha1.AnnotationDiscoveredBy: identify.DiscoveredByBoot}},
		Spec:       v1alpha1.MachineSpec{Identifiers: n.Identifiers},
	}
	err := d.Client.Create(ctx, m)
	switch {
	case err == nil:
		d.Log.Info("new machine recorded", "machine", n.Name, "macs", n.Identifiers.MACs)
	case apierrors.IsAlreadyExists(err): // by another server, or by its enrolment
		if err := d.Client.Get(ctx, client.ObjectKey{Name: n.Name}, m); err != nil {
			return err
		}
	case apierrors.IsInvalid(err):
		// It would never be accepted; the machine may still enrol.
		d.Fleet.ForgetNewcomer(n.Name)
		d.Log.Error("cannot record a new machine", "machine", n.Name, "err", err)
		return nil
	default:
		return err
	}
	d.Fleet.Put(m)
	return nil
}

// makePlaces says how many more strangers may be recorded, and deletes silent ones when there are fewer places than wanted.
func makePlaces(ctx context.Context, d Deps, wanted int) int {
	places := d.Fleet.PlacesForStrangers()
	if places >= wanted {
		return places
	}
	silent := d.Fleet.SilentStrangers(silentFor)
	deleted := 0
	for _, m := range silent[:min(len(silent), max(wanted-places, atOnce))] {
		// The version keeps one that was approved a moment ago.
		err := d.Client.Delete(ctx, m, client.Preconditions{UID: &m.UID, ResourceVersion: &m.ResourceVersion})
		if err != nil && !apierrors.IsNotFound(err) {
			d.Log.Debug("cannot delete a machine that nobody approved", "machine", m.Name, "err", err)
			continue
		}
		d.Fleet.Remove(m.Name, string(m.UID))
		deleted++
	}
	if deleted > 0 {
		d.Log.Warn("machines that nobody approved and that were silent gave way to new ones", "deleted", deleted)
	}
	return places + deleted
}
