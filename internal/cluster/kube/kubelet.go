package kube

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kubelet "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"
)

const (
	criSocket        = "unix:///run/containerd/containerd.sock"
	kubeletConfig    = kubeletDir + "/config.yaml"
	kubeletFlagsFile = kubeletDir + "/kubeadm-flags.env"
	// kubeletInstance is what kubeadm takes this machine's own part of the configuration from.
	kubeletInstance = kubeletDir + "/instance-config.yaml"
	mebibyte        = 1 << 20
)

// kubeletConfiguration is what all kubelets of the cluster have in common by Coldrack's own decision.
func (r *renderer) kubeletConfiguration() kubelet.KubeletConfiguration {
	var dns []string
	for _, address := range r.dnsAddresses {
		dns = append(dns, address.String())
	}
	return kubelet.KubeletConfiguration{
		TypeMeta:      metav1.TypeMeta{APIVersion: kubelet.SchemeGroupVersion.String(), Kind: "KubeletConfiguration"},
		StaticPodPath: manifestsDir,
		Authentication: kubelet.KubeletAuthentication{
			X509:      kubelet.KubeletX509Authentication{ClientCAFile: pkiDir + "/ca.crt"},
			Webhook:   kubelet.KubeletWebhookAuthentication{Enabled: to(true)},
			Anonymous: kubelet.KubeletAnonymousAuthentication{Enabled: to(false)},
		},
		Authorization:          kubelet.KubeletAuthorization{Mode: kubelet.KubeletAuthorizationModeWebhook},
		RotateCertificates:     true,
		ServerTLSBootstrap:     true,
		ClusterDNS:             dns,
		ClusterDomain:          r.cluster.Spec.Network.DNSDomain,
		CgroupDriver:           "systemd",
		HealthzBindAddress:     "127.0.0.1",
		HealthzPort:            to(int32(10248)),
		TLSMinVersion:          "VersionTLS12",
		TLSCipherSuites:        strings.Split(tlsCipherSuites, ","),
		SeccompDefault:         to(true),
		EnableProfilingHandler: to(false),
		// A cluster whose machines all lost power must not wait five minutes for the next try of a component
		// that could not find its peers at first.
		CrashLoopBackOff: kubelet.CrashLoopBackOffConfig{MaxContainerRestartPeriod: &metav1.Duration{Duration: 30 * time.Second}},
		EvictionHard: map[string]string{
			"memory.available": "100Mi", "nodefs.available": "10%", "nodefs.inodesFree": "5%", "imagefs.available": "15%",
		},
		ShutdownGracePeriod:             metav1.Duration{Duration: time.Minute},
		ShutdownGracePeriodCriticalPods: metav1.Duration{Duration: 20 * time.Second},
	}
}

// decidedKubeletFields may not be changed by users: security or the cluster's networks rest on them.
var decidedKubeletFields = [...]string{
	"staticPodPath", "authentication", "authorization", "rotateCertificates", "serverTLSBootstrap", "clusterDNS",
	"clusterDomain", "cgroupDriver", "containerRuntimeEndpoint", "readOnlyPort", "registerWithTaints",
	"tlsCertFile", "tlsPrivateKeyFile", "healthzPort", "healthzBindAddress", "podCIDR", "providerID",
}

// commonKubeletConfiguration is what all kubelets of the cluster have in common. kubeadm keeps it in the cluster for machines
// that join by kubeadm, which may have another runtime and other kernel settings.
func (r *renderer) commonKubeletConfiguration() (map[string]any, error) {
	tree, err := treeOf(r.kubeletConfiguration())
	if err != nil {
		return nil, err
	}
	if err := mergeKubeletConfig(tree, "spec.kubelet.config", r.cluster.Spec.Kubelet.Config); err != nil {
		return nil, err
	}
	return dropUnset(tree), nil
}

// machineKubeletConfiguration is the configuration of one machine's kubelet, and its own part of it: what it has otherwise than
// the kubelets have in common. "kubeadm upgrade" lays the one over the other.
func (r *renderer) machineKubeletConfiguration(n *node) (whole, own []byte, err error) {
	config := r.kubeletConfiguration()
	config.RegisterWithTaints = nodeTaints(n)
	config.ContainerRuntimeEndpoint = criSocket
	config.ProtectKernelDefaults = true // hostFiles set them
	config.ResolverConfig = to("/etc/resolv.conf")
	reserved := fmt.Sprintf("%dMi", reservedMemory(n.Memory)/mebibyte)
	config.SystemReserved = map[string]string{"cpu": "100m", "memory": reserved}
	config.KubeReserved = map[string]string{"cpu": "100m", "memory": reserved}
	tree, err := treeOf(config)
	if err != nil {
		return nil, nil, err
	}
	for _, user := range []struct {
		field  string
		config *runtime.RawExtension
	}{{"spec.kubelet.config", r.cluster.Spec.Kubelet.Config}, {"spec.kubelet.config of group " + n.group.Name, n.group.Spec.Kubelet.Config}} {
		if err := mergeKubeletConfig(tree, user.field, user.config); err != nil {
			return nil, nil, err
		}
	}
	tree = dropUnset(tree)
	if whole, err = yaml.Marshal(tree); err != nil {
		return nil, nil, err
	}
	common, err := r.commonKubeletConfiguration()
	if err != nil {
		return nil, nil, err
	}
	maps.DeleteFunc(tree, func(field string, value any) bool { return reflect.DeepEqual(value, common[field]) })
	own, err = yaml.Marshal(tree)
	return whole, own, err
}

// mergeKubeletConfig lays a user's fields over the rendered ones. A field whose value is an object is merged,
// any other is replaced.
func mergeKubeletConfig(tree map[string]any, field string, own *runtime.RawExtension) error {
	if own == nil || len(own.Raw) == 0 {
		return nil
	}
	// Strictly, so that a typing error is found here and not by a kubelet that does not start.
	if err := yaml.UnmarshalStrict(own.Raw, &kubelet.KubeletConfiguration{}); err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	var overlay map[string]any
	if err := json.Unmarshal(own.Raw, &overlay); err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	delete(overlay, "apiVersion")
	delete(overlay, "kind")
	for _, decided := range decidedKubeletFields {
		if _, found := overlay[decided]; found {
			return fmt.Errorf("%s: %s is decided by Coldrack; security or the cluster's networks rest on it", field, decided)
		}
	}
	for key, value := range overlay {
		rendered, isObject := tree[key].(map[string]any)
		if replacement, ok := value.(map[string]any); ok && isObject {
			maps.Copy(rendered, replacement)
		} else {
			tree[key] = value
		}
	}
	return nil
}

// reservedMemory is what the system and the Kubernetes programs each keep to themselves: a twentieth, at
// least 128 MiB and at most 1 GiB.
func reservedMemory(memory int64) int64 {
	if memory == 0 {
		return 256 * mebibyte
	}
	return min(max(memory/20, 128*mebibyte), 1024*mebibyte)
}

func (r *renderer) kubeletFiles(n *node) ([]File, error) {
	config, instance, err := r.machineKubeletConfiguration(n)
	if err != nil {
		return nil, err
	}
	var ips []string
	for _, address := range n.Addresses[:min(len(n.Addresses), len(r.podCIDRs))] {
		ips = append(ips, address.String())
	}
	flags := flagSet{
		"hostname-override": n.Hostname,
		"node-ip":           strings.Join(ips, ","),
	}
	if labels := registrationLabels(n, r.nodeLabels(n)); labels != "" {
		flags["node-labels"] = labels
	}
	return []File{
		{Path: manifestsDir, Mode: modeDir | fs.ModeDir},
		{Path: kubeletDir, Mode: modeDir | fs.ModeDir},
		{Path: kubeletConfig, Mode: modeSecret, Content: config},
		{Path: kubeletInstance, Mode: modeSecret, Content: instance},
		{Path: kubeletFlagsFile, Mode: modePublic, Content: fmt.Appendf(nil, "KUBELET_KUBEADM_ARGS=%q\n", strings.Join(flags.command("")[1:], " "))},
		// The kubelet finds its certificate by this link, and points it elsewhere when it rotates.
		{Path: kubeletClientLink, Link: kubeletClientFile, Once: true},
	}, nil
}

// registrationLabels are those that a kubelet may give its own node (admission plugin NodeRestriction). They
// are there from the first moment, so that no pod is placed before them. Those that count accelerators come from the server alone: a
// kubelet need not restart for a card.
func registrationLabels(n *node, labels map[string]string) string {
	var allowed []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		domain, _, qualified := strings.Cut(key, "/")
		reserved := qualified && (domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io") ||
			domain == "k8s.io" || strings.HasSuffix(domain, ".k8s.io"))
		if strings.HasPrefix(key, v1alpha1.LabelAccelerator) {
			continue
		}
		if !reserved || slices.Contains([]string{"topology.kubernetes.io/zone", "topology.kubernetes.io/region"}, key) {
			allowed = append(allowed, key+"="+labels[key])
		}
	}
	return strings.Join(allowed, ",")
}

const kubeletUnit = `[Unit]
Description=kubelet: the Kubernetes node agent
Wants=network-online.target
After=network-online.target containerd.service
Requires=containerd.service
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/bin/kubelet
Restart=always
RestartSec=2

[Install]
WantedBy=multi-user.target
`

// The drop-in has the name and the variables that kubeadm expects.
const kubeletDropIn = `[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
`

// With the usual weight of 100 for all services of the system, these get more than half of a small machine, and unpacking
// an image slows down the API server until it fails its health checks. With this one they keep about half a processor
// where pods want everything, on small machines and large ones, since the kubelet gives its pods weight by processors.
const controlPlaneDropIn = `[Service]
ExecStartPre=-/usr/bin/systemctl set-property --runtime system.slice CPUWeight=20
`

func (r *renderer) units(n *node) []Unit {
	kubelet := map[string][]byte{"10-kubeadm.conf": []byte(kubeletDropIn)}
	if n.hasAny(v1alpha1.RoleControlPlane, v1alpha1.RoleEtcd) {
		kubelet["20-control-plane.conf"] = []byte(controlPlaneDropIn)
	}
	units := []Unit{
		{Name: "containerd.service", Content: []byte(containerdUnit)},
		{Name: "kubelet.service", Content: []byte(kubeletUnit), DropIns: kubelet},
	}
	if r.cluster.Spec.Network.Plugin == v1alpha1.NetworkRouted {
		units = append(units, Unit{Name: masqueradeUnitName, Content: []byte(masqueradeUnit)})
	}
	if r.carriesVirtualIP(n) {
		units = append(units, Unit{Name: virtualIPUnit})
	}
	slices.SortFunc(units, func(a, b Unit) int { return strings.Compare(a.Name, b.Name) })
	return units
}

func to[T any](value T) *T { return &value }
