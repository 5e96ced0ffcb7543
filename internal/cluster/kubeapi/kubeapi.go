package kubeapi

import (
	"crypto"
	"crypto/x509"
	"log/slog"
	"net/netip"
	"time"

	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Options say what a Runner does for its cluster.
type Options struct {
	Target Target
	Wanted Wanted
	// PodCIDRs gives a node that no plan has its pod networks, one of each family, and always the same.
	// It must have recorded them when it returns. nil: such nodes get none.
	PodCIDRs func(node string) ([]netip.Prefix, error)
	// Sign signs a template with the cluster's Kubernetes authority, which sets serial number, issuer and key
	// identifiers, and lets no certificate outlive itself. It returns PEM, leaf first.
	Sign func(template *x509.Certificate, public crypto.PublicKey) ([]byte, error)
	// Report is called with the whole state whenever something of it has changed; not concurrently, and it
	// must return soon and not alter the state.
	Report func(State)
	Log    *slog.Logger
}

// Wanted is what a plan wants of the cluster's API.
type Wanted struct {
	Objects []kube.Object
	// Nodes are the machines of the cluster.
	Nodes []Node
	// Reserved are names and addresses that no foreign node may have: those that API servers answer to. The
	// caller adds the hostnames of machines that are not, or no longer, in this cluster.
	Reserved []string
	// ReservedNetworks are the networks of pods and services, in which no node may have an address.
	ReservedNetworks []netip.Prefix
	// PodSecurity is the level of namespaces that have no label of their own: privileged, baseline or restricted.
	PodSecurity string

	index map[string]*Node
}

// Node is one of the cluster's machines, as a node.
type Node struct {
	Name string
	// Version that the kubelet is to run.
	Version string
	// Addresses that the kubelet may have in its serving certificate. Its only DNS name is Name.
	Addresses []netip.Addr
	Labels    map[string]string
	Taints    []corev1.Taint
	PodCIDRs  []netip.Prefix
}

// State is what a Runner knows of its cluster.
type State struct {
	Cluster string
	// Reachable is true while an API server answers, Server is the one in use.
	Reachable bool
	Server    netip.AddrPort
	// Since is when Reachable became what it is.
	Since time.Time
	// Objects is how far the plan's objects are applied.
	Objects ObjectsState
	// Addons are what the applied objects run in the cluster, in order of name; nil while nobody has looked since the
	// objects were last applied.
	Addons []AddonState
	// UserAddons are people's add-ons, by name; nil while nobody has looked. The map is replaced, never changed.
	UserAddons map[string]addon.State
	// Nodes that are registered, by name; machines whose node is missing are not among them. Nil while nobody has read
	// them. While the API does not answer, they are as it said last.
	Nodes map[string]NodeState
	// Requests are certificate requests that are pending, denied or failed, by name.
	Requests map[string]RequestState
	// Problems for a person, one sentence each, sorted.
	Problems []string
}

// ObjectsState is how far objects are applied.
type ObjectsState struct {
	// Digest of the objects that were last applied without an error; see Digest.
	Digest string
	// Applied is when that was.
	Applied time.Time
	Count   int
	// Errors of the last attempt, each with its object's name.
	Errors []string
}

// AddonState is how a daemon set or deployment of the applied objects is.
type AddonState struct {
	// Kind is daemonset or deployment, as kubectl takes it.
	Kind, Namespace, Name string
	Ready                 bool
	// Message says how many of its pods are ready.
	Message string
}

// NodeState is how a node is.
type NodeState struct {
	Name string
	UID  types.UID
	// Planned is true for the nodes of the plan, false for foreign ones.
	Planned bool
	// Ready, Since, Reason and Message are those of the condition Ready. A node whose kubelet is silent is not
	// ready, with reason NodeStatusUnknown.
	Ready           bool
	Since           time.Time
	Reason, Message string
	Created         time.Time
	// KubeletVersion, for example v1.37.2.
	KubeletVersion string
	// BootID of the system that the kubelet reported from.
	BootID        string
	Addresses     []netip.Addr
	PodCIDRs      []netip.Prefix
	Unschedulable bool
	// Reboot is the request for a reboot that the Node bears as an annotation; empty: none.
	Reboot string
	// Problem says why labels, taints or networks are not as they should be.
	Problem string
}

// RequestPhase is what became of a certificate request.
type RequestPhase string

const (
	// RequestPending waits for a person.
	RequestPending RequestPhase = "Pending"
	RequestDenied  RequestPhase = "Denied"
	// RequestFailed was approved by somebody but must not be signed.
	RequestFailed RequestPhase = "Failed"
)

// RequestState is a certificate request that has no certificate.
type RequestState struct {
	Name, Signer, Requester string
	Phase                   RequestPhase
	Created                 time.Time
	// Reason in words.
	Reason string
}
