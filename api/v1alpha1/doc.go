// Package v1alpha1 is the vocabulary of Coldrack: the kinds of API group coldrack.dev/v1alpha1, their
// defaults and their validation. It knows nothing of how any of it is carried out.
//
// All kinds are cluster-scoped. A person writes spec; exactly one controller writes each section of
// status. What destroys data (an install, a reinstall, a release) happens only through an Intent with
// an id that status acknowledges, so that a restart never repeats it and a reboot never starts it.
//
// +kubebuilder:object:generate=true
// +groupName=coldrack.dev
package v1alpha1

//go:generate go tool -modfile=../../hack/tools/go.mod controller-gen object crd:crdVersions=v1 paths=. output:object:dir=. output:crd:dir=crds
