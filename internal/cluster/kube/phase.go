package kube

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
)

// PhaseName names a phase of a node's bring-up.
type PhaseName string

const (
	PhaseContent      PhaseName = "content"
	PhaseHost         PhaseName = "host"
	PhaseConfig       PhaseName = "config"
	PhaseCertificates PhaseName = "certificates"
	PhaseKubeconfigs  PhaseName = "kubeconfigs"
	PhaseBalancer     PhaseName = "load-balancer"
	PhaseCluster      PhaseName = "cluster"
	PhaseRuntime      PhaseName = "runtime"
	PhaseNetwork      PhaseName = "network"
	PhaseKubelet      PhaseName = "kubelet"
	PhaseVirtualIP    PhaseName = "virtual-ip"
	PhaseEtcd         PhaseName = "etcd"
	PhaseAPIServer    PhaseName = "api-server"
	PhaseControllers  PhaseName = "controllers"
	PhaseTools        PhaseName = "tools"
)

// Phase is one named part of a node's bring-up. A node may begin a phase when those in After are done. Doing
// a phase again changes nothing when everything is as it should be; nothing is remembered between two runs.
type Phase struct {
	Name  PhaseName
	After []PhaseName
	// Reason is one sentence for the person who watches.
	Reason string
	// What is done, in this order: files are written, certificates requested, kubeconfigs written, units
	// started, routes set, probes waited for.
	Files        []string
	Certificates []string
	Kubeconfigs  []string
	Units        []string
	Routes       bool
	LoadBalancer bool
	Probes       []string
	// StopFirst are units that stop before a pod of the phase is replaced, because they lead people to it; a later phase starts them again.
	StopFirst []string
	// AwaitAPI: the phase waits until an API server answers through the load balancer, for as long as Patience says, 0
	// being for ever.
	AwaitAPI bool
	Patience time.Duration
}

// turn is how long a control plane leaves the cluster's beginning to the first one.
const turn = 10 * time.Minute

// ProgramPhase is the phase that brings a program of the release to a machine with these roles, and whether any does.
func ProgramPhase(name string, roles []v1alpha1.Role) (phase PhaseName, wanted bool) {
	switch name {
	case "kubeadm", "kubectl": // for what they work with, the files of a control plane
		return PhaseTools, slices.Contains(roles, v1alpha1.RoleControlPlane)
	case "ctr":
		return PhaseTools, true
	}
	return PhaseContent, true
}

// phaseSpec is one line of the phase table.
type phaseSpec struct {
	name   PhaseName
	after  []PhaseName
	reason string
	roles  []v1alpha1.Role // nil: every machine
	// paths are prefixes of the files that the phase writes.
	paths []string
	units []string
	// pods are static pods whose manifests it writes, and for which it waits.
	pods []component
}

// phaseTable is the order of a node's bring-up. Two phases wait for other machines: etcd is healthy only with a majority
// of its members, and where there is nothing to do before there is an API, PhaseCluster waits for one.
func phaseTable() []phaseSpec {
	controlPlane, etcd := []v1alpha1.Role{v1alpha1.RoleControlPlane}, []v1alpha1.Role{v1alpha1.RoleEtcd}
	return []phaseSpec{
		{name: PhaseContent, reason: "fetch and verify the programs of this release"},
		{name: PhaseHost, reason: "load kernel modules and set kernel parameters",
			paths: []string{"/etc/modules-load.d/", "/etc/sysctl.d/", "/etc/systemd/"}},
		{name: PhaseConfig, reason: "write what programs are configured with",
			paths: []string{pkiDir + "/", apiserverDir + "/", "/etc/containerd/", kubeletDir, etcdDataDir, manifestsDir, auditLogDir}},
		{name: PhaseCertificates, reason: "make keys on this machine and have them signed"},
		{name: PhaseKubeconfigs, after: []PhaseName{PhaseCertificates, PhaseConfig}, reason: "write kubeconfigs around the certificates"},
		{name: PhaseBalancer, reason: "open the local way to all API servers"},
		{name: PhaseRuntime, after: []PhaseName{PhaseContent, PhaseHost, PhaseConfig}, reason: "start containerd", units: []string{"containerd.service"}},
		{name: PhaseNetwork, after: []PhaseName{PhaseContent, PhaseHost}, reason: "connect pods to this machine and to the others",
			paths: []string{cniDir + "/", "/etc/coldrack/kubernetes/"}, units: []string{masqueradeUnitName}},
		{name: PhaseKubelet, after: []PhaseName{PhaseRuntime, PhaseNetwork, PhaseBalancer, PhaseKubeconfigs},
			reason: "start the kubelet", units: []string{"kubelet.service"}},
		{name: PhaseCluster, after: []PhaseName{PhaseRuntime, PhaseNetwork, PhaseBalancer, PhaseKubeconfigs}},
		// Each of these begins when what it asks for everything is there: an API server without etcd, and controllers
		// without an API server, give up after seconds and are started again ever later.
		{name: PhaseEtcd, after: []PhaseName{PhaseKubelet}, roles: etcd, pods: []component{componentEtcd},
			reason: "start etcd and wait until this machine's member is part of a majority"},
		{name: PhaseAPIServer, after: []PhaseName{PhaseKubelet, PhaseEtcd, PhaseCluster}, roles: controlPlane, pods: []component{componentAPIServer},
			reason: "start the API server and wait until it answers"},
		{name: PhaseControllers, after: []PhaseName{PhaseAPIServer}, roles: controlPlane, pods: []component{componentManager, componentScheduler},
			reason: "start the controller manager and the scheduler and wait until they answer"},
		{name: PhaseVirtualIP, after: []PhaseName{PhaseAPIServer}, roles: controlPlane, reason: "take part in carrying the virtual IP",
			paths: []string{"/etc/keepalived/"}, units: []string{virtualIPUnit}},
		{name: PhaseTools, after: []PhaseName{PhaseKubelet, PhaseEtcd, PhaseCluster, PhaseControllers}, reason: "fetch and verify what people use on this machine"},
	}
}

// phases picks the machine's lines of the table and makes sure that every part of the plan is in exactly one.
func (r *renderer) phases(n *node, plan *NodePlan) ([]Phase, error) {
	var phases []Phase
	written, started := map[string]int{}, map[string]int{}
	for _, spec := range phaseTable() {
		if spec.roles != nil && !n.runsAny(spec.roles...) || spec.name == PhaseVirtualIP && !r.carriesVirtualIP(n) {
			continue
		}
		phase := Phase{Name: spec.name, After: slices.Clone(spec.after), Reason: spec.reason,
			Routes: spec.name == PhaseNetwork, LoadBalancer: spec.name == PhaseBalancer}
		for _, f := range plan.Files {
			if slices.ContainsFunc(spec.paths, func(prefix string) bool { return strings.HasPrefix(f.Path, prefix) }) {
				phase.Files = append(phase.Files, f.Path)
				written[f.Path]++
			}
		}
		for _, unit := range plan.Units {
			if slices.Contains(spec.units, unit.Name) {
				phase.Units = append(phase.Units, unit.Name)
				started[unit.Name]++
			}
		}
		switch spec.name {
		case PhaseCertificates:
			for _, c := range plan.Certificates {
				phase.Certificates = append(phase.Certificates, c.Name)
			}
		case PhaseKubeconfigs:
			for _, k := range plan.Kubeconfigs {
				phase.Kubeconfigs = append(phase.Kubeconfigs, k.Path)
			}
		case PhaseKubelet:
			phase.Probes = []string{"http://127.0.0.1:10248/healthz"}
			if !n.runs(v1alpha1.RoleEtcd) {
				phase.After = append(phase.After, PhaseCluster)
			}
		case PhaseAPIServer:
			if r.carriesVirtualIP(n) {
				phase.StopFirst = []string{virtualIPUnit}
			}
		case PhaseCluster:
			phase.AwaitAPI = true
			switch {
			case !n.runs(v1alpha1.RoleControlPlane):
				phase.Reason = "wait for the cluster's first API server"
			case r.with(v1alpha1.RoleControlPlane)[0] != n:
				// See docs/adr/0009-control-planes-take-turns.md.
				phase.Reason, phase.Patience = "leave what a cluster begins with to the first control plane", turn
				phase.After = append(phase.After, PhaseEtcd)
			default:
				continue
			}
		}
		for _, pod := range plan.StaticPods {
			if slices.Contains(spec.pods, component(pod.Name)) {
				phase.Files = append(phase.Files, pod.File.Path)
				written[pod.File.Path]++
			}
		}
		phase.Probes = append(phase.Probes, podProbes(plan, spec.pods...)...)
		phases = append(phases, phase)
	}
	files := slices.Clone(plan.Files)
	for _, pod := range plan.StaticPods {
		files = append(files, pod.File)
	}
	for _, f := range files {
		if written[f.Path] != 1 {
			return nil, fmt.Errorf("%d phases write %s; exactly one must", written[f.Path], f.Path)
		}
	}
	for _, unit := range plan.Units {
		if started[unit.Name] != 1 {
			return nil, fmt.Errorf("%d phases start %s; exactly one must", started[unit.Name], unit.Name)
		}
	}
	// A phase may name one before it that this machine has not got.
	for i := range phases {
		phases[i].After = slices.DeleteFunc(phases[i].After, func(name PhaseName) bool {
			return !slices.ContainsFunc(phases, func(p Phase) bool { return p.Name == name })
		})
	}
	return phases, nil
}

// podProbes are the URLs at which static pods say that they are ready.
func podProbes(plan *NodePlan, names ...component) []string {
	var urls []string
	for _, pod := range plan.StaticPods {
		if !slices.Contains(names, component(pod.Name)) {
			continue
		}
		container := pod.Pod.Spec.Containers[0]
		probe := container.ReadinessProbe
		if probe == nil {
			probe = container.LivenessProbe
		}
		host := probe.HTTPGet.Host
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		urls = append(urls, fmt.Sprintf("%s://%s:%d%s", strings.ToLower(string(probe.HTTPGet.Scheme)), host,
			container.Ports[0].ContainerPort, probe.HTTPGet.Path))
	}
	return urls
}
