package certs

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha1" // names a key in a question, where it protects nothing
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/netboot/ratelimit"
)

const (
	// listLife is how long a list of revoked certificates counts, and listRenewal when another one is made. A server may be gone for a
	// week and nobody's connection is refused for it.
	listLife, listRenewal = 8 * 24 * time.Hour, 24 * time.Hour
	// answerLife is how long an answer about one certificate counts, and answerRenewal for how long the same one is given.
	answerLife, answerRenewal = 24 * time.Hour, 6 * time.Hour
	// behind tolerates clocks that are behind the server's.
	behind = time.Hour
	// maxAnswers that are kept.
	maxAnswers = 4096
	// maxQuestion bounds a question, bytes.
	maxQuestion = 2 << 10
)

// list is the list of revoked certificates.
type list struct {
	number *big.Int
	der    []byte
	made   time.Time
	// stale says that it must be made anew at once.
	stale bool
}

// open reads the number of the last list, and makes one. It needs mu.
func (l *list) open(s *Service) error {
	l.number = new(big.Int)
	switch der, err := os.ReadFile(s.path(listFile)); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("list of revoked certificates: %w", err)
	default:
		if last, err := x509.ParseRevocationList(der); err == nil && last.Number != nil {
			l.number = last.Number
		} else {
			s.Log.Error("the last list of revoked certificates cannot be read; the numbers of lists go on by the clock", "path", s.path(listFile), "err", err)
			l.number = big.NewInt(s.Now().Unix())
		}
	}
	return l.renew(s)
}

// renew makes the list anew. It needs mu.
func (l *list) renew(s *Service) error {
	now := s.Now()
	template := &x509.RevocationList{Number: new(big.Int).Add(l.number, big.NewInt(1)), ThisUpdate: now.Add(-behind), NextUpdate: now.Add(listLife)}
	for _, i := range s.issued {
		// One that has ended stays in a list after its end (RFC 5280, 3.3), and longer, for those whose clock is wrong.
		if i.RevokedAt.IsZero() || now.Sub(i.cert.NotAfter) > listLife {
			continue
		}
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: i.cert.SerialNumber, RevocationTime: i.RevokedAt, ReasonCode: i.Reason})
	}
	slices.SortFunc(template.RevokedCertificateEntries, func(a, b x509.RevocationListEntry) int { return a.SerialNumber.Cmp(b.SerialNumber) })
	der, err := x509.CreateRevocationList(rand.Reader, template, s.authority.Certificate(), s.authority.Signer())
	if err != nil {
		return fmt.Errorf("sign the list of revoked certificates: %w", err)
	}
	if err := durable.WriteFile(s.path(listFile), der, 0o600); err != nil {
		return fmt.Errorf("keep the list of revoked certificates: %w", err)
	}
	l.number, l.der, l.made, l.stale = template.Number, der, now, false
	return nil
}

// fresh says whether something made at a time counts still, also where the clock was set back.
func fresh(made, now time.Time, life time.Duration) bool {
	age := now.Sub(made)
	return age < life && age > -behind
}

// CRL is the list of revoked certificates, DER, and until when it need not be asked for again.
func (s *Service) CRL() ([]byte, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.authority == nil {
		return nil, time.Time{}, ErrNone
	}
	now := s.Now()
	if s.list.stale || !fresh(s.list.made, now, listRenewal) {
		if err := s.list.renew(s); err != nil {
			// The old one is true as long as nothing was revoked since.
			if s.list.stale || !fresh(s.list.made, now, listLife) {
				return nil, time.Time{}, err
			}
			s.Log.Error("cannot renew the list of revoked certificates; giving the last one", "until", s.list.made.Add(listLife), "err", err)
		}
	}
	return s.list.der, s.list.made.Add(listRenewal), nil
}

// answers keeps signed answers about certificates.
type answers struct {
	of map[string]answer
	// issuers are the hashes of the authority's name and key, by algorithm.
	issuers map[crypto.Hash]issuerHash
}

type answer struct {
	serial string
	der    []byte
	made   time.Time
}

type issuerHash struct{ name, key []byte }

// forget needs mu.
func (a *answers) forget(serial string) {
	for key, kept := range a.of {
		if kept.serial == serial {
			delete(a.of, key)
		}
	}
}

// hashes of an authority, for the algorithms that questions use.
func hashes(authority *pki.Authority) map[crypto.Hash]issuerHash {
	cert := authority.Certificate()
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}
	if _, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &info); err != nil {
		return nil
	}
	all := map[crypto.Hash]issuerHash{}
	for hash, sum := range map[crypto.Hash]func([]byte) []byte{
		crypto.SHA1:   func(b []byte) []byte { h := sha1.Sum(b); return h[:] },
		crypto.SHA256: func(b []byte) []byte { h := sha256.Sum256(b); return h[:] },
		crypto.SHA384: func(b []byte) []byte { h := sha512.Sum384(b); return h[:] },
		crypto.SHA512: func(b []byte) []byte { h := sha512.Sum512(b); return h[:] },
	} {
		all[hash] = issuerHash{sum(cert.RawSubject), sum(info.PublicKey.RightAlign())}
	}
	return all
}

// OCSP answers a question about a certificate, both DER (RFC 6960), and says until when the answer need not be asked for again; zero:
// it is an error, which is not signed. A serial number that this authority did not issue gets "unauthorized" (RFC 5019, 2.2.3), so that
// strangers cost no signature.
func (s *Service) OCSP(question []byte) ([]byte, time.Time) {
	asked, err := ocsp.ParseRequest(question)
	if err != nil {
		return ocsp.MalformedRequestErrorResponse, time.Time{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.authority == nil {
		return ocsp.UnauthorizedErrorResponse, time.Time{}
	}
	if s.answers.issuers == nil {
		s.answers.issuers = hashes(s.authority)
	}
	mine, known := s.answers.issuers[asked.HashAlgorithm]
	if !known || !bytes.Equal(mine.name, asked.IssuerNameHash) || !bytes.Equal(mine.key, asked.IssuerKeyHash) {
		return ocsp.UnauthorizedErrorResponse, time.Time{}
	}
	serial := serialOf(asked.SerialNumber)
	i := s.issued[serial]
	if i == nil {
		return ocsp.UnauthorizedErrorResponse, time.Time{}
	}
	now, key := s.Now(), fmt.Sprintf("%s %d", serial, asked.HashAlgorithm)
	if kept, ok := s.answers.of[key]; ok && fresh(kept.made, now, answerRenewal) {
		return kept.der, kept.made.Add(answerRenewal)
	}
	template := ocsp.Response{
		Status: ocsp.Good, SerialNumber: asked.SerialNumber, IssuerHash: asked.HashAlgorithm,
		ThisUpdate: now.Add(-behind), NextUpdate: now.Add(answerLife),
	}
	if !i.RevokedAt.IsZero() {
		template.Status, template.RevokedAt, template.RevocationReason = ocsp.Revoked, i.RevokedAt, i.Reason
	}
	cert := s.authority.Certificate()
	der, err := ocsp.CreateResponse(cert, cert, template, s.authority.Signer())
	if err != nil {
		s.Log.Error("cannot sign an answer about a certificate", "serial", serial, "err", err)
		return ocsp.InternalErrorErrorResponse, time.Time{}
	}
	if s.answers.of == nil || len(s.answers.of) >= maxAnswers {
		s.answers.of = map[string]answer{}
	}
	s.answers.of[key] = answer{serial, der, now}
	return der, now.Add(answerRenewal)
}

// Paths below the URL of Settings, over plain HTTP.
const (
	PathPrefix    = "/pki/"
	PathAuthority = "/pki/ca.cer" // DER
	PathPEM       = "/pki/ca.pem"
	PathCRL       = "/pki/ca.crl"
	PathOCSP      = "/pki/ocsp"
)

// Handler answers everybody: the authority's certificate, which certificates were revoked, and whether one was.
func (s *Service) Handler() http.Handler {
	limit := ratelimit.New(50, 200, 10_000)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && !limit.Allow(from.Addr(), s.Now()) {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many requests of this address", http.StatusTooManyRequests)
			return
		}
		s.serve(w, r)
	})
}

func (s *Service) serve(w http.ResponseWriter, r *http.Request) {
	path := r.URL.EscapedPath()
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case path == PathOCSP && r.Method == http.MethodPost:
		if strings.TrimSpace(strings.Split(r.Header.Get("Content-Type"), ";")[0]) != "application/ocsp-request" {
			http.Error(w, "a question is of type application/ocsp-request", http.StatusUnsupportedMediaType)
			return
		}
		question, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxQuestion))
		if err != nil {
			http.Error(w, fmt.Sprintf("a question has at most %d bytes", maxQuestion), http.StatusRequestEntityTooLarge)
			return
		}
		s.tell(w, question)
	case strings.HasPrefix(path, PathOCSP+"/") && read:
		question, err := questionOf(strings.TrimPrefix(path, PathOCSP+"/"))
		if err != nil {
			http.Error(w, "not a question in base64 (RFC 6960, appendix A.1)", http.StatusBadRequest)
			return
		}
		s.tell(w, question)
	case path == PathCRL && read:
		der, until, err := s.CRL()
		s.give(w, "application/pkix-crl", der, until, err)
	case (path == PathAuthority || path == PathPEM) && read:
		cert, _, err := s.Describe()
		if err != nil {
			s.give(w, "", nil, time.Time{}, err)
			return
		}
		if path == PathPEM {
			s.give(w, "application/x-pem-file", pki.EncodeCertificate(cert), time.Time{}, nil)
			return
		}
		s.give(w, "application/pkix-cert", cert.Raw, time.Time{}, nil)
	default:
		http.Error(w, "here are "+strings.Join([]string{PathAuthority, PathPEM, PathCRL, PathOCSP}, ", "), http.StatusNotFound)
	}
}

// questionOf reads the question in the path of a GET. Clients escape it, or do not.
func questionOf(text string) ([]byte, error) {
	text, err := url.PathUnescape(text)
	if err != nil {
		return nil, err
	}
	if len(text) > 2*maxQuestion {
		return nil, errors.New("too long")
	}
	return base64.StdEncoding.DecodeString(text)
}

func (s *Service) tell(w http.ResponseWriter, question []byte) {
	der, until := s.OCSP(question)
	s.give(w, "application/ocsp-response", der, until, nil)
}

func (s *Service) give(w http.ResponseWriter, kind string, content []byte, until time.Time, err error) {
	switch {
	case errors.Is(err, ErrNone):
		http.Error(w, "this server has no authority for people and services", http.StatusNotFound)
		return
	case err != nil:
		s.Log.Error("a request about certificates failed", "err", err)
		http.Error(w, "the server cannot tell now", http.StatusServiceUnavailable)
		return
	}
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Length", fmt.Sprint(len(content)))
	if until.IsZero() {
		h.Set("Cache-Control", "no-store")
	} else {
		h.Set("Cache-Control", fmt.Sprintf("max-age=%d, public, no-transform, must-revalidate", max(0, int(until.Sub(s.Now()).Seconds()))))
	}
	_, _ = w.Write(content)
}
