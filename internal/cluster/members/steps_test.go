package members

import (
	"strings"
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

// Who asks for a reboot gets it by a step; a node that asks for the same again after its reboot does not, unless a person wants it.
func TestRebootsThatAreAskedFor(t *testing.T) {
	asked := func(f *Facts, machine int) {
		m := &f.Machines[machine]
		m.Annotations = map[string]string{v1alpha1.AnnotationReboot: "firmware"}
		m.Status.Reboot = &v1alpha1.RebootStatus{Request: "firmware", BootID: "boot-1"}
	}
	required := func(f *Facts, machine int) { f.Machines[machine].Status.Node.RebootRequired = "libc6" }
	noded := func(f *Facts, boot string) {
		f.Cluster.Status.Nodes[1].RebootRequest = &v1alpha1.RebootStatus{Request: "kernel", BootID: boot}
	}
	rebooted := func(f *Facts, ago time.Duration) {
		f.Cluster.Status.Nodes[1].Rebooted = &v1alpha1.NodeReboot{At: metav1.NewTime(f.Now.Add(-ago)), Reason: "required by libc6"}
	}
	for _, test := range []struct {
		name   string
		change func(*Facts)
		take   string
	}{
		{"by the operating system", func(f *Facts) { required(f, 1) }, "reboot: it is to be rebooted: required by libc6"},
		{"by a person", func(f *Facts) { asked(f, 1) }, "reboot: it is to be rebooted: asked for firmware"},
		{"again after the reboot", func(f *Facts) { required(f, 1); rebooted(f, time.Hour) }, ""},
		{"again after a day", func(f *Facts) { required(f, 1); rebooted(f, 25*time.Hour) }, "reboot: it is to be rebooted: required by libc6"},
		{"again by a person", func(f *Facts) { asked(f, 1); rebooted(f, time.Hour) }, "reboot: it is to be rebooted: asked for firmware"},
		{"by the operating system, where changes are a person's", func(f *Facts) { required(f, 1); f.Cluster.Spec.Upgrade.Strategy = v1alpha1.UpgradeManual }, ""},
		{"by a person there", func(f *Facts) { asked(f, 1); f.Cluster.Spec.Upgrade.Strategy = v1alpha1.UpgradeManual }, "reboot: it is to be rebooted: asked for firmware"},
		{"by its Node", func(f *Facts) { noded(f, "boot-1") }, "reboot: it is to be rebooted: asked for on its Node: kernel"},
		{"by its Node, before the last boot", func(f *Facts) { noded(f, "boot-0") }, ""},
		{"by its Node, where changes are a person's", func(f *Facts) { noded(f, "boot-1"); f.Cluster.Spec.Upgrade.Strategy = v1alpha1.UpgradeManual }, ""},
		{"of the only server", func(f *Facts) { required(f, 0) }, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := facts(t, "2026-11-30T12:00:00Z")
			test.change(&f)
			in, err := Steps(f)
			check(t, err)
			plan, got := planner.Next(in), ""
			for _, s := range plan.Steps {
				got += string(s.Operation) + ": " + s.Reason
			}
			if got != test.take {
				t.Errorf("got %q; waits %v, blocks %v", got, plan.Waits, plan.Blocks)
			}
		})
	}
}

// A node hears of the boot that it is to end while the step runs, and not when its cluster is paused.
func TestTheBootThatIsToEnd(t *testing.T) {
	r := record(t, rack(t, "a", v1alpha1.TopologyDevelopment, 2))
	set, name := newSet(), r.Cluster.Status.Nodes[1].Machine
	for _, test := range []struct {
		name, step, failed string
		paused             bool
		want               string
	}{
		{"while it is drained", "drain", "", false, ""},
		{"when its turn has come", "change", "", false, "boot-1"},
		{"as a remedy", "restart", "", false, "boot-1"},
		{"after a failure", "change", "it did not come back", false, ""},
		{"in a pause", "change", "", true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			r.Cluster = r.Cluster.DeepCopy()
			r.Cluster.Spec.Paused = test.paused
			r.Cluster.Status.Nodes[1].Hand = &v1alpha1.NodeHand{Operation: "reboot", Step: test.step, Failed: test.failed, BootID: "boot-1", Reason: "firmware"}
			set.Put(r)
			boot, reason, member := set.Reboot(name)
			if boot != test.want || !member || (boot != "") != (reason == "firmware") {
				t.Errorf("got %q, %q, %t", boot, reason, member)
			}
		})
	}
	if _, _, member := set.Reboot("another"); member {
		t.Error("a machine of no cluster is a member")
	}
}

// What a group says of remediation is what is done for its broken nodes, and nothing is done by default.
func TestRemediationAsItIsWritten(t *testing.T) {
	silent := func(m *v1alpha1.Machine) { m.Status.Phase = v1alpha1.PhaseLost }
	for _, test := range []struct {
		name     string
		spec     v1alpha1.RemediationSpec
		machine  func(*v1alpha1.Machine)
		remedies []v1alpha1.NodeRemedy
		spare    bool
		want     string
	}{
		{"off", v1alpha1.RemediationSpec{}, nil, nil, false, ""},
		{"an agent that answers", v1alpha1.RemediationSpec{Enabled: true}, nil, nil, false, "restart"},
		{"not yet", v1alpha1.RemediationSpec{Enabled: true, NotReadyFor: &metav1.Duration{Duration: time.Hour}}, nil, nil, false, ""},
		{"a silent agent, no BMC", v1alpha1.RemediationSpec{Enabled: true}, silent, nil, false, ""},
		{"a silent agent and a BMC", v1alpha1.RemediationSpec{Enabled: true}, func(m *v1alpha1.Machine) { silent(m); m.Spec.BMC = &v1alpha1.BMC{} }, nil, false, "power-cycle"},
		{"a rescue", v1alpha1.RemediationSpec{Enabled: true}, func(m *v1alpha1.Machine) {
			silent(m)
			m.Spec.BMC, m.Spec.Rescue = &v1alpha1.BMC{}, &v1alpha1.Rescue{Autologin: true}
		}, nil, false, ""},
		{"after a restart, in the pause", v1alpha1.RemediationSpec{Enabled: true, Replace: true}, silent, []v1alpha1.NodeRemedy{{Kind: "restart"}}, true, ""},
		{"after the pause", v1alpha1.RemediationSpec{Enabled: true, Replace: true, Pause: &metav1.Duration{Duration: time.Second}}, silent, []v1alpha1.NodeRemedy{{Kind: "restart"}}, true, "replace"},
		{"without a spare", v1alpha1.RemediationSpec{Enabled: true, Replace: true}, silent, nil, false, ""},
		{"which is decided once", v1alpha1.RemediationSpec{}, nil, []v1alpha1.NodeRemedy{{Kind: "replace"}}, true, "take add"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := facts(t, "2026-11-30T12:00:00Z")
			n, m := &f.Cluster.Status.Nodes[1], &f.Machines[1]
			since := metav1.NewTime(f.Now.Add(-30 * time.Minute))
			n.Ready, n.ReadyChangedAt, n.Remedies = false, &since, test.remedies
			for i := range n.Remedies {
				n.Remedies[i].At = metav1.NewTime(f.Now.Add(-5 * time.Minute))
			}
			if test.machine != nil {
				test.machine(m)
			}
			for i := range f.Groups {
				if f.Groups[i].Name == n.Group {
					f.Groups[i].Spec.Remediation = test.spec
				}
			}
			if test.spare {
				f.Spares = map[string][]string{n.Group: {"spare"}}
			}
			in, err := Steps(f)
			check(t, err)
			plan := planner.Next(in)
			var got []string
			for _, s := range plan.Steps {
				got = append(got, string(s.Kind))
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("got %q; waits %v, blocks %v", got, plan.Waits, plan.Blocks)
			}
		})
	}
}
