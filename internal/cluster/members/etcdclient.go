package members

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"time"

	"coldrack.dev/internal/cluster/kube"
)

// Authority are the PEM certificates of a cluster's authority that are believed; empty without keys.
func (s *Set) Authority(clusterName string, authority kube.Authority) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clusters[clusterName]
	if c == nil || c.material == nil {
		return nil
	}
	return c.material.trusted[authority]
}

// EtcdAuthority are the PEM certificates that a cluster's etcd members are verified with; empty without keys.
func (s *Set) EtcdAuthority(clusterName string) []byte {
	return s.Authority(clusterName, kube.AuthorityEtcd)
}

// EtcdClient makes a certificate by which this server is known to a cluster's etcd members. They let it do
// everything: etcd knows no roles here. So it is for this process only, and short-lived.
func (s *Set) EtcdClient(clusterName string, ttl time.Duration) (*tls.Certificate, error) {
	s.mu.Lock()
	c := s.clusters[clusterName]
	s.mu.Unlock()
	if c == nil || c.material == nil {
		return nil, refuse("cluster %q has no keys", clusterName)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key for the etcd of cluster %s: %w", clusterName, err)
	}
	now := s.Now()
	leaf, err := c.material.authorities[kube.AuthorityEtcd].issue(&x509.Certificate{
		Subject:   pkix.Name{CommonName: "coldrack-server"},
		NotBefore: now.Add(-clientBackdate), NotAfter: now.Add(ttl),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, key.Public())
	if err != nil {
		return nil, fmt.Errorf("sign certificate for the etcd of cluster %s: %w", clusterName, err)
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, nil
}
