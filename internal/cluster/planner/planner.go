// Package planner decides every step that takes a node or an etcd member of a cluster away, or adds one. Next is a pure
// function of what was observed, what is wanted and the time: it returns the steps that may be begun now, and for what may
// not be begun why, and what would make it possible. Nothing that would lose the quorum of etcd, the last API server or a
// budget is ever proposed. See DESIGN.md.
package planner

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// Operation is why a step is done.
type Operation string

const (
	// OperationRepair mends the membership of etcd.
	OperationRepair Operation = "repair"
	// OperationRemedy brings a broken node back: reboot, power cycle, reinstall, replace.
	OperationRemedy Operation = "remedy"
	// OperationJoin adds a node.
	OperationJoin Operation = "join"
	// OperationLeave takes a node out of the cluster for good.
	OperationLeave Operation = "leave"
	// OperationUpgrade brings another version of Kubernetes or etcd.
	OperationUpgrade Operation = "upgrade"
	// OperationChange brings another configuration.
	OperationChange Operation = "change"
	// OperationSystem brings another operating system image.
	OperationSystem Operation = "system"
	// OperationCertificates renews certificates and restarts what uses them.
	OperationCertificates Operation = "certificates"
	// OperationReboot reboots a node that asked for it.
	OperationReboot Operation = "reboot"
)

// Kind is what is done in a step.
type Kind string

const (
	// StepBackup takes a snapshot of etcd.
	StepBackup Kind = "backup"
	// StepPull fetches programs and images to a node before the first node changes.
	StepPull Kind = "pull"
	// StepTake takes the lock for a node, and cordons the node if it is to be drained.
	StepTake Kind = "take"
	// StepDrain evicts the pods of a node.
	StepDrain Kind = "drain"
	// StepMoveLeader makes the member on node To the leader of etcd.
	StepMoveLeader Kind = "move-leader"
	// StepMoveVirtualIP makes node To the holder of the virtual IP.
	StepMoveVirtualIP Kind = "move-virtual-ip"
	// StepRestartMember restarts a member of etcd, which writes a snapshot: the next minor release does not start on what
	// may lie in the log otherwise.
	StepRestartMember Kind = "restart-member"
	// StepChange brings a node the parts of its wanted state that Step.Parts names. A new operating system is installed or
	// booted as the group says.
	StepChange Kind = "change"
	// StepRollBack brings a node back to the state that it had before the step in hand.
	StepRollBack Kind = "roll-back"
	// StepGiveBack uncordons a node and releases its lock.
	StepGiveBack Kind = "give-back"
	// StepAdd gives a spare machine to a group; it is installed, if need be, and joins.
	StepAdd Kind = "add"
	// StepAddLearner adds the node's member to etcd, without a vote.
	StepAddLearner Kind = "add-learner"
	// StepPromote gives a learner its vote. Whoever carries it out must see the learner connected at that very moment:
	// etcd itself promotes a dead one.
	StepPromote Kind = "promote"
	// StepRemoveMember removes a member from etcd.
	StepRemoveMember Kind = "remove-member"
	// StepRelease takes a node out of the cluster and wipes its machine, or keeps it as a spare.
	StepRelease Kind = "release"
	// StepRestart reboots a node by its agent, which still answers.
	StepRestart Kind = "restart"
	// StepPowerCycle switches a machine off and on.
	StepPowerCycle Kind = "power-cycle"
	// StepReinstall installs a machine anew; it rejoins under its name.
	StepReinstall Kind = "reinstall"
	// StepReplace marks a node as leaving, because a spare takes its place: at once where it is broken, or when the spare is there where
	// the node works and its group is rolled by replacement.
	StepReplace Kind = "replace"
)

// Step is something that may be begun now. All steps of one Plan may run at the same time.
type Step struct {
	Kind      Kind      `json:"kind"`
	Operation Operation `json:"operation"`
	// Node is the machine, empty for a step of the whole cluster.
	Node  string `json:"node,omitempty"`
	Group string `json:"group,omitempty"`
	// To is the node that a leader or virtual IP moves to.
	To string `json:"to,omitempty"`
	// Member of etcd that is added, promoted or removed.
	Member string `json:"member,omitempty"`
	// Parts that a take, a change or a roll-back is for.
	Parts Parts `json:"parts,omitzero"`
	// State that a new node gets, or a changed one goes to.
	State State `json:"state,omitzero"`
	// Reason in words.
	Reason string `json:"reason"`
	// Disruption is what people could notice, in words; empty when that is nothing.
	Disruption string `json:"disruption,omitempty"`
	// Outage is true when the cluster's API or store does not answer meanwhile.
	Outage bool `json:"outage,omitempty"`
	// Estimate of how long it takes.
	Estimate time.Duration `json:"estimate"`
}

// Block is why something is not done.
type Block struct {
	Operation Operation `json:"operation"`
	Node      string    `json:"node,omitempty"`
	// Reason in words.
	Reason string `json:"reason"`
	// Remedy is what would make it possible.
	Remedy string `json:"remedy"`
}

func (b Block) String() string {
	text := b.Reason + "; " + b.Remedy
	if b.Node != "" {
		text = b.Node + ": " + text
	}
	return text
}

// Wait is something that is under way and needs nobody.
type Wait struct {
	Node   string `json:"node,omitempty"`
	Reason string `json:"reason"`
}

// Plan is the answer of Next.
type Plan struct {
	// Steps that may be begun now.
	Steps []Step
	// Waits are under way.
	Waits []Wait
	// Blocks hinder what is wanted.
	Blocks []Block
	// Refused is true when what is wanted can never be done from here; then there are no steps.
	Refused bool
	// Again is when time alone changes the answer; zero: not before something else changes.
	Again time.Time
	// Opens is when the next maintenance window opens, if something waits for it.
	Opens time.Time
}

// Done is true when everything is as it is wanted.
func (p *Plan) Done() bool { return len(p.Steps)+len(p.Waits)+len(p.Blocks) == 0 && p.Again.IsZero() }

// Roles of a group's nodes.
type Roles struct{ Etcd, ControlPlane, Worker bool }

// server is true for nodes that the cluster itself rests on.
func (r Roles) server() bool { return r.Etcd || r.ControlPlane }

// State is what a node runs, or is to run.
type State struct {
	// Etcd is the version of the node's member, such as 3.7.3; empty without the role.
	Etcd string `json:"etcd,omitempty"`
	// ControlPlane is the version of API server, controller manager and scheduler; empty without the role.
	ControlPlane string `json:"controlPlane,omitempty"`
	Kubelet      string `json:"kubelet,omitempty"`
	// System is the digest of the operating system image; empty: not managed.
	System string `json:"system,omitempty"`
	// Config is a digest of everything else that is rendered for the node.
	Config string `json:"config,omitempty"`
}

// Parts of a node that differ from what is wanted.
type Parts struct {
	Etcd         bool `json:"etcd,omitempty"`
	ControlPlane bool `json:"controlPlane,omitempty"`
	Kubelet      bool `json:"kubelet,omitempty"`
	System       bool `json:"system,omitempty"`
	Config       bool `json:"config,omitempty"`
	Certificates bool `json:"certificates,omitempty"`
	Reboot       bool `json:"reboot,omitempty"`
}

func (p Parts) any() bool { return p != Parts{} }

func (p Parts) and(o Parts) Parts {
	return Parts{p.Etcd && o.Etcd, p.ControlPlane && o.ControlPlane, p.Kubelet && o.Kubelet, p.System && o.System,
		p.Config && o.Config, p.Certificates && o.Certificates, p.Reboot && o.Reboot}
}

func (p Parts) String() string { return strings.Join(p.Names(), ", ") }

// parts are all, with their names.
func (p *Parts) parts() []partName {
	return []partName{{&p.Etcd, "etcd"}, {&p.ControlPlane, "control plane"}, {&p.Kubelet, "kubelet"}, {&p.System, "operating system"}, {&p.Config, "configuration"},
		{&p.Certificates, "certificates"}, {&p.Reboot, "reboot"}}
}

type partName struct {
	is   *bool
	name string
}

// Names of the parts, for people and records.
func (p Parts) Names() []string {
	var names []string
	for _, part := range p.parts() {
		if *part.is {
			names = append(names, part.name)
		}
	}
	return names
}

// PartsOf is the opposite of Names. Names that it does not know are left out.
func PartsOf(names []string) Parts {
	var p Parts
	for _, part := range p.parts() {
		*part.is = slices.Contains(names, part.name)
	}
	return p
}

// operation that parts belong to, the weightiest first.
func (p Parts) operation() Operation {
	switch {
	case p.Etcd || p.ControlPlane || p.Kubelet:
		return OperationUpgrade
	case p.System:
		return OperationSystem
	case p.Config:
		return OperationChange
	case p.Certificates:
		return OperationCertificates
	}
	return OperationReboot
}

// Touch is what a change of the configuration does to a node.
type Touch struct {
	// Etcd and APIServer restart.
	Etcd, APIServer bool
	// Drain: pods do not survive it, for example when kernel arguments change.
	Drain bool
}

// Group is a number of like nodes.
type Group struct {
	Name     string
	Roles    Roles
	Replicas int
	// State that its nodes are to have, as far as Wanted.Nodes does not say otherwise.
	State State
	// ConfigTouches is what bringing State.Config does.
	ConfigTouches Touch
	// ReinstallSystem: a new operating system is installed, which loses the data of an etcd member. Otherwise it is booted.
	ReinstallSystem bool
	Rollout         Rollout
	Remediation     Remediation
	// KeepReleased machines as spares, instead of wiping them.
	KeepReleased bool
}

// Rollout is the budget of a group's changes.
type Rollout struct {
	// MaxUnavailable nodes of those that are wanted; at least 1 unless MaxSurge is. Nodes with etcd or the control plane
	// always change singly.
	MaxUnavailable int
	// MaxSurge is by how many spare machines at a time workers are replaced instead of being changed; 0: they are changed in place.
	MaxSurge int
	// PauseBetween two nodes, from the return of one to the next take.
	PauseBetween time.Duration
	// HealthyFor is how long a changed node must be healthy before it counts as such.
	HealthyFor time.Duration
	// SkipCanary changes as many as the budget allows at once, without trying one first.
	SkipCanary bool
	// DrainTimeout after which a drain counts as failed; zero: 10 minutes.
	DrainTimeout time.Duration
	// RollBack a node whose change failed by itself.
	RollBack bool
}

// Remediation says what is done for broken nodes of a group.
type Remediation struct {
	Enabled bool
	// After how long a node counts as broken. Zero: 5 minutes.
	After time.Duration
	// Parallel remedies in the group; zero: 1.
	Parallel int
	// MaxBroken nodes of the group; with more, nothing is done: it is rather the network. Zero: a third of the group, at least 1.
	MaxBroken int
	// Backoff before the next remedy of a node, doubled each time. Zero: 10 minutes.
	Backoff time.Duration
	// Reinstall and Replace allow these acts, which lose the machine's data.
	Reinstall, Replace bool
}

// Window is a recurring time in which nodes may be taken away.
type Window struct {
	// Days on which it opens; none: every day.
	Days []time.Weekday
	// From is when it opens by the clock of Zone, as the time since midnight.
	From time.Duration
	// Length is how long it is open. Zero: until To by the same clock, counted from the midnight before it opened, so that a window
	// over midnight ends after more than 24 hours.
	Length, To time.Duration
	// Zone is where the clock is; nil: UTC.
	Zone *time.Location
}

// Wanted is what a person wants.
type Wanted struct {
	// Generation of what is written. A failure stops changes until it is another one.
	Generation int64
	Groups     []Group
	// Nodes says what a machine is to run where that is not its group's State.
	Nodes map[string]State
	// AllowEvenMembers of etcd.
	AllowEvenMembers bool
	// AllowDowntime permits to stop the only member of etcd or the only API server for a while.
	AllowDowntime bool
	// Windows outside which no node is taken away by choice; none: always. What is in hand is finished.
	Windows []Window
	// BackupAge is how old a snapshot may be when an upgrade begins. Zero: no snapshot is asked for.
	BackupAge time.Duration
	// PullFirst: everything is fetched to every node before the first one changes its version.
	PullFirst bool
	Paused    bool
	// Abort brings nodes in hand back to what they were, and takes no others.
	Abort bool
}

// Node is a machine of the cluster.
type Node struct {
	Name  string
	Group string
	Has   State
	// Former is what it had before the change in hand was begun; nil when there was none, or it cannot be brought back.
	Former *State
	// Joining is true until it is Ready for the first time (again, after an installation).
	Joining bool
	// Ready since Since, or not Ready since then.
	Ready bool
	Since time.Time
	// Reachable: its agent answers.
	Reachable bool
	// Rescue: a person works on it in the live system, so no remedy is tried.
	Rescue   bool
	Cordoned bool
	// Drained: no pod is on it that a drain would evict.
	Drained bool
	// APIServer answers.
	APIServer bool
	// VirtualIP is here.
	VirtualIP bool
	// Pulled is the state that everything was fetched for.
	Pulled State
	// RenewAt is when its certificates are due to be renewed; zero: never.
	RenewAt time.Time
	// RenewTouches is what that restarts.
	RenewTouches Touch
	// WantsReboot is why the node asks for a reboot.
	WantsReboot string
	// Leaving is why the node is to go, recorded when a person or a remedy decided so.
	Leaving string
	// Replaced: it leaves because a spare takes its place, and not before that has joined.
	Replaced bool
	// Power: the machine can be switched off and on.
	Power bool
	// Pods on it that a disruption budget guards.
	Pods []Pod
	// Hand is the lock that is held for it.
	Hand *Hand
	// Remedies since it was last healthy.
	Remedies []Remedy
	// LearnerFailures is how often its member was added and had to be removed again.
	LearnerFailures int
}

// Pod is a pod that is guarded by a disruption budget.
type Pod struct{ Name, Budget string }

// DisruptionBudget is a PodDisruptionBudget.
type DisruptionBudget struct {
	// Name is NAMESPACE/NAME.
	Name string
	// Allowed disruptions at present.
	Allowed int
	// Never is true when it would allow none with all its pods healthy.
	Never bool
}

// Hand says that a node is taken, and how far that is.
type Hand struct {
	Operation Operation
	Parts     Parts
	Since     time.Time
	// Running is the step that was begun and has not ended; empty: none.
	Running Kind
	// Failed is why the last step failed.
	Failed string
	// RolledBack after a failure or an abort.
	RolledBack bool
}

// Remedy is something that was done for a broken node.
type Remedy struct {
	Kind Kind
	At   time.Time
}

// Member is a member of etcd.
type Member struct {
	Name string
	// Node that holds it.
	Node    string
	Learner bool
	// Healthy: it answered a read that needs quorum, or for a learner: it serves.
	Healthy bool
	// Connected to the leader at the time of looking, and in sync with it; asked of learners.
	Connected, InSync bool
	Leader            bool
	// Since when it is a member.
	Since time.Time
	// LogBehind: its log may hold what the next minor release does not start on, until it writes a snapshot.
	LogBehind bool
	// DataLost: its machine was installed anew.
	DataLost bool
}

// Spare is a machine that no cluster has.
type Spare struct {
	Name string
	// Groups that may take it.
	Groups []string
}

// Failure is a change that failed. It stops the roll until what is wanted is written anew.
type Failure struct {
	Node, Reason string
	Generation   int64
}

// Observed is what is the case.
type Observed struct {
	Nodes []Node
	// Members of etcd as etcd lists them; none: it could not be asked.
	Members []Member
	Spares  []Spare
	Budgets []DisruptionBudget
	// Backup is when the last good snapshot was taken.
	Backup time.Time
	// Preflight is what forbids to begin an upgrade.
	Preflight []Block
	// Lacking is what forbids to change the configuration of nodes: it needs what they could not fetch. nil: nothing.
	Lacking *Block
	Failure *Failure
	// Returned is when a node of a group was last given back.
	Returned map[string]time.Time
}

// Input is everything that a decision rests on.
type Input struct {
	Now      time.Time
	Observed Observed
	Wanted   Wanted
}

// Next decides what may be done now.
func Next(in Input) Plan {
	p := newPlanner(&in)
	if refused := Refuse(in); len(refused) > 0 {
		return Plan{Blocks: refused, Refused: true}
	}
	if in.Wanted.Paused {
		return Plan{Blocks: []Block{{OperationChange, "", "the cluster is paused", "resume it: coldrack cluster resume"}}}
	}
	p.hands()
	p.members()
	if !in.Wanted.Abort {
		p.leave()
		p.remedies()
		p.join()
		p.roll()
	}
	p.joining()
	return p.plan
}

// planner holds what one call of Next works with.
type planner struct {
	*Input
	plan    Plan
	groups  map[string]*Group
	index   map[string]*Node
	byGroup map[string][]*Node
	member  map[string]*Member // by node
	quorum  quorum
	budgets map[string]*DisruptionBudget
	// busy is the node for which a server is stopped or the membership changes; only one at a time.
	busy string
	// taken are nodes for which a take is proposed.
	taken map[string]bool
	// drained are nodes for which a drain is proposed.
	drained map[string]bool
	// etcdStep is true when a step is proposed that stops a member or changes the membership; only one at a time.
	etcdStep bool
}

func newPlanner(in *Input) *planner {
	p := &planner{Input: in, groups: map[string]*Group{}, index: map[string]*Node{}, byGroup: map[string][]*Node{},
		member: map[string]*Member{}, budgets: map[string]*DisruptionBudget{}, taken: map[string]bool{}, drained: map[string]bool{}}
	for i := range in.Wanted.Groups {
		p.groups[in.Wanted.Groups[i].Name] = &in.Wanted.Groups[i]
	}
	for i := range in.Observed.Nodes {
		n := &in.Observed.Nodes[i]
		p.index[n.Name] = n
		p.byGroup[n.Group] = append(p.byGroup[n.Group], n)
	}
	for i := range in.Observed.Members {
		m := &in.Observed.Members[i]
		p.member[m.Node] = m
	}
	for i := range in.Observed.Budgets {
		p.budgets[in.Observed.Budgets[i].Name] = &in.Observed.Budgets[i]
	}
	members := slices.Clone(in.Observed.Members)
	for i := range members {
		if n := p.index[members[i].Node]; n != nil && stopping(n) {
			members[i].Healthy = false // at any moment
		}
	}
	p.quorum = quorumOf(members)
	for i := range in.Observed.Nodes {
		n := &in.Observed.Nodes[i]
		if !p.rolesOf(n).server() {
			continue
		}
		if n.Hand != nil {
			p.busy = n.Name
		}
	}
	return p
}

func (p *planner) step(s Step) {
	if n := p.index[s.Node]; n != nil && s.Group == "" {
		s.Group = n.Group
	}
	if s.Estimate == 0 {
		s.Estimate = estimates[s.Kind]
	}
	p.plan.Steps = append(p.plan.Steps, s)
}

func (p *planner) wait(node, reason string) { p.plan.Waits = append(p.plan.Waits, Wait{node, reason}) }

func (p *planner) block(b *Block) { p.plan.Blocks = append(p.plan.Blocks, *b) }

func (p *planner) again(at time.Time) {
	if p.plan.Again.IsZero() || at.Before(p.plan.Again) {
		p.plan.Again = at
	}
}

// rolesOf a node. A node whose group is gone has the roles that its state shows.
func (p *planner) rolesOf(n *Node) Roles {
	if g := p.groups[n.Group]; g != nil {
		return g.Roles
	}
	return Roles{Etcd: n.Has.Etcd != "" || p.member[n.Name] != nil, ControlPlane: n.Has.ControlPlane != "", Worker: true}
}

// want is what a node is to run.
func (p *planner) want(n *Node) State {
	if s, ok := p.Wanted.Nodes[n.Name]; ok {
		return s
	}
	if g := p.groups[n.Group]; g != nil {
		return g.State
	}
	return n.Has
}

// differs is what a node has to be changed in.
func (p *planner) differs(n *Node) Parts {
	want := p.want(n)
	return Parts{
		Etcd: want.Etcd != n.Has.Etcd && want.Etcd != "", ControlPlane: want.ControlPlane != n.Has.ControlPlane && want.ControlPlane != "", Kubelet: want.Kubelet != n.Has.Kubelet,
		System: want.System != n.Has.System && want.System != "", Config: want.Config != n.Has.Config,
		Certificates: !n.RenewAt.IsZero() && !p.Now.Before(n.RenewAt), Reboot: n.WantsReboot != "",
	}
}

// going is true for nodes that leave the cluster.
func (p *planner) going(n *Node) bool {
	return n.Leaving != "" || p.groups[n.Group] == nil || n.Hand != nil && n.Hand.Operation == OperationLeave
}

// staying are the nodes of a group that do not leave it.
func (p *planner) staying(group string) []*Node {
	return slices.DeleteFunc(slices.Clone(p.byGroup[group]), p.going)
}

// healthy is true when everything on a node works.
func (p *planner) healthy(n *Node) bool {
	roles := p.rolesOf(n)
	if !n.Ready || !n.Reachable || n.Joining || roles.ControlPlane && !n.APIServer {
		return false
	}
	if roles.Etcd {
		m := p.member[n.Name]
		return m != nil && m.Healthy && !m.Learner
	}
	return true
}

// inert is true when nothing works on a node: taking it away takes nothing.
func (p *planner) inert(n *Node) bool {
	m := p.member[n.Name]
	return !n.Ready && !n.APIServer && (m == nil || !m.Healthy)
}

// available is true when pods can run on a node, and nothing is being done to it.
func (p *planner) available(n *Node) bool {
	return n.Ready && !n.Cordoned && !n.Joining && n.Hand == nil && !p.taken[n.Name]
}

// soaked is true when a node has been healthy for as long as its group asks. If it only lacks time, that is noted.
func (p *planner) soaked(n *Node) bool {
	if !p.healthy(n) {
		return false
	}
	g := p.groups[n.Group]
	if g == nil {
		return true
	}
	at := n.Since.Add(g.Rollout.HealthyFor)
	if p.Now.Before(at) {
		p.again(at)
		return false
	}
	return true
}

// touches says what bringing parts to a node does to it.
func (p *planner) touches(n *Node, parts Parts) Touch {
	var t Touch
	roles, g := p.rolesOf(n), p.groups[n.Group]
	gone := parts.System || parts.Reboot
	if parts.Config && g != nil {
		t = g.ConfigTouches
	}
	renew := parts.Certificates
	t.Etcd = roles.Etcd && (t.Etcd || parts.Etcd || renew && n.RenewTouches.Etcd || gone)
	t.APIServer = roles.ControlPlane && (t.APIServer || parts.ControlPlane || renew && n.RenewTouches.APIServer || gone)
	t.Drain = t.Drain || gone || parts.Kubelet && !sameMinor(n.Has.Kubelet, p.want(n).Kubelet)
	return t
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
