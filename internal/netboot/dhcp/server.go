package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/netboot/lease"
	"coldrack.dev/internal/netboot/netif"
)

// JournalName is the file in Options.Dir that holds the leases.
const JournalName = "leases.journal"

// Options are what a server needs beside its Config.
type Options struct {
	Backend Backend
	// Dir is where leases are kept.
	Dir string
	Log *slog.Logger
	// Admit says whether a client's DISCOVER is to be answered now. One that is not comes again by itself. It is called under
	// the engine's lock, so it must not block. nil: everybody is answered.
	Admit func(client Query) bool
	// Passing says of a client that it only looks what it would be told: it is answered, and no machine is inferred from it. It is called as Admit
	// is. nil: nobody does.
	Passing func(client Query) bool
	// Shape says how a client must be answered that its own words do not tell. It is called as Admit is. nil: nobody needs it.
	Shape func(client Query) Shape
	// Now is the clock, time.Now by default.
	Now func() time.Time
	// Inside runs a function in the network namespace of the interfaces; by default it just calls it.
	Inside func(func() error) error
	// Beside runs as long as an interface is served; ctx ends when it no longer is. nil: nothing.
	Beside func(ctx context.Context, device string)
	// Changed is called when Services may tell something new. It must not block, nor call the server back. nil: nobody is told.
	Changed func()
}

// Server is a DHCPv4 server.
type Server struct {
	options Options
	engine  *engine
	journal *lease.Journal
	count   counters
	ready   chan struct{}
	// again asks for another attempt at what is not served.
	again chan struct{}

	mu      sync.Mutex
	config  Config
	serving context.Context // nil until Serve
	present []netif.Interface
	links   map[string]*running
	failed  map[string]error // interfaces to serve that cannot be opened
	tasks   sync.WaitGroup
}

// running is an interface that is being served.
type running struct {
	*iface
	stop context.CancelFunc
}

// retryAfter is how long after a failure an interface is opened again, if nothing happens to it before.
const retryAfter = 3 * time.Second

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
	if options.Beside == nil {
		options.Beside = func(context.Context, string) {}
	}
	if options.Changed == nil {
		options.Changed = func() {}
	}
	journal, records, err := lease.Open(filepath.Join(options.Dir, JournalName), options.Log)
	if err != nil {
		return nil, err
	}
	s := &Server{options: options, journal: journal, config: config, ready: make(chan struct{}), again: make(chan struct{}, 1),
		links: map[string]*running{}, failed: map[string]error{}}
	s.engine = newEngine(options.Backend, options.Log, options.Now, journal.Add, &s.count)
	s.engine.admit, s.engine.passing, s.engine.changed = options.Admit, options.Passing, options.Changed
	s.engine.shapeOf = options.Shape
	journal.Snapshot = s.engine.records
	s.engine.configure(config, records)
	return s, nil
}

// Ready is closed once Serve has opened the interfaces that there are.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Stats gives the present totals.
func (s *Server) Stats() Stats {
	stats := s.count.snapshot()
	stats.StoreCommits = s.journal.Commits.Load()
	stats.StoreRecords = s.journal.Records.Load()
	stats.StoreFailures = s.journal.Failures.Load()
	stats.Subnets = s.engine.subnetStats()
	return stats
}

// Services tells how each subnet is served at present. Before Serve has looked at the interfaces none has a Problem.
func (s *Server) Services() []SubnetService {
	s.mu.Lock()
	defer s.mu.Unlock()
	served := map[string][]netip.Addr{}
	for name, l := range s.links {
		served[name] = l.addresses()
	}
	var all []SubnetService
	for _, subnet := range s.config.Subnets {
		now := service(subnet, s.engine.relayed(subnet.CIDR), served, s.config.Interfaces, s.present, s.failed)
		if s.present == nil {
			now.Problem = ""
		}
		now.Taken, now.Proxy = s.engine.trouble(subnet.CIDR)
		now.Servers, now.Unheeded = s.engine.others(subnet.CIDR), s.engine.ignoring(subnet.CIDR)
		all = append(all, now)
	}
	return all
}

// Serve answers clients until the context ends. It may be called once. It follows the interfaces: one that is added, gets a link or an address, or
// loses it later is served, or no longer, from then on. It fails at once when it lacks a privilege, or when another
// program has the port on an interface that the Config names.
func (s *Server) Serve(until context.Context) error {
	ctx, cancel := context.WithCancelCause(until)
	defer cancel(nil)
	s.mu.Lock()
	if s.serving != nil {
		s.mu.Unlock()
		return errors.New("DHCP server: Serve was called before")
	}
	s.serving = ctx
	s.mu.Unlock()
	// The journal outlives the interfaces, so that what was promised is written.
	journalCtx, stopJournal := context.WithCancel(context.WithoutCancel(ctx))
	var store, follower sync.WaitGroup
	store.Go(func() { s.journal.Run(journalCtx) })
	updates := make(chan []netif.Interface)
	follower.Go(func() {
		cancel(netif.Follow(ctx, s.options.Inside, func(present []netif.Interface) {
			select {
			case updates <- present:
			case <-ctx.Done():
			}
		}))
	})
	err := s.follow(ctx, updates)
	if err == nil && until.Err() == nil {
		err = context.Cause(ctx) // the interfaces cannot be followed any more
	}
	cancel(nil)
	follower.Wait()
	s.mu.Lock()
	for name := range s.links {
		s.closeLocked(name)
	}
	s.mu.Unlock()
	s.tasks.Wait()
	stopJournal()
	store.Wait()
	return err
}

// follow serves the interfaces as they come and go, until ctx ends.
func (s *Server) follow(ctx context.Context, updates <-chan []netif.Interface) error {
	retry := time.NewTimer(retryAfter)
	defer retry.Stop()
	started := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case present := <-updates:
			s.mu.Lock()
			s.present = present
			s.syncLocked()
			err := s.fatalLocked()
			s.mu.Unlock()
			if !started && err != nil {
				return err
			}
			if !started {
				started = true
				close(s.ready)
			}
		case <-s.again:
			retry.Reset(retryAfter)
		case <-retry.C:
			s.mu.Lock()
			s.syncLocked()
			s.mu.Unlock()
		}
	}
}

// fatalLocked is what a server must not start with: time will not heal it, and the person who starts it is there to hear of it.
func (s *Server) fatalLocked() error {
	for name, err := range s.failed {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EADDRINUSE) && slices.Contains(s.config.Interfaces, name) {
			return err
		}
	}
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
	s.config = config
	s.engine.configure(config, nil)
	s.syncLocked()
	s.options.Changed()
	return nil
}

// syncLocked opens and closes interfaces so that those are served that are to be.
func (s *Server) syncLocked() {
	if s.serving == nil || s.serving.Err() != nil {
		return
	}
	wanted := map[string]netif.Interface{}
	for _, i := range s.present {
		if unfit(i, s.config.Interfaces) == "" {
			wanted[i.Name] = i
		}
	}
	for name, l := range s.links {
		if now, ok := wanted[name]; !ok || now.Index != l.index {
			s.options.Log.Warn("DHCP is no longer served on an interface", "interface", name, "reason", s.lossLocked(name))
			s.closeLocked(name)
		}
	}
	for name := range s.failed {
		if _, ok := wanted[name]; !ok {
			delete(s.failed, name)
		}
	}
	for name, i := range wanted {
		own := i.IPv4()
		if l := s.links[name]; l != nil {
			if !slices.Equal(l.addresses(), own) {
				s.options.Log.Info("the addresses of an interface have changed", "interface", name, "addresses", own)
				l.own.Store(&own)
			}
			continue
		}
		s.startLocked(i.Index, name, own)
	}
	s.options.Changed()
}

func (s *Server) lossLocked(name string) string {
	i := slices.IndexFunc(s.present, func(i netif.Interface) bool { return i.Name == name })
	if i < 0 {
		return "does not exist any more"
	}
	if why := unfit(s.present[i], s.config.Interfaces); why != "" {
		return why
	}
	return "was replaced by another of that name"
}

func (s *Server) startLocked(index int, name string, own []netip.Addr) {
	var l *iface
	err := s.options.Inside(func() (err error) {
		l, err = openIface(s.serving, name, own, s.options.Log, &s.count)
		return err
	})
	if err == nil && l.index != index {
		l.close()
		err = fmt.Errorf("interface %s was replaced while it was opened", name)
	}
	if err != nil {
		if before := s.failed[name]; before == nil || before.Error() != err.Error() {
			s.options.Log.Error("DHCP cannot be served on an interface; trying again", "interface", name, "err", err)
		}
		s.failed[name] = err
		s.tryAgain()
		return
	}
	delete(s.failed, name)
	ctx, stop := context.WithCancel(s.serving)
	s.links[name] = &running{l, stop}
	s.options.Log.Info("serving DHCP", "interface", name, "addresses", own)
	s.tasks.Go(func() { s.serve(ctx, l) })
}

// closeLocked ends the service of an interface. Its sockets are closed when it returns, so that it can be opened again.
func (s *Server) closeLocked(name string) {
	l := s.links[name]
	delete(s.links, name)
	l.stop()
	l.close()
}

func (s *Server) tryAgain() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// serve works with an interface's sockets until ctx ends or one fails.
func (s *Server) serve(ctx context.Context, l *iface) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var tasks sync.WaitGroup
	tasks.Go(func() { cancel(l.receive(l.udp, s.engine.handle)) })
	if l.boot != nil {
		tasks.Go(func() { cancel(l.receive(l.boot, s.engine.handle)) })
	}
	tasks.Go(func() { cancel(l.watch(s.engine.overheard)) })
	tasks.Go(func() { s.options.Beside(ctx, l.device) })
	<-ctx.Done()
	l.close()
	tasks.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.links[l.device]; now != nil && now.iface == l && s.serving.Err() == nil {
		err := context.Cause(ctx)
		s.options.Log.Error("DHCP has failed on an interface; trying again", "interface", l.device, "err", err)
		now.stop()
		delete(s.links, l.device)
		s.failed[l.device] = err
		s.options.Changed()
		s.tryAgain()
	}
}

var _ link = (*iface)(nil)
