// Package rollout decides whether an instance gets an update now, and why not. It is pure: what is known goes in, one answer with
// its reason comes out.
package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// State of an instance's update.
type State string

// States in the order in which an update passes through them. Failed may follow each; Undefined is none.
const (
	Undefined   State = "undefined"
	Granted     State = "granted"
	Downloading State = "downloading"
	Downloaded  State = "downloaded"
	// Installed waits for a reboot, OnHold too, because the machine was told to wait.
	Installed State = "installed"
	OnHold    State = "on-hold"
	Complete  State = "complete"
	Failed    State = "error"
)

// InProgress says whether an update is under way.
func (s State) InProgress() bool {
	return s == Granted || s == Downloading || s == Downloaded || s == Installed || s == OnHold
}

// Instance is what is known of one that asks.
type Instance struct {
	// Version that runs.
	Version string
	State   State
	// Target is the version of the update that State is about, Since when it was granted.
	Target string
	Since  time.Time
	// FailedAt is when it failed last, the zero time if never.
	FailedAt time.Time
}

// Policy of a group.
type Policy struct {
	// Paused holds all updates; Why says why.
	Paused bool
	Why    string
	// Hours in which updates begin; nil: always.
	Hours *Hours
	// Safe lets one instance update before all others.
	Safe bool
	// PerPeriod is how many updates begin in each Period, AtOnce how many are under way.
	PerPeriod, AtOnce Limit
	Period            time.Duration
	// Timeout of an update, after which it counts as failed. 0: never.
	Timeout time.Duration
	// StopAfter failures no further update begins. 0: never.
	StopAfter int
	// RetryAfter is how long an instance whose update failed waits.
	RetryAfter time.Duration
	// After is the group that has to have the version before, the canary; CanaryFor how long it has to have it.
	After     string
	CanaryFor time.Duration
}

// Limit is a number of instances or a part of a group, rounded up, so that it is never nobody. The zero Limit is none at all.
type Limit struct {
	Count, Percent int
}

// Of is the limit in a group of n; ok is false where there is none.
func (l Limit) Of(n int) (limit int, ok bool) {
	if l.Percent > 0 {
		return max(1, (n*l.Percent+99)/100), true
	}
	return l.Count, l.Count > 0
}

// ParseLimit reads "5" or "20%"; empty is no limit.
func ParseLimit(text string) (Limit, error) {
	if text == "" {
		return Limit{}, nil
	}
	number, percent := strings.CutSuffix(text, "%")
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || percent && n > 100 || n > 1_000_000 {
		return Limit{}, fmt.Errorf("%q: must be a number from 1 on, or 1%% to 100%%", text)
	}
	if percent {
		return Limit{Percent: n}, nil
	}
	return Limit{Count: n}, nil
}

// Hours of a day in which updates begin, by the clock of a place.
type Hours struct {
	// From and To are minutes of the day; To before From goes past midnight, and then counts for the day on which it began.
	From, To int
	// Days of the week; none: all.
	Days []time.Weekday
	Zone *time.Location
}

// Open says whether updates begin at a time.
func (h Hours) Open(now time.Time) bool {
	local := now.In(h.Zone)
	minute, day := local.Hour()*60+local.Minute(), local.Weekday()
	on := func(d time.Weekday) bool { return len(h.Days) == 0 || slices.Contains(h.Days, d) }
	switch {
	case h.From == h.To:
		return on(day)
	case h.From < h.To:
		return on(day) && minute >= h.From && minute < h.To
	case minute >= h.From:
		return on(day)
	}
	return minute < h.To && on((day+6)%7)
}

// Group is what is known of all instances of a group and its target.
type Group struct {
	Policy Policy
	// Target is the version of its channel, empty if it has none; Floors are versions that must be passed through, in any order.
	Target string
	Floors []string
	// Size is how many instances were heard of lately.
	Size int
	// InProgress, and Begun since Period before now.
	InProgress, Begun int
	// NextBegin is when the oldest of Begun leaves the period.
	NextBegin time.Time
	// Done have Target, Failed failed on the way to it.
	Done, Failed int
	// Canary is what is known of Policy.After.
	Canary Canary
}

// Canary is how far the group before is with a version.
type Canary struct {
	// Known is false if there is no such group; Size and Done count its instances, Failed those that failed.
	Known              bool
	Size, Done, Failed int
	// Since is when the last one got the version.
	Since time.Time
}

// Reason why an instance gets an update, or none. The values are shown to people and programs.
type Reason string

// Reasons, in the order in which they are looked at.
const (
	NoPackage    Reason = "no-package"
	UpToDate     Reason = "up-to-date"
	NeedsReboot  Reason = "needs-reboot"
	Again        Reason = "granted-before"
	Paused       Reason = "paused"
	OutsideHours Reason = "outside-hours"
	CanaryFirst  Reason = "canary-first"
	TooManyFail  Reason = "stopped-by-failures"
	RetryLater   Reason = "failed-lately"
	SafeFirst    Reason = "safe-mode"
	PeriodFull   Reason = "period-full"
	TooManyNow   Reason = "too-many-in-progress"
	Now          Reason = "granted"
)

// Decision about one instance.
type Decision struct {
	// Version to update to, a floor or the target; empty: none.
	Version string
	Reason  Reason
	// Detail says it to a person.
	Detail string
}

// Decide is asked for each instance that looks for an update.
func Decide(i Instance, g Group, now time.Time) Decision {
	no := func(reason Reason, format string, args ...any) Decision {
		return Decision{Reason: reason, Detail: fmt.Sprintf(format, args...)}
	}
	if g.Target == "" {
		return no(NoPackage, "the group's channel has no package of its architecture")
	}
	next := Next(i.Version, g.Target, g.Floors)
	if next == "" {
		return no(UpToDate, "it runs %s, and the channel has %s", i.Version, g.Target)
	}
	p := g.Policy
	same := i.Target == next
	if same && (i.State == Installed || i.State == OnHold) {
		return no(NeedsReboot, "%s is installed and waits for a reboot", next)
	}
	// What may stop everybody comes before what was granted: a bad version must not go on.
	if p.Paused {
		return no(Paused, "updates of the group are paused%s", suffix(p.Why))
	}
	if same && i.State.InProgress() {
		return Decision{next, Again, "it was granted before and is not finished"}
	}
	if p.Hours != nil && !p.Hours.Open(now) {
		return no(OutsideHours, "updates begin at other hours; it is %s there", now.In(p.Hours.Zone).Format("Mon 15:04 MST"))
	}
	if p.After != "" {
		if why := waitFor(p, g, now); why != "" {
			return no(CanaryFirst, "%s", why)
		}
	}
	if p.StopAfter > 0 && g.Failed >= p.StopAfter {
		return no(TooManyFail, "%d updates to %s failed, and %d stop the group; look at them, then: coldrack update retry", g.Failed, g.Target, p.StopAfter)
	}
	if wait := i.FailedAt.Add(p.RetryAfter); !i.FailedAt.IsZero() && now.Before(wait) {
		return no(RetryLater, "its last update failed on %s; it is tried again after %s", i.FailedAt.UTC().Format(time.RFC3339), wait.UTC().Format(time.RFC3339))
	}
	if p.Safe && g.Done == 0 {
		if g.Failed > 0 {
			return no(SafeFirst, "the first update to %s failed; look at it, then: coldrack update retry", g.Target)
		}
		if g.InProgress > 0 {
			return no(SafeFirst, "one instance updates first, and is not finished")
		}
	}
	if limit, ok := p.PerPeriod.Of(g.Size); ok && g.Begun >= limit {
		return no(PeriodFull, "%d updates began in the last %s, of at most %d; the next may on %s", g.Begun, p.Period, limit, g.NextBegin.UTC().Format(time.RFC3339))
	}
	if limit, ok := p.AtOnce.Of(g.Size); ok && g.InProgress >= limit {
		return no(TooManyNow, "%d updates are under way, of at most %d", g.InProgress, limit)
	}
	detail := "it is its turn"
	if next != g.Target {
		detail = fmt.Sprintf("it is its turn; %s comes before %s", next, g.Target)
	}
	return Decision{next, Now, detail}
}

// waitFor says why the canary group is not far enough; empty if it is.
func waitFor(p Policy, g Group, now time.Time) string {
	c := g.Canary
	switch {
	case !c.Known:
		return fmt.Sprintf("group %s, which goes first, is not there", p.After)
	case c.Size == 0:
		return fmt.Sprintf("group %s, which goes first, has no instance", p.After)
	case c.Failed > 0:
		return fmt.Sprintf("%d updates to %s failed in group %s, which goes first", c.Failed, g.Target, p.After)
	case c.Done < c.Size:
		return fmt.Sprintf("%d of %d instances of group %s, which goes first, have %s", c.Done, c.Size, p.After, g.Target)
	}
	if ready := c.Since.Add(p.CanaryFor); now.Before(ready) {
		return fmt.Sprintf("group %s, which goes first, has %s until %s to show that it works", p.After, g.Target, ready.UTC().Format(time.RFC3339))
	}
	return ""
}

func suffix(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

// Next is the version to go to from another on the way to target: the lowest floor in between, or target; empty where there is nothing
// newer.
func Next(from, target string, floors []string) string {
	if Compare(from, target) >= 0 {
		return ""
	}
	next := target
	for _, f := range floors {
		if Compare(from, f) < 0 && Compare(f, next) < 0 {
			next = f
		}
	}
	return next
}

// Compare orders versions: numbers between dots as numbers, everything else as text; what follows a + does not count, and one with
// a - comes before the same without it.
func Compare(a, b string) int {
	a, _, _ = strings.Cut(a, "+")
	b, _, _ = strings.Cut(b, "+")
	a, preA, isPreA := strings.Cut(a, "-")
	b, preB, isPreB := strings.Cut(b, "-")
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for n := range max(len(as), len(bs)) {
		x, y := "0", "0"
		if n < len(as) {
			x = as[n]
		}
		if n < len(bs) {
			y = bs[n]
		}
		if c := comparePart(x, y); c != 0 {
			return c
		}
	}
	if isPreA != isPreB {
		if isPreA {
			return -1
		}
		return 1
	}
	return strings.Compare(preA, preB)
}

func comparePart(x, y string) int {
	nx, errX := strconv.ParseUint(x, 10, 64)
	ny, errY := strconv.ParseUint(y, 10, 64)
	switch {
	case errX == nil && errY == nil:
		return cmp.Compare(nx, ny)
	case errX == nil:
		return 1 // a number is newer than a word
	case errY == nil:
		return -1
	}
	return strings.Compare(x, y)
}
