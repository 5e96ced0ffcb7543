package peopleapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// applyManager is who owns the fields that people apply. A plan is made as if they did.
const applyManager = "coldrack"

// plan answers POST /coldrack/v1/plan.
func (a *ClusterAPI) plan(_ http.ResponseWriter, r *http.Request, b *Backend) (any, error) {
	var request peoplewire.PlanRequest
	if err := readRequest(r, &request); err != nil {
		return nil, err
	}
	if n := len(request.Objects); n > maxObjects {
		return nil, refuse(http.StatusRequestEntityTooLarge, "a plan of %d objects: %d are the most; plan one cluster at a time, with only what belongs to it", n, maxObjects)
	}
	ctx := r.Context()
	world, err := b.world(ctx)
	if err != nil {
		return nil, err
	}
	var response peoplewire.PlanResponse
	for i, raw := range request.Objects {
		if err := world.propose(ctx, b.Client, raw); err != nil {
			var status apierrors.APIStatus
			if !errors.As(err, &status) || status.Status().Code >= http.StatusInternalServerError {
				return nil, err
			}
			response.Refused = append(response.Refused, peoplewire.PlanRefusal{Object: i, Status: status.Status()})
		}
	}
	response.Clusters = []peoplewire.ClusterPlan{}
	for _, name := range world.affected() {
		response.Clusters = append(response.Clusters, world.preview(ctx, b, name, request.Details))
	}
	return response, nil
}

// world is what exists, with what somebody proposes laid over it.
type world struct {
	now members.Situation
	// clusters and groups that are proposed, as they would be after they were applied.
	clusters map[string]*v1alpha1.Cluster
	groups   map[string]*v1alpha1.MachineGroup
	// profiles and images as they would be; proposed are what profiles that are proposed were before, nil for nothing.
	profiles []v1alpha1.Profile
	images   []v1alpha1.Image
	proposed map[string]*v1alpha1.Profile
}

func (b *Backend) world(ctx context.Context) (*world, error) {
	var (
		cs v1alpha1.ClusterList
		gs v1alpha1.MachineGroupList
		ms v1alpha1.MachineList
		ss v1alpha1.SubnetList
		ps v1alpha1.ProfileList
		is v1alpha1.ImageList
	)
	for _, list := range []client.ObjectList{&cs, &gs, &ms, &ss, &ps, &is} {
		if err := b.Client.List(ctx, list); err != nil {
			return nil, fmt.Errorf("read what exists: %w", err)
		}
	}
	return &world{
		now:      members.Situation{Clusters: cs.Items, Groups: gs.Items, Machines: ms.Items, Subnets: ss.Items},
		clusters: map[string]*v1alpha1.Cluster{}, groups: map[string]*v1alpha1.MachineGroup{},
		profiles: ps.Items, images: is.Items, proposed: map[string]*v1alpha1.Profile{},
	}, nil
}

// propose asks the API what an object would be if it were applied: merged with what is there, defaults filled in,
// checked.
func (w *world) propose(ctx context.Context, c client.Client, raw []byte) error {
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(raw); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	var into client.Object
	switch kind := object.GroupVersionKind(); kind {
	case v1alpha1.GroupVersion.WithKind("Cluster"):
		into = &v1alpha1.Cluster{}
	case v1alpha1.GroupVersion.WithKind("MachineGroup"):
		into = &v1alpha1.MachineGroup{}
	case v1alpha1.GroupVersion.WithKind("Machine"):
		into = &v1alpha1.Machine{}
	case v1alpha1.GroupVersion.WithKind("Subnet"):
		into = &v1alpha1.Subnet{}
	case v1alpha1.GroupVersion.WithKind("Profile"):
		into = &v1alpha1.Profile{}
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("%s is no part of a cluster's plan; send only Cluster, MachineGroup, Machine, Subnet and Profile", kind.Kind))
	}
	strict := client.WithFieldValidation(c, client.FieldValidation(metav1.FieldValidationStrict))
	if err := strict.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), client.FieldOwner(applyManager), client.ForceOwnership, client.DryRunAll); err != nil {
		return err
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, into); err != nil {
		return err
	}
	switch o := into.(type) {
	case *v1alpha1.Cluster:
		w.clusters[o.Name] = o
	case *v1alpha1.MachineGroup:
		w.groups[o.Name] = o
	case *v1alpha1.Machine:
		w.now.Machines = laidOver(w.now.Machines, *o, func(m v1alpha1.Machine) string { return m.Name })
	case *v1alpha1.Subnet:
		w.now.Subnets = laidOver(w.now.Subnets, *o, func(s v1alpha1.Subnet) string { return s.Name })
	case *v1alpha1.Profile:
		name := func(p v1alpha1.Profile) string { return p.Name }
		w.proposed[o.Name] = nil
		if i := slices.IndexFunc(w.profiles, func(p v1alpha1.Profile) bool { return p.Name == o.Name }); i >= 0 {
			w.proposed[o.Name] = w.profiles[i].DeepCopy()
		}
		w.profiles = laidOver(w.profiles, *o, name)
	}
	return nil
}

// laidOver replaces the item of the same name, or adds it.
func laidOver[T any](list []T, item T, name func(T) string) []T {
	if i := slices.IndexFunc(list, func(t T) bool { return name(t) == name(item) }); i >= 0 {
		list[i] = item
		return list
	}
	return append(list, item)
}

// affected are the clusters that are proposed, or of which a group is, or the profile of a node.
func (w *world) affected() []string {
	var names []string
	for name := range w.clusters {
		names = append(names, name)
	}
	for _, g := range w.groups {
		names = append(names, g.Spec.Cluster)
	}
	for i := range w.now.Clusters {
		if len(w.profilesOf(&w.now.Clusters[i])) > 0 {
			names = append(names, w.now.Clusters[i].Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// profilesOf are the proposed profiles that machines of a cluster's nodes have.
func (w *world) profilesOf(c *v1alpha1.Cluster) []string {
	groups := map[string]*v1alpha1.MachineGroup{}
	for i := range w.now.Groups {
		groups[w.now.Groups[i].Name] = &w.now.Groups[i]
	}
	for name, g := range w.groups {
		groups[name] = g
	}
	groupOf := map[string]*v1alpha1.MachineGroup{}
	for _, n := range c.Status.Nodes {
		groupOf[n.Machine] = groups[n.Group]
	}
	var names []string
	for i := range w.now.Machines {
		m := &w.now.Machines[i]
		if g := groupOf[m.Name]; g != nil {
			if _, is := w.proposed[members.ProfileOf(g, m)]; is {
				names = append(names, members.ProfileOf(g, m))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (w *world) existing(name string) *v1alpha1.Cluster {
	for i := range w.now.Clusters {
		if w.now.Clusters[i].Name == name {
			return &w.now.Clusters[i]
		}
	}
	return nil
}

// allGroups are the groups of a cluster as they would be.
func (w *world) allGroups(cluster string) []v1alpha1.MachineGroup {
	groups := slices.Clone(w.now.Groups)
	for _, g := range w.groups {
		groups = laidOver(groups, *g, func(g v1alpha1.MachineGroup) string { return g.Name })
	}
	groups = slices.DeleteFunc(groups, func(g v1alpha1.MachineGroup) bool { return g.Spec.Cluster != cluster })
	slices.SortFunc(groups, func(a, b v1alpha1.MachineGroup) int { return cmp.Compare(a.Name, b.Name) })
	return groups
}

// preview is what would happen to one cluster.
func (w *world) preview(ctx context.Context, b *Backend, name string, details bool) peoplewire.ClusterPlan {
	was := w.existing(name)
	p := peoplewire.ClusterPlan{Preview: kube.Preview{Cluster: name, Exists: was != nil}}
	cluster := w.clusters[name]
	if cluster == nil {
		cluster = was
	}
	if cluster == nil {
		p.Invalid = append(p.Invalid, fmt.Sprintf("there is no cluster %q, which groups name; apply it with them", name))
		return p
	}
	groups := w.allGroups(name)
	p.Invalid, p.Warnings = w.check(b, cluster, was, groups)

	var proposed []v1alpha1.MachineGroup
	for _, g := range groups {
		if w.groups[g.Name] != nil {
			proposed = append(proposed, g)
		}
	}
	outcome, err := b.Clusters.Preview(cluster, proposed, w.now)
	if err != nil {
		// What validation found says the same in better words.
		if len(p.Invalid) == 0 {
			p.Invalid = append(p.Invalid, err.Error())
		}
		return p
	}
	if len(groups) > 0 {
		p.Problems = outcome.Waiting
	}
	if was != nil && was.Spec.Version != cluster.Spec.Version && len(was.Status.Nodes) > 0 {
		p.Warnings = append(p.Warnings, fmt.Sprintf("version %s becomes %s: nodes keep theirs until the upgrade reaches them, one after the other", was.Spec.Version, cluster.Spec.Version))
	}
	p.Written = w.written(cluster, was, groups)
	p.Machines = w.machines(was, groups, &outcome)
	if outcome.New != nil {
		p.Changes = kube.Diff(outcome.Old, outcome.New, details)
		p.Missing = append(missing(b.Content, outcome.New, cluster), missingOfAddons(ctx, b, name)...)
	}
	if was != nil && meta.IsStatusConditionTrue(was.Status.Conditions, v1alpha1.ConditionBroughtUp) && len(p.Invalid) == 0 {
		p.Forecast = w.forecast(ctx, b, cluster, was, groups, &outcome, p.Changes)
	}
	return p
}

// check says what can never work, and what is worth knowing. A cluster whose groups are not written yet is
// incomplete, not wrong.
func (w *world) check(b *Backend, cluster, was *v1alpha1.Cluster, groups []v1alpha1.MachineGroup) (invalid, warnings []string) {
	versions := b.Content.KubernetesVersions()
	if versions == nil {
		versions = []string{} // known: none
	}
	errs := v1alpha1.ValidateCluster(cluster, v1alpha1.ClusterFacts{
		Groups: groups, Versions: versions, Subnets: w.now.Subnets, Clusters: w.now.Clusters,
	})
	if was != nil {
		errs = append(errs, v1alpha1.ValidateClusterChange(cluster, was)...)
	}
	for i := range groups {
		for _, err := range v1alpha1.ValidateMachineGroup(&groups[i]) {
			invalid = append(invalid, fmt.Sprintf("MachineGroup %s: %v", groups[i].Name, err))
		}
	}
	for _, err := range errs {
		if err.Type == field.ErrorTypeRequired && err.Field == "spec" && len(groups) == 0 {
			continue
		}
		invalid = append(invalid, err.Error())
	}
	if len(groups) == 0 {
		warnings = append(warnings, "it has no MachineGroup yet, and so no machines")
	}
	return invalid, warnings
}

// written compares what people write. Defaults are filled in on both sides, so that only what means something else
// shows.
func (w *world) written(cluster, was *v1alpha1.Cluster, groups []v1alpha1.MachineGroup) []kube.ObjectChange {
	var list []kube.ObjectChange
	add := func(object string, was, is any) {
		before, errBefore := yaml.Marshal(was)
		after, errAfter := yaml.Marshal(is)
		if errBefore != nil || errAfter != nil { // types that are stored as JSON can be written as YAML
			return
		}
		if diff := kube.Unified(object, before, after); diff != "" {
			list = append(list, kube.ObjectChange{Change: kube.Changed, Object: object, Diff: diff})
		}
	}
	if was != nil {
		before, after := was.DeepCopy(), cluster.DeepCopy()
		before.Default()
		after.Default()
		add("Cluster "+cluster.Name, before.Spec, after.Spec)
		for _, name := range w.profilesOf(was) {
			i := slices.IndexFunc(w.profiles, func(p v1alpha1.Profile) bool { return p.Name == name })
			if old := w.proposed[name]; old != nil {
				add("Profile "+name, old.Spec, w.profiles[i].Spec)
			}
		}
	}
	for i := range groups {
		g := &groups[i]
		old := slices.IndexFunc(w.now.Groups, func(o v1alpha1.MachineGroup) bool { return o.Name == g.Name })
		switch {
		case w.groups[g.Name] == nil:
		case old >= 0:
			add("MachineGroup "+g.Name, w.now.Groups[old].Spec, g.Spec)
		case was != nil:
			list = append(list, kube.ObjectChange{Change: kube.Added, Object: "MachineGroup " + g.Name})
		}
	}
	return list
}

// machines tells which machine is where, why, and what has to happen first.
func (w *world) machines(was *v1alpha1.Cluster, groups []v1alpha1.MachineGroup, outcome *members.Preview) []kube.PreviewMachine {
	known := map[string]*v1alpha1.Machine{}
	for i := range w.now.Machines {
		known[w.now.Machines[i].Name] = &w.now.Machines[i]
	}
	has := map[string]bool{}
	if was != nil {
		for _, n := range was.Status.Nodes {
			has[n.Machine] = true
		}
	}
	var list []kube.PreviewMachine
	for i := range groups {
		g := &groups[i]
		for _, name := range outcome.Placed[g.Name] {
			m := kube.PreviewMachine{Machine: name, Group: g.Name, Roles: g.Spec.Roles, Why: whyIn(g)}
			if has[name] || slices.Contains(g.Status.Machines, name) {
				m.Has, m.Why = true, "belongs to it"
			}
			for _, n := range outcome.Nodes {
				if n.Machine == name && len(n.Addresses) > 0 {
					m.Address = n.Addresses[0]
				}
			}
			if machine := known[name]; machine != nil {
				m.Install = installOf(machine, g)
			}
			list = append(list, m)
		}
	}
	return list
}

// whyIn is why a group takes a machine.
func whyIn(g *v1alpha1.MachineGroup) string {
	selector := metav1.FormatLabelSelector(&g.Spec.Selector)
	if selector == "<none>" {
		return "approved and in no other group"
	}
	return "approved, has " + selector
}

// installOf is what has to happen before a machine can be a node; empty when it is installed.
func installOf(m *v1alpha1.Machine, g *v1alpha1.MachineGroup) string {
	profile := cmp.Or(g.Spec.Profile, m.Spec.Profile)
	switch {
	case m.Status.Phase == v1alpha1.PhaseReady:
		return ""
	case m.Status.Phase == v1alpha1.PhaseInstalling || m.Status.Phase == v1alpha1.PhaseRebooting:
		return "is being installed"
	case m.Status.Installed != nil:
		return "is installed, and " + strings.ToLower(string(m.Status.Phase)) + " now"
	case profile == "":
		return "is installed, as soon as it or the group has a profile"
	}
	return "is installed with profile " + profile
}

// missingOfAddons are images of people's add-ons that nodes get from nowhere.
func missingOfAddons(ctx context.Context, b *Backend, cluster string) []string {
	all := &v1alpha1.AddonList{}
	if err := b.Client.List(ctx, all); err != nil {
		return []string{fmt.Sprintf("images of add-ons are not known: %v", err)}
	}
	var list []string
	for _, a := range all.Items {
		if a.Spec.Cluster == cluster {
			for _, image := range a.Status.MissingImages {
				list = append(list, fmt.Sprintf("image %s (of add-on %s)", image, a.Name))
			}
		}
	}
	return list
}

// missing is what no imported bundle contains, of what nodes are handed out, and of what the version needs that they are to have.
func missing(content Content, plan *kube.Plan, cluster *v1alpha1.Cluster) []string {
	supply := kube.Supply{Images: map[string]string{}}
	images := func(r kube.Requirements) {
		for _, image := range r.Images {
			if _, ok := content.Container(image); ok {
				supply.Images[image] = "a bundle"
			}
		}
	}
	images(plan.Requirements)
	var list []string
	versions := []string{cluster.Spec.Version}
	for _, n := range plan.Nodes {
		versions = append(versions, n.Version)
	}
	slices.Sort(versions)
	for _, version := range slices.Compact(versions) {
		programs, err := content.Programs(version)
		if err != nil {
			list = append(list, err.Error())
			continue
		}
		for _, p := range programs {
			supply.Programs = append(supply.Programs, kube.SuppliedProgram{Name: p.Name, Path: p.Path, Version: p.Version, Place: "a bundle"})
		}
	}
	list = append(list, plan.Requirements.Lacking(supply)...)
	if target, err := kube.RequirementsOf(cluster); err == nil { // a wrong version is said elsewhere
		images(target)
		list = append(list, target.Lacking(supply)...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}
