package planner

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// randomCluster is a cluster in some state, of which something else is wanted.
func randomCluster(r *rand.Rand) Input {
	in := Input{Now: epoch}
	old := State{Etcd: "3.6.16", ControlPlane: "v1.36.3", Kubelet: "v1.36.3", System: "sha256:a", Config: "a"}
	next := old
	if r.IntN(2) == 0 {
		next.Etcd, next.ControlPlane, next.Kubelet = "3.7.3", "v1.37.2", "v1.37.2"
	}
	if r.IntN(3) == 0 {
		next.Config = "b"
	}
	if r.IntN(4) == 0 {
		next.System = "sha256:b"
	}
	w := &in.Wanted
	w.BackupAge, w.PullFirst = time.Hour, r.IntN(2) == 0
	odd := []int{1, 3, 5}
	storm := r.IntN(4) == 0 // an update makes every node ask for a reboot at the same moment
	count := map[string]int{}
	add := func(name string, roles Roles, has, wants int) {
		g := Group{Name: name, Roles: roles, Replicas: wants, State: next, ReinstallSystem: roles.Worker && !roles.server() || r.IntN(2) == 0,
			ConfigTouches: Touch{Etcd: r.IntN(2) == 0, APIServer: r.IntN(2) == 0, Drain: r.IntN(3) == 0}, KeepReleased: r.IntN(2) == 0}
		g.Rollout = Rollout{MaxUnavailable: 1 + r.IntN(3), MaxSurge: r.IntN(3), HealthyFor: time.Duration(r.IntN(3)) * time.Minute, PauseBetween: time.Duration(r.IntN(2)) * time.Minute,
			SkipCanary: r.IntN(2) == 0, RollBack: r.IntN(2) == 0}
		if g.Rollout.MaxSurge > 0 && r.IntN(2) == 0 {
			g.Rollout.MaxUnavailable = 0
		}
		g.Remediation = Remediation{Enabled: r.IntN(2) == 0, Reinstall: r.IntN(2) == 0, Replace: r.IntN(2) == 0, After: time.Minute, Backoff: time.Minute, MaxBroken: 2}
		g.State = stateOf(roles, next)
		w.Groups = append(w.Groups, g)
		count[name] = has
		for i := range has {
			n := Node{Name: fmt.Sprintf("%s-%02d", name, i), Group: name, Has: stateOf(roles, old), Ready: true, Reachable: true, Since: epoch.Add(-time.Hour), Power: r.IntN(2) == 0}
			n.APIServer = roles.ControlPlane
			if r.IntN(10) == 0 {
				n.Leaving = "a person wants it replaced"
			}
			if storm || r.IntN(10) == 0 {
				n.WantsReboot = "/run/reboot-required"
			}
			if r.IntN(6) == 0 {
				n.RenewAt, n.RenewTouches = epoch.Add(-time.Minute), Touch{Etcd: r.IntN(2) == 0, APIServer: r.IntN(2) == 0}
			}
			if r.IntN(4) == 0 {
				n.Pods = []Pod{{"shop/db-0", "shop/db"}}
			}
			in.Observed.Nodes = append(in.Observed.Nodes, n)
			if roles.Etcd {
				in.Observed.Members = append(in.Observed.Members, Member{Name: n.Name, Node: n.Name, Healthy: true, Connected: true, InSync: true, Leader: len(in.Observed.Members) == 0,
					Since: epoch.Add(-time.Hour), LogBehind: r.IntN(3) == 0})
			}
		}
	}
	etcdHas, etcdWants := odd[r.IntN(3)], odd[r.IntN(3)]
	if r.IntN(2) == 0 {
		add("all", Roles{true, true, true}, etcdHas, etcdWants)
	} else {
		add("etcd", Roles{Etcd: true}, etcdHas, etcdWants)
		add("control", Roles{ControlPlane: true}, 1+r.IntN(3), 1+r.IntN(3))
	}
	for i := range r.IntN(3) {
		add(fmt.Sprint("workers", i), Roles{Worker: true}, r.IntN(7), r.IntN(7))
	}
	w.AllowDowntime = true
	for _, g := range w.Groups {
		if g.Roles.server() && g.Replicas > 1 && count[g.Name] > 1 {
			w.AllowDowntime = r.IntN(4) == 0
		}
	}
	// A member that is alone would lose its data.
	for i := range w.Groups {
		if g := &w.Groups[i]; g.Roles.Etcd && (g.Replicas == 1 || count[g.Name] == 1) {
			g.ReinstallSystem = false
		}
		if g := &w.Groups[i]; g.Roles.server() && (g.Replicas == 1 || count[g.Name] == 1) {
			w.AllowDowntime = true
		}
	}
	in.Observed.Budgets = []DisruptionBudget{{Name: "shop/db", Allowed: r.IntN(2)}}
	if r.IntN(4) == 0 {
		w.Windows = []Window{{From: 22 * time.Hour, Length: 6 * time.Hour}}
	}
	for i := range r.IntN(4) {
		var groups []string
		for _, g := range w.Groups {
			if r.IntN(2) == 0 {
				groups = append(groups, g.Name)
			}
		}
		in.Observed.Spares = append(in.Observed.Spares, Spare{Name: fmt.Sprintf("spare-%d", i), Groups: groups})
	}
	in.Observed.Returned = map[string]time.Time{}
	return in
}

func stateOf(roles Roles, s State) State {
	if !roles.Etcd {
		s.Etcd = ""
	}
	if !roles.ControlPlane {
		s.ControlPlane = ""
	}
	return s
}

// Whatever breaks and fails, no step costs the majority, the last API server or a budget. When a person has mended what a
// person must, the cluster ends as it is wanted.
func TestNothingIsLostAndEverythingEnds(t *testing.T) {
	cases := 1500
	if testing.Short() {
		cases = 300
	}
	begun, done, stated := map[Kind]int{}, 0, 0
	for seed := range cases {
		r := rand.New(rand.NewPCG(uint64(seed), 7))
		s := &simulation{in: randomCluster(r), rand: r, served: begun}
		ok := t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			s.elect()
			for range 60 {
				s.turn(t)
			}
			s.settleWhenIdle(t)
			plan := s.toTheEnd(t)
			if !plan.Done() {
				if len(plan.Blocks) == 0 {
					s.dump(t, &plan)
					t.Fatal("it ended without saying why")
				}
				stated++
				s.mustBeBlocked(t, &plan)
				return
			}
			done++
			s.mustBeWanted(t)
		})
		if !ok {
			t.FailNow()
		}
	}
	t.Logf("%d ended as wanted, %d in a stated block; steps begun: %v", done, stated, begun)
	if done < cases*9/10 {
		t.Errorf("only %d of %d ended as wanted", done, cases)
	}
	for kind := range estimates {
		if begun[kind] == 0 {
			t.Errorf("no case had the step %s: the test does not look at it", kind)
		}
	}
}

// settleWhenIdle lets what runs end, and mends everything.
func (s *simulation) settleWhenIdle(t *testing.T) {
	s.settle()
	for range 10 {
		s.turn(t)
	}
	for i := range s.in.Observed.Nodes {
		if n := &s.in.Observed.Nodes[i]; n.Hand == nil || n.Hand.Running == "" {
			s.mend(n)
		}
	}
}

func (s *simulation) toTheEnd(t *testing.T) Plan {
	for range 3000 {
		plan := s.turn(t)
		if plan.Done() && len(s.ends) == 0 || len(plan.Steps)+len(plan.Waits) == 0 && len(s.ends) == 0 && len(plan.Blocks) > 0 {
			return plan
		}
	}
	plan := Next(s.in)
	s.dump(t, &plan)
	t.Fatal("it does not end")
	return plan
}

func (s *simulation) dump(t *testing.T, plan *Plan, of ...string) {
	t.Helper()
	for _, line := range s.log[max(0, len(s.log)-40):] {
		t.Log(line)
	}
	for _, line := range s.log {
		if len(of) > 0 && strings.Contains(line.String(), of[0]) {
			t.Log(line)
		}
	}
	for _, n := range s.in.Observed.Nodes {
		t.Logf("node %s: has %+v ready %t joining %t hand %+v leaving %q", n.Name, n.Has, n.Ready, n.Joining, n.Hand, n.Leaving)
	}
	for _, g := range s.in.Wanted.Groups {
		t.Logf("group %s: replicas %d, %+v, %+v", g.Name, g.Replicas, g.State, g.Rollout)
	}
	t.Logf("members %+v", s.in.Observed.Members)
	for _, b := range plan.Blocks {
		t.Log("block: ", b.String())
	}
	for _, w := range plan.Waits {
		t.Log("wait: ", w.Node, " ", w.Reason)
	}
}

// mustBeBlocked names the only reasons for which a mended cluster may stand still.
func (s *simulation) mustBeBlocked(t *testing.T, plan *Plan) {
	for _, b := range plan.Blocks {
		if b.Reason == "" || b.Remedy == "" {
			t.Errorf("a block without reason or remedy: %+v", b)
		}
		text := b.String()
		known := false
		for _, reason := range []string{"loses the data of its member of etcd: it is the only voting member", "whose data", "is not healthy: bring"} {
			known = known || strings.Contains(text, reason)
		}
		if !known {
			s.dump(t, plan)
			t.Fatalf("a mended cluster stands still: %s", text)
		}
	}
}

func (s *simulation) mustBeWanted(t *testing.T) {
	p := newPlanner(&s.in)
	etcd := 0
	for i := range s.in.Wanted.Groups {
		g := &s.in.Wanted.Groups[i]
		if got := len(p.byGroup[g.Name]); got != g.Replicas {
			t.Errorf("group %s has %d nodes and wants %d", g.Name, got, g.Replicas)
		}
		if g.Roles.Etcd {
			etcd += g.Replicas
		}
	}
	for _, n := range s.in.Observed.Nodes {
		if p.differs(&n).any() || n.Hand != nil || n.Leaving != "" || n.Cordoned {
			s.dump(t, &Plan{}, n.Name)
			t.Errorf("node %+v is not as wanted", n)
		}
	}
	if len(s.in.Observed.Members) != etcd || p.quorum.learners > 0 {
		t.Errorf("etcd has %d members and wants %d", len(s.in.Observed.Members), etcd)
	}
}
