package v1alpha1

import "embed"

// CRDs holds the CustomResourceDefinitions generated from the types of this package, below "crds".
//
//go:embed crds/*.yaml
var CRDs embed.FS
