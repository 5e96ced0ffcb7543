// Package enroll decides what a discovered machine is given: which EnrollmentPolicy takes it, its name, its address and the
// intent to install. It is pure: the caller brings what is known and the time, and writes the answer.
package enroll

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

// World is everything beside the machine that enrolment depends on.
type World struct {
	Machines []*v1alpha1.Machine
	Policies []v1alpha1.EnrollmentPolicy
	Subnets  []v1alpha1.Subnet // valid ones
	Groups   []v1alpha1.MachineGroup
	// Reserved are addresses that no machine may get.
	Reserved []netip.Addr
	// NewID draws the id of an intent.
	NewID func() string
	Now   time.Time
	// RestoredAt is when the store was restored from a backup, until a person confirms it; zero: it was not.
	RestoredAt time.Time
}

// Concerns says whether enrolment may have something to give: the machine has reported, and either waits
// for a policy or is approved and lacks something.
func Concerns(m *v1alpha1.Machine) bool {
	addressed := m.Spec.Network != nil && m.Spec.Network.Address != ""
	return m.DeletionTimestamp == nil && m.Status.Inventory != nil &&
		(open(m) || (m.Spec.Approved && (!addressed || wantsInstall(m))))
}

// Decide returns the machine with what it was given, or nil when there is nothing to give; held says what
// stands in the way.
func Decide(m *v1alpha1.Machine, w World) (next *v1alpha1.Machine, held string) {
	next = m.DeepCopy()
	by := "approval"
	if choice, entry := chosen(m, w); entry != nil && open(m) {
		by = enrolledByMenu(choice)
		if held = withheld(m, w); held == "" {
			held = applyChoice(next, choice, entry, w)
		}
		if held != "" {
			return nil, fmt.Sprintf("entry %s of the boot menu of Subnet %s, chosen at its console: %s", choice.Entry, choice.Subnet, held)
		}
	} else if open(m) {
		policy := choose(m, w)
		if policy == nil {
			return nil, nearest(m, w)
		}
		if policy.Spec.Approve {
			held = withheld(m, w)
		}
		if held == "" {
			held = apply(next, policy, w)
		}
		if held != "" {
			return nil, fmt.Sprintf("policy %s: %s", policy.Name, held)
		}
		by = "policy/" + policy.Name
	}
	if next.Spec.Approved {
		held = assignAddress(next, w)
		if wantsInstall(next) && held == "" {
			held = withheldInstall(next, w)
		}
		if wantsInstall(next) && held == "" {
			next.Spec.Intent = &v1alpha1.Intent{ID: w.NewID(), Action: v1alpha1.ActionInstall, RequestedBy: by, RequestedAt: new(metav1.NewTime(w.Now.Truncate(time.Second)))}
		}
	}
	if equality.Semantic.DeepEqual(m, next) {
		return nil, held
	}
	return next, held
}

// open says whether policies may decide about the machine: no person and no policy has, and it was not
// released. A machine that cannot be told from another is for a person.
func open(m *v1alpha1.Machine) bool {
	conflict := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionIdentityConflict)
	return !m.Spec.Approved && m.Spec.Intent == nil && m.Status.Intent == nil && m.Status.Installed == nil &&
		m.Annotations[v1alpha1.AnnotationEnrolledBy] == "" &&
		(conflict == nil || conflict.Status != metav1.ConditionTrue || conflict.Reason != "NotRecognised")
}

// wantsInstall says whether an approved machine shall be installed without a further word: it never was, or
// was released since.
func wantsInstall(m *v1alpha1.Machine) bool {
	status := m.Status.Intent
	released := status != nil && status.Action == v1alpha1.ActionRelease && status.State == v1alpha1.IntentSucceeded
	return m.Spec.Intent == nil && m.Status.Installed == nil && (status == nil || released)
}

// apply gives the machine what the policy has for it. What a person wrote stays.
func apply(m *v1alpha1.Machine, policy *v1alpha1.EnrollmentPolicy, w World) (held string) {
	spec := &policy.Spec
	if m.Spec.Hostname == "" && spec.Hostname != "" {
		name, err := hostname(spec.Hostname, m, w.Machines)
		if err != nil {
			return err.Error()
		}
		m.Spec.Hostname = name
	}
	m.Spec.Profile = cmp.Or(m.Spec.Profile, spec.Profile)
	if spec.Subnet != "" {
		if m.Spec.Network == nil {
			m.Spec.Network = &v1alpha1.MachineNetwork{}
		}
		m.Spec.Network.Subnet = cmp.Or(m.Spec.Network.Subnet, spec.Subnet)
		if held := assignAddress(m, w); held != "" {
			return held
		}
	}
	if len(spec.Labels) > 0 {
		m.Labels = maps.Clone(m.Labels)
		if m.Labels == nil {
			m.Labels = map[string]string{}
		}
		maps.Copy(m.Labels, spec.Labels)
	}
	m.Spec.Approved = m.Spec.Approved || spec.Approve
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Annotations[v1alpha1.AnnotationEnrolledBy] = policy.Name
	return ""
}
