package backups

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/objectstore"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/cluster/backup"
	"coldrack.dev/internal/cluster/etcddata"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/test/ca"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// TestMain is the process that reads snapshots, when it is started as such.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == etcddata.Verb {
		if err := etcddata.Serve(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestBackups takes backups of three real members of etcd: from a follower, one at a time, none that is not whole; old ones go, exported
// ones come back where they belong and nowhere else.
func TestBackups(t *testing.T) {
	require.Need(t, "netns", "etcd")
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	s := r.service("a", r.master("a"))

	r.change(func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Put(ctx, "/gone", "")
		return err
	})
	r.change(func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Delete(ctx, "/gone")
		return err
	})
	if _, err := s.Take(ctx, r, r.cluster, "test", nil); err == nil || !strings.Contains(err.Error(), "holds 0 keys") {
		t.Errorf("an empty store: %v", err)
	}
	r.nothingLeft(s)
	for _, key := range []string{"/registry/a", "/registry/b", "/registry/b"} {
		r.change(func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.Put(ctx, key, "content")
			return err
		})
	}
	var busy error
	steps := map[string]bool{}
	m, err := s.Take(ctx, r, r.cluster, "test", func(p Progress) {
		if steps[p.Step] = true; p.Step == "try" {
			_, busy = s.Take(ctx, r, r.cluster, "another", nil)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(busy, ErrBusy) || len(steps) != 3 {
		t.Errorf("a second one at the same time: %v; steps %v", busy, steps)
	}
	if m.Keys != 2 || m.Revision != 6 || m.Etcd == "" || m.Storage == "" || m.Cluster != "lab" || m.UID != "uid-1" || m.Kubernetes != "v1.37.2" || m.Member == r.leader() {
		t.Errorf("manifest %+v; %s leads", m, r.leader())
	}
	folder, err := s.Folder(r.cluster)
	if err != nil {
		t.Fatal(err)
	}
	if err := folder.Verify(m); err != nil {
		t.Error(err)
	}
	keys, err := folder.SealedKeys(m)
	if err != nil || bytes.Contains(keys, []byte("PRIVATE KEY")) {
		t.Errorf("keys are not sealed: %v", err)
	}
	if err := s.SameKeys(ctx, r, r.cluster, m); err != nil {
		t.Error(err)
	}
	was := r.secret.Data["encryption.key"]
	r.secret.Data["encryption.key"] = []byte("rotated")
	if err := s.SameKeys(ctx, r, r.cluster, m); err == nil || !strings.Contains(err.Error(), "rotated: encryption; ") {
		t.Errorf("another encryption key: %v", err)
	}
	r.secret.Data["encryption.key"] = was
	if record, err := s.Newest(r.cluster); err != nil || record.ID != m.ID || record.Keys != 2 {
		t.Errorf("newest %+v, %v", record, err)
	}

	t.Run("a disk without room", func(t *testing.T) {
		s := r.service("full", r.master("a"))
		s.Room = func(_ string, bytes int64) error {
			if bytes <= 0 {
				t.Errorf("asked for %d bytes", bytes)
			}
			return errors.New("the disk is full")
		}
		if _, err := s.Take(ctx, r, r.cluster, "test", nil); err == nil || strings.Count(err.Error(), "the disk is full") != 1 {
			t.Errorf("%v", err)
		}
		r.nothingLeft(s)
		if stats := s.Stats()["lab"]; stats.Failures != 1 || !stats.Last.IsZero() {
			t.Errorf("%+v", stats)
		}
	})
	t.Run("a mount that is missing", func(t *testing.T) {
		c := r.cluster.DeepCopy()
		c.Spec.Etcd.Backup.Folder = t.TempDir()
		if _, err := s.Take(ctx, r, c, "test", nil); err == nil || !strings.Contains(err.Error(), "is not mounted") {
			t.Errorf("%v", err)
		}
		if err := os.WriteFile(filepath.Join(c.Spec.Etcd.Backup.Folder, objectstore.Marker), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Take(ctx, r, c, "test", nil); err != nil {
			t.Error(err)
		}
		if list, err := s.List(c); err != nil || len(list) != 1 {
			t.Errorf("%v, %v", list, err)
		}
	})
	t.Run("exported and imported", func(t *testing.T) {
		var file bytes.Buffer
		if err := s.Export(ctx, r.cluster, m.ID, &file); err != nil {
			t.Fatal(err)
		}
		other := r.service("b", r.master("a"))
		got, err := other.Import(ctx, r.cluster, bytes.NewReader(file.Bytes()))
		if err != nil || got.ID != m.ID || got.Digest != m.Digest || got.Keys != 2 {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := other.Import(ctx, r.cluster, bytes.NewReader(file.Bytes())); err == nil || !strings.Contains(err.Error(), "is here already") {
			t.Errorf("a second time: %v", err)
		}
		anew := r.cluster.DeepCopy()
		anew.UID = "uid-2"
		for what, try := range map[string]struct {
			s    *Service
			c    *v1alpha1.Cluster
			file []byte
			want string
		}{
			"another cluster of the same name": {r.service("c", r.master("a")), anew, file.Bytes(), "has UID uid-2"},
			"another master key":               {r.service("d", r.master("d")), r.cluster, file.Bytes(), "another master key"},
			"cut short":                        {r.service("e", r.master("a")), r.cluster, file.Bytes()[:file.Len()/2], "ends before"},
			"a bit that flipped":               {r.service("f", r.master("a")), r.cluster, flipped(file.Bytes(), file.Len()/2), "is damaged"},
			"something else":                   {r.service("g", r.master("a")), r.cluster, []byte("no archive"), "no file that"},
		} {
			if _, err := try.s.Import(ctx, try.c, bytes.NewReader(try.file)); err == nil || !strings.Contains(err.Error(), try.want) {
				t.Errorf("%s: %v", what, err)
			}
			r.nothingLeft(try.s)
		}
	})
	t.Run("old ones go", func(t *testing.T) {
		// What a killed server leaves behind is no backup, and goes with the next.
		draft, err := folder.Begin(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		defer draft.Snapshot.Close()
		r.members[0].kill()
		var ids []string
		for range 3 {
			m, err := s.Take(ctx, r, r.cluster, "test", nil)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, m.ID)
		}
		list, err := s.List(r.cluster)
		if err != nil || len(list) != 2 || list[0].ID != ids[2] || list[1].ID != ids[1] {
			t.Errorf("%v: %+v, %v", ids, list, err)
		}
		entries, err := os.ReadDir(folder.Path)
		if err != nil || len(entries) != 2 {
			t.Errorf("%v, %v", entries, err)
		}
	})
	seen := r.revision()
	r.members[1].kill()
	r.members[2].kill()
	if _, err := s.Take(ctx, r, r.cluster, "test", nil); err == nil || !strings.Contains(err.Error(), "cluster lab") {
		t.Errorf("nobody is there: %v", err)
	}
	list, err := s.List(r.cluster)
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	t.Run("members begin with a backup", func(t *testing.T) { r.beginWith(t, s, list[0].ID, seen) })
}

// beginWith has three members begin with the data that a service makes of a backup. seen is the last revision that a client has seen.
func (r *rig) beginWith(t *testing.T, s *Service, id string, seen int64) {
	ctx := t.Context()
	plan := Plan{ID: "0123", Backup: id, Bump: 1000, Members: map[string]etcddata.Member{}}
	var initial []string
	for _, m := range r.members {
		initial = append(initial, m.name+"=https://"+m.address+":2380")
	}
	for _, m := range r.members {
		plan.Members[m.name] = etcddata.Member{Name: m.name, PeerURL: "https://" + m.address + ":2380", InitialCluster: initial, Token: plan.ID}
	}
	made, err := s.Prepare(ctx, r.cluster, plan)
	if err != nil || len(made) != 3 || !s.IsPrepared(plan.ID, []string{"etcd-1", "etcd-2", "etcd-3"}) || s.IsPrepared(plan.ID, []string{"etcd-4"}) {
		t.Fatalf("%+v, %v", made, err)
	}
	for _, m := range r.members {
		file, err := s.MemberData(plan.ID, m.name)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		b, err := io.ReadAll(file)
		if got := fmt.Sprintf("sha256:%x", sha256.Sum256(b)); err != nil || got != made[m.name].Digest || int64(len(b)) != made[m.name].Size {
			t.Errorf("%s: %s of %d bytes, want %+v", m.name, got, len(b), made[m.name])
		}
		data := filepath.Join(r.dir, m.name, "data", "member")
		if err := os.RemoveAll(data); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(data, 0o700); err != nil {
			t.Fatal(err)
		}
		unpack := exec.Command("tar", "-C", data, "-x")
		unpack.Stdin = bytes.NewReader(b)
		if out, err := unpack.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, m := range r.members {
		r.run(m, strings.Join(initial, ","))
	}
	r.change(func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.Get(ctx, "/registry/", clientv3.WithPrefix())
		if err != nil {
			return err
		}
		if len(got.Kvs) != 2 || got.Header.Revision <= seen {
			t.Errorf("%d keys at revision %d, after %d", len(got.Kvs), got.Header.Revision, seen)
		}
		list, err := c.MemberList(ctx)
		if err == nil && len(list.Members) != 3 {
			t.Errorf("members %v", list.Members)
		}
		return err
	})
	c := r.etcd()
	defer c.Close()
	watch := <-c.Watch(ctx, "/registry/b", clientv3.WithRev(seen))
	if err := watch.Err(); err == nil || !strings.Contains(err.Error(), "compacted") {
		t.Errorf("a watch from before goes on: %v", err)
	}
	for _, name := range []string{"", "..", "../" + id, "."} {
		if _, err := s.MemberData(name, "etcd-1"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := s.Discard(plan.ID); err != nil || s.IsPrepared(plan.ID, []string{"etcd-1"}) {
		t.Errorf("discard: %v", err)
	}
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// rig is a cluster's etcd in a network namespace, each member at an address of the loopback interface.
type rig struct {
	t         *testing.T
	dir       string
	authority *ca.CA
	ns        *netns.NS
	members   []*member
	cluster   *v1alpha1.Cluster
	secret    *v1alpha1.Secret
	hour      int
}

type member struct {
	name, address string
	process       *exec.Cmd
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, dir: t.TempDir(), authority: ca.New(t, "etcd"), ns: netns.New(t)}
	r.cluster = &v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: "lab", UID: types.UID("uid-1")}, Spec: v1alpha1.ClusterSpec{Version: "v1.37.2"}}
	r.cluster.Spec.Etcd.Backup.Keep = 2
	material, err := members.NewMaterial(r.cluster, time.Now())
	if err == nil {
		r.secret, err = material.Secret(r.cluster)
	}
	if err != nil {
		t.Fatal(err)
	}
	var initial []string
	for i := 1; i <= 3; i++ {
		m := &member{name: fmt.Sprintf("etcd-%d", i), address: fmt.Sprintf("127.0.0.%d", i)}
		initial = append(initial, m.name+"=https://"+m.address+":2380")
		r.members = append(r.members, m)
		r.cluster.Status.Nodes = append(r.cluster.Status.Nodes, v1alpha1.ClusterNode{Machine: m.name, NodeName: m.name, Addresses: []string{m.address}, Etcd: &v1alpha1.EtcdMember{}})
	}
	for _, m := range r.members {
		r.start(m, strings.Join(initial, ","))
	}
	return r
}

func (r *rig) start(m *member, initial string) {
	r.t.Helper()
	dir := filepath.Join(r.dir, m.name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	template := ca.Server(m.address)
	template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	cert, key := r.authority.IssuePEM(template)
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string][]byte{"ca": r.authority.PEM(), "cert": cert, "key": key} {
		if err := os.WriteFile(at(name), content, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	r.run(m, initial)
	r.t.Cleanup(m.kill)
}

// run starts a member on what is in its folder.
func (r *rig) run(m *member, initial string) {
	r.t.Helper()
	at := func(name string) string { return filepath.Join(r.dir, m.name, name) }
	client, peer := "https://"+m.address+":2379", "https://"+m.address+":2380"
	m.process = exec.Command("etcd", "--name", m.name, "--data-dir", at("data"), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", initial, "--log-level", "error",
		"--cert-file", at("cert"), "--key-file", at("key"), "--trusted-ca-file", at("ca"), "--client-cert-auth",
		"--peer-cert-file", at("cert"), "--peer-key-file", at("key"), "--peer-trusted-ca-file", at("ca"), "--peer-skip-client-san-verification", "--peer-client-cert-auth")
	m.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.ns.Start(m.process); err != nil {
		r.t.Fatal(err)
	}
}

func (m *member) kill() {
	if m.process != nil {
		_ = m.process.Process.Kill()
		_ = m.process.Wait()
		m.process = nil
	}
}

func (r *rig) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = r.ns.Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// EtcdAuthority implements Clusters.
func (r *rig) EtcdAuthority(string) []byte { return r.authority.PEM() }

// EtcdClient implements Clusters.
func (r *rig) EtcdClient(string, time.Duration) (*tls.Certificate, error) {
	return r.authority.Issue(ca.Client("coldrack-server")), nil
}

// Get implements client.Reader for the Secret with the cluster's keys.
func (r *rig) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	if key.Name != r.secret.Name {
		return fmt.Errorf("asked for %s", key.Name)
	}
	r.secret.DeepCopyInto(into.(*v1alpha1.Secret))
	return nil
}

// List implements client.Reader.
func (r *rig) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return errors.New("nothing is listed here")
}

func (r *rig) master(name string) pki.MasterKey {
	r.t.Helper()
	dir := filepath.Join(r.dir, "pki-"+name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	key, err := pki.OpenMasterKey(dir)
	if err != nil {
		r.t.Fatal(err)
	}
	return key
}

func (r *rig) service(name string, keys backup.Keys) *Service {
	r.t.Helper()
	program, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	return New(Options{
		Dir: filepath.Join(r.dir, "backups-"+name), Keys: keys, Clusters: r, DialNode: r.dial, Log: slog.New(slog.DiscardHandler),
		Try: func(ctx context.Context, snapshot, folder string) (etcddata.Content, error) {
			return etcddata.Do(ctx, program, etcddata.Request{Snapshot: snapshot, Folder: folder})
		},
		Restore: func(ctx context.Context, snapshot, folder string, member etcddata.Member) (etcddata.Content, error) {
			return etcddata.Do(ctx, program, etcddata.Request{Snapshot: snapshot, Folder: folder, Member: &member})
		},
		Room: func(string, int64) error { return nil },
		Now: func() time.Time { // each backup is an hour younger
			r.hour++
			return time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC).Add(time.Duration(r.hour) * time.Hour)
		},
	})
}

func (r *rig) etcd() *clientv3.Client {
	r.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(r.authority.PEM())
	certificate, _ := r.EtcdClient("", 0)
	var endpoints []string
	for _, m := range r.members {
		endpoints = append(endpoints, "https://"+m.address+":2379")
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop(), TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{*certificate}},
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return r.dial(ctx, "tcp", address) })}})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// change writes something once the members are there.
func (r *rig) change(do func(context.Context, *clientv3.Client) error) {
	r.t.Helper()
	c := r.etcd()
	defer c.Close()
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	for {
		err := do(ctx, c)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			r.t.Fatal(err)
		}
	}
}

// revision that the store has now.
func (r *rig) revision() (revision int64) {
	r.t.Helper()
	r.change(func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.Get(ctx, "/registry/a")
		if err == nil {
			revision = got.Header.Revision
		}
		return err
	})
	return revision
}

func (r *rig) leader() string {
	r.t.Helper()
	c := r.etcd()
	defer c.Close()
	for _, m := range r.members {
		status, err := c.Status(r.t.Context(), "https://"+m.address+":2379")
		if err == nil && status.Leader == status.Header.MemberId {
			return m.name
		}
	}
	r.t.Fatal("no member leads")
	return ""
}

// nothingLeft checks that a service holds no backup and nothing that was to be one.
func (r *rig) nothingLeft(s *Service) {
	r.t.Helper()
	folders, _ := filepath.Glob(filepath.Join(s.Dir, "*", "*"))
	if len(folders) > 0 {
		r.t.Errorf("left behind: %v", folders)
	}
}

var _ Clusters = (*rig)(nil)
