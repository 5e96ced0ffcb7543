package members

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/planner"
	"coldrack.dev/internal/contract/validate"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Situation is what exists, as far as it says which machines a cluster gets.
type Situation struct {
	// Cluster whose nodes are to be decided. Its status.nodes are what was decided before.
	Cluster *v1alpha1.Cluster
	// Clusters, Groups and Machines are all that there are: clusters compete for machines.
	Clusters []v1alpha1.Cluster
	Groups   []v1alpha1.MachineGroup
	Machines []v1alpha1.Machine
	// Subnets decide nothing here; what is rendered of a proposal depends on them.
	Subnets []v1alpha1.Subnet
	// Registered are the Nodes of the cluster's own API, by name; nil while nobody has read them, or where that does not matter.
	Registered map[string]Registered
	// Unread holds workers back until somebody has read them. Servers join: without them the API may never answer.
	Unread bool
}

// Decision says which machines a cluster has, and what stays decided for each.
type Decision struct {
	// Placed are the machines of each of the cluster's groups, by name, those included that are not ready to
	// become nodes.
	Placed map[string][]string
	// Nodes are those that were decided before and those that are new, by machine.
	Nodes []v1alpha1.ClusterNode
	// Waiting says what keeps further machines from becoming nodes, for a person.
	Waiting []string
}

// Decide chooses machines and decides what each of them keeps. It is pure. What was decided before stays. Until the cluster was
// brought up for the first time, machines are dropped that are gone and hold no member of etcd; afterwards a node leaves by
// steps (see package planner), and the last of them drops it.
//
// Nothing at all is decided before every machine that is to hold etcd is there and has its address, because the
// members of a new etcd cluster must all know each other. One that comes later gets its member by a step, too.
func Decide(s Situation) (Decision, error) {
	own := ownGroups(s.Cluster.Name, s.Groups)
	machines := map[string]*v1alpha1.Machine{}
	for i := range s.Machines {
		machines[s.Machines[i].Name] = &s.Machines[i]
	}
	d := Decision{Placed: map[string][]string{}}
	kept := keep(s.Cluster, machines, &d)

	placed, err := place(s, kept)
	if err != nil {
		return d, err
	}
	for _, g := range own {
		names := placed[g.Name]
		for _, n := range kept {
			if n.Group == g.Name {
				names = append(names, n.Machine)
			}
		}
		slices.Sort(names)
		d.Placed[g.Name] = names
		if len(names) < g.WantedReplicas() {
			d.Waiting = append(d.Waiting, tooFew(s, g.Name, len(names)))
		}
	}
	d.Nodes = kept
	added, err := newcomers(s, own, placed, machines, kept, &d)
	if err != nil || len(added) == 0 {
		return d, err
	}

	var all []kube.Machine
	for _, n := range slices.Concat(kept, added) {
		all = append(all, kubeMachine(n, machines[n.Machine]))
	}
	assigned, err := kube.Assign(s.Cluster, own, append(all, foreign(s.Cluster.Status.ForeignNodes)...), nil)
	if err != nil {
		return d, err
	}
	nodes := slices.Concat(kept, added)
	for i := range nodes {
		nodes[i].PodCIDRs, nodes[i].Etcd = prefixTexts(assigned[i].PodCIDRs), assigned[i].Etcd
	}
	slices.SortFunc(nodes, func(a, b v1alpha1.ClusterNode) int { return strings.Compare(a.Machine, b.Machine) })
	d.Nodes = nodes
	return d, nil
}

// foreign nodes as the renderer would take them, were they its business: with networks and nothing else.
func foreign(nodes []v1alpha1.ForeignNode) []kube.Machine {
	var machines []kube.Machine
	for _, n := range nodes {
		machines = append(machines, kubeMachine(v1alpha1.ClusterNode{Machine: "foreign node " + n.Name, PodCIDRs: n.PodCIDRs}, nil))
	}
	return machines
}

func prefixTexts(prefixes []netip.Prefix) []string {
	var texts []string
	for _, p := range prefixes {
		texts = append(texts, p.String())
	}
	return texts
}

// DecideForeign gives a node that is none of our machines the networks of its pods, or those that it has.
func DecideForeign(cluster *v1alpha1.Cluster, name string) (v1alpha1.ForeignNode, error) {
	for _, n := range cluster.Status.ForeignNodes {
		if n.Name == name {
			return n, nil
		}
	}
	var machines []kube.Machine
	for _, n := range cluster.Status.Nodes {
		machines = append(machines, kubeMachine(n, nil))
	}
	node := v1alpha1.ForeignNode{Name: name}
	machines = append(machines, foreign(append(slices.Clone(cluster.Status.ForeignNodes), node))...)
	assigned, err := kube.Assign(cluster, nil, machines, nil)
	if err != nil {
		return node, err
	}
	node.PodCIDRs = prefixTexts(assigned[len(assigned)-1].PodCIDRs)
	return node, nil
}

func ownGroups(cluster string, groups []v1alpha1.MachineGroup) []v1alpha1.MachineGroup {
	var own []v1alpha1.MachineGroup
	for _, g := range groups {
		if g.Spec.Cluster == cluster && g.DeletionTimestamp == nil {
			own = append(own, g)
		}
	}
	slices.SortFunc(own, func(a, b v1alpha1.MachineGroup) int { return strings.Compare(a.Name, b.Name) })
	return own
}

// keep returns the nodes of before that are still there.
func keep(cluster *v1alpha1.Cluster, machines map[string]*v1alpha1.Machine, d *Decision) []v1alpha1.ClusterNode {
	var kept []v1alpha1.ClusterNode
	for _, n := range cluster.Status.Nodes {
		if Gone(machines[n.Machine]) && !BroughtUp(cluster) {
			if n.Etcd == nil {
				continue
			}
			d.Waiting = append(d.Waiting, fmt.Sprintf("machine %s holds a member of etcd and was released or deleted before the cluster was up: etcd counts it. "+
				"Install it again, or delete Cluster %s and make it anew", n.Machine, cluster.Name))
		}
		kept = append(kept, *n.DeepCopy())
	}
	return kept
}

// BroughtUp says whether every node of a cluster was ready at one time.
func BroughtUp(c *v1alpha1.Cluster) bool {
	return meta.IsStatusConditionTrue(c.Status.Conditions, v1alpha1.ConditionBroughtUp)
}

// Leaves says whether a node has no place in its group any more.
func Leaves(n *v1alpha1.ClusterNode) bool {
	return n.Leaving != "" || n.Hand != nil && n.Hand.Operation == string(planner.OperationLeave)
}

// Gone says whether nothing of a node can run on its machine any more: it was released, was never installed and
// shall not be, or does not exist (nil).
func Gone(m *v1alpha1.Machine) bool {
	return m == nil || m.Status.Installed == nil && !m.Spec.Approved
}

// place chooses machines for the places that are free in the groups of all clusters.
func place(s Situation, kept []v1alpha1.ClusterNode) (map[string][]string, error) {
	taken := map[string]bool{}
	count := map[string]int{}
	for _, n := range kept {
		taken[n.Machine] = true
		if !Leaves(&n) {
			count[n.Group]++
		}
	}
	for i := range s.Clusters {
		if s.Clusters[i].Name == s.Cluster.Name {
			continue
		}
		for _, n := range s.Clusters[i].Status.Nodes {
			taken[n.Machine] = true
			if !Leaves(&n) {
				count[n.Group]++
			}
		}
	}
	var free []v1alpha1.Machine
	for _, m := range s.Machines {
		// What is to be wiped, or installed anew, is no place for a node yet.
		leaves := m.WantedIntent() != nil && m.Spec.Intent.Action != v1alpha1.ActionInstall
		if !taken[m.Name] && m.DeletionTimestamp == nil && !leaves {
			free = append(free, m)
		}
	}
	var groups []v1alpha1.MachineGroup
	for _, g := range s.Groups {
		if g.DeletionTimestamp != nil {
			continue
		}
		g.Spec.Replicas = new(int32(max(g.WantedReplicas()-count[g.Name], 0)))
		groups = append(groups, g)
	}
	return v1alpha1.PlaceMachines(groups, free)
}

// tooFew says why a group has fewer machines than it wants.
func tooFew(s Situation, group string, has int) string {
	for _, problem := range v1alpha1.ValidatePlacement(s.Groups, s.Machines) {
		if strings.HasPrefix(problem.Detail, "MachineGroup "+group+" ") {
			return fmt.Sprintf("%s; it wants %v", problem.Detail, problem.BadValue)
		}
	}
	return fmt.Sprintf("MachineGroup %s has only %d machines", group, has)
}

// newcomers are the placed machines that can become nodes now, without what Assign adds.
func newcomers(s Situation, own []v1alpha1.MachineGroup, placed map[string][]string, machines map[string]*v1alpha1.Machine,
	kept []v1alpha1.ClusterNode, d *Decision) ([]v1alpha1.ClusterNode, error) {
	born := slices.ContainsFunc(kept, func(n v1alpha1.ClusterNode) bool { return n.Etcd != nil })
	names, addresses := map[string]string{}, map[string]string{}
	for _, n := range kept {
		names[n.NodeName] = n.Machine
		for _, a := range n.Addresses {
			addresses[a] = n.Machine
		}
	}
	var added []v1alpha1.ClusterNode
	etcd, wanted, control := 0, 0, 0
	for _, g := range own {
		if g.HasRole(v1alpha1.RoleEtcd) {
			wanted += g.WantedReplicas()
		}
		for _, name := range placed[g.Name] {
			m := machines[name]
			address, problem := addressOf(m)
			nodeName, server := cmp.Or(m.Spec.Hostname, m.Name), g.HasRole(v1alpha1.RoleEtcd) || g.HasRole(v1alpha1.RoleControlPlane)
			var networks []string
			switch {
			case problem != "":
			case names[nodeName] != "":
				problem = fmt.Sprintf("machines %s and %s would both be node %s: set spec.hostname of one of them", names[nodeName], name, nodeName)
			case addresses[address] != "":
				problem = fmt.Sprintf("machines %s and %s both have address %s: correct spec.network.address of one of them", addresses[address], name, address)
			default:
				networks, problem = mayJoin(s, m, nodeName, server, slices.Concat(kept, added))
			}
			if problem != "" {
				d.Waiting = append(d.Waiting, problem)
				continue
			}
			names[nodeName], addresses[address] = name, name
			added = append(added, v1alpha1.ClusterNode{
				Machine: name, Group: g.Name, NodeName: nodeName, Addresses: []string{address}, PodCIDRs: networks,
				Version: versionFor(s.Cluster, &g, own), EtcdVersion: etcdVersion(s.Cluster),
			})
			if g.HasRole(v1alpha1.RoleEtcd) {
				etcd++
			}
			if g.HasRole(v1alpha1.RoleControlPlane) {
				control++
			}
		}
	}
	switch {
	case born:
		return added, nil
	case etcd < wanted || etcd == 0:
		d.Waiting = append(d.Waiting, fmt.Sprintf("%d of %d machines that are to hold etcd are there with an address; bring-up begins when all are", etcd, wanted))
		return nil, nil
	case control == 0:
		d.Waiting = append(d.Waiting, "no machine with role control-plane is there with an address yet")
		return nil, nil
	}
	return added, nil
}

// addressOf is the node's address, which the install gives it.
func addressOf(m *v1alpha1.Machine) (address, problem string) {
	if m.Spec.Network == nil || m.Spec.Network.Address == "" {
		return "", fmt.Sprintf("machine %s has no address yet: it gets one when it has reported what it is, from its subnet's spec.static; or set spec.network.address", m.Name)
	}
	parsed, err := netip.ParseAddr(m.Spec.Network.Address)
	if err != nil {
		return "", fmt.Sprintf("machine %s: spec.network.address: %q is not an IP address", m.Name, m.Spec.Network.Address)
	}
	return parsed.String(), ""
}

// version that machines of the cluster run: the one that was recorded for those that it has, since a change of
// spec.version is an upgrade, which goes from machine to machine.
func version(cluster *v1alpha1.Cluster) string {
	lowest := ""
	for _, n := range cluster.Status.Nodes {
		if n.Version != "" && (lowest == "" || older(n.Version, lowest)) {
			lowest = n.Version
		}
	}
	return cmp.Or(lowest, cluster.Spec.Version)
}

// versionFor is what a machine that comes into a group runs: that of the others, or as a worker what the cluster is to run once all
// control planes do. A node that a spare replaces in an upgrade could not be replaced otherwise.
func versionFor(cluster *v1alpha1.Cluster, g *v1alpha1.MachineGroup, own []v1alpha1.MachineGroup) string {
	control := map[string]bool{}
	for i := range own {
		control[own[i].Name] = own[i].HasRole(v1alpha1.RoleControlPlane)
	}
	upgraded := cluster.Spec.Upgrade.Strategy != v1alpha1.UpgradeManual && !g.HasRole(v1alpha1.RoleControlPlane) && !g.HasRole(v1alpha1.RoleEtcd)
	servers := 0
	for _, n := range cluster.Status.Nodes {
		if control[n.Group] {
			servers++
			upgraded = upgraded && n.Version == cluster.Spec.Version && n.Hand == nil
		}
	}
	if upgraded && servers > 0 {
		return cluster.Spec.Version
	}
	return version(cluster)
}

// etcdVersion that a member which comes runs: that of the oldest there is, or empty where all run what belongs to their version of
// Kubernetes.
func etcdVersion(cluster *v1alpha1.Cluster) string {
	lowest := ""
	for _, n := range cluster.Status.Nodes {
		if n.EtcdVersion != "" && (lowest == "" || older(n.EtcdVersion, lowest)) {
			lowest = n.EtcdVersion
		}
	}
	return lowest
}

func older(a, b string) bool {
	x, errA := validate.ParseVersion(a)
	y, errB := validate.ParseVersion(b)
	return errA == nil && errB == nil && x.Compare(y) < 0
}

// kubeMachine is a recorded node as the renderer takes it. m may be nil: what was recorded is enough.
func kubeMachine(n v1alpha1.ClusterNode, m *v1alpha1.Machine) kube.Machine {
	out := kube.Machine{Name: n.Machine, Hostname: n.NodeName, Group: n.Group, Version: n.Version, EtcdVersion: n.EtcdVersion, Etcd: n.Etcd}
	for _, text := range n.Addresses {
		if a, err := netip.ParseAddr(text); err == nil {
			out.Addresses = append(out.Addresses, a)
		}
	}
	for _, text := range n.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			out.PodCIDRs = append(out.PodCIDRs, p)
		}
	}
	if m == nil {
		return out
	}
	out.Labels = locationLabels(m.Spec.Location)
	maps.Copy(out.Labels, m.AcceleratorLabels())
	if inventory := m.Status.Inventory; inventory != nil {
		out.Memory = inventory.Memory.Value()
	}
	out.Interface = interfaceOf(m)
	return out
}

// interfaceOf is the name of the interface that carries the node's address.
func interfaceOf(m *v1alpha1.Machine) string {
	if m.Status.Node != nil && m.Status.Node.Interface != "" {
		return m.Status.Node.Interface
	}
	if m.Status.Inventory == nil {
		return ""
	}
	links := m.Links(nil)
	made := links.Made()
	if slices.Contains(made, links.Link) {
		return links.Link
	}
	// The installed system may name it otherwise, and reports so.
	for _, nic := range m.Status.Inventory.NICs {
		if m.Spec.Network != nil && m.Spec.Network.MAC != "" && nic.MAC == m.Spec.Network.MAC {
			return nic.Name
		}
	}
	for _, nic := range m.Status.Inventory.NICs {
		if !nic.Boot {
			continue
		}
		for _, name := range []string{nic.MAC, nic.Name} { // the layout has one of them
			if top := links.Top(name); slices.Contains(made, top) {
				return top
			}
		}
		return nic.Name
	}
	return ""
}

// Labels of nodes that follow from where a machine stands.
const (
	LabelSite = "coldrack.dev/site"
	LabelRoom = "coldrack.dev/room"
	LabelRack = "coldrack.dev/rack"
)

func locationLabels(at v1alpha1.Location) map[string]string {
	labels := map[string]string{}
	for key, value := range map[string]string{LabelSite: at.Site, LabelRoom: at.Room, LabelRack: at.Rack} {
		if value = labelValue(value); value != "" {
			labels[key] = value
		}
	}
	return labels
}

// labelValue makes a label's value of what a person wrote.
func labelValue(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < 128 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r)) {
			return r
		}
		return '-'
	}, text)
	text = strings.Trim(text[:min(len(text), validation.LabelValueMaxLength)], "-_.")
	return text
}
