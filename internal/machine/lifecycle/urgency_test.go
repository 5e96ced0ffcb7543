package lifecycle

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

func TestWhatIsUrgent(t *testing.T) {
	at := new(metav1.NewTime(time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)))
	was := v1alpha1.MachineStatus{Phase: v1alpha1.PhaseInstalling, CurrentStep: "image 1%", Steps: []v1alpha1.Step{{Name: "image", State: v1alpha1.StepRunning, BytesDone: 1}},
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Reason: "Installing"}}}
	for what, tt := range map[string]struct {
		change func(*v1alpha1.MachineStatus)
		want   Urgency
	}{
		"bytes":              {func(s *v1alpha1.MachineStatus) { s.Steps[0].BytesDone = 5; s.CurrentStep = "image 5%" }, Bytes},
		"a step":             {func(s *v1alpha1.MachineStatus) { s.Steps[0].State = v1alpha1.StepSucceeded }, Progress},
		"a boot":             {func(s *v1alpha1.MachineStatus) { s.Boots = []v1alpha1.BootRecord{{}} }, Progress},
		"a phase on the way": {func(s *v1alpha1.MachineStatus) { s.Phase, s.PhaseSince, s.Message = v1alpha1.PhaseRebooting, at, "so" }, Soon},
		"a phase in a condition": {func(s *v1alpha1.MachineStatus) {
			s.Phase = v1alpha1.PhaseRebooting
			s.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Reason: "Rebooting"}}
		}, Soon},
		"a phase that calls": {func(s *v1alpha1.MachineStatus) { s.Phase = v1alpha1.PhaseLost }, Immediate},
		"a phase, and installed": {func(s *v1alpha1.MachineStatus) {
			s.Phase, s.Installed = v1alpha1.PhaseRebooting, &v1alpha1.InstalledStatus{}
		}, Immediate},
		"a condition": {func(s *v1alpha1.MachineStatus) { s.Conditions = append(s.Conditions, metav1.Condition{Type: "X"}) }, Immediate},
		"the intent":  {func(s *v1alpha1.MachineStatus) { s.Intent = &v1alpha1.IntentStatus{ID: "1"} }, Immediate},
	} {
		next := *was.DeepCopy()
		tt.change(&next)
		if got := UrgencyOf(was, next); got != tt.want {
			t.Errorf("%s: urgency %d, want %d", what, got, tt.want)
		}
	}
	expected := v1alpha1.MachineStatus{Phase: v1alpha1.PhaseExpected, Conditions: was.Conditions}
	if got := UrgencyOf(v1alpha1.MachineStatus{}, expected); got != Soon {
		t.Errorf("a machine that was written down: urgency %d, want %d", got, Soon)
	}
}
