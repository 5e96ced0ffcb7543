package members

import (
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/planner"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What is written of windows holds a change until one opens, by the clock of its time zone.
func TestWindowsHoldWhatIsWritten(t *testing.T) {
	night := v1alpha1.MaintenanceWindow{From: "22:00", To: "05:30", TimeZone: "Europe/Berlin"}
	sunday := v1alpha1.MaintenanceWindow{Days: []v1alpha1.Weekday{"Sunday"}, From: "08:00", Duration: &metav1.Duration{Duration: time.Hour}}
	for _, test := range []struct {
		name, now string
		windows   []v1alpha1.MaintenanceWindow
		opens     string
	}{
		{"no window", "2026-11-30T12:00:00Z", nil, ""},
		{"by day", "2026-11-30T12:00:00Z", []v1alpha1.MaintenanceWindow{night}, "2026-11-30T21:00:00Z"},
		{"at night", "2026-12-01T04:29:00Z", []v1alpha1.MaintenanceWindow{night}, ""},
		{"the first of two", "2026-12-06T05:00:00Z", []v1alpha1.MaintenanceWindow{night, sunday}, "2026-12-06T08:00:00Z"},
		{"in the second", "2026-12-06T08:30:00Z", []v1alpha1.MaintenanceWindow{night, sunday}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := facts(t, test.now)
			f.Cluster.Spec.MaintenanceWindows = test.windows
			worker := &f.Cluster.Status.Nodes[1]
			f.Changed = map[string]planner.Touch{worker.Machine: {}}
			in, err := Steps(f)
			check(t, err)
			plan, opens := planner.Next(in), ""
			if !plan.Opens.IsZero() {
				opens = plan.Opens.Format(time.RFC3339)
			}
			if opens != test.opens || (len(plan.Steps) == 0) != (test.opens != "") {
				t.Errorf("the window opens %q, want %q; steps %+v, waits %v, blocks %v", opens, test.opens, plan.Steps, plan.Waits, plan.Blocks)
			}
		})
	}
	f := facts(t, "2026-11-30T12:00:00Z")
	f.Cluster.Spec.MaintenanceWindows = []v1alpha1.MaintenanceWindow{{From: "22:00", To: "05:30", TimeZone: "Europe/Atlantis"}}
	if _, err := Steps(f); err == nil {
		t.Error("a window that nobody understands is taken for none")
	}
}

// facts of a cluster of one server and two workers that runs, at a time.
func facts(t *testing.T, now string) Facts {
	t.Helper()
	at, err := time.Parse(time.RFC3339, now)
	check(t, err)
	s := rack(t, "a", v1alpha1.TopologyDevelopment, 2)
	r := record(t, s)
	long := metav1.NewTime(at.Add(-24 * time.Hour))
	c := r.Cluster.DeepCopy()
	f := Facts{Cluster: c, Groups: s.Groups, Now: at, Changed: map[string]planner.Touch{}, Placed: map[string][]string{}}
	for i := range c.Status.Nodes {
		n := &c.Status.Nodes[i]
		n.Ready, n.ReadyChangedAt = true, &long
		f.Placed[n.Group] = append(f.Placed[n.Group], n.Machine)
		m := v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: n.Machine}}
		m.Spec.Approved, m.Status.Phase, m.Status.Installed = true, v1alpha1.PhaseReady, &v1alpha1.InstalledStatus{At: long}
		m.Status.Node = &v1alpha1.NodeStatus{BootID: "boot-1", ReadyAt: &long}
		f.Machines = append(f.Machines, m)
	}
	return f
}
