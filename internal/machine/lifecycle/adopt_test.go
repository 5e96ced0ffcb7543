package lifecycle

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/fleet"
)

// TestAdopt: an installation that this server does not know is a condition, until a person has it kept.
func TestAdopt(t *testing.T) {
	const marker = "2b1f7a6e-0000-5000-8000-0000000000c1"
	now := time.Date(2026, 12, 1, 8, 0, 0, 0, time.UTC)
	unknown := func(changes ...func(*v1alpha1.Machine)) *v1alpha1.Machine {
		m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
		m.Status.Inventory = &v1alpha1.Inventory{Disks: []v1alpha1.Disk{{Name: "sda"}, {Name: "sdb", Marker: marker}}}
		for _, change := range changes {
			change(m)
		}
		return m
	}
	asked := func(marker string) func(*v1alpha1.Machine) {
		return func(m *v1alpha1.Machine) { m.Annotations = map[string]string{v1alpha1.AnnotationAdopt: marker} }
	}
	condition := func(m *v1alpha1.Machine) *metav1.Condition {
		Fold(m, fleet.Live{}, nil, now, LimitsFor(90*time.Second, now))
		return meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionUnknownInstallation)
	}
	if c := condition(unknown()); c == nil || !strings.Contains(c.Message, "disk sdb bears an installation") || !strings.Contains(c.Message, "coldrack adopt a") {
		t.Errorf("the condition: %+v", c)
	}
	for _, test := range []struct {
		name  string
		m     *v1alpha1.Machine
		adopt bool
	}{
		{"nobody asked", unknown(), false},
		{"a disk that is there", unknown(asked(marker)), true},
		{"a disk that is not there", unknown(asked("else")), false},
		{"an install is wanted", unknown(asked(marker), func(m *v1alpha1.Machine) { m.Spec.Intent = &v1alpha1.Intent{ID: "1", Action: v1alpha1.ActionInstall} }), false},
		{"an install of before, given up", unknown(asked(marker), func(m *v1alpha1.Machine) {
			m.Status.Intent = &v1alpha1.IntentStatus{ID: "1", Action: v1alpha1.ActionInstall, State: v1alpha1.IntentRunning}
		}), true},
		{"installed by this server", unknown(asked(marker), func(m *v1alpha1.Machine) { m.Status.Installed = &v1alpha1.InstalledStatus{Image: "debian-12"} }), false},
	} {
		was := test.m.DeepCopy()
		if got := Adopt(test.m, now); got != test.adopt {
			t.Errorf("%s: %v", test.name, got)
			continue
		}
		if !test.adopt {
			continue
		}
		if is := test.m.Status.Installed; is.Disk != "sdb" || is.Marker != marker || was.Status.Intent != nil && (is.IntentID != "1" || test.m.Status.Intent.State != v1alpha1.IntentSucceeded) {
			t.Errorf("%s: %+v %+v", test.name, is, test.m.Status.Intent)
		}
		if c := condition(test.m); c != nil {
			t.Errorf("%s: the condition stays: %+v", test.name, c)
		}
		if test.m.Status.Phase != v1alpha1.PhaseRebooting {
			t.Errorf("%s: phase %s", test.name, test.m.Status.Phase)
		}
	}
}
