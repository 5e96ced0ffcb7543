package bringup

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/agent/nodecert"
	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/ca"
)

// changed is a plan in which everything that is hard differs: a program, one that is no more, files, a unit, a certificate; and
// what is soft.
func (r *rig) changed(plan *wire.NodePlan) *wire.NodePlan {
	next := copyOf(wire.NodeAssignment{Plan: plan}).Plan
	next.Digests = wire.ConfigDigests{Etcd: "e2", ControlPlane: "c2", Node: "n2"}
	next.KubernetesVersion = "v1.37.3"
	next.Programs[0] = r.program("kubelet", "/usr/bin/kubelet", []byte("kubelet v1.37.3"))
	next.Programs[0].Version = "v1.37.3"
	next.Programs = next.Programs[:2]
	fileAt(next, "/var/lib/kubelet/config.yaml").Content = []byte("new")
	fileAt(next, "/etc/containerd/config.toml").Content = []byte("new")
	fileAt(next, "/etc/kubernetes/manifests/etcd.yaml").Content = []byte("new")
	fileAt(next, "/etc/containerd/certs.d/_default/hosts.toml").Content = []byte("new")
	next.Units[1].DropIns["10-kubeadm.conf"] = []byte("[Service]\n")
	next.Certificates[1].DNSNames = append(next.Certificates[1].DNSNames, "api.example.org")
	next.Routes = append(next.Routes, wire.NodeRoute{To: "10.244.2.0/24", Via: "10.20.0.13"})
	return next
}

// rollable is a plan with digests and soft files, as a server of now sends it.
func (r *rig) rollable() *wire.NodePlan {
	plan := r.controlPlane()
	plan.Digests = wire.ConfigDigests{Etcd: "e1", ControlPlane: "c1", Node: "n1"}
	fileAt(plan, "/etc/containerd/certs.d/_default/hosts.toml").Soft = true
	return plan
}

func (r *rig) namesOf(certificate string) []string {
	r.t.Helper()
	block, _ := pem.Decode([]byte(r.read(certificate)))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		r.t.Fatal(err)
	}
	return leaf.DNSNames
}

// A node that is held, told to change, and told to go back, with the server's content away by then.
func TestANodeWaitsForItsTurnAndCanGoBack(t *testing.T) {
	r := newRig(t)
	first := r.order(wire.NodeAssignment{Version: "v1", Plan: r.rollable()})
	r.bringUp(first)
	before := tree(t, r.root)
	pair := r.read("/etc/kubernetes/pki/apiserver.key")
	r.twin.take()
	signed := len(r.signed)

	next := r.changed(first.Plan)
	e := r.executor()
	r.start(e)
	e.Assign(r.order(wire.NodeAssignment{Version: "v2", Hold: true, Operation: "change 1", Plan: next}))
	report := r.done("v2")
	if report.Config != first.Plan.Digests || report.FormerConfig != nil || report.KubernetesVersion != "v1.37.2" {
		t.Errorf("held, it reports %+v", report)
	}
	if did := r.twin.take(); len(did) > 0 {
		t.Errorf("held, systemd was asked: %q", did)
	}
	if len(r.signed) != signed {
		t.Errorf("held, it asked for %q", r.signed[signed:])
	}
	after := tree(t, r.root)
	for _, p := range []string{assignmentFile, "/etc/containerd/certs.d/_default/hosts.toml"} {
		if before[p] == after[p] {
			t.Errorf("%s did not follow", p)
		}
		delete(before, p)
		delete(after, p)
	}
	if mustJSON(before) != mustJSON(after) {
		t.Error("held, more than the soft part changed")
	}
	r.record.mu.Lock()
	if routes := r.record.routes[len(r.record.routes)-1]; len(routes) != 2 {
		t.Errorf("held, its routes are %v", routes)
	}
	r.record.mu.Unlock()

	e.Assign(r.order(wire.NodeAssignment{Version: "v3", Operation: "change 1", Plan: next}))
	report = r.done("v3")
	if report.Config != next.Digests || report.FormerConfig == nil || *report.FormerConfig != first.Plan.Digests || report.KubernetesVersion != "v1.37.3" {
		t.Errorf("changed, it reports %+v", report)
	}
	if got := r.read("/usr/bin/kubelet"); got != "kubelet v1.37.3" {
		t.Errorf("the kubelet is %q", got[:20])
	}
	if names := r.namesOf("/etc/kubernetes/pki/apiserver.crt"); !slices.Contains(names, "api.example.org") {
		t.Errorf("the API server's certificate is for %v", names)
	}
	if r.has("/opt/cni/bin/bridge") {
		t.Error("a program that the plan has no more is there")
	}

	r.mu.Lock()
	r.blobs = map[string][]byte{}                // the server's content is gone,
	r.refuse["apiserver"] = http.StatusForbidden // and it would sign what the newer plan says
	r.mu.Unlock()
	signed = len(r.signed)
	e.Assign(r.order(wire.NodeAssignment{Version: "v4", Operation: "change 1", RollBack: true, Plan: next}))
	report = r.done("v4")
	if report.Config != first.Plan.Digests || report.FormerConfig != nil || report.KubernetesVersion != "v1.37.2" || report.Message != "" {
		t.Errorf("back, it reports %+v", report)
	}
	after = tree(t, r.root)
	delete(after, assignmentFile)
	delete(after, "/etc/containerd/certs.d/_default/hosts.toml")
	if mustJSON(before) != mustJSON(after) {
		for p := range after {
			if before[p] != after[p] {
				t.Errorf("back, %s is %q and was %q", p, after[p], before[p])
			}
		}
		for p := range before {
			if after[p] == "" {
				t.Errorf("back, %s is missing", p)
			}
		}
	}
	if got := r.read("/etc/kubernetes/pki/apiserver.key"); got != pair || len(r.signed) != signed {
		t.Errorf("back, the API server has another key; it asked for %q", r.signed[signed:])
	}
	for _, unit := range []string{"kubelet.service", "containerd.service"} {
		u, now := r.twin.load(unit), r.twin.digests(append(r.twin.own(unit), r.twin.reads[unit]...))
		if mustJSON(u.Read) != mustJSON(now) {
			t.Errorf("back, %s runs with something else", unit)
		}
	}

	// The operation ends, and the node is held where it is.
	r.twin.take()
	e.Assign(r.order(wire.NodeAssignment{Version: "v5", Hold: true, Plan: next}))
	if report = r.done("v5"); report.Config != first.Plan.Digests {
		t.Errorf("after the operation, it reports %+v", report)
	}
	if did := r.twin.take(); len(did) > 0 {
		t.Errorf("after the operation, systemd was asked: %q", did)
	}
}

// A certificate that is due while a node is held is signed as the newer plan says: there is no other to be had.
func TestAHeldNodeRenewsItsCertificates(t *testing.T) {
	r := newRig(t)
	first := r.order(wire.NodeAssignment{Version: "v1", Plan: r.rollable()})
	r.bringUp(first)
	next := r.changed(first.Plan)
	e := r.executor()
	stop := r.start(e)
	e.Assign(r.order(wire.NodeAssignment{Version: "v2", Hold: true, Plan: next}))
	r.done("v2")
	stop()
	r.offset.Store(int64(9 * time.Hour)) // of twelve
	e = r.executor()
	r.start(e)
	r.until("the certificate is new", func(p wire.PhaseReport) bool {
		return p.Done && slices.Contains(r.namesOf("/etc/kubernetes/pki/apiserver.crt"), "api.example.org")
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(slices.DeleteFunc(slices.Clone(r.signed), func(s string) bool { return s != "apiserver" })); n != 2 {
		t.Errorf("the API server's certificate was signed %d times", n)
	}
}

func TestARollBackWithoutAFormerPlanSaysSo(t *testing.T) {
	r := newRig(t)
	first := r.order(wire.NodeAssignment{Version: "v1", Operation: "change 1", Plan: r.rollable()})
	r.bringUp(first)
	e := r.executor()
	r.start(e)
	e.Assign(r.order(wire.NodeAssignment{Version: "v2", Operation: "change 1", RollBack: true, Plan: first.Plan}))
	if report := r.done("v2"); !strings.Contains(report.Message, "cannot go back") || report.Config != first.Plan.Digests {
		t.Errorf("it reports %+v", report)
	}
	e.Assign(r.order(wire.NodeAssignment{Version: "v3", Hold: true, Plan: first.Plan}))
	if report := r.done("v3"); report.Message != "" {
		t.Errorf("after the operation it still says %q", report.Message)
	}
}

// A kept program that is damaged is fetched again.
func TestADamagedKeepsakeIsNotPutBack(t *testing.T) {
	r := newRig(t)
	first := r.order(wire.NodeAssignment{Version: "v1", Plan: r.rollable()})
	r.bringUp(first)
	next := r.changed(first.Plan)
	r.bringUp(r.order(wire.NodeAssignment{Version: "v2", Operation: "change 1", Plan: next}))
	kept := filepath.Join(r.root, keptProgram(first.Plan.Programs[0]))
	if err := os.WriteFile(kept, []byte("damaged"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.bringUp(r.order(wire.NodeAssignment{Version: "v3", Operation: "change 1", RollBack: true, Plan: next}))
	if got := r.read("/usr/bin/kubelet"); sha([]byte(got)) != first.Plan.Programs[0].Digest {
		t.Errorf("the kubelet is %q", got[:20])
	}
	if left, _ := filepath.Glob(filepath.Join(r.root, "usr/bin/.*")); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
}

// What follows other nodes is read again without an interruption.
func TestASoftFileIsReloaded(t *testing.T) {
	r := newRig(t)
	plan := r.rollable()
	plan.Files = append(plan.Files, wire.NodeFile{Path: "/etc/keepalived/keepalived.conf", Mode: 0o644, Content: []byte("one"), Soft: true})
	plan.Units = append(plan.Units, wire.NodeUnit{Name: "keepalived.service"})
	plan.Phases = append(plan.Phases, wire.Phase{Name: "virtual-ip", Files: []string{"/etc/keepalived/keepalived.conf"}, Units: []string{"keepalived.service"}})
	first := r.order(wire.NodeAssignment{Version: "v1", Plan: plan})
	r.bringUp(first)
	next := copyOf(first).Plan
	fileAt(next, "/etc/keepalived/keepalived.conf").Content = []byte("two")
	r.twin.take()
	r.bringUp(r.order(wire.NodeAssignment{Version: "v2", Hold: true, Plan: next}))
	if did := strings.Join(r.twin.take(), ", "); did != "reload-or-restart keepalived.service" {
		t.Errorf("systemd did %q", did)
	}
	next = copyOf(first).Plan
	if err := r.twin.Do(t.Context(), "stop", "keepalived.service"); err != nil {
		t.Fatal(err)
	}
	r.twin.take()
	r.bringUp(r.order(wire.NodeAssignment{Version: "v3", Hold: true, Plan: next}))
	// An agent that starts goes on with the plan that it has, and may have started it before it hears of the new one.
	if did := strings.Join(r.twin.take(), ", "); did != "start keepalived.service" && did != "start keepalived.service, reload-or-restart keepalived.service" {
		t.Errorf("systemd did %q with one that did not run", did)
	}
}

// What leads people to a pod stops before the pod is replaced, and runs again when that is done; it keeps running when nothing is replaced.
func TestWhatLeadsToAPodStopsFirst(t *testing.T) {
	r := newRig(t)
	plan := r.rollable()
	const manifest = manifestsDir + "/front.yaml"
	plan.Files = append(plan.Files, wire.NodeFile{Path: manifest, Mode: 0o600, Content: []byte("one")}, wire.NodeFile{Path: "/etc/kubernetes/other", Mode: 0o600, Content: []byte("one")})
	plan.Units = append(plan.Units, wire.NodeUnit{Name: "keepalived.service"})
	plan.Phases = append(plan.Phases, wire.Phase{Name: "front", Files: []string{manifest, "/etc/kubernetes/other"}, StopFirst: []string{"keepalived.service"}},
		wire.Phase{Name: "virtual-ip", After: []string{"front"}, Units: []string{"keepalived.service"}})
	first := r.order(wire.NodeAssignment{Version: "v1", Plan: plan})
	r.bringUp(first)
	for version, change := range map[string]struct{ file, want string }{
		"v2": {"/etc/kubernetes/other", ""},
		"v3": {manifest, "stop keepalived.service, start keepalived.service"},
	} {
		next := copyOf(first).Plan
		fileAt(next, change.file).Content = []byte("two")
		r.twin.take()
		r.bringUp(r.order(wire.NodeAssignment{Version: version, Plan: next}))
		if did := strings.Join(r.twin.take(), ", "); did != change.want {
			t.Errorf("%s changed: systemd did %q, want %q", change.file, did, change.want)
		}
		r.bringUp(r.order(wire.NodeAssignment{Version: version + " back", Plan: copyOf(first).Plan}))
	}
}

// When another authority signs, everything is signed anew that the former one had signed, also what the kubelet gets from the cluster's
// API; but not before it is the node's turn.
func TestAnotherAuthoritySigns(t *testing.T) {
	const serving, rotated = "/var/lib/kubelet/pki/kubelet-server-current.pem", "/var/lib/kubelet/pki/kubelet-server-2026.pem"
	r := newRig(t)
	plan := r.rollable()
	kubelet := &plan.Certificates[slices.IndexFunc(plan.Certificates, func(c wire.NodeCertificate) bool { return c.Name == "kubelet-client" })]
	kubelet.Remade = []string{serving}
	first := r.order(wire.NodeAssignment{Version: "v1", Plan: plan})
	r.bringUp(first)
	certificate, key := issue(t, r.cas[kubelet.Authority], *kubelet, 12*time.Hour, 0, nil)
	d := nodefile.Disk{Root: r.root}
	if err := errors.Join(d.Write(rotated, slices.Concat(certificate, key), 0o600), os.Symlink(rotated, d.At(serving))); err != nil {
		t.Fatal(err)
	}
	starts := r.twin.load("kubelet.service").Starts

	other := ca.New(t, "kubernetes")
	r.mu.Lock()
	r.cas[string(other.PEM())] = other
	r.mu.Unlock()
	next := copyOf(wire.NodeAssignment{Plan: plan}).Plan
	next.Digests = wire.ConfigDigests{Etcd: "e2", ControlPlane: "c2", Node: "n2"}
	for i := range next.Certificates {
		if next.Certificates[i].Authority == kubelet.Authority {
			next.Certificates[i].Authority = string(other.PEM())
		}
	}
	e := r.executor()
	r.start(e)
	e.Assign(r.order(wire.NodeAssignment{Version: "v2", Hold: true, Plan: next}))
	if report := r.done("v2"); time.Until(report.Certificates["kubelet-server-current"]) < 11*time.Hour {
		t.Errorf("the end of what the kubelet serves with is not told: %v", report.Certificates)
	}
	if !r.has(serving) || r.twin.load("kubelet.service").Starts != starts {
		t.Error("held, the kubelet lost its certificate")
	}
	e.Assign(r.order(wire.NodeAssignment{Version: "v3", Operation: "change 1", Plan: next}))
	r.done("v3")
	if _, err := os.Lstat(d.At(serving)); !errors.Is(err, fs.ErrNotExist) || r.twin.load("kubelet.service").Starts == starts {
		t.Errorf("the kubelet serves with what the former authority signed: %v", err)
	}
	for _, c := range next.Certificates {
		if content, err := d.Read(c.CertPath); err != nil || !nodecert.SignedBy(content, c.Authority) {
			t.Errorf("certificate %s is of another authority: %v", c.Name, err)
		}
	}
	starts = r.twin.load("kubelet.service").Starts
	e.Assign(r.order(wire.NodeAssignment{Version: "v4", Hold: true, Plan: next}))
	r.done("v4")
	if r.twin.load("kubelet.service").Starts != starts {
		t.Error("it is restarted without end")
	}
}
