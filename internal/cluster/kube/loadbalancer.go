package kube

import (
	"encoding/json"
	"fmt"
	"strconv"

	"coldrack.dev/api/v1alpha1"
	apps "k8s.io/api/apps/v1"
	coordination "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

const (
	// loadBalancerImage has cmd/coldrack-loadbalancer.
	loadBalancerImage = "coldrack.dev/loadbalancer:v1"
	// loadBalancerName is that of all its objects; internal/cluster/loadbalancer/node has it, too.
	loadBalancerName = "coldrack-loadbalancer"
	// loadBalancerPasswords is the Secret that people put the passwords of routers into. Coldrack does not make or read it.
	loadBalancerPasswords = loadBalancerName + "-bgp"
	proxyHealthURL        = "http://127.0.0.1:10256/livez"
)

// loadBalancerObjects give Services of type LoadBalancer addresses. The Secret and the Lease are empty: the nodes fill them in, and
// need no right to make any.
func (r *renderer) loadBalancerObjects() ([]runtime.Object, error) {
	spec := r.cluster.Spec.Network.LoadBalancer
	if spec == nil {
		return nil, nil
	}
	config, err := loadBalancerConfig(spec)
	if err != nil {
		return nil, err
	}
	nodes := spec.NodeSelector
	if len(nodes) == 0 {
		nodes = map[string]string{labelWorker: ""}
	}
	args := []string{"--nodes=" + labels.Set(nodes).String()}
	if r.cluster.Spec.Network.Proxy != v1alpha1.ProxyNone {
		args = append(args, "--proxy-health="+proxyHealthURL)
	}
	selector := map[string]string{"k8s-app": loadBalancerName}
	daemons := &apps.DaemonSet{
		TypeMeta: appsType("DaemonSet"), ObjectMeta: objectMeta(kubeSystem, loadBalancerName, selector),
		Spec: apps.DaemonSetSpec{
			Selector:       &metav1.LabelSelector{MatchLabels: selector},
			UpdateStrategy: apps.DaemonSetUpdateStrategy{Type: apps.RollingUpdateDaemonSetStrategyType},
			// Until then a node that was updated is not ready to announce, and the next one waits.
			MinReadySeconds: 15,
			Template: corev1.PodTemplateSpec{
				// The pools are not stamped: they are followed without a restart.
				ObjectMeta: metav1.ObjectMeta{Labels: selector, Annotations: r.stamp(nil)},
				Spec: corev1.PodSpec{
					PriorityClassName: "system-node-critical", HostNetwork: true, ServiceAccountName: loadBalancerName,
					TerminationGracePeriodSeconds: to(int64(5)),
					Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
					NodeSelector:                  nodes,
					Containers: []corev1.Container{{
						Name: "loadbalancer", Image: loadBalancerImage, ImagePullPolicy: corev1.PullIfNotPresent, Args: args,
						Resources: corev1.ResourceRequirements{Requests: requests("50m", "64Mi")},
						SecurityContext: &corev1.SecurityContext{
							AllowPrivilegeEscalation: to(false), ReadOnlyRootFilesystem: to(true), RunAsUser: to(int64(0)),
							Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_RAW"}},
						},
						Env: []corev1.EnvVar{
							fieldEnv("NODE_NAME", "spec.nodeName"),
							// By the node's load balancer of API servers: it works before the service proxy does.
							{Name: serviceHost, Value: r.loopbacks()[0].String()},
							{Name: servicePort, Value: strconv.Itoa(int(r.cluster.Spec.Endpoint.LocalPort))},
						},
					}},
				},
			},
		},
	}
	daemons.Annotations = map[string]string{AnnotationMayBeEmpty: "true"} // a cluster is ready without a node that the selector fits
	rule := func(group string, resources []string, name string, verbs ...string) rbac.PolicyRule {
		p := rbac.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: verbs}
		if name != "" {
			p.ResourceNames = []string{name}
		}
		return p
	}
	return []runtime.Object{
		accountOf(loadBalancerName, selector),
		&rbac.ClusterRole{TypeMeta: rbacType("ClusterRole"), ObjectMeta: objectMeta("", loadBalancerName, selector), Rules: []rbac.PolicyRule{
			rule("", []string{"services", "nodes"}, "", "get", "list", "watch"),
			rule("", []string{"services/status"}, "", "patch"),
			rule("discovery.k8s.io", []string{"endpointslices"}, "", "list", "watch"),
			rule("", []string{"events"}, "", "create", "patch"),
		}},
		bindClusterRole(loadBalancerName, loadBalancerName, account(kubeSystem, loadBalancerName)),
		&rbac.Role{TypeMeta: rbacType("Role"), ObjectMeta: objectMeta(kubeSystem, loadBalancerName, selector), Rules: []rbac.PolicyRule{
			rule("", []string{"configmaps"}, loadBalancerName, "get", "list", "watch"),
			rule("", []string{"secrets"}, loadBalancerName, "get", "update"),
			rule("", []string{"secrets"}, loadBalancerPasswords, "get", "list", "watch"),
			rule("coordination.k8s.io", []string{"leases"}, loadBalancerName, "get", "update"),
		}},
		bindRole(kubeSystem, loadBalancerName, account(kubeSystem, loadBalancerName)),
		configMap(kubeSystem, loadBalancerName, config, selector),
		&corev1.Secret{TypeMeta: coreType("Secret"), ObjectMeta: objectMeta(kubeSystem, loadBalancerName, selector), Type: corev1.SecretTypeOpaque},
		&coordination.Lease{TypeMeta: metav1.TypeMeta{APIVersion: coordination.SchemeGroupVersion.String(), Kind: "Lease"}, ObjectMeta: objectMeta(kubeSystem, loadBalancerName, selector)},
		daemons,
	}, nil
}

// loadBalancerConfig is what nodes read: the pools that are answered for on the segment, and apart from them those that routers are
// told of. A program that knows nothing of routers yet leaves the latter alone, and does not announce them in the wrong way.
func loadBalancerConfig(spec *v1alpha1.ClusterLoadBalancer) (map[string]string, error) {
	segment, routed := []v1alpha1.LoadBalancerPool{}, []v1alpha1.LoadBalancerPool{}
	for _, p := range spec.Pools {
		if p.Announce == v1alpha1.AnnounceBGP {
			routed = append(routed, p)
		} else {
			segment = append(segment, p)
		}
	}
	config := map[string]string{}
	put := func(key string, value any) error {
		b, err := json.MarshalIndent(value, "", "  ")
		if err != nil {
			return fmt.Errorf("encode spec.network.loadBalancer: %w", err)
		}
		config[key] = string(b) + "\n"
		return nil
	}
	if err := put("pools.json", segment); err != nil {
		return nil, err
	}
	if spec.BGP == nil {
		return config, nil
	}
	return config, put("bgp.json", struct {
		*v1alpha1.LoadBalancerBGP
		Pools []v1alpha1.LoadBalancerPool `json:"pools"`
	}{spec.BGP, routed})
}
