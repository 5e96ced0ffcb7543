package kubeapi

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
)

// WantedBy collects what a plan wants. machines are those that it was rendered from.
func WantedBy(cluster *v1alpha1.Cluster, plan *kube.Plan, machines []kube.Machine) (Wanted, error) {
	c := cluster.DeepCopy()
	c.Default()
	w := Wanted{Objects: plan.Objects, PodSecurity: c.Spec.Security.PodSecurity}
	addresses := map[string][]netip.Addr{}
	for _, m := range machines {
		addresses[m.Name] = m.Addresses
	}
	reserved := map[string]bool{}
	for name, n := range plan.Nodes {
		if len(addresses[name]) == 0 {
			return Wanted{}, fmt.Errorf("machine %s is in the plan of cluster %s but not among the machines that it was made from", name, c.Name)
		}
		w.Nodes = append(w.Nodes, Node{Name: n.NodeName, Version: n.Version, Addresses: addresses[name],
			Labels: n.Labels, Taints: n.Taints, PodCIDRs: n.PodCIDRs})
		for _, certificate := range n.Certificates {
			for _, san := range certificate.DNSNames {
				reserved[san] = true
			}
			for _, address := range certificate.IPAddresses {
				reserved[address.String()] = true
			}
		}
	}
	slices.SortFunc(w.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	w.Reserved = slices.Sorted(maps.Keys(reserved))
	for _, list := range [][]string{c.Spec.Network.PodCIDRs, c.Spec.Network.ServiceCIDRs} {
		for _, text := range list {
			network, err := netip.ParsePrefix(text)
			if err != nil {
				return Wanted{}, fmt.Errorf("cluster %s: network %q: %w", c.Name, text, err)
			}
			w.ReservedNetworks = append(w.ReservedNetworks, network)
		}
	}
	return w, nil
}
