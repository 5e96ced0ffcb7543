// Package units decides which machine runs which unit: a pure function of what people want, where units are, and which machines there are.
// It answers with tasks, each with its reason. The same answer carried out again changes nothing.
//
// What runs stays where it is as long as it may. Nothing is ever taken from a machine because something is not known.
package units

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"coldrack.dev/internal/contract/validate"
)

// Machine is one on which units can run.
type Machine struct {
	Name   string
	Labels map[string]string
	// Unfit is why the machine takes no unit that it does not have; empty: it takes them.
	Unfit string
	// Leave is why all units have to leave the machine; empty: they stay.
	Leave string
	// Silent is how long nothing was heard of its agent, zero while it is heard of.
	Silent time.Duration
}

// Unit is what a person wants of a unit, and where it is.
type Unit struct {
	Name    string
	Created time.Time
	// Active: it is to be on machines, running or only loaded.
	Active bool
	Global bool
	// Copies of a unit that is not global: on as many machines, or as many instances of a template.
	Copies int
	// Machine that it is bound to, MachineOf a unit whose machine it shares; empty: neither.
	Machine, MachineOf string
	// Conflicts are globs of the names of units that must not be on the same machine.
	Conflicts []string
	// Fits says whether a machine's labels are those that it needs; nil: all are.
	Fits func(labels map[string]string) bool
	// MoveAfter is how long its machine may be silent.
	MoveAfter  time.Duration
	Placements []Placement
}

// Placement is a unit, or an instance of a template, on a machine.
type Placement struct {
	Job, Machine string
	// Leaving: the machine is told to stop it.
	Leaving bool
	// Gone: the machine has said, since it was told, that it does not have it.
	Gone bool
}

// Action of a Task.
type Action string

// Actions.
const (
	Place  Action = "place"  // the machine is to have it
	Leave  Action = "leave"  // the machine is to stop and remove it
	Forget Action = "forget" // it is not there any more, or the machine is given up
)

// Task changes one placement.
type Task struct {
	Action             Action
	Unit, Job, Machine string
	Reason             string
}

// Plan is what follows from all that is known.
type Plan struct {
	Tasks []Task
	// Waiting says by unit why not all of it is placed.
	Waiting map[string]string
	// Again is when the answer may be another without any news, from now; zero: never.
	Again time.Duration
}

// state is a plan in the making.
type state struct {
	Plan
	machines []Machine
	byName   map[string]*Machine
	units    []*unit
	byJob    map[string]*unit // who owns a job's name
	on       map[string][]*placed
	outage   string
}

type unit struct {
	Unit
	depth  int
	jobs   []string // that are wanted; of a global unit, one
	placed []*placed
}

type placed struct {
	Placement
	of  *unit
	now bool // placed in this plan
}

// Decide compares what is wanted with what is. The order of its arguments does not matter.
func Decide(wanted []Unit, machines []Machine) Plan {
	s := &state{Plan: Plan{Waiting: map[string]string{}}, byName: map[string]*Machine{}, byJob: map[string]*unit{}, on: map[string][]*placed{}}
	s.machines = slices.Clone(machines)
	slices.SortFunc(s.machines, func(a, b Machine) int { return strings.Compare(a.Name, b.Name) })
	silent := 0
	for i := range s.machines {
		m := &s.machines[i]
		s.byName[m.Name] = m
		if m.Silent > 0 {
			silent++
		}
	}
	if silent*2 > len(s.machines) {
		s.outage = fmt.Sprintf("%d of %d machines are silent, which looks like a fault of the network or of this server: no unit leaves a silent machine; delete the Machines that are lost", silent, len(s.machines))
	}
	s.take(wanted)
	for _, u := range s.units {
		s.keep(u)
	}
	for _, u := range s.units {
		s.place(u)
	}
	return s.Plan
}

// take orders the units: those that others follow first, then the older ones, who keep their machine.
func (s *state) take(wanted []Unit) {
	for _, w := range wanted {
		u := &unit{Unit: w}
		s.units = append(s.units, u)
	}
	slices.SortFunc(s.units, func(a, b *unit) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Name, b.Name))
	})
	for _, u := range s.units {
		if _, _, _, template := validate.SplitUnitName(u.Name); !template {
			s.byJob[u.Name] = u
		}
	}
	for _, u := range s.units {
		_, _, _, template := validate.SplitUnitName(u.Name)
		switch {
		case !u.Active:
		case !template:
			u.jobs = []string{u.Name}
		default:
			for i := range u.Copies {
				job := validate.InstanceName(u.Name, strconv.Itoa(i+1))
				if s.byJob[job] != nil {
					s.wait(u, fmt.Sprintf("there is a unit %s of its own", job))
					continue
				}
				s.byJob[job] = u
				u.jobs = append(u.jobs, job)
			}
		}
	}
	for _, u := range s.units {
		u.depth = s.depth(u)
	}
	slices.SortStableFunc(s.units, func(a, b *unit) int { return cmp.Compare(a.depth, b.depth) })
}

// depth is how many units it follows, one by the other; more than there are units, where they follow each other in a circle.
func (s *state) depth(u *unit) int {
	n := 0
	for next := u; next.MachineOf != ""; n++ {
		target := s.byJob[next.MachineOf]
		if target == nil {
			return n + 1
		}
		if n > len(s.units) {
			return n
		}
		next = target
	}
	return n
}

func (s *state) wait(u *unit, reason string) {
	if s.Waiting[u.Name] == "" {
		s.Waiting[u.Name] = reason
	}
}

func (s *state) task(a Action, u *unit, job, machine, reason string) {
	s.Tasks = append(s.Tasks, Task{Action: a, Unit: u.Name, Job: job, Machine: machine, Reason: reason})
}

// copies is how many machines a job of the unit is to be on.
func (u *unit) copies(machines int) int {
	_, _, _, template := validate.SplitUnitName(u.Name)
	switch {
	case u.Global:
		return machines
	case template:
		return 1
	}
	return u.Copies
}

// keep decides which placements of a unit stay.
func (s *state) keep(u *unit) {
	left := map[string]int{}
	for _, job := range u.jobs {
		left[job] = u.copies(len(s.machines))
	}
	placements := slices.Clone(u.Placements)
	// Where there are too many, those on machines that are heard of stay.
	silence := func(p Placement) time.Duration {
		if m := s.byName[p.Machine]; m != nil {
			return m.Silent
		}
		return 0
	}
	slices.SortStableFunc(placements, func(a, b Placement) int {
		return cmp.Or(cmp.Compare(silence(a), silence(b)), strings.Compare(a.Job, b.Job), strings.Compare(a.Machine, b.Machine))
	})
	for _, p := range placements {
		m := s.byName[p.Machine]
		if m == nil {
			s.task(Forget, u, p.Job, p.Machine, "there is no machine "+p.Machine+" any more")
			continue
		}
		if p.Leaving {
			switch {
			case p.Gone:
				s.task(Forget, u, p.Job, p.Machine, "machine "+p.Machine+" has stopped it")
				continue
			case m.Silent > 0 && m.Silent >= u.MoveAfter && s.outage == "":
				s.task(Forget, u, p.Job, p.Machine, fmt.Sprintf("machine %s has been silent for %s; it stops the unit when it is back", p.Machine, m.Silent.Round(time.Second)))
				continue
			}
			s.later(m, u)
			s.stays(u, p)
			continue
		}
		reason := s.against(u, p.Job, m, false)
		if reason == "" && left[p.Job] == 0 {
			reason = "it is not wanted there any more"
			if !u.Active {
				reason = "the unit is to be inactive"
			}
		}
		if reason != "" {
			s.task(Leave, u, p.Job, p.Machine, reason)
			p.Leaving = true
			s.stays(u, p)
			continue
		}
		left[p.Job]--
		s.stays(u, p)
	}
}

func (s *state) stays(u *unit, p Placement) {
	is := &placed{Placement: p, of: u}
	u.placed = append(u.placed, is)
	s.on[p.Machine] = append(s.on[p.Machine], is)
}

// later notes when a machine's silence becomes too long for a unit.
func (s *state) later(m *Machine, u *unit) {
	if rest := u.MoveAfter - m.Silent; m.Silent > 0 && rest > 0 && (s.Again == 0 || rest < s.Again) {
		s.Again = rest
	}
}

// against is why a job cannot stay on, or come to, a machine; empty: it can. Only what is known to be so counts. Who comes meets also what is
// about to leave, since that still runs.
func (s *state) against(u *unit, job string, m *Machine, comes bool) string {
	switch {
	case m.Leave != "":
		return m.Leave
	case u.Machine != "" && u.Machine != m.Name:
		return "the unit is bound to machine " + u.Machine
	case u.Fits != nil && !u.Fits(m.Labels):
		return "machine " + m.Name + " has not the labels that the unit needs"
	}
	for _, other := range s.on[m.Name] {
		switch {
		case other.Leaving && !comes:
		case other.Job == job && other.of != u:
			return fmt.Sprintf("machine %s has %s of another unit", m.Name, job)
		case other.Job != job && (matches(u.Conflicts, other.Job) || matches(other.of.Conflicts, job)):
			return fmt.Sprintf("it conflicts with %s on machine %s", other.Job, m.Name)
		}
	}
	if u.MachineOf != "" {
		if target, _ := s.target(u); target != "" && target != m.Name {
			return fmt.Sprintf("%s, whose machine it shares, is on machine %s", u.MachineOf, target)
		}
	}
	return ""
}

func matches(globs []string, job string) bool {
	return slices.ContainsFunc(globs, func(glob string) bool {
		ok, err := path.Match(glob, job)
		return err == nil && ok
	})
}

// target is the machine of the unit that u follows. Where that is not known, why says what is waited for.
func (s *state) target(u *unit) (machine, why string) {
	leader := s.byJob[u.MachineOf]
	switch {
	case leader == nil:
		return "", fmt.Sprintf("waits for %s, whose machine it is to share; there is no such unit, or it is inactive", u.MachineOf)
	case u.depth > len(s.units):
		return "", fmt.Sprintf("%s, whose machine it is to share, follows it in a circle", u.MachineOf)
	case leader.Global || leader.copies(1) > 1:
		return "", fmt.Sprintf("%s, whose machine it is to share, runs on several machines", u.MachineOf)
	}
	for _, p := range leader.placed {
		if p.Job == u.MachineOf && !p.Leaving {
			return p.Machine, ""
		}
	}
	return "", fmt.Sprintf("waits for %s, whose machine it is to share, to have one", u.MachineOf)
}

// place finds machines for what has none, or has one that is lost.
func (s *state) place(u *unit) {
	for _, job := range u.jobs {
		if u.Global {
			s.placeGlobal(u, job)
			continue
		}
		have, leaving := 0, ""
		for _, p := range u.placed {
			if p.Job != job {
				continue
			}
			have++
			if p.Leaving {
				leaving = p.Machine
				// It may stay after all.
				if m := s.byName[p.Machine]; s.against(u, job, m, true) == "" && m.Unfit == "" && s.followed(u, m) == "" && s.standing(u, job) < u.copies(0) {
					p.Leaving = false
					s.task(Place, u, job, p.Machine, "it is wanted again")
				}
				continue
			}
			s.replaceLost(u, p)
		}
		for ; have < u.copies(0); have++ {
			m, why := s.choose(u, job)
			if m == nil {
				s.wait(u, why)
				break
			}
			s.put(u, job, m, fmt.Sprintf("machine %s has the fewest units of those that fit", m.Name))
		}
		if leaving != "" && s.standing(u, job) < u.copies(0) {
			s.wait(u, "waits until machine "+leaving+" has stopped "+job)
		}
	}
}

// standing is on how many machines a job is, and stays.
func (s *state) standing(u *unit, job string) (n int) {
	for _, p := range u.placed {
		if p.Job == job && !p.Leaving {
			n++
		}
	}
	return n
}

func (s *state) put(u *unit, job string, m *Machine, reason string) {
	s.task(Place, u, job, m.Name, reason)
	is := &placed{Placement: Placement{Job: job, Machine: m.Name}, of: u, now: true}
	u.placed = append(u.placed, is)
	s.on[m.Name] = append(s.on[m.Name], is)
}

// replaceLost moves what is on a machine that has been silent for too long, if another one takes it.
func (s *state) replaceLost(u *unit, p *placed) {
	m := s.byName[p.Machine]
	if m.Silent == 0 || p.now {
		return
	}
	if m.Silent < u.MoveAfter {
		s.later(m, u)
		return
	}
	if s.outage != "" {
		s.wait(u, s.outage)
		return
	}
	to, why := s.choose(u, p.Job)
	if to == nil {
		s.wait(u, fmt.Sprintf("machine %s has been silent for too long, and no other takes %s: %s", m.Name, p.Job, why))
		return
	}
	s.task(Forget, u, p.Job, m.Name, fmt.Sprintf("machine %s has been silent for %s; it stops the unit when it is back", m.Name, m.Silent.Round(time.Second)))
	s.on[m.Name] = slices.DeleteFunc(s.on[m.Name], func(other *placed) bool { return other == p })
	reason := fmt.Sprintf("machine %s is lost; machine %s has the fewest units of those that fit", m.Name, to.Name)
	s.task(Place, u, p.Job, to.Name, reason)
	p.Machine, p.now = to.Name, true
	s.on[to.Name] = append(s.on[to.Name], p)
}

func (s *state) placeGlobal(u *unit, job string) {
	for i := range s.machines {
		m := &s.machines[i]
		has := slices.IndexFunc(u.placed, func(p *placed) bool { return p.Job == job && p.Machine == m.Name })
		if has >= 0 && !u.placed[has].Leaving || s.against(u, job, m, true) != "" || m.Unfit != "" {
			continue
		}
		if has >= 0 {
			u.placed[has].Leaving = false
			s.task(Place, u, job, m.Name, "it is wanted again")
			continue
		}
		if m.Silent == 0 {
			s.put(u, job, m, "the unit is global")
		}
	}
}

// followed is why a machine is not the one that u has to share; empty: it is, or u follows nobody.
func (s *state) followed(u *unit, m *Machine) string {
	if u.MachineOf == "" {
		return ""
	}
	target, why := s.target(u)
	if target == m.Name {
		return ""
	}
	return cmp.Or(why, fmt.Sprintf("%s, whose machine it shares, is on machine %s", u.MachineOf, target))
}

// choose finds the machine with the fewest units of those that take a job; of several the first by name. why says what is against all of them.
func (s *state) choose(u *unit, job string) (best *Machine, why string) {
	if u.MachineOf != "" {
		if _, why := s.target(u); why != "" {
			return nil, why
		}
	}
	if u.Machine != "" && s.byName[u.Machine] == nil {
		return nil, fmt.Sprintf("there is no installed machine %s", u.Machine)
	}
	reasons := map[string]int{}
	for i := range s.machines {
		m := &s.machines[i]
		reason := cmp.Or(m.Unfit, s.against(u, job, m, true), s.followed(u, m))
		if reason == "" && m.Silent > 0 {
			reason = "machine " + m.Name + " is silent"
		}
		if reason == "" && slices.ContainsFunc(s.on[m.Name], func(p *placed) bool { return p.Job == job }) {
			reason = "machine " + m.Name + " has it already"
		}
		switch {
		case reason != "":
			reasons[reason]++
		case best == nil || len(s.on[m.Name]) < len(s.on[best.Name]):
			best = m
		}
	}
	if best != nil {
		return best, ""
	}
	if len(s.machines) == 0 {
		return nil, "there is no installed machine"
	}
	var all []string
	for reason := range reasons {
		all = append(all, reason)
	}
	slices.Sort(all)
	const most = 3
	text := strings.Join(all[:min(most, len(all))], "; ")
	if len(all) > most {
		text += fmt.Sprintf("; and %d more reasons", len(all)-most)
	}
	return nil, fmt.Sprintf("no machine takes %s: %s", job, text)
}

// Apply carries tasks out on the placements of a unit.
func Apply(placements []Placement, unit string, tasks []Task) []Placement {
	out := slices.Clone(placements)
	for _, t := range tasks {
		if t.Unit != unit {
			continue
		}
		i := slices.IndexFunc(out, func(p Placement) bool { return p.Job == t.Job && p.Machine == t.Machine })
		switch {
		case t.Action == Place && i < 0:
			out = append(out, Placement{Job: t.Job, Machine: t.Machine})
		case t.Action == Place:
			out[i].Leaving, out[i].Gone = false, false
		case t.Action == Leave && i >= 0:
			out[i].Leaving = true
		case t.Action == Forget && i >= 0:
			out = slices.Delete(out, i, i+1)
		}
	}
	return out
}
