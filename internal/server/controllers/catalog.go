package controllers

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"coldrack.dev/api/v1alpha1"
)

// conditionAvailable of an Image: its content is in this server's store.
const conditionAvailable = "Available"

// catalogReconciler keeps an Image and a Bundle for everything that was imported. Objects of content that is
// no longer there stay, since machines refer to them by name, and say so.
func catalogReconciler(d Deps) reconciler {
	return reconciler{
		name: "catalog", watches: []source.Source{whole(d, &v1alpha1.Image{}), whole(d, &v1alpha1.Bundle{}), whenever(d.Catalog.Changed)},
		do: func(ctx context.Context, _ string) (time.Duration, error) { return 0, reconcileCatalog(ctx, d) },
	}
}

func reconcileCatalog(ctx context.Context, d Deps) error {
	for _, bundle := range d.Catalog.Bundles() {
		have := &v1alpha1.Bundle{}
		if err := keep(ctx, d, &bundle, have, func() bool {
			same := equality.Semantic.DeepEqual(have.Spec, bundle.Spec)
			have.Spec = bundle.Spec
			return same
		}); err != nil {
			return fmt.Errorf("bundle %s: %w", bundle.Name, err)
		}
	}
	for _, image := range d.Catalog.Images() {
		have := &v1alpha1.Image{}
		if err := keep(ctx, d, &image, have, func() bool {
			same := equality.Semantic.DeepEqual(have.Spec, image.Spec)
			have.Spec = image.Spec
			return same
		}); err != nil {
			return fmt.Errorf("image %s: %w", image.Name, err)
		}
	}
	images := &v1alpha1.ImageList{}
	if err := d.Cache.List(ctx, images); err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for i := range images.Items {
		if err := updateImageStatus(ctx, d, &images.Items[i]); err != nil {
			return err
		}
	}
	return nil
}

// keep creates want, or makes have, which it reads, like it. alike says whether they are, and sets have's
// spec.
func keep(ctx context.Context, d Deps, want, have client.Object, alike func() bool) error {
	err := d.Cache.Get(ctx, client.ObjectKeyFromObject(want), have)
	if apierrors.IsNotFound(err) {
		if err := d.Client.Create(ctx, want); !apierrors.IsAlreadyExists(err) {
			return err
		}
		return nil // the cache is behind; its news will wake this reconciler
	}
	if err != nil || alike() {
		return err
	}
	if err := d.Client.Update(ctx, have); err != nil && !apierrors.IsConflict(err) {
		return err
	}
	return nil
}

func updateImageStatus(ctx context.Context, d Deps, image *v1alpha1.Image) error {
	next := image.DeepCopy()
	available := metav1.Condition{
		Type: conditionAvailable, Status: metav1.ConditionTrue, Reason: "InStore",
		ObservedGeneration: image.Generation, LastTransitionTime: metav1.NewTime(d.Now()),
	}
	if missing := d.Catalog.Missing(image); missing != "" {
		available.Status, available.Reason, available.Message = metav1.ConditionFalse, "Missing", missing
	}
	meta.SetStatusCondition(&next.Status.Conditions, available)
	if equality.Semantic.DeepEqual(image.Status, next.Status) {
		return nil
	}
	err := d.Client.Status().Patch(ctx, next, client.MergeFrom(image))
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write status of image %s: %w", image.Name, err)
	}
	return nil
}
