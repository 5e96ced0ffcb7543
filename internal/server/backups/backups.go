// Package backups takes backups of the etcd of clusters, one at a time of each, and keeps them in this server's data folder or where the
// Cluster says. A snapshot counts only when it was restored on trial.
package backups

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/objectstore"
	"coldrack.dev/internal/cluster/backup"
	"coldrack.dev/internal/cluster/etcd"
	"coldrack.dev/internal/cluster/etcddata"
	"coldrack.dev/internal/cluster/members"
)

// Clusters lets this server speak to the members of a cluster's etcd. It is *members.Set.
type Clusters interface {
	EtcdAuthority(cluster string) []byte
	EtcdClient(cluster string, ttl time.Duration) (*tls.Certificate, error)
}

// Options of a Service. All but Now, DialNode and Elsewhere are needed.
type Options struct {
	// Dir holds a folder for each cluster, named by its UID.
	Dir      string
	Keys     backup.Keys // the master key
	Clusters Clusters
	// DialNode connects to a node; nil is an ordinary net.Dialer.
	DialNode func(ctx context.Context, network, address string) (net.Conn, error)
	// Try restores a snapshot on trial in a folder that does not exist, and reads it.
	Try func(ctx context.Context, snapshot, folder string) (etcddata.Content, error)
	// Restore makes the data folder of a member of a snapshot, and reads it.
	Restore func(ctx context.Context, snapshot, folder string, member etcddata.Member) (etcddata.Content, error)
	// Room says that a folder's disk has no room for so many bytes more.
	Room func(folder string, bytes int64) error
	// Elsewhere opens the store that keeps copies, with the credentials of now; nil: there are no copies.
	Elsewhere func(context.Context) (objectstore.Store, error)
	Log       *slog.Logger
	Now       func() time.Time
}

// Service takes and keeps backups.
type Service struct {
	Options

	mu      sync.Mutex
	running map[string]string // what is done, by the UID of the cluster
	stats   map[string]Stats
	copies  map[string]CopyState // by the name of the cluster
	changed chan struct{}
	taken   chan struct{} // closed when there is a new backup
	known   backup.Known
	own     *own // nil where the store is not the server's own
}

// Stats of one cluster, since this server started.
type Stats struct {
	// Last is when the newest good backup was taken; zero: there is none.
	Last time.Time
	// Failures since the start.
	Failures uint64
}

// New returns a Service.
func New(o Options) *Service {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Service{Options: o, running: map[string]string{}, stats: map[string]Stats{}, copies: map[string]CopyState{}, changed: make(chan struct{}), taken: make(chan struct{})}
}

// ErrBusy says that a backup of the cluster is being taken, or read in.
var ErrBusy = errors.New("a backup of it is being made already")

// set is what is backed up: the etcd of a cluster, or the server's own store.
type set struct {
	// name of the cluster; empty: the server's own store.
	name   string
	uid    string
	folder func() (backup.Folder, error)
	keep   int
	// hold is a backup that is being restored, and stays.
	hold string
}

// String is what people call it.
func (k set) String() string {
	if k.name == "" {
		return "the server's own store"
	}
	return "cluster " + k.name
}

func (s *Service) setOf(c *v1alpha1.Cluster) set {
	k := set{name: c.Name, uid: string(c.UID), keep: c.Spec.Etcd.BackupsKept(), folder: func() (backup.Folder, error) { return s.Folder(c) }}
	if c.Status.Restore.Running() {
		k.hold = c.Status.Restore.Backup
	}
	return k
}

// begin makes sure that one thing is done to the backups of a set at a time.
func (s *Service) begin(k set, what string) (end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if is := s.running[k.uid]; is != "" {
		return nil, fmt.Errorf("%s: %w (%s); try again when it has ended", k, ErrBusy, is)
	}
	s.running[k.uid] = what
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.running, k.uid)
	}, nil
}

// Changed is closed when there may be another newest backup of a cluster, here or elsewhere.
func (s *Service) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Stats by the name of the cluster.
func (s *Service) Stats() map[string]Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.stats)
}

func (s *Service) note(cluster string, change func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	is := s.stats[cluster]
	change(&is)
	s.stats[cluster] = is
}

// Forget a cluster that is not there any more. Its backups stay.
func (s *Service) Forget(cluster string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.stats, cluster)
	delete(s.copies, cluster)
}

// Folder of a cluster's backups. One of a person's own must be there: it is not made, because it may be a mount that is missing.
func (s *Service) Folder(c *v1alpha1.Cluster) (backup.Folder, error) {
	uid := string(c.UID)
	if own := c.Spec.Etcd.Backup.Folder; own != "" {
		if err := objectstore.CheckMarker(own); err != nil {
			return backup.Folder{}, fmt.Errorf("spec.etcd.backup.folder: %w", err)
		}
		return backup.Folder{Path: filepath.Join(own, uid), UID: uid}, nil
	}
	return backup.Folder{Path: filepath.Join(s.Dir, uid), UID: uid}, nil
}

// List of a cluster's backups on this server, the newest first.
func (s *Service) List(c *v1alpha1.Cluster) ([]backup.Manifest, error) { return s.list(s.setOf(c)) }

func (s *Service) list(k set) ([]backup.Manifest, error) {
	folder, err := k.folder()
	if err != nil {
		return nil, err
	}
	list, problems := folder.List()
	for _, problem := range problems {
		s.Log.Warn("a backup cannot be read; it is left alone", "of", k.String(), "err", problem)
	}
	return list, nil
}

// Newest backup of a cluster, nil when there is none.
func (s *Service) Newest(c *v1alpha1.Cluster) (*v1alpha1.BackupRecord, error) {
	list, err := s.List(c)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	s.note(c.Name, func(is *Stats) { is.Last = list[0].TakenAt })
	return recordOf(list[0]), nil
}

func recordOf(m backup.Manifest) *v1alpha1.BackupRecord {
	return &v1alpha1.BackupRecord{ID: m.ID, TakenAt: v1alpha1.TimeOf(m.TakenAt), Revision: m.Revision, Keys: int64(m.Keys), Size: m.Size, Etcd: m.Etcd}
}

// Progress is how far a backup is.
type Progress struct {
	// Step is copy, try or keep.
	Step string `json:"step"`
	// Done bytes of about Total, while it is copied.
	Done  int64 `json:"done,omitempty"`
	Total int64 `json:"total,omitempty"`
}

// roomEvery is how many bytes are written between two looks at the disk.
const roomEvery = 32 << 20

// source is what a backup is made of.
type source struct {
	// seal returns what goes beside the snapshot, sealed. It is called once the snapshot is there.
	seal func() ([]byte, error)
	// draft is what is known of the backup beforehand.
	draft    backup.Manifest
	snapshot func(ctx context.Context, file *os.File, tell func(done, total int64) error) (etcd.Origin, error)
	close    func()
}

// Take a backup of a cluster's etcd. tell may be nil.
func (s *Service) Take(ctx context.Context, reader client.Reader, c *v1alpha1.Cluster, why string, tell func(Progress)) (backup.Manifest, error) {
	return s.taking(ctx, s.setOf(c), why, tell, func() (source, error) {
		sealed, err := s.sealedKeys(ctx, reader, c)
		if err != nil {
			return source{}, err
		}
		members, err := s.connect(c)
		if err != nil {
			return source{}, err
		}
		draft := backup.Manifest{Cluster: c.Name, Kubernetes: cmp.Or(c.Status.Version, c.Spec.Version)}
		return source{func() ([]byte, error) { return sealed, nil }, draft, members.Snapshot, members.Close}, nil
	})
}

// taking takes a backup of what open returns.
func (s *Service) taking(ctx context.Context, k set, why string, tell func(Progress), open func() (source, error)) (m backup.Manifest, err error) {
	end, err := s.begin(k, "since "+s.Now().UTC().Format("15:04:05 MST"))
	if err != nil {
		return m, err
	}
	defer end()
	if tell == nil {
		tell = func(Progress) {}
	}
	began := s.Now()
	m, err = s.take(ctx, k, why, tell, open)
	if err != nil {
		s.note(k.name, func(is *Stats) { is.Failures++ })
		return m, fmt.Errorf("back up %s: %w", k, err)
	}
	s.Log.Info("backed up", "what", k.String(), "backup", m.ID, "reason", why, "member", m.Member, "bytes", m.Size, "keys", m.Keys, "revision", m.Revision,
		"took", s.Now().Sub(began).Round(time.Millisecond))
	s.prune(k)
	s.hasTaken()
	return m, nil
}

// newest is closed when a backup was taken or read in.
func (s *Service) newest() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

// hasTaken wakes who waits for a new backup.
func (s *Service) hasTaken() {
	s.mu.Lock()
	close(s.taken)
	s.taken = make(chan struct{})
	s.mu.Unlock()
	s.changes()
}

func (s *Service) changes() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Service) take(ctx context.Context, k set, why string, tell func(Progress), open func() (source, error)) (m backup.Manifest, err error) {
	folder, err := k.folder()
	if err != nil {
		return m, err
	}
	from, err := open()
	if err != nil {
		return m, err
	}
	defer from.close()
	draft, err := folder.Begin(s.Now())
	if err != nil {
		return m, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, draft.Abandon())
		}
	}()
	m = from.draft
	m.TakenAt, m.Reason = s.Now().UTC().Truncate(time.Second), why
	looked := int64(-1)
	origin, err := from.snapshot(ctx, draft.Snapshot, func(done, total int64) error {
		tell(Progress{Step: "copy", Done: done, Total: total})
		if looked >= 0 && done-looked < roomEvery {
			return nil
		}
		looked = done
		// What is still to come, and the copy that is restored on trial.
		return s.Room(folder.Path, 2*total-done)
	})
	if err != nil {
		return m, err
	}
	m.Member, m.Etcd, m.Size, m.Digest = cmp.Or(origin.Member, m.Member), origin.Version, origin.Size, origin.Digest
	tell(Progress{Step: "try"})
	if err := s.try(ctx, draft, &m); err != nil {
		return m, err
	}
	sealed, err := from.seal()
	if err != nil {
		return m, err
	}
	tell(Progress{Step: "keep"})
	return draft.Finish(m, sealed)
}

// try restores a draft on trial.
func (s *Service) try(ctx context.Context, draft *backup.Draft, m *backup.Manifest) error {
	content, err := s.Try(ctx, draft.Snapshot.Name(), draft.Scratch())
	if err != nil {
		return fmt.Errorf("the snapshot does not count, because a trial restore failed: %w", err)
	}
	if content.Keys == 0 || content.Revision <= 0 {
		return fmt.Errorf("the snapshot does not count: it was restored on trial and holds %d keys at revision %d; an API server writes some at its first start", content.Keys, content.Revision)
	}
	m.Keys, m.Revision, m.Storage = content.Keys, content.Revision, content.Storage
	return nil
}

func (s *Service) connect(c *v1alpha1.Cluster) (*etcd.Client, error) {
	target := etcd.Target{Cluster: c.Name, CA: s.Clusters.EtcdAuthority(c.Name), Dial: s.DialNode}
	for _, n := range c.Status.Nodes {
		if n.Etcd == nil || len(n.Addresses) == 0 {
			continue
		}
		if address, err := netip.ParseAddr(n.Addresses[0]); err == nil {
			target.Nodes = append(target.Nodes, address)
		}
	}
	var err error
	if target.Certificate, err = s.Clusters.EtcdClient(c.Name, time.Hour); err != nil {
		return nil, err
	}
	return etcd.Connect(target)
}

// sealedUse is the use of the master key for a cluster's keys in its backups.
func sealedUse(uid string) string { return "backup of cluster " + uid }

// sealedKeys are the cluster's keys as the store has them, sealed.
func (s *Service) sealedKeys(ctx context.Context, reader client.Reader, c *v1alpha1.Cluster) ([]byte, error) {
	secret := &v1alpha1.Secret{}
	if err := reader.Get(ctx, client.ObjectKey{Name: members.SecretName(c.Name)}, secret); err != nil {
		return nil, fmt.Errorf("read the cluster's keys: %w", err)
	}
	if err := members.CheckSecret(secret, c); err != nil {
		return nil, err
	}
	text, err := json.Marshal(secret.Data)
	if err != nil {
		return nil, err
	}
	return s.Keys.Seal(sealedUse(string(c.UID)), text)
}

// prune removes the oldest backups beyond what is kept.
func (s *Service) prune(k set) {
	folder, err := k.folder()
	if err != nil {
		return // it was there a moment ago; the next backup says so
	}
	removed, err := folder.Prune(k.keep, k.hold)
	for _, id := range removed {
		s.Log.Info("old backup removed", "of", k.String(), "backup", id)
	}
	if err != nil {
		s.Log.Warn("cannot remove old backups; trying again after the next one", "of", k.String(), "err", err)
	}
}

// Export writes a backup as one file. One that is only elsewhere is fetched before.
func (s *Service) Export(ctx context.Context, c *v1alpha1.Cluster, id string, w io.Writer) error {
	return s.export(ctx, s.setOf(c), id, w)
}

func (s *Service) export(ctx context.Context, k set, id string, w io.Writer) error {
	m, folder, err := s.ensure(ctx, k, id)
	if err != nil {
		return err
	}
	return folder.Export(m, w)
}

// Import reads a file that Export wrote, here or at another server with the same master key.
func (s *Service) Import(ctx context.Context, c *v1alpha1.Cluster, from io.Reader) (m backup.Manifest, err error) {
	end, err := s.begin(s.setOf(c), "one is read in")
	if err != nil {
		return m, err
	}
	defer end()
	folder, err := s.Folder(c)
	if err != nil {
		return m, err
	}
	in, err := backup.ReadArchive(from)
	if err != nil {
		return m, err
	}
	m = in.Manifest
	if m.UID != string(c.UID) {
		return m, fmt.Errorf("the backup is of cluster %s with UID %s, and cluster %s has UID %s: its keys and machines are others", m.Cluster, m.UID, c.Name, c.UID)
	}
	if _, err := s.Keys.Open(sealedUse(m.UID), in.SealedKeys); err != nil {
		return m, fmt.Errorf("the keys in the backup: %w; it was made by a server with another master key (pki/master.key)", err)
	}
	if err := s.Room(folder.Path, 2*m.Size); err != nil {
		return m, err
	}
	draft, err := folder.Import(in)
	if err != nil {
		return m, err
	}
	if m, err = s.admit(ctx, draft, m, in.SealedKeys); err != nil {
		return m, err
	}
	s.Log.Info("backup imported", "cluster", c.Name, "backup", m.ID, "bytes", m.Size)
	s.hasTaken()
	return m, nil
}
