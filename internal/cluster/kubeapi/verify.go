package kubeapi

import (
	"context"
	"crypto/tls"
	"fmt"
	"iter"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
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
	// CertificateLife is how long nodes' certificates live, zero for unknown; one of which a twelfth is left should have been renewed,
	// also by a kubelet.
	CertificateLife time.Duration
	// Certificates are what agents reported: expiry by node and by certificate.
	Certificates map[string]map[string]time.Time
	// Authorities are when the cluster's authorities end, by name.
	Authorities map[string]time.Time
	// ServiceNetworks are the cluster's. ProxyNone says that Coldrack gives nodes no route to them.
	ServiceNetworks []netip.Prefix
	ProxyNone       bool
	// ProbeImage is the image of cmd/coldrack-probe; default coldrack.dev/probe:v2.
	ProbeImage string
	// NoPods leaves out what needs pods.
	NoPods bool
	// Timeout for probe pods to run; default 3 minutes.
	Timeout time.Duration
	// settle is how long a service may take to be known on all nodes.
	settle time.Duration
	// callSettle is how long API servers may take to notice what they are to call.
	callSettle time.Duration
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

const (
	// atOnce is how many things of one kind are looked at at the same time.
	atOnce = 8
	// checkTimeout ends a single check that does not wait for pods.
	checkTimeout = 20 * time.Second
	// cleanUpTimeout is how long the namespaces of a verification may take to go.
	cleanUpTimeout = 2 * time.Minute
)

// Verify looks at everything that a cluster should be able to do and yields each result as it comes in. It
// makes namespaces coldrack-verify, coldrack-verify-policy and coldrack-verify-host, for a while a webhook and an APIService
// that concern nothing else, and removes them in any case, also after a failure, when ctx ends or when the caller stops
// listening. Only one verification of a cluster can run at a time.
func Verify(ctx context.Context, o VerifyOptions) iter.Seq[Check] {
	if o.DNSDomain == "" {
		o.DNSDomain = "cluster.local"
	}
	if o.ProbeImage == "" {
		o.ProbeImage = "coldrack.dev/probe:v2"
	}
	if o.Timeout == 0 {
		o.Timeout = 3 * time.Minute
	}
	if o.settle == 0 {
		o.settle = 15 * time.Second
	}
	if o.callSettle == 0 {
		o.callSettle = 30 * time.Second
	}
	return func(yield func(Check) bool) {
		ctx, cancel := context.WithCancel(ctx)
		v := &verification{o: o, checks: make(chan Check)}
		var running sync.WaitGroup
		running.Go(func() {
			defer close(v.checks)
			v.run(ctx)
		})
		listening := true
		for c := range v.checks {
			if listening && !yield(c) {
				listening = false
				cancel()
			}
		}
		cancel()
		running.Wait()
	}
}

// verification is one run of Verify.
type verification struct {
	o          VerifyOptions
	checks     chan Check
	connection *Connection
}

// do looks at one thing. The detail of a failure is the error's text.
func (v *verification) do(ctx context.Context, name, target string, look func(context.Context) (string, error)) bool {
	return v.within(ctx, checkTimeout, name, target, look)
}

// within is do with another limit.
func (v *verification) within(ctx context.Context, limit time.Duration, name, target string, look func(context.Context) (string, error)) bool {
	if ctx.Err() != nil {
		return false
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	detail, err := look(limited)
	return v.tell(ctx, Check{Name: name, Target: target, Detail: detail, Duration: time.Since(began)}, err)
}

// tell emits a check; what failed only because everything is being ended is not told.
func (v *verification) tell(ctx context.Context, c Check, err error) bool {
	c.OK = err == nil
	if err != nil {
		if ctx.Err() != nil {
			return false
		}
		c.Detail = err.Error()
	}
	v.checks <- c
	return c.OK
}

func (v *verification) run(ctx context.Context) {
	connection, err := Connect(v.o.Target)
	if err != nil {
		v.tell(ctx, Check{Name: "API server", Target: v.o.Target.Cluster}, err)
		return
	}
	defer connection.Close()
	v.connection = connection
	v.apiServers(ctx)
	v.etcd(ctx)
	if _, err := connection.Check(ctx); err != nil {
		v.tell(ctx, Check{Name: "API", Target: v.o.Target.Cluster}, fmt.Errorf("nothing else can be looked at: %w", err))
		return
	}
	v.controlPlane(ctx)
	v.nodes(ctx)
	v.addons(ctx)
	v.inNamespace(ctx)
}

// each looks at things of one kind at the same time, but not at all of them.
func each[T any](ctx context.Context, list []T, look func(context.Context, T)) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, item := range list {
		group.Go(func() error {
			look(ctx, item)
			return nil
		})
	}
	_ = group.Wait() // none returns an error
}
