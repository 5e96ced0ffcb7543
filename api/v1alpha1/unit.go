package v1alpha1

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"coldrack.dev/internal/contract/validate"
)

// Unit is a systemd unit that the server places on installed machines, in a cluster or not. Only administrators may write one: it runs as root.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=coldrack
// +kubebuilder:printcolumn:name="Wanted",type=string,JSONPath=`.spec.desiredState`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Active",type=string,JSONPath=`.status.active`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Unit struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   UnitSpec   `json:"spec"`
	Status UnitStatus `json:"status,omitempty"`
}

// UnitList is a list of Units.
//
// +kubebuilder:object:root=true
type UnitList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Unit `json:"items"`
}

// UnitDesiredState is how far a unit is to get.
// +kubebuilder:validation:Enum=Inactive;Loaded;Launched
type UnitDesiredState string

const (
	// UnitInactive is on no machine.
	UnitInactive UnitDesiredState = "Inactive"
	// UnitLoaded is on its machine and not started by Coldrack, for example the service of a timer.
	UnitLoaded UnitDesiredState = "Loaded"
	// UnitLaunched runs.
	UnitLaunched UnitDesiredState = "Launched"
)

// UnitSpec is what a person wants of a unit.
//
// +kubebuilder:validation:XValidation:rule="has(self.unitName) == has(oldSelf.unitName) && (!has(self.unitName) || self.unitName == oldSelf.unitName)",message="unitName cannot be changed: destroy the unit, and submit it by the other name"
type UnitSpec struct {
	// UnitName is systemd's name of it, where that is no name of an object: web@.service, web@7.service. Default: the object's name. The name of the
	// object is the same with "-at-" in place of "@".
	// +optional
	// +kubebuilder:validation:MaxLength=200
	UnitName string `json:"unitName,omitempty"`
	// File is the text of the unit file. A section [X-Fleet] in it says where the unit runs, in place of the fields below; [Install] has no effect.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=65536
	File string `json:"file"`
	// DesiredState is how far it is to get. Default Launched.
	// +optional
	DesiredState UnitDesiredState `json:"desiredState,omitempty"`
	// Global units run on every machine that fits.
	// +optional
	Global bool `json:"global,omitempty"`
	// Replicas is on how many machines it runs, or, of a template (web@.service), how many instances there are: web@1.service and so on.
	// Default 1, and 0 for a template.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	Replicas *int32 `json:"replicas,omitempty"`
	// Machine binds it to one.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Machine string `json:"machine,omitempty"`
	// MachineOf is the unit whose machine it shares, and with which it moves.
	// +optional
	// +kubebuilder:validation:MaxLength=200
	MachineOf string `json:"machineOf,omitempty"`
	// MachineSelector are the labels of Machines that it may run on. Default: all.
	// +optional
	MachineSelector *metav1.LabelSelector `json:"machineSelector,omitempty"`
	// Conflicts are globs of the names of units that are never on the same machine, such as web@*.service.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=200
	Conflicts []string `json:"conflicts,omitempty"`
	// MoveAfter is how long its machine may be silent before it is started on another one: at least 2m. Default 5m.
	// +optional
	MoveAfter *metav1.Duration `json:"moveAfter,omitempty"`
}

// UnitStatus is where a unit is.
type UnitStatus struct {
	// Phase is Inactive, Waiting (for a machine), Starting, Active, Failed or Stopping.
	// +optional
	Phase string `json:"phase,omitempty"`
	// Message for a person: what is waited for, what has failed.
	// +optional
	Message string `json:"message,omitempty"`
	// Active is "active/wanted" machines or instances.
	// +optional
	Active string `json:"active,omitempty"`
	// Placements are the machines that have it. This is the record by which machines are told what to run.
	// +optional
	// +listType=atomic
	Placements []UnitPlacement `json:"placements,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// UnitPlacement is a unit, or an instance of a template, on a machine.
type UnitPlacement struct {
	// Unit is systemd's name of it.
	Unit string `json:"unit"`
	// Machine that has it.
	Machine string `json:"machine"`
	// Since is when that was decided.
	Since metav1.Time `json:"since"`
	// Reason of the decision.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Leaving: the machine is told to stop it, and has not said yet that it has.
	// +optional
	Leaving bool `json:"leaving,omitempty"`
	// State is systemd's word: active, failed, inactive, activating; empty before the machine has said anything.
	// +optional
	State string `json:"state,omitempty"`
	// Message is what the machine says of it: systemd's details, or an error.
	// +optional
	Message string `json:"message,omitempty"`
}

const (
	// DefaultUnitMoveAfter is the MoveAfter of a Unit that says none.
	DefaultUnitMoveAfter = 5 * time.Minute
	// minUnitMoveAfter is longer than a machine that restarts its agent, or loses a heartbeat, is silent.
	minUnitMoveAfter = 2 * time.Minute
)

// UnitObjectName is the name of the object of a unit.
func UnitObjectName(unit string) string {
	prefix, instance, kind, template := validate.SplitUnitName(unit)
	name := prefix
	switch {
	case template:
		name += "-at"
	case instance != "":
		name += "-at-" + instance
	}
	clean := strings.Map(func(r rune) rune {
		if r == '_' || r == ':' || r == '\\' {
			return '-'
		}
		return r
	}, name+"."+kind)
	return strings.ToLower(clean)
}

// FullName is systemd's name of the unit.
func (u *Unit) FullName() string { return cmp.Or(u.Spec.UnitName, u.Name) }

// Wants is the desired state, with its default.
func (u *Unit) Wants() UnitDesiredState { return cmp.Or(u.Spec.DesiredState, UnitLaunched) }

// Copies is how many machines or instances are wanted of a unit that is not global.
func (u *Unit) Copies() int {
	if u.Spec.Replicas != nil {
		return int(*u.Spec.Replicas)
	}
	if _, _, _, template := validate.SplitUnitName(u.FullName()); template {
		return 0
	}
	return 1
}

// MovesAfter is how long its machine may be silent.
func (u *Unit) MovesAfter() time.Duration {
	if u.Spec.MoveAfter == nil {
		return DefaultUnitMoveAfter
	}
	return u.Spec.MoveAfter.Duration
}

// UnitWhere is where a unit may run.
//
// +kubebuilder:object:generate=false
type UnitWhere struct {
	Global             bool
	Machine, MachineOf string
	Conflicts          []string
	Selector           labels.Selector
}

// Where is what the spec, or the [X-Fleet] section of the file, says of where the unit may run. Fleet's MachineID is a Machine's name, and its
// metadata are labels.
func (u *Unit) Where() (UnitWhere, field.ErrorList) {
	spec := field.NewPath("spec")
	var errs field.ErrorList
	w := UnitWhere{Global: u.Spec.Global, Machine: u.Spec.Machine, MachineOf: u.Spec.MachineOf, Conflicts: u.Spec.Conflicts, Selector: labels.Everything()}
	if u.Spec.MachineSelector != nil {
		selector, err := metav1.LabelSelectorAsSelector(u.Spec.MachineSelector)
		if err != nil {
			return w, field.ErrorList{field.Invalid(spec.Child("machineSelector"), "", err.Error())}
		}
		w.Selector = selector
	}
	fleet, err := validate.Fleet(u.FullName(), u.Spec.File)
	if err != nil {
		return w, field.ErrorList{field.Invalid(spec.Child("file"), field.OmitValueType{}, err.Error())}
	}
	if !fleet.Present {
		return w, nil
	}
	both := func(name string, set bool) {
		if set {
			errs = append(errs, field.Forbidden(spec.Child(name), "the file has a section [X-Fleet], which says where the unit runs: write that into one of them only"))
		}
	}
	both("global", w.Global)
	both("machine", w.Machine != "")
	both("machineOf", w.MachineOf != "")
	both("conflicts", len(w.Conflicts) > 0)
	both("machineSelector", u.Spec.MachineSelector != nil)
	w = UnitWhere{Global: fleet.Global, Machine: fleet.MachineID, MachineOf: fleet.MachineOf, Conflicts: fleet.Conflicts, Selector: labels.Everything()}
	for _, key := range slices.Sorted(maps.Keys(fleet.Metadata)) {
		r, err := labels.NewRequirement(key, selection.In, fleet.Metadata[key])
		if err != nil {
			errs = append(errs, field.Invalid(spec.Child("file"), "MachineMetadata="+key, "is no label of a Machine: "+err.Error()))
			continue
		}
		w.Selector = w.Selector.Add(*r)
	}
	return w, errs
}

// ValidateUnit says what is wrong with a unit by itself.
func ValidateUnit(u *Unit) field.ErrorList {
	spec := field.NewPath("spec")
	name := u.FullName()
	at := spec.Child("unitName")
	if u.Spec.UnitName == "" {
		at = field.NewPath("metadata", "name")
	}
	errs := rule(at, name, validate.PlacedUnitName)
	if len(errs) > 0 {
		return errs
	}
	if want := UnitObjectName(name); u.Name != want {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), u.Name, "the object of unit "+name+" is called "+want))
	}
	if err := validate.PlacedUnitFile(name, u.Spec.File); err != nil {
		return append(errs, field.Invalid(spec.Child("file"), field.OmitValueType{}, err.Error()))
	}
	where, wrong := u.Where()
	errs = append(errs, wrong...)
	_, _, _, template := validate.SplitUnitName(name)
	switch {
	case where.Global && u.Spec.Replicas != nil:
		errs = append(errs, field.Forbidden(spec.Child("replicas"), "a global unit runs on every machine that fits; remove one of them"))
	case where.Global && template:
		errs = append(errs, field.Forbidden(spec.Child("global"), "a template is not global: give its instances names, web@a.service, or a plain name"))
	case where.Global && where.MachineOf != "":
		errs = append(errs, field.Forbidden(spec.Child("machineOf"), "a global unit shares nobody's machine; remove one of them"))
	case u.Copies() > 1 && where.MachineOf != "":
		errs = append(errs, field.Forbidden(spec.Child("machineOf"), "one unit shares another's machine, not several; remove replicas"))
	case where.Machine != "" && (where.Global || where.MachineOf != "" || u.Copies() > 1 && !template):
		errs = append(errs, field.Forbidden(spec.Child("machine"), "is beside global, machineOf or replicas; one of them is possible"))
	}
	for _, text := range validation.IsDNS1123Subdomain(where.Machine) {
		if where.Machine != "" {
			errs = append(errs, field.Invalid(spec.Child("machine"), where.Machine, "is not the name of a Machine: "+text))
		}
	}
	if where.MachineOf != "" {
		errs = append(errs, rule(spec.Child("machineOf"), where.MachineOf, validate.PlacedUnitName)...)
		if where.MachineOf == name {
			errs = append(errs, field.Invalid(spec.Child("machineOf"), where.MachineOf, "is the unit itself"))
		}
	}
	for i, glob := range where.Conflicts {
		errs = append(errs, rule(spec.Child("conflicts").Index(i), glob, validate.UnitPattern)...)
	}
	if m := u.Spec.MoveAfter; m != nil && m.Duration < minUnitMoveAfter {
		errs = append(errs, field.Invalid(spec.Child("moveAfter"), m.Duration.String(), "must be at least "+minUnitMoveAfter.String()+": a machine that restarts its agent is silent for a while, too"))
	}
	return errs
}
