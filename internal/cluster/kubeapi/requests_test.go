package kubeapi

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	certificates "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"coldrack.dev/test/ca"
)

const (
	serving       = certificates.KubeletServingSignerName
	kubeletClient = certificates.KubeAPIServerClientKubeletSignerName
	apiClient     = certificates.KubeAPIServerClientSignerName
)

// asked is a certificate request, by default as a kubelet of node-01 makes it.
type asked struct {
	signer        string
	commonName    string
	organizations []string
	dns           []string
	ips           []string
	uris          []string
	usages        []certificates.KeyUsage
	expiration    int32
	key           crypto.Signer
	raw           []byte // instead of all that
}

// requester is who asks, as the API server sees it.
type requester struct {
	user   string
	groups []string
}

var (
	asNode1 = requester{nodeUser + "node-01", []string{nodesGroup}}
	asGuest = requester{nodeUser + "guest", []string{nodesGroup}}
	asToken = requester{bootstrapUser + "abcdef", []string{"system:bootstrappers", tokenGroup}}
	asAdmin = requester{"admin", []string{"system:masters"}}
)

func subject(signer, name string) asked {
	return asked{signer: signer, commonName: nodeUser + name, organizations: []string{nodesGroup}}
}

func usagesOf(signer string) []certificates.KeyUsage {
	if signer == serving {
		return []certificates.KeyUsage{certificates.UsageDigitalSignature, certificates.UsageServerAuth}
	}
	return []certificates.KeyUsage{certificates.UsageDigitalSignature, certificates.UsageClientAuth}
}

// object is the request as kubelets make it.
func (a asked) object(t *testing.T) *certificates.CertificateSigningRequest {
	t.Helper()
	request := &x509.CertificateRequest{Subject: pkix.Name{CommonName: a.commonName, Organization: a.organizations}, DNSNames: a.dns}
	for _, ip := range a.ips {
		request.IPAddresses = append(request.IPAddresses, net.ParseIP(ip))
	}
	for _, text := range a.uris {
		uri, err := url.Parse(text)
		check(t, err)
		request.URIs = append(request.URIs, uri)
	}
	if a.key == nil {
		a.key = ca.NewKey(t)
	}
	content := a.raw
	if content == nil {
		der, err := x509.CreateCertificateRequest(rand.Reader, request, a.key)
		check(t, err)
		content = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	csr := &certificates.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{GenerateName: "csr-"},
		Spec: certificates.CertificateSigningRequestSpec{SignerName: a.signer, Request: content, Usages: a.usages}}
	if csr.Spec.Usages == nil {
		csr.Spec.Usages = usagesOf(a.signer)
	}
	if a.expiration > 0 {
		csr.Spec.ExpirationSeconds = &a.expiration
	}
	return csr
}

func (a asked) create(t *testing.T, client kubernetes.Interface) (string, error) {
	t.Helper()
	created, err := client.CertificatesV1().CertificateSigningRequests().Create(t.Context(), a.object(t), metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return created.Name, nil
}

// outcome waits until a request is decided.
func (c *testCluster) outcome(t *testing.T, name string) *certificates.CertificateSigningRequest {
	t.Helper()
	admin := c.as("admin", "system:masters")
	var csr *certificates.CertificateSigningRequest
	eventually(t, "request "+name+" is decided", func() (bool, string) {
		var err error
		csr, err = admin.CertificatesV1().CertificateSigningRequests().Get(t.Context(), name, metav1.GetOptions{})
		check(t, err)
		return len(csr.Status.Certificate) > 0 || condition(csr, certificates.CertificateDenied) != nil || condition(csr, certificates.CertificateFailed) != nil,
			fmt.Sprintf("%+v", csr.Status)
	})
	return csr
}

func certificateOf(t *testing.T, csr *certificates.CertificateSigningRequest) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(csr.Status.Certificate)
	if block == nil {
		t.Fatalf("no certificate: %+v", csr.Status)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	check(t, err)
	return certificate
}

// token makes a bootstrap token as "kubeadm token create" does.
func (c *testCluster) token(t *testing.T) string {
	t.Helper()
	_, err := c.as("admin", "system:masters").CoreV1().Secrets("kube-system").Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-abcdef"}, Type: corev1.SecretTypeBootstrapToken,
		StringData: map[string]string{"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
			"expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339), "auth-extra-groups": tokenGroup}}, metav1.CreateOptions{})
	check(t, err)
	return "abcdef.0123456789abcdef"
}

// granted is a request that is signed at once.
type granted struct {
	name   string
	who    requester
	ask    asked
	change func(*asked)
	check  func(*x509.Certificate) bool
}

func grants(rsaKey *rsa.PrivateKey) []granted {
	return []granted{
		{"a machine's serving certificate with its name and address", asNode1, subject(serving, "node-01"),
			func(a *asked) { a.dns, a.ips = []string{"node-01"}, []string{"10.20.0.11"} },
			func(cert *x509.Certificate) bool {
				return slices.Equal(cert.DNSNames, []string{"node-01"}) && len(cert.IPAddresses) == 1 && slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) && !cert.IsCA
			}},
		{"with an RSA key and key encipherment", asNode1, subject(serving, "node-01"),
			func(a *asked) {
				a.dns, a.key = []string{"node-01"}, rsaKey
				a.usages = append(usagesOf(serving), certificates.UsageKeyEncipherment)
			},
			func(cert *x509.Certificate) bool { return cert.KeyUsage&x509.KeyUsageKeyEncipherment != 0 }},
		{"a machine renews its client certificate, for a year at most", asNode1, subject(kubeletClient, "node-01"),
			func(a *asked) { a.expiration = 10 * 365 * 24 * 3600 },
			func(cert *x509.Certificate) bool {
				year := time.Until(cert.NotAfter)
				return year < 366*24*time.Hour && year > 364*24*time.Hour && cert.Subject.CommonName == "system:node:node-01" && slices.Equal(cert.Subject.Organization, []string{nodesGroup})
			}},
		{"for as short as it asks", asNode1, subject(kubeletClient, "node-01"), func(a *asked) { a.expiration = 3600 },
			func(cert *x509.Certificate) bool {
				return time.Until(cert.NotAfter) < 61*time.Minute && time.Until(cert.NotAfter) > 55*time.Minute
			}},
		{"a token joins with a name that is free", asToken, subject(kubeletClient, "newcomer"), nil, nil},
		{"a node from outside renews its client certificate", asGuest, subject(kubeletClient, "guest"), nil, nil},
		{"a node from outside serves with its own name and address", asGuest, subject(serving, "guest"),
			func(a *asked) { a.dns, a.ips = []string{"guest"}, []string{"10.20.0.99"} }, nil},
	}
}

// refusal is a request that is denied, with a part of the reason.
type refusal struct {
	name   string
	who    requester
	ask    asked
	change func(*asked)
	reason string
}

func denials() []refusal {
	return []refusal{
		{"the address of another machine", asNode1, subject(serving, "node-01"), func(a *asked) { a.ips = []string{"10.20.0.12"} },
			"address 10.20.0.12 is not one of [10.20.0.11], which the inventory has"},
		{"the address of the API's virtual IP or of anybody", asNode1, subject(serving, "node-01"), func(a *asked) { a.ips = []string{"10.20.0.11", "203.0.113.1"} },
			"address 203.0.113.1 is not one of"},
		{"the name of the API", asNode1, subject(serving, "node-01"), func(a *asked) { a.dns = []string{"node-01", "kubernetes.default.svc"} },
			`DNS name "kubernetes.default.svc" is not that of node node-01`},
		{"a wildcard", asNode1, subject(serving, "node-01"), func(a *asked) { a.dns = []string{"*"} }, `DNS name "*"`},
		{"another node's serving certificate", asNode1, subject(serving, "node-03"), func(a *asked) { a.dns = []string{"node-03"} },
			"system:node:node-01 asks for the certificate of node node-03"},
		{"a serving certificate for an administrator", asAdmin, subject(serving, "node-01"), func(a *asked) { a.dns = []string{"node-01"} },
			"admin asks for the certificate of node node-01; only a node itself may"},
		{"a URI", asNode1, subject(serving, "node-01"), func(a *asked) { a.dns, a.uris = []string{"node-01"}, []string{"spiffe://rack/x"} }, "neither e-mail addresses nor URIs"},
		{"no name at all", asNode1, subject(serving, "node-01"), nil, "neither a DNS name nor an address"},
		{"client use of a serving certificate", asNode1, subject(serving, "node-01"), func(a *asked) {
			a.dns, a.usages = []string{"node-01"}, append(usagesOf(serving), certificates.UsageClientAuth)
		}, `usage "client auth" is not for this signer`},
		{"signing of others", asNode1, subject(serving, "node-01"), func(a *asked) {
			a.dns, a.usages = []string{"node-01"}, append(usagesOf(serving), certificates.UsageCertSign)
		}, `usage "cert sign" is not for this signer`},
		{"another group", asNode1, subject(serving, "node-01"), func(a *asked) { a.dns, a.organizations = []string{"node-01"}, []string{"system:masters"} },
			`organizations are ["system:masters"], want only system:nodes`},
		{"one group more", asNode1, subject(kubeletClient, "node-01"), func(a *asked) { a.organizations = []string{nodesGroup, "system:masters"} },
			"want only system:nodes"},
		{"a person's name", asNode1, asked{signer: kubeletClient, commonName: "admin", organizations: []string{nodesGroup}}, nil, `common name "admin" does not begin with system:node:`},
		{"another node's client certificate", asNode1, subject(kubeletClient, "guest"), nil, "system:node:node-01 asks for the certificate of node guest"},
		{"another machine's client certificate", asNode1, subject(kubeletClient, "node-02"), nil, "node-02 is the name of one of the cluster's machines"},
		{"a client certificate with a name to serve", asNode1, subject(kubeletClient, "node-01"), func(a *asked) { a.dns = []string{"kubernetes"} }, "has no DNS names"},
		{"a token that takes a machine's name", asToken, subject(kubeletClient, "node-03"), nil, "node-03 is the name of one of the cluster's machines, which get their certificates from Coldrack"},
		{"a token that takes the name of a registered node", asToken, subject(kubeletClient, "guest"), nil, "there is a node guest already"},
		{"a token that takes the name of the API", asToken, subject(kubeletClient, "kubernetes"), nil, "kubernetes is a name that no node from outside may have"},
		{"a token that takes the name of a released machine", asToken, subject(kubeletClient, "released-machine"), nil, "is a name that no node from outside may have"},
		{"a token that makes an administrator", asToken, asked{signer: kubeletClient, commonName: "kubernetes-admin", organizations: []string{"kubeadm:cluster-admins"}}, nil, "does not begin with system:node:"},
		{"a token with a name that no node can have", asToken, subject(kubeletClient, "../node-01"), nil, "is no name of a node"},
		{"an administrator who takes a machine's name", asAdmin, subject(kubeletClient, "node-02"), nil, "node-02 is the name of one of the cluster's machines"},
		{"a node from outside with the address of an API server", asGuest, subject(serving, "guest"), func(a *asked) { a.ips = []string{"10.20.0.11"} }, "address 10.20.0.11 is not one of [10.20.0.99]"},
		{"the legacy signer", asAdmin, asked{signer: signerLegacy, commonName: "someone"}, func(a *asked) { a.usages = usagesOf(apiClient) }, "signs nothing for kubernetes.io/legacy-unknown"},
		{"a person with a machine's name", asAdmin, asked{signer: apiClient, commonName: "system:node:node-01", organizations: []string{nodesGroup}}, nil, "node-01 is the name of a machine"},
	}
}

func (c *testCluster) testRequests(t *testing.T) {
	w := c.run(t, func(o *Options) { o.Wanted.Reserved = append(o.Wanted.Reserved, "released-machine") })
	eventually(t, "the nodes are known", func() (bool, string) {
		s := w.last()
		return len(s.Nodes) >= 2 && s.Objects.Digest != "", fmt.Sprintf("%+v", s)
	})
	self := func(name string) *kubernetes.Clientset { return c.as(nodeUser+name, nodesGroup) }
	token, admin := c.withToken(c.token(t)), c.as("admin", "system:masters")
	clients := map[string]kubernetes.Interface{asNode1.user: self("node-01"), asGuest.user: self("guest"), asToken.user: token, asAdmin.user: admin}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)

	for _, test := range grants(rsaKey) {
		t.Run("signed: "+test.name, func(t *testing.T) {
			ask := test.ask
			if test.change != nil {
				test.change(&ask)
			}
			name, err := ask.create(t, clients[test.who.user])
			check(t, err)
			csr := c.outcome(t, name)
			certificate := certificateOf(t, csr)
			if test.check != nil && !test.check(certificate) {
				t.Errorf("certificate is %+v", certificate)
			}
			roots := x509.NewCertPool()
			roots.AddCert(c.authorities["ca"].Cert)
			if _, err := certificate.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
				t.Error(err)
			}
		})
	}

	// A certificate that a token got must work as that node.
	t.Run("what was signed is accepted by the API server", func(t *testing.T) {
		key := ca.NewKey(t)
		ask := subject(kubeletClient, "newcomer-2")
		ask.key = key
		name, err := ask.create(t, token)
		check(t, err)
		csr := c.outcome(t, name)
		client := c.withCertificate(csr.Status.Certificate, key)
		if _, err := client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "newcomer-2"}}, metav1.CreateOptions{}); err != nil {
			t.Error(err)
		}
		if _, err := client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-03"}}, metav1.CreateOptions{}); err == nil {
			t.Error("it may register as another node")
		}
	})

	for _, test := range denials() {
		t.Run("denied: "+test.name, func(t *testing.T) {
			ask := test.ask
			if test.change != nil {
				test.change(&ask)
			}
			name, err := ask.create(t, clients[test.who.user])
			if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
				return // The API server itself does not even record it; TestPolicy has our own answer.
			}
			check(t, err)
			csr := c.outcome(t, name)
			denied := condition(csr, certificates.CertificateDenied)
			if denied == nil || len(csr.Status.Certificate) > 0 {
				t.Fatalf("status is %+v", csr.Status)
			}
			if !strings.Contains(denied.Message, test.reason) {
				t.Errorf("message is %q, want it to contain %q", denied.Message, test.reason)
			}
			eventually(t, "it is reported", func() (bool, string) {
				r := w.last().Requests[name]
				return r.Phase == RequestDenied && r.Reason == denied.Message, fmt.Sprintf("%+v", r)
			})
		})
	}

	t.Run("a node from outside that tells others' addresses as its own gets no certificate for them", func(t *testing.T) {
		c.register(t, "liar", "10.20.0.97", "10.20.0.12", "10.96.0.1", "127.0.0.1", "10.20.0.99")
		for address, reason := range map[string]string{
			"10.20.0.12": "belongs to an API server", "10.96.0.1": "belongs to the control plane", "127.0.0.1": "belongs to no single machine", "10.20.0.99": "belongs to node guest",
		} {
			ask := subject(serving, "liar")
			ask.ips = []string{"10.20.0.97", address}
			name, err := ask.create(t, self("liar"))
			check(t, err)
			denied := condition(c.outcome(t, name), certificates.CertificateDenied)
			if denied == nil || !strings.Contains(denied.Message, reason) {
				t.Errorf("%s: %+v, want %q", address, denied, reason)
			}
		}
	})
	t.Run("a person approves a client certificate with kubectl, and it is signed", func(t *testing.T) {
		name, err := asked{signer: apiClient, commonName: "jane", organizations: []string{"team"}, usages: []certificates.KeyUsage{certificates.UsageClientAuth}}.create(t, admin)
		check(t, err)
		eventually(t, "it is pending", func() (bool, string) {
			r := w.last().Requests[name]
			return r.Phase == RequestPending && strings.Contains(r.Reason, "kubectl certificate approve "+name), fmt.Sprintf("%+v", r)
		})
		if out, err := c.kubectl("certificate", "approve", name); err != nil {
			t.Fatal(out)
		}
		certificate := certificateOf(t, c.outcome(t, name))
		if certificate.Subject.CommonName != "jane" || !slices.Equal(certificate.Subject.Organization, []string{"team"}) {
			t.Errorf("subject is %v", certificate.Subject)
		}
		eventually(t, "it is no longer reported", func() (bool, string) {
			_, there := w.last().Requests[name]
			return !there, ""
		})
	})
	t.Run("another signer's request is nobody's business", func(t *testing.T) {
		name, err := asked{signer: "example.org/other", commonName: "jane"}.create(t, admin)
		check(t, err)
		other, err := asked{signer: apiClient, commonName: "later"}.create(t, admin)
		check(t, err)
		eventually(t, "a later one is known", func() (bool, string) { _, there := w.last().Requests[other]; return there, "" })
		if _, there := w.last().Requests[name]; there {
			t.Error("it is reported")
		}
	})
	t.Run("a serving certificate waits for its node", func(t *testing.T) {
		ask := subject(serving, "early")
		ask.ips = []string{"10.20.0.96"}
		name, err := ask.create(t, self("early"))
		check(t, err)
		eventually(t, "it is pending", func() (bool, string) {
			r := w.last().Requests[name]
			return r.Phase == RequestPending && strings.Contains(r.Reason, "has not registered yet"), fmt.Sprintf("%+v", r)
		})
		c.register(t, "early", "10.20.0.96")
		certificateOf(t, c.outcome(t, name))
	})
}

// testStolenApproval: kube-controller-manager approves whatever a bootstrap token asks
// for. The request is approved before anybody of ours looks at it.
func (c *testCluster) testStolenApproval(t *testing.T) {
	admin := c.as("admin", "system:masters")
	ask := asked{signer: kubeletClient, commonName: nodeUser + "node-03", organizations: []string{nodesGroup}}
	name, err := ask.create(t, c.withToken("abcdef.0123456789abcdef"))
	check(t, err)
	csr, err := admin.CertificatesV1().CertificateSigningRequests().Get(t.Context(), name, metav1.GetOptions{})
	check(t, err)
	csr.Status.Conditions = []certificates.CertificateSigningRequestCondition{{Type: certificates.CertificateApproved, Status: corev1.ConditionTrue,
		Reason: "AutoApproved", Message: "Auto approving kubelet client certificate after SubjectAccessReview."}}
	_, err = admin.CertificatesV1().CertificateSigningRequests().UpdateApproval(t.Context(), name, csr, metav1.UpdateOptions{})
	check(t, err)
	w := c.run(t, nil)
	csr = c.outcome(t, name)
	failed := condition(csr, certificates.CertificateFailed)
	if failed == nil || len(csr.Status.Certificate) > 0 || !strings.Contains(failed.Message, "node-03 is the name of one of the cluster's machines") {
		t.Errorf("status is %+v", csr.Status)
	}
	eventually(t, "it is reported", func() (bool, string) {
		r := w.last().Requests[name]
		return r.Phase == RequestFailed, fmt.Sprintf("%+v", r)
	})
}

// TestPolicy asks for what the tests at a real API server ask for, also for what that refuses by itself.
func TestPolicy(t *testing.T) {
	registered := map[string]*corev1.Node{}
	for name, address := range map[string]string{"node-01": "10.20.0.11", "guest": "10.20.0.99"} {
		registered[name] = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}}}
	}
	wanted := Wanted{Reserved: []string{"kubernetes", "*.api.example.org", "10.20.0.11", "10.20.0.12", "10.96.0.1", "released-machine"},
		ReservedNetworks: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("10.244.0.0/16")}}
	for i := range 3 {
		wanted.Nodes = append(wanted.Nodes, Node{Name: fmt.Sprintf("node-0%d", i+1), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 20, 0, byte(11 + i)})}})
	}
	rules := policy{wanted: &wanted, servers: []netip.AddrPort{netip.MustParseAddrPort("10.20.0.11:6443")},
		node: func(name string) *corev1.Node { return registered[name] }, nodes: func() []*corev1.Node { return slices.Collect(maps.Values(registered)) }}
	judge := func(t *testing.T, who requester, ask asked, change func(*asked)) verdict {
		if change != nil {
			change(&ask)
		}
		csr := ask.object(t)
		csr.Spec.Username, csr.Spec.Groups = who.user, append(slices.Clone(who.groups), "system:authenticated")
		return rules.judge(csr, time.Now())
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	for _, test := range grants(rsaKey) {
		t.Run("signed: "+test.name, func(t *testing.T) {
			if v := judge(t, test.who, test.ask, test.change); v.decision != approved || v.template == nil || v.public == nil {
				t.Errorf("verdict is %+v", v)
			}
		})
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	check(t, err)
	forged := asked{signer: kubeletClient, commonName: nodeUser + "node-01", organizations: []string{nodesGroup}}.object(t).Spec.Request
	block, _ := pem.Decode(forged)
	block.Bytes[len(block.Bytes)-1] ^= 1
	for _, test := range append(denials(),
		refusal{"a short RSA key", asNode1, subject(kubeletClient, "node-01"), func(a *asked) { a.key = short }, "the RSA key has 1024 bits"},
		refusal{"somebody else's key", asNode1, asked{signer: kubeletClient, raw: pem.EncodeToMemory(block)}, nil, "signature is wrong"},
		refusal{"two requests in one", asNode1, asked{signer: kubeletClient, raw: append(slices.Clone(forged), forged...)}, nil, "is not one PEM block"},
		refusal{"what is no request", asNode1, asked{signer: kubeletClient, raw: []byte("hello")}, nil, "is not one PEM block"},
		refusal{"a token with the name of an API's wildcard", asToken, subject(kubeletClient, "x.api.example.org"), nil, "is a name that no node from outside may have"},
		refusal{"a token of another group", requester{bootstrapUser + "abcdef", []string{"system:bootstrappers:other"}}, subject(kubeletClient, "node-02"), nil, "is the name of one of the cluster's machines"},
		refusal{"a user who only looks like a node", requester{nodeUser + "node-01", []string{"team"}}, subject(serving, "node-01"), func(a *asked) { a.dns = []string{"node-01"} }, "as a member of system:nodes"},
		refusal{"the group of all rights for a person", asAdmin, asked{signer: apiClient, commonName: "jane", organizations: []string{"system:masters"}}, nil, "members of system:masters are not made this way"},
		refusal{"a person without a name", asAdmin, asked{signer: apiClient}, nil, "no common name"},
	) {
		t.Run("denied: "+test.name, func(t *testing.T) {
			if v := judge(t, test.who, test.ask, test.change); v.decision != refused || !strings.Contains(v.reason, test.reason) || v.template != nil {
				t.Errorf("verdict is %+v, want a reason with %q", v, test.reason)
			}
		})
	}
	if v := judge(t, requester{bootstrapUser + "abcdef", []string{"system:bootstrappers:other"}}, subject(kubeletClient, "free"), nil); v.decision != askPerson {
		t.Errorf("a token of another group: %+v, want a person to decide", v)
	}
	if v := judge(t, requester{nodeUser + "gone", []string{nodesGroup}}, subject(kubeletClient, "gone"), nil); v.decision != later {
		t.Errorf("a node that is not registered: %+v, want it to wait", v)
	}
}
