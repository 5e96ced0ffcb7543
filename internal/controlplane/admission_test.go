package controlplane

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"coldrack.dev/api/v1alpha1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
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
	cfg.Handlers = map[string]http.Handler{"/beside/": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Method, r.URL.Path)
	})}
	c := startTest(t, cfg)
	ask := func(method string, groups ...string) string {
		config := ca.person(t, c.Address(), "p", groups...)
		client, err := rest.HTTPClientFor(config)
		check(t, err)
		r, err := http.NewRequestWithContext(ctx, method, config.Host+"/beside/x", nil)
		check(t, err)
		response, err := client.Do(r)
		check(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		check(t, err)
		return fmt.Sprint(response.StatusCode, " ", string(body))
	}
	for _, test := range []struct{ got, want string }{
		{ask("GET", GroupViewer), "200 GET /beside/x"},
		{ask("POST", GroupViewer), "403 "},
		{ask("POST", GroupOperator), "200 POST /beside/x"},
		{ask("GET"), "403 "},
	} {
		if !strings.HasPrefix(test.got, test.want) {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
	cfg.Handlers = map[string]http.Handler{"/apis/mine": nil}
	if _, err := Start(ctx, cfg); err == nil || !strings.Contains(err.Error(), "belong to the API") {
		t.Errorf("a path of the API: %v", err)
	}
}
