package addon

import (
	"encoding/json"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Entry is one object that was applied, or is about to be.
type Entry struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
	// Addon that has the object.
	Addon string `json:"addon,omitempty"`
	// Digest of what was applied; empty until it was.
	Digest string `json:"digest,omitempty"`
	// Left is why the object stays in the cluster although its add-on has dropped it.
	Left string `json:"left,omitempty"`
}

// Ref is the name of the object.
func (e Entry) Ref() Ref {
	return Ref{schema.FromAPIVersionAndKind(e.APIVersion, e.Kind).Group, e.Kind, e.Namespace, e.Name}
}

// Inventory is what was applied, in the order in which it was.
type Inventory []Entry

// ParseInventory reads what Encode wrote, also by servers that knew neither add-ons nor digests.
func ParseInventory(text string) (Inventory, error) {
	if text == "" {
		return nil, nil
	}
	var inventory Inventory
	if err := json.Unmarshal([]byte(text), &inventory); err != nil {
		return nil, err
	}
	return inventory, nil
}

// maxInventory is how many bytes of a ConfigMap's megabyte an inventory takes.
const maxInventory = 900 << 10

// Encode is the text that the cluster keeps.
func (v Inventory) Encode() (string, error) {
	encoded, err := json.Marshal(v)
	if err == nil && len(encoded) > maxInventory {
		err = fmt.Errorf("a list of %d objects has %d bytes, and %d are possible: split the add-on", len(v), len(encoded), maxInventory)
	}
	return string(encoded), err
}

// Find an object.
func (v Inventory) Find(ref Ref) (Entry, bool) {
	for _, e := range v {
		if e.Ref() == ref {
			return e, true
		}
	}
	return Entry{}, false
}

// Has says whether exactly these objects were applied, as they are wanted now.
func (v Inventory) Has(wanted Inventory) bool {
	digests := map[Ref]string{}
	for _, e := range v {
		if e.Left == "" {
			digests[e.Ref()] = e.Digest
		}
	}
	return len(digests) == len(wanted) && !slices.ContainsFunc(wanted, func(e Entry) bool { return digests[e.Ref()] != e.Digest })
}

// Wanted is the inventory of objects once they are applied.
func Wanted(addon string, objects []Object) Inventory {
	var v Inventory
	for _, o := range objects {
		v = append(v, Entry{APIVersion: o.GetAPIVersion(), Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName(), Addon: addon, Digest: DigestOf(o)})
	}
	return v
}

// Begin returns what to record before wanted is applied, and what of was is not wanted any more. What is recorded names every object that there
// may be from now on; digests are those of what was applied last.
func Begin(was, wanted Inventory) (record, leaving Inventory) {
	is := map[Ref]Entry{}
	for _, e := range was {
		is[e.Ref()] = e
	}
	wants := map[Ref]bool{}
	for _, e := range wanted {
		wants[e.Ref()] = true
	}
	for _, e := range was {
		if !wants[e.Ref()] {
			leaving = append(leaving, e)
		}
	}
	record = slices.Clone(leaving)
	for _, e := range wanted {
		e.Digest = is[e.Ref()].Digest
		record = append(record, e)
	}
	return record, leaving
}

// Verdict on an object that is dropped.
type Verdict string

const (
	// Remove it.
	Remove Verdict = "remove"
	// Leave it in the cluster, and remember that it is there.
	Leave Verdict = "leave"
	// Forget it: it is somebody else's by now.
	Forget Verdict = "forget"
)

// Ownership says how objects of an add-on are known.
type Ownership struct {
	// Label and Value are on each of them.
	Label, Value string
	// Manager applies them.
	Manager string
	// Data permits to remove what others may have put their data into: Namespaces, definitions of kinds, volumes and claims.
	Data bool
}

// Has says whether an object is known to be the add-on's.
func (o Ownership) Has(live *unstructured.Unstructured) bool {
	return live.GetLabels()[o.Label] == o.Value && o.manages(live)
}

// Drop judges an object, as it is in the cluster, that its add-on does not have any more. The reason is for a person.
func (o Ownership) Drop(live *unstructured.Unstructured) (verdict Verdict, reason string) {
	ref := RefOf(live)
	switch {
	case live.GetLabels()[o.Label] != o.Value:
		return Forget, fmt.Sprintf("has no label %s=%s any more", o.Label, o.Value)
	case !o.manages(live):
		return Forget, fmt.Sprintf("no field of it is %s's any more", o.Manager)
	case live.GetAnnotations()[AnnotationKeep] == "true":
		return Forget, "has the annotation " + AnnotationKeep
	case controlled(live):
		return Forget, "belongs to another object"
	}
	if !o.Data {
		switch ref.GroupKind() {
		case namespaceKind:
			return Leave, "others may have put objects into it"
		case definitionKind:
			return Leave, "all objects of this kind would go"
		case claimKind, volumeKind:
			return Leave, "its data would go"
		}
	}
	return Remove, ""
}

func (o Ownership) manages(live *unstructured.Unstructured) bool {
	for _, f := range live.GetManagedFields() {
		if f.Manager == o.Manager && f.Operation == "Apply" && f.Subresource == "" {
			return true
		}
	}
	return false
}

func controlled(live *unstructured.Unstructured) bool {
	for _, owner := range live.GetOwnerReferences() {
		if owner.Controller != nil && *owner.Controller {
			return true
		}
	}
	return false
}
