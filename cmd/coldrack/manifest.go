package main

import (
	"fmt"
	"strings"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/contract/manifest"
)

// readManifests reads every object that -f names; naming none at all is a mistake.
func (a *app) readManifests(names []string) ([]*manifest.Document, error) {
	documents, err := manifest.Read(names, a.in)
	if err == nil && len(documents) == 0 {
		err = fmt.Errorf("no objects in %s; a folder holds them in .yaml, .yml or .json files", strings.Join(names, ", "))
	}
	return documents, err
}

// explainFor says what the server has against an object of a file.
func explainFor(d *manifest.Document, err error) error {
	return &exit.Error{Code: exit.CodeOf(err), Err: d.Explain(err)}
}
