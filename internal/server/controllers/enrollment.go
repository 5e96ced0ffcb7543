package controllers

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/identify"
)

// enrollment gives discovered machines what they need to be installed: approval and a name, where a policy
// says so, an address from their subnet's static range, and the intent to install.
//
// It looks at machines through the fleet, which holds its own last writes, and counts what is being written as given; so no
// address, name or number is given out twice.
type enrollment struct {
	Deps

	mu       sync.Mutex                   // one decision at a time
	underway map[string]*v1alpha1.Machine // what is being written, by name
}

func enrollmentReconciler(d Deps) reconciler {
	r := &enrollment{Deps: d, underway: map[string]*v1alpha1.Machine{}}
	return reconciler{
		name: "enrollment", workers: 4, do: r.reconcile,
		watches: []source.Source{
			each(d, &v1alpha1.Machine{}), r.all(&v1alpha1.EnrollmentPolicy{}), r.all(&v1alpha1.Subnet{}),
			source.Kind(d.Cache, &v1alpha1.Machine{}, enqueueEverything, enrolledByChanged()),
		},
	}
}

// all wakes the reconciler for every machine, and for the policies' own status, when a rule changes. A status is no
// rule: each machine that is enrolled changes its policy's, and would have all others looked at again.
func (r *enrollment) all(kind client.Object) source.Source {
	return source.Kind(r.Cache, kind, handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		names := []string{everything}
		for _, m := range r.Fleet.List() {
			if m.Status.Installed == nil {
				names = append(names, m.Name)
			}
		}
		return requests(names...)
	}), predicate.GenerationChangedPredicate{})
}

var enqueueEverything = handler.TypedEnqueueRequestsFromMapFunc(func(context.Context, *v1alpha1.Machine) []reconcile.Request {
	return requests(everything)
})

// enrolledByChanged lets only those changes pass that alter how many machines a policy has enrolled.
func enrolledByChanged() predicate.TypedPredicate[*v1alpha1.Machine] {
	by := func(m *v1alpha1.Machine) string { return m.Annotations[v1alpha1.AnnotationEnrolledBy] }
	return predicate.TypedFuncs[*v1alpha1.Machine]{
		CreateFunc: func(e event.TypedCreateEvent[*v1alpha1.Machine]) bool { return by(e.Object) != "" },
		DeleteFunc: func(e event.TypedDeleteEvent[*v1alpha1.Machine]) bool { return by(e.Object) != "" },
		UpdateFunc: func(e event.TypedUpdateEvent[*v1alpha1.Machine]) bool { return by(e.ObjectOld) != by(e.ObjectNew) },
	}
}

func (r *enrollment) reconcile(ctx context.Context, name string) (time.Duration, error) {
	policies := &v1alpha1.EnrollmentPolicyList{}
	if err := r.Cache.List(ctx, policies); err != nil {
		return 0, fmt.Errorf("list enrollment policies: %w", err)
	}
	if name == everything {
		return 0, r.count(ctx, policies.Items)
	}
	subnets, err := NewPlans(r.Cache).Subnets(ctx)
	if err != nil {
		return 0, err
	}
	subnets = validSubnets(subnets)
	defer r.Fleet.Write(name)()
	defer r.settled(name)
	m, ok, err := r.current(ctx, name)
	for range maxAttempts {
		if err != nil || !ok || !concerned(m) {
			return 0, err
		}
		next, held := r.decide(m, policies.Items, subnets)
		if next == nil {
			r.Fleet.Held(name, held)
			return 0, nil
		}
		err = r.Client.Patch(ctx, next, client.MergeFromWithOptions(m, client.MergeFromWithOptimisticLock{}))
		switch {
		case apierrors.IsNotFound(err):
			return 0, nil
		case apierrors.IsConflict(err):
			// A machine that is being discovered has news of itself all the time. Whatever it was to be given is admitted, and
			// until it has it nobody else gets it; so the decision is made again at once, from what is in the store now.
			m, ok, err = r.stored(ctx, name)
			continue
		case apierrors.IsInvalid(err) || apierrors.IsForbidden(err):
			r.Fleet.Held(name, fmt.Sprintf("cannot be enrolled: %v", err))
			return 5 * time.Second, nil
		case err != nil:
			return 0, fmt.Errorf("enrol machine %s: %w", name, err)
		}
		r.Fleet.Held(name, held)
		r.Fleet.Put(next)
		r.Log.Info("enrolled", "machine", name, "policy", next.Annotations[v1alpha1.AnnotationEnrolledBy],
			"approved", next.Spec.Approved, "hostname", next.Spec.Hostname, "network", next.Spec.Network, "intent", next.Spec.Intent != nil)
		return 0, nil
	}
	return 100 * time.Millisecond, nil
}

// decide is enroll in the world as it will be once all that was decided is written. What is decided counts until settled.
func (r *enrollment) decide(m *v1alpha1.Machine, policies []v1alpha1.EnrollmentPolicy, subnets []v1alpha1.Subnet) (next *v1alpha1.Machine, held string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	machines := r.Fleet.List()
	for i := range machines {
		if given := r.underway[machines[i].Name]; given != nil {
			machines[i] = given
		}
	}
	next, held = enroll(m, world{machines: machines, policies: policies, subnets: subnets, reserved: r.Reserved, newID: uuid.NewString, now: r.Now()})
	if next != nil {
		r.underway[m.Name] = next.DeepCopy() // the client reads its answer into next
	}
	return next, held
}

// settled says that what was decided for a machine is in the fleet, or will not be.
func (r *enrollment) settled(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.underway, name)
}

// stored is the machine as it is in the store, whether or not the news of it has come.
func (r *enrollment) stored(ctx context.Context, name string) (*v1alpha1.Machine, bool, error) {
	m := &v1alpha1.Machine{}
	err := r.Client.Get(ctx, client.ObjectKey{Name: name}, m)
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read machine %s: %w", name, err)
	}
	r.Fleet.Put(m)
	return m, true, nil
}

// count writes how many machines each policy has enrolled.
func (r *enrollment) count(ctx context.Context, policies []v1alpha1.EnrollmentPolicy) error {
	enrolled := map[string]int32{}
	for _, m := range r.Fleet.List() {
		enrolled[m.Annotations[v1alpha1.AnnotationEnrolledBy]]++
	}
	for i := range policies {
		next := policies[i].DeepCopy()
		n := enrolled[next.Name]
		next.Status.Enrolled = n
		exhausted := metav1.Condition{Type: "Exhausted", Status: metav1.ConditionFalse, Reason: "BelowLimit",
			ObservedGeneration: next.Generation, LastTransitionTime: metav1.NewTime(r.Now())}
		if next.Spec.Limit > 0 && n >= next.Spec.Limit {
			exhausted.Status, exhausted.Reason = metav1.ConditionTrue, "LimitReached"
			exhausted.Message = fmt.Sprintf("%d of %d machines are enrolled; further ones are left to other policies and people", n, next.Spec.Limit)
		}
		meta.SetStatusCondition(&next.Status.Conditions, exhausted)
		if equality.Semantic.DeepEqual(policies[i].Status, next.Status) {
			continue
		}
		if err := r.Client.Status().Patch(ctx, next, client.MergeFrom(&policies[i])); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("write status of enrollment policy %s: %w", next.Name, err)
		}
	}
	return nil
}

// world is everything beside the machine that enrolment depends on.
type world struct {
	machines []*v1alpha1.Machine
	policies []v1alpha1.EnrollmentPolicy
	subnets  []v1alpha1.Subnet // valid ones
	reserved []netip.Addr
	newID    func() string
	now      time.Time
}

// concerned says whether enrolment may have something to give: the machine has reported, and either waits
// for a policy or is approved and lacks something.
func concerned(m *v1alpha1.Machine) bool {
	addressed := m.Spec.Network != nil && m.Spec.Network.Address != ""
	return m.DeletionTimestamp == nil && m.Status.Inventory != nil &&
		(open(m) || (m.Spec.Approved && (!addressed || wantsInstall(m))))
}

// enroll returns the machine with what it was given, or nil when there is nothing to give; held says what
// stands in the way. It is pure, apart from the ids that it draws.
func enroll(m *v1alpha1.Machine, w world) (next *v1alpha1.Machine, held string) {
	next = m.DeepCopy()
	by := "approval"
	if open(m) {
		policy := choose(m, w)
		if policy == nil {
			return nil, ""
		}
		if held = apply(next, policy, w); held != "" {
			return nil, fmt.Sprintf("policy %s: %s", policy.Name, held)
		}
		by = "policy/" + policy.Name
	}
	if next.Spec.Approved {
		held = address(next, w)
		if wantsInstall(next) && held == "" {
			next.Spec.Intent = &v1alpha1.Intent{ID: w.newID(), Action: v1alpha1.ActionInstall, RequestedBy: by, RequestedAt: new(metav1.NewTime(w.now.Truncate(time.Second)))}
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

// choose returns the policy that decides about the machine: of those that match and are not exhausted the
// one of highest priority, then by name.
func choose(m *v1alpha1.Machine, w world) *v1alpha1.EnrollmentPolicy {
	sorted := slices.SortedFunc(slices.Values(w.policies), func(a, b v1alpha1.EnrollmentPolicy) int {
		return cmp.Or(cmp.Compare(b.Spec.Priority, a.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})
	for i := range sorted {
		if policy := &sorted[i]; policy.DeletionTimestamp == nil && matches(policy.Spec.Match, m, w.subnets) && !exhausted(policy, w.machines) {
			return policy
		}
	}
	return nil
}

func exhausted(policy *v1alpha1.EnrollmentPolicy, machines []*v1alpha1.Machine) bool {
	if policy.Spec.Limit == 0 {
		return false
	}
	n := int32(0)
	for _, m := range machines {
		if m.Annotations[v1alpha1.AnnotationEnrolledBy] == policy.Name {
			n++
		}
	}
	return n >= policy.Spec.Limit
}

// matches says whether every given field holds for the machine.
func matches(match v1alpha1.MachineMatch, m *v1alpha1.Machine, subnets []v1alpha1.Subnet) bool {
	inventory := m.Status.Inventory
	if inventory == nil {
		return false
	}
	pattern := func(pattern, value string) bool {
		ok, err := path.Match(pattern, value)
		return pattern == "" || (err == nil && ok)
	}
	prefixed := len(match.MACPrefixes) == 0 || slices.ContainsFunc(inventory.NICs, func(n v1alpha1.NIC) bool {
		return slices.ContainsFunc(match.MACPrefixes, func(p string) bool {
			return strings.HasPrefix(n.MAC, strings.ToLower(strings.ReplaceAll(p, "-", ":")))
		})
	})
	selected := true
	if match.Selector != nil {
		selector, err := metav1.LabelSelectorAsSelector(match.Selector)
		selected = err == nil && selector.Matches(labels.Set(m.Labels))
	}
	return pattern(match.Vendor, inventory.System.Vendor) && pattern(match.Product, inventory.System.Product) &&
		pattern(match.Serial, inventory.System.Serial) && prefixed && selected &&
		(match.MinMemory == nil || inventory.Memory.Cmp(*match.MinMemory) >= 0) &&
		len(inventory.Disks) >= int(match.MinDisks) &&
		(match.Subnet == "" || match.Subnet == bootedIn(m, subnets))
}

// bootedIn is the name of the subnet in which the machine is now, or "".
func bootedIn(m *v1alpha1.Machine, subnets []v1alpha1.Subnet) string {
	at := m.Status.Address
	if lease := m.Status.Lease; lease != nil {
		// DHCP knows segments by their CIDR, people by their name.
		for _, s := range subnets {
			if lease.Subnet != "" && (lease.Subnet == s.Name || lease.Subnet == s.Spec.CIDR) {
				return s.Name
			}
		}
		at = lease.Address
	}
	address, err := netip.ParseAddr(at)
	if err != nil {
		return ""
	}
	for _, s := range subnets {
		if prefix, err := netip.ParsePrefix(s.Spec.CIDR); err == nil && prefix.Contains(address) {
			return s.Name
		}
	}
	return ""
}

// apply gives the machine what the policy has for it. What a person wrote stays.
func apply(m *v1alpha1.Machine, policy *v1alpha1.EnrollmentPolicy, w world) (held string) {
	spec := &policy.Spec
	if m.Spec.Hostname == "" && spec.Hostname != "" {
		name, err := hostname(spec.Hostname, m, w.machines)
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
		if held := address(m, w); held != "" {
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

var (
	indexPattern    = regexp.MustCompile(`\{index(?::0?([0-9]{1,2}))?\}`)
	notInHostname   = regexp.MustCompile(`[^a-z0-9-]+`)
	unknownPattern  = regexp.MustCompile(`\{[^}]*\}`)
	maxHostnameSize = 63
)

// hostname fills a policy's pattern in. With an index it is the lowest that makes a name nobody has.
func hostname(pattern string, m *v1alpha1.Machine, machines []*v1alpha1.Machine) (string, error) {
	mac := ""
	if ids := identify.Normal(m.Spec.Identifiers).MACs; len(ids) > 0 {
		mac = ids[0]
	}
	inventory := m.Status.Inventory
	for _, nic := range inventory.NICs {
		if nic.Boot || mac == "" {
			mac = nic.MAC
		}
	}
	filled := pattern
	for key, value := range map[string]string{
		"{serial}": identify.Normal(v1alpha1.Identifiers{Serial: inventory.System.Serial}).Serial,
		"{uuid}":   identify.Normal(v1alpha1.Identifiers{UUID: inventory.System.UUID}).UUID,
		"{mac}":    strings.ReplaceAll(mac, ":", ""),
	} {
		if !strings.Contains(filled, key) {
			continue
		}
		if value == "" {
			return "", fmt.Errorf("spec.hostname: %s has no %s that tells it from others", m.Name, strings.Trim(key, "{}"))
		}
		filled = strings.ReplaceAll(filled, key, value)
	}
	if wrong := unknownPattern.FindString(indexPattern.ReplaceAllString(filled, "")); wrong != "" {
		return "", fmt.Errorf("spec.hostname: %s is not one of {serial}, {uuid}, {mac}, {index}, {index:03}", wrong)
	}
	taken := map[string]string{}
	for _, other := range machines {
		if other.Name != m.Name {
			taken[cmp.Or(other.Spec.Hostname, other.Name)] = other.Name
		}
	}
	if !indexPattern.MatchString(filled) {
		name := cleanHostname(filled)
		if other, ok := taken[name]; ok {
			return "", fmt.Errorf("spec.hostname: %q is the name of machine %s; use {index} to tell machines apart", name, other)
		}
		if name == "" {
			return "", fmt.Errorf("spec.hostname: nothing is left of %q", filled)
		}
		return name, nil
	}
	for i := 1; i <= len(machines)+1; i++ {
		name := cleanHostname(indexPattern.ReplaceAllStringFunc(filled, func(s string) string {
			width, _ := strconv.Atoi(indexPattern.FindStringSubmatch(s)[1])
			return fmt.Sprintf("%0*d", width, i)
		}))
		if _, ok := taken[name]; !ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("spec.hostname: no number is free for %q; is the name longer than %d characters?", filled, maxHostnameSize)
}

func cleanHostname(s string) string {
	s = notInHostname.ReplaceAllString(strings.ToLower(s), "-")
	return strings.Trim(s[:min(len(s), maxHostnameSize)], "-")
}

// address gives the machine the lowest free address of its subnet's static range, when it has none and the
// subnet has such a range.
func address(m *v1alpha1.Machine, w world) (held string) {
	if m.Spec.Network != nil && m.Spec.Network.Address != "" {
		return ""
	}
	subnet, named := subnetOf(m, w.subnets)
	if subnet == nil {
		if named != "" {
			return fmt.Sprintf("subnet %s does not exist or is not valid; see: kubectl get subnets", named)
		}
		return fmt.Sprintf("no subnet to take an address from: set spec.network of machine %s", m.Name)
	}
	if subnet.Spec.Static == "" {
		return fmt.Sprintf("subnet %s has no spec.static to take an address from; give it one, or set spec.network.address of machine %s", subnet.Name, m.Name)
	}
	free, err := freeAddress(subnet, m, w)
	if err != nil {
		return err.Error()
	}
	if m.Spec.Network == nil {
		m.Spec.Network = &v1alpha1.MachineNetwork{}
	}
	m.Spec.Network.Subnet, m.Spec.Network.Address = subnet.Name, free.String()
	return ""
}

// subnetOf is the subnet that the machine's address shall be of: the one that is written down, else the one
// that it booted in, else the only one with a static range.
func subnetOf(m *v1alpha1.Machine, subnets []v1alpha1.Subnet) (subnet *v1alpha1.Subnet, named string) {
	if m.Spec.Network != nil {
		named = m.Spec.Network.Subnet
	}
	want := cmp.Or(named, bootedIn(m, subnets))
	var static []*v1alpha1.Subnet
	for i := range subnets {
		if subnets[i].Name == want {
			return &subnets[i], named
		}
		if subnets[i].Spec.Static != "" {
			static = append(static, &subnets[i])
		}
	}
	if want == "" && len(static) == 1 {
		return static[0], ""
	}
	return nil, named
}

func freeAddress(subnet *v1alpha1.Subnet, m *v1alpha1.Machine, w world) (netip.Addr, error) {
	static, err := v1alpha1.ParseAddressRange(subnet.Spec.Static)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("subnet %s: spec.static: %w", subnet.Name, err)
	}
	taken := map[netip.Addr]bool{}
	take := func(addresses ...string) {
		for _, a := range addresses {
			if address, err := netip.ParseAddr(a); err == nil {
				taken[address] = true
			}
		}
	}
	take(subnet.Spec.Gateway)
	take(subnet.Spec.DNS...)
	take(subnet.Spec.NTP...)
	take(subnet.Spec.Relays...)
	for _, a := range w.reserved {
		taken[a] = true
	}
	for _, other := range w.machines {
		if other.Name == m.Name {
			continue
		}
		if other.Spec.Network != nil {
			take(other.Spec.Network.Address)
		}
		if other.Status.Lease != nil {
			take(other.Status.Lease.Address)
		}
	}
	for a := static.First; static.Contains(a); a = a.Next() {
		if !taken[a] {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no free address in spec.static (%s) of subnet %s; enlarge it, or delete machines that no longer exist", static, subnet.Name)
}
