package daemon

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/server/certs"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/credentials"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

const (
	// notice is how long before the end of something a person is told, when it was not renewed by then or is not by itself. What lives
	// for less than a year is told of later, see noticeOf.
	notice = 90 * 24 * time.Hour
	// expiryLook is how often the log says what is overdue.
	expiryLook = 24 * time.Hour
	// maxOthers is how many more of a sort are named.
	maxOthers = 8
)

// What ends, as metrics and the doctor name it.
const (
	expiryPeopleAPI   = "people-api"
	expiryAdmin       = "admin-kubeconfig"
	expiryToken       = "token"
	expiryNode        = "node-identity"
	expiryAuthority   = "cluster-authority"
	expiryClusterNode = "cluster-node"
)

// noticeOf is how much of a life is left when its renewal is overdue. Ours are renewed when a third is left or earlier.
func noticeOf(life time.Duration) time.Duration { return min(notice, life/4) }

// kubeletNotice is the same for what a kubelet renews by itself, at a moment of its own when between three tenths and one are left.
func kubeletNotice(life time.Duration) time.Duration { return min(notice, life/12) }

// authorityEnd is the end of an authority of this server.
func authorityEnd(name string, until, now time.Time) peoplewire.Expiry {
	e := peoplewire.Expiry{Certificate: name, Until: until}
	if until.Sub(now) < notice {
		e.Overdue = fmt.Sprintf("authority %s ends at %s, and everything that it signed with it; docs/operations.md says how to replace it", name, until.UTC().Format(time.DateOnly))
	}
	return e
}

// leafEnd is the end of a certificate that is renewed by itself, before less than late of its life is left.
func leafEnd(certificate, cluster, name string, until, now time.Time, late time.Duration, do string) peoplewire.Expiry {
	e := peoplewire.Expiry{Certificate: certificate, Cluster: cluster, Name: name, Until: until}
	switch left := until.Sub(now); {
	case left <= 0:
		e.Overdue = fmt.Sprintf("ended at %s and was not renewed: %s", until.UTC().Format(time.RFC3339), do)
	case left < late:
		e.Overdue = fmt.Sprintf("ends at %s and was not renewed: %s", until.UTC().Format(time.RFC3339), do)
	}
	return e
}

// firsts has of each sort and cluster what is overdue, else what ends soon, else the first to end.
type firsts map[[2]string]*ends

type ends struct {
	first         peoplewire.Expiry
	overdue, soon []peoplewire.Expiry
}

func (f firsts) take(e peoplewire.Expiry) {
	sort := [2]string{e.Certificate, e.Cluster}
	has := f[sort]
	if has == nil {
		has = &ends{first: e}
		f[sort] = has
	}
	switch {
	case e.Overdue != "":
		has.overdue = append(has.overdue, e)
	case e.Soon != "":
		has.soon = append(has.soon, e)
	case e.Until.Before(has.first.Until):
		has.first = e
	}
}

func (f firsts) list() []peoplewire.Expiry {
	var list []peoplewire.Expiry
	for _, has := range f {
		e := has.first
		switch {
		case len(has.overdue) > 0:
			var others string
			e, others = firstAndOthers(has.overdue)
			e.Overdue += others
		case len(has.soon) > 0:
			var others string
			e, others = firstAndOthers(has.soon)
			e.Soon += others
		}
		list = append(list, e)
	}
	return slices.SortedFunc(slices.Values(list), func(a, b peoplewire.Expiry) int {
		return cmp.Or(cmp.Compare(b.Certificate, a.Certificate), cmp.Compare(a.Cluster, b.Cluster))
	})
}

// firstAndOthers is the first of a list to end, and a text that names the others.
func firstAndOthers(list []peoplewire.Expiry) (first peoplewire.Expiry, others string) {
	slices.SortStableFunc(list, func(a, b peoplewire.Expiry) int { return a.Until.Compare(b.Until) })
	var names []string
	for _, e := range list[1:] {
		if e.Name != list[0].Name && !slices.Contains(names, e.Name) {
			names = append(names, e.Name)
		}
	}
	if len(names) == 0 {
		return list[0], ""
	}
	others = "; also: " + strings.Join(names[:min(len(names), maxOthers)], ", ")
	if more := len(names) - maxOthers; more > 0 {
		others += fmt.Sprintf(" and %d more", more)
	}
	return list[0], others
}

// expiry is what ends, the first of each sort.
func (s *server) expiry(now time.Time) []peoplewire.Expiry {
	list := []peoplewire.Expiry{authorityEnd(machineAuthority, s.keys.machines.Certificate().NotAfter, now)}
	if s.cfg.Kubeconfig == "" {
		list = append(list, peopleExpiry(s.cfg, s.keys.people.Certificate(), now)...)
		if s.servingUntil.Load() != 0 { // else people's API has not started yet
			list = append(list, leafEnd(expiryPeopleAPI, "", "", s.served(), now, noticeOf(servingTTL), "the server's log says why"))
		}
	}
	if cert := s.serviceAuthority(); cert != nil {
		list = append(list, authorityEnd(certs.Authority, cert.NotAfter, now))
	}
	list = append(list, s.nodeExpiry(now)...)
	first := firsts{}
	for cluster, authorities := range s.clusters.AuthorityEnds() {
		for authority, until := range authorities {
			e := peoplewire.Expiry{Certificate: expiryAuthority, Cluster: cluster, Name: string(authority), Until: until}
			if until.Sub(now) < notice {
				e.Overdue = fmt.Sprintf("authority %s of cluster %s ends at %s, and everything that it signed with it; replace it: coldrack cluster rotate %s %s",
					authority, cluster, until.UTC().Format(time.DateOnly), cluster, authority)
			}
			first.take(e)
		}
	}
	return append(list, first.list()...)
}

// peopleExpiry is what people's API depends on and what lies in the data folder.
func peopleExpiry(cfg Config, people *x509.Certificate, now time.Time) []peoplewire.Expiry {
	list := []peoplewire.Expiry{authorityEnd(credentials.Authority, people.NotAfter, now)}
	if until, err := credentials.AdminUntil(cfg.AdminKubeconfig()); err == nil { // else it is made anew at the next look
		list = append(list, leafEnd(expiryAdmin, "", "", until, now, noticeOf(servingTTL), "the server renews it while it runs; its log says why it did not"))
	}
	tokens, err := controlplane.OpenTokens(controlplane.TokensPath(cfg.DataDir)).List()
	if err != nil {
		return list // requests fail with the same error
	}
	first := firsts{}
	for _, token := range tokens {
		if !token.Expires.IsZero() && !token.Expired(now) {
			first.take(tokenEnd(token, now))
		}
	}
	return append(list, first.list()...)
}

// tokenEnd is the end of a person's token. It is as long as that person wanted it: nobody but the person can renew it. One that was made
// for less than the notice is not announced.
func tokenEnd(token controlplane.Token, now time.Time) peoplewire.Expiry {
	e := peoplewire.Expiry{Certificate: expiryToken, Name: token.Name, Until: token.Expires}
	if life := token.Expires.Sub(token.Created); life > notice && e.Until.Sub(now) < noticeOf(life) {
		e.Overdue = fmt.Sprintf("token %s ends at %s and is not renewed: give whoever uses it another one (coldrack token create), then coldrack token revoke %s",
			token.Name, e.Until.UTC().Format(time.DateOnly), token.Name)
	}
	return e
}

// nodeExpiry is the first identity of a node to end, and for each cluster the first certificate of a node.
func (s *server) nodeExpiry(now time.Time) []peoplewire.Expiry {
	const year = 365 * 24 * time.Hour
	first := firsts{}
	for _, m := range s.fleet.List() {
		if id := m.Status.Identity; id != nil {
			first.take(leafEnd(expiryNode, "", m.Name, id.ExpiresAt.Time, now, noticeOf(year),
				fmt.Sprintf("look at machine %s (coldrack machines describe %s); its agent renews it with the next report. Once it has ended, the machine must be installed again (coldrack reinstall)", m.Name, m.Name)))
		}
		k := m.Status.Kubernetes
		if k == nil || k.CertificatesExpireAt == nil {
			continue
		}
		life := year
		if v, ok, _ := s.clusters.View(k.Cluster); ok && v.Cluster != nil && v.Cluster.Spec.PKI.CertificateTTL != nil {
			life = v.Cluster.Spec.PKI.CertificateTTL.Duration
		}
		do := fmt.Sprintf("coldrack logs %s says why", m.Name)
		// What the node reports by name is kept in memory only.
		if up := s.fleet.Live(m.Name).Bringup; up != nil && up.Cluster == k.Cluster && len(up.Certificates) > 0 {
			for name, until := range up.Certificates {
				first.take(nodeCertificateEnd(k.Cluster, m.Name+" "+name, name, until, now, life, do))
			}
		} else {
			first.take(leafEnd(expiryClusterNode, k.Cluster, m.Name, k.CertificatesExpireAt.Time, now, noticeOf(life), do))
		}
	}
	return first.list()
}

// nodeCertificateEnd is the end of one of a node's certificates. The kubelet renews its own.
func nodeCertificateEnd(cluster, name, certificate string, until, now time.Time, life time.Duration, do string) peoplewire.Expiry {
	if !strings.HasPrefix(certificate, "kubelet-") {
		return leafEnd(expiryClusterNode, cluster, name, until, now, noticeOf(life), do)
	}
	e := leafEnd(expiryClusterNode, cluster, name, until, now, kubeletNotice(life), "the kubelet renews it through the cluster's API, and this server signs it: the kubelet's log and that of the server say why it did not")
	if e.Overdue == "" && until.Sub(now) < noticeOf(life) {
		e.Soon = fmt.Sprintf("ends at %s; the kubelet renews it before %s", until.UTC().Format(time.DateOnly), until.Add(-life/10).UTC().Format(time.DateOnly))
	}
	return e
}

func (s *server) expiryHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			http.Error(w, "only GET", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.expiry(time.Now()))
	})
}

// tellExpiry says in the log each day what a person must see to, until ctx ends.
func (s *server) tellExpiry(ctx context.Context) error {
	tick := time.NewTicker(expiryLook)
	defer tick.Stop()
	for {
		for _, e := range s.expiry(time.Now()) {
			if e.Overdue != "" {
				s.log.Warn("a certificate ends and is not renewed", "certificate", e.Certificate, "cluster", e.Cluster, "name", e.Name, "until", e.Until, "do", e.Overdue)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// ExpiryOnDisk is what ends of a server that does not run, as far as its data folder tells. A folder without keys has nothing.
func ExpiryOnDisk(cfg Config, now time.Time) ([]peoplewire.Expiry, error) {
	var list []peoplewire.Expiry
	for _, name := range []string{machineAuthority, credentials.Authority, certs.Authority} {
		content, err := os.ReadFile(filepath.Join(cfg.path("pki"), name+".crt"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return list, err
		}
		cert, err := pki.ParseCertificate(content)
		if err != nil {
			return list, fmt.Errorf("authority %s: %w", name, err)
		}
		if name == credentials.Authority && cfg.Kubeconfig == "" {
			list = append(list, peopleExpiry(cfg, cert, now)...)
		} else {
			list = append(list, authorityEnd(name, cert.NotAfter, now))
		}
	}
	return list, nil
}

var _ peopleAPI = (*controlplane.ControlPlane)(nil)
