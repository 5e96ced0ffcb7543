package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
)

// ClusterView is a cluster with what belongs to it.
type ClusterView struct {
	Cluster  *v1alpha1.Cluster
	Groups   []v1alpha1.MachineGroup
	Machines []v1alpha1.Machine
}

// NewClusterView picks what belongs to a cluster from all groups and machines.
func NewClusterView(cluster *v1alpha1.Cluster, groups []v1alpha1.MachineGroup, machines []v1alpha1.Machine) ClusterView {
	v := ClusterView{Cluster: cluster}
	for _, g := range groups {
		if g.Spec.Cluster == cluster.Name {
			v.Groups = append(v.Groups, g)
		}
	}
	slices.SortFunc(v.Groups, func(a, b v1alpha1.MachineGroup) int { return naturalCompare(a.Name, b.Name) })
	for _, m := range machines {
		if v.groupOf(m.Name) != "" || v.node(m.Name) != nil || m.Status.Kubernetes != nil && m.Status.Kubernetes.Cluster == cluster.Name {
			v.Machines = append(v.Machines, m)
		}
	}
	SortMachines(v.Machines, false, time.Time{})
	return v
}

func (v *ClusterView) node(machine string) *v1alpha1.ClusterNode {
	for i := range v.Cluster.Status.Nodes {
		if v.Cluster.Status.Nodes[i].Machine == machine {
			return &v.Cluster.Status.Nodes[i]
		}
	}
	return nil
}

func (v *ClusterView) groupOf(machine string) string {
	if n := v.node(machine); n != nil {
		return n.Group
	}
	for _, g := range v.Groups {
		if slices.Contains(g.Status.Machines, machine) {
			return g.Name
		}
	}
	return ""
}

// NodeState is how far a machine is on its way to be a node of its cluster.
type NodeState string

const (
	// NodeInstalling: the machine itself is not Ready; its own phase says more.
	NodeInstalling NodeState = "Machine"
	NodeWaiting    NodeState = "Waiting"
	NodeBringUp    NodeState = "BringUp"
	NodeFailed     NodeState = "Failed"
	// NodeStarted: everything on the node is done, and the cluster's API does not call it Ready yet.
	NodeStarted NodeState = "Started"
	NodeReady   NodeState = "Ready"
)

// NodeView is one machine of a cluster, summed up.
type NodeView struct {
	Machine, Node, Group string
	Roles                []v1alpha1.Role
	Address, Version     string
	State                NodeState
	// Phase to show: the state, or the machine's phase while that is what there is to say.
	Phase string
	// Progress of the way that the machine is on; empty at its end.
	Progress string
	Since    time.Time
	Message  string
	// Stuck says why nothing goes on without a person.
	Stuck string
}

// nodePatience is how long a phase of a node's bring-up may run before a person should look. The longest is
// the kubelet's first start, which pulls images.
const nodePatience = 15 * time.Minute

// Nodes sums up all machines, by name; with stuckFirst, those that need a person come first.
func (v *ClusterView) Nodes(now time.Time, stuckFirst bool) []NodeView {
	nodes := make([]NodeView, 0, len(v.Machines))
	for i := range v.Machines {
		nodes = append(nodes, v.nodeView(&v.Machines[i], now))
	}
	rank := func(n NodeView) int {
		switch {
		case !stuckFirst:
			return 0
		case n.Stuck != "":
			return 0
		case n.State == NodeReady:
			return 3
		case n.State == NodeWaiting:
			return 2
		}
		return 1
	}
	slices.SortStableFunc(nodes, func(a, b NodeView) int { return cmp.Compare(rank(a), rank(b)) })
	return nodes
}

func (v *ClusterView) nodeView(m *v1alpha1.Machine, now time.Time) NodeView {
	n := NodeView{Machine: m.Name, Group: v.groupOf(m.Name), Address: AddressOf(m), State: NodeWaiting, Message: m.Status.Message}
	for _, g := range v.Groups {
		if g.Name == n.Group {
			n.Roles = g.Spec.Roles
		}
	}
	recorded := v.node(m.Name)
	if recorded != nil {
		n.Node, n.Version = recorded.NodeName, recorded.Version
		if len(recorded.Addresses) > 0 {
			n.Address = recorded.Addresses[0]
		}
	}
	if m.Status.PhaseSince != nil {
		n.Since = m.Status.PhaseSince.Time
	}
	k := m.Status.Kubernetes
	if k != nil && k.Cluster == v.Cluster.Name {
		n.Node, n.Version = orElse(k.Node, n.Node), orElse(k.Version, n.Version)
	}
	switch {
	case m.Status.Phase != v1alpha1.PhaseReady:
		n.State, n.Phase, n.Progress, n.Stuck = NodeInstalling, PhaseOf(m), stepCell(m), Stuck(m, now)
		return n
	case k == nil || k.Cluster != v.Cluster.Name || len(k.Phases) == 0:
		n.Message = "waits for what it is to have"
		if k != nil {
			n.Message = orElse(k.Message, n.Message)
		}
	default:
		v.bringUp(&n, k, recorded, now)
	}
	n.Phase = string(n.State)
	return n
}

// bringUp reads the phases that a node reports.
func (v *ClusterView) bringUp(n *NodeView, k *v1alpha1.KubernetesStatus, recorded *v1alpha1.ClusterNode, now time.Time) {
	n.Message = k.Message
	p := PhasesOf(k.Phases)
	switch {
	case p.Failed != nil:
		n.State, n.Message = NodeFailed, fmt.Sprintf("%s: %s", p.Failed.Name, p.Failed.Message)
		n.Stuck = n.Message
	case k.Done && recorded != nil && recorded.Ready:
		n.State, n.Message = NodeReady, ""
	case k.Done:
		n.State, n.Message = NodeStarted, "the cluster does not call it Ready yet"
		if recorded != nil {
			n.Message = orElse(recorded.Message, n.Message)
		}
	default:
		n.State = NodeBringUp
		if len(p.Running) > 0 {
			n.Message = orElse(p.Running[0].Message, n.Message)
			if s := p.Running[0].StartedAt; s != nil && now.Sub(s.Time) > nodePatience {
				n.Stuck = fmt.Sprintf("%s for %s: %s", p.Running[0].Name, Age(now.Sub(s.Time)), orElse(p.Running[0].Message, "says nothing"))
			}
		}
	}
	if n.State != NodeReady {
		n.Progress = p.String()
	} else if recorded.Prefetch != nil && recorded.Hand == nil {
		prefetchInto(n, k.Prefetch, recorded.Prefetch.Version)
	}
	if recorded != nil && recorded.ReadyChangedAt != nil && k.Done {
		n.Since = recorded.ReadyChangedAt.Time
	} else if !p.Since.IsZero() {
		n.Since = p.Since
	}
}

// prefetchInto says how far a node is that fetches what another version needs, beside what it runs; nil: it has not begun.
func prefetchInto(n *NodeView, p *v1alpha1.NodePrefetch, version string) {
	switch {
	case p == nil:
	case p.Done:
		n.Message = "has everything for " + version
	case p.Failing:
		n.Stuck = fmt.Sprintf("cannot fetch what %s needs: %s", version, p.Message)
		n.Message = n.Stuck
	case p.BytesTotal > 0:
		n.Progress, n.Message = fmt.Sprintf("%s for %s", Bar(float64(p.BytesDone)/float64(p.BytesTotal), 12), version), p.Message
	default:
		n.Message = p.Message
	}
}

// PhaseProgress is how far a number of steps that may run side by side have come.
type PhaseProgress struct {
	Done, Total int
	Running     []v1alpha1.Step
	Failed      *v1alpha1.Step
	// Since is when the first of those that are not done began.
	Since time.Time
}

// PhasesOf counts steps.
func PhasesOf(steps []v1alpha1.Step) PhaseProgress {
	p := PhaseProgress{Total: len(steps)}
	for i, s := range steps {
		switch s.State {
		case v1alpha1.StepSucceeded, v1alpha1.StepSkipped:
			p.Done++
		case v1alpha1.StepFailed:
			if p.Failed == nil {
				p.Failed = &steps[i]
			}
		case v1alpha1.StepRunning:
			p.Running = append(p.Running, s)
		}
		if s.StartedAt != nil && (p.Since.IsZero() || s.StartedAt.Time.Before(p.Since)) && s.State != v1alpha1.StepSkipped {
			p.Since = s.StartedAt.Time
		}
	}
	return p
}

// String is a bar with the names of what runs: "[####........] runtime, certificates (4/12)".
func (p PhaseProgress) String() string {
	if p.Total == 0 {
		return ""
	}
	var names []string
	for _, s := range p.Running {
		names = append(names, s.Name)
	}
	text := strings.Join(names, ", ")
	if p.Failed != nil {
		text = p.Failed.Name + " failed"
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s (%d/%d)", Bar(float64(p.Done)/float64(p.Total), 12), text, p.Done, p.Total))
}

// ClusterPhaseOf is the phase as shown; one that no controller has looked at yet is Pending.
func ClusterPhaseOf(c *v1alpha1.Cluster) string {
	phase := orElse(string(c.Status.Phase), string(v1alpha1.ClusterPending))
	if c.Spec.Paused {
		phase += " (paused)"
	}
	return phase
}

// ClusterTable lists clusters, one a row.
func ClusterTable(clusters []v1alpha1.Cluster, now time.Time) *Table {
	t := &Table{Header: []string{"NAME", "PHASE", "VERSION", "TOPOLOGY", "NODES", "ENDPOINT", "AGE", "MESSAGE"}}
	for i := range clusters {
		c := &clusters[i]
		t.Add(c.Name, ClusterPhaseOf(c), orElse(c.Status.Version, c.Spec.Version), string(c.Spec.Topology), c.Status.NodesReady,
			c.Status.Endpoint, Age(now.Sub(c.CreationTimestamp.Time)), c.Status.Message)
	}
	return t
}

// DescribeCluster is everything that is known of a cluster, for a person.
func DescribeCluster(v ClusterView, now time.Time) string {
	d := &description{now: now}
	c := v.Cluster
	d.field("Cluster", "%s", c.Name)
	d.field("Phase", "%s", ClusterPhaseOf(c))
	d.field("Message", "%s", c.Status.Message)
	version := c.Spec.Version
	if c.Status.Version != "" && c.Status.Version != version {
		version += ", runs " + c.Status.Version
	}
	d.field("Version", "%s", version)
	d.field("Topology", "%s", c.Spec.Topology)
	d.field("Endpoint", "%s", c.Status.Endpoint)
	if vip := c.Spec.Endpoint.VirtualIP; vip != nil {
		d.field("Virtual IP", "%s", vip.Address)
	}
	d.field("Pods", "%s", strings.Join(c.Spec.Network.PodCIDRs, ", "))
	d.field("Services", "%s", strings.Join(c.Spec.Network.ServiceCIDRs, ", "))
	d.field("Network", "%s, kube-proxy %s", orElse(string(c.Spec.Network.Plugin), string(v1alpha1.NetworkRouted)),
		orElse(string(c.Spec.Network.Proxy), string(v1alpha1.ProxyNFTables)))
	d.field("Nodes ready", "%s", c.Status.NodesReady)
	d.field("Known since", "%s", ago(c.CreationTimestamp.Time, now))

	groups := &Table{Header: []string{"GROUP", "ROLES", "WANTED", "MACHINES", "READY", "PROFILE", "MESSAGE"}}
	for i := range v.Groups {
		g := &v.Groups[i]
		groups.Add(g.Name, roleText(g.Spec.Roles), fmt.Sprint(g.WantedReplicas()), fmt.Sprint(g.Status.Replicas),
			fmt.Sprint(g.Status.ReadyReplicas), g.Spec.Profile, g.Status.Message)
	}
	d.table("Groups", groups)
	nodes := &Table{Header: []string{"MACHINE", "NODE", "GROUP", "ROLES", "ADDRESS", "VERSION", "PHASE", "PROGRESS", "MESSAGE"}}
	for _, n := range v.Nodes(now, false) {
		nodes.Add(n.Machine, n.Node, n.Group, roleText(n.Roles), n.Address, n.Version, n.Phase, n.Progress, orElse(n.Stuck, n.Message))
	}
	d.table("Nodes", nodes)
	addons := &Table{Header: []string{"ADD-ON", "VERSION", "READY", "MESSAGE"}}
	for _, a := range c.Status.Addons {
		addons.Add(a.Name, a.Version, map[bool]string{true: "yes", false: "no"}[a.Ready], a.Message)
	}
	d.table("Add-ons", addons)
	d.table("Steps", stepTable(c.Status.Steps, now))
	d.conditions(c.Status.Conditions)
	return d.String()
}

func stepTable(steps []v1alpha1.Step, now time.Time) *Table {
	t := &Table{Header: []string{"STEP", "STATE", "TOOK", "MESSAGE"}}
	for _, s := range steps {
		t.Add(s.Name, string(s.State), took(s, now), s.Message)
	}
	return t
}

func roleText(roles []v1alpha1.Role) string {
	texts := make([]string, 0, len(roles))
	for _, r := range roles {
		texts = append(texts, string(r))
	}
	slices.Sort(texts)
	return strings.Join(texts, ",")
}

// Ready says whether the cluster's API calls the machine's node Ready.
func (v *ClusterView) Ready(machine string) bool {
	if v.Cluster == nil {
		return false
	}
	n := v.node(machine)
	return n != nil && n.Ready
}

// Columns of checks. They are printed one by one as they come in, so that their widths cannot follow the contents.
const checkColumns = "%-6s  %-24s  %-24s  %6s  %s"

// CheckHeader is the line above CheckLine's.
func CheckHeader() string {
	return fmt.Sprintf(checkColumns, "RESULT", "CHECK", "TARGET", "TOOK", "DETAIL")
}

// CheckLine is one check of a cluster.
func CheckLine(name, target string, ok bool, lasted time.Duration, detail string) string {
	result := "ok"
	if !ok {
		result = "FAILED"
	}
	return strings.TrimRight(fmt.Sprintf(checkColumns, result, oneLine(name), oneLine(target), fmt.Sprintf("%.1fs", lasted.Seconds()), oneLine(detail)), " ")
}
