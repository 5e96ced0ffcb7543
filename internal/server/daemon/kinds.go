package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/contract/manifest"
	"coldrack.dev/internal/server/controlplane"
)

// How long is waited for the store between two starts, and for it to stop.
const (
	firstRestart = 2 * time.Second
	lastRestart  = time.Minute
	stopWithin   = 20 * time.Second
	// slowStart is when a start that goes on is worth a word.
	slowStart = 30 * time.Second
)

// storeLostFile, in the data folder, says why the store is not there, for coldrack doctor. It is there as long as the store is not.
const storeLostFile = "store-lost"

// storeLost says in metrics and to the doctor that the store is not there. A disk that is full keeps no file, but the log.
func (s *server) storeLost(why error) {
	s.metrics.storeLost.Set(1)
	s.noStore.Store(new(why.Error()))
	_ = durable.WriteFile(s.cfg.path(storeLostFile), []byte(why.Error()+"\n"), 0o600)
}

func (s *server) storeBack() {
	s.metrics.storeLost.Set(0)
	s.noStore.Store(new("it is starting"))
	_ = os.Remove(s.cfg.path(storeLostFile))
}

// errStuck ends the process: parts of the store that has stopped are still in it.
var errStuck = errors.New("the store does not end; the server has to be started again")

// serveKinds runs the API that holds the kinds, and all that needs it, until ctx ends. When the store does not come up, or is lost, it is
// started again as long as machines can be answered without it; other errors end the server. ready is called each time
// it is up.
func (s *server) serveKinds(ctx context.Context, set []*manifest.Document, ready func(kubeconfig string)) error {
	wait, lost := firstRestart, false
	for {
		began := time.Now()
		err := s.live(ctx, set, ready)
		switch {
		case ctx.Err() != nil:
			return nil
		case lost && errors.Is(err, controlplane.ErrInUse):
			// What a start that failed has left behind; machines are answered a while, so that they are between two processes seldom.
			s.log.Error("what is left of the store in this process is in the way of the next start; the process ends", "err", err, "in", lastRestart)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(lastRestart):
				return fmt.Errorf("%w: %w", errStuck, err)
			}
		case errors.Is(err, errStuck), !errors.Is(err, controlplane.ErrStore), !s.fleet.HasCopy():
			return err
		}
		lost = true
		if time.Since(began) > lastRestart {
			wait = firstRestart
		}
		s.storeLost(err)
		s.log.Error("the store is not there: installed machines are answered from what was known of them, all else waits; trying again", "err", err, "in", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, lastRestart)
	}
}

// live is one life of the store.
func (s *server) live(ctx context.Context, set []*manifest.Document, ready func(kubeconfig string)) (err error) {
	slow := time.AfterFunc(slowStart, func() {
		s.storeLost(fmt.Errorf("it has been starting for %s", slowStart))
		s.log.Warn("the store is slow to start", "since", slowStart, "data", s.cfg.path("etcd"))
	})
	s.plane, err = s.startControlPlane(ctx)
	slow.Stop()
	if err != nil {
		return err
	}
	s.people = s.plane
	s.current.Store(s.plane)
	group, within := errgroup.WithContext(ctx)
	group.Go(func() error { return s.plane.Wait(within) })
	group.Go(func() error {
		if err := s.start(within, group, set); err != nil || within.Err() != nil {
			return err
		}
		kubeconfig, err := s.greet()
		if err != nil {
			return err
		}
		s.storeBack()
		ready(kubeconfig)
		return nil
	})
	err = group.Wait()
	s.current.Store(nil)
	if ctx.Err() != nil {
		s.plane.Stop()
		return err
	}
	s.fleet.MarkStale()
	stopped := make(chan struct{})
	go func() {
		s.plane.Stop()
		close(stopped)
	}()
	select {
	case <-stopped:
		return err
	case <-time.After(stopWithin):
		return fmt.Errorf("%w: %w", errStuck, err)
	}
}
