package controllers

import (
	"cmp"
	"strings"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/planner"
)

// foldRebootRequests notes which boot of a node the annotation of its Node wants ended.
func (o *operation) foldRebootRequests() {
	state := o.apis.state(o.c.Name)
	if state == nil || state.Nodes == nil {
		return // nothing is known of the annotations now
	}
	for i := range o.c.Status.Nodes {
		n := &o.c.Status.Nodes[i]
		node, there := state.Nodes[n.NodeName]
		if !there {
			continue
		}
		m, _ := o.Fleet.Get(n.Machine)
		n.RebootRequest = v1alpha1.NextRebootRequest(n.RebootRequest, node.Reboot, bootOf(m))
	}
}

// whyReboot is why a node is rebooted.
func (o *operation) whyReboot(machine string) string {
	for i := range o.in.Observed.Nodes {
		if n := &o.in.Observed.Nodes[i]; n.Name == machine {
			return n.WantsReboot
		}
	}
	return ""
}

// sayReboots tells of each node that wants a reboot for what it waits.
func (o *operation) sayReboots(plan planner.Plan) {
	for i := range o.c.Status.Nodes {
		n := &o.c.Status.Nodes[i]
		m, _ := o.Fleet.Get(n.Machine)
		why := o.whyReboot(n.Machine)
		due := ""
		if m != nil {
			due, _ = m.WantsReboot()
		}
		switch h := n.Hand; {
		case h != nil && h.Operation == string(planner.OperationReboot):
			n.RebootState = strings.TrimSuffix("is in hand: "+stepName(h.Step)+"; "+cmp.Or(h.Failed, h.Message), "; ")
		case why == "" && due == "":
			n.RebootState = ""
		case why == "":
			n.RebootState = "waits until a person asks: coldrack reboot " + n.Machine
		case h != nil:
			n.RebootState = "comes after its " + h.Operation
		case o.c.Spec.Paused:
			n.RebootState = "waits: the cluster is paused"
		default:
			n.RebootState = cmp.Or(hindrance(plan, n.Machine), hindrance(plan, ""), "waits for its turn")
		}
	}
}

// hindrance is what a plan says of why nothing is begun on a node, or, of no node, in the cluster.
func hindrance(plan planner.Plan, machine string) string {
	for _, b := range plan.Blocks {
		if b.Node == machine {
			return "is held up: " + b.Reason + "; " + b.Remedy
		}
	}
	for _, w := range plan.Waits {
		if w.Node == machine {
			return "waits: " + w.Reason
		}
	}
	return ""
}
