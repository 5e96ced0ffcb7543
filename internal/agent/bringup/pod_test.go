package bringup

import (
	"testing"
	"time"

	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/contract/wire"
)

// A pod that still runs with its old manifest answers probes. The phase is done when the new one has begun.
func TestAPhaseWaitsForThePodOfTheNewManifest(t *testing.T) {
	r := newRig(t)
	plan := r.controlPlane()
	first := r.give("v1", plan)
	r.bringUp(first) // with no log yet, as on a node that is new
	d := nodefile.Disk{Root: r.root}
	log := func(uid, name string) {
		t.Helper()
		if err := d.Write(podLogs+"/kube-system_etcd-node-01_"+uid+"/etcd/"+name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	log("a", "0.log")
	next := copyOf(first).Plan
	fileAt(next, "/etc/kubernetes/manifests/etcd.yaml").Content = []byte("new")
	waits := func(p wire.PhaseReport) bool {
		s := step(p, "static-pods")
		return s.State == wire.StateRunning && len(s.Message) > 0
	}
	e := r.executor()
	stop := r.start(e)
	e.Assign(r.give("v2", next))
	r.until("it waits for the pod", waits)
	stop()
	stop = r.start(r.executor()) // the agent was restarted meanwhile
	r.until("it still waits", waits)
	log("b", "0.log")
	r.done("v2")
	stop()

	// Back to the first manifest, whose pod has the name that it had.
	e = r.executor()
	stop = r.start(e)
	e.Assign(r.give("v3", first.Plan))
	r.until("it waits again", waits)
	log("a", "1.log")
	r.done("v3")
	stop()

	e = r.executor(func(o *Options) { o.Pace.Restart = time.Millisecond })
	r.start(e)
	e.Assign(r.give("v4", next)) // a kubelet that does nothing
	r.done("v4")
}
