// Package nodecert keeps a node's certificates: it makes keys, has them certified, says when a certificate has to be
// replaced and why, and puts a key and its certificate in place so that a power cut leaves a pair.
package nodecert

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/contract/wire"
)

const pemCertificate = "CERTIFICATE"

// KeyMaker returns how keys of an algorithm are made, and encoded as kubeadm encodes them.
func KeyMaker(algorithm string) (func() (crypto.Signer, []byte, error), error) {
	ec := func(curve elliptic.Curve) func() (crypto.Signer, []byte, error) {
		return func() (crypto.Signer, []byte, error) {
			key, err := ecdsa.GenerateKey(curve, rand.Reader)
			if err != nil {
				return nil, nil, err
			}
			der, err := x509.MarshalECPrivateKey(key)
			return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
		}
	}
	rsaKey := func(bits int) func() (crypto.Signer, []byte, error) {
		return func() (crypto.Signer, []byte, error) {
			key, err := rsa.GenerateKey(rand.Reader, bits)
			if err != nil {
				return nil, nil, err
			}
			return key, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), nil
		}
	}
	switch algorithm {
	case "ECDSA-P256":
		return ec(elliptic.P256()), nil
	case "ECDSA-P384":
		return ec(elliptic.P384()), nil
	case "RSA-2048":
		return rsaKey(2048), nil
	case "RSA-3072":
		return rsaKey(3072), nil
	case "RSA-4096":
		return rsaKey(4096), nil
	}
	return nil, fmt.Errorf("key algorithm %q is not known to this agent; known are ECDSA-P256, ECDSA-P384, RSA-2048, RSA-3072 and RSA-4096", algorithm)
}

// AlgorithmOf a public key, in the plan's words.
func AlgorithmOf(public any) string {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		return fmt.Sprintf("ECDSA-P%d", k.Curve.Params().BitSize)
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", k.N.BitLen())
	}
	return fmt.Sprintf("%T", public)
}

// Parse reads all certificates of a PEM text, of which there must be one.
func Parse(text []byte) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != pemCertificate {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, errors.New("it contains no PEM certificate")
	}
	return list, nil
}

// unfit says why a certificate cannot be used for what the plan wants, "" when it can.
func unfit(want wire.NodeCertificate, leaf *x509.Certificate, now time.Time) string {
	names := func(list []string) string { return "[" + strings.Join(sorted(list), " ") + "]" }
	authorities, err := Parse([]byte(want.Authority))
	switch {
	case err != nil:
		return "authority: " + err.Error()
	case !slices.ContainsFunc(authorities, func(a *x509.Certificate) bool { return leaf.CheckSignatureFrom(a) == nil }):
		return fmt.Sprintf("it was issued by another authority (%s)", leaf.Issuer)
	case leaf.Subject.CommonName != want.CommonName:
		return fmt.Sprintf("its common name is %q, want %q", leaf.Subject.CommonName, want.CommonName)
	case !slices.Equal(sorted(leaf.Subject.Organization), sorted(want.Organizations)):
		return fmt.Sprintf("its organizations are %s, want %s", names(leaf.Subject.Organization), names(want.Organizations))
	case !slices.Equal(sorted(leaf.DNSNames), sorted(want.DNSNames)):
		return fmt.Sprintf("its DNS names are %s, want %s", names(leaf.DNSNames), names(want.DNSNames))
	case !slices.Equal(addressesOf(leaf), canonical(want.IPAddresses)):
		return fmt.Sprintf("its addresses are %s, want %s", names(addressesOf(leaf)), names(want.IPAddresses))
	case AlgorithmOf(leaf.PublicKey) != want.KeyAlgorithm:
		return fmt.Sprintf("its key is %s, want %s", AlgorithmOf(leaf.PublicKey), want.KeyAlgorithm)
	case !now.Before(leaf.NotAfter):
		return fmt.Sprintf("it expired at %s (this node's clock says %s)", leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return ""
}

func sorted(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }

func addressesOf(c *x509.Certificate) []string {
	var list []string
	for _, ip := range c.IPAddresses {
		list = append(list, ip.String())
	}
	return canonical(list)
}

// canonical spells addresses alike: an IPv6 address has several spellings.
func canonical(list []string) []string {
	out := make([]string, 0, len(list))
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			s = a.Unmap().String()
		}
		out = append(out, s)
	}
	return sorted(out)
}

// RenewAt is when a node's certificate is due: when a third of its life is left, or up to a tenth of its life earlier, at a moment that
// is the node's own. So nodes that were installed in one hour do not renew in one, and all that a node has is due together.
func RenewAt(node string, leaf *x509.Certificate) time.Time {
	hash := fnv.New32a()
	hash.Write([]byte(node))
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	const steps = 4096
	return leaf.NotAfter.Add(-life/3 - life/10/steps*time.Duration(hash.Sum32()%steps))
}

// SignedBy says whether the first certificate of a PEM text was signed by one of authorities, which are PEM texts.
func SignedBy(text []byte, authorities ...string) bool {
	list, err := Parse(text)
	if err != nil {
		return false
	}
	signers, err := Parse([]byte(strings.Join(authorities, "\n")))
	return err == nil && slices.ContainsFunc(signers, func(a *x509.Certificate) bool { return list[0].CheckSignatureFrom(a) == nil })
}

// Late says that a tenth of a certificate's life or less is left: it is renewed without waiting for anybody.
func Late(leaf *x509.Certificate, now time.Time) bool {
	return !now.Before(leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 10))
}

// WhyDue is Check.Why of a certificate that fits and is due.
const WhyDue = "most of its life is over"

// Check is what was found.
type Check struct {
	// Why it has to be replaced, "" when it does not. It can still be used when Usable is true.
	Why    string
	Usable bool
	// Leaf is the certificate, nil when there is none that can be read.
	Leaf *x509.Certificate
}

// Inspect looks at a certificate and its key as they are in a node's files.
func Inspect(node string, want wire.NodeCertificate, certificate, key []byte, now time.Time) Check {
	list, err := Parse(certificate)
	if err != nil {
		return Check{Why: "the certificate's file cannot be read: " + err.Error()}
	}
	leaf := list[0]
	if _, err := tls.X509KeyPair(certificate, key); err != nil {
		return Check{Why: "certificate and key do not belong together: " + err.Error(), Leaf: leaf}
	}
	if why := unfit(want, leaf, now); why != "" {
		return Check{Why: why, Leaf: leaf}
	}
	if !want.Rotated && !now.Before(RenewAt(node, leaf)) {
		return Check{Why: WhyDue, Usable: true, Leaf: leaf}
	}
	return Check{Usable: true, Leaf: leaf}
}

// Source is where the certificate in use is: one that its user rotates is behind a link of the plan, which
// points elsewhere after the first rotation.
func Source(plan *wire.NodePlan, c wire.NodeCertificate) (certificate, key string) {
	if c.Rotated {
		for _, f := range plan.Files {
			if f.Link == c.CertPath {
				return f.Path, f.Path
			}
		}
	}
	return c.CertPath, c.KeyPath
}

// Look inspects a certificate on the disk.
func Look(d nodefile.Disk, plan *wire.NodePlan, c wire.NodeCertificate, now time.Time) (Check, error) {
	certificate, key := Source(plan, c)
	var content [2][]byte
	for i, p := range []string{certificate, key} {
		b, err := d.Read(p)
		if errors.Is(err, fs.ErrNotExist) {
			return Check{Why: p + " is missing"}, nil
		} else if err != nil {
			return Check{}, fmt.Errorf("certificate %s: %w", c.Name, err)
		}
		content[i] = b
	}
	return Inspect(plan.NodeName, c, content[0], content[1], now), nil
}

// Fresh is where a renewed certificate is until its key is in place: two files cannot be replaced at once, and
// whoever finds a new key beside an old certificate finds the rest here.
func Fresh(c wire.NodeCertificate) string { return c.CertPath + ".new" }

// Signer is the machine API as far as certificates go.
type Signer interface {
	Certificate(context.Context, wire.CertificateRequest) (wire.CertificateResponse, error)
}

// Request makes a key and has it certified for a cluster. What comes back is believed only after it was looked at.
func Request(ctx context.Context, signer Signer, cluster string, c wire.NodeCertificate, now func() time.Time) (certificate, key []byte, err error) {
	make, err := KeyMaker(c.KeyAlgorithm)
	if err != nil {
		return nil, nil, err
	}
	private, key, err := make()
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	subject := pkix.Name{CommonName: c.CommonName, Organization: c.Organizations}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, private)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	answer, err := signer.Certificate(ctx, wire.CertificateRequest{Cluster: cluster, Name: c.Name, CSR: csr})
	if err != nil {
		if client.Code(err) == wire.CodeForbidden {
			return nil, nil, fmt.Errorf("the server refuses it: %w", err)
		}
		return nil, nil, err
	}
	certificate = []byte(answer.Certificate)
	got := Inspect("", c, certificate, key, now())
	if !got.Usable {
		return nil, nil, fmt.Errorf("the server sent one that does not fit: %s", got.Why)
	}
	if now().Before(got.Leaf.NotBefore) {
		return nil, nil, fmt.Errorf("the server sent one that is valid from %s on, and this node's clock says %s: set the clock (NTP)",
			got.Leaf.NotBefore.UTC().Format(time.RFC3339), now().UTC().Format(time.RFC3339))
	}
	return certificate, key, nil
}

// WritePair puts a new key and its certificate in place. After a power cut, FinishPair ends what is left to do.
func WritePair(d nodefile.Disk, c wire.NodeCertificate, certificate, key []byte) error {
	if c.CertPath == c.KeyPath {
		return d.Write(c.CertPath, slices.Concat(certificate, key), 0o600)
	}
	if err := d.Write(Fresh(c), certificate, fs.FileMode(c.CertMode).Perm()); err != nil {
		return err
	}
	if err := d.Write(c.KeyPath, key, 0o600); err != nil {
		return err
	}
	return FinishPair(d, c)
}

// FinishPair moves a fresh certificate to its place if its key is in place already, and drops it otherwise.
func FinishPair(d nodefile.Disk, c wire.NodeCertificate) error {
	next := d.At(Fresh(c))
	certificate, err := os.ReadFile(next)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("certificate %s: %w", c.Name, err)
	}
	key, err := os.ReadFile(d.At(c.KeyPath))
	if err == nil {
		_, err = tls.X509KeyPair(certificate, key)
	}
	if err != nil {
		return os.Remove(next)
	}
	if err := os.Rename(next, d.At(c.CertPath)); err != nil {
		return d.Explain(c.CertPath, err)
	}
	return d.Sync(path.Dir(c.CertPath))
}

// Stamp stands for the certificates that a static pod reads only when it starts. It goes into the pod's manifest,
// so that a renewal changes the manifest, and the kubelet restarts the pod.
func Stamp(d nodefile.Disk, certificates []wire.NodeCertificate, pod string) ([]byte, error) {
	var all bytes.Buffer
	for _, c := range certificates {
		if !slices.Contains(c.Restart, pod) {
			continue
		}
		b, err := os.ReadFile(d.At(c.CertPath))
		if err != nil {
			return nil, fmt.Errorf("static pod %s needs certificate %s: %w", pod, c.Name, err)
		}
		all.Write(b)
	}
	return all.Bytes(), nil
}
