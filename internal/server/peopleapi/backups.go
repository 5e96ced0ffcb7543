package peopleapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/backup"
	"coldrack.dev/internal/server/backups"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// Backups of the etcd of clusters. It is *backups.Service.
type Backups interface {
	ListAll(ctx context.Context, c *v1alpha1.Cluster) (all []backups.Located, problem, err error)
	Take(ctx context.Context, reader client.Reader, c *v1alpha1.Cluster, why string, tell func(backups.Progress)) (backup.Manifest, error)
	Export(ctx context.Context, c *v1alpha1.Cluster, id string, w io.Writer) error
	Import(ctx context.Context, c *v1alpha1.Cluster, from io.Reader) (backup.Manifest, error)
	// The same of the server's own store.
	ListOwn(ctx context.Context) (all []backups.Located, problem, err error)
	TakeOwn(ctx context.Context, why string, tell func(backups.Progress)) (backup.Manifest, error)
	ExportOwn(ctx context.Context, id string, w io.Writer) error
}

// ownBackups answers at and below the path of the server's own backups: GET lists them, POST takes one, and POST to ID/export writes one out.
func (a *ClusterAPI) ownBackups(w http.ResponseWriter, r *http.Request, b *Backend) (any, error) {
	rest := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, peoplewire.PathServerBackups), "/")
	id, export := strings.CutSuffix(rest, "/export")
	if export && controlplane.PersonOf(r).Role != controlplane.GroupAdmin {
		return nil, refuse(http.StatusForbidden, "exporting backups needs role admin")
	}
	switch {
	case rest == "" && r.Method == http.MethodGet:
		list, problem, err := b.Backups.ListOwn(r.Context())
		return answerBackups(w, list, problem, err)
	case rest == "" && r.Method == http.MethodPost:
		return nil, a.takeBackup(w, "the server's own store", func(tell func(backups.Progress)) (backup.Manifest, error) {
			return b.Backups.TakeOwn(r.Context(), "asked for by "+controlplane.PersonOf(r).Name, tell)
		})
	case export && r.Method == http.MethodPost:
		return nil, a.exportBackup(w, "the server's own store", id, func(w io.Writer) error { return b.Backups.ExportOwn(r.Context(), id, w) })
	}
	return nil, refuse(http.StatusNotFound, "there is no %s %s", r.Method, r.URL.Path)
}

// backups answers below CLUSTER/backups: GET lists them, POST takes one, PUT reads an exported one in, and POST to ID/export writes one out.
func (a *ClusterAPI) backups(w http.ResponseWriter, r *http.Request, b *Backend) (any, error) {
	name, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, peoplewire.PathClusters), "/backups")
	if b.Backups == nil {
		return nil, refuse(http.StatusNotFound, "this server takes no backups")
	}
	cluster, err := b.getCluster(r.Context(), name)
	if err != nil {
		return nil, err
	}
	id, export := strings.CutSuffix(strings.TrimPrefix(rest, "/"), "/export")
	// An exported backup shows all of the cluster but its Secrets, and who may bring one in decides what a restore makes of the cluster.
	if (export || r.Method == http.MethodPut) && controlplane.PersonOf(r).Role != controlplane.GroupAdmin {
		return nil, refuse(http.StatusForbidden, "exporting and importing backups needs role admin")
	}
	switch {
	case rest == "" && r.Method == http.MethodGet:
		list, problem, err := b.Backups.ListAll(r.Context(), cluster)
		return answerBackups(w, list, problem, err)
	case rest == "" && r.Method == http.MethodPost:
		return nil, a.takeBackup(w, "cluster "+cluster.Name, func(tell func(backups.Progress)) (backup.Manifest, error) {
			return b.Backups.Take(r.Context(), b.Client, cluster, "asked for by "+controlplane.PersonOf(r).Name, tell)
		})
	case rest == "" && r.Method == http.MethodPut:
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // it takes as long as its link needs
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
		m, err := b.Backups.Import(r.Context(), cluster, r.Body)
		if err != nil {
			return nil, refuse(http.StatusConflict, "%v", err)
		}
		return wireBackup(m), nil
	case export && r.Method == http.MethodPost:
		return nil, a.exportBackup(w, "cluster "+cluster.Name, id, func(w io.Writer) error { return b.Backups.Export(r.Context(), cluster, id, w) })
	}
	return nil, refuse(http.StatusNotFound, "there is no %s %s", r.Method, r.URL.Path)
}

func answerBackups(w http.ResponseWriter, list []backups.Located, problem, err error) (any, error) {
	if err != nil {
		return nil, refuse(http.StatusConflict, "%v", err)
	}
	if problem != nil {
		w.Header().Set(peoplewire.HeaderProblem, oneLine(problem.Error()))
	}
	all := []peoplewire.Backup{}
	for _, found := range list {
		one := wireBackup(found.Manifest)
		if found.Here {
			one.Where = append(one.Where, peoplewire.BackupHere)
		}
		if found.There {
			one.Where = append(one.Where, peoplewire.BackupCopy)
		}
		all = append(all, one)
	}
	return all, nil
}

// oneLine is a text as a header may hold it.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, text)
}

func wireBackup(m backup.Manifest) peoplewire.Backup {
	return peoplewire.Backup{ID: m.ID, Cluster: m.Cluster, UID: m.UID, TakenAt: m.TakenAt, Reason: m.Reason, Member: m.Member, Etcd: m.Etcd, Kubernetes: m.Kubernetes, Coldrack: m.Coldrack,
		Keys: m.Keys, Revision: m.Revision, Size: m.Size, Digest: m.Digest}
}

// tellEvery is how often somebody hears of bytes that come.
const tellEvery = 500 * time.Millisecond

// takeBackup answers with a line for each step, and now and then for the bytes that have come.
func (a *ClusterAPI) takeBackup(w http.ResponseWriter, of string, take func(tell func(backups.Progress)) (backup.Manifest, error)) error {
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Time{})
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(w)
	say := func(line peoplewire.BackupLine) {
		_ = lines.Encode(line) // who hangs up ends the request's context, and with it the backup
		_ = control.Flush()
	}
	var last time.Time
	m, err := take(func(p backups.Progress) {
		if now := time.Now(); p.Step != "copy" || now.Sub(last) >= tellEvery {
			last = now
			say(peoplewire.BackupLine{Step: p.Step, Done: p.Done, Total: p.Total})
		}
	})
	if err != nil {
		a.log.Warn("backup failed", "of", of, "err", err)
		say(peoplewire.BackupLine{Error: err.Error()})
		return nil
	}
	done := wireBackup(m)
	say(peoplewire.BackupLine{Backup: &done})
	return nil
}

// exportBackup answers with the archive. An error after its beginning can only cut it short, which an import notices.
func (a *ClusterAPI) exportBackup(w http.ResponseWriter, of, id string, export func(io.Writer) error) error {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	begun := &begun{w: w}
	err := export(begun)
	switch {
	case errors.Is(err, backup.ErrNone):
		return refuse(http.StatusNotFound, "%s: %v", of, err)
	case err != nil && begun.is:
		a.log.Error("export of a backup ended early", "of", of, "backup", id, "err", err)
		panic(http.ErrAbortHandler)
	case err != nil:
		return fmt.Errorf("export backup %s of %s: %w", id, of, err)
	}
	a.log.Info("backup exported", "of", of, "backup", id)
	return nil
}

// begun notes whether something was written.
type begun struct {
	w  http.ResponseWriter
	is bool
}

// Write implements io.Writer.
func (b *begun) Write(p []byte) (int, error) {
	if !b.is {
		b.w.Header().Set("Content-Type", "application/x-tar")
	}
	b.is = true
	return b.w.Write(p)
}
