package power

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/bmc"
)

// Limits of the refresh.
const (
	refreshAtOnce = 32
	// refreshTick is how often machines are looked through for those that are due.
	refreshTick = 5 * time.Second
	// visitLimit bounds one visit.
	visitLimit = 2 * time.Minute
)

// visited is when a machine's BMC was last asked, and for which spec.
type visited struct {
	at         time.Time
	generation int64
}

// Run reads the power of all machines with a BMC, slowly and again and again, until ctx ends. One server at a time does.
func (s *Service) Run(ctx context.Context) error {
	limiter := rate.NewLimiter(rate.Limit(s.o.PerSecond), 1)
	seen := map[string]visited{}
	ticker := time.NewTicker(refreshTick)
	defer ticker.Stop()
	var group errgroup.Group
	group.SetLimit(refreshAtOnce)
	defer func() { _ = group.Wait() }()
	for {
		all := s.o.Machines.List()
		s.forget(all, seen)
		for _, m := range due(all, seen, s.o.Now(), s.o.Every) {
			if limiter.Wait(ctx) != nil {
				return ctx.Err()
			}
			seen[m.Name] = visited{s.o.Now(), m.Generation}
			group.Go(func() error {
				ctx, cancel := context.WithTimeout(ctx, visitLimit)
				defer cancel()
				s.refresh(ctx, m)
				return nil
			})
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// refresh visits one machine. Its problems are recorded, not returned.
func (s *Service) refresh(ctx context.Context, m *v1alpha1.Machine) {
	t, err := s.target(ctx, m)
	if err != nil {
		if bmc.KindOf(err) == bmc.Misconfigured {
			s.record(ctx, m, t, "", err)
		}
		return
	}
	_, _ = s.look(ctx, m, t, bmc.Patient)
}

// due are the machines whose turn it is, those first that have waited longest. A change of spec is looked at soon.
func due(all []*v1alpha1.Machine, seen map[string]visited, now time.Time, every time.Duration) []*v1alpha1.Machine {
	var turn []*v1alpha1.Machine
	for _, m := range all {
		last, known := seen[m.Name]
		if m.Spec.BMC != nil && (!known || last.generation != m.Generation || now.Sub(last.at) >= every) {
			turn = append(turn, m)
		}
	}
	slices.SortStableFunc(turn, func(a, b *v1alpha1.Machine) int { return seen[a.Name].at.Compare(seen[b.Name].at) })
	return turn
}

// forget drops what is remembered of machines that have gone.
func (s *Service) forget(all []*v1alpha1.Machine, seen map[string]visited) {
	addresses, names := map[string]bool{}, map[string]bool{}
	for _, m := range all {
		names[m.Name] = true
		if m.Spec.BMC != nil {
			addresses[m.Spec.BMC.Address] = true
		}
	}
	for name := range seen {
		if !names[name] {
			delete(seen, name)
		}
	}
	s.o.Pool.Forget(addresses)
}
