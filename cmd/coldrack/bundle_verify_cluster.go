package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cluster/supply"
	"coldrack.dev/internal/content/bundle"
)

// verifyClusterOptions are what `bundle verify -f` is told.
type verifyClusterOptions struct {
	server    *serverFlags
	trust     []string
	files     []string
	manifests []string
	bundles   []string
	output    string
}

// verifyPlannedClusters tells whether everything that planned clusters need is in bundles: those that are named, or
// else those that this machine's server has.
func (a *app) verifyPlannedClusters(ctx context.Context, o verifyClusterOptions) error {
	documents, err := a.readManifests(o.files)
	if err != nil {
		return err
	}
	plans, err := supply.ReadPlanned(documents)
	if errors.Is(err, supply.ErrNoCluster) {
		return exit.Usagef("there is no Cluster in %s; coldrack cluster init writes one", strings.Join(o.files, ", "))
	}
	if err != nil {
		return err
	}
	images, err := supply.ManifestImages(o.manifests)
	if err != nil {
		return err
	}
	content, err := a.bundledContent(ctx, o)
	if err != nil {
		return err
	}
	report, err := content.Report(plans, images)
	if err != nil {
		return err
	}
	done, err := a.printStructured(o.output, report)
	if err != nil {
		return err
	}
	if !done {
		return a.printVerifyReport(report, content.From)
	}
	if report.Missing > 0 {
		return &exit.Silent{Code: exit.Failure}
	}
	return nil
}

// bundledContent reads the named archives, checking every byte of them, or else the store on this machine.
func (a *app) bundledContent(ctx context.Context, o verifyClusterOptions) (*supply.Content, error) {
	if len(o.bundles) == 0 {
		store, err := a.existingStore(o.server)
		if err != nil {
			return nil, err
		}
		return supply.OfStore(store)
	}
	keys, err := a.trustedKeys(o.server, o.trust)
	if err != nil {
		return nil, err
	}
	return supply.OfArchives(o.bundles, func(path string) (bundle.Summary, error) {
		progress, done := a.byteProgress("verifying")
		summary, err := bundle.Verify(ctx, path, keys, progress)
		done()
		return summary, bundle.Advise(err, adviseTrustFlag)
	})
}

func (a *app) printVerifyReport(report supply.Report, from string) error {
	table := &cli.Table{Header: []string{"WHAT", "NAME", "WANTED", "NEEDED BY", "FOUND IN"}}
	for _, need := range report.Needs {
		found := need.Found
		if found == "" {
			found = "MISSING"
		}
		if need.Note != "" {
			found += " (" + need.Note + ")"
		}
		wanted := need.Wanted
		if wanted == "" {
			wanted = "-"
		}
		table.Add(need.Kind, need.Name, wanted, need.For, found)
	}
	if err := table.Print(a.out, true); err != nil {
		return err
	}
	clusters := strings.Join(report.Clusters, ", ")
	if report.Missing > 0 {
		return fmt.Errorf("%s lacks %d of the %d things that %s needs:\n  %s", from, report.Missing, len(report.Needs), clusters,
			strings.Join(report.Advice(), "\n  "))
	}
	fmt.Fprintf(a.out, "\neverything that %s needs is in %s\n", clusters, from)
	return nil
}
