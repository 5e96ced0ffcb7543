package kube

import (
	"cmp"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"coldrack.dev/api/v1alpha1"
)

// Authority is one of a cluster's certificate authorities.
type Authority string

const (
	AuthorityKubernetes Authority = "ca"
	AuthorityFrontProxy Authority = "front-proxy-ca"
	AuthorityEtcd       Authority = "etcd-ca"
)

// AuthoritySpec says how an authority is made. Its key stays on the server, sealed.
type AuthoritySpec struct {
	Authority    Authority
	CommonName   string
	KeyAlgorithm v1alpha1.KeyAlgorithm
	TTL          time.Duration
}

// Usage of a certificate beyond signatures.
type Usage string

const (
	UsageServer Usage = "server"
	UsageClient Usage = "client"
)

// CertificateRequest is a certificate that a node must have. The node makes the key; the server signs what
// stands here, and not what the node's request says.
type CertificateRequest struct {
	Name      string
	Authority Authority
	// Issuer tells which of the cluster's authorities of that name signs.
	Issuer        string
	CommonName    string
	Organizations []string
	DNSNames      []string
	IPAddresses   []netip.Addr
	Usages        []Usage
	KeyAlgorithm  v1alpha1.KeyAlgorithm
	TTL           time.Duration
	// CertPath and KeyPath are equal where both are in one file, certificate first.
	CertPath string
	CertMode fs.FileMode
	KeyPath  string
	// Restart are the static pods that have to be restarted after a renewal, because they read the
	// certificate only once.
	Restart []string
	// Rotated: renewed by its own user from then on; it is requested only where there is none.
	Rotated bool
	// Remade are files with certificates of the same authority that their user has made anew when they are gone.
	Remade []string
}

// backdate makes a certificate valid on a machine whose clock is a little late.
const backdate = 5 * time.Minute

// Template is what the authority signs, without serial number and public key.
func (c CertificateRequest) Template(now time.Time) *x509.Certificate {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: c.CommonName, Organization: c.Organizations},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(c.TTL),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		BasicConstraintsValid: true,
		DNSNames:              c.DNSNames,
	}
	for _, address := range c.IPAddresses {
		template.IPAddresses = append(template.IPAddresses, address.AsSlice())
	}
	for _, usage := range c.Usages {
		switch usage {
		case UsageServer:
			template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		case UsageClient:
			template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		}
	}
	return template
}

// Template is what the authority signs itself with, without serial number and public key.
func (a AuthoritySpec) Template(now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: a.CommonName},
		DNSNames:              []string{a.CommonName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(a.TTL),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

// certificateSpec is one line of the certificate table.
type certificateSpec struct {
	name          string
	authority     Authority
	commonName    string // empty: the node's name
	organizations []string
	usages        []Usage
	// base is the path without extension.
	base  string
	names func(*node) ([]string, []netip.Addr)
	// needed by machines with one of these roles
	roles   []v1alpha1.Role
	restart []string
}

const nodeUserPrefix = "system:node:"

func (r *renderer) certificateTable() []certificateSpec {
	etcd := []v1alpha1.Role{v1alpha1.RoleEtcd}
	controlPlane := []v1alpha1.Role{v1alpha1.RoleControlPlane}
	both := []Usage{UsageServer, UsageClient}
	client, server := []Usage{UsageClient}, []Usage{UsageServer}
	return []certificateSpec{
		{name: "apiserver", authority: AuthorityKubernetes, commonName: "kube-apiserver", usages: server,
			base: pkiDir + "/apiserver", names: r.apiServerNames, roles: controlPlane},
		{name: "apiserver-kubelet-client", authority: AuthorityKubernetes, commonName: "kube-apiserver-kubelet-client",
			usages: client, base: pkiDir + "/apiserver-kubelet-client", roles: controlPlane},
		{name: "front-proxy-client", authority: AuthorityFrontProxy, commonName: "front-proxy-client", usages: client,
			base: pkiDir + "/front-proxy-client", roles: controlPlane},
		// etcd asks for client authentication on its own server certificate: its gRPC gateway uses it to
		// call back.
		{name: "etcd-server", authority: AuthorityEtcd, usages: both, base: pkiDir + "/etcd/server", names: etcdNames, roles: etcd},
		{name: "etcd-peer", authority: AuthorityEtcd, usages: both, base: pkiDir + "/etcd/peer", names: etcdNames, roles: etcd},
		{name: "etcd-healthcheck-client", authority: AuthorityEtcd, commonName: "kube-etcd-healthcheck-client", usages: client,
			base: pkiDir + "/etcd/healthcheck-client", roles: etcd},
		{name: "apiserver-etcd-client", authority: AuthorityEtcd, commonName: "kube-apiserver-etcd-client", usages: client,
			base: pkiDir + "/apiserver-etcd-client", roles: controlPlane},
		{name: "admin", authority: AuthorityKubernetes, commonName: "kubernetes-admin", organizations: []string{adminsGroup},
			usages: client, base: agentPKIDir + "/admin", roles: controlPlane},
		{name: "controller-manager", authority: AuthorityKubernetes, commonName: "system:kube-controller-manager", usages: client,
			base: agentPKIDir + "/controller-manager", roles: controlPlane, restart: []string{string(componentManager)}},
		{name: "scheduler", authority: AuthorityKubernetes, commonName: "system:kube-scheduler", usages: client,
			base: agentPKIDir + "/scheduler", roles: controlPlane, restart: []string{string(componentScheduler)}},
	}
}

func (r *renderer) certificates(n *node) []CertificateRequest {
	var requests []CertificateRequest
	for _, spec := range r.certificateTable() {
		if !n.runsAny(spec.roles...) {
			continue
		}
		request := CertificateRequest{
			Name: spec.name, Authority: spec.authority, Issuer: r.in.Issuers[spec.authority], CommonName: cmp.Or(spec.commonName, n.Hostname),
			Organizations: spec.organizations, Usages: spec.usages,
			KeyAlgorithm: r.cluster.Spec.PKI.KeyAlgorithm, TTL: r.certificateTTL(),
			CertPath: spec.base + ".crt", CertMode: modePublic, KeyPath: spec.base + ".key", Restart: spec.restart,
		}
		if spec.names != nil {
			request.DNSNames, request.IPAddresses = spec.names(n)
		}
		requests = append(requests, request)
	}
	// The kubelet keeps certificate and key in one file and replaces it when it rotates.
	requests = append(requests, CertificateRequest{
		Name: "kubelet-client", Authority: AuthorityKubernetes, Issuer: r.in.Issuers[AuthorityKubernetes], CommonName: nodeUserPrefix + n.Hostname,
		Organizations: []string{"system:nodes"}, Usages: []Usage{UsageClient},
		KeyAlgorithm: r.cluster.Spec.PKI.KeyAlgorithm, TTL: r.certificateTTL(),
		CertPath: kubeletClientFile, CertMode: modeSecret, KeyPath: kubeletClientFile, Rotated: true, Remade: []string{kubeletServerLink},
	})
	slices.SortFunc(requests, func(a, b CertificateRequest) int { return cmp.Compare(a.Name, b.Name) })
	return requests
}

// apiServerNames are kubeadm's, and what Coldrack adds to them.
func (r *renderer) apiServerNames(n *node) ([]string, []netip.Addr) {
	names := []string{n.Hostname, "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc." + r.cluster.Spec.Network.DNSDomain}
	var addresses []netip.Addr
	for _, services := range r.serviceCIDRs {
		addresses = append(addresses, services.Addr().Next())
	}
	addresses = append(addresses, n.Addresses...)
	for _, name := range append([]string{r.endpointHost}, r.extraAPIServerNames()...) {
		if address, err := netip.ParseAddr(name); err == nil {
			addresses = append(addresses, address)
		} else {
			names = append(names, name)
		}
	}
	return unique(names), unique(addresses)
}

// extraAPIServerNames are those that kubeadm does not know by itself.
func (r *renderer) extraAPIServerNames() []string {
	names := []string{"localhost"}
	for _, address := range r.loopbacks() {
		names = append(names, address.String())
	}
	if vip := r.cluster.Spec.Endpoint.VirtualIP; vip != nil {
		names = append(names, vip.Address)
	}
	return append(names, r.cluster.Spec.Endpoint.ExtraSANs...)
}

func etcdNames(n *node) ([]string, []netip.Addr) {
	addresses := append(slices.Clone(n.Addresses), netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback())
	return unique([]string{n.Hostname, "localhost"}), unique(addresses)
}

// Authorities says how a cluster's authorities are made. They are made before there is anything to render.
func Authorities(cluster *v1alpha1.Cluster) []AuthoritySpec {
	c := cluster.DeepCopy()
	c.Default()
	return (&renderer{cluster: c}).authorities()
}

func (r *renderer) authorities() []AuthoritySpec {
	var specs []AuthoritySpec
	for _, a := range []struct {
		authority  Authority
		commonName string
	}{{AuthorityKubernetes, "kubernetes"}, {AuthorityEtcd, "etcd-ca"}, {AuthorityFrontProxy, "front-proxy-ca"}} {
		specs = append(specs, AuthoritySpec{a.authority, a.commonName, r.cluster.Spec.PKI.KeyAlgorithm, r.authorityTTL()})
	}
	return specs
}

// authorityFiles are the authorities' certificates that a node verifies others with.
func (r *renderer) authorityFiles(n *node) ([]File, error) {
	type place struct {
		authority Authority
		path      string
	}
	places := []place{{AuthorityKubernetes, pkiDir + "/ca.crt"}}
	if n.runs(v1alpha1.RoleControlPlane) {
		places = append(places, place{AuthorityFrontProxy, pkiDir + "/front-proxy-ca.crt"})
	}
	if n.runsAny(v1alpha1.RoleControlPlane, v1alpha1.RoleEtcd) {
		places = append(places, place{AuthorityEtcd, pkiDir + "/etcd/ca.crt"})
	}
	var files []File
	for _, p := range places {
		pem := r.in.Authorities[p.authority]
		if len(pem) == 0 {
			return nil, fmt.Errorf("cluster %s has no certificate of authority %s yet; make the authorities before rendering", r.cluster.Name, p.authority)
		}
		files = append(files, File{Path: p.path, Mode: modePublic, Content: pem})
	}
	return files, nil
}

func (r *renderer) certificateTTL() time.Duration {
	if t := r.cluster.Spec.PKI.CertificateTTL; t != nil {
		return t.Duration
	}
	return 365 * 24 * time.Hour
}

func (r *renderer) authorityTTL() time.Duration {
	if t := r.cluster.Spec.PKI.AuthorityTTL; t != nil {
		return t.Duration
	}
	return 10 * 365 * 24 * time.Hour
}

func unique[T comparable](list []T) []T {
	var kept []T
	for _, item := range list {
		if !slices.Contains(kept, item) {
			kept = append(kept, item)
		}
	}
	return kept
}
