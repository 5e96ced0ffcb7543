package controllers

import (
	"fmt"
	"testing"
	"time"

	"coldrack.dev/internal/machine/lifecycle"
)

func TestAFewMachinesNeedNotWait(t *testing.T) {
	all := newStatusThrottle()
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, u := range []lifecycle.Urgency{lifecycle.Immediate, lifecycle.Soon, lifecycle.Progress} {
		if wait := all.wait("a", u, now); wait != 0 {
			t.Errorf("urgency %d waits %v with nobody else there", u, wait)
		}
		now = now.Add(turnEvery)
	}
	if wait := all.wait("a", lifecycle.Bytes, now); wait != bytesEvery-turnEvery {
		t.Errorf("bytes wait %v after the last write", wait)
	}
	if wait := all.wait("a", lifecycle.Immediate, now); wait != 0 {
		t.Errorf("a phase waits %v", wait)
	}
}

// Each machine of a crowd has its turn, none has two before another has one, and the store is asked no more often than it should be.
func TestACrowdTakesTurns(t *testing.T) {
	const machines = 1000
	all := newStatusThrottle()
	begin := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	writes, most := map[string]int{}, 0
	for now := begin; now.Before(begin.Add(2 * machines * turnEvery)); now = now.Add(turnEvery) {
		asked := 0
		for i := range machines {
			if name := fmt.Sprint(i); all.wait(name, lifecycle.Bytes, now) == 0 {
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
	all := newStatusThrottle()
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for i := range soonAtOnce {
		if wait := all.wait(fmt.Sprint(i), lifecycle.Soon, now); wait != 0 {
			t.Fatalf("machine %d waits %v", i, wait)
		}
	}
	for i := range 20 {
		if wait, want := all.wait(fmt.Sprint("late", i), lifecycle.Soon, now), time.Duration(i+1)*soonEvery; wait != want {
			t.Errorf("late machine %d waits %v, want %v", i, wait, want)
		}
	}
	if wait := all.wait("late0", lifecycle.Soon, now.Add(soonEvery)); wait != 0 {
		t.Errorf("in its turn it waits %v", wait)
	}
	for i := range 100 {
		all.wait(fmt.Sprint("steps", i), lifecycle.Progress, now)
	}
	if wait := all.wait("steps99", lifecycle.Progress, now); wait < 9*time.Second {
		t.Errorf("the last of a hundred waits %v for its progress", wait)
	}
	if wait := all.wait("steps99", lifecycle.Soon, now); wait > 2*time.Second {
		t.Errorf("with a new phase it waits %v", wait)
	}
	if wait := all.wait("steps99", lifecycle.Immediate, now); wait != 0 {
		t.Errorf("with what others act upon it waits %v", wait)
	}
}
