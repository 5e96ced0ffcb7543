package controllers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/kubeapi"
)

func TestAddonsInTheStatusOfTheirCluster(t *testing.T) {
	cluster, f := factsOf(t)
	cluster.Spec.Version = "v1.37.2"
	f.view.Plan.Objects = []kube.Object{
		{Addon: "bootstrap", Kind: "ConfigMap", Namespace: "kube-system", Name: "kubeadm-config"},
		{Addon: "coredns", Kind: "Deployment", Namespace: "kube-system", Name: "coredns",
			Content: []byte("spec: {template: {spec: {containers: [{name: coredns, image: registry.k8s.io/coredns/coredns:v1.13.1}]}}}")},
	}
	f.api.Objects.Digest = kubeapi.Digest(f.view.Plan.Objects)
	f.api.UserAddons = map[string]addon.State{"shop": {Name: "shop", Version: "2.1", Phase: addon.Settling, Message: "Deployment shop/web 0 of 1 ready"}}
	text := func() string {
		var list []string
		for _, a := range cluster.Status.Addons {
			list = append(list, strings.TrimSpace(fmt.Sprintf("%s %s %v %s", a.Name, a.Version, a.Ready, a.Message)))
		}
		return strings.Join(list, "; ")
	}
	foldCluster(cluster, *f)
	if got := text(); got != "bootstrap v1.37.2 true; coredns v1.13.1 true; shop 2.1 false Deployment shop/web 0 of 1 ready" {
		t.Errorf("add-ons are %s", got)
	}
	if c := meta.FindStatusCondition(cluster.Status.Conditions, v1alpha1.ConditionAddonsReady); c == nil || c.Status != metav1.ConditionFalse || c.Message != "shop: Deployment shop/web 0 of 1 ready" {
		t.Errorf("the condition is %v", c)
	}
	if want := "add-on shop is Settling: Deployment shop/web 0 of 1 ready"; !strings.Contains(cluster.Status.Message, want) {
		t.Errorf("the message is %q, want %q in it", cluster.Status.Message, want)
	}
	history := func() string {
		var list []string
		for _, s := range cluster.Status.History {
			list = append(list, s.Operation+" "+s.Kind+" "+s.Reason)
		}
		return strings.Join(list, "; ")
	}
	if got := history(); got != "" {
		t.Errorf("before it is ready, the history is %s", got)
	}
	f.api.UserAddons = map[string]addon.State{"shop": {Name: "shop", Version: "2.1", Phase: addon.Ready, Digest: "sha256:1"}}
	for range 2 {
		foldCluster(cluster, *f)
		if got := history(); got != "add-on apply shop 2.1" {
			t.Errorf("once it is ready, the history is %s", got)
		}
	}
	if !meta.IsStatusConditionTrue(cluster.Status.Conditions, v1alpha1.ConditionAddonsReady) {
		t.Error("the condition is not true")
	}
	// A new server has not looked yet.
	f.api.UserAddons = nil
	foldCluster(cluster, *f)
	if got := text(); !strings.HasSuffix(got, "; shop 2.1 true") {
		t.Errorf("while nobody has looked, add-ons are %s", got)
	}
	f.api.UserAddons = map[string]addon.State{"shop": {Name: "shop", Phase: addon.Gone}}
	foldCluster(cluster, *f)
	if got := history(); got != "add-on apply shop 2.1; add-on remove shop" {
		t.Errorf("once it is gone, the history is %s", got)
	}
}

func TestAddonStatus(t *testing.T) {
	now := time.Unix(1000, 0)
	cluster := &v1alpha1.Cluster{}
	rewritten := &v1alpha1.Addon{}
	rewritten.Generation = 2
	foldAddon(rewritten, cluster, &addon.State{Phase: addon.Ready, Generation: 1}, nil, now)
	if rewritten.Status.Phase != "" || rewritten.Status.ObservedGeneration != 0 {
		t.Errorf("what was known before it was rewritten counts for it: %+v", rewritten.Status)
	}
	rewritten.Status.Phase = string(addon.Ready)
	foldAddon(rewritten, cluster, nil, nil, now)
	if rewritten.Status.Phase != string(addon.Ready) || rewritten.Status.ObservedGeneration != 0 {
		t.Errorf("what a server that just started does not know counts: %+v", rewritten.Status)
	}
	for name, c := range map[string]struct {
		state   *addon.State
		missing []string
		want    string // phase: message
		ready   bool
	}{
		"nothing is known of it":              {nil, nil, "Waiting: waits for the cluster's API", false},
		"it is ready":                         {&addon.State{Phase: addon.Ready, Digest: "d", Objects: 3, Healthy: 3}, nil, "Ready: ", true},
		"an image is missing":                 {&addon.State{Phase: addon.Settling, Message: "Deployment a/b 0 of 1 ready"}, []string{"x.y/z:1"}, "Settling: Deployment a/b 0 of 1 ready; no bundle has image x.y/z:1", false},
		"somebody has changed what it has":    {&addon.State{Phase: addon.Drifted, Message: "ConfigMap a/b was changed"}, nil, "Drifted: ConfigMap a/b was changed", false},
		"its objects cannot be read any more": {&addon.State{Phase: addon.Broken, Message: "a.yaml: line 3: bad"}, nil, "Failed: a.yaml: line 3: bad", false},
	} {
		t.Run(name, func(t *testing.T) {
			a := &v1alpha1.Addon{}
			foldAddon(a, cluster, c.state, c.missing, now)
			if got := a.Status.Phase + ": " + a.Status.Message; got != c.want || meta.IsStatusConditionTrue(a.Status.Conditions, "Ready") != c.ready {
				t.Errorf("is %s, %v; want %s", got, a.Status.Conditions, c.want)
			}
		})
	}
}

// addonWithoutCluster needs no cluster that runs: what is done in one is tested with package kubeapi.
func addonWithoutCluster(t *testing.T, w *liveWorld) {
	a := &v1alpha1.Addon{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: v1alpha1.AddonSpec{Cluster: "nowhere",
		Files: []v1alpha1.AddonFile{{Name: "a.yaml", Content: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"}}}}
	check(t, w.client.Create(t.Context(), a))
	is := &v1alpha1.Addon{}
	w.until(func() bool {
		check(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(a), is))
		return is.Status.Message == `there is no Cluster "nowhere"`
	}, func() string { return fmt.Sprintf("its status is %+v", is.Status) })
	bad := &v1alpha1.Addon{ObjectMeta: metav1.ObjectMeta{Name: "coredns"}, Spec: a.Spec}
	if err := w.client.Create(t.Context(), bad); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "is the name of an add-on of Coldrack's own") {
		t.Errorf("one with a name of Coldrack's own: %v", err)
	}
	check(t, w.client.Delete(t.Context(), a))
	w.until(func() bool { return apierrors.IsNotFound(w.client.Get(t.Context(), client.ObjectKeyFromObject(a), is)) },
		func() string { return "it stays, although there is no cluster" })
}
