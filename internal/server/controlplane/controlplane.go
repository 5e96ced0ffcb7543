// Package controlplane is where the kinds of coldrack.dev live: it brings up a Kubernetes-style API that
// kubectl and our controllers speak to, on one of three engines.
//
//   - EngineEmbedded: an etcd inside this process, reachable through a socket that only this user may open,
//     below an API server inside this process. Nothing else is needed.
//   - EngineEtcd: the same API server over an etcd cluster that already exists; several servers may run side
//     by side.
//   - EngineKubernetes: an existing Kubernetes API holds the kinds. Only our CRDs are installed there; no
//     listener is opened, and its own authentication, authorization, audit and encryption apply.
//
// The package knows the kinds only as data, apart from the rules between objects, which package v1alpha1
// states and the admission of the first two engines enforces.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/server/audit"
	"k8s.io/client-go/rest"
)

// Engine is what holds the kinds.
type Engine string

const (
	EngineEmbedded   Engine = "embedded"
	EngineEtcd       Engine = "etcd"
	EngineKubernetes Engine = "kubernetes"
)

// Config says which engine to run and how people reach it. The zero value of every optional field works.
type Config struct {
	// Logger receives what the control plane has to say. Required.
	Logger *slog.Logger `json:"-"`
	// DataDir holds etcd, keys, tokens and the audit log. Required except with Kubeconfig. Created with
	// mode 0700 when it does not exist.
	DataDir string

	// Address is where the API listens, host:port. Port 0 takes any free one; see ControlPlane.Address.
	Address string
	// Listener takes the place of Address, where it is set: that of a Door. Stop closes it, and not the Door.
	Listener net.Listener
	// ServingCert and ServingKey are the API's certificate chain and key, PEM.
	ServingCert, ServingKey []byte
	// ClientCAs are the certificates, PEM, that sign people's client certificates. The subject's common
	// name is the user, its organizations are the groups.
	ClientCAs []byte
	// EncryptionKey, 32 bytes, is what Secrets are encrypted with in the store. Servers that share a store need
	// the same one. Required except with Kubeconfig.
	EncryptionKey []byte
	// Handlers are served beside the API under the same authentication: anyone with a role may read
	// (GET and HEAD), operators and admins may do the rest; to viewerPostPaths, viewers may also post, and what is below adminPaths is for admins. A key that ends in "/" stands for everything
	// below it. Keys must not begin with /api, /openapi, /healthz, /livez, /readyz, /metrics or /version.
	Handlers map[string]http.Handler `json:"-"`
	// Front, if any, is given each request before the API authenticates it, and answers it or hands it on; see WithPerson.
	Front func(api http.Handler) http.Handler `json:"-"`
	// Normalize returns a machine's identifiers in the form in which equal ones are equal, those that vendors
	// put on many machines emptied in their place, so that two Machines cannot claim the same one. Nil: they
	// are compared as they are written.
	Normalize func(v1alpha1.Identifiers) v1alpha1.Identifiers `json:"-"`
	// Audit keeps the records of who did what. nil: a log below DataDir with the usual bounds.
	Audit *audit.Log `json:"-"`
	// AuditContinue lets writes go on whose record cannot be kept. Otherwise they are refused.
	AuditContinue bool
	// Version is our own version, which /version shows as build metadata.
	Version string

	// StoreQuota is the size of the embedded store's file at which it refuses writes, bytes; 0: DefaultStoreQuota.
	StoreQuota int64
	// EtcdEndpoints selects EngineEtcd. The files are needed where the etcd cluster uses TLS.
	EtcdEndpoints                         []string
	EtcdCAFile, EtcdCertFile, EtcdKeyFile string
	// EtcdPrefix is the root of our keys in an etcd cluster that others may use too. Default "/coldrack".
	EtcdPrefix string

	// Kubeconfig selects EngineKubernetes and names a kubeconfig file.
	Kubeconfig string
	// LeaseNamespace is where leader election keeps its Leases in that cluster. Default "kube-system".
	LeaseNamespace string
}

// Engine that c selects.
func (c Config) Engine() Engine {
	switch {
	case c.Kubeconfig != "":
		return EngineKubernetes
	case len(c.EtcdEndpoints) > 0:
		return EngineEtcd
	}
	return EngineEmbedded
}

func (c Config) validate() error {
	var errs []error
	if c.Logger == nil {
		errs = append(errs, errors.New("logger: missing"))
	}
	if c.Kubeconfig != "" && len(c.EtcdEndpoints) > 0 {
		errs = append(errs, errors.New("kubeconfig and etcd endpoints exclude each other: the kinds live in one place"))
	}
	if c.Kubeconfig == "" {
		if c.DataDir == "" {
			errs = append(errs, errors.New("data directory: missing"))
		}
		if c.Address == "" && c.Listener == nil {
			errs = append(errs, errors.New("API address: missing; host:port, for example 127.0.0.1:7443"))
		}
		if len(c.ServingCert) == 0 || len(c.ServingKey) == 0 {
			errs = append(errs, errors.New("API certificate and key: missing"))
		}
		if len(c.EncryptionKey) != encryptionKeySize {
			errs = append(errs, fmt.Errorf("encryption key: has %d bytes, must have %d", len(c.EncryptionKey), encryptionKeySize))
		}
		if len(c.ClientCAs) == 0 {
			errs = append(errs, errors.New("client CA: missing"))
		}
	}
	if (c.EtcdCertFile == "") != (c.EtcdKeyFile == "") {
		errs = append(errs, errors.New("etcd certificate file and key file go together"))
	}
	for path := range c.Handlers {
		for _, taken := range []string{"/api", "/openapi", "/healthz", "/livez", "/readyz", "/metrics", "/version"} {
			if strings.HasPrefix(path, taken) {
				errs = append(errs, fmt.Errorf("handler %s: paths beginning with %s belong to the API", path, taken))
			}
		}
	}
	return errors.Join(errs...)
}

func (c Config) path(elem ...string) string {
	return filepath.Join(append([]string{c.DataDir}, elem...)...)
}

// Files below Config.DataDir that this package owns.
const (
	etcdDir      = "etcd"
	auditLogFile = "audit/audit.log"
	tokensFile   = "tokens.json"
)

// Bounds of the audit log, unless an operator chooses others.
const (
	AuditMaxMiB  = 1024
	AuditMinDays = 30
)

// AuditOptions are those of the audit log of the server with this data directory.
func AuditOptions(dataDir string, log *slog.Logger) audit.Options {
	return audit.Options{File: filepath.Join(dataDir, auditLogFile), MaxBytes: AuditMaxMiB << 20, Keep: AuditMinDays * 24 * time.Hour, Log: log}
}

// TokensPath is where the bearer tokens of the server with this data directory are kept.
func TokensPath(dataDir string) string { return filepath.Join(dataDir, tokensFile) }

// ControlPlane is a running engine.
type ControlPlane struct {
	engine  Engine
	log     *slog.Logger
	address string
	client  *rest.Config
	elect   elector
	store   *storeKeeper // of EngineEmbedded
	serving *servingCert // nil with EngineKubernetes
	audit   *audit.Log   // nil with EngineKubernetes
	// auditContinue is Config.AuditContinue.
	auditContinue bool
	auditMu       sync.Mutex
	auditSaid     time.Time // when it was last logged that records cannot be kept

	// stops are called by Stop, last first.
	stops []func()
	// failed receives the first error of a part that ended by itself.
	failed  chan error
	stopped chan struct{}
}

// Start brings the engine up. When it returns without an error the API serves all kinds, discovery and
// OpenAPI. ctx bounds only the start; use Stop to end what was started.
func Start(ctx context.Context, cfg Config) (*ControlPlane, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("control plane: %w", err)
	}
	if cfg.EtcdPrefix == "" {
		cfg.EtcdPrefix = "/coldrack"
	}
	if cfg.LeaseNamespace == "" {
		cfg.LeaseNamespace = "kube-system"
	}
	began := time.Now()
	c := &ControlPlane{
		engine:  cfg.Engine(),
		log:     cfg.Logger.With("engine", string(cfg.Engine())),
		failed:  make(chan error, 1),
		stopped: make(chan struct{}),
	}
	start := c.startServer
	if c.engine == EngineKubernetes {
		start = c.startKubernetes
	}
	if err := start(ctx, cfg); err != nil {
		c.Stop()
		return nil, fmt.Errorf("control plane: %w", err)
	}
	c.log.Info("control plane ready", "address", c.address, "took", time.Since(began).Round(time.Millisecond))
	return c, nil
}

// Engine that holds the kinds.
func (c *ControlPlane) Engine() Engine { return c.engine }

// Address at which the API listens, host:port; with EngineKubernetes the URL of that API.
func (c *ControlPlane) Address() string { return c.address }

// RESTConfig returns a new copy of the configuration with which our controllers reach the API. With the
// first two engines it carries the system identity, which may do everything and whose status writes are not
// audited; it never leaves this process.
func (c *ControlPlane) RESTConfig() *rest.Config { return rest.CopyConfig(c.client) }

// Wait returns nil when ctx ends or the control plane was stopped, and the reason when a part of it ended by
// itself, after which nothing can be relied on any more.
func (c *ControlPlane) Wait(ctx context.Context) error {
	select {
	case err := <-c.failed:
		c.fail(err) // the next caller sees it too
		return err
	case <-c.stopped:
		return nil
	case <-ctx.Done():
		return nil
	}
}

// Stop ends requests that are being served, then the API, then etcd, and returns when all is done. It is
// safe to call more than once, but not at the same time.
func (c *ControlPlane) Stop() {
	for i := len(c.stops) - 1; i >= 0; i-- {
		c.stops[i]()
	}
	c.stops = nil
	select {
	case <-c.stopped:
	default:
		close(c.stopped)
	}
}

func (c *ControlPlane) onStop(f func()) { c.stops = append(c.stops, f) }

func (c *ControlPlane) fail(err error) {
	select {
	case c.failed <- err:
	default:
	}
}
