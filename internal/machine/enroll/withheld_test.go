package enroll

import (
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
)

// TestWithheld: what destroys data waits for a person, where a machine bears an installation that nothing is known of, or where the store was restored.
func TestWithheld(t *testing.T) {
	at := time.Date(2026, 12, 1, 8, 0, 0, 0, time.UTC)
	marked := func(m *v1alpha1.Machine) {
		m.Status.Inventory.Disks = []v1alpha1.Disk{{Name: "sda"}, {Name: "sdb", ByID: "wwn-2", Marker: "2b1f7a6e-0000-5000-8000-0000000000c1"}}
	}
	byPolicy := func(m *v1alpha1.Machine) {
		m.Spec.Approved, m.Annotations = true, map[string]string{v1alpha1.AnnotationEnrolledBy: "all"}
	}
	only := policy("all", func(s *v1alpha1.EnrollmentPolicySpec) { s.Approve = false })
	for _, test := range []struct {
		name             string
		m                *v1alpha1.Machine
		policy           v1alpha1.EnrollmentPolicy
		restored         time.Time
		approved, intent bool
		held             string
	}{
		{"a blank machine", waiting("a"), policy("all"), time.Time{}, true, true, ""},
		{"an unknown installation", waiting("a", marked), policy("all"), time.Time{}, false, false, "disk wwn-2 bears an installation by Coldrack that this server does not know"},
		{"an unknown installation, approved by a person", waiting("a", marked, approved), policy("all"), time.Time{}, true, true, ""},
		{"an unknown installation that showed after a policy's approval", waiting("a", marked, byPolicy), policy("all"), time.Time{}, true, false, "coldrack adopt a"},
		{"a policy that only names", waiting("a", marked), only, at, false, false, ""},
		{"a blank machine after a restore", waiting("a"), policy("all"), at, false, false, "policies approve none until `coldrack server restored --confirm`"},
		{"an unknown installation after a restore", waiting("a", marked), policy("all"), at, false, false, "disk wwn-2 bears"},
		{"approved before the restore", waiting("a", approved), policy("all"), at, true, false, "To install this one now: coldrack install a"},
	} {
		next, held := Decide(test.m, World{Policies: []v1alpha1.EnrollmentPolicy{test.policy}, Subnets: []v1alpha1.Subnet{rack()}, NewID: func() string { return "id" }, Now: at, RestoredAt: test.restored})
		if next == nil {
			next = test.m
		}
		if next.Spec.Approved != test.approved || (next.Spec.Intent != nil) != test.intent || !strings.Contains(held, test.held) || (held == "") != (test.held == "") {
			t.Errorf("%s: approved %v, intent %v, held %q", test.name, next.Spec.Approved, next.Spec.Intent, held)
		}
		if IsRestored(held) != (!test.restored.IsZero() && strings.Contains(test.name, "before") || strings.Contains(test.name, "blank machine after")) {
			t.Errorf("%s: %q is %v to wait for the confirmation", test.name, held, IsRestored(held))
		}
	}
}
