package lifecycle

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/drift"
	"coldrack.dev/internal/machine/enroll"
	"coldrack.dev/internal/machine/expect"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/machine/identify"
)

// Fold writes into m's status everything this controller owns, and says when to look again.
func Fold(m *v1alpha1.Machine, live fleet.Live, twins []identify.Twin, now time.Time, l Limits) (until time.Time) {
	s := &m.Status
	s.ObservedGeneration = m.Generation
	s.Boots = mergeBoots(live.Boots, s.Boots)
	if live.Lease != nil {
		s.Lease = live.Lease.DeepCopy()
	}
	if live.SessionKey != "" {
		s.Session = &v1alpha1.SessionStatus{KeyFingerprint: live.SessionKey, IssuedAt: metav1.NewTime(live.SessionIssuedAt.Truncate(time.Second))}
	}
	foldRefused(s, live)
	s.Steps = steps(m, live)
	foldNode(m, live)
	foldReboot(m)
	s.Steps = endReboot(s.Steps, s.Intent, s.Node)
	foldKubernetes(m, live)
	if live.Address != "" {
		s.Address = live.Address
	}
	v := phaseOf(m, live, now, l)
	if s.Phase != v.phase {
		s.Phase, s.PhaseSince = v.phase, new(metav1.NewTime(now))
	}
	s.Message, s.CurrentStep = v.message, v.step
	if up := s.Kubernetes; up != nil && s.Phase == v1alpha1.PhaseReady && !up.Done {
		s.CurrentStep = cmp.Or(v.step, RunningPhase(up))
		if failed := FailedPhase(m); failed != "" && s.Message == "" {
			s.Message = failed
		}
	}
	foldConditions(m, live, twins, now)
	return v.until
}

// foldRefused records a key that was refused, until it or a later one is the machine's identity.
func foldRefused(s *v1alpha1.MachineStatus, live fleet.Live) {
	if live.Refused != nil {
		s.KeyRefused = live.Refused.DeepCopy()
	}
	refused, identity, last := s.KeyRefused, s.Identity, s.Intent
	switch {
	case refused == nil:
	case identity != nil && (identity.KeyFingerprint == refused.KeyFingerprint || identity.IssuedAt.After(refused.At.Add(time.Second))),
		// Whoever has the key of a machine that was released since has an old one.
		identity == nil && last != nil && last.FinishedAt != nil && !last.FinishedAt.Time.Before(refused.At.Truncate(time.Second)):
		s.KeyRefused = nil
	}
}

// endReboot ends the last step of an operation, which the machine itself cannot report: an install's when the node
// was heard of from its disk; a release has none, because the machine stays in discovery.
func endReboot(steps []v1alpha1.Step, intent *v1alpha1.IntentStatus, node *v1alpha1.NodeStatus) []v1alpha1.Step {
	last := len(steps) - 1
	if last < 0 || steps[last].Name != wire.StepReboot || steps[last].State != v1alpha1.StepRunning ||
		intent == nil || intent.State != v1alpha1.IntentSucceeded {
		return steps
	}
	steps = slices.Clone(steps)
	switch {
	case intent.Action == v1alpha1.ActionRelease:
		steps[last].State, steps[last].StartedAt, steps[last].Message = v1alpha1.StepSkipped, nil, "stays in discovery"
	case node != nil && node.ReadyAt != nil && intent.FinishedAt != nil && !node.ReadyAt.Before(intent.FinishedAt):
		steps[last].State, steps[last].FinishedAt = v1alpha1.StepSucceeded, new(metav1.NewMicroTime(node.ReadyAt.Time))
	}
	return steps
}

// mergeBoots puts together what this server answered and what was recorded before, newest first.
func mergeBoots(live, recorded []v1alpha1.BootRecord) []v1alpha1.BootRecord {
	const keep = 10
	var out []v1alpha1.BootRecord
	for _, b := range slices.Concat(live, recorded) {
		// The store keeps whole seconds.
		b.At = metav1.NewTime(b.At.Truncate(time.Second))
		same := func(o v1alpha1.BootRecord) bool { return o.At.Equal(&b.At) && o.MAC == b.MAC && o.Action == b.Action }
		if !slices.ContainsFunc(out, same) {
			out = append(out, b)
		}
	}
	slices.SortStableFunc(out, func(a, b v1alpha1.BootRecord) int { return b.At.Compare(a.At.Time) })
	return out[:min(len(out), keep)]
}

// foldNode records what the node of the current installation said of itself.
func foldNode(m *v1alpha1.Machine, live fleet.Live) {
	beat, installed := live.Heartbeat, m.Status.Installed
	if beat == nil || installed == nil || live.HeartbeatAt.Before(installed.At.Time) {
		return
	}
	node := &v1alpha1.NodeStatus{
		AgentVersion: beat.AgentVersion, OS: beat.OS, Kernel: beat.Kernel, BootID: beat.BootID,
		Addresses: beat.Addresses, FailedUnits: beat.FailedUnits, RebootRequired: requiredBy(beat.RebootRequired),
	}
	if !beat.BootedAt.IsZero() {
		node.BootedAt = new(metav1.NewTime(beat.BootedAt.Truncate(time.Second)))
	}
	if n := m.Spec.Network; n != nil {
		node.Interface = beat.Interfaces[n.Address]
	}
	node.ReadyAt = new(metav1.NewTime(live.ReadyAt.Truncate(time.Second)))
	if was := m.Status.Node; was != nil && was.BootID == node.BootID {
		// The server was restarted, not the node; and a boot time computed from an uptime wavers.
		node.ReadyAt, node.BootedAt = was.ReadyAt, was.BootedAt
	}
	m.Status.Node = node
}

// requiredBy says in a line what requires a reboot; empty when nothing does.
func requiredBy(r *wire.RebootRequired) string {
	const most = 5
	switch {
	case r == nil:
		return ""
	case len(r.Packages) == 0:
		return "/run/reboot-required"
	case len(r.Packages) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(r.Packages[:most], ", "), len(r.Packages)-most)
	}
	return strings.Join(r.Packages, ", ")
}

// foldReboot notes which boot of the node a person wants ended.
func foldReboot(m *v1alpha1.Machine) {
	request, boot := m.RebootRequest(), ""
	if m.Status.Node != nil {
		boot = m.Status.Node.BootID
	}
	if m.Status.Installed == nil {
		request = ""
	}
	m.Status.Reboot = v1alpha1.NextRebootRequest(m.Status.Reboot, request, boot)
}

// foldKubernetes records what the node of the current installation said of its bring-up. What it said in a life of
// the server before stands until it says something else.
func foldKubernetes(m *v1alpha1.Machine, live fleet.Live) {
	if m.Status.Installed == nil {
		m.Status.Kubernetes = nil
		return
	}
	up := live.Bringup
	if up == nil || live.BringupAt.Before(m.Status.Installed.At.Time) {
		return
	}
	next := &v1alpha1.KubernetesStatus{Cluster: up.Cluster, Version: up.KubernetesVersion, Phases: up.Phases, Done: up.Done, FormerConfig: up.FormerConfig, Drift: up.Drift, Message: up.Message, Restore: up.Restore, Prefetch: up.Prefetch}
	if up.Config != (v1alpha1.ConfigDigests{}) {
		next.Config = new(up.Config)
	}
	if was := m.Status.Kubernetes; was != nil && was.Cluster == next.Cluster {
		next.Node, next.Roles = was.Node, was.Roles
	}
	if !up.CertificatesExpireAt.IsZero() {
		next.CertificatesExpireAt = new(metav1.NewTime(up.CertificatesExpireAt.UTC().Truncate(time.Second)))
	}
	if !up.RenewAt.IsZero() {
		next.RenewAt = new(metav1.NewTime(up.RenewAt.UTC().Truncate(time.Second)))
	}
	if !next.Done {
		next.Message = cmp.Or(next.Message, RunningPhase(next))
	}
	m.Status.Kubernetes = next
}

func foldConditions(m *v1alpha1.Machine, live fleet.Live, twins []identify.Twin, now time.Time) {
	s := &m.Status
	set := func(kind string, holds bool, reason, message string) {
		c := metav1.Condition{
			Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message,
			ObservedGeneration: m.Generation, LastTransitionTime: metav1.NewTime(now),
		}
		if holds {
			c.Status = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&s.Conditions, c)
	}
	if s.Inventory != nil {
		set(v1alpha1.ConditionDiscovered, true, "InventoryReported", "")
	} else {
		set(v1alpha1.ConditionDiscovered, false, "NotReported", "the machine has not reported what it consists of")
	}
	switch by := m.Annotations[v1alpha1.AnnotationEnrolledBy]; {
	case m.Spec.Approved && by != "":
		set(v1alpha1.ConditionApproved, true, "ByPolicy", "approved by EnrollmentPolicy "+by)
	case m.Spec.Approved:
		set(v1alpha1.ConditionApproved, true, "ByPerson", "")
	default:
		set(v1alpha1.ConditionApproved, false, "NotApproved", "")
	}
	if i := s.Installed; i != nil {
		set(v1alpha1.ConditionInstalled, true, "Installed", fmt.Sprintf("%s on %s", i.Image, i.Disk))
	} else {
		set(v1alpha1.ConditionInstalled, false, "NotInstalled", "")
	}
	set(v1alpha1.ConditionReady, s.Phase == v1alpha1.PhaseReady, string(s.Phase), s.Message)

	// These are there while they hold.
	only := func(kind, reason, message string) {
		if reason != "" {
			set(kind, true, reason, message)
		} else {
			meta.RemoveStatusCondition(&s.Conditions, kind)
		}
	}
	reason, message := conflictOf(live, twins, now)
	only(v1alpha1.ConditionIdentityConflict, reason, message)
	reason, message = "", ""
	if m.OpenIntent() != nil {
		reason, message = live.Blocked.Reason, live.Blocked.Message
	}
	only(v1alpha1.ConditionBlocked, reason, message)
	reason, message = "", ""
	if key := s.KeyRefused; key != nil {
		recorded := "this machine has no identity"
		if s.Identity != nil {
			recorded = "the identity of this machine is " + s.Identity.KeyFingerprint
		}
		reason, message = "NotTheIdentity", fmt.Sprintf("the node at %s shows key %s of %s, and %s. After a backup was restored: compare with what \"coldrack-agent fingerprint\" says on the node, then coldrack readmit %s --key %s. Otherwise it is an old disk: remove it",
			key.From, key.KeyFingerprint, key.IssuedAt.UTC().Format(time.RFC3339), recorded, m.Name, key.KeyFingerprint)
	}
	only(v1alpha1.ConditionKeyRefused, reason, message)
	reason, message = "", enroll.UnknownInstallation(m)
	if message != "" {
		reason = "DiskBearsOne"
	}
	only(v1alpha1.ConditionUnknownInstallation, reason, message)
	reason, message = "", ""
	if live.ProxyIgnored != "" {
		reason, message = "NotHeeded", live.ProxyIgnored+". "+v1alpha1.ProxyIgnoredRemedy
	}
	only(v1alpha1.ConditionProxyIgnored, reason, message)
	foldExpected(m, set)
	foldHardware(m, now, only)
	foldBMC(m, set)
}

// foldHardware records what the machine is meant to be built of, and tells what has become of that. Of a report that is not whole nothing
// follows.
func foldHardware(m *v1alpha1.Machine, now time.Time, only func(kind, reason, message string)) {
	s := &m.Status
	if s.Hardware == nil || s.Hardware.Incomplete != "" || !m.Spec.Approved {
		only(v1alpha1.ConditionHardwareDrift, "", "")
		only(v1alpha1.ConditionDiskFailing, "", "")
		return
	}
	parts := drift.Parts(s.Hardware)
	if accepted, changed := drift.Accept(s.AcceptedHardware, parts, m.Annotations[v1alpha1.AnnotationAcceptHardware]); changed {
		accepted.At = metav1.NewTime(now.Truncate(time.Second))
		s.AcceptedHardware = accepted
	}
	reason, message := "", ""
	if found := drift.Compare(s.AcceptedHardware.Parts, parts); !found.None() {
		reason, message = found.Reason(), fmt.Sprintf("%s. Repair it, or accept it as it is: coldrack machines accept-hardware %s", found.Message(), m.Name)
	}
	only(v1alpha1.ConditionHardwareDrift, reason, message)
	reason, message = "", drift.Failing(s.Hardware)
	if message != "" {
		reason, message = "DiskSaysSo", message+". Replace it"
	}
	only(v1alpha1.ConditionDiskFailing, reason, message)
}

// foldExpected tells whether the hardware and the cables are as a sheet says.
func foldExpected(m *v1alpha1.Machine, set func(kind string, holds bool, reason, message string)) {
	if m.Spec.Expected == nil || m.Status.Inventory == nil {
		meta.RemoveStatusCondition(&m.Status.Conditions, v1alpha1.ConditionAsExpected)
		return
	}
	var messages []string
	for _, f := range expect.Of(m) {
		messages = append(messages, f.Message)
	}
	if len(messages) > 0 {
		set(v1alpha1.ConditionAsExpected, false, "Differs", strings.Join(messages, "; "))
	} else {
		set(v1alpha1.ConditionAsExpected, true, "Agrees", "")
	}
}

// foldBMC tells whether the BMC can be asked. What it said is recorded by whoever asks it.
func foldBMC(m *v1alpha1.Machine, set func(kind string, holds bool, reason, message string)) {
	s := &m.Status
	meta.RemoveStatusCondition(&s.Conditions, "BMCUnused") // of versions that had no use for it
	switch {
	case m.Spec.BMC == nil:
		s.Power = nil
		meta.RemoveStatusCondition(&s.Conditions, v1alpha1.ConditionBMCReachable)
	case s.Power == nil:
		set(v1alpha1.ConditionBMCReachable, false, "NotAsked", "the BMC has not been asked yet")
	case s.Power.Problem != "":
		set(v1alpha1.ConditionBMCReachable, false, cmp.Or(s.Power.Reason, "Failed"), s.Power.Problem)
	default:
		set(v1alpha1.ConditionBMCReachable, true, "Answers", "")
	}
}

// conflictOf says what other machine has identifiers of this one.
func conflictOf(live fleet.Live, twins []identify.Twin, now time.Time) (reason, message string) {
	const remembered = time.Hour
	if live.Conflict != "" && now.Sub(live.ConflictAt) < remembered {
		return "NotRecognised", "a machine was turned away: " + live.Conflict
	}
	if len(twins) == 0 {
		return "", ""
	}
	var shared []string
	for _, t := range twins {
		shared = append(shared, fmt.Sprintf("%s with %s", t.What, t.Name))
	}
	return "SharedIdentifiers", "shares " + strings.Join(shared, ", ") + "; they are told apart by their other identifiers"
}
