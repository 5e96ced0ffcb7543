package bringup

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
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/wire"
)

const pemCertificate = "CERTIFICATE"

// keyMaker returns how keys of an algorithm are made, and encoded as kubeadm encodes them.
func keyMaker(algorithm string) (func() (crypto.Signer, []byte, error), error) {
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

// algorithmOf a public key, in the plan's words.
func algorithmOf(public any) string {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		return fmt.Sprintf("ECDSA-P%d", k.Curve.Params().BitSize)
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", k.N.BitLen())
	}
	return fmt.Sprintf("%T", public)
}

// parseCertificates reads all certificates of a PEM text, of which there must be one.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
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
	authorities, err := parseCertificates([]byte(want.Authority))
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
	case algorithmOf(leaf.PublicKey) != want.KeyAlgorithm:
		return fmt.Sprintf("its key is %s, want %s", algorithmOf(leaf.PublicKey), want.KeyAlgorithm)
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

// due says that a third of the certificate's life or less is left.
func due(leaf *x509.Certificate, now time.Time) bool {
	return now.After(leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 3))
}

// check looks at a certificate and its key as they are in their files.
type check struct {
	// why it has to be replaced, "" when it does not. It can still be used when usable is true.
	why    string
	usable bool
	leaf   *x509.Certificate
}

func inspect(want wire.NodeCertificate, certificate, key []byte, now time.Time) check {
	list, err := parseCertificates(certificate)
	if err != nil {
		return check{why: "the certificate's file cannot be read: " + err.Error()}
	}
	leaf := list[0]
	if _, err := tls.X509KeyPair(certificate, key); err != nil {
		return check{why: "certificate and key do not belong together: " + err.Error(), leaf: leaf}
	}
	if why := unfit(want, leaf, now); why != "" {
		return check{why: why, leaf: leaf}
	}
	if !want.Rotated && due(leaf, now) {
		return check{why: "two thirds of its life are over", usable: true, leaf: leaf}
	}
	return check{usable: true, leaf: leaf}
}

// source is where the certificate in use is: one that its user rotates is behind a link of the plan, which
// points elsewhere after the first rotation.
func source(plan *wire.NodePlan, c wire.NodeCertificate) (certificate, key string) {
	if c.Rotated {
		if l := find(plan.Files, func(f wire.NodeFile) bool { return f.Link == c.CertPath }); l.Path != "" {
			return l.Path, l.Path
		}
	}
	return c.CertPath, c.KeyPath
}

// look inspects a certificate on the disk.
func (d disk) look(plan *wire.NodePlan, c wire.NodeCertificate, now time.Time) (check, error) {
	certificate, key := source(plan, c)
	var content [2][]byte
	for i, p := range []string{certificate, key} {
		b, err := d.read(p)
		if errors.Is(err, fs.ErrNotExist) {
			return check{why: p + " is missing"}, nil
		} else if err != nil {
			return check{}, fmt.Errorf("certificate %s: %w", c.Name, err)
		}
		content[i] = b
	}
	return inspect(c, content[0], content[1], now), nil
}

// fresh is where a renewed certificate is until its key is in place: two files cannot be replaced at once, and
// whoever finds a new key beside an old certificate finds the rest here.
func fresh(c wire.NodeCertificate) string { return c.CertPath + ".new" }

// certificate makes sure that the node has one of the plan's certificates. It reports whether it changed.
func (p *pass) certificate(ctx context.Context, c wire.NodeCertificate) (bool, error) {
	d := p.disk
	if err := d.finishPair(c); err != nil {
		return false, err
	}
	was, err := d.look(p.plan, c, p.Now())
	if err != nil {
		return false, err
	}
	p.track.expiry(c.Name, was.leaf)
	if was.why == "" {
		return false, p.certificateModes(c)
	}
	certificate, key, err := p.request(ctx, c)
	if err != nil {
		if was.usable && ctx.Err() == nil {
			p.Log.Warn("cannot renew a certificate; the present one is still good", "certificate", c.Name, "expires", was.leaf.NotAfter, "err", err)
			return false, nil
		}
		return false, fmt.Errorf("certificate %s: %s; a new one: %w", c.Name, was.why, err)
	}
	paths := []string{c.CertPath}
	if c.KeyPath != c.CertPath {
		paths = append(paths, c.KeyPath, fresh(c))
	}
	if err := p.prepare(paths); err != nil {
		return false, err
	}
	if err := d.writePair(c, certificate, key); err != nil {
		return false, fmt.Errorf("certificate %s: %w", c.Name, err)
	}
	if link, _ := source(p.plan, c); link != c.CertPath {
		// The link may point at a rotated certificate that is of no use any more.
		if target, err := os.Readlink(d.at(link)); err != nil || target != c.CertPath {
			if err := p.prepare([]string{link}); err != nil {
				return false, err
			}
			if err := d.link(link, c.CertPath); err != nil {
				return false, err
			}
		}
	}
	list, err := parseCertificates(certificate)
	if err != nil {
		return false, err
	}
	p.track.expiry(c.Name, list[0])
	p.Log.Info("certificate written", "certificate", c.Name, "path", c.CertPath, "because", was.why, "expires", list[0].NotAfter)
	return true, nil
}

// certificateModes corrects the modes of files whose content is right.
func (p *pass) certificateModes(c wire.NodeCertificate) error {
	modes := map[string]fs.FileMode{c.CertPath: fs.FileMode(c.CertMode).Perm()}
	modes[c.KeyPath] = 0o600
	for file, mode := range modes {
		info, err := os.Lstat(p.disk.at(file))
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() == mode {
			continue // one that is rotated may be gone from its first place
		}
		if err := os.Chmod(p.disk.at(file), mode); err != nil {
			return fmt.Errorf("certificate %s: %w", c.Name, err)
		}
		p.Log.Info("mode corrected", "path", file, "was", info.Mode().Perm(), "is", mode)
	}
	return nil
}

// request makes a key and has it certified. What comes back is believed only after it was looked at.
func (p *pass) request(ctx context.Context, c wire.NodeCertificate) (certificate, key []byte, err error) {
	make, err := keyMaker(c.KeyAlgorithm)
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
	answer, err := p.Server.Certificate(ctx, wire.CertificateRequest{Cluster: p.plan.Cluster, Name: c.Name, CSR: csr})
	if err != nil {
		if client.Code(err) == wire.CodeForbidden {
			return nil, nil, fmt.Errorf("the server refuses it: %w", err)
		}
		return nil, nil, err
	}
	certificate = []byte(answer.Certificate)
	got := inspect(c, certificate, key, p.Now())
	if !got.usable {
		return nil, nil, fmt.Errorf("the server sent one that does not fit: %s", got.why)
	}
	if p.Now().Before(got.leaf.NotBefore) {
		return nil, nil, fmt.Errorf("the server sent one that is valid from %s on, and this node's clock says %s: set the clock (NTP)",
			got.leaf.NotBefore.UTC().Format(time.RFC3339), p.Now().UTC().Format(time.RFC3339))
	}
	return certificate, key, nil
}

// writePair puts a new key and its certificate in place. After a power cut, finishPair ends what is left to do.
func (d disk) writePair(c wire.NodeCertificate, certificate, key []byte) error {
	if c.CertPath == c.KeyPath {
		return d.write(c.CertPath, slices.Concat(certificate, key), 0o600)
	}
	if err := d.write(fresh(c), certificate, fs.FileMode(c.CertMode).Perm()); err != nil {
		return err
	}
	if err := d.write(c.KeyPath, key, 0o600); err != nil {
		return err
	}
	return d.finishPair(c)
}

// finishPair moves a fresh certificate to its place if its key is in place already, and drops it otherwise.
func (d disk) finishPair(c wire.NodeCertificate) error {
	next := d.at(fresh(c))
	certificate, err := os.ReadFile(next)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("certificate %s: %w", c.Name, err)
	}
	key, err := os.ReadFile(d.at(c.KeyPath))
	if err == nil {
		_, err = tls.X509KeyPair(certificate, key)
	}
	if err != nil {
		return os.Remove(next)
	}
	if err := os.Rename(next, d.at(c.CertPath)); err != nil {
		return d.explain(c.CertPath, err)
	}
	return d.sync(path.Dir(c.CertPath))
}

// stamp stands for the certificates that a static pod reads only when it starts. It goes into the pod's manifest,
// so that a renewal changes the manifest, and the kubelet restarts the pod.
func (d disk) stamp(certificates []wire.NodeCertificate, pod string) ([]byte, error) {
	var all bytes.Buffer
	for _, c := range certificates {
		if !slices.Contains(c.Restart, pod) {
			continue
		}
		b, err := os.ReadFile(d.at(c.CertPath))
		if err != nil {
			return nil, fmt.Errorf("static pod %s needs certificate %s: %w", pod, c.Name, err)
		}
		all.Write(b)
	}
	return all.Bytes(), nil
}
