package node

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/contract/wire"
)

const (
	// pollWait is how long the server may think about a changed plan.
	pollWait = 60 * time.Second
	// unheard is how often a server that knows nothing of clusters is asked: it may be replaced by a newer one.
	unheard = 5 * time.Minute
)

// Plans is the machine API as a node of a cluster uses it.
type Plans interface {
	Node(ctx context.Context, version string, wait time.Duration) (wire.NodeAssignment, error)
}

// Executor carries out what the server assigns.
type Executor interface {
	// Version of what it carries out already, from before a restart; "" for none.
	Version() string
	// Assign takes a newer assignment.
	Assign(wire.NodeAssignment)
	// Retell reports again what was reported: a server that was restarted has forgotten it.
	Retell()
	Run(context.Context) error
}

// Task is something that runs as long as the agent.
type Task func(context.Context) error

// Membership is the agent's part as a node of a cluster. What it runs needs no server: a node that has a plan comes
// up with it from its own disk.
type Membership struct {
	Log      *slog.Logger
	Server   Plans
	Executor Executor
	// Beside run along: the load balancer, the routes.
	Beside []Task
	Sleep  func(context.Context, time.Duration)
}

// Run asks and carries out until ctx ends.
func (m *Membership) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, task := range m.Beside {
		g.Go(func() error { return task(ctx) })
	}
	g.Go(func() error { return m.Executor.Run(ctx) })
	g.Go(func() error { return m.ask(ctx) })
	return g.Wait()
}

// ask keeps one question open at the server.
func (m *Membership) ask(ctx context.Context) error {
	version, failures := m.Executor.Version(), 0
	for ctx.Err() == nil {
		a, err := m.Server.Node(ctx, version, pollWait)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			if failures > 0 {
				m.Executor.Retell()
			}
			failures, version = 0, a.Version
			m.Executor.Assign(a)
			// A server that answers at once without a reason must not keep us both busy.
			m.Sleep(ctx, 100*time.Millisecond)
			continue
		}
		failures++
		wait := min(firstRetry<<min(failures-1, 10), lastRetry)
		if e := (*client.Error)(nil); errors.As(err, &e) && e.Status == http.StatusNotFound {
			wait = unheard
		} else if !retry.Transient(err) {
			wait = lastRetry
		}
		if failures&(failures-1) == 0 {
			m.Log.Warn("cannot fetch this node's plan from the server", "err", err, "failures", failures, "again", wait)
		}
		m.Sleep(ctx, wait+rand.N(wait/10))
	}
	return nil
}
