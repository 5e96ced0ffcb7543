package enroll

import (
	"cmp"
	"net/netip"
	"path"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coldrack.dev/api/v1alpha1"
)

// choose returns the policy that decides about the machine: of those that match and are not exhausted the
// one of highest priority, then by name.
func choose(m *v1alpha1.Machine, w World) *v1alpha1.EnrollmentPolicy {
	sorted := slices.SortedFunc(slices.Values(w.Policies), func(a, b v1alpha1.EnrollmentPolicy) int {
		return cmp.Or(cmp.Compare(b.Spec.Priority, a.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})
	for i := range sorted {
		if policy := &sorted[i]; policy.DeletionTimestamp == nil && matches(policy.Spec.Match, m, w.Subnets) && !exhausted(policy, w.Machines) {
			return policy
		}
	}
	return nil
}

func exhausted(policy *v1alpha1.EnrollmentPolicy, machines []*v1alpha1.Machine) bool {
	if policy.Spec.Limit == 0 {
		return false
	}
	n := int32(0)
	for _, m := range machines {
		if m.Annotations[v1alpha1.AnnotationEnrolledBy] == policy.Name {
			n++
		}
	}
	return n >= policy.Spec.Limit
}

// matches says whether every given field holds for the machine.
func matches(match v1alpha1.MachineMatch, m *v1alpha1.Machine, subnets []v1alpha1.Subnet) bool {
	inventory := m.Status.Inventory
	if inventory == nil {
		return false
	}
	pattern := func(pattern, value string) bool {
		ok, err := path.Match(pattern, value)
		return pattern == "" || (err == nil && ok)
	}
	prefixed := len(match.MACPrefixes) == 0 || slices.ContainsFunc(inventory.NICs, func(n v1alpha1.NIC) bool {
		return slices.ContainsFunc(match.MACPrefixes, func(p string) bool {
			return strings.HasPrefix(n.MAC, strings.ToLower(strings.ReplaceAll(p, "-", ":")))
		})
	})
	selected := true
	if match.Selector != nil {
		selector, err := metav1.LabelSelectorAsSelector(match.Selector)
		selected = err == nil && selector.Matches(labels.Set(m.Labels))
	}
	return pattern(match.Vendor, inventory.System.Vendor) && pattern(match.Product, inventory.System.Product) &&
		pattern(match.Serial, inventory.System.Serial) && prefixed && selected &&
		(match.MinMemory == nil || inventory.Memory.Cmp(*match.MinMemory) >= 0) &&
		len(inventory.Disks) >= int(match.MinDisks) &&
		(match.Subnet == "" || match.Subnet == bootedIn(m, subnets))
}

// bootedIn is the name of the subnet in which the machine is now, or "".
func bootedIn(m *v1alpha1.Machine, subnets []v1alpha1.Subnet) string {
	at := m.Status.Address
	if lease := m.Status.Lease; lease != nil {
		// DHCP knows segments by their CIDR, people by their name.
		for _, s := range subnets {
			if lease.Subnet != "" && (lease.Subnet == s.Name || lease.Subnet == s.Spec.CIDR) {
				return s.Name
			}
		}
		at = lease.Address
	}
	address, err := netip.ParseAddr(at)
	if err != nil {
		return ""
	}
	for _, s := range subnets {
		if prefix, err := netip.ParsePrefix(s.Spec.CIDR); err == nil && prefix.Contains(address) {
			return s.Name
		}
	}
	return ""
}
