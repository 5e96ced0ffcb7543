package controllers

import (
	"context"
	"fmt"

	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
)

// Store reads and writes Machines for the machine API, past any cache.
type Store struct{ client client.Client }

// NewStore returns a Store over a client that reads from the API itself.
func NewStore(direct client.Client) *Store { return &Store{direct} }

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
// wrote in between.
func (s *Store) UpdateStatus(ctx context.Context, name string, change func(*v1alpha1.Machine) error) (*v1alpha1.Machine, error) {
	var m *v1alpha1.Machine
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() (err error) {
		if m, err = s.Get(ctx, name); err != nil {
			return err
		}
		before := m.DeepCopy()
		if err := change(m); err != nil {
			return err
		}
		// A patch names only what changed, so that other writers' sections stay theirs; the resource
		// version makes it start over when what the change was based on is no longer so.
		return s.client.Status().Patch(ctx, m, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	})
	if err != nil {
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
