package members

import (
	"errors"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A node of a cluster that runs carries a change out when its record says so.
func TestWhoseTurnItIs(t *testing.T) {
	since := metav1.NewTime(time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC))
	hand := func(changed, rolledBack bool) *v1alpha1.NodeHand {
		return &v1alpha1.NodeHand{Operation: "change", Since: since, Changed: changed, RolledBack: rolledBack}
	}
	const operation = "change 2026-11-29T08:00:00Z"
	for _, test := range []struct {
		name      string
		broughtUp metav1.ConditionStatus
		ready     bool
		hand      *v1alpha1.NodeHand
		want      wire.NodeAssignment
	}{
		{"during the bring-up everybody goes on", metav1.ConditionFalse, true, nil, wire.NodeAssignment{}},
		{"a node that comes later goes on until it is ready", metav1.ConditionTrue, false, nil, wire.NodeAssignment{}},
		{"a node that runs waits", metav1.ConditionTrue, true, nil, wire.NodeAssignment{Hold: true}},
		{"a node in hand waits, too", metav1.ConditionTrue, true, hand(false, false), wire.NodeAssignment{Hold: true, Operation: operation}},
		{"until it is told", metav1.ConditionTrue, true, hand(true, false), wire.NodeAssignment{Operation: operation}},
		{"or told to go back", metav1.ConditionTrue, true, hand(true, true), wire.NodeAssignment{RollBack: true, Operation: operation}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := record(t, rack(t, "a", v1alpha1.TopologyDevelopment, 2))
			r.Cluster.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionBroughtUp, Status: test.broughtUp}}
			if test.ready {
				r.Cluster.Status.Nodes[1].ReadyChangedAt = &since
			}
			r.Cluster.Status.Nodes[1].Hand = test.hand
			set := newSet()
			set.Put(r)
			a, _ := set.Node(r.Cluster.Status.Nodes[1].Machine)
			if a.Plan == nil {
				t.Fatal(a.Message)
			}
			if a.Hold != test.want.Hold || a.RollBack != test.want.RollBack || a.Operation != test.want.Operation {
				t.Errorf("hold %v, roll back %v, operation %q; want %+v", a.Hold, a.RollBack, a.Operation, test.want)
			}
			if other, _ := set.Node(r.Cluster.Status.Nodes[2].Machine); other.Hold || other.RollBack {
				t.Errorf("another machine that was never ready: hold %v, roll back %v", other.Hold, other.RollBack)
			}
		})
	}
}

// Whoever polls hears of its turn, and of nothing else that is recorded of an operation.
func TestAnOperationWakesWhomItConcerns(t *testing.T) {
	r := record(t, rack(t, "a", v1alpha1.TopologyDevelopment, 2))
	r.Cluster.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionBroughtUp, Status: metav1.ConditionTrue}}
	now := metav1.Now()
	for i := range r.Cluster.Status.Nodes {
		r.Cluster.Status.Nodes[i].ReadyChangedAt = &now
	}
	set := newSet()
	put := func(change func(*v1alpha1.ClusterNode)) {
		r.Cluster = r.Cluster.DeepCopy()
		change(&r.Cluster.Status.Nodes[1])
		set.Put(r)
	}
	name := r.Cluster.Status.Nodes[1].Machine
	put(func(n *v1alpha1.ClusterNode) { n.Hand = &v1alpha1.NodeHand{Operation: "change", Since: now} })
	held, changed := set.Node(name)
	put(func(n *v1alpha1.ClusterNode) { n.Hand.Step, n.Hand.Message, n.Hand.Drained = "drain", "2 pods", true })
	select {
	case <-changed:
		t.Error("a message woke all nodes")
	default:
	}
	put(func(n *v1alpha1.ClusterNode) { n.Hand.Changed = true })
	<-changed
	told, _ := set.Node(name)
	if !held.Hold || told.Hold || held.Version == told.Version {
		t.Errorf("held %v as version %s, then %v as %s", held.Hold, held.Version, told.Hold, told.Version)
	}
}

func TestConfig(t *testing.T) {
	source := &programs{}
	set := New(Options{Programs: source})
	r := record(t, rack(t, "a", v1alpha1.TopologyDevelopment, 2))
	server, worker := r.Cluster.Status.Nodes[0].Machine, r.Cluster.Status.Nodes[1].Machine
	if _, why := set.Config(server); why != "this machine belongs to no cluster" {
		t.Errorf("before anything is known: %q", why)
	}
	set.Put(r)
	first, why := set.Config(server)
	if why != "" || first.Etcd == "" || first.ControlPlane == "" || first.Node == "" {
		t.Fatalf("%+v, %s", first, why)
	}
	if again, _ := newSetOf(source, r).Config(server); again != first {
		t.Errorf("another server says %+v, not %+v", again, first)
	}
	ofWorker, _ := set.Config(worker)
	source.digest = "sha256:other"
	set.Refresh()
	if then, _ := set.Config(worker); then.Node == ofWorker.Node {
		t.Error("another kubelet changes nothing")
	}
	source.err = errors.New("no bundle has it")
	set.Refresh()
	if _, why := set.Config(server); why != "no bundle has it" {
		t.Errorf("without programs: %q", why)
	}
	source.err = nil
	set.Refresh()
	// A pod restarts for a key that it has read: what is secret counts, too.
	other := r
	other.Secret = r.Secret.DeepCopy()
	again, err := NewMaterial(r.Cluster, time.Now())
	check(t, err)
	secret, err := again.Secret(r.Cluster)
	check(t, err)
	other.Secret.Data[fileServiceAccountKey], other.Secret.Data[fileServiceAccountPublic] = secret.Data[fileServiceAccountKey], secret.Data[fileServiceAccountPublic]
	before, _ := set.Config(server)
	set.Put(other)
	after, why := set.Config(server)
	if why != "" || after.ControlPlane == before.ControlPlane || after.Etcd != before.Etcd {
		t.Errorf("another key of service accounts: %+v, then %+v, %s", before, after, why)
	}
}

func newSetOf(p Programs, r Record) *Set {
	set := New(Options{Programs: p})
	set.Put(r)
	return set
}
