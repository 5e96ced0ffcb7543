package controllers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/planner"
)

// begin records a step that takes time, or carries out one that does not.
func (o *operation) begin(ctx context.Context, s planner.Step) {
	n := o.node(s.Node)
	switch s.Kind {
	case planner.StepAdd:
		return // members.Decide takes machines, as it did at the first bring-up
	case planner.StepBackup:
		o.wantBackup(s)
		return
	case planner.StepPull:
		if n.Prefetch == nil {
			n.Prefetch = &v1alpha1.WantedPrefetch{Version: o.c.Spec.Version, Since: o.at}
			o.Log.Info("node is told to fetch what an upgrade needs", "cluster", o.c.Name, "machine", n.Machine, "version", n.Prefetch.Version)
			if m, ok := o.Fleet.Get(n.Machine); ok && (m.Status.Kubernetes == nil || m.Status.Kubernetes.Prefetch == nil) {
				o.Log.Warn("agent of a node is of an older release; it fetches what it needs when it is changed", "cluster", o.c.Name, "machine", n.Machine)
			}
		}
		return
	case planner.StepTake:
		n.Hand = &v1alpha1.NodeHand{Operation: string(s.Operation), Parts: s.Parts.Names(), Reason: s.Reason, Since: o.at, StepSince: new(o.at)}
		o.Log.Info("cluster takes a node in hand", "cluster", o.c.Name, "machine", n.Machine, "operation", s.Operation, "reason", s.Reason)
		return
	case planner.StepDrain:
		n.Hand.Cordoned = n.Hand.Cordoned || !o.sight.nodes[n.NodeName].Unschedulable
		o.record(n, s)
		return
	case planner.StepChange:
		if err := o.installAnew(ctx, n, s); err != nil {
			n.Hand.Message = err.Error() // it is planned again by the next look
			o.Log.Warn("cluster step is tried again", "cluster", o.c.Name, "machine", s.Node, "step", s.Kind, "err", err)
			return
		}
		o.startChange(n, s)
		return
	case planner.StepRollBack:
		o.startRollBack(n, s)
		return
	case planner.StepReplace:
		if s.Operation != planner.OperationRemedy {
			n.Replacing = s.Reason
			o.remember(v1alpha1.ClusterWorkStep{Kind: string(s.Kind), Operation: string(s.Operation), Node: n.Machine, Reason: s.Reason, StartedAt: new(o.at), FinishedAt: new(o.at)})
			return
		}
		o.startRemedy(n, s)
		return
	case planner.StepRestart, planner.StepPowerCycle, planner.StepReinstall:
		o.startRemedy(n, s)
		return
	}
	err := o.atOnce(ctx, n, s)
	step := v1alpha1.ClusterWorkStep{Kind: string(s.Kind), Operation: string(s.Operation), Node: s.Node, Reason: s.Reason, StartedAt: new(o.at), FinishedAt: new(metav1.NewTime(o.Now()))}
	if err == nil {
		o.remember(step)
		return
	}
	// It is planned again by the next look.
	step.FinishedAt, step.Message = nil, err.Error()
	o.steps = append(o.steps, step)
	o.Log.Warn("cluster step is tried again", "cluster", o.c.Name, "machine", s.Node, "step", s.Kind, "err", err)
}

// wantBackup has the keeper of backups take one that is younger than the upgrade's beginning, and tells how that stands.
func (o *operation) wantBackup(s planner.Step) {
	since := o.was.Status.BackupWanted
	if since == nil {
		since = new(o.at)
	}
	o.c.Status.BackupWanted = since
	step := v1alpha1.ClusterWorkStep{Kind: string(s.Kind), Operation: string(s.Operation), Reason: s.Reason, StartedAt: since}
	if b := o.was.Status.Backup; b != nil && b.Error != "" {
		step.Message = "the backup failed and is tried again: " + b.Error + "; to go on without one set spec.etcd.backup.every to 0s"
	}
	o.steps = append(o.steps, step)
}

// record that a step has begun.
func (o *operation) record(n *v1alpha1.ClusterNode, s planner.Step) {
	h := n.Hand
	h.Step, h.Reason, h.StepSince, h.Message = string(s.Kind), s.Reason, new(o.at), ""
}

// startChange tells a node to take what it is to have. The versions are written first, because its plan follows from them.
func (o *operation) startChange(n *v1alpha1.ClusterNode, s planner.Step) {
	h := n.Hand
	h.BootID = ""
	if s.Parts == (planner.Parts{Reboot: true}) {
		h.RolledBack, h.Failed, h.Parts = false, "", s.Parts.Names()
		o.record(n, s)
		return
	}
	if h.Former == nil && !s.Parts.System {
		m, _ := o.Fleet.Get(n.Machine)
		h.Former = &v1alpha1.NodeVersions{Kubernetes: n.Version, Etcd: n.EtcdVersion, Config: configOf(m, o.c.Name)}
	}
	if s.Parts.Etcd {
		n.EtcdVersion = s.State.Etcd
	}
	if s.Parts.ControlPlane || s.Parts.Kubelet {
		if n.EtcdVersion == "" && n.Etcd != nil && !s.Parts.Etcd {
			n.EtcdVersion = o.etcdOf(n) // another version of Kubernetes means no other etcd
		}
		n.Version = s.State.Kubelet
	}
	h.Changed, h.RolledBack, h.Failed = true, false, ""
	o.record(n, s)
	// Parts of an earlier step of this node are done.
	h.Parts = s.Parts.Names()
}

// etcdOf is the version of etcd that a node is known to run.
func (o *operation) etcdOf(n *v1alpha1.ClusterNode) string {
	for i := range o.in.Observed.Nodes {
		if p := &o.in.Observed.Nodes[i]; p.Name == n.Machine {
			return p.Has.Etcd
		}
	}
	return ""
}

func (o *operation) startRollBack(n *v1alpha1.ClusterNode, s planner.Step) {
	h := n.Hand
	if h.Former != nil {
		n.Version, n.EtcdVersion = h.Former.Kubernetes, h.Former.Etcd
	}
	h.Changed, h.RolledBack = false, true
	o.record(n, s)
}

// atOnce carries out what takes a moment.
func (o *operation) atOnce(ctx context.Context, n *v1alpha1.ClusterNode, s planner.Step) error {
	if s.Kind == planner.StepGiveBack {
		return o.giveBack(ctx, n)
	}
	if s.Kind == planner.StepRelease {
		return o.release(ctx, n)
	}
	if o.sight.etcd == nil {
		return errors.New("no member of etcd can be asked")
	}
	switch s.Kind {
	case planner.StepMoveLeader:
		return o.sight.etcd.MoveLeader(ctx, addressOf(o.node(s.To)))
	case planner.StepAddLearner:
		initial, err := o.sight.etcd.AddLearner(ctx, n.NodeName, addressOf(n))
		if err != nil {
			return err
		}
		n.Etcd = &v1alpha1.EtcdMember{InitialCluster: initial, Existing: true, AddedAt: new(o.at), Coming: true}
		return nil
	case planner.StepPromote:
		if err := o.sight.etcd.Promote(ctx, addressOf(n)); err != nil {
			return err
		}
		n.LearnerFailures = 0
		if n.Etcd != nil {
			n.Etcd.Coming = false
		}
		return nil
	case planner.StepRemoveMember:
		return o.removeMember(ctx, n, s)
	}
	return fmt.Errorf("this version does not carry out step %s", s.Kind)
}

func addressOf(n *v1alpha1.ClusterNode) netip.Addr {
	if n == nil || len(n.Addresses) == 0 {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(n.Addresses[0])
	return a
}

func (o *operation) removeMember(ctx context.Context, n *v1alpha1.ClusterNode, s planner.Step) error {
	at := addressOf(n)
	learner := false
	for _, m := range o.sight.members {
		if n == nil && memberName(m) == s.Member {
			at = m.Node
		}
		learner = learner || m.Node == at && m.Learner
	}
	if !at.IsValid() {
		return fmt.Errorf("member %s of etcd has no address that is known; remove it with etcdctl member remove", s.Member)
	}
	if err := o.sight.etcd.Remove(ctx, at); err != nil {
		return err
	}
	if n != nil {
		if learner && n.Hand == nil {
			n.LearnerFailures++
		}
		n.Etcd = nil
	}
	return nil
}

// giveBack ends an operation on a node.
func (o *operation) giveBack(ctx context.Context, n *v1alpha1.ClusterNode) error {
	if n.Hand.Cordoned {
		if o.sight.problem != "" {
			return errors.New(o.sight.problem)
		}
		if _, err := o.sight.api.Cordon(ctx, n.NodeName, false); err != nil {
			return err
		}
	}
	n.Hand = nil
	return nil
}

// release takes a node out of the cluster. What its machine is to do then is written first: it is held back for as long as the
// machine is a node, and would be forgotten afterwards.
func (o *operation) release(ctx context.Context, n *v1alpha1.ClusterNode) error {
	if m, ok := o.Fleet.Get(n.Machine); ok && !members.Gone(m) && m.WantedIntent() == nil && !strings.HasPrefix(intentID(m), o.leaveID(n)) {
		action := v1alpha1.ActionRelease
		if g := o.group(n.Group); g != nil && g.Spec.WhenRemoved == v1alpha1.RemovedToSpare {
			action = v1alpha1.ActionReinstall
		}
		if err := o.want(ctx, m, &v1alpha1.Intent{Action: action, ID: o.leaveID(n), RequestedBy: "Cluster " + o.c.Name}); err != nil {
			return err
		}
	}
	if o.sight.problem != "" {
		return errors.New(o.sight.problem)
	}
	if err := o.sight.api.DeleteNode(ctx, n.NodeName); err != nil {
		return err
	}
	machine := n.Machine
	o.c.Status.Nodes = slices.DeleteFunc(o.c.Status.Nodes, func(n v1alpha1.ClusterNode) bool { return n.Machine == machine })
	return nil
}

func (o *operation) group(name string) *v1alpha1.MachineGroup {
	for i := range o.groups {
		if o.groups[i].Name == name {
			return &o.groups[i]
		}
	}
	return nil
}

func intentID(m *v1alpha1.Machine) string {
	if m.Spec.Intent == nil {
		return ""
	}
	return m.Spec.Intent.ID
}

// leaveID is the same however often the step is carried out, and another one when the machine leaves a second time.
func (o *operation) leaveID(n *v1alpha1.ClusterNode) string {
	return fmt.Sprintf("leave-%s-%d", o.c.Name, n.Hand.Since.Unix())
}

func (o *operation) want(ctx context.Context, m *v1alpha1.Machine, intent *v1alpha1.Intent) error {
	defer o.Fleet.Write(m.Name)()
	next := m.DeepCopy()
	next.Spec.Intent = intent
	if err := o.Client.Patch(ctx, next, client.MergeFromWithOptions(m, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("write intent of machine %s: %w", m.Name, err)
	}
	o.Fleet.Put(next)
	return nil
}

// say writes down what is done now and what hinders more.
func (o *operation) say(plan planner.Plan) {
	w := v1alpha1.ClusterWork{Steps: slices.Clone(o.steps)}
	if !slices.ContainsFunc(plan.Steps, func(s planner.Step) bool { return s.Kind == planner.StepBackup }) {
		o.c.Status.BackupWanted = nil
	}
	for i := range o.c.Status.Nodes {
		n := &o.c.Status.Nodes[i]
		if h := n.Hand; h != nil {
			w.Steps = append(w.Steps, v1alpha1.ClusterWorkStep{Kind: stepName(h.Step), Operation: h.Operation, Node: n.Machine, Reason: h.Reason, Message: h.Message, StartedAt: h.StepSince})
		}
	}
	o.sayReboots(plan)
	for _, wait := range plan.Waits {
		w.Waits = append(w.Waits, strings.TrimPrefix(wait.Node+": "+wait.Reason, ": "))
	}
	o.rememberRefusals(plan)
	var needed []string
	for _, b := range plan.Blocks {
		w.Blocks = append(w.Blocks, b.String())
		// What lacks machines and what is broken is said elsewhere in the status, but that a whole group is left alone.
		if b.Operation != planner.OperationJoin && (b.Operation != planner.OperationRemedy || b.Node == "") {
			needed = append(needed, b.String())
		}
	}
	if !o.c.Spec.Paused {
		w.Message = shortened(needed)
	}
	w.Waits, w.Blocks = few(w.Waits), few(w.Blocks)
	if !plan.Opens.IsZero() {
		w.NextWindow = new(metav1.NewTime(plan.Opens))
	}
	w.Pending = planner.Pending(o.in) || len(w.Steps) > 0
	o.c.Status.Work, o.c.Status.PlannedSpec = &w, members.SpecOf(o.c, o.groups)
	if len(w.Steps)+len(w.Waits)+len(w.Blocks) == 0 && !w.Pending {
		o.c.Status.Work = nil
	}
	if f := o.c.Status.Failure; f != nil && f.Spec != members.SpecOf(o.c, o.groups) {
		o.c.Status.Failure = nil
	}
}

func stepName(step string) string {
	if step == "" {
		return "in hand"
	}
	return step
}

// few keeps a status readable with a thousand nodes.
func few(list []string) []string {
	const most = 20
	if len(list) > most {
		return append(list[:most:most], fmt.Sprintf("and %d more", len(list)-most))
	}
	return list
}
