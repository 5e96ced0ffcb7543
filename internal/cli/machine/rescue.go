package machine

import (
	"context"
	"errors"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/exit"
)

// CheckRescue refuses before anything is written. A machine that carries an operation out is left to it.
func CheckRescue(machines []v1alpha1.Machine) error {
	var errs []error
	for i := range machines {
		m := &machines[i]
		if i := m.Status.Intent; i != nil && i.State == v1alpha1.IntentRunning && m.Status.Phase != v1alpha1.PhaseLost {
			errs = append(errs, exit.Refusedf("%s: an operation is running (%s, intent %s); wait until it has ended, `coldrack watch %s` shows it", m.Name, i.Action, i.ID, m.Name))
		}
	}
	return errors.Join(errs...)
}

// RescueAnswer is what became of one machine.
type RescueAnswer struct {
	Machine string `json:"machine"`
	Rescue  bool   `json:"rescue"`
	Message string `json:"message"`
}

// AskRescue has each machine boot the live system, until EndRescue.
func AskRescue(ctx context.Context, c client.Client, machines []v1alpha1.Machine, rescue v1alpha1.Rescue) ([]RescueAnswer, error) {
	return changeRescue(ctx, c, machines, func(m *v1alpha1.Machine) string {
		m.Spec.Rescue = rescue.DeepCopy()
		told := "boots the live system at its next network boot"
		switch {
		case m.Status.Kubernetes != nil:
			told += fmt.Sprintf("; `coldrack reboot %s` drains the node first", m.Name)
		case m.Spec.BMC != nil:
			told += fmt.Sprintf("; `coldrack power cycle %s` restarts it", m.Name)
		}
		return told
	})
}

// EndRescue takes back what AskRescue wrote.
func EndRescue(ctx context.Context, c client.Client, machines []v1alpha1.Machine) ([]RescueAnswer, error) {
	return changeRescue(ctx, c, machines, func(m *v1alpha1.Machine) string {
		if m.Spec.Rescue == nil {
			return "no live system was asked for"
		}
		m.Spec.Rescue = nil
		return "boots as before at its next network boot; a live system that runs stays until it is restarted (in it: reboot -f)"
	})
}

func changeRescue(ctx context.Context, c client.Client, machines []v1alpha1.Machine, change func(*v1alpha1.Machine) string) ([]RescueAnswer, error) {
	answers := []RescueAnswer{}
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
		answers = append(answers, RescueAnswer{m.Name, m.Spec.Rescue != nil, told})
	}
	return answers, errors.Join(errs...)
}
