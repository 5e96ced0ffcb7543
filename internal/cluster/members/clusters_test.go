package members

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/contract/wire"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type programs struct {
	err    error
	digest string
}

func (p programs) Programs(version string) ([]wire.Program, error) {
	return []wire.Program{{Name: "kubelet", Path: "/usr/bin/kubelet", Version: version, Digest: p.digest}}, p.err
}

// rack is a cluster of a preset, with as many machines as it wants, all installed.
func rack(t testing.TB, name string, preset v1alpha1.Topology, workers int) Situation {
	t.Helper()
	options := kube.PresetOptions{Name: name, Workers: workers}
	if preset == v1alpha1.TopologyProduction {
		options.VirtualIP = "10.0.0.5"
	}
	cluster, groups, err := kube.Preset(preset, options)
	check(t, err)
	cluster.UID, cluster.Generation, cluster.Status.ObservedGeneration = types.UID(name+"-uid"), 1, 1
	s := Situation{Cluster: cluster, Clusters: []v1alpha1.Cluster{*cluster}, Groups: groups}
	number := 0
	for _, g := range groups {
		for range g.WantedReplicas() {
			number++
			m := machine(fmt.Sprintf("%s-%03d", name, number), fmt.Sprintf("10.0.%d.%d", number/200, 10+number%200))
			m.Labels = g.Spec.Selector.MatchLabels
			s.Machines = append(s.Machines, m)
		}
	}
	return s
}

func machine(name, address string) v1alpha1.Machine {
	m := v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MachineSpec{Approved: true, Location: v1alpha1.Location{Rack: "row 2/r1"}}}
	if address != "" {
		m.Spec.Network = &v1alpha1.MachineNetwork{Address: address}
	}
	m.Status.Installed = &v1alpha1.InstalledStatus{}
	m.Status.Inventory = &v1alpha1.Inventory{Memory: resource.MustParse("8Gi"), NICs: []v1alpha1.NIC{{Name: "eth0", Boot: true}}}
	return m
}

// record is the situation after a leader has recorded what it decided.
func record(t testing.TB, s Situation) Record {
	t.Helper()
	decision, err := Decide(s)
	check(t, err)
	s.Cluster.Status.Nodes = decision.Nodes
	material, err := NewMaterial(s.Cluster, time.Now())
	check(t, err)
	secret, err := material.Secret(s.Cluster)
	check(t, err)
	return Record{Cluster: s.Cluster, Groups: ownGroups(s.Cluster.Name, s.Groups), Machines: s.Machines, Secret: secret}
}

func newSet() *Set {
	return New(Options{Programs: programs{}, Registry: &kube.Registry{URL: "https://10.0.0.1:7444", CA: []byte("ca\n")}})
}

func TestMaterialSurvivesTheStore(t *testing.T) {
	cluster := &v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: "rack", UID: "1"}}
	made, err := NewMaterial(cluster, time.Now())
	check(t, err)
	secret, err := made.Secret(cluster)
	check(t, err)
	if secret.Name != "cluster-rack" || secret.Type != SecretType || len(secret.Data) != 9 {
		t.Errorf("stored as %s, %s with %d values", secret.Name, secret.Type, len(secret.Data))
	}
	read, err := ParseMaterial(secret, nil)
	check(t, err)
	for name, a := range made.authorities {
		if !a.cert.Equal(read.authorities[name].cert) {
			t.Errorf("authority %s changed on its way", name)
		}
		if err := a.cert.CheckSignatureFrom(read.authorities[name].cert); err != nil || !a.cert.IsCA {
			t.Errorf("authority %s: %v", name, err)
		}
	}
	for _, ref := range []kube.SecretRef{kube.SecretServiceAccountKey, kube.SecretEncryptionConfig} {
		a, err := made.secret(ref)
		check(t, err)
		b, err := read.secret(ref)
		check(t, err)
		if string(a) != string(b) || len(a) == 0 {
			t.Errorf("%s changed on its way", ref)
		}
	}
	again, err := NewMaterial(cluster, time.Now())
	check(t, err)
	other, err := again.Secret(cluster)
	check(t, err)
	for name := range secret.Data {
		t.Run("without "+name, func(t *testing.T) {
			broken := secret.DeepCopy()
			delete(broken.Data, name)
			if _, err := ParseMaterial(broken, nil); err == nil || !strings.Contains(err.Error(), "restore") {
				t.Errorf("taken: %v", err)
			}
		})
		if name == fileEncryptionKey {
			continue
		}
		t.Run("with another cluster's "+name, func(t *testing.T) {
			broken := secret.DeepCopy()
			broken.Data[name] = other.Data[name]
			if _, err := ParseMaterial(broken, nil); err == nil || !strings.Contains(err.Error(), "data[") {
				t.Errorf("taken: %v", err)
			}
		})
	}
}

func TestDecide(t *testing.T) {
	names := func(nodes []v1alpha1.ClusterNode) string {
		var list []string
		for _, n := range nodes {
			list = append(list, n.Machine)
		}
		return strings.Join(list, " ")
	}
	for _, test := range []struct {
		name    string
		preset  v1alpha1.Topology
		change  func(s *Situation)
		nodes   string
		waiting string
	}{
		{"machines that are there become nodes", v1alpha1.TopologyDevelopment, func(*Situation) {}, "a-001 a-002 a-003", ""},
		{"an etcd machine without an address holds up all", v1alpha1.TopologySmall, func(s *Situation) { s.Machines[1].Spec.Network = nil }, "",
			"machine a-002 has no address yet"},
		{"an etcd machine that is not there holds up all", v1alpha1.TopologySmall, func(s *Situation) { s.Machines = s.Machines[:2] }, "",
			"2 of 3 machines that are to hold etcd"},
		{"a worker without an address holds up nobody", v1alpha1.TopologyDevelopment, func(s *Situation) { s.Machines[2].Spec.Network = nil }, "a-001 a-002",
			"machine a-003 has no address yet"},
		{"a machine that is not approved is not taken", v1alpha1.TopologyDevelopment, func(s *Situation) { s.Machines[2].Spec.Approved = false }, "a-001 a-002",
			"1 more would match but are not approved"},
		{"another cluster's machine is not taken", v1alpha1.TopologyDevelopment, func(s *Situation) {
			s.Clusters = append(s.Clusters, v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Status: v1alpha1.ClusterStatus{Nodes: []v1alpha1.ClusterNode{{Machine: "a-003", Group: "b-all"}}}})
		}, "a-001 a-002", "MachineGroup a-workers"},
		{"two machines of one name are told apart by a person", v1alpha1.TopologyDevelopment, func(s *Situation) { s.Machines[2].Spec.Hostname = "a-002" }, "a-001 a-002",
			"machines a-002 and a-003 would both be node a-002"},
		{"two machines of one address are told apart by a person", v1alpha1.TopologyDevelopment, func(s *Situation) { s.Machines[2].Spec.Network.Address = "10.0.0.12" }, "a-001 a-002",
			"both have address 10.0.0.12"},
		{"a released worker is no longer a node", v1alpha1.TopologyDevelopment, func(s *Situation) {
			recordInto(t, s)
			s.Machines[2].Spec.Approved, s.Machines[2].Status.Installed = false, nil
		}, "a-001 a-002", "MachineGroup a-workers"},
		{"a released machine with etcd still counts", v1alpha1.TopologySmall, func(s *Situation) {
			recordInto(t, s)
			s.Machines[0].Spec.Approved, s.Machines[0].Status.Installed = false, nil
		}, "a-001 a-002 a-003", "machine a-001 holds a member of etcd"},
		{"a machine that runs stays although its approval was taken back", v1alpha1.TopologyDevelopment, func(s *Situation) {
			recordInto(t, s)
			s.Machines[2].Spec.Approved = false
		}, "a-001 a-002 a-003", ""},
		{"a node keeps its name and address whatever is written later", v1alpha1.TopologyDevelopment, func(s *Situation) {
			recordInto(t, s)
			s.Machines[1].Spec.Hostname, s.Machines[1].Spec.Network.Address = "new", "10.0.0.99"
		}, "a-001 a-002 a-003", ""},
		{"a group that grows takes what is free, and its machines stay", v1alpha1.TopologyDevelopment, func(s *Situation) {
			recordInto(t, s)
			s.Machines = slices.Insert(s.Machines, 0, machine("a-000", "10.0.0.50"))
			s.Groups[1].Spec.Replicas = new(int32(3))
		}, "a-000 a-001 a-002 a-003", ""},
		{"a machine with etcd that comes later is a node, before it has a member", v1alpha1.TopologySmall, func(s *Situation) {
			recordInto(t, s)
			s.Machines = append(s.Machines, machine("a-004", "10.0.0.50"))
			s.Groups[0].Spec.Replicas = new(int32(4))
		}, "a-001 a-002 a-003 a-004", ""},
		{"a released worker of a cluster that was up leaves by steps", v1alpha1.TopologyDevelopment, func(s *Situation) {
			recordInto(t, s)
			s.Cluster.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionBroughtUp, Status: metav1.ConditionTrue}}
			s.Machines[2].Spec.Approved, s.Machines[2].Status.Installed = false, nil
		}, "a-001 a-002 a-003", ""},
		{"the place of a node that leaves is free", v1alpha1.TopologyDevelopment, func(s *Situation) {
			recordInto(t, s)
			s.Cluster.Status.Nodes[2].Leaving = "it is too hot"
			s.Machines = append(s.Machines, machine("a-004", "10.0.0.50"))
		}, "a-001 a-002 a-003 a-004", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := rack(t, "a", test.preset, -1)
			test.change(&s)
			before := slices.Clone(s.Cluster.Status.Nodes)
			d, err := Decide(s)
			check(t, err)
			if got := names(d.Nodes); got != test.nodes {
				t.Errorf("nodes %s, want %s", got, test.nodes)
			}
			if got := strings.Join(d.Waiting, "\n"); !strings.Contains(got, test.waiting) || (test.waiting == "") != (got == "") {
				t.Errorf("waits for %q, want %q", got, test.waiting)
			}
			for _, was := range before {
				i := slices.IndexFunc(d.Nodes, func(n v1alpha1.ClusterNode) bool { return n.Machine == was.Machine })
				if i >= 0 && !reflect.DeepEqual(d.Nodes[i], was) {
					t.Errorf("%s was decided as %+v and is now %+v", was.Machine, was, d.Nodes[i])
				}
			}
		})
	}
}

func TestForeignNodesGetNetworksThatNobodyElseHas(t *testing.T) {
	s := rack(t, "a", v1alpha1.TopologyDevelopment, 2)
	recordInto(t, &s)
	guest, err := DecideForeign(s.Cluster, "guest")
	check(t, err)
	s.Cluster.Status.ForeignNodes = []v1alpha1.ForeignNode{guest}
	again, err := DecideForeign(s.Cluster, "guest")
	check(t, err)
	other, err := DecideForeign(s.Cluster, "other")
	check(t, err)
	s.Machines = append(s.Machines, machine("a-004", "10.0.0.44"))
	s.Groups[1].Spec.Replicas = new(int32(3))
	recordInto(t, &s)
	if guest.PodCIDRs[0] != "10.244.3.0/24" || again.PodCIDRs[0] != guest.PodCIDRs[0] || other.PodCIDRs[0] != "10.244.4.0/24" ||
		len(s.Cluster.Status.Nodes) != 4 || s.Cluster.Status.Nodes[3].PodCIDRs[0] != "10.244.4.0/24" {
		t.Errorf("guest %v, then %v, other %v, a machine of ours then %+v", guest, again, other, s.Cluster.Status.Nodes)
	}
}

func recordInto(t testing.TB, s *Situation) {
	t.Helper()
	d, err := Decide(*s)
	check(t, err)
	s.Cluster.Status.Nodes = d.Nodes
	s.Clusters[0] = *s.Cluster
}

func TestOnlyWhatIsRecordedIsHandedOut(t *testing.T) {
	set := newSet()
	s := rack(t, "a", v1alpha1.TopologyDevelopment, 2)
	r := record(t, s)
	recorded := r.Cluster.Status.Nodes

	nobody, changed := set.Node("a-001")
	if nobody.Plan != nil || nobody.Version == "" {
		t.Fatalf("before anything is known: %+v", nobody)
	}
	withoutKeys := r
	withoutKeys.Secret = nil
	set.Put(withoutKeys)
	<-changed
	if a, _ := set.Node("a-001"); a.Plan != nil || !strings.Contains(a.Message, "no keys yet") {
		t.Errorf("without keys: %+v", a.Message)
	}
	withoutNodes := r
	withoutNodes.Cluster = r.Cluster.DeepCopy()
	withoutNodes.Cluster.Status.Nodes = nil
	set.Put(withoutNodes)
	if a, _ := set.Node("a-001"); a.Plan != nil {
		t.Error("a plan was handed out before the machine was recorded")
	}
	unchecked := r
	unchecked.Cluster = r.Cluster.DeepCopy()
	unchecked.Cluster.Generation = 2
	set.Put(unchecked)
	if a, _ := set.Node("a-001"); a.Plan != nil || !strings.Contains(a.Message, "not in effect") {
		t.Errorf("before it was checked: %+v", a.Message)
	}
	foreign := r
	foreign.Secret = r.Secret.DeepCopy()
	foreign.Secret.Annotations[AnnotationClusterUID] = "earlier"
	set.Put(foreign)
	if a, _ := set.Node("a-001"); a.Plan != nil || !strings.Contains(a.Message, "earlier cluster") {
		t.Errorf("with an earlier cluster's keys: %+v", a.Message)
	}

	set.Put(r)
	first, changed := set.Node("a-001")
	if first.Plan == nil || first.Plan.NodeName != "a-001" || len(first.Plan.Programs) != 1 || first.Plan.KubernetesVersion != r.Cluster.Spec.Version {
		t.Fatalf("no plan: %+v", first)
	}
	// What changes for nobody wakes nobody.
	same := r
	same.Cluster = r.Cluster.DeepCopy()
	same.Cluster.Status.Phase, same.Cluster.Status.Nodes[0].Ready, same.Cluster.ResourceVersion = v1alpha1.ClusterReady, true, "7"
	set.Put(same)
	select {
	case <-changed:
		t.Error("a change of status woke the nodes")
	default:
	}
	// A second life of the server hands out the same.
	other := newSet()
	other.Put(r)
	if again, _ := other.Node("a-001"); again.Version != first.Version {
		t.Errorf("after a restart version %s, before %s", again.Version, first.Version)
	}
	// A change that cannot be rendered leaves what there was.
	broken := r
	broken.Cluster = r.Cluster.DeepCopy()
	broken.Cluster.Spec.Network.ServiceCIDRs = []string{"nonsense"}
	set.Put(broken)
	if a, _ := set.Node("a-001"); a.Version != first.Version {
		t.Error("a change that cannot be rendered took the plan away")
	}
	if v, _, _ := set.View("a"); !strings.Contains(v.Problem, "serviceCIDRs") {
		t.Errorf("problem %q", v.Problem)
	}
	paused := r
	paused.Cluster = r.Cluster.DeepCopy()
	paused.Cluster.Spec.Paused = true
	set.Put(paused)
	if a, _ := set.Node("a-001"); !a.Paused || a.Plan == nil || a.Version == first.Version {
		t.Errorf("paused: %v %s", a.Paused, a.Version)
	}
	// A machine that leaves is told, and the others' routes change.
	left := r
	left.Cluster = r.Cluster.DeepCopy()
	left.Cluster.Status.Nodes = recorded[:2]
	set.Put(left)
	if a, _ := set.Node("a-003"); a.Plan != nil || a.Message != nobody.Message {
		t.Errorf("after it left: %+v", a.Message)
	}
	if a, _ := set.Node("a-001"); a.Version == first.Version {
		t.Error("the others keep a route to a machine that left")
	}
	set.Remove("a")
	if a, _ := set.Node("a-001"); a.Plan != nil {
		t.Error("a removed cluster's plan is handed out")
	}
	set.Options.Programs = programs{err: errors.New("no bundle has it")}
	set.Put(r)
	if a, _ := set.Node("a-001"); a.Plan != nil || a.Message != "no bundle has it" {
		t.Errorf("without programs: %+v", a.Message)
	}
	set.Options.Programs = programs{}
	set.Refresh()
	if a, _ := set.Node("a-001"); a.Version != first.Version {
		t.Error("after the import, no plan")
	}
}

func TestNodesOfALargeClusterHaveAKit(t *testing.T) {
	set := newSet()
	set.KitFrom = 4
	small, large := rack(t, "small", v1alpha1.TopologyDevelopment, 2), rack(t, "large", v1alpha1.TopologyDevelopment, 3)
	set.Put(record(t, small))
	if a, _ := set.Node("small-001"); a.Plan == nil || a.Plan.Kit != nil {
		t.Errorf("of three nodes: %+v", a)
	}
	if _, _, ok, err := set.Kit("small-001"); ok || err != nil {
		t.Errorf("of three nodes: %v %v", ok, err)
	}
	set.Put(record(t, large))
	a, _ := set.Node("large-001")
	if a.Plan == nil || a.Plan.Kit == nil {
		t.Fatalf("of four nodes: %+v", a)
	}
	local := false
	for _, f := range a.Plan.Files {
		local = local || strings.HasSuffix(f.Path, "/hosts.toml") && strings.Contains(string(f.Content), "http://"+a.Plan.Kit.Listen)
	}
	if !local {
		t.Error("containerd is not told where the agent gives what it has")
	}
	programs, images, ok, err := set.Kit("large-002")
	if err != nil || !ok || len(programs) != 1 || !slices.ContainsFunc(images, func(i string) bool { return strings.Contains(i, "/kube-proxy:") }) ||
		slices.ContainsFunc(images, func(i string) bool { return strings.Contains(i, "kube-apiserver") }) {
		t.Errorf("kit: %v, %v, %v, %v", programs, images, ok, err)
	}
	if _, _, ok, _ := set.Kit("nobody"); ok {
		t.Error("a machine of no cluster has a kit")
	}
}

func TestSecretsGoToTheControlPlaneOnly(t *testing.T) {
	set := newSet()
	s := rack(t, "a", v1alpha1.TopologyProduction, 2)
	r := record(t, s)
	set.Put(r)
	for _, n := range r.Cluster.Status.Nodes {
		a, _ := set.Node(n.Machine)
		text, err := json.Marshal(a)
		check(t, err)
		secrets := 0
		for _, f := range a.Plan.Files {
			if f.Secret {
				secrets++
			}
			for name, content := range r.Secret.Data {
				private := name == fileEncryptionKey || strings.HasSuffix(name, ".key")
				if private && strings.Contains(string(f.Content), strings.TrimSpace(string(content))) && !f.Secret {
					t.Errorf("%s of machine %s contains %s", f.Path, n.Machine, name)
				}
			}
		}
		if want := map[bool]int{true: 2}[n.Group == "a-control"]; secrets != want || n.Group != "a-control" && strings.Contains(string(text), "PRIVATE KEY") {
			t.Errorf("machine %s of group %s gets %d secrets, want %d", n.Machine, n.Group, secrets, want)
		}
		for _, authority := range []string{"ca.key", "etcd-ca.key", "front-proxy-ca.key"} {
			for _, f := range a.Plan.Files {
				if string(f.Content) == string(r.Secret.Data[authority]) {
					t.Errorf("machine %s gets %s", n.Machine, authority)
				}
			}
		}
	}
	if _, err := nodePlan("a", kube.NodePlan{Machine: "m", Roles: []v1alpha1.Role{v1alpha1.RoleWorker},
		Files: []kube.File{{Path: "/x", Secret: kube.SecretServiceAccountKey}}}, &Material{}); err == nil {
		t.Error("a worker is given a secret that its plan names")
	}
}

func TestSign(t *testing.T) {
	set := newSet()
	r := record(t, rack(t, "a", v1alpha1.TopologyProduction, 2))
	other := rack(t, "b", v1alpha1.TopologyLaptop, 0)
	set.Put(r)
	set.Put(record(t, other))
	machineOf := func(group string) string {
		i := slices.IndexFunc(r.Cluster.Status.Nodes, func(n v1alpha1.ClusterNode) bool { return n.Group == group })
		return r.Cluster.Status.Nodes[i].Machine
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	check(t, err)
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	for _, test := range []struct {
		name, machine, cluster, certificate string
		key                                 crypto.PublicKey
		refused                             string
	}{
		{"a control plane gets its API server's", machineOf("a-control"), "a", "apiserver", p256.Public(), ""},
		{"an etcd machine gets its peer's", machineOf("a-etcd"), "a", "etcd-peer", p256.Public(), ""},
		{"a worker gets its kubelet's", machineOf("a-workers"), "a", "kubelet-client", p256.Public(), ""},
		{"a worker gets no API server's", machineOf("a-workers"), "a", "apiserver", p256.Public(), "not to have"},
		{"a worker gets no administrator's", machineOf("a-workers"), "a", "admin", p256.Public(), "not to have"},
		{"an etcd machine gets no administrator's", machineOf("a-etcd"), "a", "admin", p256.Public(), "not to have"},
		{"a control plane gets no etcd peer's", machineOf("a-control"), "a", "etcd-peer", p256.Public(), "not to have"},
		{"a machine of another cluster gets nothing", "b-001", "a", "kubelet-client", p256.Public(), "no node of cluster"},
		{"a machine of no cluster gets nothing", "c-001", "a", "kubelet-client", p256.Public(), "no node of cluster"},
		{"a weaker key is refused", machineOf("a-workers"), "a", "kubelet-client", p224.Public(), "must be ECDSA-P256"},
		{"a key of another kind is refused", machineOf("a-workers"), "a", "kubelet-client", rsa2048.Public(), "is RSA-2048"},
	} {
		t.Run(test.name, func(t *testing.T) {
			text, leaf, err := set.Sign(test.machine, test.cluster, test.certificate, test.key)
			if test.refused != "" {
				if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), test.refused) {
					t.Errorf("got %v, want a refusal with %q", err, test.refused)
				}
				return
			}
			check(t, err)
			assignment, _ := set.Node(test.machine)
			i := slices.IndexFunc(assignment.Plan.Certificates, func(c wire.NodeCertificate) bool { return c.Name == test.certificate })
			planned := assignment.Plan.Certificates[i]
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM([]byte(planned.Authority))
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
				t.Error(err)
			}
			var addresses []string
			for _, ip := range leaf.IPAddresses {
				addresses = append(addresses, ip.String())
			}
			if leaf.Subject.CommonName != planned.CommonName || !slices.Equal(leaf.Subject.Organization, planned.Organizations) ||
				!slices.Equal(leaf.DNSNames, planned.DNSNames) || !slices.Equal(addresses, planned.IPAddresses) {
				t.Errorf("says %s, %v, %v, planned is %+v", leaf.Subject, leaf.DNSNames, addresses, planned)
			}
			if block, _ := pem.Decode(text); block == nil || string(block.Bytes) != string(leaf.Raw) {
				t.Error("the PEM is another certificate")
			}
		})
	}
}

func TestClientCertificate(t *testing.T) {
	set := newSet()
	r := record(t, rack(t, "a", v1alpha1.TopologyLaptop, 0))
	r.Cluster.Spec.PKI.AuthorityTTL = &metav1.Duration{Duration: time.Hour}
	set.Put(r)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	_, leaf, err := set.ClientCertificate("a", "ann", []string{"dev"}, time.Hour, key.Public())
	check(t, err)
	if leaf.Subject.CommonName != "ann" || !slices.Equal(leaf.Subject.Organization, []string{"dev"}) || leaf.IsCA || time.Until(leaf.NotAfter) > time.Hour ||
		!slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("%s until %s for %v", leaf.Subject, leaf.NotAfter, leaf.ExtKeyUsage)
	}
	for _, test := range []struct {
		name, cluster, user string
		ttl                 time.Duration
	}{{"no such cluster", "b", "ann", time.Hour}, {"nobody", "a", "", time.Hour}, {"no time", "a", "ann", 0}} {
		if _, _, err := set.ClientCertificate(test.cluster, test.user, nil, test.ttl, key.Public()); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	_, leaf, err = set.ClientCertificate("a", "ann", nil, 100*365*24*time.Hour, key.Public())
	check(t, err)
	material, err := ParseMaterial(r.Secret, nil)
	check(t, err)
	if authority := material.authorities[kube.AuthorityKubernetes].cert; leaf.NotAfter.After(authority.NotAfter) {
		t.Errorf("valid until %s, its authority until %s", leaf.NotAfter, authority.NotAfter)
	}
}

func TestPreview(t *testing.T) {
	set := newSet()
	s := rack(t, "a", v1alpha1.TopologyDevelopment, 2)
	cluster, groups := s.Cluster, s.Groups
	now := Situation{Machines: s.Machines}

	p, err := set.Preview(cluster, groups, now)
	check(t, err)
	if p.Old != nil || p.New == nil || len(p.New.Nodes) != 3 || len(p.Waiting) != 0 {
		t.Fatalf("a new cluster: %+v", p.Decision)
	}
	if a, _ := set.Node("a-001"); a.Plan != nil {
		t.Error("a preview was carried out")
	}
	set.Put(record(t, s))
	now.Clusters, now.Groups = []v1alpha1.Cluster{*s.Cluster}, s.Groups
	more := slices.Clone(groups)
	more[1].Spec.Replicas = new(int32(3))
	now.Machines = append(now.Machines, machine("a-004", "10.0.0.44"))
	p, err = set.Preview(cluster, more, now)
	check(t, err)
	if p.Old == nil || len(p.Old.Nodes) != 3 || len(p.New.Nodes) != 4 || string(p.New.Nodes["a-001"].Files[0].Content) != string(p.Old.Nodes["a-001"].Files[0].Content) {
		t.Errorf("with one machine more: %+v", p.Decision)
	}
	p, err = set.Preview(cluster, groups, Situation{})
	check(t, err)
	if p.New != nil || len(p.Waiting) == 0 {
		t.Errorf("with too few machines: %+v", p)
	}
}

// BenchmarkRack is what one changed machine costs a server of 300 nodes: one rendering, and each node's plan made
// anew.
func BenchmarkRack(b *testing.B) {
	set := newSet()
	s := rack(b, "a", v1alpha1.TopologyProduction, 295)
	s.Cluster.Spec.Network.PodCIDRs = []string{"10.128.0.0/14"}
	r := record(b, s)
	set.Put(r)
	full := r.Cluster.Status.Nodes
	for i := range b.N {
		r.Cluster = r.Cluster.DeepCopy()
		r.Cluster.Status.Nodes = full[:len(full)-(i+1)%2]
		began := time.Now()
		set.Put(r)
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/render")
		began = time.Now()
		for _, n := range r.Cluster.Status.Nodes {
			if a, _ := set.Node(n.Machine); a.Plan == nil {
				b.Fatal(a.Message)
			}
		}
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/plans")
		b.ReportMetric(float64(len(r.Cluster.Status.Nodes)), "nodes")
	}
}
