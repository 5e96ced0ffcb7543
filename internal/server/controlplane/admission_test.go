package controlplane

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"coldrack.dev/api/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

func TestOfManyWhoClaimTheSameAtOnceOneGetsIt(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	cfg := testConfig(t, newTestCA(t))
	cfg.Normalize = func(ids v1alpha1.Identifiers) v1alpha1.Identifiers {
		if ids.Serial == "VENDOR" {
			ids.Serial = ""
		}
		return ids
	}
	c := startTest(t, cfg)
	machines, subnets := resource(t, c.RESTConfig(), "machines"), resource(t, c.RESTConfig(), "subnets")

	race := func(t *testing.T, create func(i int) error) {
		t.Helper()
		var created atomic.Int32
		var writers sync.WaitGroup
		for i := range 16 {
			writers.Go(func() {
				switch err := create(i); {
				case err == nil:
					created.Add(1)
				case !apierrors.IsInvalid(err):
					t.Error(err)
				}
			})
		}
		writers.Wait()
		if n := created.Load(); n != 1 {
			t.Errorf("%d got it", n)
		}
	}
	t.Run("a MAC", func(t *testing.T) {
		race(t, func(i int) error {
			_, err := machines.Create(ctx, object("Machine", fmt.Sprint("m", i), map[string]any{"spec": map[string]any{
				"identifiers": map[string]any{"macs": []any{"52:54:00:00:00:01"}}}}), metav1.CreateOptions{})
			return err
		})
	})
	t.Run("a network", func(t *testing.T) {
		race(t, func(i int) error {
			_, err := subnets.Create(ctx, object("Subnet", fmt.Sprint("s", i), map[string]any{"spec": map[string]any{
				"cidr": "10.0.0.0/" + fmt.Sprint(24-i%4), "dhcp": "off"}}), metav1.CreateOptions{})
			return err
		})
	})
	t.Run("what a vendor put on many machines is no claim", func(t *testing.T) {
		for i := range 2 {
			_, err := machines.Create(ctx, object("Machine", fmt.Sprint("v", i), map[string]any{"spec": map[string]any{
				"identifiers": map[string]any{"serial": "VENDOR"}}}), metav1.CreateOptions{})
			check(t, err)
		}
	})
	t.Run("a dry run claims nothing", func(t *testing.T) {
		spec := map[string]any{"spec": map[string]any{"identifiers": map[string]any{"serial": "DRY"}}}
		_, err := machines.Create(ctx, object("Machine", "d0", spec), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		check(t, err)
		_, err = machines.Create(ctx, object("Machine", "d1", spec), metav1.CreateOptions{})
		check(t, err)
	})
	t.Run("what a machine gives up is free", func(t *testing.T) {
		_, err := machines.Patch(ctx, "d1", types.MergePatchType, []byte(`{"spec":{"identifiers":{"serial":"OTHER"}}}`), metav1.PatchOptions{})
		check(t, err)
		_, err = machines.Create(ctx, object("Machine", "d2", map[string]any{"spec": map[string]any{
			"identifiers": map[string]any{"serial": "DRY"}}}), metav1.CreateOptions{})
		check(t, err)
	})
}

func TestWhatIsServedBesideTheAPINeedsARoleToo(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	ca := newTestCA(t)
	cfg := testConfig(t, ca)
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		Remark(r, "coldrack.dev/test", "remarked")
		fmt.Fprintf(w, "%s %s by %s, %s", r.Method, r.URL.Path, PersonOf(r).Name, PersonOf(r).Role)
	})
	cfg.Handlers = map[string]http.Handler{"/beside/": echo, "/coldrack/v1/plan": echo}
	c := startTest(t, cfg)
	ask := func(method, path string, groups ...string) string {
		config := ca.person(t, c.Address(), "p", groups...)
		client, err := rest.HTTPClientFor(config)
		check(t, err)
		r, err := http.NewRequestWithContext(ctx, method, config.Host+path, nil)
		check(t, err)
		response, err := client.Do(r)
		check(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		check(t, err)
		return fmt.Sprint(response.StatusCode, " ", string(body))
	}
	for _, test := range []struct{ got, want string }{
		{ask("GET", "/beside/x", GroupViewer), "200 GET /beside/x by p, coldrack:viewer"},
		{ask("POST", "/beside/x", GroupViewer), "403 "},
		{ask("POST", "/beside/x", GroupOperator), "200 POST /beside/x by p, coldrack:operator"},
		{ask("GET", "/beside/x"), "403 "},
		{ask("POST", "/coldrack/v1/plan", GroupViewer), "200 POST /coldrack/v1/plan"},
		{ask("PUT", "/coldrack/v1/plan", GroupViewer), "403 "},
		{ask("POST", "/coldrack/v1/plan"), "403 "},
	} {
		if !strings.HasPrefix(test.got, test.want) {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
	log, err := os.ReadFile(cfg.path(auditLogFile))
	check(t, err)
	if !strings.Contains(string(log), `"coldrack.dev/test":"remarked"`) {
		t.Errorf("what a handler remarks is not in the audit log:\n%s", log)
	}
	cfg.Handlers = map[string]http.Handler{"/apis/mine": nil}
	if _, err := Start(ctx, cfg); err == nil || !strings.Contains(err.Error(), "belong to the API") {
		t.Errorf("a path of the API: %v", err)
	}
}

// warnings collects what the server warns of.
type warnings struct {
	mu    sync.Mutex
	texts []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}

func (w *warnings) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := strings.Join(w.texts, "\n")
	w.texts = nil
	return text
}

// What decides who is root in a cluster is for administrators; operators may change the rest of the same Cluster.
func TestFieldsOfClustersThatOnlyAdministratorsMayWrite(t *testing.T) {
	t.Parallel()
	ctx, ca := context.Background(), newTestCA(t)
	c := startTest(t, testConfig(t, ca))
	person := func(group, kind string) dynamic.ResourceInterface {
		return resource(t, ca.person(t, c.Address(), "p", group), kind)
	}
	operator, admin := person(GroupOperator, "clusters"), person(GroupAdmin, "clusters")
	cluster := func(name string, spec map[string]any) *unstructured.Unstructured {
		spec["version"] = "v1.37.2"
		return object("Cluster", name, map[string]any{"spec": spec})
	}
	args := map[string]any{"extraArgs": map[string]any{"v": "4"}}
	for field, spec := range map[string]map[string]any{
		"spec.apiServer.authentication":       {"apiServer": map[string]any{"authentication": map[string]any{"jwt": []any{}}}},
		"spec.apiServer.extraArgs[v]":         {"apiServer": args},
		"spec.controllerManager.extraArgs[v]": {"controllerManager": args},
		"spec.scheduler.extraArgs[v]":         {"scheduler": args},
		"spec.etcd.extraArgs[log-level]":      {"etcd": map[string]any{"extraArgs": map[string]any{"log-level": "debug"}}},
		"spec.kubelet.config.featureGates":    {"kubelet": map[string]any{"config": map[string]any{"featureGates": map[string]any{"X": true}}}},
		"spec.security.podSecurity":           {"security": map[string]any{"podSecurity": "privileged"}},
		"spec.registries":                     {"registries": []any{map[string]any{"host": "docker.io", "endpoints": []any{"https://mirror.example.org"}}}},
	} {
		_, err := operator.Create(ctx, cluster("lab", spec), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil || !strings.Contains(err.Error(), field+": Forbidden: this needs role admin") {
			t.Errorf("%s as operator: %v", field, err)
		}
	}
	_, err := admin.Create(ctx, cluster("lab", map[string]any{"apiServer": map[string]any{"extraArgs": map[string]any{"token-auth-file": "/x"}}}), metav1.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), "spec.apiServer.extraArgs[token-auth-file]: Forbidden: token-auth-file would give eternal credentials") {
		t.Errorf("a flag that nobody may set as administrator: %v", err)
	}
	_, err = admin.Create(ctx, cluster("lab", map[string]any{"apiServer": args}), metav1.CreateOptions{})
	check(t, err)
	patch := func(who dynamic.ResourceInterface, text string) error {
		_, err := who.Patch(ctx, "lab", types.MergePatchType, []byte(text), metav1.PatchOptions{})
		return err
	}
	check(t, patch(operator, `{"spec": {"paused": true}}`))
	check(t, patch(operator, `{"spec": {"apiServer": {"extraArgs": {"event-ttl": "2h"}}, "kubelet": {"config": {"maxPods": 50}}}}`))
	if err := patch(operator, `{"spec": {"apiServer": {"extraArgs": {"v": "5"}}}}`); err == nil {
		t.Error("an operator changed a flag of the API server")
	}
	if err := patch(operator, `{"spec": {"apiServer": null}}`); err == nil {
		t.Error("an operator removed a flag of the API server")
	}
	check(t, patch(admin, `{"spec": {"apiServer": null}}`))

	group := object("MachineGroup", "lab-all", map[string]any{"spec": map[string]any{"cluster": "lab", "replicas": int64(1), "roles": []any{"worker"},
		"kubelet": map[string]any{"config": map[string]any{"maxPods": int64(50), "allowedUnsafeSysctls": []any{"kernel.*"}}}}})
	_, err = person(GroupOperator, "machinegroups").Create(ctx, group, metav1.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), "spec.kubelet.config.allowedUnsafeSysctls: Forbidden: this needs role admin") {
		t.Errorf("a group as operator: %v", err)
	}
	_, err = person(GroupAdmin, "machinegroups").Create(ctx, group, metav1.CreateOptions{})
	check(t, err)
}

// Whoever logs in to the live system of an installed machine reads its disks.
func TestOnlyAdministratorsRescueInstalledMachines(t *testing.T) {
	t.Parallel()
	ctx, ca := context.Background(), newTestCA(t)
	c := startTest(t, testConfig(t, ca))
	operator, admin := resource(t, ca.person(t, c.Address(), "o", GroupOperator), "machines"), resource(t, ca.person(t, c.Address(), "a", GroupAdmin), "machines")
	_, err := admin.Create(ctx, object("Machine", "m1", map[string]any{"spec": map[string]any{}}), metav1.CreateOptions{})
	check(t, err)
	patch := func(who dynamic.ResourceInterface, text string, sub ...string) error {
		_, err := who.Patch(ctx, "m1", types.MergePatchType, []byte(text), metav1.PatchOptions{}, sub...)
		return err
	}
	check(t, patch(operator, `{"spec": {"rescue": {"autologin": true, "requestedBy": "o"}}}`))
	check(t, patch(operator, `{"spec": {"rescue": null}}`))
	check(t, patch(admin, `{"status": {"installed": {"intentID": "1", "image": "debian-13", "imageDigest": "sha256:00", "disk": "sda", "at": "2026-12-01T12:00:00Z"}}}`, "status"))
	if err := patch(operator, `{"spec": {"rescue": {"autologin": true}}}`); err == nil || !strings.Contains(err.Error(), "spec.rescue: Forbidden: needs role admin") {
		t.Errorf("as operator: %v", err)
	}
	check(t, patch(admin, `{"spec": {"rescue": {"autologin": true}}}`))
	check(t, patch(operator, `{"metadata": {"labels": {"rack": "r1"}}}`))
	check(t, patch(operator, `{"spec": {"rescue": null}}`))
}

func TestClustersAndGroups(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := startTest(t, testConfig(t, newTestCA(t)))
	config, warned := c.RESTConfig(), &warnings{}
	config.WarningHandler = warned
	kinds := map[string]string{"Subnet": "subnets", "Cluster": "clusters", "MachineGroup": "machinegroups"}

	cluster := func(name, version string, more ...string) *unstructured.Unstructured {
		spec := map[string]any{"version": version}
		for i := 0; i < len(more); i += 2 {
			switch more[i] {
			case "topology":
				spec["topology"] = more[i+1]
			case "virtualIP":
				spec["endpoint"] = map[string]any{"virtualIP": map[string]any{"address": more[i+1]}}
			default:
				spec["network"] = map[string]any{more[i]: []any{more[i+1]}}
			}
		}
		return object("Cluster", name, map[string]any{"spec": spec})
	}
	group := func(name, cluster string, replicas int64, roles ...any) *unstructured.Unstructured {
		return object("MachineGroup", name, map[string]any{"spec": map[string]any{"cluster": cluster, "replicas": replicas, "roles": roles}})
	}
	for _, step := range []struct {
		name   string
		object *unstructured.Unstructured
		// want is part of the refusal; empty: accepted.
		want, warning string
	}{
		{"a subnet for machines", object("Subnet", "rack", map[string]any{"spec": map[string]any{"cidr": "10.20.0.0/24", "dhcp": "off"}}), "", ""},
		{"a group may come before its cluster", group("lab-all", "lab", 3, "etcd", "control-plane", "worker"), "", `spec.cluster: there is no cluster "lab" yet`},
		{"the cluster of that group", cluster("lab", "v1.37.2", "topology", "small"), "", ""},
		{"a version that is none", cluster("x", "1.37"), "spec.version", ""},
		{"pods with addresses of machines", cluster("x", "v1.37.2", "podCIDRs", "10.20.0.0/16"), "overlaps with 10.20.0.0/24 of Subnet rack", ""},
		{"services with addresses of pods", cluster("x", "v1.37.2", "serviceCIDRs", "10.244.128.0/20"), "overlaps with spec.network.podCIDRs[0], 10.244.0.0/16", ""},
		{"a virtual IP that is nobody's neighbour", cluster("x", "v1.37.2", "virtualIP", "192.0.2.1"), "lies in no Subnet", ""},
		{"a virtual IP", cluster("vip", "v1.37.2", "virtualIP", "10.20.0.5"), "", ""},
		{"the virtual IP of another cluster", cluster("x", "v1.37.2", "virtualIP", "10.20.0.5"), "is the virtual IP of Cluster vip", ""},
		{"a role that there is not", group("x", "lab", 1, "master"), "spec.roles", ""},
		{"a group before a cluster that it makes even", group("even-all", "even", 2, "etcd", "control-plane", "worker"), "", "no cluster"},
		{"what its groups make of a cluster is only warned of", cluster("even", "v1.37.2"), "", "the groups want 2 etcd members"},
	} {
		warned.take()
		_, err := resource(t, config, kinds[step.object.GetKind()]).Create(ctx, step.object, metav1.CreateOptions{})
		switch {
		case step.want == "" && err != nil:
			t.Errorf("%s: %v", step.name, err)
		case step.want != "" && (!apierrors.IsInvalid(err) || !strings.Contains(err.Error(), step.want)):
			t.Errorf("%s: want a refusal with %q, got %v", step.name, step.want, err)
		}
		if text := warned.take(); !strings.Contains(text, step.warning) || step.warning == "" && text != "" {
			t.Errorf("%s: want the warning %q, got %q", step.name, step.warning, text)
		}
	}
	stored, err := resource(t, config, "clusters").Get(ctx, "lab", metav1.GetOptions{})
	check(t, err)
	if plugin, _, _ := unstructured.NestedString(stored.Object, "spec", "network", "plugin"); plugin != "routed" {
		t.Errorf("the API fills in no default network: %v", stored.Object["spec"])
	}
}
