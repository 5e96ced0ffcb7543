package kube

import (
	"net/netip"
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
)

func TestAssign(t *testing.T) {
	groups := []v1alpha1.MachineGroup{
		{Spec: v1alpha1.MachineGroupSpec{Roles: []v1alpha1.Role{v1alpha1.RoleEtcd, v1alpha1.RoleControlPlane}}},
		{Spec: v1alpha1.MachineGroupSpec{Roles: []v1alpha1.Role{v1alpha1.RoleWorker}}},
	}
	groups[0].Name, groups[1].Name = "etcd", "workers"
	machine := func(name, address, group string) Machine {
		return Machine{Name: name, Hostname: name, Group: group, Addresses: []netip.Addr{netip.MustParseAddr(address)}}
	}
	with := func(m Machine, pods string, members ...string) Machine {
		m.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(pods)}
		if len(members) > 0 {
			m.Etcd = &v1alpha1.EtcdMember{InitialCluster: members}
		}
		return m
	}
	tests := []struct {
		name     string
		network  v1alpha1.ClusterNetwork
		machines []Machine
		running  []string
		want     []string // "name pods | members", with "existing" in front of members that join
		err      string
	}{
		{"new machines get networks by name and start etcd together", v1alpha1.ClusterNetwork{},
			[]Machine{machine("c", "10.0.0.3", "etcd"), machine("a", "10.0.0.1", "etcd"), machine("b", "10.0.0.2", "workers")}, nil,
			[]string{"c 10.244.2.0/24 | a=https://10.0.0.1:2380,c=https://10.0.0.3:2380", "a 10.244.0.0/24 | a=https://10.0.0.1:2380,c=https://10.0.0.3:2380", "b 10.244.1.0/24"}, ""},
		{"what a machine has stays, and holes are filled", v1alpha1.ClusterNetwork{},
			[]Machine{machine("a", "10.0.0.1", "workers"), with(machine("b", "10.0.0.2", "workers"), "10.244.0.0/24"), with(machine("c", "10.0.0.3", "workers"), "10.244.2.0/24"), machine("d", "10.0.0.4", "workers")}, nil,
			[]string{"a 10.244.1.0/24", "b 10.244.0.0/24", "c 10.244.2.0/24", "d 10.244.3.0/24"}, ""},
		{"a member that comes later joins the running ones", v1alpha1.ClusterNetwork{},
			[]Machine{with(machine("a", "10.0.0.1", "etcd"), "10.244.0.0/24", "a=https://10.0.0.1:2380"), machine("b", "10.0.0.2", "etcd")}, []string{"a=https://10.0.0.1:2380"},
			[]string{"a 10.244.0.0/24 | a=https://10.0.0.1:2380", "b 10.244.1.0/24 | existing a=https://10.0.0.1:2380,b=https://10.0.0.2:2380"}, ""},
		{"a machine that comes later has no member until the running ones are known", v1alpha1.ClusterNetwork{},
			[]Machine{with(machine("a", "10.0.0.1", "etcd"), "10.244.0.0/24", "a=https://10.0.0.1:2380"), machine("b", "10.0.0.2", "etcd")}, nil,
			[]string{"a 10.244.0.0/24 | a=https://10.0.0.1:2380", "b 10.244.1.0/24"}, ""},
		{"no room is an error", v1alpha1.ClusterNetwork{PodCIDRs: []string{"10.244.0.0/23"}},
			[]Machine{machine("a", "10.0.0.1", "workers"), machine("b", "10.0.0.2", "workers"), machine("c", "10.0.0.3", "workers")}, nil,
			nil, "spec.network.podCIDRs[0]: 10.244.0.0/23 has no room for the pods of machine c with a /24"},
		{"the end of the address space is an error", v1alpha1.ClusterNetwork{PodCIDRs: []string{"255.255.255.0/24"}},
			[]Machine{machine("a", "10.0.0.1", "workers"), machine("b", "10.0.0.2", "workers")}, nil, nil, "has no room for the pods of machine b"},
		{"both families", v1alpha1.ClusterNetwork{PodCIDRs: []string{"10.244.0.0/16", "fd00:244::/48"}},
			[]Machine{machine("a", "10.0.0.1", "workers"), machine("b", "10.0.0.2", "workers")}, nil,
			[]string{"a 10.244.0.0/24,fd00:244::/64", "b 10.244.1.0/24,fd00:244:0:1::/64"}, ""},
		{"masks that end within a byte", v1alpha1.ClusterNetwork{PodCIDRs: []string{"10.244.0.0/16"}, NodeMaskIPv4: 26},
			[]Machine{machine("a", "10.0.0.1", "workers"), machine("b", "10.0.0.2", "workers"), with(machine("c", "10.0.0.3", "workers"), "10.244.0.128/26"), machine("d", "10.0.0.4", "workers"), machine("e", "10.0.0.5", "workers")}, nil,
			[]string{"a 10.244.0.0/26", "b 10.244.0.64/26", "c 10.244.0.128/26", "d 10.244.0.192/26", "e 10.244.1.0/26"}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cluster := &v1alpha1.Cluster{Spec: v1alpha1.ClusterSpec{Network: test.network}}
			assigned, err := Assign(cluster, groups, test.machines, test.running)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got error %v, want one with %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for i, m := range assigned {
				got := m.Name + " " + join(m.PodCIDRs)
				if m.Etcd != nil {
					got += " | "
					if m.Etcd.Existing {
						got += "existing "
					}
					got += strings.Join(m.Etcd.InitialCluster, ",")
				}
				if got != test.want[i] {
					t.Errorf("got  %s\nwant %s", got, test.want[i])
				}
			}
			again, err := Assign(cluster, groups, assigned, test.running)
			if err != nil || planDiff(&Plan{Nodes: map[string]NodePlan{"": {PodCIDRs: again[0].PodCIDRs}}}, &Plan{Nodes: map[string]NodePlan{"": {PodCIDRs: assigned[0].PodCIDRs}}}) != "" {
				t.Errorf("assigning again changed something: %v, %v, %v", err, again, assigned)
			}
		})
	}
}
