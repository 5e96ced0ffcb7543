package kube

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// disruptions are what people could notice of a change of a node that runs already.
func (d *differ) disruptions(change *NodeChange, after *NodePlan) []Disruption {
	var list []Disruption
	add := func(outage bool, what, format string, args ...any) {
		list = append(list, Disruption{What: what, Effect: fmt.Sprintf(format, args...), Outage: outage})
	}
	if change.FromVersion != "" {
		add(false, fmt.Sprintf("the kubelet goes from %s to %s", change.FromVersion, change.Version), "the node's pods keep running")
	} else if writes(change, kubeletConfig, kubeletFlagsFile) || changesUnit(change, "kubelet.service") {
		add(false, "the kubelet restarts", "pods keep running; the node is not Ready for some seconds")
	}
	if writes(change, containerdConfig) || changesUnit(change, "containerd.service") {
		add(false, "containerd restarts", "containers keep running; none starts or stops for some seconds")
	}
	for _, pod := range change.Restarts {
		switch component(pod) {
		case componentEtcd:
			members := d.count(d.plan, componentEtcd)
			switch others := members - 1; {
			case others == 0:
				add(true, "etcd restarts", "it is the only member: the API answers no request that needs the store until it is back")
			case others < members/2+1:
				add(true, "etcd restarts", "the %d other of %d members are no majority: nothing can be written until it is back", others, members)
			default:
				add(false, "etcd restarts", "%d other members keep the majority%s", others, d.unlessTogether(change.Machine, componentEtcd))
			}
		case componentAPIServer:
			others := d.count(d.plan, componentAPIServer) - 1
			if others == 0 {
				add(true, "the API server restarts", "it is the only one: the API does not answer until it is back; pods keep running")
			} else {
				add(false, "the API server restarts", "%s meanwhile%s", answers(others), d.unlessTogether(change.Machine, componentAPIServer))
			}
		case componentManager, componentScheduler:
			add(false, pod+" restarts", "another instance, or this one when it is back, goes on")
		default:
			add(false, pod+" restarts", "a static pod of this node")
		}
	}
	for _, path := range []string{cniFile, cniDir} {
		if writes(change, path) {
			add(false, "pods get their network in another way", "pods that run keep theirs; new ones get the new one")
		}
	}
	if slices.ContainsFunc(change.Files, func(f FileChange) bool { return strings.HasPrefix(f.Path, "/etc/keepalived/") }) {
		add(false, "keepalived restarts", "the virtual IP may move to another machine: connections through it are opened again")
	}
	return list
}

func answers(others int) string {
	if others == 1 {
		return "1 other answers"
	}
	return fmt.Sprintf("%d others answer", others)
}

// restarts are the static pods of a node that are started anew: those whose manifests change, and those that read
// a certificate that changes only once.
func (d *differ) restarts(change *NodeChange, after *NodePlan) []string {
	var names []string
	for _, pod := range after.StaticPods {
		manifest := slices.ContainsFunc(change.Files, func(f FileChange) bool { return f.Path == pod.File.Path && f.Change == Changed })
		certificate := slices.ContainsFunc(after.Certificates, func(c CertificateRequest) bool {
			return slices.Contains(c.Restart, pod.Name) &&
				slices.ContainsFunc(change.Certificates, func(cc CertificateChange) bool { return cc.Name == c.Name && cc.Change == Changed })
		})
		if manifest || certificate {
			names = append(names, pod.Name)
		}
	}
	return names
}

// unlessTogether warns of other machines that restart the same component in the same change.
func (d *differ) unlessTogether(machine string, name component) string {
	together := 0
	for other, plan := range d.plan.Nodes {
		before, ok := d.old.Nodes[other]
		if !ok || other == machine {
			continue
		}
		was, is := manifestOf(&before, name), manifestOf(&plan, name)
		if was != "" && is != "" && was != is {
			together++
		}
	}
	if together == 0 {
		return ""
	}
	return fmt.Sprintf(", as long as they do not restart at the same moment (%d of them change, too)", together)
}

func manifestOf(n *NodePlan, name component) string {
	for _, pod := range n.StaticPods {
		if component(pod.Name) == name {
			return string(pod.File.Content)
		}
	}
	return ""
}

// count is how many machines of a plan run a component.
func (d *differ) count(plan *Plan, name component) int {
	total := 0
	for _, n := range plan.Nodes {
		if manifestOf(&n, name) != "" {
			total++
		}
	}
	return total
}

func writes(change *NodeChange, paths ...string) bool {
	return slices.ContainsFunc(change.Files, func(f FileChange) bool { return slices.Contains(paths, f.Path) })
}

func changesUnit(change *NodeChange, name string) bool {
	return slices.ContainsFunc(change.Units, func(u FileChange) bool { return u.Path == name })
}

func kubeconfigText(k Kubeconfig) string {
	return fmt.Sprintf("%s: %s at %s", k.Path, k.User, k.Server)
}

func routeText(r Route) string { return fmt.Sprintf("%s via %s", r.To, r.Via) }

func serviceRouteText(r ServiceRoute) string { return fmt.Sprintf("%s from %s", r.To, r.Source) }

func taintText(t corev1.Taint) string {
	text := t.Key
	if t.Value != "" {
		text += "=" + t.Value
	}
	return text + ":" + string(t.Effect)
}
