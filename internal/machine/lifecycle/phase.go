// Package lifecycle says where a machine stands: it folds what was observed of it into its status, and takes new intents in.
// It is pure: the caller brings the observations and the time, and writes the status.
package lifecycle

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/fleet"
)

// Limits are how long a machine may be silent or stand still.
type Limits struct {
	// watching is since when this server has listened: nobody is lost for having been silent before.
	watching time.Time
	// silent is how long a node may send no heartbeat, and a session nothing at all.
	silent time.Duration
	// still is how long an install may make no progress.
	still time.Duration
	// boot is how long a machine may take to boot and to be heard of, including a server's memory check.
	boot time.Duration
}

// LimitsFor returns the limits of a server that has listened since watching, where a node may be silent for so long.
func LimitsFor(silent time.Duration, watching time.Time) Limits {
	return Limits{watching: watching, silent: silent, still: 10 * time.Minute, boot: 15 * time.Minute}
}

// quiet is how long nothing may be heard of a machine in discovery, which asks for its assignment at least
// once a minute.
func (l Limits) quiet() time.Duration { return max(l.silent, 3*time.Minute) }

// view is what a person sees of a machine's way.
type view struct {
	phase   v1alpha1.MachinePhase
	message string
	step    string
	// until is when it becomes another without anything happening; zero: never.
	until time.Time
}

// phaseOf says where a machine stands. A rescue does not change that, and is told first, since it may be why a node is silent.
func phaseOf(m *v1alpha1.Machine, live fleet.Live, now time.Time, l Limits) view {
	v := phaseWithoutRescue(m, live, now, l)
	if r := m.Spec.Rescue; r != nil {
		note := fmt.Sprintf("%s%s asked%s", rescueNote, cmp.Or(r.RequestedBy, "somebody"), rescueEnd(m))
		if v.message != "" {
			note += "; " + v.message
		}
		v.message = note
	}
	return v
}

const rescueNote = "boots the live system, as "

func rescueEnd(m *v1alpha1.Machine) string {
	return fmt.Sprintf("; it ends with: coldrack rescue %s --end", m.Name)
}

// messageBefore is the machine's message without what phaseOf has put before it.
func messageBefore(m *v1alpha1.Machine) string {
	if !strings.HasPrefix(m.Status.Message, rescueNote) {
		return m.Status.Message
	}
	_, rest, _ := strings.Cut(m.Status.Message, rescueEnd(m))
	return strings.TrimPrefix(rest, "; ")
}

func phaseWithoutRescue(m *v1alpha1.Machine, live fleet.Live, now time.Time, l Limits) view {
	intent, status := m.OpenIntent(), m.Status.Intent
	running := intent != nil && status != nil && status.ID == intent.ID && status.State == v1alpha1.IntentRunning
	switch {
	case intent != nil && intent.Action != v1alpha1.ActionRelease && !m.Spec.Approved && m.Status.Installed == nil:
		return view{phase: v1alpha1.PhaseWaiting, message: fmt.Sprintf("an install was asked for, but the machine is not approved; run: coldrack approve %s", m.Name)}
	case intent != nil && intent.Action != v1alpha1.ActionRelease && !m.Spec.Approved:
		v := settled(m, live, now, l)
		v.message = "a reinstall was asked for, but the machine is not approved: nothing is done"
		return v
	case running:
		return operating(m, live, now, l)
	case intent != nil:
		return due(m, live, now, l)
	case status != nil && status.State == v1alpha1.IntentFailed && !aliveSince(m, live, status, now, l):
		return view{phase: v1alpha1.PhaseFailed, step: stepText(steps(m, live)),
			message: fmt.Sprintf("%s failed: %s. To try again: coldrack %s %s", strings.ToLower(string(status.Action)), status.Message, strings.ToLower(string(status.Action)), m.Name)}
	case WasReleased(m) && m.Status.Installed == nil:
		return view{phase: v1alpha1.PhaseReleasing, message: "wiped; its approval is being taken back"}
	case status != nil && status.Action == v1alpha1.ActionRelease && status.State == v1alpha1.IntentSucceeded && m.Status.Installed == nil && !m.Spec.Approved:
		return view{phase: v1alpha1.PhaseReleased, message: fmt.Sprintf("wiped and free; delete it, or run: coldrack approve %s", m.Name)}
	case m.Status.Installed != nil:
		return settled(m, live, now, l)
	}
	return discovering(m, live, now, l)
}

// due is a machine whose intent has not begun.
func due(m *v1alpha1.Machine, live fleet.Live, now time.Time, l Limits) view {
	intent := m.OpenIntent()
	v := view{phase: v1alpha1.PhaseApproved}
	if intent.Action == v1alpha1.ActionRelease {
		v.phase = v1alpha1.PhaseReleasing
	}
	what := strings.ToLower(string(intent.Action))
	switch {
	case live.Held != "" || live.Blocked.Message != "":
		v.message = cmp.Or(live.Held, live.Blocked.Message)
	case live.Heartbeat != nil && m.Status.Installed != nil:
		v.message = fmt.Sprintf("%s is due; the node boots from the network at its next heartbeat", what)
	case now.Sub(live.ContactAt) < l.quiet():
		// By contact and not by session: sessions go on over a restart of the server, which forgets them.
		v.message = fmt.Sprintf("%s is due; the machine is about to begin", what)
		v.until = live.ContactAt.Add(l.quiet())
	default:
		v.message = fmt.Sprintf("%s is due; power the machine on and let it boot from the network", what)
	}
	return v
}

// operating is a machine that carries its intent out.
func operating(m *v1alpha1.Machine, live fleet.Live, now time.Time, l Limits) view {
	v := view{phase: v1alpha1.PhaseInstalling}
	if m.Status.Intent.Action == v1alpha1.ActionRelease {
		v.phase = v1alpha1.PhaseReleasing
	}
	all := steps(m, live)
	v.step = stepText(all)
	if attempts := m.Status.Intent.Attempts; attempts > 1 {
		v.message = fmt.Sprintf("attempt %d; the one before broke off", attempts)
	}
	heard := latest(live.ContactAt, l.watching)
	if booting(live) {
		// A machine that resets needs time before its agent talks again.
		heard = heard.Add(l.boot - l.silent)
	}
	if now.Sub(heard) >= l.silent {
		v.phase = v1alpha1.PhaseLost
		v.message = fmt.Sprintf("silent since %s during step %s; it goes on when it boots from the network again: check power, cables and console",
			stamp(live.ContactAt, l.watching), cmp.Or(v.step, "none"))
		return v
	}
	v.until = heard.Add(l.silent)
	moved := latest(live.ProgressAt, l.watching)
	if now.Sub(moved) >= l.still {
		v.message = fmt.Sprintf("no progress for %s in step %s although the machine answers; look at its console, and reset it to start the install over",
			now.Sub(moved).Truncate(time.Minute), cmp.Or(v.step, "none"))
		v.until = earliest(v.until, now.Add(time.Minute))
	} else {
		v.until = earliest(v.until, moved.Add(l.still))
	}
	return v
}

// settled is a machine that is installed and for which nothing is to be done.
func settled(m *v1alpha1.Machine, live fleet.Live, now time.Time, l Limits) view {
	beat, node := live.HeartbeatAt, m.Status.Node
	if beat.Before(m.Status.Installed.At.Time) {
		live.Heartbeat, beat = nil, time.Time{} // of the installation before
	}
	reported := live.Heartbeat != nil || (node != nil && node.ReadyAt != nil)
	if !reported {
		installed := m.Status.Installed.At.Time
		waited := now.Sub(latest(installed, l.watching))
		if waited < l.boot {
			return view{phase: v1alpha1.PhaseRebooting, message: "installed; waiting for the node to report from its disk", until: latest(installed, l.watching).Add(l.boot)}
		}
		return view{phase: v1alpha1.PhaseLost, message: fmt.Sprintf("installed at %s, but the node never reported: look at its console, and whether it boots from disk %s",
			installed.UTC().Format(time.RFC3339), m.Status.Installed.Disk)}
	}
	heard := latest(beat, l.watching)
	if now.Sub(heard) >= l.silent {
		return view{phase: v1alpha1.PhaseLost, message: fmt.Sprintf("no heartbeat since %s: check power, network and console", stamp(beat, l.watching))}
	}
	if live.Heartbeat == nil && m.Status.Phase == v1alpha1.PhaseLost {
		return view{phase: v1alpha1.PhaseLost, message: messageBefore(m)} // until it is heard of again
	}
	v := view{phase: v1alpha1.PhaseReady, until: heard.Add(l.silent)}
	var notes []string
	if held := heldText(m); held != "" {
		notes = append(notes, held)
	}
	if reboot, _ := m.WantsReboot(); reboot != "" {
		notes = append(notes, "a reboot is due: "+reboot)
	}
	if failed := failedUnits(m, live); len(failed) > 0 {
		notes = append(notes, fmt.Sprintf("failed units: %s", strings.Join(failed, ", ")))
	}
	if skew := live.ClockSkew.Abs(); skew > maxClockSkew {
		notes = append(notes, fmt.Sprintf("the node's clock is off by %s: check its NTP servers", skew.Truncate(time.Second)))
	}
	if status := m.Status.Intent; status != nil && status.State == v1alpha1.IntentFailed {
		notes = append(notes, fmt.Sprintf("the last %s failed before it changed anything: %s", strings.ToLower(string(status.Action)), status.Message))
	}
	v.message = strings.Join(notes, "; ")
	return v
}

// maxClockSkew is what certificates and logs bear without confusion.
const maxClockSkew = 30 * time.Second

// discovering is a machine that was never installed.
func discovering(m *v1alpha1.Machine, live fleet.Live, now time.Time, l Limits) view {
	boots := len(live.Boots) + len(m.Status.Boots)
	switch {
	case m.Status.Inventory == nil && boots == 0 && live.Session == "" && live.Lease == nil && m.Status.Lease == nil:
		return view{phase: v1alpha1.PhaseExpected, message: "has not been seen yet; power it on and let it boot from the network"}
	case m.Status.Inventory == nil:
		v := view{phase: v1alpha1.PhaseDiscovering}
		heard := latest(live.ContactAt, l.watching)
		if refused, reason := lastBoot(m, live); refused {
			v.message = reason
		} else if now.Sub(heard) >= l.boot {
			v.message = fmt.Sprintf("asked for a boot but has not reported what it is; look at its console, and at: coldrack explain-boot %s", m.Name)
		} else {
			v.until = heard.Add(l.boot)
		}
		return v
	case m.Spec.Approved:
		return view{phase: v1alpha1.PhaseApproved, message: cmp.Or(live.Held, live.Blocked.Message, "approved; an install is being planned")}
	}
	v := view{phase: v1alpha1.PhaseWaiting, message: fmt.Sprintf("waits for approval; run: coldrack approve %s", m.Name)}
	if live.Held != "" {
		v.message = live.Held
	}
	heard := latest(live.ContactAt, l.watching)
	quiet := l.quiet()
	if now.Sub(heard) >= quiet {
		v.message += fmt.Sprintf(" (not heard of since %s)", stamp(live.ContactAt, l.watching))
	} else {
		v.until = heard.Add(quiet)
	}
	return v
}

// aliveSince says whether the node of an earlier install has reported after the operation that failed: it
// failed before it touched the disk.
func aliveSince(m *v1alpha1.Machine, live fleet.Live, status *v1alpha1.IntentStatus, now time.Time, l Limits) bool {
	if m.Status.Installed == nil {
		return false
	}
	if live.Heartbeat == nil { // this server has just started, and knows it from before
		return m.Status.Phase == v1alpha1.PhaseReady && now.Sub(l.watching) < l.silent
	}
	return now.Sub(live.HeartbeatAt) < l.silent && (status.FinishedAt == nil || live.HeartbeatAt.After(status.FinishedAt.Time))
}

// booting says whether the last thing heard of the machine is that it asked for a boot.
func booting(live fleet.Live) bool {
	return len(live.Boots) > 0 && !live.ContactAt.After(live.Boots[0].At.Add(time.Second))
}

func lastBoot(m *v1alpha1.Machine, live fleet.Live) (refused bool, reason string) {
	for _, boots := range [][]v1alpha1.BootRecord{live.Boots, m.Status.Boots} {
		if len(boots) > 0 {
			return boots[0].Action == v1alpha1.BootRefuse, boots[0].Reason
		}
	}
	return false, ""
}

// steps are those of the intent that status speaks of: from the last report, or as they were recorded.
func steps(m *v1alpha1.Machine, live fleet.Live) []v1alpha1.Step {
	status := m.Status.Intent
	if live.Steps != nil && status != nil && live.IntentID == status.ID {
		return live.Steps
	}
	return m.Status.Steps
}

// stepText is the running step with its progress, or the one that failed.
func stepText(steps []v1alpha1.Step) string {
	for _, s := range slices.Backward(steps) {
		switch s.State {
		case v1alpha1.StepRunning:
			if s.BytesTotal > 0 {
				return fmt.Sprintf("%s %d%%", s.Name, min(max(s.BytesDone, 0), s.BytesTotal)*100/s.BytesTotal)
			}
			return s.Name
		case v1alpha1.StepFailed:
			return s.Name + " failed"
		}
	}
	return ""
}

func failedUnits(m *v1alpha1.Machine, live fleet.Live) []string {
	if live.Heartbeat != nil {
		return live.Heartbeat.FailedUnits
	}
	if m.Status.Node != nil {
		return m.Status.Node.FailedUnits
	}
	return nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// stamp is when something was last heard, as far as this server can tell.
func stamp(at, watching time.Time) string {
	if at.IsZero() {
		return "before " + watching.UTC().Format(time.RFC3339)
	}
	return at.UTC().Format(time.RFC3339)
}
