package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"coldrack.dev/internal/server/audit"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// auditPage is how many records are given to who asks for no number.
const auditPage = 100

// auditHandler answers at peoplewire.PathAudit, to which only administrators come.
func (s *server) auditHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "only GET", http.StatusMethodNotAllowed)
			return
		}
		if s.audit == nil {
			http.Error(w, "this server keeps no audit log: the Kubernetes API that holds its objects has its own", http.StatusNotFound)
			return
		}
		query, err := auditQuery(r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		found, err := s.audit.Search(r.Context(), query)
		switch {
		case errors.Is(err, audit.ErrPlace):
			http.Error(w, err.Error(), http.StatusGone)
			return
		case err != nil:
			s.log.Error("the audit log cannot be read", "err", err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		page := peoplewire.AuditPage{Records: []peoplewire.AuditRecord{}, Newest: string(found.Newest), Older: string(found.Older), Reached: found.Reached, Unreadable: found.Unreadable}
		for _, one := range found.Records {
			page.Records = append(page.Records, peoplewire.AuditRecord(one))
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(page)
	})
}

// auditQuery reads what is asked for, or says what is wrong with it.
func auditQuery(values url.Values) (q audit.Query, err error) {
	q = audit.Query{
		User: values.Get("user"), Verb: values.Get("verb"), Object: values.Get("object"),
		Before: audit.Place(values.Get("before")), After: audit.Place(values.Get("after")), Most: auditPage,
	}
	if text := values.Get("limit"); text != "" {
		if q.Most, err = strconv.Atoi(text); err != nil || q.Most < 1 || q.Most > audit.MostRecords {
			return q, fmt.Errorf("limit: %q: must be a number from 1 to %d", text, audit.MostRecords)
		}
	}
	for key, into := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		if text := values.Get(key); text != "" {
			if *into, err = time.Parse(time.RFC3339, text); err != nil {
				return q, fmt.Errorf("%s: %q: must be a time as 2026-11-30T08:00:00Z (RFC 3339)", key, text)
			}
		}
	}
	for key, into := range map[string]*bool{"people": &q.People, "failed": &q.Failed} {
		if text := values.Get(key); text != "" {
			if *into, err = strconv.ParseBool(text); err != nil {
				return q, fmt.Errorf("%s: %q: must be 1 or 0", key, text)
			}
		}
	}
	return q, nil
}
