package enroll

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"coldrack.dev/api/v1alpha1"
)

// assignAddress gives the machine the lowest free address of its subnet's static range, when it has none and the
// subnet has such a range.
func assignAddress(m *v1alpha1.Machine, w World) (held string) {
	if m.Spec.Network != nil && m.Spec.Network.Address != "" {
		return ""
	}
	subnet, named := subnetOf(m, w.Subnets)
	if subnet == nil {
		if named != "" {
			return fmt.Sprintf("subnet %s does not exist or is not valid; see: kubectl get subnets", named)
		}
		return fmt.Sprintf("no subnet to take an address from: set spec.network of machine %s", m.Name)
	}
	if subnet.Spec.Static == "" {
		return fmt.Sprintf("subnet %s has no spec.static to take an address from; give it one, or set spec.network.address of machine %s", subnet.Name, m.Name)
	}
	free, err := freeAddress(subnet, m, w)
	if err != nil {
		return err.Error()
	}
	if m.Spec.Network == nil {
		m.Spec.Network = &v1alpha1.MachineNetwork{}
	}
	m.Spec.Network.Subnet, m.Spec.Network.Address = subnet.Name, free.String()
	return ""
}

// subnetOf is the subnet that the machine's address shall be of: the one that is written down, else the one
// that it booted in, else the only one with a static range.
func subnetOf(m *v1alpha1.Machine, subnets []v1alpha1.Subnet) (subnet *v1alpha1.Subnet, named string) {
	if m.Spec.Network != nil {
		named = m.Spec.Network.Subnet
	}
	want := cmp.Or(named, bootedIn(m, subnets))
	var static []*v1alpha1.Subnet
	for i := range subnets {
		if subnets[i].Name == want {
			return &subnets[i], named
		}
		if subnets[i].Spec.Static != "" {
			static = append(static, &subnets[i])
		}
	}
	if want == "" && len(static) == 1 {
		return static[0], ""
	}
	return nil, named
}

func freeAddress(subnet *v1alpha1.Subnet, m *v1alpha1.Machine, w World) (netip.Addr, error) {
	static, err := v1alpha1.ParseAddressRange(subnet.Spec.Static)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("subnet %s: spec.static: %w", subnet.Name, err)
	}
	taken := map[netip.Addr]bool{}
	take := func(addresses ...string) {
		for _, a := range addresses {
			if address, err := netip.ParseAddr(a); err == nil {
				taken[address] = true
			}
		}
	}
	take(subnet.Spec.Gateway)
	take(subnet.Spec.DNS...)
	take(subnet.Spec.NTP...)
	take(subnet.Spec.Relays...)
	for _, a := range w.Reserved {
		taken[a] = true
	}
	for _, other := range w.Machines {
		if other.Name == m.Name {
			continue
		}
		if other.Spec.Network != nil {
			take(other.Spec.Network.Address)
			for _, further := range other.Spec.Network.Addresses {
				address, _, _ := strings.Cut(further.Address, "/")
				take(address)
			}
		}
		if other.Status.Lease != nil {
			take(other.Status.Lease.Address)
		}
	}
	for a := static.First; static.Contains(a); a = a.Next() {
		if !taken[a] {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no free address in spec.static (%s) of subnet %s; enlarge it, or delete machines that no longer exist", static, subnet.Name)
}
