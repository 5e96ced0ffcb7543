package main

import "testing"

// What bundles contain and what we build ourselves share their libraries.
func TestProgramsShareTheirLibraries(t *testing.T) {
	raises, err := differences("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range raises {
		t.Errorf("%v; run: go run ./hack/align", r)
	}
}
