// Package kube turns a Cluster, its groups and their machines into what every node must have and what the
// cluster itself must contain: files, systemd units, static pods, certificate requests, kubeconfigs, routes,
// API objects, and the phases in which a node brings all that up. It is pure: the same input gives the same
// plan, and nothing here touches a node, a key or the network.
//
// File layout, names, labels and flags are kubeadm's, so that a cluster can be taken over with plain kubeadm.
// Where Coldrack differs, the difference and its reason stand in the test that compares both.
//
// A plan contains no secret. What must be secret is named (SecretRef) and put in place by whoever delivers
// the plan to a node; private keys are made on the nodes from a CertificateRequest.
package kube

import (
	"io/fs"
	"net/netip"

	"coldrack.dev/api/v1alpha1"
	corev1 "k8s.io/api/core/v1"
)

// Paths on a node. They are kubeadm's.
const (
	kubernetesDir = "/etc/kubernetes"
	pkiDir        = "/etc/kubernetes/pki"
	manifestsDir  = "/etc/kubernetes/manifests"
	// apiserverDir holds what configures the API server and is mounted into it. kubeadm has nothing like it.
	apiserverDir = "/etc/kubernetes/apiserver"
	kubeletDir   = "/var/lib/kubelet"
	etcdDataDir  = "/var/lib/etcd"
	auditLogDir  = "/var/log/kubernetes"
	// agentPKIDir holds the certificates that end up inside kubeconfigs, apart from kubeadm's own files.
	agentPKIDir = "/var/lib/coldrack/kubernetes"
)

// File modes, as the CIS benchmark for Kubernetes wants them.
const (
	modeSecret fs.FileMode = 0o600
	modePublic fs.FileMode = 0o644
	modeDir    fs.FileMode = 0o700
)

// Ports that are the same in every cluster.
const (
	etcdClientPort  = 2379
	etcdPeerPort    = 2380
	etcdMetricsPort = 2381
	managerPort     = 10257
	schedulerPort   = 10259
)

// SecretRef names content that is not part of a plan and goes to control-plane machines only.
type SecretRef string

const (
	// SecretServiceAccountKey is the PEM private key that signs service-account tokens.
	SecretServiceAccountKey SecretRef = "service-account-key"
	// SecretEncryptionConfig is the EncryptionConfiguration with its keys; EncryptionConfig writes it.
	SecretEncryptionConfig SecretRef = "encryption-config"
)

// File is a file, folder or link on a node, owned by root.
type File struct {
	Path    string
	Mode    fs.FileMode // with fs.ModeDir for a folder
	Content []byte
	// Secret names the content where Content must not be part of the plan.
	Secret SecretRef
	// Link is the target of a symbolic link.
	Link string
	// Once: written only where there is nothing; the node changes it by itself afterwards.
	Once bool
	// Soft: a change of it interrupts nothing, and it may follow other nodes. It changes on all nodes at once.
	Soft bool
}

// Unit is a systemd unit that is enabled and started. Content is empty where the unit comes with a package.
type Unit struct {
	Name    string
	Content []byte
	// DropIns are the contents of NAME.d by file name.
	DropIns map[string][]byte
}

// StaticPod is a pod that the kubelet runs from a file.
type StaticPod struct {
	Name string
	File File
	Pod  corev1.Pod
}

// Route sends packets for a network to another node.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// ServiceRoute makes a service network reachable from the node's own network, by the interface that has the address
// Source; see docs/adr/0011-service-networks-have-a-route.md.
type ServiceRoute struct {
	To     netip.Prefix
	Source netip.Addr
}

// LoadBalancer is the node's own way to all API servers.
type LoadBalancer struct {
	Listen   netip.AddrPort
	Backends []netip.AddrPort
}

// NodePlan is what one machine must have. Lists are sorted, so that two plans can be compared.
type NodePlan struct {
	Machine  string
	NodeName string
	Version  string
	Roles    []v1alpha1.Role
	// Address is the node's primary address.
	Address netip.Addr

	Files        []File
	Units        []Unit
	StaticPods   []StaticPod
	Certificates []CertificateRequest
	Kubeconfigs  []Kubeconfig
	// Routes and ServiceRoutes are kept by the agent; it owns every route of its protocol number.
	Routes        []Route
	ServiceRoutes []ServiceRoute
	LoadBalancer  LoadBalancer
	// Labels and Taints of the Node object. A kubelet may not give itself labels of the node-role domain, so
	// the server sets them.
	Labels map[string]string
	Taints []corev1.Taint
	// PodCIDRs of the Node object, also set by the server.
	PodCIDRs []netip.Prefix
	Phases   []Phase
}

// Plan is what a whole cluster must have.
type Plan struct {
	// Nodes by machine name.
	Nodes map[string]NodePlan
	// Endpoint is the URL of the API for people and machines outside.
	Endpoint    string
	Authorities []AuthoritySpec
	// Objects in the order in which they are applied.
	Objects []Object
	// Requirements that the imported bundles must fulfil.
	Requirements Requirements
}

// Machine is a machine of the cluster, as far as its plan depends on it.
type Machine struct {
	// Name of the Machine object.
	Name string
	// Hostname is the name of the node.
	Hostname string
	// Group is the name of its MachineGroup.
	Group string
	// Addresses of the node, at most one of each family.
	Addresses []netip.Addr
	// Interface that carries the addresses. Only a virtual IP needs to know it.
	Interface string
	// Version that the machine is to run. Default: the cluster's. It differs during an upgrade.
	Version string
	// EtcdVersion that its member is to run. Default: the one that belongs to Version. It differs during an upgrade, too.
	EtcdVersion string
	// Memory in bytes, 0 when unknown. What the kubelet reserves depends on it.
	Memory int64
	// Labels of the Node object in addition to the group's, for example its rack.
	Labels map[string]string
	// RegistryURL is where this machine reaches Registry. Default: Registry.URL.
	RegistryURL string
	// PodCIDRs and Etcd were decided when the machine came into the cluster; see Assign. A machine with role etcd that has no Etcd
	// yet joins as a node first: without etcd and control plane, until its member was added to those that run.
	PodCIDRs []netip.Prefix
	Etcd     *v1alpha1.EtcdMember
}

// Registry is a content store that speaks the OCI distribution protocol.
type Registry struct {
	// URL without path, for example https://10.20.0.1:8443.
	URL string
	// CA is a PEM bundle; empty for plain HTTP or publicly trusted certificates.
	CA []byte
	// Local is where each node's agent gives what it has by digest, asked before URL; empty: nowhere.
	Local string
}

// Input is everything that a cluster's plan depends on.
type Input struct {
	Cluster  *v1alpha1.Cluster
	Groups   []v1alpha1.MachineGroup
	Machines []Machine
	// Authorities are the PEM certificates of the cluster's authorities that are believed: more than one of a name while it is rotated.
	Authorities map[Authority][]byte
	// Issuers tell which of them signs.
	Issuers map[Authority]string
	// AuthorityNumber is the newest AuthorityKubernetes that the pods of the cluster's own objects know, counted from 1. With another one
	// they are started anew, because they read it once.
	AuthorityNumber int
	// EncryptionKeys are the names of the keys that Secrets are encrypted with; the first encrypts.
	EncryptionKeys []string
	// ServiceAccountKeys are the PEM public keys that service-account tokens are verified with.
	ServiceAccountKeys []byte
	// NoNameservers: no machine has a DNS server to ask for names outside the cluster.
	NoNameservers bool
	// Registry is Coldrack's own content store. Without it, nodes pull from wherever images come from.
	Registry *Registry
}
