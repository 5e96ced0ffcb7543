package kube

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// A machine that Coldrack does not know has no load balancer on its loopback: its daemons go to the cluster's endpoint. Each
// node is in reach of exactly one of the two kinds.
func TestDaemonsOfForeignMachines(t *testing.T) {
	daemonsOf := func(foreign bool) map[string]apps.DaemonSet {
		t.Helper()
		plan := render(t, v1alpha1.TopologyDevelopment, func(in *Input) {
			in.Cluster.Spec.Security.TokenDiscovery = foreign
			in.Cluster.Spec.Network.Plugin = v1alpha1.NetworkFlannel
		})
		found := map[string]apps.DaemonSet{}
		for _, object := range plan.Objects {
			if object.Kind == "DaemonSet" {
				var d apps.DaemonSet
				if err := yaml.UnmarshalStrict(object.Content, &d); err != nil {
					t.Fatal(err)
				}
				found[object.Name] = d
			}
		}
		return found
	}
	if own := daemonsOf(false); len(own) != 2 || own["kube-proxy"].Spec.Template.Spec.Affinity != nil {
		t.Errorf("a cluster that nobody foreign may join has %d daemons", len(own))
	}
	all := daemonsOf(true)
	for name, reached := range map[string]string{"kube-proxy": "--master=https://10.20.0.11:6443", "kube-flannel": "value: 10.20.0.11"} {
		own, foreign := all[name], all[name+"-foreign"]
		if foreign.Spec.Selector.MatchLabels["k8s-app"] == own.Spec.Selector.MatchLabels["k8s-app"] {
			t.Errorf("%s: two with one selector fight for each other's pods", name)
		}
		for d, operator := range map[*apps.DaemonSet]string{&own: "Exists", &foreign: "DoesNotExist"} {
			text, err := yaml.Marshal(d.Spec.Template.Spec)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), "- key: coldrack.dev/machine\n          operator: "+operator+"\n") {
				t.Errorf("%s is not kept to its nodes:\n%s", d.Name, text)
			}
			if got := strings.Contains(string(text), reached); got != (d == &foreign) {
				t.Errorf("%s: the endpoint is in it: %v\n%s", d.Name, got, text)
			}
		}
	}
}

// People's add-ons must not have a name of ours.
func TestEveryAddonIsKnownByName(t *testing.T) {
	plan := render(t, v1alpha1.TopologyDevelopment, func(in *Input) { in.Cluster.Spec.Network.Plugin = v1alpha1.NetworkFlannel })
	for _, object := range plan.Objects {
		if !slices.Contains(v1alpha1.OwnAddons(), object.Addon) {
			t.Errorf("%s %s is of add-on %q, which v1alpha1.OwnAddons does not name", object.Kind, object.Name, object.Addon)
		}
	}
	if version := AddonVersion(plan, "v1.37.2", "coredns"); !strings.HasPrefix(version, "v1.") || AddonVersion(plan, "v1.37.2", "bootstrap") != "v1.37.2" {
		t.Errorf("coredns is %q, bootstrap %q", version, AddonVersion(plan, "v1.37.2", "bootstrap"))
	}
}

func TestCorefile(t *testing.T) {
	for _, noNameservers := range []bool{false, true} {
		config := corefile("rack.example", noNameservers)
		if strings.Contains(config, "$") || !strings.Contains(config, "kubernetes rack.example in-addr.arpa ip6.arpa {") {
			t.Errorf("without nameservers %v: the cluster's domain is not filled in:\n%s", noNameservers, config)
		}
		if forwards := strings.Contains(config, "forward . /etc/resolv.conf"); forwards == noNameservers {
			t.Errorf("without nameservers %v: forwards %v", noNameservers, forwards)
		}
		// What CoreDNS knows (RFC 1035, section 4.1.1, by its usual name).
		if answers := strings.Contains(config, "rcode NXDOMAIN\n"); answers != noNameservers {
			t.Errorf("without nameservers %v: says itself that names do not exist %v:\n%s", noNameservers, answers, config)
		}
	}
}

// What flanneld writes, and what comes of it on a node that Coldrack did not configure.
func TestNetworkOfForeignMachines(t *testing.T) {
	plan := render(t, v1alpha1.TopologyDevelopment, func(in *Input) {
		in.Cluster.Spec.Security.TokenDiscovery = true
		in.Cluster.Spec.Network.Plugin = v1alpha1.NetworkFlannel
	})
	var script string
	for _, object := range plan.Objects {
		if object.Name == "kube-flannel-foreign" {
			var d apps.DaemonSet
			if err := yaml.UnmarshalStrict(object.Content, &d); err != nil {
				t.Fatal(err)
			}
			script = d.Spec.Template.Spec.Containers[0].Lifecycle.PostStart.Exec.Command[2]
		}
	}
	require.Need(t, "netns", "busybox")
	host := netns.New(t)
	host.Run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "switch")
	host.Run("ip", "link", "set", "uplink", "up")
	host.Run("ip", "link", "set", "switch", "up")
	host.Address("uplink", "10.20.0.9/16")
	dir := t.TempDir()
	script = strings.NewReplacer("/run/flannel", dir, cniDir, dir, "busybox mv", "mv").Replace(script)
	if err := os.WriteFile(filepath.Join(dir, "subnet.env"), []byte("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Twice: flanneld may be started again.
	for range 2 {
		if out, err := host.Try(t.Context(), "env", "HOST_IPS=10.20.0.9", "busybox", "sh", "-c", script); err != nil {
			t.Fatalf("%v: %s\n%s", err, out, script)
		}
	}
	if got := host.Run("ip", "route", "show", "10.96.0.0/16"); !strings.HasPrefix(got, "10.96.0.0/16 dev uplink scope link src 10.20.0.9") {
		t.Errorf("the route to services is %q", got)
	}
	got, err := os.ReadFile(filepath.Join(dir, "10-coldrack.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	own := fileOf(t, plan.Nodes["machine-01"], cniFile)
	if want := strings.Replace(own, "10.244.0.0/24", "10.244.7.0/24", 1); string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
