package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"coldrack.dev/api/v1alpha1"
	apps "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"
	componentbase "k8s.io/component-base/config/v1alpha1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
	"sigs.k8s.io/yaml"
)

const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

func appsType(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: apps.SchemeGroupVersion.String(), Kind: kind}
}

func accountOf(name string, labels map[string]string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{TypeMeta: coreType(rbac.ServiceAccountKind), ObjectMeta: objectMeta(kubeSystem, name, labels)}
}

// annotationAuthority is in a pod template from the second authority of a cluster on.
const annotationAuthority = "coldrack.dev/authority"

// stamp is put into a pod template, so that pods are replaced when their configuration changes, or the authority that they verify the
// API with.
func (r *renderer) stamp(data map[string]string) map[string]string {
	encoded, _ := json.Marshal(data) // a map of strings can be encoded, and is with its keys in order
	sum := sha256.Sum256(encoded)
	annotations := map[string]string{annotationConfigDigest: hex.EncodeToString(sum[:8])}
	if r.in.AuthorityNumber > 1 {
		annotations[annotationAuthority] = strconv.Itoa(r.in.AuthorityNumber)
	}
	return annotations
}

// What a client inside a pod finds the API by.
const (
	serviceHost = "KUBERNETES_SERVICE_HOST"
	servicePort = "KUBERNETES_SERVICE_PORT"
)

// AnnotationMayBeEmpty is on a DaemonSet for nodes that need not exist.
const AnnotationMayBeEmpty = "coldrack.dev/may-be-empty"

func hostPath(name, path string, kind corev1.HostPathType) corev1.Volume {
	source := &corev1.HostPathVolumeSource{Path: path}
	if kind != "" {
		source.Type = &kind
	}
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{HostPath: source}}
}

func configVolume(name, configMap string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: configMap}}}}
}

func fieldEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
}

func requests(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}

// proxyConfiguration is kube-proxy's. It finds the API by the node's own load balancer: a service address
// would need the very proxy that is starting.
func (r *renderer) proxyConfiguration() kubeproxy.KubeProxyConfiguration {
	bind := "0.0.0.0"
	if r.podCIDRs[0].Addr().Is6() {
		bind = "::"
	}
	return kubeproxy.KubeProxyConfiguration{
		TypeMeta:         metav1.TypeMeta{APIVersion: kubeproxy.SchemeGroupVersion.String(), Kind: "KubeProxyConfiguration"},
		BindAddress:      bind,
		ClientConnection: componentbase.ClientConnectionConfiguration{Kubeconfig: "/var/lib/kube-proxy/kubeconfig.conf"},
		ClusterCIDR:      join(r.podCIDRs),
		Mode:             kubeproxy.ProxyMode(r.cluster.Spec.Network.Proxy),
	}
}

func (r *renderer) proxyObjects() ([]runtime.Object, error) {
	if r.cluster.Spec.Network.Proxy == v1alpha1.ProxyNone {
		return nil, nil
	}
	config, err := encodeConfig(r.proxyConfiguration())
	if err != nil {
		return nil, err
	}
	kubeconfig, err := json.Marshal(clientcmd.Config{
		Kind: "Config", APIVersion: "v1", CurrentContext: "default",
		Clusters:  []clientcmd.NamedCluster{{Name: "default", Cluster: clientcmd.Cluster{Server: r.localURL(), CertificateAuthority: serviceAccountDir + "/ca.crt"}}},
		Contexts:  []clientcmd.NamedContext{{Name: "default", Context: clientcmd.Context{Cluster: "default", AuthInfo: "default", Namespace: "default"}}},
		AuthInfos: []clientcmd.NamedAuthInfo{{Name: "default", AuthInfo: clientcmd.AuthInfo{TokenFile: serviceAccountDir + "/token"}}},
	})
	if err != nil {
		return nil, fmt.Errorf("encode kubeconfig of kube-proxy: %w", err)
	}
	if kubeconfig, err = yaml.JSONToYAML(kubeconfig); err != nil {
		return nil, fmt.Errorf("encode kubeconfig of kube-proxy: %w", err)
	}
	data := map[string]string{"config.conf": string(config), "kubeconfig.conf": string(kubeconfig)}
	selector := map[string]string{"k8s-app": "kube-proxy"}
	daemons := &apps.DaemonSet{
		TypeMeta: appsType("DaemonSet"), ObjectMeta: objectMeta(kubeSystem, "kube-proxy", selector),
		Spec: apps.DaemonSetSpec{
			Selector:       &metav1.LabelSelector{MatchLabels: selector},
			UpdateStrategy: apps.DaemonSetUpdateStrategy{Type: apps.RollingUpdateDaemonSetStrategyType},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: selector, Annotations: r.stamp(data)},
				Spec: corev1.PodSpec{
					PriorityClassName: "system-node-critical", HostNetwork: true, ServiceAccountName: "kube-proxy",
					Tolerations:  []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
					NodeSelector: map[string]string{"kubernetes.io/os": "linux"},
					Containers: []corev1.Container{{
						Name: "kube-proxy", Image: kubernetesImage("kube-proxy", r.cluster.Spec.Version), ImagePullPolicy: corev1.PullIfNotPresent,
						Command:         []string{"/usr/local/bin/kube-proxy", "--config=/var/lib/kube-proxy/config.conf", "--hostname-override=$(NODE_NAME)"},
						Env:             []corev1.EnvVar{fieldEnv("NODE_NAME", "spec.nodeName")},
						SecurityContext: &corev1.SecurityContext{Privileged: to(true)},
						VolumeMounts: []corev1.VolumeMount{
							{Name: "kube-proxy", MountPath: "/var/lib/kube-proxy"},
							{Name: "xtables-lock", MountPath: "/run/xtables.lock"},
							{Name: "lib-modules", MountPath: "/lib/modules", ReadOnly: true},
						},
					}},
					Volumes: []corev1.Volume{
						configVolume("kube-proxy", "kube-proxy"),
						hostPath("xtables-lock", "/run/xtables.lock", corev1.HostPathFileOrCreate),
						hostPath("lib-modules", "/lib/modules", ""),
					},
				},
			},
		},
	}
	proxies := r.onEveryNode(daemons, func(pod *corev1.PodSpec) {
		container := &pod.Containers[0]
		container.Command = append(container.Command, "--master=https://"+r.endpoint())
	})
	return append([]runtime.Object{
		accountOf("kube-proxy", nil),
		bindClusterRole("kubeadm:node-proxier", "system:node-proxier", account(kubeSystem, "kube-proxy")),
		readConfigMap(kubeSystem, "kube-proxy", "kube-proxy"),
		bindRole(kubeSystem, "kube-proxy", group(tokenGroup)),
		configMap(kubeSystem, "kube-proxy", data, map[string]string{"app": "kube-proxy"}),
	}, proxies...), nil
}

// onEveryNode returns what runs the daemons on every node: on our own as they are. Where machines may join that Coldrack does
// not know, which have no load balancer on their loopback, these have daemons of their own, made outside by the function.
func (r *renderer) onEveryNode(own *apps.DaemonSet, outside func(*corev1.PodSpec)) []runtime.Object {
	if !r.cluster.Spec.Security.TokenDiscovery {
		return []runtime.Object{own}
	}
	foreign := own.DeepCopy()
	foreign.Name += "-foreign"
	for _, labels := range []map[string]string{foreign.Labels, foreign.Spec.Selector.MatchLabels, foreign.Spec.Template.Labels} {
		labels["k8s-app"] = foreign.Name
	}
	foreign.Annotations = map[string]string{AnnotationMayBeEmpty: "true"}
	outside(&foreign.Spec.Template.Spec)
	only := func(d *apps.DaemonSet, operator corev1.NodeSelectorOperator) {
		d.Spec.Template.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: labelMachine, Operator: operator}},
			}}},
		}}
	}
	only(own, corev1.NodeSelectorOpExists)
	only(foreign, corev1.NodeSelectorOpDoesNotExist)
	return []runtime.Object{own, foreign}
}

// flannelObjects carry pod traffic in VXLAN. flanneld only makes the tunnel and its routes; the bridge on each
// node is configured with the node, so that flannel's own CNI plugin is not needed.
func (r *renderer) flannelObjects() ([]runtime.Object, error) {
	if r.cluster.Spec.Network.Plugin != v1alpha1.NetworkFlannel {
		return nil, nil
	}
	type backend struct {
		Type string
	}
	config := struct {
		Network        string `json:",omitempty"`
		IPv6Network    string `json:",omitempty"`
		EnableIPv4     bool
		EnableIPv6     bool
		EnableNFTables bool
		Backend        backend
	}{EnableNFTables: r.cluster.Spec.Network.Proxy == v1alpha1.ProxyNFTables, Backend: backend{"vxlan"}}
	for _, pods := range r.podCIDRs {
		if pods.Addr().Is4() {
			config.Network, config.EnableIPv4 = pods.String(), true
		} else {
			config.IPv6Network, config.EnableIPv6 = pods.String(), true
		}
	}
	encoded, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode flannel's configuration: %w", err)
	}
	data := map[string]string{"net-conf.json": string(encoded) + "\n"}
	labels := map[string]string{"k8s-app": "flannel"}
	api := r.loopbacks()[0].String()
	rule := func(resource string, verbs ...string) rbac.PolicyRule {
		return rbac.PolicyRule{APIGroups: []string{""}, Resources: []string{resource}, Verbs: verbs}
	}
	daemons := &apps.DaemonSet{
		TypeMeta: appsType("DaemonSet"), ObjectMeta: objectMeta(kubeSystem, "kube-flannel", labels),
		Spec: apps.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			// It has no sign of its own that it is ready. One that cannot go on has ended by then.
			MinReadySeconds: 10,
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: r.stamp(data)},
				Spec: corev1.PodSpec{
					PriorityClassName: "system-node-critical", HostNetwork: true, ServiceAccountName: "flannel",
					Tolerations:  []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
					NodeSelector: map[string]string{"kubernetes.io/os": "linux"},
					Containers: []corev1.Container{{
						Name: "kube-flannel", Image: r.release.flannelImage, ImagePullPolicy: corev1.PullIfNotPresent,
						Command: []string{"/opt/bin/flanneld"}, Args: []string{"--ip-masq", "--kube-subnet-mgr", "--iface=$(HOST_IP)"},
						Resources: corev1.ResourceRequirements{Requests: requests("100m", "50Mi")},
						SecurityContext: &corev1.SecurityContext{Privileged: to(false),
							Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN", "NET_RAW"}}},
						Env: []corev1.EnvVar{
							fieldEnv("POD_NAME", "metadata.name"), fieldEnv("POD_NAMESPACE", "metadata.namespace"),
							// Of itself it takes the interface of the default route, and a rack without a way out has none.
							fieldEnv("HOST_IP", "status.hostIP"),
							// By the node's load balancer, not by the service address: that one needs kube-proxy.
							{Name: serviceHost, Value: api},
							{Name: servicePort, Value: strconv.Itoa(int(r.cluster.Spec.Endpoint.LocalPort))},
							{Name: "EVENT_QUEUE_DEPTH", Value: "5000"},
							{Name: "CONT_WHEN_CACHE_NOT_READY", Value: "false"},
						},
						VolumeMounts: []corev1.VolumeMount{
							{Name: "run", MountPath: "/run/flannel"},
							{Name: "flannel-cfg", MountPath: "/etc/kube-flannel/"},
							{Name: "xtables-lock", MountPath: "/run/xtables.lock"},
						},
					}},
					Volumes: []corev1.Volume{
						hostPath("run", "/run/flannel", corev1.HostPathDirectoryOrCreate),
						configVolume("flannel-cfg", "kube-flannel-cfg"),
						hostPath("xtables-lock", "/run/xtables.lock", corev1.HostPathFileOrCreate),
					},
				},
			},
		},
	}
	network, err := r.foreignNetwork()
	if err != nil {
		return nil, err
	}
	flannels := r.onEveryNode(daemons, func(pod *corev1.PodSpec) {
		container := &pod.Containers[0]
		container.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", network}}}}
		container.Env = append(container.Env, fieldEnv("HOST_IPS", "status.hostIPs"))
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: "cni", MountPath: cniDir})
		pod.Volumes = append(pod.Volumes, hostPath("cni", cniDir, corev1.HostPathDirectoryOrCreate))
		for i := range pod.Containers[0].Env {
			switch e := &pod.Containers[0].Env[i]; e.Name {
			case serviceHost:
				e.Value = r.endpointHost
			case servicePort:
				e.Value = strconv.Itoa(int(r.apiPort()))
			}
		}
	})
	return append([]runtime.Object{
		accountOf("flannel", labels),
		&rbac.ClusterRole{TypeMeta: rbacType("ClusterRole"), ObjectMeta: objectMeta("", "flannel", labels),
			Rules: []rbac.PolicyRule{rule("pods", "get"), rule("nodes", "get", "list", "watch"), rule("nodes/status", "patch")}},
		bindClusterRole("flannel", "flannel", account(kubeSystem, "flannel")),
		configMap(kubeSystem, "kube-flannel-cfg", data, labels),
	}, flannels...), nil
}

// foreignNetwork is a script that gives a node which Coldrack did not configure its routes to services, as the agent does
// on our own, and its bridge, as soon as flanneld says what its pods' network is: by the first address of it, with its length.
func (r *renderer) foreignNetwork() (string, error) {
	var script strings.Builder
	var subnets []string
	script.WriteString("set -eu\n" + r.foreignServiceRoutes() + "until [ -s /run/flannel/subnet.env ]; do busybox sleep 1; done\n. /run/flannel/subnet.env\n")
	for _, pods := range r.podCIDRs {
		if pods.Addr().Is4() {
			script.WriteString("ip=${FLANNEL_SUBNET%/*}\nv4=${ip%.*}.$((${ip##*.} - 1))/${FLANNEL_SUBNET#*/}\n")
			subnets = append(subnets, "${v4}")
		} else {
			script.WriteString("ip=${FLANNEL_IPV6_SUBNET%/*}\nv6=${ip%1}/${FLANNEL_IPV6_SUBNET#*/}\n")
			subnets = append(subnets, "${v6}")
		}
	}
	config, err := r.podNetwork(subnets)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(&script, "cat >%[1]s/coldrack.new <<END\n%[2]sEND\nbusybox mv %[1]s/coldrack.new %[1]s/10-coldrack.conflist\n", cniDir, config)
	return script.String(), nil
}

// foreignServiceRoutes are serviceRoutes as commands: for each of the node's addresses, in $HOST_IPS, the service network of
// its family is led out by the interface that has it.
func (r *renderer) foreignServiceRoutes() string {
	if r.cluster.Spec.Network.Proxy == v1alpha1.ProxyNone {
		return ""
	}
	var script strings.Builder
	script.WriteString("route() {\n  dev=$(busybox ip -o address show to \"$2\" | busybox awk '{print $2; exit}')\n" +
		"  busybox ip \"$1\" route replace \"$3\" dev \"$dev\" src \"$2\" metric 2048\n}\n" +
		"IFS=,\nfor ip in $HOST_IPS; do\n  case $ip in\n")
	// What has a colon is of IPv6, so that is asked first.
	for _, family := range []struct{ pattern, flag string }{{"*:*", "-6"}, {"*", "-4"}} {
		fmt.Fprintf(&script, "  %s)", family.pattern)
		for _, services := range r.serviceCIDRs {
			if services.Addr().Is6() == (family.flag == "-6") {
				fmt.Fprintf(&script, " route %s \"$ip\" %s", family.flag, services)
			}
		}
		script.WriteString(" ;;\n")
	}
	script.WriteString("  esac\ndone\nunset IFS\n")
	return script.String()
}

// dnsNodes is on how many nodes CoreDNS may run.
func (r *renderer) dnsNodes() int {
	count := 0
	for _, n := range r.nodes {
		if n.hasAny(v1alpha1.RoleWorker, v1alpha1.RoleControlPlane) {
			count++
		}
	}
	return count
}

// dnsObjects are CoreDNS, two of it where there are two nodes, never both on one: the second waits for its
// node. Merely preferring that, as kubeadm does, puts both on the node that is ready first, where they stay.
func (r *renderer) dnsObjects() []runtime.Object {
	replicas := int32(min(2, r.dnsNodes()))
	selector := map[string]string{"k8s-app": "kube-dns"}
	domain := r.cluster.Spec.Network.DNSDomain
	data := map[string]string{"Corefile": corefile(domain, r.in.NoNameservers)}
	port := func(name string, number int32, protocol corev1.Protocol) corev1.ContainerPort {
		return corev1.ContainerPort{Name: name, ContainerPort: number, Protocol: protocol}
	}
	servicePort := func(name string, number int32, protocol corev1.Protocol) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: number, Protocol: protocol, TargetPort: intstr.FromInt32(number)}
	}
	probe := func(path, port string) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
			Path: path, Port: intstr.FromString(port), Scheme: corev1.URISchemeHTTP}}}
	}
	live := probe("/health", "liveness-probe")
	live.InitialDelaySeconds, live.TimeoutSeconds, live.SuccessThreshold, live.FailureThreshold = 60, 5, 1, 5
	service := &corev1.Service{
		TypeMeta: coreType("Service"),
		ObjectMeta: metav1.ObjectMeta{Namespace: kubeSystem, Name: "kube-dns",
			Labels:      map[string]string{"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
			Annotations: map[string]string{"prometheus.io/port": "9153", "prometheus.io/scrape": "true"}},
		Spec: corev1.ServiceSpec{
			Selector: selector, ClusterIP: r.dnsAddresses[0].String(),
			Ports: []corev1.ServicePort{
				servicePort("dns", 53, corev1.ProtocolUDP), servicePort("dns-tcp", 53, corev1.ProtocolTCP), servicePort("metrics", 9153, corev1.ProtocolTCP),
			},
		},
	}
	for _, address := range r.dnsAddresses {
		service.Spec.ClusterIPs = append(service.Spec.ClusterIPs, address.String())
		family := corev1.IPv4Protocol
		if address.Is6() {
			family = corev1.IPv6Protocol
		}
		service.Spec.IPFamilies = append(service.Spec.IPFamilies, family)
	}
	service.Spec.IPFamilyPolicy = to(corev1.IPFamilyPolicySingleStack)
	if len(r.dnsAddresses) > 1 {
		service.Spec.IPFamilyPolicy = to(corev1.IPFamilyPolicyRequireDualStack)
	}
	deployment := &apps.Deployment{
		TypeMeta: appsType("Deployment"), ObjectMeta: objectMeta(kubeSystem, "coredns", selector),
		Spec: apps.DeploymentSpec{
			Replicas: &replicas,
			Strategy: apps.DeploymentStrategy{Type: apps.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &apps.RollingUpdateDeployment{MaxUnavailable: to(intstr.FromInt32(1))}},
			Selector: &metav1.LabelSelector{MatchLabels: selector},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: selector, Annotations: r.stamp(data)},
				Spec: corev1.PodSpec{
					PriorityClassName: "system-cluster-critical", ServiceAccountName: "coredns", DNSPolicy: corev1.DNSDefault,
					NodeSelector: map[string]string{"kubernetes.io/os": "linux"},
					Tolerations: []corev1.Toleration{
						{Key: "CriticalAddonsOnly", Operator: corev1.TolerationOpExists},
						{Key: labelControlPlane, Effect: corev1.TaintEffectNoSchedule},
					},
					TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
						MaxSkew: 1, MinDomains: &replicas, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.DoNotSchedule,
						LabelSelector: &metav1.LabelSelector{MatchLabels: selector}, MatchLabelKeys: []string{"pod-template-hash"},
						NodeTaintsPolicy: to(corev1.NodeInclusionPolicyHonor),
					}},
					Containers: []corev1.Container{{
						Name: "coredns", Image: r.release.coreDNSImage, ImagePullPolicy: corev1.PullIfNotPresent,
						Args: []string{"-conf", "/etc/coredns/Corefile"},
						Resources: corev1.ResourceRequirements{Requests: requests("100m", "70Mi"),
							Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("170Mi")}},
						Ports: []corev1.ContainerPort{
							port("dns", 53, corev1.ProtocolUDP), port("dns-tcp", 53, corev1.ProtocolTCP), port("metrics", 9153, corev1.ProtocolTCP),
							port("liveness-probe", 8080, corev1.ProtocolTCP), port("readiness-probe", 8181, corev1.ProtocolTCP),
						},
						LivenessProbe: live, ReadinessProbe: probe("/ready", "readiness-probe"),
						VolumeMounts: []corev1.VolumeMount{{Name: "config-volume", MountPath: "/etc/coredns", ReadOnly: true}},
						SecurityContext: &corev1.SecurityContext{
							AllowPrivilegeEscalation: to(false), ReadOnlyRootFilesystem: to(true),
							Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_BIND_SERVICE"}, Drop: []corev1.Capability{"ALL"}},
						},
					}},
					Volumes: []corev1.Volume{{Name: "config-volume", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
						LocalObjectReference: corev1.LocalObjectReference{Name: "coredns"},
						Items:                []corev1.KeyToPath{{Key: "Corefile", Path: "Corefile"}},
					}}}},
				},
			},
		},
	}
	watch := []string{"list", "watch"}
	return []runtime.Object{
		accountOf("coredns", nil),
		&rbac.ClusterRole{TypeMeta: rbacType("ClusterRole"), ObjectMeta: objectMeta("", "system:coredns", nil), Rules: []rbac.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"endpoints", "services", "pods", "namespaces"}, Verbs: watch},
			{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: watch},
		}},
		bindClusterRole("system:coredns", "system:coredns", account(kubeSystem, "coredns")),
		configMap(kubeSystem, "coredns", data, nil), service, deployment,
	}
}

// corefile is kubeadm's where the machines have nameservers. CoreDNS does not start with a resolv.conf that names
// none; without any, names outside the cluster do not exist, and are quickly said not to.
func corefile(domain string, noNameservers bool) string {
	config := `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes $DOMAIN in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success $DOMAIN
       disable denial $DOMAIN
    }
    loop
    reload
    loadbalance
}
`
	if noNameservers {
		config = `$DOMAIN:53 in-addr.arpa:53 ip6.arpa:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes $DOMAIN in-addr.arpa ip6.arpa {
       pods insecure
       ttl 30
    }
    prometheus :9153
    reload
    loadbalance
}
.:53 {
    errors
    template ANY ANY {
       rcode NXDOMAIN
    }
    prometheus :9153
}
`
	}
	return strings.ReplaceAll(config, "$DOMAIN", domain)
}
