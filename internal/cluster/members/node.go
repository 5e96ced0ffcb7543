package members

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/planner"
	"coldrack.dev/internal/contract/wire"
)

// Node is what a machine must have for its cluster, and a channel that is closed when that may have become
// something else. Take it before anything that a change shall not be missed of. The answer is shared and must
// not be changed; its plan has no ContentURL.
func (s *Set) Node(machine string) (wire.NodeAssignment, <-chan struct{}) {
	s.mu.Lock()
	changed := s.changed
	of := s.memberOf[machine]
	c := s.clusters[of]
	if c == nil {
		s.mu.Unlock()
		return versioned(wire.NodeAssignment{Message: "this machine belongs to no cluster"}), changed
	}
	if have, ok := c.assignments[machine]; ok {
		s.mu.Unlock()
		return have, changed
	}
	assignments := c.assignments
	s.mu.Unlock()

	made := versioned(s.assignment(of, c, machine))
	s.mu.Lock()
	defer s.mu.Unlock()
	assignments[machine] = made // of the state that was looked at; a newer one has another map
	return made, changed
}

func (s *Set) assignment(name string, c *cluster, machine string) wire.NodeAssignment {
	turn := c.turns[machine]
	out := wire.NodeAssignment{Paused: c.paused, Operation: turn.operation, Hold: turn.hold, RollBack: turn.rollBack, Restore: c.restores[machine]}
	wait := func(reason string) wire.NodeAssignment {
		out.Message = reason
		return out
	}
	if c.plan == nil || c.material == nil {
		return wait(c.problem)
	}
	node, ok := c.plan.Nodes[machine]
	if !ok {
		return wait(cmp.Or(c.problem, fmt.Sprintf("cluster %s has no plan for this machine yet", name)))
	}
	programs, err := s.Programs.Programs(node.Version)
	if err != nil {
		return wait(err.Error())
	}
	plan, err := nodePlan(name, node, c.material)
	if err != nil {
		s.Log.Error("cannot serve a machine's plan", "cluster", name, "machine", machine, "err", err)
		return wait(err.Error())
	}
	digester, err := kube.NewDigester(node, c.material.secret)
	if err != nil {
		return wait(err.Error())
	}
	for _, p := range programs {
		phase, wanted := kube.ProgramPhase(p.Name, node.Roles)
		if wanted {
			p.Phase = string(phase)
			plan.Programs = append(plan.Programs, p)
			digester.Add(kube.PartNode, "program", p.Path, p.Digest, p.Version)
		}
	}
	plan.Digests = wire.ConfigDigests(digester.Digests())
	if r := c.input.Registry; r != nil && r.Local != "" {
		plan.Kit = &wire.NodeKit{Listen: kitListen}
	}
	out.Plan = plan
	if out.Prefetch, err = s.prefetch(c, node.Roles, c.prefetches[machine]); err != nil {
		out.Message = err.Error()
	}
	if c.paused {
		out.Message = fmt.Sprintf("cluster %s is paused: spec.paused", name)
	}
	return out
}

// restoresOf is what the nodes of a cluster are to do for a restore of etcd, by machine. Afterwards they keep what was there before until a
// backup has succeeded, and are told of the restore for as long.
func restoresOf(c *v1alpha1.Cluster) map[string]*wire.EtcdRestore {
	s := c.Status.Restore
	if !s.Running() && (s == nil || !s.FormerData) {
		return nil
	}
	all := map[string]*wire.EtcdRestore{}
	for _, n := range c.Status.Nodes {
		r := &wire.EtcdRestore{ID: s.ID, Stop: s.Step == v1alpha1.RestoreStopping || s.Step == v1alpha1.RestorePreparing}
		for _, m := range s.Members {
			if m.Machine == n.Machine && s.Step == v1alpha1.RestoreStarting {
				r.Data = &wire.Content{Digest: m.Digest, Size: m.Size}
			}
		}
		all[n.Machine] = r
	}
	return all
}

// turn is whether a node may take its newest configuration.
type turn struct {
	operation      string
	hold, rollBack bool
	// boot is to be ended, for a reason.
	boot, reason string
}

// turnOf is read off a node's record. Nodes of a cluster that runs wait until they are told; those that have never been ready
// interrupt nothing, and a member of etcd that has no vote yet neither.
func turnOf(n v1alpha1.ClusterNode, broughtUp bool) turn {
	t := turn{hold: broughtUp && n.ReadyChangedAt != nil && (n.Etcd == nil || !n.Etcd.Coming)}
	if h := n.Hand; h != nil {
		t.operation = h.Operation + " " + h.Since.UTC().Format(time.RFC3339)
		t.hold = t.hold && !h.Changed
		t.rollBack = h.RolledBack
		if h.BootID != "" && h.Failed == "" && (h.Step == string(planner.StepChange) || h.Step == string(planner.StepRestart)) {
			t.boot, t.reason = h.BootID, h.Reason
		}
	}
	return t
}

// Reboot is the boot that a machine's cluster wants ended now, and why; empty: none. member is false for machines of no cluster.
func (s *Set) Reboot(machine string) (bootID, reason string, member bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clusters[s.memberOf[machine]]
	if c == nil {
		return "", "", false
	}
	if c.paused {
		return "", "", true
	}
	turn := c.turns[machine]
	return turn.boot, turn.reason, true
}

// Config is what stands for the newest configuration of a machine, which it has once its status shows the same. why says what
// hinders where there is none.
func (s *Set) Config(machine string) (digests v1alpha1.ConfigDigests, why string) {
	assignment, _ := s.Node(machine)
	if assignment.Plan == nil {
		return v1alpha1.ConfigDigests{}, assignment.Message
	}
	return v1alpha1.ConfigDigests(assignment.Plan.Digests), ""
}

// kitListen is where a node's agent serves containerd on that node.
const kitListen = "127.0.0.1:7446"

// Kit is what the nodes of a machine's cluster have in common: programs in the order in which they are needed, and the
// images that each of them runs. It is false for a machine whose cluster has no kit.
func (s *Set) Kit(machine string) (programs []wire.Program, images []string, ok bool, err error) {
	assignment, _ := s.Node(machine)
	if assignment.Plan == nil || assignment.Plan.Kit == nil {
		return nil, nil, false, nil
	}
	s.mu.Lock()
	c := s.clusters[s.memberOf[machine]]
	if c != nil && c.plan != nil {
		images = c.plan.Requirements.EveryNode
	}
	s.mu.Unlock()
	version := assignment.Plan.KubernetesVersion
	if assignment.Prefetch != nil && c != nil {
		version = assignment.Prefetch.KubernetesVersion // what runs is here already
		if _, images, err = kube.ImagesOf(at(c.input.Cluster, version), nil); err != nil {
			return nil, nil, false, err
		}
	}
	all, err := s.Programs.Programs(version)
	if err != nil {
		return nil, nil, false, err
	}
	var later []wire.Program
	for _, p := range all {
		switch phase, everywhere := kube.ProgramPhase(p.Name, nil); {
		case !everywhere:
		case phase == kube.PhaseContent:
			programs = append(programs, p)
		default:
			later = append(later, p)
		}
	}
	return append(programs, later...), images, true, nil
}

// versioned gives an assignment a version that stands for its content.
func versioned(a wire.NodeAssignment) wire.NodeAssignment {
	hash := sha256.New()
	_ = json.NewEncoder(hash).Encode(a) // a hash takes everything, and the type has nothing that cannot be encoded
	a.Version = hex.EncodeToString(hash.Sum(nil)[:12])
	return a
}

// nodePlan is a rendered plan as it is handed out, with its secrets in place.
func nodePlan(cluster string, n kube.NodePlan, m *Material) (*wire.NodePlan, error) {
	out := &wire.NodePlan{
		Cluster: cluster, NodeName: n.NodeName, KubernetesVersion: n.Version, Address: n.Address.String(),
		LoadBalancer: &wire.LoadBalancer{
			Listen: n.LoadBalancer.Listen.String(), Backends: texts(n.LoadBalancer.Backends),
			Authority: string(m.trusted[kube.AuthorityKubernetes]),
		},
	}
	for _, f := range n.Files {
		file, err := nodeFile(f, n, m)
		if err != nil {
			return nil, err
		}
		out.Files = append(out.Files, file)
	}
	for _, pod := range n.StaticPods {
		file, err := nodeFile(pod.File, n, m)
		if err != nil {
			return nil, err
		}
		out.Files = append(out.Files, file)
	}
	for _, u := range n.Units {
		out.Units = append(out.Units, wire.NodeUnit{Name: u.Name, Content: u.Content, DropIns: u.DropIns})
	}
	for _, c := range n.Certificates {
		out.Certificates = append(out.Certificates, wire.NodeCertificate{
			Name: c.Name, KeyAlgorithm: string(c.KeyAlgorithm), CertPath: c.CertPath, CertMode: uint32(c.CertMode.Perm()), KeyPath: c.KeyPath,
			CommonName: c.CommonName, Organizations: c.Organizations, DNSNames: c.DNSNames, IPAddresses: texts(c.IPAddresses),
			Authority: string(m.authorities[c.Authority].certPEM()), Restart: c.Restart, Rotated: c.Rotated, Remade: c.Remade,
		})
	}
	for _, k := range n.Kubeconfigs {
		out.Kubeconfigs = append(out.Kubeconfigs, wire.NodeKubeconfig{
			Path: k.Path, Server: k.Server, Cluster: k.Cluster, User: k.User,
			Authority: string(m.trusted[kube.AuthorityKubernetes]), Certificate: k.Certificate, Embed: k.Embed,
		})
	}
	for _, r := range n.Routes {
		out.Routes = append(out.Routes, wire.NodeRoute{To: r.To.String(), Via: r.Via.String()})
	}
	for _, r := range n.ServiceRoutes {
		out.ServiceRoutes = append(out.ServiceRoutes, wire.ServiceRoute{To: r.To.String(), Source: r.Source.String()})
	}
	for _, p := range n.Phases {
		phase := wire.Phase{
			Name: string(p.Name), Reason: p.Reason, Files: p.Files, Certificates: p.Certificates, Kubeconfigs: p.Kubeconfigs,
			Units: p.Units, Routes: p.Routes, LoadBalancer: p.LoadBalancer, Probes: p.Probes,
			StopFirst: p.StopFirst, AwaitAPI: p.AwaitAPI, PatienceSeconds: int(p.Patience.Seconds()),
		}
		for _, name := range p.After {
			phase.After = append(phase.After, string(name))
		}
		out.Phases = append(out.Phases, phase)
	}
	return out, nil
}

func nodeFile(f kube.File, n kube.NodePlan, m *Material) (wire.NodeFile, error) {
	out := wire.NodeFile{
		Path: f.Path, Mode: uint32(f.Mode.Perm()), Dir: f.Mode&fs.ModeDir != 0, Link: f.Link, Content: f.Content, Once: f.Once, Soft: f.Soft,
	}
	if f.Secret == "" {
		return out, nil
	}
	// The renderer gives no other machine such a file; here it would be given away.
	if !slices.Contains(n.Roles, v1alpha1.RoleControlPlane) {
		return out, fmt.Errorf("the plan of machine %s has secret %s at %s, and the machine is not of the control plane", n.Machine, f.Secret, f.Path)
	}
	content, err := m.secret(f.Secret)
	if err != nil {
		return out, fmt.Errorf("%s of machine %s: %w", f.Path, n.Machine, err)
	}
	out.Content, out.Secret = content, true
	return out, nil
}

func texts[T netip.Addr | netip.AddrPort](list []T) []string {
	var out []string
	for _, item := range list {
		out = append(out, fmt.Sprint(item))
	}
	return out
}
