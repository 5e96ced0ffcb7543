package rack

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
)

const addonKind = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
`

const addonObjects = `apiVersion: example.org/v1
kind: Widget
metadata: {name: first}
spec: {cluster: "${cluster.name}", port: ${cluster.apiPort}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "example.org/web:1"}]}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {dns: "${cluster.dnsAddress}"}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
`

// TestAddons gives a cluster a folder of manifests by the command line, changes it, breaks it and takes it away. The server is killed in the middle.
func TestAddons(t *testing.T) {
	t.Parallel()
	r := New(t, Options{})
	r.Cluster(Size{Etcd: 1, ControlPlanes: 1, Workers: 1}, swiftly)
	folder := filepath.Join(t.TempDir(), "shop")
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("kind.yaml", addonKind)
	write("a.yaml", addonObjects)
	// It may be written before there is anything to apply it to.
	if out := r.Server().Run("addon", "apply", "shop", "--cluster", r.cluster, "-f", folder, "-n", "shop", "--version", "1.0"); !strings.Contains(out, "not compared") || !strings.Contains(out, "shop: written") {
		t.Errorf("apply, before the cluster runs: %s", out)
	}
	r.PowerOn()
	r.AwaitReady()
	addon := func(what string, is func(a *v1alpha1.Addon) bool) {
		t.Helper()
		r.Await(what, func() (bool, string) {
			a := &v1alpha1.Addon{}
			if err := r.Server().Get("shop", a); err != nil {
				return false, err.Error()
			}
			return is(a), a.Status.Phase + ": " + a.Status.Message
		})
	}
	addon("is ready", func(a *v1alpha1.Addon) bool { return a.Status.Phase == "Ready" && a.Status.Healthy == "5/5" })
	if out := r.Server().Run("addon", "status", "shop"); !strings.Contains(out, "no bundle has image example.org/web:1") {
		t.Errorf("the status is %s", out)
	}
	if got := r.Kubectl("-n", "shop", "get", "widget", "first", "-o", "jsonpath={.spec.cluster} {.spec.port}"); got != r.cluster+" 6443" {
		t.Errorf("the widget has %s", got)
	}
	r.AwaitCluster("tells of it", func(c *v1alpha1.Cluster) bool {
		last := c.Status.Addons[len(c.Status.Addons)-1]
		return last.Name == "shop" && last.Ready && last.Version == "1.0" && len(c.Status.History) > 0
	})
	if out := r.Server().Run("cluster", "history", r.cluster); !strings.Contains(out, "shop 1.0") {
		t.Errorf("the history is %s", out)
	}
	var rows []cli.AddonRow
	if err := json.Unmarshal([]byte(r.Server().Run("addon", "list", "--cluster", r.cluster, "-o", "json")), &rows); err != nil || rows[0].Name != "bootstrap" || !rows[0].Own || rows[len(rows)-1].Name != "shop" {
		t.Errorf("the list is %+v, %v", rows, err)
	}

	t.Run("a diff changes nothing", func(t *testing.T) {
		if out, err := r.Server().Try("addon", "diff", "shop", "-f", folder); err != nil || !strings.Contains(out, "nothing would change") {
			t.Errorf("of what is there: %v %s", err, out)
		}
		write("a.yaml", strings.Replace(addonObjects, "name: settings", "name: options", 1))
		out, err := r.Server().Try("addon", "diff", "shop", "-f", folder)
		if err == nil || !strings.Contains(err.Error(), "exit status 6") || !strings.Contains(out, "+ ConfigMap shop/options") || !strings.Contains(out, "- ConfigMap shop/settings") {
			t.Errorf("of a change: %v %s", err, out)
		}
	})
	t.Run("what cannot work is refused with its place", func(t *testing.T) {
		for text, want := range map[string]string{
			"apiVersion: example.org/v9\nkind: Gadget\nmetadata: {name: a}\n":                                                   "bad.yaml:2: Gadget a: the cluster has no kind Gadget in example.org/v9",
			"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: coredns, namespace: kube-system}\n":                              "one of the objects that Coldrack gives every cluster",
			"apiVersion: v1\nkind: ConfigMap\nmetadata: {}\n":                                                                   "line 1: metadata.name is missing",
			"apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{port: 99999}]}\n":                            "bad.yaml:2: Service shop/bad",
			"apiVersion: v1\nkind: Secret\nmetadata: {name: bad}\nstringData: {password: x}\n":                                  "an add-on holds no secrets",
			"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: options}\n---\nkind: [\n":                                        "bad.yaml: document 2: line",
			"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kube-root-ca.crt}\ndata: {ca.crt: mine}\n":                       "somebody else's",
			"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: '${cluster.podCidr}'}\n":                           "bad.yaml: line 4: there is no ${cluster.podCidr}",
			"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n": "is also in bad.yaml:2",
		} {
			write("bad.yaml", text)
			if out, err := r.Server().Try("addon", "apply", "shop", "-f", folder); err == nil || !strings.Contains(out, want) {
				t.Errorf("%s: %v %s", want, err, out)
			}
		}
		if err := os.Remove(filepath.Join(folder, "bad.yaml")); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a newer one replaces it, by whichever server", func(t *testing.T) {
		r.Server().Run("addon", "apply", "shop", "-f", folder, "--version", "1.1")
		r.Server().Restart()
		addon("is ready", func(a *v1alpha1.Addon) bool {
			return a.Status.Phase == "Ready" && a.Status.ObservedGeneration == a.Generation
		})
		if out := r.Kubectl("-n", "shop", "get", "configmap", "-o", "name"); !strings.Contains(out, "configmap/options") || strings.Contains(out, "configmap/settings") {
			t.Errorf("there are %s", out)
		}
		if out := r.Server().Run("addon", "apply", "shop", "-f", folder, "--version", "1.2", "--wait"); !strings.Contains(out, "shop: ready in cluster") {
			t.Errorf("apply --wait: %s", out)
		}
	})
	t.Run("deleted, it goes and leaves what holds data", func(t *testing.T) {
		r.Server().Run("addon", "delete", "shop", "--yes")
		r.Await("is gone", func() (bool, string) {
			a := &v1alpha1.Addon{}
			err := r.Server().Get("shop", a)
			return client.IgnoreNotFound(err) == nil && err != nil, a.Status.Phase + ": " + a.Status.Message
		})
		if out := r.Kubectl("-n", "shop", "get", "widget,configmap", "-o", "name"); strings.Contains(out, "first") || strings.Contains(out, "options") {
			t.Errorf("left are %s", out)
		}
		r.Kubectl("get", "namespace", "shop")
	})
}
