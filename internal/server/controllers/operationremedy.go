package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/planner"
)

const (
	// tellLimit is how long an agent may take until it has heard that it is to reboot, and has done so.
	tellLimit = 2 * time.Minute
	// powerLimit is how long a BMC may take to switch a machine off and on.
	powerLimit = 3 * time.Minute
	// stepRefuse is what the history calls it when a group's broken nodes are left alone.
	stepRefuse = "refuse"
)

// isRemedy says whether a step brings a broken node back.
func isRemedy(step string) bool {
	return slices.Contains([]planner.Kind{planner.StepRestart, planner.StepPowerCycle, planner.StepReinstall}, planner.Kind(step))
}

// startRemedy records what is about to be done for a broken node.
func (o *operation) startRemedy(n *v1alpha1.ClusterNode, s planner.Step) {
	o.Log.Warn("cluster mends a node", "cluster", o.c.Name, "machine", n.Machine, "step", s.Kind, "reason", s.Reason)
	if s.Kind == planner.StepReplace {
		n.Remedies = append(n.Remedies, v1alpha1.NodeRemedy{Kind: string(s.Kind), At: o.at})
		o.remember(v1alpha1.ClusterWorkStep{Kind: string(s.Kind), Operation: string(s.Operation), Node: n.Machine, Reason: s.Reason, StartedAt: new(o.at), FinishedAt: new(o.at)})
		return
	}
	m, _ := o.Fleet.Get(n.Machine)
	// A node that was installed anew has nothing to hold.
	n.Hand = &v1alpha1.NodeHand{Operation: string(s.Operation), Since: o.at, BootID: bootOf(m), Changed: s.Kind == planner.StepReinstall}
	o.record(n, s)
}

// goOnMending goes on with a remedy, and says whether something has changed that is to be recorded at once.
func (o *operation) goOnMending(ctx context.Context, n *v1alpha1.ClusterNode) (changed bool) {
	h := n.Hand
	if o.c.Spec.Paused {
		h.Message = "the cluster is paused"
		return false
	}
	cycled := h.PowerCycled
	over, err := o.mend(ctx, n)
	if !over {
		h.Message = ""
		if err != nil {
			h.Message = err.Error()
		}
		return h.PowerCycled != cycled
	}
	remedy := v1alpha1.NodeRemedy{Kind: h.Step, At: o.at}
	if err != nil {
		remedy.Problem = err.Error()
	}
	o.endStep(n, remedy.Problem)
	n.Remedies, n.Hand = append(n.Remedies, remedy), nil
	return true
}

// mend does what a remedy needs now. It is over when the node is ready again, or with an error when it will not be by this means; an
// error before that is what it waits for.
func (o *operation) mend(ctx context.Context, n *v1alpha1.ClusterNode) (over bool, err error) {
	m, ok := o.Fleet.Get(n.Machine)
	if !ok {
		return true, errors.New("its Machine does not exist any more")
	}
	h, since := n.Hand, o.Now().Sub(n.Hand.StepSince.Time)
	limit := rebootLimit
	if g := o.group(n.Group); g != nil && g.Spec.Rollout.ChangeTimeout != nil {
		limit = g.Spec.Rollout.ChangeTimeout.Duration
	}
	kind := planner.Kind(h.Step)
	if kind == planner.StepReinstall {
		if done, err := o.mendByInstall(ctx, n, m, since); !done || err != nil {
			return done, err
		}
		limit += installLimit
	}
	if o.sight.nodes[n.NodeName].Ready {
		return true, nil
	}
	same := bootOf(m) == h.BootID
	switch {
	case kind == planner.StepPowerCycle && same && !h.PowerCycled:
		if err := o.powerCycle(ctx, n); err != nil {
			return true, err
		}
	case kind == planner.StepRestart && same && since > min(tellLimit, limit):
		return true, errors.New("its agent did not reboot it")
	case since > limit && same && kind != planner.StepReinstall:
		return true, fmt.Errorf("it has not reported since, and is not ready after %s", limit)
	case since > limit:
		return true, fmt.Errorf("it is back, and not ready after %s", limit)
	case same:
		return false, errors.New("it has not reported yet")
	}
	return false, errors.New("its node is not ready")
}

// powerCycle switches a node's machine off and on, once for a step.
func (o *operation) powerCycle(ctx context.Context, n *v1alpha1.ClusterNode) error {
	if o.Power == nil {
		return errors.New("this server reaches no BMC")
	}
	ctx, cancel := context.WithTimeout(ctx, powerLimit)
	defer cancel()
	if err := o.Power.PowerCycle(ctx, n.Machine); err != nil {
		return fmt.Errorf("power cycle: %w", err)
	}
	n.Hand.PowerCycled = true
	return nil
}

// mendByInstall has a broken node's machine installed anew, and says whether that is done. A machine that does not begin by itself is
// switched off and on, if it has a BMC.
func (o *operation) mendByInstall(ctx context.Context, n *v1alpha1.ClusterNode, m *v1alpha1.Machine, since time.Duration) (done bool, err error) {
	h, id := n.Hand, fmt.Sprintf("remedy-%s-%d", o.c.Name, n.Hand.Since.Unix())
	asked := intentID(m) == id || slices.Contains(m.AcknowledgedIntents(), id)
	if asked {
		if done, err = o.reinstalled(n, m, since); done || err != nil {
			return true, err
		}
	}
	switch wanted := m.WantedIntent(); {
	case !asked && wanted != nil:
		return true, fmt.Errorf("something else is wanted of its machine: %s", strings.ToLower(string(wanted.Action)))
	case !asked:
		if err := o.want(ctx, m, &v1alpha1.Intent{Action: v1alpha1.ActionReinstall, ID: id, RequestedBy: "Cluster " + o.c.Name}); err != nil {
			return false, err
		}
	case m.OpenIntent() != nil && m.Status.Intent != nil && m.Status.Intent.State == v1alpha1.IntentPending && since > tellLimit && m.Spec.BMC != nil && !h.PowerCycled:
		if err := o.powerCycle(ctx, n); err != nil {
			return true, err
		}
	}
	return false, errors.New("it is being installed anew")
}

// forgetRemedies of nodes that have been ready for long enough.
func (o *operation) forgetRemedies() {
	for i := range o.c.Status.Nodes {
		n := &o.c.Status.Nodes[i]
		last := len(n.Remedies) - 1
		if last < 0 || !n.Ready || n.Hand != nil || n.ReadyChangedAt == nil || n.Remedies[last].Kind == string(planner.StepReplace) {
			continue
		}
		pause := v1alpha1.DefaultRemediationPause
		if g := o.group(n.Group); g != nil && g.Spec.Remediation.Pause != nil {
			pause = g.Spec.Remediation.Pause.Duration
		}
		if o.Now().Sub(n.ReadyChangedAt.Time) >= pause {
			n.Remedies = nil
		}
	}
}

// spares are machines that no group has and that could take the place of a node, by group.
func (o *operation) spares(ctx context.Context) (map[string][]string, error) {
	wanted := members.WantSpares(o.c, o.groups)
	if len(wanted) == 0 {
		return nil, nil
	}
	clusters := &v1alpha1.ClusterList{}
	if err := o.Cache.List(ctx, clusters, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list clusters: %w", err)
	}
	taken := map[string]bool{}
	for i := range o.everywhere {
		for _, name := range o.everywhere[i].Status.Machines {
			taken[name] = true
		}
	}
	return members.Spares(wanted, clusters.Items, o.Fleet.List(), taken), nil
}

// rememberRefusals puts into the history that the broken nodes of a group are left alone, once for each reason.
func (o *operation) rememberRefusals(plan planner.Plan) {
	for _, b := range plan.Blocks {
		if b.Operation != planner.OperationRemedy || b.Node != "" {
			continue
		}
		told := false
		for _, step := range slices.Backward(o.c.Status.History) {
			if step.Kind == stepRefuse {
				told = step.Reason == b.Reason && o.was.Status.Work != nil && slices.ContainsFunc(o.was.Status.Work.Blocks, func(text string) bool { return text == b.String() })
				break
			}
		}
		if !told {
			o.c.Status.Remember(v1alpha1.ClusterWorkStep{Kind: stepRefuse, Operation: string(b.Operation), Reason: b.Reason, StartedAt: new(o.at), FinishedAt: new(o.at)})
			o.Log.Warn("cluster leaves broken nodes alone", "cluster", o.c.Name, "reason", b.Reason, "remedy", b.Remedy)
		}
	}
}
