package rack

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
	"coldrack.dev/test/s3server"
)

// TestABackupIsRestored brings a cluster back to what a backup holds: first on the machines that it runs on, then on etcd machines that were
// installed anew with empty disks. The server is killed in the middle of each.
func TestABackupIsRestored(t *testing.T) {
	t.Parallel()
	r := New(t, Options{})
	r.Cluster(Size{Etcd: 3, ControlPlanes: 1, Workers: 1}, swiftly)
	r.PowerOn()
	r.AwaitReady()
	r.AwaitCluster("backed up by itself", func(c *v1alpha1.Cluster) bool { return c.Status.Backup != nil && c.Status.Backup.Last != nil })

	r.Kubectl("create", "configmap", "kept", "--from-literal=when=before")
	r.Kubectl("create", "secret", "generic", "kept", "--from-literal=word=sesame")
	if out := r.Server().Run("cluster", "backup", r.cluster); !strings.Contains(out, "backed up as") {
		t.Errorf("backup: %s", out)
	}
	var backups []peoplewire.Backup
	if err := json.Unmarshal([]byte(r.Server().Run("cluster", "backups", r.cluster, "-o", "json")), &backups); err != nil || len(backups) != 2 || backups[0].Keys < 50 {
		t.Fatalf("backups %+v, %v", backups, err)
	}
	id := backups[0].ID
	if out, err := r.Server().Try("cluster", "restore", r.cluster, "--from", id); err == nil || !strings.Contains(out, "nothing was restored") {
		t.Errorf("without a word: %v %s", err, out)
	}
	if out, err := r.Server().Try("cluster", "restore", r.cluster, "--from", "20200101t000000z", "--yes"); err == nil || !strings.Contains(out, "has no backup") {
		t.Errorf("from a backup that is not there: %v %s", err, out)
	}
	file := filepath.Join(r.dir, "exported")
	r.Server().Run("cluster", "backup", "export", r.cluster, id, "-o", file)
	if out, err := r.Server().Try("cluster", "backup", "import", r.cluster, file); err == nil || !strings.Contains(out, "is here already") {
		t.Errorf("import of what is there: %v %s", err, out)
	}
	r.Server().Run("cluster", "pause", r.cluster)
	if out, err := r.Server().Try("cluster", "restore", r.cluster, "--from", id, "--yes"); err == nil || !strings.Contains(out, "is paused") {
		t.Errorf("of a paused cluster: %v %s", err, out)
	}
	r.Server().Run("cluster", "resume", r.cluster)
	seen := int64(0)
	spoil := func() {
		r.Kubectl("create", "configmap", "lost", "--from-literal=when=after")
		r.Kubectl("delete", "configmap", "kept")
		seen = r.revision()
	}
	asItWas := func(t *testing.T) {
		t.Helper()
		if got := r.Kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.when}"); got != "before" {
			t.Errorf("what was deleted is %q", got)
		}
		if got := r.Kubectl("get", "secret", "kept", "-o", "jsonpath={.data.word}"); got != "c2VzYW1l" {
			t.Errorf("the Secret is %q", got)
		}
		if out, err := r.TryKubectl("get", "configmap", "lost"); err == nil || !strings.Contains(out, "NotFound") {
			t.Errorf("what was written afterwards: %v %s", err, out)
		}
		if now := r.revision(); now <= seen {
			t.Errorf("revision %d after %d: time went back", now, seen)
		}
		r.Kubectl("create", "configmap", "after-"+strconv.FormatInt(r.revision(), 10))
	}

	spoil()
	t.Run("on the same machines", func(t *testing.T) {
		told := make(chan string)
		go func() { // ends with the test at the latest
			out, err := r.Server().Try("cluster", "restore", r.cluster, "--from", id, "--yes")
			told <- fmt.Sprintf("%s (%v)", out, err)
		}()
		r.AwaitCluster("being restored", func(c *v1alpha1.Cluster) bool { return c.Status.Restore.Running() })
		r.Server().Restart()
		if out := <-told; !strings.Contains(out, "restored from backup "+id) || !strings.Contains(out, "(<nil>)") {
			t.Errorf("the command says: %s", out)
		}
		r.AwaitReady()
		r.awaitMembers("etcd-1", "etcd-2", "etcd-3")
		asItWas(t)
		r.AwaitCluster("without what was there before", func(c *v1alpha1.Cluster) bool { return !c.Status.Restore.FormerData })
		r.Await("the former data is gone", func() (bool, string) {
			left, _ := filepath.Glob(filepath.Join(r.Machine("etcd-1").Disk(), "var/lib/etcd/member.*"))
			return len(left) == 0, strings.Join(left, ", ")
		})
	})
	if t.Failed() {
		return
	}

	spoil()
	t.Run("on machines that were installed anew", func(t *testing.T) {
		etcd := []string{"etcd-1", "etcd-2", "etcd-3"}
		r.PowerCut(etcd...)
		for _, name := range etcd {
			m := r.Machine(name)
			if err := os.RemoveAll(m.disk); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(m.disk, 0o755); err != nil {
				t.Fatal(err)
			}
			m.installed = false
		}
		r.Server().Run("reinstall", "etcd-1", "etcd-2", "etcd-3", "--yes")
		restored := r.restore(id)
		r.AwaitCluster("being restored", func(c *v1alpha1.Cluster) bool {
			return c.Status.Restore.Running() && c.Status.Restore.Request == restored
		})
		for _, name := range etcd {
			r.awaitMachine(name, "to be installed anew", func(m *v1alpha1.Machine) bool { return m.OpenIntent() != nil })
		}
		r.PowerOn(etcd...)
		r.AwaitCluster("starting", func(c *v1alpha1.Cluster) bool {
			return c.Status.Restore.Request == restored && c.Status.Restore.Step != v1alpha1.RestoreStopping
		})
		r.Server().Restart()
		r.awaitRestored(restored)
		r.awaitMembers(etcd...)
		asItWas(t)
	})
}

// TestTheServersDiskIsLost: the server's data folder is gone, with the backups of the cluster and of its own. It comes back from an S3 server by one
// command and the master key; its nodes know it, and the cluster is brought back from a backup of which there is only the copy.
func TestTheServersDiskIsLost(t *testing.T) {
	t.Parallel()
	r := New(t, Options{})
	s := r.Server()
	s3 := s3server.NewIn(t, s.ns.Do)
	ca, keyFile := filepath.Join(r.dir, "s3-ca.pem"), filepath.Join(r.dir, "s3.key")
	for file, content := range map[string][]byte{ca: s3.CA, keyFile: []byte(s3.SecretKey)} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.settings = []string{"COLDRACK_BACKUP_COPIES=" + s3.URL.JoinPath(s3server.Bucket, "rack").String(), "COLDRACK_BACKUP_COPIES_CA_FILE=" + ca, "COLDRACK_BACKUP_EVERY=0"}
	s.Restart()
	r.Cluster(Size{Etcd: 1, ControlPlanes: 1, Workers: 1}, swiftly)
	r.PowerOn()
	r.AwaitReady()
	r.AwaitCluster("backed up by itself", func(c *v1alpha1.Cluster) bool { return c.Status.Backup != nil && c.Status.Backup.Last != nil })
	copied := func(reason string) func(*v1alpha1.Cluster) bool {
		return func(c *v1alpha1.Cluster) bool {
			is := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionBackupCopied)
			return is != nil && is.Reason == reason && is.ObservedGeneration == c.Generation
		}
	}
	r.AwaitCluster("not copied for want of credentials", copied("Failing"))
	withKey := func(args ...string) (string, error) {
		return s.ns.Try(t.Context(), "sh", "-c", "exec env "+strings.Join(s.settings, " ")+" COLDRACK_KUBECONFIG="+s.kubeconfig()+" "+s.r.programs.coldrack+" "+strings.Join(args, " ")+" --access-key "+s3.AccessKey+" --secret-key-stdin <"+keyFile)
	}
	if out, err := withKey("server", "backup", "set-credentials"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.AwaitCluster("copied", copied("Copied"))

	// The server is killed while it copies.
	r.Kubectl("create", "configmap", "kept", "--from-literal=when=before")
	s3.HoldAfter(100 << 10)
	s.Run("cluster", "backup", r.cluster)
	r.Await("the copy hangs", func() (bool, string) { return s3.Holds(), "nothing is held" })
	s.Kill()
	s3.Mend()
	s.Start()
	var backups []peoplewire.Backup
	list := func() {
		t.Helper()
		if err := json.Unmarshal([]byte(s.Run("cluster", "backups", r.cluster, "-o", "json")), &backups); err != nil {
			t.Fatal(err)
		}
	}
	r.Await("both are copied after the kill", func() (bool, string) {
		list()
		notCopied := func(b peoplewire.Backup) bool { return !slices.Equal(b.Where, []string{"here", "copy"}) }
		return len(backups) >= 2 && !slices.ContainsFunc(backups, notCopied), fmt.Sprint(backups)
	})
	r.AwaitCluster("copied after the kill", copied("Copied"))
	id := backups[0].ID
	s.Run("server", "backup")
	r.Await("the server's own backup is copied", func() (bool, string) {
		out := s.Run("server", "backups")
		return strings.Contains(out, "here+copy"), out
	})

	// The disk is gone; a person has the master key.
	master, err := os.ReadFile(filepath.Join(s.data, "pki", "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	s.Kill()
	if err := os.RemoveAll(s.data); err != nil {
		t.Fatal(err)
	}
	masterFile := filepath.Join(r.dir, "master.key")
	if err := os.WriteFile(masterFile, master, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := withKey("server", "restore", "--data-dir", s.data, "--master-key", masterFile)
	if err != nil || !strings.Contains(out, "restored from backup") {
		t.Fatalf("%v: %s", err, out)
	}
	s.Start()
	if out := s.Run("server", "restored"); !strings.Contains(out, "The store was restored at") {
		t.Errorf("restored: %s", out)
	}
	for _, m := range r.machines {
		r.awaitMachine(m.name, "ready", func(m *v1alpha1.Machine) bool { return m.Status.Phase == v1alpha1.PhaseReady })
	}
	r.AwaitReady()
	s.Run("server", "restored", "--confirm", "--yes")
	if out := s.Run("server", "restored"); !strings.Contains(out, "nothing waits") {
		t.Errorf("confirmed: %s", out)
	}
	list() // one by schedule may have come meanwhile
	if i := slices.IndexFunc(backups, func(b peoplewire.Backup) bool { return b.ID == id }); i < 0 || !slices.Equal(backups[i].Where, []string{"copy"}) {
		t.Fatalf("backups of the restored server %+v", backups)
	}
	r.Kubectl("delete", "configmap", "kept")
	if out := s.Run("cluster", "restore", r.cluster, "--from", id, "--yes"); !strings.Contains(out, "restored from backup "+id) {
		t.Errorf("restore: %s", out)
	}
	r.AwaitReady()
	if got := r.Kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.when}"); got != "before" {
		t.Errorf("what was deleted is %q", got)
	}
}

// restore orders one as the command does, which would wait for its end, and returns the request.
func (r *Rack) restore(id string) (request string) {
	r.t.Helper()
	request = id + " by a test"
	r.update(r.cluster, &v1alpha1.Cluster{}, func(o client.Object) {
		if o.GetAnnotations() == nil {
			o.SetAnnotations(map[string]string{})
		}
		o.GetAnnotations()[v1alpha1.AnnotationRestore] = request
	})
	return request
}

// awaitRestored waits until a restore has ended and the cluster is ready.
func (r *Rack) awaitRestored(request string) {
	r.t.Helper()
	r.AwaitCluster("restored", func(c *v1alpha1.Cluster) bool {
		is := c.Status.Restore
		if is != nil && is.Step == v1alpha1.RestoreRefused {
			r.t.Fatalf("the restore was refused: %s", is.Message)
		}
		return is != nil && is.Request == request && is.Step == v1alpha1.RestoreDone
	})
	r.AwaitReady()
}

// revision that the cluster's API tells now.
func (r *Rack) revision() int64 {
	r.t.Helper()
	var list metav1.PartialObjectMetadataList
	text := r.Kubectl("get", "--raw", "/api/v1/namespaces?limit=1")
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		r.t.Fatal(err)
	}
	revision, err := strconv.ParseInt(list.ResourceVersion, 10, 64)
	if err != nil {
		r.t.Fatalf("resource version %q: %v", list.ResourceVersion, err)
	}
	return revision
}
