package machineapi

import (
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
)

// A machine of a whole-disk image gets what it is told at its first boot with its plan; what it cannot be told is said before anything is wiped.
func TestWholeDiskImagesAreToldWhatTheMachineIs(t *testing.T) {
	for name, tt := range map[string]struct {
		family  v1alpha1.ImageFamily
		change  func(*v1alpha1.Profile)
		member  bool
		blocked string
	}{
		"Debian in a cluster":                    {family: v1alpha1.FamilyDebian, member: true},
		"Flatcar in a cluster":                   {family: v1alpha1.FamilyFlatcar, member: true, blocked: "take the machine out of its MachineGroup"},
		"Debian":                                 {family: v1alpha1.FamilyDebian},
		"cloud-init":                             {family: v1alpha1.FamilyCloudInit, change: func(p *v1alpha1.Profile) { p.Spec.KernelArgs, p.Spec.Console = nil, nil }},
		"cloud-init with a console":              {family: v1alpha1.FamilyCloudInit, change: func(p *v1alpha1.Profile) { p.Spec.KernelArgs = nil }, blocked: "remove console"},
		"Flatcar":                                {family: v1alpha1.FamilyFlatcar},
		"Fedora CoreOS with a mode that is lost": {family: v1alpha1.FamilyFCOS, change: func(p *v1alpha1.Profile) { p.Spec.Files[0].Mode = "4755" }, blocked: "drops the set-user-ID"},
	} {
		t.Run(name, func(t *testing.T) {
			in := approved()
			in.profile, in.image = in.profile.DeepCopy(), in.image.DeepCopy()
			in.image.Spec.Family, in.member = tt.family, tt.member
			if in.image.Spec.KernelArgs = nil; tt.change != nil {
				tt.change(in.profile)
			}
			answer, block := assign(in)
			if tt.blocked != "" {
				if answer.Plan != nil || block.Reason != v1alpha1.ReasonImageMismatch || !strings.Contains(block.Message, tt.blocked) || !strings.Contains(block.Message, "nothing was changed") {
					t.Fatalf("%+v, %+v", answer, block)
				}
				return
			}
			if answer.Plan == nil {
				t.Fatalf("no plan: %+v", answer)
			}
			first := answer.Plan.FirstBoot
			switch tt.family {
			case v1alpha1.FamilyDebian:
				if first != nil {
					t.Errorf("told %+v", first)
				}
			case v1alpha1.FamilyCloudInit:
				if first == nil || first.Ignition != nil || !strings.Contains(string(first.NoCloud.UserData), "hostname: ") || !strings.Contains(string(first.NoCloud.MetaData), answer.Plan.IntentID) {
					t.Errorf("told %+v", first)
				}
			default:
				if first == nil || first.NoCloud != nil || !strings.Contains(string(first.Ignition.Config), "console=ttyS0") {
					t.Errorf("told %+v", first)
				}
			}
		})
	}
}
