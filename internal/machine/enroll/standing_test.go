package enroll

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

func matching(name string, match v1alpha1.MachineMatch, limit int32) v1alpha1.EnrollmentPolicy {
	return policy(name, func(s *v1alpha1.EnrollmentPolicySpec) { s.Match, s.Limit = match, limit })
}

func bornAt(at time.Time) func(*v1alpha1.Machine) {
	return func(m *v1alpha1.Machine) { m.CreationTimestamp = metav1.NewTime(at) }
}

func TestStandings(t *testing.T) {
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	vendor := func(name string) func(*v1alpha1.Machine) {
		return func(m *v1alpha1.Machine) { m.Status.Inventory.System.Vendor = name }
	}
	unreported := waiting("unreported")
	unreported.Status.Inventory = nil
	w := World{
		Policies: []v1alpha1.EnrollmentPolicy{
			matching("qemu", v1alpha1.MachineMatch{Vendor: "qemu"}, 1),
			matching("dell", v1alpha1.MachineMatch{Vendor: "Dell*", MinDisks: 1}, 0),
		},
		Subnets: []v1alpha1.Subnet{rack()},
		Machines: []*v1alpha1.Machine{
			enrolled("taken", "qemu", "node-001", "10.0.0.10"), unreported,
			waiting("second", bornAt(day)), // of the vendor, but the limit is reached
			waiting("no-disk", vendor("Dell Inc."), bornAt(day.Add(time.Hour))),
			waiting("other", vendor("HPE"), bornAt(day)),
			waiting("by-hand", vendor("HPE"), approved),
		},
	}
	want := map[string]Standing{
		"qemu": {Enrolled: 1, Matched: 2, Missed: 2, NearMisses: []v1alpha1.NearMiss{
			{Machine: "other", Why: `vendor "HPE" is not "qemu"`},
			{Machine: "second", Why: "its limit of 1 machines is reached"},
		}},
		"dell": {Missed: 1, NearMisses: []v1alpha1.NearMiss{{Machine: "no-disk", Why: "it has 0 disks, not 1"}}},
	}
	if diff := cmp.Diff(want, Standings(w)); diff != "" {
		t.Errorf("standings (-want +got):\n%s", diff)
	}
}

// However many machines wait, a status stays small: the newest are named.
func TestNearMissesAreBounded(t *testing.T) {
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := World{Policies: []v1alpha1.EnrollmentPolicy{matching("dell", v1alpha1.MachineMatch{Vendor: "Dell*"}, 0)}}
	for i := range 40 {
		w.Machines = append(w.Machines, waiting(fmt.Sprintf("m-%02d", i), bornAt(day.Add(time.Duration(i)*time.Minute))))
	}
	got := Standings(w)["dell"]
	if got.Missed != 40 || len(got.NearMisses) != v1alpha1.MaxNearMisses || got.NearMisses[0].Machine != "m-39" {
		t.Errorf("got %+v", got)
	}
}

func TestStandingBecomesStatus(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p := matching("qemu", v1alpha1.MachineMatch{Vendor: "qemu"}, 1)
	p.Generation = 3
	Standing{Enrolled: 1, Matched: 2, Missed: 2, NearMisses: []v1alpha1.NearMiss{{Machine: "m", Why: "it has 0 disks, not 1"}}}.Into(&p, now)
	c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionNearMisses)
	const want = "2 waiting machines are taken by no policy, and this one comes nearest; the newest is m: it has 0 disks, not 1. Correct spec.match, or run: coldrack approve m"
	if c == nil || c.Status != metav1.ConditionTrue || c.Message != want || c.ObservedGeneration != 3 || p.Status.Missed != 2 || p.Status.Matched != 2 {
		t.Errorf("status %+v", p.Status)
	}
	if !meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionExhausted) {
		t.Error("the limit is reached, and nothing says so")
	}
	before := p.DeepCopy()
	Standing{}.Into(&p, now)
	for _, kind := range []string{v1alpha1.ConditionNearMisses, v1alpha1.ConditionExhausted} {
		if !meta.IsStatusConditionFalse(p.Status.Conditions, kind) {
			t.Errorf("%s: %+v", kind, meta.FindStatusCondition(p.Status.Conditions, kind))
		}
	}
	if len(p.Status.NearMisses) > 0 || len(before.Status.NearMisses) != 1 {
		t.Errorf("near misses: %+v, before %+v", p.Status.NearMisses, before.Status.NearMisses)
	}
}

// Machines report by the second while they install; only little of that concerns policies.
func TestStandingChanged(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*v1alpha1.Machine)
		want   bool
	}{
		"nothing":           {func(*v1alpha1.Machine) {}, false},
		"progress":          {func(m *v1alpha1.Machine) { m.Status.CurrentStep = "image 3 %" }, false},
		"another port asks": {func(m *v1alpha1.Machine) { m.Status.Lease.MAC = "52:54:00:00:00:0b" }, false},
		"another lease":     {func(m *v1alpha1.Machine) { m.Status.Lease.Address = "10.0.0.151" }, true},
		"a label":           {func(m *v1alpha1.Machine) { m.Labels = map[string]string{"a": "b"} }, true},
		"it was approved":   {approved, true},
		"it was enrolled": {func(m *v1alpha1.Machine) {
			m.Annotations = map[string]string{v1alpha1.AnnotationEnrolledBy: "p"}
		}, true},
		"a disk was added": {func(m *v1alpha1.Machine) { m.Status.Inventory.Disks = []v1alpha1.Disk{{Name: "sda"}} }, true},
	} {
		was := waiting("m", func(m *v1alpha1.Machine) { m.Status.Lease = &v1alpha1.LeaseStatus{Address: "10.0.0.150"} })
		is := was.DeepCopy()
		test.change(is)
		if got := StandingChanged(was, is); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}
