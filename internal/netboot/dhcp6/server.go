package dhcp6

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/insomniacslk/dhcp/dhcpv6"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/netboot/lease"
	"coldrack.dev/internal/netboot/netif"
)

// Files in Options.Dir: the leases, and the UUID by which clients know this server.
const (
	JournalName = "leases6.journal"
	uuidName    = "dhcp6-server-uuid"
)

// Options are what a server needs beside its Config.
type Options struct {
	Backend Backend
	// Dir is where leases are kept.
	Dir string
	Log *slog.Logger
	// Admit says whether a client's Solicit is to be answered now. One that is not comes again by itself. It is called under
	// the engine's lock, so it must not block. nil: everybody is answered.
	Admit func(client Query) bool
	// Now is the clock, time.Now by default.
	Now func() time.Time
	// Inside runs a function in the network namespace of the interfaces; by default it just calls it.
	Inside func(func() error) error
	// Beside runs as long as an interface is served; ctx ends when it no longer is. nil: nothing.
	Beside func(ctx context.Context, device string)
	// Changed is called when Services may tell something new. It must not block, nor call the server back. nil: nobody is told.
	Changed func()
}

// Server is a DHCPv6 server.
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
	links   map[string]*iface
	failed  map[string]error // interfaces to serve that cannot be opened
	tasks   sync.WaitGroup
}

// retryAfter is how long after a failure an interface is opened again, if nothing happens to it before.
const retryAfter = 3 * time.Second

// New makes a server and reads its leases. The Config must be valid.
func New(options Options, config Config) (*Server, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("DHCPv6 configuration: %w", err)
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
	id, err := identify(filepath.Join(options.Dir, uuidName))
	if err != nil {
		return nil, err
	}
	s := &Server{options: options, journal: journal, config: config, ready: make(chan struct{}), again: make(chan struct{}, 1),
		links: map[string]*iface{}, failed: map[string]error{}}
	s.engine = newEngine(options.Backend, options.Log, options.Now, journal.Add, &s.count, &dhcpv6.DUIDUUID{UUID: id})
	s.engine.admit, s.engine.changed = options.Admit, options.Changed
	journal.Snapshot = s.engine.records
	s.engine.configure(config, records)
	return s, nil
}

// identify reads this server's UUID, and makes one the first time: clients renew only with the server that they know.
func identify(file string) (uuid.UUID, error) {
	content, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		id := uuid.New()
		if err := durable.WriteFile(file, []byte(id.String()+"\n"), 0o600); err != nil {
			return id, fmt.Errorf("keep the DHCPv6 server's identifier: %w", err)
		}
		return id, nil
	case err != nil:
		return uuid.UUID{}, fmt.Errorf("read the DHCPv6 server's identifier: %w", err)
	}
	id, err := uuid.Parse(strings.TrimSpace(string(content)))
	if err != nil {
		return id, fmt.Errorf("the DHCPv6 server's identifier in %s is no UUID: %w; delete the file to have another one made, and clients find this server anew", file, err)
	}
	return id, nil
}

// Ready is closed once Serve has opened the interfaces that there are.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Stats gives the present totals.
func (s *Server) Stats() Stats {
	stats := s.count.snapshot()
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
		all = append(all, now)
	}
	return all
}

// relayed tells whether a relay has asked for a subnet.
func (e *engine) relayed(subnet netip.Prefix) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.relays[subnet]
}

// Serve answers clients until the context ends. It may be called once. It follows the interfaces: one that is added, gets a link or an address, or
// loses it later is served, or no longer, from then on. No interface is opened as long as no subnet is to be served.
func (s *Server) Serve(until context.Context) error {
	ctx, cancel := context.WithCancelCause(until)
	defer cancel(nil)
	s.mu.Lock()
	if s.serving != nil {
		s.mu.Unlock()
		return errors.New("DHCPv6 server: Serve was called before")
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
	s.follow(ctx, updates)
	var err error
	if until.Err() == nil {
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
func (s *Server) follow(ctx context.Context, updates <-chan []netif.Interface) {
	retry := time.NewTimer(retryAfter)
	defer retry.Stop()
	started := false
	for {
		select {
		case <-ctx.Done():
			return
		case present := <-updates:
			s.mu.Lock()
			s.present = present
			s.syncLocked()
			s.mu.Unlock()
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

// SetConfig replaces the configuration. Leases stay as far as they fit. When it returns an error,
// nothing has changed.
func (s *Server) SetConfig(config Config) error {
	if err := config.Validate(); err != nil {
		return fmt.Errorf("DHCPv6 configuration: %w", err)
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
	needed := slices.ContainsFunc(s.config.Subnets, func(s Subnet) bool { return s.Mode != ModeOff })
	for _, i := range s.present {
		if needed && unfit(i, s.config.Interfaces) == "" {
			wanted[i.Name] = i
		}
	}
	for name, l := range s.links {
		if now, ok := wanted[name]; !ok || now.Index != l.index {
			s.options.Log.Info("DHCPv6 is no longer served on an interface", "interface", name)
			s.closeLocked(name)
		}
	}
	for name := range s.failed {
		if _, ok := wanted[name]; !ok {
			delete(s.failed, name)
		}
	}
	for name, i := range wanted {
		addresses := own(i)
		if l := s.links[name]; l != nil {
			l.own.Store(&addresses)
			continue
		}
		s.startLocked(i.Index, name, addresses)
	}
	s.options.Changed()
}

func (s *Server) startLocked(index int, name string, addresses []netip.Addr) {
	var l *iface
	err := s.options.Inside(func() (err error) {
		l, err = openIface(s.serving, name, addresses, s.options.Log, &s.count)
		return err
	})
	if err == nil && l.index != index {
		l.close()
		err = fmt.Errorf("interface %s was replaced while it was opened", name)
	}
	if err != nil {
		if before := s.failed[name]; before == nil || before.Error() != err.Error() {
			s.options.Log.Error("DHCPv6 cannot be served on an interface; trying again", "interface", name, "err", err)
		}
		s.failed[name] = err
		s.tryAgain()
		return
	}
	delete(s.failed, name)
	s.links[name] = l
	s.options.Log.Info("serving DHCPv6", "interface", name, "addresses", addresses)
	s.tasks.Go(func() { s.serve(l) })
}

// closeLocked ends the service of an interface. Its socket is closed when it returns, so that it can be opened again.
func (s *Server) closeLocked(name string) {
	l := s.links[name]
	delete(s.links, name)
	l.close()
}

func (s *Server) tryAgain() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// serve works with an interface's socket until it is closed or fails.
func (s *Server) serve(l *iface) {
	ctx, stop := context.WithCancel(s.serving)
	var beside sync.WaitGroup
	beside.Go(func() { s.options.Beside(ctx, l.device) })
	err := l.receive(s.engine.handle)
	l.close()
	stop()
	beside.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links[l.device] == l && s.serving.Err() == nil {
		s.options.Log.Error("DHCPv6 has failed on an interface; trying again", "interface", l.device, "err", err)
		delete(s.links, l.device)
		s.failed[l.device] = err
		s.options.Changed()
		s.tryAgain()
	}
}
