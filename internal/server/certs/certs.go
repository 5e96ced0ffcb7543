// Package certs issues certificates to people and services beside Kubernetes, from an authority of its own: it decides who may have
// which, remembers each, takes it back, and tells everybody which were taken back, by a list (RFC 5280) and a responder (RFC 6960).
//
// Private keys never come here: a request is PKCS #10. Each certificate is a file, so that a crash leaves all of it or nothing, and
// a certificate is handed out only after its file is on the disk.
package certs

import (
	"cmp"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/base/pki"
)

// Authority is the name of the authority in the folder of authorities.
const Authority = "service-ca"

const (
	folder       = "services"      // below the folder of authorities
	settingsFile = "settings.json" // below that
	listFile     = "revoked.crl"
	issuedFolder = "issued"
	issuedSuffix = ".json"

	// maxIssued certificates are remembered, of maxBytes in all: a backup of the server holds them. When there is no room, those that
	// ended make some, the oldest first; until then also an ended one is remembered, whatever the clock says.
	maxIssued = 10_000
	maxBytes  = 24 << 20
)

// What keeps somebody from what he asks for. Errors that wrap them say more.
var (
	ErrNone      = errors.New("there is no authority for people and services; an administrator makes it with `coldrack pki init`")
	ErrExists    = errors.New("the authority is there already")
	ErrBad       = errors.New("not accepted")
	ErrForbidden = errors.New("not allowed")
	ErrUnknown   = errors.New("no such certificate")
	ErrRevoked   = errors.New("the certificate is revoked already")
	ErrFull      = errors.New("too many certificates")
)

// Issued is a certificate that was issued.
type Issued struct {
	// Serial in hexadecimal, lower case, without leading zeros.
	Serial  string `json:"serial"`
	Profile string `json:"profile"`
	// By is who asked, At when.
	By string    `json:"by"`
	At time.Time `json:"at"`
	// DER is the certificate.
	DER []byte `json:"der"`
	// RevokedAt is when it was taken back, RevokedBy by whom, and Reason why (RFC 5280, 5.3.1); zero: it was not.
	RevokedAt time.Time `json:"revokedAt,omitzero"`
	RevokedBy string    `json:"revokedBy,omitempty"`
	Reason    int       `json:"reason,omitempty"`

	cert *x509.Certificate
	size int
}

// Certificate is the certificate, parsed.
func (i Issued) Certificate() *x509.Certificate { return i.cert }

// PEM is the certificate.
func (i Issued) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.DER})
}

// Names are all names that it is for: DNS names, addresses, mail addresses and URIs.
func (i Issued) Names() []string { return namesOf(i.cert) }

func namesOf(cert *x509.Certificate) []string {
	all := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		all = append(all, ip.String())
	}
	all = append(all, cert.EmailAddresses...)
	for _, u := range cert.URIs {
		all = append(all, u.String())
	}
	return all
}

// reasons for which a certificate is taken back, by the names of RFC 5280. A hold, which could be lifted, and an end of the authority
// are not among them.
var reasons = map[string]int{"unspecified": 0, "keyCompromise": 1, "affiliationChanged": 3, "superseded": 4, "cessationOfOperation": 5, "privilegeWithdrawn": 9}

// Reasons are the names of reasons.
func Reasons() []string {
	var all []string
	for name := range reasons {
		all = append(all, name)
	}
	return slices.Sorted(slices.Values(all))
}

// ReasonName is the name of a reason.
func ReasonName(code int) string {
	for name, c := range reasons {
		if c == code {
			return name
		}
	}
	return fmt.Sprint(code)
}

// Options of a Service.
type Options struct {
	// Dir is the folder of authorities, Master what their keys are sealed with.
	Dir    string
	Master pki.MasterKey
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Service issues certificates. It is safe for concurrent use.
type Service struct {
	Options

	mu        sync.Mutex
	authority *pki.Authority // nil: there is none yet
	settings  Settings
	issued    map[string]*Issued
	bytes     int
	list      list
	answers   answers
}

// Open reads what was issued. Without an authority it issues nothing until Init.
func Open(o Options) (*Service, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{Options: o, issued: map[string]*Issued{}}
	if !pki.HasAuthority(o.Dir, Authority) {
		return s, nil
	}
	authority, err := pki.OpenAuthority(o.Dir, Authority, o.Master)
	if err != nil {
		return nil, err
	}
	if err := readJSON(s.path(settingsFile), &s.settings); err != nil {
		return nil, fmt.Errorf("settings of authority %s: %w; restore the file from a backup", Authority, err)
	}
	entries, err := os.ReadDir(s.path(issuedFolder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("certificates that authority %s issued: %w", Authority, err)
	}
	for _, e := range entries {
		if durable.IsTemporary(e.Name()) || !strings.HasSuffix(e.Name(), issuedSuffix) {
			continue
		}
		i, err := readIssued(s.path(issuedFolder, e.Name()))
		if err != nil {
			// Without it a revoked certificate would count again, so nothing is answered rather than something wrong.
			return nil, fmt.Errorf("a certificate that authority %s issued: %w; restore the file from a backup", Authority, err)
		}
		s.issued[i.Serial] = i
		s.bytes += i.size
	}
	s.authority = authority
	return s, s.list.open(s)
}

func readIssued(path string) (*Issued, error) {
	i := &Issued{}
	if err := readJSON(path, i); err != nil {
		return nil, err
	}
	var err error
	if i.cert, err = x509.ParseCertificate(i.DER); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if is := serialOf(i.cert.SerialNumber); is != i.Serial || filepath.Base(path) != is+issuedSuffix {
		return nil, fmt.Errorf("%s: holds the certificate with serial number %s", path, is)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	i.size = int(info.Size())
	return i, nil
}

func readJSON(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func writeJSON(path string, value any) (size int, err error) {
	text, err := json.Marshal(value)
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return 0, err
	}
	return len(text) + 1, durable.WriteFile(path, append(text, '\n'), 0o600)
}

func (s *Service) path(elem ...string) string {
	return filepath.Join(append([]string{s.Dir, folder}, elem...)...)
}

func serialOf(n *big.Int) string { return n.Text(16) }

// Init makes the authority.
func (s *Service) Init(settings Settings) error {
	if err := settings.Validate(); err != nil {
		return err
	}
	settings.URL = strings.TrimSuffix(settings.URL, "/")
	settings.CommonName = cmp.Or(settings.CommonName, "coldrack "+Authority)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.authority != nil {
		return ErrExists
	}
	// The settings come first: without an authority they mean nothing.
	if _, err := writeJSON(s.path(settingsFile), settings); err != nil {
		return fmt.Errorf("keep the settings of authority %s: %w", Authority, err)
	}
	authority, err := pki.CreateAuthority(s.Dir, Authority, s.Master, pki.Bounds{CommonName: settings.CommonName, Domains: settings.Domains, Networks: settings.Networks})
	if err != nil {
		return err
	}
	s.authority, s.settings = authority, settings
	if err := s.list.open(s); err != nil {
		return err
	}
	s.Log.Info("authority for people and services made", "name", settings.CommonName, "until", authority.Certificate().NotAfter, "bounds", settings.String())
	return nil
}

// Describe returns the authority's certificate and its settings. The error is ErrNone when there is none.
func (s *Service) Describe() (*x509.Certificate, Settings, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.authority == nil {
		return nil, Settings{}, ErrNone
	}
	return s.authority.Certificate(), s.settings, nil
}

// Issue signs a certificate for what a request asks, if its asker may have that.
func (s *Service) Issue(r Request, by Asker) (Issued, error) {
	w, err := read(r)
	if err != nil {
		return Issued{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.authority == nil {
		return Issued{}, ErrNone
	}
	if err := w.admit(by, s.settings); err != nil {
		return Issued{}, err
	}
	if err := s.makeRoom(); err != nil {
		return Issued{}, err
	}
	now := s.Now()
	template := &x509.Certificate{
		Subject: w.subject, DNSNames: w.names, IPAddresses: w.ips, EmailAddresses: w.mails, URIs: w.uris,
		NotAfter: now.Add(w.ttl), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: w.profile.Usages,
		BasicConstraintsValid: true,
	}
	if w.csr.PublicKeyAlgorithm == x509.RSA && w.profile.Serves {
		template.KeyUsage |= x509.KeyUsageKeyEncipherment // what exchanges keys by RSA before TLS 1.3 needs it
	}
	if s.settings.URL != "" {
		template.OCSPServer = []string{s.settings.URL + PathOCSP}
		template.IssuingCertificateURL = []string{s.settings.URL + PathAuthority}
		template.CRLDistributionPoints = []string{s.settings.URL + PathCRL}
	}
	cert, err := s.authority.Sign(w.csr.PublicKey, template)
	if err != nil {
		return Issued{}, err
	}
	i := &Issued{Serial: serialOf(cert.SerialNumber), Profile: w.profile.Name, By: by.Name, At: now.UTC(), DER: cert.Raw, cert: cert}
	if err := s.keep(i); err != nil {
		return Issued{}, err
	}
	s.issued[i.Serial] = i
	return *i, nil
}

// makeRoom needs mu.
func (s *Service) makeRoom() error {
	const largest = 2 * maxRequest
	for len(s.issued) >= maxIssued || s.bytes+largest > maxBytes {
		var oldest *Issued
		for _, i := range s.issued {
			if i.cert.NotAfter.Before(s.Now()) && (oldest == nil || i.cert.NotAfter.Before(oldest.cert.NotAfter)) {
				oldest = i
			}
		}
		if oldest == nil {
			return fmt.Errorf("%w: there are %d that have not ended, and no more may be; certificates that live shorter make room sooner", ErrFull, len(s.issued))
		}
		if err := os.Remove(s.path(issuedFolder, oldest.Serial+issuedSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("make room for a certificate: %w", err)
		}
		delete(s.issued, oldest.Serial)
		s.bytes -= oldest.size
	}
	return nil
}

// keep needs mu.
func (s *Service) keep(i *Issued) error {
	size, err := writeJSON(s.path(issuedFolder, i.Serial+issuedSuffix), i)
	if err != nil {
		return fmt.Errorf("keep the record of certificate %s: %w", i.Serial, err)
	}
	s.bytes += size - i.size
	i.size = size
	return nil
}

// List returns all certificates that are remembered, the newest first.
func (s *Service) List() []Issued {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Issued, 0, len(s.issued))
	for _, i := range s.issued {
		all = append(all, *i)
	}
	slices.SortFunc(all, func(a, b Issued) int { return cmp.Or(b.At.Compare(a.At), cmp.Compare(a.Serial, b.Serial)) })
	return all
}

// Get returns a certificate by its serial number.
func (s *Service) Get(serial string) (Issued, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, err := s.get(serial)
	if err != nil {
		return Issued{}, err
	}
	return *i, nil
}

// get needs mu.
func (s *Service) get(serial string) (*Issued, error) {
	if s.authority == nil {
		return nil, ErrNone
	}
	n, ok := new(big.Int).SetString(strings.ReplaceAll(serial, ":", ""), 16)
	if !ok || len(serial) > 100 {
		return nil, fmt.Errorf("%w: serial %.60q: must be hexadecimal", ErrUnknown, serial)
	}
	i := s.issued[serialOf(n)]
	if i == nil {
		return nil, fmt.Errorf("%w: serial %s", ErrUnknown, serialOf(n))
	}
	return i, nil
}

// Revoke takes a certificate back. Who is no administrator takes back what he asked for.
func (s *Service) Revoke(serial, reason string, by Asker) (Issued, error) {
	code, ok := reasons[cmp.Or(reason, "unspecified")]
	if !ok {
		return Issued{}, fmt.Errorf("%w: reason %.40q: must be one of %s", ErrBad, reason, strings.Join(Reasons(), ", "))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i, err := s.get(serial)
	if err != nil {
		return Issued{}, err
	}
	if !by.Admin && i.By != by.Name {
		return Issued{}, fmt.Errorf("%w: certificate %s was issued to %s; taking back another's needs role admin", ErrForbidden, i.Serial, i.By)
	}
	if !i.RevokedAt.IsZero() {
		return *i, fmt.Errorf("%w: %s, %s, by %s at %s", ErrRevoked, i.Serial, ReasonName(i.Reason), i.RevokedBy, i.RevokedAt.Format(time.RFC3339))
	}
	changed := *i
	changed.RevokedAt, changed.RevokedBy, changed.Reason = s.Now().UTC().Truncate(time.Second), by.Name, code
	if err := s.keep(&changed); err != nil {
		return Issued{}, err
	}
	*i = changed
	s.answers.forget(i.Serial)
	// It is revoked from here on, whatever becomes of the list: the next request for it tries again.
	if err := s.list.renew(s); err != nil {
		s.list.stale = true
		s.Log.Error("a certificate was revoked, and the list of revoked ones cannot be written; trying again when it is asked for", "serial", i.Serial, "err", err)
	}
	s.Log.Info("certificate revoked", "serial", i.Serial, "names", strings.Join(i.Names(), ","), "reason", ReasonName(code), "by", by.Name)
	return *i, nil
}
