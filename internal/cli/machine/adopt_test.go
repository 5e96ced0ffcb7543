package machine

import (
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
)

func TestAdopt(t *testing.T) {
	machine := func(markers []string, changes ...func(*v1alpha1.Machine)) *v1alpha1.Machine {
		m := &v1alpha1.Machine{}
		m.Name, m.Status.Inventory = "node-1", &v1alpha1.Inventory{}
		for i, marker := range markers {
			m.Status.Inventory.Disks = append(m.Status.Inventory.Disks, v1alpha1.Disk{Name: "sd" + string(rune('a'+i)), Marker: marker})
		}
		for _, change := range changes {
			change(m)
		}
		return m
	}
	wants := func(action v1alpha1.IntentAction, state v1alpha1.IntentState, phase v1alpha1.MachinePhase) func(*v1alpha1.Machine) {
		return func(m *v1alpha1.Machine) {
			m.Spec.Intent, m.Status.Phase = &v1alpha1.Intent{ID: "1", Action: action}, phase
			m.Status.Intent = &v1alpha1.IntentStatus{ID: "1", Action: action, State: state}
		}
	}
	for _, test := range []struct {
		name string
		m    *v1alpha1.Machine
		want string
	}{
		{"an installation", machine([]string{"", "x"}), ""},
		{"an install that waits is given up", machine([]string{"x"}, wants(v1alpha1.ActionInstall, v1alpha1.IntentPending, v1alpha1.PhaseApproved)), ""},
		{"an install that ran when the backup was taken", machine([]string{"x"}, wants(v1alpha1.ActionInstall, v1alpha1.IntentRunning, v1alpha1.PhaseLost)), ""},
		{"an install that runs", machine([]string{"x"}, wants(v1alpha1.ActionInstall, v1alpha1.IntentRunning, v1alpha1.PhaseInstalling)), "is being installed"},
		{"a release", machine([]string{"x"}, wants(v1alpha1.ActionRelease, v1alpha1.IntentPending, v1alpha1.PhaseReleasing)), "wipes its disks"},
		{"no installation", machine([]string{""}), "no disk of node-1 bears an installation"},
		{"two installations", machine([]string{"x", "y"}), "several disks of node-1 bear an installation by Coldrack (sda, sdb)"},
		{"nothing reported", &v1alpha1.Machine{}, "has not shown its disks"},
		{"installed", machine([]string{"x"}, func(m *v1alpha1.Machine) { m.Status.Installed = &v1alpha1.InstalledStatus{Image: "debian-12"} }), "debian-12 is installed already"},
	} {
		err := adopt(test.m)
		switch {
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		case test.want == "" && (err != nil || test.m.WantsAdoption() == nil || test.m.WantsAdoption().Marker != "x"):
			t.Errorf("%s: %v, %+v %v", test.name, err, test.m.Spec.Intent, test.m.Annotations)
		}
	}
}
