package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/exit"
)

// CheckReboots refuses before anything is written.
func CheckReboots(machines []v1alpha1.Machine) error {
	var errs []error
	for i := range machines {
		if m := &machines[i]; m.Status.Installed == nil || m.Status.Node == nil {
			errs = append(errs, exit.Refusedf("%s has no system that could reboot; `coldrack power cycle %s` switches it off and on", m.Name, m.Name))
		}
	}
	return errors.Join(errs...)
}

// AskReboots asks for a reboot of each machine, and tells out so.
func AskReboots(ctx context.Context, c client.Client, machines []v1alpha1.Machine, reason string, now time.Time, out io.Writer) error {
	request := fmt.Sprintf("at %s by %s", now.UTC().Format(time.RFC3339), Requester())
	if reason != "" {
		request += ": " + reason
	}
	return annotateReboots(ctx, c, machines, func(m *v1alpha1.Machine) string {
		if m.Annotations == nil {
			m.Annotations = map[string]string{}
		}
		m.Annotations[v1alpha1.AnnotationReboot] = request
		if up := m.Status.Kubernetes; up != nil {
			return fmt.Sprintf("asked for a reboot, when its turn has come in cluster %s; follow it with: coldrack cluster watch %s", up.Cluster, up.Cluster)
		}
		return "asked for a reboot; it begins with the node's next report, or when its RebootGroup lets it go: coldrack reboot status"
	}, out)
}

// CancelReboots takes back what AskReboots wrote. A reboot that has begun goes on.
func CancelReboots(ctx context.Context, c client.Client, machines []v1alpha1.Machine, out io.Writer) error {
	return annotateReboots(ctx, c, machines, func(m *v1alpha1.Machine) string {
		if m.RebootRequest() == "" {
			return "no reboot was asked for"
		}
		delete(m.Annotations, v1alpha1.AnnotationReboot)
		return "no longer asked for a reboot"
	}, out)
}

func annotateReboots(ctx context.Context, c client.Client, machines []v1alpha1.Machine, change func(*v1alpha1.Machine) string, out io.Writer) error {
	var errs []error
	for i := range machines {
		told := ""
		m, err := update(ctx, c, &machines[i], func(m *v1alpha1.Machine) error {
			told = change(m)
			return nil
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintf(out, "%s: %s\n", m.Name, told)
	}
	return errors.Join(errs...)
}
