package kube

import (
	"slices"
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"sigs.k8s.io/yaml"
)

func presetCluster(t *testing.T, o PresetOptions) *v1alpha1.Cluster {
	t.Helper()
	o.Name = "lab"
	cluster, _, err := Preset(v1alpha1.TopologySmall, o)
	if err != nil {
		t.Fatal(err)
	}
	return cluster
}

func TestRequirementsWithoutMachinesAreThoseWithThem(t *testing.T) {
	input := testInput(t, v1alpha1.TopologySmall, "v1.37.2")
	plan, err := Render(input)
	if err != nil {
		t.Fatal(err)
	}
	alone, err := RequirementsOf(input.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(alone.Images, plan.Requirements.Images) || !slices.Equal(alone.Programs, plan.Requirements.Programs) || !slices.Equal(alone.Packages, plan.Requirements.Packages) {
		t.Errorf("without machines: %+v\nwith them: %+v", alone, plan.Requirements)
	}
	input.Cluster.Spec.Version = "v1.2.3"
	if _, err := RequirementsOf(input.Cluster); err == nil || !strings.Contains(err.Error(), "spec.version") {
		t.Errorf("an unknown version: %v", err)
	}
}

// supplyOf has everything that is required.
func supplyOf(r Requirements) Supply {
	s := Supply{Images: map[string]string{}, Systems: []System{{Name: "debian-12", Place: "bundle default", Packages: slices.Clone(r.Packages)}}}
	for _, image := range r.Images {
		s.Images[image] = "bundle default"
	}
	for _, p := range r.Programs {
		s.Programs = append(s.Programs, SuppliedProgram{p.Name, p.Path, p.Version, "bundle default"})
	}
	return s
}

func TestCheck(t *testing.T) {
	for name, test := range map[string]struct {
		change  func(*Supply)
		missing string // "kind name: note" of the only thing that is missing
	}{
		"everything is there": {func(*Supply) {}, ""},
		"no pause image, of all": {func(s *Supply) {
			delete(s.Images, "registry.k8s.io/pause:3.10.2")
		}, "image registry.k8s.io/pause:3.10.2: "},
		"another patch release of the kubelet": {func(s *Supply) { program(s, "kubelet").Version = "v1.37.1" },
			"program kubelet: there is v1.37.1 of bundle default"},
		"a newer containerd":  {func(s *Supply) { program(s, "containerd").Version = "v2.10.0" }, ""},
		"an older containerd": {func(s *Supply) { program(s, "containerd").Version = "2.1.9" }, "program containerd: there is 2.1.9 of bundle default"},
		"a program elsewhere": {func(s *Supply) { program(s, "cni-bridge").Path = "/usr/lib/cni/bridge" }, "program cni-bridge: "},
		"runc of the system": {func(s *Supply) {
			program(s, "runc").Path = ""
			s.Systems[0].Packages = append(s.Systems[0].Packages, "runc")
		}, ""},
		"no runc":                 {func(s *Supply) { program(s, "runc").Path = "" }, "program runc: no program at /usr/sbin/runc, and no package runc in image debian-12"},
		"no nftables in an image": {func(s *Supply) { drop(s, 0, "nftables") }, "package nftables: not in image debian-12"},
		"no nftables in the second": {func(s *Supply) {
			s.Systems = append(s.Systems, System{Name: "own", Packages: slices.Clone(s.Systems[0].Packages)})
			drop(s, 1, "nftables")
		}, "package nftables: not in image own"},
	} {
		t.Run(name, func(t *testing.T) {
			required, err := RequirementsOf(presetCluster(t, PresetOptions{VirtualIP: "10.20.0.5", Version: "v1.37.2"}))
			if err != nil {
				t.Fatal(err)
			}
			supply := supplyOf(required)
			test.change(&supply)
			var missing []string
			needs := required.Check(supply)
			for _, need := range needs {
				if need.Found == "" {
					missing = append(missing, need.Kind+" "+need.Name+": "+need.Note)
				}
			}
			if got := strings.Join(missing, "; "); got != test.missing {
				t.Errorf("missing is %q, want %q", got, test.missing)
			}
			if want := len(required.Images) + len(required.Programs) + len(required.Packages)*len(supply.Systems); len(needs) != want {
				t.Errorf("%d lines, want %d", len(needs), want)
			}
		})
	}
}

func program(s *Supply, name string) *SuppliedProgram {
	return &s.Programs[slices.IndexFunc(s.Programs, func(p SuppliedProgram) bool { return p.Name == name })]
}

func drop(s *Supply, system int, name string) {
	s.Systems[system].Packages = slices.DeleteFunc(s.Systems[system].Packages, func(p string) bool { return p == name })
}

func TestImageReferences(t *testing.T) {
	for name, test := range map[string]struct {
		manifest string
		want     []string
	}{
		"a pod": {`{kind: Pod, spec: {containers: [{image: a}], initContainers: [{image: b}], ephemeralContainers: [{image: c}]}}`, []string{"a", "b", "c"}},
		"a template in a template": {`{kind: CronJob, spec: {jobTemplate: {spec: {template: {spec: {containers: [{image: a}, {image: a}, {name: none}]}}}}}}`,
			[]string{"a"}},
		"a list":                  {`{kind: List, items: [{spec: {containers: [{image: b}]}}, {spec: {containers: [{image: a}]}}]}`, []string{"a", "b"}},
		"a mounted image":         {`{spec: {volumes: [{image: {reference: v}}, {emptyDir: {}}], containers: []}}`, []string{"v"}},
		"other fields of a name":  {`{kind: ConfigMap, data: {containers: x, image: y}, image: z}`, nil},
		"a kind that is our own":  {`{kind: Widget, spec: {pod: {containers: [{image: a}]}}}`, []string{"a"}},
		"what is not of its type": {`{spec: {containers: [1, {image: [2]}], volumes: {image: 3}}}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var document any
			if err := yaml.Unmarshal([]byte(test.manifest), &document); err != nil {
				t.Fatal(err)
			}
			if got := ImageReferences(document); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
