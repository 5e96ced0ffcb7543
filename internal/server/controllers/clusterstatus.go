package controllers

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/machine/lifecycle"
)

// clusterFacts are everything that a cluster's status follows from.
type clusterFacts struct {
	now    time.Time
	groups []v1alpha1.MachineGroup // the cluster's own
	// machines are all that there are, by name.
	machines map[string]*v1alpha1.Machine
	// invalid is why the cluster cannot be carried out as it is written, or empty.
	invalid  string
	decision members.Decision
	// nodes to record.
	nodes []v1alpha1.ClusterNode
	view  members.View
	// api is nil while nothing is known of the cluster's own API.
	api *kubeapi.State
}

// foldCluster writes into c's status everything that the cluster reconciler owns. It is pure.
func foldCluster(c *v1alpha1.Cluster, f clusterFacts) {
	s := &c.Status
	s.ObservedGeneration = c.Generation
	valid := metav1.Condition{Type: v1alpha1.ConditionValid, Status: metav1.ConditionTrue, Reason: "Valid", ObservedGeneration: c.Generation, LastTransitionTime: metav1.NewTime(f.now)}
	if f.invalid != "" {
		valid.Status, valid.Reason, valid.Message = metav1.ConditionFalse, "Invalid", f.invalid
	}
	meta.SetStatusCondition(&s.Conditions, valid)
	if f.invalid != "" {
		// What is wrong with the writing says nothing of the nodes, which go on; but it is what a person must see.
		s.Phase, s.Message = v1alpha1.ClusterInvalid, f.invalid
		return
	}
	s.Nodes = slices.Clone(f.nodes)
	for i := range s.Nodes {
		foldClusterNode(&s.Nodes[i], f)
	}
	wanted := 0
	for i := range f.groups {
		wanted += max(f.groups[i].WantedReplicas(), len(f.decision.Placed[f.groups[i].Name]))
	}
	ready := count(s.Nodes, func(n v1alpha1.ClusterNode) bool { return n.Ready })
	s.NodesReady = fmt.Sprintf("%d/%d", ready, wanted)
	if f.view.Plan != nil {
		s.Endpoint = f.view.Plan.Endpoint
	}
	s.Version = controlPlaneVersion(s.Nodes, f)

	applied := objectsApplied(f)
	broughtUp := meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionBroughtUp)
	if !broughtUp {
		s.Steps = clusterSteps(s.Steps, s.Nodes, wanted, ready, applied, f)
		if broughtUp = wanted > 0 && ready >= wanted && applied && f.api.AddonsReady(); broughtUp {
			meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: v1alpha1.ConditionBroughtUp, Status: metav1.ConditionTrue, Reason: "EverythingReady",
				ObservedGeneration: c.Generation, LastTransitionTime: metav1.NewTime(f.now)})
		}
	}
	foldAddons(c, f, applied)
	var messages []string
	if c.Spec.Paused {
		messages = append(messages, "paused: nothing new is begun until spec.paused is false")
	}
	messages = append(messages, changedByOthers(c, f)...)
	if s.Work != nil && s.Work.Message != "" {
		messages = append(messages, s.Work.Message)
	}
	rotation := s.OpenRotation()
	if rotation != nil {
		messages = append(messages, strings.TrimSuffix(fmt.Sprintf("rotation of %s: %s: %s", rotation.Key, rotation.Stage, rotation.Message), ": "))
	}
	worse, others := troubles(s.Nodes, f)
	messages = append(append(append(messages, worse...), f.decision.Waiting...), others...)
	if b := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionBackedUp); b != nil && b.Reason == "Overdue" {
		messages = append(messages, b.Message)
	}
	if b := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionBackupCopied); b != nil && b.Reason == reasonCopyFails && f.now.Sub(b.LastTransitionTime.Time) > copyPatience {
		messages = append(messages, b.Message)
	}
	switch {
	case s.Restore.Running():
		s.Phase = v1alpha1.ClusterRolling
		messages = []string{strings.TrimSuffix(fmt.Sprintf("etcd is being restored from backup %s (%s): %s", s.Restore.Backup, s.Restore.Step, s.Restore.Message), ": ")}
	case len(f.groups) == 0 && len(s.Nodes) == 0:
		s.Phase = v1alpha1.ClusterPending
		messages = append(messages, fmt.Sprintf("no MachineGroup has spec.cluster %s", c.Name))
	case !broughtUp && !serversInstalled(s.Nodes, f):
		s.Phase = v1alpha1.ClusterPending
		installed := count(s.Nodes, func(n v1alpha1.ClusterNode) bool { return isInstalled(f.machines[n.Machine]) })
		messages = append(messages, fmt.Sprintf("%d of %d machines are installed", installed, wanted))
	case !broughtUp:
		s.Phase = v1alpha1.ClusterBringUp
		messages = append(append(messages, bringingUp(s.Nodes, f)...), waitingAddons(f)...)
	case s.PlannedSpec != "" && s.PlannedSpec != members.SpecOf(c, f.groups):
		s.Phase = v1alpha1.ClusterRolling
		messages = append([]string{"what has just been written is being planned"}, messages...)
	case s.Work != nil && s.Work.Pending, rotation != nil:
		s.Phase = v1alpha1.ClusterRolling
		messages = append(messages, workInHand(s)...)
	case len(worse) > 0:
		s.Phase = v1alpha1.ClusterDegraded
	default:
		s.Phase = v1alpha1.ClusterReady
		messages = append(append(messages, bringingUp(s.Nodes, f)...), waitingAddons(f)...)
	}
	s.Message = shortened(messages)
}

// changedByOthers tells of files on nodes that somebody else has changed. While the cluster is paused they stay as they are.
func changedByOthers(c *v1alpha1.Cluster, f clusterFacts) []string {
	var machines []v1alpha1.Machine
	for i := range f.nodes {
		if m := f.machines[f.nodes[i].Machine]; m != nil {
			machines = append(machines, *m)
		}
	}
	changed := v1alpha1.ChangedFiles(c.Name, machines)
	switch {
	case changed == "":
		return nil
	case c.Spec.Paused:
		return []string{"somebody else has changed files of nodes, and Coldrack leaves them so while it is paused: " + changed}
	}
	return []string{"somebody else has changed files of nodes, and they were put back: " + changed}
}

// workInHand says what is done to which node.
func workInHand(s *v1alpha1.ClusterStatus) []string {
	var messages []string
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if n.Hand == nil {
			continue
		}
		text := fmt.Sprintf("%s of node %s", n.Hand.Operation, n.NodeName)
		for _, more := range []string{n.Hand.Step, n.Hand.Message} {
			if more != "" {
				text += ": " + more
			}
		}
		messages = append(messages, text)
	}
	if s.Work != nil && s.Work.NextWindow != nil {
		messages = append(messages, "changes wait for the maintenance window that opens "+s.Work.NextWindow.UTC().Format(time.RFC3339))
	}
	return messages
}

// shortened keeps a status readable with hundreds of machines in trouble.
func shortened(messages []string) string {
	const most = 5
	if len(messages) > most {
		messages = append(messages[:most:most], fmt.Sprintf("and %d more", len(messages)-most))
	}
	return strings.Join(messages, "; ")
}

func count(nodes []v1alpha1.ClusterNode, is func(v1alpha1.ClusterNode) bool) int {
	n := 0
	for i := range nodes {
		if is(nodes[i]) {
			n++
		}
	}
	return n
}

func isInstalled(m *v1alpha1.Machine) bool { return m != nil && m.Status.Installed != nil }

// foldClusterNode takes in what the cluster's API says of a node. While it says nothing, what it said last stands.
func foldClusterNode(n *v1alpha1.ClusterNode, f clusterFacts) {
	if f.api == nil || !f.api.Reachable || f.api.Nodes == nil {
		return
	}
	state, registered := f.api.Nodes[n.NodeName]
	ready := registered && state.Ready
	if n.Ready != ready {
		since := f.now
		if !state.Since.IsZero() {
			since = state.Since
		}
		n.Ready, n.ReadyChangedAt = ready, new(metav1.NewTime(since.Truncate(time.Second)))
	}
	switch {
	case ready:
		n.Message = state.Problem
	case !registered:
		n.Message = "the node has not registered itself"
	case state.Message != "":
		n.Message = state.Message
	default:
		n.Message = state.Reason
	}
}

func objectsApplied(f clusterFacts) bool {
	return f.api != nil && f.view.Plan != nil && len(f.api.Objects.Errors) == 0 && f.api.Objects.Digest == kubeapi.Digest(f.view.Plan.Objects)
}

// bringup is what a machine has reported for its present cluster, or nil.
func bringup(m *v1alpha1.Machine) *v1alpha1.KubernetesStatus {
	if m == nil {
		return nil
	}
	return m.Status.Kubernetes
}

func controlPlaneVersion(nodes []v1alpha1.ClusterNode, f clusterFacts) string {
	version := ""
	for _, n := range nodes {
		if !hasRole(n, f, v1alpha1.RoleControlPlane) {
			continue
		}
		up := bringup(f.machines[n.Machine])
		if up == nil || up.Version == "" || version != "" && version != up.Version {
			return ""
		}
		version = up.Version
	}
	return version
}

func hasRole(n v1alpha1.ClusterNode, f clusterFacts, role v1alpha1.Role) bool {
	return slices.ContainsFunc(f.groups, func(g v1alpha1.MachineGroup) bool { return g.Name == n.Group && g.HasRole(role) })
}

// serversInstalled says whether the machines that everything else waits for have a system.
func serversInstalled(nodes []v1alpha1.ClusterNode, f clusterFacts) bool {
	return len(nodes) > 0 && !slices.ContainsFunc(nodes, func(n v1alpha1.ClusterNode) bool {
		return (hasRole(n, f, v1alpha1.RoleEtcd) || hasRole(n, f, v1alpha1.RoleControlPlane)) && !isInstalled(f.machines[n.Machine])
	})
}

// phaseDone says whether a node's phase has succeeded.
func phaseDone(m *v1alpha1.Machine, name kube.PhaseName) bool {
	up := bringup(m)
	return up != nil && (up.Done || slices.ContainsFunc(up.Phases, func(s v1alpha1.Step) bool {
		return s.Name == string(name) && (s.State == v1alpha1.StepSucceeded || s.State == v1alpha1.StepSkipped)
	}))
}

// clusterSteps are the steps of the first bring-up, with the times of those that were there before.
func clusterSteps(was []v1alpha1.Step, nodes []v1alpha1.ClusterNode, wanted, ready int, applied bool, f clusterFacts) []v1alpha1.Step {
	at := metav1.NewMicroTime(f.now.Truncate(time.Microsecond))
	var steps []v1alpha1.Step
	add := func(name string, done, total int, begun bool, message string) {
		step := v1alpha1.Step{Name: name, State: v1alpha1.StepPending, Message: message}
		if i := slices.IndexFunc(was, func(s v1alpha1.Step) bool { return s.Name == name }); i >= 0 {
			step.StartedAt, step.FinishedAt = was[i].StartedAt, was[i].FinishedAt
		}
		if begun || done > 0 {
			step.State = v1alpha1.StepRunning
			if step.StartedAt == nil {
				step.StartedAt = &at
			}
		}
		if total > 0 && done >= total {
			step.State = v1alpha1.StepSucceeded
			if step.FinishedAt == nil {
				step.FinishedAt = &at
			}
		} else {
			step.FinishedAt = nil
		}
		steps = append(steps, step)
	}
	of := func(done, total int, what string) string { return fmt.Sprintf("%d of %d %s", done, total, what) }
	has := count(nodes, func(n v1alpha1.ClusterNode) bool { return isInstalled(f.machines[n.Machine]) })
	add(v1alpha1.ClusterStepMachines, has, wanted, len(f.decision.Placed) > 0, of(has, wanted, "machines installed"))
	previous := has > 0
	for _, role := range []struct {
		step, what string
		role       v1alpha1.Role
		phase      kube.PhaseName
	}{
		{v1alpha1.ClusterStepEtcd, "members healthy", v1alpha1.RoleEtcd, kube.PhaseEtcd},
		{v1alpha1.ClusterStepControlPlane, "API servers answer", v1alpha1.RoleControlPlane, kube.PhaseAPIServer},
	} {
		total := count(nodes, func(n v1alpha1.ClusterNode) bool { return hasRole(n, f, role.role) })
		done := count(nodes, func(n v1alpha1.ClusterNode) bool {
			return hasRole(n, f, role.role) && phaseDone(f.machines[n.Machine], role.phase)
		})
		add(role.step, done, total, previous, of(done, total, role.what))
		previous = done > 0
	}
	objects, message := 0, ""
	if applied {
		objects, message = 1, fmt.Sprintf("%d objects", f.api.Objects.Count)
	} else if f.api != nil && len(f.api.Objects.Errors) > 0 {
		message = shortened(f.api.Objects.Errors)
	}
	add(v1alpha1.ClusterStepObjects, objects, 1, previous, message)
	add(v1alpha1.ClusterStepNodes, ready, wanted, applied || ready > 0, of(ready, wanted, "nodes ready"))
	working, addons := 0, 0
	if applied {
		addons = len(f.api.Addons)
		working = addons - len(waitingAddons(f))
	}
	add(v1alpha1.ClusterStepAddons, working, addons, applied && ready > 0, shortened(waitingAddons(f)))
	return steps
}

// waitingAddons are the addons that are not ready.
func waitingAddons(f clusterFacts) []string {
	var messages []string
	if f.api != nil {
		for _, a := range f.api.Addons {
			if !a.Ready {
				messages = append(messages, fmt.Sprintf("%s: %s", a.Name, a.Message))
			}
		}
	}
	return messages
}

// troubles are what is worse than it was, or does not get better by itself; and what else a person should know.
func troubles(nodes []v1alpha1.ClusterNode, f clusterFacts) (worse, others []string) {
	for _, n := range nodes {
		m := f.machines[n.Machine]
		wasReady := n.ReadyChangedAt != nil
		switch {
		case n.Hand != nil && n.Hand.Failed == "": // workInHand tells of it
		case m == nil:
			worse = append(worse, fmt.Sprintf("machine %s does not exist any more", n.Machine))
		case m.Status.Phase == v1alpha1.PhaseLost || m.Status.Phase == v1alpha1.PhaseFailed:
			worse = append(worse, fmt.Sprintf("machine %s is %s: %s", n.Machine, m.Status.Phase, m.Status.Message))
		case wasReady && !n.Ready:
			worse = append(worse, fmt.Sprintf("node %s is not ready since %s: %s", n.NodeName, n.ReadyChangedAt.UTC().Format(time.RFC3339), n.Message))
		case lifecycle.FailedPhase(m) != "":
			worse = append(worse, lifecycle.FailedPhase(m))
		case n.Ready && n.Message != "":
			others = append(others, fmt.Sprintf("node %s: %s", n.NodeName, n.Message))
		}
		if m != nil && m.Spec.Network != nil && !slices.Contains(n.Addresses, m.Spec.Network.Address) {
			others = append(others, fmt.Sprintf("machine %s: spec.network.address is %s, and the cluster knows it by %s: write that back, or release the machine first",
				n.Machine, m.Spec.Network.Address, strings.Join(n.Addresses, ", ")))
		}
	}
	if f.api == nil {
		return worse, others
	}
	if !f.api.Reachable && slices.ContainsFunc(nodes, func(n v1alpha1.ClusterNode) bool { return n.ReadyChangedAt != nil }) {
		worse = append([]string{fmt.Sprintf("the cluster's API does not answer since %s", f.api.Since.UTC().Format(time.RFC3339))}, worse...)
	}
	for _, e := range f.api.Objects.Errors {
		others = append(others, "cannot apply "+e)
	}
	for _, name := range slices.Sorted(maps.Keys(f.api.UserAddons)) {
		if s := f.api.UserAddons[name]; s.Phase != addon.Ready && s.Phase != addon.Gone {
			others = append(others, strings.TrimSuffix(fmt.Sprintf("add-on %s is %s: %s", name, s.Phase, s.Message), ": "))
		}
	}
	return worse, append(others, f.api.Problems...)
}

// foldAddons says how each add-on is, Coldrack's own first, and remembers what became of people's. While the cluster's API says nothing, what it
// said last stands.
func foldAddons(c *v1alpha1.Cluster, f clusterFacts, applied bool) {
	if f.api == nil || !f.api.Reachable || f.view.Plan == nil {
		return
	}
	var list []v1alpha1.ClusterAddon
	of := map[string]string{} // the add-on of a workload
	for _, o := range f.view.Plan.Objects {
		of[strings.ToLower(o.Kind)+" "+o.Namespace+"/"+o.Name] = o.Addon
		if !slices.ContainsFunc(list, func(a v1alpha1.ClusterAddon) bool { return a.Name == o.Addon }) {
			list = append(list, v1alpha1.ClusterAddon{Name: o.Addon, Version: kube.AddonVersion(f.view.Plan, c.Spec.Version, o.Addon), Ready: applied})
		}
	}
	for _, workload := range f.api.Addons {
		i := slices.IndexFunc(list, func(a v1alpha1.ClusterAddon) bool {
			return a.Name == of[workload.Kind+" "+workload.Namespace+"/"+workload.Name]
		})
		if i >= 0 && !workload.Ready {
			list[i].Ready, list[i].Message = false, workload.Message
		}
	}
	s := &c.Status
	if f.api.UserAddons == nil {
		for _, a := range s.Addons {
			if !slices.Contains(v1alpha1.OwnAddons(), a.Name) {
				list = append(list, a)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.api.UserAddons)) {
		is := f.api.UserAddons[name]
		if is.Phase == addon.Gone {
			continue
		}
		a := v1alpha1.ClusterAddon{Name: name, Version: is.Version, Ready: is.Phase == addon.Ready, Message: is.Message}
		if i := slices.IndexFunc(s.Addons, func(a v1alpha1.ClusterAddon) bool { return a.Name == name }); i >= 0 {
			a.Applied = s.Addons[i].Applied
		}
		if a.Ready && a.Applied != is.Digest {
			a.Applied = is.Digest
			s.Remember(addonStep("apply", strings.TrimSpace(name+" "+is.Version), f.now))
		}
		list = append(list, a)
	}
	for _, was := range s.Addons {
		if f.api.UserAddons != nil && was.Applied != "" && !slices.ContainsFunc(list, func(a v1alpha1.ClusterAddon) bool { return a.Name == was.Name }) {
			s.Remember(addonStep("remove", was.Name, f.now))
		}
	}
	s.Addons = list
	ready := metav1.Condition{Type: v1alpha1.ConditionAddonsReady, Status: metav1.ConditionTrue, Reason: "Healthy", ObservedGeneration: c.Generation, LastTransitionTime: metav1.NewTime(f.now)}
	var waiting []string
	for _, a := range list {
		if !a.Ready {
			waiting = append(waiting, strings.TrimSuffix(a.Name+": "+a.Message, ": "))
		}
	}
	if len(waiting) > 0 {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "NotHealthy", shortened(waiting)
	}
	meta.SetStatusCondition(&s.Conditions, ready)
}

func addonStep(kind, reason string, now time.Time) v1alpha1.ClusterWorkStep {
	return v1alpha1.ClusterWorkStep{Kind: kind, Operation: "add-on", Reason: reason, FinishedAt: new(metav1.NewTime(now.Truncate(time.Second)))}
}

// bringingUp says what each machine that is no node yet is doing.
func bringingUp(nodes []v1alpha1.ClusterNode, f clusterFacts) []string {
	var messages []string
	for _, n := range nodes {
		m := f.machines[n.Machine]
		switch {
		case n.Ready || n.ReadyChangedAt != nil || m == nil:
		case !isInstalled(m):
			messages = append(messages, fmt.Sprintf("machine %s is %s", n.Machine, strings.TrimSpace(string(m.Status.Phase)+" "+m.Status.CurrentStep)))
		case bringup(m) == nil:
			messages = append(messages, fmt.Sprintf("machine %s has not begun", n.Machine))
		case !m.Status.Kubernetes.Done && lifecycle.FailedPhase(m) == "":
			messages = append(messages, fmt.Sprintf("machine %s: %s", n.Machine, lifecycle.RunningPhase(m.Status.Kubernetes)))
		case m.Status.Kubernetes.Done:
			messages = append(messages, strings.TrimSuffix(fmt.Sprintf("node %s is up and not ready yet: %s", n.NodeName, n.Message), ": "))
		}
	}
	return messages
}
