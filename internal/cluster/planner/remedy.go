package planner

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// broken are the nodes of a group that have not been ready for longer than its remediation waits.
func (p *planner) broken(g *Group) (broken []*Node, notReady int) {
	after := cmp.Or(g.Remediation.After, 5*time.Minute)
	for _, n := range p.byGroup[g.Name] {
		if n.Ready || p.going(n) || n.Hand != nil && n.Hand.Operation != OperationRemedy {
			continue
		}
		if n.Joining && len(n.Remedies) == 0 {
			continue // it has not been ready yet
		}
		if n.Rescue {
			p.block(&Block{OperationRemedy, n.Name, "is not ready, as it boots the live system", "end that when it is mended: coldrack rescue " + n.Name + " --end"})
			continue
		}
		notReady++
		if at := n.Since.Add(after); p.Now.Before(at) {
			p.again(at)
			continue
		}
		broken = append(broken, n)
	}
	return broken, notReady
}

// remedies brings broken nodes back, by ever stronger means.
func (p *planner) remedies() {
	for i := range p.Wanted.Groups {
		g := &p.Wanted.Groups[i]
		if !g.Remediation.Enabled {
			for _, n := range p.byGroup[g.Name] {
				if !n.Ready && !n.Joining && n.Hand == nil && n.Leaving == "" {
					p.block(&Block{OperationRemedy, n.Name, "is not ready", "bring it back, replace it, or switch remediation on for its group"})
				}
			}
			continue
		}
		broken, notReady := p.broken(g)
		most := cmp.Or(g.Remediation.MaxBroken, max(1, g.Replicas/3))
		if len(broken) > 0 && notReady > most {
			p.block(&Block{OperationRemedy, "", fmt.Sprintf("%d nodes of group %s are not ready, more than %d: that is rather the network or this server than the nodes", notReady, g.Name, most),
				"look at what they have in common; or raise remediation.maxUnhealthy"})
			continue
		}
		running := 0
		for _, n := range p.byGroup[g.Name] {
			if n.Hand != nil && n.Hand.Operation == OperationRemedy {
				running++
			}
		}
		for _, n := range broken {
			if n.Hand != nil || p.taken[n.Name] {
				continue
			}
			if running >= max(1, g.Remediation.Parallel) {
				p.wait(n.Name, "is mended after others of its group")
				continue
			}
			if p.remedy(g, n) {
				running++
			}
		}
	}
}

// nextRemedy is the mildest means that can be used and is stronger than the last one; false when there is none.
func (g *Group) nextRemedy(n *Node) (Kind, bool) {
	order := []Kind{StepRestart, StepPowerCycle, StepReinstall, StepReplace}
	last := -1
	if tried := len(n.Remedies); tried > 0 {
		last = slices.Index(order, n.Remedies[tried-1].Kind)
	}
	for _, means := range []struct {
		kind Kind
		can  bool
	}{
		{StepRestart, n.Reachable},
		{StepPowerCycle, n.Power},
		{StepReinstall, g.Remediation.Reinstall && (n.Reachable || n.Power)}, // something must boot it from the network
		{StepReplace, g.Remediation.Replace},
	} {
		if means.can && slices.Index(order, means.kind) > last {
			return means.kind, true
		}
	}
	return "", false
}

// remedy proposes the next means for a broken node. It returns true when it has.
func (p *planner) remedy(g *Group, n *Node) bool {
	tried := len(n.Remedies)
	kind, ok := g.nextRemedy(n)
	if !ok {
		reason := fmt.Sprintf("is not ready after %d remedies", tried)
		if tried == 0 {
			reason = "is not ready, its agent does not answer, and it has no BMC that could switch it off and on"
		}
		p.block(&Block{OperationRemedy, n.Name, reason, "look at the machine; or allow remediation to reinstall or replace it"})
		return false
	}
	if tried > 0 {
		wait := cmp.Or(g.Remediation.Backoff, 10*time.Minute) << min(tried-1, 10)
		if at := n.Remedies[tried-1].At.Add(wait); p.Now.Before(at) {
			p.again(at)
			p.wait(n.Name, fmt.Sprintf("may come back after the %s", n.Remedies[tried-1].Kind))
			return false
		}
	}
	roles, m := p.rolesOf(n), p.member[n.Name]
	if roles.server() && p.busy != "" && !p.inert(n) {
		p.wait(n.Name, "is mended after "+p.busy+" is done")
		return false
	}
	s := Step{Kind: kind, Operation: OperationRemedy, Node: n.Name, Reason: fmt.Sprintf("it has not been ready since %s", n.Since.UTC().Format(time.RFC3339))}
	switch kind {
	case StepReplace:
		if !p.hasSpare(g.Name) {
			p.block(&Block{OperationRemedy, n.Name, "no spare fits its group, so that it is not replaced", "let a machine that matches the group's selector boot and be approved"})
			return false
		}
		s.Reason += "; no milder means is left"
	case StepReinstall:
		if roles.ControlPlane && p.otherServers(n) == 0 {
			p.block(&Block{OperationRemedy, n.Name, "no other API server answers, so that it is not installed anew", "bring another one back first"})
			return false
		}
		if m != nil {
			// Its data would go, so that etcd must not count on it.
			before := len(p.plan.Steps)
			p.removeMember(m, OperationRemedy, "its machine is to be installed anew, which loses the member's data")
			if len(p.plan.Steps) > before {
				p.busy = n.Name
			}
			return false
		}
	default:
		b, outage := p.mayStop(n, Touch{Etcd: roles.Etcd, APIServer: roles.ControlPlane}, OperationRemedy)
		if b != nil {
			p.block(b)
			return false
		}
		s.Outage = outage
		p.etcdStep = p.etcdStep || roles.Etcd
	}
	if roles.server() {
		p.busy = n.Name
	}
	p.taken[n.Name] = true
	p.step(s)
	return true
}

func (p *planner) hasSpare(group string) bool {
	for _, s := range p.Observed.Spares {
		for _, g := range s.Groups {
			if g == group {
				return true
			}
		}
	}
	return false
}
