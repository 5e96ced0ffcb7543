package controllers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/members"
)

// clusterLeader decides what a cluster is: it checks what is written, makes the keys, chooses machines, records
// what each of them keeps, and says how far all that is.
//
// The order is what makes it safe to die at any point: keys are stored, once, before a machine is recorded; a
// machine is recorded before any server hands it a plan.
type clusterLeader struct {
	Deps
	// apis knows how the clusters' own APIs are.
	apis interface {
		state(cluster string) *kubeapi.State
	}

	mu      sync.Mutex
	written map[string]time.Time // when a status was last written
}

// clusterWriteEvery is how often the store hears of a cluster whose machines report all the time.
const clusterWriteEvery = time.Second

func clusterReconciler(d Deps, apis *clusterAPIs) reconciler {
	r := &clusterLeader{Deps: d, apis: apis, written: map[string]time.Time{}}
	return reconciler{
		// One worker: two clusters must not take the same machine.
		name: "cluster", workers: 1, do: r.reconcile,
		watches: append(append(clusterWatches(d), machinesThatMatter(d), apis.source()), allClustersOn(d, d.Catalog)...),
	}
}

func (r *clusterLeader) reconcile(ctx context.Context, name string) (time.Duration, error) {
	s, err := r.situation(ctx, r.Cache, name)
	if err != nil {
		return 0, err
	}
	if s.Cluster == nil {
		return 0, r.updateOrphanStatus(ctx, name, s.Groups)
	}
	if s.Cluster.DeletionTimestamp != nil {
		return r.settle(r.letGo(ctx, s.Cluster))
	}
	if !controllerutil.ContainsFinalizer(s.Cluster, v1alpha1.ClusterFinalizer) {
		next := s.Cluster.DeepCopy()
		controllerutil.AddFinalizer(next, v1alpha1.ClusterFinalizer)
		// The news of it wakes this reconciler.
		return r.settle(r.Client.Patch(ctx, next, client.MergeFromWithOptions(s.Cluster, client.MergeFromWithOptimisticLock{})))
	}
	facts, err := r.look(ctx, &s)
	if err != nil {
		return r.settle(err)
	}
	next := s.Cluster.DeepCopy()
	foldCluster(next, facts)
	if wait := r.tooSoon(s.Cluster, next); wait > 0 {
		return wait, nil
	}
	if !equality.Semantic.DeepEqual(s.Cluster.Status, next.Status) {
		err := r.Client.Status().Patch(ctx, next, client.MergeFromWithOptions(s.Cluster, client.MergeFromWithOptimisticLock{}))
		if err != nil {
			return r.settle(fmt.Errorf("write status of cluster %s: %w", name, err))
		}
		r.mu.Lock()
		r.written[name] = r.Now()
		r.mu.Unlock()
		if s.Cluster.Status.Phase != next.Status.Phase {
			r.Log.Info("cluster", "cluster", name, "phase", next.Status.Phase, "was", s.Cluster.Status.Phase, "nodes", next.Status.NodesReady, "reason", next.Status.Message)
		}
	}
	for i := range s.Groups {
		if g := &s.Groups[i]; g.Spec.Cluster == name {
			if err := r.updateGroupStatus(ctx, g, next, facts); err != nil {
				return r.settle(err)
			}
		}
	}
	return 0, nil
}

// settle turns the errors of a write that somebody was faster with into another try.
func (r *clusterLeader) settle(err error) (time.Duration, error) {
	switch {
	case apierrors.IsConflict(err):
		return 100 * time.Millisecond, nil
	case apierrors.IsNotFound(err):
		return 0, nil
	}
	return 0, err
}

// tooSoon says how long to wait when only messages and steps have changed and the store has heard of them just
// now.
func (r *clusterLeader) tooSoon(was, next *v1alpha1.Cluster) time.Duration {
	plain := func(s v1alpha1.ClusterStatus) v1alpha1.ClusterStatus {
		s.Message, s.Steps = "", nil
		return s
	}
	if !equality.Semantic.DeepEqual(plain(was.Status), plain(next.Status)) {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.written[next.Name].Add(clusterWriteEvery).Sub(r.Now())
}

// situation is what exists. Without the cluster, its Cluster is nil. Groups of clusters that are not there or
// about to go take no machines.
func (r *clusterLeader) situation(ctx context.Context, reader client.Reader, name string) (members.Situation, error) {
	var s members.Situation
	all, groups := &v1alpha1.ClusterList{}, &v1alpha1.MachineGroupList{}
	if err := reader.List(ctx, all); err != nil {
		return s, fmt.Errorf("list clusters: %w", err)
	}
	if err := reader.List(ctx, groups); err != nil {
		return s, fmt.Errorf("list machine groups: %w", err)
	}
	alive := map[string]bool{}
	for i := range all.Items {
		c := &all.Items[i]
		alive[c.Name] = c.DeletionTimestamp == nil
		if c.Name == name {
			s.Cluster = c
		}
	}
	s.Clusters = all.Items
	for _, g := range groups.Items {
		if alive[g.Spec.Cluster] || g.Spec.Cluster == name {
			s.Groups = append(s.Groups, g)
		}
	}
	for _, m := range r.Fleet.List() {
		s.Machines = append(s.Machines, *m)
	}
	if s.Cluster != nil {
		s.Registered, s.Unread = registeredIn(s.Cluster, r.apis.state(name))
	}
	return s, nil
}

// look finds out everything that the status says. It makes the keys of a cluster that can be carried out. What it
// decides is not recorded yet.
func (r *clusterLeader) look(ctx context.Context, s *members.Situation) (clusterFacts, error) {
	f := clusterFacts{now: r.Now(), machines: map[string]*v1alpha1.Machine{}, nodes: s.Cluster.Status.Nodes}
	for i := range s.Machines {
		f.machines[s.Machines[i].Name] = &s.Machines[i]
	}
	for _, g := range s.Groups {
		if g.Spec.Cluster == s.Cluster.Name {
			f.groups = append(f.groups, g)
		}
	}
	subnets, err := NewPlans(r.Cache).Subnets(ctx)
	if err != nil {
		return f, err
	}
	if f.invalid = r.validate(s, f.groups, validSubnets(subnets)); f.invalid != "" {
		return f, nil
	}
	if f.invalid, err = r.keys(ctx, s.Cluster); err != nil || f.invalid != "" {
		return f, err
	}
	if f.decision, err = members.Decide(*s); err != nil {
		f.decision.Waiting = append(f.decision.Waiting, err.Error())
		f.decision.Nodes = s.Cluster.Status.Nodes
	}
	if s.Cluster.Spec.Paused {
		f.decision.Nodes = s.Cluster.Status.Nodes
	}
	if grown(s.Cluster.Status.Nodes, f.decision.Nodes) {
		// What is decided for good is not decided on what a cache says.
		fresh, err := r.situation(ctx, r.Client, s.Cluster.Name)
		if err != nil || fresh.Cluster == nil || fresh.Cluster.ResourceVersion != s.Cluster.ResourceVersion {
			return f, errors.Join(err, errBehind)
		}
		if f.decision, err = members.Decide(fresh); err != nil {
			return f, err
		}
	}
	if grown(s.Cluster.Status.Nodes, f.decision.Nodes) || !(members.Record{Cluster: s.Cluster, Groups: f.groups}).Settled() {
		if _, err := r.Clusters.Preview(s.Cluster, nil, *s); err != nil {
			f.invalid = err.Error()
			return f, nil
		}
	}
	f.nodes = f.decision.Nodes
	f.view, _, _ = r.Clusters.View(s.Cluster.Name)
	f.api = r.apis.state(s.Cluster.Name)
	if s.Cluster.Spec.Paused {
		return f, nil
	}
	return f, r.giveProfiles(ctx, f)
}

// errBehind is the error of a cache that does not have what was written last; the rest follows on its news.
var errBehind = apierrors.NewConflict(v1alpha1.GroupVersion.WithResource("clusters").GroupResource(), "", errors.New("the cache is behind"))

func grown(was, is []v1alpha1.ClusterNode) bool {
	return slices.ContainsFunc(is, func(n v1alpha1.ClusterNode) bool {
		return !slices.ContainsFunc(was, func(o v1alpha1.ClusterNode) bool { return o.Machine == n.Machine })
	})
}

// validate says what keeps a cluster from being carried out as it is written, or "".
func (r *clusterLeader) validate(s *members.Situation, groups []v1alpha1.MachineGroup, subnets []v1alpha1.Subnet) string {
	c := s.Cluster
	facts := v1alpha1.ClusterFacts{Groups: groups, Versions: r.Catalog.KubernetesVersions(), Subnets: subnets, Clusters: s.Clusters}
	if facts.Versions == nil {
		facts.Versions = []string{}
	}
	if slices.ContainsFunc(c.Status.Nodes, func(n v1alpha1.ClusterNode) bool { return n.Version == c.Spec.Version }) {
		facts.Versions = nil // it runs
	}
	errs := v1alpha1.ValidateCluster(c, facts)
	for i := range groups {
		for _, err := range v1alpha1.ValidateMachineGroup(&groups[i]) {
			err.Field = "MachineGroup " + groups[i].Name + ": " + err.Field
			errs = append(errs, err)
		}
	}
	errs = append(errs, v1alpha1.ValidateVersionStep(c)...)
	errs = append(errs, r.validateAddresses(c)...)
	if len(errs) == 0 {
		return ""
	}
	var texts []string
	for _, err := range errs {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

// validateAddresses keeps a cluster's addresses apart from those of servers and machines.
func (r *clusterLeader) validateAddresses(c *v1alpha1.Cluster) field.ErrorList {
	var errs field.ErrorList
	spec, reserved := field.NewPath("spec"), r.reserved()
	if v := c.Spec.Endpoint.VirtualIP; v != nil {
		at := spec.Child("endpoint", "virtualIP", "address")
		if address, err := netip.ParseAddr(v.Address); err == nil && slices.Contains(reserved, address) {
			errs = append(errs, field.Invalid(at, v.Address, "is an address of this server"))
		}
		for _, owner := range r.Fleet.AddressOwners(v.Address) {
			errs = append(errs, field.Invalid(at, v.Address, fmt.Sprintf("is the address of machine %s", owner)))
		}
	}
	if lb := c.Spec.Network.LoadBalancer; lb != nil {
		for i, pool := range lb.Pools {
			for j, text := range pool.Addresses {
				addresses, err := v1alpha1.ParsePoolAddresses(text)
				if err != nil {
					continue
				}
				at := spec.Child("network", "loadBalancer", "pools").Index(i).Child("addresses").Index(j)
				for _, own := range reserved {
					if addresses.Contains(own) {
						errs = append(errs, field.Invalid(at, text, fmt.Sprintf("contains %s, an address of this server", own)))
					}
				}
				for _, owner := range r.Fleet.OwnersWithin(addresses.Contains) {
					errs = append(errs, field.Invalid(at, text, fmt.Sprintf("contains the address of machine %s", owner)))
				}
			}
		}
	}
	for name, list := range map[string][]string{"podCIDRs": c.Spec.Network.PodCIDRs, "serviceCIDRs": c.Spec.Network.ServiceCIDRs} {
		for i, text := range list {
			network, err := netip.ParsePrefix(text)
			if err != nil {
				continue
			}
			for _, own := range reserved {
				if network.Contains(own) {
					errs = append(errs, field.Invalid(spec.Child("network", name).Index(i), text, fmt.Sprintf("contains %s, an address of this server: nodes could not reach it", own)))
				}
			}
		}
	}
	return errs
}

// keys makes sure that a cluster has its keys. They are made once: who comes second takes what is there, and what
// is lost while there are nodes is not made anew, because the nodes would trust nobody any more.
func (r *clusterLeader) keys(ctx context.Context, c *v1alpha1.Cluster) (problem string, err error) {
	name := members.SecretName(c.Name)
	secret := &v1alpha1.Secret{}
	err = r.Client.Get(ctx, client.ObjectKey{Name: name}, secret)
	if apierrors.IsNotFound(err) {
		if len(c.Status.Nodes) > 0 {
			return fmt.Sprintf("Secret %s with the cluster's keys is gone; restore it from a backup. Nodes keep running with what they have, until their certificates expire", name), nil
		}
		material, err := members.NewMaterial(c, r.Now())
		if err != nil {
			return "", fmt.Errorf("make keys of cluster %s: %w", c.Name, err)
		}
		if secret, err = material.Secret(c); err != nil {
			return "", fmt.Errorf("keys of cluster %s: %w", c.Name, err)
		}
		if err := r.Client.Create(ctx, secret); apierrors.IsAlreadyExists(err) {
			return "", errBehind // somebody was faster, and theirs count
		} else if err != nil {
			return "", fmt.Errorf("store keys of cluster %s: %w", c.Name, err)
		}
		r.Log.Info("cluster keys created", "cluster", c.Name, "secret", name)
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read keys of cluster %s: %w", c.Name, err)
	}
	if err := members.CheckSecret(secret, c); err != nil {
		return err.Error(), nil
	}
	return "", nil
}

// giveProfiles gives machines that were placed and have none yet the profile of their group.
func (r *clusterLeader) giveProfiles(ctx context.Context, f clusterFacts) error {
	for _, g := range f.groups {
		for _, name := range f.decision.Placed[g.Name] {
			m := f.machines[name]
			if g.Spec.Profile == "" || m == nil || m.Spec.Profile != "" || m.Status.Installed != nil {
				continue
			}
			if err := r.giveProfile(ctx, m, g.Spec.Profile); err != nil {
				return fmt.Errorf("give machine %s the profile of group %s: %w", name, g.Name, err)
			}
			r.Log.Info("machine gets its group's profile", "machine", name, "group", g.Name, "profile", g.Spec.Profile)
		}
	}
	return nil
}

func (r *clusterLeader) giveProfile(ctx context.Context, m *v1alpha1.Machine, profile string) error {
	defer r.Fleet.Write(m.Name)()
	next := m.DeepCopy()
	members.GiveProfile(next, profile)
	if err := r.Client.Patch(ctx, next, client.MergeFromWithOptions(m, client.MergeFromWithOptimisticLock{})); err != nil {
		return err
	}
	r.Fleet.Put(next)
	return nil
}

// letGo ends a deleted cluster once nothing of it can run any more. Its keys stay, under another name: backups of
// its etcd are worth nothing without them.
func (r *clusterLeader) letGo(ctx context.Context, c *v1alpha1.Cluster) error {
	if !controllerutil.ContainsFinalizer(c, v1alpha1.ClusterFinalizer) {
		return nil
	}
	var left []string
	for _, n := range c.Status.Nodes {
		if m, _ := r.Fleet.Get(n.Machine); !members.Gone(m) {
			left = append(left, n.Machine)
		}
	}
	if len(left) > 0 && c.Annotations[v1alpha1.AnnotationAbandon] != "true" {
		next := c.DeepCopy()
		next.Status.Phase = v1alpha1.ClusterReleasing
		next.Status.Message = fmt.Sprintf("deleted, but machines of it may still run: %s. Wipe them with: coldrack release %s; or let them be, and the cluster be forgotten, with: kubectl annotate cluster %s %s=true",
			strings.Join(left, ", "), strings.Join(left, " "), c.Name, v1alpha1.AnnotationAbandon)
		if equality.Semantic.DeepEqual(c.Status, next.Status) {
			return nil
		}
		return r.Client.Status().Patch(ctx, next, client.MergeFromWithOptions(c, client.MergeFromWithOptimisticLock{}))
	}
	if err := r.archiveKeys(ctx, c); err != nil {
		return err
	}
	next := c.DeepCopy()
	controllerutil.RemoveFinalizer(next, v1alpha1.ClusterFinalizer)
	r.Log.Info("cluster deleted", "cluster", c.Name, "left", left)
	return r.Client.Patch(ctx, next, client.MergeFromWithOptions(c, client.MergeFromWithOptimisticLock{}))
}

func (r *clusterLeader) archiveKeys(ctx context.Context, c *v1alpha1.Cluster) error {
	secret := &v1alpha1.Secret{}
	err := r.Client.Get(ctx, client.ObjectKey{Name: members.SecretName(c.Name)}, secret)
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read keys of cluster %s: %w", c.Name, err)
	}
	if members.CheckSecret(secret, c) != nil {
		return nil // of another cluster, or not readable: for a person
	}
	kept := &v1alpha1.Secret{Type: secret.Type, Data: secret.Data}
	kept.Name, kept.Annotations = members.ArchiveName(c), secret.Annotations
	switch err := r.Client.Create(ctx, kept); {
	case apierrors.IsAlreadyExists(err):
		if err := r.Client.Get(ctx, client.ObjectKey{Name: kept.Name}, kept); err != nil {
			return fmt.Errorf("read %s: %w", kept.Name, err)
		}
		if !equality.Semantic.DeepEqual(kept.Data, secret.Data) {
			return fmt.Errorf("keys of cluster %s cannot be kept as %s: there is a Secret of that name with other content; rename it", c.Name, kept.Name)
		}
	case err != nil:
		return fmt.Errorf("keep keys of cluster %s as %s: %w", c.Name, kept.Name, err)
	}
	uid, version := secret.UID, secret.ResourceVersion
	if err := r.Client.Delete(ctx, secret, client.Preconditions{UID: &uid, ResourceVersion: &version}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove keys of cluster %s: %w", c.Name, err)
	}
	r.Log.Info("keys of a deleted cluster archived", "cluster", c.Name, "secret", kept.Name)
	return nil
}

// updateGroupStatus writes which machines a group has, and what is wrong with it.
func (r *clusterLeader) updateGroupStatus(ctx context.Context, g *v1alpha1.MachineGroup, c *v1alpha1.Cluster, f clusterFacts) error {
	next := g.DeepCopy()
	s := &next.Status
	s.ObservedGeneration = g.Generation
	s.Message = ""
	if f.invalid != "" {
		s.Message = fmt.Sprintf("cluster %s is invalid: %s", c.Name, f.invalid)
	} else {
		s.Machines = f.decision.Placed[g.Name]
		s.Replicas, s.ReadyReplicas = int32(len(s.Machines)), 0
		for _, n := range c.Status.Nodes {
			if n.Group == g.Name && n.Ready {
				s.ReadyReplicas++
			}
		}
		for _, reason := range f.decision.Waiting {
			if strings.HasPrefix(reason, "MachineGroup "+g.Name+" ") {
				s.Message = reason
			}
		}
		if extra := len(s.Machines) - g.WantedReplicas(); extra > 0 {
			s.Message = fmt.Sprintf("has %d machines and wants %d: the others leave one after another", len(s.Machines), g.WantedReplicas())
		}
	}
	return r.writeGroup(ctx, g, next)
}

// updateOrphanStatus tells groups whose cluster does not exist so.
func (r *clusterLeader) updateOrphanStatus(ctx context.Context, cluster string, groups []v1alpha1.MachineGroup) error {
	for i := range groups {
		if groups[i].Spec.Cluster != cluster {
			continue
		}
		next := groups[i].DeepCopy()
		next.Status = v1alpha1.MachineGroupStatus{ObservedGeneration: next.Generation, Message: fmt.Sprintf("there is no Cluster %q", cluster)}
		if err := r.writeGroup(ctx, &groups[i], next); err != nil {
			return err
		}
	}
	return nil
}

func (r *clusterLeader) writeGroup(ctx context.Context, was, next *v1alpha1.MachineGroup) error {
	if equality.Semantic.DeepEqual(was.Status, next.Status) {
		return nil
	}
	err := r.Client.Status().Patch(ctx, next, client.MergeFromWithOptions(was, client.MergeFromWithOptimisticLock{}))
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write status of machine group %s: %w", next.Name, err)
	}
	return nil
}
