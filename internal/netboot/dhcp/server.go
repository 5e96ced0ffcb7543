package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"
)

// Options are what a server needs beside its Config.
type Options struct {
	Backend Backend
	// Dir is where leases are kept.
	Dir string
	Log *slog.Logger
	// Admit says whether a client's DISCOVER is to be answered now. One that is not comes again by itself. It is called under
	// the engine's lock, so it must not block. nil: everybody is answered.
	Admit func(client Query) bool
	// Now is the clock, time.Now by default.
	Now func() time.Time
	// Inside runs a function in the network namespace of the interfaces; by default it just calls it.
	Inside func(func() error) error
}

// Server is a DHCPv4 server.
type Server struct {
	options Options
	engine  *engine
	journal *journal
	count   counters
	ready   chan struct{}

	mu      sync.Mutex
	config  Config
	serving context.Context // nil until Serve
	links   map[string]*running
	tasks   sync.WaitGroup
}

// running is an interface that is being served.
type running struct{ cancel context.CancelFunc }

// refreshEvery is how often an interface's addresses are read again.
const refreshEvery = 3 * time.Second

// New makes a server and reads its leases. The Config must be valid.
func New(options Options, config Config) (*Server, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("DHCP configuration: %w", err)
	}
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Inside == nil {
		options.Inside = func(fn func() error) error { return fn() }
	}
	journal, records, err := openJournal(options.Dir, options.Log)
	if err != nil {
		return nil, err
	}
	s := &Server{options: options, journal: journal, config: config, ready: make(chan struct{}), links: map[string]*running{}}
	s.engine = newEngine(options.Backend, options.Log, options.Now, journal.add, &s.count)
	s.engine.admit = options.Admit
	journal.snapshot = s.engine.records
	s.engine.configure(config, records)
	return s, nil
}

// Ready is closed once Serve has opened all interfaces.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Stats gives the present totals.
func (s *Server) Stats() Stats {
	stats := s.count.snapshot()
	stats.StoreCommits = s.journal.commits.Load()
	stats.StoreRecords = s.journal.records.Load()
	stats.StoreFailures = s.journal.failures.Load()
	stats.Subnets = s.engine.subnetStats()
	return stats
}

// Serve answers clients until ctx ends. It may be called once. It fails at once when an interface
// cannot be served; one that goes away later is taken up again when it is back.
func (s *Server) Serve(ctx context.Context) error {
	s.mu.Lock()
	if s.serving != nil {
		s.mu.Unlock()
		return errors.New("DHCP server: Serve was called before")
	}
	linkCtx, stopLinks := context.WithCancel(ctx)
	defer stopLinks()
	s.serving = linkCtx
	opened, err := s.openLocked(linkCtx, s.config.Interfaces)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	// The journal outlives the interfaces, so that what was promised is written.
	journalCtx, stopJournal := context.WithCancel(context.WithoutCancel(ctx))
	var store sync.WaitGroup
	store.Go(func() { s.journal.run(journalCtx) })
	for _, l := range opened {
		s.startLocked(l)
	}
	s.mu.Unlock()
	close(s.ready)
	<-ctx.Done()

	s.mu.Lock()
	stopLinks()
	s.mu.Unlock()
	s.tasks.Wait()
	stopJournal()
	store.Wait()
	return nil
}

// SetConfig replaces the configuration. Leases stay as far as they fit. When it returns an error,
// nothing has changed.
func (s *Server) SetConfig(config Config) error {
	if err := config.Validate(); err != nil {
		return fmt.Errorf("DHCP configuration: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if reflect.DeepEqual(config, s.config) {
		return nil
	}
	if s.serving != nil && s.serving.Err() == nil {
		added := slices.DeleteFunc(slices.Clone(config.Interfaces), func(name string) bool { return s.links[name] != nil })
		opened, err := s.openLocked(s.serving, added)
		if err != nil {
			return err
		}
		for name, link := range s.links {
			if !slices.Contains(config.Interfaces, name) {
				link.cancel()
				delete(s.links, name)
			}
		}
		for _, l := range opened {
			s.startLocked(l)
		}
	}
	s.config = config
	s.engine.configure(config, nil)
	return nil
}

// openLocked opens all of the interfaces or none.
func (s *Server) openLocked(ctx context.Context, names []string) ([]*iface, error) {
	var opened []*iface
	for _, name := range names {
		l, err := s.open(ctx, name)
		if err != nil {
			for _, l := range opened {
				l.close()
			}
			return nil, err
		}
		opened = append(opened, l)
	}
	return opened, nil
}

func (s *Server) open(ctx context.Context, name string) (*iface, error) {
	var l *iface
	err := s.options.Inside(func() (err error) {
		l, err = openIface(ctx, name, s.options.Log, &s.count)
		return err
	})
	return l, err
}

func (s *Server) startLocked(l *iface) {
	ctx, cancel := context.WithCancel(s.serving)
	s.links[l.device] = &running{cancel: cancel}
	s.tasks.Go(func() {
		defer cancel()
		s.keep(ctx, l)
	})
}

// keep serves an interface, and opens it anew when it fails, until ctx ends.
func (s *Server) keep(ctx context.Context, l *iface) {
	for l != nil {
		s.options.Log.Info("serving DHCP", "interface", l.device, "addresses", l.addresses())
		err := s.serve(ctx, l)
		l = s.reopen(ctx, l.device, err)
	}
}

// reopen tries until it has the interface again. It is nil when ctx ends.
func (s *Server) reopen(ctx context.Context, device string, lost error) *iface {
	for ctx.Err() == nil {
		s.options.Log.Warn("DHCP interface lost, trying again", "interface", device, "err", lost)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(refreshEvery):
		}
		var l *iface
		if l, lost = s.open(ctx, device); lost == nil {
			return l
		}
	}
	return nil
}

// serve works with an interface's sockets until one fails or ctx ends, and closes them.
func (s *Server) serve(ctx context.Context, l *iface) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var tasks sync.WaitGroup
	tasks.Go(func() { cancel(l.receive(s.engine.handle)) })
	tasks.Go(func() { cancel(l.watch(s.engine.overheard)) })
	tasks.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(refreshEvery):
			}
			if err := s.options.Inside(l.refresh); err != nil {
				cancel(err)
			}
		}
	})
	<-ctx.Done()
	l.close()
	tasks.Wait()
	return context.Cause(ctx)
}

var _ link = (*iface)(nil)
