package planner

import (
	"maps"
	"slices"
	"time"
)

// estimates of steps on real machines; a change is estimated by what it does.
var estimates = map[Kind]time.Duration{
	StepBackup: time.Minute, StepPull: 2 * time.Minute, StepTake: time.Second, StepDrain: 2 * time.Minute,
	StepMoveLeader: 2 * time.Second, StepMoveVirtualIP: 3 * time.Second, StepRestartMember: 30 * time.Second,
	StepRollBack: 2 * time.Minute, StepGiveBack: time.Second, StepAdd: 8 * time.Minute,
	StepAddLearner: 30 * time.Second, StepPromote: time.Second, StepRemoveMember: 2 * time.Second,
	StepRelease: time.Minute, StepRestart: 4 * time.Minute, StepPowerCycle: 4 * time.Minute,
	StepReinstall: 10 * time.Minute, StepReplace: time.Second,
}

func estimateChange(parts Parts, g *Group) time.Duration {
	switch {
	case parts.System && g != nil && g.ReinstallSystem:
		return 10 * time.Minute
	case parts.System || parts.Reboot:
		return 4 * time.Minute
	}
	total := time.Duration(0)
	for _, part := range []struct {
		is   bool
		take time.Duration
	}{{parts.Etcd, 40 * time.Second}, {parts.ControlPlane, 90 * time.Second}, {parts.Kubelet, 40 * time.Second},
		{parts.Config, 30 * time.Second}, {parts.Certificates, 30 * time.Second}} {
		if part.is {
			total += part.take
		}
	}
	return total
}

// Timed is a step of a forecast.
type Timed struct {
	Step
	// After is how long after the beginning it is expected to begin. Steps with the same After run at the same time.
	After time.Duration `json:"after"`
}

// Forecast is what would be done, if every step succeeded and nothing else happened.
type Forecast struct {
	Steps []Timed `json:"steps,omitempty"`
	// Takes is how long all of it is expected to take, pauses and windows included.
	Takes time.Duration `json:"takes"`
	// Blocks are what it ends at, when it does not end in what is wanted.
	Blocks []Block `json:"blocks,omitempty"`
	// Waits are under way already, and cannot be foretold.
	Waits []Wait `json:"waits,omitempty"`
	// Refused is true when nothing would be done, because what is wanted can never be reached.
	Refused bool `json:"refused,omitempty"`
	// Cut is true when the forecast was ended because it was too long.
	Cut bool `json:"cut,omitempty"`
	// Opens is when the first maintenance window opens that something waits for.
	Opens time.Time `json:"opens,omitzero"`
}

// Foretell plays Next to its end. in is not changed. most is the largest number of steps; zero: 20,000.
func Foretell(in Input, most int) Forecast {
	if most == 0 {
		most = 20_000
	}
	in.Observed = in.Observed.Clone()
	begin := in.Now
	var f Forecast
	for {
		plan := Next(in)
		f.Takes = in.Now.Sub(begin)
		f.Blocks, f.Waits, f.Refused = plan.Blocks, plan.Waits, plan.Refused
		if f.Opens.IsZero() {
			f.Opens = plan.Opens
		}
		if len(plan.Steps) == 0 {
			if plan.Again.IsZero() || len(plan.Waits) == 0 {
				return f
			}
			in.Now = plan.Again
			continue
		}
		if len(f.Steps)+len(plan.Steps) > most {
			f.Cut = true
			return f
		}
		longest := time.Duration(0)
		for _, s := range plan.Steps {
			f.Steps = append(f.Steps, Timed{s, in.Now.Sub(begin)})
			longest = max(longest, s.Estimate)
		}
		in.Now = in.Now.Add(longest)
		for _, s := range plan.Steps {
			in.Observed.Apply(&in.Wanted, s, in.Now)
		}
	}
}

// Clone copies what Apply changes.
func (o Observed) Clone() Observed {
	o.Nodes, o.Members, o.Spares, o.Budgets = slices.Clone(o.Nodes), slices.Clone(o.Members), slices.Clone(o.Spares), slices.Clone(o.Budgets)
	o.Returned = maps.Clone(o.Returned)
	if o.Returned == nil {
		o.Returned = map[string]time.Time{}
	}
	for i := range o.Nodes {
		n := &o.Nodes[i]
		n.Pods, n.Remedies = slices.Clone(n.Pods), slices.Clone(n.Remedies)
		if n.Hand != nil {
			n.Hand = new(*n.Hand)
		}
		if n.Former != nil {
			n.Former = new(*n.Former)
		}
	}
	return o
}

// Apply is what a step does when it succeeds, at the time when it has ended.
func (o *Observed) Apply(w *Wanted, s Step, now time.Time) {
	i := slices.IndexFunc(o.Nodes, func(n Node) bool { return n.Name == s.Node })
	var n *Node
	if i >= 0 {
		n = &o.Nodes[i]
	}
	if n == nil && s.Kind != StepAdd && s.Kind != StepBackup && s.Kind != StepRemoveMember {
		return
	}
	switch s.Kind {
	case StepBackup:
		o.Backup = now
	case StepPull:
		n.Pulled = s.State
	case StepTake:
		n.Hand = &Hand{Operation: s.Operation, Parts: s.Parts, Since: now}
		n.Former, n.Cordoned = nil, true
	case StepDrain:
		n.Drained, n.Pods = true, nil
	case StepMoveLeader:
		o.lead(s.To)
	case StepMoveVirtualIP:
		for j := range o.Nodes {
			o.Nodes[j].VirtualIP = o.Nodes[j].Name == s.To
		}
	case StepRestartMember:
		for j := range o.Members {
			if o.Members[j].Name == s.Member {
				o.Members[j].LogBehind = false
			}
		}
	case StepChange:
		n.Former = new(n.Has)
		o.change(n, s.Parts, s.State, now)
	case StepRollBack:
		n.Has, n.Ready, n.Since = s.State, true, now
		n.Hand.RolledBack = true
	case StepGiveBack:
		n.Hand, n.Former, n.Cordoned, n.Drained = nil, nil, false, false
		o.Returned[n.Group] = now
	case StepAdd:
		o.Spares = slices.DeleteFunc(o.Spares, func(sp Spare) bool { return sp.Name == s.Node })
		o.Nodes = append(o.Nodes, Node{Name: s.Node, Group: s.Group, Has: s.State, Pulled: s.State, Ready: true, Since: now, Reachable: true, APIServer: s.State.ControlPlane != ""})
	case StepAddLearner:
		o.Members = append(o.Members, Member{Name: s.Member, Node: s.Node, Learner: true, Healthy: true, Connected: true, InSync: true, Since: now})
	case StepPromote:
		for j := range o.Members {
			if o.Members[j].Name == s.Member {
				o.Members[j].Learner = false
			}
		}
	case StepRemoveMember:
		o.remove(s.Member)
	case StepRelease:
		if g := w.group(n.Group); g != nil && g.KeepReleased && n.Reachable {
			o.Spares = append(o.Spares, Spare{Name: n.Name})
		}
		o.Nodes = slices.Delete(o.Nodes, i, i+1)
	case StepRestart, StepPowerCycle, StepReinstall:
		n.Remedies = append(n.Remedies, Remedy{s.Kind, now})
		n.Hand, n.Ready, n.Reachable, n.Since = nil, true, true, now
	case StepReplace:
		n.Leaving, n.Replaced = s.Reason, s.Operation != OperationRemedy
		if !n.Replaced {
			n.Remedies = append(n.Remedies, Remedy{s.Kind, now})
		}
	}
}

func (w *Wanted) group(name string) *Group {
	for i := range w.Groups {
		if w.Groups[i].Name == name {
			return &w.Groups[i]
		}
	}
	return nil
}

// change brings parts of a state to a node.
func (o *Observed) change(n *Node, parts Parts, to State, now time.Time) {
	if parts.Etcd {
		n.Has.Etcd = to.Etcd
	}
	if parts.ControlPlane {
		n.Has.ControlPlane = to.ControlPlane
	}
	if parts.Kubelet {
		n.Has.Kubelet = to.Kubelet
	}
	if parts.System {
		n.Has.System = to.System
	}
	if parts.Config {
		n.Has.Config = to.Config
	}
	if parts.Certificates {
		n.RenewAt = now.Add(240 * 24 * time.Hour)
	}
	if parts.Reboot || parts.System {
		n.WantsReboot = ""
	}
	if n.Ready {
		n.Since = now // it has to stay healthy from here
	}
}

// lead makes the member of a node the leader.
func (o *Observed) lead(node string) {
	for i := range o.Members {
		o.Members[i].Leader = o.Members[i].Node == node
	}
}

// remove a member; another one leads if it did.
func (o *Observed) remove(member string) {
	led := false
	o.Members = slices.DeleteFunc(o.Members, func(m Member) bool {
		led = led || m.Name == member && m.Leader
		return m.Name == member
	})
	for i := range o.Members {
		if m := &o.Members[i]; led && m.Healthy && !m.Learner {
			m.Leader = true
			return
		}
	}
}
