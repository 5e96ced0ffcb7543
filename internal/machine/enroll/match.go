package enroll

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/pattern"
)

// choose returns the policy that decides about the machine: of those that match and are not exhausted the
// one of highest priority, then by name.
func choose(m *v1alpha1.Machine, w World) *v1alpha1.EnrollmentPolicy {
	for _, policy := range byPriority(w.Policies) {
		if policy.DeletionTimestamp == nil && len(mismatches(policy.Spec.Match, m, w.Subnets)) == 0 && !exhausted(&policy, w.Machines) {
			return &policy
		}
	}
	return nil
}

func byPriority(policies []v1alpha1.EnrollmentPolicy) []v1alpha1.EnrollmentPolicy {
	return slices.SortedFunc(slices.Values(policies), func(a, b v1alpha1.EnrollmentPolicy) int {
		return cmp.Or(cmp.Compare(b.Spec.Priority, a.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})
}

func exhausted(policy *v1alpha1.EnrollmentPolicy, machines []*v1alpha1.Machine) bool {
	return policy.Spec.Limit > 0 && full(policy, enrolledBy(machines))
}

// mismatches says of every given field that does not hold for the machine what was wanted and what was found.
func mismatches(match v1alpha1.MachineMatch, m *v1alpha1.Machine, subnets []v1alpha1.Subnet) []string {
	inventory := m.Status.Inventory
	if inventory == nil {
		return []string{"the machine has not reported its inventory"}
	}
	var missed []string
	miss := func(format string, args ...any) { missed = append(missed, fmt.Sprintf(format, args...)) }
	for _, field := range []struct{ name, pattern, value string }{
		{"vendor", match.Vendor, inventory.System.Vendor},
		{"product", match.Product, inventory.System.Product},
		{"serial", match.Serial, inventory.System.Serial},
	} {
		if field.pattern != "" && !pattern.Match(field.pattern, field.value) {
			miss("%s %q is not %q", field.name, field.value, field.pattern)
		}
	}
	if len(match.MACPrefixes) > 0 && !slices.ContainsFunc(inventory.NICs, func(n v1alpha1.NIC) bool {
		return slices.ContainsFunc(match.MACPrefixes, func(p string) bool {
			return strings.HasPrefix(n.MAC, strings.ToLower(strings.ReplaceAll(p, "-", ":")))
		})
	}) {
		miss("no MAC begins with %s", strings.Join(match.MACPrefixes, " or "))
	}
	if match.MinMemory != nil && inventory.Memory.Cmp(*match.MinMemory) < 0 {
		miss("memory %s is less than %s", inventory.Memory.String(), match.MinMemory.String())
	}
	if n := len(inventory.Disks); n < int(match.MinDisks) {
		miss("it has %d disks, not %d", n, match.MinDisks)
	}
	if booted := bootedIn(m, subnets); match.Subnet != "" && match.Subnet != booted {
		miss("it booted in subnet %q, not %q", booted, match.Subnet)
	}
	if match.Selector != nil {
		if selector, err := metav1.LabelSelectorAsSelector(match.Selector); err != nil || !selector.Matches(labels.Set(m.SelectorLabels())) {
			miss("its labels do not match %s", metav1.FormatLabelSelector(match.Selector))
		}
	}
	return missed
}

// nearest says which policy comes nearest to taking the machine and what is missing, or "" when there is none.
func nearest(m *v1alpha1.Machine, w World) string {
	c := compare(m, byPriority(w.Policies), w.Subnets, enrolledBy(w.Machines))
	if c.nearest == "" {
		return ""
	}
	return fmt.Sprintf("no policy takes this machine; the nearest is %s: %s. To approve it by hand: coldrack approve %s", c.nearest, strings.Join(c.missed, ", "), m.Name)
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
