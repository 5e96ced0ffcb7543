package v1alpha1

import (
	"slices"
	"time"
)

// WantedIntent returns the machine's intent when it has yet to be carried out, else nil. An intent whose id
// status acknowledges as Succeeded or Failed, or acknowledged at any time before, is closed for ever: an
// old manifest that is applied again must not wipe a machine again.
func (m *Machine) WantedIntent() *Intent {
	intent, status := m.Spec.Intent, m.Status.Intent
	switch {
	case intent == nil:
		return nil
	case status != nil && status.ID == intent.ID:
		if status.State == IntentSucceeded || status.State == IntentFailed {
			return nil
		}
	case slices.Contains(m.Status.PastIntents, intent.ID):
		return nil
	}
	return intent
}

// OpenIntent returns the intent that is to be carried out now, else nil. One that takes a machine away which has a system is
// open when the server has acknowledged it, for which it waits until no cluster rests on the machine any more.
func (m *Machine) OpenIntent() *Intent {
	intent := m.WantedIntent()
	if intent == nil || intent.Action == ActionInstall || m.Status.Installed == nil || m.Status.Intent != nil && m.Status.Intent.ID == intent.ID {
		return intent
	}
	return nil
}

// FromBackup says whether the intent may be from a backup that the store was restored from at that time, zero if it was not. It may have been
// carried out since the backup, and would destroy what came of it.
func (i *Intent) FromBackup(restoredAt time.Time) bool {
	return !restoredAt.IsZero() && (i.RequestedAt == nil || !i.RequestedAt.After(restoredAt))
}

// UnknownInstallation is a disk that bears an installation by Coldrack, of a machine that this server has never told to install; else nil.
func (m *Machine) UnknownInstallation() *Disk {
	if m.Status.Installed != nil || m.Status.Intent != nil || m.Status.Inventory == nil {
		return nil
	}
	for i := range m.Status.Inventory.Disks {
		if d := &m.Status.Inventory.Disks[i]; d.Marker != "" {
			return d
		}
	}
	return nil
}

// AcknowledgedIntents are the ids of all intents that may have written this machine's disks, oldest
// first. The current one is the last.
func (m *Machine) AcknowledgedIntents() []string {
	ids := slices.Clone(m.Status.PastIntents)
	if m.Status.Intent != nil && !slices.Contains(ids, m.Status.Intent.ID) {
		ids = append(ids, m.Status.Intent.ID)
	}
	return ids
}

// AcknowledgeIntent makes spec.intent the one that status.intent speaks of, in state Pending, and keeps
// the id of the one before. It reports whether that changed anything.
func (m *Machine) AcknowledgeIntent() bool {
	intent := m.WantedIntent()
	if intent == nil || (m.Status.Intent != nil && m.Status.Intent.ID == intent.ID) {
		return false
	}
	m.Status.PastIntents = m.AcknowledgedIntents()
	if extra := len(m.Status.PastIntents) - maxPastIntents; extra > 0 {
		m.Status.PastIntents = m.Status.PastIntents[extra:]
	}
	m.Status.Intent = &IntentStatus{ID: intent.ID, Action: intent.Action, State: IntentPending}
	return true
}

const maxPastIntents = 32

// ReadmitValue is what AnnotationReadmit says to make a key the machine's identity, as the machine is now.
func (m *Machine) ReadmitValue(key string) string {
	switch {
	case m.Status.Identity != nil:
		return m.Status.Identity.KeyFingerprint + "/" + key
	case m.Status.Intent != nil:
		return "none:" + m.Status.Intent.ID + "/" + key
	}
	return "none:/" + key
}

// Readmits says whether a person wants the node's present key to be the machine's identity.
func (m *Machine) Readmits(key string) bool {
	return m.Annotations[AnnotationReadmit] == m.ReadmitValue(key)
}

// AdoptedImage is the image of an installation that was adopted: nothing is known of it.
const AdoptedImage = "unknown"

// WantsAdoption is the disk whose installation a person wants kept as it is, or nil: see AnnotationAdopt.
func (m *Machine) WantsAdoption() *Disk {
	marker := m.Annotations[AnnotationAdopt]
	if marker == "" || m.Status.Installed != nil || m.Status.Inventory == nil || m.WantedIntent() != nil {
		return nil
	}
	for i := range m.Status.Inventory.Disks {
		if d := &m.Status.Inventory.Disks[i]; d.Marker == marker {
			return d
		}
	}
	return nil
}
