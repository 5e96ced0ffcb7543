package rehearse

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// rehearsed is a run of ten machines, of which one is ready every second from the 21st on.
func rehearsed() *Result {
	r := &Result{Machines: 10, Ready: 10, FinishedAt: 30 * time.Second,
		Timings: map[string]Quantiles{tookAll: {Count: 10, P50: 20 * time.Second, Max: 30 * time.Second}}}
	for i := range 10 {
		r.Arrivals = append(r.Arrivals, Arrival{time.Duration(21+i) * time.Second, i + 1})
	}
	return r
}

func TestARealRunBesideItsRehearsal(t *testing.T) {
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	at := func(s int) time.Time { return noon.Add(time.Duration(s) * time.Second) }
	var run []Real
	for i := range 10 {
		run = append(run, Real{Name: fmt.Sprint("m", i), Booted: at(i)})
	}
	old := Real{Name: "old", Booted: at(-5000), Ready: at(-4000)}
	r := rehearsed()
	say := func(now int) Comparison { return r.Compare(append(run, old, Real{Name: "off"}), at(-100), at(now)) }
	for _, step := range []struct {
		now, ready int // of the machines, each 60 s after its boot
		text       string
		stragglers int
	}{
		{15, 0, "0 of 10 ready after 15.0 s; rehearsed: 0", 0},
		{25, 0, "0 of 10 ready after 25.0 s; rehearsed: 5", 0},
		{64, 4, "4 of 10 ready after 64.0 s; rehearsed: 10, and 4 after 24.0 s", 0},
		{90, 9, "9 of 10 ready after 90.0 s; rehearsed: 10, and 9 after 29.0 s", 0},
		{120, 9, "9 of 10 ready after 2m0s; rehearsed: 10, and 9 after 29.0 s", 1}, // 60 s × 1.5 + 10 s
		{130, 10, "all 10 ready after 69.0 s; rehearsed: 10 after 30.0 s", 0},
	} {
		for i := range step.ready {
			run[i].Ready = at(i + 60)
		}
		got := say(step.now)
		if got.Text != step.text || len(got.Stragglers) != step.stragglers {
			t.Errorf("after %d s: %q, %v; want %q and %d stragglers", step.now, got.Text, got.Stragglers, step.text, step.stragglers)
		}
		if why := got.Stragglers["m9"]; step.stragglers > 0 && !strings.Contains(why, "111.0 s since its boot; the others take 60.0 s here") {
			t.Errorf("m9 is a straggler because of %q", why)
		}
	}
	if got := r.Compare([]Real{old}, at(-100), at(0)); got.Text != "" {
		t.Errorf("of machines that were ready long ago: %q", got.Text)
	}
}

func TestArrivalsAreAHundredAtMost(t *testing.T) {
	r := NewRecord(1000, time.Millisecond)
	for i := range 1000 {
		r.Add(Event{At: time.Duration(i+1) * 10 * time.Millisecond, Machine: i, Phase: Ready})
	}
	r.Finish()
	got := arrivals(1000, r.points)
	if len(got) < 99 || len(got) > 102 || got[len(got)-1].Ready != 1000 {
		t.Errorf("%d arrivals, the last %+v", len(got), got[len(got)-1])
	}
}
