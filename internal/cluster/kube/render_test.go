package kube

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"k8s.io/apimachinery/pkg/runtime"
)

type networkVariant struct {
	name   string
	change func(*Input)
}

func networkVariants() []networkVariant {
	addIPv6 := func(in *Input) {
		for i := range in.Machines {
			address := netip.MustParseAddr("fd00:20::11")
			for range i {
				address = address.Next()
			}
			in.Machines[i].Addresses = append(in.Machines[i].Addresses, address)
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

// A node's own network reaches services whatever carries the pods' traffic.
func TestServiceNetworksAreRouted(t *testing.T) {
	variants := append(networkVariants(),
		networkVariant{"routed", func(*Input) {}},
		networkVariant{"no plugin", func(in *Input) { in.Cluster.Spec.Network.Plugin = v1alpha1.NetworkNone }},
		networkVariant{"iptables", func(in *Input) { in.Cluster.Spec.Network.Proxy = v1alpha1.ProxyIPTables }},
		networkVariant{"another proxy", func(in *Input) { in.Cluster.Spec.Network.Proxy = v1alpha1.ProxyNone }})
	for _, variant := range variants {
		t.Run(variant.name, func(t *testing.T) {
			in := testInput(t, v1alpha1.TopologyDevelopment, DefaultVersion(), variant.change)
			plan, err := Render(in)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range in.Machines {
				var got, want []string
				for _, r := range plan.Nodes[m.Name].ServiceRoutes {
					if !slices.Contains(m.Addresses, r.Source) || r.Source.Is4() != r.To.Addr().Is4() {
						t.Errorf("%s: %s is routed from %s", m.Name, r.To, r.Source)
					}
					got = append(got, r.To.String())
				}
				if variant.name != "another proxy" {
					want = in.Cluster.Spec.Network.ServiceCIDRs
				}
				if !slices.Equal(got, want) {
					t.Errorf("%s has routes to %q, want %q", m.Name, got, want)
				}
			}
		})
	}
}

func TestTheOrderOfMachinesDoesNotMatter(t *testing.T) {
	in := testInput(t, v1alpha1.TopologyProduction, DefaultVersion())
	first, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(in.Machines)
	slices.Reverse(in.Groups)
	second, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	if diff := planDiff(first, second); diff != "" {
		t.Errorf("the plan changed:\n%s", diff)
	}
}

func TestRenderRefuses(t *testing.T) {
	extra := func(flag string) map[string]string { return map[string]string{flag: "x"} }
	raw := func(json string) *runtime.RawExtension { return &runtime.RawExtension{Raw: []byte(json)} }
	tests := []struct {
		name   string
		change func(*Input)
		want   string
	}{
		{"a minor release without a table", func(in *Input) { in.Cluster.Spec.Version = "v1.31.2" }, "spec.version: unknown Kubernetes version v1.31.2: this Coldrack can render v1.36.3, v1.37.2"},
		{"something that is not a version", func(in *Input) { in.Cluster.Spec.Version = "latest" }, "spec.version"},
		{"a machine with an unknown version", func(in *Input) { in.Machines[0].Version = "v1.20.0" }, "machine machine-01: unknown Kubernetes version"},
		{"a machine of no group", func(in *Input) { in.Machines[0].Group = "other" }, `machine machine-01 is in group "other", which this cluster does not have`},
		{"a machine without an address", func(in *Input) { in.Machines[5].Addresses = nil }, "machine machine-06 needs a host name and an address"},
		{"two machines of one name", func(in *Input) { in.Machines[5].Hostname = "node-01" }, "machines machine-01 and machine-06 are both named node-01"},
		{"two machines with one address", func(in *Input) { in.Machines[5].Addresses = in.Machines[0].Addresses }, "both have address 10.20.0.11"},
		{"a machine of the wrong family", func(in *Input) { in.Machines[5].Addresses = []netip.Addr{netip.MustParseAddr("fd00::1")} }, "machine-06 has primary address fd00::1, which is not of the family"},
		{"a machine without pod network", func(in *Input) { in.Machines[5].PodCIDRs = nil }, "machine machine-06 has no network for its pods"},
		{"a pod network of another cluster", func(in *Input) { in.Machines[5].PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")} }, "machine machine-06 has no network for its pods within 10.244.0.0/16"},
		{"etcd machines that nobody decided about", func(in *Input) { in.Machines[0].Etcd, in.Machines[1].Etcd, in.Machines[2].Etcd = nil, nil, nil }, "no machine has a member of etcd; Assign decides"},
		{"no control plane", func(in *Input) { in.Machines = in.Machines[:3] }, "no machine has role control-plane"},
		{"no etcd", func(in *Input) { in.Machines = in.Machines[3:] }, "no machine has a member of etcd"},
		{"a virtual IP on an unknown interface", func(in *Input) { in.Machines[3].Interface = "" }, "machine-04 of cluster rack: the interface with address 10.20.0.14 is not known"},
		{"an authority that does not exist yet", func(in *Input) { delete(in.Authorities, AuthorityEtcd) }, "no certificate of authority etcd-ca yet"},
		{"no key of service accounts", func(in *Input) { in.ServiceAccountKeys = nil }, "public key of service accounts is missing"},
		{"a service network without a tenth address", func(in *Input) { in.Cluster.Spec.Network.ServiceCIDRs = []string{"10.96.0.0/29"} }, "has no tenth address"},

		{"a flag that Coldrack decides", func(in *Input) { in.Cluster.Spec.APIServer.ExtraArgs = extra("etcd-servers") }, "spec.apiServer.extraArgs[etcd-servers]: Coldrack decides this flag"},
		{"a flag with dashes", func(in *Input) { in.Cluster.Spec.APIServer.ExtraArgs = extra("--v") }, "spec.apiServer.extraArgs[--v]: write flags without dashes"},
		{"a flag that the release has not got any more", func(in *Input) { in.Cluster.Spec.APIServer.ExtraArgs = extra("cloud-provider") }, "cloud-provider of kube-apiserver was removed in 1.33"},
		{"a flag that etcd has not got any more", func(in *Input) { in.Cluster.Spec.Etcd.ExtraArgs = extra("discovery") }, "spec.etcd.extraArgs[discovery]: discovery of etcd was removed in etcd 3.7"},
		{"one of a family of flags", func(in *Input) { in.Cluster.Spec.Etcd.ExtraArgs = extra("experimental-initial-corrupt-check") }, "was removed in etcd 3.7; use the flag without experimental-"},
		{"a flag of the controller manager that is gone", func(in *Input) { in.Cluster.Spec.ControllerManager.ExtraArgs = extra("concurrent-service-syncs") }, "concurrent-service-syncs is for cloud providers, which run outside"},
		{"the controllers of clouds, which end 1.37 even where they are switched off", func(in *Input) {
			in.Cluster.Spec.ControllerManager.ExtraArgs = map[string]string{"controllers": "*,-service-lb-controller"}
		}, "spec.controllerManager.extraArgs[controllers]: Coldrack decides this flag"},
		{"a flag with a typing error", func(in *Input) { in.Cluster.Spec.Scheduler.ExtraArgs = extra("kube-api-qpz") }, "spec.scheduler.extraArgs[kube-api-qpz]: kube-api-qpz is no flag of kube-scheduler that this Coldrack knows"},
		{"a flag that came later", func(in *Input) {
			in.Cluster.Spec.Version = "v1.36.3"
			in.Cluster.Spec.ControllerManager.ExtraArgs = extra("concurrent-disruption-syncs")
		}, "spec.controllerManager.extraArgs[concurrent-disruption-syncs]: concurrent-disruption-syncs of kube-controller-manager came with 1.37"},
		{"a flag that lets everybody in", func(in *Input) { in.Cluster.Spec.APIServer.ExtraArgs = extra("anonymous-auth") }, "anonymous-auth is decided by spec.security.tokenDiscovery"},
		{"a flag that discards etcd's members", func(in *Input) { in.Cluster.Spec.Etcd.ExtraArgs = extra("force-new-cluster") }, "restore a backup instead"},
		{"a flag of the scheduler that Coldrack decides", func(in *Input) { in.Cluster.Spec.Scheduler.ExtraArgs = extra("kubeconfig") }, "spec.scheduler.extraArgs[kubeconfig]"},
		{"a key for the controller manager", func(in *Input) { in.Cluster.Spec.ControllerManager.ExtraArgs = extra("cluster-signing-key-file") }, "the authorities' keys stay on the Coldrack server"},

		{"a kubelet field that does not exist", func(in *Input) { in.Cluster.Spec.Kubelet.Config = raw(`{"maxPodz": 5}`) }, `spec.kubelet.config: error unmarshaling JSON: while decoding JSON: json: unknown field "maxPodz"`},
		{"a kubelet field that Coldrack decides", func(in *Input) {
			in.Groups[2].Spec.Kubelet.Config = raw(`{"authentication": {"anonymous": {"enabled": true}}}`)
		}, "spec.kubelet.config of group rack-workers: authentication is decided by Coldrack"},
		{"an authentication that lets everybody in", func(in *Input) {
			in.Cluster.Spec.APIServer.Authentication = raw(`{"anonymous": {"enabled": true}}`)
		}, "spec.apiServer.authentication: leave anonymous out"},
		{"an audit policy without rules", func(in *Input) { in.Cluster.Spec.Security.AuditPolicy = raw(`{"omitStages": ["RequestReceived"]}`) }, "spec.security.auditPolicy: has no rules"},
		{"an audit policy with a typing error", func(in *Input) { in.Cluster.Spec.Security.AuditPolicy = raw(`{"rulez": []}`) }, `spec.security.auditPolicy: error unmarshaling JSON: while decoding JSON: json: unknown field "rulez"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in := testInput(t, v1alpha1.TopologyProduction, DefaultVersion())
			test.change(&in)
			_, err := Render(in)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v\nwant one with %q", err, test.want)
			}
		})
	}
}

func render(t *testing.T, preset v1alpha1.Topology, change ...func(*Input)) *Plan {
	t.Helper()
	plan, err := Render(testInput(t, preset, DefaultVersion(), change...))
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func fileOf(t *testing.T, n NodePlan, path string) string {
	t.Helper()
	for _, f := range n.Files {
		if f.Path == path {
			return string(f.Content)
		}
	}
	for _, pod := range n.StaticPods {
		if pod.File.Path == path {
			return string(pod.File.Content)
		}
	}
	t.Fatalf("%s has no %s", n.Machine, path)
	return ""
}

func TestWhatUsersAdd(t *testing.T) {
	raw := func(json string) *runtime.RawExtension { return &runtime.RawExtension{Raw: []byte(json)} }
	plan := render(t, v1alpha1.TopologyDevelopment, func(in *Input) {
		spec := &in.Cluster.Spec
		spec.APIServer.ExtraArgs = map[string]string{"audit-log-maxage": "90", "v": "4"}
		spec.Scheduler.ExtraArgs = map[string]string{"leader-elect-lease-duration": "60s"}
		spec.APIServer.Authentication = raw(`{"jwt": [{"issuer": {"url": "https://id.example.org", "audiences": ["rack"]}}]}`)
		spec.Security.AuditPolicy = raw(`{"rules": [{"level": "RequestResponse"}]}`)
		spec.Security.TokenDiscovery = true
		spec.Kubelet.Config = raw(`{"maxPods": 250, "evictionHard": {"memory.available": "1Gi"}}`)
		in.Groups[1].Spec.Kubelet.Config = raw(`{"maxPods": 60}`)
		in.Groups[1].Spec.Labels = map[string]string{"gpu": "yes", "node.kubernetes.io/pool": "fast"}
		in.Groups[1].Spec.Taints = []v1alpha1.Taint{{Key: "gpu", Value: "yes", Effect: "NoExecute"}}
		for i := range in.Machines {
			in.Machines[i].Labels = map[string]string{v1alpha1.LabelAccelerator + "a100": "8"}
		}
		spec.Registries = []v1alpha1.RegistryMirror{{Host: "registry.example.org:5000", Endpoints: []string{"http://10.20.0.3:5000", "http://10.20.0.4:5000"}, CA: "the authority\n"}}
	})
	control, worker := plan.Nodes["machine-01"], plan.Nodes["machine-02"]
	for _, want := range []struct {
		node       NodePlan
		path, text string
	}{
		{control, manifestsDir + "/kube-apiserver.yaml", "--audit-log-maxage=90\n"},
		{control, manifestsDir + "/kube-apiserver.yaml", "--v=4\n"},
		{control, manifestsDir + "/kube-scheduler.yaml", "--leader-elect-lease-duration=60s\n"},
		{control, authenticationFile, "url: https://id.example.org"},
		{control, authenticationFile, "- path: " + clusterInfoPath},
		{control, auditPolicyFile, "level: RequestResponse"},
		{control, kubeletConfig, "maxPods: 250"},
		{control, kubeletConfig, "memory.available: 1Gi"},
		{control, kubeletConfig, "nodefs.available: 10%"},
		{worker, kubeletConfig, "maxPods: 60"},
		{worker, kubeletConfig, "effect: NoExecute\n  key: gpu\n  value: \"yes\""},
		{worker, kubeletFlagsFile, "gpu=yes"},
		{worker, certsDir + "/registry.example.org:5000/ca.crt", "the authority"},
	} {
		if content := fileOf(t, want.node, want.path); !strings.Contains(content, want.text) {
			t.Errorf("%s of %s lacks %q:\n%s", want.path, want.node.Machine, want.text, content)
		}
	}
	if flags := fileOf(t, worker, kubeletFlagsFile); strings.Contains(flags, "pool") {
		t.Errorf("a kubelet may not give itself labels of kubernetes.io: %s", flags)
	}
	if worker.Labels["node.kubernetes.io/pool"] != "fast" {
		t.Errorf("the server is to set the label that the kubelet may not: %v", worker.Labels)
	}
	if flags := fileOf(t, worker, kubeletFlagsFile); strings.Contains(flags, "accelerator") || worker.Labels[v1alpha1.LabelAccelerator+"a100"] != "8" {
		t.Errorf("the server labels nodes by accelerators, and no kubelet restarts for a card: %v, %s", worker.Labels, flags)
	}
	hosts := fileOf(t, worker, certsDir+"/registry.example.org:5000/hosts.toml")
	own, first, second := strings.Index(hosts, "10.20.0.1:8443"), strings.Index(hosts, "10.20.0.3"), strings.Index(hosts, "10.20.0.4")
	if own < 0 || own > first || first > second || strings.Contains(hosts, "127.0.0.1") {
		t.Errorf("the content store comes first, the mirrors in their order:\n%s", hosts)
	}
	shared := render(t, v1alpha1.TopologyDevelopment, func(in *Input) { in.Registry.Local = "http://127.0.0.1:7446" })
	hosts = fileOf(t, shared.Nodes["machine-02"], certsDir+"/registry.k8s.io/hosts.toml")
	if want := "server = \"https://registry.k8s.io\"\n\n[host.\"http://127.0.0.1:7446\"]\ncapabilities = [\"pull\"]\n\n[host.\"https://10.20.0.1:8443\"]\ncapabilities = [\"pull\", \"resolve\"]"; !strings.HasPrefix(strings.ReplaceAll(hosts, "'", "\""), want) {
		t.Errorf("what other nodes gave comes first, and never says what a tag means:\n%s", hosts)
	}
}

func TestNoSecretIsPartOfAPlan(t *testing.T) {
	for name, n := range render(t, v1alpha1.TopologyProduction).Nodes {
		secrets := 0
		for _, f := range n.Files {
			if f.Secret == "" {
				continue
			}
			secrets++
			if len(f.Content) > 0 || f.Mode != modeSecret {
				t.Errorf("%s of %s has mode %v and %d bytes of content", f.Path, name, f.Mode, len(f.Content))
			}
		}
		if isControl := slices.Contains(n.Roles, v1alpha1.RoleControlPlane); isControl != (secrets > 0) {
			t.Errorf("%s with roles %v has %d secrets; they belong on control-plane machines only", name, n.Roles, secrets)
		}
	}
}

func TestWhenProgramsCome(t *testing.T) {
	controlPlane, worker := []v1alpha1.Role{v1alpha1.RoleControlPlane, v1alpha1.RoleEtcd}, []v1alpha1.Role{v1alpha1.RoleWorker}
	for _, tt := range []struct {
		program string
		roles   []v1alpha1.Role
		phase   PhaseName
		wanted  bool
	}{
		{"kubelet", worker, PhaseContent, true},
		{"containerd", controlPlane, PhaseContent, true},
		{"kubeadm", controlPlane, PhaseTools, true},
		{"kubeadm", worker, PhaseTools, false},
		{"kubectl", controlPlane, PhaseTools, true},
		{"kubectl", []v1alpha1.Role{v1alpha1.RoleEtcd}, PhaseTools, false},
		{"ctr", worker, PhaseTools, true},
	} {
		if phase, wanted := ProgramPhase(tt.program, tt.roles); phase != tt.phase || wanted != tt.wanted {
			t.Errorf("%s on %v: phase %s, wanted %v; want %s, %v", tt.program, tt.roles, phase, wanted, tt.phase, tt.wanted)
		}
	}
}

func TestPhasesCanBeDone(t *testing.T) {
	for _, preset := range Presets() {
		for name, n := range render(t, preset).Nodes {
			done := map[PhaseName]bool{}
			for len(done) < len(n.Phases) {
				before := len(done)
				for _, phase := range n.Phases {
					if !slices.ContainsFunc(phase.After, func(p PhaseName) bool { return !done[p] }) {
						done[phase.Name] = true
					}
				}
				if len(done) == before {
					t.Fatalf("%s, machine %s: of %d phases only %v can ever begin", preset, name, len(n.Phases), done)
				}
			}
		}
	}
}

// What waits for another machine, and for how long: docs/adr/0009-control-planes-take-turns.md.
func TestWhoWaitsForTheCluster(t *testing.T) {
	for _, preset := range Presets() {
		nodes := render(t, preset).Nodes
		first := ""
		for _, name := range slices.Sorted(maps.Keys(nodes)) {
			n := nodes[name]
			phase := func(name PhaseName) Phase {
				i := slices.IndexFunc(n.Phases, func(p Phase) bool { return p.Name == name })
				if i < 0 {
					return Phase{}
				}
				return n.Phases[i]
			}
			wait := phase(PhaseCluster)
			controlPlane, etcd := slices.Contains(n.Roles, v1alpha1.RoleControlPlane), slices.Contains(n.Roles, v1alpha1.RoleEtcd)
			if controlPlane && first == "" {
				if first = name; wait.Name != "" {
					t.Errorf("%s: the first control plane %s waits", preset, name)
				}
				continue
			}
			if !wait.AwaitAPI || wait.Patience != map[bool]time.Duration{true: turn}[controlPlane] {
				t.Errorf("%s: machine %s waits for the API: %v, with patience %s", preset, name, wait.AwaitAPI, wait.Patience)
			}
			if early := !slices.Contains(phase(PhaseKubelet).After, PhaseCluster); early != etcd {
				t.Errorf("%s: machine %s starts its kubelet early: %v", preset, name, early)
			}
			if controlPlane && !slices.Contains(phase(PhaseAPIServer).After, PhaseCluster) {
				t.Errorf("%s: the API server of %s does not wait for its turn", preset, name)
			}
			if controlPlane && etcd && !slices.Contains(wait.After, PhaseEtcd) {
				t.Errorf("%s: the turn of %s begins before its etcd", preset, name)
			}
		}
	}
}

func TestEveryCertificateIsUsed(t *testing.T) {
	for name, n := range render(t, v1alpha1.TopologySmall).Nodes {
		var users strings.Builder
		for _, pod := range n.StaticPods {
			users.Write(pod.File.Content)
		}
		for _, k := range n.Kubeconfigs {
			users.WriteString(k.Certificate + "\n")
		}
		for _, c := range n.Certificates {
			used := strings.Contains(users.String(), c.CertPath) && strings.Contains(users.String(), c.KeyPath) || strings.Contains(users.String(), c.Name+"\n")
			// kubeadm's own commands check etcd with it.
			if !used && c.Name != "etcd-healthcheck-client" {
				t.Errorf("nothing on %s uses certificate %s", name, c.Name)
			}
		}
	}
}

func TestCertificateTemplate(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range render(t, v1alpha1.TopologyLaptop).Nodes["machine-01"].Certificates {
		template := c.Template(now)
		if template.IsCA || len(template.ExtKeyUsage) != len(c.Usages) || !template.NotBefore.Before(now) || template.NotAfter.Sub(now) != c.TTL {
			t.Errorf("%s: %+v", c.Name, template)
		}
	}
}

func TestEncryptionConfig(t *testing.T) {
	if _, err := EncryptionConfig(nil); err == nil {
		t.Error("accepted no key")
	}
	got, err := EncryptionConfig([]EncryptionKey{{"new", "c2VjcmV0"}, {"old", "b2xk"}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- providers:
  - secretbox:
      keys:
      - name: new
        secret: c2VjcmV0
      - name: old
        secret: b2xk
  - identity: {}
  resources:
  - secrets
`
	if string(got) != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
