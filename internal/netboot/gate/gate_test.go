package gate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return noon.Add(time.Duration(seconds * float64(time.Second))) }

// namesOfLost are the machines that were not heard of again, those that were silent for longest first.
func namesOfLost(g *Gate, now time.Time) []string {
	g.Counts(now) // looks who has fallen silent
	names := slices.Collect(maps.Keys(g.clients))
	names = slices.DeleteFunc(names, func(name string) bool { return g.clients[name].stage != lost })
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(g.clients[a].last.Compare(g.clients[b].last), cmp.Compare(a, b))
	})
	return names
}

func small() *Gate {
	return New(Limits{Loading: 2, Defer: 15 * time.Second, Quiet: 90 * time.Second})
}

func TestWhoAskedFirstComesFirst(t *testing.T) {
	g := small()
	for i, name := range []string{"a", "b", "c", "d"} {
		if got, want := g.Ask(name, at(float64(i)/10)), i < 2; got != want {
			t.Errorf("%s is admitted: %v, want %v", name, got, want)
		}
	}
	g.Through("a", at(1))
	// d asks again before c does; the place is c's.
	if g.Ask("d", at(4)) {
		t.Error("d takes the place of c, which asked before it")
	}
	if g.Ask("new", at(4)) {
		t.Error("a new machine comes before those that wait")
	}
	if !g.Ask("c", at(4.2)) {
		t.Error("c is not admitted although there is room")
	}
	g.Through("b", at(5))
	if g.Ask("new", at(12)) || !g.Ask("d", at(12)) {
		t.Error("the next place is d's")
	}
	if want := (Counts{Asked: 5, Waiting: 1, Loading: 2, Through: 2, Deferred: 5}); g.Counts(at(12)) != want {
		t.Errorf("counts are %+v, want %+v", g.Counts(at(12)), want)
	}
}

func TestNobodyIsDeferredForTooLong(t *testing.T) {
	g := small()
	g.Ask("a", at(0))
	g.Ask("b", at(0))
	// What firmware does: questions after 0, 4, 12 and 28 seconds.
	for _, question := range []struct {
		after float64
		want  bool
	}{{0, false}, {4, false}, {12, false}, {28, true}, {29, true}} {
		if got := g.Ask("c", at(question.after)); got != question.want {
			t.Errorf("after %g s: admitted %v, want %v", question.after, got, question.want)
		}
	}
}

func TestAnAnswerThatWasLostIsGivenAgain(t *testing.T) {
	g := small()
	for i := range 3 {
		if !g.Ask("a", at(float64(i))) || !g.Ask("b", at(float64(i))) {
			t.Fatal("one that was admitted is not answered any more")
		}
	}
}

func TestTheSilentGiveTheirPlaceBack(t *testing.T) {
	g := small()
	g.Ask("a", at(0))
	g.Ask("b", at(0))
	g.Ask("c", at(1))
	g.Seen("b", at(60)) // still loading
	if !g.Ask("d", at(95)) {
		t.Error("the place of a, silent for 95 s, is not free")
	}
	if got := namesOfLost(g, at(95)); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("lost are %v, want a and c", got)
	}
	g.Ask("a", at(100)) // somebody pressed its button
	if got := g.Counts(at(100)); got.Lost != 1 || got.Asked != 4 {
		t.Errorf("counts are %+v", got)
	}
}

func TestWhatLoadsUnaskedCounts(t *testing.T) {
	g := small()
	g.Seen("a", at(0)) // another DHCP server gave it an address
	g.Seen("b", at(0))
	if g.Room(at(0)) != 0 || g.Ask("c", at(0)) {
		t.Error("there is no room")
	}
	g.Through("stranger", at(1))
	if got := g.Counts(at(1)).Asked; got != 3 {
		t.Errorf("%d machines have asked, want 3", got)
	}
}

func TestAStormIsForgotten(t *testing.T) {
	g := small()
	g.Ask("a", at(0))
	if got := g.Counts(at(300)); got.Lost != 1 {
		t.Errorf("after five minutes: %+v", got)
	}
	if got := g.Counts(at(700)); got != (Counts{}) {
		t.Errorf("after twelve minutes: %+v", got)
	}
}

// A thousand machines of one firmware, each loading for five seconds, 100 at a time: all are answered before they give up.
func TestAThousandFirmwares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Limits{Loading: 100, Defer: 15 * time.Second, Quiet: 90 * time.Second})
		admitted := make(chan bool)
		var peak atomic.Int32
		for i := range 1000 {
			go func() {
				name := fmt.Sprint(i)
				time.Sleep(time.Duration(i) * 10 * time.Millisecond)
				for _, wait := range []time.Duration{4, 8, 16, 32} {
					if g.Ask(name, time.Now()) {
						time.Sleep(5 * time.Second)
						g.Through(name, time.Now())
						admitted <- true
						return
					}
					time.Sleep(wait * time.Second)
				}
				admitted <- false
			}()
		}
		go func() {
			for range 60 {
				time.Sleep(time.Second)
				peak.Store(max(peak.Load(), int32(g.Counts(time.Now()).Loading)))
			}
		}()
		lost := 0
		for range 1000 {
			if !<-admitted {
				lost++
			}
		}
		time.Sleep(time.Minute)
		if lost > 0 {
			t.Errorf("%d machines gave up", lost)
		}
		if peak.Load() < 100 {
			t.Errorf("at most %d machines loaded at once", peak.Load())
		}
		t.Logf("at most %d loaded at once, %d questions were deferred", peak.Load(), g.Counts(time.Now()).Deferred)
	})
}
