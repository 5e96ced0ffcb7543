// Package manifest reads objects from YAML and JSON files, for the server's own set-up and for people's
// `apply`, and puts what is wrong with them into words that name file, document, line and field.
package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kjson "k8s.io/apimachinery/pkg/util/json"

	"coldrack.dev/internal/contract/manifest/yamlerr"
)

// Document is one object of a YAML stream and the place it came from.
type Document struct {
	File   string
	Number int // counted from 1 within the file
	Object *unstructured.Unstructured

	node *yaml.Node
}

// Place names the document for a person.
func (d *Document) Place() string {
	text := fmt.Sprintf("%s: document %d", d.File, d.Number)
	if d.Object != nil {
		text += fmt.Sprintf(" (%s %s)", d.Object.GetKind(), d.Object.GetName())
	}
	return text
}

// Line is where a field such as "spec.users[0].name", or the deepest part of it that is there, is given in
// the file; 0 when not even its first part is.
func (d *Document) Line(field string) int { return fieldLine(d.node, field) }

// Read reads every object of files and folders (see Files), and of stdin where a name is "-". Errors of all
// of them are collected, so that a person mends them in one go.
func Read(names []string, stdin io.Reader) ([]*Document, error) {
	var documents []*Document
	var errs []error
	for _, name := range names {
		files, err := Files(name)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			found, err := readFile(file, stdin)
			if err != nil {
				errs = append(errs, err)
			}
			documents = append(documents, found...)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return documents, nil
}

// Files lists the manifests that a name stands for: itself, or the YAML and JSON files in a folder and those
// below it, in order.
func Files(name string) ([]string, error) {
	if name == "-" {
		return []string{"-"}, nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	var files []string
	err = filepath.WalkDir(name, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			return nil
		}
		switch filepath.Ext(path) {
		case ".yaml", ".yml", ".json":
			files = append(files, path)
		}
		return nil
	})
	return files, err
}

func readFile(file string, stdin io.Reader) ([]*Document, error) {
	var text []byte
	var err error
	name := file
	if file == "-" {
		name = "standard input"
		text, err = io.ReadAll(stdin)
	} else {
		text, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, err
	}
	return Parse(name, string(text))
}

// Parse splits a YAML stream into objects; name is what errors call it. Empty documents are skipped but
// counted. Objects of good documents are returned beside the error about bad ones.
func Parse(name, text string) ([]*Document, error) {
	var documents []*Document
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
			errs = append(errs, fmt.Errorf("%s: document %d: %s", name, number, yamlerr.Text(err)))
			break
		}
		if len(node.Content) == 0 || node.Content[0].Tag == "!!null" {
			continue
		}
		for _, item := range listed(node.Content[0]) {
			d := &Document{File: name, Number: number, node: item}
			if err := d.decode(); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", d.Place(), err))
				continue
			}
			documents = append(documents, d)
		}
	}
	return documents, errors.Join(errs...)
}

// listed are the objects of a list, such as "get -o yaml" prints, or the one object that a document is.
func listed(document *yaml.Node) []*yaml.Node {
	kind, items := child(document, "kind"), child(document, "items")
	if kind == nil || !strings.HasSuffix(kind.Value, "List") || items == nil || items.Kind != yaml.SequenceNode {
		return []*yaml.Node{document}
	}
	return items.Content
}

// child is the value of a mapping's key, or nil.
func child(mapping *yaml.Node, key string) *yaml.Node {
	if mapping.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

// WithoutServerFields returns the object without what only a server writes: status, and the metadata by which it
// tracks the object. What was printed by "get -o yaml" can then be applied.
func WithoutServerFields(object *unstructured.Unstructured) *unstructured.Unstructured {
	object = object.DeepCopy()
	unstructured.RemoveNestedField(object.Object, "status")
	for _, name := range []string{"creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation", "managedFields",
		"resourceVersion", "selfLink", "uid"} {
		unstructured.RemoveNestedField(object.Object, "metadata", name)
	}
	return object
}

// decode fills Object. Scalars are read as YAML 1.2 says, so that "dhcp: off" is a word and no boolean;
// true and false are the only booleans.
func (d *Document) decode() error {
	if d.node.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: an object must be a mapping that begins with apiVersion and kind", d.node.Line)
	}
	if err := duplicateKey(d.node); err != nil {
		return err
	}
	keepTimes(d.node)
	var value any
	if err := d.node.Decode(&value); err != nil {
		return errors.New(yamlerr.Text(err))
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("line %d: holds what JSON has no form for, such as a key that is no text, or .inf: %w", d.node.Line, err)
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
	case u.GetName() == "":
		return fmt.Errorf("line %d: metadata.name is missing", d.node.Line)
	}
	d.Object = u
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

// refusal is an answer of the server put into words; the answer itself stays within reach.
type refusal struct {
	text   string
	answer error
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.answer }

// Explain rewrites an answer of the server about the object so that it names the document, the line and the
// field. It wraps the answer.
func (d *Document) Explain(err error) error {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || apierrors.IsConflict(err) {
		return fmt.Errorf("%s: %w", d.Place(), err)
	}
	problems := problemsOf(status.Status())
	if len(problems) == 0 {
		return fmt.Errorf("%s: %w", d.Place(), err)
	}
	lines := []string{d.Place() + " is not valid:"}
	for _, p := range problems {
		where := ""
		if line := d.Line(p.field); line > 0 {
			where = fmt.Sprintf("line %d: ", line)
		}
		lines = append(lines, fmt.Sprintf("  %s%s: %s", where, p.field, p.text))
	}
	return &refusal{strings.Join(lines, "\n"), err}
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
