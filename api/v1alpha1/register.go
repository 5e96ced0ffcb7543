package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group and Version name the API that every kind of this package belongs to.
const (
	Group   = "coldrack.dev"
	Version = "v1alpha1"
)

// GroupVersion is Group and Version as one value.
var GroupVersion = schema.GroupVersion{Group: Group, Version: Version}

// AddToScheme registers every kind of this package with a scheme.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion,
		&Machine{}, &MachineList{},
		&Subnet{}, &SubnetList{},
		&Image{}, &ImageList{},
		&Profile{}, &ProfileList{},
		&EnrollmentPolicy{}, &EnrollmentPolicyList{},
		&Cluster{}, &ClusterList{},
		&MachineGroup{}, &MachineGroupList{},
		&Addon{}, &AddonList{},
		&RebootGroup{}, &RebootGroupList{},
		&Unit{}, &UnitList{},
		&Bundle{}, &BundleList{},
		&Secret{}, &SecretList{},
	)
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
