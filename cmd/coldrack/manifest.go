package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "k8s.io/apimachinery/pkg/util/json"

	"coldrack.dev/internal/cli/settings"
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
			errs = append(errs, fmt.Errorf("%s: document %d: %s", name, number, settings.YAMLProblem(err)))
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

// decode fills object. Scalars are read as YAML 1.2 says, so that "dhcp: off" is a word and no boolean;
// true and false are the only booleans.
func (d *document) decode() error {
	if d.node.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: an object must be a mapping that begins with apiVersion and kind", d.node.Line)
	}
	if err := duplicateKey(d.node); err != nil {
		return err
	}
	keepTimes(d.node)
	var value any
	if err := d.node.Decode(&value); err != nil {
		return errors.New(settings.YAMLProblem(err))
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("line %d: keys must be texts: %w", d.node.Line, err)
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

// keepTimes makes unquoted times texts, which is what they are in JSON.
func keepTimes(node *yaml.Node) {
	if node.Tag == "!!timestamp" {
		node.Tag = "!!str"
	}
	for _, child := range node.Content {
		keepTimes(child)
	}
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
	problems := problemsOf(status.Status())
	if len(problems) == 0 || apierrors.IsConflict(err) {
		return fmt.Errorf("%s: %w", d.place(), err)
	}
	lines := []string{d.place() + " is not valid:"}
	for _, p := range problems {
		where := ""
		if line := fieldLine(d.node, p.field); line > 0 {
			where = fmt.Sprintf("line %d: ", line)
		}
		lines = append(lines, fmt.Sprintf("  %s%s: %s", where, p.field, p.text))
	}
	return &codedError{exitCode(err), errors.New(strings.Join(lines, "\n"))}
}

// problem is one field that the server refused, and why.
type problem struct{ field, text string }

// typedError is how server-side apply reports what does not fit the schema: in its message only.
var typedError = regexp.MustCompile(`(?m)^\s*(?:failed to create typed patch object \(.*?\): )?(?:errors:)?\s*\.([^\s:]+): (.+)$`)

func problemsOf(status metav1.Status) []problem {
	var problems []problem
	if status.Details != nil {
		for _, cause := range status.Details.Causes {
			// A cause without a field only says that more may be wrong.
			if cause.Field != "" && cause.Field != "<nil>" {
				problems = append(problems, problem{cause.Field, cause.Message})
			}
		}
	}
	if len(problems) > 0 {
		return problems
	}
	for _, match := range typedError.FindAllStringSubmatch(status.Message, -1) {
		text := match[2]
		if text == "field not declared in schema" {
			text = "there is no such field"
		}
		if wrong := goValue.FindStringSubmatch(text); wrong != nil {
			text = strings.Replace(text, wrong[0], wrong[1], 1)
		}
		problems = append(problems, problem{match[1], text})
	}
	return problems
}

// goValue is how the same messages print a value.
var goValue = regexp.MustCompile(`&value\.valueUnstructured\{Value:(.*)\}`)

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
