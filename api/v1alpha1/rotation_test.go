package v1alpha1

import "testing"

// A rotation that has ended is never carried out again, whatever manifest is applied.
func TestARotationIsCarriedOutOnce(t *testing.T) {
	c := &Cluster{}
	if c.WantedRotation() != nil || c.Status.OpenRotation() != nil {
		t.Error("there is none")
	}
	first := &ClusterRotation{Key: RotateCA, ID: "1"}
	c.Spec.Rotation = first
	if c.WantedRotation() != first {
		t.Error("it does not begin")
	}
	c.Status.BeginRotation(RotationStatus{Key: RotateCA, ID: "1", Stage: RotationSwap})
	if c.WantedRotation() != first || c.Status.OpenRotation() == nil {
		t.Error("it does not go on")
	}
	for _, stage := range []RotationStage{RotationDone, RotationTakenBack} {
		c.Status.Rotation.Stage = stage
		if c.WantedRotation() != nil || c.Status.OpenRotation() != nil {
			t.Errorf("%s: it begins again", stage)
		}
	}
	c.Spec.Rotation = &ClusterRotation{Key: RotateEncryption, ID: "2"}
	if c.WantedRotation() != c.Spec.Rotation {
		t.Error("the next one does not begin")
	}
	c.Status.BeginRotation(RotationStatus{Key: RotateEncryption, ID: "2", Stage: RotationAccept})
	c.Spec.Rotation = first
	if c.WantedRotation() != nil {
		t.Error("an old manifest begins a rotation")
	}
	for range maxPastRotations + 5 {
		c.Status.BeginRotation(RotationStatus{ID: "x"})
	}
	if len(c.Status.PastRotations) != maxPastRotations {
		t.Errorf("%d are remembered", len(c.Status.PastRotations))
	}
}
