package kubeapi

import (
	"context"
	"errors"
	"fmt"
	"math"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
)

// Outcomes of an object that kube.Change has no word for.
const (
	// ChangeLeft stays in the cluster although it is dropped.
	ChangeLeft kube.Change = "left"
	// ChangeRefused cannot be applied.
	ChangeRefused kube.Change = "refused"
)

// dryRun asks the API server what an object would become. live is nil for one that is not there.
func (c *Connection) dryRun(ctx context.Context, o addon.Object, force bool) (live, after *unstructured.Unstructured, err error) {
	ref, version := addon.RefOf(o.Unstructured), o.GroupVersionKind().Version
	resource, err := c.resource(ref, version)
	if err != nil {
		return nil, nil, err
	}
	if live, err = c.get(ctx, ref, version); err != nil {
		return nil, nil, err
	}
	after, err = resource.Apply(ctx, ref.Name, o.Unstructured, metav1.ApplyOptions{FieldManager: FieldManager, Force: force, DryRun: []string{metav1.DryRunAll}})
	return live, after, err
}

// drift says how an object of the cluster differs from what is wanted of it; empty: not at all.
func (a *Applier) drift(ctx context.Context, o addon.Object, known *seen) (string, error) {
	live, after, err := a.connection.dryRun(ctx, o, true)
	switch {
	case err != nil:
		return "", err
	case live == nil:
		return "was deleted", nil
	case difference("", live, after) != "":
		return "was changed", nil
	}
	known.versions[addon.RefOf(o.Unstructured)] = live.GetResourceVersion()
	return "", nil
}

// difference is a diff of two states of an object, as far as people write them.
func difference(title string, before, after *unstructured.Unstructured) string {
	return kube.Unified(title, readable(before), readable(after))
}

func readable(o *unstructured.Unstructured) []byte {
	if o == nil {
		return nil
	}
	o = o.DeepCopy()
	unstructured.RemoveNestedField(o.Object, "status")
	for _, field := range []string{"managedFields", "resourceVersion", "uid", "generation", "creationTimestamp"} {
		unstructured.RemoveNestedField(o.Object, "metadata", field)
	}
	if o.GetKind() == "Secret" {
		for _, field := range []string{"data", "stringData"} {
			if values, ok, _ := unstructured.NestedMap(o.Object, field); ok {
				for key := range values {
					values[key] = "(not shown)"
				}
				_ = unstructured.SetNestedMap(o.Object, values, field)
			}
		}
	}
	text, err := yaml.Marshal(o.Object)
	if err != nil {
		return nil // what came as JSON can be written as YAML
	}
	return text
}

// DiffAddon says what would become of the cluster if an add-on were applied, by dry runs of its API. own are the objects that every cluster has,
// beside the other add-ons. Nothing is changed. Objects that would stay as they are are left out.
func (c *Connection) DiffAddon(ctx context.Context, a addon.Addon, own []kube.Object, beside []addon.Addon) ([]kube.ObjectChange, error) {
	applier, err := NewApplier(c)
	if err != nil {
		return nil, err
	}
	recorded, err := applier.readInventory(ctx, addonInventory(a.Name))
	if err != nil {
		return nil, err
	}
	var changes []kube.ObjectChange
	set := addonSet(a)
	if !a.Removed {
		objects, err := c.place(a)
		if err != nil {
			return nil, err
		}
		set = addonSet(a, objects...)
		a.Objects = objects
		refs, err := refsOf(own)
		if err != nil {
			return nil, err
		}
		// Whatever its order: what others have already is theirs.
		mine := a
		mine.Order = math.MaxInt32
		all := []addon.Addon{mine}
		for _, other := range beside {
			if other.Objects, err = c.place(other); err == nil {
				all = append(all, other)
			}
		}
		if problems := addon.Claims(refs, all)[a.Name]; len(problems) > 0 {
			return nil, errors.Join(problems...)
		}
		for _, o := range set.objects() {
			change, err := c.wouldChange(ctx, &set, o)
			if err != nil {
				return nil, err
			}
			if change.Change != "" {
				changes = append(changes, change)
			}
		}
	}
	_, leaving := addon.Begin(recorded, set.wanted())
	for _, e := range leaving {
		change := kube.ObjectChange{Change: kube.Removed, Addon: a.Name, Object: e.Ref().String()}
		live, err := c.get(ctx, e.Ref())
		if err != nil {
			return nil, err
		}
		if live == nil {
			continue
		}
		if verdict, reason := set.ownership.Drop(live); verdict != addon.Remove {
			change.Change, change.Diff = ChangeLeft, reason
		}
		changes = append(changes, change)
	}
	return changes, nil
}

// wouldChange is what would become of one object; no change at all is the zero value.
func (c *Connection) wouldChange(ctx context.Context, set *objectSet, o addon.Object) (kube.ObjectChange, error) {
	ref := addon.RefOf(o.Unstructured)
	change := kube.ObjectChange{Addon: set.parts[0].addon, Object: ref.String()}
	force := true
	if set.careful {
		live, err := c.get(ctx, ref)
		if err != nil {
			return change, err
		}
		force = live == nil || set.ownership.Has(live)
	}
	live, after, err := c.dryRun(ctx, o, force)
	switch {
	case meta.IsNoMatchError(err) || apierrors.IsNotFound(err):
		// Its kind or its namespace comes with the add-on, so the API server cannot judge it yet.
		change.Change, change.Diff = kube.Added, kube.Unified(ref.String(), nil, readable(o.Unstructured))
	case isUnreachable(err) || ctx.Err() != nil:
		return change, err
	case err != nil:
		change.Change, change.Diff = ChangeRefused, fmt.Sprintf("%s: %v", named(o), advised(err))
	case live == nil:
		change.Change, change.Diff = kube.Added, difference(ref.String(), nil, after)
	default:
		if change.Diff = difference(ref.String(), live, after); change.Diff == "" {
			return kube.ObjectChange{}, nil
		}
		change.Change = kube.Changed
	}
	return change, nil
}
