package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"coldrack.dev/internal/manifest"
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
name stay as they are. All files are read before anything is sent, so that broken YAML changes nothing; clusters that cannot work as they are written are refused before anything is
sent. "coldrack plan" shows what a cluster would change, "coldrack cluster apply" shows it and asks first.`,
		Example: `  coldrack apply -f rack1.yaml
  coldrack apply -f manifests/ --dry-run
  generate-rack-sheet | coldrack apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return usageError("name what to apply with -f FILE, -f FOLDER or -f -")
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
	cmd.Flags().BoolVar(&allowInvalid, "allow-invalid", false, "also write clusters that cannot work yet; nothing is done until they can")
	return cmd
}

// refuseImpossible refuses clusters that can never work as they are written. What keeps a plan from being made is
// left to the apply itself to report: an object that the API refuses, a server that makes no plans.
func (a *app) refuseImpossible(ctx context.Context, documents []*manifest.Document) error {
	answer, err := a.askPlan(ctx, documents, false)
	if err != nil {
		var coded *codedError
		if errors.As(err, &coded) {
			return nil
		}
		return err
	}
	return refuseInvalid(answer, false)
}

// applyAll sends all objects and prints what came of each.
func (a *app) applyAll(ctx context.Context, documents []*manifest.Document, dryRun, force bool) error {
	g, err := a.generic()
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range documents {
		outcome, err := g.apply(ctx, d, dryRun, force)
		if err != nil {
			if isTransport(err) {
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

// apply sends one object and tells what came of it: created, configured or unchanged.
func (g *generic) apply(ctx context.Context, d *manifest.Document, dryRun, force bool) (string, error) {
	resource, err := g.resourceFor(d.Object)
	if err != nil {
		return "", err
	}
	before, err := resource.Get(ctx, d.Object.GetName(), metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return "", err
	}
	created := err != nil
	body, err := toJSON(manifest.WithoutServerFields(d.Object))
	if err != nil {
		return "", err
	}
	options := metav1.PatchOptions{FieldManager: fieldManager, Force: &force, FieldValidation: metav1.FieldValidationStrict}
	if dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	after, err := resource.Patch(ctx, d.Object.GetName(), types.ApplyPatchType, body, options)
	if onlyKubectlConflicts(err) {
		options.Force = new(true)
		after, err = resource.Patch(ctx, d.Object.GetName(), types.ApplyPatchType, body, options)
	}
	switch {
	case apierrors.IsConflict(err):
		return "", refusedError("%w\n  another tool set these fields; --force-conflicts takes them over", err)
	case err != nil:
		return "", err
	case created:
		return "created", nil
	case !dryRun && after.GetResourceVersion() == before.GetResourceVersion(),
		dryRun && after.GetGeneration() == before.GetGeneration():
		return "unchanged", nil
	}
	return "configured", nil
}

// kubectlApply is the manager in whose name "kubectl apply" without --server-side sets fields.
const kubectlApply = "kubectl-client-side-apply"

// onlyKubectlConflicts tells whether an apply was refused for nothing but fields that "kubectl apply" set. Whoever
// uses both tools on one object means the newer file, as with "kubectl apply --server-side", to which the API server
// gives these fields without force. Fields that the file does not name stay with kubectl.
func onlyKubectlConflicts(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsConflict(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	conflicts := 0
	for _, cause := range status.Status().Details.Causes {
		if cause.Type != metav1.CauseTypeFieldManagerConflict {
			continue
		}
		if !strings.HasPrefix(cause.Message, fmt.Sprintf("conflict with %q", kubectlApply)) {
			return false
		}
		conflicts++
	}
	return conflicts > 0
}

// resourceFor finds where objects of this kind live.
func (g *generic) resourceFor(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := object.GroupVersionKind()
	mapping, err := g.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) {
		return nil, notFoundError("the server has no kind %s in %s; `coldrack get` lists what it has", gvk.Kind, gvk.GroupVersion())
	}
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		namespace := object.GetNamespace()
		if namespace == "" {
			namespace = metav1.NamespaceDefault
		}
		return g.dyn.Resource(mapping.Resource).Namespace(namespace), nil
	}
	return g.dyn.Resource(mapping.Resource), nil
}

// isTransport is true for errors that would meet every further object too.
func isTransport(err error) bool {
	var status apierrors.APIStatus
	var coded *codedError
	return !errors.As(err, &status) && !errors.As(err, &coded)
}
