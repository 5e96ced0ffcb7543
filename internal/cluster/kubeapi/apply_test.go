package kubeapi

import (
	"strings"
	"testing"

	"coldrack.dev/internal/cluster/kube"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (c *testCluster) testApply(t *testing.T) {
	connection := c.connect()
	applier, err := NewApplier(connection)
	check(t, err)
	if err := applier.Apply(t.Context(), c.plan.Objects); err != nil {
		t.Fatal(err)
	}
	maps := connection.client.CoreV1().ConfigMaps(metav1.NamespaceSystem)

	t.Run("a second time nothing is written", func(t *testing.T) {
		before, err := maps.Get(t.Context(), "coredns", metav1.GetOptions{})
		check(t, err)
		check(t, applier.Apply(t.Context(), c.plan.Objects))
		fresh, err := NewApplier(connection)
		check(t, err)
		check(t, fresh.Apply(t.Context(), c.plan.Objects))
		after, err := maps.Get(t.Context(), "coredns", metav1.GetOptions{})
		check(t, err)
		if before.ResourceVersion != after.ResourceVersion {
			t.Errorf("resource version went from %s to %s", before.ResourceVersion, after.ResourceVersion)
		}
	})
	t.Run("what was changed or deleted by hand comes back, what others added stays", func(t *testing.T) {
		if out, err := c.kubectl("-n", "kube-system", "patch", "configmap", "coredns", "--type=merge", "-p", `{"data":{"Corefile":"broken","own.server":"kept"}}`); err != nil {
			t.Fatal(out)
		}
		if out, err := c.kubectl("-n", "kube-system", "delete", "serviceaccount", "coredns"); err != nil {
			t.Fatal(out)
		}
		check(t, applier.Apply(t.Context(), c.plan.Objects))
		m, err := maps.Get(t.Context(), "coredns", metav1.GetOptions{})
		check(t, err)
		if m.Data["Corefile"] == "broken" || m.Data["own.server"] != "kept" {
			t.Errorf("data is %v", m.Data)
		}
		if _, err := connection.client.CoreV1().ServiceAccounts("kube-system").Get(t.Context(), "coredns", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("what leaves the plan is removed, but not what somebody took over, and no namespace", func(t *testing.T) {
		object := func(kind, namespace, name, rest string) kube.Object {
			text := "apiVersion: v1\nkind: " + kind + "\nmetadata:\n  name: " + name + "\n"
			if namespace != "" {
				text += "  namespace: " + namespace + "\n"
			}
			return kube.Object{Addon: "test", Kind: kind, Namespace: namespace, Name: name, Content: []byte(text + rest)}
		}
		more := append(append([]kube.Object{}, c.plan.Objects...), object("Namespace", "", "leaving", ""),
			object("ConfigMap", "leaving", "ours", "data: {a: b}\n"), object("ConfigMap", "leaving", "taken", "data: {a: b}\n"))
		check(t, applier.Apply(t.Context(), more))
		if out, err := c.kubectl("-n", "leaving", "label", "configmap", "taken", LabelManaged+"-"); err != nil {
			t.Fatal(out)
		}
		// Another server, that knows only what the cluster records.
		other, err := NewApplier(c.connect())
		check(t, err)
		check(t, other.Apply(t.Context(), c.plan.Objects))
		out, err := c.kubectl("-n", "leaving", "get", "configmap", "-o", "name")
		if err != nil || strings.Contains(out, "/ours") || !strings.Contains(out, "/taken") {
			t.Errorf("left are %s", out)
		}
		if out, err := c.kubectl("get", "namespace", "leaving", "-o", "jsonpath={.status.phase}"); err != nil || out != "Active" {
			t.Errorf("the namespace: %s", out)
		}
		recorded, err := other.readInventory(t.Context(), inventoryName)
		check(t, err)
		if len(recorded) != len(c.plan.Objects)+1 || recorded[0].Name != "leaving" || recorded[0].Left == "" {
			t.Errorf("%d objects are recorded, want %d and the namespace, which is left; the first is %v", len(recorded), len(c.plan.Objects), recorded[0])
		}
		if out, err := c.kubectl("label", "namespace", "leaving", LabelManaged+"-"); err != nil {
			t.Fatal(out)
		}
		check(t, other.Apply(t.Context(), c.plan.Objects))
		if recorded, err = other.readInventory(t.Context(), inventoryName); err != nil || len(recorded) != len(c.plan.Objects) {
			t.Errorf("once it is somebody else's: %d objects are recorded, %v", len(recorded), err)
		}
	})
	t.Run("an error names its object and does not stop the others", func(t *testing.T) {
		bad := kube.Object{Addon: "test", Kind: "Service", Namespace: "kube-system", Name: "bad",
			Content: []byte("apiVersion: v1\nkind: Service\nmetadata: {name: bad, namespace: kube-system}\nspec: {ports: [{port: 99999}]}\n")}
		last := kube.Object{Addon: "test", Kind: "ConfigMap", Namespace: "kube-system", Name: "last",
			Content: []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: last, namespace: kube-system}\n")}
		err := applier.Apply(t.Context(), append(append([]kube.Object{}, c.plan.Objects...), bad, last))
		if err == nil || len(lines(err)) != 1 || !strings.HasPrefix(err.Error(), "Service kube-system/bad: ") {
			t.Errorf("error is %v", err)
		}
		if _, err := maps.Get(t.Context(), "last", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
		check(t, applier.Apply(t.Context(), c.plan.Objects))
	})
	t.Run("no objects at all are no wish to remove everything", func(t *testing.T) {
		if err := applier.Apply(t.Context(), nil); err == nil {
			t.Error("no error")
		}
	})
}
