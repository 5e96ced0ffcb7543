package planner

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"coldrack.dev/internal/contract/validate"
)

// simulation carries steps out, as an executor would: they take time, fail, and machines break between them.
type simulation struct {
	in   Input
	rand *rand.Rand
	// calm: nothing breaks and nothing fails.
	calm bool
	ends []ending
	log  []entry
	// served is which steps were begun, by kind.
	served map[Kind]int
}

type ending struct {
	at   time.Time
	step Step
}

var epoch = time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)

func (s *simulation) node(name string) *Node {
	i := slices.IndexFunc(s.in.Observed.Nodes, func(n Node) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return &s.in.Observed.Nodes[i]
}

func (s *simulation) memberOf(node string) *Member {
	for i := range s.in.Observed.Members {
		if s.in.Observed.Members[i].Node == node {
			return &s.in.Observed.Members[i]
		}
	}
	return nil
}

func (s *simulation) note(format string, args ...any) {
	s.log = append(s.log, entry{s.in.Now, format, args})
}

// entry of a log becomes text only when a test has failed.
type entry struct {
	at     time.Time
	format string
	args   []any
}

func (e entry) String() string { return e.at.Format("15:04:05 ") + fmt.Sprintf(e.format, e.args...) }

// breakNode and mend are what power does to a machine.
func (s *simulation) breakNode(n *Node) {
	s.note("%s dies", n.Name)
	n.Ready, n.APIServer, n.Since = false, false, s.in.Now
	n.Reachable = s.rand.IntN(3) == 0 // its agent may still answer
	if m := s.memberOf(n.Name); m != nil {
		m.Healthy, m.Connected = false, false
	}
	s.elect()
}

func (s *simulation) mend(n *Node) {
	if !n.Ready {
		s.note("%s is back", n.Name)
		n.Since = s.in.Now
	}
	n.Ready, n.Reachable, n.Joining, n.Remedies = true, true, false, nil
	n.APIServer = n.Has.ControlPlane != ""
	if m := s.memberOf(n.Name); m != nil && !m.DataLost {
		m.Healthy, m.Connected, m.InSync = true, true, true
	}
	s.elect()
}

// elect makes sure that a healthy voter leads, if a majority is there, and that a living API server has the virtual IP.
func (s *simulation) elect() {
	o := &s.in.Observed
	var can []string
	voters := 0
	for i := range o.Members {
		m := &o.Members[i]
		if !m.Learner {
			voters++
			if m.Healthy {
				can = append(can, m.Node)
			}
		}
	}
	lead := slices.IndexFunc(o.Members, func(m Member) bool { return m.Leader && m.Healthy && !m.Learner })
	switch {
	case len(can) < majority(voters):
		o.lead("")
	case lead < 0:
		o.lead(can[s.rand.IntN(len(can))])
	}
	holder, first := false, -1
	for i := range o.Nodes {
		n := &o.Nodes[i]
		n.VirtualIP = n.VirtualIP && n.APIServer
		holder = holder || n.VirtualIP
		if n.APIServer && first < 0 {
			first = i
		}
	}
	if !holder && first >= 0 {
		o.Nodes[first].VirtualIP = true
	}
}

// begin starts a step.
func (s *simulation) begin(step Step) {
	s.served[step.Kind]++
	s.note("begin %s %s %s %v: %s", step.Kind, step.Node, step.To, step.Parts, step.Reason)
	n := s.node(step.Node)
	switch step.Kind {
	case StepDrain, StepRestartMember, StepChange, StepRollBack, StepRelease:
		n.Hand.Running = step.Kind
	case StepRestart, StepPowerCycle, StepReinstall:
		n.Hand = &Hand{Operation: OperationRemedy, Running: step.Kind, Since: s.in.Now}
	case StepAdd:
		s.in.Observed.Apply(&s.in.Wanted, step, s.in.Now)
		n = s.node(step.Node)
		n.Joining, n.Ready, n.Reachable, n.APIServer = true, false, false, false
	default:
		s.finish(step) // takes a moment
		return
	}
	if step.Kind == StepChange || step.Kind == StepRollBack {
		t := newPlanner(&s.in).touches(n, step.Parts)
		if m := s.memberOf(n.Name); m != nil && t.Etcd {
			m.Healthy, m.Connected = false, false
		}
		n.APIServer = n.APIServer && !t.APIServer
		if step.Parts.System || step.Parts.Reboot {
			n.Ready, n.Since = false, s.in.Now
		}
		s.elect()
	}
	s.ends = append(s.ends, ending{s.in.Now.Add(time.Duration(1+s.rand.IntN(4)) * 30 * time.Second), step})
}

// finish ends a step, well or not.
func (s *simulation) finish(step Step) {
	n := s.node(step.Node)
	if n == nil && step.Node != "" && step.Kind != StepAdd && step.Kind != StepRemoveMember {
		panic(fmt.Sprintf("%s of %s, which is gone: %v", step.Kind, step.Node, s.log))
	}
	if n != nil && n.Hand != nil && n.Hand.Running == step.Kind {
		n.Hand.Running = ""
	}
	often := 12
	if step.Operation == OperationRemedy {
		often = 2
	}
	if !s.calm && s.rand.IntN(often) == 0 {
		switch step.Kind {
		case StepChange:
			s.note("%s fails on %s", step.Kind, step.Node)
			n.Former, n.Hand.Failed = new(n.Has), "the kubelet does not start"
			s.in.Observed.Failure = &Failure{Node: n.Name, Reason: n.Hand.Failed, Generation: s.in.Wanted.Generation}
			return
		case StepRestart, StepPowerCycle, StepReinstall:
			s.note("%s of %s helps nothing", step.Kind, step.Node)
			n.Hand, n.Remedies = nil, append(n.Remedies, Remedy{step.Kind, s.in.Now})
			return
		case StepMoveLeader, StepMoveVirtualIP, StepBackup, StepPull, StepPromote, StepRemoveMember, StepAddLearner, StepDrain:
			s.note("%s fails", step.Kind)
			return // it is tried again
		}
	}
	switch step.Kind {
	case StepAdd:
		if n == nil {
			return
		}
		if !s.calm && s.rand.IntN(8) == 0 {
			return // it never comes
		}
		n.Ready, n.Reachable, n.Joining, n.Since = true, true, false, s.in.Now
		n.APIServer = n.Has.ControlPlane != ""
	case StepDrain:
		pods := slices.Clone(n.Pods)
		s.in.Observed.Apply(&s.in.Wanted, step, s.in.Now)
		for i := range s.in.Observed.Nodes { // they start elsewhere
			if o := &s.in.Observed.Nodes[i]; o.Group == n.Group && o.Hand == nil && o.Ready {
				o.Pods = append(o.Pods, pods...)
				break
			}
		}
	case StepAddLearner:
		s.in.Observed.Apply(&s.in.Wanted, step, s.in.Now)
		m := s.memberOf(step.Node)
		m.InSync, m.Healthy, m.Connected = s.calm, s.calm || s.rand.IntN(5) > 0, s.calm || s.rand.IntN(5) > 0
	case StepRemoveMember:
		if m := s.memberOf(step.Node); m != nil && m.Learner && n != nil {
			n.LearnerFailures++
		}
		s.in.Observed.Apply(&s.in.Wanted, step, s.in.Now)
	case StepRelease:
		s.in.Observed.Apply(&s.in.Wanted, step, s.in.Now)
	case StepRestart, StepPowerCycle, StepReinstall:
		s.in.Observed.Apply(&s.in.Wanted, step, s.in.Now)
		s.mend(n)
	case StepChange, StepRollBack:
		s.in.Observed.Apply(&s.in.Wanted, step, s.in.Now)
		if n.Reachable {
			s.mend(n)
		}
	default:
		s.in.Observed.Apply(&s.in.Wanted, step, s.in.Now)
	}
	s.elect()
}

// disturb lets something go wrong.
func (s *simulation) disturb() {
	o := &s.in.Observed
	for i := range o.Members {
		if m := &o.Members[i]; m.Learner && m.Connected {
			m.InSync = true
		}
	}
	if s.calm {
		return
	}
	for i := range o.Nodes {
		n := &o.Nodes[i]
		switch {
		case n.Ready && s.rand.IntN(40) == 0:
			s.breakNode(n)
		case !n.Ready && !n.Joining && (n.Hand == nil || n.Hand.Running == "") && s.rand.IntN(6) == 0:
			s.mend(n)
		}
	}
	if s.rand.IntN(10) == 0 {
		s.in.Wanted.Paused = !s.in.Wanted.Paused
	}
	if s.rand.IntN(20) == 0 {
		s.in.Wanted.Abort = !s.in.Wanted.Abort
	}
	if s.rand.IntN(15) == 0 {
		s.in.Wanted.Generation++
		s.clearFailures()
	}
	for i := range o.Budgets {
		o.Budgets[i].Allowed = s.rand.IntN(3)
	}
}

func (s *simulation) clearFailures() {
	for i := range s.in.Observed.Nodes {
		if h := s.in.Observed.Nodes[i].Hand; h != nil {
			h.Failed, h.RolledBack = "", false
		}
	}
}

// settle is what a person does afterwards: everything is switched on, budgets let pods go, there are spares.
func (s *simulation) settle() {
	s.calm, s.in.Wanted.Paused, s.in.Wanted.Abort = true, false, false
	s.in.Wanted.Generation++
	s.clearFailures()
	o := &s.in.Observed
	for i := range o.Nodes {
		n := &o.Nodes[i]
		n.LearnerFailures = 0
		if n.Hand == nil || n.Hand.Running == "" {
			s.mend(n)
		}
	}
	for i := range o.Budgets {
		o.Budgets[i] = DisruptionBudget{Name: o.Budgets[i].Name, Allowed: 1}
	}
	var groups []string
	for _, g := range s.in.Wanted.Groups {
		groups = append(groups, g.Name)
	}
	for i := range 40 {
		o.Spares = append(o.Spares, Spare{Name: fmt.Sprintf("new-%02d", i), Groups: groups})
	}
}

// turn asks the planner, checks the answer, begins its steps and lets time pass. It returns the answer.
func (s *simulation) turn(t *testing.T) Plan {
	plan := Next(s.in)
	s.check(t, &plan)
	for _, step := range plan.Steps {
		s.begin(step)
	}
	next := s.in.Now.Add(30 * time.Second)
	if len(plan.Steps) == 0 && len(s.ends) == 0 && plan.Again.After(next) && s.calm {
		next = plan.Again
	}
	s.in.Now = next
	var left []ending
	done := s.ends
	s.ends = nil
	for _, e := range done {
		if e.at.After(s.in.Now) {
			left = append(left, e)
		} else {
			s.finish(e.step)
		}
	}
	s.ends = append(s.ends, left...)
	s.disturb()
	return plan
}

// check finds steps that would break what must hold, whatever the planner thinks of them. It counts by itself.
func (s *simulation) check(t *testing.T, plan *Plan) {
	t.Helper()
	fail := func(format string, args ...any) {
		t.Helper()
		for _, line := range s.log[max(0, len(s.log)-40):] {
			t.Log(line)
		}
		for _, step := range plan.Steps {
			t.Logf("proposed: %s %s %+v", step.Kind, step.Node, step.Parts)
		}
		t.Fatalf(format, args...)
	}
	o, w := &s.in.Observed, &s.in.Wanted
	stops := map[string]bool{}
	for _, n := range o.Nodes {
		if n.Hand != nil && n.Hand.Running != "" && n.Hand.Running != StepDrain {
			stops[n.Name] = true
		}
	}
	voters, healthy := 0, 0
	for _, m := range o.Members {
		if !m.Learner {
			voters++
			if m.Healthy && !stops[m.Node] {
				healthy++
			}
		}
	}
	heldBefore, votersBefore := healthy >= majority(voters), voters
	servers, membership := 0, 0
	for _, n := range o.Nodes {
		if n.APIServer && !stops[n.Name] {
			servers++
		}
	}
	serversBefore := servers
	takes, steps := map[string]int{}, map[string]Kind{}
	for _, step := range plan.Steps {
		n := s.node(step.Node)
		if other, twice := steps[step.Node]; twice && step.Node != "" && step.Kind != StepPull && other != StepPull {
			fail("%s gets %s and %s at once", step.Node, other, step.Kind)
		}
		steps[step.Node] = step.Kind
		m := s.memberOf(step.Node)
		voter := m != nil && !m.Learner
		switch step.Kind {
		case StepChange, StepRollBack, StepRestart, StepPowerCycle, StepReinstall, StepRestartMember, StepRelease:
			touch := Touch{Etcd: true, APIServer: true}
			if step.Kind == StepChange || step.Kind == StepRollBack {
				touch = newPlanner(&s.in).touches(n, step.Parts)
			} else if step.Kind == StepRestartMember {
				touch.APIServer = false
			}
			if touch.Etcd && voter && m.Healthy && !stops[n.Name] {
				healthy--
				membership++
			}
			if touch.APIServer && n.APIServer && !stops[n.Name] {
				servers--
			}
			wipes := step.Kind == StepReinstall || step.Kind == StepRelease || step.Kind == StepChange && step.Parts.System && w.group(n.Group).ReinstallSystem
			if wipes && voter {
				fail("%s wipes %s, which holds a voting member", step.Kind, step.Node)
			}
			if step.Kind == StepChange && step.Parts.Etcd && m != nil && m.LogBehind && !sameMinor(n.Has.Etcd, step.State.Etcd) {
				fail("%s goes to etcd %s with a log that it cannot read", step.Node, step.State.Etcd)
			}
		case StepRemoveMember:
			membership++
			if i := slices.IndexFunc(o.Members, func(m Member) bool { return m.Name == step.Member }); i >= 0 && !o.Members[i].Learner {
				if !heldBefore {
					fail("a member is removed without a majority")
				}
				voters--
				if o.Members[i].Healthy && !stops[o.Members[i].Node] {
					healthy--
				}
			}
		case StepAddLearner:
			membership++
			if healthy < voters {
				fail("a member is added while one is not healthy")
			}
		case StepPromote:
			membership++
			if m == nil || !m.Connected || !m.Healthy || !m.InSync {
				fail("a learner that is not there gets a vote: %+v", m)
			}
			voters++ // and may fail at once
			if voters == 2 {
				healthy++
			}
		case StepTake:
			takes[n.Group]++
			if n.Hand != nil {
				fail("%s is taken twice", n.Name)
			}
			if step.Operation != OperationLeave && !windowOpen(w, s.in.Now) {
				fail("%s is taken outside of the windows", n.Name)
			}
		case StepMoveLeader:
			if to := s.memberOf(step.To); to == nil || to.Learner || !to.Healthy {
				fail("the leader moves to %s, which cannot lead", step.To)
			}
		}
		if step.Kind == StepChange && (step.Parts.Kubelet || step.Parts.ControlPlane) {
			s.checkSkew(fail, n, step)
		}
	}
	if membership > 1 {
		fail("%d steps touch etcd at once", membership)
	}
	small := w.AllowDowntime && votersBefore <= 2
	if heldBefore && healthy < majority(voters) && !small {
		fail("the majority is lost: %d of %d", healthy, voters)
	}
	if serversBefore > 0 && servers == 0 && !w.AllowDowntime {
		fail("no API server is left")
	}
	s.checkBudgets(fail, plan, takes)
}

func windowOpen(w *Wanted, now time.Time) bool {
	return len(w.Windows) == 0 || slices.ContainsFunc(w.Windows, func(w Window) bool { _, open := w.at(now); return open })
}

// checkSkew: no kubelet is newer than an API server that it may reach, and none is more than three minors behind.
func (s *simulation) checkSkew(fail func(string, ...any), n *Node, step Step) {
	kubelet, err := validate.ParseVersion(step.State.Kubelet)
	if err != nil {
		return
	}
	for _, o := range s.in.Observed.Nodes {
		control, err := validate.ParseVersion(o.Has.ControlPlane)
		if err != nil || o.Name == n.Name || n.Has.ControlPlane != "" || o.Joining {
			continue // a control plane's own kubelet asks its own API server
		}
		if step.Parts.Kubelet && kubelet.Compare(control) > 0 {
			fail("kubelet of %s goes to %s while %s is at %s", n.Name, step.State.Kubelet, o.Name, o.Has.ControlPlane)
		}
	}
}

func (s *simulation) checkBudgets(fail func(string, ...any), plan *Plan, takes map[string]int) {
	o := &s.in.Observed
	for i := range s.in.Wanted.Groups {
		g := &s.in.Wanted.Groups[i]
		if takes[g.Name] == 0 {
			continue
		}
		available, taken := 0, 0
		for j := range o.Nodes {
			n := &o.Nodes[j]
			if n.Group != g.Name || !n.Ready || n.Cordoned || n.Hand != nil || n.Joining {
				continue
			}
			available++
			if slices.ContainsFunc(plan.Steps, func(st Step) bool { return st.Kind == StepTake && st.Node == n.Name }) {
				taken++
			}
		}
		least := g.Replicas - max(g.Rollout.MaxUnavailable, map[bool]int{true: 1}[g.Rollout.MaxSurge == 0])
		for _, st := range plan.Steps {
			if n := s.node(st.Node); st.Kind == StepTake && n.Replaced && n.Group == g.Name && n.Ready && !n.Cordoned && available-1 < g.Replicas {
				fail("%s leaves with %d of %d nodes left, and a spare was to come first", n.Name, available-1, g.Replicas)
			}
		}
		if taken > 0 && available-taken < least && !g.Roles.server() {
			fail("group %s has %d available nodes, %d are taken, and %d must stay", g.Name, available, taken, least)
		}
		if g.Roles.server() && taken > 1 {
			fail("%d servers of group %s are taken at once", taken, g.Name)
		}
	}
	for _, b := range o.Budgets {
		drains := 0
		for _, st := range plan.Steps {
			n := s.node(st.Node)
			if st.Kind == StepDrain && slices.ContainsFunc(n.Pods, func(p Pod) bool { return p.Budget == b.Name }) {
				drains++
			}
		}
		if drains > 0 && (b.Never || drains > b.Allowed) {
			fail("%d nodes are drained whose pods budget %s guards, which allows %d", drains, b.Name, b.Allowed)
		}
	}
}
