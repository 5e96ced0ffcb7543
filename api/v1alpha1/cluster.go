package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Cluster is a Kubernetes cluster. Its machines come from the MachineGroups that name it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=kc,categories=coldrack
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.spec.version`
// +kubebuilder:printcolumn:name="Topology",type=string,JSONPath=`.spec.topology`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Nodes",type=string,JSONPath=`.status.nodesReady`
// +kubebuilder:printcolumn:name="Endpoint",type=string,JSONPath=`.status.endpoint`
// +kubebuilder:printcolumn:name="Network",type=string,JSONPath=`.spec.network.plugin`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Cluster struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ClusterSpec   `json:"spec"`
	Status ClusterStatus `json:"status,omitempty"`
}

// ClusterList is a list of Clusters.
//
// +kubebuilder:object:root=true
type ClusterList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Cluster `json:"items"`
}

// Topology is the architecture that a cluster's groups must keep to.
// +kubebuilder:validation:Enum=laptop;small;development;production;custom
type Topology string

const (
	// TopologyLaptop is one machine that is everything.
	TopologyLaptop Topology = "laptop"
	// TopologySmall is three to five machines, each with etcd, control plane and workloads.
	TopologySmall Topology = "small"
	// TopologyDevelopment is one machine with etcd and control plane, and any number of workers.
	TopologyDevelopment Topology = "development"
	// TopologyProduction is three or five machines with etcd only, two or more with the control plane
	// only, and workers.
	TopologyProduction Topology = "production"
	// TopologyCustom is whatever the groups say, as long as it can work.
	TopologyCustom Topology = "custom"
)

// ClusterSpec is what a person wants of a Kubernetes cluster.
type ClusterSpec struct {
	// Version of Kubernetes, for example v1.37.2. The imported bundles must contain it.
	// +kubebuilder:validation:Pattern=`^v1\.[0-9]+\.[0-9]+$`
	Version string `json:"version"`
	// Topology that the groups must keep to. What contradicts it is refused.
	// +optional
	// +kubebuilder:default=custom
	Topology Topology `json:"topology,omitempty"`
	// Endpoint at which people and machines outside the cluster reach the API.
	// +optional
	// +kubebuilder:default={}
	Endpoint ClusterEndpoint `json:"endpoint,omitempty"`
	// Network of pods and services.
	// +optional
	// +kubebuilder:default={}
	Network ClusterNetwork `json:"network,omitempty"`
	// PKI says how keys and certificates are made.
	// +optional
	// +kubebuilder:default={}
	PKI ClusterPKI `json:"pki,omitempty"`
	// +optional
	Etcd ClusterEtcd `json:"etcd,omitempty"`
	// Security beyond what is always on.
	// +optional
	// +kubebuilder:default={}
	Security ClusterSecurity `json:"security,omitempty"`
	// +optional
	APIServer APIServerSpec `json:"apiServer,omitempty"`
	// +optional
	ControllerManager ComponentSpec `json:"controllerManager,omitempty"`
	// +optional
	Scheduler ComponentSpec `json:"scheduler,omitempty"`
	// Kubelet of every machine; groups add to it.
	// +optional
	Kubelet KubeletSpec `json:"kubelet,omitempty"`
	// Registries says where nodes pull images of other registries from. Coldrack's own content store
	// always comes first.
	// +optional
	// +listType=map
	// +listMapKey=host
	Registries []RegistryMirror `json:"registries,omitempty"`
	// Upgrade says how changes roll through the cluster.
	// +optional
	// +kubebuilder:default={}
	Upgrade UpgradeSpec `json:"upgrade,omitempty"`
	// MaintenanceWindows are the times in which nodes that work are taken for changes, upgrades, reboots and departures. None: at any
	// time. A node that was taken is finished after the window has closed; etcd is mended and machines join at any time.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	MaintenanceWindows []MaintenanceWindow `json:"maintenanceWindows,omitempty"`
	// Rotation replaces one of the cluster's authorities or keys, in stages (coldrack cluster rotate).
	// +optional
	Rotation *ClusterRotation `json:"rotation,omitempty"`
	// Paused stops every controller of this cluster after the step that is running.
	// +optional
	Paused bool `json:"paused,omitempty"`
}

// ClusterEndpoint is the address of the cluster's API for the outside. Nodes do not need it: each has a
// local load balancer over all API servers.
type ClusterEndpoint struct {
	// Host is a DNS name or an address. Default: the virtual IP, or else the first control-plane
	// machine's address.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Host string `json:"host,omitempty"`
	// Port of the API servers.
	// +optional
	// +kubebuilder:default=6443
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`
	// VirtualIP that one of the control-plane machines carries at any time.
	// +optional
	VirtualIP *VirtualIP `json:"virtualIP,omitempty"`
	// LocalPort is the port of the load balancer that every node has on its loopback address.
	// +optional
	// +kubebuilder:default=7445
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	LocalPort int32 `json:"localPort,omitempty"`
	// ExtraSANs are further names and addresses in the API servers' certificates.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	ExtraSANs []string `json:"extraSANs,omitempty"`
}

// VirtualIP is an address that moves between control-plane machines by VRRP (RFC 9568).
type VirtualIP struct {
	// Address must lie in the control-plane machines' subnet and be nobody else's.
	// +kubebuilder:validation:MaxLength=64
	Address string `json:"address"`
	// RouterID tells several virtual addresses on one segment apart (VRID).
	// +optional
	// +kubebuilder:default=64
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=255
	RouterID int32 `json:"routerID,omitempty"`
}

// NetworkPlugin carries pod traffic between nodes.
// +kubebuilder:validation:Enum=routed;flannel;none
type NetworkPlugin string

const (
	// NetworkRouted sends pod traffic unencapsulated; every node has a route to every other node's pods.
	// The nodes must share their segments.
	NetworkRouted NetworkPlugin = "routed"
	// NetworkFlannel carries pod traffic in VXLAN, so that nodes may be in different subnets.
	NetworkFlannel NetworkPlugin = "flannel"
	// NetworkNone leaves the network to the user; nodes stay NotReady until there is one.
	NetworkNone NetworkPlugin = "none"
)

// ProxyMode is how kube-proxy implements services.
// +kubebuilder:validation:Enum=nftables;iptables;none
type ProxyMode string

const (
	ProxyNFTables ProxyMode = "nftables"
	ProxyIPTables ProxyMode = "iptables"
	// ProxyNone installs no kube-proxy, for networks that replace it.
	ProxyNone ProxyMode = "none"
)

// ClusterNetwork is the IP plan inside the cluster.
//
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.podCIDRs) || (has(self.podCIDRs) && self.podCIDRs == oldSelf.podCIDRs)",message="podCIDRs cannot be changed: every running pod has an address of them"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.serviceCIDRs) || (has(self.serviceCIDRs) && self.serviceCIDRs == oldSelf.serviceCIDRs)",message="serviceCIDRs cannot be changed: every service has an address of them"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.dnsDomain) || (has(self.dnsDomain) && self.dnsDomain == oldSelf.dnsDomain)",message="dnsDomain cannot be changed: certificates and running pods contain it"
type ClusterNetwork struct {
	// PodCIDRs, at most one of each IP family; the first is the primary family. Default 10.244.0.0/16.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MaxLength=64
	PodCIDRs []string `json:"podCIDRs,omitempty"`
	// ServiceCIDRs in the same families and order. Default 10.96.0.0/16.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MaxLength=64
	ServiceCIDRs []string `json:"serviceCIDRs,omitempty"`
	// NodeMaskIPv4 is the prefix length of one node's pods in IPv4. Default 24.
	// +optional
	// +kubebuilder:validation:Minimum=8
	// +kubebuilder:validation:Maximum=30
	NodeMaskIPv4 int32 `json:"nodeMaskIPv4,omitempty"`
	// NodeMaskIPv6 is the prefix length of one node's pods in IPv6. Default 64.
	// +optional
	// +kubebuilder:validation:Minimum=16
	// +kubebuilder:validation:Maximum=126
	NodeMaskIPv6 int32 `json:"nodeMaskIPv6,omitempty"`
	// DNSDomain of services. Default cluster.local.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	DNSDomain string `json:"dnsDomain,omitempty"`
	// +optional
	// +kubebuilder:default=routed
	Plugin NetworkPlugin `json:"plugin,omitempty"`
	// Proxy is the mode of kube-proxy.
	// +optional
	// +kubebuilder:default=nftables
	Proxy ProxyMode `json:"proxy,omitempty"`
	// MTU of the machines' network. Default 1500. Pods get it less what the plugin needs for itself.
	// +optional
	// +kubebuilder:validation:Minimum=576
	// +kubebuilder:validation:Maximum=9216
	MTU int32 `json:"mtu,omitempty"`
	// LoadBalancer gives Services of type LoadBalancer addresses, and has nodes answer for them on the machines' segment.
	// Without it nobody does.
	// +optional
	LoadBalancer *ClusterLoadBalancer `json:"loadBalancer,omitempty"`
}

// ClusterLoadBalancer says which addresses Services of type LoadBalancer get, and which nodes answer for them.
type ClusterLoadBalancer struct {
	// Pools of addresses. No machine and no DHCP server may give them to anybody else.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Pools []LoadBalancerPool `json:"pools"`
	// NodeSelector chooses by labels the nodes that answer. Default: all with the role worker.
	// +optional
	// +kubebuilder:validation:MaxProperties=16
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	// BGP is the routers that are told of the addresses of pools with announce: bgp.
	// +optional
	BGP *LoadBalancerBGP `json:"bgp,omitempty"`
}

// LoadBalancerBGP says which routers the nodes tell by BGP where Services' addresses are. Each node that answers for an address
// opens a session with each router and announces a route of the address alone (/32 or /128) to itself.
type LoadBalancerBGP struct {
	// LocalASN is the autonomous system of the nodes, 1 to 4294967294. Private ones are 64512 to 65534 and 4200000000 to 4294967294.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967294
	LocalASN int64 `json:"localASN"`
	// Peers are the routers. Addresses of a family are told to peers of that family.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Peers []BGPPeer `json:"peers"`
}

// BGPPeer is a router that nodes have a BGP session with. The nodes open it.
type BGPPeer struct {
	// Name by which logs and events call it.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
	// Address of the router, of IPv4 or IPv6, not link-local.
	// +kubebuilder:validation:MaxLength=45
	Address string `json:"address"`
	// Port that it listens on. Default 179.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`
	// ASN is the router's autonomous system. The same as localASN makes the session an internal one (iBGP).
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4294967294
	ASN int64 `json:"asn"`
	// HoldTime is the silence after which the router takes a node for gone: whole seconds from 3s to 18h12m15s. Default 3s, the least
	// that BGP has. A router that wants less gets it; one that refuses short ones needs a longer one here.
	// +optional
	HoldTime *metav1.Duration `json:"holdTime,omitempty"`
	// Hops that the router is away, of another autonomous system (eBGP multihop). Default 1: it is on a segment of the nodes.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=255
	Hops int32 `json:"hops,omitempty"`
	// PasswordKey is the key in the cluster's Secret kube-system/coldrack-loadbalancer-bgp whose value protects the session (TCP MD5
	// signature, at most 80 bytes). While it is not there, there is no session. Default: no password.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	PasswordKey string `json:"passwordKey,omitempty"`
}

// LoadBalancerAnnounce is how the network learns which nodes answer for an address.
// +kubebuilder:validation:Enum=segment;bgp
type LoadBalancerAnnounce string

const (
	// AnnounceSegment has one node answer ARP and neighbour solicitations for an address.
	AnnounceSegment LoadBalancerAnnounce = "segment"
	// AnnounceBGP has all nodes that may answer tell routers so, which spread connections over them.
	AnnounceBGP LoadBalancerAnnounce = "bgp"
)

// LoadBalancerPool is addresses for Services.
type LoadBalancerPool struct {
	// Name by which Services may ask for it.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
	// Addresses, of IPv4 or IPv6: networks (10.20.0.192/27, of which every address is given), ranges "first-last", single ones.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=100
	Addresses []string `json:"addresses"`
	// OnRequest keeps the pool for Services that name it, or one of its addresses.
	// +optional
	OnRequest bool `json:"onRequest,omitempty"`
	// Announce is how the network learns which nodes answer: segment (ARP and neighbour discovery; one node for each address) or
	// bgp (routes to all nodes that may answer). Default segment.
	// +optional
	Announce LoadBalancerAnnounce `json:"announce,omitempty"`
	// Communities of the pool's routes, with announce: bgp. "ASN:VALUE" of 16 bits each, "ASN:VALUE:VALUE" of 32 bits each (large
	// communities), no-export or no-advertise.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=32
	Communities []string `json:"communities,omitempty"`
}

// KeyAlgorithm of a cluster's keys.
// +kubebuilder:validation:Enum=ECDSA-P256;ECDSA-P384;RSA-2048;RSA-3072;RSA-4096
type KeyAlgorithm string

// DefaultKeyAlgorithm is fast on small machines and understood by every client of Kubernetes.
const DefaultKeyAlgorithm KeyAlgorithm = "ECDSA-P256"

// ClusterPKI says how keys and certificates are made. Authorities' keys never leave the server.
type ClusterPKI struct {
	// +optional
	// +kubebuilder:default=ECDSA-P256
	KeyAlgorithm KeyAlgorithm `json:"keyAlgorithm,omitempty"`
	// CertificateTTL is how long a certificate is valid. Default 8760h. It is renewed when two thirds of it
	// have passed, and whatever uses it is restarted where it cannot reload.
	// +optional
	CertificateTTL *metav1.Duration `json:"certificateTTL,omitempty"`
	// AuthorityTTL is how long the authorities are valid. Default 87600h.
	// +optional
	AuthorityTTL *metav1.Duration `json:"authorityTTL,omitempty"`
}

// ClusterEtcd configures the cluster's etcd.
type ClusterEtcd struct {
	// AllowEvenMembers permits an even number of members, which tolerates no more failures than one member
	// fewer and makes losing quorum likelier.
	// +optional
	AllowEvenMembers bool `json:"allowEvenMembers,omitempty"`
	// QuotaBackend is the largest size of the database in bytes. Default 2 GiB, etcd's own.
	// +optional
	// +kubebuilder:validation:Minimum=0
	QuotaBackend int64 `json:"quotaBackend,omitempty"`
	// ExtraArgs are flags of etcd without dashes. Operators may set sizes, limits and periods, administrators more; what Coldrack
	// decides and what is on no list is refused.
	// +optional
	ExtraArgs map[string]string `json:"extraArgs,omitempty"`
	// Backup says when snapshots are taken and how many are kept.
	// +optional
	Backup EtcdBackup `json:"backup,omitempty"`
}

// EtcdBackup says when snapshots of a cluster's etcd are taken, and where they are kept.
type EtcdBackup struct {
	// Every is the time between two backups. Default 6h. 0s takes none by itself.
	// +optional
	Every *metav1.Duration `json:"every,omitempty"`
	// Keep is how many backups stay; the oldest go first. Default 28, which is a week of them.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	Keep int32 `json:"keep,omitempty"`
	// Folder on the server to keep them in, such as a mount of another machine. It must exist and hold a file named .coldrack-backups, so
	// that a missing mount is noticed. Default: backups/ in the server's data folder. Only administrators may set it.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Folder string `json:"folder,omitempty"`
}

// ClusterSecurity opens or closes what is not the same for every cluster.
type ClusterSecurity struct {
	// PodSecurity is the level enforced in every namespace but kube-system.
	// +optional
	// +kubebuilder:default=baseline
	// +kubebuilder:validation:Enum=privileged;baseline;restricted
	PodSecurity string `json:"podSecurity,omitempty"`
	// AuditPolicy replaces the default audit policy: an audit.k8s.io/v1 Policy.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Schemaless
	AuditPolicy *runtime.RawExtension `json:"auditPolicy,omitempty"`
	// TokenDiscovery lets machines that Coldrack does not know find the cluster with nothing but a bootstrap
	// token, as "kubeadm join --token" does. The ConfigMap cluster-info is then readable without
	// credentials. Without it, only health endpoints are.
	// +optional
	TokenDiscovery bool `json:"tokenDiscovery,omitempty"`
}

// ComponentSpec adds to what Coldrack decides for a component.
type ComponentSpec struct {
	// ExtraArgs are flags without dashes. Operators may set sizes, limits and periods, administrators more; what Coldrack
	// decides and what is on no list is refused.
	// +optional
	ExtraArgs map[string]string `json:"extraArgs,omitempty"`
}

// APIServerSpec adds to what Coldrack decides for the API servers.
type APIServerSpec struct {
	ComponentSpec `json:",inline"`
	// Authentication is an apiserver.config.k8s.io/v1 AuthenticationConfiguration. Only its "jwt" is taken, for
	// example for an OpenID Connect provider; who may be anonymous is decided by security.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Schemaless
	Authentication *runtime.RawExtension `json:"authentication,omitempty"`
}

// KubeletSpec adds to what Coldrack decides for kubelets.
type KubeletSpec struct {
	// Config is merged over the rendered KubeletConfiguration (kubelet.config.k8s.io/v1beta1). Fields that
	// security or the cluster's networks rest on are refused.
	// +optional
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Schemaless
	Config *runtime.RawExtension `json:"config,omitempty"`
}

// RegistryMirror says where images of one registry are pulled from.
type RegistryMirror struct {
	// Host of the image names, for example docker.io.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Host string `json:"host"`
	// Endpoints are URLs, tried in order after Coldrack's own content store.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Endpoints []string `json:"endpoints"`
	// CA is a PEM bundle that the endpoints' certificates are verified with.
	// +optional
	CA string `json:"ca,omitempty"`
}

// UpgradeStrategy says when changed machines are rolled.
// +kubebuilder:validation:Enum=Rolling;Manual
type UpgradeStrategy string

const (
	// UpgradeRolling rolls by itself, control plane first, within each group's budget.
	UpgradeRolling UpgradeStrategy = "Rolling"
	// UpgradeManual changes no node that runs until it is Rolling. Nodes join and leave all the same.
	UpgradeManual UpgradeStrategy = "Manual"
)

// UpgradeSpec says how changes roll through the cluster.
type UpgradeSpec struct {
	// +optional
	// +kubebuilder:default=Rolling
	Strategy UpgradeStrategy `json:"strategy,omitempty"`
	// DrainTimeout after which a node that cannot be drained stops the roll and the blocking pods are named.
	// Default 10m.
	// +optional
	DrainTimeout *metav1.Duration `json:"drainTimeout,omitempty"`
	// AllowDowntime permits rolling a control plane of one machine, during which the API does not answer.
	// +optional
	AllowDowntime bool `json:"allowDowntime,omitempty"`
}

// ClusterFinalizer keeps a deleted Cluster until none of its machines runs any more, because its status is
// the only record of what was decided for them.
const ClusterFinalizer = "coldrack.dev/cluster"

// AnnotationAbandon with value "true" lets a deleted Cluster go although machines of it may still run.
const AnnotationAbandon = "coldrack.dev/abandon"

// AnnotationAbort with value "true" on a Cluster takes no further node, and brings nodes in hand back to what they had.
const AnnotationAbort = "coldrack.dev/abort"

// AnnotationRetry on a Cluster, with another value than before, has a change tried again that failed.
const AnnotationRetry = "coldrack.dev/retry"

// AnnotationPutBack on a Cluster, with another value than before, lets it be resumed although somebody changed files of its nodes
// while it was paused. They are then as before.
const AnnotationPutBack = "coldrack.dev/put-back"

// Conditions of a Cluster.
const (
	// ConditionBroughtUp: every node was ready at one time. It never becomes false again.
	ConditionBroughtUp = "BroughtUp"
	// ConditionValid: the cluster as it is written can be carried out.
	ConditionValid = "Valid"
	// ConditionBackedUp: the newest backup of etcd is not older than two periods.
	ConditionBackedUp = "BackedUp"
	// ConditionBackupCopied: a copy of the newest backup is where the server keeps copies. Absent where it keeps none.
	ConditionBackupCopied = "BackupCopied"
)

// Steps of a cluster's bring-up, in order.
const (
	ClusterStepMachines     = "machines"      // its machines are installed
	ClusterStepEtcd         = "etcd"          // every etcd member is part of a majority
	ClusterStepControlPlane = "control-plane" // every API server answers
	ClusterStepObjects      = "objects"       // what every cluster contains was applied
	ClusterStepNodes        = "nodes"         // every node is ready
	ClusterStepAddons       = "addons"        // the pods of these objects are ready: network, proxy, DNS
)

// ClusterPhase is how far a cluster has come.
type ClusterPhase string

const (
	// ClusterPending: waits for machines.
	ClusterPending ClusterPhase = "Pending"
	// ClusterInvalid: cannot be carried out as it is written; nodes keep what they have.
	ClusterInvalid ClusterPhase = "Invalid"
	// ClusterBringUp: its machines become nodes for the first time.
	ClusterBringUp ClusterPhase = "BringUp"
	// ClusterReady: every node is ready.
	ClusterReady ClusterPhase = "Ready"
	// ClusterRolling: a change is on its way through the nodes.
	ClusterRolling ClusterPhase = "Rolling"
	// ClusterDegraded: was Ready, and a node is not.
	ClusterDegraded ClusterPhase = "Degraded"
	// ClusterReleasing: was deleted and waits for its machines to be released.
	ClusterReleasing ClusterPhase = "Releasing"
)

// ClusterStatus is what is known of a cluster.
type ClusterStatus struct {
	// +optional
	Phase ClusterPhase `json:"phase,omitempty"`
	// Message for a person: why the cluster is in this phase, and what to do if it is stuck.
	// +optional
	Message string `json:"message,omitempty"`
	// Endpoint is the URL of the API.
	// +optional
	Endpoint string `json:"endpoint,omitempty"`
	// Version that all control-plane machines run.
	// +optional
	Version string `json:"version,omitempty"`
	// NodesReady is "ready/wanted".
	// +optional
	NodesReady string `json:"nodesReady,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Nodes are the machines that belong to the cluster, with what was decided for each once and for all.
	// +optional
	// +listType=map
	// +listMapKey=machine
	Nodes []ClusterNode `json:"nodes,omitempty"`
	// ForeignNodes are machines that joined by other means, as with "kubeadm join", and the networks that their
	// pods were given.
	// +optional
	// +listType=map
	// +listMapKey=name
	ForeignNodes []ForeignNode `json:"foreignNodes,omitempty"`
	// Steps of the first bring-up, in order.
	// +optional
	// +listType=atomic
	Steps []Step `json:"steps,omitempty"`
	// PlannedSpec stands for what was written of the cluster and its groups when Work was last planned. Until it is what is written
	// now, Work speaks of what was written before.
	// +optional
	PlannedSpec string `json:"plannedSpec,omitempty"`
	// Work is what is done to the cluster now, after its first bring-up.
	// +optional
	Work *ClusterWork `json:"work,omitempty"`
	// History are the last steps that have ended, the newest last.
	// +optional
	// +listType=atomic
	History []ClusterWorkStep `json:"history,omitempty"`
	// Rotation is the rotation of an authority or key that is in hand, or the last one.
	// +optional
	Rotation *RotationStatus `json:"rotation,omitempty"`
	// PastRotations are ids of rotations that have ended.
	// +optional
	// +listType=atomic
	PastRotations []string `json:"pastRotations,omitempty"`
	// Addons that it has, Coldrack's own first.
	// +optional
	// +listType=map
	// +listMapKey=name
	Addons []ClusterAddon `json:"addons,omitempty"`
	// Failure has stopped all changes.
	// +optional
	Failure *ClusterFailure `json:"failure,omitempty"`
	// Backup is how the backups of its etcd stand.
	// +optional
	Backup *BackupStatus `json:"backup,omitempty"`
	// Restore is the last restore of its etcd.
	// +optional
	Restore *RestoreStatus `json:"restore,omitempty"`
	// BackupWanted is since when an upgrade waits for a backup that is younger.
	// +optional
	BackupWanted *metav1.Time `json:"backupWanted,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ClusterNode records what was decided for a machine when it came into the cluster. Rendering the machine
// again must give the same, whatever has happened to the others since.
type ClusterNode struct {
	Machine string `json:"machine"`
	Group   string `json:"group"`
	// NodeName is the name of the Node object and of the machine's host.
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// Addresses of the node, the primary one first.
	// +optional
	// +listType=atomic
	Addresses []string `json:"addresses,omitempty"`
	// Version of Kubernetes that the machine is to run.
	// +optional
	Version string `json:"version,omitempty"`
	// EtcdVersion that its member is to run. Default: the one that belongs to Version.
	// +optional
	EtcdVersion string `json:"etcdVersion,omitempty"`
	// PodCIDRs of the node, one of each family.
	// +optional
	// +listType=atomic
	PodCIDRs []string `json:"podCIDRs,omitempty"`
	// Etcd is set on machines with an etcd member.
	// +optional
	Etcd *EtcdMember `json:"etcd,omitempty"`
	// Hand is set while the node is taken for an operation.
	// +optional
	Hand *NodeHand `json:"hand,omitempty"`
	// Prefetch is set from when the node was told to fetch what an upgrade needs until it runs that version.
	// +optional
	Prefetch *WantedPrefetch `json:"prefetch,omitempty"`
	// Leaving is why the node is to leave the cluster, where that was decided for it by name.
	// +optional
	Leaving string `json:"leaving,omitempty"`
	// Replacing is why a spare takes the node's place. The node leaves when that has joined.
	// +optional
	Replacing string `json:"replacing,omitempty"`
	// LearnerFailures is how often its member was added to etcd and had to be removed again.
	// +optional
	LearnerFailures int32 `json:"learnerFailures,omitempty"`
	// Remedies were tried since the node was last healthy, the newest last.
	// +optional
	// +listType=atomic
	Remedies []NodeRemedy `json:"remedies,omitempty"`
	// Rebooted is the last reboot that the node was told to make.
	// +optional
	Rebooted *NodeReboot `json:"rebooted,omitempty"`
	// RebootRequest is the reboot that the annotation coldrack.dev/reboot of the Node asks for.
	// +optional
	RebootRequest *RebootStatus `json:"rebootRequest,omitempty"`
	// RebootState says for what a reboot that is due waits, or how far it is.
	// +optional
	RebootState string `json:"rebootState,omitempty"`

	// Ready is what the cluster's own API says of the node.
	// +optional
	Ready bool `json:"ready,omitempty"`
	// ReadyChangedAt is when Ready became what it is.
	// +optional
	ReadyChangedAt *metav1.Time `json:"readyChangedAt,omitempty"`
	// Message says why the node is not ready.
	// +optional
	Message string `json:"message,omitempty"`
}

// ForeignNode is a node that is none of Coldrack's machines.
type ForeignNode struct {
	Name string `json:"name"`
	// +listType=atomic
	PodCIDRs []string `json:"podCIDRs"`
}

// EtcdMember records how a member came into its cluster.
type EtcdMember struct {
	// InitialCluster is "name=peerURL" of every member that existed when this one started, itself included.
	// +listType=atomic
	InitialCluster []string `json:"initialCluster"`
	// Existing is true for a member that was added to a running etcd cluster.
	// +optional
	Existing bool `json:"existing,omitempty"`
	// Coming is true until it has its vote. Until then its machine takes what it is to have without waiting for its turn.
	// +optional
	Coming bool `json:"coming,omitempty"`
	// AddedAt is when it was added.
	// +optional
	AddedAt *metav1.Time `json:"addedAt,omitempty"`
}

// Role is what a machine does in a cluster.
// +kubebuilder:validation:Enum=etcd;control-plane;worker
type Role string

const (
	RoleEtcd         Role = "etcd"
	RoleControlPlane Role = "control-plane"
	RoleWorker       Role = "worker"
)

// MachineGroup is a number of like machines of one cluster.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:subresource:scale:specpath=.spec.replicas,statuspath=.status.replicas
// +kubebuilder:resource:scope=Cluster,shortName=mg,categories=coldrack
// +kubebuilder:printcolumn:name="Cluster",type=string,JSONPath=`.spec.cluster`
// +kubebuilder:printcolumn:name="Roles",type=string,JSONPath=`.spec.roles`
// +kubebuilder:printcolumn:name="Wanted",type=integer,JSONPath=`.spec.replicas`
// +kubebuilder:printcolumn:name="Current",type=integer,JSONPath=`.status.replicas`
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.readyReplicas`
// +kubebuilder:printcolumn:name="Profile",type=string,JSONPath=`.spec.profile`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type MachineGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   MachineGroupSpec   `json:"spec"`
	Status MachineGroupStatus `json:"status,omitempty"`
}

// MachineGroupList is a list of MachineGroups.
//
// +kubebuilder:object:root=true
type MachineGroupList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MachineGroup `json:"items"`
}

// MachineGroupSpec says which machines a group takes and what they become.
//
// +kubebuilder:validation:XValidation:rule="self.cluster == oldSelf.cluster",message="cluster cannot be changed: release the group's machines and make a new group"
type MachineGroupSpec struct {
	// Cluster that the group belongs to.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Cluster string `json:"cluster"`
	// Selector over the Machines' labels. Empty matches every approved machine that is in no other group.
	// +optional
	Selector metav1.LabelSelector `json:"selector,omitempty"`
	// Replicas is how many machines the group has.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=5000
	Replicas *int32 `json:"replicas,omitempty"`
	// Roles of the group's machines.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=3
	Roles []Role `json:"roles"`
	// Profile that the machines are installed with. Default: each machine's own.
	// +optional
	Profile string `json:"profile,omitempty"`
	// Labels of the nodes.
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
	// Taints of the nodes. Machines without the worker role get a taint of their role in addition.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Taints []Taint `json:"taints,omitempty"`
	// Kubelet adds to the cluster's.
	// +optional
	Kubelet KubeletSpec `json:"kubelet,omitempty"`
	// Rollout is the budget of changes.
	// +optional
	Rollout RolloutBudget `json:"rollout,omitempty"`
	// Remediation brings nodes back that are not ready. It is off by default.
	// +optional
	Remediation RemediationSpec `json:"remediation,omitempty"`
	// WhenRemoved is what becomes of a machine that leaves because replicas was lowered. Both wipe it.
	// +optional
	// +kubebuilder:default=Release
	WhenRemoved RemovedMachine `json:"whenRemoved,omitempty"`
}

// Taint keeps pods away that do not tolerate it.
type Taint struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=316
	Key string `json:"key"`
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Value string `json:"value,omitempty"`
	// +kubebuilder:validation:Enum=NoSchedule;PreferNoSchedule;NoExecute
	Effect string `json:"effect"`
}

// RolloutBudget limits how much of a group may be unavailable during a change.
type RolloutBudget struct {
	// MaxUnavailable machines, a number or a percentage. Default 1. Machines with etcd always roll singly.
	// +optional
	// +kubebuilder:validation:XIntOrString
	MaxUnavailable *intstr.IntOrString `json:"maxUnavailable,omitempty"`
	// MaxSurge is by how many spare machines at a time, a number or a percentage, workers are replaced instead of being changed in place. Groups with etcd or the control
	// plane have none.
	// +optional
	// +kubebuilder:validation:XIntOrString
	MaxSurge *intstr.IntOrString `json:"maxSurge,omitempty"`
	// SkipCanary rolls without trying one machine first.
	// +optional
	SkipCanary bool `json:"skipCanary,omitempty"`
	// HealthyFor is how long a changed machine must be healthy before it counts as done. Default 30s.
	// +optional
	HealthyFor *metav1.Duration `json:"healthyFor,omitempty"`
	// ChangeTimeout is how long a machine may take for a change before it counts as failed. Default 10m.
	// +optional
	ChangeTimeout *metav1.Duration `json:"changeTimeout,omitempty"`
	// PauseBetween two machines, from the end of one to the begin of the next. Default 0s.
	// +optional
	PauseBetween *metav1.Duration `json:"pauseBetween,omitempty"`
	// RollBack brings a machine whose change failed back to what it had, by itself.
	// +optional
	RollBack bool `json:"rollBack,omitempty"`
}

// RemediationSpec says how nodes of a group are brought back that are not ready, by ever stronger means: a reboot by the machine's
// agent, if that answers; a power cycle, if the machine has a BMC; a new installation and a replacement, if they are permitted. One
// node of the group at a time; nothing that would cost etcd's majority or the last API server.
type RemediationSpec struct {
	// +optional
	Enabled bool `json:"enabled,omitempty"`
	// NotReadyFor is how long a node must not have been ready before anything is done. Default 5m.
	// +optional
	NotReadyFor *metav1.Duration `json:"notReadyFor,omitempty"`
	// MaxUnhealthy nodes of the group, a number or a percentage of its replicas. While more are not ready, nothing is done: it is
	// rather the network. Default a third, at least 1.
	// +optional
	// +kubebuilder:validation:XIntOrString
	MaxUnhealthy *intstr.IntOrString `json:"maxUnhealthy,omitempty"`
	// Pause before the next, stronger means for a node, doubled each time. A node that was ready for as long begins anew. Default 10m.
	// +optional
	Pause *metav1.Duration `json:"pause,omitempty"`
	// Reinstall permits to install the machine anew: what is on its system disk is lost.
	// +optional
	Reinstall bool `json:"reinstall,omitempty"`
	// Replace permits a spare machine to take the node's place. The machine is wiped when it boots again.
	// +optional
	Replace bool `json:"replace,omitempty"`
}

// DefaultRemediationPause is that of a group which says none.
const DefaultRemediationPause = 10 * time.Minute

// RemovedMachine is what becomes of a machine that its group has too many.
// +kubebuilder:validation:Enum=Release;Spare
type RemovedMachine string

const (
	// RemovedReleased wipes the machine; somebody has to approve it again.
	RemovedReleased RemovedMachine = "Release"
	// RemovedToSpare installs it anew; any group that it fits may take it.
	RemovedToSpare RemovedMachine = "Spare"
)

// MachineGroupStatus is how far a group has come.
type MachineGroupStatus struct {
	// Replicas is how many machines the group has now.
	// +optional
	Replicas int32 `json:"replicas,omitempty"`
	// +optional
	ReadyReplicas int32 `json:"readyReplicas,omitempty"`
	// Machines of the group, by name.
	// +optional
	// +listType=set
	Machines []string `json:"machines,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// HasRole reports whether the group's machines have a role.
func (g *MachineGroup) HasRole(role Role) bool {
	for _, r := range g.Spec.Roles {
		if r == role {
			return true
		}
	}
	return false
}

// WantedReplicas is spec.replicas or its default.
func (g *MachineGroup) WantedReplicas() int {
	if g.Spec.Replicas == nil {
		return 1
	}
	return int(*g.Spec.Replicas)
}

// Default fills in what a Cluster leaves open. The API server fills in most of it from the CRD; objects
// that were read from a file have not been there.
func (c *Cluster) Default() {
	s := &c.Spec
	setDefault(&s.Topology, TopologyCustom)
	setDefault(&s.Endpoint.Port, 6443)
	setDefault(&s.Endpoint.LocalPort, 7445)
	if s.Endpoint.VirtualIP != nil {
		setDefault(&s.Endpoint.VirtualIP.RouterID, 64)
	}
	n := &s.Network
	if len(n.PodCIDRs) == 0 {
		n.PodCIDRs = []string{"10.244.0.0/16"}
	}
	if len(n.ServiceCIDRs) == 0 {
		n.ServiceCIDRs = []string{"10.96.0.0/16"}
	}
	setDefault(&n.NodeMaskIPv4, 24)
	setDefault(&n.NodeMaskIPv6, 64)
	setDefault(&n.DNSDomain, "cluster.local")
	setDefault(&n.Plugin, NetworkRouted)
	setDefault(&n.Proxy, ProxyNFTables)
	setDefault(&n.MTU, 1500)
	setDefault(&s.PKI.KeyAlgorithm, DefaultKeyAlgorithm)
	setDefault(&s.Security.PodSecurity, "baseline")
	setDefault(&s.Upgrade.Strategy, UpgradeRolling)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
