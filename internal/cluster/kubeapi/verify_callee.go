package kubeapi

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	calleeSecret = "coldrack-probe-tls"
	// calleeLifetime is longer than any verification: what a killed one leaves behind goes on answering meanwhile.
	calleeLifetime = 30 * 24 * time.Hour
	// clockSkew of machines is allowed for.
	clockSkew = 24 * time.Hour
)

// callee is how the probes of one verification show API servers who they are, all as PEM. The key of the authority is
// never kept.
type callee struct{ authority, certificate, key []byte }

// newCallee makes an authority and one certificate of it.
func newCallee(now time.Time) (*callee, error) {
	template := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
			NotBefore: now.Add(-clockSkew), NotAfter: now.Add(calleeLifetime)}
	}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	authority := template(1, "coldrack-verify")
	authority.IsCA, authority.MaxPathLenZero, authority.KeyUsage = true, true, x509.KeyUsageCertSign
	service := fmt.Sprintf("%s.%s.svc", probeName, verifyNamespace)
	leaf := template(2, service)
	leaf.DNSNames, leaf.KeyUsage, leaf.ExtKeyUsage = []string{service}, x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	authorityDER, err := x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)
	if err != nil {
		return nil, err
	}
	if authority, err = x509.ParseCertificate(authorityDER); err != nil {
		return nil, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, authority, key.Public(), authorityKey)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	encode := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	return &callee{encode("CERTIFICATE", authorityDER), encode("CERTIFICATE", leafDER), encode("PRIVATE KEY", keyDER)}, nil
}

func (c *callee) authorityBase64() string { return base64.StdEncoding.EncodeToString(c.authority) }

// secret is where the probe pods have it from.
func (c *callee) secret() *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: verifyNamespace, Name: calleeSecret}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: c.certificate, corev1.TLSPrivateKeyKey: c.key}}
}

// environment gives it to the probe.
func (c *callee) environment() []corev1.EnvVar {
	from := func(name, key string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: calleeSecret}, Key: key}}}
	}
	return []corev1.EnvVar{from("COLDRACK_PROBE_CERTIFICATE", corev1.TLSCertKey), from("COLDRACK_PROBE_KEY", corev1.TLSPrivateKeyKey)}
}
