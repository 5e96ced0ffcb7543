package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
)

// Assign decides what a machine keeps for as long as it belongs to the cluster: its pod networks and how its
// etcd member comes into being. Machines that have theirs keep it; the result is in the order of the input.
// The caller records it (Cluster status.nodes) before any node acts on it.
//
// While no machine has an etcd member, all of them start one cluster together. Once one has, a further one
// joins what exists, which somebody must have announced to etcd: Assign takes running to be the members that
// etcd itself names, as "name=peerURL"; the new machine's own is added. Without running, it gets no member yet.
func Assign(cluster *v1alpha1.Cluster, groups []v1alpha1.MachineGroup, machines []Machine, running []string) ([]Machine, error) {
	c := cluster.DeepCopy()
	c.Default()
	out := slices.Clone(machines)
	order := make([]int, len(out))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return strings.Compare(out[a].Name, out[b].Name) })

	for family, cidr := range c.Spec.Network.PodCIDRs {
		pods, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("spec.network.podCIDRs[%d]: %w", family, err)
		}
		bits := int(c.Spec.Network.NodeMaskIPv4)
		if pods.Addr().Is6() {
			bits = int(c.Spec.Network.NodeMaskIPv6)
		}
		taken := map[netip.Prefix]bool{}
		for _, m := range out {
			for _, p := range m.PodCIDRs {
				taken[p] = true
			}
		}
		next := netip.PrefixFrom(pods.Masked().Addr(), bits)
		for _, i := range order {
			if len(out[i].PodCIDRs) > family {
				continue
			}
			for taken[next] {
				next = following(next)
			}
			if !next.IsValid() || !pods.Overlaps(next) {
				return nil, fmt.Errorf("spec.network.podCIDRs[%d]: %s has no room for the pods of machine %s with a /%d for each node; "+
					"%d machines have theirs", family, cidr, out[i].Name, bits, len(taken))
			}
			taken[next] = true
			out[i].PodCIDRs = append(slices.Clone(out[i].PodCIDRs), next)
		}
	}

	roles := map[string][]v1alpha1.Role{}
	for _, g := range groups {
		roles[g.Name] = g.Spec.Roles
	}
	var initial []string
	born := true
	for _, i := range order {
		m := out[i]
		if !slices.Contains(roles[m.Group], v1alpha1.RoleEtcd) {
			continue
		}
		if m.Etcd != nil {
			born = false
		}
		if len(m.Addresses) == 0 {
			return nil, fmt.Errorf("machine %s is to have an etcd member but has no address", m.Name)
		}
		initial = append(initial, initialMember(m))
	}
	for _, i := range order {
		m := &out[i]
		if m.Etcd != nil || !slices.Contains(roles[m.Group], v1alpha1.RoleEtcd) {
			continue
		}
		if born {
			m.Etcd = &v1alpha1.EtcdMember{InitialCluster: initial}
			continue
		}
		if len(running) == 0 {
			continue
		}
		members := slices.Clone(running)
		if own := initialMember(*m); !slices.Contains(members, own) {
			members = append(members, own)
		}
		slices.Sort(members)
		m.Etcd = &v1alpha1.EtcdMember{InitialCluster: members, Existing: true}
	}
	return out, nil
}

// following is the network of the same size after p, or an invalid one at the end of the address space.
func following(p netip.Prefix) netip.Prefix {
	bytes := p.Addr().AsSlice()
	for bit := p.Bits() - 1; bit >= 0; bit-- {
		mask := byte(1) << (7 - bit%8)
		bytes[bit/8] ^= mask
		if bytes[bit/8]&mask != 0 {
			address, _ := netip.AddrFromSlice(bytes)
			return netip.PrefixFrom(address, p.Bits())
		}
	}
	return netip.Prefix{}
}

func initialMember(m Machine) string {
	return m.Hostname + "=" + urlOf(m.Addresses[0], etcdPeerPort)
}

func urlOf(address netip.Addr, port uint16) string {
	return "https://" + netip.AddrPortFrom(address, port).String()
}
