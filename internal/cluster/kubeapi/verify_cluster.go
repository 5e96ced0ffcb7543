package kubeapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	labelControlPlane = "node-role.kubernetes.io/control-plane"
	// leaseLate is when a component has missed several renewals of its lease.
	leaseLate = time.Minute
)

// leader is which node's instance of a component leads, and when it last said so by its own clock.
func (v *verification) leader(ctx context.Context, component string) (holder string, renewed time.Time, err error) {
	lease, err := v.connection.client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(ctx, component, metav1.GetOptions{})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("no instance has ever led: %w", err)
	}
	if lease.Spec.RenewTime == nil || lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
		return "", time.Time{}, errors.New("no instance leads")
	}
	holder, _, _ = strings.Cut(*lease.Spec.HolderIdentity, "_")
	return holder, lease.Spec.RenewTime.Time, nil
}

// controlPlane looks at what runs beside the API servers. Scheduler and controller manager listen on loopback only;
// that they work shows in their leases, which they renew every few seconds.
func (v *verification) controlPlane(ctx context.Context) {
	for _, component := range []string{"kube-controller-manager", "kube-scheduler"} {
		v.within(ctx, v.o.settle+checkTimeout, "component", component, func(ctx context.Context) (string, error) {
			holder, renewed, err := v.leader(ctx, component)
			if err != nil {
				return "", err
			}
			off := time.Since(renewed)
			if off.Abs() <= leaseLate {
				return "led by " + holder, nil
			}
			// It has ended, or its clock is not ours. One that leads renews its lease every few seconds by any clock.
			for began := time.Now(); time.Since(began) < v.o.settle && ctx.Err() == nil; time.Sleep(v.o.settle / 15) {
				if again, at, err := v.leader(ctx, component); err == nil && !at.Equal(renewed) {
					return fmt.Sprintf("led by %s, whose clock is off by %s", again, time.Since(at).Round(time.Second)), nil
				}
			}
			return "", fmt.Errorf("%s led until %s ago; see its log in /var/log/pods", holder, off.Round(time.Second))
		})
	}
	var members []Node
	for _, n := range v.o.Nodes {
		if _, ok := n.Labels[labelControlPlane]; ok {
			members = append(members, n)
		}
	}
	v.do(ctx, "component", "static pods", func(ctx context.Context) (string, error) {
		pods, err := v.connection.client.CoreV1().Pods(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{LabelSelector: "tier=control-plane"})
		if err != nil {
			return "", err
		}
		ready := map[string]bool{}
		var problems []string
		for i := range pods.Items {
			pod := &pods.Items[i]
			if problem := podProblem(pod); problem != "" {
				problems = append(problems, pod.Name+": "+problem)
			}
			ready[pod.Name] = true
		}
		for _, n := range members {
			for _, component := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
				if !ready[component+"-"+n.Name] {
					problems = append(problems, component+"-"+n.Name+": there is no such pod")
				}
			}
		}
		if len(problems) > 0 {
			return "", errors.New(strings.Join(problems, "; "))
		}
		return fmt.Sprintf("%d ready", len(ready)), nil
	})
}

// podProblem says why a pod is not ready, or nothing.
func podProblem(pod *corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return ""
		}
	}
	for _, c := range pod.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Reason != "" {
			return strings.TrimSpace(w.Reason + " " + w.Message)
		}
		if e := c.State.Terminated; e != nil {
			return fmt.Sprintf("ended with %d %s %s", e.ExitCode, e.Reason, e.Message)
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Status != corev1.ConditionTrue && c.Message != "" {
			return c.Message
		}
	}
	return cmp.Or(string(pod.Status.Phase), "unknown") + ", not ready"
}

// nodes looks at each node of the plan, and at those that are there besides.
func (v *verification) nodes(ctx context.Context) {
	found := map[string]*corev1.Node{}
	if !v.do(ctx, "nodes", v.o.Target.Cluster, func(ctx context.Context) (string, error) {
		list, err := v.connection.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return "", err
		}
		for i := range list.Items {
			found[list.Items[i].Name] = &list.Items[i]
		}
		return fmt.Sprintf("%d registered, %d planned", len(found), len(v.o.Nodes)), nil
	}) {
		return
	}
	planned := map[string]bool{}
	for _, n := range v.o.Nodes {
		planned[n.Name] = true
		v.do(ctx, "node", n.Name, func(context.Context) (string, error) { return nodeHealth(found[n.Name], &n) })
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if !planned[name] {
			v.do(ctx, "node", name, func(context.Context) (string, error) {
				detail, err := nodeHealth(found[name], nil)
				return detail + ", from outside the plan", err
			})
		}
	}
	each(ctx, v.o.Nodes, func(ctx context.Context, n Node) {
		if found[n.Name] != nil {
			v.do(ctx, "kubelet certificate", n.Name, func(ctx context.Context) (string, error) { return v.kubeletCertificate(ctx, n) })
		}
	})
	for _, node := range slices.Sorted(maps.Keys(v.o.Certificates)) {
		v.do(ctx, "certificates", node, func(context.Context) (string, error) { return expiry(v.o.Certificates[node], v.o.CertificateLife) })
	}
	for _, name := range slices.Sorted(maps.Keys(v.o.Authorities)) {
		v.do(ctx, "authority", name, func(context.Context) (string, error) {
			return authorityEnd(v.o.Target.Cluster, name, time.Until(v.o.Authorities[name]))
		})
	}
}

// authorityNotice is how long before its end an authority has to be replaced.
const authorityNotice = 90 * 24 * time.Hour

func authorityEnd(cluster, name string, left time.Duration) (string, error) {
	if left < authorityNotice {
		return "", fmt.Errorf("is good for %s, and what it signs for no longer; replace it: coldrack cluster rotate %s %s", remaining(left), cluster, name)
	}
	return "good for " + remaining(left), nil
}

// expiry looks at the certificates that a node reports. All are renewed before a tenth of their life is left.
func expiry(certificates map[string]time.Time, life time.Duration) (string, error) {
	if len(certificates) == 0 {
		return "none reported", nil
	}
	var first string
	for _, name := range slices.Sorted(maps.Keys(certificates)) {
		if first == "" || certificates[name].Before(certificates[first]) {
			first = name
		}
	}
	left := time.Until(certificates[first])
	if left < 0 {
		return "", fmt.Errorf("%s is good for %s; see the agent's log on the node", first, remaining(left))
	}
	if left < life/12 {
		return "", fmt.Errorf("%s is good for %s and should have been renewed; coldrack doctor says which it is, coldrack logs of its machine why", first, remaining(left))
	}
	return fmt.Sprintf("%s is good for %s", first, remaining(left)), nil
}

func nodeHealth(node *corev1.Node, wanted *Node) (string, error) {
	if node == nil {
		return "", errors.New("is not registered; see coldrack logs of its machine for how far it has come")
	}
	s := stateOf(node)
	var problems []string
	if !s.Ready {
		problems = append(problems, fmt.Sprintf("not ready since %s: %s: %s", s.Since.UTC().Format(time.RFC3339), s.Reason, s.Message))
	}
	if wanted != nil {
		if wanted.Version != "" && s.KubeletVersion != wanted.Version {
			problems = append(problems, fmt.Sprintf("runs %s, planned is %s", cmp.Or(s.KubeletVersion, "an unknown version"), wanted.Version))
		}
		if change := changeOf(node, wanted, wanted.PodCIDRs); change.problem != "" {
			problems = append(problems, change.problem)
		} else if change.merge != nil || change.labels {
			problems = append(problems, "labels, taints or pod networks are not yet as planned")
		}
	}
	if len(problems) > 0 {
		return "", errors.New(strings.Join(problems, "; "))
	}
	detail := "Ready, " + s.KubeletVersion
	if s.Unschedulable {
		detail += ", cordoned"
	}
	return detail, nil
}

// addons looks at what we applied and controllers must have brought to life.
func (v *verification) addons(ctx context.Context) {
	var addons []AddonState
	if !v.do(ctx, "addons", v.o.Target.Cluster, func(ctx context.Context) (_ string, err error) {
		addons, err = lookAtAddons(ctx, v.connection.client)
		return fmt.Sprintf("%d of ours", len(addons)), err
	}) {
		return
	}
	for _, a := range addons {
		v.do(ctx, "addon", a.Namespace+"/"+a.Name, func(context.Context) (string, error) {
			if !a.Ready {
				return "", fmt.Errorf("%s; kubectl -n %s describe %s %s", a.Message, a.Namespace, a.Kind, a.Name)
			}
			return a.Message, nil
		})
	}
}
