package kubeapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
)

// addonInventory is the ConfigMap that lists what a person's add-on has applied.
func addonInventory(name string) string { return "coldrack-addon-" + name }

// addonSet is a person's add-on with its placed objects.
func addonSet(a addon.Addon, objects ...addon.Object) objectSet {
	return objectSet{
		inventory: addonInventory(a.Name),
		ownership: addon.Ownership{Label: addon.LabelAddon, Value: a.Name, Manager: FieldManager, Data: a.Data},
		parts:     []part{{a.Name, objects}}, careful: !a.TakeOver, report: a.Report,
	}
}

// place gives objects that name none their namespace, takes it from those that can have none, and marks all as the add-on's. It refuses
// objects of kinds that the cluster does not have and the add-on does not define.
func (c *Connection) place(a addon.Addon) ([]addon.Object, error) {
	defined := addon.Defined(a.Objects)
	var placed []addon.Object
	var errs []error
	for _, o := range a.Objects {
		gvk := o.GroupVersionKind()
		namespaced, known := defined[gvk.GroupKind()]
		if !known {
			mapping, err := c.mapping(gvk.GroupKind(), gvk.Version)
			switch {
			case meta.IsNoMatchError(err):
				errs = append(errs, fmt.Errorf("%s: the cluster has no kind %s in %s, and the add-on does not define it", named(o), gvk.Kind, o.GetAPIVersion()))
				continue
			case err != nil:
				return nil, err
			}
			namespaced = mapping.Scope.Name() == meta.RESTScopeNameNamespace
		}
		o.Unstructured = o.DeepCopy()
		switch {
		case !namespaced:
			o.SetNamespace("")
		case o.GetNamespace() == "":
			o.SetNamespace(a.Namespace)
		}
		setLabel(o.Unstructured, addon.LabelAddon, a.Name)
		placed = append(placed, o)
	}
	return placed, errors.Join(append(errs, addon.Repeated(placed)...)...)
}

// ApplyAddon makes the cluster contain a person's add-on, and removes what it has no more. What is in the cluster and not ours yet is
// taken over only where nobody has set its fields to something else, or where the add-on says so.
func (a *Applier) ApplyAddon(ctx context.Context, is addon.Addon, objects []addon.Object) (left, drifted []string, err error) {
	if len(objects) == 0 {
		return nil, nil, errors.New("the add-on has no objects; delete it to remove what it had")
	}
	result, err := a.apply(ctx, addonSet(is, objects...))
	return result.left, result.drifted, err
}

// RemoveAddon removes everything that an add-on has applied, as far as it may be, and returns what stays. Until it returns without an error, it
// has to be called again.
func (a *Applier) RemoveAddon(ctx context.Context, is addon.Addon) (left []string, err error) {
	set := addonSet(is)
	recorded, err := a.readInventory(ctx, set.inventory)
	if err != nil {
		return nil, err
	}
	kept, failures := a.drop(ctx, set.ownership, recorded)
	for _, e := range kept {
		if e.Left != "" {
			left = append(left, e.Ref().String()+": "+e.Left)
		}
	}
	if len(failures) > 0 {
		return left, errors.Join(append(failures, a.writeInventory(ctx, set.inventory, recorded, kept))...)
	}
	delete(a.seen, set.inventory)
	err = a.connection.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Delete(ctx, set.inventory, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return left, err
}

// addonTroubles are the placed objects of an add-on that are not healthy, the worst first.
func (c *Connection) addonTroubles(ctx context.Context, objects []addon.Object) ([]addon.Trouble, error) {
	var troubles []addon.Trouble
	for _, o := range objects {
		ref := addon.RefOf(o.Unstructured)
		if !ref.Judged() {
			continue
		}
		live, err := c.get(ctx, ref, o.GroupVersionKind().Version)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		if live == nil {
			troubles = append(troubles, addon.Trouble{Ref: ref, Health: addon.Progressing, Message: "is not there"})
			continue
		}
		health, message := addon.HealthOf(live)
		if health == addon.Healthy {
			continue
		}
		if why := c.podTrouble(ctx, live); why != "" {
			message += "; " + why
		}
		troubles = append(troubles, addon.Trouble{Ref: ref, Health: health, Message: message})
	}
	addon.Worst(troubles)
	return troubles, nil
}

// podTrouble says what keeps the pods of a workload from being ready, as far as one of them says so.
func (c *Connection) podTrouble(ctx context.Context, workload *unstructured.Unstructured) string {
	labels, ok, _ := unstructured.NestedStringMap(workload.Object, "spec", "selector", "matchLabels")
	if !ok || len(labels) == 0 {
		return ""
	}
	list, err := c.dynamic.Resource(podResource).Namespace(workload.GetNamespace()).List(ctx, metav1.ListOptions{
		LabelSelector: metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: labels}), Limit: 50})
	if err != nil {
		return ""
	}
	for i := range list.Items {
		if why := addon.PodTrouble(&list.Items[i]); why != "" {
			return "pod " + list.Items[i].GetName() + " " + why
		}
	}
	return ""
}

var podResource = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

// addonKeeper applies people's add-ons in their order, again and again, and says how they are.
type addonKeeper struct {
	runner     *Runner
	connection *Connection
	applier    *Applier
	// since is when what an add-on wants now was first applied, by name; begun when it was first tried. Both are of the digests.
	since, begun map[string]moment
	// ready: the objects of a plan were applied once. Those of the next plan hold no add-on up.
	ready bool
}

type moment struct {
	digest string
	at     time.Time
}

// at is when something of this digest was first seen.
func at(moments map[string]moment, name, digest string) time.Time {
	if m := moments[name]; m.digest == digest {
		return m.at
	}
	moments[name] = moment{digest, time.Now()}
	return moments[name].at
}

// followUserAddons works until ctx ends.
func (r *Runner) followUserAddons(ctx context.Context, connection *Connection, changed <-chan struct{}) {
	applier, err := NewApplier(connection)
	if err != nil {
		r.log.Error("cannot apply add-ons", "cluster", r.options().Target.Cluster, "error", err)
		return
	}
	k := &addonKeeper{runner: r, connection: connection, applier: applier, since: map[string]moment{}, begun: map[string]moment{}}
	for ctx.Err() == nil {
		pause := k.round(ctx)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// round looks after every add-on once, and says when to look again.
func (k *addonKeeper) round(ctx context.Context) time.Duration {
	addons, known := k.runner.addons()
	if !known {
		return addonInterval
	}
	k.ready = k.ready || k.runner.applied()
	applied, problems := k.ready, k.runner.objectErrors()
	if !applied && len(problems) == 0 {
		return addonInterval // nothing is known yet; it is woken when the objects are applied
	}
	states := map[string]addon.State{}
	pause := applyInterval
	own, err := refsOf(k.runner.options().Wanted.Objects)
	if err != nil {
		return pause // options are checked when they are set
	}
	ordered := addon.Ordered(addons)
	refused := map[string]string{}
	for i := range ordered {
		if a := &ordered[i]; applied && !a.Removed && a.Problem == "" {
			placed, err := k.connection.place(*a)
			if err != nil {
				refused[a.Name] = err.Error()
				continue
			}
			a.Objects = placed
		}
	}
	for name, problems := range addon.Claims(own, ordered) {
		refused[name] = errors.Join(problems...).Error()
	}
	k.applier.claimed = map[addon.Ref]string{}
	for _, a := range ordered {
		for _, o := range a.Objects {
			if !a.Removed && refused[a.Name] == "" {
				k.applier.claimed[addon.RefOf(o.Unstructured)] = a.Name
			}
		}
	}
	// hinders is the first add-on, of the orders so far, that is not ready.
	hinders, order, next := "", int32(0), ""
	for _, a := range ordered {
		if ctx.Err() != nil {
			return pause
		}
		if a.Order != order {
			order, hinders = a.Order, cmp.Or(hinders, next)
		}
		var s addon.State
		switch {
		case !applied:
			s = addon.State{Phase: addon.Waiting, Message: "waits until the objects that every cluster has are applied: " + atMost(problems)}
		case a.Removed:
			s = k.remove(ctx, a)
		case a.Problem != "" || refused[a.Name] != "":
			s = addon.State{Phase: addon.Broken, Message: cmp.Or(a.Problem, refused[a.Name])}
		default:
			s = k.keep(ctx, a, hinders)
		}
		s.Name, s.Version, s.Generation, s.Objects = a.Name, a.Version, a.Generation, len(a.Objects)
		states[a.Name] = s
		if ready := s.Phase == addon.Ready || s.Phase == addon.Drifted; !ready && s.Phase != addon.Gone {
			pause = addonInterval
			if !a.Removed {
				next = cmp.Or(next, a.Name)
			}
		}
	}
	if ctx.Err() == nil {
		k.runner.change(func(s *State) { s.UserAddons = states })
	}
	return pause
}

func refsOf(objects []kube.Object) ([]addon.Ref, error) {
	decoded, err := decodeAll(objects)
	var refs []addon.Ref
	for _, o := range decoded {
		refs = append(refs, addon.RefOf(o.Unstructured))
	}
	return refs, err
}

// remove takes an add-on's objects away.
func (k *addonKeeper) remove(ctx context.Context, a addon.Addon) addon.State {
	limited, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	left, err := k.applier.RemoveAddon(limited, a)
	if err != nil {
		return addon.State{Phase: addon.Removing, Message: shortly(err), Left: left}
	}
	return addon.State{Phase: addon.Gone, Left: left}
}

// keep applies an add-on and looks how it is.
func (k *addonKeeper) keep(ctx context.Context, a addon.Addon, hinders string) addon.State {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	digest := a.Digest()
	if hinders != "" {
		recorded, err := k.applier.readInventory(ctx, addonInventory(a.Name))
		if err != nil {
			return addon.State{Phase: addon.Applying, Message: err.Error()}
		}
		if !recorded.Has(addon.Wanted(a.Name, a.Objects)) {
			return addon.State{Phase: addon.Waiting, Message: fmt.Sprintf("waits until add-on %s, which comes before it, is ready", hinders)}
		}
	}
	late := time.Since(at(k.begun, a.Name, digest)) > a.Timeout
	left, drifted, err := k.applier.ApplyAddon(ctx, a, a.Objects)
	if err != nil {
		s := addon.State{Phase: addon.Applying, Message: shortly(err), Left: left}
		if late {
			s.Phase = addon.Broken
		}
		return s
	}
	s := addon.State{Phase: addon.Ready, Digest: digest, AppliedAt: at(k.since, a.Name, digest), Left: left}
	troubles, err := k.connection.addonTroubles(ctx, a.Objects)
	if err != nil {
		s.Phase, s.Message = addon.Settling, err.Error()
		return s
	}
	s.Healthy = len(a.Objects) - len(troubles)
	var messages []string
	failed := false
	for _, t := range troubles {
		messages, failed = append(messages, t.String()), failed || t.Health == addon.Failed
	}
	switch {
	case failed || len(troubles) > 0 && late:
		s.Phase = addon.Broken
	case len(troubles) > 0:
		s.Phase = addon.Settling
	case len(drifted) > 0:
		s.Phase, messages = addon.Drifted, drifted
	default:
		delete(k.begun, a.Name) // what breaks later has its time again
	}
	s.Message = atMost(messages)
	return s
}

// shortly is an error of many parts for a status.
func shortly(err error) string { return atMost(lines(err)) }

func atMost(messages []string) string {
	const most = 3
	if len(messages) > most {
		messages = append(messages[:most:most], fmt.Sprintf("and %d more", len(messages)-most))
	}
	return strings.Join(messages, "; ")
}

// SetAddons says which add-ons people want in the cluster. Until it is called for the first time, none is touched.
func (r *Runner) SetAddons(addons []addon.Addon) {
	r.mu.Lock()
	r.userAddons = &addons
	if len(r.state.UserAddons) > 0 {
		// What was removed under a name says nothing of another add-on that gets the name.
		states := maps.Clone(r.state.UserAddons)
		maps.DeleteFunc(states, func(name string, s addon.State) bool {
			return s.Phase == addon.Gone && !slices.ContainsFunc(addons, func(a addon.Addon) bool { return a.Name == name && a.Removed })
		})
		r.state.UserAddons = states
	}
	r.mu.Unlock()
	wake(r.updatedAddons)
}

// objectErrors are those of the last attempt to apply the plan's objects.
func (r *Runner) objectErrors() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.state.Objects.Errors)
}

func (r *Runner) addons() (addons []addon.Addon, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.userAddons == nil {
		return nil, false
	}
	return slices.Clone(*r.userAddons), true
}
