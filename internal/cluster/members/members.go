// Package members turns what is recorded of Kubernetes clusters into what each machine is handed out: it decides
// which machines a cluster gets (Decide), keeps the plan of every cluster rendered in memory (Set), and signs the
// certificates that a plan names, and no others.
//
// It trusts records only. A machine is a node when Cluster.status.nodes says so, which is written before anything
// acts on it; keys are read from the cluster's Secret, which is written before anything uses them and never
// replaced. So several servers, and one after a restart, hand out the same.
package members

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/contract/wire"
	"k8s.io/apimachinery/pkg/api/meta"
)

// Programs knows what nodes run.
type Programs interface {
	// Programs of a version of Kubernetes. The error says what is missing and what to do.
	Programs(kubernetes string) ([]wire.Program, error)
}

// Options of a Set.
type Options struct {
	Programs Programs
	// ImageDigest says what the content store has by an image's name with tag, "" for nothing; nil: it has no images.
	ImageDigest func(name string) string
	// FetchesFrom says whether images of a registry come from there where no bundle has them; nil: none do.
	FetchesFrom func(registry string) bool
	// Registry is the content store that nodes pull images from; nil when there is none.
	Registry *kube.Registry
	// RegistryURL is where a node reaches it, by the node's address and the network of its Subnet, the zero Prefix when it is in none.
	// nil: at Registry.URL.
	RegistryURL func(node netip.Addr, subnet netip.Prefix) (string, error)
	// KitFrom is how many machines a cluster must have for its nodes to give each other what they fetch; 0: they never do.
	KitFrom int
	Log     *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Set holds the plan of every cluster. It is safe for concurrent use.
type Set struct {
	Options

	mu       sync.Mutex
	clusters map[string]*cluster
	memberOf map[string]string // machine → cluster
	changed  chan struct{}
}

// cluster is one cluster of a Set. Its plan belongs to input and material, and is replaced as a whole.
type cluster struct {
	input    kube.Input
	secret   map[string][]byte
	material *Material
	plan     *kube.Plan
	nodes    map[string]v1alpha1.ClusterNode
	turns    map[string]turn
	// restores are what a restore of etcd wants of each node.
	restores map[string]*wire.EtcdRestore
	// prefetches are the versions whose content machines fetch beside what they run.
	prefetches map[string]string
	paused     bool
	// spec is what was written when the plan was rendered, see SpecOf.
	spec string
	// rotation is the stage that material belongs to, see RotationMark.
	rotation string
	// problem is why the newest input has no plan.
	problem string
	// assignments by machine, made when they are asked for.
	assignments map[string]wire.NodeAssignment
}

// New returns an empty Set.
func New(opts Options) *Set {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Set{Options: opts, clusters: map[string]*cluster{}, memberOf: map[string]string{}, changed: make(chan struct{})}
}

// Record is what the store holds of one cluster.
type Record struct {
	Cluster *v1alpha1.Cluster
	// Groups that name the cluster.
	Groups []v1alpha1.MachineGroup
	// Machines that status.nodes names, as far as they exist.
	Machines []v1alpha1.Machine
	// Subnets that there are.
	Subnets []v1alpha1.Subnet
	// Secret with the cluster's keys; nil when there is none yet.
	Secret *v1alpha1.Secret
}

// Settled says whether what is written was checked and found good. Until then nodes keep what they have.
func (r Record) Settled() bool {
	c := r.Cluster
	if c.Status.ObservedGeneration != c.Generation || c.Status.Phase == v1alpha1.ClusterInvalid {
		return false
	}
	for i := range r.Groups {
		if r.Groups[i].Status.ObservedGeneration != r.Groups[i].Generation {
			return false
		}
	}
	return true
}

// Put takes in a cluster as it is recorded now. It renders only what has changed for nodes. A record that cannot
// be rendered leaves the plan of before in place, and Problem says why.
func (s *Set) Put(r Record) {
	name := r.Cluster.Name
	s.mu.Lock()
	was := s.clusters[name]
	s.mu.Unlock()
	next := s.take(r, was)
	if next == was {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clusters[name] = next
	for machine, of := range s.memberOf {
		if of == name {
			delete(s.memberOf, machine)
		}
	}
	for machine := range next.nodes {
		s.memberOf[machine] = name
	}
	s.wake()
}

// Remove forgets a cluster that no longer exists.
func (s *Set) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clusters[name] == nil {
		return
	}
	delete(s.clusters, name)
	for machine, of := range s.memberOf {
		if of == name {
			delete(s.memberOf, machine)
		}
	}
	s.wake()
}

// Refresh asks for the programs of all plans again, after an import.
func (s *Set) Refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.clusters {
		c.assignments = map[string]wire.NodeAssignment{}
	}
	s.wake()
}

// wake needs s.mu.
func (s *Set) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// take returns was itself when nothing has changed for anybody.
func (s *Set) take(r Record, was *cluster) *cluster {
	next := &cluster{paused: r.Cluster.Spec.Paused, nodes: map[string]v1alpha1.ClusterNode{}, turns: map[string]turn{}, restores: restoresOf(r.Cluster),
		prefetches: map[string]string{}, assignments: map[string]wire.NodeAssignment{}}
	broughtUp := meta.IsStatusConditionTrue(r.Cluster.Status.Conditions, v1alpha1.ConditionBroughtUp)
	for _, n := range r.Cluster.Status.Nodes {
		next.nodes[n.Machine] = decided(n)
		next.turns[n.Machine] = turnOf(n, broughtUp)
		if n.Prefetch != nil {
			next.prefetches[n.Machine] = n.Prefetch.Version
		}
	}
	if was != nil {
		next.input, next.secret, next.material, next.plan, next.spec, next.rotation = was.input, was.secret, was.material, was.plan, was.spec, was.rotation
	}
	next.problem = s.fill(next, r)
	if was != nil && was.plan == next.plan && was.material == next.material && was.paused == next.paused && was.problem == next.problem && was.spec == next.spec && was.rotation == next.rotation &&
		reflect.DeepEqual(was.nodes, next.nodes) && maps.Equal(was.turns, next.turns) && reflect.DeepEqual(was.restores, next.restores) && maps.Equal(was.prefetches, next.prefetches) {
		return was
	}
	if next.problem != "" && (was == nil || was.problem != next.problem) {
		s.Log.Warn("cannot render a new plan for a cluster; the current plan stays", "cluster", r.Cluster.Name, "reason", next.problem)
	}
	return next
}

// decided is a node without what changes by itself and what others work with.
func decided(n v1alpha1.ClusterNode) v1alpha1.ClusterNode {
	n.Ready, n.ReadyChangedAt, n.Message, n.Hand, n.LearnerFailures, n.Leaving, n.Rebooted, n.Remedies, n.Prefetch, n.Replacing = false, nil, "", nil, 0, "", nil, nil, nil, ""
	n.RebootRequest, n.RebootState = nil, ""
	return n
}

// fill makes material and plan from the record, or says why they stay as they are.
func (s *Set) fill(c *cluster, r Record) (problem string) {
	if r.Secret == nil {
		return fmt.Sprintf("cluster %s has no keys yet", r.Cluster.Name)
	}
	if !belongs(r.Secret, r.Cluster) {
		return foreignKeys(r.Cluster.Name)
	}
	material, mark := c.material, RotationMark(r.Cluster.Status.Rotation)
	if material == nil || c.rotation != mark || !reflect.DeepEqual(c.secret, r.Secret.Data) {
		var err error
		if material, err = ParseMaterial(r.Secret, r.Cluster.Status.Rotation); err != nil {
			return err.Error()
		}
	}
	// What nodes are given belongs together: another stage of a rotation comes with its plan, or not yet.
	take := func() { c.material, c.secret, c.rotation = material, r.Secret.Data, mark }
	if c.plan == nil {
		take()
	}
	if len(r.Cluster.Status.Nodes) == 0 {
		return fmt.Sprintf("cluster %s waits for machines", r.Cluster.Name)
	}
	if !r.Settled() {
		return fmt.Sprintf("the newest change of cluster %s is not in effect", r.Cluster.Name)
	}
	input, err := s.input(r, material)
	if err != nil {
		return err.Error()
	}
	spec := SpecOf(r.Cluster, r.Groups)
	if c.plan != nil && reflect.DeepEqual(c.input, input) {
		take()
		c.spec = spec
		return ""
	}
	began := s.Now()
	plan, err := kube.Render(input)
	if err != nil {
		return err.Error()
	}
	take()
	c.input, c.plan, c.spec = input, plan, spec
	s.Log.Info("cluster plan rendered", "cluster", r.Cluster.Name, "nodes", len(plan.Nodes), "took", s.Now().Sub(began).Round(time.Millisecond))
	return ""
}

// belongs says whether keys were made for this very cluster.
func belongs(secret *v1alpha1.Secret, cluster *v1alpha1.Cluster) bool {
	return secret.Annotations[AnnotationClusterUID] == string(cluster.UID)
}

func foreignKeys(name string) string {
	return fmt.Sprintf("Secret %s holds the keys of an earlier cluster %s, which are not used for a new one: whoever had access then would have it now. "+
		"To make new ones, delete that Secret; to take the old cluster up again, annotate it with %s of the new Cluster's metadata.uid", SecretName(name), name, AnnotationClusterUID)
}

// input of the renderer. It holds nothing that changes without meaning for a node, so that inputs can be compared.
func (s *Set) input(r Record, m *Material) (kube.Input, error) {
	in := kube.Input{Cluster: &v1alpha1.Cluster{Spec: *r.Cluster.Spec.DeepCopy()}, Registry: s.Registry}
	m.into(&in)
	in.Cluster.Name = r.Cluster.Name
	in.Cluster.Spec.Version, in.Cluster.Spec.Paused = version(r.Cluster), false
	in.Cluster.Spec.MaintenanceWindows, in.Cluster.Spec.Rotation = nil, nil
	for _, g := range r.Groups {
		group := v1alpha1.MachineGroup{Spec: *g.Spec.DeepCopy()}
		group.Name = g.Name
		// How many there are follows from the machines.
		group.Spec.Replicas, group.Spec.Rollout, group.Spec.Remediation = nil, v1alpha1.RolloutBudget{}, v1alpha1.RemediationSpec{}
		in.Groups = append(in.Groups, group)
	}
	slices.SortFunc(in.Groups, func(a, b v1alpha1.MachineGroup) int { return cmp.Compare(a.Name, b.Name) })
	machines := map[string]*v1alpha1.Machine{}
	for i := range r.Machines {
		machines[r.Machines[i].Name] = &r.Machines[i]
	}
	for _, n := range r.Cluster.Status.Nodes {
		m := kubeMachine(n, machines[n.Machine])
		if s.RegistryURL != nil && len(m.Addresses) > 0 {
			var err error
			if m.RegistryURL, err = s.RegistryURL(m.Addresses[0], networkOf(m.Addresses[0], r.Subnets)); err != nil {
				return in, fmt.Errorf("node %s: %w", n.NodeName, err)
			}
		}
		in.Machines = append(in.Machines, m)
	}
	slices.SortFunc(in.Machines, func(a, b kube.Machine) int { return cmp.Compare(a.Name, b.Name) })
	if in.Registry != nil && s.KitFrom > 0 && len(in.Machines) >= s.KitFrom {
		registry := *in.Registry
		registry.Local = "http://" + kitListen
		in.Registry = &registry
	}
	in.NoNameservers = len(r.Subnets) > 0 && !slices.ContainsFunc(r.Subnets, func(subnet v1alpha1.Subnet) bool {
		return len(subnet.Spec.DNS) > 0 && slices.ContainsFunc(in.Machines, func(m kube.Machine) bool { return within(subnet, m.Addresses) })
	})
	return in, nil
}

// networkOf is that of the Subnet that an address is in, the zero Prefix when there is none.
func networkOf(address netip.Addr, subnets []v1alpha1.Subnet) netip.Prefix {
	for _, subnet := range subnets {
		if network, err := netip.ParsePrefix(subnet.Spec.CIDR); err == nil && network.Contains(address) {
			return network
		}
	}
	return netip.Prefix{}
}

func within(subnet v1alpha1.Subnet, addresses []netip.Addr) bool {
	network, err := netip.ParsePrefix(subnet.Spec.CIDR)
	return err == nil && slices.ContainsFunc(addresses, network.Contains)
}

// View is a cluster as its own API is to be made.
type View struct {
	// Plan that nodes are given; nil when there is none yet. It is shared and must not be changed.
	Plan *kube.Plan
	// Cluster and Machines are what the plan was rendered from, shared like it.
	Cluster  *v1alpha1.Cluster
	Machines []kube.Machine
	// Authority are the PEM certificates that the cluster's API servers are verified with; empty without keys.
	Authority []byte
	// APIServers are the addresses of the machines that run one.
	APIServers []netip.AddrPort
	Paused     bool
	// Spec stands for what was written when the plan was rendered, see SpecOf; Rotation for the stage that it belongs to, see RotationMark.
	Spec, Rotation string
	// Problem is why the newest record has no plan, or empty.
	Problem string
}

// View of a cluster at this moment, and a channel that is closed when something has changed since.
func (s *Set) View(name string) (View, bool, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clusters[name]
	if c == nil {
		return View{}, false, s.changed
	}
	v := View{Plan: c.plan, Paused: c.paused, Spec: c.spec, Rotation: c.rotation, Problem: c.problem}
	if c.material != nil {
		v.Authority = c.material.trusted[kube.AuthorityKubernetes]
	}
	if c.plan != nil {
		v.Cluster, v.Machines = c.input.Cluster, c.input.Machines
		for _, n := range c.plan.Nodes {
			v.APIServers = n.LoadBalancer.Backends
			break
		}
	}
	return v, true, s.changed
}

// AuthorityEnds are when the authorities of all clusters end, by cluster and authority.
func (s *Set) AuthorityEnds() map[string]map[kube.Authority]time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	ends := map[string]map[kube.Authority]time.Time{}
	for name, c := range s.clusters {
		if c.material == nil {
			continue
		}
		ends[name] = map[kube.Authority]time.Time{}
		for authority, a := range c.material.authorities {
			ends[name][authority] = a.cert.NotAfter
		}
	}
	return ends
}

// Names of all clusters, and a channel that is closed when something has changed since.
func (s *Set) Names() ([]string, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.clusters)), s.changed
}

// Member says what a machine is in which cluster.
func (s *Set) Member(machine string) (clusterName, nodeName string, roles []v1alpha1.Role, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.memberOf[machine]
	c := s.clusters[of]
	if c == nil {
		return "", "", nil, false
	}
	if c.plan != nil {
		roles = c.plan.Nodes[machine].Roles
	}
	return of, c.nodes[machine].NodeName, roles, true
}

// ErrRefused is what a machine or person asked for and may not have.
var ErrRefused = errors.New("refused")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}

// Sign signs one of the certificates that the machine's plan names. Of the request nothing but the public key is
// used.
func (s *Set) Sign(machine, clusterName, certificate string, public crypto.PublicKey) (certPEM []byte, leaf *x509.Certificate, err error) {
	s.mu.Lock()
	of := s.memberOf[machine]
	c := s.clusters[of]
	s.mu.Unlock()
	if of == "" || of != clusterName || c == nil {
		return nil, nil, refuse("machine %s is no node of cluster %q", machine, clusterName)
	}
	plan, planned := kube.NodePlan{}, false
	if c.plan != nil {
		plan, planned = c.plan.Nodes[machine]
	}
	if !planned || c.material == nil {
		return nil, nil, refuse("there is no plan for machine %s: %s", machine, cmp.Or(c.problem, "it has just come into the cluster"))
	}
	i := slices.IndexFunc(plan.Certificates, func(r kube.CertificateRequest) bool { return r.Name == certificate })
	if i < 0 {
		return nil, nil, refuse("machine %s is not to have a certificate %q; its roles are %s", machine, certificate, rolesOf(plan.Roles))
	}
	request := plan.Certificates[i]
	if is := algorithmOf(public); is != string(request.KeyAlgorithm) {
		return nil, nil, refuse("the key for certificate %s is %s and must be %s", certificate, is, request.KeyAlgorithm)
	}
	leaf, err = c.material.authorities[request.Authority].issue(request.Template(s.Now()), public)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate %s of machine %s: %w", certificate, machine, err)
	}
	return encode("CERTIFICATE", leaf.Raw), leaf, nil
}

func rolesOf(roles []v1alpha1.Role) string {
	var list []string
	for _, r := range roles {
		list = append(list, string(r))
	}
	return strings.Join(list, ", ")
}

// SignTemplate signs what the caller has checked, with the cluster's Kubernetes authority. It sets serial number
// and issuer, and lets nothing outlive the authority.
func (s *Set) SignTemplate(clusterName string, template *x509.Certificate, public crypto.PublicKey) (certPEM []byte, err error) {
	s.mu.Lock()
	c := s.clusters[clusterName]
	s.mu.Unlock()
	if c == nil || c.material == nil {
		return nil, refuse("cluster %q has no keys", clusterName)
	}
	leaf, err := c.material.authorities[kube.AuthorityKubernetes].issue(template, public)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s for cluster %s: %w", template.Subject.CommonName, clusterName, err)
	}
	return encode("CERTIFICATE", leaf.Raw), nil
}

// clientBackdate tolerates an API server whose clock runs behind.
const clientBackdate = time.Hour

// ClientCertificate signs a certificate by which a person or a program is known to a cluster's API as user with
// groups. The API asks nobody whether it still counts, so it should be short-lived. With the groups
// "system:masters" it opens everything, whatever RBAC says: that is for breaking glass, and for this server until
// it has made the first role bindings.
func (s *Set) ClientCertificate(clusterName, user string, groups []string, ttl time.Duration, public crypto.PublicKey) (certPEM []byte, leaf *x509.Certificate, err error) {
	s.mu.Lock()
	c := s.clusters[clusterName]
	s.mu.Unlock()
	switch {
	case c == nil:
		return nil, nil, refuse("there is no cluster %q", clusterName)
	case c.material == nil:
		return nil, nil, refuse("cluster %s has no keys yet: %s", clusterName, c.problem)
	case user == "":
		return nil, nil, refuse("a certificate must name a user")
	case ttl <= 0:
		return nil, nil, refuse("a certificate must be valid for some time, and not for %s", ttl)
	}
	now := s.Now()
	leaf, err = c.material.authorities[kube.AuthorityKubernetes].issue(&x509.Certificate{
		Subject:   pkix.Name{CommonName: user, Organization: groups},
		NotBefore: now.Add(-clientBackdate), NotAfter: now.Add(ttl),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, public)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate of %s for cluster %s: %w", user, clusterName, err)
	}
	return encode("CERTIFICATE", leaf.Raw), leaf, nil
}
