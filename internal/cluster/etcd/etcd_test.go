package etcd

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"coldrack.dev/test/ca"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// TestMembership runs real members of etcd, each on a machine of its own: they are added, get their votes, lead, and go. A
// learner that is down gets no vote, which etcd would give it.
func TestMembership(t *testing.T) {
	require.Need(t, "netns", "etcd")
	t.Parallel()
	r := newRig(t)
	first, second, third := r.machine(1), r.machine(2), r.machine(3)
	first.start("new", first.initial())
	c := r.client(first, second, third)
	ctx := t.Context()
	r.await("one leads", func() error { return c.MoveLeader(ctx, first.address) })

	initial, err := c.AddLearner(ctx, second.name, second.address)
	if want := []string{first.initial(), second.initial()}; err != nil || !slices.Equal(initial, want) {
		t.Fatalf("initial cluster %v, %v; want %v", initial, err, want)
	}
	if again, err := c.AddLearner(ctx, second.name, second.address); err != nil || !slices.Equal(again, initial) {
		t.Errorf("a second time: %v, %v", again, err)
	}
	if _, err := c.AddLearner(ctx, third.name, third.address); err == nil || !strings.Contains(err.Error(), "has never started") && !strings.Contains(err.Error(), "too many learner") {
		t.Errorf("a learner beside another one: %v", err)
	}
	if err := c.Promote(ctx, second.address); err == nil || !strings.Contains(err.Error(), "does not hear from the leader") {
		t.Errorf("a learner that has never started got its vote: %v", err)
	}
	second.start("existing", strings.Join(initial, ","))
	r.await("the learner is in sync", func() error {
		members, err := c.Members(ctx)
		for _, m := range members {
			if m.Node == second.address && m.Learner && m.Connected && m.InSync {
				return nil
			}
		}
		return fmt.Errorf("%+v: %w", members, err)
	})
	second.kill()
	if err := c.Promote(ctx, second.address); err == nil || !strings.Contains(err.Error(), "does not hear from the leader") {
		t.Errorf("a learner that is down got its vote: %v", err)
	}
	second.start("existing", strings.Join(initial, ","))
	r.await("the learner gets its vote", func() error { return c.Promote(ctx, second.address) })
	if err := c.Promote(ctx, second.address); err != nil {
		t.Errorf("a second time: %v", err)
	}
	r.await("the other one leads", func() error { return c.MoveLeader(ctx, second.address) })
	members, err := c.Members(ctx)
	if err != nil || len(members) != 2 || members[0].Name != first.name || members[0].Leader || !members[1].Leader || !members[0].Answers || members[1].Learner || members[1].Version == "" {
		t.Errorf("%+v, %v", members, err)
	}
	// The one that leads goes, and what it knew stays.
	r.await("the member goes", func() error { return c.Remove(ctx, second.address) })
	if err := c.Remove(ctx, second.address); err != nil {
		t.Errorf("a second time: %v", err)
	}
	r.await("one is left", func() error {
		members, err := c.Members(ctx)
		if err != nil || len(members) != 1 || !members[0].Leader {
			return fmt.Errorf("%+v: %w", members, err)
		}
		return nil
	})
	first.kill()
	if _, err := c.Members(ctx); err == nil || !strings.Contains(err.Error(), "cluster lab") {
		t.Errorf("nobody is there: %v", err)
	}
}

type rig struct {
	t         *testing.T
	authority *ca.CA
	hub, desk *netns.NS
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, authority: ca.New(t, "etcd"), hub: netns.New(t), desk: netns.New(t)}
	r.hub.Bridge("br0")
	r.hub.Plug("br0", "desk", r.desk, "eth0")
	r.desk.Address("eth0", "10.79.0.1/24")
	return r
}

// await tries again for as long as a slow machine may need: etcd refuses while its members have not seen each other for some seconds.
func (r *rig) await(what string, try func() error) {
	r.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (r *rig) client(machines ...*machine) *Client {
	var nodes []netip.Addr
	for _, m := range machines {
		nodes = append(nodes, m.address)
	}
	c, err := Connect(Target{Cluster: "lab", Nodes: nodes, CA: r.authority.PEM(), Certificate: r.authority.Issue(ca.Client("coldrack-server")),
		Dial: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = r.desk.Do(func() error {
				conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

// machine is a place for one member.
type machine struct {
	r       *rig
	name    string
	address netip.Addr
	ns      *netns.NS
	dir     string
	process *exec.Cmd
}

func (r *rig) machine(number int) *machine {
	m := &machine{r: r, name: fmt.Sprintf("etcd-%d", number), address: netip.MustParseAddr(fmt.Sprintf("10.79.0.%d", number+10)), ns: netns.New(r.t), dir: r.t.TempDir()}
	r.hub.Plug("br0", m.name, m.ns, "eth0")
	m.ns.Address("eth0", m.address.String()+"/24")
	template := ca.Server(m.address.String(), "127.0.0.1")
	template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	cert, key := r.authority.IssuePEM(template)
	for name, content := range map[string][]byte{"ca": r.authority.PEM(), "cert": cert, "key": key} {
		if err := os.WriteFile(filepath.Join(m.dir, name), content, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	r.t.Cleanup(m.kill)
	return m
}

func (m *machine) initial() string { return m.name + "=" + PeerURL(m.address) }

func (m *machine) start(state, initial string) {
	m.r.t.Helper()
	at := func(name string) string { return filepath.Join(m.dir, name) }
	client, peer := clientURL(m.address), PeerURL(m.address)
	m.process = exec.Command("etcd", "--name", m.name, "--data-dir", at("data"), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", initial, "--initial-cluster-state", state,
		"--cert-file", at("cert"), "--key-file", at("key"), "--trusted-ca-file", at("ca"), "--client-cert-auth",
		"--peer-cert-file", at("cert"), "--peer-key-file", at("key"), "--peer-trusted-ca-file", at("ca"), "--peer-client-cert-auth")
	m.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.ns.Start(m.process); err != nil {
		m.r.t.Fatal(err)
	}
}

func (m *machine) kill() {
	if m.process != nil {
		_ = m.process.Process.Kill()
		_ = m.process.Wait()
		m.process = nil
	}
}
