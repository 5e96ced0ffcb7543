package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/credentials"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

const (
	// authorityNotice is how long before an authority's end a person is told. It is not renewed by itself: everything that it signed
	// must be replaced, too.
	authorityNotice = 90 * 24 * time.Hour
	// lateRenewal is how much of a certificate's life is left when its renewal is overdue. Ours are renewed when a third is left, or
	// a quarter.
	lateRenewal = 6
	// expiryLook is how often the log says what is overdue.
	expiryLook = 24 * time.Hour
)

// What ends, as metrics and the doctor name it.
const (
	expiryPeopleAPI   = "people-api"
	expiryAdmin       = "admin-kubeconfig"
	expiryNode        = "node-identity"
	expiryAuthority   = "cluster-authority"
	expiryClusterNode = "cluster-node"
)

// authorityEnd is the end of an authority of this server.
func authorityEnd(name string, until, now time.Time) peoplewire.Expiry {
	e := peoplewire.Expiry{Certificate: name, Until: until}
	if until.Sub(now) < authorityNotice {
		e.Overdue = fmt.Sprintf("authority %s ends at %s, and everything that it signed with it; docs/operations.md says how to replace it", name, until.UTC().Format(time.DateOnly))
	}
	return e
}

// leafEnd is the end of a certificate that is renewed by itself.
func leafEnd(certificate, cluster, name string, until, now time.Time, life time.Duration, do string) peoplewire.Expiry {
	e := peoplewire.Expiry{Certificate: certificate, Cluster: cluster, Name: name, Until: until}
	if until.Sub(now) < life/lateRenewal {
		e.Overdue = fmt.Sprintf("ends at %s and was not renewed: %s", until.UTC().Format(time.RFC3339), do)
	}
	return e
}

// expiry is what ends, the first of each sort.
func (s *server) expiry(now time.Time) []peoplewire.Expiry {
	list := []peoplewire.Expiry{authorityEnd(machineAuthority, s.keys.machines.Certificate().NotAfter, now)}
	if s.cfg.Kubeconfig == "" {
		list = append(list, peopleExpiry(s.cfg, s.keys.people, now)...)
		if s.servingUntil.Load() != 0 { // else people's API has not started yet
			list = append(list, leafEnd(expiryPeopleAPI, "", "", s.served(), now, servingTTL, "the server's log says why"))
		}
	}
	list = append(list, s.nodeExpiry(now)...)
	ends := s.clusters.AuthorityEnds()
	for _, cluster := range slices.Sorted(maps.Keys(ends)) {
		first := peoplewire.Expiry{}
		for _, authority := range slices.Sorted(maps.Keys(ends[cluster])) {
			if until := ends[cluster][authority]; first.Until.IsZero() || until.Before(first.Until) {
				first = authorityEnd("cluster-"+cluster+" "+string(authority), until, now)
				first.Certificate, first.Cluster, first.Name = expiryAuthority, cluster, string(authority)
				if first.Overdue != "" {
					first.Overdue = fmt.Sprintf("authority %s of cluster %s ends at %s, and everything that it signed with it; replace it: coldrack cluster rotate %s %s",
						authority, cluster, until.UTC().Format(time.DateOnly), cluster, authority)
				}
			}
		}
		list = append(list, first)
	}
	return list
}

// peopleExpiry is what people's API depends on and what lies in the data folder.
func peopleExpiry(cfg Config, people *pki.Authority, now time.Time) []peoplewire.Expiry {
	list := []peoplewire.Expiry{authorityEnd(credentials.Authority, people.Certificate().NotAfter, now)}
	until, err := credentials.AdminUntil(cfg.AdminKubeconfig())
	if err != nil {
		return list // it is made anew at the next look
	}
	return append(list, leafEnd(expiryAdmin, "", "", until, now, servingTTL, "the server's log says why"))
}

// nodeExpiry is the first identity of a node to end, and for each cluster the first certificate of a node.
func (s *server) nodeExpiry(now time.Time) []peoplewire.Expiry {
	const year = 365 * 24 * time.Hour
	first := map[string]peoplewire.Expiry{}
	take := func(e peoplewire.Expiry) {
		key := e.Certificate + " " + e.Cluster
		if was, ok := first[key]; !ok || e.Until.Before(was.Until) {
			first[key] = e
		}
	}
	for _, m := range s.fleet.List() {
		if id := m.Status.Identity; id != nil {
			take(leafEnd(expiryNode, "", m.Name, id.ExpiresAt.Time, now, year, fmt.Sprintf("look at machine %s; a node that is away for longer must be installed again (coldrack reinstall)", m.Name)))
		}
		if k := m.Status.Kubernetes; k != nil && k.CertificatesExpireAt != nil {
			life := year
			if v, ok, _ := s.clusters.View(k.Cluster); ok && v.Cluster != nil && v.Cluster.Spec.PKI.CertificateTTL != nil {
				life = v.Cluster.Spec.PKI.CertificateTTL.Duration
			}
			take(leafEnd(expiryClusterNode, k.Cluster, m.Name, k.CertificatesExpireAt.Time, now, life, fmt.Sprintf("coldrack logs %s says why", m.Name)))
		}
	}
	return slices.SortedFunc(maps.Values(first), func(a, b peoplewire.Expiry) int {
		return cmp.Or(cmp.Compare(b.Certificate, a.Certificate), cmp.Compare(a.Cluster, b.Cluster))
	})
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
	for _, name := range []string{machineAuthority, credentials.Authority} {
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
		list = append(list, authorityEnd(name, cert.NotAfter, now))
	}
	return list, nil
}

var _ peopleAPI = (*controlplane.ControlPlane)(nil)
