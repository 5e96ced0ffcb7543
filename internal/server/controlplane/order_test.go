package controlplane

import (
	"context"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
)

// Wrong orders are refused with a reason, and nothing is written.
func TestWrongOrders(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := startTest(t, testConfig(t, newTestCA(t)))
	clusters, groups, machines := resource(t, c.RESTConfig(), "clusters"), resource(t, c.RESTConfig(), "machinegroups"), resource(t, c.RESTConfig(), "machines")
	_, err := clusters.Create(ctx, object("Cluster", "lab", map[string]any{"spec": map[string]any{"version": "v1.36.3"}}), metav1.CreateOptions{})
	check(t, err)
	for name, spec := range map[string]map[string]any{
		"lab-servers": {"cluster": "lab", "replicas": int64(3), "roles": []any{"etcd", "control-plane"}},
		"lab-workers": {"cluster": "lab", "replicas": int64(2), "roles": []any{"worker"}},
	} {
		_, err := groups.Create(ctx, object("MachineGroup", name, map[string]any{"spec": spec}), metav1.CreateOptions{})
		check(t, err)
	}
	for _, name := range []string{"a", "b", "c"} {
		_, err := machines.Create(ctx, object("Machine", name, map[string]any{"spec": map[string]any{"identifiers": map[string]any{"serial": name}}}), metav1.CreateOptions{})
		check(t, err)
	}
	kinds := map[string]dynamic.ResourceInterface{"cluster": clusters, "group": groups, "machine": machines}
	merge := func(kind, name, text string, sub ...string) error {
		_, err := kinds[kind].Patch(ctx, name, types.MergePatchType, []byte(text), metav1.PatchOptions{}, sub...)
		return err
	}
	status := `{"status": {"nodes": [
		{"machine": "a", "group": "lab-servers", "version": "v1.36.3", "ready": true, "etcd": {"initialCluster": ["a"]}},
		{"machine": "b", "group": "lab-servers", "version": "v1.36.3", "ready": true, "etcd": {"initialCluster": ["a"]}},
		{"machine": "c", "group": "lab-servers", "version": "v1.36.3", "ready": false, "etcd": {"initialCluster": ["a"]}},
		{"machine": "x", "group": "lab-workers", "version": "v1.36.3", "ready": true}],
		"conditions": [{"type": "BroughtUp", "status": "True", "reason": "EverythingReady", "message": "", "lastTransitionTime": "2026-11-30T09:00:00Z"}]}}`
	check(t, merge("cluster", "lab", status, "status"))

	for _, test := range []struct {
		name, kind, object, patch string
		sub                       []string
		want                      string // part of the refusal; empty: accepted
	}{
		{"downgrade across minors", "cluster", "lab", `{"spec": {"version": "v1.35.9"}}`, nil, "spec.version: Invalid value: \"v1.35.9\": from v1.36.3 to v1.35.9 is a downgrade across minor releases"},
		{"skip a minor", "cluster", "lab", `{"spec": {"version": "v1.38.0"}}`, nil, "go to a patch release of 1.37 first"},
		{"four etcd members", "group", "lab-servers", `{"spec": {"replicas": 4}}`, nil, "spec.replicas: Forbidden: Cluster lab would have 4 etcd members"},
		{"four etcd members by scale", "group", "lab-servers", `{"spec": {"replicas": 4}}`, []string{"scale"}, "Cluster lab would have 4 etcd members"},
		{"no control plane", "group", "lab-servers", `{"spec": {"roles": ["etcd"]}}`, nil, "spec.roles: Forbidden: Cluster lab would have no control plane"},
		{"no servers", "group", "lab-servers", `{"spec": {"replicas": 0}}`, nil, "no machine of Cluster lab would hold etcd"},
		{"wipe a machine that the majority needs", "machine", "a", `{"spec": {"intent": {"id": "1", "action": "Release"}}}`, nil, "without it there is no majority"},
		{"install it anew", "machine", "a", `{"spec": {"intent": {"id": "1", "action": "Reinstall"}}}`, nil, "without it there is no majority"},
		{"wipe the dead one", "machine", "c", `{"spec": {"intent": {"id": "1", "action": "Release"}}}`, nil, ""},
		{"five etcd members", "group", "lab-servers", `{"spec": {"replicas": 5}}`, nil, ""},
		{"three again by scale", "group", "lab-servers", `{"spec": {"replicas": 3}}`, []string{"scale"}, ""},
		{"more workers", "group", "lab-workers", `{"spec": {"replicas": 4}}`, nil, ""},
		{"the next minor", "cluster", "lab", `{"spec": {"version": "v1.37.2"}}`, nil, ""},
		{"a change of mind", "cluster", "lab", `{"spec": {"version": "v1.36.3"}}`, nil, ""},
		{"four on purpose", "cluster", "lab", `{"spec": {"etcd": {"allowEvenMembers": true}}}`, nil, ""},
		{"then they are allowed", "group", "lab-servers", `{"spec": {"replicas": 4}}`, nil, ""},
		{"and cannot be forbidden", "cluster", "lab", `{"spec": {"etcd": {"allowEvenMembers": false}}}`, nil, "spec.etcd.allowEvenMembers: Forbidden: Cluster lab would have 4 etcd members"},
	} {
		before := everything(t, clusters.List, groups.List, machines.List)
		err := merge(test.kind, test.object, test.patch, test.sub...)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", test.name, err)
		case test.want != "" && (!apierrors.IsInvalid(err) || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: want a refusal with %q, got %v", test.name, test.want, err)
		case test.want != "" && before != everything(t, clusters.List, groups.List, machines.List):
			t.Errorf("%s: was refused and changed something", test.name)
		}
	}
	if err := groups.Delete(ctx, "lab-servers", metav1.DeleteOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "delete the Cluster") {
		t.Errorf("the servers' group is deleted: %v", err)
	}
	if err := groups.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("all groups are deleted: %v", err)
	}
	check(t, merge("cluster", "lab", `{"metadata": {"finalizers": ["coldrack.dev/cluster"]}}`))
	check(t, clusters.Delete(ctx, "lab", metav1.DeleteOptions{}))
	check(t, groups.Delete(ctx, "lab-servers", metav1.DeleteOptions{}))
	check(t, merge("machine", "a", `{"spec": {"intent": {"id": "2", "action": "Release"}}}`))
}

// everything is what is stored, as text.
func everything(t *testing.T, lists ...func(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error)) string {
	t.Helper()
	var text strings.Builder
	for _, list := range lists {
		l, err := list(context.Background(), metav1.ListOptions{})
		check(t, err)
		for _, item := range l.Items {
			text.WriteString(item.GetName() + " " + item.GetResourceVersion() + "\n")
		}
	}
	return text.String()
}
