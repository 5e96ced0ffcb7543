package machine

import (
	"context"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
)

// Adopt asks that the installation on the machine's disk be kept as this machine's own.
func Adopt(ctx context.Context, c client.Client, m *v1alpha1.Machine) (*v1alpha1.Machine, error) {
	return update(ctx, c, m, adopt)
}

// adopt takes a machine that has shown its disks. An install of it that has not begun is given up.
func adopt(m *v1alpha1.Machine) error {
	installed, intent := m.Status.Installed, m.WantedIntent()
	switch {
	case installed != nil:
		return exit.Refusedf("%s: %s is installed already, and the machine boots from its disk", m.Name, installed.Image)
	case m.Status.Inventory == nil:
		return exit.Refusedf("%s has not shown its disks: boot it from the network, and look at it when it waits for approval", m.Name)
	case intent != nil && intent.Action == v1alpha1.ActionRelease:
		return exit.Refusedf("%s is being released (intent %s), which wipes its disks", m.Name, intent.ID)
	case intent != nil && cli.IntentStateOf(m) == v1alpha1.IntentRunning && m.Status.Phase == v1alpha1.PhaseInstalling:
		return exit.Refusedf("%s is being installed (intent %s); `coldrack watch %s` shows it", m.Name, intent.ID, m.Name)
	}
	var markers, disks []string
	for _, d := range m.Status.Inventory.Disks {
		if d.Marker != "" {
			markers, disks = append(markers, d.Marker), append(disks, d.Name)
		}
	}
	switch len(markers) {
	case 0:
		return exit.Refusedf("no disk of %s bears an installation by Coldrack. If its discovery system is of an older release it does not say so: import a newer bundle and boot it again", m.Name)
	case 1:
	default:
		return exit.Refusedf("several disks of %s bear an installation by Coldrack (%s): take out those that are not to start, and boot it from the network again", m.Name, strings.Join(disks, ", "))
	}
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Annotations[v1alpha1.AnnotationAdopt] = markers[0]
	if intent != nil {
		m.Spec.Intent = nil
	}
	return nil
}
