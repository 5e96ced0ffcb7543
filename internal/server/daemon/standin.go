package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"sync"
	"time"

	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi"
	"coldrack.dev/internal/server/peopleapi/credentials"
)

// standIn answers people while the store is not there, until ctx ends.
func (s *server) standIn(ctx context.Context) error {
	people := x509.NewCertPool()
	people.AppendCertsFromPEM(s.keys.people.CertPEM())
	return s.door.ServeStandIn(ctx, controlplane.StandIn{
		Certificate: (&ownCertificate{make: s.servingCertificate, now: time.Now}).get,
		ClientCAs:   people, Tokens: controlplane.OpenTokens(controlplane.TokensPath(s.cfg.DataDir)),
		Why:         func() string { return *s.noStore.Load() },
		MetricsPath: metricsPath, Metrics: peopleapi.Limit{AtOnce: 8, Each: 4}.Around(s.metrics.handler(s.log)),
		Log: s.log.With("part", "people"),
	})
}

// ownCertificate is a certificate that is made when it is asked for, and anew before it ends.
type ownCertificate struct {
	make func() (certPEM, keyPEM []byte, err error)
	now  func() time.Time

	mu   sync.Mutex
	last *tls.Certificate
}

func (o *ownCertificate) get() (*tls.Certificate, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.last != nil && o.last.Leaf.NotAfter.Sub(o.now()) > credentials.RenewBefore {
		return o.last, nil
	}
	cert, key, err := o.make()
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	o.last = &pair
	return o.last, nil
}
