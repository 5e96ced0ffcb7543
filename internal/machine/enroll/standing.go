package enroll

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/termtext"
)

// comparison is how all policies stand to one machine.
type comparison struct {
	matches []string // policies whose match holds, exhausted or not
	taken   bool     // one of them would take the machine
	// nearest is the policy that comes nearest to the machine, or empty, and missed what it misses. If none takes the
	// machine, that is at least one thing.
	nearest string
	missed  []string
}

// compare looks at policies in the order of their priority; enrolled is how many machines each has.
func compare(m *v1alpha1.Machine, policies []v1alpha1.EnrollmentPolicy, subnets []v1alpha1.Subnet, enrolled map[string]int32) comparison {
	var c comparison
	for i := range policies {
		policy := &policies[i]
		if policy.DeletionTimestamp != nil {
			continue
		}
		why := mismatches(policy.Spec.Match, m, subnets)
		if len(why) == 0 {
			c.matches = append(c.matches, policy.Name)
			if full(policy, enrolled) {
				why = []string{fmt.Sprintf("its limit of %d machines is reached", policy.Spec.Limit)}
			} else {
				c.taken = true
			}
		}
		if c.nearest == "" || len(why) < len(c.missed) {
			c.nearest, c.missed = policy.Name, why
		}
	}
	return c
}

// enrolledBy is how many machines each policy has enrolled.
func enrolledBy(machines []*v1alpha1.Machine) map[string]int32 {
	n := map[string]int32{}
	for _, m := range machines {
		n[m.Annotations[v1alpha1.AnnotationEnrolledBy]]++
	}
	return n
}

func full(policy *v1alpha1.EnrollmentPolicy, enrolled map[string]int32) bool {
	return policy.Spec.Limit > 0 && enrolled[policy.Name] >= policy.Spec.Limit
}

// Standing is how a policy fares with the machines that are known.
type Standing struct {
	// Enrolled, Matched and Missed are as in the policy's status.
	Enrolled, Matched, Missed int32
	NearMisses                []v1alpha1.NearMiss
}

// miss is a near miss with what it is ordered by.
type miss struct {
	v1alpha1.NearMiss
	since time.Time
}

// Standings are those of all policies, by name.
func Standings(w World) map[string]Standing {
	enrolled, policies := enrolledBy(w.Machines), byPriority(w.Policies)
	matched, missed := map[string]int32{}, map[string][]miss{}
	for _, m := range w.Machines {
		if m.DeletionTimestamp != nil || m.Status.Inventory == nil {
			continue
		}
		c := compare(m, policies, w.Subnets, enrolled)
		for _, name := range c.matches {
			matched[name]++
		}
		if !c.taken && c.nearest != "" && open(m) {
			why := termtext.Line(strings.Join(c.missed, ", "), 256)
			missed[c.nearest] = append(missed[c.nearest], miss{v1alpha1.NearMiss{Machine: m.Name, Why: why}, m.CreationTimestamp.Time})
		}
	}
	all := map[string]Standing{}
	for i := range policies {
		name := policies[i].Name
		all[name] = Standing{Enrolled: enrolled[name], Matched: matched[name], Missed: int32(len(missed[name])), NearMisses: newest(missed[name])}
	}
	return all
}

// newest are as many near misses as a status has, the newest machines first.
func newest(all []miss) []v1alpha1.NearMiss {
	slices.SortFunc(all, func(a, b miss) int { return cmp.Or(b.since.Compare(a.since), cmp.Compare(a.Machine, b.Machine)) })
	var out []v1alpha1.NearMiss
	for _, m := range all[:min(len(all), v1alpha1.MaxNearMisses)] {
		out = append(out, m.NearMiss)
	}
	return out
}

// Into writes the standing into the policy's status.
func (s Standing) Into(policy *v1alpha1.EnrollmentPolicy, now time.Time) {
	status := &policy.Status
	status.Enrolled, status.Matched, status.Missed, status.NearMisses = s.Enrolled, s.Matched, s.Missed, s.NearMisses
	set := func(kind, reason, otherwise, message string) {
		c := metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: reason, Message: message,
			ObservedGeneration: policy.Generation, LastTransitionTime: metav1.NewTime(now)}
		if message == "" {
			c.Status, c.Reason = metav1.ConditionFalse, otherwise
		}
		meta.SetStatusCondition(&status.Conditions, c)
	}
	exhausted, missed := "", ""
	if limit := policy.Spec.Limit; limit > 0 && s.Enrolled >= limit {
		exhausted = fmt.Sprintf("%d of %d machines are enrolled; further ones are left to other policies and people", s.Enrolled, limit)
	}
	if len(s.NearMisses) > 0 {
		missed = fmt.Sprintf("%d waiting machines are taken by no policy, and this one comes nearest; the newest is %s: %s. Correct spec.match, or run: coldrack approve %s",
			s.Missed, s.NearMisses[0].Machine, s.NearMisses[0].Why, s.NearMisses[0].Machine)
	}
	set(v1alpha1.ConditionExhausted, "LimitReached", "BelowLimit", exhausted)
	set(v1alpha1.ConditionNearMisses, "MachinesWait", "NoMachineWaits", missed)
}

// Counts says whether a machine counts in the standing of policies: it has reported, or one has enrolled it.
func Counts(m *v1alpha1.Machine) bool {
	return m.Status.Inventory != nil || m.Annotations[v1alpha1.AnnotationEnrolledBy] != ""
}

// StandingChanged says whether what became of a machine can alter the standing of policies.
func StandingChanged(was, is *v1alpha1.Machine) bool {
	if !Counts(was) && !Counts(is) {
		return false
	}
	leased := func(m *v1alpha1.Machine) [2]string { // where; renewals do not matter
		if m.Status.Lease == nil {
			return [2]string{"", m.Status.Address}
		}
		return [2]string{m.Status.Lease.Subnet, m.Status.Lease.Address}
	}
	return was.Annotations[v1alpha1.AnnotationEnrolledBy] != is.Annotations[v1alpha1.AnnotationEnrolledBy] ||
		open(was) != open(is) || leased(was) != leased(is) || !maps.Equal(was.Labels, is.Labels) ||
		!equality.Semantic.DeepEqual(was.Status.Inventory, is.Status.Inventory)
}
