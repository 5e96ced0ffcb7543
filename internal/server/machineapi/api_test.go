package machineapi

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/api/meta"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/machine/lifecycle"
)

var (
	idsA = wire.Identifiers{MACs: []string{"52:54:00:00:00:0a", "52:54:00:00:0a:02"}, UUID: "a0a0a0a0-1111-4111-8111-0123456789ab", Serial: "SN-A"}
	idsB = wire.Identifiers{MACs: []string{"52:54:00:00:00:0b"}, UUID: "b0b0b0b0-2222-4222-8222-0123456789ab", Serial: "SN-B"}
)

func TestAMachineBecomesANode(t *testing.T) {
	s := newServer(t)
	a := s.discovered(idsA)
	if a.name != "m-52540000000a" {
		t.Fatalf("name is %q", a.name)
	}
	if inventory := s.status(a.name).Inventory; inventory == nil || len(inventory.NICs) != 2 || inventory.Disks[0].ByID != "virtio-1" {
		t.Fatalf("inventory: %+v", inventory)
	}
	waiting, err := a.assignment()
	check(t, err)
	if waiting.Action != wire.ActionWait || !strings.Contains(waiting.Message, "coldrack approve "+a.name) {
		t.Fatalf("unapproved: %+v", waiting)
	}

	s.approve(a.name, "i1", v1alpha1.ActionInstall)
	install, err := a.assignment()
	check(t, err)
	plan := install.Plan
	if plan == nil || plan.IntentID != "i1" || !slices.Equal(plan.OwnIntentIDs, []string{"i1"}) || !slices.Equal(plan.KernelArgs, []string{"rw", "quiet"}) {
		t.Fatalf("plan: %+v", install)
	}
	config := plan.Config
	if config.Hostname != a.name || config.Interfaces[0].Addresses[0] != "10.0.0.11/24" || config.Interfaces[0].MAC != idsA.MACs[0] ||
		config.Interfaces[0].Gateway != "10.0.0.1" || config.Files[0].Mode != 0o600 || config.Domain != "lab" {
		t.Fatalf("config: %+v", config)
	}
	if got := s.status(a.name).Intent; got == nil || got.State != v1alpha1.IntentPending {
		t.Fatalf("a plan was handed out before the intent was acknowledged: %+v", got)
	}
	if again, err := a.assignment(); err != nil || again.Version != install.Version {
		t.Errorf("the acknowledgement made another plan of it: %v, %v", again.Version, err)
	}
	_, err = a.progress("i1", wire.Step{Name: wire.StepImage, State: wire.StateRunning, BytesDone: 5, BytesTotal: 10})
	check(t, err)
	if got := s.status(a.name).Intent; got.State != v1alpha1.IntentRunning || got.Attempts != 1 {
		t.Fatalf("running: %+v", got)
	}
	if live := s.fleet.Live(a.name); len(live.Steps) != 1 || live.Steps[0].BytesDone != 5 {
		t.Errorf("live steps: %+v", live.Steps)
	}
	node, err := a.identity("i1")
	check(t, err)
	check(t, a.complete("i1", wire.StateSucceeded, ""))
	check(t, a.complete("i1", wire.StateSucceeded, "")) // the first answer was lost
	status := s.status(a.name)
	if status.Installed == nil || status.Installed.Image != "debian-12" || status.Installed.Disk != "virtio-1" || status.Intent.State != v1alpha1.IntentSucceeded {
		t.Fatalf("installed: %+v, intent %+v", status.Installed, status.Intent)
	}
	beat, err := node.heartbeat()
	check(t, err)
	if beat.IntervalSeconds != 30 || beat.Reboot {
		t.Errorf("heartbeat: %+v", beat)
	}
	if s.fleet.Live(a.name).Heartbeat == nil {
		t.Error("the heartbeat left no trace")
	}
	if after, err := a.assignment(); err != nil || after.Action != wire.ActionReboot {
		t.Errorf("after the install the session is told to %s (%v)", after.Action, err)
	}
}

func TestReinstallAndRelease(t *testing.T) {
	s := newServer(t)
	_, node := s.installed(idsA, "i1")
	s.approve(node.name, "i2", v1alpha1.ActionReinstall)
	beat, err := node.heartbeat()
	check(t, err)
	if !beat.Reboot || !strings.Contains(beat.RebootReason, "i2") {
		t.Fatalf("the node is not told to reboot: %+v", beat)
	}
	second := s.discovered(idsA)
	plan, err := second.assignment()
	check(t, err)
	if plan.Plan == nil || !slices.Equal(plan.Plan.OwnIntentIDs, []string{"i1", "i2"}) {
		t.Fatalf("reinstall: %+v, want a plan that knows the disk's mark i1", plan)
	}
	node2 := s.install(second, "i2")
	if _, err := node.heartbeat(); code(err) != wire.CodeForbidden {
		t.Errorf("the key of the old installation still counts: %v", err)
	}
	_, err = node2.heartbeat()
	check(t, err)

	s.spec(node.name, func(spec *v1alpha1.MachineSpec) {
		spec.Intent = &v1alpha1.Intent{ID: "i3", Action: v1alpha1.ActionRelease}
	})
	if beat, err := node2.heartbeat(); err != nil || !beat.Reboot {
		t.Fatalf("release: %+v, %v, want a reboot", beat, err)
	}
	third := s.discovered(idsA)
	release, err := third.assignment()
	check(t, err)
	if release.Release == nil || !slices.Equal(release.Release.OwnIntentIDs, []string{"i1", "i2", "i3"}) {
		t.Fatalf("release: %+v", release)
	}
	_, err = third.progress("i3")
	check(t, err)
	if _, err := third.identity("i3"); code(err) != wire.CodeConflict {
		t.Errorf("a release got an identity: %v", err)
	}
	check(t, third.complete("i3", wire.StateSucceeded, ""))
	if status := s.status(node.name); status.Identity != nil || status.Installed != nil {
		t.Errorf("released: %+v", status)
	}
	if _, err := node2.heartbeat(); code(err) != wire.CodeForbidden {
		t.Errorf("a released node's key still counts: %v", err)
	}
}

func TestNodeStaysWhileItsReinstallCannotBeCarriedOut(t *testing.T) {
	s := newServer(t)
	_, node := s.installed(idsA, "i1")
	s.approve(node.name, "i2", v1alpha1.ActionReinstall)
	s.spec(node.name, func(spec *v1alpha1.MachineSpec) { spec.Profile = "gone" })
	beat, err := node.heartbeat()
	check(t, err)
	if beat.Reboot {
		t.Error("the node is told to reboot for a profile that does not exist")
	}
	if blocked := s.fleet.Live(node.name).Blocked.Message; !strings.Contains(blocked, "profile gone does not exist") {
		t.Errorf("blocked: %q", blocked)
	}
}

// A plan is what lets the installer begin with the wipe. What one image lacks is found out before there is one.
func TestAProfileThatItsImageCannotSatisfyIsNotPlanned(t *testing.T) {
	s := newServer(t)
	a := s.discovered(idsA)
	s.store.profiles["default"].Spec.Timezone = "Europe/Berlin"
	s.approve(a.name, "i1", v1alpha1.ActionInstall)
	s.store.facts = &nodeconfig.ImageFacts{Version: nodeconfig.FactsVersion, Units: []string{"systemd-networkd.service"}, Timezones: []string{"Etc/UTC", "Europe/Paris"}}
	answer, err := a.assignment()
	check(t, err)
	if answer.Action != wire.ActionWait || answer.Plan != nil {
		t.Fatalf("got %+v, want to wait", answer)
	}
	want := fleet.Block{Reason: v1alpha1.ReasonImageMismatch, Message: `machine ` + a.name + ` with profile default does not fit image debian-12; nothing was changed: ` +
		`node configuration: timezone: "Europe/Berlin" is not a time zone of image debian-12; choose another, or add tzdata or tzdata-legacy to the image's packages`}
	if got := s.fleet.Live(a.name).Blocked; got != want || answer.Message != want.Message {
		t.Errorf("blocked: %+v\nwant %+v\nthe machine is told %q", got, want, answer.Message)
	}
	if status := s.status(a.name).Intent; status != nil && status.State == v1alpha1.IntentRunning {
		t.Errorf("the intent runs: %+v", status)
	}

	s.store.profiles["default"].Spec.Timezone = "Europe/Paris"
	if answer, err = a.assignment(); err != nil || answer.Plan == nil {
		t.Errorf("corrected: %+v, %v", answer, err)
	}
	if got := s.fleet.Live(a.name).Blocked; got != (fleet.Block{}) {
		t.Errorf("still blocked: %+v", got)
	}
}

// Bundles of older builders have no facts; their images are installed as before.
func TestAnImageWithoutFactsIsInstalled(t *testing.T) {
	s := newServer(t)
	a := s.discovered(idsA)
	s.store.profiles["default"].Spec.Timezone = "Europe/Berlin"
	s.approve(a.name, "i1", v1alpha1.ActionInstall)
	if answer, err := a.assignment(); err != nil || answer.Plan == nil || answer.Plan.Config.Timezone != "Europe/Berlin" {
		t.Errorf("got %+v, %v, want a plan", answer, err)
	}
}

func TestAnInstallThatWasCutOffStartsOver(t *testing.T) {
	s := newServer(t)
	first := s.discovered(idsA)
	s.approve(first.name, "i1", v1alpha1.ActionInstall)
	_, err := first.assignment()
	check(t, err)
	_, err = first.progress("i1")
	check(t, err)
	_, err = first.progress("i1")
	check(t, err)
	_, err = first.identity("i1") // power is cut right after
	check(t, err)
	second := s.discovered(idsA)
	s.install(second, "i1")
	if got := s.status(first.name).Intent; got.Attempts != 2 || got.State != v1alpha1.IntentSucceeded {
		t.Errorf("intent: %+v, want the second attempt to succeed", got)
	}
}

func TestARestartOfTheServerGoesUnnoticed(t *testing.T) {
	s := newServer(t)
	a := s.discovered(idsA)
	s.approve(a.name, "i1", v1alpha1.ActionInstall)
	before, err := a.assignment()
	check(t, err)
	_, err = a.progress("i1")
	check(t, err)

	s.start()
	after, err := a.assignment()
	check(t, err)
	if after.Version != before.Version {
		t.Error("the plan is another after the restart")
	}
	_, err = a.progress("i1")
	check(t, err)
	if got := s.status(a.name).Intent.Attempts; got != 1 {
		t.Errorf("%d attempts, want 1: the restart is not the machine's", got)
	}
	node, err := a.identity("i1")
	check(t, err)
	s.start()
	check(t, a.complete("i1", wire.StateSucceeded, ""))
	s.start()
	_, err = node.heartbeat()
	check(t, err)
}

func TestAnAcknowledgedIntentNeverRunsAgain(t *testing.T) {
	for _, state := range []wire.State{wire.StateSucceeded, wire.StateFailed} {
		t.Run(string(state), func(t *testing.T) {
			s := newServer(t)
			var a *agent
			if state == wire.StateSucceeded {
				a, _ = s.installed(idsA, "i1")
			} else {
				a = s.discovered(idsA)
				s.approve(a.name, "i1", v1alpha1.ActionInstall)
				_, err := a.assignment()
				check(t, err)
				check(t, a.complete("i1", wire.StateFailed, "disk too small"))
			}
			s.start()
			answer, err := a.assignment()
			check(t, err)
			if answer.Plan != nil || answer.Release != nil {
				t.Fatalf("handed out again: %+v", answer)
			}
			if state == wire.StateFailed && !strings.Contains(answer.Message, "disk too small") {
				t.Errorf("the reason is lost: %q", answer.Message)
			}
			progress, err := a.progress("i1")
			check(t, err)
			if !progress.Cancel {
				t.Error("progress of a finished intent is not cancelled")
			}
			if _, err := a.identity("i1"); code(err) != wire.CodeConflict {
				t.Errorf("identity for a finished intent: %v", err)
			}
			other := map[wire.State]wire.State{wire.StateSucceeded: wire.StateFailed, wire.StateFailed: wire.StateSucceeded}[state]
			if err := a.complete("i1", other, ""); code(err) != wire.CodeConflict {
				t.Errorf("the outcome was changed afterwards: %v", err)
			}
		})
	}
}

func TestAMachineThatResetsInEveryInstallIsGivenUp(t *testing.T) {
	s := newServer(t)
	name := s.discovered(idsA).name
	s.approve(name, "i1", v1alpha1.ActionInstall)
	for range 5 {
		_, err := s.discovered(idsA).progress("i1")
		check(t, err)
	}
	last := s.discovered(idsA)
	answer, err := last.progress("i1")
	check(t, err)
	if intent := s.status(name).Intent; !answer.Cancel || intent.State != v1alpha1.IntentFailed || !strings.Contains(intent.Message, "5 attempts") {
		t.Errorf("sixth attempt: %+v, intent %+v", answer, intent)
	}
}

func TestASpoofedMachineGetsNothing(t *testing.T) {
	s := newServer(t)
	_, node := s.installed(idsA, "i1")
	tests := []struct {
		name string
		boot string
		ids  wire.Identifiers
		want string
	}{
		{"all identifiers copied", idsA.MACs[0], idsA, wire.CodeIdentityExists},
		{"only the MAC copied", idsA.MACs[0], wire.Identifiers{MACs: idsA.MACs[:1]}, wire.CodeIdentityExists},
		{"the MAC copied, everything else its own", idsA.MACs[0], wire.Identifiers{MACs: idsA.MACs[:1], UUID: idsB.UUID, Serial: "SN-X"}, wire.CodeConflict},
		{"a nonce for a stranger, the MAC of the victim", "52:54:00:00:00:66", wire.Identifiers{MACs: idsA.MACs}, wire.CodeForbidden},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			thief := s.agent()
			err := thief.enroll(s.boot(test.boot), test.ids)
			if code(err) != test.want || thief.cert != "" {
				t.Errorf("got %v, want %s and no certificate", err, test.want)
			}
			if _, err := thief.assignment(); err == nil {
				t.Error("got an assignment without a certificate")
			}
		})
	}
	_, err := node.heartbeat()
	check(t, err)
	if lines := s.fleet.LogLines(node.name); !slices.ContainsFunc(lines, func(l fleetLine) bool { return strings.Contains(l.Text, "refused an enrolment") }) {
		t.Errorf("the attempts left no trace in the machine's log: %v", lines)
	}
}

func TestNoncesAreOfOneUse(t *testing.T) {
	s := newServer(t)
	nonce := s.boot(idsA.MACs[0])
	a := s.agent()
	check(t, a.enroll(nonce, idsA))
	check(t, a.enroll(nonce, idsA)) // the answer was lost; the same key asks again
	if err := s.agent().enroll(nonce, idsA); code(err) != wire.CodeUnknownNonce {
		t.Errorf("a replayed nonce: %v", err)
	}
	if err := s.agent().enroll("guess", idsA); code(err) != wire.CodeUnknownNonce {
		t.Errorf("a guessed nonce: %v", err)
	}
	old := s.boot(idsB.MACs[0])
	s.clock.add(nonceTTL + time.Second)
	if err := s.agent().enroll(old, idsB); code(err) != wire.CodeUnknownNonce {
		t.Errorf("an old nonce: %v", err)
	}
	early := s.boot(idsB.MACs[0])
	s.start()
	if err := s.agent().enroll(early, idsB); code(err) != wire.CodeUnknownNonce {
		t.Errorf("a nonce from before the restart: %v", err)
	}
}

func TestCertificatesOpenOnlyTheirOwnDoors(t *testing.T) {
	s := newServer(t)
	session, node := s.installed(idsA, "i1")
	other := s.discovered(idsB)
	s.approve(other.name, "i1", v1alpha1.ActionInstall) // the same id as A's, on purpose
	nobody := s.agent()

	foreign := newServer(t) // another installation with a CA of its own
	stranger := foreign.discovered(idsA)
	stranger.s = s

	tests := []struct {
		name string
		as   *agent
		path string
		want string
	}{
		{"nobody asks for an assignment", nobody, wire.PathAssignment, wire.CodeForbidden},
		{"nobody sends a heartbeat", nobody, wire.PathHeartbeat, wire.CodeForbidden},
		{"a session sends a heartbeat", session, wire.PathHeartbeat, wire.CodeForbidden},
		{"a node asks for an assignment", node, wire.PathAssignment, wire.CodeForbidden},
		{"a node asks for an identity", node, wire.PathIdentity, wire.CodeForbidden},
		{"a node completes an intent", node, wire.PathComplete, wire.CodeForbidden},
		{"a certificate of another CA", stranger, wire.PathAssignment, "?"},
		{"a session renews itself although its machine is installed", session, wire.PathRenew, wire.CodeIdentityExists},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			method, body := "POST", any([]byte("{}"))
			switch test.path {
			case wire.PathAssignment:
				method, body = "GET", nil
			case wire.PathRenew:
				body = wire.RenewRequest{CSR: csr(t, newKey(t))}
			}
			_, err := send[wire.Empty](test.as, method, test.path, body)
			if got := code(err); got != test.want && (test.want != "?" || !strings.HasPrefix(got, "?")) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}

	// What a session says is about its own machine, whatever ids it names.
	_, err := other.progress("i1")
	check(t, err)
	stolen, err := other.identity("i1")
	check(t, err)
	if status := s.status(node.name); status.Identity.KeyFingerprint != fingerprintOf(t, node) {
		t.Error("a session of B changed A's identity")
	}
	if status := s.status(other.name); status.Identity.KeyFingerprint != fingerprintOf(t, stolen) {
		t.Error("B's identity is not B's key")
	}
}

func TestAnOldSessionEndsWhenTheMachineBootsAgain(t *testing.T) {
	s := newServer(t)
	old := s.discovered(idsA)
	now := s.discovered(idsA)
	s.approve(old.name, "i1", v1alpha1.ActionInstall)
	if _, err := old.assignment(); code(err) != wire.CodeForbidden {
		t.Errorf("the session of the boot before still gets plans: %v", err)
	}
	if conflict := s.fleet.Live(now.name).Conflict; !strings.Contains(conflict, "two running systems") {
		t.Errorf("a system that goes on beside the new one is not told of: %q", conflict)
	}
	_, err := now.assignment()
	check(t, err)
	s.clock.add(sessionTTL + time.Hour)
	if _, err := now.assignment(); err == nil {
		t.Error("an expired session still gets plans")
	}
}

// fold writes what the controller writes of a machine's sessions and keys.
func (s *server) fold(name string) {
	s.t.Helper()
	live := s.fleet.Live(name)
	_, err := s.store.UpdateStatus(s.t.Context(), name, func(m *v1alpha1.Machine) error {
		lifecycle.Fold(m, live, nil, s.clock.Now(), lifecycle.Limits{})
		return nil
	})
	check(s.t, err)
}

func TestAnInstallOutlastsAClockThatIsSetBack(t *testing.T) {
	s := newServer(t)
	session := s.discovered(idsA)
	s.approve(session.name, "i1", v1alpha1.ActionInstall)
	_, err := session.progress("i1", wire.Step{Name: wire.StepPreflight, State: wire.StateRunning})
	check(t, err)
	s.clock.add(-3 * time.Hour)
	node, err := session.identity("i1")
	check(t, err)
	check(t, session.complete("i1", wire.StateSucceeded, ""))
	_, err = node.heartbeat()
	check(t, err)
}

func TestAnOldSessionEndsAlsoWhenTheServerIsRestarted(t *testing.T) {
	s := newServer(t)
	old := s.discovered(idsA)
	now := s.discovered(idsA)
	s.fold(old.name)
	s.start()
	s.approve(old.name, "i1", v1alpha1.ActionInstall)
	if _, err := old.assignment(); code(err) != wire.CodeForbidden {
		t.Errorf("after a restart the session of the boot before gets a plan: %v", err)
	}
	_, err := now.assignment()
	check(t, err)
	if _, err := old.assignment(); code(err) != wire.CodeForbidden {
		t.Errorf("after the newest session was seen, the one before gets a plan: %v", err)
	}
}

// The server may end before it has written which session is the last one.
func TestTheNewestSessionGoesOnAlthoughNothingRecordedIt(t *testing.T) {
	s := newServer(t)
	old := s.discovered(idsA)
	s.fold(old.name)
	s.store.machines[old.name].Status.Session.IssuedAt.Time = s.clock.Now().Add(-time.Hour)
	now := s.discovered(idsA)
	s.start()
	_, err := now.assignment()
	check(t, err)
	if _, err := old.assignment(); code(err) != wire.CodeForbidden {
		t.Errorf("the session of the boot before gets a plan: %v", err)
	}
	s.fold(now.name)
	s.start()
	if _, err := old.assignment(); code(err) != wire.CodeForbidden {
		t.Errorf("after another restart the session of the boot before gets a plan: %v", err)
	}
}

func TestANonceIsForTheMachineThatAskedForIt(t *testing.T) {
	s := newServer(t)
	issue := func(ids v1alpha1.Identifiers) string {
		return s.api.Nonces.Issue(Binding{Identifiers: ids, Action: v1alpha1.BootDiscover})
	}
	for _, test := range []struct {
		name  string
		asked v1alpha1.Identifiers
		says  wire.Identifiers
		want  string
	}{
		{"its MAC", v1alpha1.Identifiers{MACs: []string{"52-54-00-00-0A-01"}}, wire.Identifiers{MACs: []string{"52:54:00:00:0a:02", "52:54:00:00:0a:01"}}, ""},
		{"another's MAC", v1alpha1.Identifiers{MACs: []string{"52:54:00:00:0b:01"}, UUID: idsB.UUID}, wire.Identifiers{MACs: []string{"52:54:00:00:0b:02"}, UUID: idsB.UUID}, wire.CodeForbidden},
		{"no MAC, its UUID", v1alpha1.Identifiers{UUID: "8b1f7a6e-0000-4000-8000-0000000000c1"}, wire.Identifiers{MACs: []string{"52:54:00:00:0c:01"}, UUID: "8B1F7A6E-0000-4000-8000-0000000000C1"}, ""},
		{"no MAC, another's UUID", v1alpha1.Identifiers{UUID: "8b1f7a6e-0000-4000-8000-0000000000d1"}, wire.Identifiers{MACs: []string{"52:54:00:00:0d:01"}, UUID: idsB.UUID}, wire.CodeForbidden},
		{"no MAC and no UUID, its serial", v1alpha1.Identifiers{Serial: "SN-E"}, wire.Identifiers{MACs: []string{"52:54:00:00:0e:01"}, Serial: "SN-E"}, ""},
		{"nothing at all", v1alpha1.Identifiers{}, wire.Identifiers{MACs: []string{"52:54:00:00:0f:01"}}, wire.CodeForbidden},
	} {
		if err := s.agent().enroll(issue(test.asked), test.says); code(err) != test.want {
			t.Errorf("%s: %v, want code %q", test.name, err, test.want)
		}
	}
}

// A backup is older than the renewal of a node's key.
func TestANodeIsReadmittedAfterABackup(t *testing.T) {
	s := newServer(t)
	_, node := s.installed(idsA, "i1")
	backup, err := s.store.Get(t.Context(), node.name)
	check(t, err)
	renewed := &agent{s: s, key: newKey(t), name: node.name}
	answer, err := send[wire.IdentityResponse](node, "POST", wire.PathRenew, wire.RenewRequest{CSR: csr(t, renewed.key)})
	check(t, err)
	renewed.cert = answer.Certificate
	_, err = renewed.heartbeat()
	check(t, err)
	present := s.status(node.name).Identity.KeyFingerprint

	s.store.put(backup)
	s.start()
	if _, err := renewed.heartbeat(); code(err) != wire.CodeForbidden {
		t.Fatalf("a key that the backup does not know: %v", err)
	}
	s.fold(node.name)
	m, err := s.store.Get(t.Context(), node.name)
	check(t, err)
	if c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionKeyRefused); c == nil || !strings.Contains(c.Message, "coldrack readmit "+node.name+" --key "+present) {
		t.Errorf("condition KeyRefused: %+v", c)
	}
	annotate := func(value string) {
		m, err := s.store.Get(t.Context(), node.name)
		check(t, err)
		m.Annotations = map[string]string{v1alpha1.AnnotationReadmit: value}
		s.fleet.Put(s.store.put(m))
	}
	old := backup.Status.Identity.KeyFingerprint
	annotate(present + "/" + old)
	if _, err := renewed.heartbeat(); code(err) != wire.CodeForbidden {
		t.Errorf("a readmission the other way round: %v", err)
	}
	annotate(old + "/" + present)
	_, err = renewed.heartbeat()
	check(t, err)
	if got := s.status(node.name).Identity; got.KeyFingerprint != present || got.NextKeyFingerprint != "" || !got.ExpiresAt.After(s.clock.Now()) {
		t.Errorf("identity after it: %+v, want key %s", got, present)
	}
	if _, err := node.heartbeat(); code(err) != wire.CodeForbidden {
		t.Errorf("the key before the renewal: %v", err)
	}
	s.fold(node.name)
	if got := s.status(node.name); got.KeyRefused != nil && got.KeyRefused.KeyFingerprint == present {
		t.Errorf("still said to be refused: %+v", got.KeyRefused)
	}
	// The request does nothing more: not for a disk from before the next install.
	s.spec(node.name, func(spec *v1alpha1.MachineSpec) {
		spec.Intent = &v1alpha1.Intent{ID: "i2", Action: v1alpha1.ActionReinstall}
	})
	again := s.discovered(idsA)
	s.install(again, "i2")
	if _, err := renewed.heartbeat(); code(err) != wire.CodeForbidden {
		t.Errorf("the disk from before the reinstall is readmitted: %v", err)
	}
}

func TestRenewal(t *testing.T) {
	s := newServer(t)
	_, node := s.installed(idsA, "i1")
	renewed := &agent{s: s, key: newKey(t), name: node.name}
	answer, err := send[wire.IdentityResponse](node, "POST", wire.PathRenew, wire.RenewRequest{CSR: csr(t, renewed.key)})
	check(t, err)
	renewed.cert = answer.Certificate
	_, err = node.heartbeat() // had the answer been lost, the node would still be heard
	check(t, err)
	s.start()
	_, err = renewed.heartbeat()
	check(t, err)
	if _, err := node.heartbeat(); code(err) != wire.CodeForbidden {
		t.Errorf("the replaced key still counts: %v", err)
	}
	s.start()
	_, err = renewed.heartbeat()
	check(t, err)

	waiting := s.discovered(idsB)
	again, err := send[wire.IdentityResponse](waiting, "POST", wire.PathRenew, wire.RenewRequest{CSR: csr(t, waiting.key)})
	check(t, err)
	waiting.cert = again.Certificate
	_, err = waiting.assignment()
	check(t, err)
}

func TestTwoMachinesWithOneUUIDStayTwo(t *testing.T) {
	s := newServer(t)
	a := s.discovered(idsA)
	twin := idsB
	twin.UUID = idsA.UUID
	b := s.discovered(twin)
	if a.name == b.name {
		t.Fatalf("both are %s", a.name)
	}
	if twins := s.fleet.Twins(a.name); len(twins) != 1 || twins[0].Name != b.name {
		t.Errorf("twins of %s: %v", a.name, twins)
	}
}

// A BMC's USB interface has the same MAC in every server of its type; so has a NIC whose maker wrote no address.
func TestServersWithOneMACInCommonAreEachTheirOwn(t *testing.T) {
	for name, common := range map[string]wire.Identifiers{
		"a BMC's USB interface":                   {MACs: []string{"02:be:ef:00:00:01"}, USBMACs: []string{"02:be:ef:00:00:01"}},
		"an agent that does not tell what is USB": {MACs: []string{"02:be:ef:00:00:01"}},
		"a placeholder":                           {MACs: []string{"00:a0:c9:00:00:00"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			names := map[string]bool{}
			for i := range 3 {
				ids := common
				ids.MACs = append([]string{"52:54:00:00:01:0" + strconv.Itoa(i)}, common.MACs...)
				a := s.discovered(ids)
				names[a.name] = true
				m, err := s.store.Get(t.Context(), a.name)
				check(t, err)
				if len(m.Status.Inventory.NICs) != 2 || (len(common.USBMACs) > 0 && m.Status.Inventory.NICs[1].Bus != v1alpha1.NICBusUSB) {
					t.Errorf("inventory of %s: %+v", a.name, m.Status.Inventory.NICs)
				}
				if again := s.discovered(ids); again.name != a.name {
					t.Errorf("%s booted again and is %s", a.name, again.name)
				}
			}
			if len(names) != 3 {
				t.Errorf("three servers are %v", names)
			}
		})
	}
}

// Who has nothing but what many machines have is told so, and why.
func TestAMachineThatNothingTellsApart(t *testing.T) {
	s := newServer(t)
	err := s.agent().enroll(s.boot("00:a0:c9:00:00:00"), wire.Identifiers{MACs: []string{"00:a0:c9:00:00:00"}})
	if code(err) != wire.CodeBadRequest || !strings.Contains(err.Error(), "00:a0:c9:00:00:00 is the same on Intel") {
		t.Errorf("got %v", err)
	}
}

// A stranger with a MAC of a node's second NIC gets a certificate in its own name, never in the node's.
func TestAStrangerWithAMACOfANodesOtherNIC(t *testing.T) {
	s := newServer(t)
	_, node := s.installed(idsA, "i1")
	stranger := s.discovered(wire.Identifiers{MACs: []string{"52:54:00:00:00:66", idsA.MACs[1]}})
	if stranger.name == node.name {
		t.Error("the stranger was taken for the node")
	}
}

// A stranger enrols as what it is and then reports the NICs of a node among its own. The node keeps its name at its next boot,
// and its address; so it does after a restart.
func TestAStrangersInventoryTakesNothingFromANode(t *testing.T) {
	s := newServer(t)
	_, node := s.installed(idsA, "i1")
	s.spec(node.name, func(spec *v1alpha1.MachineSpec) {
		spec.Network = &v1alpha1.MachineNetwork{Address: "10.0.0.5"}
	})
	stranger := s.discovered(wire.Identifiers{MACs: []string{"52:54:00:00:00:66"}, UUID: idsB.UUID, Serial: "SN-X"})
	claims := inventoryWith(wire.Identifiers{MACs: append([]string{"52:54:00:00:00:66"}, idsA.MACs...), UUID: idsB.UUID, Serial: "SN-X"})
	_, err := send[wire.Empty](stranger, http.MethodPost, wire.PathInventory, claims)
	check(t, err)
	keeps := func() {
		t.Helper()
		for _, mac := range idsA.MACs {
			m, _, why := s.fleet.Lookup(v1alpha1.Identifiers{MACs: []string{mac}, UUID: idsA.UUID, Serial: idsA.Serial})
			if m == nil || m.Name != node.name {
				t.Errorf("its boot by %s is not told from the stranger's: %s", mac, why)
			}
			if r, ok := s.fleet.ByMAC(mac); !ok || r.Machine != node.name || r.Address.String() != "10.0.0.5" {
				t.Errorf("DHCP gives %s: %+v", mac, r)
			}
		}
	}
	keeps()
	s.start()
	keeps()
}

// Many strangers share what few may have each, so that no number of them fills the store.
func TestStrangersShareTheRoomForInventories(t *testing.T) {
	all := 0
	for n := range 10_000 {
		limit := inventoryLimit(n)
		if limit > maxInventory || limit < leastInventory {
			t.Fatalf("%d strangers: %d bytes each", n, limit)
		}
		all += limit
	}
	if all > 215<<20 {
		t.Errorf("10,000 strangers can write %d MiB", all>>20)
	}
	large := &v1alpha1.Inventory{System: v1alpha1.SystemInfo{Serial: "SN-1"}}
	for i := range 250 {
		large.Disks = append(large.Disks, v1alpha1.Disk{Name: strconv.Itoa(i), Serial: strings.Repeat("s", 120)})
		large.NICs = append(large.NICs, v1alpha1.NIC{Name: strconv.Itoa(i), Driver: strings.Repeat("d", 120)})
	}
	cut, why := fitted(large, leastInventory)
	if n := size(cut); n > leastInventory || cut.System.Serial != "SN-1" || len(cut.NICs) == 0 || !strings.Contains(why, "of 250 interfaces") {
		t.Errorf("%d bytes, %d interfaces, %q", n, len(cut.NICs), why)
	}
}

func TestWhatInventoriesMayCost(t *testing.T) {
	s := newServer(t)
	a := s.discovered(idsA)
	report := func(in wire.Inventory) error {
		_, err := send[wire.Empty](a, http.MethodPost, wire.PathInventory, in)
		return err
	}
	version := func() string {
		m, err := s.store.Get(t.Context(), a.name)
		check(t, err)
		return m.ResourceVersion
	}
	same, before := inventoryWith(idsA), version()
	check(t, report(same))
	if version() != before {
		t.Error("an unchanged inventory was written")
	}
	s.clock.add(2 * time.Hour)
	check(t, report(same))
	if version() == before {
		t.Error("an old inventory is never dated anew")
	}

	large := inventoryWith(idsA)
	for i := range 250 {
		large.Disks = append(large.Disks, wire.Disk{Name: strconv.Itoa(i), Model: strings.Repeat("m", 120), Serial: strings.Repeat("s", 120), Contents: []string{strings.Repeat("c", 120)}})
	}
	check(t, report(large))
	inventory := s.status(a.name).Inventory
	if n := size(inventory); n > maxInventory || len(inventory.Disks) < 50 || inventory.Disks[0].Contents != nil {
		t.Errorf("%d bytes and %d disks were written", n, len(inventory.Disks))
	}
	if lines := s.fleet.LogLines(a.name); !slices.ContainsFunc(lines, func(l fleetLine) bool { return strings.Contains(l.Text, "left out: what is on the disks") }) {
		t.Errorf("nothing says what is missing: %v", lines)
	}

	// A stranger that reports another inventory again and again is slowed down; a machine that was approved is not.
	s.api.strangers = rate.NewLimiter(1, 5*size(inventory))
	var err error
	for i := 0; err == nil; i++ {
		if i > 10 {
			t.Fatal("nothing bounds what a stranger writes")
		}
		large.MemoryBytes = int64(i+1) << 30
		err = report(large)
	}
	if refusal := (failure{}); !errors.As(err, &refusal) || refusal.status != http.StatusTooManyRequests {
		t.Errorf("got %v", err)
	}
	s.spec(a.name, func(spec *v1alpha1.MachineSpec) { spec.Approved = true })
	large.MemoryBytes = 1
	check(t, report(large))
}

func TestAnotherNICIsTheSameMachine(t *testing.T) {
	s := newServer(t)
	a := s.discovered(idsA)
	again := idsA
	again.MACs = []string{idsA.MACs[1], idsA.MACs[0]}
	if b := s.discovered(again); b.name != a.name {
		t.Errorf("booted from its other NIC it is %s, not %s", b.name, a.name)
	}
}

func TestNothingIsPromisedThatTheStoreDoesNotHave(t *testing.T) {
	s := newServer(t)
	a := s.discovered(idsA)
	s.approve(a.name, "i1", v1alpha1.ActionInstall)
	_, err := a.assignment()
	check(t, err)
	_, err = a.progress("i1")
	check(t, err)
	s.store.broken = errors.New("etcd is away")
	if _, err := a.identity("i1"); code(err) != wire.CodeInternal {
		t.Errorf("identity while the store is away: %v", err)
	}
	if err := a.complete("i1", wire.StateFailed, "x"); code(err) != wire.CodeInternal {
		t.Errorf("completion while the store is away: %v", err)
	}
	s.store.broken = nil
	if err := a.complete("i1", wire.StateSucceeded, ""); code(err) != wire.CodeConflict {
		t.Errorf("completion without an identity: %v", err)
	}
}

func TestLongPollAnswersWhenSomethingChanges(t *testing.T) {
	s := newServer(t)
	a := s.discovered(idsA)
	waiting, err := a.assignment()
	check(t, err)
	answers := make(chan wire.Assignment, 1)
	go func() {
		answer, err := send[wire.Assignment](a, "GET", wire.PathAssignment+"?wait=30&version="+waiting.Version, nil)
		if err != nil {
			t.Error(err)
		}
		answers <- answer
	}()
	s.approve(a.name, "i1", v1alpha1.ActionInstall)
	select {
	case answer := <-answers:
		if answer.Action != wire.ActionInstall {
			t.Errorf("got %+v", answer)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("approval did not wake the machine")
	}
}

func TestBadRequests(t *testing.T) {
	s := newServer(t)
	a := s.discovered(idsA)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	check(t, err)
	tests := []struct {
		name   string
		method string
		path   string
		body   any
		status int
	}{
		{"no JSON", "POST", wire.PathProgress, []byte("hello"), http.StatusBadRequest},
		{"two values", "POST", wire.PathProgress, []byte("{} {}"), http.StatusBadRequest},
		{"the wrong type", "POST", wire.PathProgress, []byte(`{"steps": "many"}`), http.StatusBadRequest},
		{"a field from a newer agent is ignored", "POST", wire.PathProgress, []byte(`{"intentID": "x", "new": 1}`), http.StatusOK},
		{"a body that is too large", "POST", wire.PathProgress, make([]byte, 300<<10), http.StatusRequestEntityTooLarge},
		{"the wrong method", "GET", wire.PathProgress, nil, http.StatusNotFound},
		{"an unknown path", "GET", "/apis/coldrack.dev/v1alpha1/machines", nil, http.StatusNotFound},
		{"a wait that is no number", "GET", wire.PathAssignment + "?wait=x", nil, http.StatusBadRequest},
		{"a negative wait", "GET", wire.PathAssignment + "?wait=-1", nil, http.StatusBadRequest},
		{"a wait that is not even a number", "GET", wire.PathAssignment + "?wait=NaN", nil, http.StatusBadRequest},
		{"an outcome that is none", "POST", wire.PathComplete, wire.Complete{IntentID: "x", State: wire.StateRunning}, http.StatusBadRequest},
		{"a csr that is none", "POST", wire.PathIdentity, wire.IdentityRequest{IntentID: "x", CSR: "x"}, http.StatusBadRequest},
		{"an enrolment without anything that tells machines apart", "POST", wire.PathEnroll, wire.EnrollRequest{Nonce: s.boot(), Identifiers: wire.Identifiers{Serial: "None"}, CSR: csr(t, p384)}, http.StatusBadRequest},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := send[wire.Empty](a, test.method, test.path, test.body)
			status := http.StatusOK
			if err != nil {
				var no failure
				if errors.As(err, &no) {
					status = no.status
				} else {
					t.Fatalf("not a refusal as the contract has it: %v", err)
				}
			}
			if status != test.status {
				t.Errorf("got %d (%v), want %d", status, err, test.status)
			}
		})
	}
}

func TestNothingIsAnsweredBeforeTheMachinesAreRead(t *testing.T) {
	s := newServer(t)
	nonce := s.boot(idsA.MACs[0])
	fresh := New(s.api.Options)
	fresh.Fleet = newEmptyFleet()
	s.http.Config.Handler = fresh
	a := s.agent()
	var no failure
	if err := a.enroll(nonce, idsA); !errors.As(err, &no) || no.status != http.StatusServiceUnavailable {
		t.Errorf("enrolled while the server does not know its machines: %v", err)
	}
	if now, err := send[wire.Time](a, "GET", wire.PathTime, nil); err != nil || !now.Now.Equal(s.clock.Now()) {
		t.Errorf("time: %v, %v", now, err)
	}
}

func TestANodeIsNotSentAroundInCircles(t *testing.T) {
	s := newServer(t)
	_, node := s.installed(idsA, "i1")
	s.approve(node.name, "i2", v1alpha1.ActionReinstall)
	for _, step := range []struct {
		boot string
		want bool
	}{{"b1", true}, {"b1", true}, {"b2", true}, {"b3", false}, {"b3", false}} {
		beat, err := node.heartbeatOf(step.boot)
		check(t, err)
		if beat.Reboot != step.want {
			t.Errorf("boot %s: told to reboot is %v", step.boot, beat.Reboot)
		}
	}
	if blocked := s.fleet.Live(node.name).Blocked.Message; !strings.Contains(blocked, "boot order") {
		t.Errorf("blocked: %q", blocked)
	}
	s.approve(node.name, "i3", v1alpha1.ActionReinstall)
	if beat, err := node.heartbeatOf("b4"); err != nil || !beat.Reboot {
		t.Errorf("a new wish: %+v, %v", beat, err)
	}
}
