package units

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var day = time.Date(2026, 12, 1, 8, 0, 0, 0, time.UTC)

func at(minute int) time.Time { return day.Add(time.Duration(minute) * time.Minute) }

func machines(names ...string) (all []Machine) {
	for _, name := range names {
		all = append(all, Machine{Name: name})
	}
	return all
}

func silent(all []Machine, d time.Duration, names ...string) []Machine {
	all = slices.Clone(all)
	for i := range all {
		if slices.Contains(names, all[i].Name) {
			all[i].Silent = d
		}
	}
	return all
}

func one(name string, change ...func(*Unit)) Unit {
	u := Unit{Name: name, Created: day, Active: true, Copies: 1, MoveAfter: 5 * time.Minute}
	for _, c := range change {
		c(&u)
	}
	return u
}

func on(placements ...string) func(*Unit) {
	return func(u *Unit) {
		for _, p := range placements {
			machine, job, named := strings.Cut(p, "/")
			if !named {
				job = u.Name
			}
			u.Placements = append(u.Placements, Placement{Job: job, Machine: machine})
		}
	}
}

func leaving(u *Unit) {
	for i := range u.Placements {
		u.Placements[i].Leaving = true
	}
}

func gone(u *Unit) {
	for i := range u.Placements {
		u.Placements[i].Leaving, u.Placements[i].Gone = true, true
	}
}

func needs(key, value string) func(*Unit) {
	return func(u *Unit) { u.Fits = func(labels map[string]string) bool { return labels[key] == value } }
}

func TestDecide(t *testing.T) {
	abc := machines("a", "b", "c")
	conflicts := func(globs ...string) func(*Unit) { return func(u *Unit) { u.Conflicts = globs } }
	of := func(name string) func(*Unit) { return func(u *Unit) { u.MachineOf = name } }
	younger := func(u *Unit) { u.Created = at(1) }
	copies := func(n int) func(*Unit) { return func(u *Unit) { u.Copies = n } }
	global := func(u *Unit) { u.Global, u.Copies = true, 0 }
	inactive := func(u *Unit) { u.Active = false }
	bound := func(m string) func(*Unit) { return func(u *Unit) { u.Machine = m } }
	ssd := machines("a", "b")
	ssd[1].Labels = map[string]string{"disk": "ssd"}
	drained := machines("a", "b")
	drained[0].Leave = "machine a is to be installed again"
	unfit := machines("a", "b")
	unfit[0].Unfit = "machine a is not Ready"
	for _, test := range []struct {
		name     string
		units    []Unit
		machines []Machine
		tasks    string // "ACTION JOB MACHINE" by line
		waiting  string // part of what the first unit waits for
		again    time.Duration
	}{
		{"the first machine by name takes the first unit", []Unit{one("web.service")}, abc, "place web.service a", "", 0},
		{"the least loaded machine takes the next", []Unit{one("web.service", on("a")), one("db.service", younger)}, abc, "place db.service b", "", 0},
		{"what runs stays, though another machine has less", []Unit{one("x.service", on("a")), one("y.service", on("a"))}, abc, "", "", 0},
		{"an inactive unit leaves", []Unit{one("web.service", on("a"), inactive)}, abc, "leave web.service a", "", 0},
		{"it is waited for until it has left", []Unit{one("web.service", on("a"), inactive, leaving)}, abc, "", "", 0},
		{"and forgotten then", []Unit{one("web.service", on("a"), inactive, gone)}, abc, "forget web.service a", "", 0},
		{"a second one does not begin before the first has ended", []Unit{one("web.service", on("a"), leaving, bound("b"))}, abc, "", "waits until machine a has stopped", 0},
		{"it is wanted again before it has left", []Unit{one("web.service", on("b"), leaving)}, abc, "place web.service b", "", 0},
		{"three copies are on three machines", []Unit{one("web.service", copies(3))}, abc, "place web.service a\nplace web.service b\nplace web.service c", "", 0},
		{"more copies than machines wait", []Unit{one("web.service", copies(4), on("a", "b", "c"))}, abc, "", "has it already", 0},
		{"fewer copies leave", []Unit{one("web.service", copies(1), on("a", "b"))}, abc, "leave web.service b", "", 0},
		{"of too many copies the one on a silent machine leaves", []Unit{one("web.service", copies(1), on("a", "b"))}, silent(abc, 2*time.Minute, "a"), "leave web.service a", "", 0},
		{"instances of a template", []Unit{one("web@.service", copies(2))}, abc, "place web@1.service a\nplace web@2.service b", "", 0},
		{"an instance of its own goes before the template's", []Unit{one("web@.service", copies(2)), one("web@1.service", younger)}, abc, "place web@2.service a\nplace web@1.service b", "unit web@1.service of its own", 0},
		{"instances that conflict with each other", []Unit{one("web@.service", copies(3), conflicts("web@*.service"))}, machines("a", "b"), "place web@1.service a\nplace web@2.service b", "conflicts with", 0},
		{"a global unit is everywhere", []Unit{one("exporter.service", global, on("a"))}, abc, "place exporter.service b\nplace exporter.service c", "", 0},
		{"a global unit where the labels are", []Unit{one("exporter.service", global, needs("disk", "ssd"))}, ssd, "place exporter.service b", "", 0},
		{"a conflict of one side", []Unit{one("a.service", on("a"), conflicts("b*")), one("b.service", younger)}, machines("a", "b"), "place b.service b", "", 0},
		{"a conflict of the other side", []Unit{one("a.service", on("a")), one("b.service", younger, conflicts("a*"))}, machines("a", "b"), "place b.service b", "", 0},
		{"a new conflict moves the younger one, when it has left", []Unit{one("a.service", on("a")), one("b.service", on("a"), younger, conflicts("a*"))}, machines("a", "b"), "leave b.service a", "", 0},
		{"who is about to leave drives nobody away", []Unit{one("a.service", on("a"), inactive, leaving), one("b.service", on("a"), younger, conflicts("a*"))}, abc, "", "", 0},
		{"but still keeps others from coming", []Unit{one("a.service", on("a"), inactive, leaving), one("b.service", younger, conflicts("a*"))}, machines("a"), "", "", 0},
		{"labels", []Unit{one("web.service", needs("disk", "ssd"))}, ssd, "place web.service b", "", 0},
		{"labels that nobody has", []Unit{one("web.service", needs("disk", "tape"))}, ssd, "", "has not the labels", 0},
		{"labels that were taken away", []Unit{one("web.service", needs("disk", "ssd"), on("a"))}, ssd, "leave web.service a", "waits until machine a", 0},
		{"a machine that is to be installed again is left", []Unit{one("web.service", on("a"))}, drained, "leave web.service a", "waits until machine a", 0},
		{"a machine that takes nothing new keeps what it has", []Unit{one("web.service", on("a")), one("x.service", younger)}, unfit, "place x.service b", "", 0},
		{"a follower goes to the machine of the other", []Unit{one("log.service", of("web.service")), one("web.service", younger, on("b"))}, abc, "place log.service b", "", 0},
		{"a follower goes with the other in one step", []Unit{one("log.service", of("web.service")), one("web.service", younger)}, abc, "place web.service a\nplace log.service a", "", 0},
		{"a follower moves to the other", []Unit{one("log.service", of("web.service"), on("a")), one("web.service", on("b"))}, abc, "leave log.service a", "waits until machine a", 0},
		{"a follower stays while the other is nowhere", []Unit{one("log.service", of("web.service"), on("a")), one("web.service", inactive)}, abc, "", "", 0},
		{"a follower of nobody waits", []Unit{one("log.service", of("web.service"))}, abc, "", "no such unit", 0},
		{"a follower of many waits", []Unit{one("log.service", of("web.service")), one("web.service", copies(2), on("a", "b"))}, abc, "", "several machines", 0},
		{"a circle waits", []Unit{one("x.service", of("y.service")), one("y.service", of("x.service"))}, abc, "", "in a circle", 0},
		{"bound to a machine", []Unit{one("web.service", bound("c"))}, abc, "place web.service c", "", 0},
		{"bound to a machine that is not there", []Unit{one("web.service", bound("z"))}, abc, "", "no installed machine z", 0},
		{"no machines", []Unit{one("web.service")}, nil, "", "no installed machine", 0},
		{"a machine that was deleted", []Unit{one("web.service", on("z"))}, abc, "forget web.service z\nplace web.service a", "", 0},
		{"a machine that is silent for a short time", []Unit{one("web.service", on("a"))}, silent(abc, 2*time.Minute, "a"), "", "", 3 * time.Minute},
		{"a lost machine", []Unit{one("web.service", on("a"))}, silent(abc, 5*time.Minute, "a"), "forget web.service a\nplace web.service b", "", 0},
		{"a lost machine, and a follower", []Unit{one("log.service", on("a"), of("web.service")), one("web.service", on("a"))}, silent(abc, time.Hour, "a"),
			"forget web.service a\nplace web.service b\nforget log.service a\nplace log.service b", "", 0},
		{"a lost machine, and nobody to take it", []Unit{one("web.service", on("b"), needs("disk", "ssd"))}, silent(ssd, time.Hour, "b"), "", "no other takes", 0},
		{"most machines are silent: the fault is elsewhere", []Unit{one("web.service", on("a"))}, silent(abc, time.Hour, "a", "b"), "", "2 of 3 machines are silent", 0},
		{"a global unit is not moved", []Unit{one("exporter.service", global, on("a", "b", "c"))}, silent(abc, time.Hour, "a"), "", "", 0},
		{"it was to leave a machine that was lost", []Unit{one("web.service", on("a"), leaving, bound("b"))}, silent(abc, time.Hour, "a"), "forget web.service a\nplace web.service b", "", 0},
		{"silent machines take nothing", []Unit{one("web.service")}, silent(abc, time.Second, "a"), "place web.service b", "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			plan := Decide(test.units, test.machines)
			var got []string
			for _, task := range plan.Tasks {
				got = append(got, fmt.Sprintf("%s %s %s", task.Action, task.Job, task.Machine))
				if task.Reason == "" {
					t.Errorf("no reason: %+v", task)
				}
			}
			if text := strings.Join(got, "\n"); text != test.tasks {
				t.Errorf("tasks:\n%s\nwant:\n%s", text, test.tasks)
			}
			if is := plan.Waiting[test.units[0].Name]; (is == "") != (test.waiting == "") || !strings.Contains(is, test.waiting) {
				t.Errorf("waits: %q, want %q", is, test.waiting)
			}
			if plan.Again != test.again {
				t.Errorf("again in %s, want %s", plan.Again, test.again)
			}
		})
	}
}

// world is a made-up fleet in which plans are carried out.
type world struct {
	units    []Unit
	machines []Machine
}

func random(r *rand.Rand) world {
	var w world
	for i := range 1 + r.IntN(8) {
		w.machines = append(w.machines, Machine{Name: fmt.Sprintf("m%d", i), Labels: map[string]string{"zone": fmt.Sprint(r.IntN(2))}})
	}
	for i := range r.IntN(12) {
		u := one(fmt.Sprintf("u%d.service", i), func(u *Unit) { u.Created = at(r.IntN(3)) })
		switch r.IntN(8) {
		case 0:
			u.Global, u.Copies = true, 0
		case 1:
			u.Copies = r.IntN(4)
		case 2:
			u.Name, u.Copies = fmt.Sprintf("u%d@.service", i), r.IntN(5)
		case 3:
			u.MachineOf = fmt.Sprintf("u%d.service", r.IntN(12))
		case 4:
			u.Machine = fmt.Sprintf("m%d", r.IntN(9))
		}
		if r.IntN(3) == 0 {
			u.Conflicts = []string{[]string{"u1*", "u[2-4].service", fmt.Sprintf("u%d*", i), "*"}[r.IntN(4)]}
		}
		if r.IntN(3) == 0 {
			needs("zone", fmt.Sprint(r.IntN(2)))(&u)
		}
		w.units = append(w.units, u)
	}
	return w
}

// step carries out one plan; machines that are heard of stop what they were told to.
func (w *world) step(t *testing.T) []Task {
	t.Helper()
	plan := Decide(w.units, w.machines)
	backwards := slices.Clone(w.units)
	slices.Reverse(backwards)
	again := Decide(backwards, w.machines)
	if !maps.Equal(plan.Waiting, again.Waiting) || !slices.Equal(plan.Tasks, again.Tasks) {
		t.Fatalf("the order of units matters: %v %v", plan.Tasks, again.Tasks)
	}
	for i := range w.units {
		w.units[i].Placements = Apply(w.units[i].Placements, w.units[i].Name, plan.Tasks)
	}
	w.check(t)
	for i := range w.units {
		for j := range w.units[i].Placements {
			p := &w.units[i].Placements[j]
			p.Gone = p.Leaving && w.machine(p.Machine).Silent == 0
		}
	}
	return plan.Tasks
}

func (w *world) machine(name string) Machine {
	i := slices.IndexFunc(w.machines, func(m Machine) bool { return m.Name == name })
	if i < 0 {
		return Machine{}
	}
	return w.machines[i]
}

// check: no two that conflict are on a machine, unless one of them is about to leave it.
func (w *world) check(t *testing.T) {
	t.Helper()
	type where struct {
		Placement
		u *Unit
	}
	on := map[string][]where{}
	for i := range w.units {
		for _, p := range w.units[i].Placements {
			on[p.Machine] = append(on[p.Machine], where{p, &w.units[i]})
		}
	}
	for machine, all := range on {
		for _, a := range all {
			for _, b := range all {
				if a.Job != b.Job && !a.Leaving && !b.Leaving && matches(a.u.Conflicts, b.Job) {
					t.Fatalf("%s conflicts with %s on %s", a.Job, b.Job, machine)
				}
			}
			if !a.Leaving && a.u.Fits != nil && !a.u.Fits(w.machine(machine).Labels) {
				t.Fatalf("%s is on %s, which has not its labels", a.Job, machine)
			}
		}
	}
}

func (w *world) settle(t *testing.T) (all []Task) {
	t.Helper()
	for range 60 {
		tasks := w.step(t)
		if all = append(all, tasks...); len(tasks) == 0 {
			return all
		}
	}
	t.Fatalf("no end of tasks; the last: %+v", w.step(t))
	return nil
}

// TestDecideProperties: whatever happens, plans come to an end, conflicts are never violated, and what runs and may stay is not touched.
func TestDecideProperties(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := random(r)
		for _, task := range w.settle(t) {
			if task.Action != Place {
				t.Fatalf("seed %d: nothing ran yet, and %+v", seed, task)
			}
		}
		for range 4 {
			switch r.IntN(5) {
			case 0: // a new machine changes nothing for what runs
				w.machines = append(w.machines, Machine{Name: fmt.Sprintf("n%d", len(w.machines)), Labels: map[string]string{"zone": fmt.Sprint(r.IntN(2))}})
				for _, task := range w.settle(t) {
					if task.Action != Place && w.unit(task.Unit).MachineOf == "" && w.machine(task.Machine).Silent == 0 {
						t.Fatalf("seed %d: a new machine, and %+v", seed, task)
					}
				}
			case 1: // a lost machine takes no other's units along
				lost := &w.machines[r.IntN(len(w.machines))]
				lost.Silent = time.Hour
				for _, task := range w.settle(t) {
					if task.Action != Place && task.Machine != lost.Name && w.unit(task.Unit).MachineOf == "" && w.machine(task.Machine).Silent == 0 {
						t.Fatalf("seed %d: machine %s was lost, and %+v", seed, lost.Name, task)
					}
				}
			case 2:
				for i := range w.machines {
					w.machines[i].Silent = 0
				}
				w.settle(t)
			case 3: // conflicts and labels that change
				if len(w.units) > 0 {
					u := &w.units[r.IntN(len(w.units))]
					u.Conflicts = []string{fmt.Sprintf("u%d*", r.IntN(9))}
					w.machines[r.IntN(len(w.machines))].Labels = map[string]string{"zone": "2"}
				}
				w.settle(t)
			case 4:
				if len(w.units) > 0 {
					u := &w.units[r.IntN(len(w.units))]
					u.Active = !u.Active
				}
				w.settle(t)
			}
		}
	}
}

func (w *world) unit(name string) Unit {
	return w.units[slices.IndexFunc(w.units, func(u Unit) bool { return u.Name == name })]
}

// TestDecideSpreads: machines that are alike end up with as many units, but for one.
func TestDecideSpreads(t *testing.T) {
	w := world{machines: machines("a", "b", "c", "d", "e")}
	for i := range 33 {
		w.units = append(w.units, one(fmt.Sprintf("u%02d.service", i)))
	}
	w.settle(t)
	load := map[string]int{}
	for _, u := range w.units {
		load[u.Placements[0].Machine]++
	}
	if least, most := slices.Min(slices.Collect(maps.Values(load))), slices.Max(slices.Collect(maps.Values(load))); len(load) != 5 || most-least > 1 {
		t.Errorf("units by machine: %v", load)
	}
}
