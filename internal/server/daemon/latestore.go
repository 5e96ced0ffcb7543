package daemon

import (
	"context"
	"sync/atomic"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/server/controllers"
	"coldrack.dev/internal/server/machineapi"
)

// lateStore is the store as the machine API knows it, which is served before there is one. It implements machineapi.Store and
// machineapi.Plans.
type lateStore struct{ now atomic.Pointer[openStore] }

type openStore struct {
	store *controllers.Store
	plans *controllers.Plans
}

var (
	_ machineapi.Store = (*lateStore)(nil)
	_ machineapi.Plans = (*lateStore)(nil)
)

// use takes the store of this life.
func (l *lateStore) use(store *controllers.Store, plans *controllers.Plans) {
	l.now.Store(&openStore{store, plans})
}

func (l *lateStore) get() (*openStore, error) {
	if now := l.now.Load(); now != nil {
		return now, nil
	}
	return nil, errStarting
}

// Get implements machineapi.Store.
func (l *lateStore) Get(ctx context.Context, name string) (*v1alpha1.Machine, error) {
	now, err := l.get()
	if err != nil {
		return nil, err
	}
	return now.store.Get(ctx, name)
}

// Create implements machineapi.Store.
func (l *lateStore) Create(ctx context.Context, m *v1alpha1.Machine) (*v1alpha1.Machine, error) {
	now, err := l.get()
	if err != nil {
		return nil, err
	}
	return now.store.Create(ctx, m)
}

// UpdateStatus implements machineapi.Store.
func (l *lateStore) UpdateStatus(ctx context.Context, name string, change func(*v1alpha1.Machine) error) (*v1alpha1.Machine, error) {
	now, err := l.get()
	if err != nil {
		return nil, err
	}
	return now.store.UpdateStatus(ctx, name, change)
}

// Profile implements machineapi.Plans.
func (l *lateStore) Profile(ctx context.Context, name string) (*v1alpha1.Profile, error) {
	now, err := l.get()
	if err != nil {
		return nil, err
	}
	return now.plans.Profile(ctx, name)
}

// Image implements machineapi.Plans.
func (l *lateStore) Image(ctx context.Context, name string) (*v1alpha1.Image, error) {
	now, err := l.get()
	if err != nil {
		return nil, err
	}
	return now.plans.Image(ctx, name)
}

// Subnets implements machineapi.Plans.
func (l *lateStore) Subnets(ctx context.Context) ([]v1alpha1.Subnet, error) {
	now, err := l.get()
	if err != nil {
		return nil, err
	}
	return now.plans.Subnets(ctx)
}
