package etcddiscovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
)

const (
	// maxWaits is how many clients wait for members at once.
	maxWaits = 2048
	// missesPerMinute is how often an address may ask for tokens that there are not.
	missesPerMinute = 60
	// maxRemembered bounds the addresses whose misses are counted.
	maxRemembered = 10_000
)

// errBusy is for who should ask again later.
var errBusy = errors.New("too many requests; try again later")

// Options of a Server.
type Options struct {
	Registry *Registry
	// Open lets anybody make tokens, by GET /new.
	Open bool
	Log  *slog.Logger
}

// Server answers members of etcd clusters on any number of listeners: HTTP/1 by the protocol of the public service, gRPC by etcd's API.
type Server struct {
	options  Options
	registry *Registry
	log      *slog.Logger
	http     *http.Server

	requests, misses, waits atomic.Int64

	mu     sync.Mutex
	missed map[netip.Addr]*rate.Limiter
}

// New makes a server.
func New(options Options) *Server {
	s := &Server{options: options, registry: options.Registry, log: options.Log, missed: map[netip.Addr]*rate.Limiter{}}
	calls := grpc.NewServer(grpc.MaxRecvMsgSize(maxForm))
	pb.RegisterKVServer(calls, &kv{server: s})
	pb.RegisterWatchServer(calls, &watch{server: s})
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.requests.Add(1)
			if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
				calls.ServeHTTP(w, r)
				return
			}
			s.serveV2(w, r)
		}),
		Protocols: protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 16, MaxReceiveBufferPerConnection: 1 << 16, MaxReceiveBufferPerStream: 1 << 15,
			SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second,
		},
		// A wait has no deadline of its own; a client that is gone is noticed by its connection.
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(options.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers until ctx ends.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(listener) }()
	select {
	case err := <-served:
		if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("etcd discovery: %w", err)
	case <-ctx.Done():
		listener.Close()
		<-served
		return nil
	}
}

// Close ends all connections: a wait that is cut off is asked again.
func (s *Server) Close() error { return s.http.Close() }

// Stats of a server, and of its tokens.
type Stats struct {
	Requests, Misses uint64
	// Waiting clients.
	Waiting int
	// Forming are tokens that wait for members, Complete those that have all.
	Forming, Complete int
}

// Stats gives the present numbers.
func (s *Server) Stats() Stats {
	now := Stats{Requests: uint64(s.requests.Load()), Misses: uint64(s.misses.Load()), Waiting: int(s.waits.Load())}
	for _, t := range s.registry.List() {
		switch {
		case !s.registry.now().Before(t.Expires):
		case t.Complete():
			now.Complete++
		default:
			now.Forming++
		}
	}
	return now
}

// get is Registry.Get for a stranger, who may not try out many.
func (s *Server) get(token string, from netip.Addr) (Token, <-chan struct{}, error) {
	t, changed, err := s.registry.Get(token)
	if errors.Is(err, ErrNoToken) {
		s.misses.Add(1)
		if !s.miss(from) {
			return Token{}, nil, errBusy
		}
	}
	return t, changed, err
}

func (s *Server) miss(from netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := s.missed[from]
	if limit == nil {
		if len(s.missed) >= maxRemembered {
			clear(s.missed)
		}
		limit = rate.NewLimiter(rate.Every(time.Minute/missesPerMinute), missesPerMinute)
		s.missed[from] = limit
	}
	return limit.Allow()
}

// enter counts somebody who waits in, until leave.
func (s *Server) enter() (leave func(), err error) {
	if s.waits.Add(1) > maxWaits {
		s.waits.Add(-1)
		return nil, errBusy
	}
	return func() { s.waits.Add(-1) }, nil
}

func (s *Server) register(token, id, peers string, from netip.Addr) (Token, Member, error) {
	t, m, err := s.registry.Register(token, id, peers, from)
	if err != nil {
		s.log.Warn("no member of etcd registered", "token", Short(token), "client", from, "err", err)
	} else {
		s.log.Info("member of etcd registered", "token", Short(token), "client", from, "member", m.ID, "peers", m.Peers, "members", len(t.Members), "size", t.Size)
	}
	return t, m, err
}

// tell records that an address is being told a token as it is now, if that is all of its members.
func (s *Server) tell(t Token, from netip.Addr) error {
	if !t.Complete() {
		return nil
	}
	return s.registry.Tell(t.ID, from)
}

// Short names a token where those may read who must not use it.
func Short(token string) string { return token[:min(len(token), 6)] }

func addressOf(remote string) netip.Addr {
	at, _ := netip.ParseAddrPort(remote)
	return at.Addr().Unmap().WithZone("")
}
