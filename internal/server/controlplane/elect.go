package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
	"k8s.io/apiserver/pkg/storage/storagebackend"
)

// elector lets one server at a time lead.
type elector interface {
	// campaign waits to lead name, runs lead once and returns what it returned. The context that lead gets
	// ends when leadership is lost, and then the error is errLost.
	campaign(ctx context.Context, name string, lead func(context.Context) error) error
}

var errLost = errors.New("leadership lost")

// leaseSeconds is how long a leader that died without a word blocks the next one.
const leaseSeconds = 10

// Elect waits until this server is the only one that leads name, and runs lead. The context that lead gets ends
// when ctx does or when leadership was lost, and lead must return then: another server may lead already. After a
// loss Elect competes again. It returns when ctx has ended (nil), or when lead returned by itself (its error).
func (c *ControlPlane) Elect(ctx context.Context, name string, lead func(ctx context.Context) error) error {
	for {
		err := c.elect.campaign(ctx, name, func(ctx context.Context) error {
			c.log.Info("leading", "election", name)
			return lead(ctx)
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errLost):
			c.log.Warn("leadership lost; trying to regain it", "election", name)
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// soleLeader always leads: nobody else can open the store.
type soleLeader struct{}

func (soleLeader) campaign(ctx context.Context, _ string, lead func(context.Context) error) error {
	return lead(ctx)
}

// dialEtcd connects to the cluster and makes sure that it answers.
func dialEtcd(ctx context.Context, to storagebackend.TransportConfig, prefix string) (*clientv3.Client, error) {
	endpoints := to.ServerList
	config := clientv3.Config{
		Endpoints: endpoints, Context: context.WithoutCancel(ctx),
		DialTimeout: 5 * time.Second, DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
		Logger: zap.NewNop(),
	}
	if to.TrustedCAFile != "" || to.CertFile != "" {
		tls, err := transport.TLSInfo{TrustedCAFile: to.TrustedCAFile, CertFile: to.CertFile, KeyFile: to.KeyFile}.ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("etcd's TLS files: %w", err)
		}
		config.TLS = tls
	}
	client, err := clientv3.New(config)
	if err != nil {
		return nil, fmt.Errorf("etcd at %s: %w", strings.Join(endpoints, ", "), err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := client.Get(ctx, prefix+"/health"); err != nil {
		client.Close()
		return nil, fmt.Errorf("etcd at %s does not answer: %w; check the endpoints, the TLS files and that the cluster has a quorum",
			strings.Join(endpoints, ", "), err)
	}
	return client, nil
}

// etcdElector competes with keys that vanish with their owner's lease.
type etcdElector struct {
	client *clientv3.Client
	prefix string
	// identity is shown as the owner of the key; it need not be unique.
	identity string
	log      *slog.Logger
}

func (e *etcdElector) campaign(ctx context.Context, name string, lead func(context.Context) error) error {
	session, err := concurrency.NewSession(e.client, concurrency.WithTTL(leaseSeconds), concurrency.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("%w: %w", errLost, err)
	}
	election := concurrency.NewElection(session, e.prefix+"/elections/"+name)
	defer func() {
		// Hand over at once, not when the lease runs out. ctx may have ended.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		_, err := e.client.Revoke(ctx, session.Lease())
		if err != nil {
			e.log.Debug("cannot give up leadership", "election", name, "err", err)
		}
		session.Orphan()
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-session.Done():
			cancel(errLost)
		case <-ctx.Done():
		}
	}()
	if err := election.Campaign(ctx, e.identity); err != nil {
		return fmt.Errorf("%w: %w", errLost, err)
	}
	err = lead(ctx)
	if errors.Is(context.Cause(ctx), errLost) {
		return errLost
	}
	return err
}

// serverName names this server among those that compete.
func serverName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}
