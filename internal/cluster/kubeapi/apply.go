package kubeapi

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"sigs.k8s.io/yaml"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
)

const (
	// FieldManager owns what we apply.
	FieldManager = "coldrack"
	// LabelManaged is on every object of the plan that we apply. Taking it off an object that has left the plan keeps
	// the object. Objects of people's add-ons have addon.LabelAddon instead.
	LabelManaged = "coldrack.dev/managed"

	// inventoryName is a ConfigMap in kube-system that lists what of the plan we have applied, so that what leaves the plan
	// can be found later, also by another server. Each add-on of a person has one of its own.
	inventoryName = "coldrack-objects"
	inventoryKey  = "objects"

	// definitionTimeout is how long the definition of a kind may take until API servers serve the kind.
	definitionTimeout = 30 * time.Second
)

// Digest of a list of objects, in its order.
func Digest(objects []kube.Object) string {
	h := sha256.New()
	for _, o := range objects {
		fmt.Fprintf(h, "%s %s %s %d\n", o.Kind, o.Namespace, o.Name, len(o.Content))
		h.Write(o.Content)
	}
	return digest.Sum(h).String()
}

// Applier keeps sets of objects in a cluster as they should be: those of the plan, and each of people's add-ons. It is not safe for
// concurrent use.
type Applier struct {
	connection *Connection
	metadata   metadata.Interface
	seen       map[string]*seen // by inventory
	// claimed are the objects of people's add-ons: one that moves from one add-on to another is not removed in between.
	claimed map[addon.Ref]string
}

// seen are the resource versions that objects had after they were applied, and what was wanted then.
type seen struct {
	digest   string
	versions map[addon.Ref]string
}

// objectSet is what one inventory is for.
type objectSet struct {
	inventory string
	ownership addon.Ownership
	// parts are applied one after the other.
	parts []part
	// careful: what is in the cluster and not ours yet is only taken where nobody else has set the same fields to something else.
	careful bool
	// report only says what was changed in the cluster since it was applied.
	report bool
}

type part struct {
	addon   string
	objects []addon.Object
}

func (s *objectSet) objects() []addon.Object {
	var all []addon.Object
	for _, p := range s.parts {
		all = append(all, p.objects...)
	}
	return all
}

func (s *objectSet) wanted() addon.Inventory {
	var all addon.Inventory
	for _, p := range s.parts {
		all = append(all, addon.Wanted(p.addon, p.objects)...)
	}
	return all
}

// applied is what became of a set.
type applied struct {
	// left are the objects that are dropped and stay, drifted those that were changed in the cluster; both in words.
	left, drifted []string
}

// NewApplier returns one that knows nothing of the cluster yet.
func NewApplier(connection *Connection) (*Applier, error) {
	client, err := metadata.NewForConfig(connection.config)
	if err != nil {
		return nil, err
	}
	return &Applier{connection: connection, metadata: client, seen: map[string]*seen{}}, nil
}

// Apply makes the cluster contain the objects of a plan, in their order, and removes those that an earlier plan had and this
// one has not. Fields that the objects name are taken over from whoever set them; others are left alone. What has
// not changed since the last call is only looked at: one request for each kind.
//
// Nothing is removed unless everything was applied, unless it is still ours by its label and by who owns its fields,
// and never a namespace, the definition of a kind, or what holds data: what others have put into them would go, too. An empty
// list is an error, not the wish to remove everything.
//
// The error joins one for each object that could not be applied; each names its object.
func (a *Applier) Apply(ctx context.Context, objects []kube.Object) error {
	if len(objects) == 0 {
		return errors.New("no objects to apply; the plan has at least those that make administrators")
	}
	set := objectSet{inventory: inventoryName, ownership: addon.Ownership{Label: LabelManaged, Value: "true", Manager: FieldManager}}
	decoded, err := decodeAll(objects)
	if err != nil {
		return err
	}
	for i, o := range decoded {
		if last := len(set.parts) - 1; last < 0 || set.parts[last].addon != objects[i].Addon {
			set.parts = append(set.parts, part{addon: objects[i].Addon})
		}
		last := &set.parts[len(set.parts)-1]
		last.objects = append(last.objects, o)
	}
	_, err = a.apply(ctx, set)
	return err
}

func (a *Applier) apply(ctx context.Context, set objectSet) (result applied, err error) {
	wanted := set.wanted()
	known := a.known(set.inventory, addon.DigestOf(set.objects()...))
	recorded, err := a.readInventory(ctx, set.inventory)
	if err != nil {
		return result, fmt.Errorf("read what was applied (ConfigMap %s/%s): %w", metav1.NamespaceSystem, set.inventory, err)
	}
	record, leaving := addon.Begin(recorded, wanted)
	if len(record) > len(recorded) {
		// Before anything is made: nothing of ours is ever unknown.
		if err := a.writeInventory(ctx, set.inventory, recorded, record); err != nil {
			return result, fmt.Errorf("record what will be applied (ConfigMap %s/%s): %w", metav1.NamespaceSystem, set.inventory, err)
		}
		recorded = record
	}
	unchanged, err := a.unchanged(ctx, set, known)
	if err != nil {
		return result, err
	}
	var failures []error
	for _, p := range set.parts {
		failed, drifted, err := a.applyPart(ctx, &set, p.objects, known, unchanged, recorded)
		result.drifted = append(result.drifted, drifted...)
		failures = append(failures, failed...)
		if err != nil {
			return result, errors.Join(failures...)
		}
	}
	if len(failures) > 0 {
		return result, errors.Join(failures...)
	}
	kept, failures := a.drop(ctx, set.ownership, leaving)
	for _, e := range kept {
		if e.Left != "" {
			result.left = append(result.left, e.Ref().String()+": "+e.Left)
		}
	}
	if err := a.writeInventory(ctx, set.inventory, recorded, append(kept, wanted...)); err != nil {
		failures = append(failures, fmt.Errorf("record what was applied (ConfigMap %s/%s): %w", metav1.NamespaceSystem, set.inventory, err))
	}
	return result, errors.Join(failures...)
}

// known is what was seen of a set, if the same is wanted still.
func (a *Applier) known(inventory, digest string) *seen {
	if s := a.seen[inventory]; s != nil && s.digest == digest {
		return s
	}
	s := &seen{digest: digest, versions: map[addon.Ref]string{}}
	a.seen[inventory] = s
	return s
}

// applyPart applies one part in its stages. err is what no further object can be applied after; it is among the failures.
func (a *Applier) applyPart(ctx context.Context, set *objectSet, objects []addon.Object, known *seen, unchanged map[addon.Ref]bool, recorded addon.Inventory) (failures []error, drifted []string, err error) {
	definitions, others := addon.Stages(objects)
	for i, stage := range [][]addon.Object{definitions, others} {
		for _, o := range stage {
			ref := addon.RefOf(o.Unstructured)
			if unchanged[ref] {
				continue
			}
			entry, _ := recorded.Find(ref)
			if set.report && entry.Digest == addon.DigestOf(o) {
				drift, err := a.drift(ctx, o, known)
				if err != nil {
					failures = append(failures, fmt.Errorf("%s: %w", ref, err))
				} else if drift != "" {
					drifted = append(drifted, ref.String()+" "+drift)
				}
				continue
			}
			if err := a.applyOne(ctx, set, o, known); err != nil {
				failures = append(failures, fmt.Errorf("%s: %w", named(o), err))
				if ctx.Err() != nil || isUnreachable(err) {
					return failures, drifted, err
				}
			}
		}
		if i == 0 && len(failures) > 0 {
			return failures, drifted, nil // what is in a namespace, or of a kind, that is not there would fail for no reason of its own
		}
	}
	return failures, drifted, nil
}

// named is an object with the place where it is written.
func named(o addon.Object) string {
	if o.Source == "" {
		return addon.RefOf(o.Unstructured).String()
	}
	return o.Source + ": " + addon.RefOf(o.Unstructured).String()
}

func isUnreachable(err error) bool {
	var unreachable *UnreachableError
	return errors.As(err, &unreachable)
}

func decodeAll(objects []kube.Object) ([]addon.Object, error) {
	var decoded []addon.Object
	for _, o := range objects {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(o.Content, &u.Object); err != nil {
			return nil, fmt.Errorf("%s %s/%s of addon %s: %w", o.Kind, o.Namespace, o.Name, o.Addon, err)
		}
		if u.GetAPIVersion() == "" || u.GetKind() != o.Kind || u.GetName() != o.Name || u.GetNamespace() != o.Namespace {
			return nil, fmt.Errorf("%s %s/%s of addon %s is in truth %s %s %s/%s", o.Kind, o.Namespace, o.Name, o.Addon,
				u.GetAPIVersion(), u.GetKind(), u.GetNamespace(), u.GetName())
		}
		setLabel(u, LabelManaged, "true")
		// Not ours to say.
		unstructured.RemoveNestedField(u.Object, "status")
		unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
		decoded = append(decoded, addon.Object{Unstructured: u})
	}
	return decoded, nil
}

func setLabel(o *unstructured.Unstructured, key, value string) {
	labels := o.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	labels[key] = value
	o.SetLabels(labels)
}

// mapping finds the resource of a kind, also of one whose definition was applied just now. Without a version it is the preferred one.
func (c *Connection) mapping(kind schema.GroupKind, versions ...string) (*meta.RESTMapping, error) {
	mapping, err := c.mapper.RESTMapping(kind, versions...)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset()
		mapping, err = c.mapper.RESTMapping(kind, versions...)
	}
	return mapping, err
}

func (c *Connection) resource(ref addon.Ref, versions ...string) (dynamic.ResourceInterface, error) {
	mapping, err := c.mapping(ref.GroupKind(), versions...)
	if err != nil {
		return nil, err
	}
	if ref.Namespace == "" {
		return c.dynamic.Resource(mapping.Resource), nil
	}
	return c.dynamic.Resource(mapping.Resource).Namespace(ref.Namespace), nil
}

// get returns nil for an object that is not there, also when its kind is not.
func (c *Connection) get(ctx context.Context, ref addon.Ref, versions ...string) (*unstructured.Unstructured, error) {
	resource, err := c.resource(ref, versions...)
	if meta.IsNoMatchError(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	live, err := resource.Get(ctx, ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return live, err
}

func (a *Applier) applyOne(ctx context.Context, set *objectSet, o addon.Object, known *seen) error {
	ref, version := addon.RefOf(o.Unstructured), o.GroupVersionKind().Version
	delete(known.versions, ref)
	resource, err := a.connection.resource(ref, version)
	if err != nil {
		return err
	}
	force := true
	if set.careful {
		live, err := a.connection.get(ctx, ref, version)
		if err != nil {
			return err
		}
		force = live == nil || set.ownership.Has(live)
	}
	after, err := resource.Apply(ctx, ref.Name, o.Unstructured, metav1.ApplyOptions{FieldManager: FieldManager, Force: force})
	if err != nil {
		return advised(err)
	}
	known.versions[ref] = after.GetResourceVersion()
	if ref.GroupKind() == definition {
		return a.established(ctx, ref, after)
	}
	return nil
}

// advised is the API's answer to an apply, with what a person can do.
func advised(err error) error {
	switch {
	case apierrors.IsInvalid(err) && strings.Contains(err.Error(), "immutable"):
		return fmt.Errorf("%w; delete the object, and it is made anew", err)
	case apierrors.IsConflict(err):
		return fmt.Errorf("it is in the cluster already, and somebody else's: %w; delete it, give yours another name, or let the add-on take it over (spec.takeOver)", err)
	}
	return err
}

var definition = schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}

// established waits until API servers serve a kind.
func (a *Applier) established(ctx context.Context, ref addon.Ref, live *unstructured.Unstructured) error {
	message := ""
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, definitionTimeout, true, func(ctx context.Context) (bool, error) {
		var health addon.Health
		if health, message = addon.HealthOf(live); health == addon.Healthy {
			return true, nil
		} else if health == addon.Failed {
			return false, errors.New(message)
		}
		next, err := a.connection.get(ctx, ref)
		if next != nil {
			live = next
		}
		return false, err
	})
	if wait.Interrupted(err) && ctx.Err() == nil {
		return fmt.Errorf("%s, after %s", message, definitionTimeout)
	}
	return err
}

// unchanged tells which objects are as they were after we applied them.
func (a *Applier) unchanged(ctx context.Context, set objectSet, known *seen) (map[addon.Ref]bool, error) {
	same := map[addon.Ref]bool{}
	listed := map[schema.GroupKind]bool{}
	for _, o := range set.objects() {
		ref := addon.RefOf(o.Unstructured)
		kind := ref.GroupKind()
		if _, ok := known.versions[ref]; !ok || listed[kind] {
			continue
		}
		listed[kind] = true
		mapping, err := a.connection.mapping(kind)
		if meta.IsNoMatchError(err) {
			continue // its definition was deleted, and is applied again
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		list, err := a.metadata.Resource(mapping.Resource).List(ctx, metav1.ListOptions{LabelSelector: set.ownership.Label + "=" + set.ownership.Value})
		if apierrors.IsNotFound(err) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("list objects of kind %s that we applied: %w", ref.Kind, err)
		}
		for _, item := range list.Items {
			found := addon.Ref{Group: ref.Group, Kind: ref.Kind, Namespace: item.Namespace, Name: item.Name}
			if version, ok := known.versions[found]; ok && version == item.ResourceVersion {
				same[found] = true
			}
		}
	}
	return same, nil
}

// drop removes what its set has no more, as far as it may be, the last applied first. Objects of kinds that are not Kubernetes' own go
// before everything else, and are waited for: their controllers may have to clean up. kept is what stays to be remembered.
func (a *Applier) drop(ctx context.Context, ownership addon.Ownership, leaving addon.Inventory) (kept addon.Inventory, failures []error) {
	stays := map[addon.Ref]string{}
	for _, custom := range []bool{true, false} {
		if !custom && len(failures) > 0 {
			break
		}
		for _, e := range slices.Backward(leaving) {
			if e.Ref().Custom() != custom {
				continue
			}
			if claimant := a.claimed[e.Ref()]; claimant != "" && claimant != ownership.Value {
				continue
			}
			left, err := a.dropOne(ctx, ownership, e, custom)
			if err != nil {
				failures = append(failures, fmt.Errorf("remove %s, which is no longer wanted: %w", e.Ref(), err))
			}
			if err != nil || left != "" {
				stays[e.Ref()] = left
			}
		}
	}
	waits := len(failures) > 0 // then nothing but custom objects was looked at
	for _, e := range leaving {
		left, is := stays[e.Ref()]
		if is {
			e.Left = left
		}
		if is || waits && !e.Ref().Custom() {
			kept = append(kept, e)
		}
	}
	return kept, failures
}

// dropOne removes an object, if it is still ours. left is why it stays and has to be remembered.
func (a *Applier) dropOne(ctx context.Context, ownership addon.Ownership, e addon.Entry, await bool) (left string, err error) {
	ref := e.Ref()
	live, err := a.connection.get(ctx, ref)
	if err != nil || live == nil {
		return "", err
	}
	if live.GetDeletionTimestamp() == nil {
		switch verdict, reason := ownership.Drop(live); verdict {
		case addon.Forget:
			return "", nil
		case addon.Leave:
			return reason, nil
		}
		resource, err := a.connection.resource(ref)
		if err != nil {
			return "", err
		}
		uid, background := live.GetUID(), metav1.DeletePropagationBackground
		err = resource.Delete(ctx, ref.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: &background})
		if err != nil && !apierrors.IsNotFound(err) {
			return "", err
		}
		if await {
			if live, err = a.connection.get(ctx, ref); err != nil {
				return "", err
			}
		}
	}
	if await && live != nil {
		return "", fmt.Errorf("it is being deleted, and %s has not let it go yet", strings.Join(live.GetFinalizers(), ", "))
	}
	return "", nil
}

func (a *Applier) readInventory(ctx context.Context, name string) (addon.Inventory, error) {
	m, err := a.connection.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	inventory, err := addon.ParseInventory(m.Data[inventoryKey])
	if err != nil {
		return nil, fmt.Errorf("%w; delete it, and it is made anew, but what is no longer wanted stays in the cluster", err)
	}
	return inventory, nil
}

// writeInventory records what is, where that is not what was.
func (a *Applier) writeInventory(ctx context.Context, name string, was, is addon.Inventory) error {
	if slices.Equal(was, is) {
		return nil
	}
	encoded, err := is.Encode()
	if err != nil {
		return err
	}
	content, err := json.Marshal(&corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name},
		Data:       map[string]string{inventoryKey: encoded},
	})
	if err != nil {
		return err
	}
	force := true
	_, err = a.connection.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Patch(ctx, name, types.ApplyPatchType, content,
		metav1.PatchOptions{FieldManager: FieldManager, Force: &force})
	return err
}
