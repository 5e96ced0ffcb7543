package addon

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"coldrack.dev/internal/base/digest"
)

// Labels and annotations of objects.
const (
	// LabelAddon is on each object of a person's add-on, with the add-on's name. Taking it off an object lets that object stay when
	// the add-on drops it.
	LabelAddon = "coldrack.dev/addon"
	// AnnotationKeep with value "true" lets an object stay when its add-on drops it.
	AnnotationKeep = "coldrack.dev/keep"
)

// Ref names an object. The version of its kind is no part of the name: an object that is written in another version is
// the same object.
type Ref struct {
	Group, Kind, Namespace, Name string
}

// RefOf is the name of an object.
func RefOf(o *unstructured.Unstructured) Ref {
	return Ref{o.GroupVersionKind().Group, o.GetKind(), o.GetNamespace(), o.GetName()}
}

// GroupKind of the object.
func (r Ref) GroupKind() schema.GroupKind { return schema.GroupKind{Group: r.Group, Kind: r.Kind} }

// Custom is true for objects of kinds that API servers do not have by themselves.
func (r Ref) Custom() bool {
	return !builtIn(r.Group) && r.Group != "admissionregistration.k8s.io" && r.Group != "apiregistration.k8s.io"
}

func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// Object is one object of an add-on.
type Object struct {
	*unstructured.Unstructured
	// Source is where it is written, as FILE:LINE; empty for what is rendered.
	Source string
}

// DigestOf stands for what is wanted of objects, in their order.
func DigestOf(objects ...Object) string {
	h := sha256.New()
	encoder := json.NewEncoder(h)
	for _, o := range objects {
		_ = encoder.Encode(o.Object) // what was decoded from JSON can be encoded, with its keys in order
	}
	return digest.Sum(h).String()
}

// Stages are the objects in the order in which they are applied. The first stage has the Namespaces and the definitions of kinds, which
// must be established before the second begins. Within a stage, objects of one rank keep their order.
func Stages(objects []Object) (definitions, others []Object) {
	for _, o := range objects {
		switch kind := RefOf(o.Unstructured).GroupKind(); kind {
		case namespaceKind, definitionKind:
			definitions = append(definitions, o)
		default:
			others = append(others, o)
		}
	}
	byRank := func(a, b Object) int { return cmp.Compare(rank(a), rank(b)) }
	slices.SortStableFunc(definitions, byRank)
	slices.SortStableFunc(others, byRank)
	return definitions, others
}

var (
	namespaceKind  = schema.GroupKind{Kind: "Namespace"}
	definitionKind = schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}
	claimKind      = schema.GroupKind{Kind: "PersistentVolumeClaim"}
	volumeKind     = schema.GroupKind{Kind: "PersistentVolume"}
)

// ranks of the built-in kinds that others need, or that need others.
var ranks = map[string]int{
	"Namespace": 0, "CustomResourceDefinition": 1,
	"ResourceQuota": 2, "LimitRange": 2, "PriorityClass": 2, "RuntimeClass": 2, "StorageClass": 2, "IngressClass": 2,
	"ServiceAccount": 3, "ClusterRole": 4, "Role": 4, "ClusterRoleBinding": 5, "RoleBinding": 5,
	"ConfigMap": 6, "Secret": 6, "PersistentVolume": 6, "PersistentVolumeClaim": 7, "Service": 8,
}

// Ranks of the rest.
const (
	rankOrdinary = 10
	// rankCallback: what API servers call needs the pods that answer.
	rankCallback = 20
	// rankCustom: objects of other kinds may need such an answer.
	rankCustom = 30
)

func rank(o Object) int {
	group := o.GroupVersionKind().Group
	switch {
	case group == "admissionregistration.k8s.io" || group == "apiregistration.k8s.io":
		return rankCallback
	case !builtIn(group):
		return rankCustom
	}
	if r, ok := ranks[o.GetKind()]; ok {
		return r
	}
	return rankOrdinary
}

// builtIn is true for the groups that every API server has: those without a dot, and those of *.k8s.io that it serves itself.
func builtIn(group string) bool {
	if !strings.Contains(group, ".") {
		return true
	}
	switch group {
	case "apiextensions.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "certificates.k8s.io", "coordination.k8s.io", "discovery.k8s.io",
		"events.k8s.io", "flowcontrol.apiserver.k8s.io", "networking.k8s.io", "node.k8s.io", "rbac.authorization.k8s.io", "resource.k8s.io",
		"scheduling.k8s.io", "storage.k8s.io":
		return true
	}
	return false
}

// Defined are the kinds that objects define, and whether their objects are in namespaces.
func Defined(objects []Object) map[schema.GroupKind]bool {
	kinds := map[schema.GroupKind]bool{}
	for _, o := range objects {
		if RefOf(o.Unstructured).GroupKind() != definitionKind {
			continue
		}
		group, _, _ := unstructured.NestedString(o.Object, "spec", "group")
		kind, _, _ := unstructured.NestedString(o.Object, "spec", "names", "kind")
		scope, _, _ := unstructured.NestedString(o.Object, "spec", "scope")
		kinds[schema.GroupKind{Group: group, Kind: kind}] = scope == "Namespaced"
	}
	return kinds
}
