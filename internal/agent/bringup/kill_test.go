package bringup

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/nodecert"
	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/require"
)

const (
	envRoot   = "COLDRACK_TEST_BRINGUP_ROOT"
	envServer = "COLDRACK_TEST_BRINGUP_SERVER"
	envPin    = "COLDRACK_TEST_BRINGUP_PIN"
)

func TestMain(m *testing.M) {
	if os.Getenv(envRoot) != "" {
		if err := node(os.Getenv(envRoot), os.Getenv(envServer), os.Getenv(envPin)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// node is an agent in a process of its own. It ends when the server knows that everything is done.
func node(root, server, pin string) error {
	p, err := client.ParsePin(pin)
	if err != nil {
		return err
	}
	c, err := client.New(client.Options{Server: server, Pin: p, Agent: "test"})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	a, err := c.Node(ctx, "", time.Second)
	if err != nil {
		return err
	}
	record := &recorder{}
	e, err := New(Options{Log: slog.New(slog.DiscardHandler), Root: root, Server: &until{c, a.Version, cancel}, Systemd: newTwin(root), Router: record.router(),
		Balancer: record.lb(), Content: newSource, Pace: quickPace(), Sleep: wait, Now: time.Now})
	if err != nil {
		return err
	}
	e.Assign(a)
	err = e.Run(ctx)
	if ctx.Err() == context.DeadlineExceeded {
		return ctx.Err()
	}
	return err
}

type until struct {
	*client.Client
	version string
	end     func()
}

func (u *until) Phases(ctx context.Context, r wire.PhaseReport) error {
	err := u.Client.Phases(ctx, r)
	if err == nil && r.Done && r.Version == u.version {
		u.end()
	}
	return err
}

// agent starts the process.
func (r *rig) agent() *exec.Cmd {
	r.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envRoot+"="+r.root, envServer+"="+r.api.URL, envPin+"="+client.PinOf(r.ca.Cert).String())
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return cmd
}

// TestKilledAtAnyPoint kills the agent again and again, brings the node up, then another version of the plan in the
// same way, and then back, and compares with nodes that were left in peace.
func TestKilledAtAnyPoint(t *testing.T) {
	require.Swift(t)
	r := newRig(t)
	first := r.give("v1", r.controlPlane())
	second := copyOf(first)
	second.Version = "v2"
	plan := second.Plan
	fileAt(plan, "/var/lib/kubelet/config.yaml").Content = []byte("new")
	fileAt(plan, "/etc/containerd/config.toml").Content = []byte("new")
	fileAt(plan, "/etc/coldrack/kubernetes/masquerade.nft").Path = "/etc/coldrack/kubernetes/nat.nft"
	plan.Phases[7].Files[0] = "/etc/coldrack/kubernetes/nat.nft"
	plan.Units[2].Content = []byte("[Service]\nExecStart=/usr/sbin/nft -f /etc/coldrack/kubernetes/nat.nft\n")
	plan.Programs[0] = r.program("kubelet", "/usr/bin/kubelet", []byte("kubelet v1.37.3"))
	plan.Programs = plan.Programs[:2]
	second.Operation = "change"
	third := copyOf(second)
	third.Version, third.RollBack = "v3", true

	calm := r.on(t.TempDir()) // nodes that are left in peace
	for i, a := range []wire.NodeAssignment{first, second, third} {
		has := []*wire.NodePlan{first.Plan, second.Plan, first.Plan}[i]
		before := t.TempDir()
		copyDisk(t, before, calm.root)
		r.order(a)
		began := time.Now()
		calm.finish()
		whole := time.Since(began)
		for kills := 0; kills < 8; {
			cut := r.on(t.TempDir())
			copyDisk(t, cut.root, before)
			for !cut.kill(rand.N(whole)) {
				kills++
				cut.checkHalf(a.Plan)
				cut.checkHalf(has)
			}
			cut.finish()
			cut.compare(calm, has)
		}
	}
}

// copyDisk gives a node the disk of another.
func copyDisk(t *testing.T, to, from string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from+"/.", to).CombinedOutput(); err != nil {
		t.Fatalf("copy a disk: %v\n%s", err, out)
	}
}

// on is another node of the same server.
func (r *rig) on(root string) *rig {
	return &rig{t: r.t, fakeServer: r.fakeServer, root: root}
}

// finish runs an agent until everything is done.
func (r *rig) finish() {
	r.t.Helper()
	if err := r.agent().Wait(); err != nil {
		r.t.Fatal(err)
	}
}

// kill runs an agent and kills it after a while; it says whether the agent had everything done before.
func (r *rig) kill(after time.Duration) (done bool) {
	r.t.Helper()
	cmd := r.agent()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-time.After(after):
		_ = cmd.Process.Kill()
		<-ended
		return false
	case err := <-ended:
		if err != nil {
			r.t.Fatal(err)
		}
		return true
	}
}

// checkHalf looks for files that are neither old nor new.
func (r *rig) checkHalf(plan *wire.NodePlan) {
	r.t.Helper()
	for _, p := range plan.Programs {
		b, err := os.ReadFile(filepath.Join(r.root, p.Path))
		if err == nil && sha(b) != p.Digest && string(b) != "kubelet v1.37.3" && string(b) != strings.Repeat("kubelet v1.37.2\n", 200_000) {
			r.t.Errorf("%s is half-written", p.Path)
		}
		if err == nil && len(b) == 0 {
			r.t.Errorf("%s is empty", p.Path)
		}
	}
}

// compare demands the same tree, pairs that fit, and units that run with what is there now.
func (r *rig) compare(calm *rig, plan *wire.NodePlan) {
	r.t.Helper()
	got, want := tree(r.t, r.root), tree(r.t, calm.root)
	if mustJSON(got) != mustJSON(want) {
		for p, text := range want {
			if got[p] != text {
				r.t.Errorf("%s is %q, want %q", p, got[p], text)
			}
		}
		for p := range got {
			if want[p] == "" {
				r.t.Errorf("%s was left behind", p)
			}
		}
	}
	d := nodefile.Disk{Root: r.root}
	for _, c := range plan.Certificates {
		if was, err := nodecert.Look(d, plan, c, time.Now()); err != nil || was.Why != "" {
			r.t.Errorf("certificate %s: %v, %s", c.Name, err, was.Why)
		}
	}
	for _, k := range plan.Kubeconfigs {
		content, err := nodecert.Kubeconfig(d, plan, k)
		if err != nil || r.read(k.Path) != string(content) {
			r.t.Errorf("%s is not around the certificate of now: %v", k.Path, err)
		}
		if k.Embed {
			if _, err := tls.LoadX509KeyPair(d.At(StateDir+"/"+k.Certificate+".crt"), d.At(StateDir+"/"+k.Certificate+".key")); err != nil {
				r.t.Error(err)
			}
		}
	}
	for _, f := range plan.Files {
		content, err := fileContent(d, plan, f)
		if err != nil || !d.Holds(f, content) {
			r.t.Errorf("%s is not as it should be: %v", f.Path, err)
		}
	}
	w := newTwin(r.root)
	for _, u := range plan.Units {
		state := w.load(u.Name)
		if state.Active != "active" || !state.Enabled {
			r.t.Errorf("%s: %+v", u.Name, state)
		}
		for p, now := range w.digests(append(w.own(u.Name), w.reads[u.Name]...)) {
			if state.Read[p] != now {
				r.t.Errorf("%s was started before %s was changed", u.Name, p)
			}
		}
	}
	l := nodefile.OpenLedger(d, ledgerFile, slog.New(slog.DiscardHandler))
	units := []string{"systemd-modules-load.service", "systemd-sysctl.service", "systemd-networkd.service"}
	for _, u := range plan.Units {
		units = append(units, u.Name)
	}
	for _, u := range units {
		if l.Pending(u) != 0 {
			r.t.Errorf("a restart of %s is still due", u)
		}
	}
}
