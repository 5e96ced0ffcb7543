package machine

import (
	"context"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/machine/drift"
)

// AcceptHardware accepts the hardware that the machine reports, and says what that means.
func AcceptHardware(ctx context.Context, c client.Client, m *v1alpha1.Machine) (accepted string, err error) {
	_, err = update(ctx, c, m, func(m *v1alpha1.Machine) (err error) {
		accepted, err = acceptHardware(m)
		return err
	})
	return accepted, err
}

func acceptHardware(m *v1alpha1.Machine) (string, error) {
	hardware, known := m.Status.Hardware, m.Status.AcceptedHardware
	switch {
	case hardware == nil:
		return "", exit.Refusedf("%s has not reported its hardware: its agent does so when its node starts, or when it boots from the network; an agent of an older release does not", m.Name)
	case hardware.Incomplete != "":
		return "", exit.Refusedf("the hardware of %s is not compared: %s", m.Name, hardware.Incomplete)
	case known == nil:
		return "", exit.Refusedf("nothing is accepted of %s yet: the hardware of an approved machine is accepted by itself", m.Name)
	}
	now := drift.Parts(hardware)
	found := drift.Compare(known.Parts, now)
	if found.None() {
		return "", exit.Refusedf("the hardware of %s is what was accepted", m.Name)
	}
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Annotations[v1alpha1.AnnotationAcceptHardware] = drift.Digest(now)
	return found.Message(), nil
}
