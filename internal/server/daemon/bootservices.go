package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/netboot/connlimit"
	"coldrack.dev/internal/netboot/httpboot"
	"coldrack.dev/internal/netboot/netif"
	"coldrack.dev/internal/netboot/sntp"
	"coldrack.dev/internal/netboot/tftp"
	"coldrack.dev/internal/server/etcddiscovery"
	"coldrack.dev/internal/server/omaha"
)

// bootServices are the servers that machines talk to, DHCP apart. Each serves any number of sockets.
type bootServices struct {
	web      *httpboot.Server
	files    *tftp.Server
	machines *http.Server
	clock    *sntp.Server
	places   int // for connections to the machine API, for each set of sockets
	// discovery is nil where members of etcd are not served; its places are those for connections.
	discovery       *etcddiscovery.Server
	discoveryPlaces int
	updates         *omaha.Service // nil where there are none, with as many places
	log             *slog.Logger

	mu        sync.Mutex
	listeners []*connlimit.Listener
	past      connlimit.Stats // of sets that were closed
}

// connections to the machine API, of all sets.
func (b *bootServices) connections() connlimit.Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	sum := b.past
	for _, l := range b.listeners {
		sum = sum.Plus(l.Stats())
	}
	return sum
}

// serve answers by a set of sockets until ctx ends, and closes them.
func (b *bootServices) serve(ctx context.Context, set bootSockets) error {
	defer set.close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return b.web.Serve(ctx, set.http) })
	group.Go(func() error { return b.files.Serve(ctx, set.tftp) })
	if set.time != nil {
		group.Go(func() error { return b.clock.Serve(ctx, set.time) })
	} else {
		b.log.Info("machines are not told the time by this server; if its host has no time server, their clocks need another", "err", set.timeErr)
	}
	if set.updates != nil {
		group.Go(func() error {
			return b.updates.Serve(ctx, connlimit.New(set.updates, connlimit.Options{Max: b.discoveryPlaces, PerClient: connectionsPerMachine}))
		})
	}
	if set.discovery != nil {
		group.Go(func() error {
			return b.discovery.Serve(ctx, connlimit.New(set.discovery, connlimit.Options{Max: b.discoveryPlaces, PerClient: connectionsPerMachine}))
		})
	}
	limited := limitMachines(set.machine, b.places)
	b.mu.Lock()
	b.listeners = append(b.listeners, limited)
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.past = b.past.Plus(limited.Stats().Totals())
		b.listeners = slices.DeleteFunc(b.listeners, func(l *connlimit.Listener) bool { return l == limited })
	}()
	group.Go(func() error {
		if err := b.machines.ServeTLS(limited, "", ""); ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("machine API: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		limited.Close() // or the server has closed it already
		return nil
	})
	return group.Wait()
}

// serveSockets answers by the sockets that were opened at the start. Where interfaces were chosen, those that come later are
// served, too, and those that go are not any more.
func (s *server) serveSockets(ctx context.Context, services *bootServices) error {
	if len(s.cfg.Interfaces) == 0 {
		return services.serve(ctx, s.sockets[0])
	}
	defer closeSockets(s.sockets)
	group, ctx := errgroup.WithContext(ctx)
	served := map[string]*servedInterface{}
	group.Go(func() error {
		return netif.Follow(ctx, s.inside, func(present []netif.Interface) {
			for _, name := range s.cfg.Interfaces {
				i := slices.IndexFunc(present, func(i netif.Interface) bool { return i.Name == name })
				if now := served[name]; now != nil && (i < 0 || present[i].Index != now.index) {
					s.log.Info("an interface to serve has gone", "interface", name)
					now.stop()
					delete(served, name)
				}
				if i >= 0 && served[name] == nil {
					served[name] = s.serveInterface(ctx, group, services, present[i])
				}
			}
		})
	})
	return group.Wait()
}

// servedInterface is one that sockets are bound to. They are bound to its index: another of the same name needs others.
type servedInterface struct {
	index int
	stop  context.CancelFunc
}

// serveInterface answers by an interface until it is stopped; nil when its sockets cannot be opened.
func (s *server) serveInterface(ctx context.Context, group *errgroup.Group, services *bootServices, i netif.Interface) *servedInterface {
	set, err := s.socketsOf(ctx, i)
	if err != nil {
		s.log.Error("cannot serve an interface; trying again when the interfaces change", "interface", i.Name, "err", err)
		return nil
	}
	ctx, stop := context.WithCancel(ctx)
	group.Go(func() error {
		defer stop()
		if err := services.serve(ctx, set); err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("interface %s: %w", i.Name, err)
		}
		return nil
	})
	return &servedInterface{index: i.Index, stop: stop}
}

// socketsOf are those of the start, for an interface that was there, or new ones.
func (s *server) socketsOf(ctx context.Context, on netif.Interface) (bootSockets, error) {
	if i := slices.IndexFunc(s.sockets, func(set bootSockets) bool { return set.device == on.Name && set.index == on.Index }); i >= 0 {
		set := s.sockets[i]
		s.sockets = slices.Delete(s.sockets, i, i+1)
		return set, nil
	}
	return openBootSockets(ctx, s.cfg, on)
}
