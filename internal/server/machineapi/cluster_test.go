package machineapi

import (
	"context"
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/content/swarm/kit"
	"coldrack.dev/internal/contract/wire"
)

type noPrograms struct{}

func (noPrograms) Programs(string) ([]wire.Program, error) { return nil, nil }

// clusterOf is a cluster of a control-plane machine and workers, as a leader would have recorded it.
func clusterOf(t *testing.T, name string, machines ...string) members.Record {
	t.Helper()
	cluster, groups, err := kube.Preset(v1alpha1.TopologyDevelopment, kube.PresetOptions{Name: name, Workers: len(machines) - 1})
	check(t, err)
	s := members.Situation{Cluster: cluster, Groups: groups}
	for i, machine := range machines {
		m := v1alpha1.Machine{Spec: v1alpha1.MachineSpec{Approved: true, Network: &v1alpha1.MachineNetwork{Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(10 + i)}).String()}}}
		m.Name = machine
		m.Labels = map[string]string{"control": map[bool]string{true: "yes"}[i == 0]}
		s.Machines = append(s.Machines, m)
	}
	s.Groups[0].Spec.Selector.MatchLabels = map[string]string{"control": "yes"}
	s.Groups[1].Spec.Selector.MatchLabels = map[string]string{"control": ""}
	decision, err := members.Decide(s)
	check(t, err)
	if len(decision.Nodes) != len(machines) {
		t.Fatalf("decided %+v", decision)
	}
	cluster.Status.Nodes = decision.Nodes
	material, err := members.NewMaterial(cluster, time.Now())
	check(t, err)
	secret, err := material.Secret(cluster)
	check(t, err)
	return members.Record{Cluster: cluster, Groups: groups, Machines: s.Machines, Secret: secret}
}

func (a *agent) node(version string, wait string) (wire.NodeAssignment, error) {
	return send[wire.NodeAssignment](a, "GET", wire.PathNode+"?version="+version+"&wait="+wait, nil)
}

func (a *agent) certificate(cluster, name, csr string) (wire.CertificateResponse, error) {
	return send[wire.CertificateResponse](a, "POST", wire.PathCertificate, wire.CertificateRequest{Cluster: cluster, Name: name, CSR: csr})
}

type kitOf map[string]kit.Kit

func (k kitOf) Kit(_ context.Context, machine string) (kit.Kit, bool, error) {
	found, ok := k[machine]
	return found, ok, nil
}

// dataIn is a folder with the data of members, by restore and machine.
type dataIn string

func (d dataIn) MemberData(restore, machine string) (*os.File, error) {
	return os.Open(filepath.Join(string(d), restore, machine))
}

func TestAMachineGetsTheDataOfItsOwnMemberAlone(t *testing.T) {
	s := newServer(t)
	session, one := s.installed(wire.Identifiers{MACs: []string{"52:54:00:00:00:01"}, UUID: "00000000-0000-4000-8000-000000000001"}, "i1")
	_, two := s.installed(wire.Identifiers{MACs: []string{"52:54:00:00:00:02"}, UUID: "00000000-0000-4000-8000-000000000002"}, "i2")
	ask := func(a *agent, restore string) (string, error) {
		return send[string](a, "GET", wire.PathEtcdData+"?restore="+restore, nil)
	}
	if _, err := ask(one, "r1"); code(err) != wire.CodeNotFound {
		t.Errorf("a server without restores: %v", err)
	}
	dir := t.TempDir()
	s.api.Restores = dataIn(dir)
	check(t, os.Mkdir(filepath.Join(dir, "r1"), 0o700))
	check(t, os.WriteFile(filepath.Join(dir, "r1", one.name), []byte(`"of one"`), 0o600))
	if data, err := ask(one, "r1"); err != nil || data != "of one" {
		t.Errorf("its own: %q, %v", data, err)
	}
	for what, try := range map[string]struct {
		as      *agent
		restore string
		code    string
	}{
		"a machine whose member has none": {two, "r1", wire.CodeNotFound},
		"another restore":                 {one, "r2", wire.CodeNotFound},
		"a machine in discovery":          {session, "r1", wire.CodeForbidden},
	} {
		if data, err := ask(try.as, try.restore); code(err) != try.code {
			t.Errorf("%s: %q, %v", what, data, err)
		}
	}
}

func TestNodesOfClusters(t *testing.T) {
	s := newServer(t)
	set := members.New(members.Options{Programs: noPrograms{}})
	s.api.Clusters = set
	s.api.BootURL = func(local, _ netip.Addr) string { return "http://" + local.String() + ":7080" }
	session, control := s.installed(wire.Identifiers{MACs: []string{"52:54:00:00:00:01"}, UUID: "00000000-0000-4000-8000-000000000001"}, "i1")
	_, worker := s.installed(wire.Identifiers{MACs: []string{"52:54:00:00:00:02"}, UUID: "00000000-0000-4000-8000-000000000002"}, "i2")
	_, other := s.installed(wire.Identifiers{MACs: []string{"52:54:00:00:00:03"}, UUID: "00000000-0000-4000-8000-000000000003"}, "i3")

	idle, err := control.node("", "")
	check(t, err)
	if idle.Plan != nil || idle.Version == "" || !strings.Contains(idle.Message, "no cluster") {
		t.Fatalf("a machine of no cluster: %+v", idle)
	}
	type result struct {
		wire.NodeAssignment
		err error
	}
	told := make(chan result, 1)
	go func() {
		a, err := control.node(idle.Version, "60")
		told <- result{a, err}
	}()
	set.Put(clusterOf(t, "rack", control.name, worker.name))
	set.Put(clusterOf(t, "other", other.name))
	a := <-told
	check(t, a.err)
	if a.Plan == nil || a.Plan.NodeName != control.name || a.Plan.ContentURL != "http://127.0.0.1:7080" {
		t.Fatalf("told %+v", a.NodeAssignment)
	}
	again, err := control.node(a.Version, "0.01")
	check(t, err)
	if again.Version != a.Version || again.Plan == nil {
		t.Errorf("after a wait in vain: %s, %v", again.Version, again.Plan != nil)
	}
	if _, err := control.node("", "x"); code(err) != wire.CodeBadRequest {
		t.Errorf("a wait that is no number: %v", err)
	}

	fetch := func(a *agent) (kit.Kit, error) { return send[kit.Kit](a, "GET", wire.PathKit, nil) }
	if _, err := fetch(worker); code(err) != wire.CodeNotFound {
		t.Errorf("a server without kits: %v", err)
	}
	s.api.Kits, s.api.Swarm = kitOf{worker.name: {Digest: "sha256:1"}}, swarm.NewTracker(swarm.TrackerOptions{})
	if k, err := fetch(worker); err != nil || k.Digest != "sha256:1" {
		t.Errorf("a worker's kit: %+v, %v", k, err)
	}
	if _, err := fetch(control); code(err) != wire.CodeNotFound {
		t.Errorf("a machine without a kit: %v", err)
	}
	if _, err := fetch(session); code(err) != wire.CodeForbidden {
		t.Errorf("a session: %v", err)
	}

	key := newKey(t)
	for _, test := range []struct {
		name          string
		as            *agent
		cluster, cert string
		csr           string
		code          string
	}{
		{"a control plane's API server", control, "rack", "apiserver", csr(t, key), ""},
		{"a worker's kubelet", worker, "rack", "kubelet-client", csr(t, key), ""},
		{"a worker wants the API server's", worker, "rack", "apiserver", csr(t, key), wire.CodeForbidden},
		{"a worker wants the administrator's", worker, "rack", "admin", csr(t, key), wire.CodeForbidden},
		{"a machine of another cluster", other, "rack", "kubelet-client", csr(t, key), wire.CodeForbidden},
		{"an unknown cluster", worker, "\x1b[2J", "kubelet-client", csr(t, key), wire.CodeForbidden},
		{"no request", worker, "rack", "kubelet-client", "hello", wire.CodeBadRequest},
		{"a session, not a node", session, "rack", "kubelet-client", csr(t, key), wire.CodeForbidden},
		{"nobody", s.agent(), "rack", "kubelet-client", csr(t, key), wire.CodeForbidden},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, err := test.as.certificate(test.cluster, test.cert, test.csr)
			if code(err) != test.code {
				t.Fatalf("got %v, want %q", err, test.code)
			}
			if err != nil {
				if strings.Contains(err.Error(), "\x1b") {
					t.Errorf("the refusal repeats what it was sent: %q", err.Error())
				}
				return
			}
			leaf, err := pki.ParseCertificate([]byte(answer.Certificate))
			check(t, err)
			if !key.PublicKey.Equal(leaf.PublicKey) || !leaf.NotAfter.Equal(answer.ExpiresAt) || leaf.PublicKeyAlgorithm != x509.ECDSA {
				t.Errorf("signed %+v", leaf.Subject)
			}
		})
	}
	workers, err := worker.node("", "")
	check(t, err)
	for _, f := range workers.Plan.Files {
		if f.Secret {
			t.Errorf("a worker is sent %s", f.Path)
		}
	}

	_, err = send[wire.Empty](worker, "POST", wire.PathPhases, wire.PhaseReport{Cluster: "rack", Version: workers.Version,
		Phases:       []wire.Step{{Name: "kubelet", State: wire.StateRunning, Message: "waits\x1b[31m"}},
		Certificates: map[string]time.Time{"a": time.Unix(2000, 0), "b": time.Unix(1000, 0)}, KubernetesVersion: "v1.37.2"})
	check(t, err)
	if up := s.fleet.Live(worker.name).Bringup; up == nil || up.Cluster != "rack" || up.Phases[0].Message != "waits[31m" || up.CertificatesExpireAt.Unix() != 1000 {
		t.Errorf("reported %+v", up)
	}
	if _, err := send[wire.Empty](session, "POST", wire.PathPhases, wire.PhaseReport{}); code(err) != wire.CodeForbidden {
		t.Errorf("a session reports phases: %v", err)
	}

	// A machine that is released while it waits gets nothing more.
	go func() {
		a, err := worker.node(workers.Version, "60")
		told <- result{a, err}
	}()
	m, err := s.store.UpdateStatus(t.Context(), worker.name, func(m *v1alpha1.Machine) error {
		m.Status.Identity, m.Status.Installed = nil, nil
		return nil
	})
	check(t, err)
	s.fleet.Put(m)
	if a := <-told; code(a.err) != wire.CodeForbidden {
		t.Errorf("a released machine: %v, %v", a.Plan != nil, a.err)
	}
	if _, err := worker.certificate("rack", "kubelet-client", csr(t, key)); code(err) != wire.CodeForbidden {
		t.Errorf("a released machine has a certificate signed: %v", err)
	}
	if _, err := send[wire.Empty](worker, "POST", wire.PathPhases, wire.PhaseReport{}); code(err) != wire.CodeForbidden {
		t.Errorf("a released machine reports: %v", err)
	}
}
