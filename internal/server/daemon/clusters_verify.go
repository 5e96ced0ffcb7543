package daemon

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/server/controllers"
)

const (
	etcdClientPort = 2379
	// verifyTTL is how long the server's own certificates for a verification last.
	verifyTTL = time.Hour
)

// verifier looks at clusters by way of their nodes.
func (s *server) verifier(reader client.Reader) verifyFunc {
	return func(ctx context.Context, cluster *v1alpha1.Cluster, pods bool) (iter.Seq[kubeapi.Check], error) {
		view, ok, _ := s.clusters.View(cluster.Name)
		if !ok || view.Plan == nil {
			return nil, errors.New(orText(view.Problem, cluster.Status.Message))
		}
		wanted, err := kubeapi.WantedBy(view.Cluster, view.Plan, view.Machines)
		if err != nil {
			return nil, err
		}
		expiry, err := certificateExpiry(ctx, reader, cluster.Name)
		if err != nil {
			return nil, err
		}
		spec := cluster.DeepCopy()
		spec.Default()
		options := kubeapi.VerifyOptions{
			Target: kubeapi.Target{
				Cluster: cluster.Name, Servers: view.APIServers, CA: view.Authority, Dial: s.dialNode,
				Certificate: func() (*tls.Certificate, error) { return controllers.ServerCertificate(s.clusters, cluster.Name) },
			},
			Nodes:           wanted.Nodes,
			EtcdCA:          s.clusters.EtcdAuthority(cluster.Name),
			EtcdCertificate: func() (*tls.Certificate, error) { return s.clusters.EtcdClient(cluster.Name, verifyTTL) },
			DNSDomain:       spec.Spec.Network.DNSDomain,
			PodSecurity:     spec.Spec.Security.PodSecurity,
			TokenDiscovery:  spec.Spec.Security.TokenDiscovery,
			Certificates:    expiry,
			NoPods:          !pods,
		}
		for _, n := range view.Plan.Nodes {
			if slices.Contains(n.Roles, v1alpha1.RoleEtcd) {
				options.EtcdMembers = append(options.EtcdMembers, netip.AddrPortFrom(n.Address, etcdClientPort))
			}
		}
		slices.SortFunc(options.EtcdMembers, netip.AddrPort.Compare)
		return kubeapi.Verify(ctx, options), nil
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
