package controllers

import (
	"fmt"
	"testing"
	"time"
)

func TestAFewMachinesNeedNotWait(t *testing.T) {
	var all turns
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, u := range []urgency{atOnce, inTurn} {
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
	var all turns
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
