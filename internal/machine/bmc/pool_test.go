package bmc_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"coldrack.dev/internal/machine/bmc"
)

func TestPoolLetsOneVisitorAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := bmc.NewPool(bmc.PoolOptions{Visits: 2, Gap: time.Second})
		var here, most, everywhere, mostEverywhere atomic.Int32
		peak := func(n int32, most *atomic.Int32) {
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
		}
		begun := time.Now()
		var group sync.WaitGroup
		for i := range 12 {
			address := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}[i%3]
			group.Go(func() {
				// Both protocols of a BMC share its processor.
				target := bmc.Target{Address: address, Protocol: []bmc.Protocol{bmc.Redfish, bmc.IPMI}[i%2]}
				err := pool.Visit(t.Context(), target, bmc.Urgent, func(context.Context, bmc.Driver) error {
					peak(everywhere.Add(1), &mostEverywhere)
					if address == "10.0.0.1" {
						peak(here.Add(1), &most)
						defer here.Add(-1)
					}
					time.Sleep(10 * time.Second)
					everywhere.Add(-1)
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if most.Load() != 1 || mostEverywhere.Load() != 2 {
			t.Errorf("%d visitors at one BMC at once, %d in all", most.Load(), mostEverywhere.Load())
		}
		if took := time.Since(begun); took < 60*time.Second || took > 70*time.Second {
			t.Errorf("12 visits of 10 s, two at once, took %s", took)
		}
	})
}

// A BMC that hangs takes one place, whoever waits for it.
func TestPoolIsNotHeldUpByOneBMC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := bmc.NewPool(bmc.PoolOptions{Visits: 2})
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_ = pool.Visit(ctx, bmc.Target{Address: "10.0.0.1"}, bmc.Urgent, func(ctx context.Context, _ bmc.Driver) error {
					<-ctx.Done()
					return ctx.Err()
				})
			})
		}
		synctest.Wait()
		begun := time.Now()
		if err := pool.Visit(t.Context(), bmc.Target{Address: "10.0.0.2"}, bmc.Urgent, func(context.Context, bmc.Driver) error { return nil }); err != nil {
			t.Error(err)
		}
		if time.Since(begun) != 0 {
			t.Errorf("waited %s", time.Since(begun))
		}
		group.Wait()
	})
}

func TestPoolBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := bmc.NewPool(bmc.PoolOptions{Backoff: 30 * time.Second, MaxBackoff: 30 * time.Minute})
		target := bmc.Target{Address: "bmc-1", Username: "u", Password: "one"}
		visits := 0
		visit := func(patience bmc.Patience, fails error) error {
			return pool.Visit(t.Context(), target, patience, func(context.Context, bmc.Driver) error { visits++; return fails })
		}
		dead := &bmc.Error{Kind: bmc.Unreachable, Address: "bmc-1", What: "no answer"}
		for i, pause := range []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute} {
			if err := visit(bmc.Patient, dead); !errors.Is(err, dead) {
				t.Fatal(err)
			}
			err := visit(bmc.Patient, nil)
			if bmc.KindOf(err) != bmc.Waiting || !strings.Contains(err.Error(), "tried again in "+pause.String()) || visits != i+1 {
				t.Fatalf("after %d failures: %v, %d visits", i+1, err, visits)
			}
			time.Sleep(pause)
		}
		if err := visit(bmc.Urgent, nil); err != nil {
			t.Errorf("a person is let through: %v", err)
		}
		if err := visit(bmc.Patient, nil); err != nil {
			t.Errorf("what works again is remembered as failed: %v", err)
		}

		refused := &bmc.Error{Kind: bmc.Refused, Address: "bmc-1", What: "wrong password"}
		_ = visit(bmc.Patient, refused)
		time.Sleep(29 * time.Minute)
		if err := visit(bmc.Patient, nil); bmc.KindOf(err) != bmc.Waiting {
			t.Errorf("a wrong password is tried again: %v", err)
		}
		target.Password = "two"
		if err := visit(bmc.Patient, nil); err != nil {
			t.Errorf("another password is not tried: %v", err)
		}
	})
}

func TestPoolBoundsTheCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := bmc.NewPool(bmc.PoolOptions{Gap: time.Nanosecond})
		release := make(chan struct{})
		var group sync.WaitGroup
		var refused atomic.Int32
		for range 20 {
			group.Go(func() {
				err := pool.Visit(t.Context(), bmc.Target{Address: "10.0.0.1"}, bmc.Urgent, func(context.Context, bmc.Driver) error { <-release; return nil })
				if bmc.KindOf(err) == bmc.Waiting {
					refused.Add(1)
				} else if err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		close(release)
		group.Wait()
		if refused.Load() != 4 {
			t.Errorf("%d of 20 were refused", refused.Load())
		}
	})
}

// The real thing: while one BMC is silent, another is switched.
func TestPoolWithARealBMC(t *testing.T) {
	good, bad := newRedfishServer(t, nil), newRedfishServer(t, nil)
	entered := make(chan struct{}, 1)
	bad.wrap(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		select {
		case entered <- struct{}{}:
		default:
		}
		<-r.Context().Done()
	})
	pool := bmc.NewPool(bmc.PoolOptions{Visits: 4})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- pool.Visit(ctx, bad.target, bmc.Urgent, func(ctx context.Context, d bmc.Driver) error { return d.Do(ctx, bmc.PowerOn) })
	}()
	<-entered
	if err := pool.Visit(t.Context(), good.target, bmc.Urgent, func(ctx context.Context, d bmc.Driver) error { return d.Do(ctx, bmc.PowerOn) }); err != nil || !good.computer.On() {
		t.Error(err)
	}
	cancel()
	if err := <-ended; bmc.KindOf(err) != bmc.Unreachable {
		t.Error(err)
	}
}
