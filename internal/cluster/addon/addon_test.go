package addon

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"
)

func parse(t *testing.T, text string) []Object {
	t.Helper()
	objects, err := Parse([]File{{"f.yaml", text}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func one(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	encoded, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	// As clients read it: whole numbers are no fractions.
	if err := json.Unmarshal(encoded, &u.Object); err != nil {
		t.Fatal(err)
	}
	return u
}

func TestWhatIsWrongWithFilesIsSaidWithFileAndLine(t *testing.T) {
	const head = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
	for name, c := range map[string]struct {
		files []File
		want  string
	}{
		"bad YAML":                {[]File{{"a.yaml", head + "data: [\n"}}, "a.yaml: document 1: line "},
		"an object without name":  {[]File{{"a.yaml", "# one\napiVersion: v1\nkind: ConfigMap\nmetadata: {}\n"}}, "a.yaml: document 1: line 2: metadata.name is missing"},
		"a key given twice":       {[]File{{"a.yaml", head + "data: {}\ndata: {}\n"}}, `line 5: key "data" is given twice, first on line 4`},
		"an object twice":         {[]File{{"a.yaml", head}, {"b.yaml", "\n" + head}}, "b.yaml:3: ConfigMap a is also in a.yaml:2; an object can be there once"},
		"twice, in two versions":  {[]File{{"a.yaml", "apiVersion: x.y/v1\nkind: A\nmetadata: {name: a}\n---\napiVersion: x.y/v2\nkind: A\nmetadata: {name: a}\n"}}, "a.yaml:6: A a is also in a.yaml:2"},
		"a secret":                {[]File{{"a.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {password: x}\n"}}, "a.yaml:2: Secret a: an add-on holds no secrets"},
		"an object of the server": {[]File{{"a.yaml", "apiVersion: coldrack.dev/v1alpha1\nkind: Subnet\nmetadata: {name: a}\n"}}, "apply it with coldrack apply"},
		"an unknown placeholder":  {[]File{{"a.yaml", head + "data: {a: '${cluster.nmae}'}\n"}}, "a.yaml: line 4: there is no ${cluster.nmae}; there are ${cluster.name}, and $${cluster.nmae} stands for the text itself"},
		"nothing at all":          {[]File{{"a.yaml", "# nothing\n"}}, "there is no object in the add-on's files"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(c.files, Values{"name": "lab"})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Parse says %v, want %q in it", err, c.want)
			}
		})
	}
	_, err := Parse([]File{{"a.yaml", "kind: X\n"}, {"b.yaml", "kind: Y\n"}}, nil)
	if err == nil || !strings.Contains(err.Error(), "a.yaml") || !strings.Contains(err.Error(), "b.yaml") {
		t.Errorf("of two bad files, %v is said", err)
	}
}

func TestPlaceholders(t *testing.T) {
	facts := Facts{Name: "lab", Version: "v1.37.2", DNSDomain: "cluster.local", APIHost: "10.0.0.5", APIPort: 6443,
		PodCIDRs: []string{"10.244.0.0/16", "fd00:1::/48"}, ServiceCIDRs: []string{"10.96.0.0/16"}}
	objects, err := Parse([]File{{"f.yaml", `apiVersion: v1
kind: ConfigMap
metadata: {name: "${cluster.name}-settings"}
data:
  domain: ${cluster.dnsDomain}
  networks: ${cluster.podCIDRs}
  first: ${cluster.podCIDR}
  dns: ${cluster.dnsAddress}
  text: "${cluster.apiPort}"
  shell: ${HOME} $${cluster.name} ${cluster.apiHost}
number: ${cluster.apiPort}
`}}, facts.Values())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"domain": "cluster.local", "networks": "10.244.0.0/16,fd00:1::/48", "first": "10.244.0.0/16", "dns": "10.96.0.10", "text": "6443",
		"shell": "${HOME} ${cluster.name} 10.0.0.5"}
	if diff := cmp.Diff(want, objects[0].Object["data"]); diff != "" || objects[0].Object["number"] != int64(6443) || objects[0].GetName() != "lab-settings" {
		t.Errorf("%s is %v, %v", objects[0].GetName(), objects[0].Object, diff)
	}
	if service6 := (Facts{ServiceCIDRs: []string{"fd00:2::/112"}}).Values()["dnsAddress"]; service6 != "fd00:2::a" {
		t.Errorf("DNS of an IPv6 cluster is %s", service6)
	}
}

func TestTheExampleCanBeApplied(t *testing.T) {
	const folder = "../../../examples/addons/hello/"
	var files []File
	for _, name := range []string{"namespace.yaml", "web.yaml"} {
		text, err := os.ReadFile(folder + name)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, File{name, string(text)})
	}
	facts := Facts{Name: "lab", DNSDomain: "cluster.local", APIHost: "10.0.0.5", APIPort: 6443, PodCIDRs: []string{"10.244.0.0/16"}, ServiceCIDRs: []string{"10.96.0.0/16"}}
	objects, err := Parse(files, facts.Values())
	if err != nil {
		t.Fatal(err)
	}
	if api, _, _ := unstructured.NestedString(objects[1].Object, "data", "api"); len(objects) != 3 || api != "https://10.0.0.5:6443" {
		t.Errorf("%d objects, the API is at %q", len(objects), api)
	}
}

func TestObjectsAreAppliedInTheOrderInWhichTheyNeedEachOther(t *testing.T) {
	var text strings.Builder
	for _, o := range []string{"cert-manager.io/v1 Issuer", "admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration", "apps/v1 Deployment", "v1 Service", "v1 ConfigMap",
		"rbac.authorization.k8s.io/v1 ClusterRoleBinding", "rbac.authorization.k8s.io/v1 ClusterRole", "v1 ServiceAccount", "apiextensions.k8s.io/v1 CustomResourceDefinition", "v1 Namespace"} {
		version, kind, _ := strings.Cut(o, " ")
		fmt.Fprintf(&text, "---\napiVersion: %s\nkind: %s\nmetadata: {name: a}\n", version, kind)
	}
	definitions, others := Stages(parse(t, text.String()))
	kinds := func(objects []Object) (list []string) {
		for _, o := range objects {
			list = append(list, o.GetKind())
		}
		return list
	}
	if diff := cmp.Diff([]string{"Namespace", "CustomResourceDefinition"}, kinds(definitions)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "Service", "Deployment", "ValidatingWebhookConfiguration", "Issuer"}, kinds(others)); diff != "" {
		t.Error(diff)
	}
}

func TestNothingIsEverUnknown(t *testing.T) {
	entry := func(name, digest string) Entry {
		return Entry{APIVersion: "v1", Kind: "ConfigMap", Name: name, Digest: digest}
	}
	was := Inventory{entry("gone", "1"), entry("stays", "1")}
	wanted := Inventory{entry("stays", "2"), entry("comes", "1")}
	record, leaving := Begin(was, wanted)
	if diff := cmp.Diff(Inventory{entry("gone", "1"), entry("stays", "1"), entry("comes", "")}, record); diff != "" {
		t.Errorf("recorded before anything is done: %s", diff)
	}
	if diff := cmp.Diff(Inventory{entry("gone", "1")}, leaving); diff != "" {
		t.Errorf("leaving: %s", diff)
	}
	if record.Has(wanted) || !wanted.Has(wanted) || was.Has(wanted) {
		t.Error("what was applied is taken for what was not, or the other way round")
	}
	// The same object in another version of its kind is no other object.
	old, next := Inventory{{APIVersion: "x.y/v1beta1", Kind: "A", Name: "a"}}, Inventory{{APIVersion: "x.y/v1", Kind: "A", Name: "a"}}
	if _, leaving := Begin(old, next); len(leaving) != 0 {
		t.Errorf("with a newer version of its kind, %v leaves", leaving)
	}
	text, err := wanted.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if read, err := ParseInventory(text); err != nil || cmp.Diff(wanted, read) != "" {
		t.Errorf("read back: %v, %v", read, err)
	}
	// As servers wrote it that knew no add-ons.
	if read, err := ParseInventory(`[{"apiVersion":"v1","kind":"ServiceAccount","namespace":"kube-system","name":"coredns"}]`); err != nil || read[0].Ref().String() != "ServiceAccount kube-system/coredns" {
		t.Errorf("the former form: %v, %v", read, err)
	}
	if _, err := make(Inventory, 100_000).Encode(); err == nil {
		t.Error("an inventory that no ConfigMap can hold was encoded")
	}
}

func TestWhatIsDropped(t *testing.T) {
	ours := func(kind string, change func(*unstructured.Unstructured)) *unstructured.Unstructured {
		o := one(t, "metadata: {name: a, labels: {coldrack.dev/addon: shop}}")
		o.SetAPIVersion("v1")
		o.SetKind(kind)
		o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "coldrack", Operation: "Apply"}})
		if change != nil {
			change(o)
		}
		return o
	}
	yes := true
	for name, c := range map[string]struct {
		live *unstructured.Unstructured
		data bool
		want Verdict
	}{
		"ours":                     {ours("ConfigMap", nil), false, Remove},
		"without the label":        {ours("ConfigMap", func(o *unstructured.Unstructured) { o.SetLabels(nil) }), true, Forget},
		"of another add-on by now": {ours("ConfigMap", func(o *unstructured.Unstructured) { o.SetLabels(map[string]string{LabelAddon: "other"}) }), true, Forget},
		"with the fields of somebody else": {ours("ConfigMap", func(o *unstructured.Unstructured) {
			o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "helm", Operation: "Apply"}})
		}), true, Forget},
		"ours only by an update": {ours("ConfigMap", func(o *unstructured.Unstructured) {
			o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "coldrack", Operation: "Update"}})
		}), true, Forget},
		"to be kept":                          {ours("ConfigMap", func(o *unstructured.Unstructured) { o.SetAnnotations(map[string]string{AnnotationKeep: "true"}) }), true, Forget},
		"of a controller":                     {ours("Pod", func(o *unstructured.Unstructured) { o.SetOwnerReferences([]metav1.OwnerReference{{Controller: &yes}}) }), true, Forget},
		"a namespace":                         {ours("Namespace", nil), false, Leave},
		"a namespace, with the wish":          {ours("Namespace", nil), true, Remove},
		"a claim":                             {ours("PersistentVolumeClaim", nil), false, Leave},
		"the definition of a kind":            {ours("CustomResourceDefinition", func(o *unstructured.Unstructured) { o.SetAPIVersion("apiextensions.k8s.io/v1") }), false, Leave},
		"a custom kind with a name like ours": {ours("Namespace", func(o *unstructured.Unstructured) { o.SetAPIVersion("x.y/v1") }), false, Remove},
	} {
		t.Run(name, func(t *testing.T) {
			verdict, reason := Ownership{Label: LabelAddon, Value: "shop", Manager: "coldrack", Data: c.data}.Drop(c.live)
			if verdict != c.want || (verdict == Remove) != (reason == "") {
				t.Errorf("%s, since it %s; want %s", verdict, reason, c.want)
			}
		})
	}
}

func TestHealth(t *testing.T) {
	for name, c := range map[string]struct {
		object string
		health Health
		want   string
	}{
		"a deployment nobody has seen":       {"apiVersion: apps/v1\nkind: Deployment\nspec: {replicas: 0}", Progressing, "its controller has not seen it yet"},
		"a deployment that was just changed": {"apiVersion: apps/v1\nkind: Deployment\nmetadata: {generation: 2}\nspec: {replicas: 1}\nstatus: {observedGeneration: 1, replicas: 1, updatedReplicas: 1, availableReplicas: 1}", Progressing, "its controller has not seen the last change"},
		"a deployment that is up":            {"apiVersion: apps/v1\nkind: Deployment\nspec: {replicas: 2}\nstatus: {observedGeneration: 1, replicas: 2, updatedReplicas: 2, availableReplicas: 2}", Healthy, "2 of 2 ready"},
		"a deployment that replaces pods":    {"apiVersion: apps/v1\nkind: Deployment\nspec: {replicas: 2}\nstatus: {observedGeneration: 1, replicas: 3, updatedReplicas: 2, availableReplicas: 3}", Progressing, "3 of 2 ready, 1 old ones have not ended"},
		"a deployment past its deadline":     {"apiVersion: apps/v1\nkind: Deployment\nstatus: {observedGeneration: 1, replicas: 1, updatedReplicas: 1, conditions: [{type: Progressing, status: 'False', reason: ProgressDeadlineExceeded, message: too late}]}", Failed, "0 of 1 ready; ProgressDeadlineExceeded: too late"},
		"a deployment whose quota is full":   {"apiVersion: apps/v1\nkind: Deployment\nstatus: {observedGeneration: 1, conditions: [{type: ReplicaFailure, status: 'True', reason: FailedCreate, message: exceeded quota}]}", Failed, "0 of 1 ready, 0 up to date; FailedCreate: exceeded quota"},
		"daemons on each node":               {"apiVersion: apps/v1\nkind: DaemonSet\nstatus: {observedGeneration: 1, desiredNumberScheduled: 3, updatedNumberScheduled: 3, numberAvailable: 3}", Healthy, "3 of 3 ready"},
		"daemons that no node takes":         {"apiVersion: apps/v1\nkind: DaemonSet\nstatus: {observedGeneration: 1, desiredNumberScheduled: 0}", Healthy, "0 of 0 ready"},
		"daemons that are being replaced":    {"apiVersion: apps/v1\nkind: DaemonSet\nstatus: {observedGeneration: 1, desiredNumberScheduled: 3, updatedNumberScheduled: 1, numberAvailable: 3}", Progressing, "3 of 3 ready, 1 up to date"},
		"daemons that a person replaces":     {"apiVersion: apps/v1\nkind: DaemonSet\nspec: {updateStrategy: {type: OnDelete}}\nstatus: {observedGeneration: 1, desiredNumberScheduled: 3, updatedNumberScheduled: 1, numberAvailable: 3}", Healthy, "3 of 3 ready"},
		"a stateful set with a partition":    {"apiVersion: apps/v1\nkind: StatefulSet\nspec: {replicas: 3, updateStrategy: {rollingUpdate: {partition: 2}}}\nstatus: {observedGeneration: 1, readyReplicas: 3, updatedReplicas: 1}", Healthy, "3 of 3 ready"},
		"a stateful set that is not up":      {"apiVersion: apps/v1\nkind: StatefulSet\nspec: {replicas: 3}\nstatus: {observedGeneration: 1, readyReplicas: 1, updatedReplicas: 3}", Progressing, "1 of 3 ready"},
		"a job that runs":                    {"apiVersion: batch/v1\nkind: Job\nstatus: {active: 1, failed: 2}", Progressing, "has not completed: 1 active, 2 failed"},
		"a job that has completed":           {"apiVersion: batch/v1\nkind: Job\nstatus: {conditions: [{type: Complete, status: 'True'}]}", Healthy, "has completed"},
		"a job that has failed":              {"apiVersion: batch/v1\nkind: Job\nstatus: {conditions: [{type: Failed, status: 'True', reason: BackoffLimitExceeded, message: often}]}", Failed, "has failed: BackoffLimitExceeded: often"},
		"a pod without its image":            {"apiVersion: v1\nkind: Pod\nstatus: {phase: Pending, containerStatuses: [{name: web, state: {waiting: {reason: ImagePullBackOff, message: no such image}}}]}", Progressing, "container web: ImagePullBackOff: no such image"},
		"a pod that no node takes":           {"apiVersion: v1\nkind: Pod\nstatus: {phase: Pending, conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable, message: 0/3 nodes}]}", Progressing, "is on no node: Unschedulable: 0/3 nodes"},
		"a pod that starts":                  {"apiVersion: v1\nkind: Pod\nstatus: {phase: Pending, containerStatuses: [{name: web, state: {waiting: {reason: ContainerCreating}}}]}", Progressing, "is not ready"},
		"a kind that is served":              {"apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nstatus: {conditions: [{type: NamesAccepted, status: 'True'}, {type: Established, status: 'True'}]}", Healthy, ""},
		"a kind whose name is taken":         {"apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nstatus: {conditions: [{type: NamesAccepted, status: 'False', reason: ListKindConflict, message: x}]}", Failed, "its names are taken: ListKindConflict: x"},
		"an API that does not answer":        {"apiVersion: apiregistration.k8s.io/v1\nkind: APIService\nstatus: {conditions: [{type: Available, status: 'False', reason: MissingEndpoints, message: none}]}", Progressing, "is not Available: MissingEndpoints: none"},
		"a claim without a volume":           {"apiVersion: v1\nkind: PersistentVolumeClaim\nstatus: {phase: Pending}", Progressing, "is Pending, not Bound"},
		"a custom object that is stalled":    {"apiVersion: x.y/v1\nkind: A\nstatus: {conditions: [{type: Stalled, status: 'True', reason: Bad, message: spec}]}", Failed, "is stalled: Bad: spec"},
		"a custom object that is not ready":  {"apiVersion: x.y/v1\nkind: A\nstatus: {conditions: [{type: Ready, status: 'False', reason: Waits}]}", Progressing, "is not Ready: Waits"},
		"a custom object without status":     {"apiVersion: x.y/v1\nkind: A\nmetadata: {generation: 3}", Healthy, ""},
		"an object that is being deleted":    {"apiVersion: v1\nkind: Pod\nmetadata: {deletionTimestamp: '2026-01-01T00:00:00Z'}\nstatus: {phase: Running, conditions: [{type: Ready, status: 'True'}]}", Progressing, "is being deleted"},
	} {
		t.Run(name, func(t *testing.T) {
			if health, message := HealthOf(one(t, c.object)); health != c.health || message != c.want {
				t.Errorf("is %s: %q; want %s: %q", health, message, c.health, c.want)
			}
		})
	}
}

func TestAnObjectBelongsToOneAddon(t *testing.T) {
	object := func(name string) []Object {
		return parse(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: "+name+", namespace: kube-system}\n")
	}
	problems := Claims([]Ref{{"", "ConfigMap", "kube-system", "coredns"}}, []Addon{
		{Name: "late", Order: 5, Objects: object("shared")}, {Name: "early", Order: 1, Objects: object("shared")}, {Name: "dns", Objects: object("coredns")},
		{Name: "going", Order: -1, Removed: true, Objects: object("shared")},
	})
	if len(problems) != 2 || problems["late"][0].Error() != "f.yaml:2: ConfigMap kube-system/shared is in add-on early already; an object belongs to one add-on" ||
		!strings.Contains(problems["dns"][0].Error(), "one of the objects that Coldrack gives every cluster") {
		t.Errorf("problems are %v", problems)
	}
}

func TestAddonsGoInTheOppositeOrderAndFirst(t *testing.T) {
	var names []string
	for _, a := range Ordered([]Addon{{Name: "c", Order: 1}, {Name: "b"}, {Name: "a"}, {Name: "x", Removed: true}, {Name: "y", Order: 2, Removed: true}}) {
		names = append(names, a.Name)
	}
	if got := strings.Join(names, " "); got != "y x a b c" {
		t.Errorf("the order is %s", got)
	}
}
