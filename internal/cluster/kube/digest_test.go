package kube

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func digestsOf(t *testing.T, in Input, secret string) map[string]v1alpha1.ConfigDigests {
	t.Helper()
	plan, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	digests := map[string]v1alpha1.ConfigDigests{}
	for name, n := range plan.Nodes {
		d, err := NewDigester(n, func(ref SecretRef) ([]byte, error) { return []byte(secret + string(ref)), nil })
		if err != nil {
			t.Fatal(err)
		}
		digests[name] = d.Digests()
	}
	return digests
}

// changedParts says which parts of which machines differ.
func changedParts(was, is map[string]v1alpha1.ConfigDigests) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(was)) {
		a, b := was[name], is[name]
		text := ""
		for _, part := range []struct{ name, was, is string }{{"etcd", a.Etcd, b.Etcd}, {"control", a.ControlPlane, b.ControlPlane}, {"node", a.Node, b.Node}} {
			if part.was != part.is {
				text += " " + part.name
			}
		}
		if text != "" {
			out = append(out, name+":"+text)
		}
	}
	return strings.Join(out, ", ")
}

// Machines 1 to 3 have etcd, 4 and 5 the control plane, the others are workers.
func TestDigests(t *testing.T) {
	all := func(text string) string {
		var list []string
		for i := range 8 {
			list = append(list, fmt.Sprintf("machine-%02d:%s", i+1, text))
		}
		return strings.Join(list, ", ")
	}
	for _, test := range []struct {
		name   string
		change func(*Input)
		want   string
	}{
		{"nothing", func(*Input) {}, ""},
		{"the order of machines", func(in *Input) { slices.Reverse(in.Machines) }, ""},
		{"one more worker", func(in *Input) {
			worker := in.Machines[len(in.Machines)-1]
			worker.Name, worker.Hostname, worker.Addresses = "machine-99", "node-99", []netip.Addr{netip.MustParseAddr("10.20.0.99")}
			worker.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.99.0/24")}
			in.Machines = append(in.Machines, worker)
		}, ""},
		{"one more control plane", func(in *Input) {
			another := in.Machines[3]
			another.Name, another.Hostname, another.Addresses = "machine-00", "node-00", []netip.Addr{netip.MustParseAddr("10.20.0.99")}
			another.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.99.0/24")}
			in.Machines = append(in.Machines, another)
		}, ""},
		{"a name of the API server", func(in *Input) { in.Cluster.Spec.Endpoint.ExtraSANs = []string{"api.example.org"} }, "machine-04: control, machine-05: control"},
		{"a flag of the API server", func(in *Input) { in.Cluster.Spec.APIServer.ExtraArgs = map[string]string{"v": "3"} }, "machine-04: control, machine-05: control"},
		{"the audit policy", func(in *Input) {
			in.Cluster.Spec.Security.AuditPolicy = &runtime.RawExtension{Raw: []byte(`{"rules":[{"level":"None"}]}`)}
		}, "machine-04: control, machine-05: control"},
		{"a setting of all kubelets", func(in *Input) {
			in.Cluster.Spec.Kubelet.Config = &runtime.RawExtension{Raw: []byte(`{"maxPods":50}`)}
		}, all(" node")},
		{"a flag of etcd", func(in *Input) { in.Cluster.Spec.Etcd.ExtraArgs = map[string]string{"max-txn-ops": "256"} },
			"machine-01: etcd, machine-02: etcd, machine-03: etcd"},
		{"the version of one member", func(in *Input) { in.Machines[1].EtcdVersion = "3.6.16" }, "machine-02: etcd"},
		{"the version of a control plane", func(in *Input) { in.Machines[3].Version = "v1.37.1" }, "machine-04: control node"},
		{"the version of a worker", func(in *Input) { in.Machines[6].Version = "v1.37.1" }, "machine-07: node"},
		{"where a registry is", func(in *Input) { in.Registry.URL, in.Registry.CA = "https://10.20.0.2:8443", []byte("another\n") }, ""},
		{"one more registry", func(in *Input) {
			in.Cluster.Spec.Registries = []v1alpha1.RegistryMirror{{Host: "registry.example.org", Endpoints: []string{"https://mirror.example.org"}, CA: "ca\n"}}
		}, ""},
		{"the lifetime of certificates", func(in *Input) { in.Cluster.Spec.PKI.CertificateTTL = &metav1.Duration{Duration: time.Hour} }, ""},
		{"the algorithm of keys", func(in *Input) { in.Cluster.Spec.PKI.KeyAlgorithm = "RSA-2048" }, "machine-01: etcd node, machine-02: etcd node, machine-03: etcd node, " +
			"machine-04: control node, machine-05: control node, machine-06: node, machine-07: node, machine-08: node"},
		{"the authority of etcd", func(in *Input) { in.Authorities[AuthorityEtcd] = []byte("another\n") },
			"machine-01: etcd, machine-02: etcd, machine-03: etcd, machine-04: control, machine-05: control"},
		{"the keys of service accounts", func(in *Input) { in.ServiceAccountKeys = []byte("another\n") }, "machine-04: control, machine-05: control"},
		{"who signs for etcd", func(in *Input) { in.Issuers[AuthorityEtcd] = "another" },
			"machine-01: etcd, machine-02: etcd, machine-03: etcd, machine-04: control, machine-05: control"},
		{"who signs for the API", func(in *Input) { in.Issuers[AuthorityKubernetes] = "another" }, "machine-01: node, machine-02: node, machine-03: node, " +
			"machine-04: control node, machine-05: control node, machine-06: node, machine-07: node, machine-08: node"},
		{"the key that Secrets are encrypted with", func(in *Input) { in.EncryptionKeys = []string{"coldrack-2", "coldrack-1"} }, "machine-04: control, machine-05: control"},
		{"the authority that pods know", func(in *Input) { in.AuthorityNumber = 2 }, ""},
		{"the memory of a machine", func(in *Input) { in.Machines[7].Memory *= 4 }, "machine-08: node"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := testInput(t, v1alpha1.TopologyProduction, DefaultVersion())
			after := testInput(t, v1alpha1.TopologyProduction, DefaultVersion())
			test.change(&after)
			was, is := digestsOf(t, before, "secret "), digestsOf(t, after, "secret ")
			if got := changedParts(was, is); got != test.want {
				t.Errorf("changed: %q, want %q", got, test.want)
			}
		})
	}
	in := testInput(t, v1alpha1.TopologyProduction, DefaultVersion())
	if got := changedParts(digestsOf(t, in, "a"), digestsOf(t, in, "b")); got != "machine-04: control, machine-05: control" {
		t.Errorf("another secret changed %q", got)
	}
	digests := digestsOf(t, in, "")
	if d := digests["machine-01"]; d.Etcd == "" || d.ControlPlane != "" || d.Node == "" {
		t.Errorf("a machine with etcd alone: %+v", d)
	}
	if d := digests["machine-08"]; d.Etcd+d.ControlPlane != "" || d.Node == "" {
		t.Errorf("a worker: %+v", d)
	}
	plan, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("no keys")
	if _, err := NewDigester(plan.Nodes["machine-04"], func(SecretRef) ([]byte, error) { return nil, gone }); !errors.Is(err, gone) {
		t.Errorf("without its secrets: %v", err)
	}
}

// On a machine that is everything, each part has its own digest all the same.
func TestDigestsOfOneMachine(t *testing.T) {
	for want, change := range map[string]func(*Input){
		"machine-01: etcd":    func(in *Input) { in.Cluster.Spec.Etcd.ExtraArgs = map[string]string{"max-txn-ops": "256"} },
		"machine-01: control": func(in *Input) { in.Cluster.Spec.Endpoint.ExtraSANs = []string{"api.example.org"} },
		"machine-01: node": func(in *Input) {
			in.Cluster.Spec.Kubelet.Config = &runtime.RawExtension{Raw: []byte(`{"maxPods":50}`)}
		},
		"machine-01: etcd control node": func(in *Input) { in.Cluster.Spec.Version, in.Machines[0].Version = "v1.36.3", "v1.36.3" },
	} {
		before := testInput(t, v1alpha1.TopologyLaptop, DefaultVersion())
		after := testInput(t, v1alpha1.TopologyLaptop, DefaultVersion())
		change(&after)
		if got := changedParts(digestsOf(t, before, ""), digestsOf(t, after, "")); got != want {
			t.Errorf("changed: %q, want %q", got, want)
		}
	}
}
