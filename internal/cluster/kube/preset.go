package kube

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"coldrack.dev/api/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PresetOptions are what a preset leaves to the user.
type PresetOptions struct {
	// Name of the cluster.
	Name string
	// Version of Kubernetes. Default: DefaultVersion.
	Version string
	// Profile that machines are installed with. Default: each machine's own.
	Profile string
	// Servers is how many machines hold etcd: 1 for laptop and development, 3 or 5 for the others. 0: the
	// preset's own number.
	Servers int
	// ControlPlanes is how many machines of the production preset hold the control plane. 0: the preset's own number.
	ControlPlanes int
	// Workers is how many machines only run workloads. -1: the preset's own number.
	Workers int
	// VirtualIP of the API, or Host: a name or address at which people reach it.
	VirtualIP, Host string
	// Plugin of the network. Default: routed.
	Plugin v1alpha1.NetworkPlugin
	// Pools makes every group take only machines with the label of its pool. The production preset always does.
	Pools bool
	// PodCIDR and ServiceCIDR. Default: kubeadm's.
	PodCIDR, ServiceCIDR string
}

// poolLabel tells a Machine's purpose.
const poolLabel = "coldrack.dev/pool"

// Presets are the names that Preset knows.
func Presets() []v1alpha1.Topology {
	return []v1alpha1.Topology{v1alpha1.TopologyLaptop, v1alpha1.TopologySmall, v1alpha1.TopologyDevelopment, v1alpha1.TopologyProduction}
}

// presetGroup is one group of a preset.
type presetGroup struct {
	name     string
	comment  string
	replicas int
	roles    []v1alpha1.Role
	pool     string
}

func presetGroups(preset v1alpha1.Topology, o PresetOptions) ([]presetGroup, error) {
	groups, err := allPresetGroups(preset, o)
	for i := range groups {
		if !o.Pools && preset != v1alpha1.TopologyProduction {
			groups[i].pool = ""
		}
	}
	return groups, err
}

func allPresetGroups(preset v1alpha1.Topology, o PresetOptions) ([]presetGroup, error) {
	etcd, controlPlane, worker := v1alpha1.RoleEtcd, v1alpha1.RoleControlPlane, v1alpha1.RoleWorker
	number := func(wanted, own int) int {
		if wanted > 0 {
			return wanted
		}
		return own
	}
	workers := func(own int) int {
		if o.Workers >= 0 {
			return o.Workers
		}
		return own
	}
	switch preset {
	case v1alpha1.TopologyLaptop:
		return []presetGroup{{"all", "The one machine.", 1, []v1alpha1.Role{etcd, controlPlane, worker}, "all"}}, nil
	case v1alpha1.TopologySmall:
		return []presetGroup{{"all", "Machines that each hold etcd, the control plane and workloads. With three, one may fail; with five, two.",
			number(o.Servers, 3), []v1alpha1.Role{etcd, controlPlane, worker}, "all"}}, nil
	case v1alpha1.TopologyDevelopment:
		return []presetGroup{
			{"control", "The machine with etcd and the control plane. While it is down, workloads run but nothing can be changed.",
				1, []v1alpha1.Role{etcd, controlPlane}, "control-plane"},
			{"workers", "Machines for workloads.", workers(2), []v1alpha1.Role{worker}, "worker"},
		}, nil
	case v1alpha1.TopologyProduction:
		return []presetGroup{
			{"etcd", "Machines that hold nothing but the cluster's memory. With three, one may fail; with five, two. Fast disks matter here.",
				number(o.Servers, 3), []v1alpha1.Role{etcd}, "etcd"},
			{"control", "Machines with the API servers, schedulers and controllers.", number(o.ControlPlanes, 2), []v1alpha1.Role{controlPlane}, "control-plane"},
			{"workers", "Machines for workloads. Make more such groups for other hardware.", workers(3), []v1alpha1.Role{worker}, "worker"},
		}, nil
	}
	return nil, fmt.Errorf("unknown preset %q; there are %v", preset, Presets())
}

// Preset makes a cluster of one of the four architectures, with every field that the commented YAML of
// PresetYAML shows.
func Preset(preset v1alpha1.Topology, o PresetOptions) (*v1alpha1.Cluster, []v1alpha1.MachineGroup, error) {
	groups, err := presetGroups(preset, o)
	if err != nil {
		return nil, nil, err
	}
	cluster := &v1alpha1.Cluster{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Cluster"},
		ObjectMeta: metav1.ObjectMeta{Name: o.Name},
		Spec: v1alpha1.ClusterSpec{
			Version: cmp.Or(o.Version, DefaultVersion()), Topology: preset,
			Network: v1alpha1.ClusterNetwork{
				PodCIDRs:     []string{cmp.Or(o.PodCIDR, "10.244.0.0/16")},
				ServiceCIDRs: []string{cmp.Or(o.ServiceCIDR, "10.96.0.0/16")},
				DNSDomain:    "cluster.local",
				Plugin:       cmp.Or(o.Plugin, v1alpha1.NetworkRouted), Proxy: v1alpha1.ProxyNFTables,
			},
			Security: v1alpha1.ClusterSecurity{PodSecurity: "baseline"},
			Upgrade:  v1alpha1.UpgradeSpec{Strategy: v1alpha1.UpgradeRolling},
		},
	}
	if _, err := releaseOf(cluster.Spec.Version); err != nil {
		return nil, nil, err
	}
	if o.VirtualIP != "" {
		if _, err := netip.ParseAddr(o.VirtualIP); err != nil {
			return nil, nil, fmt.Errorf("virtual IP: %w", err)
		}
		cluster.Spec.Endpoint.VirtualIP = &v1alpha1.VirtualIP{Address: o.VirtualIP}
	}
	cluster.Spec.Endpoint.Host = o.Host
	var machines []v1alpha1.MachineGroup
	for _, g := range groups {
		group := v1alpha1.MachineGroup{
			TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "MachineGroup"},
			ObjectMeta: metav1.ObjectMeta{Name: o.Name + "-" + g.name},
			Spec:       v1alpha1.MachineGroupSpec{Cluster: o.Name, Replicas: to(int32(g.replicas)), Roles: g.roles, Profile: o.Profile},
		}
		if g.pool != "" {
			group.Spec.Selector.MatchLabels = map[string]string{poolLabel: g.pool}
		}
		machines = append(machines, group)
	}
	return cluster, machines, nil
}

// PresetYAML writes the objects of Preset as YAML with comments, for a person to go on from.
func PresetYAML(preset v1alpha1.Topology, o PresetOptions) ([]byte, error) {
	cluster, _, err := Preset(preset, o)
	if err != nil {
		return nil, err
	}
	groups, err := presetGroups(preset, o)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# A Kubernetes cluster of the %s preset. Look at what would happen with", preset)
	line("#   coldrack plan -f FILE")
	line("# and let it happen with")
	line("#   coldrack apply -f FILE")
	line("apiVersion: %s\nkind: Cluster\nmetadata:\n  name: %s\nspec:", v1alpha1.GroupVersion, o.Name)
	line("  # The imported bundles must contain this version. This Coldrack knows %s.", strings.Join(KnownVersions(), " and "))
	line("  version: %s", cluster.Spec.Version)
	line("  # Groups that contradict the topology are refused; \"custom\" allows whatever can work.")
	line("  topology: %s", preset)
	presetEndpoint(line, o)
	line("  network:")
	line("    # Addresses of pods and services. They must not overlap with anything that the machines talk to,")
	line("    # and cannot be changed later. Every machine takes a /24 of the first.")
	line("    podCIDRs: [%s]\n    serviceCIDRs: [%s]", cluster.Spec.Network.PodCIDRs[0], cluster.Spec.Network.ServiceCIDRs[0])
	line("    dnsDomain: %s", cluster.Spec.Network.DNSDomain)
	line("    # routed: no encapsulation, for machines in one segment. flannel: VXLAN, for machines in several subnets.")
	line("    plugin: %s", cluster.Spec.Network.Plugin)
	line("    # nftables or iptables; none for networks that bring their own.")
	line("    proxy: %s", cluster.Spec.Network.Proxy)
	line("  security:")
	line("    # What pods may do by default outside kube-system: privileged, baseline or restricted.")
	line("    podSecurity: %s", cluster.Spec.Security.PodSecurity)
	line("    # tokenDiscovery: true lets foreign machines join with \"kubeadm join --token\".")
	line("  upgrade:")
	line("    # Rolling: changes roll by themselves, control plane first. Manual: a person starts each of them.")
	line("    strategy: %s", cluster.Spec.Upgrade.Strategy)
	for _, g := range groups {
		line("---\n# %s", g.comment)
		line("apiVersion: %s\nkind: MachineGroup\nmetadata:\n  name: %s-%s\nspec:\n  cluster: %s", v1alpha1.GroupVersion, o.Name, g.name, o.Name)
		line("  replicas: %d", g.replicas)
		var roles []string
		for _, role := range g.roles {
			roles = append(roles, string(role))
		}
		line("  roles: [%s]", strings.Join(roles, ", "))
		if g.pool != "" {
			line("  # Machines with this label: kubectl label machine NAME %s=%s", poolLabel, g.pool)
			line("  selector:\n    matchLabels:\n      %s: %s", poolLabel, g.pool)
		} else {
			line("  # Any approved machine that is in no other group. To choose among them:")
			line("  # selector:\n  #   matchLabels:\n  #     example.org/purpose: kubernetes")
		}
		if o.Profile != "" {
			line("  profile: %s", o.Profile)
		} else {
			line("  # profile: NAME installs all of them alike; by default each machine has its own.")
		}
	}
	return []byte(b.String()), nil
}

// presetEndpoint writes how people reach the API, or shows how that would be written.
func presetEndpoint(line func(string, ...any), o PresetOptions) {
	if o.VirtualIP == "" && o.Host == "" {
		line("  # endpoint:\n  #   # An address that one of the control-plane machines carries at any time. It must be nobody else's.")
		line("  #   virtualIP:\n  #     address: 10.20.0.5\n  #   # A DNS name for the API, if there is one.\n  #   host: api.example.org")
		return
	}
	line("  endpoint:")
	if o.VirtualIP != "" {
		line("    # One of the control-plane machines carries this address at any time. It must be nobody else's.")
		line("    virtualIP:\n      address: %q", o.VirtualIP)
	}
	if o.Host != "" {
		line("    # The name or address at which people and machines outside reach the API.")
		line("    host: %q", o.Host)
	}
}
