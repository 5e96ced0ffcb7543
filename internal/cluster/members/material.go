package members

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SecretType is the type of the Secret that holds a cluster's keys.
const SecretType = "coldrack.dev/cluster-keys"

// AnnotationClusterUID on that Secret names the Cluster that the keys were made for. Keys of an earlier cluster
// of the same name are not taken for a new one's: its people could otherwise enter.
const AnnotationClusterUID = "coldrack.dev/cluster-uid"

// SecretName is the name of the Secret that holds a cluster's keys.
func SecretName(cluster string) string { return "cluster-" + cluster }

// Names within the Secret are kubeadm's.
const (
	fileServiceAccountKey    = "sa.key"
	fileServiceAccountPublic = "sa.pub"
	fileEncryptionKey        = "encryption.key"
)

// encryptionKeyPrefix and a number are what the stored Secrets of the cluster say they are encrypted with.
const encryptionKeyPrefix = "coldrack-"

// authority is a certificate authority with its key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (a authority) certPEM() []byte { return encode("CERTIFICATE", a.cert.Raw) }

// Material are the keys of one cluster. They stay in this process, apart from the service-account key and the key
// that Secrets are encrypted with, which its control-plane machines get.
type Material struct {
	// authorities that sign.
	authorities map[kube.Authority]authority
	// trusted are the PEM certificates of all that are believed, more than one of each while it is rotated.
	trusted map[kube.Authority][]byte
	// authorityNumber is the newest authority that the cluster's pods know, counted from 1.
	authorityNumber      int
	serviceAccountKey    []byte // PEM
	serviceAccountPublic []byte // PEM, all that are believed, first the one of the key
	// encryption keys; the first encrypts.
	encryption []kube.EncryptionKey
}

// NewMaterial makes all keys of a cluster.
func NewMaterial(cluster *v1alpha1.Cluster, now time.Time) (*Material, error) {
	m := &Material{authorities: map[kube.Authority]authority{}, trusted: map[kube.Authority][]byte{}, authorityNumber: 1}
	var algorithm v1alpha1.KeyAlgorithm
	for _, spec := range kube.Authorities(cluster) {
		algorithm = spec.KeyAlgorithm
		key, err := newKey(algorithm)
		if err != nil {
			return nil, fmt.Errorf("make key of authority %s: %w", spec.Authority, err)
		}
		template := spec.Template(now)
		cert, err := sign(template, template, key.Public(), key)
		if err != nil {
			return nil, fmt.Errorf("sign authority %s: %w", spec.Authority, err)
		}
		m.authorities[spec.Authority] = authority{cert, key}
		m.trusted[spec.Authority] = m.authorities[spec.Authority].certPEM()
	}
	key, err := newKey(algorithm)
	if err != nil {
		return nil, fmt.Errorf("make service-account key: %w", err)
	}
	if m.serviceAccountKey, err = encodeKey(key); err != nil {
		return nil, fmt.Errorf("service-account key: %w", err)
	}
	if m.serviceAccountPublic, err = encodePublicKey(key.Public()); err != nil {
		return nil, fmt.Errorf("service-account key: %w", err)
	}
	encryption, err := newEncryptionKey(encryptionKeyPrefix + "1")
	if err != nil {
		return nil, fmt.Errorf("make encryption key: %w", err)
	}
	m.encryption = []kube.EncryptionKey{encryption}
	return m, nil
}

// Secret is the material of a new cluster as it is stored.
func (m *Material) Secret(cluster *v1alpha1.Cluster) (*v1alpha1.Secret, error) {
	secret := &v1alpha1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: SecretName(cluster.Name), Annotations: map[string]string{AnnotationClusterUID: string(cluster.UID)},
		},
		Type: SecretType,
		Data: map[string][]byte{
			fileServiceAccountKey: m.serviceAccountKey, fileServiceAccountPublic: m.serviceAccountPublic,
			fileEncryptionKey: []byte(m.encryption[0].Secret),
		},
	}
	for name, a := range m.authorities {
		key, err := encodeKey(a.key)
		if err != nil {
			return nil, fmt.Errorf("key of authority %s: %w", name, err)
		}
		secret.Data[string(name)+".crt"], secret.Data[string(name)+".key"] = a.certPEM(), key
	}
	return secret, nil
}

// ParseMaterial reads what Secret wrote, as it is used in the stage of a rotation, nil for none. Everything must be there and belong
// together: a half of it would make nodes that do not trust each other.
func ParseMaterial(secret *v1alpha1.Secret, rotation *v1alpha1.RotationStatus) (*Material, error) {
	m := &Material{authorities: map[kube.Authority]authority{}, trusted: map[kube.Authority][]byte{}, authorityNumber: authorityNumber(secret.Data)}
	fail := func(name string, err error) (*Material, error) {
		return nil, fmt.Errorf("Secret %s: data[%s]: %w; restore it from a backup", secret.Name, name, err) //nolint:staticcheck // a kind's name
	}
	for _, name := range []kube.Authority{kube.AuthorityKubernetes, kube.AuthorityEtcd, kube.AuthorityFrontProxy} {
		a, file, err := parseAuthority(secret.Data[string(name)+".crt"], secret.Data[string(name)+".key"], string(name))
		if err != nil {
			return fail(file, err)
		}
		m.authorities[name], m.trusted[name] = a, a.certPEM()
	}
	var file string
	var err error
	if m.serviceAccountKey, m.serviceAccountPublic, file, err = parseServiceAccount(secret.Data[fileServiceAccountKey], secret.Data[fileServiceAccountPublic]); err != nil {
		return fail(file, err)
	}
	encryption, err := parseEncryption(secret.Data[fileEncryptionKey], secret.Data[fileEncryptionName])
	if err != nil {
		return fail(fileEncryptionKey, err)
	}
	m.encryption = []kube.EncryptionKey{encryption}
	return m, m.rotate(secret, rotation)
}

// parseAuthority reads an authority's certificate and key. file names what is wrong.
func parseAuthority(certificate, key []byte, name string) (a authority, file string, err error) {
	block, _ := pem.Decode(certificate)
	if block == nil || block.Type != "CERTIFICATE" {
		return a, name + ".crt", errors.New("is no PEM certificate")
	}
	if a.cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		return a, name + ".crt", err
	}
	if a.key, err = parseKey(key); err != nil {
		return a, name + ".key", err
	}
	if public, ok := a.cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(a.key.Public()) || !a.cert.IsCA {
		return a, name + ".key", errors.New("is not the key of the authority's certificate beside it")
	}
	return a, "", nil
}

// into puts into an input of the renderer what of the material is no secret.
func (m *Material) into(in *kube.Input) {
	in.Authorities, in.ServiceAccountKeys, in.AuthorityNumber = m.trusted, m.serviceAccountPublic, m.authorityNumber
	in.Issuers = map[kube.Authority]string{}
	for name, a := range m.authorities {
		in.Issuers[name] = fingerprint(a)
	}
	for _, key := range m.encryption {
		in.EncryptionKeys = append(in.EncryptionKeys, key.Name)
	}
}

// secret is the content that a plan only names.
func (m *Material) secret(ref kube.SecretRef) ([]byte, error) {
	switch ref {
	case kube.SecretServiceAccountKey:
		return m.serviceAccountKey, nil
	case kube.SecretEncryptionConfig:
		return kube.EncryptionConfig(m.encryption)
	}
	return nil, fmt.Errorf("a plan names secret %q, which there is none of", ref)
}

func newKey(algorithm v1alpha1.KeyAlgorithm) (crypto.Signer, error) {
	switch algorithm {
	case "ECDSA-P256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ECDSA-P384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "RSA-2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "RSA-3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "RSA-4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("unknown key algorithm %q", algorithm)
}

// algorithmOf names the algorithm of a public key as a Cluster does.
func algorithmOf(public crypto.PublicKey) string {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		return fmt.Sprintf("ECDSA-P%d", key.Curve.Params().BitSize)
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", key.N.BitLen())
	}
	return fmt.Sprintf("%T", public)
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return encode("PRIVATE KEY", der), err
}

func encodePublicKey(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	return encode("PUBLIC KEY", der), err
}

func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("is no PEM private key (PKCS #8)")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("is a %T, which cannot sign", parsed)
	}
	return key, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// sign signs a template with a fresh serial number.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1)) // RFC 5280, 4.1.2.2: positive
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// issue signs a leaf, which never outlives its authority.
func (a authority) issue(template *x509.Certificate, public crypto.PublicKey) (*x509.Certificate, error) {
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	return sign(template, a.cert, public, a.key)
}

// CheckSecret says why a stored Secret cannot be a cluster's keys, for a person.
func CheckSecret(secret *v1alpha1.Secret, cluster *v1alpha1.Cluster) error {
	if !belongs(secret, cluster) {
		return errors.New(foreignKeys(cluster.Name))
	}
	_, err := ParseMaterial(secret, cluster.Status.Rotation)
	return err
}

// ArchiveName is the name under which the keys of a deleted cluster are kept.
func ArchiveName(cluster *v1alpha1.Cluster) string {
	uid := string(cluster.UID)
	return SecretName(cluster.Name) + "-" + uid[:min(len(uid), 8)]
}
