package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"
)

// outline is a change in the words of the tables below.
func outline(c Changes) []string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, a := range c.Authorities {
		add("authority %s", a)
	}
	for _, n := range c.Nodes {
		add("%s %s", n.Change, n.Machine)
		for _, f := range n.Files {
			add("  %s %s", f.Change, f.Path)
		}
		for _, u := range n.Units {
			add("  %s unit %s", u.Change, u.Path)
		}
		for _, cert := range n.Certificates {
			add("  %s certificate %s", cert.Change, cert.Name)
		}
		for _, other := range n.Other {
			add("  %s", other)
		}
		for _, p := range n.Phases {
			add("  phase %s", p.Name)
		}
		for _, o := range n.Disruptions {
			outage := ""
			if o.Outage {
				outage = "OUTAGE: "
			}
			add("  %s%s: %s", outage, o.What, o.Effect)
		}
	}
	for _, o := range c.Objects {
		add("%s %s", o.Change, o.Object)
	}
	for _, image := range c.Images {
		add("image %s", image)
	}
	return lines
}

func TestDiff(t *testing.T) {
	for _, test := range []struct {
		name   string
		preset v1alpha1.Topology
		change func(*Input)
		want   []string
	}{
		{"the same again is nothing", v1alpha1.TopologyProduction, func(*Input) {}, nil},
		{"a flag of the only API server interrupts the API", v1alpha1.TopologyDevelopment, func(in *Input) {
			in.Cluster.Spec.APIServer.ExtraArgs = map[string]string{"v": "4"}
		}, []string{
			"change machine-01",
			"  change /etc/kubernetes/manifests/kube-apiserver.yaml",
			"  phase api-server",
			"  OUTAGE: the API server restarts: it is the only one: the API does not answer until it is back; pods keep running",
			"change ConfigMap kube-system/kubeadm-config",
		}},
		{"a flag of several API servers does not, if they take turns", v1alpha1.TopologySmall, func(in *Input) {
			in.Cluster.Spec.APIServer.ExtraArgs = map[string]string{"v": "4"}
		}, []string{
			"change machine-01",
			"  change /etc/kubernetes/manifests/kube-apiserver.yaml",
			"  phase api-server",
			"  the API server restarts: 2 others answer meanwhile, as long as they do not restart at the same moment (2 of them change, too)",
			"change machine-02",
			"  change /etc/kubernetes/manifests/kube-apiserver.yaml",
			"  phase api-server",
			"  the API server restarts: 2 others answer meanwhile, as long as they do not restart at the same moment (2 of them change, too)",
			"change machine-03",
			"  change /etc/kubernetes/manifests/kube-apiserver.yaml",
			"  phase api-server",
			"  the API server restarts: 2 others answer meanwhile, as long as they do not restart at the same moment (2 of them change, too)",
			"change ConfigMap kube-system/kubeadm-config",
		}},
		{"a flag of the only etcd member interrupts the API", v1alpha1.TopologyLaptop, func(in *Input) {
			in.Cluster.Spec.Etcd.QuotaBackend = 4 << 30
		}, []string{
			"change machine-01",
			"  change /etc/kubernetes/manifests/etcd.yaml",
			"  phase etcd",
			"  OUTAGE: etcd restarts: it is the only member: the API answers no request that needs the store until it is back",
			"change ConfigMap kube-system/kubeadm-config",
		}},
		{"a field of the workers' kubelets restarts them", v1alpha1.TopologyDevelopment, func(in *Input) {
			in.Groups[1].Spec.Kubelet.Config = &runtime.RawExtension{Raw: []byte(`{"maxPods":50}`)}
		}, []string{
			"change machine-02",
			"  change /var/lib/kubelet/config.yaml",
			"  change /var/lib/kubelet/instance-config.yaml",
			"  phase config",
			"  the kubelet restarts: pods keep running; the node is not Ready for some seconds",
			"change machine-03",
			"  change /var/lib/kubelet/config.yaml",
			"  change /var/lib/kubelet/instance-config.yaml",
			"  phase config",
			"  the kubelet restarts: pods keep running; the node is not Ready for some seconds",
		}},
		{"a further name of the API is signed, and nothing restarts", v1alpha1.TopologyLaptop, func(in *Input) {
			in.Cluster.Spec.Endpoint.ExtraSANs = []string{"api.example.org"}
		}, []string{
			"change machine-01",
			"  change certificate apiserver",
			"  phase certificates",
			"change ConfigMap kube-system/kubeadm-config",
		}},
		{"a mirror of a registry is a file", v1alpha1.TopologyLaptop, func(in *Input) {
			in.Cluster.Spec.Registries = []v1alpha1.RegistryMirror{{Host: "docker.io", Endpoints: []string{"https://mirror.example.org"}}}
		}, []string{
			"change machine-01",
			"  change /etc/containerd/certs.d/docker.io/hosts.toml",
			"  phase config",
		}},
		{"a taint and a label are the server's business", v1alpha1.TopologyLaptop, func(in *Input) {
			in.Groups[0].Spec.Taints = []v1alpha1.Taint{{Key: "gpu", Value: "a", Effect: "NoSchedule"}}
		}, []string{
			"change machine-01",
			"  change /var/lib/kubelet/config.yaml",
			"  change /var/lib/kubelet/instance-config.yaml",
			"  + taint gpu=a:NoSchedule",
			"  phase config",
			"  the kubelet restarts: pods keep running; the node is not Ready for some seconds",
		}},
		{"a worker that goes away keeps running", v1alpha1.TopologyDevelopment, func(in *Input) {
			in.Machines = in.Machines[:2]
		}, []string{
			"change machine-01",
			"  - route 10.244.2.0/24 via 10.20.0.13",
			"  phase network",
			"change machine-02",
			"  - route 10.244.2.0/24 via 10.20.0.13",
			"  phase network",
			"remove machine-03",
			"  the machine is no longer part of the plan: it keeps running what it has until it is released (coldrack release machine-03); the other nodes drop their routes to its pods",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := testInput(t, test.preset, DefaultVersion())
			before, err := Render(in)
			if err != nil {
				t.Fatal(err)
			}
			test.change(&in)
			after, err := Render(in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, outline(Diff(before, after, false))); diff != "" {
				t.Errorf("(- want, + got):\n%s", diff)
			}
		})
	}
}

func TestDiffOfANewCluster(t *testing.T) {
	plan, err := Render(testInput(t, v1alpha1.TopologyProduction, DefaultVersion()))
	if err != nil {
		t.Fatal(err)
	}
	changes := Diff(nil, plan, false)
	if len(changes.Authorities) != 3 || len(changes.Nodes) != 8 || len(changes.Objects) != len(plan.Objects) || len(changes.Images) == 0 {
		t.Errorf("%d authorities, %d nodes, %d objects, %d images", len(changes.Authorities), len(changes.Nodes), len(changes.Objects), len(changes.Images))
	}
	for _, n := range changes.Nodes {
		own := plan.Nodes[n.Machine]
		if n.Change != Added || len(n.Files) != len(own.Files)+len(own.StaticPods) || len(n.Certificates) != len(own.Certificates) || len(n.Phases) != len(own.Phases) {
			t.Errorf("%s: not everything of it is new", n.Machine)
		}
		if len(n.Disruptions) > 0 {
			t.Errorf("%s disrupts: %v", n.Machine, n.Disruptions)
		}
		for _, f := range n.Files {
			if f.Diff != "" {
				t.Fatalf("%s: content of a new file that nobody asked for", f.Path)
			}
		}
	}
	for _, n := range Diff(nil, plan, true).Nodes {
		for _, f := range n.Files {
			if strings.HasPrefix(f.Note, "secret ") != (slices.ContainsFunc(plan.Nodes[n.Machine].Files, func(p File) bool { return p.Path == f.Path && p.Secret != "" })) {
				t.Errorf("%s: note %q", f.Path, f.Note)
			}
			if f.Path == kubeletConfig && !strings.Contains(f.Diff, "+kind: KubeletConfiguration") {
				t.Errorf("no content of %s:\n%s", f.Path, f.Diff)
			}
		}
	}
}

func TestDiffShowsLines(t *testing.T) {
	in := testInput(t, v1alpha1.TopologyLaptop, DefaultVersion())
	before, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	in.Cluster.Spec.APIServer.ExtraArgs = map[string]string{"v": "4"}
	in.Cluster.Spec.Endpoint.ExtraSANs = []string{"api.example.org"}
	in.Machines[0].Addresses = append(in.Machines[0].Addresses, netip.MustParseAddr("fd00:20::b"))
	after, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	node := Diff(before, after, false).Nodes[0]
	text := ""
	for _, f := range node.Files {
		text += f.Diff
	}
	for _, want := range []string{"--- now/etc/kubernetes/manifests/kube-apiserver.yaml\n+++ then/etc/kubernetes/manifests/kube-apiserver.yaml\n@@ ", "\n+    - --v=4\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, c := range node.Certificates {
		if c.Name == "apiserver" && (strings.Contains(c.Was, "api.example.org") || !strings.Contains(c.Says, "api.example.org")) {
			t.Errorf("was %s\nsays %s", c.Was, c.Says)
		}
	}
}
