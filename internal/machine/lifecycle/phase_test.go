package lifecycle

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/drift"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/machine/identify"
)

const (
	install, reinstall, release = v1alpha1.ActionInstall, v1alpha1.ActionReinstall, v1alpha1.ActionRelease
	pending, running            = v1alpha1.IntentPending, v1alpha1.IntentRunning
	succeeded, failed           = v1alpha1.IntentSucceeded, v1alpha1.IntentFailed
)

// scene is a machine with its live facts, an hour after the server started.
type scene struct {
	m    *v1alpha1.Machine
	live fleet.Live
	now  time.Time
}

func newScene(changes ...func(*scene)) *scene {
	s := &scene{m: &v1alpha1.Machine{}, now: time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)}
	s.m.Name = "a"
	for _, change := range changes {
		change(s)
	}
	return s
}

func (s *scene) at(ago time.Duration) *metav1.Time { return new(metav1.NewTime(s.now.Add(-ago))) }

func approved(s *scene) { s.m.Spec.Approved = true }
func inventory(s *scene) {
	s.m.Status.Inventory = &v1alpha1.Inventory{NICs: []v1alpha1.NIC{{Name: "eth0", MAC: "52:54:00:00:00:0a", Boot: true}},
		System: v1alpha1.SystemInfo{Vendor: "QEMU", Product: "PC", Serial: "SN-A", UUID: "a0a0a0a0-1111-4111-8111-0123456789ab"}}
}
func wants(id string, action v1alpha1.IntentAction) func(*scene) {
	return func(s *scene) {
		s.m.Spec.Intent = &v1alpha1.Intent{ID: id, Action: action}
		if action != v1alpha1.ActionInstall {
			s.m.Status.Intent = &v1alpha1.IntentStatus{ID: id, Action: action, State: pending}
		}
	}
}
func acknowledged(id string, action v1alpha1.IntentAction, state v1alpha1.IntentState, ago time.Duration) func(*scene) {
	return func(s *scene) {
		s.m.Status.Intent = &v1alpha1.IntentStatus{ID: id, Action: action, State: state, Attempts: 1, StartedAt: s.at(ago + time.Minute)}
		if state == succeeded || state == failed {
			s.m.Status.Intent.FinishedAt = s.at(ago)
		}
		if state == failed {
			s.m.Status.Intent.Message = "disk too small"
		}
	}
}
func installed(ago time.Duration) func(*scene) {
	return func(s *scene) {
		s.m.Status.Installed = &v1alpha1.InstalledStatus{IntentID: "1", Image: "debian-12", Disk: "virtio-1", At: *s.at(ago)}
	}
}
func beat(ago time.Duration, failedUnits ...string) func(*scene) {
	return func(s *scene) {
		s.live.Heartbeat, s.live.HeartbeatAt = &wire.Heartbeat{BootID: "b", FailedUnits: failedUnits}, s.now.Add(-ago)
		s.live.ReadyAt = s.live.HeartbeatAt
	}
}
func contact(ago time.Duration) func(*scene) {
	return func(s *scene) { s.live.ContactAt, s.live.Session = s.now.Add(-ago), "k" }
}
func booted(ago time.Duration, action v1alpha1.BootAction) func(*scene) {
	return func(s *scene) {
		s.live.Boots = []v1alpha1.BootRecord{{At: *s.at(ago), Action: action, Reason: "because"}}
		if at := s.now.Add(-ago); at.After(s.live.ContactAt) {
			s.live.ContactAt = at
		}
	}
}
func progress(ago time.Duration, done int64) func(*scene) {
	return func(s *scene) {
		s.live.IntentID, s.live.ProgressAt = "1", s.now.Add(-ago)
		s.live.Steps = []v1alpha1.Step{{Name: "wipe", State: v1alpha1.StepSucceeded}, {Name: "image", State: v1alpha1.StepRunning, BytesDone: done, BytesTotal: 200}, {Name: "reboot", State: v1alpha1.StepPending}}
	}
}
func blocked(reason string) func(*scene) {
	return func(s *scene) { s.live.Blocked = fleet.Block{Reason: v1alpha1.ReasonPlanIncomplete, Message: reason} }
}
func held(reason string) func(*scene) { return func(s *scene) { s.live.Held = reason } }
func was(phase v1alpha1.MachinePhase, message string) func(*scene) {
	return func(s *scene) { s.m.Status.Phase, s.m.Status.Message = phase, message }
}
func reportedBefore(s *scene) {
	s.m.Status.Node = &v1alpha1.NodeStatus{BootID: "b", ReadyAt: s.at(time.Hour)}
}

func TestARescueIsTold(t *testing.T) {
	s := newScene(inventory, approved, installed(time.Hour), beat(0))
	limits := LimitsFor(90*time.Second, s.now.Add(-time.Hour))
	tell := func(want v1alpha1.MachinePhase, message string) {
		t.Helper()
		got := phaseOf(s.m, s.live, s.now, limits)
		if got.phase != want || got.message != message {
			t.Errorf("got %s %q, want %s %q", got.phase, got.message, want, message)
		}
		s.m.Status.Phase, s.m.Status.Message = got.phase, got.message
	}
	const note = "boots the live system, as kim asked; it ends with: coldrack rescue a --end"
	tell(v1alpha1.PhaseReady, "")
	s.m.Spec.Rescue = &v1alpha1.Rescue{Autologin: true, RequestedBy: "kim"}
	tell(v1alpha1.PhaseReady, note)
	s.m.Status.Phase, s.m.Status.Message, s.live.Heartbeat = v1alpha1.PhaseLost, "no heartbeat", nil
	s.m.Status.Node = &v1alpha1.NodeStatus{ReadyAt: &metav1.Time{Time: s.now}}
	for range 2 { // it does not grow
		tell(v1alpha1.PhaseLost, note+"; no heartbeat")
	}
	s.m.Spec.Rescue = nil
	tell(v1alpha1.PhaseLost, "no heartbeat")
}

func TestPhase(t *testing.T) {
	tests := []struct {
		name    string
		scene   *scene
		want    v1alpha1.MachinePhase
		message string
		step    string
	}{
		{"written beforehand and never seen", newScene(), v1alpha1.PhaseExpected, "power it on", ""},
		{"asked for a boot", newScene(booted(time.Minute, v1alpha1.BootDiscover)), v1alpha1.PhaseDiscovering, "", ""},
		{"asked for a boot and was refused", newScene(booted(time.Minute, v1alpha1.BootRefuse)), v1alpha1.PhaseDiscovering, "because", ""},
		{"asked for a boot long ago and never reported", newScene(booted(20*time.Minute, v1alpha1.BootDiscover)), v1alpha1.PhaseDiscovering, "look at its console", ""},
		{"reported and waits", newScene(inventory, contact(time.Second)), v1alpha1.PhaseWaiting, "coldrack approve a", ""},
		{"waits, but is silent", newScene(inventory, contact(10*time.Minute)), v1alpha1.PhaseWaiting, "not heard of since", ""},
		{"waits because its policy has no address left", newScene(inventory, contact(0), held("no free address")), v1alpha1.PhaseWaiting, "no free address", ""},
		{"approved, not planned yet", newScene(inventory, approved, contact(0)), v1alpha1.PhaseApproved, "being planned", ""},
		{"approved, without an address", newScene(inventory, approved, contact(0), held("no subnet")), v1alpha1.PhaseApproved, "no subnet", ""},
		{"an install is due and the machine is there", newScene(inventory, approved, contact(0), wants("1", install)), v1alpha1.PhaseApproved, "about to begin", ""},
		{"an install is due and the machine is there since before the server's restart", newScene(inventory, approved, contact(time.Minute), func(s *scene) { s.live.Session = "" }, wants("1", install)), v1alpha1.PhaseApproved, "about to begin", ""},
		{"an install is due and the machine was switched off", newScene(inventory, approved, contact(time.Hour), wants("1", install)), v1alpha1.PhaseApproved, "power the machine on", ""},
		{"an install is due and the machine is off", newScene(inventory, approved, wants("1", install)), v1alpha1.PhaseApproved, "power the machine on", ""},
		{"an install is due and its profile is missing", newScene(inventory, approved, contact(0), wants("1", install), blocked("profile x does not exist")), v1alpha1.PhaseApproved, "profile x", ""},
		{"an install without approval", newScene(inventory, contact(0), wants("1", install)), v1alpha1.PhaseWaiting, "not approved", ""},
		{"installing", newScene(inventory, approved, wants("1", install), acknowledged("1", install, running, 0), contact(0), progress(0, 86)), v1alpha1.PhaseInstalling, "", "image 43%"},
		{"installing for the second time", newScene(inventory, approved, wants("1", install), acknowledged("1", install, running, 0), contact(0), progress(0, 1), func(s *scene) { s.m.Status.Intent.Attempts = 2 }), v1alpha1.PhaseInstalling, "attempt 2", "image 0%"},
		{"installing, but nothing moves", newScene(inventory, approved, wants("1", install), acknowledged("1", install, running, 0), contact(0), progress(11*time.Minute, 86)), v1alpha1.PhaseInstalling, "no progress for 11m", "image 43%"},
		{"installing, and silent", newScene(inventory, approved, wants("1", install), acknowledged("1", install, running, 0), contact(2*time.Minute), progress(2*time.Minute, 86)), v1alpha1.PhaseLost, "silent since", "image 43%"},
		{"installing, reset, and booting again", newScene(inventory, approved, wants("1", install), acknowledged("1", install, running, 0), contact(5*time.Minute), booted(3*time.Minute, v1alpha1.BootInstall), progress(5*time.Minute, 86)), v1alpha1.PhaseInstalling, "", "image 43%"},
		{"the install failed", newScene(inventory, approved, wants("1", install), acknowledged("1", install, failed, 0), contact(0)), v1alpha1.PhaseFailed, "disk too small. To try again: coldrack install a", ""},
		{"a new wish after a failure", newScene(inventory, approved, wants("2", install), acknowledged("1", install, failed, 0), contact(0)), v1alpha1.PhaseApproved, "about to begin", ""},
		{"installed, not heard of yet", newScene(inventory, approved, wants("1", install), acknowledged("1", install, succeeded, 0), installed(time.Minute)), v1alpha1.PhaseRebooting, "waiting for the node", ""},
		{"installed, and never heard of", newScene(inventory, approved, wants("1", install), acknowledged("1", install, succeeded, 0), installed(20*time.Minute)), v1alpha1.PhaseLost, "never reported", ""},
		{"ready", newScene(inventory, approved, wants("1", install), acknowledged("1", install, succeeded, 0), installed(time.Hour), beat(30*time.Second)), v1alpha1.PhaseReady, "", ""},
		{"ready with a failed unit", newScene(inventory, approved, installed(time.Hour), beat(0, "x.service")), v1alpha1.PhaseReady, "x.service", ""},
		{"heartbeats stopped", newScene(inventory, approved, installed(time.Hour), beat(2*time.Minute), reportedBefore), v1alpha1.PhaseLost, "no heartbeat since", ""},
		{"a heartbeat of the installation before does not count", newScene(inventory, approved, installed(time.Minute), beat(5*time.Minute)), v1alpha1.PhaseRebooting, "", ""},
		{"a reinstall is due on a running node", newScene(inventory, approved, installed(time.Hour), beat(0), wants("2", reinstall)), v1alpha1.PhaseApproved, "boots from the network", ""},
		{"a reinstall without approval leaves the node ready", newScene(inventory, installed(time.Hour), beat(0), wants("2", reinstall)), v1alpha1.PhaseReady, "not approved", ""},
		{"a reinstall that failed before it touched the disk", newScene(inventory, approved, installed(time.Hour), wants("2", reinstall), acknowledged("2", reinstall, failed, time.Minute), beat(0)), v1alpha1.PhaseReady, "disk too small", ""},
		{"a reinstall that failed in discovery", newScene(inventory, approved, installed(time.Hour), wants("2", reinstall), acknowledged("2", reinstall, failed, time.Minute), beat(10*time.Minute)), v1alpha1.PhaseFailed, "disk too small", ""},
		{"a release is held back by the node's cluster", newScene(inventory, approved, installed(time.Hour), beat(0), func(s *scene) {
			s.m.Spec.Intent = &v1alpha1.Intent{ID: "3", Action: v1alpha1.ActionRelease}
			Hold(s.m, "cluster lab lets node a go first", s.now)
		}), v1alpha1.PhaseReady, "release waits: cluster lab lets node a go first", ""},
		{"a release is due", newScene(inventory, approved, installed(time.Hour), beat(0), wants("3", release)), v1alpha1.PhaseReleasing, "next heartbeat", ""},
		{"being wiped", newScene(inventory, wants("1", release), acknowledged("1", release, running, 0), contact(0), progress(0, 0)), v1alpha1.PhaseReleasing, "", "image 0%"},
		{"released, still wished", newScene(inventory, approved, wants("3", release), acknowledged("3", release, succeeded, 0)), v1alpha1.PhaseReleasing, "approval", ""},
		{"released", newScene(inventory, acknowledged("3", release, succeeded, 0), contact(0)), v1alpha1.PhaseReleased, "coldrack approve a", ""},
		{"released and approved again", newScene(inventory, approved, acknowledged("3", release, succeeded, 0), contact(0)), v1alpha1.PhaseApproved, "being planned", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := test.scene
			got := phaseOf(s.m, s.live, s.now, LimitsFor(90*time.Second, s.now.Add(-time.Hour)))
			if got.phase != test.want || !strings.Contains(got.message, test.message) || got.step != test.step {
				t.Errorf("got %s, step %q: %q; want %s, step %q, with %q", got.phase, got.step, got.message, test.want, test.step, test.message)
			}
			if !got.until.IsZero() && !got.until.After(s.now) {
				t.Errorf("shall be looked at again at %v, which is not after %v", got.until, s.now)
			}
		})
	}
}

func TestPhaseAfterARestartOfTheServer(t *testing.T) {
	tests := []struct {
		name  string
		scene *scene
		ago   time.Duration // since the start
		want  v1alpha1.MachinePhase
	}{
		{"a ready node stays ready until its heartbeat is due", newScene(approved, inventory, installed(time.Hour), reportedBefore, was(v1alpha1.PhaseReady, "")), time.Minute, v1alpha1.PhaseReady},
		{"and is lost when none comes", newScene(approved, inventory, installed(time.Hour), reportedBefore, was(v1alpha1.PhaseReady, "")), 2 * time.Minute, v1alpha1.PhaseLost},
		{"a lost node stays lost until it is heard of", newScene(approved, inventory, installed(time.Hour), reportedBefore, was(v1alpha1.PhaseLost, "no heartbeat since noon")), time.Second, v1alpha1.PhaseLost},
		{"a lost node that is heard of is ready", newScene(approved, inventory, installed(time.Hour), reportedBefore, beat(0), was(v1alpha1.PhaseLost, "")), time.Second, v1alpha1.PhaseReady},
		{"an install goes on", newScene(approved, inventory, wants("1", install), acknowledged("1", install, running, time.Hour), was(v1alpha1.PhaseInstalling, "")), time.Minute, v1alpha1.PhaseInstalling},
		{"a node that survived a failed reinstall stays ready", newScene(approved, inventory, installed(time.Hour), wants("2", reinstall), acknowledged("2", reinstall, failed, time.Hour), reportedBefore, was(v1alpha1.PhaseReady, "")), time.Minute, v1alpha1.PhaseReady},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := test.scene
			got := phaseOf(s.m, s.live, s.now, LimitsFor(90*time.Second, s.now.Add(-test.ago)))
			if got.phase != test.want {
				t.Errorf("got %s (%s), want %s", got.phase, got.message, test.want)
			}
		})
	}
}

func TestFoldSaysTheSameTwice(t *testing.T) {
	s := newScene(approved, inventory, installed(time.Hour), beat(0), booted(time.Hour, v1alpha1.BootLocalDisk))
	l := LimitsFor(90*time.Second, s.now.Add(-time.Hour))
	Fold(s.m, s.live, nil, s.now, l)
	first := s.m.DeepCopy()
	Fold(s.m, s.live, nil, s.now.Add(20*time.Second), l)
	if first.Status.Phase != v1alpha1.PhaseReady || s.m.Status.Phase != v1alpha1.PhaseReady {
		t.Fatalf("phase %s", s.m.Status.Phase)
	}
	if UrgencyOf(first.Status, s.m.Status) != Bytes {
		t.Errorf("without news status changed from\n%+v to\n%+v", first.Status, s.m.Status)
	}
	if len(s.m.Status.Boots) != 1 {
		t.Errorf("a boot was counted twice: %+v", s.m.Status.Boots)
	}
}

func TestStatusSaysWhichConfigurationANodeHas(t *testing.T) {
	s := newScene(approved, inventory, installed(time.Hour), beat(0), booted(time.Hour, v1alpha1.BootLocalDisk))
	l := LimitsFor(90*time.Second, s.now.Add(-time.Hour))
	has, had := v1alpha1.ConfigDigests{Node: "n2"}, v1alpha1.ConfigDigests{Node: "n1"}
	s.live.Bringup, s.live.BringupAt = &fleet.Bringup{Cluster: "rack", Done: true, Config: has, FormerConfig: &had, Drift: []string{"/etc/a"}, Message: "cannot go back"}, s.now
	Fold(s.m, s.live, nil, s.now, l)
	k := s.m.Status.Kubernetes
	if k == nil || k.Config == nil || *k.Config != has || k.FormerConfig == nil || *k.FormerConfig != had || len(k.Drift) != 1 || k.Message != "cannot go back" {
		t.Fatalf("status is %+v", k)
	}
	before := s.m.DeepCopy()
	s.live.Bringup = &fleet.Bringup{Cluster: "rack", Done: true, Config: had}
	Fold(s.m, s.live, nil, s.now, l)
	if k := s.m.Status.Kubernetes; *k.Config != had || k.FormerConfig != nil || k.Message != "" {
		t.Errorf("back, status is %+v", k)
	}
	if u := UrgencyOf(before.Status, s.m.Status); u != Immediate {
		t.Errorf("another configuration is written with urgency %d", u)
	}
	s.live.Bringup = &fleet.Bringup{Cluster: "rack"} // an agent of before
	Fold(s.m, s.live, nil, s.now, l)
	if k := s.m.Status.Kubernetes; k.Config != nil {
		t.Errorf("of an agent that says nothing, status says %+v", k.Config)
	}
}

func TestConditions(t *testing.T) {
	s := newScene(inventory)
	s.live.Conflict, s.live.ConflictAt = "it has a MAC of machine a", s.now
	Fold(s.m, s.live, nil, s.now, LimitsFor(90*time.Second, s.now))
	conflict := conditionOf(s.m, v1alpha1.ConditionIdentityConflict)
	if conflict == nil || conflict.Reason != "NotRecognised" || !strings.Contains(conflict.Message, "MAC of machine a") {
		t.Errorf("conflict: %+v", conflict)
	}
	Fold(s.m, fleet.Live{}, []identify.Twin{{Name: "b", What: "UUID x"}}, s.now, LimitsFor(90*time.Second, s.now))
	if c := conditionOf(s.m, v1alpha1.ConditionIdentityConflict); c == nil || c.Reason != "SharedIdentifiers" || !strings.Contains(c.Message, "UUID x with b") {
		t.Errorf("twins: %+v", c)
	}
	Fold(s.m, fleet.Live{}, nil, s.now, LimitsFor(90*time.Second, s.now))
	if c := conditionOf(s.m, v1alpha1.ConditionIdentityConflict); c != nil {
		t.Errorf("a conflict that is over is still there: %+v", c)
	}
}

func TestFirmwareThatIgnoresAProxyIsACondition(t *testing.T) {
	s := newScene(inventory)
	l := LimitsFor(90*time.Second, s.now)
	s.live.ProxyIgnored = "52:54:00:00:00:01 asked 3 times"
	Fold(s.m, s.live, nil, s.now, l)
	if c := conditionOf(s.m, v1alpha1.ConditionProxyIgnored); c == nil || c.Status != metav1.ConditionTrue || !strings.Contains(c.Message, "asked 3 times. ") || !strings.Contains(c.Message, "coldrack doctor --foreign-dhcp") {
		t.Errorf("ignored: %+v", c)
	}
	s.live.ProxyIgnored = ""
	Fold(s.m, s.live, nil, s.now, l)
	if c := conditionOf(s.m, v1alpha1.ConditionProxyIgnored); c != nil {
		t.Errorf("it is over: %+v", c)
	}
}

// The condition names what keeps an install from beginning, and goes with it.
func TestBlockedIsACondition(t *testing.T) {
	l := LimitsFor(90*time.Second, time.Unix(1e9, 0))
	s := newScene(inventory, approved, wants("1", install))
	s.live.Blocked = fleet.Block{Reason: v1alpha1.ReasonImageMismatch, Message: `timezone: "Europe/Kyiv" is not a time zone of image debian-13`}
	Fold(s.m, s.live, nil, s.now, l)
	c := conditionOf(s.m, v1alpha1.ConditionBlocked)
	if c == nil || c.Status != metav1.ConditionTrue || c.Reason != v1alpha1.ReasonImageMismatch || !strings.Contains(c.Message, "Europe/Kyiv") {
		t.Errorf("blocked: %+v", c)
	}
	if s.m.Status.Phase != v1alpha1.PhaseApproved || !strings.Contains(s.m.Status.Message, "Europe/Kyiv") {
		t.Errorf("blocked: phase %s, %q", s.m.Status.Phase, s.m.Status.Message)
	}
	s.m.Spec.Intent = nil
	Fold(s.m, s.live, nil, s.now, l)
	if c := conditionOf(s.m, v1alpha1.ConditionBlocked); c != nil {
		t.Errorf("nothing is asked for any more, and it is still there: %+v", c)
	}
}

// What a BMC said is shown while the machine has one.
func TestBMCReachable(t *testing.T) {
	l := LimitsFor(90*time.Second, time.Unix(1e9, 0))
	s := newScene(inventory)
	for name, c := range map[string]struct {
		bmc    *v1alpha1.BMC
		power  *v1alpha1.PowerStatus
		status metav1.ConditionStatus
		reason string
	}{
		"no BMC":             {nil, &v1alpha1.PowerStatus{State: "On"}, "", ""},
		"not asked yet":      {&v1alpha1.BMC{Address: "10.20.0.9"}, nil, metav1.ConditionFalse, "NotAsked"},
		"it answers":         {&v1alpha1.BMC{Address: "10.20.0.9"}, &v1alpha1.PowerStatus{State: "Off"}, metav1.ConditionTrue, "Answers"},
		"a wrong password":   {&v1alpha1.BMC{Address: "10.20.0.9"}, &v1alpha1.PowerStatus{State: "On", Reason: "CredentialsRefused", Problem: "BMC 10.20.0.9: no"}, metav1.ConditionFalse, "CredentialsRefused"},
		"an unknown problem": {&v1alpha1.BMC{Address: "10.20.0.9"}, &v1alpha1.PowerStatus{State: "On", Problem: "x"}, metav1.ConditionFalse, "Failed"},
	} {
		s.m.Spec.BMC, s.m.Status.Power = c.bmc, c.power
		s.m.Status.Conditions = append(s.m.Status.Conditions, metav1.Condition{Type: "BMCUnused", Status: metav1.ConditionTrue})
		Fold(s.m, s.live, nil, s.now, l)
		got := conditionOf(s.m, v1alpha1.ConditionBMCReachable)
		if (got == nil) != (c.status == "") || got != nil && (got.Status != c.status || got.Reason != c.reason) {
			t.Errorf("%s: %+v", name, got)
		}
		if conditionOf(s.m, "BMCUnused") != nil || c.bmc == nil && s.m.Status.Power != nil {
			t.Errorf("%s: what is past stays: %+v", name, s.m.Status)
		}
	}
}

func conditionOf(m *v1alpha1.Machine, kind string) *metav1.Condition {
	for i := range m.Status.Conditions {
		if m.Status.Conditions[i].Type == kind {
			return &m.Status.Conditions[i]
		}
	}
	return nil
}

func TestBytesAloneAreNoNews(t *testing.T) {
	a := newScene(inventory, approved, wants("1", install), acknowledged("1", install, running, 0), contact(0), progress(0, 10))
	b := newScene(inventory, approved, wants("1", install), acknowledged("1", install, running, 0), contact(0), progress(0, 90))
	l := LimitsFor(90*time.Second, a.now)
	Fold(a.m, a.live, nil, a.now, l)
	Fold(b.m, b.live, nil, b.now, l)
	if UrgencyOf(a.m.Status, b.m.Status) != Bytes {
		t.Error("10 and 90 bytes are taken for more than a difference of bytes")
	}
	b.live.Steps[1].State = v1alpha1.StepSucceeded
	Fold(b.m, b.live, nil, b.now, l)
	if u := UrgencyOf(a.m.Status, b.m.Status); u != Progress {
		t.Errorf("the end of a step is taken for more or less than progress: %d", u)
	}
	b.m.Status.Phase = v1alpha1.PhaseFailed
	if u := UrgencyOf(a.m.Status, b.m.Status); u != Immediate {
		t.Errorf("a failure waits: %d", u)
	}
}

func TestAcknowledge(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := newScene(wants("1", install))
	if !Acknowledge(s.m, now) || s.m.Status.Intent.State != pending || Acknowledge(s.m, now) {
		t.Errorf("a new intent: %+v", s.m.Status.Intent)
	}
	s = newScene(wants("2", install), installed(time.Hour), acknowledged("1", install, succeeded, time.Hour))
	if !Acknowledge(s.m, now) || s.m.Status.Intent.State != failed || !strings.Contains(s.m.Status.Intent.Message, "Reinstall") {
		t.Errorf("an install of what is installed: %+v", s.m.Status.Intent)
	}
	if s.m.OpenIntent() != nil || Acknowledge(s.m, now) {
		t.Error("and it is still open")
	}
}

func TestEndReboot(t *testing.T) {
	finished := metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	later := metav1.NewTime(finished.Add(40 * time.Second))
	earlier := metav1.NewTime(finished.Add(-time.Hour))
	done := func(action v1alpha1.IntentAction, state v1alpha1.IntentState) *v1alpha1.IntentStatus {
		return &v1alpha1.IntentStatus{ID: "1", Action: action, State: state, FinishedAt: &finished}
	}
	tests := map[string]struct {
		intent *v1alpha1.IntentStatus
		node   *v1alpha1.NodeStatus
		want   v1alpha1.StepState
	}{
		"the node was heard of from its disk":            {done(v1alpha1.ActionInstall, v1alpha1.IntentSucceeded), &v1alpha1.NodeStatus{ReadyAt: &later}, v1alpha1.StepSucceeded},
		"the node has not been heard of":                 {done(v1alpha1.ActionInstall, v1alpha1.IntentSucceeded), nil, v1alpha1.StepRunning},
		"only the earlier installation was heard of":     {done(v1alpha1.ActionReinstall, v1alpha1.IntentSucceeded), &v1alpha1.NodeStatus{ReadyAt: &earlier}, v1alpha1.StepRunning},
		"a released machine stays in discovery":          {done(v1alpha1.ActionRelease, v1alpha1.IntentSucceeded), nil, v1alpha1.StepSkipped},
		"the intent is still running":                    {done(v1alpha1.ActionInstall, v1alpha1.IntentRunning), &v1alpha1.NodeStatus{ReadyAt: &later}, v1alpha1.StepRunning},
		"what a failure left behind is no business here": {done(v1alpha1.ActionInstall, v1alpha1.IntentFailed), nil, v1alpha1.StepRunning},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			steps := []v1alpha1.Step{{Name: "identity", State: v1alpha1.StepSucceeded}, {Name: "reboot", State: v1alpha1.StepRunning}}
			got := endReboot(steps, test.intent, test.node)
			if got[1].State != test.want || (test.want == v1alpha1.StepSucceeded) != (got[1].FinishedAt != nil) {
				t.Errorf("got %+v, want %s", got[1], test.want)
			}
			if steps[1].State != v1alpha1.StepRunning {
				t.Error("the caller's steps were changed")
			}
		})
	}
}

// The condition AsExpected is there while a sheet says something of the machine and the machine has reported.
func TestAsExpected(t *testing.T) {
	s := newScene()
	s.m.Spec.Expected = &v1alpha1.Expected{Cores: 8}
	condition := func() string {
		Fold(s.m, s.live, nil, s.now, Limits{})
		for _, c := range s.m.Status.Conditions {
			if c.Type == v1alpha1.ConditionAsExpected {
				return string(c.Status) + " " + c.Reason + " " + c.Message
			}
		}
		return ""
	}
	if got := condition(); got != "" {
		t.Errorf("before it has reported: %s", got)
	}
	s.m.Status.Inventory = &v1alpha1.Inventory{CPU: v1alpha1.CPUInfo{Cores: 4}}
	if got := condition(); got != "False Differs has 4 cores, not 8" {
		t.Errorf("with half of its cores: %s", got)
	}
	s.m.Status.Inventory.CPU.Cores = 8
	if got := condition(); got != "True Agrees " {
		t.Errorf("with all of them: %s", got)
	}
	s.m.Spec.Expected = nil
	if got := condition(); got != "" {
		t.Errorf("when nothing is expected any more: %s", got)
	}
}

// The conditions HardwareDrift and DiskFailing are there while hardware that was accepted is missing or slow, and while a disk fails.
func TestHardwareDrift(t *testing.T) {
	s := newScene()
	s.m.Spec.Approved = false
	s.m.Status.Hardware = &v1alpha1.Hardware{Disks: []v1alpha1.DiskState{{Name: "sda", Serial: "S1"}, {Name: "sdb", Serial: "S2"}}}
	condition := func(kind string) string {
		Fold(s.m, s.live, nil, s.now, Limits{})
		for _, c := range s.m.Status.Conditions {
			if c.Type == kind {
				return string(c.Status) + " " + c.Reason + " " + c.Message
			}
		}
		return ""
	}
	if got := condition(v1alpha1.ConditionHardwareDrift); got != "" || s.m.Status.AcceptedHardware != nil {
		t.Errorf("of a stranger: %s, %+v", got, s.m.Status.AcceptedHardware)
	}
	s.m.Spec.Approved = true
	if got := condition(v1alpha1.ConditionHardwareDrift); got != "" || s.m.Status.AcceptedHardware == nil || !s.m.Status.AcceptedHardware.At.Time.Equal(s.now.Truncate(time.Second)) {
		t.Errorf("once it is approved: %s, %+v", got, s.m.Status.AcceptedHardware)
	}
	s.m.Status.Hardware.Disks = s.m.Status.Hardware.Disks[:1]
	want := "True Missing missing: disk S2 (disk, 0B). Repair it, or accept it as it is: coldrack machines accept-hardware " + s.m.Name
	if got := condition(v1alpha1.ConditionHardwareDrift); got != want {
		t.Errorf("a disk is gone: %q, want %q", got, want)
	}
	s.m.Status.Hardware.Incomplete = "the report is too large"
	if got := condition(v1alpha1.ConditionHardwareDrift); got != "" {
		t.Errorf("of half a report: %s", got)
	}
	s.m.Status.Hardware.Incomplete = ""
	s.m.Annotations = map[string]string{v1alpha1.AnnotationAcceptHardware: drift.Digest(drift.Parts(s.m.Status.Hardware))}
	if got := condition(v1alpha1.ConditionHardwareDrift); got != "" || len(s.m.Status.AcceptedHardware.Parts) != 1 {
		t.Errorf("once a person accepted it: %s, %+v", got, s.m.Status.AcceptedHardware)
	}
	s.m.Status.Hardware.Disks[0].Health = &v1alpha1.DiskHealth{Warnings: []string{"spare"}}
	if got := condition(v1alpha1.ConditionDiskFailing); got != "True DiskSaysSo sda S1: it warns of spare. Replace it" {
		t.Errorf("a disk fails: %q", got)
	}
	s.m.Status.Hardware.Disks[0].Health = nil
	if got := condition(v1alpha1.ConditionDiskFailing); got != "" {
		t.Errorf("it was replaced: %s", got)
	}
}
