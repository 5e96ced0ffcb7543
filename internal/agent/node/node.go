// Package node is the agent of an installed node: it reports to the server who is there and how it is, keeps
// the node's certificate fresh, restarts the node when the server has an intent for it, and has it brought up as a
// node of its cluster.
//
// The node does not need it: whatever happens to the server or to this agent, the node keeps running.
package node

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/identity"
	"coldrack.dev/internal/agent/journal"
	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/contract/wire"
)

const (
	defaultInterval = 30 * time.Second
	longestInterval = 10 * time.Minute
	// firstRetry is short: a person may be waiting for a node that has just started.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	renewRetry = 10 * time.Minute
	// hardwareInterval is between two reports of what the node is built of.
	hardwareInterval = 12 * time.Hour
)

// Server is the machine API as a node uses it.
type Server interface {
	Heartbeat(context.Context, wire.Heartbeat) (wire.HeartbeatResponse, error)
	Hardware(context.Context, wire.Hardware) error
	Renew(context.Context, wire.RenewRequest) (wire.IdentityResponse, error)
}

// Agent reports one node.
type Agent struct {
	Log    *slog.Logger
	Lines  *journal.Ring // what the log has that was not reported
	Server Server
	// Use makes an identity the one that Server shows.
	Use      func(identity.Node)
	Identity identity.Node
	// Next is a renewed identity from before a restart, nil if there is none.
	Next    *identity.Node
	Machine string
	// Root is "/" on a node.
	Root string
	// Look describes the node now.
	Look func(context.Context) wire.Heartbeat
	// Hardware says what the node is built of; nil: nothing is reported of it.
	Hardware func() wire.Hardware
	// Reboot restarts the node.
	Reboot func(ctx context.Context, reason string) error
	Now    func() time.Time
	Sleep  func(context.Context, time.Duration)
	// Cluster makes the machine a node of a cluster; nil for none.
	Cluster Task
	// Units runs the units that the server places on the machine; nil for none.
	Units Task

	mu      sync.Mutex // of Identity and Next, once Run has begun
	settled chan struct{}
}

// Run reports until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	a.settled = make(chan struct{}, 1)
	a.Use(a.Identity)
	if a.Next != nil {
		a.Use(*a.Next)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.beat(ctx) })
	g.Go(func() error { return a.keepIdentity(ctx) })
	if a.Hardware != nil {
		g.Go(func() error { return a.tellHardware(ctx) })
	}
	if a.Cluster != nil {
		g.Go(func() error { return a.Cluster(ctx) })
	}
	if a.Units != nil {
		g.Go(func() error { return a.Units(ctx) })
	}
	return g.Wait()
}

// beat sends heartbeats for ever.
func (a *Agent) beat(ctx context.Context) error {
	failures, wait := 0, time.Duration(0)
	for ctx.Err() == nil {
		lines, mark := a.Lines.Pending()
		report := a.Look(ctx)
		report.Log = lines
		next := a.next()
		answer, err := a.Server.Heartbeat(ctx, report)
		switch {
		case ctx.Err() != nil:
			return nil
		case next != nil && client.Code(err) == wire.CodeForbidden:
			a.settle(false)
			continue
		case err != nil:
			failures++
			// Doubling from a second; a server that refuses is asked at the usual pace, because only a
			// person can change its mind.
			wait = min(firstRetry<<min(failures-1, 10), lastRetry)
			if !retry.Transient(err) {
				wait = lastRetry
			}
			a.tell(failures, err, wait)
		default:
			if failures > 0 {
				a.Log.Info("server is reachable again", "failures", failures)
			}
			failures = 0
			if next != nil {
				a.settle(true)
			}
			a.Lines.Reported(mark)
			wait = interval(answer.IntervalSeconds)
			if answer.Reboot {
				a.Log.Warn("server requested a reboot", "reason", answer.RebootReason)
				if err := a.Reboot(ctx, answer.RebootReason); err != nil {
					a.Log.Error("cannot reboot", "err", err)
				}
			}
		}
		// A tenth of jitter, so that a rack that was switched on at once does not report at once for ever.
		a.Sleep(ctx, wait+rand.N(wait/10+time.Millisecond))
	}
	return nil
}

// tellHardware reports what the node is built of, at its start and twice a day: a disk may fail, and a card fall off its bus, while it runs.
func (a *Agent) tellHardware(ctx context.Context) error {
	told := false
	for ctx.Err() == nil {
		err := a.Server.Hardware(ctx, a.Hardware())
		if err != nil && ctx.Err() == nil && !told {
			a.Log.Info("hardware not reported", "err", err)
		}
		told = err != nil
		wait := hardwareInterval
		switch {
		case err == nil:
		case retry.Transient(err):
			wait = lastRetry
		case client.Code(err) == wire.CodeForbidden:
			wait = renewRetry // a person may change the server's mind
		}
		a.Sleep(ctx, wait+rand.N(wait/10))
	}
	return nil
}

// tell logs the first failure and then ever fewer: a server may be away for days.
func (a *Agent) tell(failures int, err error, wait time.Duration) {
	if failures&(failures-1) == 0 {
		a.Log.Warn("heartbeat failed", "err", err, "failures", failures, "again", wait)
	}
}

func interval(seconds int) time.Duration {
	if seconds <= 0 {
		return defaultInterval
	}
	return min(time.Duration(seconds)*time.Second, longestInterval)
}

// next is the renewed identity that is on trial.
func (a *Agent) next() *identity.Node {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.Next
}

// settle ends the trial of a renewed identity: the server accepted it, or knows nothing of it because it
// was restarted after it had issued it. Until then both are on the disk, for the server takes the new key
// from its first use on and the old one until then.
func (a *Agent) settle(accepted bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var err error
	if accepted {
		a.Identity = *a.Next
		err = identity.Promote(a.Root)
		a.Log.Info("using the renewed node certificate", "expires", a.Identity.NotAfter)
	} else {
		a.Use(a.Identity)
		err = identity.Drop(a.Root)
		a.Log.Warn("server rejected the renewed node certificate; using the old one")
	}
	if err != nil {
		a.Log.Error("cannot save the node's identity to disk", "err", err)
	}
	a.Next = nil
	select {
	case a.settled <- struct{}{}:
	default:
	}
}

// keepIdentity has the certificate renewed when two thirds of its life are over, for a new key that is made
// here.
func (a *Agent) keepIdentity(ctx context.Context) error {
	for ctx.Err() == nil {
		if a.next() != nil {
			select {
			case <-a.settled:
			case <-ctx.Done():
			}
			continue
		}
		a.mu.Lock()
		current := a.Identity
		a.mu.Unlock()
		if wait := current.RenewAt().Sub(a.Now()); wait > 0 {
			// At most a day at once: the clock may be set meanwhile.
			a.Sleep(ctx, min(wait, 24*time.Hour))
			continue
		}
		next, err := a.renew(ctx)
		if err != nil {
			if ctx.Err() == nil {
				a.Log.Warn("node certificate renewal failed", "err", err, "expires", current.NotAfter, "again", renewRetry)
				a.Sleep(ctx, renewRetry)
			}
			continue
		}
		a.mu.Lock()
		a.Next = &next
		a.mu.Unlock()
		a.Use(next)
	}
	return nil
}

func (a *Agent) renew(ctx context.Context) (identity.Node, error) {
	key, csr, err := client.NewKey(a.Machine)
	if err != nil {
		return identity.Node{}, err
	}
	answer, err := a.Server.Renew(ctx, wire.RenewRequest{CSR: csr})
	if err != nil {
		return identity.Node{}, err
	}
	b, err := identity.Encode(key, answer.Certificate)
	if err != nil {
		return identity.Node{}, err
	}
	next, err := identity.Decode(b)
	if err != nil {
		return next, err
	}
	if !next.NotAfter.After(a.Now()) {
		return next, fmt.Errorf("the certificate that the server sent expired at %s already", next.NotAfter)
	}
	return next, identity.SaveNext(a.Root, b)
}
