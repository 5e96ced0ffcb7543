package members

import (
	"errors"
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/contract/wire"
)

// neededPrograms are those that a version needs, but for one.
type neededPrograms struct{ lacks string }

func (p neededPrograms) Programs(version string) (programs []wire.Program, err error) {
	cluster, _, err := kube.Preset(v1alpha1.TopologyProduction, kube.PresetOptions{Name: "any", Version: version, Workers: 1})
	if err != nil {
		return nil, err
	}
	required, err := kube.RequirementsOf(cluster)
	for _, need := range required.Programs {
		if need.Name != p.lacks {
			programs = append(programs, wire.Program{Name: need.Name, Path: need.Path, Version: need.Version})
		}
	}
	return programs, err
}

func TestWhatBundlesLack(t *testing.T) {
	version := kube.DefaultVersion()
	proxy := "registry.k8s.io/kube-proxy:" + version
	for _, test := range []struct {
		name, program string
		image         string // that no bundle has
		change        func(*v1alpha1.Cluster, *Set)
		want          string
		nodes         []string // images that they have
		blocked       bool     // a change
	}{
		{name: "nothing"},
		{name: "a program", program: "kubelet", want: "program kubelet " + version},
		{name: "an image", image: proxy, want: "image " + proxy, blocked: true},
		{name: "an image that nodes have already", image: proxy, want: "image " + proxy, nodes: []string{proxy}},
		{name: "an image that a mirror has", image: proxy, change: func(c *v1alpha1.Cluster, _ *Set) {
			c.Spec.Registries = []v1alpha1.RegistryMirror{{Host: "registry.k8s.io", Endpoints: []string{"https://mirror.example.org"}}}
		}},
		{name: "an image that the server fetches", image: proxy, change: func(_ *v1alpha1.Cluster, s *Set) {
			s.FetchesFrom = func(registry string) bool { return registry == "registry.k8s.io" }
		}},
		{name: "an image that nobody needs", image: proxy, change: func(c *v1alpha1.Cluster, _ *Set) { c.Spec.Network.Proxy = v1alpha1.ProxyNone }},
	} {
		t.Run(test.name, func(t *testing.T) {
			cluster, _, err := kube.Preset(v1alpha1.TopologyProduction, kube.PresetOptions{Name: "lab", Version: version, Workers: 1})
			if err != nil {
				t.Fatal(err)
			}
			s := New(Options{Programs: neededPrograms{test.program}, ImageDigest: func(name string) string {
				if name == test.image {
					return ""
				}
				return "sha256:" + name
			}})
			if test.change != nil {
				test.change(cluster, s)
			}
			if got := strings.Join(s.Lacking(cluster), ", "); got != test.want {
				t.Errorf("it lacks %q, want %q", got, test.want)
			}
			have := map[string]bool{}
			for _, name := range test.nodes {
				have[name] = true
			}
			b := s.LackingBlock(cluster, func() (map[string]bool, error) { return have, nil })
			if blocked := b != nil && strings.Contains(b.String(), test.image+"; import the bundle that has it: coldrack bundle import FILE"); blocked != test.blocked {
				t.Errorf("a change is blocked: %v", b)
			}
			if b := s.LackingBlock(cluster, func() (map[string]bool, error) { return nil, errors.New("no answer") }); b != nil {
				t.Errorf("it is not known what nodes have, and a change is blocked: %v", b)
			}
		})
	}
}
