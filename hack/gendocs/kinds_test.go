package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReferenceOfKindsIsCurrent(t *testing.T) {
	got, err := kindsReference()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join("..", "..", folder, "kinds.md"))
	if err != nil {
		t.Fatalf("%v; run: make generate", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("docs/reference/kinds.md is not what the types say; run: make generate\n%s", diff)
	}
}
