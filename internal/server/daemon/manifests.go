package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/manifest"
)

// readManifests reads the set-up of this server. It reports every broken document, not only the first.
func readManifests(paths []string) ([]*manifest.Document, error) {
	for _, path := range paths {
		if path == "-" {
			return nil, errors.New("manifests: the server does not read its standard input; name files or folders")
		}
	}
	all, err := manifest.Read(paths, nil)
	if err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	var errs []error
	for _, d := range all {
		kind := d.Object.GroupVersionKind()
		if kind.GroupVersion() != v1alpha1.GroupVersion {
			errs = append(errs, fmt.Errorf("manifests: %s: line %d: apiVersion: %q: must be %s",
				d.Place(), d.Line("apiVersion"), d.Object.GetAPIVersion(), v1alpha1.GroupVersion))
		} else if !scheme.Recognizes(kind) {
			errs = append(errs, fmt.Errorf("manifests: %s: line %d: kind: %q: there is no such kind in %s",
				d.Place(), d.Line("kind"), kind.Kind, v1alpha1.GroupVersion))
		}
	}
	return all, errors.Join(errs...)
}

// applyManifests applies the set-up of this server, with server-side apply and a field manager of its own:
// a restart puts back what the files say and leaves what people added.
func applyManifests(ctx context.Context, config *rest.Config, set []*manifest.Document) error {
	if len(set) == 0 {
		return nil
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range set {
		resource := v1alpha1.GroupVersion.WithResource(plural(d.Object.GetKind()))
		_, err := client.Resource(resource).Apply(ctx, d.Object.GetName(), d.Object,
			metav1.ApplyOptions{FieldManager: "coldrack-manifests", Force: true})
		if err != nil {
			errs = append(errs, d.Explain(err))
		}
	}
	return errors.Join(errs...)
}

// plural is the resource name of one of our kinds.
func plural(kind string) string {
	lower := strings.ToLower(kind)
	if strings.HasSuffix(lower, "y") {
		return strings.TrimSuffix(lower, "y") + "ies"
	}
	return lower + "s"
}
