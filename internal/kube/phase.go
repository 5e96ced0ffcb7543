package kube

import (
	"fmt"
	"slices"
	"strings"

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
	PhaseRuntime      PhaseName = "runtime"
	PhaseNetwork      PhaseName = "network"
	PhaseStaticPods   PhaseName = "static-pods"
	PhaseKubelet      PhaseName = "kubelet"
	PhaseVirtualIP    PhaseName = "virtual-ip"
	PhaseEtcd         PhaseName = "etcd"
	PhaseAPIServer    PhaseName = "api-server"
	PhaseControllers  PhaseName = "controllers"
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
}

// phaseTable is the order of a node's bring-up. No phase waits for another machine, except that etcd is
// healthy only with a majority of its members.
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
		{name: PhaseStaticPods, after: []PhaseName{PhaseKubeconfigs, PhaseConfig}, roles: append(controlPlane, etcd...),
			reason: "write the manifests of etcd and the control plane"},
		{name: PhaseKubelet, after: []PhaseName{PhaseRuntime, PhaseNetwork, PhaseBalancer, PhaseKubeconfigs, PhaseStaticPods},
			reason: "start the kubelet, and with it the static pods", units: []string{"kubelet.service"}},
		{name: PhaseEtcd, after: []PhaseName{PhaseKubelet}, roles: etcd, reason: "wait until this machine's etcd member is part of a majority"},
		{name: PhaseAPIServer, after: []PhaseName{PhaseKubelet}, roles: controlPlane, reason: "wait until this machine's API server answers"},
		{name: PhaseControllers, after: []PhaseName{PhaseAPIServer}, roles: controlPlane, reason: "wait until this machine's controller manager and scheduler answer"},
		{name: PhaseVirtualIP, after: []PhaseName{PhaseAPIServer}, roles: controlPlane, reason: "take part in carrying the virtual IP",
			paths: []string{"/etc/keepalived/"}, units: []string{"keepalived.service"}},
	}
}

// phases picks the machine's lines of the table and makes sure that every part of the plan is in exactly one.
func (r *renderer) phases(n *node, plan *NodePlan) ([]Phase, error) {
	var phases []Phase
	written, started := map[string]int{}, map[string]int{}
	for _, spec := range phaseTable() {
		if spec.roles != nil && !n.hasAny(spec.roles...) || spec.name == PhaseVirtualIP && !r.carriesVirtualIP(n) {
			continue
		}
		phase := Phase{Name: spec.name, After: spec.after, Reason: spec.reason,
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
		case PhaseStaticPods:
			for _, pod := range plan.StaticPods {
				phase.Files = append(phase.Files, pod.File.Path)
			}
		case PhaseKubelet:
			phase.Probes = []string{"http://127.0.0.1:10248/healthz"}
		case PhaseEtcd:
			phase.Probes = podProbes(plan, componentEtcd)
		case PhaseAPIServer:
			phase.Probes = podProbes(plan, componentAPIServer)
		case PhaseControllers:
			phase.Probes = podProbes(plan, componentManager, componentScheduler)
		}
		phases = append(phases, phase)
	}
	for _, f := range plan.Files {
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
		phases[i].After = slices.DeleteFunc(slices.Clone(phases[i].After), func(name PhaseName) bool {
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
