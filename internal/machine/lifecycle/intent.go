package lifecycle

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
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

// Adopt records the installation that a person wants kept, see v1alpha1.AnnotationAdopt. It reports whether it changed anything.
func Adopt(m *v1alpha1.Machine, now time.Time) bool {
	disk := m.WantsAdoption()
	if disk == nil {
		return false
	}
	at := metav1.NewTime(now)
	m.Status.Installed = &v1alpha1.InstalledStatus{Image: v1alpha1.AdoptedImage, Disk: cmp.Or(disk.ByID, disk.Name), Marker: disk.Marker, At: at}
	if status := m.Status.Intent; status != nil {
		m.Status.Installed.IntentID = status.ID
		if status.State == v1alpha1.IntentPending || status.State == v1alpha1.IntentRunning {
			status.State, status.FinishedAt, status.Message = v1alpha1.IntentSucceeded, &at, "what it had written was adopted"
		}
	}
	return true
}

// Hold notes what the machine's intent waits for, or with an empty text that it waits no more. It reports whether it changed
// anything.
func Hold(m *v1alpha1.Machine, by string, now time.Time) bool {
	if by == "" {
		return meta.RemoveStatusCondition(&m.Status.Conditions, v1alpha1.ConditionHeld)
	}
	return meta.SetStatusCondition(&m.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionHeld, Status: metav1.ConditionTrue, Reason: "NodeOfACluster",
		Message: by, LastTransitionTime: metav1.NewTime(now)})
}

// heldText is what Hold noted, for the machine's message.
func heldText(m *v1alpha1.Machine) string {
	intent := m.WantedIntent()
	held := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionHeld)
	if intent == nil || held == nil {
		return ""
	}
	return fmt.Sprintf("%s waits: %s", strings.ToLower(string(intent.Action)), held.Message)
}

// WasReleased says whether the machine's wish to be released was fulfilled and still stands.
func WasReleased(m *v1alpha1.Machine) bool {
	intent, status := m.Spec.Intent, m.Status.Intent
	return intent != nil && status != nil && intent.ID == status.ID &&
		status.Action == v1alpha1.ActionRelease && status.State == v1alpha1.IntentSucceeded
}
