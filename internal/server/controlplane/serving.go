package controlplane

import (
	"crypto/tls"
	"errors"
	"fmt"
	"sync"

	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

// servingCert is the API's certificate, which may be replaced while the server runs. It implements
// dynamiccertificates.CertKeyContentProvider and Notifier.
type servingCert struct {
	mu        sync.Mutex
	cert, key []byte // PEM
	listeners []dynamiccertificates.Listener
}

func newServingCert(cert, key []byte) (*servingCert, error) {
	s := &servingCert{}
	return s, s.replace(cert, key)
}

func (s *servingCert) replace(cert, key []byte) error {
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		return fmt.Errorf("API certificate: %w", err)
	}
	s.mu.Lock()
	s.cert, s.key = cert, key
	listeners := s.listeners
	s.mu.Unlock()
	for _, l := range listeners {
		l.Enqueue()
	}
	return nil
}

// Name is for logs.
func (s *servingCert) Name() string { return "api" }

// CurrentCertKeyContent returns certificate and key, PEM.
func (s *servingCert) CurrentCertKeyContent() (cert, key []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cert, s.key
}

// AddListener has l told when the certificate was replaced.
func (s *servingCert) AddListener(l dynamiccertificates.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners = append(s.listeners, l)
}

// ReplaceServingCert has new connections to the API get another certificate, PEM. Not with EngineKubernetes, whose API
// is somebody else's.
func (c *ControlPlane) ReplaceServingCert(cert, key []byte) error {
	if c.serving == nil {
		return errors.New("this API has a certificate of its own")
	}
	return c.serving.replace(cert, key)
}
