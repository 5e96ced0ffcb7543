package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/objectstore"
	"coldrack.dev/internal/cluster/etcddata"
	"coldrack.dev/internal/server/backups"
	"coldrack.dev/internal/server/controllers"
)

// backupsDir is where backups are kept, in the data folder.
const backupsDir = "backups"

// readSnapshot has this program read a snapshot, in a process of its own.
func readSnapshot(ctx context.Context, r etcddata.Request) (etcddata.Content, error) {
	program, err := os.Executable()
	if err != nil {
		return etcddata.Content{}, err
	}
	return etcddata.Do(ctx, program, r)
}

// newBackups keeps the backups of clusters and of the server's own store.
func (s *server) newBackups() *backups.Service {
	var elsewhere func(context.Context) (objectstore.Store, error)
	if s.cfg.BackupCopies != "" {
		elsewhere = s.storeOfCopies
	}
	return backups.New(backups.Options{
		Elsewhere: elsewhere,
		Dir:       s.cfg.path(backupsDir), Keys: s.keys.master, Clusters: s.clusters, DialNode: s.dialNode, Log: s.log.With("part", "backups"),
		Try: func(ctx context.Context, snapshot, folder string) (etcddata.Content, error) {
			return readSnapshot(ctx, etcddata.Request{Snapshot: snapshot, Folder: folder})
		},
		Restore: func(ctx context.Context, snapshot, folder string, member etcddata.Member) (etcddata.Content, error) {
			return readSnapshot(ctx, etcddata.Request{Snapshot: snapshot, Folder: folder, Member: &member})
		},
		Room: func(folder string, bytes int64) error {
			if rest, err := filepath.Rel(s.cfg.DataDir, folder); err == nil && rest != ".." && !strings.HasPrefix(rest, "../") {
				return s.importer.reserve.roomFor(bytes)
			}
			return roomAt(folder, bytes)
		},
	})
}

// backupKeeper is what the controllers take backups by.
type backupKeeper struct {
	*backups.Service
	reader client.Reader // of the store, not a cache
}

// Back implements controllers.Backups.
func (k backupKeeper) Back(ctx context.Context, c *v1alpha1.Cluster, why string) error {
	_, err := k.Take(ctx, k.reader, c, why, nil)
	if errors.Is(err, backups.ErrBusy) {
		return fmt.Errorf("%w: %w", controllers.ErrBackupRuns, err)
	}
	return err
}

// Snapshot implements controllers.Restores.
func (k backupKeeper) Snapshot(ctx context.Context, c *v1alpha1.Cluster, id string) (controllers.SnapshotFacts, error) {
	m, err := k.Get(ctx, c, id)
	if err == nil {
		err = k.SameKeys(ctx, k.reader, c, m)
	}
	return controllers.SnapshotFacts{UID: m.UID, Etcd: m.Etcd, Digest: m.Digest, Revision: m.Revision}, err
}

// Prepare implements controllers.Restores.
func (k backupKeeper) Prepare(ctx context.Context, c *v1alpha1.Cluster, order controllers.RestoreOrder) ([]v1alpha1.RestoreMember, error) {
	var initial []string
	for _, member := range order.Members {
		initial = append(initial, member.Name+"="+member.PeerURL)
	}
	slices.Sort(initial)
	plan := backups.Plan{ID: order.ID, Backup: order.Backup, Bump: uint64(order.Bump), Members: map[string]etcddata.Member{}}
	for machine, member := range order.Members {
		plan.Members[machine] = etcddata.Member{Name: member.Name, PeerURL: member.PeerURL, InitialCluster: initial, Token: order.ID}
	}
	made, err := k.Service.Prepare(ctx, c, plan)
	var members []v1alpha1.RestoreMember
	for machine, data := range made {
		members = append(members, v1alpha1.RestoreMember{Machine: machine, Digest: data.Digest, Size: data.Size})
	}
	return members, err
}

// roomAt says that a disk that is not the store's has no room for so many bytes more.
func roomAt(folder string, bytes int64) error {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(folder, &st)
		switch {
		case errors.Is(err, fs.ErrNotExist) && folder != filepath.Dir(folder):
			folder = filepath.Dir(folder) // it is about to be made there
			continue
		case err != nil:
			return fmt.Errorf("space on the disk of %s: %w", folder, err)
		case int64(st.Bavail)*st.Bsize < bytes:
			return fmt.Errorf("the disk of %s has %d MiB free, and %d MiB are needed", folder, int64(st.Bavail)*st.Bsize>>20, bytes>>20)
		}
		return nil
	}
}
