package peopleapi

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

const (
	defaultTTL    = 8 * time.Hour
	breakGlassTTL = time.Hour
)

// longestTTL is how long a certificate may be valid. Nobody can withdraw one.
func longestTTL(role string, breakGlass bool) time.Duration {
	switch {
	case breakGlass:
		return breakGlassTTL
	case role == controlplane.GroupAdmin:
		return 365 * 24 * time.Hour
	}
	return 24 * time.Hour
}

// decide fills in what the person left open, and refuses what their role does not allow.
func decide(a *peoplewire.CertificateRequest, p controlplane.Person) (ttl time.Duration, err error) {
	admin := p.Role == controlplane.GroupAdmin
	role := strings.TrimPrefix(p.Role, "coldrack:")
	forbid := func(format string, args ...any) error {
		return refuse(http.StatusForbidden, "%s", fmt.Sprintf(format, args...)+"; you have role "+role)
	}
	if a.User == "" {
		a.User = p.Name
	}
	switch {
	case !admin && (a.Admin || a.BreakGlass):
		return 0, forbid("this needs role admin")
	case !admin && a.User != p.Name:
		return 0, forbid("a certificate for %q needs role admin: yours is for %q", a.User, p.Name)
	case a.Admin && a.BreakGlass, len(a.Groups) > 0 && (a.Admin || a.BreakGlass):
		return 0, refuse(http.StatusBadRequest, "admin, break-glass and groups of one's own exclude each other")
	case a.BreakGlass && strings.TrimSpace(a.Reason) == "":
		return 0, refuse(http.StatusBadRequest, "break-glass needs a reason, for the audit log")
	case strings.HasPrefix(a.User, "system:") || strings.HasPrefix(a.User, "kubernetes-"):
		return 0, refuse(http.StatusBadRequest, "user %q: names that begin with system: or kubernetes- belong to the cluster's own parts", a.User)
	case a.BreakGlass:
		a.Groups = []string{kube.GroupBreakGlass}
	case a.Admin || admin && len(a.Groups) == 0:
		a.Groups = []string{kube.GroupAdmin}
	case len(a.Groups) == 0 && p.Role == controlplane.GroupOperator:
		a.Groups = []string{kube.GroupOperator}
	case len(a.Groups) == 0:
		a.Groups = []string{kube.GroupViewer}
	}
	for _, g := range a.Groups {
		switch {
		case a.BreakGlass:
		case strings.HasPrefix(g, "system:"):
			return 0, refuse(http.StatusBadRequest, "group %q: groups that begin with system: are the cluster's own; --break-glass gives %s", g, kube.GroupBreakGlass)
		case !admin && g != kube.GroupViewer && (g != kube.GroupOperator || p.Role != controlplane.GroupOperator):
			return 0, forbid("group %q needs role admin", g)
		}
	}
	ttl = time.Duration(a.TTL) * time.Second
	longest := longestTTL(p.Role, a.BreakGlass)
	switch {
	case a.TTL == 0:
		ttl = min(defaultTTL, longest)
	case ttl < time.Minute:
		return 0, refuse(http.StatusBadRequest, "ttl %s: must be at least 1m", ttl)
	case ttl > longest:
		return 0, refuse(http.StatusBadRequest, "ttl %s: may be at most %s here, because a certificate cannot be withdrawn", ttl, longest)
	}
	return ttl, nil
}

// certificate answers POST /coldrack/v1/certificates/CLUSTER.
func (a *ClusterAPI) certificate(_ http.ResponseWriter, r *http.Request, b *Backend) (any, error) {
	var request peoplewire.CertificateRequest
	if err := readRequest(r, &request); err != nil {
		return nil, err
	}
	cluster, err := b.getCluster(r.Context(), strings.TrimPrefix(r.URL.Path, peoplewire.PathCertificates))
	if err != nil {
		return nil, err
	}
	person := controlplane.PersonOf(r)
	ttl, err := decide(&request, person)
	if err != nil {
		return nil, err
	}
	public, err := publicKeyOf(request.CSR)
	if err != nil {
		return nil, err
	}
	view, _, _ := b.Clusters.View(cluster.Name)
	if len(view.Authority) == 0 {
		return nil, refuse(http.StatusConflict, "cluster %s has no keys yet: %s", cluster.Name, orText(view.Problem, cluster.Status.Message))
	}
	certificate, leaf, err := b.Clusters.ClientCertificate(cluster.Name, request.User, request.Groups, ttl, public)
	if errors.Is(err, members.ErrRefused) {
		return nil, refuse(http.StatusConflict, "%v", err)
	}
	if err != nil {
		return nil, err
	}
	a.record(r, person, cluster.Name, &request, ttl, leaf)
	server := cluster.Status.Endpoint
	if view.Plan != nil {
		server = view.Plan.Endpoint
	}
	return peoplewire.CertificateResponse{
		Cluster: cluster.Name, Server: server, Authority: string(view.Authority), Certificate: string(certificate),
		User: request.User, Groups: request.Groups, ExpiresAt: leaf.NotAfter,
	}, nil
}

// record leaves a trace of a certificate in the audit log and in the server's.
func (a *ClusterAPI) record(r *http.Request, person controlplane.Person, cluster string, request *peoplewire.CertificateRequest, ttl time.Duration, leaf *x509.Certificate) {
	for key, value := range map[string]string{
		"cluster": cluster, "user": request.User, "groups": strings.Join(request.Groups, ","), "ttl": ttl.String(),
		"serial": leaf.SerialNumber.Text(16), "reason": request.Reason,
	} {
		if value != "" {
			controlplane.Remark(r, "certificate.coldrack.dev/"+key, value)
		}
	}
	attributes := []any{"cluster", cluster, "by", person.Name, "user", request.User, "groups", request.Groups, "ttl", ttl, "serial", leaf.SerialNumber.Text(16)}
	if request.BreakGlass {
		controlplane.Remark(r, "certificate.coldrack.dev/break-glass", "true")
		a.log.Warn("BREAK GLASS: issued a certificate that bypasses the cluster's authorization", append(attributes, "reason", request.Reason)...)
		return
	}
	a.log.Info("cluster client certificate issued", attributes...)
}

func publicKeyOf(csr string) (crypto.PublicKey, error) {
	block, _ := pem.Decode([]byte(csr))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, refuse(http.StatusBadRequest, "csr: must be a PEM block of type CERTIFICATE REQUEST")
	}
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "csr: %v", err)
	}
	// Whoever asks must have the key.
	if err := parsed.CheckSignature(); err != nil {
		return nil, refuse(http.StatusBadRequest, "csr: %v", err)
	}
	return parsed.PublicKey, nil
}
