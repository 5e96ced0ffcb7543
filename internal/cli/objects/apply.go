package objects

import (
	"context"
	"errors"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/contract/manifest"
)

// FieldManager owns the fields that `coldrack apply` writes.
const FieldManager = "coldrack"

// Apply sends one object and tells what came of it: created, configured or unchanged.
func (g *Access) Apply(ctx context.Context, d *manifest.Document, dryRun, force bool) (string, error) {
	resource, err := g.ResourceFor(d.Object)
	if err != nil {
		return "", err
	}
	before, err := resource.Get(ctx, d.Object.GetName(), metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return "", err
	}
	created := err != nil
	body, err := JSON(manifest.WithoutServerFields(d.Object))
	if err != nil {
		return "", err
	}
	options := metav1.PatchOptions{FieldManager: FieldManager, Force: &force, FieldValidation: metav1.FieldValidationStrict}
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
		return "", exit.Refusedf("%w\n  another tool set these fields; --force-conflicts takes them over", err)
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

// IsTransport is true for errors that would meet every further object too.
func IsTransport(err error) bool {
	var status apierrors.APIStatus
	var coded *exit.Error
	return !errors.As(err, &status) && !errors.As(err, &coded)
}

// JSON encodes an object for a patch.
func JSON(object *unstructured.Unstructured) ([]byte, error) {
	return runtime.Encode(unstructured.UnstructuredJSONScheme, object)
}
