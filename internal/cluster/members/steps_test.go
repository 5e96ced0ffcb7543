package members

import (
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/planner"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Certificates that are due for a restart have one node taken after the other. Where a person wants nothing changed, nothing is.
func TestCertificatesThatAreDueAreAStep(t *testing.T) {
	now := time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name   string
		due    time.Time
		change func(*v1alpha1.Cluster)
		want   int // nodes that are taken
	}{
		{"not yet", now.Add(time.Minute), nil, 0},
		{"due on all at once", now.Add(-time.Minute), nil, 1},
		{"due while changes are a person's", now.Add(-time.Minute), func(c *v1alpha1.Cluster) { c.Spec.Upgrade.Strategy = v1alpha1.UpgradeManual }, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := record(t, rack(t, "a", v1alpha1.TopologyProduction, 1))
			ready := metav1.NewTime(now.Add(-time.Hour))
			control := map[string]bool{}
			for i := range r.Cluster.Status.Nodes {
				n := &r.Cluster.Status.Nodes[i]
				n.Ready, n.ReadyChangedAt, control[n.Machine] = true, &ready, n.Group == "a-control"
			}
			for i := range r.Machines {
				r.Machines[i].Status.Kubernetes = &v1alpha1.KubernetesStatus{Cluster: "a"}
				if control[r.Machines[i].Name] {
					r.Machines[i].Status.Kubernetes.RenewAt = &metav1.Time{Time: test.due}
				}
			}
			if test.change != nil {
				test.change(r.Cluster)
			}
			in, err := Steps(Facts{Cluster: r.Cluster, Groups: r.Groups, Machines: r.Machines, Now: now})
			check(t, err)
			taken := 0
			for _, s := range planner.Next(in).Steps {
				if s.Kind == planner.StepTake && s.Operation == planner.OperationCertificates && s.Group == "a-control" && s.Disruption == "" {
					taken++
				} else {
					t.Errorf("%+v", s)
				}
			}
			if taken != test.want {
				t.Errorf("%d nodes are taken, want %d", taken, test.want)
			}
		})
	}
}
