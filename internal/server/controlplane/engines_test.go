package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/test/engines"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage/storagebackend"
)

// everyEngine is the three ways to hold the kinds. Each returns a function that starts one more server over the same
// store; the embedded engine allows only one at a time.
var everyEngine = map[Engine]func(t *testing.T) (start func() *ControlPlane){
	EngineEmbedded: func(t *testing.T) func() *ControlPlane {
		cfg := testConfig(t, newTestCA(t))
		return func() *ControlPlane { return startTest(t, cfg) }
	},
	EngineEtcd: func(t *testing.T) func() *ControlPlane {
		endpoint, _ := engines.Etcd(t)
		ca := newTestCA(t)
		return func() *ControlPlane {
			cfg := testConfig(t, ca)
			cfg.EtcdEndpoints = []string{endpoint}
			return startTest(t, cfg)
		}
	},
	EngineKubernetes: func(t *testing.T) func() *ControlPlane {
		name := os.Getenv("COLDRACK_TEST_KUBECONFIG")
		if name == "" {
			name = startKubernetesLike(t)
		}
		return func() *ControlPlane {
			return startTest(t, Config{Logger: testLogger(), Kubeconfig: name})
		}
	},
}

// startKubernetesLike runs, in another process, a Kubernetes-style API that knows Leases but none of our kinds, and
// returns a kubeconfig for it.
func startKubernetesLike(t *testing.T) (kubeconfigFile string) {
	t.Helper()
	ca := newTestCA(t)
	s := startServer(t, testConfig(t, ca))
	admin := ca.person(t, s.address, "root", GroupAdmin)
	engines.Foreign(t, admin)
	return kubeconfig(t, admin)
}

// onEveryEngine runs one story against all three.
func onEveryEngine(t *testing.T, story func(t *testing.T, start func() *ControlPlane)) {
	for engine, prepare := range everyEngine {
		t.Run(string(engine), func(t *testing.T) {
			t.Parallel()
			story(t, prepare(t))
		})
	}
}

func TestEveryEngineHoldsTheKinds(t *testing.T) {
	t.Parallel()
	onEveryEngine(t, func(t *testing.T, start func() *ControlPlane) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		c := start()
		machines := resource(t, c.RESTConfig(), "machines")

		t.Run("every kind can be listed", func(t *testing.T) {
			all, err := crds()
			check(t, err)
			for _, crd := range all {
				_, err := resource(t, c.RESTConfig(), crd.Spec.Names.Plural).List(ctx, metav1.ListOptions{})
				check(t, err)
			}
		})
		t.Run("defaults and rules of the schema hold", func(t *testing.T) {
			subnets := resource(t, c.RESTConfig(), "subnets")
			created, err := subnets.Create(ctx, object("Subnet", "s", map[string]any{"spec": map[string]any{
				"cidr": "10.0.0.0/24", "discovery": "10.0.0.10-10.0.0.20"}}), metav1.CreateOptions{})
			check(t, err)
			if dhcp, _, _ := unstructured.NestedString(created.Object, "spec", "dhcp"); dhcp != "server" {
				t.Errorf("dhcp %q", dhcp)
			}
			_, err = subnets.Create(ctx, object("Subnet", "t", map[string]any{"spec": map[string]any{"cidr": "10.1.0.0/24"}}), metav1.CreateOptions{})
			if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.discovery") {
				t.Errorf("got %v", err)
			}
		})
		t.Run("a stale update conflicts, status and spec are apart", func(t *testing.T) {
			created, err := machines.Create(ctx, object("Machine", "m", map[string]any{"spec": map[string]any{"hostname": "h"},
				"status": map[string]any{"phase": "Ready"}}), metav1.CreateOptions{})
			check(t, err)
			if _, found := created.Object["status"]; found {
				t.Error("a create set status")
			}
			patched, err := machines.Patch(ctx, "m", types.MergePatchType, []byte(`{"status":{"phase":"Waiting"},"spec":{"hostname":"x"}}`), metav1.PatchOptions{}, "status")
			check(t, err)
			if h, _, _ := unstructured.NestedString(patched.Object, "spec", "hostname"); h != "h" {
				t.Errorf("a status patch set spec: %q", h)
			}
			if patched.GetGeneration() != created.GetGeneration() {
				t.Error("a status patch changed the generation")
			}
			if _, err := machines.Update(ctx, created, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
				t.Errorf("a stale update: %v", err)
			}
		})
		t.Run("a watch sees every change in order", func(t *testing.T) {
			list, err := machines.List(ctx, metav1.ListOptions{})
			check(t, err)
			w, err := machines.Watch(ctx, metav1.ListOptions{ResourceVersion: list.GetResourceVersion()})
			check(t, err)
			defer w.Stop()
			_, err = machines.Create(ctx, object("Machine", "w", nil), metav1.CreateOptions{})
			check(t, err)
			_, err = machines.Patch(ctx, "w", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
			check(t, err)
			check(t, machines.Delete(ctx, "w", metav1.DeleteOptions{}))
			for _, want := range []watch.EventType{watch.Added, watch.Modified, watch.Deleted} {
				if e := <-w.ResultChan(); e.Type != want {
					t.Fatalf("got %s, want %s: %v", e.Type, want, e.Object)
				}
			}
		})
		t.Run("a long list comes in pages", func(t *testing.T) {
			for i := range 7 {
				_, err := machines.Create(ctx, object("Machine", fmt.Sprint("page-", i), nil), metav1.CreateOptions{})
				check(t, err)
			}
			var names []string
			options := metav1.ListOptions{Limit: 3}
			for {
				page, err := machines.List(ctx, options)
				check(t, err)
				for _, m := range page.Items {
					names = append(names, m.GetName())
				}
				if options.Continue = page.GetContinue(); options.Continue == "" {
					break
				}
			}
			if len(names) != 8 || !slices.IsSorted(names) {
				t.Errorf("got %v", names)
			}
		})
		t.Run("a finalizer keeps an object until it is taken off", func(t *testing.T) {
			m := object("Machine", "f", nil)
			m.SetFinalizers([]string{"coldrack.dev/test"})
			_, err := machines.Create(ctx, m, metav1.CreateOptions{})
			check(t, err)
			check(t, machines.Delete(ctx, "f", metav1.DeleteOptions{}))
			held, err := machines.Get(ctx, "f", metav1.GetOptions{})
			check(t, err)
			if held.GetDeletionTimestamp() == nil {
				t.Error("not marked as deleted")
			}
			_, err = machines.Patch(ctx, "f", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
			check(t, err)
			if _, err := machines.Get(ctx, "f", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("got %v", err)
			}
		})
		t.Run("a second start over the same store changes nothing", func(t *testing.T) {
			versions := func(c *ControlPlane) (versions []string) {
				client, err := clientset.NewForConfig(c.RESTConfig())
				check(t, err)
				all, err := client.ApiextensionsV1().CustomResourceDefinitions().List(ctx, metav1.ListOptions{})
				check(t, err)
				for _, crd := range all.Items {
					versions = append(versions, crd.Name+"@"+crd.ResourceVersion)
				}
				return versions
			}
			before := versions(c)
			if c.Engine() == EngineEmbedded {
				c.Stop()
			}
			again := start()
			if after := versions(again); !slices.Equal(before, after) {
				t.Errorf("definitions were written again:\n%v\n%v", before, after)
			}
			m, err := resource(t, again.RESTConfig(), "machines").Get(ctx, "m", metav1.GetOptions{})
			check(t, err)
			if phase, _, _ := unstructured.NestedString(m.Object, "status", "phase"); phase != "Waiting" {
				t.Errorf("phase %q", phase)
			}
		})
	})
}

func TestAChangedDefinitionIsPutRight(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	cfg := testConfig(t, newTestCA(t))
	c := startTest(t, cfg)
	client, err := clientset.NewForConfig(c.RESTConfig())
	check(t, err)
	name := "subnets." + v1alpha1.Group
	_, err = client.ApiextensionsV1().CustomResourceDefinitions().Patch(ctx, name, types.JSONPatchType,
		[]byte(`[{"op":"remove","path":"/spec/versions/0/additionalPrinterColumns"}]`), metav1.PatchOptions{})
	check(t, err)
	c.Stop()
	c = startTest(t, cfg)
	client, err = clientset.NewForConfig(c.RESTConfig())
	check(t, err)
	crd, err := client.ApiextensionsV1().CustomResourceDefinitions().Get(ctx, name, metav1.GetOptions{})
	check(t, err)
	if len(crd.Spec.Versions[0].AdditionalPrinterColumns) == 0 {
		t.Error("an older version's definition stayed")
	}
}

func TestOneServerLeadsAtATime(t *testing.T) {
	t.Parallel()
	onEveryEngine(t, func(t *testing.T, start func() *ControlPlane) {
		a := start()
		if a.Engine() == EngineEmbedded {
			t.Run("the error of the work comes back", func(t *testing.T) {
				want := errors.New("broken")
				if err := a.Elect(context.Background(), "x", func(context.Context) error { return want }); err != want {
					t.Errorf("got %v", err)
				}
			})
			return
		}
		b := start()
		var leading atomic.Int32
		events := make(chan string, 10)
		campaign := func(c *ControlPlane, name string) (stop func() error) {
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() {
				done <- c.Elect(ctx, "controllers", func(ctx context.Context) error {
					if leading.Add(1) != 1 {
						t.Error("two lead at once")
					}
					events <- name + " leads"
					<-ctx.Done()
					leading.Add(-1)
					return ctx.Err()
				})
			}()
			return func() error {
				cancel()
				return <-done
			}
		}
		next := func(want string) {
			t.Helper()
			select {
			case got := <-events:
				if got != want {
					t.Fatalf("%s, want %s", got, want)
				}
			case <-time.After(time.Minute):
				t.Fatalf("nobody leads; want %s", want)
			}
		}
		stopA := campaign(a, "a")
		next("a leads")
		stopB := campaign(b, "b")
		check(t, stopA())
		next("b leads")
		stopA = campaign(a, "a")
		check(t, stopB())
		next("a leads")
		check(t, stopA())
	})
}

func TestALeaderWhoseStoreVanishesStopsLeading(t *testing.T) {
	t.Parallel()
	endpoint, kill := engines.Etcd(t)
	client, err := dialEtcd(context.Background(), storagebackend.TransportConfig{ServerList: []string{endpoint}}, "/x")
	check(t, err)
	defer client.Close()
	elector := &etcdElector{client: client, prefix: "/x", identity: "a", log: testLogger()}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = elector.campaign(ctx, "controllers", func(ctx context.Context) error {
		kill()
		<-ctx.Done() // once the lease must have run out
		return nil
	})
	if !errors.Is(err, errLost) {
		t.Errorf("got %v", err)
	}
}
