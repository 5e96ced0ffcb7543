package peopleapi

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
	"coldrack.dev/test/ca"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// supplied is content that has everything of every version.
type supplied struct{}

func (supplied) KubernetesVersions() []string                    { return []string{"v1.36.3", "v1.37.2"} }
func (supplied) Programs(string) ([]bundle.StoredProgram, error) { return nil, nil }
func (supplied) Container(string) (bundle.Descriptor, bool)      { return bundle.Descriptor{}, true }
func (supplied) Artifacts() []bundle.Artifact                    { return nil }

// nodePrograms are those that a version needs.
type nodePrograms struct{}

func (nodePrograms) Programs(version string) (programs []wire.Program, err error) {
	cluster, _, err := kube.Preset(v1alpha1.TopologyProduction, kube.PresetOptions{Name: "any", Version: version, Workers: 1})
	if err != nil {
		return nil, err
	}
	required, err := kube.RequirementsOf(cluster)
	for _, p := range required.Programs {
		programs = append(programs, wire.Program{Name: p.Name, Path: p.Path, Version: p.Version})
	}
	return programs, err
}

// site is a real store with a cluster that runs: what the server has recorded of it is all that a plan rests on.
type site struct {
	t       testing.TB
	client  client.Client
	api     http.Handler
	people  *ClusterAPI
	cluster *v1alpha1.Cluster
	groups  []v1alpha1.MachineGroup
	set     *members.Set
	// kubernetes is where the cluster's own API is; empty: nowhere.
	kubernetes string
	// lacks is an image that no bundle has.
	lacks string
}

// signed is a certificate of the cluster's own authority.
func (s *site) signed(t testing.TB, name string, addresses ...net.IP) *tls.Certificate {
	key := ca.NewKey(t)
	pemText, err := s.set.SignTemplate(s.cluster.Name, &x509.Certificate{Subject: pkix.Name{CommonName: name}, IPAddresses: addresses,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, key.Public())
	check(t, err)
	block, _ := pem.Decode(pemText)
	return &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
}

// serveKubernetes answers as the cluster's API, as far as a plan asks it; what a real one says of budgets and pods is tested
// in kubeapi.
func (s *site) serveKubernetes(t testing.TB, answers map[string]any) {
	view, _, _ := s.set.View(s.cluster.Name)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer, ok := answers[r.URL.Path]
		if !ok && r.URL.Path != "/readyz" {
			w.WriteHeader(http.StatusNotFound)
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	var addresses []net.IP
	for _, a := range view.APIServers {
		addresses = append(addresses, net.IP(a.Addr().AsSlice()))
	}
	server.TLS = &tls.Config{Certificates: []tls.Certificate{*s.signed(t, "kube-apiserver", addresses...)}}
	server.StartTLS()
	t.Cleanup(server.Close)
	s.kubernetes = server.Listener.Addr().String()
}

func newSite(t testing.TB, preset v1alpha1.Topology, options kube.PresetOptions) *site {
	t.Helper()
	authority := ca.New(t, "test CA")
	cert, key := authority.IssuePEM(ca.Server("127.0.0.1"))
	plane, err := controlplane.Start(t.Context(), controlplane.Config{
		Logger: slog.New(slog.DiscardHandler), DataDir: t.TempDir(), Address: "127.0.0.1:0", ServingCert: cert, ServingKey: key,
		ClientCAs: authority.PEM(), Version: "v0.1.0-test", EncryptionKey: bytes.Repeat([]byte{7}, 32),
	})
	check(t, err)
	t.Cleanup(plane.Stop)
	scheme := runtime.NewScheme()
	check(t, v1alpha1.AddToScheme(scheme))
	c, err := client.New(plane.RESTConfig(), client.Options{Scheme: scheme})
	check(t, err)

	cluster, groups, err := kube.Preset(preset, options)
	check(t, err)
	cluster.Spec.Version = "v1.36.3"
	check(t, c.Create(t.Context(), cluster))
	s := &site{t: t, client: c, cluster: cluster}
	situation := members.Situation{Cluster: cluster, Clusters: []v1alpha1.Cluster{*cluster}}
	number := 0
	for _, g := range groups {
		check(t, c.Create(t.Context(), &g))
		s.groups = append(s.groups, g)
		for range g.WantedReplicas() {
			number++
			situation.Machines = append(situation.Machines, *s.machine(fmt.Sprintf("m-%d", number), number, g.Spec.Selector.MatchLabels))
		}
	}
	situation.Groups = s.groups
	decision, err := members.Decide(situation)
	check(t, err)
	hour := metav1.NewTime(time.Now().Add(-time.Hour))
	for i := range decision.Nodes {
		decision.Nodes[i].Ready, decision.Nodes[i].ReadyChangedAt = true, &hour
	}
	cluster.Status = v1alpha1.ClusterStatus{Phase: v1alpha1.ClusterReady, ObservedGeneration: cluster.Generation, Nodes: decision.Nodes,
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionBroughtUp, Status: metav1.ConditionTrue, Reason: "EverythingReady", LastTransitionTime: hour}}}
	check(t, c.Status().Update(t.Context(), cluster))
	for i := range s.groups {
		g := &s.groups[i]
		g.Status.ObservedGeneration, g.Status.Machines = g.Generation, decision.Placed[g.Name]
		check(t, c.Status().Update(t.Context(), g))
	}
	set := members.New(members.Options{Programs: nodePrograms{}, Log: slog.New(slog.DiscardHandler), ImageDigest: func(name string) string {
		if name == s.lacks {
			return ""
		}
		return "sha256:" + name
	}})
	material, err := members.NewMaterial(cluster, time.Now())
	check(t, err)
	secret, err := material.Secret(cluster)
	check(t, err)
	set.Put(members.Record{Cluster: cluster, Groups: s.groups, Machines: situation.Machines, Secret: secret})
	if view, _, _ := set.View(cluster.Name); view.Plan == nil {
		t.Fatalf("the cluster has no plan: %s", view.Problem)
	}
	api := NewClusterAPI(slog.New(slog.DiscardHandler))
	s.set = set
	api.Open(Backend{Clusters: set, Client: c, Content: supplied{},
		DialNode: func(ctx context.Context, network, address string) (net.Conn, error) {
			if s.kubernetes == "" {
				return nil, errors.New("the nodes are switched off")
			}
			return (&net.Dialer{}).DialContext(ctx, network, s.kubernetes)
		},
		ServerCertificate: func(string) (*tls.Certificate, error) { return s.signed(t, "coldrack-server"), nil }})
	s.people, s.api = api, api.Handlers()[peoplewire.PathPlan]
	return s
}

// machine makes one that is installed and ready.
func (s *site) machine(name string, number int, labels map[string]string) *v1alpha1.Machine {
	s.t.Helper()
	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: v1alpha1.MachineSpec{
		Approved: true, Identifiers: v1alpha1.Identifiers{Serial: name}, Network: &v1alpha1.MachineNetwork{Address: fmt.Sprintf("10.0.0.%d", 10+number)}}}
	check(s.t, s.client.Create(s.t.Context(), m))
	m.Status.Phase, m.Status.Installed = v1alpha1.PhaseReady, &v1alpha1.InstalledStatus{IntentID: "1", At: metav1.Now()}
	m.Status.Inventory = &v1alpha1.Inventory{ReportedAt: metav1.Now(), Memory: resource.MustParse("8Gi"), NICs: []v1alpha1.NIC{{Name: "eth0", Boot: true}}}
	check(s.t, s.client.Status().Update(s.t.Context(), m))
	return m
}

// plan asks for the plan of objects as a person would apply them.
func (s *site) plan(objects ...client.Object) peoplewire.PlanResponse {
	s.t.Helper()
	request := peoplewire.PlanRequest{}
	for _, o := range objects {
		o = o.DeepCopyObject().(client.Object)
		o.SetManagedFields(nil)
		o.SetResourceVersion("")
		o.SetUID("")
		switch o := o.(type) {
		case *v1alpha1.Cluster:
			o.APIVersion, o.Kind, o.Status = v1alpha1.GroupVersion.String(), "Cluster", v1alpha1.ClusterStatus{}
		case *v1alpha1.MachineGroup:
			o.APIVersion, o.Kind, o.Status = v1alpha1.GroupVersion.String(), "MachineGroup", v1alpha1.MachineGroupStatus{}
		case *v1alpha1.Profile:
			o.APIVersion, o.Kind = v1alpha1.GroupVersion.String(), "Profile"
		}
		raw, err := json.Marshal(o)
		check(s.t, err)
		request.Objects = append(request.Objects, raw)
	}
	body, err := json.Marshal(request)
	check(s.t, err)
	w := httptest.NewRecorder()
	s.api.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodPost, peoplewire.PathPlan, bytes.NewReader(body)))
	if w.Code != http.StatusOK {
		s.t.Fatalf("%d: %s", w.Code, w.Body)
	}
	var response peoplewire.PlanResponse
	check(s.t, json.Unmarshal(w.Body.Bytes(), &response))
	return response
}

func TestMain(m *testing.M) {
	controlplane.SendKlogTo(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// hourAgo is when the nodes of a site became what they are.
func hourAgo(c *v1alpha1.Cluster) string {
	return c.Status.Nodes[0].ReadyChangedAt.UTC().Format(time.RFC3339)
}

// stepsOf is a forecast in few words.
func stepsOf(f *peoplewire.Forecast) string {
	if f == nil {
		return "no forecast"
	}
	var texts []string
	for _, s := range f.Steps {
		text := s.Step + " " + cmp.Or(s.Machine, "all")
		if s.Outage {
			text += " !"
		}
		texts = append(texts, text)
	}
	for _, b := range f.EndsAt {
		texts = append(texts, "ends: "+b.Machine+" "+b.Reason)
	}
	return strings.Join(texts, "\n")
}

func TestAPlanForetellsTheStepsOfAClusterThatRuns(t *testing.T) {
	s := newSite(t, v1alpha1.TopologyProduction, kube.PresetOptions{Name: "lab", Workers: 2, VirtualIP: "10.0.0.5"})
	group := func(role v1alpha1.Role) *v1alpha1.MachineGroup {
		for i := range s.groups {
			if s.groups[i].HasRole(role) {
				return s.groups[i].DeepCopy()
			}
		}
		t.Fatalf("no group with %s", role)
		return nil
	}
	unchanged := s.plan(s.cluster)
	if len(unchanged.Clusters) != 1 || len(unchanged.Refused) > 0 || len(unchanged.Clusters[0].Invalid) > 0 || stepsOf(unchanged.Clusters[0].Forecast) != "" {
		t.Fatalf("nothing changed: %+v, steps %q", unchanged, stepsOf(unchanged.Clusters[0].Forecast))
	}
	upgraded := s.cluster.DeepCopy()
	upgraded.Spec.Version = "v1.37.2"
	got := stepsOf(s.plan(upgraded).Clusters[0].Forecast)
	after := 0
	for _, want := range []string{"take ", "change ", "give-back "} {
		if i := strings.Index(got[after:], want); i < 0 {
			t.Fatalf("an upgrade without %q after %d:\n%s", want, after, got)
		} else {
			after += i
		}
	}
	nodes := s.cluster.Status.Nodes
	order := map[string]int{}
	for i, line := range strings.Split(got, "\n") {
		if name, ok := strings.CutPrefix(line, "change "); ok {
			order[name] = i // the last change of a node counts
		}
	}
	if len(order) != len(nodes) {
		t.Errorf("%d of %d nodes change:\n%s", len(order), len(nodes), got)
	}
	workers := group(v1alpha1.RoleWorker).Name
	for _, w := range nodes {
		for _, n := range nodes {
			if w.Group == workers && n.Group != workers && order[w.Machine] < order[n.Machine] {
				t.Errorf("worker %s changes before server %s:\n%s", w.Machine, n.Machine, got)
			}
		}
	}
	if strings.Contains(got, "!") || strings.Contains(got, "ends:") {
		t.Errorf("an upgrade of production interrupts something, or does not end:\n%s", got)
	}

	s.lacks = "registry.k8s.io/kube-apiserver:v1.37.2"
	if got := stepsOf(s.plan(upgraded).Clusters[0].Forecast); !strings.HasPrefix(got, "ends:  no imported bundle has all of what v1.37.2 needs: image "+s.lacks) {
		t.Errorf("an upgrade whose bundle lacks an image:\n%s", got)
	}
	s.lacks = ""

	fewer := group(v1alpha1.RoleWorker)
	fewer.Spec.Replicas = new(int32(1))
	last := nodes[len(nodes)-1].Machine
	if got, want := stepsOf(s.plan(fewer).Clusters[0].Forecast), fmt.Sprintf("take %[1]s\ndrain %[1]s\nrelease %[1]s", last); got != want {
		t.Errorf("one worker fewer:\n%s", got)
	}
	more := group(v1alpha1.RoleWorker)
	more.Spec.Replicas = new(int32(3))
	if got := stepsOf(s.plan(more).Clusters[0].Forecast); !strings.Contains(got, "ends:  group "+more.Name+" lacks 1 machine(s)") {
		t.Errorf("a worker more without a machine:\n%s", got)
	}
	spare := s.machine("m-9", 90, more.Spec.Selector.MatchLabels)
	f := s.plan(more).Clusters[0].Forecast
	if got := stepsOf(f); got != "add "+spare.Name || !f.Steps[0].CarriedOut {
		t.Errorf("a worker more with a machine:\n%s", got)
	}

	replaced := group(v1alpha1.RoleWorker)
	replaced.Spec.Kubelet.Config, replaced.Spec.Rollout.MaxSurge = &runtime.RawExtension{Raw: []byte(`{"maxPods": 99}`)}, new(intstr.FromInt32(1))
	if got := stepsOf(s.plan(replaced).Clusters[0].Forecast); !strings.HasPrefix(got, "replace ") || !strings.Contains(got, "add "+spare.Name) {
		t.Errorf("workers that a spare replaces:\n%s", got)
	}

	even := group(v1alpha1.RoleEtcd)
	even.Spec.Replicas = new(int32(4))
	if response := s.plan(even); len(response.Refused) != 1 || !strings.Contains(response.Refused[0].Status.Message, "would have 4 etcd members") {
		t.Errorf("four etcd members: %+v", response.Refused)
	}
	skipped := s.cluster.DeepCopy()
	skipped.Spec.Version = "v1.38.0"
	if response := s.plan(skipped); len(response.Refused) != 1 || !strings.Contains(response.Refused[0].Status.Message, "skips a minor release") {
		t.Errorf("a minor skipped: %+v", response.Refused)
	}

	// Budgets are asked of the cluster itself.
	if f := s.plan(fewer).Clusters[0].Forecast; !strings.Contains(strings.Join(f.Notes, "\n"), "PodDisruptionBudgets are not taken into account: ") {
		t.Errorf("the cluster's API is silent: %q", f.Notes)
	}
	node := nodes[len(nodes)-1].NodeName
	s.serveKubernetes(t, map[string]any{
		"/apis/policy/v1/poddisruptionbudgets": policyv1.PodDisruptionBudgetList{TypeMeta: metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudgetList"},
			Items: []policyv1.PodDisruptionBudget{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{}},
				Status: policyv1.PodDisruptionBudgetStatus{DesiredHealthy: 1, ExpectedPods: 1}}}},
		"/api/v1/namespaces/shop/pods": corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"},
			Items: []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0"}, Spec: corev1.PodSpec{NodeName: node}}}},
	})
	if got, want := stepsOf(s.plan(fewer).Clusters[0].Forecast), "ends: "+last+" PodDisruptionBudget shop/db never allows to evict pod shop/db-0"; got != want {
		t.Errorf("one worker fewer, with a pod that never goes:\n%s", got)
	}

	// A dead member is in the store, and so in the plan.
	dead := s.cluster.DeepCopy()
	for i := range dead.Status.Nodes {
		if dead.Status.Nodes[i].Etcd != nil {
			dead.Status.Nodes[i].Ready = false
			break
		}
	}
	check(t, s.client.Status().Update(t.Context(), dead))
	if got := stepsOf(s.plan(upgraded).Clusters[0].Forecast); got != "pull m-1\npull m-2\npull m-3\npull m-4\npull m-5\npull m-6\npull m-7\nbackup all\ntake m-1\nchange m-1\nends: m-1 is not healthy since "+hourAgo(dead) {
		t.Errorf("an upgrade with a dead member:\n%s", got)
	}
}

func TestAPlanSaysThatTheOnlyServerIsAnOutage(t *testing.T) {
	s := newSite(t, v1alpha1.TopologyLaptop, kube.PresetOptions{Name: "lab"})
	upgraded := s.cluster.DeepCopy()
	upgraded.Spec.Version = "v1.37.2"
	if got := stepsOf(s.plan(upgraded).Clusters[0].Forecast); !strings.Contains(got, "ends: m-1 etcd has 1 voting member(s)") {
		t.Errorf("without leave:\n%s", got)
	}
	upgraded.Spec.Upgrade.AllowDowntime = true
	if got := stepsOf(s.plan(upgraded).Clusters[0].Forecast); !strings.Contains(got, "change m-1 !") || strings.Contains(got, "ends:") {
		t.Errorf("with leave:\n%s", got)
	}
	// Another flag of the API server restarts it, and nothing else.
	flag := s.cluster.DeepCopy()
	flag.Spec.APIServer.ExtraArgs, flag.Spec.Upgrade.AllowDowntime = map[string]string{"max-requests-inflight": "500"}, true
	f := s.plan(flag).Clusters[0].Forecast
	if got := stepsOf(f); got != "take m-1\nchange m-1 !\ngive-back m-1" || f.Steps[1].Disruption != "the API does not answer until its server is back" {
		t.Errorf("a flag:\n%s\n%+v", got, f)
	}
}

// Another image in a profile is a plan of its own: who is installed anew, in which order.
func TestAPlanOfAnotherImage(t *testing.T) {
	s := newSite(t, v1alpha1.TopologyProduction, kube.PresetOptions{Name: "lab", Workers: 2, VirtualIP: "10.0.0.5"})
	for _, name := range []string{"debian-13", "debian-14"} {
		check(t, s.client.Create(t.Context(), &v1alpha1.Image{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ImageSpec{
			Family: "debian", Arch: "amd64", Size: resource.MustParse("1Gi"), Index: "sha256:" + strings.Repeat("1", 64), Digest: "sha256:" + strings.Repeat("2", 64)}}))
	}
	profile := &v1alpha1.Profile{ObjectMeta: metav1.ObjectMeta{Name: "nodes"}, Spec: v1alpha1.ProfileSpec{Image: "debian-13"}}
	check(t, s.client.Create(t.Context(), profile))
	for _, n := range s.cluster.Status.Nodes {
		m := &v1alpha1.Machine{}
		check(t, s.client.Get(t.Context(), client.ObjectKey{Name: n.Machine}, m))
		status := m.Status
		m.Spec.Profile = profile.Name
		check(t, s.client.Update(t.Context(), m))
		m.Status = status
		m.Status.Installed.Image = "debian-13"
		check(t, s.client.Status().Update(t.Context(), m))
	}
	next := profile.DeepCopy()
	next.Spec.Image = "debian-14"
	response := s.plan(next)
	if len(response.Clusters) != 1 || response.Clusters[0].Empty() {
		t.Fatalf("no cluster is planned: %+v", response)
	}
	got := stepsOf(response.Clusters[0].Forecast)
	after := 0
	for _, want := range []string{"take ", "remove-member ", "change ", "add-learner ", "promote ", "take "} {
		i := strings.Index(got[after:], want)
		if i < 0 {
			t.Fatalf("without %q after %d:\n%s", want, after, got)
		}
		after += i
	}
	for _, n := range s.cluster.Status.Nodes {
		if !strings.Contains(got, "change "+n.Machine) {
			t.Errorf("%s is not installed anew:\n%s", n.Machine, got)
		}
	}
	next.Spec.Image = "debian-99"
	if got := stepsOf(s.plan(next).Clusters[0].Forecast); got != "ends:  machines are to have image debian-99 (profile nodes), which no imported bundle has" {
		t.Errorf("an image that there is not:\n%s", got)
	}
	next.Spec.Image = "debian-13"
	if response := s.plan(next); len(response.Clusters) != 1 || !response.Clusters[0].Empty() || stepsOf(response.Clusters[0].Forecast) != "" {
		t.Errorf("nothing changes: %+v", response.Clusters)
	}
}
