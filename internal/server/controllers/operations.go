package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/etcd"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/planner"
)

const (
	// operateEvery is how often a cluster is looked at while something is done to it.
	operateEvery = 2 * time.Second
	// operateIdle is how often it is looked at while there is nothing to do.
	operateIdle = 30 * time.Second
	// changeLimit is how long a node may take for a change, where its group does not say, and installLimit for a new installation,
	// before it counts as failed.
	changeLimit, installLimit = 10 * time.Minute, time.Hour
	// rebootLimit is the same for a node that reboots: the firmware of large servers takes its time.
	rebootLimit = 20 * time.Minute
	// phaseLimit is how long a phase of its bring-up may fail again and again.
	phaseLimit = 2 * time.Minute
)

// operator carries out the steps that the planner decides for clusters that were brought up: one step begins when it is recorded, in
// status.nodes[].hand, and is carried out again by whichever server finds it there, until it has ended. Every step may be carried
// out twice.
type operator struct {
	Deps
	apis interface {
		state(cluster string) *kubeapi.State
	}
	sights    sights
	rewriting progresses
	inUse     inUse
}

func operationReconciler(d Deps, apis *clusterAPIs) reconciler {
	r := &operator{Deps: d, apis: apis}
	r.sights.operator = r
	return reconciler{name: "cluster-operations", workers: 4, do: r.reconcile, watches: append(clusterWatches(d), machinesThatMatter(d), apis.source())}
}

// operation is one look at a cluster.
type operation struct {
	*operator
	was, c *v1alpha1.Cluster
	groups []v1alpha1.MachineGroup
	// everywhere are the groups of all clusters.
	everywhere []v1alpha1.MachineGroup
	in         planner.Input
	sight      *sight
	at         metav1.Time
	// steps are those that are carried out at once, and did not end well.
	steps []v1alpha1.ClusterWorkStep
	// blocks are what hinders an operation that the planner knows nothing of.
	blocks []planner.Block
}

func (r *operator) reconcile(ctx context.Context, name string) (time.Duration, error) {
	o := &operation{operator: r, was: &v1alpha1.Cluster{}, at: metav1.NewTime(r.Now().Truncate(time.Second))}
	switch err := r.Client.Get(ctx, client.ObjectKey{Name: name}, o.was); {
	case apierrors.IsNotFound(err):
		r.sights.forget(name)
		r.rewriting.forget(name)
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("read cluster %s: %w", name, err)
	}
	if o.was.DeletionTimestamp != nil {
		return 0, nil
	}
	if !members.BroughtUp(o.was) {
		o.c = o.was.DeepCopy()
		o.removeFormerNodes(ctx)
		return o.end(ctx, operateIdle)
	}
	if o.was.Status.Restore.Running() {
		return operateEvery, nil // etcd has no members to speak of
	}
	groups := &v1alpha1.MachineGroupList{}
	if err := r.Client.List(ctx, groups); err != nil {
		return 0, fmt.Errorf("list machine groups: %w", err)
	}
	o.everywhere = groups.Items
	for _, g := range groups.Items {
		if g.Spec.Cluster == name {
			o.groups = append(o.groups, g)
		}
	}
	if !(members.Record{Cluster: o.was, Groups: o.groups}).Settled() {
		return operateIdle, nil // it wakes this again
	}
	if view, _, _ := r.Clusters.View(name); view.Spec != members.SpecOf(o.was, o.groups) && view.Problem == "" {
		return 100 * time.Millisecond, nil // what nodes are to have is not known yet
	} else if view.Problem == "" && view.Rotation != members.RotationMark(o.was.Status.Rotation) {
		return 100 * time.Millisecond, nil
	}
	o.c = o.was.DeepCopy()
	o.removeFormerNodes(ctx)
	again, err := o.run(ctx)
	if err != nil {
		return 0, err
	}
	return o.end(ctx, again)
}

// end writes what has changed.
func (o *operation) end(ctx context.Context, again time.Duration) (time.Duration, error) {
	if equality.Semantic.DeepEqual(o.was.Status, o.c.Status) {
		return again, nil
	}
	switch err := o.write(ctx); {
	case apierrors.IsConflict(err):
		return 100 * time.Millisecond, nil
	case err != nil && !apierrors.IsNotFound(err):
		return 0, fmt.Errorf("write status of cluster %s: %w", o.c.Name, err)
	}
	return again, nil
}

// write records what this reconciler owns of the status. Others write theirs meanwhile.
func (o *operation) write(ctx context.Context) error {
	for try := 1; ; try++ {
		err := o.Client.Status().Patch(ctx, o.c, client.MergeFromWithOptions(o.was, client.MergeFromWithOptimisticLock{}))
		if !apierrors.IsConflict(err) || try == 5 {
			return err
		}
		fresh := &v1alpha1.Cluster{}
		if err := o.Client.Get(ctx, client.ObjectKey{Name: o.c.Name}, fresh); err != nil {
			return err
		}
		next := fresh.DeepCopy()
		ownInto(&next.Status, &o.was.Status, &o.c.Status)
		o.was, o.c = fresh, next
	}
}

// ownInto takes from is what the reconciler of operations owns, where it has changed it since was. Nodes that were there and are not any more
// are dropped. The history is of several writers, and gets what is new.
func ownInto(into, was, is *v1alpha1.ClusterStatus) {
	change(&into.Work, was.Work, is.Work)
	change(&into.Failure, was.Failure, is.Failure)
	change(&into.PlannedSpec, was.PlannedSpec, is.PlannedSpec)
	change(&into.BackupWanted, was.BackupWanted, is.BackupWanted)
	change(&into.Rotation, was.Rotation, is.Rotation)
	change(&into.PastRotations, was.PastRotations, is.PastRotations)
	for _, step := range is.History {
		if !slices.ContainsFunc(was.History, func(old v1alpha1.ClusterWorkStep) bool { return equality.Semantic.DeepEqual(old, step) }) {
			into.Remember(step)
		}
	}
	find := func(s *v1alpha1.ClusterStatus, machine string) *v1alpha1.ClusterNode {
		for i := range s.Nodes {
			if s.Nodes[i].Machine == machine {
				return &s.Nodes[i]
			}
		}
		return nil
	}
	into.Nodes = slices.DeleteFunc(into.Nodes, func(n v1alpha1.ClusterNode) bool { return find(was, n.Machine) != nil && find(is, n.Machine) == nil })
	into.ForeignNodes = slices.DeleteFunc(into.ForeignNodes, func(n v1alpha1.ForeignNode) bool {
		return passesForForeign(was, n.Name) && !passesForForeign(is, n.Name)
	})
	for i := range into.Nodes {
		n := &into.Nodes[i]
		before, own := find(was, n.Machine), find(is, n.Machine)
		if before == nil || own == nil {
			continue
		}
		change(&n.Hand, before.Hand, own.Hand)
		change(&n.Version, before.Version, own.Version)
		change(&n.EtcdVersion, before.EtcdVersion, own.EtcdVersion)
		change(&n.Etcd, before.Etcd, own.Etcd)
		change(&n.LearnerFailures, before.LearnerFailures, own.LearnerFailures)
		change(&n.Leaving, before.Leaving, own.Leaving)
		change(&n.Rebooted, before.Rebooted, own.Rebooted)
		change(&n.RebootRequest, before.RebootRequest, own.RebootRequest)
		change(&n.RebootState, before.RebootState, own.RebootState)
		change(&n.Remedies, before.Remedies, own.Remedies)
		change(&n.Prefetch, before.Prefetch, own.Prefetch)
		change(&n.Replacing, before.Replacing, own.Replacing)
	}
}

// change writes a value that differs from what it was.
func change[T any](into *T, was, is T) {
	if !equality.Semantic.DeepEqual(was, is) {
		*into = is
	}
}

// run changes o.c's status, and what is behind it.
func (o *operation) run(ctx context.Context) (again time.Duration, err error) {
	o.forgetRemedies()
	o.endPrefetch()
	o.foldRebootRequests()
	facts := o.facts()
	if facts.Spares, err = o.spares(ctx); err != nil {
		return 0, err
	}
	if facts.Images, err = o.images(ctx, facts.Machines); err != nil {
		return 0, err
	}
	if o.in, err = members.Steps(facts); err != nil {
		o.say(planner.Plan{Blocks: []planner.Block{{Operation: planner.OperationUpgrade, Reason: err.Error(), Remedy: "correct the Cluster"}}})
		return operateIdle, nil
	}
	if o.Backups == nil {
		o.in.Wanted.BackupAge = 0
	}
	o.keepUnchanged()
	// The place of a node that is to go is free for another machine, which a living member of etcd waits for.
	for i := range o.c.Status.Nodes {
		o.c.Status.Nodes[i].Leaving = o.in.Observed.Nodes[i].Leaving
	}
	// While nothing is to be done by what is recorded, the cluster itself is asked now and then: somebody else may have changed it.
	idle := !slices.ContainsFunc(o.c.Status.Nodes, func(n v1alpha1.ClusterNode) bool { return n.Hand != nil })
	idle = idle && o.c.Status.OpenRotation() == nil && o.c.WantedRotation() == nil
	if idle && o.sights.lookedAt(o.c.Name, o.Now().Add(-operateIdle)) {
		if plan := planner.Next(o.in); len(plan.Steps) == 0 {
			plan.Blocks = append(plan.Blocks, o.blocks...)
			o.say(plan)
			return o.until(plan, operateIdle), nil
		}
	}
	if o.sight, err = o.sights.look(ctx, o.c); err != nil {
		return 0, err
	}
	o.sight.observe(o.c, &o.in)
	if o.recordMembers(ctx) || o.goOn(ctx) {
		return 100 * time.Millisecond, nil // the next look sees what came of it
	}
	if o.sight.problem != "" && !o.in.Wanted.Paused {
		o.say(planner.Plan{Blocks: []planner.Block{{Operation: planner.OperationChange, Reason: o.sight.problem, Remedy: "nothing is begun until it answers"}}})
		return operateEvery, nil
	}
	if !o.in.Wanted.Paused && !o.in.Wanted.Abort {
		switch changed, err := o.rotate(ctx); {
		case err != nil:
			o.block(err.Error(), "it is tried again")
			o.Log.Warn("rotation is tried again", "cluster", o.c.Name, "err", err)
		case changed:
			return 100 * time.Millisecond, nil
		}
	}
	if planner.Preflights(o.in) && !o.in.Wanted.Paused {
		o.in.Observed.Preflight = o.preflight(ctx)
	} else if len(facts.Changed) > 0 {
		o.in.Observed.Lacking = o.noContent(ctx)
	}
	plan := planner.Next(o.in)
	for _, s := range plan.Steps {
		o.begin(ctx, s)
	}
	o.tellPrefetch(plan)
	plan.Blocks = append(plan.Blocks, o.blocks...)
	o.say(plan)
	if idle && len(plan.Steps) == 0 {
		return o.until(plan, operateIdle), nil
	}
	return o.until(plan, operateEvery), nil
}

// keepUnchanged takes back that a spare replaces a node, while nothing was done to it and it is as it is wanted again, or is to be changed
// in place.
func (o *operation) keepUnchanged() {
	for i := range o.c.Status.Nodes {
		n, p := &o.c.Status.Nodes[i], &o.in.Observed.Nodes[i]
		if n.Replacing != "" && n.Hand == nil && p.Replaced && !planner.Replaces(o.in, p.Name) {
			n.Replacing, p.Leaving, p.Replaced = "", "", false
		}
	}
}

func (o *operation) until(plan planner.Plan, most time.Duration) time.Duration {
	if !plan.Again.IsZero() {
		most = min(most, max(plan.Again.Sub(o.Now()), 100*time.Millisecond))
	}
	return most
}

// facts are what the planner is asked by.
func (o *operation) facts() members.Facts {
	f := members.Facts{Cluster: o.c, Groups: o.groups, Placed: map[string][]string{}, Changed: map[string]planner.Touch{}, Prefetched: map[string]bool{}, Now: o.Now()}
	for _, g := range o.groups {
		f.Placed[g.Name] = g.Status.Machines
		for _, name := range g.Status.Machines {
			o.machineInto(&f, name)
		}
	}
	for _, n := range o.c.Status.Nodes {
		if !slices.ContainsFunc(f.Machines, func(m v1alpha1.Machine) bool { return m.Name == n.Machine }) {
			o.machineInto(&f, n.Machine)
		}
	}
	for i := range f.Machines {
		m := &f.Machines[i]
		if n := o.node(m.Name); n != nil && n.Prefetch != nil {
			f.Prefetched[m.Name], _, _ = o.Clusters.Prefetched(m, o.c.Spec.Version)
		}
		has := configOf(m, o.c.Name)
		if has == nil {
			continue
		}
		if want, why := o.Clusters.Config(m.Name); why == "" && *has != want {
			f.Changed[m.Name] = planner.Touch{Etcd: has.Etcd != want.Etcd, APIServer: has.ControlPlane != want.ControlPlane}
		}
	}
	return f
}

func (o *operation) machineInto(f *members.Facts, name string) {
	if m, ok := o.Fleet.Get(name); ok {
		f.Machines = append(f.Machines, *m)
	}
}

// configOf is what a machine reports that it is configured with for a cluster; nil when it has not.
func configOf(m *v1alpha1.Machine, cluster string) *v1alpha1.ConfigDigests {
	if m == nil || m.Status.Kubernetes == nil || m.Status.Kubernetes.Cluster != cluster {
		return nil
	}
	return m.Status.Kubernetes.Config
}

func (o *operation) node(machine string) *v1alpha1.ClusterNode {
	for i := range o.c.Status.Nodes {
		if n := &o.c.Status.Nodes[i]; n.Machine == machine {
			return n
		}
	}
	return nil
}

// recordMembers makes the record of etcd's members what etcd itself says, where the server died between a change and its record. It
// says whether it changed anything.
func (o *operation) recordMembers(ctx context.Context) (changed bool) {
	if len(o.sight.members) == 0 {
		return false
	}
	for i := range o.c.Status.Nodes {
		n := &o.c.Status.Nodes[i]
		m, is := o.sight.member(n)
		goes := n.Hand != nil && (n.Hand.Operation == string(planner.OperationLeave) || installsAnew(n.Hand) && !n.Hand.Changed)
		switch {
		case is && n.Etcd == nil && !goes && mayBeRecorded(m):
			initial, err := o.sight.etcd.AddLearner(ctx, n.NodeName, addressOf(n))
			if err != nil {
				o.Log.Warn("cannot record a member of etcd", "cluster", o.c.Name, "machine", n.Machine, "err", err)
				continue
			}
			n.Etcd = &v1alpha1.EtcdMember{InitialCluster: initial, Existing: true, AddedAt: new(o.at), Coming: m.Learner}
		case is && n.Etcd != nil && n.Etcd.Coming && !m.Learner:
			n.Etcd.Coming = false
		case !is && n.Etcd != nil && goes:
			n.Etcd = nil
		default:
			continue
		}
		changed = true
	}
	return changed
}

// mayBeRecorded says whether a member of etcd that is not recorded may become that of the node at its address. A voter that is silent may
// be of a former installation: with its identity and without its data, a new one could vote away what the majority has confirmed.
func mayBeRecorded(m etcd.Member) bool {
	return m.Name == "" || m.Learner || m.Answers
}

// goOn goes on with the steps that have begun, and says whether one has ended.
func (o *operation) goOn(ctx context.Context) (ended bool) {
	for i := range o.c.Status.Nodes {
		n := &o.c.Status.Nodes[i]
		if n.Hand == nil || n.Hand.Step == "" {
			continue
		}
		if isRemedy(n.Hand.Step) {
			ended = o.goOnMending(ctx, n) || ended
			continue
		}
		done, err := o.carryOn(ctx, n)
		switch h := n.Hand; {
		case err != nil && errors.As(err, new(failure)):
			h.Failed = err.Error()
			o.c.Status.Failure = &v1alpha1.ClusterFailure{Node: n.Machine, Reason: h.Failed, At: o.at, Spec: members.SpecOf(o.c, o.groups)}
			o.endStep(n, h.Failed)
			ended = true
		case err != nil:
			h.Message = err.Error()
		case done:
			o.endStep(n, "")
			ended = true
		}
	}
	return ended
}

// failure is an error that no further try changes.
type failure struct{ text string }

func (f failure) Error() string { return f.text }

func fail(format string, args ...any) error { return failure{fmt.Sprintf(format, args...)} }

// endStep closes the step of a node.
func (o *operation) endStep(n *v1alpha1.ClusterNode, problem string) {
	h := n.Hand
	o.remember(v1alpha1.ClusterWorkStep{Kind: h.Step, Operation: h.Operation, Node: n.Machine, Reason: h.Reason, StartedAt: h.StepSince, FinishedAt: new(o.at), Error: problem})
	h.Step, h.Message, h.StepSince = "", "", new(o.at)
}

func (o *operation) remember(step v1alpha1.ClusterWorkStep) {
	o.c.Status.Remember(step)
	if step.Error != "" {
		o.Log.Warn("cluster step failed", "cluster", o.c.Name, "machine", step.Node, "step", step.Kind, "operation", step.Operation, "err", step.Error)
		return
	}
	o.Log.Info("cluster step done", "cluster", o.c.Name, "machine", step.Node, "step", step.Kind, "operation", step.Operation)
}

// carryOn does what a step needs now, and says whether it has ended.
func (o *operation) carryOn(ctx context.Context, n *v1alpha1.ClusterNode) (done bool, err error) {
	switch planner.Kind(n.Hand.Step) {
	case planner.StepDrain:
		return o.drain(ctx, n)
	case planner.StepChange:
		return o.change(n)
	case planner.StepRollBack:
		return o.rollBack(n)
	}
	return false, fail("this version does not know step %q; a newer one began it", n.Hand.Step)
}

// drain evicts what is on a node that was cordoned.
func (o *operation) drain(ctx context.Context, n *v1alpha1.ClusterNode) (done bool, err error) {
	if o.sight.problem != "" {
		return false, errors.New(o.sight.problem)
	}
	if _, err := o.sight.api.Cordon(ctx, n.NodeName, true); err != nil {
		return false, err
	}
	d, err := o.sight.api.Evict(ctx, n.NodeName)
	switch {
	case err != nil:
		return false, err
	case len(d.Left) == 0:
		n.Hand.Drained = true
		return true, nil
	}
	n.Hand.Message = fmt.Sprintf("%d pods are left: %s", len(d.Left), someOf(d.Left))
	if len(d.Held) > 0 {
		n.Hand.Message += fmt.Sprintf("; %d do not let themselves be evicted: %s", len(d.Held), someOf(d.Held))
	}
	return false, nil
}

// someOf a list that may be long.
func someOf(list []string) string {
	const most = 3
	if len(list) > most {
		return strings.Join(list[:most], ", ") + ", ..."
	}
	return strings.Join(list, ", ")
}

// change waits until a node has what it was told to take.
func (o *operation) change(n *v1alpha1.ClusterNode) (done bool, err error) {
	m, _ := o.Fleet.Get(n.Machine)
	parts, since := planner.PartsOf(n.Hand.Parts), o.Now().Sub(n.Hand.StepSince.Time)
	if parts.System {
		return o.reinstalled(n, m, since)
	}
	missing := o.missing(n, m)
	if missing == "" && n.Hand.Changed {
		wanted, why := o.Clusters.Config(n.Machine)
		switch has := configOf(m, o.c.Name); {
		case why != "":
			missing = why
		case has == nil || *has != wanted:
			missing = "it has not taken its new configuration"
		case parts.Certificates && m.Status.Kubernetes.RenewAt != nil && !m.Status.Kubernetes.RenewAt.After(o.Now()):
			missing = "it has not renewed its certificates"
		}
	}
	if missing == "" && parts.Reboot {
		missing = o.reboot(n, m)
	}
	return missing == "", o.waitFor(n, m, missing, since)
}

// reboot has a node end its boot, once it has everything else, and says what is missing until it is back in another one.
func (o *operation) reboot(n *v1alpha1.ClusterNode, m *v1alpha1.Machine) (missing string) {
	h, boot := n.Hand, bootOf(m)
	switch {
	case boot == "":
		return "it has not reported in which boot it is"
	case h.BootID == "":
		h.BootID, n.Rebooted = boot, &v1alpha1.NodeReboot{At: o.at, Reason: o.whyReboot(n.Machine)}
		return "it is told to reboot"
	case h.BootID == boot:
		return "it has not rebooted"
	case o.sight.nodes[n.NodeName].BootID != boot:
		return "its kubelet has not reported since the reboot"
	}
	return ""
}

// bootOf is the boot that a machine's node has reported; empty when it has not.
func bootOf(m *v1alpha1.Machine) string {
	if m == nil || m.Status.Node == nil {
		return ""
	}
	return m.Status.Node.BootID
}

// rollBack waits until a node has what it had before.
func (o *operation) rollBack(n *v1alpha1.ClusterNode) (done bool, err error) {
	m, _ := o.Fleet.Get(n.Machine)
	missing := o.missing(n, m)
	if has, former := configOf(m, o.c.Name), n.Hand.Former; missing == "" && former != nil && former.Config != nil && has != nil && *has != *former.Config {
		missing = "it has not gone back to its former configuration"
	}
	return missing == "", o.waitFor(n, m, missing, o.Now().Sub(n.Hand.StepSince.Time))
}

// missing is what a node still lacks of the versions that it is to run; empty when it is well.
func (o *operation) missing(n *v1alpha1.ClusterNode, m *v1alpha1.Machine) string {
	if m == nil {
		return "its Machine does not exist any more"
	}
	node := o.sight.nodes[n.NodeName]
	member, has := o.sight.member(n)
	switch up := m.Status.Kubernetes; {
	case up == nil || up.Version != n.Version:
		return "it has not begun to take version " + n.Version
	case !up.Done:
		return "its bring-up goes on"
	case !node.Ready:
		return "its node is not ready"
	case node.KubeletVersion != n.Version:
		return fmt.Sprintf("its kubelet is %s and is to be %s", node.KubeletVersion, n.Version)
	case n.Etcd != nil && n.EtcdVersion != "" && has && member.Version != n.EtcdVersion:
		return fmt.Sprintf("its member of etcd runs %q and is to run %s", member.Version, n.EtcdVersion)
	case n.Etcd != nil && has && !member.Answers:
		return "its member of etcd does not answer"
	}
	return ""
}

// waitFor notes what a node lacks, or ends the step with an error when that has gone on for too long.
func (o *operation) waitFor(n *v1alpha1.ClusterNode, m *v1alpha1.Machine, missing string, since time.Duration) error {
	if missing == "" {
		return nil
	}
	if o.c.Spec.Paused {
		n.Hand.Message = missing + "; the cluster is paused"
		return nil // the node begins nothing, and does not fail for it
	}
	if text := failedPhase(m); text != "" && since > phaseLimit {
		return fail("%s", text)
	}
	limit := changeLimit
	if n.Hand.BootID != "" {
		limit = rebootLimit
	}
	if g := o.group(n.Group); g != nil && g.Spec.Rollout.ChangeTimeout != nil {
		limit = g.Spec.Rollout.ChangeTimeout.Duration
	}
	if running := runningPhase(m); running != "" {
		missing += " (" + running + ")"
	}
	if since > limit {
		return fail("after %s %s", limit, missing)
	}
	n.Hand.Message = missing
	return nil
}

// reinstalled waits until a machine was installed anew. Joining again is not part of it.
func (o *operation) reinstalled(n *v1alpha1.ClusterNode, m *v1alpha1.Machine, since time.Duration) (done bool, err error) {
	if m == nil {
		return false, fail("its Machine does not exist any more")
	}
	switch status := m.Status.Intent; {
	case m.WantedIntent() == nil && status != nil && status.State == v1alpha1.IntentFailed:
		return false, fail("installing it anew failed: %s", status.Message)
	case m.WantedIntent() == nil:
		return true, nil
	case since > installLimit:
		return false, fail("it was not installed anew within %s: %s", installLimit, m.Status.Message)
	}
	n.Hand.Message = "it is being installed anew"
	return false, nil
}
