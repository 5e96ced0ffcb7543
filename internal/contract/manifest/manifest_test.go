package manifest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const head = "apiVersion: coldrack.dev/v1alpha1\nkind: Subnet\nmetadata: {name: rack}\n"

func TestScalarsAreReadAsYAML12Says(t *testing.T) {
	documents, err := Parse("f", head+"spec: {dhcp: off, a: yes, b: true, n: 7, f: 1.5, at: 2025-05-20T10:00:00Z, none: null}")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"dhcp": "off", "a": "yes", "b": true, "n": int64(7), "f": 1.5, "at": "2025-05-20T10:00:00Z", "none": nil}
	if diff := cmp.Diff(want, documents[0].Object.Object["spec"]); diff != "" {
		t.Error(diff)
	}
}

func TestEveryBrokenDocumentIsNamed(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"a syntax error names its line": {"kind: [\n", "f: document 1: line 2: "},
		"a list is no object":           {"- a\n", "f: document 1: line 1: an object must be a mapping"},
		"a text is no object":           {"hello\n", "f: document 1: line 1: an object must be a mapping"},
		"a key is given twice":          {head + "spec:\n  cidr: a\n  cidr: b\n", `f: document 1: line 6: key "cidr" is given twice, first on line 5`},
		"a key is no text":              {head + "spec: {[a]: b}\n", "f: document 1: "},
		"a number is infinite":          {head + "spec: {n: .inf}\n", "f: document 1: line 1: holds what JSON has no form for"},
		"apiVersion is missing":         {"kind: Subnet\n", "f: document 1: line 1: apiVersion is missing"},
		"kind is missing":               {"apiVersion: v1\n", "f: document 1: line 1: kind is missing"},
		"the name is missing":           {"---\n---\napiVersion: v1\nkind: A\n", "f: document 2: line 3: metadata.name is missing"},
		"metadata is no mapping":        {"apiVersion: v1\nkind: A\nmetadata: x\n", "f: document 1: line 1: metadata.name is missing"},
		"the second of two is broken":   {head + "---\nkind: X\n", "f: document 2: line 5: apiVersion is missing"},
		"an alias that leads nowhere":   {head + "spec: *gone\n", "gone"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("f", c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Parse says %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestFoldersAreReadInOrderAndAllErrorsTold(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write("b.yaml", strings.ReplaceAll(head, "rack", "b")+"---\n# nothing\n---\n"+strings.ReplaceAll(head, "rack", "b2"))
	write("a/c.json", `{"apiVersion": "v1", "kind": "A", "metadata": {"name": "a"}}`)
	write("notes.txt", "not: [yaml")
	documents, err := Read([]string{dir, "-"}, strings.NewReader(head))
	if err != nil {
		t.Fatal(err)
	}
	var places []string
	for _, d := range documents {
		places = append(places, strings.TrimPrefix(d.Place(), dir+"/"))
	}
	want := []string{"a/c.json: document 1 (A a)", "b.yaml: document 1 (Subnet b)", "b.yaml: document 3 (Subnet b2)", "standard input: document 1 (Subnet rack)"}
	if diff := cmp.Diff(want, places); diff != "" {
		t.Error(diff)
	}

	write("x.yaml", "kind: [")
	write("y.yaml", "- a")
	_, err = Read([]string{dir}, nil)
	if err == nil || !strings.Contains(err.Error(), "x.yaml: ") || !strings.Contains(err.Error(), "y.yaml: ") {
		t.Errorf("Read says %v, want both broken files in it", err)
	}
	if _, err := Read([]string{filepath.Join(dir, "missing")}, nil); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("Read of a missing file says %v", err)
	}
}

func TestRefusalsNameTheLineOfTheField(t *testing.T) {
	documents, err := Parse("f", head+"spec:\n  users:\n  - name: a\n  - name: b\n")
	if err != nil {
		t.Fatal(err)
	}
	d := documents[0]
	answer := &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonInvalid, Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{
		{Field: "spec.users[1].name", Message: "is bad"}, {Field: "spec.gone", Message: "is missing"}, {Field: "<nil>", Message: "some rules were not checked"},
	}}}}
	got := d.Explain(answer)
	want := "f: document 1 (Subnet rack) is not valid:\n  line 7: spec.users[1].name: is bad\n  line 4: spec.gone: is missing"
	if got.Error() != want || !apierrors.IsInvalid(got) {
		t.Errorf("Explain says %q, want %q", got, want)
	}
	apply := &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonInternalError,
		Message: `failed to create typed patch object (/rack; coldrack.dev/v1alpha1, Kind=Subnet): .spec.cidrr: field not declared in schema`}}
	if got, want := d.Explain(apply).Error(), "line 4: spec.cidrr: there is no such field"; !strings.Contains(got, want) {
		t.Errorf("Explain says %q, want %q in it", got, want)
	}
}

// FuzzParse: no text crashes the parser, what it accepts is an object with a name, and survives a round
// through JSON, which is YAML too.
func FuzzParse(f *testing.F) {
	f.Add(head + "spec: {dhcp: off}\n---\n" + head)
	f.Add("a: &a [*a]\n")
	f.Add(head + "spec: &x {<<: *x}\n")
	f.Add("kind: [\n")
	f.Add(head + "spec: {a: !!binary gIGC, b: 0o17, c: .nan, ? [x] : y}\n")
	f.Fuzz(func(t *testing.T, text string) {
		documents, err := Parse("f", text)
		if err != nil && !strings.HasPrefix(err.Error(), "f: document ") {
			t.Errorf("error without its place: %v", err)
		}
		for _, d := range documents {
			if d.Object.GetName() == "" || d.Object.GetKind() == "" || d.Object.GetAPIVersion() == "" {
				t.Fatalf("accepted an object without apiVersion, kind or name: %v", d.Object)
			}
			raw, err := d.Object.MarshalJSON()
			if err != nil {
				t.Fatalf("accepted what JSON cannot hold: %v", err)
			}
			again, err := Parse("f", string(raw))
			if err != nil || len(again) != 1 {
				t.Fatalf("%s: not read again: %v", raw, err)
			}
		}
	})
}

func TestParseTakesListsApart(t *testing.T) {
	documents, err := Parse("f", `
apiVersion: v1
kind: List
items:
- apiVersion: coldrack.dev/v1alpha1
  kind: Subnet
  metadata: {name: a, resourceVersion: "7", uid: x, labels: {k: v}, managedFields: [{manager: x}]}
  spec: {cidr: 10.0.0.0/24}
  status: {observedGeneration: 1}
- {apiVersion: coldrack.dev/v1alpha1, kind: Subnet, metadata: {name: b}}
---
{apiVersion: coldrack.dev/v1alpha1, kind: SubnetList, items: []}
---
{apiVersion: coldrack.dev/v1alpha1, kind: Subnet, metadata: {name: c}}
`)
	if err != nil || len(documents) != 3 {
		t.Fatalf("%d documents: %v", len(documents), err)
	}
	if got := documents[0].Place(); got != "f: document 1 (Subnet a)" {
		t.Errorf("the first is %s", got)
	}
	if line := documents[0].Line("spec.cidr"); line != 8 {
		t.Errorf("its spec.cidr is on line %d", line)
	}
	want := map[string]any{"apiVersion": "coldrack.dev/v1alpha1", "kind": "Subnet",
		"metadata": map[string]any{"name": "a", "labels": map[string]any{"k": "v"}}, "spec": map[string]any{"cidr": "10.0.0.0/24"}}
	if diff := cmp.Diff(want, WithoutServerFields(documents[0].Object).Object); diff != "" {
		t.Errorf("without what a server writes (-want +got):\n%s", diff)
	}
	if documents[0].Object.GetResourceVersion() != "7" {
		t.Error("the document itself was changed")
	}
	if _, err := Parse("f", "apiVersion: v1\nkind: List\nitems:\n- {kind: Subnet}\n"); err == nil || !strings.Contains(err.Error(), "f: document 1: line 4: apiVersion is missing") {
		t.Errorf("a bad item: %v", err)
	}
}
