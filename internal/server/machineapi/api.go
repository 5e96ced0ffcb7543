// Package machineapi is the API between coldrack-agent and the server: JSON over TLS, with the types of
// package wire. Machines see nothing else of the server's state.
//
// Who may do what follows from the client certificate alone, so that it survives a restart of the
// server. A boot's one-time nonce buys a session certificate (CN "machine:NAME", O "coldrack:session"),
// with which a machine in discovery reports itself and carries out its intent. An installed node has a
// certificate of its own (CN "node:NAME", O "coldrack:node") for a key that never left its disk; it
// counts only while status.identity names that key.
//
// A destructive act is bound to an intent's id, and every answer that an agent acts upon irrevocably is
// given after the store has it.
package machineapi

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/content/swarm/kit"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/fleet"
)

// Store holds the Machines. Its answers are durable, and later ones than any cache's.
type Store interface {
	Get(ctx context.Context, name string) (*v1alpha1.Machine, error)
	Create(ctx context.Context, m *v1alpha1.Machine) (*v1alpha1.Machine, error)
	// UpdateStatus reads the Machine, lets change alter its status, and writes it; when another writer
	// was faster it starts over. An error of change ends it and is returned as it is.
	UpdateStatus(ctx context.Context, name string, change func(*v1alpha1.Machine) error) (*v1alpha1.Machine, error)
}

// Plans reads what installs are made of. Answers may come from a cache. Errors for what does not exist
// are those of the Kubernetes API (IsNotFound).
type Plans interface {
	Profile(ctx context.Context, name string) (*v1alpha1.Profile, error)
	Image(ctx context.Context, name string) (*v1alpha1.Image, error)
	Subnets(ctx context.Context) ([]v1alpha1.Subnet, error)
}

// Content knows the blobs of the imported bundles.
type Content interface {
	// ImageFiles returns what the agent must fetch to install the image: its chunk index and the boot
	// loaders of its bundle. The error says what is missing.
	ImageFiles(image *v1alpha1.Image) (index wire.Content, boot wire.BootFiles, err error)
	// ImageFacts returns what the image has of what a machine's settings can depend on, or nil where its bundle
	// does not say. The answer is shared and must not be changed.
	ImageFacts(image *v1alpha1.Image) *nodeconfig.ImageFacts
}

// Signer is the CA of machines.
type Signer interface {
	SignClient(public crypto.PublicKey, commonName string, organizations []string, ttl time.Duration) (certPEM []byte, leaf *x509.Certificate, err error)
	CertPEM() []byte
}

// Clusters knows what machines must have as nodes of a Kubernetes cluster, and signs what they need for it.
type Clusters interface {
	// Node is what the machine must have, and a channel that is closed when that may have changed.
	Node(machine string) (wire.NodeAssignment, <-chan struct{})
	// Reboot is the boot that the machine's cluster wants ended now, and why; empty: none. member is false for machines of no cluster.
	Reboot(machine string) (bootID, reason string, member bool)
	// Sign signs one of the certificates that the machine's plan names. An error that is members.ErrRefused is
	// for the machine.
	Sign(machine, cluster, certificate string, public crypto.PublicKey) (certPEM []byte, leaf *x509.Certificate, err error)
}

// Reboots knows the locks without which machines of no cluster do not reboot.
type Reboots interface {
	// Turn says whether a machine is bound to a lock, and which boot it may end now, and why; empty: none.
	Turn(m *v1alpha1.Machine) (bootID, reason string, bound bool)
}

// Kits knows what nodes exchange.
type Kits interface {
	// Kit is what the machine and the others of its cluster fetch; false when they fetch it from the server.
	Kit(ctx context.Context, machine string) (kit.Kit, bool, error)
}

// Restores have the data that members of etcd begin with after a restore.
type Restores interface {
	// MemberData opens that of a machine. An error that is fs.ErrNotExist: this server has none.
	MemberData(restore, machine string) (*os.File, error)
}

// Options are what an API needs; every field without a default must be set.
type Options struct {
	Fleet   *fleet.Fleet
	Store   Store
	Plans   Plans
	Content Content
	Signer  Signer
	Nonces  *Nonces
	// Clusters may be nil where there are none.
	Clusters Clusters
	// Reboots may be nil where there are no locks.
	Reboots Reboots
	// Kits may be nil where there are none.
	Kits Kits
	// Units may be nil where none are placed.
	Units Units
	// Restores may be nil where there are none.
	Restores Restores
	// Swarm lets machines fetch images from each other; nil sends them all to the boot listener.
	Swarm *swarm.Tracker
	// BootURL is the boot listener's base URL for a machine that has come from remote to this server's address local.
	BootURL func(local, remote netip.Addr) string
	Log     *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// HeartbeatInterval that nodes are told. Default 30 s.
	HeartbeatInterval time.Duration
	// MaxAttempts is how often a machine may begin one intent before it counts as failed. Default 5.
	MaxAttempts int32
}

// API answers coldrack-agent. It is an http.Handler.
type API struct {
	Options
	mux *http.ServeMux
	// strangers bounds what machines that nobody approved write into the store.
	strangers *rate.Limiter
}

// New returns an API.
func New(opts Options) *API {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.HeartbeatInterval == 0 {
		opts.HeartbeatInterval = 30 * time.Second
	}
	if opts.MaxAttempts == 0 {
		opts.MaxAttempts = 5
	}
	a := &API{Options: opts, mux: http.NewServeMux(), strangers: rate.NewLimiter(strangersBytesPerSecond, strangersBytesAtOnce)}
	for _, r := range a.routes() {
		a.mux.Handle(r.method+" "+r.path, a.handler(r))
	}
	a.mux.Handle("/", a.handler(route{access: anybody, serve: func(_ context.Context, c call) (any, error) {
		return nil, refuse(http.StatusNotFound, wire.CodeNotFound, "%s %s is no part of the machine API", c.request.Method, termtext.Line(c.request.URL.Path, 100))
	}}))
	return a
}

func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// TLSConfig is how the machine API listens: clients may have no certificate (enrolment), but one that
// they show must be of the machine CA.
func TLSConfig(certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error), clients *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: certificate,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      clients,
		NextProtos:     []string{"h2", "http/1.1"},
	}
}

// Server returns an HTTP server for the API with the time limits that strangers on a network call for.
// There is no write limit: the assignment's long poll has its own.
func (a *API) Server(config *tls.Config) *http.Server {
	return &http.Server{
		Handler: a, TLSConfig: config,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 5 * time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(a.Log.Handler(), slog.LevelDebug),
	}
}

// access says whose certificate opens a route.
type access int

const (
	anybody access = iota
	sessions
	nodes
	sessionsAndNodes
)

// route is one path of the API.
type route struct {
	method, path string
	access       access
	maxBody      int64
	serve        func(ctx context.Context, c call) (any, error)
}

// call is one authorised request.
type call struct {
	peer    peer
	request *http.Request
	body    []byte
}

func (a *API) routes() []route {
	const get, post = http.MethodGet, http.MethodPost
	return []route{
		{get, wire.PathTime, anybody, 0, a.time},
		{post, wire.PathEnroll, anybody, 64 << 10, body(a.enroll)},
		{post, wire.PathLive, anybody, 4 << 10, body(a.live)},
		{post, wire.PathInventory, sessions, 512 << 10, body(a.inventory)},
		{get, wire.PathAssignment, sessions, 0, a.assignment},
		{post, wire.PathProgress, sessions, 256 << 10, body(a.progress)},
		{post, wire.PathIdentity, sessions, 64 << 10, body(a.identity)},
		{post, wire.PathComplete, sessions, 256 << 10, body(a.complete)},
		{post, wire.PathHeartbeat, nodes, 256 << 10, body(a.heartbeat)},
		{post, wire.PathHardware, nodes, 512 << 10, body(a.hardware)},
		{get, wire.PathNode, nodes, 0, a.nodeAssignment},
		{get, wire.PathKit, nodes, 0, a.kit},
		{post, wire.PathCertificate, nodes, 64 << 10, body(a.nodeCertificate)},
		{post, wire.PathPhases, nodes, 256 << 10, body(a.phases)},
		{get, wire.PathEtcdData, nodes, 0, a.etcdData},
		{post, wire.PathUnits, nodes, 1 << 20, body(a.units)},
		{post, wire.PathSwarm, sessionsAndNodes, 512 << 10, body(a.swarm)},
		{post, wire.PathRenew, sessionsAndNodes, 64 << 10, body(a.renew)},
	}
}

// body decodes the request's JSON. Fields that are not known are ignored, because an agent may be newer
// than its server; everything else must be as it should.
func body[T any](serve func(ctx context.Context, c call, in T) (any, error)) func(context.Context, call) (any, error) {
	return func(ctx context.Context, c call) (any, error) {
		var in T
		if err := json.Unmarshal(c.body, &in); err != nil {
			return nil, refuse(http.StatusBadRequest, wire.CodeBadRequest, "body is not the JSON that %s takes: %v", c.request.URL.Path, err)
		}
		return serve(ctx, c, in)
	}
}

// refusal is an error that the agent is told as it is.
type refusal struct {
	status int
	what   wire.Error
}

func (r *refusal) Error() string { return r.what.Message }

func refuse(status int, code, format string, args ...any) error {
	return &refusal{status, wire.Error{Code: code, Message: fmt.Sprintf(format, args...)}}
}

func (a *API) handler(route route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		answer, err := a.serve(route, w, r)
		if file, is := answer.(*os.File); err == nil && is {
			defer file.Close()
			// It takes as long as its link needs.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
			w.Header().Set("Content-Type", "application/octet-stream")
			http.ServeContent(w, r, "", time.Time{}, file)
			return
		}
		if err == nil {
			respond(w, http.StatusOK, answer)
			return
		}
		var no *refusal
		switch {
		case errors.As(err, &no):
			if no.status != http.StatusServiceUnavailable {
				a.Log.Warn("machine request refused", "path", route.path, "from", r.RemoteAddr, "code", no.what.Code, "reason", no.what.Message)
			}
		case r.Context().Err() != nil:
			return // the client went away
		default:
			a.Log.Error("cannot answer a machine request", "path", route.path, "from", r.RemoteAddr, "err", err)
			no = &refusal{http.StatusInternalServerError, wire.Error{Code: wire.CodeInternal, Message: "the server failed to answer; its log says why. Ask again"}}
		}
		if no.status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "2")
		}
		respond(w, no.status, no.what)
	})
}

func (a *API) serve(route route, w http.ResponseWriter, r *http.Request) (any, error) {
	c := call{request: r}
	if route.access != anybody {
		peer, err := a.authenticate(r)
		if err != nil {
			return nil, err
		}
		if err := peer.may(route.access); err != nil {
			return nil, err
		}
		c.peer = peer
	}
	if route.path != wire.PathTime && !a.Fleet.IsSynced() {
		return nil, refuse(http.StatusServiceUnavailable, wire.CodeInternal, "the server is starting and has not read its machines yet; ask again")
	}
	if c.peer.kind == kindSession {
		if err := a.checkSession(r.Context(), c.peer); err != nil {
			if errors.Is(err, errSessionEnded) {
				a.twoSystems(c.peer.machine, r)
			}
			return nil, err
		}
	}
	if route.maxBody > 0 {
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, route.maxBody))
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return nil, refuse(http.StatusRequestEntityTooLarge, wire.CodeBadRequest, "body of %s is larger than %d bytes", route.path, route.maxBody)
		} else if err != nil {
			return nil, refuse(http.StatusBadRequest, wire.CodeBadRequest, "read body: %v", err)
		}
		c.body = text
	}
	return route.serve(r.Context(), c)
}

func respond(w http.ResponseWriter, status int, answer any) {
	text, err := json.Marshal(answer)
	if err != nil {
		http.Error(w, "cannot encode the answer", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(text)
}

func (a *API) time(context.Context, call) (any, error) {
	return wire.Time{Now: a.Now().UTC()}, nil
}

// machine returns the Machine that the caller is. A name that the cache does not have yet is looked up
// in the store.
func (a *API) machine(ctx context.Context, name string) (*v1alpha1.Machine, error) {
	if m, ok := a.Fleet.Get(name); ok {
		return m, nil
	}
	m, err := a.Store.Get(ctx, name)
	if apierrors.IsNotFound(err) {
		return nil, refuse(http.StatusNotFound, wire.CodeNotFound, "machine %s does not exist any more; boot from the network to be discovered again", name)
	}
	if err != nil {
		return nil, fmt.Errorf("read machine %s: %w", name, err)
	}
	a.Fleet.Put(m)
	return m, nil
}

// update changes a Machine's status durably and lets the fleet know at once.
func (a *API) update(ctx context.Context, name string, change func(*v1alpha1.Machine) error) (*v1alpha1.Machine, error) {
	m, err := a.Store.UpdateStatus(ctx, name, change)
	if apierrors.IsNotFound(err) {
		return nil, refuse(http.StatusNotFound, wire.CodeNotFound, "machine %s does not exist any more", name)
	}
	if err != nil {
		return nil, err
	}
	a.Fleet.Put(m)
	return m, nil
}

// address of the caller, without port.
func address(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().WithZone("").String()
	}
	return host
}
