package kubeapi

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
)

const (
	// checkInterval is how often the API server in use is asked whether it is ready.
	checkInterval = 5 * time.Second
	// applyInterval is how often objects are looked at that should not have changed.
	applyInterval = time.Minute
	// forgottenInterval is how often a killed verification is looked for.
	forgottenInterval = 10 * time.Minute
	// applyTimeout ends an attempt to apply all objects.
	applyTimeout = 2 * time.Minute
	// lostAfter that many checks in a row the API counts as unreachable.
	lostAfter = 2
	// reportDelay collects what changes at the same time.
	reportDelay = 100 * time.Millisecond
)

// Pauses between attempts, from the first to the longest.
const (
	firstPause   = time.Second
	longestPause = 5 * time.Second
)

// Runner looks after one cluster's API.
type Runner struct {
	log *slog.Logger

	mu      sync.Mutex
	current Options
	state   State
	// unreachable says why the API does not answer, nodeProblems what is the matter with nodes, by name.
	unreachable  string
	nodeProblems map[string]string

	// userAddons is nil until somebody has said which there are.
	userAddons *[]addon.Addon

	// changed wakes the reporter, updated whoever works by the options.
	changed chan struct{}
	updated chan struct{}
	// updatedAddons wakes whoever keeps people's add-ons.
	updatedAddons chan struct{}
}

// NewRunner checks the options.
func NewRunner(options Options) (*Runner, error) {
	if err := options.check(); err != nil {
		return nil, err
	}
	log := options.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	options.Wanted = options.Wanted.indexed()
	return &Runner{
		log: log, current: options, nodeProblems: map[string]string{},
		state:   State{Cluster: options.Target.Cluster, Since: time.Now(), Requests: map[string]RequestState{}},
		changed: make(chan struct{}, 1), updated: make(chan struct{}, 1), updatedAddons: make(chan struct{}, 1),
	}, nil
}

func (o *Options) check() error {
	if o.Sign == nil || o.Report == nil || o.Target.Certificate == nil {
		return fmt.Errorf("cluster %s: Sign, Report and Target.Certificate must be given", o.Target.Cluster)
	}
	if _, err := decodeAll(o.Wanted.Objects); err != nil {
		return fmt.Errorf("cluster %s: %w", o.Target.Cluster, err)
	}
	connection, err := Connect(o.Target)
	if err != nil {
		return err
	}
	connection.Close()
	return nil
}

// Update replaces the options; the logger stays. It returns an error and changes nothing where they cannot be
// used, and for another cluster.
func (r *Runner) Update(options Options) error {
	if err := options.check(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if options.Target.Cluster != r.current.Target.Cluster {
		return fmt.Errorf("this looks after cluster %s, not %s", r.current.Target.Cluster, options.Target.Cluster)
	}
	options.Wanted = options.Wanted.indexed()
	r.current = options
	wake(r.updated)
	return nil
}

func (r *Runner) options() *Options {
	r.mu.Lock()
	defer r.mu.Unlock()
	options := r.current
	return &options
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// change alters the state and has it reported.
func (r *Runner) change(f func(*State)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.state)
	wake(r.changed)
}

// Run works until ctx ends, and returns nil then. An API that does not answer is waited for.
func (r *Runner) Run(ctx context.Context) error {
	var reporter sync.WaitGroup
	defer reporter.Wait()
	reporter.Go(func() { r.report(ctx) })
	for ctx.Err() == nil {
		if err := r.session(ctx); err != nil {
			return err
		}
	}
	return nil
}

// session works with one Target.
func (r *Runner) session(ctx context.Context) error {
	options := r.options()
	connection, err := Connect(options.Target)
	if err != nil {
		return err
	}
	defer connection.Close()
	applier, err := NewApplier(connection)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var stop func() // ends the work that is done while the API answers
	end := func() {
		if stop != nil {
			stop()
			stop = nil
		}
	}
	defer end()

	misses, pause := 0, firstPause
	updates := make(chan struct{}, 1)
	for {
		server, err := connection.Check(ctx)
		if ctx.Err() != nil {
			return nil
		}
		wait := checkInterval
		if err == nil {
			misses, pause = 0, firstPause
			r.change(func(s *State) {
				if !s.Reachable {
					s.Reachable, s.Since, s.Nodes = true, time.Now(), nil // others may have changed them
				}
				if s.Server != server {
					r.log.Info("using this API server of the cluster", "cluster", s.Cluster, "server", server.String())
				}
				s.Server, r.unreachable = server, ""
			})
			if stop == nil {
				stop = r.start(ctx, connection, applier, updates)
			}
		} else {
			misses++
			wait, pause = pause, min(pause*3/2, longestPause)
			if misses >= lostAfter || stop == nil {
				end()
				r.change(func(s *State) {
					if s.Reachable {
						s.Reachable, s.Since = false, time.Now()
						r.log.Warn("cluster API is unreachable", "cluster", s.Cluster, "error", err)
					}
					r.unreachable = err.Error()
				})
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-r.updated:
			timer.Stop()
			if target := r.options().Target; !target.same(&options.Target) {
				return nil
			}
			wake(updates)
			r.change(func(*State) {})
		case <-timer.C:
		}
	}
}

// start begins what is done while the API answers; the returned function ends it and waits for that.
func (r *Runner) start(ctx context.Context, connection *Connection, applier *Applier, updates chan struct{}) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	w := newWork(r, connection)
	applyNow := make(chan struct{}, 1)
	var group sync.WaitGroup
	group.Go(func() { w.run(ctx) })
	group.Go(func() { r.keepApplied(ctx, applier, applyNow) })
	group.Go(func() { r.followAddons(ctx, connection) })
	group.Go(func() { r.followUserAddons(ctx, connection, r.updatedAddons) })
	group.Go(func() { r.removeForgotten(ctx, connection) })
	group.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-updates:
				wake(applyNow)
				w.again()
			}
		}
	})
	return func() {
		cancel()
		group.Wait()
	}
}

// removeForgotten removes what a killed verification left behind and could harm the cluster.
func (r *Runner) removeForgotten(ctx context.Context, connection *Connection) {
	for {
		limited, cancel := context.WithTimeout(ctx, checkTimeout)
		removed, err := connection.removeForgotten(limited, forgottenAfter)
		cancel()
		switch {
		case removed:
			r.log.Warn("removed the APIService of a verification that did not end", "cluster", r.options().Target.Cluster, "name", apiServiceName)
		case err != nil && ctx.Err() == nil:
			r.log.Debug("cannot look for a verification that did not end", "cluster", r.options().Target.Cluster, "error", err)
		}
		timer := time.NewTimer(forgottenInterval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// keepApplied applies the objects, and again when they change, when a minute has passed, and soon after an error.
func (r *Runner) keepApplied(ctx context.Context, applier *Applier, now <-chan struct{}) {
	pause := firstPause
	for {
		objects := r.options().Wanted.Objects
		err := r.applyOnce(ctx, applier, objects)
		if ctx.Err() != nil {
			return
		}
		wait := applyInterval
		if err != nil {
			r.log.Debug("cannot apply cluster objects", "cluster", r.options().Target.Cluster, "error", err)
			wait, pause = pause, min(pause*2, applyInterval)
		} else {
			pause = firstPause
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-now:
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (r *Runner) applyOnce(ctx context.Context, applier *Applier, objects []kube.Object) error {
	limited, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	err := applier.Apply(limited, objects)
	if ctx.Err() != nil {
		return err
	}
	r.change(func(s *State) {
		s.Objects.Errors = nil
		if err != nil {
			s.Objects.Errors = lines(err)
		} else if digest := Digest(objects); s.Objects.Digest != digest {
			s.Objects.Digest, s.Objects.Applied, s.Objects.Count, s.Addons = digest, time.Now(), len(objects), nil
			wake(r.updatedAddons)
			r.log.Info("cluster objects applied", "cluster", s.Cluster, "objects", len(objects))
		}
	})
	return err
}

// lines are the texts of joined errors.
func lines(err error) []string {
	var texts []string
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			texts = append(texts, e.Error())
		}
		return texts
	}
	return []string{err.Error()}
}

// report calls Report with each state that differs from the one before.
func (r *Runner) report(ctx context.Context) {
	var last State
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.changed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(reportDelay):
		}
		state := r.snapshot()
		if !reflect.DeepEqual(state, last) {
			last = state
			r.options().Report(state)
		}
	}
}

// snapshot is the state with what follows from it.
func (r *Runner) snapshot() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.state
	s.Objects.Errors = slices.Clone(s.Objects.Errors)
	s.Nodes, s.Requests = maps.Clone(s.Nodes), maps.Clone(s.Requests)
	s.Problems = nil
	if r.unreachable != "" {
		s.Problems = append(s.Problems, r.unreachable)
	}
	s.Problems = append(s.Problems, s.Objects.Errors...)
	for name, node := range s.Nodes {
		node.Planned = r.current.Wanted.node(name) != nil
		node.Problem = r.nodeProblems[name]
		s.Nodes[name] = node
		if node.Problem != "" {
			s.Problems = append(s.Problems, node.Problem)
		}
	}
	for _, request := range s.Requests {
		if request.Phase != RequestPending {
			s.Problems = append(s.Problems, fmt.Sprintf("certificate request %s of %s was refused: %s", request.Name, request.Requester, request.Reason))
		}
	}
	slices.Sort(s.Problems)
	return s
}
