package daemon

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/base/netns"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/server/certs"
	"coldrack.dev/internal/server/certs/acme"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// pkiHandler answers people about certificates beside Kubernetes.
func (s *server) pkiHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, err := s.answerPKI(r)
		if err != nil {
			status := pkiStatus(err)
			if status == http.StatusInternalServerError {
				s.log.Error("a request about certificates failed", "path", r.URL.Path, "err", err)
			}
			http.Error(w, err.Error(), status)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	})
}

var (
	errNoSuchPath = errors.New("there is nothing")
	errUnreadable = errors.New("the request cannot be read")
)

func pkiStatus(err error) int {
	for is, status := range map[error]int{
		certs.ErrNone: http.StatusNotFound, certs.ErrUnknown: http.StatusNotFound, errNoSuchPath: http.StatusNotFound,
		certs.ErrBad: http.StatusBadRequest, errUnreadable: http.StatusBadRequest, certs.ErrForbidden: http.StatusForbidden,
		certs.ErrExists: http.StatusConflict, certs.ErrRevoked: http.StatusConflict, certs.ErrFull: http.StatusConflict,
	} {
		if errors.Is(err, is) {
			return status
		}
	}
	return http.StatusInternalServerError
}

func (s *server) answerPKI(r *http.Request) (any, error) {
	person := controlplane.PersonOf(r)
	by := certs.Asker{Name: person.Name, Admin: person.Role == controlplane.GroupAdmin, Owns: func(host string) bool { return len(s.AddressesOf(host)) > 0 }}
	read := func(into any) error {
		decoder := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 128<<10))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(into); err != nil {
			return fmt.Errorf("%w: %v", errUnreadable, err)
		}
		return nil
	}
	parts := strings.Split(strings.Trim(strings.TrimPrefix(r.URL.Path, peoplewire.PathPKI), "/"), "/")
	switch what := r.Method + " " + parts[0]; {
	case what == "GET " && len(parts) == 1:
		return s.describePKI()
	case what == "GET crl" && len(parts) == 1:
		der, _, err := s.certs.CRL()
		return peoplewire.PKIList{CRL: string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))}, err
	case what == "POST init" && len(parts) == 1:
		var wanted peoplewire.PKIInit
		if err := read(&wanted); err != nil {
			return nil, err
		}
		if !by.Admin {
			return nil, fmt.Errorf("%w: making an authority needs role admin", certs.ErrForbidden)
		}
		return s.initPKI(wanted)
	case what == "GET certificates" && len(parts) == 1:
		all := []peoplewire.PKICertificate{}
		for _, i := range s.certs.List() {
			shown := wireCertificate(i, time.Now())
			shown.Certificate = ""
			all = append(all, shown)
		}
		return all, nil
	case what == "GET certificates" && len(parts) == 2:
		i, err := s.certs.Get(parts[1])
		if err != nil {
			return nil, err
		}
		return wireCertificate(i, time.Now()), nil
	case what == "POST certificates" && len(parts) == 1:
		var wanted peoplewire.PKIRequest
		if err := read(&wanted); err != nil {
			return nil, err
		}
		const longest = int64(certs.LongestTTL/time.Second) + 1
		i, err := s.certs.Issue(certs.Request{
			CSR: []byte(wanted.CSR), Profile: wanted.Profile, TTL: time.Duration(max(-1, min(wanted.TTL, longest))) * time.Second, Hosts: wanted.Hosts, CommonName: wanted.CommonName,
		}, by)
		if err != nil {
			return nil, err
		}
		s.remarkPKI(r, i)
		s.log.Info("certificate issued", "serial", i.Serial, "profile", i.Profile, "name", i.Certificate().Subject.CommonName, "names", strings.Join(i.Names(), ","), "until", i.Certificate().NotAfter, "by", by.Name)
		return wireCertificate(i, time.Now()), nil
	case what == "POST certificates" && len(parts) == 3 && parts[2] == "revoke":
		var wanted peoplewire.PKIRevoke
		if err := read(&wanted); err != nil {
			return nil, err
		}
		i, err := s.certs.Revoke(parts[1], wanted.Reason, by)
		if err != nil {
			return nil, err
		}
		s.remarkPKI(r, i)
		return wireCertificate(i, time.Now()), nil
	}
	return nil, fmt.Errorf("%w at %s %s", errNoSuchPath, r.Method, r.URL.Path)
}

// remarkPKI puts a certificate into the audit log's record of a request.
func (s *server) remarkPKI(r *http.Request, i certs.Issued) {
	for key, value := range map[string]string{
		"serial": i.Serial, "profile": i.Profile, "name": i.Certificate().Subject.CommonName, "names": strings.Join(i.Names(), ","),
		"until": i.Certificate().NotAfter.UTC().Format(time.RFC3339),
	} {
		if value != "" {
			controlplane.Remark(r, "pki.coldrack.dev/"+key, value)
		}
	}
	if !i.RevokedAt.IsZero() {
		controlplane.Remark(r, "pki.coldrack.dev/revoked", certs.ReasonName(i.Reason))
	}
}

func (s *server) initPKI(wanted peoplewire.PKIInit) (any, error) {
	settings := certs.Settings{CommonName: wanted.Name, Domains: wanted.Domains, URL: wanted.URL}
	for _, text := range wanted.Networks {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%w: network %.60q: must be such as 10.0.0.0/24", certs.ErrBad, text)
		}
		settings.Networks = append(settings.Networks, n)
	}
	switch wanted.URL {
	case peoplewire.PKINoURL:
		settings.URL = ""
	case "":
		if settings.URL = s.bootURL(); settings.URL == "" {
			return nil, fmt.Errorf("%w: url: this server does not know by which address machines reach it; name one, such as http://10.0.0.2:%d, or none", certs.ErrBad, s.cfg.BootPort)
		}
	}
	if err := s.certs.Init(settings); err != nil {
		return nil, err
	}
	return s.describePKI()
}

// bootURL is where machines reach the boot port; empty where that is not known.
func (s *server) bootURL() string {
	if s.reach == nil {
		return ""
	}
	all := append([]netip.Addr{s.reach.configured}, s.reach.All()...)
	i := slices.IndexFunc(all, func(a netip.Addr) bool { return a.IsValid() && !a.IsLinkLocalUnicast() && !a.IsLoopback() })
	if i < 0 {
		return ""
	}
	return "http://" + net.JoinHostPort(all[i].String(), strconv.Itoa(s.cfg.BootPort))
}

func (s *server) describePKI() (any, error) {
	cert, settings, err := s.certs.Describe()
	if err != nil {
		return nil, err
	}
	shown := peoplewire.PKI{
		Name: settings.CommonName, Certificate: string(pki.EncodeCertificate(cert)), Until: cert.NotAfter, Domains: settings.Domains, URL: settings.URL,
		Server: string(s.keys.machines.CertPEM()), Issued: len(s.certs.List()),
	}
	for _, n := range settings.Networks {
		shown.Networks = append(shown.Networks, n.String())
	}
	return shown, nil
}

func wireCertificate(i certs.Issued, now time.Time) peoplewire.PKICertificate {
	shown := peoplewire.PKICertificate{
		Serial: i.Serial, Profile: i.Profile, CommonName: i.Certificate().Subject.CommonName, Names: i.Names(), By: i.By, IssuedAt: i.At,
		Until: i.Certificate().NotAfter, RevokedAt: i.RevokedAt, RevokedBy: i.RevokedBy, State: peoplewire.PKIValid, Certificate: string(i.PEM()),
	}
	switch {
	case !i.RevokedAt.IsZero():
		shown.State, shown.Reason = peoplewire.PKIRevoked, certs.ReasonName(i.Reason)
	case !now.Before(i.Certificate().NotAfter):
		shown.State = peoplewire.PKIEnded
	}
	return shown
}

// serviceAuthority is the certificate of the authority for people and services; nil where there is none.
func (s *server) serviceAuthority() *x509.Certificate {
	if s.certs == nil {
		return nil
	}
	cert, _, _ := s.certs.Describe()
	return cert
}

// hostCache are the names and addresses of approved machines, as they were a moment ago.
type hostCache struct {
	mu        sync.Mutex
	at        time.Time
	addresses map[string][]netip.Addr
	machines  map[netip.Addr]string
}

// hostsFresh is how old they may be.
const hostsFresh = time.Second

// approvedHosts are the addresses of approved machines by name, in their domain and alone, and their names by address. The first of two
// that want one name or address has it, as in DNS.
func (s *server) approvedHosts() (map[string][]netip.Addr, map[netip.Addr]string) {
	if s.names == nil {
		return nil, nil
	}
	s.hosts.mu.Lock()
	defer s.hosts.mu.Unlock()
	now := time.Now()
	if age := now.Sub(s.hosts.at); s.hosts.addresses != nil && age >= 0 && age < hostsFresh {
		return s.hosts.addresses, s.hosts.machines
	}
	names, machines := map[string][]netip.Addr{}, map[netip.Addr]string{}
	for _, m := range byStanding(s.fleet.Snapshot()) {
		if standing(m.Machine) == 0 {
			continue
		}
		addresses := s.names.addressesIn(m)
		if len(addresses) == 0 {
			continue
		}
		for _, a := range addresses {
			if machines[a] == "" {
				machines[a] = m.Machine.Name
			}
		}
		for _, name := range []string{m.Machine.Name, cmp.Or(m.Machine.Spec.Hostname, m.Machine.Name)} {
			for _, full := range []string{name, name + "." + s.names.domainOf(addresses[0])} {
				if names[full] == nil && !strings.HasSuffix(full, ".") {
					names[full] = addresses
				}
			}
		}
	}
	s.hosts.at, s.hosts.addresses, s.hosts.machines = now, names, machines
	return names, machines
}

// MachineAt is the approved machine that has an address; empty: none.
func (s *server) MachineAt(a netip.Addr) string {
	_, machines := s.approvedHosts()
	return machines[a.Unmap()]
}

// AddressesOf an approved machine by one of its names, or an address by itself; none: it is not that of a machine.
func (s *server) AddressesOf(host string) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		if a = a.Unmap(); s.MachineAt(a) == "" {
			return nil
		}
		return []netip.Addr{a}
	}
	names, _ := s.approvedHosts()
	return names[host]
}

// acmeFile keeps accounts and orders of ACME.
const acmeFile = "acme.json"

// openACME begins to issue certificates to machines by ACME, after serveNames, where the configuration says so.
func (s *server) openACME(ctx context.Context, group *errgroup.Group) error {
	if !s.cfg.ACME {
		return nil
	}
	opened, err := acme.Open(ctx, acme.Options{
		Certs: s.certs, File: s.cfg.path(acmeFile), Inventory: s, Log: s.log.With("part", "acme"),
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return netns.Dial(ctx, s.cfg.BootNetns, network, address)
		},
	})
	if err != nil {
		return err
	}
	s.acme.Store(opened)
	group.Go(func() error {
		<-ctx.Done()
		opened.Wait()
		return nil
	})
	return nil
}

// withACME answers ACME beside what machines ask, where it is on.
func (s *server) withACME(machines http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.cfg.ACME && strings.HasPrefix(r.URL.Path, acme.Prefix) {
			if opened := s.acme.Load(); opened != nil {
				opened.ServeHTTP(w, r)
				return
			}
			http.Error(w, "the server is starting; try again in a moment", http.StatusServiceUnavailable)
			return
		}
		machines.ServeHTTP(w, r)
	})
}

// byStanding sorts machines: who is installed comes before who is approved, and who was there first before who came later: a newcomer
// takes nobody's name.
func byStanding(machines []fleet.Snapshot) []fleet.Snapshot {
	slices.SortFunc(machines, func(a, b fleet.Snapshot) int {
		return cmp.Or(standing(b.Machine)-standing(a.Machine), a.Machine.CreationTimestamp.Compare(b.Machine.CreationTimestamp.Time), strings.Compare(a.Machine.Name, b.Machine.Name))
	})
	return machines
}

// addressesIn are the addresses of a machine that lie in Subnets.
func (n *names) addressesIn(m fleet.Snapshot) []netip.Addr {
	networks := n.networks()
	return addressesOf(m, func(a netip.Addr) bool {
		return slices.ContainsFunc(networks, func(n network) bool { return n.cidr.Contains(a) })
	})
}

// domainOf is the domain of names for an address.
func (n *names) domainOf(a netip.Addr) string {
	for _, each := range n.networks() {
		if each.cidr.Contains(a) {
			return each.domain
		}
	}
	return n.cfg.DNSDomain
}
