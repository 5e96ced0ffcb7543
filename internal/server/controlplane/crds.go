package controlplane

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	crdclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/yaml"
)

// startPoll is how often the start looks whether the next thing is there, startTimeout how long at most.
const (
	startPoll    = 20 * time.Millisecond
	startTimeout = 30 * time.Second
)

// installCRDs makes the API hold our kinds as this version knows them, and returns when it serves them, lists
// them and describes them. A definition that is as it should be is not written.
func installCRDs(ctx context.Context, config *rest.Config) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client, err := clientset.NewForConfig(config)
	if err != nil {
		return err
	}
	wanted, err := crds()
	if err != nil {
		return err
	}
	definitions := client.ApiextensionsV1().CustomResourceDefinitions()
	if err := waitForAPI(ctx, client.Discovery()); err != nil {
		return fmt.Errorf("wait for the API: %w", err)
	}
	for _, crd := range wanted {
		if err := applyCRD(ctx, definitions, crd); err != nil {
			return fmt.Errorf("install the definition of %s: %w", crd.Spec.Names.Kind, err)
		}
	}
	for _, crd := range wanted {
		if err := waitEstablished(ctx, definitions, crd.Name); err != nil {
			return fmt.Errorf("the definition of %s: %w", crd.Spec.Names.Kind, err)
		}
	}
	if err := waitServed(ctx, client.Discovery(), wanted); err != nil {
		return fmt.Errorf("wait until the API serves all kinds: %w", err)
	}
	return nil
}

func crds() ([]*apiextensionsv1.CustomResourceDefinition, error) {
	names, err := fs.Glob(v1alpha1.CRDs, "crds/*.yaml")
	if err != nil {
		return nil, err
	}
	var all []*apiextensionsv1.CustomResourceDefinition
	for _, name := range names {
		data, err := v1alpha1.CRDs.ReadFile(name)
		if err != nil {
			return nil, err
		}
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(data, crd); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		// What the API fills in, so that the comparison with what it holds is fair.
		apiextensionsv1.SetObjectDefaults_CustomResourceDefinition(crd)
		all = append(all, crd)
	}
	return all, nil
}

func applyCRD(ctx context.Context, client crdclient.CustomResourceDefinitionInterface, wanted *apiextensionsv1.CustomResourceDefinition) error {
	// Another server may install the same definition at this moment.
	retriable := func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }
	return retry.OnError(retry.DefaultBackoff, retriable, func() error {
		held, err := client.Get(ctx, wanted.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			_, err = client.Create(ctx, wanted, metav1.CreateOptions{})
			return err
		}
		if err != nil {
			return err
		}
		if equality.Semantic.DeepEqual(held.Spec, wanted.Spec) {
			return nil
		}
		held.Spec = wanted.Spec
		_, err = client.Update(ctx, held, metav1.UpdateOptions{})
		return err
	})
}

func waitForAPI(ctx context.Context, client discovery.DiscoveryInterface) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, startPoll, true, func(ctx context.Context) (bool, error) {
		_, last = client.RESTClient().Get().AbsPath("/apis/apiextensions.k8s.io/v1").DoRaw(ctx)
		// Whoever answers that we may not ask will not change its mind.
		if apierrors.IsUnauthorized(last) || apierrors.IsForbidden(last) {
			return false, last
		}
		return last == nil, nil
	})
	return because(err, last)
}

func waitEstablished(ctx context.Context, client crdclient.CustomResourceDefinitionInterface, name string) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, startPoll, true, func(ctx context.Context) (bool, error) {
		crd, err := client.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			last = err
			return false, nil
		}
		last = fmt.Errorf("not established yet")
		for _, cond := range crd.Status.Conditions {
			switch {
			case cond.Type == apiextensionsv1.Established && cond.Status == apiextensionsv1.ConditionTrue:
				return true, nil
			case cond.Status == apiextensionsv1.ConditionFalse && cond.Type != apiextensionsv1.Established,
				cond.Status == apiextensionsv1.ConditionTrue && cond.Type == apiextensionsv1.NonStructuralSchema:
				last = fmt.Errorf("%s: %s", cond.Reason, cond.Message)
			}
		}
		return false, nil
	})
	return because(err, last)
}

// waitServed returns when each kind can be listed and is in discovery and in OpenAPI, which the API learns of
// one after the other.
func waitServed(ctx context.Context, client discovery.DiscoveryInterface, wanted []*apiextensionsv1.CustomResourceDefinition) error {
	path := "/apis/" + v1alpha1.GroupVersion.String()
	var last error
	err := wait.PollUntilContextCancel(ctx, startPoll, true, func(ctx context.Context) (bool, error) {
		last = func() error {
			listed, err := client.ServerResourcesForGroupVersion(v1alpha1.GroupVersion.String())
			if err != nil {
				return err
			}
			known := map[string]bool{}
			for _, r := range listed.APIResources {
				known[r.Name] = true
			}
			for _, crd := range wanted {
				if !known[crd.Spec.Names.Plural] {
					return fmt.Errorf("%s: not in discovery", crd.Spec.Names.Plural)
				}
			}
			schemas, err := client.RESTClient().Get().AbsPath("/openapi/v3" + path).DoRaw(ctx)
			if err != nil {
				return err
			}
			for _, crd := range wanted {
				if !strings.Contains(string(schemas), `"kind":"`+crd.Spec.Names.Kind+`"`) {
					return fmt.Errorf("%s: not in OpenAPI", crd.Spec.Names.Plural)
				}
				var status int
				err := client.RESTClient().Get().AbsPath(path, crd.Spec.Names.Plural).Param("limit", "1").Do(ctx).StatusCode(&status).Error()
				if err != nil && status == http.StatusNotFound {
					return fmt.Errorf("%s: %w", crd.Spec.Names.Plural, err)
				}
			}
			return nil
		}()
		return last == nil, nil
	})
	return because(err, last)
}

// because prefers the reason for which a wait went on to the news that its time was over.
func because(err, last error) error {
	if err != nil && last != nil {
		return last
	}
	return err
}
