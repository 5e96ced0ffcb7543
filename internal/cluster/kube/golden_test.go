package kube

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden freezes, for every preset and minor release, the whole plan of one machine of each group and the
// objects of the cluster.
func TestGolden(t *testing.T) {
	for _, preset := range Presets() {
		for _, version := range KnownVersions() {
			t.Run(string(preset)+" "+version, func(t *testing.T) {
				in := testInput(t, preset, version)
				plan, err := Render(in)
				if err != nil {
					t.Fatal(err)
				}
				minor := version[:strings.LastIndex(version, ".")]
				compareGolden(t, filepath.Join("testdata", "golden", string(preset)+"-"+minor+".txtar"), archive(t, in, plan))
			})
		}
	}
}

// TestLoadBalancerConfig: pools that routers are told of are apart from the others, so that a program that knows no routers leaves
// them alone.
func TestLoadBalancerConfig(t *testing.T) {
	pools := []v1alpha1.LoadBalancerPool{{Name: "near", Addresses: []string{"10.20.0.200"}}, {Name: "far", Addresses: []string{"198.51.100.0/24"}, Announce: v1alpha1.AnnounceBGP, Communities: []string{"64512:1"}}}
	bgp := &v1alpha1.LoadBalancerBGP{LocalASN: 64512, Peers: []v1alpha1.BGPPeer{{Name: "tor", Address: "10.20.0.1", ASN: 64513, PasswordKey: "tor"}}}
	got, err := loadBalancerConfig(&v1alpha1.ClusterLoadBalancer{Pools: pools, BGP: bgp})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"pools.json": `[{"name":"near","addresses":["10.20.0.200"]}]`,
		"bgp.json": `{"localASN":64512,"peers":[{"name":"tor","address":"10.20.0.1","asn":64513,"passwordKey":"tor"}],` +
			`"pools":[{"name":"far","addresses":["198.51.100.0/24"],"announce":"bgp","communities":["64512:1"]}]}`,
	} {
		var compact bytes.Buffer
		if err := json.Compact(&compact, []byte(got[key])); err != nil || compact.String() != want {
			t.Errorf("%s: %v\ngot  %s\nwant %s", key, err, compact.String(), want)
		}
	}
	if got, err := loadBalancerConfig(&v1alpha1.ClusterLoadBalancer{Pools: pools[1:]}); err != nil || got["pools.json"] != "[]\n" || len(got) != 1 {
		t.Errorf("without routers: %q, %v", got, err)
	}
}

// TestGoldenLoadBalancer freezes what gives Services addresses. Pools reach nodes by the ConfigMap alone: another one restarts nothing.
func TestGoldenLoadBalancer(t *testing.T) {
	render := func(addresses string) *txtar.Archive {
		in := testInput(t, v1alpha1.TopologyDevelopment, DefaultVersion())
		in.Cluster.Spec.Network.LoadBalancer = &v1alpha1.ClusterLoadBalancer{Pools: []v1alpha1.LoadBalancerPool{{Name: "default", Addresses: []string{addresses}}}}
		plan, err := Render(in)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(plan.Requirements.Images, loadBalancerImage) {
			t.Errorf("bundles need not have %s", loadBalancerImage)
		}
		full := archive(t, in, plan)
		full.Files = slices.DeleteFunc(full.Files, func(f txtar.File) bool { return !strings.Contains(f.Name, loadBalancerName) })
		return full
	}
	first, second := render("10.20.0.200-10.20.0.220"), render("10.20.0.200")
	compareGolden(t, filepath.Join("testdata", "golden", "loadbalancer.txtar"), first)
	for i, f := range first.Files {
		if same := bytes.Equal(f.Data, second.Files[i].Data); same == strings.Contains(f.Name, "/ConfigMap") {
			t.Errorf("%s with another pool is the same: %v", f.Name, same)
		}
	}
}

// TestGoldenNetworks freezes what differs with the network: flannel, dual stack, IPv6 alone.
func TestGoldenNetworks(t *testing.T) {
	for _, test := range networkVariants() {
		t.Run(test.name, func(t *testing.T) {
			in := testInput(t, v1alpha1.TopologyDevelopment, DefaultVersion(), test.change)
			plan, err := Render(in)
			if err != nil {
				t.Fatal(err)
			}
			full := archive(t, in, plan)
			full.Files = slices.DeleteFunc(full.Files, func(f txtar.File) bool {
				return !strings.Contains(f.Name, "/plan") && !strings.Contains(f.Name, "/etc/cni/") && !strings.Contains(f.Name, "coldrack/kubernetes/") &&
					!strings.Contains(f.Name, "kubeadm-flags") && !strings.Contains(f.Name, "kube-apiserver.yaml") && !strings.Contains(f.Name, "etcd.yaml") &&
					!strings.Contains(f.Name, "kube-flannel") && !strings.Contains(f.Name, "kube-proxy/ConfigMap") && !strings.Contains(f.Name, "Service kube-dns")
			})
			compareGolden(t, filepath.Join("testdata", "golden", "network-"+test.name+".txtar"), full)
		})
	}
}

func archive(t *testing.T, in Input, plan *Plan) *txtar.Archive {
	t.Helper()
	a := &txtar.Archive{}
	add := func(name string, content []byte) {
		if len(content) > 0 && content[len(content)-1] != '\n' {
			content = append(slices.Clip(content), '\n')
		}
		a.Files = append(a.Files, txtar.File{Name: name, Data: content})
	}
	asYAML := func(value any) []byte {
		tree, err := treeOf(map[string]any{"": value})
		if err != nil {
			t.Fatal(err)
		}
		walk(tree, func(v any) bool { return v == nil || v == false })
		encoded, err := yaml.Marshal(tree[""])
		if err != nil {
			t.Fatal(err)
		}
		return encoded
	}
	add("cluster/requirements", asYAML(plan.Requirements))
	add("cluster/authorities", asYAML(plan.Authorities))
	shown := map[string]bool{}
	for _, m := range in.Machines {
		if shown[m.Group] {
			continue
		}
		shown[m.Group] = true
		n := plan.Nodes[m.Name]
		files := n.Files
		for _, pod := range n.StaticPods {
			files = append(slices.Clip(files), pod.File)
		}
		units := n.Units
		n.Files, n.StaticPods, n.Units = nil, nil, nil
		add(m.Name+"/plan", asYAML(n))
		for _, f := range files {
			content := f.Content
			switch {
			case f.Mode.IsDir():
				content = []byte("a folder")
			case f.Link != "":
				content = []byte("a link to " + f.Link)
			case f.Secret != "":
				content = []byte("the secret " + string(f.Secret))
			}
			add(fmt.Sprintf("%s%s %v", m.Name, f.Path, f.Mode), content)
		}
		for _, unit := range units {
			add(m.Name+"/unit "+unit.Name, unit.Content)
			for _, name := range slices.Sorted(maps.Keys(unit.DropIns)) {
				add(m.Name+"/unit "+unit.Name+".d/"+name, unit.DropIns[name])
			}
		}
	}
	for _, object := range plan.Objects {
		add(fmt.Sprintf("cluster/%s/%s %s", object.Addon, object.Kind, object.Name), object.Content)
	}
	return a
}

func compareGolden(t *testing.T, path string, got *txtar.Archive) {
	t.Helper()
	encoded := txtar.Format(got)
	if *update {
		if err := os.WriteFile(path, encoded, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encoded, want) {
		t.Errorf("%s differs from what is rendered now (- golden, + now); if that is meant, go test -update:\n%s",
			path, cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(encoded), "\n")))
	}
}

func planDiff(a, b *Plan) string {
	return cmp.Diff(a, b, cmp.Comparer(func(x, y netip.Addr) bool { return x == y }),
		cmp.Comparer(func(x, y netip.Prefix) bool { return x == y }), cmp.Comparer(func(x, y netip.AddrPort) bool { return x == y }))
}
