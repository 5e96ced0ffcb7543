package planner

import (
	"fmt"
	"strings"
	"time"
)

const (
	// patience with a node in hand, or one that joins, until somebody has to look.
	patience            = 30 * time.Minute
	defaultDrainTimeout = 10 * time.Minute
)

// hands goes on with every node in hand.
func (p *planner) hands() {
	for i := range p.Observed.Nodes {
		n := &p.Observed.Nodes[i]
		if n.Hand == nil {
			continue
		}
		h := n.Hand
		switch {
		case h.Running != "":
			p.running(n)
		case p.Wanted.Abort && h.Operation != OperationLeave:
			p.abort(n)
		case p.Wanted.Abort && (p.member[n.Name] != nil) == p.rolesOf(n).Etcd && n.Ready:
			p.giveBack(n, "aborted; nothing was taken away yet")
		case h.Operation == OperationLeave || n.Leaving != "":
			p.leaveOn(n)
		case p.stopped() && h.Failed != "":
			p.failed(n)
		default:
			p.changeOn(n)
		}
	}
}

// stopped is true after a failure, until what is wanted is written anew.
func (p *planner) stopped() bool {
	return p.Observed.Failure != nil && p.Observed.Failure.Generation == p.Wanted.Generation
}

func (p *planner) running(n *Node) {
	h := n.Hand
	limit := defaultDrainTimeout
	if g := p.groups[n.Group]; g != nil && g.Rollout.DrainTimeout > 0 {
		limit = g.Rollout.DrainTimeout
	}
	if h.Running != StepDrain || p.Now.Sub(h.Since) < limit {
		p.wait(n.Name, fmt.Sprintf("%s runs", h.Running))
		return
	}
	var pods []string
	for _, pod := range n.Pods {
		pods = append(pods, fmt.Sprintf("%s (PodDisruptionBudget %s)", pod.Name, pod.Budget))
	}
	reason := fmt.Sprintf("it could not be drained within %s", limit)
	if len(pods) > 0 {
		reason += "; there are still " + strings.Join(pods, ", ")
	}
	p.block(&Block{h.Operation, n.Name, reason, "let the budgets allow it, delete the pods yourself, or abort"})
}

func (p *planner) giveBack(n *Node, reason string) {
	p.step(Step{Kind: StepGiveBack, Operation: n.Hand.Operation, Node: n.Name, Reason: reason})
}

// abort brings a node in hand back to what it was.
func (p *planner) abort(n *Node) {
	switch {
	case n.Former != nil && !n.Hand.RolledBack:
		p.rollBack(n, "aborted")
	case p.healthy(n):
		p.giveBack(n, "aborted; it is as it was")
	default:
		p.block(&Block{n.Hand.Operation, n.Name, "aborted, and it is not healthy", "look at it: coldrack logs; then resume, or replace it"})
	}
}

// failed decides about a node whose change failed.
func (p *planner) failed(n *Node) {
	g := p.groups[n.Group]
	switch {
	case g != nil && g.Rollout.RollBack && n.Former != nil && !n.Hand.RolledBack:
		p.rollBack(n, n.Hand.Failed)
	case n.Hand.RolledBack && p.healthy(n):
		p.giveBack(n, "it is back at what it was, and healthy")
	default:
		p.block(&Block{n.Hand.Operation, n.Name, "failed: " + n.Hand.Failed, "mend the cause and write the Cluster anew to try again, or abort to bring it back to what it was"})
	}
}

// rollBack proposes to bring a node back. The data of etcd that the next minor release has taken over cannot be read by the
// former one; while a member of the former one votes, it has not been.
func (p *planner) rollBack(n *Node, why string) {
	h, former := n.Hand, *n.Former
	t := p.touches(n, h.Parts)
	if h.Parts.Etcd && !sameMinor(former.Etcd, n.Has.Etcd) {
		old := false
		for _, m := range p.Observed.Members {
			if o := p.index[m.Node]; o != nil && o != n && !m.Learner && sameMinor(o.Has.Etcd, former.Etcd) {
				old = true
			}
		}
		if !old {
			p.block(&Block{h.Operation, n.Name, fmt.Sprintf("%s; but all members of etcd run %s, whose data %s cannot read", why, n.Has.Etcd, former.Etcd),
				"mend it as it is; or let etcd go back first: etcdctl downgrade enable " + minorOf(former.Etcd)})
			return
		}
	}
	b, outage := p.mayStop(n, t, h.Operation)
	if b != nil {
		p.block(b)
		return
	}
	p.etcdStep = p.etcdStep || t.Etcd
	p.step(Step{Kind: StepRollBack, Operation: h.Operation, Node: n.Name, Parts: h.Parts, State: former, Reason: why, Outage: outage, Disruption: p.disruption(n, t, outage)})
}

// changeOn goes on with a node that is in hand for a change.
func (p *planner) changeOn(n *Node) {
	h := n.Hand
	left := p.differs(n).and(h.Parts)
	if !left.any() || h.RolledBack {
		p.settle(n)
		return
	}
	if !n.Reachable {
		p.idle(n, "does not answer")
		return
	}
	if o := p.aheadOf(n, left); o != "" {
		p.wait(n.Name, "its kubelet must not be newer than the API server of "+o)
		return
	}
	g, m, t := p.groups[n.Group], p.member[n.Name], p.touches(n, left)
	if t.Drain && n.Ready && !n.Drained {
		p.drain(n)
		return
	}
	if left.System && g != nil && g.ReinstallSystem && m != nil {
		// Its data goes, and etcd must not count on it. What leads is moved first.
		if !p.moveAway(n, t, h.Operation) {
			p.removeMember(m, h.Operation, "the machine is installed anew, which loses the member's data")
		}
		return
	}
	if p.moveAway(n, t, h.Operation) {
		return
	}
	b, outage := p.mayStop(n, t, h.Operation)
	if b != nil {
		p.block(b)
		return
	}
	p.etcdStep = p.etcdStep || t.Etcd
	if left.Etcd && m != nil && m.LogBehind && !sameMinor(n.Has.Etcd, p.want(n).Etcd) {
		p.step(Step{Kind: StepRestartMember, Operation: h.Operation, Node: n.Name, Member: m.Name, Outage: outage, Disruption: p.disruption(n, Touch{Etcd: true}, outage),
			Reason: fmt.Sprintf("its log may still hold what etcd %s does not start on; it writes a snapshot when it restarts", p.want(n).Etcd)})
		return
	}
	p.step(Step{Kind: StepChange, Operation: h.Operation, Node: n.Name, Parts: left, State: p.want(n), Outage: outage, Disruption: p.disruption(n, t, outage),
		Estimate: estimateChange(left, g), Reason: reasonOf(n, left, p.want(n))})
}

func (p *planner) drain(n *Node) {
	if b := p.mayDrain(n, n.Hand.Operation); b != nil {
		p.block(b)
		return
	}
	p.drained[n.Name] = true
	p.step(Step{Kind: StepDrain, Operation: n.Hand.Operation, Node: n.Name, Reason: "its pods would not survive the next step", Disruption: "its pods start on other nodes"})
}

// settle waits until a changed node has been healthy for long enough, and gives it back.
func (p *planner) settle(n *Node) {
	switch {
	case p.soaked(n):
		p.giveBack(n, "it is as it is wanted, and healthy")
	case p.healthy(n):
		p.wait(n.Name, "must stay healthy for a while")
	default:
		p.idle(n, "is not healthy")
	}
}

// idle waits for a node in hand, and asks for a person when that takes long.
func (p *planner) idle(n *Node, state string) {
	at := n.Hand.Since
	if n.Since.After(at) {
		at = n.Since
	}
	if at = at.Add(patience); p.Now.Before(at) {
		p.again(at)
		p.wait(n.Name, state+" yet")
		return
	}
	p.block(&Block{n.Hand.Operation, n.Name, fmt.Sprintf("%s since %s", state, n.Since.UTC().Format(time.RFC3339)), fmt.Sprintf("look at it: coldrack logs %s, its console, its power; abort, or replace it", n.Name)})
}

// leaveOn goes on with a node that is in hand to leave.
func (p *planner) leaveOn(n *Node) {
	if n.Ready && !n.Drained {
		p.drain(n)
		return
	}
	if p.moveAway(n, Touch{Etcd: true, APIServer: true}, OperationLeave) {
		return
	}
	if m := p.member[n.Name]; m != nil {
		p.removeMember(m, OperationLeave, "its machine leaves the cluster")
		return
	}
	if n.APIServer && p.otherServers(n) == 0 {
		p.block(&Block{OperationLeave, n.Name, "no other API server answers", "bring another control plane back first"})
		return
	}
	g := p.groups[n.Group]
	reason := "nothing of the cluster is on it any more; the machine is wiped"
	if g != nil && g.KeepReleased {
		reason = "nothing of the cluster is on it any more; the machine stays as a spare"
	}
	p.step(Step{Kind: StepRelease, Operation: OperationLeave, Node: n.Name, Reason: reason})
}

// removeMember proposes to remove a member from etcd, or says why not.
func (p *planner) removeMember(m *Member, op Operation, why string) {
	if p.etcdStep {
		p.wait(m.Node, "another step changes etcd")
		return
	}
	if reason, remedy := p.quorum.remove(m); reason != "" {
		p.block(&Block{op, m.Node, "member " + m.Name + " cannot be removed: " + reason, remedy})
		return
	}
	p.etcdStep = true
	p.step(Step{Kind: StepRemoveMember, Operation: op, Node: m.Node, Member: m.Name, Reason: why})
}

// disruption is what people could notice of stopping what is on a node.
func (p *planner) disruption(n *Node, t Touch, outage bool) string {
	var texts []string
	if t.Etcd {
		if outage && p.quorum.healthy-1 < majority(p.quorum.voters) {
			texts = append(texts, "etcd does not answer until its member is back")
		} else {
			texts = append(texts, fmt.Sprintf("its member of etcd stops; %d others keep the majority of %d", p.quorum.healthy-1, p.quorum.voters))
		}
	}
	if t.APIServer {
		if others := p.otherServers(n); others == 0 {
			texts = append(texts, "the API does not answer until its server is back")
		} else {
			texts = append(texts, fmt.Sprintf("its API server stops; %d more answer", others))
		}
	}
	return strings.Join(texts, "; ")
}
