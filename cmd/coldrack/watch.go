package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/lab/rehearse"
	"coldrack.dev/internal/netboot/gate"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) watchCommand() *cobra.Command {
	var (
		pick  selection
		goal  phaseGoal
		plain bool
		file  string
	)
	cmd := &cobra.Command{
		Use:   "watch [NAME...]",
		Short: "Follow all machines live, stuck ones first",
		Long: `Follow machines live. On a terminal: the whole screen, stuck machines first. Elsewhere, or with
--plain: one line for each transition, with the seconds since the start.

With --rehearsed FILE, written by "coldrack rehearse -o json", it says how the run stands to what was rehearsed, and
which machines are slower than that can explain.

With --until the command ends as soon as enough machines are in that phase, and with exit code 4 when
they are not in time.`,
		Example: `  coldrack watch
  coldrack watch --until Ready --count 3 --timeout 15m
  coldrack watch node-1 node-2 --until Ready --stop-on-failure
  coldrack rehearse -f plan.yaml -o json > rehearsed.json; coldrack watch --rehearsed rehearsed.json`,
		ValidArgsFunction: a.completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			pick.names = args
			if err := pick.check(); err != nil {
				return err
			}
			if goal.phase == "" && goal.limit > 0 {
				return usageError("--timeout needs --until PHASE")
			}
			if err := goal.check(len(args)); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			rehearsed, err := readRehearsal(file, a.now())
			if err != nil {
				return err
			}
			return a.watch(cmd.Context(), c, &pick, &goal, plain, rehearsed)
		},
	}
	a.addConnectionFlag(cmd)
	pick.addFlags(cmd)
	goal.addFlags(cmd)
	cmd.Flags().BoolVar(&plain, "plain", false, "print lines even on a terminal")
	cmd.Flags().StringVar(&file, "rehearsed", "", "compare with a rehearsal: the file that rehearse -o json wrote")
	return cmd
}

// goal is what a watch waits for.
type goal interface {
	// reached tells whether the wait is over, and with what outcome.
	reached(machines map[string]*v1alpha1.Machine) (bool, error)
	// missing is the outcome of a wait that ended in vain.
	missing(machines map[string]*v1alpha1.Machine) error
	// timeout of the wait; 0: none.
	timeout() time.Duration
	// String names the goal; empty when nothing is waited for.
	String() string
}

// phaseGoal waits until a number of machines are in a phase; without a phase it waits for nothing.
type phaseGoal struct {
	phase         string
	count         int
	limit         time.Duration
	stopOnFailure bool
}

func (g *phaseGoal) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&g.phase, "until", "", "end when machines are in this phase")
	cmd.Flags().IntVar(&g.count, "count", 0, "how many machines --until waits for (default: all that are named, or one)")
	cmd.Flags().DurationVar(&g.limit, "timeout", 0, "give up after this time, with exit code 4 (default: never)")
	cmd.Flags().BoolVar(&g.stopOnFailure, "stop-on-failure", false, "with --until, give up as soon as a machine is Failed")
}

func (g *phaseGoal) check(named int) error {
	if g.phase == "" {
		if g.count != 0 || g.stopOnFailure {
			return usageError("--count and --stop-on-failure need --until PHASE")
		}
		return nil
	}
	check := selection{phases: []string{g.phase}}
	if err := check.check(); err != nil {
		return usageError("--until: %w", err)
	}
	g.phase = check.phases[0]
	if g.count == 0 {
		g.count = max(1, named)
	}
	if g.count < 0 {
		return usageError("--count must be at least 1")
	}
	return nil
}

func (g *phaseGoal) String() string {
	if g.phase == "" {
		return ""
	}
	return fmt.Sprintf("%d %s", g.count, g.phase)
}

func (g *phaseGoal) timeout() time.Duration { return g.limit }

func (g *phaseGoal) reached(machines map[string]*v1alpha1.Machine) (bool, error) {
	if g.phase == "" {
		return false, nil
	}
	there := 0
	for _, name := range slices.Sorted(maps.Keys(machines)) {
		m := machines[name]
		if cli.PhaseOf(m) == g.phase {
			there++
		} else if g.stopOnFailure && m.Status.Phase == v1alpha1.PhaseFailed {
			return true, fmt.Errorf("%s failed: %s", m.Name, m.Status.Message)
		}
	}
	return there >= g.count, nil
}

func (g *phaseGoal) missing(machines map[string]*v1alpha1.Machine) error {
	there := 0
	var others []string
	for _, name := range slices.Sorted(maps.Keys(machines)) {
		m := machines[name]
		if cli.PhaseOf(m) == g.phase {
			there++
			continue
		}
		text := fmt.Sprintf("  %s is %s", name, cli.PhaseOf(m))
		if m.Status.Message != "" {
			text += ": " + m.Status.Message
		}
		others = append(others, text)
	}
	if len(others) == 0 {
		others = []string{"  no other machine is known; `coldrack doctor` and the server's log tell why none appears"}
	}
	return timeoutError("%d of %d machines %s within %s\n%s", there, g.count, g.phase, g.limit, strings.Join(others, "\n"))
}

// display shows what a watch sees.
type display interface {
	// changed is called for each machine that came, changed or went (after is nil).
	changed(before, after *v1alpha1.Machine)
	// draw is called after every burst of changes and about once a second.
	draw(machines map[string]*v1alpha1.Machine, trouble string)
	close()
}

// watch follows machines until the goal is reached, the time is up or the person has seen enough.
func (a *app) watch(ctx context.Context, c client.WithWatch, pick *selection, goal goal, plain bool, rehearsed *rehearsal) error {
	stop := func() {}
	if limit := goal.timeout(); limit > 0 {
		ctx, stop = context.WithTimeout(ctx, limit)
	}
	defer stop()

	var show display = &logDisplay{out: a.out, start: a.now(), now: a.now, rehearsed: rehearsed}
	if _, _, tty := terminal(a.out); tty && !plain {
		s := newScreen(a, goal.String())
		s.rehearsed = rehearsed
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
		return goal.missing(f.machines)
	}
	if errors.Is(err, context.Canceled) {
		if goal.String() != "" {
			return &codedError{exitFailure, errors.New("interrupted before the goal was reached")}
		}
		return nil
	}
	return err
}

// follower keeps a picture of the machines by listing once and watching from there.
type follower struct {
	client   client.WithWatch
	pick     *selection
	goal     goal
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
	if done, err := f.goal.reached(f.machines); done {
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
			if done, err := f.goal.reached(f.machines); done {
				f.show.draw(f.machines, "")
				return true, err
			}
		}
	}
}

func (f *follower) put(m *v1alpha1.Machine) {
	if !f.pick.matches(m) {
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

	rehearsed *rehearsal
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

// rehearsal is what a run is compared with.
type rehearsal struct {
	result *rehearse.Result
	// from is when a machine must have booted at the earliest to be part of the run.
	from time.Time
}

// readRehearsal returns nil for no file.
func readRehearsal(file string, now time.Time) (*rehearsal, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the rehearsal: %w", err)
	}
	result := &rehearse.Result{}
	if err := yaml.Unmarshal(text, result); err != nil {
		return nil, fmt.Errorf("%s: %w; it must be what \"coldrack rehearse -o json\" wrote", file, err)
	}
	if result.Machines == 0 || len(result.Arrivals) == 0 {
		return nil, fmt.Errorf("%s: no machine was ready in it, or it is not what \"coldrack rehearse -o json\" wrote", file)
	}
	// Whoever begins to watch late sees the whole run all the same.
	return &rehearsal{result, now.Add(-2*result.FinishedAt - 10*time.Minute)}, nil
}

func (r *rehearsal) compare(machines map[string]*v1alpha1.Machine, now time.Time) rehearse.Comparison {
	var real []rehearse.Real
	for _, m := range machines {
		real = append(real, realOf(m))
	}
	return r.result.Compare(real, r.from, now)
}

// realOf finds the boot into the agent that the machine's run began with, its last one.
func realOf(m *v1alpha1.Machine) rehearse.Real {
	out := rehearse.Real{Name: m.Name}
	for _, b := range m.Status.Boots {
		if (b.Action == v1alpha1.BootDiscover || b.Action == v1alpha1.BootInstall) && b.At.After(out.Booted) {
			out.Booted = b.At.Time
		}
	}
	if m.Status.Phase == v1alpha1.PhaseReady && m.Status.PhaseSince != nil && m.Status.PhaseSince.After(out.Booted) {
		out.Ready = m.Status.PhaseSince.Time
	}
	return out
}

// screen draws the whole terminal. Each picture asks for the size anew, so a resized window is right
// after a second.
type screen struct {
	app  *app
	goal string
	last string
	// boots is how many machines are under way before any of them is known by name.
	boots atomic.Pointer[gate.Counts]

	rehearsed *rehearsal
}

// followBoots asks for the counts of booting machines every other second. A server that has none is asked in vain.
func (s *screen) followBoots(ctx context.Context) {
	raw, err := s.app.raw()
	if err != nil {
		return
	}
	for ctx.Err() == nil {
		var counts gate.Counts
		answer, err := raw.Get().AbsPath(peoplewire.PathBoots).DoRaw(ctx)
		if err == nil {
			err = json.Unmarshal(answer, &counts)
		}
		if err == nil {
			s.boots.Store(&counts)
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
}

// The alternate screen keeps what was on the terminal before, and gives it back at the end.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	cursorHome  = "\x1b[H"
	eraseLine   = "\x1b[K"
	eraseBelow  = "\x1b[J"
)

func newScreen(a *app, goal string) *screen {
	fmt.Fprint(a.out, enterScreen)
	return &screen{app: a, goal: goal}
}

func (s *screen) changed(_, _ *v1alpha1.Machine) {}

func (s *screen) draw(machines map[string]*v1alpha1.Machine, trouble string) {
	width, height, ok := terminal(s.app.out)
	if !ok {
		return
	}
	_, plain := s.app.env("NO_COLOR")
	snapshot := cli.Snapshot{Server: s.app.config.Host, Trouble: trouble, Goal: s.goal, Color: !plain}
	if b := s.boots.Load(); b != nil && b.Loading+b.Waiting+b.Lost > 0 {
		snapshot.Boots = cli.BootsText(b.Asked, b.Loading, b.Waiting, b.Lost)
	}
	for _, m := range machines {
		snapshot.Machines = append(snapshot.Machines, *m)
	}
	if s.rehearsed != nil {
		c := s.rehearsed.compare(machines, s.app.now())
		snapshot.Rehearsed, snapshot.Stragglers = c.Text, c.Stragglers
	}
	s.last = cli.RenderWatch(snapshot, width, height, s.app.now())
	fmt.Fprint(s.app.out, cursorHome, strings.ReplaceAll(s.last, "\n", eraseLine+"\r\n"), eraseLine, eraseBelow)
}

// close gives the terminal back and leaves the last picture on it.
func (s *screen) close() {
	fmt.Fprintln(s.app.out, leaveScreen+s.last)
}
