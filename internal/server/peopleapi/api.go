// Package peopleapi answers requests of people that are about no single object: plans, certificates and
// verifications of clusters, the list of machines and their logs. It is served beside the kinds, under their
// authentication; peoplewire has the contract.
package peopleapi

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// Bounds of what a person sends: bytes, and objects of a plan.
const (
	maxRequest = 16 << 20
	maxObjects = 2000
)

// Clusters is what the server knows of clusters. It is *members.Set.
type Clusters interface {
	View(name string) (members.View, bool, <-chan struct{})
	Preview(cluster *v1alpha1.Cluster, groups []v1alpha1.MachineGroup, now members.Situation) (members.Preview, error)
	ClientCertificate(clusterName, user string, groups []string, ttl time.Duration, public crypto.PublicKey) (certPEM []byte, leaf *x509.Certificate, err error)
	EtcdAuthority(clusterName string) []byte
	AuthorityEnds() map[string]map[kube.Authority]time.Time
	EtcdClient(clusterName string, ttl time.Duration) (*tls.Certificate, error)
	Lacking(cluster *v1alpha1.Cluster) []string
}

// Content is what the content store says of Kubernetes. It is *bundle.Store.
type Content interface {
	KubernetesVersions() []string
	Programs(kubernetes string) ([]bundle.StoredProgram, error)
	Container(reference string) (bundle.Descriptor, bool)
	Artifacts() []bundle.Artifact
}

// Backend is what the answers about clusters come from, once the server has started.
type Backend struct {
	Clusters Clusters
	Client   client.Client // reads the store, not a cache
	Content  Content
	// Loaded says whether an image of that name is here beside bundles; nil: none is.
	Loaded func(name string) bool
	// DialNode connects to a node.
	DialNode func(ctx context.Context, network, address string) (net.Conn, error)
	// ServerCertificate is the certificate by which this server is known to a cluster's API.
	ServerCertificate func(cluster string) (*tls.Certificate, error)
	Backups           Backups
}

// ClusterAPI answers people's requests about clusters that are no objects: plans, certificates, verifications.
type ClusterAPI struct {
	log     *slog.Logger
	backend atomic.Pointer[Backend]
}

// NewClusterAPI returns an API that answers 503 until Open is called.
func NewClusterAPI(log *slog.Logger) *ClusterAPI {
	return &ClusterAPI{log: log.With("part", "clusters")}
}

// Open begins to answer.
func (a *ClusterAPI) Open(backend Backend) { a.backend.Store(&backend) }

// Handlers by path.
func (a *ClusterAPI) Handlers() map[string]http.Handler {
	own := Limit{AtOnce: 4, Each: 2}.Around(a.answer(a.ownBackups, http.MethodGet, http.MethodPost))
	return map[string]http.Handler{
		// Each object of a plan costs a dry run, and the plan reads all machines.
		peoplewire.PathPlan:         Limit{AtOnce: 4, Each: 2}.Around(a.post(a.plan)),
		peoplewire.PathCertificates: Limit{AtOnce: 16, Each: 4, PerMinute: 60}.Around(a.post(a.certificate)),
		peoplewire.PathClusters:     Limit{AtOnce: 8, Each: 2}.Around(a.ofCluster()),

		peoplewire.PathServerBackups:       own,
		peoplewire.PathServerBackups + "/": own,
	}
}

// ofCluster answers what is below a cluster.
func (a *ClusterAPI) ofCluster() http.Handler {
	verify, diff, backups := a.post(a.verification), a.post(a.addonDiff), a.answer(a.backups, http.MethodGet, http.MethodPost, http.MethodPut)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, peoplewire.PathClusters), "/"); rest == "backups" || strings.HasPrefix(rest, "backups/") {
			backups.ServeHTTP(w, r)
			return
		}
		if strings.Contains(strings.TrimPrefix(r.URL.Path, peoplewire.PathClusters), "/addons/") {
			diff.ServeHTTP(w, r)
			return
		}
		verify.ServeHTTP(w, r) // runs pods
	})
}

// refusal is an answer that is no success.
type refusal struct {
	status int
	text   string
}

func (e *refusal) Error() string { return e.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// post is answer for POST alone.
func (a *ClusterAPI) post(answer func(w http.ResponseWriter, r *http.Request, b *Backend) (any, error)) http.Handler {
	return a.answer(answer, http.MethodPost)
}

// answer makes a handler of a function that answers with JSON, or has answered already and returns nil.
func (a *ClusterAPI) answer(answer func(w http.ResponseWriter, r *http.Request, b *Backend) (any, error), methods ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(methods, r.Method) {
			allowed := strings.Join(methods, ", ")
			w.Header().Set("Allow", allowed)
			http.Error(w, "only "+allowed, http.StatusMethodNotAllowed)
			return
		}
		backend := a.backend.Load()
		if backend == nil {
			http.Error(w, "the server is starting; try again in a moment", http.StatusServiceUnavailable)
			return
		}
		value, err := answer(w, r, backend)
		var refused *refusal
		switch {
		case errors.As(err, &refused):
			http.Error(w, refused.text, refused.status)
		case err != nil:
			a.log.Error("request on the people's API failed", "path", r.URL.Path, "err", err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
		case value != nil:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(value)
		}
	})
}

func readRequest(r *http.Request, into any) error {
	decoder := json.NewDecoder(io.LimitReader(r.Body, maxRequest))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return refuse(http.StatusBadRequest, "the request cannot be read: %v", err)
	}
	return nil
}

// getCluster reads a cluster; one that is not there is the caller's mistake.
func (b *Backend) getCluster(ctx context.Context, name string) (*v1alpha1.Cluster, error) {
	cluster := &v1alpha1.Cluster{}
	err := b.Client.Get(ctx, client.ObjectKey{Name: name}, cluster)
	if apierrors.IsNotFound(err) {
		return nil, refuse(http.StatusNotFound, "there is no cluster %q", name)
	}
	return cluster, err
}

func orText(texts ...string) string {
	if i := slices.IndexFunc(texts, func(t string) bool { return t != "" }); i >= 0 {
		return texts[i]
	}
	return "its controller has not looked at it yet"
}
