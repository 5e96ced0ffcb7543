package follow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
)

// ClusterGoal is what a watch of a cluster waits for.
type ClusterGoal struct {
	Phase         string
	Limit         time.Duration
	StopOnFailure bool // give up as soon as a phase of a node has failed
}

// reached says whether the wait is over. A phase counts once the controller has seen what is written now.
func (g *ClusterGoal) reached(v cli.ClusterView, now time.Time) (bool, error) {
	if g.Phase == "" || v.Cluster.Status.ObservedGeneration != v.Cluster.Generation {
		return false, nil
	}
	if string(v.Cluster.Status.Phase) == g.Phase {
		return true, nil
	}
	if !g.StopOnFailure {
		return false, nil
	}
	if v.Cluster.Status.Phase == v1alpha1.ClusterInvalid {
		return true, fmt.Errorf("cluster %s: %s", v.Cluster.Name, v.Cluster.Status.Message)
	}
	for _, n := range v.Nodes(now, true) {
		if n.State == cli.NodeFailed {
			return true, fmt.Errorf("%s failed: %s", n.Machine, n.Message)
		}
	}
	return false, nil
}

func (g *ClusterGoal) missing(v cli.ClusterView, now time.Time) error {
	lines := []string{fmt.Sprintf("cluster %s is not %s within %s; it is %s %s", v.Cluster.Name, g.Phase, g.Limit,
		cli.ClusterPhaseOf(v.Cluster), v.Cluster.Status.Message)}
	for _, n := range v.Nodes(now, true) {
		if n.State != cli.NodeReady {
			text := fmt.Sprintf("  %s is %s %s", n.Machine, n.Phase, n.Progress)
			if n.Message != "" {
				text += ": " + n.Message
			}
			lines = append(lines, text)
		}
	}
	return exit.Timeoutf("%s", strings.Join(lines, "\n"))
}

// clusterDisplay shows what a watch of a cluster sees.
type clusterDisplay interface {
	draw(v cli.ClusterView, trouble string)
	close()
}

// Cluster follows a cluster until the goal is reached, the time is up or the person has seen enough.
func Cluster(ctx context.Context, c client.WithWatch, name string, goal *ClusterGoal, view View) error {
	stop := func() {}
	if goal.Limit > 0 {
		ctx, stop = context.WithTimeout(ctx, goal.Limit)
	}
	defer stop()
	var show clusterDisplay = &clusterLog{out: view.Out, start: view.Now(), now: view.Now}
	if view.whole() {
		show = &clusterScreen{view: view, goal: goal.Phase, terminal: cli.NewScreen(view.Out)}
	}
	defer show.close()

	f := &clusterFollower{client: c, name: name, events: make(chan clusterEvent), now: view.Now}
	v, err := f.follow(ctx, goal, show)
	switch {
	case errors.Is(err, context.DeadlineExceeded) && v.Cluster != nil:
		return goal.missing(v, view.Now())
	case errors.Is(err, context.Canceled):
		if goal.Phase != "" {
			return &exit.Error{Code: exit.Failure, Err: errors.New("interrupted before the goal was reached")}
		}
		return nil
	}
	return err
}

// clusterEvent is a kind listed anew, one object that changed or went, or trouble with a connection.
type clusterEvent struct {
	kind    string
	list    []client.Object // with listed
	listed  bool
	object  client.Object
	gone    bool
	trouble error
}

// clusterFollower keeps a picture of one cluster by following three kinds.
type clusterFollower struct {
	client client.WithWatch
	name   string
	events chan clusterEvent
	now    func() time.Time
}

const (
	kindClusters = "clusters"
	kindGroups   = "machinegroups"
	kindMachines = "machines"
)

// follow returns when the goal is reached, the cluster is gone, or ctx ends.
func (f *clusterFollower) follow(ctx context.Context, goal *ClusterGoal, show clusterDisplay) (v cli.ClusterView, err error) {
	group, ctx := errgroup.WithContext(ctx)
	done := errors.New("done")
	for kind, list := range map[string]func() client.ObjectList{
		kindClusters: func() client.ObjectList { return &v1alpha1.ClusterList{} },
		kindGroups:   func() client.ObjectList { return &v1alpha1.MachineGroupList{} },
		kindMachines: func() client.ObjectList { return &v1alpha1.MachineList{} },
	} {
		group.Go(func() error { return f.feed(ctx, kind, list) })
	}
	group.Go(func() error {
		var outcome error
		v, outcome = f.picture(ctx, goal, show)
		if outcome == nil {
			outcome = done
		}
		return outcome
	})
	err = group.Wait()
	if errors.Is(err, done) {
		err = nil
	}
	return v, err
}

// picture folds events until the goal decides.
func (f *clusterFollower) picture(ctx context.Context, goal *ClusterGoal, show clusterDisplay) (cli.ClusterView, error) {
	objects := map[string]map[string]client.Object{}
	trouble := map[string]error{}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var v cli.ClusterView
	for {
		select {
		case <-ctx.Done():
			return v, ctx.Err()
		case <-tick.C:
		case e := <-f.events:
			trouble[e.kind] = e.trouble
			switch {
			case e.listed:
				objects[e.kind] = map[string]client.Object{}
				for _, o := range e.list {
					objects[e.kind][o.GetName()] = o
				}
			case e.gone:
				delete(objects[e.kind], e.object.GetName())
			case e.object != nil:
				objects[e.kind][e.object.GetName()] = e.object
			}
		}
		if len(objects) < 3 {
			continue // not everything was listed yet
		}
		cluster, ok := objects[kindClusters][f.name].(*v1alpha1.Cluster)
		if !ok {
			return v, exit.NotFoundf("cluster %s was deleted", f.name)
		}
		v = clusterView(cluster, objects)
		show.draw(v, troubleText(trouble))
		if over, err := goal.reached(v, f.now()); over {
			return v, err
		}
	}
}

func troubleText(trouble map[string]error) string {
	for _, kind := range []string{kindClusters, kindGroups, kindMachines} {
		if trouble[kind] != nil {
			return trouble[kind].Error()
		}
	}
	return ""
}

func clusterView(cluster *v1alpha1.Cluster, objects map[string]map[string]client.Object) cli.ClusterView {
	var groups []v1alpha1.MachineGroup
	for _, o := range objects[kindGroups] {
		if g, ok := o.(*v1alpha1.MachineGroup); ok {
			groups = append(groups, *g)
		}
	}
	var machines []v1alpha1.Machine
	for _, o := range objects[kindMachines] {
		if m, ok := o.(*v1alpha1.Machine); ok {
			machines = append(machines, *m)
		}
	}
	return cli.NewClusterView(cluster, groups, machines)
}

// feed lists a kind and watches it from there, again and again.
func (f *clusterFollower) feed(ctx context.Context, kind string, list func() client.ObjectList) error {
	for {
		err := f.session(ctx, kind, list())
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// What needs a person will not mend itself; everything else may be a server that restarts.
		if apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) {
			return err
		}
		if err != nil && !f.send(ctx, clusterEvent{kind: kind, trouble: err}) {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
}

func (f *clusterFollower) send(ctx context.Context, e clusterEvent) bool {
	select {
	case f.events <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

func (f *clusterFollower) session(ctx context.Context, kind string, list client.ObjectList) error {
	if err := f.client.List(ctx, list); err != nil {
		return err
	}
	e := clusterEvent{kind: kind, listed: true}
	if err := meta.EachListItem(list, func(o runtime.Object) error {
		if object, ok := o.(client.Object); ok {
			e.list = append(e.list, object)
		}
		return nil
	}); err != nil {
		return err
	}
	if !f.send(ctx, e) {
		return ctx.Err()
	}
	events, err := f.client.Watch(ctx, list, &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.GetResourceVersion()}})
	if err != nil {
		return err
	}
	defer events.Stop()
	for event := range events.ResultChan() {
		object, ok := event.Object.(client.Object)
		if !ok || event.Type == watch.Error {
			return apierrors.FromObject(event.Object)
		}
		if event.Type == watch.Bookmark {
			continue
		}
		if !f.send(ctx, clusterEvent{kind: kind, object: object, gone: event.Type == watch.Deleted}) {
			return ctx.Err()
		}
	}
	return nil
}

// clusterLog prints one line for each transition.
type clusterLog struct {
	out    io.Writer
	start  time.Time
	now    func() time.Time
	before cli.ClusterView
	lost   bool
	width  int
}

func (l *clusterLog) print(who, text string) {
	l.width = max(l.width, len(who))
	fmt.Fprintln(l.out, cli.LogLine(l.now().Sub(l.start), who, text, l.width))
}

func (l *clusterLog) draw(v cli.ClusterView, trouble string) {
	switch {
	case trouble != "" && !l.lost:
		l.print("-", "connection lost, trying again: "+trouble)
	case trouble == "" && l.lost:
		l.print("-", "connected again")
	}
	l.lost = trouble != ""
	for _, text := range cli.ClusterTransitions(l.before.Cluster, v.Cluster) {
		l.print(v.Cluster.Name, text)
	}
	was := map[string]*v1alpha1.Machine{}
	for i := range l.before.Machines {
		was[l.before.Machines[i].Name] = &l.before.Machines[i]
	}
	for i := range v.Machines {
		m := &v.Machines[i]
		for _, text := range cli.NodeTransitions(was[m.Name], m, l.before.Ready(m.Name), v.Ready(m.Name)) {
			l.print(m.Name, text)
		}
	}
	l.before = v
}

func (l *clusterLog) close() {}

// clusterScreen draws the whole terminal.
type clusterScreen struct {
	view     View
	goal     string
	terminal *cli.Screen
}

func (s *clusterScreen) draw(v cli.ClusterView, trouble string) {
	s.terminal.Draw(func(width, height int) string {
		return cli.RenderCluster(cli.ClusterSnapshot{View: v, Server: s.view.Server, Trouble: trouble, Goal: s.goal, Color: s.view.Color}, width, height, s.view.Now())
	})
}

func (s *clusterScreen) close() { s.terminal.Close() }
