package rehearse

import (
	"fmt"
	"slices"
	"sort"
	"time"
)

// Arrival says how many machines were ready at a time.
type Arrival struct {
	At    time.Duration `json:"at"`
	Ready int           `json:"ready"`
}

// arrivals thins the series of points: one for each further hundredth of the machines.
func arrivals(machines int, points []Point) (out []Arrival) {
	ready := slices.Index(Phases(), Ready)
	for i, p := range points {
		n, last := p.Counts[ready], 0
		if len(out) > 0 {
			last = out[len(out)-1].Ready
		}
		if n > last && (n-last >= max(1, machines/100) || i == len(points)-1) {
			out = append(out, Arrival{p.At, n})
		}
	}
	return out
}

// Real is a machine of a real rack.
type Real struct {
	Name string
	// Booted is when it asked for the boot of this run, Ready when its node reported; zero while it did not.
	Booted, Ready time.Time
}

// Comparison of a real run with its rehearsal.
type Comparison struct {
	// Text in one line; empty when no machine takes part.
	Text string
	// Stragglers by name, and why they count as such.
	Stragglers map[string]string
}

const (
	// fewReady machines say nothing yet of how long one takes here.
	fewReady = 3
	// grace of a machine beyond the time of the slowest that was rehearsed.
	grace = 10 * time.Second
)

// Compare says how a real run stands to this one, of machines that booted since from. A real machine needs time that
// is not rehearsed: for its firmware, kernels and disks. So who straggles is judged by the others of the same rack, and by
// how far the machines of the rehearsal were apart.
func (r *Result) Compare(machines []Real, from, now time.Time) Comparison {
	machines = slices.DeleteFunc(slices.Clone(machines), func(m Real) bool { return m.Booted.IsZero() || m.Booted.Before(from) })
	if len(machines) == 0 {
		return Comparison{}
	}
	began := slices.MinFunc(machines, func(a, b Real) int { return a.Booted.Compare(b.Booted) }).Booted
	var took []time.Duration
	var last time.Time
	for _, m := range machines {
		if !m.Ready.IsZero() {
			took = append(took, m.Ready.Sub(m.Booted))
			if m.Ready.After(last) {
				last = m.Ready
			}
		}
	}
	slices.Sort(took)
	out := Comparison{Text: r.standing(len(took), len(machines), now.Sub(began), last.Sub(began)), Stragglers: map[string]string{}}
	if len(took) < fewReady {
		return out
	}
	usual, spread := took[len(took)/2], r.spread()
	limit := time.Duration(float64(usual)*spread) + grace
	for _, m := range machines {
		if so := now.Sub(m.Booted); m.Ready.IsZero() && so > limit {
			out.Stragglers[m.Name] = fmt.Sprintf("straggler: %s since its boot; the others take %s here, and the slowest of the rehearsal took %.1f times the usual",
				durationText(so.Round(time.Second)), durationText(usual.Round(time.Second)), spread)
		}
	}
	return out
}

func (r *Result) standing(ready, machines int, elapsed, finished time.Duration) string {
	if ready == machines {
		return fmt.Sprintf("all %d ready after %s; rehearsed: %d after %s", machines, durationText(finished.Round(time.Second)), r.Ready, durationText(r.FinishedAt.Round(time.Second)))
	}
	text := fmt.Sprintf("%d of %d ready after %s; rehearsed: %d", ready, machines, durationText(elapsed.Round(time.Second)), r.readyAt(elapsed))
	if at, ok := r.whenReady(ready); ok && ready > 0 && at < elapsed {
		text += fmt.Sprintf(", and %d after %s", ready, durationText(at.Round(time.Second)))
	}
	return text
}

func (r *Result) readyAt(at time.Duration) int {
	i := sort.Search(len(r.Arrivals), func(i int) bool { return r.Arrivals[i].At > at })
	if i == 0 {
		return 0
	}
	return r.Arrivals[i-1].Ready
}

// whenReady is false when so many never were.
func (r *Result) whenReady(n int) (time.Duration, bool) {
	i := sort.Search(len(r.Arrivals), func(i int) bool { return r.Arrivals[i].Ready >= n })
	if i == len(r.Arrivals) {
		return 0, false
	}
	return r.Arrivals[i].At, true
}

// spread is how many times the usual time the slowest machine took.
func (r *Result) spread() float64 {
	q := r.Timings[tookAll]
	if q.P50 <= 0 {
		return 1
	}
	return float64(q.Max) / float64(q.P50)
}
