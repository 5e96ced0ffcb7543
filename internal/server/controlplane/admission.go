package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"coldrack.dev/api/v1alpha1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// rules is the admission plugin that enforces what a schema cannot: what an object must be in view of other
// objects, and of what it was before. Several servers over one etcd each enforce it on their own writes, so two
// that contradict and arrive at the same moment at different servers can both pass; the controllers report those.
type rules struct {
	// normalize is Config.Normalize.
	normalize func(v1alpha1.Identifiers) v1alpha1.Identifiers

	// ready is closed when client and machines can be used.
	ready    chan struct{}
	client   *rest.RESTClient
	machines cache.SharedIndexInformer

	mu sync.Mutex
	// Objects admitted a moment ago, which the informer may not have seen yet: two writes that contradict and
	// come together must not both pass. By resource and name.
	recent map[string]map[string]admitted
	// claimed says by claim which recent machine has it.
	claimed map[string]string
}

type admitted struct {
	subnet *v1alpha1.Subnet // with resource subnets
	claims []string         // with resource machines
	until  time.Time
}

// recentFor is how long an admitted object counts that is not in the store.
const recentFor = 2 * time.Second

func newRules(normalize func(v1alpha1.Identifiers) v1alpha1.Identifiers) *rules {
	if normalize == nil {
		normalize = func(ids v1alpha1.Identifiers) v1alpha1.Identifiers { return ids }
	}
	return &rules{
		normalize: normalize, ready: make(chan struct{}),
		recent: map[string]map[string]admitted{"machines": {}, "subnets": {}}, claimed: map[string]string{},
	}
}

const byClaim = "claim"

// start begins to follow the machines and returns when all are known. The returned function ends it.
func (r *rules) start(ctx context.Context, config *rest.Config) (stop func(), err error) {
	if r.client, err = kindsClient(config); err != nil {
		return nil, err
	}
	r.machines = cache.NewSharedIndexInformer(
		cache.NewListWatchFromClient(r.client, "machines", metav1.NamespaceAll, fields.Everything()),
		&v1alpha1.Machine{}, 0, cache.Indexers{byClaim: func(obj any) ([]string, error) {
			var keys []string
			for _, claim := range r.claims(obj.(*v1alpha1.Machine)) {
				keys = append(keys, claim.Key())
			}
			return keys, nil
		}})
	// Inventories are the bulk of a machine and of no interest here.
	if err := r.machines.SetTransform(func(obj any) (any, error) {
		if m, ok := obj.(*v1alpha1.Machine); ok {
			return slim(m), nil
		}
		return obj, nil
	}); err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { r.machines.RunWithContext(run) })
	stop = func() {
		cancel()
		running.Wait()
	}
	if !cache.WaitForCacheSync(ctx.Done(), r.machines.HasSynced) {
		stop()
		return nil, fmt.Errorf("read all machines: %w", context.Cause(ctx))
	}
	close(r.ready)
	return stop, nil
}

// kindsClient is a client that returns our own types.
func kindsClient(config *rest.Config) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.APIPath, config.GroupVersion = "/apis", &v1alpha1.GroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientFor(config)
}

func slim(m *v1alpha1.Machine) *v1alpha1.Machine {
	return &v1alpha1.Machine{
		ObjectMeta: metav1.ObjectMeta{Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion},
		Spec:       v1alpha1.MachineSpec{Identifiers: m.Spec.Identifiers, Network: m.Spec.Network},
	}
}

// claims of a machine, of identifiers in their normal form.
func (r *rules) claims(m *v1alpha1.Machine) []v1alpha1.MachineClaim {
	m = slim(m)
	m.Spec.Identifiers = r.normalize(m.Spec.Identifiers)
	return v1alpha1.MachineClaims(m)
}

// Handles implements admission.Interface.
func (r *rules) Handles(op admission.Operation) bool {
	return op == admission.Create || op == admission.Update || op == admission.Delete
}

// Validate implements admission.ValidationInterface.
func (r *rules) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().Group != v1alpha1.Group {
		return nil
	}
	errs, err := r.check(ctx, a)
	if err != nil {
		return err
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(a.GetKind().GroupKind(), a.GetName(), errs)
	}
	return nil
}

func (r *rules) check(ctx context.Context, a admission.Attributes) (errs field.ErrorList, err error) {
	resource := a.GetResource().Resource
	switch {
	case a.GetSubresource() == "scale" && resource == "machinegroups":
		return r.checkScale(ctx, a)
	case a.GetSubresource() != "":
		return nil, nil
	case a.GetOperation() == admission.Delete:
		r.mu.Lock()
		r.drop(resource, a.GetName())
		r.mu.Unlock()
		if resource == "machinegroups" {
			return r.checkGroupDeletion(ctx, a)
		}
		return nil, nil
	}
	switch resource {
	case "machines":
		errs, err = checkTyped(a, &v1alpha1.Machine{}, func(m, old *v1alpha1.Machine) (field.ErrorList, error) {
			if old != nil && equality.Semantic.DeepEqual(m.Spec, old.Spec) {
				return nil, nil
			}
			return r.checkMachine(ctx, a, m, old)
		})
	case "subnets":
		errs, err = checkTyped(a, &v1alpha1.Subnet{}, func(s, old *v1alpha1.Subnet) (field.ErrorList, error) {
			if old != nil && equality.Semantic.DeepEqual(s.Spec, old.Spec) {
				return nil, nil
			}
			return r.checkSubnet(ctx, a, s)
		})
	case "profiles":
		errs, err = checkTyped(a, &v1alpha1.Profile{}, func(p, old *v1alpha1.Profile) (field.ErrorList, error) {
			if old != nil && equality.Semantic.DeepEqual(p.Spec, old.Spec) {
				return nil, nil
			}
			r.warnUnknown(ctx, "spec.image", "images", p.Spec.Image)
			return v1alpha1.ValidateProfile(p), nil
		})
	case "enrollmentpolicies":
		errs, err = checkTyped(a, &v1alpha1.EnrollmentPolicy{}, func(p, old *v1alpha1.EnrollmentPolicy) (field.ErrorList, error) {
			if old != nil && equality.Semantic.DeepEqual(p.Spec, old.Spec) {
				return nil, nil
			}
			r.warnUnknown(ctx, "spec.profile", "profiles", p.Spec.Profile)
			r.warnUnknown(ctx, "spec.subnet", "subnets", p.Spec.Subnet)
			if v1alpha1.HostnameIsConstant(p) {
				warning.AddWarning(ctx, "", "spec.hostname: every machine would get the same name; add {index}, or set spec.limit to 1")
			}
			return v1alpha1.ValidateEnrollmentPolicy(p), nil
		})
	case "clusters":
		errs, err = checkTyped(a, &v1alpha1.Cluster{}, func(c, old *v1alpha1.Cluster) (field.ErrorList, error) {
			if old != nil && equality.Semantic.DeepEqual(c.Spec, old.Spec) {
				return nil, nil
			}
			return r.checkCluster(ctx, c, old)
		})
	case "addons":
		errs, err = checkTyped(a, &v1alpha1.Addon{}, func(added, old *v1alpha1.Addon) (field.ErrorList, error) {
			if old != nil && equality.Semantic.DeepEqual(added.Spec, old.Spec) {
				return nil, nil
			}
			r.warnUnknown(ctx, "spec.cluster", "clusters", added.Spec.Cluster)
			return v1alpha1.ValidateAddon(added), nil
		})
	case "rebootgroups":
		errs, err = checkTyped(a, &v1alpha1.RebootGroup{}, func(g, old *v1alpha1.RebootGroup) (field.ErrorList, error) {
			if old != nil && equality.Semantic.DeepEqual(g.Spec, old.Spec) {
				return nil, nil
			}
			return v1alpha1.ValidateRebootGroup(g), nil
		})
	case "units":
		errs, err = checkTyped(a, &v1alpha1.Unit{}, func(u, old *v1alpha1.Unit) (field.ErrorList, error) {
			if old != nil && equality.Semantic.DeepEqual(u.Spec, old.Spec) {
				return nil, nil
			}
			where, _ := u.Where()
			r.warnUnknown(ctx, "spec.machine", "machines", where.Machine)
			return v1alpha1.ValidateUnit(u), nil
		})
	case "machinegroups":
		errs, err = checkTyped(a, &v1alpha1.MachineGroup{}, func(g, old *v1alpha1.MachineGroup) (field.ErrorList, error) {
			if old != nil && equality.Semantic.DeepEqual(g.Spec, old.Spec) {
				return nil, nil
			}
			return r.checkMachineGroup(ctx, g, old)
		})
	}
	return errs, err
}

// checkTyped converts the objects of a request to their types. old is nil for a new object.
func checkTyped[T any](a admission.Attributes, _ *T, rule func(object, old *T) (field.ErrorList, error)) (field.ErrorList, error) {
	object, err := typed[T](a.GetObject())
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	old, err := typed[T](a.GetOldObject())
	if err != nil {
		// What is in the store was written before a change of the schema; only the new object matters.
		old = nil
	}
	return rule(object, old)
}

func typed[T any](object runtime.Object) (*T, error) {
	u, ok := object.(*unstructured.Unstructured)
	if !ok || u == nil {
		return nil, nil
	}
	t := new(T)
	return t, runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, t)
}

// wait returns when the rules between objects can be decided.
func (r *rules) wait(ctx context.Context) error {
	select {
	case <-r.ready:
		return nil
	case <-ctx.Done():
		return apierrors.NewServiceUnavailable("the server is starting and does not know all objects yet; try again")
	}
}

func (r *rules) checkMachine(ctx context.Context, a admission.Attributes, m, old *v1alpha1.Machine) (field.ErrorList, error) {
	errs := v1alpha1.ValidateMachine(m, old)
	if err := r.wait(ctx); err != nil {
		return nil, err
	}
	person := !isOurselves(ctx) // who reads warnings
	if person && (old == nil || m.Spec.Profile != old.Spec.Profile) {
		r.warnUnknown(ctx, "spec.profile", "profiles", m.Spec.Profile)
	}
	if person && (old == nil || m.Spec.Image != old.Spec.Image) {
		r.warnUnknown(ctx, "spec.image", "images", m.Spec.Image)
	}
	if person && m.Spec.BMC != nil && m.Spec.BMC.CredentialsSecret == "" && (old == nil || old.Spec.BMC == nil) {
		warning.AddWarning(ctx, "", "spec.bmc.credentialsSecret: is empty, so the machine cannot be switched yet: coldrack bmc set-password "+m.Name)
	}
	if person && m.Spec.Rescue != nil && old != nil && (old.Status.Installed != nil || old.Status.Identity != nil) &&
		!equality.Semantic.DeepEqual(m.Spec.Rescue, old.Spec.Rescue) && roleOf(a.GetUserInfo()) != roleAdmin {
		errs = append(errs, field.Forbidden(field.NewPath("spec", "rescue"), "needs role admin: whoever logs in to the live system reads the disks of the installed machine, and keys and Secrets of its cluster on them"))
	}
	if i := m.Spec.Intent; i != nil && m.WantedIntent() == nil && (old == nil || old.Spec.Intent == nil || old.Spec.Intent.ID != i.ID) {
		warning.AddWarning(ctx, "", fmt.Sprintf("spec.intent: %s was carried out before and will not be again; a new act needs a new id", i.ID))
	}
	if i := m.WantedIntent(); i != nil && i.Action != v1alpha1.ActionInstall && (old == nil || old.Spec.Intent == nil || old.Spec.Intent.ID != i.ID) {
		var clusters v1alpha1.ClusterList
		var groups v1alpha1.MachineGroupList
		if err := r.list(ctx, map[string]runtime.Object{"clusters": &clusters, "machinegroups": &groups}); err != nil {
			return nil, err
		}
		errs = append(errs, v1alpha1.ValidateDeparture(field.NewPath("spec", "intent"), m, clusters.Items, groups.Items)...)
	}
	if n := m.Spec.Network; n != nil && n.Subnet != "" {
		subnet := &v1alpha1.Subnet{}
		switch err := r.get(ctx, "subnets", n.Subnet, subnet); {
		case apierrors.IsNotFound(err):
			r.warnUnknown(ctx, "spec.network.subnet", "subnets", n.Subnet)
		case err != nil:
			return nil, err
		default:
			errs = append(errs, v1alpha1.ValidateMachineAddress(m, subnet)...)
		}
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	normal := m.DeepCopy()
	normal.Spec.Identifiers = r.normalize(m.Spec.Identifiers)
	var failed error
	errs = append(errs, v1alpha1.ValidateMachineClaims(normal, func(claim v1alpha1.MachineClaim) []string {
		owners, err := r.owners(ctx, m.Name, claim)
		failed = errors.Join(failed, err)
		return owners
	})...)
	if failed != nil {
		return nil, failed
	}
	if len(errs) == 0 && !a.IsDryRun() {
		var claims []string
		for _, claim := range v1alpha1.MachineClaims(normal) {
			claims = append(claims, claim.Key())
		}
		r.remember("machines", m.Name, admitted{claims: claims})
	}
	return errs, nil
}

// owners are the machines other than self that have a claim. What the informer says is looked up again before
// anybody is refused for it: it may be a moment behind. Requires mu.
func (r *rules) owners(ctx context.Context, self string, claim v1alpha1.MachineClaim) ([]string, error) {
	var names []string
	known, err := r.machines.GetIndexer().ByIndex(byClaim, claim.Key())
	if err != nil {
		return nil, err
	}
	for _, obj := range known {
		name := obj.(*v1alpha1.Machine).Name
		if name == self {
			continue
		}
		current := &v1alpha1.Machine{}
		switch err := r.get(ctx, "machines", name, current); {
		case apierrors.IsNotFound(err):
		case err != nil:
			return nil, err
		case r.has(current, claim):
			names = append(names, name)
		}
	}
	recent, ok := r.claimed[claim.Key()]
	if ok && recent != self && time.Now().Before(r.recent["machines"][recent].until) && !slices.Contains(names, recent) {
		names = append(names, recent)
	}
	return names, nil
}

func (r *rules) has(m *v1alpha1.Machine, claim v1alpha1.MachineClaim) bool {
	return slices.ContainsFunc(r.claims(m), func(c v1alpha1.MachineClaim) bool { return c.Key() == claim.Key() })
}

func (r *rules) checkSubnet(ctx context.Context, a admission.Attributes, s *v1alpha1.Subnet) (field.ErrorList, error) {
	if err := r.wait(ctx); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	others := &v1alpha1.SubnetList{}
	if err := r.client.Get().Resource("subnets").Do(ctx).Into(others); err != nil {
		return nil, err
	}
	for name, recent := range r.recent["subnets"] {
		stored := slices.ContainsFunc(others.Items, func(o v1alpha1.Subnet) bool { return o.Name == name })
		if !stored && time.Now().Before(recent.until) {
			others.Items = append(others.Items, *recent.subnet)
		}
	}
	errs := v1alpha1.ValidateSubnet(s, others.Items)
	if len(errs) == 0 && !a.IsDryRun() {
		r.remember("subnets", s.Name, admitted{subnet: s})
	}
	return errs, nil
}

// checkCluster refuses what is wrong whatever else is written: the cluster by itself, and against subnets and other
// clusters. What its groups, machines and bundles make of it is only warned of, because those may come in any order;
// the cluster's controller reports it in status and does nothing as long as it is so.
func (r *rules) checkCluster(ctx context.Context, c, old *v1alpha1.Cluster) (field.ErrorList, error) {
	if err := r.wait(ctx); err != nil {
		return nil, err
	}
	var subnets v1alpha1.SubnetList
	var clusters v1alpha1.ClusterList
	var groups v1alpha1.MachineGroupList
	if err := r.list(ctx, map[string]runtime.Object{"subnets": &subnets, "clusters": &clusters, "machinegroups": &groups}); err != nil {
		return nil, err
	}
	facts := v1alpha1.ClusterFacts{Subnets: subnets.Items, Clusters: clusters.Items}
	errs := v1alpha1.ValidateCluster(c, facts)
	errs = append(errs, forAdmins(ctx, v1alpha1.AdminFields(c, old))...)
	if old != nil {
		errs = append(errs, v1alpha1.ValidateClusterChange(c, old)...)
	}
	if old != nil && old.Spec.Paused && !c.Spec.Paused {
		var machines v1alpha1.MachineList
		if err := r.list(ctx, map[string]runtime.Object{"machines": &machines}); err != nil {
			return nil, err
		}
		errs = append(errs, v1alpha1.ValidateResume(c, old, machines.Items)...)
	}
	own := groupsOf(c.Name, groups.Items)
	if old != nil {
		at := field.NewPath("spec", "etcd", "allowEvenMembers")
		errs = append(errs, worse(v1alpha1.ValidateServers(at, old, own), v1alpha1.ValidateServers(at, withStatus(c, old), own))...)
	}
	if len(errs) == 0 && len(own) > 0 {
		facts.Groups = own
		warnAll(ctx, v1alpha1.ValidateCluster(c, facts))
	}
	return errs, nil
}

// forAdmins refuses changes of fields that decide who is root in a cluster, unless an administrator makes them.
func forAdmins(ctx context.Context, changed []*field.Path) (errs field.ErrorList) {
	if who, ok := request.UserFrom(ctx); ok && roleOf(who) >= roleAdmin {
		return nil
	}
	for _, path := range changed {
		errs = append(errs, field.Forbidden(path, fmt.Sprintf("this needs %s: it decides who is root in the cluster", roleAdmin)))
	}
	return errs
}

func (r *rules) checkMachineGroup(ctx context.Context, g, old *v1alpha1.MachineGroup) (field.ErrorList, error) {
	if err := r.wait(ctx); err != nil {
		return nil, err
	}
	r.warnUnknown(ctx, "spec.cluster", "clusters", g.Spec.Cluster)
	r.warnUnknown(ctx, "spec.profile", "profiles", g.Spec.Profile)
	errs := append(v1alpha1.ValidateMachineGroup(g), forAdmins(ctx, v1alpha1.AdminFieldsOfGroup(g, old))...)
	at := field.NewPath("spec", "replicas")
	if old != nil && !slices.Equal(g.Spec.Roles, old.Spec.Roles) {
		at = field.NewPath("spec", "roles")
	}
	more, err := r.checkServers(ctx, at, g.Spec.Cluster, g.Name, g)
	return append(errs, more...), err
}

// checkScale is for "kubectl scale", which writes no MachineGroup.
func (r *rules) checkScale(ctx context.Context, a admission.Attributes) (field.ErrorList, error) {
	scale, ok := a.GetObject().(*autoscalingv1.Scale)
	if !ok {
		return nil, nil
	}
	if err := r.wait(ctx); err != nil {
		return nil, err
	}
	g := &v1alpha1.MachineGroup{}
	if err := r.get(ctx, "machinegroups", a.GetName(), g); err != nil {
		return nil, err
	}
	g.Spec.Replicas = new(scale.Spec.Replicas)
	return r.checkServers(ctx, field.NewPath("spec", "replicas"), g.Spec.Cluster, g.Name, g)
}

func (r *rules) checkGroupDeletion(ctx context.Context, a admission.Attributes) (field.ErrorList, error) {
	old, err := typed[v1alpha1.MachineGroup](a.GetOldObject())
	if err != nil || old == nil {
		return nil, nil // it is not what it should be, and may go
	}
	if err := r.wait(ctx); err != nil {
		return nil, err
	}
	return r.checkServers(ctx, field.NewPath("metadata", "name"), old.Spec.Cluster, old.Name, nil)
}

// checkServers refuses what a group, changed to g or deleted (nil), would make of the servers of a cluster that has nodes.
// What was wrong before is no reason to refuse something else.
func (r *rules) checkServers(ctx context.Context, at *field.Path, cluster, name string, g *v1alpha1.MachineGroup) (field.ErrorList, error) {
	c, groups := &v1alpha1.Cluster{}, &v1alpha1.MachineGroupList{}
	switch err := r.get(ctx, "clusters", cluster, c); {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read Cluster %s: %w", cluster, err)
	}
	if err := r.list(ctx, map[string]runtime.Object{"machinegroups": groups}); err != nil {
		return nil, err
	}
	was := groupsOf(cluster, groups.Items)
	is := slices.DeleteFunc(slices.Clone(was), func(other v1alpha1.MachineGroup) bool { return other.Name == name })
	if g != nil {
		is = append(is, *g)
	}
	return worse(v1alpha1.ValidateServers(at, c, was), v1alpha1.ValidateServers(at, c, is)), nil
}

// worse are the errors that were not there before.
func worse(before, after field.ErrorList) field.ErrorList {
	return slices.DeleteFunc(after, func(e *field.Error) bool {
		return slices.ContainsFunc(before, func(b *field.Error) bool { return b.Error() == e.Error() })
	})
}

// withStatus is c with the status that is stored: a person does not write it.
func withStatus(c, old *v1alpha1.Cluster) *v1alpha1.Cluster {
	c = c.DeepCopy()
	c.Status = old.Status
	return c
}

func groupsOf(cluster string, all []v1alpha1.MachineGroup) []v1alpha1.MachineGroup {
	return slices.DeleteFunc(all, func(g v1alpha1.MachineGroup) bool { return g.Spec.Cluster != cluster })
}

// warnAll tells the person what hinders, without refusing the object for it.
func warnAll(ctx context.Context, errs field.ErrorList) {
	for _, err := range errs {
		warning.AddWarning(ctx, "", err.Error())
	}
}

func (r *rules) list(ctx context.Context, into map[string]runtime.Object) error {
	for resource, list := range into {
		if err := r.client.Get().Resource(resource).Do(ctx).Into(list); err != nil {
			return fmt.Errorf("read %s: %w", resource, err)
		}
	}
	return nil
}

// remember counts an object as existing for a moment. Requires mu.
func (r *rules) remember(resource, name string, a admitted) {
	r.drop(resource, name)
	for _, known := range []string{"machines", "subnets"} {
		for name, a := range r.recent[known] {
			if time.Now().Before(a.until) {
				break // map order is random, so that over many calls all that are out of date are met
			}
			r.drop(known, name)
		}
	}
	a.until = time.Now().Add(recentFor)
	r.recent[resource][name] = a
	for _, claim := range a.claims {
		r.claimed[claim] = name
	}
}

// drop no longer counts an object; without a name, all of the kind. Requires mu.
func (r *rules) drop(resource, name string) {
	recent := r.recent[resource]
	if a, ok := recent[name]; ok {
		recent = map[string]admitted{name: a}
	} else if name != "" {
		return
	}
	for other, a := range recent {
		for _, claim := range a.claims {
			if r.claimed[claim] == other {
				delete(r.claimed, claim)
			}
		}
		delete(r.recent[resource], other)
	}
}

// warnUnknown tells the person when a name that an object refers to is not there. It is no error: the order in
// which things are applied is free.
func (r *rules) warnUnknown(ctx context.Context, at, resource, name string) {
	if name == "" {
		return
	}
	select {
	case <-r.ready:
	default:
		return
	}
	if err := r.client.Get().Resource(resource).Name(name).Do(ctx).Error(); apierrors.IsNotFound(err) {
		warning.AddWarning(ctx, "", fmt.Sprintf("%s: there is no %s %q yet", at, strings.TrimSuffix(resource, "s"), name))
	}
}

// isOurselves says whether it is the server that writes, not a person.
func isOurselves(ctx context.Context) bool {
	who, ok := request.UserFrom(ctx)
	return ok && who.GetName() == user.APIServerUser
}

func (r *rules) get(ctx context.Context, resource, name string, into runtime.Object) error {
	return r.client.Get().Resource(resource).Name(name).Do(ctx).Into(into)
}
