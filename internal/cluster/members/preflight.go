package members

import (
	"fmt"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/planner"
)

// Preflight is what was seen of a cluster that is to be upgraded.
type Preflight struct {
	// Requested are deprecated APIs that somebody uses; Unasked is why it is not known which.
	Requested []RequestedAPI
	Unasked   string
	// Lacking is what no imported bundle has of what the version needs.
	Lacking []string
	// Etcd are the members that were asked; nil where nobody has asked them.
	Etcd []EtcdState
}

// RequestedAPI is a deprecated API that somebody uses.
type RequestedAPI struct {
	// Name is GROUP/VERSION RESOURCE, RemovedIn the first release without it, such as 1.38, or empty.
	Name, RemovedIn string
}

// EtcdState is how a member of etcd is.
type EtcdState struct {
	Name     string
	Answers  bool
	Problems []string
	// Size of its database and Quota at which it takes no more writes, in bytes.
	Size, Quota int64
}

const (
	// mostOfQuota is how full etcd may be when an upgrade begins, in hundredths of its quota.
	mostOfQuota = 90
	// defaultQuota is etcd's own.
	defaultQuota = 2 << 30
)

// Blocks say what forbids to begin the upgrade of a cluster to spec.version, and what would make it possible. in is what the planner
// is asked, with pods and budgets.
func (f Preflight) Blocks(c *v1alpha1.Cluster, in planner.Input) []planner.Block {
	var blocks []planner.Block
	block := func(node, reason, remedy string) {
		blocks = append(blocks, planner.Block{Operation: planner.OperationUpgrade, Node: node, Reason: reason, Remedy: remedy})
	}
	target, err := kube.ParseVersion(c.Spec.Version)
	if err != nil {
		block("", err.Error(), "correct spec.version")
		return blocks
	}
	if len(f.Lacking) > 0 {
		block("", lackingText(f.Lacking, "what "+c.Spec.Version+" needs"), importRemedy)
	}
	if f.Unasked != "" {
		block("", "it is not known which APIs are in use that "+c.Spec.Version+" has not got: "+f.Unasked, "bring the API servers back; they are asked again")
	}
	for _, api := range f.Requested {
		if removed, err := kube.ParseVersion("v" + api.RemovedIn + ".0"); err == nil && removed.Minor <= target.Minor {
			block("", fmt.Sprintf("%s is still in use, and Kubernetes %s has not got it any more", api.Name, api.RemovedIn),
				"find who uses it in the audit log of the API servers (annotation k8s.io/deprecated) and have them use a newer version; an API server forgets it when it restarts")
		}
	}
	flags, err := kube.RemovedFlags(c, c.Spec.Version)
	if err != nil {
		block("", err.Error(), "correct spec.version")
	}
	for _, text := range flags {
		block("", text, "take it out of the Cluster before the upgrade")
	}
	f.etcd(c, block)
	drained := slices.ContainsFunc(c.Status.Nodes, func(n v1alpha1.ClusterNode) bool {
		v, err := kube.ParseVersion(n.Version)
		return err == nil && v.Minor != target.Minor
	})
	if drained {
		budgets(in, block)
	}
	return blocks
}

// importRemedy is what to do about content that is in no bundle.
const importRemedy = "import the bundle that has it: coldrack bundle import FILE (coldrack bundle verify FILE -f CLUSTER.yaml says beforehand whether one is complete)"

// lackingText names some of what lacks.
func lackingText(lacking []string, of string) string {
	const most = 6
	if len(lacking) > most {
		lacking = append(slices.Clone(lacking[:most]), fmt.Sprintf("and %d more", len(lacking)-most))
	}
	return fmt.Sprintf("no imported bundle has all of %s: %s", of, strings.Join(lacking, ", "))
}

// etcd must be whole, and have room for what the upgrade writes.
func (f Preflight) etcd(c *v1alpha1.Cluster, block func(node, reason, remedy string)) {
	for _, m := range f.Etcd {
		quota := m.Quota
		if quota <= 0 {
			quota = c.Spec.Etcd.QuotaBackend
		}
		if quota <= 0 {
			quota = defaultQuota
		}
		switch {
		case !m.Answers:
			block("", fmt.Sprintf("member %s of etcd does not answer: %s", m.Name, strings.Join(m.Problems, ", ")), "bring it back, or replace its machine")
		case len(m.Problems) > 0:
			block("", fmt.Sprintf("member %s of etcd says: %s", m.Name, strings.Join(m.Problems, ", ")), "mend that first; an alarm is ended by etcdctl alarm disarm when its cause is gone")
		case m.Size > quota/100*mostOfQuota:
			block("", fmt.Sprintf("the database of etcd's member %s has %d MiB of the %d MiB that it may have", m.Name, m.Size>>20, quota>>20),
				"delete what nobody needs, then etcdctl defrag; or raise spec.etcd.quotaBackend")
		}
	}
}

// budgets that never allow an eviction would stop the roll at their pods' node.
func budgets(in planner.Input, block func(node, reason, remedy string)) {
	for _, b := range in.Observed.Budgets {
		if !b.Never {
			continue
		}
		for _, n := range in.Observed.Nodes {
			if i := slices.IndexFunc(n.Pods, func(p planner.Pod) bool { return p.Budget == b.Name }); i >= 0 {
				block(n.Name, fmt.Sprintf("PodDisruptionBudget %s never allows to evict pod %s, and this node is to be drained", b.Name, n.Pods[i].Name),
					"let it allow a disruption (more replicas, or maxUnavailable: 1), or delete the budget")
				break
			}
		}
	}
}
