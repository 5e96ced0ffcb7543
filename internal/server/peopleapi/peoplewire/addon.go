package peoplewire

import (
	"encoding/json"

	"coldrack.dev/internal/cluster/kube"
)

// AddonDiffRequest asks what would become of a cluster if an Addon were written: POST to PathClusters + CLUSTER/addons/diff.
type AddonDiffRequest struct {
	// Addon is the whole object.
	Addon json.RawMessage `json:"addon"`
	// Remove asks what would become of it if the Addon were deleted.
	Remove bool `json:"remove,omitempty"`
}

// AddonDiffResponse is what would happen, found by dry runs of the cluster's API.
type AddonDiffResponse struct {
	// Changes are the objects that would not stay as they are: add, change, remove; left, with the reason in diff; refused, with the API's answer in diff.
	Changes []kube.ObjectChange `json:"changes"`
	// MissingImages are in no bundle of the server, and no registry of the cluster may have them.
	MissingImages []string `json:"missingImages,omitempty"`
}
