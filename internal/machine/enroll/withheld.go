package enroll

import (
	"cmp"
	"fmt"
	"strings"

	"coldrack.dev/api/v1alpha1"
)

// Restored begins what is said of machines that wait because the store was restored from a backup.
const Restored = "the server's store was restored from a backup"

// IsRestored says whether a machine is held because the store was restored.
func IsRestored(held string) bool { return strings.Contains(held, Restored) }

// withheld says why no policy may approve a machine that it would: its disk bears an installation that somebody may need, or may bear one
// that only the lost store knew. A person may approve it. "" when nothing is in the way.
func withheld(m *v1alpha1.Machine, w World) string {
	if found := UnknownInstallation(m); found != "" {
		return found
	}
	if !w.RestoredAt.IsZero() {
		return fmt.Sprintf("%s, and this machine may have been installed since: policies approve none until `coldrack server restored --confirm`. To approve this one by hand: coldrack approve %s, then coldrack install %s",
			Restored, m.Name, m.Name)
	}
	return ""
}

// withheldInstall says why an approved machine is not installed without a further word.
func withheldInstall(m *v1alpha1.Machine, w World) string {
	switch found := UnknownInstallation(m); {
	case found != "" && m.Annotations[v1alpha1.AnnotationEnrolledBy] != "":
		return found
	case !w.RestoredAt.IsZero():
		return fmt.Sprintf("%s, and this machine may have been installed since: none is installed by itself until `coldrack server restored --confirm`. To install this one now: coldrack install %s",
			Restored, m.Name)
	}
	return ""
}

// UnknownInstallation tells a person of a disk with an installation that this server does not know, or is "".
func UnknownInstallation(m *v1alpha1.Machine) string {
	d := m.UnknownInstallation()
	if d == nil {
		return ""
	}
	return fmt.Sprintf("disk %s bears an installation by Coldrack that this server does not know (GUID %s): it belongs to another server, its record is lost, or its machine was deleted here. No policy approves this machine. "+
		"To keep the installation: coldrack adopt %s. To install anew: coldrack approve %s, then coldrack install %s; unless the profile says wipe: Always, the disk must be wiped first",
		cmp.Or(d.ByID, d.Name), d.Marker, m.Name, m.Name, m.Name)
}
