package controlplane

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// startKubernetes uses an existing Kubernetes API.
func (c *ControlPlane) startKubernetes(ctx context.Context, cfg Config) error {
	client, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", cfg.Kubeconfig, err)
	}
	client.UserAgent = "coldrack/" + cfg.Version
	// The client's default of five requests a second is meant for people.
	client.QPS, client.Burst = 200, 400
	c.client, c.address = client, client.Host
	if err := installCRDs(ctx, client); err != nil {
		return noStore(fmt.Errorf("the Kubernetes API at %s: %w", client.Host, err))
	}
	elector, err := newLeaseElector(client, cfg.LeaseNamespace)
	if err != nil {
		return err
	}
	c.elect = elector
	return nil
}

// leaseElector competes with Leases, as Kubernetes' own controllers do.
type leaseElector struct {
	client    kubernetes.Interface
	namespace string
	identity  string
}

func newLeaseElector(config *rest.Config, namespace string) (*leaseElector, error) {
	config = rest.CopyConfig(config)
	config.Timeout = leaseSeconds * time.Second / 2
	config.ContentType = "application/json" // every Kubernetes-style API speaks it
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &leaseElector{client, namespace, serverName()}, nil
}

// What a campaign has come to.
const (
	competing int32 = iota
	leading
	abandoned
)

func (e *leaseElector) campaign(ctx context.Context, name string, lead func(context.Context) error) error {
	// The Lease is renewed until lead has returned, also after ctx has ended: only then may another server
	// lead. Hence the elector's own context.
	held, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	var (
		state  atomic.Int32
		done   = make(chan struct{})
		result error
	)
	defer context.AfterFunc(ctx, func() {
		if state.CompareAndSwap(competing, abandoned) {
			release()
		}
	})()
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: e.namespace, Name: "coldrack-" + name},
			Client:     e.client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: e.identity},
		},
		LeaseDuration:   leaseSeconds * time.Second,
		RenewDeadline:   leaseSeconds * time.Second * 2 / 3,
		RetryPeriod:     time.Second,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(held context.Context) {
				defer close(done)
				if !state.CompareAndSwap(competing, leading) {
					return
				}
				leadCtx, cancel := context.WithCancel(ctx)
				defer cancel()
				defer context.AfterFunc(held, cancel)()
				result = lead(leadCtx)
				if held.Err() != nil {
					result = errLost
				}
				release()
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	elector.Run(held)
	if state.Load() == abandoned {
		return ctx.Err()
	}
	<-done
	return result
}
