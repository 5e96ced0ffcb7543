package kube

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"
)

const (
	tokenGroup = "system:bootstrappers:kubeadm:default-node-token"
	nodesGroup = "system:nodes"

	// GroupAdmin, GroupOperator and GroupViewer are the groups in people's certificates: everything, the built-in
	// role edit in namespaces that are not the cluster's own, the built-in role view. GroupBreakGlass needs no authorization at all, and works when that is broken.
	GroupAdmin      = adminsGroup
	GroupOperator   = "coldrack:operator"
	GroupViewer     = "coldrack:viewer"
	GroupBreakGlass = "system:masters"

	kubeSystem       = metav1.NamespaceSystem
	kubePublic       = metav1.NamespacePublic
	kubeadmConfigMap = "kubeadm-config"
)

// kubeadmConfiguration is the part of kubeadm's ClusterConfiguration (kubeadm.k8s.io/v1beta4) that kubeadm needs in
// order to add machines to this cluster, or to take it over. Its Go types live in the module of the whole of Kubernetes.
type kubeadmConfiguration struct {
	metav1.TypeMeta      `json:",inline"`
	ClusterName          string            `json:"clusterName"`
	KubernetesVersion    string            `json:"kubernetesVersion"`
	ControlPlaneEndpoint string            `json:"controlPlaneEndpoint"`
	CertificatesDir      string            `json:"certificatesDir"`
	ImageRepository      string            `json:"imageRepository"`
	EncryptionAlgorithm  string            `json:"encryptionAlgorithm"`
	CertificateValidity  metav1.Duration   `json:"certificateValidityPeriod"`
	AuthorityValidity    metav1.Duration   `json:"caCertificateValidityPeriod"`
	Networking           kubeadmNetworking `json:"networking"`
	Etcd                 kubeadmEtcd       `json:"etcd"`
	APIServer            kubeadmComponent  `json:"apiServer"`
	ControllerManager    kubeadmComponent  `json:"controllerManager"`
	Scheduler            kubeadmComponent  `json:"scheduler"`
	Proxy                *kubeadmDisabled  `json:"proxy,omitempty"`
	DNS                  *kubeadmDisabled  `json:"dns,omitempty"`
}

type kubeadmNetworking struct {
	DNSDomain     string `json:"dnsDomain"`
	PodSubnet     string `json:"podSubnet"`
	ServiceSubnet string `json:"serviceSubnet"`
}

type kubeadmEtcd struct {
	Local    *kubeadmLocalEtcd    `json:"local,omitempty"`
	External *kubeadmExternalEtcd `json:"external,omitempty"`
}

type kubeadmLocalEtcd struct {
	DataDir   string       `json:"dataDir"`
	ImageTag  string       `json:"imageTag,omitempty"`
	ExtraArgs []kubeadmArg `json:"extraArgs,omitempty"`
}

type kubeadmExternalEtcd struct {
	Endpoints []string `json:"endpoints"`
	CAFile    string   `json:"caFile"`
	CertFile  string   `json:"certFile"`
	KeyFile   string   `json:"keyFile"`
}

type kubeadmComponent struct {
	CertSANs     []string        `json:"certSANs,omitempty"`
	ExtraArgs    []kubeadmArg    `json:"extraArgs,omitempty"`
	ExtraVolumes []kubeadmVolume `json:"extraVolumes,omitempty"`
}

type kubeadmArg struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type kubeadmVolume struct {
	Name      string `json:"name"`
	HostPath  string `json:"hostPath"`
	MountPath string `json:"mountPath"`
	ReadOnly  bool   `json:"readOnly,omitempty"`
	PathType  string `json:"pathType"`
}

type kubeadmDisabled struct {
	Disabled bool `json:"disabled"`
}

// bootstrapObjects are what kubeadm uploads at the end of "init": the configuration that joining machines read,
// and the rights that they need for it.
func (r *renderer) bootstrapObjects() ([]runtime.Object, error) {
	clusterInfo, err := r.clusterInfo()
	if err != nil {
		return nil, err
	}
	kubeadm, err := r.kubeadmConfig()
	if err != nil {
		return nil, err
	}
	kubelet, err := r.commonKubeletConfiguration()
	if err != nil {
		return nil, err
	}
	encodedKubelet, err := yaml.Marshal(kubelet)
	if err != nil {
		return nil, fmt.Errorf("encode the configuration of kubelets: %w", err)
	}
	read := []string{"get", "list", "watch"}
	objects := []runtime.Object{
		configMap(kubeSystem, kubeadmConfigMap, map[string]string{"ClusterConfiguration": string(kubeadm)}, nil),
		readConfigMap(kubeSystem, "kubeadm:nodes-kubeadm-config", kubeadmConfigMap),
		bindRole(kubeSystem, "kubeadm:nodes-kubeadm-config", group(tokenGroup), group(nodesGroup)),
		configMap(kubeSystem, "kubelet-config", map[string]string{"kubelet": string(encodedKubelet)}, nil),
		readConfigMap(kubeSystem, "kubeadm:kubelet-config", "kubelet-config"),
		bindRole(kubeSystem, "kubeadm:kubelet-config", group(nodesGroup), group(tokenGroup)),
		bindClusterRole("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", group(tokenGroup)),
		bindClusterRole("kubeadm:node-autoapprove-bootstrap", "system:certificates.k8s.io:certificatesigningrequests:nodeclient", group(tokenGroup)),
		bindClusterRole("kubeadm:node-autoapprove-certificate-rotation", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", group(nodesGroup)),
		&rbac.ClusterRole{TypeMeta: rbacType("ClusterRole"), ObjectMeta: objectMeta("", "kubeadm:get-nodes", nil),
			Rules: []rbac.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"nodes"}}}},
		bindClusterRole("kubeadm:get-nodes", "kubeadm:get-nodes", group(tokenGroup)),
		bindClusterRole(adminsGroup, "cluster-admin", group(adminsGroup)),
		// Before 1.37, kubeadm made the API servers administrators instead.
		bindClusterRole("kubeadm:apiserver-kubelet-client", "system:kubelet-api-admin", user("kube-apiserver-kubelet-client")),
		configMap(kubePublic, "cluster-info", map[string]string{"kubeconfig": string(clusterInfo)}, nil),
		// What the certificates of people who are no admins may do. The built-in roles know nothing outside namespaces.
		// Operators' role edit is bound in each namespace by internal/cluster/kubeapi.
		bindClusterRole(GroupViewer, "view", group(GroupViewer), group(GroupOperator)),
		&rbac.ClusterRole{TypeMeta: rbacType("ClusterRole"), ObjectMeta: objectMeta("", "coldrack:view-cluster", nil),
			Rules: []rbac.PolicyRule{
				{Verbs: read, APIGroups: []string{""}, Resources: []string{"nodes", "namespaces", "persistentvolumes"}},
				{Verbs: read, APIGroups: []string{"storage.k8s.io"}, Resources: []string{"storageclasses"}},
				{Verbs: read, APIGroups: []string{"apiextensions.k8s.io"}, Resources: []string{"customresourcedefinitions"}},
			}},
		bindClusterRole("coldrack:view-cluster", "coldrack:view-cluster", group(GroupViewer), group(GroupOperator)),
	}
	if r.cluster.Spec.Security.TokenDiscovery {
		objects = append(objects,
			readConfigMap(kubePublic, "kubeadm:bootstrap-signer-clusterinfo", "cluster-info"),
			bindRole(kubePublic, "kubeadm:bootstrap-signer-clusterinfo", user("system:anonymous")))
	}
	return objects, nil
}

// clusterInfo is a kubeconfig without credentials.
func (r *renderer) clusterInfo() ([]byte, error) {
	encoded, err := json.Marshal(clientcmd.Config{Kind: "Config", APIVersion: "v1",
		Clusters: []clientcmd.NamedCluster{{Cluster: clientcmd.Cluster{
			Server: "https://" + r.endpoint(), CertificateAuthorityData: r.in.Authorities[AuthorityKubernetes]}}},
		Contexts: []clientcmd.NamedContext{}, AuthInfos: []clientcmd.NamedAuthInfo{}})
	if err != nil {
		return nil, fmt.Errorf("encode cluster-info: %w", err)
	}
	return yaml.JSONToYAML(encoded)
}

// kubeadmConfig tells kubeadm how this cluster differs from its own defaults, as the difference between our flags
// and those that kubeadm gives by itself.
func (r *renderer) kubeadmConfig() ([]byte, error) {
	spec := &r.cluster.Spec
	config := kubeadmConfiguration{
		TypeMeta:    metav1.TypeMeta{APIVersion: "kubeadm.k8s.io/v1beta4", Kind: "ClusterConfiguration"},
		ClusterName: r.cluster.Name, KubernetesVersion: spec.Version, ControlPlaneEndpoint: r.endpoint(),
		CertificatesDir: pkiDir, ImageRepository: imageRepository, EncryptionAlgorithm: string(spec.PKI.KeyAlgorithm),
		CertificateValidity: metav1.Duration{Duration: r.certificateTTL()}, AuthorityValidity: metav1.Duration{Duration: r.authorityTTL()},
		Networking: kubeadmNetworking{spec.Network.DNSDomain, join(r.podCIDRs), join(r.serviceCIDRs)},
	}
	n := r.with(v1alpha1.RoleControlPlane)[0]
	config.APIServer.CertSANs = r.extraAPIServerNames()
	ours := func(flags flagSet, extra map[string]string, names ...string) []kubeadmArg {
		differing := flagSet{}
		for _, name := range names {
			if value, ok := flags[name]; ok {
				differing[name] = value
			}
		}
		maps.Copy(differing, extra)
		var args []kubeadmArg
		for _, name := range slices.Sorted(maps.Keys(differing)) {
			args = append(args, kubeadmArg{name, differing[name]})
		}
		return args
	}
	config.APIServer.ExtraArgs = ours(r.apiServerFlags(n), spec.APIServer.ExtraArgs, "profiling", "kubelet-certificate-authority",
		"authentication-config", "admission-control-config-file", "encryption-provider-config",
		"encryption-provider-config-automatic-reload", "audit-policy-file", "audit-log-path", "audit-log-maxage",
		"audit-log-maxbackup", "audit-log-maxsize", "tls-min-version", "tls-cipher-suites", "shutdown-delay-duration", "shutdown-watch-termination-grace-period")
	config.APIServer.ExtraVolumes = []kubeadmVolume{
		{Name: "audit-log", HostPath: auditLogDir, MountPath: auditLogDir, PathType: string(corev1.HostPathDirectoryOrCreate)},
		{Name: "coldrack-config", HostPath: apiserverDir, MountPath: apiserverDir, ReadOnly: true, PathType: string(corev1.HostPathDirectory)},
	}
	config.ControllerManager.ExtraArgs = ours(r.managerFlags(n), spec.ControllerManager.ExtraArgs, "allocate-node-cidrs", "profiling",
		"leader-elect-lease-duration", "leader-elect-renew-deadline", "leader-elect-retry-period", "terminated-pod-gc-threshold", "tls-min-version", "tls-cipher-suites")
	config.Scheduler.ExtraArgs = ours(r.schedulerFlags(n), spec.Scheduler.ExtraArgs, "profiling",
		"leader-elect-lease-duration", "leader-elect-renew-deadline", "leader-elect-retry-period", "tls-min-version", "tls-cipher-suites")
	if n.runs(v1alpha1.RoleEtcd) {
		// kubeadm has a release of its own, of which no bundle has the image.
		_, tag, _ := strings.Cut(n.etcd.etcdImage, ":")
		config.Etcd.Local = &kubeadmLocalEtcd{DataDir: etcdDataDir, ImageTag: tag,
			ExtraArgs: ours(r.etcdFlags(n), spec.Etcd.ExtraArgs, "cipher-suites", "initial-cluster-token", "quota-backend-bytes")}
	} else {
		config.Etcd.External = &kubeadmExternalEtcd{CAFile: pkiDir + "/etcd/ca.crt",
			CertFile: pkiDir + "/apiserver-etcd-client.crt", KeyFile: pkiDir + "/apiserver-etcd-client.key"}
		for _, member := range r.with(v1alpha1.RoleEtcd) {
			config.Etcd.External.Endpoints = append(config.Etcd.External.Endpoints, urlOf(member.primary(), etcdClientPort))
		}
	}
	if spec.Network.Proxy == v1alpha1.ProxyNone {
		config.Proxy = &kubeadmDisabled{true}
	}
	// kubeadm gives up on a release of CoreDNS that it does not know, and ours is newer than any that it knows.
	config.DNS = &kubeadmDisabled{true}
	return encodeConfig(config)
}

func rbacType(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: rbac.SchemeGroupVersion.String(), Kind: kind}
}

func coreType(kind string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: "v1", Kind: kind} }

func configMap(namespace, name string, data, labels map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{TypeMeta: coreType("ConfigMap"), ObjectMeta: objectMeta(namespace, name, labels), Data: data}
}

func readConfigMap(namespace, role, name string) *rbac.Role {
	return &rbac.Role{TypeMeta: rbacType("Role"), ObjectMeta: objectMeta(namespace, role, nil), Rules: []rbac.PolicyRule{{
		Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{name}}}}
}

func bindRole(namespace, role string, subjects ...rbac.Subject) *rbac.RoleBinding {
	return &rbac.RoleBinding{TypeMeta: rbacType("RoleBinding"), ObjectMeta: objectMeta(namespace, role, nil), Subjects: subjects,
		RoleRef: rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "Role", Name: role}}
}

func bindClusterRole(name, role string, subjects ...rbac.Subject) *rbac.ClusterRoleBinding {
	return &rbac.ClusterRoleBinding{TypeMeta: rbacType("ClusterRoleBinding"), ObjectMeta: objectMeta("", name, nil), Subjects: subjects,
		RoleRef: rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: role}}
}

func group(name string) rbac.Subject {
	return rbac.Subject{APIGroup: rbac.GroupName, Kind: rbac.GroupKind, Name: name}
}

func user(name string) rbac.Subject {
	return rbac.Subject{APIGroup: rbac.GroupName, Kind: rbac.UserKind, Name: name}
}

func account(namespace, name string) rbac.Subject {
	return rbac.Subject{Kind: rbac.ServiceAccountKind, Namespace: cmp.Or(namespace, kubeSystem), Name: name}
}
