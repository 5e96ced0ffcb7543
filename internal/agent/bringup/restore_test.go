package bringup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/contract/wire"
)

// dataServer is the machine API with the data of a member, and nothing else.
type dataServer struct {
	Server
	archive []byte
	err     error
	fetched int
}

func (s *dataServer) EtcdData(_ context.Context, _ string, w io.Writer) error {
	s.fetched++
	_, err := w.Write(s.archive)
	return errors.Join(err, s.err)
}

// memberArchive has files by name, in one tar archive.
func memberArchive(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Size: int64(len(files[i+1])), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// restoreRig is a node with a member of etcd that has data, and static pods.
type restoreRig struct {
	t      *testing.T
	disk   nodefile.Disk
	server *dataServer
	plan   *wire.NodePlan
}

func newRestoreRig(t *testing.T) *restoreRig {
	r := &restoreRig{t: t, disk: nodefile.Disk{Root: t.TempDir()}, server: &dataServer{}, plan: &wire.NodePlan{Cluster: "rack", NodeName: "etcd-1", Address: "127.0.0.1"}}
	for _, pod := range []string{"etcd", "kube-apiserver"} {
		file := path.Join(manifestsDir, pod+".yaml")
		r.plan.Files = append(r.plan.Files, wire.NodeFile{Path: file, Content: []byte(pod)})
		r.write(file, pod)
	}
	r.write(manifestsDir+"/another.yaml", "of a person")
	r.write(memberDir+"/snap/db", "old")
	return r
}

func (r *restoreRig) write(file, content string) {
	r.t.Helper()
	if err := r.disk.Write(file, []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// has is the content of a file, or "".
func (r *restoreRig) has(file string) string {
	b, _ := r.disk.Read(file)
	return string(b)
}

// try carries out a restore once, as an agent does that has just started.
func (r *restoreRig) try(restore *wire.EtcdRestore) (string, error) {
	r.t.Helper()
	e := &Executor{Options: Options{Log: slog.New(slog.DiscardHandler), Server: r.server, Pace: UsualPace(), Now: time.Now}, disk: r.disk, track: newTrack(time.Now)}
	ctx := r.t.Context()
	p := e.newPass(ctx, ctx, ctx, &state{NodeAssignment: wire.NodeAssignment{Plan: r.plan, Restore: restore}})
	if restore == nil {
		p.restoreFirst()
		return "", nil
	}
	return p.carryOutRestore(restore)
}

func dataOf(archive []byte) *wire.Content {
	return &wire.Content{Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(archive)), Size: int64(len(archive))}
}

func TestARestoreFirstStopsEverything(t *testing.T) {
	r := newRestoreRig(t)
	etcd, err := os.Open(r.disk.At(memberDir + "/snap/db"))
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	if err := syscall.Flock(int(etcd.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if state, err := r.try(&wire.EtcdRestore{ID: "1", Stop: true}); !errors.Is(err, errStillRuns) {
		t.Errorf("etcd runs: %q, %v", state, err)
	}
	if r.has(manifestsDir+"/etcd.yaml") != "" || r.has(manifestsDir+"/kube-apiserver.yaml") != "" || r.has(manifestsDir+"/another.yaml") == "" {
		t.Error("not the plan's static pods have gone")
	}
	if _, err := r.try(&wire.EtcdRestore{ID: "1", Data: dataOf(nil)}); !errors.Is(err, errStillRuns) || r.server.fetched != 0 {
		t.Errorf("data is fetched while etcd runs: %v", err)
	}
	if err := syscall.Flock(int(etcd.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if state, err := r.try(&wire.EtcdRestore{ID: "1", Stop: true}); state != wire.RestoreStopped || err != nil || r.has(memberDir+"/snap/db") != "old" {
		t.Errorf("etcd has ended: %q, %v", state, err)
	}
}

func TestAMemberTakesItsDataOnce(t *testing.T) {
	r := newRestoreRig(t)
	good := memberArchive(t, "snap/db", "new", "wal/0.wal", "log")
	restore := &wire.EtcdRestore{ID: "1", Data: dataOf(good)}
	for what, try := range map[string]struct {
		archive []byte
		err     error
		data    *wire.Content
		want    string
	}{
		"another archive":      {memberArchive(t, "snap/db", "other"), nil, restore.Data, "not what was announced"},
		"an archive cut short": {good[:len(good)/2], nil, restore.Data, "unexpected EOF"},
		"a server that fails":  {good[:700], errors.New("connection reset"), restore.Data, "connection reset"},
		"a way out":            {memberArchive(t, "../../../etc/passwd", "x"), nil, dataOf(memberArchive(t, "../../../etc/passwd", "x")), "has no business"},
	} {
		r.server.archive, r.server.err = try.archive, try.err
		if _, err := r.try(&wire.EtcdRestore{ID: "1", Data: try.data}); err == nil || !strings.Contains(err.Error(), try.want) {
			t.Errorf("%s: %v", what, err)
		}
		if left, _ := filepath.Glob(r.disk.At(memberDir) + ".*"); r.has(memberDir+"/snap/db") != "old" || len(left) > 0 {
			t.Errorf("%s: the member has %q, and beside it is %v", what, r.has(memberDir+"/snap/db"), left)
		}
	}
	r.server.archive, r.server.err, r.server.fetched = good, nil, 0
	for range 2 {
		if state, err := r.try(restore); state != wire.RestoreDone || err != nil {
			t.Fatalf("%q, %v", state, err)
		}
		if r.has(memberDir+"/snap/db") != "new" || r.has(memberDir+"/wal/0.wal") != "log" || r.has(memberDir+asideSuffix+"1/snap/db") != "old" {
			t.Error("the data is not in place, or what was there before not beside it")
		}
	}
	if r.server.fetched != 1 {
		t.Errorf("fetched %d times", r.server.fetched)
	}
	// A power cut before it is written down that the member has its data: no etcd has run on it.
	if err := os.Remove(r.disk.At(restoredFile)); err != nil {
		t.Fatal(err)
	}
	r.write(memberDir+"/snap/db", "half")
	if state, err := r.try(restore); state != wire.RestoreDone || err != nil || r.has(memberDir+"/snap/db") != "new" || r.has(memberDir+asideSuffix+"1/snap/db") != "old" {
		t.Errorf("after a power cut: %q, %v", state, err)
	}
	// A fresh disk.
	if err := os.RemoveAll(r.disk.At(etcdDir)); err != nil {
		t.Fatal(err)
	}
	if state, err := r.try(&wire.EtcdRestore{ID: "2", Data: dataOf(good)}); state != wire.RestoreDone || err != nil || r.has(memberDir+"/snap/db") != "new" {
		t.Errorf("on a fresh disk: %q, %v", state, err)
	}
	if _, err := r.try(nil); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(r.disk.At(memberDir) + ".*"); len(left) > 0 || r.has(memberDir+"/snap/db") != "new" {
		t.Errorf("once it may go, there is left %v", left)
	}
}
