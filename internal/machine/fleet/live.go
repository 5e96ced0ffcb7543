package fleet

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/identify"
)

// Limits of what is kept of one machine.
const (
	maxBoots    = 10
	maxLogLines = 200
	maxLogLine  = 500
	maxSteps    = 32
)

// Live is what is known of a machine beyond its object. It is a copy; slices must not be changed.
type Live struct {
	// Boots, newest first, since the server started.
	Boots []v1alpha1.BootRecord
	Lease *v1alpha1.LeaseStatus
	// Address from which the machine was last heard of.
	Address string
	// ContactAt is when anything was last heard of the machine, zero if not since the server started.
	ContactAt time.Time

	// Session is the key fingerprint of the session that enrolled last; empty if none has since the
	// server started.
	Session string
	// SessionIssuedAt is when the certificate of the newest session that was seen since the server started was issued, and
	// SessionKey its key. It enrolled since, as Session, or before.
	SessionKey      string
	SessionIssuedAt time.Time
	// Refused is a key of the machine authority for this machine that is not its identity, or nil.
	Refused *v1alpha1.KeyRefusedStatus
	// Attempt is true when this session has begun to carry out the intent IntentID.
	Attempt bool

	// IntentID and Steps are the last progress report.
	IntentID string
	Steps    []v1alpha1.Step
	// ProgressAt is when a step or a byte count last changed.
	ProgressAt time.Time
	// Blocked says why an intent cannot begin, or is zero.
	Blocked Block
	// Held says why a machine that a policy matches, or that was approved, cannot be given a plan yet.
	Held string

	// Heartbeat is the installed node's last report, nil if none came since the server started.
	Heartbeat   *wire.Heartbeat
	HeartbeatAt time.Time
	// ReadyAt is when the node was first heard of with the boot ID of Heartbeat.
	ReadyAt time.Time
	// ClockSkew of the node at its last heartbeat; positive when it is ahead.
	ClockSkew time.Duration

	// Bringup is the node's last report on how it becomes a node of its cluster, nil if none came since the
	// server started.
	Bringup   *Bringup
	BringupAt time.Time

	// ProxyIgnored is how the machine's firmware ignores proxy DHCP, or "".
	ProxyIgnored string

	// Conflict is why the machine was last not recognised, and ConflictAt when.
	Conflict   string
	ConflictAt time.Time

	rebootIntent string   // for which the node was last told to reboot
	rebootBoots  []string // boot IDs that were told so
	log          []LogLine
}

// live is what the Fleet itself keeps.
type live struct{ Live }

// LogLine is one line that a machine's agent, or the server about the machine, has logged.
type LogLine struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// Newcomer is a machine that asked for a boot and is not known.
type Newcomer struct {
	Name        string
	Identifiers v1alpha1.Identifiers
	SeenAt      time.Time
}

// Live returns what is known of the named machine at this moment.
func (f *Fleet) Live(name string) Live {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if l := f.live[name]; l != nil {
		return l.Live
	}
	return Live{}
}

// Snapshot is one machine with its live facts.
type Snapshot struct {
	Machine *v1alpha1.Machine
	Live    Live
}

// Snapshot returns all machines with their live facts, by name.
func (f *Fleet) Snapshot() []Snapshot {
	list := f.List()
	snapshots := make([]Snapshot, len(list))
	for i, m := range list {
		snapshots[i] = Snapshot{Machine: m, Live: f.Live(m.Name)}
	}
	return snapshots
}

// observe changes the live facts of a machine and tells the controller when change says so.
func (f *Fleet) observe(name string, change func(*live) (dirty bool)) {
	if f.changeLive(name, change) {
		f.dirty.add(name)
	}
}

func (f *Fleet) changeLive(name string, change func(*live) (dirty bool)) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.live[name]
	if l == nil {
		_, known := f.machines[name]
		_, newcomer := f.newcomers[name]
		if !known && !newcomer {
			return false
		}
		l = &live{}
		f.live[name] = l
	}
	return change(l)
}

// lost says whether people are told that the machine is silent; needs f.mu.
func (f *Fleet) lost(name string) bool {
	m := f.machines[name]
	return m != nil && m.Status.Phase == v1alpha1.PhaseLost
}

// Booted records a boot that was answered, for the machine that ids belong to. A machine that is not
// known becomes a Newcomer. It returns the machine's name: the one it has or is about to get, empty when
// none can be told.
func (f *Fleet) Booted(ids v1alpha1.Identifiers, record v1alpha1.BootRecord) string {
	match := f.Match(identify.Query{Identifiers: ids})
	if match.Conflict {
		for _, name := range match.Involved {
			f.Conflicted(name, match.Reason)
		}
		return ""
	}
	name := match.Machine
	if name == "" {
		if name = f.arrive(ids); name == "" {
			return ""
		}
	}
	if record.At.IsZero() {
		record.At = metav1.NewTime(f.now())
	}
	f.observe(name, func(l *live) bool {
		boots := append([]v1alpha1.BootRecord{record}, l.Boots...)
		l.Boots = boots[:min(len(boots), maxBoots)]
		l.ProxyIgnored = ""
		l.ContactAt = f.now()
		if _, err := netip.ParseAddr(record.Address); err == nil {
			l.Address = record.Address
		}
		return true
	})
	return name
}

// arrive notes an unknown machine and returns the name that it is about to get.
func (f *Fleet) arrive(ids v1alpha1.Identifiers) string {
	query := identify.Query{Identifiers: ids}
	name := identify.NameFor(query)
	if name == "" {
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	ids = f.index.Unclaimed(query)
	if _, taken := f.machines[name]; taken {
		return "" // the name belongs to a machine that contradicts; enrolment will tell
	}
	if _, ok := f.newcomers[name]; !ok && len(f.newcomers) >= f.maxNewcomers {
		if f.now().Sub(f.refused) > time.Minute {
			f.refused = f.now()
			f.log.Warn("too many unknown machines at once; some are recorded only when they ask again",
				"waiting", len(f.newcomers), "mac", ids.MACs)
		}
		return ""
	}
	f.newcomers[name] = Newcomer{Name: name, Identifiers: ids, SeenAt: f.now()}
	close(f.arrived)
	f.arrived = newSignal()
	return name
}

// Newcomers returns the machines that wait to be recorded, longest waiting first, and a channel that is
// closed when another one arrives.
func (f *Fleet) Newcomers() ([]Newcomer, <-chan struct{}) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	list := make([]Newcomer, 0, len(f.newcomers))
	for _, n := range f.newcomers {
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b Newcomer) int {
		if c := a.SeenAt.Compare(b.SeenAt); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return list, f.arrived
}

// ForgetNewcomer gives a newcomer up; it comes back when it asks for a boot again.
func (f *Fleet) ForgetNewcomer(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.newcomers, name)
	if f.machines[name] == nil {
		delete(f.live, name)
	}
}

// Leased records the address that a known machine boots with.
func (f *Fleet) Leased(mac, address, subnet string) {
	match := f.Match(identify.Query{Identifiers: v1alpha1.Identifiers{MACs: []string{mac}}})
	if match.Machine == "" {
		return
	}
	f.observe(match.Machine, func(l *live) bool {
		next := v1alpha1.LeaseStatus{Address: address, Subnet: subnet, MAC: identify.MAC(mac)}
		changed := l.Lease == nil || *l.Lease != next
		l.Lease = &next
		return changed
	})
}

// ProxyIgnored records how the firmware of a known machine ignores proxy DHCP; "": it no longer does.
func (f *Fleet) ProxyIgnored(mac, how string) {
	match := f.Match(identify.Query{Identifiers: v1alpha1.Identifiers{MACs: []string{mac}}})
	if match.Machine == "" {
		return
	}
	f.observe(match.Machine, func(l *live) bool {
		changed := l.ProxyIgnored != how
		l.ProxyIgnored = how
		return changed
	})
}

// Contacted records that a session of the machine was heard of.
func (f *Fleet) Contacted(name, address string) {
	f.observe(name, func(l *live) bool {
		// A machine that comes back after a silence changes its phase.
		dirty := f.now().Sub(l.ContactAt) > 30*time.Second || l.Address != address || f.lost(name)
		l.ContactAt = f.now()
		l.Address = address
		return dirty
	})
}

// Enrolled records a new session, which ends any earlier one of the machine.
func (f *Fleet) Enrolled(name, fingerprint string, issued time.Time) {
	f.observe(name, func(l *live) bool {
		l.Session, l.Attempt = fingerprint, false
		l.SessionKey, l.SessionIssuedAt = fingerprint, issued
		l.Conflict = ""
		return true
	})
}

// SessionRenewed replaces the key of the running session.
func (f *Fleet) SessionRenewed(name, fingerprint string, issued time.Time) {
	f.observe(name, func(l *live) bool {
		l.Session = fingerprint
		l.SessionKey, l.SessionIssuedAt = fingerprint, issued
		return true
	})
}

// SessionReturned records that a session which enrolled before the server started is still used.
func (f *Fleet) SessionReturned(name, fingerprint string, issued time.Time) {
	f.observe(name, func(l *live) bool {
		l.SessionKey, l.SessionIssuedAt = fingerprint, issued
		return true
	})
}

// KeyRefused records a key that was refused though it was signed for this machine.
func (f *Fleet) KeyRefused(name string, key v1alpha1.KeyRefusedStatus) {
	f.observe(name, func(l *live) bool {
		if l.Refused != nil && l.Refused.KeyFingerprint == key.KeyFingerprint {
			return false
		}
		key.At = metav1.NewTime(f.now().Truncate(time.Second))
		l.Refused = &key
		return true
	})
}

// Begun records that the running session carries an intent out.
func (f *Fleet) Begun(name, intentID string) {
	f.observe(name, func(l *live) bool {
		l.Attempt, l.Blocked = true, Block{}
		if l.IntentID != intentID {
			l.IntentID, l.Steps = intentID, nil
		}
		l.ProgressAt = f.now()
		return true
	})
}

// Progressed records the steps of a running intent.
func (f *Fleet) Progressed(name, intentID string, steps []wire.Step, log []string) {
	now := f.now()
	f.observe(name, func(l *live) bool {
		next := Steps(steps)
		changed := l.IntentID != intentID || !slices.EqualFunc(l.Steps, next, equalSteps)
		if changed {
			l.ProgressAt = now
		}
		l.IntentID, l.Steps, l.ContactAt, l.Blocked = intentID, next, now, Block{}
		l.logged(now, log)
		return changed || f.lost(name)
	})
}

// Block is what keeps an intent from being carried out: the reason of a condition, and a message for people. The zero
// value is nothing.
type Block struct{ Reason, Message string }

// Blocked records why the machine's intent cannot begin; the zero Block takes it back.
func (f *Fleet) Blocked(name string, block Block) {
	f.observe(name, func(l *live) bool {
		changed := l.Blocked != block
		l.Blocked = block
		return changed
	})
}

// Held records why the machine cannot be given a plan yet; an empty reason takes it back.
func (f *Fleet) Held(name, reason string) {
	f.observe(name, func(l *live) bool {
		changed := l.Held != reason
		l.Held = reason
		return changed
	})
}

// Beat records a heartbeat of an installed node. Only what a person would see makes the machine dirty.
func (f *Fleet) Beat(name string, beat wire.Heartbeat, address string) {
	now := f.now()
	f.observe(name, func(l *live) bool {
		old := l.Heartbeat
		changed := old == nil || old.BootID != beat.BootID || old.AgentVersion != beat.AgentVersion ||
			old.OS != beat.OS || old.Kernel != beat.Kernel ||
			!slices.Equal(old.Addresses, beat.Addresses) || !maps.Equal(old.Interfaces, beat.Interfaces) || !slices.Equal(old.FailedUnits, beat.FailedUnits) ||
			!reflect.DeepEqual(old.RebootRequired, beat.RebootRequired)
		if old == nil || old.BootID != beat.BootID {
			l.ReadyAt = now
		}
		l.logged(now, beat.Log)
		beat.Log = nil
		l.Heartbeat, l.HeartbeatAt, l.ContactAt, l.Address = &beat, now, now, address
		if !beat.Now.IsZero() {
			l.ClockSkew = beat.Now.Sub(now)
		}
		return changed || f.lost(name)
	})
}

// Bringup is how far a node is with what its cluster wants of it.
type Bringup struct {
	Cluster string
	// Version of the assignment that is carried out.
	Version string
	Phases  []v1alpha1.Step
	Done    bool
	// KubernetesVersion of the kubelet that is installed.
	KubernetesVersion string
	// CertificatesExpireAt is when the first of the certificates expires; zero when there is none.
	CertificatesExpireAt time.Time
	// Certificates are when each expires, by name.
	Certificates map[string]time.Time
	// RenewAt is when certificates are due whose renewal restarts something; zero for none.
	RenewAt time.Time
	// Config stands for what is carried out, FormerConfig for what a roll-back would lead to, nil for nothing.
	Config       v1alpha1.ConfigDigests
	FormerConfig *v1alpha1.ConfigDigests
	// Drift are files that somebody else had changed.
	Drift []string
	// Message says why something that was asked for is not done.
	Message string
	// Restore is how far the node is with a restore of etcd; nil: there is none.
	Restore *v1alpha1.NodeRestore
	// Prefetch is how far the node is with what it fetches beside what it runs; nil: it is told to fetch nothing.
	Prefetch *v1alpha1.NodePrefetch
}

func digestsOf(c wire.ConfigDigests) v1alpha1.ConfigDigests {
	return v1alpha1.ConfigDigests{Etcd: termtext.Line(c.Etcd, 64), ControlPlane: termtext.Line(c.ControlPlane, 64), Node: termtext.Line(c.Node, 64)}
}

// BroughtUp records how far a node is. Only what a person would see makes the machine dirty.
func (f *Fleet) BroughtUp(name string, report wire.PhaseReport) {
	next := &Bringup{
		Cluster: termtext.Line(report.Cluster, 64), Version: termtext.Line(report.Version, 64), Phases: Steps(report.Phases), Done: report.Done,
		KubernetesVersion: termtext.Line(report.KubernetesVersion, 64), Config: digestsOf(report.Config), Message: termtext.Line(report.Message, 256),
		Certificates: map[string]time.Time{},
	}
	for _, path := range report.Drift[:min(len(report.Drift), maxSteps)] {
		next.Drift = append(next.Drift, termtext.Line(path, 256))
	}
	if report.FormerConfig != nil {
		next.FormerConfig = new(digestsOf(*report.FormerConfig))
	}
	for certificate, at := range report.Certificates {
		if len(next.Certificates) < maxSteps {
			next.Certificates[termtext.Line(certificate, 64)] = at
		}
		if next.CertificatesExpireAt.IsZero() || at.Before(next.CertificatesExpireAt) {
			next.CertificatesExpireAt = at
		}
	}
	if report.RenewAt != nil {
		next.RenewAt = *report.RenewAt
	}
	if r := report.Restore; r != nil {
		next.Restore = &v1alpha1.NodeRestore{ID: termtext.Line(r.ID, 64), State: termtext.Line(r.State, 16), Message: termtext.Line(r.Message, 256)}
	}
	if p := report.Prefetch; p != nil {
		next.Prefetch = &v1alpha1.NodePrefetch{ID: termtext.Line(p.ID, 64), Done: p.Done, Failing: p.Failing, Message: termtext.Line(p.Message, 512), BytesDone: p.BytesDone, BytesTotal: p.BytesTotal}
	}
	f.observe(name, func(l *live) bool {
		old := l.Bringup
		l.Bringup, l.BringupAt = next, f.now()
		return old == nil || old.Cluster != next.Cluster || old.Done != next.Done || old.KubernetesVersion != next.KubernetesVersion ||
			old.Config != next.Config || !reflect.DeepEqual(old.FormerConfig, next.FormerConfig) || !reflect.DeepEqual(old.Restore, next.Restore) || !reflect.DeepEqual(old.Prefetch, next.Prefetch) || old.Message != next.Message || !slices.Equal(old.Drift, next.Drift) ||
			!old.CertificatesExpireAt.Equal(next.CertificatesExpireAt) || !old.RenewAt.Equal(next.RenewAt) || !slices.EqualFunc(old.Phases, next.Phases, equalSteps)
	})
}

// Conflicted records why a machine with identifiers of this one was not recognised as it.
func (f *Fleet) Conflicted(name, reason string) {
	f.observe(name, func(l *live) bool {
		changed := l.Conflict != reason
		l.Conflict, l.ConflictAt = reason, f.now()
		return changed
	})
}

// maxReboots is how often a node is told to boot from the network for one intent.
const maxReboots = 2

// AskReboot says whether the node, running since the boot bootID, may be told to boot from the network for an
// intent. A node that keeps coming back from its own disk would otherwise reboot for ever.
func (f *Fleet) AskReboot(name, intentID, bootID string) bool {
	ask := false
	f.observe(name, func(l *live) bool {
		if l.rebootIntent != intentID {
			l.rebootIntent, l.rebootBoots = intentID, nil
		}
		switch {
		case slices.Contains(l.rebootBoots, bootID):
			ask = true
		case len(l.rebootBoots) < maxReboots:
			l.rebootBoots = append(slices.Clone(l.rebootBoots), bootID)
			ask = true
		}
		return false
	})
	return ask
}

// Log adds a line about a machine.
func (f *Fleet) Log(name string, lines ...string) {
	f.observe(name, func(l *live) bool {
		l.logged(f.now(), lines)
		return false
	})
}

// LogLines returns the last lines about a machine, oldest first.
func (f *Fleet) LogLines(name string) []LogLine {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if l := f.live[name]; l != nil {
		return slices.Clone(l.log)
	}
	return nil
}

func (l *live) logged(now time.Time, lines []string) {
	if extra := len(lines) - maxLogLines; extra > 0 {
		lines = lines[extra:]
	}
	for _, line := range lines {
		l.log = append(l.log, LogLine{At: now, Text: termtext.Line(line, maxLogLine)})
	}
	if extra := len(l.log) - maxLogLines; extra > 0 {
		l.log = slices.Clone(l.log[extra:])
	}
}

// Steps turns reported steps into those of a status. What a machine reports is cut to size and freed of
// control characters, since people read it in terminals.
func Steps(steps []wire.Step) []v1alpha1.Step {
	list := make([]v1alpha1.Step, 0, min(len(steps), maxSteps))
	for _, s := range steps[:min(len(steps), maxSteps)] {
		step := v1alpha1.Step{
			Name: termtext.Line(s.Name, 64), State: stepState(s.State),
			BytesDone: s.BytesDone, BytesTotal: s.BytesTotal, Message: termtext.Line(s.Message, 1024),
		}
		if s.StartedAt != nil {
			step.StartedAt = new(metav1.NewMicroTime(s.StartedAt.UTC().Truncate(time.Microsecond)))
		}
		if s.FinishedAt != nil {
			step.FinishedAt = new(metav1.NewMicroTime(s.FinishedAt.UTC().Truncate(time.Microsecond)))
		}
		list = append(list, step)
	}
	return list
}

func stepState(s wire.State) v1alpha1.StepState {
	switch state := v1alpha1.StepState(s); state {
	case v1alpha1.StepRunning, v1alpha1.StepSucceeded, v1alpha1.StepFailed, v1alpha1.StepSkipped:
		return state
	}
	return v1alpha1.StepPending
}

func equalSteps(a, b v1alpha1.Step) bool {
	return a.Name == b.Name && a.State == b.State && a.BytesDone == b.BytesDone &&
		a.BytesTotal == b.BytesTotal && a.Message == b.Message
}
