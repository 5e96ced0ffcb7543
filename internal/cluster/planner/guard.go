package planner

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// mayStop says why servers on a node must not stop, or nil. outage is true when something does not answer meanwhile and that
// is allowed.
func (p *planner) mayStop(n *Node, t Touch, op Operation) (b *Block, outage bool) {
	if t.Etcd {
		if p.etcdStep {
			return &Block{op, n.Name, "another step changes etcd", "wait for it"}, false
		}
		out, reason, remedy := p.quorum.stop(p.member[n.Name], p.Wanted.AllowDowntime)
		if reason != "" {
			return &Block{op, n.Name, reason, remedy}, false
		}
		outage = out
	}
	if t.APIServer && n.APIServer && p.otherServers(n) == 0 {
		if !p.Wanted.AllowDowntime || p.wantedRole(func(r Roles) bool { return r.ControlPlane }) > 1 {
			return &Block{op, n.Name, "no other API server answers", "bring another one back, add a control plane, or for a cluster of one permit an outage: spec.upgrade.allowDowntime"}, false
		}
		outage = true
	}
	return nil, outage
}

// otherServers are the API servers that answer without a node's.
func (p *planner) otherServers(n *Node) int {
	count := 0
	for _, o := range p.index {
		if o != n && o.APIServer && !stopping(o) {
			count++
		}
	}
	return count
}

// stopping is true while a step runs that may stop what is on a node.
func stopping(n *Node) bool {
	return n.Hand != nil && slices.Contains([]Kind{StepChange, StepRollBack, StepRestart, StepPowerCycle, StepReinstall, StepRestartMember, StepRelease}, n.Hand.Running)
}

// wantedRole is how many nodes with a role are wanted.
func (p *planner) wantedRole(has func(Roles) bool) int {
	total := 0
	for _, g := range p.Wanted.Groups {
		if has(g.Roles) {
			total += g.Replicas
		}
	}
	return total
}

// aheadOf is a node whose API server is older than the kubelet that n is to run; empty when there is none. A kubelet must
// not be newer than an API server that it may reach. Control planes' own kubelets ask the API server beside them.
func (p *planner) aheadOf(n *Node, parts Parts) string {
	if !parts.Kubelet || p.rolesOf(n).ControlPlane {
		return ""
	}
	for i := range p.Observed.Nodes {
		o := &p.Observed.Nodes[i]
		if o.Has.ControlPlane != "" && older(p.want(n).Kubelet, o.Has.ControlPlane) != p.want(n).Kubelet {
			return o.Name
		}
	}
	return ""
}

// mayDrain says why the pods of a node would not let themselves be evicted, or nil. A node that is about to be taken waits
// for all that are taken and not drained yet; one in hand only for those that are being drained.
func (p *planner) mayDrain(n *Node, op Operation) *Block {
	held := map[string][]string{}
	for _, pod := range n.Pods {
		held[pod.Budget] = append(held[pod.Budget], pod.Name)
	}
	for _, name := range sortedKeys(held) {
		budget := p.budgets[name]
		if budget == nil {
			continue
		}
		pods := "pod " + strings.Join(held[name], ", ")
		if budget.Never {
			return &Block{op, n.Name, fmt.Sprintf("PodDisruptionBudget %s never allows to evict %s", name, pods),
				"let it allow a disruption (more replicas, or maxUnavailable: 1), or delete the pod yourself"}
		}
		drains := 0
		for _, other := range p.index {
			if other != n && p.drainsBefore(other, n) && slices.ContainsFunc(other.Pods, func(pod Pod) bool { return pod.Budget == name }) {
				drains++
			}
		}
		if budget.Allowed-drains < 1 {
			return &Block{op, n.Name, fmt.Sprintf("PodDisruptionBudget %s does not allow to evict %s now", name, pods), "let more of its pods become ready"}
		}
	}
	return nil
}

func (p *planner) drainsBefore(other, n *Node) bool {
	switch {
	case p.drained[other.Name], other.Hand != nil && other.Hand.Running == StepDrain:
		return true
	case n.Hand != nil:
		return false
	}
	return p.taken[other.Name] || other.Hand != nil && !other.Drained
}

// open is true inside a maintenance window. Outside, the time of the next one is noted.
func (p *planner) open() bool {
	next, is := Open(p.Wanted.Windows, p.Now)
	if !next.IsZero() {
		p.again(next)
		p.plan.Opens = next
	}
	return is
}

// Open says whether one of the windows is open, or else when the next one opens (zero: none does). Where there are no windows, it is
// always so.
func Open(windows []Window, now time.Time) (next time.Time, open bool) {
	for _, w := range windows {
		opens, is := w.at(now)
		if is {
			return time.Time{}, true
		}
		if !opens.IsZero() && (next.IsZero() || opens.Before(next)) {
			next = opens
		}
	}
	return next, len(windows) == 0
}

// window says which one something waits for, after open has said that none is open.
func (p *planner) window() string {
	if p.plan.Opens.IsZero() {
		return "the next maintenance window"
	}
	return "the next maintenance window, which opens " + p.plan.Opens.UTC().Format(time.RFC3339)
}

// at says whether a window is open, or else when it opens next.
func (w Window) at(now time.Time) (next time.Time, open bool) {
	now = now.In(cmp.Or(w.Zone, time.UTC))
	// clock is a time of a day from today on. A clock that is put forward or back makes days of 23 and 25 hours.
	clock := func(day int, since time.Duration) time.Time {
		return time.Date(now.Year(), now.Month(), now.Day()+day, 0, 0, int(since/time.Second), 0, now.Location())
	}
	back := int(max(w.Length, w.To)/(24*time.Hour)) + 1
	for day := -back; day <= 7; day++ {
		if len(w.Days) > 0 && !slices.Contains(w.Days, clock(day, 0).Weekday()) {
			continue
		}
		opens, closes := clock(day, w.From), clock(day, w.To)
		if w.Length > 0 {
			closes = opens.Add(w.Length)
		}
		if opens.After(now) {
			return opens.UTC(), false
		}
		if now.Before(closes) {
			return time.Time{}, true
		}
	}
	return time.Time{}, false
}

// leaderTo is the node that the leader of etcd moves to when n's member stops; empty when there is no other.
func (p *planner) leaderTo(n *Node) string {
	best := ""
	for _, m := range p.Observed.Members {
		o := p.index[m.Node]
		if m.Node == n.Name || m.Learner || !m.Healthy || o == nil || o.Hand != nil {
			continue
		}
		// A member of the new version stays leader until the end.
		if best == "" || !p.differs(o).Etcd && p.differs(p.index[best]).Etcd {
			best = m.Node
		}
	}
	return best
}

// addressTo is the node that the virtual IP moves to when n's API server stops; empty when there is no other.
func (p *planner) addressTo(n *Node) string {
	for i := range p.Observed.Nodes {
		o := &p.Observed.Nodes[i]
		if o != n && p.rolesOf(o).ControlPlane && o.APIServer && o.Hand == nil {
			return o.Name
		}
	}
	return ""
}

// moveAway proposes to move the leader of etcd and the virtual IP away from a node. It returns true when that has to happen
// first.
func (p *planner) moveAway(n *Node, t Touch, op Operation) bool {
	if m := p.member[n.Name]; t.Etcd && m != nil && m.Leader {
		if to := p.leaderTo(n); to != "" {
			p.step(Step{Kind: StepMoveLeader, Operation: op, Node: n.Name, To: to, Reason: "its member leads etcd and is about to stop"})
			return true
		}
	}
	if t.APIServer && n.VirtualIP {
		if to := p.addressTo(n); to != "" {
			p.step(Step{Kind: StepMoveVirtualIP, Operation: op, Node: n.Name, To: to, Reason: "it holds the virtual IP and its API server is about to stop",
				Disruption: "connections through the virtual IP are opened again"})
			return true
		}
	}
	return false
}
