package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/server/v3/embed"
)

const (
	// DefaultStoreQuota is where etcd stops accepting writes, bytes. 10,000 machines take some 300 MB. It bounds how long a start takes.
	DefaultStoreQuota = 2 << 30
	// maxObject is the largest object that is stored, in bytes as JSON; the API server accepts no larger
	// request either.
	maxObject = 3 << 20
	// EtcdName is the store's only member, and EtcdPeerURL the label by which it knows itself.
	EtcdName    = "coldrack"
	EtcdPeerURL = "unix://" + etcdLabel
	etcdLabel   = "coldrack:0"
	// maxSocketPath is what fits into the kernel's sockaddr_un with its final zero.
	maxSocketPath = 107
)

// startEtcd runs a one-member etcd on the data in dir and returns the endpoint that clients use: a socket in
// a folder that only this user may enter. Every acknowledged write was synced to disk.
func startEtcd(ctx context.Context, log *slog.Logger, dir string, quota int64) (endpoint string, failed <-chan error, stop func(), err error) {
	unlock, err := lockDir(dir)
	if err != nil {
		return "", nil, nil, err
	}
	defer func() {
		if err != nil {
			unlock()
		}
	}()

	socketDir, removeSocketDir := dir, func() {}
	if len(filepath.Join(dir, "etcd.sock")) > maxSocketPath {
		if socketDir, err = os.MkdirTemp("", "coldrack-"); err != nil {
			return "", nil, nil, fmt.Errorf("make a folder for etcd's socket: %w", err)
		}
		removeSocketDir = func() { os.RemoveAll(socketDir) }
	}
	socket, err := filepath.Abs(filepath.Join(socketDir, "etcd.sock"))
	if err != nil {
		return "", nil, nil, err
	}

	cfg := embed.NewConfig()
	cfg.Name = EtcdName
	cfg.Dir = dir
	var stopping atomic.Bool
	last := &lastWords{said: make(chan error, 1)}
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapTo(log, &stopping, last))
	// No other member exists, so nothing listens for peers. What is advertised is only the member's label,
	// which must look like host and port.
	label := []url.URL{{Scheme: "unix", Host: etcdLabel}}
	cfg.ListenPeerUrls = nil
	cfg.AdvertisePeerUrls, cfg.AdvertiseClientUrls = label, label
	cfg.ListenClientUrls = []url.URL{{Scheme: "unix", Path: socket}}
	// etcd's own metrics and health get a socket of their own, or else both would share one through a slower path.
	cfg.ListenClientHttpUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(filepath.Dir(socket), "http.sock")}}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.EnableGRPCGateway = false
	cfg.QuotaBackendBytes = quota
	// What was written since the last snapshot is in memory, and is read again at a start.
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 1000, 500
	cfg.MaxRequestBytes = maxObject + 64<<10
	cfg.AutoCompactionMode = embed.CompactorModePeriodic
	cfg.AutoCompactionRetention = "15m"
	cfg.BootstrapDefragThresholdMegabytes = 128
	cfg.WarningUnaryRequestDuration = time.Second
	// Who watches something that seldom changes hears how far the store is, or its place would be compacted away.
	cfg.WatchProgressNotifyInterval = time.Minute
	// A single member elects itself; there is nobody whose vote could be slow.
	cfg.TickMs, cfg.ElectionMs = 25, 125

	server, err := openEtcd(cfg)
	if err != nil {
		removeSocketDir()
		return "", nil, nil, fmt.Errorf("the store in %s: %w", dir, err)
	}
	stop = func() {
		stopping.Store(true)
		server.Close()
		removeSocketDir()
		unlock()
	}
	select {
	case <-server.Server.ReadyNotify():
		last.started.Store(true)
		ended := make(chan error, 1)
		go func() { // ends with etcd
			select {
			case err := <-last.said:
				ended <- err
			case err, open := <-server.Err(): // closed when etcd stops
				if open {
					ended <- err
				}
			}
			close(ended)
		}()
		return "unix://" + socket, ended, stop, nil
	case err := <-server.Err():
		stop()
		return "", nil, nil, fmt.Errorf("the store in %s: %w", dir, err)
	case <-server.Server.StopNotify():
		stop()
		return "", nil, nil, fmt.Errorf("the store in %s stopped while starting; the log says why", dir)
	case <-ctx.Done():
		stop()
		return "", nil, nil, fmt.Errorf("the store in %s did not start in time: %w", dir, context.Cause(ctx))
	}
}

// ErrInUse is an error of a store that another server uses, or one of this process that has not ended.
var ErrInUse = errors.New("is in use")

// openEtcd is embed.StartEtcd, which panics on data that it cannot read.
func openEtcd(cfg *embed.Config) (server *embed.Etcd, err error) {
	damaged := func(reason any) error {
		return fmt.Errorf("the data is damaged or not etcd's (%s); restore the folder from a backup, "+
			"or move it away to begin with an empty store", strings.TrimSpace(fmt.Sprint(reason)))
	}
	defer func() {
		if r := recover(); r != nil {
			err = damaged(r)
		}
	}()
	// etcd opens its database in a goroutine of its own, whose panic nobody could catch.
	name := filepath.Join(cfg.Dir, "member", "snap", "db")
	if _, err := os.Stat(name); err == nil {
		db, err := bbolt.Open(name, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
		if errors.Is(err, bbolterrors.ErrTimeout) {
			return nil, fmt.Errorf("%s %w by another program; stop it", name, ErrInUse)
		}
		if err != nil {
			return nil, damaged(err)
		}
		if err := db.Close(); err != nil {
			return nil, err
		}
	}
	return embed.StartEtcd(cfg)
}

// lockDir makes dir, keeps other users out of it, and holds a lock that another server would run into.
func lockDir(dir string) (unlock func(), err error) {
	if err := privateDir(dir); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, "coldrack.lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the store: %w; run as a user who may write to %s", err, dir)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			var pid int
			fmt.Fscan(f, &pid)
			return nil, fmt.Errorf("%s %w by another coldrack server (process %d); stop it, or choose another data directory", dir, ErrInUse, pid)
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	if err := errors.Join(f.Truncate(0), writeString(f, fmt.Sprintln(os.Getpid()))); err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	return func() { f.Close() }, nil
}

func writeString(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// privateDir makes a folder that only this user may enter, or makes an existing one so.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w; choose a data directory that this user may write to", dir, err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("keep other users out of %s: %w", dir, err)
	}
	return nil
}
