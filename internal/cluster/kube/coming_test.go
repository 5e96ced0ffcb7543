package kube

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"github.com/google/go-cmp/cmp"
)

// withComing is a preset with one more machine of its first group, whose member of etcd nobody has added yet.
func withComing(t *testing.T, preset v1alpha1.Topology) Input {
	t.Helper()
	in := testInput(t, preset, DefaultVersion())
	in.Machines = append(in.Machines, Machine{
		Name: "machine-00", Hostname: "node-00", Group: in.Machines[0].Group, Addresses: []netip.Addr{netip.MustParseAddr("10.20.0.10")},
		Interface: "enp1s0", Memory: 8 << 30, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.200.0/24")},
	})
	return in
}

// A machine whose member is to come is a node like a worker, and no other node counts on it.
func TestAMachineWhoseMemberIsToCome(t *testing.T) {
	for _, preset := range []v1alpha1.Topology{v1alpha1.TopologySmall, v1alpha1.TopologyProduction} {
		t.Run(string(preset), func(t *testing.T) {
			before, err := Render(testInput(t, preset, DefaultVersion()))
			if err != nil {
				t.Fatal(err)
			}
			in := withComing(t, preset)
			plan, err := Render(in)
			if err != nil {
				t.Fatal(err)
			}
			n := plan.Nodes["machine-00"]
			if len(n.StaticPods) > 0 {
				t.Errorf("it has the pods %v", n.StaticPods)
			}
			for _, f := range n.Files {
				if f.Secret != "" || strings.HasPrefix(f.Path, etcdDataDir) || strings.HasPrefix(f.Path, apiserverDir) {
					t.Errorf("it has %s", f.Path)
				}
			}
			var certificates []string
			for _, c := range n.Certificates {
				certificates = append(certificates, c.Name)
			}
			if !slices.Equal(certificates, []string{"kubelet-client"}) || len(n.Kubeconfigs) != 1 || n.Kubeconfigs[0].Server != "https://127.0.0.1:7445" {
				t.Errorf("it has the certificates %v and the kubeconfigs %+v", certificates, n.Kubeconfigs)
			}
			for _, p := range n.Phases {
				if slices.Contains([]PhaseName{PhaseEtcd, PhaseAPIServer, PhaseControllers, PhaseVirtualIP}, p.Name) {
					t.Errorf("it has phase %s", p.Name)
				}
				if p.Name == PhaseKubelet && !slices.Contains(p.After, PhaseCluster) {
					t.Error("its kubelet does not wait for the cluster")
				}
			}
			for name, was := range before.Nodes {
				is := plan.Nodes[name]
				is.Routes = was.Routes // to its pods
				if diff := planDiff(&Plan{Nodes: map[string]NodePlan{name: was}}, &Plan{Nodes: map[string]NodePlan{name: is}}); diff != "" {
					t.Errorf("%s counts on it:\n%s", name, diff)
				}
			}
			if diff := cmp.Diff(before.Objects, plan.Objects); diff != "" {
				t.Errorf("the cluster's objects change:\n%s", diff)
			}

			// Its taints and labels are those of what it becomes, so that no workload comes in between.
			in.Machines[len(in.Machines)-1].Etcd = &v1alpha1.EtcdMember{Existing: true, InitialCluster: []string{"node-00=https://10.20.0.10:2380"}}
			joined, err := Render(in)
			if err != nil {
				t.Fatal(err)
			}
			then := joined.Nodes["machine-00"]
			if diff := cmp.Diff([]any{n.Labels, n.Taints}, []any{then.Labels, then.Taints}); diff != "" {
				t.Errorf("labels and taints change when it joins etcd:\n%s", diff)
			}
			if command := etcdCommand(then); !slices.Contains(command, "--initial-cluster-state=existing") {
				t.Errorf("its etcd would not join: %v", command)
			}
		})
	}
}

func TestEtcdGoesFirst(t *testing.T) {
	in := testInput(t, v1alpha1.TopologySmall, "v1.36.3")
	in.Machines[0].EtcdVersion = "3.7.3"
	in.Machines[1].EtcdVersion = "3.6.9" // of an earlier Coldrack
	plan, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	for machine, want := range map[string]string{"machine-01": "3.7.3-0", "machine-02": "3.6.9-0", "machine-03": "3.6.16-0"} {
		pods := plan.Nodes[machine].StaticPods
		if image := pods[0].Pod.Spec.Containers[0].Image; image != imageRepository+"/etcd:"+want {
			t.Errorf("%s runs %s, want %s", machine, image, want)
		}
		if image := pods[1].Pod.Spec.Containers[0].Image; !strings.HasSuffix(image, ":v1.36.3") {
			t.Errorf("the API server of %s is %s", machine, image)
		}
		if !slices.Contains(plan.Requirements.Images, imageRepository+"/etcd:"+want) {
			t.Errorf("%s is not required of the bundles", want)
		}
	}
	in.Cluster.Spec.Etcd.ExtraArgs = map[string]string{"discovery": "x"} // etcd 3.6 knows it
	if _, err := Render(in); err == nil || !strings.Contains(err.Error(), "was removed in etcd 3.7") {
		t.Errorf("a flag that one of the members does not know: %v", err)
	}
	in.Cluster.Spec.Etcd.ExtraArgs, in.Machines[2].EtcdVersion = nil, "4.0.0"
	if _, err := Render(in); err == nil || !strings.Contains(err.Error(), `machine machine-03: unknown version of etcd "4.0.0": this Coldrack can render 3.6.16, 3.7.3`) {
		t.Errorf("an unknown version: %v", err)
	}
}
