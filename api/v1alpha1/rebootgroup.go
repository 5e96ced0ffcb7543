package v1alpha1

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// RebootGroup is a lock for the reboots of machines that are in no cluster: how many of them may be away at the same time, and when. A
// machine of a cluster is rebooted as its cluster allows.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=rg,categories=coldrack
// +kubebuilder:printcolumn:name="Machines",type=integer,JSONPath=`.status.machines`
// +kubebuilder:printcolumn:name="Away",type=integer,JSONPath=`.status.away`
// +kubebuilder:printcolumn:name="Max",type=integer,JSONPath=`.spec.maxUnavailable`
// +kubebuilder:printcolumn:name="Waiting",type=integer,JSONPath=`.status.waitingCount`
// +kubebuilder:printcolumn:name="Holders",type=string,JSONPath=`.status.holders[*].name`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type RebootGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   RebootGroupSpec   `json:"spec"`
	Status RebootGroupStatus `json:"status,omitempty"`
}

// RebootGroupList is a list of RebootGroups.
//
// +kubebuilder:object:root=true
type RebootGroupList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []RebootGroup `json:"items"`
}

// OverduePolicy says what a machine that does not come back means for the others of its group.
// +kubebuilder:validation:Enum=Stop;Ignore
type OverduePolicy string

const (
	// OverdueStop lets no other machine go until it is back, or is no longer installed.
	OverdueStop OverduePolicy = "Stop"
	// OverdueIgnore counts it no longer as away, and the others go on.
	OverdueIgnore OverduePolicy = "Ignore"
)

// RebootGroupSpec is what a person wants of the reboots of a group.
type RebootGroupSpec struct {
	// Selector over the Machines' labels. Empty matches every machine that is in no cluster. A machine that two groups select is not
	// rebooted.
	// +optional
	Selector metav1.LabelSelector `json:"selector,omitempty"`
	// MaxUnavailable is how many machines may be away at the same time, for whatever reason.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=5000
	MaxUnavailable int32 `json:"maxUnavailable,omitempty"`
	// MaintenanceWindows are the times in which machines are let go. None: at any time.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	MaintenanceWindows []MaintenanceWindow `json:"maintenanceWindows,omitempty"`
	// Automatic also reboots machines whose operating system asks for it (/run/reboot-required). Otherwise a person asks: coldrack reboot.
	// +optional
	Automatic bool `json:"automatic,omitempty"`
	// LockTTL is how long a machine may take until it is back, from 1m to 24h. Default 30m.
	// +optional
	LockTTL *metav1.Duration `json:"lockTTL,omitempty"`
	// WhenOverdue says what becomes of the others when a machine is not back after lockTTL.
	// +optional
	// +kubebuilder:default=Stop
	WhenOverdue OverduePolicy `json:"whenOverdue,omitempty"`
	// Paused lets no further machine go.
	// +optional
	Paused bool `json:"paused,omitempty"`
}

// RebootGroupStatus is who holds the lock, and who waits for it.
type RebootGroupStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Machines of the group that are installed, or being installed.
	// +optional
	Machines int32 `json:"machines"`
	// Away is how many of them count as away now: those that hold the lock, and those that are not Ready.
	// +optional
	Away int32 `json:"away"`
	// Message says why nobody is let go although somebody waits; empty when that is not so.
	// +optional
	Message string `json:"message,omitempty"`
	// NextWindow is when the next maintenance window opens, where somebody waits for it.
	// +optional
	NextWindow *metav1.Time `json:"nextWindow,omitempty"`
	// Holders of the lock.
	// +optional
	// +listType=map
	// +listMapKey=name
	Holders []RebootHolder `json:"holders,omitempty"`
	// Waiting are those that want a reboot, in the order in which they are let go; the first 100 of waitingCount.
	// +optional
	// +listType=map
	// +listMapKey=name
	Waiting []RebootWaiter `json:"waiting,omitempty"`
	// WaitingCount is how many want a reboot and do not hold the lock.
	// +optional
	WaitingCount int32 `json:"waitingCount"`
	// History of the last reboots, oldest first.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=100
	History []RebootRecord `json:"history,omitempty"`
}

// RebootHolder is a machine that may be away.
type RebootHolder struct {
	// Name of the Machine.
	Name string `json:"name"`
	// Reason of the reboot.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Since when it has the lock.
	Since metav1.Time `json:"since"`
	// Until is when it must be back.
	Until metav1.Time `json:"until"`
	// BootID of the boot that is to end. The machine is back when it reports another one.
	// +optional
	BootID string `json:"bootID,omitempty"`
	// WithdrawnAt is since when nobody wants the reboot any more. The lock is kept for a moment, in case the machine was told already.
	// +optional
	WithdrawnAt *metav1.Time `json:"withdrawnAt,omitempty"`
	// Overdue: it is not back in time.
	// +optional
	Overdue bool `json:"overdue,omitempty"`
	// Message says how far it is.
	// +optional
	Message string `json:"message,omitempty"`
}

// RebootWaiter is a machine that wants a reboot.
type RebootWaiter struct {
	// Name of the Machine.
	Name string `json:"name"`
	// Reason of the reboot.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Since when it waits.
	Since metav1.Time `json:"since"`
	// Message says for what it waits.
	// +optional
	Message string `json:"message,omitempty"`
}

// RebootRecord is a lock that was given back.
type RebootRecord struct {
	// Name of the Machine.
	Name string `json:"name"`
	// +optional
	Reason  string      `json:"reason,omitempty"`
	Since   metav1.Time `json:"since"`
	EndedAt metav1.Time `json:"endedAt"`
	// Outcome in words.
	Outcome string `json:"outcome"`
}

// maxReboots is how many records a group keeps.
const maxReboots = 100

// Remember adds a record, and forgets the oldest when there are too many.
func (s *RebootGroupStatus) Remember(r RebootRecord) {
	s.History = append(s.History, r)
	if extra := len(s.History) - maxReboots; extra > 0 {
		s.History = s.History[extra:]
	}
}

// Holder is the lock that a machine has, or nil.
func (s *RebootGroupStatus) Holder(machine string) *RebootHolder {
	for i := range s.Holders {
		if s.Holders[i].Name == machine {
			return &s.Holders[i]
		}
	}
	return nil
}

const (
	defaultLockTTL = 30 * time.Minute
	minLockTTL     = time.Minute
	maxLockTTL     = 24 * time.Hour
)

// TTL is how long a machine may take until it is back.
func (g *RebootGroup) TTL() time.Duration {
	if g.Spec.LockTTL == nil {
		return defaultLockTTL
	}
	return g.Spec.LockTTL.Duration
}

// Selects tells whether the group is the machine's, unless a cluster has it.
func (g *RebootGroup) Selects(m *Machine) (bool, error) {
	selector, err := metav1.LabelSelectorAsSelector(&g.Spec.Selector)
	if err != nil {
		return false, fmt.Errorf("spec.selector of RebootGroup %s: %w", g.Name, err)
	}
	return selector.Matches(labels.Set(m.SelectorLabels())), nil
}

// ValidateRebootGroup says what is wrong with a group.
func ValidateRebootGroup(g *RebootGroup) field.ErrorList {
	spec := field.NewPath("spec")
	errs := ValidateMaintenanceWindows(spec.Child("maintenanceWindows"), g.Spec.MaintenanceWindows)
	if _, err := metav1.LabelSelectorAsSelector(&g.Spec.Selector); err != nil {
		errs = append(errs, field.Invalid(spec.Child("selector"), g.Spec.Selector.String(), err.Error()))
	}
	if ttl := g.TTL(); ttl < minLockTTL || ttl > maxLockTTL {
		errs = append(errs, field.Invalid(spec.Child("lockTTL"), ttl.String(), "must be at least 1m and at most 24h"))
	}
	return errs
}
