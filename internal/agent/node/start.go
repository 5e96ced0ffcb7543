package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"sync/atomic"
	"time"

	"coldrack.dev/internal/agent/balancer"
	"coldrack.dev/internal/agent/bringup"
	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/containerd"
	"coldrack.dev/internal/agent/identity"
	"coldrack.dev/internal/agent/inventory"
	"coldrack.dev/internal/agent/journal"
	"coldrack.dev/internal/agent/routes"
	"coldrack.dev/internal/agent/systemd"
	"coldrack.dev/internal/agent/units"
	"coldrack.dev/internal/content/fetch"
	"coldrack.dev/internal/content/swarm/nodecache"
	"coldrack.dev/internal/content/swarm/peer"
)

// keptLines of the log wait for a server that is away.
const keptLines = 200

// Start runs the node agent on this machine until ctx ends.
func Start(ctx context.Context, logs slog.Handler, version string) error {
	lines := journal.New(keptLines)
	log := slog.New(journal.Handler(logs, func(level slog.Level, line string) {
		lines.Add(time.Now().UTC().Format(time.RFC3339) + " " + level.String() + " " + line)
	}))
	settings, err := identity.LoadSettings("/")
	if err != nil {
		return err
	}
	server, err := settings.Client("coldrack-agent/" + version)
	if err != nil {
		return err
	}
	id, err := identity.Load("/", identity.NodeFile)
	if err != nil {
		return err
	}
	var next *identity.Node
	if n, err := identity.Load("/", identity.NextFile); err == nil {
		next = &n
	}
	// Ready means that this agent does its work, not that the server is there: a node must start without.
	if err := Notify("READY=1"); err != nil {
		log.Warn("cannot notify systemd that the agent is ready", "err", err)
	}
	log.Info("node agent started", "machine", settings.Machine, "server", settings.Server, "version", version, "certificate", id.NotAfter)
	var shown atomic.Pointer[tls.Certificate]
	a := &Agent{
		Log: log, Lines: lines, Server: server, Identity: id, Next: next, Machine: settings.Machine, Root: "/",
		Use:  func(n identity.Node) { server.Use(n.Certificate); shown.Store(&n.Certificate) },
		Look: (&Looker{Root: "/", Version: version}).Look, Hardware: inventory.Host().Hardware,
		Reboot: Reboot, Now: time.Now, Sleep: sleep,
		Units: (&units.Keeper{Log: log, Server: server, Systemd: systemd.Systemctl{}, Machine: settings.Machine, Root: "/", UnitDir: systemd.UnitDir, Sleep: sleep}).Run,
	}
	membership, err := cluster(log, server, sharer(log, server, settings, &shown, version), version)
	if err != nil {
		// Whoever reads the heartbeats learns of it.
		log.Error("this machine cannot join a cluster", "err", err)
	} else {
		a.Cluster = membership.Run
	}
	return a.Run(ctx)
}

// Fingerprints are those of the keys by which the node below root is known to its server: the present one, and one that is
// being renewed.
func Fingerprints(root string) ([]string, error) {
	id, err := identity.Load(root, identity.NodeFile)
	if err != nil {
		return nil, err
	}
	fingerprints := []string{id.Fingerprint()}
	if next, err := identity.Load(root, identity.NextFile); err == nil {
		fingerprints = append(fingerprints, next.Fingerprint())
	}
	return fingerprints, nil
}

// sharer wires this node's part in the exchange of content with other nodes.
func sharer(log *slog.Logger, server *client.Client, settings identity.Settings, shown *atomic.Pointer[tls.Certificate], version string) *nodecache.Sharer {
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM([]byte(settings.CA))
	return nodecache.New(nodecache.Options{
		Log: log, Server: server, Dir: nodecache.Dir,
		Exchange: peer.Config{Log: log, Server: server, Certificate: shown.Load, CAs: func() *x509.CertPool { return authorities }},
		Source:   func(base string) nodecache.Source { return fetch.New(base, "coldrack-agent/"+version, nil) },
	})
}

// cluster wires what makes this machine a node of a cluster.
func cluster(log *slog.Logger, server *client.Client, kit *nodecache.Sharer, version string) (*Membership, error) {
	keeper, err := routes.New(log)
	if err != nil {
		return nil, err
	}
	lb := balancer.New(log, balancer.UsualPace())
	executor, err := bringup.New(bringup.Options{
		Log: log, Root: "/", Server: server, Systemd: systemd.Systemctl{}, Router: keeper, Balancer: lb, Kit: kit, Images: containerd.Ctr{},
		Content: func(base string, tell func(string, error, time.Duration)) bringup.Fetcher {
			return kit.Through(fetch.New(base, "coldrack-agent/"+version, tell))
		},
		Pace: bringup.UsualPace(), Now: time.Now, Sleep: sleep,
	})
	if err != nil {
		return nil, err
	}
	return &Membership{Log: log, Server: server, Executor: executor, Beside: []Task{keeper.Run, lb.Run, kit.Run}, Sleep: sleep}, nil
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
