package v1alpha1

import (
	"maps"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

func TestAcceleratorNames(t *testing.T) {
	for name, want := range map[string]string{
		"NVIDIA GA100 [A100 PCIe 80GB]":                                                    "nvidia-a100-pcie-80gb",
		"NVIDIA GH100[H100 SXM5 80GB]":                                                     "nvidia-h100-sxm5-80gb",
		"AMD Aldebaran/MI200 [Instinct MI210]":                                             "amd-instinct-mi210",
		"Habana Labs Gaudi2 AI Training Accelerator":                                       "habana-labs-gaudi2-ai-training-accelerator",
		"Mellanox MT42822 BlueField-2 integrated ConnectX-6 Dx network controller of ours": "mellanox-mt42822-bluefield-2-integrated-connectx-6",
		"10de:20b5": "10de-20b5",
		"Ünïcode":   "n-code",
		"[] x":      "x",
		"NVIDIA ]":  "nvidia",
	} {
		got := acceleratorName(name)
		if got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
		if problems := validation.IsQualifiedName(LabelAccelerator + got); len(problems) > 0 {
			t.Errorf("%q: %v", LabelAccelerator+got, problems)
		}
	}
}

// TestSelectorsSeeAccelerators: what was accepted counts, so that a GPU that fails does not take a machine out of its group; before that,
// what is reported.
func TestSelectorsSeeAccelerators(t *testing.T) {
	m := &Machine{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"rack": "r1"}}, Spec: MachineSpec{Approved: true}}
	m.Status.Hardware = &Hardware{Devices: []PCIDevice{
		{ID: "10de:20b5", Name: "NVIDIA GA100 [A100 PCIe 80GB]", Kind: AcceleratorGPU, Count: 3},
		{ID: "10de:20b5", Name: "NVIDIA GA100 [A100 PCIe 80GB]", Kind: AcceleratorGPU, Count: 4},
		{ID: "8086:1563", Name: "Intel X550", Count: 2},
	}}
	const key, byID = LabelAccelerator + "nvidia-a100-pcie-80gb", LabelAccelerator + "10de-20b5"
	if got := m.SelectorLabels(); !maps.Equal(got, map[string]string{"rack": "r1", key: "7", byID: "7"}) {
		t.Errorf("reported: %v", got)
	}
	m.Status.AcceptedHardware = &AcceptedHardware{Parts: []HardwarePart{
		{Kind: PartDevice, ID: "10de:20b5", Name: "NVIDIA GA100 [A100 PCIe 80GB]", Accelerator: AcceleratorGPU, Count: 8},
		{Kind: PartDisk, ID: "S1", Count: 1},
	}}
	if got := m.AcceleratorLabels(); !maps.Equal(got, map[string]string{key: "8", byID: "8"}) {
		t.Errorf("accepted: %v", got)
	}
	for _, tt := range []struct {
		requirement metav1.LabelSelectorRequirement
		want        bool
	}{
		{metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpExists}, true},
		{metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpIn, Values: []string{"8"}}, true},
		{metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpIn, Values: []string{"7"}}, false},
		{metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpDoesNotExist}, false},
	} {
		g := &MachineGroup{}
		g.Spec.Selector.MatchExpressions = []metav1.LabelSelectorRequirement{tt.requirement}
		if got, err := g.Matches(m); err != nil || got != tt.want {
			t.Errorf("%+v: %v, %v", tt.requirement, got, err)
		}
	}
	// What a hostile machine reports makes no label that an API would refuse.
	odd := &Machine{Status: MachineStatus{Hardware: &Hardware{Devices: []PCIDevice{{ID: "::", Name: "[] 漢", Kind: AcceleratorGPU, Count: 1}, {Kind: AcceleratorGPU, Count: 1}, {ID: "a:b", Kind: AcceleratorGPU, Count: -1}}}}}
	if got := odd.AcceleratorLabels(); len(got) != 0 {
		t.Errorf("of nonsense: %v", got)
	}
	m.Labels[key] = "none of your business"
	if m.SelectorLabels()[key] != "none of your business" {
		t.Error("a person's label is overruled")
	}
}
