package bringup

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"coldrack.dev/internal/agent/nodecert"
	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/ca"
	"coldrack.dev/test/require"
)

func parseIPs(list []string) (out []net.IP) {
	for _, s := range list {
		out = append(out, net.ParseIP(s))
	}
	return out
}

// issue makes a certificate that fits want, after change, and its key.
func issue(t *testing.T, a *ca.CA, want wire.NodeCertificate, life time.Duration, age time.Duration, change func(*x509.Certificate)) (certificate, key []byte) {
	t.Helper()
	make, err := nodecert.KeyMaker(want.KeyAlgorithm)
	if err != nil {
		t.Fatal(err)
	}
	private, key, err := make()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: want.CommonName, Organization: want.Organizations}, DNSNames: want.DNSNames,
		NotBefore: time.Now().Add(-age), NotAfter: time.Now().Add(life - age)}
	if change != nil {
		change(template)
	}
	leaf, err := a.Sign(template, private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return ca.EncodeCert(leaf), key
}

func TestRenewal(t *testing.T) {
	r := newRig(t)
	r.life = 3 * time.Hour
	a := r.give("v1", r.controlPlane())
	r.bringUp(a)
	oldConf, oldPod := r.read("/etc/kubernetes/controller-manager.conf"), r.read("/etc/kubernetes/manifests/kube-controller-manager.yaml")
	oldEtcd, oldKubelet := r.read("/etc/kubernetes/manifests/etcd.yaml"), r.read("/var/lib/kubelet/pki/kubelet-client-coldrack.pem")
	starts := r.twin.load("kubelet.service").Starts
	r.mu.Lock()
	r.signed, r.life = nil, 12*time.Hour
	r.mu.Unlock()
	r.offset.Store(int64(2*time.Hour + 10*time.Minute))
	e := r.executor()
	r.start(e)
	report := r.until("all but the kubelet's are renewed", func(p wire.PhaseReport) bool {
		return p.Done && time.Until(p.Certificates["admin"]) > 6*time.Hour && time.Until(p.Certificates["etcd-server"]) > 6*time.Hour
	})
	if time.Until(report.Certificates["kubelet-client"]) > 6*time.Hour || r.read("/var/lib/kubelet/pki/kubelet-client-coldrack.pem") != oldKubelet {
		t.Error("the kubelet's certificate was renewed, which is the kubelet's task")
	}
	if len(r.signed) != 4 {
		t.Errorf("signed %q", r.signed)
	}
	if r.read("/etc/kubernetes/controller-manager.conf") == oldConf {
		t.Error("the kubeconfig has the old certificate")
	}
	// Its manifest changed, so the kubelet restarts it; etcd reads its own again by itself.
	if r.read("/etc/kubernetes/manifests/kube-controller-manager.yaml") == oldPod || r.read("/etc/kubernetes/manifests/etcd.yaml") != oldEtcd {
		t.Error("the controller manager's manifest must change, and etcd's must not")
	}
	if r.twin.load("kubelet.service").Starts != starts {
		t.Error("the kubelet was restarted for nothing")
	}
}

// What has to be restarted for a renewal waits for the node's turn; what reloads does not. A node whose turn never comes does it
// late in the certificate's life.
func TestARenewalThatRestartsWaitsForItsTurn(t *testing.T) {
	const pod, conf = "/etc/kubernetes/manifests/kube-controller-manager.yaml", "/etc/kubernetes/controller-manager.conf"
	for name, tt := range map[string]struct {
		then func(*rig, *Executor, *wire.NodePlan)
	}{
		"it is told that it is its turn": {func(r *rig, e *Executor, plan *wire.NodePlan) {
			e.Assign(r.order(wire.NodeAssignment{Version: "v3", Operation: "certificates 1", Plan: plan}))
		}},
		"it is told so by a server whose clock is ahead": {func(r *rig, e *Executor, plan *wire.NodePlan) {
			c := find(plan.Certificates, func(c wire.NodeCertificate) bool { return c.Name == "controller-manager" })
			list, err := nodecert.Parse([]byte(r.read(c.CertPath)))
			if err != nil {
				r.t.Fatal(err)
			}
			r.offset.Store(int64(time.Until(nodecert.RenewAt(plan.NodeName, list[0])) - time.Minute))
			e.Assign(r.order(wire.NodeAssignment{Version: "v3", Operation: "certificates 1", Plan: plan}))
		}},
		"its life ends, and nobody says anything": {func(r *rig, e *Executor, plan *wire.NodePlan) {
			r.offset.Store(int64(2*time.Hour + 45*time.Minute))
			e.Assign(r.order(wire.NodeAssignment{Version: "v3", Hold: true, Plan: copyOf(wire.NodeAssignment{Plan: plan}).Plan}))
			e.mu.Lock()
			defer e.mu.Unlock()
			e.interrupt(errAgain) // as the clock has it do from time to time
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.life = 3 * time.Hour
			plan := r.rollable()
			r.bringUp(r.order(wire.NodeAssignment{Version: "v1", Plan: plan}))
			e := r.executor()
			stop := r.start(e)
			e.Assign(r.order(wire.NodeAssignment{Version: "v2", Hold: true, Plan: plan}))
			r.done("v2")
			stop()
			before := r.read(pod) + r.read(conf)
			r.mu.Lock()
			r.signed, r.life = nil, 12*time.Hour
			r.mu.Unlock()
			r.offset.Store(int64(2*time.Hour + 10*time.Minute))
			e = r.executor()
			r.start(e)
			report := r.until("what reloads is renewed", func(p wire.PhaseReport) bool {
				return p.Version == "v2" && p.Done && time.Until(p.Certificates["apiserver"]) > 6*time.Hour
			})
			if report.RenewAt == nil || report.RenewAt.After(time.Now().Add(2*time.Hour+10*time.Minute)) || time.Until(report.Certificates["controller-manager"]) > 6*time.Hour {
				t.Errorf("held, it reports %+v", report)
			}
			if r.read(pod)+r.read(conf) != before {
				t.Error("held, the controller manager got another certificate")
			}
			tt.then(r, e, plan)
			report = r.until("the controller manager's is renewed", func(p wire.PhaseReport) bool {
				// The certificate is told of before what reads it is written anew.
				return p.Version == "v3" && p.Done && time.Until(p.Certificates["controller-manager"]) > 6*time.Hour && r.read(pod)+r.read(conf) != before
			})
			if report.RenewAt == nil || time.Until(*report.RenewAt) < 6*time.Hour {
				t.Errorf("renewed, it reports that certificates are due at %v", report.RenewAt)
			}
			if r.read(pod) == "" {
				t.Error("the controller manager's manifest is gone")
			}
		})
	}
}

// done is what the executor would report at each message of its log.
type doneAtLog struct {
	slog.Handler
	look func(message string)
}

func (h doneAtLog) Handle(ctx context.Context, r slog.Record) error {
	h.look(r.Message)
	return h.Handler.Handle(ctx, r)
}

// The server ends a node's turn when the node says that it is done and that nothing is due: it must not say so before what reads the
// renewed certificate was started anew.
func TestANodeIsNotDoneWhileItRenews(t *testing.T) {
	r := newRig(t)
	r.life = 3 * time.Hour
	plan := r.controlPlane()
	r.bringUp(r.order(wire.NodeAssignment{Version: "v1", Plan: plan}))
	r.mu.Lock()
	r.life = 12 * time.Hour
	r.mu.Unlock()
	var e *Executor
	var mu sync.Mutex
	atLog := map[string][]bool{}
	e = r.executor(func(o *Options) {
		o.Log = slog.New(doneAtLog{o.Log.Handler(), func(message string) {
			mu.Lock()
			defer mu.Unlock()
			if e != nil {
				atLog[message] = append(atLog[message], e.track.snapshot().Done)
			}
		}})
	})
	r.start(e)
	r.done("v1")
	r.offset.Store(int64(2*time.Hour + 10*time.Minute))
	e.mu.Lock()
	e.interrupt(errAgain) // as the clock has it do from time to time
	e.mu.Unlock()
	r.until("all are renewed", func(p wire.PhaseReport) bool {
		return p.Done && p.RenewAt != nil && time.Until(*p.RenewAt) > 6*time.Hour
	})
	mu.Lock()
	defer mu.Unlock()
	if len(atLog["certificate written"]) < 4 || len(atLog["file written"]) == 0 {
		t.Fatalf("not renewed: %v", atLog)
	}
	for _, message := range []string{"certificate written", "file written"} {
		if slices.Contains(atLog[message], true) {
			t.Errorf("at %q the node says that it is done: %v", message, atLog[message])
		}
	}
}

// One executor runs for two years, its clock moved on by two weeks at a time. Each time, all that it keeps can be used, and what reads it
// has it. The kubelet, which is not there, rotates the certificate that it serves with and leaves its client certificate to expire.
func TestTwoYearsOfANode(t *testing.T) {
	const day = 24 * time.Hour
	r := newRig(t)
	plan := r.controlPlane()
	kubelet := &plan.Certificates[slices.IndexFunc(plan.Certificates, func(c wire.NodeCertificate) bool { return c.Name == "kubelet-client" })]
	const serving = "/var/lib/kubelet/pki/kubelet-server-current.pem"
	kubelet.Remade = []string{serving}
	now := func() time.Time { return time.Now().Add(time.Duration(r.offset.Load())) }
	r.mu.Lock()
	r.life, r.now = 365*day, now
	r.mu.Unlock()
	d := nodefile.Disk{Root: r.root}
	rotate := func() time.Time {
		certificate, key := issue(t, r.cas[kubelet.Authority], *kubelet, 365*day, 0, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = now().Add(-time.Hour), now().Add(365*day)
		})
		if err := d.Write(serving, slices.Concat(certificate, key), 0o600); err != nil {
			t.Fatal(err)
		}
		return now().Add(365 * day)
	}
	e := r.executor(func(o *Options) { o.Pace.Again = 20 * time.Millisecond }) // it looks again by itself
	r.start(e)
	e.Assign(r.order(wire.NodeAssignment{Version: "v1", Plan: plan}))
	r.done("v1")
	end := rotate()
	seen := map[string]map[string]bool{}
	for at := 14 * day; at <= 730*day; at += 14 * day {
		if end.Sub(now()) < 60*day {
			end = rotate()
		}
		r.offset.Store(int64(at))
		r.until(fmt.Sprintf("all is well on day %d", at/day), func(p wire.PhaseReport) bool {
			if !p.Done || len(p.Certificates) != len(plan.Certificates)+1 || !p.Certificates["kubelet-server-current"].Equal(end.UTC().Truncate(time.Second)) {
				return false
			}
			for name, until := range p.Certificates {
				due := nodecert.RenewAt(plan.NodeName, &x509.Certificate{NotBefore: until.Add(-365*day - 5*time.Minute), NotAfter: until})
				if !until.After(now()) || !strings.HasPrefix(name, "kubelet-") && !now().Before(due) {
					return false
				}
			}
			return true
		})
		for _, c := range plan.Certificates {
			look, err := nodecert.Look(d, plan, c, now())
			if err != nil || !look.Usable {
				t.Fatalf("day %d: certificate %s: %+v, %v", at/day, c.Name, look, err)
			}
			if seen[c.Name] == nil {
				seen[c.Name] = map[string]bool{}
			}
			seen[c.Name][look.Leaf.SerialNumber.String()] = true
		}
		for _, k := range plan.Kubeconfigs {
			want, err := nodecert.Kubeconfig(d, plan, k)
			if err != nil || r.read(k.Path) != string(want) {
				t.Fatalf("day %d: %s has another certificate than the node (%v)", at/day, k.Path, err)
			}
		}
		pod := *fileAt(plan, "/etc/kubernetes/manifests/kube-controller-manager.yaml")
		want, err := fileContent(d, plan, pod)
		if err != nil || r.read(pod.Path) != string(want) {
			t.Fatalf("day %d: the controller manager was not started with the certificate that the node has (%v)", at/day, err)
		}
	}
	for _, c := range plan.Certificates {
		if want := 3; !c.Rotated && len(seen[c.Name]) < want {
			t.Errorf("certificate %s: %d in two years, want at least %d", c.Name, len(seen[c.Name]), want)
		}
	}
}

func TestACertificateThatCannotBeRenewedYetHoldsUpNothing(t *testing.T) {
	r := newRig(t)
	r.life = 3 * time.Hour
	r.bringUp(r.give("v1", r.controlPlane()))
	r.mu.Lock()
	r.reports = nil
	for _, name := range []string{"admin", "apiserver", "controller-manager", "etcd-server"} {
		r.refuse[name] = 503
	}
	r.mu.Unlock()
	r.offset.Store(int64(2*time.Hour + 10*time.Minute))
	e := r.executor()
	r.start(e)
	r.done("v1")
	if !strings.Contains(r.logged(), "certificate renewal failed; the current certificate is still valid") {
		t.Error(r.logged())
	}
}

func TestExpiredCertificatesComeBack(t *testing.T) {
	r := newRig(t)
	r.life = time.Hour
	r.bringUp(r.give("v1", r.controlPlane()))
	link := filepath.Join(r.root, "/var/lib/kubelet/pki/kubelet-client-current.pem")
	rotated := filepath.Join(filepath.Dir(link), "kubelet-client-2027.pem")
	b := r.read("/var/lib/kubelet/pki/kubelet-client-coldrack.pem")
	if err := errors.Join(os.WriteFile(rotated, []byte(b), 0o600), os.Remove(link), os.Symlink(rotated, link)); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.life, r.reports = 12*time.Hour, nil
	r.mu.Unlock()
	r.offset.Store(int64(2 * time.Hour)) // the node was off
	starts := r.twin.load("kubelet.service").Starts
	e := r.executor()
	r.start(e)
	r.until("all are renewed", func(p wire.PhaseReport) bool {
		return p.Done && time.Until(p.Certificates["kubelet-client"]) > 6*time.Hour && time.Until(p.Certificates["apiserver"]) > 6*time.Hour
	})
	if target, err := os.Readlink(link); err != nil || target != "/var/lib/kubelet/pki/kubelet-client-coldrack.pem" {
		t.Errorf("the link leads to %s: the kubelet would take the expired one", target)
	}
	if r.twin.load("kubelet.service").Starts == starts {
		t.Error("the kubelet does not know of its new certificate")
	}
}

func TestAnotherNameMakesAnotherCertificate(t *testing.T) {
	r := newRig(t)
	a := r.give("v1", r.controlPlane())
	r.bringUp(a)
	r.signed = nil
	plan := copyOf(a).Plan
	plan.Certificates[1].DNSNames = append(plan.Certificates[1].DNSNames, "api.example.net")
	r.bringUp(r.give("v2", plan))
	if got := strings.Join(r.signed, " "); got != "apiserver" {
		t.Errorf("signed %q", got)
	}
}

func TestAPowerCutBetweenKeyAndCertificate(t *testing.T) {
	r := newRig(t)
	a := r.give("v1", r.controlPlane())
	r.bringUp(a)
	c := a.Plan.Certificates[1]
	d := nodefile.Disk{Root: r.root}
	certificate, key := issue(t, r.cas[c.Authority], c, 12*time.Hour, 0, func(x *x509.Certificate) {
		x.IPAddresses = parseIPs(c.IPAddresses)
	})
	old := r.read(c.CertPath)
	for name, tt := range map[string]struct {
		cut  func() error
		want string // certificate afterwards
	}{
		"before the key: the new certificate is dropped": {func() error { return d.Write(nodecert.Fresh(c), certificate, 0o644) }, old},
		"after the key: the new certificate is taken": {func() error {
			return errors.Join(d.Write(nodecert.Fresh(c), certificate, 0o644), d.Write(c.KeyPath, key, 0o600))
		}, string(certificate)},
	} {
		oldKey := r.read(c.KeyPath)
		if err := tt.cut(); err != nil {
			t.Fatal(err)
		}
		if err := nodecert.FinishPair(d, c); err != nil {
			t.Fatal(err)
		}
		if r.has(nodecert.Fresh(c)) || r.read(c.CertPath) != tt.want {
			t.Errorf("%s: it is not so", name)
		}
		if err := errors.Join(d.Write(c.KeyPath, []byte(oldKey), 0o600), d.Write(c.CertPath, []byte(old), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	// Whatever else went wrong: a pair that does not fit is replaced.
	if err := d.Write(c.KeyPath, key, 0o600); err != nil {
		t.Fatal(err)
	}
	r.signed = nil
	e := r.executor()
	r.start(e)
	r.until("it is signed again", func(wire.PhaseReport) bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.signed) == 1 })
	r.done("v1")
	if _, err := tls.X509KeyPair([]byte(r.read(c.CertPath)), []byte(r.read(c.KeyPath))); err != nil {
		t.Error(err)
	}
}

// answers is a server that certifies as it likes.
type answers struct {
	Server
	change func(*wire.CertificateResponse)
}

func (a answers) Certificate(ctx context.Context, r wire.CertificateRequest) (wire.CertificateResponse, error) {
	c, err := a.Server.Certificate(ctx, r)
	if err == nil && r.Name == "admin" {
		a.change(&c)
	}
	return c, err
}

func TestWhatTheServerSendsIsBelievedOnlyIfItFits(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*rig, *wire.CertificateResponse)
		want   string
	}{
		"rubbish":                   {func(_ *rig, c *wire.CertificateResponse) { c.Certificate = "x" }, "no PEM certificate"},
		"another's key":             {func(r *rig, c *wire.CertificateResponse) { c.Certificate = string(r.ca.PEM()) }, "do not belong together"},
		"one that is not valid yet": {func(r *rig, c *wire.CertificateResponse) { r.offset.Store(int64(-time.Hour)) }, "set the clock"},
		"one that has expired":      {func(r *rig, c *wire.CertificateResponse) { r.offset.Store(int64(24 * time.Hour)) }, "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			e := r.executor(func(o *Options) { o.Server = answers{o.Server, func(c *wire.CertificateResponse) { tt.change(r, c) }} })
			r.start(e)
			e.Assign(r.give("v1", r.controlPlane()))
			report := r.until("it fails", func(p wire.PhaseReport) bool { return step(p, "certificates").State == wire.StateFailed })
			if m := step(report, "certificates").Message; !strings.Contains(m, tt.want) {
				t.Errorf("it says %q, want %q", m, tt.want)
			}
			if r.has(StateDir + "/admin.key") {
				t.Error("a key was written all the same")
			}
		})
	}
}

func TestAnnotationsOfAManifest(t *testing.T) {
	for name, tt := range map[string]struct{ in, want string }{
		"without any":           {managerManifest, "labels"},
		"with others":           {etcdManifest, "etcd.advertise-client-urls"},
		"with the same already": {"metadata:\n  annotations:\n    coldrack.dev/certificates-digest: old\n", ""},
		"with an empty one":     {"metadata:\n  annotations:\n", ""},
		"as JSON":               {`{"kind": "Pod", "metadata": {"name": "x"}}`, "Pod"},
	} {
		out, err := annotate([]byte(tt.in), annotationCertificates, "1234")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var before, after map[string]any
		if err := errors.Join(yaml.Unmarshal([]byte(tt.in), &before), yaml.Unmarshal(out, &after)); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		annotations := after["metadata"].(map[string]any)["annotations"].(map[string]any)
		if annotations[annotationCertificates] != "1234" || !strings.Contains(string(out), tt.want) || len(after) != len(before) {
			t.Errorf("%s:\n%s", name, out)
		}
	}
	for _, in := range []string{"", "a", "- a", "metadata: x", "metadata:\n  annotations: x", "\t"} {
		if out, err := annotate([]byte(in), "a", "b"); err == nil {
			t.Errorf("%q became %q", in, out)
		}
	}
}

// TestKubectlUsesTheKubeconfigs has the real kubectl prove itself with what was written, embedded and by files.
func TestKubectlUsesTheKubeconfigs(t *testing.T) {
	require.Need(t, "kubectl")
	r := newRig(t)
	plan := r.controlPlane()
	authority := r.cas[plan.Kubeconfigs[0].Authority]
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprint(w, "hello ", req.TLS.PeerCertificates[0].Subject.CommonName)
	}))
	certificate, key := issue(t, authority, wire.NodeCertificate{KeyAlgorithm: "ECDSA-P256", CommonName: "kube-apiserver"}, time.Hour, time.Minute, func(x *x509.Certificate) {
		x.IPAddresses = parseIPs([]string{"127.0.0.1"})
	})
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: authority.Pool()}
	server.StartTLS()
	defer server.Close()
	for i := range plan.Kubeconfigs {
		plan.Kubeconfigs[i].Server = server.URL
	}
	r.bringUp(r.give("v1", plan))
	for file, want := range map[string]string{"admin.conf": "kubernetes-admin", "kubelet.conf": "system:node:node-01"} {
		config := r.read("/etc/kubernetes/" + file)
		// Files that it refers to are below another root here.
		config = strings.ReplaceAll(config, "/var/lib/kubelet/pki/kubelet-client-current.pem", filepath.Join(r.root, "/var/lib/kubelet/pki/kubelet-client-coldrack.pem"))
		path := filepath.Join(t.TempDir(), file)
		if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("kubectl", "--kubeconfig", path, "get", "--raw", "/who").CombinedOutput()
		if err != nil || string(out) != "hello "+want {
			t.Errorf("%s: %v: %s", file, err, out)
		}
	}
}
