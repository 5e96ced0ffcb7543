package members

import (
	"maps"
	"testing"

	"coldrack.dev/api/v1alpha1"
)

// TestNodeLabelsFollowFromTheMachine: where it stands, and which accelerators it is meant to have.
func TestNodeLabelsFollowFromTheMachine(t *testing.T) {
	m := &v1alpha1.Machine{}
	m.Spec.Location = v1alpha1.Location{Rack: "r 1"}
	m.Status.Hardware = &v1alpha1.Hardware{Devices: []v1alpha1.PCIDevice{{ID: "10de:20b5", Kind: v1alpha1.AcceleratorGPU, Count: 7}}}
	m.Status.AcceptedHardware = &v1alpha1.AcceptedHardware{Parts: []v1alpha1.HardwarePart{{Kind: v1alpha1.PartDevice, ID: "10de:20b5", Accelerator: v1alpha1.AcceleratorGPU, Count: 8}}}
	want := map[string]string{LabelRack: "r-1", v1alpha1.LabelAccelerator + "10de-20b5": "8"}
	if got := kubeMachine(v1alpha1.ClusterNode{Machine: "a"}, m).Labels; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
