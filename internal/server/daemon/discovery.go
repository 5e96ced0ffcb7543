package daemon

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/etcddiscovery"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// discoveryHandler answers people: what tokens there are, a new one, an end to one.
func (s *server) discoveryHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.discovery == nil {
			http.Error(w, "this server serves no members of etcd: start it with --etcd-discovery-port 7081", http.StatusNotFound)
			return
		}
		answer, err := s.answerDiscovery(w, r)
		if err != nil {
			http.Error(w, err.Error(), discoveryStatus(err))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	})
}

var errMethod = errors.New("GET, POST and DELETE only")

func discoveryStatus(err error) int {
	switch {
	case errors.Is(err, etcddiscovery.ErrNoToken):
		return http.StatusNotFound
	case errors.Is(err, etcddiscovery.ErrBad):
		return http.StatusBadRequest
	case errors.Is(err, etcddiscovery.ErrTooMany):
		return http.StatusConflict
	case errors.Is(err, errMethod):
		return http.StatusMethodNotAllowed
	}
	return http.StatusInternalServerError
}

func (s *server) answerDiscovery(w http.ResponseWriter, r *http.Request) (any, error) {
	person := controlplane.PersonOf(r)
	endpoints := s.discoveryEndpoints()
	switch r.Method {
	case http.MethodGet:
		all := []peoplewire.DiscoveryToken{}
		for _, t := range s.discovery.List() {
			shown := wireToken(t, endpoints, time.Now())
			if person.Role != controlplane.GroupAdmin && person.Role != controlplane.GroupOperator {
				shown.Token = etcddiscovery.Short(t.ID) // who has all of it can join the cluster
			}
			all = append(all, shown)
		}
		return all, nil
	case http.MethodPost:
		var wanted peoplewire.NewDiscovery
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&wanted); err != nil {
			return nil, errors.Join(etcddiscovery.ErrBad, err)
		}
		const longest = int64(etcddiscovery.MaxTTL/time.Second) + 1
		t, err := s.discovery.New(wanted.Size, time.Duration(min(wanted.TTL, longest))*time.Second, person.Name, false)
		return wireToken(t, endpoints, time.Now()), err
	case http.MethodDelete:
		id := r.URL.Query().Get("token")
		for _, t := range s.discovery.List() {
			if t.ID == id {
				return wireToken(t, endpoints, time.Now()), s.discovery.Delete(id)
			}
		}
		return nil, etcddiscovery.ErrNoToken
	}
	w.Header().Set("Allow", "GET, POST, DELETE")
	return nil, errMethod
}

// discoveryEndpoints are where machines reach the server: the configured address first.
func (s *server) discoveryEndpoints() []string {
	var all []string
	add := func(a netip.Addr) {
		if a.IsValid() && !a.IsLinkLocalUnicast() {
			all = append(all, net.JoinHostPort(a.String(), strconv.Itoa(s.cfg.EtcdDiscoveryPort)))
		}
	}
	add(s.reach.configured)
	for _, a := range s.reach.All() {
		if a != s.reach.configured {
			add(a)
		}
	}
	return all
}

func wireToken(t etcddiscovery.Token, endpoints []string, now time.Time) peoplewire.DiscoveryToken {
	shown := peoplewire.DiscoveryToken{Token: t.ID, Size: t.Size, Created: t.Created, Expires: t.Expires, By: t.By, Endpoints: endpoints,
		State: peoplewire.DiscoveryForming, Members: []peoplewire.DiscoveryMember{}}
	switch {
	case !now.Before(t.Expires):
		shown.State = peoplewire.DiscoveryEnded
	case t.Complete():
		shown.State = peoplewire.DiscoveryComplete
	}
	for _, m := range t.Members {
		member := peoplewire.DiscoveryMember{ID: m.ID, From: m.From.String(), At: m.At}
		for _, one := range strings.Split(m.Peers, ",") {
			name, address, _ := strings.Cut(one, "=")
			member.Name, member.PeerURLs = name, append(member.PeerURLs, address)
		}
		shown.Members = append(shown.Members, member)
	}
	return shown
}
