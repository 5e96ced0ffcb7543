package daemon

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/server/controlplane"
)

// Paths of people's requests about clusters, below people's API and under its authentication.
const (
	planPath         = "/coldrack/v1/plan"
	certificatesPath = "/coldrack/v1/certificates/" // CLUSTER
	clustersPath     = "/coldrack/v1/clusters/"     // CLUSTER/verify
)

// maxAsk bounds what a person sends, in bytes.
const maxAsk = 16 << 20

// clusterFacts is what a clusterDesk needs to know. It is *members.Set.
type clusterFacts interface {
	View(name string) (members.View, bool, <-chan struct{})
	Preview(cluster *v1alpha1.Cluster, groups []v1alpha1.MachineGroup, now members.Situation) (members.Preview, error)
	ClientCertificate(clusterName, user string, groups []string, ttl time.Duration, public crypto.PublicKey) (certPEM []byte, leaf *x509.Certificate, err error)
}

// contentNames is what the content store says of Kubernetes. It is *bundle.Store.
type contentNames interface {
	KubernetesVersions() []string
	Programs(kubernetes string) ([]bundle.StoredProgram, error)
	Container(reference string) (bundle.Descriptor, bool)
}

// deskTools are what a clusterDesk works with once the server has started.
type deskTools struct {
	clusters clusterFacts
	client   client.Client // that sees the store, not a cache
	content  contentNames
	verify   verifyFunc
}

// verifyFunc looks at a cluster, with probe pods or without. It says why when that cannot be done.
type verifyFunc func(ctx context.Context, cluster *v1alpha1.Cluster, pods bool) (iter.Seq[kubeapi.Check], error)

// clusterDesk answers people's requests about clusters that are no objects: plans, certificates, verifications.
type clusterDesk struct {
	log   *slog.Logger
	tools atomic.Pointer[deskTools]
}

func newClusterDesk(log *slog.Logger) *clusterDesk {
	return &clusterDesk{log: log.With("part", "clusters")}
}

// open lets the desk answer; until then it asks for patience.
func (d *clusterDesk) open(tools deskTools) { d.tools.Store(&tools) }

// handlers of the desk, by path.
func (d *clusterDesk) handlers() map[string]http.Handler {
	return map[string]http.Handler{
		planPath:         d.post(d.plan),
		certificatesPath: d.post(d.certificate),
		clustersPath:     d.post(d.verification),
	}
}

// askError is an answer that is no success.
type askError struct {
	status int
	text   string
}

func (e *askError) Error() string { return e.text }

func refuseAsk(status int, format string, args ...any) error {
	return &askError{status, fmt.Sprintf(format, args...)}
}

// post makes a handler of a function that answers a POST with JSON, or has answered already and returns nil.
func (d *clusterDesk) post(answer func(w http.ResponseWriter, r *http.Request, tools *deskTools) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "only POST", http.StatusMethodNotAllowed)
			return
		}
		tools := d.tools.Load()
		if tools == nil {
			http.Error(w, "the server is starting; try again in a moment", http.StatusServiceUnavailable)
			return
		}
		value, err := answer(w, r, tools)
		var ask *askError
		switch {
		case errors.As(err, &ask):
			http.Error(w, ask.text, ask.status)
		case err != nil:
			d.log.Error("request on the people's API failed", "path", r.URL.Path, "err", err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
		case value != nil:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(value)
		}
	})
}

func readAsk(r *http.Request, into any) error {
	decoder := json.NewDecoder(io.LimitReader(r.Body, maxAsk))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return refuseAsk(http.StatusBadRequest, "the request cannot be read: %v", err)
	}
	return nil
}

// getCluster reads a cluster; one that is not there is the asker's mistake.
func (t *deskTools) getCluster(ctx context.Context, name string) (*v1alpha1.Cluster, error) {
	cluster := &v1alpha1.Cluster{}
	err := t.client.Get(ctx, client.ObjectKey{Name: name}, cluster)
	if apierrors.IsNotFound(err) {
		return nil, refuseAsk(http.StatusNotFound, "there is no cluster %q", name)
	}
	return cluster, err
}

// CertificateAsk asks for a client certificate of a cluster. The key stays with the person.
type CertificateAsk struct {
	// CSR is a PKCS #10 request, PEM. Only its key is used.
	CSR string `json:"csr"`
	// User that the cluster will see; empty: the person's own name.
	User string `json:"user,omitempty"`
	// Groups that the cluster will see; empty: what belongs to the person's role.
	Groups []string `json:"groups,omitempty"`
	// TTL in seconds; 0: the usual.
	TTL int64 `json:"ttl,omitempty"`
	// Admin asks for the cluster's administrators' group, BreakGlass for the group that RBAC does not apply to,
	// which needs a Reason.
	Admin      bool   `json:"admin,omitempty"`
	BreakGlass bool   `json:"breakGlass,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

// CertificateAnswer is the certificate with what a kubeconfig needs beside it.
type CertificateAnswer struct {
	Cluster string `json:"cluster"`
	// Server is the URL of the cluster's API.
	Server string `json:"server"`
	// Authority is the PEM certificate that the API is verified with.
	Authority   string    `json:"authority"`
	Certificate string    `json:"certificate"`
	User        string    `json:"user"`
	Groups      []string  `json:"groups"`
	ExpiresAt   time.Time `json:"expiresAt"`
}

const (
	usualTTL      = 8 * time.Hour
	breakGlassTTL = time.Hour
)

// longestTTL is how long a certificate may be valid. Nobody can withdraw one.
func longestTTL(role string, breakGlass bool) time.Duration {
	switch {
	case breakGlass:
		return breakGlassTTL
	case role == GroupAdmin:
		return 365 * 24 * time.Hour
	}
	return 24 * time.Hour
}

// decide fills in what the person left open, and refuses what their role does not allow.
func (a *CertificateAsk) decide(p controlplane.Person) (ttl time.Duration, err error) {
	admin := p.Role == GroupAdmin
	role := strings.TrimPrefix(p.Role, "coldrack:")
	refuse := func(format string, args ...any) error {
		return refuseAsk(http.StatusForbidden, "%s", fmt.Sprintf(format, args...)+"; you have role "+role)
	}
	if a.User == "" {
		a.User = p.Name
	}
	switch {
	case !admin && (a.Admin || a.BreakGlass):
		return 0, refuse("this needs role admin")
	case !admin && a.User != p.Name:
		return 0, refuse("a certificate for %q needs role admin: yours is for %q", a.User, p.Name)
	case a.Admin && a.BreakGlass, len(a.Groups) > 0 && (a.Admin || a.BreakGlass):
		return 0, refuseAsk(http.StatusBadRequest, "admin, break-glass and groups of one's own exclude each other")
	case a.BreakGlass && strings.TrimSpace(a.Reason) == "":
		return 0, refuseAsk(http.StatusBadRequest, "break-glass needs a reason, for the audit log")
	case strings.HasPrefix(a.User, "system:") || strings.HasPrefix(a.User, "kubernetes-"):
		return 0, refuseAsk(http.StatusBadRequest, "user %q: names that begin with system: or kubernetes- belong to the cluster's own parts", a.User)
	case a.BreakGlass:
		a.Groups = []string{kube.GroupBreakGlass}
	case a.Admin || admin && len(a.Groups) == 0:
		a.Groups = []string{kube.GroupAdmin}
	case len(a.Groups) == 0 && p.Role == GroupOperator:
		a.Groups = []string{kube.GroupOperator}
	case len(a.Groups) == 0:
		a.Groups = []string{kube.GroupViewer}
	}
	for _, g := range a.Groups {
		switch {
		case a.BreakGlass:
		case strings.HasPrefix(g, "system:"):
			return 0, refuseAsk(http.StatusBadRequest, "group %q: groups that begin with system: are the cluster's own; --break-glass gives %s", g, kube.GroupBreakGlass)
		case !admin && g != kube.GroupViewer && (g != kube.GroupOperator || p.Role != GroupOperator):
			return 0, refuse("group %q needs role admin", g)
		}
	}
	ttl = time.Duration(a.TTL) * time.Second
	longest := longestTTL(p.Role, a.BreakGlass)
	switch {
	case a.TTL == 0:
		ttl = min(usualTTL, longest)
	case ttl < time.Minute:
		return 0, refuseAsk(http.StatusBadRequest, "ttl %s: must be at least 1m", ttl)
	case ttl > longest:
		return 0, refuseAsk(http.StatusBadRequest, "ttl %s: may be at most %s here, because a certificate cannot be withdrawn", ttl, longest)
	}
	return ttl, nil
}

// certificate answers POST /coldrack/v1/certificates/CLUSTER.
func (d *clusterDesk) certificate(_ http.ResponseWriter, r *http.Request, tools *deskTools) (any, error) {
	var ask CertificateAsk
	if err := readAsk(r, &ask); err != nil {
		return nil, err
	}
	cluster, err := tools.getCluster(r.Context(), strings.TrimPrefix(r.URL.Path, certificatesPath))
	if err != nil {
		return nil, err
	}
	person := controlplane.PersonOf(r)
	ttl, err := ask.decide(person)
	if err != nil {
		return nil, err
	}
	public, err := publicKeyOf(ask.CSR)
	if err != nil {
		return nil, err
	}
	view, _, _ := tools.clusters.View(cluster.Name)
	if len(view.Authority) == 0 {
		return nil, refuseAsk(http.StatusConflict, "cluster %s has no keys yet: %s", cluster.Name, orText(view.Problem, cluster.Status.Message))
	}
	certificate, leaf, err := tools.clusters.ClientCertificate(cluster.Name, ask.User, ask.Groups, ttl, public)
	if errors.Is(err, members.ErrRefused) {
		return nil, refuseAsk(http.StatusConflict, "%v", err)
	}
	if err != nil {
		return nil, err
	}
	d.record(r, person, cluster.Name, &ask, ttl, leaf)
	server := cluster.Status.Endpoint
	if view.Plan != nil {
		server = view.Plan.Endpoint
	}
	return CertificateAnswer{
		Cluster: cluster.Name, Server: server, Authority: string(view.Authority), Certificate: string(certificate),
		User: ask.User, Groups: ask.Groups, ExpiresAt: leaf.NotAfter,
	}, nil
}

// record leaves a trace of a certificate in the audit log and in the server's.
func (d *clusterDesk) record(r *http.Request, person controlplane.Person, cluster string, ask *CertificateAsk, ttl time.Duration, leaf *x509.Certificate) {
	for key, value := range map[string]string{
		"cluster": cluster, "user": ask.User, "groups": strings.Join(ask.Groups, ","), "ttl": ttl.String(),
		"serial": leaf.SerialNumber.Text(16), "reason": ask.Reason,
	} {
		if value != "" {
			controlplane.Remark(r, "certificate.coldrack.dev/"+key, value)
		}
	}
	attributes := []any{"cluster", cluster, "by", person.Name, "user", ask.User, "groups", ask.Groups, "ttl", ttl, "serial", leaf.SerialNumber.Text(16)}
	if ask.BreakGlass {
		controlplane.Remark(r, "certificate.coldrack.dev/break-glass", "true")
		d.log.Warn("BREAK GLASS: issued a certificate that bypasses the cluster's authorization", append(attributes, "reason", ask.Reason)...)
		return
	}
	d.log.Info("cluster client certificate issued", attributes...)
}

func publicKeyOf(csr string) (crypto.PublicKey, error) {
	block, _ := pem.Decode([]byte(csr))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, refuseAsk(http.StatusBadRequest, "csr: must be a PEM block of type CERTIFICATE REQUEST")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, refuseAsk(http.StatusBadRequest, "csr: %v", err)
	}
	// Whoever asks must have the key.
	if err := request.CheckSignature(); err != nil {
		return nil, refuseAsk(http.StatusBadRequest, "csr: %v", err)
	}
	return request.PublicKey, nil
}

// CheckLine is one line of the answer to a verification. The last one has Done or Error.
type CheckLine struct {
	Check *kubeapi.Check `json:"check,omitempty"`
	Done  bool           `json:"done,omitempty"`
	Error string         `json:"error,omitempty"`
}

// verification answers POST /coldrack/v1/clusters/CLUSTER/verify[?pods=no] with a JSON line for each check as it
// comes in.
func (d *clusterDesk) verification(w http.ResponseWriter, r *http.Request, tools *deskTools) (any, error) {
	name, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, clustersPath), "/")
	if rest != "verify" || name == "" {
		return nil, refuseAsk(http.StatusNotFound, "there is no %s", r.URL.Path)
	}
	cluster, err := tools.getCluster(r.Context(), name)
	if err != nil {
		return nil, err
	}
	checks, err := tools.verify(r.Context(), cluster, r.URL.Query().Get("pods") != "no")
	if err != nil {
		return nil, refuseAsk(http.StatusConflict, "cluster %s cannot be verified: %v", name, err)
	}
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Time{}) // it takes as long as pods need
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(w)
	say := func(line CheckLine) bool {
		return lines.Encode(line) == nil && control.Flush() == nil
	}
	for check := range checks {
		if !say(CheckLine{Check: &check}) {
			return nil, nil // nobody listens any more; leaving the loop cleans up
		}
	}
	if err := context.Cause(r.Context()); err != nil {
		say(CheckLine{Error: "the verification ended early: " + err.Error()})
		return nil, nil
	}
	say(CheckLine{Done: true})
	return nil, nil
}

func orText(texts ...string) string {
	if i := slices.IndexFunc(texts, func(t string) bool { return t != "" }); i >= 0 {
		return texts[i]
	}
	return "its controller has not looked at it yet"
}
