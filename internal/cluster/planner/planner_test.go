package planner

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	v36 = State{Etcd: "3.6.16", ControlPlane: "v1.36.3", Kubelet: "v1.36.3", Config: "a"}
	v37 = State{Etcd: "3.7.3", ControlPlane: "v1.37.2", Kubelet: "v1.37.2", Config: "a"}
)

// production is a healthy cluster of three groups that is as it is wanted.
func production(etcd, control, workers int) Input {
	in := Input{Now: epoch, Observed: Observed{Returned: map[string]time.Time{}, Backup: epoch}}
	for _, g := range []struct {
		name  string
		roles Roles
		count int
	}{{"etcd", Roles{Etcd: true}, etcd}, {"control", Roles{ControlPlane: true}, control}, {"worker", Roles{Worker: true}, workers}} {
		in.Wanted.Groups = append(in.Wanted.Groups, Group{Name: g.name, Roles: g.roles, Replicas: g.count, State: stateOf(g.roles, v36), Rollout: Rollout{MaxUnavailable: 1}})
		for i := range g.count {
			name := fmt.Sprintf("%s-%d", g.name, i+1)
			in.Observed.Nodes = append(in.Observed.Nodes, Node{Name: name, Group: g.name, Has: stateOf(g.roles, v36), Ready: true, Reachable: true,
				Since: epoch.Add(-time.Hour), APIServer: g.roles.ControlPlane, VirtualIP: g.roles.ControlPlane && i == 0})
			if g.roles.Etcd {
				in.Observed.Members = append(in.Observed.Members, Member{Name: name, Node: name, Healthy: true, Connected: true, InSync: true, Leader: i == 0, Since: epoch.Add(-time.Hour)})
			}
		}
	}
	return in
}

func (in *Input) node(name string) *Node {
	return &in.Observed.Nodes[slices.IndexFunc(in.Observed.Nodes, func(n Node) bool { return n.Name == name })]
}

func (in *Input) group(name string) *Group { return in.Wanted.group(name) }

func (in *Input) member(name string) *Member {
	return &in.Observed.Members[slices.IndexFunc(in.Observed.Members, func(m Member) bool { return m.Name == name })]
}

func (in *Input) die(names ...string) {
	for _, name := range names {
		n := in.node(name)
		n.Ready, n.Reachable, n.APIServer = false, false, false
		for i := range in.Observed.Members {
			if m := &in.Observed.Members[i]; m.Node == name {
				m.Healthy, m.Connected = false, false
			}
		}
	}
}

func (in *Input) upgrade() {
	for i := range in.Wanted.Groups {
		g := &in.Wanted.Groups[i]
		g.State = stateOf(g.Roles, v37)
	}
}

func (in *Input) spare(name string, groups ...string) {
	in.Observed.Spares = append(in.Observed.Spares, Spare{name, groups})
}

// replacing has the workers changed by replacement.
func (in *Input) replacing() {
	in.group("worker").State.Config = "b"
	in.group("worker").Rollout = Rollout{MaxSurge: 2}
}

// joined is a spare that takes the place of worker-1.
func (in *Input) joined(name string) *Node {
	in.node("worker-1").Leaving, in.node("worker-1").Replaced = "a spare takes its place", true
	in.Observed.Nodes = append(in.Observed.Nodes, Node{Name: name, Group: "worker", Has: in.group("worker").State, Ready: true, Reachable: true, Since: epoch.Add(-time.Hour)})
	return in.node(name)
}

func (in *Input) learner(node string, m Member) {
	in.Observed.Nodes = append(in.Observed.Nodes, Node{Name: node, Group: "etcd", Has: stateOf(Roles{Etcd: true}, v36), Ready: true, Reachable: true, Since: epoch.Add(-time.Hour)})
	m.Name, m.Node, m.Learner = node, node, true
	in.Observed.Members = append(in.Observed.Members, m)
}

func stepText(s Step) string {
	text := string(s.Kind)
	for _, more := range []string{s.Node, s.To} {
		if more != "" {
			text += " " + more
		}
	}
	if s.Outage {
		text += " !"
	}
	return text
}

func TestNext(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(in *Input)
		steps  string // in order, separated by commas
		// says is part of a block, or of a wait.
		says string
	}{
		{"nothing to do", func(*Input) {}, "", ""},

		{"workers grow by spares that fit", func(in *Input) {
			in.group("worker").Replicas = 5
			in.spare("a", "control")
			in.spare("b", "worker")
			in.spare("c", "worker", "etcd")
		}, "add b, add c", ""},
		{"without a spare it says so", func(in *Input) { in.group("worker").Replicas = 4 }, "", "lower its replicas to 3"},
		{"workers shrink from the end, one by one", func(in *Input) { in.group("worker").Replicas = 1 }, "take worker-3, take worker-2", ""},
		{"a broken worker goes first", func(in *Input) { in.group("worker").Replicas = 2; in.die("worker-1") }, "take worker-1", ""},
		{"a member leaves when API servers know those that stay", func(in *Input) {
			in.group("etcd").Replicas = 1
			in.group("control").State.Config = "others"
		}, "take control-2", "leaves when the API server of control-1 has its present configuration"},
		{"a dead one need not wait", func(in *Input) {
			in.group("etcd").Replicas = 1
			in.group("control").State.Config = "others"
			in.die("etcd-3")
		}, "take etcd-3", ""},
		{"what leaves is drained", func(in *Input) {
			in.group("worker").Replicas = 2
			in.node("worker-2").Hand = &Hand{Operation: OperationLeave}
		}, "drain worker-2", ""},
		{"and released when it is drained", func(in *Input) {
			in.group("worker").Replicas = 2
			in.node("worker-2").Hand, in.node("worker-2").Drained = &Hand{Operation: OperationLeave}, true
		}, "release worker-2", ""},
		{"a drain names pods and budgets", func(in *Input) {
			in.group("worker").Replicas = 2
			in.node("worker-3").Pods = []Pod{{"shop/db-0", "shop/db"}}
			in.Observed.Budgets = []DisruptionBudget{{Name: "shop/db", Never: true}}
		}, "", "PodDisruptionBudget shop/db never allows to evict pod shop/db-0"},
		{"a drain that lasts is a block", func(in *Input) {
			in.group("worker").Replicas = 2
			n := in.node("worker-3")
			n.Pods, n.Hand = []Pod{{"shop/db-0", "shop/db"}}, &Hand{Operation: OperationLeave, Running: StepDrain, Since: epoch.Add(-11 * time.Minute)}
		}, "", "could not be drained within 10m0s; there are still shop/db-0 (PodDisruptionBudget shop/db)"},

		{"the last control plane stays", func(in *Input) { in.node("control-2").Leaving = "asked"; in.die("control-1") }, "", "it is the last control plane that works"},
		{"a control plane goes when its replacement works", func(in *Input) { in.node("control-2").Leaving = "asked" }, "", "give its group a spare machine"},
		{"a dead control plane is replaced by a spare", func(in *Input) {
			in.die("control-2")
			in.node("control-2").Leaving = "asked"
			in.spare("s", "control")
		}, "take control-2, add s", ""},
		{"the virtual IP moves before its holder goes", func(in *Input) {
			in.group("control").Replicas = 1
			n := in.node("control-1")
			n.Hand, n.Drained = &Hand{Operation: OperationLeave}, true
		}, "move-virtual-ip control-1 control-2", ""},

		{"a dead member goes before its replacement comes", func(in *Input) {
			in.die("etcd-2")
			in.node("etcd-2").Hand = &Hand{Operation: OperationLeave}
		}, "remove-member etcd-2", ""},
		{"a dead member that nobody replaces is named", func(in *Input) { in.die("etcd-2") }, "", "etcd-2: is not ready; bring it back, replace it"},
		{"without a majority nothing is removed", func(in *Input) {
			in.die("etcd-2", "etcd-3")
			in.node("etcd-2").Leaving = "asked"
		}, "", "1 of 3 members of etcd are healthy, and a majority must agree to remove one; bring etcd-2 or etcd-3 back, or restore a backup"},
		{"a healthy member does not go while another is dead", func(in *Input) { in.die("etcd-3"); in.node("etcd-2").Leaving = "asked" }, "", "without this one 1 of 2 would be"},
		{"a member that has no machine is removed", func(in *Input) { in.Observed.Members[1].Node = "gone" }, "remove-member gone", ""},
		{"a machine that was installed anew joins again", func(in *Input) {
			m := in.member("etcd-2")
			m.DataLost, m.Healthy, m.Connected = true, false, false
		}, "remove-member etcd-2", ""},
		{"a living learner gets its vote", func(in *Input) {
			in.group("etcd").Replicas = 3
			in.Observed.Members = in.Observed.Members[:2]
			in.Observed.Nodes = slices.Delete(in.Observed.Nodes, 2, 3)
			in.learner("new", Member{Healthy: true, Connected: true, InSync: true})
		}, "promote new", ""},
		{"a dead learner never does", func(in *Input) {
			in.Observed.Members = in.Observed.Members[:1]
			in.Observed.Nodes = slices.Delete(in.Observed.Nodes, 1, 3)
			in.learner("new", Member{InSync: true, Since: epoch})
			in.spare("other", "etcd")
		}, "add other", "new: its member of etcd starts"},
		{"and is removed in the end", func(in *Input) {
			in.Observed.Members = in.Observed.Members[:1]
			in.Observed.Nodes = slices.Delete(in.Observed.Nodes, 1, 3)
			in.learner("new", Member{InSync: true, Since: epoch.Add(-time.Hour)})
			in.spare("other", "etcd")
		}, "remove-member new, add other", ""},
		{"no member is added while one is not healthy", func(in *Input) {
			in.die("etcd-3")
			in.group("etcd").Replicas = 5
			in.Observed.Nodes = append(in.Observed.Nodes, Node{Name: "x", Group: "etcd", Has: stateOf(Roles{Etcd: true}, v36), Ready: true, Reachable: true, Since: epoch},
				Node{Name: "y", Group: "etcd", Has: stateOf(Roles{Etcd: true}, v36), Ready: true, Reachable: true, Since: epoch})
		}, "", "2 of 3 members of etcd are healthy; a member is added only while all are"},
		{"from one member to three both machines must be there", func(in *Input) {
			*in = production(1, 2, 0)
			in.group("etcd").Replicas = 3
			in.Observed.Nodes = append(in.Observed.Nodes, Node{Name: "x", Group: "etcd", Has: stateOf(Roles{Etcd: true}, v36), Ready: true, Reachable: true, Since: epoch})
		}, "", "2 members, which tolerate no more failures than 1"},

		{"an upgrade begins with a snapshot", func(in *Input) { in.upgrade(); in.Wanted.BackupAge = time.Hour; in.Observed.Backup = time.Time{} }, "backup", ""},
		{"what the preflight found stops it", func(in *Input) {
			in.upgrade()
			in.Observed.Preflight = []Block{{OperationUpgrade, "", "an old API version is in use", "change it"}}
		}, "", "an old API version is in use"},
		{"then everything is pulled to all nodes", func(in *Input) {
			*in = production(1, 1, 1)
			in.upgrade()
			in.Wanted.PullFirst = true
		}, "pull etcd-1, pull control-1, pull worker-1", ""},
		{"then a follower of etcd is taken", func(in *Input) { in.upgrade() }, "take etcd-2", ""},
		{"its log is written out first where the next minor could not read it", func(in *Input) {
			in.upgrade()
			in.node("etcd-2").Hand = &Hand{Operation: OperationUpgrade, Parts: Parts{Etcd: true}}
			in.member("etcd-2").LogBehind = true
		}, "restart-member etcd-2", ""},
		{"the leader is last, and hands over", func(in *Input) {
			in.upgrade()
			in.node("etcd-2").Has.Etcd, in.node("etcd-3").Has.Etcd = "3.7.3", "3.7.3"
			in.node("etcd-1").Hand = &Hand{Operation: OperationUpgrade, Parts: Parts{Etcd: true}}
		}, "move-leader etcd-1 etcd-2", ""},
		{"with a dead member no other stops", func(in *Input) { in.upgrade(); in.die("etcd-3") }, "", "2 of 3 members of etcd are healthy, and without this one fewer than the majority of 2"},
		{"the only member stops only when that is allowed", func(in *Input) { *in = production(1, 1, 0); in.upgrade() }, "", "spec.upgrade.allowDowntime"},
		{"and then says that it is an outage", func(in *Input) {
			*in = production(1, 1, 0)
			in.upgrade()
			in.Wanted.AllowDowntime = true
			in.node("etcd-1").Hand = &Hand{Operation: OperationUpgrade, Parts: Parts{Etcd: true}}
		}, "change etcd-1 !", ""},
		{"control planes come after all members", func(in *Input) {
			in.upgrade()
			for _, name := range []string{"etcd-1", "etcd-2", "etcd-3"} {
				in.node(name).Has.Etcd = "3.7.3"
			}
		}, "take control-2", ""},
		{"workers come after all servers, one to try", func(in *Input) {
			in.upgrade()
			in.group("worker").Rollout.MaxUnavailable = 3
			for i := range in.Observed.Nodes[:5] {
				in.Observed.Nodes[i].Has = in.want(&in.Observed.Nodes[i])
			}
		}, "take worker-1", "changes when one of 1 is back"},
		{"then as many as the budget allows", func(in *Input) {
			*in = production(3, 2, 5)
			in.upgrade()
			in.group("worker").Rollout.MaxUnavailable = 2
			for i := range in.Observed.Nodes[:6] {
				in.Observed.Nodes[i].Has = in.want(&in.Observed.Nodes[i])
			}
		}, "take worker-2, take worker-3", ""},
		{"a broken node uses up the budget", func(in *Input) {
			in.group("worker").State.Config = "b"
			in.die("worker-3")
		}, "", "group worker would have 1 available nodes and must have 2"},
		{"a kubelet is not newer than an API server that leaves", func(in *Input) {
			in.upgrade()
			for i := range in.Observed.Nodes[:5] {
				in.Observed.Nodes[i].Has = in.want(&in.Observed.Nodes[i])
			}
			in.node("control-2").Has.ControlPlane, in.node("control-2").Leaving = "v1.36.3", "asked"
			in.group("control").Replicas = 1
		}, "take control-2", "worker-1: its kubelet must not be newer than the API server of control-2"},
		{"with a surge a spare gets the place of a node", func(in *Input) {
			in.replacing()
			in.spare("s", "worker")
		}, "replace worker-1", "is replaced after the 1 that a spare takes the place of now"},
		{"not without a spare", func(in *Input) { in.replacing() }, "",
			"group worker is rolled by replacement (rollout.maxSurge), and no spare fits it: 3 nodes wait; let a machine that matches its selector boot and be approved, or set rollout.maxSurge to 0"},
		{"and not with one that fills a free place", func(in *Input) {
			in.replacing()
			in.group("worker").Replicas = 4
			in.spare("s", "worker")
		}, "add s", "no spare fits it"},
		{"the spare joins while the node works", func(in *Input) {
			in.replacing()
			in.spare("s", "worker")
			in.node("worker-1").Leaving, in.node("worker-1").Replaced = "a spare takes its place", true
		}, "add s", "worker-1: leaves when a spare has taken its place: 2 of the 3 nodes that group worker wants work without it"},
		{"the node does not leave before it has joined", func(in *Input) {
			in.replacing()
			in.joined("s").Joining = true
		}, "", "2 of the 3 nodes that group worker wants work without it"},
		{"nor before it has been healthy for a while", func(in *Input) {
			in.replacing()
			in.group("worker").Rollout.HealthyFor = time.Minute
			in.joined("s").Since = epoch.Add(-time.Second)
		}, "", "2 of the 3 nodes that group worker wants work without it"},
		{"then it leaves", func(in *Input) {
			in.replacing()
			in.joined("s")
		}, "take worker-1", ""},
		{"and once that has worked, as many as the surge go at a time", func(in *Input) {
			in.replacing()
			in.joined("s").Group = "worker"
			in.node("worker-1").Leaving, in.node("worker-1").Replaced = "", false
			in.node("worker-1").Has.Config = "b"
			in.group("worker").Replicas = 4
			in.spare("t", "worker")
			in.spare("u", "worker")
			in.spare("v", "worker")
		}, "replace worker-2, replace worker-3", ""},
		{"in windows only", func(in *Input) {
			in.replacing()
			in.spare("s", "worker")
			in.Wanted.Windows = []Window{{Days: []time.Weekday{time.Sunday}, From: time.Hour, Length: time.Hour}}
		}, "", "worker-1: is replaced in the next maintenance window"},
		{"a reboot needs no spare", func(in *Input) {
			in.group("worker").Rollout = Rollout{MaxSurge: 1, MaxUnavailable: 1}
			in.node("worker-1").WantsReboot = "/run/reboot-required"
		}, "take worker-1", ""},
		{"outside of the windows nothing is taken", func(in *Input) {
			in.group("worker").State.Config = "b"
			in.Wanted.Windows = []Window{{Days: []time.Weekday{time.Sunday}, From: time.Hour, Length: time.Hour}}
		}, "", "changes in the next maintenance window, which opens "},
		{"what is in hand is finished also outside", func(in *Input) {
			in.group("worker").State.Config = "b"
			in.Wanted.Windows = []Window{{Days: []time.Weekday{time.Sunday}, From: time.Hour, Length: time.Hour}}
			in.node("worker-1").Hand = &Hand{Operation: OperationChange, Parts: Parts{Config: true}}
		}, "change worker-1", ""},
		{"between two nodes there is a pause", func(in *Input) {
			in.group("worker").State.Config = "b"
			in.group("worker").Rollout.PauseBetween = time.Minute
			in.Observed.Returned["worker"] = epoch.Add(-time.Second)
		}, "", "after the pause between two nodes"},
		{"healthy must hold for a while", func(in *Input) {
			in.group("worker").Rollout.HealthyFor = time.Minute
			n := in.node("worker-1")
			n.Hand, n.Since = &Hand{Operation: OperationChange, Parts: Parts{Config: true}}, epoch.Add(-time.Second)
		}, "", "must stay healthy for a while"},
		{"a node that failed stops all others", func(in *Input) {
			in.group("worker").State.Config = "b"
			in.Observed.Failure = &Failure{Node: "worker-1", Reason: "the kubelet does not start"}
			in.node("worker-1").Hand = &Hand{Operation: OperationChange, Parts: Parts{Config: true}, Failed: "the kubelet does not start"}
		}, "", "no further node is changed since this one failed"},
		{"and goes back by itself where that is wanted", func(in *Input) {
			in.group("worker").State.Config = "b"
			in.group("worker").Rollout.RollBack = true
			in.Observed.Failure = &Failure{Node: "worker-1", Reason: "the kubelet does not start"}
			n := in.node("worker-1")
			n.Former, n.Hand = new(n.Has), &Hand{Operation: OperationChange, Parts: Parts{Config: true}, Failed: "the kubelet does not start"}
		}, "roll-back worker-1", ""},
		{"until what is wanted is written anew", func(in *Input) {
			in.group("worker").State.Config = "b"
			in.Observed.Failure, in.Wanted.Generation = &Failure{Node: "worker-1", Reason: "x", Generation: 1}, 2
			in.node("worker-1").Hand = &Hand{Operation: OperationChange, Parts: Parts{Config: true}, Failed: "x"}
		}, "change worker-1", ""},
		{"an abort brings the node in hand back", func(in *Input) {
			in.group("worker").State.Config, in.Wanted.Abort = "b", true
			n := in.node("worker-1")
			n.Former, n.Hand = new(n.Has), &Hand{Operation: OperationChange, Parts: Parts{Config: true}}
		}, "roll-back worker-1", ""},
		{"etcd goes back while a member of the former release votes", func(in *Input) {
			in.upgrade()
			in.Wanted.Abort = true
			n := in.node("etcd-2")
			n.Former, n.Hand, n.Has.Etcd = new(n.Has), &Hand{Operation: OperationUpgrade, Parts: Parts{Etcd: true}}, "3.7.3"
		}, "roll-back etcd-2", ""},
		{"and not when none does", func(in *Input) {
			in.upgrade()
			in.Wanted.Abort = true
			n := in.node("etcd-2")
			n.Former, n.Hand = new(n.Has), &Hand{Operation: OperationUpgrade, Parts: Parts{Etcd: true}}
			for _, name := range []string{"etcd-1", "etcd-2", "etcd-3"} {
				in.node(name).Has.Etcd = "3.7.3"
			}
		}, "", "etcdctl downgrade enable 3.6"},
		{"a paused cluster stands still", func(in *Input) { in.upgrade(); in.Wanted.Paused = true }, "", "resume it"},
		{"a node that does not come back from its reboot needs a person", func(in *Input) {
			n := in.node("worker-1")
			n.Hand = &Hand{Operation: OperationReboot, Since: epoch.Add(-time.Hour)}
			in.die("worker-1")
			n.Since = epoch.Add(-31 * time.Minute)
		}, "", "coldrack logs worker-1"},

		{"certificates that are due are renewed on one server at a time", func(in *Input) {
			in.node("control-1").RenewAt, in.node("control-2").RenewAt = epoch, epoch
		}, "take control-2", ""},
		{"also where nothing of etcd and API servers restarts for it, on the only one", func(in *Input) {
			*in = production(1, 1, 0)
			in.node("control-1").RenewAt = epoch
		}, "take control-1", ""},
		{"but not where the only API server would restart", func(in *Input) {
			*in = production(1, 1, 0)
			in.node("control-1").RenewAt, in.node("control-1").RenewTouches = epoch, Touch{APIServer: true}
		}, "", "no other API server answers"},
		{"a node that asks for a reboot gets its turn", func(in *Input) { in.node("worker-2").WantsReboot = "/run/reboot-required" }, "take worker-2", ""},
		{"an installation that loses etcd's data removes the member first", func(in *Input) {
			in.group("etcd").State.System, in.group("etcd").ReinstallSystem = "sha256:b", true
			n := in.node("etcd-2")
			n.Hand, n.Drained = &Hand{Operation: OperationSystem, Parts: Parts{System: true}}, true
		}, "remove-member etcd-2", ""},
		{"and never the only one", func(in *Input) {
			*in = production(1, 1, 0)
			in.group("etcd").State.System, in.group("etcd").ReinstallSystem, in.Wanted.AllowDowntime = "sha256:b", true, true
		}, "", "loses the data of its member of etcd: it is the only voting member"},

		{"a broken node is rebooted by its agent", func(in *Input) {
			in.group("worker").Remediation.Enabled = true
			in.die("worker-2")
			in.node("worker-2").Reachable, in.node("worker-2").Power = true, true
		}, "restart worker-2", ""},
		{"one whose agent is silent is switched off and on", func(in *Input) {
			in.group("worker").Remediation.Enabled = true
			in.die("worker-2")
			in.node("worker-2").Power = true
		}, "power-cycle worker-2", ""},
		{"one that boots the live system is left to the person who asked for that", func(in *Input) {
			in.group("worker").Remediation = Remediation{Enabled: true, Reinstall: true, Replace: true}
			in.die("worker-2")
			in.node("worker-2").Power, in.node("worker-2").Rescue = true, true
		}, "", "worker-2: is not ready, as it boots the live system"},
		{"one that nothing reaches is left to a person", func(in *Input) {
			in.group("worker").Remediation = Remediation{Enabled: true, Reinstall: true}
			in.die("worker-2")
		}, "", "worker-2: is not ready, its agent does not answer, and it has no BMC"},
		{"a milder means does not follow a stronger one", func(in *Input) {
			in.group("worker").Remediation.Enabled = true
			in.die("worker-2")
			in.node("worker-2").Reachable, in.node("worker-2").Power = true, true
			in.node("worker-2").Remedies = []Remedy{{StepPowerCycle, epoch.Add(-time.Hour)}}
		}, "", "worker-2: is not ready after 1 remedies"},
		{"then switched off and on", func(in *Input) {
			in.group("worker").Remediation.Enabled = true
			in.die("worker-2")
			in.node("worker-2").Power, in.node("worker-2").Remedies = true, []Remedy{{StepRestart, epoch.Add(-time.Hour)}}
		}, "power-cycle worker-2", ""},
		{"but not before the last remedy had its time", func(in *Input) {
			in.group("worker").Remediation.Enabled = true
			in.die("worker-2")
			in.node("worker-2").Power, in.node("worker-2").Remedies = true, []Remedy{{StepRestart, epoch.Add(-time.Minute)}}
		}, "", "may come back after the restart"},
		{"then replaced", func(in *Input) {
			in.group("worker").Remediation = Remediation{Enabled: true, Replace: true}
			in.die("worker-2")
			in.node("worker-2").Remedies = []Remedy{{StepRestart, epoch.Add(-time.Hour)}}
			in.spare("s", "worker")
		}, "replace worker-2", ""},
		{"when too many are broken it is left alone", func(in *Input) { in.group("worker").Remediation.Enabled = true; in.die("worker-1", "worker-2") }, "", "that is rather the network"},
		{"one that has a healthy member of etcd and would cost the majority is not rebooted", func(in *Input) {
			in.group("etcd").Remediation.Enabled = true
			in.die("etcd-3")
			in.member("etcd-2").Healthy, in.member("etcd-1").Healthy = true, true
			in.node("etcd-2").Ready = false
			in.group("etcd").Remediation.MaxBroken = 3
			in.node("etcd-2").Reachable = true
			in.node("etcd-3").Remedies = []Remedy{{StepRestart, epoch.Add(-time.Minute)}}
		}, "", "etcd-2: 2 of 3 members of etcd are healthy, and without this one"},
		{"a member is removed before its machine is installed anew", func(in *Input) {
			in.group("etcd").Remediation = Remediation{Enabled: true, Reinstall: true}
			in.die("etcd-3")
			in.node("etcd-3").Reachable = true
			in.node("etcd-3").Remedies = []Remedy{{StepRestart, epoch.Add(-time.Hour)}}
		}, "remove-member etcd-3", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := production(3, 2, 3)
			test.change(&in)
			plan := Next(in)
			var steps, texts []string
			for _, s := range plan.Steps {
				steps = append(steps, stepText(s))
				if s.Reason == "" || s.Estimate == 0 || s.Group == "" && s.Node != "" && s.Kind != StepRemoveMember {
					t.Errorf("step without reason, estimate or group: %+v", s)
				}
			}
			for _, b := range plan.Blocks {
				texts = append(texts, b.String())
				if b.Reason == "" || b.Remedy == "" {
					t.Errorf("a block must say why, and what would help: %+v", b)
				}
			}
			for _, w := range plan.Waits {
				texts = append(texts, w.Node+": "+w.Reason)
			}
			if got := strings.Join(steps, ", "); got != test.steps {
				t.Errorf("steps %q, want %q", got, test.steps)
			}
			if text := strings.Join(texts, "\n"); !strings.Contains(text, test.says) {
				t.Errorf("says\n%s\nwithout %q", text, test.says)
			}
			if test.steps == "" && test.says == "" && !plan.Done() {
				t.Errorf("not done: %+v", plan)
			}
		})
	}
}

// want is what a node is to run.
func (in *Input) want(n *Node) State { return in.group(n.Group).State }

func TestRefuse(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(in *Input)
		want   string
	}{
		{"as it is", func(*Input) {}, ""},
		{"the next minor", (*Input).upgrade, ""},
		{"back to the former minor", func(in *Input) {
			for i := range in.Observed.Nodes {
				in.Observed.Nodes[i].Has = stateOf(in.group(in.Observed.Nodes[i].Group).Roles, v37)
			}
		}, "Kubernetes from v1.37.2 to v1.36.3 is a downgrade across minor releases"},
		{"back while one node is ahead", func(in *Input) { in.node("control-1").Has.ControlPlane = "v1.37.2" }, "is a downgrade across minor releases"},
		{"an older patch release", func(in *Input) { in.group("worker").State.Kubelet = "v1.36.1" }, ""},
		{"a minor skipped", func(in *Input) { in.group("control").State.ControlPlane = "v1.38.0" }, "skips a minor release"},
		{"a minor of etcd skipped", func(in *Input) { in.group("etcd").State.Etcd = "3.8.0" }, "etcd from 3.6.16 to 3.8.0 skips a minor release"},
		{"the next upgrade before the last one has ended", func(in *Input) {
			in.group("control").State.ControlPlane = "v1.38.0"
			in.node("control-1").Has.ControlPlane = "v1.37.2"
		}, "wait until every machine runs it"},
		{"an even number of members", func(in *Input) { in.group("etcd").Replicas = 4 }, "want 3 or 5, or set spec.etcd.allowEvenMembers"},
		{"an even number that is meant", func(in *Input) { in.group("etcd").Replicas, in.Wanted.AllowEvenMembers = 4, true }, ""},
		{"no etcd", func(in *Input) { in.group("etcd").Replicas = 0 }, "no machine with etcd would be left"},
		{"no control plane", func(in *Input) { in.group("control").Replicas = 0 }, "no control plane would be left"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := production(3, 2, 3)
			test.change(&in)
			var texts []string
			for _, b := range Refuse(in) {
				texts = append(texts, b.String())
			}
			if text := strings.Join(texts, "\n"); !strings.Contains(text, test.want) || (text == "") != (test.want == "") {
				t.Errorf("refused: %q, want %q", text, test.want)
			}
			if plan := Next(in); plan.Refused != (test.want != "") || plan.Refused && len(plan.Steps) > 0 {
				t.Errorf("refused %t with steps %v", plan.Refused, plan.Steps)
			}
		})
	}
}

func TestOperationsByHandBeginWhenNothingElseRuns(t *testing.T) {
	own := Snapshot{Cluster: "uid", Storage: "3.6.0"}
	for _, test := range []struct {
		name     string
		change   func(in *Input)
		snapshot Snapshot
		etcd     string
		want     string
	}{
		{"a snapshot of this cluster", func(*Input) {}, own, "3.6.16", ""},
		{"a snapshot of before the upgrade", func(*Input) {}, own, "3.7.3", ""},
		{"a snapshot of another cluster", func(*Input) {}, Snapshot{"other", "3.6.0"}, "3.6.16", "is of cluster other, and this one is uid"},
		{"a snapshot of a newer etcd", func(*Input) {}, Snapshot{"uid", "3.7.0"}, "3.6.16", "restore it with etcd 3.7"},
		{"a snapshot that is too old", func(*Input) {}, Snapshot{"uid", "3.5.0"}, "3.7.3", "restore it with etcd 3.5"},
		{"a snapshot of nobody", func(*Input) {}, Snapshot{"uid", ""}, "3.6.16", "does not say which etcd wrote it"},
		{"while a node is in hand", func(in *Input) { in.node("worker-1").Hand = &Hand{Operation: OperationUpgrade} }, own, "3.6.16", "an operation (upgrade) has it in hand"},
		{"while a node joins", func(in *Input) { in.node("worker-1").Joining = true }, own, "3.6.16", "wait until it is a node"},
		{"while a member copies the data", func(in *Input) { in.member("etcd-1").Learner = true }, own, "3.6.16", "wait until it has its vote"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := production(3, 2, 3)
			test.change(&in)
			b := Restore(in, test.snapshot, "uid", test.etcd)
			if test.want == "" && b != nil || test.want != "" && (b == nil || !strings.Contains(b.String(), test.want)) {
				t.Errorf("got %v, want %q", b, test.want)
			}
		})
	}
}

func TestWindows(t *testing.T) {
	// 30 November 2026 is a Monday.
	night := Window{From: 22 * time.Hour, Length: 6 * time.Hour}
	sunday := Window{Days: []time.Weekday{time.Sunday}, From: 2 * time.Hour, Length: 3 * time.Hour}
	weekend := Window{Days: []time.Weekday{time.Saturday}, Length: 48 * time.Hour}
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	berlin := Window{From: 22 * time.Hour, To: 30 * time.Hour, Zone: zone}
	for _, test := range []struct {
		window Window
		now    string
		open   bool
		next   string
	}{
		{night, "2026-11-30T21:59:59Z", false, "2026-11-30T22:00:00Z"},
		{night, "2026-11-30T22:00:00Z", true, ""},
		{night, "2026-12-01T03:59:59Z", true, ""},
		{night, "2026-12-01T04:00:00Z", false, "2026-12-01T22:00:00Z"},
		{sunday, "2026-11-30T09:00:00Z", false, "2026-12-06T02:00:00Z"},
		{sunday, "2026-12-06T03:00:00+01:00", true, ""},
		{sunday, "2026-12-06T05:00:00Z", false, "2026-12-13T02:00:00Z"},
		{berlin, "2026-11-30T20:59:59Z", false, "2026-11-30T21:00:00Z"},
		{berlin, "2026-12-01T04:59:59Z", true, ""},
		{berlin, "2026-12-01T05:00:00Z", false, "2026-12-01T21:00:00Z"},
		// In the night to 28 March 2027 the clock is put forward, in the one to 31 October back.
		{berlin, "2027-03-28T03:59:59Z", true, ""},
		{berlin, "2027-03-28T04:00:00Z", false, "2027-03-28T20:00:00Z"},
		{berlin, "2027-10-31T04:59:59Z", true, ""},
		{berlin, "2027-10-31T05:00:00Z", false, "2027-10-31T21:00:00Z"},
		{weekend, "2026-12-06T23:00:00Z", true, ""},
		{weekend, "2026-12-07T00:00:00Z", false, "2026-12-12T00:00:00Z"},
	} {
		now, err := time.Parse(time.RFC3339, test.now)
		if err != nil {
			t.Fatal(err)
		}
		next, open := test.window.at(now)
		got := ""
		if !next.IsZero() {
			got = next.Format(time.RFC3339)
		}
		if open != test.open || got != test.next {
			t.Errorf("%+v at %s: open %t, next %s", test.window, test.now, open, got)
		}
	}
}

func TestWhatComesBeforeAnUpgrade(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Input)
		steps  []string
		says   string
	}{
		{"every node fetches before anything else, at any time", func(in *Input) {
			in.Wanted.Windows = []Window{{From: 22 * time.Hour, Length: time.Hour}}
		}, []string{"pull etcd-1", "pull control-1", "pull worker-1", "pull worker-2"}, "the upgrade begins in"},
		{"one that has not fetched yet is waited for", func(in *Input) {
			in.pulled("etcd-1", "control-1", "worker-1")
		}, []string{"pull worker-2"}, ""},
		{"then comes the backup", func(in *Input) { in.pulled("etcd-1", "control-1", "worker-1", "worker-2") }, []string{"backup"}, ""},
		{"what was fetched for another version does not count", func(in *Input) {
			in.pulled("etcd-1", "control-1", "worker-1", "worker-2")
			in.node("worker-2").Pulled.Kubelet = "v1.37.1"
		}, []string{"pull worker-2"}, ""},
		{"a node that works and whose agent is silent stops the upgrade", func(in *Input) {
			in.pulled("etcd-1", "control-1", "worker-1")
			in.node("worker-2").Reachable = false
		}, nil, "worker-2: its agent does not answer, so it cannot fetch what the upgrade needs"},
		{"one that is broken does not", func(in *Input) {
			in.pulled("etcd-1", "control-1", "worker-1")
			in.die("worker-2")
		}, []string{"backup"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := production(1, 1, 2)
			in.upgrade()
			in.Wanted.PullFirst, in.Wanted.BackupAge, in.Observed.Backup, in.Wanted.AllowDowntime = true, time.Hour, time.Time{}, true
			test.change(&in)
			plan := Next(in)
			var steps, says []string
			for _, s := range plan.Steps {
				steps = append(steps, stepText(s))
			}
			for _, w := range plan.Waits {
				says = append(says, w.Reason)
			}
			for _, b := range plan.Blocks {
				says = append(says, b.String())
			}
			if !slices.Equal(steps, test.steps) || !strings.Contains(strings.Join(says, "\n"), test.says) {
				t.Errorf("steps %q, want %q; it says %q, want %q", steps, test.steps, says, test.says)
			}
		})
	}
}

func TestAChangeThatNeedsWhatNobodyHasDoesNotBegin(t *testing.T) {
	in := production(3, 2, 2)
	in.group("worker").State.Config = "b"
	in.Observed.Lacking = &Block{OperationChange, "", "no imported bundle has image example.org/cni:2", "import it"}
	in.node("control-1").WantsReboot = "a new kernel" // needs nothing
	plan := Next(in)
	if len(plan.Steps) != 1 || stepText(plan.Steps[0]) != "take control-1" {
		t.Errorf("steps %v", plan.Steps)
	}
	in.node("control-1").WantsReboot = ""
	if plan = Next(in); len(plan.Steps) > 0 || len(plan.Blocks) == 0 || !strings.Contains(plan.Blocks[0].String(), "example.org/cni:2") {
		t.Errorf("steps %v, blocks %v", plan.Steps, plan.Blocks)
	}
	in.Observed.Lacking = nil
	if plan = Next(in); len(plan.Steps) != 1 || stepText(plan.Steps[0]) != "take worker-1" {
		t.Errorf("once it is there: steps %v, blocks %v", plan.Steps, plan.Blocks)
	}
}

func (in *Input) pulled(names ...string) {
	for _, name := range names {
		n := in.node(name)
		n.Pulled = in.group(n.Group).State
	}
}

func TestForecastOfAnUpgrade(t *testing.T) {
	in := production(3, 2, 3)
	in.upgrade()
	in.Wanted.PullFirst, in.Wanted.BackupAge, in.Observed.Backup = true, time.Hour, time.Time{}
	f := Foretell(in, 0)
	var got []string
	for _, s := range f.Steps {
		if s.Kind != StepPull {
			got = append(got, stepText(s.Step))
		}
	}
	want := []string{"backup",
		"take etcd-2", "change etcd-2", "give-back etcd-2", "take etcd-3", "change etcd-3", "give-back etcd-3",
		"take etcd-1", "move-leader etcd-1 etcd-2", "change etcd-1", "give-back etcd-1",
		"take control-2", "drain control-2", "change control-2", "give-back control-2",
		"take control-1", "drain control-1", "move-virtual-ip control-1 control-2", "change control-1", "give-back control-1"}
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
		t.Errorf("begins with\n%s", strings.Join(got, "\n"))
	}
	rest := got[min(len(want), len(got)):]
	for _, text := range []string{"change etcd-1", "change worker-1", "change worker-2", "change worker-3", "give-back worker-3"} {
		if !slices.Contains(rest, text) {
			t.Errorf("without %s: %v", text, rest)
		}
	}
	if len(f.Blocks)+len(f.Waits) > 0 || f.Takes < 10*time.Minute || f.Takes > 3*time.Hour || f.Cut {
		t.Errorf("takes %s, blocks %v, waits %v", f.Takes, f.Blocks, f.Waits)
	}
	if in.Observed.Nodes[0].Hand != nil || in.Observed.Nodes[0].Has != stateOf(Roles{Etcd: true}, v36) {
		t.Errorf("the forecast changed what it was given: %+v", in.Observed.Nodes[0])
	}
}

func TestForecastEndsInAStatedBlock(t *testing.T) {
	in := production(3, 2, 3)
	in.group("worker").State.Config = "b"
	in.node("worker-2").Pods = []Pod{{"shop/db-0", "shop/db"}}
	in.group("worker").ConfigTouches.Drain = true
	in.Observed.Budgets = []DisruptionBudget{{Name: "shop/db", Never: true}}
	f := Foretell(in, 0)
	if len(f.Steps) != 8 || len(f.Blocks) != 1 || !strings.Contains(f.Blocks[0].String(), "worker-2: PodDisruptionBudget shop/db never allows") {
		t.Errorf("%d steps, blocks %v", len(f.Steps), f.Blocks)
	}
}

// BenchmarkForecast is a plan of 1,000 workers, 100 at a time, to its end.
func BenchmarkForecast(b *testing.B) {
	in := production(3, 3, 1000)
	in.upgrade()
	in.group("worker").Rollout.MaxUnavailable = 100
	for b.Loop() {
		if f := Foretell(in, 0); len(f.Blocks)+len(f.Waits) > 0 || len(f.Steps) < 4000 {
			b.Fatalf("%d steps, %v", len(f.Steps), f.Blocks)
		}
	}
}

// BenchmarkNext is one decision about 1,000 workers.
func BenchmarkNext(b *testing.B) {
	in := production(3, 3, 1000)
	in.upgrade()
	in.group("worker").Rollout.MaxUnavailable = 100
	for b.Loop() {
		Next(in)
	}
}
