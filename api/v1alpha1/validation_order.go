package v1alpha1

import (
	"fmt"
	"slices"

	"coldrack.dev/internal/contract/validate"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ValidateVersionStep refuses a version that the cluster's nodes, as they are recorded, cannot go to.
func ValidateVersionStep(c *Cluster) field.ErrorList {
	return validateVersionStep(c.Spec.Version, c.Status.Nodes)
}

func validateVersionStep(to string, nodes []ClusterNode) field.ErrorList {
	var runs []string
	for _, n := range nodes {
		if n.Version != "" {
			runs = append(runs, n.Version)
		}
	}
	slices.Sort(runs)
	if err := validate.VersionStep(to, slices.Compact(runs)...); err != nil {
		return field.ErrorList{field.Invalid(field.NewPath("spec", "version"), to, err.Error())}
	}
	return nil
}

// ValidateServers refuses groups that would leave a cluster which has nodes without etcd, without a control plane, or with
// an even number of etcd members. at is the field that is blamed.
func ValidateServers(at *field.Path, c *Cluster, groups []MachineGroup) field.ErrorList {
	if len(c.Status.Nodes) == 0 || c.DeletionTimestamp != nil {
		return nil
	}
	var errs field.ErrorList
	refuse := func(format string, args ...any) {
		errs = append(errs, field.Forbidden(at, fmt.Sprintf(format, args...)))
	}
	const end = "; want at least one. To end the cluster, delete the Cluster"
	switch etcd := roleCount(groups, RoleEtcd); {
	case etcd == 0:
		refuse("no machine of Cluster %s would hold etcd, and all that it knows would be gone"+end, c.Name)
	case etcd%2 == 0 && !c.Spec.Etcd.AllowEvenMembers:
		refuse("Cluster %s would have %d etcd members, which tolerate no more failures than %d: want %d or %d, or set spec.etcd.allowEvenMembers of the Cluster",
			c.Name, etcd, etcd-1, etcd-1, etcd+1)
	}
	if roleCount(groups, RoleControlPlane) == 0 {
		refuse("Cluster %s would have no control plane, and so no API"+end, c.Name)
	}
	return errs
}

// ValidateDeparture refuses to wipe a machine that a running cluster rests on: without it etcd would have no majority, or no
// API server would answer. It counts by what status says of the nodes.
func ValidateDeparture(at *field.Path, m *Machine, clusters []Cluster, groups []MachineGroup) field.ErrorList {
	for i := range clusters {
		c := &clusters[i]
		here := slices.IndexFunc(c.Status.Nodes, func(n ClusterNode) bool { return n.Machine == m.Name })
		if here < 0 || c.DeletionTimestamp != nil || c.Annotations[AnnotationAbandon] == "true" || !meta.IsStatusConditionTrue(c.Status.Conditions, ConditionBroughtUp) {
			continue
		}
		end := fmt.Sprintf("To end the cluster, delete Cluster %s first", c.Name)
		node := &c.Status.Nodes[here]
		members, healthy, servers := 0, 0, 0
		for j := range c.Status.Nodes {
			n := &c.Status.Nodes[j]
			if n.Etcd != nil {
				members++
			}
			if j == here || !n.Ready {
				continue
			}
			if n.Etcd != nil {
				healthy++
			}
			if groupHasRole(groups, n.Group, RoleControlPlane) {
				servers++
			}
		}
		switch {
		case node.Etcd != nil && healthy < members/2+1:
			return field.ErrorList{field.Forbidden(at, fmt.Sprintf(
				"machine %s holds one of %d members of etcd of Cluster %s, and %d of the others are ready: without it there is no majority, and nothing can be written. "+
					"Bring the others back first. %s", m.Name, members, c.Name, healthy, end))}
		case groupHasRole(groups, node.Group, RoleControlPlane) && servers == 0:
			return field.ErrorList{field.Forbidden(at, fmt.Sprintf(
				"machine %s is the last control plane of Cluster %s that works. Bring another one back first. %s", m.Name, c.Name, end))}
		}
	}
	return nil
}

func groupHasRole(groups []MachineGroup, name string, role Role) bool {
	return slices.ContainsFunc(groups, func(g MachineGroup) bool { return g.Name == name && g.HasRole(role) })
}
