package kubeapi

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
)

// widgets is a kind of its own.
const widgets = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

const widget = `---
apiVersion: example.org/v1
kind: Widget
metadata: {name: first}
spec: {size: 1}
`

const settings = `---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: red}
`

// addonOf are files, one after the other, as an add-on.
func addonOf(t *testing.T, name string, texts ...string) addon.Addon {
	t.Helper()
	objects, err := addon.Parse([]addon.File{{Name: name + ".yaml", Content: strings.Join(texts, "")}}, nil)
	check(t, err)
	return addon.Addon{Name: name, Namespace: "shop", Objects: objects, Timeout: time.Minute}
}

func (c *testCluster) testAddons(t *testing.T) {
	connection := c.connect()
	applier, err := NewApplier(connection)
	check(t, err)
	apply := func(a addon.Addon) (left, drifted []string, err error) {
		placed, err := connection.place(a)
		if err != nil {
			return nil, nil, err
		}
		return applier.ApplyAddon(t.Context(), a, placed)
	}
	get := func(what ...string) string {
		out, err := c.kubectl(append([]string{"-n", "shop", "get", "--ignore-not-found"}, what...)...)
		if err != nil {
			t.Fatal(out)
		}
		return strings.TrimSpace(out)
	}
	kubectl := func(arguments ...string) {
		t.Helper()
		if out, err := c.kubectl(arguments...); err != nil {
			t.Fatal(out)
		}
	}
	changesOf := func(a addon.Addon) string {
		t.Helper()
		changes, err := connection.DiffAddon(t.Context(), a, nil, nil)
		check(t, err)
		var lines []string
		for _, change := range changes {
			lines = append(lines, fmt.Sprintf("%s %s", change.Change, change.Object))
		}
		return strings.Join(lines, "; ")
	}

	t.Run("a namespace, a kind and its objects come in one go, whatever their order in the files", func(t *testing.T) {
		a := addonOf(t, "shop", strings.TrimPrefix(widget, "---\n"), settings, "---\n"+widgets)
		if got := changesOf(a); got != "add Widget shop/first; add Namespace shop; add ConfigMap shop/settings; add CustomResourceDefinition widgets.example.org" {
			t.Errorf("the diff is %s", got)
		}
		if _, _, err := apply(a); err != nil {
			t.Fatal(err)
		}
		if got := get("widget", "first", "-o", "jsonpath={.spec.size}"); got != "1" {
			t.Errorf("the widget has size %q", got)
		}
		if got := changesOf(a); got != "" {
			t.Errorf("once it is applied, the diff is %s", got)
		}
		troubles, err := connection.addonTroubles(t.Context(), a.Objects[3:])
		if err != nil || len(troubles) != 0 {
			t.Errorf("not healthy: %v, %v", troubles, err)
		}
	})
	t.Run("a diff is a dry run, and shows what a person would want to know", func(t *testing.T) {
		a := addonOf(t, "shop", widgets, strings.Replace(widget, "size: 1", "size: 2", 1), settings)
		changes, err := connection.DiffAddon(t.Context(), a, nil, nil)
		check(t, err)
		if len(changes) != 1 || changes[0].Change != kube.Changed || !strings.Contains(changes[0].Diff, "-  size: 1\n+  size: 2") || strings.Contains(changes[0].Diff, "managedFields") {
			t.Errorf("the diff is %+v", changes)
		}
		if got := get("widget", "first", "-o", "jsonpath={.spec.size}"); got != "1" {
			t.Errorf("after the diff the widget has size %q", got)
		}
	})
	t.Run("what is dropped goes, but not a kind, a namespace, or what somebody wants to keep", func(t *testing.T) {
		more := addonOf(t, "shop", widgets, widget, settings, `---
apiVersion: v1
kind: ConfigMap
metadata: {name: kept, annotations: {coldrack.dev/keep: "true"}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: taken}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`)
		if _, _, err := apply(more); err != nil {
			t.Fatal(err)
		}
		kubectl("-n", "shop", "label", "configmap", "taken", addon.LabelAddon+"-")
		less := addonOf(t, "shop", strings.Replace(settings[strings.LastIndex(settings, "---"):], "settings", "other", 1))
		if got := changesOf(less); got != "add ConfigMap shop/other; left CustomResourceDefinition widgets.example.org; remove Widget shop/first; left Namespace shop; "+
			"remove ConfigMap shop/settings; left ConfigMap shop/kept; left ConfigMap shop/taken; left PersistentVolumeClaim shop/data" {
			t.Errorf("the diff is %s", got)
		}
		// Another server, that knows only what the cluster records.
		applier, err = NewApplier(connection)
		check(t, err)
		left, _, err := apply(less)
		check(t, err)
		if got := strings.Join(left, "; "); got != "CustomResourceDefinition widgets.example.org: all objects of this kind would go; Namespace shop: others may have put objects into it; "+
			"PersistentVolumeClaim shop/data: its data would go" {
			t.Errorf("left are %s", got)
		}
		if got := get("configmap,widget,pvc", "-o", "name"); got != "configmap/kept\nconfigmap/other\nconfigmap/taken\npersistentvolumeclaim/data" {
			t.Errorf("there are %s", got)
		}
		// What is left is still known, and goes when a person wishes that.
		kubectl("-n", "shop", "patch", "pvc", "data", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
		less.Data = true
		less.Objects[0].SetNamespace("default")
		left, _, err = apply(less)
		if err != nil || len(left) != 0 {
			t.Errorf("with the wish to remove everything: %v, left are %v", err, left)
		}
		if got := get("crd", "widgets.example.org", "-o", "jsonpath={.metadata.deletionTimestamp}"); got != "" {
			eventually(t, "the kind goes", func() (bool, string) { out := get("crd", "widgets.example.org", "-o", "name"); return out == "", out })
		}
		// Nothing finalizes namespaces here.
		if shop, err := connection.client.CoreV1().Namespaces().Get(t.Context(), "shop", metav1.GetOptions{}); err != nil || shop.DeletionTimestamp == nil {
			t.Errorf("the namespace: %v", err)
		} else {
			shop.Spec.Finalizers = nil
			_, err = connection.client.CoreV1().Namespaces().Finalize(t.Context(), shop, metav1.UpdateOptions{})
			check(t, err)
		}
		if left, err := applier.RemoveAddon(t.Context(), less); err != nil || len(left) != 0 {
			t.Errorf("remove: %v, left are %v", err, left)
		}
		if out, err := c.kubectl("-n", "kube-system", "get", "configmap", addonInventory("shop"), "--ignore-not-found", "-o", "name"); err != nil || strings.TrimSpace(out) != "" {
			t.Errorf("its inventory is still there: %s", out)
		}
	})
	t.Run("objects of others are not taken unless that is said", func(t *testing.T) {
		kubectl("create", "configmap", "theirs", "--from-literal=color=blue")
		a := addonOf(t, "painter", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: theirs, namespace: default}\ndata: {color: red}\n")
		if changes, err := connection.DiffAddon(t.Context(), a, nil, nil); err != nil || len(changes) != 1 || changes[0].Change != ChangeRefused || !strings.Contains(changes[0].Diff, "somebody else's") {
			t.Errorf("the diff is %v, %v", changes, err)
		}
		beside := a
		beside.Name, beside.Order = "painter-too", 7
		if _, err := connection.DiffAddon(t.Context(), a, nil, []addon.Addon{beside}); err == nil || !strings.Contains(err.Error(), "is in add-on painter-too already") {
			t.Errorf("the diff of what another add-on has: %v", err)
		}
		_, _, err := apply(a)
		if err == nil || !strings.HasPrefix(err.Error(), "painter.yaml:2: ConfigMap default/theirs: it is in the cluster already, and somebody else's") || !strings.Contains(err.Error(), "kubectl-create") {
			t.Errorf("error is %v", err)
		}
		a.TakeOver = true
		if _, _, err := apply(a); err != nil {
			t.Error(err)
		}
		// From then on it is ours, and what is changed by hand comes back, or is told of.
		a.TakeOver = false
		kubectl("patch", "configmap", "theirs", "--type=merge", "-p", `{"data":{"color":"green"}}`)
		a.Report = true
		if _, drifted, err := apply(a); err != nil || strings.Join(drifted, "") != "ConfigMap default/theirs was changed" {
			t.Errorf("drifted: %v, %v", drifted, err)
		}
		a.Report = false
		if _, _, err := apply(a); err != nil {
			t.Error(err)
		}
		if out, _ := c.kubectl("get", "configmap", "theirs", "-o", "jsonpath={.data.color}"); out != "red" {
			t.Errorf("the color is %s", out)
		}
		if _, err := applier.RemoveAddon(t.Context(), a); err != nil {
			t.Error(err)
		}
	})
	t.Run("a kind that the cluster does not have is named with its place", func(t *testing.T) {
		_, err := connection.place(addonOf(t, "odd", "apiVersion: example.org/v7\nkind: Gadget\nmetadata: {name: a}\n"))
		if err == nil || err.Error() != "odd.yaml:2: Gadget a: the cluster has no kind Gadget in example.org/v7, and the add-on does not define it" {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("killed in the middle, the next one goes on and loses nothing", func(t *testing.T) {
		text := ""
		for i := range 30 {
			text += fmt.Sprintf("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: part-%02d, namespace: default}\n", i)
		}
		a := addonOf(t, "parts", text)
		placed, err := connection.place(a)
		check(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { // ends when the first object is there
			defer cancel()
			for ctx.Err() == nil {
				if _, err := connection.client.CoreV1().ConfigMaps("default").Get(ctx, "part-00", metav1.GetOptions{}); err == nil {
					return
				}
			}
		}()
		if _, _, err := applier.ApplyAddon(ctx, a, placed); err == nil {
			t.Log("it was faster than the kill")
		}
		<-ctx.Done()
		next, err := NewApplier(c.connect())
		check(t, err)
		a.Objects = a.Objects[:1]
		placed, err = connection.place(a)
		check(t, err)
		if _, _, err := next.ApplyAddon(t.Context(), a, placed); err != nil {
			t.Fatal(err)
		}
		out, err := c.kubectl("get", "configmap", "-l", addon.LabelAddon+"=parts", "-o", "name")
		if err != nil || strings.TrimSpace(out) != "configmap/part-00" {
			t.Errorf("there are %s", out)
		}
		if _, err := next.RemoveAddon(t.Context(), a); err != nil {
			t.Error(err)
		}
	})
	t.Run("add-ons come in their order, and what does not get healthy is named", func(t *testing.T) {
		w := c.run(t, nil)
		first := addonOf(t, "first", `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: registry.example.org/web:1}]}}
`)
		second := addonOf(t, "second", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: after}\n")
		first.Namespace, second.Namespace, second.Order, first.Timeout = "default", "default", 1, time.Millisecond
		w.SetAddons([]addon.Addon{second, first})
		see := func(what string, seen func(states map[string]addon.State) bool) {
			t.Helper()
			eventually(t, what, func() (bool, string) {
				states := w.last().UserAddons
				return seen(states), fmt.Sprint(states)
			})
		}
		see("the first fails, the second waits", func(states map[string]addon.State) bool {
			return states["first"].Phase == addon.Broken && states["first"].Message == "Deployment default/web: its controller has not seen it yet" &&
				states["second"].Phase == addon.Waiting && states["second"].Message == "waits until add-on first, which comes before it, is ready"
		})
		if out, err := c.kubectl("get", "configmap", "after", "--ignore-not-found", "-o", "name"); err != nil || out != "" {
			t.Errorf("while the first is not ready, there is %s", out)
		}
		// As the controller manager would.
		kubectl("patch", "deployment", "web", "--subresource=status", "--type=merge", "-p", `{"status":{"observedGeneration":1,"replicas":1,"updatedReplicas":1,"availableReplicas":1,"readyReplicas":1}}`)
		see("both are ready", func(states map[string]addon.State) bool {
			return states["first"].Phase == addon.Ready && states["second"].Phase == addon.Ready && states["first"].Healthy == 1 && states["second"].Digest != ""
		})
		// One that breaks later holds nobody up, and one whose files are broken keeps what it has.
		second.Problem, second.Objects = "a.yaml: document 1: line 2: broken", nil
		w.SetAddons([]addon.Addon{second, first})
		see("the second is broken", func(states map[string]addon.State) bool {
			return states["second"].Phase == addon.Broken && states["second"].Message == second.Problem
		})
		kubectl("get", "configmap", "after")
		// What moves to another add-on is not removed in between.
		uid, err := c.kubectl("get", "configmap", "after", "-o", "jsonpath={.metadata.uid}")
		check(t, err)
		second.Removed = true
		third := addonOf(t, "third", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: after, namespace: default}\n")
		w.SetAddons([]addon.Addon{second, first, third})
		see("the third has taken over", func(states map[string]addon.State) bool {
			return states["second"].Phase == addon.Gone && states["third"].Phase == addon.Ready
		})
		if is, err := c.kubectl("get", "configmap", "after", "-o", "jsonpath={.metadata.uid} {.metadata.labels}"); err != nil || is != uid+` {"coldrack.dev/addon":"third"}` {
			t.Errorf("the object was %s and is %s", uid, is)
		}
		first.Removed, third.Removed = true, true
		w.SetAddons([]addon.Addon{third, first})
		see("both are gone", func(states map[string]addon.State) bool {
			return states["first"].Phase == addon.Gone && states["third"].Phase == addon.Gone
		})
		if out, err := c.kubectl("get", "configmap,deployment", "--ignore-not-found", "-l", addon.LabelAddon, "-o", "name"); err != nil || out != "" {
			t.Errorf("left are %s", out)
		}
	})
	t.Run("the inventory of a server that knew no add-ons is taken over, and nothing is written anew", func(t *testing.T) {
		maps := connection.client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
		recorded, err := applier.readInventory(t.Context(), inventoryName)
		check(t, err)
		former := addon.Inventory{}
		for _, e := range recorded {
			e.Addon, e.Digest = "", ""
			former = append(former, e)
		}
		check(t, applier.writeInventory(t.Context(), inventoryName, nil, former))
		before, err := maps.Get(t.Context(), "coredns", metav1.GetOptions{})
		check(t, err)
		fresh, err := NewApplier(connection)
		check(t, err)
		check(t, fresh.Apply(t.Context(), c.plan.Objects))
		after, err := maps.Get(t.Context(), "coredns", metav1.GetOptions{})
		check(t, err)
		if before.ResourceVersion != after.ResourceVersion {
			t.Errorf("resource version went from %s to %s", before.ResourceVersion, after.ResourceVersion)
		}
		if recorded, err = fresh.readInventory(t.Context(), inventoryName); err != nil || recorded[0].Addon != "bootstrap" || recorded[0].Digest == "" {
			t.Errorf("recorded are %v, %v", recorded[0], err)
		}
	})
}
