package wire

import "time"

// Paths of the machine API for a node that belongs to a Kubernetes cluster. The node certificate opens them.
const (
	PathNode        = "/v1/node"             // GET ?version=V&wait=SECONDS -> NodeAssignment (long poll)
	PathKit         = "/v1/node/kit"         // GET -> kit.Kit; 404 when there is none
	PathCertificate = "/v1/node/certificate" // POST CertificateRequest -> CertificateResponse
	PathPhases      = "/v1/node/phases"      // POST PhaseReport -> Empty
	PathEtcdData    = "/v1/node/etcd-data"   // GET ?restore=ID -> tar archive of the member's folder, see EtcdRestore
)

// OperationRenew is the first word of NodeAssignment.Operation of a node that is taken to renew certificates.
const OperationRenew = "certificates"

// NodeAssignment answers "what must I have for my cluster?".
type NodeAssignment struct {
	// Version changes whenever the rest does; the long poll returns at once when the caller's differs.
	Version string `json:"version"`
	// Message is for the node's log, for example why there is no plan yet.
	Message string `json:"message,omitempty"`
	// Paused: finish the phase that is running and begin no other.
	Paused bool `json:"paused,omitempty"`
	// Operation names what the node is taken for, and is "" while it is taken for nothing. A node remembers with which operation it
	// took its plan, and goes back from no other one.
	Operation string `json:"operation,omitempty"`
	// Hold: of Plan, take only what interrupts nothing (routes, load-balancer backends, kit, soft files), and keep everything else as
	// it is; renew no certificate that a static pod has to be restarted for. A node that has no plan of this cluster, or none for its new member of etcd, takes the whole.
	Hold bool `json:"hold,omitempty"`
	// RollBack: go back to the plan that was there before Operation, and otherwise as with Hold.
	RollBack bool `json:"rollBack,omitempty"`
	// Restore is there while etcd of the cluster is restored from a backup, and afterwards until what was there before may be removed.
	Restore *EtcdRestore `json:"restore,omitempty"`
	// Prefetch is what the node fetches beside what it runs. It changes nothing that runs, and does not wait for the node's turn.
	Prefetch *Prefetch `json:"prefetch,omitempty"`
	// Plan is absent on a machine that belongs to no cluster. A node that has one already keeps running what
	// it has: leaving a cluster is an intent of its own.
	Plan *NodePlan `json:"plan,omitempty"`
}

// Prefetch is what a later plan of a node needs, so that nothing has to be fetched when the node takes it.
type Prefetch struct {
	// ID stands for the rest.
	ID string `json:"id"`
	// KubernetesVersion that the later plan runs.
	KubernetesVersion string          `json:"kubernetesVersion"`
	Programs          []Program       `json:"programs,omitempty"`
	Images            []PrefetchImage `json:"images,omitempty"`
}

// PrefetchImage is an image that containerd is to have.
type PrefetchImage struct {
	// Name with tag, as pods name it.
	Name string `json:"name"`
	// Digest of its manifest; empty where the server does not have the image, and another registry says what the tag stands for.
	Digest string `json:"digest,omitempty"`
}

// PrefetchReport is how far a node is with a Prefetch.
type PrefetchReport struct {
	ID string `json:"id,omitempty"`
	// Done: everything is on the node, and was compared with its digest.
	Done bool `json:"done,omitempty"`
	// Message says what is fetched, or with Failing why that does not succeed. The node goes on trying.
	Message string `json:"message,omitempty"`
	Failing bool   `json:"failing,omitempty"`
	// BytesDone of BytesTotal of the programs, as they are transferred.
	BytesDone  int64 `json:"bytesDone,omitempty"`
	BytesTotal int64 `json:"bytesTotal,omitempty"`
}

// EtcdRestore has the servers of a node stop, or run, its member of etcd with other data.
type EtcdRestore struct {
	// ID of the restore. A member takes the data of one only once.
	ID string `json:"id"`
	// Stop: etcd and the control plane stop, and stay so, and no phase is carried out.
	Stop bool `json:"stop,omitempty"`
	// Data of the member, which PathEtcdData has; nil on a node that has none.
	Data *Content `json:"data,omitempty"`
}

// RestoreReport is how far a node is with a restore.
type RestoreReport struct {
	ID string `json:"id"`
	// State is RestoreStopped, RestoreDone, or empty while the node is at it.
	State   string `json:"state,omitempty"`
	Message string `json:"message,omitempty"`
}

// States of a RestoreReport.
const (
	RestoreStopped = "stopped" // nothing of etcd and the control plane runs
	RestoreDone    = "done"    // the member has its data, and the phases go on
)

// NodePlan is everything that a machine must have to be a node of its cluster. The same plan carried out again
// changes nothing.
type NodePlan struct {
	Cluster  string `json:"cluster"`
	NodeName string `json:"nodeName"`
	// KubernetesVersion that the kubelet runs, for example v1.37.2.
	KubernetesVersion string `json:"kubernetesVersion"`
	// Address is the node's primary address.
	Address string `json:"address"`
	// ContentURL is the boot listener's base URL as the node reaches it, for example http://10.20.0.1:7080.
	// A Content is below it at /content/sha256/HEX. It may change without another Version.
	ContentURL string `json:"contentURL"`

	Programs     []Program         `json:"programs,omitempty"`
	Files        []NodeFile        `json:"files,omitempty"` // static pods' manifests included
	Units        []NodeUnit        `json:"units,omitempty"`
	Certificates []NodeCertificate `json:"certificates,omitempty"`
	Kubeconfigs  []NodeKubeconfig  `json:"kubeconfigs,omitempty"`
	Routes       []NodeRoute       `json:"routes,omitempty"`
	// ServiceRoutes make service networks reachable from the node's own network.
	ServiceRoutes []ServiceRoute `json:"serviceRoutes,omitempty"`
	LoadBalancer  *LoadBalancer  `json:"loadBalancer,omitempty"`
	// Kit says that nodes give each other what they fetch: PathKit has it.
	Kit    *NodeKit `json:"kit,omitempty"`
	Phases []Phase  `json:"phases"`
	// Digests stand for all of the plan that a held node does not take. Equal digests: what interrupts is the same.
	Digests ConfigDigests `json:"digests,omitzero"`
}

// ConfigDigests stand for what a node is configured with; v1alpha1 says what belongs to each.
type ConfigDigests struct {
	Etcd         string `json:"etcd,omitempty"`
	ControlPlane string `json:"controlPlane,omitempty"`
	Node         string `json:"node,omitempty"`
}

// NodeKit is how a node passes on what came by its kit.
type NodeKit struct {
	// Listen is the host and port where the agent serves blobs by the OCI distribution protocol to its own node.
	Listen string `json:"listen"`
}

// Program is an executable file that comes from the content store.
type Program struct {
	Name string `json:"name"`
	Path string `json:"path"` // absolute; mode 0755, owner root
	// Content is what is fetched from /content/: the file compressed with zstd.
	Content Content `json:"content"`
	// Digest and Size of the file itself, by which one that is there already is known.
	Digest  string `json:"digest"`
	Size    int64  `json:"size"`
	Version string `json:"version,omitempty"`
	// Phase that brings it.
	Phase string `json:"phase"`
}

// NodeFile is a file, folder or symbolic link, owned by root.
type NodeFile struct {
	Path string `json:"path"`
	// Mode holds the permission bits.
	Mode    uint32 `json:"mode"`
	Dir     bool   `json:"dir,omitempty"`
	Link    string `json:"link,omitempty"`
	Content []byte `json:"content,omitempty"`
	// Secret content must not show up in a log or a difference.
	Secret bool `json:"secret,omitempty"`
	// Once: written only where there is nothing; the node changes it by itself afterwards.
	Once bool `json:"once,omitempty"`
	// Soft: a change of it interrupts nothing, and a held node takes it, too.
	Soft bool `json:"soft,omitempty"`
}

// NodeUnit is a systemd unit that is enabled and running. Content is empty where a package brings the unit.
type NodeUnit struct {
	Name    string            `json:"name"`
	Content []byte            `json:"content,omitempty"`
	DropIns map[string][]byte `json:"dropIns,omitempty"`
}

// NodeCertificate is a certificate that the node must have. The node makes the key and asks for the certificate
// by Name; what the certificate says is decided by the server alone.
type NodeCertificate struct {
	Name string `json:"name"`
	// KeyAlgorithm: ECDSA-P256, ECDSA-P384, RSA-2048, RSA-3072 or RSA-4096.
	KeyAlgorithm string `json:"keyAlgorithm"`
	// CertPath and KeyPath are equal where both are in one file, certificate first. Keys have mode 0600.
	CertPath string `json:"certPath"`
	CertMode uint32 `json:"certMode"`
	KeyPath  string `json:"keyPath"`
	// What the certificate will say, so that the node finds out that one it has does not fit any more.
	CommonName    string   `json:"commonName"`
	Organizations []string `json:"organizations,omitempty"`
	DNSNames      []string `json:"dnsNames,omitempty"`
	IPAddresses   []string `json:"ipAddresses,omitempty"`
	// Authority is the PEM certificate of the issuer; a certificate of another issuer does not fit.
	Authority string `json:"authority"`
	// Restart are the static pods that read the certificate only once and are restarted after a renewal.
	Restart []string `json:"restart,omitempty"`
	// Remade are files with certificates of the same authority that their user has made anew by itself when it starts and they are gone:
	// they are removed, and the user is restarted, when another authority signs.
	Remade []string `json:"remade,omitempty"`
	// Rotated: renewed by its own user; it is requested only where there is none.
	Rotated bool `json:"rotated,omitempty"`
}

// NodeKubeconfig is a kubeconfig that the node writes around one of its certificates.
type NodeKubeconfig struct {
	Path    string `json:"path"`
	Server  string `json:"server"`
	Cluster string `json:"cluster"`
	User    string `json:"user"`
	// Authority is the PEM certificate that the server is verified with.
	Authority string `json:"authority"`
	// Certificate is the Name of a NodeCertificate.
	Certificate string `json:"certificate"`
	// Embed puts certificate and key into the file; otherwise it refers to their files.
	Embed bool `json:"embed,omitempty"`
}

// NodeRoute sends packets for a network to another node. The agent owns every route of its protocol number.
type NodeRoute struct {
	To  string `json:"to"`  // prefix
	Via string `json:"via"` // address
}

// ServiceRoute gives packets from the node's own network to a service network a route, so that the node's service proxy
// gets to see them: by the interface that has the address Source, and from that address. The agent owns it like NodeRoute.
type ServiceRoute struct {
	To     string `json:"to"`     // prefix
	Source string `json:"source"` // address of this node, of the same family
}

// LoadBalancer is the node's own way to all API servers.
type LoadBalancer struct {
	Listen   string   `json:"listen"`   // address:port
	Backends []string `json:"backends"` // address:port
	// Authority is the PEM certificate that the backends are verified with when their health is checked.
	Authority string `json:"authority"`
}

// Phase is one named part of a node's bring-up; it may begin when those in After are done. What is done, in
// this order: programs that name the phase, files, certificates, kubeconfigs, units, routes, load
// balancer, probes.
type Phase struct {
	Name         string   `json:"name"`
	After        []string `json:"after,omitempty"`
	Reason       string   `json:"reason"`
	Files        []string `json:"files,omitempty"`        // paths
	Certificates []string `json:"certificates,omitempty"` // names
	Kubeconfigs  []string `json:"kubeconfigs,omitempty"`  // paths
	Units        []string `json:"units,omitempty"`
	Routes       bool     `json:"routes,omitempty"`
	LoadBalancer bool     `json:"loadBalancer,omitempty"`
	// Probes are URLs that must answer with 200. The server's certificate is not verified: what is asked
	// is this node's own loopback or address.
	Probes []string `json:"probes,omitempty"`
	// AwaitAPI: the phase is done when an API server answers through the load balancer.
	AwaitAPI bool `json:"awaitAPI,omitempty"`
	// StopFirst are units that stop before a pod of this phase is replaced; a later phase starts them again. They lead others to that pod.
	StopFirst []string `json:"stopFirst,omitempty"`
	// PatienceSeconds is after how long it counts as done without; 0: it waits for ever.
	PatienceSeconds int `json:"patienceSeconds,omitempty"`
}

// PhaseReport tells how far a node is. It replaces what was reported before.
type PhaseReport struct {
	Cluster string `json:"cluster"`
	// Version of the assignment that is carried out.
	Version string `json:"version"`
	// Phases in the plan's order. Message of a running phase says what it waits for, of a failed one why.
	Phases []Step `json:"phases"`
	// Certificates by name, with their expiry.
	Certificates map[string]time.Time `json:"certificates,omitempty"`
	// RenewAt is when the first of the certificates is due whose renewal restarts a static pod; the node renews them when it is its
	// turn (NodeAssignment.Hold), or by itself when a tenth of their life is left. nil: it has none.
	RenewAt *time.Time `json:"renewAt,omitempty"`
	// Done is true when every phase has succeeded for this version.
	Done bool `json:"done,omitempty"`
	// KubernetesVersion of the kubelet that is installed.
	KubernetesVersion string `json:"kubernetesVersion,omitempty"`
	// Config are the digests of the plan that is carried out, FormerConfig those of the one before, which is kept for a roll-back.
	Config       ConfigDigests  `json:"config,omitzero"`
	FormerConfig *ConfigDigests `json:"formerConfig,omitempty"`
	// Drift are paths of files that were not as this version of the plan had left them, and were written again; while paused, of files
	// that are so.
	Drift []string `json:"drift,omitempty"`
	// Message says why something that was asked for is not done, for example a roll-back without a former plan.
	Message string `json:"message,omitempty"`
	// Restore is nil while none is asked for.
	Restore *RestoreReport `json:"restore,omitempty"`
	// Prefetch has no ID while nothing is to be fetched beside what runs. An agent that does not know how to do that leaves it out.
	Prefetch *PrefetchReport `json:"prefetch,omitempty"`
}

// CertificateRequest asks for one of the plan's certificates.
type CertificateRequest struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
	CSR     string `json:"csr"` // PEM, PKCS #10; only its public key is used
}

// CertificateResponse carries it.
type CertificateResponse struct {
	Certificate string    `json:"certificate"` // PEM, leaf first
	ExpiresAt   time.Time `json:"expiresAt"`
}
