package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/liblog"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/base/version"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/rebootlock"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/contract/manifest"
	"coldrack.dev/internal/machine/bmc"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/machine/identify"
	"coldrack.dev/internal/machine/units"
	"coldrack.dev/internal/netboot/quirk"
	"coldrack.dev/internal/server/audit"
	"coldrack.dev/internal/server/backups"
	"coldrack.dev/internal/server/certs"
	"coldrack.dev/internal/server/certs/acme"
	"coldrack.dev/internal/server/controllers"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/etcddiscovery"
	"coldrack.dev/internal/server/machineapi"
	"coldrack.dev/internal/server/omaha"
	"coldrack.dev/internal/server/peopleapi"
	"coldrack.dev/internal/server/peopleapi/credentials"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
	"coldrack.dev/internal/server/power"
	"coldrack.dev/internal/server/ui"
)

// TakeLibraryLogs makes the libraries that log through one logger per process write to log. A process calls it
// once, before Run.
func TakeLibraryLogs(log *slog.Logger) {
	controlplane.SendKlogTo(log)
	ctrl.SetLogger(liblog.Kubernetes(log))
}

// Run starts the server and serves until ctx ends. It returns nil after a graceful stop.
//
// The order of the start is the order of need: state nobody else may touch, keys, content, the sockets that machines talk to, the
// API that holds the kinds, what is cached of it, the controllers. Until all machines have been read, those that are known from
// an earlier run are sent to their disks and nobody else is answered, because a known machine must never be taken for a stranger.
// Boot services go on when the store is lost; the rest is started again with it (see serveKinds).
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	began, manager := time.Now(), takeNotifySocket()
	if err := cfg.Validate(); err != nil {
		return err
	}
	lock, err := lockDataDir(cfg)
	if err != nil {
		return err
	}
	defer lock.Close()
	keys, err := openKeys(cfg)
	if err != nil {
		return err
	}
	// What can be wrong with files is found before anything listens.
	set, err := readManifests(cfg.Manifests)
	if err != nil {
		return err
	}
	if _, err := trustedKeys(cfg); err != nil {
		return err
	}
	quirks, err := readQuirks(cfg.Quirks)
	if err != nil {
		return err
	}
	store, err := bundle.OpenStore(cfg.path("content"))
	if err != nil {
		return err
	}
	for _, problem := range store.Problems() {
		log.Error("content store has a problem", "err", problem)
	}
	// Sockets that machines use are opened early, so that a port in use is an error before anything has
	// happened; they are served late.
	var sockets []bootSockets
	if !cfg.NoBoot {
		if sockets, err = openSockets(ctx, cfg); err != nil {
			return err
		}
		defer closeSockets(sockets)
	}
	var door *controlplane.Door
	if cfg.Kubeconfig == "" {
		if door, err = controlplane.OpenDoor(ctx, cfg.APIAddress); err != nil {
			return err
		}
		defer door.Close()
	}

	machines, loaded, imports := fleet.New(fleet.Options{Log: log.With("part", "fleet")}), newContent(store), newImporter(cfg, store, log)
	admission := newBootGate(cfg.BootConcurrency, func() bool { return !imports.beginning() || loaded.hasFirstStages() })
	s := &server{
		cfg: cfg, log: log, keys: keys, sockets: sockets, door: door,
		content: loaded, importer: imports,
		fleet: machines, metrics: newMetrics(machines), bootGate: admission, quirks: quirks, clusterAPI: peopleapi.NewClusterAPI(log),
		powerAPI: peopleapi.NewPowerAPI(log), bmcs: bmc.NewPool(bmc.PoolOptions{}),
	}
	if !cfg.NoBoot {
		if s.reach, err = newReach(cfg, s.inside, log.With("part", "boot")); err != nil {
			return err
		}
	}
	if cfg.UI && cfg.Kubeconfig == "" {
		if s.ui, err = ui.New(cfg.path("ui-sessions.json"), log.With("part", "ui")); err != nil {
			return err
		}
	}
	if cfg.UpdatePort != 0 {
		if s.updates, err = omaha.Open(cfg.updatesFolder(), cfg.path("update-instances.json"), log.With("part", "updates")); err != nil {
			return err
		}
	}
	if cfg.EtcdDiscoveryPort != 0 {
		if s.discovery, err = etcddiscovery.Open(cfg.path("etcd-discovery.json")); err != nil {
			return err
		}
	}
	if s.certs, err = certs.Open(certs.Options{Dir: cfg.path("pki"), Master: keys.master, Log: log.With("part", "certs")}); err != nil {
		return err
	}
	if err := s.takeRestored(); err != nil {
		return err
	}
	if s.images, err = s.newImages(imports.reserve); err != nil {
		return err
	}
	s.metrics.watchRegistry(s.images)
	s.noStore.Store(new("it is starting"))
	s.clusters, s.units = s.newClusters(), units.NewDesk()
	s.backups = s.newBackups()
	s.useOwnStore()
	s.metrics.watchBackups(s.backups.Stats)
	s.metrics.watchCopies(s.backups.CopyStates)
	if s.audit, err = cfg.openAudit(log); err != nil {
		return err
	}
	if s.audit != nil {
		defer s.audit.Close()
		s.metrics.watchAudit(s.audit.Stats)
	}
	s.metrics.watchStore(func() (controlplane.StoreSize, bool) {
		plane := s.current.Load()
		if plane == nil {
			return controlplane.StoreSize{}, false
		}
		return plane.StoreSize()
	})
	s.metrics.watchExpiry(func() []peoplewire.Expiry { return s.expiry(time.Now()) })
	s.metrics.watchDisk(imports.reserve.space)
	s.catalog = newCatalog(store, s.images.local.Has, log)
	imports.onImport(func() {
		s.catalog.changed()
		s.clusters.Refresh()
	})

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return imports.reserve.run(ctx) })
	group.Go(func() error { return s.images.registry.Run(ctx) })
	group.Go(func() error { return s.tellExpiry(ctx) })
	if s.door != nil {
		group.Go(func() error { return s.standIn(ctx) })
	}
	if !cfg.NoBoot {
		group.Go(func() error { return s.reach.run(ctx) })
		if s.subnets, err = s.serveBoot(ctx, group, machineapi.NewNonces(nil), &s.late, s.servedPlans()); err != nil {
			group.Go(func() error { return err })
			return group.Wait()
		}
		if err := s.serveNames(ctx, group); err != nil {
			group.Go(func() error { return err })
			return group.Wait()
		}
		if err := s.openACME(ctx, group); err != nil {
			group.Go(func() error { return err })
			return group.Wait()
		}
		keeper := &copyKeeper{file: cfg.path(copyFile), fleet: s.fleet, subnets: s.subnets, log: log.With("part", "boot")}
		if keeper.restore() {
			// Machines are answered; the service manager does not wait for the store.
			manager.notify("READY=1")
		}
		group.Go(func() error { return keeper.run(ctx) })
	}
	group.Go(func() error { return imports.run(ctx) })
	group.Go(func() error {
		return s.serveKinds(ctx, set, func(kubeconfig string) {
			manager.notify("READY=1")
			log.Info("ready", "version", version.Get().Version, "took", time.Since(began).Round(time.Millisecond),
				"engine", string(s.plane.Engine()), "api", s.plane.Address(), "kubeconfig", kubeconfig)
		})
	})
	group.Go(func() error {
		<-ctx.Done()
		manager.notify("STOPPING=1")
		log.Info("stopping")
		return nil
	})
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// server is what the parts of a running `coldrack serve` share.
type server struct {
	cfg     Config
	log     *slog.Logger
	keys    keys
	sockets []bootSockets
	door    *controlplane.Door // nil where the kinds live elsewhere
	// noStore is why the store is not there, for people.
	noStore atomic.Pointer[string]
	// servingUntil is when the certificate of people's API ends, in Unix time.
	servingUntil atomic.Int64
	content      content
	importer     *importer
	images       *imageKeeper
	fleet        *fleet.Fleet
	clusters     *members.Set
	reboots      rebootlock.Set
	backups      *backups.Service
	units        *units.Desk
	// direct reads the store, not a cache; nil until it is there.
	direct     atomic.Pointer[client.Reader]
	clusterAPI *peopleapi.ClusterAPI
	ui         *ui.UI // nil without web pages
	powerAPI   *peopleapi.PowerAPI
	bmcs       *bmc.Pool
	metrics    *metrics
	bootGate   *bootGate
	quirks     *quirk.Table // nil: those that come with the server
	reach      *reach       // nil without boot services
	audit      *audit.Log   // nil where the kinds live elsewhere
	catalog    *catalog
	subnets    *dhcpSubnets                // nil without boot services
	menus      *menus                      // nil without boot services
	discovery  *etcddiscovery.Registry     // nil where members of etcd are not served
	updates    *omaha.Service              // nil where there are none
	certs      *certs.Service              // of people and services; it may have no authority
	names      *names                      // nil without boot services
	acme       atomic.Pointer[acme.Server] // nil until it is opened
	hosts      hostCache
	late       lateStore
	// plane holds the kinds, in this life of the store; current is the same for those who ask in between.
	plane   *controlplane.ControlPlane
	current atomic.Pointer[controlplane.ControlPlane]
	// restored says that the store came back from a backup, until a person confirms it.
	restored restored
	people   peopleAPI // the listener of plane
}

// machineAuthority is the name of the authority that machines and nodes trust and are known by.
const machineAuthority = "machine-ca"

// keys are the server's authorities and what seals them.
type keys struct {
	master           pki.MasterKey
	machines, people *pki.Authority
}

func openKeys(cfg Config) (k keys, err error) {
	dir := cfg.path("pki")
	if k.master, err = pki.OpenMasterKey(dir); err != nil {
		return k, err
	}
	if k.machines, err = pki.OpenAuthority(dir, machineAuthority, k.master); err != nil {
		return k, err
	}
	k.people, err = pki.OpenAuthority(dir, credentials.Authority, k.master)
	return k, err
}

func (s *server) startControlPlane(ctx context.Context) (*controlplane.ControlPlane, error) {
	cfg := s.cfg
	certPEM, keyPEM, err := s.showCertificate()
	if err != nil {
		return nil, err
	}
	encryptionKey, err := s.keys.master.Derive("secrets")
	if err != nil {
		return nil, err
	}
	pkiLimit := peopleapi.Limit{AtOnce: 16, Each: 4, PerMinute: 240}.Around(s.pkiHandler())
	handlers := map[string]http.Handler{
		// Who follows the logs of a rack has a request for each machine.
		peoplewire.PathMachines + "/": peopleapi.Limit{AtOnce: 512, Each: 128}.Around(peopleapi.MachineLogs(s.fleet)),
		peoplewire.PathMachines:       peopleapi.Limit{AtOnce: 16, Each: 4}.Around(peopleapi.MachineList(s.fleet)),
		peoplewire.PathBundles:        peopleapi.Limit{AtOnce: 16, Each: 8}.Around(s.importer),
		metricsPath:                   peopleapi.Limit{AtOnce: 8, Each: 4}.Around(s.metrics.handler(s.log)),
		peoplewire.PathBoots:          peopleapi.Limit{AtOnce: 16, Each: 8}.Around(s.bootGate),
		peoplewire.PathExpiry:         peopleapi.Limit{AtOnce: 8, Each: 4}.Around(s.expiryHandler()),
		peoplewire.PathRestored:       peopleapi.Limit{AtOnce: 8, Each: 4}.Around(s.restoredHandler()),
		peoplewire.PathUpdates:        peopleapi.Limit{AtOnce: 8, Each: 4}.Around(s.updatesHandler()),
		peoplewire.PathDiscovery:      peopleapi.Limit{AtOnce: 16, Each: 8}.Around(s.discoveryHandler()),
		peoplewire.PathPKI:            pkiLimit,
		peoplewire.PathPKI + "/":      pkiLimit,
		peoplewire.PathAudit:          peopleapi.Limit{AtOnce: 4, Each: 2}.Around(s.auditHandler()),
		profilesPath:                  peopleapi.Limit{AtOnce: 2}.Around(profiles()),
	}
	handlers[peoplewire.PathNames] = peopleapi.Limit{AtOnce: 4, Each: 2}.Around(s.namesHandler())
	maps.Copy(handlers, s.clusterAPI.Handlers())
	maps.Copy(handlers, s.clusterAPI.ImageHandlers(s.images))
	maps.Copy(handlers, s.powerAPI.Handlers())
	var front func(http.Handler) http.Handler
	if s.ui != nil {
		for path, handler := range s.ui.Handlers() {
			// Each page asks four times a minute whether its session goes on.
			handlers[path] = peopleapi.Limit{AtOnce: 32, Each: 8, PerMinute: 240}.Around(handler)
		}
		front = s.ui.Front
	}
	var listener net.Listener
	if s.door != nil {
		listener = s.door.API()
	}
	return controlplane.Start(ctx, controlplane.Config{
		Listener: listener,
		Logger:   s.log.With("part", "controlplane"), DataDir: cfg.DataDir, Address: cfg.APIAddress,
		ServingCert: certPEM, ServingKey: keyPEM, ClientCAs: s.keys.people.CertPEM(),
		EncryptionKey: encryptionKey,
		Handlers:      handlers,
		Front:         front,
		Normalize:     identify.Normalize,
		Audit:         s.audit, AuditContinue: cfg.AuditFailure == AuditContinue,
		Version:       version.Get().Version,
		StoreQuota:    int64(cfg.StoreQuotaMiB) << 20,
		EtcdEndpoints: cfg.EtcdEndpoints, EtcdCAFile: cfg.EtcdCAFile, EtcdCertFile: cfg.EtcdCertFile, EtcdKeyFile: cfg.EtcdKeyFile,
		Kubeconfig: cfg.Kubeconfig,
	})
}

// start brings up what needs the API, in order, as tasks of the group.
func (s *server) start(ctx context.Context, group *errgroup.Group, set []*manifest.Document) error {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return err
	}
	rest := s.plane.RESTConfig()
	// Our own API server is as near as a function call; a foreign one is asked politely.
	rest.QPS, rest.Burst = -1, 0
	if s.plane.Engine() == controlplane.EngineKubernetes {
		rest.QPS, rest.Burst = 50, 100
	}
	cached, err := cache.New(rest, cache.Options{Scheme: scheme, DefaultTransform: cache.TransformStripManagedFields()})
	if err != nil {
		return fmt.Errorf("cache of the API: %w", err)
	}
	direct, err := client.New(rest, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("client of the API: %w", err)
	}
	s.direct.Store(new(client.Reader(direct)))
	group.Go(func() error { return cached.Start(ctx) })
	synced, err := controllers.Feed(ctx, cached, s.fleet)
	if err != nil {
		return err
	}
	if err := applyManifests(ctx, rest, set); err != nil {
		return err
	}
	if err := synced(ctx); err != nil || ctx.Err() != nil {
		return err
	}

	s.clusterAPI.Open(peopleapi.Backend{
		Clusters: s.clusters, Client: direct, Content: s.content.store, Loaded: s.images.local.Has, DialNode: s.dialNode, Backups: s.backups,
		ServerCertificate: func(cluster string) (*tls.Certificate, error) {
			return controllers.ServerCertificate(s.clusters, cluster)
		},
	})
	switched := power.New(power.Options{
		Client: direct, Statuses: controllers.NewStore(direct, s.fleet), Machines: s.fleet, Pool: s.bmcs, Log: s.log.With("part", "power"),
	})
	s.powerAPI.Open(switched)
	deps := controllers.Deps{
		Client: direct, Cache: cached, Fleet: s.fleet, Log: s.log.With("part", "controllers"),
		Catalog: s.catalog, LostAfter: s.cfg.lostAfter(), Clusters: s.clusters, Reboots: &s.reboots, DialNode: s.dialNode,
		Power: switched, Backups: backupKeeper{s.backups, direct}, Units: s.units,
	}
	if err := controllers.FeedClusters(ctx, deps); err != nil {
		return err
	}
	if err := controllers.FeedRebootGroups(ctx, deps); err != nil {
		return err
	}
	if err := controllers.FeedUnits(ctx, deps); err != nil {
		return err
	}
	if s.subnets != nil {
		deps.Own, deps.Subnets, deps.Menus = s.reach, s.subnets, s.menus
		s.late.use(controllers.NewStore(direct, s.fleet), controllers.NewPlans(cached))
	}
	group.Go(func() error { return s.backups.KeepOwn(ctx) })
	if err := s.watchCopyCredentials(ctx, cached); err != nil {
		return err
	}
	group.Go(func() error {
		return s.backups.Copy(ctx, func(ctx context.Context) ([]v1alpha1.Cluster, error) {
			list := &v1alpha1.ClusterList{}
			err := cached.List(ctx, list)
			return list.Items, err
		})
	})
	group.Go(func() error { return controllers.Serve(ctx, deps) })
	group.Go(func() error {
		return s.plane.Elect(ctx, "controllers", func(ctx context.Context) error { return controllers.Lead(ctx, deps) })
	})
	if s.plane.Engine() != controlplane.EngineKubernetes {
		group.Go(func() error { return s.renewPeople(ctx) })
	}
	return nil
}

// greet writes the first administrator's kubeconfig and returns where it is; empty when people's API is
// an existing one that has its own.
func (s *server) greet() (string, error) {
	if s.plane.Engine() == controlplane.EngineKubernetes {
		return "", nil
	}
	path := s.cfg.AdminKubeconfig()
	written, err := credentials.WriteAdmin(path, s.keys.people, credentials.URL(s.plane.Address()), time.Now())
	if err != nil {
		return "", err
	}
	if written {
		s.recordAdmin(path)
		s.log.Info("administrator's kubeconfig written", "path", path)
	}
	return path, nil
}

// recordAdmin keeps the record of an administrator's kubeconfig that the server made itself. There has to be one, recorded or not.
func (s *server) recordAdmin(path string) {
	issued := audit.Issued{What: "kubeconfigs", Name: "admin", Verb: "create", Details: map[string]string{"groups": controlplane.GroupAdmin, "file": path, "by": "the server itself"}}
	if err := s.audit.Keep(issued.Event(time.Now())); err != nil {
		s.log.Error("no audit record of the administrator's kubeconfig", "path", path, "err", err)
	}
}

// systemd is the service manager, if there is one, that wants to hear how far the server is (sd_notify(3)).
type systemd struct{ socket string }

// takeNotifySocket reads the manager's address and takes it out of the environment: the API server's library
// would otherwise report the whole process ready as soon as it alone is.
func takeNotifySocket() systemd {
	const variable = "NOTIFY_SOCKET"
	socket := os.Getenv(variable)
	_ = os.Unsetenv(variable)
	return systemd{socket}
}

func (s systemd) notify(state string) {
	if s.socket == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		return // the service manager will say that it heard nothing
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(state))
}
