package v1alpha1

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RotatedKey is what can be replaced of a cluster's keys.
// +kubebuilder:validation:Enum=ca;etcd-ca;front-proxy-ca;service-account;encryption
type RotatedKey string

const (
	// RotateCA is the authority that API servers, kubelets and clients of the API are certified by.
	RotateCA RotatedKey = "ca"
	// RotateEtcdCA certifies members of etcd and their clients.
	RotateEtcdCA RotatedKey = "etcd-ca"
	// RotateFrontProxyCA certifies API servers towards extension API servers.
	RotateFrontProxyCA RotatedKey = "front-proxy-ca"
	// RotateServiceAccount is the key that signs tokens of service accounts.
	RotateServiceAccount RotatedKey = "service-account"
	// RotateEncryption is the key that Secrets are encrypted with in etcd.
	RotateEncryption RotatedKey = "encryption"
)

// RotatedKeys are all, in the order in which people see them.
func RotatedKeys() []RotatedKey {
	return []RotatedKey{RotateCA, RotateEtcdCA, RotateFrontProxyCA, RotateServiceAccount, RotateEncryption}
}

// RotationStage is how far a rotation is. Every node has a stage before the next one begins.
type RotationStage string

const (
	// RotationAccept: the new key is accepted beside the old one, and nothing is made with it.
	RotationAccept RotationStage = "Accept"
	// RotationPublish: the cluster's own pods start anew, so that they know the new authority. Of RotateCA only.
	RotationPublish RotationStage = "Publish"
	// RotationSwap: everything is made with the new key; the old one is still accepted.
	RotationSwap RotationStage = "Swap"
	// RotationDrop: the old key is accepted no longer. From here on there is no way back.
	RotationDrop RotationStage = "Drop"
	// RotationReturn: everything is made with the old key again; the new one is still accepted.
	RotationReturn RotationStage = "Return"
	// RotationUndo: the new key is accepted no longer.
	RotationUndo RotationStage = "Undo"
	// RotationDone: only the new key is there.
	RotationDone RotationStage = "Done"
	// RotationTakenBack: only the old key is there.
	RotationTakenBack RotationStage = "TakenBack"
)

// Ended says whether nothing follows a stage.
func (s RotationStage) Ended() bool { return s == RotationDone || s == RotationTakenBack }

// Reversible says whether a rotation can still be taken back.
func (s RotationStage) Reversible() bool {
	return s == "" || s == RotationAccept || s == RotationPublish || s == RotationSwap
}

// ClusterRotation is a rotation that a person wants. Once status.rotation says that it has ended, its id is never carried out again.
type ClusterRotation struct {
	Key RotatedKey `json:"key"`
	// ID tells this rotation from all others.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	ID string `json:"id"`
	// Back takes it back, as long as the old key was not dropped.
	// +optional
	Back bool `json:"back,omitempty"`
	// Before is a stage that does not begin: people fetch new kubeconfigs and restart their pods meanwhile. Empty: none waits.
	// +optional
	// +kubebuilder:validation:Enum=Swap;Drop
	Before RotationStage `json:"before,omitempty"`
	// TokenLifetime is how long tokens of service accounts are waited for that the old key has signed, before it is dropped. Default
	// 70m: kubelets get new ones for their pods within an hour. Tokens that people asked a longer life for end with the key.
	// +optional
	TokenLifetime *metav1.Duration `json:"tokenLifetime,omitempty"`
	// RequestedBy is who asked for it, for the record.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	RequestedBy string `json:"requestedBy,omitempty"`
}

// RotationStatus is the rotation in hand, or the last one.
type RotationStatus struct {
	Key   RotatedKey    `json:"key"`
	ID    string        `json:"id"`
	Stage RotationStage `json:"stage"`
	// Since when it is in this stage.
	Since metav1.Time `json:"since"`
	// StartedAt is when its first stage began.
	StartedAt metav1.Time `json:"startedAt"`
	// EverywhereAt is when every node had this stage.
	// +optional
	EverywhereAt *metav1.Time `json:"everywhereAt,omitempty"`
	// Rewritten is how many Secrets were written with the key of this stage, of Secrets that there are.
	// +optional
	Rewritten int64 `json:"rewritten,omitempty"`
	// +optional
	Secrets int64 `json:"secrets,omitempty"`
	// Tokens are Secrets with tokens of service accounts that were signed anew, as NAMESPACE/NAME. Copies that somebody made of them
	// elsewhere end when the old key is dropped.
	// +optional
	// +listType=atomic
	Tokens []string `json:"tokens,omitempty"`
	// Message says what it waits for, and what would help.
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	RequestedBy string `json:"requestedBy,omitempty"`
}

// maxPastRotations is how many ids of rotations that have ended are kept.
const maxPastRotations = 32

// WantedRotation is the rotation that a person wants and that has not ended, nil for none. A manifest that is applied again begins
// no second one.
func (c *Cluster) WantedRotation() *ClusterRotation {
	wanted, is := c.Spec.Rotation, c.Status.Rotation
	if wanted == nil || slices.Contains(c.Status.PastRotations, wanted.ID) || is != nil && is.ID == wanted.ID && is.Stage.Ended() {
		return nil
	}
	return wanted
}

// OpenRotation is the rotation that was begun and has not ended, nil for none.
func (s *ClusterStatus) OpenRotation() *RotationStatus {
	if s.Rotation == nil || s.Rotation.Stage.Ended() {
		return nil
	}
	return s.Rotation
}

// BeginRotation makes a rotation the one in hand, and keeps the id of the one before.
func (s *ClusterStatus) BeginRotation(next RotationStatus) {
	if s.Rotation != nil {
		s.PastRotations = append(s.PastRotations, s.Rotation.ID)
		s.PastRotations = s.PastRotations[max(0, len(s.PastRotations)-maxPastRotations):]
	}
	s.Rotation = &next
}
