package daemon

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"coldrack.dev/api/v1alpha1"
)

// manifest is one object of one document of a file.
type manifest struct {
	source string // file and document, for errors
	object *unstructured.Unstructured
}

// readManifests reads YAML files, and all *.yaml, *.yml and *.json files of folders, in order of name.
// It reports every broken document, not only the first.
func readManifests(paths []string) ([]manifest, error) {
	var files []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("manifests: %w", err)
		}
		if !info.IsDir() {
			files = append(files, path)
			continue
		}
		var found []string
		for _, pattern := range []string{"*.yaml", "*.yml", "*.json"} {
			matches, err := filepath.Glob(filepath.Join(path, pattern))
			if err != nil {
				return nil, fmt.Errorf("manifests in %s: %w", path, err)
			}
			found = append(found, matches...)
		}
		slices.Sort(found)
		files = append(files, found...)
	}
	var all []manifest
	var errs []error
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			errs = append(errs, fmt.Errorf("manifests: %w", err))
			continue
		}
		some, err := parseManifests(file, content)
		all = append(all, some...)
		errs = append(errs, err)
	}
	return all, errors.Join(errs...)
}

func parseManifests(file string, content []byte) ([]manifest, error) {
	var all []manifest
	var errs []error
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for number := 1; ; number++ {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return all, errors.Join(errs...)
		}
		source := fmt.Sprintf("%s, document %d", file, number)
		if err != nil {
			return all, errors.Join(append(errs, fmt.Errorf("%s: %w", source, err))...)
		}
		asJSON, err := yaml.YAMLToJSONStrict(document)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", source, err))
			continue
		}
		if trimmed := bytes.TrimSpace(asJSON); len(trimmed) == 0 || bytes.Equal(trimmed, []byte("null")) {
			continue
		}
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(asJSON); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", source, err))
			continue
		}
		switch {
		case object.GroupVersionKind().GroupVersion() != v1alpha1.GroupVersion:
			errs = append(errs, fmt.Errorf("%s: apiVersion: %q: must be %s", source, object.GetAPIVersion(), v1alpha1.GroupVersion))
		case object.GetName() == "":
			errs = append(errs, fmt.Errorf("%s: metadata.name: missing", source))
		default:
			all = append(all, manifest{source: source, object: object})
		}
	}
}

// applyManifests applies the set-up of this server, with server-side apply and a field manager of its own:
// a restart puts back what the files say and leaves what people added.
func applyManifests(ctx context.Context, config *rest.Config, manifests []manifest) error {
	if len(manifests) == 0 {
		return nil
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range manifests {
		resource := v1alpha1.GroupVersion.WithResource(plural(m.object.GetKind()))
		_, err := client.Resource(resource).Apply(ctx, m.object.GetName(), m.object,
			metav1.ApplyOptions{FieldManager: "coldrack-manifests", Force: true})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s %s: %w", m.source, m.object.GetKind(), m.object.GetName(), err))
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
