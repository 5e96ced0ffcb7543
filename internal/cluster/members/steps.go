package members

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/planner"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// healthyFor is how long a changed node must be healthy before the next one follows.
	healthyFor = 30 * time.Second
	// configNow and configThen stand for the configuration that a node has, and another one that it is to get.
	configNow, configThen = "now", "then"
)

// Steps is what the planner is asked about a cluster that has nodes: what is recorded of it, and what c and its groups want
// of it. changes are what rendering it anew makes of its nodes, without the version. What is not recorded is left open: who
// leads etcd, who holds the virtual IP, and what pods and their budgets are in the cluster.
func Steps(c *v1alpha1.Cluster, groups []v1alpha1.MachineGroup, machines []v1alpha1.Machine, placed map[string][]string, changes kube.Changes, now time.Time) (planner.Input, error) {
	in := planner.Input{Now: now}
	in.Wanted = planner.Wanted{
		Generation: c.Generation, AllowEvenMembers: c.Spec.Etcd.AllowEvenMembers, AllowDowntime: c.Spec.Upgrade.AllowDowntime,
		Paused: c.Spec.Paused, PullFirst: true, Nodes: map[string]planner.State{},
	}
	etcd, err := kube.EtcdVersion(c.Spec.Version)
	if err != nil {
		return in, fmt.Errorf("spec.version: %w", err)
	}
	changed := map[string]*kube.NodeChange{}
	for i := range changes.Nodes {
		// Routes, labels and the local load balancer follow other nodes and interrupt nothing.
		if n := &changes.Nodes[i]; n.Change == kube.Changed && len(n.Files)+len(n.Units)+len(n.Certificates) > 0 {
			changed[n.Machine] = n
		}
	}
	byName := map[string]*v1alpha1.Machine{}
	for i := range machines {
		byName[machines[i].Name] = &machines[i]
	}
	groupOf := map[string]*planner.Group{}
	for _, g := range ownGroups(c.Name, groups) {
		roles := planner.Roles{Etcd: g.HasRole(v1alpha1.RoleEtcd), ControlPlane: g.HasRole(v1alpha1.RoleControlPlane), Worker: g.HasRole(v1alpha1.RoleWorker)}
		in.Wanted.Groups = append(in.Wanted.Groups, planner.Group{
			Name: g.Name, Roles: roles, Replicas: g.WantedReplicas(), State: stateOf(roles, c.Spec.Version, etcd, configNow), Rollout: rolloutOf(c, &g),
		})
	}
	for i := range in.Wanted.Groups {
		groupOf[in.Wanted.Groups[i].Name] = &in.Wanted.Groups[i]
	}
	has := map[string]bool{}
	for _, n := range c.Status.Nodes {
		has[n.Machine] = true
		node, member, err := observed(n, byName[n.Machine], groupOf[n.Group])
		if err != nil {
			return in, err
		}
		if g, change := groupOf[n.Group], changed[n.Machine]; g != nil {
			want := g.State
			if change != nil {
				want.Config = configThen
				g.ConfigTouches.Etcd = g.ConfigTouches.Etcd || slices.Contains(change.Restarts, kube.PodEtcd)
				g.ConfigTouches.APIServer = g.ConfigTouches.APIServer || slices.Contains(change.Restarts, kube.PodAPIServer)
			}
			in.Wanted.Nodes[n.Machine] = want
		}
		in.Observed.Nodes = append(in.Observed.Nodes, node)
		if member != nil {
			in.Observed.Members = append(in.Observed.Members, *member)
		}
	}
	for _, g := range in.Wanted.Groups {
		for _, name := range placed[g.Name] {
			if !has[name] {
				in.Observed.Spares = append(in.Observed.Spares, planner.Spare{Name: name, Groups: []string{g.Name}})
			}
		}
	}
	return in, nil
}

func stateOf(roles planner.Roles, kubernetes, etcd, config string) planner.State {
	s := planner.State{Kubelet: kubernetes, Config: config}
	if roles.Etcd {
		s.Etcd = etcd
	}
	if roles.ControlPlane {
		s.ControlPlane = kubernetes
	}
	return s
}

// observed is a node as it is recorded. g is nil when its group is gone.
func observed(n v1alpha1.ClusterNode, m *v1alpha1.Machine, g *planner.Group) (planner.Node, *planner.Member, error) {
	roles := planner.Roles{Etcd: n.Etcd != nil}
	if g != nil {
		roles = g.Roles
	}
	etcd := ""
	if roles.Etcd {
		var err error
		if etcd, err = kube.EtcdVersion(n.Version); err != nil {
			return planner.Node{}, nil, fmt.Errorf("machine %s: %w", n.Machine, err)
		}
	}
	node := planner.Node{
		Name: n.Machine, Group: n.Group, Has: stateOf(roles, n.Version, etcd, configNow), Ready: n.Ready, Joining: n.ReadyChangedAt == nil,
		Reachable: m != nil && m.Status.Installed != nil && m.Status.Phase != v1alpha1.PhaseLost,
		APIServer: roles.ControlPlane && n.Ready,
	}
	if up := m; up != nil && up.Status.Kubernetes != nil {
		node.Has.Kubelet = cmp.Or(up.Status.Kubernetes.Version, node.Has.Kubelet)
	}
	if n.ReadyChangedAt != nil {
		node.Since = n.ReadyChangedAt.Time
	}
	if n.Etcd == nil {
		return node, nil, nil
	}
	return node, &planner.Member{Name: n.Machine, Node: n.Machine, Healthy: n.Ready, Connected: n.Ready, InSync: n.Ready, Since: node.Since}, nil
}

func rolloutOf(c *v1alpha1.Cluster, g *v1alpha1.MachineGroup) planner.Rollout {
	r := planner.Rollout{MaxUnavailable: 1, HealthyFor: healthyFor, SkipCanary: g.Spec.Rollout.SkipCanary}
	if most := g.Spec.Rollout.MaxUnavailable; most != nil {
		if count, err := intstr.GetScaledValueFromIntOrPercent(most, g.WantedReplicas(), false); err == nil {
			r.MaxUnavailable = max(1, count)
		}
	}
	if limit := c.Spec.Upgrade.DrainTimeout; limit != nil {
		r.DrainTimeout = limit.Duration
	}
	return r
}
