package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/objects"
)

// CheckIntents refuses before anything is written, so that of ten machines not five are asked.
func CheckIntents(machines []v1alpha1.Machine, action v1alpha1.IntentAction, replace bool) error {
	var errs []error
	for i := range machines {
		if err := checkIntent(&machines[i], action, replace); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// checkIntent tells why an operation cannot be asked of a machine now. An operation that runs is never replaced while
// its machine may be carrying it out.
func checkIntent(m *v1alpha1.Machine, action v1alpha1.IntentAction, replace bool) error {
	open := m.WantedIntent()
	running := open != nil && cli.IntentStateOf(m) == v1alpha1.IntentRunning && m.Status.Phase != v1alpha1.PhaseLost
	if open != nil && (running || !replace) {
		state, hint := "has not begun", "; --replace gives it up"
		if running {
			state, hint = "is running", ""
		}
		who := ""
		if open.RequestedBy != "" {
			who = ", asked for by " + open.RequestedBy + ","
		}
		return exit.Refusedf("%s: its %s%s %s (intent %s); wait until it has ended, `coldrack watch %s` shows it%s",
			m.Name, strings.ToLower(string(open.Action)), who, state, open.ID, m.Name, hint)
	}
	switch {
	case action != v1alpha1.ActionRelease && !m.Spec.Approved:
		return exit.Refusedf("%s is not approved: `coldrack approve %s` first", m.Name, m.Name)
	case action == v1alpha1.ActionInstall && m.Status.Installed != nil:
		return exit.Refusedf("%s: %s is installed already; `coldrack reinstall %s` replaces it", m.Name, m.Status.Installed.Image, m.Name)
	case action == v1alpha1.ActionReinstall && m.Status.Installed == nil:
		return exit.Refusedf("%s has never been installed; `coldrack install %s` does that", m.Name, m.Name)
	}
	return nil
}

// WriteIntents asks each machine for an action, by whom and at which time, and tells out so. It returns the machines that were asked, with their new intents.
func WriteIntents(ctx context.Context, c client.Client, machines []v1alpha1.Machine, intent v1alpha1.Intent, replace bool, out io.Writer) ([]v1alpha1.Machine, error) {
	var asked []v1alpha1.Machine
	var errs []error
	for i := range machines {
		m, err := update(ctx, c, &machines[i], func(m *v1alpha1.Machine) error {
			if err := checkIntent(m, intent.Action, replace); err != nil {
				return err
			}
			own := intent
			own.ID = uuid.NewString()
			m.Spec.Intent = &own
			return nil
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintf(out, "%s: %s asked for (intent %s)\n", m.Name, strings.ToLower(string(intent.Action)), m.Spec.Intent.ID)
		asked = append(asked, *m)
	}
	return asked, errors.Join(errs...)
}

// update changes a machine's spec as of the state that was looked at, trying again when someone else
// wrote in between. change is called anew for each state and may refuse it.
func update(ctx context.Context, c client.Client, m *v1alpha1.Machine, change func(*v1alpha1.Machine) error) (*v1alpha1.Machine, error) {
	const attempts = 5
	for attempt := 1; ; attempt++ {
		changed := m.DeepCopy()
		if err := change(changed); err != nil {
			return nil, err
		}
		patch := client.MergeFromWithOptions(m, client.MergeFromWithOptimisticLock{})
		err := c.Patch(ctx, changed, patch, client.FieldOwner(objects.FieldManager))
		if err == nil {
			return changed, nil
		}
		if !apierrors.IsConflict(err) || attempt == attempts {
			return nil, fmt.Errorf("machine %s: %w", m.Name, err)
		}
		if m, err = Get(ctx, c, m.Name); err != nil {
			return nil, err
		}
	}
}

// Approval approves machines; what is empty stays as it is.
type Approval struct{ Profile, Hostname, Address string }

// Approve approves machines, tells out of each, and tells warnings what keeps one from its install.
func (a Approval) Approve(ctx context.Context, c client.Client, machines []v1alpha1.Machine, out, warnings io.Writer) ([]v1alpha1.Machine, error) {
	var approved []v1alpha1.Machine
	var errs []error
	for i := range machines {
		before := machines[i].Spec.Approved
		m, err := update(ctx, c, &machines[i], func(m *v1alpha1.Machine) error {
			m.Spec.Approved = true
			if a.Profile != "" {
				m.Spec.Profile = a.Profile
			}
			if a.Hostname != "" {
				m.Spec.Hostname = a.Hostname
			}
			if a.Address != "" {
				if m.Spec.Network == nil {
					m.Spec.Network = &v1alpha1.MachineNetwork{}
				}
				m.Spec.Network.Address = a.Address
			}
			return nil
		})
		switch {
		case err != nil:
			errs = append(errs, err)
			continue
		case before:
			fmt.Fprintf(out, "%s: was approved already\n", m.Name)
		default:
			fmt.Fprintf(out, "%s: approved\n", m.Name)
		}
		if m.Spec.Profile == "" {
			fmt.Fprintf(warnings, "%s has no profile yet, so it is not installed: coldrack approve %s --profile NAME\n", m.Name, m.Name)
		}
		approved = append(approved, *m)
	}
	return approved, errors.Join(errs...)
}

// Requester is who asks, for the record: user@host. The server's audit log has the proven identity.
func Requester() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if sudo := os.Getenv("SUDO_USER"); sudo != "" {
		name = sudo
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return name + "@" + host
}
