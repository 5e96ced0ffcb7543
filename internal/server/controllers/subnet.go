package controllers

import (
	"cmp"
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

// subnetReconciler says in status whether a plan is in effect: what DHCP does with it, not only that it is valid.
// The API refuses most wrong plans; validation here is for those that came in another way, such as an API that does
// not know our rules.
func subnetReconciler(d Deps) reconciler {
	watches := []source.Source{whole(d, &v1alpha1.Subnet{})}
	if d.Subnets != nil {
		watches = append(watches, whenever(d.Subnets.Changed))
	}
	return reconciler{
		name: "subnet", watches: watches,
		do: func(ctx context.Context, _ string) (time.Duration, error) {
			all, err := NewPlans(d.Cache).Subnets(ctx)
			if err != nil {
				return 0, err
			}
			var again time.Duration
			for i := range all {
				if m := all[i].Spec.BootMenu; m != nil && m.Mode == v1alpha1.BootMenuPIN {
					again = pinCheck
				}
				if err := updateSubnetStatus(ctx, d, &all[i], all); err != nil {
					return 0, err
				}
				if d.Subnets == nil {
					continue
				}
				if report, _ := d.Subnets.Subnet(all[i].Name); report.OtherServers != "" || report.ProxyIgnored != "" {
					again = cmp.Or(again, silenceCheck)
				}
			}
			return again, nil
		},
	}
}

// silenceCheck is how often it is looked whether what was heard on a segment is over: silence wakes nobody.
const silenceCheck = 10 * time.Minute

func updateSubnetStatus(ctx context.Context, d Deps, subnet *v1alpha1.Subnet, all []v1alpha1.Subnet) error {
	ready, known := subnetReady(subnet, all, d.Subnets)
	if !known {
		return nil
	}
	ready.LastTransitionTime = metav1.NewTime(d.Now())
	next := subnet.DeepCopy()
	next.Status.ObservedGeneration = subnet.Generation
	meta.SetStatusCondition(&next.Status.Conditions, ready)
	if d.Subnets != nil {
		report, _ := d.Subnets.Subnet(subnet.Name)
		setFinding(&next.Status.Conditions, v1alpha1.ConditionAddressConflict, report.Conflicts, ready)
		setFinding(&next.Status.Conditions, v1alpha1.ConditionARPProxy, report.ARPProxy, ready)
		setFinding(&next.Status.Conditions, v1alpha1.ConditionOtherDHCPServer, report.OtherServers, ready)
		setFinding(&next.Status.Conditions, v1alpha1.ConditionProxyIgnored, report.ProxyIgnored, ready)
	}
	noPIN := ""
	if m := subnet.Spec.BootMenu; m != nil && m.Mode == v1alpha1.BootMenuPIN {
		var err error
		if _, noPIN, err = menuPIN(ctx, d.Client, subnet); err != nil {
			return err
		}
	}
	setFinding(&next.Status.Conditions, v1alpha1.ConditionMenuWithoutPIN, noPIN, ready)
	if equality.Semantic.DeepEqual(subnet.Status, next.Status) {
		return nil
	}
	err := d.Client.Status().Patch(ctx, next, client.MergeFrom(subnet))
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write status of subnet %s: %w", subnet.Name, err)
	}
	return nil
}

// subnetReady is the condition Ready of a Subnet. dhcp may be nil where no DHCP is served. false: DHCP has not
// dealt with this generation yet; it will say so.
func subnetReady(subnet *v1alpha1.Subnet, all []v1alpha1.Subnet, dhcp SubnetSink) (metav1.Condition, bool) {
	ready := metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Valid", ObservedGeneration: subnet.Generation,
	}
	if problems := v1alpha1.ValidateSubnet(subnet, all); len(problems) > 0 {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "Invalid", problems.ToAggregate().Error()
		return ready, true
	}
	if dhcp == nil {
		return ready, true
	}
	report, known := dhcp.Subnet(subnet.Name)
	switch {
	case !known || report.Generation != subnet.Generation:
		return ready, false
	case report.Refused != "":
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "NotServed", report.Refused
	case report.Served:
		ready.Reason = "Served"
	}
	return ready, true
}

// setFinding sets a condition that is true while there is something to say. One that was never true is left out. Generation and time are
// like's.
func setFinding(conditions *[]metav1.Condition, kind, message string, like metav1.Condition) {
	finding := metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: "Found", Message: message,
		ObservedGeneration: like.ObservedGeneration, LastTransitionTime: like.LastTransitionTime}
	if message == "" {
		if meta.FindStatusCondition(*conditions, kind) == nil {
			return
		}
		finding.Status, finding.Reason = metav1.ConditionFalse, "Gone"
	}
	meta.SetStatusCondition(conditions, finding)
}
