package kubeapi

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/cluster/kubeapi/pkcs10"
	certificates "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	nodeUser      = "system:node:"
	nodesGroup    = "system:nodes"
	bootstrapUser = "system:bootstrap:"
	tokenGroup    = "system:bootstrappers:kubeadm:default-node-token"
	mastersGroup  = "system:masters"
	maxTTL        = 365 * 24 * time.Hour
	minTTL        = 10 * time.Minute // the API's own lower bound of expirationSeconds
	backdate      = 5 * time.Minute  // for clocks that are a little late
	signerLegacy  = "kubernetes.io/legacy-unknown"
)

// decision is what becomes of a certificate request.
type decision int

const (
	// ignored: another signer's.
	ignored decision = iota
	// approved by rule, and signed.
	approved
	// refused: denied, or where somebody approved it already, failed.
	refused
	// later: what it depends on is not there yet.
	later
	// askPerson: signed once a person has approved it.
	askPerson
)

// policy decides about certificate requests. Who may have what:
//
//   - kubelet-serving: only a node for itself (user and common name system:node:NAME, organization system:nodes).
//     A machine of the plan may have its hostname and the addresses that the inventory has for it. A foreign node
//     may have its own name and the addresses of its Node object, except whatever belongs to somebody else: it
//     writes that object itself, and kubelets' certificates come from the same authority as those of API servers.
//     So not: names and addresses of API servers and of machines, addresses of other nodes, pod and service
//     networks, loopback and link-local addresses.
//   - kube-apiserver-client-kubelet: a registered or planned node for itself (rotation); a bootstrap token for a
//     name that is neither a machine's nor reserved nor a registered node's. Of others, a person decides, but
//     nobody can have the name of a machine.
//   - kube-apiserver-client: what a person has approved, but neither group system:masters nor a machine's name.
//   - legacy-unknown: nothing.
//
// An approval by somebody else, kube-controller-manager included, changes nothing of the first two rules.
type policy struct {
	wanted *Wanted
	// servers are the API servers' addresses.
	servers []netip.AddrPort
	// node finds a Node object; nodes are all of them.
	node  func(name string) *corev1.Node
	nodes func() []*corev1.Node
}

// verdict is a decision with its reason in words.
type verdict struct {
	decision decision
	reason   string
	// template of the certificate, for approved and askPerson.
	template *x509.Certificate
	public   crypto.PublicKey
}

func refuse(format string, args ...any) verdict {
	return verdict{decision: refused, reason: fmt.Sprintf(format, args...)}
}

// judge looks at a request, whether somebody has approved it or not.
func (p *policy) judge(csr *certificates.CertificateSigningRequest, now time.Time) verdict {
	var rule func(*certificates.CertificateSigningRequest, *x509.CertificateRequest) verdict
	switch csr.Spec.SignerName {
	case certificates.KubeletServingSignerName:
		rule = p.serving
	case certificates.KubeAPIServerClientKubeletSignerName:
		rule = p.kubeletClient
	case certificates.KubeAPIServerClientSignerName:
		rule = p.client
	case signerLegacy:
		return refuse("this cluster signs nothing for %s; name one of the other signers", signerLegacy)
	default:
		return verdict{decision: ignored}
	}
	request, err := pkcs10.Parse(csr.Spec.Request)
	if err != nil {
		return refuse("%v", err)
	}
	v := rule(csr, request)
	if v.decision == approved || v.decision == askPerson {
		v.public = request.PublicKey
		v.template = template(csr, request, now)
	}
	return v
}

// template takes over subject and names, which the rules have looked at, and nothing else of the request.
func template(csr *certificates.CertificateSigningRequest, request *x509.CertificateRequest, now time.Time) *x509.Certificate {
	ttl := maxTTL
	if s := csr.Spec.ExpirationSeconds; s != nil {
		ttl = max(minTTL, min(maxTTL, time.Duration(*s)*time.Second))
	}
	t := &x509.Certificate{
		Subject:   pkix.Name{CommonName: request.Subject.CommonName, Organization: request.Subject.Organization},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(ttl), BasicConstraintsValid: true,
		DNSNames: request.DNSNames, IPAddresses: request.IPAddresses,
	}
	for _, usage := range csr.Spec.Usages {
		switch usage {
		case certificates.UsageDigitalSignature:
			t.KeyUsage |= x509.KeyUsageDigitalSignature
		case certificates.UsageKeyEncipherment:
			t.KeyUsage |= x509.KeyUsageKeyEncipherment
		case certificates.UsageServerAuth:
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		case certificates.UsageClientAuth:
			t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		}
	}
	return t
}

// checkUsages wants the purpose; digital signature may be there, and key encipherment for RSA.
func checkUsages(usages []certificates.KeyUsage, purpose certificates.KeyUsage) error {
	if !slices.Contains(usages, purpose) {
		return fmt.Errorf("usages %v lack %q", usages, purpose)
	}
	for _, usage := range usages {
		if usage != certificates.UsageDigitalSignature && usage != certificates.UsageKeyEncipherment && usage != purpose {
			return fmt.Errorf("usage %q is not for this signer", usage)
		}
	}
	return nil
}

// nodeSubject returns the name of the node that a request's subject stands for.
func nodeSubject(request *x509.CertificateRequest) (string, error) {
	name, ok := strings.CutPrefix(request.Subject.CommonName, nodeUser)
	if !ok {
		return "", fmt.Errorf("common name %q does not begin with %s", request.Subject.CommonName, nodeUser)
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return "", fmt.Errorf("%q is no name of a node: %s", name, problems[0])
	}
	if !slices.Equal(request.Subject.Organization, []string{nodesGroup}) {
		return "", fmt.Errorf("organizations are %q, want only %s", request.Subject.Organization, nodesGroup)
	}
	return name, nil
}

func (p *policy) serving(csr *certificates.CertificateSigningRequest, request *x509.CertificateRequest) verdict {
	name, err := nodeSubject(request)
	if err != nil {
		return refuse("%v", err)
	}
	if csr.Spec.Username != request.Subject.CommonName || !slices.Contains(csr.Spec.Groups, nodesGroup) {
		return refuse("%s asks for the certificate of node %s; only a node itself may, as a member of %s", csr.Spec.Username, name, nodesGroup)
	}
	if err := checkUsages(csr.Spec.Usages, certificates.UsageServerAuth); err != nil {
		return refuse("%v", err)
	}
	if len(request.EmailAddresses)+len(request.URIs) > 0 {
		return refuse("a kubelet has neither e-mail addresses nor URIs")
	}
	if len(request.DNSNames)+len(request.IPAddresses) == 0 {
		return refuse("it names neither a DNS name nor an address")
	}
	for _, dns := range request.DNSNames {
		if dns != name {
			return refuse("DNS name %q is not that of node %s", dns, name)
		}
	}
	var addresses []netip.Addr
	for _, ip := range request.IPAddresses {
		address, ok := netip.AddrFromSlice(ip)
		if !ok {
			return refuse("%v is no address", ip)
		}
		addresses = append(addresses, address.Unmap())
	}
	if machine := p.wanted.node(name); machine != nil {
		for _, address := range addresses {
			if !slices.Contains(machine.Addresses, address) {
				return refuse("address %s is not one of %v, which the inventory has for node %s", address, machine.Addresses, name)
			}
		}
		return verdict{decision: approved, reason: "a machine of the plan, with its own name and addresses"}
	}
	return p.foreignServing(name, addresses)
}

func (p *policy) foreignServing(name string, addresses []netip.Addr) verdict {
	if p.reservedName(name) {
		return refuse("%s is a name that no node from outside may have", name)
	}
	node := p.node(name)
	if node == nil {
		return verdict{decision: later, reason: "node " + name + " has not registered yet"}
	}
	own := nodeAddresses(node)
	if len(own) == 0 {
		return verdict{decision: later, reason: "node " + name + " has not told its addresses yet"}
	}
	for _, address := range addresses {
		if !slices.Contains(own, address) {
			return refuse("address %s is not one of %v, which node %s has told", address, own, name)
		}
		if owner := p.addressOwner(name, address); owner != "" {
			return refuse("address %s belongs to %s", address, owner)
		}
	}
	return verdict{decision: approved, reason: "a node from outside the plan, with a name and addresses that are nobody else's"}
}

// addressOwner says in words whose an address is, if it cannot be that of a foreign node.
func (p *policy) addressOwner(name string, address netip.Addr) string {
	if !address.IsGlobalUnicast() {
		return "no single machine"
	}
	for _, server := range p.servers {
		if server.Addr() == address {
			return "an API server"
		}
	}
	for _, text := range p.wanted.Reserved {
		if reserved, err := netip.ParseAddr(text); err == nil && reserved.Unmap() == address {
			return "the control plane or another machine"
		}
	}
	for _, network := range p.wanted.ReservedNetworks {
		if network.Contains(address) {
			return "pods or services (" + network.String() + ")"
		}
	}
	for i := range p.wanted.Nodes {
		if slices.Contains(p.wanted.Nodes[i].Addresses, address) {
			return "machine " + p.wanted.Nodes[i].Name
		}
	}
	for _, other := range p.nodes() {
		if other.Name != name && slices.Contains(nodeAddresses(other), address) {
			return "node " + other.Name
		}
	}
	return ""
}

// reservedName is true for names that API servers answer to, or that are reserved otherwise.
func (p *policy) reservedName(name string) bool {
	if name == "localhost" || name == "kubernetes" || strings.HasPrefix(name, "kubernetes.default") {
		return true
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	for _, reserved := range p.wanted.Reserved {
		// A wildcard is matched against names like this one by TLS clients.
		suffix, wildcard := strings.CutPrefix(reserved, "*")
		if strings.EqualFold(name, reserved) || wildcard && strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

func (p *policy) kubeletClient(csr *certificates.CertificateSigningRequest, request *x509.CertificateRequest) verdict {
	name, err := nodeSubject(request)
	if err != nil {
		return refuse("%v", err)
	}
	if err := checkUsages(csr.Spec.Usages, certificates.UsageClientAuth); err != nil {
		return refuse("%v", err)
	}
	if len(request.DNSNames)+len(request.IPAddresses)+len(request.EmailAddresses)+len(request.URIs) > 0 {
		return refuse("a client certificate of a kubelet has no DNS names, addresses or URIs")
	}
	planned := p.wanted.node(name) != nil
	self := csr.Spec.Username == request.Subject.CommonName && slices.Contains(csr.Spec.Groups, nodesGroup)
	switch {
	case self && planned:
		return verdict{decision: approved, reason: "a machine of the plan renews its own certificate"}
	case planned:
		return refuse("%s is the name of one of the cluster's machines, which get their certificates from Coldrack; %s cannot have it", name, csr.Spec.Username)
	case p.reservedName(name):
		return refuse("%s is a name that no node from outside may have", name)
	case self && p.node(name) == nil:
		return verdict{decision: later, reason: "node " + name + " is not registered"}
	case self:
		return verdict{decision: approved, reason: "a node renews its own certificate"}
	case strings.HasPrefix(csr.Spec.Username, nodeUser):
		return refuse("%s asks for the certificate of node %s", csr.Spec.Username, name)
	case strings.HasPrefix(csr.Spec.Username, bootstrapUser) && slices.Contains(csr.Spec.Groups, tokenGroup):
		if p.node(name) != nil {
			return refuse("there is a node %s already; if this machine is to replace it, delete that node first", name)
		}
		return verdict{decision: approved, reason: "a machine joins with a bootstrap token, with a name that is free"}
	}
	return verdict{decision: askPerson, reason: fmt.Sprintf("%s asks for the certificate of node %s; a person decides", csr.Spec.Username, name)}
}

func (p *policy) client(csr *certificates.CertificateSigningRequest, request *x509.CertificateRequest) verdict {
	if err := checkUsages(csr.Spec.Usages, certificates.UsageClientAuth); err != nil {
		return refuse("%v", err)
	}
	if request.Subject.CommonName == "" {
		return refuse("it has no common name, which is the user's name")
	}
	if slices.Contains(request.Subject.Organization, mastersGroup) {
		return refuse("members of %s are not made this way", mastersGroup)
	}
	if name, ok := strings.CutPrefix(request.Subject.CommonName, nodeUser); ok && (p.wanted.node(name) != nil || p.reservedName(name)) {
		return refuse("%s is the name of a machine, which gets its certificates from Coldrack", name)
	}
	if len(request.DNSNames)+len(request.IPAddresses) > 0 {
		return refuse("a client certificate has no DNS names or addresses")
	}
	return verdict{decision: askPerson, reason: "a person decides: kubectl certificate approve " + csr.Name}
}
