package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/cluster/etcddata"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/server/controllers"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/daemon"
	"coldrack.dev/internal/server/peopleapi"
	"coldrack.dev/internal/server/peopleapi/credentials"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
	"coldrack.dev/internal/server/ui"
)

// serveEnv makes this program a server: its value is a serving in JSON.
const serveEnv = "COLDRACK_BROWSER_SERVE"

// serving says what the server is.
type serving struct {
	Config daemon.Config
	// KindsOnly leaves the controllers out, so that clusters keep the status that was written: a cluster that is well would take real nodes.
	KindsOnly bool
}

// serveIfAsked is the other life of this program; it returns false in the first one.
func serveIfAsked() bool {
	if len(os.Args) == 2 && os.Args[1] == etcddata.Verb { // the process that reads snapshots for that server
		if err := etcddata.Serve(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		return true
	}
	config := os.Getenv(serveEnv)
	if config == "" {
		return false
	}
	var s serving
	err := json.Unmarshal([]byte(config), &s)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
		daemon.TakeLibraryLogs(log)
		if s.KindsOnly {
			err = serveKinds(ctx, s.Config, log)
		} else {
			err = daemon.Run(ctx, s.Config, log)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// serveKinds is people's API with the pages in front, and the kinds behind it, but nobody who acts on them.
func serveKinds(ctx context.Context, cfg daemon.Config, log *slog.Logger) error {
	keys := filepath.Join(cfg.DataDir, "pki")
	master, err := pki.OpenMasterKey(keys)
	if err != nil {
		return err
	}
	people, err := pki.OpenAuthority(keys, credentials.Authority, master)
	if err != nil {
		return err
	}
	cert, key, err := people.NewServerPEM("coldrack API", []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	if err != nil {
		return err
	}
	encryption, err := master.Derive("secrets")
	if err != nil {
		return err
	}
	pages, err := ui.New(filepath.Join(cfg.DataDir, "ui-sessions.json"), log)
	if err != nil {
		return err
	}
	known, handlers := fleet.New(fleet.Options{Log: log}), pages.Handlers()
	handlers[peoplewire.PathMachines] = peopleapi.MachineList(known)
	handlers[peoplewire.PathExpiry] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode([]peoplewire.Expiry{
			{Certificate: "cluster-authority", Cluster: "prod", Name: "ca", Until: time.Now().AddDate(9, 2, 0)},
			{Certificate: "cluster-node", Cluster: "prod", Name: "node-00005", Until: time.Now().AddDate(0, 7, 3)},
		})
	})
	handlers[peoplewire.PathClusters] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != peoplewire.PathClusters+"prod/backups" {
			http.Error(w, "cluster prod has no member of etcd that can be reached", http.StatusConflict)
			return
		}
		w.Header().Set(peoplewire.HeaderProblem, "the copies at backups.example could not be listed")
		var all []peoplewire.Backup
		for i := range 3 {
			at := time.Now().Add(-time.Duration(5+6*i) * time.Hour)
			all = append(all, peoplewire.Backup{ID: at.UTC().Format("20060102t150405z"), Cluster: "prod", TakenAt: at, Reason: "schedule", Member: "node-00000", Etcd: "3.7.3", Kubernetes: "v1.36.3", Keys: 1843 - 9*i, Revision: 90211,
				Size: 31 << 20, Where: []string{peoplewire.BackupHere, peoplewire.BackupCopy}[:1+min(i, 1)]})
		}
		_ = json.NewEncoder(w).Encode(all)
	})
	plane, err := controlplane.Start(ctx, controlplane.Config{
		Logger: log, DataDir: cfg.DataDir, Address: cfg.APIAddress, ServingCert: cert, ServingKey: key, ClientCAs: people.CertPEM(),
		EncryptionKey: encryption, Handlers: handlers, Front: pages.Front,
	})
	if err != nil {
		return err
	}
	defer plane.Stop()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return err
	}
	cached, err := cache.New(plane.RESTConfig(), cache.Options{Scheme: scheme})
	if err != nil {
		return err
	}
	go func() { _ = cached.Start(ctx) }() // ends with the server
	synced, err := controllers.Feed(ctx, cached, known)
	if err != nil {
		return err
	}
	if err := synced(ctx); err != nil {
		return err
	}
	if _, err := credentials.WriteAdmin(cfg.AdminKubeconfig(), people, credentials.URL(plane.Address()), time.Now()); err != nil {
		return err
	}
	return plane.Wait(ctx)
}

// server is a `coldrack serve` without boot services, as a process of its own that can be killed and started again.
type server struct {
	cfg     daemon.Config
	kinds   bool
	process *exec.Cmd
	stderr  bytes.Buffer
	ended   chan error
	config  *rest.Config
	client  client.Client
}

// startServer runs a server with its data in dir.
func startServer(ctx context.Context, dir string) (*server, error) {
	return startServing(ctx, dir, false)
}

func startServing(ctx context.Context, dir string, kindsOnly bool) (*server, error) {
	cfg := daemon.DefaultConfig()
	cfg.DataDir, cfg.APIAddress, cfg.NoBoot = dir, "127.0.0.1:0", true
	cfg.LostAfter = 10_000 * time.Hour // nobody sends heartbeats here
	s := &server{cfg: cfg, kinds: kindsOnly}
	return s, s.start(ctx)
}

func (s *server) start(ctx context.Context) error {
	config, err := json.Marshal(serving{Config: s.cfg, KindsOnly: s.kinds})
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	s.process = exec.Command(self)
	s.process.Env = append(os.Environ(), serveEnv+"="+string(config))
	s.process.Stderr = &s.stderr
	if err := s.process.Start(); err != nil {
		return err
	}
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.process.Wait() }()
	if err := s.connect(ctx); err != nil {
		s.stop()
		return fmt.Errorf("%w\n%s", err, s.stderr.String())
	}
	// The next start has the same address, as that of a real server.
	s.cfg.APIAddress = strings.TrimPrefix(s.config.Host, "https://")
	return nil
}

// connect waits until the server answers its administrator.
func (s *server) connect(ctx context.Context) error {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return err
	}
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server does not come up: %w", ctx.Err())
		case err := <-s.ended:
			s.ended <- err
			return fmt.Errorf("the server has ended: %w", err)
		case <-tick.C:
		}
		config, err := clientcmd.BuildConfigFromFlags("", s.cfg.AdminKubeconfig()) // an error until it is written
		if err != nil {
			continue
		}
		config.QPS, config.WarningHandler = -1, rest.NoWarnings{}
		c, err := client.New(config, client.Options{Scheme: scheme})
		if err != nil {
			continue
		}
		if err := c.List(ctx, &v1alpha1.MachineList{}, client.Limit(1)); err == nil {
			s.config, s.client = config, c
			return nil
		}
	}
}

// stop ends the server gracefully, kill at once.
func (s *server) stop() { s.end(syscall.SIGTERM) }
func (s *server) kill() { s.end(syscall.SIGKILL) }

func (s *server) end(signal syscall.Signal) {
	_ = s.process.Process.Signal(signal)
	s.ended <- <-s.ended
}

// link asks for a one-time link, as `coldrack ui` does.
func (s *server) link(ctx context.Context) (string, error) {
	transport, err := rest.HTTPClientFor(s.config)
	if err != nil {
		return "", err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.config.Host+peoplewire.PathUILinks, nil)
	if err != nil {
		return "", err
	}
	response, err := transport.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	var link peoplewire.UILink
	if response.StatusCode != http.StatusOK {
		return "", errors.New(strconv.Itoa(response.StatusCode) + " " + string(content))
	}
	if err := json.Unmarshal(content, &link); err != nil {
		return "", err
	}
	return s.config.Host + link.Path, nil
}
