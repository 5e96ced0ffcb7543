package v1alpha1

import (
	"slices"
	"testing"
)

func TestOpenIntent(t *testing.T) {
	wish := &Intent{ID: "2", Action: ActionReinstall}
	tests := []struct {
		name   string
		status MachineStatus
		open   bool
	}{
		{"a new wish is open", MachineStatus{}, true},
		{"a wish that differs from the acknowledged one is open", MachineStatus{Intent: &IntentStatus{ID: "1", State: IntentSucceeded}}, true},
		{"a pending wish is open", MachineStatus{Intent: &IntentStatus{ID: "2", State: IntentPending}}, true},
		{"a running wish is open, so that a machine that was cut off starts over", MachineStatus{Intent: &IntentStatus{ID: "2", State: IntentRunning}}, true},
		{"a wish that succeeded is closed", MachineStatus{Intent: &IntentStatus{ID: "2", State: IntentSucceeded}}, false},
		{"a wish that failed is closed", MachineStatus{Intent: &IntentStatus{ID: "2", State: IntentFailed}}, false},
		{"an old wish that is applied again is closed", MachineStatus{Intent: &IntentStatus{ID: "3", State: IntentSucceeded}, PastIntents: []string{"1", "2"}}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := &Machine{Spec: MachineSpec{Intent: wish}, Status: test.status}
			if got := m.OpenIntent() != nil; got != test.open {
				t.Errorf("open is %v, want %v", got, test.open)
			}
		})
	}
}

func TestAcknowledgeIntentKeepsTheOnesBefore(t *testing.T) {
	m := &Machine{}
	for _, id := range []string{"1", "2", "3"} {
		m.Spec.Intent = &Intent{ID: id, Action: ActionReinstall}
		if !m.AcknowledgeIntent() || m.AcknowledgeIntent() {
			t.Fatalf("intent %s: want it acknowledged exactly once", id)
		}
	}
	if got, want := m.AcknowledgedIntents(), []string{"1", "2", "3"}; !slices.Equal(got, want) {
		t.Errorf("acknowledged %v, want %v", got, want)
	}
	if m.Spec.Intent = (&Intent{ID: "1", Action: ActionReinstall}); m.AcknowledgeIntent() || m.Status.Intent.ID != "3" {
		t.Errorf("an old intent was acknowledged again: %+v", m.Status.Intent)
	}
}
