// Package nodeplan tests that a node's agent carries out what the server hands out: the real plans of every preset,
// with the real authorities, on a folder that stands for the machine.
package nodeplan

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/agent/bringup"
	"coldrack.dev/internal/agent/systemd"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/require"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// server is a cluster of a preset, as the server keeps it.
type server struct {
	t       *testing.T
	set     *members.Set
	cluster *v1alpha1.Cluster
}

func newServer(t *testing.T, preset v1alpha1.Topology, plugin v1alpha1.NetworkPlugin) *server {
	t.Helper()
	options := kube.PresetOptions{Name: "rack", Workers: 1}
	if preset == v1alpha1.TopologyProduction {
		options.VirtualIP = "10.20.0.5"
	}
	cluster, groups, err := kube.Preset(preset, options)
	check(t, err)
	cluster.UID, cluster.Generation, cluster.Status.ObservedGeneration = types.UID("uid"), 1, 1
	cluster.Spec.Network.Plugin = plugin
	s := members.Situation{Cluster: cluster, Clusters: []v1alpha1.Cluster{*cluster}, Groups: groups}
	for _, g := range groups {
		for range g.WantedReplicas() {
			n := len(s.Machines) + 11
			s.Machines = append(s.Machines, v1alpha1.Machine{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%d", n), Labels: g.Spec.Selector.MatchLabels},
				Spec:       v1alpha1.MachineSpec{Approved: true, Network: &v1alpha1.MachineNetwork{Address: fmt.Sprintf("10.20.0.%d", n)}},
				Status: v1alpha1.MachineStatus{Installed: &v1alpha1.InstalledStatus{},
					Inventory: &v1alpha1.Inventory{Memory: resource.MustParse("8Gi"), NICs: []v1alpha1.NIC{{Name: "eth0", Boot: true}}}},
			})
		}
	}
	decision, err := members.Decide(s)
	check(t, err)
	cluster.Status.Nodes = decision.Nodes
	material, err := members.NewMaterial(cluster, time.Now())
	check(t, err)
	secret, err := material.Secret(cluster)
	check(t, err)
	body := []byte("kubelet")
	enc, err := zstd.NewWriter(nil)
	check(t, err)
	packed := enc.EncodeAll(body, nil)
	program := wire.Program{Name: "kubelet", Path: "/usr/bin/kubelet", Digest: digest(body), Size: int64(len(body)), Version: cluster.Spec.Version, Phase: "content",
		Content: wire.Content{Digest: digest(packed), Size: int64(len(packed))}}
	set := members.New(members.Options{Programs: programs{program}, Registry: &kube.Registry{URL: "https://10.20.0.1:7444", CA: []byte("ca\n")}})
	set.Put(members.Record{Cluster: cluster, Groups: groups, Machines: s.Machines, Secret: secret})
	return &server{t, set, cluster}
}

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

type programs []wire.Program

func (p programs) Programs(string) ([]wire.Program, error) { return p, nil }

// Copy is the content of the one program.
func (programs) Copy(_ context.Context, _ string, _ wire.Content, w io.Writer) error {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		return err
	}
	_, err = w.Write(enc.EncodeAll([]byte("kubelet"), nil))
	return err
}

// machine is one that has been installed.
type machine struct {
	*server
	name, root string
	mu         sync.Mutex
	report     wire.PhaseReport
	active     map[string]bool
}

func (m *machine) Certificate(_ context.Context, r wire.CertificateRequest) (wire.CertificateResponse, error) {
	public, err := pki.ParseCSR([]byte(r.CSR))
	if err != nil {
		return wire.CertificateResponse{}, err
	}
	certificate, leaf, err := m.set.Sign(m.name, r.Cluster, r.Name, public)
	if err != nil {
		return wire.CertificateResponse{}, err
	}
	return wire.CertificateResponse{Certificate: string(certificate), ExpiresAt: leaf.NotAfter}, nil
}

func (m *machine) EtcdData(context.Context, string, io.Writer) error {
	return errors.New("nothing is restored here")
}

func (m *machine) Phases(_ context.Context, r wire.PhaseReport) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report = r
	return nil
}

// Do starts whatever it is asked to, and sets kernel parameters as systemd-sysctl does.
func (m *machine) Do(_ context.Context, verb string, units ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, unit := range units {
		m.active[unit] = true
		if unit != "systemd-sysctl.service" && unit != "systemd-modules-load.service" {
			continue
		}
		files, err := filepath.Glob(m.root + "/etc/*/*kubernetes.conf")
		if err != nil {
			return err
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				key, value, isParameter := strings.Cut(strings.TrimSpace(line), " = ")
				path := filepath.Join(m.root, "/sys/module", key, "x")
				if isParameter {
					path = filepath.Join(m.root, "/proc/sys", strings.ReplaceAll(key, ".", "/"))
				}
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(value+"\n"), 0o644)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (m *machine) State(_ context.Context, unit string) (systemd.UnitState, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.active[unit] {
		return systemd.UnitState{Load: "loaded", Active: "active", File: "enabled"}, nil
	}
	return systemd.UnitState{Load: "loaded", Active: "inactive", File: "disabled"}, nil
}

func (*machine) Log(context.Context, string, int) []string { return nil }

type routes struct{}

func (routes) Set([]wire.NodeRoute, []wire.ServiceRoute) error { return nil }

type balancer struct{}

func (balancer) Health() (bool, []string) { return true, nil }

func (balancer) Set(wire.LoadBalancer) error { return nil }

// bringUp has the agent carry out the machine's plan, in which everything answers at once.
func (s *server) bringUp(name string) *machine {
	s.t.Helper()
	m := &machine{server: s, name: name, root: s.t.TempDir(), active: map[string]bool{}}
	a, _ := s.set.Node(name)
	if a.Plan == nil {
		s.t.Fatalf("%s has no plan: %s", name, a.Message)
	}
	b, err := json.Marshal(a)
	check(s.t, err)
	a = wire.NodeAssignment{} // what the server shares must not be changed
	check(s.t, json.Unmarshal(b, &a))
	well := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.t.Cleanup(well.Close)
	for i := range a.Plan.Phases {
		for j := range a.Plan.Phases[i].Probes {
			a.Plan.Phases[i].Probes[j] = well.URL
		}
	}
	log := &bytes.Buffer{}
	e, err := bringup.New(bringup.Options{Log: slog.New(slog.NewTextHandler(log, nil)), Root: m.root, Server: m, Systemd: m, Router: routes{}, Balancer: balancer{},
		Content: func(string, func(string, error, time.Duration)) bringup.Fetcher { return programs{} },
		Pace: bringup.Pace{Probe: time.Millisecond, ProbeLimit: 5 * time.Second, Restart: time.Second, Explain: time.Second, Retry: 10 * time.Millisecond, MaxRetry: time.Second,
			Again: time.Hour, ReportDelay: time.Millisecond, ReportAgain: time.Hour},
		Now: time.Now, Sleep: func(ctx context.Context, d time.Duration) {
			select {
			case <-ctx.Done():
			case <-time.After(d):
			}
		}})
	check(s.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	e.Assign(a)
	done := false
	for deadline := time.Now().Add(time.Minute); !done && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		m.mu.Lock()
		done = m.report.Done && m.report.Version == a.Version
		m.mu.Unlock()
	}
	cancel()
	check(s.t, <-ended)
	if !done {
		s.t.Fatalf("%s is not done: %+v\n%s", name, m.report, log)
	}
	if len(m.report.Certificates) != len(a.Plan.Certificates) || m.report.KubernetesVersion != s.cluster.Spec.Version {
		s.t.Errorf("%s reports %+v", name, m.report)
	}
	for _, f := range a.Plan.Files {
		if f.Secret && bytes.Contains(log.Bytes(), f.Content) {
			s.t.Errorf("%s: secret %s is in the log", name, f.Path)
		}
	}
	return m
}

func TestEveryPresetsMachinesComeUp(t *testing.T) {
	for name, tt := range map[string]struct {
		preset v1alpha1.Topology
		plugin v1alpha1.NetworkPlugin
	}{
		"laptop": {v1alpha1.TopologyLaptop, v1alpha1.NetworkRouted}, "development": {v1alpha1.TopologyDevelopment, v1alpha1.NetworkFlannel},
		"small": {v1alpha1.TopologySmall, v1alpha1.NetworkRouted}, "production": {v1alpha1.TopologyProduction, v1alpha1.NetworkRouted},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, tt.preset, tt.plugin)
			groups := map[string]bool{} // one machine of each
			for _, n := range s.cluster.Status.Nodes {
				if !groups[n.Group] {
					groups[n.Group] = true
					s.bringUp(n.Machine)
				}
			}
		})
	}
}

// TestKubeadmReadsTheNode has the real kubeadm, in the node's own tree and without a network, find every certificate,
// those in kubeconfigs included.
func TestKubeadmReadsTheNode(t *testing.T) {
	require.Need(t, "netns", "ip", "kubeadm", "chroot")
	s := newServer(t, v1alpha1.TopologyLaptop, v1alpha1.NetworkRouted)
	m := s.bringUp(s.cluster.Status.Nodes[0].Machine)
	kubeadm, err := exec.LookPath("kubeadm")
	check(t, err)
	b, err := os.ReadFile(kubeadm)
	check(t, err)
	check(t, os.WriteFile(filepath.Join(m.root, "kubeadm"), b, 0o755))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// kubeadm insists on an interface with an address; nothing answers there.
	const network = "ip link set lo up && ip link add eth0 type veth peer name far && ip addr add 10.20.0.11/24 dev eth0 && " +
		"ip link set eth0 up && ip route add default via 10.20.0.1 && exec chroot \"$0\" /kubeadm certs check-expiration --output json"
	out, err := exec.CommandContext(ctx, "unshare", "--net", "sh", "-c", network, m.root).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Logf("%s", exit.Stderr)
		}
		t.Fatalf("%v: %s", err, out)
	}
	var report struct {
		Certificates []struct {
			Name    string `json:"name"`
			Missing bool   `json:"missing"`
		} `json:"certificates"`
	}
	check(t, json.Unmarshal(out[max(0, bytes.IndexByte(out, '{')):], &report))
	found := map[string]bool{}
	for _, c := range report.Certificates {
		found[c.Name] = !c.Missing
	}
	for _, want := range []string{"admin.conf", "apiserver", "apiserver-etcd-client", "apiserver-kubelet-client", "controller-manager.conf",
		"etcd-healthcheck-client", "etcd-peer", "etcd-server", "front-proxy-client", "scheduler.conf"} {
		if !found[want] {
			t.Errorf("kubeadm does not find %s; it says %s", want, out)
		}
	}
}
