package lifecycle

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

// Acknowledge takes a new intent into status, and closes one that cannot be meant. It reports whether it
// changed anything.
func Acknowledge(m *v1alpha1.Machine, now time.Time) bool {
	changed := m.AcknowledgeIntent()
	intent := m.OpenIntent()
	if intent != nil && intent.Action == v1alpha1.ActionInstall && m.Status.Installed != nil {
		status, at := m.Status.Intent, metav1.NewTime(now)
		status.State, status.FinishedAt = v1alpha1.IntentFailed, &at
		status.Message = fmt.Sprintf("%s is installed already (%s); an install over it is action Reinstall", m.Name, m.Status.Installed.Image)
		return true
	}
	return changed
}

// WasReleased says whether the machine's wish to be released was fulfilled and still stands.
func WasReleased(m *v1alpha1.Machine) bool {
	intent, status := m.Spec.Intent, m.Status.Intent
	return intent != nil && status != nil && intent.ID == status.ID &&
		status.Action == v1alpha1.ActionRelease && status.State == v1alpha1.IntentSucceeded
}
