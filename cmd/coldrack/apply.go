package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/objects"
	"coldrack.dev/internal/contract/manifest"
)

func (a *app) applyCommand() *cobra.Command {
	var (
		files        []string
		dryRun       bool
		force        bool
		allowInvalid bool
	)
	cmd := &cobra.Command{
		Use:   "apply -f FILE|FOLDER|-",
		Short: "Create or change objects from files",
		Long: `Create or change objects from files, with server-side apply: fields that a file does not
name stay as they are. All files are read before anything is sent, so broken YAML changes nothing. Invalid clusters are
refused before anything is sent. "coldrack plan" shows what a cluster would change, "coldrack cluster apply" shows it and asks first.`,
		Example: `  coldrack apply -f rack1.yaml
  coldrack apply -f manifests/ --dry-run
  generate-rack-sheet | coldrack apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return exit.Usagef("name what to apply with -f FILE, -f FOLDER or -f -")
			}
			documents, err := a.readManifests(files)
			if err != nil {
				return err
			}
			if !allowInvalid && slices.ContainsFunc(documents, isCluster) {
				if err := a.refuseImpossible(cmd.Context(), documents); err != nil {
					return err
				}
			}
			if err := a.applyAll(cmd.Context(), documents, dryRun, force); err != nil || dryRun {
				return err
			}
			a.afterApply(documents)
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder (all of its .yaml, .yml and .json files) or - for standard input; may be repeated")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "let the server check everything and change nothing")
	cmd.Flags().BoolVar(&force, "force-conflicts", false, "take over fields that another tool set")
	cmd.Flags().BoolVar(&allowInvalid, "allow-invalid", false, "also store invalid clusters; machines do not change until they are valid")
	return cmd
}

// refuseImpossible refuses clusters that can never work as they are written. What keeps a plan from being made is
// left to the apply itself to report: an object that the API refuses, a server that makes no plans.
func (a *app) refuseImpossible(ctx context.Context, documents []*manifest.Document) error {
	answer, err := a.askPlan(ctx, documents, false)
	if err != nil {
		var coded *exit.Error
		if errors.As(err, &coded) {
			return nil
		}
		return err
	}
	return refuseInvalid(answer, false)
}

// applyAll sends all objects and prints what came of each.
func (a *app) applyAll(ctx context.Context, documents []*manifest.Document, dryRun, force bool) error {
	g, err := a.objects()
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range documents {
		outcome, err := g.Apply(ctx, d, dryRun, force)
		if err != nil {
			if objects.IsTransport(err) {
				return err
			}
			errs = append(errs, explainFor(d, err))
			continue
		}
		if dryRun {
			outcome += " (dry run)"
		}
		fmt.Fprintf(a.out, "%s/%s %s\n", strings.ToLower(d.Object.GetKind()), d.Object.GetName(), outcome)
	}
	return errors.Join(errs...)
}
