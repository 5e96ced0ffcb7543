package controllers

import (
	"cmp"
	"context"
	"slices"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/members"
)

// removeFormerNodes deletes the Nodes of systems that machines had before: a kubelet that started once more, before its machine was wiped,
// has registered again. A machine that comes back joins when that is done.
func (o *operation) removeFormerNodes(ctx context.Context) {
	state := o.apis.state(o.c.Name)
	if state == nil || !state.Reachable {
		return
	}
	former := formerNodes(&o.c.Status, state.Nodes, o.Fleet.List())
	if len(former) == 0 {
		return
	}
	link, err := o.sights.link(o.c)
	if err != nil {
		o.Log.Warn("cannot remove nodes of former installations", "cluster", o.c.Name, "nodes", former, "err", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	for _, name := range former {
		switch removed, err := link.api.RemoveFormer(ctx, state.Nodes[name]); {
		case err != nil:
			o.Log.Warn("cannot remove the node of a former installation", "cluster", o.c.Name, "node", name, "err", err)
		case removed:
			o.c.Status.ForeignNodes = slices.DeleteFunc(o.c.Status.ForeignNodes, func(n v1alpha1.ForeignNode) bool { return n.Name == name })
			o.Log.Info("removed the node of a former installation", "cluster", o.c.Name, "node", name)
		}
	}
}

// formerNodes are those of the API's nodes that the cluster does not record, and that are of a former installation of a machine of their
// name, in order of the machines.
func formerNodes(s *v1alpha1.ClusterStatus, nodes map[string]kubeapi.NodeState, machines []*v1alpha1.Machine) (former []string) {
	unknown := map[string]bool{}
	for name := range nodes {
		unknown[name] = true
	}
	for _, n := range s.Nodes {
		delete(unknown, n.NodeName)
	}
	if len(unknown) == 0 {
		return nil
	}
	for _, m := range machines {
		name := cmp.Or(m.Spec.Hostname, m.Name)
		if !unknown[name] {
			continue
		}
		if owner, _ := members.OwnerOf(m, registered(nodes[name]), passesForForeign(s, name)); owner == members.OwnerFormer {
			former = append(former, name)
		}
	}
	return former
}

func passesForForeign(s *v1alpha1.ClusterStatus, node string) bool {
	return slices.ContainsFunc(s.ForeignNodes, func(n v1alpha1.ForeignNode) bool { return n.Name == node })
}

func registered(n kubeapi.NodeState) members.Registered {
	return members.Registered{Created: n.Created, Ready: n.Ready, BootID: n.BootID, PodCIDRs: n.PodCIDRs}
}

// registeredIn are all of a cluster's nodes as its API has them; unread is true while a cluster that was brought up has not said them.
func registeredIn(c *v1alpha1.Cluster, state *kubeapi.State) (nodes map[string]members.Registered, unread bool) {
	if state == nil || !state.Reachable || state.Nodes == nil {
		return nil, members.BroughtUp(c)
	}
	nodes = map[string]members.Registered{}
	for name, n := range state.Nodes {
		nodes[name] = registered(n)
	}
	return nodes, false
}
