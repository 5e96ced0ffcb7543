package rebootlock

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

var epoch = time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)

// world is some machines and their groups.
type world struct {
	now      time.Time
	groups   []v1alpha1.RebootGroup
	machines []*v1alpha1.Machine
	clusters map[string]string
	again    time.Time
}

// newWorld has machines m0, m1 ... that are Ready and labelled rack=a, and group g that selects them.
func newWorld(machines int) *world {
	w := &world{now: epoch, clusters: map[string]string{}}
	for i := range machines {
		m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m%d", i), Labels: map[string]string{"rack": "a"}, Annotations: map[string]string{}}}
		m.Status.Phase, m.Status.PhaseSince = v1alpha1.PhaseReady, new(metav1.NewTime(epoch.Add(-time.Hour)))
		m.Status.Installed, m.Status.Node = &v1alpha1.InstalledStatus{}, &v1alpha1.NodeStatus{BootID: "boot-1"}
		w.machines = append(w.machines, m)
	}
	w.groups = []v1alpha1.RebootGroup{*groupOf("g")}
	return w
}

func groupOf(name string) *v1alpha1.RebootGroup {
	g := &v1alpha1.RebootGroup{ObjectMeta: metav1.ObjectMeta{Name: name}}
	g.Spec.Selector.MatchLabels = map[string]string{"rack": "a"}
	g.Spec.MaxUnavailable, g.Spec.Automatic = 1, true
	return g
}

func (w *world) g() *v1alpha1.RebootGroup { return &w.groups[0] }

func (w *world) ask(machine int, why string) {
	m := w.machines[machine]
	m.Annotations[v1alpha1.AnnotationReboot] = why
	m.Status.Reboot = v1alpha1.NextRebootRequest(m.Status.Reboot, m.RebootRequest(), m.Status.Node.BootID)
}

func (w *world) require(machines ...int) {
	for _, i := range machines {
		w.machines[i].Status.Node.RebootRequired = "libc6"
	}
}

func (w *world) phase(machine int, phase v1alpha1.MachinePhase) {
	w.machines[machine].Status.Phase, w.machines[machine].Status.PhaseSince = phase, new(metav1.NewTime(w.now))
}

// boots brings a machine back in another boot, in which nothing requires one any more.
func (w *world) boots(machine int) {
	m := w.machines[machine]
	for _, g := range w.groups { // as the machine's reconciler does
		if h := g.Status.Holder(m.Name); h != nil {
			m.Status.Rebooted = &v1alpha1.NodeReboot{At: h.Since, Reason: h.Reason}
		}
	}
	m.Status.Node = &v1alpha1.NodeStatus{BootID: m.Status.Node.BootID + "'"}
	w.phase(machine, v1alpha1.PhaseReady)
}

// decide decides and records, until nothing changes any more.
func (w *world) decide(t *testing.T) {
	t.Helper()
	for range 3 {
		statuses, again := Decide(Facts{Groups: w.groups, Machines: w.machines, ClusterOf: func(m string) string { return w.clusters[m] }, Now: w.now})
		for i := range w.groups {
			g := &w.groups[i]
			g.Status = statuses[g.Name]
		}
		w.again = again
	}
}

func (w *world) holders() string {
	var names []string
	for _, g := range w.groups {
		for _, h := range g.Status.Holders {
			names = append(names, h.Name)
		}
	}
	return strings.Join(names, " ")
}

func (w *world) waits(machine string) string {
	for _, g := range w.groups {
		for _, waiter := range g.Status.Waiting {
			if waiter.Name == machine {
				return waiter.Message
			}
		}
	}
	return ""
}

// Each case says who has the lock in the end, and what a machine that waits says.
func TestWhoMayRebootNow(t *testing.T) {
	for _, test := range []struct {
		name   string
		act    func(*testing.T, *world)
		hold   string
		waiter string
		says   string
	}{
		{"nobody wants one", func(*testing.T, *world) {}, "", "", ""},
		{"one after another, by name", func(_ *testing.T, w *world) { w.require(2, 1) }, "m1", "m2", "waits for m1: 1 of 1 away"},
		{"whom a person asked for comes first", func(_ *testing.T, w *world) { w.require(0); w.ask(2, "firmware") }, "m2", "m0", "waits for m2"},
		{"who waits longest comes first", func(t *testing.T, w *world) {
			w.phase(3, v1alpha1.PhaseLost)
			w.require(2)
			w.decide(t)
			w.now = w.now.Add(time.Minute)
			w.require(1)
			w.phase(3, v1alpha1.PhaseReady)
		}, "m2", "m1", "waits for m2"},
		{"two at a time", func(_ *testing.T, w *world) { w.g().Spec.MaxUnavailable = 2; w.require(0, 1, 2) }, "m0 m1", "m2", "waits for m0, m1: 2 of 2 away"},
		{"the next goes when one is back", func(t *testing.T, w *world) { w.require(0, 1); w.decide(t); w.boots(0) }, "m1", "", ""},
		{"a lost machine counts as away", func(_ *testing.T, w *world) { w.phase(3, v1alpha1.PhaseLost); w.require(0) }, "", "m0", "waits for m3: 1 of 1 away"},
		{"a machine that is being installed counts as away", func(_ *testing.T, w *world) {
			w.phase(3, v1alpha1.PhaseInstalling)
			w.machines[3].Status.Installed = nil
			w.require(0)
		}, "", "m0", "waits for m3"},
		{"one that waits for approval is none of the group", func(_ *testing.T, w *world) {
			w.phase(3, v1alpha1.PhaseWaiting)
			w.machines[3].Status.Installed = nil
			w.require(0)
		}, "m0", "", ""},
		{"one that does not answer is not told", func(_ *testing.T, w *world) { w.require(3); w.phase(3, v1alpha1.PhaseLost) }, "", "m3", "is Lost, and is rebooted once it is Ready"},
		{"one that is to be reinstalled is", func(_ *testing.T, w *world) {
			w.require(0)
			w.machines[0].Spec.Intent = &v1alpha1.Intent{Action: v1alpha1.ActionReinstall, ID: "i"}
		}, "", "m0", "its reinstall comes first"},
		{"by the operating system, where that is not enough", func(_ *testing.T, w *world) { w.g().Spec.Automatic = false; w.require(0) }, "", "m0", "nobody has asked for it"},
		{"by a person there", func(_ *testing.T, w *world) { w.g().Spec.Automatic = false; w.ask(0, "firmware") }, "m0", "", ""},
		{"again after the reboot", func(t *testing.T, w *world) { w.require(0); w.decide(t); w.boots(0); w.require(0) }, "", "m0", "was rebooted for the same reason"},
		{"again after a day", func(t *testing.T, w *world) {
			w.require(0)
			w.decide(t)
			w.boots(0)
			w.require(0)
			w.decide(t)
			w.now = w.now.Add(25 * time.Hour)
		}, "m0", "", ""},
		{"again by a person", func(t *testing.T, w *world) {
			w.require(0)
			w.decide(t)
			w.boots(0)
			w.require(0)
			w.ask(0, "once more")
		}, "m0", "", ""},
		{"one whose request was withdrawn keeps the lock for a moment", func(t *testing.T, w *world) {
			w.ask(0, "firmware")
			w.decide(t)
			w.ask(0, "")
			w.require(1)
			w.decide(t)
			w.now = w.now.Add(time.Minute)
		}, "m0", "m1", "waits for m0"},
		{"and then gives it back", func(t *testing.T, w *world) {
			w.ask(0, "firmware")
			w.decide(t)
			w.ask(0, "")
			w.require(1)
			w.decide(t)
			w.now = w.now.Add(2 * time.Minute)
		}, "m1", "", ""},
		{"one that reboots although its request was withdrawn keeps it until it is back", func(t *testing.T, w *world) {
			w.ask(0, "firmware")
			w.decide(t)
			w.ask(0, "")
			w.decide(t)
			w.phase(0, v1alpha1.PhaseLost)
			w.require(1)
			w.now = w.now.Add(10 * time.Minute)
		}, "m0", "m1", "waits for m0"},
		{"one that does not come back stops the others", func(t *testing.T, w *world) {
			w.g().Spec.MaxUnavailable = 2
			w.require(0)
			w.decide(t)
			w.phase(0, v1alpha1.PhaseLost)
			w.now = w.now.Add(30 * time.Minute)
			w.require(1)
		}, "m0", "m1", "nobody goes: m0 was to be back at 2026-11-30T09:30:00Z: it is Lost"},
		{"until it comes back after all", func(t *testing.T, w *world) {
			w.require(0)
			w.decide(t)
			w.phase(0, v1alpha1.PhaseLost)
			w.now = w.now.Add(30 * time.Minute)
			w.require(1)
			w.decide(t)
			w.boots(0)
		}, "m1", "", ""},
		{"or is released", func(t *testing.T, w *world) {
			w.require(0)
			w.decide(t)
			w.now = w.now.Add(30 * time.Minute)
			w.require(1)
			w.machines[0].Status.Installed = nil
			w.phase(0, v1alpha1.PhaseReleased)
		}, "m1", "", ""},
		{"or is deleted", func(t *testing.T, w *world) {
			w.require(0)
			w.decide(t)
			w.now = w.now.Add(30 * time.Minute)
			w.require(1)
			w.machines = w.machines[1:]
		}, "m1", "", ""},
		{"one that does not come back is ignored, where the group says so", func(t *testing.T, w *world) {
			w.g().Spec.WhenOverdue = v1alpha1.OverdueIgnore
			w.require(0)
			w.decide(t)
			w.phase(0, v1alpha1.PhaseLost)
			w.now = w.now.Add(30 * time.Minute)
			w.require(1)
		}, "m0 m1", "", ""},
		{"one that was never told is tried again after the others there", func(t *testing.T, w *world) {
			w.g().Spec.WhenOverdue = v1alpha1.OverdueIgnore
			w.require(0)
			w.decide(t)
			w.require(1)
			w.decide(t)
			w.now = w.now.Add(32 * time.Minute)
		}, "m1", "m0", "waits for m1"},
		{"a lost machine is ignored there, too, after that time", func(t *testing.T, w *world) {
			w.g().Spec.WhenOverdue = v1alpha1.OverdueIgnore
			w.phase(3, v1alpha1.PhaseLost)
			w.require(0)
			w.decide(t)
			w.now = w.now.Add(30 * time.Minute)
		}, "m0", "", ""},
		{"outside of the window", func(_ *testing.T, w *world) {
			w.g().Spec.MaintenanceWindows = []v1alpha1.MaintenanceWindow{{From: "22:00", To: "05:00"}}
			w.require(0)
		}, "", "m0", "waits for the next maintenance window, which opens 2026-11-30T22:00:00Z"},
		{"inside of it", func(t *testing.T, w *world) {
			w.g().Spec.MaintenanceWindows = []v1alpha1.MaintenanceWindow{{From: "22:00", To: "05:00"}}
			w.require(0, 1)
			w.decide(t)
			w.now = w.again
		}, "m0", "m1", "waits for m0"},
		{"a window that cannot be read is not taken for none", func(_ *testing.T, w *world) {
			w.g().Spec.MaintenanceWindows = []v1alpha1.MaintenanceWindow{{From: "22:00"}}
			w.require(0)
		}, "", "m0", "cannot be carried out"},
		{"a group that is paused", func(_ *testing.T, w *world) { w.g().Spec.Paused = true; w.ask(0, "firmware") }, "", "m0", "is paused"},
		{"a machine of two groups", func(_ *testing.T, w *world) { w.groups = append(w.groups, *groupOf("h")); w.ask(0, "firmware") }, "", "m0", "RebootGroups g, h all select it"},
		{"a machine of a cluster", func(_ *testing.T, w *world) {
			w.clusters["m0"] = "prod"
			w.require(0)
			w.phase(0, v1alpha1.PhaseLost)
			w.require(1)
		}, "m1", "", ""},
		{"a machine whose label was taken off while it is away", func(t *testing.T, w *world) {
			w.require(0, 1)
			w.decide(t)
			w.machines[0].Labels = nil
		}, "m0", "m1", "waits for m0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(4)
			test.act(t, w)
			w.decide(t)
			if got := w.holders(); got != test.hold {
				t.Errorf("the lock has %q, want %q; %+v", got, test.hold, w.g().Status)
			}
			if got := w.waits(test.waiter); test.waiter != "" && !strings.Contains(got, test.says) || test.waiter != "" && got == "" {
				t.Errorf("%s says %q, want %q in it", test.waiter, got, test.says)
			}
		})
	}
}

// A server that knows nothing yet lets nobody go; then only a holder may end only the boot that it had.
func TestTheTurnOfAMachine(t *testing.T) {
	w := newWorld(2)
	set, m := &Set{}, w.machines[0]
	turn := func(what, boot string, bound bool) {
		t.Helper()
		if got, _, is := set.Turn(m); got != boot || is != bound {
			t.Errorf("%s: boot %q, bound %t; want %q, %t", what, got, is, boot, bound)
		}
	}
	turn("before anything is known", "", true)
	set.Known()
	turn("a machine of no group", "", false)
	set.Put(w.g().DeepCopy())
	turn("a machine of a group", "", true)
	w.require(0)
	w.decide(t)
	set.Put(w.g().DeepCopy())
	turn("the holder of the lock", "boot-1", true)
	w.now = w.now.Add(30 * time.Minute)
	w.decide(t)
	set.Put(w.g().DeepCopy())
	turn("one that is late", "boot-1", true)
	w.g().Spec.WhenOverdue = v1alpha1.OverdueIgnore
	set.Put(w.g().DeepCopy())
	turn("one that is late, where the others do not wait", "", true)
	set.Remove("g")
	turn("of a group that was deleted", "", false)
}

// Whatever breaks, comes back, is asked for and withdrawn: no lock is granted while as many machines are away as may be, and in the end each
// that wants a reboot has had it.
func TestTheBudgetIsKeptAndEverybodyGetsATurn(t *testing.T) {
	granted := 0
	for seed := range 100 {
		r := rand.New(rand.NewPCG(uint64(seed), 11))
		w := newWorld(3 + r.IntN(10))
		w.g().Spec.MaxUnavailable = int32(1 + r.IntN(3))
		if r.IntN(3) == 0 {
			w.g().Spec.MaintenanceWindows = []v1alpha1.MaintenanceWindow{{From: "10:00", To: "11:00"}}
		}
		step := func(calm bool) {
			w.now = w.now.Add(time.Duration(1+r.IntN(120)) * time.Second)
			for i, m := range w.machines {
				held := w.g().Status.Holder(m.Name) != nil
				switch {
				case m.Status.Phase != v1alpha1.PhaseReady && (calm || r.IntN(4) == 0):
					w.boots(i)
				case held && m.Status.Phase == v1alpha1.PhaseReady && r.IntN(2) == 0:
					w.phase(i, v1alpha1.PhaseLost) // it does as it was told
				case calm:
				case r.IntN(30) == 0:
					w.phase(i, v1alpha1.PhaseLost)
				case r.IntN(20) == 0:
					w.require(i)
				case r.IntN(20) == 0:
					w.ask(i, fmt.Sprint("request ", r.IntN(5)))
				case r.IntN(20) == 0:
					w.ask(i, "")
				}
			}
			before := w.g().Status.DeepCopy()
			w.decide(t)
			is := &w.g().Status
			away := map[string]bool{}
			for _, m := range w.machines {
				if m.Status.Phase != v1alpha1.PhaseReady {
					away[m.Name] = true
				}
			}
			fresh := 0
			for _, h := range is.Holders {
				away[h.Name] = true
				if old := before.Holder(h.Name); old == nil || !old.Since.Equal(&h.Since) {
					fresh++
				}
			}
			granted += fresh
			if fresh > 0 && len(away) > int(w.g().Spec.MaxUnavailable) {
				t.Fatalf("seed %d: %v are away, and %d of them were just let go: %+v", seed, away, fresh, is)
			}
			if int(is.Away) != len(away) {
				t.Fatalf("seed %d: it counts %d away, and %v are", seed, is.Away, away)
			}
		}
		for range 60 {
			step(false)
		}
		for range 400 {
			step(true)
			if len(w.g().Status.Holders) == 0 && !slices.ContainsFunc(w.machines, func(m *v1alpha1.Machine) bool { why, _ := m.WantsReboot(); return why != "" }) {
				break
			}
			w.now = w.now.Add(10 * time.Minute)
		}
		for _, waiter := range w.g().Status.Waiting {
			if !strings.Contains(waiter.Message, "for the same reason") {
				t.Fatalf("seed %d: %s never got its turn: %s; holders %+v", seed, waiter.Name, waiter.Message, w.g().Status.Holders)
			}
		}
	}
	if granted < 200 {
		t.Errorf("only %d locks were granted: the test looks at too little", granted)
	}
}
