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

// subnetPlans tells DHCP the plans that are valid. It runs in every server that answers DHCP.
func subnetPlans(d Deps) reconciler {
	return reconciler{
		name: "subnet-plans", watches: []source.Source{whole(d, &v1alpha1.Subnet{})},
		do: func(ctx context.Context, _ string) (time.Duration, error) {
			all, err := NewPlans(d.Cache).Subnets(ctx)
			if err != nil {
				return 0, err
			}
			d.Subnets.SetSubnets(validSubnets(all))
			return 0, nil
		},
	}
}

// validSubnets are those that no rule forbids. Of two that overlap, neither is used: which of them is meant
// only a person can say.
func validSubnets(all []v1alpha1.Subnet) []v1alpha1.Subnet {
	var valid []v1alpha1.Subnet
	for i := range all {
		if len(v1alpha1.ValidateSubnet(&all[i], all)) == 0 {
			valid = append(valid, all[i])
		}
	}
	return valid
}

// subnetReconciler says in status whether a plan is in effect. The API refuses most wrong plans; this is for
// those that came in another way, such as an API that does not know our rules.
func subnetReconciler(d Deps) reconciler {
	return reconciler{
		name: "subnet", watches: []source.Source{whole(d, &v1alpha1.Subnet{})},
		do: func(ctx context.Context, _ string) (time.Duration, error) {
			all, err := NewPlans(d.Cache).Subnets(ctx)
			if err != nil {
				return 0, err
			}
			for i := range all {
				if err := judgeSubnet(ctx, d, &all[i], all); err != nil {
					return 0, err
				}
			}
			return 0, nil
		},
	}
}

func judgeSubnet(ctx context.Context, d Deps, subnet *v1alpha1.Subnet, all []v1alpha1.Subnet) error {
	next := subnet.DeepCopy()
	next.Status.ObservedGeneration = subnet.Generation
	ready := metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Valid",
		ObservedGeneration: subnet.Generation, LastTransitionTime: metav1.NewTime(d.Now()),
	}
	if problems := v1alpha1.ValidateSubnet(subnet, all); len(problems) > 0 {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "Invalid", problems.ToAggregate().Error()
	}
	meta.SetStatusCondition(&next.Status.Conditions, ready)
	if equality.Semantic.DeepEqual(subnet.Status, next.Status) {
		return nil
	}
	err := d.Client.Status().Patch(ctx, next, client.MergeFrom(subnet))
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write status of subnet %s: %w", subnet.Name, err)
	}
	return nil
}
