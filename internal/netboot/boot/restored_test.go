package boot

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

// TestAnIntentFromABackupIsNotCarriedOut: it may have been since.
func TestAnIntentFromABackupIsNotCarriedOut(t *testing.T) {
	restored := time.Date(2026, 12, 1, 8, 0, 0, 0, time.UTC)
	asked := func(at time.Time) func(*v1alpha1.Machine) {
		return func(m *v1alpha1.Machine) { m.Spec.Intent.RequestedAt = &metav1.Time{Time: at} }
	}
	for _, test := range []struct {
		name    string
		machine *v1alpha1.Machine
		policy  Policy
		want    v1alpha1.BootAction
		reason  string
	}{
		{"an install from before", machine(approved, wants("1", v1alpha1.ActionInstall), asked(restored.Add(-time.Hour))), Policy{RestoredAt: restored}, v1alpha1.BootDiscover, "before the store was restored"},
		{"nobody says from when", machine(approved, wants("1", v1alpha1.ActionInstall)), Policy{RestoredAt: restored}, v1alpha1.BootDiscover, "before the store was restored"},
		{"a reinstall from before", machine(approved, installed, wants("1", v1alpha1.ActionReinstall), asked(restored)), Policy{RestoredAt: restored}, v1alpha1.BootLocalDisk, "before the store was restored"},
		{"a release from before", machine(installed, wants("1", v1alpha1.ActionRelease), asked(restored)), Policy{RestoredAt: restored}, v1alpha1.BootLocalDisk, "before the store was restored"},
		{"a reinstall from after", machine(approved, installed, wants("1", v1alpha1.ActionReinstall), asked(restored.Add(time.Second))), Policy{RestoredAt: restored}, v1alpha1.BootInstall, "reinstall"},
		{"confirmed", machine(approved, wants("1", v1alpha1.ActionInstall), asked(restored.Add(-time.Hour))), Policy{}, v1alpha1.BootInstall, "install"},
		{"what is installed", machine(approved, installed), Policy{RestoredAt: restored}, v1alpha1.BootLocalDisk, "debian-12"},
	} {
		test.policy.Netboot = true
		if plan := Decide(Request{Arch: "x86_64", Platform: PlatformUEFI}, Subject{Machine: test.machine}, test.policy); plan.Action != test.want || !strings.Contains(plan.Reason, test.reason) {
			t.Errorf("%s: %s, %s", test.name, plan.Action, plan.Reason)
		}
	}
}
