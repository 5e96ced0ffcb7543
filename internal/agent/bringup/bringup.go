// Package bringup makes an installed machine a node of a Kubernetes cluster and keeps it one: programs, files,
// certificates, units, routes and the load balancer, in the phases that the server's plan names.
//
// Which phase may begin, what differs from the plan and what has to be restarted for it is decided by functions of
// plan and nodefile.Disk (plan.go, certificate.go); the rest carries that out. Everything is looked at anew in each pass, so
// that it does not matter where the last one was cut off.
package bringup

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"reflect"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/agent/systemd"
	"coldrack.dev/internal/contract/wire"
)

// Server is the machine API as bring-up uses it.
type Server interface {
	Certificate(context.Context, wire.CertificateRequest) (wire.CertificateResponse, error)
	Phases(context.Context, wire.PhaseReport) error
	// EtcdData writes the archive of the member's data for a restore to w.
	EtcdData(ctx context.Context, restore string, w io.Writer) error
}

// Router keeps the node's routes to other nodes' pods and to service networks.
type Router interface {
	// Set makes exactly these the routes, and keeps them.
	Set([]wire.NodeRoute, []wire.ServiceRoute) error
}

// Balancer is the node's own way to the API servers.
type Balancer interface {
	// Set listens as c says, from when it returns on; an empty one ends that.
	Set(c wire.LoadBalancer) error
	// Health says whether any API server is ready, and why each of the others is not.
	Health() (ready bool, why []string)
}

// Kit exchanges content with other nodes.
type Kit interface {
	// Set says what the plan wants, nil for nothing, where the server's content is, and for which version of Kubernetes.
	Set(k *wire.NodeKit, contentURL, version string)
}

// Pace is how patient bring-up is.
type Pace struct {
	Probe       time.Duration // between two looks at something that is waited for
	ProbeLimit  time.Duration // for one answer
	Restart     time.Duration // for a static pod to be started anew
	Explain     time.Duration // after which a wait is explained by what logs say
	Retry       time.Duration // of a failed phase, doubling
	MaxRetry    time.Duration
	Again       time.Duration // after which everything is looked at again
	Look        time.Duration // between two looks at what somebody else has changed, while paused
	ReportDelay time.Duration // in which changes are collected into one report
	ReportAgain time.Duration // after which a report is sent without a change
}

// UsualPace suits real nodes.
func UsualPace() Pace {
	return Pace{Probe: 2 * time.Second, ProbeLimit: 10 * time.Second, Restart: 2 * time.Minute, Explain: time.Minute, Retry: time.Second, MaxRetry: time.Minute,
		Again: 10 * time.Minute, Look: time.Minute, ReportDelay: time.Second, ReportAgain: 5 * time.Minute}
}

// Options of an Executor. All are needed.
type Options struct {
	Log      *slog.Logger
	Root     string // "/" on a node
	Server   Server
	Systemd  systemd.Manager
	Router   Router
	Balancer Balancer
	// Kit is what this node shares with others of its cluster; nil for nothing.
	Kit Kit
	// Images of the container runtime; nil: they are pulled when pods start.
	Images Images
	// Content is a source of what is below /content/ of a base address. tell is called before each further try.
	Content func(base string, tell func(what string, err error, wait time.Duration)) Fetcher
	Pace    Pace
	Now     func() time.Time
	Sleep   func(context.Context, time.Duration)
}

// StateDir holds what a node remembers of its cluster.
const StateDir = "/var/lib/coldrack/kubernetes"

const (
	assignmentFile = StateDir + "/assignment.json"
	ledgerFile     = StateDir + "/ledger.json"
	digestsFile    = StateDir + "/digests.json"
	podsFile       = StateDir + "/pods.json"
)

// Why a pass ends before all phases are done.
var (
	errSuperseded = errors.New("another version of the plan came")
	errAgain      = errors.New("it is time to look at everything again")
	errHeld       = errors.New("paused")
)

const pausedText = "paused by the cluster's spec: it begins when the pause ends"

// Executor carries out what the server assigns to a node.
type Executor struct {
	Options
	disk    nodefile.Disk
	track   *track
	ledger  *nodefile.Ledger
	prober  *http.Client
	tidying sync.Mutex
	podsMu  sync.Mutex    // of podsFile
	wake    chan struct{} // of capacity one
	beside  chan struct{} // the same for what is fetched beside what runs

	mu sync.Mutex
	// begun is what is carried out, next what shall be.
	begun, next *state
	paused      bool
	message     string
	content     string // URL
	// refused is the version of a plan that cannot be carried out.
	refused string
	// orphan: the server knows of no plan.
	orphan bool
	// interrupt ends the pass, hold lets no further phase of it begin; nil before the first pass.
	interrupt, hold context.CancelCauseFunc
	waits           map[string]time.Time
}

// New reads what is on the disk of an earlier run.
func New(o Options) (*Executor, error) {
	e := &Executor{Options: o, disk: nodefile.Disk{Root: o.Root}, track: newTrack(o.Now), prober: newProber(o.Pace.ProbeLimit),
		wake: make(chan struct{}, 1), beside: make(chan struct{}, 1), waits: map[string]time.Time{}}
	// The folder of the state holds keys.
	if err := e.disk.MakeDir(StateDir, 0o700); err != nil {
		return nil, err
	}
	e.ledger = nodefile.OpenLedger(e.disk, ledgerFile, o.Log)
	e.ledger.CleanUp(assignmentFile, digestsFile, podsFile, restoredFile)
	saved, err := loadState(e.disk)
	if err != nil {
		o.Log.Error("cannot read the saved plan; waiting for one from the server", "err", err)
		return e, nil
	}
	if saved != nil {
		if err := Validate(saved.Plan); err != nil {
			o.Log.Error("saved plan is invalid; waiting for a new one", "err", err)
			return e, nil
		}
		e.begun, e.paused, e.content = saved, saved.Paused, saved.Plan.ContentURL
	}
	return e, nil
}

// Version of the assignment that the node has, "" for none.
func (e *Executor) Version() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.begun == nil {
		return ""
	}
	return e.begun.Version
}

// Retell reports once more what was reported before.
func (e *Executor) Retell() { e.track.retell() }

// Assign takes what the server answered. It does not wait.
func (e *Executor) Assign(a wire.NodeAssignment) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if a.Message != "" && a.Message != e.message {
		e.Log.Info("message from the server", "message", a.Message)
	}
	e.message = a.Message
	if a.Plan == nil {
		if e.begun != nil && !e.orphan {
			// Only an intent of its own takes a node out of its cluster.
			e.Log.Warn("server has no plan for this node; keeping the current plan", "cluster", e.begun.Plan.Cluster)
		}
		e.orphan = true
		return
	}
	e.orphan = false
	e.content = a.Plan.ContentURL
	turn := e.begun != nil && e.begun.Hold && !a.Hold // what waited for it may be done now
	e.take(a)
	resumed := e.paused && !a.Paused
	if a.Paused != e.paused {
		e.paused = a.Paused
		e.Log.Info("server changed the pause state of bring-up", "paused", a.Paused)
		if e.begun != nil {
			e.begun.Paused = a.Paused
			e.save()
		}
	}
	switch {
	case e.interrupt == nil:
	case e.paused:
		e.hold(errHeld)
	case e.next != nil || resumed || turn:
		e.interrupt(errSuperseded)
	}
	for _, wake := range []chan struct{}{e.wake, e.beside} {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// take makes of an assignment with a plan what is to be carried out next. The caller holds mu.
func (e *Executor) take(a wire.NodeAssignment) {
	switch {
	case e.begun != nil && e.begun.Version == a.Version:
		e.next = nil
		return
	case e.next != nil && e.next.Version == a.Version, e.refused == a.Version:
		return
	}
	next, message := decide(e.begun, a)
	if message != "" {
		e.Log.Warn("cannot do what the server asks for", "operation", a.Operation, "because", message)
	}
	e.track.note(message)
	if e.begun == nil || !samePlan(e.begun.Plan, next.Plan) || !reflect.DeepEqual(e.begun.Restore, next.Restore) {
		e.next, e.refused = next, ""
		return
	}
	// What was done for the last version is done for this one.
	paused := e.begun.Paused
	e.begun, e.next = next, nil
	e.begun.Paused = paused
	e.track.rename(next)
	e.save()
}

// samePlan ignores where content is, which changes nothing on a node.
func samePlan(a, b *wire.NodePlan) bool {
	x, y := *a, *b
	x.ContentURL, y.ContentURL = "", ""
	return reflect.DeepEqual(x, y)
}

// save keeps what is carried out, for a start without the server and for a roll-back. The caller holds mu.
func (e *Executor) save() {
	b, err := json.Marshal(e.begun)
	if err == nil {
		err = e.disk.Write(assignmentFile, append(b, '\n'), 0o600)
	}
	if err != nil {
		e.Log.Error("cannot save the plan; after a reboot this node waits for the server", "err", err)
	}
}

// Run carries out assignments until ctx ends: first what is on the disk, then what Assign brings.
func (e *Executor) Run(ctx context.Context) error {
	e.mu.Lock()
	begun := e.begun
	e.mu.Unlock()
	if begun != nil {
		e.Log.Info("new plan", "cluster", begun.Plan.Cluster, "node", begun.Plan.NodeName, "version", begun.Version)
		e.standing(begun.Plan)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.work(ctx) })
	g.Go(func() error { return e.report(ctx) })
	g.Go(func() error { return e.prefetch(ctx) })
	return g.Wait()
}

// standing restores what lives in this process and in the kernel alone, before anything else: a node that was
// switched on has to reach the API without a server, and even while bring-up is paused.
func (e *Executor) standing(plan *wire.NodePlan) {
	for _, ph := range plan.Phases {
		if ph.LoadBalancer {
			if err := e.Balancer.Set(balancerOf(plan)); err != nil {
				e.Log.Error("cannot start the load balancer for the API servers; trying again", "err", err)
			}
		}
		if ph.Routes {
			if err := e.Router.Set(plan.Routes, plan.ServiceRoutes); err != nil {
				e.Log.Error("cannot set all routes yet", "err", err)
			}
		}
	}
}

// work makes one pass after the other.
func (e *Executor) work(ctx context.Context) error {
	for ctx.Err() == nil {
		p, end := e.start(ctx)
		if p == nil {
			e.look()
			again := time.NewTimer(e.Pace.Look)
			select {
			case <-e.wake:
			case <-again.C:
			case <-ctx.Done():
			}
			again.Stop()
			continue
		}
		if p.run() {
			// Nothing to do until something changes, or may have changed unseen.
			<-p.open.Done()
		}
		end()
	}
	return nil
}

// start makes a pass of what is to be carried out now; nil when there is nothing or bring-up is paused.
func (e *Executor) start(ctx context.Context) (p *pass, end func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.next != nil {
		if err := Validate(e.next.Plan); err != nil {
			e.Log.Error("invalid plan", "version", e.next.Version, "err", err)
			e.track.follow(e.next)
			for _, ph := range e.next.Plan.Phases {
				e.track.fail(ph.Name, err.Error())
			}
			e.refused, e.next = e.next.Version, nil
		}
	}
	switch {
	case e.refused != "":
		return nil, nil
	case e.paused:
		if e.begun == nil && e.next != nil {
			e.track.follow(e.next)
			for _, ph := range e.next.Plan.Phases {
				e.track.hold(ph.Name, pausedText)
			}
		}
		return nil, nil
	case e.next != nil:
		e.begun, e.next = e.next, nil
		e.save()
	case e.begun == nil:
		return nil, nil
	}
	e.track.follow(e.begun)
	if e.Kit != nil {
		e.Kit.Set(e.begun.Plan.Kit, e.content, e.kitVersion())
	}
	soft, interrupt := context.WithCancelCause(ctx)
	open, hold := context.WithCancelCause(soft)
	e.interrupt, e.hold = interrupt, hold
	p = e.newPass(ctx, soft, open, e.begun)
	// Everything is looked at again after a while, even if something is still waited for, but nothing that is
	// being done is cut off for it. A tenth of jitter spreads the nodes of a rack.
	var timer *time.Timer
	timer = time.AfterFunc(e.Pace.Again+rand.N(e.Pace.Again/10+1), func() {
		e.mu.Lock() // timer is set
		defer e.mu.Unlock()
		if p.busy.Load() > 0 {
			timer.Reset(e.Pace.Again / 10)
			return
		}
		interrupt(errAgain)
	})
	return p, func() {
		timer.Stop()
		interrupt(nil)
	}
}

// contentURL is where content is now; it may move without a new version of the plan.
func (e *Executor) contentURL() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.content
}

// waiting is since when something has been waited for, over all passes.
func (e *Executor) waiting(what string, now time.Time) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.waits[what]; !ok {
		e.waits[what] = now
	}
	return e.waits[what]
}

func (e *Executor) waited(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.waits, what)
}

// report sends what changed, collected over a moment, and the same again from time to time. What the server did
// not get is sent again, as it is by then.
func (e *Executor) report(ctx context.Context) error {
	failures := 0
	for ctx.Err() == nil {
		wait := e.Pace.ReportAgain
		if failures > 0 {
			wait = e.Pace.backoff(failures)
		}
		timer := time.NewTimer(wait)
		select {
		case <-e.track.changed:
			if failures > 0 { // the server is away: not sooner than it is asked again
				select {
				case <-timer.C:
				case <-ctx.Done():
				}
			} else {
				e.Sleep(ctx, e.Pace.ReportDelay)
			}
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		r := e.track.snapshot()
		if r.Version == "" || ctx.Err() != nil {
			continue
		}
		if err := e.Server.Phases(ctx, r); err != nil {
			if ctx.Err() == nil && failures&(failures-1) == 0 {
				e.Log.Warn("cannot report phases to the server", "err", err, "failures", failures+1)
			}
			failures++
			continue
		}
		failures = 0
	}
	return nil
}
