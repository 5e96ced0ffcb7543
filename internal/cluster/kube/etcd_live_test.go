package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/test/ca"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// TestEtcd runs real etcd with the flags and certificates of a plan: the members start in any order and become one
// cluster, one loses power and comes back, and a further one joins: as a node, as a learner, and with a vote.
func TestEtcd(t *testing.T) {
	require.Need(t, "netns", "etcd")
	t.Parallel()
	authority := ca.From(t, AuthoritySpec{Authority: AuthorityEtcd, CommonName: "etcd-ca", TTL: time.Hour}.Template(time.Now()))
	in := testInput(t, v1alpha1.TopologySmall, DefaultVersion(), func(in *Input) { in.Cluster.UID = "0b2f5a7e-1111-2222-3333-444455556666" })
	plan, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	rack := netns.New(t)
	rack.Bridge("br0")
	machines := map[string]*etcdMachine{}
	for i, m := range in.Machines {
		machines[m.Name] = newEtcdMachine(t, rack, i, plan.Nodes[m.Name], authority)
	}
	names := []string{"machine-03", "machine-01", "machine-02"}
	for _, name := range names {
		machines[name].start(t)
	}
	for _, name := range names {
		machines[name].awaitReady(t)
	}
	first := machines["machine-01"]
	first.call(t, "/v3/kv/put", map[string]any{"key": []byte("question"), "value": []byte("answer")})

	// Not all of them at once: each would first wait seven seconds for each of the others, to compare what they
	// have (the feature gate InitialCorruptCheck).
	third := machines["machine-03"]
	third.kill()
	third.start(t)
	third.awaitReady(t)
	reply := third.call(t, "/v3/kv/range", map[string]any{"key": []byte("question")})
	if want := base64.StdEncoding.EncodeToString([]byte("answer")); !strings.Contains(reply, want) {
		t.Fatalf("after the power cut the machine answers %s", reply)
	}

	// A fourth machine, which is a node before it has a member.
	in.Cluster.Spec.Etcd.AllowEvenMembers = true
	in.Machines = append(in.Machines, Machine{Name: "machine-04", Hostname: "node-04", Group: in.Machines[0].Group,
		Addresses: []netip.Addr{netip.MustParseAddr("10.20.0.14")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")}})
	coming, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	if command := etcdCommand(coming.Nodes["machine-04"]); command != nil {
		t.Fatalf("before its member was added it would start %v", command)
	}
	// etcd refuses until its members have seen each other for five seconds.
	var added struct{ Member struct{ ID string } }
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		reply, err := first.try("/v3/cluster/member/add", map[string]any{"peerURLs": []string{"https://10.20.0.14:2380"}, "isLearner": true})
		if err == nil {
			if err := json.Unmarshal([]byte(reply), &added); err != nil {
				t.Fatal(err)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("announce the fourth member: %v %s", err, reply)
		}
	}
	if in.Machines, err = Assign(in.Cluster, in.Groups, in.Machines, in.Machines[0].Etcd.InitialCluster); err != nil {
		t.Fatal(err)
	}
	grown, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if slices.Compare(etcdCommand(grown.Nodes[name]), etcdCommand(plan.Nodes[name])) != 0 {
			t.Errorf("%s would be restarted because another machine came", name)
		}
	}
	fourth := newEtcdMachine(t, rack, 3, grown.Nodes["machine-04"], authority)
	fourth.start(t)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		reply, err := fourth.try("/v3/maintenance/status", map[string]any{})
		if err == nil && strings.Contains(reply, `"isLearner":true`) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the learner does not start: %v %s", err, reply)
		}
	}
	// The phase is not done while the member has no vote.
	if err := fourth.probe(); err == nil {
		t.Error("a learner counts as ready")
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		reply, err := first.try("/v3/cluster/member/promote", map[string]any{"ID": added.Member.ID})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("promote the fourth member: %v %s", err, reply)
		}
	}
	fourth.awaitReady(t)
	if reply := fourth.call(t, "/v3/kv/range", map[string]any{"key": []byte("question")}); !strings.Contains(reply, `"count":"1"`) {
		t.Errorf("the machine that joined answers %s", reply)
	}
}

func etcdCommand(n NodePlan) []string {
	for _, pod := range n.StaticPods {
		if pod.Name == string(componentEtcd) {
			return pod.Pod.Spec.Containers[0].Command
		}
	}
	return nil
}

// etcdMachine is a network namespace with the files that the plan gives to etcd.
type etcdMachine struct {
	ns      *netns.NS
	plan    NodePlan
	command []string
	log     string
	process *exec.Cmd
	client  *http.Client
}

func newEtcdMachine(t *testing.T, rack *netns.NS, number int, plan NodePlan, authority *ca.CA) *etcdMachine {
	t.Helper()
	m := &etcdMachine{ns: netns.New(t), plan: plan}
	rack.Plug("br0", fmt.Sprintf("port%d", number), m.ns, "eth0")
	m.ns.Address("eth0", plan.Address.String()+"/24")

	root := t.TempDir()
	for _, c := range plan.Certificates {
		if c.Authority == AuthorityEtcd {
			issue(t, authority, root, c)
		}
	}
	if err := os.WriteFile(filepath.Join(root, pkiDir, "etcd/ca.crt"), authority.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, argument := range etcdCommand(plan) {
		flag, value, _ := strings.Cut(argument, "=")
		if strings.HasPrefix(value, "/") {
			argument = flag + "=" + root + value
		}
		m.command = append(m.command, argument)
	}
	m.log = filepath.Join(root, "log")
	pair, err := tls.LoadX509KeyPair(root+pkiDir+"/apiserver-etcd-client.crt", root+pkiDir+"/apiserver-etcd-client.key")
	if err != nil {
		t.Fatal(err)
	}
	m.client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: authority.Pool()},
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = m.ns.Do(func() error {
				conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}}
	t.Cleanup(m.kill)
	return m
}

func (m *etcdMachine) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m.process = exec.Command(m.command[0], m.command[1:]...)
	m.process.Stdout, m.process.Stderr = log, log
	if err := m.ns.Start(m.process); err != nil {
		t.Fatal(err)
	}
}

func (m *etcdMachine) kill() {
	if m.process != nil {
		_ = m.process.Process.Kill()
		_ = m.process.Wait()
		m.process = nil
	}
}

// probe asks as the plan's phase does.
func (m *etcdMachine) probe() error {
	i := slices.IndexFunc(m.plan.Phases, func(p Phase) bool { return p.Name == PhaseEtcd })
	response, err := m.client.Get(m.plan.Phases[i].Probes[0])
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", response.Status)
	}
	return nil
}

func (m *etcdMachine) awaitReady(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := m.probe()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(m.log)
			t.Fatalf("%s is not ready after a minute: %v\n%s", m.plan.Machine, err, log[max(0, len(log)-4000):])
		}
	}
}

// call speaks to the member as an API server does, with an API server's certificate.
func (m *etcdMachine) call(t *testing.T, path string, request map[string]any) string {
	t.Helper()
	reply, err := m.try(path, request)
	if err != nil {
		t.Fatalf("%s: %v %s", path, err, reply)
	}
	return reply
}

func (m *etcdMachine) try(path string, request map[string]any) (string, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return "", err
	}
	response, err := m.client.Post(urlOf(netip.AddrFrom4([4]byte{127, 0, 0, 1}), etcdClientPort)+path, "application/json", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	reply, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s", response.Status)
	}
	return string(reply), err
}

// issue writes a certificate that a plan requests, and its key, below root.
func issue(t *testing.T, authority *ca.CA, root string, c CertificateRequest) {
	t.Helper()
	cert, key := authority.IssuePEM(c.Template(time.Now()))
	for path, content := range map[string][]byte{c.CertPath: cert, c.KeyPath: key} {
		if err := os.MkdirAll(filepath.Dir(root+path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
