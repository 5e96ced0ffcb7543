package addon

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Health of an object.
type Health string

const (
	// Healthy: it is as it was asked to be.
	Healthy Health = "Healthy"
	// Progressing: it is not yet, and nothing says that it never will be.
	Progressing Health = "Progressing"
	// Failed: it does not get healthy by itself.
	Failed Health = "Failed"
)

// Judged says whether objects of the kind can be anything but healthy. The others need not be asked for.
func (r Ref) Judged() bool {
	switch r.GroupKind() {
	case schema.GroupKind{Kind: "ConfigMap"}, schema.GroupKind{Kind: "Secret"}, schema.GroupKind{Kind: "ServiceAccount"}, schema.GroupKind{Kind: "Service"}:
		return false
	}
	return r.Group != "rbac.authorization.k8s.io" && r.Group != "admissionregistration.k8s.io"
}

// HealthOf judges an object, as it is in the cluster, by its status alone. The message is for a person. Kinds without a rule of their own are
// judged by the conditions that Kubernetes has agreed upon: Stalled, Reconciling and Ready. What has no status is healthy.
func HealthOf(live *unstructured.Unstructured) (Health, string) {
	if live.GetDeletionTimestamp() != nil {
		return Progressing, "is being deleted"
	}
	// A kind that reports no generation is judged by what it does report.
	if seen, ok, _ := unstructured.NestedInt64(live.Object, "status", "observedGeneration"); ok && seen < live.GetGeneration() {
		return Progressing, "its controller has not seen the last change"
	}
	kind := RefOf(live).GroupKind()
	switch kind {
	case schema.GroupKind{Group: "apps", Kind: "Deployment"}, schema.GroupKind{Group: "apps", Kind: "StatefulSet"}, schema.GroupKind{Group: "apps", Kind: "ReplicaSet"},
		schema.GroupKind{Group: "apps", Kind: "DaemonSet"}:
		return workloadHealth(live)
	case schema.GroupKind{Group: "batch", Kind: "Job"}:
		return jobHealth(live)
	case schema.GroupKind{Kind: "Pod"}:
		return podHealth(live)
	case definitionKind:
		return definitionHealth(live)
	case schema.GroupKind{Group: "apiregistration.k8s.io", Kind: "APIService"}:
		return byCondition(live, "Available")
	case claimKind:
		if phase := text(live, "status", "phase"); phase != "Bound" {
			return Progressing, "is " + cmp.Or(phase, "Pending") + ", not Bound"
		}
		return Healthy, ""
	case namespaceKind:
		if phase := text(live, "status", "phase"); phase == "Terminating" {
			return Failed, "is being deleted"
		}
		return Healthy, ""
	}
	return conditionsHealth(live)
}

func text(o *unstructured.Unstructured, path ...string) string {
	s, _, _ := unstructured.NestedString(o.Object, path...)
	return s
}

func number(o *unstructured.Unstructured, otherwise int64, path ...string) int64 {
	if n, ok, _ := unstructured.NestedInt64(o.Object, path...); ok {
		return n
	}
	return otherwise
}

// condition of an object; its status is empty when there is none.
type condition struct{ status, reason, message string }

func (c condition) text() string {
	return strings.TrimPrefix(strings.TrimSuffix(c.reason+": "+c.message, ": "), ": ")
}

func conditionOf(o *unstructured.Unstructured, name string) condition {
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, item := range list {
		fields, _ := item.(map[string]any)
		if fields["type"] != name {
			continue
		}
		get := func(key string) string { s, _ := fields[key].(string); return s }
		return condition{get("status"), get("reason"), get("message")}
	}
	return condition{}
}

// workloadHealth counts pods.
func workloadHealth(o *unstructured.Unstructured) (Health, string) {
	if _, ok, _ := unstructured.NestedInt64(o.Object, "status", "observedGeneration"); !ok {
		return Progressing, "its controller has not seen it yet"
	}
	wanted := number(o, 1, "spec", "replicas")
	updated, ready := number(o, 0, "status", "updatedReplicas"), number(o, 0, "status", "availableReplicas")
	// What must run the present template, and what runs a former one beside that.
	current, old := wanted, int64(0)
	switch o.GetKind() {
	case "DaemonSet":
		wanted = number(o, 0, "status", "desiredNumberScheduled")
		updated, ready = number(o, 0, "status", "updatedNumberScheduled"), number(o, 0, "status", "numberAvailable")
		current = wanted
	case "StatefulSet":
		ready = number(o, 0, "status", "readyReplicas")
		current = wanted - number(o, 0, "spec", "updateStrategy", "rollingUpdate", "partition")
	case "ReplicaSet":
		current = 0
	case "Deployment":
		old = number(o, 0, "status", "replicas") - updated
	}
	if text(o, "spec", "updateStrategy", "type") == "OnDelete" {
		current = 0
	}
	counts := fmt.Sprintf("%d of %d ready", ready, wanted)
	if updated < current {
		counts += fmt.Sprintf(", %d up to date", updated)
	}
	if failure := conditionOf(o, "ReplicaFailure"); failure.status == "True" {
		return Failed, counts + "; " + failure.text()
	}
	if progress := conditionOf(o, "Progressing"); progress.status == "False" && progress.reason == "ProgressDeadlineExceeded" {
		return Failed, counts + "; " + progress.text()
	}
	if old > 0 {
		return Progressing, fmt.Sprintf("%s, %d old ones have not ended", counts, old)
	}
	if ready < wanted || updated < current {
		return Progressing, counts
	}
	return Healthy, counts
}

func jobHealth(o *unstructured.Unstructured) (Health, string) {
	if failed := conditionOf(o, "Failed"); failed.status == "True" {
		return Failed, "has failed: " + failed.text()
	}
	if conditionOf(o, "Complete").status == "True" {
		return Healthy, "has completed"
	}
	if suspended, _, _ := unstructured.NestedBool(o.Object, "spec", "suspend"); suspended {
		return Healthy, "is suspended"
	}
	return Progressing, fmt.Sprintf("has not completed: %d active, %d failed", number(o, 0, "status", "active"), number(o, 0, "status", "failed"))
}

func podHealth(o *unstructured.Unstructured) (Health, string) {
	switch phase := text(o, "status", "phase"); phase {
	case "Succeeded":
		return Healthy, "has completed"
	case "Failed":
		return Failed, strings.TrimSuffix("has failed: "+cmp.Or(text(o, "status", "message"), text(o, "status", "reason")), ": ")
	case "Running":
		if conditionOf(o, "Ready").status == "True" {
			return Healthy, ""
		}
	}
	if trouble := PodTrouble(o); trouble != "" {
		return Progressing, trouble
	}
	return Progressing, "is not ready"
}

// PodTrouble is what keeps a pod from being ready, as far as the pod itself says so; else it is empty.
func PodTrouble(pod *unstructured.Unstructured) string {
	if scheduled := conditionOf(pod, "PodScheduled"); scheduled.status == "False" {
		return "is on no node: " + scheduled.text()
	}
	for _, path := range []string{"initContainerStatuses", "containerStatuses"} {
		list, _, _ := unstructured.NestedSlice(pod.Object, "status", path)
		for _, item := range list {
			fields, _ := item.(map[string]any)
			reason, _, _ := unstructured.NestedString(fields, "state", "waiting", "reason")
			if reason == "" || reason == "ContainerCreating" || reason == "PodInitializing" {
				continue
			}
			message, _, _ := unstructured.NestedString(fields, "state", "waiting", "message")
			if last, _, _ := unstructured.NestedString(fields, "lastState", "terminated", "message"); last != "" {
				message += "; it ended with: " + strings.TrimSpace(last)
			}
			return fmt.Sprintf("container %v: %s", fields["name"], condition{reason: reason, message: message}.text())
		}
	}
	return ""
}

func definitionHealth(o *unstructured.Unstructured) (Health, string) {
	if names := conditionOf(o, "NamesAccepted"); names.status == "False" {
		return Failed, "its names are taken: " + names.text()
	}
	return byCondition(o, "Established")
}

func byCondition(o *unstructured.Unstructured, name string) (Health, string) {
	switch c := conditionOf(o, name); c.status {
	case "True":
		return Healthy, ""
	case "":
		return Progressing, "is not " + name + " yet"
	default:
		return Progressing, "is not " + name + ": " + c.text()
	}
}

func conditionsHealth(o *unstructured.Unstructured) (Health, string) {
	if stalled := conditionOf(o, "Stalled"); stalled.status == "True" {
		return Failed, "is stalled: " + stalled.text()
	}
	if reconciling := conditionOf(o, "Reconciling"); reconciling.status == "True" {
		return Progressing, "is being reconciled: " + reconciling.text()
	}
	if ready := conditionOf(o, "Ready"); ready.status == "False" || ready.status == "Unknown" {
		return Progressing, "is not Ready: " + ready.text()
	}
	return Healthy, ""
}

// Trouble is an object that is not healthy, and why.
type Trouble struct {
	Ref     Ref
	Health  Health
	Message string
}

func (t Trouble) String() string { return t.Ref.String() + ": " + t.Message }

// Worst puts failed objects first, in the order of their names.
func Worst(list []Trouble) {
	slices.SortFunc(list, func(a, b Trouble) int {
		failed := func(t Trouble) int {
			if t.Health == Failed {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(failed(a), failed(b)), cmp.Compare(a.Ref.String(), b.Ref.String()))
	})
}
