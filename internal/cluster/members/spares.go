package members

import (
	"coldrack.dev/api/v1alpha1"
)

// WantSpares are the groups of a cluster whose nodes spares may replace: broken ones, or such that are rolled by replacement.
func WantSpares(c *v1alpha1.Cluster, groups []v1alpha1.MachineGroup) []*v1alpha1.MachineGroup {
	broken := map[string]bool{}
	for _, n := range c.Status.Nodes {
		broken[n.Group] = broken[n.Group] || !n.Ready
	}
	var wanted []*v1alpha1.MachineGroup
	for i := range groups {
		g := &groups[i]
		if r := &g.Spec.Remediation; g.Spec.Rollout.MaxSurge != nil || broken[g.Name] && r.Enabled && r.Replace {
			wanted = append(wanted, g)
		}
	}
	return wanted
}

// Spares are machines that are nodes of none of all clusters and are not taken, and that could become nodes, by the groups that they fit.
func Spares(groups []*v1alpha1.MachineGroup, clusters []v1alpha1.Cluster, machines []*v1alpha1.Machine, taken map[string]bool) map[string][]string {
	for i := range clusters {
		for _, n := range clusters[i].Status.Nodes {
			taken[n.Machine] = true
		}
	}
	spares := map[string][]string{}
	for _, m := range machines {
		if taken[m.Name] || !ready(m) {
			continue
		}
		for _, g := range groups {
			if fits, err := g.Matches(m); err == nil && fits {
				spares[g.Name] = append(spares[g.Name], m.Name)
			}
		}
	}
	return spares
}

// ready says whether a machine of no cluster can be expected to become a node.
func ready(m *v1alpha1.Machine) bool {
	leaves := m.WantedIntent() != nil && m.Spec.Intent.Action != v1alpha1.ActionInstall
	reported := m.Status.Inventory != nil || m.Status.Installed != nil
	return m.DeletionTimestamp == nil && !leaves && reported && !Gone(m) && m.Status.Phase != v1alpha1.PhaseLost && m.Status.Phase != v1alpha1.PhaseFailed
}
