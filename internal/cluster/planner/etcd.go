package planner

import (
	"fmt"
	"slices"
	"time"
)

const (
	// learnerPatience with a member that was added and is not connected.
	learnerPatience = 10 * time.Minute
	// learnerTries is how often a node's member is added.
	learnerTries = 2
)

// members mends the membership of etcd: learners get their vote or go, members without a machine go.
func (p *planner) members() {
	for i := range p.Observed.Members {
		m := &p.Observed.Members[i]
		n := p.index[m.Node]
		switch {
		case n == nil:
			p.removeMember(m, OperationRepair, "no machine of the cluster holds it")
		case m.Learner && n.Hand != nil && n.Hand.Operation == OperationLeave:
			// It goes with its node.
		case m.Learner:
			p.learner(n, m)
		case m.DataLost && !m.Healthy:
			p.removeMember(m, OperationRepair, "its machine was installed anew and its data is gone; it joins again")
		case !m.Healthy && n.Hand == nil && n.Leaving == "" && n.Ready:
			p.block(&Block{OperationRepair, n.Name, "member " + m.Name + " of etcd does not answer although its node is ready", "look at it: coldrack logs; or replace the machine"})
		}
	}
}

func (p *planner) learner(n *Node, m *Member) {
	reason, remedy := p.quorum.promote(m)
	switch {
	case reason == "" && (p.etcdStep || slices.ContainsFunc(p.plan.Steps, func(s Step) bool { return s.Node == n.Name })):
		p.wait(n.Name, "gets its vote after another step")
	case reason == "":
		p.etcdStep = true
		p.step(Step{Kind: StepPromote, Operation: OperationJoin, Node: n.Name, Member: m.Name, Reason: "it is connected and in sync"})
	case m.Connected && m.Healthy && !m.InSync:
		p.wait(n.Name, "its member copies the data of etcd")
	case !m.Connected || !m.Healthy:
		if at := m.Since.Add(learnerPatience); p.Now.Before(at) {
			p.again(at)
			p.wait(n.Name, "its member of etcd starts")
			return
		}
		p.removeMember(m, OperationRepair, fmt.Sprintf("it has no vote yet and is not connected %s after it was added; a dead member would cost the majority later", learnerPatience))
	default:
		p.block(&Block{OperationJoin, n.Name, "its member of etcd gets no vote: " + reason, remedy})
	}
}

// addLearners adds members of nodes that are to have one: one at a time, and only on the way to an odd number.
func (p *planner) addLearners() {
	var ready, coming []*Node
	leaving := false // a voter that goes keeps the number even for a while
	for i := range p.Observed.Nodes {
		n := &p.Observed.Nodes[i]
		if !p.rolesOf(n).Etcd {
			continue
		}
		if m := p.member[n.Name]; m != nil {
			leaving = leaving || !m.Learner && p.going(n)
			continue
		}
		switch {
		case p.going(n):
		case n.Hand != nil && (n.Hand.Operation == OperationRemedy || !n.Hand.RolledBack && p.differs(n).and(n.Hand.Parts).any()):
			coming = append(coming, n) // it is changed first
		case n.LearnerFailures >= learnerTries:
			p.block(&Block{OperationJoin, n.Name, fmt.Sprintf("its member of etcd was added %d times and never started", n.LearnerFailures), "look at it: coldrack logs; replace the machine"})
		case n.Reachable && (n.Ready || n.Joining):
			ready = append(ready, n)
		default:
			coming = append(coming, n)
		}
	}
	if len(ready) == 0 {
		return
	}
	n := ready[0]
	if reason, remedy := p.quorum.add(); reason != "" {
		if p.quorum.learners > 0 {
			p.wait(n.Name, reason)
		} else {
			p.block(&Block{OperationJoin, n.Name, "its member of etcd is not added: " + reason, remedy})
		}
		return
	}
	wanted := p.wantedRole(func(r Roles) bool { return r.Etcd })
	after := p.quorum.voters + 1
	if after%2 == 0 && after < wanted && len(ready) < 2 && !leaving {
		if len(coming) > 0 {
			p.wait(n.Name, fmt.Sprintf("joins etcd together with another one: %d members tolerate no more failures than %d", after, after-1))
		} else {
			p.block(&Block{OperationJoin, n.Name, fmt.Sprintf("etcd would have %d members, which tolerate no more failures than %d", after, after-1), "bring the machine for the next member, too"})
		}
		return
	}
	if p.etcdStep {
		p.wait(n.Name, "its member of etcd is added after another step")
		return
	}
	p.etcdStep = true
	p.step(Step{Kind: StepAddLearner, Operation: OperationJoin, Node: n.Name, Member: n.Name, Reason: "all members are healthy and none is new"})
}
