package controllers

import (
	"fmt"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/planner"
)

// endPrefetch takes back what nodes were told to fetch, once they run it, or something else is wanted.
func (o *operation) endPrefetch() {
	for i := range o.c.Status.Nodes {
		n := &o.c.Status.Nodes[i]
		if p := n.Prefetch; p != nil && (p.Version != o.c.Spec.Version || n.Version == p.Version && n.Hand == nil) {
			n.Prefetch = nil
		}
	}
}

// tellPrefetch says in one step how far all nodes are with fetching, and for each that does not succeed what hinders it: the upgrade
// waits for them, and nothing has changed yet.
func (o *operation) tellPrefetch(plan planner.Plan) {
	var step *v1alpha1.ClusterWorkStep
	var coming []string
	for _, s := range plan.Steps {
		if s.Kind != planner.StepPull {
			continue
		}
		n := o.node(s.Node)
		if step == nil {
			step = &v1alpha1.ClusterWorkStep{Kind: string(s.Kind), Operation: string(s.Operation), Reason: s.Reason, StartedAt: &n.Prefetch.Since}
		}
		m, ok := o.Fleet.Get(s.Node)
		if !ok {
			continue
		}
		switch done, how, why := o.Clusters.Prefetched(m, o.c.Spec.Version); {
		case done:
		case why != "":
			o.blocks = append(o.blocks, planner.Block{Operation: planner.OperationUpgrade, Node: s.Node, Reason: fmt.Sprintf("cannot fetch what %s needs: %s", o.c.Spec.Version, why),
				Remedy: "nothing has changed yet, and the node tries again; to upgrade without it: coldrack release " + s.Node})
		default:
			coming = append(coming, s.Node+" "+how)
		}
	}
	if step == nil {
		return
	}
	all, done := 0, 0
	for _, n := range o.c.Status.Nodes {
		if n.Prefetch == nil {
			continue
		}
		all++
		if !slices.ContainsFunc(plan.Steps, func(s planner.Step) bool { return s.Kind == planner.StepPull && s.Node == n.Machine }) {
			done++
		}
	}
	step.Message = strings.TrimSuffix(fmt.Sprintf("%d of %d nodes have everything; %s", done, all, someOf(coming)), "; ")
	o.steps = append(o.steps, *step)
}
