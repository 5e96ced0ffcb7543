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

// What a machine reports decides; one with an agent that cannot fetch before is not waited for.
func TestWhoHasFetched(t *testing.T) {
	f := record(t, rack(t, "lab", v1alpha1.TopologyProduction, 2))
	machine := f.Cluster.Status.Nodes[0].Machine
	f.Cluster.Status.Nodes[0].Prefetch = &v1alpha1.WantedPrefetch{Version: f.Cluster.Spec.Version}
	s := newSetOf(neededPrograms{}, f)
	a, _ := s.Node(machine)
	if a.Prefetch == nil || len(a.Prefetch.Programs) == 0 || len(a.Prefetch.Images) == 0 {
		t.Fatalf("it is told to fetch %+v", a.Prefetch)
	}
	for _, test := range []struct {
		name string
		says *v1alpha1.NodePrefetch
		done bool
		text string
	}{
		{"an older agent", nil, true, ""},
		{"nothing yet", &v1alpha1.NodePrefetch{}, false, "it has not begun"},
		{"something else", &v1alpha1.NodePrefetch{ID: "x", Done: true}, false, "it has not begun"},
		{"a part", &v1alpha1.NodePrefetch{ID: a.Prefetch.ID, BytesDone: 1 << 20, BytesTotal: 3 << 20}, false, "1 of 3 MiB"},
		{"why it cannot", &v1alpha1.NodePrefetch{ID: a.Prefetch.ID, Failing: true, Message: "no space"}, false, "no space"},
		{"everything", &v1alpha1.NodePrefetch{ID: a.Prefetch.ID, Done: true}, true, ""},
	} {
		m := &v1alpha1.Machine{}
		m.Name, m.Status.Kubernetes = machine, &v1alpha1.KubernetesStatus{Prefetch: test.says}
		if done, how, why := s.Prefetched(m, f.Cluster.Spec.Version); done != test.done || how+why != test.text {
			t.Errorf("%s: %t %q %q", test.name, done, how, why)
		}
	}
	silent := &v1alpha1.Machine{}
	silent.Name = machine
	if done, how, _ := s.Prefetched(silent, f.Cluster.Spec.Version); done || how != "it has not reported anything" {
		t.Errorf("a machine that has said nothing has fetched: %t %q", done, how)
	}
	if done, _, _ := s.Prefetched(&v1alpha1.Machine{}, f.Cluster.Spec.Version); done {
		t.Error("a machine of no cluster has fetched")
	}
}
