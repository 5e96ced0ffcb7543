package peopleapi

import (
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/planner"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// forecast is the way of a running cluster to what is proposed, by the same function that decides each step.
func (w *world) forecast(cluster, was *v1alpha1.Cluster, groups []v1alpha1.MachineGroup, outcome *members.Preview, changes kube.Changes) *peoplewire.Forecast {
	proposed := cluster.DeepCopy()
	proposed.Status, proposed.Spec.Paused = was.Status, false
	in, err := members.Steps(proposed, groups, w.now.Machines, outcome.Placed, changes, time.Now())
	if err != nil {
		return &peoplewire.Forecast{EndsAt: []peoplewire.ForecastBlock{{Reason: err.Error(), Remedy: "choose a version that this Coldrack can render"}}}
	}
	f := planner.Foretell(in, 0)
	out := &peoplewire.Forecast{Takes: f.Takes.Round(time.Second).String()}
	carried := true
	for _, s := range f.Steps {
		step := peoplewire.ForecastStep{
			After: s.After.Round(time.Second).String(), Takes: s.Estimate.Round(time.Second).String(), Step: string(s.Kind), Operation: string(s.Operation),
			Machine: s.Node, Group: s.Group, To: s.To, Reason: s.Reason, Disruption: s.Disruption, Outage: s.Outage, CarriedOut: carriedOut(&s.Step),
		}
		carried = carried && step.CarriedOut
		out.Steps = append(out.Steps, step)
	}
	for _, b := range f.Blocks {
		out.EndsAt = append(out.EndsAt, peoplewire.ForecastBlock{Machine: b.Node, Reason: b.Reason, Remedy: b.Remedy})
	}
	for _, wait := range f.Waits {
		out.Waits = append(out.Waits, strings.TrimPrefix(wait.Node+": "+wait.Reason, ": "))
	}
	if len(out.Steps) == 0 {
		return out
	}
	if cluster.Spec.Paused {
		out.Notes = append(out.Notes, "the cluster is paused: nothing begins before it is resumed")
	}
	if !carried {
		out.Notes = append(out.Notes, "this version does not carry out the steps marked ?: it upgrades nothing, takes no node away by itself, and brings a changed configuration to all nodes at once")
	}
	out.Notes = append(out.Notes, "it is computed from what is recorded: which member leads etcd, who holds the virtual IP, and what PodDisruptionBudgets allow is looked at when a step is due")
	return out
}

// carriedOut is true for what the server does by itself, in this way.
func carriedOut(s *planner.Step) bool {
	return s.Kind == planner.StepAdd && s.State.Etcd == ""
}
