package members

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/planner"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	// healthyFor is how long a changed node must be healthy before the next one follows, where its group does not say.
	healthyFor = 30 * time.Second
	// backupAge is how old a backup may be when an upgrade begins.
	backupAge = time.Hour
	// configNow and configThen stand for the configuration that a node has, and another one that it is to get.
	configNow, configThen = "now", "then"
	// rebootAgain is how long a node is not rebooted again for the same reason, unless a person asks.
	rebootAgain = 24 * time.Hour
	// installed stands for the operating system that a node has while nobody wants it installed anew.
	installed = "installed"
)

// Facts are what is recorded of a cluster that has nodes, and what it and its groups want.
type Facts struct {
	Cluster  *v1alpha1.Cluster
	Groups   []v1alpha1.MachineGroup
	Machines []v1alpha1.Machine
	// Placed are the machines of each group, see Decision.
	Placed map[string][]string
	// Spares are machines of no group that may take a broken node's place, by group.
	Spares map[string][]string
	// Changed are the nodes whose configuration differs from what it is to be, the version aside, by machine, and what
	// bringing it touches.
	Changed map[string]planner.Touch
	// Images are the operating system images that machines are to be installed with, by machine; see ImagesWanted. A machine that was
	// installed with another one is installed anew.
	Images map[string]string
	// Prefetched are the machines that have everything that spec.version needs.
	Prefetched map[string]bool
	Now        time.Time
}

// ChangedBy is what rendering a cluster anew changes at its nodes.
func ChangedBy(changes kube.Changes) map[string]planner.Touch {
	changed := map[string]planner.Touch{}
	for i := range changes.Nodes {
		// Routes, labels and the local load balancer follow other nodes and interrupt nothing.
		if n := &changes.Nodes[i]; n.Change == kube.Changed && len(n.Files)+len(n.Units)+len(n.Certificates) > 0 {
			changed[n.Machine] = planner.Touch{Etcd: slices.Contains(n.Restarts, kube.PodEtcd), APIServer: slices.Contains(n.Restarts, kube.PodAPIServer)}
		}
	}
	return changed
}

// Steps is what the planner is asked about a cluster. What is not recorded is left open: who leads etcd, who holds the virtual
// IP, and what pods and their budgets are in the cluster.
func Steps(f Facts) (planner.Input, error) {
	c, in := f.Cluster, planner.Input{Now: f.Now}
	etcd, err := kube.EtcdVersion(c.Spec.Version)
	if err != nil {
		return in, fmt.Errorf("spec.version: %w", err)
	}
	own := ownGroups(c.Name, f.Groups)
	in.Wanted = planner.Wanted{
		Generation: generation(c, own), AllowEvenMembers: c.Spec.Etcd.AllowEvenMembers, AllowDowntime: c.Spec.Upgrade.AllowDowntime,
		Paused: c.Spec.Paused, Abort: c.Annotations[v1alpha1.AnnotationAbort] == "true", Nodes: map[string]planner.State{},
		PullFirst: true,
	}
	if in.Wanted.Windows, err = Windows(c.Spec.MaintenanceWindows); err != nil {
		return in, err
	}
	byName := map[string]*v1alpha1.Machine{}
	for i := range f.Machines {
		byName[f.Machines[i].Name] = &f.Machines[i]
	}
	for i := range own {
		g := &own[i]
		roles := planner.Roles{Etcd: g.HasRole(v1alpha1.RoleEtcd), ControlPlane: g.HasRole(v1alpha1.RoleControlPlane), Worker: g.HasRole(v1alpha1.RoleWorker)}
		in.Wanted.Groups = append(in.Wanted.Groups, planner.Group{
			Name: g.Name, Roles: roles, Replicas: g.WantedReplicas(), State: stateOf(roles, c.Spec.Version, etcd, configNow), Rollout: rolloutOf(c, g), Remediation: remediationOf(g),
			KeepReleased: g.Spec.WhenRemoved == v1alpha1.RemovedToSpare, ReinstallSystem: true,
		})
	}
	groupOf := map[string]*planner.Group{}
	for i := range in.Wanted.Groups {
		groupOf[in.Wanted.Groups[i].Name] = &in.Wanted.Groups[i]
	}
	has := map[string]bool{}
	for i := range c.Status.Nodes {
		n := &c.Status.Nodes[i]
		has[n.Machine] = true
		g, m := groupOf[n.Group], byName[n.Machine]
		node, member, err := observed(n, m, g)
		if err != nil {
			return in, err
		}
		manual := c.Spec.Upgrade.Strategy == v1alpha1.UpgradeManual
		node.WantsReboot = rebootOf(n, m, manual, f.Now)
		if g != nil {
			want := g.State
			if touch, ok := f.Changed[n.Machine]; ok {
				want.Config = configThen
				g.ConfigTouches.Etcd = g.ConfigTouches.Etcd || touch.Etcd
				g.ConfigTouches.APIServer = g.ConfigTouches.APIServer || touch.APIServer
			}
			if manual && node.Hand == nil {
				want, node.RenewAt = node.Has, time.Time{} // late in their life certificates are renewed all the same
			}
			switch want.System = installed; {
			case reinstallWanted(m):
				want.System = m.Spec.Intent.ID
			case !manual && otherImage(m, f.Images[n.Machine]):
				want.System = "image " + f.Images[n.Machine]
			}
			in.Wanted.Nodes[n.Machine] = want
			if f.Prefetched[n.Machine] {
				node.Pulled = want
			}
		}
		in.Observed.Nodes = append(in.Observed.Nodes, node)
		if member != nil {
			in.Observed.Members = append(in.Observed.Members, *member)
		}
	}
	for _, g := range in.Wanted.Groups {
		for _, name := range f.Placed[g.Name] {
			if !has[name] {
				in.Observed.Spares = append(in.Observed.Spares, planner.Spare{Name: name, Groups: []string{g.Name}})
			}
		}
	}
	for _, group := range slices.Sorted(maps.Keys(f.Spares)) {
		for _, name := range f.Spares[group] {
			in.Observed.Spares = append(in.Observed.Spares, planner.Spare{Name: name, Groups: []string{group}})
		}
	}
	if failure := c.Status.Failure; failure != nil {
		in.Observed.Failure = &planner.Failure{Node: failure.Node, Reason: failure.Reason}
		if failure.Spec == SpecOf(c, own) {
			in.Observed.Failure.Generation = in.Wanted.Generation
		}
	}
	in.Observed.Returned = returned(c)
	if c.Spec.Etcd.BackupEvery() > 0 {
		in.Wanted.BackupAge = backupAge
	}
	if b := c.Status.Backup; b != nil && b.Last != nil {
		in.Observed.Backup = b.Last.TakenAt.Time
	}
	return in, nil
}

// Windows are maintenance windows as the planner takes them. They were checked when they were written; what was not must not be taken for
// none.
func Windows(written []v1alpha1.MaintenanceWindow) ([]planner.Window, error) {
	if errs := v1alpha1.ValidateMaintenanceWindows(field.NewPath("spec", "maintenanceWindows"), written); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	var windows []planner.Window
	for _, m := range written {
		var w planner.Window
		var err error
		if w.From, err = v1alpha1.ParseTimeOfDay(m.From); err != nil {
			return nil, err
		}
		if w.Zone, err = time.LoadLocation(m.TimeZone); err != nil {
			return nil, err
		}
		if m.Duration != nil {
			w.Length = m.Duration.Duration
		} else if w.To, err = v1alpha1.ParseTimeOfDay(m.To); err != nil {
			return nil, err
		} else if w.To < w.From {
			w.To += 24 * time.Hour
		}
		for _, name := range m.Days {
			day, _ := name.Day()
			w.Days = append(w.Days, day)
		}
		windows = append(windows, w)
	}
	return windows, nil
}

// SpecOf stands for what is written of a cluster and its groups: it is another one as soon as somebody writes.
func SpecOf(c *v1alpha1.Cluster, groups []v1alpha1.MachineGroup) string {
	return fmt.Sprintf("%x", uint64(generation(c, ownGroups(c.Name, groups))))
}

func generation(c *v1alpha1.Cluster, groups []v1alpha1.MachineGroup) int64 {
	hash := fnv.New64a()
	add := func(name string, generation int64) {
		hash.Write([]byte(name))
		hash.Write(binary.BigEndian.AppendUint64(nil, uint64(generation)))
	}
	add(string(c.UID)+c.Annotations[v1alpha1.AnnotationRetry], c.Generation)
	for i := range groups {
		add(string(groups[i].UID), groups[i].Generation)
	}
	return int64(hash.Sum64())
}

// returned is when a node of each group was last given back.
func returned(c *v1alpha1.Cluster) map[string]time.Time {
	groupOf := map[string]string{}
	for _, n := range c.Status.Nodes {
		groupOf[n.Machine] = n.Group
	}
	at := map[string]time.Time{}
	for _, step := range c.Status.History {
		if g := groupOf[step.Node]; g != "" && step.Kind == string(planner.StepGiveBack) && step.FinishedAt != nil {
			at[g] = step.FinishedAt.Time
		}
	}
	return at
}

// reinstallWanted says whether a person wants a node's machine installed anew.
func reinstallWanted(m *v1alpha1.Machine) bool {
	return m != nil && m.WantedIntent() != nil && m.Spec.Intent.Action == v1alpha1.ActionReinstall
}

// otherImage says whether a machine was installed with another image than it is to have. Images are told apart by name: a newer build under
// the same name reaches a machine when somebody has it installed anew.
func otherImage(m *v1alpha1.Machine, image string) bool {
	return m != nil && image != "" && m.Status.Installed != nil && m.Status.Installed.Image != "" && m.Status.Installed.Image != image
}

// ProfileOf a machine in a group: its own, where somebody gave it one; otherwise the group's.
func ProfileOf(g *v1alpha1.MachineGroup, m *v1alpha1.Machine) string {
	if own := m.Spec.Profile; own != "" && own != m.Annotations[v1alpha1.AnnotationGroupProfile] {
		return own
	}
	return cmp.Or(g.Spec.Profile, m.Spec.Profile)
}

// GiveProfile makes the profile of a machine's group its own, and remembers where it is from.
func GiveProfile(m *v1alpha1.Machine, profile string) {
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Spec.Profile, m.Annotations[v1alpha1.AnnotationGroupProfile] = profile, profile
}

// ImagesWanted are the images that the machines of a cluster are to be installed with, by machine, of those that there are. problems say
// which of them there are not, and why nothing is installed for it.
func ImagesWanted(c *v1alpha1.Cluster, groups []v1alpha1.MachineGroup, machines []v1alpha1.Machine, profiles []v1alpha1.Profile, images []v1alpha1.Image) (wanted map[string]string, problems []planner.Block) {
	imageOf, there, groupOf := map[string]string{}, map[string]bool{}, map[string]*v1alpha1.MachineGroup{}
	for i := range profiles {
		imageOf[profiles[i].Name] = profiles[i].Spec.Image
	}
	for i := range images {
		there[images[i].Name] = true
	}
	for i := range groups {
		groupOf[groups[i].Name] = &groups[i]
	}
	inGroup := map[string]string{}
	for i := range c.Status.Nodes {
		inGroup[c.Status.Nodes[i].Machine] = c.Status.Nodes[i].Group
	}
	wanted = map[string]string{}
	told := map[string]bool{}
	for i := range machines {
		m := &machines[i]
		g := groupOf[inGroup[m.Name]]
		if g == nil {
			continue
		}
		profile := ProfileOf(g, m)
		image := cmp.Or(m.Spec.Image, imageOf[profile])
		switch {
		case image == "":
		case there[image] || !otherImage(m, image):
			wanted[m.Name] = image
		case !told[image]:
			told[image] = true
			problems = append(problems, planner.Block{Operation: planner.OperationSystem, Reason: fmt.Sprintf("machines are to have image %s (profile %s), which no imported bundle has", image, profile),
				Remedy: "import the bundle that has it: coldrack bundle import FILE; or correct spec.image of the Profile"})
		}
	}
	return wanted, problems
}

// rebootOf says why a node is to be rebooted; empty when it is not. What its operating system asks for again soon after a reboot for the
// same reason is left to a person, or the node might never do anything else.
func rebootOf(n *v1alpha1.ClusterNode, m *v1alpha1.Machine, manual bool, now time.Time) string {
	if m == nil {
		return ""
	}
	why, asked := m.WantsReboot()
	if r := n.RebootRequest; !asked && !manual && r != nil && m.Status.Node != nil && r.BootID == m.Status.Node.BootID {
		return "asked for on its Node: " + r.Request
	}
	if r := n.Rebooted; !asked && (manual || r != nil && r.Reason == why && now.Sub(r.At.Time) < rebootAgain) {
		return ""
	}
	return why
}

// leaving says why a node is to go although its group has room for it; empty when it is not.
func leaving(m *v1alpha1.Machine) string {
	switch {
	case m == nil:
		return "its Machine does not exist any more"
	case Gone(m):
		return "its machine was released"
	case m.WantedIntent() != nil && m.Spec.Intent.Action == v1alpha1.ActionRelease:
		return "its release is wanted"
	}
	return ""
}

func stateOf(roles planner.Roles, kubernetes, etcd, config string) planner.State {
	s := planner.State{Kubelet: kubernetes, Config: config, System: installed}
	if roles.Etcd {
		s.Etcd = etcd
	}
	if roles.ControlPlane {
		s.ControlPlane = kubernetes
	}
	return s
}

// observed is a node as it is recorded. g is nil when its group is gone.
func observed(n *v1alpha1.ClusterNode, m *v1alpha1.Machine, g *planner.Group) (planner.Node, *planner.Member, error) {
	roles := planner.Roles{Etcd: n.Etcd != nil}
	if g != nil {
		roles = g.Roles
	}
	etcd := n.EtcdVersion
	if roles.Etcd && etcd == "" {
		var err error
		if etcd, err = kube.EtcdVersion(n.Version); err != nil {
			return planner.Node{}, nil, fmt.Errorf("machine %s: %w", n.Machine, err)
		}
	}
	node := planner.Node{
		Name: n.Machine, Group: n.Group, Has: stateOf(roles, n.Version, etcd, configNow), Ready: n.Ready, Joining: n.ReadyChangedAt == nil,
		Reachable: m != nil && m.Status.Installed != nil && m.Status.Phase != v1alpha1.PhaseLost,
		APIServer: roles.ControlPlane && n.Ready, Leaving: leaving(m), LearnerFailures: int(n.LearnerFailures),
		Power: m != nil && m.Spec.BMC != nil, Rescue: m != nil && m.Spec.Rescue != nil,
	}
	if n.Replacing != "" && node.Leaving == "" {
		node.Leaving, node.Replaced = n.Replacing, true
	}
	for _, r := range n.Remedies {
		node.Remedies = append(node.Remedies, planner.Remedy{Kind: planner.Kind(r.Kind), At: r.At.Time})
		if r.Kind == string(planner.StepReplace) && node.Leaving == "" {
			node.Leaving = "it was broken, and a spare takes its place"
		}
	}
	if n.ReadyChangedAt != nil {
		node.Since = n.ReadyChangedAt.Time
	}
	// The programs that read their certificates only once are controller manager and scheduler: the planner has each node in hand
	// for them, and nothing else is touched.
	if k := kubernetesOf(m); k != nil && k.RenewAt != nil {
		node.RenewAt = k.RenewAt.Time
	}
	if h := n.Hand; h != nil {
		node.Hand = &planner.Hand{Operation: planner.Operation(h.Operation), Parts: planner.PartsOf(h.Parts), Since: h.Since.Time, Running: planner.Kind(h.Step),
			Failed: h.Failed, RolledBack: h.RolledBack}
		node.Cordoned, node.Drained = h.Cordoned, h.Drained
		if h.StepSince != nil && h.StepSince.After(node.Since) {
			node.Since = h.StepSince.Time // it has to be healthy from then on
		}
		if h.Former != nil {
			node.Former = new(stateOf(roles, h.Former.Kubernetes, cmp.Or(h.Former.Etcd, etcd), configNow))
		}
	}
	if n.Etcd == nil {
		return node, nil, nil
	}
	member := &planner.Member{Name: n.Machine, Node: n.Machine, Learner: n.Etcd.Coming, Healthy: n.Ready, Connected: n.Ready, InSync: n.Ready, Since: node.Since}
	if n.Etcd.AddedAt != nil {
		member.Since = n.Etcd.AddedAt.Time
	}
	return node, member, nil
}

func kubernetesOf(m *v1alpha1.Machine) *v1alpha1.KubernetesStatus {
	if m == nil {
		return nil
	}
	return m.Status.Kubernetes
}

func remediationOf(g *v1alpha1.MachineGroup) planner.Remediation {
	from := &g.Spec.Remediation
	r := planner.Remediation{Enabled: from.Enabled, Backoff: v1alpha1.DefaultRemediationPause, Reinstall: from.Reinstall, Replace: from.Replace}
	if from.NotReadyFor != nil {
		r.After = from.NotReadyFor.Duration
	}
	if from.Pause != nil {
		r.Backoff = from.Pause.Duration
	}
	if from.MaxUnhealthy != nil {
		most, _ := intstr.GetScaledValueFromIntOrPercent(from.MaxUnhealthy, g.WantedReplicas(), false)
		r.MaxBroken = max(1, most)
	}
	return r
}

func rolloutOf(c *v1alpha1.Cluster, g *v1alpha1.MachineGroup) planner.Rollout {
	r := planner.Rollout{MaxUnavailable: 1, HealthyFor: healthyFor, SkipCanary: g.Spec.Rollout.SkipCanary, RollBack: g.Spec.Rollout.RollBack}
	count := func(most *intstr.IntOrString) int {
		if most == nil {
			return 0
		}
		n, _ := intstr.GetScaledValueFromIntOrPercent(most, g.WantedReplicas(), false)
		return n
	}
	r.MaxSurge = count(g.Spec.Rollout.MaxSurge)
	if g.Spec.Rollout.MaxUnavailable != nil {
		r.MaxUnavailable = count(g.Spec.Rollout.MaxUnavailable)
	}
	if r.MaxUnavailable == 0 && r.MaxSurge == 0 {
		r.MaxUnavailable = 1
	}
	for _, set := range []struct {
		from *metav1.Duration
		to   *time.Duration
	}{{g.Spec.Rollout.HealthyFor, &r.HealthyFor}, {g.Spec.Rollout.PauseBetween, &r.PauseBetween}, {c.Spec.Upgrade.DrainTimeout, &r.DrainTimeout}} {
		if set.from != nil {
			*set.to = set.from.Duration
		}
	}
	return r
}
