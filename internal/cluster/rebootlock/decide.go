// Package rebootlock decides which machines that are in no cluster may reboot now. Nodes of a cluster are decided about by package planner.
//
// Decide is pure: what is recorded of the RebootGroups, the machines and the time go in, and the new records come out. A lock that is
// granted counts once it is recorded; Set tells agents of recorded locks only. Whoever decides after a restart finds them there.
package rebootlock

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/planner"
)

const (
	// graceFor is how long a lock is kept that is not to be used any more: the machine may have been told to reboot a moment before.
	graceFor = 2 * time.Minute
	// rebootAgain is how long a machine is not rebooted again for the same reason, unless a person asks.
	rebootAgain = 24 * time.Hour
	// maxWaiting is how many that wait are recorded.
	maxWaiting = 100
)

// Facts are what is decided by.
type Facts struct {
	Groups   []v1alpha1.RebootGroup
	Machines []*v1alpha1.Machine
	// ClusterOf is the cluster that has a machine; empty: none.
	ClusterOf func(machine string) string
	Now       time.Time
}

// Decide returns what is to be recorded of each group, by its name, and when to decide again without anything having happened (zero: never).
func Decide(f Facts) (statuses map[string]v1alpha1.RebootGroupStatus, again time.Time) {
	d := &decision{Facts: f, at: metav1.NewTime(f.Now.UTC().Truncate(time.Second)), machines: map[string]*v1alpha1.Machine{}, groupsOf: map[string][]string{}, holds: map[string]string{}}
	for _, m := range f.Machines {
		d.machines[m.Name] = m
	}
	groups := slices.Clone(f.Groups)
	slices.SortFunc(groups, func(a, b v1alpha1.RebootGroup) int { return cmp.Compare(a.Name, b.Name) })
	for i := range groups {
		for _, h := range groups[i].Status.Holders {
			d.holds[h.Name] = groups[i].Name
		}
		selector, err := metav1.LabelSelectorAsSelector(&groups[i].Spec.Selector)
		if err != nil {
			continue // its group says so below
		}
		for _, m := range f.Machines {
			if d.ClusterOf(m.Name) == "" && selector.Matches(labels.Set(m.SelectorLabels())) {
				d.groupsOf[m.Name] = append(d.groupsOf[m.Name], groups[i].Name)
			}
		}
	}
	statuses = map[string]v1alpha1.RebootGroupStatus{}
	for i := range groups {
		statuses[groups[i].Name] = d.group(&groups[i])
	}
	return statuses, d.again
}

// decision is one look at all groups.
type decision struct {
	Facts
	at       metav1.Time
	machines map[string]*v1alpha1.Machine
	// groupsOf are the groups that select a machine, and holds is the group whose lock it has.
	groupsOf map[string][]string
	holds    map[string]string
	again    time.Time
}

func (d *decision) lookAgain(at time.Time) {
	if at.After(d.Now) && (d.again.IsZero() || at.Before(d.again)) {
		d.again = at
	}
}

// installed says whether the others of a group count on a machine.
func installed(m *v1alpha1.Machine) bool {
	if m.Status.Installed != nil {
		return true
	}
	switch m.Status.Phase {
	case v1alpha1.PhaseInstalling, v1alpha1.PhaseRebooting, v1alpha1.PhaseFailed:
		return true
	}
	return false
}

// candidate is a machine that wants a reboot and is not hindered by itself.
type candidate struct {
	m      *v1alpha1.Machine
	why    string
	asked  bool
	since  metav1.Time
	hinder string
}

func (d *decision) group(g *v1alpha1.RebootGroup) v1alpha1.RebootGroupStatus {
	was := &g.Status
	s := v1alpha1.RebootGroupStatus{ObservedGeneration: g.Generation, History: slices.Clone(was.History)}
	var away []string
	overdue := ""
	for _, h := range was.Holders {
		outcome := d.goOn(g, &h)
		if outcome != "" {
			s.Remember(v1alpha1.RebootRecord{Name: h.Name, Reason: h.Reason, Since: h.Since, EndedAt: d.at, Outcome: outcome})
			delete(d.holds, h.Name)
			continue
		}
		s.Holders = append(s.Holders, h)
		switch {
		case !h.Overdue:
			away = append(away, h.Name)
		case !ignores(g):
			away = append(away, h.Name)
			overdue = cmp.Or(overdue, fmt.Sprintf("%s was to be back at %s: %s", h.Name, h.Until.UTC().Format(time.RFC3339), h.Message))
		}
	}
	var waiting []candidate
	for _, m := range d.Machines {
		groups := d.groupsOf[m.Name]
		if !slices.Contains(groups, g.Name) || !installed(m) {
			continue
		}
		s.Machines++
		if was.Holder(m.Name) != nil && s.Holder(m.Name) != nil {
			continue
		}
		if m.Status.Phase != v1alpha1.PhaseReady && d.counts(g, m) {
			away = append(away, m.Name)
		}
		if c, wants := d.wants(g, m, groups); wants {
			waiting = append(waiting, c)
		}
	}
	slices.SortStableFunc(waiting, func(a, b candidate) int {
		return cmp.Or(first(a.hinder == "", b.hinder == ""), first(a.asked, b.asked), a.since.Compare(b.since.Time), cmp.Compare(a.m.Name, b.m.Name))
	})
	windows, problem := members.Windows(g.Spec.MaintenanceWindows)
	if _, err := g.Selects(&v1alpha1.Machine{}); err != nil {
		problem = err
	}
	next, open := planner.Open(windows, d.Now)
	limit := int(max(g.Spec.MaxUnavailable, 1))
	for _, c := range waiting {
		text := ""
		switch {
		case c.hinder != "":
			text = c.hinder
		case problem != nil:
			text = "RebootGroup " + g.Name + " cannot be carried out: " + problem.Error()
		case g.Spec.Paused:
			text = "RebootGroup " + g.Name + " is paused"
		case overdue != "":
			text = "nobody goes: " + overdue
		case !open:
			text = "waits for the next maintenance window"
			if !next.IsZero() {
				text += ", which opens " + next.UTC().Format(time.RFC3339)
				s.NextWindow = new(metav1.NewTime(next))
				d.lookAgain(next)
			}
		case len(away) >= limit:
			text = fmt.Sprintf("waits for %s: %d of %d away", few(away), len(away), limit)
		default:
			h := v1alpha1.RebootHolder{Name: c.m.Name, Reason: c.why, Since: d.at, Until: metav1.NewTime(d.at.Add(g.TTL())), BootID: c.m.Status.Node.BootID, Message: "is told to reboot with its next report"}
			d.lookAgain(h.Until.Time)
			s.Holders = append(s.Holders, h)
			d.holds[c.m.Name] = g.Name
			away = append(away, c.m.Name)
			continue
		}
		if c.hinder == "" {
			s.Message = cmp.Or(s.Message, text)
		}
		s.WaitingCount++
		if len(s.Waiting) < maxWaiting {
			s.Waiting = append(s.Waiting, v1alpha1.RebootWaiter{Name: c.m.Name, Reason: c.why, Since: c.since, Message: text})
		}
	}
	if problem != nil {
		s.Message = problem.Error()
	} else if overdue != "" {
		s.Message = overdue
	}
	s.Away = int32(len(away))
	return s
}

// ignores says that a machine which is not back in time no longer counts as away.
func ignores(g *v1alpha1.RebootGroup) bool { return g.Spec.WhenOverdue == v1alpha1.OverdueIgnore }

func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// counts says whether a machine that is not Ready counts as away.
func (d *decision) counts(g *v1alpha1.RebootGroup, m *v1alpha1.Machine) bool {
	if !ignores(g) || m.Status.PhaseSince == nil {
		return true
	}
	until := m.Status.PhaseSince.Add(g.TTL())
	d.lookAgain(until)
	return d.Now.Before(until)
}

// goOn looks at a machine that has the lock, and says how it ended; empty: it has not.
func (d *decision) goOn(g *v1alpha1.RebootGroup, h *v1alpha1.RebootHolder) (outcome string) {
	m := d.machines[h.Name]
	switch {
	case m == nil:
		return "its Machine does not exist any more"
	case !installed(m):
		return "it is not installed any more"
	case d.ClusterOf(h.Name) != "":
		return "cluster " + d.ClusterOf(h.Name) + " has it now"
	}
	boot := ""
	if m.Status.Node != nil {
		boot = m.Status.Node.BootID
	}
	ready := m.Status.Phase == v1alpha1.PhaseReady
	if ready && boot != "" && boot != h.BootID {
		return fmt.Sprintf("back after %s", d.at.Sub(h.Since.Time))
	}
	why, _ := m.WantsReboot()
	switch {
	case why != "" || boot != h.BootID || !ready:
		h.WithdrawnAt = nil
	case h.WithdrawnAt == nil:
		h.WithdrawnAt = new(d.at)
		d.lookAgain(d.at.Add(graceFor))
	case d.at.Sub(h.WithdrawnAt.Time) >= graceFor:
		return "nobody wants it any more"
	default:
		d.lookAgain(h.WithdrawnAt.Add(graceFor))
	}
	h.Overdue = !d.Now.Before(h.Until.Time)
	d.lookAgain(h.Until.Time)
	if h.Overdue && ready && ignores(g) {
		// It is no longer told to, and gets another turn after the others.
		if end := h.Until.Add(graceFor); d.Now.Before(end) {
			d.lookAgain(end)
		} else {
			return "did not reboot in time"
		}
	}
	switch {
	case h.WithdrawnAt != nil:
		h.Message = "nobody wants it any more; the lock is kept for a moment, as it may have been told"
	case h.Overdue && ready:
		h.Message = "its agent did not reboot it: coldrack logs " + h.Name
	case h.Overdue:
		h.Message = "it is " + string(m.Status.Phase) + ": look at its console, coldrack power cycle, or coldrack release if it is gone"
	case !ready:
		h.Message = "it is " + string(m.Status.Phase)
	default:
		h.Message = "is told to reboot with its next report"
	}
	return ""
}

// wants says whether and why a machine that has no lock of this group wants a reboot, and what hinders it of its own.
func (d *decision) wants(g *v1alpha1.RebootGroup, m *v1alpha1.Machine, groups []string) (c candidate, wants bool) {
	c = candidate{m: m, since: d.at}
	if c.why, c.asked = m.WantsReboot(); c.why == "" {
		return c, false
	}
	for _, w := range g.Status.Waiting {
		if w.Name == m.Name && w.Reason == c.why {
			c.since = w.Since
		}
	}
	last := m.Status.Rebooted
	switch intent := m.WantedIntent(); {
	case len(groups) > 1:
		c.hinder = fmt.Sprintf("RebootGroups %s all select it: correct their selectors", strings.Join(groups, ", "))
	case d.holds[m.Name] != "":
		c.hinder = "has the lock of RebootGroup " + d.holds[m.Name] + " yet"
	case intent != nil:
		c.hinder = "its " + strings.ToLower(string(intent.Action)) + " comes first"
	case m.Status.Phase != v1alpha1.PhaseReady || m.Status.Node.BootID == "":
		c.hinder = "is " + string(m.Status.Phase) + ", and is rebooted once it is Ready"
	case !c.asked && !g.Spec.Automatic:
		c.hinder = "nobody has asked for it: coldrack reboot " + m.Name + ", or spec.automatic of RebootGroup " + g.Name
	case !c.asked && last != nil && last.Reason == c.why && d.Now.Sub(last.At.Time) < rebootAgain:
		d.lookAgain(last.At.Add(rebootAgain))
		c.hinder = "was rebooted for the same reason at " + last.At.UTC().Format(time.RFC3339) + ": coldrack reboot " + m.Name
	}
	return c, true
}

// few names some machines.
func few(names []string) string {
	const most = 5
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
