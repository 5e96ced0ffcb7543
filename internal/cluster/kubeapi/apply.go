package kubeapi

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"sigs.k8s.io/yaml"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/cluster/kube"
)

const (
	// FieldManager owns what we apply.
	FieldManager = "coldrack"
	// LabelManaged is on every object that we apply. Taking it off an object that has left the plan keeps
	// the object.
	LabelManaged = "coldrack.dev/managed"

	// inventoryName is a ConfigMap in kube-system that lists what we have applied, so that what leaves the plan
	// can be found later, also by another server.
	inventoryName = "coldrack-objects"
	inventoryKey  = "objects"
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

// Applier keeps the objects of a plan in a cluster as they should be. It is not safe for concurrent use.
type Applier struct {
	connection *Connection
	metadata   metadata.Interface
	// applied are the resource versions that objects had after we applied them.
	applied map[objectKey]string
	digest  string
}

// objectKey names an object in words and for the inventory.
type objectKey struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
}

func (k objectKey) String() string {
	if k.Namespace == "" {
		return k.Kind + " " + k.Name
	}
	return k.Kind + " " + k.Namespace + "/" + k.Name
}

func (k objectKey) gvk() schema.GroupVersionKind {
	return schema.FromAPIVersionAndKind(k.APIVersion, k.Kind)
}

// NewApplier returns one that knows nothing of the cluster yet.
func NewApplier(connection *Connection) (*Applier, error) {
	client, err := metadata.NewForConfig(connection.config)
	if err != nil {
		return nil, err
	}
	return &Applier{connection: connection, metadata: client, applied: map[objectKey]string{}}, nil
}

// Apply makes the cluster contain the objects, in their order, and removes those that an earlier plan had and this
// one has not. Fields that the objects name are taken over from whoever set them; others are left alone. What has
// not changed since the last call is only looked at: one request for each kind.
//
// Nothing is removed unless everything was applied, unless it is still ours by its label and by who owns its fields,
// and never a namespace or the definition of a kind: what others have put into them would go, too. An empty
// list is an error, not the wish to remove everything.
//
// The error joins one for each object that could not be applied; each names its object.
func (a *Applier) Apply(ctx context.Context, objects []kube.Object) error {
	if len(objects) == 0 {
		return errors.New("no objects to apply; the plan has at least those that make administrators")
	}
	wanted, err := decodeAll(objects)
	if err != nil {
		return err
	}
	if digest := Digest(objects); digest != a.digest {
		clear(a.applied)
		a.digest = digest
	}
	recorded, err := a.readInventory(ctx)
	if err != nil {
		return fmt.Errorf("read what was applied (ConfigMap %s/%s): %w", metav1.NamespaceSystem, inventoryName, err)
	}
	var keys []objectKey
	for _, o := range wanted {
		keys = append(keys, keyOf(o))
	}
	leaving := subtract(recorded, keys)
	if len(subtract(keys, recorded)) > 0 {
		// Before anything is made: nothing of ours is ever unknown.
		if err := a.writeInventory(ctx, append(slices.Clone(leaving), keys...)); err != nil {
			return fmt.Errorf("record what will be applied (ConfigMap %s/%s): %w", metav1.NamespaceSystem, inventoryName, err)
		}
	}
	unchanged, err := a.unchanged(ctx, keys)
	if err != nil {
		return err
	}
	var failures []error
	for _, object := range wanted {
		key := keyOf(object)
		if unchanged[key] {
			continue
		}
		if err := a.applyOne(ctx, key, object); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", key, err))
			if ctx.Err() != nil || isUnreachable(err) {
				return errors.Join(failures...)
			}
		}
	}
	if len(failures) > 0 || len(leaving) == 0 {
		return errors.Join(failures...)
	}
	var kept []objectKey
	for _, key := range slices.Backward(leaving) {
		if err := a.prune(ctx, key); err != nil {
			failures = append(failures, fmt.Errorf("remove %s, which is no longer in the plan: %w", key, err))
			kept = append(kept, key)
		}
	}
	if err := a.writeInventory(ctx, append(kept, keys...)); err != nil {
		failures = append(failures, fmt.Errorf("record what was applied (ConfigMap %s/%s): %w", metav1.NamespaceSystem, inventoryName, err))
	}
	return errors.Join(failures...)
}

func isUnreachable(err error) bool {
	var unreachable *UnreachableError
	return errors.As(err, &unreachable)
}

// subtract returns what of a is not in b, in the order of a.
func subtract(a, b []objectKey) []objectKey {
	in := map[objectKey]bool{}
	for _, k := range b {
		in[k] = true
	}
	var rest []objectKey
	for _, k := range a {
		if !in[k] {
			rest = append(rest, k)
		}
	}
	return rest
}

func decodeAll(objects []kube.Object) ([]*unstructured.Unstructured, error) {
	var decoded []*unstructured.Unstructured
	for _, o := range objects {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(o.Content, &u.Object); err != nil {
			return nil, fmt.Errorf("%s %s/%s of addon %s: %w", o.Kind, o.Namespace, o.Name, o.Addon, err)
		}
		if u.GetAPIVersion() == "" || u.GetKind() != o.Kind || u.GetName() != o.Name || u.GetNamespace() != o.Namespace {
			return nil, fmt.Errorf("%s %s/%s of addon %s is in truth %s %s %s/%s", o.Kind, o.Namespace, o.Name, o.Addon,
				u.GetAPIVersion(), u.GetKind(), u.GetNamespace(), u.GetName())
		}
		labels := u.GetLabels()
		if labels == nil {
			labels = map[string]string{}
		}
		labels[LabelManaged] = "true"
		u.SetLabels(labels)
		// Not ours to say.
		unstructured.RemoveNestedField(u.Object, "status")
		unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
		decoded = append(decoded, u)
	}
	return decoded, nil
}

func keyOf(o *unstructured.Unstructured) objectKey {
	return objectKey{o.GetAPIVersion(), o.GetKind(), o.GetNamespace(), o.GetName()}
}

// mapping finds the resource of a kind, also of one whose definition was applied just now.
func (a *Applier) mapping(kind schema.GroupVersionKind) (*meta.RESTMapping, error) {
	mapping, err := a.connection.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		a.connection.mapper.Reset()
		mapping, err = a.connection.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	}
	return mapping, err
}

func (a *Applier) resource(key objectKey) (dynamic.ResourceInterface, error) {
	mapping, err := a.mapping(key.gvk())
	if err != nil {
		return nil, err
	}
	if key.Namespace == "" {
		return a.connection.dynamic.Resource(mapping.Resource), nil
	}
	return a.connection.dynamic.Resource(mapping.Resource).Namespace(key.Namespace), nil
}

func (a *Applier) applyOne(ctx context.Context, key objectKey, object *unstructured.Unstructured) error {
	resource, err := a.resource(key)
	if err != nil {
		return err
	}
	after, err := resource.Apply(ctx, key.Name, object, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
	if err != nil {
		delete(a.applied, key)
		if apierrors.IsInvalid(err) && strings.Contains(err.Error(), "immutable") {
			err = fmt.Errorf("%w; delete the object, and it is made anew", err)
		}
		return err
	}
	a.applied[key] = after.GetResourceVersion()
	return nil
}

// unchanged tells which objects are as they were after we applied them.
func (a *Applier) unchanged(ctx context.Context, keys []objectKey) (map[objectKey]bool, error) {
	same := map[objectKey]bool{}
	if len(a.applied) == 0 {
		return same, nil
	}
	listed := map[schema.GroupVersionKind]bool{}
	for _, key := range keys {
		kind := key.gvk()
		if _, ok := a.applied[key]; !ok || listed[kind] {
			continue
		}
		listed[kind] = true
		mapping, err := a.mapping(kind)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		list, err := a.metadata.Resource(mapping.Resource).List(ctx, metav1.ListOptions{LabelSelector: LabelManaged + "=true"})
		if err != nil {
			return nil, fmt.Errorf("list objects of kind %s that we applied: %w", key.Kind, err)
		}
		for _, item := range list.Items {
			found := objectKey{key.APIVersion, key.Kind, item.Namespace, item.Name}
			if version, ok := a.applied[found]; ok && version == item.ResourceVersion {
				same[found] = true
			}
		}
	}
	return same, nil
}

// prune removes an object that we applied once, if it is still ours.
func (a *Applier) prune(ctx context.Context, key objectKey) error {
	if key.Kind == "Namespace" || key.Kind == "CustomResourceDefinition" {
		return nil
	}
	resource, err := a.resource(key)
	if meta.IsNoMatchError(err) {
		return nil
	} else if err != nil {
		return err
	}
	live, err := resource.Get(ctx, key.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	owned := slices.ContainsFunc(live.GetManagedFields(), func(f metav1.ManagedFieldsEntry) bool {
		return f.Manager == FieldManager && f.Operation == metav1.ManagedFieldsOperationApply
	})
	if live.GetLabels()[LabelManaged] != "true" || !owned {
		return nil
	}
	uid, background := live.GetUID(), metav1.DeletePropagationBackground
	err = resource.Delete(ctx, key.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: &background})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (a *Applier) readInventory(ctx context.Context) ([]objectKey, error) {
	m, err := a.connection.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, inventoryName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var keys []objectKey
	if err := json.Unmarshal([]byte(m.Data[inventoryKey]), &keys); err != nil {
		return nil, fmt.Errorf("%w; delete it, and it is made anew, but what has left the plan stays in the cluster", err)
	}
	return keys, nil
}

func (a *Applier) writeInventory(ctx context.Context, keys []objectKey) error {
	encoded, err := json.Marshal(keys)
	if err != nil {
		return err
	}
	content, err := json.Marshal(&corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: inventoryName},
		Data:       map[string]string{inventoryKey: string(encoded)},
	})
	if err != nil {
		return err
	}
	force := true
	_, err = a.connection.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Patch(ctx, inventoryName, types.ApplyPatchType, content,
		metav1.PatchOptions{FieldManager: FieldManager, Force: &force})
	return err
}
