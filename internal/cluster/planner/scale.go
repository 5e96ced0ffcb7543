package planner

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/contract/validate"
)

// join adds spare machines to groups that lack some, and members to etcd.
func (p *planner) join() {
	used := map[string]bool{}
	for i := range p.Wanted.Groups {
		g := &p.Wanted.Groups[i]
		missing := g.Replicas - len(p.staying(g.Name))
		for _, s := range p.Observed.Spares {
			if missing <= 0 {
				break
			}
			if used[s.Name] || !slices.Contains(s.Groups, g.Name) {
				continue
			}
			used[s.Name] = true
			reason := fmt.Sprintf("group %s wants %d machines and has %d", g.Name, g.Replicas, len(p.staying(g.Name)))
			p.step(Step{Kind: StepAdd, Operation: OperationJoin, Node: s.Name, Group: g.Name, State: p.newcomer(g), Reason: reason})
			missing--
		}
		if missing > 0 {
			p.block(&Block{OperationJoin, "", fmt.Sprintf("group %s lacks %d machine(s), and no spare fits it", g.Name, missing),
				fmt.Sprintf("let machines that match its selector boot and be approved, or lower its replicas to %d", g.Replicas-missing)})
		}
	}
	p.addLearners()
}

// newcomer is what a new node of a group runs at first: no kubelet newer than the oldest API server, and the etcd of the
// others.
func (p *planner) newcomer(g *Group) State {
	s := g.State
	for _, n := range p.Observed.Nodes {
		if n.Joining {
			continue
		}
		if n.Has.ControlPlane != "" {
			s.Kubelet = older(s.Kubelet, n.Has.ControlPlane)
			if s.ControlPlane != "" {
				s.ControlPlane = older(s.ControlPlane, n.Has.ControlPlane)
			}
		}
		if s.Etcd != "" && n.Has.Etcd != "" {
			s.Etcd = older(s.Etcd, n.Has.Etcd)
		}
	}
	return s
}

// joining says what is on its way.
func (p *planner) joining() {
	for i := range p.Observed.Nodes {
		n := &p.Observed.Nodes[i]
		if !n.Joining || n.Hand != nil || n.Leaving != "" {
			continue
		}
		if at := n.Since.Add(patience); p.Now.Before(at) {
			p.again(at)
			p.wait(n.Name, "is being installed and joins")
		} else {
			p.block(&Block{OperationJoin, n.Name, fmt.Sprintf("has not become ready since %s", n.Since.UTC().Format(time.RFC3339)), "look at it: coldrack logs; or replace it"})
		}
	}
}

// surplus are the nodes that a group has too many of: broken ones first, then those that would have to be changed, then the
// last by name.
func (p *planner) surplus(g *Group) []*Node {
	nodes := p.staying(g.Name)
	extra := len(nodes) - g.Replicas
	if extra <= 0 {
		return nil
	}
	rank := func(n *Node) int {
		switch {
		case !n.Ready:
			return 0
		case p.differs(n).any():
			return 1
		}
		return 2
	}
	slices.SortFunc(nodes, func(a, b *Node) int {
		am, bm := p.member[a.Name], p.member[b.Name]
		lead := func(m *Member) int {
			if m != nil && m.Leader {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(lead(am), lead(bm)), strings.Compare(b.Name, a.Name))
	})
	return nodes[:extra]
}

// leave takes nodes that are to go.
func (p *planner) leave() {
	why := map[*Node]string{}
	var nodes []*Node
	for i := range p.Observed.Nodes {
		n := &p.Observed.Nodes[i]
		if n.Hand != nil {
			continue
		}
		if n.Leaving != "" {
			why[n] = n.Leaving
		} else if p.groups[n.Group] == nil {
			why[n] = fmt.Sprintf("there is no group %s any more", n.Group)
		} else {
			continue
		}
		nodes = append(nodes, n)
	}
	for i := range p.Wanted.Groups {
		g := &p.Wanted.Groups[i]
		for _, n := range p.surplus(g) {
			if n.Hand != nil {
				continue // it is changed first
			}
			nodes = append(nodes, n)
			why[n] = fmt.Sprintf("group %s wants %d machines", g.Name, g.Replicas)
		}
	}
	for _, n := range nodes {
		p.takeToLeave(n, why[n])
	}
}

func (p *planner) takeToLeave(n *Node, why string) {
	roles, g, dead := p.rolesOf(n), p.groups[n.Group], !n.Ready
	if !dead && !p.open() {
		p.wait(n.Name, "leaves in "+p.window())
		return
	}
	if roles.server() {
		if p.busy != "" && !p.inert(n) {
			p.wait(n.Name, "leaves after "+p.busy+" is done")
			return
		}
		if b := p.mayServerLeave(n, roles, dead); b != nil {
			p.block(b)
			return
		}
		if o := p.uninformed(n); o != "" {
			reason := fmt.Sprintf("its member of etcd leaves when the API server of %s has its present configuration, which names the members that stay", o)
			if p.stopped() {
				p.block(&Block{OperationLeave, n.Name, reason, "go on with the change that failed: coldrack cluster resume"})
			} else {
				p.wait(n.Name, reason)
			}
			return
		}
	}
	if !dead {
		if b := p.mayDrain(n, OperationLeave); b != nil {
			p.block(b)
			return
		}
	}
	if g != nil && n.Replaced && p.available(n) {
		if settled, soon := p.countSettled(g, n); settled < g.Replicas {
			reason := fmt.Sprintf("leaves when a spare has taken its place: %d of the %d nodes that group %s wants work without it", settled, g.Replicas, g.Name)
			if settled+soon >= g.Replicas || p.hasSpare(g.Name) {
				p.wait(n.Name, reason)
			} else {
				p.hold(n, OperationLeave, reason)
			}
			return
		}
	} else if g != nil && !roles.server() && p.available(n) {
		if left := p.countAvailable(g) - 1; left < g.Replicas-unavailable(g) {
			p.hold(n, OperationLeave, fmt.Sprintf("group %s would have %d available nodes and must have %d", g.Name, left, g.Replicas-unavailable(g)))
			return
		}
	}
	p.take(n, OperationLeave, Parts{}, why)
}

// mayServerLeave says why a machine with etcd or the control plane must not go now.
func (p *planner) mayServerLeave(n *Node, roles Roles, dead bool) *Block {
	if m := p.member[n.Name]; roles.Etcd && m != nil {
		reason, remedy := p.quorum.remove(m)
		if reason == "" && !dead && !m.Learner && p.quorum.voters-1 < p.wantedRole(func(r Roles) bool { return r.Etcd }) {
			reason, remedy = "etcd would have fewer members than wanted", "give its group a spare machine, which takes its place first"
		}
		if reason != "" {
			return &Block{OperationLeave, n.Name, reason, remedy}
		}
	}
	if !roles.ControlPlane {
		return nil
	}
	others := 0
	for i := range p.Observed.Nodes {
		if o := &p.Observed.Nodes[i]; o != n && p.rolesOf(o).ControlPlane && !p.going(o) && p.healthy(o) {
			others++
		}
	}
	wanted := p.wantedRole(func(r Roles) bool { return r.ControlPlane })
	switch {
	case others == 0:
		return &Block{OperationLeave, n.Name, "it is the last control plane that works", "add another one first; to end the cluster, delete the Cluster"}
	case !dead && others < wanted:
		return &Block{OperationLeave, n.Name, fmt.Sprintf("%d control planes would be left and %d are wanted", others, wanted), "give its group a spare machine, which takes its place first"}
	}
	return nil
}

// uninformed is a control plane whose configuration is not the present one, while a healthy member is to go: its API server may
// know of no other member. One with a member of its own asks that alone. Empty: there is none.
func (p *planner) uninformed(n *Node) string {
	if m := p.member[n.Name]; m == nil || m.Learner || !m.Healthy {
		return ""
	}
	for i := range p.Observed.Nodes {
		o := &p.Observed.Nodes[i]
		if r := p.rolesOf(o); o != n && r.ControlPlane && !r.Etcd && !p.going(o) && p.differs(o).Config {
			return o.Name
		}
	}
	return ""
}

// take proposes to take a node.
func (p *planner) take(n *Node, op Operation, parts Parts, why string) {
	if p.rolesOf(n).server() {
		p.busy = n.Name
	}
	p.taken[n.Name] = true
	p.step(Step{Kind: StepTake, Operation: op, Node: n.Name, Parts: parts, Reason: why})
}

// hold notes that a budget is used up: others on their way make room again, or else a person must.
func (p *planner) hold(n *Node, op Operation, reason string) {
	for _, o := range p.byGroup[n.Group] {
		if o.Hand != nil && o.Hand.Failed == "" || p.taken[o.Name] || o.Joining {
			p.wait(n.Name, reason)
			return
		}
	}
	p.block(&Block{op, n.Name, reason, "bring the group's broken nodes back, add a spare, or raise rollout.maxUnavailable"})
}

func (p *planner) countAvailable(g *Group) int {
	count := 0
	for _, n := range p.byGroup[g.Name] {
		if p.available(n) {
			count++
		}
	}
	return count
}

// countSettled counts the nodes of a group that work, and have worked for a while, without one of them, and those that only lack the time.
func (p *planner) countSettled(g *Group, without *Node) (settled, soon int) {
	for _, n := range p.byGroup[g.Name] {
		switch {
		case n == without || !p.available(n):
		case p.soaked(n):
			settled++
		case p.healthy(n):
			soon++
		}
	}
	return settled, soon
}

// unavailable is how many nodes of a group may be away.
func unavailable(g *Group) int {
	if g.Rollout.MaxUnavailable == 0 && g.Rollout.MaxSurge == 0 {
		return 1
	}
	return g.Rollout.MaxUnavailable
}

func older(a, b string) string {
	x, errA := validate.ParseVersion(a)
	y, errB := validate.ParseVersion(b)
	if errA == nil && errB == nil && y.Compare(x) < 0 {
		return b
	}
	return a
}

// sameMinor is true for versions that cannot be compared: nothing is known to be against it.
func sameMinor(a, b string) bool {
	x, errA := validate.ParseVersion(a)
	y, errB := validate.ParseVersion(b)
	return errA != nil || errB != nil || x.SameMinor(y)
}

func minorOf(version string) string {
	v, err := validate.ParseVersion(version)
	if err != nil {
		return version
	}
	return fmt.Sprintf("%d.%d", v.Major, v.Minor)
}
