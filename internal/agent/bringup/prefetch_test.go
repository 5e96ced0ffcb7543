package bringup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"coldrack.dev/internal/contract/wire"
)

// runtimeTwin is a container runtime that says which images it was to pull.
type runtimeTwin struct {
	mu     sync.Mutex
	pulled []string
	err    error
}

func (r *runtimeTwin) Pull(_ context.Context, ctr string, image wire.PrefetchImage) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.pulled = append(r.pulled, filepath.Base(ctr)+" "+image.Name)
	return nil
}

func (r *runtimeTwin) fail(err error) { r.mu.Lock(); defer r.mu.Unlock(); r.err = err }

func (r *runtimeTwin) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	pulled := r.pulled
	r.pulled = nil
	return pulled
}

func prefetchOf(id string, plan *wire.NodePlan) *wire.Prefetch {
	return &wire.Prefetch{ID: id, KubernetesVersion: plan.KubernetesVersion, Programs: plan.Programs,
		Images: []wire.PrefetchImage{{Name: "registry.k8s.io/etcd:3.7.3-0", Digest: "sha256:e7"}}}
}

// What another version needs comes beside what runs, is kept when the agent starts anew, and is put in place without the server's content.
func TestANodeFetchesBesideWhatRuns(t *testing.T) {
	r := newRig(t)
	plan := r.rollable()
	plan.Programs = append(plan.Programs, r.program("ctr", "/usr/local/bin/ctr", []byte("ctr")))
	plan.Programs[len(plan.Programs)-1].Phase = plan.Programs[0].Phase
	first := r.order(wire.NodeAssignment{Version: "v1", Plan: plan})
	r.bringUp(first)
	r.twin.take()
	next := r.changed(first.Plan)
	kept := keptProgram(next.Programs[0])
	images := &runtimeTwin{err: errors.New("no registry answers")}
	with := func(o *Options) { o.Images = images }

	e := r.executor(with)
	stop := r.start(e)
	held := wire.NodeAssignment{Version: "v2", Hold: true, Plan: first.Plan, Prefetch: prefetchOf("p1", next)}
	e.Assign(r.order(held))
	r.until("it says why it cannot fetch", func(p wire.PhaseReport) bool { // a slow machine complains of the programs before
		return p.Prefetch != nil && p.Prefetch.Failing && p.Prefetch.Message == "image registry.k8s.io/etcd:3.7.3-0: no registry answers" && p.Prefetch.ID == "p1"
	})
	images.fail(nil)
	has := func(p wire.PhaseReport) bool { return p.Prefetch != nil && p.Prefetch.Done && p.Prefetch.ID == "p1" }
	r.until("it has everything", has)
	if got := r.read(kept); got != "kubelet v1.37.3" || r.read("/usr/bin/kubelet") == got {
		t.Errorf("beside the kubelet is %q, and the kubelet is %q", got, r.read("/usr/bin/kubelet"))
	}
	if pulled := images.take(); !slices.Equal(pulled, []string{"ctr registry.k8s.io/etcd:3.7.3-0"}) {
		t.Errorf("it pulled %q", pulled)
	}
	if did := r.twin.take(); len(did) > 0 {
		t.Errorf("systemd was asked: %q", did)
	}
	stop()

	r.boot.Close() // the server's content is away from now on
	e = r.executor(with)
	r.start(e)
	r.until("it still has everything after a start", has)
	e.Assign(r.order(wire.NodeAssignment{Version: "v3", Operation: "upgrade 1", Plan: next, Prefetch: held.Prefetch}))
	r.done("v3")
	if got := r.read("/usr/bin/kubelet"); got != "kubelet v1.37.3" {
		t.Errorf("the kubelet is %q", got)
	}
	if r.has(kept) {
		t.Errorf("%s is still there", kept)
	}
}

// Programs of the same content are fetched once beside what runs, too.
func TestProgramsThatAreOneAreFetchedBesideOnce(t *testing.T) {
	r := newRig(t)
	first := r.order(wire.NodeAssignment{Version: "v1", Plan: r.rollable()})
	r.bringUp(first)
	next := r.changed(first.Plan)
	next.Programs[0] = r.program("kubelet", "/usr/bin/kubelet", []byte("kubelet v1.37.3, and more"))
	next.Programs[1] = r.program("kubeadm", "/usr/bin/kubeadm", []byte("kubelet v1.37.3, and more"))
	e := r.executor()
	r.start(e)
	e.Assign(r.order(wire.NodeAssignment{Version: "v2", Hold: true, Plan: first.Plan, Prefetch: prefetchOf("p1", next)}))
	r.until("it has everything", func(p wire.PhaseReport) bool { return p.Prefetch != nil && p.Prefetch.Done })
	if n := r.fetched[next.Programs[0].Content.Digest]; n != 1 {
		t.Errorf("fetched %d times", n)
	}
	for _, p := range next.Programs[:2] {
		if r.read(keptProgram(p)) != "kubelet v1.37.3, and more" {
			t.Errorf("%s is not beside", p.Name)
		}
	}
}

// What was fetched for a version that nobody wants any more goes. What was damaged meanwhile is fetched again.
func TestWhatWasFetchedIsCheckedAndGoes(t *testing.T) {
	r := newRig(t)
	first := r.order(wire.NodeAssignment{Version: "v1", Plan: r.rollable()})
	r.bringUp(first)
	next := r.changed(first.Plan)
	kept := keptProgram(next.Programs[0])
	fetch := func() {
		t.Helper()
		e := r.executor()
		stop := r.start(e)
		e.Assign(r.order(wire.NodeAssignment{Version: "v2", Hold: true, Plan: first.Plan, Prefetch: prefetchOf("p1", next)}))
		r.until("it has everything", func(p wire.PhaseReport) bool { return p.Prefetch != nil && p.Prefetch.Done })
		stop()
	}
	fetch()
	if err := os.WriteFile(filepath.Join(r.root, kept), []byte("kubelet v1.37.X"), 0o755); err != nil {
		t.Fatal(err)
	}
	fetch()
	if got := r.read(kept); got != "kubelet v1.37.3" {
		t.Errorf("damaged, it is %q", got)
	}
	e := r.executor()
	r.start(e)
	other := copyOf(first).Plan
	other.Routes = append(other.Routes, wire.NodeRoute{To: "10.244.9.0/24", Via: "10.20.0.19"})
	e.Assign(r.order(wire.NodeAssignment{Version: "v4", Plan: other}))
	if report := r.done("v4"); *report.Prefetch != (wire.PrefetchReport{}) {
		t.Errorf("it reports %+v", report.Prefetch)
	}
	if r.has(kept) {
		t.Errorf("%s is still there", kept)
	}
}

// A server that does not give anything is named as the reason.
func TestANodeSaysThatNothingArrives(t *testing.T) {
	r := newRig(t)
	first := r.order(wire.NodeAssignment{Version: "v1", Plan: r.rollable()})
	r.bringUp(first)
	next := r.changed(first.Plan)
	r.boot.Close()
	e := r.executor()
	r.start(e)
	e.Assign(r.order(wire.NodeAssignment{Version: "v2", Hold: true, Plan: first.Plan, Prefetch: prefetchOf("p1", next)}))
	r.until("it says why nothing comes", func(p wire.PhaseReport) bool {
		return p.Prefetch != nil && p.Prefetch.Failing && strings.Contains(p.Prefetch.Message, "connection refused")
	})
}
