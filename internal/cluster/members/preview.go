package members

import (
	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
)

// Preview is what would be decided and handed out if a cluster were as somebody proposes.
type Preview struct {
	Decision
	// Old is what nodes are given now, nil when that is nothing.
	Old *kube.Plan
	// New is nil when there would be nothing to give them yet; Waiting says why.
	New *kube.Plan
}

// Preview decides and renders a cluster and its groups as they are proposed, and changes nothing. Groups of the
// cluster that are not proposed stay as they are. Of now, Cluster is not used. Keys that do not exist yet are
// stood in for by a line that says so.
func (s *Set) Preview(cluster *v1alpha1.Cluster, groups []v1alpha1.MachineGroup, now Situation) (Preview, error) {
	proposed := cluster.DeepCopy()
	proposed.Status = v1alpha1.ClusterStatus{}
	for i := range now.Clusters {
		if now.Clusters[i].Name == cluster.Name {
			proposed.Status = *now.Clusters[i].Status.DeepCopy()
		}
	}
	var all []v1alpha1.MachineGroup
	replaced := map[string]bool{}
	for _, g := range groups {
		replaced[g.Name] = true
	}
	for _, g := range now.Groups {
		if !replaced[g.Name] {
			all = append(all, g)
		}
	}
	for _, g := range groups {
		next := *g.DeepCopy()
		next.Status = v1alpha1.MachineGroupStatus{}
		for i := range now.Groups {
			if now.Groups[i].Name == g.Name {
				next.Status = *now.Groups[i].Status.DeepCopy()
			}
		}
		all = append(all, next)
	}
	now.Cluster, now.Groups = proposed, all

	s.mu.Lock()
	was := s.clusters[cluster.Name]
	s.mu.Unlock()
	var p Preview
	material := &Material{trusted: map[kube.Authority][]byte{}, serviceAccountPublic: []byte("# the public key of service accounts, which is made first\n")}
	for _, a := range kube.Authorities(proposed) {
		material.trusted[a.Authority] = []byte("# the certificate of authority " + string(a.Authority) + ", which is made first\n")
	}
	if was != nil {
		p.Old = was.plan
		if was.material != nil {
			material = was.material
		}
	}
	var err error
	if p.Decision, err = Decide(now); err != nil || len(p.Nodes) == 0 {
		return p, err
	}
	proposed.Status.Nodes = p.Nodes
	input, err := s.input(Record{Cluster: proposed, Groups: ownGroups(cluster.Name, all), Machines: now.Machines, Subnets: now.Subnets}, material)
	if err != nil {
		return p, err
	}
	p.New, err = kube.Render(input)
	return p, err
}
