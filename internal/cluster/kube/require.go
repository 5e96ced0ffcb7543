package kube

import (
	"maps"
	"slices"

	"coldrack.dev/api/v1alpha1"
)

// Requirements are what the imported bundles must contain for a cluster, so that nothing is missing on site.
type Requirements struct {
	// Images of containers, by full name and tag.
	Images []string
	// EveryNode are those of the images that each node runs.
	EveryNode []string
	// Programs on the nodes, each at its path.
	Programs []Program
	// Packages of Debian on the nodes.
	Packages []string
}

// Program is a program that a node must have.
type Program struct {
	Name, Path string
	// Version exactly, or at least where Least is set. Empty: any.
	Version string
	Least   bool
}

func (r *renderer) requirements() Requirements {
	images, everywhere := map[string]bool{}, map[string]bool{}
	versions := map[string]release{r.cluster.Spec.Version: r.release}
	for _, n := range r.nodes {
		versions[n.version] = n.release
		if n.has(v1alpha1.RoleEtcd) {
			images[n.etcd.etcdImage] = true
		}
	}
	var programs []Program
	for _, version := range slices.Sorted(maps.Keys(versions)) {
		rel := versions[version]
		for _, name := range []component{componentAPIServer, componentManager, componentScheduler} {
			images[kubernetesImage(name, version)] = true
		}
		images[rel.etcdImage], images[rel.coreDNSImage], everywhere[rel.pauseImage] = true, true, true
		if r.cluster.Spec.Network.Proxy != v1alpha1.ProxyNone {
			everywhere[kubernetesImage("kube-proxy", version)] = true
		}
		if r.cluster.Spec.Network.Plugin == v1alpha1.NetworkFlannel {
			everywhere[rel.flannelImage] = true
		}
		programs = append(programs,
			Program{Name: "kubelet", Path: "/usr/bin/kubelet", Version: version},
			Program{Name: "containerd", Path: "/usr/local/bin/containerd", Version: rel.containerd, Least: true})
	}
	programs = append(programs,
		Program{Name: "containerd-shim-runc-v2", Path: "/usr/local/bin/containerd-shim-runc-v2"},
		Program{Name: "runc", Path: "/usr/sbin/runc"})
	if r.cluster.Spec.Network.Plugin != v1alpha1.NetworkNone {
		for _, plugin := range []string{"bridge", "host-local", "loopback", "portmap"} {
			programs = append(programs, Program{Name: "cni-" + plugin, Path: "/opt/cni/bin/" + plugin, Version: "v1.6.0", Least: true})
		}
	}
	if r.cluster.Spec.Network.LoadBalancer != nil {
		images[loadBalancerImage] = true
	}
	packages := []string{"conntrack", "iptables", "kmod", "nftables"}
	if r.cluster.Spec.Endpoint.VirtualIP != nil {
		packages = append(packages, "curl", "keepalived")
	}
	slices.Sort(packages)
	maps.Copy(images, everywhere)
	return Requirements{Images: slices.Sorted(maps.Keys(images)), EveryNode: slices.Sorted(maps.Keys(everywhere)), Programs: programs, Packages: packages}
}
