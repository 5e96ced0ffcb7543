package rollout

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC) // a Monday

func TestDecide(t *testing.T) {
	hours := func(from, to int, days ...time.Weekday) *Hours { return &Hours{from * 60, to * 60, days, time.UTC} }
	old := Instance{Version: "4081.2.0"}
	with := func(p Policy, change func(*Group)) Group {
		g := Group{Policy: p, Target: "4230.2.1", Size: 10}
		if change != nil {
			change(&g)
		}
		return g
	}
	canary := Policy{After: "canary", CanaryFor: time.Hour}
	for _, test := range []struct {
		name     string
		instance Instance
		group    Group
		reason   Reason
		version  string
		detail   string
	}{
		{"an old one gets it", old, with(Policy{}, nil), Now, "4230.2.1", "its turn"},
		{"a channel without a package", old, with(Policy{}, func(g *Group) { g.Target = "" }), NoPackage, "", "no package"},
		{"the same version", Instance{Version: "4230.2.1"}, with(Policy{}, nil), UpToDate, "", "it runs 4230.2.1"},
		{"a newer one is not set back", Instance{Version: "4300.0.0"}, with(Policy{}, nil), UpToDate, "", "it runs 4300.0.0"},
		{"one that waits for a reboot", Instance{Version: "4081.2.0", State: Installed, Target: "4230.2.1"}, with(Policy{}, nil), NeedsReboot, "", "reboot"},
		{"one that waits for an older reboot gets the newer", Instance{Version: "4081.2.0", State: Installed, Target: "4100.0.0"}, with(Policy{}, nil), Now, "4230.2.1", ""},
		{"one that was granted it asks again", Instance{Version: "4081.2.0", State: Downloading, Target: "4230.2.1"}, with(Policy{AtOnce: Limit{Count: 1}}, func(g *Group) { g.InProgress = 1 }), Again, "4230.2.1", ""},
		{"and gets nothing when the group was paused meanwhile", Instance{Version: "4081.2.0", State: Downloading, Target: "4230.2.1"}, with(Policy{Paused: true, Why: "bad kernel"}, nil), Paused, "", "paused: bad kernel"},
		{"a floor comes first", old, with(Policy{}, func(g *Group) { g.Floors = []string{"4200.0.0", "4100.0.0"} }), Now, "4100.0.0", "4100.0.0 comes before 4230.2.1"},
		{"then the next floor", Instance{Version: "4100.0.0", State: Complete, Target: "4100.0.0"}, with(Policy{}, func(g *Group) { g.Floors = []string{"4200.0.0", "4100.0.0"} }), Now, "4200.0.0", ""},
		{"floors behind and beyond do not count", old, with(Policy{}, func(g *Group) { g.Floors = []string{"4000.0.0", "4300.0.0"} }), Now, "4230.2.1", ""},
		{"within the hours", old, with(Policy{Hours: hours(9, 17, time.Monday)}, nil), Now, "4230.2.1", ""},
		{"on another day", old, with(Policy{Hours: hours(9, 17, time.Tuesday)}, nil), OutsideHours, "", "Mon 12:00 UTC"},
		{"after the hours", old, with(Policy{Hours: hours(9, 12)}, nil), OutsideHours, "", ""},
		{"the canary group is not there", old, with(canary, nil), CanaryFirst, "", "is not there"},
		{"the canary group is empty", old, with(canary, func(g *Group) { g.Canary = Canary{Known: true} }), CanaryFirst, "", "has no instance"},
		{"the canary group is on its way", old, with(canary, func(g *Group) { g.Canary = Canary{Known: true, Size: 3, Done: 2} }), CanaryFirst, "", "2 of 3"},
		{"the canary group failed", old, with(canary, func(g *Group) { g.Canary = Canary{Known: true, Size: 3, Done: 2, Failed: 1} }), CanaryFirst, "", "failed"},
		{"the canary group has it for too short", old, with(canary, func(g *Group) { g.Canary = Canary{Known: true, Size: 3, Done: 3, Since: noon.Add(-time.Minute)} }), CanaryFirst, "", "until 2026-11-30T12:59:00Z"},
		{"the canary group has it", old, with(canary, func(g *Group) { g.Canary = Canary{Known: true, Size: 3, Done: 3, Since: noon.Add(-time.Hour)} }), Now, "4230.2.1", ""},
		{"too many failed", old, with(Policy{StopAfter: 2}, func(g *Group) { g.Failed = 2 }), TooManyFail, "", "coldrack update retry"},
		{"one that failed lately", Instance{Version: "4081.2.0", State: Failed, Target: "4230.2.1", FailedAt: noon.Add(-time.Minute)}, with(Policy{RetryAfter: time.Hour}, nil), RetryLater, "", "after 2026-11-30T12:59:00Z"},
		{"one that failed long ago", Instance{Version: "4081.2.0", State: Failed, Target: "4230.2.1", FailedAt: noon.Add(-time.Hour)}, with(Policy{RetryAfter: time.Hour}, nil), Now, "4230.2.1", ""},
		{"safe mode: the first", old, with(Policy{Safe: true}, nil), Now, "4230.2.1", ""},
		{"safe mode: the second waits", old, with(Policy{Safe: true}, func(g *Group) { g.InProgress = 1 }), SafeFirst, "", "not finished"},
		{"safe mode: the first failed", old, with(Policy{Safe: true}, func(g *Group) { g.Failed = 1 }), SafeFirst, "", "failed"},
		{"safe mode: the first has it", old, with(Policy{Safe: true}, func(g *Group) { g.Done, g.InProgress = 1, 5 }), Now, "4230.2.1", ""},
		{"20 % of ten in a period", old, with(Policy{PerPeriod: Limit{Percent: 20}, Period: time.Hour}, func(g *Group) { g.Begun, g.NextBegin = 2, noon }), PeriodFull, "", "of at most 2; the next may on 2026-11-30T12:00:00Z"},
		{"one less", old, with(Policy{PerPeriod: Limit{Percent: 20}, Period: time.Hour}, func(g *Group) { g.Begun = 1 }), Now, "4230.2.1", ""},
		{"1 % of ten is one", old, with(Policy{PerPeriod: Limit{Percent: 1}, Period: time.Hour}, nil), Now, "4230.2.1", ""},
		{"three at once", old, with(Policy{AtOnce: Limit{Count: 3}}, func(g *Group) { g.InProgress = 3 }), TooManyNow, "", "3 updates are under way, of at most 3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Decide(test.instance, test.group, noon)
			if got.Reason != test.reason || got.Version != test.version || !strings.Contains(got.Detail, test.detail) || got.Detail == "" {
				t.Errorf("got %+v, want %s %q with %q", got, test.reason, test.version, test.detail)
			}
		})
	}
}

func TestHours(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	night := Hours{From: 22 * 60, To: 6 * 60, Days: []time.Weekday{time.Friday}, Zone: berlin}
	for _, test := range []struct {
		at   time.Time
		open bool
	}{
		{time.Date(2026, 12, 4, 21, 59, 0, 0, berlin), false},
		{time.Date(2026, 12, 4, 22, 0, 0, 0, berlin), true},
		{time.Date(2026, 12, 4, 21, 0, 0, 0, time.UTC), true},
		{time.Date(2026, 12, 5, 5, 59, 0, 0, berlin), true},
		{time.Date(2026, 12, 5, 6, 0, 0, 0, berlin), false},
		{time.Date(2026, 12, 5, 22, 0, 0, 0, berlin), false},
		{time.Date(2026, 12, 4, 1, 0, 0, 0, berlin), false},
	} {
		if got := night.Open(test.at); got != test.open {
			t.Errorf("%s: %v", test.at, got)
		}
	}
}

func TestCompare(t *testing.T) {
	ordered := []string{"", "alpha", "0.0.1", "4081.2", "4081.2.1", "4081.10.0-rc1", "4081.10.0-rc2", "4081.10.0", "4230.2.1"}
	for i, a := range ordered {
		for j, b := range ordered {
			if got := Compare(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%q and %q: %d", a, b, got)
			}
		}
	}
	if Compare("4081.2.0", "4081.2") != 0 || Compare("4081.2.0+nightly", "4081.2.0") != 0 {
		t.Error("a zero at the end or a build makes another version")
	}
}

func TestLimits(t *testing.T) {
	for _, bad := range []string{"0", "-1", "0%", "101%", "x", "%", "1.5%", "1000001"} {
		if _, err := ParseLimit(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	for text, want := range map[string]Limit{"": {}, "5": {Count: 5}, "20%": {Percent: 20}} {
		if got, err := ParseLimit(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

// TestWhatNeverHappens tries random situations.
func TestWhatNeverHappens(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	versions := []string{"1.0", "2.0", "2.5", "3.0", "4.0"}
	states := []State{Undefined, Granted, Downloading, Downloaded, Installed, OnHold, Complete, Failed}
	pick := func() string { return versions[random.IntN(len(versions))] }
	granted := 0
	for range 100_000 {
		i := Instance{Version: pick(), State: states[random.IntN(len(states))], Target: pick()}
		g := Group{Target: pick(), Floors: []string{pick(), pick()}, Size: 1 + random.IntN(20), InProgress: random.IntN(6), Begun: random.IntN(6), Done: random.IntN(3), Failed: random.IntN(3)}
		p := &g.Policy
		p.Paused, p.Safe = random.IntN(4) == 0, random.IntN(2) == 0
		p.StopAfter, p.AtOnce.Count, p.PerPeriod.Percent = random.IntN(3), random.IntN(5), random.IntN(50)
		d := Decide(i, g, noon)
		if d.Reason == "" || d.Detail == "" {
			t.Fatalf("%+v %+v: no reason", i, g)
		}
		if (d.Version != "") != (d.Reason == Now || d.Reason == Again) {
			t.Fatalf("%+v %+v: %+v", i, g, d)
		}
		if d.Version == "" {
			continue
		}
		granted++
		limit, limited := p.AtOnce.Of(g.Size)
		switch {
		case Compare(d.Version, i.Version) <= 0, Compare(d.Version, g.Target) > 0:
			t.Fatalf("%+v %+v: goes to %s", i, g, d.Version)
		case p.Paused:
			t.Fatalf("%+v %+v: an update while paused", i, g)
		case d.Reason == Now && limited && g.InProgress >= limit:
			t.Fatalf("%+v %+v: one more than are allowed at once", i, g)
		case d.Reason == Now && p.Safe && g.Done == 0 && g.InProgress > 0:
			t.Fatalf("%+v %+v: a second one in safe mode", i, g)
		}
		for _, f := range g.Floors {
			if Compare(i.Version, f) < 0 && Compare(f, d.Version) < 0 {
				t.Fatalf("%+v %+v: %s skips floor %s", i, g, d.Version, f)
			}
		}
	}
	if granted < 1000 {
		t.Fatalf("only %d of the situations ended with an update", granted)
	}
}
