package peopleapi

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

const (
	etcdClientPort = 2379
	// verifyTTL is how long the server's own certificates for a verification last.
	verifyTTL = time.Hour
)

// verification answers POST /coldrack/v1/clusters/CLUSTER/verify[?pods=no] with a JSON line for each check as it
// comes in.
func (a *ClusterAPI) verification(w http.ResponseWriter, r *http.Request, b *Backend) (any, error) {
	name, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, peoplewire.PathClusters), "/")
	if rest != "verify" || name == "" {
		return nil, refuse(http.StatusNotFound, "there is no %s", r.URL.Path)
	}
	cluster, err := b.getCluster(r.Context(), name)
	if err != nil {
		return nil, err
	}
	checks, err := b.verify(r.Context(), cluster, r.URL.Query().Get("pods") != "no")
	if err != nil {
		return nil, refuse(http.StatusConflict, "cluster %s cannot be verified: %v", name, err)
	}
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Time{}) // it takes as long as pods need
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(w)
	say := func(line peoplewire.CheckLine) bool {
		return lines.Encode(line) == nil && control.Flush() == nil
	}
	for check := range checks {
		if !say(peoplewire.CheckLine{Check: (*peoplewire.Check)(&check)}) {
			return nil, nil // nobody listens any more; leaving the loop cleans up
		}
	}
	if err := context.Cause(r.Context()); err != nil {
		say(peoplewire.CheckLine{Error: "the verification ended early: " + err.Error()})
		return nil, nil
	}
	say(peoplewire.CheckLine{Done: true})
	return nil, nil
}

// verify looks at a cluster by way of its nodes, with probe pods or without. It says why when that cannot be done.
func (b *Backend) verify(ctx context.Context, cluster *v1alpha1.Cluster, pods bool) (iter.Seq[kubeapi.Check], error) {
	view, ok, _ := b.Clusters.View(cluster.Name)
	if !ok || view.Plan == nil {
		return nil, errors.New(orText(view.Problem, cluster.Status.Message))
	}
	wanted, err := kubeapi.WantedBy(view.Cluster, view.Plan, view.Machines)
	if err != nil {
		return nil, err
	}
	expiry, err := certificateExpiry(ctx, b.Client, cluster.Name)
	if err != nil {
		return nil, err
	}
	spec := cluster.DeepCopy()
	spec.Default()
	options := kubeapi.VerifyOptions{
		Target:          b.target(cluster.Name, view),
		Nodes:           wanted.Nodes,
		EtcdCA:          b.Clusters.EtcdAuthority(cluster.Name),
		EtcdCertificate: func() (*tls.Certificate, error) { return b.Clusters.EtcdClient(cluster.Name, verifyTTL) },
		DNSDomain:       spec.Spec.Network.DNSDomain,
		PodSecurity:     spec.Spec.Security.PodSecurity,
		TokenDiscovery:  spec.Spec.Security.TokenDiscovery,
		Certificates:    expiry,
		CertificateLife: 365 * 24 * time.Hour,
		Authorities:     map[string]time.Time{},
		NoPods:          !pods,
		ProxyNone:       spec.Spec.Network.Proxy == v1alpha1.ProxyNone,
	}
	if ttl := spec.Spec.PKI.CertificateTTL; ttl != nil {
		options.CertificateLife = ttl.Duration
	}
	for authority, end := range b.Clusters.AuthorityEnds()[cluster.Name] {
		options.Authorities[string(authority)] = end
	}
	for _, text := range spec.Spec.Network.ServiceCIDRs {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("cluster %s: service network %q: %w", cluster.Name, text, err)
		}
		options.ServiceNetworks = append(options.ServiceNetworks, network)
	}
	for _, n := range view.Plan.Nodes {
		if slices.Contains(n.Roles, v1alpha1.RoleEtcd) {
			options.EtcdMembers = append(options.EtcdMembers, netip.AddrPortFrom(n.Address, etcdClientPort))
		}
	}
	slices.SortFunc(options.EtcdMembers, netip.AddrPort.Compare)
	checks := kubeapi.Verify(ctx, options)
	return func(yield func(kubeapi.Check) bool) {
		for check := range checks {
			if !yield(check) {
				return
			}
		}
		for _, a := range cluster.Status.Addons {
			if !slices.Contains(v1alpha1.OwnAddons(), a.Name) && !yield(kubeapi.Check{Name: "add-on", Target: a.Name, OK: a.Ready, Detail: a.Message}) {
				return
			}
		}
	}, nil
}

// target is a cluster's API as this server reaches it.
func (b *Backend) target(cluster string, view members.View) kubeapi.Target {
	return kubeapi.Target{
		Cluster: cluster, Servers: view.APIServers, CA: view.Authority, Dial: b.DialNode,
		Certificate: func() (*tls.Certificate, error) { return b.ServerCertificate(cluster) },
	}
}

// certificateExpiry is when the first certificate of each node expires, as the nodes report it.
func certificateExpiry(ctx context.Context, reader client.Reader, cluster string) (map[string]map[string]time.Time, error) {
	var machines v1alpha1.MachineList
	if err := reader.List(ctx, &machines); err != nil {
		return nil, fmt.Errorf("read machines: %w", err)
	}
	expiry := map[string]map[string]time.Time{}
	for _, m := range machines.Items {
		if k := m.Status.Kubernetes; k != nil && k.Cluster == cluster && k.CertificatesExpireAt != nil {
			expiry[cmp.Or(k.Node, m.Name)] = map[string]time.Time{"first to expire": k.CertificatesExpireAt.Time}
		}
	}
	return expiry, nil
}
