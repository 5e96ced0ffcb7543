package kube

import (
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

func TestPresets(t *testing.T) {
	for _, test := range []struct {
		name    string
		preset  v1alpha1.Topology
		options PresetOptions
		want    []string
	}{
		{"laptop", v1alpha1.TopologyLaptop, PresetOptions{Name: "one", Workers: -1}, []string{"one-all 1"}},
		{"small", v1alpha1.TopologySmall, PresetOptions{Name: "lab", Workers: -1, Profile: "nvme"}, []string{"lab-all 3"}},
		{"small with five", v1alpha1.TopologySmall, PresetOptions{Name: "lab", Servers: 5, Workers: -1, VirtualIP: "10.20.0.5"}, []string{"lab-all 5"}},
		{"development", v1alpha1.TopologyDevelopment, PresetOptions{Name: "dev", Workers: 7, Version: "v1.36.3"}, []string{"dev-control 1", "dev-workers 7"}},
		{"development without workers of its own would have nowhere to run pods", v1alpha1.TopologyDevelopment, PresetOptions{Name: "dev", Workers: -1}, []string{"dev-control 1", "dev-workers 2"}},
		{"production of another size and network", v1alpha1.TopologyProduction, PresetOptions{Name: "rack", Servers: 5, ControlPlanes: 3, Workers: 1,
			Host: "api.example.org", VirtualIP: "10.20.0.5", Plugin: v1alpha1.NetworkFlannel, PodCIDR: "10.128.0.0/14", ServiceCIDR: "172.30.0.0/16"},
			[]string{"rack-etcd 5", "rack-control 3", "rack-workers 1"}},
		{"production", v1alpha1.TopologyProduction, PresetOptions{Name: "rack", Workers: -1, VirtualIP: "fd00::5"}, []string{"rack-etcd 3", "rack-control 2", "rack-workers 3"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cluster, groups, err := Preset(test.preset, test.options)
			if err != nil {
				t.Fatal(err)
			}
			text, err := PresetYAML(test.preset, test.options)
			if err != nil {
				t.Fatal(err)
			}
			documents := strings.Split(string(text), "---\n")
			var written v1alpha1.Cluster
			if err := yaml.UnmarshalStrict([]byte(documents[0]), &written); err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
			if diff := cmp.Diff(cluster, &written); diff != "" {
				t.Errorf("the YAML is not the preset (- preset, + YAML):\n%s", diff)
			}
			for i, g := range groups {
				var written v1alpha1.MachineGroup
				if err := yaml.UnmarshalStrict([]byte(documents[i+1]), &written); err != nil {
					t.Fatalf("%v in\n%s", err, text)
				}
				if diff := cmp.Diff(g, written); diff != "" {
					t.Errorf("the YAML is not the preset (- preset, + YAML):\n%s", diff)
				}
				if errs := v1alpha1.ValidateMachineGroup(&g); len(errs) > 0 {
					t.Error(errs)
				}
			}
			if errs := v1alpha1.ValidateCluster(cluster, v1alpha1.ClusterFacts{Groups: groups, Versions: KnownVersions()}); len(errs) > 0 {
				t.Error(errs)
			}
		})
	}
}

func TestProductionWithoutEndpointIsRefused(t *testing.T) {
	cluster, groups, err := Preset(v1alpha1.TopologyProduction, PresetOptions{Name: "rack", Workers: -1})
	if err != nil {
		t.Fatal(err)
	}
	errs := v1alpha1.ValidateCluster(cluster, v1alpha1.ClusterFacts{Groups: groups})
	if len(errs) != 1 || errs[0].Field != "spec.endpoint" {
		t.Errorf("want the one error that nobody but the user can set right, got %v", errs)
	}
}
