package bringup

import (
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coldrack.dev/internal/agent/nodecert"
	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/agent/systemd"
	"coldrack.dev/internal/contract/wire"
)

func TestABlankMachineBecomesANode(t *testing.T) {
	r := newRig(t)
	plan := r.controlPlane()
	e := r.executor()
	r.start(e)
	e.Assign(r.give("v1", plan))
	report := r.done("v1")
	for _, s := range report.Phases {
		if s.State != wire.StateSucceeded || s.StartedAt == nil || s.FinishedAt == nil || s.Attempts < 1 || s.Message != "" {
			t.Errorf("%+v", s)
		}
	}
	if report.Cluster != "rack" || report.KubernetesVersion != "v1.37.2" || len(report.Certificates) != 5 || step(report, "content").Reason != "fetch programs" {
		t.Errorf("%+v", report)
	}
	for path, mode := range map[string]string{
		"/usr/bin/kubelet": "-rwxr-xr-x", "/etc/kubernetes/pki/sa.key": "-rw-------", "/etc/kubernetes/pki/ca.crt": "-rw-r--r--",
		"/etc/kubernetes/pki/apiserver.crt": "-rw-r--r--", "/etc/kubernetes/pki/apiserver.key": "-rw-------", "/etc/kubernetes/manifests": "drwx------",
		"/etc/kubernetes/admin.conf": "-rw-------", "/var/lib/kubelet/pki/kubelet-client-coldrack.pem": "-rw-------",
		"/etc/kubernetes/manifests/etcd.yaml": "-rw-------", assignmentFile: "-rw-------", StateDir: "drwx------",
	} {
		info, err := os.Stat(filepath.Join(r.root, path))
		if err != nil || info.Mode().String() != mode {
			t.Errorf("%s: %v, want %s", path, info, mode)
		}
	}
	if routes, balancers := r.record.counts(); routes != 1 || balancers != 1 {
		t.Errorf("routes set %d times, balancer %d times", routes, balancers)
	}
	for _, unit := range []string{"containerd.service", "kubelet.service", "masquerade.service"} {
		if u := r.twin.load(unit); u.Active != "active" || !u.Enabled || u.Starts != 1 {
			t.Errorf("%s: %+v", unit, u)
		}
	}
	if strings.Contains(r.logged(), "service account key") {
		t.Error("a secret is in the log")
	}
}

func TestTheSamePlanAgainChangesNothing(t *testing.T) {
	r := newRig(t)
	a := r.give("v1", r.controlPlane())
	r.bringUp(a)
	before, signed := tree(t, r.root), len(r.signed)
	r.twin.take()
	r.logMu.Lock()
	r.log.Reset()
	r.logMu.Unlock()
	e := r.executor() // the agent was restarted
	stop := r.start(e)
	a.Version = "v2"
	a.Plan.KubernetesVersion = "v1.37.3" // so that it is looked at again
	e.Assign(a)
	r.done("v2")
	stop()
	if did := r.twin.take(); len(did) > 0 {
		t.Errorf("systemd was asked: %q", did)
	}
	if len(r.signed) != signed {
		t.Errorf("certificates were asked for again: %q", r.signed[signed:])
	}
	after := tree(t, r.root)
	delete(before, assignmentFile)
	delete(after, assignmentFile)
	if b, a := mustJSON(before), mustJSON(after); b != a {
		t.Errorf("before %s\nafter %s", b, a)
	}
	for digest, n := range r.fetched {
		if n != 1 {
			t.Errorf("%s was fetched %d times", digest, n)
		}
	}
	if strings.Contains(r.logged(), "written") {
		t.Error(r.logged())
	}
}

func mustJSON(v any) string {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		panic(err)
	}
	return string(b)
}

func TestDriftIsTold(t *testing.T) {
	r := newRig(t)
	a := r.order(wire.NodeAssignment{Version: "v1", Plan: r.rollable()})
	e := r.executor(func(o *Options) { o.Pace.Again = 20 * time.Millisecond })
	r.start(e)
	e.Assign(a)
	if report := r.done("v1"); len(report.Drift) > 0 {
		t.Errorf("nobody has touched %q", report.Drift)
	}
	const soft, unit = "/etc/containerd/certs.d/_default/hosts.toml", systemd.UnitDir + "/kubelet.service"
	for _, p := range []string{soft, "/etc/containerd/config.toml", unit} {
		if err := os.WriteFile(filepath.Join(r.root, p), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(filepath.Join(r.root, "/etc/kubernetes/pki/sa.key"), 0o644), os.Remove(filepath.Join(r.root, "/etc/kubernetes/manifests/etcd.yaml"))); err != nil {
		t.Fatal(err)
	}
	report := r.until("all is told", func(p wire.PhaseReport) bool { return p.Done && len(p.Drift) >= 4 })
	want := []string{"/etc/containerd/config.toml", "/etc/kubernetes/manifests/etcd.yaml", "/etc/kubernetes/pki/sa.key", unit}
	if !slices.Equal(report.Drift, want) || r.read(soft) == "x" {
		t.Errorf("told is %q, want %q", report.Drift, want)
	}
	next := copyOf(a).Plan
	fileAt(next, "/etc/containerd/config.toml").Content = []byte("new")
	e.Assign(r.order(wire.NodeAssignment{Version: "v2", Plan: next}))
	if report := r.done("v2"); len(report.Drift) > 0 {
		t.Errorf("of another configuration %q is told", report.Drift)
	}
}

// TestWhatOthersChangeStaysWhileThatIsPaused has somebody else change files, as kubeadm does.
func TestWhatOthersChangeStaysWhileThatIsPaused(t *testing.T) {
	r := newRig(t)
	a := r.order(wire.NodeAssignment{Version: "v1", Plan: r.rollable()})
	e := r.executor(func(o *Options) { o.Pace.Again = 20 * time.Millisecond })
	r.start(e)
	e.Assign(a)
	r.done("v1")
	paused := copyOf(a)
	paused.Version, paused.Paused = "v1-paused", true
	e.Assign(paused)
	r.until("it is paused", func(p wire.PhaseReport) bool { return p.Version == "v1-paused" })
	const manifest, kubelet = "/etc/kubernetes/manifests/etcd.yaml", "/var/lib/kubelet/config.yaml"
	was := r.read(kubelet)
	put := func(path, content string) {
		if err := os.WriteFile(filepath.Join(r.root, path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(kubelet, "theirs")
	if err := os.Remove(filepath.Join(r.root, manifest)); err != nil {
		t.Fatal(err)
	}
	r.until("both are told", func(p wire.PhaseReport) bool { return slices.Equal(p.Drift, []string{manifest, kubelet}) })
	put(kubelet, was)
	report := r.until("one is as it was", func(p wire.PhaseReport) bool { return slices.Equal(p.Drift, []string{manifest}) })
	if !report.Done || r.has(manifest) {
		t.Errorf("while it is paused, the file is there: %t; done: %t", r.has(manifest), report.Done)
	}
	resumed := copyOf(a)
	resumed.Version = "v2"
	e.Assign(resumed)
	r.until("it is put back", func(p wire.PhaseReport) bool { return p.Version == "v2" && p.Done && r.has(manifest) })
}

func TestDriftIsMended(t *testing.T) {
	harm := map[string]func(*rig) error{
		"a file with other content": func(r *rig) error {
			return os.WriteFile(filepath.Join(r.root, "/etc/containerd/config.toml"), []byte("x"), 0o644)
		},
		"a file that is gone":     func(r *rig) error { return os.Remove(filepath.Join(r.root, "/etc/kubernetes/manifests/etcd.yaml")) },
		"a mode that is too wide": func(r *rig) error { return os.Chmod(filepath.Join(r.root, "/etc/kubernetes/pki/sa.key"), 0o644) },
		"a folder's mode":         func(r *rig) error { return os.Chmod(filepath.Join(r.root, "/var/lib/etcd"), 0o777) },
		"a program that was changed": func(r *rig) error {
			return os.WriteFile(filepath.Join(r.root, "/opt/cni/bin/bridge"), []byte("BRIDGE"), 0o755)
		},
		"a program that may not run": func(r *rig) error { return os.Chmod(filepath.Join(r.root, "/usr/bin/kubelet"), 0o600) },
		"a kubeconfig that is gone":  func(r *rig) error { return os.Remove(filepath.Join(r.root, "/etc/kubernetes/admin.conf")) },
		"a key's mode":               func(r *rig) error { return os.Chmod(filepath.Join(r.root, "/etc/kubernetes/pki/apiserver.key"), 0o644) },
		"a unit file that was changed": func(r *rig) error {
			return os.WriteFile(filepath.Join(r.root, systemd.UnitDir, "kubelet.service"), nil, 0o644)
		},
		"a link in place of a file": func(r *rig) error {
			// In one step: what is missing would be mended before the link is made.
			link := filepath.Join(t.TempDir(), "link")
			return errors.Join(os.Symlink("/dev/null", link), os.Rename(link, filepath.Join(r.root, "/etc/kubernetes/pki/ca.crt")))
		},
		"a kernel parameter": func(r *rig) error {
			return os.WriteFile(filepath.Join(r.root, "/proc/sys/net/ipv4/ip_forward"), []byte("0\n"), 0o644)
		},
		"a module":            func(r *rig) error { return os.Remove(filepath.Join(r.root, "/sys/module/overlay")) },
		"a unit that stopped": func(r *rig) error { return r.twin.Do(t.Context(), "stop", "kubelet.service") },
		"a unit that is off":  func(r *rig) error { return r.twin.Do(t.Context(), "disable", "kubelet.service") },
	}
	r := newRig(t)
	a := r.give("v1", r.controlPlane())
	r.bringUp(a)
	before := tree(t, r.root)
	e := r.executor(func(o *Options) { o.Pace.Again = 20 * time.Millisecond })
	r.start(e)
	for name, f := range harm {
		if err := f(r); err != nil {
			t.Fatal(err)
		}
		mended := func() bool {
			kubelet := r.twin.load("kubelet.service")
			return mustJSON(tree(t, r.root)) == mustJSON(before) && kubelet.Active == "active" && kubelet.Enabled
		}
		for deadline := time.Now().Add(2 * time.Minute); !mended(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s stays; log:\n%s", name, r.logged())
			}
		}
	}
}

func TestAUnitRestartsWhenWhatItReadsChanged(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*rig, *wire.NodePlan)
		want   string
	}{
		"nothing":                 {func(*rig, *wire.NodePlan) {}, ""},
		"kubelet's configuration": {func(_ *rig, p *wire.NodePlan) { fileAt(p, "/var/lib/kubelet/config.yaml").Content = []byte("new") }, "restart kubelet.service"},
		"kubelet itself": {func(r *rig, p *wire.NodePlan) {
			p.Programs[0] = r.program("kubelet", "/usr/bin/kubelet", []byte("new"))
		}, "restart kubelet.service"},
		"the API server that it asks": {func(_ *rig, p *wire.NodePlan) { p.Kubeconfigs[2].Server = "https://127.0.0.1:8443" }, "restart kubelet.service"},
		"containerd's configuration":  {func(_ *rig, p *wire.NodePlan) { fileAt(p, "/etc/containerd/config.toml").Content = []byte("new") }, "restart containerd.service"},
		"registries": {func(_ *rig, p *wire.NodePlan) {
			fileAt(p, "/etc/containerd/certs.d/_default/hosts.toml").Content = []byte("new")
		}, ""},
		"a plugin": {func(r *rig, p *wire.NodePlan) {
			p.Programs[2] = r.program("cni-bridge", "/opt/cni/bin/bridge", []byte("new"))
		}, ""},
		"a drop-in":              {func(_ *rig, p *wire.NodePlan) { p.Units[1].DropIns["10-kubeadm.conf"] = []byte("[Service]\n") }, "daemon-reload, restart kubelet.service"},
		"a drop-in that is gone": {func(_ *rig, p *wire.NodePlan) { p.Units[1].DropIns = nil }, "daemon-reload, restart kubelet.service"},
		"kernel parameters": {func(_ *rig, p *wire.NodePlan) {
			fileAt(p, "/etc/sysctl.d/90-kubernetes.conf").Content = []byte("vm.panic_on_oom = 1\n")
		}, "restart systemd-sysctl.service"},
		"a static pod": {func(_ *rig, p *wire.NodePlan) {
			fileAt(p, "/etc/kubernetes/manifests/etcd.yaml").Content = []byte("new")
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			a := r.give("v1", r.controlPlane())
			r.bringUp(a)
			r.twin.take()
			a = copyOf(a)
			a.Plan.KubernetesVersion = "v1.37.3"
			tt.change(r, a.Plan)
			r.bringUp(r.give("v2", a.Plan))
			if got := strings.Join(r.twin.take(), ", "); got != tt.want {
				t.Errorf("systemd did %q, want %q", got, tt.want)
			}
		})
	}
}

func TestARestartThatWasCutOffIsMadeUpFor(t *testing.T) {
	r := newRig(t)
	a := r.give("v1", r.controlPlane())
	r.bringUp(a)
	plan := copyOf(a).Plan
	fileAt(plan, "/var/lib/kubelet/config.yaml").Content = []byte("new")
	// Power goes after the file was written and before the kubelet was restarted.
	r.twin.broken["kubelet.service"] = errors.New("no power")
	e := r.executor()
	stop := r.start(e)
	e.Assign(r.give("v2", plan))
	r.until("the kubelet fails", func(p wire.PhaseReport) bool { return step(p, "kubelet").State == wire.StateFailed })
	stop()
	r.twin.broken = nil
	u := r.twin.load("kubelet.service")
	u.Active = "active" // started at boot, with who knows what
	r.twin.store("kubelet.service", u)
	r.twin.take()
	e = r.executor()
	r.start(e)
	r.done("v2")
	if did := r.twin.take(); !slices.Contains(did, "restart kubelet.service") {
		t.Errorf("systemd did %q", did)
	}
}

func TestAFailedPhaseSaysWhyAndOthersGoOn(t *testing.T) {
	r := newRig(t)
	r.refuse["apiserver"] = 403
	e := r.executor()
	r.start(e)
	e.Assign(r.give("v1", r.controlPlane()))
	report := r.until("certificates were tried and the rest is done", func(p wire.PhaseReport) bool {
		s := step(p, "certificates")
		return s.State == wire.StateFailed && s.Attempts > 2 && step(p, "runtime").State == wire.StateSucceeded && step(p, "network").State == wire.StateSucceeded
	})
	if s := step(report, "certificates"); !strings.Contains(s.Message, "it may not have apiserver") || !strings.Contains(s.Message, "apiserver.crt is missing") {
		t.Errorf("it says %q", s.Message)
	}
	for _, name := range []string{"kubeconfigs", "kubelet"} {
		if s := step(report, name); s.State != wire.StatePending {
			t.Errorf("%s is %s", name, s.State)
		}
	}
	r.mu.Lock()
	delete(r.refuse, "apiserver")
	r.mu.Unlock()
	report = r.done("v1")
	if s := step(report, "certificates"); s.Attempts < 3 {
		t.Errorf("%+v", s)
	}
}

func TestAUnitThatDoesNotStartSaysWhatItsLogSays(t *testing.T) {
	r := newRig(t)
	r.twin.broken["containerd.service"] = errors.New("systemctl start: exit status 1")
	e := r.executor()
	r.start(e)
	e.Assign(r.give("v1", r.controlPlane()))
	report := r.until("the runtime fails", func(p wire.PhaseReport) bool { return step(p, "runtime").State == wire.StateFailed })
	if m := step(report, "runtime").Message; !strings.Contains(m, "exit status 1") || !strings.Contains(m, "it says why") {
		t.Errorf("it says %q", m)
	}
}

func TestAUnitThatTheImageLacksIsNamed(t *testing.T) {
	r := newRig(t)
	plan := r.controlPlane()
	plan.Units = append(plan.Units, wire.NodeUnit{Name: "vrrp.service"})
	plan.Phases = append(plan.Phases, wire.Phase{Name: "virtual-ip", Units: []string{"vrrp.service"}})
	e := r.executor()
	r.start(e)
	e.Assign(r.give("v1", plan))
	report := r.until("it fails", func(p wire.PhaseReport) bool { return step(p, "virtual-ip").State == wire.StateFailed })
	if m := step(report, "virtual-ip").Message; !strings.Contains(m, "the image lacks the package") {
		t.Errorf("it says %q", m)
	}
}

func TestAWaitSaysWhatItIsForAndThenWhatIsSeen(t *testing.T) {
	r := newRig(t)
	var well atomic.Bool
	r.well = well.Load
	plan := r.controlPlane()
	fileAt(plan, "/etc/kubernetes/manifests/etcd.yaml").Content = []byte(strings.ReplaceAll(etcdManifest, "2381", r.probe.URL[strings.LastIndex(r.probe.URL, ":")+1:]))
	logs := filepath.Join(r.root, podLogs, "kube-system_etcd-node-01_abc", "etcd")
	if err := errors.Join(os.MkdirAll(logs, 0o755), os.WriteFile(filepath.Join(logs, "0.log"), []byte("2026-01-01T00:00:00.1Z stderr F too old\n2026-01-01T00:00:00.1Z stderr F a\n2026-01-01T00:00:00.1Z stderr F b\n2026-01-01T00:00:00.1Z stderr F no leader\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	e := r.executor()
	r.start(e)
	e.Assign(r.give("v1", plan))
	report := r.until("it explains", func(p wire.PhaseReport) bool { return strings.Contains(step(p, "api-server").Message, "no leader") })
	s := step(report, "api-server")
	if s.State != wire.StateRunning || !strings.Contains(s.Message, "waits for "+r.probe.URL) || !strings.Contains(s.Message, "it answers 500: etcd failed") || strings.Contains(s.Message, "too old") || strings.Contains(s.Message, "stderr F") {
		t.Errorf("%+v", s)
	}
	well.Store(true)
	r.done("v1")
}

func TestPatienceEnds(t *testing.T) {
	r := newRig(t)
	plan := r.controlPlane()
	plan.Phases[10].AwaitAPI, plan.Phases[10].PatienceSeconds = true, 2
	e := r.executor()
	r.start(e)
	e.Assign(r.give("v1", plan))
	report := r.until("it says how long it waits", func(p wire.PhaseReport) bool {
		return strings.Contains(step(p, "api-server").Message, "at the latest")
	})
	if s := step(report, "api-server"); s.State != wire.StateRunning || !strings.Contains(s.Message, "10.20.0.11:6443: connection refused") {
		t.Errorf("%+v", s)
	}
	r.done("v1")
	if !strings.Contains(r.logged(), "no API server answered in time; continuing without it") {
		t.Error("the log does not say that the wait was given up")
	}
}

func TestANewerPlanEndsTheWaitForTheOldOne(t *testing.T) {
	r := newRig(t)
	r.well = func() bool { return false }
	plan := r.controlPlane()
	e := r.executor()
	r.start(e)
	a := r.give("v1", plan)
	e.Assign(a)
	r.until("it waits", func(p wire.PhaseReport) bool { return step(p, "api-server").State == wire.StateRunning })
	plan = copyOf(a).Plan
	plan.Phases[10].Probes = nil
	e.Assign(r.give("v2", plan))
	r.done("v2")
}

func TestPausedMeansNoPhaseBegins(t *testing.T) {
	r := newRig(t)
	var well atomic.Bool
	r.well = well.Load
	plan := r.controlPlane()
	plan.Phases[10].After, plan.Phases[10].Name = nil, "waiting"
	plan.Phases[0].After = []string{"waiting"} // everything else comes after what waits
	a := r.give("v1", plan)
	e := r.executor()
	stop := r.start(e)
	e.Assign(a)
	r.until("one phase runs", func(p wire.PhaseReport) bool { return step(p, "waiting").State == wire.StateRunning })
	paused := copyOf(a)
	paused.Version, paused.Paused = "v1-paused", true
	e.Assign(paused)
	well.Store(true) // the phase that runs may finish
	report := r.until("it finished, and others are held", func(p wire.PhaseReport) bool {
		return step(p, "waiting").State == wire.StateSucceeded && strings.HasPrefix(step(p, "content").Message, "paused")
	})
	if s := step(report, "content"); s.State != wire.StatePending || report.Version != "v1-paused" {
		t.Errorf("%+v in version %s", s, report.Version)
	}
	stop()
	// A reboot does not end a pause, but brings balancer and routes.
	e = r.executor()
	r.start(e)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		if routes, balancers := r.record.counts(); routes > 0 && balancers > 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no routes and no balancer after the reboot")
		}
	}
	if got := r.record.lastServices(); !slices.Equal(got, plan.ServiceRoutes) {
		t.Errorf("routes to service networks after the reboot: %+v, want %+v", got, plan.ServiceRoutes)
	}
	if r.has("/usr/bin/kubelet") {
		t.Error("a phase began")
	}
	resumed := copyOf(a)
	resumed.Version = "v2"
	e.Assign(resumed)
	r.done("v2")
}

func TestANodeComesUpWithoutItsServer(t *testing.T) {
	r := newRig(t)
	a := r.give("v1", r.controlPlane())
	r.bringUp(a)
	r.mu.Lock()
	r.away, r.reports = true, nil
	r.mu.Unlock()
	// What a reboot takes away.
	for _, unit := range []string{"kubelet.service", "containerd.service", "masquerade.service"} {
		if err := r.twin.Do(t.Context(), "stop", unit); err != nil {
			t.Fatal(err)
		}
	}
	e := r.executor()
	if e.Version() != "v1" {
		t.Fatalf("version %q", e.Version())
	}
	r.start(e)
	for deadline := time.Now().Add(2 * time.Minute); r.twin.load("kubelet.service").Active != "active"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the kubelet does not run:\n%s", r.logged())
		}
	}
	r.mu.Lock()
	r.away = false
	r.mu.Unlock()
	r.done("v1") // the lost report comes again
}

func TestAServerWithoutAPlanTakesNothingAway(t *testing.T) {
	r := newRig(t)
	a := r.give("v1", r.controlPlane())
	r.bringUp(a)
	before := tree(t, r.root)
	e := r.executor()
	r.start(e)
	e.Assign(wire.NodeAssignment{Version: "none", Message: "this machine belongs to no cluster"})
	r.done("v1")
	if mustJSON(tree(t, r.root)) != mustJSON(before) {
		t.Error("something changed")
	}
}

func TestWhatThePlanHasNoMoreIsRemovedAndNothingElse(t *testing.T) {
	r := newRig(t)
	foreign := map[string]string{
		"/etc/keepalived/mine.conf": "a person's", "/etc/kubernetes/manifests/mine.yaml": "a person's", "/etc/systemd/system/mine.service": "a person's",
	}
	for p, text := range foreign {
		if err := (nodefile.Disk{Root: r.root}).Write(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a := r.give("v1", r.controlPlane())
	wide := copyOf(a)
	wide.Plan.Files = append(wide.Plan.Files, file("/etc/keepalived/keepalived.conf", 0o644, "x"), file("/etc/kubernetes/apiserver/audit/policy.yaml", 0o600, "x"),
		file("/etc/kubernetes/manifests/kube-scheduler.yaml", 0o600, "x"))
	wide.Plan.Units = append(wide.Plan.Units, wire.NodeUnit{Name: "extra.service", Content: []byte("[Service]\nExecStart=/x\n")})
	wide.Plan.Programs = append(wide.Plan.Programs, r.program("flannel", "/opt/cni/bin/flannel", []byte("flannel")))
	scheduler := wide.Plan.Certificates[2]
	scheduler.Name, scheduler.CertPath, scheduler.KeyPath = "scheduler", StateDir+"/scheduler.crt", StateDir+"/scheduler.key"
	wide.Plan.Certificates = append(wide.Plan.Certificates, scheduler)
	wide.Plan.Phases = append(wide.Plan.Phases, wire.Phase{Name: "extra", Units: []string{"extra.service"}, Certificates: []string{"scheduler"},
		Files: []string{"/etc/keepalived/keepalived.conf", "/etc/kubernetes/apiserver/audit/policy.yaml", "/etc/kubernetes/manifests/kube-scheduler.yaml"}})
	r.bringUp(r.give("v1", wide.Plan))
	if u := r.twin.load("extra.service"); u.Active != "active" {
		t.Fatalf("%+v", u)
	}
	r.bringUp(r.give("v2", a.Plan))
	for _, p := range []string{"/etc/keepalived/keepalived.conf", "/etc/kubernetes/apiserver", "/etc/kubernetes/manifests/kube-scheduler.yaml",
		"/opt/cni/bin/flannel", "/etc/systemd/system/extra.service", StateDir + "/scheduler.crt", StateDir + "/scheduler.key"} {
		if r.has(p) {
			t.Errorf("%s is still there", p)
		}
	}
	for p, text := range foreign {
		if !r.has(p) || r.read(p) != text {
			t.Errorf("%s, which is not ours, was touched", p)
		}
	}
	if u := r.twin.load("extra.service"); u.Active != "inactive" || u.Enabled {
		t.Errorf("%+v", u)
	}
	if report := r.last(); report.Certificates["scheduler"] != (time.Time{}) {
		t.Error("the report still has the scheduler's certificate")
	}
}

func TestFilesThatTheNodeChangesItselfAreWrittenOnce(t *testing.T) {
	r := newRig(t)
	plan := r.controlPlane()
	plan.Files[2].Once = true
	a := r.give("v1", plan)
	r.bringUp(a)
	config, link := filepath.Join(r.root, "/etc/containerd/config.toml"), filepath.Join(r.root, "/var/lib/kubelet/pki/kubelet-client-current.pem")
	rotated := filepath.Join(r.root, "/var/lib/kubelet/pki/kubelet-client-2027.pem")
	if err := errors.Join(os.WriteFile(config, []byte("own"), 0o644), os.Rename(filepath.Join(r.root, "/var/lib/kubelet/pki/kubelet-client-coldrack.pem"), rotated),
		os.Remove(link), os.Symlink("kubelet-client-2027.pem", link)); err != nil {
		t.Fatal(err)
	}
	signed := len(r.signed)
	r.bringUp(r.give("v2", copyOf(a).Plan))
	plan = copyOf(a).Plan
	plan.KubernetesVersion = "v1.37.3"
	r.bringUp(r.give("v3", plan))
	if r.read("/etc/containerd/config.toml") != "own" {
		t.Error("a file that is written once was written again")
	}
	if target, err := os.Readlink(link); err != nil || target != "kubelet-client-2027.pem" || len(r.signed) != signed {
		t.Errorf("the kubelet's own rotation was undone: %s, %q", target, r.signed[signed:])
	}
}

func TestAnInvalidPlanIsReportedAndTheOldOneKept(t *testing.T) {
	r := newRig(t)
	a := r.give("v1", r.controlPlane())
	r.bringUp(a)
	bad := copyOf(a)
	bad.Version, bad.Plan.Phases[0].After = "v2", []string{"kubelet"}
	e := r.executor()
	stop := r.start(e)
	e.Assign(bad)
	report := r.until("it is refused", func(p wire.PhaseReport) bool { return p.Version == "v2" })
	if s := step(report, "kubelet"); s.State != wire.StateFailed || !strings.Contains(s.Message, "no order of phases") {
		t.Errorf("%+v", s)
	}
	stop()
	if e = r.executor(); e.Version() != "v1" {
		t.Errorf("on the disk is version %q", e.Version())
	}
}

func TestDamagedStateDoesNotKeepANodeDown(t *testing.T) {
	r := newRig(t)
	a := r.give("v1", r.controlPlane())
	r.bringUp(a)
	for _, f := range []string{assignmentFile, ledgerFile, digestsFile} {
		if err := os.WriteFile(filepath.Join(r.root, f), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.bringUp(a)
}

func TestKeysAreWhatThePlanSays(t *testing.T) {
	r := newRig(t)
	a := r.give("v1", r.controlPlane())
	r.bringUp(a)
	for _, c := range a.Plan.Certificates {
		list, err := nodecert.Parse([]byte(r.read(c.CertPath)))
		if err != nil || nodecert.AlgorithmOf(list[0].PublicKey) != c.KeyAlgorithm {
			t.Errorf("%s: %v, %s", c.Name, err, nodecert.AlgorithmOf(list[0].PublicKey))
		}
		if _, ok := list[0].PublicKey.(*ecdsa.PublicKey); ok != strings.Contains(r.read(c.KeyPath), "EC PRIVATE KEY") {
			t.Errorf("%s: the key's file is of another kind", c.Name)
		}
	}
}
