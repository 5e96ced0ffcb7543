package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// systemNodeCritical is the value of the priority class system-node-critical; a static pod has to carry
	// it, because no admission fills it in.
	systemNodeCritical int32 = 2000001000
	// startupFailures of ten seconds each is how long a component may take to start. All machines are powered
	// on together: etcd waits for a quorum of machines that are still being installed.
	startupFailures int32 = 60

	annotationEtcdURLs     = "kubeadm.kubernetes.io/etcd.advertise-client-urls"
	annotationAPIServer    = "kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint"
	annotationConfigDigest = "coldrack.dev/config-digest"
	annotationKeysDigest   = "coldrack.dev/keys-digest"
	probePort              = "probe-port"
)

// tlsCipherSuites are those of TLS 1.2 with forward secrecy and authenticated encryption. Those of TLS 1.3
// cannot be chosen.
const tlsCipherSuites = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256," +
	"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384," +
	"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"

func (r *renderer) etcdFlags(n *node) flagSet {
	client, peer := urlOf(n.primary(), etcdClientPort), urlOf(n.primary(), etcdPeerPort)
	local := loopback(n.primary())
	state := "new"
	if n.Etcd.Existing {
		state = "existing"
	}
	flags := flagSet{
		"name": n.Hostname, "data-dir": etcdDataDir,
		"listen-client-urls": urlOf(local, etcdClientPort) + "," + client, "advertise-client-urls": client,
		"listen-peer-urls": peer, "initial-advertise-peer-urls": peer,
		"initial-cluster": strings.Join(n.Etcd.InitialCluster, ","), "initial-cluster-state": state,
		"initial-cluster-token": r.etcdToken(),
		"cert-file":             pkiDir + "/etcd/server.crt", "key-file": pkiDir + "/etcd/server.key",
		"trusted-ca-file": pkiDir + "/etcd/ca.crt", "client-cert-auth": "true",
		"peer-cert-file": pkiDir + "/etcd/peer.crt", "peer-key-file": pkiDir + "/etcd/peer.key",
		"peer-trusted-ca-file": pkiDir + "/etcd/ca.crt", "peer-client-cert-auth": "true",
		"snapshot-count": "10000", "watch-progress-notify-interval": "5s",
		"feature-gates":       "InitialCorruptCheck=true",
		"listen-metrics-urls": "http://" + netip.AddrPortFrom(local, etcdMetricsPort).String(),
		"cipher-suites":       tlsCipherSuites,
	}
	if quota := r.cluster.Spec.Etcd.QuotaBackend; quota > 0 {
		flags["quota-backend-bytes"] = strconv.FormatInt(quota, 10)
	}
	return flags
}

// etcdToken keeps members of a former cluster of the same name out.
func (r *renderer) etcdToken() string {
	if id := string(r.cluster.UID); len(id) >= 8 {
		return r.cluster.Name + "-" + id[:8]
	}
	return r.cluster.Name
}

// etcdServers are the members that an API server talks to: its own machine's, or all where it has none.
func (r *renderer) etcdServers(n *node) string {
	if n.runs(v1alpha1.RoleEtcd) {
		return urlOf(loopback(n.primary()), etcdClientPort)
	}
	var urls []string
	for _, member := range r.with(v1alpha1.RoleEtcd) {
		urls = append(urls, urlOf(member.primary(), etcdClientPort))
	}
	return strings.Join(urls, ",")
}

func (r *renderer) apiServerFlags(n *node) flagSet {
	return flagSet{
		"advertise-address": n.primary().String(), "secure-port": strconv.Itoa(int(r.apiPort())),
		"allow-privileged": "true", "authorization-mode": "Node,RBAC",
		"enable-admission-plugins": "NodeRestriction", "enable-bootstrap-token-auth": "true",
		"service-cluster-ip-range": join(r.serviceCIDRs),
		"client-ca-file":           pkiDir + "/ca.crt",
		"tls-cert-file":            pkiDir + "/apiserver.crt", "tls-private-key-file": pkiDir + "/apiserver.key",
		"etcd-servers": r.etcdServers(n), "etcd-cafile": pkiDir + "/etcd/ca.crt",
		"etcd-certfile": pkiDir + "/apiserver-etcd-client.crt", "etcd-keyfile": pkiDir + "/apiserver-etcd-client.key",
		"kubelet-client-certificate":         pkiDir + "/apiserver-kubelet-client.crt",
		"kubelet-client-key":                 pkiDir + "/apiserver-kubelet-client.key",
		"kubelet-preferred-address-types":    "InternalIP,ExternalIP,Hostname",
		"proxy-client-cert-file":             pkiDir + "/front-proxy-client.crt",
		"proxy-client-key-file":              pkiDir + "/front-proxy-client.key",
		"requestheader-client-ca-file":       pkiDir + "/front-proxy-ca.crt",
		"requestheader-allowed-names":        "front-proxy-client",
		"requestheader-username-headers":     "X-Remote-User",
		"requestheader-group-headers":        "X-Remote-Group",
		"requestheader-extra-headers-prefix": "X-Remote-Extra-",
		"service-account-issuer":             "https://kubernetes.default.svc." + r.cluster.Spec.Network.DNSDomain,
		"service-account-key-file":           pkiDir + "/sa.pub",
		"service-account-signing-key-file":   pkiDir + "/sa.key",
		// Hardening.
		"profiling":                                   "false",
		"kubelet-certificate-authority":               pkiDir + "/ca.crt",
		"authentication-config":                       authenticationFile,
		"admission-control-config-file":               admissionFile,
		"encryption-provider-config":                  encryptionFile,
		"encryption-provider-config-automatic-reload": "true",
		"audit-policy-file":                           auditPolicyFile,
		"audit-log-path":                              auditLogDir + "/audit.log",
		"audit-log-maxage":                            "30", "audit-log-maxbackup": "10", "audit-log-maxsize": "100",
		"tls-min-version": "VersionTLS12", "tls-cipher-suites": tlsCipherSuites,
		// While it ends it says that it is not ready, and answers everything, for longer than the nodes' load balancers need to notice.
		// Then it ends watches, and has clients finish what is under way and go elsewhere. Without the last flag it stops listening and waits
		// a minute for watches; with --shutdown-send-retry-after it would have clients wait five seconds for nothing.
		"shutdown-delay-duration": shutdownDelay.String(), "shutdown-watch-termination-grace-period": "2s",
	}
}

// shutdownDelay is longer than the pace of the load balancers' checks, three seconds, and with the time for watches shorter than what
// the kubelet leaves critical pods when the machine is shut down.
const shutdownDelay = 5 * time.Second

// patient has the only controller manager or scheduler keep its lease through a time in which the only API server is
// slow. With nobody there to take over, ending would only make things slower.
func (r *renderer) patient(flags flagSet) flagSet {
	if len(r.with(v1alpha1.RoleControlPlane)) == 1 {
		flags["leader-elect-lease-duration"], flags["leader-elect-renew-deadline"], flags["leader-elect-retry-period"] = "120s", "110s", "5s"
	}
	return flags
}

func (r *renderer) managerFlags(*node) flagSet {
	config := kubernetesDir + "/controller-manager.conf"
	return r.patient(flagSet{
		"bind-address": "127.0.0.1", "leader-elect": "true", "cluster-name": r.cluster.Name,
		"kubeconfig": config, "authentication-kubeconfig": config, "authorization-kubeconfig": config,
		"client-ca-file": pkiDir + "/ca.crt", "root-ca-file": pkiDir + "/ca.crt",
		"requestheader-client-ca-file":     pkiDir + "/front-proxy-ca.crt",
		"service-account-private-key-file": pkiDir + "/sa.key",
		"use-service-account-credentials":  "true",
		"controllers":                      "*,bootstrapsigner,tokencleaner",
		"service-cluster-ip-range":         join(r.serviceCIDRs),
		"cluster-cidr":                     join(r.podCIDRs),
		// The server gives every node its pod networks, so that a node's network is complete before the API
		// answers for the first time.
		"allocate-node-cidrs": "false",
		"profiling":           "false", "terminated-pod-gc-threshold": "1000",
		"tls-min-version": "VersionTLS12", "tls-cipher-suites": tlsCipherSuites,
	})
}

func (r *renderer) schedulerFlags(*node) flagSet {
	config := kubernetesDir + "/scheduler.conf"
	return r.patient(flagSet{
		"bind-address": "127.0.0.1", "leader-elect": "true",
		"kubeconfig": config, "authentication-kubeconfig": config, "authorization-kubeconfig": config,
		"profiling": "false", "tls-min-version": "VersionTLS12", "tls-cipher-suites": tlsCipherSuites,
	})
}

// podSpec is what static pods differ in.
type podSpec struct {
	name        component
	image       string
	flags       flagSet
	cpu, memory string
	mounts      []mount
	annotations map[string]string
	port        int32
	probeHost   netip.Addr
	scheme      corev1.URIScheme
	// live, ready and started are paths of probes; empty: no such probe.
	live, ready, started string
}

type mount struct {
	name, path string
	readOnly   bool
	kind       corev1.HostPathType
}

func (r *renderer) staticPods(n *node, files []File) ([]StaticPod, error) {
	var specs []podSpec
	spec := &r.cluster.Spec
	authority, etcdAuthority, tokens := r.in.Authorities[AuthorityKubernetes], r.in.Authorities[AuthorityEtcd], r.in.ServiceAccountKeys
	stored := []byte(strings.Join(r.in.EncryptionKeys, " "))
	certificates := mount{"k8s-certs", pkiDir, true, corev1.HostPathDirectoryOrCreate}
	publicCAs := mount{"ca-certs", "/etc/ssl/certs", true, corev1.HostPathDirectoryOrCreate}
	kubeconfig := func(file string) mount {
		return mount{"kubeconfig", kubernetesDir + "/" + file, true, corev1.HostPathFileOrCreate}
	}
	local := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if n.runs(v1alpha1.RoleEtcd) {
		specs = append(specs, podSpec{
			name: componentEtcd, image: n.etcd.etcdImage, flags: r.etcdFlags(n).withExtra(spec.Etcd.ExtraArgs),
			cpu: "100m", memory: "100Mi",
			mounts: []mount{
				{"etcd-data", etcdDataDir, false, corev1.HostPathDirectoryOrCreate},
				{"etcd-certs", pkiDir + "/etcd", false, corev1.HostPathDirectoryOrCreate},
			},
			annotations: map[string]string{annotationEtcdURLs: urlOf(n.primary(), etcdClientPort), annotationKeysDigest: keysDigest(etcdAuthority)},
			port:        etcdMetricsPort, probeHost: loopback(n.primary()), scheme: corev1.URISchemeHTTP,
			live: "/livez", ready: "/readyz", started: "/readyz",
		})
	}
	if n.runs(v1alpha1.RoleControlPlane) {
		specs = append(specs, podSpec{
			name: componentAPIServer, image: kubernetesImage(componentAPIServer, n.version),
			flags: r.apiServerFlags(n).withExtra(spec.APIServer.ExtraArgs), cpu: "250m",
			mounts: []mount{certificates, publicCAs,
				{"coldrack-config", apiserverDir, true, corev1.HostPathDirectory},
				{"audit-log", auditLogDir, false, corev1.HostPathDirectoryOrCreate},
			},
			annotations: map[string]string{
				annotationAPIServer:    netip.AddrPortFrom(n.primary(), r.apiPort()).String(),
				annotationConfigDigest: configDigest(files),
				annotationKeysDigest:   keysDigest(authority, etcdAuthority, tokens, stored),
			},
			port: int32(r.apiPort()), probeHost: n.primary(), scheme: corev1.URISchemeHTTPS,
			live: "/livez", ready: "/readyz", started: "/livez",
		}, podSpec{
			name: componentManager, image: kubernetesImage(componentManager, n.version),
			flags: r.managerFlags(n).withExtra(spec.ControllerManager.ExtraArgs), cpu: "200m",
			mounts:      []mount{certificates, publicCAs, kubeconfig("controller-manager.conf")},
			annotations: map[string]string{annotationKeysDigest: keysDigest(authority, tokens)},
			port:        managerPort, probeHost: local, scheme: corev1.URISchemeHTTPS, live: "/healthz", started: "/healthz",
		}, podSpec{
			name: componentScheduler, image: kubernetesImage(componentScheduler, n.version),
			flags: r.schedulerFlags(n).withExtra(spec.Scheduler.ExtraArgs), cpu: "100m",
			mounts:      []mount{kubeconfig("scheduler.conf")},
			annotations: map[string]string{annotationKeysDigest: keysDigest(authority)},
			port:        schedulerPort, probeHost: local, scheme: corev1.URISchemeHTTPS, live: "/livez", ready: "/readyz", started: "/livez",
		})
	}
	var pods []StaticPod
	for _, s := range specs {
		pod := s.pod()
		content, err := encodeObject(pod)
		if err != nil {
			return nil, fmt.Errorf("static pod %s: %w", s.name, err)
		}
		pods = append(pods, StaticPod{Name: string(s.name), Pod: pod,
			File: File{Path: manifestsDir + "/" + string(s.name) + ".yaml", Mode: modeSecret, Content: content}})
	}
	return pods, nil
}

func (s podSpec) pod() corev1.Pod {
	container := corev1.Container{
		Name: string(s.name), Image: s.image, ImagePullPolicy: corev1.PullIfNotPresent,
		Command:        s.flags.command(s.name),
		Resources:      corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(s.cpu)}},
		Ports:          []corev1.ContainerPort{{Name: probePort, ContainerPort: s.port, Protocol: corev1.ProtocolTCP}},
		LivenessProbe:  s.probe(s.live, 10, 8, 10),
		ReadinessProbe: s.probe(s.ready, 0, 3, readinessPeriod),
		StartupProbe:   s.probe(s.started, 10, startupFailures, 10),
	}
	if s.memory != "" {
		container.Resources.Requests[corev1.ResourceMemory] = resource.MustParse(s.memory)
	}
	priority := systemNodeCritical
	pod := corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name: string(s.name), Namespace: metav1.NamespaceSystem, Annotations: s.annotations,
			Labels: map[string]string{"component": string(s.name), "tier": "control-plane"},
		},
		Spec: corev1.PodSpec{
			HostNetwork: true, Priority: &priority, PriorityClassName: "system-node-critical",
			SecurityContext: &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		},
	}
	slices.SortFunc(s.mounts, func(a, b mount) int { return strings.Compare(a.name, b.name) })
	for _, m := range s.mounts {
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: m.name, MountPath: m.path, ReadOnly: m.readOnly})
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: m.name,
			VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: m.path, Type: &m.kind}}})
	}
	pod.Spec.Containers = []corev1.Container{container}
	return pod
}

// readinessPeriod is five times kubeadm's, in seconds: nothing is sent by the readiness of these pods, since whoever asks
// for them, balancers and virtual IP, looks for itself. On a small idle control plane each second's TLS handshakes were a noticeable part of all work.
const readinessPeriod = 5

// probe asks the component over its own address; delay and failures are kubeadm's, and the period of the other probes.
func (s podSpec) probe(path string, delay, failures, period int32) *corev1.Probe {
	if path == "" {
		return nil
	}
	return &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
			Host: s.probeHost.String(), Path: path, Port: intstr.FromString(probePort), Scheme: s.scheme,
		}},
		InitialDelaySeconds: delay, TimeoutSeconds: 15, FailureThreshold: failures, PeriodSeconds: period,
	}
}

// keysDigest stands for what a program believes and reads only once: the authorities of its peers, the keys of tokens and of what is
// stored. The public keys of tokens stand for the one that signs, which is the first of them.
func keysDigest(believed ...[]byte) string {
	digest := sha256.New()
	for _, b := range believed {
		fmt.Fprintf(digest, "%d\x00", len(b))
		digest.Write(b)
	}
	return hex.EncodeToString(digest.Sum(nil)[:8])
}

// configDigest changes when a file changes that the API server reads only once, so that the kubelet restarts it.
func configDigest(files []File) string {
	digest := sha256.New()
	for _, f := range files {
		if strings.HasPrefix(f.Path, apiserverDir+"/") {
			fmt.Fprintf(digest, "%s\x00%d\x00", f.Path, len(f.Content))
			digest.Write(f.Content)
		}
	}
	return hex.EncodeToString(digest.Sum(nil)[:8])
}

func join(networks []netip.Prefix) string {
	var texts []string
	for _, network := range networks {
		texts = append(texts, network.String())
	}
	return strings.Join(texts, ",")
}
