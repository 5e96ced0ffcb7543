package rebootlock

import (
	"fmt"
	"sync"
	"time"

	"coldrack.dev/api/v1alpha1"
)

// Set is what is recorded of all RebootGroups, and what clusters say of reboots, in memory, for those who answer agents. Its zero value knows nothing yet, and lets no machine go.
type Set struct {
	mu     sync.Mutex
	groups map[string]*v1alpha1.RebootGroup
	known  bool
	// nodes are what clusters say of the reboots of their nodes, by cluster and machine.
	nodes map[string]map[string]string
}

// PutCluster records what a cluster says of the reboots of its nodes, and returns the machines of which it says something else than before.
// Of a cluster without nodes nothing is kept.
func (s *Set) PutCluster(name string, nodes []v1alpha1.ClusterNode) (changed []string) {
	is := map[string]string{}
	for i := range nodes {
		if n := &nodes[i]; n.RebootState != "" {
			is[n.Machine] = n.RebootState
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.nodes[name]
	for machine, text := range is {
		if was[machine] != text {
			changed = append(changed, machine)
		}
	}
	for machine := range was {
		if is[machine] == "" {
			changed = append(changed, machine)
		}
	}
	switch {
	case len(is) == 0:
		delete(s.nodes, name)
	case s.nodes == nil:
		s.nodes = map[string]map[string]string{name: is}
	default:
		s.nodes[name] = is
	}
	return changed
}

// Put records a group that was read. The group must not be changed any more.
func (s *Set) Put(g *v1alpha1.RebootGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.groups == nil {
		s.groups = map[string]*v1alpha1.RebootGroup{}
	}
	s.groups[g.Name] = g
}

// Remove forgets a group that was deleted.
func (s *Set) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.groups, name)
}

// Known is called when all groups that there are were Put.
func (s *Set) Known() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = true
}

// Turn says whether a machine of no cluster is bound to a group's lock, and which boot it may end, for which reason; empty: none now.
func (s *Set) Turn(m *v1alpha1.Machine) (bootID, reason string, bound bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.known {
		return "", "", true
	}
	for _, g := range s.groups {
		switch h := g.Status.Holder(m.Name); {
		case h == nil:
		case h.Overdue && ignores(g): // the others do not wait for it any more
			return "", "", true
		default:
			return h.BootID, h.Reason, true
		}
		if is, err := g.Selects(m); is || err != nil {
			bound = true
		}
	}
	return "", "", bound
}

// State says in words how far the reboot of a machine is, and which lock of a group it has, or nil. cluster is the one that has the machine,
// or empty.
func (s *Set) State(machine, cluster string) (text string, held *v1alpha1.RebootHolder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cluster != "" {
		return s.nodes[cluster][machine], nil
	}
	for _, g := range s.groups {
		if h := g.Status.Holder(machine); h != nil {
			return fmt.Sprintf("has the lock of %s until %s", g.Name, h.Until.UTC().Format(time.RFC3339)), h
		}
	}
	for _, g := range s.groups {
		for i := range g.Status.Waiting {
			if w := &g.Status.Waiting[i]; w.Name == machine {
				return w.Message, nil
			}
		}
	}
	return "", nil
}
