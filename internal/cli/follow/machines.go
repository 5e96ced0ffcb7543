// Package follow follows machines and clusters live until a goal is reached: on a whole terminal, or in lines for a log.
package follow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/lab/rehearse"
	"coldrack.dev/internal/netboot/gate"
)

// View is where and how what is followed is shown.
type View struct {
	Out io.Writer
	Now func() time.Time
	// Plain prints lines even on a terminal.
	Plain bool
	// Server and Color are for pictures on a terminal.
	Server string
	Color  bool
	// Boots counts the machines that boot from the network.
	Boots func(context.Context) (gate.Counts, error)
	// Rehearsal, if any, is what the machines are compared with.
	Rehearsal *Rehearsal
}

// whole says whether pictures on the whole terminal are shown.
func (v *View) whole() bool {
	_, _, tty := cli.Terminal(v.Out)
	return tty && !v.Plain
}

// display shows what a watch sees.
type display interface {
	// changed is called for each machine that came, changed or went (after is nil).
	changed(before, after *v1alpha1.Machine)
	// draw is called after every burst of changes and about once a second.
	draw(machines map[string]*v1alpha1.Machine, trouble string)
	close()
}

// Machines follows machines until the goal is reached, the time is up or the person has seen enough.
func Machines(ctx context.Context, c client.WithWatch, pick func(*v1alpha1.Machine) bool, goal Goal, view View) error {
	stop := func() {}
	if limit := goal.Timeout(); limit > 0 {
		ctx, stop = context.WithTimeout(ctx, limit)
	}
	defer stop()

	var show display = &logDisplay{out: view.Out, start: view.Now(), now: view.Now, rehearsed: view.Rehearsal}
	if view.whole() {
		s := &screen{view: view, goal: goal.String(), terminal: cli.NewScreen(view.Out)}
		go s.followBoots(ctx) // ends with ctx
		show = s
	}
	defer show.close()

	// A server that was never there is an error at once; one that goes away later is waited for.
	var first v1alpha1.MachineList
	if err := c.List(ctx, &first, client.Limit(1)); err != nil {
		return fmt.Errorf("list machines: %w", err)
	}

	f := &follower{client: c, pick: pick, machines: map[string]*v1alpha1.Machine{}, show: show, goal: goal}
	err := f.follow(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return goal.Missing(f.machines)
	}
	if errors.Is(err, context.Canceled) {
		if goal.String() != "" {
			return &exit.Error{Code: exit.Failure, Err: errors.New("interrupted before the goal was reached")}
		}
		return nil
	}
	return err
}

// follower keeps a picture of the machines by listing once and watching from there.
type follower struct {
	client   client.WithWatch
	pick     func(*v1alpha1.Machine) bool
	goal     Goal
	show     display
	machines map[string]*v1alpha1.Machine
}

// retryPause between attempts to reach a server that went away.
const retryPause = time.Second

// follow returns nil when the goal is reached, and the context's error when that ends.
func (f *follower) follow(ctx context.Context) error {
	for {
		done, err := f.session(ctx)
		if done || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		// What needs a person will not mend itself; everything else may be a server that restarts.
		if apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) {
			return err
		}
		if err != nil {
			f.show.draw(f.machines, err.Error())
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
}

// session lists, then follows one watch to its end. done means that the goal decided.
func (f *follower) session(ctx context.Context) (done bool, err error) {
	var list v1alpha1.MachineList
	if err := f.client.List(ctx, &list); err != nil {
		return false, err
	}
	seen := map[string]bool{}
	for i := range list.Items {
		seen[list.Items[i].Name] = true
		f.put(&list.Items[i])
	}
	for name := range f.machines {
		if !seen[name] {
			f.drop(name)
		}
	}
	if done, err := f.goal.Reached(f.machines); done {
		f.show.draw(f.machines, "")
		return true, err
	}
	f.show.draw(f.machines, "")

	events, err := f.client.Watch(ctx, &v1alpha1.MachineList{}, &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.ResourceVersion}})
	if err != nil {
		return false, err
	}
	defer events.Stop()
	return f.events(ctx, events)
}

func (f *follower) events(ctx context.Context, events watch.Interface) (bool, error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-tick.C:
			f.show.draw(f.machines, "")
		case event, open := <-events.ResultChan():
			if !open {
				return false, nil
			}
			switch object := event.Object.(type) {
			case *v1alpha1.Machine:
				if event.Type == watch.Deleted {
					f.drop(object.Name)
				} else if event.Type != watch.Bookmark {
					f.put(object)
				}
			default:
				return false, apierrors.FromObject(event.Object)
			}
			if done, err := f.goal.Reached(f.machines); done {
				f.show.draw(f.machines, "")
				return true, err
			}
		}
	}
}

func (f *follower) put(m *v1alpha1.Machine) {
	if !f.pick(m) {
		f.drop(m.Name)
		return
	}
	before := f.machines[m.Name]
	f.machines[m.Name] = m
	f.show.changed(before, m)
}

func (f *follower) drop(name string) {
	if before := f.machines[name]; before != nil {
		delete(f.machines, name)
		f.show.changed(before, nil)
	}
}

// logDisplay prints one line for each transition.
type logDisplay struct {
	out     io.Writer
	start   time.Time
	now     func() time.Time
	trouble bool
	width   int

	rehearsed *Rehearsal
	compared  time.Time
	flagged   map[string]string // stragglers that were told of
}

func (l *logDisplay) print(machine, text string) {
	l.width = max(l.width, len(machine))
	fmt.Fprintln(l.out, cli.LogLine(l.now().Sub(l.start), machine, text, l.width))
}

func (l *logDisplay) changed(before, after *v1alpha1.Machine) {
	if after == nil {
		l.print(before.Name, "removed")
		return
	}
	for _, text := range cli.Transitions(before, after) {
		l.print(after.Name, text)
	}
}

func (l *logDisplay) draw(machines map[string]*v1alpha1.Machine, trouble string) {
	if l.rehearsed != nil && l.now().Sub(l.compared) >= compareEvery {
		l.compare(l.rehearsed.compare(machines, l.now()))
	}
	switch {
	case trouble != "" && !l.trouble:
		l.print("-", "connection lost, trying again: "+trouble)
	case trouble == "" && l.trouble:
		l.print("-", "connected again")
	}
	l.trouble = trouble != ""
}

// compareEvery is how often a log says how the run stands to its rehearsal.
const compareEvery = 10 * time.Second

func (l *logDisplay) compare(c rehearse.Comparison) {
	l.compared = l.now()
	if c.Text != "" {
		l.print("-", c.Text)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Stragglers)) {
		if l.flagged[name] == "" {
			l.print(name, c.Stragglers[name])
		}
	}
	l.flagged = c.Stragglers
}

func (l *logDisplay) close() {}

// screen draws the whole terminal.
type screen struct {
	view     View
	goal     string
	terminal *cli.Screen
	// boots is how many machines are under way before any of them is known by name.
	boots atomic.Pointer[gate.Counts]
}

// followBoots asks for the counts of booting machines every other second. A server that has none is asked in vain.
func (s *screen) followBoots(ctx context.Context) {
	for s.view.Boots != nil && ctx.Err() == nil {
		if counts, err := s.view.Boots(ctx); err == nil {
			s.boots.Store(&counts)
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
}

func (s *screen) changed(_, _ *v1alpha1.Machine) {}

func (s *screen) draw(machines map[string]*v1alpha1.Machine, trouble string) {
	now := s.view.Now()
	snapshot := cli.Snapshot{Server: s.view.Server, Trouble: trouble, Goal: s.goal, Color: s.view.Color}
	if b := s.boots.Load(); b != nil && b.Loading+b.Waiting+b.Lost > 0 {
		snapshot.Boots = cli.BootsText(b.Asked, b.Loading, b.Waiting, b.Lost)
	}
	for _, m := range machines {
		snapshot.Machines = append(snapshot.Machines, *m)
	}
	if s.view.Rehearsal != nil {
		c := s.view.Rehearsal.compare(machines, now)
		snapshot.Rehearsed, snapshot.Stragglers = c.Text, c.Stragglers
	}
	s.terminal.Draw(func(width, height int) string { return cli.RenderWatch(snapshot, width, height, now) })
}

func (s *screen) close() { s.terminal.Close() }
