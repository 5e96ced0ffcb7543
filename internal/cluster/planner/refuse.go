package planner

import (
	"fmt"
	"slices"
	"time"

	"coldrack.dev/internal/contract/validate"
)

// Refuse says what of the wanted state can never be reached from what is observed: wrong orders. A cluster that has no node
// yet may become anything.
func Refuse(in Input) []Block {
	if len(in.Observed.Nodes) == 0 {
		return nil
	}
	var blocks []Block
	refuse := func(op Operation, reason, remedy string) { blocks = append(blocks, Block{op, "", reason, remedy}) }
	etcd, control := 0, 0
	for _, g := range in.Wanted.Groups {
		if g.Roles.Etcd {
			etcd += g.Replicas
		}
		if g.Roles.ControlPlane {
			control += g.Replicas
		}
	}
	switch {
	case etcd == 0:
		refuse(OperationLeave, "no machine with etcd would be left", "want at least one; to end the cluster, delete the Cluster")
	case etcd%2 == 0 && !in.Wanted.AllowEvenMembers:
		refuse(OperationJoin, fmt.Sprintf("%d members of etcd tolerate no more failures than %d", etcd, etcd-1),
			fmt.Sprintf("want %d or %d, or set spec.etcd.allowEvenMembers", etcd-1, etcd+1))
	}
	if control == 0 {
		refuse(OperationLeave, "no control plane would be left", "want at least one; to end the cluster, delete the Cluster")
	}
	p := newPlanner(&in)
	var has, want State
	check := func(what, to string, runs []string) {
		if to == "" || len(runs) == 0 {
			return
		}
		if err := validate.VersionStep(to, runs...); err != nil {
			refuse(OperationUpgrade, what+" "+err.Error(), "nothing was changed")
		}
	}
	runs := map[string][]string{}
	for i := range in.Observed.Nodes {
		n := &in.Observed.Nodes[i]
		if p.going(n) || n.Joining {
			continue
		}
		has, want = n.Has, p.want(n)
		for _, v := range []struct{ what, has, want string }{{"etcd", has.Etcd, want.Etcd}, {"Kubernetes", has.ControlPlane, want.ControlPlane}, {"Kubernetes", has.Kubelet, want.Kubelet}} {
			if key := v.what + " " + v.want; v.has != "" && v.want != "" && !slices.Contains(runs[key], v.has) {
				runs[key] = append(runs[key], v.has)
			}
		}
	}
	for _, key := range sortedKeys(runs) {
		var what, to string
		if _, err := fmt.Sscanf(key, "%s %s", &what, &to); err == nil {
			slices.Sort(runs[key])
			check(what, to, runs[key])
		}
	}
	return blocks
}

// Begin says why an operation that a person starts by hand, such as restore or a rotation of authorities, must not begin
// now: there is one at a time. nil: it may.
func Begin(in Input) *Block {
	for _, n := range in.Observed.Nodes {
		if n.Hand != nil {
			return &Block{n.Hand.Operation, n.Name, fmt.Sprintf("an operation (%s) has it in hand since %s", n.Hand.Operation, n.Hand.Since.UTC().Format(time.RFC3339)),
				"wait until it has ended (coldrack cluster watch), or abort it"}
		}
		if n.Joining {
			return &Block{OperationJoin, n.Name, "it is joining the cluster", "wait until it is a node"}
		}
	}
	for _, m := range in.Observed.Members {
		if m.Learner {
			return &Block{OperationJoin, m.Node, "its member of etcd is copying the data", "wait until it has its vote"}
		}
	}
	return nil
}

// Pending is true while a node has yet to be changed, or to leave, whatever hinders that.
func Pending(in Input) bool {
	p := newPlanner(&in)
	for i := range in.Observed.Nodes {
		if n := &in.Observed.Nodes[i]; n.Hand != nil || p.going(n) || p.differs(n).any() {
			return true
		}
	}
	return slices.ContainsFunc(in.Wanted.Groups, func(g Group) bool { return len(p.surplus(&g)) > 0 })
}

// Preflights is true while an upgrade is wanted that has not begun, so that Observed.Preflight decides about it.
func Preflights(in Input) bool {
	p := newPlanner(&in)
	return p.someDiffer(func(parts Parts) bool { return parts.Etcd || parts.ControlPlane || parts.Kubelet }) && !p.begun()
}

// Replaces is true for a node that differs from what is wanted of it, and whose group is rolled by replacement.
func Replaces(in Input, node string) bool {
	p := newPlanner(&in)
	n := p.index[node]
	return n != nil && p.groups[n.Group] != nil && p.groups[n.Group].Rollout.MaxSurge > 0 && p.differs(n).any()
}

// Snapshot is what is known of a snapshot of etcd.
type Snapshot struct {
	// Cluster is the UID of the Cluster that it was taken of.
	Cluster string
	// Storage is the version of etcd whose storage it has, such as 3.7.0.
	Storage string
}

// Restore says why a snapshot must not be restored to a cluster whose members will run a version of etcd; nil: it may.
func Restore(in Input, s Snapshot, cluster, etcd string) *Block {
	const op = Operation("restore")
	if s.Cluster != cluster {
		return &Block{op, "", fmt.Sprintf("the snapshot is of cluster %s, and this one is %s: its keys and machines are others", s.Cluster, cluster),
			"choose a snapshot of this cluster, or restore it to a cluster made of that backup"}
	}
	storage, err := validate.ParseVersion(s.Storage)
	if err != nil {
		return &Block{op, "", "the snapshot does not say which etcd wrote it: " + err.Error(), "choose a snapshot that Coldrack took"}
	}
	target, err := validate.ParseVersion(etcd)
	if err != nil {
		return &Block{op, "", "etcd of the cluster: " + err.Error(), "set spec.version"}
	}
	if target.Major != storage.Major || target.Minor < storage.Minor {
		// etcdutl restores it without an error, and the member then refuses its own data.
		return &Block{op, "", fmt.Sprintf("the snapshot was written by etcd %s, and etcd %s does not start on it", s.Storage, etcd),
			fmt.Sprintf("restore it with etcd %d.%d, or choose a snapshot from before the upgrade", storage.Major, storage.Minor)}
	}
	if target.Minor > storage.Minor+1 {
		return &Block{op, "", fmt.Sprintf("the snapshot was written by etcd %s, and etcd %s does not start on it", s.Storage, etcd),
			fmt.Sprintf("restore it with etcd %d.%d and upgrade afterwards", storage.Major, storage.Minor)}
	}
	return Begin(in)
}
