package lifecycle

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/fleet"
)

// A reboot that a person asks for is due until the node reports from another boot; one that its operating system asks for, while that says so.
func TestAReboot(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "a", Annotations: map[string]string{}}}
	m.Status.Installed = &v1alpha1.InstalledStatus{At: metav1.NewTime(now.Add(-time.Hour))}
	for _, report := range []struct {
		name, boot, annotation string
		required               *wire.RebootRequired
		want                   string
	}{
		{"nothing", "1", "", nil, ""},
		{"an update", "1", "", &wire.RebootRequired{Packages: []string{"libc6", "linux-image-6.1.0-31-amd64"}}, "required by libc6, linux-image-6.1.0-31-amd64"},
		{"a person, too", "1", "firmware", &wire.RebootRequired{Packages: []string{"libc6"}}, "asked for firmware"},
		{"the same once more", "1", "firmware", nil, "asked for firmware"},
		{"another boot", "2", "firmware", nil, ""},
		{"and an update in it", "2", "firmware", &wire.RebootRequired{}, "required by /run/reboot-required"},
		{"many packages", "2", "firmware", &wire.RebootRequired{Packages: strings.Fields("a b c d e f g")}, "required by a, b, c, d, e and 2 more"},
		{"another wish", "2", "firmware 2", nil, "asked for firmware 2"},
		{"withdrawn", "2", "", nil, ""},
		{"and asked for anew", "2", "firmware 2", nil, "asked for firmware 2"},
	} {
		m.Annotations[v1alpha1.AnnotationReboot] = report.annotation
		live := fleet.Live{HeartbeatAt: now, ReadyAt: now, Heartbeat: &wire.Heartbeat{BootID: report.boot, RebootRequired: report.required}}
		Fold(m, live, nil, now, LimitsFor(90*time.Second, now))
		why, _ := m.WantsReboot()
		if why != report.want {
			t.Errorf("%s: %q, want %q", report.name, why, report.want)
		}
		if told := strings.Contains(m.Status.Message, "a reboot is due: "+why); told != (why != "") && m.Status.Phase == v1alpha1.PhaseReady {
			t.Errorf("%s: the machine says %q", report.name, m.Status.Message)
		}
	}
}
