package kube

import (
	"net/netip"
	"testing"

	"coldrack.dev/api/v1alpha1"
)

type networkVariant struct {
	name   string
	change func(*Input)
}

func networkVariants() []networkVariant {
	addIPv6 := func(in *Input) {
		for i := range in.Machines {
			m := &in.Machines[i]
			m.Addresses = append(m.Addresses, netip.MustParseAddr("fd00:20::10").Next())
			for range i {
				m.Addresses[1] = m.Addresses[1].Next()
			}
		}
	}
	return []networkVariant{
		{"flannel", func(in *Input) { in.Cluster.Spec.Network.Plugin = v1alpha1.NetworkFlannel }},
		{"dual-stack", func(in *Input) {
			in.Cluster.Spec.Network.PodCIDRs = []string{"10.244.0.0/16", "fd00:244::/48"}
			in.Cluster.Spec.Network.ServiceCIDRs = []string{"10.96.0.0/16", "fd00:96::/112"}
			addIPv6(in)
		}},
		{"ipv6", func(in *Input) {
			in.Cluster.Spec.Network.PodCIDRs = []string{"fd00:244::/48"}
			in.Cluster.Spec.Network.ServiceCIDRs = []string{"fd00:96::/112"}
			addIPv6(in)
			for i := range in.Machines {
				in.Machines[i].Addresses = in.Machines[i].Addresses[1:]
			}
		}},
	}
}

func TestRenderingTwiceGivesTheSame(t *testing.T) {
	in := testInput(t, v1alpha1.TopologyProduction, DefaultVersion())
	first, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	for i, j := 0, len(in.Machines)-1; i < j; i, j = i+1, j-1 {
		in.Machines[i], in.Machines[j] = in.Machines[j], in.Machines[i]
	}
	second, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	if diff := planDiff(first, second); diff != "" {
		t.Errorf("the order of machines changed the plan:\n%s", diff)
	}
}
