package v1alpha1

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// BootMenuMode says who may choose at a machine's console.
// +kubebuilder:validation:Enum=Off;PIN;Free
type BootMenuMode string

const (
	// BootMenuOff: there is no menu.
	BootMenuOff BootMenuMode = "Off"
	// BootMenuPIN: whoever types the PIN may install and open a shell. The rest of the menu needs no PIN.
	BootMenuPIN BootMenuMode = "PIN"
	// BootMenuFree: everybody on the segment may.
	BootMenuFree BootMenuMode = "Free"
)

// Built-in entries of every boot menu.
const (
	MenuContinue = "continue" // what the server decided
	MenuDiscover = "discover" // the discovery system, for a machine that is not installed
	MenuLive     = "live"     // the live system with a root shell on the console
	MenuLocal    = "local"    // the machine's own disk
)

// LabelMenuRole is the label by which a MachineGroup selects machines whose role was chosen at the console.
const LabelMenuRole = "coldrack.dev/role"

// MenuRole is what a machine is to become, as a person at the console says it.
// +kubebuilder:validation:Enum=single-machine;small-cluster;development-control-plane;development-worker;production-control-plane;production-worker
type MenuRole string

const (
	RoleSingleMachine           MenuRole = "single-machine"
	RoleSmallCluster            MenuRole = "small-cluster"
	RoleDevelopmentControlPlane MenuRole = "development-control-plane"
	RoleDevelopmentWorker       MenuRole = "development-worker"
	RoleProductionControlPlane  MenuRole = "production-control-plane"
	RoleProductionWorker        MenuRole = "production-worker"
)

// Title is the role as the menu shows it.
func (r MenuRole) Title() string {
	switch r {
	case RoleSingleMachine:
		return "Single machine"
	case RoleSmallCluster:
		return "Member of a small cluster"
	case RoleDevelopmentControlPlane:
		return "Development: control plane and etcd"
	case RoleDevelopmentWorker:
		return "Development: worker"
	case RoleProductionControlPlane:
		return "Production: control plane and etcd"
	case RoleProductionWorker:
		return "Production: worker"
	}
	return string(r)
}

// BootMenu is a menu for a person at the console of a machine that boots from the network.
type BootMenu struct {
	// Mode says who may choose. Off: there is no menu. PIN: installing and the shell need the PIN. Free: nothing does, so that everybody
	// on the segment may have a machine installed that is not approved yet.
	// +optional
	// +kubebuilder:default=Off
	Mode BootMenuMode `json:"mode,omitempty"`
	// Default is the entry that is taken when nobody asks for the menu: continue, discover, local, or with mode Free the name of an
	// entry. Only machines that nobody decided about are given an entry so.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Default string `json:"default,omitempty"`
	// Timeout is how long the console waits for the key that opens the menu: 1s to 5m, 10s by default. It delays each network boot.
	// +optional
	Timeout *metav1.Duration `json:"timeout,omitempty"`
	// PINSecret names the Secret of type boot-menu-pin with the PIN, which "coldrack subnet set-pin" writes. Required by mode PIN.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	PINSecret string `json:"pinSecret,omitempty"`
	// Entries are the ways to install that the menu offers.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=16
	Entries []BootMenuEntry `json:"entries,omitempty"`
}

// BootMenuEntry is one way to install. The machine that chooses it is approved, and gets what the entry names.
type BootMenuEntry struct {
	// Name of the entry: lower-case letters, digits and hyphens.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
	// Title is what the menu shows. Default: the title of the role, or the name.
	// +optional
	// +kubebuilder:validation:MaxLength=60
	Title string `json:"title,omitempty"`
	// Role puts the label coldrack.dev/role on the machine, by which a MachineGroup selects it.
	// +optional
	Role MenuRole `json:"role,omitempty"`
	// Profile to install with. Default: that of the group which the machine comes into.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Profile string `json:"profile,omitempty"`
	// Group names a MachineGroup. The machine gets the labels of its selector's matchLabels, and its profile.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Group string `json:"group,omitempty"`
	// Labels to put on the Machine.
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
}

// Shown is the entry's title.
func (e *BootMenuEntry) Shown() string {
	switch {
	case e.Title != "":
		return e.Title
	case e.Role != "":
		return e.Role.Title()
	}
	return e.Name
}

// Entry returns the entry of a name, nil when there is none.
func (m *BootMenu) Entry(name string) *BootMenuEntry {
	if m == nil {
		return nil
	}
	for i := range m.Entries {
		if m.Entries[i].Name == name {
			return &m.Entries[i]
		}
	}
	return nil
}

// Wait is Timeout or its default.
func (m *BootMenu) Wait() time.Duration {
	if m.Timeout == nil {
		return 10 * time.Second
	}
	return m.Timeout.Duration
}

// SecretTypeMenuPIN is the type of Secrets with the PIN of boot menus; MenuPINKey is where it is.
const (
	SecretTypeMenuPIN = "boot-menu-pin"
	MenuPINKey        = "pin"
)

// minPIN is the least length of a PIN. Wrong tries are limited to about one a minute, so that six digits last for a year.
const minPIN = 6

var pinForm = regexp.MustCompile(`^[0-9A-Za-z]{6,32}$`)

// ValidateMenuPIN refuses what cannot be a PIN: it is typed at consoles with unknown keyboards.
func ValidateMenuPIN(pin string) error {
	if !pinForm.MatchString(pin) {
		return fmt.Errorf("a PIN has %d to 32 digits and letters without accents", minPIN)
	}
	return nil
}

// ReadMenuPIN reads a Secret. Its errors name no value.
func ReadMenuPIN(s *Secret) (string, error) {
	if s.Type != SecretTypeMenuPIN {
		return "", fmt.Errorf("Secret %s is not of type %s", s.Name, SecretTypeMenuPIN)
	}
	pin := string(s.Data[MenuPINKey])
	if err := ValidateMenuPIN(pin); err != nil {
		return "", fmt.Errorf("Secret %s, key %s: %w", s.Name, MenuPINKey, err)
	}
	return pin, nil
}

func validateBootMenu(at *field.Path, m *BootMenu) field.ErrorList {
	if m == nil {
		return nil
	}
	var errs field.ErrorList
	if wait := m.Wait(); wait < time.Second || wait > 5*time.Minute {
		errs = append(errs, field.Invalid(at.Child("timeout"), wait.String(), "must be from 1s to 5m"))
	}
	if m.Mode == BootMenuPIN && m.PINSecret == "" {
		errs = append(errs, field.Required(at.Child("pinSecret"), "mode PIN needs the Secret with the PIN: coldrack subnet set-pin writes it"))
	}
	builtIn := []string{MenuContinue, MenuDiscover, MenuLive, MenuLocal}
	switch entry := m.Entry(m.Default); {
	case m.Default == "" || m.Default == MenuContinue || m.Default == MenuDiscover || m.Default == MenuLocal:
	case entry == nil:
		errs = append(errs, field.NotSupported(at.Child("default"), m.Default, []string{MenuContinue, MenuDiscover, MenuLocal, "the name of an entry"}))
	case m.Mode != BootMenuFree:
		errs = append(errs, field.Invalid(at.Child("default"), m.Default, "an entry that installs can be the default with mode Free only: nobody types a PIN for it"))
	}
	for i := range m.Entries {
		e, entry := at.Child("entries").Index(i), &m.Entries[i]
		if slices.Contains(builtIn, entry.Name) {
			errs = append(errs, field.Invalid(e.Child("name"), entry.Name, "is the name of a built-in entry"))
		}
		if entry.Role == "" && entry.Profile == "" && entry.Group == "" && len(entry.Labels) == 0 {
			errs = append(errs, field.Required(e, "an entry needs a role, a profile, a group or labels"))
		}
		for _, r := range entry.Title {
			if r < ' ' || r > '~' {
				errs = append(errs, field.Invalid(e.Child("title"), entry.Title, "firmware consoles show ASCII only"))
				break
			}
		}
		errs = append(errs, metav1validation.ValidateLabels(entry.Labels, e.Child("labels"))...)
	}
	return errs
}

// AnnotationMenuChoice on a Machine is what a person chose at its console, a MenuChoice in JSON. The server writes it; enrolment carries it out,
// once, for a machine that nobody has decided about.
const AnnotationMenuChoice = "coldrack.dev/menu-choice"

// MenuChoice is a choice at a machine's console.
//
// +kubebuilder:object:generate=false
type MenuChoice struct {
	Subnet string `json:"subnet"`
	Entry  string `json:"entry"`
	// PIN says whether the PIN was typed.
	PIN bool `json:"pin"`
	// By is the name that was typed with the PIN, and From the address that it came from. Neither is proven.
	By   string    `json:"by,omitempty"`
	From string    `json:"from,omitempty"`
	At   time.Time `json:"at"`
}

// Menu returns what was chosen at the machine's console; false: nothing, or nothing that can be read.
func (m *Machine) Menu() (MenuChoice, bool) {
	var c MenuChoice
	text := m.Annotations[AnnotationMenuChoice]
	if text == "" || json.Unmarshal([]byte(text), &c) != nil {
		return MenuChoice{}, false
	}
	return c, true
}

// SetMenu records a choice.
func (m *Machine) SetMenu(c MenuChoice) {
	text, _ := json.Marshal(c) // strings, a bool and a time
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Annotations[AnnotationMenuChoice] = string(text)
}

// Undecided says whether nobody has decided about the machine: no person, no policy, no act that was asked for. Only such a machine may be
// given something by what it says itself.
func (m *Machine) Undecided() bool {
	return !m.Spec.Approved && m.Spec.Intent == nil && m.Status.Intent == nil && m.Status.Installed == nil && m.Status.Identity == nil && m.Annotations[AnnotationEnrolledBy] == ""
}
