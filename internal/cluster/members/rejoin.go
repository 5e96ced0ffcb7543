package members

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
)

// Registered is a Node of a cluster's own API, as far as it says which system registered it.
type Registered struct {
	// Created by the clock of the cluster's API server, in whole seconds.
	Created time.Time
	// Ready is the condition of that name. It stays true for most of a minute after a kubelet has stopped.
	Ready bool
	// BootID of the system whose kubelet reported last; empty before its first report.
	BootID string
	// PodCIDRs of the Node, one of each family; none before somebody gave it networks.
	PodCIDRs []netip.Prefix
}

// Owner says whose a Node is that the cluster does not record, and that has the name of a machine.
type Owner int

const (
	// OwnerUnclear: its system may work. The Node is left alone, and the machine does not join.
	OwnerUnclear Owner = iota
	// OwnerPresent: it is of the system that the machine has now. The Node stays, and the machine joins with its pod networks.
	OwnerPresent
	// OwnerFormer: it is of a system that is gone or about to be wiped. The Node is deleted, and the machine joins afterwards: it would
	// get the pod networks and taints of the former one.
	OwnerFormer
)

// OwnerOf judges a Node of m's name, and says why where that is unclear. foreign is true for a Node that passes for one that joined by
// other means, which may have had the name before m had it.
//
// The store may be a restored or a new one, and then knows less than is true. So an installation proves that an earlier one is gone only
// where it was carried out, not where it was adopted; and a Node of the boot that the machine reports is never of a former system.
func OwnerOf(m *v1alpha1.Machine, n Registered, foreign bool) (owner Owner, why string) {
	if i := m.WantedIntent(); i != nil && i.Action != v1alpha1.ActionInstall {
		if foreign {
			return OwnerUnclear, "it joined by other means"
		}
		return OwnerFormer, ""
	}
	installed, boot := m.Status.Installed, ""
	if m.Status.Node != nil {
		boot = m.Status.Node.BootID
	}
	switch end, wiped := endOf(m); {
	case installed != nil && boot != "" && boot == n.BootID:
		return OwnerPresent, ""
	case installed != nil && installed.Image == v1alpha1.AdoptedImage:
		return OwnerUnclear, "the machine's installation was adopted, and does not report the boot that the Node is of"
	case end.IsZero() && (!wiped || foreign):
		return OwnerUnclear, "it is not known to be of a former installation"
	case !end.IsZero() && !n.Created.Before(end) && installed != nil:
		return OwnerPresent, ""
	case !end.IsZero() && !n.Created.Before(end):
		return OwnerUnclear, "it registered after the machine was released"
	case installed == nil:
		return OwnerFormer, ""
	case n.Ready:
		return OwnerUnclear, "it is older than the machine's installation and counts as ready"
	case !wiped && foreign:
		return OwnerUnclear, "it joined by other means"
	case !wiped && boot == "":
		return OwnerUnclear, "the machine has not reported in which boot it is"
	}
	return OwnerFormer, ""
}

// endOf is when the last system of a machine had ended that is not its present one, the zero time when that is not known. wiped is true
// where Coldrack itself ended a system of its own.
func endOf(m *v1alpha1.Machine) (at time.Time, wiped bool) {
	if done := m.Status.Intent; done != nil && done.Action != v1alpha1.ActionInstall && done.State == v1alpha1.IntentSucceeded {
		if done.FinishedAt != nil {
			at = done.FinishedAt.Time
		}
		return at, true
	}
	if m.Status.Installed != nil {
		at = m.Status.Installed.At.Time
	}
	return at, false
}

// mayJoin says whether a machine that the cluster does not record can become a node now, with which pod networks if it brings some, and
// otherwise why not.
func mayJoin(s Situation, m *v1alpha1.Machine, nodeName string, server bool, others []v1alpha1.ClusterNode) (networks []string, problem string) {
	if s.Unread && !server {
		return nil, fmt.Sprintf("machine %s joins when the cluster's API has said which Nodes it has", m.Name)
	}
	n, there := s.Registered[nodeName]
	if !there {
		return nil, ""
	}
	foreign := slices.ContainsFunc(s.Cluster.Status.ForeignNodes, func(f v1alpha1.ForeignNode) bool { return f.Name == nodeName })
	switch owner, why := OwnerOf(m, n, foreign); owner {
	case OwnerFormer:
		return nil, fmt.Sprintf("machine %s joins when Node %s of its former installation is deleted, which is being done", m.Name, nodeName)
	case OwnerUnclear:
		return nil, fmt.Sprintf("machine %s does not join: the cluster has a Node %s already, and %s; if nothing of it runs any more: kubectl delete node %s", m.Name, nodeName, why, nodeName)
	}
	return bringsAlong(s.Cluster, m.Name, nodeName, n.PodCIDRs, others)
}

// bringsAlong are the pod networks of a Node that stays, as they are recorded. They cannot be changed.
func bringsAlong(c *v1alpha1.Cluster, machine, nodeName string, networks []netip.Prefix, others []v1alpha1.ClusterNode) (texts []string, problem string) {
	if len(networks) == 0 {
		return nil, ""
	}
	c = c.DeepCopy()
	c.Default()
	refuse := func(why string) ([]string, string) {
		return nil, fmt.Sprintf("machine %s does not join: its Node %s has pod networks %s, %s: drain the node, delete it, and let it register again",
			machine, nodeName, strings.Join(prefixTexts(networks), ","), why)
	}
	if len(networks) != len(c.Spec.Network.PodCIDRs) {
		return refuse("not one of each that the cluster has")
	}
	for i, cidr := range c.Spec.Network.PodCIDRs {
		if all, err := netip.ParsePrefix(cidr); err != nil || all.Bits() > networks[i].Bits() || !all.Contains(networks[i].Addr()) {
			return refuse("which are not within " + cidr)
		}
	}
	for _, o := range others {
		for _, text := range o.PodCIDRs {
			if p, err := netip.ParsePrefix(text); err == nil && slices.ContainsFunc(networks, p.Overlaps) {
				return refuse("and " + text + " belongs to node " + o.NodeName)
			}
		}
	}
	for _, f := range c.Status.ForeignNodes {
		for _, text := range f.PodCIDRs {
			if p, err := netip.ParsePrefix(text); err == nil && f.Name != nodeName && slices.ContainsFunc(networks, p.Overlaps) {
				return refuse("and " + text + " belongs to node " + f.Name)
			}
		}
	}
	return prefixTexts(networks), ""
}
