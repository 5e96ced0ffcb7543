package controllers

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/etcd"
	"coldrack.dev/internal/cluster/kubeapi"
	"coldrack.dev/internal/cluster/planner"
	"coldrack.dev/internal/machine/lifecycle"
)

// lookTimeout is how long the API of a cluster may take to say how it is.
const lookTimeout = 20 * time.Second

// sight is what was seen of a running cluster just now.
type sight struct {
	// problem is why its API cannot be used; empty when it can.
	problem string
	api     *kubeapi.Connection
	// nodes as the API has them, by name.
	nodes map[string]kubeapi.NodeState
	// servers are the API servers that do not answer, and why.
	servers map[netip.AddrPort]error
	budgets []kubeapi.Budget
	pods    []kubeapi.GuardedPod
	// etcd is nil when no member is known.
	etcd *etcd.Client
	// members as etcd lists them; nil when it does not.
	members []etcd.Member
}

// sights keeps the connections to clusters.
type sights struct {
	operator *operator
	mu       sync.Mutex
	links    map[string]*link
	looked   map[string]time.Time
}

// lookedAt says whether a cluster was looked at since.
func (s *sights) lookedAt(cluster string, since time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.looked[cluster].After(since)
}

// link is the way to one cluster.
type link struct {
	servers []netip.AddrPort
	members []netip.Addr
	ca      string
	until   time.Time
	api     *kubeapi.Connection
	etcd    *etcd.Client
}

func (l *link) close() {
	if l.api != nil {
		l.api.Close()
	}
	if l.etcd != nil {
		l.etcd.Close()
	}
}

func (s *sights) forget(cluster string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.looked, cluster)
	if l := s.links[cluster]; l != nil {
		l.close()
		delete(s.links, cluster)
	}
}

// etcdTTL is how long the certificate for a cluster's etcd lasts.
const etcdTTL = time.Hour

// link to a cluster as it is recorded now.
func (s *sights) link(c *v1alpha1.Cluster) (*link, error) {
	r := s.operator
	view, ok, _ := r.Clusters.View(c.Name)
	if !ok || view.Plan == nil {
		return nil, fmt.Errorf("cluster %s has no plan yet", c.Name)
	}
	var with []netip.Addr
	for i := range c.Status.Nodes {
		if n := &c.Status.Nodes[i]; n.Etcd != nil {
			with = append(with, addressOf(n))
		}
	}
	// When they change, so may what signs certificates for this server.
	authorities := string(view.Authority) + string(r.Clusters.EtcdAuthority(c.Name))
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.links[c.Name]; l != nil {
		if slices.Equal(l.servers, view.APIServers) && slices.Equal(l.members, with) && l.ca == authorities && r.Now().Before(l.until) {
			return l, nil
		}
		l.close()
		delete(s.links, c.Name)
	}
	l := &link{servers: view.APIServers, members: with, ca: authorities, until: r.Now().Add(etcdTTL / 2)}
	var err error
	l.api, err = kubeapi.Connect(kubeapi.Target{Cluster: c.Name, Servers: view.APIServers, CA: view.Authority, Dial: r.DialNode,
		Certificate: func() (*tls.Certificate, error) { return ServerCertificate(r.Clusters, c.Name) }})
	if err != nil {
		return nil, err
	}
	if len(with) > 0 {
		certificate, err := r.Clusters.EtcdClient(c.Name, etcdTTL)
		if err == nil {
			l.etcd, err = etcd.Connect(etcd.Target{Cluster: c.Name, Nodes: with, CA: r.Clusters.EtcdAuthority(c.Name), Certificate: certificate, Dial: r.DialNode})
		}
		if err != nil {
			l.close()
			return nil, err
		}
	}
	if s.links == nil {
		s.links = map[string]*link{}
	}
	s.links[c.Name] = l
	return l, nil
}

// look at a cluster. That it does not answer is no error.
func (s *sights) look(ctx context.Context, c *v1alpha1.Cluster) (*sight, error) {
	l, err := s.link(c)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	v := &sight{api: l.api, etcd: l.etcd, nodes: map[string]kubeapi.NodeState{}}
	var looking sync.WaitGroup
	looking.Go(func() { v.servers = l.api.Servers(ctx) })
	var budgets error
	looking.Go(func() { v.budgets, v.pods, budgets = l.api.Budgets(ctx) })
	if l.etcd != nil {
		looking.Go(func() {
			if v.members, err = l.etcd.Members(ctx); err != nil {
				s.operator.Log.Debug("cannot ask etcd", "cluster", c.Name, "err", err)
			}
		})
	}
	looking.Wait()
	s.mu.Lock()
	if s.looked == nil {
		s.looked = map[string]time.Time{}
	}
	s.looked[c.Name] = s.operator.Now()
	s.mu.Unlock()
	state := s.operator.apis.state(c.Name)
	switch {
	case budgets != nil:
		v.problem = fmt.Sprintf("the API of cluster %s does not answer: %v", c.Name, budgets)
	case state == nil || !state.Reachable || state.Nodes == nil:
		v.problem = fmt.Sprintf("the API of cluster %s has not said yet how its nodes are", c.Name)
	default:
		v.nodes = state.Nodes
	}
	return v, nil
}

// member of a node, as etcd lists it.
func (v *sight) member(n *v1alpha1.ClusterNode) (etcd.Member, bool) {
	i := slices.IndexFunc(v.members, func(m etcd.Member) bool { return m.Node == addressOf(n) })
	if i < 0 {
		return etcd.Member{}, false
	}
	return v.members[i], true
}

func memberName(m etcd.Member) string {
	if m.Name == "" {
		return fmt.Sprintf("%x", m.ID)
	}
	return m.Name
}

// observe adds to what is recorded what was seen.
func (v *sight) observe(c *v1alpha1.Cluster, in *planner.Input) {
	on := map[string][]planner.Pod{}
	for _, p := range v.pods {
		on[p.Node] = append(on[p.Node], planner.Pod{Name: p.Name, Budget: p.Budget})
	}
	for _, b := range v.budgets {
		in.Observed.Budgets = append(in.Observed.Budgets, planner.DisruptionBudget(b))
	}
	machineAt := map[netip.Addr]*v1alpha1.ClusterNode{}
	down := map[netip.Addr]bool{}
	for server := range v.servers {
		down[server.Addr()] = true
	}
	for i := range c.Status.Nodes {
		n, p := &c.Status.Nodes[i], &in.Observed.Nodes[i]
		machineAt[addressOf(n)] = n
		p.Pods = on[n.NodeName]
		p.APIServer = p.Has.ControlPlane != "" && !down[addressOf(n)]
		if state, ok := v.nodes[n.NodeName]; ok {
			p.Cordoned = state.Unschedulable
			p.Ready = p.Ready && state.Ready
		}
	}
	in.Observed.Members = nil
	for _, m := range v.members {
		member := planner.Member{Name: memberName(m), Learner: m.Learner, Healthy: m.Answers, Connected: m.Connected, InSync: m.InSync, Leader: m.Leader}
		if n := machineAt[m.Node]; n != nil {
			member.Node, member.Since = n.Machine, in.Now
			if n.Etcd != nil && n.Etcd.AddedAt != nil {
				member.Since = n.Etcd.AddedAt.Time
			}
		}
		in.Observed.Members = append(in.Observed.Members, member)
	}
}

// failedPhase says which phase of a machine's bring-up fails, or nothing.
func failedPhase(m *v1alpha1.Machine) string {
	if m == nil {
		return ""
	}
	return lifecycle.FailedPhase(m)
}

// runningPhase is what a machine's bring-up does, or nothing.
func runningPhase(m *v1alpha1.Machine) string {
	if m == nil || m.Status.Kubernetes == nil || m.Status.Kubernetes.Done {
		return ""
	}
	return lifecycle.RunningPhase(m.Status.Kubernetes)
}
