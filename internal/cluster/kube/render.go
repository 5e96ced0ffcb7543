package kube

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"coldrack.dev/api/v1alpha1"
	corev1 "k8s.io/api/core/v1"
)

// renderer is an Input that was looked through: parsed, sorted and cross-referenced.
type renderer struct {
	in      Input
	cluster *v1alpha1.Cluster
	// release of the cluster's version, for what is not on a machine.
	release      release
	nodes        []*node
	podCIDRs     []netip.Prefix
	serviceCIDRs []netip.Prefix
	// dnsAddresses are the tenth of each service network.
	dnsAddresses []netip.Addr
	endpointHost string
}

// node is a machine with its group.
type node struct {
	Machine
	group   *v1alpha1.MachineGroup
	version string
	release release
	// etcd is the release whose etcd the machine's member runs.
	etcd release
}

// has says that the machine's group has a role. Whether the machine plays it yet is for runs to say.
func (n *node) has(role v1alpha1.Role) bool { return n.group.HasRole(role) }

func (n *node) hasAny(roles ...v1alpha1.Role) bool { return slices.ContainsFunc(roles, n.has) }

// coming says that the machine's member of etcd has not been added yet. Until it is, the machine is a node like a worker, so that
// it can be seen before a majority depends on it. Its API server would talk to that member, and waits for it.
func (n *node) coming() bool { return n.has(v1alpha1.RoleEtcd) && n.Etcd == nil }

func (n *node) runs(role v1alpha1.Role) bool {
	return n.has(role) && (role == v1alpha1.RoleWorker || !n.coming())
}

func (n *node) runsAny(roles ...v1alpha1.Role) bool { return slices.ContainsFunc(roles, n.runs) }

// primary is the address that the node is known by.
func (n *node) primary() netip.Addr { return n.Addresses[0] }

// Render gives the plan of a cluster. It refuses what cannot be rendered; whether a cluster is wise is for
// v1alpha1.ValidateCluster to say.
func Render(in Input) (*Plan, error) {
	r, err := newRenderer(in)
	if err != nil {
		return nil, fmt.Errorf("render cluster %s: %w", in.Cluster.Name, err)
	}
	plan := &Plan{Nodes: map[string]NodePlan{}, Endpoint: "https://" + r.endpoint(), Authorities: r.authorities(), Requirements: r.requirements()}
	for _, n := range r.nodes {
		if plan.Nodes[n.Name], err = r.node(n); err != nil {
			return nil, fmt.Errorf("render machine %s of cluster %s: %w", n.Name, in.Cluster.Name, err)
		}
	}
	if plan.Objects, err = r.objects(); err != nil {
		return nil, fmt.Errorf("render objects of cluster %s: %w", in.Cluster.Name, err)
	}
	return plan, nil
}

func newRenderer(in Input) (*renderer, error) {
	r := &renderer{in: in, cluster: in.Cluster.DeepCopy()}
	r.cluster.Default()
	var err error
	if r.release, err = releaseOf(r.cluster.Spec.Version); err != nil {
		return nil, fmt.Errorf("spec.version: %w", err)
	}
	if r.podCIDRs, err = parseNetworks("spec.network.podCIDRs", r.cluster.Spec.Network.PodCIDRs); err != nil {
		return nil, err
	}
	if r.serviceCIDRs, err = parseNetworks("spec.network.serviceCIDRs", r.cluster.Spec.Network.ServiceCIDRs); err != nil {
		return nil, err
	}
	for _, services := range r.serviceCIDRs {
		address := services.Addr()
		for range 10 {
			address = address.Next()
		}
		if !services.Contains(address) {
			return nil, fmt.Errorf("spec.network.serviceCIDRs: %s has no tenth address, which DNS gets; take at least a /28 (IPv4) or /124 (IPv6)", services)
		}
		r.dnsAddresses = append(r.dnsAddresses, address)
	}
	if err := r.sortMachines(); err != nil {
		return nil, err
	}
	vip := ""
	if v := r.cluster.Spec.Endpoint.VirtualIP; v != nil {
		vip = v.Address
	}
	r.endpointHost = cmp.Or(r.cluster.Spec.Endpoint.Host, vip, r.with(v1alpha1.RoleControlPlane)[0].primary().String())
	return r, r.checkExtraArgs()
}

func parseNetworks(field string, cidrs []string) ([]netip.Prefix, error) {
	var networks []netip.Prefix
	for i, cidr := range cidrs {
		network, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", field, i, err)
		}
		networks = append(networks, network.Masked())
	}
	return networks, nil
}

func (r *renderer) sortMachines() error {
	groups := map[string]*v1alpha1.MachineGroup{}
	for i := range r.in.Groups {
		g := &r.in.Groups[i]
		if g.Spec.Cluster == r.cluster.Name {
			groups[g.Name] = g
		}
	}
	hostnames, addresses := map[string]string{}, map[netip.Addr]string{}
	for _, m := range r.in.Machines {
		g := groups[m.Group]
		if g == nil {
			return fmt.Errorf("machine %s is in group %q, which this cluster does not have", m.Name, m.Group)
		}
		n := &node{Machine: m, group: g, version: cmp.Or(m.Version, r.cluster.Spec.Version)}
		var err error
		if n.release, err = releaseOf(n.version); err != nil {
			return fmt.Errorf("machine %s: %w", m.Name, err)
		}
		if m.Hostname == "" || len(m.Addresses) == 0 {
			return fmt.Errorf("machine %s needs a host name and an address before it can be part of a cluster", m.Name)
		}
		if other, taken := hostnames[m.Hostname]; taken {
			return fmt.Errorf("machines %s and %s are both named %s", other, m.Name, m.Hostname)
		}
		hostnames[m.Hostname] = m.Name
		for _, a := range m.Addresses {
			if other, taken := addresses[a]; taken {
				return fmt.Errorf("machines %s and %s both have address %s", other, m.Name, a)
			}
			addresses[a] = m.Name
		}
		if err := r.checkFamilies(m); err != nil {
			return err
		}
		if n.etcd, err = n.release.etcdOf(m.EtcdVersion); err != nil {
			return fmt.Errorf("machine %s: %w", m.Name, err)
		}
		r.nodes = append(r.nodes, n)
	}
	slices.SortFunc(r.nodes, func(a, b *node) int { return cmp.Compare(a.Name, b.Name) })
	if !slices.ContainsFunc(r.nodes, func(n *node) bool { return n.has(v1alpha1.RoleControlPlane) }) {
		return errors.New("no machine has role control-plane")
	}
	if len(r.with(v1alpha1.RoleEtcd)) == 0 {
		return errors.New("no machine has a member of etcd; Assign decides how the first ones come into being")
	}
	if len(r.with(v1alpha1.RoleControlPlane)) == 0 {
		return errors.New("no machine runs a control plane: all that have the role wait for their member of etcd")
	}
	return nil
}

// checkFamilies makes sure that a machine has what every IP family of the cluster needs.
func (r *renderer) checkFamilies(m Machine) error {
	if m.Addresses[0].Is4() != r.podCIDRs[0].Addr().Is4() {
		return fmt.Errorf("machine %s has primary address %s, which is not of the family of the first pod network %s", m.Name, m.Addresses[0], r.podCIDRs[0])
	}
	for i, pods := range r.podCIDRs {
		is4 := pods.Addr().Is4()
		if !slices.ContainsFunc(m.Addresses, func(a netip.Addr) bool { return a.Is4() == is4 }) {
			return fmt.Errorf("machine %s has no address of the family of pod network %s", m.Name, pods)
		}
		if len(m.PodCIDRs) <= i || !pods.Overlaps(m.PodCIDRs[i]) {
			return fmt.Errorf("machine %s has no network for its pods within %s; Assign gives it one", m.Name, pods)
		}
	}
	return nil
}

// with returns the nodes that play a role, by name.
func (r *renderer) with(role v1alpha1.Role) []*node {
	var nodes []*node
	for _, n := range r.nodes {
		if n.runs(role) {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

func (r *renderer) apiPort() uint16 { return uint16(r.cluster.Spec.Endpoint.Port) }

// loopbacks are the loopback addresses of the cluster's families, the primary one first.
func (r *renderer) loopbacks() []netip.Addr {
	var addresses []netip.Addr
	for _, pods := range r.podCIDRs {
		addresses = append(addresses, loopback(pods.Addr()))
	}
	return addresses
}

// loopback is the loopback address of the same family.
func loopback(family netip.Addr) netip.Addr {
	if family.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// localURL is the load balancer that every node has.
func (r *renderer) localURL() string {
	return urlOf(r.loopbacks()[0], uint16(r.cluster.Spec.Endpoint.LocalPort))
}

func (r *renderer) endpoint() string {
	host := r.endpointHost
	if a, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(a, r.apiPort()).String()
	}
	return fmt.Sprintf("%s:%d", host, r.apiPort())
}

func (r *renderer) node(n *node) (NodePlan, error) {
	plan := NodePlan{
		Machine: n.Name, NodeName: n.Hostname, Version: n.version, Address: n.primary(),
		Roles:        slices.Sorted(slices.Values(n.group.Spec.Roles)),
		Certificates: r.certificates(n), Kubeconfigs: r.kubeconfigs(n),
		Routes: r.routes(n), ServiceRoutes: r.serviceRoutes(n), LoadBalancer: r.loadBalancer(),
		Labels: r.nodeLabels(n), Taints: nodeTaints(n), PodCIDRs: n.PodCIDRs,
	}
	for _, render := range []func(*node) ([]File, error){
		r.authorityFiles, r.hostFiles, r.containerdFiles, r.networkFiles, r.kubeletFiles, r.controlPlaneFiles, r.virtualIPFiles,
	} {
		files, err := render(n)
		if err != nil {
			return NodePlan{}, err
		}
		plan.Files = append(plan.Files, files...)
	}
	slices.SortFunc(plan.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	var err error
	if plan.StaticPods, err = r.staticPods(n, plan.Files); err != nil {
		return NodePlan{}, err
	}
	plan.Units = r.units(n)
	plan.Phases, err = r.phases(n, &plan)
	return plan, err
}

func (r *renderer) loadBalancer() LoadBalancer {
	balancer := LoadBalancer{Listen: netip.AddrPortFrom(r.loopbacks()[0], uint16(r.cluster.Spec.Endpoint.LocalPort))}
	for _, n := range r.with(v1alpha1.RoleControlPlane) {
		balancer.Backends = append(balancer.Backends, netip.AddrPortFrom(n.primary(), r.apiPort()))
	}
	return balancer
}

const (
	labelControlPlane = "node-role.kubernetes.io/control-plane"
	labelEtcd         = "node-role.kubernetes.io/etcd"
	labelWorker       = "node-role.kubernetes.io/worker"
	labelNoBalancer   = "node.kubernetes.io/exclude-from-external-load-balancers"
	labelGroup        = "coldrack.dev/group"
	labelMachine      = "coldrack.dev/machine"
)

func (r *renderer) nodeLabels(n *node) map[string]string {
	labels := map[string]string{labelGroup: n.group.Name, labelMachine: n.Name}
	if n.has(v1alpha1.RoleControlPlane) {
		labels[labelControlPlane], labels[labelNoBalancer] = "", ""
	}
	if n.has(v1alpha1.RoleEtcd) && !n.has(v1alpha1.RoleControlPlane) {
		labels[labelEtcd], labels[labelNoBalancer] = "", ""
	}
	if n.has(v1alpha1.RoleWorker) {
		labels[labelWorker] = ""
	}
	maps.Copy(labels, n.group.Spec.Labels)
	maps.Copy(labels, n.Labels)
	return labels
}

// nodeTaints keeps workloads off machines that are not workers.
func nodeTaints(n *node) []corev1.Taint {
	var taints []corev1.Taint
	if !n.has(v1alpha1.RoleWorker) {
		key := labelEtcd
		if n.has(v1alpha1.RoleControlPlane) {
			key = labelControlPlane
		}
		taints = append(taints, corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule})
	}
	for _, t := range n.group.Spec.Taints {
		taints = append(taints, corev1.Taint{Key: t.Key, Value: t.Value, Effect: corev1.TaintEffect(t.Effect)})
	}
	return taints
}
