package lifecycle

import (
	"fmt"
	"slices"

	"coldrack.dev/api/v1alpha1"
)

// FailedPhase says which phase of a machine's bring-up failed first, or "".
func FailedPhase(m *v1alpha1.Machine) string {
	if m == nil || m.Status.Kubernetes == nil {
		return ""
	}
	for _, p := range m.Status.Kubernetes.Phases {
		if p.State == v1alpha1.StepFailed {
			return fmt.Sprintf("machine %s: %s failed: %s", m.Name, p.Name, p.Message)
		}
	}
	return ""
}

// RunningPhase is what a node is at, in a few words: the last phase that is running, since earlier ones take long
// only when later ones wait for them.
func RunningPhase(up *v1alpha1.KubernetesStatus) string {
	for _, p := range slices.Backward(up.Phases) {
		if p.State == v1alpha1.StepRunning {
			if p.Message != "" {
				return p.Name + ": " + p.Message
			}
			return stepText([]v1alpha1.Step{p})
		}
	}
	for _, p := range up.Phases {
		if p.State == v1alpha1.StepFailed {
			return p.Name + " failed"
		}
	}
	for _, p := range up.Phases {
		if p.State == v1alpha1.StepPending {
			return p.Name
		}
	}
	return ""
}
