package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"coldrack.dev/internal/cluster/etcd"
)

// StoreSize is how full the embedded store is, in bytes.
type StoreSize struct {
	File  int64 // on the disk
	InUse int64 // of File; the rest is free for later writes, and goes back to the disk when the store is defragmented
	Quota int64 // when File has reached it, writes are refused
	// Full is true while etcd refuses writes. It goes on until etcd is told that there is room again.
	Full bool
}

// Bounds of when the store is made smaller. Defragmentation stops all reads and writes while it copies what is in use: some
// seconds for a gigabyte.
const (
	// worthwhile is the least that defragmentation must free.
	worthwhile = 128 << 20
	// roomy is the share of the quota below which a store that was full takes writes again.
	roomy = 0.8
)

// defragment says whether the file is much larger than what it holds, or full with something to free.
func (s StoreSize) defragment() bool {
	free := s.File - s.InUse
	if s.Full {
		return free > 0
	}
	return free > worthwhile && free > s.InUse
}

// hasRoom says whether a store that was full may take writes again.
func (s StoreSize) hasRoom() bool { return float64(s.File) < roomy*float64(s.Quota) }

// storeKeeper keeps the embedded store small and lets it take writes again after it was full.
type storeKeeper struct {
	client   *clientv3.Client
	endpoint string
	log      *slog.Logger

	mu   sync.Mutex
	last StoreSize
	// revision of the last look. What is older is what compaction may drop when the store is full.
	revision int64
}

// storeLook is how often the store is looked at.
const storeLook = 30 * time.Second

func (k *storeKeeper) run(ctx context.Context) {
	tick := time.NewTicker(storeLook)
	defer tick.Stop()
	for {
		if err := k.look(ctx); err != nil && ctx.Err() == nil {
			k.log.Warn("cannot look after the store's size; trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// StoreSize is how full the embedded store was at the last look; false with the other engines.
func (c *ControlPlane) StoreSize() (StoreSize, bool) {
	if c.store == nil {
		return StoreSize{}, false
	}
	return c.store.size(), true
}

// ErrNoStore is the error for a store that is no embedded one.
var ErrNoStore = errors.New("the store is not the server's own")

// Snapshot writes a snapshot of the embedded store into an empty file. tell hears how many bytes have come, of about how many, and stops it by an error.
func (c *ControlPlane) Snapshot(ctx context.Context, file *os.File, tell func(done, total int64) error) (etcd.Origin, error) {
	if c.store == nil {
		return etcd.Origin{}, ErrNoStore
	}
	return etcd.Snapshot(ctx, c.store.client, c.store.endpoint, file, tell)
}

// keepStore looks after the embedded store until Stop.
func (c *ControlPlane) keepStore(client *clientv3.Client, endpoint string) {
	c.store = &storeKeeper{client: client, endpoint: endpoint, log: c.log}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { c.store.run(ctx) })
	c.onStop(func() {
		cancel()
		running.Wait()
	})
}

// size is as of the last look.
func (k *storeKeeper) size() StoreSize {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last
}

// look reads the size and does what it calls for.
func (k *storeKeeper) look(ctx context.Context) error {
	now, revision, err := k.read(ctx)
	if err != nil {
		return err
	}
	if now.Full {
		k.log.Error("the store is full and refuses writes: machines boot and are served from memory; delete what is not needed, or strangers' machines: coldrack get machines",
			"file", now.File, "inUse", now.InUse, "quota", now.Quota)
		if err := k.forget(ctx); err != nil {
			return err
		}
		if now, revision, err = k.read(ctx); err != nil {
			return err
		}
	}
	if now.defragment() {
		began := time.Now()
		if _, err := k.client.Defragment(ctx, k.endpoint); err != nil {
			return fmt.Errorf("defragment the store: %w", err)
		}
		before := now.File
		if now, revision, err = k.read(ctx); err != nil {
			return err
		}
		k.log.Info("store defragmented", "before", before, "file", now.File, "took", time.Since(began).Round(time.Millisecond))
	}
	if now.Full && now.hasRoom() {
		if err := k.disarm(ctx); err != nil {
			return err
		}
		if now, revision, err = k.read(ctx); err != nil {
			return err
		}
		k.log.Info("the store takes writes again", "file", now.File, "quota", now.Quota)
	}
	k.mu.Lock()
	k.last, k.revision = now, revision
	k.mu.Unlock()
	return nil
}

// forget drops the history of a full store, up to the last look: whoever watches has seen that.
func (k *storeKeeper) forget(ctx context.Context) error {
	if k.revision == 0 {
		return nil
	}
	_, err := k.client.Compact(ctx, k.revision, clientv3.WithCompactPhysical())
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compact the store: %w", err)
	}
	return nil
}

func (k *storeKeeper) read(ctx context.Context) (StoreSize, int64, error) {
	status, err := k.client.Status(ctx, k.endpoint)
	if err != nil {
		return StoreSize{}, 0, fmt.Errorf("status of the store: %w", err)
	}
	alarms, err := k.alarms(ctx)
	return StoreSize{File: status.DbSize, InUse: status.DbSizeInUse, Quota: status.DbSizeQuota, Full: len(alarms) > 0}, status.Header.Revision, err
}

// alarms are those that say that the store is full.
func (k *storeKeeper) alarms(ctx context.Context) ([]*etcdserverpb.AlarmMember, error) {
	all, err := k.client.AlarmList(ctx)
	if err != nil {
		return nil, fmt.Errorf("alarms of the store: %w", err)
	}
	return slices.DeleteFunc(all.Alarms, func(a *etcdserverpb.AlarmMember) bool { return a.Alarm != etcdserverpb.AlarmType_NOSPACE }), nil
}

// disarm tells the store that it has room.
func (k *storeKeeper) disarm(ctx context.Context) error {
	alarms, err := k.alarms(ctx)
	if err != nil {
		return err
	}
	for _, alarm := range alarms {
		if _, err := k.client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(alarm)); err != nil {
			return fmt.Errorf("tell the store that it has room: %w", err)
		}
	}
	return nil
}

// errStoreFull is what /readyz says.
var errStoreFull = errors.New("the store is full and refuses writes")

// Name implements healthz.HealthChecker.
func (k *storeKeeper) Name() string { return "store-has-room" }

// Check implements healthz.HealthChecker.
func (k *storeKeeper) Check(*http.Request) error {
	if k.size().Full {
		return errStoreFull
	}
	return nil
}
