package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "k8s.io/apimachinery/pkg/util/json"
	sigsyaml "sigs.k8s.io/yaml"
)

// document is one object of a YAML stream and the place it came from.
type document struct {
	file   string
	number int // counted from 1 within the file
	node   *yaml.Node
	object *unstructured.Unstructured
}

// place names the document for a person.
func (d *document) place() string {
	text := fmt.Sprintf("%s: document %d", d.file, d.number)
	if d.object != nil {
		text += fmt.Sprintf(" (%s %s)", d.object.GetKind(), d.object.GetName())
	}
	return text
}

// readManifests reads every object that -f names. Errors of all files are collected, so that a person
// mends them in one go.
func (a *app) readManifests(names []string) ([]*document, error) {
	var documents []*document
	var errs []error
	for _, name := range names {
		files, err := yamlFiles(name)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			found, err := a.readManifest(file)
			if err != nil {
				errs = append(errs, err)
			}
			documents = append(documents, found...)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if len(documents) == 0 {
		return nil, fmt.Errorf("no objects in %s", strings.Join(names, ", "))
	}
	return documents, nil
}

func (a *app) readManifest(file string) ([]*document, error) {
	var text []byte
	var err error
	name := file
	if file == "-" {
		name = "standard input"
		text, err = io.ReadAll(a.in)
	} else {
		text, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, err
	}
	return parseManifest(name, string(text))
}

// parseManifest splits a YAML stream into objects. Empty documents are skipped but counted.
func parseManifest(name, text string) ([]*document, error) {
	var documents []*document
	var errs []error
	decoder := yaml.NewDecoder(strings.NewReader(text))
	for number := 1; ; number++ {
		var node yaml.Node
		err := decoder.Decode(&node)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			// The parser cannot find the next document behind a syntax error.
			errs = append(errs, fmt.Errorf("%s: document %d: %s", name, number, strings.TrimPrefix(err.Error(), "yaml: ")))
			break
		}
		if len(node.Content) == 0 || node.Content[0].Tag == "!!null" {
			continue
		}
		d := &document{file: name, number: number, node: node.Content[0]}
		if err := d.decode(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", d.place(), err))
			continue
		}
		documents = append(documents, d)
	}
	return documents, errors.Join(errs...)
}

// decode fills object. Scalars are read as kubectl reads them.
func (d *document) decode() error {
	if d.node.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: an object must be a mapping that begins with apiVersion and kind", d.node.Line)
	}
	if err := duplicateKey(d.node); err != nil {
		return err
	}
	text, err := yaml.Marshal(d.node)
	if err != nil {
		return err
	}
	encoded, err := sigsyaml.YAMLToJSON(text)
	if err != nil {
		return fmt.Errorf("line %d: %w", d.node.Line, err)
	}
	var object map[string]any
	if err := kjson.Unmarshal(encoded, &object); err != nil {
		return fmt.Errorf("line %d: %w", d.node.Line, err)
	}
	u := &unstructured.Unstructured{Object: object}
	switch {
	case u.GetAPIVersion() == "":
		return fmt.Errorf("line %d: apiVersion is missing; for Coldrack's kinds it is coldrack.dev/v1alpha1", d.node.Line)
	case u.GetKind() == "":
		return fmt.Errorf("line %d: kind is missing, for example Machine or Subnet", d.node.Line)
	case strings.HasSuffix(u.GetKind(), "List") && object["items"] != nil:
		return fmt.Errorf("line %d: a list must be split into documents of their own, divided by ---", d.node.Line)
	case u.GetName() == "":
		return fmt.Errorf("line %d: metadata.name is missing", d.node.Line)
	}
	d.object = u
	return nil
}

// duplicateKey finds a mapping that has a key twice, of which every parser would silently drop one.
func duplicateKey(node *yaml.Node) error {
	if node.Kind == yaml.MappingNode {
		seen := map[string]int{}
		for i := 0; i+1 < len(node.Content); i += 2 {
			key := node.Content[i]
			if first, twice := seen[key.Value]; twice {
				return fmt.Errorf("line %d: key %q is given twice, first on line %d", key.Line, key.Value, first)
			}
			seen[key.Value] = key.Line
		}
	}
	for _, child := range node.Content {
		if err := duplicateKey(child); err != nil {
			return err
		}
	}
	return nil
}

// explain rewrites an answer of the server so that it names the document, the line and the field.
func (d *document) explain(err error) error {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return fmt.Errorf("%s: %w", d.place(), err)
	}
	details := status.Status().Details
	if details == nil || len(details.Causes) == 0 || apierrors.IsConflict(err) {
		return fmt.Errorf("%s: %w", d.place(), err)
	}
	var lines []string
	for _, cause := range details.Causes {
		where := ""
		if line := fieldLine(d.node, cause.Field); line > 0 {
			where = fmt.Sprintf("line %d: ", line)
		}
		lines = append(lines, fmt.Sprintf("  %s%s: %s", where, cause.Field, cause.Message))
	}
	return &codedError{exitCode(err), fmt.Errorf("%s is not valid:\n%s", d.place(), strings.Join(lines, "\n"))}
}

// fieldLine finds the line of a field path such as "spec.users[0].name" or the deepest part of it that
// is there; 0 when not even the first part is.
func fieldLine(node *yaml.Node, path string) int {
	line := 0
	for _, part := range splitPath(path) {
		next := (*yaml.Node)(nil)
		if index, err := strconv.Atoi(part); err == nil && node.Kind == yaml.SequenceNode {
			if index < len(node.Content) {
				next = node.Content[index]
				line = next.Line
			}
		} else if node.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(node.Content); i += 2 {
				if node.Content[i].Value == part {
					next, line = node.Content[i+1], node.Content[i].Line
				}
			}
		}
		if next == nil {
			return line
		}
		node = next
	}
	return line
}

// splitPath cuts "spec.users[0].name" into its parts. Keys in brackets may hold dots.
func splitPath(path string) []string {
	var parts []string
	for path != "" {
		switch path[0] {
		case '.':
			path = path[1:]
		case '[':
			inner, rest, ok := strings.Cut(path[1:], "]")
			if !ok {
				return parts
			}
			parts, path = append(parts, strings.Trim(inner, `"`)), rest
		default:
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			parts, path = append(parts, path[:end]), path[end:]
		}
	}
	return parts
}

// toJSON encodes an object for a patch.
func toJSON(object *unstructured.Unstructured) ([]byte, error) {
	return runtime.Encode(unstructured.UnstructuredJSONScheme, object)
}
