package certs

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/contract/validate"
)

// Profile is what a certificate is for.
type Profile struct {
	Name     string
	Usages   []x509.ExtKeyUsage
	KeyUsage x509.KeyUsage
	// Serves says that others connect to its holder, by a name or an address that it must have.
	Serves bool
	// Connects says that its holder shows it to others, who know him by it.
	Connects bool
}

// Profiles that there are.
func Profiles() []Profile {
	return []Profile{
		{Name: "server", Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, Serves: true},
		{Name: "client", Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, Connects: true},
		{Name: "peer", Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, Serves: true, Connects: true},
	}
}

const (
	// DefaultTTL is how long a certificate lives for which nothing was asked.
	DefaultTTL = 90 * 24 * time.Hour
	// LongestTTL bounds what administrators may ask for, LongestTTLOfOperators what operators may.
	LongestTTL            = 398 * 24 * time.Hour
	LongestTTLOfOperators = 90 * 24 * time.Hour
	leastTTL              = 5 * time.Minute

	maxRequest = 16 << 10 // bytes of a certificate request, PEM
	maxNames   = 100
	maxField   = 64 // characters of each part of a subject (RFC 5280, appendix A: ub-common-name)
)

// Request asks for a certificate.
type Request struct {
	// CSR is a PKCS #10 request, PEM. Its key, its subject and its names count, and no other extension.
	CSR []byte
	// Profile is the name of one of Profiles; empty: server.
	Profile string
	// TTL is how long it shall live; 0: DefaultTTL.
	TTL time.Duration
	// Hosts stand in the place of the request's names: names, addresses, mail addresses and URIs. Empty: those of the request.
	Hosts []string
	// CommonName stands in the place of the request's, where it is not empty.
	CommonName string
	// NoOrganization leaves all of the request's subject but the common name out.
	NoOrganization bool
}

// Asker is who asks, and what he may have.
type Asker struct {
	Name  string
	Admin bool
	// Owns says whether a name or an address belongs to a machine that a person or a policy has approved.
	Owns func(host string) bool
}

// wanted is a request that was read: what a certificate would hold.
type wanted struct {
	profile Profile
	subject pkix.Name
	names   []string
	ips     []net.IP
	mails   []string
	uris    []*url.URL
	ttl     time.Duration
	csr     *x509.CertificateRequest
}

// read reads a request. Errors wrap ErrBad.
func read(r Request) (w wanted, err error) {
	name := r.Profile
	if name == "" {
		name = "server"
	}
	i := slices.IndexFunc(Profiles(), func(p Profile) bool { return p.Name == name })
	if i < 0 {
		return w, fmt.Errorf("%w: profile %.40q: must be server, client or peer", ErrBad, name)
	}
	w.profile = Profiles()[i]
	if len(r.CSR) > maxRequest {
		return w, fmt.Errorf("%w: csr: %d bytes, at most %d are taken", ErrBad, len(r.CSR), maxRequest)
	}
	block, _ := pem.Decode(r.CSR)
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return w, fmt.Errorf("%w: csr: must be a PEM block of type CERTIFICATE REQUEST", ErrBad)
	}
	if w.csr, err = x509.ParseCertificateRequest(block.Bytes); err != nil {
		return w, fmt.Errorf("%w: csr: %v", ErrBad, err)
	}
	// Whoever asks must have the key.
	if err := w.csr.CheckSignature(); err != nil {
		return w, fmt.Errorf("%w: csr: not signed by its own key: %v", ErrBad, err)
	}
	if err := checkKey(w.csr.PublicKey); err != nil {
		return w, fmt.Errorf("%w: csr: %v", ErrBad, err)
	}
	// Only what is known of a subject is taken over: the rest is in ExtraNames' place and stays behind.
	s := w.csr.Subject
	w.subject = pkix.Name{CommonName: s.CommonName, Country: s.Country, Province: s.Province, Locality: s.Locality, Organization: s.Organization, OrganizationalUnit: s.OrganizationalUnit}
	if r.NoOrganization {
		w.subject = pkix.Name{CommonName: s.CommonName}
	}
	if r.CommonName != "" {
		w.subject.CommonName = r.CommonName
	}
	if len(r.Hosts) > 0 {
		w.take(r.Hosts)
	} else {
		w.names, w.ips, w.mails, w.uris = w.csr.DNSNames, w.csr.IPAddresses, w.csr.EmailAddresses, w.csr.URIs
	}
	if w.ttl = r.TTL; w.ttl == 0 {
		w.ttl = DefaultTTL
	}
	return w, w.check()
}

// take reads hosts, as they stand in the requests of cfssl.
func (w *wanted) take(hosts []string) {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			w.ips = append(w.ips, ip)
		} else if u, err := url.Parse(h); err == nil && u.Scheme != "" && u.Host != "" {
			w.uris = append(w.uris, u)
		} else if a, err := mail.ParseAddress(h); err == nil && a.Address == h {
			w.mails = append(w.mails, h)
		} else {
			w.names = append(w.names, h)
		}
	}
}

func checkKey(public any) error {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < 2048 || bits > 8192 {
			return fmt.Errorf("an RSA key of %d bits: must have 2048 to 8192", bits)
		}
		return nil
	case *ecdsa.PublicKey:
		if c := k.Curve; c != elliptic.P256() && c != elliptic.P384() && c != elliptic.P521() {
			return fmt.Errorf("an ECDSA key on curve %s: must be P-256, P-384 or P-521", c.Params().Name)
		}
		return nil
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("a key of type %T: must be RSA, ECDSA or Ed25519", public)
}

// check finds what no certificate may hold.
func (w *wanted) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrBad, fmt.Sprintf(format, args...))
	}
	s := w.subject
	for field, values := range map[string][]string{"CN": {s.CommonName}, "C": s.Country, "ST": s.Province, "L": s.Locality, "O": s.Organization, "OU": s.OrganizationalUnit} {
		if len(values) > 8 {
			return bad("subject: %d values of %s, at most 8", len(values), field)
		}
		for _, v := range values {
			if len([]rune(v)) > maxField || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) {
				return bad("subject: %s %.80q: at most %d characters, and no control characters", field, v, maxField)
			}
		}
	}
	if n := len(w.names) + len(w.ips) + len(w.mails) + len(w.uris); n > maxNames {
		return bad("%d names and addresses, at most %d", n, maxNames)
	}
	for i, n := range w.names {
		n = strings.ToLower(n)
		w.names[i] = n
		if err := validate.DNSName(strings.TrimPrefix(n, "*.")); err != nil {
			return bad("name %.80q: %v", n, err)
		}
		if _, err := netip.ParseAddr(n); err == nil {
			return bad("name %q is an address, and must stand among the addresses", n)
		}
	}
	for _, ip := range w.ips {
		if a, ok := netip.AddrFromSlice(ip); !ok || a.IsUnspecified() || a.IsMulticast() {
			return bad("address %s: no machine has it", ip)
		}
	}
	for _, m := range w.mails {
		if a, err := mail.ParseAddress(m); err != nil || a.Address != m || len(m) > 254 {
			return bad("mail address %.80q is none", m)
		}
	}
	for _, u := range w.uris {
		if u.Scheme == "" || u.Host == "" || len(u.String()) > 512 {
			return bad("URI %.80q: must have a scheme and a host, as spiffe://rack.example/db", u)
		}
	}
	if w.profile.Serves && len(w.names)+len(w.ips) == 0 {
		return bad("profile %s: needs a name or an address that its clients call it by; clients do not look at the common name", w.profile.Name)
	}
	if w.profile.Connects && w.subject.CommonName == "" && len(w.names)+len(w.ips)+len(w.mails)+len(w.uris) == 0 {
		return bad("profile %s: needs a common name or another name", w.profile.Name)
	}
	if w.ttl < leastTTL {
		return bad("ttl %s: must be at least %s", w.ttl, leastTTL)
	}
	return nil
}

// admit says whether somebody may have what is wanted. Errors wrap ErrForbidden, or ErrBad where nobody may.
func (w *wanted) admit(by Asker, bounds Settings) error {
	for _, h := range w.hosts() {
		if !bounds.allows(h) {
			return fmt.Errorf("%w: %q is outside of what this authority may sign for: %s", ErrBad, h, bounds)
		}
	}
	if w.ttl > LongestTTL {
		return fmt.Errorf("%w: ttl %s: may be at most %s (398 days); have it issued anew before its end", ErrBad, w.ttl, LongestTTL)
	}
	if by.Admin {
		return nil
	}
	forbid := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrForbidden, fmt.Sprintf(format, args...)+"; this needs role admin")
	}
	if w.ttl > LongestTTLOfOperators {
		return forbid("ttl %s: role operator may have %s (90 days)", w.ttl, LongestTTLOfOperators)
	}
	if len(w.mails)+len(w.uris) > 0 {
		return forbid("mail addresses and URIs")
	}
	hosts := w.hosts()
	for _, h := range hosts {
		if !bounds.names(h) && (by.Owns == nil || !by.Owns(h)) {
			return forbid("%q belongs to no approved machine, and lies in no domain or network of the authority", h)
		}
	}
	// By these, who verifies a certificate knows its holder.
	cn := strings.ToLower(w.subject.CommonName)
	if cn != "" && !slices.Contains(hosts, cn) && (w.profile.Serves || w.subject.CommonName != by.Name) {
		return forbid("common name %q: must be one of the certificate's names, or in profile client your own name (%s)", w.subject.CommonName, by.Name)
	}
	if w.profile.Connects && len(w.subject.Organization)+len(w.subject.OrganizationalUnit) > 0 {
		return forbid("profile %s with an organization (O, OU), which services take for a group", w.profile.Name)
	}
	return nil
}

// hosts are the names and addresses.
func (w *wanted) hosts() []string {
	all := slices.Clone(w.names)
	for _, ip := range w.ips {
		all = append(all, ip.String())
	}
	return all
}

// Settings of the authority.
type Settings struct {
	// CommonName of the authority.
	CommonName string `json:"commonName"`
	// Domains and Networks are all that it may sign for; without any it may sign for all.
	Domains  []string       `json:"domains,omitempty"`
	Networks []netip.Prefix `json:"networks,omitempty"`
	// URL is where clients find the list of revoked certificates and the responder, such as http://10.0.0.2:7080. It stands in each
	// certificate. Empty: nothing about it does.
	URL string `json:"url,omitempty"`
}

// Validate reports the first thing that cannot work. Errors wrap ErrBad.
func (s Settings) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrBad, fmt.Sprintf(format, args...))
	}
	if len([]rune(s.CommonName)) > maxField || strings.ContainsFunc(s.CommonName, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return bad("name %.80q: at most %d characters, and no control characters", s.CommonName, maxField)
	}
	if len(s.Domains) > maxNames || len(s.Networks) > maxNames {
		return bad("at most %d domains and %d networks", maxNames, maxNames)
	}
	for _, d := range s.Domains {
		if err := validate.DNSName(d); err != nil {
			return bad("domain %.80q: %v", d, err)
		}
	}
	for _, n := range s.Networks {
		if !n.IsValid() || n != n.Masked() {
			return bad("network %s: must be such as 10.0.0.0/24, with no bits set behind the prefix", n)
		}
	}
	if s.URL != "" {
		u, err := url.Parse(s.URL)
		if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" || len(s.URL) > 256 {
			return bad("url %.80q: must be such as http://10.0.0.2:7080; plain HTTP, because whoever fetches from there is about to verify a certificate, and all that is there is signed", s.URL)
		}
	}
	return nil
}

func (s Settings) String() string {
	var all []string
	all = append(all, s.Domains...)
	for _, n := range s.Networks {
		all = append(all, n.String())
	}
	return strings.Join(all, ", ")
}

// allows says whether the authority's name constraints let a name or an address pass. As RFC 5280 has it, constraints of one kind
// leave the other kind free; a free one is refused here, too, because an operator who names domains does not expect all addresses.
func (s Settings) allows(host string) bool {
	return len(s.Domains)+len(s.Networks) == 0 || s.names(host)
}

// names says whether a domain or a network of the settings has a host.
func (s Settings) names(host string) bool {
	if a, err := netip.ParseAddr(host); err == nil {
		a = a.Unmap()
		return slices.ContainsFunc(s.Networks, func(n netip.Prefix) bool { return n.Contains(a) })
	}
	host = strings.TrimPrefix(host, "*.")
	return slices.ContainsFunc(s.Domains, func(d string) bool { return host == d || strings.HasSuffix(host, "."+d) })
}
