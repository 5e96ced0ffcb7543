package planner

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// roll takes nodes that differ from what is wanted: members of etcd singly, then control planes singly, then what else holds
// etcd, then the workers of all groups within their budgets.
func (p *planner) roll() {
	var etcd, control, holders []*Node
	var joins *Node // is no member yet, and came with the former version
	outdated := map[string][]*Node{}
	upgrade := false
	for i := range p.Observed.Nodes {
		n := &p.Observed.Nodes[i]
		parts := p.differs(n)
		if m := p.member[n.Name]; p.rolesOf(n).Etcd && (m == nil || m.Learner) && n.Hand == nil && !p.going(n) {
			if parts.Etcd {
				joins = n
			}
			continue // it becomes a member first
		}
		if p.going(n) || n.Joining && n.Hand == nil || !parts.any() && n.Hand == nil {
			continue
		}
		upgrade = upgrade || parts.Etcd || parts.ControlPlane || parts.Kubelet
		switch roles := p.rolesOf(n); {
		case roles.Etcd && (parts.Etcd || n.Hand != nil && n.Hand.Parts == Parts{Etcd: true}):
			etcd = append(etcd, n)
		case roles.ControlPlane:
			control = append(control, n)
		case roles.Etcd:
			holders = append(holders, n)
		default:
			outdated[n.Group] = append(outdated[n.Group], n)
		}
	}
	if len(etcd)+len(control)+len(holders)+len(outdated) == 0 {
		return
	}
	if joins != nil {
		p.wait(joins.Name, "joins etcd before others change")
		return
	}
	if p.stopped() {
		f := p.Observed.Failure
		p.block(&Block{OperationChange, f.Node, "no further node is changed since this one failed: " + f.Reason, "mend the cause and write the Cluster anew, or go back to what it was"})
		return
	}
	if upgrade && !p.begun() && !p.prepared() {
		return
	}
	for _, pass := range []struct {
		nodes []*Node
		only  Parts
	}{{etcd, Parts{Etcd: true}}, {control, all}, {holders, all}} {
		if len(pass.nodes) > 0 {
			p.rollServers(pass.nodes, pass.only)
			return
		}
	}
	for i := range p.Wanted.Groups {
		if g := &p.Wanted.Groups[i]; len(outdated[g.Name]) > 0 {
			p.rollWorkers(g, outdated[g.Name])
		}
	}
}

// all parts.
var all = Parts{true, true, true, true, true, true, true}

// begun is true when an upgrade is on its way: what has to come before it has come.
func (p *planner) begun() bool {
	for i := range p.Observed.Nodes {
		n := &p.Observed.Nodes[i]
		want := p.want(n)
		if n.Hand != nil && n.Hand.Operation == OperationUpgrade {
			return true
		}
		if !n.Joining && (want.Etcd != "" && n.Has.Etcd == want.Etcd && p.someDiffer(func(q Parts) bool { return q.Etcd }) ||
			want.ControlPlane != "" && n.Has.ControlPlane == want.ControlPlane) {
			return true
		}
	}
	return false
}

func (p *planner) someDiffer(is func(Parts) bool) bool {
	for i := range p.Observed.Nodes {
		if is(p.differs(&p.Observed.Nodes[i])) {
			return true
		}
	}
	return false
}

// prepared is true when an upgrade may begin. It proposes what is missing.
func (p *planner) prepared() bool {
	for i := range p.Observed.Preflight {
		p.block(&p.Observed.Preflight[i])
	}
	if len(p.Observed.Preflight) > 0 {
		return false
	}
	ready := p.pulled()
	if !p.open() {
		p.wait("", "the upgrade begins in "+p.window())
		return false
	}
	if !ready {
		return false
	}
	if age := p.Wanted.BackupAge; age > 0 && p.Now.Sub(p.Observed.Backup) > age {
		p.step(Step{Kind: StepBackup, Operation: OperationUpgrade, Reason: "an upgrade begins with a fresh snapshot: there is no other way back from another minor release of etcd"})
		return false
	}
	return true
}

// pulled is true when every node has what it is to run beside what it runs. Fetching interrupts nothing, and waits for no window. A node
// that works but does not answer could not fetch anything, so it stops the upgrade; one that is broken fetches when it is mended and its
// turn comes.
func (p *planner) pulled() bool {
	ready := true
	for i := range p.Observed.Nodes {
		n := &p.Observed.Nodes[i]
		parts, want := p.differs(n), p.want(n)
		if !p.Wanted.PullFirst || !(parts.Etcd || parts.ControlPlane || parts.Kubelet) || n.Pulled == want || p.going(n) {
			continue
		}
		if !n.Reachable {
			if n.Ready {
				ready = false
				p.block(&Block{OperationUpgrade, n.Name, "its agent does not answer, so it cannot fetch what the upgrade needs", "bring the agent back, or replace the machine"})
			}
			continue
		}
		ready = false
		p.step(Step{Kind: StepPull, Operation: OperationUpgrade, Node: n.Name, State: want, Reason: "every node has everything before the first one changes"})
	}
	return ready
}

// rollServers takes one node at a time: what is broken first, and who leads last.
func (p *planner) rollServers(nodes []*Node, only Parts) {
	if p.busy != "" {
		for _, n := range nodes {
			if n.Hand == nil {
				p.wait(n.Name, "changes after "+p.busy)
			}
		}
		return
	}
	slices.SortStableFunc(nodes, func(a, b *Node) int { return cmp.Compare(p.serverRank(a), p.serverRank(b)) })
	for _, n := range nodes {
		if !n.Reachable {
			p.block(&Block{p.differs(n).operation(), n.Name, "it does not answer, and what comes after it waits", "bring it back, or replace it"})
			continue
		}
		if p.mayTake(n, only) {
			p.takeToChange(n, only)
		}
		return
	}
}

func (p *planner) serverRank(n *Node) int {
	m := p.member[n.Name]
	switch {
	case !p.healthy(n):
		return 0
	case m != nil && m.Leader, m == nil && n.VirtualIP:
		return 2
	}
	return 1
}

func (p *planner) takeToChange(n *Node, only Parts) {
	parts := p.differs(n).and(only)
	p.take(n, parts.operation(), parts, reasonOf(n, parts, p.want(n)))
}

// mayTake says whether a node may be taken for a change, and notes why not.
func (p *planner) mayTake(n *Node, only Parts) bool {
	parts := p.differs(n).and(only)
	op, t, g := parts.operation(), p.touches(n, parts), p.groups[n.Group]
	if b := p.Observed.Lacking; b != nil && parts.Config {
		p.block(b)
		return false
	}
	if !p.open() {
		p.wait(n.Name, "changes in "+p.window())
		return false
	}
	if at := p.Observed.Returned[n.Group].Add(g.Rollout.PauseBetween); g.Rollout.PauseBetween > 0 && p.Now.Before(at) {
		p.again(at)
		p.wait(n.Name, "changes after the pause between two nodes")
		return false
	}
	if o := p.aheadOf(n, parts); o != "" {
		p.wait(n.Name, "its kubelet must not be newer than the API server of "+o)
		return false
	}
	m := p.member[n.Name]
	if parts.System && g.ReinstallSystem && m != nil {
		// The member goes first and comes back as a new one.
		if o := p.uninformed(n); o != "" {
			p.wait(n.Name, fmt.Sprintf("is installed anew when the API server of %s has its present configuration, which names the members that stay", o))
			return false
		}
		if reason, remedy := p.quorum.remove(m); reason != "" {
			p.block(&Block{op, n.Name, "installing it anew loses the data of its member of etcd: " + reason, remedy})
			return false
		}
		t.Etcd = false
	}
	if b, _ := p.mayStop(n, t, op); b != nil {
		p.block(b)
		return false
	}
	if t.Drain && n.Ready {
		if b := p.mayDrain(n, op); b != nil {
			p.block(b)
			return false
		}
	}
	return true
}

// inPlace are the parts that do not change what a node is made of.
var inPlace = Parts{Certificates: true, Reboot: true}

// replaceWorkers has spares take the places of workers that differ, as many at a time as the group's surge allows; one as long as none has
// shown that the change works. It returns those that are to be changed in place.
func (p *planner) replaceWorkers(g *Group, nodes []*Node) (rest []*Node) {
	var old []*Node
	for _, n := range nodes {
		if n.Hand == nil && !p.taken[n.Name] && (p.differs(n) != p.differs(n).and(inPlace) || unavailable(g) == 0) {
			old = append(old, n)
		} else {
			rest = append(rest, n)
		}
	}
	if len(old) == 0 {
		return rest
	}
	leaving, proven := 0, g.Rollout.SkipCanary
	for _, n := range p.byGroup[g.Name] {
		if p.going(n) {
			leaving++
		} else if n.Hand == nil && !p.differs(n).any() && p.soaked(n) {
			proven = true
		}
	}
	spares := len(p.staying(g.Name)) - g.Replicas // places that are free already take spares, too
	for _, s := range p.Observed.Spares {
		if slices.Contains(s.Groups, g.Name) {
			spares++
		}
	}
	limit := g.Rollout.MaxSurge
	if !proven {
		limit = 1
	}
	for _, n := range old {
		switch {
		case !p.open():
			p.wait(n.Name, "is replaced in "+p.window())
			return rest
		case leaving >= limit:
			p.wait(n.Name, fmt.Sprintf("is replaced after the %d that a spare takes the place of now", leaving))
			return rest
		case spares <= 0:
			p.block(&Block{p.differs(n).operation(), "", fmt.Sprintf("group %s is rolled by replacement (rollout.maxSurge), and no spare fits it: %d nodes wait", g.Name, len(old)),
				"let a machine that matches its selector boot and be approved, or set rollout.maxSurge to 0 to change the nodes in place"})
			return rest
		}
		if b := p.Observed.Lacking; b != nil && p.differs(n).Config {
			p.block(b)
			return rest
		}
		parts := p.differs(n)
		p.step(Step{Kind: StepReplace, Operation: parts.operation(), Node: n.Name, Group: g.Name, Parts: parts,
			Reason: "a spare takes its place when it has joined: " + reasonOf(n, parts, p.want(n))})
		leaving, spares = leaving+1, spares-1
	}
	return rest
}

// rollWorkers takes as many nodes of a group as its budget allows; one as long as none has shown that the change works.
func (p *planner) rollWorkers(g *Group, nodes []*Node) {
	if g.Rollout.MaxSurge > 0 {
		if nodes = p.replaceWorkers(g, nodes); len(nodes) == 0 {
			return
		}
	}
	limit, proven := max(1, unavailable(g)), g.Rollout.SkipCanary
	for _, n := range p.staying(g.Name) {
		if !n.Joining && n.Hand == nil && !p.differs(n).any() && p.soaked(n) {
			proven = true
		}
	}
	if !proven {
		limit = 1
	}
	inHand := 0
	for _, n := range p.byGroup[g.Name] {
		if n.Hand != nil || p.taken[n.Name] {
			inHand++
		}
	}
	available, floor := p.countAvailable(g), g.Replicas-unavailable(g)
	slices.SortStableFunc(nodes, func(a, b *Node) int {
		rank := func(n *Node) int {
			if p.available(n) {
				return 1
			}
			return 0
		}
		return cmp.Compare(rank(a), rank(b))
	})
	for _, n := range nodes {
		if n.Hand != nil || p.taken[n.Name] {
			continue
		}
		if !n.Reachable {
			p.block(&Block{p.differs(n).operation(), n.Name, "it does not answer", "bring it back, or replace it"})
			continue
		}
		cost := 0
		if p.available(n) {
			cost = 1
		}
		if inHand >= limit {
			p.wait(n.Name, fmt.Sprintf("changes when one of %d is back", inHand))
			return
		}
		if cost > 0 && available-cost < floor {
			p.hold(n, p.differs(n).operation(), fmt.Sprintf("group %s would have %d available nodes and must have %d", g.Name, available-cost, floor))
			return
		}
		if !p.mayTake(n, all) {
			continue
		}
		p.takeToChange(n, all)
		inHand, available = inHand+1, available-cost
	}
}

// reasonOf says what a change brings.
func reasonOf(n *Node, parts Parts, want State) string {
	var texts []string
	for _, v := range []struct {
		is               bool
		what, was, wants string
	}{{parts.Etcd, "etcd", n.Has.Etcd, want.Etcd}, {parts.ControlPlane, "the control plane", n.Has.ControlPlane, want.ControlPlane}, {parts.Kubelet, "the kubelet", n.Has.Kubelet, want.Kubelet}} {
		if v.is {
			texts = append(texts, fmt.Sprintf("%s goes from %s to %s", v.what, cmp.Or(v.was, "nothing"), cmp.Or(v.wants, "nothing")))
		}
	}
	if parts.System {
		texts = append(texts, "another operating system image is wanted")
	}
	if parts.Config {
		texts = append(texts, "its configuration changes")
	}
	if parts.Certificates {
		texts = append(texts, "its certificates are due, and what uses them restarts")
	}
	if parts.Reboot {
		texts = append(texts, "it is to be rebooted: "+n.WantsReboot)
	}
	return strings.Join(texts, "; ")
}
