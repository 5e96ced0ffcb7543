package controllers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/fleet"
)

// Store reads and writes Machines for the machine API, past any cache.
type Store struct {
	client client.Client
	fleet  *fleet.Fleet
}

// NewStore returns a Store over a client that reads from the API itself. What the fleet has in memory need not be read first,
// since a write that is based on an old version fails.
func NewStore(direct client.Client, known *fleet.Fleet) *Store {
	return &Store{direct, known}
}

// Get returns a Machine as it is in the store now.
func (s *Store) Get(ctx context.Context, name string) (*v1alpha1.Machine, error) {
	m := &v1alpha1.Machine{}
	if err := s.client.Get(ctx, client.ObjectKey{Name: name}, m); err != nil {
		return nil, err
	}
	return m, nil
}

// Create records a new Machine.
func (s *Store) Create(ctx context.Context, m *v1alpha1.Machine) (*v1alpha1.Machine, error) {
	m = m.DeepCopy()
	if err := s.client.Create(ctx, m); err != nil {
		return nil, err
	}
	return m, nil
}

// UpdateStatus lets change alter the status of a Machine and writes it, starting over when somebody else
// wrote in between. Only an answer without an error means that the store has it.
func (s *Store) UpdateStatus(ctx context.Context, name string, change func(*v1alpha1.Machine) error) (*v1alpha1.Machine, error) {
	defer s.fleet.Write(name)()
	m, err := s.updateStatus(ctx, name, change)
	if err != nil {
		return nil, err
	}
	s.fleet.Put(m)
	return m, nil
}

func (s *Store) updateStatus(ctx context.Context, name string, change func(*v1alpha1.Machine) error) (*v1alpha1.Machine, error) {
	if base, ok := s.fleet.Get(name); ok {
		// Whatever goes wrong may be for the version's age.
		if m, err := s.patchStatus(ctx, base.DeepCopy(), change); err == nil {
			return m, nil
		}
	}
	// Not client-go's retry package: it takes a context that ended for success.
	pause := 5 * time.Millisecond
	for attempt := 1; ; attempt++ {
		m, err := s.Get(ctx, name)
		if err == nil {
			m, err = s.patchStatus(ctx, m, change)
		}
		if !apierrors.IsConflict(err) || attempt == maxAttempts {
			return m, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause + rand.N(pause)):
		}
		pause = min(pause*3/2, 250*time.Millisecond)
	}
}

// maxAttempts outlasts a crowd of writers to one object; about three seconds.
const maxAttempts = 20

func (s *Store) patchStatus(ctx context.Context, m *v1alpha1.Machine, change func(*v1alpha1.Machine) error) (*v1alpha1.Machine, error) {
	before := m.DeepCopy()
	if err := change(m); err != nil {
		return nil, err
	}
	// A patch names only what changed, so that other writers' sections stay theirs; the resource version
	// makes it fail when what the change was based on is no longer so.
	if err := s.client.Status().Patch(ctx, m, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return nil, err
	}
	return m, nil
}

// Plans reads what installs are made of.
type Plans struct{ reader client.Reader }

// NewPlans returns Plans over a cache or a client.
func NewPlans(reader client.Reader) *Plans { return &Plans{reader} }

// Profile returns the Profile of that name.
func (p *Plans) Profile(ctx context.Context, name string) (*v1alpha1.Profile, error) {
	profile := &v1alpha1.Profile{}
	return profile, p.reader.Get(ctx, client.ObjectKey{Name: name}, profile)
}

// Image returns the Image of that name.
func (p *Plans) Image(ctx context.Context, name string) (*v1alpha1.Image, error) {
	image := &v1alpha1.Image{}
	return image, p.reader.Get(ctx, client.ObjectKey{Name: name}, image)
}

// Subnets returns all Subnets.
func (p *Plans) Subnets(ctx context.Context) ([]v1alpha1.Subnet, error) {
	list := &v1alpha1.SubnetList{}
	if err := p.reader.List(ctx, list); err != nil {
		return nil, fmt.Errorf("list subnets: %w", err)
	}
	return list.Items, nil
}
