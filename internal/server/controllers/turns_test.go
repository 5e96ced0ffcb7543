package controllers

import (
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

func TestAFewMachinesNeedNotWait(t *testing.T) {
	all := newTurns()
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, u := range []urgency{atOnce, soon, inTurn} {
		if wait := all.wait("a", u, now); wait != 0 {
			t.Errorf("urgency %d waits %v with nobody else there", u, wait)
		}
		now = now.Add(turnEvery)
	}
	if wait := all.wait("a", nowAndThen, now); wait != bytesEvery-turnEvery {
		t.Errorf("bytes wait %v after the last write", wait)
	}
	if wait := all.wait("a", atOnce, now); wait != 0 {
		t.Errorf("a phase waits %v", wait)
	}
}

// Each machine of a crowd has its turn, none has two before another has one, and the store is asked no more often than it should be.
func TestACrowdTakesTurns(t *testing.T) {
	const machines = 1000
	all := newTurns()
	begin := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	writes, most := map[string]int{}, 0
	for now := begin; now.Before(begin.Add(2 * machines * turnEvery)); now = now.Add(turnEvery) {
		asked := 0
		for i := range machines {
			if name := fmt.Sprint(i); all.wait(name, nowAndThen, now) == 0 {
				writes[name]++
				asked++
			}
		}
		most = max(most, asked)
	}
	if most > 1 {
		t.Errorf("%d writes in the time of one", most)
	}
	for i := range machines {
		if n := writes[fmt.Sprint(i)]; n < 1 || n > 2 {
			t.Fatalf("machine %d wrote %d times, in two rounds", i, n)
		}
	}
}

// Fifty machines change their phase at once, and the rest in turns; what is more urgent meanwhile does not wait for the less urgent.
func TestPhasesOfACrowdComeSoon(t *testing.T) {
	all := newTurns()
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for i := range soonAtOnce {
		if wait := all.wait(fmt.Sprint(i), soon, now); wait != 0 {
			t.Fatalf("machine %d waits %v", i, wait)
		}
	}
	for i := range 20 {
		if wait, want := all.wait(fmt.Sprint("late", i), soon, now), time.Duration(i+1)*soonEvery; wait != want {
			t.Errorf("late machine %d waits %v, want %v", i, wait, want)
		}
	}
	if wait := all.wait("late0", soon, now.Add(soonEvery)); wait != 0 {
		t.Errorf("in its turn it waits %v", wait)
	}
	for i := range 100 {
		all.wait(fmt.Sprint("steps", i), inTurn, now)
	}
	if wait := all.wait("steps99", inTurn, now); wait < 9*time.Second {
		t.Errorf("the last of a hundred waits %v for its progress", wait)
	}
	if wait := all.wait("steps99", soon, now); wait > 2*time.Second {
		t.Errorf("with a new phase it waits %v", wait)
	}
	if wait := all.wait("steps99", atOnce, now); wait != 0 {
		t.Errorf("with what others act upon it waits %v", wait)
	}
}

func TestWhatIsUrgent(t *testing.T) {
	at := new(metav1.NewTime(time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)))
	was := v1alpha1.MachineStatus{Phase: v1alpha1.PhaseInstalling, CurrentStep: "image 1%", Steps: []v1alpha1.Step{{Name: "image", State: v1alpha1.StepRunning, BytesDone: 1}},
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Reason: "Installing"}}}
	for what, tt := range map[string]struct {
		change func(*v1alpha1.MachineStatus)
		want   urgency
	}{
		"bytes":              {func(s *v1alpha1.MachineStatus) { s.Steps[0].BytesDone = 5; s.CurrentStep = "image 5%" }, nowAndThen},
		"a step":             {func(s *v1alpha1.MachineStatus) { s.Steps[0].State = v1alpha1.StepSucceeded }, inTurn},
		"a boot":             {func(s *v1alpha1.MachineStatus) { s.Boots = []v1alpha1.BootRecord{{}} }, inTurn},
		"a phase on the way": {func(s *v1alpha1.MachineStatus) { s.Phase, s.PhaseSince, s.Message = v1alpha1.PhaseRebooting, at, "so" }, soon},
		"a phase in a condition": {func(s *v1alpha1.MachineStatus) {
			s.Phase = v1alpha1.PhaseRebooting
			s.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Reason: "Rebooting"}}
		}, soon},
		"a phase that calls": {func(s *v1alpha1.MachineStatus) { s.Phase = v1alpha1.PhaseLost }, atOnce},
		"a phase, and installed": {func(s *v1alpha1.MachineStatus) {
			s.Phase, s.Installed = v1alpha1.PhaseRebooting, &v1alpha1.InstalledStatus{}
		}, atOnce},
		"a condition": {func(s *v1alpha1.MachineStatus) { s.Conditions = append(s.Conditions, metav1.Condition{Type: "X"}) }, atOnce},
		"the intent":  {func(s *v1alpha1.MachineStatus) { s.Intent = &v1alpha1.IntentStatus{ID: "1"} }, atOnce},
	} {
		next := *was.DeepCopy()
		tt.change(&next)
		if got := urgencyOf(was, next); got != tt.want {
			t.Errorf("%s: urgency %d, want %d", what, got, tt.want)
		}
	}
	expected := v1alpha1.MachineStatus{Phase: v1alpha1.PhaseExpected, Conditions: was.Conditions}
	if got := urgencyOf(v1alpha1.MachineStatus{}, expected); got != soon {
		t.Errorf("a machine that was written down: urgency %d, want %d", got, soon)
	}
}
