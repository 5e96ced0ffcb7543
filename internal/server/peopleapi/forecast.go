package peopleapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/planner"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// forecast is the way of a running cluster to what is proposed, by the same function that decides each step.
func (w *world) forecast(ctx context.Context, b *Backend, cluster, was *v1alpha1.Cluster, groups []v1alpha1.MachineGroup, outcome *members.Preview, changes kube.Changes) *peoplewire.Forecast {
	proposed := cluster.DeepCopy()
	proposed.Status, proposed.Spec.Paused = was.Status, false
	images, problems := members.ImagesWanted(proposed, groups, w.now.Machines, w.profiles, w.images)
	taken := map[string]bool{}
	for _, names := range outcome.Placed {
		for _, name := range names {
			taken[name] = true
		}
	}
	for i := range w.now.Groups {
		for _, name := range w.now.Groups[i].Status.Machines {
			taken[name] = true
		}
	}
	machines := make([]*v1alpha1.Machine, len(w.now.Machines))
	for i := range machines {
		machines[i] = &w.now.Machines[i]
	}
	spares := members.Spares(members.WantSpares(proposed, groups), w.now.Clusters, machines, taken)
	in, err := members.Steps(members.Facts{
		Cluster: proposed, Groups: groups, Machines: w.now.Machines, Placed: outcome.Placed, Changed: members.ChangedBy(changes), Images: images, Spares: spares, Now: time.Now()})
	if err != nil {
		return &peoplewire.Forecast{EndsAt: []peoplewire.ForecastBlock{{Reason: err.Error(), Remedy: "correct the Cluster"}}}
	}
	f := planner.Foretell(in, 0)
	asked := ""
	if planner.Preflights(in) {
		asked = "the cluster's API was asked for what stands against the upgrade; its etcd is asked when it is due"
		if err := b.preflight(ctx, was, proposed, &in); err != nil {
			if lacking := b.Clusters.Lacking(proposed); len(lacking) > 0 {
				in.Observed.Preflight = members.Preflight{Lacking: lacking}.Blocks(proposed, in)
			}
			asked = fmt.Sprintf("what stands against the upgrade is looked at when it is due: %v", err)
		}
		f = planner.Foretell(in, 0)
	} else if slices.ContainsFunc(f.Steps, func(s planner.Timed) bool { return s.Kind == planner.StepDrain }) {
		asked = "the cluster's PodDisruptionBudgets allow now what is shown"
		if err := b.guarded(ctx, was, &in.Observed); err != nil {
			asked = fmt.Sprintf("PodDisruptionBudgets are not taken into account: %v", err)
		}
		f = planner.Foretell(in, 0)
	}
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
	for _, b := range append(problems, f.Blocks...) {
		out.EndsAt = append(out.EndsAt, peoplewire.ForecastBlock{Machine: b.Node, Reason: b.Reason, Remedy: b.Remedy})
	}
	for _, wait := range f.Waits {
		out.Waits = append(out.Waits, strings.TrimPrefix(wait.Node+": "+wait.Reason, ": "))
	}
	if !f.Opens.IsZero() {
		out.NextWindow = new(f.Opens)
		out.Notes = append(out.Notes, fmt.Sprintf("nodes that work are taken in maintenance windows; the next one opens %s, in %s",
			f.Opens.UTC().Format(time.RFC3339), f.Opens.Sub(in.Now).Round(time.Minute)))
	}
	if len(out.Steps) == 0 {
		return out
	}
	if cluster.Spec.Paused {
		out.Notes = append(out.Notes, "the cluster is paused: nothing begins before it is resumed")
	}
	if !carried {
		out.Notes = append(out.Notes, "this version does not carry out the steps marked ?")
	}
	out.Notes = append(out.Notes, "it is computed from what is recorded; which member leads etcd and who holds the virtual IP is looked at when a step is due")
	if asked != "" {
		out.Notes = append(out.Notes, asked)
	}
	return out
}

// preflight asks a cluster's API what stands against its upgrade, and adds that to what was observed.
func (b *Backend) preflight(ctx context.Context, cluster, proposed *v1alpha1.Cluster, in *planner.Input) error {
	connection, err := b.connection(cluster.Name)
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(ctx, guardTimeout)
	defer cancel()
	if err := guard(ctx, connection, cluster, &in.Observed); err != nil {
		return err
	}
	apis, err := connection.DeprecatedAPIs(ctx)
	if err != nil {
		return err
	}
	seen := members.Preflight{Lacking: b.Clusters.Lacking(proposed)}
	for _, api := range apis {
		seen.Requested = append(seen.Requested, members.RequestedAPI(api))
	}
	in.Observed.Preflight = seen.Blocks(proposed, *in)
	return nil
}

// connection to a cluster's own API.
func (b *Backend) connection(cluster string) (*kubeapi.Connection, error) {
	view, ok, _ := b.Clusters.View(cluster)
	if !ok || view.Plan == nil {
		return nil, errors.New("the cluster has no plan yet")
	}
	return kubeapi.Connect(b.target(cluster, view))
}

// guardTimeout is how long a plan waits for the API of a cluster that may be down.
const guardTimeout = 5 * time.Second

func (b *Backend) guarded(ctx context.Context, cluster *v1alpha1.Cluster, o *planner.Observed) error {
	connection, err := b.connection(cluster.Name)
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(ctx, guardTimeout)
	defer cancel()
	return guard(ctx, connection, cluster, o)
}

// guard asks a cluster's API which pods PodDisruptionBudgets guard, and adds that to what was observed.
func guard(ctx context.Context, connection *kubeapi.Connection, cluster *v1alpha1.Cluster, o *planner.Observed) error {
	budgets, pods, err := connection.Budgets(ctx)
	if err != nil {
		return err
	}
	for _, budget := range budgets {
		o.Budgets = append(o.Budgets, planner.DisruptionBudget(budget))
	}
	machineOf := map[string]string{}
	for _, n := range cluster.Status.Nodes {
		machineOf[n.NodeName] = n.Machine
	}
	on := map[string][]planner.Pod{}
	for _, pod := range pods {
		machine := machineOf[pod.Node]
		on[machine] = append(on[machine], planner.Pod{Name: pod.Name, Budget: pod.Budget})
	}
	for i := range o.Nodes {
		o.Nodes[i].Pods = on[o.Nodes[i].Name]
	}
	return nil
}

// carriedOut is true for steps that the server does.
func carriedOut(s *planner.Step) bool {
	switch s.Kind {
	case planner.StepRestartMember, planner.StepMoveVirtualIP:
		return false
	}
	return true
}
