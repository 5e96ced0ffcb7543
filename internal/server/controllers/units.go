package controllers

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/units"
)

// unitGather is how long news of many machines is gathered before all units are looked at.
const unitGather = 500 * time.Millisecond

// unitFeed carries what is recorded of units to the desk where machines ask. It runs in every server.
func unitFeed(d Deps) reconciler {
	return reconciler{name: "unit-feed", watches: []source.Source{whole(d, &v1alpha1.Unit{})}, do: func(ctx context.Context, _ string) (time.Duration, error) {
		return 0, FeedUnits(ctx, d)
	}}
}

// FeedUnits carries all units that there are to the desk. Before that, no machine is answered.
func FeedUnits(ctx context.Context, d Deps) error {
	list := &v1alpha1.UnitList{}
	if err := d.Cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list units: %w", err)
	}
	d.Units.Put(unitFiles(list.Items))
	return nil
}

// unitFiles is what each machine shall run, by what is recorded.
func unitFiles(all []v1alpha1.Unit) map[string][]wire.UnitFile {
	files := map[string][]wire.UnitFile{}
	for i := range all {
		u := &all[i]
		if u.DeletionTimestamp != nil {
			continue
		}
		text := validate.WithoutFleet(u.Spec.File)
		sum := digest.Of([]byte(text)).String()
		for _, p := range u.Status.Placements {
			if !p.Leaving {
				files[p.Machine] = append(files[p.Machine], wire.UnitFile{Name: p.Unit, Text: text, Digest: sum, Launch: u.Wants() == v1alpha1.UnitLaunched})
			}
		}
	}
	return files
}

// StoredUnits is what a machine shall run by what the store says now. Not the cache: another server may have told the machine more.
func StoredUnits(ctx context.Context, direct client.Reader, machine string) ([]wire.UnitFile, error) {
	list := &v1alpha1.UnitList{}
	if err := direct.List(ctx, list); err != nil {
		return nil, err
	}
	return unitFiles(list.Items)[machine], nil
}

// unitLeader places units on machines and writes where they are, and how, into their status.
type unitLeader struct {
	Deps
	// written are this server's own writes, which the cache may not have yet; nil before the first pass.
	written map[string]*v1alpha1.Unit
}

func unitReconciler(d Deps) reconciler {
	r := &unitLeader{Deps: d}
	return reconciler{name: "unit", do: r.reconcile, watches: []source.Source{
		whole(d, &v1alpha1.Unit{}), machinesForUnits(d), whenever(d.Units.Changed),
	}}
}

// machinesForUnits wake a reconciler when a machine has changed so that it takes units, or takes them no more.
func machinesForUnits(d Deps) source.Source {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	wake := func(q queue) { q.AddAfter(requests(everything)[0], unitGather) }
	return source.Kind(d.Cache, &v1alpha1.Machine{}, handler.TypedFuncs[*v1alpha1.Machine, reconcile.Request]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[*v1alpha1.Machine], q queue) {
			d.Fleet.Put(e.Object)
			wake(q)
		},
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[*v1alpha1.Machine], q queue) {
			d.Fleet.Put(e.ObjectNew)
			wake(q)
		},
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[*v1alpha1.Machine], q queue) {
			d.Fleet.Remove(e.Object.Name, string(e.Object.UID))
			wake(q)
		},
	}, predicate.TypedFuncs[*v1alpha1.Machine]{
		UpdateFunc: func(e event.TypedUpdateEvent[*v1alpha1.Machine]) bool {
			was, is := e.ObjectOld, e.ObjectNew
			return was.Generation != is.Generation || !maps.Equal(was.SelectorLabels(), is.SelectorLabels()) || was.DeletionTimestamp != is.DeletionTimestamp ||
				was.Status.Phase != is.Status.Phase || (was.Status.Installed == nil) != (is.Status.Installed == nil)
		},
	})
}

// read lists the units, each in its newest version.
func (r *unitLeader) read(ctx context.Context) ([]v1alpha1.Unit, error) {
	list := &v1alpha1.UnitList{}
	if r.written == nil {
		// Whoever led before may have written what the cache has not.
		if err := r.Client.List(ctx, list); err != nil {
			return nil, fmt.Errorf("list units: %w", err)
		}
		r.written = map[string]*v1alpha1.Unit{}
		for i := range list.Items {
			r.written[list.Items[i].Name] = list.Items[i].DeepCopy()
		}
		return list.Items, nil
	}
	if err := r.Cache.List(ctx, list); err != nil {
		return nil, fmt.Errorf("list units: %w", err)
	}
	there := map[string]bool{}
	for i := range list.Items {
		u := &list.Items[i]
		there[u.Name] = true
		if own := r.written[u.Name]; own != nil && own.UID == u.UID && versionOf(own) > versionOf(u) {
			list.Items[i] = *own.DeepCopy()
		}
	}
	for name := range r.written {
		if !there[name] {
			delete(r.written, name)
		}
	}
	return list.Items, nil
}

func versionOf(u *v1alpha1.Unit) uint64 {
	version, _ := strconv.ParseUint(u.ResourceVersion, 10, 64)
	return version
}

func (r *unitLeader) reconcile(ctx context.Context, _ string) (time.Duration, error) {
	all, err := r.read(ctx)
	if err != nil {
		return 0, err
	}
	if len(all) == 0 {
		return 0, nil
	}
	restoredAt, _ := r.Fleet.RestoredAt()
	if !restoredAt.IsZero() {
		return time.Minute, nil // what is recorded may be old: nothing is moved until a person has confirmed it
	}
	now := r.Now()
	machines := r.machines(now)
	wanted := make([]units.Unit, 0, len(all))
	for i := range all {
		if all[i].DeletionTimestamp == nil {
			wanted = append(wanted, r.wanted(&all[i]))
		}
	}
	plan := units.Decide(wanted, machines)
	again := time.Duration(0)
	if plan.Again > 0 {
		again = plan.Again + time.Second
	}
	for i := range all {
		u := &all[i]
		next := u.DeepCopy()
		r.fold(next, plan, now)
		if slices.ContainsFunc(next.Status.Placements, func(p v1alpha1.UnitPlacement) bool { return p.Leaving }) && (again == 0 || again > unitSettle) {
			again = unitSettle
		}
		if equality.Semantic.DeepEqual(u.Status, next.Status) {
			continue
		}
		// A unit that somebody else has written meanwhile is looked at again, with the news.
		err := r.Client.Status().Patch(ctx, next, client.MergeFromWithOptions(u, client.MergeFromWithOptimisticLock{}))
		switch {
		case apierrors.IsConflict(err):
			return unitGather, nil
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return 0, fmt.Errorf("write status of unit %s: %w", u.Name, err)
		}
		r.written[u.Name] = next
		for _, t := range plan.Tasks {
			if t.Unit == u.FullName() {
				r.Log.Info("unit", "unit", t.Job, "machine", t.Machine, "action", string(t.Action), "reason", t.Reason)
			}
		}
	}
	return again, nil
}

// machines are those that are installed, as they are known at this moment.
func (r *unitLeader) machines(now time.Time) (all []units.Machine) {
	for _, m := range r.Fleet.List() {
		if m.Status.Installed == nil || m.DeletionTimestamp != nil {
			continue
		}
		is := units.Machine{Name: m.Name, Labels: m.SelectorLabels()}
		if intent := m.OpenIntent(); intent != nil {
			is.Leave = fmt.Sprintf("machine %s has the intent %s", m.Name, intent.Action)
		}
		if m.Status.Phase != v1alpha1.PhaseReady {
			is.Unfit = fmt.Sprintf("machine %s is %s, not Ready", m.Name, m.Status.Phase)
		}
		heard := r.Fleet.ListeningSince() // before that, nobody was listening
		if live := r.Fleet.Live(m.Name); live.HeartbeatAt.After(heard) {
			heard = live.HeartbeatAt
		}
		if silence := now.Sub(heard); silence > r.LostAfter {
			is.Silent = silence
		}
		all = append(all, is)
	}
	return all
}

// wanted is a Unit as the plan takes it.
func (r *unitLeader) wanted(u *v1alpha1.Unit) units.Unit {
	where, errs := u.Where()
	w := units.Unit{
		Name: u.FullName(), Created: u.CreationTimestamp.Time, Active: u.Wants() != v1alpha1.UnitInactive, Global: where.Global, Copies: u.Copies(),
		Machine: where.Machine, MachineOf: where.MachineOf, Conflicts: where.Conflicts, MoveAfter: u.MovesAfter(),
		Fits: func(l map[string]string) bool { return len(errs) == 0 && where.Selector.Matches(labels.Set(l)) },
	}
	if len(errs) > 0 { // admission refuses these; what is there stays
		w.Fits = nil
	}
	for _, p := range u.Status.Placements {
		report, at := r.Units.Reported(p.Machine)
		has := slices.ContainsFunc(report.Units, func(s wire.UnitState) bool { return s.Name == p.Unit })
		w.Placements = append(w.Placements, units.Placement{Job: p.Unit, Machine: p.Machine, Leaving: p.Leaving, Gone: p.Leaving && !has && at.Sub(p.Since.Time) > unitSettle})
	}
	return w
}

// unitSettle is longer than an answer that was given before a placement ended is on its way to its machine: a later report says whether the
// machine has the unit.
const unitSettle = 3 * time.Second

// fold writes into a Unit's status what the plan and the machines say.
func (r *unitLeader) fold(u *v1alpha1.Unit, plan units.Plan, now time.Time) {
	s := &u.Status
	name := u.FullName()
	for _, t := range plan.Tasks {
		if t.Unit != name {
			continue
		}
		i := slices.IndexFunc(s.Placements, func(p v1alpha1.UnitPlacement) bool { return p.Unit == t.Job && p.Machine == t.Machine })
		switch {
		case t.Action == units.Forget && i >= 0:
			s.Placements = slices.Delete(s.Placements, i, i+1)
		case t.Action == units.Forget:
		default:
			p := v1alpha1.UnitPlacement{Unit: t.Job, Machine: t.Machine, Since: metav1.NewTime(now.Truncate(time.Second)), Reason: t.Reason, Leaving: t.Action == units.Leave}
			if i < 0 {
				s.Placements = append(s.Placements, p)
			} else {
				p.State, p.Message = s.Placements[i].State, s.Placements[i].Message
				s.Placements[i] = p
			}
		}
	}
	slices.SortFunc(s.Placements, func(a, b v1alpha1.UnitPlacement) int {
		return strings.Compare(a.Unit+" "+a.Machine, b.Unit+" "+b.Machine)
	})
	for i := range s.Placements {
		p := &s.Placements[i]
		report, at := r.Units.Reported(p.Machine)
		if at.IsZero() {
			continue
		}
		is := slices.IndexFunc(report.Units, func(u wire.UnitState) bool { return u.Name == p.Unit })
		p.State, p.Message = "", ""
		if is >= 0 {
			p.State, p.Message = report.Units[is].Active, report.Units[is].Message
		}
	}
	summarize(u, plan.Waiting[name])
	s.ObservedGeneration = u.Generation
}

// summarize says in a word and a sentence how a unit is.
func summarize(u *v1alpha1.Unit, waiting string) {
	s := &u.Status
	wants := u.Wants()
	staying, active, failed, leaving, said := 0, 0, 0, 0, ""
	for _, p := range s.Placements {
		switch {
		case p.Leaving:
			leaving++
			continue
		case p.State == "active", wants == v1alpha1.UnitLoaded && p.State != "" && p.State != "failed" && p.Message == "":
			active++
		case p.State == "failed" || p.Message != "":
			failed++
			if said == "" {
				said = fmt.Sprintf("%s on machine %s: %s", p.Unit, p.Machine, p.Message)
			}
		}
		staying++
	}
	total := staying
	if where, _ := u.Where(); !where.Global && wants != v1alpha1.UnitInactive {
		total = max(total, u.Copies())
	}
	s.Active = fmt.Sprintf("%d/%d", active, total)
	s.Message = strings.Join(slices.DeleteFunc([]string{said, waiting}, func(text string) bool { return text == "" }), "; ")
	switch {
	case failed > 0:
		s.Phase = "Failed"
	case staying == 0 && leaving > 0:
		s.Phase = "Stopping"
	case wants == v1alpha1.UnitInactive:
		s.Phase = "Inactive"
	case waiting != "":
		s.Phase = "Waiting"
	case active < staying:
		s.Phase = "Starting"
	case total == 0:
		s.Phase = "Inactive"
		s.Message = "nothing is wanted of it: a template has instances when replicas says so"
		if where, _ := u.Where(); where.Global {
			s.Phase, s.Message = "Waiting", "no machine fits"
		}
	default:
		s.Phase = "Active"
	}
}
